//! The ports of one external address for one protocol: which are free, and who has each of the others.
//!
//! Knows port numbers and the numbers of holders, whoever they are; ports that rest are in `ports/rest.rs`. Called on the slow path to take and release, and for inbound packets to find a mapping
//! without a hash. Invariant: a port is free, or taken by exactly one holder; the last free port is found. **Cost:** O(1) at any
//! fill. Sources: RFC 6056 section 3.3.1 (a random port, and from there the next that is free), RFC 6888 REQ-15, RFC 4787 REQ-3a and REQ-4.

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ahead;
use crate::policy::{PortParity, PortSet, Protocol};

mod rest;

pub use rest::REST_MOST;
pub(crate) use rest::Rest;

const WORDS: usize = 1024;
const SUMMARY_WORDS: usize = WORDS / 64;

/// Words whose allowed ports are counted together: 1024 ports, so that the first group are those below 1024.
const GROUP_WORDS: usize = 16;
const GROUPS: usize = WORDS / GROUP_WORDS;
const GROUP_PORTS: u32 = GROUP_WORDS as u32 * 64;

/// Which port a new mapping should have: any that is free where none is like that. First its parity is given up, then its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    class: Class,
    parity: Option<Parity>,
}

/// The side of 1024 that a port is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Any,
    Below1024,
    From1024,
}

/// Whether a port is even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parity {
    Even,
    Odd,
}

impl Wish {
    /// Any port.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) const ANY: Self = Self { class: Class::Any, parity: None };

    /// The wish of an internal port. Of an ICMP query, whose identifier is no port, any.
    ///
    /// RFC 4787, REQ-3 a): "If the host's source port was in the range 0-1023, it is RECOMMENDED the NAT's source port be in the same
    /// range. If the host's source port was in the range 1024-65535, it is RECOMMENDED that the NAT's source port be in that range." So it is
    /// of TCP too. REQ-4: "It is RECOMMENDED that a NAT have a "Port parity preservation" behavior of "Yes"." That is for UDP only, which
    /// has protocols that count on it, and an option (RFC 7857, section 8).
    pub(crate) const fn of(protocol: Protocol, internal: u16, parity: PortParity) -> Self {
        let class = match protocol {
            Protocol::Icmp => Class::Any,
            Protocol::Tcp | Protocol::Udp if internal < 1024 => Class::Below1024,
            Protocol::Tcp | Protocol::Udp => Class::From1024,
        };
        let parity = match (protocol, parity) {
            (Protocol::Udp, PortParity::Preserve) if internal.is_multiple_of(2) => Some(Parity::Even),
            (Protocol::Udp, PortParity::Preserve) => Some(Parity::Odd),
            _ => None,
        };
        Self { class, parity }
    }

    /// The wish, and what is left of it where no port is like that.
    fn and_less(self) -> [Self; 4] {
        let Self { class, parity } = self;
        [self, Self { class, parity: None }, Self { class: Class::Any, parity }, Self { class: Class::Any, parity: None }]
    }

    /// Of the bits of a word, those of ports with the parity.
    const fn mask(self) -> u64 {
        match self.parity {
            None => u64::MAX,
            Some(Parity::Even) => EVEN,
            Some(Parity::Odd) => !EVEN,
        }
    }
}

impl Class {
    /// The groups of words with its ports.
    const fn groups(self) -> Range<usize> {
        match self {
            Self::Any => 0..GROUPS,
            Self::Below1024 => 0..1,
            Self::From1024 => 1..GROUPS,
        }
    }
}

/// The bits of even ports in a word.
const EVEN: u64 = u64::MAX / 3;

/// What is known of 64 ports, a bit each. Side by side, since who reads one half reads the other.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
struct Word {
    /// Ports that mappings may take by policy, of this worker's.
    allowed: u64,
    /// Ports that a mapping has, or that rest.
    taken: u64,
}

impl Word {
    fn free(self) -> u64 {
        self.allowed & !self.taken
    }
}

