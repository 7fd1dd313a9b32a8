//! One worker: frames from its queues and from other workers through the NAT and out again.
//!
//! The one place where `nat` and `xsk` meet: it moves frames, asks the NAT for verdicts and carries them out; it decides nothing about
//! packets. Knows no sockets: it runs over any [`Port`], so that tests run it over memory. Invariant: frames at the start + frames got =
//! frames sent + frames held, checked in debug builds and published. Called by `thread.rs`. Tests: `tests/`, over the in-memory wire.

mod dispose;
mod holding;
pub(crate) mod thread;
mod upkeep;
mod waiting;

#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use portcullis_nat::counters::Counters;
use portcullis_nat::policy::DeviceId;
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{Errand, HandOffCause, Verdict};
use portcullis_nat::{Nat, Packet};
use portcullis_xsk::port::{Frame, Port};

use crate::doors::WorkerDoors;
use crate::doors::commands::Phase;
use crate::doors::counters::QueueFigures;
use crate::doors::handoff::{Hatch, Parcel};
use dispose::Origin;
use holding::Holding;
use waiting::{Store, Waiting};

/// Packets taken from a queue or from another worker at once. Larger bursts gained nothing on veth (batches of 32 to 64 are within 10 %).
pub(crate) const BURST: usize = 64;

/// Frames that wait for room in a transmit ring; more are dropped.
const OUTBOX: usize = 2048;

/// Frames that stay in the pool when fill rings are filled and other workers' frames given back: enough to split a burst of large packets.
pub(crate) const KEEP: usize = 256;

/// What a queue says of itself beside carrying frames.
pub(crate) trait QueuePort: Port {
    /// The kernel's statistics of the queue.
    fn figures(&self) -> QueueFigures;

    /// Whether this worker runs the queue, and no thread of the kernel.
    fn is_driven(&self) -> bool {
        false
    }

    /// Packets that the device did not take since the start, because its own queue was full.
    fn dropped_by_device(&self) -> u64;
}

/// Gives a frame to the kernel as if it had just been received.
pub(crate) trait Punter {
    /// Injects the packet into the receive path of the device. Returns whether the kernel took it.
    fn punt(&mut self, device: DeviceId, packet: &[u8]) -> bool;
}

/// A queue and the device that it belongs to.
pub(crate) struct Queue<P> {
    /// The device.
    pub(crate) device: DeviceId,
    /// The queue.
    pub(crate) port: P,
}

/// How a queue's frames were placed.
#[derive(Clone, Copy, Debug, Default)]
struct Placed {
    received: u64,
    misplaced: u64,
}

impl Placed {
    /// Counts a burst that came from the device.
    fn note(&mut self, verdicts: &[Verdict]) {
        let is_misplaced = |verdict: &&Verdict| matches!(verdict, Verdict::HandOff { cause: HandOffCause::Misplaced, .. });
        self.received += verdicts.len() as u64;
        self.misplaced += verdicts.iter().filter(is_misplaced).count() as u64;
    }
}

/// What a worker is made of.
pub(crate) struct Parts<P: QueuePort, K> {
    /// Its NAT.
    pub(crate) nat: Nat<'static>,
    /// Its queues: at least one of each device.
    pub(crate) queues: Vec<Queue<P>>,
    /// Its share of the packet memory.
    pub(crate) pool: Vec<P::Frame>,
    /// Packets that it takes from a queue at once, at most.
    pub(crate) most: usize,
    /// Its way back into the kernel.
    pub(crate) punter: K,
    /// Its doors to the control plane.
    pub(crate) doors: WorkerDoors,
    /// Its door to the other workers.
    pub(crate) handoff: Hatch<P::Frame>,
}

/// The worker.
pub(crate) struct Worker<P: QueuePort, K> {
    nat: Nat<'static>,
    queues: Vec<Queue<P>>,
    /// Each queue's frames that wait for its transmit ring.
    outboxes: Vec<Vec<P::Frame>>,
    /// How many frames each queue received, and how many of them are another worker's.
    placed: Vec<Placed>,
    /// The queue that transmits for each device.
    transmitter: Vec<Option<usize>>,
    /// Packets taken from a queue at once.
    most: usize,
    pool: Vec<P::Frame>,
    /// Frames that it had at the start.
    frames_total: usize,
    burst: Vec<P::Frame>,
    parcels: Vec<Parcel<P::Frame>>,
    verdicts: Vec<Verdict>,
    holding: Holding<P::Frame>,
    waiting: Store<P::Frame>,
    punter: K,
    punt_second: Tick,
    punts: u32,
    doors: WorkerDoors,
    handoff: Hatch<P::Frame>,
    generation: u64,
    /// What is counted after the verdict; the NAT counts the rest.
    late: Counters,
    /// Packets that the devices did not take, as far as they are counted.
    dropped_by_devices: u64,
    /// When the work between bursts was done last.
    kept_up: Tick,
    /// Whether another portion of the sweep is due.
    sweeps_on: bool,
    /// Whether a dump is under way.
    answers_on: bool,
}

