//! What the worker is told from outside: the configured rules and the network as the kernel sees it, both immutable.
//!
//! Knows plain values; nothing here changes after it was built, a change is a new snapshot that the worker adopts between two
//! bursts (the door "policy in"). Built by the control plane from `config` and netlink, and by tests by hand.
//! Invariant: identifiers are positions in the vectors of one snapshot pair.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use prefix_trie::PrefixMap;
use zerocopy::{FromZeros, KnownLayout};

pub use crate::protocols::ProtocolSet;

/// Which way an interface looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Towards the subscribers, whose addresses are translated.
    Inside,
    /// Towards the remote hosts, which see external addresses only.
    Outside,
}

/// A protocol that the NAT translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// ICMP queries; the identifier stands where the others have a port (RFC 5508, section 3).
    Icmp = 1,
    /// TCP (RFC 5382).
    Tcp = 6,
    /// UDP (RFC 4787).
    Udp = 17,
}

impl Protocol {
    /// All of them, in the order of [`Protocol::index`].
    pub const ALL: [Self; 3] = [Self::Icmp, Self::Tcp, Self::Udp];

    /// A dense number from 0 to 2, to index tables with.
    #[inline]
    pub const fn index(self) -> usize {
        match self {
            Self::Icmp => 0,
            Self::Tcp => 1,
            Self::Udp => 2,
        }
    }

    /// The protocol of an IPv4 header's protocol field, where the NAT translates it.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Icmp),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

/// An address with a port, or with an ICMP identifier. Host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub address: Ipv4Addr,
    /// The port, or the ICMP identifier.
    pub port: u16,
}

/// How long a mapping's external endpoint stays the same: what of the remote endpoint makes a new one (RFC 4787, section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MappingBehaviour {
    /// One mapping for all remotes (REQ-1).
    #[default]
    EndpointIndependent,
    /// One mapping for each remote address.
    AddressDependent,
    /// One mapping for each remote address and port.
    AddressAndPortDependent,
}

impl MappingBehaviour {
    /// The part of the remote endpoint that makes a mapping of its own (RFC 4787, section 4.1).
    pub(crate) fn scope(self, remote: Endpoint) -> Endpoint {
        match self {
            Self::EndpointIndependent => Endpoint { address: Ipv4Addr::UNSPECIFIED, port: 0 },
            Self::AddressDependent => Endpoint { address: remote.address, port: 0 },
            Self::AddressAndPortDependent => remote,
        }
    }
}

/// Which inbound packets a mapping lets in (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// Any remote.
    EndpointIndependent,
    /// Remote addresses that the internal endpoint has sent to.
    AddressDependent,
    /// Remote endpoints that the internal endpoint has sent to.
    #[default]
    AddressAndPortDependent,
}

/// Whether a UDP mapping's external port is even where the internal one is (RFC 4787, section 4.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PortParity {
    /// It may be either (RFC 7857, section 8, lets a NAT do so).
    #[default]
    Any,
    /// It is, as long as such a port is free (REQ-4).
    Preserve,
}

/// How long a UDP port or an ICMP identifier rests after its mapping has ended (RFC 6888, REQ-8). Of TCP, whose sessions are tracked, none
/// does (exception A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortHold {
    /// For so long it is not given again, at most [`crate::REST_MOST`]. Zero: it is free at once.
    pub time: Duration,
    /// Ports of one address and protocol that rest at most, all workers' together; beyond, the one that rests longest is free.
    pub most: u32,
}

impl Default for PortHold {
    /// No port rests: that is for filters that let strangers in.
    fn default() -> Self {
        Self { time: Duration::ZERO, most: 32_768 }
    }
}

/// Idle times after which a session ends. At most [`crate::time::Tick::HORIZON`] each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP (RFC 4787, REQ-5: at least 2 min, recommended 5 min).
    pub udp: Duration,
    /// TCP in the established state (RFC 5382, REQ-5: at least 2 h 4 min).
    pub tcp_established: Duration,
    /// TCP that opens (RFC 5382, REQ-5: at least 4 min; RFC 7857, section 2.1, allows less).
    pub tcp_opening: Duration,
    /// TCP that was closed by both sides, or reset (RFC 5382, REQ-5: at least 4 min).
    pub tcp_closing: Duration,
    /// ICMP queries (RFC 5508, REQ-2: at least 60 s).
    pub icmp: Duration,
    /// Fragments that wait for, or follow, their first (RFC 791 suggests 15 s).
    pub fragment: Duration,
    /// A translation of a protocol without ports that nobody has answered yet (chosen: no RFC says; so long is the kernel's for GRE).
    pub other_opening: Duration,
    /// One that was answered (chosen: no RFC says; so long is the kernel's for protocols that it does not know).
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            udp: Duration::from_secs(300),
            tcp_established: Duration::from_secs(7440),
            tcp_opening: Duration::from_secs(240),
            tcp_closing: Duration::from_secs(240),
            icmp: Duration::from_secs(60),
            fragment: Duration::from_secs(15),
            other_opening: Duration::from_secs(30),
            other: Duration::from_secs(600),
        }
    }
}

