//! RFC 5508, "NAT Behavioral Requirements for ICMP": its requirements, each with a test that quotes it.
//!
//! Not here: REQ-7's hairpinned queries, which it asks of Basic NAT only, and RFC 7857 of every NAT. Not claimed: REQ-9 beyond a rate of zero.

use std::net::Ipv4Addr;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Endpoint, Filtering, PortSet};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_testkit::builder::{ACK, Checksum, PacketBuilder, Query, SYN};

mod common;

use common::{GATEWAY_INSIDE, GATEWAY_OUTSIDE, Gateway, INSIDE, OUTSIDE, Setup, X1, at, e1, e2, h1, h2, idle, seconds};

fn router() -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 200, 1)
}

/// A ping from h1 to `remote`: the identifier that it leaves with.
fn ping(gateway: &mut Gateway<'_>, remote: Ipv4Addr, id: u16) -> u16 {
    gateway.inside(&PacketBuilder::query(h1().address, remote, Query::Echo, id)).forwarded().source.port
}

/// An error from a router outside about a UDP packet from `external` to e1.
fn error_about(external: Endpoint) -> PacketBuilder {
    let quoted = PacketBuilder::udp(external, e1()).payload_len(40).datagram();
    PacketBuilder::icmp_error(router(), external.address, 3, 3, &quoted)
}

/// "REQ-1: Unless explicitly overridden by local policy, a NAT device MUST permit ICMP Queries and their associated responses, when the
/// Query is initiated from a private host to the external hosts."
#[test]
fn rfc5508_req1_queries_go_out_and_their_answers_come_back() {
    let mut gateway = Setup::new().build();
    for query in [Query::Echo, Query::Timestamp] {
        let sent = PacketBuilder::query(h1().address, e1().address, query, 77).query_sequence(5);
        let seen = gateway.inside(&sent).forwarded();
        assert_eq!((seen.source.address, seen.destination.address), (X1, e1().address));
        let id = seen.source.port;
        let answer = PacketBuilder::query(e1().address, X1, query.counterpart(), id).query_sequence(5);
        let seen = gateway.outside(&answer).delivered();
        assert_eq!((seen.destination, seen.source.address), (at(h1(), 77), e1().address));
        assert_eq!(seen.icmp.map(|(kind, _, rest)| (kind, rest)), Some((query.counterpart().number(), 77 << 16 | 5)));
    }
}

/// "REQ-1 a) NAT mapping of ICMP Query Identifiers SHOULD be external host independent."
#[test]
fn rfc5508_req1a_one_identifier_serves_all_remotes() {
    let mut gateway = Setup::new().build();
    let id = ping(&mut gateway, e1().address, 5);
    assert_eq!(ping(&mut gateway, e2().address, 5), id);
    assert_ne!(ping(&mut gateway, e1().address, 6), id);
}

/// "REQ-2: An ICMP Query session timer MUST NOT expire in less than 60 seconds. a) It is RECOMMENDED that the ICMP Query session timer
/// be made configurable."
#[test]
fn rfc5508_req2_a_query_waits_for_its_answer_as_long_as_configured() {
    for (timer, waits, lives) in [(60, 60, true), (60, 61, false), (90, 90, true), (90, 91, false)] {
        let mut gateway = Setup::new().policy(|policy| policy.timeouts.icmp = idle(timer)).build();
        let id = ping(&mut gateway, e1().address, 5);
        gateway.wait(seconds(waits));
        let out = gateway.outside(&PacketBuilder::query(e1().address, X1, Query::EchoReply, id));
        assert_eq!(out.verdict == Verdict::Transmit(INSIDE), lives, "{waits} s of {timer} s");
    }
}

/// "REQ-3: When an ICMP Error packet is received, if the ICMP checksum fails to validate, the NAT SHOULD silently drop the ICMP Error
/// packet."
#[test]
fn rfc5508_req3_an_error_with_a_wrong_checksum_is_dropped() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    gateway.outside(&error_about(external).checksum(Checksum::Wrong(1))).is_dropped(DropReason::BadIcmpChecksum);
    gateway.outside(&error_about(external)).delivered();
}

