//! How long something takes, less what it costs to find out.
//!
//! Knows the clocks of this machine. Invariant: the cost of reading the clock is measured in the process that uses it.

use std::time::{Duration, Instant};

use nix::time::ClockId;

/// A stop-watch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// What reading the clock twice costs. **Units:** nanoseconds.
    cost: f64,
}

impl Watch {
    /// A watch that knows the least of many costs of reading the clock.
    pub(crate) fn new() -> Self {
        let spans = (0..10_000).map(|_| nanoseconds(Instant::now()));
        Self { cost: spans.fold(f64::INFINITY, f64::min) }
    }

    /// The time since `start`. **Units:** nanoseconds.
    #[inline]
    pub(crate) fn since(self, start: Instant) -> f64 {
        (nanoseconds(start) - self.cost).max(0.0)
    }
}

#[inline]
fn nanoseconds(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64
}

/// The time that this thread has run for, without what others took of its core.
pub(crate) fn thread_time() -> Duration {
    nix::time::clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_has_run() {
        let before = thread_time();
        let (start, mut sum) = (Instant::now(), 0_u64);
        while start.elapsed() < Duration::from_millis(20) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(thread_time() > before);
        assert!(Watch::new().since(start) >= 19e6);
    }
}
