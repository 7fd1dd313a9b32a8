//! RFC 4787, REQ-14: fragments in any order, in both directions, on one worker and on four; floods of them; what waits and for how long.
//!
//! With several workers each fragment comes to any of them. Blind spot: a ring between two workers that is full.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{DeviceId, Endpoint, Filtering, Protocol};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_testkit::builder::{ACK, PacketBuilder, Query, SYN, endpoint};

mod common;

use common::{Gateway, INSIDE, OUTSIDE, Out, Seen, Setup, X1, at, e1, e2, forward, h1, h2, seconds};

/// One worker, and several.
const FLEETS: [u16; 2] = [1, 4];

fn with(workers: u16) -> Gateway<'static> {
    let all = |policy: &mut portcullis_nat::policy::Policy| policy.filtering_udp = Filtering::EndpointIndependent;
    Setup::new().workers(workers).policy(all).build()
}

/// The orders of three fragments.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// Sends fragments in that order. Gives what was transmitted on `to`, in the order of the datagram.
fn send(gateway: &mut Gateway<'_>, from: DeviceId, to: DeviceId, frames: &[Vec<u8>], order: [usize; 3]) -> Vec<Seen> {
    let mut outs: Vec<Out> = Vec::new();
    for at in order {
        let out = gateway.frame(from, &frames[at]);
        outs.extend(Some(out).filter(|out| !matches!(out.verdict, Verdict::AwaitFirst(_))));
        outs.extend(gateway.take_late());
    }
    assert_eq!(gateway.nat.waiting(), 0);
    let mut seen: Vec<_> = outs.iter().map(|out| out.on(to)).collect();
    seen.sort_by_key(Seen::offset);
    seen
}

fn joined(seen: &[Seen]) -> Vec<u8> {
    seen.iter().flat_map(|seen| seen.segment.clone()).collect()
}

/// "REQ-14: A NAT MUST support receiving in-order and out-of-order fragments, so it MUST have "Received Fragment Ordered" behavior or
/// "Received Fragment Out of Order" behavior": the second.
#[test]
fn rfc4787_req14_fragments_in_any_order_are_translated_both_ways() {
    for workers in FLEETS {
        let mut gateway = with(workers);
        for host in 2..12 {
            let internal = Endpoint { address: Ipv4Addr::new(10, 0, 0, host), port: 5000 };
            for (number, order) in ORDERS.into_iter().enumerate() {
                let id = number as u16;
                let packet = PacketBuilder::udp(internal, e1()).payload_len(300).id(id);
                let frames = gateway.fragments_to(0, &packet, 104);
                let seen = send(&mut gateway, INSIDE, OUTSIDE, &frames, order);
                assert!(seen.iter().all(|seen| (seen.source.address, seen.destination.address) == (X1, e1().address)));
                assert!(seen.iter().all(|one| (one.id, one.ttl) == (seen[0].id, 63)));
                let external = seen[0].source;
                assert_eq!(joined(&seen), PacketBuilder::udp(external, e1()).payload_len(300).datagram()[20..]);

                let answer = PacketBuilder::udp(e1(), external).payload_len(300).id(id);
                let frames = gateway.fragments_to(1, &answer, 104);
                let seen = send(&mut gateway, OUTSIDE, INSIDE, &frames, order);
                assert!(
                    seen.iter().all(|seen| (seen.source.address, seen.destination.address) == (e1().address, internal.address))
                );
                assert_eq!(joined(&seen), PacketBuilder::udp(e1(), internal).payload_len(300).datagram()[20..]);
            }
        }
        assert_eq!(gateway.count(Counter::Fragments), 10 * 6 * 6);
        // Of the six orders, later fragments come first in four: one in two of them, two in the others.
        assert_eq!(gateway.count(Counter::EarlyFragments), 10 * 2 * 6);
        assert_eq!(gateway.nat.counters().dropped_in_all(), 0);
    }
}

