//! The translations of protocols without ports: which external address stands for which host, in one protocol and towards one remote address.
//!
//! Knows addresses and protocol numbers, no bytes, and of the rules only addresses and timeouts. Called by `translate_other.rs` and by the
//! sweep. Invariants: no two translations have the same (protocol, external, remote), so that an inbound packet is one host's, nor the same
//! (protocol, internal, remote); one whose external address is gone, or that has been idle too long, is never found. All of one remote are
//! in one worker. Not here: ports, mappings, subscribers. Tests: below, and `tests/other_protocols.rs`.

use core::net::Ipv4Addr;
use core::time::Duration;

use ahash::RandomState;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::index::Index;
use crate::policy::{Side, Timeouts};
use crate::slab::{Record, Slab};
use crate::table::TableFull;
use crate::tcp::Direction;
use crate::time::Tick;
use crate::two_keys::{self, Hashes, SoughtTwice};
use crate::verdict::DropReason;
use crate::view::{OtherView, SessionState};

/// External addresses that are looked at for one that nobody else has towards a remote. Chosen: each look is a search in the index, and the
/// packets of a host that finds none come as fast as it likes.
const ADDRESSES_TRIED: usize = 128;

/// A translation. Half a cache line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(32))]
pub(crate) struct Translation {
    internal: u32,
    external: u32,
    remote: u32,
    /// When it was last refreshed. **Units:** ticks. Of a free record: the next free one.
    last_seen: u32,
    /// Packets from the inside; wraps.
    packets_out: u32,
    /// Packets from the outside; wraps.
    packets_in: u32,
    /// How often the slot's address had changed when it was made.
    changes: u32,
    /// The external address's slot.
    slot: u16,
    /// The protocol's number, which may be zero.
    protocol: u8,
    phase: Phase,
}

const _: () = assert!(size_of::<Translation>() == 32);

/// How far a translation is; zero for a free record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub(crate) struct Phase(u8);

impl Phase {
    const FREE: Self = Self(0);
    /// Packets went out only.
    const OPENING: Self = Self(1);
    /// The remote has answered.
    const ANSWERED: Self = Self(2);
}

impl Translation {
    /// The internal address.
    pub(crate) const fn internal(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.internal)
    }

    /// The external address.
    pub(crate) const fn external(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.external)
    }
}

impl Record for Translation {
    fn is_live(&self) -> bool {
        self.phase != Phase::FREE
    }
    fn set_free(&mut self, next: u32) {
        self.phase = Phase::FREE;
        self.last_seen = next;
    }
    fn next_free(&self) -> u32 {
        self.last_seen
    }
}

/// Who speaks with whom in which protocol: from a host its internal address, from outside the external one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) protocol: u8,
    /// The address that is translated.
    pub(crate) ours: Ipv4Addr,
    pub(crate) remote: Ipv4Addr,
}

/// A slot's external address.
#[derive(Clone, Copy, Debug, Default)]
struct External {
    address: Option<Ipv4Addr>,
    /// Changes since the start.
    changes: u32,
}

/// The translations of a worker.
pub(crate) struct Translations<'m> {
    index: Index<'m>,
    records: Slab<'m, Translation>,
    hasher: RandomState,
    /// By slot.
    externals: Vec<External>,
    /// The slots that have an address.
    live: Vec<u16>,
    /// By phase, from the opening on: how long after its last packet a translation has ended. **Units:** milliseconds.
    timers: [u32; 2],
    /// The record that the sweep looks at next.
    cursor: u32,
}

impl<'m> Translations<'m> {
    pub(crate) fn new(index: Index<'m>, records: Slab<'m, Translation>, hasher: RandomState) -> Self {
        debug_assert!(records.limit() <= two_keys::MOST, "the configuration's limit");
        Self { index, records, hasher, externals: Vec::new(), live: Vec::new(), timers: [0; 2], cursor: 0 }
    }

    /// Takes over the addresses of the slots, and the timeouts. Translations of addresses that are gone are dead from now on.
    pub(crate) fn adopt(&mut self, addresses: impl ExactSizeIterator<Item = Option<Ipv4Addr>>, timeouts: &Timeouts) {
        self.externals.resize(addresses.len(), External::default());
        for (external, address) in self.externals.iter_mut().zip(addresses) {
            if external.address != address {
                *external = External { address, changes: external.changes.wrapping_add(1) };
            }
        }
        let with_slot = (0_u16..).zip(&self.externals);
        self.live = with_slot.filter(|(_, external)| external.address.is_some()).map(|(slot, _)| slot).collect();
        let timer = |idle: Duration| idle.min(Tick::HORIZON).as_millis() as u32 + 1;
        self.timers = [timeouts.other_opening, timeouts.other].map(timer);
    }

