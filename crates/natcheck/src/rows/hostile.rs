//! What nobody should send: each packet is dropped, or at least never passed on untranslated, and the NAT goes on.
//!
//! Sources: RFC 1812, section 5.3.7; RFC 2827; RFC 7126; RFC 768; RFC 3022. That nothing leaks is watched during the whole run as well.

use std::net::Ipv4Addr;

use portcullis_lab::builder::{ACK, Checksum, FIN, PacketBuilder, RST, SYN, checksum};
use portcullis_nat::policy::Endpoint;

use crate::bench::{Bench, Mark, Shot, Transport};
use crate::datagram::{Datagram, UDP};
use crate::plan;
use crate::row::{Check, Level, Row, require};
use crate::wire::Side;

use Level::{Must, Should};
use Transport::Udp;

pub(super) const ROWS: &[Row] = &[
    Row::new("udp-zero", Must, "RFC 768; RFC 3022, section 4.1", "UDP checksum 0 stays 0, a computed 0 becomes 0xFFFF", udp_zero),
    Row::new(
        "hostile-headers",
        Must,
        "RFC 1812, section 5.2.2",
        "Impossible IP headers (IHL, version, length) are dropped",
        headers,
    ),
    Row::new(
        "hostile-transport",
        Must,
        "RFC 1918, section 3; RFC 6888, REQ-11A",
        "Cut and lying transport headers never leave untranslated",
        transports,
    ),
    Row::new(
        "hostile-state",
        Must,
        "RFC 1918, section 3; RFC 6888, REQ-11A",
        "Packets of no session never leave untranslated",
        no_session,
    ),
    Row::new(
        "hostile-protocols",
        Must,
        "RFC 1918, section 3; RFC 6888, REQ-11A",
        "Protocols that the NAT does not know never leave untranslated",
        protocols,
    ),
    Row::new(
        "hostile-sources",
        Should,
        "RFC 1812, section 5.3.7",
        "Multicast, broadcast, loopback and foreign sources from inside are dropped",
        sources_inside,
    ),
    Row::new(
        "hostile-outside",
        Should,
        "RFC 2827; RFC 1812, section 5.3.7",
        "Impossible sources from outside do not reach a forward",
        sources_outside,
    ),
    Row::new("hostile-land", Must, "RFC 1812, section 5.3.7", "A packet to its own source (LAND) harms nothing", land),
    Row::new(
        "hostile-source-route",
        Should,
        "RFC 7126, section 4.3 and 4.4",
        "Packets with source routes are dropped",
        source_routes,
    ),
    Row::new("padding", Must, "RFC 894", "Ethernet padding behind a short datagram is not taken for a part of it", padding),
];

/// After all that, an ordinary flow.
fn goes_on(bench: &Bench) -> Check<()> {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    bench.reply(Udp, remote, external, host, "after hostile packets")
}

/// Nothing of what was sent from inside is seen outside with its own source.
fn none_untranslated(bench: &Bench, shot: &Shot, host: Ipv4Addr, what: &str) -> Check<()> {
    bench.expect_none(shot, Side::Outside, &format!("{what}: dropped, or with an external source"), |one| one.source() == host)
}

