//! ICMP errors on their way through: the quoted packet is translated back to what its sender sent.
//!
//! Knows where an error's quoted headers are; finds no sessions. Invariant: quoted transport checksums are not judged, only adjusted;
//! padding and extensions behind the quoted datagram stay as they are (RFC 4884). Source: RFC 5508, REQ-3 to REQ-5.

use core::net::Ipv4Addr;

use portcullis_wire::embedded::{self, Embedded};
use portcullis_wire::icmpv4::{self, IcmpHeader, Query};
use portcullis_wire::packet::{Fragment, Layout, Transport};

use crate::policy::{Endpoint, Protocol};
use crate::verdict::DropReason;

/// The packet that an error quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted {
    pub(crate) embedded: Embedded,
    pub(crate) protocol: Protocol,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    /// Whether it answers an ICMP query.
    pub(crate) is_answer: bool,
    /// The identification that its sender gave it, where that is known to be another one.
    pub(crate) original_id: Option<u16>,
}

/// Which of the quoted endpoints changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

/// Finds the packet that the error in `frame` quotes, whatever its protocol.
pub(crate) fn find(frame: &[u8], layout: &Layout) -> Result<Embedded, DropReason> {
    let message = layout.payload(frame);
    if layout.fragment() != Fragment::Whole || !icmpv4::checksum_ok(message) {
        return Err(DropReason::BadIcmpChecksum);
    }
    let header = IcmpHeader::from_prefix(message).ok_or(DropReason::BadEmbeddedPacket)?;
    if !matches!(header.kind(), icmpv4::DESTINATION_UNREACHABLE | icmpv4::TIME_EXCEEDED | icmpv4::PARAMETER_PROBLEM) {
        return Err(DropReason::UnsupportedIcmp);
    }
    embedded::parse_embedded(embedded::quoted(message)).map_err(|_| DropReason::BadEmbeddedPacket)
}

/// Reads the endpoints of the packet that was found in `frame`. The quoted identifier of an ICMP query is the port of the end that `ours` names.
pub(crate) fn read(frame: &[u8], layout: &Layout, embedded: Embedded, ours: End) -> Result<Quoted, DropReason> {
    let quoted = embedded::quoted(layout.payload(frame));
    let mut is_answer = false;
    let (protocol, source_port, destination_port) = match embedded.transport() {
        Transport::Tcp | Transport::Udp => {
            let ports = embedded.ports(quoted).ok_or(DropReason::BadEmbeddedPacket)?;
            let protocol = Protocol::from_number(embedded.protocol()).ok_or(DropReason::BadEmbeddedPacket)?;
            (protocol, ports.src(), ports.dst())
        }
        Transport::IcmpQuery(query) => {
            is_answer = query == Query::Reply;
            let identifier = embedded.icmp(quoted).ok_or(DropReason::BadEmbeddedPacket)?.identifier();
            match ours {
                End::Source => (Protocol::Icmp, identifier, 0),
                End::Destination => (Protocol::Icmp, 0, identifier),
            }
        }
        // No session has sent such; on a shared address the host may have (AH, or what is configured not to be translated).
        _ => return Err(DropReason::IcmpNoSession),
    };
    let source = Endpoint { address: embedded.src(), port: source_port };
    let destination = Endpoint { address: embedded.dst(), port: destination_port };
    Ok(Quoted { embedded, protocol, source, destination, is_answer, original_id: None })
}

/// Gives one end of the quoted packet another endpoint, and mends its checksums and the error's.
pub(crate) fn rewrite_quoted(frame: &mut [u8], layout: &Layout, embedded: &Embedded, end: End, endpoint: Endpoint) {
    let message = layout.payload_mut(frame);
    match end {
        End::Source => embedded.set_src(message, endpoint.address, Some(endpoint.port)),
        End::Destination => embedded.set_dst(message, endpoint.address, Some(endpoint.port)),
    }
}

/// Gives the quoted packet the identification back that it was sent with, where that is known.
pub(crate) fn restore_id(frame: &mut [u8], layout: &Layout, embedded: &Embedded, original_id: Option<u16>) {
    if let Some(id) = original_id {
        embedded.set_id(layout.payload_mut(frame), id);
    }
}

/// The outer addresses of a translated error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
}
