//! Every reason to drop that the NAT itself gives: a packet that is dropped for exactly it, counted once, and what its sender is told.
//!
//! The reasons that the worker gives after the verdict are named, so that a new reason has to find its row here or there.

use std::collections::BTreeSet;

use portcullis_nat::policy::{DeviceId, PortSet, Protocol};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_testkit::builder::{ACK, Checksum, FIN, PacketBuilder, Query, SYN, endpoint};

mod common;

use common::{GATEWAY_INSIDE, GATEWAY_OUTSIDE, Gateway, INSIDE, OUTSIDE, Setup, X1, at, e1, e2, forward, h1, h2, own_mac};

/// What the sender hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Error(u8, u8),
}

use Told::{Error, Nothing};

type Frame = fn(&mut Gateway<'static>) -> (DeviceId, Vec<u8>);

struct Row {
    name: &'static str,
    setup: fn() -> Setup,
    frame: Frame,
    reason: DropReason,
    told: Told,
}

fn row(name: &'static str, reason: DropReason, told: Told, frame: Frame) -> Row {
    Row { name, setup: Setup::new, frame, reason, told }
}

fn row_in(setup: fn() -> Setup, name: &'static str, reason: DropReason, told: Told, frame: Frame) -> Row {
    Row { name, setup, frame, reason, told }
}

fn from_inside(gateway: &Gateway<'_>, packet: &PacketBuilder) -> (DeviceId, Vec<u8>) {
    (INSIDE, gateway.frame_to(0, packet))
}

fn from_outside(gateway: &Gateway<'_>, packet: &PacketBuilder) -> (DeviceId, Vec<u8>) {
    (OUTSIDE, gateway.frame_to(1, packet))
}

/// An ordinary packet from inside, with one byte of its frame changed.
fn spoilt(gateway: &Gateway<'_>, at: usize, value: u8) -> (DeviceId, Vec<u8>) {
    let (device, mut frame) = from_inside(gateway, &PacketBuilder::udp(h1(), e1()).payload_len(20));
    frame[at] = value;
    (device, frame)
}

fn one_port() -> Setup {
    Setup::new().policy(|policy| policy.externals[0].ports = PortSet::range(5000, 5000))
}

fn parse_rows() -> Vec<Row> {
    use DropReason as R;
    vec![
        row("an empty frame", R::Truncated, Nothing, |_| (INSIDE, Vec::new())),
        row("half an Ethernet header", R::Truncated, Nothing, |_| (INSIDE, vec![2; 9])),
        row("half an IPv4 header", R::Truncated, Nothing, |g| {
            let (device, frame) = from_inside(g, &PacketBuilder::udp(h1(), e1()));
            (device, frame[..30].to_vec())
        }),
        row("a datagram longer than its frame", R::Truncated, Nothing, |g| {
            let (device, frame) = from_inside(g, &PacketBuilder::udp(h1(), e1()).payload_len(20));
            (device, frame[..50].to_vec())
        }),
        row("IPv6", R::NotIpv4, Nothing, |g| spoilt(g, 12, 0x86)),
        row("version 5", R::BadIpHeader, Nothing, |g| spoilt(g, 14, 0x55)),
        row("a header shorter than one", R::BadIpHeader, Nothing, |g| spoilt(g, 14, 0x44)),
        row("a wrong header checksum", R::BadIpHeader, Nothing, |g| spoilt(g, 24, 0xEE)),
        row("UDP that claims more than there is", R::BadTransportHeader, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(h1(), e1()).udp_length(99))
        }),
        row("a tiny first fragment", R::BadTransportHeader, Nothing, |g| {
            from_inside(g, &PacketBuilder::raw(h1().address, e1().address, 6).payload_len(8).more_fragments(true))
        }),
        row("SYN and FIN", R::BadTcpFlags, Nothing, |g| from_inside(g, &PacketBuilder::tcp(h1(), e1(), SYN | FIN))),
        row("no flags", R::BadTcpFlags, Nothing, |g| from_inside(g, &PacketBuilder::tcp(h1(), e1(), 0))),
    ]
}

