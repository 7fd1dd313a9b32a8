//! Adjacencies: with which link-layer header and by which device a session's packets leave, remembered in pairs, one for each way.
//!
//! Knows one network snapshot and one policy. A session has the number of its pair; the fast path goes by it, and needs neither route nor
//! neighbour. Invariants: a pair of the epoch in use was found out under the rules and the network in use; a number is given anew only
//! when a whole sweep has passed since its pair went out of use, and taken it out of every session.

use core::alloc::Layout;
use core::net::Ipv4Addr;

use ahash::RandomState;
use hashbrown::HashMap;
use zerocopy::{FromZeros, KnownLayout};

use crate::path::Path;
use crate::policy::{DeviceId, InterfaceId, NeighbourKey};

/// Pairs at most, with the one that is never in use: as many as [`crate::record::Session::adjacencies`] tells apart.
const MOST: usize = 1 << 16;

/// Pairs looked at in one step of [`Adjacencies::note_used`]: two next hops each, and the list of those in use is short.
const NOTED_STEP: usize = 16;

/// Bytes of the untagged link-layer header.
const ETHERNET_LEN: u32 = 14;

/// How the packets of one way leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromZeros, KnownLayout)]
pub(crate) struct Adjacency {
    /// Destination and source of the link-layer header.
    pub(crate) addresses: [u8; 12],
    pub(crate) interface: InterfaceId,
    /// The longest frame, by the route's MTU or the interface's. **Units:** bytes from the Ethernet header on.
    pub(crate) most_len: u32,
    /// As a number in host order.
    next_hop: u32,
    pub(crate) device: DeviceId,
}

impl Adjacency {
    /// That of no packet: none is short enough.
    pub(crate) const NONE: Self =
        Self { addresses: [0; 12], interface: InterfaceId(0), most_len: 0, next_hop: 0, device: DeviceId(0) };

    /// Of a path by which packets can be sent as they are: it is up, without tag, and its next hop is known.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let (destination, true, None) = (path.next_hop_mac?, path.up, path.vlan) else { return None };
        let Path { source_mac, interface, mtu, next_hop, device, .. } = *path;
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&destination);
        addresses[6..].copy_from_slice(&source_mac);
        Some(Self { addresses, interface, most_len: u32::from(mtu) + ETHERNET_LEN, next_hop: next_hop.to_bits(), device })
    }

    fn neighbour(&self) -> NeighbourKey {
        (self.interface, Ipv4Addr::from_bits(self.next_hop))
    }
}

/// Both ways of a session.
#[derive(Clone, Copy, Debug, FromZeros, KnownLayout)]
#[repr(align(64))]
pub(crate) struct Pair {
    /// To the internal endpoint.
    pub(crate) inside: Adjacency,
    /// To the remote endpoint.
    pub(crate) outside: Adjacency,
    epoch: u32,
    /// Whether packets went by it since it was last noted.
    used: bool,
}

/// The pairs.
pub(crate) struct Adjacencies {
    /// All that there may be: those that never were in use are zero, which no epoch is, and their pages are never touched.
    pairs: Box<[Pair; MOST]>,
    /// Those that were in use are below.
    high_water: usize,
    numbers: HashMap<(Adjacency, Adjacency), u16, RandomState>,
    epoch: u32,
    /// No session has a pair of an epoch before this one.
    forgotten: u32,
    /// The epoch when the sweep's round began.
    round: u32,
    /// The number that was last asked for.
    last: u16,
    /// The number that is given next.
    next: usize,
    /// The next pair that [`Adjacencies::note_used`] looks at.
    cursor: usize,
}

impl Adjacencies {
    pub(crate) fn new(hasher: RandomState) -> Self {
        let numbers = HashMap::with_hasher(hasher);
        Self { pairs: no_pairs(), high_water: 1, numbers, epoch: 1, forgotten: 0, round: 1, last: 0, next: 1, cursor: 0 }
    }

    /// There are other rules, or another network: no pair holds any more.
    pub(crate) fn forget(&mut self) {
        self.epoch += 1;
        self.numbers.clear();
    }

    /// The pair of that number, if it holds.
    #[inline]
    pub(crate) fn get(&self, number: u16) -> Option<&Pair> {
        // Zero is no pair, and never in use.
        Some(&self.pairs[usize::from(number)]).filter(|pair| pair.epoch == self.epoch)
    }

    /// The same; it is noted as used.
    #[inline]
    pub(crate) fn used(&mut self, number: u16) -> Option<&Pair> {
        let pair = Some(&mut self.pairs[usize::from(number)]).filter(|pair| pair.epoch == self.epoch)?;
        pair.used = true;
        Some(pair)
    }

    /// Both ways where each is half of its own pair, if both pairs hold; they are noted as used.
    #[inline]
    pub(crate) fn used_halves(&mut self, inside: u16, outside: u16) -> Option<(&Adjacency, &Adjacency)> {
        self.used(inside)?;
        self.used(outside)?;
        Some((&self.pairs[usize::from(inside)].inside, &self.pairs[usize::from(outside)].outside))
    }

    /// The number of a pair. Zero when none is left.
    pub(crate) fn number_of(&mut self, inside: &Adjacency, outside: &Adjacency) -> u16 {
        // Sessions that begin one after the other often leave by the same ways.
        let is_last = |pair: &Pair| pair.epoch == self.epoch && pair.inside == *inside && pair.outside == *outside;
        if self.pairs.get(usize::from(self.last)).is_some_and(is_last) {
            return self.last;
        }
        self.last = self.find_or_add(*inside, *outside);
        self.last
    }

