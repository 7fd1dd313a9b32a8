//! Bare mappings: UDP that is kept without sessions, with endpoint-independent mapping and filtering (RFC 4787, REQ-1 and REQ-8).
//!
//! What else holds of UDP has the other files' tests. Here is what bare mappings do otherwise, what they do all the same, and where UDP has
//! sessions even so: under forwards. Random scenarios in both ways are in `testkit`, against the reference NAT.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use portcullis_nat::SWEEP_ROUND;
use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Endpoint, External, Filtering, MappingBehaviour, Policy, PortHold, PortParity, PortSet, Protocol};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_testkit::builder::{ACK, PacketBuilder, Query, SYN, endpoint};

mod common;

use common::{Gateway, INSIDE, OUTSIDE, Setup, X1, X2, X3, at, e1, e2, external, forward, h1, h2, idle, seconds};

/// A millisecond more than the time of a UDP mapping: what a timer shows that has just been set.
const FRESH: u32 = seconds(300) + 1;

fn udp(from: Endpoint, to: Endpoint) -> PacketBuilder {
    PacketBuilder::udp(from, to).payload(b"payload")
}

fn with(change: impl FnOnce(&mut Policy)) -> Gateway<'static> {
    Setup::new().bare(1000).policy(change).build()
}

fn plain() -> Gateway<'static> {
    with(|_| {})
}

fn host(last: u8, port: u16) -> Endpoint {
    Endpoint { address: Ipv4Addr::new(10, 0, 0, last), port }
}

/// A forward of X1's port 7000, and its server.
fn forwarded() -> (Endpoint, Endpoint) {
    (Endpoint { address: X1, port: 7000 }, endpoint("10.0.0.5:70"))
}

fn with_forward() -> Gateway<'static> {
    with(|policy| policy.forwards = vec![forward(Protocol::Udp, 7000, 7000, &["10.0.0.5:70"])])
}

/// Puts a UDP forward over an external port, as the configuration does: the pool has the port no more.
fn forward_over(gateway: &mut Gateway<'_>, port: u16, servers: &[&str]) {
    gateway.adopt(|policy| {
        policy.forwards.push(forward(Protocol::Udp, port, port, servers));
        policy.externals[0].ports.remove_range(port, port);
    });
}

fn is_shown(gateway: &Gateway<'_>, internal: Endpoint) -> bool {
    gateway.mappings().iter().any(|view| view.internal == internal)
}

#[test]
fn udp_has_one_mapping_for_all_remotes_and_no_session() {
    let mut gateway = plain();
    let external = gateway.external_of(h1(), e1());
    for remote in [e2(), at(e1(), 54), at(e2(), 1)] {
        assert_eq!(gateway.external_of(h1(), remote), external);
        assert_eq!(gateway.outside(&udp(remote, external)).delivered().destination, h1());
    }
    assert_eq!(gateway.sessions(), []);
    let [view] = gateway.mappings()[..] else { panic!("one mapping") };
    assert_eq!((view.protocol, view.internal, view.external), (Protocol::Udp, h1(), external));
    assert_eq!((view.scope, view.sessions, view.bare.is_some()), (None, 0, true));
    assert_eq!((gateway.count(Counter::MappingsCreated), gateway.count(Counter::SessionsCreated)), (1, 0));
}

#[test]
fn tcp_and_queries_have_sessions_as_ever() {
    let mut gateway = plain();
    gateway.external_of(h1(), e1());
    let tcp = gateway.external_of_tcp(h1(), e1());
    gateway.inside(&PacketBuilder::query(h1().address, e1().address, Query::Echo, 7)).forwarded();
    let protocols: BTreeSet<_> = gateway.sessions().iter().map(|session| session.protocol).collect();
    assert_eq!(protocols, [Protocol::Icmp, Protocol::Tcp].into());
    let bare: Vec<_> = gateway.mappings().iter().map(|view| (view.protocol, view.sessions, view.bare.is_some())).collect();
    assert_eq!(BTreeSet::from_iter(bare), [(Protocol::Icmp, 1, false), (Protocol::Tcp, 1, false), (Protocol::Udp, 0, true)].into());
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, SYN)).is_dropped(DropReason::Filtered);
    gateway.outside(&PacketBuilder::tcp(e1(), tcp, SYN | ACK)).delivered();
}

