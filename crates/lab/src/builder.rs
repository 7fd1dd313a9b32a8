//! Builds packets for tests: Ethernet, VLAN, IPv4, UDP, TCP, ICMP, UDP-Lite and DCCP, right or wrong on purpose, and reads them back as one line.
//!
//! Knows the wire formats from the RFCs and computes every checksum from scratch; shares no code with `wire`, so that a bug there
//! shows here. Called by tests, the reference NAT and the generators. Sources: RFC 768, 791, 792, 1071, 3828, 4340, 4884, 9293.
//! Tests: below, against etherparse's reading of the same bytes.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Mac};

pub mod checksum;
mod describe;
mod verify;

pub use describe::describe;
pub use verify::verify;

/// The TCP flag FIN.
pub const FIN: u8 = 0x01;
/// The TCP flag SYN.
pub const SYN: u8 = 0x02;
/// The TCP flag RST.
pub const RST: u8 = 0x04;
/// The TCP flag PSH.
pub const PSH: u8 = 0x08;
/// The TCP flag ACK.
pub const ACK: u8 = 0x10;

/// Shortens a test: an endpoint from text such as `10.0.0.2:5000`. **Panics:** when it is none.
pub fn endpoint(text: &str) -> Endpoint {
    let address: std::net::SocketAddrV4 = text.parse().expect("an endpoint is written address:port");
    Endpoint { address: *address.ip(), port: address.port() }
}

/// What a transport or ICMP checksum field shall hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The right value.
    #[default]
    Right,
    /// Zero: of UDP, that the sender computed none (RFC 768).
    Zero,
    /// The sum of the pseudo header only, as veth and virtio senders leave it.
    Partial,
    /// The right value plus this number: wrong, unless it is a multiple of 65,535.
    Wrong(u16),
}

/// An ICMP query or reply (RFC 792).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Query {
    /// Echo, type 8.
    Echo,
    /// Echo reply, type 0.
    EchoReply,
    /// Timestamp, type 13.
    Timestamp,
    /// Timestamp reply, type 14.
    TimestampReply,
}

impl Query {
    /// The ICMP type.
    pub const fn number(self) -> u8 {
        match self {
            Self::Echo => 8,
            Self::EchoReply => 0,
            Self::Timestamp => 13,
            Self::TimestampReply => 14,
        }
    }

    /// What answers it, or what it answers.
    #[must_use]
    pub const fn counterpart(self) -> Self {
        match self {
            Self::Echo => Self::EchoReply,
            Self::EchoReply => Self::Echo,
            Self::Timestamp => Self::TimestampReply,
            Self::TimestampReply => Self::Timestamp,
        }
    }
}

/// What stands behind the IPv4 header.
#[derive(Clone, Debug)]
enum Body {
    Udp { source: u16, destination: u16, length: Option<u16> },
    Tcp { source: u16, destination: u16, flags: u8, sequence: u32, acknowledgment: u32, options: Vec<u8> },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    IcmpError { kind: u8, code: u8, rest: [u8; 4], quote: Vec<u8>, extension: Option<Vec<u8>> },
    UdpLite { source: u16, destination: u16, coverage: u16 },
    Dccp { source: u16, destination: u16, coverage: u8 },
    Raw { protocol: u8 },
}

/// A packet in the making. Each method changes one thing and gives it back.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    mac_source: Mac,
    mac_destination: Mac,
    vlan: Option<u16>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    tos: u8,
    id: u16,
    dont_fragment: bool,
    more_fragments: bool,
    offset: u16,
    ttl: u8,
    options: Vec<u8>,
    body: Body,
    payload: Vec<u8>,
    checksum: Checksum,
    trailer: usize,
}

impl PacketBuilder {
    fn new(source: Ipv4Addr, destination: Ipv4Addr, body: Body) -> Self {
        Self {
            mac_source: [2, 0, 0, 0, 0, 1],
            mac_destination: [2, 0, 0, 0, 0, 2],
            vlan: None,
            source,
            destination,
            tos: 0,
            id: 0x1234,
            dont_fragment: false,
            more_fragments: false,
            offset: 0,
            ttl: 64,
            options: Vec::new(),
            body,
            payload: Vec::new(),
            checksum: Checksum::Right,
            trailer: 0,
        }
    }

    /// A UDP datagram.
    pub fn udp(source: Endpoint, destination: Endpoint) -> Self {
        let body = Body::Udp { source: source.port, destination: destination.port, length: None };
        Self::new(source.address, destination.address, body)
    }

