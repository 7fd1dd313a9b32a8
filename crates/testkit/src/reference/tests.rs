//! The oracle by hand: what the RFCs' words and figures lead to, played by a NAT that is typed in packet by packet.

use std::sync::Arc;

use portcullis_nat::policy::{DeviceId, Endpoint, Filtering, InterfaceId, MappingBehaviour, Protocol};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::view::{SessionState, SessionView};

use super::*;
use crate::builder::{ACK, Checksum, FIN, PacketBuilder, Query, RST, SYN, endpoint};
use crate::generate::Plan;
use crate::generate::world::{MACS, mac_of};

mod bare;
mod others;

const INSIDE: DeviceId = DeviceId(0);
const OUTSIDE: DeviceId = DeviceId(1);

/// A NAT by hand: says what it did, and the reference judges.
struct Hand {
    reference: ReferenceNat,
    now: Tick,
}

fn plan() -> Plan {
    Plan { tagged: false, ..Plan::default() }
}

fn hand(plan: &Plan) -> Hand {
    let limits = Limits { mappings: 8, bare_mappings: plan.bare as usize, sessions: 8, fragments: 8, others: 8 };
    let now = Tick(plan.start);
    Hand { reference: ReferenceNat::new(Arc::new(plan.policy()), Arc::new(plan.network()), limits, now), now }
}

impl Hand {
    fn wait(&mut self, milliseconds: u32) {
        self.now = self.now.after(milliseconds);
    }

    fn judge(&mut self, device: DeviceId, input: &[u8], verdict: Verdict, output: &[u8]) -> Result<Outcome, String> {
        self.reference.observe(device, input, self.now, verdict, output).map_err(|disagreement| disagreement.to_string())
    }

    /// An inside packet that is sent out as `output`.
    fn out(&mut self, input: &PacketBuilder, output: &PacketBuilder) -> Result<Outcome, String> {
        self.judge(INSIDE, &inside(input), Verdict::Transmit(OUTSIDE), &to_remote(output))
    }

    fn back(&mut self, input: &PacketBuilder, output: &PacketBuilder) -> Result<Outcome, String> {
        self.judge(OUTSIDE, &outside(input), Verdict::Transmit(INSIDE), &to_host(output, h1()))
    }

    fn drops(&mut self, device: DeviceId, input: &PacketBuilder, reason: DropReason) -> Result<Outcome, String> {
        let frame = if device == INSIDE { inside(input) } else { outside(input) };
        self.judge(device, &frame, Verdict::Drop(reason), &frame)
    }

    /// H1's UDP session with E1 under X:40001.
    fn udp_session(&mut self) {
        let outcome = self.out(&PacketBuilder::udp(h1(), e1()), &PacketBuilder::udp(x(), e1()).ttl(63));
        assert_eq!(outcome, Ok(Outcome::Outbound));
    }

    fn tcp_out(&mut self, flags: u8) -> Result<Outcome, String> {
        self.out(&PacketBuilder::tcp(h1(), e1(), flags), &PacketBuilder::tcp(x(), e1(), flags).ttl(63))
    }

    fn tcp_in(&mut self, flags: u8) -> Result<Outcome, String> {
        self.back(&PacketBuilder::tcp(e1(), x(), flags), &PacketBuilder::tcp(e1(), h1(), flags).ttl(63))
    }
}

fn h1() -> Endpoint {
    endpoint("10.0.0.11:2000")
}

fn h2() -> Endpoint {
    endpoint("10.0.0.12:2000")
}

fn e1() -> Endpoint {
    endpoint("192.0.2.10:53")
}

fn x() -> Endpoint {
    endpoint("203.0.113.1:40001")
}

fn y() -> Endpoint {
    endpoint("203.0.113.2:40002")
}

fn inside(packet: &PacketBuilder) -> Vec<u8> {
    packet.clone().mac([6; 6], MACS[0]).build()
}

fn outside(packet: &PacketBuilder) -> Vec<u8> {
    packet.clone().mac([6; 6], MACS[2]).build()
}

fn to_remote(packet: &PacketBuilder) -> Vec<u8> {
    packet.clone().mac(MACS[2], mac_of("198.51.100.1".parse().expect("an address"))).build()
}

fn to_host(packet: &PacketBuilder, host: Endpoint) -> Vec<u8> {
    packet.clone().mac(MACS[0], mac_of(host.address)).build()
}

