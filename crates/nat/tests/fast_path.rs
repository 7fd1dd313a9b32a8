//! The fast path is taken where it should be, and only there; what it remembers is forgotten in time.
//!
//! That it forwards to the same bytes as the reference NAT is in the oracle (`portcullis-testkit`).

use std::net::Ipv4Addr;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Endpoint, Filtering, InterfaceId, ReceivedChecksums};
use portcullis_nat::verdict::DropReason;
use portcullis_testkit::builder::{ACK, Checksum, FIN, PacketBuilder, RST, SYN};

mod common;

use common::{Gateway, INSIDE, Setup, X1, X2, X3, at, e1, e2, h1, h2, own_mac};

/// How many packets the fast path has forwarded since the last call.
fn fast(gateway: &Gateway<'_>, before: &mut u64) -> u64 {
    let now = gateway.count(Counter::FastPath);
    now - std::mem::replace(before, now)
}

/// A session whose way is known: UDP from `h1` to `e1`.
fn known(gateway: &mut Gateway<'_>) -> Endpoint {
    let external = gateway.external_of(h1(), e1());
    gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
    external
}

#[test]
fn from_the_first_packet_on_a_session_takes_the_fast_path_both_ways() {
    let mut gateway = Setup::new().build();
    let mut before = 0;
    let external = known(&mut gateway);
    assert_eq!(fast(&gateway, &mut before), 2, "the first makes the session, and knows the way of all");
    gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
    gateway.inside(&PacketBuilder::udp(h1(), e1())).forwarded();
    assert_eq!(fast(&gateway, &mut before), 2);
    let tcp = gateway.external_of_tcp(h2(), e2());
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, SYN | ACK)).delivered();
    gateway.inside(&PacketBuilder::tcp(h2(), e2(), ACK)).forwarded();
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, RST)).delivered();
    assert_eq!(fast(&gateway, &mut before), 4);
    assert_eq!(gateway.sessions().iter().filter(|session| session.state == portcullis_nat::view::SessionState::Reset).count(), 1);
}

#[test]
fn what_is_not_plain_takes_the_ordinary_way() {
    let mut gateway = Setup::new().build();
    let (external, other) = (known(&mut gateway), gateway.external_of(h2(), e1()));
    let mut before = gateway.count(Counter::FastPath);
    let out = || PacketBuilder::udp(h1(), e1());
    gateway.inside(&out().ttl(1)).answered(INSIDE, 11, 0);
    gateway.inside(&out().payload(&[0; 1600]).dont_fragment(true)).answered(INSIDE, 3, 4);
    gateway.frame(INSIDE, &out().mac([6; 6], own_mac(9)).build()).is_dropped(DropReason::NotForUs);
    // A hairpin goes through two sessions.
    for _ in 0..3 {
        gateway.inside(&PacketBuilder::udp(h1(), other));
        gateway.inside(&PacketBuilder::udp(h2(), external));
    }
    assert_eq!(fast(&gateway, &mut before), 0);
    gateway.inside(&out()).forwarded();
    assert_eq!(fast(&gateway, &mut before), 1, "the session is as it was");
}

#[test]
fn another_next_hop_is_seen_by_the_very_next_packet() {
    let mut gateway = Setup::new().build();
    let external = known(&mut gateway);
    let mut before = gateway.count(Counter::FastPath);
    for last in [7, 8] {
        let address = [2, 9, 9, 9, 9, last];
        gateway.adopt_network(|network| {
            network.neighbours.values_mut().for_each(|mac| *mac = address);
        });
        for _ in 0..2 {
            assert_eq!(gateway.inside(&PacketBuilder::udp(h1(), e1())).frame[..6], address);
            assert_eq!(gateway.outside(&PacketBuilder::udp(e1(), external)).frame[..6], address);
        }
        assert_eq!(fast(&gateway, &mut before), 3, "of four; the first finds out the way again");
    }
    gateway.adopt_network(|network| network.interfaces[1].up = false);
    gateway.inside(&PacketBuilder::udp(h1(), e1())).is_dropped(DropReason::InterfaceDown);
    gateway.adopt_network(|network| network.interfaces[0].prefixes = vec!["172.16.0.0/12".parse().expect("a prefix")]);
    gateway.inside(&PacketBuilder::udp(h1(), e1())).is_dropped(DropReason::SpoofedInside);
    assert_eq!(fast(&gateway, &mut before), 0);
}