/// How many different times UDP sessions may have by their destination port: as many as a session's record can tell apart.
pub const UDP_PORT_TIMES: usize = 4;

/// What the sender of a SYN from outside gets that no mapping lets in (RFC 5382, REQ-4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnsolicitedSyn {
    /// Port Unreachable, six seconds later, if no SYN from inside has followed.
    #[default]
    Answered,
    /// Nothing (REQ-4a).
    Silent,
}

/// How many ICMP errors the gateway itself sends (RFC 1812, section 4.3.2.8), and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpErrors {
    /// Errors a second, for each worker. Zero sends none.
    pub rate: u32,
    /// Errors at once after a quiet time.
    pub burst: u32,
    /// The code of the Destination Unreachable that tells a sender that ports or tables are exhausted: 13 (RFC 5508, REQ-8) or
    /// 1 (RFC 6888, REQ-11B).
    pub exhausted_code: u8,
    /// What an unsolicited SYN's sender gets.
    pub unsolicited_syn: UnsolicitedSyn,
}

impl Default for IcmpErrors {
    fn default() -> Self {
        Self { rate: 1000, burst: 50, exhausted_code: 13, unsolicited_syn: UnsolicitedSyn::default() }
    }
}

/// A set of port numbers, exact. **Shape:** 65,536 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    words: Box<[u64; 1024]>,
}

impl core::fmt::Debug for PortSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.ranges()).finish()
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::empty()
    }
}

impl PortSet {
    /// The set of no port.
    pub fn empty() -> Self {
        Self { words: Box::new([0; 1024]) }
    }

    /// The set from `first` to `last`, both included.
    pub fn range(first: u16, last: u16) -> Self {
        let mut set = Self::empty();
        set.insert_range(first, last);
        set
    }

    /// Adds the ports from `first` to `last`, both included.
    pub fn insert_range(&mut self, first: u16, last: u16) {
        for port in first..=last {
            self.words[usize::from(port) / 64] |= 1 << (port % 64);
        }
    }

    /// Takes the ports from `first` to `last` out, both included.
    pub fn remove_range(&mut self, first: u16, last: u16) {
        for port in first..=last {
            self.words[usize::from(port) / 64] &= !(1 << (port % 64));
        }
    }

    /// Whether `port` is in the set.
    #[inline]
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port) / 64] >> (port % 64) & 1 == 1
    }

    /// How many ports the set has, at most 65,536.
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether the set has no port.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// The bits, port 0 in bit 0 of word 0.
    pub fn words(&self) -> &[u64; 1024] {
        &self.words
    }

    /// The set as ranges, first and last included, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        let mut next = 0_u32;
        core::iter::from_fn(move || {
            let first = (next..=0xFFFF).find(|&port| self.contains(port as u16))?;
            let end = (first..=0xFFFF).find(|&port| !self.contains(port as u16)).unwrap_or(0x1_0000);
            next = end;
            Some((first as u16, (end - 1) as u16))
        })
    }
}

/// One external address, in its slot. Slots keep their position over snapshots; a slot without an address gives no ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The address, or none while the interface that it is taken from has none. A changed address ends the slot's mappings.
    pub address: Option<Ipv4Addr>,
    /// The ports and ICMP identifiers that mappings may take: the pool's range, less the forwards', less what the host keeps.
    pub ports: PortSet,
    /// Whether the address is also the box's own: packets that no mapping or forward claims are then the kernel's.
    pub shared_with_host: bool,
    /// The pool's name, for whoever reads the tables.
    pub pool: String,
}

/// A port forward: an external port, or a range of them, that leads to internal servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The slot of the external address.
    pub external: usize,
    /// The first external port.
    pub first: u16,
    /// The last external port, included.
    pub last: u16,
    /// The servers, at least one; a session's server is drawn by its remote endpoint. The port is the one that `first` leads to; a
    /// range keeps its order.
    pub servers: Vec<Endpoint>,
}