fn refused(outcome: &Result<Outcome, String>, word: &str) {
    assert!(outcome.as_ref().is_err_and(|why| why.contains(word)), "{outcome:?} should be refused for {word:?}");
}

#[test]
fn rfc_4787_req_1_an_internal_endpoint_keeps_its_external_one() {
    let mut nat = hand(&plan());
    nat.udp_session();
    let other = endpoint("192.0.2.11:53");
    let moved = nat.clone_and(|nat| {
        nat.out(&PacketBuilder::udp(h1(), other), &PacketBuilder::udp(endpoint("203.0.113.1:40002"), other).ttl(63))
    });
    refused(&moved, "instead of");
    assert_eq!(nat.out(&PacketBuilder::udp(h1(), other), &PacketBuilder::udp(x(), other).ttl(63)), Ok(Outcome::Outbound));
}

#[test]
fn rfc_4787_req_2_an_internal_address_keeps_its_external_one() {
    let mut nat = hand(&plan());
    nat.udp_session();
    let second = endpoint("10.0.0.11:1001");
    refused(&nat.out(&PacketBuilder::udp(second, e1()), &PacketBuilder::udp(y(), e1()).ttl(63)), "paired");
}

#[test]
fn rfc_4787_req_3_no_external_endpoint_is_given_twice() {
    let mut nat = hand(&plan());
    nat.udp_session();
    refused(&nat.clone_and(|nat| nat.out(&PacketBuilder::udp(h2(), e1()), &PacketBuilder::udp(x(), e1()).ttl(63))), "in use");
    let alien = endpoint("203.0.113.9:40002");
    refused(
        &nat.clone_and(|nat| nat.out(&PacketBuilder::udp(h2(), e1()), &PacketBuilder::udp(alien, e1()).ttl(63))),
        "no pool address",
    );
    let wrong = endpoint("203.0.113.1:50000");
    refused(&nat.out(&PacketBuilder::udp(h2(), e1()), &PacketBuilder::udp(wrong, e1()).ttl(63)), "not among the pool's");
}

#[test]
fn rfc_4787_req_8_each_filter_lets_in_whom_it_should() {
    let same_address = endpoint("192.0.2.10:80");
    let stranger = endpoint("192.0.2.11:53");
    let table = [
        (Filtering::EndpointIndependent, true, true),
        (Filtering::AddressDependent, true, false),
        (Filtering::AddressAndPortDependent, false, false),
    ];
    for (filtering, lets_address, lets_stranger) in table {
        for (remote, lets_in) in [(same_address, lets_address), (stranger, lets_stranger)] {
            let mut nat = hand(&Plan { filtering_udp: filtering, ..plan() });
            nat.udp_session();
            let packet = PacketBuilder::udp(remote, x());
            let dropped = nat.clone_and(|nat| nat.drops(OUTSIDE, &packet, DropReason::Filtered));
            let passed = nat.back(&packet, &PacketBuilder::udp(remote, h1()).ttl(63));
            assert_eq!((dropped.is_ok(), passed.is_ok()), (!lets_in, lets_in), "{filtering:?} {remote:?}");
        }
    }
}

#[test]
fn rfc_4787_req_9_a_hairpinned_packet_shows_the_senders_external_endpoint() {
    let mut nat = hand(&Plan { filtering_udp: Filtering::EndpointIndependent, ..plan() });
    nat.udp_session();
    let input = inside(&PacketBuilder::udp(h2(), x()));
    let bare = to_host(&PacketBuilder::udp(h2(), h1()).ttl(63), h1());
    let bare = nat.clone_and(|nat| nat.judge(INSIDE, &input, Verdict::Transmit(INSIDE), &bare));
    refused(&bare, "no pool address");
    let right = to_host(&PacketBuilder::udp(y(), h1()).ttl(63), h1());
    assert_eq!(nat.judge(INSIDE, &input, Verdict::Transmit(INSIDE), &right), Ok(Outcome::Hairpin));
    assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (3, 2));
}

