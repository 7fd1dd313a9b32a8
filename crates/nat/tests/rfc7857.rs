//! RFC 7857, "Updates to Network Address Translation (NAT) Behavioral Requirements": by section, in our words where it is not quoted.
//!
//! Not claimed: section 3 (port overlapping).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Filtering, PortSet};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::view::SessionState;
use portcullis_testkit::builder::{ACK, FIN, PSH, PacketBuilder, Query, RST, SYN, endpoint};

mod common;

use common::{Gateway, INSIDE, OUTSIDE, Seen, Setup, X1, X2, at, e1, e2, external, h1, h2, idle, seconds};

#[derive(Clone, Copy, Debug)]
enum Step {
    In(u8),
    Out(u8),
}

use Step::{In, Out};

fn run(gateway: &mut Gateway<'_>, external: Endpoint, packets: &[Step]) {
    for &packet in packets {
        match packet {
            Out(flags) => gateway.inside(&PacketBuilder::tcp(h1(), e1(), flags)).forwarded(),
            In(flags) => gateway.outside(&PacketBuilder::tcp(e1(), external, flags)).delivered(),
        };
    }
}

/// Section 2, figure 1: every edge, told by the state and by how long the session lasts from there on.
#[test]
fn rfc7857_s2_each_edge_of_the_state_machine_leads_to_its_timer() {
    const LONG: u32 = seconds(7440);
    const SHORT: u32 = seconds(240);
    let rows: [(&[Step], SessionState, u32); 11] = [
        (&[], SessionState::SynSent, SHORT),
        (&[Out(SYN)], SessionState::SynSent, SHORT),
        (&[In(SYN | ACK)], SessionState::Established, LONG),
        (&[In(SYN)], SessionState::Established, LONG),
        (&[In(RST | ACK)], SessionState::Reset, SHORT),
        (&[In(SYN | ACK), Out(FIN | ACK)], SessionState::FinSent, LONG),
        (&[In(SYN | ACK), In(FIN | ACK)], SessionState::FinReceived, LONG),
        (&[In(SYN | ACK), In(FIN | ACK), Out(FIN | ACK)], SessionState::Closing, SHORT),
        (&[In(SYN | ACK), Out(RST)], SessionState::Reset, SHORT),
        (&[In(SYN | ACK), In(RST), Out(ACK | PSH)], SessionState::Established, LONG),
        (&[In(SYN | ACK), Out(FIN | ACK), In(FIN | ACK), Out(SYN)], SessionState::SynSent, SHORT),
    ];
    for (packets, state, lasts) in rows {
        let mut gateway = Setup::new().build();
        let external = gateway.external_of_tcp(h1(), e1());
        run(&mut gateway, external, packets);
        let session = gateway.sessions()[0];
        assert_eq!((session.state, session.expires_in), (state, lasts + 1), "{packets:?}");
        gateway.wait(lasts);
        assert_eq!(gateway.sessions().len(), 1, "{packets:?} lasts");
        gateway.wait(1);
        assert_eq!(gateway.sessions().len(), 0, "{packets:?} ends");
    }
}

/// Section 2.1: "a NAT SHOULD provide different configurable parameters for configuring the open and closing idle timeouts."
#[test]
fn rfc7857_s2_1_opening_and_closing_have_times_of_their_own() {
    let rows: [(&[Step], u32); 6] = [
        (&[], seconds(60)),
        (&[Out(SYN)], seconds(60)),
        (&[In(SYN | ACK)], seconds(7440)),
        (&[In(SYN | ACK), In(FIN | ACK), Out(FIN | ACK)], seconds(100)),
        (&[In(SYN | ACK), Out(RST)], seconds(100)),
        (&[In(SYN | ACK), Out(RST), Out(SYN)], seconds(60)),
    ];
    for (packets, lasts) in rows {
        let mut gateway = Setup::new()
            .policy(|policy| (policy.timeouts.tcp_opening, policy.timeouts.tcp_closing) = (idle(60), idle(100)))
            .build();
        let external = gateway.external_of_tcp(h1(), e1());
        run(&mut gateway, external, packets);
        assert_eq!(gateway.sessions()[0].expires_in, lasts + 1, "{packets:?}");
        gateway.wait(lasts);
        assert_eq!(gateway.sessions().len(), 1, "{packets:?} lasts");
        gateway.wait(1);
        assert_eq!(gateway.sessions().len(), 0, "{packets:?} ends");
    }
}

