//! Bare mappings: those of UDP, where it is kept without sessions.
//!
//! Knows internal endpoints, ports and times, no packets. With endpoint-independent mapping and filtering a mapping says all that a packet's
//! way depends on, whatever the remote: 24 bytes, found by one look at an index from inside, and from outside by its port alone. Invariants:
//! a bare mapping has its port, and its subscriber counts it; none has a port that a forward has. Called by the ways of packets, the fast
//! path, and the sweep. Sources: RFC 4787 REQ-1 and REQ-8, RFC 7857 section 7; docs/adr/0012. Tests: `tests/bare.rs`, the reference NAT.

use core::net::Ipv4Addr;

use ahash::RandomState;
use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::adjacency::Adjacencies;
use crate::ahead;
use crate::counters::{Counter, Counters};
use crate::due::Due;
use crate::externals::Outer;
use crate::hash::{Key, KeyHash};
use crate::index::{self, Index, NUMBERS, Sought};
use crate::policy::{Endpoint, Policy, Protocol, Side};
use crate::record::{wire_half, wire_word};
use crate::slab::{Record, Slab};
use crate::state::State;
use crate::sweep::{SWEEP_ROUND, end_in_turn};
use crate::table::{Holder, LARGE, TableFull};
use crate::tcp::Direction;
use crate::time::Tick;
use crate::view::{BareView, MappingView};

/// A bare mapping. Addresses and ports are in network order. All zero is a free record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct BareMapping {
    /// Zero in a free record: no host has that address.
    internal_address: U32,
    internal_port: U16,
    external_port: U16,
    /// The external address, see [`Outer::packed`].
    outer: u16,
    /// By which its packets reach the internal endpoint: a pair without its other half. Zero where that has not been found out.
    pub(crate) adjacencies: u16,
    /// When it was last refreshed. **Units:** ticks. Of a free record: the next free one.
    last_seen: u32,
    /// Packets from the inside; wraps.
    packets_out: u32,
    /// Packets to the internal endpoint; wraps.
    packets_in: u32,
}

const _: () = assert!(size_of::<BareMapping>() == 24);

impl BareMapping {
    fn new(internal: Endpoint, (outer, external_port): (Outer, u16), now: Tick) -> Self {
        Self {
            internal_address: U32::new(internal.address.to_bits()),
            internal_port: U16::new(internal.port),
            external_port: U16::new(external_port),
            outer: outer.packed(),
            adjacencies: 0,
            last_seen: now.0,
            packets_out: 0,
            packets_in: 0,
        }
    }

    pub(crate) fn internal(&self) -> Endpoint {
        Endpoint { address: Ipv4Addr::from_bits(self.internal_address.get()), port: self.internal_port.get() }
    }

    pub(crate) fn external_port(&self) -> u16 {
        self.external_port.get()
    }

    /// The internal address, as it is in a packet.
    #[inline]
    pub(crate) fn internal_word(&self) -> u32 {
        wire_word(self.internal_address)
    }

    /// The internal port, as it is in a packet.
    #[inline]
    pub(crate) fn internal_half(&self) -> u16 {
        wire_half(self.internal_port)
    }

    /// The external port, as it is in a packet.
    #[inline]
    pub(crate) fn external_half(&self) -> u16 {
        wire_half(self.external_port)
    }

    #[inline]
    pub(crate) fn outer(&self) -> Outer {
        Outer::of_packed(self.outer)
    }

    #[inline]
    pub(crate) fn last_seen(&self) -> u32 {
        self.last_seen
    }

    /// Counts a packet. RFC 4787, REQ-6: what the inside sends keeps it alive. Nobody knows whom the inside has spoken to, so that what comes
    /// from outside does only where strangers may (RFC 7857, section 7).
    #[inline]
    pub(crate) fn advance(&mut self, direction: Direction, refreshes_inbound: bool, now: Tick) {
        let packets = match direction {
            Direction::Outbound => &mut self.packets_out,
            Direction::Inbound => &mut self.packets_in,
        };
        *packets = packets.wrapping_add(1);
        if direction == Direction::Outbound || refreshes_inbound {
            self.last_seen = now.0;
        }
    }

