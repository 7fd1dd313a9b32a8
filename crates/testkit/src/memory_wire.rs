//! A queue in memory: `xsk`'s `Port` and `Frame` without a kernel, whose far end a test injects into and reads from.
//!
//! Knows the four rings and what a kernel does between them, no packets. Called by worker tests, from any thread. Invariant: each
//! frame of a slab is in one place; one that is dropped is counted as leaked, as is every size that a ring exceeds.
//! Tests: below.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portcullis_xsk::port::{Frame, Port};

mod clock;

pub use clock::VirtualClock;

/// All frames of a test, and where they went.
#[derive(Clone, Debug)]
pub struct Slab {
    state: Arc<SlabState>,
}

#[derive(Debug)]
struct SlabState {
    total: usize,
    lost: AtomicUsize,
}

impl Slab {
    /// A slab of `count` frames of `size` bytes each, and the pool that holds them all.
    pub fn new(count: usize, size: usize) -> (Self, Vec<MemoryFrame>) {
        let slab = Self { state: Arc::new(SlabState { total: count, lost: AtomicUsize::new(0) }) };
        let frame =
            |number| MemoryFrame { number, len: 0, memory: vec![0; size].into_boxed_slice(), slab: Arc::clone(&slab.state) };
        let pool = (0..count).map(frame).collect();
        (slab, pool)
    }

    /// How many frames there are.
    pub fn total(&self) -> usize {
        self.state.total
    }