/// Two bits tell the addresses that a slot had one after the other: sessions of the first must not live again under the fifth.
#[test]
fn sessions_stay_dead_however_often_their_address_changes() {
    let mut gateway = Setup::new().build();
    let external = known(&mut gateway);
    for round in 0..9 {
        let address = [X2, X3, X1][round % 3];
        gateway.adopt(|policy| policy.externals[0].address = Some(address));
        assert_eq!(gateway.sessions(), [], "after {round}");
        let here = Endpoint { address, ..external };
        gateway.outside(&PacketBuilder::udp(e1(), here)).is_dropped(DropReason::NoMapping);
    }
}

/// Two sessions, so that their mapping has a record; an open filter, so that it lets anyone in while it lives.
#[test]
fn an_address_that_comes_back_before_the_sweep_brings_no_mapping_back() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = Filtering::EndpointIndependent).build();
    let external = gateway.external_of(h1(), e1());
    assert_eq!(gateway.external_of(h1(), e2()), external);
    for address in [X2, X1] {
        gateway.adopt(|policy| policy.externals[0].address = Some(address));
    }
    for remote in [e1(), e2(), at(e1(), 9)] {
        gateway.outside(&PacketBuilder::udp(remote, external)).is_dropped(DropReason::NoMapping);
    }
    gateway.wait(10_000);
    gateway.assert_empty();
}

#[test]
fn next_hops_of_the_fast_path_are_kept_in_use() {
    let mut gateway = Setup::new().build();
    known(&mut gateway);
    let upstream = (InterfaceId(1), Ipv4Addr::new(203, 0, 113, 254));
    let used = |gateway: &mut Gateway<'_>| gateway.nat.used_next_hops().any(|hop| hop == upstream);
    gateway.wait(11_000);
    used(&mut gateway);
    let mut before = gateway.count(Counter::FastPath);
    for _ in 0..3 {
        gateway.inside(&PacketBuilder::udp(h1(), e1())).forwarded();
        gateway.wait(5_000);
    }
    assert_eq!(fast(&gateway, &mut before), 3);
    assert!(used(&mut gateway), "no packet but those of the fast path went there");
}

#[test]
fn a_burst_is_decided_in_order_whatever_is_known_of_its_packets() {
    let mut gateway = Setup::new().build();
    known(&mut gateway);
    let flows: Vec<_> = (0..80_u16).map(|n| (at(h1(), 2000 + n % 7), at(e1(), 5000 + n % 11))).collect();
    let frames: Vec<_> = flows.iter().map(|&(from, to)| gateway.frame_to(0, &PacketBuilder::udp(from, to))).collect();
    let sources: Vec<_> = gateway.burst(INSIDE, &frames).iter().map(|out| out.forwarded().source).collect();
    for (flow, source) in flows.iter().zip(&sources) {
        let same = flows.iter().zip(&sources).all(|(other, external)| (flow.0 == other.0) == (source == external));
        assert!(same, "one mapping for each internal endpoint");
    }
    assert_eq!(gateway.sessions().len(), 78, "77 and the first");
}

#[test]
fn a_session_that_the_ordinary_way_begins_in_a_burst_is_not_begun_again() {
    let mut gateway = Setup::new().build();
    let flows: Vec<_> = (0..30_u16).map(|n| (at(h1(), 2000 + n % 10), e1())).collect();
    // The first packet of each has an option, here that nothing follows.
    let packet =
        |n: usize, (from, to)| if n < 10 { PacketBuilder::udp(from, to).options(&[1; 4]) } else { PacketBuilder::udp(from, to) };
    let frames: Vec<_> = flows.iter().enumerate().map(|(n, &flow)| gateway.frame_to(0, &packet(n, flow))).collect();
    let sources: Vec<_> = gateway.burst(INSIDE, &frames).iter().map(|out| out.forwarded().source).collect();
    assert!(sources[..10] == sources[10..20] && sources[..10] == sources[20..]);
    assert_eq!((gateway.sessions().len(), gateway.count(Counter::SessionsCreated)), (10, 10));
}

