//! RFC 4787, "NAT Behavioral Requirements for Unicast UDP": its requirements, each with a test that quotes it.
//!
//! Not claimed: REQ-7 (equal prefixes on both sides). REQ-14 is in `fragments.rs`, REQ-9 between workers in `workers.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use portcullis_nat::SWEEP_ROUND;
use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Endpoint, Filtering, Policy, PortParity, PortSet, Protocol};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::view::SessionState;
use portcullis_testkit::builder::{PacketBuilder, Query};

mod common;

use common::{
    Gateway, INSIDE, OUTSIDE, Seen, Setup, X1, X2, X3, at, e1, e2, external, forward, h1, h2, idle, mac_of, own_mac, seconds,
};

fn udp(from: Endpoint, to: Endpoint) -> PacketBuilder {
    PacketBuilder::udp(from, to).payload(b"payload")
}

fn filtering(filtering: Filtering) -> Gateway<'static> {
    Setup::new().policy(|policy| policy.filtering_udp = filtering).build()
}

/// "REQ-1: A NAT MUST have an "Endpoint-Independent Mapping" behavior."
#[test]
fn rfc4787_req1_one_mapping_serves_all_remotes() {
    let mut gateway = Setup::new().build();
    let first = gateway.external_of(h1(), e1());
    assert_eq!(gateway.external_of(h1(), at(e1(), 99)), first);
    assert_eq!(gateway.external_of(h1(), e2()), first);
    assert_eq!((first.address, gateway.mappings().len(), gateway.sessions().len()), (X1, 1, 3));
}

/// "REQ-2: It is RECOMMENDED that a NAT have an "IP address pooling" behavior of "Paired"."
#[test]
fn rfc4787_req2_all_mappings_of_a_host_have_one_address() {
    let pool = vec![external(X1), external(X2), external(X3)];
    let mut gateway = Setup::new().policy(|policy| policy.externals = pool).build();
    let mut addresses = BTreeSet::new();
    for host in 2..40 {
        let address = Ipv4Addr::new(10, 0, 0, host);
        let own: BTreeSet<_> =
            (0..20).map(|port| gateway.external_of(Endpoint { address, port: 4000 + port }, at(e1(), port + 1)).address).collect();
        assert_eq!(own.len(), 1, "{address} is paired");
        addresses.extend(own);
    }
    assert_eq!(addresses.len(), 3, "hosts spread over the pool");
}

/// "REQ-3: A NAT MUST NOT have a "Port assignment" behavior of "Port overloading"."
#[test]
fn rfc4787_req3_no_two_internal_endpoints_share_an_external_one() {
    let few = PortSet::range(2000, 2099);
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = few).build();
    let (rival, ports) = (gateway.rival_of(h1()), gateway.ports_for(h1(), X1));
    let mut seen = BTreeSet::new();
    for number in 0..ports.len() as u16 {
        let external = gateway.external_of(at(if number % 2 == 0 { h1() } else { rival }, 3000 + number), e1());
        assert!(seen.insert(external), "{external:?} was given twice");
        assert!(ports.contains(&external.port));
    }
    let one_more = gateway.inside(&udp(at(h1(), 9999), e2()));
    one_more.answered(INSIDE, 3, 13);
    assert_eq!(gateway.dropped(DropReason::PortsExhausted), 1);
}

/// "REQ-3 a) If the host's source port was in the range 0-1023, it is RECOMMENDED the NAT's source port be in the same range. If the host's
/// source port was in the range 1024-65535, it is RECOMMENDED that the NAT's source port be in that range." Where the pool has both, and as
/// long as such a port is free.
#[test]
fn rfc4787_req3a_ports_stay_on_their_side_of_1024() {
    for workers in [1, 2] {
        let mut gateway =
            Setup::new().workers(workers).policy(|policy| policy.externals[0].ports = PortSet::range(1, 65_535)).build();
        for number in 0..100 {
            for (port, low) in [(number, true), (1023 - number, true), (1024 + number, false), (65_535 - number, false)] {
                let (udp, tcp) = (gateway.external_of(at(h1(), port), e1()), gateway.external_of_tcp(at(h1(), port), e1()));
                assert_eq!([udp.port < 1024, tcp.port < 1024], [low, low], "{port} became {udp:?} and {tcp:?}");
            }
        }
    }
}