fn udp_zero(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let mark = bench.mark();
    let packet = PacketBuilder::udp(host, remote).payload(&mark).checksum(Checksum::Zero);
    let out = bench.leaves(&packet, |one| one.protocol() == UDP && one.contains(&mark))?;
    require!(out.udp_checksum() == 0, "no checksum, sent outbound, came out as {:#06x}", out.udp_checksum());
    let external = out.from();
    let mark = bench.mark();
    let shot = bench.send(Side::Outside, &PacketBuilder::udp(remote, external).payload(&mark).checksum(Checksum::Zero))?;
    let back = bench.expect(&shot, Side::Inside, "the reply", |one| one.protocol() == UDP && one.contains(&mark))?;
    require!(back.udp_checksum() == 0, "no checksum, sent inbound, came in as {:#06x}", back.udp_checksum());
    // A payload that makes the translated datagram's checksum compute to zero, which is sent as all ones.
    for (side, from, to, sent_from, sent_to) in
        [(Side::Inside, external, remote, host, remote), (Side::Outside, remote, host, remote, external)]
    {
        let mark = bench.mark();
        let payload = summing_to_zero(from, to, mark);
        let shot = bench.send(side, &PacketBuilder::udp(sent_from, sent_to).payload(&payload))?;
        let seen = bench.expect(&shot, side.other(), "the datagram", |one| one.protocol() == UDP && one.contains(&mark))?;
        require!(
            seen.udp_checksum() == 0xFFFF,
            "a checksum that computes to zero came {} as {:#06x}",
            side.other().word(),
            seen.udp_checksum()
        );
    }
    Ok(String::new())
}

/// The mark and a word that makes the datagram's sum all ones, so that its complement is zero.
fn summing_to_zero(from: Endpoint, to: Endpoint, mark: Mark) -> Vec<u8> {
    let with = |word: u16| [mark.as_slice(), &word.to_be_bytes()].concat();
    let plain = Datagram(PacketBuilder::udp(from, to).payload(&with(0)).checksum(Checksum::Zero).datagram());
    let pseudo = checksum::pseudo_header(from.address, to.address, UDP, plain.segment().len());
    with(checksum::internet(&[&pseudo, plain.segment()]))
}

/// What pads is not zero here, so that a checksum over it would be wrong; see also the row of checksums.
fn padding(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    for (side, from, to) in [(Side::Inside, host, remote), (Side::Outside, remote, external)] {
        let mark = bench.mark();
        let packet = PacketBuilder::udp(from, to).payload(&mark).trailer(10);
        let shot = bench.send(side, &packet)?;
        let seen = bench.expect(&shot, side.other(), "the datagram", |one| one.protocol() == UDP && one.contains(&mark))?;
        require!(seen.0.len() == 36, "a datagram of 36 bytes with 10 of padding came with a length of {}: {seen}", seen.0.len());
    }
    Ok(String::new())
}

/// What is done to a datagram's bytes.
type Damage = fn(&mut [u8]);

fn headers(bench: &Bench) -> Check {
    let host = bench.endpoint();
    let remote = bench.remote();
    let cases: [(&str, Damage); 5] = [
        ("an IHL of 4", |bytes| bytes[0] = 0x44),
        ("an IHL beyond the datagram", |bytes| bytes[0] = 0x4F),
        ("IP version 5", |bytes| bytes[0] = 0x55),
        ("a total length beyond the frame", |bytes| bytes[2..4].copy_from_slice(&9000_u16.to_be_bytes())),
        ("a total length below the header", |bytes| bytes[2..4].copy_from_slice(&12_u16.to_be_bytes())),
    ];
    for (what, damage) in cases {
        let mark = bench.damaged();
        let mut bytes = PacketBuilder::udp(host, remote).payload(&mark).datagram();
        damage(&mut bytes);
        right_header(&mut bytes);
        let shot = bench.send_datagram(Side::Inside, &bytes)?;
        bench.expect_none(&shot, Side::Outside, &format!("nothing of a datagram with {what}"), |one| one.contains(&mark))?;
    }
    goes_on(bench)?;
    Ok(String::new())
}

/// Makes the IPv4 header's checksum right again, over twenty bytes, so that it is not what the packet is dropped for.
fn right_header(bytes: &mut [u8]) {
    bytes[10..12].fill(0);
    let value = checksum::internet(&[&bytes[..20]]);
    bytes[10..12].copy_from_slice(&value.to_be_bytes());
}

