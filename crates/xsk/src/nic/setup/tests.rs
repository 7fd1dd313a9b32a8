//! Plans over drivers in memory: order, what is put back after any failure and after any death, and what drivers do to plans.

use std::{cell::RefCell, net::Ipv4Addr};

use super::*;
use crate::nic::{
    Capabilities, Channels, Match, NoteProblem, Protocol, Settable,
    fake::{Fake, Faults, Model, RULE_LOCATIONS, State},
};

const KEY: [u8; 40] = [0x5A; 40];

fn rule(port: u16, queue: u32) -> Rule {
    Rule { protocol: Protocol::Tcp, matches: Match::DestinationPort { port, mask: 0xC000 }, queue }
}

fn table(queues: u32) -> Vec<u32> {
    (0..128).map(|entry| entry / 16 % queues).collect()
}

/// The most that a model takes.
fn plan_for(model: Model) -> Plan {
    let whole = Plan {
        queues: Some(2),
        rings: Some((1024, 256)),
        key: Some(KEY.to_vec()),
        table: Some(table(2)),
        hash: Some(HashFunction::Toeplitz),
        fields: vec![(Flow::Tcp4, Fields::SOURCE), (Flow::Udp4, Fields::DESTINATION_AND_PORT)],
        rules: vec![rule(0, 0), rule(0x4000, 1)],
        features: vec![("rx-lro".into(), true)],
        deferral: Some(Deferral { hard_irqs: 1_000_000, flush_timeout: 200_000_000 }),
    };
    match model {
        Model::Virtio => Plan { fields: vec![(Flow::Udp4, Fields::TWO_TUPLE)], rules: Vec::new(), ..whole },
        Model::Igb => Plan { key: None, fields: vec![(Flow::Udp4, Fields::FOUR_TUPLE)], rules: Vec::new(), ..whole },
        Model::Mlx5 | Model::Picker => whole,
    }
}

/// Every model as it is at the machine's start, and with a table that an operator has set.
fn devices() -> Vec<(Model, Fake)> {
    let set_by_hand = |state: &mut State| {
        state.rss.table = (0..128).map(|entry| 3 - entry % 4).collect();
        state.live_table.clone_from(&state.rss.table);
        state.configured = true;
    };
    let both = |model| {
        let configured = Fake::new(model);
        configured.change(set_by_hand);
        [(model, Fake::new(model)), (model, configured)]
    };
    Model::ALL.into_iter().flat_map(both).collect()
}

/// A device as it is left: as it was, but that virtio's `rxhash`, once on, stays on.
fn as_left(before: &State, device: &Fake, model: Model) -> State {
    let mut state = before.clone();
    if model == Model::Virtio {
        state.features.insert(RX_HASH, device.state().features[RX_HASH]);
    }
    state
}

#[test]
fn a_plan_is_carried_out_and_everything_is_put_back() {
    for (model, device) in devices() {
        let (before, plan) = (device.state(), plan_for(model));
        let setup = NicSetup::apply(device.nic(), &plan).unwrap();
        let after = device.state();
        assert_eq!(after.channels.combined, 2, "{model:?}");
        assert_eq!((after.rings.rx, after.rings.tx), (1024, 256));
        assert_eq!((&after.rss.table, &after.live_table), (&table(2), &table(2)));
        assert!(plan.key.is_none() || after.rss.key == KEY);
        assert_eq!(after.rss.transform, Transform::None);
        assert!(plan.fields.iter().all(|(flow, fields)| after.fields[flow] == *fields));
        assert_eq!(after.rules.values().copied().collect::<Vec<_>>().len(), plan.rules.len());
        assert_eq!(Some(after.deferral), plan.deferral);
        assert!(after.features[RX_HASH], "virtio does not hash those fields without it");
        setup.restore().unwrap();
        assert_eq!(device.state(), as_left(&before, &device, model), "{model:?}");
    }
}

#[test]
fn dropping_puts_everything_back() {
    let device = Fake::new(Model::Mlx5);
    let before = device.state();
    let setup = NicSetup::apply(device.nic(), &plan_for(Model::Mlx5)).unwrap();
    assert_ne!(device.state(), before);
    drop(setup);
    assert_eq!(device.state(), before);
}