/// Section 2.2: a RST is translated; the session stays for four minutes, and goes on if anything but a RST follows.
#[test]
fn rfc7857_s2_2_a_session_outlives_a_reset_by_four_minutes() {
    for (waits, lives) in [(239, true), (241, false)] {
        let mut gateway = Setup::new().build();
        let external = gateway.external_of_tcp(h1(), e1());
        run(&mut gateway, external, &[In(SYN | ACK), Out(ACK)]);
        gateway.wait(seconds(3600));
        run(&mut gateway, external, &[Out(RST)]);
        gateway.wait(seconds(waits));
        let out = gateway.outside(&PacketBuilder::tcp(e1(), external, ACK | PSH));
        assert_eq!(out.verdict == Verdict::Transmit(INSIDE), lives, "{waits} s after the RST");
    }
}

/// Section 4: a subscriber whose address is full gets an error, not another address.
#[test]
fn rfc7857_s4_pairing_holds_when_the_address_is_full() {
    let few = |address| portcullis_nat::policy::External { ports: PortSet::range(5000, 5031), ..external(address) };
    let mut gateway = Setup::new().policy(|policy| policy.externals = vec![few(X1), few(X2)]).build();
    let paired = gateway.external_of(h1(), e1()).address;
    let (rival, room) = (gateway.rival_of(h1()), gateway.ports_for(h1(), paired).len() as u16);
    for port in 1..room {
        assert_eq!(gateway.external_of(at(h1(), port), e1()).address, paired);
    }
    gateway.inside(&PacketBuilder::udp(at(h1(), 99), e1())).answered(INSIDE, 3, 13);
    assert_ne!(gateway.external_of(rival, e1()).address, paired, "another subscriber is not kept out");
}

/// Sections 5 and 6: mapping and filtering are each protocol's own.
#[test]
fn rfc7857_s5_and_s6_mappings_and_filters_are_each_protocols_own() {
    let mut gateway = Setup::new()
        .policy(|policy| {
            policy.filtering_udp = Filtering::EndpointIndependent;
            policy.filtering_tcp = Filtering::EndpointIndependent;
        })
        .build();
    let udp = gateway.external_of(h1(), e1());
    gateway.outside(&PacketBuilder::tcp(e1(), udp, SYN)).is_dropped(DropReason::NoMapping);
    gateway.outside(&PacketBuilder::udp(e2(), udp)).delivered();
}

/// How often `knock` is let in, ten times as long as a UDP mapping lasts.
fn knocks(gateway: &mut Gateway<'_>, mut knock: impl FnMut(&mut Gateway<'_>, u16) -> bool) -> usize {
    let times = 0..30_u16;
    times
        .filter(|&time| {
            gateway.wait(seconds(100));
            knock(gateway, time)
        })
        .count()
}

/// Section 7: inbound packets that the filter alone let in keep a mapping alive only where that is configured, be they of one stranger or of
/// a new one each time.
#[test]
fn rfc7857_s7_inbound_refresh_is_off_unless_configured() {
    let strangers: [fn(u16) -> Endpoint; 2] = [|_| e2(), |time| at(e2(), 1000 + time)];
    for (refresh, let_in) in [(false, 3), (true, 30)] {
        for (filtering, stranger) in [Filtering::EndpointIndependent, Filtering::AddressDependent].into_iter().zip(strangers) {
            let mut gateway =
                Setup::new().policy(|policy| (policy.filtering_udp, policy.inbound_refresh) = (filtering, refresh)).build();
            let external = gateway.external_of(h1(), e2());
            // A second session, so that the mapping has a record.
            gateway.external_of(h1(), at(e2(), 1));
            let seen = knocks(&mut gateway, |gateway, time| {
                let out = gateway.outside(&PacketBuilder::udp(at(stranger(time), 7 + stranger(time).port), external));
                out.verdict == Verdict::Transmit(INSIDE)
            });
            assert_eq!(seen, let_in, "inbound refresh {refresh}, {filtering:?}");
            gateway.wait(seconds(300) + 8000);
            gateway.assert_empty();
        }
    }
}

/// Section 7: a mapping that is over lets nobody in, swept or not, and neither does it those whom it had let in.
#[test]
fn rfc7857_s7_a_mapping_that_is_over_lets_nobody_in() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = Filtering::EndpointIndependent).build();
    let external = gateway.external_of(h1(), e1());
    gateway.skip(seconds(200));
    gateway.outside(&PacketBuilder::udp(e2(), external)).delivered();
    gateway.skip(seconds(100));
    gateway.outside(&PacketBuilder::udp(e2(), external)).delivered();
    gateway.skip(1);
    gateway.outside(&PacketBuilder::udp(e2(), external)).is_dropped(DropReason::NoMapping);
    gateway.outside(&PacketBuilder::udp(at(e2(), 7), external)).is_dropped(DropReason::NoMapping);
    assert_eq!(gateway.sessions().len(), 0);
}