/// The same where the pool has no port of the one side, or no more: a port of the other is better than none (RFC 6888, REQ-13).
#[test]
fn rfc4787_req3a_the_other_side_is_taken_where_there_is_no_port_left() {
    let ports = PortSet::range(1008, 1039);
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = ports).build();
    let (below, above): (BTreeSet<_>, BTreeSet<_>) = gateway.ports_for(h1(), X1).into_iter().partition(|&port| port < 1024);
    let mut given = |from: u16, count: usize| -> BTreeSet<_> {
        (0..count as u16).map(|n| gateway.external_of(at(h1(), from + n), e1()).port).collect()
    };
    assert_eq!(given(100, below.len()), below);
    assert_eq!(given(200, above.len()), above);
    let mut gateway = Setup::new().build();
    assert!(gateway.external_of(at(h1(), 123), e1()).port >= 1024, "the usual ports begin at 1024");
}

/// "REQ-4: It is RECOMMENDED that a NAT have a "Port parity preservation" behavior of "Yes"." As an option: RFC 7857, section 8.
#[test]
fn rfc4787_req4_parity_is_kept_where_it_is_wished_and_a_port_is_free() {
    let rows = [(PortParity::Preserve, 1), (PortParity::Preserve, 2), (PortParity::Any, 1)];
    for (parity, workers) in rows {
        let mut gateway = Setup::new().workers(workers).policy(|policy| policy.port_parity = parity).build();
        let kept = (0..100).filter(|n| gateway.external_of(at(h1(), 3000 + n), e1()).port % 2 == n % 2).count();
        assert_eq!(kept == 100, parity == PortParity::Preserve, "{kept} of 100 with {workers} workers");
    }
    let (ports, parity) = (PortSet::range(2000, 2031), PortParity::Preserve);
    let mut gateway = Setup::new()
        .policy(|policy| {
            policy.externals[0].ports = ports;
            policy.port_parity = parity;
        })
        .build();
    let ports = gateway.ports_for(h1(), X1);
    let evens = ports.iter().filter(|port| port.is_multiple_of(2)).count();
    let given: Vec<_> = (0..ports.len() as u16).map(|n| gateway.external_of(at(h1(), 3000 + 2 * n), e1()).port).collect();
    let (even, odd) = given.split_at(evens);
    assert!(even.iter().all(|port| port.is_multiple_of(2)) && odd.iter().all(|port| port % 2 == 1), "{given:?}");
}

/// "REQ-5: A NAT UDP mapping timer MUST NOT expire in less than two minutes", "c) A default value of five minutes or more for the NAT
/// UDP mapping timer is RECOMMENDED."
#[test]
fn rfc4787_req5_an_idle_mapping_lasts_five_minutes() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    gateway.wait(seconds(300));
    assert_eq!(gateway.outside(&udp(e1(), external)).delivered().destination, h1());

    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    gateway.wait(seconds(300) + 1);
    gateway.outside(&udp(e1(), external)).is_dropped(DropReason::NoMapping);
}

/// The time of a session to a port, by asking: how many whole seconds after the packet a reply still comes in.
fn lives_for(gateway: &mut Gateway<'_>, internal: Endpoint, remote: Endpoint) -> u32 {
    gateway.external_of(internal, remote);
    let session = gateway.sessions().into_iter().find(|session| session.internal == internal && session.remote == remote);
    let left = session.expect("a session").expires_in;
    assert_eq!(left % 1000, 1, "a timer runs out a millisecond after its time");
    left / 1000
}

