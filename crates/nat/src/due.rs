//! When each session is to be looked at again: the number of a round of the sweep, in one byte.
//!
//! Knows numbers of records and of rounds, no sessions. The sweep passes every byte once a round and looks only at the sessions whose
//! byte says this round: a timer wheel whose slots are not lists but a value to search for, sixty-four at a time. A packet that refreshes
//! its session writes nothing here; the session is looked at too early then, and put off. Invariant: a byte is never later than the
//! session's end can be, by whoever sets it. Called by the sweep and when a session is made. Source of the idea: Varghese and Lauck,
//! "Hashed and hierarchical timing wheels" (1987), scheme 4, turned round.

use wide::u8x16;

/// Bytes compared at once.
const LANES: usize = 16;

/// Bytes looked through together: a cache line of them. The loop over those found ends seldom then, which no branch predictor foresees.
const BLOCK: usize = 64;

/// As many as are due in most blocks where sessions end one after the other: two minutes are thirty rounds.
const FEW: usize = 4;

/// The rounds of so many records.
pub(crate) type Block = [u8; BLOCK];

/// Records that are looked at together: those of the ones that follow are fetched meanwhile.
const TOGETHER: usize = 24;

/// Numbers of records that are due, [`TOGETHER`] at most.
#[derive(Clone, Copy, Default)]
pub(crate) struct Numbers {
    numbers: [u32; TOGETHER],
    count: usize,
}

impl core::ops::Deref for Numbers {
    type Target = [u32];

    #[inline]
    fn deref(&self) -> &[u32] {
        self.numbers.get(..self.count).unwrap_or_default()
    }
}

/// The rounds, by record number.
pub(crate) struct Due<'m> {
    rounds: &'m mut [Block],
    /// The round that the sweep is in, modulo 256.
    now: u8,
    /// How many rounds are made up for in this one, itself included: those whose time passed while the one before lasted.
    makes_up_for: u8,
    /// Numbers below this one have been passed in this round.
    passed: u32,
    /// What was gathered, and not yet looked at.
    gathered: Numbers,
}

impl<'m> Due<'m> {
    /// Rounds that one can make up for: half of those that a byte tells apart, so that what is to come is not taken for what was.
    pub(crate) const MOST_ROUNDS: u32 = 128;

    /// The blocks that so many records take.
    pub(crate) const fn blocks_for(records: usize) -> usize {
        records.div_ceil(BLOCK)
    }

    pub(crate) fn new(rounds: &'m mut [Block]) -> Self {
        Self { rounds, now: 0, makes_up_for: 1, passed: 0, gathered: Numbers::default() }
    }

    /// A round has ended, and the one that is so many later begins, at most [`Due::MOST_ROUNDS`]. What was due in those between is due in it.
    pub(crate) fn begin_round(&mut self, rounds: u32) {
        debug_assert!((1..=Self::MOST_ROUNDS).contains(&rounds), "{rounds} rounds");
        self.makes_up_for = rounds as u8;
        (self.now, self.passed) = (self.now.wrapping_add(rounds as u8), 0);
    }

    /// What [`Due::keep_gathered`] got.
    pub(crate) fn take_gathered(&mut self) -> Numbers {
        core::mem::take(&mut self.gathered)
    }

    /// What was gathered, and is to be looked at later.
    pub(crate) fn keep_gathered(&mut self, numbers: Numbers) {
        self.gathered = numbers;
    }

    /// Has `number` looked at in so many rounds from this one, in 255 at the latest, or sooner where this one makes up for others; in this one
    /// only if it has not been passed.
    pub(crate) fn set(&mut self, number: u32, rounds: u32) {
        let rounds = rounds.clamp(u32::from(number < self.passed), 255) as u8;
        self.rounds.as_flattened_mut()[number as usize] = self.now.wrapping_add(rounds);
    }

    /// The next from `from` on, and below `end`, that are due in this round, or simply the next of `all`. Returns them, and up to where was looked:
    /// those have been passed in this round.
    pub(crate) fn gather(&mut self, from: u32, end: u32, all: bool) -> (Numbers, u32) {
        let mut gathered = Numbers::default();
        let numbers = &mut gathered.numbers;
        (gathered.count, self.passed) = if all { all_between(from, end, numbers) } else { self.due_between(from, end, numbers) };
        (gathered, self.passed)
    }