/// "REQ-3 a) If the IP checksum of the embedded packet fails to validate, the NAT SHOULD silently drop the Error packet".
#[test]
fn rfc5508_req3a_an_embedded_packet_with_a_wrong_header_checksum_is_dropped() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    let mut quoted = PacketBuilder::udp(external, e1()).datagram();
    quoted[8] ^= 1;
    let error = PacketBuilder::icmp_error(router(), X1, 11, 0, &quoted);
    gateway.outside(&error).is_dropped(DropReason::BadEmbeddedPacket);
}

/// "REQ-3 b) If the embedded packet includes IP options, the NAT device MUST traverse past the IP options to locate the start of the
/// transport header for the embedded packet".
#[test]
fn rfc5508_req3b_embedded_options_are_traversed() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    let quoted = PacketBuilder::udp(external, e1()).options(&[1; 40]).datagram();
    let seen = gateway.outside(&PacketBuilder::icmp_error(router(), X1, 11, 0, &quoted).quote(68)).delivered();
    assert_eq!((seen.quoted().source, seen.quoted().options), (h1(), vec![1; 40]));
}

/// "REQ-3 c) The NAT device SHOULD NOT validate the transport checksum of the embedded packet within an ICMP Error message, even when it
/// is possible to do so".
#[test]
fn rfc5508_req3c_embedded_transport_checksums_are_not_judged() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    for checksum in [Checksum::Right, Checksum::Wrong(77), Checksum::Zero] {
        let packet = |from| PacketBuilder::udp(from, e1()).payload_len(40).checksum(checksum).datagram();
        let seen = gateway.outside(&PacketBuilder::icmp_error(router(), X1, 3, 3, &packet(external))).delivered();
        assert_eq!(seen.segment[8..], packet(h1()), "with its checksum {checksum:?} as h1 sent it");
    }
    let external = gateway.external_of_tcp(h1(), e1());
    let quoted = PacketBuilder::tcp(external, e1(), SYN).datagram();
    let seen = gateway.outside(&PacketBuilder::icmp_error(router(), X1, 3, 3, &quoted).quote(28)).delivered();
    assert_eq!(seen.quoted().source, h1(), "eight bytes of it suffice");
}

/// "REQ-3 d) If the ICMP Error payload contains ICMP extensions, the NAT device MUST exclude the optional zero-padding and the ICMP
/// extensions when evaluating transport checksum for the embedded packet."
#[test]
fn rfc5508_req3d_extensions_pass_unchanged() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    let label = [0, 1, 2, 3];
    let error = error_about(external).extension(&label);
    let sent = error.datagram();
    let seen = gateway.outside(&error).delivered();
    assert_eq!(seen.segment[8 + 128..], sent[20 + 8 + 128..], "the extension");
    assert_eq!(seen.segment[8 + 68..8 + 128], [0; 60], "the padding");
    assert_eq!(seen.quoted().source, h1());
}

/// "REQ-4: If a NAT device receives an ICMP Error packet from an external realm, and the NAT device does not have an active mapping for
/// the embedded payload, the NAT SHOULD silently drop the ICMP Error packet. If the NAT has active mapping for the embedded payload, then
/// the NAT MUST [...]: a) Revert the IP and transport headers of the embedded IP packet to their original form, using the matching
/// mapping; and b) Leave the ICMP Error type and code unchanged; and c) Modify the destination IP address of the outer IP header to be
/// same as the source IP address of the embedded packet after translation."
#[test]
fn rfc5508_req4_an_error_from_outside_shows_the_packet_as_it_was_sent() {
    let mut gateway = Setup::new().build();
    let unknown = Endpoint { address: X1, port: 40_000 };
    gateway.outside(&error_about(unknown)).is_dropped(DropReason::IcmpNoSession);
    let external = gateway.external_of(h1(), e1());
    let seen = gateway.outside(&error_about(external)).delivered();
    assert_eq!((seen.source.address, seen.destination.address, seen.ttl), (router(), h1().address, 63));
    assert_eq!(seen.icmp.map(|(kind, code, _)| (kind, code)), Some((3, 3)));
    assert_eq!(seen.segment[8..], PacketBuilder::udp(h1(), e1()).payload_len(40).datagram());

    let id = ping(&mut gateway, e1().address, 9);
    let quoted = PacketBuilder::query(X1, e1().address, Query::Echo, id).datagram();
    let seen = gateway.outside(&PacketBuilder::icmp_error(router(), X1, 11, 0, &quoted)).delivered();
    assert_eq!(seen.segment[8..], PacketBuilder::query(h1().address, e1().address, Query::Echo, 9).datagram());
}

