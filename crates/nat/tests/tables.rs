//! The tables over time: exhaustion and recovery, changes of addresses, the sweep's lateness, the clock's wrap.
//!
//! Source: the invariants of `State`: what ends takes all that only it needed with it; live mappings are never ended to make room.

use std::net::Ipv4Addr;

use portcullis_nat::SWEEP_ROUND;
use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Filtering, MappingBehaviour, PortSet, Protocol};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_testkit::builder::{ACK, PacketBuilder, Query, RST, SYN, endpoint};

mod common;

use common::{Gateway, INSIDE, Setup, X1, X2, X3, at, e1, e2, external, forward, h1, h2, seconds};

/// Some of each protocol, with forwards, hairpins and fragments.
fn mixed_traffic(gateway: &mut Gateway<'_>) {
    for n in 0..30 {
        gateway.external_of(at(h1(), 2000 + n), e1());
        gateway.external_of_tcp(at(h2(), 2000 + n), at(e1(), n + 1));
        gateway.inside(&PacketBuilder::query(h1().address, e2().address, Query::Echo, n)).forwarded();
        gateway.outside(&PacketBuilder::tcp(at(e2(), 5000 + n), endpoint("203.0.113.10:80"), SYN)).delivered();
        gateway.inside(&PacketBuilder::tcp(at(h2(), 7000 + n), endpoint("203.0.113.10:80"), SYN)).delivered();
    }
    for frame in gateway.fragments_to(0, &PacketBuilder::udp(h1(), e1()).payload_len(200), 104) {
        gateway.frame(INSIDE, &frame).forwarded();
    }
}

#[test]
fn after_all_timeouts_everything_is_back_to_zero() {
    let server = forward(Protocol::Tcp, 80, 80, &["10.0.0.5:8080"]);
    let mut gateway = Setup::new()
        .policy(|policy| {
            policy.forwards = vec![server];
            policy.filtering_udp = Filtering::AddressDependent;
            policy.filtering_tcp = Filtering::AddressDependent;
        })
        .build();
    for _ in 0..3 {
        mixed_traffic(&mut gateway);
        assert!(gateway.nat.gauges().fragments == 0 && gateway.ports_used() == 121, "{}", gateway.ports_used());
        gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
        gateway.assert_empty();
    }
}

#[test]
fn exhausted_ports_are_given_again_after_the_timeouts() {
    let ports = PortSet::range(1024, 1031);
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = ports).build();
    for round in 0..5 {
        for n in 0..8 {
            gateway.external_of(at(h1(), 100 * round + n), e1());
        }
        gateway.inside(&PacketBuilder::udp(h2(), e1())).answered(INSIDE, 3, 13);
        assert_eq!(gateway.dropped(DropReason::PortsExhausted), u64::from(round) + 1);
        gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
        gateway.assert_empty();
    }
}

#[test]
fn full_tables_refuse_keep_what_they_have_and_recover() {
    for (mappings, sessions, reason) in [(8, 64, DropReason::MappingsFull), (64, 8, DropReason::SessionsFull)] {
        let mut gateway = Setup::new().capacity(mappings, sessions, 8).build();
        for round in 0..3 {
            let externals: Vec<_> = (0..8).map(|n| gateway.external_of(at(h1(), 100 * round + n), e1())).collect();
            gateway.inside(&PacketBuilder::udp(h2(), e1())).answered(INSIDE, 3, 13);
            assert_eq!(gateway.dropped(reason), u64::from(round) + 1);
            for external in externals {
                gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
            }
            gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
            gateway.assert_empty();
        }
    }
}

#[test]
fn a_hairpin_that_finds_room_for_one_session_only_keeps_its_first_half() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = Filtering::EndpointIndependent).capacity(8, 4, 8).build();
    let second = gateway.external_of(h2(), e1());
    gateway.external_of(h1(), e1());
    gateway.external_of(h1(), e2());
    gateway.inside(&PacketBuilder::udp(h1(), second)).is_dropped(DropReason::SessionsFull);
    assert_eq!((gateway.sessions().len(), gateway.mappings().len()), (4, 2));
}

#[test]
fn an_inbound_session_that_finds_no_room_is_dropped_silently() {
    let server = forward(Protocol::Udp, 80, 80, &["10.0.0.5:80"]);
    let mut gateway = Setup::new().policy(|policy| policy.forwards = vec![server]).capacity(8, 2, 8).build();
    for port in 1..3 {
        gateway.outside(&PacketBuilder::udp(at(e1(), port), endpoint("203.0.113.10:80"))).delivered();
    }
    gateway.outside(&PacketBuilder::udp(at(e1(), 3), endpoint("203.0.113.10:80"))).is_dropped(DropReason::SessionsFull);
}

