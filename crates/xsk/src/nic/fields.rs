//! Which header fields a device hashes, by kind of packets (`ethtool -n DEV rx-flow-hash tcp4`).
//!
//! Knows the kernel's bits. Used by all files of [`super`]. Source: linux/ethtool.h (`RXH_*`, `*_FLOW`).

use std::fmt;

/// A kind of packets that a device hashes in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flow {
    /// TCP over IPv4.
    Tcp4,
    /// UDP over IPv4.
    Udp4,
    /// Any other IPv4: ICMP, and fragments on most devices. Read only: virtio_net (6.18) forgets the ports of TCP and UDP when this is
    /// set, even to what it was, and other drivers do not take it.
    Ip4,
}

impl Flow {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Tcp4, Self::Udp4, Self::Ip4];

    /// Whether its fields may be set.
    pub const fn is_settable(self) -> bool {
        !matches!(self, Self::Ip4)
    }

    /// The kernel's number.
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Tcp4 => 0x01,
            Self::Udp4 => 0x02,
            Self::Ip4 => 0x10,
        }
    }

    /// The name that ethtool has for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Udp4 => "udp4",
            Self::Ip4 => "ip4",
        }
    }

    /// The kind of a name.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flow| flow.label() == label)
    }
}

/// A set of header fields, as the kernel's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fields(pub u64);

impl Fields {
    /// Nothing is hashed: all packets go to one queue.
    pub const NONE: Self = Self(0);
    /// The source address alone.
    pub const SOURCE: Self = Self(1 << 4);
    /// The destination address alone.
    pub const DESTINATION: Self = Self(1 << 5);
    /// The source port alone.
    pub const SOURCE_PORT: Self = Self(1 << 6);
    /// The destination port alone.
    pub const DESTINATION_PORT: Self = Self(1 << 7);
    /// Both addresses.
    pub const TWO_TUPLE: Self = Self(Self::SOURCE.0 | Self::DESTINATION.0);
    /// Destination address and port.
    pub const DESTINATION_AND_PORT: Self = Self(Self::DESTINATION.0 | Self::DESTINATION_PORT.0);
    /// Both addresses and both ports.
    pub const FOUR_TUPLE: Self = Self(Self::TWO_TUPLE.0 | Self::SOURCE_PORT.0 | Self::DESTINATION_PORT.0);

    /// ethtool's letters for the bits.
    const LETTERS: [(u32, char); 8] = [(1, 'm'), (2, 'v'), (3, 't'), (4, 's'), (5, 'd'), (6, 'f'), (7, 'n'), (31, 'r')];

    /// Whether all fields of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// As ethtool takes them: `sdfn`.
impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::LETTERS.iter().filter(|(bit, _)| self.0 >> bit & 1 == 1).try_for_each(|(_, letter)| write!(f, "{letter}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header;

    #[test]
    fn the_bits_are_the_headers() {
        header::compare(&[
            ("RXH_IP_SRC", Fields::SOURCE.0),
            ("RXH_IP_DST", Fields::DESTINATION.0),
            ("RXH_L4_B_0_1", Fields::SOURCE_PORT.0),
            ("RXH_L4_B_2_3", Fields::DESTINATION_PORT.0),
            ("RXH_L2DA", 1 << 1),
            ("RXH_VLAN", 1 << 2),
            ("RXH_L3_PROTO", 1 << 3),
            ("RXH_DISCARD & 0xffffffff", 1 << 31),
            ("TCP_V4_FLOW", Flow::Tcp4.code().into()),
            ("UDP_V4_FLOW", Flow::Udp4.code().into()),
            ("IPV4_FLOW", Flow::Ip4.code().into()),
        ]);
    }

    #[test]
    fn fields_are_written_in_ethtools_letters() {
        assert_eq!(Fields::FOUR_TUPLE.to_string(), "sdfn");
        assert_eq!(Fields::DESTINATION_AND_PORT.to_string(), "dn");
        assert_eq!(Fields::SOURCE.to_string(), "s");
        assert_eq!(Fields::NONE.to_string(), "");
    }

    #[test]
    fn a_flow_is_known_by_its_name() {
        assert!(Flow::ALL.into_iter().all(|flow| Flow::from_label(flow.label()) == Some(flow)));
        assert_eq!(Flow::from_label("tcp6"), None);
    }
}
