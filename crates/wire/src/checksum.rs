//! The Internet checksum: sums of bytes, and deltas that mend a checksum when a field changes.
//!
//! Knows numbers and byte slices, no protocol but the pseudo-header that TCP and UDP share. Called by every header view here and
//! by `nat`, which stores deltas in session records.
//! Invariant: applying a delta gives what summing the changed packet from scratch gives.
//! Sources: RFC 1071, RFC 1624, RFC 768. Tests: below, with the numbers that these print.
//!
//! # What a ones-complement sum is
//!
//! The checksum takes the data as 16-bit words and adds them, and each carry out of bit 15 is added back in at bit 0. That is
//! addition modulo 65,535, with one oddity: zero has two spellings, `0x0000` and `0xFFFF`. Three properties follow, and this file
//! lives on them:
//!
//! - **Any width will do.** 2^16 is 1 modulo 65,535, and so are 2^32 and 2^48. So eight bytes at once may be added into a 64-bit
//!   accumulator, carries put back in, and the halves added together at the end. See [`sum`].
//! - **Any byte order will do.** Swapping the two bytes of every word swaps the bytes of the sum. So words are added as the
//!   machine loads them, and the result is swapped once. It is also why a piece of odd length can only be the last one.
//! - **Adding never returns to `0x0000`.** A sum is `0x0000` only if every word was; all other multiples of 65,535 come out as
//!   `0xFFFF`. [`Sum`] and [`Delta`] keep to that spelling, which is what makes deltas exact.
//!
//! The field holds the complement of the sum, so that the receiver's sum over everything, field included, is `0xFFFF`.
//!
//! # Why equation 3
//!
//! A NAT changes a few words of a packet; summing it all again would touch every byte, and would hide damage done before the packet
//! came here. With `HC` the old field, `m` the old word and `m'` the new one, RFC 1624 gives
//!
//! ```text
//!     HC' = ~(~HC + ~m + m')        [Eqn. 3]
//! ```
//!
//! RFC 1141 had `HC' = HC + m + ~m'` instead, which is equal modulo 65,535 but lands on the other zero: `HC'` becomes `0xFFFF`
//! where the sum from scratch gives `0x0000`, and receivers that compare fields rather than sums reject it. Equation 3 adds to the
//! *sum* `~HC`, and sums of real packets are never `0x0000` (there is always a version, a protocol or a type that is not zero), so
//! it lands on the zero that the sum from scratch has.
//!
//! `~m + m'` does not depend on the packet: that is a [`Delta`]. Deltas of several words add up, and the way back has the
//! complement. So a session stores one delta for all that its rewrite changes, and a packet costs one addition.
//!
//! One message can be all zeros: an ICMP echo reply with identifier, sequence and data zero. Its checksum is `0xFFFF`, which no delta
//! can know; [`crate::icmpv4::set_identifier`] looks after it.

use core::net::Ipv4Addr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A ones-complement sum of 16-bit words, folded. **Invariant:** zero only if every word was zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u16);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// The sum of one word.
    #[inline]
    #[must_use]
    pub const fn of_u16(word: u16) -> Self {
        Self(word)
    }

    /// The sum of an address's two words.
    #[inline]
    #[must_use]
    pub const fn of_address(address: Ipv4Addr) -> Self {
        Self::of_u32(address.to_bits())
    }

    /// The sum of both words of `words`.
    #[inline]
    #[must_use]
    pub const fn of_u32(words: u32) -> Self {
        Self(add16((words >> 16) as u16, words as u16))
    }

    /// Both together. The bytes that `self` was summed over must have been of even length.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(add16(self.0, other.0))
    }

    /// The sum as it is, not complemented: what a partial checksum holds.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        self.0
    }

    /// The complement: what a checksum field holds, if the field counted as zero in the sum.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.0
    }

    /// Whether this is the sum of data that contains its own right checksum.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 == 0xFFFF
    }
}

/// The sum over `bytes`, of any alignment and length; an odd last byte counts as followed by zero (RFC 1071, section 4.1).
///
/// **Cost:** hot; one addition with carry for each 8 bytes, in four independent lanes from 32 bytes on.
#[inline]
#[must_use]
pub fn sum(bytes: &[u8]) -> Sum {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0_u64; 4];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = add64(*lane, u64::from_ne_bytes(*word));
        }
    }
    let (words, tail) = rest.as_chunks::<8>();
    for (lane, word) in lanes.iter_mut().zip(words) {
        *lane = add64(*lane, u64::from_ne_bytes(*word));
    }
    let all = add64(add64(lanes[0], lanes[1]), add64(lanes[2], lanes[3]));
    Sum(u16::from_be(fold64(add64(all, tail_word(tail)))))
}

/// At most seven last bytes as one number that is congruent to the sum of their words, in memory order.
#[inline]
fn tail_word(tail: &[u8]) -> u64 {
    let (fours, rest) = tail.as_chunks::<4>();
    let (twos, rest) = rest.as_chunks::<2>();
    let four = fours.first().map_or(0, |&bytes| u64::from(u32::from_ne_bytes(bytes)));
    let two = twos.first().map_or(0, |&bytes| u64::from(u16::from_ne_bytes(bytes)));
    let one = rest.first().map_or(0, |&byte| u64::from(u16::from_ne_bytes([byte, 0])));
    four + two + one
}

#[inline]
const fn add64(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u64
}

