//! The owner functions: which worker has a subscriber, an external endpoint, a datagram in fragments.
//!
//! Knows hashes and tables of workers, no packets. Asked by the NAT for every packet (step 4) and for the ports that it may allocate.
//! Invariants: the same value in every worker gives the same answers; every external endpoint has exactly one owner. Each rule is
//! linear over XOR, so that one form, a table a byte, serves all. Tests: below, and tests/owners.rs.
//!
//! ```text
//! inside:  source address              ─ rule ─ index ─ table ─ worker
//! outside: destination address, port   ─ rule ─ index ─ table ─ worker
//! a protocol without ports: remote address as inside, whichever way it goes
//! a later fragment from outside: (destination address, identification) as outside
//! ```

use core::net::Ipv4Addr;
use std::sync::Arc;

use crate::fields::{Layout, Side};
use crate::key::{KeyError, synthesise};
use crate::shares::{AddressPorts, draw_outside};
use crate::table::{blocks, entries_for};
use crate::toeplitz::{ByteTable, Key};

/// A worker's number, from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

/// 64-bit words of a set of ports: bit `n % 64` of word `n / 64` is port `n`.
pub const PORT_WORDS: usize = 1024;

/// What the owners of one side follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The low bits of the Toeplitz hash of the side's fields: the source address, or the destination address and port.
    Hash {
        /// The key.
        key: Key,
        /// Where a NIC that hashes these fields only has them in the input. All the same inside.
        layout: Layout,
    },
    /// The low bits of the source address, or of the destination port, as flow rules with masks see them.
    Slices,
}

/// What the owners of one side follow from, and the worker for each value of the low bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRule {
    /// What gives the index.
    pub basis: Basis,
    /// By index. A power of two long.
    pub table: Vec<WorkerId>,
}

/// The rules that say who owns what. The same in every worker; cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Owners {
    workers: u16,
    rules: Option<Arc<Rules>>,
}

#[derive(PartialEq, Eq)]
struct Rules {
    inside: Half<4>,
    outside: Half<6>,
}

/// One side's rule in the form that packets are asked in.
#[derive(PartialEq, Eq)]
struct Half<const N: usize> {
    bytes: [ByteTable; N],
    rule: OwnerRule,
}

impl core::fmt::Debug for Owners {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Owners").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Owners {
    /// One worker, which owns everything.
    pub const fn single() -> Self {
        Self { workers: 1, rules: None }
    }

    /// Owners by what `inside` makes of a source address and `outside` of a destination address and port; the low bits choose from
    /// `table`. **Panics:** when `table` is empty or its length is no power of two.
    pub fn new(inside: &Key, outside: &Key, table: Vec<WorkerId>) -> Self {
        let rule = |key: &Key, table| OwnerRule { basis: Basis::Hash { key: *key, layout: Layout::Kept }, table };
        Self::by(rule(inside, table.clone()), rule(outside, table))
    }

    /// Owners by a rule for each side. **Panics:** when a table is empty or its length is no power of two.
    pub fn by(inside: OwnerRule, outside: OwnerRule) -> Self {
        let workers = inside.table.iter().chain(&outside.table).map(|worker| worker.0 + 1).max().unwrap_or(1);
        let rules = Rules { inside: Half::new(inside, Side::Inside), outside: Half::new(outside, Side::Outside) };
        Self { workers, rules: Some(Arc::new(rules)) }
    }

