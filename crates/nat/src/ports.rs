//! The ports of one external address for one protocol: which are free, and who has each of the others.
//!
//! Knows port numbers and the numbers of holders, whoever they are. Called on the slow path to take and release, and for inbound packets to find a mapping
//! without a hash. Invariant: a port is free, or taken by exactly one holder; the last free port is found. **Cost:** O(1) at any
//! fill. Sources: RFC 6056 section 3.3.1 (a random port, and from there the next that is free), RFC 6888 REQ-15.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ahead;
use crate::policy::PortSet;

const WORDS: usize = 1024;
const SUMMARY_WORDS: usize = WORDS / 64;

/// Words whose allowed ports are counted together: 1024 ports, so that the first group are those below 1024.
const GROUP_WORDS: usize = 16;
const GROUPS: usize = WORDS / GROUP_WORDS;
const GROUP_PORTS: u32 = GROUP_WORDS as u32 * 64;

/// What is known of 64 ports, a bit each. Side by side, since who reads one half reads the other.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
struct Word {
    /// Ports that mappings may take by policy, of this worker's.
    allowed: u64,
    /// Ports that a mapping has.
    taken: u64,
}

impl Word {
    fn free(self) -> u64 {
        self.allowed & !self.taken
    }
}

/// The space of 65,536 ports. **Shape:** plain data; all zero is a space without any port to take.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct PortSpace {
    words: [Word; WORDS],
    /// One bit for each word that has an allowed port that is not taken.
    summary: [u64; SUMMARY_WORDS],
    /// Ports that are taken.
    used: u32,
    /// Ports that are allowed.
    limit: u32,
    /// Fills the cache line.
    spare: [u32; 14],
    /// Of each group of words, the allowed ports before it.
    before: [u16; GROUPS],
    /// The holder of each port, plus one; zero for none.
    holders: [u32; WORDS * 64],
}

impl PortSpace {
    /// Sets the ports that mappings may take: those of the policy that are this worker's too; it owns all where `owned` is none. Ports
    /// taken before stay taken until they are released.
    pub(crate) fn allow(&mut self, ports: &PortSet, owned: Option<&[u64; WORDS]>) {
        for (number, &allowed) in ports.words().iter().enumerate() {
            self.words[number].allowed = allowed & owned.map_or(u64::MAX, |owned| owned[number]);
            self.summarise(number);
        }
        self.limit = 0;
        for (group, words) in self.words.chunks_exact(GROUP_WORDS).enumerate() {
            self.before[group] = self.limit as u16;
            self.limit += words.iter().map(|word| word.allowed.count_ones()).sum::<u32>();
        }
    }

    /// An allowed port, taken or not: each is as likely as another if `random` is any number. None where there are none.
    ///
    /// A draw among all numbers would not do: those that are not allowed would all end at the next one that is.
    pub(crate) fn draw(&self, random: u32) -> Option<u16> {
        if self.limit == 0 {
            return None;
        }
        Some(self.allowed_port((u64::from(random) * u64::from(self.limit) >> 32) as u32))
    }

    /// The allowed port that has so many before it, which must be fewer than there are.
    fn allowed_port(&self, rank: u32) -> u16 {
        let group = self.before.partition_point(|&before| u32::from(before) <= rank) - 1;
        let mut left = rank - u32::from(self.before[group]);
        let end = self.before.get(group + 1).map_or(self.limit, |&before| u32::from(before));
        let mut word = group * GROUP_WORDS;
        if end - u32::from(self.before[group]) == GROUP_PORTS {
            return (word * 64) as u16 + left as u16;
        }
        while left >= self.words[word].allowed.count_ones() {
            left -= self.words[word].allowed.count_ones();
            word += 1;
        }
        let bits = (0..left).fold(self.words[word].allowed, |bits, _| bits & (bits - 1));
        port_at(word, bits)
    }

    /// A free port, at or after `start`, round the end. None when all are taken.
    pub(crate) fn free_port(&self, start: u16) -> Option<u16> {
        let word = usize::from(start) / 64;
        let upper = self.free_in(word) & (u64::MAX << (start % 64));
        if upper != 0 {
            return Some(port_at(word, upper));
        }
        let next = self.next_word_with_free(word)?;
        Some(port_at(next, self.free_in(next)))
    }

    /// Gives `port` to `holder`. **Panics** in debug builds when it is taken.
    pub(crate) fn take(&mut self, port: u16, holder: u32) {
        let word = usize::from(port) / 64;
        debug_assert!(!self.is_taken(port), "port {port} is taken");
        self.words[word].taken |= 1 << (port % 64);
        self.used += 1;
        self.holders[usize::from(port)] = holder + 1;
        self.summarise(word);
    }

    /// Takes `port` back. **Panics** in debug builds when it is free.
    pub(crate) fn release(&mut self, port: u16) {
        let word = usize::from(port) / 64;
        debug_assert!(self.is_taken(port), "port {port} is free");
        self.words[word].taken &= !(1 << (port % 64));
        self.used -= 1;
        self.holders[usize::from(port)] = 0;
        self.summarise(word);
    }

    /// Puts another holder in the place of the one that has `port`. **Panics** in debug builds when it is free.
    pub(crate) fn pass_on(&mut self, port: u16, holder: u32) {
        debug_assert!(self.is_taken(port), "port {port} is free");
        self.holders[usize::from(port)] = holder + 1;
    }

    /// Who has `port`. **Cost:** one load.
    #[inline]
    pub(crate) fn holder(&self, port: u16) -> Option<u32> {
        self.holders[usize::from(port)].checked_sub(1)
    }

    /// Has what [`PortSpace::take`] and [`PortSpace::release`] write fetched.
    #[inline]
    pub(crate) fn fetch(&self, port: u16) {
        ahead::fetch(&self.holders[usize::from(port)]);
        ahead::fetch(&self.words[usize::from(port) / 64]);
    }

