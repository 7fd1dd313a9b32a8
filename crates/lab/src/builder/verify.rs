//! Says whether all of a frame's checksums are right, from scratch: IPv4, UDP, TCP, ICMP, UDP-Lite, DCCP, and an ICMP error's embedded
//! IPv4 header.
//!
//! Called by tests on what comes out of the NAT. Does not check the embedded transport checksum: quotes are cut (RFC 5508, REQ-3c).

use std::net::Ipv4Addr;

use super::checksum::{covered, pseudo_header, verifies};

/// Checks every checksum of an IPv4 frame. Fragments' transport checksums cannot be checked and are not.
///
/// **Errors:** a sentence that names the first thing wrong: a length that does not fit, or a checksum.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let tagged = frame.get(12..14) == Some(&[0x81, 0x00]);
    let at = if tagged { 18 } else { 14 };
    if frame.get(at - 2..at) != Some(&[0x08, 0x00]) {
        return Err("not an IPv4 frame".to_owned());
    }
    let (header, payload) = split(&frame[at..], "outer")?;
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let is_fragment = flags & 0x3FFF != 0;
    if is_fragment { Ok(()) } else { transport(header, payload) }
}

/// Checks the header and gives it with the payload that its total length says.
fn split<'a>(bytes: &'a [u8], which: &str) -> Result<(&'a [u8], &'a [u8]), String> {
    let (header, rest) = header(bytes, which)?;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let len = total.checked_sub(header.len()).ok_or_else(|| format!("{which} total length below the header's"))?;
    let payload = rest.get(..len).ok_or_else(|| format!("{which} total length {total} beyond the frame's end"))?;
    Ok((header, payload))
}

fn header<'a>(bytes: &'a [u8], which: &str) -> Result<(&'a [u8], &'a [u8]), String> {
    let first = *bytes.first().ok_or_else(|| format!("no {which} IPv4 header"))?;
    let len = usize::from(first & 15) * 4;
    if first >> 4 != 4 || len < 20 || len > bytes.len() {
        return Err(format!("{which} IPv4 header impossible: first byte {first:#04x}, {} bytes", bytes.len()));
    }
    let (header, rest) = bytes.split_at(len);
    if verifies(&[header]) { Ok((header, rest)) } else { Err(format!("{which} IPv4 header checksum wrong")) }
}

fn transport(header: &[u8], payload: &[u8]) -> Result<(), String> {
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let pseudo = |len| pseudo_header(address(12), address(16), header[9], len);
    match header[9] {
        17 => udp(payload, pseudo),
        6 if payload.len() < 20 => Err("TCP header cut".to_owned()),
        6 if verifies(&[&pseudo(payload.len()), payload]) => Ok(()),
        6 => Err("TCP checksum wrong".to_owned()),
        1 => icmp(payload),
        33 => partly("DCCP", header[9], payload, &pseudo(payload.len())),
        136 if payload.get(6..8) == Some(&[0, 0]) => Err("UDP-Lite checksum zero".to_owned()),
        136 => partly("UDP-Lite", header[9], payload, &pseudo(payload.len())),
        _ => Ok(()),
    }
}

/// Of a protocol whose checksum may leave out data.
fn partly(name: &str, protocol: u8, payload: &[u8], pseudo: &[u8]) -> Result<(), String> {
    let len = covered(protocol, payload).ok_or_else(|| format!("{name} checksum coverage impossible"))?;
    if verifies(&[pseudo, &payload[..len]]) { Ok(()) } else { Err(format!("{name} checksum wrong")) }
}

fn udp(payload: &[u8], pseudo: impl Fn(usize) -> [u8; 12]) -> Result<(), String> {
    if payload.len() < 8 {
        return Err("UDP header cut".to_owned());
    }
    let len = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
    let datagram = payload.get(..len).filter(|_| len >= 8).ok_or_else(|| format!("UDP length {len} impossible"))?;
    let none = datagram[6..8] == [0, 0];
    if none || verifies(&[&pseudo(len), datagram]) { Ok(()) } else { Err("UDP checksum wrong".to_owned()) }
}

fn icmp(payload: &[u8]) -> Result<(), String> {
    if payload.len() < 8 {
        return Err("ICMP header cut".to_owned());
    }
    if !verifies(&[payload]) {
        return Err("ICMP checksum wrong".to_owned());
    }
    if matches!(payload[0], 3 | 4 | 5 | 11 | 12) {
        header(&payload[8..], "embedded")?;
    }
    Ok(())
}
