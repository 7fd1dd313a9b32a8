//! Datagrams in fragments: what became of the first fragment, and which fragments wait for it.
//!
//! Knows fates and tokens, no packets: the frames that wait are the worker's. Called for first fragments (to remember) and later ones (to
//! find, or to wait). Invariants: at most the configured number is remembered and [`EARLY`] frames wait, each for the configured time;
//! fragments that wait never displace what is known of others. Sources: RFC 791 section 3.2, RFC 4787 section 11 (REQ-14). Tests: here,
//! `tests/fragments.rs`, the reference NAT.

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use ahash::RandomState;
use portcullis_steering::WorkerId;

pub(crate) use crate::sets::FragmentKey;
use crate::sets::Sets;
use crate::time::Tick;
use crate::verdict::{DatagramToken, Errand, HandOffCause};

/// What became of a first fragment, and so becomes of the later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was forwarded with these addresses.
    Translated {
        /// The new source.
        source: Ipv4Addr,
        /// The new destination.
        destination: Ipv4Addr,
        /// The identification that it has now.
        id: u16,
    },
    /// It was handed to another worker, which knows the rest.
    HandedOff(WorkerId, HandOffCause, Errand),
    /// It was left to the kernel.
    Punted,
    /// It was dropped.
    Dropped,
}

/// The datagrams that the first fragment of one source may make the table forget: a set of it. Chosen: fragments of sixteen datagrams
/// may be mixed with each other on their way from one source.
pub(crate) const WAYS: usize = 16;

/// The part of a datagram's payload that one fragment carries. **Units:** bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Whether it is the end of the datagram.
    pub(crate) is_last: bool,
}

/// Which pieces of a datagram have passed, as two sums. For pieces that make up the whole without overlap, lengths add up to its
/// length, and the differences of the squares of their ends to its square; doubled and missing ones do not cancel out in both.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    lengths: u32,
    squares: u64,
    /// The datagram's length. Zero until its last piece has passed.
    whole: u32,
}

impl Passed {
    fn add(&mut self, piece: Piece) {
        self.lengths = self.lengths.saturating_add(piece.end.saturating_sub(piece.start));
        let square = |end: u32| u64::from(end) * u64::from(end);
        self.squares = self.squares.saturating_add(square(piece.end).saturating_sub(square(piece.start)));
        if piece.is_last {
            self.whole = piece.end;
        }
    }

    fn is_whole(&self) -> bool {
        self.whole != 0 && self.lengths == self.whole && self.squares == u64::from(self.whole) * u64::from(self.whole)
    }
}

/// A datagram whose first fragment has come.
#[derive(Clone, Copy, Debug)]
struct Known {
    fate: Fate,
    passed: Passed,
}

/// The datagrams of one source, about, whose first fragment is waited for. Chosen smaller: reordering is rare.
const EARLY_WAYS: usize = 8;

/// For so many datagrams that are remembered there is room for one that waits. Chosen.
const EARLY_SHARE: u32 = 4;

/// Frames that wait in all: a thirty-second of the default packet memory. Chosen.
pub(crate) const EARLY: u32 = 1024;

/// Frames of one datagram that wait: enough for the longest one, cut for Ethernet (45), and then some.
pub(crate) const EARLY_OF_ONE: u16 = 64;

/// A round of expiry over all sets takes this long. **Units:** milliseconds.
const ROUND: u32 = 1000;

/// A datagram whose first fragment has not come.
#[derive(Clone, Copy, Debug)]
struct Early {
    token: DatagramToken,
    frames: u16,
}

/// The datagrams in fragments that are on their way.
pub(crate) struct Fragments {
    known: Sets<Known>,
    early: Sets<Early>,
    /// Frames that wait, of all datagrams.
    frames: u32,
    tokens: u64,
    /// How long a datagram is known, and how long its fragments wait. **Units:** milliseconds.
    span: u32,
    expired: Tick,
    released: VecDeque<DatagramToken>,
    given_up: VecDeque<DatagramToken>,
}

impl Fragments {
    pub(crate) fn new(limit: u32, hasher: RandomState, now: Tick) -> Self {
        let early = Sets::new((limit / EARLY_SHARE) as usize, EARLY_WAYS, hasher.clone());
        let tokens = || VecDeque::with_capacity((limit / EARLY_SHARE) as usize + 1);
        let (released, given_up) = (tokens(), tokens());
        let known = Sets::new(limit as usize, WAYS, hasher);
        Self { known, early, frames: 0, tokens: 0, span: 0, expired: now, released, given_up }
    }

    /// Sets how long a datagram is known. **Units:** milliseconds.
    pub(crate) fn set_span(&mut self, span: u32) {
        self.span = span;
    }

    /// Takes down what became of a first fragment, in place of what is known of an earlier one; what waits for it is released.
    pub(crate) fn learn(&mut self, key: FragmentKey, piece: Piece, fate: Fate, now: Tick) {
        let mut passed = Passed::default();
        passed.add(piece);
        self.known.insert(key, Known { fate, passed }, now);
        let in_time = self.early.get_mut(&key).is_some_and(|(_, since)| now.since(since) <= self.span);
        if let Some(early) = self.early.remove(&key) {
            self.frames -= u32::from(early.frames);
            let queue = if in_time { &mut self.released } else { &mut self.given_up };
            queue.push_back(early.token);
        }
    }

