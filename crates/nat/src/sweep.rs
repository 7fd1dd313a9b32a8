//! The sweep: ends what has been idle too long, a bounded portion at a time.
//!
//! Knows time, the sessions and when each is to be looked at; no packets. Called between bursts, and when idle. Invariants: a portion is so
//! small that no packet waits for it noticeably; a session outlives its timeout in the tables by no more than a round, as long as portions come
//! often enough and suffice; in look-ups by nothing. After other rules or another network every session is looked at in two whole rounds.

use crate::adjacency::Adjacencies;
use crate::ahead;
use crate::counters::Counters;
use crate::due::{Due, Numbers};
use crate::nat::Nat;
use crate::record::Kind;
use crate::slab::Record as _;
use crate::state::{EndingSession, State};
use crate::time::Tick;

/// A round over all sessions takes this long: a millisecond's portions suffice for sixteen million sessions, and of those that are over
/// at once for 120. **Units:** milliseconds.
pub const SWEEP_ROUND: u32 = 4000;

/// So much earlier than its time a round may end, by rounding. **Units:** milliseconds.
const SWEEP_EARLY: u32 = SWEEP_ROUND / 16;

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
    /// Sessions after which it looks at no more, but for those that it looks at together ([`Numbers`]).
    pub(crate) looks: u32,
    /// Ends after which it looks at no more sessions, likewise.
    pub(crate) ends: u32,
    /// Whether it looks at all sessions, not only at those that are due.
    pub(crate) looks_at_all: bool,
    /// How much later it comes than the next round will come to the same records. **Units:** milliseconds.
    pub(crate) late: u32,
}

impl Step {
    /// Everything at once.
    pub(crate) const ALL: Self = Self { most: u32::MAX, looks: u32::MAX, ends: u32::MAX, looks_at_all: true, late: 0 };
}

