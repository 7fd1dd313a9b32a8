//! The choice among the four ways: every plan is carried out on a NIC made of the hash itself, and packets are sent at it.
//!
//! Blind spot: drivers that accept a setting and do something else. `portcullis` learns that from traffic.

mod common;

use portcullis_steering::choose::{Choice, choose};
use portcullis_steering::fields::{HashFields, Layout, Side};
use portcullis_steering::predict::{HashedPacket, Transport};
use portcullis_steering::table::{round_robin, worker_of_queue};
use portcullis_steering::toeplitz::{Input, Key};
use portcullis_steering::ways::{FieldChoice, Obstacle, Offer, Plan, Setting, Way};
use portcullis_steering::{Owners, WorkerId};
use proptest::prelude::*;

use common::numbers;

/// A NIC as virtio has it: everything can be set but single fields.
fn offer(side: Side, queues: u16) -> Offer {
    Offer {
        side,
        queues,
        toeplitz: true,
        key: Setting { now: Some(key(1)), settable: true },
        key_length: 40,
        table: Setting { now: round_robin(128, queues), settable: true },
        tcp: fields(HashFields::FOUR_TUPLE, &[HashFields::TWO_TUPLE]),
        udp: fields(HashFields::TWO_TUPLE, &[HashFields::FOUR_TUPLE]),
        others: HashFields::TWO_TUPLE,
        layout: Layout::Kept,
        rules: 0,
    }
}

fn fields(now: HashFields, choices: &[HashFields]) -> FieldChoice {
    FieldChoice { now: Some(now), choices: choices.to_vec() }
}

fn key(seed: u64) -> Key {
    let bytes: Vec<u8> = numbers(seed).take(5).flat_map(u64::to_be_bytes).collect();
    Key::from_slice(&bytes).expect("40 bytes are a key")
}

fn chosen(offers: &[Offer], workers: u16, seed: u64) -> Choice {
    choose(offers, workers, &[], &mut numbers(seed)).expect("random numbers enough")
}

/// A NIC after the plan: rules first, then key, fields and table, the slow way. None where it does not hash.
fn queue(offer: &Offer, plan: &Plan, packet: &HashedPacket) -> Option<u16> {
    let (_, port) = packet.ports?;
    let value = if offer.side == Side::Inside { u32::from(packet.source) as u16 } else { port };
    let hit = |rule: &&portcullis_steering::ways::FlowRule| rule.transport == packet.transport && value & rule.mask == rule.value;
    if let Some(rule) = plan.rules.iter().find(hit) {
        return Some(rule.queue);
    }
    let (set, choice) = if packet.transport == Transport::Tcp { (plan.tcp, &offer.tcp) } else { (plan.udp, &offer.udp) };
    let hashed = set.or(choice.now).filter(|&hashed| hashed != HashFields::NONE)?;
    let key = plan.key.or(offer.key.now)?;
    let table = plan.table.as_ref().unwrap_or(&offer.table.now);
    let input = Input::ipv4(packet.source, packet.destination).with_ports(packet.ports?.0, port);
    let each = hashed.fields().flat_map(|field| field.bits().start / 8..field.bits().end / 8);
    let bytes: Vec<u8> = match offer.layout {
        Layout::Packed => each.map(|byte| input.bytes()[byte]).collect(),
        Layout::Kept => each.fold(vec![0; 12], |mut bytes, byte| {
            bytes[byte] = input.bytes()[byte];
            bytes
        }),
    };
    table.get(key.hash(&bytes) as usize % table.len().max(1)).copied()
}

fn owner(owners: &Owners, side: Side, packet: &HashedPacket) -> WorkerId {
    match (side, packet.ports) {
        (Side::Inside, _) => owners.of_subscriber(packet.source),
        (Side::Outside, ports) => owners.of_external(packet.destination, ports.map_or(0, |(_, port)| port)),
    }
}

fn packets(seed: u64, transport: Transport) -> impl Iterator<Item = HashedPacket> {
    let mut numbers = numbers(seed);
    let packet = move || {
        let (addresses, ports) = (numbers.next()?, numbers.next()?);
        let (source, destination) = (((addresses >> 32) as u32).into(), (addresses as u32).into());
        Some(HashedPacket { source, destination, ports: Some(((ports >> 16) as u16, ports as u16)), transport, is_fragment: false })
    };
    core::iter::from_fn(packet)
}