#[inline]
const fn add16(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

#[inline]
const fn fold64(sum: u64) -> u16 {
    let (high, low) = ((sum >> 32) as u32, sum as u32);
    let (sum, carry) = high.overflowing_add(low);
    let sum = sum + carry as u32;
    add16((sum >> 16) as u16, sum as u16)
}

/// The sum over the pseudo-header of TCP and UDP. **Units:** `len` is that of transport header and data, in bytes.
///
/// **Source:** RFC 768, RFC 9293, section 3.1.
#[inline]
#[must_use]
pub const fn pseudo_header(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, len: u16) -> Sum {
    Sum::of_address(src).and(Sum::of_address(dst)).and(Sum::of_u16(protocol as u16)).and(Sum::of_u16(len))
}

/// What changed words do to a checksum: `~m + m'` of RFC 1624's equation 3. Plain data, to be stored in a session record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Delta(u16);

impl Delta {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// A word changed from `old` to `new`. **Invariant:** the word starts at an even offset from where the checksum starts.
    #[inline]
    #[must_use]
    pub const fn of_u16(old: u16, new: u16) -> Self {
        Self(add16(!old, new))
    }

    /// Two neighbouring words changed.
    #[inline]
    #[must_use]
    pub const fn of_u32(old: u32, new: u32) -> Self {
        Self(add16(Sum::of_u32(!old).0, Sum::of_u32(new).0))
    }

    /// An address changed.
    #[inline]
    #[must_use]
    pub const fn of_address(old: Ipv4Addr, new: Ipv4Addr) -> Self {
        Self::of_u32(old.to_bits(), new.to_bits())
    }

    /// Both changes.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(add16(self.0, other.0))
    }

    /// The change back.
    #[inline]
    #[must_use]
    pub const fn reversed(self) -> Self {
        if self.0 == 0 { self } else { Self(!self.0) }
    }

    /// The checksum field after the change. **Invariant:** a wrong checksum stays wrong by as much.
    #[inline]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !add16(!checksum, self.0)
    }

    /// UDP's checksum field after the change.
    ///
    /// "If the computed checksum is zero, it is transmitted as all ones [...]. An all zero transmitted checksum value means that
    /// the transmitter generated no checksum." **Source:** RFC 768.
    #[inline]
    #[must_use]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        udp_spelling(self.apply(checksum))
    }
}

/// A computed checksum as UDP transmits it: zero as all ones (RFC 768).
#[inline]
#[must_use]
pub const fn udp_spelling(checksum: u16) -> u16 {
    if checksum == 0 { 0xFFFF } else { checksum }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word by word.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)));
        let mut sum: u64 = words.sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_sum_is_that_of_rfc_1071s_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes).fold(), 0xddf2);
        assert_eq!(sum(&bytes).checksum(), 0x220d);
    }

    #[test]
    fn equation_3_gives_rfc_1624s_zero_where_rfc_1141_gives_all_ones() {
        assert_eq!(Delta::of_u16(0x5555, 0x3285).apply(0xDD2F), 0x0000);
        assert_eq!(add16(add16(0xDD2F, 0x5555), !0x3285), 0xFFFF);
    }

    #[test]
    fn the_sum_is_right_for_every_length_and_alignment() {
        let bytes: Vec<u8> = (0..400_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for start in 0..16 {
            for end in start..bytes.len() {
                assert_eq!(sum(&bytes[start..end]).fold(), slow_sum(&bytes[start..end]), "{start}..{end}");
            }
        }
    }

    #[test]
    fn carries_are_never_lost() {
        for len in 0..200 {
            let bytes = vec![0xFF; len];
            assert_eq!(sum(&bytes).fold(), slow_sum(&bytes), "{len} bytes of all ones");
        }
        assert_eq!(sum(&vec![0xFF; 1 << 20]).fold(), 0xFFFF);
    }

    #[test]
    fn only_zeros_sum_to_zero() {
        assert_eq!(sum(&[0; 100]), Sum::ZERO);
        assert_eq!(sum(&[0xFF; 100]).fold(), 0xFFFF);
        assert_eq!(Sum::of_u16(1).and(Sum::of_u16(0xFFFE)).fold(), 0xFFFF);
    }

    #[test]
    fn sums_of_even_pieces_add_up() {
        let bytes: Vec<u8> = (0..=255).collect();
        for split in (0..=256).step_by(2) {
            assert_eq!(sum(&bytes[..split]).and(sum(&bytes[split..])), sum(&bytes));
        }
    }

    #[test]
    fn the_pseudo_header_is_summed_as_its_twelve_bytes() {
        let (src, dst) = (Ipv4Addr::new(192, 0, 2, 200), Ipv4Addr::new(255, 254, 253, 252));
        let bytes = [192, 0, 2, 200, 255, 254, 253, 252, 0, 17, 0xAB, 0xCD];
        assert_eq!(pseudo_header(src, dst, 17, 0xABCD), sum(&bytes));
    }

    #[test]
    fn udp_keeps_no_checksum_and_never_computes_one() {
        let delta = Delta::of_u16(0x5555, 0x3285);
        assert_eq!(delta.apply_udp(0), 0, "no checksum stays no checksum");
        assert_eq!(delta.apply_udp(0xDD2F), 0xFFFF, "a computed zero is transmitted as all ones");
        assert_eq!(delta.reversed().apply_udp(0xFFFF), 0xDD2F, "and all ones counts as zero on the way back");
    }

    #[test]
    fn no_change_changes_nothing_but_the_spelling_of_zero() {
        for checksum in 0..=0xFFFF {
            assert_eq!(Delta::NONE.apply(checksum), checksum);
            assert_eq!(Delta::NONE.reversed(), Delta::NONE);
            let same = Delta::of_u16(0x1234, 0x1234).apply(checksum);
            assert_eq!(same, if checksum == 0xFFFF { 0 } else { checksum });
        }
    }
}
