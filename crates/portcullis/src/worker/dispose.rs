//! Step 8: carries verdicts out.
//!
//! Knows verdicts, outboxes and the pool, not how a verdict came about. Called for every packet after `process`. Invariants: a frame
//! goes to exactly one place; a packet that cannot go there is dropped under a reason that only the worker gives.

use portcullis_nat::policy::DeviceId;
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_wire::{ethernet, fragment};
use portcullis_xsk::port::Frame;

use super::holding::{Held, NextHop};
use super::waiting::Waiting;
use super::{OUTBOX, Punter, QueuePort, Worker};
use crate::doors::events::Event;
use crate::doors::handoff::Parcel;

/// Packets given to the kernel in a second, and at once: it answers pings with them, no bulk traffic.
const PUNT_RATE: u32 = 2000;

/// Where a packet came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// The device that it was received on, by this worker or by another.
    pub(super) device: DeviceId,
    /// How often it was handed over.
    pub(super) handed: u8,
}

impl<P: QueuePort, K: Punter> Worker<P, K> {
    /// Carries a verdict out. `from` is none for a packet that was held: it is translated, and its way back is of no use any more.
    pub(super) fn dispose(&mut self, mut frame: P::Frame, verdict: Verdict, from: Option<Origin>, now: Tick) {
        match (verdict, from) {
            (Verdict::Transmit(device), _) => self.transmit(device, frame),
            (Verdict::Fragment { device, mtu }, _) => self.split(device, frame, mtu),
            (Verdict::Hold { interface, next_hop }, _) => self.hold((interface, next_hop), frame, now, now),
            (Verdict::Punt, Some(Origin { device, .. })) => {
                let len = frame.packet_len();
                if !(self.may_punt(now) && self.punter.punt(device, &frame.buffer()[..len])) {
                    self.late.drop_packet(DropReason::PuntLimited);
                }
                self.pool.push(frame);
            }
            (Verdict::HandOff { to, errand, .. }, Some(Origin { device, handed })) => {
                let parcel = Parcel { frame, device, errand, handed: handed + 1 };
                if let Err(refused) = self.handoff.send(to, parcel) {
                    self.drop_late(refused.frame, DropReason::HandOffFull);
                }
            }
            (Verdict::AwaitFirst(datagram), Some(Origin { device, handed })) => {
                if let Err(frame) = self.waiting.put(datagram, Waiting { frame, device, handed }) {
                    self.drop_late(frame, DropReason::FragmentsFull);
                }
            }
            (Verdict::Drop(_), _) => self.pool.push(frame),
            (Verdict::Punt | Verdict::HandOff { .. } | Verdict::AwaitFirst(_), None) => {
                debug_assert!(false, "a packet that was held is translated: {verdict:?}");
                self.drop_late(frame, DropReason::PuntLimited);
            }
        }
    }

    /// Drops a packet after its verdict.
    pub(super) fn drop_late(&mut self, frame: P::Frame, reason: DropReason) {
        self.late.drop_packet(reason);
        self.pool.push(frame);
    }

    fn transmit(&mut self, device: DeviceId, frame: P::Frame) {
        let queue = self.transmitter.get(usize::from(device.0)).copied().flatten();
        match queue.map(|queue| &mut self.outboxes[queue]) {
            Some(outbox) if outbox.len() < OUTBOX => outbox.push(frame),
            _ => self.drop_late(frame, DropReason::TransmitFull),
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

    /// Lets a packet wait for its next hop.
    pub(super) fn hold(&mut self, next_hop: NextHop, frame: P::Frame, since: Tick, now: Tick) {
        match self.holding.hold(next_hop, frame, since, now) {
            Held::Waits => {}
            Held::WaitsAndAsks => {
                let (interface, address) = next_hop;
                // A full queue of events is told again by the next packet.
                let _ = self.doors.events.send(Event::ResolveNeighbour { interface, address });
            }
            Held::Refused(frame) => self.drop_late(frame, DropReason::NeighbourUnresolved),
        }
    }

    fn may_punt(&mut self, now: Tick) -> bool {
        if now.since(self.punt_second) >= 1000 {
            (self.punt_second, self.punts) = (now, 0);
        }
        self.punts += 1;
        self.punts <= PUNT_RATE
    }
}
