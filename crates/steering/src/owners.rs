//! The owner functions: which worker has a subscriber, an external endpoint, a datagram in fragments.
//!
//! Knows hashes and a table of workers, no packets. Asked by the NAT for every packet (step 4) and for the ports that it may allocate.
//! Invariants: the same value in every worker gives the same answers; every external endpoint has exactly one owner.
//!
//! ```text
//! inside:  low bits of Toeplitz(inside key, source address)                        ┐
//! outside: low bits of Toeplitz(outside key, destination address and port)         ├─ table ─ worker
//! a later fragment from outside: (destination address, identification) as outside  ┘
//! ```

use core::net::Ipv4Addr;
use std::sync::Arc;

use crate::toeplitz::{ByteTable, Key};

/// A worker's number, from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

/// 64-bit words of a set of ports: bit `n % 64` of word `n / 64` is port `n`.
pub const PORT_WORDS: usize = 1024;

/// Where the destination address and port begin in the input of a TCP or UDP packet. **Units:** bytes.
const DESTINATION: usize = 4;
const DESTINATION_PORT: usize = 10;

/// The rule that says who owns what. The same in every worker; cheap to clone.
#[derive(Clone)]
pub struct Owners {
    workers: u16,
    rule: Option<Arc<Rule>>,
}

struct Rule {
    inside: [ByteTable; 4],
    outside: [ByteTable; 6],
    /// By the low bits of a hash. A power of two long.
    table: Vec<WorkerId>,
}

impl core::fmt::Debug for Owners {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Owners").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Owners {
    /// One worker, which owns everything.
    pub const fn single() -> Self {
        Self { workers: 1, rule: None }
    }

    /// Owners by what `inside` makes of a source address and `outside` of a destination address and port; the low bits choose from
    /// `table`. **Panics:** when `table` is empty or its length is no power of two.
    pub fn new(inside: &Key, outside: &Key, table: Vec<WorkerId>) -> Self {
        assert!(table.len().is_power_of_two(), "a table of {} entries", table.len());
        let workers = table.iter().map(|worker| worker.0 + 1).max().unwrap_or(1);
        let position = |byte: usize| if byte < 4 { DESTINATION + byte } else { DESTINATION_PORT + byte - 4 };
        let rule = Rule {
            inside: core::array::from_fn(|byte| ByteTable::new(inside, byte)),
            outside: core::array::from_fn(|byte| ByteTable::new(outside, position(byte))),
            table,
        };
        Self { workers, rule: Some(Arc::new(rule)) }
    }

    /// How many workers there are.
    pub const fn workers(&self) -> u16 {
        self.workers
    }

    /// The owner of an internal address, with all its mappings and sessions.
    #[inline]
    pub fn of_subscriber(&self, address: Ipv4Addr) -> WorkerId {
        let Some(rule) = &self.rule else { return WorkerId(0) };
        rule.worker(sum(&rule.inside, &address.octets()))
    }

    /// The owner of an external endpoint: the worker that its inbound packets reach.
    #[inline]
    pub fn of_external(&self, address: Ipv4Addr, port: u16) -> WorkerId {
        let Some(rule) = &self.rule else { return WorkerId(0) };
        rule.worker(rule.outside_hash(address, port))
    }

    /// The worker that puts the fragments of a datagram from outside in order.
    #[inline]
    pub fn of_datagram(&self, destination: Ipv4Addr, identification: u16) -> WorkerId {
        self.of_external(destination, identification)
    }

    /// The ports of an external address that a worker owns. **Shape:** see [`PORT_WORDS`]. **Cost:** cold; 65,536 look-ups.
    pub fn ports_of(&self, address: Ipv4Addr, worker: WorkerId) -> Box<[u64; PORT_WORDS]> {
        let mut words = Box::new([0; PORT_WORDS]);
        for port in 0..=u16::MAX {
            if self.of_external(address, port) == worker {
                words[usize::from(port) / 64] |= 1 << (port % 64);
            }
        }
        words
    }
}

impl Rule {
    #[inline]
    fn outside_hash(&self, address: Ipv4Addr, port: u16) -> u32 {
        let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
        sum(&self.outside, &[a, b, c, d, high, low])
    }

    #[inline]
    fn worker(&self, hash: u32) -> WorkerId {
        self.table[hash as usize & (self.table.len() - 1)]
    }
}

#[inline]
fn sum<const N: usize>(tables: &[ByteTable; N], bytes: &[u8; N]) -> u32 {
    tables.iter().zip(bytes).fold(0, |hash, (table, &byte)| hash ^ table.of(byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toeplitz::LONGEST_KEY;

    fn owners(workers: u16) -> Owners {
        let key = |seed: u8| Key::new(core::array::from_fn(|at| (at as u8 ^ seed).wrapping_mul(0x9d).wrapping_add(seed)));
        assert_eq!(key(1).bytes().len(), LONGEST_KEY);
        Owners::new(&key(1), &key(77), (0..128).map(|entry| WorkerId(entry % workers)).collect())
    }

    #[test]
    fn one_worker_owns_everything() {
        let owners = Owners::single();
        let subscriber = owners.of_subscriber(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(subscriber, owners.of_external(Ipv4Addr::new(203, 0, 113, 1), 1024));
        assert_eq!(owners.ports_of(Ipv4Addr::LOCALHOST, WorkerId(0)).iter().map(|word| word.count_ones()).sum::<u32>(), 65_536);
    }

    #[test]
    fn every_port_has_exactly_one_owner() {
        let owners = owners(3);
        let address = Ipv4Addr::new(203, 0, 113, 10);
        let sets: Vec<_> = (0..3).map(|worker| owners.ports_of(address, WorkerId(worker))).collect();
        for word in 0..PORT_WORDS {
            assert_eq!(sets.iter().fold(0, |all, set| all | set[word]), u64::MAX);
            assert_eq!(sets.iter().map(|set| set[word].count_ones()).sum::<u32>(), 64);
        }
        assert_eq!(owners.workers(), 3);
    }
}