#[test]
fn any_remote_is_let_in_whatever_filter_and_mapping_are_set_for_others() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
        for mapping in [MappingBehaviour::EndpointIndependent, MappingBehaviour::AddressAndPortDependent] {
            let mut gateway = with(|policy| (policy.filtering_udp, policy.mapping) = (filtering, mapping));
            let external = gateway.external_of(h1(), e1());
            assert_eq!(gateway.external_of(h1(), e2()), external);
            assert_eq!(gateway.outside(&udp(endpoint("198.18.7.7:7"), external)).delivered().destination, h1());
            let free = at(external, if external.port > 9000 { external.port - 8000 } else { external.port + 8000 });
            gateway.outside(&udp(e1(), free)).is_dropped(DropReason::NoMapping);
            let connections = [e1(), e2()].map(|remote| gateway.external_of_tcp(h1(), remote));
            assert_eq!(connections[0] == connections[1], mapping == MappingBehaviour::EndpointIndependent);
        }
    }
}

#[test]
fn on_a_shared_address_what_no_mapping_has_is_left_to_the_host() {
    let mut gateway = with(|policy| policy.externals[0].shared_with_host = true);
    let external = gateway.external_of(h1(), e1());
    assert_eq!(gateway.outside(&udp(e2(), at(external, 53))).verdict, Verdict::Punt);
    gateway.outside(&udp(e2(), external)).delivered();
    gateway.skip(FRESH);
    assert_eq!(gateway.outside(&udp(e2(), external)).verdict, Verdict::Punt);
}

