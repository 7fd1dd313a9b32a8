//! Bare mappings, by hand: UDP unless said otherwise. Views are of what the tables should show after it.

use portcullis_nat::policy::{Forward, Policy};
use portcullis_nat::view::{BareView, MappingView};

use super::*;

/// Where the world's UDP forward leads to, and from where.
fn server() -> Endpoint {
    endpoint("10.0.0.12:1000")
}

fn service() -> Endpoint {
    endpoint("203.0.113.1:9000")
}

fn e2() -> Endpoint {
    endpoint("192.0.2.11:80")
}

fn bare() -> Plan {
    Plan { bare: 8, ..plan() }
}

fn udp(from: Endpoint, to: Endpoint) -> PacketBuilder {
    PacketBuilder::udp(from, to)
}

impl Hand {
    fn sends(&mut self, host: Endpoint, external: Endpoint, remote: Endpoint) -> Result<Outcome, String> {
        self.out(&udp(host, remote), &udp(external, remote).ttl(63))
    }

    fn gets(&mut self, remote: Endpoint, external: Endpoint, host: Endpoint) -> Result<Outcome, String> {
        let seen = to_host(&udp(remote, host).ttl(63), host);
        self.judge(OUTSIDE, &outside(&udp(remote, external)), Verdict::Transmit(INSIDE), &seen)
    }

    /// A hairpin from a host with its external endpoint to another's.
    fn turns(&mut self, from: (Endpoint, Endpoint), to: (Endpoint, Endpoint)) -> Result<Outcome, String> {
        let seen = to_host(&udp(from.1, to.1).ttl(63), to.1);
        self.judge(INSIDE, &inside(&udp(from.0, to.0)), Verdict::Transmit(INSIDE), &seen)
    }

    /// What a host gets that is told that there is no room.
    fn is_told(&mut self, host: Endpoint, remote: Endpoint) -> Result<Outcome, String> {
        self.is_answered(host, remote, 13)
    }

    /// What a host gets that is told that there is no route.
    fn is_lost(&mut self, host: Endpoint, remote: Endpoint) -> Result<Outcome, String> {
        self.is_answered(host, remote, 0)
    }

    fn is_answered(&mut self, host: Endpoint, remote: Endpoint, code: u8) -> Result<Outcome, String> {
        let packet = udp(host, remote);
        let gateway = "10.0.0.1".parse().expect("an address");
        let answer = PacketBuilder::icmp_error(gateway, host.address, 3, code, &packet.datagram()).mac(MACS[0], [6; 6]);
        self.judge(INSIDE, &inside(&packet), Verdict::Transmit(INSIDE), &answer.build())
    }

    fn shows(&mut self, views: &[MappingView]) -> Result<(), String> {
        self.reference.advance(self.now);
        self.reference.reconcile_mappings(views).map_err(|why| why.to_string())
    }

    fn reload(&mut self, change: impl FnOnce(&mut Policy)) {
        let mut policy = (*self.reference.policy).clone();
        change(&mut policy);
        self.reference.advance(self.now);
        self.reference.adopt_policy(Arc::new(policy));
    }

    /// H1's bare mapping X:40001, from a packet to E1.
    fn bare_mapping(plan: &Plan) -> Self {
        let mut nat = hand(plan);
        assert_eq!(nat.sends(h1(), x(), e1()), Ok(Outcome::Outbound));
        nat
    }
}

fn view(internal: Endpoint, external: Endpoint, expires_in: u32, packets: (u32, u32)) -> MappingView {
    let bare = Some(BareView { expires_in, packets_out: packets.0, packets_in: packets.1 });
    MappingView { protocol: Protocol::Udp, internal, external, scope: None, sessions: 0, bare }
}

fn forward_to(servers: &[Endpoint]) -> Forward {
    Forward { protocol: Protocol::Udp, external: 0, first: x().port, last: x().port, servers: servers.to_vec() }
}

