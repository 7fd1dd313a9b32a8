//! What any router does, besides translating: link layers and VLANs, TTL, options, DS field, MTU, checksums as they came, next hops that
//! are not known yet.

use std::net::Ipv4Addr;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{InterfaceId, Protocol, Side};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::{Packet, policy};
use portcullis_testkit::builder::{ACK, Checksum, PSH, PacketBuilder, Query, SYN, endpoint, verify};

mod common;

use common::{INSIDE, OUTSIDE, Seen, Setup, TRUNK, X1, X3, add_route, at, e1, e2, external, h1, h2, mac_of, own_mac, via};

#[test]
fn a_packet_goes_to_its_next_hop_with_its_ttl_one_less() {
    let mut gateway = Setup::new().build();
    let seen = gateway.inside(&PacketBuilder::udp(h1(), e1()).ttl(2)).forwarded();
    assert_eq!((seen.to, seen.from, seen.ttl), (mac_of(Ipv4Addr::new(203, 0, 113, 254)), own_mac(1), 1));
    let on_link = endpoint("203.0.113.9:5");
    let seen = gateway.inside(&PacketBuilder::udp(h1(), on_link)).forwarded();
    assert_eq!((seen.to, seen.ttl), (mac_of(on_link.address), 63));
    let back = gateway.outside(&PacketBuilder::udp(on_link, seen.source).ttl(255)).delivered();
    assert_eq!((back.to, back.from, back.ttl), (mac_of(h1().address), own_mac(0), 254));
}

/// All that the NAT has no business with: DSCP and ECN, options, identification, Don't Fragment, payload.
#[test]
fn what_is_not_translated_is_kept() {
    let mut gateway = Setup::new().build();
    let record_route = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let packets: [fn(policy::Endpoint, policy::Endpoint) -> PacketBuilder; 3] = [
        PacketBuilder::udp,
        |from, to| PacketBuilder::tcp(from, to, SYN).tcp_options(&[2, 4, 5, 180, 1, 3, 3, 7]),
        |from, to| PacketBuilder::query(from.address, to.address, Query::Echo, from.port),
    ];
    for packet in packets {
        for df in [false, true] {
            let build = |from| packet(from, e1()).tos(0xB9).id(0xBEEF).dont_fragment(df).options(&record_route).payload_len(33);
            let out = gateway.inside(&build(h1()));
            let external = out.forwarded().source;
            assert_eq!(out.frame[14..], build(external).ttl(63).datagram(), "nothing else changed");
        }
    }
}

#[test]
fn frames_are_padded_as_they_came() {
    let mut gateway = Setup::new().build();
    let out = gateway.inside(&PacketBuilder::udp(h1(), e1()).trailer(18));
    out.forwarded();
    assert_eq!(out.frame.len(), 60);
}

#[test]
fn tags_come_and_go_with_the_interface() {
    let mut gateway = Setup::new().policy(|policy| policy.externals = vec![external(X1)]).build();
    let v7 = endpoint("10.7.0.2:700");
    let seen = gateway.send(2, &PacketBuilder::udp(v7, e1())).forwarded();
    assert_eq!(seen.vlan, None);
    let back = gateway.outside(&PacketBuilder::udp(e1(), seen.source)).delivered();
    assert_eq!((back.vlan, back.destination, back.to), (Some(7), v7, mac_of(v7.address)));
    let error = gateway.send(2, &PacketBuilder::udp(v7, e1()).ttl(1)).answered(INSIDE, 11, 0);
    assert_eq!((error.vlan, error.source.address), (Some(7), Ipv4Addr::new(10, 7, 0, 1)));
}

#[test]
fn both_sides_may_be_vlans_of_one_device() {
    let mut gateway = Setup::new().policy(|policy| policy.externals = vec![external(X3)]).build();
    let (host, remote) = (endpoint("10.10.0.2:700"), endpoint("198.19.0.1:80"));
    let seen = gateway.send(3, &PacketBuilder::tcp(host, remote, SYN)).on(TRUNK);
    assert_eq!((seen.vlan, seen.source.address, seen.from), (Some(20), X3, own_mac(4)));
    let back = gateway.send(4, &PacketBuilder::tcp(remote, seen.source, SYN | ACK)).on(TRUNK);
    assert_eq!((back.vlan, back.destination, back.from), (Some(10), host, own_mac(3)));
    // The side is the tag's, not the device's.
    gateway.send(4, &PacketBuilder::udp(host, remote)).is_dropped(DropReason::SpoofedOutside);
    gateway.send(3, &PacketBuilder::udp(remote, host)).is_dropped(DropReason::SpoofedInside);
}

#[test]
fn a_priority_tag_is_no_vlan() {
    let mut gateway = Setup::new().build();
    let tagged = PacketBuilder::udp(h1(), e1()).vlan(Some(0)).mac([6; 6], own_mac(0)).build();
    assert_eq!(gateway.frame(INSIDE, &tagged).forwarded().vlan, None);
}

