//! Protocols without ports: translated by address where that is unambiguous, refused where it is not, never leaked.
//!
//! Fragments, errors, timers and owners of TCP, UDP and ICMP have files of their own. Here with one worker; all once more with four in
//! `on_four_workers.rs`. Blind spot: the XDP program, which lets them come here on shared addresses (`xsk`).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Policy, ProtocolSet};
use portcullis_nat::verdict::{DropReason, HandOffCause, Verdict};
use portcullis_nat::view::{OtherView, SessionState};
use portcullis_testkit::builder::checksum::{internet, pseudo_header, verifies};
use portcullis_testkit::builder::{PacketBuilder, describe};

mod common;

use common::{GATEWAY_INSIDE, Gateway, INSIDE, OUTSIDE, Out, Seen, Setup, X1, X2, X3, e1, e2, external, h1, h2, idle, seconds};

const GRE: u8 = 47;
const ESP: u8 = 50;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
const DCCP: u8 = 33;
const AH: u8 = 51;

fn packet(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr) -> PacketBuilder {
    PacketBuilder::raw(source, destination, protocol).payload_len(40)
}

/// From the first host to the first remote.
fn out(protocol: u8) -> PacketBuilder {
    packet(protocol, h1().address, e1().address)
}

/// From the first remote to an external address.
fn back(protocol: u8, external: Ipv4Addr) -> PacketBuilder {
    packet(protocol, e1().address, external)
}

fn router() -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 200, 1)
}

/// Two external addresses.
fn two() -> Setup {
    Setup::new().policy(|policy| policy.externals = vec![external(X1), external(X2)])
}

fn addresses(seen: &Seen) -> (Ipv4Addr, Ipv4Addr) {
    (seen.source.address, seen.destination.address)
}

/// Sends a packet from a host to the first remote, and gives the external address that it left with.
fn external_of(gateway: &mut Gateway<'_>, protocol: u8, host: Ipv4Addr) -> Ipv4Addr {
    gateway.inside(&packet(protocol, host, e1().address)).forwarded().source.address
}

/// Refused with no room anywhere: dropped for that reason, and the sender is told.
fn is_told(gateway: &mut Gateway<'_>, packet: &PacketBuilder, reason: DropReason) {
    let before = gateway.dropped(reason);
    let seen = gateway.inside(packet).answered(INSIDE, 3, 13);
    assert_eq!((seen.source.address, gateway.dropped(reason)), (GATEWAY_INSIDE, before + 1));
}

#[test]
fn every_protocol_of_the_set_goes_out_and_its_answer_comes_back() {
    let mut gateway = Setup::new().build();
    for protocol in ProtocolSet::default().iter() {
        let sent = out(protocol).id(77).tos(0x2E).options(&[1; 4]);
        let seen = gateway.inside(&sent).forwarded();
        assert_eq!((addresses(&seen), seen.protocol, seen.ttl), ((X1, e1().address), protocol, 63));
        assert_eq!((seen.id, seen.tos, &seen.options[..]), (77, 0x2E, &[1; 4][..]), "as it was sent");
        let seen = gateway.outside(&back(protocol, X1)).delivered();
        assert_eq!((addresses(&seen), seen.protocol), ((e1().address, h1().address), protocol));
        if ![UDP_LITE, DCCP].contains(&protocol) {
            assert_eq!(seen.segment, back(protocol, X1).datagram()[20..], "not a byte behind the header");
        }
    }
    let others = ProtocolSet::default().iter().count() as u32;
    assert_eq!((gateway.nat.gauges().others, gateway.others().len() as u32), (others, others));
    let gauges = gateway.nat.gauges();
    assert_eq!((gauges.sessions, gauges.mappings, gauges.subscribers, gateway.ports_used()), (0, 0, 0, 0), "no port, no mapping");
    assert_eq!((gateway.count(Counter::Outbound), gateway.count(Counter::Inbound)), (u64::from(others), u64::from(others)));
}

