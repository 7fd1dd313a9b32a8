//! The sweep: ends what has been idle too long, a bounded portion at a time.
//!
//! Knows time, the sessions and when each is to be looked at; no packets. Called between bursts, and when idle. Invariants: a portion is so
//! small that no packet waits for it noticeably; a session outlives its timeout in the tables by no more than a round, as long as portions come
//! often enough and suffice; in look-ups by nothing. After other rules or another network every session is looked at in two whole rounds.

use crate::adjacency::Adjacencies;
use crate::ahead;
use crate::counters::Counters;
use crate::due::Due;
use crate::nat::Nat;
use crate::record::Kind;
use crate::slab::Record as _;
use crate::state::State;
use crate::time::Tick;
use crate::two_keys::Hashes;

/// A round over all sessions takes this long: a millisecond's portions suffice for sixteen million sessions, and of those that are over
/// at once for 120. **Units:** milliseconds.
pub const SWEEP_ROUND: u32 = 4000;

/// Portions for each millisecond that has passed. A portion takes a few microseconds (`just bench`), less than a burst.
const PORTIONS: u32 = 5;

/// Portions that wait at most: those of a sleep, and some more. What stands still for longer sweeps later, rather than for long. Chosen, not measured.
const PORTIONS_MOST: u32 = 32 * PORTIONS;

/// Sessions that a portion passes: a byte each, a cache line of them at once.
const SWEEP_MOST: u32 = 1024;

/// Sessions after whose end a portion looks at no more. Each takes a fraction of a microsecond (`just bench`): far more than to look at one. What is over
/// and waits for the sweep has ended for look-ups, and has its port still.
const SWEEP_ENDS: u32 = 24;

/// Sessions after which a portion looks at no more: about ten nanoseconds each. When more come up in
/// a round, as when all were made at one moment, the round lasts longer, and the next makes up for those that it took the time of.
const SWEEP_LOOKS: u32 = 128;

/// Address-and-protocol pairs, and ports of them, that are looked at for ports that have rested, for each millisecond since the last time. All
/// that there may be (`config::ADDRESSES_MOST`) take a fifth of a second.
const SWEEP_RESTS: (usize, u32) = (64, 128);

/// Translations of protocols without ports that are passed for each millisecond since the last time, one after the other in memory: all that there
/// are by default in an eighth of a second.
const SWEEP_OTHERS: u32 = 128;

/// Milliseconds that these two make up for at most.
const SWEEP_ARREARS: u32 = 4;

/// Sessions that are looked at together: the processor fetches the records of all of them at once.
const TOGETHER: usize = 24;

/// The tables of a round, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Table {
    #[default]
    Sessions,
    BareMappings,
}

impl Table {
    pub(crate) const ALL: [Self; 2] = [Self::Sessions, Self::BareMappings];
}

/// Where the sweep over sessions and bare mappings is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sweep {
    table: Table,
    cursor: u32,
    last: Tick,
    /// What is due and was not swept yet. **Units:** records times milliseconds; a record is due after [`SWEEP_ROUND`] of them.
    due: u64,
    /// Portions of the time that has passed which were not done yet.
    portions: u32,
    /// Whole rounds since the policy was adopted.
    rounds: u32,
    /// When this round should have begun.
    began: Tick,
    /// Whether this round looks at every session, since it began.
    looks_at_all: bool,
}

impl Sweep {
    pub(crate) fn new(now: Tick) -> Self {
        Self { last: now, began: now, looks_at_all: true, ..Self::default() }
    }

    /// There are other rules, by which sessions may end earlier.
    pub(crate) fn begin_anew(&mut self) {
        self.rounds = 0;
    }
}

/// What a part of the sweep may do, and looks at.
pub(crate) struct Step {
    /// Records that it passes at most.
    pub(crate) most: u32,
    /// Sessions after which it looks at no more, but for those that it looks at [`TOGETHER`].
    pub(crate) looks: u32,
    /// Ends after which it looks at no more sessions, likewise.
    pub(crate) ends: u32,
    /// Whether it looks at all sessions, not only at those that are due.
    pub(crate) looks_at_all: bool,
}

impl Step {
    /// Everything at once.
    pub(crate) const ALL: Self = Self { most: u32::MAX, looks: u32::MAX, ends: u32::MAX, looks_at_all: true };
}