#[test]
fn rfc_5382_req_5_a_session_ends_after_its_timeout_and_not_before() {
    let mut nat = hand(&plan());
    assert_eq!(nat.tcp_out(SYN), Ok(Outcome::Outbound));
    nat.wait(8_000);
    assert_eq!(nat.tcp_in(SYN | ACK), Ok(Outcome::Inbound), "8 s is not more than 8 s");
    nat.wait(60_000);
    assert_eq!(nat.tcp_in(ACK), Ok(Outcome::Inbound), "60 s is not more than 60 s");
    nat.wait(60_001);
    refused(&nat.clone_and(|nat| nat.tcp_in(ACK)), "legal");
    let late = nat.drops(OUTSIDE, &PacketBuilder::tcp(e1(), x(), ACK), DropReason::NoMapping);
    assert_eq!(late, Ok(Outcome::Dropped(DropReason::NoMapping)));
}

#[test]
fn rfc_7857_section_2_2_a_reset_session_lives_on_for_the_closing_time() {
    let mut nat = hand(&plan());
    for (step, outcome) in [nat.tcp_out(SYN), nat.tcp_in(SYN | ACK), nat.tcp_out(ACK), nat.tcp_in(RST)].into_iter().enumerate() {
        assert!(outcome.is_ok(), "{step}: {outcome:?}");
    }
    let mut data = nat.clone();
    nat.wait(10_001);
    assert!(nat.tcp_in(ACK).is_err(), "silent for longer than the closing time");
    data.wait(9_999);
    assert_eq!(data.tcp_out(ACK), Ok(Outcome::Outbound));
    data.wait(59_999);
    assert_eq!(data.tcp_in(FIN | ACK), Ok(Outcome::Inbound), "established again");
}

#[test]
fn rfc_5382_a_connection_begins_with_a_syn() {
    let mut nat = hand(&plan());
    let data = PacketBuilder::tcp(h1(), e1(), ACK);
    assert_eq!(nat.drops(INSIDE, &data, DropReason::TcpNotSyn), Ok(Outcome::Dropped(DropReason::TcpNotSyn)));
    assert!(nat.tcp_out(ACK).is_err());
    assert!(nat.tcp_out(SYN | ACK).is_err());
}

#[test]
fn rfc_5508_req_4_an_inbound_error_is_translated_inside_and_outside() {
    let mut nat = hand(&plan());
    nat.udp_session();
    let router = "198.51.100.77".parse().expect("an address");
    let sent = PacketBuilder::udp(x(), e1()).ttl(1).datagram();
    let known = PacketBuilder::udp(h1(), e1()).ttl(1).datagram();
    let error = |to: Endpoint, quote: &[u8]| PacketBuilder::icmp_error(router, to.address, 11, 0, quote).extension(&[0, 4, 1, 1]);
    let half = error(h1(), &sent).ttl(63);
    assert!(nat.clone_and(|nat| nat.back(&error(x(), &sent), &half)).is_err(), "the embedded packet has to be translated too");
    let right = error(h1(), &known).ttl(63);
    assert_eq!(nat.back(&error(x(), &sent), &right), Ok(Outcome::Error(Box::new(Outcome::Inbound))));
    nat.wait(20_001);
    let gone = nat.drops(OUTSIDE, &error(x(), &sent), DropReason::IcmpNoSession);
    assert_eq!(gone, Ok(Outcome::Dropped(DropReason::IcmpNoSession)), "REQ-6: the error has refreshed nothing");
}

#[test]
fn rfc_5508_req_5_an_outbound_error_comes_from_the_external_address() {
    let mut nat = hand(&plan());
    nat.udp_session();
    assert_eq!(nat.back(&PacketBuilder::udp(e1(), x()), &PacketBuilder::udp(e1(), h1()).ttl(63)), Ok(Outcome::Inbound));
    let error = |from: Endpoint| {
        let quote = PacketBuilder::udp(e1(), from).ttl(63).datagram();
        PacketBuilder::icmp_error(from.address, e1().address, 3, 3, &quote)
    };
    assert_eq!(nat.out(&error(h1()), &error(x()).ttl(63)), Ok(Outcome::Error(Box::new(Outcome::Outbound))));
}

#[test]
fn rfc_5508_req_3_an_error_with_a_bad_checksum_is_dropped() {
    let mut nat = hand(&plan());
    nat.udp_session();
    let quote = PacketBuilder::udp(x(), e1()).datagram();
    let error = PacketBuilder::icmp_error(e1().address, x().address, 3, 3, &quote).checksum(Checksum::Wrong(1));
    let outcome = nat.drops(OUTSIDE, &error, DropReason::BadIcmpChecksum);
    assert_eq!(outcome, Ok(Outcome::Dropped(DropReason::BadIcmpChecksum)));
}

