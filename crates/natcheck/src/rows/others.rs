//! Protocols without ports that a NAT reads: translated by address or not at all, and never mixed up.
//!
//! No RFC asks a NAT for them; what it does with them has to be right. Sources: RFC 3022, sections 2.1, 2.2, 4.1 and 4.3; RFC 2784 (GRE);
//! RFC 3828, section 3.1 (UDP-Lite); RFC 4340, section 9.1 (DCCP); RFC 9260, section 6.8 (SCTP).

use std::net::Ipv4Addr;

use portcullis_lab::builder::{PacketBuilder, verify};
use portcullis_nat::policy::Endpoint;

use crate::bench::{Bench, COMES, Mark, STAYS_AWAY};
use crate::datagram::Datagram;
use crate::plan;
use crate::row::{Check, Level, Row, Trouble, require};
use crate::wire::Side;

use Level::{May, Must};

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "other-1",
        May,
        "RFC 3022, sections 2.1 and 2.2",
        "GRE leaves with an external source or not at all, and the answer comes back, in fragments too",
        gre,
    ),
    Row::new(
        "other-2",
        Must,
        "RFC 3022, section 4.1; RFC 3828, section 3.1; RFC 4340, section 9.1; RFC 9260, section 6.8",
        "What leaves of SCTP has its CRC32c right, of UDP-Lite and DCCP the checksum, and so has the answer",
        checksums,
    ),
    Row::new(
        "other-3",
        Must,
        "RFC 3022, section 2.1",
        "Hosts that speak GRE with one remote are never mixed up: an answer reaches its own host or nobody",
        never_mixed_up,
    ),
    Row::new(
        "other-4",
        Must,
        "RFC 3022, section 4.3; RFC 5508, REQ-4",
        "An error about GRE comes to the host that sent it, its quote reverted; one about nobody's to nobody",
        errors,
    ),
];

const GRE: u8 = 47;
const SCTP: u8 = 132;

/// How often a packet is sent until it comes out: a NAT that lets none of its protocol out cannot be told from a wire that loses one.
const TRIES: usize = 3;

/// Bytes of a GRE packet that is cut, and of each piece.
const SIZES: (usize, usize) = (2000, 1200);

/// A GRE packet of a protocol for experiments (RFC 2784; IEEE 802, 0x88B5) with a mark in it.
fn gre_packet(from: Ipv4Addr, to: Ipv4Addr, mark: Mark) -> PacketBuilder {
    PacketBuilder::raw(from, to, GRE).payload(&[&[0, 0, 0x88, 0xB5], mark.as_slice()].concat())
}

/// Sends what `packet` makes of a mark until one leaves, and gives it as the remote sees it. None where none does.
///
/// **Errors:** one leaves with a source that is not the NAT's.
fn leaves(bench: &Bench, protocol: u8, packet: impl Fn(Mark) -> PacketBuilder) -> Check<Option<Datagram>> {
    for _ in 0..TRIES {
        let mark = bench.mark();
        let shot = bench.send(Side::Inside, &packet(mark))?;
        let is_it = |one: &Datagram| one.protocol() == protocol && one.contains(&mark);
        if let Some(seen) = bench.seen(&shot, Side::Outside, COMES / TRIES as u32, is_it) {
            let is_external = bench.setup.pool().contains(&seen.source()) || seen.source() == plan::NAT_OUTSIDE;
            require!(is_external, "protocol {protocol}: expected a source of the NAT; came: {seen}");
            return Ok(Some(Datagram::clone(&seen)));
        }
    }
    Ok(None)
}

/// A row about what this NAT does not do.
fn translates_no(what: &str) -> Check {
    Bench::not_testable(format!("it lets no {what} out"))
}

/// Sends a packet from outside, and the row is violated unless it comes to `host` as it should.
fn answers(bench: &Bench, protocol: u8, packet: &PacketBuilder, mark: Mark, host: Ipv4Addr) -> Check<Datagram> {
    let shot = bench.send(Side::Outside, packet)?;
    let seen = bench
        .expect(&shot, Side::Inside, &format!("the same to {host}"), |one| one.protocol() == protocol && one.contains(&mark))?;
    require!(seen.destination() == host, "protocol {protocol}: the answer to {host} came as {seen}");
    Ok(seen)
}