/// As if the devices were cards on a wire.
fn on_a_wire(gateway: &mut Gateway<'_>) {
    gateway.adopt_network(|network| network.interfaces.iter_mut().for_each(|link| link.checksums = ReceivedChecksums::Complete));
}

#[test]
fn a_checksum_that_may_be_partial_takes_the_ordinary_way() {
    let mut gateway = Setup::new().build();
    let external = known(&mut gateway);
    let mut before = gateway.count(Counter::FastPath);
    let partial = |packet: PacketBuilder| packet.payload(&[7; 33]).checksum(Checksum::Partial);
    for _ in 0..2 {
        let out = gateway.inside(&partial(PacketBuilder::udp(h1(), e1())));
        assert!(portcullis_testkit::builder::verify(&out.frame).is_ok(), "it was completed");
        let out = gateway.outside(&partial(PacketBuilder::udp(e1(), external)));
        assert!(portcullis_testkit::builder::verify(&out.frame).is_ok(), "it was completed");
    }
    assert_eq!((fast(&gateway, &mut before), gateway.count(Counter::ChecksumsCompleted)), (0, 4));
}

#[test]
fn from_a_wire_the_same_is_sent_as_from_elsewhere() {
    let packets = |external: Endpoint| {
        let checksums = [Checksum::Right, Checksum::Zero, Checksum::Wrong(0x1234), Checksum::Wrong(0xFFFF)];
        checksums.map(|checksum| {
            let build = |packet: PacketBuilder| packet.payload(&[3; 21]).checksum(checksum);
            (build(PacketBuilder::udp(h1(), e1())), build(PacketBuilder::udp(e1(), external)))
        })
    };
    let sent = |is_wire: bool| {
        let mut gateway = Setup::new().build();
        gateway.nat.nat(0).script_draws([7, 3_000]);
        if is_wire {
            on_a_wire(&mut gateway);
        }
        let external = known(&mut gateway);
        let mut before = gateway.count(Counter::FastPath);
        let sent = packets(external).map(|(out, back)| (gateway.inside(&out).frame, gateway.outside(&back).frame));
        assert_eq!(fast(&gateway, &mut before), 8, "all of them");
        sent
    };
    assert_eq!(sent(true), sent(false));
}

/// Equation 3 of RFC 1624 by the book, word by word, and RFC 768's zero: "If the computed checksum is zero, it is transmitted as all ones".
#[test]
fn every_checksum_is_mended_as_the_book_says() {
    let mut gateway = Setup::new().build();
    on_a_wire(&mut gateway);
    known(&mut gateway);
    let tcp = gateway.external_of_tcp(h2(), e2());
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, SYN | ACK)).delivered();
    let mut before = gateway.count(Counter::FastPath);
    let kinds = [(PacketBuilder::udp(h1(), e1()), 40, true), (PacketBuilder::tcp(h2(), e2(), ACK), 50, false)];
    for (packet, at, is_udp) in kinds {
        let frame = gateway.frame_to(0, &packet);
        let with = |checksum: u16| {
            let mut frame = frame.clone();
            frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
            frame
        };
        let values: Vec<u16> = (0..=u16::MAX).collect();
        for values in values.chunks(4096) {
            let frames: Vec<_> = values.iter().map(|&value| with(value)).collect();
            for (out, &value) in gateway.burst(INSIDE, &frames).iter().zip(values) {
                let word = |frame: &[u8], at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
                let changes = [26, 28, 34].map(|at| 0xFFFF - word(&frame, at) + word(&out.frame, at));
                let sum = changes.iter().sum::<u32>() + u32::from(!value);
                let folded = (sum & 0xFFFF) + (sum >> 16);
                let mended = !((folded & 0xFFFF) + (folded >> 16)) & 0xFFFF;
                let expected = match (is_udp, value, mended) {
                    (true, 0, _) => 0,
                    (true, _, 0) => 0xFFFF,
                    _ => mended,
                };
                assert_eq!(word(&out.frame, at), expected, "{value:#06x}, UDP {is_udp}");
            }
        }
    }
    assert_eq!(fast(&gateway, &mut before), 2 << 16);
}

