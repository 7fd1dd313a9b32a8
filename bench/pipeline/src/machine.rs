//! The machine and the build that a result was measured with.
//!
//! Knows /proc, git and rustc. What cannot be found out is called unknown.

use std::process::Command;

use serde::{Deserialize, Serialize};

/// What a figure depends on besides the program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) memory_bytes: u64,
    /// The kernel's setting of transparent huge pages.
    pub(crate) transparent_huge_pages: String,
    /// Huge pages that are reserved, of 2 MiB each.
    pub(crate) reserved_huge_pages: u64,
    pub(crate) compiler: String,
    /// Processes that wanted to run over the last minute, before the start. Above a half, times are noise.
    pub(crate) load: f64,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let cpus = text("/proc/cpuinfo");
        Self {
            cpu: cpus
                .lines()
                .find_map(|line| line.strip_prefix("model name"))
                .map_or_else(unknown, |name| name.trim_matches([' ', '\t', ':']).into()),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: text("/proc/sys/kernel/osrelease").trim().into(),
            memory_bytes: memory("MemTotal:"),
            transparent_huge_pages: chosen(&text("/sys/kernel/mm/transparent_hugepage/enabled")),
            reserved_huge_pages: memory("HugePages_Total:") >> 10,
            compiler: said("rustc", &["--version"]).unwrap_or_else(unknown),
            load: text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        }
    }
}

/// Memory that can be had without swapping. **Units:** bytes.
pub(crate) fn available() -> u64 {
    memory("MemAvailable:")
}

/// The commit of the working directory, with `-dirty` when files were changed.
pub(crate) fn commit() -> String {
    let Some(commit) = said("git", &["rev-parse", "--short=9", "HEAD"]) else { return unknown() };
    // Results are written beside the code, and are no change of it.
    let changes = said("git", &["status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results"]);
    if changes.is_some_and(|changes| changes.is_empty()) { commit } else { commit + "-dirty" }
}

/// The moment, as RFC 3339 has it, in UTC.
pub(crate) fn now() -> String {
    said("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_else(unknown)
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn text(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// A line of /proc/meminfo, in bytes: it counts in KiB.
fn memory(name: &str) -> u64 {
    value_of(&text("/proc/meminfo"), name) << 10
}

fn value_of(lines: &str, name: &str) -> u64 {
    let line = lines.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// The word in brackets.
fn chosen(setting: &str) -> String {
    let word = setting.split(['[', ']']).nth(1);
    word.map_or_else(unknown, str::to_owned)
}

fn unknown() -> String {
    "unknown".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_and_values_are_read() {
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen(""), "unknown");
        assert_eq!(value_of("MemTotal:  12 kB\nHugePages_Total:   3\n", "HugePages_Total:"), 3);
    }

    #[test]
    fn a_machine_has_memory_and_cores() {
        let machine = Machine::read();
        assert!(machine.memory_bytes > 0 && machine.cores > 0 && available() > 0, "{machine:?}");
    }
}
