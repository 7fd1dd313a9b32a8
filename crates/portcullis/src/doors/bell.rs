//! A bell at the bed of a worker, or of the control plane: how a worker wakes it, and only then pays for a system call.
//!
//! Knows a flag and a signal, nothing of what the sleeper is woken for; the doors "handoff" and "events out" give it that meaning.
//! Invariant: what was put down before [`Bell::ring`] is seen by the sleeper's look after [`Bell::lie_down`], or the signal is raised.
//!
//! ```text
//! sleeper   asleep := true   fence   look at the rings: nothing   wait for the signal
//! ringer    put into a ring  fence   asleep? take it, raise the signal
//! ```
//!
//! Of the two fences one comes first: either the ringer sees the flag, or the sleeper sees what was put down (Dekker's argument).
//! Tests: below, with threads and over every interleaving.

use crossbeam::utils::CachePadded;

use super::sync::{AtomicBool, Ordering, Signal, fence};

/// One sleeper's bell; any number may ring it.
#[derive(Debug)]
pub(super) struct Bell {
    /// Set while its owner sleeps or is about to. Alone on its cache line: every ringer reads it after every burst.
    asleep: CachePadded<AtomicBool>,
    signal: Signal,
}

impl Bell {
    /// A bell whose owner is awake. **Errors:** no descriptor is left.
    pub(super) fn open() -> std::io::Result<Self> {
        Ok(Self { asleep: CachePadded::new(AtomicBool::new(false)), signal: Signal::open()? })
    }

    /// Says that the owner is going to sleep. It has to look once more at what it could be woken for, then it may wait for the signal.
    pub(super) fn lie_down(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that the owner is awake, for whatever reason, and takes the signal down. A ringer may be about to raise it still: then the
    /// next sleep is a short one.
    pub(super) fn get_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        self.signal.take_down();
    }

    /// Wakes the owner if it sleeps. **Cost:** a fence and a load while it is awake, a system call when it sleeps.
    pub(super) fn ring(&self) {
        fence(Ordering::SeqCst);
        // Looked at before it is taken, so that the line stays shared while the owner is awake.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.signal.raise();
        }
    }

    /// What the owner waits for.
    pub(super) const fn signal(&self) -> &Signal {
        &self.signal
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::sync::{AtomicU64, model, thread};
    use super::*;

    #[test]
    fn no_wake_up_is_lost_even_with_nothing_else_between_the_two() {
        model(|| {
            let bell = Arc::new(Bell::open().expect("a descriptor"));
            // A relaxed number in the place of a ring: only the bell's own fences order it.
            let put = Arc::new(AtomicU64::new(0));
            let (theirs, ring) = (Arc::clone(&put), Arc::clone(&bell));
            let ringing = thread::spawn(move || {
                for number in 1..=2 {
                    theirs.store(number, Ordering::Relaxed);
                    ring.ring();
                }
            });
            while put.load(Ordering::Relaxed) < 2 {
                bell.lie_down();
                if put.load(Ordering::Relaxed) < 2 {
                    // For ever, if the wake-up were lost.
                    bell.signal().wait();
                }
                bell.get_up();
            }
            ringing.join().expect("the ringer ends");
        });
    }

    #[test]
    fn a_bell_is_silent_while_its_owner_is_awake() {
        model(|| {
            let bell = Bell::open().expect("a descriptor");
            bell.ring();
            assert!(!bell.signal().is_raised());
            bell.lie_down();
            bell.ring();
            bell.ring();
            assert!(bell.signal().is_raised());
            bell.get_up();
            assert!(!bell.signal().is_raised());
        });
    }
}
