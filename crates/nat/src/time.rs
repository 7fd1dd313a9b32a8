//! Time as the NAT is told it: milliseconds in a wrapping 32-bit counter.
//!
//! Knows arithmetic only; the worker reads the clock once a burst. Invariant: no idle time that is compared exceeds
//! [`Tick::HORIZON`], so that wrapping differences are exact. Tests: below, from counters near wrap.

use core::time::Duration;

/// A moment. **Units:** milliseconds since an arbitrary start, wrapping every 49.7 days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Tick {
    /// The longest span that [`Tick::since`] can tell: beyond it a counter has wrapped.
    pub const HORIZON: Duration = Duration::from_millis(u32::MAX as u64 / 2);

    /// The time from `earlier` to `self`. **Units:** milliseconds. Zero when `earlier` lies in the future.
    #[inline]
    pub const fn since(self, earlier: Self) -> u32 {
        let difference = self.0.wrapping_sub(earlier.0);
        if difference > u32::MAX / 2 { 0 } else { difference }
    }

    /// The moment `milliseconds` later.
    #[inline]
    #[must_use]
    pub const fn after(self, milliseconds: u32) -> Self {
        Self(self.0.wrapping_add(milliseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_exact_across_the_wrap() {
        let before = Tick(u32::MAX - 4);
        assert_eq!(before.after(10).since(before), 10);
        assert_eq!(before.since(before.after(10)), 0, "the future is no time ago");
    }
}