/// The stated bound holds however few records there are and however often the sweep is called.
#[test]
fn the_sweep_is_never_later_than_it_says() {
    for sessions in [1, 2, 3, 5, 100, 3000] {
        for step in [1, 3, 7, 100, 4000] {
            let mut gateway = Setup::new().build();
            for n in 0..sessions {
                gateway.external_of(at(h1(), n), e1());
            }
            let mut waited = 0;
            while waited <= seconds(300) + SWEEP_ROUND {
                gateway.now = gateway.now.after(step);
                waited += step;
                gateway.nat.expire(gateway.now);
            }
            assert_eq!(gateway.nat.gauges().sessions, 0, "{sessions} sessions, swept every {step} ms");
        }
    }
}

/// What packets may have to wait for is a few microseconds, however much is due; and of a millisecond the sweep takes no more than its share.
#[test]
fn the_sweep_comes_in_portions_and_takes_a_bounded_share_of_time() {
    const TOGETHER: u32 = 32;
    let (ends, portions) = (32 + TOGETHER - 1, 4);
    let mut gateway = Setup::new().capacity(3000, 3000, 8).build();
    for n in 0..3000 {
        gateway.external_of(at(h1(), n), e1());
    }
    gateway.skip(seconds(301));
    // Everything is due and over, and a worker that slept has portions of its sleep left.
    while gateway.nat.expire_some(gateway.now).1 {}
    let mut before = gateway.nat.gauges().sessions;
    assert!(before < 3000);
    for millisecond in 0.. {
        gateway.now = gateway.now.after(1);
        let start = before;
        loop {
            let (_, goes_on) = gateway.nat.expire_some(gateway.now);
            let left = gateway.nat.gauges().sessions;
            assert!(before - left <= ends, "{} ended at once", before - left);
            before = left;
            if !goes_on {
                break;
            }
        }
        assert!(start - before <= portions * ends, "{} ended in a millisecond", start - before);
        if before == 0 {
            break;
        }
        assert!(millisecond < SWEEP_ROUND, "{before} sessions are left");
    }
    assert!(!gateway.nat.expire_some(gateway.now).1, "nothing is left to sweep");
    gateway.assert_empty();
}

/// A session is looked at when it may have ended, which its state may bring nearer at any moment.
#[test]
fn a_connection_that_closes_is_swept_in_time_however_long_it_was_to_live() {
    for closed_after in [1, 3, 239, 241, 1000, 5000] {
        let mut gateway = Setup::new().build();
        let external = gateway.external_of_tcp(h1(), e1());
        gateway.outside(&PacketBuilder::tcp(e1(), external, SYN | ACK)).delivered();
        gateway.wait(seconds(closed_after));
        gateway.inside(&PacketBuilder::tcp(h1(), e1(), RST)).forwarded();
        gateway.wait(seconds(239));
        assert_eq!(gateway.nat.gauges().sessions, 1, "closed after {closed_after} s");
        gateway.wait(seconds(1) + SWEEP_ROUND + 1);
        gateway.assert_empty();
    }
}

#[test]
fn a_mapping_without_a_record_is_one_like_any_other() {
    let mut gateway = Setup::new().capacity(3, 8, 8).build();
    let external = gateway.external_of(h1(), e1());
    let shown =
        |gateway: &Gateway<'_>| gateway.mappings().iter().map(|mapping| (mapping.external, mapping.sessions)).collect::<Vec<_>>();
    assert_eq!((shown(&gateway), gateway.nat.gauges().mappings), (vec![(external, 1)], 1));
    assert_eq!(gateway.external_of(h1(), e2()), external);
    assert_eq!((shown(&gateway), gateway.nat.gauges().mappings), (vec![(external, 2)], 1));
    // Both kinds count.
    let (second, third) = (gateway.external_of(h2(), e1()), gateway.external_of(at(h2(), 7), e1()));
    gateway.inside(&PacketBuilder::udp(at(h2(), 8), e1())).answered(INSIDE, 3, 13);
    assert_eq!(gateway.dropped(DropReason::MappingsFull), 1);
    // There is room for the record of each of them.
    assert_eq!((gateway.external_of(h2(), e2()), gateway.external_of(at(h2(), 7), e2())), (second, third));
    assert_eq!((gateway.nat.gauges().mappings, gateway.ports_used()), (3, 3));
    gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
    gateway.assert_empty();
}

