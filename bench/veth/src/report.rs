//! The report of a run: as JSON in a file, and as tables for people.
//!
//! Pure, but for reading and writing the files. Called by `run`. Invariant: a ratio is only of figures of one run.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Mix};
use crate::gateway::Kind;
use crate::host::Machine;
use crate::newflows::NewFlows;

/// Everything that a run measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The day, UTC.
    pub date: String,
    /// The time of day, UTC, as `HHMMSS`.
    pub time: String,
    /// The commit that was measured.
    pub commit: String,
    /// `full`, `quick`, or `chosen` when flows, sizes or directions were.
    pub mode: String,
    /// Where.
    pub machine: Machine,
    /// How.
    pub settings: Settings,
    /// Gateways by mixes.
    pub cells: Vec<Cell>,
    /// New flows by gateway.
    pub new_flows: Vec<NewFlows>,
    /// What follows from the cells.
    pub ratios: Vec<Ratio>,
}

/// How a run was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Settings {
    pub gateway_core: usize,
    pub tester_core: usize,
    pub busy_poll: String,
    pub napi: String,
    pub capacity: u32,
    pub trial_seconds: f64,
    pub measure_seconds: f64,
    pub steps: u32,
    pub resolution: f64,
}

/// Portcullis against the others in one mix. What was not measured, or came out as nothing, is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The mix.
    #[serde(flatten)]
    pub mix: Mix,
    /// Loss-free rate by the kernel's.
    pub loss_free_by_kernel: Option<f64>,
    /// CPU time a packet by that of the best bare forwarder.
    pub cpu_by_bare: Option<f64>,
    /// CPU time a packet by the kernel's.
    pub cpu_by_kernel: Option<f64>,
    /// The rate in overload, as a part of the best.
    pub overload_share: Option<f64>,
    /// Latency's 99th percentile by the kernel's.
    pub p99_by_kernel: Option<f64>,
}

/// What Portcullis aims at: in which mixes, what, and how much of it.
const TARGETS: [(u32, &str, f64); 8] = [
    (1_000, "loss_free_by_kernel", 1.25),
    (50_000, "loss_free_by_kernel", 1.5),
    (500_000, "loss_free_by_kernel", 2.0),
    (1_000_000, "loss_free_by_kernel", 2.5),
    (1_000, "cpu_by_bare", 1.08),
    (1_000_000, "cpu_by_bare", 1.15),
    (0, "overload_share", 0.9),
    (0, "p99_by_kernel", 1.0),
];

impl Report {
    /// The mixes, in the order in which they were measured.
    pub fn mixes(&self) -> Vec<Mix> {
        let mut mixes = Vec::new();
        for cell in &self.cells {
            if !mixes.contains(&cell.mix) {
                mixes.push(cell.mix);
            }
        }
        mixes
    }