    /// How many frames were dropped instead of moved on.
    pub fn lost(&self) -> usize {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Checks that `accounted` (pools, held frames and the ports' `in_flight` together) is every frame, and that none was lost.
    ///
    /// **Panics:** when it is not so.
    pub fn assert_accounted(&self, accounted: usize) {
        assert_eq!(self.lost(), 0, "frames were dropped instead of moved on");
        assert_eq!(accounted, self.total(), "frames in = frames out + frames held");
    }
}

/// A frame of heap memory. Not `Clone`; a dropped one is counted as lost by its slab.
#[derive(Debug)]
pub struct MemoryFrame {
    number: usize,
    len: usize,
    memory: Box<[u8]>,
    slab: Arc<SlabState>,
}

impl MemoryFrame {
    /// Its number in the slab.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The packet.
    pub fn packet(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for MemoryFrame {
    fn drop(&mut self) {
        self.slab.lost.fetch_add(1, Ordering::SeqCst);
    }
}

impl Frame for MemoryFrame {
    fn packet_len(&self) -> usize {
        self.len
    }

    fn set_packet_len(&mut self, len: usize) {
        assert!(len <= self.memory.len(), "a packet of {len} bytes exceeds its frame of {}", self.memory.len());
        self.len = len;
    }

    fn buffer(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

/// How many descriptors each ring takes.
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    /// The fill ring.
    pub fill: usize,
    /// The receive ring.
    pub receive: usize,
    /// The transmit ring.
    pub transmit: usize,
    /// The completion ring.
    pub completion: usize,
}

impl Default for RingSizes {
    fn default() -> Self {
        Self { fill: 64, receive: 64, transmit: 64, completion: 64 }
    }
}

#[derive(Debug)]
struct Rings {
    sizes: RingSizes,
    fill: VecDeque<MemoryFrame>,
    receive: VecDeque<MemoryFrame>,
    transmit: VecDeque<MemoryFrame>,
    completion: VecDeque<MemoryFrame>,
    stuck: bool,
    wakes: usize,
    missed: usize,
}

/// A queue as the worker has it.
#[derive(Debug)]
pub struct MemoryPort {
    rings: Arc<Mutex<Rings>>,
}

/// The other end of the wire, and the kernel's part of the queue: what a test holds.
#[derive(Clone, Debug)]
pub struct FarEnd {
    rings: Arc<Mutex<Rings>>,
}

/// A queue and its far end.
pub fn pair(sizes: RingSizes) -> (MemoryPort, FarEnd) {
    let rings = Rings {
        sizes,
        fill: VecDeque::new(),
        receive: VecDeque::new(),
        transmit: VecDeque::new(),
        completion: VecDeque::new(),
        stuck: false,
        wakes: 0,
        missed: 0,
    };
    let rings = Arc::new(Mutex::new(rings));
    (MemoryPort { rings: Arc::clone(&rings) }, FarEnd { rings })
}

fn lock(rings: &Mutex<Rings>) -> MutexGuard<'_, Rings> {
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Port for MemoryPort {
    type Frame = MemoryFrame;

    fn receive(&mut self, frames: &mut Vec<MemoryFrame>, most: usize) -> usize {
        let mut rings = lock(&self.rings);
        let count = most.min(rings.receive.len());
        frames.extend(rings.receive.drain(..count));
        count
    }

    fn transmit(&mut self, frames: &mut Vec<MemoryFrame>) -> usize {
        let mut rings = lock(&self.rings);
        let room = if rings.stuck { 0 } else { rings.sizes.transmit.saturating_sub(rings.transmit.len()) };
        let count = room.min(frames.len());
        rings.transmit.extend(frames.drain(..count));
        count
    }

    fn complete(&mut self, pool: &mut Vec<MemoryFrame>) -> usize {
        let mut rings = lock(&self.rings);
        let count = rings.completion.len();
        pool.extend(rings.completion.drain(..));
        count
    }

    fn fill(&mut self, pool: &mut Vec<MemoryFrame>, keep: usize) -> usize {
        let mut rings = lock(&self.rings);
        let room = rings.sizes.fill.saturating_sub(rings.fill.len());
        let count = room.min(pool.len().saturating_sub(keep));
        let rest = pool.len() - count;
        rings.fill.extend(pool.drain(rest..));
        count
    }

    fn wake(&mut self) {
        lock(&self.rings).wakes += 1;
    }

    fn in_flight(&self) -> usize {
        let rings = lock(&self.rings);
        rings.fill.len() + rings.receive.len() + rings.transmit.len() + rings.completion.len()
    }
}

impl FarEnd {
    /// Lets a packet arrive. Returns false, and counts it as missed, when the fill ring is empty, the receive ring full or the frame
    /// too small, as a NIC would.
    pub fn inject(&self, packet: &[u8]) -> bool {
        let mut rings = lock(&self.rings);
        let room = rings.receive.len() < rings.sizes.receive && rings.fill.front().is_some_and(|f| f.memory.len() >= packet.len());
        let Some(mut frame) = (if room { rings.fill.pop_front() } else { None }) else {
            rings.missed += 1;
            return false;
        };
        frame.memory[..packet.len()].copy_from_slice(packet);
        frame.len = packet.len();
        rings.receive.push_back(frame);
        true
    }

    /// Takes the next transmitted packet off the wire; its frame is then complete. None when there is none, or when the completion
    /// ring is full.
    pub fn read(&self) -> Option<Vec<u8>> {
        let mut rings = lock(&self.rings);
        if rings.completion.len() >= rings.sizes.completion {
            return None;
        }
        let frame = rings.transmit.pop_front()?;
        let packet = frame.packet().to_vec();
        rings.completion.push_back(frame);
        Some(packet)
    }

    /// Takes all transmitted packets off the wire that the completion ring has room for.
    pub fn read_all(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.read()).collect()
    }

    /// Makes the transmit ring look full, or not: what a stopped link does.
    pub fn set_stuck(&self, stuck: bool) {
        lock(&self.rings).stuck = stuck;
    }

    /// How often the worker woke the kernel.
    pub fn wakes(&self) -> usize {
        lock(&self.rings).wakes
    }

    /// Packets that found no frame or no room.
    pub fn missed(&self) -> usize {
        lock(&self.rings).missed
    }

    /// Frames that wait in the fill ring.
    pub fn fillable(&self) -> usize {
        lock(&self.rings).fill.len()
    }

    /// Moves every frame out of the rings, as closing the socket does.
    pub fn close(&self) -> Vec<MemoryFrame> {
        let mut guard = lock(&self.rings);
        let rings = &mut *guard;
        let all = [&mut rings.fill, &mut rings.receive, &mut rings.transmit, &mut rings.completion];
        all.into_iter().flat_map(|ring| ring.drain(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_crosses_the_rings_and_its_frame_comes_back() {
        let (slab, mut pool) = Slab::new(4, 2048);
        let (mut port, far) = pair(RingSizes::default());
        assert_eq!(port.fill(&mut pool, 1), 3);
        assert!(far.inject(b"ping"));
        let mut burst = Vec::new();
        assert_eq!(port.receive(&mut burst, 32), 1);
        assert_eq!((burst[0].packet(), burst[0].packet_len()), (&b"ping"[..], 4));
        burst[0].buffer()[..4].copy_from_slice(b"pong");
        assert_eq!(port.transmit(&mut burst), 1);
        slab.assert_accounted(pool.len() + burst.len() + port.in_flight());
        assert_eq!(far.read_all(), [b"pong".to_vec()]);
        assert_eq!(port.complete(&mut pool), 1);
        slab.assert_accounted(pool.len() + port.in_flight());
    }

    #[test]
    fn rings_take_no_more_than_their_size_and_a_stuck_one_takes_nothing() {
        let (slab, mut pool) = Slab::new(8, 64);
        let (mut port, far) = pair(RingSizes { fill: 3, receive: 2, transmit: 1, completion: 1 });
        assert_eq!(port.fill(&mut pool, 0), 3);
        assert_eq!((far.inject(&[0; 60]), far.inject(&[0; 60]), far.inject(&[0; 60])), (true, true, false));
        assert!(!far.inject(&[0; 65]), "no frame is that large");
        assert_eq!(far.missed(), 2);
        let mut burst = Vec::new();
        assert_eq!(port.receive(&mut burst, 1), 1);
        assert_eq!(port.receive(&mut burst, 32), 1);
        far.set_stuck(true);
        assert_eq!(port.transmit(&mut burst), 0);
        far.set_stuck(false);
        assert_eq!((port.transmit(&mut burst), burst.len()), (1, 1));
        assert!(far.read().is_some());
        assert_eq!(port.transmit(&mut burst), 1);
        assert_eq!(far.read(), None, "the completion ring is full");
        slab.assert_accounted(pool.len() + port.in_flight());
    }

    #[test]
    fn a_dropped_frame_is_found() {
        let (slab, mut pool) = Slab::new(2, 64);
        drop(pool.pop());
        assert_eq!(slab.lost(), 1);
        let found = std::panic::catch_unwind(|| slab.assert_accounted(1));
        assert!(found.is_err(), "the leak is reported");
    }
}
