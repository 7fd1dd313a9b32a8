//! The same rate to each gateway, round after round: what a packet costs and how long it takes, and what becomes of twice that rate.
//!
//! Knows the order of turns and what follows from them. Called by the program. A machine whose speed changes by half within minutes spoils a
//! comparison of two figures taken once; here gateways follow each other within seconds, and a ratio is only of figures of one round.
//! Invariants: each round begins with another gateway; every sample is of a fresh gateway; rounds are bounded. Tests: below, `tests/smoke.rs`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::cell::{self, Mix, Seen};
use crate::gateway::{Kind, Setup};
use crate::host::{self, Machine, Place};
use crate::prepared::Prepared;
use crate::report;
use crate::run::{Directions, UDP_TIMEOUT, in_world, mixes};
use crate::sink::Wrong;
use crate::tester::{Load, Trial, directions};
use crate::world::{Pollers, World};

/// Who takes turns: the bare forwarder beside NAPI threads is never the best.
const KINDS: [Kind; 3] = [Kind::Kernel, Kind::BareBusy, Kind::Portcullis];

/// The part of the rate below which a gateway, or the tester, did not keep up with it.
const KEPT_UP: f64 = 0.97;

/// What to offer, how often, and where to put what was measured.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Packets a second that each gateway is offered, both directions together: below the loss-free rate of all of them. Half as many are offered
    /// before, twice as many afterwards.
    #[arg(long, value_name = "PPS", default_value_t = 400_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    rate: u64,
    /// Numbers of flows.
    #[arg(long, value_delimiter = ',', value_name = "N,N", default_values_t = [1_000, 1_000_000], value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: Vec<u32>,
    /// Frame lengths without FCS, even. In bytes.
    #[arg(long, value_delimiter = ',', value_name = "BYTES,BYTES", default_values_t = [64])]
    sizes: Vec<usize>,
    /// Which ways packets go.
    #[arg(long, value_delimiter = ',', value_enum, default_value = "one")]
    directions: Vec<Directions>,
    /// Rounds of each mix.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// How long one measurement takes. In seconds.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = portcullis_bench::address::seconds)]
    measure: Duration,
    /// Where the report goes.
    #[arg(long, value_name = "DIRECTORY", default_value = "bench/results")]
    out: PathBuf,
    /// Which cores, and how Portcullis is set.
    #[command(flatten)]
    place: Place,
}

/// Everything that was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Report {
    date: String,
    time: String,
    commit: String,
    machine: Machine,
    /// **Units:** packets a second.
    rate: u64,
    measure_seconds: f64,
    samples: Vec<Sample>,
    pairs: Vec<Pair>,
}

/// One gateway in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    round: u32,
    gateway: Kind,
    #[serde(flatten)]
    mix: Mix,
    /// Flows that passed before the measurements.
    established: u64,
    /// Packets that passed a second, at the rate.
    passed: f64,
    /// Its time for one of them, in all contexts, without a worker's empty rounds. **Units:** nanoseconds.
    cpu_ns: f64,
    /// At the rate.
    latency: Latency,
    /// At half the rate.
    latency_at_half: Latency,
    /// What was offered when twice the rate was asked for. **Units:** packets a second.
    overload_offered: f64,
    /// What passed then. **Units:** packets a second.
    overload: f64,
    /// That, as a part of the same as in [`crate::cell::Cell`].
    overload_share: f64,
    /// The part of the measurements in which the core stood still.
    stalled: f64,
    wrong: Wrong,
}

/// How long packets took, the tester's ends included. **Units:** nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Latency {
    p50: u64,
    p99: u64,
    /// So long or less took 99 of 100 that were sent: a lost one comes later than any. A gateway with short rings loses what would have taken long. The
    /// longest of all where more than one in 100 was lost.
    p99_of_sent: u64,
    /// The part of the packets that was lost, in pauses too, but not by the tester.
    lost: f64,
}

impl Latency {
    fn of(trial: &Trial) -> Result<Self> {
        let counted = trial.arrived.latency()?;
        let lost =
            trial.lost.saturating_sub(trial.lost_by_tester) as f64 / trial.sent.saturating_sub(trial.lost_by_tester).max(1) as f64;
        let [p50, p99, p99_of_sent] = [0.5, 0.99, 0.99 / (1.0 - lost)].map(|part| counted.value_at_quantile(f64::min(part, 1.0)));
        Ok(Self { p50, p99, p99_of_sent, lost })
    }
}