/// The same requirement with the fragments of many datagrams mixed, last first.
#[test]
fn rfc4787_req14_interleaved_datagrams_are_kept_apart() {
    for workers in FLEETS {
        let mut gateway = with(workers);
        let hosts: Vec<_> = (2..10).map(|host| Endpoint { address: Ipv4Addr::new(10, 0, 0, host), port: 7 }).collect();
        let externals: Vec<_> = hosts.iter().map(|&host| gateway.external_of(host, e1())).collect();
        let all: Vec<_> = externals
            .iter()
            .zip(1..)
            .map(|(&external, id)| gateway.fragments_to(1, &PacketBuilder::udp(e1(), external).payload_len(200).id(id), 104))
            .collect();
        for piece in (0..2).rev() {
            for frames in &all {
                gateway.frame(OUTSIDE, &frames[piece]);
            }
        }
        let late: Vec<_> = gateway.take_late().iter().map(|out| out.on(INSIDE).destination.address).collect();
        assert_eq!(late.len(), hosts.len());
        assert_eq!(late.into_iter().collect::<BTreeSet<_>>(), hosts.iter().map(|host| host.address).collect());
        assert_eq!((gateway.count(Counter::Inbound), gateway.nat.waiting()), (16, 0));
    }
}

/// Fragments that are hairpinned, of queries, and to a forwarded port with several servers.
#[test]
fn rfc4787_req14_holds_for_hairpins_queries_and_forwards() {
    for workers in FLEETS {
        let servers = ["10.0.0.20:80", "10.0.0.21:80", "10.0.0.22:80", "10.0.0.23:80"];
        let mut gateway = with(workers);
        gateway.adopt(|policy| policy.forwards = vec![forward(Protocol::Udp, 80, 80, &servers)]);
        for (number, order) in (0..30).zip(ORDERS.into_iter().cycle()) {
            let sender = Endpoint { address: Ipv4Addr::new(10, 0, 0, 2 + number as u8 % 7), port: 5000 + number };
            let receiver = Endpoint { address: Ipv4Addr::new(10, 0, 0, 30 + number as u8 % 11), port: 9 };
            let external = gateway.external_of(receiver, e2());
            let shown = gateway.external_of(sender, e2());
            let packet = PacketBuilder::udp(sender, external).payload_len(300).id(number);
            let frames = gateway.fragments_to(0, &packet, 104);
            let seen = send(&mut gateway, INSIDE, INSIDE, &frames, order);
            assert!(seen.iter().all(|seen| (seen.source.address, seen.destination.address) == (X1, receiver.address)));
            assert_eq!(joined(&seen), PacketBuilder::udp(shown, receiver).payload_len(300).datagram()[20..]);

            let echo = PacketBuilder::query(sender.address, e1().address, Query::Echo, number).payload_len(300).id(number);
            let frames = gateway.fragments_to(0, &echo, 104);
            let seen = send(&mut gateway, INSIDE, OUTSIDE, &frames, order);
            let id = seen[0].source.port;
            let reply = PacketBuilder::query(e1().address, X1, Query::EchoReply, id).payload_len(300).id(number);
            let frames = gateway.fragments_to(1, &reply, 104);
            let seen = send(&mut gateway, OUTSIDE, INSIDE, &frames, order);
            let wanted = PacketBuilder::query(e1().address, sender.address, Query::EchoReply, number).payload_len(300);
            assert_eq!(joined(&seen), wanted.datagram()[20..]);

            let remote = at(e1(), 100 + number);
            let packet = PacketBuilder::udp(remote, endpoint("203.0.113.10:80")).payload_len(300).id(number);
            let frames = gateway.fragments_to(1, &packet, 104);
            let seen = send(&mut gateway, OUTSIDE, INSIDE, &frames, order);
            let server = seen[0].destination;
            assert!(servers.map(endpoint).contains(&server) && seen.iter().all(|seen| seen.destination.address == server.address));
        }
        assert_eq!(gateway.nat.counters().dropped_in_all(), 0);
    }
}

