//! What a run found: as a table, as JSON, as one page of HTML, and stored in a file.
//!
//! Knows words and formats; the rows are over. Invariant: a stored report reads back as what it was.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{ContentArrangement, Table};
use serde::{Deserialize, Serialize};

use crate::row::{Finding, Level, Status};
use crate::run::Plan;
use crate::world::Wires;

/// A run's findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The driver: `portcullis`, `kernel`, `command`.
    pub(crate) nat: String,
    /// What was under test, in words.
    pub(crate) version: String,
    /// Workers, where the driver knows them; else 0.
    pub(crate) workers: u32,
    /// Queues of each of the NAT's devices; 0 for given interfaces.
    pub(crate) queues: u32,
    /// Whether rows that take minutes ran.
    pub(crate) slow: bool,
    /// One for each row.
    pub(crate) findings: Vec<Finding>,
}

impl Report {
    /// The findings of a run.
    pub(crate) fn new(plan: &Plan, findings: Vec<Finding>) -> Self {
        let workers = match plan.driver {
            crate::driver::Driver::Portcullis { workers, .. } => workers,
            _ => 0,
        };
        let queues = match plan.wires {
            Wires::Made { queues } => queues,
            Wires::Given { .. } => 0,
        };
        Self { nat: plan.driver.name().to_owned(), version: plan.driver.version(), workers, queues, slow: plan.slow, findings }
    }

    /// Reads a stored report.
    ///
    /// **Errors:** the file cannot be read, or is none.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report of natcheck", path.display()))
    }

    /// Stores it.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("writing JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// What was under test, in a few words.
    pub(crate) fn title(&self) -> String {
        match (self.workers, self.queues) {
            (0, 0 | 1) => self.version.clone(),
            (0, queues) => format!("{}, {queues} queues", self.version),
            (1, 1) => format!("{}, 1 worker", self.version),
            (workers, queues) => format!("{}, {workers} workers, {queues} queues", self.version),
        }
    }

    /// Where it stands beside others: Portcullis first.
    pub(crate) fn order(&self) -> (bool, u32, String) {
        (self.nat != "portcullis", self.workers, self.title())
    }

    /// How many rows came out so.
    pub(crate) fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }

    /// The violated rows whose level is MUST.
    pub(crate) fn violated_musts(&self) -> Vec<&str> {
        let violated = |finding: &&Finding| finding.level == Level::Must && finding.status == Status::Violated;
        self.findings.iter().filter(violated).map(|finding| finding.id.as_str()).collect()
    }

    /// The counts in a line.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{}: {} hold, {} violated ({} of them MUST), {} not testable here, {} need --slow",
            self.title(),
            self.count(Status::Holds),
            self.count(Status::Violated),
            self.violated_musts().len(),
            self.count(Status::NotTestable),
            self.count(Status::NeedsSlow)
        )
    }

    /// The table for people.
    pub(crate) fn table(&self, width: Option<u16>) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width.unwrap_or(160));
        table.set_header(["row", "level", "requirement", "outcome", "what was seen"]);
        for finding in &self.findings {
            let text = format!("{} ({})", finding.text, finding.source);
            table.add_row([&finding.id, &finding.level.to_string(), &text, &finding.status.to_string(), &finding.note]);
        }
        format!("{table}\n{}\n", self.summary())
    }

    /// One self-contained page.
    pub(crate) fn html(&self) -> String {
        let mut page = String::from(HEAD);
        let _ = write!(
            page,
            "<title>natcheck: {0}</title></head><body><h1>{0}</h1><p>{1}</p>",
            escaped(&self.title()),
            escaped(&self.summary())
        );
        page.push_str("<table><tr><th>row</th><th>level</th><th>requirement</th><th>outcome</th><th>what was seen</th></tr>\n");
        for finding in &self.findings {
            let class = match (finding.status, finding.level) {
                (Status::Holds, _) => "holds",
                (Status::Violated, Level::Must) => "violated",
                (Status::Violated, _) => "weak",
                (Status::NotTestable | Status::NeedsSlow, _) => "unknown",
            };
            let _ = writeln!(
                page,
                "<tr class=\"{class}\"><td>{}</td><td>{}</td><td>{}<br><small>{}</small></td><td>{}</td><td>{}</td></tr>",
                escaped(&finding.id),
                finding.level,
                escaped(&finding.text),
                escaped(&finding.source),
                finding.status,
                escaped(&finding.note)
            );
        }
        page.push_str("</table></body></html>\n");
        page
    }
}

/// Everything that the page needs: nothing is loaded from anywhere.
const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<style>
body { font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3em .6em; border-bottom: 1px solid #ccc }
td:nth-child(4) { white-space: nowrap; border-left: .4em solid #aaa } small { color: #666 }
tr.holds td:nth-child(4) { border-color: #2a8a3a } tr.violated td:nth-child(4) { border-color: #c0202a; font-weight: bold }
tr.weak td:nth-child(4) { border-color: #e0a020 } tr.unknown { color: #777 }
</style>\n";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of three rows.
    pub(crate) fn example(nat: &str, statuses: [Status; 3]) -> Report {
        let finding = |(number, (level, status)): (usize, (Level, Status))| Finding {
            id: format!("4787-{number}"),
            level,
            source: format!("RFC 4787, REQ-{number}"),
            text: "A <b>requirement</b> & more".to_owned(),
            status,
            note: if status == Status::Violated { "sent a > b | c".to_owned() } else { String::new() },
        };
        let findings = [Level::Must, Level::Should, Level::Must].into_iter().zip(statuses).enumerate().map(finding).collect();
        Report { nat: nat.to_owned(), version: nat.to_owned(), workers: 0, queues: 1, slow: false, findings }
    }

    #[test]
    fn a_stored_report_reads_back_as_it_was() {
        let report = example("kernel", [Status::Holds, Status::Violated, Status::NeedsSlow]);
        let path = std::env::temp_dir().join(format!("natcheck-report-{}.json", std::process::id()));
        report.save(&path).expect("stored");
        let read = Report::load(&path);
        fs::remove_file(&path).expect("removed");
        assert_eq!(read.expect("read"), report);
    }

    #[test]
    fn only_violated_musts_count_as_failures() {
        let report = example("kernel", [Status::Holds, Status::Violated, Status::NotTestable]);
        assert!(report.violated_musts().is_empty());
        let report = example("kernel", [Status::Violated, Status::Violated, Status::Holds]);
        assert_eq!(report.violated_musts(), ["4787-0"]);
        assert!(report.summary().contains("1 hold, 2 violated (1 of them MUST)"), "{}", report.summary());
    }

    #[test]
    fn the_page_loads_nothing_and_escapes_what_it_shows() {
        let page = example("a < b", [Status::Holds, Status::Violated, Status::Violated]).html();
        assert!(page.contains("a &lt; b") && page.contains("&lt;b&gt;requirement&lt;/b&gt; &amp; more"));
        assert!(!page.contains("http") && !page.contains("src="));
        assert_eq!(page.matches("<tr class=\"violated\">").count(), 1);
    }
}
