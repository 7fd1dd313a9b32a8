//! Fragments: later ones go the way that their first fragment went, and those that come before it wait.
//!
//! Sources: RFC 4787, REQ-14; RFC 791, section 2.3. A datagram is known from its first fragment until its last has come, or its time is
//! over. What the NAT may have forgotten by now, or never have known, may be treated either way.

use std::net::Ipv4Addr;
use std::ops::Range;

use portcullis_nat::policy::{Endpoint, InterfaceId, Side};
use portcullis_nat::verdict::{DropReason, Verdict};

use super::legal::{Forward, Legal, Received};
use super::read::{Datagram, Reading, Transport};
use super::rewrite::{Ids, translated};
use super::tables::{Effect, Tracked};
use super::tcp::Direction;
use super::{Disagreement, Outcome, ReferenceNat};

/// First fragments of which the NAT remembers the latest, at the least.
const REMEMBERED: usize = 16;

/// Datagrams that may wait, at the least: of the latest, and for each four that are remembered.
const WAITING: usize = 8;
const SHARE: usize = 4;

/// Frames of one datagram that may wait, and of all, at the least.
const FRAMES: (usize, usize) = (64, 1024);

/// A fragmented packet's name: source, destination, identification, protocol (RFC 791, section 2.3).
pub(super) type FragmentKey = (Ipv4Addr, Ipv4Addr, u16, u8);

/// What became of a first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Translated { source: Ipv4Addr, destination: Ipv4Addr },
    Dropped,
    Punted,
}

/// A datagram whose first fragment has come.
#[derive(Clone, Debug)]
pub(super) struct FragmentEntry {
    pub(super) fate: Fate,
    /// The identification that its first fragment went on with.
    pub(super) id: u16,
    /// What its first fragment was translated by, with the direction of each.
    pub(super) tracked: Vec<(Tracked, Direction)>,
    pub(super) born: u64,
    /// How many first fragments had come then, with this one.
    pub(super) order: u64,
    /// The parts that have come.
    pub(super) pieces: Vec<Range<usize>>,
    /// The length, when the last part has come.
    pub(super) whole: Option<usize>,
    /// Whether the NAT must know it.
    pub(super) certain: bool,
}

impl FragmentEntry {
    /// Whether every part has come, each once.
    pub(super) fn is_complete(&self) -> bool {
        let mut pieces = self.pieces.clone();
        pieces.sort_by_key(|piece| piece.start);
        let mut end = 0;
        let joined = pieces.iter().all(|piece| std::mem::replace(&mut end, piece.end) == piece.start);
        joined && self.whole == Some(end)
    }
}

/// Fragments that wait for their first.
#[derive(Clone, Debug)]
pub(super) struct Early {
    pub(super) key: FragmentKey,
    pub(super) since: u64,
    /// How many datagrams had waited then, with this one.
    pub(super) order: u64,
    pub(super) frames: usize,
    /// Whether they need wait no more: the rules have changed.
    pub(super) over: bool,
}

impl FragmentEntry {
    pub(super) fn of_first(datagram: &Datagram, fate: Fate, born: u64, certain: bool) -> Self {
        let mut entry =
            Self { fate, id: datagram.id, tracked: Vec::new(), born, order: 0, pieces: Vec::new(), whole: None, certain };
        entry.pass(datagram);
        entry
    }

    fn pass(&mut self, datagram: &Datagram) {
        let start = usize::from(datagram.offset) * 8;
        let end = start + datagram.bytes.len() - datagram.header_len;
        self.pieces.push(start..end);
        if !datagram.more_fragments {
            self.whole = Some(end);
        }
    }
}

fn key_of(datagram: &Datagram) -> FragmentKey {
    (datagram.source, datagram.destination, datagram.id, datagram.protocol)
}

impl ReferenceNat {
    pub(super) fn fragment_timeout(&self) -> u64 {
        self.policy.timeouts.fragment.as_millis() as u64
    }

    /// What may become of a fragment that is not the first.
    pub(super) fn later_fragment(&self, received: Received<'_>) -> Legal {
        let key = key_of(received.datagram);
        let known = self.tables.fragments.get(&key).filter(|entry| self.clock - entry.born <= self.fragment_timeout());
        let displaced =
            |entry: &FragmentEntry| (self.tables.firsts - entry.order) as usize >= REMEMBERED.min(self.limits.fragments).max(1);
        let live = |entry: &FragmentEntry| entry.tracked.iter().all(|(tracked, _)| self.tables.has(tracked));
        let certain = known.is_some_and(|entry| entry.certain && !displaced(entry) && live(entry));
        let mut legal = if certain { Legal::default() } else { self.without_first(received.datagram, known.is_some()) };
        match known.map(|entry| (entry, entry.fate)) {
            None => {}
            Some((_, Fate::Dropped)) => legal.drops.push(DropReason::FragmentWithoutFirst),
            Some((_, Fate::Punted)) => legal.punt = true,
            Some((entry, Fate::Translated { source, destination })) => {
                self.follow(&mut legal, received, entry, (source, destination));
            }
        }
        legal
    }

