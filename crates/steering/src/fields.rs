//! The fields of an IPv4 packet that a NIC hashes: where they are in the input, and which of them count.
//!
//! Knows places and letters, no packets. Used by every other file here, and by `xsk` to read and to set `rx-flow-hash`. Invariant: a
//! field has one place in the full input, whether or not it is hashed. Sources: Microsoft, "RSS hashing types"; linux/ethtool.h.
//!
//! ```text
//! bit    0 ────────── 32 ─────────────── 64 ──────── 80 ───────────── 96
//!        │ source addr │ destination addr │ source port │ destination port │
//! letter        s               d               f              n
//! ```

use core::fmt::{self, Display};
use core::ops::Range;

/// Which way a device looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Towards the subscribers: the owner follows from the source address.
    Inside,
    /// Towards the remotes: the owner follows from the destination address and port.
    Outside,
}

impl Side {
    /// The fields that the owner follows from.
    pub const fn fields(self) -> HashFields {
        match self {
            Self::Inside => HashFields::SOURCE,
            Self::Outside => HashFields::EXTERNAL,
        }
    }
}

/// A field of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// `s` of `rx-flow-hash`.
    SourceAddress,
    /// `d`.
    DestinationAddress,
    /// `f`.
    SourcePort,
    /// `n`.
    DestinationPort,
}

impl Field {
    /// All, in the order of the input.
    pub const ALL: [Self; 4] = [Self::SourceAddress, Self::DestinationAddress, Self::SourcePort, Self::DestinationPort];

    /// Its bits in the full input.
    pub const fn bits(self) -> Range<usize> {
        match self {
            Self::SourceAddress => 0..32,
            Self::DestinationAddress => 32..64,
            Self::SourcePort => 64..80,
            Self::DestinationPort => 80..96,
        }
    }

    /// Its bytes in the full input.
    pub(crate) const fn bytes(self) -> Range<usize> {
        let bits = self.bits();
        bits.start / 8..bits.end / 8
    }

    const fn flag(self) -> u8 {
        1 << self as u8
    }

    const fn letter(self) -> char {
        match self {
            Self::SourceAddress => 's',
            Self::DestinationAddress => 'd',
            Self::SourcePort => 'f',
            Self::DestinationPort => 'n',
        }
    }

    /// Its bit in the kernel's `RXH_*` (`RXH_IP_SRC`, `RXH_IP_DST`, `RXH_L4_B_0_1`, `RXH_L4_B_2_3`).
    const fn ethtool(self) -> u64 {
        0x10 << self as u8
    }
}

/// The fields that a NIC hashes for a protocol: what `ethtool -N DEV rx-flow-hash` sets.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HashFields(u8);

impl HashFields {
    /// Nothing: the NIC does not spread such packets.
    pub const NONE: Self = Self(0);
    /// `s`: what an owner inside follows from.
    pub const SOURCE: Self = Self(Field::SourceAddress.flag());
    /// `sd`: what fragments, ICMP, and with many drivers UDP are hashed on.
    pub const TWO_TUPLE: Self = Self(Field::SourceAddress.flag() | Field::DestinationAddress.flag());
    /// `sdfn`.
    pub const FOUR_TUPLE: Self = Self(0b1111);
    /// `dn`: what an owner outside follows from.
    pub const EXTERNAL: Self = Self(Field::DestinationAddress.flag() | Field::DestinationPort.flag());

    /// Whether `field` is among them.
    pub const fn has(self, field: Field) -> bool {
        self.0 & field.flag() != 0
    }

    /// Whether all of `others` are among them.
    pub const fn covers(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// The addresses among them.
    #[must_use]
    pub const fn without_ports(self) -> Self {
        Self(self.0 & Self::TWO_TUPLE.0)
    }

    /// From the kernel's `RXH_*` bits. None when it has others (VLAN, link-layer address, tunnels, discard), which nothing here can predict.
    pub fn from_ethtool(bits: u64) -> Option<Self> {
        let fields = Self((bits >> 4 & 0xf) as u8);
        (fields.ethtool() == bits).then_some(fields)
    }

    /// The kernel's `RXH_*` bits.
    pub fn ethtool(self) -> u64 {
        self.fields().fold(0, |bits, field| bits | field.ethtool())
    }

    /// Each of them, in the order of the input.
    pub fn fields(self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(move |&field| self.has(field))
    }
}

impl Display for HashFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.write_str("nothing"),
            some => some.fields().try_for_each(|field| write!(f, "{}", field.letter())),
        }
    }
}

impl fmt::Debug for HashFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// What a NIC does with the places of fields that it does not hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// They count as zeros: every field keeps its place.
    #[default]
    Kept,
    /// They are left out: what follows moves up.
    Packed,
}

impl Layout {
    /// The key byte that each hashed byte of the full input meets first. **Shape:** (byte of the input, byte of the key), in order.
    pub(crate) fn places(self, fields: HashFields) -> Vec<(usize, usize)> {
        let bytes = fields.fields().flat_map(Field::bytes);
        bytes.enumerate().map(|(at, byte)| (byte, if self == Self::Kept { byte } else { at })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_read_as_ethtool_writes_them() {
        assert_eq!(HashFields::FOUR_TUPLE.to_string(), "sdfn");
        assert_eq!(HashFields::EXTERNAL.to_string(), "dn");
        assert_eq!(HashFields::NONE.to_string(), "nothing");
    }

    /// linux/ethtool.h: `RXH_IP_SRC` is bit 4, `RXH_IP_DST` 5, `RXH_L4_B_0_1` 6, `RXH_L4_B_2_3` 7.
    #[test]
    fn the_kernels_bits_go_both_ways_and_unknown_ones_are_refused() {
        for bits in 0..16_u64 {
            assert_eq!(HashFields::from_ethtool(bits << 4).map(HashFields::ethtool), Some(bits << 4));
        }
        assert_eq!(HashFields::from_ethtool(0x30), Some(HashFields::TWO_TUPLE));
        assert_eq!(HashFields::from_ethtool(0x30 | 1 << 2), None, "the VLAN tag");
        assert_eq!(HashFields::from_ethtool(1 << 31), None, "discard");
    }

    #[test]
    fn a_packed_input_moves_up_and_a_kept_one_does_not() {
        let outside = [(4, 4), (5, 5), (6, 6), (7, 7), (10, 10), (11, 11)];
        assert_eq!(Layout::Kept.places(HashFields::EXTERNAL), outside);
        assert_eq!(Layout::Packed.places(HashFields::EXTERNAL), [(4, 0), (5, 1), (6, 2), (7, 3), (10, 4), (11, 5)]);
        assert_eq!(Layout::Packed.places(HashFields::FOUR_TUPLE), Layout::Kept.places(HashFields::FOUR_TUPLE));
    }
}