#[test]
fn rfc_5508_req_1_a_query_gets_an_identifier_and_its_reply_comes_back() {
    let mut nat = hand(&plan());
    let (host, remote) = (h1().address, e1().address);
    let ask = |source, id| PacketBuilder::query(source, remote, Query::Echo, id);
    assert_eq!(nat.out(&ask(host, 77), &ask(x().address, 40_003).ttl(63)), Ok(Outcome::Outbound));
    let answer = |to, id| PacketBuilder::query(remote, to, Query::EchoReply, id);
    assert_eq!(nat.back(&answer(x().address, 40_003), &answer(host, 77).ttl(63)), Ok(Outcome::Inbound));
    let stray = nat.drops(OUTSIDE, &answer(x().address, 40_002), DropReason::NoMapping);
    assert_eq!(stray, Ok(Outcome::Dropped(DropReason::NoMapping)));
}

#[test]
fn rfc_1812_a_ttl_that_ran_out_is_answered_from_the_receiving_interface() {
    let mut nat = hand(&plan());
    let packet = PacketBuilder::udp(h1(), e1()).ttl(1);
    let gateway = "10.0.0.1".parse().expect("an address");
    let reply = |from, quote: &[u8]| PacketBuilder::icmp_error(from, h1().address, 11, 0, quote).mac(MACS[0], [6; 6]).build();
    let judge = |nat: &mut Hand, reply: &[u8]| nat.judge(INSIDE, &inside(&packet), Verdict::Transmit(INSIDE), reply);
    assert_eq!(judge(&mut nat, &reply(gateway, &packet.datagram())), Ok(Outcome::Replied));
    refused(&judge(&mut nat, &reply(x().address, &packet.datagram())), "not from");
    refused(&judge(&mut nat, &reply(gateway, &packet.clone().ttl(2).datagram())), "as received");
    refused(&nat.drops(INSIDE, &packet, DropReason::TtlExpired), "reply");
    assert_eq!(nat.reference.sessions(), 0);
}

#[test]
fn rfc_1191_what_is_too_big_is_answered_with_the_mtu() {
    let mut nat = hand(&Plan { mtus: [1500, 1500, 1400, 1500], ..plan() });
    let packet = PacketBuilder::udp(h1(), e1()).payload_len(1450).dont_fragment(true);
    let gateway = "10.0.0.1".parse().expect("an address");
    let reply = |mtu| {
        let error = PacketBuilder::icmp_error(gateway, h1().address, 3, 4, &packet.datagram()).quote(548).next_hop_mtu(mtu);
        error.mac(MACS[0], [6; 6]).build()
    };
    assert!(nat.judge(INSIDE, &inside(&packet), Verdict::Transmit(INSIDE), &reply(1500)).is_err());
    assert_eq!(nat.judge(INSIDE, &inside(&packet), Verdict::Transmit(INSIDE), &reply(1400)), Ok(Outcome::Replied));
    let split = packet.clone().dont_fragment(false);
    let whole = to_remote(&PacketBuilder::udp(x(), e1()).payload_len(1450).ttl(63));
    let verdict = Verdict::Fragment { device: OUTSIDE, mtu: 1400 };
    assert_eq!(nat.judge(INSIDE, &inside(&split), verdict, &whole), Ok(Outcome::Outbound));
}

#[test]
fn rfc_768_checksums_keep_their_meaning() {
    let packet = |checksum| PacketBuilder::udp(h1(), e1()).payload_len(21).checksum(checksum);
    let sent = |checksum| PacketBuilder::udp(x(), e1()).payload_len(21).checksum(checksum).ttl(63);
    for (received, right, wrong) in [
        (Checksum::Right, Checksum::Right, Checksum::Wrong(1)),
        (Checksum::Zero, Checksum::Zero, Checksum::Right),
        (Checksum::Partial, Checksum::Right, Checksum::Partial),
        (Checksum::Wrong(5), Checksum::Wrong(5), Checksum::Right),
    ] {
        let mut nat = hand(&plan());
        let refused = nat.clone_and(|nat| nat.out(&packet(received), &sent(wrong)));
        assert!(refused.is_err(), "{received:?} must not become {wrong:?}");
        assert_eq!(nat.out(&packet(received), &sent(right)), Ok(Outcome::Outbound), "{received:?}");
    }
}