/// Rules with times of their own towards those ports. **Units:** seconds.
fn towards(times: &[(u16, u64)]) -> Setup {
    Setup::new().policy(|policy| policy.udp_ports = times_of(times))
}

fn times_of(times: &[(u16, u64)]) -> BTreeMap<u16, Duration> {
    times.iter().map(|&(port, seconds)| (port, Duration::from_secs(seconds))).collect()
}

/// "REQ-5 a) For specific destination ports in the well-known port range (ports 0-1023), a NAT MAY have shorter UDP mapping timers that are
/// specific to the IANA-registered application running over that specific destination port."
#[test]
fn rfc4787_req5a_ports_that_the_rules_name_have_timers_of_their_own() {
    for workers in [1, 4] {
        let mut gateway = towards(&[(53, 30), (123, 10), (161, 10), (443, 2), (5060, 3600)]).workers(workers).build();
        for (port, time) in [(53, 30), (123, 10), (161, 10), (443, 2), (5060, 3600), (80, 300), (54, 300)] {
            assert_eq!(lives_for(&mut gateway, at(h1(), 7000 + port), at(e1(), port)), time, "port {port}, {workers} workers");
        }
        let external = gateway.external_of(h2(), at(e1(), 123));
        gateway.wait(seconds(10));
        gateway.outside(&udp(at(e1(), 123), external)).delivered();
        gateway.wait(seconds(10) + 1);
        gateway.outside(&udp(at(e1(), 123), external)).is_dropped(DropReason::NoMapping);
    }
}

/// Packets refresh such a session as they do others, by the same way: answered, it is one for the fast path.
#[test]
fn rfc4787_req5a_a_short_session_is_refreshed_and_goes_the_fast_path() {
    let mut gateway = towards(&[(53, 30)]).build();
    let external = gateway.external_of(h1(), e1());
    gateway.outside(&udp(e1(), external)).delivered();
    gateway.external_of(h1(), e1());
    let before = gateway.count(Counter::FastPath);
    for _ in 0..10 {
        gateway.wait(seconds(29));
        gateway.outside(&udp(e1(), external)).delivered();
        gateway.wait(seconds(29));
        assert_eq!(gateway.external_of(h1(), e1()), external);
    }
    assert_eq!(gateway.count(Counter::FastPath) - before, 20);
    assert_eq!(gateway.sessions()[0].state, SessionState::Replied);
    gateway.wait(seconds(31));
    gateway.outside(&udp(e1(), external)).is_dropped(DropReason::NoMapping);
}

/// A mapping lasts as long as any of its sessions, and what ends early leaves nothing behind.
#[test]
fn rfc4787_req5a_a_mapping_lasts_as_long_as_its_longest_session() {
    let mut gateway = towards(&[(53, 30)]).build();
    let external = gateway.external_of(h1(), e1());
    assert_eq!(gateway.external_of(h1(), e2()), external);
    gateway.wait(seconds(200));
    assert_eq!((gateway.sessions().len(), gateway.external_of(h1(), e1())), (1, external));
    gateway.wait(seconds(101) + SWEEP_ROUND * 2);
    gateway.assert_empty();
}

/// "destination ports": of what a remote or a forward's client began, the remote's port is the source.
#[test]
fn rfc4787_req5a_what_comes_from_such_a_port_has_the_ordinary_time() {
    let forwarded = forward(Protocol::Udp, 2000, 2000, &["10.0.0.3:6000"]);
    let open = |policy: &mut Policy| {
        policy.filtering_udp = Filtering::EndpointIndependent;
        policy.forwards = vec![forwarded];
    };
    let mut gateway = towards(&[(53, 30)]).policy(open).build();
    gateway.outside(&udp(e1(), Endpoint { address: X1, port: 2000 })).delivered();
    let external = gateway.external_of(h1(), e2());
    gateway.outside(&udp(e1(), external)).delivered();
    gateway.external_of(h1(), e1());
    let left: Vec<_> = gateway.sessions().iter().map(|session| session.expires_in).collect();
    assert_eq!(left, [seconds(300) + 1; 3]);
}