#[test]
fn addresses_and_ports_are_chosen_as_for_other_mappings() {
    let mut gateway = with(|policy| {
        policy.externals = [X1, X2, X3].map(|address| External { ports: PortSet::range(1, 65_535), ..external(address) }).to_vec();
        policy.port_parity = PortParity::Preserve;
    });
    let mut given = BTreeSet::new();
    for last in 2..20 {
        let tcp = gateway.external_of_tcp(host(last, 9), e1()).address;
        for port in [9, 10, 5001, 5002] {
            let external = gateway.external_of(host(last, port), e1());
            assert_eq!((external.address, external.port < 1024, external.port % 2), (tcp, port < 1024, port % 2));
            assert!(given.insert(external), "{external:?} was given twice");
        }
    }
    assert_eq!(given.iter().map(|external| external.address).collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn who_finds_no_port_or_no_address_is_told_so() {
    let mut gateway = with(|policy| policy.externals[0].ports = PortSet::range(5000, 5031));
    let ports = gateway.ports_for(h1(), X1).len() as u16;
    let externals: Vec<_> = (0..ports).map(|n| gateway.external_of(at(h1(), 100 + n), e1())).collect();
    gateway.inside(&udp(at(h1(), 99), e1())).answered(INSIDE, 3, 13);
    assert_eq!(gateway.dropped(DropReason::PortsExhausted), 1);
    for (n, external) in externals.into_iter().enumerate() {
        assert_eq!(gateway.outside(&udp(e2(), external)).delivered().destination, at(h1(), 100 + n as u16));
    }
    let mut gateway = with(|policy| policy.externals[0].address = None);
    gateway.inside(&udp(h1(), e1())).answered(INSIDE, 3, 13);
    assert_eq!(gateway.dropped(DropReason::NoExternalAddress), 1);
    gateway.assert_empty();
}

/// Each row: mappings and bare mappings that fit, and how many hosts get one.
#[test]
fn a_full_table_refuses_newcomers_keeps_what_it_has_and_recovers() {
    for (mappings, bare, fit) in [(8, 1000, 8), (1000, 8, 8), (1, 1, 1)] {
        let mut gateway = Setup::new().workers(1).capacity(mappings, 64, 8).bare(bare).build();
        for round in 0..3 {
            let externals: Vec<_> = (0..fit).map(|n| gateway.external_of(at(h1(), 100 * round + n), e1())).collect();
            gateway.inside(&udp(h2(), e1())).answered(INSIDE, 3, 13);
            assert_eq!(gateway.dropped(DropReason::MappingsFull), u64::from(round) + 1);
            for (n, external) in externals.into_iter().enumerate() {
                assert_eq!(gateway.external_of(at(h1(), 100 * round + n as u16), e2()), external);
            }
            assert_eq!(gateway.nat.gauges().mappings, u32::from(fit));
            gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
            gateway.assert_empty();
        }
    }
}

#[test]
fn mappings_of_all_protocols_share_one_limit() {
    let mut gateway = Setup::new().workers(1).capacity(3, 64, 8).bare(3).build();
    gateway.external_of(h1(), e1());
    gateway.external_of_tcp(h1(), e1());
    gateway.inside(&PacketBuilder::query(h1().address, e1().address, Query::Echo, 7)).forwarded();
    let refused =
        [udp(h2(), e1()), PacketBuilder::tcp(h2(), e1(), SYN), PacketBuilder::query(h2().address, e1().address, Query::Echo, 7)];
    for packet in refused {
        gateway.inside(&packet).answered(INSIDE, 3, 13);
    }
    assert_eq!((gateway.dropped(DropReason::MappingsFull), gateway.nat.gauges().mappings), (3, 3));
}

#[test]
fn no_room_for_sessions_is_needed() {
    let mut gateway = Setup::new().workers(1).capacity(64, 1, 8).bare(64).build();
    gateway.external_of_tcp(h1(), e1());
    for n in 0..50 {
        gateway.external_of(at(h2(), n), e1());
    }
    gateway.external_of(h2(), e2());
    let gauges = gateway.nat.gauges();
    assert_eq!((gauges.sessions, gauges.mappings, gauges.subscribers), (1, 52, 2));
    gateway.inside(&PacketBuilder::tcp(h2(), e1(), SYN)).answered(INSIDE, 3, 13);
    assert_eq!(gateway.dropped(DropReason::SessionsFull), 1);
}

/// RFC 4787, "REQ-6: The NAT mapping Refresh Direction MUST have a "NAT Outbound refresh behavior" of "True"", towards whomever.
#[test]
fn packets_from_inside_keep_it_and_it_ends_a_timeout_after_the_last() {
    let mut gateway = plain();
    let external = gateway.external_of(h1(), e1());
    for n in 0..10 {
        gateway.wait(seconds(300));
        assert_eq!(gateway.external_of(h1(), at(e2(), n)), external);
        assert_eq!(gateway.bare(h1()), Some((FRESH, u32::from(n) + 2, 0)));
    }
    gateway.skip(seconds(300));
    gateway.outside(&udp(e1(), external)).delivered();
    gateway.skip(1);
    gateway.outside(&udp(e1(), external)).is_dropped(DropReason::NoMapping);
    assert_eq!(gateway.mappings(), []);
    assert_ne!(gateway.external_of(h1(), e1()).port, 0);
    assert_eq!(gateway.bare(h1()), Some((FRESH, 1, 0)), "a new one");
}

/// RFC 7857, section 7: what comes from outside keeps no mapping alive by default.
#[test]
fn packets_from_outside_keep_it_only_where_they_are_wished_to() {
    for (inbound_refresh, left) in [(false, 101), (true, 300)] {
        let mut gateway = with(|policy| policy.inbound_refresh = inbound_refresh);
        let external = gateway.external_of(h1(), e1());
        gateway.external_of(h2(), e1());
        gateway.wait(seconds(199));
        gateway.outside(&udp(e1(), external)).delivered();
        assert_eq!(gateway.bare(h1()), Some((seconds(left) + 1, 1, 1)), "also from whom the inside has spoken to");
        // A hairpin is from inside to its sender, and from outside to its receiver.
        gateway.inside(&udp(h2(), external)).delivered();
        assert_eq!(gateway.bare(h1()), Some((seconds(left) + 1, 1, 2)));
        assert_eq!(gateway.bare(h2()), Some((FRESH, 2, 0)));
        gateway.wait(seconds(left) + 1);
        gateway.outside(&udp(e1(), external)).is_dropped(DropReason::NoMapping);
    }
}

/// A bare mapping has one time for all remotes.
#[test]
fn the_times_of_the_remotes_ports_are_for_sessions_under_forwards_only() {
    let (_, server) = forwarded();
    let mut gateway = with(|policy| {
        policy.forwards = vec![forward(Protocol::Udp, 7000, 7000, &["10.0.0.5:70"])];
        policy.udp_ports = BTreeMap::from([(53, idle(30))]);
    });
    gateway.external_of(h1(), e1());
    gateway.external_of(server, e1());
    assert_eq!(gateway.bare(h1()), Some((FRESH, 1, 0)));
    assert_eq!(gateway.sessions().iter().map(|session| session.expires_in).collect::<Vec<_>>(), [seconds(30) + 1]);
}

#[test]
fn a_reload_gives_live_ones_the_time_of_the_new_rules() {
    let mut gateway = plain();
    gateway.external_of(h1(), e1());
    gateway.wait(seconds(100));
    gateway.adopt(|policy| policy.timeouts.udp = idle(150));
    assert_eq!(gateway.bare(h1()), Some((seconds(50) + 1, 1, 0)));
    gateway.wait(seconds(50) + 1);
    assert_eq!(gateway.mappings(), []);
}

#[test]
fn the_sweep_takes_back_all_that_has_ended_within_a_round() {
    for (count, step) in [(1, 1), (3, 7), (100, 100), (900, 500)] {
        let mut gateway = plain();
        for n in 0..count {
            gateway.external_of(at(if n % 2 == 0 { h1() } else { h2() }, 1000 + n), e1());
        }
        let gauges = gateway.nat.gauges();
        assert_eq!((gauges.mappings, gauges.sessions, gateway.ports_used()), (u32::from(count), 0, u32::from(count)));
        gateway.skip(seconds(300));
        let mut waited = 0;
        while waited <= SWEEP_ROUND {
            gateway.now = gateway.now.after(step);
            waited += step;
            gateway.nat.expire(gateway.now);
        }
        gateway.assert_empty();
        let counts =
            [Counter::MappingsCreated, Counter::MappingsRemoved, Counter::SessionsCreated].map(|which| gateway.count(which));
        assert_eq!(counts, [u64::from(count), u64::from(count), 0]);
    }
}

/// RFC 6888, "REQ-8: Once an external port is deallocated, it SHOULD NOT be reallocated to a new mapping until at least 120 seconds have
/// passed".
#[test]
fn its_port_is_free_when_it_has_ended_or_rests_where_it_is_to() {
    for (hold, rests) in [(0, false), (120, true)] {
        let change = |policy: &mut Policy| {
            policy.externals[0].ports = PortSet::range(5000, 5000);
            policy.port_hold = PortHold { time: idle(hold), most: 100 };
        };
        let mut gateway = Setup::new().workers(1).bare(1000).policy(change).build();
        gateway.external_of(h1(), e1());
        gateway.inside(&udp(h2(), e1())).answered(INSIDE, 3, 13);
        gateway.wait(seconds(300) + SWEEP_ROUND + 1);
        let usage = gateway.nat.port_use().into_iter().find(|usage| usage.protocol == Protocol::Udp).expect("an address");
        assert_eq!((usage.used, usage.resting), (0, u32::from(rests)));
        if rests {
            gateway.inside(&udp(h2(), e1())).answered(INSIDE, 3, 13);
            gateway.wait(seconds(121));
        }
        assert_eq!(gateway.external_of(h2(), e1()).port, 5000);
    }
}

#[test]
fn packets_are_counted_each_way_and_what_is_dropped_is_not() {
    let mut gateway = plain();
    let external = gateway.external_of(h1(), e1());
    for n in 1..=5_u32 {
        gateway.external_of(h1(), at(e1(), n as u16));
        gateway.outside(&udp(at(e2(), n as u16), external)).delivered();
        gateway.outside(&udp(at(e2(), n as u16), external)).delivered();
        assert_eq!(gateway.bare(h1()), Some((FRESH, n + 1, 2 * n)));
    }
    gateway.outside(&udp(e1(), external).ttl(1)).answered(OUTSIDE, 11, 0);
    gateway.inside(&udp(h1(), e1()).ttl(1)).answered(INSIDE, 11, 0);
    assert_eq!(gateway.bare(h1()), Some((FRESH, 6, 10)));
}

/// RFC 4787, "REQ-9: A NAT MUST support "Hairpinning"", with the external source.
#[test]
fn hairpins_meet_without_holes_to_be_punched() {
    let mut gateway = plain();
    let external = gateway.external_of(h2(), e1());
    let seen = gateway.inside(&udp(h1(), external)).delivered();
    assert_eq!((seen.source.address, seen.destination, seen.ttl), (X1, h2(), 63));
    let back = gateway.inside(&udp(h2(), seen.source)).delivered();
    assert_eq!((back.source, back.destination), (external, h1()));
    assert_eq!((gateway.bare(h1()), gateway.bare(h2())), (Some((FRESH, 1, 1)), Some((FRESH, 2, 1))));
    assert_eq!((gateway.sessions().len(), gateway.count(Counter::Hairpin)), (0, 2));
}

#[test]
fn a_hairpin_to_nobody_leaves_the_senders_mapping_and_one_to_oneself_comes_back() {
    let mut gateway = plain();
    gateway.inside(&udp(h1(), endpoint("203.0.113.10:9"))).is_dropped(DropReason::NoMapping);
    assert_eq!(gateway.bare(h1()), Some((FRESH, 1, 0)));
    let external = gateway.mappings()[0].external;
    let seen = gateway.inside(&udp(h1(), external)).delivered();
    assert_eq!((seen.source, seen.destination), (external, h1()));
    assert_eq!(gateway.bare(h1()), Some((FRESH, 2, 1)));
}

#[test]
fn a_forward_has_sessions_from_outside_and_in_hairpins() {
    let mut gateway = with_forward();
    let (front, server) = forwarded();
    assert_eq!(gateway.outside(&udp(e1(), front)).delivered().destination, server);
    let asked = gateway.inside(&udp(h1(), front)).delivered();
    assert_eq!(asked.destination, server);
    assert_eq!((gateway.sessions().len(), gateway.mappings().len()), (2, 1), "the client's mapping is bare");
    assert_eq!(gateway.inside(&udp(server, e1())).forwarded().source, front);
    let answer = gateway.inside(&udp(server, asked.source)).delivered();
    assert_eq!((answer.source, answer.destination), (front, h1()));
    assert_eq!(gateway.bare(h1()), Some((FRESH, 1, 1)));
    assert!(!is_shown(&gateway, server));
}

#[test]
fn a_server_speaks_first_from_its_forward_and_from_other_ports_by_a_mapping() {
    let mut gateway = with_forward();
    let (front, server) = forwarded();
    assert_eq!(gateway.external_of(server, e2()), front);
    let beside = gateway.external_of(at(server, 71), e2());
    assert_ne!(beside, front);
    assert_eq!((gateway.sessions().len(), gateway.bare(at(server, 71))), (1, Some((FRESH, 1, 0))));
    assert_eq!(gateway.outside(&udp(e1(), beside)).delivered().destination, at(server, 71));
}

/// Of several servers the one that is drawn for a remote speaks to it from the forward, and the others by mappings of their own.
#[test]
fn a_server_that_a_remote_is_not_led_to_has_a_mapping_for_it() {
    let servers = ["10.0.0.5:70", "10.0.0.6:70"];
    let mut gateway = with(|policy| policy.forwards = vec![forward(Protocol::Udp, 7000, 7000, &servers)]);
    let front = forwarded().0;
    for port in 1..50 {
        let remote = at(e1(), port);
        let externals = servers.map(|server| gateway.external_of(endpoint(server), remote));
        assert_eq!(externals.iter().filter(|&&external| external == front).count(), 1);
        for (server, external) in servers.iter().zip(externals) {
            assert_eq!(gateway.outside(&udp(remote, external)).delivered().destination, endpoint(server));
        }
    }
    assert_eq!((gateway.sessions().len(), gateway.mappings().len()), (49, 2));
}

#[test]
fn a_forward_that_finds_no_room_for_a_session_refuses_and_bare_mappings_go_on() {
    let one = forward(Protocol::Udp, 7000, 7000, &["10.0.0.5:70"]);
    let mut gateway = Setup::new().workers(1).capacity(64, 1, 8).bare(64).policy(|policy| policy.forwards = vec![one]).build();
    let (front, server) = forwarded();
    gateway.outside(&udp(e1(), front)).delivered();
    gateway.outside(&udp(e2(), front)).is_dropped(DropReason::SessionsFull);
    gateway.inside(&udp(server, e2())).answered(INSIDE, 3, 13);
    gateway.inside(&udp(h1(), front)).is_dropped(DropReason::SessionsFull);
    assert_eq!(gateway.bare(h1()), Some((FRESH, 1, 0)), "a hairpin's first half stays");
    gateway.external_of(h1(), e2());
}

/// RFC 5508, REQ-4 and REQ-5; RFC 4787, REQ-12: "Receipt of any sort of ICMP message MUST NOT terminate the NAT mapping."
#[test]
fn errors_are_translated_whatever_the_remote_and_refresh_nothing() {
    let mut gateway = plain();
    let external = gateway.external_of(h1(), e1());
    gateway.wait(seconds(100));
    let router = Ipv4Addr::new(198, 18, 255, 1);
    for remote in [e1(), e2(), endpoint("198.18.7.7:7")] {
        let quoted = udp(external, remote).datagram();
        let seen = gateway.outside(&PacketBuilder::icmp_error(router, X1, 3, 1, &quoted)).delivered();
        assert_eq!((seen.source.address, seen.destination.address), (router, h1().address));
        assert_eq!((seen.quoted().source, seen.quoted().destination), (h1(), remote));
        let quoted = udp(remote, h1()).datagram();
        let seen = gateway.inside(&PacketBuilder::icmp_error(h1().address, remote.address, 3, 3, &quoted)).forwarded();
        assert_eq!((seen.source.address, seen.destination.address), (X1, remote.address));
        assert_eq!((seen.quoted().source, seen.quoted().destination), (remote, external));
    }
    assert_eq!(gateway.bare(h1()), Some((seconds(200) + 1, 1, 0)));
    let stray = udp(at(external, 9), e1()).datagram();
    gateway.outside(&PacketBuilder::icmp_error(router, X1, 3, 1, &stray)).is_dropped(DropReason::IcmpNoSession);
    let stray = udp(e1(), h2()).datagram();
    gateway.inside(&PacketBuilder::icmp_error(h2().address, e1().address, 3, 3, &stray)).is_dropped(DropReason::IcmpNoSession);
}

/// RFC 5508, REQ-7.
#[test]
fn an_error_about_a_hairpin_goes_back_through_both_mappings() {
    let mut gateway = plain();
    let external = gateway.external_of(h2(), e1());
    let seen = gateway.inside(&udp(h1(), external)).delivered();
    let quoted = udp(seen.source, h2()).datagram();
    let error = gateway.inside(&PacketBuilder::icmp_error(h2().address, seen.source.address, 3, 3, &quoted)).delivered();
    assert_eq!((error.source.address, error.destination.address), (X1, h1().address));
    assert_eq!((error.quoted().source, error.quoted().destination), (h1(), external));
}

/// A server that had a mapping before its forward: what came through the forward is complained about from there.
#[test]
fn an_error_about_a_forwards_packet_goes_by_its_session_first() {
    let (front, server) = forwarded();
    let mut gateway = plain();
    let external = gateway.external_of(server, e1());
    forward_over(&mut gateway, 7000, &["10.0.0.5:70"]);
    let complain = |gateway: &mut Gateway<'_>, remote: Endpoint| {
        let quoted = udp(remote, server).datagram();
        gateway.inside(&PacketBuilder::icmp_error(server.address, remote.address, 3, 3, &quoted)).forwarded().quoted().destination
    };
    gateway.outside(&udp(e2(), front)).delivered();
    assert_eq!((complain(&mut gateway, e2()), complain(&mut gateway, e1())), (front, external));
    let quoted = udp(front, e2()).datagram();
    let seen = gateway.outside(&PacketBuilder::icmp_error(e1().address, X1, 3, 1, &quoted)).delivered();
    assert_eq!(seen.quoted().source, server);
}

#[test]
fn a_forward_that_comes_over_its_port_ends_it_at_once() {
    let mut gateway = plain();
    let external = gateway.external_of(h1(), e1());
    let kept = gateway.external_of(h2(), e1());
    forward_over(&mut gateway, external.port, &["10.0.0.5:70"]);
    assert!(!is_shown(&gateway, h1()) && is_shown(&gateway, h2()));
    let server = forwarded().1;
    assert_eq!(gateway.outside(&udp(e1(), external)).delivered().destination, server);
    assert_eq!(gateway.inside(&udp(server, e1())).forwarded().source, external);
    let other = gateway.external_of(h1(), e1());
    assert_ne!(other, external, "the client gets another port");
    assert_eq!(gateway.outside(&udp(e1(), other)).delivered().destination, h1());
    assert_eq!(gateway.outside(&udp(e1(), kept)).delivered().destination, h2());
    gateway.wait(SWEEP_ROUND + 1000);
    assert_eq!((gateway.mappings().len(), gateway.ports_used()), (2, 2), "no port leaked");
    gateway.wait(seconds(300) + SWEEP_ROUND);
    gateway.assert_empty();
}

/// Its port rests, if it is to, until it may be given again; and the mapping does not come back with the port.
#[test]
fn what_a_forward_has_ended_does_not_come_back_when_the_forward_goes() {
    let ports = PortSet::range(5000, 5001);
    let mut gateway = Setup::new()
        .workers(1)
        .bare(1000)
        .policy(|policy| {
            policy.externals[0].ports = ports.clone();
            policy.port_hold = PortHold { time: idle(60), most: 100 };
        })
        .build();
    let external = gateway.external_of(h1(), e1());
    forward_over(&mut gateway, external.port, &["10.0.0.5:70"]);
    gateway.adopt(|policy| {
        policy.forwards.clear();
        policy.externals[0].ports = ports;
    });
    gateway.outside(&udp(e1(), external)).is_dropped(DropReason::NoMapping);
    assert_eq!(gateway.mappings(), []);
    assert_eq!(gateway.external_of(h1(), e1()).port, 10_001 - external.port, "the first one rests");
    gateway.inside(&udp(h2(), e1())).answered(INSIDE, 3, 13);
    gateway.wait(seconds(62));
    assert_eq!(gateway.external_of(h2(), e1()), external);
}

#[test]
fn a_forward_of_tcp_over_its_port_ends_nothing() {
    let mut gateway = plain();
    let external = gateway.external_of(h1(), e1());
    gateway.adopt(|policy| policy.forwards = vec![forward(Protocol::Tcp, external.port, external.port, &["10.0.0.5:70"])]);
    assert_eq!(gateway.outside(&udp(e2(), external)).delivered().destination, h1());
}

/// Each row: what becomes of the forward, and whether the session of the remote goes on.
#[test]
fn a_session_under_a_forward_ends_at_once_where_no_forward_leads_its_remote_there_any_more() {
    type Change = fn(&mut Policy);
    let rows: [(Change, bool); 6] = [
        (|policy| policy.forwards.clear(), false),
        (|policy| policy.forwards[0].servers[0].port = 71, false),
        (|policy| policy.forwards[0].servers[0].address = Ipv4Addr::new(10, 0, 0, 6), false),
        (|policy| policy.forwards[0].first = 6999, false),
        (|policy| policy.forwards[0].last = 7001, true),
        (|policy| policy.forwards.insert(0, forward(Protocol::Udp, 80, 80, &["10.0.0.9:80"])), true),
    ];
    for (number, (change, goes_on)) in rows.into_iter().enumerate() {
        let mut gateway = with_forward();
        let (front, server) = forwarded();
        gateway.outside(&udp(e1(), front)).delivered();
        gateway.adopt(change);
        assert_eq!(gateway.sessions().len(), usize::from(goes_on), "row {number}");
        assert_eq!(gateway.external_of(server, e1()) == front, goes_on, "row {number}");
        gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
        gateway.assert_empty();
    }
}

/// Of several servers a remote has the one that is drawn for it among those that there are now.
#[test]
fn a_session_stays_with_its_server_where_that_is_still_the_one_drawn() {
    let mut gateway = with_forward();
    let front = forwarded().0;
    for port in 1..100 {
        gateway.outside(&udp(at(e1(), port), front)).delivered();
    }
    let second = endpoint("10.0.0.6:70");
    gateway.adopt(|policy| policy.forwards[0].servers.push(second));
    let kept: BTreeSet<_> = gateway.sessions().iter().map(|session| session.remote.port).collect();
    assert!((20..80).contains(&kept.len()), "about half of 99: {}", kept.len());
    for port in 1..100 {
        let led = gateway.outside(&udp(at(e1(), port), front)).delivered().destination;
        assert_eq!(led == second, !kept.contains(&port), "port {port}");
    }
}

/// The port may be a bare mapping's next: nothing of the forward's sessions is in its way.
#[test]
fn a_former_forwards_port_is_a_mappings_like_any_other() {
    let mut gateway = Setup::new()
        .workers(1)
        .bare(1000)
        .policy(|policy| {
            policy.forwards = vec![forward(Protocol::Udp, 7000, 7000, &["10.0.0.5:70"])];
            policy.externals[0].ports = PortSet::empty();
        })
        .build();
    let front = forwarded().0;
    gateway.outside(&udp(e1(), front)).delivered();
    gateway.adopt(|policy| {
        policy.forwards.clear();
        policy.externals[0].ports = PortSet::range(7000, 7000);
    });
    assert_eq!(gateway.external_of(h1(), e1()), front);
    assert_eq!(gateway.outside(&udp(e1(), front)).delivered().destination, h1());
}

#[test]
fn what_has_an_external_address_that_is_gone_ends() {
    let mut gateway = plain();
    let old = gateway.external_of(h1(), e1());
    gateway.adopt(|policy| policy.externals[0].address = Some(X2));
    assert_eq!(gateway.mappings(), [], "dead at once");
    gateway.outside(&udp(e1(), old)).is_dropped(DropReason::WrongSide);
    let new = gateway.external_of(h1(), e1());
    assert_eq!(new.address, X2);
    gateway.outside(&udp(e2(), new)).delivered();
    gateway.wait(SWEEP_ROUND + 1000);
    assert_eq!((gateway.nat.gauges().mappings, gateway.ports_used()), (1, 1), "no port leaked");
}

/// "a dropped first packet leaves nothing behind".
#[test]
fn a_first_packet_that_is_refused_leaves_nothing_behind() {
    let mut gateway = plain();
    let packets = [
        udp(h1(), e1()).ttl(1),
        udp(h1(), endpoint("192.0.2.130:9")).payload_len(1400).dont_fragment(true),
        udp(h1(), endpoint("192.0.2.241:9")),
        udp(h1(), endpoint("172.16.0.1:9")),
        udp(h1(), endpoint("10.7.0.2:9")),
        udp(endpoint("10.9.9.9:1"), e1()),
    ];
    for packet in packets {
        gateway.inside(&packet);
    }
    gateway.outside(&udp(e1(), endpoint("203.0.113.10:9"))).is_dropped(DropReason::NoMapping);
    gateway.assert_empty();
    assert_eq!(gateway.count(Counter::MappingsCreated), 0);
}

/// RFC 4787, REQ-14: "received in-order or out-of-order".
#[test]
fn fragments_follow_their_first_in_each_direction() {
    let mut gateway = plain();
    let external = gateway.external_of(h1(), e1());
    let other = gateway.external_of(h2(), e1());
    let rows = [
        (0, udp(h1(), e2()), external.address, e2().address, OUTSIDE),
        (1, udp(e2(), external), e2().address, h1().address, INSIDE),
        (0, udp(h1(), other), external.address, h2().address, INSIDE),
    ];
    for (interface, packet, source, destination, device) in rows {
        let frames = gateway.fragments_to(interface, &packet.payload_len(300), 104);
        let arrives = if interface == 0 { INSIDE } else { OUTSIDE };
        assert!(matches!(gateway.frame(arrives, &frames[1]).verdict, Verdict::AwaitFirst(_)));
        let first = gateway.frame(arrives, &frames[0]).on(device);
        let later = gateway.frame(arrives, &frames[2]).on(device);
        let [waited] = &gateway.take_late()[..] else { panic!("one has waited") };
        for seen in [first, waited.on(device), later] {
            assert_eq!((seen.source.address, seen.destination.address), (source, destination));
        }
    }
    assert_eq!(gateway.sessions(), []);
}

#[test]
fn the_clocks_wrap_changes_nothing() {
    for before in [0, 1, 150_000, 299_999, 300_000] {
        let mut setup = Setup::new().bare(1000);
        setup.start = portcullis_nat::time::Tick(u32::MAX - before);
        let mut gateway = setup.build();
        let external = gateway.external_of(h1(), e1());
        gateway.wait(seconds(300));
        gateway.outside(&udp(e1(), external)).delivered();
        gateway.wait(SWEEP_ROUND + 1000);
        gateway.assert_empty();
    }
}

/// A mapping's external endpoint is its subscriber's owner's, and so is the mapping.
#[test]
fn with_several_workers_each_mapping_is_with_its_subscribers_owner() {
    let mut gateway = Setup::new().workers(4).bare(1000).build();
    let mut seen = BTreeSet::new();
    for last in 2..40 {
        let external = gateway.external_of(host(last, 7), e1());
        let owner = gateway.owners.of_subscriber(host(last, 7).address);
        assert_eq!(gateway.owners.of_external(external.address, external.port), owner);
        let (mut views, mut cursor, now) = (Vec::new(), Some(0), gateway.now);
        while let Some(from) = cursor {
            cursor = gateway.nat.nat(usize::from(owner.0)).mappings(from, 100, now, &mut views);
        }
        assert!(views.iter().any(|view| view.external == external && view.bare.is_some()) && seen.insert(external));
        assert_eq!(gateway.outside(&udp(e2(), external)).delivered().destination, host(last, 7));
    }
    assert_eq!((gateway.nat.gauges().mappings, gateway.nat.counters().dropped_in_all()), (38, 0));
}

/// Of bare mappings, and of sessions under a forward beside them: both ways, towards any remote that leaves by a way that is known.
#[test]
fn known_packets_go_the_fast_path() {
    let mut gateway = with_forward();
    let (front, server) = forwarded();
    let external = gateway.external_of(h1(), e1());
    let round = [(h1(), e1()), (e1(), external), (e1(), front), (server, e1()), (h1(), at(e1(), 9999)), (at(e1(), 9999), external)];
    let send = |gateway: &mut Gateway<'_>| {
        for (from, to) in round {
            let packet = udp(from, to);
            let from_outside = from.address == e1().address;
            if from_outside {
                gateway.outside(&packet).delivered()
            } else {
                gateway.inside(&packet).forwarded()
            };
        }
    };
    send(&mut gateway);
    send(&mut gateway);
    let before = gateway.count(Counter::FastPath);
    send(&mut gateway);
    assert_eq!(gateway.count(Counter::FastPath) - before, round.len() as u64);
}
