//! Dump and follow.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{DeviceId, InterfaceId, MssClamp, ReceivedChecksums, Route, Side};
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::kernel::socket::RECEIVE_BUFFER;
use crate::kernel::state::{Table, Target};
use crate::kernel::{ConfiguredInterface, Mirror, attachment, network};

fn configured(name: &str, side: Side, device: u8) -> ConfiguredInterface {
    let checksums = ReceivedChecksums::default();
    ConfiguredInterface { name: name.into(), side, device: DeviceId(device), prefixes: Vec::new(), checksums, mss: MssClamp::Off }
}

fn sides() -> Vec<ConfiguredInterface> {
    vec![configured("in", Side::Inside, 0), configured("out", Side::Outside, 1)]
}

fn names() -> Vec<String> {
    vec!["in".into(), "out".into()]
}

/// A gateway's namespace with an inside and an outside interface, each with a peer.
fn gateway() -> Option<(Namespace, Namespace)> {
    let gateway = Namespace::new()?;
    let peers = Namespace::new()?;
    gateway.connect("in", &peers, "client");
    gateway.connect("out", &peers, "server");
    Some((gateway, peers))
}

const SETUP: &[&str] = &[
    "addr add 10.0.0.1/24 dev in",
    "addr add 192.0.2.2/24 dev out",
    "addr add 192.0.2.3/24 dev out",
    "addr add 198.51.100.1/32 dev out",
    "route add default via 192.0.2.1",
    "route add default via 192.0.2.9 metric 50",
    "route append default via 192.0.2.8",
    "route add 10.1.0.0/16 via 10.0.0.2 mtu 1400",
    "route add 10.2.0.0/16 nexthop via 10.0.0.3 nexthop via 192.0.2.7",
    "route add unreachable 10.3.0.0/16",
    "route add blackhole 10.4.0.0/16",
    "route add throw 10.5.0.0/16",
    "neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev in",
    "neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 nud stale dev out",
    "rule add from 10.9.0.0/16 lookup 100",
];

/// What dismantles some of it again, and alters the rest.
const CHANGES: &[&str] = &[
    "route replace default via 192.0.2.4",
    "route change 10.1.0.0/16 via 10.0.0.9",
    "route del 10.2.0.0/16",
    "addr del 192.0.2.2/24 dev out",
    "addr add 10.0.0.1/16 dev in",
    "addr del 10.0.0.1/24 dev in",
    "neigh replace 10.0.0.2 lladdr 02:00:00:00:00:77 dev in",
    "neigh del 192.0.2.1 dev out",
    "link set in mtu 1400",
    "rule del from 10.9.0.0/16 lookup 100",
];

