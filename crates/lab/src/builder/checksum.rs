//! The Internet checksum (RFC 1071) the slow way: sixteen bits at a time, from scratch.
//!
//! Knows bytes, and which of them UDP-Lite and DCCP leave out. No incremental updates live here: those are what it is there to check. Tests: RFC 1071's own example.

use std::net::Ipv4Addr;

/// The pseudo header of TCP and UDP (RFC 9293, section 3.1).
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: usize) -> [u8; 12] {
    let mut header = [0; 12];
    header[..4].copy_from_slice(&source.octets());
    header[4..8].copy_from_slice(&destination.octets());
    header[9] = protocol;
    header[10..].copy_from_slice(&(len as u16).to_be_bytes());
    header
}

/// The one's complement sum of `parts`, each padded to a whole word, not complemented.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0_u64;
    for part in parts {
        for word in part.chunks(2) {
            total += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
        }
    }
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    total as u16
}

/// The checksum of `parts`, whose field is zero: the complement of their sum.
pub fn internet(parts: &[&[u8]]) -> u16 {
    !sum(parts)
}

/// Whether `parts`, with their checksum in them, sum up as they should.
pub fn verifies(parts: &[&[u8]]) -> bool {
    sum(parts) == 0xFFFF
}

/// How many bytes of a transport packet its checksum covers, from its header on. None where that cannot be: RFC 3828, section 3.1, of UDP-Lite,
/// RFC 4340, section 9.2, of DCCP; of all others, all.
pub fn covered(protocol: u8, segment: &[u8]) -> Option<usize> {
    let len = match protocol {
        136 => match usize::from(u16::from_be_bytes([*segment.get(4)?, *segment.get(5)?])) {
            0 => segment.len(),
            coverage if coverage < 8 => return None,
            coverage => coverage,
        },
        33 => match (usize::from(*segment.get(4)?) * 4, usize::from(*segment.get(5)? & 15)) {
            (header, _) if header < 12 => return None,
            (_, 0) => segment.len(),
            (header, coverage) => header + (coverage - 1) * 4,
        },
        _ => segment.len(),
    };
    (len <= segment.len()).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_section_3_sums_to_ddf2() {
        assert_eq!(sum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
    }

    #[test]
    fn an_odd_last_byte_counts_as_the_high_half_of_a_word() {
        assert_eq!(sum(&[&[0x12, 0x34, 0x56]]), 0x1234 + 0x5600);
    }
}