/// The share of packets that reach another worker than their owner. None where the NIC does not hash.
fn measured(offer: &Offer, plan: &Plan, owners: &Owners, workers: u16, transport: Transport) -> Option<f64> {
    const PACKETS: u16 = 4000;
    let misplaced = |packet: HashedPacket| {
        queue(offer, plan, &packet).map(|queue| worker_of_queue(queue, workers) != owner(owners, offer.side, &packet))
    };
    let wrong =
        packets(7, transport).take(PACKETS.into()).try_fold(0, |wrong, packet| Some(wrong + u16::from(misplaced(packet)?)))?;
    Some(f64::from(wrong) / f64::from(PACKETS))
}

fn assert_zero(offer: &Offer, plan: &Plan, owners: &Owners, workers: u16) {
    for transport in [Transport::Tcp, Transport::Udp] {
        assert_eq!(measured(offer, plan, owners, workers, transport), Some(0.0), "{transport:?}: {plan}");
    }
    assert!(plan.share.tcp == 0.0 && plan.share.udp == 0.0, "{plan}");
}

#[test]
fn nics_whose_key_can_be_set_misplace_nothing() {
    let offers = [offer(Side::Inside, 4), offer(Side::Outside, 4), Offer { key_length: 52, ..offer(Side::Outside, 8) }];
    let Choice { owners, plans } = chosen(&offers, 4, 1);
    for (offer, plan) in offers.iter().zip(&plans) {
        assert_eq!((plan.way, plan.tcp), (Way::Synthesis, None));
        let udp = (offer.side == Side::Outside).then_some(HashFields::FOUR_TUPLE);
        assert_eq!(plan.udp, udp, "inside, addresses are enough");
        assert_zero(offer, plan, &owners, 4);
    }
    assert_eq!(plans[1].key.as_ref(), owners.outside_key());
    assert_eq!(plans[1].to_string(), "key synthesis: 0.0 % of TCP and 0.0 % of UDP to be handed over");
}

#[test]
fn a_table_that_cannot_be_set_is_taken_as_it_is() {
    let fixed = |side, entries| Offer { table: Setting { now: round_robin(entries, 4), settable: false }, ..offer(side, 4) };
    let offers = [fixed(Side::Inside, 512), fixed(Side::Outside, 128), fixed(Side::Outside, 64), offer(Side::Outside, 4)];
    let Choice { owners, plans } = chosen(&offers, 4, 1);
    offers.iter().zip(&plans).for_each(|(offer, plan)| assert_zero(offer, plan, &owners, 4));
    assert_eq!(owners.table(Side::Inside).len(), 4, "round robin over four asks for two bits, whatever the size");
    assert_eq!((&plans[0].table, plans[3].table.is_some()), (&None, true));
}

#[test]
fn two_fixed_tables_in_different_order_cannot_both_decide() {
    let fixed = |table: Vec<u16>| Offer { table: Setting { now: table, settable: false }, ..offer(Side::Outside, 4) };
    let reversed: Vec<u16> = round_robin(128, 4).into_iter().rev().collect();
    let offers = [fixed(round_robin(128, 4)), fixed(reversed.clone()), fixed(reversed)];
    let Choice { owners, plans } = chosen(&offers, 4, 1);
    let ways: Vec<Way> = plans.iter().map(|plan| plan.way).collect();
    assert_eq!(ways, [Way::Software, Way::Synthesis, Way::Synthesis]);
    assert_eq!(plans[0].obstacles[0], (Way::Synthesis, Obstacle::Differs));
    assert_zero(&offers[1], &plans[1], &owners, 4);
}

#[test]
fn a_fixed_table_that_leaves_workers_out_is_not_followed() {
    let offers = [Offer { table: Setting { now: vec![0; 128], settable: false }, ..offer(Side::Inside, 4) }];
    let plan = &chosen(&offers, 4, 1).plans[0];
    assert_eq!(plan.obstacles[0], (Way::Synthesis, Obstacle::TableReach { reached: 1, workers: 4 }));
    assert!((plan.share.tcp - 0.75).abs() < 1e-9);
}