fn admission_rows() -> Vec<Row> {
    use DropReason as R;
    vec![
        row("a VLAN that is not configured", R::UnknownInterface, Nothing, |_| {
            (INSIDE, PacketBuilder::udp(h1(), e1()).vlan(Some(99)).mac([6; 6], own_mac(0)).build())
        }),
        row("a device that is not configured", R::UnknownInterface, Nothing, |g| {
            (DeviceId(9), g.frame_to(0, &PacketBuilder::udp(h1(), e1())))
        }),
        row("another station's frame", R::NotForUs, Nothing, |g| spoilt(g, 5, 0x77)),
        row("a link-layer broadcast", R::NotForUs, Nothing, |_| {
            (INSIDE, PacketBuilder::udp(h1(), e1()).mac([6; 6], [0xFF; 6]).build())
        }),
        row("with a loose source route", R::SourceRouted, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(h1(), e1()).options(&[131, 7, 4, 192, 0, 2, 9]))
        }),
        row("from outside, with a strict one behind another option", R::SourceRouted, Nothing, |g| {
            let external = g.external_of(h1(), e1());
            from_outside(g, &PacketBuilder::udp(e1(), external).options(&[1, 148, 4, 0, 0, 137, 7, 4, 192, 0, 2, 9]))
        }),
        row("a later fragment with a source route", R::SourceRouted, Nothing, |g| {
            let packet = PacketBuilder::udp(h1(), e1()).payload_len(100).options(&[131, 3, 4]);
            (INSIDE, g.fragments_to(0, &packet, 40).swap_remove(1))
        }),
        row("from 0.0.0.0", R::MartianSource, Nothing, |g| from_inside(g, &PacketBuilder::udp(endpoint("0.0.0.0:1"), e1()))),
        row("from loopback, outside", R::MartianSource, Nothing, |g| {
            from_outside(g, &PacketBuilder::udp(endpoint("127.0.0.1:1"), at(h1(), 1)))
        }),
        row("from multicast", R::MartianSource, Nothing, |g| from_inside(g, &PacketBuilder::udp(endpoint("224.0.0.5:1"), e1()))),
        row("to multicast", R::MartianDestination, Nothing, |g| from_inside(g, &PacketBuilder::udp(h1(), endpoint("239.1.1.1:1")))),
        row("to broadcast", R::MartianDestination, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(h1(), endpoint("255.255.255.255:1")))
        }),
        row("to loopback", R::MartianDestination, Nothing, |g| from_inside(g, &PacketBuilder::udp(h1(), endpoint("127.0.0.1:1")))),
        row("inside, from elsewhere", R::SpoofedInside, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(endpoint("192.0.2.9:1"), e1()))
        }),
        row("inside, from behind another inside interface", R::SpoofedInside, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(endpoint("10.7.0.2:1"), e1()))
        }),
        row("inside, from an external address", R::SpoofedInside, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(endpoint("203.0.113.10:1"), e1()))
        }),
        row("inside, from the gateway itself", R::SpoofedInside, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(endpoint("10.0.0.1:1"), e1()))
        }),
        row("inside, from the link's broadcast address", R::SpoofedInside, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(endpoint("10.0.0.255:1"), e1()))
        }),
        row_in(
            || Setup::new().network(|network| network.interfaces[0].prefixes = vec!["10.0.0.0/30".parse().expect("a prefix")]),
            "inside, from a prefix that is not configured",
            R::SpoofedInside,
            Nothing,
            |g| from_inside(g, &PacketBuilder::udp(endpoint("10.0.0.9:1"), e1())),
        ),
        row("outside, from an inside address", R::SpoofedOutside, Nothing, |g| {
            from_outside(g, &PacketBuilder::udp(h2(), endpoint("203.0.113.10:80")))
        }),
        row("outside, from an external address", R::SpoofedOutside, Nothing, |g| {
            from_outside(g, &PacketBuilder::udp(endpoint("203.0.113.10:80"), endpoint("203.0.113.10:80")))
        }),
        row("outside, from the gateway's inside address", R::SpoofedOutside, Nothing, |g| {
            from_outside(g, &PacketBuilder::udp(endpoint("10.0.0.1:1"), endpoint("203.0.113.10:80")))
        }),
        row("outside, from the gateway's outside address", R::SpoofedOutside, Nothing, |g| {
            from_outside(g, &PacketBuilder::udp(endpoint("203.0.113.1:1"), endpoint("203.0.113.10:80")))
        }),
    ]
}

