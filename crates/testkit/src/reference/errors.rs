//! ICMP errors: the packet in them is found, and both are translated, inbound, outbound and hairpinned.
//!
//! Sources: RFC 5508, REQ-3 to REQ-7. Invariant: an error changes no session and no bare mapping.

use portcullis_nat::policy::{Endpoint, Protocol, Side};
use portcullis_nat::verdict::DropReason;

use super::legal::{Forward, Legal, Received};
use super::read::{Embedded, EmbeddedOther, word};
use super::rewrite::{EmbeddedEnds, Ids, translated_error};
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
        let sender = self.sender(embedded.protocol, source, query_remote(embedded, destination));
        let Some((internal, certain)) = sender else { return self.stray(received) };
        let translated = EmbeddedEnds { source: internal, destination };
        let outer = (received.datagram.source, internal.address);
        let legal = self.error_out(received, embedded, outer, translated, Side::Inside, Outcome::Inbound);
        if certain { legal } else { or(legal, self.stray(received)) }
    }

    /// The internal endpoint that has sent what a remote got, by a session or else by a bare mapping; and whether it is there beyond doubt.
    fn sender(&self, protocol: Protocol, external: Endpoint, remote: Endpoint) -> Option<(Endpoint, bool)> {
        if let Some(session) = self.tables.by_external(protocol, external, remote) {
            return Some((session.internal, true));
        }
        if self.is_bare(protocol) {
            return self.tables.bare_at(external).map(|mapping| (mapping.internal, true));
        }
        self.tables.late_guest_at(protocol, external, remote).map(|guest| (guest.internal, false))
    }

    /// The external endpoint that a packet came to which an internal one got; and whether it is there beyond doubt.
    fn receiver(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Option<(Endpoint, bool)> {
        let key = (protocol, internal, remote);
        if let Some(session) = self.tables.sessions.get(&key) {
            return Some((session.external, true));
        }
        if self.is_bare(protocol) {
            return self.tables.bare_of(internal).map(|mapping| (mapping.external, true));
        }
        self.tables.late_guest(key).map(|guest| (guest.external, false))
    }

    /// RFC 5508, REQ-5: about a packet that the NAT has let in. The outer source becomes the external address that it came to.
    fn outbound_error(&self, received: Received<'_>, embedded: &Embedded) -> Legal {
        let (source, destination) = ends(embedded);
        let receiver = self.receiver(embedded.protocol, destination, query_remote(embedded, source));
        let Some((external, certain)) = receiver else { return Legal::dropped([DropReason::IcmpNoSession]) };
        let translated = EmbeddedEnds { source: same_id(embedded, source, external), destination: external };
        let outer = (external.address, received.datagram.destination);
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
        let Some((first, certain)) = self.receiver(embedded.protocol, destination, seen_from) else { return stray() };
        let external = if asked { query_remote(embedded, first) } else { first };
        let Some((second, as_certain)) = self.sender(embedded.protocol, source, external) else { return stray() };
        let translated = EmbeddedEnds { source: second, destination: first };
        let outer = (first.address, second.address);
        let legal = self.error_out(received, embedded, outer, translated, Side::Inside, Outcome::Hairpin);
        if certain && as_certain { legal } else { or(legal, stray()) }
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
