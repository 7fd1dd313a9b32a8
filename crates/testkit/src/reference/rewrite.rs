//! Builds the datagram that has to come out: addresses, ports, TTL, and checksums worked out anew.
//!
//! Knows bytes and what to put into them. A right checksum stays right, a wrong one stays wrong by the same amount, zero UDP stays
//! zero, a partial one is completed. Arithmetic is modulo 65,535, not RFC 1624's, so that one checks the other.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Protocol};

use super::read::{Datagram, Embedded, EmbeddedOther, Transport, UDP_LITE, is_partial, sums_addresses, transport_checksum, word};
use crate::builder::SYN;
use crate::builder::checksum::internet;

/// A datagram to expect. Where a checksum was wrong before, its two zeros (0x0000, 0xFFFF) cannot be told apart: those places may
/// hold either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) bytes: Vec<u8>,
    pub(super) either_zero: Vec<usize>,
    /// Where an IPv4 header has an identification that the NAT chooses, and from what.
    pub(super) identification: Option<(usize, Ids)>,
}

/// Identifications that may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    Any,
    OneOf(Vec<u16>),
}

impl Expected {
    /// Moves a checksum over addresses of a protocol without ports. Of UDP-Lite zero is as of UDP: "an all zero transmitted checksum value is
    /// prohibited" (RFC 3828, section 3.1).
    fn move_other(&mut self, protocol: u8, at: usize, old: &[u16], new: &[u16]) {
        let before = word(&self.bytes, at);
        let value = if protocol == UDP_LITE { moved_udp(before, old, new) } else { moved(before, old, new) };
        put(&mut self.bytes, at, value);
        if protocol != UDP_LITE {
            self.either_zero.push(at);
        }
    }