/// What is known of the ports of a space. **Shape:** plain data; all zero is a space without any port to take.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct PortBits {
    words: [Word; WORDS],
    /// One bit for each word that has an allowed port that is not taken, the even ports apart from the odd ones.
    summary: [[u64; 2]; SUMMARY_WORDS],
    /// Ports that mappings have.
    used: u32,
    /// Ports that are allowed.
    limit: u32,
    /// Ports that rest, and those that do so for the longest and the shortest time; see `rest.rs`.
    resting: u32,
    rests_longest: u32,
    rests_shortest: u32,
    /// Where the allowed ports are one run, the first, plus one; else zero.
    run: u32,
    /// Fills the cache line.
    spare: [u32; 10],
    /// Of each group of words, the allowed ports before it.
    before: [u16; GROUPS],
}

/// The holder of each port of a space, plus one; zero for none. Of a port that rests, what `rest.rs` says.
pub(crate) type Holders = [u32; WORDS * 64];

/// The space of 65,536 ports. Its holders lie apart, so that the memory of a protocol's that has no mappings is never touched, huge pages or not.
pub(crate) struct PortSpace<'m> {
    bits: &'m mut PortBits,
    holders: &'m mut Holders,
}

/// The memory of one space, for tests and benchmarks.
#[cfg(any(test, feature = "internals"))]
pub(crate) struct PortMemory {
    bits: Box<PortBits>,
    holders: Box<Holders>,
}

#[cfg(any(test, feature = "internals"))]
impl PortMemory {
    /// Memory of a space in which `ports` are free.
    pub(crate) fn new(ports: &PortSet) -> Self {
        use zerocopy::FromZeros as _;
        let (bits, holders) = (PortBits::new_box_zeroed(), Holders::new_box_zeroed());
        let mut memory = Self { bits: bits.expect("memory"), holders: holders.expect("memory") };
        memory.space().allow(ports, None);
        memory
    }

    pub(crate) fn space(&mut self) -> PortSpace<'_> {
        PortSpace::new(&mut self.bits, &mut self.holders)
    }
}

impl<'m> PortSpace<'m> {
    /// A space in zeroed memory.
    pub(crate) fn new(bits: &'m mut PortBits, holders: &'m mut Holders) -> Self {
        Self { bits, holders }
    }

    /// Sets the ports that mappings may take: those of the policy that are this worker's too; it owns all where `owned` is none. Ports
    /// taken before stay taken until they are released.
    pub(crate) fn allow(&mut self, ports: &PortSet, owned: Option<&[u64; WORDS]>) {
        for (number, &allowed) in ports.words().iter().enumerate() {
            self.bits.words[number].allowed = allowed & owned.map_or(u64::MAX, |owned| owned[number]);
            self.summarise(number);
        }
        self.bits.limit = 0;
        for (group, words) in self.bits.words.chunks_exact(GROUP_WORDS).enumerate() {
            self.bits.before[group] = self.bits.limit as u16;
            self.bits.limit += words.iter().map(|word| word.allowed.count_ones()).sum::<u32>();
        }
        let with_some = |word: &usize| self.bits.words[*word].allowed != 0;
        let ends = (0..WORDS).find(with_some).zip((0..WORDS).rfind(with_some)).map(|(first, last)| {
            let below = self.bits.words[last].allowed.leading_zeros();
            (u32::from(port_at(first, self.bits.words[first].allowed)), last as u32 * 64 + 63 - below)
        });
        self.bits.run = ends.filter(|(first, last)| last - first + 1 == self.bits.limit).map_or(0, |(first, _)| first + 1);
    }

    /// An allowed port of the wished class, taken or not: each is as likely as another if `random` is any number. Of any class where that
    /// has none, and none where there are none at all.
    ///
    /// A draw among all numbers would not do: those that are not allowed would all end at the next one that is.
    pub(crate) fn draw(&self, random: u32, wish: Wish) -> Option<u16> {
        let ranks = |groups: Range<usize>| self.before(groups.start)..self.before(groups.end);
        let ranks = [wish.class, Class::Any].map(|class| ranks(class.groups())).into_iter().find(|ranks| !ranks.is_empty())?;
        let count = u64::from(ranks.end - ranks.start);
        Some(self.allowed_port(ranks.start + ((u64::from(random) * count) >> 32) as u32))
    }

