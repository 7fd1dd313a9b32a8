//! A hash index of record numbers in 64-byte lines, in memory that its owner hands in.
//!
//! Knows hashes and numbers; what a number means, and whether it is the one looked for, the caller says. Called by the mapping
//! and session tables. Invariant: an entry is in its home line or in a later one, and every line passed over counts it, so
//! that a search ends at the first line that nothing has passed. No tombstones. Source of the idea: F14 (Facebook, 2019).

use wide::u8x16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ahead;

/// Entries in a line.
const SLOTS: usize = 12;

/// Entries to a line, on average, when there are as many as there may be. When each has been replaced several times, a search that finds looks at 1.04 lines,
/// and one that does not at 1.08; when they have just been made, at less than 1.01 and 1.02.
pub(crate) const ROOMY: usize = 7;

/// The same where bytes count for more: 7.1 an entry rather than 9.1. These searches look at 1.2 and 1.8 lines then; at first, at 1.05 and 1.13.
pub(crate) const DENSE: usize = 9;

/// Lines looked at before an insertion gives up. In dense indexes the longest search seen in the tests below is under 40.
const MAX_PROBES: u32 = 64;

/// Bits of a number.
const NUMBER_BITS: u32 = 26;

/// Numbers that an entry may have are below this.
pub(crate) const NUMBERS: u32 = 1 << NUMBER_BITS;

/// In place of a number: none. Half of it, which some callers have for numbers, is none either.
pub(crate) const NONE: u32 = u32::MAX;

/// A cache line of the index.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct Line {
    /// Eight bits of each entry's hash, zero for an empty slot; behind them, for each of the four classes of hashes, how many entries live further
    /// on because this line was full.
    head: [u8; 16],
    /// The entries: the number under the hash's lower half, by exclusive or. Under another hash it comes out too large for a number, at
    /// least 63 times in 64, so that a number which is not the one looked for is hardly ever looked at.
    entries: [u32; SLOTS],
}

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    /// The slots with that tag, a bit each; above them those bytes of the overflow count that equal it.
    #[inline]
    fn bytes_with(&self, tag: u8) -> u32 {
        u8x16::new(self.head).simd_eq(u8x16::splat(tag)).to_bitmask()
    }

    /// The slots with that tag, a bit each.
    #[inline]
    fn with_tag(&self, tag: u8) -> u32 {
        self.bytes_with(tag) & ((1 << SLOTS) - 1)
    }

    /// How many entries of a hash's class live further on.
    #[inline]
    fn passed(&self, hash: u64) -> u8 {
        self.head[SLOTS + class_of(hash)]
    }
}

/// What an entry is under, and where it is, as far as that was found out. Only insertions and its own removal make it untrue.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sought {
    hash: u64,
    home: u32,
    /// Its slot in the home line; [`SLOTS`] or above where it is elsewhere, or nobody has looked.
    slot: u32,
}

/// There was no room within [`MAX_PROBES`] lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexFull;

/// The index over its lines.
pub(crate) struct Index<'m> {
    lines: &'m mut [Line],
    /// All numbers inserted so far are below.
    most: u32,
}

impl<'m> Index<'m> {
    /// The number of lines for `entries` entries: [`ROOMY`] or [`DENSE`].
    pub(crate) const fn lines_for(entries: usize, per_line: usize) -> usize {
        entries.div_ceil(per_line) + 1
    }

    /// An index over zeroed `lines`.
    pub(crate) fn new(lines: &'m mut [Line]) -> Self {
        debug_assert!(!lines.is_empty() && u32::try_from(lines.len()).is_ok());
        Self { lines, most: 0 }
    }