#[test]
fn rfc_6888_req_11_exhaustion_is_told_and_takes_nothing_from_others() {
    let mut plan = plan();
    plan.slots.truncate(1);
    plan.slots[0].ports = 1;
    let mut nat = hand(&plan);
    let only = endpoint("203.0.113.1:40000");
    assert!(nat.out(&PacketBuilder::udp(h1(), e1()), &PacketBuilder::udp(only, e1()).ttl(63)).is_ok());
    let packet = PacketBuilder::udp(h2(), e1());
    let gateway = "10.0.0.1".parse().expect("an address");
    let told = PacketBuilder::icmp_error(gateway, h2().address, 3, 13, &packet.datagram()).mac(MACS[0], [6; 6]).build();
    assert_eq!(nat.judge(INSIDE, &inside(&packet), Verdict::Transmit(INSIDE), &told), Ok(Outcome::Replied));
    refused(&nat.clone_and(|nat| nat.out(&packet, &PacketBuilder::udp(only, e1()).ttl(63))), "reply");
    nat.wait(20_001);
    let late = nat.clone_and(|nat| nat.judge(INSIDE, &inside(&packet), Verdict::Transmit(INSIDE), &told));
    assert_eq!(late, Ok(Outcome::Replied), "until the sweep the port may be taken still");
    nat.reference.advance(nat.now);
    nat.reference.swept();
    assert!(nat.judge(INSIDE, &inside(&packet), Verdict::Transmit(INSIDE), &told).is_err());
}

#[test]
fn an_endpoint_dependent_mapping_is_for_its_remote_only() {
    let mut nat = hand(&Plan { mapping: MappingBehaviour::AddressDependent, ..plan() });
    nat.udp_session();
    let same = endpoint("192.0.2.10:80");
    assert_eq!(nat.out(&PacketBuilder::udp(h1(), same), &PacketBuilder::udp(x(), same).ttl(63)), Ok(Outcome::Outbound));
    let other = endpoint("192.0.2.11:53");
    refused(&nat.clone_and(|nat| nat.out(&PacketBuilder::udp(h1(), other), &PacketBuilder::udp(x(), other).ttl(63))), "in use");
    let second = endpoint("203.0.113.1:40002");
    assert_eq!(nat.out(&PacketBuilder::udp(h1(), other), &PacketBuilder::udp(second, other).ttl(63)), Ok(Outcome::Outbound));
}

#[test]
fn a_forward_leads_to_its_server_and_its_server_answers_from_it() {
    let mut nat = hand(&plan());
    let (service, server) = (endpoint("203.0.113.1:8080"), endpoint("10.0.0.11:80"));
    let syn = PacketBuilder::tcp(e1(), service, SYN);
    assert!(nat.clone_and(|nat| nat.back(&syn, &PacketBuilder::tcp(e1(), h1(), SYN).ttl(63))).is_err(), "to no other port");
    assert_eq!(nat.back(&syn, &PacketBuilder::tcp(e1(), server, SYN).ttl(63)), Ok(Outcome::Inbound));
    let answer = PacketBuilder::tcp(server, e1(), SYN | ACK);
    assert_eq!(nat.out(&answer, &PacketBuilder::tcp(service, e1(), SYN | ACK).ttl(63)), Ok(Outcome::Outbound));
    let opens = endpoint("192.0.2.11:80");
    let (syn, dynamic) = (PacketBuilder::tcp(server, opens, SYN), PacketBuilder::tcp(x(), opens, SYN).ttl(63));
    assert!(nat.clone_and(|nat| nat.out(&syn, &dynamic)).is_err(), "the forward's endpoint is free for that remote");
    assert_eq!(nat.out(&syn, &PacketBuilder::tcp(service, opens, SYN).ttl(63)), Ok(Outcome::Outbound));
    assert_eq!(nat.reference.mappings(), 0);
}

fn cut(packet: PacketBuilder) -> Vec<Vec<u8>> {
    packet.payload_len(60).id(7).fragments(32)
}

/// H1's packet to E1 in three fragments, and what becomes of them under X:40001.
fn three() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let router = mac_of("198.51.100.1".parse().expect("an address"));
    (cut(PacketBuilder::udp(h1(), e1()).mac([6; 6], MACS[0])), cut(PacketBuilder::udp(x(), e1()).ttl(63).mac(MACS[2], router)))
}

