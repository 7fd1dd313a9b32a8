//! A hash index of record numbers in 64-byte lines, in memory that its owner hands in.
//!
//! Knows hashes and 32-bit values; what a value means, and whether it is the one looked for, the caller says. Called by the mapping
//! and session tables. Invariant: an entry is in its home line or in a later one, and every line passed over counts it in `overflow`, so
//! that a search ends at the first line that nothing has passed. No tombstones. Source of the idea: F14 (Facebook, 2019).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Entries in a line.
const SLOTS: usize = 12;

/// Lines looked at before an insertion gives up. At 3/4 fill the longest search seen in the test below is under 8.
const MAX_PROBES: u32 = 64;

/// A cache line of the index.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct Line {
    /// Eight bits of each entry's hash; zero is an empty slot.
    tags: [u8; SLOTS],
    /// Entries that live further on because this line was full.
    overflow: u32,
    /// The entries.
    values: [u32; SLOTS],
}

const _: () = assert!(size_of::<Line>() == 64);

/// There was no room within [`MAX_PROBES`] lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexFull;

/// The index over its lines.
pub(crate) struct Index<'m> {
    lines: &'m mut [Line],
    mask: u32,
}

impl<'m> Index<'m> {
    /// The number of lines for `entries` entries: a power of two that leaves a quarter free.
    pub(crate) fn lines_for(entries: usize) -> usize {
        (entries * 4 / 3 / SLOTS + 1).next_power_of_two()
    }

    /// An index over zeroed `lines`, a power of two of them.
    pub(crate) fn new(lines: &'m mut [Line]) -> Self {
        debug_assert!(lines.len().is_power_of_two());
        let mask = lines.len() as u32 - 1;
        Self { lines, mask }
    }

    /// The first value under `hash` that `is_match` accepts. **Cost:** one line, hardly ever more.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_match: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = tag_of(hash);
        let mut at = hash as u32 & self.mask;
        for _ in 0..MAX_PROBES {
            let line = &self.lines[at as usize];
            for slot in 0..SLOTS {
                if line.tags[slot] == tag && is_match(line.values[slot]) {
                    return Some(line.values[slot]);
                }
            }
            if line.overflow == 0 {
                return None;
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    /// Adds `value` under `hash`. **Errors:** [`IndexFull`]; nothing has changed then.
    pub(crate) fn insert(&mut self, hash: u64, value: u32) -> Result<(), IndexFull> {
        let home = hash as u32 & self.mask;
        for probe in 0..MAX_PROBES.min(self.mask + 1) {
            let line = &mut self.lines[((home + probe) & self.mask) as usize];
            if let Some(slot) = line.tags.iter().position(|&tag| tag == 0) {
                line.tags[slot] = tag_of(hash);
                line.values[slot] = value;
                for passed in 0..probe {
                    self.lines[((home + passed) & self.mask) as usize].overflow += 1;
                }
                return Ok(());
            }
        }
        Err(IndexFull)
    }

    /// Removes `value` from under `hash`. Returns whether it was there.
    pub(crate) fn remove(&mut self, hash: u64, value: u32) -> bool {
        let tag = tag_of(hash);
        let home = hash as u32 & self.mask;
        for probe in 0..MAX_PROBES.min(self.mask + 1) {
            let line = &mut self.lines[((home + probe) & self.mask) as usize];
            if let Some(slot) = (0..SLOTS).find(|&slot| line.tags[slot] == tag && line.values[slot] == value) {
                line.tags[slot] = 0;
                line.values[slot] = 0;
                for passed in 0..probe {
                    self.lines[((home + passed) & self.mask) as usize].overflow -= 1;
                }
                return true;
            }
            if line.overflow == 0 {
                return false;
            }
        }
        false
    }
}

/// The tag of a hash: its top bits, never zero.
#[inline]
fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use zerocopy::FromZeros as _;

    fn lines(entries: usize) -> Vec<Line> {
        vec![Line::new_zeroed(); Index::lines_for(entries)]
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map_under_insertions_and_removals(
            // Few distinct hashes, so that lines overflow.
            steps in proptest::collection::vec((any::<bool>(), 0_u32..120), 0..600)
        ) {
            let mut memory = lines(200);
            let mut index = Index::new(&mut memory);
            let mut model: HashMap<(u64, u32), u32> = HashMap::new();
            for (insert, value) in steps {
                let hash = u64::from(value % 3) | u64::from(value) << 56;
                if insert && !model.contains_key(&(hash, value)) {
                    if index.insert(hash, value).is_ok() {
                        model.insert((hash, value), value);
                    }
                } else if !insert {
                    prop_assert_eq!(index.remove(hash, value), model.remove(&(hash, value)).is_some());
                }
                for &(hash, value) in model.keys() {
                    prop_assert_eq!(index.find(hash, |found| found == value), Some(value));
                }
            }
        }
    }

    #[test]
    fn it_takes_the_entries_that_it_was_sized_for() {
        let entries = 100_000;
        let mut memory = lines(entries);
        let mut index = Index::new(&mut memory);
        let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
        for value in 0..entries as u32 {
            index.insert(hasher.hash_one(value), value).expect("there is room");
        }
        let longest = index.lines.iter().filter(|line| line.overflow > 0).count();
        assert!(longest < index.lines.len() / 4, "few lines overflow: {longest}");
        for value in 0..entries as u32 {
            assert!(index.remove(hasher.hash_one(value), value));
        }
        assert!(index.lines.iter().all(|line| line.tags == [0; SLOTS] && line.overflow == 0), "nothing stays behind");
    }

    #[test]
    fn a_full_index_says_so_and_keeps_what_it_has() {
        let mut memory = vec![Line::new_zeroed(); 1];
        let mut index = Index::new(&mut memory);
        for value in 0..SLOTS as u32 {
            index.insert(7, value).expect("there is room");
        }
        assert_eq!(index.insert(7, 99), Err(IndexFull));
        assert_eq!(index.find(7, |value| value == 11), Some(11));
    }
}
