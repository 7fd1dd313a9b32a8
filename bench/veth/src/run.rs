//! The whole comparison: which gateways meet which mixes, in which order, and what becomes of the figures.
//!
//! Knows the plan and where reports go; not how a cell is measured. Called by the program. Invariants: gateways take turns within each
//! mix, so that a machine that slows down slows all; the number of cells and trials is bounded.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::cell::{self, Cell, Lengths, Mix};
use crate::compare;
use crate::gateway::{Kind, Setup};
use crate::host::{self, Cores, Machine, Place};
use crate::napi;
use crate::newflows::{self, NewFlows};
use crate::plot;
use crate::prepared::Prepared;
use crate::report::{Report, Settings};
use crate::search::Limits;
use crate::world::{Pollers, World};

/// After how long without packets a flow is forgotten: longer than a cell takes. **Units:** seconds.
pub(crate) const UDP_TIMEOUT: u32 = 300;
/// In which mix the bare forwarder without busy polling is measured, besides the first one: it is never the best.
const BARE_FLOWS: u32 = 1_000;

/// A cell in which the gateway's core stood still for more than this part of its trials is measured once more.
const STALLED: f64 = 0.03;

/// Directions of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Directions {
    /// From inside out.
    One,
    /// And back.
    Both,
}

/// What to compare, how long, and where to put it.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Two mixes and short trials: below two minutes. The whole comparison takes about half an hour.
    #[arg(long)]
    quick: bool,
    /// Numbers of flows.
    #[arg(long, value_delimiter = ',', value_name = "N,N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: Vec<u32>,
    /// Frame lengths without FCS, even. In bytes.
    #[arg(long, value_delimiter = ',', value_name = "BYTES,BYTES")]
    sizes: Vec<usize>,
    /// Which ways packets go.
    #[arg(long, value_delimiter = ',', value_enum)]
    directions: Vec<Directions>,
    /// How long one trial of a search takes. In seconds.
    #[arg(long, value_name = "SECONDS", value_parser = portcullis_bench::address::seconds)]
    trial: Option<Duration>,
    /// How long the measurements of cost, overload and latency take. In seconds.
    #[arg(long, value_name = "SECONDS", value_parser = portcullis_bench::address::seconds)]
    measure: Option<Duration>,
    /// Rates tried in a search, at most.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=32))]
    steps: Option<u32>,
    /// Leave out the rate of new flows.
    #[arg(long)]
    no_new_flows: bool,
    /// Where the report goes.
    #[arg(long, value_name = "DIRECTORY", default_value = "bench/results")]
    out: PathBuf,
    /// Which cores, and how Portcullis is set.
    #[command(flatten)]
    place: Place,
}

/// The plan of a run.
struct Plan {
    mode: &'static str,
    mixes: Vec<Mix>,
    lengths: Lengths,
    new_flows: bool,
}

impl Options {
    fn plan(&self) -> Result<Plan> {
        let chosen = !(self.flows.is_empty() && self.sizes.is_empty() && self.directions.is_empty());
        let or = |given: &[u32], quick: &[u32], full: &[u32]| pick(given, if self.quick { quick } else { full });
        let flows = or(&self.flows, &[1_000, 50_000], &[1, 1_000, 50_000, 500_000, 1_000_000]);
        let sizes = pick(&self.sizes, if self.quick { &[64] } else { &[64, 1400] });
        let quick = if self.quick { &[Directions::One][..] } else { &[Directions::One, Directions::Both] };
        let directions = pick(&self.directions, quick);
        for &size in &sizes {
            cell::ensure_size(size)?;
        }
        let mixes = mixes(&directions, &sizes, &flows);
        let (trial, measure, steps) = if self.quick { (300, 500, 6) } else { (500, 1000, 9) };
        let lengths = Lengths {
            trial: self.trial.unwrap_or(Duration::from_millis(trial)),
            measure: self.measure.unwrap_or(Duration::from_millis(measure)),
            limits: Limits { steps: self.steps.unwrap_or(steps), resolution: 0.02 },
        };
        ensure!(!lengths.trial.is_zero() && !lengths.measure.is_zero(), "a trial takes longer than 0 seconds");
        let mode = if chosen {
            "chosen"
        } else if self.quick {
            "quick"
        } else {
            "full"
        };
        Ok(Plan { mode, mixes, lengths, new_flows: !self.no_new_flows })
    }
}

/// Every mix of these.
pub(crate) fn mixes(directions: &[Directions], sizes: &[usize], flows: &[u32]) -> Vec<Mix> {
    let of = |&directions: &Directions| {
        let both = directions == Directions::Both;
        sizes.iter().flat_map(move |&size| flows.iter().map(move |&flows| Mix { flows, size, both }))
    };
    directions.iter().flat_map(of).collect()
}

fn pick<T: Clone>(given: &[T], otherwise: &[T]) -> Vec<T> {
    if given.is_empty() { otherwise.to_vec() } else { given.to_vec() }
}

