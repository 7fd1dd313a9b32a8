//! Port forwards: one server and several, ranges, from outside, from inside, and servers that speak first.

use std::collections::BTreeMap;

use portcullis_nat::policy::{Filtering, MappingBehaviour, Policy, Protocol};
use portcullis_nat::verdict::DropReason;
use portcullis_nat::view::SessionState;
use portcullis_testkit::builder::{ACK, PacketBuilder, SYN, endpoint};

mod common;

use common::{Gateway, Setup, X1, at, e1, e2, external, forward, h1, idle, seconds};

fn with(change: impl FnOnce(&mut Policy)) -> Gateway<'static> {
    Setup::new().policy(change).build()
}

#[test]
fn a_forward_leads_any_remote_to_its_server_whatever_the_filter() {
    let mut gateway = with(|policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &["10.0.0.5:8080"])]);
    let (server, front) = (endpoint("10.0.0.5:8080"), endpoint("203.0.113.10:80"));
    for remote in [e1(), e2(), at(e1(), 1)] {
        let seen = gateway.outside(&PacketBuilder::tcp(remote, front, SYN)).delivered();
        assert_eq!((seen.source, seen.destination), (remote, server));
        let seen = gateway.inside(&PacketBuilder::tcp(server, remote, SYN | ACK)).forwarded();
        assert_eq!((seen.source, seen.destination), (front, remote));
    }
    assert_eq!((gateway.mappings().len(), gateway.ports_used()), (0, 0), "a forward takes no port of the pool");
    gateway.outside(&PacketBuilder::udp(e1(), front)).is_dropped(DropReason::NoMapping);
    gateway.outside(&PacketBuilder::tcp(at(e1(), 9), front, ACK)).is_dropped(DropReason::TcpNotSyn);
}

#[test]
fn a_range_keeps_its_order_up_to_the_last_port() {
    let mut gateway = with(|policy| policy.forwards = vec![forward(Protocol::Udp, 65_000, 65_535, &["10.0.0.5:65000"])]);
    for port in [65_000, 65_001, 65_535] {
        let seen = gateway.outside(&PacketBuilder::udp(e1(), at(endpoint("203.0.113.10:1"), port))).delivered();
        assert_eq!(seen.destination, at(endpoint("10.0.0.5:1"), port));
    }
}

/// `config` refuses such a range; a policy by another hand must not bring the worker down.
#[test]
fn a_range_that_goes_beyond_the_servers_last_port_has_no_mapping_there() {
    let mut gateway = with(|policy| {
        policy.forwards = vec![forward(Protocol::Udp, 1000, 1009, &["10.0.0.5:65530"]), forward(Protocol::Udp, 2000, 2000, &[])];
    });
    let front = endpoint("203.0.113.10:1005");
    assert_eq!(gateway.outside(&PacketBuilder::udp(e1(), front)).delivered().destination.port, 65_535);
    gateway.outside(&PacketBuilder::udp(e1(), at(front, 1006))).is_dropped(DropReason::NoMapping);
    gateway.outside(&PacketBuilder::udp(e1(), at(front, 2000))).is_dropped(DropReason::NoMapping);
    gateway.external_of(endpoint("10.0.0.5:65535"), e2());
}

#[test]
fn several_servers_share_the_remotes_and_each_remote_stays_with_its_server() {
    let servers = ["10.0.0.5:80", "10.0.0.6:80", "10.0.0.7:81"];
    let mut gateway = with(|policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &servers)]);
    let front = endpoint("203.0.113.10:80");
    let mut counts = BTreeMap::new();
    for port in 1..=300 {
        let first = gateway.outside(&PacketBuilder::tcp(at(e1(), port), front, SYN)).delivered().destination;
        let again = gateway.outside(&PacketBuilder::tcp(at(e1(), port), front, SYN)).delivered().destination;
        assert_eq!(first, again);
        *counts.entry(first).or_insert(0) += 1;
        let answer = gateway.inside(&PacketBuilder::tcp(first, at(e1(), port), SYN | ACK)).forwarded();
        assert_eq!(answer.source, front);
    }
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), servers.map(endpoint));
    assert!(counts.values().all(|&count| count > 60), "{counts:?}");
}