/// "REQ-5: If a NAT device receives an ICMP Error packet from the private realm, and the NAT does not have an active mapping for the
/// embedded payload, the NAT SHOULD silently drop the ICMP Error packet. [...] a) Revert the IP and transport headers of the embedded IP
/// packet to their original form, using the matching mapping; and b) Leave the ICMP Error type and code unchanged".
#[test]
fn rfc5508_req5_an_error_from_inside_shows_external_endpoints_only() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    let received = gateway.outside(&PacketBuilder::udp(e1(), external).payload_len(20)).frame[14..].to_vec();
    let error = PacketBuilder::icmp_error(h1().address, e1().address, 3, 3, &received);
    let seen = gateway.inside(&error).forwarded();
    assert_eq!((seen.source.address, seen.destination.address), (X1, e1().address));
    assert_eq!(seen.icmp.map(|(kind, code, _)| (kind, code)), Some((3, 3)));
    assert_eq!((seen.quoted().source, seen.quoted().destination), (e1(), external));
    let stray = PacketBuilder::udp(e2(), h1()).datagram();
    let error = PacketBuilder::icmp_error(h1().address, e2().address, 3, 3, &stray);
    gateway.inside(&error).is_dropped(DropReason::IcmpNoSession);
}

/// An error goes to the sender of what it is about, and to no one else.
#[test]
fn rfc5508_req5_an_error_from_inside_to_another_host_is_dropped() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    let received = gateway.outside(&PacketBuilder::udp(e1(), external)).frame[14..].to_vec();
    let error = PacketBuilder::icmp_error(h1().address, e2().address, 3, 3, &received);
    gateway.inside(&error).is_dropped(DropReason::BadEmbeddedPacket);
}

/// "REQ-6: While processing an ICMP Error packet pertaining to an ICMP Query or Query response message, a NAT device MUST NOT refresh or
/// delete the NAT Session that pertains to the embedded payload within the ICMP Error packet."
#[test]
fn rfc5508_req6_an_error_neither_refreshes_nor_ends_a_session() {
    let mut gateway = Setup::new().build();
    let id = ping(&mut gateway, e1().address, 9);
    gateway.wait(seconds(30));
    let quoted = PacketBuilder::query(X1, e1().address, Query::Echo, id).datagram();
    gateway.outside(&PacketBuilder::icmp_error(router(), X1, 11, 0, &quoted)).delivered();
    let left = gateway.sessions()[0].expires_in;
    assert!((29_900..=30_100).contains(&left), "{left} ms left");
    gateway.wait(seconds(31));
    gateway.outside(&PacketBuilder::query(e1().address, X1, Query::EchoReply, id)).is_dropped(DropReason::NoMapping);
}

/// "REQ-7: [...] All NAT devices MUST support the traversal of hairpinned ICMP Error messages. a) When forwarding a hairpinned ICMP Error
/// message, the NAT device MUST translate the destination IP address of the outer IP header to be same as the source IP address of the
/// embedded IP packet after the translation."
#[test]
fn rfc5508_req7_a_hairpinned_error_shows_each_host_what_it_knows() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_udp = Filtering::EndpointIndependent).build();
    let second = gateway.external_of(h2(), e1());
    let received = gateway.inside(&PacketBuilder::udp(h1(), second).payload_len(20)).frame[14..].to_vec();
    let error = PacketBuilder::icmp_error(h2().address, X1, 3, 3, &received);
    let seen = gateway.inside(&error).delivered();
    assert_eq!((seen.source.address, seen.destination.address), (X1, h1().address));
    assert_eq!((seen.quoted().source, seen.quoted().destination), (h1(), second));
}

/// "REQ-8: When a NAT device is unable to establish a NAT Session for a new transport-layer (TCP, UDP, ICMP, etc.) flow due to resource
/// constraints or administrative restrictions, the NAT device SHOULD send an ICMP destination unreachable message, with a code of 13
/// (Communication administratively prohibited) to the sender, and drop the original packet."
#[test]
fn rfc5508_req8_what_finds_no_resources_is_answered_with_code_13() {
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = PortSet::empty()).build();
    let packets = [
        PacketBuilder::udp(h1(), e1()),
        PacketBuilder::tcp(h1(), e1(), SYN),
        PacketBuilder::query(h1().address, e1().address, Query::Echo, 1),
    ];
    for packet in packets {
        let seen = gateway.inside(&packet).answered(INSIDE, 3, 13);
        assert_eq!((seen.source.address, seen.destination.address), (GATEWAY_INSIDE, h1().address));
        assert_eq!(seen.segment[8..], packet.datagram());
    }
    gateway.assert_empty();
}

