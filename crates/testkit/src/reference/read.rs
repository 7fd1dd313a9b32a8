//! Reads a frame slowly: link layer, IPv4, transport, and an ICMP error's embedded packet, with everything that is wrong with it.
//!
//! Knows formats only. Its answer is independent of `wire`: offsets are counted here again, from the RFCs. A frame with several
//! defects may be dropped for any of them; where the RFCs leave a choice, the reason is *tolerated* instead of demanded.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{Mac, Protocol};
use portcullis_nat::verdict::DropReason;

use crate::builder::checksum::{internet, pseudo_header, sum, verifies};
use crate::builder::{ACK, FIN, RST, SYN};

/// The link layer of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) destination: Mac,
    pub(crate) source: Mac,
    pub(crate) tag: Option<u16>,
    /// Where the IPv4 header begins.
    pub(crate) len: usize,
}

impl Link {
    pub(crate) fn vlan(&self) -> Option<u16> {
        self.tag.map(|tag| tag & 0x0FFF)
    }
}

/// An IPv4 datagram.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    /// Its bytes, without what Ethernet padded.
    pub(crate) bytes: Vec<u8>,
    pub(crate) header_len: usize,
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) more_fragments: bool,
    pub(crate) offset: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) transport: Transport,
}

/// What stands behind the IPv4 header.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// TCP with its flags, or UDP with none.
    Ports { protocol: Protocol, source: u16, destination: u16, flags: u8 },
    /// An ICMP query or its reply.
    Query { id: u16, request: bool },
    /// An ICMP error, and the packet in it where that can be read: of a protocol with ports or queries, or of another.
    Error { embedded: Option<Embedded>, other: Option<EmbeddedOther>, checksum_right: bool },
    /// Of a protocol beside TCP, UDP and ICMP: any fragment of it, or all.
    Other,
    /// A fragment that is not the first.
    Later,
    /// Something that the NAT does not translate.
    Unsupported(DropReason),
    /// Not to be read; the defects say why.
    Unreadable,
}

/// The packet that an ICMP error is about. Offsets are from the outer IPv4 header on.
#[derive(Clone, Debug)]
pub(crate) struct Embedded {
    pub(crate) at: usize,
    pub(crate) header_len: usize,
    pub(crate) header_right: bool,
    pub(crate) protocol: Protocol,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    /// Of ICMP: whether it asks.
    pub(crate) request: bool,
    /// The ports; an ICMP query's identifier in both.
    pub(crate) ports: (u16, u16),
    /// Where the transport's checksum stands, if it is quoted.
    pub(crate) checksum_at: Option<usize>,
}

/// The same of a protocol of which only the addresses are known, and of any of its fragments.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddedOther {
    pub(crate) at: usize,
    pub(crate) header_len: usize,
    pub(crate) header_right: bool,
    pub(crate) id: u16,
    pub(crate) protocol: u8,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    /// Where a checksum over the addresses stands, if it is quoted.
    pub(crate) checksum_at: Option<usize>,
}

/// A frame as far as it could be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    pub(crate) link: Option<Link>,
    pub(crate) datagram: Option<Datagram>,
    /// The frame has to be dropped, for any of these.
    pub(crate) defects: Vec<DropReason>,
    /// Whether the IPv4 header has a source route.
    pub(crate) source_routed: bool,
    /// The frame may be dropped, for any of these.
    pub(crate) tolerated: Vec<DropReason>,
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// Reads a whole frame.
pub(crate) fn read(frame: &[u8]) -> Reading {
    let mut reading = Reading::default();
    let Some(link) = read_link(frame) else {
        reading.defects.push(DropReason::Truncated);
        return reading;
    };
    reading.link = Some(link);
    if link.vlan() == Some(0) {
        reading.tolerated.push(DropReason::UnknownInterface);
    }
    if word(frame, link.len - 2) != 0x0800 {
        reading.defects.push(DropReason::NotIpv4);
        if matches!(word(frame, link.len - 2), 0x8100 | 0x88A8) {
            reading.defects.push(DropReason::UnknownInterface);
        }
        return reading;
    }
    read_datagram(&frame[link.len..], &mut reading);
    reading
}

