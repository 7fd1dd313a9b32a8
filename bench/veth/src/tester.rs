//! One trial: offers packets to the gateway at a rate, takes what comes out at either end, and says what was lost.
//!
//! Knows the generator and the two sinks; not which gateway is between. All on one core: the generator runs in the kernel, and between its
//! batches a timer's softirq runs the queues of both ends. So the tester needs no wake-ups and costs the gateway's core nothing. Called in
//! the near namespace, on the tester's core. Invariant: every trial ends by its time. Tests: `tests/smoke.rs`.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portcullis_bench::generate::Generator;

use crate::gateway::{Cost, Gateway};
use crate::sink::{Counts, Sink, Wrong};
use crate::stall::{Stalls, Watch};
use crate::world::{INSIDE, OUTSIDE, Pollers, World};

/// How many packets the generator catches up after it was held up, unless told otherwise: half of a veth ring.
const CATCH_UP: u64 = 128;
/// The trial is over when for so long nothing has come out any more.
const QUIET: Duration = Duration::from_millis(30);
/// And after so long in any case.
const DRAIN: Duration = Duration::from_millis(1500);

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From inside out.
    One,
    /// And back: the far end sends each packet back.
    Both,
}

/// What to offer.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Packets that the generator sends a second, or as fast as it can.
    pub rate: Option<u64>,
    /// For how long.
    pub time: Duration,
    /// How many packets the generator sends at once after it was held up; the others are not sent.
    pub catch_up: u64,
}

impl Load {
    /// `rate` a second.
    pub const fn at(rate: u64, time: Duration) -> Self {
        Self { rate: Some(rate), time, catch_up: CATCH_UP }
    }

    /// As many as the generator can send.
    pub const fn flood(time: Duration) -> Self {
        Self { rate: None, time, catch_up: CATCH_UP }
    }
}

/// Both ends of the tester.
pub struct Tester<'t, 'object> {
    /// The wires.
    pub world: &'t World,
    /// What is sent.
    pub generator: &'t Generator<'object>,
    /// What arrives.
    pub far: &'t Sink<'object>,
    /// What comes back.
    pub near: &'t Sink<'object>,
    /// What runs the queues.
    pub pollers: &'t Pollers,
    /// What looks for the gateway's core standing still.
    pub watch: &'t Watch<'object>,
    /// Which way packets go.
    pub direction: Direction,
}

/// What a trial showed.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Packets sent by the generator.
    pub sent: u64,
    /// How long it sent.
    pub seconds: f64,
    /// Packets that came through the gateway while it sent, both directions together.
    pub forwarded: u64,
    /// Packets that never arrived where they should have, in the end.
    pub lost: u64,
    /// Of these, how many the gateway had sent to an end that was late: the tester's own doing.
    pub lost_by_tester: u64,
    /// The gateway's core standing still, with the packets that were lost for that, at most.
    pub stalls: Stalls,
    /// What arrived, in the end: at the near end when both directions were used, else at the far end.
    pub arrived: Counts,
    /// What was wrong at either end.
    pub wrong: Wrong,
    /// What it cost on the gateway's core while it was sent.
    pub cost: Cost,
}

impl Trial {
    /// Packets lost that are neither the tester's nor the hypervisor's doing.
    pub fn lost_by_gateway(&self) -> u64 {
        self.lost.saturating_sub(self.lost_by_tester + self.stalls.packets)
    }

    /// Packets through the gateway a second, both directions together.
    pub fn rate(&self) -> f64 {
        self.forwarded as f64 / self.seconds
    }

    /// Packets offered a second, both directions together, had none been lost.
    pub fn offered(&self, direction: Direction) -> f64 {
        self.sent as f64 * f64::from(directions(direction)) / self.seconds
    }

    /// The gateway's time for a packet, without empty rounds; 0 without packets. **Units:** nanoseconds.
    pub fn work_per_packet(&self) -> f64 {
        if self.forwarded == 0 { 0.0 } else { self.cost.worked * 1e9 / self.forwarded as f64 }
    }

    /// All the time that the gateway's tasks ran, for a packet. **Units:** nanoseconds.
    pub fn run_per_packet(&self) -> f64 {
        if self.forwarded == 0 { 0.0 } else { self.cost.ran * 1e9 / self.forwarded as f64 }
    }
}

/// How many directions: what is sent passes the gateway so many times.
pub const fn directions(direction: Direction) -> u32 {
    match direction {
        Direction::One => 1,
        Direction::Both => 2,
    }
}

/// The counts of both ends.
struct Ends {
    far: Counts,
    near: Counts,
}

impl Tester<'_, '_> {
    /// Does one trial.
    ///
    /// **Errors:** a device or the gateway is gone.
    pub fn trial(&self, gateway: &mut Gateway<'_>, load: Load) -> Result<Trial> {
        self.trial_with(gateway, load, |_, _| Ok(ControlFlow::Continue(())))
    }

