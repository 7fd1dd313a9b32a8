//! Steps 3 to 7 of ICMP errors: the quoted packet names the session, and is translated back with the addresses around it.
//!
//! Knows the order of the checks; `icmp` does the bytes. Invariant: an error neither makes, refreshes nor ends a session (RFC 4787,
//! REQ-12; RFC 5508, REQ-6). Its source is not asked: routers on the way send errors (RFC 4787, REQ-12a).

use portcullis_wire::embedded::Embedded;

use crate::arrival::Arrival;
use crate::counters::Counter;
use crate::icmp::{self, End, Outer, Quoted};
use crate::identities::Name;
use crate::leave;
use crate::nat::{Decision, Nat, Way};
use crate::packet::Packet;
use crate::policy::{Endpoint, Protocol, Side};
use crate::refusal::Refusal;
use crate::table::Entry;
use crate::time::Tick;
use crate::verdict::{DropReason, Errand, HandOffCause};

/// The packet that an error is about, and the identification that its sender gave it, where that is known to be another one.
pub(crate) struct About<'q> {
    pub(crate) embedded: &'q Embedded,
    pub(crate) original_id: Option<u16>,
}

impl<'q> From<&'q Quoted> for About<'q> {
    fn from(quoted: &'q Quoted) -> Self {
        Self { embedded: &quoted.embedded, original_id: quoted.original_id }
    }
}