    /// How many allowed ports are before a group.
    fn before(&self, group: usize) -> u32 {
        self.bits.before.get(group).map_or(self.bits.limit, |&before| u32::from(before))
    }

    /// The allowed port that has so many before it, which must be fewer than there are.
    fn allowed_port(&self, rank: u32) -> u16 {
        if let Some(first) = self.bits.run.checked_sub(1) {
            return (first + rank) as u16;
        }
        let group = self.bits.before.partition_point(|&before| u32::from(before) <= rank) - 1;
        let mut left = rank - self.before(group);
        let mut word = group * GROUP_WORDS;
        if self.before(group + 1) - self.before(group) == GROUP_PORTS {
            return (word * 64) as u16 + left as u16;
        }
        while left >= self.bits.words[word].allowed.count_ones() {
            left -= self.bits.words[word].allowed.count_ones();
            word += 1;
        }
        let bits = (0..left).fold(self.bits.words[word].allowed, |bits, _| bits & (bits - 1));
        port_at(word, bits)
    }

    /// A free port, at or after `start`, round the end: one that is as wished, or else any. None when all are taken.
    pub(crate) fn free_port(&self, start: u16, wish: Wish) -> Option<u16> {
        wish.and_less().into_iter().find_map(|wish| self.free_port_like(start, wish))
    }

    fn free_port_like(&self, start: u16, wish: Wish) -> Option<u16> {
        let groups = wish.class.groups();
        let words = groups.start * GROUP_WORDS..groups.end * GROUP_WORDS;
        let word = usize::from(start) / 64;
        if words.contains(&word) {
            let upper = self.free_in(word) & wish.mask() & (u64::MAX << (start % 64));
            if upper != 0 {
                return Some(port_at(word, upper));
            }
        }
        let behind = (word + 1).clamp(words.start, words.end);
        let next = self.word_with_free(behind..words.end, wish).or_else(|| self.word_with_free(words.start..behind, wish))?;
        Some(port_at(next, self.free_in(next) & wish.mask()))
    }

    /// Gives `port` to `holder`. **Panics** in debug builds when it is taken.
    pub(crate) fn take(&mut self, port: u16, holder: u32) {
        let word = usize::from(port) / 64;
        debug_assert!(holder < rest::RESTS - 1, "{holder} is no holder");
        debug_assert!(!self.is_taken(port), "port {port} is taken");
        self.bits.words[word].taken |= 1 << (port % 64);
        self.bits.used += 1;
        self.holders[usize::from(port)] = holder + 1;
        let alike = if port.is_multiple_of(2) { EVEN } else { !EVEN };
        let none_is_free = u64::from(self.free_in(word) & alike == 0);
        self.bits.summary[word / 64][usize::from(port % 2)] &= !(none_is_free << (word % 64));
    }

    /// Takes `port` back. Its holder's place is left as it is: a line of memory less, and what is there counts only while the port is taken. **Panics**
    /// in debug builds when it is free.
    pub(crate) fn release(&mut self, port: u16) {
        let word = usize::from(port) / 64;
        debug_assert!(self.is_taken(port), "port {port} is free");
        self.bits.words[word].taken &= !(1 << (port % 64));
        self.bits.used -= 1;
        let may_be_taken = self.bits.words[word].allowed >> (port % 64) & 1;
        self.bits.summary[word / 64][usize::from(port % 2)] |= may_be_taken << (word % 64);
    }

    /// Puts another holder in the place of the one that has `port`. **Panics** in debug builds when it is free.
    pub(crate) fn pass_on(&mut self, port: u16, holder: u32) {
        debug_assert!(self.is_taken(port), "port {port} is free");
        self.holders[usize::from(port)] = holder + 1;
    }

