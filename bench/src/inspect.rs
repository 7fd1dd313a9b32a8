//! What one received frame is, and whether its checksums are right.
//!
//! Pure: bytes in, an observation out. Called by the sink for every frame. Invariant: any bytes at all give an answer.

use std::net::Ipv4Addr;

use crate::checksum::{Sum, pseudo_header};
use crate::stamp::Stamp;
use crate::stream::{ETHERNET_LEN, IPV4_LEN};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const VLAN_LEN: usize = 4;

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Something else than IPv4: ARP, IPv6.
    NotIpv4,
    /// A fragment, whose upper layer cannot be judged by itself.
    Fragment,
    /// IPv4 without our stamp.
    Foreign,
    /// A packet of a generator.
    Ours(Observation),
}

/// A checksum's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    Right,
    Wrong,
    /// UDP without checksum.
    Absent,
    /// Left to hardware that was never there: the kernel says so beside the frame.
    Unfinished,
}

/// What is seen of one of our packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) source: Ipv4Addr,
    /// The source port, or the ICMP identifier.
    pub(crate) source_port: u16,
    pub(crate) ip_checksum: Check,
    pub(crate) l4_checksum: Check,
    pub(crate) stamp: Stamp,
}

/// What `frame` is. `unfinished` is the kernel's word that the upper layer's checksum was left to hardware.
pub(crate) fn inspect(frame: &[u8], unfinished: bool) -> Seen {
    let Some(packet) = ipv4_packet(frame) else { return Seen::NotIpv4 };
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    if header_len < IPV4_LEN || packet.len() < header_len {
        return Seen::Foreign;
    }
    if word(packet, 6) & 0x3fff != 0 {
        return Seen::Fragment;
    }
    let (header, rest) = packet.split_at(header_len);
    // What follows the IPv4 packet is Ethernet's padding.
    let l4 = &rest[..rest.len().min(usize::from(word(header, 2)).saturating_sub(header_len))];
    upper_layer(header, l4, unfinished).unwrap_or(Seen::Foreign)
}

fn ipv4_packet(frame: &[u8]) -> Option<&[u8]> {
    let mut at = ETHERNET_LEN - 2;
    let mut ethertype = u16::from_be_bytes(*frame.get(at..)?.first_chunk()?);
    // At most two tags, QinQ.
    for _ in 0..2 {
        if ETHERTYPE_VLAN.contains(&ethertype) {
            at += VLAN_LEN;
            ethertype = u16::from_be_bytes(*frame.get(at..)?.first_chunk()?);
        }
    }
    let packet = frame.get(at + 2..)?;
    (ethertype == ETHERTYPE_IPV4 && packet.len() >= IPV4_LEN && packet[0] >> 4 == 4).then_some(packet)
}

fn upper_layer(header: &[u8], l4: &[u8], unfinished: bool) -> Option<Seen> {
    let source: [u8; 4] = *header.get(12..)?.first_chunk()?;
    let destination: [u8; 4] = *header.get(16..)?.first_chunk()?;
    let protocol = header[9];
    let (payload_at, port_at, covered) = match protocol {
        17 => (8, 0, pseudo_header(source, destination, protocol, l4.len())),
        6 => (usize::from(l4.get(12)? >> 4) * 4, 0, pseudo_header(source, destination, protocol, l4.len())),
        1 if matches!(l4.first()?, 0 | 8) => (8, 4, Sum::default()),
        _ => return None,
    };
    let stamp = Stamp::from_bytes(l4.get(payload_at..)?)?;
    let l4_checksum = if protocol == 17 && word(l4, 6) == 0 {
        Check::Absent
    } else if covered.bytes(l4).fold() == 0xffff {
        Check::Right
    } else if unfinished {
        Check::Unfinished
    } else {
        Check::Wrong
    };
    let ip_checksum = if Sum::default().bytes(header).fold() == 0xffff { Check::Right } else { Check::Wrong };
    Some(Seen::Ours(Observation { source: source.into(), source_port: word(l4, port_at), ip_checksum, l4_checksum, stamp }))
}