#[test]
fn a_failure_at_any_write_puts_back_what_was_changed_before_it() {
    for (index, (model, _)) in devices().into_iter().enumerate() {
        let fresh = || devices().remove(index).1;
        let device = fresh();
        let setup = NicSetup::apply(device.nic(), &plan_for(model)).unwrap();
        let writes = device.take_writes().len();
        drop(setup);
        assert!(writes >= 4, "{model:?}: {writes}");
        for fails_at in 0..writes {
            let device = fresh();
            let before = device.state();
            device.set_faults(Faults { fails_at: Some(fails_at), ..Faults::default() });
            let error = NicSetup::apply(device.nic(), &plan_for(model)).unwrap_err();
            assert!(matches!(error, NicError::Write { .. }), "{error}");
            assert_eq!(device.state(), as_left(&before, &device, model), "{model:?}, write {fails_at}");
        }
    }
}

#[test]
fn whatever_a_killed_process_has_changed_is_put_back_from_its_note() {
    for (model, device) in devices() {
        let before = device.state();
        // Each note with the device as it is when the note is kept; the process may die before the next write, or after it.
        let moments = RefCell::new(Vec::new());
        let keep = |note: &str| {
            moments.borrow_mut().push((note.to_string(), device.state()));
            Ok(())
        };
        let setup = NicSetup::apply_noting(device.nic(), &plan_for(model), keep).unwrap();
        let (last, end) = (setup.to_note(), device.state());
        let moments = moments.into_inner();
        let notes = moments.iter().map(|(note, _)| note.clone());
        let later = moments.iter().skip(1).map(|(_, state)| state.clone()).chain([end.clone()]);
        let deaths = moments.iter().cloned().chain(notes.zip(later)).chain([(last, end)]);
        for (note, found) in deaths {
            device.change(|state| *state = found);
            let noted = note.matches("\nrule ").count();
            let unnoted = device.state().rules.len().saturating_sub(noted);
            NicSetup::from_note(device.nic(), &note).unwrap().restore().unwrap();
            // A rule whose location the driver picks cannot be noted before it is there.
            assert!(unnoted == 0 || (unnoted == 1 && model == Model::Picker), "{model:?}\n{note}");
            assert_eq!(device.state().rules.len(), unnoted);
            device.change(|state| state.rules.clear());
            assert_eq!(device.state(), as_left(&before, &device, model), "{model:?}\n{note}");
        }
        std::mem::forget(setup);
    }
}

#[test]
fn settings_are_changed_in_their_order_and_put_back_in_the_opposite_one() {
    let device = devices().remove(5).1;
    let setup = NicSetup::apply(device.nic(), &plan_for(Model::Mlx5)).unwrap();
    let applied = ["feature", "feature", "channels", "rss", "channels", "rings", "rss", "fields", "fields", "insert", "insert"];
    assert_eq!(device.take_writes(), [&applied[..], &["deferral"]].concat());
    setup.restore().unwrap();
    let restored = ["remove", "remove", "fields", "fields", "rss", "rings", "channels", "rss", "feature", "feature"];
    assert_eq!(device.take_writes(), [&["deferral"], &restored[..]].concat());
}

#[test]
fn a_table_that_is_not_in_the_way_of_fewer_queues_is_left() {
    let device = Fake::new(Model::Igb);
    // igb's own table after the machine's start is not the kernel's default one.
    device.change(|state| state.rss.table = (0..128).map(|entry| entry / 32).collect());
    let setup = NicSetup::apply(device.nic(), &Plan { queues: Some(2), ..Plan::default() }).unwrap();
    assert_eq!(device.take_writes(), ["channels"]);
    setup.restore().unwrap();
    assert!(!device.state().configured);
}

#[test]
fn a_plan_that_says_nothing_writes_nothing() {
    let device = Fake::new(Model::Mlx5);
    NicSetup::apply(device.nic(), &Plan::default()).unwrap().restore().unwrap();
    let now = Plan { queues: Some(4), rings: Some((512, 512)), features: vec![("rx-lro".into(), false)], ..Plan::default() };
    NicSetup::apply(device.nic(), &now).unwrap().restore().unwrap();
    assert!(device.take_writes().is_empty());
}

#[test]
fn more_queues_are_given_and_taken_again_although_a_table_names_them() {
    let device = Fake::new(Model::Virtio);
    let before = device.state();
    let plan = Plan { queues: Some(8), table: Some(table(8)), ..Plan::default() };
    let setup = NicSetup::apply(device.nic(), &plan).unwrap();
    assert!(device.state().configured);
    setup.restore().unwrap();
    assert_eq!(device.state(), before, "the kernel no longer calls the table configured");
}