/// Section 7: what inside answers is what it asked for, and keeps the mapping.
#[test]
fn rfc7857_s7_an_answer_keeps_the_mapping() {
    let mut gateway = Setup::new()
        .policy(|policy| {
            (policy.filtering_udp, policy.filtering_tcp) = (Filtering::EndpointIndependent, Filtering::EndpointIndependent);
        })
        .build();
    let (udp, tcp) = (gateway.external_of(h1(), e1()), gateway.external_of_tcp(h2(), e1()));
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, SYN)).delivered();
    gateway.inside(&PacketBuilder::tcp(h2(), e2(), SYN | ACK)).forwarded();
    let seen = knocks(&mut gateway, |gateway, time| {
        gateway.outside(&PacketBuilder::tcp(e2(), tcp, ACK | PSH)).delivered();
        gateway.inside(&PacketBuilder::tcp(h2(), e2(), ACK)).forwarded();
        let stranger = if time < 3 { e2() } else { at(e2(), 1000 + time) };
        let out = gateway.outside(&PacketBuilder::udp(stranger, udp));
        if time < 3 {
            gateway.inside(&PacketBuilder::udp(h1(), e2())).forwarded();
        }
        out.verdict == Verdict::Transmit(INSIDE)
    });
    assert_eq!(seen, 6, "as long as it answers, and its timer after that");
    gateway.outside(&PacketBuilder::tcp(at(e2(), 7), tcp, SYN)).delivered();
}

/// Section 7: the external endpoint of a mapping that is over may be another's. Whom the first one had let in is a stranger to it.
#[test]
fn rfc7857_s7_a_stranger_does_not_come_over_to_the_ports_next_owner() {
    let one = || portcullis_nat::policy::External { ports: PortSet::range(5000, 5000), ..external(X1) };
    let mut gateway = Setup::new()
        .policy(|policy| (policy.externals, policy.filtering_udp) = (vec![one()], Filtering::EndpointIndependent))
        .build();
    let shared = gateway.external_of(h1(), e1());
    gateway.wait(seconds(200));
    gateway.outside(&PacketBuilder::udp(e2(), shared)).delivered();
    gateway.wait(seconds(110));
    // It is over, and the stranger's session is not.
    assert_eq!((gateway.external_of(h2(), e2()), gateway.mappings().len()), (shared, 1));
    assert_eq!(gateway.outside(&PacketBuilder::udp(e2(), shared)).delivered().destination, h2());
    gateway.wait(seconds(300) + 8000);
    gateway.assert_empty();
}

/// Section 7.1: a RST with which the inside refuses what the filter let in does not keep a mapping alive.
#[test]
fn rfc7857_s7_1_refusing_a_connection_keeps_no_mapping_alive() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_tcp = Filtering::EndpointIndependent).build();
    let external = gateway.external_of_tcp(h1(), e1());
    let mut delivered = 0;
    for _ in 0..12 {
        gateway.wait(seconds(60));
        let probe = gateway.outside(&PacketBuilder::tcp(e2(), external, SYN));
        if probe.verdict == Verdict::Transmit(INSIDE) {
            delivered += 1;
            gateway.inside(&PacketBuilder::tcp(h1(), e2(), RST | ACK)).forwarded();
        }
    }
    assert_eq!(delivered, 4, "the mapping ended on time");
    gateway.wait(seconds(240) + 8000);
    gateway.assert_empty();
}

/// Section 9: see `rfc6888_req15`. Ports are drawn by keys: other keys, other ports.
#[test]
fn rfc7857_s9_ports_depend_on_the_keys() {
    let ports = [1, 2].map(|key| {
        let mut gateway = Setup { seeds: [key; 4], ..Setup::new() }.build();
        (0..4).map(|port| gateway.external_of(at(h1(), port), e1()).port).collect::<Vec<_>>()
    });
    assert_ne!(ports[0], ports[1]);
}

/// The identifications that the fragments of a datagram leave with.
fn identifications(gateway: &mut Gateway<'_>, packet: &PacketBuilder) -> Vec<u16> {
    let frames = gateway.fragments_to(0, packet, 104);
    frames.iter().map(|frame| gateway.frame(INSIDE, frame).forwarded().id).collect()
}

