//! A frame as one line, for failing tests. Knows the formats loosely: it never refuses bytes, it says how far it could read them.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// The frame in one line: link layer, addresses, transport, lengths. Never fails, whatever the bytes are.
pub fn describe(frame: &[u8]) -> String {
    let mut line = String::new();
    let Some(ethernet) = frame.get(..14) else { return format!("{} bytes, no Ethernet header", frame.len()) };
    let _ = write!(line, "{} > {}", mac(&ethernet[6..12]), mac(&ethernet[..6]));
    let mut at = 14;
    let mut kind = word(frame, 12);
    if kind == Some(0x8100) {
        let _ = write!(line, " vlan {}", word(frame, 14).unwrap_or(0) & 0xFFF);
        kind = word(frame, 16);
        at = 18;
    }
    match kind {
        Some(0x0800) => line.push_str(&datagram(&frame[at..])),
        Some(other) => {
            let _ = write!(line, " ethertype {other:#06x}");
        }
        None => line.push_str(" truncated tag"),
    }
    let _ = write!(line, " ({} bytes)", frame.len());
    line
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// A datagram's part of the line; an ICMP error's embedded datagram stands in brackets.
fn datagram(bytes: &[u8]) -> String {
    let mut line = String::new();
    if bytes.len() < 20 {
        return format!(" IPv4 header cut at {}", bytes.len());
    }
    let header_len = usize::from(bytes[0] & 15) * 4;
    let (total, flags) = (word(bytes, 2).unwrap_or(0), word(bytes, 6).unwrap_or(0));
    let _ = write!(line, " IPv4 {} > {} ttl {} id {:#06x} len {total}", address(bytes, 12), address(bytes, 16), bytes[8], {
        word(bytes, 4).unwrap_or(0)
    });
    if bytes[1] != 0 {
        let _ = write!(line, " tos {:#04x}", bytes[1]);
    }
    if header_len != 20 || bytes[0] >> 4 != 4 {
        let _ = write!(line, " first byte {:#04x}", bytes[0]);
    }
    if flags & 0x4000 != 0 {
        line.push_str(" DF");
    }
    if flags & 0x2000 != 0 || flags & 0x1FFF != 0 {
        let _ = write!(line, " fragment {}{}", (flags & 0x1FFF) * 8, if flags & 0x2000 == 0 { " last" } else { "+" });
    }
    let is_later = flags & 0x1FFF != 0;
    if !is_later {
        line.push_str(&transport(bytes[9], bytes.get(header_len.max(20)..).unwrap_or(&[])));
    }
    line
}

fn transport(protocol: u8, bytes: &[u8]) -> String {
    let port = |at| word(bytes, at).map_or_else(|| "?".to_owned(), |port| port.to_string());
    let field = |at| word(bytes, at).map_or_else(|| "cut".to_owned(), |value| format!("{value:#06x}"));
    match protocol {
        17 => format!(" UDP {} > {} sum {}", port(0), port(2), field(6)),
        6 => format!(" TCP {} > {} [{}] sum {}", port(0), port(2), flags(bytes.get(13).copied()), field(16)),
        1 => icmp(bytes),
        33 => format!(" DCCP {} > {} sum {}", port(0), port(2), field(6)),
        136 => format!(" UDP-Lite {} > {} sum {}", port(0), port(2), field(6)),
        other => format!(" protocol {other}"),
    }
}

fn flags(flags: Option<u8>) -> String {
    let Some(flags) = flags else { return "?".to_owned() };
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Vec<_> = names.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| *name).collect();
    set.join(" ")
}

fn icmp(bytes: &[u8]) -> String {
    if bytes.len() < 8 {
        return format!(" ICMP cut at {}", bytes.len());
    }
    let id = word(bytes, 4).unwrap_or(0);
    match bytes[0] {
        0 | 8 | 13 | 14 => format!(" ICMP {}/{} id {id} sum {:#06x}", bytes[0], bytes[1], word(bytes, 2).unwrap_or(0)),
        3 | 4 | 5 | 11 | 12 => format!(" ICMP {}/{} [{} ]", bytes[0], bytes[1], datagram(&bytes[8..])),
        _ => format!(" ICMP {}/{}", bytes[0], bytes[1]),
    }
}
