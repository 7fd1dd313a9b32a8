//! Step 3 for packets with a transport header: which flow they belong to, and what they do to a TCP session.
//!
//! Knows one packet's headers. Source: RFC 5508 section 3 for the identifier in a port's place.

use portcullis_wire::icmpv4::{self, Query};
use portcullis_wire::packet::Transport;
use portcullis_wire::tcp::TcpFlags;

use crate::arrival::Arrival;
use crate::policy::{Endpoint, Protocol};
use crate::verdict::DropReason;

/// The endpoints of a packet as received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuple {
    pub(crate) protocol: Protocol,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    /// The identifier of an ICMP query: the port of the endpoint that is translated.
    identifier: u16,
    /// Whether it may begin a session.
    pub(crate) opens: bool,
    /// Of TCP.
    pub(crate) flags: TcpFlags,
}

impl Tuple {
    /// Source and destination as a session from inside has them: internal and remote.
    pub(crate) fn outbound(&self) -> (Endpoint, Endpoint) {
        match self.protocol {
            Protocol::Icmp => (Endpoint { port: self.identifier, ..self.source }, self.destination),
            Protocol::Tcp | Protocol::Udp => (self.source, self.destination),
        }
    }

    /// The same for a packet to an external address. A hairpinned query's session at its receiver is towards the sender's external identifier,
    /// which the receiver sees and answers with.
    pub(crate) fn hairpin_outbound(&self) -> (Endpoint, Endpoint) {
        let (internal, remote) = self.outbound();
        if self.is_answer() { (internal, Endpoint { port: self.identifier, ..remote }) } else { (internal, remote) }
    }

    /// External and remote endpoint between the two halves of a hairpin from `sender`. A query's identifier names the mapping that it is for,
    /// and its answer's the one that asked.
    pub(crate) fn hairpin_inbound(&self, sender: Endpoint) -> (Endpoint, Endpoint) {
        let (external, _) = self.inbound();
        (external, if self.is_answer() { Endpoint { port: 0, ..sender } } else { sender })
    }

    /// Whether it answers an ICMP query.
    fn is_answer(&self) -> bool {
        self.protocol == Protocol::Icmp && !self.opens
    }

    /// Destination and source as a session from outside has them: external and remote.
    pub(crate) fn inbound(&self) -> (Endpoint, Endpoint) {
        match self.protocol {
            Protocol::Icmp => (Endpoint { port: self.identifier, ..self.destination }, self.source),
            Protocol::Tcp | Protocol::Udp => (self.destination, self.source),
        }
    }
}

/// The flow of a whole packet or a first fragment. **Errors:** what the NAT does not translate.
#[inline]
pub(crate) fn identify(frame: &[u8], arrival: &Arrival) -> Result<Tuple, DropReason> {
    let layout = &arrival.layout;
    let endpoints = |source, destination| {
        (Endpoint { address: arrival.source, port: source }, Endpoint { address: arrival.destination, port: destination })
    };
    match layout.transport() {
        Transport::Udp => {
            let ports = layout.ports(frame).ok_or(DropReason::Truncated)?;
            let (source, destination) = endpoints(ports.src(), ports.dst());
            Ok(Tuple { protocol: Protocol::Udp, source, destination, identifier: 0, opens: true, flags: TcpFlags(0) })
        }
        Transport::Tcp => {
            let header = layout.tcp(frame).ok_or(DropReason::Truncated)?;
            let (source, destination) = endpoints(header.src_port(), header.dst_port());
            let flags = header.flags();
            Ok(Tuple { protocol: Protocol::Tcp, source, destination, identifier: 0, opens: flags.is_opening(), flags })
        }
        Transport::IcmpQuery(query) => {
            let header = layout.icmp(frame).ok_or(DropReason::Truncated)?;
            if !is_translated(header.kind()) {
                return Err(DropReason::UnsupportedIcmp);
            }
            let (source, destination) = endpoints(0, 0);
            let (identifier, opens) = (header.identifier(), query == Query::Request);
            Ok(Tuple { protocol: Protocol::Icmp, source, destination, identifier, opens, flags: TcpFlags(0) })
        }
        Transport::OtherIcmp(_) => Err(DropReason::UnsupportedIcmp),
        Transport::IcmpError | Transport::Other(_) | Transport::None => Err(DropReason::UnsupportedProtocol),
    }
}

/// Echo and timestamp. "A NAT device SHOULD NOT [handle] Source Quench and Information messages" (RFC 5508, REQ-10c).
const fn is_translated(kind: u8) -> bool {
    matches!(kind, icmpv4::ECHO_REQUEST | icmpv4::ECHO_REPLY | icmpv4::TIMESTAMP_REQUEST | icmpv4::TIMESTAMP_REPLY)
}