/// The 16-bit word at `at`, which the caller knows to be there.
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Mac;
    use crate::stream::{Checksum, Protocol, Stream, Template};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn frame(change: impl FnOnce(&mut Stream)) -> Vec<u8> {
        let mut stream = Stream::new(MAC, Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(198, 51, 100, 2));
        change(&mut stream);
        Template::new(&stream, MAC).unwrap().frame(3, 4)
    }

    fn ours(frame: &[u8]) -> Observation {
        match inspect(frame, false) {
            Seen::Ours(seen) => seen,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn any_flipped_bit_of_the_upper_layer_is_a_wrong_checksum_or_no_packet_of_ours() {
        for protocol in [Protocol::Udp, Protocol::TcpAck, Protocol::IcmpEcho] {
            let right = frame(|stream| (stream.protocol, stream.size) = (protocol, 90));
            for bit in (ETHERNET_LEN + IPV4_LEN) * 8..right.len() * 8 {
                let mut wrong = right.clone();
                wrong[bit / 8] ^= 1 << (bit % 8);
                if let Seen::Ours(seen) = inspect(&wrong, false) {
                    assert_eq!(seen.l4_checksum, Check::Wrong, "{protocol:?}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_of_the_ip_header_is_a_wrong_header_checksum() {
        let mut wrong = frame(|_| ());
        wrong[ETHERNET_LEN + 8] ^= 1;
        assert_eq!((ours(&wrong).ip_checksum, ours(&wrong).l4_checksum), (Check::Wrong, Check::Right));
        let mut wrong = frame(|_| ());
        wrong[ETHERNET_LEN + 15] ^= 1;
        assert_eq!((ours(&wrong).ip_checksum, ours(&wrong).l4_checksum), (Check::Wrong, Check::Wrong));
    }

    #[test]
    fn absent_and_unfinished_checksums_are_told_from_wrong_ones() {
        assert_eq!(ours(&frame(|stream| stream.checksum = Checksum::Zero)).l4_checksum, Check::Absent);
        let partial = frame(|stream| stream.checksum = Checksum::Partial);
        assert_eq!(ours(&partial).l4_checksum, Check::Wrong);
        assert!(matches!(inspect(&partial, true), Seen::Ours(Observation { l4_checksum: Check::Unfinished, .. })));
    }

    #[test]
    fn padding_and_vlan_tags_do_not_hide_a_packet() {
        let mut tagged = frame(|_| ());
        tagged.extend_from_slice(&[0xaa; 6]);
        for _ in 0..2 {
            tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
            let seen = ours(&tagged);
            assert_eq!((seen.l4_checksum, seen.source_port, seen.stamp.sequence), (Check::Right, 1024, 3));
        }
    }

    #[test]
    fn others_packets_and_torn_ones_are_foreign_and_never_a_panic() {
        let right = frame(|stream| stream.size = 90);
        for len in 0..right.len() {
            let _any_answer = inspect(&right[..len], false);
        }
        let mut other = right.clone();
        other[ETHERNET_LEN + IPV4_LEN + 8] ^= 1;
        assert_eq!(inspect(&other, false), Seen::Foreign);
        let mut arp = right.clone();
        arp[13] = 0x06;
        assert_eq!(inspect(&arp, false), Seen::NotIpv4);
        let mut fragment = right;
        fragment[ETHERNET_LEN + 6] = 0x20;
        assert_eq!(inspect(&fragment, false), Seen::Fragment);
        for seed in 0..=u8::MAX {
            let bytes: Vec<u8> = (0..80_u32).map(|at| (at * 31 + u32::from(seed) * 17) as u8).collect();
            let _any_answer = inspect(&bytes, false);
        }
    }
}