    /// Owners that no NIC has to know: new keys, and a table that is even for so many workers. Every worker has its share of the ports in
    /// `wanted`, as far as [`draw_outside`] can.
    ///
    /// **Errors:** [`KeyError`] when `random` ends or is not random.
    pub fn software(workers: u16, wanted: &[AddressPorts<'_>], random: &mut impl Iterator<Item = u64>) -> Result<Self, KeyError> {
        if workers <= 1 {
            return Ok(Self::single());
        }
        let table = blocks(entries_for(workers), workers);
        let inside = synthesise(Side::Inside, table.len().ilog2(), random)?;
        Ok(Self::new(&inside, &draw_outside(&table, wanted, random)?, table))
    }

    /// How many workers there are.
    pub const fn workers(&self) -> u16 {
        self.workers
    }

    /// The rule of a side. None with one worker.
    pub fn rule(&self, side: Side) -> Option<&OwnerRule> {
        let rules = self.rules.as_deref()?;
        Some(match side {
            Side::Inside => &rules.inside.rule,
            Side::Outside => &rules.outside.rule,
        })
    }

    /// The key that the owners inside follow from, where they follow from a hash.
    pub fn inside_key(&self) -> Option<&Key> {
        self.rule(Side::Inside)?.key()
    }

    /// The key that the owners outside follow from, where they follow from a hash.
    pub fn outside_key(&self) -> Option<&Key> {
        self.rule(Side::Outside)?.key()
    }

    /// The workers by index on a side. Empty with one worker.
    pub fn table(&self, side: Side) -> &[WorkerId] {
        self.rule(side).map_or(&[], |rule| &rule.table)
    }

    /// The owner of an internal address, with all its mappings and sessions.
    #[inline]
    pub fn of_subscriber(&self, address: Ipv4Addr) -> WorkerId {
        let Some(rules) = &self.rules else { return WorkerId(0) };
        rules.inside.worker(rules.inside.index(&address.octets()))
    }

    /// The owner of an external endpoint: the worker that its inbound packets reach.
    #[inline]
    pub fn of_external(&self, address: Ipv4Addr, port: u16) -> WorkerId {
        let Some(rules) = &self.rules else { return WorkerId(0) };
        rules.outside.worker(rules.outside.index_of(address, port))
    }

    /// The owner of a remote address: of what is said with it in protocols without ports, whoever says it and whichever way it goes. No device
    /// hashes that address alone on both sides, so that any hash does; this is the one at hand.
    #[inline]
    pub fn of_remote(&self, address: Ipv4Addr) -> WorkerId {
        self.of_subscriber(address)
    }

    /// The worker that puts the fragments of a datagram from outside in order.
    #[inline]
    pub fn of_datagram(&self, destination: Ipv4Addr, identification: u16) -> WorkerId {
        self.of_external(destination, identification)
    }

    /// The ports of an external address that a worker owns, in order. **Cost:** two loads and a look-up a port.
    pub fn ports(&self, address: Ipv4Addr, worker: WorkerId) -> impl Iterator<Item = u16> + '_ {
        (0..=u16::MAX).filter(move |&port| self.of_external(address, port) == worker)
    }

    /// The ports of an external address that a worker owns. **Shape:** see [`PORT_WORDS`]. **Cost:** cold; six passes over the
    /// table and a load for each word.
    pub fn ports_of(&self, address: Ipv4Addr, worker: WorkerId) -> Box<[u64; PORT_WORDS]> {
        match &self.rules {
            Some(rules) => rules.outside.ports_of(address, worker),
            None => Box::new([if worker == WorkerId(0) { u64::MAX } else { 0 }; PORT_WORDS]),
        }
    }

    /// How many of the ports of each address each worker owns. **Cost:** cold; see [`crate::shares::shortages`].
    pub fn shares(&self, wanted: &[AddressPorts<'_>]) -> Vec<Vec<u32>> {
        let Some(rules) = &self.rules else {
            return wanted.iter().map(|wanted| vec![wanted.ports.iter().map(|word| word.count_ones()).sum()]).collect();
        };
        let mut all: Vec<Vec<u32>> = Vec::with_capacity(wanted.len());
        // The addresses of a pool have the same ports as a rule.
        for alike in wanted.chunk_by(|one, next| one.ports == next.ports) {
            let indices = rules.outside.indices_of(alike[0].ports);
            all.extend(alike.iter().map(|one| rules.outside.shares_of(one.address, &indices, self.workers)));
        }
        all
    }
}

impl OwnerRule {
    fn key(&self) -> Option<&Key> {
        match &self.basis {
            Basis::Hash { key, .. } => Some(key),
            Basis::Slices => None,
        }
    }

    /// What the bit of the field byte `byte` adds to the index, `bit` 0 being its highest.
    fn adds(&self, side: Side, places: &[(usize, usize)], byte: usize, bit: usize) -> u16 {
        match self.basis {
            Basis::Hash { key, .. } => key.window(places[byte].1 * 8 + bit) as u16,
            Basis::Slices => slice_bit(side, byte, bit),
        }
    }
}

/// The same for slices: the field's last 16 bits are the index as they are. **Shape:** an address has bytes 0 to 3, a port 4 and 5.
fn slice_bit(side: Side, byte: usize, bit: usize) -> u16 {
    let low = match side {
        Side::Inside => 2,
        Side::Outside => 4,
    };
    if byte < low { 0 } else { 0x8000 >> ((byte - low) * 8 + bit) }
}

impl<const N: usize> Half<N> {
    fn new(rule: OwnerRule, side: Side) -> Self {
        assert!(rule.table.len().is_power_of_two(), "a table of {} entries", rule.table.len());
        let layout = if let Basis::Hash { layout, .. } = rule.basis { layout } else { Layout::Kept };
        let places = layout.places(side.fields());
        Self { bytes: core::array::from_fn(|byte| ByteTable::linear(|bit| rule.adds(side, &places, byte, bit))), rule }
    }

    #[inline]
    fn index(&self, bytes: &[u8; N]) -> usize {
        let sum = self.bytes.iter().zip(bytes).fold(0, |sum, (table, &byte)| sum ^ table.of(byte));
        usize::from(sum) & (self.rule.table.len() - 1)
    }