#[test]
fn udp_that_stays_on_addresses_is_right_inside_and_handed_over_outside() {
    let stubborn = |side| Offer { udp: fields(HashFields::TWO_TUPLE, &[]), ..offer(side, 4) };
    let offers = [stubborn(Side::Inside), stubborn(Side::Outside)];
    let Choice { owners, plans } = chosen(&offers, 4, 1);
    assert_zero(&offers[0], &plans[0], &owners, 4);
    assert_eq!(measured(&offers[1], &plans[1], &owners, 4, Transport::Tcp), Some(0.0));
    let udp = measured(&offers[1], &plans[1], &owners, 4, Transport::Udp).expect("it is hashed");
    assert!((udp - 0.75).abs() < 0.05 && (plans[1].share.udp - 0.75).abs() < 1e-9, "{udp}");
}

#[test]
fn a_nic_that_keeps_its_key_can_hash_the_owners_fields_only() {
    for (layout, length) in [(Layout::Kept, 52), (Layout::Packed, 40)] {
        let keeps = |side: Side| Offer {
            key: Setting { now: Some(key(5)), settable: false },
            key_length: length,
            tcp: fields(HashFields::FOUR_TUPLE, &[side.fields()]),
            udp: fields(HashFields::TWO_TUPLE, &[side.fields()]),
            layout,
            ..offer(side, 6)
        };
        let offers = [keeps(Side::Inside), keeps(Side::Outside)];
        let Choice { owners, plans } = chosen(&offers, 3, 1);
        for (offer, plan) in offers.iter().zip(&plans) {
            assert_eq!((plan.way, plan.key, plan.tcp), (Way::FieldSelection, None, Some(offer.side.fields())));
            assert_eq!(plan.obstacles, [(Way::Synthesis, Obstacle::Key("set"))]);
            assert_zero(offer, plan, &owners, 3);
        }
    }
}

#[test]
fn two_nics_that_keep_different_keys_cannot_both_decide() {
    let keeps = |seed| Offer {
        key: Setting { now: Some(key(seed)), settable: false },
        tcp: fields(HashFields::EXTERNAL, &[]),
        udp: fields(HashFields::EXTERNAL, &[]),
        ..offer(Side::Outside, 4)
    };
    let offers = [keeps(5), keeps(6), keeps(6)];
    let Choice { owners, plans } = chosen(&offers, 4, 1);
    assert_eq!(owners.outside_key(), offers[1].key.now.as_ref(), "the key that two of them have");
    let ways: Vec<Way> = plans.iter().map(|plan| plan.way).collect();
    assert_eq!(ways, [Way::Software, Way::FieldSelection, Way::FieldSelection]);
    assert_eq!(plans[0].obstacles[1], (Way::FieldSelection, Obstacle::Differs));
}

#[test]
fn flow_rules_send_slices_to_queues() {
    let ruled = |side, queues, rules| Offer { toeplitz: false, rules, ..offer(side, queues) };
    for workers in [2, 4, 5] {
        let offers = [ruled(Side::Inside, workers, 512), ruled(Side::Outside, workers, 16)];
        let Choice { owners, plans } = chosen(&offers, workers, 1);
        for (offer, plan) in offers.iter().zip(&plans) {
            assert_eq!(plan.way, Way::FlowRules);
            assert!(plan.rules.len() <= offer.rules);
            assert_zero(offer, plan, &owners, workers);
        }
        assert_eq!(owners.outside_key(), None);
    }
    let plan = &chosen(&[ruled(Side::Outside, 8, 15)], 8, 1).plans[0];
    assert_eq!(plan.obstacles[2], (Way::FlowRules, Obstacle::Rules { rules: 15, needed: 16 }));
}

#[test]
fn fewer_queues_than_workers_cost_what_the_plan_says() {
    let offers = [offer(Side::Inside, 2), offer(Side::Outside, 4)];
    let Choice { owners, plans } = chosen(&offers, 4, 1);
    let inside = measured(&offers[0], &plans[0], &owners, 4, Transport::Tcp).expect("it is hashed");
    assert!((plans[0].share.tcp - 0.5).abs() < 1e-9 && (inside - 0.5).abs() < 0.05, "{inside}");
    assert_zero(&offers[1], &plans[1], &owners, 4);
}