/// TCP and ICMP have their own requirements.
#[test]
fn rfc4787_req5a_other_protocols_keep_their_times() {
    let mut gateway = towards(&[(53, 30), (0, 30)]).build();
    gateway.external_of_tcp(h1(), e1());
    gateway.inside(&PacketBuilder::query(h1().address, e1().address, Query::Echo, 7)).forwarded();
    let mut left: Vec<_> = gateway.sessions().iter().map(|session| (session.protocol, session.expires_in)).collect();
    left.sort_unstable();
    assert_eq!(left, [(Protocol::Icmp, seconds(60) + 1), (Protocol::Tcp, seconds(240) + 1)]);
}

/// Other rules hold for live sessions at once, whatever they were made under.
#[test]
fn rfc4787_req5a_a_reload_gives_live_sessions_the_times_of_the_new_rules() {
    let mut gateway = towards(&[(53, 30), (123, 600)]).build();
    let (dns, ntp) = (e1(), at(e1(), 123));
    let external = gateway.external_of(h1(), dns);
    gateway.external_of(h1(), ntp);
    let left = |gateway: &Gateway<'_>, remote| {
        gateway.sessions().into_iter().find(|session| session.remote == remote).map(|session| session.expires_in / 1000)
    };
    assert_eq!((left(&gateway, dns), left(&gateway, ntp)), (Some(30), Some(600)));
    gateway.adopt(|policy| policy.udp_ports = times_of(&[(123, 30)]));
    assert_eq!((left(&gateway, dns), left(&gateway, ntp)), (Some(300), Some(30)));
    gateway.wait(seconds(31));
    gateway.adopt(|policy| policy.udp_ports = BTreeMap::new());
    gateway.outside(&udp(dns, external)).delivered();
    assert_eq!(left(&gateway, dns), Some(300));
}

/// "REQ-5 b) The value of the NAT UDP mapping timer MAY be configurable."
#[test]
fn rfc4787_req5b_the_timer_is_configurable() {
    for (waits, lives) in [(199, true), (201, false)] {
        let mut gateway = Setup::new().policy(|policy| policy.timeouts.udp = idle(200)).build();
        let external = gateway.external_of(h1(), e1());
        gateway.wait(seconds(waits));
        let out = gateway.outside(&udp(e1(), external));
        assert_eq!(out.verdict == Verdict::Transmit(INSIDE), lives, "after {waits} s");
    }
}

/// "REQ-6: The NAT mapping Refresh Direction MUST have a "NAT Outbound refresh behavior" of "True"."
#[test]
fn rfc4787_req6_outbound_packets_keep_a_mapping() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    for _ in 0..10 {
        gateway.wait(seconds(250));
        assert_eq!(gateway.external_of(h1(), e1()), external);
    }
    gateway.outside(&udp(e1(), external)).delivered();
}

/// "REQ-8: If application transparency is most important, it is RECOMMENDED that a NAT have an "Endpoint-Independent Filtering"
/// behavior. [...] "Address-Dependent Filtering" [...]. a) The filtering behavior MAY be an option configurable".
#[test]
fn rfc4787_req8_filtering_lets_in_whom_it_is_configured_for() {
    let known = e1();
    let rows = [
        (Filtering::EndpointIndependent, [true, true, true]),
        (Filtering::AddressDependent, [true, true, false]),
        (Filtering::AddressAndPortDependent, [true, false, false]),
    ];
    for (behaviour, lets_in) in rows {
        let mut gateway = filtering(behaviour);
        let external = gateway.external_of(h1(), known);
        for (remote, expected) in [known, at(known, 54), e2()].into_iter().zip(lets_in) {
            let out = gateway.outside(&udp(remote, external));
            if expected {
                let seen = out.delivered();
                assert_eq!((seen.source, seen.destination), (remote, h1()), "{behaviour:?}");
            } else {
                out.is_dropped(DropReason::Filtered);
            }
        }
    }
}

