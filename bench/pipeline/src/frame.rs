//! The frames of the benchmarks: the smallest that Ethernet has, UDP or TCP, built from endpoints and checked after translation.
//!
//! Knows bytes. Sums checksums by itself, so that a mistake in the NAT's cannot hide. Invariant: a frame that was built is right in every
//! byte; a frame starts on a cache line, and neighbours do not fall into the same set of the first-level cache.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Mac, Protocol};

/// Bytes of a frame without the frame check sequence, which makes 64 of them.
pub(crate) const FRAME_LEN: usize = 60;

const ETHERNET_LEN: usize = 14;
const IP_LEN: usize = 20;
const TRANSPORT: usize = ETHERNET_LEN + IP_LEN;
const TTL: u8 = 64;

/// The TCP flags used here.
pub(crate) mod tcp {
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const ACK: u8 = 0x10;
}

/// A frame's memory: the packet and room for an ICMP error.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Frame(pub(crate) [u8; 192]);

impl Frame {
    pub(crate) const EMPTY: Self = Self([0; 192]);
}

/// What a packet is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) protocol: Protocol,
    pub(crate) source: Endpoint,
    pub(crate) destination: Endpoint,
    /// Of TCP.
    pub(crate) flags: u8,
}

/// The link-layer addresses of a side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) source: Mac,
    pub(crate) destination: Mac,
}

/// Writes a packet into a frame.
#[inline]
pub(crate) fn build(frame: &mut Frame, link: &Link, packet: &Packet) {
    let bytes = &mut frame.0;
    bytes[..FRAME_LEN].fill(0);
    bytes[0..6].copy_from_slice(&link.destination);
    bytes[6..12].copy_from_slice(&link.source);
    bytes[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut bytes[ETHERNET_LEN..TRANSPORT];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((FRAME_LEN - ETHERNET_LEN) as u16).to_be_bytes());
    ip[6] = 0x40;
    ip[8] = TTL;
    ip[9] = packet.protocol as u8;
    ip[12..16].copy_from_slice(&packet.source.address.octets());
    ip[16..20].copy_from_slice(&packet.destination.address.octets());
    let checksum = !fold(sum(ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let transport = &mut bytes[TRANSPORT..FRAME_LEN];
    transport[0..2].copy_from_slice(&packet.source.port.to_be_bytes());
    transport[2..4].copy_from_slice(&packet.destination.port.to_be_bytes());
    let checksum_at = if packet.protocol == Protocol::Tcp {
        transport[12] = 5 << 4;
        transport[13] = packet.flags;
        transport[14..16].copy_from_slice(&[0xFF, 0xFF]);
        16
    } else {
        transport[4..6].copy_from_slice(&((FRAME_LEN - TRANSPORT) as u16).to_be_bytes());
        6
    };
    // RFC 768: a computed zero is sent as all ones; in TCP both mean the same.
    let checksum = match !transport_sum(&bytes[..FRAME_LEN]) {
        0 => 0xFFFF,
        other => other,
    };
    bytes[TRANSPORT + checksum_at..][..2].copy_from_slice(&checksum.to_be_bytes());
}

/// The endpoints of a frame, source and destination, if all of its checksums are right.
pub(crate) fn read(frame: &Frame) -> Option<(Endpoint, Endpoint)> {
    let bytes = &frame.0[..FRAME_LEN];
    let ip = &bytes[ETHERNET_LEN..TRANSPORT];
    (fold(sum(ip)) == 0xFFFF && transport_sum(bytes) == 0xFFFF).then(|| endpoints(frame))
}

/// The endpoints of a frame, source and destination.
#[inline]
pub(crate) fn endpoints(frame: &Frame) -> (Endpoint, Endpoint) {
    let at = |address: usize, port: usize| {
        let octets: [u8; 4] = core::array::from_fn(|byte| frame.0[address + byte]);
        Endpoint { address: Ipv4Addr::from(octets), port: u16::from_be_bytes([frame.0[port], frame.0[port + 1]]) }
    };
    (at(ETHERNET_LEN + 12, TRANSPORT), at(ETHERNET_LEN + 16, TRANSPORT + 2))
}

/// The sum over the transport header, its payload and the pseudo header.
fn transport_sum(bytes: &[u8]) -> u16 {
    let ip = &bytes[ETHERNET_LEN..TRANSPORT];
    fold(sum(&bytes[TRANSPORT..]) + sum(&ip[12..]) + u32::from(ip[9]) + (FRAME_LEN - TRANSPORT) as u32)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xFFFF) + (sum >> 16);
    (once + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: Protocol) -> Packet {
        let source = Endpoint { address: Ipv4Addr::new(10, 1, 2, 3), port: 4000 };
        let destination = Endpoint { address: Ipv4Addr::new(192, 0, 2, 9), port: 443 };
        Packet { protocol, source, destination, flags: tcp::SYN }
    }

    const LINK: Link = Link { source: [2; 6], destination: [4; 6] };

    #[test]
    fn a_frame_is_what_it_was_built_of() {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let mut frame = Frame::EMPTY;
            let packet = packet(protocol);
            build(&mut frame, &LINK, &packet);
            assert_eq!(read(&frame), Some((packet.source, packet.destination)), "{protocol:?}");
            assert_eq!((frame.0[ETHERNET_LEN + 9], &frame.0[0..6]), (protocol as u8, &[4_u8; 6][..]));
        }
    }

    #[test]
    fn a_changed_bit_is_seen() {
        for at in [ETHERNET_LEN + 8, ETHERNET_LEN + 15, TRANSPORT + 1, FRAME_LEN - 1] {
            let mut frame = Frame::EMPTY;
            build(&mut frame, &LINK, &packet(Protocol::Udp));
            frame.0[at] ^= 4;
            assert_eq!(read(&frame), None, "byte {at}");
        }
    }
}