#[test]
fn a_nic_without_any_of_it_works_and_says_why() {
    let veth = Offer {
        toeplitz: false,
        key: Setting { now: None, settable: false },
        key_length: 0,
        table: Setting { now: Vec::new(), settable: false },
        tcp: FieldChoice { now: None, choices: Vec::new() },
        udp: FieldChoice { now: None, choices: Vec::new() },
        others: HashFields::NONE,
        ..offer(Side::Inside, 2)
    };
    let Choice { owners, plans } = chosen(core::slice::from_ref(&veth), 2, 1);
    assert_eq!((owners.workers(), plans[0].way, owners.table(Side::Inside).len()), (2, Way::Software, 128));
    assert_eq!(
        plans[0].to_string(),
        "software: 50.0 % of TCP and 50.0 % of UDP to be handed over; no key synthesis: its hash is not plain Toeplitz; \
         no field selection: its hash is not plain Toeplitz; no flow rules: it takes 0 more flow rules with masks, and 4 are needed"
    );
    let single = chosen(&[veth], 1, 1);
    assert_eq!((single.owners, single.plans[0].share.tcp, single.plans[0].obstacles.len()), (Owners::single(), 0.0, 0));
}

prop_compose! {
    fn any_choice()(now in 0_u64..16, choices in proptest::collection::vec(0_u64..16, 0..3)) -> FieldChoice {
        let fields = |bits: u64| HashFields::from_ethtool(bits << 4);
        FieldChoice { now: fields(now), choices: choices.into_iter().filter_map(fields).collect() }
    }
}

prop_compose! {
    /// Any NIC, with few different keys and sizes, so that some agree.
    fn any_offer()(
        (outside, reversed, packed) in any::<(bool, bool, bool)>(), queues in 1_u16..=8, toeplitz in prop::bool::weighted(0.8), keys in 0_u64..3, settable: (bool, bool),
        key_length in prop_oneof![Just(12_usize), Just(40), Just(52)],
        entries in prop_oneof![4 => Just(64_usize), 4 => Just(128), 2 => Just(512), 1 => Just(96)],
        tcp in any_choice(), udp in any_choice(), rules in 0_usize..80
    ) -> Offer {
        let in_turn = round_robin(entries, queues).into_iter();
        Offer {
            side: if outside { Side::Outside } else { Side::Inside },
            queues,
            toeplitz,
            key: Setting { now: (keys > 0).then(|| key(keys)), settable: settable.0 },
            key_length,
            table: Setting { now: if reversed { in_turn.rev().collect() } else { in_turn.collect() }, settable: settable.1 },
            tcp,
            udp,
            others: HashFields::TWO_TUPLE,
            layout: if packed { Layout::Packed } else { Layout::Kept },
            rules,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the NICs offer: the plan's share is what is measured, its placement is where the NIC puts frames, its text says why.
    #[test]
    fn every_plan_does_what_it_says(offers in proptest::collection::vec(any_offer(), 1..5), workers in 1_u16..=6, seed: u64) {
        let Choice { owners, plans } = chosen(&offers, workers, seed);
        prop_assert_eq!(owners.workers(), workers);
        for (offer, plan) in offers.iter().zip(&plans) {
            prop_assert!(plan.key.is_none() || offer.key.settable);
            prop_assert!(plan.table.is_none() || offer.table.settable);
            prop_assert!(plan.tcp.is_none_or(|fields| offer.tcp.choices.contains(&fields)));
            prop_assert!(plan.udp.is_none_or(|fields| offer.udp.choices.contains(&fields)));
            prop_assert!(workers == 1 || plan.obstacles.iter().all(|(way, _)| *way < plan.way));
            let Some(placement) = &plan.placement else {
                prop_assert_eq!(plan.way, Way::Software);
                continue;
            };
            for (transport, share) in [(Transport::Tcp, plan.share.tcp), (Transport::Udp, plan.share.udp)] {
                for packet in packets(seed, transport).take(50) {
                    prop_assert_eq!(placement.predicted_queue(&packet), queue(offer, plan, &packet));
                }
                let Some(measured) = measured(offer, plan, &owners, workers, transport) else { continue };
                prop_assert!(share > 0.0 || measured == 0.0, "{} of {:?}: {}", measured, transport, plan);
                let on_owner = transport == Transport::Tcp || (plan.share.udp - plan.share.tcp).abs() < 1e-9;
                prop_assert!(!on_owner || (measured - share).abs() < 0.06, "{} of {:?}: {}", measured, transport, plan);
            }
        }
    }
}