/// RFC 3715, section 2.1: AH covers the addresses. Others are said on one link only, or between routers.
#[test]
fn what_is_not_in_the_set_is_not_translated() {
    let mut gateway = Setup::new().build();
    for protocol in [0, 2, AH, 58, 89, 103, 112] {
        gateway.inside(&out(protocol)).is_dropped(DropReason::UnsupportedProtocol);
        gateway.outside(&back(protocol, X1)).is_dropped(DropReason::UnsupportedProtocol);
    }
    gateway.adopt(|policy| policy.other_protocols = [GRE, 0].into_iter().collect());
    gateway.inside(&out(GRE)).forwarded();
    gateway.inside(&out(0)).forwarded();
    gateway.inside(&out(ESP)).is_dropped(DropReason::UnsupportedProtocol);
    gateway.adopt(|policy| policy.other_protocols = ProtocolSet::EMPTY);
    gateway.inside(&out(GRE)).is_dropped(DropReason::UnsupportedProtocol);
    gateway.outside(&back(GRE, X1)).is_dropped(DropReason::UnsupportedProtocol);
    let quoted = packet(GRE, X1, e1().address).datagram();
    let error = PacketBuilder::icmp_error(router(), X1, 3, 1, &quoted);
    gateway.outside(&error).is_dropped(DropReason::IcmpNoSession);
}

/// Only who was sent to may answer, and only in the protocol that it was sent.
#[test]
fn what_no_translation_names_is_dropped() {
    let mut gateway = two().build();
    let outer = external_of(&mut gateway, GRE, h1().address);
    let other = if outer == X1 { X2 } else { X1 };
    gateway.outside(&packet(GRE, e2().address, outer)).is_dropped(DropReason::NoMapping);
    gateway.outside(&back(GRE, other)).is_dropped(DropReason::NoMapping);
    gateway.outside(&back(ESP, outer)).is_dropped(DropReason::NoMapping);
    gateway.outside(&back(GRE, outer)).delivered();
    gateway.outside(&packet(GRE, e1().address, h1().address)).is_dropped(DropReason::WrongSide);
    assert_eq!(gateway.others().len(), 1);
}

/// Out and in again: nothing in the packet says for which host it is.
#[test]
fn a_hairpin_is_not_possible() {
    let mut gateway = Setup::new().build();
    external_of(&mut gateway, GRE, h1().address);
    gateway.inside(&packet(GRE, h2().address, X1)).is_dropped(DropReason::NoMapping);
    gateway.inside(&packet(GRE, h1().address, X1)).is_dropped(DropReason::NoMapping);
    gateway.adopt(|policy| policy.externals[0].shared_with_host = true);
    assert_eq!(gateway.inside(&packet(GRE, h2().address, X1)).verdict, Verdict::Punt, "it is for the box");
}

#[test]
fn a_second_host_gets_the_next_address_and_a_third_is_refused() {
    let mut gateway = two().build();
    let h3 = Ipv4Addr::new(10, 0, 0, 4);
    let first = external_of(&mut gateway, ESP, h1().address);
    let second = external_of(&mut gateway, ESP, h2().address);
    assert_eq!(BTreeSet::from([first, second]), BTreeSet::from([X1, X2]));
    is_told(&mut gateway, &packet(ESP, h3, e1().address), DropReason::OtherProtocolAmbiguous);
    for (host, outer) in [(h1().address, first), (h2().address, second)] {
        assert_eq!(external_of(&mut gateway, ESP, host), outer, "it stays");
        assert_eq!(gateway.outside(&back(ESP, outer)).delivered().destination.address, host);
    }
    // Towards another remote, and in another protocol, both are free.
    gateway.inside(&packet(ESP, h3, e2().address)).forwarded();
    gateway.inside(&packet(GRE, h3, e1().address)).forwarded();
    gateway.adopt(|policy| policy.icmp_errors.exhausted_code = 1);
    gateway.inside(&packet(ESP, h3, e1().address)).answered(INSIDE, 3, 1);
    gateway.adopt(|policy| policy.icmp_errors.rate = 0);
    gateway.inside(&packet(ESP, h3, e1().address)).is_dropped(DropReason::OtherProtocolAmbiguous);
    assert_eq!(gateway.others().len(), 4);
}

