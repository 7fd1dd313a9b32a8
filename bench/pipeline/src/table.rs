//! The figures of a result in rows: value, target, and the ratio to an earlier result.
//!
//! Knows which figures there are, which way is better and what the targets are. Invariant: a figure has the same name in every result.

use std::collections::BTreeMap;

use crate::figures::Figures;
use crate::gateway::Mode;
use crate::memory::Pages;
use crate::report::Report;

/// Whether more or less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Better {
    Less,
    More,
}

/// A figure.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: String,
    /// Of a distribution the median.
    value: f64,
    /// Of a distribution the tenth percentile, which noise moves least. Results are compared by it.
    steady: f64,
    unit: &'static str,
    better: Better,
    target: Option<f64>,
}

impl Row {
    fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, steady: value, unit, better: Better::Less, target: None }
    }

    fn of(name: impl Into<String>, figures: &Figures, unit: &'static str) -> Self {
        Self { steady: figures.p10, ..Self::new(name, figures.median, unit) }
    }

    fn target(self, target: Option<f64>) -> Self {
        Self { target, ..self }
    }

    fn more_is_better(self) -> Self {
        Self { better: Better::More, ..self }
    }

    /// Whether the target is met. None where there is none.
    fn is_met(&self) -> Option<bool> {
        self.target.map(|target| match self.better {
            Better::Less => self.value <= target,
            Better::More => self.value >= target,
        })
    }
}

/// The result as rows, with the ratio to `before` where that has the figure too.
pub(crate) fn print(report: &Report, before: Option<&Report>) {
    let earlier: BTreeMap<_, _> =
        before.map(rows).unwrap_or_default().into_iter().map(|row| (row.name.clone(), row.steady)).collect();
    println!("{:66} {:>10} {:>10} {:6} {:>8} {:6} {:>8}", "", "median", "p10", "", "target", "", "to before");
    for row in rows(report) {
        let target = row.target.map_or_else(String::new, short);
        let met = row.is_met().map_or("", |met| if met { "met" } else { "not met" });
        let ratio = earlier.get(&row.name).and_then(|&before| ratio(row.steady, before));
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        println!(
            "{:66} {:>10} {:>10} {:6} {target:>8} {met:7} {ratio:>8}",
            row.name,
            short(row.value),
            short(row.steady),
            row.unit
        );
    }
    report.skipped.iter().for_each(|what| println!("SKIPPED {what}"));
}

/// How a figure compares with an earlier one. None where there is nothing to divide by.
fn ratio(now: f64, before: f64) -> Option<f64> {
    if before == 0.0 { (now == 0.0).then_some(1.0) } else { Some(now / before) }
}

/// Four digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.3} M", value / 1e6),
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The least sessions at which bytes a session are told: below, fixed parts and whole pages count too much.
const MANY: u32 = 1_000_000;

fn rows(report: &Report) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, &count) in &report.instructions {
        let target = (name == "independent mixed").then_some(220.0);
        rows.push(Row::new(format!("instructions a packet, {name}"), count, "").target(target));
    }
    rows.extend(ladder(report));
    for misses in &report.misses {
        let name = |level| format!("{level} misses a packet, {} sessions", misses.sessions);
        rows.push(Row::new(name("last-level"), misses.last_level, "").target((misses.sessions >= MANY).then_some(2.1)));
        rows.push(Row::new(name("first-level"), misses.first_level, ""));
    }
    for new in &report.newcomers {
        let name = |what| format!("{what}, {}, {} sessions", new.mode.label(), new.sessions);
        let target = (new.mode == Mode::Independent).then_some(3e6);
        let rate = Row::new(name("new sessions a second"), new.per_second, "/s").target(target).more_is_better();
        rows.push(Row { steady: 1e9 / new.ns.p10, ..rate });
        let recorded = name("new sessions a second, each with a record given away");
        rows.push(Row::new(recorded, new.recorded_per_second, "/s").target(target).more_is_better());
        rows.push(Row::new(name("ending a session"), new.ns_to_end, "ns"));
    }
    rows.extend(allocation(report));
    for expiry in &report.expiry {
        let mode = if expiry.mode == Mode::Bare { ", bare" } else { "" };
        let name = |what| format!("sweep{mode}, {} sessions, {:?} order: {what}", expiry.sessions, expiry.order).to_lowercase();
        rows.push(Row::new(name("share of a core"), expiry.share_of_core, "").target(Some(0.01)));
        rows.push(Row::new(name("longest call"), expiry.us.max, "us").target(Some(20.0)));
        rows.push(Row::new(name("p99 of calls"), expiry.us.p99, "us"));
        rows.push(Row::new(name("last one gone after its timeout"), f64::from(expiry.late_ms), "ms"));
    }
    rows.extend(against_the_library(report));
    rows
}

