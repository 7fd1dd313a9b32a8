//! The internal addresses with mappings, and the slot of the external address that each has.
//!
//! Knows addresses, slots and counts. Called for first packets and when mappings end. Invariant: an address is in the table as long as it has
//! mappings, and all of these have ports of one external address (RFC 4787, REQ-2: "Paired"). A hash table in lines of 64 bytes, as
//! [`crate::index`] is, but with what it has of an address in the line itself: a look-up reads one line, which can be fetched ahead.

use core::net::Ipv4Addr;

use ahash::RandomState;
use wide::u32x4;

use crate::ahead;

/// Addresses in a line.
const PLACES: usize = 6;

/// Addresses for which there is a line, on average, when the table grows. One in nine lines is full then and passes on to the next.
const FILL: usize = 4;

/// A cache line of addresses. Whoever has no mappings has all zero.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line {
    addresses: [u32; PLACES],
    mappings: [u32; PLACES],
    slots: [u16; PLACES],
    /// Addresses that are further on because this line was full.
    passed_on: u32,
}

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    /// The place of an address.
    #[inline]
    fn place_of(&self, address: u32) -> Option<usize> {
        // Free places have the address zero, which is no host's.
        first_of(&self.addresses, address).filter(|&place| self.mappings[place] != 0)
    }

    #[inline]
    fn free_place(&self) -> Option<usize> {
        first_of(&self.mappings, 0)
    }
}

/// The first place that has `wanted`.
#[inline]
fn first_of(places: &[u32; PLACES], wanted: u32) -> Option<usize> {
    let equal = |from: usize| {
        let four = core::array::from_fn(|lane| places[from + lane]);
        u32x4::new(four).simd_eq(u32x4::splat(wanted)).to_bitmask() << from
    };
    // Four places each: two are compared twice.
    let found = equal(0) | equal(PLACES - 4);
    (found != 0).then(|| found.trailing_zeros() as usize)
}

/// The table of them.
pub(crate) struct Subscribers {
    lines: Vec<Line>,
    len: usize,
    hasher: RandomState,
}

