//! The session table and the mapping table: records with the indexes that find them.
//!
//! Knows keys and records, no packets and no policy. Invariant: a session is in the index twice, by (protocol, internal, remote) and
//! by (protocol, external, remote), where the record's slot and generation stand for the external address; no two sessions share either
//! key. A mapping is there once, by (protocol, internal, scope), be it with a record or without.

use ahash::RandomState;
use zerocopy::network_endian::{U16, U32};

use crate::ahead;
use crate::externals::{Externals, Outer};
use crate::hash::{Key, KeyHash};
use crate::index::{self, Index, NUMBERS, Sought};
use crate::policy::{Endpoint, MappingBehaviour, Protocol, Side};
use crate::record::{Mapping, Session, wire_halves, wire_word};
use crate::slab::Slab;
use crate::two_keys::{self, Hashes, SoughtTwice};

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableFull;

/// The sessions of a worker.
pub(crate) struct Sessions<'m> {
    index: Index<'m>,
    pub(crate) records: Slab<'m, Session>,
    pub(crate) externals: Externals,
    hash: KeyHash,
    /// Whether index and records are larger than [`LARGE`].
    is_large: bool,
}

/// Bytes of index and records above which what a packet needs of them is fetched ahead. Below, it is in the second-level cache or near it, and
/// the fetching is only more instructions. Chosen: twice such a cache.
pub(crate) const LARGE: usize = 1 << 20;

impl<'m> Sessions<'m> {
    pub(crate) fn new(index: Index<'m>, records: Slab<'m, Session>, hasher: &RandomState) -> Self {
        debug_assert!(records.limit() <= two_keys::MOST, "the configuration's limit");
        let is_large = index.bytes() + records.limit() as usize * size_of::<Session>() > LARGE;
        Self { index, records, externals: Externals::new(), hash: KeyHash::new(hasher), is_large }
    }

    /// The session of packets from `internal` to `remote`.
    #[inline]
    pub(crate) fn find_outbound(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Option<u32> {
        let ports = wire_halves(port(internal), port(remote));
        let key = Key::new(protocol as u8, wire_word(address(internal)), wire_word(address(remote)), ports);
        let found = self.index.find(self.hash.of(Side::Inside, key), |value| {
            value & 1 == Side::Inside as u32 && {
                let session = self.records.get(value >> 1);
                session.kind.is_of(protocol) && session.internal() == internal && session.remote() == remote
            }
        });
        found.map(|value| value >> 1)
    }

    /// The session of packets from `remote` to a port of an external address.
    #[inline]
    pub(crate) fn find_inbound(&self, protocol: Protocol, (outer, outer_port): (Outer, u16), remote: Endpoint) -> Option<u32> {
        let found = self.index.find(self.hash_inbound(protocol, (outer, outer_port), remote), |value| {
            value & 1 == Side::Outside as u32 && {
                let session = self.records.get(value >> 1);
                session.kind.is_of(protocol)
                    && Outer::of(session) == outer
                    && session.external_port.get() == outer_port
                    && session.remote() == remote
            }
        });
        found.map(|value| value >> 1)
    }

    /// The hash of the session of packets from `remote` to a port of an external address.
    #[inline]
    pub(crate) fn hash_inbound(&self, protocol: Protocol, (outer, outer_port): (Outer, u16), remote: Endpoint) -> u64 {
        let ports = wire_halves(port(remote), U16::new(outer_port));
        let key = Key::new(protocol as u8, wire_word(address(remote)), self.externals.wire(outer), ports);
        self.hash.of(Side::Outside, key)
    }

    /// The hash by which the session of a packet from that side is found.
    #[inline]
    pub(crate) fn hash(&self, side: Side, key: Key) -> u64 {
        self.hash.of(side, key)
    }

    /// Whether the index has something under a key's hash, which may be another key's.
    pub(crate) fn is_known(&self, hash: u64) -> bool {
        self.index.first(hash) != index::NONE
    }

    /// Whether index and records are beyond the caches, so that what a packet needs of them is to be fetched ahead.
    #[inline]
    pub(crate) const fn is_large(&self) -> bool {
        self.is_large
    }

    /// Has the line fetched that [`Sessions::candidates`] will look at.
    #[inline]
    pub(crate) fn fetch_line(&self, hash: u64) {
        self.index.fetch(hash);
    }

    /// For each hash the number of the session that its packet most likely belongs to, which the index has under it; where it has
    /// nothing, one that no record has. Looks at no record: whoever uses a number compares. In large tables the records are fetched.
    #[inline(never)]
    pub(crate) fn candidates(&self, hashes: &[u64], numbers: &mut [u32]) {
        let numbered = numbers.iter_mut().zip(hashes);
        if self.is_large {
            numbered.for_each(|(number, &hash)| {
                *number = self.candidate(hash);
                self.fetch_record(*number);
            });
        } else {
            numbered.for_each(|(number, &hash)| *number = self.candidate(hash));
        }
    }

    /// Has a record fetched, if there is one of that number.
    #[inline]
    pub(crate) fn fetch_record(&self, number: u32) {
        if let Some(session) = self.records.peek(number) {
            ahead::fetch(&session.last_seen);
        }
    }

    #[inline]
    pub(crate) fn candidate(&self, hash: u64) -> u32 {
        self.index.first(hash) >> 1
    }

    /// Has the line fetched that a new session goes to where its home line has no room for it.
    #[inline]
    pub(crate) fn fetch_next(&self, hash: u64) {
        self.index.fetch_next(hash);
    }

    /// Stores a session under both keys. **Errors:** [`TableFull`]; nothing has changed then.
    pub(crate) fn insert(&mut self, session: Session) -> Result<u32, TableFull> {
        let hashes = self.hashes(&session);
        two_keys::insert(&mut self.index, &mut self.records, session, hashes)
    }

    /// What is to be removed of a session.
    #[inline]
    pub(crate) fn seek(&self, session: &Session) -> SoughtTwice {
        SoughtTwice::new(&self.index, self.hashes(session))
    }

    /// Has the index lines of a session fetched.
    #[inline]
    pub(crate) fn fetch_homes(&self, sought: &SoughtTwice) {
        sought.fetch_homes(&self.index);
    }

    /// Looks for a session in those lines, which should have come.
    #[inline]
    pub(crate) fn look_for(&self, sought: &mut SoughtTwice, number: u32) {
        sought.look_for(&self.index, number);
    }

    /// Removes a session, and returns what it was.
    #[inline]
    pub(crate) fn remove(&mut self, number: u32, sought: &SoughtTwice) -> Session {
        let session = *self.records.get(number);
        two_keys::remove(&mut self.index, &mut self.records, number, sought);
        session
    }

    pub(crate) fn hashes(&self, session: &Session) -> Hashes {
        let (protocol, remote) = (session.kind.protocol() as u8, session.remote_word());
        let outbound = Key::new(protocol, session.internal_word(), remote, session.outbound_ports());
        let inbound = Key::new(protocol, remote, self.externals.wire(Outer::of(session)), session.inbound_ports());
        Hashes { inner: self.hash.of(Side::Inside, outbound), outer: self.hash.of(Side::Outside, inbound) }
    }
}

fn address(endpoint: Endpoint) -> U32 {
    U32::new(endpoint.address.to_bits())
}

fn port(endpoint: Endpoint) -> U16 {
    U16::new(endpoint.port)
}

/// Who has a port and the endpoint behind it: a mapping, or the session that is alone under one and stands for it, or a bare mapping.
///
/// Most mappings never have a second session (a client's ports are seldom used towards two remotes), and need no record of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Mapping(u32),
    Session(u32),
    Bare(u32),
}

