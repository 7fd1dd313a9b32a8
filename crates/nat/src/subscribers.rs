//! The internal addresses with mappings, and the slot of the external address that each has.
//!
//! Knows addresses, slots and counts. Called for first packets and when mappings end. Invariant: an address is in the table as long as it has
//! mappings, and all of these have ports of one external address (RFC 4787, REQ-2: "Paired").

use core::net::Ipv4Addr;

use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::ahead;

/// An internal address with mappings.
#[derive(Clone, Copy, Debug)]
struct Subscriber {
    address: u32,
    mappings: u32,
    slot: u16,
}

/// The table of them.
pub(crate) struct Subscribers {
    table: HashTable<Subscriber>,
    hasher: RandomState,
}

impl Subscribers {
    /// A table with room for so many.
    pub(crate) fn with_capacity(capacity: usize, hasher: &RandomState) -> Self {
        Self { table: HashTable::with_capacity(capacity), hasher: hasher.clone() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// The slot of the external address that the mappings of `address` have. None where it has no mapping.
    #[inline]
    pub(crate) fn slot_of(&self, address: Ipv4Addr) -> Option<u16> {
        let address = address.to_bits();
        self.table.find(self.hasher.hash_one(address), |one| one.address == address).map(|one| one.slot)
    }

    /// Has fetched what is known of `address`. Waits for the byte of the table that says where it is, but not for the rest.
    #[inline]
    pub(crate) fn fetch(&self, address: Ipv4Addr) {
        // Whatever the table compares first: it is another one once in a hundred times.
        let found = self.table.find(self.hasher.hash_one(address.to_bits()), |one| {
            ahead::fetch(&one.address);
            true
        });
        core::hint::black_box(found.is_some());
    }

    /// `address` has one mapping more, with a port of the slot's address.
    #[inline]
    pub(crate) fn add_mapping(&mut self, address: Ipv4Addr, slot: u16) {
        let (address, hasher) = (address.to_bits(), &self.hasher);
        match self.table.entry(hasher.hash_one(address), |one| one.address == address, |one| hasher.hash_one(one.address)) {
            Entry::Occupied(mut entry) => {
                let one = entry.get_mut();
                (one.slot, one.mappings) = (slot, one.mappings + 1);
            }
            Entry::Vacant(entry) => {
                entry.insert(Subscriber { address, mappings: 1, slot });
            }
        }
    }

    /// `address` has one mapping less. **Panics** in debug builds when it has none.
    pub(crate) fn remove_mapping(&mut self, address: Ipv4Addr) {
        let address = address.to_bits();
        let Ok(mut entry) = self.table.find_entry(self.hasher.hash_one(address), |one| one.address == address) else {
            debug_assert!(false, "{address:#x} has no mapping");
            return;
        };
        entry.get_mut().mappings -= 1;
        if entry.get().mappings == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_as_long_as_it_has_mappings_and_fetching_changes_nothing() {
        let mut subscribers = Subscribers::with_capacity(1, &RandomState::with_seeds(1, 2, 3, 4));
        // More than it has room for at first.
        let hosts = || (0..1000).map(|number| Ipv4Addr::from_bits(0x0A00_0000 + number));
        for (slot, host) in hosts().enumerate() {
            subscribers.fetch(host);
            assert_eq!(subscribers.slot_of(host), None);
            subscribers.add_mapping(host, slot as u16);
            subscribers.add_mapping(host, slot as u16 + 1);
        }
        assert_eq!(subscribers.len(), 1000);
        for (slot, host) in hosts().enumerate() {
            subscribers.fetch(host);
            assert_eq!(subscribers.slot_of(host), Some(slot as u16 + 1), "the slot of its newest mapping");
            subscribers.remove_mapping(host);
            assert_eq!(subscribers.slot_of(host), Some(slot as u16 + 1));
            subscribers.remove_mapping(host);
            assert_eq!(subscribers.slot_of(host), None);
        }
        assert_eq!(subscribers.len(), 0);
    }
}
