//! A token bucket: how often something may happen.
//!
//! Knows a rate and the time it is told. Called before each ICMP error that the gateway sends (RFC 1812, section 4.3.2.8).
//! Invariant: over any span, at most `burst + rate * span` are allowed.

use crate::time::Tick;

/// The bucket. **Units:** thousandths of a token, so that a rate a second meets a clock of milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    rate: u32,
    full: u64,
    level: u64,
    filled: Tick,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens that gains `rate` a second.
    pub(crate) fn new(rate: u32, burst: u32, now: Tick) -> Self {
        let full = u64::from(burst) * 1000;
        Self { rate, full, level: full, filled: now }
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Tick) -> bool {
        let gained = u64::from(now.since(self.filled)) * u64::from(self.rate);
        self.level = (self.level + gained).min(self.full);
        self.filled = now;
        let allowed = self.rate > 0 && self.level >= 1000;
        if allowed {
            self.level -= 1000;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_allows_a_burst_and_then_the_rate() {
        let start = Tick(u32::MAX - 100);
        let mut bucket = TokenBucket::new(10, 5, start);
        assert_eq!((0..50).filter(|_| bucket.take(start)).count(), 5);
        let allowed = (1..=1000).filter(|&elapsed| bucket.take(start.after(elapsed))).count();
        assert_eq!(allowed, 10);
    }

    #[test]
    fn a_rate_of_zero_allows_nothing() {
        assert!(!TokenBucket::new(0, 50, Tick(0)).take(Tick(5)));
    }
}