/// RFC 768: "An all zero transmitted checksum value means that the transmitter generated no checksum".
#[test]
fn udp_without_checksum_stays_without_and_with_one_keeps_one() {
    let mut gateway = Setup::new().build();
    let none = gateway.inside(&PacketBuilder::udp(h1(), e1()).payload_len(9).checksum(Checksum::Zero)).forwarded();
    assert_eq!(none.checksum, Some(0));
    for n in 0..=u16::MAX {
        let payload = n.to_be_bytes();
        let seen = gateway.inside(&PacketBuilder::udp(h1(), e1()).payload(&payload)).forwarded();
        assert_ne!(seen.checksum, Some(0), "a computed zero is sent as ones");
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let mut gateway = Setup::new().build();
    for packet in [PacketBuilder::udp(h1(), e1()), PacketBuilder::tcp(h1(), e1(), SYN)] {
        let out = gateway.inside(&packet.payload_len(31).checksum(Checksum::Wrong(0x0101)));
        assert_eq!(out.verdict, Verdict::Transmit(OUTSIDE));
        assert!(verify(&out.frame).is_err_and(|why| why.contains("checksum")));
    }
}

/// veth and virtio senders leave the pseudo header's sum only.
#[test]
fn partial_checksums_are_completed_on_every_way() {
    let mut gateway =
        Setup::new().policy(|policy| policy.forwards = vec![common::forward(Protocol::Tcp, 80, 80, &["10.0.0.3:80"])]).build();
    let partial = |packet: PacketBuilder| packet.payload_len(100).checksum(Checksum::Partial);
    let external = Seen::of(&right(gateway.inside(&partial(PacketBuilder::udp(h1(), e1()))))).source;
    right(gateway.outside(&partial(PacketBuilder::udp(e1(), external))));
    right(gateway.inside(&partial(PacketBuilder::tcp(h1(), e1(), SYN))));
    right(gateway.inside(&partial(PacketBuilder::tcp(h1(), endpoint("203.0.113.10:80"), SYN))));
    assert_eq!(gateway.count(Counter::ChecksumsCompleted), 4);

    let mut gateway = Setup::new().policy(|policy| policy.externals[0].shared_with_host = true).build();
    let out = gateway.outside(&partial(PacketBuilder::tcp(e2(), endpoint("203.0.113.10:22"), ACK | PSH)));
    assert_eq!((out.verdict, verify(&out.frame)), (Verdict::Punt, Ok(())), "what the kernel gets is right too");
}

fn right(out: common::Out) -> Vec<u8> {
    assert!(matches!(out.verdict, Verdict::Transmit(_)), "{:?}", out.verdict);
    assert_eq!(verify(&out.frame), Ok(()));
    out.frame
}

#[test]
fn the_mtu_is_the_routes_or_the_links_whichever_is_smaller() {
    let mut gateway = Setup::new()
        .network(|network| {
            network.interfaces[1].mtu = 1450;
            add_route(network, "192.0.2.64/26", via(1, Some(Ipv4Addr::new(203, 0, 113, 254)), Some(9000)));
        })
        .build();
    for (remote, mtu) in [("192.0.2.1:1", 1450), ("192.0.2.65:1", 1450), ("192.0.2.130:1", 1400)] {
        let packet = |len: usize| PacketBuilder::udp(h1(), endpoint(remote)).payload_len(len - 28).dont_fragment(true);
        gateway.inside(&packet(mtu)).forwarded();
        let seen = gateway.inside(&packet(mtu + 1)).answered(INSIDE, 3, 4);
        assert_eq!(seen.icmp.map(|(_, _, rest)| rest), Some(mtu as u32));
        assert_eq!(
            gateway.inside(&packet(mtu + 1).dont_fragment(false)).verdict,
            Verdict::Fragment { device: OUTSIDE, mtu: mtu as u16 }
        );
    }
}

#[test]
fn a_packet_for_an_unknown_neighbour_waits_and_is_completed() {
    let mut gateway = Setup::new().build();
    let remote = endpoint("203.0.113.99:7");
    let hold = Verdict::Hold { interface: InterfaceId(1), next_hop: remote.address };
    let out = gateway.inside(&PacketBuilder::udp(h1(), remote).payload_len(20));
    assert_eq!(out.verdict, hold);
    assert_eq!(gateway.count(Counter::Held), 1);
    let mut frame = out.frame.clone();
    let len = frame.len();
    let mut packet = Packet::received(&mut frame, len);
    assert_eq!(gateway.nat.readdress(&mut packet, InterfaceId(1), remote.address), hold, "not yet");
    gateway.adopt_network(|network| {
        network.neighbours.insert((InterfaceId(1), remote.address), mac_of(remote.address));
    });
    let mut packet = Packet::received(&mut frame, len);
    assert_eq!(gateway.nat.readdress(&mut packet, InterfaceId(1), remote.address), Verdict::Transmit(OUTSIDE));
    let seen = Seen::of(&frame);
    assert_eq!((seen.to, seen.from, seen.source.address, seen.ttl), (mac_of(remote.address), own_mac(1), X1, 63));
    assert_eq!(verify(&frame), Ok(()));
    gateway.inside(&PacketBuilder::udp(h1(), remote)).forwarded();
}

#[test]
fn a_held_packet_whose_interface_went_down_or_away_is_dropped() {
    let mut gateway = Setup::new().build();
    let remote = endpoint("203.0.113.99:7");
    let mut frame = gateway.inside(&PacketBuilder::udp(h1(), remote)).frame;
    let len = frame.len();
    gateway.adopt_network(|network| network.interfaces[1].up = false);
    let mut packet = Packet::received(&mut frame, len);
    let down = Verdict::Drop(DropReason::InterfaceDown);
    assert_eq!(gateway.nat.readdress(&mut packet, InterfaceId(1), remote.address), down);
    assert_eq!(gateway.nat.readdress(&mut packet, InterfaceId(99), remote.address), down);
}

/// A packet that waited is split as it would have been at once: by the route's MTU.
#[test]
fn a_held_packet_is_split_by_its_routes_mtu() {
    let upstream = Ipv4Addr::new(203, 0, 113, 254);
    let mut gateway = Setup::new()
        .network(|network| {
            network.neighbours.remove(&(InterfaceId(1), upstream));
        })
        .build();
    let out = gateway.inside(&PacketBuilder::udp(h1(), endpoint("192.0.2.130:1")).payload_len(1430));
    assert_eq!(out.verdict, Verdict::Hold { interface: InterfaceId(1), next_hop: upstream });
    gateway.adopt_network(|network| {
        network.neighbours.insert((InterfaceId(1), upstream), mac_of(upstream));
    });
    let mut frame = out.frame;
    let len = frame.len();
    let mut packet = Packet::received(&mut frame, len);
    let verdict = gateway.nat.readdress(&mut packet, InterfaceId(1), upstream);
    assert_eq!(verdict, Verdict::Fragment { device: OUTSIDE, mtu: 1400 });
}

#[test]
fn a_network_that_changes_is_followed_by_live_sessions() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    gateway.adopt_network(|network| network.interfaces[1].up = false);
    gateway.inside(&PacketBuilder::udp(h1(), e1())).is_dropped(DropReason::InterfaceDown);
    let other = Ipv4Addr::new(203, 0, 113, 9);
    gateway.adopt_network(|network| {
        network.interfaces[1].up = true;
        add_route(network, "0.0.0.0/0", via(1, Some(other), None));
    });
    let seen = gateway.inside(&PacketBuilder::udp(h1(), e1())).forwarded();
    assert_eq!((seen.to, seen.source), (mac_of(other), external));
    gateway.adopt_network(|network| network.interfaces[0].side = Side::Inside);
    gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
}