#[test]
fn one_external_endpoint_serves_all_remotes_whatever_mapping_and_filter_are_set() {
    for mapping in [MappingBehaviour::EndpointIndependent, MappingBehaviour::AddressAndPortDependent] {
        for filtering_udp in [Filtering::EndpointIndependent, Filtering::AddressAndPortDependent] {
            let mut nat = Hand::bare_mapping(&Plan { mapping, filtering_udp, ..bare() });
            refused(&nat.clone_and(|nat| nat.sends(h1(), endpoint("203.0.113.1:40002"), e2())), "instead of");
            assert_eq!(nat.sends(h1(), x(), e2()), Ok(Outcome::Outbound));
            let stranger = endpoint("198.18.0.5:7");
            refused(&nat.clone_and(|nat| nat.drops(OUTSIDE, &udp(stranger, x()), DropReason::Filtered)), "legal: drop []");
            assert_eq!(nat.gets(stranger, x(), h1()), Ok(Outcome::Inbound));
            assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (0, 1));
            refused(&nat.sends(h2(), x(), e1()), "in use");
        }
    }
}

#[test]
fn queries_and_connections_have_sessions_and_filters_as_ever() {
    let mut nat = Hand::bare_mapping(&bare());
    assert_eq!(nat.tcp_out(SYN), Ok(Outcome::Outbound));
    let stranger = PacketBuilder::tcp(e2(), x(), SYN);
    assert_eq!(nat.drops(OUTSIDE, &stranger, DropReason::Filtered), Ok(Outcome::Dropped(DropReason::Filtered)));
    let ask = |source, id| PacketBuilder::query(source, e1().address, Query::Echo, id);
    assert_eq!(nat.out(&ask(h1().address, 77), &ask(x().address, 40_003).ttl(63)), Ok(Outcome::Outbound));
    let answer = PacketBuilder::query(e2().address, x().address, Query::EchoReply, 40_003);
    assert_eq!(nat.drops(OUTSIDE, &answer, DropReason::Filtered), Ok(Outcome::Dropped(DropReason::Filtered)));
    assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (2, 3));
}

/// RFC 4787, REQ-6: what comes from inside keeps it, towards whomever; a hairpin's first half too.
#[test]
fn it_ends_its_time_after_the_last_packet_from_inside() {
    let mut nat = Hand::bare_mapping(&bare());
    nat.wait(20_000);
    assert_eq!(nat.clone_and(|nat| nat.gets(e2(), x(), h1())), Ok(Outcome::Inbound), "20 s is not more than 20 s");
    assert_eq!(nat.sends(h1(), x(), e2()), Ok(Outcome::Outbound));
    nat.wait(19_000);
    let nobody = nat.drops(INSIDE, &udp(h1(), endpoint("203.0.113.2:40000")), DropReason::NoMapping);
    assert_eq!(nobody, Ok(Outcome::Dropped(DropReason::NoMapping)));
    assert!(nat.clone_and(|nat| nat.shows(&[view(h1(), x(), 1000, (3, 0))])).is_err(), "it was refreshed");
    assert_eq!(nat.shows(&[view(h1(), x(), 20_000, (3, 0))]), Ok(()));
    nat.wait(20_001);
    refused(&nat.clone_and(|nat| nat.gets(e1(), x(), h1())), "legal");
    let late = nat.drops(OUTSIDE, &udp(e1(), x()), DropReason::NoMapping);
    assert_eq!(late, Ok(Outcome::Dropped(DropReason::NoMapping)));
    assert_eq!(nat.shows(&[]), Ok(()));
}

/// RFC 7857, section 7.
#[test]
fn packets_from_outside_keep_it_only_where_they_are_wished_to() {
    for (inbound_refresh, left) in [(false, 5000), (true, 20_000)] {
        let mut nat = Hand::bare_mapping(&Plan { inbound_refresh, ..bare() });
        nat.wait(15_000);
        assert_eq!(nat.gets(e1(), x(), h1()), Ok(Outcome::Inbound));
        for (other, right) in [(5000, !inbound_refresh), (20_000, inbound_refresh)] {
            assert_eq!(nat.clone_and(|nat| nat.shows(&[view(h1(), x(), other, (1, 1))]).is_ok()), right);
        }
        nat.wait(left + 1);
        assert!(nat.drops(OUTSIDE, &udp(e1(), x()), DropReason::NoMapping).is_ok());
    }
}

#[test]
fn a_time_of_the_remotes_port_is_not_for_bare_mappings_but_for_sessions_under_forwards() {
    let mut nat = Hand::bare_mapping(&Plan { udp_ports: [(53, 1)].into(), ..bare() });
    assert_eq!(nat.sends(server(), service(), e1()), Ok(Outcome::Outbound));
    nat.wait(5001);
    assert_eq!(nat.gets(e1(), x(), h1()), Ok(Outcome::Inbound), "20 s even so");
    assert_eq!(nat.reference.sessions(), 0, "the session towards port 53 has had 5 s");
}

