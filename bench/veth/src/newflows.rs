//! How many new flows a second a gateway takes: every packet is the first of its flow.
//!
//! Knows the same tester as the cells. Called by `run`. Invariant: each trial meets a fresh gateway, so no packet's flow was there before.

use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result};
use portcullis_bench::generate::Generator;
use serde::{Deserialize, Serialize};

use crate::cell::{Lengths, sources, stream};
use crate::gateway::{Gateway, Kind, Setup};
use crate::search::{self, Outcome};
use crate::sink::{End, Sink, Then};
use crate::stall::Watch;
use crate::tester::{Direction, Load, Tester, Trial};
use crate::world::{FAR, FAR_ADDRESS, NEAR, Pollers, World, visit};

/// Flows of a trial, at most.
const MOST: u32 = 1_000_000;
/// What each gateway gets before its trial: new flows, too.
const FIRST_PACKETS: Load = Load::at(20_000, Duration::from_millis(100));
/// The first guess. **Units:** new flows a second.
const GUESS: u64 = 400_000;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewFlows {
    /// The gateway.
    pub gateway: Kind,
    /// New flows a second, none lost.
    pub rate: f64,
    /// Whether the generator could not do more.
    pub generator_limited: bool,
    /// How many trials the search took.
    pub trials: u32,
    /// The gateway's time for a new flow at that rate, or in the first trial when every rate lost some. **Units:** nanoseconds.
    pub cpu_ns: f64,
}

/// Searches the rate of one gateway.
pub fn measure(world: &World, pollers: &Pollers, kind: Kind, setup: &Setup, lengths: Lengths) -> Result<NewFlows> {
    let mut costs: Vec<(f64, u64, f64)> = Vec::new();
    let first = trial(world, pollers, kind, setup, Load::at(GUESS, lengths.trial))?;
    costs.push((first.rate(), first.lost_by_gateway(), first.work_per_packet()));
    let found = search::loss_free(first.rate(), first.sent as f64 / first.seconds, lengths.limits, |rate| {
        let trial = trial(world, pollers, kind, setup, Load::at(rate, lengths.trial))?;
        let reached = trial.sent as f64 / trial.seconds;
        let lost = trial.lost_by_gateway();
        costs.push((reached, lost, trial.work_per_packet()));
        Ok(Outcome { sent: trial.sent, lost, rate: reached })
    })?;
    let good = costs.iter().filter(|(_, lost, _)| *lost == 0).max_by(|a, b| a.0.total_cmp(&b.0));
    let cpu_ns = good.or(costs.first()).map_or(0.0, |(_, _, cost)| *cost);
    Ok(NewFlows { gateway: kind, rate: found.rate, generator_limited: found.generator_limited, trials: found.trials, cpu_ns })
}

fn trial(world: &World, pollers: &Pollers, kind: Kind, setup: &Setup, load: Load) -> Result<Trial> {
    let rate = load.rate.context("new flows come at a rate")?;
    let longest = Duration::from_secs_f64(f64::from(MOST) * 0.95 / rate.max(1) as f64);
    let load = Load { time: load.time.min(longest), ..load };
    let stream = stream(world, MOST, 64)?;
    let (mut far_object, mut near_object, mut object) = (MaybeUninit::uninit(), MaybeUninit::uninit(), MaybeUninit::uninit());
    let mut watch_object = MaybeUninit::uninit();
    let far = visit(&world.far, || Sink::open(&mut far_object, FAR, End::Far(Then::Drop), &stream, sources(kind)?, 0))?;
    let near = Sink::open(&mut near_object, NEAR, End::Near, &stream, FAR_ADDRESS.into(), 0)?;
    let generator = Generator::open(&mut object, NEAR, &stream)?;
    let watch = Watch::open(&mut watch_object, setup.core, &generator)?;
    let mut gateway = Gateway::start(kind, world, setup)?;
    watch.belongs_to(gateway.process_number())?;
    let tester = Tester { world, generator: &generator, far: &far, near: &near, pollers, watch: &watch, direction: Direction::One };
    // A gateway's very first packets pay for what comes once: its caches, and what it asks the kernel of the next hop.
    let trial =
        tester.trial(&mut gateway, FIRST_PACKETS).and_then(|_| tester.trial(&mut gateway, load)).with_context(|| gateway.log());
    gateway.stop()?;
    trial
}