    /// Who has `port`. **Cost:** two loads.
    #[inline]
    pub(crate) fn holder(&self, port: u16) -> Option<u32> {
        if self.is_taken(port) { self.candidate(port) } else { None }
    }

    /// Who has `port`, or had it before it was free: for whoever asks that one. **Cost:** one load.
    #[inline]
    pub(crate) fn candidate(&self, port: u16) -> Option<u32> {
        let holder = self.holders[usize::from(port)];
        if holder < rest::RESTS { holder.checked_sub(1) } else { None }
    }

    /// Has what [`PortSpace::take`] writes, and [`PortSpace::holder`] reads, fetched.
    #[inline]
    pub(crate) fn fetch(&self, port: u16) {
        ahead::fetch(&self.holders[usize::from(port)]);
        ahead::fetch(&self.bits.words[usize::from(port) / 64]);
    }

    /// Has what the end of a mapping writes fetched: [`PortSpace::release`], or [`PortSpace::release_to_rest`].
    #[inline]
    pub(crate) fn fetch_for_end(&self, port: u16, rest: Rest) {
        if !rest.is_none() {
            ahead::fetch(&self.holders[usize::from(port)]);
        }
        ahead::fetch(&self.bits.words[usize::from(port) / 64]);
    }

    /// Has what [`PortSpace::candidate`] reads fetched.
    #[inline]
    pub(crate) fn fetch_candidate(&self, port: u16) {
        ahead::fetch(&self.holders[usize::from(port)]);
    }

    /// How many ports mappings have.
    pub(crate) fn used(&self) -> u32 {
        self.bits.used
    }

    /// How many ports mappings may have.
    pub(crate) fn limit(&self) -> u32 {
        self.bits.limit
    }

    /// Whether any port is free.
    pub(crate) fn has_free(&self) -> bool {
        self.bits.summary.as_flattened().iter().any(|&word| word != 0)
    }

    fn is_taken(&self, port: u16) -> bool {
        self.bits.words[usize::from(port) / 64].taken >> (port % 64) & 1 == 1
    }

    fn free_in(&self, word: usize) -> u64 {
        self.bits.words[word].free()
    }

    fn summarise(&mut self, word: usize) {
        let (free, bit) = (self.free_in(word), 1 << (word % 64));
        for (summary, free) in self.bits.summary[word / 64].iter_mut().zip([free & EVEN, free & !EVEN]) {
            *summary = if free == 0 { *summary & !bit } else { *summary | bit };
        }
    }

