//! Protocols without ports, by hand: GRE unless said otherwise.

use portcullis_nat::view::OtherView;

use super::*;

const GRE: u8 = 47;

const X: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const Y: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

fn gre(source: Ipv4Addr, destination: Ipv4Addr) -> PacketBuilder {
    PacketBuilder::raw(source, destination, GRE).payload_len(24)
}

impl Hand {
    fn gre_out(&mut self, host: Endpoint, external: Ipv4Addr) -> Result<Outcome, String> {
        self.out(&gre(host.address, e1().address), &gre(external, e1().address).ttl(63))
    }

    fn gre_in(&mut self, host: Endpoint, external: Ipv4Addr) -> Result<Outcome, String> {
        let frame = outside(&gre(e1().address, external));
        self.judge(OUTSIDE, &frame, Verdict::Transmit(INSIDE), &to_host(&gre(e1().address, host.address).ttl(63), host))
    }

    fn gre_comes_to_nobody(&mut self, external: Ipv4Addr) {
        let outcome = self.drops(OUTSIDE, &gre(e1().address, external), DropReason::NoMapping);
        assert_eq!(outcome, Ok(Outcome::Dropped(DropReason::NoMapping)));
    }

    fn refuses_gre(&mut self, host: Endpoint) -> Result<Outcome, String> {
        let input = inside(&gre(host.address, e1().address));
        let gateway = "10.0.0.1".parse().expect("an address");
        let answer = PacketBuilder::icmp_error(gateway, host.address, 3, 13, &gre(host.address, e1().address).datagram());
        self.judge(INSIDE, &input, Verdict::Transmit(INSIDE), &answer.mac(MACS[0], [6; 6]).build())
    }

    fn view(&self, translation: (Endpoint, Ipv4Addr), state: SessionState, left: u32, packets: (u32, u32)) -> Result<(), String> {
        let ((host, external), (packets_out, packets_in)) = (translation, packets);
        let (internal, remote) = (host.address, e1().address);
        let view = OtherView { protocol: GRE, internal, external, remote, state, expires_in: left, packets_out, packets_in };
        self.reference.reconcile_others(&[view]).map_err(|why| why.to_string())
    }
}

#[test]
fn a_packet_goes_out_with_an_external_address_and_only_its_receiver_may_answer() {
    let mut nat = hand(&plan());
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    assert_eq!(nat.gre_in(h1(), X), Ok(Outcome::Inbound));
    nat.gre_comes_to_nobody(Y);
    refused(&nat.clone_and(|nat| nat.gre_in(h2(), X)), "link-layer addresses");
    let stranger = gre("192.0.2.11".parse().expect("an address"), X);
    assert!(nat.drops(OUTSIDE, &stranger, DropReason::NoMapping).is_ok());
    refused(&nat.drops(OUTSIDE, &gre(e1().address, X), DropReason::NoMapping), "legal: drop []");
}

#[test]
fn it_is_never_sent_untranslated_nor_from_an_address_that_is_not_live() {
    let mut nat = hand(&plan());
    refused(&nat.clone_and(|nat| nat.gre_out(h1(), h1().address)), "instead of");
    refused(&nat.gre_out(h1(), "198.51.100.2".parse().expect("an address")), "instead of");
}

#[test]
fn a_second_host_gets_another_address_and_a_third_is_told_that_there_is_none() {
    let mut nat = hand(&plan());
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    refused(&nat.clone_and(|nat| nat.gre_out(h2(), X)), "instead of");
    assert_eq!(nat.gre_out(h2(), Y), Ok(Outcome::Outbound));
    assert_eq!(nat.gre_in(h2(), Y), Ok(Outcome::Inbound));
    assert_eq!(nat.refuses_gre(endpoint("10.1.0.5:1")), Ok(Outcome::Replied));
}

#[test]
fn a_host_begins_its_search_where_it_began_before() {
    let mut nat = hand(&plan());
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    let other = "192.0.2.11".parse().expect("an address");
    let elsewhere = |nat: &mut Hand, external| nat.out(&gre(h1().address, other), &gre(external, other).ttl(63));
    refused(&nat.clone_and(|nat| elsewhere(nat, Y)), "instead of");
    assert_eq!(elsewhere(&mut nat, X), Ok(Outcome::Outbound));
}

