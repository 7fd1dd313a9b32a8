//! The mirror of `bpf/steer.h`: limits, map keys and values, counters, in Rust.
//!
//! Knows layouts only. Used by [`crate::steer`]. Invariant: same names, same numbers, same bytes as the header; the sizes are
//! asserted at compile time and the tests here read the header itself. Addresses are in network byte order.

use std::net::Ipv4Addr;

/// Devices that can carry the XDP program.
pub const MAX_DEVICES: u32 = 32;
/// Queues of a device.
pub const MAX_QUEUES: u32 = 128;
/// Interfaces: devices, and VLANs on them.
pub const MAX_INTERFACES: u32 = 1024;
/// External addresses.
pub const MAX_EXTERNALS: u32 = 65_536;
/// External addresses that are also the box's own.
pub const MAX_SHARED: u32 = 32;
/// Prefixes of each list.
pub const MAX_PREFIXES: u32 = 65_536;
/// Bytes of a frame that can be carried to the process in a datagram.
pub const MAX_CARRIED: usize = 4096;
/// 64-bit words of a set of ports.
pub const PORT_WORDS: usize = 1024;
/// 64-bit words of a set of protocols.
pub const PROTOCOL_WORDS: usize = 4;

/// 64-bit words of a set of the first halves of addresses.
pub(crate) const HALF_WORDS: usize = 1024;
/// Places for interfaces without a tag.
pub(crate) const MAX_UNTAGGED: u32 = 1024;
/// Places for external addresses that are found without a hash.
pub(crate) const MAX_NEAR: u32 = 4096;

pub(crate) const SIDE_INSIDE: u8 = 1;
pub(crate) const SIDE_OUTSIDE: u8 = 2;
pub(crate) const SIDE_ANY_SOURCE: u32 = 256;
pub(crate) const INTERFACE_ANY_SOURCE: u8 = 1;
pub(crate) const INTERFACE_GENERIC: u8 = 2;
pub(crate) const EXTERNAL_SHARED: u32 = 1;
pub(crate) const CLASS_TRANSLATED: u32 = 0;
pub(crate) const CLASS_LOCAL: u32 = 1;
pub(crate) const CLASS_BROADCAST: u32 = 2;
pub(crate) const CLASS_INSIDE: u32 = 3;
pub(crate) const CLASS_ELSEWHERE: u32 = 4;
pub(crate) const PORTS_TCP: u32 = 0;
pub(crate) const PORTS_UDP: u32 = 1;

/// A value as the kernel's maps take it: its bytes, in the header's layout.
pub(crate) trait Bytes<const N: usize> {
    fn bytes(&self) -> [u8; N];
}

/// `struct pc_interface_key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InterfaceKey {
    pub(crate) ifindex: u32,
    pub(crate) vlan: u32,
}

impl Bytes<8> for InterfaceKey {
    fn bytes(&self) -> [u8; 8] {
        join(self.ifindex.to_ne_bytes(), self.vlan.to_ne_bytes())
    }
}

/// `struct pc_interface`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterfaceValue {
    pub(crate) device: u32,
    pub(crate) side: u8,
    pub(crate) flags: u8,
    pub(crate) mac: [u8; 6],
}

impl Bytes<12> for InterfaceValue {
    fn bytes(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.device.to_ne_bytes());
        bytes[4] = self.side;
        bytes[5] = self.flags;
        bytes[6..].copy_from_slice(&self.mac);
        bytes
    }
}

/// `struct pc_untagged`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UntaggedValue {
    pub(crate) ifindex: u32,
    pub(crate) interface: InterfaceValue,
}

impl Bytes<16> for UntaggedValue {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.ifindex.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.interface.bytes());
        bytes
    }
}

/// `struct pc_external`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExternalValue {
    pub(crate) flags: u32,
    pub(crate) slot: u32,
}

impl Bytes<8> for ExternalValue {
    fn bytes(&self) -> [u8; 8] {
        join(self.flags.to_ne_bytes(), self.slot.to_ne_bytes())
    }
}

/// `struct pc_near`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NearValue {
    pub(crate) address: Ipv4Addr,
    pub(crate) external: ExternalValue,
}

impl Bytes<12> for NearValue {
    fn bytes(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.address.octets());
        bytes[4..].copy_from_slice(&self.external.bytes());
        bytes
    }
}

/// `struct pc_carrier`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CarrierValue {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) armed: bool,
    /// As its bytes go into the datagram.
    pub(crate) cookie: [u8; 8],
}