    fn key(&self) -> Key {
        Key::of_internal(Protocol::Udp as u8, self.internal_word(), self.internal_half())
    }

    /// A copy for others.
    fn view(&self, address: Ipv4Addr, expires_in: u32) -> MappingView {
        let bare = BareView { expires_in, packets_out: self.packets_out, packets_in: self.packets_in };
        MappingView {
            protocol: Protocol::Udp,
            internal: self.internal(),
            external: Endpoint { address, port: self.external_port() },
            scope: None,
            sessions: 0,
            bare: Some(bare),
        }
    }
}

impl Record for BareMapping {
    fn is_live(&self) -> bool {
        self.internal_address.get() != 0
    }
    fn set_free(&mut self, next: u32) {
        // Who finds its number under a hash alike is led nowhere.
        *self = Self { last_seen: next, ..zerocopy::FromZeros::new_zeroed() };
    }
    fn next_free(&self) -> u32 {
        self.last_seen
    }
}

/// The bare mappings of a worker.
pub(crate) struct BareMappings<'m> {
    index: Index<'m>,
    pub(crate) records: Slab<'m, BareMapping>,
    pub(crate) due: Due<'m>,
    hash: KeyHash,
    /// How long after its last packet one has ended. **Units:** milliseconds.
    pub(crate) timer: u32,
    is_large: bool,
}

impl<'m> BareMappings<'m> {
    pub(crate) fn new(index: Index<'m>, records: Slab<'m, BareMapping>, due: Due<'m>, hasher: &RandomState) -> Self {
        debug_assert!(records.limit() <= NUMBERS, "the configuration's limit");
        let is_large = index.bytes() + records.limit() as usize * size_of::<BareMapping>() > LARGE;
        Self { index, records, due, hash: KeyHash::new(hasher), timer: 0, is_large }
    }

    /// Whether UDP is kept so at all.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.records.limit() > 0
    }

    /// Whether index and records are beyond the caches.
    #[inline]
    pub(crate) const fn is_large(&self) -> bool {
        self.is_large
    }

    /// The hash by which the mapping of a packet from inside is found.
    #[inline]
    pub(crate) fn hash(&self, key: Key) -> u64 {
        self.hash.of(Side::Inside, key)
    }

    /// The hash of an internal endpoint.
    pub(crate) fn hash_of(&self, internal: Endpoint) -> u64 {
        let (address, port) = (U32::new(internal.address.to_bits()), U16::new(internal.port));
        self.hash(Key::of_internal(Protocol::Udp as u8, wire_word(address), wire_half(port)))
    }

    /// Has the line fetched that [`BareMappings::candidate`] will look at.
    #[inline]
    pub(crate) fn fetch_line(&self, hash: u64) {
        self.index.fetch(hash);
    }

    /// Has a record fetched, if there is one of that number.
    #[inline]
    pub(crate) fn fetch_record(&self, number: u32) {
        if let Some(bare) = self.records.peek(number) {
            // It may lie in two cache lines.
            ahead::fetch(&bare.internal_address);
            ahead::fetch(&bare.packets_in);
        }
    }

    /// The number of the mapping that a packet of that hash most likely belongs to; none where the index has nothing under it. Looks at no
    /// record: whoever uses it compares.
    #[inline]
    pub(crate) fn candidate(&self, hash: u64) -> Option<u32> {
        let number = self.index.first(hash);
        (number != index::NONE).then_some(number)
    }

    /// Has the line fetched that the search for a new mapping, or that mapping itself, goes on to.
    #[inline]
    pub(crate) fn fetch_next(&self, hash: u64) {
        self.index.fetch_next(hash);
    }

    fn find(&self, internal: Endpoint) -> Option<u32> {
        self.index.find(self.hash_of(internal), |number| self.records.peek(number).is_some_and(|bare| bare.internal() == internal))
    }
}