impl Nat<'_> {
    /// Ends what has been idle too long: a portion of the sweep, or some where many wait. Called between bursts, and when idle. Returns whether
    /// another one is due already, for which the caller should look for packets first, but not sleep.
    pub fn expire_some(&mut self, now: Tick) -> bool {
        let elapsed = now.since(self.sweep.last).min(SWEEP_ROUND);
        self.sweep.last = now;
        let (records, round) = (u64::from(self.state.swept_records()), u64::from(SWEEP_ROUND));
        self.sweep.due = (self.sweep.due + u64::from(elapsed) * records).min(records * round);
        self.sweep.portions = (self.sweep.portions + elapsed * PORTIONS).min(PORTIONS_MOST);
        // Two where calls come seldom, or this one comes after a sleep: what a packet may have to wait for.
        let portions = self.sweep.portions.div_ceil(PORTIONS).min(2);
        let most = (self.sweep.due / round).min(u64::from(portions * SWEEP_MOST)) as u32;
        if most > 0 {
            self.sweep.portions -= portions;
            let [looks, ends] = [SWEEP_LOOKS, SWEEP_ENDS].map(|bound| bound * portions);
            let step = Step { most, looks, ends, looks_at_all: self.sweep.looks_at_all };
            let passed = self.sweep_records(&step, now);
            self.sweep.due = self.sweep.due.saturating_sub(u64::from(passed.max(1)) * round);
        } else if records == 0 {
            self.finish_round(now);
        }
        if self.sweep.due < round {
            self.sweep.portions = 0;
        }
        if elapsed > 0 {
            let (spaces, ports) = SWEEP_RESTS;
            let times = elapsed.min(SWEEP_ARREARS);
            self.state.wake_ports((spaces * times as usize, ports * times), now);
            self.state.others.sweep(SWEEP_OTHERS * times, now);
        }
        self.fragments.expire(now);
        self.paths.refresh(now, &mut self.adjacencies);
        self.sweep.portions > 0
    }

    /// Ends what has been idle too long: all portions that are due.
    pub fn expire(&mut self, now: Tick) {
        while self.expire_some(now) {}
    }

    /// Ends everything that has been idle too long, at once. **Cost:** cold; O(sessions).
    pub fn expire_all(&mut self, now: Tick) {
        // Twice: guests end with mappings, which end with sessions anywhere in the table.
        for _ in 0..2 {
            (self.sweep.table, self.sweep.cursor) = (Table::Sessions, 0);
            self.sweep_records(&Step::ALL, now);
        }
        self.state.wake_ports((usize::MAX, u32::MAX), now);
        self.state.others.sweep(u32::MAX, now);
        self.fragments.expire_all(now);
    }

    /// A step, which goes on in the next table where one ends. Returns how many records it passed.
    fn sweep_records(&mut self, step: &Step, now: Tick) -> u32 {
        let mut all = 0;
        loop {
            let rest = Step { most: step.most - all, ..*step };
            let Sweep { table, cursor, .. } = self.sweep;
            let (passed, is_last) = self.state.sweep((table, cursor), &rest, now, &self.adjacencies, &mut self.counters);
            self.sweep.cursor += passed;
            all += passed;
            match table {
                _ if !is_last => return all,
                Table::Sessions => (self.sweep.table, self.sweep.cursor) = (Table::BareMappings, 0),
                Table::BareMappings => {
                    self.finish_round(now);
                    return all;
                }
            }
        }
    }

    /// After two rounds' ends since a policy came, one whole round lies between them, and it looked at every session. When steps did not come
    /// for long, or had too much to do, the next round makes up for those that have passed meanwhile; for very many by looking at all.
    fn finish_round(&mut self, now: Tick) {
        let rounds = now.since(self.sweep.began) / SWEEP_ROUND;
        // One that ends before its time may bring sessions up too early, which does no harm.
        self.sweep.began = if rounds == 0 { now } else { self.sweep.began.after(rounds * SWEEP_ROUND) };
        for due in [&mut self.state.due, &mut self.state.bares.due] {
            due.begin_round(rounds.clamp(1, Due::MOST_ROUNDS));
        }
        (self.sweep.table, self.sweep.cursor) = (Table::Sessions, 0);
        if self.sweep.looks_at_all {
            self.adjacencies.swept();
        }
        self.sweep.rounds = self.sweep.rounds.saturating_add(1);
        if self.sweep.rounds >= 2 {
            self.state.swept();
        }
        self.sweep.looks_at_all = self.sweep.rounds < 2 || rounds > Due::MOST_ROUNDS || self.adjacencies.has_forgotten();
    }
}

