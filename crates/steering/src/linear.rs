//! Proofs about a key: which input bits reach the low bits of the hash, and how far a field spreads over them.
//!
//! Knows linear algebra over GF(2): the hash is a matrix, its columns are the key's windows. Called by [`crate::key`] and
//! [`crate::ways`] when a key is made or judged, and by tests. **Cost:** cold.
//! Source: any text on Gaussian elimination; the matrix is Toeplitz, since each window is the one before, moved by one bit.

use core::ops::Range;

use crate::fields::{Field, HashFields};
use crate::toeplitz::Key;

/// The rank of the map from the key positions `input` to the hash bits `index`, 0 for the lowest.
///
/// With full rank, `index.len()`, each value of those hash bits is had by equally many values of the input bits.
pub fn rank(key: &Key, input: impl IntoIterator<Item = usize>, index: Range<u32>) -> u32 {
    let mut basis = [0_u32; 32];
    let columns = input.into_iter().map(|bit| part_of(key.window(bit), &index));
    columns.map(|column| u32::from(insert(&mut basis, column))).sum()
}

/// Whether the lowest `bits` bits of the hash are the same for all values of `field`.
pub fn is_independent_of(key: &Key, field: Field, bits: u32) -> bool {
    field.bits().all(|bit| part_of(key.window(bit), &(0..bits)) == 0)
}

/// Whether the lowest `bits` bits of the hash depend on no field but `fields`.
pub fn depends_only_on(key: &Key, fields: HashFields, bits: u32) -> bool {
    Field::ALL.into_iter().filter(|&field| !fields.has(field)).all(|field| is_independent_of(key, field, bits))
}

fn part_of(column: u32, index: &Range<u32>) -> u32 {
    let width = index.len() as u32;
    column.checked_shr(index.start).unwrap_or(0) & 1_u32.checked_shl(width).map_or(u32::MAX, |end| end - 1)
}

/// Adds `column` to a basis, each vector at the place of its highest bit. False when the basis had it already.
fn insert(basis: &mut [u32; 32], mut column: u32) -> bool {
    while column != 0 {
        let place = column.ilog2() as usize;
        if basis[place] == 0 {
            basis[place] = column;
            return true;
        }
        column ^= basis[place];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_key_of_zeros_reaches_nothing() {
        let key = Key::from_slice(&[0; 40]).expect("40 bytes are a key");
        assert_eq!(rank(&key, 0..96, 0..32), 0);
        assert!(depends_only_on(&key, HashFields::NONE, 32));
    }

    #[test]
    fn one_key_bit_makes_a_unit_matrix() {
        let mut bytes = [0; 40];
        bytes[4] = 0x80; // key bit 32: input bit 1 has it lowest, input bit 32 highest
        let key = Key::from_slice(&bytes).expect("40 bytes are a key");
        assert_eq!((rank(&key, 0..33, 0..32), rank(&key, 1..8, 0..32), rank(&key, 1..8, 0..3)), (32, 7, 3));
        assert!(is_independent_of(&key, Field::SourcePort, 32));
        assert!(!is_independent_of(&key, Field::SourceAddress, 1));
    }

    proptest! {
        /// Counting all values of eight input bits says the same as elimination: the hash takes 2 to the rank values.
        #[test]
        fn rank_counts_the_values_that_the_hash_takes(key in any::<[u8; 20]>(), byte in 0_usize..12, low in 0_u32..32, width in 0_u32..9) {
            let key = Key::from_slice(&key).expect("20 bytes are a key");
            let index = low..(low + width).min(32);
            let values: BTreeSet<_> = (0..=255_u8)
                .map(|value| {
                    let mut input = [0; 12];
                    input[byte] = value;
                    part_of(key.hash(&input), &index)
                })
                .collect();
            prop_assert_eq!(values.len(), 1 << rank(&key, byte * 8..byte * 8 + 8, index));
        }
    }
}
