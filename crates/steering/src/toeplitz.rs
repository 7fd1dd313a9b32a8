//! The Toeplitz hash of receive-side scaling: a key, and what comes of bytes under it.
//!
//! Knows bits, no packets. Used by [`crate::owners`] to say who owns what, and to predict a NIC's queue. Invariant: linear over XOR:
//! `hash(a ^ b) = hash(a) ^ hash(b)`. Sources: Microsoft, "RSS hashing functions"; its published vectors are the tests.

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
}

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.bytes.iter().enumerate().try_for_each(|(at, byte)| write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" }))
    }
}

/// What each value of one input byte adds to the hash. **Shape:** by value. **Cost:** 1 KiB, one load a byte instead of eight tests.
#[derive(Clone)]
pub(crate) struct ByteTable([u32; 256]);

impl ByteTable {
    /// The table of input byte `position`.
    pub(crate) fn new(key: &Key, position: usize) -> Self {
        let mut table = [0; 256];
        for (value, entry) in table.iter_mut().enumerate() {
            *entry = (0..8).filter(|bit| value >> (7 - bit) & 1 == 1).fold(0, |hash, bit| hash ^ key.window(position * 8 + bit));
        }
        Self(table)
    }

    #[inline]
    pub(crate) fn of(&self, value: u8) -> u32 {
        self.0[usize::from(value)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Microsoft's sample key.
    const SAMPLE: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
        0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn the_published_vector_holds() {
        let mut bytes = [0; LONGEST_KEY];
        bytes[..40].copy_from_slice(&SAMPLE);
        let input = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!(Key::new(bytes).hash(&input), 0x51cc_c178, "66.9.149.187:2794 -> 161.142.100.80:1766");
    }
}