impl Bytes<16> for CarrierValue {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.address.octets());
        bytes[4..6].copy_from_slice(&self.port.to_be_bytes());
        bytes[6..8].copy_from_slice(&u16::from(self.armed).to_ne_bytes());
        bytes[8..].copy_from_slice(&self.cookie);
        bytes
    }
}

/// Whether a `struct pc_carrier` waits for its frame.
pub(crate) fn is_armed(carrier: &[u8]) -> bool {
    carrier.get(6..8).is_some_and(|armed| armed != [0, 0])
}

/// `struct pc_prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PrefixKey {
    pub(crate) length: u32,
    pub(crate) address: Ipv4Addr,
}

impl Bytes<8> for PrefixKey {
    fn bytes(&self) -> [u8; 8] {
        join(self.length.to_ne_bytes(), self.address.octets())
    }
}

/// `struct pc_punted`, taken from a frame. None for what is not IPv4: the program never asks about it.
pub(crate) fn punted_key(frame: &[u8]) -> Option<[u8; 20]> {
    let tagged = frame.get(12..14)? == [0x81, 0x00];
    let network = if tagged { 18 } else { 14 };
    if frame.get(network - 2..network)? != [0x08, 0x00] {
        return None;
    }
    let ip = frame.get(network..)?;
    let header = usize::from(ip.first()? & 0x0F) * 4;
    let mut key = [0; 20];
    key[0..4].copy_from_slice(ip.get(12..16)?);
    key[4..8].copy_from_slice(ip.get(16..20)?);
    key[8..10].copy_from_slice(ip.get(4..6)?);
    key[10] = *ip.get(9)?;
    key[12..14].copy_from_slice(ip.get(6..8)?);
    key[14..16].copy_from_slice(ip.get(2..4)?);
    if let Some(head) = ip.get(header..header + 4) {
        key[16..20].copy_from_slice(head);
    }
    Some(key)
}

fn join(first: [u8; 4], second: [u8; 4]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first);
    bytes[4..].copy_from_slice(&second);
    bytes
}

macro_rules! counters {
    ($($variant:ident $label:literal $meaning:literal)+) => {
        /// What the kernel programs count, in the order of `enum pc_counter`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum SteerCounter { $(#[doc = $meaning] $variant,)+ }

        impl SteerCounter {
            /// All counters, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The counter's name in metrics, tables and docs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What it means, for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }
        }
    };
}

