//! The hash that sessions are found by: what a packet says of its session, in the packet's own order, under secret keys.
//!
//! Knows numbers. Called once for each packet. Invariant: the same key and protocol from the same side have the same hash in one worker.
//! Source: ahash 0.8, `fallback_hash.rs`, whose hash of a `u128` this is without its two rotations: both halves under a secret key each,
//! multiplied, and the product's halves put together; that once more by a third secret. A rotation there is for input of many blocks, and
//! spreads what is taken by its top bits alone. Nobody sees a hash, and whoever picks endpoints so that theirs collide has to know the
//! keys, as before. Tests: below, that endpoints which differ in few bits spread like random ones.

use ahash::RandomState;

use crate::policy::Side;

/// What is hashed of a packet, in memory order: the eight bytes from its protocol on without the IPv4 checksum, which are the protocol, the
/// source address, and the first byte of the destination; and the eight from its destination address on, which has the ports behind it, as
/// there are no options. That one byte is in both is for the mask, which is an operand of one instruction as it is.
#[derive(Clone, Copy)]
pub(crate) struct Key([u64; 2]);

impl Key {
    /// Of the bytes from the protocol on, what counts.
    const NEAR: u64 = u64::from_ne_bytes([0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);

    /// As it is in a packet: eight bytes from the protocol on, eight from the destination on.
    #[inline]
    pub(crate) const fn read(from_protocol: u64, from_destination: u64) -> Self {
        Self([from_protocol & Self::NEAR, from_destination])
    }

    /// Of the source of a packet alone, as it is in one.
    #[inline]
    pub(crate) const fn read_source(from_protocol: u64, from_destination: u64) -> Self {
        const NEAR: u64 = u64::from_ne_bytes([0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]);
        const FAR: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0xFF, 0xFF, 0, 0]);
        Self([from_protocol & NEAR, from_destination & FAR])
    }

    /// The same of an internal endpoint, as it is in a packet.
    #[inline]
    pub(crate) fn of_internal(protocol: u8, address: u32, port: u16) -> Self {
        let [a, b] = port.to_ne_bytes();
        Self::new(protocol, address, 0, u32::from_ne_bytes([a, b, 0, 0]))
    }

    /// Of a packet of that protocol; addresses and ports as they are in it.
    #[inline]
    pub(crate) fn new(protocol: u8, source: u32, destination: u32, ports: u32) -> Self {
        let (mut near, mut far) = ([0; 8], [0; 8]);
        far[..4].copy_from_slice(&destination.to_ne_bytes());
        far[4..].copy_from_slice(&ports.to_ne_bytes());
        near[0] = protocol;
        near[3..7].copy_from_slice(&source.to_ne_bytes());
        near[7] = far[0];
        Self([near, far].map(u64::from_ne_bytes))
    }
}

/// The secret keys.
#[derive(Clone, Copy)]
pub(crate) struct KeyHash {
    near: u64,
    far: [u64; 2],
    last: u64,
}

impl KeyHash {
    /// Keys drawn by a hasher that has secret ones.
    pub(crate) fn new(hasher: &RandomState) -> Self {
        let [near, inside, outside, last] = [1_u64, 2, 3, 4].map(|number| hasher.hash_one(number));
        // An odd factor loses nothing.
        Self { near, far: [inside, outside], last: last | 1 }
    }

    /// The hash of a packet from that side. It is odd, as [`crate::index::Index::first`] wants it.
    #[inline]
    pub(crate) const fn of(&self, side: Side, Key([near, far]): Key) -> u64 {
        folded(folded(near ^ self.near, far ^ self.far[side as usize]), self.last) | 1
    }
}

/// Both halves of the product, put together.
#[inline]
const fn folded(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Sets of keys as an attacker, or a subscriber's port scan, would make them: one field counts up, the others stay.
    fn sets() -> Vec<(&'static str, Vec<[u32; 3]>)> {
        let numbers = || 0..1_u32 << 14;
        let port = |number: u32| u32::from((number as u16).swap_bytes());
        vec![
            ("source address", numbers().map(|n| [n.swap_bytes(), 5, 7]).collect()),
            ("destination address", numbers().map(|n| [5, n.swap_bytes(), 7]).collect()),
            ("both addresses", numbers().map(|n| [n.swap_bytes(), n.swap_bytes(), 7]).collect()),
            ("source port", numbers().map(|n| [5, 9, port(n)]).collect()),
            ("destination port", numbers().map(|n| [5, 9, port(n) << 16]).collect()),
            ("both ports", numbers().map(|n| [5, 9, port(n) << 16 | port(n)]).collect()),
            ("high bits", numbers().map(|n| [n, 9, 7]).collect()),
            ("address and port", numbers().map(|n| [n >> 7, 9, n & 0x7F]).collect()),
        ]
    }

    /// What the index takes of a hash: the line from the highest bits, the print from the middle, the tag from the lowest.
    #[test]
    fn keys_that_differ_in_few_bits_spread_like_random_ones() {
        for seed in 0..8 {
            let hash = KeyHash::new(&RandomState::with_seeds(seed, 2, 3, 4));
            for (name, keys) in sets() {
                for (side, protocol) in [(Side::Inside, 6), (Side::Outside, 17)] {
                    let hashes: Vec<_> = keys
                        .iter()
                        .map(|&[source, destination, ports]| hash.of(side, Key::new(protocol, source, destination, ports)))
                        .collect();
                    let fullest = |shift: u32| {
                        let mut lines = vec![0; 1 << 11];
                        for hash in &hashes {
                            lines[(hash >> shift) as usize % (1 << 11)] += 1;
                        }
                        lines.into_iter().max().unwrap_or(0)
                    };
                    // Eight to a line on average; of random ones the fullest of 2048 has 19 to 24, nearly always.
                    for shift in [1, 21, 53] {
                        assert!(fullest(shift) <= 30, "{name}, seed {seed}, bits from {shift}: {}", fullest(shift));
                    }
                }
            }
        }
    }

    #[test]
    fn a_key_is_the_same_from_a_packet_and_from_its_fields() {
        let packet: [u8; 15] = [17, 0xAA, 0xBB, 10, 0, 0, 1, 192, 0, 2, 9, 0x12, 0x34, 0, 53];
        let eight = |at: usize| u64::from_ne_bytes(core::array::from_fn(|byte| packet[at + byte]));
        let four = |at: usize| u32::from_ne_bytes(core::array::from_fn(|byte| packet[at + byte]));
        assert_eq!(Key::read(eight(0), eight(7)).0, Key::new(17, four(3), four(7), four(11)).0);
    }

    #[test]
    fn side_and_protocol_count() {
        let hash = KeyHash::new(&RandomState::with_seeds(1, 2, 3, 4));
        let all = [(Side::Inside, 6), (Side::Inside, 17), (Side::Outside, 6), (Side::Outside, 17)];
        let hashes: HashSet<_> = all.iter().map(|&(side, protocol)| hash.of(side, Key::new(protocol, 1, 2, 3))).collect();
        assert_eq!(hashes.len(), all.len());
    }
}
