//! The Toeplitz hash of receive-side scaling: a key, the input that NICs make of a packet, and what comes of it under the key.
//!
//! Knows bits and addresses, no packets. Used by [`crate::owners`] to say who owns what, and by [`crate::predict`] for a NIC's queue.
//! Invariant: linear over XOR: `hash(a ^ b) = hash(a) ^ hash(b)`. Sources: Microsoft, "RSS hashing functions"; its published vectors
//! ("Verifying the RSS hash calculation") are the tests.
//!
//! ```text
//! key     0 ─────────── i ────────────────────────── i+31 ──────────── 415
//! input bit i is set:   └ these 32 bits are XORed into the hash ┘
//! ```

use core::net::{Ipv4Addr, Ipv6Addr};

/// The longest key that NICs take. **Units:** bytes.
pub const LONGEST_KEY: usize = 52;

/// Bytes that 32 hash bits of the longest input, two IPv6 addresses and two ports, meet. **Units:** bytes.
pub const SHORTEST_KEY: usize = 40;

/// A key of receive-side scaling. Input bit `i` meets the 32 key bits from `i` on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; LONGEST_KEY],
}

impl Key {
    /// The key with those bytes; NICs with shorter keys use its beginning.
    pub const fn new(bytes: [u8; LONGEST_KEY]) -> Self {
        Self { bytes }
    }

    /// The key that begins with `bytes`, as read from a NIC; zeros follow. None when they are too few for IPv4 or too many.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut key = [0; LONGEST_KEY];
        key.get_mut(..bytes.len()).filter(|_| bytes.len() >= IPV4_KEY)?.copy_from_slice(bytes);
        Some(Self::new(key))
    }

    /// The key's bytes.
    pub const fn bytes(&self) -> &[u8; LONGEST_KEY] {
        &self.bytes
    }

    /// The 32 key bits that input bit `bit` meets. **Shape:** bit 31 of the result is the key's bit `bit`.
    pub const fn window(&self, bit: usize) -> u32 {
        let (first, shift) = (bit / 8, bit % 8);
        let mut window = 0_u64;
        let mut byte = 0;
        while byte < 5 {
            let value = if first + byte < LONGEST_KEY { self.bytes[first + byte] } else { 0 };
            window = window << 8 | value as u64;
            byte += 1;
        }
        (window >> (8 - shift)) as u32
    }

    /// The hash of an input.
    pub fn hash(&self, input: &[u8]) -> u32 {
        let bits =
            input.iter().enumerate().flat_map(|(byte, value)| (0..8).map(move |bit| (byte * 8 + bit, value >> (7 - bit) & 1)));
        bits.filter(|&(_, set)| set == 1).fold(0, |hash, (bit, _)| hash ^ self.window(bit))
    }

    /// Makes the key's bits `bits` zero.
    pub(crate) fn clear(&mut self, bits: core::ops::RangeInclusive<usize>) {
        bits.for_each(|bit| self.bytes[bit / 8] &= !(0x80 >> (bit % 8)));
    }
}

/// Key bytes that the IPv4 input of twelve bytes meets. **Units:** bytes.
pub const IPV4_KEY: usize = 16;

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.bytes.iter().enumerate().try_for_each(|(at, byte)| write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" }))
    }
}

/// What a NIC hashes of a packet, in the order that Microsoft gave it: source and destination address, source and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    bytes: [u8; 36],
    length: usize,
}

impl Input {
    /// Two IPv4 addresses: fragments, ICMP, and whatever has no ports that the NIC knows.
    pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self::empty().and(&source.octets()).and(&destination.octets())
    }

    /// Two IPv6 addresses.
    pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self::empty().and(&source.octets()).and(&destination.octets())
    }

    /// The same with both ports, of TCP or UDP, behind it.
    #[must_use]
    pub fn with_ports(self, source: u16, destination: u16) -> Self {
        self.and(&source.to_be_bytes()).and(&destination.to_be_bytes())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    const fn empty() -> Self {
        Self { bytes: [0; 36], length: 0 }
    }

    fn and(mut self, more: &[u8]) -> Self {
        self.bytes[self.length..][..more.len()].copy_from_slice(more);
        self.length += more.len();
        self
    }
}

/// What each value of one input byte adds to the low 16 bits of the hash: more than any indirection table asks for.
///
/// **Shape:** by value. **Cost:** 512 bytes, one load a byte instead of eight tests.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ByteTable([u16; 256]);