/// As RFC 4787, REQ-2, wants of mappings: "Paired", as long as nobody is in the way.
#[test]
fn a_host_has_the_same_address_towards_all_remotes() {
    let three = |policy: &mut Policy| policy.externals = vec![external(X1), external(X2), external(X3)];
    let mut gateway = Setup::new().policy(three).build();
    let mut given = BTreeSet::new();
    for host in 2..40_u8 {
        let remotes = (1..6_u8).map(|last| Ipv4Addr::new(192, 0, host, last));
        let host = Ipv4Addr::new(10, 0, 0, host);
        let outer: BTreeSet<_> = remotes
            .flat_map(|remote| [GRE, SCTP].map(|protocol| packet(protocol, host, remote)))
            .map(|packet| gateway.inside(&packet).forwarded().source.address)
            .collect();
        assert_eq!(outer.len(), 1, "{host} has {outer:?}");
        given.extend(outer);
    }
    assert_eq!(given, BTreeSet::from([X1, X2, X3]), "they are spread");
}

#[test]
fn without_a_live_address_or_room_a_host_is_told() {
    let mut setup = Setup::new();
    // Room for one on each worker; the three remotes are of one.
    setup.capacity.others = 1;
    let mut gateway = setup.build();
    let owner = |gateway: &Gateway<'_>, remote| gateway.owners.of_remote(remote);
    let wanted = owner(&gateway, e1().address);
    let mut remotes = (1..=255).map(|last| Ipv4Addr::new(198, 18, 0, last)).filter(|&remote| owner(&gateway, remote) == wanted);
    let (second, third) = (remotes.next().expect("some"), remotes.next().expect("some"));
    drop(remotes);
    gateway.inside(&out(GRE)).forwarded();
    is_told(&mut gateway, &packet(GRE, h1().address, second), DropReason::OtherProtocolsFull);
    gateway.inside(&out(GRE)).forwarded();
    gateway.wait(seconds(31));
    gateway.inside(&packet(GRE, h1().address, second)).forwarded();
    is_told(&mut gateway, &packet(GRE, h1().address, third), DropReason::OtherProtocolsFull);
    gateway.adopt(|policy| policy.externals[0].address = None);
    is_told(&mut gateway, &out(GRE), DropReason::NoExternalAddress);
}

#[test]
fn an_opening_translation_ends_exactly_at_its_time_and_an_answered_one_later() {
    for (answered, waits, lives) in [(false, 3000, true), (false, 3001, false), (true, 5000, true), (true, 5001, false)] {
        for swept in [false, true] {
            let times = |policy: &mut Policy| {
                (policy.timeouts.other_opening, policy.timeouts.other) = (idle(3), idle(5));
            };
            let mut gateway = Setup::new().policy(times).build();
            gateway.inside(&out(GRE)).forwarded();
            if answered {
                gateway.skip(100);
                gateway.outside(&back(GRE, X1)).delivered();
            }
            let wait = if swept { Gateway::wait } else { Gateway::skip };
            wait(&mut gateway, waits);
            let state = format!("answered {answered}, {waits} ms, swept {swept}");
            assert_eq!(gateway.others().len(), usize::from(lives), "{state}");
            let reached = gateway.outside(&back(GRE, X1));
            assert_eq!(reached.verdict == Verdict::Transmit(INSIDE), lives, "{state}");
        }
    }
}

/// As RFC 4787, REQ-6, wants of mappings: outbound refreshes, inbound where it is configured.
#[test]
fn outbound_packets_refresh_and_inbound_ones_where_that_is_configured() {
    for inbound_refresh in [false, true] {
        let mut gateway = Setup::new().policy(|policy| policy.inbound_refresh = inbound_refresh).build();
        gateway.inside(&out(GRE)).forwarded();
        for _ in 0..4 {
            gateway.wait(seconds(29));
            gateway.inside(&out(GRE)).forwarded();
        }
        gateway.wait(seconds(29));
        gateway.outside(&back(GRE, X1)).delivered();
        assert_eq!(gateway.others()[0].expires_in, 600_001, "the first answer");
        gateway.wait(seconds(599));
        gateway.outside(&back(GRE, X1)).delivered();
        gateway.wait(seconds(599));
        assert_eq!(gateway.outside(&back(GRE, X1)).verdict == Verdict::Transmit(INSIDE), inbound_refresh);
        assert_eq!(gateway.others().len(), usize::from(inbound_refresh));
        let external = external_of(&mut gateway, GRE, h1().address);
        assert_eq!(gateway.others()[0].state, if inbound_refresh { SessionState::Replied } else { SessionState::Unreplied });
        let quoted = packet(GRE, external, e1().address).datagram();
        gateway.wait(seconds(20));
        gateway.outside(&PacketBuilder::icmp_error(router(), external, 11, 0, &quoted)).delivered();
        let left = if inbound_refresh { 580_001 } else { 10_001 };
        assert_eq!(gateway.others()[0].expires_in, left, "an error refreshes nothing");
        gateway.wait(seconds(700));
        gateway.assert_empty();
    }
}

