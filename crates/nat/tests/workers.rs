//! Several workers: each packet on its owner, whichever worker received it, and nothing that one worker would do otherwise.
//!
//! The property over numbers of workers and random traffic is in `testkit`; here are the rows by hand, and what one worker says to a
//! packet of another's. Blind spot: workers that adopt new rules one after the other.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{DeviceId, Endpoint, Filtering, MappingBehaviour, PortSet, Protocol};
use portcullis_nat::verdict::{DropReason, Errand, HandOffCause, Verdict};
use portcullis_nat::{Packet, policy};
use portcullis_steering::WorkerId;
use portcullis_testkit::builder::{ACK, PacketBuilder, Query, SYN, endpoint};

mod common;

use common::{Gateway, INSIDE, OUTSIDE, Setup, X1, X2, at, e1, e2, external, forward};

const WORKERS: u16 = 4;

/// One worker, and several.
const FLEETS: [u16; 2] = [1, WORKERS];

fn with(workers: u16, change: impl FnOnce(&mut policy::Policy)) -> Gateway<'static> {
    Setup::new().workers(workers).policy(change).build()
}

fn host(last: u8, port: u16) -> Endpoint {
    Endpoint { address: Ipv4Addr::new(10, 0, 0, last), port }
}

/// Hosts of different owners in many pairs.
fn pairs() -> impl Iterator<Item = (Endpoint, Endpoint)> {
    (2..14_u8).flat_map(|one| [3, 5, 8].map(|step| (host(one, 5000), host(one + step, 6000))))
}

/// What a worker says to a frame from a device, and whether it left it as it came.
fn ask(gateway: &mut Gateway<'_>, worker: u16, device: DeviceId, frame: &[u8], handed: u8) -> (Verdict, bool) {
    let mut memory = frame.to_vec();
    memory.resize(frame.len() + 64, 0);
    let mut packet = [Packet { handed, ..Packet::received(&mut memory, frame.len()) }];
    let mut verdicts = Vec::new();
    gateway.nat.nat(usize::from(worker)).process(&mut packet, device, gateway.now, &mut verdicts);
    let len = packet[0].len;
    (verdicts[0], memory[..len] == *frame)
}

#[test]
fn what_another_worker_owns_is_handed_to_it_as_it_came_with_the_cause() {
    let mut gateway = with(WORKERS, |policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &["10.0.0.20:8080"])]);
    let (inside, outside) = (host(2, 7), at(e1(), 9));
    let (x, owners) = (Endpoint { address: X1, port: 4242 }, gateway.owners.clone());
    let [subscriber, external] = [owners.of_subscriber(inside.address), owners.of_external(X1, 4242)];
    let remote = owners.of_remote(outside.address);
    let quoted = |source, destination| PacketBuilder::udp(source, destination).datagram();
    let gre = |source, destination| PacketBuilder::raw(source, destination, 47).datagram();
    let error = |from: Endpoint, to: Endpoint, quoted: &[u8]| PacketBuilder::icmp_error(from.address, to.address, 3, 1, quoted);
    let rows = [
        (0, PacketBuilder::udp(inside, outside), subscriber, HandOffCause::Misplaced),
        (0, PacketBuilder::udp(inside, x), subscriber, HandOffCause::Misplaced),
        (0, PacketBuilder::query(inside.address, outside.address, Query::Echo, 9), subscriber, HandOffCause::Misplaced),
        (0, error(host(9, 1), outside, &quoted(outside, inside)), subscriber, HandOffCause::IcmpError),
        (0, error(host(9, 1), x, &quoted(x, inside)), subscriber, HandOffCause::IcmpError),
        (0, PacketBuilder::udp(inside, outside).more_fragments(true).payload_len(64), subscriber, HandOffCause::Fragment),
        (1, PacketBuilder::udp(outside, x), external, HandOffCause::Misplaced),
        (1, PacketBuilder::query(outside.address, X1, Query::EchoReply, 4242), external, HandOffCause::IcmpQuery),
        (1, error(outside, x, &quoted(x, outside)), external, HandOffCause::IcmpError),
        (1, PacketBuilder::raw(outside.address, X1, 17).id(4242).offset(9), external, HandOffCause::Fragment),
        (0, PacketBuilder::raw(inside.address, outside.address, 47), remote, HandOffCause::OtherProtocol),
        (1, PacketBuilder::raw(outside.address, X1, 47).offset(9), remote, HandOffCause::OtherProtocol),
        (0, error(inside, outside, &gre(outside.address, inside.address)), remote, HandOffCause::IcmpError),
        (1, error(outside, x, &gre(X1, outside.address)), remote, HandOffCause::IcmpError),
        (
            1,
            PacketBuilder::tcp(outside, Endpoint { port: 80, ..x }, SYN),
            owners.of_subscriber(Ipv4Addr::new(10, 0, 0, 20)),
            HandOffCause::Forward,
        ),
    ];
    for (interface, packet, owner, cause) in rows {
        let device = if interface == 0 { INSIDE } else { OUTSIDE };
        let frame = gateway.frame_to(interface, &packet);
        for worker in (0..WORKERS).filter(|&worker| worker != owner.0) {
            let verdict = Verdict::HandOff { to: owner, cause, errand: Errand::Whole };
            assert_eq!(ask(&mut gateway, worker, device, &frame, 0), (verdict, true), "{cause:?} at worker {worker}");
        }
        let at_home = ask(&mut gateway, owner.0, device, &frame, 1).0;
        assert!(!matches!(at_home, Verdict::HandOff { errand: Errand::Whole, .. }), "{cause:?}: {at_home:?}");
    }
}

