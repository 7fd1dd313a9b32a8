//! The door "handoff": frames from worker to worker, by ownership, and empty frames on their way home.
//!
//! Knows frames, what is left to do with their packets, and how many frames each worker has lent to each other; nothing of packets.
//! One lane for each ordered pair, each with one sender and one receiver; the bell wakes a receiver that sleeps.
//! Invariants: a frame is in one place; no worker has more than a lane's capacity of another's frames, so that nobody's own rings run
//! dry, and that many empty frames always find room. Called by `worker/`. Tests: below, with threads and under loom; the drift of
//! frames in `worker/tests`.
//!
//! ```text
//! lent to w = frames sent to w - frames got from w      (w says the same with the other sign, but for what is under way)
//!
//!        packets: while lent to w < capacity
//!   A ──────────────────────────────────────────▶ B
//!     ◀──────────────────────────────────────────
//!        empty frames: while lent to A < 0
//! ```

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use portcullis_nat::policy::DeviceId;
use portcullis_nat::verdict::Errand;
use portcullis_steering::WorkerId;

use super::bell::Bell;
use super::sync::{ArrayQueue, AtomicU64, Ordering};

/// A frame with a packet, and what its next worker has to know of it.
#[derive(Debug)]
pub(crate) struct Parcel<F> {
    /// The frame; its bytes are as received.
    pub(crate) frame: F,
    /// The device that it came from.
    pub(crate) device: DeviceId,
    /// What is left to do with it.
    pub(crate) errand: Errand,
    /// How often it was handed over.
    pub(crate) handed: u8,
}

/// From one worker to another.
#[derive(Debug)]
struct Lane<F> {
    packets: ArrayQueue<Parcel<F>>,
    /// Frames that go home. There is room for all that the receiver has lent to the sender.
    empties: ArrayQueue<F>,
    /// Packets that found no room. The sender writes, the receiver reads.
    refused: AtomicU64,
}

impl<F> Lane<F> {
    fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { packets: ArrayQueue::new(capacity), empties: ArrayQueue::new(capacity), refused: AtomicU64::new(0) })
    }
}

/// Another worker, as one sees it.
#[derive(Debug)]
struct Peer<F> {
    to: Arc<Lane<F>>,
    from: Arc<Lane<F>>,
    bell: Arc<Bell>,
    /// Frames sent to it less frames got from it.
    lent: isize,
    /// Whether it has to be woken for what was sent to it.
    ring: bool,
}

/// A worker's hatch: its side of the door.
#[derive(Debug)]
pub(crate) struct Hatch<F> {
    /// By number; none in the worker's own place.
    peers: Vec<Option<Peer<F>>>,
    capacity: isize,
    bell: Arc<Bell>,
    figures: Figures,
    /// Who gets empty frames first, in turn.
    turn: usize,
}

/// What went through a worker's hatch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Frames sent, with packets or empty.
    pub(crate) frames_sent: u64,
    /// Frames got, with packets or empty.
    pub(crate) frames_got: u64,
    /// Packets got.
    pub(crate) packets_got: u64,
    /// Packets for this worker that found no room on their way.
    pub(crate) packets_refused: u64,
}

