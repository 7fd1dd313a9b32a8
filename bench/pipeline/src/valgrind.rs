//! Runs this program under callgrind and reads what was collected inside [`crate::gateway::Gateway::process`].
//!
//! Knows the tool's options and its file, no packets. Called for instruction counts and for cache misses. Invariant: nothing outside that
//! function is in a figure: not the sessions' making, nor the writing of frames. Source: the Callgrind manual, chapter 6.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::count::{Options, READY};

/// The function that is collected in, mangled or not.
const COLLECT: &str = "--toggle-collect=*Gateway*process*";

/// The C library chooses its copying functions by the processor; without these features it takes the same ones everywhere.
const SAME_LIBRARY: (&str, &str) =
    ("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM,-SSSE3,-SSE4_1,-SSE4_2");

/// The caches that are simulated: 32 KiB, 8 ways, and 32 MiB, 16 ways, as the target is stated.
const CACHES: [&str; 4] = ["--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=33554432,16,64"];

/// Whether the tool is there.
pub(crate) fn is_installed() -> bool {
    let version = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// What to do when it is not.
pub(crate) const HOW_TO_INSTALL: &str = "valgrind is not installed: ./justw installs it (Debian's package valgrind)";

/// Instructions for each packet. Exact: the same program gives the same count.
pub(crate) fn instructions(options: &Options) -> Result<f64> {
    let file = OutFile::new(options);
    let mut command = command(&file.0, &[]);
    command.args(arguments(options)).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.stderr(Stdio::piped()).output().map_err(|error| explain(&error))?;
    ensure!(output.status.success(), "valgrind failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(read(&file.0)?.of("Ir")? as f64 / f64::from(options.packets()))
}

/// Cache misses for each packet, by the simulated caches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Misses {
    pub(crate) sessions: u32,
    /// Reads and writes of data that miss the last level.
    pub(crate) last_level: f64,
    /// That miss the first level.
    pub(crate) first_level: f64,
    pub(crate) instructions: f64,
}

/// Cache misses for each packet. The tool watches only once the sessions are there, since it is slow; `options.warm` batches then fill
/// the simulated caches.
pub(crate) fn misses(options: &Options) -> Result<Misses> {
    let file = OutFile::new(options);
    let mut command = command(&file.0, &CACHES);
    command.args(["--instr-atstart=no"]);
    // The option of valgrind has to come before the program.
    let mut child = Running(
        command
            .args(arguments(options))
            .arg("--wait")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| explain(&error))?,
    );
    wait_for_ready(&mut child.0)?;
    watch(&child.0)?;
    child.0.stdin.take().context("no standard input")?.write_all(b"\n").context("cannot let the program go on")?;
    let status = child.0.wait().context("cannot wait for valgrind")?;
    ensure!(status.success(), "valgrind ended with {status}");
    let collected = read(&file.0)?;
    let packets = f64::from(options.packets());
    let sum = |names: [&str; 2]| Ok::<_, anyhow::Error>((collected.of(names[0])? + collected.of(names[1])?) as f64 / packets);
    Ok(Misses {
        sessions: options.sessions,
        last_level: sum(["DLmr", "DLmw"])?,
        first_level: sum(["D1mr", "D1mw"])?,
        instructions: collected.of("Ir")? as f64 / packets,
    })
}

fn command(file: &Path, more: &[&str]) -> Command {
    let mut command = Command::new("valgrind");
    command.arg("--tool=callgrind").arg(COLLECT).arg(format!("--callgrind-out-file={}", file.display())).args(more);
    command.env(SAME_LIBRARY.0, SAME_LIBRARY.1);
    command
}

/// This program, and what it is to send.
fn arguments(options: &Options) -> Vec<String> {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
    let words = [
        program.display().to_string(),
        "count".into(),
        format!("--sessions={}", options.sessions),
        format!("--kind={}", options.kind.label()),
        format!("--mode={}", options.mode.label()),
        format!("--batches={}", options.batches),
        format!("--warm={}", options.warm),
        format!("--seed={}", options.seed),
    ];
    words.into()
}

fn explain(error: &std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::NotFound {
        anyhow::anyhow!(HOW_TO_INSTALL)
    } else {
        anyhow::anyhow!("cannot start valgrind: {error}")
    }
}

/// A process that does not outlive what waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, which is no failure.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for_ready(child: &mut Child) -> Result<()> {
    let mut line = String::new();
    let stdout = child.stdout.take().context("no standard output")?;
    BufReader::new(stdout).read_line(&mut line).context("cannot read what the program says")?;
    ensure!(line.trim() == READY, "the program did not make its sessions: it said {line:?}");
    Ok(())
}

/// Has the tool watch from here on.
fn watch(child: &Child) -> Result<()> {
    let control = Command::new("callgrind_control").args(["--instr=on", &child.id().to_string()]).output();
    let output = control.map_err(|error| explain(&error))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || said.contains("Error") {
        bail!("callgrind_control cannot reach the program: {said}");
    }
    Ok(())
}

/// The tool's file, which goes when it was read.
struct OutFile(PathBuf);

impl OutFile {
    fn new(options: &Options) -> Self {
        let name = format!("pipeline-{}-{}-{}.callgrind", std::process::id(), options.mode.label(), options.kind.label());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        // Where nothing was written there is nothing to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The sums of a callgrind file.
#[derive(Debug, PartialEq)]
struct Collected(BTreeMap<String, u64>);

impl Collected {
    fn of(&self, event: &str) -> Result<u64> {
        let count = self.0.get(event).copied();
        count.with_context(|| format!("callgrind has counted no {event}: {:?}", self.0.keys()))
    }
}

fn read(file: &Path) -> Result<Collected> {
    let text = std::fs::read_to_string(file).with_context(|| format!("callgrind wrote no {}", file.display()))?;
    let collected = parse(&text)?;
    ensure!(collected.of("Ir")? > 0, "callgrind has collected nothing: the function that it looks for was not called ({COLLECT})");
    Ok(collected)
}

/// Reads the lines `events:` and `totals:` (or `summary:`).
fn parse(text: &str) -> Result<Collected> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let events = line("events:").context("no events in callgrind's file")?;
    let totals = line("totals:").or_else(|| line("summary:")).context("no totals in callgrind's file")?;
    let counts: Result<Vec<u64>, _> = totals.split_whitespace().map(str::parse).collect();
    let counts = counts.context("callgrind's totals are no numbers")?;
    // A count of nought at the end of the line may be left out.
    let all = counts.into_iter().chain(std::iter::repeat(0));
    Ok(Collected(events.split_whitespace().map(str::to_owned).zip(all).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_by_the_names_of_their_events() {
        let text = "version: 1\nevents: Ir Dr DLmr DLmw\nfn=(1) f\n1 2 3 4 5\n\ntotals: 100 20 3\n";
        let collected = parse(text).expect("a file");
        let counts: Vec<_> = ["Ir", "Dr", "DLmr", "DLmw"].iter().map(|event| collected.of(event).expect("an event")).collect();
        assert_eq!(counts, [100, 20, 3, 0]);
        assert!(collected.of("Bc").is_err());
    }

    #[test]
    fn a_file_without_totals_is_an_error() {
        assert!(parse("events: Ir\n").is_err());
        assert!(parse("events: Ir\ntotals: many\n").is_err());
    }
}