const WAITS: Verdict = Verdict::AwaitFirst(portcullis_nat::verdict::DatagramToken(1));

#[test]
fn a_later_fragment_waits_for_its_first_and_follows_it() {
    let mut nat = hand(&plan());
    let (ins, outs) = three();
    let drop = Verdict::Drop(DropReason::FragmentWithoutFirst);
    assert!(nat.clone_and(|nat| nat.judge(INSIDE, &ins[1], drop, &ins[1])).is_err(), "it has to wait");
    assert_eq!(nat.judge(INSIDE, &ins[1], WAITS, &ins[1]), Ok(Outcome::Awaits));
    assert!(nat.reference.observe_given_up(&ins[1], drop, &ins[1]).is_err(), "its time is not over");
    assert_eq!(nat.judge(INSIDE, &ins[0], Verdict::Transmit(OUTSIDE), &outs[0]), Ok(Outcome::Outbound));
    assert!(nat.clone_and(|nat| nat.judge(INSIDE, &ins[2], WAITS, &ins[2])).is_err(), "the first has come");
    assert!(nat.clone_and(|nat| nat.judge(INSIDE, &ins[2], drop, &ins[2])).is_err());
    let released = nat.reference.observe_released(INSIDE, &ins[1], nat.now, Verdict::Transmit(OUTSIDE), &outs[1]);
    let followed = Outcome::LaterFragment(Box::new(Outcome::Outbound));
    assert_eq!((released.expect("it follows"), nat.reference.waiting()), (followed.clone(), 0));
    if ins.len() == 3 {
        assert_eq!(nat.judge(INSIDE, &ins[2], Verdict::Transmit(OUTSIDE), &outs[2]), Ok(followed));
    }
    assert_eq!(nat.judge(INSIDE, &ins[1], WAITS, &ins[1]), Ok(Outcome::Awaits), "the datagram is complete: another one begins");
}

#[test]
fn a_fragment_that_waited_in_vain_is_given_up_when_its_time_is_over() {
    let mut nat = hand(&plan());
    let (ins, outs) = three();
    assert_eq!(nat.judge(INSIDE, &ins[1], WAITS, &ins[1]), Ok(Outcome::Awaits));
    nat.wait(3001);
    nat.reference.advance(nat.now);
    let mut late = nat.clone_and(|nat| nat.clone());
    assert_eq!(late.judge(INSIDE, &ins[0], Verdict::Transmit(OUTSIDE), &outs[0]), Ok(Outcome::Outbound));
    assert_eq!(late.reference.waiting(), 1, "a first that comes too late releases nothing");
    let drop = Verdict::Drop(DropReason::FragmentWithoutFirst);
    assert!(nat.clone_and(|nat| nat.reference.observe_given_up(&ins[1], Verdict::Punt, &ins[1])).is_err());
    assert!(nat.clone_and(|nat| nat.reference.observe_given_up(&ins[1], drop, &ins[2])).is_err());
    assert!(nat.reference.observe_given_up(&ins[1], drop, &ins[1]).is_ok());
    assert!(nat.reference.observe_given_up(&ins[1], drop, &ins[1]).is_err(), "only once");
}

#[test]
fn what_follows_a_first_fragment_that_was_dropped_is_dropped() {
    let mut nat = hand(&plan());
    let ins = cut(PacketBuilder::tcp(h1(), e1(), ACK).mac([6; 6], MACS[0]));
    assert!(nat.judge(INSIDE, &ins[0], Verdict::Drop(DropReason::TcpNotSyn), &ins[0]).is_ok());
    assert!(nat.clone_and(|nat| nat.judge(INSIDE, &ins[1], WAITS, &ins[1])).is_err());
    assert!(nat.judge(INSIDE, &ins[1], Verdict::Drop(DropReason::FragmentWithoutFirst), &ins[1]).is_ok());
}