    /// The translation of packets from a host to a remote, if it lives.
    pub(crate) fn outbound(&mut self, pair: Pair, now: Tick) -> Option<u32> {
        self.find(Side::Inside, pair, now)
    }

    /// The translation of packets from a remote to an external address, if it lives.
    pub(crate) fn inbound(&mut self, pair: Pair, now: Tick) -> Option<u32> {
        self.find(Side::Outside, pair, now)
    }

    /// The slot of the external address for a host that has none yet towards that remote: of those that have an address the one that `draw`
    /// says, or the next that no other host has. **Errors:** the reason why there is none.
    pub(crate) fn choose(&mut self, pair: Pair, draw: u64, now: Tick) -> Result<u16, DropReason> {
        let count = self.live.len();
        if count == 0 {
            return Err(DropReason::NoExternalAddress);
        }
        let first = (draw % count as u64) as usize;
        for step in 0..count.min(ADDRESSES_TRIED) {
            let slot = self.live[(first + step) % count];
            let Some(ours) = self.externals[usize::from(slot)].address else { continue };
            if self.inbound(Pair { ours, ..pair }, now).is_none() {
                return Ok(slot);
            }
        }
        Err(DropReason::OtherProtocolAmbiguous)
    }

    /// Makes the translation of a host's packets under the address of a slot that [`Translations::choose`] gave. **Errors:** [`TableFull`];
    /// nothing has changed then.
    pub(crate) fn insert(&mut self, pair: Pair, slot: u16, now: Tick) -> Result<u32, TableFull> {
        let External { address, changes } = self.externals[usize::from(slot)];
        let translation = Translation {
            internal: pair.ours.to_bits(),
            external: address.ok_or(TableFull)?.to_bits(),
            remote: pair.remote.to_bits(),
            last_seen: now.0,
            packets_out: 0,
            packets_in: 0,
            changes,
            slot,
            protocol: pair.protocol,
            phase: Phase::OPENING,
        };
        let hashes = self.hashes(&translation);
        two_keys::insert(&mut self.index, &mut self.records, translation, hashes)
    }

    /// Notes a packet. What goes out keeps a translation alive; what comes in does the first time, since it is an answer, and then only where
    /// `inbound_refresh` says so (RFC 4787, REQ-6).
    pub(crate) fn advance(&mut self, number: u32, direction: Direction, inbound_refresh: bool, now: Tick) {
        let translation = self.records.get_mut(number);
        let refreshes = match direction {
            Direction::Outbound => {
                translation.packets_out = translation.packets_out.wrapping_add(1);
                true
            }
            Direction::Inbound => {
                translation.packets_in = translation.packets_in.wrapping_add(1);
                let is_first = translation.phase == Phase::OPENING;
                translation.phase = Phase::ANSWERED;
                is_first || inbound_refresh
            }
        };
        if refreshes {
            translation.last_seen = now.0;
        }
    }

    /// A translation that was found or made.
    pub(crate) fn get(&self, number: u32) -> &Translation {
        self.records.get(number)
    }

    /// Translations that are there, also those that have ended and that the sweep has not met.
    pub(crate) fn live(&self) -> u32 {
        self.records.live()
    }

    /// Translations that fit.
    pub(crate) fn limit(&self) -> u32 {
        self.records.limit()
    }

    /// Takes out those among the next `most` records that have ended. Begins anew after the last.
    pub(crate) fn sweep(&mut self, most: u32, now: Tick) {
        let end = self.records.high_water();
        for _ in 0..most.min(end) {
            let number = if self.cursor < end { self.cursor } else { 0 };
            self.cursor = number + 1;
            let translation = self.records.get(number);
            if translation.is_live() && self.expires_in(translation, now) == 0 {
                self.remove(number);
            }
        }
    }

    /// Appends those that live among the next `most` records from `cursor` on. Returns the next cursor, or none at the end.
    pub(crate) fn slice(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<OtherView>) -> Option<u32> {
        let (records, next) = self.records.slice(cursor, most);
        let views = records.map(|(_, translation)| self.view(translation, now));
        into.extend(views.filter(|view| view.expires_in > 0));
        next
    }

    fn view(&self, translation: &Translation, now: Tick) -> OtherView {
        let state = if translation.phase == Phase::ANSWERED { SessionState::Replied } else { SessionState::Unreplied };
        OtherView {
            protocol: translation.protocol,
            internal: translation.internal(),
            external: translation.external(),
            remote: Ipv4Addr::from_bits(translation.remote),
            state,
            expires_in: self.expires_in(translation, now),
            packets_out: translation.packets_out,
            packets_in: translation.packets_in,
        }
    }

