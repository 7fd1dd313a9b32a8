//! RFC 5382, "NAT Behavioral Requirements for TCP": its requirements, each with a test that quotes it.

use std::collections::BTreeSet;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{Endpoint, External, Filtering, PortSet, Protocol, UnsolicitedSyn};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::view::SessionState;
use portcullis_testkit::builder::{ACK, FIN, PSH, PacketBuilder, SYN};

mod common;

use common::{Gateway, INSIDE, OUTSIDE, Setup, X1, X2, at, e1, e2, external, forward, h1, h2, idle, seconds};

fn tcp(from: Endpoint, to: Endpoint, flags: u8) -> PacketBuilder {
    PacketBuilder::tcp(from, to, flags)
}

fn state(gateway: &Gateway<'_>) -> SessionState {
    gateway.sessions()[0].state
}

/// A gateway with an established connection from h1 to e1, and its external endpoint.
fn established() -> (Gateway<'static>, Endpoint) {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of_tcp(h1(), e1());
    gateway.outside(&tcp(e1(), external, SYN | ACK)).delivered();
    gateway.inside(&tcp(h1(), e1(), ACK)).forwarded();
    assert_eq!(state(&gateway), SessionState::Established);
    (gateway, external)
}

/// "REQ-1: A NAT MUST have an "Endpoint-Independent Mapping" behavior for TCP."
#[test]
fn rfc5382_req1_one_mapping_serves_all_remotes() {
    let mut gateway = Setup::new().build();
    let first = gateway.external_of_tcp(h1(), e1());
    assert_eq!(gateway.external_of_tcp(h1(), at(e1(), 80)), first);
    assert_eq!(gateway.external_of_tcp(h1(), e2()), first);
}

/// "REQ-2: A NAT MUST support all valid sequences of TCP packets (defined in [RFC0793]) for connections initiated both internally as
/// well as externally when the connection is permitted by the NAT."
#[test]
fn rfc5382_req2_connections_open_carry_data_and_close_from_either_side() {
    let (mut gateway, external) = established();
    gateway.inside(&tcp(h1(), e1(), ACK | PSH).payload(b"request")).forwarded();
    gateway.outside(&tcp(e1(), external, ACK | PSH).payload(b"answer")).delivered();
    gateway.inside(&tcp(h1(), e1(), FIN | ACK)).forwarded();
    assert_eq!(state(&gateway), SessionState::FinSent);
    gateway.outside(&tcp(e1(), external, ACK | PSH).payload(b"more")).delivered();
    gateway.outside(&tcp(e1(), external, FIN | ACK)).delivered();
    assert_eq!(state(&gateway), SessionState::Closing);
    gateway.inside(&tcp(h1(), e1(), ACK)).forwarded();

    let mut gateway = Setup::new().policy(|policy| policy.filtering_tcp = Filtering::EndpointIndependent).build();
    let external = gateway.external_of_tcp(h1(), e1());
    gateway.outside(&tcp(e2(), external, SYN)).delivered();
    gateway.inside(&tcp(h1(), e2(), SYN | ACK)).forwarded();
    gateway.outside(&tcp(e2(), external, ACK)).delivered();
    let session = gateway.sessions().into_iter().find(|session| session.remote == e2()).expect("it is there");
    assert_eq!((session.state, session.outbound), (SessionState::Established, false));
}

/// "REQ-2 a) In addition to handling the TCP 3-way handshake mode of connection initiation, A NAT MUST handle the TCP
/// simultaneous-open mode of connection initiation."
#[test]
fn rfc5382_req2a_simultaneous_open_works() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of_tcp(h1(), e1());
    assert_eq!(gateway.outside(&tcp(e1(), external, SYN)).delivered().destination, h1());
    gateway.inside(&tcp(h1(), e1(), SYN | ACK)).forwarded();
    gateway.outside(&tcp(e1(), external, SYN | ACK)).delivered();
    assert_eq!(state(&gateway), SessionState::Established);
}