#[test]
fn a_packet_that_goes_round_and_round_is_dropped() {
    let mut gateway = with(WORKERS, |_| {});
    let inside = host(2, 7);
    let frame = gateway.frame_to(0, &PacketBuilder::udp(inside, e1()));
    let stranger = (gateway.owners.of_subscriber(inside.address).0 + 1) % WORKERS;
    assert!(matches!(ask(&mut gateway, stranger, INSIDE, &frame, 3).0, Verdict::HandOff { .. }));
    assert_eq!(ask(&mut gateway, stranger, INSIDE, &frame, 4).0, Verdict::Drop(DropReason::HandOffLoop));
}

#[test]
fn a_packet_is_counted_as_received_once_however_often_it_is_handed_over() {
    for workers in FLEETS {
        let mut gateway = with(workers, |policy| policy.filtering_udp = Filtering::EndpointIndependent);
        for (one, other) in pairs() {
            let external = gateway.external_of(other, e1());
            let frames = gateway.fragments_to(0, &PacketBuilder::udp(one, external).payload_len(300), 104);
            for frame in frames.iter().rev() {
                gateway.frame(INSIDE, frame);
            }
        }
        assert_eq!((gateway.count(Counter::InsideReceived), gateway.count(Counter::Hairpin)), (36 * 4, 36 * 3));
        assert_eq!(gateway.count(Counter::InsideReceivedBytes), 36 * (42 + 2 * (34 + 104) + 34 + 100));
    }
}

/// Answers need no other worker: where the device hashes as the owners do, they come to the one that translated.
#[test]
fn the_external_endpoint_of_each_mapping_is_its_subscribers_owners() {
    for behaviour in
        [MappingBehaviour::EndpointIndependent, MappingBehaviour::AddressDependent, MappingBehaviour::AddressAndPortDependent]
    {
        let mut gateway = with(WORKERS, |policy| {
            policy.mapping = behaviour;
            policy.externals = vec![external(X1), external(X2)];
        });
        let mut seen = BTreeSet::new();
        for last in 2..40 {
            for port in 0..20 {
                let inside = host(last, 5000 + port);
                let remote = at(e1(), port % 3 + 1);
                let udp = gateway.external_of(inside, remote);
                let tcp = gateway.external_of_tcp(inside, remote);
                let echo =
                    gateway.inside(&PacketBuilder::query(inside.address, e1().address, Query::Echo, port)).forwarded().source;
                for given in [udp, tcp, echo] {
                    let owner = gateway.owners.of_external(given.address, given.port);
                    assert_eq!(owner, gateway.owners.of_subscriber(inside.address), "{given:?}");
                }
                assert!(seen.insert((17, udp)) && seen.insert((6, tcp)) && seen.insert((1, echo)), "each is given once");
                assert_eq!(gateway.outside(&PacketBuilder::udp(remote, udp)).delivered().destination, inside);
            }
        }
        assert_eq!(gateway.nat.counters().dropped_in_all(), 0);
    }
}