/// An address-dependent filter forgets an address with the last session towards it.
#[test]
fn rfc4787_req8_an_address_is_let_in_no_longer_than_it_was_spoken_to() {
    let mut gateway = filtering(Filtering::AddressDependent);
    let external = gateway.external_of(h1(), e1());
    gateway.wait(seconds(200));
    gateway.external_of(h1(), e2());
    gateway.wait(seconds(105));
    gateway.outside(&udp(at(e1(), 54), external)).is_dropped(DropReason::Filtered);
    gateway.outside(&udp(at(e2(), 54), external)).delivered();
}

/// "REQ-9: A NAT MUST support "Hairpinning". a) A NAT Hairpinning behavior MUST be "External source IP address and port"."
#[test]
fn rfc4787_req9_a_hairpinned_packet_comes_from_the_senders_external_endpoint() {
    let mut gateway = filtering(Filtering::EndpointIndependent);
    let first = gateway.external_of(h1(), e1());
    let second = gateway.external_of(h2(), e1());
    let seen = gateway.inside(&udp(h1(), second)).delivered();
    assert_eq!((seen.source, seen.destination, seen.ttl), (first, h2(), 63));
    assert_eq!((seen.to, seen.from), (mac_of(h2().address), own_mac(0)));
    let back = gateway.inside(&udp(h2(), first)).delivered();
    assert_eq!((back.source, back.destination), (second, h1()));
    assert_eq!(gateway.count(Counter::Hairpin), 2);
}

/// Two hosts behind the NAT that punch holes towards each other's external endpoints meet, whatever the filter (RFC 5128, section 3.3).
#[test]
fn rfc4787_req9_hole_punching_works_between_hosts_behind_the_same_nat() {
    let mut gateway = Setup::new().build();
    let first = gateway.external_of(h1(), e1());
    let second = gateway.external_of(h2(), e1());
    gateway.inside(&udp(h1(), second)).is_dropped(DropReason::Filtered);
    assert_eq!(gateway.inside(&udp(h2(), first)).delivered().source, second);
    assert_eq!(gateway.inside(&udp(h1(), second)).delivered().source, first);
}

/// "REQ-10: [...] NAT ALGs for UDP-based protocols SHOULD be turned off."
#[test]
fn rfc4787_req10_payloads_pass_unchanged() {
    let mut gateway = Setup::new().build();
    let payload = b"REGISTER sip:192.0.2.1 SIP/2.0\r\nContact: <sip:alice@10.0.0.2:5060>\r\n";
    let seen = gateway.inside(&PacketBuilder::udp(at(h1(), 5060), at(e1(), 5060)).payload(payload)).forwarded();
    assert_eq!(&seen.segment[8..], payload);
}

/// "REQ-11: A NAT MUST have deterministic behavior, i.e., it MUST NOT change the NAT translation or the Filtering Behavior at any point
/// in time, or under any particular conditions."
#[test]
fn rfc4787_req11_mapping_and_filtering_are_the_same_at_any_fill() {
    let ports = PortSet::range(3000, 3099);
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = ports).build();
    let ports = gateway.ports_for(h1(), X1);
    for taken in 0..ports.len() as u16 {
        let internal = at(h1(), 10_000 + taken);
        let external = gateway.external_of(internal, e1());
        assert_eq!(gateway.external_of(internal, e2()), external, "mapping with {taken} ports taken");
        gateway.outside(&udp(at(e1(), 54), external)).is_dropped(DropReason::Filtered);
        gateway.outside(&udp(e2(), external)).delivered();
    }
    gateway.inside(&udp(at(h1(), 9), e1())).answered(INSIDE, 3, 13);
    gateway.outside(&udp(e1(), at(gateway.mappings()[0].external, ports[ports.len() / 2]))).delivered();
}

