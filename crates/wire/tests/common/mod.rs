//! Frames for tests: packets that Linux sent over veth, a builder on etherparse, and generators of frames that are almost right.
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod bytes;

use etherparse::{Ipv4Options, PacketBuilder, TcpHeader, VlanId};
use portcullis_wire::{ethernet, icmpv4, ipv4};
use proptest::collection::vec;
use proptest::prelude::*;

/// A UDP datagram with a partial checksum, as a veth sender left it.
pub(crate) const PARTIAL_UDP: &[u8] = &[
    2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 0x22, 0x86, 0x10, 0x40, 0, 0x40, 0x11, 0xa0, 0xb8, 10, 0, 0, 1, 10, 0, 0,
    2, 0xe5, 0x9f, 0x11, 0x5c, 0, 0x0e, 0x14, 0x22, b'h', b'e', b'l', b'l', b'o', b'\n',
];
/// What tcpdump says its checksum should be.
pub(crate) const PARTIAL_UDP_COMPLETED: u16 = 0xb0f7;

/// A SYN with a partial checksum, as a veth sender left it.
pub(crate) const PARTIAL_TCP: &[u8] = &[
    2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 0x3c, 0xf2, 0x7b, 0x40, 0, 0x40, 6, 0x34, 0x3e, 10, 0, 0, 1, 10, 0, 0, 2,
    0x9f, 0x2a, 0, 0x51, 0x7c, 0x3f, 0x40, 0x7f, 0, 0, 0, 0, 0xa0, 2, 0xfa, 0xf0, 0x14, 0x31, 0, 0, 2, 4, 5, 0xb4, 4, 2, 8, 10,
    0xf8, 0xbb, 0xba, 6, 0, 0, 0, 0, 1, 3, 3, 10,
];
/// What tcpdump says its checksum should be.
pub(crate) const PARTIAL_TCP_COMPLETED: u16 = 0x2a0d;

/// The reset that answered it, with a complete checksum.
pub(crate) const RESET: &[u8] = &[
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0x28, 0, 0, 0x40, 0, 0x40, 6, 0x26, 0xce, 10, 0, 0, 2, 10, 0, 0, 1, 0,
    0x51, 0x9f, 0x2a, 0, 0, 0, 0, 0x7c, 0x3f, 0x40, 0x80, 0x50, 0x14, 0, 0, 0x3f, 0x93, 0, 0,
];

/// The Port Unreachable that answered the UDP datagram.
pub(crate) const UNREACHABLE: &[u8] = &[
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0xc0, 0, 0x3e, 0x89, 0x60, 0, 0, 0x40, 1, 0xdc, 0x9c, 10, 0, 0, 2, 10, 0, 0, 1,
    3, 3, 0xad, 0xf4, 0, 0, 0, 0, 0x45, 0, 0, 0x22, 0x86, 0x10, 0x40, 0, 0x40, 0x11, 0xa0, 0xb8, 10, 0, 0, 1, 10, 0, 0, 2, 0xe5,
    0x9f, 0x11, 0x5c, 0, 0x0e, 0x14, 0x22, b'h', b'e', b'l', b'l', b'o', b'\n',
];

/// A TCP, UDP or ICMP packet, and what it is made of.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) vlan: Option<u16>,
    pub(crate) src: [u8; 4],
    pub(crate) dst: [u8; 4],
    pub(crate) ports: (u16, u16),
    pub(crate) protocol: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// Any packet that is right in every way.
pub(crate) fn recipes() -> impl Strategy<Value = Recipe> {
    let protocol = prop_oneof![Just(ipv4::UDP), Just(ipv4::TCP), Just(ipv4::ICMP)];
    let vlan = proptest::option::of(1..4095_u16);
    let options = (0..=10_usize).prop_flat_map(|words| vec(any::<u8>(), words * 4));
    let payload = vec(prop_oneof![Just(0), Just(0xFF), any::<u8>()], 0..200);
    (vlan, any::<[u8; 4]>(), any::<[u8; 4]>(), any::<(u16, u16)>(), protocol, options, payload).prop_map(
        |(vlan, src, dst, ports, protocol, options, payload)| Recipe { vlan, src, dst, ports, protocol, options, payload },
    )
}

