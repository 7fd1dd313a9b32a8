//! The worker's work between bursts: what the control plane published, what has waited too long, commands, counters.
//!
//! Knows the doors and the stores of what waits. Called in each round that found no packet; else when time has gone on, while the
//! sweep has more to do, and while a dump is under way. Invariant: each call does a bounded amount of work, but for the
//! moment when new rules or a new network are adopted.

use portcullis_nat::Packet;
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_xsk::port::Frame;

use super::dispose::Origin;
use super::holding::NextHop;
use super::{Punter, QueuePort, Worker};
use crate::doors::counters::{FrameFigures, QueueFigures, Report};
use crate::doors::events::Event;

impl<P: QueuePort, K: Punter> Worker<P, K> {
    /// Adopts what the control plane has published; packets that waited for the network may go on.
    pub(super) fn adopt(&mut self, now: Tick) {
        let Some(snapshot) = self.doors.policy.newer() else { return };
        self.generation = snapshot.generation;
        self.nat.adopt_policy(snapshot.policy.clone(), now);
        self.nat.adopt_network(snapshot.network.clone());
        let waiting: Vec<_> = self.holding.release().collect();
        for (next_hop, since, frame) in waiting {
            self.readdress(next_hop, frame, since, now);
        }
        self.give_up_fragments(now);
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

    /// Expiry, news, commands, counters.
    pub(super) fn upkeep(&mut self, now: Tick) {
        self.kept_up = now;
        self.sweeps_on = self.nat.expire_some(now);
        self.give_up_fragments(now);
        self.answer_due(now);
        for (interface, address) in self.nat.used_next_hops() {
            let _ = self.doors.events.send(Event::NeighbourUsed { interface, address });
        }
        while let Some(frame) = self.holding.give_up(now) {
            self.drop_late(frame, DropReason::NeighbourUnresolved);
        }
        while let Some((interface, address)) = self.holding.ask_again(now) {
            let _ = self.doors.events.send(Event::ResolveNeighbour { interface, address });
        }
        self.answers_on = self.doors.commands.serve(&self.nat, now);
        if self.doors.counters.is_due(now) {
            self.publish(now);
        }
    }

    /// Sends the ICMP errors that have waited for their time, as long as there are frames for them.
    fn answer_due(&mut self, now: Tick) {
        while self.nat.is_answer_due(now) {
            let Some(mut frame) = self.pool.pop() else { return };
            let Some((len, device)) = self.nat.answer_due(frame.buffer(), now) else {
                self.pool.push(frame);
                return;
            };
            frame.set_packet_len(len);
            self.dispose(frame, Verdict::Transmit(device), None, now);
        }
    }

    /// Lets go of the fragments whose first one did not come.
    pub(super) fn give_up_fragments(&mut self, now: Tick) {
        while let Some(datagram) = self.nat.take_given_up() {
            while let Some(mut waiting) = self.waiting.take(datagram) {
                let len = waiting.frame.packet_len();
                let mut packet = Packet::released(waiting.frame.buffer(), len, waiting.handed);
                let verdict = self.nat.give_up(&mut packet);
                let len = packet.len;
                waiting.frame.set_packet_len(len);
                let from = Origin { device: waiting.device, handed: waiting.handed };
                self.dispose(waiting.frame, verdict, Some(from), now);
            }
        }
    }

    /// Publishes the counters, whether due or not.
    pub(crate) fn publish(&mut self, now: Tick) {
        let dropped = self.queues.iter().map(|queue| queue.port.dropped_by_device()).sum();
        self.late.drop_packets(DropReason::TransmitFull, dropped - self.dropped_by_devices);
        self.dropped_by_devices = dropped;
        let frames = self.frames();
        debug_assert_eq!(frames.missing(), 0, "frames in = frames out + frames held: {frames:?}");
        let figures = self.queues.iter().map(|queue| queue.port.figures()).zip(&self.placed);
        let queues: Vec<_> = figures
            .map(|(figures, placed)| QueueFigures { received: placed.received, misplaced: placed.misplaced, ..figures })
            .collect();
        let handed = self.handoff.figures();
        let report = Report {
            counters: &[self.nat.counters(), &self.late],
            gauges: self.nat.gauges(),
            frames,
            queues: &queues,
            handed_in: handed.packets_got,
            refused: handed.packets_refused,
            generation: self.generation,
        };
        self.doors.counters.publish(now, &report);
        if self.doors.counters.ports_are_due(now) {
            self.doors.counters.publish_ports(now, &self.nat.port_use());
        }
    }

    /// Where the frames are.
    pub(crate) fn frames(&self) -> FrameFigures {
        let in_flight: usize = self.queues.iter().map(|queue| queue.port.in_flight()).sum();
        let outgoing: usize = self.outboxes.iter().map(Vec::len).sum();
        let handed = self.handoff.figures();
        FrameFigures {
            total: self.frames_total as u64,
            got: handed.frames_got,
            sent: handed.frames_sent,
            pool: self.pool.len() as u64,
            in_flight: (in_flight + outgoing) as u64,
            held: (self.holding.frames() + self.waiting.frames()) as u64,
        }
    }
}
