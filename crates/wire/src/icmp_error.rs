//! The ICMP errors that a router sends: whether one may be sent about a packet, and turning the packet into it.
//!
//! Knows what RFC 1812 asks of any router; not why the packet failed, nor rate limits. Called by `nat`.
//! Invariant: nothing is written beyond the buffer; a packet that could not be turned is as it was.
//! Sources: RFC 1812 (section 4.3.2), RFC 792, RFC 1191. Tests: below, and in `tests/`.

use core::net::Ipv4Addr;

use zerocopy::IntoBytes;

use crate::ethernet::{self, EthernetHeader};
use crate::icmpv4::{self, IcmpHeader};
use crate::ipv4::{self, Ipv4Header};
use crate::packet::{Fragment, Layout, Transport};

/// The longest error. "The ICMP datagram SHOULD contain as much of the original datagram as possible without the length of the ICMP
/// datagram exceeding 576 bytes." **Source:** RFC 1812, section 4.3.2.3.
pub const MAX_ERROR_LEN: usize = 576;
/// What an error has in front of the datagram that it quotes.
const HEADERS_LEN: usize = ipv4::HEADER_LEN + icmpv4::HEADER_LEN;
/// Precedence 6, internetwork control, without the congestion bits (RFC 1812, section 4.3.2.5; RFC 2474: class selector 6).
const INTERNETWORK_CONTROL: u8 = 0xC0;

/// An error to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorMessage {
    /// The type.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// The four bytes that depend on the type.
    pub rest: u32,
    /// The sender's address: that of the interface that the packet came in by.
    pub src: Ipv4Addr,
    /// Its time to live.
    pub ttl: u8,
}

impl ErrorMessage {
    /// Time Exceeded, in transit.
    #[must_use]
    pub const fn time_exceeded(src: Ipv4Addr, ttl: u8) -> Self {
        Self { kind: icmpv4::TIME_EXCEEDED, code: icmpv4::TTL_EXCEEDED, rest: 0, src, ttl }
    }

    /// Destination Unreachable with any code but Fragmentation Needed.
    #[must_use]
    pub const fn unreachable(code: u8, src: Ipv4Addr, ttl: u8) -> Self {
        Self { kind: icmpv4::DESTINATION_UNREACHABLE, code, rest: 0, src, ttl }
    }

    /// Fragmentation Needed, with the next hop's MTU (RFC 1191, section 4).
    #[must_use]
    pub const fn fragmentation_needed(mtu: u16, src: Ipv4Addr, ttl: u8) -> Self {
        Self { kind: icmpv4::DESTINATION_UNREACHABLE, code: icmpv4::FRAGMENTATION_NEEDED, rest: mtu as u32, src, ttl }
    }
}

/// Whether an error may be sent about the packet. The broadcast addresses of subnets are the caller's to know.
///
/// "An ICMP error message MUST NOT be sent as the result of receiving: an ICMP error message, or a packet which fails the IP header
/// validation tests [no layout then], or a packet destined to an IP broadcast or IP multicast address, or a packet sent as a Link
/// Layer broadcast or multicast, or a packet whose source address has a network prefix of zero or is an invalid source address, or
/// any fragment of a datagram other then the first". **Source:** RFC 1812, section 4.3.2.7.
///
/// ICMP of a type unknown here counts as an error: it could be one.
#[must_use]
pub fn may_answer_with_error(frame: &[u8], layout: &Layout) -> bool {
    let (Some(link), Some(ip)) = (EthernetHeader::from_prefix(frame), layout.ipv4(frame)) else { return false };
    let about_error = matches!(layout.transport(), Transport::IcmpError | Transport::OtherIcmp(_));
    !about_error
        && layout.fragment() != Fragment::Later
        && !ethernet::is_group(link.dst)
        && !ethernet::is_group(link.src)
        && !ip.dst().is_multicast()
        && !ip.dst().is_broadcast()
        && ipv4::may_be_host(ip.src())
}

