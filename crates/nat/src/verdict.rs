//! What becomes of a packet: the values that `process` answers with, and every reason to drop one.
//!
//! One list serves the Prometheus label, the command line's text and the row in docs/counters.md. Knows no I/O.
//! Invariant: there is one way to drop, and it names the reason. Tests: the labels are unique and documented.

use core::net::Ipv4Addr;

use portcullis_steering::WorkerId;

use crate::policy::{DeviceId, Endpoint, InterfaceId};

/// What the worker does with a frame that `process` has looked at. The frame's bytes are already what has to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Transmit on the device.
    Transmit(DeviceId),
    /// Split into fragments of at most `mtu` bytes from the IPv4 header on, and transmit them in order.
    Fragment {
        /// The device.
        device: DeviceId,
        /// The link's MTU in bytes.
        mtu: u16,
    },
    /// Translated, but the next hop has no link-layer address yet: hold, have it resolved, then complete with
    /// `Nat::readdress`.
    Hold {
        /// The interface that it leaves by.
        interface: InterfaceId,
        /// The next hop on it.
        next_hop: Ipv4Addr,
    },
    /// The kernel's: an unclaimed packet to an address that the box shares with the NAT. The frame is as it was received, but for a
    /// partial checksum, which was completed.
    Punt,
    /// Another worker's.
    HandOff {
        /// That worker.
        to: WorkerId,
        /// Why it did not come to its owner by itself.
        cause: HandOffCause,
        /// What is left to do there.
        errand: Errand,
    },
    /// A fragment that came before the first of its datagram: keep it under that token until `Nat::take_released` names the token, then
    /// process it again as `Packet::released`; or until `Nat::take_given_up` does, then ask `Nat::give_up`.
    AwaitFirst(DatagramToken),
    /// Nobody's: the frame goes back to the pool.
    Drop(DropReason),
}

/// Names a datagram whose fragments wait for its first. No two datagrams of a worker ever have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatagramToken(pub u64);

/// What the worker that gets a frame has to do with it. The frame's bytes are as received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errand {
    /// All of it.
    #[default]
    Whole,
    /// The second half of a hairpin: the sender's owner has done the outbound half.
    Hairpin {
        /// The sender's external endpoint.
        sender: Endpoint,
    },
    /// The second half of an ICMP error about a hairpinned packet.
    HairpinError {
        /// The external endpoint that the quoted packet was sent to.
        external: Endpoint,
    },
    /// From inside to a shared address, of no session and opening none: whether its destination is claimed, and it is dropped, or not,
    /// and it is the kernel's.
    Stray,
    /// All but the order of its datagram's fragments: the first one has been sent the same way.
    Sequenced,
    /// All of it, but it was counted when it was received: a fragment that waited for its first.
    Released,
}

/// Why a packet had to be handed to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HandOffCause {
    /// The device's queue is not where its owner looks: no receive-side scaling that knows the owners, or a wrong one.
    Misplaced,
    /// An ICMP error: the packet that it quotes says whose it is.
    IcmpError,
    /// An ICMP query's answer: devices do not hash identifiers.
    IcmpQuery,
    /// A fragment: devices do not hash ports that are not in each.
    Fragment,
    /// From one subscriber to another's external endpoint.
    Hairpin,
    /// To a forwarded port: its server is another worker's subscriber.
    Forward,
    /// Of a protocol without ports: its translation is the remote address's, which devices do not hash alone on either side.
    OtherProtocol,
}

impl HandOffCause {
    /// All causes.
    pub const ALL: [Self; 7] =
        [Self::Misplaced, Self::IcmpError, Self::IcmpQuery, Self::Fragment, Self::Hairpin, Self::Forward, Self::OtherProtocol];
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The reason's name in metrics, tables and docs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What it means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }
    };
}

