//! One cell of the table: one gateway under one mix of packets, from its first packet to its overload.
//!
//! Knows the order of trials and their lengths. Called by `run`. Invariant: the gateway is fresh, and every flow has passed it before
//! anything is measured.

use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis_bench::address::AddressRange;
use portcullis_bench::generate::Generator;
use portcullis_bench::stream::{Order, Stream};
use serde::{Deserialize, Serialize};

use crate::gateway::{Gateway, Kind, Setup};
use crate::search::{self, Limits, Outcome};
use crate::sink::{End, Sink, Then, Wrong};
use crate::stall::{Stalls, Watch};
use crate::tester::{Direction, Load, Tester, Trial, directions};
use crate::world::{FAR, FAR_ADDRESS, NEAR, POOL, Pollers, World, visit};

/// Internal addresses: with ports they make the flows. As many as a block of a carrier's subscribers.
const CLIENTS: &str = "10.0.0.1-10.0.16.0";
/// At which rate flows are established. **Units:** packets a second.
const ESTABLISH: u64 = 200_000;
/// How often it is looked whether all flows are there.
const LOOK: Duration = Duration::from_secs(1);
/// How long flows may take to be established, besides ten times what they should: a busy machine loses packets.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which part of a measurement the gateway's core may stand still, and how often it is made again when it stood longer.
const STALLED: f64 = 0.005;
/// See [`STALLED`].
const TRIES: u32 = 4;

/// The mix of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// UDP flows, all of them live.
    pub flows: u32,
    /// Frame length, without FCS. **Units:** bytes.
    pub size: usize,
    /// Whether the far end sends each packet back.
    pub both: bool,
}

/// **Errors:** a frame length that cannot be measured, **units:** bytes without FCS.
pub(crate) fn ensure_size(size: usize) -> Result<()> {
    ensure!((64..=1514).contains(&size) && size.is_multiple_of(2), "size {size}: even, 64 to 1514");
    Ok(())
}

impl Mix {
    /// Which way packets go.
    pub fn direction(self) -> Direction {
        if self.both { Direction::Both } else { Direction::One }
    }
}

impl std::fmt::Display for Mix {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flows, size, both } = self;
        write!(to, "{flows} flows, {size} bytes, {}", ways(*both))
    }
}

/// Which ways packets go, in words.
pub(crate) const fn ways(both: bool) -> &'static str {
    if both { "both ways" } else { "one way" }
}

/// How long trials take.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// One trial of the search.
    pub trial: Duration,
    /// The measurements of cost, overload and latency.
    pub measure: Duration,
    /// The search.
    pub limits: Limits,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The gateway.
    pub gateway: Kind,
    /// The mix.
    #[serde(flatten)]
    pub mix: Mix,
    /// Flows that passed before the measurements.
    pub established: u64,
    /// The loss-free rate, both directions together. **Units:** packets a second.
    pub loss_free: f64,
    /// Whether the generator could not do more.
    pub generator_limited: bool,
    /// How many trials the search took.
    pub trials: u32,
    /// The gateway's time for a packet at the loss-free rate, in all contexts, without a worker's empty rounds. **Units:** nanoseconds.
    pub cpu_ns: f64,
    /// What is offered in overload: twice the loss-free rate, or as much as the generator can. **Units:** packets a second.
    pub overload_offered: f64,
    /// What is forwarded then. **Units:** packets a second.
    pub overload: f64,
    /// That, as a part of the best rate of any trial of this cell, or of what was offered where the tester did not reach that again.
    pub overload_share: f64,
    /// The gateway's time for a forwarded packet then; packets that it lost after it took them are in it. **Units:** nanoseconds.
    pub overload_cpu_ns: f64,
    /// Latency at half the loss-free rate. **Units:** nanoseconds.
    pub latency_p50: u64,
    /// **Units:** nanoseconds.
    pub latency_p99: u64,
    /// What was wrong with packets in any trial.
    pub wrong: Wrong,
    /// Packets that the tester itself lost in all trials, because an end of it was late.
    pub lost_by_tester: u64,
    /// Packets lost that came while the hypervisor or another program had the gateway's core, at most. The search does not count them.
    #[serde(default)]
    pub lost_to_stalls: u64,
    /// The part of all trials in which the core stood still.
    #[serde(default)]
    pub stalled: f64,
    /// The largest part of a measurement in which the gateway's core worked for somebody else.
    pub disturbed: f64,
}

