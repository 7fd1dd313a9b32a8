//! What a worker remembers: sessions, mappings, ports, subscribers, and the external addresses by slot.
//!
//! Knows how they hang together, no packets. Called by the slow path to commit what it planned, and by the sweep. Invariants: a mapping
//! has its port and at least one session, which stands for it until there is a second one; a subscriber has at least one mapping; what
//! ends takes all that only it needed with it.

use core::net::Ipv4Addr;
use core::time::Duration;

use ahash::RandomState;
use hashbrown::HashMap;
use portcullis_steering::owners::PORT_WORDS;
use portcullis_steering::{Owners, WorkerId};

use crate::addresses::Addresses;
use crate::adjacency::Adjacencies;
use crate::arena::{Arenas, Capacity, TooSmall};
use crate::bare::BareMappings;
use crate::counters::{Counter, Counters};
use crate::due::Due;
use crate::externals::Outer;
use crate::index::{Index, Sought};
use crate::others::Translations;
use crate::policy::{Endpoint, MappingBehaviour, Policy, PortSet, Protocol, Timeouts};
use crate::ports::{PortSpace, Rest};
use crate::record::{Generation, Kind, NewSession, Session, flag};
use crate::slab::{Record as _, Slab};
use crate::subscribers::Subscribers;
use crate::sweep::{Step, Table};
use crate::table::{Entry, Holder, Mappings, Sessions, TableFull, has_soles};
use crate::time::Tick;
use crate::two_keys::SoughtTwice;
use crate::udp_ports::UdpPorts;
use crate::view::SessionState;

/// How the session that is to be made comes by its external endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Under {
    /// A mapping that exists.
    Held(Holder),
    /// A mapping that is made with it, and the hash of its key.
    NewMapping(MappingBehaviour, u64),
    /// The same, which it does not keep alive: a guest of a mapping.
    Guest,
    /// A forward: no mapping, no port of the pool.
    Forward,
    /// No session: a bare mapping is made, and this is the hash of its key.
    NewBare(u64),
}

/// Subscribers that there is room for from the start. More make the table grow, each time to twice as many; for so long packets wait.
const SUBSCRIBERS: u32 = 1 << 16;

/// An external address in its slot. **Shape:** eight bytes, which processors index with ease.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(8))]
pub(crate) struct Slot {
    pub(crate) address: Option<Ipv4Addr>,
    /// Of the sessions that live.
    pub(crate) generation: Generation,
    /// Changes of the address since a whole sweep began.
    unswept: u8,
}

const _: () = assert!(size_of::<Slot>() == 8);

/// The ports of an address that are this worker's.
struct OwnedPorts {
    address: Ipv4Addr,
    ports: Box<[u64; PORT_WORDS]>,
}

/// Everything that a worker remembers.
pub(crate) struct State<'m> {
    pub(crate) sessions: Sessions<'m>,
    pub(crate) mappings: Mappings<'m>,
    pub(crate) bares: BareMappings<'m>,
    /// Of protocols without ports.
    pub(crate) others: Translations<'m>,
    ports: Vec<PortSpace<'m>>,
    pub(crate) subscribers: Subscribers,
    /// Live sessions by (mapping, remote address), of those made while the filter asked for them.
    remotes: HashMap<(u32, u32), u32, RandomState>,
    /// The external addresses.
    slots: Vec<Slot>,
    slot_of: Addresses,
    /// The ports of each slot's address that are this worker's. Empty where it is the only one.
    owned: Vec<Option<OwnedPorts>>,
    /// Of each kind of session, how long after its last packet it has ended. **Units:** milliseconds.
    pub(crate) timers: [u32; Kind::COUNT],
    /// Of each family of kinds, the shortest of them.
    pub(crate) shortest: [u32; Kind::FAMILIES],
    /// Which UDP sessions have times of their own.
    udp_ports: UdpPorts,
    pub(crate) due: Due<'m>,
    /// Of each protocol, how ports rest.
    rests: [Rest; Protocol::ALL.len()],
    /// Ports that rest, in all spaces.
    resting: u32,
    /// The space whose resting ports are looked at next.
    wakes: usize,
    /// Sessions under forwards.
    forwarded: u32,
    /// Guests, also those whose mapping is gone.
    pub(crate) guests: u32,
}