    fn find_or_add(&mut self, inside: Adjacency, outside: Adjacency) -> u16 {
        if let Some(&number) = self.numbers.get(&(inside, outside)) {
            return number;
        }
        let pair = Pair { inside, outside, epoch: self.epoch, used: true };
        let number = if self.next < MOST { self.next } else { 1 };
        if number < self.high_water && self.pairs[number].epoch >= self.forgotten {
            return 0;
        }
        self.pairs[number] = pair;
        self.high_water = self.high_water.max(number + 1);
        self.next = number + 1;
        self.numbers.insert((inside, outside), number as u16);
        number as u16
    }

    /// The number of half a pair: the way to an internal endpoint, for whoever knows the other way by the remote address.
    pub(crate) fn number_of_inside(&mut self, inside: &Adjacency) -> u16 {
        self.number_of(inside, &Adjacency::NONE)
    }

    /// The number of half a pair: the way to a remote endpoint.
    pub(crate) fn number_of_outside(&mut self, outside: &Adjacency) -> u16 {
        self.number_of(&Adjacency::NONE, outside)
    }

    /// The number of the pair that leads no packet anywhere: for a session that has to go the ordinary way, until the epoch ends.
    pub(crate) fn number_of_none(&mut self) -> u16 {
        self.number_of(&Adjacency::NONE, &Adjacency::NONE)
    }

    /// After a whole round of the sweep, which takes out of the sessions what [`Adjacencies::get`] does not give.
    pub(crate) fn swept(&mut self) {
        self.forgotten = self.round;
        self.round = self.epoch;
    }

    /// Whether sessions may have pairs that are forgotten.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.forgotten < self.epoch
    }

    /// Gives the next hops of some pairs that were used since they were last given. Returns whether that was the last of them; then it
    /// begins anew.
    pub(crate) fn note_used(&mut self, mut note: impl FnMut(NeighbourKey)) -> bool {
        let end = self.high_water.min(self.cursor + NOTED_STEP);
        for pair in &mut self.pairs[self.cursor..end] {
            if core::mem::take(&mut pair.used) && pair.epoch == self.epoch {
                [&pair.inside, &pair.outside]
                    .into_iter()
                    .filter(|half| **half != Adjacency::NONE)
                    .for_each(|half| note(half.neighbour()));
            }
        }
        let is_last = end == self.high_water;
        self.cursor = if is_last { 0 } else { end };
        is_last
    }
}

fn no_pairs() -> Box<[Pair; MOST]> {
    <[Pair; MOST]>::new_box_zeroed().unwrap_or_else(|_| std::alloc::handle_alloc_error(Layout::new::<[Pair; MOST]>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjacency(number: u32) -> Adjacency {
        Adjacency { addresses: [2; 12], interface: InterfaceId(1), most_len: 1514, next_hop: number, device: DeviceId(0) }
    }

    fn adjacencies() -> Adjacencies {
        Adjacencies::new(RandomState::with_seeds(1, 2, 3, 4))
    }

    #[test]
    fn a_pair_has_one_number_until_it_is_forgotten() {
        let mut table = adjacencies();
        let (one, other) = (table.number_of(&adjacency(1), &adjacency(9)), table.number_of(&adjacency(2), &adjacency(9)));
        assert_eq!((one, table.number_of(&adjacency(1), &adjacency(9))), (1, 1));
        assert_eq!((other, table.get(other).map(|pair| pair.inside.next_hop)), (2, Some(2)));
        assert!(table.get(0).is_none() && table.get(3).is_none());
        table.forget();
        assert!(table.get(one).is_none() && table.used(other).is_none());
        assert_eq!(table.number_of(&adjacency(2), &adjacency(9)), 3, "another number: sessions still have the old ones");
    }

    #[test]
    fn numbers_run_out_and_come_again_after_a_whole_sweep() {
        let mut table = adjacencies();
        let all: Vec<_> = (1..MOST as u32).map(|hop| table.number_of(&adjacency(hop), &adjacency(0))).collect();
        assert!(all.iter().map(|&number| usize::from(number)).eq(1..MOST));
        assert_eq!(table.number_of(&adjacency(70_000), &adjacency(0)), 0);
        table.forget();
        // The first round may have begun before.
        table.swept();
        assert_eq!(table.number_of(&adjacency(1), &adjacency(0)), 0, "a session may have any of them");
        table.swept();
        assert_eq!(table.number_of(&adjacency(1), &adjacency(0)), 1);
        assert_eq!(table.get(1).map(|pair| pair.inside.next_hop), Some(1));
    }

    #[test]
    fn who_has_no_way_is_not_asked_again_in_the_epoch() {
        let mut table = adjacencies();
        let none = table.number_of_none();
        assert_eq!(
            (table.get(none).map(|pair| (pair.inside.most_len, pair.outside.most_len)), table.number_of_none()),
            (Some((0, 0)), none)
        );
        assert!(table.note_used(|neighbour| panic!("{neighbour:?} is nobody")));
        table.forget();
        assert!(table.get(none).is_none());
    }

    #[test]
    fn next_hops_are_given_once_for_each_use() {
        let mut table = adjacencies();
        let numbers: Vec<_> = (1..=600).map(|hop| table.number_of(&adjacency(hop), &adjacency(0))).collect();
        let note = |table: &mut Adjacencies| {
            let mut noted = Vec::new();
            while !table.note_used(|neighbour| noted.push(neighbour)) {}
            noted.len()
        };
        assert_eq!((note(&mut table), note(&mut table)), (1200, 0));
        assert!(table.used(numbers[599]).is_some());
        assert_eq!(note(&mut table), 2);
    }
}
