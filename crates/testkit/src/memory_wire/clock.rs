//! A clock that a test turns. Knows a number; shared with the worker under test, whatever thread that runs on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use portcullis_nat::time::Tick;

/// Time that passes only when told. Clones share it.
#[derive(Clone, Debug)]
pub struct VirtualClock {
    milliseconds: Arc<AtomicU32>,
}

impl VirtualClock {
    /// A clock that shows `start`; start near `u32::MAX` to see it wrap.
    pub fn starting_at(start: Tick) -> Self {
        Self { milliseconds: Arc::new(AtomicU32::new(start.0)) }
    }

    /// What it shows.
    pub fn now(&self) -> Tick {
        Tick(self.milliseconds.load(Ordering::SeqCst))
    }

    /// Lets time pass, in whole milliseconds; the counter wraps. Gives what it shows then.
    pub fn advance(&self, by: Duration) -> Tick {
        let by = by.as_millis() as u32;
        Tick(self.milliseconds.fetch_add(by, Ordering::SeqCst).wrapping_add(by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_time_and_it_wraps() {
        let clock = VirtualClock::starting_at(Tick(u32::MAX - 1));
        let other = clock.clone();
        assert_eq!(clock.advance(Duration::from_millis(3)), Tick(1));
        assert_eq!(other.now(), Tick(1));
    }
}
