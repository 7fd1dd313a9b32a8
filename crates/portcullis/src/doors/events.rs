//! The door "events out": what the worker has to tell the control plane, in a bounded queue.
//!
//! Knows two kinds of news, both about neighbours: the kernel resolves and refreshes them, because it sees none of our traffic.
//! Invariants: the worker never waits; what does not fit is counted as lost, and is told again by the next packet that needs it. News
//! that a packet waits for wake the control plane, and so does the worker's end; the others wait until it is awake.
//! Called by `worker/` (send) and `run/workers.rs` (receive).

use core::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use portcullis_nat::policy::InterfaceId;

use super::bell::Bell;
use super::sync::{ArrayQueue, AtomicBool, AtomicU64, Ordering};

/// News that wait at most. A burst is 64 packets: room for a hundred bursts of packets that all need another neighbour while the control
/// plane wakes up.
pub(crate) const CAPACITY: usize = 8192;

/// The part of its queue that news which nobody waits for may fill before they wake the control plane.
const QUIET_PART: usize = 4;

/// News from the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A packet waits for the link-layer address of a next hop.
    ResolveNeighbour {
        /// The interface.
        interface: InterfaceId,
        /// The next hop.
        address: Ipv4Addr,
    },
    /// Packets went to a neighbour; the kernel should keep its address fresh. Nothing waits for it.
    NeighbourUsed {
        /// The interface.
        interface: InterfaceId,
        /// The neighbour.
        address: Ipv4Addr,
    },
}

impl Event {
    /// Whether a packet waits for what the control plane makes of it.
    const fn is_waited_for(self) -> bool {
        matches!(self, Self::ResolveNeighbour { .. })
    }
}

#[derive(Debug)]
struct Shared {
    queue: ArrayQueue<Event>,
    /// So many wait without waking the control plane.
    quiet: usize,
    lost: AtomicU64,
    /// Whether the sender is gone.
    ended: AtomicBool,
    bell: Bell,
}

/// The worker's side.
#[derive(Debug)]
pub(crate) struct Sender {
    shared: Arc<Shared>,
}

/// The control plane's side.
#[derive(Debug)]
pub(crate) struct Receiver {
    shared: Arc<Shared>,
}

/// The two sides of a queue of `capacity` events. **Errors:** no descriptor is left.
pub(crate) fn door(capacity: usize) -> std::io::Result<(Sender, Receiver)> {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(capacity),
        quiet: capacity / QUIET_PART,
        lost: AtomicU64::new(0),
        ended: AtomicBool::new(false),
        bell: Bell::open()?,
    });
    Ok((Sender { shared: Arc::clone(&shared) }, Receiver { shared }))
}

impl Sender {
    /// Tells the control plane, or counts the event as lost when the queue is full. Returns whether it went. Never waits. **Cost:** a
    /// system call where the control plane has to be woken.
    #[inline]
    pub(crate) fn send(&mut self, event: Event) -> bool {
        let sent = self.shared.queue.push(event).is_ok();
        if !sent {
            // One writer, so load and store make an increment.
            self.shared.lost.store(self.shared.lost.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
        if event.is_waited_for() || self.shared.queue.len() > self.shared.quiet {
            self.shared.bell.ring();
        }
        sent
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.shared.bell.ring();
    }
}

impl Receiver {
    /// Says that the control plane is going to wait. Returns whether it may: not when there is something, nor when the worker has ended.
    pub(crate) fn lie_down(&self) -> bool {
        self.shared.bell.lie_down();
        self.shared.queue.is_empty() && !self.has_ended()
    }

    /// Says that the control plane is awake.
    pub(crate) fn get_up(&self) {
        self.shared.bell.get_up();
    }

    /// A descriptor that is readable when the control plane is to get up.
    pub(crate) fn waker(&self) -> BorrowedFd<'_> {
        self.shared.bell.signal().fd()
    }

    /// Whether the worker's side is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// The oldest event that waits, if any. Never waits.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.shared.queue.pop()
    }

    /// A reading of how many events were lost, for whoever shows it.
    pub(crate) fn lost(&self) -> Lost {
        Lost { shared: Arc::clone(&self.shared) }
    }
}

/// How many events were lost to a full queue.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    shared: Arc<Shared>,
}

impl Lost {
    /// The count since start.
    pub(crate) fn get(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sync::{model, thread};
    use super::*;

    fn event(number: u8) -> Event {
        Event::ResolveNeighbour { interface: InterfaceId(0), address: Ipv4Addr::new(192, 0, 2, number) }
    }

    fn used(number: u8) -> Event {
        Event::NeighbourUsed { interface: InterfaceId(0), address: Ipv4Addr::new(192, 0, 2, number) }
    }

    #[test]
    fn every_event_arrives_in_order_or_is_counted_as_lost() {
        model(|| {
            let (mut sender, mut receiver) = door(2).expect("a descriptor");
            let lost = receiver.lost();
            let sending = thread::spawn(move || (0..4).filter(|&number| sender.send(event(number))).collect::<Vec<u8>>());
            let mut arrived = Vec::new();
            for _ in 0..3 {
                arrived.extend(receiver.next());
            }
            let sent = sending.join().expect("the sender ends");
            arrived.extend(std::iter::from_fn(|| receiver.next()));
            assert_eq!(arrived, sent.iter().map(|&number| event(number)).collect::<Vec<_>>());
            assert_eq!(lost.get() as usize, 4 - sent.len());
        });
    }

    #[test]
    fn a_receiver_that_waits_is_woken_by_what_a_packet_waits_for() {
        model(|| {
            let (mut sender, mut receiver) = door(2 * QUIET_PART).expect("a descriptor");
            let sending = thread::spawn(move || {
                assert!(sender.send(event(1)) && sender.send(event(2)));
                // Still there: its end would wake the receiver as well.
                sender
            });
            let mut arrived = 0;
            while arrived < 2 {
                if receiver.lie_down() {
                    // For ever, if a wake-up were lost.
                    receiver.shared.bell.signal().wait();
                }
                receiver.get_up();
                arrived += std::iter::from_fn(|| receiver.next()).count();
            }
            drop(sending.join());
        });
    }

    #[test]
    fn a_receiver_that_waits_is_woken_by_the_end() {
        model(|| {
            let (sender, receiver) = door(1).expect("a descriptor");
            let ending = thread::spawn(move || drop(sender));
            while !receiver.has_ended() {
                if receiver.lie_down() {
                    receiver.shared.bell.signal().wait();
                }
                receiver.get_up();
            }
            ending.join().expect("the sender ends");
        });
    }

    #[test]
    fn neighbours_in_use_wake_nobody_until_a_part_of_the_queue_is_full() {
        model(|| {
            let (mut sender, receiver) = door(2 * QUIET_PART).expect("a descriptor");
            assert!(receiver.lie_down());
            for number in 0..2 {
                assert!(sender.send(used(number)));
                assert!(!receiver.shared.bell.signal().is_raised());
            }
            assert!(sender.send(used(2)));
            assert!(receiver.shared.bell.signal().is_raised());
        });
    }
}