impl Recipe {
    /// The frame, built and its checksums computed by etherparse.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut ip = etherparse::Ipv4Header { source: self.src, destination: self.dst, time_to_live: 64, ..Default::default() };
        ip.options = Ipv4Options::try_from(&self.options[..]).expect("a multiple of 4 up to 40");
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let headers = etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default());
        let step = match self.vlan {
            Some(id) => link.single_vlan(VlanId::try_new(id).expect("12 bits")).ip(headers),
            None => link.ip(headers),
        };
        let mut frame = Vec::new();
        match self.protocol {
            ipv4::UDP => step.udp(self.ports.0, self.ports.1).write(&mut frame, &self.payload).expect("fits"),
            ipv4::TCP => {
                let mut header = TcpHeader::new(self.ports.0, self.ports.1, 0x1234_5678, 1024);
                header.syn = true;
                step.tcp_header(header).write(&mut frame, &self.payload).expect("fits");
            }
            _ => step.icmpv4_echo_request(self.ports.0, self.ports.1).write(&mut frame, &self.payload).expect("fits"),
        }
        frame
    }
}

/// Bytes that are often nearly a packet: random headers with lengths and checksum that are mostly right, then some bytes changed.
pub(crate) fn frames() -> impl Strategy<Value = Vec<u8>> {
    let almost = (recipes(), vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), any::<u16>(), any::<bool>(), 0..40_usize);
    let almost = almost.prop_map(|(recipe, changes, fragment, fill, cut)| {
        let mut frame = recipe.frame();
        let l3 = if recipe.vlan.is_some() { 18 } else { 14 };
        if fragment & 3 == 3 {
            frame[l3 + 6..l3 + 8].copy_from_slice(&(fragment >> (fragment & 0xC)).to_be_bytes());
        }
        for (at, byte) in changes {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if fill {
            ipv4::fill_checksum(&mut frame[l3..]);
        }
        frame.extend_from_slice(&[0x55; 20]);
        frame.truncate(frame.len() - cut);
        frame
    });
    prop_oneof![8 => almost, 2 => errors(), 1 => vec(any::<u8>(), 0..200)]
}

/// ICMP errors about packets of [`recipes`], quoted in part, sometimes damaged.
pub(crate) fn errors() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![Just(3_u8), Just(4), Just(5), Just(11), Just(12)];
    (recipes(), kind, any::<(u8, u32)>(), 28..200_usize, proptest::option::of((any::<prop::sample::Index>(), any::<u8>())))
        .prop_map(|(quoted, kind, (code, rest), quoted_len, damage)| {
            let original = Recipe { vlan: None, ..quoted }.frame();
            let mut message = icmp_message(kind, code, rest, &original[14..original.len().min(14 + quoted_len)]);
            if let Some((at, byte)) = damage {
                let at = at.index(message.len());
                message[at] = byte;
            }
            ip_frame(ipv4::ICMP, &message)
        })
}

/// An ICMP message with a right checksum.
pub(crate) fn icmp_message(kind: u8, code: u8, rest: u32, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(&rest.to_be_bytes());
    message.extend_from_slice(data);
    icmpv4::fill_checksum(&mut message);
    message
}

/// An untagged frame with an IPv4 header without options in front of `payload`.
pub(crate) fn ip_frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let ip = ipv4::Ipv4Header::new([192, 0, 2, 1].into(), [198, 51, 100, 1].into(), protocol, 64, payload.len() as u16);
    let link = ethernet::EthernetHeader::new([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1], ethernet::IPV4);
    [zerocopy::IntoBytes::as_bytes(&link), zerocopy::IntoBytes::as_bytes(&ip), payload].concat()
}
