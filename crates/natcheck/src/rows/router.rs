//! What a NAT owes as a router: hops, the type of service, ICMP errors of its own and when to send none.
//!
//! Sources: RFC 5508, REQ-9 and 10; RFC 1812, sections 4.3.2 and 5.3.1; RFC 4787, REQ-13; RFC 1191.

use std::net::Ipv4Addr;
use std::thread;

use portcullis_lab::builder::{ACK, PacketBuilder, SYN};
use portcullis_nat::policy::Endpoint;

use super::fragments::route;
use super::icmp_errors::error_comes;
use crate::bench::{Bench, STAYS_AWAY, Transport};
use crate::datagram::{Datagram, TCP, UDP};
use crate::plan;
use crate::row::{Check, Level, Row, require, violated};
use crate::setup::{CLAMPED, NARROW, NARROW_INSIDE, SILENT};
use crate::wire::Side;

use Level::{May, Must, Rec};
use Transport::{Icmp, Tcp, Udp};

pub(super) const ROWS: &[Row] = &[
    Row::new("4787-13", Must, "RFC 4787, REQ-13", "Too big with DF: Fragmentation Needed with the next hop's MTU", too_big)
        .with(&NARROW),
    Row::new("4787-13a", Must, "RFC 4787, REQ-13a", "Too big without DF: fragments, in order", |bench| split(bench, Side::Inside))
        .with(&NARROW),
    Row::new(
        "4787-13i",
        Must,
        "RFC 4787, REQ-13",
        "Too big inbound with DF: Fragmentation Needed that shows the external endpoint",
        too_big_inbound,
    )
    .with(&NARROW_INSIDE),
    Row::new("4787-13j", Must, "RFC 4787, REQ-13a", "Too big inbound without DF: fragments, in order", |bench| {
        split(bench, Side::Outside)
    })
    .with(&NARROW_INSIDE),
    Row::new(
        "mss",
        May,
        "RFC 9293, section 3.7.1",
        "Where asked to, a SYN's maximum segment size is lowered to the path's MTU less 40, both ways",
        segment_size,
    )
    .with(&CLAMPED),
    Row::new("5508-9", May, "RFC 5508, REQ-9", "A policy can suppress the NAT's own ICMP errors", suppressed).with(&SILENT),
    Row::new(
        "5508-10a",
        Must,
        "RFC 5508, REQ-10a",
        "Traceroute by UDP, ICMP and TCP shows the NAT, the routers and the end",
        traceroute,
    ),
    Row::new("5508-10d", Rec, "RFC 5508, REQ-10d", "DSCP and ECN are kept", type_of_service),
    Row::new(
        "5508-10e",
        Rec,
        "RFC 5508, REQ-10e",
        "No ICMP error about errors, later fragments, broadcast, multicast",
        no_errors_about,
    ),
    Row::new("5508-10f", Rec, "RFC 5508, REQ-10f", "The NAT's own ICMP errors are limited", limited),
    Row::new(
        "5508-10g",
        Must,
        "RFC 5508, REQ-5; RFC 1812, section 5.3.1",
        "The NAT's own error about an inbound packet shows external endpoints only",
        expires_inbound,
    ),
    Row::new("ttl", Must, "RFC 1812, section 5.3.1", "Each packet loses one hop of its TTL, in both directions", ttl),
];

fn traceroute(bench: &Bench) -> Check {
    for transport in [Udp, Icmp, Tcp] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let (first, _) = bench.opener(transport, host, remote);
        let shot = bench.send(Side::Inside, &first.ttl(1))?;
        let seen = error_comes(bench, &shot, (11, 0), host, remote)?;
        require!(
            seen.source() == plan::NAT_INSIDE,
            "{}: the first hop shows as {}, not as {}",
            transport.word(),
            seen.source(),
            plan::NAT_INSIDE
        );
        let (second, opened) = bench.opener(transport, host, remote);
        let out = bench.leaves(&second.ttl(2), |one| opened.is(one))?;
        let error = PacketBuilder::icmp_error(plan::ROUTER, out.source(), 11, 0, &out.0).quote(28);
        let shot = bench.send(Side::Outside, &error)?;
        let seen = error_comes(bench, &shot, (11, 0), host, remote)?;
        require!(seen.source() == plan::ROUTER, "{}: the second hop shows as {}", transport.word(), seen.source());
        let (last, opened) = bench.opener(transport, host, remote);
        let out = bench.leaves(&last.ttl(3), |one| opened.is(one))?;
        if transport == Udp {
            let shot = bench.send(Side::Outside, &PacketBuilder::icmp_error(remote.address, out.source(), 3, 3, &out.0))?;
            error_comes(bench, &shot, (3, 3), host, remote)?;
        } else {
            bench.reply(transport, remote, out.from(), host, "from the end of the trace")?;
        }
    }
    Ok(String::new())
}