#[test]
fn it_ends_half_a_minute_after_the_first_packet_and_ten_minutes_after_an_answered_one() {
    let plan = Plan { short_timeouts: false, ..plan() };
    let mut nat = hand(&plan);
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    assert_eq!(nat.view((h1(), X), SessionState::Unreplied, 30_000, (1, 0)), Ok(()));
    let mut opening = nat.clone_and(|nat| {
        nat.wait(30_001);
        nat.gre_comes_to_nobody(X);
        nat.gre_out(h2(), X)
    });
    assert_eq!(opening, Ok(Outcome::Outbound), "what has ended holds no address");
    nat.wait(30_000);
    assert_eq!(nat.gre_in(h1(), X), Ok(Outcome::Inbound), "the first answer refreshes");
    assert_eq!(nat.view((h1(), X), SessionState::Replied, 600_000, (1, 1)), Ok(()));
    nat.wait(1000);
    assert_eq!(nat.gre_in(h1(), X), Ok(Outcome::Inbound), "the next one does not");
    assert_eq!(nat.view((h1(), X), SessionState::Replied, 599_000, (1, 2)), Ok(()));
    assert!(nat.view((h1(), X), SessionState::Replied, 600_000, (1, 2)).is_err());
    opening = nat.clone_and(|nat| nat.gre_out(h1(), X));
    assert_eq!(opening, Ok(Outcome::Outbound));
    nat.wait(599_001);
    nat.gre_comes_to_nobody(X);
    assert_eq!(nat.reference.reconcile_others(&[]).map_err(|why| why.to_string()), Ok(()));
}

#[test]
fn each_fragment_is_translated_by_itself_and_keeps_its_identification() {
    let mut nat = hand(&plan());
    let cut = |packet: PacketBuilder| packet.payload_len(40).fragments(24);
    let before = cut(gre(h1().address, e1().address).mac([6; 6], MACS[0]));
    let router = mac_of("198.51.100.1".parse().expect("an address"));
    let after = cut(gre(X, e1().address).ttl(63).mac(MACS[2], router));
    for at in [1, 0] {
        let outcome = nat.judge(INSIDE, &before[at], Verdict::Transmit(OUTSIDE), &after[at]);
        assert_eq!(outcome, Ok(Outcome::Outbound));
    }
    let other_id = cut(gre(X, e1().address).id(7).ttl(63).mac(MACS[2], router));
    refused(&nat.judge(INSIDE, &before[0], Verdict::Transmit(OUTSIDE), &other_id[0]), "instead of");
}

/// RFC 3828, section 3.1, and RFC 4340, section 9.1: the pseudo header has the addresses.
#[test]
fn checksums_over_the_addresses_stay_right() {
    let mut nat = hand(&plan());
    for make in [|from, to| PacketBuilder::udp_lite(from, to, 8), |from, to| PacketBuilder::dccp(from, to, 1)] {
        let packet = |from, to| make(from, to).payload_len(9);
        let (from, to) = (h1(), e1());
        let sent = packet(Endpoint { address: X, ..from }, to).ttl(63);
        assert_eq!(nat.out(&packet(from, to), &sent), Ok(Outcome::Outbound));
        let stale = nat.clone_and(|nat| nat.out(&packet(from, to), &sent.clone().checksum(Checksum::Wrong(1))));
        refused(&stale, "byte 27");
    }
    let illegal = |from: Endpoint| PacketBuilder::udp_lite(from, e1(), 0).checksum(Checksum::Zero);
    assert_eq!(nat.out(&illegal(h1()), &illegal(Endpoint { address: X, ..h1() }).ttl(63)), Ok(Outcome::Outbound));
}