#[test]
fn a_view_with_another_time_count_or_kind_is_refused() {
    let mut nat = Hand::bare_mapping(&bare());
    assert_eq!(nat.gets(e2(), x(), h1()), Ok(Outcome::Inbound));
    nat.wait(500);
    let right = view(h1(), x(), 19_500, (1, 1));
    let compare = |views: &[MappingView]| nat.clone_and(|nat| nat.shows(views));
    assert_eq!(compare(&[right]), Ok(()));
    assert_eq!(compare(&[view(h1(), x(), 19_501, (1, 1))]), Ok(()), "a timer may run out a millisecond after its time");
    for wrong in [
        vec![],
        vec![right, right],
        vec![view(h1(), x(), 20_000, (1, 1))],
        vec![view(h1(), x(), 19_500, (2, 1))],
        vec![view(h1(), x(), 19_500, (1, 0))],
        vec![view(h1(), y(), 19_500, (1, 1))],
        vec![view(h2(), x(), 19_500, (1, 1))],
        vec![MappingView { sessions: 1, ..right }],
        vec![MappingView { bare: None, ..right }],
        vec![MappingView { scope: Some(e1()), ..right }],
        vec![right, view(h2(), y(), 20_000, (1, 0))],
    ] {
        assert!(compare(&wrong).is_err(), "{wrong:?}");
    }
    nat.wait(19_501);
    assert!(nat.clone_and(|nat| nat.shows(&[view(h1(), x(), 0, (1, 1))])).is_err(), "what has ended is not listed");
    let mut nat = hand(&plan());
    nat.udp_session();
    assert!(nat.shows(&[view(h1(), x(), 20_000, (1, 0))]).is_err(), "with sessions none is bare");
}

#[test]
fn its_counts_wrap() {
    let mut nat = Hand::bare_mapping(&bare());
    assert_eq!(nat.shows(&[view(h1(), x(), 20_000, (1, 0))]), Ok(()));
    nat.reference.tables.bare.values_mut().flatten().for_each(|trace| trace.packets = (u32::MAX, u32::MAX));
    assert_eq!(nat.sends(h1(), x(), e1()), Ok(Outcome::Outbound));
    assert_eq!(nat.gets(e1(), x(), h1()), Ok(Outcome::Inbound));
    assert_eq!(nat.shows(&[view(h1(), x(), 20_000, (0, 0))]), Ok(()));
}

/// What is dropped late on its way may have been counted and may have refreshed; what it would have made is not there.
#[test]
fn a_packet_that_finds_no_way_makes_nothing() {
    let mut nat = hand(&Plan { default_route: false, ..bare() });
    let lost = |nat: &mut Hand| nat.is_lost(h1(), e1());
    assert_eq!(lost(&mut nat), Ok(Outcome::Replied));
    assert_eq!((nat.reference.mappings(), nat.shows(&[])), (0, Ok(())));
    let on_link = endpoint("198.51.100.77:53");
    let sent = udp(x(), on_link).ttl(63).mac(MACS[2], mac_of(on_link.address)).build();
    assert_eq!(nat.judge(INSIDE, &inside(&udp(h1(), on_link)), Verdict::Transmit(OUTSIDE), &sent), Ok(Outcome::Outbound));
    nat.wait(1000);
    assert_eq!(lost(&mut nat), Ok(Outcome::Replied));
    for (left, packets, right) in [(19_000, 1, true), (20_000, 2, true), (20_000, 1, false), (19_000, 2, false)] {
        let shown = nat.clone_and(|nat| nat.shows(&[view(h1(), x(), left, (packets, 0))]));
        assert_eq!(shown.is_ok(), right, "{left} ms, {packets} packets: {shown:?}");
    }
}