    /// Time until a translation ends. **Units:** milliseconds. Zero when it has, or when its external address is gone.
    fn expires_in(&self, translation: &Translation, now: Tick) -> u32 {
        let is_gone =
            self.externals.get(usize::from(translation.slot)).is_none_or(|external| external.changes != translation.changes);
        let timer = if translation.phase == Phase::ANSWERED { self.timers[1] } else { self.timers[0] };
        if is_gone { 0 } else { timer.saturating_sub(now.since(Tick(translation.last_seen))) }
    }

    /// What is found from that side, if it lives. What has ended is taken out: so none that has is left under a key when it is given anew.
    fn find(&mut self, side: Side, pair: Pair, now: Tick) -> Option<u32> {
        let (ours, remote) = (pair.ours.to_bits(), pair.remote.to_bits());
        let found = self.index.find(self.hash(side, pair.protocol, ours, remote), |value| {
            value & 1 == side as u32
                && self.records.peek(value >> 1).is_some_and(|translation| {
                    let its = match side {
                        Side::Inside => translation.internal,
                        Side::Outside => translation.external,
                    };
                    (translation.protocol, its, translation.remote) == (pair.protocol, ours, remote)
                })
        });
        let number = found? >> 1;
        if self.expires_in(self.records.get(number), now) == 0 {
            self.remove(number);
            return None;
        }
        Some(number)
    }

    fn remove(&mut self, number: u32) {
        let hashes = self.hashes(self.records.get(number));
        let sought = SoughtTwice::new(&self.index, hashes);
        two_keys::remove(&mut self.index, &mut self.records, number, &sought);
    }

    /// The hashes of both keys.
    fn hashes(&self, translation: &Translation) -> Hashes {
        let Translation { protocol, internal, external, remote, .. } = *translation;
        let [inner, outer] = [(Side::Inside, internal), (Side::Outside, external)];
        let hash = |(side, ours)| self.hash(side, protocol, ours, remote);
        Hashes { inner: hash(inner), outer: hash(outer) }
    }

    fn hash(&self, side: Side, protocol: u8, ours: u32, remote: u32) -> u64 {
        let what = u128::from(protocol) << 1 | side as u128;
        self.hasher.hash_one(what << 64 | u128::from(ours) << 32 | u128::from(remote))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use zerocopy::FromZeros as _;

    use crate::index::{self, Line};

    const TIMEOUTS: Timeouts = Timeouts {
        other_opening: Duration::from_millis(10),
        other: Duration::from_millis(50),
        udp: Duration::ZERO,
        tcp_established: Duration::ZERO,
        tcp_opening: Duration::ZERO,
        tcp_closing: Duration::ZERO,
        icmp: Duration::ZERO,
        fragment: Duration::ZERO,
    };

    fn adopt(table: &mut Translations<'_>, addresses: &[Option<u8>]) {
        table.adopt(addresses.iter().map(|last| last.map(|last| Ipv4Addr::new(203, 0, 113, last))), &TIMEOUTS);
    }

    fn pair(protocol: u8, host: u8, remote: u8) -> Pair {
        Pair { protocol, ours: Ipv4Addr::new(10, 0, 0, host), remote: Ipv4Addr::new(198, 51, 100, remote) }
    }

    fn memory(records: usize) -> (Vec<Line>, Vec<Translation>) {
        (vec![Line::new_zeroed(); Index::lines_for(2 * records, index::DENSE)], vec![Translation::new_zeroed(); records])
    }

    fn table((lines, records): &mut (Vec<Line>, Vec<Translation>)) -> Translations<'_> {
        Translations::new(Index::new(lines), Slab::new(records), RandomState::with_seeds(1, 2, 3, 4))
    }

    fn open(table: &mut Translations<'_>, pair: Pair, draw: u64, now: Tick) -> Result<u32, DropReason> {
        if let Some(number) = table.outbound(pair, now) {
            return Ok(number);
        }
        let slot = table.choose(pair, draw, now)?;
        table.insert(pair, slot, now).map_err(|TableFull| DropReason::OtherProtocolsFull)
    }

