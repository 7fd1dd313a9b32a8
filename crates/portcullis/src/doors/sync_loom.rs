//! The same names as `sync.rs`, over loom's model of memory.
//!
//! Atomics and fences are explored. The queue and the swapped pointer are other people's work: here each is a lock around a plain
//! value, that is, what their documentation promises, and more: a lock orders everything around it. Blind spots: a bug inside crossbeam or
//! arc-swap, and an ordering of our own that only a lock-free queue would betray.

pub(super) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
pub(super) use loom::sync::{Mutex, MutexGuard};
pub(super) use std::sync::PoisonError;

pub(super) use loom::thread::yield_now as spin_loop;

/// A bounded first-in first-out queue with crossbeam's signatures.
#[derive(Debug)]
pub(super) struct ArrayQueue<T> {
    items: Mutex<std::collections::VecDeque<T>>,
    capacity: usize,
}

impl<T> ArrayQueue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { items: Mutex::new(std::collections::VecDeque::new()), capacity }
    }

    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        if items.len() == self.capacity {
            return Err(item);
        }
        items.push_back(item);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(super) fn pop(&self) -> Option<T> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// A shared pointer that is swapped as a whole.
#[derive(Debug)]
pub(super) struct Slot<T>(Mutex<std::sync::Arc<T>>);

impl<T> Slot<T> {
    pub(super) fn new(value: std::sync::Arc<T>) -> Self {
        Self(Mutex::new(value))
    }

    pub(super) fn load(&self) -> std::sync::Arc<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn swap(&self, value: std::sync::Arc<T>) -> std::sync::Arc<T> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), value)
    }
}

/// What a thread can wait for. A wake-up that is lost is a deadlock here, and loom reports it.
#[derive(Debug)]
pub(super) struct Signal {
    raised: Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Signal {
    pub(super) fn open() -> std::io::Result<Self> {
        Ok(Self { raised: Mutex::new(false), changed: loom::sync::Condvar::new() })
    }

    pub(super) fn raise(&self) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    pub(super) fn take_down(&self) {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        unreachable!("the model has no descriptors")
    }

    pub(super) fn wait(&self) {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        while !*raised {
            raised = self.changed.wait(raised).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn is_raised(&self) -> bool {
        *self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `test` over the interleavings of its threads, with at most three preemptions in each.
pub(super) fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

pub(super) use loom::thread;