#[test]
fn each_worker_gives_its_share_of_the_ports_to_the_last_one() {
    let mut gateway = with(WORKERS, |policy| policy.externals[0].ports = PortSet::range(2000, 2099));
    let mut given = BTreeSet::new();
    let mut full = BTreeSet::new();
    for port in 0..40 {
        for last in 2..30 {
            let out = gateway.inside(&PacketBuilder::udp(host(last, 4000 + port), e1()));
            if out.verdict == Verdict::Transmit(OUTSIDE) {
                assert!(given.insert(out.forwarded().source.port));
            } else {
                out.answered(INSIDE, 3, 13);
                full.insert(gateway.owners.of_subscriber(host(last, 0).address));
            }
        }
    }
    assert_eq!(given, (2000..2100).collect(), "each port is given, and once");
    assert_eq!(full.len(), usize::from(WORKERS), "and then each worker has none left");
    let udp = gateway.nat.port_use().into_iter().find(|usage| usage.protocol == Protocol::Udp).expect("an address");
    assert_eq!((udp.used, udp.limit), (100, 100));
}

#[test]
fn when_an_address_changes_a_worker_gives_ports_that_are_its_own_of_the_new_one() {
    let mut gateway = with(WORKERS, |_| {});
    for address in [X2, X1, X2] {
        gateway.adopt(|policy| policy.externals[0].address = Some(address));
        gateway.wait(10_000);
        for last in 2..30 {
            let given = gateway.external_of(host(last, 9), e1());
            assert_eq!(given.address, address);
            assert_eq!(gateway.owners.of_external(address, given.port), gateway.owners.of_subscriber(host(last, 9).address));
        }
    }
}

/// "REQ-9: A NAT MUST support "Hairpinning"", with the external source, and each side's filter: on one worker and on several.
#[test]
fn rfc4787_req9_hairpinning_is_the_same_between_workers() {
    let rows = [
        (Filtering::EndpointIndependent, [true, true, true]),
        (Filtering::AddressDependent, [false, true, true]),
        (Filtering::AddressAndPortDependent, [false, true, true]),
    ];
    for workers in FLEETS {
        for (filtering, passes) in rows {
            let mut gateway = with(workers, |policy| policy.filtering_udp = filtering);
            for (number, (one, other)) in pairs().enumerate() {
                // Two hosts that punch holes: the first packet is lost at the other's filter, and has opened its own side.
                let (one, other) = (at(one, 100 + number as u16), at(other, 200 + number as u16));
                let [first, second] = [one, other].map(|host| gateway.external_of(host, e1()));
                let tries = [(one, first, other, second), (other, second, one, first), (one, first, other, second)];
                for ((from, shown, to, aim), passes) in tries.into_iter().zip(passes) {
                    let out = gateway.inside(&PacketBuilder::udp(from, aim));
                    if passes {
                        let seen = out.delivered();
                        assert_eq!((seen.source, seen.destination, seen.ttl), (shown, to, 63));
                    } else {
                        out.is_dropped(DropReason::Filtered);
                    }
                }
            }
        }
    }
}

/// RFC 5382, REQ-8, RFC 5508, REQ-7, and RFC 7857, section 12: a connection and an error about it, and the same of a query, between
/// subscribers of different workers.
#[test]
fn rfc5508_req7_hairpinned_errors_and_queries_find_both_workers() {
    for workers in FLEETS {
        let mut gateway = with(workers, |policy| {
            policy.filtering_udp = Filtering::EndpointIndependent;
            policy.filtering_tcp = Filtering::EndpointIndependent;
        });
        for (number, (one, other)) in pairs().enumerate() {
            let (one, other) = (at(one, 100 + number as u16), at(other, 200 + number as u16));
            let [shown, aim] = [one, other].map(|host| gateway.external_of_tcp(host, e2()));
            let seen = gateway.inside(&PacketBuilder::tcp(one, aim, SYN)).delivered();
            assert_eq!((seen.source, seen.destination), (shown, other));
            let seen = gateway.inside(&PacketBuilder::tcp(other, shown, SYN | ACK)).delivered();
            assert_eq!((seen.source, seen.destination), (aim, one));

            let quoted = PacketBuilder::tcp(shown, other, SYN).datagram();
            let seen = gateway.inside(&PacketBuilder::icmp_error(other.address, X1, 3, 3, &quoted)).delivered();
            assert_eq!((seen.source.address, seen.destination.address), (X1, one.address));
            assert_eq!((seen.quoted().source, seen.quoted().destination), (one, aim));

            // RFC 7857, section 12: a query to the other host's identifier, its answer, and an error about either.
            let echo = |host: Endpoint, query, id| PacketBuilder::query(host.address, X1, query, id);
            let asked = gateway.inside(&PacketBuilder::query(other.address, e1().address, Query::Echo, 7)).forwarded().source.port;
            let query = gateway.inside(&echo(one, Query::Echo, asked));
            let id = query.delivered().destination.port;
            assert_eq!((query.delivered().source.address, query.delivered().destination.address), (X1, other.address));
            let answer = gateway.inside(&echo(other, Query::EchoReply, id));
            assert_eq!(answer.delivered().destination, Endpoint { port: asked, ..one });
            for (quoted, from, to, id) in [(query, other, one, asked), (answer, one, other, id)] {
                let error = PacketBuilder::icmp_error(from.address, X1, 3, 1, &quoted.frame[14..]);
                let seen = gateway.inside(&error).delivered();
                assert_eq!((seen.destination.address, seen.quoted().source), (to.address, Endpoint { port: id, ..to }));
            }
        }
        let counters = gateway.nat.counters();
        assert_eq!((counters.get(Counter::IcmpErrorsTranslated), counters.dropped_in_all()), (3 * 36, 0));
    }
}

