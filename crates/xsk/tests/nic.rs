//! The NIC's settings over veth: what the kernel's own answers come to. Needs root.
//!
//! Blind spot: veth has channels and features, and neither RSS nor rules; nic/setup/tests.rs has drivers in memory for those.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{as_root, ip, link, run};
use portcullis_xsk::nic::{
    Capabilities, Channels, Fields, Flow, HashFunction, Impossible, Match, Nic, NicError, NicSetup, Plan, Protocol, Readings, Rule,
    Settable, Setting,
};

/// A pair whose ends have four queues for each direction, and use `now`.
fn veth(now: u32) {
    ip("link add in0 numrxqueues 4 numtxqueues 4 type veth peer name in0p numrxqueues 4 numtxqueues 4");
    run("ethtool", &format!("-L in0 rx {now} tx {now}"));
}

fn channels() -> Channels {
    Nic::open("in0").unwrap().channels().unwrap().unwrap()
}

/// What ethtool shows of a device, for before and after.
fn shown() -> String {
    ["-l in0", "-k in0"].map(|arguments| run("ethtool", arguments)).concat()
}

#[test]
fn channels_are_read_as_ethtool_shows_them() {
    as_root("channels_are_read_as_ethtool_shows_them", || {
        veth(2);
        let now = channels();
        assert_eq!((now.rx, now.tx, now.combined), (2, 2, 0));
        assert_eq!((now.max_rx, now.max_tx, now.max_combined), (4, 4, 0));
        assert_eq!(now.receiving(), 2);
    });
}

#[test]
fn a_plan_is_carried_out_on_veth_and_everything_is_put_back() {
    as_root("a_plan_is_carried_out_on_veth_and_everything_is_put_back", || {
        veth(1);
        let before = shown();
        let features = vec![("rx-gro".into(), true), ("tx-checksum-ip-generic".into(), false)];
        let plan = Plan { queues: Some(3), features, ..Plan::default() };
        let setup = NicSetup::apply(Nic::open("in0").unwrap(), &plan).unwrap();
        assert_eq!((channels().rx, channels().tx), (3, 3));
        let now = run("ethtool", "-k in0");
        assert!(now.contains("generic-receive-offload: on") && now.contains("tx-checksum-ip-generic: off"), "{now}");
        assert!(setup.former().contains(&Setting::Feature { name: "tx-checksum-ip-generic".into(), on: true }));
        setup.restore().unwrap();
        assert_eq!(shown(), before);
    });
}

#[test]
fn a_plan_that_fails_midway_leaves_veth_as_it_was() {
    as_root("a_plan_that_fails_midway_leaves_veth_as_it_was", || {
        veth(1);
        let before = shown();
        let features = vec![("tx-checksum-ip-generic".into(), false)];
        let plan = Plan { queues: Some(2), features, key: Some(vec![0; 40]), ..Plan::default() };
        let error = NicSetup::apply(Nic::open("in0").unwrap(), &plan).unwrap_err();
        assert!(matches!(error, NicError::Impossible { impossible: Impossible::Unsupported("RSS"), .. }), "{error}");
        assert_eq!(shown(), before);

        let queues = Plan { queues: Some(5), ..plan };
        let error = NicSetup::apply(Nic::open("in0").unwrap(), &queues).unwrap_err();
        assert_eq!(error.to_string(), "in0: 5 queues: the driver has 1 to 4");
        assert_eq!(shown(), before);
    });
}

#[test]
fn what_the_kernel_refuses_is_named_with_the_command() {
    as_root("what_the_kernel_refuses_is_named_with_the_command", || {
        veth(1);
        let rule = Rule { protocol: Protocol::Udp, matches: Match::DestinationPort { port: 0, mask: 0xC000 }, queue: 0 };
        let nic = Nic::open("in0").unwrap();
        let error = NicSetup::apply(nic, &Plan { rules: vec![rule], ..Plan::default() }).unwrap_err();
        assert_eq!(error.to_string(), "in0: the driver has no flow rules");
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
        let error = NicSetup::apply(Nic::open("in0").unwrap(), &Plan { queues: Some(2), ..Plan::default() }).unwrap_err();
        assert!(matches!(&error, NicError::Write { source, .. } if source.raw_os_error() == Some(libc::EPERM)), "{error}");
        assert!(error.to_string().contains("`ethtool -L in0 rx 2 tx 2`"), "{error}");
        assert_eq!(channels().rx, 1);
    });
}