fn ladder(report: &Report) -> Vec<Row> {
    let mut rows = Vec::new();
    for rung in &report.ladder {
        let pages = if rung.pages == Pages::Ordinary { "4 KiB pages" } else { "huge pages" };
        let name = |what: &str| format!("{what}, {}, {} sessions, {pages}", rung.mode.label(), rung.sessions);
        let is_judged = rung.mode == Mode::Independent && rung.pages != Pages::Ordinary;
        let target = match rung.sessions {
            1000 => Some(20.0),
            1_032_192 => Some(35.0),
            16_515_072 => Some(60.0),
            _ => None,
        };
        rows.push(Row::of(name("packet"), &rung.ns, "ns").target(target.filter(|_| is_judged)));
        let bytes = match rung.mode {
            Mode::Independent | Mode::Open => 96.0,
            Mode::Dependent => 72.0,
            Mode::Bare => 40.0,
        };
        rows.push(Row::of(name("sweep for each packet"), &rung.ns_sweep, "ns"));
        if rung.sessions >= MANY {
            rows.push(Row::new(name("touched"), rung.touched_bytes as f64 / 1e6, "MB"));
            rows.push(Row::new(name("a session"), rung.bytes_per_session, "bytes").target(Some(bytes)));
        }
    }
    let of = |sessions| {
        let is_it = |rung: &&crate::rung::Measured| {
            rung.sessions == sessions && rung.mode == Mode::Independent && rung.pages != Pages::Ordinary
        };
        report.ladder.iter().find(is_it).map(|rung| rung.ns)
    };
    for floor in &report.floor {
        rows.push(Row::of(format!("floor, {} sessions", floor.sessions), &floor.ns, "ns"));
        if let Some(end) = &floor.ns_end {
            rows.push(Row::of(format!("floor of an end, {} sessions", floor.sessions), end, "ns"));
        }
        if let Some(packet) = of(floor.sessions) {
            let row = Row::new(format!("packet over floor, {} sessions", floor.sessions), packet.median / floor.ns.median, "times");
            rows.push(Row { steady: packet.p10 / floor.ns.p10, ..row });
        }
    }
    if let (Some(few), Some(many)) = (of(1000), of(16_515_072)) {
        let row = Row::new("packet, 16515072 sessions over 1000", many.median / few.median, "times").target(Some(3.0));
        rows.push(Row { steady: many.p10 / few.p10, ..row });
    }
    rows
}

fn allocation(report: &Report) -> Vec<Row> {
    let mut rows = Vec::new();
    for pool in &report.allocation {
        for fill in &pool.fills {
            rows.push(Row::of(format!("first packet, {} % of ports taken", fill.percent), &fill.ns, "ns"));
            rows.push(Row::new(format!("first packet, {} % of ports taken, p99", fill.percent), fill.ns.p99, "ns"));
        }
        rows.push(Row::of("refused packet, no port left", &pool.refused_ns, "ns"));
        if let [first, .., last] = &pool.fills[..] {
            let row = Row::new("p99 of the fullest pool over the emptiest", last.ns.p99 / first.ns.p99, "times");
            rows.push(row.target(Some(2.0)));
        }
        rows.push(Row::new("false exhaustion", pool.false_exhaustion as f64, "").target(Some(0.0)));
    }
    rows
}

fn against_the_library(report: &Report) -> Vec<Row> {
    let mut rows = Vec::new();
    for index in &report.index {
        let tables = [("our index", index.own), ("HashTable<u32>", index.table), ("HashMap by 5-tuple", index.map)];
        for (name, table) in tables {
            rows.push(Row::of(format!("look-up, {} entries, {name}", index.entries), &table.ns, "ns"));
            if index.entries >= MANY {
                rows.push(Row::new(format!("an entry, {} entries, {name}", index.entries), table.bytes_per_entry, "bytes"));
            }
        }
    }
    for fill in &report.ports {
        rows.push(Row::of(format!("a port taken and given back, {} % taken, ours", fill.percent), &fill.own, "ns"));
        rows.push(Row::of(format!("a port taken and given back, {} % taken, HashSet", fill.percent), &fill.set, "ns"));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{baseline, expiry, newcomers, valgrind};

    fn report() -> Report {
        let ns = Figures { min: 1.0, p10: 2.0, median: 40.0, p99: 400.0, max: 500.0 };
        let mut report = Report::default();
        report.instructions.insert("independent mixed".into(), 219.0);
        report.misses.push(valgrind::Misses { sessions: 4_128_768, last_level: 2.5, first_level: 4.0, instructions: 219.0 });
        report.newcomers.push(newcomers::Measured {
            sessions: 10,
            mode: Mode::Independent,
            fresh: 5,
            ns,
            per_second: 25e6,
            recorded_per_second: 20e6,
            records_lost: 0,
            ns_to_end: 1.0,
            ended: 4,
        });
        report.expiry.push(expiry::Measured {
            sessions: 10,
            mode: Mode::Independent,
            order: expiry::Order::Made,
            runs: 2,
            calls: 3,
            share_of_core: 0.001,
            us: ns,
            late_ms: 4,
        });
        report.ports.push(baseline::PortsMeasured { percent: 10.0, own: ns, set: ns, beyond_ten_tries: 0.0 });
        report
    }

    #[test]
    fn targets_are_judged_the_right_way_round() {
        let met: Vec<_> = rows(&report()).into_iter().filter_map(|row| Some((row.is_met()?, row.name))).collect();
        let of = |start: &str| met.iter().find(|(_, name)| name.starts_with(start)).expect("a row").0;
        assert!(of("instructions a packet") && of("new sessions a second") && of("sweep, 10 sessions, made order: share"));
        assert!(!of("last-level misses") && !of("sweep, 10 sessions, made order: longest"), "{met:?}");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = rows(&report()).into_iter().map(|row| row.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn ratios_are_of_now_to_before() {
        assert_eq!([ratio(3.0, 2.0), ratio(0.0, 0.0), ratio(1.0, 0.0)], [Some(1.5), Some(1.0), None]);
    }
}