    /// A TCP segment with those flags.
    pub fn tcp(source: Endpoint, destination: Endpoint, flags: u8) -> Self {
        let (from, to) = (source.port, destination.port);
        let body = Body::Tcp { source: from, destination: to, flags, sequence: 1, acknowledgment: 0, options: Vec::new() };
        Self::new(source.address, destination.address, body)
    }

    /// An ICMP query or reply.
    pub fn query(source: Ipv4Addr, destination: Ipv4Addr, query: Query, id: u16) -> Self {
        let [high, low] = id.to_be_bytes();
        let mut packet = Self::new(source, destination, Body::Icmp { kind: query.number(), code: 0, rest: [high, low, 0, 1] });
        if matches!(query, Query::Timestamp | Query::TimestampReply) {
            packet.payload = vec![0; 12];
        }
        packet
    }

    /// An ICMP error about `datagram`, which begins with its IPv4 header. The whole of it is quoted; see [`Self::quote`].
    pub fn icmp_error(source: Ipv4Addr, destination: Ipv4Addr, kind: u8, code: u8, datagram: &[u8]) -> Self {
        let body = Body::IcmpError { kind, code, rest: [0; 4], quote: datagram.to_vec(), extension: None };
        Self::new(source, destination, body)
    }

    /// An ICMP message of any type; what stands behind its first eight bytes is the payload.
    pub fn icmp(source: Ipv4Addr, destination: Ipv4Addr, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self::new(source, destination, Body::Icmp { kind, code, rest })
    }

    /// A UDP-Lite datagram whose checksum covers so many bytes, its header's eight at least; zero for all (RFC 3828, section 3.1).
    pub fn udp_lite(source: Endpoint, destination: Endpoint, coverage: u16) -> Self {
        let body = Body::UdpLite { source: source.port, destination: destination.port, coverage };
        Self::new(source.address, destination.address, body)
    }

    /// A DCCP-Data packet whose checksum covers the header and so many words of data less one; zero for all (RFC 4340, section 9.2).
    pub fn dccp(source: Endpoint, destination: Endpoint, coverage: u8) -> Self {
        let body = Body::Dccp { source: source.port, destination: destination.port, coverage: coverage & 15 };
        Self::new(source.address, destination.address, body)
    }

    /// A datagram of any protocol, its payload set by [`Self::payload`].
    pub fn raw(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Self {
        Self::new(source, destination, Body::Raw { protocol })
    }

    /// Sets the link-layer addresses.
    #[must_use]
    pub fn mac(mut self, source: Mac, destination: Mac) -> Self {
        (self.mac_source, self.mac_destination) = (source, destination);
        self
    }

    /// Tags the frame, or not.
    #[must_use]
    pub fn vlan(mut self, vlan: Option<u16>) -> Self {
        self.vlan = vlan;
        self
    }

    /// Sets the TTL; 64 otherwise.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the byte of DSCP and ECN.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// Sets the IPv4 identification.
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Sets or clears Don't Fragment.
    #[must_use]
    pub fn dont_fragment(mut self, set: bool) -> Self {
        self.dont_fragment = set;
        self
    }

    /// Sets or clears More Fragments, without cutting anything (see [`Self::fragments`]).
    #[must_use]
    pub fn more_fragments(mut self, set: bool) -> Self {
        self.more_fragments = set;
        self
    }

    /// Sets the fragment offset. **Units:** eight bytes.
    #[must_use]
    pub fn offset(mut self, offset: u16) -> Self {
        self.offset = offset;
        self
    }

    /// Sets the IPv4 options, padded with end-of-options to a multiple of four. **Panics:** beyond 40 bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(options.len() <= 40, "an IPv4 header has at most 40 bytes of options");
        self.options = options.to_vec();
        self.options.resize(options.len().next_multiple_of(4), 0);
        self
    }