counters! {
    Redirected "redirected" "Given to the NAT's socket."
    DropNoSocket "drop_no_socket" "Dropped: the NAT's, but no process serves the queue (failing closed)."
    DropBadIpHeader "drop_bad_ip_header" "Dropped: an IPv4 header whose version or lengths lie."
    PassTooShort "pass_too_short" "Left to the kernel: shorter than its link-layer header."
    PassUnknownInterface "pass_unknown_interface" "Left to the kernel: a device or VLAN that is not configured."
    PassNotIpv4 "pass_not_ipv4" "Left to the kernel: ARP, IPv6 or another protocol than IPv4."
    PassMulticast "pass_multicast" "Left to the kernel: to a multicast or broadcast address."
    PassOtherHost "pass_other_host" "Left to the kernel: the link-layer destination is another host."
    PassLocal "pass_local" "Left to the kernel: to an address of the box."
    PassBroadcast "pass_broadcast" "Left to the kernel: to a subnet's broadcast address."
    PassInsideRoute "pass_inside_route" "Left to the kernel: from inside to another inside network."
    PassElsewhereRoute "pass_elsewhere_route" "Left to the kernel: routed out of an interface that is not configured."
    PassPrefixNotConfigured "pass_prefix_not_configured" "Left to the kernel: from a source that is not to be translated."
    PassExempt "pass_exempt" "Left to the kernel: to a destination that is exempt from translation."
    PassNotExternal "pass_not_external" "Left to the kernel: from outside, to no external address."
    PassSharedPort "pass_shared_port" "Left to the kernel: a port of the box's own address that is not the NAT's."
    PassSharedIcmp "pass_shared_icmp" "Left to the kernel: ICMP to the box's own address that is not the NAT's."
    PassSharedFragment "pass_shared_fragment" "Left to the kernel: a later fragment whose first was the kernel's."
    PassSharedProtocol "pass_shared_protocol" "Left to the kernel: to the box's own address, of another protocol that is not the NAT's."
    PassPunted "pass_punted" "Left to the kernel: given back by the NAT, on its second way through (generic mode)."
    PassCarried "pass_carried" "Given to the NAT's worker in a datagram, which tells it the queue's NAPI context."
    GuardDropped "guard_dropped" "Dropped at egress: the kernel tried to forward it untranslated between the sides."
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = include_str!("../../../bpf/steer.h");

    fn define(name: &str) -> u64 {
        let line = HEADER.lines().find(|line| line.starts_with(&format!("#define {name} "))).expect(name);
        line.split_whitespace().nth(2).and_then(|value| value.parse().ok()).expect(name)
    }

    #[test]
    fn the_numbers_are_the_headers() {
        let here: [(&str, u64); 25] = [
            ("PC_MAX_DEVICES", MAX_DEVICES.into()),
            ("PC_MAX_QUEUES", MAX_QUEUES.into()),
            ("PC_MAX_INTERFACES", MAX_INTERFACES.into()),
            ("PC_MAX_EXTERNALS", MAX_EXTERNALS.into()),
            ("PC_MAX_SHARED", MAX_SHARED.into()),
            ("PC_MAX_PREFIXES", MAX_PREFIXES.into()),
            ("PC_MAX_CARRIED", MAX_CARRIED as u64),
            ("PC_PORT_WORDS", PORT_WORDS as u64),
            ("PC_PROTOCOL_WORDS", PROTOCOL_WORDS as u64),
            ("PC_HALF_WORDS", HALF_WORDS as u64),
            ("PC_MAX_UNTAGGED", MAX_UNTAGGED.into()),
            ("PC_MAX_NEAR", MAX_NEAR.into()),
            ("PC_SIDE_INSIDE", SIDE_INSIDE.into()),
            ("PC_SIDE_OUTSIDE", SIDE_OUTSIDE.into()),
            ("PC_SIDE_ANY_SOURCE", SIDE_ANY_SOURCE.into()),
            ("PC_INTERFACE_ANY_SOURCE", INTERFACE_ANY_SOURCE.into()),
            ("PC_INTERFACE_GENERIC", INTERFACE_GENERIC.into()),
            ("PC_EXTERNAL_SHARED", EXTERNAL_SHARED.into()),
            ("PC_CLASS_TRANSLATED", CLASS_TRANSLATED.into()),
            ("PC_CLASS_LOCAL", CLASS_LOCAL.into()),
            ("PC_CLASS_BROADCAST", CLASS_BROADCAST.into()),
            ("PC_CLASS_INSIDE", CLASS_INSIDE.into()),
            ("PC_CLASS_ELSEWHERE", CLASS_ELSEWHERE.into()),
            ("PC_PORTS_TCP", PORTS_TCP.into()),
            ("PC_PORTS_UDP", PORTS_UDP.into()),
        ];
        for (name, value) in here {
            assert_eq!(define(name), value, "{name}");
        }
    }

    #[test]
    fn the_counters_are_the_headers_in_the_same_order() {
        let body = HEADER.split("enum pc_counter {").nth(1).and_then(|rest| rest.split('}').next()).expect("the enum");
        let mut names: Vec<_> = body.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        assert_eq!(names.pop(), Some("PC_COUNTERS"));
        let here: Vec<_> = SteerCounter::ALL.iter().map(|counter| format!("PC_{}", counter.label().to_uppercase())).collect();
        assert_eq!(names, here);
    }

    #[test]
    fn prefixes_are_the_length_then_the_address_in_network_order() {
        let key = PrefixKey { length: 24, address: Ipv4Addr::new(10, 1, 2, 0) };
        assert_eq!(key.bytes()[4..], [10, 1, 2, 0]);
        assert_eq!(key.bytes()[..4], 24_u32.to_ne_bytes());
    }

    #[test]
    fn a_punted_frame_is_named_by_its_datagram_and_first_words_with_or_without_a_tag() {
        let mut frame = vec![0_u8; 12];
        frame.extend([
            0x08, 0x00, 0x45, 0, 0, 24, 0xAB, 0xCD, 0x20, 0, 64, 17, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x22, 0x33, 0x44,
        ]);
        let key = punted_key(&frame).expect("IPv4");
        assert_eq!(key, [1, 2, 3, 4, 5, 6, 7, 8, 0xAB, 0xCD, 17, 0, 0x20, 0, 0, 24, 0x11, 0x22, 0x33, 0x44]);
        frame.splice(12..12, [0x81, 0x00, 0, 5]);
        assert_eq!(punted_key(&frame), Some(key));
        assert_eq!(punted_key(&frame[..30]), None);
    }
}