#[test]
fn a_udp_length_below_the_payloads_is_no_hindrance_and_one_above_is() {
    let mut gateway = Setup::new().build();
    known(&mut gateway);
    let mut before = gateway.count(Counter::FastPath);
    let claims = |length| PacketBuilder::udp(h1(), e1()).payload(&[9; 40]).udp_length(length);
    for length in [8, 20, 47, 48] {
        let out = gateway.inside(&claims(length));
        out.forwarded();
        assert_eq!(out.frame[38..40], length.to_be_bytes(), "left as it is");
        assert_eq!(fast(&gateway, &mut before), 1, "{length}");
    }
    for length in [0, 7, 49, u16::MAX] {
        gateway.inside(&claims(length)).is_dropped(DropReason::BadTransportHeader);
    }
    assert_eq!(fast(&gateway, &mut before), 0);
}

#[test]
fn what_is_not_settled_takes_the_fast_path_too() {
    let mut gateway = Setup::new().build();
    let mut before = 0;
    // Nobody answers.
    for _ in 0..5 {
        gateway.inside(&PacketBuilder::udp(h1(), e1())).forwarded();
    }
    assert_eq!(fast(&gateway, &mut before), 5);
    let tcp = gateway.external_of_tcp(h2(), e2());
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, SYN | ACK)).delivered();
    gateway.inside(&PacketBuilder::tcp(h2(), e2(), FIN | ACK)).forwarded();
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, ACK)).delivered();
    gateway.outside(&PacketBuilder::tcp(e2(), tcp, FIN | ACK)).delivered();
    assert_eq!(fast(&gateway, &mut before), 5);
    assert!(gateway.sessions().iter().any(|session| session.state == portcullis_nat::view::SessionState::Closing));
    gateway.inside(&PacketBuilder::tcp(h2(), e2(), SYN | FIN)).is_dropped(DropReason::BadTcpFlags);
    assert_eq!(fast(&gateway, &mut before), 0);
}

/// The fast path reads what is neither TCP nor UDP as if it were UDP, until it sees the session's protocol. What is translated by address
/// keeps its bytes.
#[test]
fn another_protocol_with_a_sessions_bytes_is_not_the_sessions() {
    let mut gateway = Setup::new().build();
    known(&mut gateway);
    let mut before = gateway.count(Counter::FastPath);
    let udp = gateway.frame_to(0, &PacketBuilder::udp(h1(), e1()).payload(&[1; 12]));
    let sessions = gateway.sessions();
    for protocol in (0..=u8::MAX).filter(|protocol| ![1, 6, 17].contains(protocol)) {
        let packet = PacketBuilder::raw(h1().address, e1().address, protocol).payload(&udp[34..]);
        let out = gateway.inside(&packet);
        if gateway.policy.other_protocols.contains(protocol) {
            let seen = out.forwarded();
            assert_eq!((seen.source.address, &seen.segment[..6], &seen.segment[8..]), (X1, &udp[34..40], &udp[42..]));
        } else {
            out.is_dropped(DropReason::UnsupportedProtocol);
        }
    }
    assert_eq!(gateway.sessions(), sessions, "no session is touched");
    gateway.inside(&PacketBuilder::tcp(h1(), e1(), ACK)).is_dropped(DropReason::TcpNotSyn);
    assert_eq!(fast(&gateway, &mut before), 0);
}
