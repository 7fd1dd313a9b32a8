//! Who owns which external port: a partition, balanced, the same by every way of asking.

mod common;

use core::net::Ipv4Addr;

use portcullis_steering::fields::{Layout, Side};
use portcullis_steering::owners::{Basis, OwnerRule, PORT_WORDS};
use portcullis_steering::table::entries_for;
use portcullis_steering::toeplitz::Key;
use portcullis_steering::{Owners, WorkerId};
use proptest::prelude::*;

use common::numbers;

fn counts(workers: u16, owners: &Owners, ports: impl Iterator<Item = u16>, address: Ipv4Addr) -> Vec<u32> {
    ports.fold(vec![0; usize::from(workers)], |mut counts, port| {
        counts[usize::from(owners.of_external(address, port).0)] += 1;
        counts
    })
}

fn basis() -> impl Strategy<Value = Basis> {
    let key = any::<[u8; 32]>().prop_map(|bytes| Key::from_slice(&bytes).expect("32 bytes are a key"));
    let layout = prop_oneof![Just(Layout::Kept), Just(Layout::Packed)];
    prop_oneof![1 => Just(Basis::Slices), 3 => (key, layout).prop_map(|(key, layout)| Basis::Hash { key, layout })]
}

#[test]
fn owners_in_software_have_proved_keys_and_as_many_workers_as_asked() {
    for workers in 2..=64 {
        let owners = Owners::software(workers, &[], &mut numbers(u64::from(workers))).expect("owners");
        let bits = entries_for(workers).ilog2();
        assert_eq!((owners.workers(), owners.table(Side::Inside).len()), (workers, 1 << bits));
        assert!(portcullis_steering::key::is_proved(owners.inside_key().unwrap(), Side::Inside, bits));
        assert!(portcullis_steering::key::is_proved(owners.outside_key().unwrap(), Side::Outside, bits));
    }
    assert_eq!(Owners::software(1, &[], &mut numbers(0)), Ok(Owners::single()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every worker has its share of an address's ports to within four percent: of all, and of those from 1024 up.
    #[test]
    fn ports_are_balanced(workers in 2_u16..=16, seed: u64, address: u32) {
        let owners = Owners::software(workers, &[], &mut numbers(seed)).expect("owners");
        for first in [0, 1024] {
            let fair = f64::from(65_536 - u32::from(first)) / f64::from(workers);
            for count in counts(workers, &owners, first..=u16::MAX, address.into()) {
                prop_assert!((f64::from(count) / fair - 1.0).abs() < 0.04, "{} ports, fair were {}", count, fair);
            }
        }
    }

    /// The bitmap, the iterator and the owner of each port say the same, whatever the rule.
    #[test]
    fn bitmap_iterator_and_owner_agree(basis in basis(), size in 0_u32..=11, seed: u64, address: u32) {
        let table = numbers(seed).take(1 << size).map(|number| WorkerId((number % 5) as u16)).collect::<Vec<_>>();
        let rule = OwnerRule { basis, table };
        let (owners, address) = (Owners::by(rule.clone(), rule), Ipv4Addr::from(address));
        let mut seen = vec![0_u64; PORT_WORDS];
        for worker in (0..5).map(WorkerId) {
            let words = owners.ports_of(address, worker);
            let mut from_iterator = vec![0_u64; PORT_WORDS];
            for port in owners.ports(address, worker) {
                prop_assert_eq!(owners.of_external(address, port), worker);
                from_iterator[usize::from(port) / 64] |= 1 << (port % 64);
            }
            prop_assert_eq!(&words[..], &from_iterator[..]);
            seen.iter_mut().zip(words.iter()).for_each(|(seen, word)| *seen ^= word);
        }
        prop_assert!(seen.iter().all(|&word| word == u64::MAX), "every port has exactly one owner");
    }

    /// The owners are the NIC's hash, looked up in the table.
    #[test]
    fn owners_follow_the_hash(seed: u64, address: u32, port: u16) {
        let owners = Owners::software(4, &[], &mut numbers(seed)).expect("owners");
        let entry = |key: &Key, input: &[u8]| key.hash(input) as usize & 127;
        let [a, b, c, d] = address.to_be_bytes();
        let [high, low] = port.to_be_bytes();
        let outside = entry(owners.outside_key().unwrap(), &[9, 9, 9, 9, a, b, c, d, 9, 9, high, low]);
        let inside = entry(owners.inside_key().unwrap(), &[a, b, c, d, 9, 9, 9, 9]);
        prop_assert_eq!(owners.of_external(address.into(), port), owners.table(Side::Outside)[outside]);
        prop_assert_eq!(owners.of_subscriber(address.into()), owners.table(Side::Inside)[inside]);
        prop_assert_eq!(owners.of_datagram(address.into(), port), owners.of_external(address.into(), port));
    }
}