/// A handshake over an outside of 1400 bytes: hosts that announce more are shown 1360 of each other, those that announce less what they said.
fn segment_size(bench: &Bench) -> Check {
    for (announced, wanted) in [(1460_u16, 1360_u16), (536, 536)] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let (ours, theirs) = (bench.number(), bench.number());
        let options = [&[1, 2, 4], &announced.to_be_bytes()[..], &[4, 2, 1]].concat();
        let syn = PacketBuilder::tcp(host, remote, SYN).numbers(ours, 0).tcp_options(&options);
        let out = bench.leaves(&syn, |one| one.protocol() == TCP && one.sequence() == ours)?;
        let answer = PacketBuilder::tcp(remote, out.from(), SYN | ACK).numbers(theirs, ours.wrapping_add(1)).tcp_options(&options);
        let shot = bench.send(Side::Outside, &answer)?;
        let back = bench.expect(&shot, Side::Inside, "the SYN+ACK", |one| one.protocol() == TCP && one.sequence() == theirs)?;
        for (seen, side) in [(&out, Side::Outside), (&back, Side::Inside)] {
            let shown = &seen.segment()[20..];
            let expected = [&options[..3], &wanted.to_be_bytes()[..], &options[5..]].concat();
            require!(shown == expected, "a size of {announced} came {} as options {shown:02x?}, not {expected:02x?}", side.word());
        }
    }
    Ok(String::new())
}

fn ttl(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let (packet, opened) = bench.opener(Udp, host, remote);
    let out = bench.leaves(&packet.ttl(33), |one| opened.is(one))?;
    let (packet, opened) = bench.inbound(Udp, remote, out.from());
    let shot = bench.send(Side::Outside, &packet.ttl(44))?;
    let back = bench.expect(&shot, Side::Inside, "the reply", |one| opened.is(one))?;
    require!((out.ttl(), back.ttl()) == (32, 43), "TTL 33 came outside as {}, TTL 44 came inside as {}", out.ttl(), back.ttl());
    Ok(String::new())
}

fn type_of_service(bench: &Bench) -> Check {
    for tos in [0xB8, 0x28, 0x01, 0x02, 0x03] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let (packet, opened) = bench.opener(Udp, host, remote);
        let out = bench.leaves(&packet.tos(tos), |one| opened.is(one))?;
        let (packet, opened) = bench.inbound(Udp, remote, out.from());
        let shot = bench.send(Side::Outside, &packet.tos(tos))?;
        let back = bench.expect(&shot, Side::Inside, "the reply", |one| opened.is(one))?;
        require!(
            (out.tos(), back.tos()) == (tos, tos),
            "type of service {tos:#04x} came outside as {:#04x}, inside as {:#04x}",
            out.tos(),
            back.tos()
        );
    }
    Ok(String::new())
}

/// RFC 1812, section 4.3.2.7. All have a TTL that runs out at the NAT.
fn no_errors_about(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let quoted = PacketBuilder::udp(remote, host).payload(&bench.mark()).datagram();
    let udp = || PacketBuilder::udp(host, remote).payload(&bench.mark()).ttl(1);
    let broadcast = |address: Ipv4Addr| PacketBuilder::udp(host, Endpoint { address, port: 9 }).payload(&bench.mark()).ttl(1);
    let cases = [
        ("an ICMP error", PacketBuilder::icmp_error(host.address, remote.address, 3, 3, &quoted).ttl(1)),
        ("a later fragment", udp().offset(64)),
        ("a multicast", broadcast(Ipv4Addr::new(224, 0, 1, 7))),
        ("a broadcast", broadcast(Ipv4Addr::BROADCAST)),
    ];
    for (what, packet) in cases {
        let shot = bench.send(Side::Inside, &packet)?;
        bench.expect_none(&shot, Side::Inside, &format!("no ICMP error about {what}"), |one| {
            one.is_error() && one.destination() == host.address
        })?;
    }
    // The same host is told about what it may be told about.
    let shot = bench.send(Side::Inside, &udp())?;
    error_comes(bench, &shot, (11, 0), host, remote)?;
    Ok(String::new())
}