/// Section 10, by RFC 6864, section 5.3.1: "Address-sharing or rewriting devices MUST ensure that the IPv4 ID field of datagrams whose
/// addresses or protocols are translated comply with these requirements as if the datagram were sourced by that device."
#[test]
fn rfc7857_s10_fragments_of_many_hosts_have_identifications_of_their_own_outside() {
    for workers in [1, 4] {
        let mut gateway = Setup::new().workers(workers).build();
        let mut seen = BTreeSet::new();
        for host in 2..42 {
            let source = Endpoint { address: Ipv4Addr::new(10, 0, 0, host), port: 5000 };
            for id in [7, 8] {
                let ids = identifications(&mut gateway, &PacketBuilder::udp(source, e1()).id(id).payload_len(300));
                assert!(ids.iter().all(|&id| id == ids[0]), "one datagram's");
                assert!(seen.insert(ids[0]), "another datagram's");
            }
        }
    }
}

/// Section 10: what the gateway itself splits leaves with an identification of its own too, whole datagrams keep theirs.
#[test]
fn rfc7857_s10_what_is_to_be_split_has_an_identification_of_its_own_outside() {
    let mut gateway = Setup::new().build();
    let narrow = endpoint("192.0.2.200:53");
    let packet = |host, len| PacketBuilder::udp(host, narrow).id(7).payload_len(len);
    let ids = [h1(), h2()].map(|host| {
        let out = gateway.inside(&packet(host, 1400));
        assert_eq!(out.verdict, Verdict::Fragment { device: OUTSIDE, mtu: 1400 });
        Seen::of(&out.frame).id
    });
    assert_ne!(ids[0], ids[1]);
    assert_eq!(gateway.inside(&packet(h1(), 1300)).forwarded().id, 7);
}

/// Section 10: an error about such a fragment quotes the identification that its sender gave it (RFC 5508, REQ-4), and a copy of a first
/// fragment leaves as the first one did, as those behind it do.
#[test]
fn rfc7857_s10_a_host_is_told_of_its_own_identification() {
    let mut gateway = Setup::new().build();
    let frames = gateway.fragments_to(0, &PacketBuilder::udp(h1(), e1()).id(7).payload_len(300), 104);
    let first = gateway.frame(INSIDE, &frames[0]);
    assert_eq!(gateway.frame(INSIDE, &frames[0]).forwarded().id, first.forwarded().id);
    assert_eq!(gateway.frame(INSIDE, &frames[1]).forwarded().id, first.forwarded().id);
    assert_ne!(first.forwarded().id, 7);
    let error = PacketBuilder::icmp_error(e1().address, X1, 11, 1, &first.frame[14..]);
    let seen = gateway.outside(&error).delivered();
    assert_eq!((seen.quoted().id, seen.quoted().source), (7, h1()));
}

/// Section 10: two hosts' fragments to a third one that they know by its external endpoint do not meet there either.
#[test]
fn rfc7857_s10_hairpinned_fragments_have_identifications_of_their_own() {
    for workers in [1, 4] {
        let mut gateway =
            Setup::new().workers(workers).policy(|policy| policy.filtering_udp = Filtering::EndpointIndependent).build();
        let external = gateway.external_of(h2(), e1());
        let mut seen = BTreeSet::new();
        for host in 10..30 {
            let source = Endpoint { address: Ipv4Addr::new(10, 0, 0, host), port: 5000 };
            let frames = gateway.fragments_to(0, &PacketBuilder::udp(source, external).id(7).payload_len(300), 104);
            let ids: Vec<_> = frames.iter().map(|frame| gateway.frame(INSIDE, frame).delivered().id).collect();
            assert!(ids.iter().all(|&id| id == ids[0]) && seen.insert(ids[0]));
        }
    }
}

/// Section 11: the mapping of a query goes with its last session.
#[test]
fn rfc7857_s11_a_querys_mapping_ends_with_its_last_session() {
    let mut gateway = Setup::new().build();
    let query = Query::Echo;
    gateway.inside(&PacketBuilder::query(h1().address, e1().address, query, 5)).forwarded();
    assert_eq!(gateway.ports_used(), 1);
    gateway.wait(seconds(60) + 8000);
    gateway.assert_empty();
}

/// The external identifier of a host's queries with that identifier.
fn identifier_of(gateway: &mut Gateway<'_>, host: Endpoint) -> u16 {
    gateway.inside(&PacketBuilder::query(host.address, e1().address, Query::Echo, host.port)).forwarded().source.port
}