#[test]
fn a_translation_is_shown_as_it_is() {
    let mut gateway = Setup::new().build();
    gateway.inside(&out(SCTP)).forwarded();
    gateway.inside(&out(SCTP)).forwarded();
    let view = OtherView {
        protocol: SCTP,
        internal: h1().address,
        external: X1,
        remote: e1().address,
        state: SessionState::Unreplied,
        expires_in: 30_001,
        packets_out: 2,
        packets_in: 0,
    };
    assert_eq!(gateway.others(), [view]);
    gateway.outside(&back(SCTP, X1)).delivered();
    gateway.skip(1000);
    gateway.outside(&back(SCTP, X1)).delivered();
    assert_eq!(gateway.others(), [OtherView { state: SessionState::Replied, expires_in: 599_001, packets_in: 2, ..view }]);
    let gauges = gateway.nat.gauges();
    assert_eq!((gauges.others, gauges.others_limit % 1024), (1, 0));
}

#[test]
fn when_an_address_goes_its_translations_end_at_once_and_do_not_come_back_with_it() {
    let mut gateway = two().build();
    let first = external_of(&mut gateway, GRE, h1().address);
    let slot = usize::from(first == X2);
    gateway.adopt(|policy| policy.externals[slot].address = None);
    assert!(gateway.others().is_empty());
    gateway.outside(&back(GRE, first)).is_dropped(DropReason::WrongSide);
    gateway.adopt(|policy| policy.externals[slot].address = Some(first));
    gateway.outside(&back(GRE, first)).is_dropped(DropReason::NoMapping);
    let quoted = packet(GRE, first, e1().address).datagram();
    gateway.outside(&PacketBuilder::icmp_error(router(), first, 3, 1, &quoted)).is_dropped(DropReason::IcmpNoSession);
    // Another host is given the key of the one that ended.
    let hosts: Vec<_> = (2..40).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    let taken: BTreeSet<_> = hosts.iter().take(2).map(|&host| external_of(&mut gateway, GRE, host)).collect();
    assert_eq!(taken, BTreeSet::from([X1, X2]));
    // With another address in the slot, a host moves.
    gateway.adopt(|policy| policy.externals[slot].address = Some(X3));
    let moved = if external_of(&mut gateway, GRE, hosts[0]) == X3 { hosts[0] } else { hosts[1] };
    assert_eq!(external_of(&mut gateway, GRE, moved), X3);
    let seen = gateway.outside(&back(GRE, X3));
    assert_eq!(seen.delivered().destination.address, moved);
    gateway.wait(seconds(700));
    gateway.assert_empty();
}

/// A datagram with a right checksum, that covers all of it.
fn with_checksum(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut segment = payload.to_vec();
    segment[6..8].fill(0);
    let pseudo = pseudo_header(source, destination, protocol, segment.len());
    let checksum = internet(&[&pseudo, &segment]);
    let checksum = if protocol == UDP_LITE && checksum == 0 { 0xFFFF } else { checksum };
    segment[6..8].copy_from_slice(&checksum.to_be_bytes());
    segment
}

fn verifies_to(seen: &Seen) -> bool {
    let pseudo = pseudo_header(seen.source.address, seen.destination.address, seen.protocol, seen.segment.len());
    verifies(&[&pseudo, &seen.segment])
}