    /// Sets the payload behind the transport header.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Sets the payload to `len` bytes of a pattern that no two offsets near each other share.
    #[must_use]
    pub fn payload_len(self, len: usize) -> Self {
        let pattern: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(7) ^ (i >> 5)) as u8).collect();
        self.payload(&pattern)
    }

    /// Says what the transport's checksum field shall hold.
    #[must_use]
    pub fn checksum(mut self, checksum: Checksum) -> Self {
        self.checksum = checksum;
        self
    }

    /// Sets TCP's sequence and acknowledgment numbers.
    #[must_use]
    pub fn numbers(mut self, sequence: u32, acknowledgment: u32) -> Self {
        if let Body::Tcp { sequence: s, acknowledgment: a, .. } = &mut self.body {
            (*s, *a) = (sequence, acknowledgment);
        }
        self
    }

    /// Sets TCP's options, padded to a multiple of four. **Panics:** beyond 40 bytes.
    #[must_use]
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        assert!(bytes.len() <= 40, "a TCP header has at most 40 bytes of options");
        if let Body::Tcp { options, .. } = &mut self.body {
            *options = bytes.to_vec();
            options.resize(bytes.len().next_multiple_of(4), 0);
        }
        self
    }

    /// Sets UDP's length field to something that may be a lie.
    #[must_use]
    pub fn udp_length(mut self, claimed: u16) -> Self {
        if let Body::Udp { length, .. } = &mut self.body {
            *length = Some(claimed);
        }
        self
    }

    /// Sets the sequence number of an ICMP query.
    #[must_use]
    pub fn query_sequence(mut self, sequence: u16) -> Self {
        if let Body::Icmp { rest, .. } = &mut self.body {
            rest[2..].copy_from_slice(&sequence.to_be_bytes());
        }
        self
    }

    /// Quotes at most `most` bytes of the datagram that the ICMP error is about.
    #[must_use]
    pub fn quote(mut self, most: usize) -> Self {
        if let Body::IcmpError { quote, .. } = &mut self.body {
            quote.truncate(most);
        }
        self
    }

    /// Sets the next hop's MTU in an ICMP error of type 3, code 4 (RFC 1191).
    #[must_use]
    pub fn next_hop_mtu(mut self, mtu: u16) -> Self {
        if let Body::IcmpError { rest, .. } = &mut self.body {
            rest[2..].copy_from_slice(&mtu.to_be_bytes());
        }
        self
    }

    /// Appends an RFC 4884 extension of one object with those bytes; the quote is padded with zeros to at least 128 bytes and a
    /// multiple of four, and its length is given in words.
    #[must_use]
    pub fn extension(mut self, object: &[u8]) -> Self {
        if let Body::IcmpError { extension, .. } = &mut self.body {
            *extension = Some(object.to_vec());
        }
        self
    }

    /// Appends so many bytes behind the datagram, as Ethernet pads short frames. They are not zero, to be told from others.
    #[must_use]
    pub fn trailer(mut self, len: usize) -> Self {
        self.trailer = len;
        self
    }

    fn protocol(&self) -> u8 {
        match self.body {
            Body::Udp { .. } => 17,
            Body::Tcp { .. } => 6,
            Body::Icmp { .. } | Body::IcmpError { .. } => 1,
            Body::UdpLite { .. } => 136,
            Body::Dccp { .. } => 33,
            Body::Raw { protocol } => protocol,
        }
    }

    /// The transport header and the payload.
    fn segment(&self) -> Vec<u8> {
        let (mut bytes, field) = match &self.body {
            Body::Udp { source, destination, length } => {
                let length = length.unwrap_or((8 + self.payload.len()) as u16);
                let words = [*source, *destination, length, 0];
                (words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>(), Some(6))
            }
            Body::Tcp { source, destination, flags, sequence, acknowledgment, options } => {
                let mut header = Vec::with_capacity(60);
                header.extend(source.to_be_bytes());
                header.extend(destination.to_be_bytes());
                header.extend(sequence.to_be_bytes());
                header.extend(acknowledgment.to_be_bytes());
                header.extend([((5 + options.len() / 4) << 4) as u8, *flags, 0xFF, 0xFF, 0, 0, 0, 0]);
                header.extend(options);
                (header, Some(16))
            }
            Body::Icmp { kind, code, rest } => (icmp_header(*kind, *code, *rest), Some(2)),
            Body::IcmpError { kind, code, rest, quote, extension } => {
                (error_message(*kind, *code, *rest, quote, extension.as_deref()), Some(2))
            }
            Body::UdpLite { source, destination, coverage } => {
                let words = [*source, *destination, *coverage, 0];
                (words.iter().flat_map(|word| word.to_be_bytes()).collect(), Some(6))
            }
            Body::Dccp { source, destination, coverage } => (dccp_header(*source, *destination, *coverage), Some(6)),
            Body::Raw { .. } => (Vec::new(), None),
        };
        bytes.extend(&self.payload);
        if let Some(field) = field {
            let value = self.checksum_value(&bytes);
            bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
        }
        bytes
    }

    /// What the checksum field of `segment`, whose field is zero still, shall hold.
    fn checksum_value(&self, segment: &[u8]) -> u16 {
        let udp = matches!(self.protocol(), 17 | 136);
        let pseudo = checksum::pseudo_header(self.source, self.destination, self.protocol(), segment.len());
        let covered = &segment[..checksum::covered(self.protocol(), segment).unwrap_or(segment.len())];
        let right = if self.protocol() == 1 { checksum::internet(&[segment]) } else { checksum::internet(&[&pseudo, covered]) };
        let right = if udp && right == 0 { 0xFFFF } else { right };
        match self.checksum {
            Checksum::Right => right,
            Checksum::Zero => 0,
            Checksum::Partial => checksum::sum(&[&pseudo]),
            Checksum::Wrong(by) => match right.wrapping_add(by) {
                0 if udp => 1,
                wrong => wrong,
            },
        }
    }

    fn header(&self, payload_len: usize, more_fragments: bool, offset: u16) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more_fragments) << 13 | offset;
        let mut header = vec![0x40 | (header_len / 4) as u8, self.tos];
        header.extend(((header_len + payload_len) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(&self.options);
        let value = checksum::internet(&[&header]);
        header[10..12].copy_from_slice(&value.to_be_bytes());
        header
    }

    /// The datagram, from its IPv4 header on.
    pub fn datagram(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut bytes = self.header(segment.len(), self.more_fragments, self.offset);
        bytes.extend(segment);
        bytes
    }

    fn frame(&self, datagram: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(18 + datagram.len() + self.trailer);
        bytes.extend(self.mac_destination);
        bytes.extend(self.mac_source);
        if let Some(vlan) = self.vlan {
            bytes.extend([0x81, 0x00]);
            bytes.extend(vlan.to_be_bytes());
        }
        bytes.extend([0x08, 0x00]);
        bytes.extend(datagram);
        bytes.extend(std::iter::repeat_n(0xA5, self.trailer));
        bytes
    }

    /// The whole frame, from its Ethernet header on.
    pub fn build(&self) -> Vec<u8> {
        self.frame(&self.datagram())
    }

    /// The datagram's frames when it is cut into pieces of `size` bytes behind the IPv4 header, in order. **Panics:** when `size` is
    /// not a multiple of eight above zero.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        assert!(size > 0 && size.is_multiple_of(8), "fragments are cut at multiples of eight bytes");
        let segment = self.segment();
        let pieces = segment.len().div_ceil(size);
        let cut = |(number, piece): (usize, &[u8])| {
            let mut bytes = self.header(piece.len(), number + 1 < pieces, (number * size / 8) as u16);
            bytes.extend(piece);
            self.frame(&bytes)
        };
        segment.chunks(size).enumerate().map(cut).collect()
    }
}