    /// Does one trial; calls `each_second` about once a second with the gateway and the time since the start, and ends early when that breaks.
    pub fn trial_with(
        &self,
        gateway: &mut Gateway<'_>,
        load: Load,
        mut each_second: impl FnMut(&mut Gateway<'_>, Duration) -> Result<ControlFlow<()>>,
    ) -> Result<Trial> {
        self.drain()?;
        let busy_before = gateway.busy()?;
        let (ends_before, dropped_before) = (self.ends()?, self.dropped_by_ends()?);
        let sent_before = self.generator.sent()?;
        let stalls_before = self.watch.stalls()?;
        let times_before = gateway.times()?;

        let seconds = self.send(load, |elapsed| each_second(gateway, elapsed))?.as_secs_f64();

        let times = gateway.times()?;
        let during = self.ends()?;
        let stalls = self.watch.stalls()?.since(stalls_before);
        let sent = self.generator.sent()? - sent_before;
        self.drain()?;
        let after = self.ends()?;
        let busy = gateway.busy()?.zip(busy_before).map(|(after, before)| after.saturating_sub(before));
        let count = |counts: &Counts, before: &Counts| counts.distinct - before.distinct;
        let forwarded = count(&during.far, &ends_before.far) + count(&during.near, &ends_before.near);
        let (far, near) = (after.far.since(&ends_before.far), after.near.since(&ends_before.near));
        let wrong = far.wrong.plus(near.wrong);
        let arrived = if self.direction == Direction::Both { near } else { far };
        Ok(Trial {
            sent,
            seconds,
            forwarded,
            lost: sent.saturating_sub(arrived.distinct),
            lost_by_tester: self.dropped_by_ends()? - dropped_before,
            stalls,
            arrived,
            wrong,
            cost: times.since(&times_before, busy),
        })
    }

    /// Sends for the load's time, or until `each_second` breaks. Returns how long it took.
    fn send(&self, load: Load, mut each_second: impl FnMut(Duration) -> Result<ControlFlow<()>>) -> Result<Duration> {
        self.generator.pace(load.rate, load.catch_up)?;
        let (start, mut next_second) = (Instant::now(), Duration::from_secs(1));
        loop {
            let elapsed = start.elapsed();
            if elapsed >= load.time {
                return Ok(elapsed);
            }
            self.generator.run()?;
            self.poll();
            if elapsed >= next_second {
                if each_second(elapsed)?.is_break() {
                    return Ok(elapsed);
                }
                next_second += Duration::from_secs(1);
            }
        }
    }

    /// Polls both ends, so that their timers are this core's.
    fn poll(&self) {
        self.pollers.far.poll();
        self.pollers.near.poll();
    }

    /// Waits until nothing comes any more.
    pub fn drain(&self) -> Result<()> {
        let (start, mut last_news, mut before) = (Instant::now(), Instant::now(), self.received()?);
        while last_news.elapsed() < QUIET && start.elapsed() < DRAIN {
            self.poll();
            std::thread::sleep(Duration::from_millis(2));
            let now = self.received()?;
            if now != before {
                (last_news, before) = (Instant::now(), now);
            }
        }
        Ok(())
    }

    fn ends(&self) -> Result<Ends> {
        Ok(Ends { far: self.far.counts()?, near: self.near.counts()? })
    }

    fn received(&self) -> Result<u64> {
        Ok(self.far.counts()?.received + self.near.counts()?.received)
    }

    /// What the gateway sent to an end whose ring was full.
    fn dropped_by_ends(&self) -> Result<u64> {
        let host = &self.world.gateway;
        // Towards the near end only answers go.
        host.enter(|| Ok(transmit_drops(OUTSIDE)? + transmit_drops(INSIDE)?))?
    }
}

/// What a device of this thread's namespace dropped of what it was to transmit: the ring at its other end was full.
pub fn transmit_drops(device: &str) -> Result<u64> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").context("reading /proc/net/dev")?;
    dropped(&table, device).with_context(|| format!("{device} is gone from /proc/net/dev"))
}

/// What a device dropped of what it was to transmit. **Source:** Linux `net/core/net-procfs.c`: eight receive columns, then bytes, packets,
/// errors, dropped.
fn dropped(table: &str, device: &str) -> Option<u64> {
    let columns = table.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    columns.split_ascii_whitespace().nth(11)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_devices_transmit_drops_are_read_from_the_right_column() {
        let table = "head\n outside0: 1 2 3 4 5 6 7 8 90 100 110 120 130 140 150 160\n";
        assert_eq!(dropped(table, "outside0"), Some(120));
        assert_eq!(dropped(table, "outside"), None);
    }
}
