//! The session table and the mapping table: records with the indexes that find them.
//!
//! Knows keys and records, no packets and no policy. Invariant: a session is in the index twice, by (protocol, internal, remote) and
//! by (protocol, external, remote), where the slot stands for the external address; no two sessions share either key. A mapping is there
//! once, by (protocol, internal, scope).

use core::net::Ipv4Addr;

use ahash::RandomState;

use crate::index::{Index, NUMBERS};
use crate::policy::{Endpoint, Protocol};
use crate::record::{Generation, Mapping, Session};
use crate::slab::{NONE, Slab};

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableFull;

/// From which side a session is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Internal = 0,
    External = 1,
}

/// A number that tells a key from all others: the addresses; the ports, the protocol and the kind of key.
type Words = u128;

#[inline]
fn words(kind: u8, protocol: Protocol, one: Endpoint, other: Endpoint) -> Words {
    let addresses = u64::from(one.address.to_bits()) << 32 | u64::from(other.address.to_bits());
    let ports = u64::from(one.port) << 32 | u64::from(other.port) << 16 | (protocol as u64) << 8 | u64::from(kind);
    u128::from(addresses) << 64 | u128::from(ports)
}

/// An external endpoint as sessions are found by it: the slot of its address with the generation, and the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outer {
    pub(crate) slot: u16,
    pub(crate) generation: Generation,
    pub(crate) port: u16,
}

impl Outer {
    #[inline]
    pub(crate) fn of(session: &Session) -> Self {
        Self { slot: session.slot, generation: session.generation(), port: session.external_port }
    }

    /// In an endpoint's place in a key: no internal address need differ from it, since the kind of key does.
    #[inline]
    fn as_endpoint(self) -> Endpoint {
        Endpoint { address: Ipv4Addr::from_bits(u32::from(self.slot) << 8 | u32::from(self.generation.number())), port: self.port }
    }
}

/// The sessions of a worker.
pub(crate) struct Sessions<'m> {
    index: Index<'m>,
    pub(crate) records: Slab<'m, Session>,
    hasher: RandomState,
}

/// The session that a packet most likely belongs to: the one that the index has under the hash of its key.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    words: Words,
    hash: u64,
    number: u32,
}

impl Candidate {
    /// Of no packet.
    pub(crate) const NONE: Self = Self { words: 0, hash: 0, number: NONE };

    /// The session's number; none where the index has nothing.
    #[inline]
    pub(crate) fn number(&self) -> Option<u32> {
        (self.number != NONE).then_some(self.number)
    }

    /// Whether a session has the packet's key, of one from inside.
    #[inline]
    pub(crate) fn is_outbound(&self, session: &Session) -> bool {
        self.words == words(Key::Internal as u8, session.kind.protocol(), session.internal(), session.remote())
    }

    /// The same of one from outside.
    #[inline]
    pub(crate) fn is_inbound(&self, session: &Session) -> bool {
        self.words == words(Key::External as u8, session.kind.protocol(), Outer::of(session).as_endpoint(), session.remote())
    }
}

/// What the index has of a session: its number, and in the lowest bit the key that it stands for.
const fn value_of(number: u32, key: Key) -> u32 {
    number << 1 | key as u32
}

/// Sessions that the index can tell apart, by [`value_of`].
const MOST_SESSIONS: u32 = NUMBERS / 2;

impl<'m> Sessions<'m> {
    pub(crate) fn new(index: Index<'m>, records: Slab<'m, Session>, hasher: RandomState) -> Self {
        debug_assert!(records.limit() <= MOST_SESSIONS, "the configuration's limit");
        Self { index, records, hasher }
    }