/// The hatches of a door between `workers` workers whose lanes take `capacity` frames each. **Errors:** no descriptor is left.
pub(crate) fn open<F>(workers: usize, capacity: usize) -> std::io::Result<Vec<Hatch<F>>> {
    let bells = (0..workers).map(|_| Bell::open().map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    let lanes: Vec<Vec<_>> = (0..workers).map(|_| (0..workers).map(|_| Lane::new(capacity.max(1))).collect()).collect();
    let peer = |me: usize, other: usize| Peer {
        to: Arc::clone(&lanes[me][other]),
        from: Arc::clone(&lanes[other][me]),
        bell: Arc::clone(&bells[other]),
        lent: 0,
        ring: false,
    };
    let hatch = |me: usize| Hatch {
        peers: (0..workers).map(|other| (other != me).then(|| peer(me, other))).collect(),
        capacity: capacity.cast_signed(),
        bell: Arc::clone(&bells[me]),
        figures: Figures::default(),
        turn: 0,
    };
    Ok((0..workers).map(hatch).collect())
}

impl<F> Hatch<F> {
    /// How many workers there are, this one included.
    pub(crate) const fn workers(&self) -> usize {
        self.peers.len()
    }

    /// Sends a packet to its next worker; [`Hatch::ring`] has to follow. Never waits. **Errors:** the parcel itself, when that worker has
    /// too many frames of this one; it is counted there.
    pub(crate) fn send(&mut self, to: WorkerId, parcel: Parcel<F>) -> Result<(), Parcel<F>> {
        let Some(peer) = self.peers.get_mut(usize::from(to.0)).and_then(Option::as_mut) else {
            debug_assert!(false, "a packet was handed to {to:?}, which is no other worker");
            return Err(parcel);
        };
        // Also when it is refused: then it sleeps on frames that it owes.
        peer.ring = true;
        let sent = if peer.lent < self.capacity { peer.to.packets.push(parcel) } else { Err(parcel) };
        match sent {
            Ok(()) => {
                peer.lent += 1;
                self.figures.frames_sent += 1;
            }
            // One writer, so load and store make an increment.
            Err(_) => peer.to.refused.store(peer.to.refused.load(Ordering::Relaxed) + 1, Ordering::Relaxed),
        }
        sent
    }

    /// Wakes the workers that something was sent to since the last call. **Cost:** a fence for each of them.
    pub(crate) fn ring(&mut self) {
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.ring) {
            peer.ring = false;
            peer.bell.ring();
        }
    }

    /// Takes at most `most` packets from one worker and appends them, in the order in which they were sent.
    pub(crate) fn receive(&mut self, from: usize, most: usize, into: &mut Vec<Parcel<F>>) {
        let Some(peer) = self.peers.get_mut(from).and_then(Option::as_mut) else { return };
        for _ in 0..most {
            // An empty crossbeam queue costs a fence to pop from, and two loads to look at.
            let parcel = if peer.from.packets.is_empty() { None } else { peer.from.packets.pop() };
            let Some(parcel) = parcel else { return };
            peer.lent -= 1;
            self.figures.frames_got += 1;
            self.figures.packets_got += 1;
            into.push(parcel);
        }
    }

    /// Takes all empty frames that have come home.
    pub(crate) fn collect(&mut self, pool: &mut Vec<F>) {
        for peer in self.peers.iter_mut().flatten() {
            while !peer.from.empties.is_empty()
                && let Some(frame) = peer.from.empties.pop()
            {
                peer.lent -= 1;
                self.figures.frames_got += 1;
                pool.push(frame);
            }
        }
    }

    /// Sends home what this worker has of others, as far as `pool` has more than `keep` frames. Any frame will do, and nobody is woken.
    pub(crate) fn give_back(&mut self, pool: &mut Vec<F>, keep: usize) {
        let workers = self.peers.len();
        if workers == 1 {
            return;
        }
        for number in (self.turn..workers).chain(0..self.turn) {
            let Some(peer) = &mut self.peers[number] else { continue };
            while peer.lent < 0 && pool.len() > keep {
                let Some(frame) = pool.pop() else { break };
                if let Err(frame) = peer.to.empties.push(frame) {
                    debug_assert!(false, "there is room for all that was lent");
                    pool.push(frame);
                    break;
                }
                peer.lent += 1;
                self.figures.frames_sent += 1;
            }
        }
        self.turn = (self.turn + 1) % workers;
    }

    /// Says that this worker is going to sleep. Returns whether it may: not when a packet has come.
    pub(crate) fn lie_down(&self) -> bool {
        self.bell.lie_down();
        self.peers.iter().flatten().all(|peer| peer.from.packets.is_empty())
    }

    /// Says that this worker is awake. Follows every [`Hatch::lie_down`].
    pub(crate) fn get_up(&self) {
        self.bell.get_up();
    }

    /// What is readable when somebody wakes this worker.
    pub(crate) fn waker(&self) -> BorrowedFd<'_> {
        self.bell.signal().fd()
    }

    /// What went through.
    pub(crate) fn figures(&self) -> Figures {
        let refused = self.peers.iter().flatten().map(|peer| peer.from.refused.load(Ordering::Relaxed)).sum();
        Figures { packets_refused: refused, ..self.figures }
    }

    /// All frames that are under way to this worker. The senders have ended.
    pub(crate) fn drain(&mut self, pool: &mut Vec<F>) {
        self.collect(pool);
        let mut parcels = Vec::new();
        for from in 0..self.peers.len() {
            self.receive(from, usize::MAX, &mut parcels);
        }
        pool.extend(parcels.into_iter().map(|parcel| parcel.frame));
    }
}

#[cfg(test)]
mod tests {
    use super::super::sync::{model, thread};
    use super::*;

    const FIRST: WorkerId = WorkerId(0);
    const SECOND: WorkerId = WorkerId(1);

    fn parcel(frame: u32) -> Parcel<u32> {
        Parcel { frame, device: DeviceId(0), errand: Errand::Whole, handed: 1 }
    }

    fn two(capacity: usize) -> (Hatch<u32>, Hatch<u32>) {
        let mut hatches = open(2, capacity).expect("descriptors");
        let second = hatches.pop().expect("two hatches");
        (hatches.pop().expect("two hatches"), second)
    }

    fn frames(parcels: &[Parcel<u32>]) -> Vec<u32> {
        parcels.iter().map(|parcel| parcel.frame).collect()
    }