fn gre(bench: &Bench) -> Check {
    let (host, remote) = (bench.host(), bench.remote().address);
    let Some(out) = leaves(bench, GRE, |mark| gre_packet(host, remote, mark))? else { return translates_no("GRE") };
    require!(out.destination() == remote && out.ttl() == 63, "GRE to {remote} left as {out}");
    let mark = bench.mark();
    answers(bench, GRE, &gre_packet(remote, out.source(), mark), mark, host)?;
    for (from, source, to, seen) in
        [(Side::Inside, host, remote, (out.source(), remote)), (Side::Outside, remote, out.source(), (remote, host))]
    {
        in_fragments(bench, from, (source, to), seen)?;
    }
    Ok(String::new())
}

/// Each piece says by itself whose it is: the last one comes first.
fn in_fragments(bench: &Bench, from: Side, (source, to): (Ipv4Addr, Ipv4Addr), seen: (Ipv4Addr, Ipv4Addr)) -> Check<()> {
    let mark = bench.mark();
    let payload = [&[0, 0, 0x88, 0xB5], mark.as_slice(), &[0x5A; SIZES.0]].concat();
    let packet = PacketBuilder::raw(source, to, GRE).id(bench.number() as u16).payload(&payload);
    let shot = bench.send_fragments(from, &packet, SIZES.1, |pieces| pieces.reverse())?;
    let is_piece = |one: &Datagram| one.protocol() == GRE && (one.source(), one.destination()) == seen && one.is_fragment();
    let first = bench.expect(&shot, from.other(), "the first piece", |one| is_piece(one) && one.contains(&mark))?;
    bench.expect(&shot, from.other(), "the last piece", |one| is_piece(one) && one.id() == first.id() && one.offset() > 0)?;
    let mut pieces = bench.all(&shot, from.other(), |one| is_piece(one) && one.id() == first.id());
    pieces.sort_by_key(Datagram::offset);
    let whole = pieces.iter().map(Datagram::segment).collect::<Vec<_>>().concat();
    require!(whole == payload, "{} pieces came of {} bytes, {} sent", pieces.len(), whole.len(), payload.len());
    Ok(())
}

/// RFC 9260, section 6.8 and appendix A: CRC32c over the packet with its field zero, the lowest byte first.
fn crc32c(packet: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (at, &byte) in packet.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&at) { 0 } else { byte });
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

/// An SCTP packet with an INIT (1) or INIT ACK (2) of that tag, and a mark in RFC 4820's padding parameter.
fn sctp_packet(from: Endpoint, to: Endpoint, (kind, verification, initiate): (u8, u32, u32), mark: Mark) -> PacketBuilder {
    let mut bytes = [from.port.to_be_bytes(), to.port.to_be_bytes()].concat();
    bytes.extend(verification.to_be_bytes());
    bytes.extend([0, 0, 0, 0, kind, 0, 0, 32]);
    bytes.extend(initiate.to_be_bytes());
    bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0x80, 0x05, 0, 12]);
    bytes.extend(mark);
    let crc = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&crc);
    PacketBuilder::raw(from.address, to.address, SCTP).payload(&bytes)
}

/// Whether the checksums of a datagram are right.
fn is_right(datagram: &Datagram) -> bool {
    let frame = [&[0; 12], [0x08, 0x00].as_slice(), &datagram.0].concat();
    let segment = datagram.segment();
    let crc = datagram.protocol() != SCTP || segment.get(8..12) == Some(&crc32c(segment));
    crc && verify(&frame).is_ok()
}

