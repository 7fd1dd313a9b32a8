//! Partial checksums: what veth and virtio senders leave in TCP and UDP headers for hardware that is not there.
//!
//! Their field holds the folded sum of the pseudo-header, not complemented, and the sum over header and data is still to be added
//! (Linux, Documentation/networking/checksum-offloads.rst). A delta would keep that wrong, so it is completed first.
//! Called by `nat` before a rewrite. Invariant: a checksum that verifies is never touched. Tests: `tests/linux.rs` and others.

use crate::checksum::{self, Sum};
use crate::packet::{Fragment, Layout, Transport};
use crate::tcp::{self, TcpHeader};
use crate::udp::{self, UdpHeader};

/// What the checksum field of a packet's transport header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumState {
    /// A checksum, right or wrong; also when there is no transport header with a pseudo-header.
    Complete,
    /// The pseudo-header's sum only.
    Partial,
    /// None: UDP's zero.
    Absent,
}

/// What the checksum field holds. A fragment is never partial: senders complete checksums before they fragment.
///
/// **Cost:** hot; the data is summed only when the field equals the pseudo-header's sum, once in 65,536 complete packets.
#[inline]
#[must_use]
pub fn transport_checksum_state(frame: &[u8], layout: &Layout) -> ChecksumState {
    let Some(covered) = Covered::of(frame, layout) else { return ChecksumState::Complete };
    if covered.field == 0 && layout.transport() == Transport::Udp {
        return ChecksumState::Absent;
    }
    if covered.field != covered.pseudo.fold() || covered.pseudo.and(checksum::sum(covered.bytes)).is_valid() {
        return ChecksumState::Complete;
    }
    ChecksumState::Partial
}

/// Computes the transport checksum from scratch and writes it. Returns whether there was one to write: a whole TCP packet, or a
/// whole UDP packet with a checksum.
pub fn complete(frame: &mut [u8], layout: &Layout) -> bool {
    let Some(covered) = Covered::of(frame, layout) else { return false };
    let without_field = Sum::of_u16(!covered.field);
    let checksum = covered.pseudo.and(checksum::sum(covered.bytes)).and(without_field).checksum();
    match layout.transport() {
        Transport::Udp if covered.field != 0 => layout.udp_mut(frame).map(|header| header.set_checksum(checksum)).is_some(),
        Transport::Tcp => layout.tcp_mut(frame).map(|header| header.set_checksum(checksum)).is_some(),
        _ => false,
    }
}

/// What a transport checksum covers, in a whole TCP or UDP packet.
struct Covered<'f> {
    field: u16,
    pseudo: Sum,
    bytes: &'f [u8],
}

impl<'f> Covered<'f> {
    #[inline]
    fn of(frame: &'f [u8], layout: &Layout) -> Option<Self> {
        if layout.fragment() != Fragment::Whole {
            return None;
        }
        let payload = layout.payload(frame);
        let (field, bytes) = match layout.transport() {
            Transport::Tcp => (TcpHeader::from_prefix(payload)?.checksum(), payload),
            Transport::Udp => {
                let header = UdpHeader::from_prefix(payload)?;
                (header.checksum(), payload.get(..usize::from(header.len()))?)
            }
            _ => return None,
        };
        let ip = layout.ipv4(frame)?;
        let pseudo = checksum::pseudo_header(ip.src(), ip.dst(), layout.protocol(), bytes.len() as u16);
        Some(Self { field, pseudo, bytes })
    }
}

const _: () =
    assert!(udp::CHECKSUM_OFFSET.is_multiple_of(2) && tcp::CHECKSUM_OFFSET.is_multiple_of(2), "fields are whole words of the sum");
