//! Fragments: in order, out of order, mixed, in both directions; their identifications; and a flood of them.
//!
//! Sources: RFC 4787, REQ-14; RFC 6864, section 5.3.1; RFC 7857, section 10; RFC 1858.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_lab::builder::{PacketBuilder, Query, SYN};
use portcullis_nat::policy::Endpoint;

use crate::bench::{Bench, COMES, Shot, Transport};
use crate::datagram::{Datagram, ICMP, UDP};
use crate::plan;
use crate::row::{Check, Level, Row, Trouble, require};
use crate::setup::FLOODED;
use crate::wire::Side;

use Level::{Must, Should};
use Transport::Udp;

pub(super) const ROWS: &[Row] = &[
    Row::new("4787-14", Must, "RFC 4787, REQ-14", "Fragments in order, out of order and interleaved, outbound", |bench| {
        orders(bench, Side::Inside)
    }),
    Row::new("4787-14i", Must, "RFC 4787, REQ-14", "Fragments in order, out of order and interleaved, inbound", |bench| {
        orders(bench, Side::Outside)
    }),
    Row::new(
        "4787-14a",
        Must,
        "RFC 4787, REQ-14a",
        "A flood of fragments harms neither whole packets nor other fragments in order",
        flood,
    )
    .with(&FLOODED),
    Row::new(
        "7857-10",
        Should,
        "RFC 7857, section 10",
        "Identifications of two hosts' fragments do not collide outside",
        identifications,
    ),
    Row::new("tiny-fragments", Should, "RFC 1858, section 3", "A TCP header cut into fragments is not passed on", tiny),
    Row::new("4787-14h", Must, "RFC 4787, REQ-9 and 14", "Fragments in order and out of order, hairpinned", hairpinned),
    Row::new("5508-1f", Must, "RFC 5508, REQ-1", "Large pings and their replies pass in fragments", large_pings),
];

/// Bytes of the payload, and of each piece behind the IP header.
const SIZES: (usize, usize) = (3000, 1000);

