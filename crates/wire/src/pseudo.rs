//! The checksums of UDP-Lite and DCCP, which cover the addresses by a pseudo-header as those of UDP and TCP do: all that a change of addresses
//! does to a protocol whose ports nobody reads.
//!
//! Knows where the field is, and no other of the headers. Called by `nat` and `embedded`. Invariant: a right checksum stays right, a wrong one
//! stays wrong. Not here: SCTP, whose CRC covers no address (RFC 9260, section 6.8). Sources: RFC 3828 section 3.1, RFC 4340 section 9.1.

use crate::checksum::Delta;
use crate::ipv4;

/// Where the field is in both headers. **Units:** bytes from the header's start.
pub const CHECKSUM_OFFSET: usize = 6;

/// Whether a protocol's checksum is here.
#[inline]
#[must_use]
pub const fn covers_addresses(protocol: u8) -> bool {
    matches!(protocol, ipv4::UDP_LITE | ipv4::DCCP)
}

/// The field after the addresses changed. Of a protocol that is not here it stays.
///
/// UDP-Lite: "If the computed checksum is 0, it is transmitted as all ones". A zero that was received is no right checksum, and stays what it is.
/// DCCP has no such spelling. **Source:** RFC 3828, section 3.1; RFC 4340, section 9.1.
#[inline]
#[must_use]
pub const fn after(protocol: u8, checksum: u16, change: Delta) -> u16 {
    match protocol {
        ipv4::UDP_LITE => change.apply_udp(checksum),
        ipv4::DCCP => change.apply(checksum),
        _ => checksum,
    }
}

/// Mends the checksum in the header that `payload` begins with, after the addresses changed. Nothing happens to one that is cut before the
/// field's end.
#[inline]
pub fn mend(protocol: u8, payload: &mut [u8], change: Delta) {
    if !covers_addresses(protocol) {
        return;
    }
    let field = payload.get_mut(CHECKSUM_OFFSET..).and_then(|rest| rest.first_chunk_mut::<2>());
    if let Some(field) = field {
        *field = after(protocol, u16::from_be_bytes(*field), change).to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{pseudo_header, sum, udp_spelling};
    use core::net::Ipv4Addr;

    /// A packet whose checksum covers all of it, with a right checksum.
    fn packet(protocol: u8, src: Ipv4Addr, dst: Ipv4Addr, word: u16) -> [u8; 12] {
        let mut packet = [0x13, 0x88, 0, 80, 0, 0, 0, 0, 1, 2, 0, 0];
        packet[10..].copy_from_slice(&word.to_be_bytes());
        let checksum = pseudo_header(src, dst, protocol, 12).and(sum(&packet)).checksum();
        let checksum = if protocol == ipv4::UDP_LITE { udp_spelling(checksum) } else { checksum };
        packet[6..8].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    #[test]
    fn a_mended_checksum_is_the_one_from_scratch_whatever_the_data() {
        let (inner, outer, remote) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::new(198, 51, 100, 2));
        for protocol in [ipv4::UDP_LITE, ipv4::DCCP] {
            for word in 0..=u16::MAX {
                let mut mended = packet(protocol, inner, remote, word);
                mend(protocol, &mut mended, Delta::of_address(inner, outer));
                assert_eq!(mended, packet(protocol, outer, remote, word), "protocol {protocol}, word {word:#x}");
            }
        }
    }

    #[test]
    fn no_checksum_of_udp_lite_stays_none_and_a_cut_header_stays_as_it_is() {
        let change = Delta::of_u16(1, 2);
        let mut packet = [9, 9, 9, 9, 9, 9, 0, 0];
        mend(ipv4::UDP_LITE, &mut packet, change);
        assert_eq!(packet, [9, 9, 9, 9, 9, 9, 0, 0], "an illegal zero");
        for protocol in [ipv4::UDP_LITE, ipv4::DCCP] {
            let mut cut = [9; 7];
            mend(protocol, &mut cut, change);
            assert_eq!(cut, [9; 7]);
        }
        let mut sctp = [9; 12];
        mend(132, &mut sctp, change);
        assert_eq!(sctp, [9; 12], "no pseudo-header");
    }
}