fn limited(bench: &Bench) -> Check {
    /// Packets whose TTL runs out, as fast as they can be sent.
    const MANY: usize = 4000;
    let (host, remote) = (bench.endpoint(), bench.remote());
    let packet = PacketBuilder::udp(host, remote).payload(&bench.mark()).ttl(1);
    let shot = bench.now(Side::Inside, "packets whose TTL runs out");
    for _ in 0..MANY {
        bench.send(Side::Inside, &packet)?;
    }
    thread::sleep(STAYS_AWAY * 2);
    let told = bench.all(&shot, Side::Inside, |one| one.icmp() == Some((11, 0)) && one.destination() == host.address).len();
    require!(told > 0, "{MANY} packets whose TTL ran out at once: not one was answered");
    require!(told < MANY / 2, "{MANY} packets whose TTL ran out at once: {told} were answered");
    Ok(format!("{told} answers to {MANY} packets at once"))
}

fn suppressed(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let shot = bench.send(Side::Inside, &PacketBuilder::udp(host, remote).payload(&bench.mark()).ttl(1))?;
    bench.expect_none(&shot, Side::Inside, "no ICMP error", Datagram::is_error)?;
    Ok(String::new())
}

/// The narrower wire carries this much.
const MTU: u16 = NARROW.mtu.1;
const _: () = assert!(NARROW_INSIDE.mtu.0 == MTU, "both narrow wires are as narrow");

fn too_big(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    bench.open(Udp, host, remote)?;
    let shot = bench.send(Side::Inside, &PacketBuilder::udp(host, remote).dont_fragment(true).payload_len(1450))?;
    let seen = error_comes(bench, &shot, (3, 4), host, remote)?;
    require!(seen.next_hop_mtu() == MTU, "the next hop's MTU, {MTU}, came as {}: {seen}", seen.next_hop_mtu());
    let number = bench.number();
    let syn = bench.leaves(&PacketBuilder::tcp(host, remote, SYN).numbers(number, 0), |one| {
        one.protocol() == TCP && one.sequence() == number
    })?;
    if syn.source() == host.address {
        violated!("a SYN left untranslated: {syn}");
    }
    Ok(String::new())
}

/// What the NAT itself says about a packet from outside: to the sender, from its outside address, with the packet as it was sent.
fn error_outside(bench: &Bench, packet: &PacketBuilder, kind: (u8, u8)) -> Check<Datagram> {
    let sent = Datagram(packet.datagram());
    let shot = bench.send(Side::Outside, packet)?;
    let what = format!("ICMP {}/{} for {}, quoting what it sent", kind.0, kind.1, sent.source());
    let seen = bench.expect(&shot, Side::Outside, &what, |one| {
        one.icmp() == Some(kind)
            && one.destination() == sent.source()
            && one.quote().is_some_and(|quote| (quote.from(), quote.to()) == (sent.from(), sent.to()))
    })?;
    require!(!plan::is_inside(seen.source()), "the error came from an inside address: {seen}");
    Ok(seen)
}

fn expires_inbound(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    for to in [external, Endpoint { address: plan::POOL[0], port: plan::UDP_FORWARD }] {
        error_outside(bench, &PacketBuilder::udp(remote, to).payload(&bench.mark()).ttl(1), (11, 0))?;
    }
    Ok(String::new())
}

fn too_big_inbound(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    let seen = error_outside(bench, &PacketBuilder::udp(remote, external).dont_fragment(true).payload_len(1450), (3, 4))?;
    require!(seen.next_hop_mtu() == MTU, "the next hop's MTU, {MTU}, came as {}: {seen}", seen.next_hop_mtu());
    Ok(String::new())
}

/// A datagram that the next wire cannot carry in one piece.
fn split(bench: &Bench, from: Side) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    let (source, to, seen_as, seen_to) = route(from, host, remote, external);
    let packet = PacketBuilder::udp(source, to).id(0x77AA).payload_len(1450);
    let wanted = Datagram(packet.datagram());
    let shot = bench.send(from, &packet)?;
    let is_piece =
        |one: &Datagram| one.protocol() == UDP && one.source() == seen_as.address && one.destination() == seen_to.address;
    bench.expect(&shot, from.other(), "the last fragment", |one| is_piece(one) && one.offset() > 0 && !one.more_fragments())?;
    let pieces = bench.all(&shot, from.other(), |one| is_piece(one) && one.is_fragment());
    require!(pieces.iter().all(|one| one.0.len() <= usize::from(MTU)), "a fragment is larger than {MTU}: {pieces:?}");
    require!(pieces.is_sorted_by_key(Datagram::offset), "fragments out of order: {pieces:?}");
    let whole: Vec<u8> = pieces.iter().flat_map(|one| one.segment().to_vec()).collect();
    require!(whole.get(8..) == wanted.segment().get(8..), "{} fragments do not make the payload that was sent", pieces.len());
    Ok(format!("{} fragments", pieces.len()))
}