#[test]
fn a_sweep_after_a_very_long_pause_does_not_overflow() {
    let mut gateway = Setup::new().capacity(40_000, 40_000, 8).build();
    for n in 0..40_000_u32 {
        let host = endpoint(&format!("10.0.0.{}:{}", 2 + n / 10_000, 1000 + n % 10_000));
        gateway.external_of(host, e1());
    }
    gateway.skip(u32::MAX / 2 - seconds(120));
    gateway.nat.expire(gateway.now);
    gateway.wait(seconds(60));
    gateway.assert_empty();
}

#[test]
fn look_ups_end_a_session_on_time_without_any_sweep() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    gateway.skip(seconds(300) + 1);
    gateway.outside(&PacketBuilder::udp(e1(), external)).is_dropped(DropReason::NoMapping);
    gateway.assert_empty();
}

#[test]
fn the_clocks_wrap_changes_nothing() {
    for before in [0, 1, 150_000, 299_999, 300_000] {
        let mut setup = Setup::new();
        setup.start = Tick(u32::MAX - before);
        let mut gateway = setup.build();
        let external = gateway.external_of(h1(), e1());
        gateway.wait(seconds(300));
        gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
        gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
        gateway.assert_empty();
    }
}

#[test]
fn everything_can_be_ended_at_once() {
    let mut gateway = Setup::new().build();
    gateway.external_of(h1(), e1());
    gateway.skip(seconds(301));
    gateway.nat.expire_all(gateway.now);
    gateway.assert_empty();
}

/// "Interface" pools follow an address that changes: einat's stale external address after a PPPoE change.
#[test]
fn a_slots_new_address_serves_new_packets_and_ends_the_old_sessions() {
    let mut gateway = Setup::new().build();
    let old = gateway.external_of(h1(), e1());
    let tcp = gateway.external_of_tcp(h2(), e1());
    gateway.adopt(|policy| policy.externals[0].address = Some(X2));
    assert_eq!(gateway.sessions(), [], "dead at once");
    gateway.outside(&PacketBuilder::udp(e1(), old)).is_dropped(DropReason::WrongSide);
    let new = gateway.external_of(h1(), e1());
    assert_eq!(new.address, X2);
    gateway.outside(&PacketBuilder::udp(e1(), new)).delivered();
    assert_eq!(gateway.external_of_tcp(h2(), e1()).address, X2);
    assert_ne!(tcp.address, X2);
    gateway.wait(3 * SWEEP_ROUND);
    assert_eq!((gateway.sessions().len(), gateway.ports_used()), (2, 2), "no port leaked");
    gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
    gateway.assert_empty();
}

#[test]
fn a_slot_that_loses_its_address_fails_closed_until_it_has_one_again() {
    let mut gateway = Setup::new().build();
    gateway.external_of(h1(), e1());
    gateway.adopt(|policy| policy.externals[0].address = None);
    gateway.inside(&PacketBuilder::udp(h1(), e1())).answered(INSIDE, 3, 13);
    gateway.inside(&PacketBuilder::udp(h2(), e1())).answered(INSIDE, 3, 13);
    assert_eq!(gateway.dropped(DropReason::NoExternalAddress), 2);
    gateway.adopt(|policy| policy.externals[0].address = Some(X1));
    assert_eq!(gateway.external_of(h1(), e1()).address, X1);
}

/// A mapping of an address that is gone does not hold up its internal endpoint for longer than a sweep.
#[test]
fn an_internal_endpoint_with_many_sessions_has_a_new_mapping_within_a_sweep() {
    let mut gateway = Setup::new().build();
    for n in 0..50 {
        gateway.external_of(h1(), at(e1(), n));
    }
    gateway.adopt(|policy| policy.externals[0].address = Some(X2));
    gateway.inside(&PacketBuilder::udp(h1(), e2())).answered(INSIDE, 3, 13);
    gateway.wait(SWEEP_ROUND + 500);
    assert_eq!(gateway.external_of(h1(), e2()).address, X2);
}

#[test]
fn a_slot_that_is_taken_out_ends_with_its_sessions_and_its_subscribers_move() {
    let pool = vec![external(X1), external(X2)];
    let mut gateway = Setup::new().policy(|policy| policy.externals = pool).build();
    for n in 0..20 {
        gateway.external_of(endpoint(&format!("10.0.0.{}:7", 2 + n)), e1());
    }
    gateway.adopt(|policy| policy.externals[0].address = None);
    for n in 0..20 {
        assert_eq!(gateway.external_of(endpoint(&format!("10.0.0.{}:7", 2 + n)), e1()).address, X2);
    }
    gateway.wait(2 * SWEEP_ROUND);
    assert_eq!((gateway.sessions().len(), gateway.ports_used(), gateway.mappings().len()), (20, 20, 20));
}