/// "REQ-9: A NAT device MAY implement a policy control that prevents ICMP messages being generated".
#[test]
fn rfc5508_req9_a_rate_of_zero_sends_no_errors() {
    let mut gateway = Setup::new().policy(|policy| policy.icmp_errors.rate = 0).build();
    gateway.inside(&PacketBuilder::udp(h1(), e1()).ttl(1)).is_dropped(DropReason::TtlExpired);
    assert_eq!((gateway.count(Counter::IcmpErrorsSent), gateway.count(Counter::IcmpErrorsLimited)), (0, 1));
}

/// "REQ-10 a) [...] MUST support: Destination Unreachable Message, Time Exceeded Message, Echo": a trace shows the gateway and the hops
/// behind it, with any protocol.
#[test]
fn rfc5508_req10a_a_trace_shows_every_hop() {
    let mut gateway = Setup::new().build();
    let probes: [fn(Endpoint, Endpoint) -> PacketBuilder; 3] = [
        PacketBuilder::udp,
        |from, to| PacketBuilder::tcp(from, to, SYN),
        |from, to| PacketBuilder::query(from.address, to.address, Query::Echo, from.port),
    ];
    for probe in probes {
        let seen = gateway.inside(&probe(h1(), e1()).ttl(1)).answered(INSIDE, 11, 0);
        assert_eq!((seen.source.address, seen.destination.address), (GATEWAY_INSIDE, h1().address));
        assert_eq!(seen.segment[8..], probe(h1(), e1()).ttl(1).datagram());
        let out = gateway.inside(&probe(h1(), e1()).ttl(2));
        assert_eq!(out.forwarded().ttl, 1);
        let hop = PacketBuilder::icmp_error(router(), X1, 11, 0, &out.frame[14..]);
        let seen = gateway.outside(&hop).delivered();
        assert_eq!(seen.segment[8..], probe(h1(), e1()).ttl(1).datagram());
    }
}

/// "REQ-10 b) [...] MAY support: Redirect, Timestamp [...], Parameter Problem [...]. c) [...] SHOULD NOT support: Source Quench,
/// Information Request/Reply".
#[test]
fn rfc5508_req10b_and_c_other_messages_are_dropped_for_a_reason() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    let quoted = PacketBuilder::udp(external, e1()).datagram();
    gateway.outside(&PacketBuilder::icmp_error(router(), X1, 12, 0, &quoted)).delivered();
    for kind in [4, 5] {
        let error = PacketBuilder::icmp_error(router(), X1, kind, 0, &quoted);
        gateway.outside(&error).is_dropped(DropReason::UnsupportedIcmp);
    }
    for kind in [9, 10, 15, 16, 17, 18] {
        let message = |from, to| PacketBuilder::icmp(from, to, kind, 0, [0, 9, 0, 1]).payload(&[0; 12]);
        gateway.inside(&message(h1().address, e1().address)).is_dropped(DropReason::UnsupportedIcmp);
        gateway.outside(&message(e1().address, X1)).is_dropped(DropReason::UnsupportedIcmp);
    }
}

/// "REQ-10 d) [...] DS Field": the byte passes, and the gateway's own errors have precedence 6 (RFC 1812, section 4.3.2.5).
#[test]
fn rfc5508_req10d_the_ds_field_is_kept() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    assert_eq!(gateway.outside(&error_about(external).tos(0xB9)).delivered().tos, 0xB9);
    assert_eq!(gateway.inside(&PacketBuilder::udp(h1(), e1()).tos(0xB9).ttl(1)).answered(INSIDE, 11, 0).tos, 0xC0);
}