fn router_rows() -> Vec<Row> {
    use DropReason as R;
    vec![
        row("AH from inside", R::UnsupportedProtocol, Nothing, |g| {
            from_inside(g, &PacketBuilder::raw(h1().address, e1().address, 51).payload_len(20))
        }),
        row("an address mask request", R::UnsupportedIcmp, Nothing, |g| {
            from_inside(g, &PacketBuilder::icmp(h1().address, e1().address, 17, 0, [0; 4]).payload(&[0; 4]))
        }),
        row("TTL 1", R::TtlExpired, Error(11, 0), |g| from_inside(g, &PacketBuilder::udp(h1(), e1()).ttl(1))),
        row("TTL 0", R::TtlExpired, Error(11, 0), |g| from_inside(g, &PacketBuilder::udp(h1(), e1()).ttl(0))),
        row("TTL 1, inbound", R::TtlExpired, Error(11, 0), |g| {
            let external = g.external_of(h1(), e1());
            from_outside(g, &PacketBuilder::udp(e1(), external).ttl(1))
        }),
        row("too big outbound", R::TooBig, Error(3, 4), |g| {
            from_inside(g, &PacketBuilder::udp(h1(), endpoint("192.0.2.130:1")).payload_len(1400).dont_fragment(true))
        }),
        row_in(
            || Setup::new().network(|network| network.interfaces[0].mtu = 600),
            "too big inbound",
            R::TooBig,
            Error(3, 4),
            |g| {
                let external = g.external_of(h1(), e1());
                from_outside(g, &PacketBuilder::udp(e1(), external).payload_len(600).dont_fragment(true))
            },
        ),
        row("to where no route leads", R::NoRoute, Error(3, 0), |g| {
            from_inside(g, &PacketBuilder::udp(h1(), endpoint("192.0.2.241:1")))
        }),
        row("to another inside network", R::WrongSide, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(h1(), endpoint("10.7.0.2:1")))
        }),
        row("to the gateway itself", R::WrongSide, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(h1(), endpoint("203.0.113.1:1")))
        }),
        row("to an interface that is not configured", R::WrongSide, Nothing, |g| {
            from_inside(g, &PacketBuilder::udp(h1(), endpoint("172.16.0.1:1")))
        }),
        row("outside, to an inside address", R::WrongSide, Nothing, |g| from_outside(g, &PacketBuilder::udp(e1(), h1()))),
        row("outside, an error to an inside address", R::WrongSide, Nothing, |g| {
            let quoted = PacketBuilder::udp(h1(), e1()).datagram();
            from_outside(g, &PacketBuilder::icmp_error(e1().address, h1().address, 3, 3, &quoted))
        }),
        row_in(
            || Setup::new().network(|network| network.interfaces[1].up = false),
            "out of an interface that is down",
            R::InterfaceDown,
            Nothing,
            |g| from_inside(g, &PacketBuilder::udp(h1(), e1())),
        ),
        row("a frame without room for the tag", R::NoFrame, Nothing, |g| {
            // It has to leave tagged, and the test gives this row's frame no room behind the packet.
            from_inside(g, &PacketBuilder::udp(h1(), endpoint("198.19.0.1:1")))
        }),
    ]
}