impl Nat<'_> {
    /// Ends what has been idle too long: a portion of the sweep, or some where many wait. Called between bursts, and when idle. Returns whether
    /// another one is due already, for which the caller should look for packets first, but not sleep.
    pub fn expire_some(&mut self, now: Tick) -> bool {
        let elapsed = now.since(self.sweep.last).min(SWEEP_ROUND);
        self.sweep.last = now;
        let (records, round) = (u64::from(self.state.swept_records()), u64::from(SWEEP_ROUND));
        // More than a round's is due where one ends late.
        self.sweep.due = (self.sweep.due + u64::from(elapsed) * records).min(2 * records * round);
        self.sweep.portions = (self.sweep.portions + elapsed * PORTIONS).min(PORTIONS_MOST);
        // Two where calls come seldom, or this one comes after a sleep: what a packet may have to wait for.
        let portions = self.sweep.portions.div_ceil(PORTIONS).min(2);
        let most = (self.sweep.due / round).min(u64::from(portions * SWEEP_MOST)) as u32;
        if most > 0 {
            self.sweep.portions -= portions;
            let [looks, ends] = [SWEEP_LOOKS, SWEEP_ENDS].map(|bound| bound * portions);
            let step = Step { most, looks, ends, looks_at_all: self.sweep.looks_at_all, late: self.lateness(now) };
            let passed = self.sweep_records(&step, now);
            self.sweep.due = self.sweep.due.saturating_sub(u64::from(passed.max(1)) * round);
            // A round that begins late is as late as that, whatever was passed over.
            self.sweep.due = self.sweep.due.min(u64::from(now.since(self.sweep.began)) * records);
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

    /// How long after the moment at which an even round is where the sweep is now. **Units:** milliseconds.
    fn lateness(&self, now: Tick) -> u32 {
        let passed = match self.sweep.table {
            Table::Sessions => 0,
            Table::BareMappings => self.state.sessions.records.high_water(),
        };
        let records = u64::from(self.state.swept_records().max(1));
        // The next record's time has come when all before it have had theirs, and it too.
        let even = u64::from(passed + self.sweep.cursor + 1) * u64::from(SWEEP_ROUND) / records;
        now.since(self.sweep.began).saturating_sub(even as u32)
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
        let rounds = (now.since(self.sweep.began) + SWEEP_EARLY) / SWEEP_ROUND;
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
                |state, numbers, following| state.look_at((numbers, following), (now, step.late), adjacencies, counters),
            ),
            Table::BareMappings => self.walk(
                (self.bares.records.high_water(), cursor),
                step,
                |state| &mut state.bares.due,
                |state, number| state.bares.fetch_record(number),
                |state, numbers, following| state.look_at_bares((numbers, following), (now, step.late), adjacencies, counters),
            ),
        }
    }

    /// A step over one table, whose records are below `high_water`: `look_at` gets the numbers of those to look at, for which `fetch` was called, and
    /// those that come after them, for which it calls `fetch`; it says how many ended. What was gathered last is looked at by the next step: its
    /// records have come by then.
    fn walk(
        &mut self,
        (high_water, cursor): (u32, u32),
        step: &Step,
        due: for<'s> fn(&'s mut Self) -> &'s mut Due<'m>,
        fetch: impl Fn(&Self, u32),
        mut look_at: impl FnMut(&mut Self, &Numbers, &Numbers) -> u32,
    ) -> (u32, bool) {
        let end = high_water.min(cursor.saturating_add(step.most));
        let start = cursor.min(end);
        let (mut next, mut looks, mut ended) = (start, 0, 0);
        let mut numbers = due(self).take_gathered();
        while (next < end || !numbers.is_empty()) && looks < step.looks && ended < step.ends {
            let following;
            (following, next) = due(self).gather(next, end, step.looks_at_all);
            if numbers.is_empty() {
                following.iter().for_each(|&number| fetch(self, number));
            } else {
                looks += numbers.len() as u32;
                ended += look_at(self, &numbers, &following);
            }
            numbers = following;
        }
        let is_last = next == high_water && numbers.is_empty();
        due(self).keep_gathered(numbers);
        (next - start, is_last)
    }

    /// Ends those sessions that are over, and says of the others when they are looked at again. Returns how many ended.
    fn look_at(
        &mut self,
        (numbers, following): (&[u32], &[u32]),
        (now, late): (Tick, u32),
        adjacencies: &Adjacencies,
        counters: &mut Counters,
    ) -> u32 {
        end_in_turn(
            self,
            (numbers, following),
            |state, number| ahead::fetch(state.sessions.records.get(number)),
            |state, number, place| {
                let is_over = state.is_over(number, (now, late), adjacencies);
                if is_over {
                    state.fetch_for_end(number, place);
                }
                is_over
            },
            Self::look_for,
            |state, ending| state.end_sought(ending, now, counters),
        )
    }

    /// Whether a session is over. If it is not, says when it is looked at again, so much later than the rounds to come.
    #[expect(
        clippy::inline_always,
        reason = "asked twice for each of a portion's first: the compiler would make it a call for all"
    )]
    #[inline(always)]
    fn is_over(&mut self, number: u32, (now, late): (Tick, u32), adjacencies: &Adjacencies) -> bool {
        let session = self.sessions.records.get(number);
        if !session.is_live() {
            return false;
        }
        let left = self.expires_in(session, now);
        if left == 0 {
            return true;
        }
        // When it may have ended.
        self.due.set(number, (self.earliest_end(session.kind, left) + late).div_ceil(SWEEP_ROUND).max(1));
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

    /// Has what it takes to end a session fetched.
    #[inline(never)]
    fn fetch_for_end(&self, number: u32, ending: &mut EndingSession) {
        *ending = self.seek_session(number);
        self.sessions.fetch_homes(&ending.session);
        if let Some(mapping) = &ending.mapping {
            self.mappings.fetch_home(mapping);
        }
        let session = self.sessions.records.get(number);
        self.fetch_port_for_end(session.kind.protocol(), (session.slot, session.external_port.get()));
        self.subscribers.fetch_home(ending.subscriber);
    }

    /// Looks for a session and its mapping in the lines that [`State::fetch_for_end`] fetched.
    #[inline]
    fn look_for(&self, ending: &mut EndingSession) {
        self.sessions.look_for(&mut ending.session, ending.number);
        if let Some(mapping) = &mut ending.mapping {
            self.mappings.look_for_sole(mapping, ending.number);
        }
    }
}

