//! Steps 4 to 7 of protocols without ports (GRE, ESP, SCTP, ...), which are translated by address where that is unambiguous.
//!
//! Knows the order of the checks; the table is `others`. Every fragment is translated by itself: each carries the protocol and both addresses.
//! Invariants: everything that can refuse the packet comes before the first change to the table; what no translation names is never
//! forwarded. The owner is the remote address's, whichever way a packet goes, so that one worker knows who speaks with it. No RFC says how; RFC
//! 4787 is followed where it can be. Tests: `tests/other_protocols.rs`.

use core::net::Ipv4Addr;

use portcullis_wire::checksum::Delta;
use portcullis_wire::embedded::Embedded;
use portcullis_wire::packet::{Fragment, Layout};
use portcullis_wire::pseudo;

use crate::arrival::Arrival;
use crate::counters::Counter;
use crate::icmp::{End, Outer};
use crate::leave;
use crate::nat::{Decision, Nat, Way};
use crate::others::Pair;
use crate::packet::Packet;
use crate::path::Path;
use crate::policy::{Endpoint, Side};
use crate::refusal::{self, Refusal};
use crate::tcp::Direction;
use crate::time::Tick;
use crate::translate_error::About;
use crate::verdict::{DropReason, Errand, HandOffCause};

/// A translation to use: one that is there, or one that is made once nothing can refuse the packet any more, under that slot's address.
#[derive(Clone, Copy, Debug)]
enum Chosen {
    Found(u32),
    Planned(u16),
}