/// What a packet goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Session(u32),
    Bare(u32),
}

impl Holder {
    /// As indexes and port spaces keep it: below [`NUMBERS`]. Whether a port's is a bare mapping's, the port's protocol says.
    pub(crate) const fn value(self) -> u32 {
        match self {
            Self::Mapping(number) => number << 1,
            Self::Session(number) => number << 1 | 1,
            Self::Bare(number) => number,
        }
    }

    /// That of a protocol whose mappings are not bare.
    pub(crate) const fn of_value(value: u32) -> Self {
        if value & 1 == 0 { Self::Mapping(value >> 1) } else { Self::Session(value >> 1) }
    }
}

/// The key of a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MappingKey {
    pub(crate) protocol: Protocol,
    pub(crate) internal: Endpoint,
    /// The remote endpoint, as far as the mapping is for it alone.
    pub(crate) scope: Endpoint,
}

impl MappingKey {
    fn of(mapping: &Mapping) -> Self {
        Self { protocol: mapping.protocol(), internal: mapping.internal(), scope: mapping.scope() }
    }

    /// That of the mapping for which a session stands, where the index of mappings has it.
    fn of_sole(session: &Session) -> Option<Self> {
        let behaviour = session.sole().filter(|&behaviour| has_soles(behaviour))?;
        let scope = behaviour.scope(session.remote());
        Some(Self { protocol: session.kind.protocol(), internal: session.internal(), scope })
    }
}

/// Whether the index of mappings has those that a session stands for. Where a mapping is for one remote endpoint, the session's own key
/// finds it.
pub(crate) const fn has_soles(behaviour: MappingBehaviour) -> bool {
    !matches!(behaviour, MappingBehaviour::AddressAndPortDependent)
}

/// The mappings of a worker. Sessions that stand for theirs are found here, and are in no record.
pub(crate) struct Mappings<'m> {
    index: Index<'m>,
    pub(crate) records: Slab<'m, Mapping>,
    /// Mappings without a record.
    soles: u32,
    hasher: RandomState,
}