    /// The first of those words that has a free port with the wished parity.
    fn word_with_free(&self, words: Range<usize>, wish: Wish) -> Option<usize> {
        let last = words.end.checked_sub(1).filter(|_| !words.is_empty())?;
        let first = words.start;
        (first / 64..=last / 64).find_map(|at| {
            let [even, odd] = self.bits.summary[at];
            let mut bits = match wish.parity {
                None => even | odd,
                Some(Parity::Even) => even,
                Some(Parity::Odd) => odd,
            };
            if at == first / 64 {
                bits &= u64::MAX << (first % 64);
            }
            if at == last / 64 {
                bits &= u64::MAX >> (63 - last % 64);
            }
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

    #[test]
    fn every_port_is_given_once_and_the_last_one_is_found() {
        let mut memory = PortMemory::new(&PortSet::range(1000, 3000));
        let mut space = memory.space();
        let mut given = BTreeSet::new();
        for step in 0..2001_u32 {
            let port = space.free_port((step.wrapping_mul(40_503) >> 3) as u16, Wish::ANY).expect("a free port");
            space.take(port, step);
            assert!(given.insert(port), "port {port} was given twice");
        }
        assert_eq!(space.free_port(5, Wish::ANY), None);
        assert_eq!((space.used(), space.limit(), space.has_free()), (2001, 2001, false));
        assert_eq!(given, (1000..=3000).collect());
        space.release(1777);
        assert_eq!(space.free_port(60_000, Wish::ANY), Some(1777));
    }

    #[test]
    fn only_ports_that_are_the_workers_own_are_given() {
        let mut memory = PortMemory::new(&PortSet::empty());
        let mut space = memory.space();
        let mut owned = [0; WORDS];
        (owned[20], owned[21]) = (1 << 3, u64::MAX);
        space.allow(&PortSet::range(0, 21 * 64 + 1), Some(&owned));
        let mut given: Vec<_> = (0..3)
            .map(|step| {
                let port = space.free_port(7, Wish::ANY);
                port.inspect(|&port| space.take(port, step))
            })
            .collect();
        given.push(space.free_port(7, Wish::ANY));
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
            let (mut memory, count) = (PortMemory::new(&ports), ports.len());
            let space = memory.space();
            let drawn: Vec<_> =
                (0..count).map(|rank| space.draw(((u64::from(rank) << 32).div_ceil(u64::from(count))) as u32, Wish::ANY)).collect();
            let allowed: Vec<_> = ports.ranges().flat_map(|(first, last)| first..=last).map(Some).collect();
            assert!(drawn == allowed, "{ports:?}");
            assert_eq!(space.draw(u32::MAX, Wish::ANY), allowed.last().copied().flatten());
        }
        assert_eq!(PortMemory::new(&PortSet::empty()).space().draw(7, Wish::ANY), None);
    }

    #[test]
    fn draws_are_of_the_wished_class_where_it_has_ports() {
        let low = Wish::of(Protocol::Tcp, 22, PortParity::Any);
        let high = Wish::of(Protocol::Udp, 1024, PortParity::Any);
        let [mut both, mut above] = [(1000, 1100), (3000, 3001)].map(|(first, last)| PortMemory::new(&PortSet::range(first, last)));
        let (both, above) = (both.space(), above.space());
        for (space, wish, ports) in [(&both, low, 1000..1024), (&both, high, 1024..1101), (&above, low, 3000..3002)] {
            let drawn: BTreeSet<_> = (0..=255).map(|number| space.draw(number << 24, wish).expect("a port")).collect();
            assert_eq!(drawn, ports.collect(), "{wish:?}");
        }
    }

    fn wish() -> impl Strategy<Value = Wish> {
        let class = prop_oneof![Just(Class::Any), Just(Class::Below1024), Just(Class::From1024)];
        let parity = prop_oneof![Just(None), Just(Some(Parity::Even)), Just(Some(Parity::Odd))];
        (class, parity).prop_map(|(class, parity)| Wish { class, parity })
    }

    /// The same port by port.
    fn expected(free: &BTreeSet<u16>, start: u16, wish: Wish) -> Option<u16> {
        let has_class = |port: &u16| wish.class == Class::Any || (*port < 1024) == (wish.class == Class::Below1024);
        let has_parity = |port: &u16| wish.parity.is_none_or(|parity| port.is_multiple_of(2) == (parity == Parity::Even));
        let round = || free.range(start..).chain(free.range(..start)).copied();
        let both = round().find(|port| has_class(port) && has_parity(port));
        both.or_else(|| round().find(has_class)).or_else(|| round().find(has_parity)).or_else(|| round().next())
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(
            ranges in proptest::collection::vec((0_u16..1100, 0_u16..100), 0..4),
            steps in proptest::collection::vec((any::<bool>(), any::<u16>(), wish()), 0..300)
        ) {
            let mut ports = PortSet::empty();
            for (first, length) in ranges {
                // Both ends of the numbers, so that the search goes round.
                ports.insert_range(first, first + length);
                ports.insert_range(u16::MAX - first - length, u16::MAX - first);
            }
            let mut memory = PortMemory::new(&ports);
            let mut space = memory.space();
            let mut free: BTreeSet<u16> = (0..=u16::MAX).filter(|&port| ports.contains(port)).collect();
            let mut taken = Vec::new();
            for (take, random, wish) in steps {
                if take {
                    let found = space.free_port(random, wish);
                    prop_assert_eq!(found, expected(&free, random, wish));
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