/// RFC 3828, section 3.1, and RFC 4340, section 9.1: both sum over the addresses.
#[test]
fn checksums_over_the_addresses_are_right_again_and_wrong_ones_stay_wrong() {
    let mut gateway = Setup::new().build();
    for protocol in [UDP_LITE, DCCP] {
        // All values of a word, so that all values of the checksum.
        for word in (0..=u16::MAX).step_by(7) {
            let payload = [&[0x13, 0x88, 0, 80, 0, 0, 0, 0, 3, 4][..], &word.to_be_bytes()].concat();
            let segment = with_checksum(protocol, h1().address, e1().address, &payload);
            let seen = gateway.inside(&out(protocol).payload(&segment)).forwarded();
            assert_eq!(seen.segment, with_checksum(protocol, X1, e1().address, &payload), "protocol {protocol}, {word:#x}");
            assert!(verifies_to(&seen));
            let segment = with_checksum(protocol, e1().address, X1, &payload);
            let seen = gateway.outside(&back(protocol, X1).payload(&segment)).delivered();
            assert_eq!(seen.segment, with_checksum(protocol, e1().address, h1().address, &payload));
        }
        let mut wrong = with_checksum(protocol, h1().address, e1().address, &[9; 12]);
        wrong[11] ^= 4;
        assert!(!verifies_to(&gateway.inside(&out(protocol).payload(&wrong)).forwarded()));
        let cut = gateway.inside(&out(protocol).payload(&[9; 7])).forwarded();
        assert_eq!(cut.segment, [9; 7], "no checksum is there");
    }
    let none = gateway.inside(&out(UDP_LITE).payload(&[0; 12])).forwarded();
    assert_eq!(none.segment, [0; 12], "none, which is illegal, stays none");
}

#[test]
fn fragments_go_each_by_itself_in_any_order_and_nothing_is_remembered_of_them() {
    for protocol in [GRE, UDP_LITE, DCCP] {
        let payload: Vec<u8> = (0..200).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut gateway = Setup::new().build();
            let segment = with_checksum(protocol, h1().address, e1().address, &payload);
            let frames = gateway.fragments_to(0, &out(protocol).id(9).payload(&segment), 80);
            assert_eq!(frames.len(), 3);
            let mut seen: Vec<_> = order.map(|at| gateway.frame(INSIDE, &frames[at]).forwarded()).into();
            seen.sort_by_key(Seen::offset);
            assert!(seen.iter().all(|seen| (addresses(seen), seen.id, seen.ttl) == ((X1, e1().address), 9, 63)));
            let joined: Vec<u8> = seen.iter().flat_map(|seen| seen.segment.clone()).collect();
            let whole = if protocol == GRE { segment } else { with_checksum(protocol, X1, e1().address, &payload) };
            assert_eq!(joined, whole, "protocol {protocol}");

            let segment = with_checksum(protocol, e1().address, X1, &payload);
            let frames = gateway.fragments_to(1, &back(protocol, X1).id(9).payload(&segment), 80);
            let mut seen: Vec<_> = order.map(|at| gateway.frame(OUTSIDE, &frames[at]).delivered()).into();
            seen.sort_by_key(Seen::offset);
            assert!(seen.iter().all(|seen| addresses(seen) == (e1().address, h1().address)));
            let joined: Vec<u8> = seen.iter().flat_map(|seen| seen.segment.clone()).collect();
            let whole = if protocol == GRE { segment } else { with_checksum(protocol, e1().address, h1().address, &payload) };
            assert_eq!(joined, whole, "protocol {protocol}");
            assert_eq!((gateway.count(Counter::Fragments), gateway.nat.gauges().fragments, gateway.nat.waiting()), (6, 0, 0));
            assert_eq!(gateway.others().len(), 1);
        }
    }
}

#[test]
fn a_later_fragment_alone_opens_a_translation_and_without_one_it_is_dropped() {
    let mut gateway = Setup::new().build();
    gateway.outside(&back(GRE, X1).offset(9)).is_dropped(DropReason::NoMapping);
    gateway.inside(&out(GRE).offset(9)).forwarded();
    gateway.outside(&back(GRE, X1).offset(9)).delivered();
}