/// The packets of a mix.
pub fn stream(world: &World, flows: u32, size: usize) -> Result<Stream> {
    let stream = Stream::new(world.macs.inside, Ipv4Addr::UNSPECIFIED, FAR_ADDRESS);
    let source_ports = "1024-65535".parse()?;
    Ok(Stream { sources: CLIENTS.parse()?, source_ports, flows, size, order: Order::Scattered, ..stream })
}

/// Where packets come from at the far end.
pub fn sources(kind: Kind) -> Result<AddressRange> {
    (if kind.translates() { POOL } else { CLIENTS }).parse()
}

/// Measures one cell with a fresh gateway. Called in the near namespace.
pub fn measure(world: &World, pollers: &Pollers, kind: Kind, setup: &Setup, mix: Mix, lengths: Lengths) -> Result<Cell> {
    with_fresh(world, pollers, kind, setup, mix, |tester, gateway| measure_with(tester, gateway, mix, lengths))
}

/// Starts a gateway, does `work` with it and a tester of the mix, and stops it. Called in the near namespace.
pub(crate) fn with_fresh<T>(
    world: &World,
    pollers: &Pollers,
    kind: Kind,
    setup: &Setup,
    mix: Mix,
    work: impl FnOnce(&Tester<'_, '_>, &mut Gateway<'_>) -> Result<T>,
) -> Result<T> {
    let stream = stream(world, mix.flows, mix.size)?;
    let then = if mix.both { Then::Reflect } else { Then::Drop };
    let (mut far_object, mut near_object, mut object) = (MaybeUninit::uninit(), MaybeUninit::uninit(), MaybeUninit::uninit());
    let mut watch_object = MaybeUninit::uninit();
    let far = visit(&world.far, || Sink::open(&mut far_object, FAR, End::Far(then), &stream, sources(kind)?, 0))?;
    let near = Sink::open(&mut near_object, NEAR, End::Near, &stream, FAR_ADDRESS.into(), 0)?;
    let generator = Generator::open(&mut object, NEAR, &stream)?;
    let watch = Watch::open(&mut watch_object, setup.core, &generator)?;
    let mut gateway = Gateway::start(kind, world, setup)?;
    watch.belongs_to(gateway.process_number())?;
    let tester =
        Tester { world, generator: &generator, far: &far, near: &near, pollers, watch: &watch, direction: mix.direction() };
    let result = work(&tester, &mut gateway).with_context(|| format!("gateway `{}`, {mix:?}", kind.label()));
    let log = gateway.log();
    gateway.stop()?;
    if log.is_empty() { result } else { result.with_context(|| log) }
}

fn measure_with(tester: &Tester<'_, '_>, gateway: &mut Gateway<'_>, mix: Mix, lengths: Lengths) -> Result<Cell> {
    let established = establish(tester, gateway, mix)?;
    let mut seen = Seen::default();
    let ways = f64::from(directions(tester.direction));

    let flood = tester.trial(gateway, Load::flood(lengths.trial))?;
    seen.note(&flood);
    let able = flood.sent as f64 / flood.seconds;
    let found = search::loss_free(flood.rate() / ways, able, lengths.limits, |rate| {
        let trial = tester.trial(gateway, Load::at(rate, lengths.trial))?;
        seen.note(&trial);
        // What the tester or the hypervisor lost is not the gateway's.
        Ok(Outcome { sent: trial.sent, lost: trial.lost_by_gateway(), rate: trial.sent as f64 / trial.seconds })
    })?;

    // Without a loss-free rate the costs are those of the flood.
    let base = if found.rate > 0.0 { found.rate } else { flood.rate() / ways };
    let mut measured = |rate: f64| undisturbed(tester, gateway, Load::at(rate as u64, lengths.measure), &mut seen);
    let (cost, half, overload) = (measured(base)?, measured(base / 2.0)?, measured(base * 2.0)?);

    let latency = half.arrived.latency()?;
    Ok(Cell {
        gateway: gateway.kind(),
        mix,
        established,
        loss_free: found.rate * ways,
        generator_limited: found.generator_limited,
        trials: found.trials,
        cpu_ns: cost.work_per_packet(),
        overload_offered: overload.offered(tester.direction),
        overload: overload.rate(),
        overload_share: seen.share_of(&overload, tester.direction),
        overload_cpu_ns: overload.run_per_packet(),
        latency_p50: latency.value_at_quantile(0.5),
        latency_p99: latency.value_at_quantile(0.99),
        wrong: seen.wrong,
        lost_by_tester: seen.lost_by_tester,
        lost_to_stalls: seen.stalls.packets,
        stalled: seen.stalls.seconds / seen.seconds.max(f64::MIN_POSITIVE),
        disturbed: seen.disturbed,
    })
}

/// Does a trial, and does it again while the hypervisor or another program had the gateway's core for more than [`STALLED`] of it, up to [`TRIES`] times. Returns the one
/// in which it had it least.
pub(crate) fn undisturbed(tester: &Tester<'_, '_>, gateway: &mut Gateway<'_>, load: Load, seen: &mut Seen) -> Result<Trial> {
    let mut best: Option<Trial> = None;
    for _ in 0..TRIES {
        let trial = tester.trial(gateway, load)?;
        seen.note(&trial);
        if best.as_ref().is_none_or(|best| trial.stalls.seconds < best.stalls.seconds) {
            best = Some(trial);
        }
        if best.as_ref().is_some_and(|best| best.stalls.seconds <= STALLED * best.seconds) {
            break;
        }
    }
    best.context("no trial was done")
}

/// What was seen over all trials of a cell.
#[derive(Default)]
pub(crate) struct Seen {
    best: f64,
    pub(crate) wrong: Wrong,
    lost_by_tester: u64,
    stalls: Stalls,
    seconds: f64,
    disturbed: f64,
}

impl Seen {
    /// What was forwarded in overload, as a part of the best rate of any trial, or of what was offered where the tester did not reach that again.
    pub(crate) fn share_of(&self, overload: &Trial, direction: Direction) -> f64 {
        overload.rate() / self.best.min(overload.offered(direction)).max(1.0)
    }

    fn note(&mut self, trial: &Trial) {
        self.best = self.best.max(trial.rate());
        self.wrong = self.wrong.plus(trial.wrong);
        self.lost_by_tester += trial.lost_by_tester;
        self.stalls.packets += trial.stalls.packets.min(trial.lost);
        self.stalls.seconds += trial.stalls.seconds;
        self.seconds += trial.seconds;
        self.disturbed = self.disturbed.max(trial.cost.disturbed());
    }
}

/// Sends every flow until each has arrived, or patience is over: what lacks then is in the report. Returns how many have.
///
/// **Errors:** nothing arrives at all, with what each end saw.
pub(crate) fn establish(tester: &Tester<'_, '_>, gateway: &mut Gateway<'_>, mix: Mix) -> Result<u64> {
    let pass = Duration::from_secs_f64(f64::from(mix.flows) / ESTABLISH as f64 + 0.05).min(LOOK);
    let patience = PATIENCE + Duration::from_secs_f64(f64::from(mix.flows) / (ESTABLISH as f64 / 10.0));
    let start = Instant::now();
    let mut flows = 0;
    while flows < u64::from(mix.flows) && start.elapsed() < patience {
        flows = tester.trial(gateway, Load::at(ESTABLISH, pass))?.arrived.flows;
    }
    let (sent, far, near) = (tester.generator.sent()?, tester.far.counts()?, tester.near.counts()?);
    ensure!(
        flows > 0,
        "no packet passed: {sent} sent, {} arrived, {} came back, wrong {:?}",
        far.received,
        near.received,
        far.wrong.plus(near.wrong)
    );
    Ok(flows)
}