/// Two slots with one address would give one external endpoint twice: the first one has it.
#[test]
fn an_address_that_two_slots_have_is_the_firsts() {
    let few = |address| portcullis_nat::policy::External { ports: PortSet::range(5000, 5001), ..external(address) };
    let mut gateway = Setup::new().policy(|policy| policy.externals = vec![few(X1), few(X1)]).build();
    let one = gateway.external_of(h1(), e1());
    let other = gateway.external_of(h2(), e1());
    assert_ne!(one, other);
    gateway.inside(&PacketBuilder::udp(at(h2(), 9), e1())).answered(INSIDE, 3, 13);
    assert_eq!(gateway.outside(&PacketBuilder::udp(e1(), one)).delivered().destination, h1());
    assert_eq!(gateway.outside(&PacketBuilder::udp(e1(), other)).delivered().destination, h2());
}

/// A forward that is taken out leaves its sessions; a mapping that then has its port may not take their replies.
#[test]
fn a_mapping_on_a_former_forwards_port_cannot_meet_the_forwards_sessions() {
    let server = forward(Protocol::Udp, 5000, 5000, &["10.0.0.5:80"]);
    let mut gateway = Setup::new()
        .policy(|policy| {
            policy.forwards = vec![server];
            policy.externals[0].ports = PortSet::empty();
        })
        .build();
    let external = endpoint("203.0.113.10:5000");
    gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
    gateway.adopt(|policy| {
        policy.forwards.clear();
        policy.externals[0].ports = PortSet::range(5000, 5000);
    });
    gateway.inside(&PacketBuilder::udp(h1(), e1())).is_dropped(DropReason::SessionConflict);
    assert_eq!(gateway.outside(&PacketBuilder::udp(e1(), external)).delivered().destination, endpoint("10.0.0.5:80"));
    assert_eq!(gateway.external_of(h1(), e2()), external, "towards others it is free");
}

#[test]
fn ports_that_the_policy_takes_away_stay_with_their_mappings_and_are_not_given_again() {
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = PortSet::range(5000, 5000)).build();
    let external = gateway.external_of(h1(), e1());
    gateway.adopt(|policy| policy.externals[0].ports = PortSet::range(6000, 6000));
    assert_eq!(gateway.external_of(h1(), e2()), external);
    assert_eq!(gateway.external_of(h2(), e1()).port, 6000);
    gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
    gateway.assert_empty();
    assert_eq!(gateway.external_of(h1(), e1()).port, 6000);
}

#[test]
fn endpoint_dependent_mappings_are_one_for_each_scope() {
    let rows = [(MappingBehaviour::AddressDependent, 2), (MappingBehaviour::AddressAndPortDependent, 3)];
    for (behaviour, mappings) in rows {
        let mut gateway = Setup::new().policy(|policy| policy.mapping = behaviour).build();
        let remotes = [e1(), at(e1(), 99), e2()];
        let externals = remotes.map(|remote| gateway.external_of(h1(), remote));
        assert_eq!(gateway.mappings().len(), mappings);
        assert_eq!(externals[0] == externals[1], behaviour == MappingBehaviour::AddressDependent);
        for (remote, external) in remotes.into_iter().zip(externals) {
            assert_eq!(gateway.outside(&PacketBuilder::udp(remote, external)).delivered().destination, h1());
        }
        gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
        gateway.assert_empty();
    }
}

#[test]
fn a_full_fragment_table_forgets_the_oldest_first_fragment_and_empties_in_time() {
    let mut gateway = Setup::new().capacity(64, 64, 4).build();
    let first = |id| PacketBuilder::udp(h1(), e1()).id(id).more_fragments(true).payload_len(40);
    let later = |id| PacketBuilder::raw(h1().address, e1().address, 17).id(id).offset(6).payload_len(40);
    for id in 0..5 {
        gateway.inside(&first(id)).forwarded();
    }
    assert_eq!(gateway.nat.gauges().fragments, 4);
    (1..5).for_each(|id| drop(gateway.inside(&later(id)).forwarded()));
    assert!(matches!(gateway.inside(&later(0)).verdict, Verdict::AwaitFirst(_)), "as if it had not come");
    gateway.wait(seconds(17));
    assert_eq!(gateway.nat.gauges().fragments, 0);
    assert_eq!(gateway.dropped(DropReason::FragmentWithoutFirst), 1);
}