/// A session that is about to end, and what is to be removed of it.
#[derive(Clone, Copy, Default)]
pub(crate) struct EndingSession {
    pub(crate) number: u32,
    /// The home of its internal address in the table of subscribers.
    pub(crate) subscriber: usize,
    pub(crate) session: SoughtTwice,
    /// The mapping that it stands for, where the index of mappings has it.
    pub(crate) mapping: Option<Sought>,
}

/// The idle time of a session in that state.
fn timeout_of(timeouts: &Timeouts, protocol: Protocol, state: SessionState) -> Duration {
    match state {
        // RFC 6146, section 3.5.2.2: half-closed connections keep the timeout of established ones.
        SessionState::Established | SessionState::FinSent | SessionState::FinReceived => timeouts.tcp_established,
        // RFC 7857, section 2.1: "a NAT SHOULD provide different configurable parameters for configuring the open and closing idle timeouts".
        SessionState::SynSent | SessionState::SynReceived => timeouts.tcp_opening,
        SessionState::Closing | SessionState::Reset => timeouts.tcp_closing,
        SessionState::Unreplied | SessionState::Replied if protocol == Protocol::Udp => timeouts.udp,
        SessionState::Unreplied | SessionState::Replied => timeouts.icmp,
    }
}

impl<'m> State<'m> {
    /// An empty state in zeroed `memory`.
    pub(crate) fn new(memory: &'m mut [u8], capacity: &Capacity, hasher: &RandomState) -> Result<Self, TooSmall> {
        let arenas = Arenas::cut(memory, capacity)?;
        let sessions = Sessions::new(Index::new(arenas.session_lines), Slab::new(arenas.sessions), hasher);
        let mappings = Mappings::new(Index::new(arenas.mapping_lines), Slab::new(arenas.mappings), hasher.clone());
        let bares = Slab::new(arenas.bares);
        let bares = BareMappings::new(Index::new(arenas.bare_lines), bares, Due::new(arenas.bares_due), hasher);
        let others = Translations::new(Index::new(arenas.other_lines), Slab::new(arenas.others), hasher.clone());
        Ok(Self {
            sessions,
            mappings,
            bares,
            others,
            ports: arenas
                .port_bits
                .iter_mut()
                .zip(arenas.port_holders)
                .map(|(bits, holders)| PortSpace::new(bits, holders))
                .collect(),
            subscribers: Subscribers::with_capacity(SUBSCRIBERS.min(capacity.mappings) as usize, hasher),
            remotes: HashMap::with_hasher(hasher.clone()),
            slots: vec![Slot::default(); usize::from(capacity.externals)],
            slot_of: Addresses::new(usize::from(capacity.externals)),
            owned: Vec::new(),
            timers: [0; Kind::COUNT],
            shortest: [0; Kind::FAMILIES],
            udp_ports: UdpPorts::default(),
            due: Due::new(arenas.due),
            rests: Default::default(),
            resting: 0,
            wakes: 0,
            forwarded: 0,
            guests: 0,
        })
    }

    /// Takes over the addresses, ports and timeouts of `policy`; of the ports, those that are `me`'s. Sessions of addresses that are gone
    /// are dead from now on. Returns whether there are such addresses. **Cost:** cold; 65,536 owners asked for each new address.
    pub(crate) fn adopt(
        &mut self,
        policy: &Policy,
        (owners, me): (&Owners, WorkerId),
        now: Tick,
        adjacencies: &Adjacencies,
        counters: &mut Counters,
    ) -> bool {
        self.adopt_times(policy);
        let rest = Rest::new(policy.port_hold.time, policy.port_hold.most.div_ceil(u32::from(owners.workers())));
        // RFC 6888, REQ-8 A: a NAT that tracks TCP sessions may give their ports again at once.
        self.rests = Protocol::ALL.map(|protocol| if protocol == Protocol::Tcp { Rest::default() } else { rest });
        if self.slots.iter().any(|slot| slot.unswept == Generation::COUNT - 1) {
            // One more change, and sessions that the sweep has not met would come to life again.
            for table in Table::ALL {
                self.sweep((table, 0), &Step::ALL, now, adjacencies, counters);
            }
            self.swept();
        }
        self.slot_of.clear();
        let mut some_are_gone = false;
        for number in 0..self.slots.len() {
            let external = policy.externals.get(number);
            // An address that two slots have is the first's: else an external endpoint could be given twice.
            let address = external.and_then(|external| external.address).filter(|address| self.slot_of(*address).is_none());
            let slot = &mut self.slots[number];
            if slot.address.is_some() && slot.address != address {
                some_are_gone = true;
                slot.generation = slot.generation.next();
                slot.unswept += 1;
            }
            slot.address = address;
            self.sessions.externals.set(number as u16, slot.generation, address);
            if owners.workers() > 1 {
                self.learn_owned(number, owners, me);
            }
            let none = PortSet::empty();
            self.allow(number, external.map_or(&none, |external| &external.ports));
            if let Some(address) = address {
                self.slot_of.insert(address, number as u16);
            }
        }
        self.yield_to_forwards(policy, now, counters);
        self.others.adopt(self.slots.iter().map(|slot| slot.address), &policy.timeouts);
        some_are_gone
    }

