//! New sessions: how fast they are made in a table that stays as full as it is, since as many end.
//!
//! Knows flows and time. Each new session is a new internal endpoint: it takes a mapping and a port. Sessions that have been idle for
//! [`TIMEOUT`] end meanwhile, so that records and ports are taken in the order in which they were freed. Measured: first packets in
//! bursts, and apart from them the sweep. There is no log of mappings in the product yet; what it would cost to give a record of each away
//! is measured beside them, by a stand-in.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use portcullis_nat::counters::Counter;
use portcullis_nat::policy::Side;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, HALF};
use crate::clock::Watch;
use crate::figures::Figures;
use crate::gateway::{Gateway, Mode, Plan};
use crate::load::{Load, Until};
use crate::memory::{self, Wanted};
use crate::records::Log;

/// The idle time of all sessions, and so the time over which the first of them are spread.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Room beyond the live sessions, in hundredths: the sweep ends a session up to 4 s late, which is 3.3 of 120.
const ROOM: u64 = 106;

/// What to measure.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Live sessions all the while.
    #[arg(long, default_value_t = 1_032_192)]
    pub(crate) sessions: u32,
    /// New sessions measured.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) fresh: u32,
    /// Mapping and filtering behaviour.
    #[arg(long, value_enum, default_value_t = Mode::Independent)]
    pub(crate) mode: Mode,
    /// The pages that the tables are on.
    #[arg(long, value_enum, default_value_t = Wanted::Huge)]
    pub(crate) pages: Wanted,
    /// The seed of tuples and hashes.
    #[arg(long, default_value_t = 4)]
    pub(crate) seed: u64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) sessions: u32,
    pub(crate) mode: Mode,
    pub(crate) fresh: u32,
    /// Nanoseconds for each new session.
    pub(crate) ns: Figures,
    /// New sessions a second, by the median.
    pub(crate) per_second: f64,
    /// The same with a record of each given away.
    #[serde(default)]
    pub(crate) recorded_per_second: f64,
    /// Records that their reader was too slow for.
    #[serde(default)]
    pub(crate) records_lost: u64,
    /// What the sweep takes for each session that ends.
    pub(crate) ns_to_end: f64,
    /// Sessions that ended meanwhile.
    pub(crate) ended: u64,
}

/// Measures it.
pub(crate) fn run(options: &Options) -> Result<Measured> {
    let Options { sessions, mode, pages, seed, .. } = *options;
    let fresh = options.fresh.next_multiple_of(HALF as u32);
    ensure!(sessions >= HALF as u32 && fresh > 0, "--sessions has to be at least {HALF}, and --fresh at least 1");
    let capacity = (u64::from(sessions) * ROOM).div_ceil(100) as u32 + HALF as u32;
    let plan = Plan { mode, capacity, externals: mode.externals_for(capacity), timeout: Some(TIMEOUT), seed };
    let mut load = Load::new(mode.flows(seed, sessions + fresh), sessions);
    let mut batch = Batch::new(seed);
    let (mut region, _) = memory::region(plan.bytes(), pages)?;
    let mut gateway = Gateway::new(&plan, &mut region, HALF)?;
    let mut pace = Pace::new(sessions);
    for first in (0..sessions).step_by(HALF) {
        let count = (sessions - first).min(HALF as u32);
        load.open(&mut gateway, &plan, (first, count), Until::Opened)?;
        gateway.idle(pace.milliseconds(count));
    }
    let watch = Watch::new();
    let before = gateway.nat.counters().get(Counter::MappingsRemoved);
    let (mut samples, mut recorded, mut sweeping) = (Vec::new(), Vec::new(), 0.0);
    let mut log = Log::new()?;
    for first in (sessions..sessions + fresh).step_by(HALF) {
        batch.write_first(&load, first);
        let internal: Vec<_> = batch.sources().collect();
        let mut packets = batch.packets(0);
        gateway.begin();
        let start = Instant::now();
        gateway.process(&mut packets, Side::Inside);
        let processed = watch.since(start);
        log.write(&internal, batch.sources(), u64::from(gateway.now.0) + 1);
        recorded.push(watch.since(start) / HALF as f64);
        samples.push(processed / HALF as f64);
        gateway.check_passed(HALF, Side::Inside)?;
        let start = Instant::now();
        gateway.idle(pace.milliseconds(HALF as u32));
        sweeping += watch.since(start);
    }
    let ended = gateway.nat.counters().get(Counter::MappingsRemoved) - before;
    let live = gateway.nat.gauges().mappings;
    ensure!(live.abs_diff(sessions) < sessions / 16, "{live} sessions live at the end instead of about {sessions}");
    let records_lost = log.finish()?;
    let (ns, recorded) = (Figures::of(samples), Figures::of(recorded));
    let [per_second, recorded_per_second] = [ns, recorded].map(|figures| 1e9 / figures.median);
    let ns_to_end = sweeping / ended.max(1) as f64;
    Ok(Measured { sessions, mode, fresh, ns, per_second, recorded_per_second, records_lost, ns_to_end, ended })
}

/// So many sessions in [`TIMEOUT`]: which time passes for how many.
pub(crate) struct Pace {
    sessions: u64,
    /// Sessions times milliseconds that have not passed yet.
    owed: u64,
}

impl Pace {
    pub(crate) fn new(sessions: u32) -> Self {
        Self { sessions: u64::from(sessions), owed: 0 }
    }

    /// The whole milliseconds that pass with `count` more.
    pub(crate) fn milliseconds(&mut self, count: u32) -> u32 {
        self.owed += u64::from(count) * TIMEOUT.as_millis() as u64;
        let passed = self.owed / self.sessions;
        self.owed %= self.sessions;
        passed as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sessions_take_the_whole_time() {
        for sessions in [1_u32, 7, 1000, 1_032_192, 10_000_000] {
            let mut pace = Pace::new(sessions);
            let step = sessions.div_ceil(13);
            let passed: u32 = (0..sessions).step_by(step as usize).map(|at| pace.milliseconds(step.min(sessions - at))).sum();
            assert_eq!(passed, 120_000, "{sessions} sessions");
        }
    }

    #[test]
    fn the_table_stays_as_full_as_it_is() {
        let options = Options { sessions: 20_000, fresh: 20_000, mode: Mode::Independent, pages: Wanted::Ordinary, seed: 1 };
        let measured = run(&options).expect("it runs");
        assert!(measured.ended > 19_000 && measured.ns.min > 0.0, "{measured:?}");
        assert!(0.0 < measured.recorded_per_second && measured.recorded_per_second <= measured.per_second, "{measured:?}");
    }
}