/// Runs the comparison, prints it and writes it down. Returns whether every packet that arrived was right.
///
/// **Errors:** not root, a core or program is missing, a gateway does not start or does not forward.
pub fn run(options: &Options) -> Result<bool> {
    let (plan, cores) = (options.plan()?, options.place.cores()?);
    let setup = options.place.setup(cores, UDP_TIMEOUT)?;
    let (date, time) = host::now()?;
    let mut report = Report { date, time, commit: host::commit(), mode: plan.mode.to_owned(), ..Report::default() };
    report.machine = Machine::this();
    report.settings = settings(&setup, cores, &plan);
    let _prepared = Prepared::prepare(cores.gateway)?.with_connections()?;
    (report.cells, report.new_flows) = in_world(cores, |world, pollers| measure(world, pollers, &setup, &plan))?;
    report.work_out();
    let previous = report.previous(&options.out);

    println!("{}", report.table());
    println!("{}", report.targets());
    if let Some(changes) = previous.and_then(|previous| compare::changes(&previous, &report)) {
        println!("{changes}");
    }
    let file = report.write(&options.out)?;
    let plot = file.with_extension("svg");
    std::fs::write(&plot, plot::svg(&report)).with_context(|| format!("writing {}", plot.display()))?;
    println!("{}\n{}", file.display(), plot.display());
    let faults = report.faults();
    for fault in &faults {
        eprintln!("wrong: {fault}");
    }
    Ok(faults.is_empty())
}

fn settings(setup: &Setup, cores: Cores, plan: &Plan) -> Settings {
    Settings {
        gateway_core: cores.gateway,
        tester_core: cores.tester,
        busy_poll: setup.busy_poll.clone(),
        napi: setup.napi.label().to_owned(),
        capacity: setup.capacity,
        trial_seconds: plan.lengths.trial.as_secs_f64(),
        measure_seconds: plan.lengths.measure.as_secs_f64(),
        steps: plan.lengths.limits.steps,
        resolution: plan.lengths.limits.resolution,
    }
}

/// Builds the world and does `work` on the tester's core, in the near namespace. What `work` starts is there, too, unless it goes elsewhere.
pub fn in_world<T: Send>(cores: Cores, work: impl FnOnce(&World, &Pollers) -> Result<T> + Send) -> Result<T> {
    // Every thread and program that is started from here on is the tester's, too, unless it is told otherwise.
    napi::pin(nix::unistd::gettid().as_raw().cast_unsigned(), cores.tester)?;
    let world = World::build()?;
    world.near.enter(|| {
        let pollers = world.pollers()?;
        work(&world, &pollers)
    })?
}

fn measure(world: &World, pollers: &Pollers, setup: &Setup, plan: &Plan) -> Result<(Vec<Cell>, Vec<NewFlows>)> {
    let first = plan.mixes.first().map(|mix| mix.flows);
    let wanted = |kind: Kind, mix: Mix| kind != Kind::Bare || mix.flows == BARE_FLOWS || Some(mix.flows) == first;
    let turns: Vec<_> =
        plan.mixes.iter().flat_map(|&mix| Kind::ALL.map(|kind| (kind, mix))).filter(|&(kind, mix)| wanted(kind, mix)).collect();
    let (start, mut cells, mut new_flows) = (Instant::now(), Vec::new(), Vec::new());
    for (number, &(kind, mix)) in turns.iter().enumerate() {
        let mut cell = cell::measure(world, pollers, kind, setup, mix, plan.lengths)?;
        if cell.stalled > STALLED {
            eprintln!("    the hypervisor or another program had the core for {:.0} % of that: once more", cell.stalled * 100.0);
            let again = cell::measure(world, pollers, kind, setup, mix, plan.lengths)?;
            if again.stalled < cell.stalled {
                cell = again;
            }
        }
        eprintln!(
            "[{}/{}, {:.0} s] {}, {mix}: {:.0}/s without loss, {:.0} ns a packet{}",
            number + 1,
            turns.len(),
            start.elapsed().as_secs_f64(),
            kind.label(),
            cell.loss_free,
            cell.cpu_ns,
            disturbances(&cell)
        );
        if cell.established < mix.flows.into() {
            eprintln!("    only {} of these flows passed before the measurement", cell.established);
        }
        cells.push(cell);
    }
    for kind in [Kind::Kernel, Kind::Portcullis].into_iter().filter(|_| plan.new_flows) {
        let measured = newflows::measure(world, pollers, kind, setup, plan.lengths)?;
        eprintln!("[{:.0} s] {}: {:.0} new flows/s", start.elapsed().as_secs_f64(), kind.label(), measured.rate);
        new_flows.push(measured);
    }
    Ok((cells, new_flows))
}

/// What kept the gateway's core from working, in words.
fn disturbances(cell: &Cell) -> String {
    let other = if cell.disturbed > 0.05 { "; the core had other work" } else { "" };
    let stalled =
        if cell.stalled > STALLED { format!("; it stood still for {:.0} %", cell.stalled * 100.0) } else { String::new() };
    format!("{other}{stalled}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn plan(words: &str) -> Result<Plan> {
        Line::try_parse_from(["run"].into_iter().chain(words.split_whitespace()))?.options.plan()
    }

    #[test]
    fn the_full_plan_has_all_mixes_and_the_quick_one_two() {
        let full = plan("").unwrap();
        assert_eq!((full.mode, full.mixes.len()), ("full", 5 * 2 * 2));
        let quick = plan("--quick").unwrap();
        assert_eq!((quick.mode, quick.mixes.len()), ("quick", 2));
        let chosen = plan("--flows 7,8 --sizes 100 --directions both --trial 0.1").unwrap();
        assert_eq!(chosen.mode, "chosen");
        assert_eq!(chosen.mixes, [7, 8].map(|flows| Mix { flows, size: 100, both: true }));
        assert_eq!(chosen.lengths.trial, Duration::from_millis(100));
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for words in
            ["--sizes 65", "--sizes 62", "--sizes 1516", "--flows 0", "--flows 1000001", "--trial 0", "--steps 0", "--flows x"]
        {
            assert!(plan(words).is_err(), "{words}");
        }
    }
}