/// Portcullis by the others, over all rounds of a mix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    #[serde(flatten)]
    mix: Mix,
    cpu_by_bare: Spread,
    cpu_by_kernel: Spread,
    overload_share: Spread,
    overload_by_kernel: Spread,
    /// Both at the rate.
    p99_by_kernel: Spread,
    /// Both at half the rate.
    p99_at_half_by_kernel: Spread,
    /// Of the packets that were sent, not only of those that came.
    p99_of_sent_by_kernel: Spread,
    /// Likewise.
    p99_of_sent_at_half_by_kernel: Spread,
}

/// The quartiles of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    /// Of at least one figure.
    fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_by(f64::total_cmp);
        let last = figures.len().checked_sub(1)?;
        Some(Self {
            low: figures[last / 4],
            median: f64::midpoint(figures[last / 2], figures[last.div_ceil(2)]),
            high: figures[(last * 3).div_ceil(4)],
        })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{:.2} ({:.2} to {:.2})", self.median, self.low, self.high)
    }
}

/// Measures, prints it and writes it down. Returns whether every packet that arrived was right.
///
/// **Errors:** as [`crate::run::run`].
pub fn rounds(options: &Options) -> Result<bool> {
    options.sizes.iter().try_for_each(|&size| cell::ensure_size(size))?;
    ensure!(!options.measure.is_zero(), "a measurement takes longer than 0 seconds");
    let cores = options.place.cores()?;
    let setup = options.place.setup(cores, UDP_TIMEOUT)?;
    let (date, time) = host::now()?;
    let machine = Machine::this();
    let (rate, measure_seconds) = (options.rate, options.measure.as_secs_f64());
    let mut report = Report { date, time, commit: host::commit(), machine, rate, measure_seconds, ..Report::default() };
    let _prepared = Prepared::prepare(cores.gateway)?.with_connections()?;
    report.samples = in_world(cores, |world, pollers| measure(world, pollers, &setup, options))?;
    report.work_out();
    println!("{}", report.table());
    let file = report::write_json(&report, &options.out, &format!("rounds-{}-{}-{}", report.date, report.time, report.commit))?;
    println!("{}", file.display());
    let faulty: Vec<_> = report.samples.iter().filter(|sample| sample.wrong.is_fault()).collect();
    for sample in &faulty {
        eprintln!("wrong: {} in round {} of {:?}: {:?}", sample.gateway.label(), sample.round + 1, sample.mix, sample.wrong);
    }
    Ok(faulty.is_empty())
}

fn measure(world: &World, pollers: &Pollers, setup: &Setup, options: &Options) -> Result<Vec<Sample>> {
    let (start, mut samples) = (Instant::now(), Vec::new());
    let mixes = mixes(&options.directions, &options.sizes, &options.flows);
    let turns = mixes.len() * options.rounds as usize * KINDS.len();
    for mix in mixes {
        for round in 0..options.rounds {
            for turn in 0..KINDS.len() {
                let kind = KINDS[(turn + round as usize) % KINDS.len()];
                let sample = sample(world, pollers, setup, options, (kind, mix, round))?;
                samples.push(sample);
                let Sample { cpu_ns, overload, established, passed, latency, .. } = samples[samples.len() - 1];
                eprintln!(
                    "[{}/{turns}, {:.0} s] {}, {mix}, round {}: {cpu_ns:.0} ns a packet, p99 {} us, {overload:.0}/s in overload",
                    samples.len(),
                    start.elapsed().as_secs_f64(),
                    kind.label(),
                    round + 1,
                    latency.p99 / 1000
                );
                if established < mix.flows.into() || passed < KEPT_UP * options.rate as f64 {
                    eprintln!("    only {established} flows passed before it, and {passed:.0} packets a second at the rate");
                }
            }
        }
    }
    Ok(samples)
}