impl Nat<'_> {
    /// Whether a protocol is translated by address.
    #[inline]
    pub(crate) fn is_other(&self, protocol: u8) -> bool {
        self.policy.other_protocols.contains(protocol)
    }

    /// The way of a packet of such a protocol, whole or a fragment.
    pub(crate) fn translate_other(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        match (arrival.side, self.state.slot_of(arrival.destination)) {
            (Side::Inside, None) => self.other_outbound(packet, arrival, now),
            // Nothing in it says for which host behind the address it is.
            (Side::Inside, slot @ Some(_)) => Err(self.unclaimed(DropReason::NoMapping, slot)),
            (Side::Outside, slot @ Some(_)) => self.other_inbound(packet, arrival, slot, now),
            (Side::Outside, None) => Err(Refusal::Drop(DropReason::WrongSide)),
        }
    }

    fn other_outbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        self.own_remote(arrival.destination, HandOffCause::OtherProtocol)?;
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let path = leave::path_towards(&mut self.paths, &self.network, arrival.destination, Side::Outside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        let pair = Pair { protocol: arrival.layout.protocol(), ours: arrival.source, remote: arrival.destination };
        let chosen = self.choose_other(pair, now)?;
        let number = match chosen {
            Chosen::Found(number) => number,
            Chosen::Planned(slot) => {
                self.state.others.insert(pair, slot, now).map_err(|_| self.out_of(DropReason::OtherProtocolsFull))?
            }
        };
        self.state.others.advance(number, Direction::Outbound, self.policy.inbound_refresh, now);
        let external = self.state.others.get(number).external();
        self.send_other(packet, arrival, (external, arrival.destination), &path, Way::Outbound)
    }

    fn other_inbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, slot: Option<u16>, now: Tick) -> Decision {
        self.own_remote(arrival.source, HandOffCause::OtherProtocol)?;
        let pair = Pair { protocol: arrival.layout.protocol(), ours: arrival.destination, remote: arrival.source };
        let Some(number) = self.state.others.inbound(pair, now) else {
            return Err(self.unclaimed(DropReason::NoMapping, slot));
        };
        let internal = self.state.others.get(number).internal();
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let path = leave::path_towards(&mut self.paths, &self.network, internal, Side::Inside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        self.state.others.advance(number, Direction::Inbound, self.policy.inbound_refresh, now);
        self.send_other(packet, arrival, (arrival.source, internal), &path, Way::Inbound)
    }

    /// Step 4: all that is said with a remote address is one worker's.
    fn own_remote(&self, remote: Ipv4Addr, cause: HandOffCause) -> Result<(), Refusal> {
        if self.has_company() { self.own(self.owners.of_remote(remote), cause, Errand::Whole) } else { Ok(()) }
    }

    /// The translation that there is, or the address for a new one. A host begins its search at the same address on all workers, so that it
    /// nearly always has the same one towards all remotes (RFC 4787, REQ-2).
    fn choose_other(&mut self, pair: Pair, now: Tick) -> Result<Chosen, Refusal> {
        if let Some(number) = self.state.others.outbound(pair, now) {
            return Ok(Chosen::Found(number));
        }
        let draw = self.choice.keys.hash_one(pair.ours.to_bits());
        let chosen = self.state.others.choose(pair, draw, now);
        chosen.map(Chosen::Planned).map_err(|reason| self.out_of(reason))
    }

    fn out_of(&self, reason: DropReason) -> Refusal {
        refusal::of_outbound(reason, &self.policy)
    }

    /// Rewrites, and sends on its way. The identification stays: no other host has that external address towards that remote.
    fn send_other(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        (source, destination): (Ipv4Addr, Ipv4Addr),
        path: &Path,
        way: Way,
    ) -> Decision {
        rewrite(packet.frame_mut(), &arrival.layout, source, destination);
        if arrival.layout.fragment() != Fragment::Whole {
            self.counters.count(Counter::Fragments);
        }
        self.send(packet, path, way)
    }

    /// The way of an ICMP error from outside about a packet of such a protocol, from the address of that slot.
    pub(crate) fn error_inbound_about_other(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        embedded: &Embedded,
        now: Tick,
    ) -> Decision {
        if embedded.src() != arrival.destination {
            return Err(Refusal::Drop(DropReason::BadEmbeddedPacket));
        }
        self.own_remote(embedded.dst(), HandOffCause::IcmpError)?;
        let pair = Pair { protocol: embedded.protocol(), ours: embedded.src(), remote: embedded.dst() };
        let number = self.state.others.inbound(pair, now).ok_or(DropReason::IcmpNoSession)?;
        let internal = Endpoint { address: self.state.others.get(number).internal(), port: 0 };
        let outer = Outer { source: arrival.source, destination: internal.address };
        let about = About { embedded, original_id: None };
        self.send_error(packet, arrival, outer, Way::Inbound, &[(End::Source, internal)], &about)
    }

    /// The same from inside, about a packet that came from its receiver.
    pub(crate) fn error_outbound_about_other(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        embedded: &Embedded,
        now: Tick,
    ) -> Decision {
        self.own_remote(embedded.src(), HandOffCause::IcmpError)?;
        if embedded.src() != arrival.destination {
            return Err(Refusal::Drop(DropReason::BadEmbeddedPacket));
        }
        let pair = Pair { protocol: embedded.protocol(), ours: embedded.dst(), remote: embedded.src() };
        let number = self.state.others.outbound(pair, now).ok_or(DropReason::IcmpNoSession)?;
        let external = Endpoint { address: self.state.others.get(number).external(), port: 0 };
        let outer = Outer { source: external.address, destination: arrival.destination };
        let about = About { embedded, original_id: None };
        self.send_error(packet, arrival, outer, Way::Outbound, &[(End::Destination, external)], &about)
    }
}

/// Gives a packet its new addresses, and its transport header the checksum over them where there is one.
fn rewrite(frame: &mut [u8], layout: &Layout, source: Ipv4Addr, destination: Ipv4Addr) {
    let Some(header) = layout.ipv4_mut(frame) else { return };
    let change = Delta::of_address(header.src(), source).and(Delta::of_address(header.dst(), destination));
    crate::rewrite::addresses(header, source, destination);
    if layout.fragment() != Fragment::Later {
        pseudo::mend(layout.protocol(), layout.payload_mut(frame), change);
    }
}