fn session_rows() -> Vec<Row> {
    use DropReason as R;
    vec![
        row("inbound to a free port", R::NoMapping, Nothing, |g| {
            from_outside(g, &PacketBuilder::udp(e1(), endpoint("203.0.113.10:4444")))
        }),
        row("an answer to no query, from inside", R::NoMapping, Nothing, |g| {
            from_inside(g, &PacketBuilder::query(h1().address, e1().address, Query::EchoReply, 5))
        }),
        row("inbound from a stranger", R::Filtered, Nothing, |g| {
            let external = g.external_of(h1(), e1());
            from_outside(g, &PacketBuilder::udp(at(e1(), 99), external))
        }),
        row("an error about no session", R::IcmpNoSession, Nothing, |g| {
            let quoted = PacketBuilder::udp(endpoint("203.0.113.10:4444"), e1()).datagram();
            from_outside(g, &PacketBuilder::icmp_error(e1().address, X1, 3, 3, &quoted))
        }),
        row("an error with a wrong checksum", R::BadIcmpChecksum, Nothing, |g| {
            let quoted = PacketBuilder::udp(endpoint("203.0.113.10:4444"), e1()).datagram();
            from_outside(g, &PacketBuilder::icmp_error(e1().address, X1, 3, 3, &quoted).checksum(Checksum::Wrong(7)))
        }),
        row("an error that quotes less than ports", R::BadEmbeddedPacket, Nothing, |g| {
            let quoted = PacketBuilder::udp(endpoint("203.0.113.10:4444"), e1()).datagram();
            from_outside(g, &PacketBuilder::icmp_error(e1().address, X1, 3, 3, &quoted).quote(24))
        }),
        row("an error to another than it quotes", R::BadEmbeddedPacket, Nothing, |g| {
            let quoted = PacketBuilder::udp(endpoint("203.0.113.12:4444"), e1()).datagram();
            from_outside(g, &PacketBuilder::icmp_error(e1().address, X1, 3, 3, &quoted))
        }),
        row("TCP data of no session", R::TcpNotSyn, Nothing, |g| from_inside(g, &PacketBuilder::tcp(h1(), e1(), ACK))),
        row_in(
            || Setup::new().policy(|policy| policy.externals[0].address = None),
            "no external address",
            R::NoExternalAddress,
            Error(3, 13),
            |g| from_inside(g, &PacketBuilder::udp(h1(), e1())),
        ),
        row_in(one_port, "no port left", R::PortsExhausted, Error(3, 13), |g| {
            g.external_of(h1(), e1());
            from_inside(g, &PacketBuilder::udp(h2(), e1()))
        }),
        row_in(
            || Setup::new().capacity(1, 9, 9),
            "no mapping left",
            R::MappingsFull,
            Error(3, 13),
            |g| {
                g.external_of(h1(), e1());
                from_inside(g, &PacketBuilder::udp(h2(), e1()))
            },
        ),
        row_in(
            || Setup::new().capacity(9, 1, 9),
            "no session left",
            R::SessionsFull,
            Error(3, 13),
            |g| {
                g.external_of(h1(), e1());
                from_inside(g, &PacketBuilder::udp(h2(), e1()))
            },
        ),
        row("GRE with a remote that another host speaks it with", R::OtherProtocolAmbiguous, Error(3, 13), |g| {
            g.inside(&PacketBuilder::raw(h1().address, e1().address, 47)).forwarded();
            from_inside(g, &PacketBuilder::raw(h2().address, e1().address, 47))
        }),
        row_in(
            || {
                let mut setup = Setup::new();
                setup.capacity.others = 1;
                setup
            },
            "no room for a translation of GRE",
            R::OtherProtocolsFull,
            Error(3, 13),
            |g| {
                g.inside(&PacketBuilder::raw(h1().address, e1().address, 47)).forwarded();
                from_inside(g, &PacketBuilder::raw(h1().address, e2().address, 47))
            },
        ),
        row_in(Setup::new, "a remote that the server of a new forward speaks to already", R::SessionConflict, Nothing, |g| {
            g.external_of_tcp(at(h1(), 80), e1());
            g.adopt(|policy| policy.forwards = vec![forward(Protocol::Tcp, 80, 80, &["10.0.0.2:80"])]);
            from_outside(g, &PacketBuilder::tcp(e1(), endpoint("203.0.113.10:80"), SYN))
        }),
        row("a later fragment of a first one that was dropped", R::FragmentWithoutFirst, Nothing, |g| {
            let first = PacketBuilder::tcp(h1(), e1(), ACK).more_fragments(true).payload_len(60);
            g.inside(&first).is_dropped(R::TcpNotSyn);
            from_inside(g, &PacketBuilder::raw(h1().address, e1().address, 6).offset(10).payload_len(64))
        }),
        row("one early fragment too many", R::FragmentsFull, Nothing, |g| {
            let later = PacketBuilder::raw(h1().address, e1().address, 17).offset(10).payload_len(64);
            (0..64).for_each(|_| assert!(matches!(g.inside(&later).verdict, Verdict::AwaitFirst(_))));
            from_inside(g, &later)
        }),
    ]
}