    #[inline]
    fn worker(&self, index: usize) -> WorkerId {
        self.rule.table[index]
    }
}

impl Half<6> {
    #[inline]
    fn index_of(&self, address: Ipv4Addr, port: u16) -> usize {
        let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
        self.index(&[a, b, c, d, high, low])
    }

    /// How many of the ports lead to each index, under an address that adds nothing to it.
    fn indices_of(&self, ports: &[u64; PORT_WORDS]) -> Vec<u32> {
        let mut indices = vec![0; self.rule.table.len()];
        for (at, &word) in ports.iter().enumerate() {
            let set = (0..64_u16).filter(|&bit| word >> bit & 1 == 1);
            set.for_each(|bit| indices[self.index_of(Ipv4Addr::UNSPECIFIED, at as u16 * 64 + bit)] += 1);
        }
        indices
    }

    /// How many of those each worker has under `address`: the index is linear, so that an address moves all ports alike.
    fn shares_of(&self, address: Ipv4Addr, indices: &[u32], workers: u16) -> Vec<u32> {
        let moved = self.index_of(address, 0);
        indices.iter().enumerate().fold(vec![0; usize::from(workers)], |mut shares, (index, count)| {
            shares[usize::from(self.worker(index ^ moved).0)] += count;
            shares
        })
    }

    /// A word of 64 ports is one of few patterns, given by the index of its first port; so all patterns are made first, by doubling.
    fn ports_of(&self, address: Ipv4Addr, worker: WorkerId) -> Box<[u64; PORT_WORDS]> {
        let mut patterns: Vec<u64> = self.rule.table.iter().map(|&owner| u64::from(owner == worker)).collect();
        for bit in 0..6 {
            let moved = usize::from(self.bytes[5].of(1 << bit)) & (patterns.len() - 1);
            patterns = (0..patterns.len()).map(|at| patterns[at] | patterns[at ^ moved] << (1 << bit)).collect();
        }
        let mut words = Box::new([0; PORT_WORDS]);
        words.iter_mut().enumerate().for_each(|(at, word)| *word = patterns[self.index_of(address, at as u16 * 64)]);
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(workers: u16) -> Owners {
        let key = |seed: u8| Key::new(core::array::from_fn(|at| (at as u8 ^ seed).wrapping_mul(0x9d).wrapping_add(seed)));
        Owners::new(&key(1), &key(77), (0..128).map(|entry| WorkerId(entry % workers)).collect())
    }

    #[test]
    fn one_worker_owns_everything() {
        let owners = Owners::single();
        let subscriber = owners.of_subscriber(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(subscriber, owners.of_external(Ipv4Addr::new(203, 0, 113, 1), 1024));
        assert_eq!(owners.ports_of(Ipv4Addr::LOCALHOST, WorkerId(0)).iter().map(|word| word.count_ones()).sum::<u32>(), 65_536);
        assert_eq!((owners.inside_key(), owners.table(Side::Outside)), (None, &[][..]));
    }

    #[test]
    fn every_port_has_exactly_one_owner() {
        let owners = owners(3);
        let address = Ipv4Addr::new(203, 0, 113, 10);
        let sets: Vec<_> = (0..3).map(|worker| owners.ports_of(address, WorkerId(worker))).collect();
        for word in 0..PORT_WORDS {
            assert_eq!(sets.iter().fold(0, |all, set| all | set[word]), u64::MAX);
            assert_eq!(sets.iter().map(|set| set[word].count_ones()).sum::<u32>(), 64);
        }
        assert_eq!(owners.workers(), 3);
    }

    #[test]
    fn the_keys_are_those_that_were_given() {
        let key = Key::new([7; crate::toeplitz::LONGEST_KEY]);
        let owners = Owners::new(&key, &Key::new([9; crate::toeplitz::LONGEST_KEY]), vec![WorkerId(0), WorkerId(1)]);
        assert_eq!((owners.inside_key(), owners.table(Side::Inside)), (Some(&key), &[WorkerId(0), WorkerId(1)][..]));
        assert_eq!(owners, owners.clone());
        assert_ne!(owners, Owners::single());
    }

    #[test]
    fn slices_go_by_the_last_bits_of_address_and_port() {
        let rule = || OwnerRule { basis: Basis::Slices, table: (0..8).map(|slice| WorkerId(slice % 4)).collect() };
        let owners = Owners::by(rule(), rule());
        for last in 0..=255 {
            assert_eq!(owners.of_subscriber(Ipv4Addr::new(10, 77, 3, last)), WorkerId(u16::from(last) % 4));
            let port = 0x5a00 | u16::from(last);
            assert_eq!(owners.of_external(Ipv4Addr::new(203, 0, 113, last), port), WorkerId(port % 4));
        }
        assert_eq!(owners.outside_key(), None);
    }
}
