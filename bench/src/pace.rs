//! When to send how many: a rate turned into batches and waits.
//!
//! Pure: the time is told. Called by the generator between batches. Invariants: never ahead of the rate by more than one packet;
//! never more than [`BATCH`] at once; a debt beyond the burst is forgiven, so that a stall is not followed by a flood: the achieved
//! rate then says so.

use std::time::Duration;

/// The largest batch of a paced run. **Units:** packets. Chosen: the kernel's own batch, a quarter of a veth ring (256).
pub const BATCH: u64 = 64;
/// How far behind the rate a run may fall and still catch up, unless told otherwise. **Units:** packets: half of a veth ring.
pub const BURST: u64 = 128;
/// How long to wait for a batch to grow at most. Chosen: sleeping costs about 60 us here, so less than this is no use.
const PATIENCE: Duration = Duration::from_micros(200);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send as many packets.
    Send(u64),
    /// Nothing is due for as long.
    Wait(Duration),
}

/// A rate being kept.
#[derive(Clone, Debug)]
pub struct Pace {
    per_second: u64,
    quantum: u64,
    burst: u64,
    /// Packets sent or forgiven.
    settled: u64,
}

impl Pace {
    /// Keeps `per_second` packets a second, and catches up by `burst` packets; both at least 1.
    pub fn new(per_second: u64, burst: u64) -> Self {
        let per_second = per_second.max(1);
        let quantum = (u128::from(per_second) * PATIENCE.as_nanos() / NANOS) as u64;
        Self { per_second, quantum: quantum.clamp(1, BATCH.min(burst.max(1))), burst: burst.max(1), settled: 0 }
    }

    /// What to do when `elapsed` has gone by since the start; a batch that it says to send counts as sent.
    pub fn next(&mut self, elapsed: Duration) -> Step {
        // The first packet is due at once, the second after one interval.
        let due = (elapsed.as_nanos() * u128::from(self.per_second) / NANOS) as u64 + 1;
        self.settled = self.settled.max(due.saturating_sub(self.burst));
        let owed = due.saturating_sub(self.settled);
        if owed < self.quantum {
            return Step::Wait(self.until(self.settled + self.quantum).saturating_sub(elapsed));
        }
        let batch = owed.min(BATCH);
        self.settled += batch;
        Step::Send(batch)
    }

    /// When packet number `packet`, counted from 1, is due.
    fn until(&self, packet: u64) -> Duration {
        let nanos = (u128::from(packet - 1) * NANOS).div_ceil(u128::from(self.per_second));
        Duration::from_nanos(nanos as u64)
    }
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a pace over virtual time; every batch takes `cost`. Returns the packets sent.
    fn run(rate: u64, duration: Duration, cost: Duration) -> u64 {
        let (mut pace, mut now, mut sent) = (Pace::new(rate, BURST), Duration::ZERO, 0);
        while now < duration {
            match pace.next(now) {
                Step::Send(batch) => {
                    assert!((1..=BATCH).contains(&batch));
                    sent += batch;
                    let due = now.as_nanos() * u128::from(rate) / NANOS + 1;
                    assert!(u128::from(sent) <= due, "{sent} sent, {due} due at {now:?}");
                    now += cost;
                }
                Step::Wait(time) => {
                    assert!(time > Duration::ZERO);
                    now += time;
                }
            }
        }
        sent
    }

    #[test]
    fn the_rate_is_kept_from_one_packet_a_second_to_millions() {
        for rate in [1, 10, 999, 100_000, 200_000, 3_000_000] {
            let sent = run(rate, Duration::from_secs(10), Duration::from_micros(5));
            assert!(sent.abs_diff(rate * 10) <= BATCH, "{rate}/s: {sent} in 10 s");
        }
    }

    #[test]
    fn a_sender_that_is_too_slow_sends_what_it_can_and_forgives_the_rest() {
        let sent = run(1_000_000, Duration::from_secs(1), Duration::from_millis(1));
        assert_eq!(sent, 1000 * BATCH);
    }

    #[test]
    fn after_a_stall_at_most_the_debt_is_caught_up() {
        let mut pace = Pace::new(100_000, BURST);
        let stalled = Duration::from_secs(1);
        let mut at_once = 0;
        while let Step::Send(batch) = pace.next(stalled) {
            at_once += batch;
        }
        assert!(at_once <= BURST, "{at_once}");
    }
}