impl Nat<'_> {
    /// The way of an ICMP error.
    pub(crate) fn translate_error(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        let slot = self.state.slot_of(arrival.destination);
        match (arrival.side, slot) {
            (Side::Inside, None) => self.error_outbound(packet, arrival, now),
            (Side::Inside, Some(slot)) => self.error_hairpin(packet, arrival, slot, now),
            (Side::Outside, Some(slot)) => self.error_inbound(packet, arrival, slot, now).map_err(|refusal| match refusal {
                Refusal::Drop(reason) => self.unclaimed(reason, Some(slot)),
                other => other,
            }),
            (Side::Outside, None) => Err(Refusal::Drop(DropReason::WrongSide)),
        }
    }

    /// About a packet that a session sent out: the quoted source is the session's external endpoint (RFC 5508, REQ-4).
    fn error_inbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, slot: u16, now: Tick) -> Decision {
        let embedded = icmp::find(packet.frame(), &arrival.layout)?;
        if self.is_other(embedded.protocol()) {
            return self.error_inbound_about_other(packet, arrival, &embedded, now);
        }
        let quoted = self.with_id(icmp::read(packet.frame(), &arrival.layout, embedded, End::Source)?, now);
        if quoted.source.address != arrival.destination {
            return Err(Refusal::Drop(DropReason::BadEmbeddedPacket));
        }
        let ends = (quoted.source, quoted.destination);
        self.own_external(slot, quoted.protocol, ends, HandOffCause::IcmpError, Errand::Whole)?;
        let internal = self.internal_behind(&quoted, slot, now)?;
        let outer = Outer { source: arrival.source, destination: internal.address };
        self.send_error(packet, arrival, outer, Way::Inbound, &[(End::Source, internal)], &About::from(&quoted))
    }

    /// About a packet that came in through a session: the quoted destination is its internal endpoint (RFC 5508, REQ-5).
    fn error_outbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        let embedded = icmp::find(packet.frame(), &arrival.layout)?;
        if self.is_other(embedded.protocol()) {
            return self.error_outbound_about_other(packet, arrival, &embedded, now);
        }
        let quoted = icmp::read(packet.frame(), &arrival.layout, embedded, End::Destination)?;
        self.own_receiver(&quoted)?;
        if quoted.source.address != arrival.destination {
            return Err(Refusal::Drop(DropReason::BadEmbeddedPacket));
        }
        let external = self.external_before(&quoted, now)?;
        let outer = Outer { source: external.address, destination: arrival.destination };
        self.send_error(packet, arrival, outer, Way::Outbound, &[(End::Destination, external)], &About::from(&quoted))
    }

    /// About a packet that was hairpinned here: both of its endpoints go back to what its sender knows (RFC 5508, REQ-7). The receiver's
    /// owner knows the external endpoint that it was sent to, the sender's owner who sent it.
    fn error_hairpin(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, slot: u16, now: Tick) -> Decision {
        let embedded = icmp::find(packet.frame(), &arrival.layout)?;
        let quoted = self.with_id(icmp::read(packet.frame(), &arrival.layout, embedded, End::Destination)?, now);
        let external = if let Errand::HairpinError { external } = packet.errand {
            external
        } else {
            self.own_receiver(&quoted)?;
            self.external_before(&as_hairpinned(&quoted), now)?
        };
        let back = between_halves(&quoted, external);
        if back.source.address != arrival.destination {
            return Err(Refusal::Drop(DropReason::BadEmbeddedPacket));
        }
        let (ends, errand) = ((back.source, back.destination), Errand::HairpinError { external });
        self.own_external(slot, back.protocol, ends, HandOffCause::IcmpError, errand)?;
        let internal = self.internal_behind(&back, slot, now)?;
        let outer = Outer { source: external.address, destination: internal.address };
        let changes = [(End::Destination, external), (End::Source, internal)];
        self.send_error(packet, arrival, outer, Way::Hairpin, &changes, &About::from(&quoted))
    }

    /// A quoted packet with the identification that it was sent with, if it was given another here.
    fn with_id(&self, quoted: Quoted, now: Tick) -> Quoted {
        let Quoted { embedded, protocol, source, destination, .. } = quoted;
        let name = Name { source: source.address, destination: destination.address, protocol: protocol as u8 };
        Quoted { original_id: self.identities.original(name, embedded.id(), now), ..quoted }
    }

    /// Step 4 of an error about a packet that a subscriber received.
    fn own_receiver(&self, quoted: &Quoted) -> Result<(), Refusal> {
        if !self.has_company() {
            return Ok(());
        }
        self.own(self.owners.of_subscriber(quoted.destination.address), HandOffCause::IcmpError, Errand::Whole)
    }

    /// The internal endpoint that sent a packet which was seen outside as quoted, from the address of that slot.
    fn internal_behind(&mut self, quoted: &Quoted, slot: u16, now: Tick) -> Result<Endpoint, DropReason> {
        let Quoted { protocol, source, destination, .. } = *quoted;
        let at = (slot, source.port);
        let session = self.state.inbound(protocol, at, destination, now, &mut self.counters).map(Entry::Session);
        let entry = session.or_else(|| self.state.bare_at(protocol, at, now, &mut self.counters).map(Entry::Bare));
        entry.map(|entry| self.internal_of(entry)).ok_or(DropReason::IcmpNoSession)
    }

    /// The external endpoint to which a packet was sent that was seen inside as quoted.
    fn external_before(&mut self, quoted: &Quoted, now: Tick) -> Result<Endpoint, DropReason> {
        let Quoted { protocol, source, destination, .. } = *quoted;
        let session = self.state.outbound(protocol, destination, source, now, &mut self.counters).map(Entry::Session);
        let entry = session.or_else(|| self.state.bare_of(protocol, destination, now, &mut self.counters).map(Entry::Bare));
        entry.map(|entry| self.external_of(entry)).ok_or(DropReason::IcmpNoSession)
    }

    /// Translates the error as it is now known to be, and sends it on its way.
    pub(crate) fn send_error(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        outer: Outer,
        way: Way,
        changes: &[(End, Endpoint)],
        about: &About<'_>,
    ) -> Decision {
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let side = match way {
            Way::Outbound => Side::Outside,
            Way::Inbound | Way::Hairpin => Side::Inside,
        };
        let path = leave::path_towards(&mut self.paths, &self.network, outer.destination, side)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        for &(end, endpoint) in changes {
            icmp::rewrite_quoted(packet.frame_mut(), &arrival.layout, about.embedded, end, endpoint);
        }
        icmp::restore_id(packet.frame_mut(), &arrival.layout, about.embedded, about.original_id);
        if let Some(header) = arrival.layout.ipv4_mut(packet.frame_mut()) {
            crate::rewrite::addresses(header, outer.source, outer.destination);
        }
        self.counters.count(Counter::IcmpErrorsTranslated);
        self.send(packet, &path, way)
    }
}

/// A quoted packet that was hairpinned, with the source by which its receiver's session is found: of a query the sender's identifier, which
/// the receiver saw (`Tuple::hairpin_outbound`).
fn as_hairpinned(quoted: &Quoted) -> Quoted {
    match quoted.protocol {
        Protocol::Icmp if !quoted.is_answer => {
            Quoted { source: Endpoint { port: quoted.destination.port, ..quoted.source }, ..*quoted }
        }
        Protocol::Icmp | Protocol::Tcp | Protocol::Udp => *quoted,
    }
}

/// The same, as it was between its two halves: to the external endpoint that it came in by. Of a query the sender's end has the identifier that
/// is quoted, and the receiver's one only where it answers, as `Tuple::hairpin_inbound` has it.
fn between_halves(quoted: &Quoted, external: Endpoint) -> Quoted {
    match quoted.protocol {
        Protocol::Tcp | Protocol::Udp => Quoted { destination: external, ..*quoted },
        Protocol::Icmp => {
            let source = Endpoint { port: quoted.destination.port, ..quoted.source };
            let destination = if quoted.is_answer { external } else { Endpoint { port: 0, ..external } };
            Quoted { source, destination, ..*quoted }
        }
    }
}
