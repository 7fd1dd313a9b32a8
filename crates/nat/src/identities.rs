//! Identifications of datagrams in fragments whose source is translated: unique outside, although many hosts share an address there.
//!
//! Knows numbers, no packets. "Address-sharing or rewriting devices MUST ensure that the IPv4 ID field of datagrams whose addresses or protocols
//! are translated comply with these requirements as if the datagram were sourced by that device" (RFC 6864, section 5.3.1). Invariant: what is
//! given for one source, destination and protocol comes again after a worker's share of all numbers only. Called when a first fragment, or what
//! is to be split, is translated. Whole datagrams keep theirs (docs/packet-walk.md). Tests: here, `tests/rfc7857.rs`, the reference NAT.

use core::net::Ipv4Addr;

use ahash::RandomState;
use portcullis_steering::WorkerId;

use crate::time::Tick;

/// Counters, which names share by their hash. Chosen: 4 KiB; a counter that many names share wraps the sooner.
const COUNTERS: usize = 1024;

/// Numbers given of late that are remembered, so that errors about them can be translated back. Chosen.
const REMEMBERED: usize = 1024;

/// How long they are remembered: the time that a datagram may be on its way (RFC 6864, section 4: two minutes). **Units:** milliseconds.
const LIFETIME: u32 = 120_000;

/// What an identification is unique for, as it is seen behind the translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
}

/// A number that was given.
#[derive(Clone, Copy)]
struct Given {
    name: Name,
    id: u16,
    original: u16,
    at: Tick,
}

/// One worker's numbers: every so many, so that no other worker gives them.
pub(crate) struct Identities {
    hasher: RandomState,
    me: u32,
    workers: u32,
    /// How many numbers each worker has; what is left over is nobody's.
    share: u32,
    counters: Box<[u32]>,
    given: Box<[Option<Given>]>,
}

impl Identities {
    pub(crate) fn new(hasher: RandomState, me: WorkerId, workers: u16) -> Self {
        let (share, workers) = ((1 << 16) / u32::from(workers), u32::from(workers));
        // Where counting begins is hard to guess.
        let counters = (0..COUNTERS).map(|counter| hasher.hash_one((me, counter)) as u32 % share).collect();
        Self { hasher, me: u32::from(me.0), workers, share, counters, given: vec![None; REMEMBERED].into_boxed_slice() }
    }

    /// The next number for `name`, in place of `original`.
    pub(crate) fn give(&mut self, name: Name, original: u16, now: Tick) -> u16 {
        let counter = &mut self.counters[self.hasher.hash_one(name) as usize % COUNTERS];
        *counter = (*counter + 1) % self.share;
        let id = (*counter * self.workers + self.me) as u16;
        let place = self.place(name, id);
        self.given[place] = Some(Given { name, id, original, at: now });
        id
    }

    /// In place of what `id` was given, if that is remembered.
    pub(crate) fn original(&self, name: Name, id: u16, now: Tick) -> Option<u16> {
        let given = self.given[self.place(name, id)]?;
        (given.name == name && given.id == id && now.since(given.at) <= LIFETIME).then_some(given.original)
    }

    fn place(&self, name: Name, id: u16) -> usize {
        self.hasher.hash_one((name, id)) as usize % REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const NAME: Name = Name { source: Ipv4Addr::LOCALHOST, destination: Ipv4Addr::BROADCAST, protocol: 17 };

    fn of(me: u16, workers: u16) -> Identities {
        Identities::new(RandomState::with_seeds(1, 2, 3, 4), WorkerId(me), workers)
    }

    #[test]
    fn no_two_workers_give_one_number_and_none_comes_again_before_all_have_been_given() {
        for workers in [1, 3, 8] {
            let mut seen = BTreeSet::new();
            for me in 0..workers {
                let mut identities = of(me, workers);
                for _ in 0..(1 << 16) / u32::from(workers) {
                    assert!(seen.insert(identities.give(NAME, 7, Tick(0))));
                }
            }
        }
    }

    #[test]
    fn what_a_number_was_given_for_is_known_for_as_long_as_a_datagram_lives() {
        let mut identities = of(0, 1);
        let start = Tick(u32::MAX - 5);
        let id = identities.give(NAME, 4242, start);
        assert_eq!(identities.original(NAME, id, start.after(LIFETIME)), Some(4242));
        assert_eq!(identities.original(NAME, id, start.after(LIFETIME + 1)), None);
        assert_eq!(identities.original(NAME, id ^ 1, start), None);
        assert_eq!(identities.original(Name { protocol: 6, ..NAME }, id, start), None);
    }
}