/// "REQ-3: [...] a) The filtering behavior MAY be an option configurable by the administrator of the NAT. b) The filtering behavior for
/// TCP MAY be independent of the filtering behavior for UDP."
#[test]
fn rfc5382_req3_the_filter_of_tcp_is_configured_on_its_own() {
    let rows = [
        (Filtering::EndpointIndependent, [true, true]),
        (Filtering::AddressDependent, [true, false]),
        (Filtering::AddressAndPortDependent, [false, false]),
    ];
    for (behaviour, lets_in) in rows {
        let mut gateway = Setup::new().policy(|policy| policy.filtering_tcp = behaviour).build();
        let external = gateway.external_of_tcp(h1(), e1());
        for (remote, expected) in [at(e1(), 54), e2()].into_iter().zip(lets_in) {
            let out = gateway.outside(&tcp(remote, external, SYN));
            let reason = Verdict::Drop(DropReason::Filtered);
            assert_eq!(out.verdict, if expected { Verdict::Transmit(INSIDE) } else { reason }, "{behaviour:?}");
        }
        let external = gateway.external_of(h1(), e1());
        gateway.outside(&PacketBuilder::udp(e2(), external)).is_dropped(DropReason::Filtered);
    }
}

/// "REQ-4: A NAT MUST NOT respond to an unsolicited inbound SYN packet for at least 6 seconds after the packet is received. If during
/// this interval the NAT receives and translates an outbound SYN for the connection the NAT MUST silently drop the original unsolicited
/// inbound SYN packet."
#[test]
fn rfc5382_req4_an_unsolicited_syn_is_dropped_silently_and_hinders_nothing() {
    let mut gateway = Setup::new().build();
    let external = gateway.external_of_tcp(h1(), e2());
    gateway.outside(&tcp(e1(), external, SYN)).is_dropped(DropReason::Filtered);
    gateway.wait(seconds(3));
    assert_eq!(gateway.external_of_tcp(h1(), e1()), external);
    gateway.outside(&tcp(e1(), external, SYN)).delivered();
    gateway.outside(&tcp(e1(), at(external, 1), SYN)).is_dropped(DropReason::NoMapping);
}

/// "Otherwise, the NAT SHOULD send an ICMP Port Unreachable error (Type 3, Code 3) for the original SYN, unless REQ-4a applies." Whether a
/// mapping's filter stopped it or nobody has the endpoint.
#[test]
fn rfc5382_req4_the_sender_of_an_unsolicited_syn_is_told_after_six_seconds() {
    for workers in [1, 8] {
        let mut gateway = Setup::new().workers(workers).build();
        let open = gateway.external_of_tcp(h1(), e2());
        for (to, reason) in [(open, DropReason::Filtered), (at(open, 1), DropReason::NoMapping)] {
            let syn = tcp(e1(), to, SYN).options(&[7, 4, 5, 0]).tcp_options(&[2, 4, 5, 0xB4]).ttl(9);
            gateway.outside(&syn).is_dropped(reason);
            gateway.wait(seconds(6));
            assert!(gateway.answers_due().is_empty(), "not for at least six seconds");
            gateway.wait(500);
            let [answer] = &gateway.answers_due()[..] else { panic!("one answer") };
            let seen = answer.answered(OUTSIDE, 3, 3);
            assert_eq!((seen.source.address, seen.destination.address), (X1, e1().address), "from the address that was asked for");
            assert_eq!(seen.to, [6, 0, 0, 0, 0, 9], "back to where the SYN came from");
            // The Internet header as received, and eight bytes: ports and sequence number.
            let header = 24;
            assert_eq!(seen.segment[8..], syn.datagram()[..header + 8]);
            gateway.wait(seconds(60));
            assert!(gateway.answers_due().is_empty(), "once");
        }
        assert_eq!(gateway.count(Counter::IcmpErrorsSent), 2);
    }
}

/// "If during this interval the NAT receives and translates an outbound SYN for the connection the NAT MUST silently drop the original
/// unsolicited inbound SYN packet."
#[test]
fn rfc5382_req4_who_is_called_back_is_told_nothing() {
    let mut gateway = Setup::new().workers(3).build();
    let external = gateway.external_of_tcp(h1(), e2());
    gateway.outside(&tcp(e1(), external, SYN)).is_dropped(DropReason::Filtered);
    gateway.wait(seconds(6));
    assert_eq!(gateway.external_of_tcp(h1(), e1()), external);
    gateway.wait(seconds(60));
    assert!(gateway.answers_due().is_empty());
}

/// "REQ-4 a) The NAT MUST silently drop the original SYN packet if sending a response violates the security policy of the NAT."
#[test]
fn rfc5382_req4a_an_unsolicited_syn_is_dropped_silently_where_the_policy_says_so() {
    let silences: [fn(&mut portcullis_nat::policy::Policy); 3] = [
        |policy| policy.icmp_errors.unsolicited_syn = UnsolicitedSyn::Silent,
        |policy| policy.icmp_errors.rate = 0,
        // A session that opens could be over, and nobody would know that it was there.
        |policy| policy.timeouts.tcp_opening = idle(6),
    ];
    for silence in silences {
        let mut gateway = Setup::new().policy(silence).build();
        let external = gateway.external_of_tcp(h1(), e2());
        gateway.outside(&tcp(e1(), external, SYN)).is_dropped(DropReason::Filtered);
        gateway.wait(seconds(10));
        assert!(gateway.answers_due().is_empty());
    }
}

