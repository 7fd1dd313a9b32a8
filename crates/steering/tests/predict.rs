//! Prediction against the hash itself, and classes of ports against prediction.

mod common;

use core::net::Ipv4Addr;

use portcullis_steering::classes::{PortClasses, ReplyFrom};
use portcullis_steering::fields::{Field, HashFields, Layout, Side};
use portcullis_steering::key::synthesise;
use portcullis_steering::predict::{HashedPacket, Hashing, Placement, Transport};
use portcullis_steering::table::{blocks, queues_of, worker_of_queue};
use portcullis_steering::toeplitz::Key;
use portcullis_steering::{Owners, WorkerId};
use proptest::prelude::*;

use common::numbers;

fn key() -> impl Strategy<Value = Key> {
    any::<[u8; 32]>().prop_map(|bytes| Key::from_slice(&bytes).expect("32 bytes are a key"))
}

fn fields() -> impl Strategy<Value = HashFields> {
    (0_u64..16).prop_map(|bits| HashFields::from_ethtool(bits << 4).expect("four known bits"))
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Kept), Just(Layout::Packed)]
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)]
}

prop_compose! {
    fn packet()(source: u32, destination: u32, ports: (u16, u16), transport in transport(), fragment in 0..4) -> HashedPacket {
        let (source, destination) = (source.into(), destination.into());
        HashedPacket { source, destination, ports: Some(ports), transport, is_fragment: fragment == 0 }
    }
}

/// Any table, not only good ones.
fn table(entries: usize, queues: u16, seed: u64) -> Vec<u16> {
    numbers(seed).take(entries).map(|number| (number % u64::from(queues)) as u16).collect()
}

/// The bytes that a NIC hashes, put together the slow way.
fn input(packet: &HashedPacket, fields: HashFields, layout: Layout) -> Vec<u8> {
    let (source_port, destination_port) = packet.ports.expect("a packet with ports");
    let part = |field| match field {
        Field::SourceAddress => packet.source.octets().to_vec(),
        Field::DestinationAddress => packet.destination.octets().to_vec(),
        Field::SourcePort => source_port.to_be_bytes().to_vec(),
        Field::DestinationPort => destination_port.to_be_bytes().to_vec(),
    };
    let zeros = |field| if layout == Layout::Kept { vec![0; part(field).len()] } else { Vec::new() };
    Field::ALL.into_iter().flat_map(|field| if fields.has(field) { part(field) } else { zeros(field) }).collect()
}

proptest! {
    #[test]
    fn prediction_is_the_hash_looked_up(
        key in key(), layout in layout(), tcp in fields(), udp in fields(), packet in packet(), size in 0_u32..=12, seed: u64
    ) {
        let hashing = Hashing { key, layout, tcp, udp, others: HashFields::TWO_TUPLE };
        let table = table(1 << size, 7, seed);
        let placement = Placement::by_hash(&hashing, &table).unwrap();
        let fields = match packet.transport {
            _ if packet.is_fragment => HashFields::TWO_TUPLE,
            Transport::Tcp => tcp,
            _ => udp,
        };
        let expected = table[key.hash(&input(&packet, fields, layout)) as usize & (table.len() - 1)];
        prop_assert_eq!(placement.predicted_queue(&packet), (fields != HashFields::NONE).then_some(expected));
    }

    /// The whole idea in one property: a NIC with a synthesised key puts each packet onto a queue of its owner, from both sides.
    #[test]
    fn a_synthesised_key_puts_every_packet_onto_its_owner(
        workers in 2_u16..=16, times in 1_u16..=2, bits in 6_u32..=9, repeated in 0_u32..=2, seed: u64, packet in packet()
    ) {
        let random = &mut numbers(seed);
        let [inside, outside] = [Side::Inside, Side::Outside].map(|side| synthesise(side, bits, random).unwrap());
        let owners = Owners::new(&inside, &outside, blocks(1 << bits, workers));
        let queues = queues_of(owners.table(Side::Inside), 1 << (bits + repeated), workers * times, workers).unwrap();
        let worker = |key, packet: &HashedPacket| {
            let hashing =
                Hashing { key, layout: Layout::Kept, tcp: HashFields::FOUR_TUPLE, udp: HashFields::FOUR_TUPLE, others: HashFields::TWO_TUPLE };
            let queue = Placement::by_hash(&hashing, &queues).unwrap().predicted_queue(packet);
            worker_of_queue(queue.unwrap(), workers)
        };
        prop_assert_eq!(worker(inside, &packet), owners.of_subscriber(packet.source), "fragments too");
        let whole = HashedPacket { is_fragment: false, ..packet };
        prop_assert_eq!(worker(outside, &whole), owners.of_external(packet.destination, packet.ports.unwrap().1));
    }
}

