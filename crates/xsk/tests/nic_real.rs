//! A real NIC's settings: found, set, shown, put back. Needs root and a NIC that may be changed, named by PORTCULLIS_TEST_NIC.
//!
//! Blind spot: whether frames go where table and key say is not looked at.

#![allow(clippy::unwrap_used)]

use std::{env, fs, mem, path::Path, process, process::Command};

use portcullis_xsk::nic::{
    Capabilities, Channels, Feature, Fields, Flow, HashFunction, Match, Nic, NicError, NicSetup, Plan, Protocol, RingSizes, Rss,
    Rule, RuleRoom, Settable,
};

/// Features that driver and stack switch by themselves are not compared.
const COMPARED: [&str; 4] = ["rx-hashing", "rx-ntuple-filter", "rx-gro", "rx-lro"];

/// More changes than any plan here has.
const MOST_CHANGES: usize = 32;

/// All settings that a plan can change.
#[derive(Debug, PartialEq)]
struct Settings {
    channels: Option<Channels>,
    rings: Option<RingSizes>,
    rss: Option<Rss>,
    fields: Vec<Option<Fields>>,
    rules: Option<RuleRoom>,
    features: Vec<Feature>,
}

impl Settings {
    fn read(nic: &Nic) -> Self {
        let compared = |feature: &Feature| COMPARED.contains(&feature.name.as_str());
        Self {
            channels: nic.channels().unwrap(),
            rings: nic.rings().unwrap(),
            rss: nic.rss().unwrap(),
            fields: Flow::ALL.map(|flow| nic.fields(flow).unwrap()).to_vec(),
            rules: nic.rule_room().unwrap(),
            features: nic.features().unwrap().into_iter().filter(compared).collect(),
        }
    }
}

/// The device, or none with a loud word about it.
fn device(test: &str) -> Option<String> {
    let device = env::var("PORTCULLIS_TEST_NIC").ok();
    if device.is_none() || !nix::unistd::geteuid().is_root() {
        println!("SKIPPED (needs root and a NIC that may be changed, in PORTCULLIS_TEST_NIC): {test}");
        eprintln!("SKIPPED (needs root and a NIC that may be changed, in PORTCULLIS_TEST_NIC): {test}");
        return None;
    }
    device
}

/// As much as the device takes: fewer queues, another key, all frames of each block of 16 entries to one queue, other fields, a rule.
fn plan_for(nic: &Nic, found: &Capabilities) -> Plan {
    let queues = found.queues.filter(|&queues| queues > 1 && found.channels == Settable::Yes).map(|queues| queues - 1);
    let spread = queues.or(found.queues).unwrap_or(1);
    let table = (0..found.table_len as u32).map(|entry| entry / 16 % spread).collect();
    let key = (0..found.key_len).map(|at| (at as u8).wrapping_mul(0x9D) ^ 0x5A).collect();
    let other = |flow, now| {
        let choices = [Fields::DESTINATION_AND_PORT, Fields::TWO_TUPLE, Fields::FOUR_TUPLE];
        let accepted = nic.accepted_fields(flow, &choices).unwrap();
        accepted.into_iter().find(|&fields| fields != now).map(|fields| (flow, fields))
    };
    let matches = Match::DestinationPort { port: 4096, mask: 0xFFFF };
    let rule = Rule { protocol: Protocol::Udp, matches, queue: spread - 1 };
    Plan {
        queues,
        key: (found.key == Settable::Yes).then_some(key),
        table: (found.table == Settable::Yes).then_some(table),
        hash: found.hash.map(|_| HashFunction::Toeplitz),
        fields: found.fields.iter().filter_map(|field| other(field.flow, field.now)).collect(),
        rules: found.rules.filter(|rules| rules.on).map(|_| rule).into_iter().collect(),
        ..Plan::default()
    }
}

#[test]
fn probing_changes_nothing() {
    let Some(device) = device("probing_changes_nothing") else { return };
    let nic = Nic::open(&device).unwrap();
    let before = Settings::read(&nic);
    let found = Capabilities::probe(&nic).unwrap();
    println!("{found:#?}");
    assert_eq!(Settings::read(&nic), before);
}

#[test]
fn a_plan_is_carried_out_and_everything_is_put_back() {
    let Some(device) = device("a_plan_is_carried_out_and_everything_is_put_back") else { return };
    let open = || Nic::open(&device).unwrap();
    let (nic, before) = (open(), Settings::read(&open()));
    println!("{before:?}");
    let plan = plan_for(&nic, &Capabilities::probe(&nic).unwrap());
    println!("{plan:?}");
    let setup = match NicSetup::apply(open(), &plan) {
        // Rules for ports are not every driver's.
        Err(NicError::Write { .. }) if !plan.rules.is_empty() => {
            assert_eq!(Settings::read(&nic), before);
            NicSetup::apply(open(), &Plan { rules: Vec::new(), ..plan.clone() }).unwrap()
        }
        applied => applied.unwrap(),
    };
    println!("{}", setup.to_note());
    let rss = nic.rss().unwrap();
    assert!(plan.key.as_ref().is_none_or(|key| *key == rss.as_ref().unwrap().key));
    assert!(plan.table.as_ref().is_none_or(|table| *table == rss.as_ref().unwrap().table));
    assert!(plan.queues.is_none_or(|queues| nic.channels().unwrap().unwrap().receiving() == queues));
    assert!(plan.fields.iter().all(|&(flow, fields)| nic.fields(flow).unwrap() == Some(fields)));
    setup.reapply_table().unwrap();
    setup.restore().unwrap();
    assert_eq!(Settings::read(&nic), before);
}

/// Carries the plan out up to change number `death` and is gone, with its note in `path`. Returns only from a plan that is done.
fn die_on_the_way(device: &str, path: &Path, death: usize) {
    let open = || Nic::open(device).unwrap();
    let plan = Plan { rules: Vec::new(), ..plan_for(&open(), &Capabilities::probe(&open()).unwrap()) };
    let mut kept = 0;
    let keep = |note: &str| {
        fs::write(path, note)?;
        kept += 1;
        if kept > death {
            process::abort();
        }
        Ok(())
    };
    mem::forget(NicSetup::apply_noting(open(), &plan, keep).unwrap());
}

#[test]
fn what_a_killed_process_changed_is_put_back_from_its_note() {
    const NAME: &str = "what_a_killed_process_changed_is_put_back_from_its_note";
    let Some(device) = device(NAME) else { return };
    let path = env::temp_dir().join(format!("portcullis-nic-note-{device}"));
    if let Ok(death) = env::var("PORTCULLIS_TEST_DEATH") {
        return die_on_the_way(&device, &path, death.parse().unwrap());
    }
    let nic = Nic::open(&device).unwrap();
    let before = Settings::read(&nic);
    for death in 0..MOST_CHANGES {
        // This test again, in a process of its own.
        let mut child = Command::new(env::current_exe().unwrap());
        let child = child.args(["--exact", NAME]).env("PORTCULLIS_TEST_DEATH", death.to_string());
        let finished = child.output().unwrap().status.success();
        let note = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        NicSetup::from_note(Nic::open(&device).unwrap(), &note).unwrap().restore().unwrap();
        assert_eq!(Settings::read(&nic), before, "killed before change {death}");
        if finished {
            println!("killed before each of {death} changes");
            return;
        }
    }
    panic!("a plan with more than {MOST_CHANGES} changes");
}
