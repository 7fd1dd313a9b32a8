//! Expiry: millions of sessions that end one after the other, each millisecond's portions of the sweep called as by an idle worker.
//!
//! Knows time and the sweep. A call, of a portion, is what packets may have to wait for. Its time is that on the clock, or that of the thread where this is less: then something else ran
//! meanwhile. The same run may be made several times; then it is the least of its times, since the work of a call is the same in each. Invariant: at the end no session is left.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::clock::{Watch, thread_time};
use crate::figures::Figures;
use crate::gateway::{BURST, Gateway, Mode, Plan};
use crate::load::{Load, Until};
use crate::memory::{self, Wanted};
use crate::scramble::Permutation;

/// The idle time of all sessions, and the time over which they were made.
const TIMEOUT: Duration = Duration::from_secs(120);
/// When the last session has to be gone, after its timeout. Chosen: far beyond what the sweep should take, so that its lateness is measured.
const LATEST: Duration = Duration::from_secs(60);

/// In which order the sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// As they were made: the records of those that are due lie side by side, and a sweep by records meets them all at once.
    Made,
    /// In random order.
    Random,
}

/// What to measure.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Sessions that end.
    #[arg(long, default_value_t = 10_000_000)]
    pub(crate) sessions: u32,
    /// The order in which they end.
    #[arg(long, value_enum, default_value_t = Order::Random)]
    pub(crate) order: Order,
    /// Mapping and filtering behaviour.
    #[arg(long, value_enum, default_value_t = Mode::Independent)]
    pub(crate) mode: Mode,
    /// The pages that the tables are on.
    #[arg(long, value_enum, default_value_t = Wanted::Huge)]
    pub(crate) pages: Wanted,
    /// How often the run is made.
    #[arg(long, default_value_t = 4)]
    pub(crate) runs: u32,
    /// The seed of tuples and hashes.
    #[arg(long, default_value_t = 4)]
    pub(crate) seed: u64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) sessions: u32,
    #[serde(default)]
    pub(crate) mode: Mode,
    pub(crate) order: Order,
    pub(crate) runs: u32,
    /// Calls of the sweep in a run.
    pub(crate) calls: u32,
    /// Processor time in the sweep over the time that passes for the NAT, of the best run.
    pub(crate) share_of_core: f64,
    /// Microseconds of a call.
    pub(crate) us: Figures,
    /// When the last session was gone, after the last one's timeout. **Units:** milliseconds.
    pub(crate) late_ms: u32,
}

/// Measures it.
pub(crate) fn run(options: &Options) -> Result<Measured> {
    let Options { sessions, mode, order, runs, .. } = *options;
    ensure!(sessions > 0 && runs > 0, "--sessions and --runs have to be at least 1");
    let mut all: Vec<Run> = Vec::new();
    for _ in 0..runs {
        all.push(run_once(options)?);
    }
    let calls = all[0].calls.len();
    ensure!(all.iter().all(|run| run.calls.len() == calls), "runs differ in their calls");
    let least = |at: usize| all.iter().map(|run| run.calls[at]).fold(f64::INFINITY, f64::min) / 1000.0;
    let span = (TIMEOUT + Duration::from_millis(u64::from(all[0].late_ms))).as_secs_f64();
    Ok(Measured {
        sessions,
        mode,
        order,
        runs,
        calls: calls as u32,
        share_of_core: all.iter().map(|run| run.calls.iter().sum::<f64>() / 1e9).fold(f64::INFINITY, f64::min) / span,
        us: Figures::of((0..calls).map(least).collect()),
        late_ms: all[0].late_ms,
    })
}

struct Run {
    /// Nanoseconds of each call, without what it costs to read the clocks.
    calls: Vec<f64>,
    late_ms: u32,
}

fn run_once(options: &Options) -> Result<Run> {
    let Options { sessions, mode, pages, seed, .. } = *options;
    let plan = Plan { mode, capacity: sessions, externals: mode.externals_for(sessions), timeout: Some(TIMEOUT), seed };
    let (mut region, _) = memory::region(plan.bytes(), pages)?;
    let mut gateway = Gateway::new(&plan, &mut region, BURST)?;
    open_over_time(&mut gateway, &plan, options)?;
    let watch = Watch::new();
    let most = (TIMEOUT + LATEST).as_millis() as u32;
    let (mut calls, mut milliseconds) = (Vec::with_capacity(most as usize), 0);
    while gateway.nat.gauges().mappings > 0 && milliseconds < most {
        gateway.now = gateway.now.after(1);
        milliseconds += 1;
        let mut is_more_due = true;
        while is_more_due {
            let (ran, start) = (thread_time(), Instant::now());
            is_more_due = gateway.nat.expire_some(gateway.now);
            let wall = watch.since(start);
            calls.push(wall.min(thread_time().saturating_sub(ran).as_nanos() as f64));
        }
    }
    let left = gateway.nat.gauges().mappings;
    ensure!(left == 0, "{left} sessions are left {LATEST:?} after their timeout");
    let late_ms = milliseconds.saturating_sub(TIMEOUT.as_millis() as u32);
    Ok(Run { calls, late_ms })
}

/// Makes the sessions, and sends their last packets at an even rate over [`TIMEOUT`], so that afterwards they end at that rate.
fn open_over_time(gateway: &mut Gateway<'_>, plan: &Plan, options: &Options) -> Result<()> {
    let Options { sessions, order, mode, .. } = *options;
    let mut load = Load::new(mode.flows(plan.seed, sessions), sessions);
    if order == Order::Random {
        load.open(gateway, plan, (0, sessions), Until::Opened)?;
    }
    let (milliseconds, shuffle) = (TIMEOUT.as_millis() as u64, Permutation::below(sessions));
    let mut passed = 0;
    for first in (0..sessions).step_by(BURST) {
        let count = (sessions - first).min(BURST as u32);
        match order {
            Order::Made => load.open(gateway, plan, (first, count), Until::Opened)?,
            Order::Random => load.refresh(gateway, (first..first + count).map(|number| shuffle.of(plan.seed, number)))?,
        }
        let due = u64::from(first + count) * milliseconds / u64::from(sessions);
        gateway.idle((due - passed) as u32);
        passed = due;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_ends_in_time() {
        for (order, mode) in [(Order::Made, Mode::Independent), (Order::Random, Mode::Independent), (Order::Random, Mode::Bare)] {
            let options = Options { sessions: 5000, order, mode, pages: Wanted::Ordinary, runs: 2, seed: 3 };
            let measured = run(&options).expect("it runs");
            assert!(measured.calls >= 119_000 && measured.late_ms <= 5000, "{measured:?}");
            assert!(measured.share_of_core > 0.0 && measured.us.max >= measured.us.median, "{measured:?}");
        }
    }
}
