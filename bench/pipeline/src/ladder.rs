//! The whole benchmark: every part in a process of its own, one after the other, and what came of it.
//!
//! Knows the parts and their order. A part is this program again, whose line of JSON is read: what it touched is then its own, and its
//! memory is gone with it. Invariant: what could not be measured is named in the result, and a part that fails ends the run.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;

use crate::gateway::{Mode, Plan};
use crate::machine::{self, Machine};
use crate::report::{self, Report, SCHEMA};
use crate::{gate, plot, table, valgrind};

/// What to run.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Leave out what has more sessions. The result is then not kept, unless --file names one.
    #[arg(long)]
    most: Option<u32>,
    /// Where the result goes, instead of bench/results/DATE-COMMIT.json.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Earlier results.
    #[arg(long, default_value = "bench/results")]
    results: PathBuf,
    /// Draw docs/performance-*.svg too.
    #[arg(long)]
    plots: bool,
}

/// The rungs: 1000, and those of FD.io's CSIT.
const RUNGS: [u32; 5] = [1000, 64_512, 1_032_192, 4_128_768, 16_515_072];
/// Sessions whose cache misses are counted. The tables are about ten times the simulated last level; with more, making the sessions
/// under the tool would take many minutes.
const MISSES: u32 = 4_128_768;
const NEWCOMERS: u32 = 1_032_192;
const EXPIRY: u32 = 10_000_000;

/// Has the C library's allocator ask for huge pages, for tables that are no arenas of ours (glibc 2.35).
const HUGE_HEAP: (&str, &str) = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");

/// What a part measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Rung,
    Floor,
    Newcomers,
    Allocation,
    Expiry,
    Index,
    Ports,
    Misses,
    Instructions,
}

/// A part of the run.
#[derive(Clone, Debug)]
struct Part {
    what: What,
    title: String,
    sessions: u32,
    arguments: Vec<String>,
}

impl Part {
    fn new(what: What, sessions: u32, command: &str, options: &[(&str, &str)]) -> Self {
        let named = options.iter().map(|(name, value)| format!("--{name}={value}"));
        let arguments = std::iter::once(command.to_owned()).chain(named).collect();
        let values = options.iter().map(|&(_, value)| value);
        let title = std::iter::once(command).chain(values).collect::<Vec<_>>().join(" ");
        Self { what, title, sessions, arguments }
    }
}

/// Runs all of it, writes the result, and prints it beside the newest earlier one.
pub(crate) fn run(options: &Options) -> Result<()> {
    let machine = Machine::read();
    if machine.load > 0.5 {
        eprintln!("the machine is busy (load {}): times will be noise, instructions and bytes will not", machine.load);
    }
    let before = report::newest(&options.results);
    let start = Instant::now();
    let mut report = Report { schema: SCHEMA, date: machine::now(), commit: machine::commit(), machine, ..Report::default() };
    measure(&mut report, &parts(options.most.unwrap_or(u32::MAX)))?;
    report.seconds = start.elapsed().as_secs_f64();
    table::print(&report, before.as_ref().map(|(_, report)| report));
    if let Some((file, _)) = &before {
        println!("before: {}", file.display());
    }
    let file = options.file.clone().or_else(|| options.most.is_none().then(|| options.results.join(report.file_name())));
    if let Some(file) = file {
        report.write(&file)?;
        println!("written: {}", file.display());
    }
    if options.plots {
        plot::write(&report)?;
    }
    Ok(())
}

