//! The report: everything that a run has found, as JSON and as a page.
//!
//! Knows the form, not how it came about. Called at the end of a run. Invariant: a file is whole or not there; the page has no more than the
//! JSON. `page` draws the page.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::case::Case;
use super::page;
use super::port::Card;
use super::trial::Counting;

/// The form's version: raised when a field changes its meaning or goes.
pub const FORM: u32 = 1;

/// The machine that generates and counts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    /// The kernel's version.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
}

impl Machine {
    /// This one.
    pub(super) fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let models = || cpuinfo.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: models().next().map(|(_, name)| name.to_owned()).unwrap_or_default(),
            processors: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
        }
    }
}

/// What was set for all cases.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Queues of each sending port.
    pub queues: u32,
    /// How often a packet is sent in a row.
    pub burst: u32,
    /// Whether UDP checksums are there.
    pub checksums: bool,
    /// How packets are counted.
    pub counting: Counting,
    /// **Units:** seconds.
    pub trial_seconds: f64,
    /// **Units:** seconds; 0: none.
    pub confirm_seconds: f64,
    /// The part of the packets that may be lost, 0 to 1.
    pub tolerance: f64,
    /// The part of the highest rate by which the answer may be off.
    pub resolution: f64,
}

/// All that a run has found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// See [`FORM`].
    pub form: u32,
    /// The tool's version.
    pub version: &'static str,
    /// When the run began, RFC 3339.
    pub started: String,
    /// What was measured, in the words of `--gateway`.
    pub gateway: String,
    /// The words of `--note`.
    pub note: String,
    /// The tester.
    pub tester: Machine,
    /// Its ports, inside and outside.
    pub ports: [Card; 2],
    /// What was set.
    pub settings: Settings,
    /// The cases, in order.
    pub cases: Vec<Case>,
}

impl Report {
    /// What is wrong, with the case that it was seen in.
    pub fn faults(&self) -> Vec<String> {
        let fault = |case: &Case, fault: &String| format!("{}: {fault}", title(case));
        self.cases.iter().flat_map(|case| case.faults.iter().map(move |it| fault(case, it))).collect()
    }

    /// Writes both forms into a directory, which is made. Returns their paths, JSON first.
    pub(super) fn write(&self, directory: &Path) -> Result<[PathBuf; 2]> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let name = format!("pktgen-{}", self.started.replace(':', ""));
        let json = serde_json::to_string_pretty(self).context("writing the report")? + "\n";
        let write = |end: &str, text: &str| -> Result<PathBuf> {
            let path = directory.join(format!("{name}.{end}"));
            let unfinished = directory.join(format!("{name}.{end}.new"));
            fs::write(&unfinished, text).with_context(|| format!("writing {}", unfinished.display()))?;
            fs::rename(&unfinished, &path).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        Ok([write("json", &json)?, write("html", &page::page(self))?])
    }
}

/// A case in a few words.
pub(super) fn title(case: &Case) -> String {
    let subject = &case.subject;
    format!("{}, {} bytes, {} flows", subject.way.words(), subject.frame, subject.flows)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pktgen::case::{Established, LossFree, Subject, Way};
    use crate::pktgen::search::Limit;
    use crate::pktgen::trial::{Direction, Leg, Trial};

    /// A report of one case with two trials.
    pub(in crate::pktgen) fn report() -> Report {
        let trial = |offered: u64, lost: u64| Trial {
            asked: Some(offered),
            offered,
            seconds: 1.0,
            delivered: offered - lost,
            kept: true,
            passed: lost == 0,
            legs: vec![Leg {
                direction: Direction::Outbound,
                sent: offered,
                lost_by_sender: 0,
                received: offered - lost,
                lost_by_receiver: 0,
                lost,
                surplus: 0,
                untranslated: 0,
                refused: 0,
                queues: vec![offered - lost],
            }],
        };
        let loss_free = LossFree {
            packets_per_second: 500_000,
            forwarded_per_second: 500_000,
            wire_gigabits: 0.336,
            limit: Limit::Loss,
            confirmed: true,
        };
        Report {
            form: FORM,
            version: "0.0.0",
            started: "2026-01-02T03:04:05Z".into(),
            gateway: "a <gateway> & more".into(),
            note: String::new(),
            tester: Machine { kernel: "6.18".into(), processor: "one".into(), processors: 4 },
            ports: [Card { interface: "eth1".into(), ..Card::default() }, Card { interface: "eth2".into(), ..Card::default() }],
            settings: Settings {
                queues: 2,
                burst: 1,
                checksums: true,
                counting: Counting::Xdp,
                trial_seconds: 1.0,
                confirm_seconds: 0.0,
                tolerance: 0.0,
                resolution: 0.01,
            },
            cases: vec![Case {
                subject: Subject { way: Way::Outbound, frame: 64, flows: 1000 },
                established: Established { rounds: 1, sent: 1000, lost: 0, lost_last: 0 },
                trials: vec![trial(1_000_000, 300_000), trial(500_000, 0)],
                loss_free: Some(loss_free),
                port_losses: std::collections::BTreeMap::new(),
                faults: Vec::new(),
            }],
        }
    }

    #[test]
    fn both_forms_are_written_under_the_time_of_the_run() {
        let directory = std::env::temp_dir().join(format!("pktgen-report-{}", std::process::id()));
        let [json, page] = report().write(&directory).unwrap();
        assert!(json.ends_with("pktgen-2026-01-02T030405Z.json") && page.ends_with("pktgen-2026-01-02T030405Z.html"));
        let read: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        assert_eq!(read["cases"][0]["way"], "outbound");
        assert_eq!(read["cases"][0]["loss_free"]["packets_per_second"], 500_000);
        assert_eq!(read["cases"][0]["trials"][0]["legs"][0]["lost"], 300_000);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing unfinished is left");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_fault_is_told_with_its_case() {
        let mut report = report();
        assert!(report.faults().is_empty());
        report.cases[0].faults.push("it leaks".into());
        assert_eq!(report.faults(), ["outbound, 64 bytes, 1000 flows: it leaks"]);
    }
}