/// Whether following has arrived at what a fresh dump gives.
async fn agrees_with_a_dump(mirror: &Mirror) {
    let start = Instant::now();
    loop {
        let fresh = Mirror::start(Vec::new()).await.expect("second mirror");
        let (followed, dumped) = (mirror.state(), fresh.state());
        if followed == dumped {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "followed {followed:#?}\ndumped {dumped:#?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn following_changes_ends_in_the_same_state_as_a_dump() {
    let Some((gateway, _peers)) = gateway() else { return };
    gateway.run(async || {
        let mirror = Mirror::start(names()).await.expect("mirror");
        for command in SETUP.iter().chain(CHANGES) {
            gateway.ip(command);
            agrees_with_a_dump(&mirror).await;
        }
    });
}

#[test]
fn a_burst_of_changes_before_and_after_the_start_is_seen_in_few_snapshots() {
    let Some((gateway, _peers)) = gateway() else { return };
    gateway.run(async || {
        gateway.all(SETUP);
        let mirror = Mirror::start(names()).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        snapshots.mark_unchanged();
        gateway.all(CHANGES);
        let mut published = 0;
        while timeout(Duration::from_millis(300), snapshots.changed()).await.is_ok_and(|ended| ended.is_ok()) {
            published += 1;
        }
        assert!((1..=3).contains(&published), "{published} snapshots for one burst");
        agrees_with_a_dump(&mirror).await;
    });
}

#[test]
fn what_does_not_matter_makes_no_snapshot() {
    let Some((gateway, _peers)) = gateway() else { return };
    gateway.run(async || {
        gateway.all(SETUP);
        let mirror = Mirror::start(names()).await.expect("mirror");
        agrees_with_a_dump(&mirror).await;
        let mut snapshots = mirror.subscribe();
        let has_marker = |state: &KernelState| state.routes.contains_key(&(Table::Main, "10.77.0.0/16".parse().expect("prefix")));
        snapshots.mark_unchanged();
        gateway.ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev in");
        gateway.ip("link set out txqueuelen 500");
        gateway.ip("addr change 192.0.2.2/24 dev out valid_lft 3600 preferred_lft 3600");
        gateway.ip("route add 10.66.0.0/16 via 10.0.0.2 table 100");
        gateway.ip("-6 addr add 2001:db8::1/64 dev in nodad");
        let quiet = timeout(Duration::from_millis(300), snapshots.changed()).await.is_err();
        assert!(quiet, "published {:#?}", snapshots.borrow());
        gateway.ip("route add 10.77.0.0/16 via 10.0.0.2");
        until(&mut snapshots, "the route that matters", has_marker).await;
    });
}

#[test]
fn the_network_follows_links_going_down_and_up_and_the_silent_loss_of_their_routes() {
    let Some((gateway, peers)) = gateway() else { return };
    gateway.run(async || {
        gateway.all(&SETUP[..5]);
        let mirror = Mirror::start(names()).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        let remote = Ipv4Addr::new(203, 0, 113, 1);
        let goes_out = |state: &KernelState| {
            matches!(network(state, &sides()).route(remote), Some(Route::Via { interface: InterfaceId(1), .. }))
        };
        assert!(goes_out(&mirror.state()));

        peers.ip("link set server down");
        let state = until(&mut snapshots, "no carrier", |state| !network(state, &sides()).interfaces[1].up).await;
        assert!(goes_out(&state), "without a carrier the kernel keeps the route, and packets must not go elsewhere");
        peers.ip("link set server up");
        until(&mut snapshots, "carrier", |state| network(state, &sides()).interfaces[1].up).await;

        gateway.ip("link set out down");
        until(&mut snapshots, "down, and its routes gone without a notification", |state| {
            !network(state, &sides()).interfaces[1].up && network(state, &sides()).route(remote).is_none()
        })
        .await;
        gateway.ip("link set out up");
        gateway.ip("route add default via 192.0.2.1");
        until(&mut snapshots, "up again", |state| network(state, &sides()).interfaces[1].up && goes_out(state)).await;
        agrees_with_a_dump(&mirror).await;
    });
}

#[test]
fn an_address_that_is_replaced_and_a_default_route_that_changes_are_followed() {
    let Some((gateway, _peers)) = gateway() else { return };
    gateway.run(async || {
        gateway.all(&SETUP[..5]);
        let mirror = Mirror::start(names()).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        gateway.ip("addr add 192.0.2.77/24 dev out");
        gateway.ip("addr del 192.0.2.2/24 dev out");
        gateway.ip("addr add 198.51.100.9/24 dev out");
        gateway.ip("route replace default via 198.51.100.254");
        let state = until(&mut snapshots, "the new gateway", |state| {
            let gateway = Some(Ipv4Addr::new(198, 51, 100, 254));
            network(state, &sides()).route(Ipv4Addr::new(8, 8, 8, 8))
                == Some(Route::Via { interface: InterfaceId(1), gateway, mtu: None })
        })
        .await;
        let outside = &network(&state, &sides()).interfaces[1];
        assert!(!outside.addresses.iter().any(|prefix| prefix.addr() == Ipv4Addr::new(192, 0, 2, 2)), "{:?}", outside.addresses);
        assert!(outside.addresses.contains(&"198.51.100.9/24".parse().expect("prefix")));
        agrees_with_a_dump(&mirror).await;
    });
}

#[test]
fn an_interface_that_comes_back_with_another_index_is_the_same_interface() {
    let Some((gateway, peers)) = gateway() else { return };
    gateway.run(async || {
        let mirror = Mirror::start(names()).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        let (old, _) = mirror.state().link("out").map(|(index, link)| (index, link.clone())).expect("out");
        gateway.ip("link del out");
        let state = until(&mut snapshots, "gone", |state| state.link("out").is_none()).await;
        let gone = &network(&state, &sides()).interfaces[1];
        assert!(!gone.up && gone.addresses.is_empty() && gone.name == "out");
        assert_eq!(
            network(&state, &sides()).interface_of(DeviceId(1), None),
            None,
            "no frame belongs to an interface that is gone"
        );

        gateway.ip("link add filler type veth peer name filler2");
        gateway.connect("out", &peers, "server");
        gateway.ip("addr add 192.0.2.2/24 dev out");
        let state = until(&mut snapshots, "back", |state| network(state, &sides()).interfaces[1].up).await;
        assert_ne!(state.link("out").map(|(index, _)| index), Some(old));
        until(&mut snapshots, "with its address", |state| !network(state, &sides()).interfaces[1].addresses.is_empty()).await;
    });
}

#[test]
fn a_vlan_is_attached_at_its_parent_with_its_tag() {
    let Some((gateway, _peers)) = gateway() else { return };
    gateway.run(async || {
        let mirror = Mirror::start(vec!["in.7".into()]).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        if !gateway.try_ip("link add link in name in.7 type vlan id 7") {
            println!("SKIPPED (needs VLAN devices, which this kernel has not): a_vlan_is_attached_at_its_parent_with_its_tag");
            return;
        }
        gateway.ip("link set in.7 up");
        gateway.ip("addr add 10.7.0.1/24 dev in.7");
        gateway.ip("link add link in.7 name twice type vlan id 8");
        gateway.ip("link add link in name service type vlan proto 802.1ad id 9");
        let interfaces = vec![configured("in", Side::Inside, 4), configured("in.7", Side::Inside, 4)];
        let state = until(&mut snapshots, "the VLANs", |state| {
            state.link("service").is_some() && !network(state, &interfaces).interfaces[1].addresses.is_empty()
        })
        .await;
        let found = attachment(&state, "in.7").expect("attachment");
        assert_eq!((found.device.as_str(), found.vlan), ("in", Some(7)));
        assert!(attachment(&state, "twice").is_err());
        assert!(attachment(&state, "service").is_err());
        assert!(attachment(&state, "absent").is_err());
        let network = network(&state, &interfaces);
        assert_eq!(network.interface_of(DeviceId(4), Some(7)), Some(InterfaceId(1)));
        assert_eq!(network.interface_of(DeviceId(4), None), Some(InterfaceId(0)));
    });
}

/// Adds many routes while nobody reads the notifications, then takes the link down, and compares with a dump.
fn flood(receive_buffer: usize) {
    const ROUTES: u32 = 20_000;
    let Some((gateway, _peers)) = gateway() else { return };
    let route = |i: u32| format!("route add 100.{}.{}.0/24 via 192.0.2.1", 64 + (i >> 8), i & 255);
    let routes = (0..ROUTES).map(route).collect::<Vec<_>>().join(
        "
",
    );
    let path = std::env::temp_dir().join(format!("{}.batch", gateway.0));
    let many = |state: &KernelState| state.routes.values().filter(|entries| matches!(entries[0].target, Target::Hops(_))).count();
    gateway.run(async || {
        gateway.all(&SETUP[..2]);
        let mirror = Mirror::start_with_buffer(names(), receive_buffer).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        let before = many(&mirror.state());
        std::fs::write(&path, &routes).expect("batch file");
        gateway.ip(&format!("-batch {}", path.display()));
        let _ = std::fs::remove_file(&path);
        until(&mut snapshots, "all routes", |state| many(state) == before + ROUTES as usize).await;
        gateway.ip("link set out down");
        until(&mut snapshots, "all routes gone in silence", |state| many(state) < before).await;
        agrees_with_a_dump(&mirror).await;
    });
}

#[test]
fn a_flood_of_routes_is_followed_completely() {
    flood(RECEIVE_BUFFER);
}

#[test]
fn notifications_that_were_lost_in_a_flood_are_made_up_for() {
    flood(64 << 10);
}