    proptest! {
        /// Few hosts, remotes, addresses and records, so that all collide; the clock starts near its wrap.
        #[test]
        fn it_agrees_with_a_map(
            steps in proptest::collection::vec((0_u8..6, 1_u8..4, 1_u8..5, 1_u8..3, 0_u64..3, 0_u32..20), 0..200)
        ) {
            let mut memory = memory(5);
            let mut table = table(&mut memory);
            let mut addresses = [Some(1), Some(2), None];
            adopt(&mut table, &addresses);
            // By (protocol, host, remote): the address, the moment of the end.
            let mut model: HashMap<(u8, u8, u8), (u8, u64, bool)> = HashMap::new();
            let mut clock = u64::from(u32::MAX - 300);
            for (what, protocol, host, remote, draw, pause) in steps {
                clock += u64::from(pause);
                let now = Tick(clock as u32);
                model.retain(|_, &mut (address, end, _)| end >= clock && addresses.contains(&Some(address)));
                let (key, pair) = ((protocol, host, remote), pair(protocol, host, remote));
                match what {
                    0 => table.sweep(2, now),
                    1 => {
                        let slot = usize::from(host) % 3;
                        let free = (1..=4).find(|last| !addresses.contains(&Some(*last)));
                        let gone = core::mem::replace(&mut addresses[slot], if draw == 0 { None } else { free });
                        model.retain(|_, &mut (address, ..)| Some(address) != gone);
                        adopt(&mut table, &addresses);
                    }
                    2 => {
                        let external = Ipv4Addr::new(203, 0, 113, host);
                        let number = table.inbound(Pair { ours: external, ..pair }, now);
                        let known = model.iter_mut().find(|((p, _, r), (a, ..))| (*p, *r, *a) == (protocol, remote, host));
                        prop_assert_eq!(
                            number.map(|number| table.get(number).internal()),
                            known.as_ref().map(|((_, h, _), _)| Ipv4Addr::new(10, 0, 0, *h))
                        );
                        if let (Some(number), Some((_, (_, end, answered)))) = (number, known) {
                            table.advance(number, Direction::Inbound, false, now);
                            if !*answered {
                                (*answered, *end) = (true, clock + 50);
                            }
                        }
                    }
                    _ => {
                        let taken = |address: u8| model.iter().any(|((p, _, r), (a, ..))| (*p, *r, *a) == (protocol, remote, address));
                        let live: Vec<u8> = addresses.iter().copied().flatten().collect();
                        let opened = open(&mut table, pair, draw, now);
                        match opened {
                            Ok(number) => {
                                let last = table.get(number).external().octets()[3];
                                if let Some((address, ..)) = model.get(&key) {
                                    prop_assert_eq!(last, *address);
                                } else {
                                    let first = draw as usize % live.len();
                                    let wanted = (0..live.len()).map(|step| live[(first + step) % live.len()]).find(|a| !taken(*a));
                                    prop_assert_eq!(Some(last), wanted);
                                }
                                table.advance(number, Direction::Outbound, false, now);
                                let answered = model.get(&key).is_some_and(|(.., answered)| *answered);
                                model.insert(key, (last, clock + if answered { 50 } else { 10 }, answered));
                            }
                            Err(DropReason::NoExternalAddress) => prop_assert!(live.is_empty()),
                            Err(DropReason::OtherProtocolAmbiguous) => {
                                prop_assert!(!live.is_empty() && live.iter().all(|address| taken(*address)));
                            }
                            Err(reason) => {
                                prop_assert_eq!(reason, DropReason::OtherProtocolsFull);
                                prop_assert!(table.live() == table.limit() && !model.contains_key(&key));
                            }
                        }
                    }
                }
                let mut views = Vec::new();
                prop_assert!(table.slice(0, 100, now, &mut views).is_none());
                let model_ends = |view: &OtherView| {
                    let key = (view.protocol, view.internal.octets()[3], view.remote.octets()[3]);
                    model.get(&key).map(|&(address, end, _)| (address, end + 1 - clock))
                };
                for view in &views {
                    prop_assert_eq!(model_ends(view), Some((view.external.octets()[3], u64::from(view.expires_in))));
                }
                prop_assert_eq!(views.len(), model.len());
            }
            table.sweep(u32::MAX, Tick(clock as u32).after(1000));
            prop_assert_eq!(table.live(), 0);
        }
    }

    #[test]
    fn no_more_addresses_are_tried_than_the_bound_says() {
        let mut memory = memory(1024);
        let mut table = table(&mut memory);
        adopt(&mut table, &(0..=u8::MAX).map(Some).collect::<Vec<_>>());
        for host in 0..ADDRESSES_TRIED as u8 {
            open(&mut table, pair(47, host, 1), 0, Tick(0)).expect("the next address");
        }
        let late = pair(47, ADDRESSES_TRIED as u8, 1);
        assert_eq!(open(&mut table, late, 0, Tick(0)), Err(DropReason::OtherProtocolAmbiguous));
        assert!(open(&mut table, late, 1, Tick(0)).is_ok(), "who begins one further finds the next");
    }
}