#[test]
fn an_error_from_outside_finds_the_host_and_one_from_inside_the_remote() {
    let mut nat = hand(&plan());
    let router = "192.0.2.254".parse().expect("an address");
    let about = |from, to, quoted: &PacketBuilder| PacketBuilder::icmp_error(from, to, 3, 4, &quoted.datagram()).quote(28);
    let seen = gre(X, e1().address).ttl(60);
    let stray = about(router, X, &seen);
    assert!(nat.drops(OUTSIDE, &stray, DropReason::IcmpNoSession).is_ok());
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    refused(&nat.clone_and(|nat| nat.drops(OUTSIDE, &stray, DropReason::IcmpNoSession)), "legal: drop []");
    let inner = about(router, h1().address, &gre(h1().address, e1().address).ttl(60)).ttl(63);
    let outcome = nat.judge(OUTSIDE, &outside(&stray), Verdict::Transmit(INSIDE), &to_host(&inner, h1()));
    assert_eq!(outcome, Ok(Outcome::Error(Box::new(Outcome::Inbound))));
    let delivered = gre(e1().address, h1().address).ttl(60);
    let complaint = about(h1().address, e1().address, &delivered);
    let sent = about(X, e1().address, &gre(e1().address, X).ttl(60)).ttl(63);
    assert_eq!(nat.out(&complaint, &sent), Ok(Outcome::Error(Box::new(Outcome::Outbound))));
    nat.view((h1(), X), SessionState::Unreplied, 4000, (1, 0)).expect("errors refresh nothing");
}

#[test]
fn what_is_for_nobody_is_the_boxs_own_on_a_shared_address() {
    let mut plan = plan();
    plan.slots[0].shared = true;
    let mut nat = hand(&plan);
    for (device, frame) in [(OUTSIDE, outside(&gre(e1().address, X))), (INSIDE, inside(&gre(h1().address, X)))] {
        assert_eq!(nat.judge(device, &frame, Verdict::Punt, &frame), Ok(Outcome::Punted));
        refused(&nat.clone_and(|nat| nat.judge(device, &frame, Verdict::Drop(DropReason::NoMapping), &frame)), "legal: drop []");
    }
    assert!(nat.drops(INSIDE, &gre(h1().address, Y), DropReason::NoMapping).is_ok());
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    assert_eq!(nat.gre_in(h1(), X), Ok(Outcome::Inbound), "no more once somebody has asked");
}

#[test]
fn a_translation_ends_with_its_address_and_one_protocol_that_is_not_translated_is_dropped() {
    let mut nat = hand(&plan());
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    let mut policy = plan().policy();
    policy.externals[0].address = None;
    nat.reference.adopt_policy(Arc::new(policy.clone()));
    refused(&nat.clone_and(|nat| nat.gre_out(h1(), X)), "instead of");
    assert_eq!(nat.gre_out(h1(), Y), Ok(Outcome::Outbound));
    policy.externals[1].address = None;
    nat.reference.adopt_policy(Arc::new(policy.clone()));
    assert!(nat.drops(INSIDE, &gre(h1().address, e1().address), DropReason::NoExternalAddress).is_ok());
    policy.other_protocols = portcullis_nat::policy::ProtocolSet::EMPTY;
    nat.reference.adopt_policy(Arc::new(policy));
    let outcome = nat.drops(INSIDE, &gre(h1().address, e1().address), DropReason::UnsupportedProtocol);
    assert_eq!(outcome, Ok(Outcome::Dropped(DropReason::UnsupportedProtocol)));
}

#[test]
fn a_full_table_refuses_newcomers_until_room_is_made() {
    let limits = Limits { mappings: 8, bare_mappings: 0, sessions: 8, fragments: 8, others: 1 };
    let now = Tick(plan().start);
    let reference = ReferenceNat::new(Arc::new(plan().policy()), Arc::new(plan().network()), limits, now);
    let mut nat = Hand { reference, now };
    assert_eq!(nat.gre_out(h1(), X), Ok(Outcome::Outbound));
    refused(&nat.clone_and(|nat| nat.gre_out(h2(), Y)), "forward []");
    assert_eq!(nat.refuses_gre(h2()), Ok(Outcome::Replied));
    nat.wait(4001);
    assert_eq!(nat.clone_and(|nat| nat.refuses_gre(h2())), Ok(Outcome::Replied), "it may not have been swept");
    assert_eq!(nat.gre_out(h2(), Y), Ok(Outcome::Outbound));
}