drop_reasons! {
    /// Too short for its headers, or a length field that lies.
    Truncated = "truncated",
    /// Not IPv4 (the XDP program should have left it to the kernel).
    NotIpv4 = "not_ipv4",
    /// An IPv4 header with a wrong version, length or checksum.
    BadIpHeader = "bad_ip_header",
    /// A transport header with an impossible length.
    BadTransportHeader = "bad_transport_header",
    /// A TCP packet with flags that no TCP sends.
    BadTcpFlags = "bad_tcp_flags",
    /// A protocol that the NAT does not translate.
    UnsupportedProtocol = "unsupported_protocol",
    /// An ICMP type that the NAT does not translate.
    UnsupportedIcmp = "unsupported_icmp",
    /// An ICMP error whose checksum is wrong.
    BadIcmpChecksum = "bad_icmp_checksum",
    /// An ICMP error whose embedded packet cannot be read or translated.
    BadEmbeddedPacket = "bad_embedded_packet",
    /// A frame from a VLAN, or a device, that no configured interface has.
    UnknownInterface = "unknown_interface",
    /// A frame addressed to another host on the link.
    NotForUs = "not_for_us",
    /// With a source route among its IPv4 options.
    SourceRouted = "source_routed",
    /// A source that no host may have: zero, loopback, multicast, broadcast or reserved.
    MartianSource = "martian_source",
    /// A destination that no gateway forwards to: zero, loopback, multicast, broadcast or reserved.
    MartianDestination = "martian_destination",
    /// From inside, with a source that is not routed behind that interface.
    SpoofedInside = "spoofed_inside",
    /// From outside, with an internal or external address as its source, or one of the box itself.
    SpoofedOutside = "spoofed_outside",
    /// The TTL ran out here.
    TtlExpired = "ttl_expired",
    /// Larger than the next link's MTU, with Don't Fragment set.
    TooBig = "too_big",
    /// No route to the destination.
    NoRoute = "no_route",
    /// The route leads back to the side that the packet came from, or to no configured interface.
    WrongSide = "wrong_side",
    /// The interface that it has to leave by is down.
    InterfaceDown = "interface_down",
    /// The next hop did not answer, or too many packets wait for it.
    NeighbourUnresolved = "neighbour_unresolved",
    /// From outside, to an external endpoint that no mapping or forward has.
    NoMapping = "no_mapping",
    /// From outside, to a mapping whose filter does not let that remote in.
    Filtered = "filtered",
    /// An ICMP error about a packet that no session has sent.
    IcmpNoSession = "icmp_no_session",
    /// A TCP packet without SYN that belongs to no session.
    TcpNotSyn = "tcp_not_syn",
    /// No external address is available.
    NoExternalAddress = "no_external_address",
    /// Every port of the subscriber's external address is taken.
    PortsExhausted = "ports_exhausted",
    /// The mapping table is full.
    MappingsFull = "mappings_full",
    /// The session table is full.
    SessionsFull = "sessions_full",
    /// The session would have the same endpoints as another one.
    SessionConflict = "session_conflict",
    /// Of a protocol without ports: another host speaks it with that remote from every external address.
    OtherProtocolAmbiguous = "other_protocol_ambiguous",
    /// The table of translations of protocols without ports is full.
    OtherProtocolsFull = "other_protocols_full",
    /// A later fragment whose first has not been seen.
    FragmentWithoutFirst = "fragment_without_first",
    /// The fragment table is full.
    FragmentsFull = "fragments_full",
    /// No free frame for the fragments of a packet that has to be split.
    NoFrame = "no_frame",
    /// The transmit ring stayed full.
    TransmitFull = "transmit_full",
    /// Too many packets to the kernel in a short time.
    PuntLimited = "punt_limited",
    /// Another worker's ring is full.
    HandOffFull = "hand_off_full",
    /// Handed on and on: the workers did not agree whose it is, as they may for a moment when rules change.
    HandOffLoop = "hand_off_loop",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_numbered_and_named_once() {
        let mut labels: Vec<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), DropReason::ALL.len());
        assert!(DropReason::ALL.iter().enumerate().all(|(number, &reason)| reason as usize == number));
    }
}
