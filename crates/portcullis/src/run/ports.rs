//! Whether every worker has its share of the external ports, and what the log is told where one has not.
//!
//! Knows a policy and the owners. Called at start, once the owners are chosen, and whenever the external ports have changed: the owners
//! stay then. Invariant: a worker that has no port of an address is named, with its pool. Tests: below; `steering`, `tests/shares.rs`.

use std::collections::BTreeMap;

use portcullis_nat::policy::{External, Policy};
use portcullis_steering::Owners;
use portcullis_steering::shares::{AddressPorts, Shortage, shortages};

/// The most addresses that the log names at once. Chosen: what fits a screen.
const ADDRESSES_MOST: usize = 16;

/// The ports that mappings may take, of each address that is there.
pub(super) fn of(policy: &Policy) -> Vec<AddressPorts<'_>> {
    present(policy).map(|(_, ports)| ports).collect()
}

fn present(policy: &Policy) -> impl Iterator<Item = (&External, AddressPorts<'_>)> {
    policy
        .externals
        .iter()
        .filter_map(|external| Some((external, AddressPorts { address: external.address?, ports: external.ports.words() })))
}

/// Tells the log which workers lack ports.
pub(super) fn warn(policy: &Policy, owners: &Owners) {
    for line in lines(policy, owners) {
        tracing::warn!("{line}");
    }
}

/// A line for each address that some worker lacks ports of, at most [`ADDRESSES_MOST`] of them.
fn lines(policy: &Policy, owners: &Owners) -> Vec<String> {
    let (externals, wanted): (Vec<_>, Vec<_>) = present(policy).unzip();
    let mut by_address: BTreeMap<usize, Vec<Shortage>> = BTreeMap::new();
    for shortage in shortages(owners, &wanted) {
        by_address.entry(shortage.place).or_default().push(shortage);
    }
    let more = by_address.len().saturating_sub(ADDRESSES_MOST);
    let one = |(&place, lacks): (&usize, &Vec<Shortage>)| line(externals[place], &wanted[place], lacks, owners.workers());
    let rest = (more > 0).then(|| format!("and so of {more} more external addresses"));
    by_address.iter().take(ADDRESSES_MOST).map(one).chain(rest).collect()
}

fn line(external: &External, wanted: &AddressPorts<'_>, lacks: &[Shortage], workers: u16) -> String {
    let (pool, address, ports) = (&external.pool, wanted.address, external.ports.len());
    let who: Vec<_> = lacks.iter().map(|lack| format!("worker {} has {}", lack.worker.0, lack.has)).collect();
    let why = if ports < u32::from(workers) {
        format!(
            "there are fewer ports than the {workers} workers, so some hosts get none: give the pool more ports, or set worker.count lower"
        )
    } else {
        "their hosts may be told that ports are exhausted while others have some: give the pool more ports, or start again for another key"
            .to_owned()
    };
    format!("pool {pool}: of the {ports} ports of {address}, {}; {why}", who.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::spread::{NicTouch, Spread, Spreading};
    use portcullis_config::{Config, HostAddresses};
    use portcullis_nat::policy::Side;

    fn policy(ports: &str) -> Policy {
        let text = format!(
            "[[interface]]\nname = \"in0\"\nside = \"inside\"\n[[interface]]\nname = \"out0\"\nside = \"outside\"\n\
             [[pool]]\nname = \"small\"\naddresses = [\"203.0.113.10-203.0.113.11\", \"interface\"]\nports = \"{ports}\"\n"
        );
        let (config, _) = Config::parse(&text, "test.toml").expect("legal");
        config.policy(&HostAddresses::default())
    }

    fn owners(policy: &Policy, workers: u16) -> Owners {
        let devices = [("in0", Side::Inside), ("out0", Side::Outside)];
        let devices = devices.map(|(name, side)| Spreading { name: name.into(), queues: 4, sides: vec![side] });
        Spread::choose(devices.into(), workers, &of(policy), NicTouch::LeaveAlone).expect("random numbers").choice.owners
    }

    #[test]
    fn a_pool_of_128_ports_gives_each_of_four_workers_its_share_whatever_is_drawn() {
        let policy = policy("1024-1151");
        assert_eq!(of(&policy).len(), 2, "the interface has no address");
        for _ in 0..500 {
            let owners = owners(&policy, 4);
            assert_eq!(lines(&policy, &owners), [""; 0]);
            for shares in owners.shares(&of(&policy)) {
                assert!(shares.iter().all(|&has| has >= 16) && shares.iter().sum::<u32>() == 128, "{shares:?}");
            }
        }
    }

    #[test]
    fn workers_without_ports_are_named_with_their_pool() {
        let policy = policy("5000-5002");
        let owners = owners(&policy, 4);
        let lines = lines(&policy, &owners);
        assert_eq!(lines.len(), 2, "{lines:?}");
        let (none, _) =
            owners.shares(&of(&policy))[0].iter().enumerate().find(|&(_, &has)| has == 0).expect("three ports for four");
        let said =
            format!("pool small: of the 3 ports of 203.0.113.10, worker {none} has 0; there are fewer ports than the 4 workers");
        assert!(lines[0].starts_with(&said), "{lines:?}");
    }

    #[test]
    fn another_pool_under_the_same_owners_is_looked_at_again() {
        let (before, after) = (policy("1024-65535"), policy("7000-7003"));
        let lacks = |_| {
            let owners = owners(&before, 4);
            (lines(&before, &owners).len(), lines(&after, &owners).len())
        };
        let all: Vec<_> = (0..50).map(lacks).collect();
        assert!(all.iter().all(|&(before, _)| before == 0) && all.iter().any(|&(_, after)| after > 0), "{all:?}");
    }
}