#[test]
fn next_hops_in_use_are_told_so_that_they_are_kept_fresh() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
    let used: Vec<_> = gateway.nat.used_next_hops().collect();
    assert!(used.contains(&(InterfaceId(1), Ipv4Addr::new(203, 0, 113, 254))), "{used:?}");
    assert!(used.contains(&(InterfaceId(0), h1().address)), "{used:?}");
    assert_eq!(gateway.nat.used_next_hops().count(), 0);
    gateway.wait(11_000);
    gateway.inside(&PacketBuilder::udp(h1(), e1())).forwarded();
    assert!(gateway.nat.used_next_hops().count() >= 1, "told again after a while");
}

/// Received packets and bytes are told apart by side, and what is counted sums up to them.
#[test]
fn counters_tell_the_whole_story() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = policy::Filtering::EndpointIndependent).build();
    let external = gateway.external_of(h1(), e1());
    let second = gateway.external_of(h2(), e1());
    gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
    gateway.inside(&PacketBuilder::udp(h1(), second)).delivered();
    gateway.inside(&PacketBuilder::udp(h1(), e2()).ttl(1)).answered(INSIDE, 11, 0);
    gateway.outside(&PacketBuilder::udp(e1(), at(external, 1))).is_dropped(DropReason::NoMapping);
    let count = |counter| gateway.count(counter);
    assert_eq!((count(Counter::InsideReceived), count(Counter::OutsideReceived)), (4, 2));
    assert_eq!((count(Counter::InsideReceivedBytes), count(Counter::OutsideReceivedBytes)), (4 * 42, 2 * 42));
    assert_eq!((count(Counter::Outbound), count(Counter::Inbound), count(Counter::Hairpin)), (2, 1, 1));
    assert_eq!((count(Counter::IcmpErrorsSent), gateway.nat.counters().dropped_in_all()), (1, 2));
    assert_eq!((count(Counter::SessionsCreated), count(Counter::MappingsCreated)), (4, 2));
    let session = gateway.sessions().into_iter().find(|it| it.internal == h1() && it.remote == e1()).expect("it is there");
    assert_eq!((session.packets_out, session.packets_in), (1, 1));
}