    /// Says where `seen` differs, if it does.
    pub(super) fn difference(&self, seen: &[u8]) -> Option<String> {
        if seen.len() < self.bytes.len() {
            return Some(format!("{} bytes instead of {}", seen.len(), self.bytes.len()));
        }
        let mut wanted = self.bytes.clone();
        if let Some((at, ids)) = &self.identification {
            let id = word(seen, at + 4);
            if matches!(ids, Ids::Any) || matches!(ids, Ids::OneOf(ids) if ids.contains(&id)) {
                put(&mut wanted, at + 4, id);
                let len = usize::from(wanted[*at] & 15) * 4;
                finish_header(&mut wanted, *at, len);
            }
        }
        for &at in &self.either_zero {
            let zeros = |bytes: &[u8]| matches!(word(bytes, at), 0 | 0xFFFF);
            if zeros(&wanted) && zeros(seen) {
                wanted[at..at + 2].copy_from_slice(&seen[at..at + 2]);
            }
        }
        let at = wanted.iter().zip(seen).position(|(a, b)| a != b)?;
        let (from, to) = (at & !1, (at | 1).min(wanted.len() - 1));
        Some(format!("byte {at} behind the IPv4 header's start: {:02x?} instead of {:02x?}", &seen[from..=to], &wanted[from..=to]))
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn words(address: Ipv4Addr) -> [u16; 2] {
    let bits = address.to_bits();
    [(bits >> 16) as u16, bits as u16]
}

/// The checksum field that keeps its error when `old` words become `new` ones.
fn moved(field: u16, old: &[u16], new: &[u16]) -> u16 {
    let total = |words: &[u16]| words.iter().map(|&word| i64::from(word)).sum::<i64>();
    (i64::from(field) + total(old) - total(new)).rem_euclid(0xFFFF) as u16
}

/// As [`moved`], for UDP: zero says that there is no checksum, so a computed zero is sent as all ones (RFC 768).
fn moved_udp(field: u16, old: &[u16], new: &[u16]) -> u16 {
    match (field, moved(field, old, new)) {
        (0, _) => 0,
        (_, 0) => 0xFFFF,
        (_, value) => value,
    }
}

fn header(bytes: &mut [u8], header_len: usize, source: Ipv4Addr, destination: Ipv4Addr) {
    bytes[8] = bytes[8].saturating_sub(1);
    bytes[12..16].copy_from_slice(&source.octets());
    bytes[16..20].copy_from_slice(&destination.octets());
    finish_header(bytes, 0, header_len);
}

fn finish_header(bytes: &mut [u8], at: usize, header_len: usize) {
    put(bytes, at + 10, 0);
    let value = internet(&[&bytes[at..at + header_len]]);
    put(bytes, at + 10, value);
}

/// The datagram with another source and destination endpoint, one hop on. An ICMP query's new identifier is the source's port.
pub(super) fn translated(datagram: &Datagram, source: Endpoint, destination: Endpoint) -> Expected {
    let mut bytes = datagram.bytes.clone();
    let at = datagram.header_len;
    let mut either_zero = Vec::new();
    match datagram.transport {
        Transport::Ports { protocol, source: from, destination: to, .. } => {
            put(&mut bytes, at, source.port);
            put(&mut bytes, at + 2, destination.port);
            let field = if protocol == Protocol::Udp { at + 6 } else { at + 16 };
            let old = [words(datagram.source), words(datagram.destination), [from, to]].concat();
            let new = [words(source.address), words(destination.address), [source.port, destination.port]].concat();
            let value = match protocol {
                _ if is_partial(datagram) => {
                    completed(&mut bytes, datagram, protocol, (source.address, destination.address), field)
                }
                Protocol::Udp => moved_udp(word(&bytes, field), &old, &new),
                _ => moved(word(&bytes, field), &old, &new),
            };
            put(&mut bytes, field, value);
            if protocol == Protocol::Tcp {
                either_zero.push(field);
            }
        }
        Transport::Query { id, .. } => {
            put(&mut bytes, at + 4, source.port);
            let value = moved(word(&bytes, at + 2), &[id], &[source.port]);
            put(&mut bytes, at + 2, value);
            either_zero.push(at + 2);
        }
        _ => {}
    }
    header(&mut bytes, at, source.address, destination.address);
    Expected { bytes, either_zero, identification: None }
}

/// The datagram, or fragment, of a protocol without ports with other addresses, one hop on.
pub(super) fn translated_by_address(datagram: &Datagram, (source, destination): (Ipv4Addr, Ipv4Addr)) -> Expected {
    let mut expected = Expected { bytes: datagram.bytes.clone(), either_zero: Vec::new(), identification: None };
    let at = datagram.header_len;
    if sums_addresses(datagram.protocol) && datagram.offset == 0 && datagram.bytes.len() >= at + 8 {
        let old = [words(datagram.source), words(datagram.destination)].concat();
        let new = [words(source), words(destination)].concat();
        expected.move_other(datagram.protocol, at + 6, &old, &new);
    }
    header(&mut expected.bytes, at, source, destination);
    expected
}

/// The same with a SYN's maximum segment size lowered to `most` (RFC 9293, section 3.7.1).
pub(super) fn clamped(expected: &mut Expected, at: usize, most: u16) {
    let segment = &mut expected.bytes[at..];
    let end = (usize::from(segment[12] >> 4) * 4).min(segment.len());
    let Some(size_at) = segment_size_at(segment, end).filter(|_| segment[13] & SYN != 0) else { return };
    if word(segment, size_at) <= most {
        return;
    }
    let words = |segment: &[u8]| -> Vec<u16> { segment[20..end].chunks_exact(2).map(|pair| word(pair, 0)).collect() };
    let before = words(segment);
    put(segment, size_at, most);
    let value = moved(word(segment, 16), &before, &words(segment));
    put(segment, 16, value);
}

/// Where among the options the maximum segment size stands. What follows an option that does not fit is none.
fn segment_size_at(segment: &[u8], end: usize) -> Option<usize> {
    let mut at = 20;
    loop {
        match &segment[at.min(end)..end] {
            [2, 4, _, _, ..] => return Some(at + 2),
            [1, ..] => at += 1,
            [0, ..] => return None,
            [_, len, ..] if *len >= 2 => at += usize::from(*len),
            _ => return None,
        }
    }
}

/// The datagram as the kernel gets it: as it was received, but for a partial checksum, which the kernel would find wrong.
pub(super) fn punted(datagram: &Datagram) -> Vec<u8> {
    let mut bytes = datagram.bytes.clone();
    if let (true, Transport::Ports { protocol, .. }) = (is_partial(datagram), &datagram.transport) {
        let field = datagram.header_len + if *protocol == Protocol::Udp { 6 } else { 16 };
        let value = completed(&mut bytes, datagram, *protocol, (datagram.source, datagram.destination), field);
        put(&mut bytes, field, value);
    }
    bytes
}

/// The right checksum of a packet whose own is partial. A UDP length below the payload's bounds what is summed.
fn completed(bytes: &mut [u8], datagram: &Datagram, protocol: Protocol, ends: (Ipv4Addr, Ipv4Addr), field: usize) -> u16 {
    put(bytes, field, 0);
    let segment = &bytes[datagram.header_len..];
    let len = if protocol == Protocol::Udp { usize::from(word(segment, 4)).min(segment.len()) } else { segment.len() };
    transport_checksum(ends.0, ends.1, protocol, &segment[..len])
}

/// The endpoints of an embedded packet after translation. An ICMP query's identifier is the source's port.
#[derive(Clone, Copy, Debug)]
pub(super) struct EmbeddedEnds {
    pub(super) source: Endpoint,
    pub(super) destination: Endpoint,
}

/// An ICMP error one hop on, with the packet in it translated too (RFC 5508, REQ-4 and REQ-5).
pub(super) fn translated_error(
    datagram: &Datagram,
    embedded: &Embedded,
    outer: (Ipv4Addr, Ipv4Addr),
    ends: EmbeddedEnds,
) -> Expected {
    let mut expected = Expected { bytes: datagram.bytes.clone(), either_zero: Vec::new(), identification: None };
    let (old, new) = ([embedded.source, embedded.destination], [ends.source.address, ends.destination.address]);
    let (at, header_len) = (embedded.at, embedded.header_len);
    let headers = expected.embedded_header((at, header_len), embedded.header_right, old, new);
    let Expected { bytes, either_zero, .. } = &mut expected;
    embedded_transport(bytes, embedded, at + header_len, ends, (&headers.0, &headers.1), either_zero);
    expected.outer(datagram.header_len, outer);
    expected
}

/// The same of a quoted packet of a protocol without ports: its addresses become `ends`.
pub(super) fn translated_other_error(
    datagram: &Datagram,
    quoted: &EmbeddedOther,
    outer: (Ipv4Addr, Ipv4Addr),
    ends: (Ipv4Addr, Ipv4Addr),
) -> Expected {
    let mut expected = Expected { bytes: datagram.bytes.clone(), either_zero: Vec::new(), identification: None };
    let (old, new) = ([quoted.source, quoted.destination], [ends.0, ends.1]);
    let headers = expected.embedded_header((quoted.at, quoted.header_len), quoted.header_right, old, new);
    if let Some(field) = quoted.checksum_at {
        expected.move_other(quoted.protocol, field, &headers.0, &headers.1);
    }
    expected.outer(datagram.header_len, outer);
    expected
}

impl Expected {
    /// Gives a quoted IPv4 header other addresses. Returns the words of those that it had, and of those that it has.
    fn embedded_header(
        &mut self,
        (at, header_len): (usize, usize),
        is_right: bool,
        old: [Ipv4Addr; 2],
        new: [Ipv4Addr; 2],
    ) -> (Vec<u16>, Vec<u16>) {
        let both = |ends: [Ipv4Addr; 2]| ends.into_iter().flat_map(words).collect::<Vec<_>>();
        let (old, ends, new) = (both(old), new, both(new));
        self.bytes[at + 12..at + 16].copy_from_slice(&ends[0].octets());
        self.bytes[at + 16..at + 20].copy_from_slice(&ends[1].octets());
        if is_right {
            finish_header(&mut self.bytes, at, header_len);
        } else {
            let value = moved(word(&self.bytes, at + 10), &old, &new);
            put(&mut self.bytes, at + 10, value);
            self.either_zero.push(at + 10);
        }
        (old, new)
    }

    /// Makes an ICMP error's own checksum and header anew.
    fn outer(&mut self, len: usize, (source, destination): (Ipv4Addr, Ipv4Addr)) {
        put(&mut self.bytes, len + 2, 0);
        let value = internet(&[&self.bytes[len..]]);
        put(&mut self.bytes, len + 2, value);
        header(&mut self.bytes, len, source, destination);
    }
}

fn embedded_transport(
    bytes: &mut [u8],
    embedded: &Embedded,
    transport: usize,
    ends: EmbeddedEnds,
    headers: (&[u16], &[u16]),
    either_zero: &mut Vec<usize>,
) {
    let (mut old, mut new) = (headers.0.to_vec(), headers.1.to_vec());
    if embedded.protocol == Protocol::Icmp {
        put(bytes, transport + 4, ends.source.port);
        (old, new) = (vec![embedded.ports.0], vec![ends.source.port]);
    } else {
        put(bytes, transport, ends.source.port);
        put(bytes, transport + 2, ends.destination.port);
        old.extend([embedded.ports.0, embedded.ports.1]);
        new.extend([ends.source.port, ends.destination.port]);
    }
    let Some(field) = embedded.checksum_at else { return };
    let before = word(bytes, field);
    let value = if embedded.protocol == Protocol::Udp { moved_udp(before, &old, &new) } else { moved(before, &old, &new) };
    put(bytes, field, value);
    if embedded.protocol != Protocol::Udp {
        either_zero.push(field);
    }
}