/// The parts with at most so many sessions, in order.
fn parts(most: u32) -> Vec<Part> {
    let mut parts = vec![Part::new(What::Instructions, 0, "instructions", &[])];
    for mode in Mode::ALL {
        for pages in ["huge", "ordinary"] {
            // The other behaviours differ in what is stored; pages matter to all of them alike.
            let rungs = RUNGS.into_iter().filter(|_| mode == Mode::Independent || pages == "huge");
            parts.extend(rungs.map(|sessions| {
                let options = [("sessions", &*sessions.to_string()), ("mode", mode.label()), ("pages", pages)];
                Part::new(What::Rung, sessions, "rung", &options)
            }));
        }
    }
    parts.extend(
        RUNGS.into_iter().map(|sessions| Part::new(What::Floor, sessions, "floor", &[("sessions", &*sessions.to_string())])),
    );
    for mode in Mode::ALL {
        parts.push(Part::new(What::Newcomers, NEWCOMERS, "newcomers", &[("mode", mode.label())]));
    }
    parts.push(Part::new(What::Allocation, NEWCOMERS, "allocation", &[]));
    for (mode, order) in [("independent", "random"), ("independent", "made"), ("bare", "random")] {
        let options = [("sessions", &*EXPIRY.to_string()), ("mode", mode), ("order", order)];
        parts.push(Part::new(What::Expiry, EXPIRY, "expiry", &options));
    }
    parts.extend(RUNGS.into_iter().map(|entries| Part::new(What::Index, entries, "index", &[("entries", &*entries.to_string())])));
    parts.push(Part::new(What::Ports, 0, "ports", &[]));
    let options = [("sessions", &*MISSES.to_string()), ("warm", "2000"), ("batches", "1000")];
    parts.push(Part::new(What::Misses, MISSES, "misses", &options));
    parts.retain(|part| part.sessions <= most);
    parts
}

fn measure(report: &mut Report, parts: &[Part]) -> Result<()> {
    let bar = ProgressBar::new(parts.len() as u64);
    let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {msg}").context("the progress bar")?;
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    for part in parts {
        bar.set_message(part.title.clone());
        let start = Instant::now();
        let skipped = why_not(part);
        match &skipped {
            Some(reason) => report.skipped.push(format!("({reason}): {}", part.title)),
            None => measure_part(report, part).with_context(|| format!("`pipeline {}`", part.arguments.join(" ")))?,
        }
        let outcome =
            skipped.map_or_else(|| format!("{:.1} s", start.elapsed().as_secs_f64()), |reason| format!("skipped: {reason}"));
        bar.suspend(|| eprintln!("{:42} {outcome}", part.title));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Why a part cannot be measured here. None where it can.
fn why_not(part: &Part) -> Option<&'static str> {
    let needs_tool = matches!(part.what, What::Instructions | What::Misses);
    if needs_tool && !valgrind::is_installed() {
        return Some("needs valgrind");
    }
    let sessions = part.sessions;
    let mode = Mode::Independent;
    let plan = Plan { mode, capacity: sessions, externals: mode.externals_for(sessions), timeout: None, seed: 0 };
    // The tables, what lies outside of them, and the endpoints that are kept here.
    let needed = plan.bytes() as u64 * 3 / 2;
    (needed > machine::available()).then_some("needs memory")
}

fn measure_part(report: &mut Report, part: &Part) -> Result<()> {
    match part.what {
        What::Rung => report.ladder.push(ask(part)?),
        What::Floor => report.floor.push(ask(part)?),
        What::Newcomers => report.newcomers.push(ask(part)?),
        What::Allocation => report.allocation.push(ask(part)?),
        What::Expiry => report.expiry.push(ask(part)?),
        What::Index => report.index.push(ask(part)?),
        What::Ports => report.ports = ask(part)?,
        What::Misses => report.misses.push(ask(part)?),
        What::Instructions => report.instructions = gate::count_all()?,
    }
    Ok(())
}

/// Runs a part and reads its line.
fn ask<T: DeserializeOwned>(part: &Part) -> Result<T> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(&part.arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    if part.what == What::Index {
        command.env(HUGE_HEAP.0, HUGE_HEAP.1);
    }
    let output = command.output().context("cannot start this program again")?;
    ensure!(output.status.success(), "it failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("its result cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn every_part_is_a_command_that_the_program_has() {
        for part in parts(u32::MAX) {
            let words = std::iter::once("pipeline".to_owned()).chain(part.arguments.clone());
            assert!(crate::Arguments::try_parse_from(words).is_ok(), "{part:?}");
        }
    }

    #[test]
    fn large_parts_can_be_left_out() {
        assert!(parts(1_032_192).iter().all(|part| part.sessions <= 1_032_192));
        assert!(parts(0).iter().any(|part| part.what == What::Instructions));
    }
}