    /// Takes over the timeouts. **Cost:** where other ports have times of their own than before, a look at all sessions.
    fn adopt_times(&mut self, policy: &Policy) {
        let udp_ports = UdpPorts::new(&policy.udp_ports);
        if udp_ports != self.udp_ports {
            self.udp_ports = udp_ports;
            for number in 0..self.sessions.records.high_water() {
                let session = self.sessions.records.get(number);
                if session.is_live() && !session.kind.is_guest() {
                    let kind = session.kind.in_class(self.udp_ports.class_of(session));
                    self.sessions.records.get_mut(number).kind = kind;
                }
            }
        }
        for family in Kind::families() {
            let protocol = family.protocol();
            let of_class = self.udp_ports.time(family.class());
            let timer = |state| {
                let idle = of_class.unwrap_or_else(|| timeout_of(&policy.timeouts, protocol, state));
                idle.min(Tick::HORIZON).as_millis() as u32 + 1
            };
            // Nobody inside has answered a guest: whatever it says of its connection, it is opening.
            let opening = if protocol == Protocol::Tcp { SessionState::SynReceived } else { SessionState::Unreplied };
            for state in SessionState::ALL {
                let kind = family.in_state(state);
                self.timers[kind.number()] = timer(state);
                self.timers[kind.of_guest().number()] = timer(opening);
            }
            let states = SessionState::ALL.into_iter().filter(|state| state.is_of(protocol));
            self.shortest[family.family()] = states.map(timer).min().unwrap_or_default();
        }
        self.bares.timer = self.timers[Kind::new(Protocol::Udp, SessionState::Replied).number()];
    }

    /// Finds out which ports of a slot's address are this worker's, if it is another address than before.
    fn learn_owned(&mut self, slot: usize, owners: &Owners, me: WorkerId) {
        self.owned.resize_with(self.slots.len(), || None);
        let Some(address) = self.slots[slot].address else { return };
        if self.owned[slot].as_ref().is_none_or(|owned| owned.address != address) {
            self.owned[slot] = Some(OwnedPorts { address, ports: owners.ports_of(address, me) });
        }
    }

    /// Sets the ports of a slot that mappings may take.
    fn allow(&mut self, slot: usize, ports: &PortSet) {
        let owned = self.owned.get(slot).and_then(Option::as_ref).map(|owned| &*owned.ports);
        for protocol in Protocol::ALL {
            let at = protocol.index() * self.slots.len() + slot;
            self.ports[at].allow(ports, owned);
        }
    }

    /// The external addresses, by slot.
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The external address of a slot.
    #[inline]
    pub(crate) fn address_of(&self, slot: u16) -> Option<Ipv4Addr> {
        self.slots[usize::from(slot)].address
    }

    /// The external endpoint of a session. Of one whose address is gone, the unspecified address.
    #[inline]
    pub(crate) fn external_of(&self, session: &Session) -> Endpoint {
        session.external(self.address_of(session.slot).unwrap_or(Ipv4Addr::UNSPECIFIED))
    }

    /// A slot's address, as sessions that live are found by it.
    #[inline]
    pub(crate) fn outer(&self, slot: u16) -> Outer {
        Outer::new(slot, self.slots[usize::from(slot)].generation)
    }