    /// How many ports mappings have.
    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// How many ports mappings may have.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether any port is free.
    pub(crate) fn has_free(&self) -> bool {
        self.summary.iter().any(|&word| word != 0)
    }

    fn is_taken(&self, port: u16) -> bool {
        self.words[usize::from(port) / 64].taken >> (port % 64) & 1 == 1
    }

    fn free_in(&self, word: usize) -> u64 {
        self.words[word].free()
    }

    fn summarise(&mut self, word: usize) {
        let bit = 1 << (word % 64);
        if self.free_in(word) == 0 {
            self.summary[word / 64] &= !bit;
        } else {
            self.summary[word / 64] |= bit;
        }
    }

    /// The next word after `word`, around the end and back to itself, that has a free port.
    fn next_word_with_free(&self, word: usize) -> Option<usize> {
        let start = (word + 1) % WORDS;
        let first = self.summary[start / 64] & (u64::MAX << (start % 64));
        if first != 0 {
            return Some(start / 64 * 64 + first.trailing_zeros() as usize);
        }
        (1..=SUMMARY_WORDS).find_map(|step| {
            let at = (start / 64 + step) % SUMMARY_WORDS;
            let bits = self.summary[at];
            (bits != 0).then(|| at * 64 + bits.trailing_zeros() as usize)
        })
    }
}

fn port_at(word: usize, bits: u64) -> u16 {
    (word * 64) as u16 + bits.trailing_zeros() as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use zerocopy::FromZeros as _;

    fn space(ports: &PortSet) -> Box<PortSpace> {
        let mut space = Box::new(PortSpace::new_zeroed());
        space.allow(ports, None);
        space
    }

    #[test]
    fn every_port_is_given_once_and_the_last_one_is_found() {
        let mut space = space(&PortSet::range(1000, 3000));
        let mut given = BTreeSet::new();
        for step in 0..2001_u32 {
            let port = space.free_port((step.wrapping_mul(40_503) >> 3) as u16).expect("a free port");
            space.take(port, step);
            assert!(given.insert(port), "port {port} was given twice");
        }
        assert_eq!(space.free_port(5), None);
        assert_eq!((space.used(), space.limit(), space.has_free()), (2001, 2001, false));
        assert_eq!(given, (1000..=3000).collect());
        space.release(1777);
        assert_eq!(space.free_port(60_000), Some(1777));
    }

    #[test]
    fn only_ports_that_are_the_workers_own_are_given() {
        let mut space = Box::new(PortSpace::new_zeroed());
        let mut owned = [0; WORDS];
        (owned[20], owned[21]) = (1 << 3, u64::MAX);
        space.allow(&PortSet::range(0, 21 * 64 + 1), Some(&owned));
        let mut given: Vec<_> = (0..3)
            .map(|step| {
                let port = space.free_port(7);
                port.inspect(|&port| space.take(port, step))
            })
            .collect();
        given.push(space.free_port(7));
        assert_eq!(given, [Some(20 * 64 + 3), Some(21 * 64), Some(21 * 64 + 1), None]);
        assert_eq!(space.limit(), 3);
    }

    /// RFC 6888, REQ-15: "A CGN's port allocation scheme SHOULD make it hard for attackers to guess port numbers." What draws of all numbers
    /// come to must be all allowed ports, each as often, wherever those lie.
    #[test]
    fn draws_are_spread_evenly_over_the_allowed_ports() {
        let mut scattered = PortSet::range(1, 700);
        for first in (2000..30_000_u16).step_by(77) {
            scattered.insert_range(first, first + first % 50);
        }
        for ports in [PortSet::range(40_000, 48_191), PortSet::range(0, u16::MAX), PortSet::range(77, 77), scattered] {
            let (space, count) = (space(&ports), ports.len());
            let drawn: Vec<_> =
                (0..count).map(|rank| space.draw(((u64::from(rank) << 32).div_ceil(u64::from(count))) as u32)).collect();
            let allowed: Vec<_> = ports.ranges().flat_map(|(first, last)| first..=last).map(Some).collect();
            assert!(drawn == allowed, "{ports:?}");
            assert_eq!(space.draw(u32::MAX), allowed.last().copied().flatten());
        }
        assert_eq!(space(&PortSet::empty()).draw(7), None);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(
            ranges in proptest::collection::vec((0_u16..600, 0_u16..100), 0..4),
            steps in proptest::collection::vec((any::<bool>(), any::<u16>()), 0..300)
        ) {
            let mut ports = PortSet::empty();
            for (first, length) in ranges {
                // Both ends of the numbers, so that the search goes round.
                ports.insert_range(first, first + length);
                ports.insert_range(u16::MAX - first - length, u16::MAX - first);
            }
            let mut space = space(&ports);
            let mut free: BTreeSet<u16> = (0..=u16::MAX).filter(|&port| ports.contains(port)).collect();
            let mut taken = Vec::new();
            for (take, random) in steps {
                if take {
                    let expected = free.range(random..).next().or_else(|| free.first()).copied();
                    let found = space.free_port(random);
                    prop_assert_eq!(found.is_some(), expected.is_some());
                    if let Some(port) = found {
                        prop_assert!(free.remove(&port));
                        space.take(port, u32::from(random));
                        prop_assert_eq!(space.holder(port), Some(u32::from(random)));
                        taken.push(port);
                    }
                } else if !taken.is_empty() {
                    let port = taken.swap_remove(usize::from(random) % taken.len());
                    space.release(port);
                    prop_assert_eq!(space.holder(port), None);
                    free.insert(port);
                }
                prop_assert_eq!(space.used() as usize, taken.len());
            }
        }
    }
}
