//! Why a packet does not go on, and what its sender is told.
//!
//! Knows reasons and ICMP errors. A [`Refusal`] travels up as the error of each step and becomes a verdict in one place, which counts.
//! Sources: RFC 1812 section 4.3.2, RFC 5508 REQ-8 and REQ-10.

use portcullis_steering::WorkerId;
use portcullis_wire::icmp_error::ErrorMessage;

use crate::policy::Policy;
use crate::verdict::{DropReason, Errand, HandOffCause};

/// A packet does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is dropped.
    Drop(DropReason),
    /// It is dropped, and its sender is told by an ICMP error, if one may be sent.
    Answer(DropReason, Answer),
    /// It is the kernel's.
    Punt,
    /// It is another worker's.
    HandOff(WorkerId, HandOffCause, Errand),
}

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Time Exceeded in transit.
    TimeExceeded,
    /// Destination Unreachable with a code.
    Unreachable(u8),
    /// Fragmentation Needed, with the next hop's MTU.
    FragmentationNeeded(u16),
}

/// Destination Unreachable, code: net unreachable (RFC 792).
const NET_UNREACHABLE: u8 = 0;

/// TTL of the gateway's own packets (RFC 1700's recommended default).
const TTL: u8 = 64;

impl From<DropReason> for Refusal {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl Answer {
    /// The message, from the gateway's address `source`.
    pub(crate) fn message(self, source: core::net::Ipv4Addr) -> ErrorMessage {
        match self {
            Self::TimeExceeded => ErrorMessage::time_exceeded(source, TTL),
            Self::Unreachable(code) => ErrorMessage::unreachable(code, source, TTL),
            Self::FragmentationNeeded(mtu) => ErrorMessage::fragmentation_needed(mtu, source, TTL),
        }
    }
}

/// The refusal of a packet that has no way out.
pub(crate) const fn no_route() -> Refusal {
    Refusal::Answer(DropReason::NoRoute, Answer::Unreachable(NET_UNREACHABLE))
}

/// The refusal of a first packet from inside: where something ran out, the sender is told (RFC 5508, REQ-8; RFC 6888, REQ-11).
pub(crate) fn of_outbound(reason: DropReason, policy: &Policy) -> Refusal {
    match reason {
        DropReason::PortsExhausted
        | DropReason::MappingsFull
        | DropReason::SessionsFull
        | DropReason::NoExternalAddress
        | DropReason::OtherProtocolAmbiguous
        | DropReason::OtherProtocolsFull => Refusal::Answer(reason, Answer::Unreachable(policy.icmp_errors.exhausted_code)),
        _ => Refusal::Drop(reason),
    }
}
