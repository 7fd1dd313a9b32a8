//! From inside to an external address: out and in again, in two halves that may be two workers'.
//!
//! Knows the order of the checks. The first half is the sender's owner's, the second the receiver's; where both are this worker, they
//! follow each other. Invariant: the first half is kept whatever the second one says, as if the receiver were behind another NAT
//! (docs/adr/0006); the second half leaves nothing behind when it refuses. Sources: RFC 4787 REQ-9, RFC 5382 REQ-8, RFC 7857 section 12.

use crate::arrival::Arrival;
use crate::flow::Tuple;
use crate::leave;
use crate::nat::{Decision, Nat, Way};
use crate::packet::Packet;
use crate::policy::{Endpoint, Side};
use crate::refusal::Refusal;
use crate::rewrite::Rewrite;
use crate::tcp::Direction;
use crate::time::Tick;
use crate::verdict::{DropReason, Errand, HandOffCause};

impl Nat<'_> {
    /// What is left to do of a packet from inside to an external address.
    pub(crate) fn translate_hairpin(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        tuple: &Tuple,
        slot: u16,
        now: Tick,
    ) -> Decision {
        match packet.errand {
            Errand::Hairpin { sender } => self.hairpin_in(packet, arrival, tuple, slot, sender, now),
            Errand::Stray => Err(self.stray(tuple, slot)),
            Errand::Whole | Errand::Sequenced | Errand::Released | Errand::HairpinError { .. } => {
                self.hairpin_out(packet, arrival, tuple, slot, now)
            }
        }
    }

    /// The first half: out, as to any remote.
    fn hairpin_out(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, tuple: &Tuple, slot: u16, now: Tick) -> Decision {
        self.own_subscriber(arrival)?;
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let (internal, receiver) = tuple.hairpin_outbound();
        let out = match self.choose_outbound(tuple, (internal, receiver), now) {
            Ok(out) => out,
            Err(Refusal::Drop(DropReason::TcpNotSyn)) => return Err(self.stray(tuple, slot)),
            Err(Refusal::Drop(reason)) => return Err(self.unclaimed(reason, Some(slot))),
            Err(refusal) => return Err(refusal),
        };
        let entry = self.settle(out, receiver, now)?;
        self.advance(entry, Direction::Outbound, tuple.flags, now);
        let sender = self.external_of(entry);
        let (external, remote) = tuple.hairpin_inbound(sender);
        self.own_external(slot, tuple.protocol, (external, remote), HandOffCause::Hairpin, Errand::Hairpin { sender })?;
        self.hairpin_in(packet, arrival, tuple, slot, sender, now)
    }

    /// The second half: in, from the sender's external endpoint (RFC 4787, REQ-9a).
    fn hairpin_in(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        tuple: &Tuple,
        slot: u16,
        sender: Endpoint,
        now: Tick,
    ) -> Decision {
        let (external, remote) = tuple.hairpin_inbound(sender);
        let back = match self.choose_inbound(tuple, external, remote, slot, now) {
            Ok(back) => back,
            Err(reason) => return Err(self.unclaimed(reason, Some(slot))),
        };
        let internal = self.internal_of_chosen(&back);
        let path = leave::path_towards(&mut self.paths, &self.network, internal.address, Side::Inside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        let entry = self.settle(back, remote, now)?;
        self.advance(entry, Direction::Inbound, tuple.flags, now);
        let back = (self.internal_of(entry), self.external_of(entry));
        let rewrite = Rewrite::hairpin(tuple.outbound().0, sender, back);
        self.finish(packet, arrival, &rewrite, &path, (Way::Hairpin, now))
    }

    /// TCP of no session that opens none: a connection of the host's, which shares the address, looks from here like one that never
    /// began. What nothing claims is the host's.
    fn stray(&mut self, tuple: &Tuple, slot: u16) -> Refusal {
        if self.unclaimed(DropReason::NoMapping, Some(slot)) != Refusal::Punt {
            return Refusal::Drop(DropReason::TcpNotSyn);
        }
        let external = tuple.destination;
        let owner = self.owners.of_external(external.address, external.port);
        let is_claimed = self.planner().is_claimed(tuple.protocol, external, slot);
        match self.own(owner, HandOffCause::Hairpin, Errand::Stray) {
            _ if is_claimed => Refusal::Drop(DropReason::TcpNotSyn),
            Ok(()) => Refusal::Punt,
            Err(hand_off) => hand_off,
        }
    }
}