/// Turns the packet in `buffer` into an error about it, back to its sender: link-layer addresses swapped, VLAN tag kept, as much of
/// the datagram quoted as fits. Returns the new length of the frame, or none if the buffer has no room for the least that an error
/// has to quote; the packet is then as it was.
///
/// The packet has to be as it was received, for its sender to know it. It may be cut behind its first eight bytes of payload: the buffer
/// then has to end with the room for what is there.
#[must_use]
pub fn build_error(buffer: &mut [u8], layout: &Layout, error: &ErrorMessage) -> Option<usize> {
    let l3 = layout.l3();
    let sender = Ipv4Header::from_prefix(buffer.get(l3..)?)?.src();
    let header_len = layout.l4() - l3;
    let room = buffer.len().checked_sub(l3 + HEADERS_LEN)?;
    let quoted = layout.datagram_len().min(MAX_ERROR_LEN - HEADERS_LEN).min(room);
    if quoted < layout.datagram_len().min(header_len + 8) {
        return None;
    }
    buffer.copy_within(l3..l3 + quoted, l3 + HEADERS_LEN);

    let message_len = icmpv4::HEADER_LEN + quoted;
    let mut ip = Ipv4Header::new(error.src, sender, ipv4::ICMP, error.ttl, message_len as u16);
    ip.set_dscp_ecn(INTERNETWORK_CONTROL);
    let message_start = l3 + ipv4::HEADER_LEN;
    let end = message_start + message_len;
    buffer.get_mut(l3..message_start)?.copy_from_slice(ip.as_bytes());
    let message = buffer.get_mut(message_start..end)?;
    message[..icmpv4::HEADER_LEN].copy_from_slice(IcmpHeader::new(error.kind, error.code, error.rest).as_bytes());
    icmpv4::fill_checksum(message);

    let link = EthernetHeader::from_prefix_mut(buffer)?;
    (link.dst, link.src) = (link.src, link.dst);
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;

    /// A UDP datagram of `data` bytes of data, and a buffer with `room` behind it.
    fn received(data: usize, room: usize) -> (Vec<u8>, Layout) {
        let udp_len = 8 + data as u16;
        let ip = Ipv4Header::new([10, 0, 0, 1].into(), [192, 0, 2, 1].into(), ipv4::UDP, 1, udp_len);
        let link = EthernetHeader::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], ethernet::IPV4);
        let udp = [[0x13, 0x88, 0, 53], [udp_len.to_be_bytes()[0], udp_len.to_be_bytes()[1], 0, 0]].concat();
        let mut frame = [link.as_bytes(), ip.as_bytes(), &udp, &vec![7; data]].concat();
        let layout = parse(&frame).expect("a packet");
        frame.resize(frame.len() + room, 0xEE);
        (frame, layout)
    }

    const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

    /// "The ICMP datagram SHOULD contain as much of the original datagram as possible without the length of the ICMP datagram
    /// exceeding 576 bytes." RFC 1812, section 4.3.2.3.
    #[test]
    fn a_long_datagram_is_quoted_up_to_576_bytes() {
        let (mut buffer, layout) = received(1472, 100);
        let len = build_error(&mut buffer, &layout, &ErrorMessage::fragmentation_needed(1400, US, 64));
        assert_eq!(len, Some(14 + 576));
        let answer = parse(&buffer[..14 + 576]).expect("a packet");
        assert_eq!(answer.icmp(&buffer).map(IcmpHeader::next_hop_mtu), Some(1400));
        assert!(icmpv4::checksum_ok(answer.payload(&buffer)));
    }

    #[test]
    fn the_error_has_the_fields_of_a_routers() {
        let (mut buffer, layout) = received(10, 28);
        let len = build_error(&mut buffer, &layout, &ErrorMessage::time_exceeded(US, 64)).expect("room");
        let answer = parse(&buffer[..len]).expect("a packet");
        let ip = answer.ipv4(&buffer).expect("a header");
        assert_eq!((ip.src(), ip.dst(), ip.ttl(), ip.dscp_ecn()), (US, Ipv4Addr::new(10, 0, 0, 1), 64, 0xC0));
        assert_eq!(buffer[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], "back to its sender");
        assert_eq!(buffer[34..36], [11, 0]);
        assert_eq!(buffer[42 + 8], 1, "quoted with the TTL that it came with");
    }

    #[test]
    fn without_room_the_packet_stays() {
        let (mut buffer, layout) = received(100, 28);
        let before = buffer.clone();
        let error = ErrorMessage::unreachable(icmpv4::HOST_UNREACHABLE, US, 64);
        assert_eq!(build_error(&mut buffer[..14 + 28 + 27], &layout, &error), None);
        assert_eq!(buffer, before);
        assert_eq!(build_error(&mut buffer[..14 + 28 + 128], &layout, &error), Some(14 + 28 + 128));
    }

    #[test]
    fn of_a_packet_that_was_cut_what_is_there_is_quoted() {
        let (whole, layout) = received(100, 0);
        let there = layout.l4() + 8;
        let mut buffer = [&whole[..there], &[0xEE; HEADERS_LEN]].concat();
        let error = ErrorMessage::unreachable(icmpv4::PORT_UNREACHABLE, US, 64);
        assert_eq!(build_error(&mut buffer, &layout, &error), Some(buffer.len()));
        let answer = parse(&buffer).expect("a packet");
        assert_eq!(answer.payload(&buffer)[8..], whole[14..there]);
        assert!(icmpv4::checksum_ok(answer.payload(&buffer)));
    }

    #[test]
    fn no_error_is_sent_where_rfc_1812_forbids() {
        let (frame, layout) = received(10, 0);
        assert!(may_answer_with_error(&frame, &layout));
        let edited = |at: usize, bytes: &[u8]| {
            let mut frame = frame.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            ipv4::fill_checksum(&mut frame[14..]);
            let layout = parse(&frame).expect("a packet");
            may_answer_with_error(&frame, &layout)
        };
        assert!(!edited(0, &[0xFF; 6]), "link-layer broadcast");
        assert!(!edited(0, &[1, 0, 0x5E, 0, 0, 1]), "link-layer multicast");
        assert!(!edited(30, &[224, 0, 0, 5]), "multicast");
        assert!(!edited(30, &[255; 4]), "broadcast");
        assert!(!edited(26, &[0, 0, 0, 0]), "no source");
        assert!(!edited(26, &[127, 0, 0, 1]), "loopback source");
        assert!(!edited(26, &[224, 0, 0, 1]), "multicast source");
        assert!(!edited(20, &[0, 9]), "a later fragment");
        assert!(edited(20, &[0x20, 0]), "a first fragment");
    }

    #[test]
    fn no_error_is_sent_about_an_error_or_an_unknown_message() {
        for (kind, may) in
            [(3, false), (4, false), (5, false), (11, false), (12, false), (40, false), (255, false), (8, true), (13, true)]
        {
            let (mut frame, _) = received(10, 0);
            frame[23] = ipv4::ICMP;
            frame[34] = kind;
            ipv4::fill_checksum(&mut frame[14..]);
            let layout = parse(&frame).expect("a packet");
            assert_eq!(may_answer_with_error(&frame, &layout), may, "type {kind}");
        }
    }
}