    /// One whose first is not known: it waits, unless it has waited or too many do.
    fn without_first(&self, datagram: &Datagram, perhaps_known: bool) -> Legal {
        let mut legal = Legal { awaits: !self.again, ..Legal::default() };
        if self.again || perhaps_known {
            let shared = self.is_shared(datagram.destination);
            legal.punt = shared;
            legal.drops.extend((!shared).then_some(DropReason::FragmentWithoutFirst));
        }
        let of_one =
            self.tables.early.iter().filter(|early| early.key == key_of(datagram)).map(|early| early.frames).sum::<usize>();
        if of_one >= FRAMES.0 || self.waiting() >= FRAMES.1 {
            legal.drops.push(DropReason::FragmentsFull);
        }
        if perhaps_known {
            legal.drops.extend([DropReason::WrongSide, DropReason::NoRoute]);
        }
        legal
    }

    fn follow(
        &self,
        legal: &mut Legal,
        received: Received<'_>,
        entry: &FragmentEntry,
        (source, destination): (Ipv4Addr, Ipv4Addr),
    ) {
        let datagram = received.datagram;
        let from_outside = received.interface.side == Side::Outside;
        let (to, outcome) = match (entry.tracked.len(), from_outside) {
            (_, true) => (Side::Inside, Outcome::Inbound),
            (1, false) if !self.is_external(datagram.destination) => (Side::Outside, Outcome::Outbound),
            _ => (Side::Inside, Outcome::Hairpin),
        };
        match self.egress(received, destination, to) {
            Err(failure) => self.add(legal, &failure, received),
            Ok(egress) => {
                let end = |address| Endpoint { address, port: 0 };
                let mut expected = translated(datagram, end(source), end(destination));
                expected.identification = Some((0, Ids::OneOf(vec![entry.id])));
                if entry.id != datagram.id {
                    expected.bytes[4..6].copy_from_slice(&entry.id.to_be_bytes());
                }
                let outcome = Outcome::LaterFragment(Box::new(outcome));
                let effects = vec![Effect::LaterFragment { key: key_of(datagram) }];
                legal.forwards.push(Forward { outcome, expected, egress, effects });
            }
        }
    }

    /// Takes down what a fragment's outcome says of its datagram.
    pub(super) fn note_fragment(&mut self, reading: &Reading, id: Option<InterfaceId>, outcome: &Outcome) {
        let Some(datagram) = &reading.datagram else { return };
        let is_nobodys_first = matches!(datagram.transport, Transport::Other);
        let is_whole = datagram.offset == 0 && !datagram.more_fragments;
        if is_nobodys_first || is_whole || self.is_refused_early(reading, datagram, id) {
            return;
        }
        let certain = self.has_been_ordered(reading, datagram, id, outcome);
        let key = key_of(datagram);
        match (datagram.offset, outcome) {
            (0, _) => self.note_first(key, datagram, outcome, certain),
            (_, Outcome::Awaits) => self.note_early(key),
            _ => self.note_later(key, datagram, certain),
        }
    }

    /// Whether a fragment is refused before anybody asks for its datagram.
    fn is_refused_early(&self, reading: &Reading, datagram: &Datagram, id: Option<InterfaceId>) -> bool {
        let Some(id) = id else { return true };
        let stray = self.side(id) == Side::Outside && !self.is_external(datagram.destination);
        stray || self.refusal(reading, Some(id)).is_some()
    }

    /// Whether it is beyond doubt that the datagram was asked for.
    fn has_been_ordered(&self, reading: &Reading, datagram: &Datagram, id: Option<InterfaceId>, outcome: &Outcome) -> bool {
        let interface = id.map(|id| &self.network.interfaces[usize::from(id.0)]);
        let doubtful = match outcome {
            Outcome::Dropped(reason) => self.tolerated(reading, interface).contains(reason),
            _ => false,
        };
        let strange =
            matches!(datagram.transport, Transport::Unsupported(_) | Transport::Unreadable) || !reading.defects.is_empty();
        !doubtful && !strange
    }

