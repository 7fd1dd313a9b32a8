//! The result of a whole run, as a file: what was measured, on what, of which commit.
//!
//! Knows the parts and the directory. Invariant: a file names the version of its layout; other versions are not compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::{allocation, baseline, expiry, floor, newcomers, rung, valgrind};

/// The version of the layout.
pub(crate) const SCHEMA: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: u32,
    /// When it began: RFC 3339, UTC.
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) machine: Machine,
    /// Seconds that the run took.
    pub(crate) seconds: f64,
    pub(crate) ladder: Vec<rung::Measured>,
    /// Results of before it was measured have none.
    #[serde(default)]
    pub(crate) floor: Vec<floor::Measured>,
    /// Instructions a packet, by mode and kind.
    pub(crate) instructions: BTreeMap<String, f64>,
    pub(crate) misses: Vec<valgrind::Misses>,
    pub(crate) newcomers: Vec<newcomers::Measured>,
    pub(crate) allocation: Vec<allocation::Measured>,
    pub(crate) expiry: Vec<expiry::Measured>,
    pub(crate) index: Vec<baseline::Measured>,
    pub(crate) ports: Vec<baseline::PortsMeasured>,
    /// What could not be measured, and why.
    pub(crate) skipped: Vec<String>,
}

impl Report {
    /// The file's name: the day and the commit.
    pub(crate) fn file_name(&self) -> String {
        let day = self.date.split('T').next().unwrap_or_default();
        format!("{day}-{}.json", self.commit)
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let version: Version = serde_json::from_str(&text).with_context(|| format!("{} is no result", file.display()))?;
        anyhow::ensure!(version.schema == SCHEMA, "{} has version {}, not {SCHEMA}", file.display(), version.schema);
        serde_json::from_str(&text).with_context(|| format!("{} is no result", file.display()))
    }
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// The newest result in `directory` that this program can read. None where there is none. Those that it cannot read are named; what
/// the other benchmarks leave there begins with their name, not with a day, and is passed over.
pub(crate) fn newest(directory: &Path) -> Option<(PathBuf, Report)> {
    let entries = std::fs::read_dir(directory).ok()?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|file| {
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        name.first().is_some_and(u8::is_ascii_digit) && name.ends_with(b".json")
    });
    let readable = files.filter_map(|file| match Report::read(&file) {
        Ok(report) => Some((file, report)),
        Err(error) => {
            eprintln!("not compared with: {error:#}");
            None
        }
    });
    readable.max_by(|(_, one), (_, other)| one.date.cmp(&other.date))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Figures;
    use crate::gateway::Mode;
    use crate::memory::Pages;

    pub(crate) fn report(date: &str) -> Report {
        let ns = Figures { min: 1.0, p10: 2.0, median: 3.0, p99: 4.0, max: 5.5 };
        let rung = rung::Measured {
            sessions: 1000,
            mode: Mode::Independent,
            pages: Pages::Transparent,
            packets: 9,
            ns,
            ns_outbound: ns,
            ns_inbound: ns,
            ns_sweep: ns,
            bytes_per_session: 96.0,
            touched_bytes: 1,
            huge_bytes: 2,
            table_bytes: 3,
            externals: 1,
            hosts: 16,
            ns_to_establish: 1.0,
        };
        Report { schema: SCHEMA, date: date.into(), commit: "abc".into(), ladder: vec![rung], ..Report::default() }
    }

    #[test]
    fn a_result_comes_back_as_it_was_written_and_the_newest_is_found() {
        let directory = std::env::temp_dir().join(format!("pipeline-report-{}", std::process::id()));
        let (old, new) = (report("2026-01-01T00:00:00Z"), report("2026-01-02T00:00:00Z"));
        assert_eq!(old.file_name(), "2026-01-01-abc.json");
        for one in [&new, &old] {
            one.write(&directory.join(one.file_name())).expect("a file");
        }
        std::fs::write(directory.join("2026-01-03-abc.json"), "{\"schema\": 99}").expect("a file");
        report("2026-01-04T00:00:00Z").write(&directory.join("soak-2026-01-04-abc.json")).expect("a file");
        let (file, found) = newest(&directory).expect("a result");
        assert_eq!((found, file), (new.clone(), directory.join(new.file_name())));
        std::fs::remove_dir_all(&directory).expect("the directory");
        assert!(newest(&directory).is_none());
    }
}