fn sample(
    world: &World,
    pollers: &Pollers,
    setup: &Setup,
    options: &Options,
    (gateway, mix, round): (Kind, Mix, u32),
) -> Result<Sample> {
    let Options { rate, measure, .. } = *options;
    cell::with_fresh(world, pollers, gateway, setup, mix, |tester, gateway| {
        let established = cell::establish(tester, gateway, mix)?;
        let mut seen = Seen::default();
        let sent = rate / u64::from(directions(tester.direction));
        let mut offered = |rate| cell::undisturbed(tester, gateway, Load::at(rate, measure), &mut seen);
        let (half, cost, overload) = (offered(sent / 2)?, offered(sent)?, offered(sent * 2)?);
        let stalled = [&half, &cost, &overload].map(|trial| (trial.stalls.seconds, trial.seconds));
        Ok(Sample {
            round,
            gateway: gateway.kind(),
            mix,
            established,
            passed: cost.rate(),
            cpu_ns: cost.work_per_packet(),
            latency: Latency::of(&cost)?,
            latency_at_half: Latency::of(&half)?,
            overload_offered: overload.offered(tester.direction),
            overload: overload.rate(),
            overload_share: seen.share_of(&overload, tester.direction),
            stalled: stalled.iter().map(|(still, _)| still).sum::<f64>() / stalled.iter().map(|(_, all)| all).sum::<f64>(),
            wrong: seen.wrong,
        })
    })
}

/// Something about a sample.
type Figure = fn(&Sample) -> f64;

impl Report {
    fn work_out(&mut self) {
        let mut mixes: Vec<Mix> = Vec::new();
        for Sample { mix, .. } in &self.samples {
            if !mixes.contains(mix) {
                mixes.push(*mix);
            }
        }
        self.pairs = mixes.into_iter().filter_map(|mix| self.pair(mix)).collect();
    }