#[test]
fn virtios_hash_is_not_switched_for_a_key_and_never_off() {
    let device = Fake::new(Model::Virtio);
    let before = device.state();
    let plan = Plan { table: Some(table(4)), key: Some(KEY.to_vec()), ..Plan::default() };
    let setup = NicSetup::apply(device.nic(), &plan).unwrap();
    assert_eq!(device.state().features, before.features);
    setup.restore().unwrap();
    assert_eq!(device.state(), before);
    let plan = Plan { fields: vec![(Flow::Udp4, Fields::TWO_TUPLE)], ..plan };
    NicSetup::apply(device.nic(), &plan).unwrap().restore().unwrap();
    assert!(device.state().hashes && device.state().features[RX_HASH], "switched off it would put all frames on queue 0");
}

#[test]
fn a_table_that_virtio_forgets_when_xdp_is_attached_is_written_again() {
    let device = Fake::new(Model::Virtio);
    let plan = Plan { table: Some(table(4)), key: Some(KEY.to_vec()), ..Plan::default() };
    let setup = NicSetup::apply(device.nic(), &plan).unwrap();
    device.attach_xdp();
    let forgotten = device.state();
    assert_eq!(forgotten.rss.table, table(4), "it is still shown");
    assert_ne!(forgotten.live_table, table(4));
    setup.reapply_table().unwrap();
    assert_eq!(device.state().live_table, table(4));
    setup.restore().unwrap();
}

#[test]
fn a_table_that_is_shown_already_is_written_all_the_same() {
    let device = Fake::new(Model::Virtio);
    let plan = Plan { table: Some(table(4)), ..Plan::default() };
    let dead = NicSetup::apply(device.nic(), &plan).unwrap();
    std::mem::forget(dead);
    device.attach_xdp();
    let setup = NicSetup::apply(device.nic(), &plan).unwrap();
    assert_eq!(device.state().live_table, table(4));
    let _ = setup.leave();
}

#[test]
fn asymmetric_fields_need_the_transform_off_and_it_comes_back_after_them() {
    let device = Fake::new(Model::Mlx5);
    let before = device.state();
    let plan = Plan { fields: vec![(Flow::Tcp4, Fields::SOURCE)], ..Plan::default() };
    let setup = NicSetup::apply(device.nic(), &plan).unwrap();
    assert_eq!((device.state().rss.transform, device.state().fields[&Flow::Tcp4]), (Transform::None, Fields::SOURCE));
    setup.restore().unwrap();
    assert_eq!(device.state(), before);
}

#[test]
fn a_plan_that_does_not_fit_is_refused_with_what_does_not() {
    let refusal = |model, plan: &Plan| {
        let device = Fake::new(model);
        let before = device.state();
        let error = NicSetup::apply(device.nic(), plan).unwrap_err();
        assert_eq!(device.state(), as_left(&before, &device, model));
        let NicError::Impossible { impossible, .. } = error else { panic!("{error}") };
        impossible
    };
    let whole = Plan::default();
    let key = Plan { key: Some(vec![0; 52]), ..whole.clone() };
    assert_eq!(refusal(Model::Virtio, &key), Impossible::KeyLength { wanted: 52, has: 40 });
    let short = Plan { table: Some(vec![0; 64]), ..whole.clone() };
    assert_eq!(refusal(Model::Igb, &short), Impossible::TableLength { wanted: 64, has: 128 });
    let beyond = Plan { table: Some(table(8)), ..whole.clone() };
    assert_eq!(refusal(Model::Igb, &beyond), Impossible::NoQueue { queue: 7, queues: 4 });
    let fewer = Plan { queues: Some(2), table: Some(table(3)), ..whole.clone() };
    assert_eq!(refusal(Model::Igb, &fewer), Impossible::NoQueue { queue: 2, queues: 2 });
    let queues = Plan { queues: Some(9), ..whole.clone() };
    assert_eq!(refusal(Model::Mlx5, &queues), Impossible::Queues { wanted: 9, most: 8 });
    let rings = Plan { rings: Some((8192, 64)), ..whole.clone() };
    assert!(matches!(refusal(Model::Mlx5, &rings), Impossible::Rings { rx: 8192, max_rx: 4096, .. }));
    let rules = Plan { rules: vec![rule(0, 0)], ..whole.clone() };
    assert_eq!(refusal(Model::Virtio, &rules), Impossible::Unsupported("flow rules"));
    let ip4 = Plan { fields: vec![(Flow::Ip4, Fields::TWO_TUPLE)], ..whole.clone() };
    assert_eq!(refusal(Model::Virtio, &ip4), Impossible::Fields(Flow::Ip4));
    let feature = Plan { features: vec![("rx-warp".into(), true)], ..whole };
    assert_eq!(refusal(Model::Mlx5, &feature), Impossible::Feature("rx-warp".into()));
}