/// RFC 4340, section 5.1, with the long sequence number: sixteen bytes. Of type Data (2).
fn dccp_header(source: u16, destination: u16, coverage: u8) -> Vec<u8> {
    let mut header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    header.extend([4, coverage, 0, 0, 2 << 1 | 1, 0, 0, 0, 0, 0, 0, 1]);
    header
}

fn icmp_header(kind: u8, code: u8, rest: [u8; 4]) -> Vec<u8> {
    let mut header = vec![kind, code, 0, 0];
    header.extend(rest);
    header
}

/// The bytes of an ICMP error, with the extension structure of RFC 4884, section 7, if one is given.
fn error_message(kind: u8, code: u8, mut rest: [u8; 4], quote: &[u8], extension: Option<&[u8]>) -> Vec<u8> {
    let mut quote = quote.to_vec();
    let mut tail = Vec::new();
    if let Some(object) = extension {
        quote.resize(quote.len().next_multiple_of(4).max(128), 0);
        rest[1] = (quote.len() / 4) as u8;
        tail.extend([0x20, 0, 0, 0]);
        tail.extend(((4 + object.len()) as u16).to_be_bytes());
        tail.extend([1, 1]);
        tail.extend(object);
        let value = checksum::internet(&[&tail]);
        tail[2..4].copy_from_slice(&value.to_be_bytes());
    }
    let mut bytes = icmp_header(kind, code, rest);
    bytes.extend(quote);
    bytes.extend(tail);
    bytes
}

#[cfg(test)]
mod tests;