#[test]
fn each_table_that_is_full_refuses_a_newcomer_but_that_of_sessions() {
    let rows = [((2, 8, 8), false), ((8, 2, 8), false), ((8, 8, 2), true)];
    for ((mappings, bare_mappings, sessions), has_room) in rows {
        let limits = Limits { mappings, bare_mappings, sessions, fragments: 8, others: 8 };
        let now = Tick(bare().start);
        let reference = ReferenceNat::new(Arc::new(bare().policy()), Arc::new(bare().network()), limits, now);
        let mut nat = Hand { reference, now };
        if has_room {
            let mut ports = [53, 80].into_iter();
            assert!(ports.all(|port| nat.gets(Endpoint { port, ..e1() }, service(), server()).is_ok()), "sessions for the forward");
        }
        assert_eq!(nat.sends(h1(), x(), e1()), Ok(Outcome::Outbound));
        assert_eq!(nat.sends(Endpoint { port: 1, ..h1() }, endpoint("203.0.113.1:40000"), e1()), Ok(Outcome::Outbound));
        assert_eq!(nat.sends(h1(), x(), e2()), Ok(Outcome::Outbound), "a known one needs no room");
        let newcomer = |nat: &mut Hand| nat.sends(h2(), y(), e1());
        assert_eq!(nat.clone_and(newcomer).is_ok(), has_room);
        assert_eq!(nat.clone_and(|nat| nat.is_told(h2(), e1())).is_ok(), !has_room);
        nat.wait(20_001);
        assert_eq!(nat.clone_and(newcomer), Ok(Outcome::Outbound));
        assert_eq!(nat.is_told(h2(), e1()).is_ok(), !has_room, "until the sweep it may be full still");
    }
}

/// A mapping of another protocol takes no place of a bare one, but one among all.
#[test]
fn mappings_of_other_protocols_count_among_all_only() {
    let limits = Limits { mappings: 2, bare_mappings: 1, sessions: 8, fragments: 8, others: 8 };
    let now = Tick(bare().start);
    let reference = ReferenceNat::new(Arc::new(bare().policy()), Arc::new(bare().network()), limits, now);
    let mut nat = Hand { reference, now };
    assert_eq!(nat.tcp_out(SYN), Ok(Outcome::Outbound));
    assert_eq!(nat.sends(h1(), x(), e1()), Ok(Outcome::Outbound));
    let ask = |source, id| PacketBuilder::query(source, e1().address, Query::Echo, id);
    refused(&nat.out(&ask(h1().address, 77), &ask(x().address, 40_003).ttl(63)), "forward []");
}

#[test]
fn a_port_that_a_bare_mapping_had_rests() {
    let mut nat = Hand::bare_mapping(&Plan { hold: 30, ..bare() });
    nat.wait(20_001);
    refused(&nat.clone_and(|nat| nat.sends(h2(), x(), e1())), "rests");
    assert_eq!(nat.clone_and(|nat| nat.sends(h1(), x(), e1())), Ok(Outcome::Outbound), "it may be there still");
    nat.reference.advance(nat.now);
    nat.reference.swept();
    refused(&nat.clone_and(|nat| nat.sends(h1(), x(), e1())), "rests");
    nat.wait(30_000);
    assert_eq!(nat.sends(h2(), x(), e1()), Ok(Outcome::Outbound));
}

#[test]
fn a_forwarded_port_has_sessions_and_its_server_speaks_from_there() {
    let mut nat = hand(&bare());
    assert_eq!(nat.gets(e1(), service(), server()), Ok(Outcome::Inbound));
    assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (1, 0));
    refused(&nat.clone_and(|nat| nat.sends(server(), x(), e1())), "instead of");
    assert_eq!(nat.sends(server(), service(), e1()), Ok(Outcome::Outbound));
    refused(&nat.clone_and(|nat| nat.sends(server(), x(), e2())), "instead of");
    assert_eq!(nat.sends(server(), service(), e2()), Ok(Outcome::Outbound), "it speaks first there");
    let beside = Endpoint { port: 1002, ..server() };
    assert_eq!(nat.sends(beside, endpoint("203.0.113.1:40002"), e1()), Ok(Outcome::Outbound), "beyond the forward's range");
    assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (2, 1));
}

/// Where one of several servers is the remote's, and which one is the NAT's choice: the others speak from mappings.
#[test]
fn a_server_that_is_not_the_remotes_has_a_bare_mapping() {
    let mut nat = hand(&bare());
    let service = endpoint("203.0.113.1:9000");
    let second = endpoint("10.0.0.11:1000");
    nat.reload(|policy| policy.forwards[1].servers = vec![server(), second]);
    for (external, sessions) in [(service, 1), (endpoint("203.0.113.1:40003"), 0)] {
        let mut nat = nat.clone();
        assert_eq!(nat.sends(second, external, e1()), Ok(Outcome::Outbound));
        assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (sessions, 1 - sessions));
    }
    refused(&nat.sends(second, endpoint("203.0.113.1:9001"), e1()), "not among the pool's");
}