#[test]
fn sources_that_may_not_be_are_dropped_for_the_reason_that_comes_first() {
    let nat = hand(&plan());
    let table = [
        (INSIDE, "0.0.0.1:9", "192.0.2.10:53", DropReason::MartianSource),
        (INSIDE, "127.0.0.1:9", "240.0.0.1:53", DropReason::MartianSource),
        (OUTSIDE, "224.0.0.1:9", "203.0.113.1:53", DropReason::MartianSource),
        (INSIDE, "10.0.0.11:9", "255.255.255.255:53", DropReason::MartianDestination),
        (INSIDE, "10.0.7.13:9", "192.0.2.10:53", DropReason::SpoofedInside),
        (INSIDE, "203.0.113.1:9", "192.0.2.10:53", DropReason::SpoofedInside),
        (OUTSIDE, "10.0.0.11:9", "203.0.113.1:53", DropReason::SpoofedOutside),
        (OUTSIDE, "203.0.113.2:9", "203.0.113.1:53", DropReason::SpoofedOutside),
    ];
    for (device, from, to, reason) in table {
        let packet = PacketBuilder::udp(endpoint(from), endpoint(to));
        assert_eq!(nat.clone_and(|nat| nat.drops(device, &packet, reason)), Ok(Outcome::Dropped(reason)), "{from} > {to}");
        let other = nat.clone_and(|nat| nat.drops(device, &packet, DropReason::NoMapping));
        assert!(other.is_err(), "{from} > {to} has its own reason");
    }
}

#[test]
fn an_unresolved_next_hop_holds_the_translated_packet() {
    let mut nat = hand(&Plan { unresolved: 1, ..plan() });
    let next_hop = "198.51.100.1".parse().expect("an address");
    let translated = PacketBuilder::udp(x(), e1()).ttl(63).build();
    let verdict = Verdict::Hold { interface: InterfaceId(2), next_hop };
    assert_eq!(nat.judge(INSIDE, &inside(&PacketBuilder::udp(h1(), e1())), verdict, &translated), Ok(Outcome::Outbound));
    let bare = inside(&PacketBuilder::udp(h2(), e1()));
    assert!(nat.judge(INSIDE, &bare, verdict, &bare).is_err(), "held untranslated");
}

#[test]
fn only_a_shared_address_leaves_packets_to_the_kernel_and_untouched() {
    let mut shared = plan();
    shared.slots[0].shared = true;
    let packet = outside(&PacketBuilder::tcp(e1(), endpoint("203.0.113.1:22"), SYN));
    let mut changed = packet.clone();
    changed[22] ^= 1;
    let mut nat = hand(&shared);
    assert_eq!(nat.judge(OUTSIDE, &packet, Verdict::Punt, &packet), Ok(Outcome::Punted));
    refused(&nat.judge(OUTSIDE, &packet, Verdict::Punt, &changed), "changed");
    assert!(nat.judge(OUTSIDE, &packet, Verdict::Drop(DropReason::NoMapping), &packet).is_err());
    let partial = PacketBuilder::tcp(e1(), endpoint("203.0.113.1:22"), SYN).checksum(Checksum::Partial);
    assert!(nat.judge(OUTSIDE, &outside(&partial), Verdict::Punt, &outside(&partial)).is_err(), "the kernel would find it wrong");
    assert_eq!(nat.judge(OUTSIDE, &outside(&partial), Verdict::Punt, &packet), Ok(Outcome::Punted));
    assert!(hand(&plan()).judge(OUTSIDE, &packet, Verdict::Punt, &packet).is_err());
}

#[test]
fn a_view_with_a_wrong_state_expiry_or_session_is_refused() {
    let mut nat = hand(&plan());
    nat.udp_session();
    let right = SessionView {
        protocol: Protocol::Udp,
        internal: h1(),
        external: x(),
        remote: e1(),
        state: SessionState::Unreplied,
        outbound: true,
        expires_in: 20_000,
        packets_out: 1,
        packets_in: 0,
    };
    let mut compare = |views: &[SessionView]| nat.reference.reconcile_sessions(views).map_err(|why| why.to_string());
    assert_eq!(compare(&[right]), Ok(()));
    assert!(compare(&[]).is_err());
    assert!(compare(&[right, right]).is_err());
    assert!(compare(&[SessionView { state: SessionState::Replied, ..right }]).is_err());
    assert!(compare(&[SessionView { expires_in: 19_000, ..right }]).is_err());
    assert!(compare(&[SessionView { external: y(), ..right }]).is_err());
    assert!(compare(&[SessionView { packets_in: 1, ..right }]).is_err());
}

impl Hand {
    /// Tries something on a copy.
    fn clone_and<T>(&self, what: impl FnOnce(&mut Self) -> T) -> T {
        what(&mut self.clone())
    }
}

impl Clone for Hand {
    fn clone(&self) -> Self {
        Self { reference: self.reference.clone(), now: self.now }
    }
}