    /// A gateway's cell.
    pub fn cell(&self, kind: Kind, mix: Mix) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.gateway == kind && cell.mix == mix)
    }

    /// The bare forwarder's cell with the lower CPU time a packet.
    pub fn best_bare(&self, mix: Mix) -> Option<&Cell> {
        let bare = [Kind::Bare, Kind::BareBusy].into_iter().filter_map(|kind| self.cell(kind, mix));
        bare.filter(|cell| cell.cpu_ns > 0.0).min_by(|a, b| a.cpu_ns.total_cmp(&b.cpu_ns))
    }

    /// Works the ratios out of the cells.
    pub fn work_out(&mut self) {
        self.ratios = self.mixes().into_iter().filter_map(|mix| self.ratio(mix)).collect();
    }

    fn ratio(&self, mix: Mix) -> Option<Ratio> {
        let ours = self.cell(Kind::Portcullis, mix)?;
        let (kernel, bare) = (self.cell(Kind::Kernel, mix), self.best_bare(mix));
        let by = |ours: f64, other: Option<f64>| other.map(|other| ours / other).filter(|ratio| ratio.is_finite() && *ratio > 0.0);
        Some(Ratio {
            mix,
            loss_free_by_kernel: by(ours.loss_free, kernel.map(|cell| cell.loss_free)),
            cpu_by_bare: by(ours.cpu_ns, bare.map(|cell| cell.cpu_ns)),
            cpu_by_kernel: by(ours.cpu_ns, kernel.map(|cell| cell.cpu_ns)),
            overload_share: by(ours.overload_share, Some(1.0)),
            p99_by_kernel: by(ours.latency_p99 as f64, kernel.map(|cell| cell.latency_p99 as f64)),
        })
    }

    /// Where the report goes, without extension.
    pub fn stem(&self) -> String {
        format!("veth-{}-{}", self.date, self.commit)
    }

    /// Writes it into `directory`. Returns the file.
    pub fn write(&self, directory: &Path) -> Result<PathBuf> {
        write_json(self, directory, &self.stem())
    }

    /// The newest report of the same mode in `directory`, this one's own file aside. A file that is no report is passed over.
    pub fn previous(&self, directory: &Path) -> Option<Self> {
        let files = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
        let named = files.filter(|path| {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
            stem.starts_with("veth-") && path.extension().is_some_and(|extension| extension == "json") && stem != self.stem()
        });
        let reports = named.filter_map(|path| serde_json::from_str::<Self>(&fs::read_to_string(path).ok()?).ok());
        reports.filter(|report| report.mode == self.mode).max_by_key(|report| (report.date.clone(), report.time.clone()))
    }

    /// All cells, for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let Settings { gateway_core, tester_core, busy_poll, napi, .. } = &self.settings;
        let _ = writeln!(text, "{}, commit {}, {} {}", self.machine, self.commit, self.date, self.time);
        let _ = writeln!(
            text,
            "gateway on core {gateway_core}, tester on core {tester_core}; Portcullis: busy_poll {busy_poll}, queues run by its {napi}\n"
        );
        for mix in self.mixes() {
            let _ = writeln!(text, "{mix}");
            let _ = writeln!(
                text,
                "  {:<12}{:>12}{:>8}{:>9}{:>8}{:>10}{:>9}{:>9}{:>7}{:>7}",
                "", "loss-free/s", "kernel", "cpu ns", "bare", "overload", "p50 us", "p99 us", "noise", "stall"
            );
            for kind in Kind::ALL {
                let Some(cell) = self.cell(kind, mix) else { continue };
                let _ = writeln!(text, "{}", self.line(cell));
            }
            text.push('\n');
        }
        for NewFlows { gateway, rate, generator_limited, cpu_ns, .. } in &self.new_flows {
            let at_least = if *generator_limited { ">=" } else { "" };
            let _ = writeln!(text, "new flows, {:<12}{at_least}{rate:>10.0}/s, {cpu_ns:.0} ns each", gateway.label());
        }
        text
    }

    fn line(&self, cell: &Cell) -> String {
        let part = |ours: f64, other: Option<f64>| {
            other.filter(|other| *other > 0.0).map_or("-".into(), |other| format!("{:.2}", ours / other))
        };
        let kernel = self.cell(Kind::Kernel, cell.mix).map(|kernel| kernel.loss_free);
        let bare = self.best_bare(cell.mix).map(|bare| bare.cpu_ns);
        let at_least = if cell.generator_limited { ">=" } else { "" };
        format!(
            "  {:<12}{:>12}{:>8}{:>9.0}{:>8}{:>9.0}%{:>9.1}{:>9.1}{:>6.0}%{:>6.1}%",
            cell.gateway.label(),
            format!("{at_least}{:.0}", cell.loss_free),
            part(cell.loss_free, kernel),
            cell.cpu_ns,
            part(cell.cpu_ns, bare),
            cell.overload_share * 100.0,
            cell.latency_p50 as f64 / 1000.0,
            cell.latency_p99 as f64 / 1000.0,
            cell.disturbed * 100.0,
            cell.stalled * 100.0
        )
    }

    /// What is aimed at, and what was reached, a line each; of 64-byte packets one way.
    pub fn targets(&self) -> String {
        let mut text = String::new();
        for ratio in self.ratios.iter().filter(|ratio| ratio.mix.size == 64 && !ratio.mix.both) {
            for (flows, what, target) in TARGETS.into_iter().filter(|(flows, ..)| [0, ratio.mix.flows].contains(flows)) {
                let _ = flows;
                let at_most = matches!(what, "cpu_by_bare" | "p99_by_kernel");
                let Some(reached) = ratio.named(what) else { continue };
                let good = if at_most { reached <= target } else { reached >= target };
                let (sign, word) = (if at_most { "at most" } else { "at least" }, if good { "reached" } else { "missed " });
                let _ = writeln!(text, "{word} {:>9} flows: {what} {reached:.2}, aim {sign} {target}", ratio.mix.flows);
            }
        }
        text
    }

    /// What went wrong with packets, a line for each cell where anything did.
    pub fn faults(&self) -> Vec<String> {
        let of = |cell: &Cell| format!("{} at {:?}: {:?}", cell.gateway.label(), cell.mix, cell.wrong);
        let faulty = self.cells.iter().filter(|cell| cell.wrong.is_fault());
        faulty.map(of).collect()
    }
}

