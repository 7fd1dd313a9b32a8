//! Next hops resolved and kept fresh by the kernel, with a real peer that answers or does not.

use std::net::Ipv4Addr;

use portcullis_nat::policy::InterfaceId;
use tokio::time::{Instant, sleep};

use super::*;
use crate::kernel::resolver::Pace;
use crate::kernel::{Mirror, Requests, Resolver};

const OUT: InterfaceId = InterfaceId(1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Seconds shortened to what a test can wait for; the order of the times is kept.
const FAST: Pace = Pace {
    ask: Duration::from_millis(50),
    refresh: Duration::from_millis(300),
    idle: Duration::from_millis(1500),
    step: Duration::from_millis(50),
};

fn link() -> Option<(Namespace, Namespace)> {
    let gateway = Namespace::new()?;
    let peer = Namespace::new()?;
    gateway.connect("out", &peer, "server");
    gateway.ip("addr add 192.0.2.2/24 dev out");
    Some((gateway, peer))
}

async fn start() -> (Mirror, Resolver) {
    let mirror = Mirror::start(vec!["out".into()]).await.expect("mirror");
    let requests = Requests::open().expect("requests");
    let resolver = Resolver::start_at_pace(mirror.subscribe(), requests, vec!["in".into(), "out".into()], FAST);
    (mirror, resolver)
}

fn knows(state: &KernelState, address: Ipv4Addr) -> bool {
    state.link("out").is_some_and(|(index, _)| state.neighbours.contains_key(&(index, address)))
}

/// The kernel's word for the state of the peer's entry.
fn neighbour_state(gateway: &Namespace) -> String {
    let output = Command::new("ip").args(["-n", &gateway.0, "neigh", "show", "192.0.2.1", "dev", "out"]).output().expect("ip");
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().last().unwrap_or_default().to_owned()
}

async fn until_neighbour_is(gateway: &Namespace, wanted: &str) {
    let start = Instant::now();
    while neighbour_state(gateway) != wanted {
        assert!(start.elapsed() < PATIENCE, "not {wanted}: {}", neighbour_state(gateway));
        sleep(Duration::from_millis(20)).await;
    }
}

fn neighbour_sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv4/neigh/out/{name}"), value).expect("sysctl");
}

#[test]
fn a_next_hop_that_is_wanted_is_resolved_by_the_kernel() {
    let Some((gateway, peer)) = link() else { return };
    peer.ip("addr add 192.0.2.1/24 dev server");
    gateway.run(async || {
        let (mirror, resolver) = start().await;
        assert!(!knows(&mirror.state(), PEER));
        resolver.resolve(OUT, PEER);
        until(&mut mirror.subscribe(), "the peer's address", |state| knows(state, PEER)).await;
    });
}

#[test]
fn a_next_hop_that_failed_is_asked_again_when_it_is_wanted() {
    let Some((gateway, peer)) = link() else { return };
    gateway.run(async || {
        neighbour_sysctl("retrans_time_ms", "50");
        let (mirror, resolver) = start().await;
        resolver.resolve(OUT, PEER);
        until_neighbour_is(&gateway, "FAILED").await;
        assert!(!knows(&mirror.state(), PEER));
        peer.ip("addr add 192.0.2.1/24 dev server");
        resolver.resolve(OUT, PEER);
        until(&mut mirror.subscribe(), "the peer's address", |state| knows(state, PEER)).await;
    });
}

#[test]
fn a_next_hop_in_use_is_kept_reachable_and_left_alone_afterwards() {
    let Some((gateway, peer)) = link() else { return };
    peer.ip("addr add 192.0.2.1/24 dev server");
    gateway.run(async || {
        neighbour_sysctl("base_reachable_time_ms", "200");
        neighbour_sysctl("delay_first_probe_time", "0");
        let (mirror, resolver) = start().await;
        resolver.resolve(OUT, PEER);
        until(&mut mirror.subscribe(), "the peer's address", |state| knows(state, PEER)).await;
        for round in 0..2 {
            gateway.ip("neigh change 192.0.2.1 dev out nud stale");
            resolver.used(OUT, PEER);
            until_neighbour_is(&gateway, "REACHABLE").await;
            println!("confirmed {round}");
        }
        let idle = Instant::now();
        let mut stale_since = Instant::now();
        while stale_since.elapsed() < FAST.refresh * 4 {
            assert!(idle.elapsed() < PATIENCE, "it is still being confirmed");
            if neighbour_state(&gateway) != "STALE" {
                stale_since = Instant::now();
            }
            sleep(Duration::from_millis(20)).await;
        }
        assert!(knows(&mirror.state(), PEER), "stale is still usable");
    });
}

#[test]
fn a_next_hop_that_stops_answering_while_in_use_is_given_up() {
    let Some((gateway, peer)) = link() else { return };
    peer.ip("addr add 192.0.2.1/24 dev server");
    gateway.run(async || {
        neighbour_sysctl("base_reachable_time_ms", "200");
        neighbour_sysctl("delay_first_probe_time", "0");
        neighbour_sysctl("retrans_time_ms", "50");
        let (mirror, resolver) = start().await;
        let mut snapshots = mirror.subscribe();
        resolver.resolve(OUT, PEER);
        until(&mut snapshots, "the peer's address", |state| knows(state, PEER)).await;
        peer.ip("addr del 192.0.2.1/24 dev server");
        let start = Instant::now();
        while knows(&mirror.state(), PEER) {
            assert!(start.elapsed() < PATIENCE, "still believed in");
            resolver.used(OUT, PEER);
            sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn a_permanent_neighbour_stays_permanent() {
    let Some((gateway, _peer)) = link() else { return };
    gateway.ip("neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev out");
    gateway.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 nud stale dev out");
    gateway.run(async || {
        neighbour_sysctl("delay_first_probe_time", "0");
        let (_mirror, resolver) = start().await;
        resolver.used(OUT, PEER);
        resolver.resolve(OUT, PEER);
        // The reports are taken in order: when the later one shows, the earlier ones have been dealt with.
        let other = Ipv4Addr::new(192, 0, 2, 9);
        resolver.used(OUT, other);
        let start = Instant::now();
        loop {
            let output = Command::new("ip").args(["-n", &gateway.0, "neigh", "show", "192.0.2.9"]).output().expect("ip");
            if !String::from_utf8_lossy(&output.stdout).contains("STALE") {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "the stale one was never probed");
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(neighbour_state(&gateway), "PERMANENT");
    });
}