    /// The session of packets from `internal` to `remote`.
    #[inline]
    pub(crate) fn find_outbound(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Option<u32> {
        let found = self.index.find(self.hash_outbound(protocol, internal, remote), |value| {
            value & 1 == Key::Internal as u32 && self.is_outbound(value >> 1, protocol, internal, remote)
        });
        found.map(|value| value >> 1)
    }

    /// The session of packets from `remote` to `external`.
    #[inline]
    pub(crate) fn find_inbound(&self, protocol: Protocol, external: Outer, remote: Endpoint) -> Option<u32> {
        let found = self.index.find(self.hash_inbound(protocol, external, remote), |value| {
            value & 1 == Key::External as u32 && self.is_inbound(value >> 1, protocol, external, remote)
        });
        found.map(|value| value >> 1)
    }

    #[inline]
    fn is_outbound(&self, number: u32, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> bool {
        let session = self.records.get(number);
        session.kind.is_of(protocol) && session.internal() == internal && session.remote() == remote
    }

    #[inline]
    fn is_inbound(&self, number: u32, protocol: Protocol, external: Outer, remote: Endpoint) -> bool {
        let session = self.records.get(number);
        session.kind.is_of(protocol) && Outer::of(session) == external && session.remote() == remote
    }

    #[inline]
    fn hash_outbound(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> u64 {
        self.hasher.hash_one(words(Key::Internal as u8, protocol, internal, remote))
    }

    #[inline]
    fn hash_inbound(&self, protocol: Protocol, external: Outer, remote: Endpoint) -> u64 {
        self.hasher.hash_one(words(Key::External as u8, protocol, external.as_endpoint(), remote))
    }

    /// Of a packet from inside; [`Sessions::look`] comes next.
    #[inline]
    pub(crate) fn outbound_candidate(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Candidate {
        self.candidate(words(Key::Internal as u8, protocol, internal, remote))
    }

    /// Of a packet from outside.
    #[inline]
    pub(crate) fn inbound_candidate(&self, protocol: Protocol, external: Outer, remote: Endpoint) -> Candidate {
        self.candidate(words(Key::External as u8, protocol, external.as_endpoint(), remote))
    }

    #[inline]
    fn candidate(&self, words: Words) -> Candidate {
        Candidate { words, hash: self.hasher.hash_one(words), number: NONE }
    }

    /// Looks for the key's hash in the index, and at no record.
    #[inline]
    pub(crate) fn look(&self, candidate: &mut Candidate) {
        if candidate.words != 0 {
            candidate.number = self.index.find(candidate.hash, |_| true).map_or(NONE, |value| value >> 1);
        }
    }

    /// Reads something of the records, all independently, so that the processor fetches them at once.
    #[inline]
    pub(crate) fn touch<'c>(&self, candidates: impl Iterator<Item = &'c Candidate>) {
        let read = candidates.filter_map(Candidate::number).map(|number| self.records.get(number).last_seen);
        core::hint::black_box(read.fold(0, |all, one| all | one));
    }

    /// Stores a session under both keys. **Errors:** [`TableFull`]; nothing has changed then.
    pub(crate) fn insert(&mut self, session: Session) -> Result<u32, TableFull> {
        let (inner, outer) = self.hashes(&session);
        let number = self.records.insert(session).ok_or(TableFull)?;
        if self.index.insert(inner, value_of(number, Key::Internal)).is_err() {
            self.records.remove(number);
            return Err(TableFull);
        }
        if self.index.insert(outer, value_of(number, Key::External)).is_err() {
            self.index.remove(inner, value_of(number, Key::Internal));
            self.records.remove(number);
            return Err(TableFull);
        }
        Ok(number)
    }

    /// Removes a session and returns what it was.
    pub(crate) fn remove(&mut self, number: u32) -> Session {
        let session = *self.records.get(number);
        let (inner, outer) = self.hashes(&session);
        let removed =
            self.index.remove(inner, value_of(number, Key::Internal)) && self.index.remove(outer, value_of(number, Key::External));
        debug_assert!(removed, "session {number} was not under its keys");
        self.records.remove(number);
        session
    }

    fn hashes(&self, session: &Session) -> (u64, u64) {
        let (protocol, remote) = (session.kind.protocol(), session.remote());
        (self.hash_outbound(protocol, session.internal(), remote), self.hash_inbound(protocol, Outer::of(session), remote))
    }
}

/// The mappings of a worker.
pub(crate) struct Mappings<'m> {
    index: Index<'m>,
    pub(crate) records: Slab<'m, Mapping>,
    hasher: RandomState,
}

impl<'m> Mappings<'m> {
    pub(crate) fn new(index: Index<'m>, records: Slab<'m, Mapping>, hasher: RandomState) -> Self {
        Self { index, records, hasher }
    }

    /// The mapping of `internal` for `scope`.
    pub(crate) fn find(&self, protocol: Protocol, internal: Endpoint, scope: Endpoint) -> Option<u32> {
        let hash = self.hash(protocol, internal, scope);
        self.index.find(hash, |number| {
            let mapping = self.records.get(number);
            mapping.protocol == protocol as u8 && mapping.internal() == internal && mapping.scope() == scope
        })
    }

    /// Stores a mapping. **Errors:** [`TableFull`]; nothing has changed then.
    pub(crate) fn insert(&mut self, mapping: Mapping) -> Result<u32, TableFull> {
        let hash = self.hash(mapping.protocol(), mapping.internal(), mapping.scope());
        let number = self.records.insert(mapping).ok_or(TableFull)?;
        if self.index.insert(hash, number).is_err() {
            self.records.remove(number);
            return Err(TableFull);
        }
        Ok(number)
    }

    /// Removes a mapping and returns what it was.
    pub(crate) fn remove(&mut self, number: u32) -> Mapping {
        let mapping = *self.records.get(number);
        let removed = self.index.remove(self.hash(mapping.protocol(), mapping.internal(), mapping.scope()), number);
        debug_assert!(removed, "mapping {number} was not under its key");
        self.records.remove(number);
        mapping
    }

    fn hash(&self, protocol: Protocol, internal: Endpoint, scope: Endpoint) -> u64 {
        self.hasher.hash_one(words(2, protocol, internal, scope))
    }
}
