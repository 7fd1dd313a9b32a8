//! Step 7: addresses, ports and TTL in place, checksums by delta.
//!
//! Knows where headers are and what they become. Called last, when nothing can refuse the packet any more. Invariant: a right checksum
//! stays right, a wrong one stays wrong, a partial one becomes right; UDP's zero stays zero. Sources: RFC 1624, RFC 3022 section 4.

use portcullis_wire::checksum::Delta;
use portcullis_wire::packet::{Layout, Transport};
use portcullis_wire::partial::{self, ChecksumState};
use portcullis_wire::{icmpv4, ipv4};

use crate::policy::Endpoint;

/// What a packet's endpoints become.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewrite {
    source: Endpoint,
    destination: Endpoint,
    /// The identifier of an ICMP query.
    identifier: u16,
    address_delta: Delta,
    port_delta: Delta,
}

impl Rewrite {
    /// Of a packet from inside to `remote`: the source becomes the external endpoint.
    pub(crate) fn outbound(internal: Endpoint, external: Endpoint, remote: Endpoint) -> Self {
        Self {
            source: external,
            destination: remote,
            identifier: external.port,
            address_delta: Delta::of_address(internal.address, external.address),
            port_delta: Delta::of_u16(internal.port, external.port),
        }
    }

    /// Of a packet from `remote`: the destination becomes the internal endpoint.
    pub(crate) fn inbound(internal: Endpoint, external: Endpoint, remote: Endpoint) -> Self {
        Self {
            source: remote,
            destination: internal,
            identifier: internal.port,
            address_delta: Delta::of_address(external.address, internal.address),
            port_delta: Delta::of_u16(external.port, internal.port),
        }
    }

    /// Of a packet from inside to inside: out as `sender`, the external endpoint of `internal`, and in to the internal endpoint of another
    /// external one.
    pub(crate) fn hairpin(internal: Endpoint, sender: Endpoint, (receiver, external): (Endpoint, Endpoint)) -> Self {
        let inbound = Self::inbound(receiver, external, sender);
        Self {
            address_delta: Delta::of_address(internal.address, sender.address).and(inbound.address_delta),
            port_delta: Delta::of_u16(internal.port, sender.port).and(inbound.port_delta),
            ..inbound
        }
    }

    /// Rewrites a whole packet or a first fragment. Returns whether a partial checksum was completed.
    #[inline]
    pub(crate) fn apply(&self, frame: &mut [u8], layout: &Layout) -> bool {
        let was_partial = partial::transport_checksum_state(frame, layout) == ChecksumState::Partial;
        if let Some(header) = layout.ipv4_mut(frame) {
            header.set_addresses(self.source.address, self.destination.address, self.address_delta);
            header.set_ttl(header.ttl() - 1);
        }
        let delta = self.address_delta.and(self.port_delta);
        let (source, destination) = (self.source.port, self.destination.port);
        match layout.transport() {
            Transport::Tcp => {
                if let Some(header) = layout.tcp_mut(frame) {
                    header.set_ports(source, destination, delta);
                }
            }
            Transport::Udp => {
                if let Some(header) = layout.udp_mut(frame) {
                    header.set_ports(source, destination, delta);
                }
            }
            Transport::IcmpQuery(_) => icmpv4::set_identifier(layout.payload_mut(frame), self.identifier),
            Transport::IcmpError | Transport::OtherIcmp(_) | Transport::Other(_) | Transport::None => {}
        }
        was_partial && partial::complete(frame, layout)
    }
}

/// Rewrites the addresses of a later fragment, and its TTL.
pub(crate) fn addresses(header: &mut ipv4::Ipv4Header, source: core::net::Ipv4Addr, destination: core::net::Ipv4Addr) {
    header.set_src(source);
    header.set_dst(destination);
    header.set_ttl(header.ttl() - 1);
}
