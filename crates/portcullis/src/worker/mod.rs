//! One worker: frames from its queues through the NAT and out again.
//!
//! The one place where `nat` and `xsk` meet: it moves frames, asks the NAT for verdicts and carries them out; it decides nothing about
//! packets. Knows no sockets: it runs over any [`Port`], so that tests run it over memory. Invariant: frames in = frames out + frames held,
//! checked in debug builds and published. Called by `thread.rs`. Tests: `tests.rs`, over the in-memory wire.

mod holding;
pub(crate) mod thread;

#[cfg(test)]
mod tests;

use portcullis_nat::counters::Counters;
use portcullis_nat::policy::DeviceId;
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::{Nat, Packet};
use portcullis_wire::{ethernet, fragment};
use portcullis_xsk::port::{Frame, Port};

use crate::doors::WorkerDoors;
use crate::doors::counters::{FrameFigures, QueueFigures, Report};
use crate::doors::events::Event;
use holding::{Held, Holding, NextHop};

/// Packets taken from a queue at once. Larger bursts gained nothing on veth (batches of 32 to 64 are within 10 %).
pub(crate) const BURST: usize = 64;

/// Frames that wait for room in a transmit ring; more are dropped.
const OUTBOX: usize = 2048;

/// Packets given to the kernel in a second, and at once: it answers pings with them, no bulk traffic.
const PUNT_RATE: u32 = 2000;

/// What a queue says of itself beside carrying frames.
pub(crate) trait QueuePort: Port {
    /// The kernel's statistics of the queue.
    fn figures(&self) -> QueueFigures;

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

/// The worker.
pub(crate) struct Worker<P: QueuePort, K> {
    nat: Nat<'static>,
    queues: Vec<Queue<P>>,
    /// Each queue's frames that wait for its transmit ring.
    outboxes: Vec<Vec<P::Frame>>,
    /// The queue that transmits for each device.
    transmitter: Vec<Option<usize>>,
    /// Packets taken from a queue at once.
    most: usize,
    pool: Vec<P::Frame>,
    frames_total: usize,
    burst: Vec<P::Frame>,
    verdicts: Vec<Verdict>,
    holding: Holding<P::Frame>,
    punter: K,
    punt_second: Tick,
    punts: u32,
    doors: WorkerDoors,
    generation: u64,
    /// What is counted after the verdict; the NAT counts the rest.
    late: Counters,
    /// Packets that the devices did not take, as far as they are counted.
    dropped_by_devices: u64,
}

impl<P: QueuePort, K: Punter> Worker<P, K> {
    /// A worker over `queues` with all their frames in `pool`, which takes at most `most` packets from a queue at once.
    pub(crate) fn new(
        nat: Nat<'static>,
        queues: Vec<Queue<P>>,
        pool: Vec<P::Frame>,
        most: usize,
        punter: K,
        doors: WorkerDoors,
    ) -> Self {
        let devices = queues.iter().map(|queue| usize::from(queue.device.0) + 1).max().unwrap_or(0);
        let mut transmitter = vec![None; devices];
        for (position, queue) in queues.iter().enumerate() {
            transmitter[usize::from(queue.device.0)].get_or_insert(position);
        }
        let outboxes = queues.iter().map(|_| Vec::with_capacity(OUTBOX)).collect();
        let frames_total = pool.len();
        let mut worker = Self {
            nat,
            queues,
            outboxes,
            transmitter,
            most: most.clamp(1, BURST),
            pool,
            frames_total,
            burst: Vec::with_capacity(BURST),
            verdicts: Vec::with_capacity(BURST),
            holding: Holding::new(),
            punter,
            punt_second: Tick(0),
            punts: 0,
            doors,
            generation: 0,
            late: Counters::default(),
            dropped_by_devices: 0,
        };
        worker.refill();
        worker
    }

    /// One round over all queues, and the work between bursts. Returns how many packets were received.
    pub(crate) fn round(&mut self, now: Tick) -> usize {
        self.adopt(now);
        let mut received = 0;
        for queue in 0..self.queues.len() {
            received += self.serve_queue(queue, now);
        }
        self.flush();
        self.refill();
        self.upkeep(now);
        received
    }

    /// Notes what a round took, for the histogram.
    pub(crate) fn note(&mut self, packets: usize, nanoseconds: u64) {
        self.doors.counters.burst(packets as u32, nanoseconds);
    }

    /// The control plane's word on the gateway's life.
    pub(crate) fn phase(&self) -> crate::doors::commands::Phase {
        self.doors.commands.phase()
    }

    /// Whether something waits to be transmitted, so that the worker must not sleep.
    pub(crate) fn has_outgoing(&self) -> bool {
        self.outboxes.iter().any(|outbox| !outbox.is_empty())
    }