/// "REQ-12: Receipt of any sort of ICMP message MUST NOT terminate the NAT mapping. a) The NAT's default configuration SHOULD NOT filter
/// ICMP messages based on their source IP address. b) It is RECOMMENDED that a NAT support ICMP Destination Unreachable messages."
#[test]
fn rfc4787_req12_icmp_errors_pass_from_anywhere_and_end_nothing() {
    let mut gateway = Setup::new().build();
    let sent = udp(h1(), e1());
    let external = gateway.inside(&sent).forwarded().source;
    let router = Ipv4Addr::new(198, 18, 255, 1);
    for (kind, code) in [(3, 0), (3, 1), (3, 3), (3, 13), (11, 0), (11, 1), (12, 0)] {
        let quoted = udp(external, e1()).datagram();
        let seen = gateway.outside(&PacketBuilder::icmp_error(router, X1, kind, code, &quoted)).delivered();
        assert_eq!((seen.source.address, seen.destination.address), (router, h1().address));
        assert_eq!(seen.icmp.map(|(kind, code, _)| (kind, code)), Some((kind, code)));
        let inner = seen.quoted();
        assert_eq!((inner.source, inner.destination), (h1(), e1()));
    }
    gateway.outside(&udp(e1(), external)).delivered();
    assert_eq!(gateway.external_of(h1(), e1()), external);
}

/// "REQ-13: If the packet received on an internal IP address has DF=1, the NAT MUST send back an ICMP message "Fragmentation needed and
/// DF set" to the host".
#[test]
fn rfc4787_req13_too_big_with_df_is_answered_with_the_next_hops_mtu() {
    let mut gateway = Setup::new().build();
    let narrow = at(portcullis_testkit::builder::endpoint("192.0.2.130:7"), 7);
    let packet = PacketBuilder::udp(h1(), narrow).payload_len(1373).dont_fragment(true);
    let seen = gateway.inside(&packet).answered(INSIDE, 3, 4);
    assert_eq!(seen.icmp.map(|(_, _, rest)| rest), Some(1400), "the next hop's MTU (RFC 1191)");
    assert_eq!((seen.source.address, seen.destination.address), (common::GATEWAY_INSIDE, h1().address));
    assert_eq!(seen.segment[8..8 + 548], packet.datagram()[..548], "the packet as its sender knows it");
    assert_eq!(gateway.dropped(DropReason::TooBig), 1);
    assert_eq!(gateway.sessions().len(), 0, "a refused first packet leaves nothing behind");
    gateway.inside(&PacketBuilder::udp(h1(), narrow).payload_len(1372).dont_fragment(true)).forwarded();
}

/// "REQ-13 a) If the packet has DF=0, the NAT MUST fragment the packet and SHOULD send the fragments in order."
#[test]
fn rfc4787_req13a_too_big_without_df_is_to_be_split() {
    let mut gateway = Setup::new().build();
    let packet = PacketBuilder::udp(h1(), portcullis_testkit::builder::endpoint("192.0.2.130:7")).payload_len(1373);
    let out = gateway.inside(&packet);
    assert_eq!(out.verdict, Verdict::Fragment { device: OUTSIDE, mtu: 1400 });
    let whole = Seen::of(&out.frame);
    assert_eq!(whole.source.address, X1, "translated before it is split");
    let pieces = portcullis_wire::fragment::fragments(&out.frame[14..], 1400).expect("it can be split");
    let offsets: Vec<_> = pieces.map(|piece| piece.payload()).collect();
    assert_eq!(offsets, [20..1396, 1396..1401]);
    assert_eq!(gateway.count(Counter::Fragmented), 1);
}