    /// What became of the first fragment, for a later one. After the last that was missing the datagram is forgotten, so that another
    /// one may have its identification.
    pub(crate) fn find(&mut self, key: &FragmentKey, piece: Piece, now: Tick) -> Option<Fate> {
        let (known, since) = self.known.get_mut(key)?;
        if now.since(since) > self.span {
            return None;
        }
        known.passed.add(piece);
        let (fate, is_whole) = (known.fate, known.passed.is_whole());
        if is_whole {
            self.known.remove(key);
        }
        Some(fate)
    }

    /// What became of the first fragment, for whom that makes no difference.
    pub(crate) fn peek(&mut self, key: &FragmentKey, now: Tick) -> Option<Fate> {
        let (known, since) = self.known.get_mut(key)?;
        (now.since(since) <= self.span).then_some(known.fate)
    }

    /// Lets a fragment wait for its first. None when too many wait.
    pub(crate) fn wait(&mut self, key: FragmentKey, now: Tick) -> Option<DatagramToken> {
        if self.early.get_mut(&key).is_some_and(|(_, since)| now.since(since) > self.span)
            && let Some(late) = self.early.remove(&key)
        {
            self.abandon(late);
        }
        if self.frames >= EARLY {
            return None;
        }
        if let Some((early, _)) = self.early.get_mut(&key) {
            if early.frames >= EARLY_OF_ONE {
                return None;
            }
            early.frames += 1;
            self.frames += 1;
            return Some(early.token);
        }
        self.tokens += 1;
        let token = DatagramToken(self.tokens);
        self.frames += 1;
        if let Some(displaced) = self.early.insert(key, Early { token, frames: 1 }, now) {
            self.abandon(displaced);
        }
        Some(token)
    }

    /// A datagram whose first fragment has come while others waited.
    pub(crate) fn take_released(&mut self) -> Option<DatagramToken> {
        self.released.pop_front()
    }

    /// A datagram whose fragments have waited in vain.
    pub(crate) fn take_given_up(&mut self) -> Option<DatagramToken> {
        self.given_up.pop_front()
    }

    /// Forgets what is over: a bounded step; once in a [`ROUND`] everything is looked at.
    pub(crate) fn expire(&mut self, now: Tick) {
        let elapsed = now.since(self.expired).min(ROUND) as usize;
        self.expired = now;
        let share = |sets: usize| (sets * elapsed).div_ceil(ROUND as usize);
        self.expire_sets(now, share(self.known.sets()), share(self.early.sets()));
    }

    /// Forgets all that is over.
    pub(crate) fn expire_all(&mut self, now: Tick) {
        self.expire_sets(now, usize::MAX, usize::MAX);
    }

    fn expire_sets(&mut self, now: Tick, known: usize, early: usize) {
        self.known.expire(now, self.span, known, |_| {});
        let (frames, given_up) = (&mut self.frames, &mut self.given_up);
        self.early.expire(now, self.span, early, |early| {
            *frames -= u32::from(early.frames);
            given_up.push_back(early.token);
        });
    }

    /// Knows nothing any more, and lets nothing wait: addresses have changed.
    pub(crate) fn clear(&mut self) {
        self.known.clear(|_| {});
        self.frames = 0;
        let given_up = &mut self.given_up;
        self.early.clear(|early| given_up.push_back(early.token));
    }