    /// The queues, and all frames that are not in their rings. The worker ends.
    pub(crate) fn into_parts(mut self) -> (Vec<Queue<P>>, Vec<P::Frame>) {
        self.pool.extend(self.holding.release().map(|(_, _, frame)| frame));
        for outbox in &mut self.outboxes {
            self.pool.append(outbox);
        }
        (self.queues, self.pool)
    }

    /// Adopts what the control plane has published; packets that waited for the network may go on.
    fn adopt(&mut self, now: Tick) {
        let Some(snapshot) = self.doors.policy.newer() else { return };
        self.generation = snapshot.generation;
        self.nat.adopt_policy(snapshot.policy.clone(), now);
        self.nat.adopt_network(snapshot.network.clone());
        let waiting: Vec<_> = self.holding.release().collect();
        for (next_hop, since, frame) in waiting {
            self.readdress(next_hop, frame, since, now);
        }
    }

    fn readdress(&mut self, (interface, address): NextHop, mut frame: P::Frame, since: Tick, now: Tick) {
        let len = frame.packet_len();
        let mut packet = Packet::received(frame.buffer(), len);
        let verdict = self.nat.readdress(&mut packet, interface, address);
        let len = packet.len;
        frame.set_packet_len(len);
        match verdict {
            Verdict::Hold { interface, next_hop } => return self.hold((interface, next_hop), frame, since, now),
            Verdict::Drop(reason) => self.late.drop_packet(reason),
            _ => {}
        }
        self.dispose(frame, verdict, None, now);
    }

    /// Steps 1 to 8 for one burst of one queue.
    fn serve_queue(&mut self, queue: usize, now: Tick) -> usize {
        let Queue { device, port } = &mut self.queues[queue];
        let device = *device;
        let count = port.receive(&mut self.burst, self.most);
        if self.burst.is_empty() {
            return count;
        }
        self.process(device, now);
        let (mut burst, mut verdicts) = (std::mem::take(&mut self.burst), std::mem::take(&mut self.verdicts));
        for (frame, verdict) in burst.drain(..).zip(verdicts.drain(..)) {
            self.dispose(frame, verdict, Some(device), now);
        }
        (self.burst, self.verdicts) = (burst, verdicts);
        count
    }