/// An error from outside shows the packet as the host sent it (as RFC 5508, REQ-4), from inside as the remote did (REQ-5).
#[test]
fn errors_about_translated_packets_come_back_to_their_senders() {
    let mut gateway = Setup::new().build();
    for protocol in [GRE, SCTP, UDP_LITE, DCCP] {
        gateway.inside(&out(protocol)).forwarded();
        let payload: Vec<u8> = (0..40).collect();
        let quoted = |source, destination| {
            let segment = with_checksum(protocol, source, destination, &payload);
            packet(protocol, source, destination).payload(&segment).datagram()
        };
        for quote in [20, 27, 28, 60] {
            let error = PacketBuilder::icmp_error(router(), X1, 3, 4, &quoted(X1, e1().address)).quote(quote).next_hop_mtu(1300);
            let seen = gateway.outside(&error).delivered();
            assert_eq!(addresses(&seen), (router(), h1().address), "protocol {protocol}, {quote} bytes");
            assert_eq!(seen.icmp, Some((3, 4, 1300)));
            let as_sent = quoted(h1().address, e1().address);
            // Where no checksum over the addresses is quoted, or half of one, only the header changes.
            let is_mended = quote >= 28 && [UDP_LITE, DCCP].contains(&protocol);
            let mut wanted = if is_mended { as_sent.clone() } else { quoted(X1, e1().address) };
            wanted[..20].copy_from_slice(&as_sent[..20]);
            assert_eq!(seen.segment[8..8 + quote], wanted[..quote], "protocol {protocol}, {quote} bytes");

            let error =
                PacketBuilder::icmp_error(h1().address, e1().address, 3, 2, &quoted(e1().address, h1().address)).quote(quote);
            let seen = gateway.inside(&error).forwarded();
            assert_eq!(addresses(&seen), (X1, e1().address), "protocol {protocol}, {quote} bytes");
            assert_eq!(addresses(&seen.quoted()), (e1().address, X1));
            let wanted = if is_mended { quoted(e1().address, X1) } else { quoted(e1().address, h1().address) };
            assert_eq!(seen.segment[8 + 20..8 + quote], wanted[20..quote]);
        }
        let later = packet(protocol, X1, e1().address).offset(9).datagram();
        let seen = gateway.outside(&PacketBuilder::icmp_error(router(), X1, 11, 1, &later)).delivered();
        assert_eq!(addresses(&seen.quoted()), (h1().address, e1().address), "a later fragment says all that it takes");
    }
    assert_eq!(gateway.count(Counter::IcmpErrorsTranslated), 4 * (2 * 4 + 1));
}

#[test]
fn errors_that_nothing_was_sent_for_are_dropped() {
    let mut gateway = two().build();
    let outer = external_of(&mut gateway, GRE, h1().address);
    let other = if outer == X1 { X2 } else { X1 };
    let error = |to, quoted: &PacketBuilder| PacketBuilder::icmp_error(router(), to, 3, 1, &quoted.datagram());
    let no_session = [
        (outer, packet(ESP, outer, e1().address)),
        (outer, packet(GRE, outer, e2().address)),
        (other, packet(GRE, other, e1().address)),
    ];
    for (to, quoted) in no_session {
        gateway.outside(&error(to, &quoted)).is_dropped(DropReason::IcmpNoSession);
    }
    gateway.outside(&error(other, &packet(GRE, outer, e1().address))).is_dropped(DropReason::BadEmbeddedPacket);
    gateway
        .inside(&PacketBuilder::icmp_error(h2().address, e1().address, 3, 1, &packet(GRE, e1().address, h2().address).datagram()))
        .is_dropped(DropReason::IcmpNoSession);
    gateway
        .inside(&PacketBuilder::icmp_error(h1().address, e2().address, 3, 1, &packet(GRE, e1().address, h1().address).datagram()))
        .is_dropped(DropReason::BadEmbeddedPacket);
    gateway
        .inside(&PacketBuilder::icmp_error(h1().address, outer, 3, 1, &packet(GRE, outer, h1().address).datagram()))
        .is_dropped(DropReason::IcmpNoSession);
}

