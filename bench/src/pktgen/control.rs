//! The kernel's pktgen: told what to send, started, stopped, and asked what it has sent.
//!
//! Knows the files below /proc/net/pktgen; not what comes of the packets. Called by the trials, one user at a time. Invariant: a run ends
//! in its time; no device is left when the handle goes, and the next run removes those of one that was killed.
//! Source: Linux Documentation/networking/pktgen.rst. Tests: in the guest (docs/vm.md), which has the module.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result, bail, ensure};

use super::device::{Load, Outcome, Stream, outcome};

/// Of the calling thread's network namespace.
const DIRECTORY: &str = "/proc/thread-self/net/pktgen";
/// How long it may take to end once told to stop. Chosen: it looks ten times a second, on a busy machine less often.
const STOPPING: Duration = Duration::from_secs(30);

/// pktgen, ours for as long as this exists.
#[derive(Debug)]
pub(super) struct Pktgen {
    directory: PathBuf,
    cpus: Vec<u32>,
}

impl Pktgen {
    /// Takes pktgen, and removes what devices it has.
    ///
    /// **Errors:** the module is not loaded; not root.
    pub(super) fn open() -> Result<Self> {
        let directory = PathBuf::from(DIRECTORY);
        let files = fs::read_dir(&directory).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow::anyhow!(
                "the kernel's packet generator is not there: run `modprobe pktgen` as root (the kernel needs CONFIG_NET_PKTGEN; \
                 Debian's have it as a module)"
            ),
            _ => anyhow::Error::new(error).context(format!("looking into {DIRECTORY}")),
        })?;
        let number = |name: &str| name.strip_prefix("kpktgend_")?.parse().ok();
        let mut cpus: Vec<u32> = files.flatten().filter_map(|file| number(file.file_name().to_str()?)).collect();
        cpus.sort_unstable();
        ensure!(!cpus.is_empty(), "pktgen has no threads (see `ls /proc/net/pktgen`)");
        let pktgen = Self { directory, cpus };
        pktgen.write("pgctrl", "reset")?;
        Ok(pktgen)
    }

    /// The processors that it has threads on.
    pub(super) fn cpus(&self) -> &[u32] {
        &self.cpus
    }

    /// Sends each stream with its load, all at once, and returns what each has done, once all have sent their counts or `limit` is over.
    ///
    /// **Errors:** pktgen refuses something, with what it says; a port went down.
    pub(super) fn run(&self, streams: &[(Stream, Load)], limit: Duration) -> Result<Vec<Outcome>> {
        self.write("pgctrl", "reset")?;
        for (stream, load) in streams {
            let name = stream.name();
            self.write(&format!("kpktgend_{}", stream.cpu), &format!("add_device {name}"))?;
            for line in stream.lines(load) {
                self.write(&name, &line)?;
            }
        }
        self.start(limit)?;
        let read = |(stream, _): &(Stream, Load)| -> Result<Outcome> {
            let path = self.directory.join(stream.name());
            let shown = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            outcome(&shown, stream.queue).with_context(|| format!("pktgen's device {}", stream.name()))
        };
        let outcomes = streams.iter().map(read).collect();
        self.write("pgctrl", "reset")?;
        outcomes
    }

    /// Starts, and waits until all is sent, at most for `limit`.
    fn start(&self, limit: Duration) -> Result<()> {
        let (ended, end) = mpsc::channel();
        thread::scope(|scope| {
            // The write returns when the run has ended.
            scope.spawn(|| ended.send(self.write("pgctrl", "start")));
            match end.recv_timeout(limit) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Timeout) => self.write("pgctrl", "stop")?,
                Err(RecvTimeoutError::Disconnected) => bail!("the thread that started pktgen is gone"),
            }
            end.recv_timeout(STOPPING).context("pktgen does not stop")?
        })
    }

    /// Writes a command to one of the files. **Errors:** it is refused, with the result that the file shows.
    fn write(&self, file: &str, command: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, format!("{command}\n")).with_context(|| {
            let shown = result_of(&path).map(|result| format!(": {result}")).unwrap_or_default();
            format!("pktgen refuses `{command}` for {file}{shown}")
        })
    }
}

impl Drop for Pktgen {
    fn drop(&mut self) {
        // Nothing can be done if it fails; the next run does it again.
        let _ = self.write("pgctrl", "reset");
    }
}

/// What the file shows as its last result.
fn result_of(path: &Path) -> Option<String> {
    let shown = fs::read_to_string(path).ok()?;
    shown.lines().find_map(|line| line.strip_prefix("Result: ")).map(str::to_owned)
}