fn read_link(frame: &[u8]) -> Option<Link> {
    let tagged = frame.len() >= 14 && word(frame, 12) == 0x8100;
    let len = if tagged { 18 } else { 14 };
    if frame.len() < len {
        return None;
    }
    let mac = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3], frame[at + 4], frame[at + 5]];
    Some(Link { destination: mac(0), source: mac(6), tag: tagged.then(|| word(frame, 14)), len })
}

/// RFC 791, section 3.1, and what RFC 1812, section 5.2.2, has a router check.
fn read_datagram(bytes: &[u8], reading: &mut Reading) {
    if bytes.len() < 20 {
        reading.defects.extend([DropReason::Truncated, DropReason::BadIpHeader]);
        return;
    }
    let header_len = usize::from(bytes[0] & 15) * 4;
    let total = usize::from(word(bytes, 2));
    if bytes[0] >> 4 != 4 {
        reading.defects.extend([DropReason::BadIpHeader, DropReason::NotIpv4]);
    }
    if header_len < 20 || total < header_len {
        reading.defects.extend([DropReason::BadIpHeader, DropReason::Truncated]);
    }
    if header_len > bytes.len() || total > bytes.len() {
        reading.defects.extend([DropReason::Truncated, DropReason::BadIpHeader]);
    }
    if header_len >= 20 && header_len <= bytes.len() && !verifies(&[&bytes[..header_len]]) {
        reading.defects.push(DropReason::BadIpHeader);
    }
    if !reading.defects.is_empty() {
        return;
    }
    let flags = word(bytes, 6);
    let mut datagram = Datagram {
        bytes: bytes[..total].to_vec(),
        header_len,
        id: word(bytes, 4),
        dont_fragment: flags & 0x4000 != 0,
        more_fragments: flags & 0x2000 != 0,
        offset: flags & 0x1FFF,
        ttl: bytes[8],
        protocol: bytes[9],
        source: address(bytes, 12),
        destination: address(bytes, 16),
        transport: Transport::Unreadable,
    };
    if flags & 0x8000 != 0 {
        reading.tolerated.push(DropReason::BadIpHeader);
    }
    reading.source_routed = has_source_route(&bytes[20..header_len]);
    datagram.transport = read_transport(&datagram, reading);
    reading.datagram = Some(datagram);
}

/// RFC 791, section 3.1: options 131 and 137, in a list of which 0 is the end and 1 a single byte; others have a length, itself included.
fn has_source_route(options: &[u8]) -> bool {
    let mut at = 0;
    while at < options.len() && options[at] != 0 {
        match (options[at], options.get(at + 1)) {
            (131 | 137, _) => return true,
            (1, _) => at += 1,
            (_, Some(&len)) if len >= 2 => at += usize::from(len),
            _ => break,
        }
    }
    false
}

fn read_transport(datagram: &Datagram, reading: &mut Reading) -> Transport {
    let protocol = Protocol::from_number(datagram.protocol);
    if datagram.more_fragments && !(datagram.bytes.len() - datagram.header_len).is_multiple_of(8) {
        reading.tolerated.extend([DropReason::BadIpHeader, DropReason::BadTransportHeader]);
    }
    if datagram.offset > 0 {
        // RFC 3128: such a fragment could overwrite the header that was looked at.
        if protocol == Some(Protocol::Tcp) && datagram.offset * 8 < 20 {
            reading.tolerated.push(DropReason::BadTransportHeader);
        }
        if usize::from(datagram.offset) * 8 + datagram.bytes.len() > 0xFFFF || datagram.bytes.len() == datagram.header_len {
            reading.tolerated.extend([DropReason::BadIpHeader, DropReason::BadTransportHeader, DropReason::Truncated]);
        }
        return if protocol.is_some() { Transport::Later } else { Transport::Other };
    }
    let payload = &datagram.bytes[datagram.header_len..];
    let whole = !datagram.more_fragments;
    match protocol {
        Some(Protocol::Udp) => read_udp(payload, whole, reading),
        Some(Protocol::Tcp) => read_tcp(payload, whole, reading),
        Some(Protocol::Icmp) => read_icmp(datagram, payload, whole, reading),
        None => Transport::Other,
    }
}

const SHORT: [DropReason; 2] = [DropReason::BadTransportHeader, DropReason::Truncated];