/// Fills `numbers` with all from `from` on, and below `end`. Returns how many there are, and up to where it went.
fn all_between(from: u32, end: u32, numbers: &mut [u32]) -> (usize, u32) {
    let count = numbers.iter_mut().zip(from..end).map(|(place, number)| *place = number).count();
    (count, from + count as u32)
}

impl<'m> State<'m> {
    /// Records that a round passes.
    fn swept_records(&self) -> u32 {
        self.sessions.records.high_water() + self.bares.records.high_water()
    }

    /// A step in a table from the record `cursor` on: ends what is over, and takes from the rest what holds no more of `adjacencies`. Returns how
    /// many records it passed, and whether they were the last.
    pub(crate) fn sweep(
        &mut self,
        (table, cursor): (Table, u32),
        step: &Step,
        now: Tick,
        adjacencies: &Adjacencies,
        counters: &mut Counters,
    ) -> (u32, bool) {
        match table {
            Table::Sessions => self.walk(
                (self.sessions.records.high_water(), cursor),
                step,
                |state| &mut state.due,
                |state, number| ahead::fetch(state.sessions.records.get(number)),
                |state, numbers| state.look_at(numbers, now, adjacencies, counters),
            ),
            Table::BareMappings => self.walk(
                (self.bares.records.high_water(), cursor),
                step,
                |state| &mut state.bares.due,
                |state, number| state.bares.fetch_record(number),
                |state, numbers| state.look_at_bares(numbers, now, adjacencies, counters),
            ),
        }
    }

    /// A step over one table, whose records are below `high_water`: `look_at` gets the numbers of those to look at, for which `fetch` was called, and
    /// says how many ended.
    fn walk(
        &mut self,
        (high_water, cursor): (u32, u32),
        step: &Step,
        due: for<'s> fn(&'s mut Self) -> &'s mut Due<'m>,
        fetch: impl Fn(&Self, u32),
        mut look_at: impl FnMut(&mut Self, &[u32]) -> u32,
    ) -> (u32, bool) {
        let end = high_water.min(cursor.saturating_add(step.most));
        let start = cursor.min(end);
        let (mut next, mut looks, mut ended) = (start, 0, 0);
        while next < end && looks < step.looks && ended < step.ends {
            let mut numbers = [0; TOGETHER];
            let count;
            (count, next) =
                if step.looks_at_all { all_between(next, end, &mut numbers) } else { due(self).gather(next, end, &mut numbers) };
            looks += count as u32;
            due(self).pass(next);
            let numbers = &numbers[..count];
            for &number in numbers {
                fetch(self, number);
            }
            ended += look_at(self, numbers);
        }
        // What the next step begins with: its records have come by then.
        if !step.looks_at_all {
            let mut numbers = [0; TOGETHER];
            let (count, _) = due(self).gather(next, high_water.min(next.saturating_add(step.most)), &mut numbers);
            for &number in &numbers[..count] {
                fetch(self, number);
            }
        }
        (next - start, next == high_water)
    }

    /// Ends those sessions that are over, and says of the others when they are looked at again. Returns how many ended.
    fn look_at(&mut self, numbers: &[u32], now: Tick, adjacencies: &Adjacencies, counters: &mut Counters) -> u32 {
        self.end_in_turn(
            numbers,
            |state, number| state.is_over(number, now, adjacencies).then(|| state.fetch_for_end(number)),
            |state, (_, hashes)| state.fetch_displaced(hashes),
            |state, (number, hashes)| state.end_hashed(number, hashes, now, counters),
        )
    }

    /// Ends those of `numbers` for which `begin` gives what their end takes, when that has had time to come: [`Ending`]. `go_on` is called
    /// halfway. Returns how many ended.
    #[inline]
    pub(crate) fn end_in_turn<T: Copy + Default>(
        &mut self,
        numbers: &[u32],
        begin: impl Fn(&mut Self, u32) -> Option<T>,
        go_on: impl Fn(&Self, &T),
        mut end: impl FnMut(&mut Self, T),
    ) -> u32 {
        let mut ending = Ending::default();
        for &number in numbers {
            let Some(one) = begin(self, number) else { continue };
            if let Some(halfway) = ending.halfway() {
                go_on(self, halfway);
            }
            if let Some(first) = ending.add(one) {
                end(self, first);
            }
        }
        for one in ending.rest() {
            end(self, one);
        }
        ending.count()
    }

    /// Whether a session is over. If it is not, says when it is looked at again.
    #[inline]
    fn is_over(&mut self, number: u32, now: Tick, adjacencies: &Adjacencies) -> bool {
        let session = self.sessions.records.get(number);
        if !session.is_live() {
            return false;
        }
        let left = self.expires_in(session, now);
        if left == 0 {
            return true;
        }
        // When it may have ended.
        self.due.set(number, self.earliest_end(session.kind, left).div_ceil(SWEEP_ROUND).max(1));
        if session.adjacencies != 0 && adjacencies.get(session.adjacencies).is_none() {
            self.sessions.records.get_mut(number).adjacencies = 0;
        }
        false
    }

    /// Has a session that is just made looked at when the last round ends that begins before it may have ended.
    pub(crate) fn look_first(&mut self, number: u32, kind: Kind) {
        self.due.set(number, self.earliest_end(kind, u32::MAX) / SWEEP_ROUND);
    }

    /// In how many milliseconds a session that ends in `left` may end: packets may shorten its time to that of the shortest state.
    #[inline]
    fn earliest_end(&self, kind: Kind, left: u32) -> u32 {
        left.min(self.shortest[kind.family()])
    }

    /// Has what it takes to end a session fetched. Returns what [`State::end_hashed`] wants.
    #[inline]
    fn fetch_for_end(&self, number: u32) -> (u32, (Hashes, Option<u64>)) {
        let session = self.sessions.records.get(number);
        let (of_session, of_mapping) = (self.sessions.hashes(session), self.mappings.hash_of_sole(session));
        self.sessions.fetch_lines(&of_session);
        if let Some(hash) = of_mapping {
            self.mappings.fetch_line(hash);
        }
        self.space(session.slot, session.kind.protocol()).fetch(session.external_port.get());
        self.subscribers.fetch(session.internal().address);
        (number, (of_session, of_mapping))
    }

    /// Has the lines after those fetched where the entries of a session and its mapping are not in their home lines.
    #[inline]
    fn fetch_displaced(&self, (of_session, of_mapping): &(Hashes, Option<u64>)) {
        self.sessions.fetch_displaced(of_session);
        if let Some(hash) = *of_mapping {
            self.mappings.fetch_displaced(hash);
        }
    }
}

