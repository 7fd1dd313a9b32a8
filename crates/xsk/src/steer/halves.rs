//! A set of the first halves of IPv4 addresses: 65,536 bits that tell of most addresses what a table would say of them.
//!
//! Knows prefixes. Invariants: it has the half of every address of what was put in; of what was put in whole, no other. Used by
//! [`super::Steer`] for `special_halves` and `inside_halves`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::abi;

/// Bits of a half.
const BITS: u32 = 16;

/// The set: bit `n % 64` of word `n / 64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Halves {
    words: Box<[u64; abi::HALF_WORDS]>,
}

impl Default for Halves {
    fn default() -> Self {
        Self { words: Box::new([0; abi::HALF_WORDS]) }
    }
}

impl Halves {
    /// Adds the halves of all addresses of a prefix.
    pub(super) fn insert(&mut self, prefix: Ipv4Net) {
        self.insert_bits(prefix.network(), prefix.prefix_len().into());
    }

    /// The same of the prefix of that address with so many bits.
    pub(super) fn insert_bits(&mut self, address: Ipv4Addr, length: u32) {
        let spanned = BITS - length.min(BITS);
        let first = (address.to_bits() >> BITS >> spanned << spanned) as usize;
        for half in first..first + (1 << spanned) {
            self.words[half / 64] |= 1 << (half % 64);
        }
    }

    /// Adds the halves that a prefix has all addresses of.
    pub(super) fn insert_whole(&mut self, prefix: Ipv4Net) {
        if u32::from(prefix.prefix_len()) <= BITS {
            self.insert(prefix);
        }
    }

    /// Takes out what `other` has not.
    pub(super) fn retain(&mut self, other: &Self) {
        self.words.iter_mut().zip(other.words.iter()).for_each(|(word, other)| *word &= other);
    }

    /// As the table has it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(prefixes: &[&str], insert: fn(&mut Halves, Ipv4Net)) -> Halves {
        let mut halves = Halves::default();
        for prefix in prefixes {
            insert(&mut halves, prefix.parse().expect("a prefix"));
        }
        halves
    }

    fn list(halves: &Halves) -> Vec<usize> {
        (0..1 << BITS).filter(|half| halves.words[half / 64] >> (half % 64) & 1 == 1).collect()
    }

    fn of(prefixes: &[&str]) -> Vec<usize> {
        list(&collect(prefixes, Halves::insert))
    }

    #[test]
    fn whole_halves_are_those_that_one_prefix_has() {
        let mut whole = collect(&["10.0.0.0/15", "10.2.0.0/16", "10.3.0.0/17", "10.3.128.0/17"], Halves::insert_whole);
        assert_eq!(list(&whole), [0x0A00, 0x0A01, 0x0A02]);
        whole.retain(&collect(&["10.1.0.0/16", "10.2.0.0/15"], Halves::insert_whole));
        assert_eq!(list(&whole), [0x0A01, 0x0A02]);
    }

    #[test]
    fn a_prefix_has_the_halves_of_all_its_addresses() {
        assert_eq!(of(&["10.1.2.3/32", "10.1.255.0/24", "10.2.0.0/16"]), [0x0A01, 0x0A02]);
        assert_eq!(of(&["10.0.0.0/15", "255.255.255.255/32"]), [0x0A00, 0x0A01, 0xFFFF]);
        assert_eq!(of(&["172.16.0.0/12"]), (0xAC10..0xAC20).collect::<Vec<_>>());
        assert_eq!((of(&[]).len(), of(&["0.0.0.0/0"]).len(), of(&["128.0.0.0/1"])[0]), (0, 1 << 16, 0x8000));
    }
}