#[test]
fn rules_lie_behind_the_operators_with_the_first_in_front() {
    let device = Fake::new(Model::Mlx5);
    let theirs = rule(0x8000, 3);
    device.change(|state| {
        state.features.insert(NTUPLE, true);
        state.rules.extend([(0, theirs), (RULE_LOCATIONS - 2, theirs)]);
    });
    let plan = Plan { rules: vec![rule(0, 0), rule(0x4000, 1)], ..Plan::default() };
    let setup = NicSetup::apply(device.nic(), &plan).unwrap();
    let rules = device.state().rules;
    assert_eq!((rules[&(RULE_LOCATIONS - 3)], rules[&(RULE_LOCATIONS - 1)]), (rule(0, 0), rule(0x4000, 1)));
    setup.restore().unwrap();
    assert_eq!(device.state().rules.into_values().collect::<Vec<_>>(), [theirs, theirs]);
}

#[test]
fn rules_that_find_no_room_are_taken_away_together() {
    for model in [Model::Mlx5, Model::Picker] {
        let device = Fake::new(model);
        let before = device.state();
        let rules = (0..=RULE_LOCATIONS).map(|number| rule(number as u16, 0)).collect();
        let error = NicSetup::apply(device.nic(), &Plan { rules, ..Plan::default() }).unwrap_err();
        assert!(error.to_string().contains("no room") || error.to_string().contains("No space"), "{error}");
        assert_eq!(device.state(), before);
    }
}

#[test]
fn a_key_that_is_taken_and_not_kept_is_noticed() {
    let device = Fake::new(Model::Mlx5);
    device.set_faults(Faults { loses_keys: true, ..Faults::default() });
    let error = NicSetup::apply(device.nic(), &Plan { key: Some(KEY.to_vec()), ..Plan::default() }).unwrap_err();
    assert!(matches!(error, NicError::NotTaken { .. }), "{error}");
    assert_eq!(device.state(), Fake::new(Model::Mlx5).state());
}

#[test]
fn restoring_goes_on_after_a_failure_and_tells_every_one() {
    let device = Fake::new(Model::Mlx5);
    let setup = NicSetup::apply(device.nic(), &plan_for(Model::Mlx5)).unwrap();
    device.take_writes();
    device.set_faults(Faults { fails_at: Some(1), ..Faults::default() });
    let failures = setup.restore().unwrap_err();
    assert_eq!(failures.len(), 1);
    assert!(failures[0].to_string().contains("`ethtool -N fake0 delete"), "{}", failures[0]);
    assert_eq!(device.state().channels, Channels { combined: 4, max_combined: 8, ..Channels::default() });

    let device = Fake::new(Model::Mlx5);
    let setup = NicSetup::apply(device.nic(), &plan_for(Model::Mlx5)).unwrap();
    let changed = setup.former().len();
    device.set_faults(Faults { fails_from: Some(0), ..Faults::default() });
    assert_eq!(setup.restore().unwrap_err().len(), changed);
}

#[test]
fn without_a_note_nothing_is_changed() {
    let device = Fake::new(Model::Mlx5);
    let full = |_: &str| Err(io::Error::from_raw_os_error(libc::ENOSPC));
    let error = NicSetup::apply_noting(device.nic(), &plan_for(Model::Mlx5), full).unwrap_err();
    assert!(matches!(error, NicError::Keep { .. }), "{error}");
    assert!(device.take_writes().is_empty());
}

#[test]
fn a_process_that_takes_over_gets_the_note_and_the_settings_as_they_are() {
    let device = Fake::new(Model::Mlx5);
    let before = device.state();
    let note = NicSetup::apply(device.nic(), &plan_for(Model::Mlx5)).unwrap().leave();
    assert_ne!(device.state(), before);
    NicSetup::from_note(device.nic(), &note).unwrap().restore().unwrap();
    assert_eq!(device.state(), before);
}