impl<P: QueuePort, K: Punter> Worker<P, K> {
    /// A worker of these parts, whose fill rings are full.
    pub(crate) fn new(parts: Parts<P, K>) -> Self {
        let Parts { nat, queues, pool, most, punter, doors, handoff } = parts;
        let devices = queues.iter().map(|queue| usize::from(queue.device.0) + 1).max().unwrap_or(0);
        let mut transmitter = vec![None; devices];
        for (position, queue) in queues.iter().enumerate() {
            transmitter[usize::from(queue.device.0)].get_or_insert(position);
        }
        let outboxes = queues.iter().map(|_| Vec::with_capacity(OUTBOX)).collect();
        let placed = vec![Placed::default(); queues.len()];
        let frames_total = pool.len();
        let mut worker = Self {
            nat,
            queues,
            outboxes,
            placed,
            transmitter,
            most: most.clamp(1, BURST),
            pool,
            frames_total,
            burst: Vec::with_capacity(BURST),
            parcels: Vec::with_capacity(BURST),
            verdicts: Vec::with_capacity(BURST),
            holding: Holding::new(),
            waiting: Store::new(),
            punter,
            punt_second: Tick(0),
            punts: 0,
            doors,
            handoff,
            generation: 0,
            late: Counters::default(),
            dropped_by_devices: 0,
            kept_up: Tick(0),
            sweeps_on: true,
            answers_on: false,
        };
        worker.refill();
        worker
    }

    /// One round over all other workers and all queues, and the work between bursts. Returns how many packets it worked on.
    ///
    /// What others have handed over comes first: work has gone into it already.
    pub(crate) fn round(&mut self, now: Tick) -> usize {
        self.adopt(now);
        self.handoff.collect(&mut self.pool);
        let mut packets = 0;
        for from in 0..self.handoff.workers() {
            packets += self.serve_worker(from, now);
        }
        for queue in 0..self.queues.len() {
            packets += self.serve_queue(queue, now);
        }
        self.flush();
        self.refill();
        if packets == 0 || self.sweeps_on || self.answers_on || now != self.kept_up {
            self.upkeep(now);
        }
        self.handoff.ring();
        packets
    }

    /// Notes what a round took, for the histogram.
    pub(crate) fn note(&mut self, packets: usize, nanoseconds: u64) {
        self.doors.counters.burst(packets as u32, nanoseconds);
    }

    /// The control plane's word on the gateway's life.
    pub(crate) fn phase(&self) -> Phase {
        self.doors.commands.phase()
    }

    /// Whether something waits to be transmitted, or to be swept, so that the worker must not sleep.
    pub(crate) fn has_work(&self) -> bool {
        self.sweeps_on || self.outboxes.iter().any(|outbox| !outbox.is_empty())
    }

    /// Whether it runs a queue itself.
    pub(crate) fn drives(&self) -> bool {
        self.queues.iter().any(|queue| queue.port.is_driven())
    }

    /// Says to the other workers that this one is going to sleep. Returns whether it may: not when one has handed a packet over.
    pub(crate) fn lie_down(&self) -> bool {
        self.handoff.lie_down()
    }

    /// Says that it is awake again. Follows every [`Worker::lie_down`].
    pub(crate) fn get_up(&self) {
        self.handoff.get_up();
    }

