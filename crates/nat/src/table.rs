//! The session table and the mapping table: records with the indexes that find them.
//!
//! Knows keys and records, no packets and no policy. Invariant: a session is in the index twice, by (protocol, internal, remote) and
//! by (protocol, external, remote); no two sessions share either key. A mapping is there once, by (protocol, internal, scope).

use ahash::RandomState;

use crate::index::Index;
use crate::policy::{Endpoint, Protocol};
use crate::record::{Mapping, Session};
use crate::slab::Slab;

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableFull;

/// From which side a session is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Internal = 0,
    External = 1,
}

/// Two words that tell a key from all others: the addresses; the ports, the protocol and the kind of key.
type Words = (u64, u64);

#[inline]
fn words(kind: u8, protocol: u8, one: Endpoint, other: Endpoint) -> Words {
    let addresses = u64::from(one.address.to_bits()) << 32 | u64::from(other.address.to_bits());
    let ports = u64::from(one.port) << 32 | u64::from(other.port) << 16 | u64::from(protocol) << 8 | u64::from(kind);
    (addresses, ports)
}

/// The sessions of a worker.
pub(crate) struct Sessions<'m> {
    index: Index<'m>,
    pub(crate) records: Slab<'m, Session>,
    hasher: RandomState,
}

/// An index value: the session's number, and in the lowest bit the key that it stands for.
const fn value_of(number: u32, key: Key) -> u32 {
    number << 1 | key as u32
}

impl<'m> Sessions<'m> {
    pub(crate) fn new(index: Index<'m>, records: Slab<'m, Session>, hasher: RandomState) -> Self {
        Self { index, records, hasher }
    }

    /// The session of packets from `internal` to `remote`.
    #[inline]
    pub(crate) fn find_outbound(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Option<u32> {
        let hash = self.hasher.hash_one(words(Key::Internal as u8, protocol as u8, internal, remote));
        let found = self.index.find(hash, |value| {
            value & 1 == Key::Internal as u32 && {
                let session = self.records.get(value >> 1);
                session.protocol == protocol as u8 && session.internal() == internal && session.remote() == remote
            }
        });
        found.map(|value| value >> 1)
    }

    /// The session of packets from `remote` to `external`.
    #[inline]
    pub(crate) fn find_inbound(&self, protocol: Protocol, external: Endpoint, remote: Endpoint) -> Option<u32> {
        let hash = self.hasher.hash_one(words(Key::External as u8, protocol as u8, external, remote));
        let found = self.index.find(hash, |value| {
            value & 1 == Key::External as u32 && {
                let session = self.records.get(value >> 1);
                session.protocol == protocol as u8 && session.external() == external && session.remote() == remote
            }
        });
        found.map(|value| value >> 1)
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
        let (internal, external, remote) = (session.internal(), session.external(), session.remote());
        (
            self.hasher.hash_one(words(Key::Internal as u8, session.protocol, internal, remote)),
            self.hasher.hash_one(words(Key::External as u8, session.protocol, external, remote)),
        )
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
        let hash = self.hash(protocol as u8, internal, scope);
        self.index.find(hash, |number| {
            let mapping = self.records.get(number);
            mapping.protocol == protocol as u8 && mapping.internal() == internal && mapping.scope() == scope
        })
    }

    /// Stores a mapping. **Errors:** [`TableFull`]; nothing has changed then.
    pub(crate) fn insert(&mut self, mapping: Mapping) -> Result<u32, TableFull> {
        let hash = self.hash(mapping.protocol, mapping.internal(), mapping.scope());
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
        let removed = self.index.remove(self.hash(mapping.protocol, mapping.internal(), mapping.scope()), number);
        debug_assert!(removed, "mapping {number} was not under its key");
        self.records.remove(number);
        mapping
    }

    fn hash(&self, protocol: u8, internal: Endpoint, scope: Endpoint) -> u64 {
        self.hasher.hash_one(words(2, protocol, internal, scope))
    }
}