/// "REQ-14 a) A NAT's out-of-order fragment processing mechanism MUST be designed so that fragmentation-based DoS attacks do not
/// compromise the NAT's ability to process in-order and unfragmented IP packets."
#[test]
fn rfc4787_req14a_a_flood_of_fragments_takes_nothing_from_fragments_in_order_and_whole_packets() {
    for workers in FLEETS {
        let mut gateway = Setup::new().workers(workers).capacity(4096, 8192, 4096).build();
        let external = gateway.external_of(h1(), e1());
        for number in 0..8000_u16 {
            // First and later fragments of datagrams that never end, from many sources and from one, from both sides.
            let spoofed = Ipv4Addr::from_bits(0xC612_0000 | u32::from(number));
            let later = |source| PacketBuilder::raw(source, X1, 17).id(number).offset(100).payload_len(64);
            let first = PacketBuilder::udp(at(e2(), number), external).id(number).more_fragments(true).payload_len(64);
            gateway.outside(&later(spoofed));
            gateway.outside(&later(e2().address));
            gateway.outside(&first).is_dropped(DropReason::Filtered);
            gateway.inside(&PacketBuilder::raw(h2().address, e2().address, 17).id(number).offset(9).payload_len(64));
            if number % 50 == 0 {
                gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
                assert_eq!(gateway.external_of(h1(), e1()), external);
                for frame in gateway.fragments_to(1, &PacketBuilder::udp(e1(), external).payload_len(300).id(number), 104) {
                    gateway.frame(OUTSIDE, &frame).delivered();
                }
                for frame in gateway.fragments_to(0, &PacketBuilder::udp(h1(), e1()).payload_len(300).id(number), 104) {
                    gateway.frame(INSIDE, &frame).forwarded();
                }
            }
        }
        assert!(gateway.nat.waiting() <= 1024 * usize::from(workers), "{} frames wait", gateway.nat.waiting());
        gateway.wait(seconds(17));
        assert_eq!((gateway.nat.waiting(), gateway.nat.gauges().fragments), (0, 0));
    }
}

/// A first fragment of a flood of first fragments is in the way of its own source only: what others have under way stays known.
#[test]
fn rfc4787_req14a_a_flood_of_first_fragments_does_not_part_others_from_theirs() {
    for workers in FLEETS {
        let mut gateway = Setup::new().workers(workers).capacity(4096, 8192, 4096).build();
        let packets: Vec<_> =
            (3..23).map(|host| PacketBuilder::udp(Endpoint { address: Ipv4Addr::new(10, 0, 0, host), port: 9 }, e1())).collect();
        let all: Vec<_> = packets.into_iter().map(|packet| gateway.fragments_to(0, &packet.payload_len(200).id(5), 104)).collect();
        for frames in &all {
            gateway.frame(INSIDE, &frames[0]).forwarded();
        }
        for id in 0..10_000 {
            gateway.inside(&PacketBuilder::udp(h1(), e1()).id(id).more_fragments(true).payload_len(64)).forwarded();
        }
        let known = all.iter().filter(|frames| gateway.frame(INSIDE, &frames[1]).verdict == Verdict::Transmit(OUTSIDE)).count();
        assert!(known >= 18, "{known} of 20: one source floods one set of 256");
    }
}