    /// Where the search for a hash begins (Lemire, "Fast random integer generation in an interval", 2019).
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.lines.len() as u128) >> 64) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 < self.lines.len() { at + 1 } else { 0 }
    }

    /// How many lines an entry may be away from its home, at most.
    #[inline]
    fn probes(&self) -> u32 {
        MAX_PROBES.min(self.lines.len() as u32)
    }

    /// The first number under `hash` that `is_match` accepts. **Cost:** one line, hardly ever more.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is_match: impl Fn(u32) -> bool) -> Option<u32> {
        let salt = hash as u32;
        let mut at = self.home(hash);
        for _ in 0..self.probes() {
            let line = &self.lines[at];
            let mut slots = line.with_tag(tag_of(hash));
            while let Some(&entry) = line.entries.get(slots.trailing_zeros() as usize) {
                if entry ^ salt < self.most && is_match(entry ^ salt) {
                    return Some(entry ^ salt);
                }
                slots &= slots - 1;
            }
            if line.passed(hash) == 0 {
                return None;
            }
            at = self.after(at);
        }
        None
    }

    /// The first number under `hash`, an odd one, which may be that of another hash alike; [`NONE`] where there is none. **Cost:** as [`Index::find`];
    /// what is nearly always so is looked at right here: that the first entry of the home line with the hash's tag is it.
    #[inline]
    pub(crate) fn first(&self, hash: u64) -> u32 {
        debug_assert!(hash as u8 == tag_of(hash), "an odd hash is its tag as it is");
        let line = &self.lines[self.home(hash)];
        // A byte of the overflow count that looks like the tag is behind all slots, and no slot is there.
        let slot = line.bytes_with(hash as u8).trailing_zeros() as usize;
        let number = line.entries.get(slot).map_or(NONE, |entry| entry ^ hash as u32);
        if number < self.most { number } else { self.first_of_others(hash, slot) }
    }

    #[cold]
    fn first_of_others(&self, hash: u64, slot: usize) -> u32 {
        if slot >= SLOTS && self.lines[self.home(hash)].passed(hash) == 0 {
            return NONE;
        }
        self.find(hash, |_| true).unwrap_or(NONE)
    }

    /// Memory. **Units:** bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.lines)
    }

    /// Has a hash's home line fetched.
    #[inline]
    pub(crate) fn fetch(&self, hash: u64) {
        if let Some(line) = self.lines.get(self.home(hash)) {
            ahead::fetch(&line.entries[0]);
        }
    }

    /// What is under a hash, and will be removed. Nobody has looked for it.
    #[inline]
    pub(crate) fn seek(&self, hash: u64) -> Sought {
        Sought { hash, home: self.home(hash) as u32, slot: SLOTS as u32 }
    }

    /// Has the home line of what is sought fetched.
    #[inline]
    pub(crate) fn fetch_home(&self, sought: &Sought) {
        ahead::fetch(&self.lines[sought.home as usize].entries[0]);
    }

    /// Looks for `number` in its home line, which should have been fetched. Has the line after it fetched where that has something else.
    #[inline]
    pub(crate) fn look_for(&self, sought: &mut Sought, number: u32) {
        let home = sought.home as usize;
        let line = &self.lines[home];
        let slot = line.with_tag(tag_of(sought.hash)).trailing_zeros();
        if line.entries.get(slot as usize).is_some_and(|&entry| entry == sought.hash as u32 ^ number) {
            sought.slot = slot;
        } else {
            ahead::fetch(&self.lines[self.after(home)].entries[0]);
        }
    }

    /// Removes `number`, where it was found or is found now. Returns whether it was there.
    #[inline]
    pub(crate) fn remove_sought(&mut self, sought: &Sought, number: u32) -> bool {
        let Sought { hash, home, slot } = *sought;
        let (line, slot) = (&mut self.lines[home as usize], slot as usize);
        if line.entries.get(slot).is_none_or(|&entry| entry != hash as u32 ^ number) {
            return self.remove(hash, number);
        }
        (line.head[slot], line.entries[slot]) = (0, 0);
        true
    }

    /// Has the line after the home line fetched, where a search for what is not there, or an insertion, goes on to it. Reads the home line, which
    /// should have been fetched.
    #[inline]
    pub(crate) fn fetch_next(&self, hash: u64) {
        let home = self.home(hash);
        let line = &self.lines[home];
        if line.passed(hash) != 0 || line.with_tag(0) == 0 {
            ahead::fetch(&self.lines[self.after(home)].entries[0]);
        }
    }

    /// Adds `number`, below [`NUMBERS`], under `hash`. **Errors:** [`IndexFull`]; nothing has changed then.
    pub(crate) fn insert(&mut self, hash: u64, number: u32) -> Result<(), IndexFull> {
        debug_assert!(number < NUMBERS);
        let mut at = self.home(hash);
        for probe in 0..self.probes() {
            let line = &mut self.lines[at];
            let free = line.with_tag(0);
            if free != 0 {
                let slot = free.trailing_zeros() as usize;
                line.head[slot] = tag_of(hash);
                line.entries[slot] = hash as u32 ^ number;
                self.pass_over(hash, probe, |passed| passed.saturating_add(1));
                self.most = self.most.max(number + 1);
                return Ok(());
            }
            at = self.after(at);
        }
        Err(IndexFull)
    }

    /// Removes `number` from under `hash`. Returns whether it was there.
    #[inline(never)]
    pub(crate) fn remove(&mut self, hash: u64, number: u32) -> bool {
        let entry = hash as u32 ^ number;
        let mut at = self.home(hash);
        for probe in 0..self.probes() {
            let line = &mut self.lines[at];
            let mut slots = line.with_tag(tag_of(hash));
            while slots != 0 {
                let slot = slots.trailing_zeros() as usize;
                if line.entries[slot] == entry {
                    (line.head[slot], line.entries[slot]) = (0, 0);
                    self.pass_over(hash, probe, |passed| if passed == u8::MAX { passed } else { passed - 1 });
                    return true;
                }
                slots &= slots - 1;
            }
            if line.passed(hash) == 0 {
                return false;
            }
            at = self.after(at);
        }
        false
    }

    /// Changes the count of those that passed by, of the first `lines` lines from the hash's home on.
    #[inline]
    fn pass_over(&mut self, hash: u64, lines: u32, change: impl Fn(u8) -> u8) {
        let mut at = self.home(hash);
        for _ in 0..lines {
            let passed = &mut self.lines[at].head[SLOTS + class_of(hash)];
            *passed = change(*passed);
            at = self.after(at);
        }
    }
}