    /// Fills `numbers` with those from `from` on, and below `end`, that are due in this round. Returns how many there are, and up to where was
    /// looked.
    fn due_between(&self, from: u32, end: u32, numbers: &mut [u32]) -> (usize, u32) {
        let blocks = from as usize / BLOCK..(end as usize).div_ceil(BLOCK);
        let mut first = from - from % BLOCK as u32;
        let mut wanted = u64::MAX << (from % BLOCK as u32);
        let mut count = 0;
        for block in self.rounds.get(blocks).unwrap_or_default() {
            if end - first < BLOCK as u32 {
                wanted &= !(u64::MAX << (end - first));
            }
            let mut due = self.due_in(block) & wanted;
            // So many places are written, whatever is found: as few are due in a block as no branch predictor foresees.
            if let Some(places) = numbers.get_mut(count..).and_then(|rest| rest.first_chunk_mut::<FEW>()) {
                let mut found = 0;
                for _ in 0..FEW {
                    places[found % FEW] = first + due.trailing_zeros();
                    found += usize::from(due != 0);
                    due &= due.wrapping_sub(1);
                }
                count += found;
            }
            while due != 0 {
                let found = first + due.trailing_zeros();
                let Some(place) = numbers.get_mut(count) else { return (count, found) };
                (*place, count) = (found, count + 1);
                due &= due - 1;
            }
            (first, wanted) = (first + BLOCK as u32, u64::MAX);
        }
        (count, end)
    }

    /// Which of a block are due in this round, a bit each.
    #[inline]
    fn due_in(&self, block: &Block) -> u64 {
        let (now, longest) = (u8x16::splat(self.now), u8x16::splat(self.makes_up_for - 1));
        let lanes = block.as_chunks::<LANES>().0.iter().enumerate();
        lanes.fold(0, |all, (place, &lanes)| {
            // How many rounds ago: of what is to come, nearly 256.
            let ago = now - u8x16::new(lanes);
            all | u64::from(ago.min(longest).simd_eq(ago).to_bitmask()) << (place * LANES)
        })
    }
}

/// Fills `numbers` with all from `from` on, and below `end`. Returns how many there are, and up to where it went.
fn all_between(from: u32, end: u32, numbers: &mut [u32]) -> (usize, u32) {
    let count = numbers.iter_mut().zip(from..end).map(|(place, number)| *place = number).count();
    (count, from + count as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_finds_what_a_loop_finds(
            bytes in proptest::collection::vec(0_u8..3, 0..200),
            (from, end) in (0_u32..210, 0_u32..210),
            (rounds, span, room) in (0_u8..3, 1_u8..3, 0_usize..40)
        ) {
            let mut memory = vec![[9; BLOCK]; Due::blocks_for(bytes.len())];
            memory.as_flattened_mut()[..bytes.len()].copy_from_slice(&bytes);
            let mut due = Due::new(&mut memory);
            // To where a round of so many leads to that number.
            due.now = rounds.wrapping_sub(span);
            due.begin_round(u32::from(span));
            let end = end.min(bytes.len() as u32);
            let is_due = |byte: u8| (0..span).any(|ago| rounds.wrapping_sub(ago) == byte);
            let all: Vec<u32> = (from..end).filter(|&number| is_due(bytes[number as usize])).collect();
            let mut numbers = vec![u32::MAX; room];
            let (count, next) = due.due_between(from, end, &mut numbers);
            let expected = &all[..all.len().min(room)];
            prop_assert_eq!(&numbers[..count], expected);
            // What there was no room for is found next.
            prop_assert_eq!(next, all.get(room).copied().unwrap_or(end));
        }
    }

    #[test]
    fn what_is_set_comes_in_its_round_and_in_this_one_only_if_it_was_not_passed() {
        let mut memory = [[0; BLOCK]; 1];
        let mut due = Due::new(&mut memory);
        assert_eq!(due.gather(0, 2, true).1, 2);
        due.set(2, 0);
        let mut numbers = [0; 20];
        assert_eq!((due.due_between(2, 3, &mut numbers), numbers[0], due.due_between(3, 3, &mut numbers)), ((1, 3), 2, (0, 3)));
        for (number, rounds) in [(0, 0), (1, 1), (17, 2), (18, 255), (19, 9999)] {
            due.set(number, rounds);
        }
        let mut seen = Vec::new();
        for round in 1..=255 {
            due.begin_round(1);
            let (count, _) = due.due_between(0, 20, &mut numbers);
            seen.extend(numbers[..count].iter().map(|&number| (round, number)));
        }
        assert_eq!(seen, [(1, 0), (1, 1), (2, 17), (255, 18), (255, 19)]);
    }
}
