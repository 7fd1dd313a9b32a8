//! A bounded table of datagrams in fragments, in sets: whoever floods it displaces what is in its own set, the oldest first.
//!
//! Knows keys and ages, not what the values mean. Invariants: a set keeps its entries in the order of their last insertion; the set is
//! chosen by a keyed hash of side and source, so that one source reaches one set. Nothing is allocated after [`Sets::new`].
//! **Cost:** O(ways). Called by `fragment.rs`. Tests: here.

use core::net::Ipv4Addr;

use ahash::RandomState;

use crate::policy::Side;
use crate::time::Tick;

/// What all fragments of a datagram share, as received (RFC 791, section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FragmentKey {
    pub(crate) side: Side,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) id: u16,
    pub(crate) protocol: u8,
}

#[derive(Clone, Copy)]
struct Entry<V> {
    key: FragmentKey,
    since: Tick,
    value: V,
}

/// The table.
pub(crate) struct Sets<V> {
    /// Set by set, each `ways` long.
    slots: Box<[Option<Entry<V>>]>,
    ways: usize,
    hasher: RandomState,
    live: usize,
    /// The set that [`Sets::expire`] looks at next.
    cursor: usize,
}

impl<V: Copy> Sets<V> {
    /// A table of at most `limit` entries (at least one), in sets of at most `ways`.
    pub(crate) fn new(limit: usize, ways: usize, hasher: RandomState) -> Self {
        let ways = ways.min(limit).max(1);
        let sets = (limit / ways).max(1);
        Self { slots: (0..sets * ways).map(|_| None).collect(), ways, hasher, live: 0, cursor: 0 }
    }

    /// How many sets there are.
    pub(crate) fn sets(&self) -> usize {
        self.slots.len() / self.ways
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// The value of `key` and when it was inserted.
    pub(crate) fn get_mut(&mut self, key: &FragmentKey) -> Option<(&mut V, Tick)> {
        let set = self.set_of(key);
        let entry = self.slots[set].iter_mut().flatten().find(|entry| entry.key == *key)?;
        Some((&mut entry.value, entry.since))
    }

    /// Puts a value at the young end of its set. Returns the oldest one of the set where it had to make room.
    pub(crate) fn insert(&mut self, key: FragmentKey, value: V, now: Tick) -> Option<V> {
        self.remove(&key);
        let set = self.set_of(&key);
        let displaced = if self.slots[set.end - 1].is_some() { self.take(set.start, set.end) } else { None };
        let slots = &mut self.slots[set];
        if let Some(free) = slots.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(Entry { key, since: now, value });
            self.live += 1;
        }
        displaced
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, key: &FragmentKey) -> Option<V> {
        let set = self.set_of(key);
        let at = set.clone().find(|&at| self.slots[at].as_ref().is_some_and(|entry| entry.key == *key))?;
        self.take(at, set.end)
    }

    /// Takes out what is older than `span` in the next `sets` sets, and gives it to `gone`.
    pub(crate) fn expire(&mut self, now: Tick, span: u32, sets: usize, mut gone: impl FnMut(V)) {
        for _ in 0..sets.min(self.sets()) {
            let (start, end) = (self.cursor * self.ways, (self.cursor + 1) * self.ways);
            while self.slots[start].as_ref().is_some_and(|oldest| now.since(oldest.since) > span) {
                self.take(start, end).into_iter().for_each(&mut gone);
            }
            self.cursor = (self.cursor + 1) % self.sets();
        }
    }

    /// Takes everything out and gives it to `gone`.
    pub(crate) fn clear(&mut self, gone: impl FnMut(V)) {
        self.live = 0;
        self.slots.iter_mut().filter_map(|slot| slot.take().map(|entry| entry.value)).for_each(gone);
    }

    /// Takes the entry at `at` out of the set that ends at `end`; the younger ones move up.
    fn take(&mut self, at: usize, end: usize) -> Option<V> {
        let taken = self.slots[at].take()?;
        self.slots[at..end].rotate_left(1);
        self.live -= 1;
        Some(taken.value)
    }

    fn set_of(&self, key: &FragmentKey) -> core::ops::Range<usize> {
        let hash = self.hasher.hash_one((key.side, key.source.to_bits()));
        let start = (hash % self.sets() as u64) as usize * self.ways;
        start..start + self.ways
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(source: u32, id: u16) -> FragmentKey {
        FragmentKey { side: Side::Outside, source: Ipv4Addr::from_bits(source), destination: Ipv4Addr::LOCALHOST, id, protocol: 17 }
    }

    fn sets(limit: usize) -> Sets<u32> {
        Sets::new(limit, 4, RandomState::with_seeds(1, 2, 3, 4))
    }

    #[test]
    fn a_full_set_gives_up_its_oldest_and_what_is_inserted_again_is_young() {
        let mut table = sets(8);
        for id in 0..4 {
            assert_eq!(table.insert(key(1, id), u32::from(id), Tick(u32::from(id))), None);
        }
        assert_eq!(table.insert(key(1, 0), 100, Tick(4)), None);
        assert_eq!(table.insert(key(1, 9), 9, Tick(5)), Some(1));
        assert_eq!(table.insert(key(1, 10), 10, Tick(5)), Some(2));
        assert_eq!(table.get_mut(&key(1, 0)), Some((&mut 100, Tick(4))));
        assert_eq!((table.len(), table.remove(&key(1, 3)), table.remove(&key(1, 3)), table.len()), (4, Some(3), None, 3));
    }

    #[test]
    fn one_source_displaces_only_what_is_in_its_set() {
        let mut table = sets(256);
        for source in 2..42 {
            table.insert(key(source, 1), source, Tick(0));
        }
        for id in 0..10_000 {
            table.insert(key(1, id), 0, Tick(1));
        }
        let left = (2..42).filter(|&source| table.get_mut(&key(source, 1)).is_some()).count();
        assert!(left >= 36, "{left} of 40 are left");
    }

    #[test]
    fn what_is_too_old_goes_within_a_round_over_the_sets() {
        let mut table = sets(64);
        let start = Tick(u32::MAX - 20);
        for source in 0..30 {
            table.insert(key(source, 1), source, start.after(source));
        }
        let (mut gone, before) = (Vec::new(), table.len());
        for _ in 0..table.sets() {
            table.expire(start.after(60), 50, 1, |value| gone.push(value));
        }
        assert!(gone.iter().all(|&source| source < 10), "{gone:?}");
        assert_eq!(table.len(), before - gone.len());
        table.clear(|value| gone.push(value));
        gone.sort_unstable();
        assert_eq!((table.len(), gone.len()), (0, before));
    }

    #[test]
    fn the_smallest_table_holds_one() {
        let mut table = sets(0);
        assert_eq!((table.insert(key(1, 1), 1, Tick(0)), table.insert(key(2, 1), 2, Tick(0)), table.len()), (None, Some(1), 1));
    }
}
