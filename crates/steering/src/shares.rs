//! Whether every worker has its share of the external ports, and keys under which every worker has.
//!
//! Knows owners and sets of ports, no pools. Called at start, to draw the key of the outside, and whenever the external ports change, to
//! say who lacks some. Invariant: of the keys that were drawn, the one that is taken leaves the fewest workers without ports. Why a key
//! that spreads may do so all the same: docs/steering.md, "Small pools". Tests: below, and tests/shares.rs.

use core::net::Ipv4Addr;

use crate::fields::{Layout, Side};
use crate::key::{KeyError, synthesise};
use crate::owners::{Basis, OwnerRule, Owners, PORT_WORDS, WorkerId};
use crate::toeplitz::Key;

/// Keys that are drawn at most for a fair one. Chosen: of those for 128 ports, 24 of 25 and more are fair (a test counts); for as many ports as
/// workers, one in some.
pub const MOST_DRAWS: u32 = 64;

/// A worker should have half of an even share where that has so many ports. Chosen: below, half of it is a port or two more or less.
const EVEN_SHARE: u32 = 8;

/// The ports of an external address that mappings may take.
#[derive(Clone, Copy, Debug)]
pub struct AddressPorts<'p> {
    /// The address.
    pub address: Ipv4Addr,
    /// Its ports. **Shape:** see [`PORT_WORDS`].
    pub ports: &'p [u64; PORT_WORDS],
}

/// A worker that has fewer ports of an address than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The address, by its place among those that were asked about.
    pub place: usize,
    /// The worker.
    pub worker: WorkerId,
    /// The ports of the address that it has.
    pub has: u32,
    /// Those that it should have at least.
    pub least: u32,
}

/// How far a key falls short. **Order:** best first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Lack {
    /// Workers without any port of an address, beyond those that no key can help.
    without: u32,
    /// Ports that others lack.
    ports: u32,
}

/// How many of an address's ports a worker should have at least: half of an even share, or one where shares are small. None has to have
/// any of no port.
pub const fn least_share(ports: u32, workers: u16) -> u32 {
    let workers = if workers == 0 { 1 } else { workers as u32 };
    if ports / workers >= EVEN_SHARE {
        ports.div_ceil(2 * workers)
    } else if ports > 0 {
        1
    } else {
        0
    }
}

/// The workers that have fewer ports of an address than they should. **Cost:** cold; a look-up for each port of each set that differs from
/// the one before, and for each address one for each entry of the table.
pub fn shortages(owners: &Owners, wanted: &[AddressPorts<'_>]) -> Vec<Shortage> {
    let shares = owners.shares(wanted);
    let of_address = |(place, shares): (usize, &Vec<u32>)| {
        let least = least_share(shares.iter().sum(), owners.workers());
        let lacks = shares.iter().enumerate().filter(move |&(_, &has)| has < least);
        lacks.map(move |(worker, &has)| Shortage { place, worker: WorkerId(worker as u16), has, least }).collect::<Vec<_>>()
    };
    shares.iter().enumerate().flat_map(of_address).collect()
}

/// A key for the outside under which every worker has its share of `wanted` by `table`; or else the best of [`MOST_DRAWS`].
///
/// **Errors:** [`KeyError`] when `random` ends before the first key, or is not random.
pub fn draw_outside(
    table: &[WorkerId],
    wanted: &[AddressPorts<'_>],
    random: &mut impl Iterator<Item = u64>,
) -> Result<Key, KeyError> {
    let mut draw = || synthesise(Side::Outside, table.len().ilog2(), random);
    let lack = |key: &Key| {
        let rule = OwnerRule { basis: Basis::Hash { key: *key, layout: Layout::Kept }, table: table.to_vec() };
        lack_of(&Owners::by(rule.clone(), rule), wanted)
    };
    let first = draw()?;
    let mut best = (lack(&first), first);
    for _ in 1..MOST_DRAWS {
        if best.0 == Lack::default() {
            break;
        }
        let Ok(key) = draw() else { break };
        let other = (lack(&key), key);
        if other.0 < best.0 {
            best = other;
        }
    }
    Ok(best.1)
}

fn lack_of(owners: &Owners, wanted: &[AddressPorts<'_>]) -> Lack {
    let workers = u32::from(owners.workers());
    owners.shares(wanted).iter().fold(Lack::default(), |sum, shares| {
        let ports: u32 = shares.iter().sum();
        let least = least_share(ports, owners.workers());
        let without = shares.iter().filter(|&&has| has < least.min(1)).count() as u32;
        let lacking: u32 = shares.iter().filter(|&&has| has > 0).map(|&has| least.saturating_sub(has)).sum();
        // Of fewer ports than workers, some have none whatever the key.
        let hopeless = if least > 0 { workers.saturating_sub(ports) } else { 0 };
        Lack { without: sum.without + without.saturating_sub(hopeless), ports: sum.ports + lacking }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_even_share_is_asked_of_large_sets_and_one_port_of_small_ones() {
        let rows =
            [(0, 4, 0), (1, 4, 1), (3, 4, 1), (31, 4, 1), (32, 4, 4), (33, 4, 5), (128, 8, 8), (64_512, 1, 32_256), (5, 0, 1)];
        for (ports, workers, least) in rows {
            assert_eq!(least_share(ports, workers), least, "{ports} ports, {workers} workers");
        }
    }

    #[test]
    fn a_single_worker_lacks_nothing() {
        let wanted = [AddressPorts { address: Ipv4Addr::new(203, 0, 113, 1), ports: &[1; PORT_WORDS] }];
        assert_eq!(Owners::single().shares(&wanted), [[1024]]);
        assert_eq!(shortages(&Owners::single(), &wanted), []);
    }
}
