//! The guest: a machine in software that runs shell commands and answers with what they print.
//!
//! Knows qemu.sh and the control port of init.sh; not what the commands are for. Invariant: every command ends in its time, in the guest
//! or by giving up here; the machine goes off when its handle does, and with its namespace at the latest.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use portcullis_testkit::topology::cleanup;
use portcullis_testkit::topology::namespace::{Namespace, directory_of};
use portcullis_testkit::topology::program::{Running, wait_until};

/// How long booting may take. Idle it takes 8 s; on a machine at work, whose processors are shared, it has taken 40.
const BOOT: Duration = Duration::from_mins(2);
/// How often QEMU is started until it lives.
const ATTEMPTS: u32 = 3;
/// How long a command may take when nothing else is said.
const LIMIT: Duration = Duration::from_secs(20);
/// How much longer than the guest itself is waited for an answer. Chosen: emulation stalls for seconds on a busy machine.
const GRACE: Duration = Duration::from_secs(15);
/// What comes before a command's exit code. The same as in init.sh.
const MARK: &[u8] = b"\n\x01 ";

/// What a guest is made of; bench/vm/fetch.sh and image.sh make it.
pub(crate) struct Parts {
    /// QEMU and its libraries.
    pub(crate) tools: PathBuf,
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// The root file system.
    pub(crate) image: PathBuf,
}

/// A guest that has booted.
pub(crate) struct Guest {
    machine: Running,
    control: UnixStream,
    /// What has come and was not asked for yet.
    pending: Vec<u8>,
}

/// Why a boot failed that is worth another.
#[derive(Clone, Copy, Debug)]
struct Died;

impl fmt::Display for Died {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QEMU ended")
    }
}

/// How a command in the guest ended.
#[derive(Debug)]
pub(crate) struct Answer {
    command: String,
    /// Its exit code.
    pub(crate) code: i32,
    /// All that it printed.
    pub(crate) printed: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {} in the guest\n{}", self.command, self.code, self.printed)
    }
}

impl Guest {
    /// Boots a guest in `host`, with NICs on these tap devices of that namespace, in qemu.sh's order.
    ///
    /// QEMU 10.0.2 dies of an assertion in one boot of about forty (in `msix_table_mmio_write`), so one that dies is started again.
    ///
    /// **Errors:** the last of [`ATTEMPTS`] died, or the guest was not ready in time, with the last that its kernel said.
    pub(crate) fn boot(host: &Namespace, parts: &Parts, taps: &[&str]) -> Result<Self> {
        for _ in 1..ATTEMPTS {
            match Self::boot_once(host, parts, taps) {
                Err(error) if error.is::<Died>() && !cleanup::is_interrupted() => eprintln!("{error:#}\nstarting it again"),
                outcome => return outcome,
            }
        }
        Self::boot_once(host, parts, taps)
    }

    fn boot_once(host: &Namespace, parts: &Parts, taps: &[&str]) -> Result<Self> {
        let directory = directory_of(host.name());
        std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let socket = directory.join("control");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/vm/qemu.sh");
        let words = [&script, &parts.tools, &parts.kernel, &parts.image, &socket].map(|path| path.display().to_string());
        let arguments = words.iter().map(String::as_str).chain(taps.iter().copied());
        // The socket of one that died would be taken for this one's.
        let _ = std::fs::remove_file(&socket);
        let mut machine = host.program("sh", arguments).start()?;
        let control = connect(&mut machine, &socket)?;
        let mut guest = Self { machine, control, pending: Vec::new() };
        let ready = guest.answer(BOOT).with_context(|| format!("booting\n{}", guest.console()));
        if ready.is_err() && wait_until(Duration::from_secs(1), || !guest.machine.is_running()) {
            return ready.context(Died).map(|_| guest);
        }
        ready.map(|_| guest)
    }