/// What is no SYN, what is no sender to tell, what came to the box's own, and what is let in by now.
#[test]
fn rfc5382_req4_nobody_else_is_told() {
    let mut gateway = Setup::new().build();
    let open = gateway.external_of_tcp(h1(), e2());
    gateway.adopt(|policy| policy.externals.push(External { shared_with_host: true, ..external(X2) }));
    let nobody = at(open, 1);
    gateway.outside(&tcp(e1(), open, ACK)).is_dropped(DropReason::Filtered);
    gateway.outside(&tcp(e1(), nobody, SYN | ACK)).is_dropped(DropReason::NoMapping);
    gateway.outside(&PacketBuilder::udp(e1(), nobody)).is_dropped(DropReason::NoMapping);
    let on_the_box = Endpoint { address: X2, port: 22 };
    assert_eq!(gateway.outside(&tcp(e1(), on_the_box, SYN)).verdict, Verdict::Punt);
    gateway.outside(&tcp(e1(), at(open, 80), SYN)).is_dropped(DropReason::NoMapping);
    gateway.adopt(|policy| policy.forwards.push(forward(Protocol::Tcp, 80, 80, &["10.0.0.3:80"])));
    gateway.wait(seconds(10));
    assert!(gateway.answers_due().is_empty());
    // Nor anybody when the address has gone.
    gateway.outside(&tcp(e1(), nobody, SYN)).is_dropped(DropReason::NoMapping);
    gateway.adopt(|policy| policy.externals[0].address = None);
    gateway.adopt(|policy| policy.externals[0].address = Some(X1));
    gateway.wait(seconds(10));
    assert!(gateway.answers_due().is_empty());
}

/// A flood takes room from those that come after it, of these answers only; and the limit of the gateway's own errors holds.
#[test]
fn rfc5382_req4_a_flood_of_syns_is_answered_within_bounds() {
    let mut gateway = Setup::new().policy(|policy| (policy.icmp_errors.rate, policy.icmp_errors.burst) = (1, 50)).build();
    let open = gateway.external_of_tcp(h1(), e2());
    for _again in 0..2 {
        for port in 1000..2000 {
            gateway.outside(&tcp(at(e1(), port), open, SYN)).is_dropped(DropReason::Filtered);
        }
    }
    gateway.wait(seconds(6) + 500);
    assert_eq!(gateway.answers_due().len(), 50);
    assert_eq!(gateway.count(Counter::IcmpErrorsLimited), 256 - 50, "more are not held, and none twice");
    gateway.inside(&tcp(h1(), e1(), SYN)).forwarded();
}

/// "REQ-5: [...] the value of the "established connection idle-timeout" MUST NOT be less than 2 hours 4 minutes. The value of the
/// "transitory connection idle-timeout" MUST NOT be less than 4 minutes."
#[test]
fn rfc5382_req5_idle_times_are_at_least_those_required() {
    for (waits, lives) in [(7440, true), (7441, false)] {
        let (mut gateway, external) = established();
        gateway.wait(seconds(waits));
        let out = gateway.outside(&tcp(e1(), external, ACK));
        assert_eq!(out.verdict == Verdict::Transmit(INSIDE), lives, "established, after {waits} s");
    }
    for (waits, lives) in [(240, true), (241, false)] {
        let mut gateway = Setup::new().build();
        let external = gateway.external_of_tcp(h1(), e1());
        gateway.wait(seconds(waits));
        let out = gateway.outside(&tcp(e1(), external, SYN | ACK));
        assert_eq!(out.verdict == Verdict::Transmit(INSIDE), lives, "opening, after {waits} s");
    }
}

/// Half-closed connections are not transitory (RFC 6146, section 3.5.2.2); those closed both ways are.
#[test]
fn rfc5382_req5_only_what_is_closed_both_ways_is_transitory() {
    let (mut gateway, external) = established();
    gateway.inside(&tcp(h1(), e1(), FIN | ACK)).forwarded();
    gateway.wait(seconds(7000));
    gateway.outside(&tcp(e1(), external, ACK | PSH).payload(b"late")).delivered();
    gateway.outside(&tcp(e1(), external, FIN | ACK)).delivered();
    gateway.wait(seconds(240));
    gateway.outside(&tcp(e1(), external, ACK)).delivered();
    gateway.wait(seconds(240) + 5000);
    gateway.assert_empty();
}