impl<'m> Mappings<'m> {
    pub(crate) fn new(index: Index<'m>, records: Slab<'m, Mapping>, hasher: RandomState) -> Self {
        debug_assert!(records.limit() <= NUMBERS / 2, "the configuration's limit");
        Self { index, records, soles: 0, hasher }
    }

    /// Mappings in all.
    pub(crate) fn live(&self) -> u32 {
        self.records.live() + self.soles
    }

    /// Whether there is room for another one beside so many bare ones. There always is for the record of one that has none.
    pub(crate) fn has_room(&self, bares: u32) -> bool {
        self.live() + bares < self.records.limit()
    }

    /// Who has the mapping of that key, whose hash is given.
    pub(crate) fn find(&self, sessions: &Sessions<'_>, key: &MappingKey, hash: u64) -> Option<Holder> {
        // What the index has under a hash alike may be any number.
        let is_it = |value| match Holder::of_value(value) {
            Holder::Mapping(number) => self.records.peek(number).is_some_and(|mapping| {
                mapping.protocol == key.protocol as u8 && mapping.internal() == key.internal && mapping.scope() == key.scope
            }),
            Holder::Session(number) => sessions.records.peek(number).is_some_and(|session| {
                session.kind.is_of(key.protocol) && session.internal() == key.internal && session.sole_scope() == Some(key.scope)
            }),
            Holder::Bare(_) => false,
        };
        self.index.find(hash, is_it).map(Holder::of_value)
    }

    /// Stores a mapping. **Errors:** [`TableFull`]; nothing has changed then.
    pub(crate) fn insert(&mut self, mapping: Mapping) -> Result<u32, TableFull> {
        let hash = self.hash(&MappingKey::of(&mapping));
        let number = self.records.insert(mapping).ok_or(TableFull)?;
        if self.index.insert(hash, Holder::Mapping(number).value()).is_err() {
            self.records.remove(number);
            return Err(TableFull);
        }
        Ok(number)
    }

    /// Removes a mapping and returns what it was.
    pub(crate) fn remove(&mut self, number: u32) -> Mapping {
        let mapping = *self.records.get(number);
        let removed = self.index.remove(self.hash(&MappingKey::of(&mapping)), Holder::Mapping(number).value());
        debug_assert!(removed, "mapping {number} was not under its key");
        self.records.remove(number);
        mapping
    }

    /// Has session `number` stand for its mapping, whose [`Mappings::hash_of_sole`] is given. **Errors:** [`TableFull`]; nothing has changed
    /// then.
    pub(crate) fn insert_sole(&mut self, number: u32, hash: Option<u64>) -> Result<(), TableFull> {
        if let Some(hash) = hash {
            self.index.insert(hash, Holder::Session(number).value()).map_err(|_| TableFull)?;
        }
        self.soles += 1;
        Ok(())
    }

    /// Ends the mapping that session `number` stands for, and whose [`Mappings::seek_sole`] is given.
    #[inline]
    pub(crate) fn remove_sole(&mut self, number: u32, sought: Option<&Sought>) {
        if let Some(sought) = sought {
            let removed = self.index.remove_sought(sought, Holder::Session(number).value());
            debug_assert!(removed, "the mapping of session {number} was not under its key");
        }
        self.soles -= 1;
    }

    /// The hash under which the mapping is found that a session stands for; none where the session's own keys suffice.
    pub(crate) fn hash_of_sole(&self, session: &Session) -> Option<u64> {
        MappingKey::of_sole(session).map(|key| self.hash(&key))
    }

    /// What is to be removed of the mapping that a session stands for, where the index has it.
    #[inline]
    pub(crate) fn seek_sole(&self, session: &Session) -> Option<Sought> {
        self.hash_of_sole(session).map(|hash| self.index.seek(hash))
    }

    /// Has the index line of the mapping that a session stands for fetched.
    #[inline]
    pub(crate) fn fetch_home(&self, sought: &Sought) {
        self.index.fetch_home(sought);
    }

    /// Looks for the mapping that session `number` stands for in that line, which should have come.
    #[inline]
    pub(crate) fn look_for_sole(&self, sought: &mut Sought, number: u32) {
        self.index.look_for(sought, Holder::Session(number).value());
    }

    /// Has the index line of a mapping fetched.
    pub(crate) fn fetch_line(&self, hash: u64) {
        self.index.fetch(hash);
    }

    /// Has the line after it fetched where the search for a new mapping, or that mapping itself, goes on to it.
    pub(crate) fn fetch_next(&self, hash: u64) {
        self.index.fetch_next(hash);
    }

    pub(crate) fn hash(&self, key: &MappingKey) -> u64 {
        let MappingKey { protocol, internal, scope } = key;
        let addresses = u64::from(internal.address.to_bits()) << 32 | u64::from(scope.address.to_bits());
        let rest = (*protocol as u64) << 32 | u64::from(internal.port) << 16 | u64::from(scope.port);
        self.hasher.hash_one(u128::from(addresses) << 64 | u128::from(rest))
    }
}
