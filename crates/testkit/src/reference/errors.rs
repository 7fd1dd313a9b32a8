//! ICMP errors: the packet in them is found, and both are translated, inbound, outbound and hairpinned.
//!
//! Sources: RFC 5508, REQ-3 to REQ-7. Invariant: an error changes no session.

use portcullis_nat::policy::{Endpoint, Protocol, Side};
use portcullis_nat::verdict::DropReason;

use super::legal::{Forward, Legal, Received};
use super::read::{Embedded, EmbeddedOther, word};
use super::rewrite::{EmbeddedEnds, Ids, translated_error};
use super::tables::{Session, SessionKey};
use super::{Outcome, ReferenceNat};

impl ReferenceNat {
    /// What may become of an ICMP error.
    pub(super) fn error(
        &self,
        received: Received<'_>,
        (embedded, other): (Option<&Embedded>, Option<&EmbeddedOther>),
        checksum_right: bool,
        external: bool,
    ) -> Legal {
        let shared = external && self.is_shared(received.datagram.destination);
        if !checksum_right {
            let mut legal = Legal::dropped([DropReason::BadIcmpChecksum]);
            legal.drops.extend(embedded.is_none().then_some(DropReason::BadEmbeddedPacket));
            legal.punt = shared;
            return legal;
        }
        if let Some(other) = other {
            return self.other_error(received, other, external);
        }
        let Some(embedded) = embedded else {
            let unreadable = [DropReason::BadEmbeddedPacket, DropReason::IcmpNoSession, DropReason::UnsupportedIcmp];
            return Legal { punt: shared, ..Legal::dropped(unreadable) };
        };
        let mut legal = match (received.interface.side, external) {
            (Side::Outside, _) => self.inbound_error(received, embedded),
            (Side::Inside, false) => self.outbound_error(received, embedded),
            (Side::Inside, true) => self.hairpin_error(received, embedded),
        };
        if received.datagram.destination != embedded.source {
            legal.drops.extend([DropReason::BadEmbeddedPacket, DropReason::IcmpNoSession]);
        }
        legal
    }

    /// No session has sent what the error is about.
    pub(super) fn stray(&self, received: Received<'_>) -> Legal {
        if self.is_shared(received.datagram.destination) {
            return Legal { punt: true, ..Legal::default() };
        }
        Legal::dropped([DropReason::IcmpNoSession])
    }

    /// RFC 5508, REQ-4: about a packet that the NAT has sent out.
    fn inbound_error(&self, received: Received<'_>, embedded: &Embedded) -> Legal {
        let (source, destination) = ends(embedded);
        let remote = query_remote(embedded, destination);
        let Some(session) = self.tables.by_external(embedded.protocol, source, remote) else {
            let Some(guest) = self.tables.late_guest_at(embedded.protocol, source, remote) else { return self.stray(received) };
            let translated = EmbeddedEnds { source: guest.internal, destination };
            let outer = (received.datagram.source, guest.internal.address);
            let legal = self.error_out(received, embedded, outer, translated, Side::Inside, Outcome::Inbound);
            return or(legal, self.stray(received));
        };
        let translated = EmbeddedEnds { source: session.internal, destination };
        let outer = (received.datagram.source, session.internal.address);
        self.error_out(received, embedded, outer, translated, Side::Inside, Outcome::Inbound)
    }

    /// The session that delivered the packet which an inside host complains about, and whether it is there beyond doubt.
    fn delivered(&self, embedded: &Embedded) -> Option<(&Session, bool)> {
        let (source, destination) = ends(embedded);
        self.known((embedded.protocol, destination, query_remote(embedded, source)))
    }

    fn known(&self, key: SessionKey) -> Option<(&Session, bool)> {
        let live = self.tables.sessions.get(&key).map(|session| (session, true));
        live.or_else(|| self.tables.late_guest(key).map(|guest| (guest, false)))
    }