/// "REQ-5 a) The value of the NAT idle-timeouts MAY be configurable."
#[test]
fn rfc5382_req5a_idle_times_are_configurable_and_apply_to_live_sessions() {
    let (mut gateway, external) = established();
    gateway.adopt(|policy| policy.timeouts.tcp_established = idle(8000));
    gateway.wait(seconds(7999));
    gateway.outside(&tcp(e1(), external, ACK)).delivered();
    gateway.adopt(|policy| policy.timeouts.tcp_established = idle(7440));
    gateway.wait(seconds(7441));
    gateway.outside(&tcp(e1(), external, ACK)).is_dropped(DropReason::NoMapping);
}

/// "REQ-6: If a NAT includes ALGs that affect TCP, it is RECOMMENDED that all of those ALGs (except for FTP) be disabled by default."
#[test]
fn rfc5382_req6_payloads_pass_unchanged() {
    let (mut gateway, _) = established();
    let payload = b"SETUP rtsp://10.0.0.2/a RTSP/1.0\r\nTransport: RTP/AVP;client_port=5000\r\n";
    let seen = gateway.inside(&tcp(h1(), e1(), ACK | PSH).payload(payload)).forwarded();
    assert_eq!(&seen.segment[20..], payload);
}

/// "REQ-7: A NAT MUST NOT have a "Port assignment" behavior of "Port overloading" for TCP."
#[test]
fn rfc5382_req7_no_two_internal_endpoints_share_an_external_one() {
    let few = PortSet::range(2000, 2015);
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = few).build();
    let (rival, ports) = (gateway.rival_of(h1()), gateway.ports_for(h1(), X1));
    let hosts = [(h1(), e1()), (rival, e2())].into_iter().cycle();
    let open = |(number, (host, remote))| gateway.external_of_tcp(at(host, 3000 + number), remote);
    let seen: BTreeSet<_> = (0..ports.len() as u16).zip(hosts).map(open).collect();
    assert_eq!(seen.len(), ports.len());
    gateway.inside(&tcp(at(h1(), 1), e2(), SYN)).answered(INSIDE, 3, 13);
}

/// "REQ-8: A NAT MUST support "hairpinning" for TCP. a) A NAT's hairpinning behavior MUST be of type "External source IP address and
/// port"."
#[test]
fn rfc5382_req8_a_handshake_is_hairpinned() {
    let mut gateway = Setup::new().policy(|policy| policy.filtering_tcp = Filtering::EndpointIndependent).build();
    let first = gateway.external_of_tcp(h1(), e1());
    let second = gateway.external_of_tcp(h2(), e1());
    let seen = gateway.inside(&tcp(h1(), second, SYN)).delivered();
    assert_eq!((seen.source, seen.destination), (first, h2()));
    let seen = gateway.inside(&tcp(h2(), first, SYN | ACK)).delivered();
    assert_eq!((seen.source, seen.destination), (second, h1()));
    gateway.inside(&tcp(h1(), second, ACK)).delivered();
    let halves = gateway.sessions().into_iter().filter(|session| session.remote.address == X1);
    assert_eq!(halves.map(|session| session.state).collect::<Vec<_>>(), [SessionState::Established; 2]);
}

/// "REQ-9: If a NAT translates TCP, it SHOULD translate ICMP Destination Unreachable (Type 3) messages." "REQ-10: Receipt of any sort
/// of ICMP message MUST NOT terminate the NAT mapping or TCP connection for which the ICMP was generated."
#[test]
fn rfc5382_req9_and_10_hard_errors_are_translated_and_end_nothing() {
    let (mut gateway, external) = established();
    for code in [0, 1, 2, 3, 4, 13] {
        let quoted = tcp(external, e1(), ACK).datagram();
        let error = PacketBuilder::icmp_error(e1().address, X1, 3, code, &quoted).next_hop_mtu(1300).quote(28);
        let seen = gateway.outside(&error).delivered();
        assert_eq!(seen.icmp, Some((3, code, 1300)));
        assert_eq!((seen.quoted().source, seen.quoted().destination), (h1(), e1()));
    }
    gateway.outside(&tcp(e1(), external, ACK | PSH).payload(b"on")).delivered();
    assert_eq!(state(&gateway), SessionState::Established);
}