    /// What the guest's kernel and QEMU have said, the last lines.
    pub(crate) fn console(&self) -> String {
        let all = self.machine.printed();
        let lines: Vec<_> = all.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Runs a command. A bad exit code is no error here: see [`Self::expect`].
    pub(crate) fn run(&mut self, command: &str) -> Result<Answer> {
        ensure!(!command.contains('\n'), "a command is one line: {command:?}");
        let sent = writeln!(self.control, "{} {command}", LIMIT.as_secs());
        let answer = sent.context("the control port").and_then(|()| self.answer(LIMIT + GRACE));
        let (code, printed) = answer.with_context(|| format!("`{command}` in the guest; its console:\n{}", self.console()))?;
        let code = code.parse().with_context(|| format!("`{command}` in the guest: an exit code {code:?}"))?;
        Ok(Answer { command: command.to_owned(), code, printed })
    }

    /// Runs a command that has to succeed, and gives back what it printed.
    pub(crate) fn expect(&mut self, command: &str) -> Result<String> {
        let answer = self.run(command)?;
        if answer.code != 0 {
            bail!("{answer}");
        }
        Ok(answer.printed)
    }

    /// Writes a file.
    pub(crate) fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let lines: Vec<_> = text.lines().map(|line| format!("'{}'", line.replace('\'', r"'\''"))).collect();
        self.expect(&format!("printf '%s\\n' {} > {path}", lines.join(" "))).map(drop)
    }

    /// Looks until `condition` holds, at most for `limit`. Returns whether it held.
    pub(crate) fn wait_until(&mut self, limit: Duration, mut condition: impl FnMut(&mut Self) -> bool) -> bool {
        wait_until(limit, || condition(self))
    }

    /// The next answer: the exit code, or `ready` once, and what came before it.
    fn answer(&mut self, limit: Duration) -> Result<(String, String)> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = take_answer(&mut self.pending) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no answer in {limit:?}");
            self.control.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.control.read(&mut chunk) {
                Ok(0) => bail!("the machine is off"),
                Ok(length) => self.pending.extend_from_slice(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("the control port"),
            }
        }
    }
}

impl Drop for Guest {
    /// Ends QEMU by its own starter, which waits for it; killed together they would leave it to whoever waits for orphans.
    fn drop(&mut self) {
        let _ = self.machine.signal(Signal::SIGTERM);
        wait_until(Duration::from_secs(10), || !self.machine.is_running());
    }
}

/// Takes the first whole answer out of what has come: the exit code, and what was printed.
fn take_answer(pending: &mut Vec<u8>) -> Option<(String, String)> {
    let mark = pending.windows(MARK.len()).position(|window| window == MARK)?;
    let code = mark + MARK.len();
    let end = code + pending[code..].iter().position(|&byte| byte == b'\n')?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let answer = (text(&pending[code..end]), text(&pending[..mark]));
    pending.drain(..=end);
    Some(answer)
}

/// Connects to the control port once QEMU has made its socket.
fn connect(machine: &mut Running, socket: &Path) -> Result<UnixStream> {
    let mut stream = None;
    wait_until(Duration::from_secs(20), || {
        stream = UnixStream::connect(socket).ok();
        stream.is_some() || !machine.is_running()
    });
    stream.with_context(|| format!("QEMU made no control port: {}", machine.printed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_when_it_is_whole() {
        let mut pending = b"one\ntwo\n\x01 1".to_vec();
        assert_eq!(take_answer(&mut pending), None);
        pending.extend(b"4\nnext");
        assert_eq!(take_answer(&mut pending), Some(("14".to_owned(), "one\ntwo".to_owned())));
        assert_eq!(pending, b"next");
    }

    #[test]
    fn a_command_that_prints_nothing_has_an_answer_too() {
        let mut pending = b"\n\x01 0\n".to_vec();
        assert_eq!(take_answer(&mut pending), Some(("0".to_owned(), String::new())));
        assert!(pending.is_empty());
    }
}