    #[test]
    fn frames_arrive_once_and_in_order_or_stay_with_their_sender() {
        model(|| {
            let (mut first, mut second) = two(2);
            let sending = thread::spawn(move || {
                let mut kept = Vec::new();
                for frame in 0..4 {
                    kept.extend(first.send(SECOND, parcel(frame)).err().map(|parcel| parcel.frame));
                    first.ring();
                }
                let mut home = Vec::new();
                first.collect(&mut home);
                (first, kept, home)
            });
            let mut got = Vec::new();
            for _ in 0..2 {
                second.receive(0, 1, &mut got);
            }
            let mut pool = frames(&got);
            second.give_back(&mut pool, 0);
            let (mut first, kept, mut home) = sending.join().expect("the sender ends");
            second.receive(0, 4, &mut got);
            first.collect(&mut home);
            let arrived = frames(&got);
            assert!(arrived.is_sorted(), "in order: {arrived:?}");
            let mut all = [arrived.clone(), kept.clone()].concat();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3], "each once");
            let lent = first.peers[1].as_ref().expect("a peer").lent;
            assert_eq!(lent, arrived.len().cast_signed() - home.len().cast_signed());
            assert_eq!(second.figures().packets_refused, kept.len() as u64);
            assert_eq!(second.figures().frames_got, first.figures().frames_sent);
        });
    }

    #[test]
    fn a_worker_that_sleeps_is_woken_for_a_packet() {
        model(|| {
            let (mut first, mut second) = two(2);
            let sending = thread::spawn(move || {
                for frame in 0..2 {
                    first.send(SECOND, parcel(frame)).expect("room");
                    first.ring();
                }
            });
            let mut got = Vec::new();
            while got.len() < 2 {
                if second.lie_down() {
                    // For ever, if the wake-up were lost.
                    second.bell.signal().wait();
                }
                second.get_up();
                second.receive(0, 2, &mut got);
            }
            assert_eq!(frames(&got), [0, 1]);
            sending.join().expect("the sender ends");
        });
    }

    #[test]
    fn two_workers_that_hand_to_each_other_owe_nothing_in_the_end() {
        model(|| {
            let (mut first, mut second) = two(2);
            let exchange = |mut hatch: Hatch<u32>, other: WorkerId, frame| {
                let _ = hatch.send(other, parcel(frame));
                hatch.ring();
                let (mut got, mut pool) = (Vec::new(), Vec::new());
                hatch.receive(usize::from(other.0), 1, &mut got);
                pool.extend(frames(&got));
                hatch.give_back(&mut pool, 0);
                (hatch, pool)
            };
            let other = thread::spawn(move || exchange(second, FIRST, 20));
            let mut pools = Vec::new();
            let pool;
            (first, pool) = exchange(first, SECOND, 10);
            pools.extend(pool);
            let pool;
            (second, pool) = other.join().expect("the other worker ends");
            pools.extend(pool);
            for _ in 0..2 {
                for hatch in [&mut first, &mut second] {
                    hatch.drain(&mut pools);
                    hatch.give_back(&mut pools, 0);
                }
            }
            pools.sort_unstable();
            assert_eq!(pools, [10, 20]);
            assert_eq!([&first, &second].map(|hatch| hatch.peers.iter().flatten().map(|peer| peer.lent).sum::<isize>()), [0, 0]);
        });
    }

    #[test]
    fn a_worker_lends_no_more_than_the_capacity_until_frames_come_home() {
        model(|| {
            let (mut first, mut second) = two(2);
            assert!(first.send(SECOND, parcel(0)).is_ok() && first.send(SECOND, parcel(1)).is_ok());
            let (mut got, mut pool) = (Vec::new(), Vec::new());
            second.receive(0, 9, &mut got);
            assert_eq!(
                first.send(SECOND, parcel(2)).map_err(|parcel| parcel.frame),
                Err(2),
                "the lane is empty, the debt is not paid"
            );
            pool.extend(frames(&got));
            second.give_back(&mut pool, 1);
            assert_eq!(pool.len(), 1, "what is to be kept is kept");
            first.collect(&mut pool);
            assert!(first.send(SECOND, parcel(3)).is_ok());
            assert!(first.send(SECOND, parcel(4)).is_err());
        });
    }

    #[test]
    fn one_worker_has_nobody_to_hand_to_and_sleeps_undisturbed() {
        model(|| {
            let mut hatch = open::<u32>(1, 0).expect("a descriptor").pop().expect("a hatch");
            let mut pool = vec![1];
            hatch.give_back(&mut pool, 0);
            hatch.collect(&mut pool);
            hatch.ring();
            assert!(hatch.lie_down() && hatch.workers() == 1);
            hatch.get_up();
            assert_eq!((pool.as_slice(), hatch.figures()), ([1].as_slice(), Figures::default()));
        });
    }
}