fn transports(bench: &Bench) -> Check {
    let remote = bench.remote();
    for cut in [0, 1, 4, 7] {
        let host = bench.endpoint();
        let whole = PacketBuilder::udp(host, remote).payload(&bench.damaged()).datagram();
        let packet = PacketBuilder::raw(host.address, remote.address, UDP).payload(&whole[20..20 + cut]);
        let shot = bench.send(Side::Inside, &packet)?;
        none_untranslated(bench, &shot, host.address, &format!("UDP cut to {cut} bytes"))?;
    }
    for cut in [4, 12, 19] {
        let host = bench.endpoint();
        let whole = PacketBuilder::tcp(host, remote, SYN).datagram();
        let packet = PacketBuilder::raw(host.address, remote.address, 6).payload(&whole[20..20 + cut]);
        let shot = bench.send(Side::Inside, &packet)?;
        none_untranslated(bench, &shot, host.address, &format!("TCP cut to {cut} bytes"))?;
    }
    for claimed in [0, 7, 9000] {
        let host = bench.endpoint();
        let shot = bench.send(Side::Inside, &PacketBuilder::udp(host, remote).payload(&bench.damaged()).udp_length(claimed))?;
        none_untranslated(bench, &shot, host.address, &format!("UDP that claims {claimed} bytes"))?;
    }
    let host = bench.endpoint();
    let mut offset = PacketBuilder::tcp(host, remote, SYN).payload(&bench.damaged()).datagram();
    offset[20 + 12] = 0xF0;
    let shot = bench.send_datagram(Side::Inside, &offset)?;
    none_untranslated(bench, &shot, host.address, "a TCP data offset beyond the segment")?;
    let host = bench.endpoint();
    let shot =
        bench.send(Side::Inside, &PacketBuilder::udp(host, remote).payload(&bench.damaged()).checksum(Checksum::Wrong(7)))?;
    none_untranslated(bench, &shot, host.address, "UDP with a wrong checksum")?;
    let host = bench.endpoint();
    let shot =
        bench.send(Side::Inside, &PacketBuilder::tcp(host, remote, SYN).payload(&bench.damaged()).checksum(Checksum::Wrong(7)))?;
    none_untranslated(bench, &shot, host.address, "TCP with a wrong checksum")?;
    goes_on(bench)?;
    Ok(String::new())
}

fn no_session(bench: &Bench) -> Check {
    for (what, flags) in [
        ("an ACK", ACK),
        ("a RST", RST),
        ("a FIN", FIN | ACK),
        ("a SYN+ACK", SYN | ACK),
        ("a SYN+FIN", SYN | FIN),
        ("a SYN+RST", SYN | RST),
        ("a segment without flags", 0),
    ] {
        let host = bench.endpoint();
        let shot = bench.send(Side::Inside, &PacketBuilder::tcp(host, bench.remote(), flags).payload(&bench.mark()))?;
        none_untranslated(bench, &shot, host.address, &format!("{what} of no connection"))?;
    }
    let (host, remote) = (bench.endpoint(), bench.remote());
    let unknown = PacketBuilder::udp(remote, host).payload(&bench.mark()).datagram();
    for (kind, code) in [(3, 3), (11, 0), (5, 1)] {
        let shot = bench.send(Side::Inside, &PacketBuilder::icmp_error(host.address, remote.address, kind, code, &unknown))?;
        none_untranslated(bench, &shot, host.address, &format!("ICMP {kind}/{code} about no session"))?;
    }
    let shot =
        bench.send(Side::Inside, &PacketBuilder::icmp(host.address, remote.address, 0, 0, [0, 1, 0, 1]).payload(&bench.mark()))?;
    none_untranslated(bench, &shot, host.address, "an echo reply that nobody asked for")?;
    goes_on(bench)?;
    Ok(String::new())
}

fn protocols(bench: &Bench) -> Check {
    for protocol in [2, 4, 41, 46, 47, 50, 51, 89, 132, 136, 253] {
        let host = bench.endpoint();
        // Some have a checksum, which is none here.
        let payload = [bench.damaged().as_slice(), &[0; 56]].concat();
        let packet = PacketBuilder::raw(host.address, bench.remote().address, protocol).payload(&payload);
        let shot = bench.send(Side::Inside, &packet)?;
        none_untranslated(bench, &shot, host.address, &format!("protocol {protocol}"))?;
    }
    Ok(String::new())
}