    /// The slot of an external address.
    #[inline]
    pub(crate) fn slot_of(&self, address: Ipv4Addr) -> Option<u16> {
        self.slot_of.get(address)
    }

    /// Where the ports are of a slot's address for a protocol: those of a protocol lie side by side.
    #[inline]
    fn space_at(&self, slot: u16, protocol: Protocol) -> usize {
        protocol.index() * self.slots.len() + usize::from(slot)
    }

    pub(crate) fn space(&self, slot: u16, protocol: Protocol) -> &PortSpace<'m> {
        &self.ports[self.space_at(slot, protocol)]
    }

    fn space_mut(&mut self, slot: u16, protocol: Protocol) -> &mut PortSpace<'m> {
        let at = self.space_at(slot, protocol);
        &mut self.ports[at]
    }

    /// Who has a port.
    #[inline]
    pub(crate) fn holder(&self, slot: u16, protocol: Protocol, port: u16) -> Option<Holder> {
        let value = self.space(slot, protocol).holder(port)?;
        Some(if self.keeps_bare(protocol) { Holder::Bare(value) } else { Holder::of_value(value) })
    }

    /// Who has an external endpoint.
    pub(crate) fn holder_of(&self, slot: u16, protocol: Protocol, external: Endpoint) -> Option<Holder> {
        let holder = self.holder(slot, protocol, external.port)?;
        // A slot whose address changed still has the ports of mappings that the sweep has not met.
        (self.external_held_by(holder)? == (slot, external)).then_some(holder)
    }

    /// The external endpoint of a mapping, with its slot. None when its address is gone.
    pub(crate) fn external_held_by(&self, holder: Holder) -> Option<(u16, Endpoint)> {
        match holder {
            Holder::Mapping(number) => {
                let mapping = self.mappings.records.get(number);
                let is_there = mapping.is_of(self.slots[usize::from(mapping.slot)].generation);
                is_there.then(|| (mapping.slot, mapping.external()))
            }
            Holder::Session(number) => {
                let session = self.sessions.records.get(number);
                Some((session.slot, session.external(self.live_address_of(session)?)))
            }
            Holder::Bare(number) => Some((self.bares.records.get(number).outer().slot(), self.external_of_bare(number)?)),
        }
    }

    /// The internal endpoint of a mapping.
    pub(crate) fn internal_held_by(&self, holder: Holder) -> Endpoint {
        match holder {
            Holder::Mapping(number) => self.mappings.records.get(number).internal(),
            Holder::Session(number) => self.sessions.records.get(number).internal(),
            Holder::Bare(number) => self.bares.records.get(number).internal(),
        }
    }

    /// Whether a mapping has a live session with `remote`, whatever its port, that was counted.
    pub(crate) fn has_remote(&self, holder: Holder, remote: Ipv4Addr) -> bool {
        match holder {
            Holder::Mapping(number) => self.remotes.contains_key(&(number, remote.to_bits())),
            // What is counted has a mapping with a record.
            Holder::Session(_) | Holder::Bare(_) => false,
        }
    }

    /// Time until a session ends. **Units:** milliseconds. Zero when it has, when its external address is gone, or the mapping that it is a
    /// guest of.
    #[inline]
    pub(crate) fn expires_in(&self, session: &Session, now: Tick) -> u32 {
        let Some(address) = self.live_address_of(session) else { return 0 };
        if session.kind.is_guest() && !self.has_mapping(session, address, now) {
            return 0;
        }
        self.time_left(session, now)
    }

    /// The external address of a session, if it is not gone.
    #[inline]
    pub(crate) fn live_address_of(&self, session: &Session) -> Option<Ipv4Addr> {
        let slot = &self.slots[usize::from(session.slot)];
        if slot.generation == session.generation() { slot.address } else { None }
    }

    /// Time until a session whose external address is not gone ends. **Units:** milliseconds.
    #[inline]
    pub(crate) fn time_left(&self, session: &Session, now: Tick) -> u32 {
        self.timers[session.kind.number()].saturating_sub(now.since(Tick(session.last_seen)))
    }

    /// The session of packets from `internal` to `remote`, if it has not ended.
    #[inline]
    pub(crate) fn outbound(
        &mut self,
        protocol: Protocol,
        internal: Endpoint,
        remote: Endpoint,
        now: Tick,
        counters: &mut Counters,
    ) -> Option<u32> {
        let number = self.sessions.find_outbound(protocol, internal, remote)?;
        self.unless_ended(number, now, counters)
    }

    /// The session of packets from `remote` to a port of a slot's address, if it has not ended.
    #[inline]
    pub(crate) fn inbound(
        &mut self,
        protocol: Protocol,
        (slot, port): (u16, u16),
        remote: Endpoint,
        now: Tick,
        counters: &mut Counters,
    ) -> Option<u32> {
        let number = self.sessions.find_inbound(protocol, (self.outer(slot), port), remote)?;
        self.unless_ended(number, now, counters)
    }

    fn unless_ended(&mut self, number: u32, now: Tick, counters: &mut Counters) -> Option<u32> {
        if self.expires_in(self.sessions.records.get(number), now) == 0 {
            self.end_session(number, now, counters);
            return None;
        }
        Some(number)
    }

    /// Whether there are sessions under forwards.
    pub(crate) fn has_forwarded(&self) -> bool {
        self.forwarded > 0
    }

    /// Whether a session may have an external endpoint that no mapping holds for it: one under a forward, that may have gone, or a guest, whose
    /// mapping may have.
    pub(crate) fn may_conflict(&self) -> bool {
        self.forwarded > 0 || self.guests > 0
    }

    /// Makes a planned session, or bare mapping. **Errors:** [`TableFull`]; nothing that others see has changed then.
    pub(crate) fn create(
        &mut self,
        new: &NewSession,
        under: Under,
        now: Tick,
        counters: &mut Counters,
    ) -> Result<Entry, TableFull> {
        let generation = self.slots[usize::from(new.slot)].generation;
        let mut session = Session::new(new, generation, now.0);
        session.kind = session.kind.in_class(self.udp_ports.class_of(&session));
        let number = match under {
            Under::Forward => {
                let number = self.sessions.insert(session)?;
                self.forwarded += 1;
                number
            }
            Under::Guest => {
                session.kind = session.kind.of_guest();
                let number = self.sessions.insert(session)?;
                self.guests += 1;
                number
            }
            Under::NewMapping(behaviour, hash) => {
                session.set_sole(Some(behaviour));
                self.create_with_mapping(session, has_soles(behaviour).then_some(hash), counters)?
            }
            Under::Held(holder) => {
                let mapping = self.record_of(holder)?;
                let number = self.sessions.insert(session)?;
                self.join(mapping, &session);
                number
            }
            Under::NewBare(hash) => {
                let at = (new.slot, new.external.port);
                return self.create_bare(new.internal, at, hash, now, counters).map(Entry::Bare);
            }
        };
        self.look_first(number, session.kind);
        counters.count(Counter::SessionsCreated);
        Ok(Entry::Session(number))
    }

    /// Makes a session that stands for its new mapping, whose [`Mappings::hash_of_sole`] is given.
    #[inline]
    fn create_with_mapping(
        &mut self,
        session: Session,
        of_mapping: Option<u64>,
        counters: &mut Counters,
    ) -> Result<u32, TableFull> {
        let number = self.sessions.insert(session)?;
        if self.mappings.insert_sole(number, of_mapping).is_err() {
            self.take_back(number);
            return Err(TableFull);
        }
        let at = (session.slot, session.external_port.get());
        self.take_port(session.kind.protocol(), at, session.internal().address, Holder::Session(number));
        counters.count(Counter::MappingsCreated);
        // The table of remotes goes by records of mappings.
        if session.has(flag::REMOTE_COUNTED)
            && let Ok(mapping) = self.record_of(Holder::Session(number))
        {
            self.count_remote(mapping, &session);
        }
        Ok(number)
    }

    /// Removes a session of which nothing else knows.
    #[cold]
    fn take_back(&mut self, number: u32) {
        let sought = self.sessions.seek(self.sessions.records.get(number));
        self.sessions.remove(number, &sought);
    }

    /// Gives a new mapping of that internal address its port of a slot's address.
    #[inline]
    pub(crate) fn take_port(&mut self, protocol: Protocol, (slot, port): (u16, u16), internal: Ipv4Addr, holder: Holder) {
        self.space_mut(slot, protocol).take(port, holder.value());
        self.subscribers.add_mapping(internal, slot);
    }

    fn count_remote(&mut self, mapping: u32, session: &Session) {
        *self.remotes.entry((mapping, session.remote_address.get())).or_insert(0) += 1;
    }

    /// The record of a mapping, which gets one if it has none. **Errors:** [`TableFull`]; nothing has changed then.
    pub(crate) fn record_of(&mut self, holder: Holder) -> Result<u32, TableFull> {
        let sole = match holder {
            Holder::Mapping(number) => return Ok(number),
            Holder::Session(number) => number,
            // No session is ever under it.
            Holder::Bare(_) => return Err(TableFull),
        };
        let session = *self.sessions.records.get(sole);
        let address = self.address_of(session.slot).unwrap_or(Ipv4Addr::UNSPECIFIED);
        let mapping = session.mapping(address).ok_or(TableFull)?;
        let of_sole = self.mappings.hash_of_sole(&session);
        self.mappings.remove_sole(sole, self.mappings.seek_sole(&session).as_ref());
        let number = match self.mappings.insert(mapping) {
            Ok(number) => number,
            Err(full) => {
                // There is room again for what was there just now.
                let back = self.mappings.insert_sole(sole, of_sole);
                debug_assert!(back.is_ok(), "the index has lost the room of session {sole}");
                return Err(full);
            }
        };
        self.space_mut(session.slot, session.kind.protocol()).pass_on(session.external_port.get(), Holder::Mapping(number).value());
        self.sessions.records.get_mut(sole).set_sole(None);
        Ok(number)
    }

    /// Counts a session under a mapping that has a record.
    pub(crate) fn join(&mut self, mapping: u32, session: &Session) {
        self.mappings.records.get_mut(mapping).sessions += 1;
        if session.has(flag::REMOTE_COUNTED) {
            self.count_remote(mapping, session);
        }
    }

    /// Ends a session, and its mapping when it was the last one under it but for guests.
    pub(crate) fn end_session(&mut self, number: u32, now: Tick, counters: &mut Counters) {
        let ending = self.seek_session(number);
        self.end_sought(&ending, now, counters);
    }

    /// What the end of a session takes.
    #[inline]
    pub(crate) fn seek_session(&self, number: u32) -> EndingSession {
        let session = self.sessions.records.get(number);
        EndingSession {
            number,
            subscriber: self.subscribers.home(session.internal().address),
            session: self.sessions.seek(session),
            mapping: self.mappings.seek_sole(session),
        }
    }

    /// Ends a session that was sought.
    pub(crate) fn end_sought(&mut self, ending: &EndingSession, now: Tick, counters: &mut Counters) {
        let number = ending.number;
        let session = self.sessions.remove(number, &ending.session);
        counters.count(Counter::SessionsRemoved);
        if session.kind.is_guest() {
            self.guests -= 1;
            return;
        }
        if session.has(flag::FORWARDED) {
            self.forwarded -= 1;
            return;
        }
        if session.sole().is_some() {
            self.mappings.remove_sole(number, ending.mapping.as_ref());
            self.end_mapping(&session, ending.subscriber, now, counters);
            return;
        }
        let Some(Holder::Mapping(number)) = self.holder_for(&session) else {
            debug_assert!(false, "{session:?} has no mapping");
            return;
        };
        if session.has(flag::REMOTE_COUNTED) {
            self.forget_remote((number, session.remote_address.get()));
        }
        let mapping = self.mappings.records.get_mut(number);
        mapping.sessions -= 1;
        if mapping.sessions == 0 {
            self.mappings.remove(number);
            self.end_mapping(&session, ending.subscriber, now, counters);
        }
    }

    /// Who has the port of a session that is under a mapping: nobody else until it ends.
    pub(crate) fn holder_for(&self, session: &Session) -> Option<Holder> {
        self.holder(session.slot, session.kind.protocol(), session.external_port.get())
    }

    /// Gives back what the mapping of a session had, which was the last one under it.
    fn end_mapping(&mut self, session: &Session, subscriber: usize, now: Tick, counters: &mut Counters) {
        let at = (session.slot, session.external_port.get());
        self.give_back_port(session.kind.protocol(), at, (session.internal().address, subscriber), now, counters);
    }

    /// Has what [`State::give_back_port`] writes of the port fetched.
    #[inline]
    pub(crate) fn fetch_port_for_end(&self, protocol: Protocol, (slot, port): (u16, u16)) {
        self.space(slot, protocol).fetch_for_end(port, self.rests[protocol.index()]);
    }

    /// Gives back what a mapping of that internal address had, whose home in the table of subscribers is given.
    pub(crate) fn give_back_port(
        &mut self,
        protocol: Protocol,
        (slot, port): (u16, u16),
        (internal, subscriber): (Ipv4Addr, usize),
        now: Tick,
        counters: &mut Counters,
    ) {
        let (rest, space) = (self.rests[protocol.index()], self.space_mut(slot, protocol));
        if rest.is_none() {
            space.release(port);
        } else if space.release_to_rest(port, rest, now) {
            self.resting += 1;
        }
        self.subscribers.remove_mapping(internal, subscriber);
        counters.count(Counter::MappingsRemoved);
    }

    /// Ends the sessions of bare protocols that no forward of `policy` has any more: their ports may be given to bare mappings. `leads` says
    /// whether one leads its remote to it. **Cost:** cold; a look at all sessions.
    pub(crate) fn end_unled(&mut self, leads: impl Fn(&Session) -> bool, now: Tick, counters: &mut Counters) {
        if self.forwarded == 0 {
            return;
        }
        for number in 0..self.sessions.records.high_water() {
            let session = self.sessions.records.get(number);
            if session.is_live() && session.has(flag::FORWARDED) && self.keeps_bare(session.kind.protocol()) && !leads(session) {
                self.end_session(number, now, counters);
            }
        }
    }

    /// Whether another mapping has room in the tables, of that protocol.
    pub(crate) fn has_room_for_mapping(&self, protocol: Protocol) -> bool {
        self.mappings.has_room(self.bares.records.live()) && (!self.keeps_bare(protocol) || self.bares.records.has_room(1))
    }

    /// Frees ports that have rested: at most so many of the next spaces and ports. **Cost:** nothing where none rests.
    pub(crate) fn wake_ports(&mut self, (spaces, mut ports): (usize, u32), now: Tick) {
        for _ in 0..spaces.min(self.ports.len()) {
            if self.resting == 0 || ports == 0 {
                return;
            }
            self.wakes = (self.wakes + 1) % self.ports.len();
            let rest = self.rests[self.wakes / self.slots.len()];
            let freed = self.ports[self.wakes].end_rests(rest, now, ports);
            self.resting -= freed;
            ports -= freed;
        }
    }

    fn forget_remote(&mut self, key: (u32, u32)) {
        if let Some(count) = self.remotes.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.remotes.remove(&key);
            }
        }
    }

    /// After a whole sweep that began since the last [`State::adopt`]: no session of an address that is gone is left.
    pub(crate) fn swept(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.unswept = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the sweep would look at sessions that cannot have ended.
    #[test]
    fn the_shortest_time_of_a_family_is_of_a_state_that_its_protocol_has() {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let capacity = Capacity { mappings: 4, bare_mappings: 4, sessions: 4, externals: 1, fragments: 4, others: 4 };
        let mut memory = vec![0; capacity.bytes()];
        let mut state = State::new(&mut memory, &capacity, &hasher).expect("enough memory");
        let [udp, tcp_established, tcp_opening, tcp_closing, icmp] = [300, 7440, 240, 200, 60].map(Duration::from_secs);
        let timeouts = Timeouts { udp, tcp_established, tcp_opening, tcp_closing, icmp, ..Policy::default().timeouts };
        state.adopt_times(&Policy { timeouts, ..Policy::default() });
        for (protocol, state_of_it, shortest) in [
            (Protocol::Tcp, SessionState::Established, 200_001),
            (Protocol::Udp, SessionState::Replied, 300_001),
            (Protocol::Icmp, SessionState::Replied, 60_001),
        ] {
            assert_eq!(state.shortest[Kind::new(protocol, state_of_it).family()], shortest, "{protocol:?}");
        }
    }
}