impl Subscribers {
    /// A table with room for so many.
    pub(crate) fn with_capacity(capacity: usize, hasher: &RandomState) -> Self {
        Self { lines: vec![Line::default(); capacity.div_ceil(FILL).max(1)], len: 0, hasher: hasher.clone() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The slot of the external address that the mappings of `address` have. None where it has no mapping.
    #[inline]
    pub(crate) fn slot_of(&self, address: Ipv4Addr) -> Option<u16> {
        let (at, place) = self.find(address.to_bits(), self.home(address))?;
        Some(self.lines[at].slots[place])
    }

    /// Has the line of `address` fetched.
    #[inline]
    pub(crate) fn fetch(&self, address: Ipv4Addr) {
        self.fetch_home(self.home(address));
    }

    /// Has the line fetched that is an address's [`Subscribers::home`].
    #[inline]
    pub(crate) fn fetch_home(&self, home: usize) {
        ahead::fetch(&self.lines[home].addresses[0]);
    }

    /// `address` has one mapping more, with a port of the slot's address. **Cost:** one line, but where the table grows to twice as many lines.
    #[inline]
    pub(crate) fn add_mapping(&mut self, address: Ipv4Addr, slot: u16) {
        let home = self.home(address);
        let address = address.to_bits();
        let (at, place) = self.find(address, home).unwrap_or_else(|| self.add(address));
        let line = &mut self.lines[at];
        line.slots[place] = slot;
        line.mappings[place] += 1;
    }

    /// `address`, whose [`Subscribers::home`] is given, has one mapping less. **Panics** in debug builds when it has none.
    #[inline]
    pub(crate) fn remove_mapping(&mut self, address: Ipv4Addr, home: usize) {
        let address = address.to_bits();
        let Some((at, place)) = self.find(address, home) else {
            debug_assert!(false, "{address:#x} has no mapping");
            return;
        };
        let line = &mut self.lines[at];
        line.mappings[place] -= 1;
        if line.mappings[place] == 0 {
            (line.addresses[place], line.slots[place]) = (0, 0);
            self.len -= 1;
            self.pass_over(address, at, |passed_on| passed_on - 1);
        }
    }

    /// The line and the place of an address.
    #[inline]
    fn find(&self, address: u32, home: usize) -> Option<(usize, usize)> {
        let mut at = home;
        for _ in 0..self.lines.len() {
            let line = &self.lines[at];
            if let Some(place) = line.place_of(address) {
                return Some((at, place));
            }
            if line.passed_on == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// Gives a place, without a mapping yet, to an address that has none. Returns the line and the place.
    fn add(&mut self, address: u32) -> (usize, usize) {
        debug_assert!(address != 0, "zero is no host's address");
        if self.len == self.lines.len() * FILL {
            self.grow();
        }
        let mut at = self.home(Ipv4Addr::from_bits(address));
        let place = loop {
            match self.lines[at].free_place() {
                Some(place) => break place,
                None => at = self.after(at),
            }
        };
        self.pass_over(address, at, |passed_on| passed_on + 1);
        self.lines[at].addresses[place] = address;
        self.len += 1;
        (at, place)
    }

    #[cold]
    fn grow(&mut self) {
        let twice = vec![Line::default(); 2 * self.lines.len()];
        let before = core::mem::replace(&mut self.lines, twice);
        self.len = 0;
        for line in before {
            let places = line.addresses.into_iter().zip(line.mappings).zip(line.slots);
            for ((address, mappings), slot) in places.filter(|((_, mappings), _)| *mappings != 0) {
                let (at, place) = self.add(address);
                let line = &mut self.lines[at];
                (line.mappings[place], line.slots[place]) = (mappings, slot);
            }
        }
    }

    /// Changes what the lines before `end`, from the address's home on, have passed on.
    #[inline]
    fn pass_over(&mut self, address: u32, end: usize, change: impl Fn(u32) -> u32) {
        let mut at = self.home(Ipv4Addr::from_bits(address));
        while at != end {
            self.lines[at].passed_on = change(self.lines[at].passed_on);
            at = self.after(at);
        }
    }

    /// Where the search for an address begins, until one is added.
    #[inline]
    pub(crate) fn home(&self, address: Ipv4Addr) -> usize {
        ((u128::from(self.hasher.hash_one(address.to_bits())) * self.lines.len() as u128) >> 64) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 < self.lines.len() { at + 1 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn subscribers(capacity: usize) -> Subscribers {
        Subscribers::with_capacity(capacity, &RandomState::with_seeds(1, 2, 3, 4))
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(
            // From one line on, so that lines overflow and the table grows.
            capacity in 1_usize..20,
            steps in proptest::collection::vec((1_u32..30, 0_u16..3, any::<bool>()), 0..300)
        ) {
            let (mut table, mut model) = (subscribers(capacity), HashMap::<u32, (u32, u16)>::new());
            for (bits, slot, adds) in steps {
                let address = Ipv4Addr::from_bits(bits);
                table.fetch(address);
                if adds {
                    table.add_mapping(address, slot);
                    let one = model.entry(bits).or_default();
                    *one = (one.0 + 1, slot);
                } else if let Some(one) = model.get_mut(&bits) {
                    table.remove_mapping(address, table.home(address));
                    one.0 -= 1;
                    if one.0 == 0 {
                        model.remove(&bits);
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                for bits in 0..30 {
                    prop_assert_eq!(table.slot_of(Ipv4Addr::from_bits(bits)), model.get(&bits).map(|&(_, slot)| slot));
                }
            }
            for (bits, (mappings, _)) in model {
                let address = Ipv4Addr::from_bits(bits);
                (0..mappings).for_each(|_| table.remove_mapping(address, table.home(address)));
            }
            prop_assert_eq!(table.len(), 0);
            prop_assert!(table.lines.iter().all(|line| line.addresses == [0; PLACES] && line.passed_on == 0), "nothing stays behind");
        }
    }

    #[test]
    fn an_address_is_known_as_long_as_it_has_mappings() {
        let mut table = subscribers(1);
        // More than it has room for at first.
        let hosts = || (0..1000).map(|number| Ipv4Addr::from_bits(0x0A00_0000 + number));
        for (slot, host) in hosts().enumerate() {
            assert_eq!(table.slot_of(host), None);
            table.add_mapping(host, slot as u16);
            table.add_mapping(host, slot as u16 + 1);
        }
        assert_eq!(table.len(), 1000);
        for (slot, host) in hosts().enumerate() {
            assert_eq!(table.slot_of(host), Some(slot as u16 + 1), "the slot of its newest mapping");
            table.remove_mapping(host, table.home(host));
            assert_eq!(table.slot_of(host), Some(slot as u16 + 1));
            table.remove_mapping(host, table.home(host));
            assert_eq!(table.slot_of(host), None);
        }
        assert_eq!(table.len(), 0);
    }
}