fn sources_inside(bench: &Bench) -> Check {
    let sources = [
        [224, 0, 0, 5],
        [239, 1, 1, 1],
        [255, 255, 255, 255],
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [240, 0, 0, 1],
        [198, 51, 100, 77],
        [203, 0, 113, 10],
    ];
    none_passes(bench, Side::Inside, &sources, bench.remote())
}

fn sources_outside(bench: &Bench) -> Check {
    let forward = Endpoint { address: plan::POOL[0], port: plan::UDP_FORWARD };
    let mark = bench.mark();
    let shot = bench.send(Side::Outside, &PacketBuilder::udp(bench.remote(), forward).payload(&mark))?;
    bench.expect(&shot, Side::Inside, "an ordinary remote's datagram through the forward", |one| one.contains(&mark))?;
    let sources = [
        [224, 0, 0, 5],
        [255, 255, 255, 255],
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [240, 0, 0, 1],
        [10, 0, 200, 9],
        [203, 0, 113, 10],
        [203, 0, 113, 1],
    ];
    none_passes(bench, Side::Outside, &sources, forward)
}

/// No datagram passes that comes from `side` and claims one of these sources; others do, afterwards.
fn none_passes(bench: &Bench, side: Side, sources: &[[u8; 4]], to: Endpoint) -> Check {
    for &source in sources {
        let (from, mark) = (Endpoint { address: source.into(), port: 4242 }, bench.mark());
        let shot = bench.send(side, &PacketBuilder::udp(from, to).payload(&mark))?;
        bench.expect_none(&shot, side.other(), &format!("nothing from {}", from.address), |one| {
            one.protocol() == UDP && one.contains(&mark)
        })?;
    }
    goes_on(bench)?;
    Ok(String::new())
}

fn land(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    for (side, endpoint) in [
        (Side::Outside, external),
        (Side::Outside, Endpoint { address: plan::POOL[0], port: plan::UDP_FORWARD }),
        (Side::Inside, external),
        (Side::Inside, Endpoint { address: plan::NAT_INSIDE, port: 9 }),
        (Side::Inside, host),
    ] {
        let mark = bench.mark();
        let shot = bench.send(side, &PacketBuilder::udp(endpoint, endpoint).payload(&mark))?;
        for seen_at in [Side::Inside, Side::Outside] {
            bench.expect_none(&shot, seen_at, "nothing of a datagram to its own source", |one| {
                one.protocol() == UDP && one.contains(&mark) && one.source() == endpoint.address && one.to() != endpoint
            })?;
        }
    }
    bench.reply(Udp, remote, external, host, "after packets to their own source")?;
    Ok(String::new())
}

fn source_routes(bench: &Bench) -> Check {
    for (what, kind) in [("loose", 131), ("strict", 137)] {
        let (host, remote, mark) = (bench.endpoint(), bench.remote(), bench.mark());
        let option = [kind, 7, 4, 192, 0, 2, 9];
        let shot = bench.send(Side::Inside, &PacketBuilder::udp(host, remote).options(&option).payload(&mark))?;
        bench.expect_none(&shot, Side::Outside, &format!("nothing of a datagram with a {what} source route"), |one| {
            one.protocol() == UDP && one.contains(&mark)
        })?;
        let forward = Endpoint { address: plan::POOL[0], port: plan::UDP_FORWARD };
        let mark = bench.mark();
        let shot = bench.send(Side::Outside, &PacketBuilder::udp(remote, forward).options(&option).payload(&mark))?;
        bench.expect_none(&shot, Side::Inside, &format!("nothing of a datagram with a {what} source route"), |one| {
            one.protocol() == UDP && one.contains(&mark)
        })?;
    }
    Ok(String::new())
}