/// Writes a report to `STEM.json` in `directory`. Returns the file.
pub(crate) fn write_json(report: &impl Serialize, directory: &Path, stem: &str) -> Result<PathBuf> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let file = directory.join(format!("{stem}.json"));
    let text = serde_json::to_string_pretty(report).context("writing the report")? + "\n";
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

impl Ratio {
    fn named(&self, what: &str) -> Option<f64> {
        match what {
            "loss_free_by_kernel" => self.loss_free_by_kernel,
            "cpu_by_bare" => self.cpu_by_bare,
            "overload_share" => self.overload_share,
            "p99_by_kernel" => self.p99_by_kernel,
            _ => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sink::Wrong;

    pub(crate) fn cell(gateway: Kind, flows: u32, loss_free: f64, cpu_ns: f64) -> Cell {
        Cell {
            gateway,
            mix: Mix { flows, size: 64, both: false },
            established: flows.into(),
            loss_free,
            generator_limited: false,
            trials: 5,
            cpu_ns,
            overload_offered: loss_free * 2.0,
            overload: loss_free,
            overload_share: 0.95,
            overload_cpu_ns: cpu_ns,
            latency_p50: 20_000,
            latency_p99: 50_000,
            wrong: Wrong::default(),
            lost_by_tester: 0,
            lost_to_stalls: 0,
            stalled: 0.0,
            disturbed: 0.01,
        }
    }

    pub(crate) fn report() -> Report {
        let mut report = Report { date: "2026-01-02".into(), commit: "abc1234".into(), mode: "quick".into(), ..Report::default() };
        for (flows, slower) in [(1_000, 1.0), (50_000, 1.2)] {
            report.cells.push(cell(Kind::Kernel, flows, 1_000_000.0 / slower, 900.0 * slower));
            report.cells.push(cell(Kind::Bare, flows, 800_000.0, 1_300.0));
            report.cells.push(cell(Kind::BareBusy, flows, 1_400_000.0, 700.0));
            report.cells.push(cell(Kind::Portcullis, flows, 1_300_000.0, 770.0));
        }
        report.work_out();
        report
    }

    #[test]
    fn ratios_are_against_the_kernel_and_the_best_bare_forwarder_of_the_same_mix() {
        let report = report();
        assert_eq!(report.ratios.len(), 2);
        let close =
            |value: Option<f64>, wanted: f64| assert!(value.is_some_and(|value| (value - wanted).abs() < 1e-9), "{value:?}");
        close(report.ratios[0].loss_free_by_kernel, 1.3);
        close(report.ratios[1].loss_free_by_kernel, 1.56);
        close(report.ratios[0].cpu_by_bare, 1.1);
        close(report.ratios[0].p99_by_kernel, 1.0);
    }

    #[test]
    fn what_was_not_measured_has_no_ratio() {
        let mut report = Report { cells: vec![cell(Kind::Portcullis, 1, 0.0, 0.0)], ..Report::default() };
        report.work_out();
        let ratio = &report.ratios[0];
        assert_eq!((ratio.loss_free_by_kernel, ratio.cpu_by_bare, ratio.p99_by_kernel), (None, None, None));
        assert!(report.table().contains("1 flows, 64 bytes, one way"));
    }

    #[test]
    fn the_table_has_every_gateway_and_the_targets_say_what_was_missed() {
        let report = report();
        for kind in Kind::ALL {
            assert_eq!(report.table().matches(&format!("\n  {:<12}", kind.label())).count(), 2, "{}", report.table());
        }
        let targets = report.targets();
        assert!(targets.contains("reached      1000 flows: loss_free_by_kernel 1.30, aim at least 1.25"), "{targets}");
        assert!(targets.contains("missed       1000 flows: cpu_by_bare 1.10, aim at most 1.08"), "{targets}");
    }

    #[test]
    fn a_report_is_found_again_as_the_previous_of_its_mode() {
        let directory = std::env::temp_dir().join(format!("pcveth-report-{}", std::process::id()));
        let first = report();
        first.write(&directory).unwrap();
        let second = Report { date: "2026-01-03".into(), ..report() };
        assert_eq!(second.previous(&directory), Some(first.clone()));
        assert_eq!(first.previous(&directory), None, "its own file does not count");
        assert_eq!(Report { mode: "full".into(), ..second }.previous(&directory), None);
        fs::remove_dir_all(directory).unwrap();
    }
}
