//! What the doors are made of: atomics, the bounded queue, the swapped pointer, the signal to a thread that sleeps.
//!
//! A door names these through `super::sync`, so that `model.rs` can compile the same file over loom's. Knows no door.

use std::os::fd::{AsFd as _, BorrowedFd};

pub(super) use crossbeam::queue::ArrayQueue;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

#[cfg(test)]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Lets another thread go on, in a loop that waits for it.
pub(super) use std::hint::spin_loop;

/// A shared pointer that is swapped as a whole. Loading never locks.
#[derive(Debug)]
pub(super) struct Slot<T>(arc_swap::ArcSwap<T>);

impl<T> Slot<T> {
    pub(super) fn new(value: std::sync::Arc<T>) -> Self {
        Self(arc_swap::ArcSwap::new(value))
    }

    pub(super) fn load(&self) -> std::sync::Arc<T> {
        self.0.load_full()
    }

    /// Stores `value` and returns what it replaces.
    pub(super) fn swap(&self, value: std::sync::Arc<T>) -> std::sync::Arc<T> {
        self.0.swap(value)
    }
}

/// What a thread can wait for beside its sockets: a descriptor that is readable from [`Signal::raise`] to [`Signal::take_down`].
#[derive(Debug)]
pub(super) struct Signal(EventFd);

impl Signal {
    /// A signal that is down. **Errors:** no descriptor is left.
    pub(super) fn open() -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_flags(flags).map(Self).map_err(std::io::Error::from)
    }

    pub(super) fn raise(&self) {
        // It fails only when 2^64 - 2 raisings were not taken down.
        let _ = self.0.write(1);
    }

    pub(super) fn take_down(&self) {
        // It fails only when the signal is down.
        let _ = self.0.read();
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits until it is raised, for longer than a test may take.
    #[cfg(test)]
    pub(super) fn wait(&self) {
        assert!(self.is_raised_within(20_000_u16), "a wake-up was lost");
    }

    #[cfg(test)]
    pub(super) fn is_raised(&self) -> bool {
        self.is_raised_within(0_u16)
    }

    #[cfg(test)]
    fn is_raised_within(&self, milliseconds: u16) -> bool {
        let mut wanted = [PollFd::new(self.fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::from(milliseconds)) == Ok(1)
    }
}

/// Runs a test where threads meet: here once, with real threads; in `model.rs` over every interleaving.
#[cfg(test)]
pub(super) fn model(test: impl Fn() + Sync + Send + 'static) {
    test();
}

#[cfg(test)]
pub(super) use std::thread;
