//! Small pools under drawn keys: every worker gets its share of the ports, and what no key can give is said.

mod common;

use core::net::Ipv4Addr;

use portcullis_steering::choose::{Choice, choose};
use portcullis_steering::fields::Side;
use portcullis_steering::key::is_proved;
use portcullis_steering::owners::PORT_WORDS;
use portcullis_steering::shares::{AddressPorts, Shortage, least_share, shortages};
use portcullis_steering::table::entries_for;
use portcullis_steering::{Owners, WorkerId};
use proptest::prelude::*;

use common::numbers;

const KEYS: u64 = 4000;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// The ports of a range, both ends included.
fn range(first: u16, last: u16) -> Box<[u64; PORT_WORDS]> {
    let mut ports = Box::new([0; PORT_WORDS]);
    (first..=last).for_each(|port| ports[usize::from(port) / 64] |= 1 << (port % 64));
    ports
}

fn owners(workers: u16, wanted: &[AddressPorts<'_>], seed: u64) -> Owners {
    Owners::software(workers, wanted, &mut numbers(seed)).expect("owners")
}

/// Of so many keys, those that leave a worker without ports, and those that leave one without its share.
fn counted(workers: u16, wanted: &[AddressPorts<'_>], drawn_for: &[AddressPorts<'_>]) -> (usize, usize) {
    let lacks = |seed| shortages(&owners(workers, drawn_for, seed), wanted);
    let lacks: Vec<_> = (0..KEYS).map(lacks).filter(|lacks| !lacks.is_empty()).collect();
    (lacks.iter().filter(|lacks| lacks.iter().any(|lack| lack.has == 0)).count(), lacks.len())
}

/// The counts are those of docs/steering.md.
#[test]
fn no_key_that_is_drawn_for_a_small_pool_leaves_a_worker_without_its_share() {
    let rows = [
        ((1024, 1151), [(2, (23, 23)), (4, (42, 42)), (8, (93, 93))]),
        ((40_001, 40_128), [(2, (11, 25)), (4, (66, 66)), (8, (141, 141))]),
        ((2000, 2063), [(2, (27, 27)), (4, (121, 121)), (8, (230, 230))]),
    ];
    for ((first, last), counts) in rows {
        let ports = range(first, last);
        let wanted = [AddressPorts { address: ADDRESS, ports: &ports }];
        for (workers, lacking) in counts {
            assert_eq!(counted(workers, &wanted, &[]), lacking, "{first}-{last}, {workers} workers, any keys");
            assert_eq!(counted(workers, &wanted, &wanted), (0, 0), "{first}-{last}, {workers} workers");
        }
    }
}

#[test]
fn a_pool_of_as_many_ports_as_workers_gives_each_one_where_the_bits_allow() {
    for (workers, first) in [(2, 5000), (4, 4096), (8, 8000)] {
        let ports = range(first, first + workers - 1);
        let wanted = [AddressPorts { address: ADDRESS, ports: &ports }];
        for seed in 0..200 {
            assert_eq!(owners(workers, &wanted, seed).shares(&wanted), [vec![1; usize::from(workers)]]);
        }
    }
}

#[test]
fn fewer_ports_than_workers_go_to_as_many_workers_and_the_others_are_named() {
    let ports = range(7000, 7002);
    let wanted = [AddressPorts { address: ADDRESS, ports: &ports }];
    for seed in 0..200 {
        let owners = owners(8, &wanted, seed);
        let lacks = shortages(&owners, &wanted);
        assert_eq!(lacks.len(), 5, "{:?}", owners.shares(&wanted));
        assert!(lacks.iter().all(|lack| *lack == Shortage { place: 0, worker: lack.worker, has: 0, least: 1 }));
    }
}

#[test]
fn no_ports_are_no_shortage_and_cost_no_draw() {
    let ports = range(1, 0);
    let wanted = [AddressPorts { address: ADDRESS, ports: &ports }];
    assert_eq!(owners(4, &wanted, 3), owners(4, &[], 3));
    assert_eq!(shortages(&owners(4, &wanted, 3), &wanted), []);
}

#[test]
fn a_large_pool_keeps_the_first_key() {
    let ports = range(1024, 65_535);
    let wanted: Vec<_> = (0..=255).map(|last| AddressPorts { address: Ipv4Addr::new(203, 0, 113, last), ports: &ports }).collect();
    for seed in 0..20 {
        assert_eq!(owners(5, &wanted, seed), owners(5, &[], seed));
    }
}

#[test]
fn random_numbers_that_end_leave_the_best_key_so_far() {
    let ports = range(7000, 7002);
    let wanted = [AddressPorts { address: ADDRESS, ports: &ports }];
    let few = Owners::software(8, &wanted, &mut numbers(2).take(200)).expect("some keys");
    assert_eq!(few.workers(), 8);
    assert!(Owners::software(8, &wanted, &mut numbers(2).take(5)).is_err());
}

#[test]
fn the_choice_draws_for_the_pool_too() {
    let ports = range(1024, 1151);
    let wanted = [AddressPorts { address: ADDRESS, ports: &ports }];
    for seed in 0..KEYS / 4 {
        let Choice { owners, .. } = choose(&[], 4, &wanted, &mut numbers(seed)).expect("a choice");
        assert_eq!(shortages(&owners, &wanted), []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The shares are what is counted port by port.
    #[test]
    fn shares_are_what_is_counted(workers in 1_u16..=16, seed: u64, addresses: [u32; 3], ranges: [(u16, u16); 2]) {
        let sets = ranges.map(|(one, other)| range(one.min(other), one.max(other)));
        let wanted: Vec<_> =
            addresses.iter().zip([0, 0, 1]).map(|(&address, set)| AddressPorts { address: address.into(), ports: &sets[set] }).collect();
        let owners = owners(workers, &[], seed);
        for (wanted, shares) in wanted.iter().zip(owners.shares(&wanted)) {
            let mut counts = vec![0; usize::from(workers)];
            let set = (0..=u16::MAX).filter(|&port| wanted.ports[usize::from(port) / 64] >> (port % 64) & 1 == 1);
            set.for_each(|port| counts[usize::from(owners.of_external(wanted.address, port).0)] += 1);
            prop_assert_eq!(shares, counts);
        }
    }

    /// Wherever a pool lies: proved keys, the same for the same seed, and with 16 ports for each worker all have their share of every address.
    #[test]
    fn every_worker_has_its_share_wherever_the_pool_lies(workers in 2_u16..=16, seed: u64, base: u32, first in 1_u16..60_000, more in 0_u16..500) {
        let ports = range(first, first + 16 * workers + more - 1);
        let wanted: Vec<_> = (0..4).map(|n| AddressPorts { address: Ipv4Addr::from(base.wrapping_add(n)), ports: &ports }).collect();
        let drawn = owners(workers, &wanted, seed);
        prop_assert_eq!(&drawn, &owners(workers, &wanted, seed));
        prop_assert!(is_proved(drawn.outside_key().unwrap(), Side::Outside, entries_for(workers).ilog2()));
        let least = least_share(u32::from(16 * workers + more), workers);
        for shares in drawn.shares(&wanted) {
            prop_assert!(shares.iter().all(|&has| has >= least), "{shares:?}");
        }
        prop_assert!(drawn.of_external(base.into(), first) < WorkerId(workers));
    }
}
