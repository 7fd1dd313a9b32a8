//! The Internet checksum from scratch, over slices.
//!
//! Pure, and on purpose not the gateway's: it sums every byte again and knows no delta. Sources: RFC 1071; RFC 768 for zero.

/// A one's complement sum that is not folded yet, of 16-bit words in network order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// This sum with `bytes` added; an odd last byte counts as if a zero followed.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let words = bytes.chunks_exact(2);
        let last = words.remainder().first().map_or(0, |byte| u64::from(*byte) << 8);
        let total: u64 = words.map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        Self(self.0 + total + last)
    }

    /// This sum with one word added.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// The sum in 16 bits. Over data with its right checksum in place it is `0xffff`.
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum: the complement of the folded sum.
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The sum of the IPv4 pseudo header.
///
/// **Source:** RFC 9293 section 3.1, RFC 768.
pub fn pseudo_header(source: [u8; 4], destination: [u8; 4], protocol: u8, length: usize) -> Sum {
    Sum::default().bytes(&source).bytes(&destination).word(u16::from(protocol)).word(length as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!((sum.fold(), sum.checksum()), (0xddf2, 0x220d));
    }

    #[test]
    fn a_real_ipv4_header_with_its_checksum_sums_to_all_ones() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(Sum::default().bytes(&header).fold(), 0xffff);
    }

    #[test]
    fn an_odd_byte_is_the_high_half_of_a_word() {
        assert_eq!(Sum::default().bytes(&[0xab]).fold(), 0xab00);
    }
}