    /// What is readable when another worker wakes this one.
    pub(crate) fn waker(&self) -> BorrowedFd<'_> {
        self.handoff.waker()
    }

    /// The queues, and all frames that are not in their rings; also those under way from other workers, which have ended. The worker ends.
    pub(crate) fn into_parts(mut self) -> (Vec<Queue<P>>, Vec<P::Frame>) {
        self.handoff.drain(&mut self.pool);
        self.pool.extend(self.holding.release().map(|(_, _, frame)| frame));
        self.pool.extend(self.waiting.drain());
        for outbox in &mut self.outboxes {
            self.pool.append(outbox);
        }
        (self.queues, self.pool)
    }

    /// Steps 1 to 8 for one burst of one queue.
    fn serve_queue(&mut self, queue: usize, now: Tick) -> usize {
        let Queue { device, port } = &mut self.queues[queue];
        let device = *device;
        let count = port.receive(&mut self.burst, self.most);
        if self.burst.is_empty() {
            return count;
        }
        let packets = self.burst.iter_mut().map(|frame| {
            let len = frame.packet_len();
            Packet::received(frame.buffer(), len)
        });
        let lengths = decide(&mut self.nat, packets, device, now, &mut self.verdicts);
        let (mut burst, mut verdicts) = (std::mem::take(&mut self.burst), std::mem::take(&mut self.verdicts));
        self.placed[queue].note(&verdicts);
        for ((mut frame, verdict), length) in burst.drain(..).zip(verdicts.drain(..)).zip(lengths) {
            frame.set_packet_len(length);
            self.dispose(frame, verdict, Some(Origin { device, handed: 0 }), now);
        }
        (self.burst, self.verdicts) = (burst, verdicts);
        self.release_fragments(now);
        self.handoff.ring();
        count
    }

    /// Steps 2 to 8 for one burst that another worker has handed over.
    fn serve_worker(&mut self, from: usize, now: Tick) -> usize {
        let mut parcels = std::mem::take(&mut self.parcels);
        self.handoff.receive(from, self.most, &mut parcels);
        let count = parcels.len();
        if count > 0 {
            self.process_parcels(&mut parcels, now);
            self.release_fragments(now);
            self.handoff.ring();
        }
        self.parcels = parcels;
        count
    }

    /// Processes the fragments whose first one has come, in the order in which they came, and lets go of those that wait in vain.
    fn release_fragments(&mut self, now: Tick) {
        while let Some(datagram) = self.nat.take_released() {
            let mut parcels = std::mem::take(&mut self.parcels);
            while let Some(Waiting { frame, device, handed }) = self.waiting.take(datagram) {
                parcels.push(Parcel { frame, device, errand: Errand::Released, handed });
            }
            self.process_parcels(&mut parcels, now);
            self.parcels = parcels;
        }
        self.give_up_fragments(now);
    }

    /// Steps 2 to 8 for packets that were received before. Leaves `parcels` empty.
    fn process_parcels(&mut self, parcels: &mut Vec<Parcel<P::Frame>>, now: Tick) {
        let runs = parcels.chunk_by_mut(|one, next| one.device == next.device);
        for run in runs.flat_map(|run| run.chunks_mut(BURST)) {
            let device = run[0].device;
            let packets = run.iter_mut().map(|parcel| {
                let len = parcel.frame.packet_len();
                Packet { buffer: parcel.frame.buffer(), len, errand: parcel.errand, handed: parcel.handed }
            });
            let lengths = decide(&mut self.nat, packets, device, now, &mut self.verdicts);
            for (parcel, length) in run.iter_mut().zip(lengths) {
                parcel.frame.set_packet_len(length);
            }
        }
        let mut verdicts = std::mem::take(&mut self.verdicts);
        for (parcel, verdict) in parcels.drain(..).zip(verdicts.drain(..)) {
            let from = Origin { device: parcel.device, handed: parcel.handed };
            self.dispose(parcel.frame, verdict, Some(from), now);
        }
        self.verdicts = verdicts;
    }

    /// Sends what waits, and takes back what was sent.
    fn flush(&mut self) {
        for (queue, outbox) in self.queues.iter_mut().zip(&mut self.outboxes) {
            if !outbox.is_empty() {
                queue.port.transmit(outbox);
            }
        }
    }

    /// Gives the kernel frames to receive into, wakes it where it asked for that, and gives other workers' frames back.
    fn refill(&mut self) {
        for queue in &mut self.queues {
            queue.port.complete(&mut self.pool);
            queue.port.fill(&mut self.pool, KEEP);
            queue.port.wake();
        }
        self.handoff.give_back(&mut self.pool, KEEP);
    }
}

/// Steps 2 to 7 for at most [`BURST`] packets from one device. Appends a verdict for each and returns the lengths that they have now.
fn decide<'f>(
    nat: &mut Nat<'_>,
    packets: impl Iterator<Item = Packet<'f>>,
    device: DeviceId,
    now: Tick,
    verdicts: &mut Vec<Verdict>,
) -> ArrayVec<usize, BURST> {
    // Most bursts are short: no place is touched that has no packet.
    let mut burst: ArrayVec<Packet<'_>, BURST> = packets.collect();
    nat.process(&mut burst, device, now, verdicts);
    burst.iter().map(|packet| packet.len).collect()
}