/// So many wait for the memory that their end takes while others are worked on. Measured with 3, 4, 6, 8 and 16: 6 is the quickest where memory is
/// far away (`pipeline expiry`).
const WAITING: usize = 6;

/// Those that are about to end, in their order.
#[derive(Clone, Copy, Default)]
struct Ending<T> {
    latest: [T; WAITING],
    count: usize,
}

impl<T: Copy> Ending<T> {
    /// Adds one. Returns the one whose turn it is then.
    #[inline]
    fn add(&mut self, one: T) -> Option<T> {
        let first = core::mem::replace(&mut self.latest[self.count % WAITING], one);
        self.count += 1;
        (self.count > WAITING).then_some(first)
    }

    /// The one that has waited for half of its time when another one is added.
    #[inline]
    fn halfway(&self) -> Option<&T> {
        let number = self.count.checked_sub(WAITING / 2)?;
        Some(&self.latest[number % WAITING])
    }

    /// Those that wait at the end.
    fn rest(&self) -> impl Iterator<Item = T> + use<T> {
        let Self { latest, count } = *self;
        (count.saturating_sub(WAITING)..count).map(move |number| latest[number % WAITING])
    }

    /// How many were added.
    fn count(&self) -> u32 {
        self.count as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_end_once_in_their_order_and_each_is_halfway_before() {
        for count in 0..20_u32 {
            let (mut ending, mut ended, mut halfway) = (Ending::default(), Vec::new(), Vec::new());
            for one in 0..count {
                halfway.extend(ending.halfway().copied());
                let first = ending.add(one);
                assert!(first.is_none_or(|first| halfway.contains(&first)), "{first:?} after {halfway:?}");
                ended.extend(first);
                assert!(one as usize - ended.len() < WAITING, "no more than so many wait");
            }
            assert_eq!(ending.count() as usize, count as usize);
            ended.extend(ending.rest());
            assert!(ended.into_iter().eq(0..count) && halfway.into_iter().eq(0..count.saturating_sub(WAITING as u32 / 2)));
        }
    }
}