/// So many wait for the memory that their end takes while others are worked on. Measured with 3, 4, 6, 8 and 16: 6 is the quickest where memory is
/// far away (`pipeline expiry`).
const WAITING: usize = 6;

/// Places for those, and for one more.
const PLACES: usize = (WAITING + 1).next_power_of_two();

/// Ends those of `numbers` for which `begin` says that they are over, when what their end takes has had time to come: it notes that in a place
/// that `go_on` gets halfway, and `end` at last. Meanwhile `fetch` is called for each of those that follow in the next call, and when
/// none of `numbers` is left to begin with, `begin` for the first of them, which is called for them again then. Returns how many ended.
#[inline]
pub(crate) fn end_in_turn<S, T: Default>(
    state: &mut S,
    (numbers, following): (&[u32], &[u32]),
    fetch: impl Fn(&S, u32),
    begin: impl Fn(&mut S, u32, &mut T) -> bool,
    go_on: impl Fn(&S, &mut T),
    mut end: impl FnMut(&mut S, &T),
) -> u32 {
    let mut places: [T; PLACES] = Default::default();
    let mut count = 0;
    for (turn, &number) in numbers.iter().enumerate() {
        if let Some(&following) = following.get(turn) {
            fetch(state, following);
        }
        if !begin(state, number, &mut places[count % PLACES]) {
            continue;
        }
        if let Some(halfway) = count.checked_sub(WAITING / 2) {
            go_on(state, &mut places[halfway % PLACES]);
        }
        if let Some(first) = count.checked_sub(WAITING) {
            end(state, &places[first % PLACES]);
        }
        count += 1;
    }
    for &number in following.get(numbers.len()..).unwrap_or_default() {
        fetch(state, number);
    }
    let (mut following, mut halfway) = (following.iter(), count.saturating_sub(WAITING / 2)..count);
    for left in count.saturating_sub(WAITING)..count {
        if let Some(halfway) = halfway.next() {
            go_on(state, &mut places[halfway % PLACES]);
        }
        if let Some(&number) = following.next() {
            begin(state, number, &mut places[count % PLACES]);
        }
        end(state, &places[left % PLACES]);
    }
    count as u32
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// What was done with each number.
    #[derive(Default)]
    struct Log {
        fetched: Vec<u32>,
        begun: Vec<u32>,
        halfway: Vec<u32>,
        ended: Vec<u32>,
    }

    #[test]
    fn all_that_are_over_end_once_in_their_order_and_what_follows_is_prepared() {
        for (count, following) in (0..20_u32).flat_map(|count| (0..20).map(move |following| (count, following))) {
            let (numbers, following): (Vec<_>, Vec<_>) = ((0..count).collect(), (100..100 + following).collect());
            let (is_over, log) = (|number: u32| !number.is_multiple_of(5), RefCell::<Log>::default());
            let ended = end_in_turn(
                &mut (),
                (&numbers, &following),
                |(), number| log.borrow_mut().fetched.push(number),
                |(), number, place| {
                    log.borrow_mut().begun.push(number);
                    *place = number;
                    is_over(number)
                },
                |(), &mut number| log.borrow_mut().halfway.push(number),
                |(), &number| {
                    let mut log = log.borrow_mut();
                    let (begun, ended) =
                        (log.begun.iter().filter(|number| **number < 100 && is_over(**number)).count(), log.ended.len());
                    assert!(begun - ended <= WAITING + 1, "no more than so many wait");
                    log.ended.push(number);
                },
            );
            let log = log.into_inner();
            let over: Vec<_> = numbers.iter().copied().filter(|&number| is_over(number)).collect();
            assert_eq!((log.ended.len() as u32, &log.ended), (ended, &over));
            assert_eq!(log.fetched, following);
            let ahead = log.begun.iter().copied().filter(|number| *number >= 100);
            assert!(ahead.eq(following.iter().copied().take(over.len().min(WAITING))));
            assert_eq!(log.halfway, over);
        }
    }
}