    /// RFC 5508, REQ-5: about a packet that the NAT has let in. The outer source becomes the session's external address.
    fn outbound_error(&self, received: Received<'_>, embedded: &Embedded) -> Legal {
        let Some((session, certain)) = self.delivered(embedded) else { return Legal::dropped([DropReason::IcmpNoSession]) };
        let (source, _) = ends(embedded);
        let translated = EmbeddedEnds { source: same_id(embedded, source, session.external), destination: session.external };
        let outer = (session.external.address, received.datagram.destination);
        let legal = self.error_out(received, embedded, outer, translated, Side::Outside, Outcome::Outbound);
        if certain { legal } else { or(legal, Legal::dropped([DropReason::IcmpNoSession])) }
    }

    /// RFC 5508, REQ-7: about a packet that the NAT has turned round: both translations again.
    fn hairpin_error(&self, received: Received<'_>, embedded: &Embedded) -> Legal {
        let stray = || Legal { drops: vec![DropReason::IcmpNoSession], ..self.stray(received) };
        let (source, destination) = ends(embedded);
        let asked = embedded.request;
        // Who was asked has a session with the asker's external identifier, who was answered one with the address alone.
        let seen_from = if asked { source } else { query_remote(embedded, source) };
        let Some((first, certain)) = self.known((embedded.protocol, destination, seen_from)) else { return stray() };
        let external = if asked { query_remote(embedded, first.external) } else { first.external };
        let live = self.tables.by_external(embedded.protocol, source, external);
        let certain = certain && live.is_some();
        let second = live.or_else(|| self.tables.late_guest_at(embedded.protocol, source, external));
        let Some(second) = second else { return stray() };
        let translated = EmbeddedEnds { source: second.internal, destination: first.external };
        let outer = (first.external.address, second.internal.address);
        let legal = self.error_out(received, embedded, outer, translated, Side::Inside, Outcome::Hairpin);
        if certain { legal } else { or(legal, stray()) }
    }

    fn error_out(
        &self,
        received: Received<'_>,
        embedded: &Embedded,
        outer: (std::net::Ipv4Addr, std::net::Ipv4Addr),
        translated: EmbeddedEnds,
        side: Side,
        outcome: Outcome,
    ) -> Legal {
        let mut legal = Legal::default();
        match self.egress(received, outer.1, side) {
            Err(failure) => self.add(&mut legal, &failure, received),
            Ok(egress) => {
                let mut expected = translated_error(received.datagram, embedded, outer, translated);
                if embedded.header_right && outcome != Outcome::Outbound {
                    let quoted = word(&received.datagram.bytes, embedded.at + 4);
                    let name = (embedded.source, embedded.destination, quoted, embedded.protocol as u8);
                    expected.identification = Some((embedded.at, Ids::OneOf(self.tables.originals(name))));
                }
                let outcome = Outcome::Error(Box::new(outcome));
                legal.forwards.push(Forward { outcome, expected, egress, effects: Vec::new() });
            }
        }
        legal
    }
}

/// What is legal if either may be so.
fn or(mut one: Legal, other: Legal) -> Legal {
    one.drops.extend(other.drops);
    one.punt |= other.punt;
    one
}

fn ends(embedded: &Embedded) -> (Endpoint, Endpoint) {
    let source = Endpoint { address: embedded.source, port: embedded.ports.0 };
    (source, Endpoint { address: embedded.destination, port: embedded.ports.1 })
}

/// The remote end as sessions have it: of an ICMP query without a port.
fn query_remote(embedded: &Embedded, end: Endpoint) -> Endpoint {
    if embedded.protocol == Protocol::Icmp { Endpoint { port: 0, ..end } } else { end }
}

/// The end whose address stays; of an ICMP query with the other end's new identifier.
fn same_id(embedded: &Embedded, end: Endpoint, translated: Endpoint) -> Endpoint {
    if embedded.protocol == Protocol::Icmp { Endpoint { port: translated.port, ..end } } else { end }
}
