//! Transmission from a thread of its own: the kernel builds and sends a copied packet within the call that asks for it, and on veth the
//! receiver's whole stack runs within that call too. On another core that call does not hold the worker up.
//!
//! Knows a descriptor and that something waits; the ring is the worker's. Used by [`crate::socket::Socket`] in copy mode. Invariant: a
//! request made after the thread last looked is looked at; the thread ends with its owner.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};

use crate::socket::kick;

/// Packets in the largest ring: what one round may have to send.
const MOST: usize = 4096;

#[derive(Debug, Default)]
struct Shared {
    wanted: AtomicBool,
    stopping: AtomicBool,
    /// Packets that the device did not take.
    dropped: AtomicU64,
}

/// The thread and the way to it.
#[derive(Debug)]
pub(crate) struct Kicker {
    shared: Arc<Shared>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

impl Kicker {
    /// Starts the thread for a socket. **Errors:** no thread.
    pub(crate) fn start(name: String, socket: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let handle = std::thread::Builder::new().name(name).spawn(move || run(&theirs, &socket))?;
        Ok(Self { shared, thread: handle.thread().clone(), handle: Some(handle) })
    }

    /// Has the kernel send what is in the ring. Never waits. **Cost:** a system call only when the thread sleeps.
    #[inline]
    pub(crate) fn kick(&self) {
        // Release: what was put into the ring before is seen by the thread that sees the wish.
        if !self.shared.wanted.swap(true, Ordering::Release) {
            self.thread.unpark();
        }
    }

    /// Packets that the device did not take.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // A thread that panicked has said so itself.
            let _ = handle.join();
        }
    }
}

fn run(shared: &Shared, socket: &OwnedFd) {
    while !shared.stopping.load(Ordering::Acquire) {
        if shared.wanted.swap(false, Ordering::Acquire) {
            let dropped = kick(socket.as_raw_fd(), MOST);
            shared.dropped.fetch_add(dropped, Ordering::Relaxed);
        } else {
            std::thread::park();
        }
    }
}