#[test]
fn on_a_shared_address_what_no_translation_names_is_the_hosts() {
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].shared_with_host = true).build();
    let punted = |gateway: &mut Gateway<'_>, packet: &PacketBuilder| {
        let frame = gateway.frame_to(1, packet);
        let out = gateway.frame(OUTSIDE, &frame);
        assert_eq!((out.verdict, &out.frame), (Verdict::Punt, &frame), "as it came: {}", describe(&frame));
    };
    let error = PacketBuilder::icmp_error(router(), X1, 3, 1, &packet(GRE, X1, e1().address).datagram());
    for packet in [back(GRE, X1), back(GRE, X1).more_fragments(true), back(GRE, X1).offset(9), error.clone()] {
        punted(&mut gateway, &packet);
    }
    gateway.inside(&out(GRE)).forwarded();
    gateway.outside(&back(GRE, X1)).delivered();
    gateway.outside(&error).delivered();
    punted(&mut gateway, &packet(GRE, e2().address, X1));
    punted(&mut gateway, &back(AH, X1));
}

#[test]
fn it_is_a_routers_packet_as_every_other_is() {
    let mut gateway = Setup::new().build();
    gateway.inside(&out(GRE).ttl(1)).answered(INSIDE, 11, 0);
    gateway.inside(&packet(GRE, Ipv4Addr::new(192, 168, 9, 9), e1().address)).is_dropped(DropReason::SpoofedInside);
    gateway.inside(&packet(GRE, h1().address, Ipv4Addr::new(192, 0, 2, 241))).answered(INSIDE, 3, 0);
    gateway.inside(&packet(GRE, h1().address, h2().address)).is_dropped(DropReason::WrongSide);
    let narrow = Ipv4Addr::new(192, 0, 2, 130);
    let large = packet(GRE, h1().address, narrow).payload_len(1440).dont_fragment(true);
    assert_eq!(gateway.inside(&large).answered(INSIDE, 3, 4).icmp.map(|(_, _, mtu)| mtu), Some(1400));
    assert!(gateway.others().is_empty(), "what is refused opens nothing");
    let split = gateway.inside(&large.dont_fragment(false).id(5));
    assert_eq!(split.verdict, Verdict::Fragment { device: OUTSIDE, mtu: 1400 });
    assert_eq!((addresses(&Seen::of(&split.frame)), Seen::of(&split.frame).id), ((X1, narrow), 5));
    // From one VLAN to another.
    let (host, remote) = (Ipv4Addr::new(10, 10, 0, 2), Ipv4Addr::new(198, 19, 0, 1));
    let tagged: Out = gateway.send(3, &packet(GRE, host, remote));
    assert_eq!((addresses(&tagged.on(common::TRUNK)), tagged.on(common::TRUNK).vlan), ((X1, remote), Some(20)));
    let answer = gateway.send(4, &packet(GRE, remote, X1)).on(common::TRUNK);
    assert_eq!((addresses(&answer), answer.vlan), ((remote, host), Some(10)));
    gateway.outside(&packet(GRE, narrow, X1).ttl(1)).answered(OUTSIDE, 11, 0);
    assert!(gateway.others().iter().any(|view| view.remote == narrow && view.packets_in == 0), "nor counts");
}

/// All that is said with one remote is one worker's, so that no two hosts can be given one address by two workers.
#[test]
fn the_remotes_owner_has_its_translations_whoever_receives_their_packets() {
    let mut gateway = two().workers(4).build();
    for remote in (1..60).map(|last| Ipv4Addr::new(192, 0, 2, last)) {
        let hosts = (2..9).map(|last| Ipv4Addr::new(10, 0, 0, last));
        let mut given = BTreeSet::new();
        for host in hosts {
            let out = gateway.inside(&packet(GRE, host, remote));
            if given.len() < 2 {
                let outer = out.forwarded().source.address;
                assert!(given.insert(outer), "{outer} is another host's");
                assert_eq!(gateway.outside(&packet(GRE, remote, outer)).delivered().destination.address, host);
                let quoted = packet(GRE, outer, remote).datagram();
                let error = PacketBuilder::icmp_error(router(), outer, 3, 1, &quoted);
                assert_eq!(gateway.outside(&error).delivered().destination.address, host);
            } else {
                out.answered(INSIDE, 3, 13);
            }
        }
    }
    for cause in [HandOffCause::OtherProtocol, HandOffCause::IcmpError] {
        assert!(gateway.count(Counter::handed_off(cause)) > 50, "{cause:?}");
    }
    assert_eq!(gateway.count(Counter::HandedOffMisplaced), 0);
}