/// A session of the server with that remote comes first, and a forward before the mapping that the server has.
#[test]
fn a_forward_comes_before_the_mapping_that_its_server_has() {
    let mut nat = hand(&Plan { forwards: [true, false, true], ..bare() });
    assert_eq!(nat.sends(server(), x(), e1()), Ok(Outcome::Outbound));
    let udp_forward = bare().policy().forwards[1].clone();
    nat.reload(|policy| policy.forwards.push(udp_forward));
    refused(&nat.clone_and(|nat| nat.sends(server(), x(), e1())), "instead of");
    assert_eq!(nat.sends(server(), service(), e1()), Ok(Outcome::Outbound));
    assert_eq!(nat.gets(e2(), x(), server()), Ok(Outcome::Inbound), "its mapping lives on");
    assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (1, 1));
}

#[test]
fn a_hairpin_shows_the_senders_external_endpoint_and_counts_on_both_sides() {
    let mut nat = Hand::bare_mapping(&bare());
    nat.wait(1000);
    assert_eq!(nat.turns((h2(), y()), (x(), h1())), Ok(Outcome::Hairpin));
    assert_eq!(nat.turns((h1(), x()), (y(), h2())), Ok(Outcome::Hairpin));
    assert_eq!(nat.shows(&[view(h1(), x(), 20_000, (2, 1)), view(h2(), y(), 20_000, (1, 1))]), Ok(()));
    nat.wait(1000);
    assert_eq!(nat.turns((h2(), y()), (x(), h1())), Ok(Outcome::Hairpin));
    assert_eq!(nat.shows(&[view(h1(), x(), 19_000, (2, 2)), view(h2(), y(), 20_000, (2, 1))]), Ok(()));
}

#[test]
fn a_hairpin_to_a_forward_has_a_session_on_the_servers_side_only() {
    let mut nat = Hand::bare_mapping(&bare());
    assert_eq!(nat.turns((h1(), x()), (service(), server())), Ok(Outcome::Hairpin));
    assert_eq!((nat.reference.sessions(), nat.reference.mappings()), (1, 1));
    assert_eq!(nat.turns((server(), service()), (x(), h1())), Ok(Outcome::Hairpin));
    assert_eq!(nat.shows(&[view(h1(), x(), 20_000, (2, 1))]), Ok(()));
}

#[test]
fn what_is_sent_to_ones_own_external_endpoint_comes_back() {
    let mut nat = Hand::bare_mapping(&bare());
    for reason in [DropReason::SessionConflict, DropReason::NoMapping, DropReason::Filtered] {
        assert!(nat.clone_and(|nat| nat.drops(INSIDE, &udp(h1(), x()), reason)).is_err(), "{reason:?}");
    }
    assert_eq!(nat.turns((h1(), x()), (x(), h1())), Ok(Outcome::Hairpin));
    assert_eq!(nat.shows(&[view(h1(), x(), 20_000, (2, 1))]), Ok(()));
    assert_eq!(nat.turns((h2(), y()), (y(), h2())), Ok(Outcome::Hairpin), "if that happens to be the one that it is given");
    assert_eq!(nat.shows(&[view(h1(), x(), 20_000, (2, 1)), view(h2(), y(), 20_000, (1, 1))]), Ok(()));
}

/// docs/adr/0006.
#[test]
fn a_hairpin_to_nobody_leaves_its_first_half() {
    let mut nat = hand(&bare());
    let outcome = nat.drops(INSIDE, &udp(h1(), endpoint("203.0.113.2:40000")), DropReason::NoMapping);
    assert_eq!(outcome, Ok(Outcome::Dropped(DropReason::NoMapping)));
    assert!(nat.reference.has_unseen());
    let compared = |views: &[SessionView], mappings: &[MappingView]| {
        nat.clone_and(|nat| nat.reference.reconcile_sessions(views).is_ok() && nat.shows(mappings).is_ok())
    };
    assert!(!compared(&[], &[]), "it has to be there");
    assert!(compared(&[], &[view(h1(), x(), 20_000, (1, 0))]));
    assert!(compared(&[], &[view(h1(), y(), 20_000, (1, 0))]));
    assert!(!compared(&[], &[view(h1(), x(), 20_000, (0, 0))]));
    assert!(!compared(&[], &[view(h1(), endpoint("203.0.113.1:50000"), 20_000, (1, 0))]));
}