fn four_tuple(key: Key, layout: Layout, udp: HashFields, table: &[u16]) -> Placement {
    Placement::by_hash(&Hashing { key, layout, tcp: HashFields::FOUR_TUPLE, udp, others: HashFields::TWO_TUPLE }, table)
        .expect("a table that is a power of two")
}

prop_compose! {
    fn replies()(remote: u32, remote_port: u16, external: u32) -> ReplyFrom {
        ReplyFrom { remote: remote.into(), remote_port, external: external.into() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Under any key and table: each port belongs to exactly one worker, and the NIC is foretold to put its replies there.
    #[test]
    fn each_port_is_in_one_class_and_its_replies_reach_the_worker(
        key in key(), layout in layout(), udp in fields(), transport in transport(), replies in replies(),
        workers in 1_u16..=6, queues in 1_u16..=9, size in 0_u32..=11, seed: u64
    ) {
        let placement = four_tuple(key, layout, udp, &table(1 << size, queues, seed));
        let Some(classes) = PortClasses::new(placement.clone(), transport, workers) else {
            prop_assert!(transport == Transport::Udp && udp == HashFields::NONE);
            return Ok(());
        };
        let mut worker_of = vec![None; 65_536];
        for worker in (0..workers).map(WorkerId) {
            let words = classes.ports_of(replies, worker);
            for port in classes.ports(replies, worker) {
                prop_assert_eq!(worker_of[usize::from(port)].replace(worker), None, "port {} twice", port);
                prop_assert_eq!(words[usize::from(port) / 64] >> (port % 64) & 1, 1);
            }
        }
        for (port, worker) in (0..=u16::MAX).zip(worker_of) {
            let queue = placement.predicted_queue(&replies.packet(transport, port)).unwrap();
            prop_assert_eq!(worker, Some(worker_of_queue(queue, workers)));
        }
    }

    #[test]
    fn a_picked_port_is_one_of_them_and_any_can_be_picked(key in key(), replies in replies(), seed: u64) {
        let classes = PortClasses::new(four_tuple(key, Layout::Kept, HashFields::NONE, &table(128, 4, seed)), Transport::Tcp, 4).unwrap();
        let ports: std::collections::BTreeSet<u16> = classes.ports(replies, WorkerId(2)).collect();
        let picked: std::collections::BTreeSet<u16> =
            (0..128_u32 << 9).filter_map(|n| classes.pick(replies, WorkerId(2), (n % 512) | ((n / 512) << 16))).collect();
        if classes.classes() == 128 {
            prop_assert_eq!(picked, ports);
        } else {
            prop_assert!(picked.is_subset(&ports));
            prop_assert_eq!(picked.is_empty(), ports.is_empty());
        }
    }
}

#[test]
fn a_worker_without_queues_has_no_ports() {
    let placement = four_tuple(Key::new([0x5a; 52]), Layout::Kept, HashFields::NONE, &[0, 1]);
    let classes = PortClasses::new(placement, Transport::Tcp, 4).unwrap();
    let replies = ReplyFrom { remote: Ipv4Addr::LOCALHOST, remote_port: 53, external: Ipv4Addr::LOCALHOST };
    for worker in [WorkerId(3), WorkerId(4)] {
        assert_eq!((classes.pick(replies, worker, 0), classes.ports(replies, worker).count()), (None, 0));
    }
}
