//! What synthesised keys promise, over random keys, packets and tables: independence, spread, balance.
//!
//! Blind spot: a NIC that hashes otherwise than Microsoft says. That is for the guest with a real one.

mod common;

use core::net::Ipv4Addr;
use std::collections::BTreeSet;

use portcullis_steering::Owners;
use portcullis_steering::fields::{Field, HashFields, Side};
use portcullis_steering::key::{MOST_BITS, is_proved, synthesise};
use portcullis_steering::linear::{depends_only_on, is_independent_of, rank};
use portcullis_steering::table::blocks;
use portcullis_steering::toeplitz::{Input, Key};
use proptest::prelude::*;

use common::numbers;

fn key(side: Side, bits: u32, seed: u64) -> Key {
    synthesise(side, bits, &mut numbers(seed)).expect("a key")
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Inside), Just(Side::Outside)]
}

#[test]
fn a_third_or_more_of_random_keys_are_good() {
    for (side, bits) in [Side::Inside, Side::Outside].into_iter().flat_map(|side| (1..=MOST_BITS).map(move |bits| (side, bits))) {
        let mut drawn = 0_u64;
        for seed in 0..100 {
            synthesise(side, bits, &mut numbers(seed).inspect(|_| drawn += 1)).expect("a key");
        }
        assert!(drawn / 7 <= 300, "{side:?}, {bits} bits: {} tries for 100 keys", drawn / 7);
    }
}

proptest! {
    /// The proof by rank and the hash itself agree: what the owner does not follow from changes nothing.
    #[test]
    fn fields_that_do_not_count_change_no_index(
        side in side(), bits in 1..=MOST_BITS, seed: u64,
        source: [u32; 2], destination: [u32; 2], source_port: [u16; 2], destination_port: [u16; 2]
    ) {
        let key = key(side, bits, seed);
        prop_assert!(is_proved(&key, side, bits) && depends_only_on(&key, side.fields(), bits));
        let index = |s: usize, d: usize, f: usize, n: usize| {
            let input = Input::ipv4(source[s].into(), destination[d].into()).with_ports(source_port[f], destination_port[n]);
            key.hash(input.bytes()) & ((1 << bits) - 1)
        };
        match side {
            Side::Inside => prop_assert_eq!(index(0, 0, 0, 0), index(0, 1, 1, 1)),
            Side::Outside => prop_assert_eq!(index(0, 0, 0, 0), index(1, 0, 1, 0)),
        }
    }

    /// What is hashed on addresses alone, ICMP and fragments, keeps to its subscriber inside.
    #[test]
    fn pings_and_fragments_stay_with_their_subscriber(bits in 1..=MOST_BITS, seed: u64, source: u32, destination: u32, ports: (u16, u16)) {
        let key = key(Side::Inside, bits, seed);
        let addresses = Input::ipv4(source.into(), destination.into());
        let same = key.hash(addresses.bytes()) ^ key.hash(addresses.with_ports(ports.0, ports.1).bytes());
        prop_assert_eq!(same & ((1 << bits) - 1), 0);
    }

    #[test]
    fn a_key_for_a_large_table_serves_all_smaller_ones(side in side(), bits in 1..=MOST_BITS, seed: u64) {
        let key = key(side, bits, seed);
        for smaller in 1..=bits {
            prop_assert!(depends_only_on(&key, side.fields(), smaller));
            for field in side.fields().fields() {
                prop_assert_eq!(rank(&key, field.bits(), 0..smaller), smaller);
            }
        }
    }

    /// Nothing else is zeroed: the fields that count reach every index bit.
    #[test]
    fn fields_that_count_do_count(side in side(), bits in 1..=MOST_BITS, seed: u64) {
        let key = key(side, bits, seed);
        for field in Field::ALL {
            prop_assert_eq!(is_independent_of(&key, field, bits), !side.fields().has(field));
        }
        prop_assert!(!depends_only_on(&key, HashFields::NONE, bits));
    }

    /// n aligned addresses in a row lie on n index values at equal distances, as long as there are so many.
    #[test]
    fn a_small_subnet_is_spread_evenly_over_the_index(bits in 1..=MOST_BITS, seed: u64, base: u32, size in 0_u32..=11) {
        let (key, size) = (key(Side::Inside, bits, seed), size.min(bits));
        let first = base & (u32::MAX << size);
        let index = |address: u32| key.hash(&address.to_be_bytes()) & ((1 << bits) - 1);
        let places: BTreeSet<u32> = (0..1 << size).map(|host| index(first + host) >> (bits - size)).collect();
        prop_assert_eq!(places.len(), 1 << size);
    }

    /// A worker has its share of a full /24 to within what the table allows, and to within two addresses.
    #[test]
    fn a_full_24_is_balanced(workers in 1_u16..=16, bits in 6..=MOST_BITS, seed: u64, base: u32) {
        let key = key(Side::Inside, bits, seed);
        let owners = Owners::new(&key, &key, blocks(1 << bits, workers));
        let mut counts = vec![0_i32; usize::from(workers)];
        for host in 0..=255 {
            counts[usize::from(owners.of_subscriber(Ipv4Addr::from(base & !0xff | host)).0)] += 1;
        }
        let entries = |worker: u16| blocks(1 << bits, workers).iter().map(|of| f64::from(u8::from(of.0 == worker))).sum::<f64>();
        for worker in 0..workers {
            let fair = entries(worker) * 256.0 / f64::from(1 << bits);
            let off = (f64::from(counts[usize::from(worker)]) - fair).abs();
            prop_assert!(off < 2.0, "worker {} of {} has {} of 256, and {} entries", worker, workers, counts[usize::from(worker)], entries(worker));
            prop_assert!(bits > 8 || off == 0.0, "each entry has equally many addresses");
        }
    }
}