#[test]
fn errors_find_the_mapping_whatever_the_remote_and_refresh_nothing() {
    let mut nat = Hand::bare_mapping(&bare());
    nat.wait(1000);
    let router = "198.51.100.77".parse().expect("an address");
    let about = |from, to, quoted: &PacketBuilder| PacketBuilder::icmp_error(from, to, 3, 3, &quoted.datagram());
    let stranger = endpoint("198.18.0.5:7");
    let seen = about(router, h1().address, &udp(h1(), stranger).ttl(9)).ttl(63);
    assert_eq!(
        nat.back(&about(router, x().address, &udp(x(), stranger).ttl(9)), &seen),
        Ok(Outcome::Error(Box::new(Outcome::Inbound)))
    );
    let sent = about(x().address, stranger.address, &udp(stranger, x()).ttl(9)).ttl(63);
    let gateway = "100.64.0.1".parse().expect("an address");
    let sent = sent.mac(MACS[3], mac_of(gateway)).build();
    let complaint = inside(&about(h1().address, stranger.address, &udp(stranger, h1()).ttl(9)));
    assert_eq!(
        nat.judge(INSIDE, &complaint, Verdict::Transmit(DeviceId(2)), &sent),
        Ok(Outcome::Error(Box::new(Outcome::Outbound)))
    );
    assert_eq!(nat.shows(&[view(h1(), x(), 19_000, (1, 0))]), Ok(()));
    let nobodys = about(router, y().address, &udp(y(), stranger));
    assert!(nat.drops(OUTSIDE, &nobodys, DropReason::IcmpNoSession).is_ok());
    nat.wait(19_001);
    assert!(nat.drops(OUTSIDE, &about(router, x().address, &udp(x(), stranger)), DropReason::IcmpNoSession).is_ok());
}

#[test]
fn an_error_about_a_hairpin_goes_back_through_both() {
    let mut nat = Hand::bare_mapping(&bare());
    assert_eq!(nat.turns((h2(), y()), (x(), h1())), Ok(Outcome::Hairpin));
    let about = |from: Endpoint, to: Endpoint, quoted: &PacketBuilder| {
        PacketBuilder::icmp_error(from.address, to.address, 3, 3, &quoted.datagram())
    };
    let complaint = inside(&about(h1(), y(), &udp(y(), h1()).ttl(63)));
    let seen = to_host(&about(x(), h2(), &udp(h2(), x()).ttl(63)).ttl(63), h2());
    let outcome = nat.judge(INSIDE, &complaint, Verdict::Transmit(INSIDE), &seen);
    assert_eq!(outcome, Ok(Outcome::Error(Box::new(Outcome::Hairpin))));
}

/// A session of a forward comes first where it fits.
#[test]
fn an_error_about_a_forwards_packet_is_translated_by_its_session() {
    let mut nat = hand(&Plan { forwards: [true, false, true], ..bare() });
    assert_eq!(nat.sends(server(), x(), e1()), Ok(Outcome::Outbound));
    let udp_forward = bare().policy().forwards[1].clone();
    nat.reload(|policy| policy.forwards.push(udp_forward));
    let about = |external: Endpoint, remote: Endpoint| {
        let complaint = PacketBuilder::icmp_error(server().address, remote.address, 3, 3, &udp(remote, server()).datagram());
        let seen = PacketBuilder::icmp_error(external.address, remote.address, 3, 3, &udp(remote, external).datagram()).ttl(63);
        (complaint, seen)
    };
    let outwards = Ok(Outcome::Error(Box::new(Outcome::Outbound)));
    let by = |nat: &mut Hand, external| {
        let (complaint, seen) = about(external, e1());
        nat.out(&complaint, &seen)
    };
    assert_eq!(nat.clone_and(|nat| by(nat, x())), outwards, "without a session by the mapping");
    assert_eq!(nat.gets(e1(), service(), server()), Ok(Outcome::Inbound));
    assert!(nat.clone_and(|nat| by(nat, x())).is_err());
    assert_eq!(by(&mut nat, service()), outwards);
}