#[test]
fn a_fragment_waits_for_its_first_no_longer_than_the_time_of_fragments() {
    for workers in FLEETS {
        let mut gateway = with(workers);
        let external = gateway.external_of(h1(), e1());
        let frames = gateway.fragments_to(1, &PacketBuilder::udp(e1(), external).payload_len(300), 104);
        assert!(matches!(gateway.frame(OUTSIDE, &frames[2]).verdict, Verdict::AwaitFirst(_)));
        gateway.wait(seconds(15));
        assert!(matches!(gateway.frame(OUTSIDE, &frames[1]).verdict, Verdict::AwaitFirst(_)));
        gateway.frame(OUTSIDE, &frames[0]).delivered();
        assert_eq!(gateway.take_late().iter().map(Out::delivered).map(|seen| seen.offset()).collect::<Vec<_>>(), [26, 13]);

        gateway.frame(OUTSIDE, &gateway.fragments_to(1, &PacketBuilder::udp(e1(), external).payload_len(300).id(9), 104)[1]);
        gateway.wait(seconds(16) + 1);
        let late = gateway.take_late();
        late[0].is_dropped(DropReason::FragmentWithoutFirst);
        assert_eq!((late.len(), gateway.nat.waiting(), gateway.dropped(DropReason::FragmentWithoutFirst)), (1, 0, 1));
    }
}

#[test]
fn on_a_shared_address_what_waits_in_vain_and_what_follows_the_hosts_first_is_the_hosts() {
    for workers in FLEETS {
        let mut gateway = Setup::new().workers(workers).policy(|policy| policy.externals[0].shared_with_host = true).build();
        let own = endpoint("203.0.113.10:500");
        for order in ORDERS {
            let frames = gateway.fragments_to(1, &PacketBuilder::udp(e1(), own).payload_len(300).id(order[0] as u16), 104);
            let mut punted = 0;
            for at in order {
                let out = gateway.frame(OUTSIDE, &frames[at]);
                punted += usize::from(out.verdict == Verdict::Punt && out.frame == frames[at]);
                punted += gateway.take_late().iter().filter(|out| out.verdict == Verdict::Punt).count();
            }
            assert_eq!(punted, 3, "{order:?}");
        }
        let alone = PacketBuilder::raw(e2().address, X1, 17).offset(9).payload_len(64);
        assert!(matches!(gateway.outside(&alone).verdict, Verdict::AwaitFirst(_)));
        gateway.wait(seconds(17));
        assert_eq!(gateway.take_late().iter().map(|out| out.verdict).collect::<Vec<_>>(), [Verdict::Punt]);
        assert_eq!((gateway.count(Counter::Punted), gateway.nat.counters().dropped_in_all()), (19, 0));
    }
}

#[test]
fn what_follows_a_first_fragment_that_was_refused_is_dropped_at_once_in_any_order() {
    for workers in FLEETS {
        let mut gateway = with(workers);
        for order in ORDERS {
            let frames = gateway.fragments_to(0, &PacketBuilder::tcp(h1(), e1(), ACK).payload_len(260).id(3), 104);
            for at in order {
                gateway.frame(INSIDE, &frames[at]);
            }
            assert!(gateway.take_late().iter().all(|out| out.verdict == Verdict::Drop(DropReason::FragmentWithoutFirst)));
            // The identifier is used again, by a datagram that is welcome.
            let frames = gateway.fragments_to(0, &PacketBuilder::tcp(h1(), e1(), SYN).payload_len(260).id(3), 104);
            assert_eq!(send(&mut gateway, INSIDE, OUTSIDE, &frames, [0, 2, 1]).len(), 3);
            gateway.wait(seconds(500));
            gateway.take_late();
        }
        let dropped = (gateway.dropped(DropReason::TcpNotSyn), gateway.dropped(DropReason::FragmentWithoutFirst));
        assert_eq!((dropped, gateway.nat.waiting()), ((6, 12), 0));
    }
}

#[test]
fn when_an_address_goes_what_waited_is_given_up() {
    for workers in FLEETS {
        let mut gateway = with(workers);
        gateway.outside(&PacketBuilder::raw(e1().address, X1, 17).offset(9).payload_len(64));
        gateway.adopt(|policy| policy.externals[0].address = None);
        gateway.take_late()[0].is_dropped(DropReason::FragmentWithoutFirst);
        assert_eq!(gateway.nat.waiting(), 0);
    }
}