    fn process(&mut self, device: DeviceId, now: Tick) {
        let mut lengths = [0; BURST];
        let mut packets: [Packet<'_>; BURST] = core::array::from_fn(|_| Packet::received(&mut [], 0));
        let count = self.burst.len().min(BURST);
        for (packet, frame) in packets.iter_mut().zip(&mut self.burst) {
            let len = frame.packet_len();
            *packet = Packet::received(frame.buffer(), len);
        }
        self.nat.process(&mut packets[..count], device, now, &mut self.verdicts);
        for (length, packet) in lengths.iter_mut().zip(&packets) {
            *length = packet.len;
        }
        for (frame, length) in self.burst.iter_mut().zip(lengths) {
            frame.set_packet_len(length);
        }
    }

    /// Step 8: carries a verdict out.
    fn dispose(&mut self, mut frame: P::Frame, verdict: Verdict, from: Option<DeviceId>, now: Tick) {
        match verdict {
            Verdict::Transmit(device) => self.transmit(device, frame),
            Verdict::Fragment { device, mtu } => self.split(device, frame, mtu),
            Verdict::Hold { interface, next_hop } => self.hold((interface, next_hop), frame, now, now),
            Verdict::Punt => {
                let len = frame.packet_len();
                let taken = from.is_some_and(|device| self.may_punt(now) && self.punter.punt(device, &frame.buffer()[..len]));
                if !taken {
                    self.late.drop_packet(DropReason::PuntLimited);
                }
                self.pool.push(frame);
            }
            Verdict::HandOff { .. } => {
                debug_assert!(false, "one worker owns everything");
                self.late.drop_packet(DropReason::HandOffFull);
                self.pool.push(frame);
            }
            Verdict::AwaitFirst(_) => {
                self.late.drop_packet(DropReason::FragmentWithoutFirst);
                self.pool.push(frame);
            }
            Verdict::Drop(_) => self.pool.push(frame),
        }
    }

    fn transmit(&mut self, device: DeviceId, frame: P::Frame) {
        let queue = self.transmitter.get(usize::from(device.0)).copied().flatten();
        match queue.map(|queue| &mut self.outboxes[queue]) {
            Some(outbox) if outbox.len() < OUTBOX => outbox.push(frame),
            _ => {
                self.late.drop_packet(DropReason::TransmitFull);
                self.pool.push(frame);
            }
        }
    }

    /// Splits a packet into frames of the pool (RFC 791, section 2.3), all of them or none.
    fn split(&mut self, device: DeviceId, mut frame: P::Frame, mtu: u16) {
        let len = frame.packet_len();
        let sent = self.split_into(device, &mut frame.buffer()[..len], mtu);
        if !sent {
            self.late.drop_packet(DropReason::NoFrame);
        }
        self.pool.push(frame);
    }

    fn split_into(&mut self, device: DeviceId, packet: &mut [u8], mtu: u16) -> bool {
        let Some(link) = ethernet::link(packet) else { return false };
        let (header, datagram) = packet.split_at(link.header_len);
        let Ok(fragments) = fragment::fragments(datagram, usize::from(mtu)) else { return false };
        if fragments.clone().count() > self.pool.len() {
            return false;
        }
        for piece in fragments {
            let Some(mut part) = self.pool.pop() else { return false };
            let buffer = part.buffer();
            buffer[..header.len()].copy_from_slice(header);
            let written = piece.write_to(&mut buffer[header.len()..]);
            let Some(written) = written else {
                self.pool.push(part);
                return false;
            };
            part.set_packet_len(header.len() + written);
            self.transmit(device, part);
        }
        true
    }

    fn hold(&mut self, next_hop: NextHop, frame: P::Frame, since: Tick, now: Tick) {
        match self.holding.hold(next_hop, frame, since, now) {
            Held::Waits => {}
            Held::WaitsAndAsks => {
                let (interface, address) = next_hop;
                // A full queue of events is told again by the next packet.
                let _ = self.doors.events.send(Event::ResolveNeighbour { interface, address });
            }
            Held::Refused(frame) => {
                self.late.drop_packet(DropReason::NeighbourUnresolved);
                self.pool.push(frame);
            }
        }
    }

    fn may_punt(&mut self, now: Tick) -> bool {
        if now.since(self.punt_second) >= 1000 {
            (self.punt_second, self.punts) = (now, 0);
        }
        self.punts += 1;
        self.punts <= PUNT_RATE
    }

    /// Sends what waits, and takes back what was sent.
    fn flush(&mut self) {
        for (queue, outbox) in self.queues.iter_mut().zip(&mut self.outboxes) {
            if !outbox.is_empty() {
                queue.port.transmit(outbox);
            }
        }
    }

    /// Gives the kernel frames to receive into, and wakes it where it asked for that.
    fn refill(&mut self) {
        for queue in &mut self.queues {
            queue.port.complete(&mut self.pool);
            queue.port.fill(&mut self.pool, KEEP);
            queue.port.wake();
        }
    }

    /// The work between bursts: expiry, news, commands, counters.
    fn upkeep(&mut self, now: Tick) {
        self.nat.expire(now);
        for (interface, address) in self.nat.used_next_hops() {
            let _ = self.doors.events.send(Event::NeighbourUsed { interface, address });
        }
        while let Some(frame) = self.holding.give_up(now) {
            self.late.drop_packet(DropReason::NeighbourUnresolved);
            self.pool.push(frame);
        }
        while let Some((interface, address)) = self.holding.ask_again(now) {
            let _ = self.doors.events.send(Event::ResolveNeighbour { interface, address });
        }
        self.doors.commands.serve(&self.nat, now);
        if self.doors.counters.is_due(now) {
            self.publish(now);
        }
    }

    /// Publishes the counters, whether due or not.
    pub(crate) fn publish(&mut self, now: Tick) {
        let dropped = self.queues.iter().map(|queue| queue.port.dropped_by_device()).sum();
        self.late.drop_packets(DropReason::TransmitFull, dropped - self.dropped_by_devices);
        self.dropped_by_devices = dropped;
        let frames = self.frames();
        debug_assert_eq!(frames.missing(), 0, "frames in = frames out + frames held: {frames:?}");
        let queues: Vec<_> = self.queues.iter().map(|queue| queue.port.figures()).collect();
        let counters = [self.nat.counters(), &self.late];
        let report =
            Report { counters: &counters, gauges: self.nat.gauges(), frames, queues: &queues, generation: self.generation };
        self.doors.counters.publish(now, &report);
        if self.doors.counters.ports_are_due(now) {
            self.doors.counters.publish_ports(now, &self.nat.port_use());
        }
    }

    /// Where the frames are.
    pub(crate) fn frames(&self) -> FrameFigures {
        let in_flight: usize = self.queues.iter().map(|queue| queue.port.in_flight()).sum();
        let outgoing: usize = self.outboxes.iter().map(Vec::len).sum();
        FrameFigures {
            total: self.frames_total as u64,
            pool: self.pool.len() as u64,
            in_flight: (in_flight + outgoing) as u64,
            held: self.holding.frames() as u64,
        }
    }
}

/// Frames that stay in the pool when fill rings are filled: enough to split a burst of large packets.
const KEEP: usize = 256;
