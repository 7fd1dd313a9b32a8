//! The fast path is taken where it should be, and only there; what it remembers is forgotten in time.
//!
//! That it forwards to the same bytes as the reference NAT is in the oracle (`portcullis-testkit`).

use std::net::Ipv4Addr;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Endpoint, InterfaceId};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_testkit::builder::{ACK, PacketBuilder, RST, SYN};

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
        let verdict = gateway.outside(&PacketBuilder::udp(e1(), here)).verdict;
        // An address that comes back before the sweep has passed finds its mapping again, with no session under it.
        assert!(matches!(verdict, Verdict::Drop(DropReason::NoMapping | DropReason::Filtered)), "{verdict:?} in round {round}");
    }
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