/// RFC 1812, section 4.3.2.7: "An ICMP error message MUST NOT be sent as the result of receiving: an ICMP error message [...], any
/// fragment of a datagram other then the first".
#[test]
fn rfc5508_req10e_no_error_is_sent_about_errors_and_later_fragments() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    gateway.outside(&error_about(external).ttl(1)).is_dropped(DropReason::TtlExpired);
    let mut frames = gateway.fragments_to(0, &PacketBuilder::udp(h1(), e1()).payload_len(100), 48);
    gateway.frame(INSIDE, &frames[0]).forwarded();
    let later = PacketBuilder::raw(h1().address, e1().address, 17).offset(6).more_fragments(true).payload_len(48).ttl(1);
    frames[1] = gateway.frame_to(0, &later);
    gateway.frame(INSIDE, &frames[1]).is_dropped(DropReason::TtlExpired);
    assert_eq!(gateway.count(Counter::IcmpErrorsSent), 0);
}

/// RFC 1812, section 4.3.2.8: "A router SHOULD also be able to limit the rate at which it sends other sorts of ICMP error messages".
#[test]
fn rfc5508_req10f_the_gateways_own_errors_are_limited() {
    let mut gateway = Setup::new()
        .policy(|policy| {
            policy.icmp_errors.rate = 10;
            policy.icmp_errors.burst = 5;
        })
        .build();
    let mut sent = 0;
    for _ in 0..1000 {
        let out = gateway.inside(&PacketBuilder::udp(h1(), e1()).ttl(1));
        sent += u32::from(out.verdict == Verdict::Transmit(INSIDE));
        gateway.skip(1);
    }
    assert_eq!(sent, 14, "five at once, then ten a second");
    assert_eq!(gateway.count(Counter::IcmpErrorsSent) + gateway.count(Counter::IcmpErrorsLimited), 1000);
    assert_eq!(gateway.dropped(DropReason::TtlExpired), 1000);
}

/// An error about an inbound packet comes from the outside address and shows what its sender sent.
#[test]
fn rfc5508_req10a_a_trace_from_outside_shows_the_gateway_and_no_inside_address() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of(h1(), e1());
    let probe = PacketBuilder::udp(e1(), external).ttl(1);
    let seen = gateway.outside(&probe).answered(OUTSIDE, 11, 0);
    assert_eq!((seen.source.address, seen.destination.address), (GATEWAY_OUTSIDE, e1().address));
    assert_eq!(seen.segment[8..], probe.datagram());
    gateway.outside(&PacketBuilder::udp(e1(), at(external, external.port ^ 1)).ttl(1)).is_dropped(DropReason::NoMapping);
}

/// REQ-11 leaves it to the NAT what becomes of messages that are neither queries nor errors: they are dropped, and counted.
#[test]
fn rfc5508_req11_messages_that_are_neither_queries_nor_errors_are_dropped() {
    let mut gateway = Setup::new().build();
    for kind in [1, 19, 30, 40, 42, 255] {
        let message = |from, to| PacketBuilder::icmp(from, to, kind, 0, [0, 9, 0, 1]).payload(&[0; 12]);
        gateway.inside(&message(h1().address, e1().address)).is_dropped(DropReason::UnsupportedIcmp);
        gateway.outside(&message(e1().address, X1)).is_dropped(DropReason::UnsupportedIcmp);
    }
    assert_eq!(gateway.dropped(DropReason::UnsupportedIcmp), 12);
}

/// REQ-4 once more: what an error quotes of protocols that are not translated belongs to no session; where the host has the address too,
/// it is about the host's own traffic.
#[test]
fn rfc5508_req4_errors_about_other_protocols_belong_to_no_session() {
    for shared in [false, true] {
        let mut gateway = Setup::new().policy(|policy| policy.externals[0].shared_with_host = shared).build();
        let quoted = PacketBuilder::raw(X1, e1().address, 50).payload_len(40).datagram();
        let out = gateway.outside(&PacketBuilder::icmp_error(router(), X1, 3, 4, &quoted).next_hop_mtu(1400));
        let expected = if shared { Verdict::Punt } else { Verdict::Drop(DropReason::IcmpNoSession) };
        assert_eq!(out.verdict, expected);
        let quoted = PacketBuilder::tcp(Endpoint { address: X1, port: 22 }, e1(), ACK).datagram();
        let out = gateway.outside(&PacketBuilder::icmp_error(router(), X1, 3, 3, &quoted));
        assert_eq!(out.verdict, expected);
    }
}
