//! One rung of the ladder: so many live sessions, packets of all of them in random order, time for each packet.
//!
//! Knows what is measured and what is not. Measured: [`Gateway::process`] over batches of frames that lie ready in the second-level cache,
//! and apart from it the sweep. Not measured: making the sessions, writing and checking frames. Invariant: every packet of a batch is
//! translated, or the rung fails.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, HALF, SIDES};
use crate::clock::Watch;
use crate::figures::Figures;
use crate::gateway::{Gateway, Mode, Plan};
use crate::load::{Load, Until};
use crate::memory::{self, Pages, Wanted};

/// One batch of so many is checked byte by byte.
const CHECKED: u32 = 64;

/// What to measure.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Live sessions.
    #[arg(long, default_value_t = 1000)]
    pub(crate) sessions: u32,
    /// Mapping and filtering behaviour.
    #[arg(long, value_enum, default_value_t = Mode::Independent)]
    pub(crate) mode: Mode,
    /// The pages that the tables are on.
    #[arg(long, value_enum, default_value_t = Wanted::Huge)]
    pub(crate) pages: Wanted,
    /// Batches of 256 packets, half from either side.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) batches: u32,
    /// The seed of tuples, draws and hashes.
    #[arg(long, default_value_t = 4)]
    pub(crate) seed: u64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) sessions: u32,
    pub(crate) mode: Mode,
    pub(crate) pages: Pages,
    /// Packets measured.
    pub(crate) packets: u64,
    /// Nanoseconds a packet, both directions.
    pub(crate) ns: Figures,
    /// Of packets from the inside.
    pub(crate) ns_outbound: Figures,
    /// Of packets from the outside.
    pub(crate) ns_inbound: Figures,
    /// What the sweep adds, called once a burst.
    pub(crate) ns_sweep: Figures,
    /// Growth of resident memory from before the NAT was made to after the last session, over the sessions.
    pub(crate) bytes_per_session: f64,
    /// The growth itself: what was touched.
    pub(crate) touched_bytes: u64,
    /// Of the process's resident memory, what lies on huge pages.
    pub(crate) huge_bytes: u64,
    /// The memory of the tables, touched or not.
    pub(crate) table_bytes: u64,
    pub(crate) externals: u16,
    pub(crate) hosts: u32,
    /// What making the sessions took, all packets of it. **Units:** nanoseconds a session.
    pub(crate) ns_to_establish: f64,
}

/// Measures a rung.
pub(crate) fn run(options: &Options) -> Result<Measured> {
    let Options { sessions, mode, pages, seed, .. } = *options;
    ensure!(sessions > 0 && options.batches > 0, "--sessions and --batches have to be at least 1");
    let plan = Plan { mode, capacity: sessions, externals: mode.externals_for(sessions), timeout: None, seed };
    let flows = mode.flows(seed, sessions);
    let mut load = Load::new(flows, sessions);
    let mut batch = Batch::new(seed);
    let before = memory::resident()?;
    let (mut region, pages) = memory::region(plan.bytes(), pages)?;
    let mut gateway = Gateway::new(&plan, &mut region, HALF)?;
    let start = Instant::now();
    load.open(&mut gateway, &plan, (0, sessions), Until::Established)?;
    let ns_to_establish = start.elapsed().as_nanos() as f64 / f64::from(sessions);
    let touched = memory::resident()? - before;
    ensure!(gateway.nat.gauges().mappings == sessions, "not each flow has a mapping");
    let samples = measure(&mut batch, &mut gateway, &load, options)?;
    Ok(Measured {
        sessions,
        mode,
        pages,
        packets: u64::from(options.batches) * 2 * HALF as u64,
        ns: Figures::of(samples.iter().map(|sample| f64::midpoint(sample.outbound, sample.inbound)).collect()),
        ns_outbound: Figures::of(samples.iter().map(|sample| sample.outbound).collect()),
        ns_inbound: Figures::of(samples.iter().map(|sample| sample.inbound).collect()),
        ns_sweep: Figures::of(samples.iter().map(|sample| sample.sweep).collect()),
        bytes_per_session: touched as f64 / f64::from(sessions),
        touched_bytes: touched,
        huge_bytes: memory::resident_huge()?,
        table_bytes: plan.bytes() as u64,
        externals: plan.externals,
        hosts: flows.hosts(),
        ns_to_establish,
    })
}

/// The times of a batch. **Units:** nanoseconds a packet.
struct Sample {
    outbound: f64,
    inbound: f64,
    sweep: f64,
}

/// Runs the batches. A tenth more comes first, unmeasured, to warm up.
fn measure(batch: &mut Batch, gateway: &mut Gateway<'_>, load: &Load, options: &Options) -> Result<Vec<Sample>> {
    let watch = Watch::new();
    for _ in 0..options.batches.div_ceil(10) {
        batch.write(load, options.sessions);
        batch.pass(gateway)?;
    }
    let mut samples = Vec::with_capacity(options.batches as usize);
    for number in 0..options.batches {
        batch.write(load, options.sessions);
        samples.push(sample(batch, gateway, watch)?);
        if number % CHECKED == 0 {
            batch.check(load)?;
        }
    }
    Ok(samples)
}

fn sample(batch: &mut Batch, gateway: &mut Gateway<'_>, watch: Watch) -> Result<Sample> {
    let mut ns = [0.0; 2];
    for (at, side) in SIDES.into_iter().enumerate() {
        let mut packets = batch.packets(at);
        gateway.begin();
        let start = Instant::now();
        gateway.process(black_box(&mut packets), side);
        ns[at] = watch.since(start) / HALF as f64;
        gateway.check_passed(HALF, side)?;
    }
    let start = Instant::now();
    gateway.sweep(2 * HALF);
    let sweep = watch.since(start) / (2 * HALF) as f64;
    gateway.advance(2 * HALF);
    let [outbound, inbound] = ns;
    Ok(Sample { outbound, inbound, sweep })
}