/// A bare mapping that is about to end, and what is to be removed of it.
#[derive(Clone, Copy, Default)]
struct EndingBare {
    number: u32,
    /// The home of its internal address in the table of subscribers.
    subscriber: usize,
    sought: Sought,
}

impl State<'_> {
    /// Whether mappings of that protocol have no sessions.
    #[inline]
    pub(crate) fn keeps_bare(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Udp && self.bares.is_on()
    }

    /// The bare mapping of an internal endpoint, if that protocol has such and it has not ended.
    pub(crate) fn bare_of(&mut self, protocol: Protocol, internal: Endpoint, now: Tick, counters: &mut Counters) -> Option<u32> {
        let number = if self.keeps_bare(protocol) { self.bares.find(internal)? } else { return None };
        self.unless_bare_ended(number, now, counters)
    }

    /// The bare mapping that has a port of a slot's address, if that protocol has such and it has not ended.
    pub(crate) fn bare_at(
        &mut self,
        protocol: Protocol,
        (slot, port): (u16, u16),
        now: Tick,
        counters: &mut Counters,
    ) -> Option<u32> {
        let Holder::Bare(number) = self.holder(slot, protocol, port)? else { return None };
        self.unless_bare_ended(number, now, counters)
    }

    fn unless_bare_ended(&mut self, number: u32, now: Tick, counters: &mut Counters) -> Option<u32> {
        if self.bare_expires_in(self.bares.records.get(number), now) == 0 {
            self.end_bare(number, now, counters);
            return None;
        }
        Some(number)
    }

    /// Time until a bare mapping ends. **Units:** milliseconds. Zero when it has, or when its external address is gone.
    pub(crate) fn bare_expires_in(&self, bare: &BareMapping, now: Tick) -> u32 {
        if self.sessions.externals.live(bare.outer()).is_none() {
            return 0;
        }
        self.bares.timer.saturating_sub(now.since(Tick(bare.last_seen)))
    }

    /// The external endpoint of a bare mapping; none when its address is gone.
    pub(crate) fn external_of_bare(&self, number: u32) -> Option<Endpoint> {
        let bare = self.bares.records.get(number);
        self.sessions.externals.live(bare.outer())?;
        Some(Endpoint { address: self.address_of(bare.outer().slot())?, port: bare.external_port() })
    }

    /// Makes a bare mapping, whose [`BareMappings::hash_of`] is given. **Errors:** [`TableFull`]; nothing has changed then.
    pub(crate) fn create_bare(
        &mut self,
        internal: Endpoint,
        (slot, port): (u16, u16),
        hash: u64,
        now: Tick,
        counters: &mut Counters,
    ) -> Result<u32, TableFull> {
        let bare = BareMapping::new(internal, (self.outer(slot), port), now);
        let number = self.bares.records.insert(bare).ok_or(TableFull)?;
        if self.bares.index.insert(hash, number).is_err() {
            self.bares.records.remove(number);
            return Err(TableFull);
        }
        self.take_port(Protocol::Udp, (slot, port), internal.address, Holder::Bare(number));
        self.bares.due.set(number, self.bares.timer / SWEEP_ROUND);
        counters.count(Counter::MappingsCreated);
        Ok(number)
    }

    fn end_bare(&mut self, number: u32, now: Tick, counters: &mut Counters) {
        let ending = self.seek_bare(number);
        self.end_sought_bare(&ending, now, counters);
    }

    /// What the end of a bare mapping takes.
    #[inline]
    fn seek_bare(&self, number: u32) -> EndingBare {
        let bare = self.bares.records.get(number);
        EndingBare {
            number,
            subscriber: self.subscribers.home(bare.internal().address),
            sought: self.bares.index.seek(self.bares.hash(bare.key())),
        }
    }

    fn end_sought_bare(&mut self, ending: &EndingBare, now: Tick, counters: &mut Counters) {
        let number = ending.number;
        let bare = *self.bares.records.get(number);
        let removed = self.bares.index.remove_sought(&ending.sought, number);
        debug_assert!(removed, "bare mapping {number} was not under its key");
        self.bares.records.remove(number);
        let at = (bare.outer().slot(), bare.external_port());
        self.give_back_port(Protocol::Udp, at, (bare.internal().address, ending.subscriber), now, counters);
    }

    /// Ends the bare mappings whose ports forwards have from now on: what comes to them is the servers'. **Cost:** cold; O(forwarded ports).
    pub(crate) fn yield_to_forwards(&mut self, policy: &Policy, now: Tick, counters: &mut Counters) {
        if !self.bares.is_on() {
            return;
        }
        let slots = self.slots().len();
        for forward in policy.forwards.iter().filter(|forward| forward.protocol == Protocol::Udp && forward.external < slots) {
            for port in forward.first..=forward.last {
                if let Some(Holder::Bare(number)) = self.holder(forward.external as u16, Protocol::Udp, port) {
                    self.end_bare(number, now, counters);
                }
            }
        }
    }

    /// Ends those that are over, and says of the others when they are looked at again. Returns how many ended.
    pub(crate) fn look_at_bares(
        &mut self,
        (numbers, following): (&[u32], &[u32]),
        (now, late): (Tick, u32),
        adjacencies: &Adjacencies,
        counters: &mut Counters,
    ) -> u32 {
        end_in_turn(
            self,
            (numbers, following),
            |state, number| state.bares.fetch_record(number),
            |state, number, place| {
                let is_over = state.is_bare_over(number, (now, late), adjacencies);
                if is_over {
                    *place = state.fetch_for_bare_end(number);
                }
                is_over
            },
            |state, ending| state.bares.index.look_for(&mut ending.sought, ending.number),
            |state, ending| state.end_sought_bare(ending, now, counters),
        )
    }

    /// Whether a bare mapping is over. If it is not, says when it is looked at again.
    #[inline]
    fn is_bare_over(&mut self, number: u32, (now, late): (Tick, u32), adjacencies: &Adjacencies) -> bool {
        let bare = self.bares.records.get(number);
        if !bare.is_live() {
            return false;
        }
        let left = self.bare_expires_in(bare, now);
        if left == 0 {
            return true;
        }
        if bare.adjacencies != 0 && adjacencies.get(bare.adjacencies).is_none() {
            self.bares.records.get_mut(number).adjacencies = 0;
        }
        self.bares.due.set(number, (left + late).div_ceil(SWEEP_ROUND).max(1));
        false
    }

    /// Has what it takes to end a bare mapping fetched.
    #[inline]
    fn fetch_for_bare_end(&self, number: u32) -> EndingBare {
        let ending = self.seek_bare(number);
        self.bares.index.fetch_home(&ending.sought);
        let bare = self.bares.records.get(number);
        self.fetch_port_for_end(Protocol::Udp, (bare.outer().slot(), bare.external_port()));
        self.subscribers.fetch_home(ending.subscriber);
        ending
    }

    /// Appends the bare mappings that have not ended among the next `most` records from `cursor` on. Returns the next cursor, or none at the
    /// end.
    pub(crate) fn show_bares(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<MappingView>) -> Option<u32> {
        let (records, next) = self.bares.records.slice(cursor, most);
        let shown = records.filter_map(|(number, bare)| {
            let expires_in = Some(self.bare_expires_in(bare, now)).filter(|&left| left > 0)?;
            Some(bare.view(self.external_of_bare(number)?.address, expires_in))
        });
        into.extend(shown);
        next
    }
}
