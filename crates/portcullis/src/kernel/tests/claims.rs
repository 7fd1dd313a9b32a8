//! Pool addresses claimed on a real interface, and a peer that asks for them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::*;
use crate::kernel::{Claims, Forwarding, Mirror, Requests, Wanted, local_port_range};

const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 11)];

fn link() -> Option<(Namespace, Namespace)> {
    let gateway = Namespace::new()?;
    let peer = Namespace::new()?;
    gateway.connect("out", &peer, "server");
    gateway.ip("addr add 192.0.2.2/24 dev out");
    peer.ip("addr add 192.0.2.1/24 dev server");
    Some((gateway, peer))
}

fn wanted(pool: &[Ipv4Addr]) -> Wanted {
    Wanted { outside: vec!["out".into()], pool: pool.iter().copied().collect() }
}

fn start(mirror: &Mirror, pool: &[Ipv4Addr]) -> Claims {
    Claims::start(mirror.subscribe(), Requests::open().expect("requests"), wanted(pool))
}

fn has(state: &KernelState, prefix: &str) -> bool {
    let prefix: Ipv4Net = prefix.parse().expect("prefix");
    state.link("out").is_some_and(|(index, _)| state.addresses_of(index).iter().any(|address| address.prefix == prefix))
}

fn has_claims(state: &KernelState) -> bool {
    has(state, "192.0.2.10/32") && has(state, "192.0.2.11/32")
}

fn answers_ping(from: &Namespace, address: &str) -> bool {
    let output = Command::new("ip").args(["netns", "exec", &from.0, "ping", "-c", "1", "-W", "2", address]).output().expect("ping");
    output.status.success()
}

#[test]
fn claimed_addresses_answer_and_are_removed_at_the_end_and_nothing_else_is() {
    let Some((gateway, peer)) = link() else { return };
    gateway.ip("addr add 192.0.2.77/32 dev out noprefixroute");
    gateway.run(async || {
        let mirror = Mirror::start(vec!["out".into()]).await.expect("mirror");
        let before = mirror.state();
        let claims = start(&mirror, &POOL);
        let mut snapshots = mirror.subscribe();
        let state = until(&mut snapshots, "the claims", has_claims).await;
        let connected =
            |state: &KernelState| state.routes.keys().filter(|(table, _)| *table == crate::kernel::state::Table::Main).count();
        assert_eq!(connected(&state), connected(&before), "no prefix routes");
        assert!(answers_ping(&peer, "192.0.2.10"));
        claims.release().await;
        let state = until(&mut snapshots, "no claims", |state| !has(state, "192.0.2.10/32") && !has(state, "192.0.2.11/32")).await;
        assert_eq!(state.addresses, before.addresses);
    });
}

#[test]
fn claims_are_released_even_when_the_mirror_has_ended() {
    let Some((gateway, _peer)) = link() else { return };
    gateway.run(async || {
        let mirror = Mirror::start(vec!["out".into()]).await.expect("mirror");
        let claims = start(&mirror, &POOL);
        until(&mut mirror.subscribe(), "the claims", has_claims).await;
        drop(mirror);
        claims.release().await;
        let mirror = Mirror::start(vec![]).await.expect("mirror");
        assert!(!has(&mirror.state(), "192.0.2.10/32") && !has(&mirror.state(), "192.0.2.11/32"));
    });
}

#[test]
fn claims_left_by_a_dead_process_are_adopted_and_those_no_longer_wanted_are_removed() {
    let Some((gateway, _peer)) = link() else { return };
    gateway.run(async || {
        let mirror = Mirror::start(vec!["out".into()]).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        drop(start(&mirror, &POOL));
        until(&mut snapshots, "claims that outlive their task", has_claims).await;
        let claims = start(&mirror, &POOL[..1]);
        until(&mut snapshots, "one claim", |state| has(state, "192.0.2.10/32") && !has(state, "192.0.2.11/32")).await;
        claims.release().await;
        until(&mut snapshots, "no claim", |state| !has(state, "192.0.2.10/32")).await;
    });
}

#[test]
fn a_claim_that_someone_removes_is_claimed_again_and_one_that_someone_takes_over_is_left_to_him() {
    let Some((gateway, _peer)) = link() else { return };
    gateway.run(async || {
        let mirror = Mirror::start(vec!["out".into()]).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        let claims = start(&mirror, &POOL);
        until(&mut snapshots, "the claims", has_claims).await;
        gateway.ip("addr del 192.0.2.10/32 dev out");
        until(&mut snapshots, "the removal", |state| !has(state, "192.0.2.10/32")).await;
        until(&mut snapshots, "the claim again", has_claims).await;

        gateway.ip("addr add 192.0.2.11/24 dev out");
        until(&mut snapshots, "the operator's own", |state| has(state, "192.0.2.11/24") && !has(state, "192.0.2.11/32")).await;
        claims.release().await;
        let state = until(&mut snapshots, "the other claim gone", |state| !has(state, "192.0.2.10/32")).await;
        assert!(has(&state, "192.0.2.11/24"), "it is not ours to remove");
    });
}

#[test]
fn claims_follow_the_interface_its_subnet_and_a_reload() {
    let Some((gateway, peer)) = link() else { return };
    gateway.run(async || {
        let mirror = Mirror::start(vec!["out".into()]).await.expect("mirror");
        let mut snapshots = mirror.subscribe();
        let claims = start(&mirror, &POOL);
        until(&mut snapshots, "the claims", has_claims).await;
        gateway.ip("link del out");
        until(&mut snapshots, "gone", |state| state.link("out").is_none()).await;
        gateway.connect("out", &peer, "server");
        gateway.ip("addr add 192.0.2.2/24 dev out");
        until(&mut snapshots, "the claims on the new device", has_claims).await;
        claims.set(wanted(&POOL[1..]));
        until(&mut snapshots, "the reload", |state| !has(state, "192.0.2.10/32") && has(state, "192.0.2.11/32")).await;
        gateway.ip("addr del 192.0.2.2/24 dev out");
        until(&mut snapshots, "nothing without the subnet", |state| !has(state, "192.0.2.10/32") && !has(state, "192.0.2.11/32"))
            .await;
        claims.release().await;
    });
}

#[test]
fn the_namespaces_own_switches_are_read() {
    let Some((gateway, _peer)) = link() else { return };
    gateway.run(async || {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("sysctl");
        std::fs::write("/proc/sys/net/ipv4/conf/out/forwarding", "0").expect("sysctl");
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 50000").expect("sysctl");
        let forwarding = Forwarding::read(["out", "absent"]).expect("switches");
        assert_eq!(forwarding, Forwarding { global: true, interfaces: vec![("out".into(), false)] });
        assert_eq!(local_port_range().expect("range"), (40000, 50000));
    });
}