/// The configured rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The external addresses, by slot.
    pub externals: Vec<External>,
    /// The port forwards; they do not overlap.
    pub forwards: Vec<Forward>,
    /// The mapping behaviour.
    pub mapping: MappingBehaviour,
    /// The filtering behaviour of UDP and ICMP queries.
    pub filtering_udp: Filtering,
    /// The filtering behaviour of TCP (RFC 5382, REQ-3: configurable on its own).
    pub filtering_tcp: Filtering,
    /// Whether inbound packets keep a session alive that was let in by the filter alone (RFC 7857, section 7: off by default).
    pub inbound_refresh: bool,
    /// Whether UDP ports keep their parity.
    pub port_parity: PortParity,
    /// How long ports rest.
    pub port_hold: PortHold,
    /// The idle timeouts.
    pub timeouts: Timeouts,
    /// Instead of `timeouts.udp`, those of UDP sessions that the inside begins towards these ports (RFC 4787, REQ-5a). At most
    /// [`UDP_PORT_TIMES`] different ones; of more, the longest do not count.
    pub udp_ports: BTreeMap<u16, Duration>,
    /// The gateway's own ICMP errors.
    pub icmp_errors: IcmpErrors,
    /// The protocols beside TCP, UDP and ICMP that are translated by address.
    pub other_protocols: ProtocolSet,
}

/// A network device that frames come from and go to: the position of an AF_XDP attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromZeros, KnownLayout)]
pub struct DeviceId(pub u8);

/// An interface: a position in [`Network::interfaces`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromZeros, KnownLayout)]
pub struct InterfaceId(pub u16);

/// What the transport checksums of the frames that a device receives may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReceivedChecksums {
    /// Complete, or only the sum of the pseudo-header: senders on the same machine leave the rest to hardware that is not there.
    #[default]
    MaybePartial,
    /// Complete: the frames come from a wire.
    Complete,
}

/// To what the maximum segment size is lowered that TCP connections through an interface announce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// It is left alone.
    #[default]
    Off,
    /// To what fits the MTU of the path through the interface.
    PathMtu,
    /// To that size. **Units:** bytes of data.
    At(u16),
}

/// A link-layer address.
pub type Mac = [u8; 6];

/// A configured interface as the kernel has it now: a device, or a VLAN on one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's name.
    pub name: String,
    /// The device that carries its frames.
    pub device: DeviceId,
    /// The VLAN identifier of its frames' tag, where they have one.
    pub vlan: Option<u16>,
    /// Which way it looks.
    pub side: Side,
    /// Its link-layer address.
    pub mac: Mac,
    /// Its addresses, the primary first.
    pub addresses: Vec<Ipv4Net>,
    /// Its MTU. **Units:** bytes from the IPv4 header on.
    pub mtu: u16,
    /// Whether frames can be sent through it.
    pub up: bool,
    /// The internal prefixes that are translated behind an inside interface; empty for all that are routed there.
    pub prefixes: Vec<Ipv4Net>,
    /// The device's: what transport checksums its frames may have.
    pub checksums: ReceivedChecksums,
    /// What it does to the segment sizes of connections.
    pub mss: MssClamp,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Out of an interface: to the gateway, or on-link to the destination itself.
    Via {
        /// The interface.
        interface: InterfaceId,
        /// The gateway, or none for on-link.
        gateway: Option<Ipv4Addr>,
        /// The route's own MTU where it has one.
        mtu: Option<u16>,
    },
    /// To the box itself.
    Local,
    /// Through an interface that is not configured: not the NAT's.
    Elsewhere,
    /// Nowhere: an unreachable, prohibit or blackhole route.
    Unreachable,
}

/// A neighbour on a link.
pub type NeighbourKey = (InterfaceId, Ipv4Addr);

/// The network as the kernel sees it.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// The configured interfaces.
    pub interfaces: Vec<Interface>,
    /// The routes, longest prefix first.
    pub routes: PrefixMap<Ipv4Net, Route>,
    /// The link-layer addresses that are known and usable.
    pub neighbours: hashbrown::HashMap<NeighbourKey, Mac, ahash::RandomState>,
}

impl Network {
    /// The route to `destination`. **Cost:** one longest-prefix match.
    pub fn route(&self, destination: Ipv4Addr) -> Option<Route> {
        let host = Ipv4Net::from(destination);
        self.routes.get_lpm(&host).map(|(_, &route)| route)
    }

    /// The interface of frames from `device` with that VLAN tag.
    pub fn interface_of(&self, device: DeviceId, vlan: Option<u16>) -> Option<InterfaceId> {
        let position = self.interfaces.iter().position(|interface| interface.device == device && interface.vlan == vlan)?;
        Some(InterfaceId(position as u16))
    }
}