#[test]
fn each_reason_is_given_for_its_packet_and_told_where_an_error_is_due() {
    let rows = parse_rows().into_iter().chain(admission_rows()).chain(router_rows()).chain(session_rows());
    let mut given = BTreeSet::new();
    for Row { name, setup, frame, reason, told } in rows {
        let mut gateway = setup().build();
        let (device, bytes) = frame(&mut gateway);
        let (before, all_before) = (gateway.dropped(reason), gateway.nat.counters().dropped_in_all());
        let sessions = gateway.sessions();
        let out = gateway.frame_with_room(device, &bytes, if reason == DropReason::NoFrame { 0 } else { 64 });
        match told {
            Nothing => assert_eq!(out.verdict, Verdict::Drop(reason), "{name}"),
            Error(kind, code) => {
                let seen = out.answered(device, kind, code);
                let own = if device == INSIDE { GATEWAY_INSIDE } else { GATEWAY_OUTSIDE };
                assert_eq!(seen.source.address, own, "{name}");
                assert_eq!((&out.frame[..6], &out.frame[6..12]), (&bytes[6..12], &bytes[..6]), "{name}: back to its sender");
            }
        }
        let counters = gateway.nat.counters();
        assert_eq!((gateway.dropped(reason) - before, counters.dropped_in_all() - all_before), (1, 1), "{name}");
        assert_eq!(gateway.sessions(), sessions, "{name}: no session was made or changed");
        given.insert(reason);
    }
    // Given by the worker, after the verdict.
    let worker = [
        DropReason::NeighbourUnresolved,
        DropReason::TransmitFull,
        DropReason::PuntLimited,
        DropReason::HandOffFull,
        DropReason::HandOffLoop,
    ];
    let missing: Vec<_> = DropReason::ALL.iter().filter(|reason| !given.contains(reason) && !worker.contains(reason)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

/// Where the host shares the address, what nothing claims is the host's, and what a filter stops is dropped.
#[test]
fn on_a_shared_address_what_nothing_claims_is_the_hosts() {
    let shared = || Setup::new().policy(|policy| policy.externals[0].shared_with_host = true).build();
    let own = endpoint("203.0.113.10:22");
    let punted = [
        PacketBuilder::tcp(e1(), own, SYN),
        PacketBuilder::tcp(e1(), own, ACK),
        PacketBuilder::udp(e1(), own).payload_len(30),
        PacketBuilder::query(e1().address, X1, Query::Echo, 7),
        PacketBuilder::query(e1().address, X1, Query::EchoReply, 7),
        PacketBuilder::raw(e1().address, X1, 47).payload_len(20),
        PacketBuilder::icmp(e1().address, X1, 17, 0, [0; 4]),
        PacketBuilder::icmp_error(e1().address, X1, 3, 3, &PacketBuilder::udp(own, e1()).datagram()),
    ];
    for packet in &punted {
        let mut gateway = shared();
        let frame = gateway.frame_to(1, packet);
        let out = gateway.frame(OUTSIDE, &frame);
        assert_eq!((out.verdict, &out.frame), (Verdict::Punt, &frame), "as it came");
    }
    let mut gateway = shared();
    for packet in [PacketBuilder::tcp(h1(), own, SYN), PacketBuilder::tcp(h1(), own, ACK), PacketBuilder::udp(h1(), own)] {
        assert_eq!(gateway.inside(&packet).verdict, Verdict::Punt, "from inside too");
    }
    let external = gateway.external_of(h1(), e1());
    gateway.outside(&PacketBuilder::udp(at(e1(), 1), external)).is_dropped(DropReason::Filtered);
    assert_eq!(gateway.inside(&PacketBuilder::udp(h1(), own)).verdict, Verdict::Punt);
}
