//! The door "events out": what the worker has to tell the control plane, in a bounded queue.
//!
//! Knows two kinds of news, both about neighbours: the kernel resolves and refreshes them, because it sees none of our traffic.
//! Invariant: the worker never waits; what does not fit is counted as lost, and is told again by the next packet that needs it.
//! Called by `worker.rs` (send) and the netlink task (receive).

use core::net::Ipv4Addr;
use std::sync::Arc;

use portcullis_nat::policy::InterfaceId;

use super::sync::{ArrayQueue, AtomicU64, Ordering};

/// News that wait at most. A burst is 64 packets, the receiver drains every few milliseconds: room for a hundred bursts of
/// packets that all need another neighbour.
pub(crate) const CAPACITY: usize = 8192;

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
    /// Packets went to a neighbour; the kernel should keep its address fresh.
    NeighbourUsed {
        /// The interface.
        interface: InterfaceId,
        /// The neighbour.
        address: Ipv4Addr,
    },
}

#[derive(Debug)]
struct Shared {
    queue: ArrayQueue<Event>,
    lost: AtomicU64,
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

/// The two sides of a queue of `capacity` events.
pub(crate) fn door(capacity: usize) -> (Sender, Receiver) {
    let shared = Arc::new(Shared { queue: ArrayQueue::new(capacity), lost: AtomicU64::new(0) });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

impl Sender {
    /// Tells the control plane, or counts the event as lost when the queue is full. Returns whether it went. Never waits.
    #[inline]
    pub(crate) fn send(&mut self, event: Event) -> bool {
        if self.shared.queue.push(event).is_ok() {
            return true;
        }
        // One writer, so load and store make an increment.
        self.shared.lost.store(self.shared.lost.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        false
    }
}

impl Receiver {
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

    #[test]
    fn every_event_arrives_in_order_or_is_counted_as_lost() {
        model(|| {
            let (mut sender, mut receiver) = door(2);
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
}
