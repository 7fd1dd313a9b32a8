//! Numbers that look random and can be computed again: a keyed hash, and a keyed permutation of any range.
//!
//! Knows arithmetic only. Called by `flow` to make tuples of numbers, so that no table of tuples has to be kept, and for draws.
//! Invariant: a permutation gives each number of its range once. Sources: SplitMix64 (Steele, 2014), cycle walking (Black, 2002).

/// A keyed hash of a number.
#[inline]
pub(crate) fn mix(key: u64, number: u64) -> u64 {
    let mut z = number.wrapping_add(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// A permutation of the numbers below a bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    bound: u32,
    /// Bits of each half.
    half: u32,
}

/// Rounds of the Feistel network. Four make a permutation that looks random (Luby and Rackoff, 1988).
const ROUNDS: u64 = 4;

impl Permutation {
    /// A permutation of the numbers below `bound`, which is at least one.
    pub(crate) fn below(bound: u32) -> Self {
        let bits = u32::BITS - (bound - 1).leading_zeros();
        Self { bound, half: bits.div_ceil(2).max(1) }
    }

    /// Where `number` goes under `key`. **Cost:** less than four networks on average.
    #[inline]
    pub(crate) fn of(self, key: u64, number: u32) -> u32 {
        debug_assert!(number < self.bound, "{number} is out of range");
        let mut at = self.network(key, number);
        while at >= self.bound {
            at = self.network(key, at);
        }
        at
    }

    #[inline]
    fn network(self, key: u64, number: u32) -> u32 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (number >> self.half, number & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ mix(key ^ round << 56, u64::from(right)) as u32 & mask);
        }
        left << self.half | right
    }
}

/// A sequence of random numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    key: u64,
    drawn: u64,
}

impl Draws {
    pub(crate) fn new(key: u64) -> Self {
        Self { key, drawn: 0 }
    }

    /// A number below `bound`, all as likely but for a share of `bound / 2^32`.
    #[inline]
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.drawn += 1;
        (((mix(self.key, self.drawn) >> 32) * u64::from(bound)) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_permutation_gives_every_number_of_its_range_once() {
        for bound in [1, 2, 3, 63, 64, 65, 1000, 64_512] {
            let permutation = Permutation::below(bound);
            let seen: BTreeSet<u32> = (0..bound).map(|number| permutation.of(7, number)).collect();
            assert_eq!(seen, (0..bound).collect(), "below {bound}");
        }
    }

    #[test]
    fn the_key_decides_the_order() {
        let permutation = Permutation::below(1000);
        let order = |key| (0..1000).map(|number| permutation.of(key, number)).collect::<Vec<_>>();
        assert_eq!(order(1), order(1));
        let same = order(1).iter().zip(order(2)).filter(|(one, other)| **one == *other).count();
        assert!(same < 20, "{same} of 1000 are at the same place");
    }

    #[test]
    fn draws_are_spread_over_the_whole_range() {
        let mut draws = Draws::new(3);
        let mut counts = [0; 10];
        (0..10_000).for_each(|_| counts[draws.below(10) as usize] += 1);
        assert!(counts.iter().all(|&count| (900..1100).contains(&count)), "{counts:?}");
    }
}
