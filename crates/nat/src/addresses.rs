//! Which slot an external address is in: a small open table, asked for every packet that takes the ordinary way.
//!
//! Knows addresses and slots. Rebuilt when the policy changes. Invariant: at most half of the places are taken, so that a search ends.
//! **Cost:** one multiplication and, nearly always, one place.

use core::net::Ipv4Addr;

/// Fibonacci hashing (Knuth, volume 3, section 6.4): addresses of one prefix come to lie apart.
const FACTOR: u32 = 0x9E37_79B1;

/// The table. A place is the address and its slot plus one; zero is free.
pub(crate) struct Addresses {
    places: Box<[(u32, u32)]>,
    shift: u32,
}

impl Addresses {
    /// A table with room for `most` addresses.
    pub(crate) fn new(most: usize) -> Self {
        let places = (2 * most).next_power_of_two().max(2);
        Self { places: vec![(0, 0); places].into_boxed_slice(), shift: 32 - places.trailing_zeros() }
    }

    pub(crate) fn clear(&mut self) {
        self.places.fill((0, 0));
    }

    /// Adds an address that is not in the table.
    pub(crate) fn insert(&mut self, address: Ipv4Addr, slot: u16) {
        let mut at = self.home(address);
        while self.places[at].1 != 0 {
            at = self.after(at);
        }
        self.places[at] = (address.to_bits(), u32::from(slot) + 1);
    }

    /// The slot of an address.
    #[inline]
    pub(crate) fn get(&self, address: Ipv4Addr) -> Option<u16> {
        let mut at = self.home(address);
        loop {
            let (seen, slot) = self.places[at];
            if slot == 0 || seen == address.to_bits() {
                return slot.checked_sub(1).map(|slot| slot as u16);
            }
            at = self.after(at);
        }
    }

    #[inline]
    fn home(&self, address: Ipv4Addr) -> usize {
        (address.to_bits().wrapping_mul(FACTOR) >> self.shift) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_agrees_with_a_map(addresses in proptest::collection::hash_set(prop_oneof![0_u32..64, any::<u32>()], 0..40)) {
            let mut table = Addresses::new(addresses.len());
            table.insert(Ipv4Addr::LOCALHOST, 9);
            table.clear();
            let model: HashMap<u32, u16> = addresses.iter().copied().zip(0..).collect();
            for (&address, &slot) in &model {
                table.insert(Ipv4Addr::from_bits(address), slot);
            }
            for address in addresses.iter().flat_map(|&address| [address, address ^ 1, address.wrapping_add(64)]) {
                prop_assert_eq!(table.get(Ipv4Addr::from_bits(address)), model.get(&address).copied());
            }
        }
    }

    #[test]
    fn an_empty_table_has_nothing() {
        assert_eq!(Addresses::new(0).get(Ipv4Addr::UNSPECIFIED), None);
    }
}
