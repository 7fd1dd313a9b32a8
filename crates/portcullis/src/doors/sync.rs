//! What the doors are made of: atomics, the bounded queue, the swapped pointer.
//!
//! A door names these through `super::sync`, so that `model.rs` can compile the same file over loom's. Knows no door.

pub(super) use crossbeam::queue::ArrayQueue;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// Runs a test where threads meet: here once, with real threads; in `model.rs` over every interleaving.
#[cfg(test)]
pub(super) fn model(test: impl Fn() + Sync + Send + 'static) {
    test();
}

#[cfg(test)]
pub(super) use std::thread;