#[test]
fn another_process_puts_back_what_a_dead_one_left() {
    as_root("another_process_puts_back_what_a_dead_one_left", || {
        veth(1);
        let before = shown();
        let mut note = String::new();
        let keep = |text: &str| {
            note = text.to_string();
            Ok(())
        };
        let features = vec![("tx-checksum-ip-generic".into(), false)];
        let plan = Plan { queues: Some(4), features, ..Plan::default() };
        let killed = NicSetup::apply_noting(Nic::open("in0").unwrap(), &plan, keep).unwrap();
        std::mem::forget(killed);
        assert_ne!(shown(), before);
        NicSetup::from_note(Nic::open("in0").unwrap(), &note).unwrap().restore().unwrap();
        assert_eq!(shown(), before);

        ip("link del in0");
        veth(1);
        let refused = NicSetup::from_note(Nic::open("in0").unwrap(), &note).unwrap_err();
        assert!(refused.to_string().contains("is about in0 (index"), "a new device of the same name: {refused}");
    });
}

#[test]
fn what_veth_has_not_is_none_and_no_error() {
    as_root("what_veth_has_not_is_none_and_no_error", || {
        veth(2);
        let nic = Nic::open("in0").unwrap();
        assert_eq!(nic.rss().unwrap(), None);
        assert_eq!(nic.fields(Flow::Tcp4).unwrap(), None);
        assert_eq!(nic.rule_room().unwrap(), None);
        assert_eq!(nic.coalescing().unwrap(), None);
        assert_eq!(nic.accepted_fields(Flow::Udp4, &[Fields::SOURCE]).unwrap(), []);
        let found = Capabilities::probe(&nic).unwrap();
        assert_eq!((found.driver.as_str(), found.queues, found.most_queues), ("veth", Some(2), Some(4)));
        assert_eq!(found.channels, Settable::Yes);
        assert_eq!((found.hash, found.key, found.table, found.rules), (None, Settable::No, Settable::No, None));
        assert!(found.fields.is_empty());
    });
}

#[test]
fn a_device_that_is_not_there_is_named() {
    as_root("a_device_that_is_not_there_is_named", || {
        let error = Nic::open("nowhere0").unwrap_err();
        assert!(matches!(&error, NicError::Missing { device } if device == "nowhere0"), "{error}");
        assert!(Nic::open("a-name-that-is-too-long").is_err());
        let error = Readings::of("nowhere0").unwrap_err();
        assert!(error.to_string().starts_with("nowhere0: no such device"), "{error}");
    });
}

#[test]
fn readings_have_what_the_kernel_says_and_no_failures() {
    as_root("readings_have_what_the_kernel_says_and_no_failures", || {
        let inside = link("in0", "10.0.0.1/24", "10.0.0.2/24");
        let read = Readings::of("in0").unwrap();
        assert!(read.failures.is_empty(), "{:?}", read.failures);
        assert_eq!((read.ifindex, read.mtu, read.up), (inside.device.ifindex, 1500, true));
        assert_eq!(read.driver.as_ref().unwrap().name, "veth");
        assert!(read.channels.is_some() && read.rss.is_none() && read.fields.is_empty() && read.rules.is_none());
        assert_eq!(read.largest_xdp_mtu, inside.device.largest_xdp_mtu());
        assert!(!read.feature("rx-vlan-hw-parse").unwrap().active, "the link was made so");
        assert!(read.feature("rx-gro").is_some() && read.may_receive_partial_checksums());
        let xdp = read.xdp.unwrap();
        assert!(xdp.native && xdp.redirect && xdp.multi_buffer_receive && !xdp.zero_copy, "{xdp:?}");
        assert_eq!((xdp.native_program, xdp.generic_program), (0, 0));
    });
}

/// The machine's own device has answers that veth has not. It is only read.
#[test]
fn the_devices_of_this_machine_can_be_read_by_anybody() {
    for entry in fs::read_dir("/sys/class/net").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A file there, such as that of the bonds, is no device.
        if entry.path().join("ifindex").exists() {
            let read = Readings::of(&name).unwrap();
            assert!(read.failures.is_empty(), "{name}: {:?}", read.failures);
            assert_eq!(read.polling.gro_flush_timeout.is_some(), entry.path().join("gro_flush_timeout").exists());
            assert!(read.rss.is_none_or(|rss| matches!(rss.hash, HashFunction::Toeplitz) || !rss.table.is_empty()));
        }
    }
}