#[test]
fn servers_of_one_forward_may_be_several_workers() {
    let servers = ["10.0.0.20:80", "10.0.0.21:80", "10.0.0.22:80", "10.0.0.23:80", "10.0.0.24:80"];
    for workers in FLEETS {
        let mut gateway = with(workers, |policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &servers)]);
        let front = endpoint("203.0.113.10:80");
        let mut drawn = BTreeSet::new();
        for port in 1..100 {
            let remote = at(e1(), port);
            let server = gateway.outside(&PacketBuilder::tcp(remote, front, SYN)).delivered().destination;
            assert_eq!(gateway.inside(&PacketBuilder::tcp(server, remote, SYN | ACK)).forwarded().source, front);
            assert_eq!(gateway.outside(&PacketBuilder::tcp(remote, front, ACK)).delivered().destination, server);
            let quoted = PacketBuilder::tcp(front, remote, ACK).datagram();
            let seen = gateway.outside(&PacketBuilder::icmp_error(e2().address, X1, 3, 1, &quoted)).delivered();
            assert_eq!((seen.destination.address, seen.quoted().source), (server.address, server));
            drawn.insert(server);

            let client = host(2 + port as u8 % 9, 100 + port);
            let seen = gateway.inside(&PacketBuilder::tcp(client, front, SYN)).delivered();
            let answer = gateway.inside(&PacketBuilder::tcp(seen.destination, seen.source, SYN | ACK)).delivered();
            assert_eq!((answer.source, answer.destination), (front, client));
        }
        assert_eq!(drawn.len(), servers.len());
        assert_eq!(gateway.nat.counters().dropped_in_all(), 0);
    }
}

/// On an address that the host shares, a TCP packet of no session is the host's, unless a mapping claims the port, which only the owner
/// of the external endpoint knows.
#[test]
fn a_stray_from_inside_is_the_hosts_unless_any_worker_has_claimed_its_destination() {
    for workers in FLEETS {
        let mut gateway = with(workers, |policy| policy.externals[0].shared_with_host = true);
        for (one, other) in pairs() {
            let claimed = gateway.external_of_tcp(other, e1());
            gateway.inside(&PacketBuilder::tcp(one, claimed, ACK)).is_dropped(DropReason::TcpNotSyn);
            let free = at(claimed, if claimed.port > 9000 { claimed.port - 8000 } else { claimed.port + 8000 });
            let out = gateway.inside(&PacketBuilder::tcp(one, free, ACK));
            assert_eq!(out.verdict, Verdict::Punt, "{free:?}");
            assert_eq!(out.frame, gateway.frame_to(0, &PacketBuilder::tcp(one, free, ACK)));
        }
    }
}

#[test]
fn a_simultaneous_open_meets_at_one_worker() {
    for workers in FLEETS {
        let mut gateway = with(workers, |_| {});
        for last in 2..20 {
            let inside = host(last, 77);
            let external = gateway.external_of_tcp(inside, e1());
            assert_eq!(gateway.outside(&PacketBuilder::tcp(e1(), external, SYN)).delivered().destination, inside);
            gateway.outside(&PacketBuilder::tcp(e1(), external, SYN | ACK)).delivered();
            gateway.inside(&PacketBuilder::tcp(inside, e1(), SYN | ACK)).forwarded();
        }
        let states: BTreeSet<_> = gateway.sessions().iter().map(|session| format!("{:?}", session.state)).collect();
        assert_eq!(states.into_iter().collect::<Vec<_>>(), ["Established"]);
    }
}

#[test]
fn one_worker_owns_all_and_hands_nothing_over() {
    let mut gateway = with(1, |_| {});
    gateway.external_of(host(2, 7), e1());
    assert!(HandOffCause::ALL.iter().all(|&cause| gateway.count(Counter::handed_off(cause)) == 0));
    assert_eq!(gateway.owners.of_external(X1, 9), WorkerId(0));
}