/// Section 12: a query to another host's external identifier is hairpinned to that host, and the answer to who asked. Several may ask at
/// once, and each gets its own answer.
#[test]
fn rfc7857_s12_a_query_is_hairpinned_to_the_host_whose_identifier_it_has() {
    for (query, answer) in [(Query::Echo, Query::EchoReply), (Query::Timestamp, Query::TimestampReply)] {
        let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = Filtering::EndpointIndependent).build();
        let asked = identifier_of(&mut gateway, h2());
        let askers = [h1().address, Ipv4Addr::new(10, 0, 0, 9)];
        let seen = askers.map(|asker| {
            let seen = gateway.inside(&PacketBuilder::query(asker, X1, query, asked)).delivered();
            assert_eq!((seen.source.address, seen.destination.address, seen.ttl), (X1, h2().address, 63));
            seen.destination.port
        });
        assert_ne!(seen[0], seen[1], "their answers are told apart");
        for (asker, identifier) in askers.into_iter().zip(seen).rev() {
            let back = gateway.inside(&PacketBuilder::query(h2().address, X1, answer, identifier)).delivered();
            assert_eq!((back.source.address, back.destination), (X1, Endpoint { address: asker, port: asked }));
        }
        gateway.inside(&PacketBuilder::query(h1().address, X1, query, asked ^ 1)).is_dropped(DropReason::NoMapping);
        gateway.wait(seconds(60) + 8000);
        gateway.assert_empty();
    }
}

/// Section 12: what the filter of the mapping says of a neighbour is what it says of a remote. A query's remote has no port, so that
/// where the filter asks for one, the address has to suffice.
#[test]
fn rfc7857_s12_a_hairpinned_query_has_to_pass_the_filter() {
    for filtering in [Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
        let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = filtering).build();
        let asked = identifier_of(&mut gateway, h2());
        let echo = PacketBuilder::query(h1().address, X1, Query::Echo, asked);
        gateway.inside(&echo).is_dropped(DropReason::Filtered);
        gateway.inside(&PacketBuilder::query(h2().address, X1, Query::Echo, h2().port)).is_dropped(DropReason::NoMapping);
        let seen = gateway.inside(&echo).delivered();
        let answer = PacketBuilder::query(h2().address, X1, Query::EchoReply, seen.destination.port);
        assert_eq!(gateway.inside(&answer).delivered().destination, Endpoint { port: asked, ..h1() });
    }
}

/// Section 12 and RFC 5508, REQ-7: an error about a hairpinned query, and one about its answer, quote what each host knows.
#[test]
fn rfc7857_s12_errors_about_a_hairpinned_query_and_its_answer_find_their_way() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = Filtering::EndpointIndependent).build();
    let asked = identifier_of(&mut gateway, h2());
    let query = gateway.inside(&PacketBuilder::query(h1().address, X1, Query::Echo, asked));
    let identifier = query.delivered().destination.port;
    let answer = gateway.inside(&PacketBuilder::query(h2().address, X1, Query::EchoReply, identifier));
    for (quoted, from, to, identifier) in [(query, h2(), h1(), asked), (answer, h1(), h2(), identifier)] {
        let error = PacketBuilder::icmp_error(from.address, X1, 3, 1, &quoted.frame[14..]);
        let seen = gateway.inside(&error).delivered();
        assert_eq!((seen.source.address, seen.destination.address), (X1, to.address));
        let quoted = seen.quoted();
        assert_eq!((quoted.source.address, quoted.destination.address), (to.address, X1));
        assert_eq!(quoted.source.port, identifier);
    }
}

/// Section 12: a host may ask itself, if it has the same identifier outside. Any filter lets it in: it has just asked that address.
#[test]
fn rfc7857_s12_a_query_to_its_own_identifier_comes_back() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
        let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = filtering).build();
        let (own, worker) = (gateway.ports_for(h1(), X1)[100], gateway.owners.of_subscriber(h1().address));
        gateway.nat.nat(usize::from(worker.0)).script_draws([0, u64::from(own)]);
        let echo = |query| PacketBuilder::query(h1().address, X1, query, own);
        for query in [Query::Echo, Query::EchoReply] {
            let seen = gateway.inside(&echo(query)).delivered();
            assert_eq!((seen.source.address, seen.destination), (X1, at(h1(), own)));
        }
        assert_eq!(gateway.sessions().len(), 2);
    }
}