/// How a datagram's fragments are sent, and its name.
type Order = (&'static str, fn(&mut Vec<Vec<u8>>));
const ORDERS: [Order; 4] = [
    ("in order", |_| {}),
    ("last first", |pieces| pieces.reverse()),
    ("first one last", |pieces| pieces.rotate_left(1)),
    ("first two swapped", |pieces| pieces.swap(0, 1)),
];

/// The datagrams that fragments on a side make up: the payload behind eight bytes of UDP, by sender, receiver and identification.
fn reassembled(bench: &Bench, shot: &Shot, side: Side, to: Endpoint) -> Vec<(Datagram, Vec<u8>)> {
    let mut sets: BTreeMap<_, Vec<Datagram>> = BTreeMap::new();
    for one in bench.all(shot, side, |one| matches!(one.protocol(), UDP | ICMP) && one.destination() == to.address) {
        sets.entry((one.source(), one.id())).or_default().push(one);
    }
    sets.into_values().filter_map(whole).collect()
}

/// One datagram of its pieces: the first piece, and the whole segment. None while something is missing.
fn whole(mut pieces: Vec<Datagram>) -> Option<(Datagram, Vec<u8>)> {
    pieces.sort_by_key(Datagram::offset);
    pieces.dedup();
    let mut bytes = Vec::new();
    for piece in &pieces {
        (piece.offset() == bytes.len()).then(|| bytes.extend_from_slice(piece.segment()))?;
    }
    let complete = pieces.last().is_some_and(|last| !last.more_fragments());
    complete.then(|| (pieces.swap_remove(0), bytes))
}

/// Waits for a datagram whose payload is this one.
fn comes_whole(bench: &Bench, shot: &Shot, side: Side, to: Endpoint, payload: &[u8], order: &str) -> Check<Datagram> {
    let start = Instant::now();
    loop {
        let found = reassembled(bench, shot, side, to);
        if let Some((first, _)) = found.into_iter().find(|(_, bytes)| bytes.get(8..) == Some(payload)) {
            return Ok(first);
        }
        if start.elapsed() > COMES {
            let came = bench.all(shot, side, |one| one.protocol() == UDP && one.destination() == to.address);
            return Err(Trouble::Missing(format!(
                "sent {}: a datagram of {} bytes in fragments, {order}; expected {}: all of it; came: {} fragments that do not make it up",
                side.other().word(),
                payload.len(),
                side.word(),
                came.len()
            )));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn orders(bench: &Bench, from: Side) -> Check {
    for (words, order) in ORDERS {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let external = bench.open(Udp, host, remote)?;
        let (source, to, seen_as, seen_to) = route(from, host, remote, external);
        let packet = PacketBuilder::udp(source, to).id(bench.number() as u16).payload_len(SIZES.0);
        let payload = packet.datagram()[28..].to_vec();
        let shot = bench.send_fragments(from, &packet, SIZES.1, order)?;
        let first = comes_whole(bench, &shot, from.other(), seen_to, &payload, words)?;
        require!((first.from(), first.to()) == (seen_as, seen_to), "fragments sent {words} came as {first}");
    }
    interleaved(bench, from)?;
    Ok(String::new())
}

/// Who sends to whom, and how it looks on the other side.
pub(super) const fn route(
    from: Side,
    host: Endpoint,
    remote: Endpoint,
    external: Endpoint,
) -> (Endpoint, Endpoint, Endpoint, Endpoint) {
    match from {
        Side::Inside => (host, remote, external, remote),
        Side::Outside => (remote, external, remote, host),
    }
}

/// Two datagrams' fragments, one by one in turn.
fn interleaved(bench: &Bench, from: Side) -> Check<()> {
    let mut sent = Vec::new();
    let shot = bench.now(from, "two datagrams in turn");
    for number in 0..2_u8 {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let external = bench.open(Udp, host, remote)?;
        let (source, to, _, seen_to) = route(from, host, remote, external);
        let payload = vec![0x40 + number; SIZES.0];
        let (own, nat) = bench.end(from).macs();
        let packet = PacketBuilder::udp(source, to).id(bench.number() as u16).payload(&payload).mac(own, nat);
        sent.push((packet.fragments(SIZES.1), payload, seen_to));
    }
    for number in 0..sent[0].0.len() {
        for (pieces, ..) in &sent {
            bench.end(from).send_frame(&pieces[number])?;
        }
    }
    for (_, payload, to) in &sent {
        comes_whole(bench, &shot, from.other(), *to, payload, "in turn with another's")?;
    }
    Ok(())
}

/// Fragments of a host to the UDP forward.
fn hairpinned(bench: &Bench) -> Check {
    let forward = Endpoint { address: plan::POOL[0], port: plan::UDP_FORWARD };
    let server = Endpoint { address: plan::SERVER, port: plan::UDP_SERVICE };
    for (words, order) in ORDERS {
        let host = bench.endpoint();
        let packet =
            PacketBuilder::udp(host, forward).id(bench.number() as u16).payload(&[&bench.mark(), [7; SIZES.0].as_slice()].concat());
        let payload = packet.datagram()[28..].to_vec();
        let shot = bench.send_fragments(Side::Inside, &packet, SIZES.1, order)?;
        let first = comes_whole(bench, &shot, Side::Inside, server, &payload, words)?;
        require!(first.to() == server && !plan::is_inside(first.source()), "fragments sent {words} to the forward came as {first}");
    }
    Ok(String::new())
}

fn large_pings(bench: &Bench) -> Check {
    for (words, order) in ORDERS {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let ping = PacketBuilder::query(host.address, remote.address, Query::Echo, host.port)
            .id(bench.number() as u16)
            .payload_len(SIZES.0);
        let payload = ping.datagram()[28..].to_vec();
        let shot = bench.send_fragments(Side::Inside, &ping, SIZES.1, order)?;
        let out = comes_whole(bench, &shot, Side::Outside, remote, &payload, words)?;
        let pong = PacketBuilder::query(remote.address, out.source(), Query::EchoReply, out.query_id()).id(bench.number() as u16);
        let shot = bench.send_fragments(Side::Outside, &pong.payload_len(SIZES.0), SIZES.1, order)?;
        let back = comes_whole(bench, &shot, Side::Inside, host, &payload, words)?;
        require!(back.query_id() == host.port, "the reply came with identifier {}, the ping had {}", back.query_id(), host.port);
    }
    Ok(String::new())
}

/// First fragments without the rest, and the rest without first ones, from everywhere; meanwhile whole packets and fragments in order.
fn flood(bench: &Bench) -> Check {
    /// Fragments in all, sent as fast as one thread can, with a breath after each burst.
    const MANY: u32 = 20_000;
    /// Fragments between two breaths.
    const BURST: u32 = 100;
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    let (mut sent, mut lost, mut broken) = (0, 0, 0);
    let target = bench.open(Udp, bench.endpoint(), bench.remote())?;
    for number in 0..MANY {
        let from = Endpoint { address: [198, 51, 100, (number % 250 + 1) as u8].into(), port: number as u16 };
        let piece = PacketBuilder::udp(from, target).id(number as u16).payload_len(64).more_fragments(true);
        let piece = if number.is_multiple_of(2) { piece } else { piece.offset(8) };
        bench.send(Side::Outside, &piece)?;
        if number % BURST == BURST - 1 {
            thread::sleep(Duration::from_millis(4));
            sent += 1;
            let (packet, opened) = bench.inbound(Udp, remote, external);
            let shot = bench.send(Side::Outside, &packet)?;
            lost += u32::from(bench.seen(&shot, Side::Inside, COMES / 3, |one| opened.is(one)).is_none());
        }
        if number % (BURST * 20) == BURST * 20 - 1 {
            let packet = PacketBuilder::udp(remote, external).id(number as u16).payload_len(SIZES.0);
            let payload = packet.datagram()[28..].to_vec();
            let shot = bench.send_fragments(Side::Outside, &packet, SIZES.1, |_| {})?;
            broken += u32::from(comes_whole(bench, &shot, Side::Inside, host, &payload, "in order, during a flood").is_err());
        }
    }
    require!(
        lost == 0 && broken == 0,
        "during {MANY} fragments that make up nothing: {lost} of {sent} whole packets and {broken} of 10 datagrams in fragments were lost"
    );
    Ok(format!("{MANY} fragments that make up nothing; {sent} whole packets and 10 datagrams in fragments came through"))
}

/// Two hosts with one external address send fragments with one identification to one remote at a time.
fn identifications(bench: &Bench) -> Check {
    let remote = bench.remote();
    let first = bench.endpoint();
    let external = bench.open(Udp, first, remote)?;
    let mut second = None;
    for _ in 0..64 {
        let host = bench.endpoint();
        if bench.open(Udp, host, remote)?.address == external.address {
            second = Some(host);
            break;
        }
    }
    let Some(second) = second else { return Bench::not_testable("no two of 64 hosts share an external address") };
    let shot = bench.now(Side::Inside, "fragments of two hosts with one identification");
    let id = bench.number() as u16;
    for (host, fill) in [(first, 0x31), (second, 0x32)] {
        bench.send_fragments(Side::Inside, &PacketBuilder::udp(host, remote).id(id).payload(&[fill; 3000]), SIZES.1, |_| {})?;
    }
    thread::sleep(COMES / 5);
    let firsts = bench.all(&shot, Side::Outside, |one| {
        one.protocol() == UDP && one.destination() == remote.address && one.is_fragment() && one.offset() == 0
    });
    require!(firsts.len() == 2, "two datagrams in fragments: {} first fragments came outside", firsts.len());
    require!(
        firsts[0].id() != firsts[1].id(),
        "fragments of {} and {}, both with identification {id:#06x} to {}, left from {} with one identification: the remote mixes them up",
        first.address,
        second.address,
        remote.address,
        external.address
    );
    Ok(String::new())
}

fn tiny(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let packet = PacketBuilder::tcp(host, remote, SYN).numbers(bench.number(), 0);
    let shot = bench.send_fragments(Side::Inside, &packet, 8, |_| {})?;
    bench.expect_none(&shot, Side::Outside, "nothing of a TCP header in pieces of eight bytes", |one| {
        one.destination() == remote.address && one.is_fragment()
    })?;
    Ok(String::new())
}