fn read_udp(payload: &[u8], whole: bool, reading: &mut Reading) -> Transport {
    if payload.len() < 8 {
        reading.defects.extend(SHORT);
        return Transport::Unreadable;
    }
    let claimed = usize::from(word(payload, 4));
    if claimed < 8 || (whole && claimed > payload.len()) {
        reading.defects.extend(SHORT);
    } else if (whole && claimed < payload.len()) || (!whole && claimed < payload.len()) {
        reading.tolerated.extend(SHORT);
    }
    ports(Protocol::Udp, payload, 0, reading)
}

fn read_tcp(payload: &[u8], whole: bool, reading: &mut Reading) -> Transport {
    if payload.len() < 20 || payload[12] >> 4 < 5 {
        reading.defects.extend(SHORT);
        return Transport::Unreadable;
    }
    if usize::from(payload[12] >> 4) * 4 > payload.len() {
        // The options may go on in the next fragment.
        if whole { &mut reading.defects } else { &mut reading.tolerated }.extend(SHORT);
    }
    let flags = payload[13];
    if flags & SYN != 0 && flags & (FIN | RST) != 0 {
        reading.defects.push(DropReason::BadTcpFlags);
    } else if flags & (SYN | ACK | RST) == 0 || flags & (FIN | RST) == FIN | RST {
        reading.tolerated.push(DropReason::BadTcpFlags);
    }
    ports(Protocol::Tcp, payload, flags, reading)
}

fn ports(protocol: Protocol, payload: &[u8], flags: u8, reading: &mut Reading) -> Transport {
    let (source, destination) = (word(payload, 0), word(payload, 2));
    if source == 0 || destination == 0 {
        reading.tolerated.extend(SHORT);
    }
    Transport::Ports { protocol, source, destination, flags }
}

/// RFC 792; the queries and errors are those of RFC 5508, section 2 and REQ-10.
fn read_icmp(datagram: &Datagram, payload: &[u8], whole: bool, reading: &mut Reading) -> Transport {
    if payload.len() < 8 {
        reading.defects.extend([DropReason::BadTransportHeader, DropReason::Truncated, DropReason::UnsupportedIcmp]);
        return Transport::Unreadable;
    }
    match payload[0] {
        0 | 8 | 13 | 14 => {
            if payload[1] != 0 {
                reading.tolerated.push(DropReason::UnsupportedIcmp);
            }
            if payload[0] >= 13 && payload.len() < 20 {
                reading.tolerated.extend(SHORT);
            }
            Transport::Query { id: word(payload, 4), request: matches!(payload[0], 8 | 13) }
        }
        3 | 11 | 12 if !whole => {
            // Its checksum cannot be checked, nor can its embedded packet be translated for certain.
            reading.tolerated.extend([DropReason::BadIcmpChecksum, DropReason::BadEmbeddedPacket]);
            Transport::Unsupported(DropReason::UnsupportedIcmp)
        }
        3 | 11 | 12 => {
            let embedded = read_embedded(datagram.header_len, payload, reading);
            let other = read_embedded_other(datagram.header_len, payload, reading);
            Transport::Error { embedded, other, checksum_right: verifies(&[payload]) }
        }
        _ => {
            if !whole || !verifies(&[payload]) {
                reading.tolerated.push(DropReason::BadIcmpChecksum);
            }
            Transport::Unsupported(DropReason::UnsupportedIcmp)
        }
    }
}

/// What of an ICMP error's payload is the original datagram: RFC 4884, section 4.1, gives its length in words where extensions follow.
fn quoted<'a>(payload: &'a [u8], reading: &mut Reading) -> &'a [u8] {
    let claimed = usize::from(payload[5]) * 4;
    let quote = &payload[8..];
    if claimed > quote.len() {
        reading.tolerated.push(DropReason::BadEmbeddedPacket);
    }
    if claimed == 0 || claimed > quote.len() { quote } else { &quote[..claimed] }
}