/// One protocol of [`checksums`]: its name, its number, and what the host sends and the remote answers, with a mark.
type Sums = (&'static str, u8, fn(Endpoint, Endpoint, bool, Mark) -> PacketBuilder);

const SUMS: [Sums; 3] = [
    ("SCTP", SCTP, |from, to, answers, mark| {
        let chunk = if answers { (2, 0x1111, 0x2222) } else { (1, 0, 0x1111) };
        sctp_packet(from, to, chunk, mark)
    }),
    ("UDP-Lite", 136, |from, to, _, mark| PacketBuilder::udp_lite(from, to, 12).payload(&mark)),
    ("DCCP", 33, |from, to, _, mark| PacketBuilder::dccp(from, to, 2).payload(&mark)),
];

fn checksums(bench: &Bench) -> Check {
    let mut silent = Vec::new();
    for (name, protocol, packet) in SUMS {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let Some(out) = leaves(bench, protocol, |mark| packet(host, remote, false, mark))? else {
            silent.push(name);
            continue;
        };
        require!(is_right(&out), "{name}: the checksum of what left is wrong: {out}");
        let mark = bench.mark();
        let back = answers(bench, protocol, &packet(remote, out.from(), true, mark), mark, host.address)?;
        require!(is_right(&back), "{name}: the checksum of what came back is wrong: {back}");
    }
    match silent.as_slice() {
        [] => Ok(String::new()),
        names if names.len() == SUMS.len() => translates_no(&names.join(", ")),
        names => Ok(format!("it lets no {} out", names.join(", "))),
    }
}

/// More hosts than there are external addresses, so that some have to be refused.
fn never_mixed_up(bench: &Bench) -> Check {
    let remote = bench.remote().address;
    let hosts: Vec<_> = (0..bench.setup.addresses + 2).map(|_| bench.host()).collect();
    let mut seen = Vec::new();
    for &host in &hosts {
        if let Some(out) = leaves(bench, GRE, |mark| gre_packet(host, remote, mark))? {
            let same = seen.iter().find(|(_, source)| *source == out.source());
            require!(same.is_none(), "{host} and {} speak GRE with {remote} from {}", same.map_or(host, |one| one.0), out.source());
            seen.push((host, out.source()));
        }
    }
    if seen.is_empty() {
        return translates_no("GRE");
    }
    for &(host, source) in &seen {
        let mark = bench.mark();
        answers(bench, GRE, &gre_packet(remote, source, mark), mark, host)?;
    }
    let stranger = bench.remote().address;
    for &source in bench.setup.pool() {
        let mark = bench.mark();
        let shot = bench.send(Side::Outside, &gre_packet(stranger, source, mark))?;
        bench.expect_none(&shot, Side::Inside, "nothing from a remote that nobody has asked", |one| one.contains(&mark))?;
    }
    Ok(format!("{} of {} hosts at once over {} addresses", seen.len(), hosts.len(), bench.setup.addresses))
}

fn errors(bench: &Bench) -> Check {
    let (host, remote) = (bench.host(), bench.remote().address);
    let Some(out) = leaves(bench, GRE, |mark| gre_packet(host, remote, mark))? else { return translates_no("GRE") };
    let about =
        |quoted: &[u8]| PacketBuilder::icmp_error(plan::FAR_ROUTER, out.source(), 3, 4, quoted).next_hop_mtu(1400).quote(28);
    let shot = bench.send(Side::Outside, &about(&out.0))?;
    let quotes = |one: &Datagram, source| {
        one.quote().is_some_and(|quote| (quote.protocol(), quote.source(), quote.destination()) == (GRE, source, remote))
    };
    let came = bench.expect(&shot, Side::Inside, "the error, quoting what the host sent", |one| quotes(one, host))?;
    require!(came.destination() == host && came.next_hop_mtu() == 1400, "the error about {out} came as {came}");
    let is_sound = came.quote().is_some_and(|quote| quote.header_is_right());
    require!(is_sound, "the header that the error quotes is wrong: {came}");
    let nobodys = gre_packet(out.source(), bench.remote().address, bench.mark()).datagram();
    let shot = bench.send(Side::Outside, &about(&nobodys))?;
    if let Some(seen) = bench.seen(&shot, Side::Inside, STAYS_AWAY, Datagram::is_error) {
        return Err(Trouble::Violated(format!("an error about a packet that nobody has sent came as {seen}")));
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, has CRC32c of 32 bytes of zeros.
    #[test]
    fn the_checksum_of_zeros_is_the_known_one() {
        assert_eq!(crc32c(&[0; 32]), [0xAA, 0x36, 0x91, 0x8A]);
    }

    #[test]
    fn a_changed_byte_is_found_whatever_protocol_it_is_of() {
        let (from, to) =
            (portcullis_lab::builder::endpoint("203.0.113.10:1000"), portcullis_lab::builder::endpoint("198.51.100.1:2000"));
        for (name, protocol, packet) in SUMS {
            let mut datagram = Datagram(packet(from, to, false, [7; 8]).datagram());
            assert!(datagram.protocol() == protocol && is_right(&datagram), "{name}");
            datagram.0[20] ^= 1;
            assert!(!is_right(&datagram), "{name}");
        }
    }
}