impl ByteTable {
    /// The table of the input byte that meets the key from bit `position * 8` on.
    pub(crate) fn new(key: &Key, position: usize) -> Self {
        Self::linear(|bit| key.window(position * 8 + bit) as u16)
    }

    /// The table of a byte whose bit `bit`, 0 for the highest, adds `of(bit)`.
    pub(crate) fn linear(of: impl Fn(usize) -> u16) -> Self {
        let sum = |value: usize| (0..8).filter(|bit| value >> (7 - bit) & 1 == 1).fold(0, |sum, bit| sum ^ of(bit));
        Self(core::array::from_fn(sum))
    }

    /// Whether any value changes the index of a table of `entries`.
    pub(crate) fn reaches(&self, entries: usize) -> bool {
        self.0.iter().any(|&sum| usize::from(sum) & (entries - 1) != 0)
    }

    #[inline]
    pub(crate) fn of(&self, value: u8) -> u16 {
        self.0[usize::from(value)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Microsoft's sample key.
    const SAMPLE: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
        0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn sample() -> Key {
        Key::from_slice(&SAMPLE).expect("40 bytes are a key")
    }

    /// Source, destination, hash of the addresses, hash with the ports.
    #[test]
    fn microsofts_vectors_for_ipv4_hold() {
        let vectors = [
            ("66.9.149.187:2794", "161.142.100.80:1766", 0x323e_8fc2, 0x51cc_c178),
            ("199.92.111.2:14230", "65.69.140.83:4739", 0xd718_262a, 0xc626_b0ea),
            ("24.19.198.95:12898", "12.22.207.184:38024", 0xd2d0_a5de, 0x5c2b_394a),
            ("38.27.205.30:48228", "209.142.163.6:2217", 0x8298_9176, 0xafc7_327f),
            ("153.39.163.191:44251", "202.188.127.2:1303", 0x5d18_09c5, 0x10e8_28a2),
        ];
        for (source, destination, addresses, with_ports) in vectors {
            let [from, to] = [source, destination].map(|end| end.parse::<core::net::SocketAddrV4>().unwrap());
            let input = Input::ipv4(*from.ip(), *to.ip());
            assert_eq!(sample().hash(input.bytes()), addresses, "{source} -> {destination}, addresses");
            assert_eq!(sample().hash(input.with_ports(from.port(), to.port()).bytes()), with_ports, "{source} -> {destination}");
        }
    }

    /// The same for IPv6. The published table has each destination before its source.
    #[test]
    fn microsofts_vectors_for_ipv6_hold() {
        let vectors = [
            ("[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x2cc1_8cd5, 0x4020_7d3d),
            ("[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739", 0x0f0c_461c, 0xdde5_1bbf),
            ("[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", "[fe80::200:f8ff:fe21:67cf]:38024", 0x4b61_e985, 0x02d1_feef),
        ];
        for (source, destination, addresses, with_ports) in vectors {
            let [from, to] = [source, destination].map(|end| end.parse::<core::net::SocketAddrV6>().unwrap());
            let input = Input::ipv6(*from.ip(), *to.ip());
            assert_eq!(sample().hash(input.bytes()), addresses, "{source} -> {destination}, addresses");
            assert_eq!(sample().hash(input.with_ports(from.port(), to.port()).bytes()), with_ports, "{source} -> {destination}");
        }
    }

    #[test]
    fn a_key_is_long_enough_for_ipv4_and_no_longer_than_any() {
        assert!(Key::from_slice(&SAMPLE[..IPV4_KEY]).is_some());
        assert!(Key::from_slice(&SAMPLE[..IPV4_KEY - 1]).is_none());
        assert!(Key::from_slice(&[0; LONGEST_KEY + 1]).is_none());
    }

    proptest! {
        #[test]
        fn the_hash_is_linear(
            key in any::<[u8; 32]>(), a in any::<[u8; 12]>(), b in any::<[u8; 12]>()
        ) {
            let key = Key::from_slice(&key).expect("32 bytes are a key");
            let both: [u8; 12] = core::array::from_fn(|byte| a[byte] ^ b[byte]);
            prop_assert_eq!(key.hash(&both), key.hash(&a) ^ key.hash(&b));
        }

        #[test]
        fn byte_tables_give_the_low_bits_of_the_hash(key in any::<[u8; 32]>(), input in any::<[u8; 12]>()) {
            let key = Key::from_slice(&key).expect("32 bytes are a key");
            let sum = (0..12).fold(0, |sum, byte| sum ^ ByteTable::new(&key, byte).of(input[byte]));
            prop_assert_eq!(sum, key.hash(&input) as u16);
        }
    }
}