#[test]
fn a_forward_that_comes_over_its_port_ends_a_mapping_at_once() {
    let mut nat = Hand::bare_mapping(&Plan { hold: 30, ..bare() });
    nat.reload(|policy| {
        policy.forwards.push(forward_to(&[server()]));
        policy.externals[0].ports.remove_range(x().port, x().port);
    });
    assert!(nat.clone_and(|nat| nat.shows(&[view(h1(), x(), 20_000, (1, 0))])).is_err());
    assert_eq!(nat.shows(&[]), Ok(()));
    refused(&nat.clone_and(|nat| nat.gets(e1(), x(), h1())), "link-layer addresses");
    assert_eq!(nat.clone_and(|nat| nat.gets(e1(), x(), server())), Ok(Outcome::Inbound));
    refused(&nat.clone_and(|nat| nat.sends(h1(), x(), e1())), "not among the pool's");
    assert_eq!(nat.sends(h1(), endpoint("203.0.113.1:40002"), e1()), Ok(Outcome::Outbound));
    nat.reload(|policy| {
        policy.forwards.pop();
        policy.externals[0].ports.insert_range(x().port, x().port);
    });
    assert!(nat.drops(OUTSIDE, &udp(e1(), x()), DropReason::NoMapping).is_ok(), "it does not come back");
    refused(&nat.sends(h2(), x(), e1()), "rests");
}

/// A port leaves the pool for all protocols, and what another one's mapping was may be there still until the sweep.
#[test]
fn a_late_mapping_of_tcp_may_keep_a_port_that_a_udp_forward_has() {
    let mut nat = hand(&bare());
    assert_eq!(nat.tcp_out(SYN), Ok(Outcome::Outbound));
    nat.wait(8001);
    nat.reload(|policy| {
        policy.forwards.push(forward_to(&[server()]));
        policy.externals[0].ports.remove_range(x().port, x().port);
    });
    assert_eq!(nat.clone_and(|nat| nat.tcp_out(SYN)), Ok(Outcome::Outbound));
    nat.reference.advance(nat.now);
    nat.reference.swept();
    refused(&nat.tcp_out(SYN), "not among the pool's");
}

#[test]
fn another_forward_of_tcp_ends_no_bare_mapping() {
    let mut nat = Hand::bare_mapping(&bare());
    nat.reload(|policy| policy.forwards.push(Forward { protocol: Protocol::Tcp, ..forward_to(&[server()]) }));
    assert_eq!(nat.gets(e1(), x(), h1()), Ok(Outcome::Inbound));
}

#[test]
fn a_session_that_no_forward_leads_so_any_more_ends_at_once() {
    let mut nat = hand(&bare());
    assert_eq!(nat.gets(e1(), service(), server()), Ok(Outcome::Inbound));
    let sessions = |nat: &Hand, change: fn(&mut Policy)| {
        let mut nat = nat.clone();
        nat.reload(change);
        nat.reference.sessions()
    };
    assert_eq!(sessions(&nat, |policy| policy.forwards.truncate(1)), 0, "no forward");
    assert_eq!(sessions(&nat, |policy| policy.forwards[1].servers[0].port = 999), 0, "another server");
    assert_eq!(sessions(&nat, |policy| policy.forwards[1].first = 8999), 0, "another order");
    assert_eq!(sessions(&nat, |policy| policy.forwards[1].last = 9000), 1, "one port less beside it");
    assert_eq!(sessions(&nat, |policy| drop(policy.forwards.remove(0))), 1, "other forwards");
    let mut other = nat.clone();
    other.reload(|policy| policy.forwards[1].servers[0].port = 999);
    assert_eq!(other.gets(e1(), service(), Endpoint { port: 999, ..server() }), Ok(Outcome::Inbound));
    nat.reload(|policy| policy.forwards.truncate(1));
    assert!(nat.drops(OUTSIDE, &udp(e1(), service()), DropReason::NoMapping).is_ok());
    assert_eq!(nat.sends(server(), x(), e1()), Ok(Outcome::Outbound), "from a mapping now");
}

/// Which of several servers a remote is led to is the NAT's choice: what it shows says whether a session is one of those that go on.
#[test]
fn a_session_under_a_forward_that_has_got_more_servers_may_go_on_or_end() {
    let mut nat = hand(&bare());
    assert_eq!(nat.gets(e1(), service(), server()), Ok(Outcome::Inbound));
    nat.reload(|policy| policy.forwards[1].servers.push(endpoint("10.0.0.11:1000")));
    assert_eq!(nat.reference.sessions(), 1);
    let ended = nat.clone_and(|nat| {
        nat.reference.reconcile_sessions(&[]).map_err(|why| why.to_string())?;
        Ok::<_, String>(nat.reference.sessions())
    });
    assert_eq!(ended, Ok(0));
    nat.reload(|policy| policy.icmp_errors.rate = 1);
    assert!(nat.reference.reconcile_sessions(&[]).is_err(), "the same forward leads it there still");
}