    fn note_first(&mut self, key: FragmentKey, datagram: &Datagram, outcome: &Outcome, certain: bool) {
        let fate = match outcome {
            // What was translated has been learned with its addresses.
            Outcome::Outbound | Outcome::Inbound | Outcome::Hairpin => None,
            Outcome::Punted => Some(Fate::Punted),
            _ => Some(Fate::Dropped),
        };
        match (fate, certain) {
            (None, _) => {}
            (Some(fate), true) => self.tables.learn(key, FragmentEntry::of_first(datagram, fate, self.clock, true)),
            (Some(fate), false) => {
                // Either it takes the place of what was known, or not.
                let (clock, timeout) = (self.clock, self.fragment_timeout());
                let mut entry = FragmentEntry::of_first(datagram, fate, clock, false);
                if let Some(before) = self.tables.fragments.get(&key).filter(|before| clock - before.born <= timeout) {
                    (entry.fate, entry.id, entry.tracked) = (before.fate, before.id, before.tracked.clone());
                }
                self.tables.learn(key, entry);
                return;
            }
        }
        let (clock, timeout) = (self.clock, self.fragment_timeout());
        self.tables.early.retain(|early| early.key != key || early.over || clock - early.since > timeout);
    }

    fn note_early(&mut self, key: FragmentKey) {
        let (clock, timeout) = (self.clock, self.fragment_timeout());
        let goes_on = |early: &&mut Early| early.key == key && !early.over && clock - early.since <= timeout;
        // One that was displaced may have been forgotten, and waits anew.
        if let Some(early) = self.tables.early.iter_mut().rev().find(goes_on) {
            early.frames += 1;
            return;
        }
        self.tables.waited += 1;
        let order = self.tables.waited;
        self.tables.early.push(Early { key, since: clock, order, frames: 1, over: false });
    }

    fn note_later(&mut self, key: FragmentKey, datagram: &Datagram, certain: bool) {
        if self.again {
            // Of those that a doubtful first one may have released.
            self.take_early(key, |_| true);
        }
        let Some(entry) = self.tables.fragments.get_mut(&key) else { return };
        entry.certain &= certain;
        entry.pass(datagram);
        if entry.certain && entry.is_complete() {
            self.tables.fragments.remove(&key);
        }
    }

    /// Takes one frame out of those that wait. Returns whether one did.
    fn take_early(&mut self, key: FragmentKey, may_go: impl Fn(&Early) -> bool) -> bool {
        let Some(at) = self.tables.early.iter().position(|early| early.key == key && may_go(early)) else { return false };
        self.tables.early[at].frames -= 1;
        if self.tables.early[at].frames == 0 {
            self.tables.early.remove(at);
        }
        true
    }

    /// Frames that wait for their first fragment.
    pub fn waiting(&self) -> usize {
        self.tables.early.iter().map(|early| early.frames).sum()
    }

    /// Judges what the NAT made of a fragment that it lets wait no more. `output` is what is in the frame now.
    ///
    /// **Errors:** its time is not over, or it should have been dropped, or left to the kernel, as it came.
    pub fn observe_given_up(&mut self, input: &[u8], verdict: Verdict, output: &[u8]) -> Result<Outcome, Disagreement> {
        let Some(datagram) = super::read::read(input).datagram else {
            return Err(Disagreement::plain("what cannot be read does not wait".to_owned()));
        };
        let (clock, timeout, waited) = (self.clock, self.fragment_timeout(), self.tables.waited);
        let most = (self.limits.fragments / SHARE).clamp(1, WAITING);
        let may_go = |early: &Early| early.over || clock - early.since > timeout || (waited - early.order) as usize >= most;
        if !self.take_early(key_of(&datagram), may_go) {
            return Err(Disagreement::plain(format!("{} is given up too early", crate::builder::describe(input))));
        }
        match (verdict, self.is_shared(datagram.destination)) {
            _ if output != input => Err(Disagreement::plain("a fragment that was given up was changed".to_owned())),
            (Verdict::Punt, true) => Ok(Outcome::Punted),
            (Verdict::Drop(reason @ DropReason::FragmentWithoutFirst), false) => Ok(Outcome::Dropped(reason)),
            (other, _) => Err(Disagreement::plain(format!("a fragment that waited in vain is {other:?}"))),
        }
    }
}

impl Outcome {
    /// The direction of a session that such a packet has.
    pub(super) fn direction(&self) -> Direction {
        if matches!(self, Self::Inbound) { Direction::Inbound } else { Direction::Outbound }
    }
}