    /// How many datagrams are known.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    fn abandon(&mut self, early: Early) {
        self.frames -= u32::from(early.frames);
        self.given_up.push_back(early.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Side;

    const HOME: Fate = Fate::Translated { source: Ipv4Addr::LOCALHOST, destination: Ipv4Addr::LOCALHOST, id: 0 };

    fn key_of(source: u32, id: u16) -> FragmentKey {
        let source = Ipv4Addr::from_bits(source);
        FragmentKey { side: Side::Inside, source, destination: Ipv4Addr::BROADCAST, id, protocol: 17 }
    }

    fn key(id: u16) -> FragmentKey {
        key_of(1, id)
    }

    const FIRST: Piece = Piece { start: 0, end: 64, is_last: false };
    const SECOND: Piece = Piece { start: 64, end: 128, is_last: false };
    const LAST: Piece = Piece { start: 128, end: 192, is_last: true };

    fn fragments(limit: u32) -> Fragments {
        let mut fragments = Fragments::new(limit, RandomState::with_seeds(1, 2, 3, 4), Tick(0));
        fragments.set_span(100);
        fragments
    }

    #[test]
    fn a_datagram_is_known_for_its_span() {
        let mut fragments = fragments(2);
        let start = Tick(u32::MAX - 50);
        fragments.learn(key(1), FIRST, HOME, start);
        assert_eq!(fragments.find(&key(1), SECOND, start.after(100)), Some(HOME));
        assert_eq!(fragments.find(&key(1), SECOND, start.after(101)), None);
        fragments.learn(key(2), FIRST, HOME, start.after(60));
        fragments.expire_all(start.after(101));
        assert_eq!((fragments.len(), fragments.find(&key(2), SECOND, start.after(101))), (1, Some(HOME)));
    }

    #[test]
    fn a_reused_identifier_goes_by_its_last_first_fragment() {
        let mut fragments = fragments(2);
        fragments.learn(key(1), FIRST, HOME, Tick(0));
        fragments.learn(key(1), FIRST, Fate::Dropped, Tick(90));
        fragments.expire(Tick(150));
        assert_eq!(fragments.find(&key(1), SECOND, Tick(150)), Some(Fate::Dropped));
        fragments.expire(Tick(5000));
        assert_eq!(fragments.len(), 0);
    }

    #[test]
    fn a_datagram_whose_fragments_have_all_passed_in_any_order_is_forgotten() {
        for (one, other) in [(SECOND, LAST), (LAST, SECOND)] {
            let mut fragments = fragments(2);
            fragments.learn(key(1), FIRST, HOME, Tick(0));
            assert_eq!(fragments.find(&key(1), one, Tick(0)), Some(HOME));
            assert_eq!(fragments.len(), 1);
            assert_eq!(fragments.find(&key(1), other, Tick(0)), Some(HOME));
            assert_eq!((fragments.len(), fragments.find(&key(1), other, Tick(0))), (0, None));
        }
    }

    #[test]
    fn fragments_that_come_twice_do_not_stand_for_others() {
        let mut fragments = fragments(2);
        fragments.learn(key(1), FIRST, HOME, Tick(0));
        for piece in [LAST, LAST, LAST, SECOND, SECOND] {
            assert_eq!(fragments.find(&key(1), piece, Tick(0)), Some(HOME));
        }
    }

    #[test]
    fn what_waits_is_released_once_by_its_first_and_given_up_after_its_span() {
        let mut fragments = fragments(64);
        let one = fragments.wait(key(1), Tick(0)).expect("room");
        assert_eq!(fragments.wait(key(1), Tick(50)), Some(one), "one token for a datagram");
        let other = fragments.wait(key(2), Tick(50)).expect("room");
        fragments.learn(key(1), FIRST, HOME, Tick(100));
        assert_eq!((fragments.take_released(), fragments.take_released()), (Some(one), None));
        fragments.expire_all(Tick(150));
        assert_eq!(fragments.take_given_up(), None);
        fragments.expire_all(Tick(151));
        assert_eq!((fragments.take_given_up(), fragments.take_given_up(), fragments.frames), (Some(other), None, 0));
    }

    #[test]
    fn a_first_fragment_that_comes_too_late_releases_nothing_even_before_the_round_of_expiry() {
        let mut fragments = fragments(64);
        let one = fragments.wait(key(1), Tick(0)).expect("room");
        fragments.learn(key(1), FIRST, HOME, Tick(101));
        assert_eq!((fragments.take_released(), fragments.take_given_up()), (None, Some(one)));
        let other = fragments.wait(key(2), Tick(200)).expect("room");
        let again = fragments.wait(key(2), Tick(301)).expect("room");
        assert_eq!((fragments.take_given_up(), fragments.frames), (Some(other), 1));
        assert_ne!(other, again);
    }

    #[test]
    fn the_frames_that_wait_are_bounded_for_each_datagram_and_in_all() {
        let mut fragments = fragments(4096);
        let waits = (0..EARLY_OF_ONE + 9).filter(|_| fragments.wait(key(1), Tick(0)).is_some()).count();
        assert_eq!(waits, usize::from(EARLY_OF_ONE));
        for source in 2..100_u32 {
            (0..EARLY_OF_ONE).for_each(|_| _ = fragments.wait(key_of(source, 1), Tick(0)));
        }
        assert_eq!(fragments.frames, EARLY);
        fragments.clear();
        let given_up = core::iter::from_fn(|| fragments.take_given_up()).count();
        assert_eq!((given_up, fragments.frames), ((EARLY / u32::from(EARLY_OF_ONE)) as usize, 0));
    }

    #[test]
    fn neither_later_nor_first_fragments_of_a_flood_displace_what_is_known_of_other_sources() {
        let mut fragments = fragments(4096);
        let others = 100..140;
        others.clone().for_each(|source| fragments.learn(key_of(source, 1), FIRST, HOME, Tick(0)));
        for number in 0..100_000_u32 {
            fragments.wait(key_of(number, number as u16), Tick(1));
            fragments.learn(key_of(7, number as u16), FIRST, HOME, Tick(1));
            while fragments.take_given_up().or_else(|| fragments.take_released()).is_some() {}
        }
        let left = others.filter(|&source| fragments.find(&key_of(source, 1), SECOND, Tick(2)).is_some()).count();
        assert!(left >= 38, "{left} of 40 are left: one source floods one of 256 sets");
        assert!(fragments.frames <= EARLY && fragments.early.len() <= 1024);
    }
}