    /// A gateway's samples, by round.
    fn of(&self, gateway: Kind, mix: Mix) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.gateway == gateway && sample.mix == mix)
    }

    fn pair(&self, mix: Mix) -> Option<Pair> {
        let by = |other: Kind, figure: Figure| {
            let pairs = self.of(Kind::Portcullis, mix).filter_map(|ours| {
                let theirs = self.of(other, mix).find(|theirs| theirs.round == ours.round)?;
                Some(figure(ours) / figure(theirs)).filter(|ratio| ratio.is_finite() && *ratio > 0.0)
            });
            Spread::of(pairs.collect())
        };
        Some(Pair {
            mix,
            cpu_by_bare: by(Kind::BareBusy, |sample| sample.cpu_ns)?,
            cpu_by_kernel: by(Kind::Kernel, |sample| sample.cpu_ns)?,
            overload_share: Spread::of(self.of(Kind::Portcullis, mix).map(|sample| sample.overload_share).collect())?,
            overload_by_kernel: by(Kind::Kernel, |sample| sample.overload)?,
            p99_by_kernel: by(Kind::Kernel, |sample| sample.latency.p99 as f64)?,
            p99_at_half_by_kernel: by(Kind::Kernel, |sample| sample.latency_at_half.p99 as f64)?,
            p99_of_sent_by_kernel: by(Kind::Kernel, |sample| sample.latency.p99_of_sent as f64)?,
            p99_of_sent_at_half_by_kernel: by(Kind::Kernel, |sample| sample.latency_at_half.p99_of_sent as f64)?,
        })
    }

    /// What came out, for people.
    fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{}, commit {}, {} {}", self.machine, self.commit, self.date, self.time);
        let _ = writeln!(
            text,
            "{} packets a second, half as many before and twice as many after it; median, and quartiles in brackets",
            self.rate
        );
        for pair in &self.pairs {
            let rounds = self.of(Kind::Portcullis, pair.mix).count();
            let _ = writeln!(text, "\n{}, {rounds} rounds", pair.mix);
            for kind in KINDS {
                let figures = |figure: Figure| Spread::of(self.of(kind, pair.mix).map(figure).collect());
                let rows = [
                    figures(|sample| sample.cpu_ns),
                    figures(|sample| sample.overload),
                    figures(|sample| sample.latency.p99 as f64 / 1000.0),
                    figures(|sample| sample.latency_at_half.p99 as f64 / 1000.0),
                    figures(|sample| sample.overload_share * 100.0),
                ];
                let [Some(cpu), Some(overload), Some(p99), Some(p99_at_half), Some(share)] = rows else { continue };
                let (label, Spread { low, median, high }) = (kind.label(), cpu);
                let _ = writeln!(
                    text,
                    "  {label:<12}{median:>6.0} ns ({low:.0} to {high:.0}){:>10.0}/s in overload, {:.0} % of its best or of what was offered; p99 {:.0} us, {:.0} at half the rate",
                    overload.median, share.median, p99.median, p99_at_half.median
                );
            }
            let _ = writeln!(text, "  portcullis's time by the bare forwarder's: {}", pair.cpu_by_bare);
            let _ = writeln!(text, "  portcullis's time by the kernel's: {}", pair.cpu_by_kernel);
            let _ = writeln!(text, "  portcullis in overload, by its best rate or what was offered: {}", pair.overload_share);
            let _ = writeln!(text, "  portcullis in overload, by the kernel: {}", pair.overload_by_kernel);
            let _ = writeln!(text, "  portcullis's p99 by the kernel's: {}", pair.p99_by_kernel);
            let _ = writeln!(text, "  at half the rate: {}", pair.p99_at_half_by_kernel);
            let _ = writeln!(text, "  of what was sent, a lost one later than any: {}", pair.p99_of_sent_by_kernel);
            let _ = writeln!(text, "  at half the rate: {}", pair.p99_of_sent_at_half_by_kernel);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIX: Mix = Mix { flows: 7, size: 64, both: false };

    fn sample(gateway: Kind, round: u32, cpu_ns: f64) -> Sample {
        let wrong = Wrong::default();
        let (passed, overload, overload_offered) = (1000.0, 2e9 / cpu_ns, 4e9);
        Sample {
            round,
            gateway,
            mix: MIX,
            established: 7,
            passed,
            cpu_ns,
            latency: latency(cpu_ns as u64 * 10),
            latency_at_half: latency(cpu_ns as u64 * 5),
            overload_offered,
            overload,
            overload_share: 1.0,
            stalled: 0.0,
            wrong,
        }
    }

    fn latency(p99: u64) -> Latency {
        Latency { p50: 1, p99, p99_of_sent: p99 * 3, lost: 0.0 }
    }

    #[test]
    fn a_ratio_is_of_one_round_and_a_machine_that_changes_does_not_change_it() {
        let mut report = Report::default();
        for (round, speed) in [(0, 1.0), (1, 3.0), (2, 0.5)] {
            for (kind, cost) in [(Kind::Portcullis, 110.0), (Kind::Kernel, 220.0), (Kind::BareBusy, 100.0)] {
                report.samples.push(sample(kind, round, cost * speed));
            }
        }
        report.work_out();
        let [pair] = &report.pairs[..] else { panic!("{:?}", report.pairs) };
        let close = |spread: Spread, wanted: f64| {
            [spread.low, spread.median, spread.high].iter().all(|ratio| (ratio - wanted).abs() < 1e-9)
        };
        let p99 = [pair.p99_by_kernel, pair.p99_at_half_by_kernel, pair.p99_of_sent_by_kernel, pair.p99_of_sent_at_half_by_kernel];
        assert!(p99.into_iter().all(|spread| close(spread, 0.5)), "{pair:?}");
        assert!(close(pair.cpu_by_bare, 1.1) && close(pair.cpu_by_kernel, 0.5) && close(pair.overload_by_kernel, 2.0), "{pair:?}");
        assert!(report.table().contains("7 flows, 64 bytes, one way, 3 rounds"), "{}", report.table());
    }

    #[test]
    fn quartiles_are_of_what_was_measured() {
        let spread = |figures: &[f64]| Spread::of(figures.to_vec());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[4.0]), Some(Spread { low: 4.0, median: 4.0, high: 4.0 }));
        assert_eq!(spread(&[4.0, 2.0]), Some(Spread { low: 2.0, median: 3.0, high: 4.0 }));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { low: 1.0, median: 2.0, high: 3.0 }));
        assert_eq!(spread(&[5.0, 1.0, 4.0, 2.0, 3.0]), Some(Spread { low: 2.0, median: 3.0, high: 4.0 }));
    }

    #[test]
    fn a_gateway_that_was_not_measured_gives_no_ratio() {
        let mut report = Report { samples: vec![sample(Kind::Portcullis, 0, 100.0)], ..Report::default() };
        report.work_out();
        assert_eq!(report.pairs, []);
    }
}