#[test]
fn a_server_that_speaks_first_does_so_from_its_forwards_endpoint() {
    let servers = ["10.0.0.5:7000", "10.0.0.6:7000"];
    let mut gateway = with(|policy| policy.forwards = vec![forward(Protocol::Udp, 7000, 7009, &servers)]);
    let (front, speakers) = (endpoint("203.0.113.10:7003"), servers.map(|server| at(endpoint(server), 7003)));
    for port in 1..50 {
        let remote = at(e1(), port);
        let externals = speakers.map(|speaker| gateway.external_of(speaker, remote));
        let drawn = externals.iter().position(|&external| external == front).expect("one of them is the remote's server");
        assert_ne!(externals[1 - drawn], front, "answers to the other would not come back to it");
        for (speaker, external) in speakers.into_iter().zip(externals) {
            assert_eq!(gateway.outside(&PacketBuilder::udp(remote, external)).delivered().destination, speaker);
        }
    }
    assert_ne!(gateway.external_of(endpoint("10.0.0.5:7010"), e1()).port, 7010, "beyond the range");
}

#[test]
fn a_forward_is_usable_from_inside_and_by_the_server_itself() {
    let mut gateway = with(|policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &["10.0.0.5:8080"])]);
    let (server, front) = (endpoint("10.0.0.5:8080"), endpoint("203.0.113.10:80"));
    for client in [h1(), endpoint("10.0.0.5:40000")] {
        let seen = gateway.inside(&PacketBuilder::tcp(client, front, SYN)).delivered();
        assert_eq!((seen.source.address, seen.destination), (X1, server));
        let back = gateway.inside(&PacketBuilder::tcp(server, seen.source, SYN | ACK)).delivered();
        assert_eq!((back.source, back.destination), (front, client));
        gateway.inside(&PacketBuilder::tcp(client, front, ACK)).delivered();
    }
    assert!(gateway.sessions().iter().all(|session| session.state == SessionState::Established));
    let seen = gateway.inside(&PacketBuilder::tcp(server, front, SYN)).delivered();
    assert_eq!((seen.source, seen.destination), (front, server), "what a server sends to its own endpoint comes back to it");
}

#[test]
fn a_remote_that_the_server_already_speaks_to_under_a_mapping_conflicts() {
    let mut gateway = with(|_| {});
    let server = endpoint("10.0.0.5:8080");
    gateway.external_of_tcp(server, e1());
    gateway.adopt(|policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &["10.0.0.5:8080"])]);
    let front = endpoint("203.0.113.10:80");
    gateway.outside(&PacketBuilder::tcp(e1(), front, SYN)).is_dropped(DropReason::SessionConflict);
    gateway.outside(&PacketBuilder::tcp(e2(), front, SYN)).delivered();
}

/// What a look-up no longer finds is in no one's way until the sweep comes.
#[test]
fn a_session_that_has_ended_is_no_conflict() {
    let mut gateway = with(|policy| policy.timeouts.tcp_opening = idle(240));
    let server = endpoint("10.0.0.5:8080");
    gateway.external_of_tcp(server, e1());
    gateway.adopt(|policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &["10.0.0.5:8080"])]);
    gateway.skip(seconds(241));
    gateway.outside(&PacketBuilder::tcp(e1(), endpoint("203.0.113.10:80"), SYN)).delivered();
}

#[test]
fn a_forward_on_a_slot_without_address_leads_nowhere_and_blocks_nothing() {
    let mut gateway = with(|policy| {
        policy.externals = vec![portcullis_nat::policy::External { address: None, ..external(X1) }, external(common::X2)];
        policy.forwards = vec![forward(Protocol::Udp, 80, 80, &["10.0.0.5:80"])];
    });
    assert_eq!(gateway.external_of(endpoint("10.0.0.5:80"), e1()).address, common::X2);
}

/// With endpoint-dependent mappings an endpoint may have several sessions' external endpoints, but one for each remote.
#[test]
fn one_internal_endpoint_never_has_two_sessions_with_one_remote() {
    let mut gateway = with(|policy| {
        policy.mapping = MappingBehaviour::AddressAndPortDependent;
        policy.filtering_udp = Filtering::EndpointIndependent;
    });
    let first = gateway.external_of(h1(), e1());
    gateway.external_of(h1(), e2());
    gateway.outside(&PacketBuilder::udp(e2(), first)).is_dropped(DropReason::SessionConflict);
    gateway.inside(&PacketBuilder::udp(h1(), e2())).on(common::OUTSIDE);
}