#[test]
fn a_first_packet_that_is_refused_leaves_nothing_behind() {
    let mut gateway = Setup::new().build();
    let packets = [
        PacketBuilder::udp(h1(), e1()).ttl(1),
        PacketBuilder::udp(h1(), endpoint("192.0.2.130:9")).payload_len(1400).dont_fragment(true),
        PacketBuilder::udp(h1(), endpoint("192.0.2.241:9")),
        PacketBuilder::udp(h1(), endpoint("172.16.0.1:9")),
        PacketBuilder::udp(h1(), endpoint("10.7.0.2:9")),
        PacketBuilder::udp(endpoint("10.9.9.9:1"), e1()),
        PacketBuilder::tcp(h1(), endpoint("203.0.113.10:9"), ACK),
    ];
    for packet in packets {
        gateway.inside(&packet);
    }
    gateway.outside(&PacketBuilder::udp(e1(), endpoint("203.0.113.10:9")));
    gateway.assert_empty();
    assert_eq!(gateway.count(Counter::SessionsCreated), 0);
}

/// But for a hairpin, whose first half is kept: its receiver might be behind another NAT (docs/adr/0006).
#[test]
fn a_hairpin_that_nobody_wants_leaves_the_senders_session_behind() {
    let mut gateway = Setup::new().build();
    gateway.inside(&PacketBuilder::udp(h1(), endpoint("203.0.113.10:9"))).is_dropped(DropReason::NoMapping);
    assert_eq!((gateway.sessions().len(), gateway.mappings().len()), (1, 1));
    gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
    gateway.assert_empty();
}

/// A packet for which there is no room to be tagged is refused before a session is made.
#[test]
fn a_packet_without_room_for_its_tag_leaves_nothing_behind() {
    let mut gateway = Setup::new().policy(|policy| policy.externals = vec![external(X3)]).build();
    let frame = gateway.frame_to(0, &PacketBuilder::udp(h1(), endpoint("198.19.0.1:9")));
    let out = gateway.frame_with_room(INSIDE, &frame, 3);
    out.is_dropped(DropReason::NoFrame);
    gateway.assert_empty();
    gateway.frame_with_room(INSIDE, &frame, 4).on(common::TRUNK);
}

#[test]
fn subscribers_are_counted_while_they_have_mappings() {
    let mut gateway = Setup::new().build();
    for host in 2..12 {
        let address = Ipv4Addr::new(10, 0, 0, host);
        gateway.external_of(portcullis_nat::policy::Endpoint { address, port: 1 }, e1());
        gateway.external_of(portcullis_nat::policy::Endpoint { address, port: 2 }, e1());
    }
    assert_eq!(gateway.nat.gauges().subscribers, 10);
    let usage = gateway.nat.port_use();
    assert_eq!(
        usage.iter().find(|usage| usage.protocol == Protocol::Udp).map(|usage| (usage.used, usage.limit)),
        Some((20, 64_512))
    );
}

/// A pool's address that an interface comes to have too moves to the interface's slot; what its old slot gave is dead, and not shown.
#[test]
fn an_address_that_moves_to_another_slot_serves_new_mappings_at_once() {
    let few = |address| portcullis_nat::policy::External { ports: PortSet::range(5000, 5000), ..external(address) };
    let mut gateway = Setup::new().policy(|policy| policy.externals = vec![few(X1), few(X2)]).build();
    let (mut on_first, mut on_second) = (h1(), h2());
    if gateway.external_of(on_first, e1()).address == X2 {
        (on_first, on_second) = (on_second, on_first);
    }
    gateway.external_of(h2(), e1());
    gateway.adopt(|policy| policy.externals[0].address = Some(X2));
    assert_eq!(gateway.mappings(), []);
    gateway.wait(1);
    let moved = gateway.external_of(on_first, e1());
    assert_eq!((moved.address, moved.port), (X2, 5000));
    assert_eq!(gateway.outside(&PacketBuilder::udp(e1(), moved)).delivered().destination, on_first);
    gateway.inside(&PacketBuilder::udp(on_second, e1())).answered(INSIDE, 3, 13);
    assert_eq!(gateway.mappings().len(), 1);
    gateway.wait(seconds(300) + SWEEP_ROUND + 1000);
    gateway.assert_empty();
}