#[test]
fn with_sessions_a_change_of_forwards_ends_none() {
    let mut nat = hand(&plan());
    assert_eq!(nat.gets(e1(), service(), server()), Ok(Outcome::Inbound));
    nat.reload(|policy| policy.forwards.truncate(1));
    assert_eq!(nat.reference.sessions(), 1);
}

#[test]
fn what_has_an_external_address_that_is_gone_ends() {
    let mut nat = Hand::bare_mapping(&bare());
    nat.reload(|policy| policy.externals[0].address = None);
    assert_eq!(nat.shows(&[]), Ok(()));
    assert_eq!(nat.sends(h1(), y(), e1()), Ok(Outcome::Outbound));
}

/// RFC 4787, REQ-14. Whether a later fragment is counted, and whether one from inside refreshes, is open; one from outside does not.
#[test]
fn later_fragments_follow_their_first() {
    let mut nat = Hand::bare_mapping(&bare());
    let (ins, outs) = three();
    nat.wait(1000);
    for at in 0..2 {
        assert!(nat.judge(INSIDE, &ins[at], Verdict::Transmit(OUTSIDE), &outs[at]).is_ok());
    }
    nat.wait(1000);
    assert!(nat.judge(INSIDE, &ins[2], Verdict::Transmit(OUTSIDE), &outs[2]).is_ok());
    for (left, packets, right) in [(19_000, 2, true), (20_000, 4, true), (20_000, 2, true), (18_000, 2, false), (20_000, 1, false)]
    {
        let shown = nat.clone_and(|nat| nat.shows(&[view(h1(), x(), left, (packets, 0))]));
        assert_eq!(shown.is_ok(), right, "{left} ms, {packets} packets: {shown:?}");
    }
    let mut nat = Hand::bare_mapping(&bare());
    nat.wait(1000);
    let (ins, outs) = (cut(udp(e1(), x()).mac([6; 6], MACS[2])), cut(udp(e1(), h1()).ttl(63).mac(MACS[0], mac_of(h1().address))));
    for at in 0..3 {
        assert!(nat.judge(OUTSIDE, &ins[at], Verdict::Transmit(INSIDE), &outs[at]).is_ok());
    }
    for (left, packets, right) in [(19_000, 1, true), (19_000, 3, true), (20_000, 3, false), (19_000, 0, false)] {
        let shown = nat.clone_and(|nat| nat.shows(&[view(h1(), x(), left, (1, packets))]));
        assert_eq!(shown.is_ok(), right, "{left} ms, {packets} packets: {shown:?}");
    }
}

#[test]
fn on_a_shared_address_what_no_mapping_has_is_the_boxs_own() {
    let mut shared = bare();
    shared.slots[0].shared = true;
    let mut nat = Hand::bare_mapping(&shared);
    let punt = |nat: &mut Hand, to: Endpoint| {
        let frame = outside(&udp(e1(), to));
        nat.judge(OUTSIDE, &frame, Verdict::Punt, &frame)
    };
    assert_eq!(punt(&mut nat, endpoint("203.0.113.1:22")), Ok(Outcome::Punted));
    assert!(nat.clone_and(|nat| punt(nat, x())).is_err());
    nat.wait(20_001);
    assert_eq!(punt(&mut nat, x()), Ok(Outcome::Punted));
}

/// With several workers a subscriber's bare mapping has a port of its own worker's.
#[test]
fn with_several_workers_the_port_is_its_subscribers_workers() {
    let owners = crate::fleet::owners(8, 5);
    let is_own = |port: &u16| owners.of_external(x().address, *port) == owners.of_subscriber(h1().address);
    let own = (40_000..50_000).find(is_own).expect("a port");
    let other = (40_000..50_000).find(|port| !is_own(port)).expect("a port");
    let mut wide = bare();
    wide.slots[0].ports = 0;
    let mut nat = hand(&wide);
    nat.reference = nat.reference.with_owners(owners.clone());
    refused(&nat.clone_and(|nat| nat.sends(h1(), Endpoint { port: other, ..x() }, e1())), "another worker's");
    assert_eq!(nat.sends(h1(), Endpoint { port: own, ..x() }, e1()), Ok(Outcome::Outbound));
}