fn read_embedded(outer_header_len: usize, payload: &[u8], reading: &mut Reading) -> Option<Embedded> {
    let quote = quoted(payload, reading);
    if quote.len() < 24 || quote[0] >> 4 != 4 {
        return None;
    }
    let header_len = usize::from(quote[0] & 15) * 4;
    let protocol = Protocol::from_number(quote[9])?;
    if header_len < 20 || quote.len() < header_len + 4 || word(quote, 6) & 0x1FFF != 0 {
        return None;
    }
    let transport = &quote[header_len..];
    let (ports, checksum) = match protocol {
        Protocol::Icmp if transport.len() < 8 || !matches!(transport[0], 0 | 8 | 13 | 14) => return None,
        Protocol::Icmp => ((word(transport, 4), word(transport, 4)), 2),
        Protocol::Tcp => ((word(transport, 0), word(transport, 2)), 16),
        Protocol::Udp => ((word(transport, 0), word(transport, 2)), 6),
    };
    let header_right = verifies(&[&quote[..header_len]]);
    let total = usize::from(word(quote, 2));
    if !header_right || transport.len() < 8 || total < header_len + 8 {
        reading.tolerated.push(DropReason::BadEmbeddedPacket);
    }
    let at = outer_header_len + 8;
    let reaches = transport.len() >= checksum + 2;
    Some(Embedded {
        at,
        header_len,
        header_right,
        protocol,
        source: address(quote, 12),
        destination: address(quote, 16),
        request: protocol == Protocol::Icmp && matches!(transport[0], 8 | 13),
        ports,
        checksum_at: reaches.then_some(at + header_len + checksum),
    })
}

/// The packet in an error as far as addresses say whose it is.
fn read_embedded_other(outer_header_len: usize, payload: &[u8], reading: &mut Reading) -> Option<EmbeddedOther> {
    let quote = quoted(payload, reading);
    if quote.len() < 20 || quote[0] >> 4 != 4 || Protocol::from_number(quote[9]).is_some() {
        return None;
    }
    let header_len = usize::from(quote[0] & 15) * 4;
    if header_len < 20 || quote.len() < header_len {
        return None;
    }
    let header_right = verifies(&[&quote[..header_len]]);
    // RFC 4884, section 5.1: what stands behind a shorter datagram is padding.
    let transport = quote.len().min(usize::from(word(quote, 2))).saturating_sub(header_len);
    let is_later = word(quote, 6) & 0x1FFF != 0;
    // RFC 792 has eight bytes quoted; and of later fragments there are no errors.
    if !header_right || transport < 8 || is_later || usize::from(word(quote, 2)) < header_len {
        reading.tolerated.push(DropReason::BadEmbeddedPacket);
    }
    let at = outer_header_len + 8;
    Some(EmbeddedOther {
        at,
        header_len,
        header_right,
        id: word(quote, 4),
        protocol: quote[9],
        source: address(quote, 12),
        destination: address(quote, 16),
        checksum_at: (sums_addresses(quote[9]) && !is_later && transport >= 8).then_some(at + header_len + 6),
    })
}

/// Whether a protocol beside TCP, UDP and ICMP has a checksum over the addresses, at its sixth byte: DCCP (RFC 4340, section 9.1) and UDP-Lite
/// (RFC 3828, section 3.1).
pub(crate) const fn sums_addresses(protocol: u8) -> bool {
    matches!(protocol, DCCP | UDP_LITE)
}

/// The numbers of the two.
pub(crate) const DCCP: u8 = 33;
pub(crate) const UDP_LITE: u8 = 136;

/// Whether the transport checksum of a whole datagram is *partial*: the sum of the pseudo header, not complemented.
pub(crate) fn is_partial(datagram: &Datagram) -> bool {
    let Transport::Ports { protocol, .. } = datagram.transport else { return false };
    let payload = &datagram.bytes[datagram.header_len..];
    let (field, len) = match protocol {
        Protocol::Udp => (word(payload, 6), usize::from(word(payload, 4))),
        _ => (word(payload, 16), payload.len()),
    };
    let pseudo = pseudo_header(datagram.source, datagram.destination, datagram.protocol, len);
    !datagram.more_fragments && field == sum(&[&pseudo])
}

/// The right checksum of a TCP segment or UDP datagram whose field is zero.
pub(crate) fn transport_checksum(source: Ipv4Addr, destination: Ipv4Addr, protocol: Protocol, segment: &[u8]) -> u16 {
    let pseudo = pseudo_header(source, destination, protocol as u8, segment.len());
    match internet(&[&pseudo, segment]) {
        0 if protocol == Protocol::Udp => 0xFFFF,
        value => value,
    }
}