/// The class of a hash, of as many as there are counts in a line: so a search for what is not there goes on only where an entry of its class has.
#[inline]
fn class_of(hash: u64) -> usize {
    hash as usize >> 8 & (16 - SLOTS - 1)
}

/// The tag of a hash: its lowest bits but one, and one that makes it none of an empty slot. The home line is chosen by the highest bits.
#[inline]
fn tag_of(hash: u64) -> u8 {
    hash as u8 | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use zerocopy::FromZeros as _;

    fn lines(entries: usize) -> Vec<Line> {
        vec![Line::new_zeroed(); Index::lines_for(entries, DENSE)]
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
                let hash = u64::from(value % 3) << 62 | u64::from(value) << 1 | 1;
                if insert && !model.contains_key(&(hash, value)) {
                    if index.insert(hash, value).is_ok() {
                        model.insert((hash, value), value);
                    }
                } else if !insert {
                    prop_assert_eq!(index.remove(hash, value), model.remove(&(hash, value)).is_some());
                }
                for &(hash, value) in model.keys() {
                    prop_assert_eq!(index.find(hash, |found| found == value), Some(value));
                    prop_assert_eq!(Some(index.first(hash)), index.find(hash, |_| true));
                }
                let absent = u64::from(value % 3) << 62 | 0x191;
                prop_assert_eq!(index.first(absent), NONE);
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
        let longest = index.lines.iter().filter(|line| line.head[SLOTS..] != [0; 4]).count();
        assert!(longest < index.lines.len() / 4, "few lines overflow: {longest}");
        for value in 0..entries as u32 {
            assert!(index.remove(hasher.hash_one(value), value));
        }
        assert!(index.lines.iter().all(|line| line.head == [0; 16] && line.entries == [0; SLOTS]), "nothing stays behind");
    }

    /// Entries that come and go lie worse than those that came once: a slot that gets free at home does not bring back who lives further on.
    #[test]
    fn searches_stay_short_when_all_entries_have_been_replaced_several_times() {
        let entries = 30_000;
        for (per_line, (found, not_found)) in [(ROOMY, (1.06, 1.1)), (DENSE, (1.3, 2.0))] {
            let mut memory = vec![Line::new_zeroed(); Index::lines_for(entries, per_line)];
            let mut index = Index::new(&mut memory);
            let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
            let hash_of = |value: u32| hasher.hash_one(value) | 1;
            let mut live: Vec<u32> = (0..entries as u32).collect();
            for &value in &live {
                index.insert(hash_of(value), value).expect("there is room");
            }
            for value in entries as u32..5 * entries as u32 {
                let place = hasher.hash_one((7, value)) as usize % entries;
                assert!(index.remove(hash_of(live[place]), live[place]));
                index.insert(hash_of(value), value).expect("there is room");
                live[place] = value;
            }
            // How many lines a search looks at, for a value or for none.
            let lines = |hash: u64, value: Option<u32>| {
                let has = |line: &Line| value.is_some_and(|value| line.entries.contains(&(hash as u32 ^ value)));
                let (mut at, mut count) = (index.home(hash), 1);
                while !has(&index.lines[at]) && index.lines[at].passed(hash) != 0 {
                    (at, count) = (index.after(at), count + 1);
                }
                count
            };
            let mean = |all: u32| f64::from(all) / f64::from(entries as u32);
            let mean_found = mean(live.iter().map(|&value| lines(hash_of(value), Some(value))).sum());
            let mean_not_found = mean((0..entries as u32).map(|value| lines(hash_of(value + (1 << 25)), None)).sum());
            assert!(mean_found < found && mean_not_found < not_found, "{per_line} a line: {mean_found} and {mean_not_found} lines");
        }
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