#[test]
fn a_note_about_another_device_is_refused() {
    let device = Fake::new(Model::Mlx5);
    let note = NicSetup::apply(device.nic(), &plan_for(Model::Mlx5)).unwrap().leave();
    let other = NicSetup::from_note(Nic::new("fake1", device.clone()), &note).unwrap_err();
    assert!(matches!(other, NicError::Note { problem: NoteProblem::OtherDevice { .. }, .. }), "{other}");
    let other = NicSetup::from_note(device.nic(), "nonsense").unwrap_err();
    assert!(matches!(other, NicError::Note { problem: NoteProblem::Malformed { line: 1 }, .. }), "{other}");
}

#[test]
fn probing_finds_what_each_driver_takes_and_changes_nothing() {
    for (model, device) in devices() {
        let before = device.state();
        let found = Capabilities::probe(&device.nic()).unwrap();
        assert_eq!(device.state(), before, "{model:?}");
        assert_eq!((found.queues, found.most_queues, found.channels), (Some(4), Some(8), Settable::Yes));
        assert_eq!(found.hash, Some(HashFunction::Toeplitz));
        assert_eq!((found.table_len, found.table), (128, Settable::Yes));
        let key = if model == Model::Igb { (0, Settable::No) } else { (40, Settable::Yes) };
        assert_eq!((found.key_len, found.key), key, "{model:?}");
        let fields: Vec<_> = found.fields.iter().map(|field| (field.flow, field.settable)).collect();
        assert_eq!(fields, [(Flow::Tcp4, Settable::Yes), (Flow::Udp4, Settable::Yes), (Flow::Ip4, Settable::No)]);
        let rules = found.rules.map(|rules| (rules.size, rules.on));
        let expected = match model {
            Model::Virtio => None,
            Model::Igb => Some((RULE_LOCATIONS, false)),
            Model::Mlx5 => Some((0, false)),
            Model::Picker => Some((RULE_LOCATIONS, true)),
        };
        assert_eq!(rules, expected, "{model:?}");
        assert_eq!(found.transform == Transform::None, model != Model::Mlx5);
    }
}

#[test]
fn a_device_that_cannot_be_tried_is_not_called_unable() {
    let device = Fake::new(Model::Mlx5);
    device.set_faults(Faults { fails_from: Some(0), ..Faults::default() });
    let found = Capabilities::probe(&device.nic()).unwrap();
    assert_eq!((found.key, found.table), (Settable::Unknown(libc::EIO), Settable::Unknown(libc::EIO)));
}

#[test]
fn choices_of_fields_are_tried_and_what_was_there_is_set_again() {
    let choices = [Fields::SOURCE, Fields::DESTINATION_AND_PORT, Fields::TWO_TUPLE, Fields::FOUR_TUPLE];
    let accepted = |model, flow| {
        let device = Fake::new(model);
        device.change(|state| state.rss.transform = Transform::None);
        let before = device.state();
        let accepted = device.nic().accepted_fields(flow, &choices).unwrap();
        assert_eq!(device.state(), before);
        accepted
    };
    assert_eq!(accepted(Model::Mlx5, Flow::Udp4), choices);
    assert_eq!(accepted(Model::Virtio, Flow::Udp4), [Fields::TWO_TUPLE, Fields::FOUR_TUPLE]);
    assert_eq!(accepted(Model::Igb, Flow::Tcp4), [Fields::FOUR_TUPLE]);
    assert!(Model::ALL.into_iter().all(|model| accepted(model, Flow::Ip4).is_empty()));
}

#[test]
fn a_source_rule_is_put_where_the_driver_wants_it() {
    let matches = Match::Source { address: Ipv4Addr::new(0, 0, 0, 1), mask: Ipv4Addr::new(0, 0, 0, 1) };
    let rules = vec![Rule { protocol: Protocol::Udp, matches, queue: 2 }];
    let device = Fake::new(Model::Picker);
    let setup = NicSetup::apply(device.nic(), &Plan { rules: rules.clone(), ..Plan::default() }).unwrap();
    assert_eq!(device.state().rules.into_iter().collect::<Vec<_>>(), [(0, rules[0])]);
    assert_eq!(setup.former(), [Setting::RemoveRule { location: 0 }]);
}
