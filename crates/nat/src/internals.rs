//! The index and the port space by themselves, for the benchmark that compares them with library tables.
//!
//! Knows no more than their faces. Built with the feature `internals` only, which no other crate turns on.

use zerocopy::FromZeros as _;

use crate::index::{self, Index, Line};
use crate::policy::PortSet;
use crate::ports::{PortMemory, Wish};

/// The memory of an index.
pub struct Lines(Vec<Line>);

impl Lines {
    /// Memory for `entries` entries.
    pub fn new(entries: usize) -> Self {
        Self(vec![Line::new_zeroed(); Index::lines_for(entries, index::ROOMY)])
    }

    /// An empty index in it.
    pub fn index(&mut self) -> HashIndex<'_> {
        HashIndex(Index::new(&mut self.0))
    }
}

/// A hash index of record numbers.
pub struct HashIndex<'m>(Index<'m>);

impl HashIndex<'_> {
    /// Adds `value` under `hash`. Returns whether there was room.
    pub fn insert(&mut self, hash: u64, value: u32) -> bool {
        self.0.insert(hash, value).is_ok()
    }

    /// The first value under `hash` that `is_match` accepts.
    #[inline]
    pub fn find(&self, hash: u64, is_match: impl Fn(u32) -> bool) -> Option<u32> {
        self.0.find(hash, is_match)
    }
}

/// The ports of one external address for one protocol.
pub struct Ports(PortMemory);

impl Ports {
    /// A space in which `ports` are free.
    pub fn new(ports: &PortSet) -> Self {
        Self(PortMemory::new(ports))
    }

    /// Takes a free port at or after a random place.
    #[inline]
    pub fn allocate(&mut self, random: u16) -> Option<u16> {
        let mut space = self.0.space();
        let port = space.free_port(random, Wish::ANY)?;
        space.take(port, u32::from(port));
        Some(port)
    }

    /// Takes a port back.
    #[inline]
    pub fn release(&mut self, port: u16) {
        self.0.space().release(port);
    }
}
