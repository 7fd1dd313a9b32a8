//! Key synthesis: keys under which the low bits of the hash depend on the fields that the owner follows from, and on no other.
//!
//! Knows key bits. Its randomness is an argument. Called at start, to program NICs and for owners in software. Invariant: what is
//! returned is proved, by rank, to ignore the other fields and to spread the wanted ones. The maths and a picture: docs/steering.md.
//!
//! ```text
//! A table of 2^k entries asks for the low k hash bits. Of those, input bit i meets key bits i+32-k ..= i+31, so for k = 7:
//!
//! input bits   0 src 31 │ 32 dst 63 │ 64 sport 79 │ 80 dport 95 │
//! meet key    25 ── 62  │ 57 ── 94  │  89 ── 110  │ 105 ── 126  │
//! inside      wanted    │ 57 ──────── zero ─────────────── 126  │
//! outside     25 zero 62│  wanted   │  89 zero 110│   wanted    │   What a zero and a wanted range share is zero.
//! ```
//!
//! IPv4 only: the input of IPv6 is longer, and IPv6 goes through the kernel, for which any spread will do.

use core::ops::RangeInclusive;

use crate::fields::{Field, Side};
use crate::linear::{depends_only_on, rank};
use crate::toeplitz::{Key, LONGEST_KEY};

/// Most index bits that a key is made for: an indirection table of 2048 entries.
pub const MOST_BITS: u32 = 11;

/// Random keys that are tried. A third or more of them are good (a test counts), so that all fail less than once in 2^140.
pub const MOST_TRIES: u32 = 256;

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The table is smaller or larger than keys are made for.
    #[error("no key for {bits} index bits: tables of 2 to {} entries have 1 to {MOST_BITS}", 1 << MOST_BITS)]
    Bits {
        /// What was asked for.
        bits: u32,
    },
    /// The random numbers ended.
    #[error("the random numbers ended before a key that spreads was found")]
    OutOfRandom,
    /// None of the tries gave a key that spreads: the random numbers are not random.
    #[error("{MOST_TRIES} random keys, and none that spreads: is the source of randomness broken?")]
    Unlucky,
}

/// A key for a device of `side` whose table has 2^`bits` entries, or is a repetition of one that has: and for all smaller tables.
///
/// **Errors:** [`KeyError`]. **Cost:** cold; takes seven numbers of `random` a try, one to three tries as a rule.
pub fn synthesise(side: Side, bits: u32, random: &mut impl Iterator<Item = u64>) -> Result<Key, KeyError> {
    if !(1..=MOST_BITS).contains(&bits) {
        return Err(KeyError::Bits { bits });
    }
    for _ in 0..MOST_TRIES {
        let mut key = random_key(random).ok_or(KeyError::OutOfRandom)?;
        for unwanted in zeros(side, bits as usize) {
            key.clear(unwanted);
        }
        if is_proved(&key, side, bits) {
            return Ok(key);
        }
    }
    Err(KeyError::Unlucky)
}

/// Whether the low `bits` bits depend on the wanted fields only, and spread them: all that [`synthesise`] promises.
pub fn is_proved(key: &Key, side: Side, bits: u32) -> bool {
    depends_only_on(key, side.fields(), bits) && spreads(key, side, bits)
}

fn random_key(random: &mut impl Iterator<Item = u64>) -> Option<Key> {
    let mut bytes = [0; LONGEST_KEY];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next()?.to_be_bytes()[..chunk.len()]);
    }
    Some(Key::new(bytes))
}

/// The key bits that must be zero: all that an unwanted input bit meets.
fn zeros(side: Side, bits: usize) -> Vec<RangeInclusive<usize>> {
    let unwanted = Field::ALL.into_iter().filter(|&field| !side.fields().has(field)).map(Field::bits);
    unwanted.map(|field| field.start + 32 - bits..=field.end - 1 + 31).collect()
}

/// How far a wanted part of the input must spread.
struct Spread {
    /// The part, as input bits.
    input: core::ops::Range<usize>,
    /// Over how many of the highest index bits. The highest decide in a table in blocks.
    highest: u32,
}

/// Full rank of each part over its index bits means: over all its values, equally often on each value of those.
fn spreads(key: &Key, side: Side, bits: u32) -> bool {
    let whole = |field: Field| Spread { input: field.bits(), highest: bits };
    let part = |input, highest: u32| Spread { input, highest: highest.min(bits) };
    let (source, destination, port) =
        (Field::SourceAddress.bits().end, Field::DestinationAddress.bits().end, Field::DestinationPort.bits().end);
    let wanted = match side {
        Side::Inside => vec![
            whole(Field::SourceAddress),
            // An aligned subnet of 2, 256 or 65,536 addresses. The zeros beside the field make the matrix triangular here: when the
            // last bit reaches the highest index bit, the last n bits reach the n highest.
            part(source - 1..source, 1),
            part(source - 8..source, 8),
            part(source - 16..source, 16),
            // One subscriber in each /24.
            part(source - 16..source - 8, 5),
        ],
        Side::Outside => vec![
            whole(Field::DestinationPort),
            whole(Field::DestinationAddress),
            // 1024 ports in a row, so that the ports from 1024 up spread as evenly as all.
            part(port - 10..port, 8),
            // 256 addresses in a row, for what has no port.
            part(destination - 8..destination, 8),
        ],
    };
    wanted.into_iter().all(|Spread { input, highest }| rank(key, input, bits - highest..bits) == highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zeros_are_where_the_diagram_has_them() {
        for bits in 2..=MOST_BITS as usize {
            let inside = zeros(Side::Inside, bits);
            assert!((0..200).all(|bit| inside.iter().any(|zero| zero.contains(&bit)) == (64 - bits..=126).contains(&bit)));
            assert_eq!(zeros(Side::Outside, bits), [32 - bits..=62, 96 - bits..=110]);
        }
    }

    #[test]
    fn only_tables_that_a_key_can_serve_are_served() {
        for bits in [0, MOST_BITS + 1, 32] {
            assert_eq!(synthesise(Side::Inside, bits, &mut core::iter::repeat(0)), Err(KeyError::Bits { bits }));
        }
    }

    #[test]
    fn broken_randomness_is_told_and_not_used() {
        assert_eq!(synthesise(Side::Outside, 7, &mut core::iter::repeat(0)), Err(KeyError::Unlucky));
        assert_eq!(synthesise(Side::Outside, 7, &mut core::iter::repeat_n(0, 20)), Err(KeyError::OutOfRandom));
    }
}
