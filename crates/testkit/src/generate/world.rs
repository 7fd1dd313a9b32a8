//! The world of the generated traffic: one gateway, two inside and two outside interfaces, a handful of hosts; and its variations.
//!
//! ```text
//!   10.0.0.11 .12 --+ in0 (device 0)            out0 (device 1, VLAN 100 or none) +-- 198.51.100.77 on-link
//!   10.1.0.5 -- router 10.0.0.254                                                 +-- 198.51.100.1 -- 192.0.2.10 .11 (default)
//!   10.0.7.13 ------- in0.7 (device 0, VLAN 7)  out1 (device 2) ------ 100.64.0.1 -- 198.18.0.5
//! ```
//! 198.19.0.0/16 is unreachable, 192.88.99.0/24 leads elsewhere. The pool's addresses are 203.0.113.1 and .2, and out0's own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use portcullis_nat::policy::{
    DeviceId, Endpoint, External, Filtering, Forward, IcmpErrors, Interface, InterfaceId, Mac, MappingBehaviour, MssClamp, Network,
    Policy, PortHold, PortParity, PortSet, Protocol, ProtocolSet, ReceivedChecksums, Route, Side, Timeouts,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::reference::AMPLE_ICMP_ERRORS;

/// The inside hosts: address, interface, and the address of who brings their packets.
pub const HOSTS: [(Ipv4Addr, usize); 4] = [
    (Ipv4Addr::new(10, 0, 0, 11), 0),
    (Ipv4Addr::new(10, 0, 0, 12), 0),
    (Ipv4Addr::new(10, 0, 7, 13), 1),
    (Ipv4Addr::new(10, 1, 0, 5), 0),
];

/// The remote hosts and the interface that leads to each. The last two cannot be reached.
pub const REMOTES: [(Ipv4Addr, usize); 6] = [
    (Ipv4Addr::new(192, 0, 2, 10), 2),
    (Ipv4Addr::new(192, 0, 2, 11), 2),
    (Ipv4Addr::new(198, 51, 100, 77), 2),
    (Ipv4Addr::new(198, 18, 0, 5), 3),
    (Ipv4Addr::new(198, 19, 0, 5), 2),
    (Ipv4Addr::new(192, 88, 99, 1), 2),
];

/// The addresses that external slots may have; the last is out0's own.
pub const POOL: [Ipv4Addr; 3] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2), Ipv4Addr::new(198, 51, 100, 2)];

/// The first port of a small pool.
pub const FIRST_PORT: u16 = 40_000;

/// Protocols without ports that most of them are of: GRE, SCTP, ESP, IPv4 in IPv4; and the two with checksums over the addresses.
pub const OTHERS: [u8; 6] = [47, 132, 50, 4, 33, 136];

/// The link-layer addresses of the gateway's interfaces.
pub const MACS: [Mac; 4] = [[2, 0, 0, 0, 0, 0x10], [2, 0, 0, 0, 0, 0x10], [2, 0, 0, 0, 0, 0x20], [2, 0, 0, 0, 0, 0x30]];

/// The link-layer address of a host with that address.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [6, 1, a, b, c, d]
}

/// One external address.
#[derive(Clone, Debug)]
pub struct SlotPlan {
    /// How many ports from [`FIRST_PORT`] on; zero for the wide range from 1024 on.
    pub ports: u16,
    /// How many ports below 1024 besides.
    pub low: u16,
    /// Whether it is the box's own too.
    pub shared: bool,
}

/// Everything about the world that varies.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the configuration")]
pub struct Plan {
    /// The external addresses, in the order of [`POOL`].
    pub slots: Vec<SlotPlan>,
    /// Which of the forwards there are.
    pub forwards: [bool; 3],
    /// The mapping behaviour.
    pub mapping: MappingBehaviour,
    /// The filtering of UDP and ICMP.
    pub filtering_udp: Filtering,
    /// The filtering of TCP.
    pub filtering_tcp: Filtering,
    /// RFC 7857, section 7.
    pub inbound_refresh: bool,
    /// Whether UDP ports keep their parity.
    pub parity: bool,
    /// How long ports rest. **Units:** seconds.
    pub hold: u64,
    /// Whether the timeouts are short instead of the RFCs'.
    pub short_timeouts: bool,
    /// The ports that UDP has times of their own towards: those of other sessions, by number, so that waits meet them.
    pub udp_ports: BTreeMap<u16, u8>,
    /// Whether the gateway answers at all.
    pub answers: bool,
    /// 13 or 1.
    pub exhausted_code: u8,
    /// Whether out0 is tagged.
    pub tagged: bool,
    /// Whether there is a default route.
    pub default_route: bool,
    /// Whether in0.7 has prefixes.
    pub prefixes: bool,
    /// The MTU of each interface.
    pub mtus: [u16; 4],
    /// What each interface does to segment sizes.
    pub mss: [MssClamp; 4],
    /// The MTU of the default route.
    pub route_mtu: Option<u16>,
    /// Mappings, sessions and fragmented packets that the NAT holds.
    pub capacity: (u32, u32, u32),
    /// Bare mappings that it holds. Zero: UDP has sessions.
    pub bare: u32,
    /// Translations of protocols without ports that it holds.
    pub others: u32,
    /// Which of [`OTHERS`] are not translated: bit by bit.
    pub untranslated: u8,
    /// When it starts.
    pub start: u32,
    /// Which neighbours have no link-layer address: bit by bit over [`next_hops`].
    pub unresolved: u8,
    /// Which interfaces are down.
    pub down: u8,
}

/// The same set with a protocol more, or less.
pub fn flipped(protocols: ProtocolSet, protocol: u8) -> ProtocolSet {
    let others = protocols.iter().filter(|&other| other != protocol);
    others.chain((!protocols.contains(protocol)).then_some(protocol)).collect()
}

/// The next hops of the world, with their interfaces.
pub fn next_hops() -> Vec<(InterfaceId, Ipv4Addr)> {
    let hop = |interface, text: &str| (InterfaceId(interface), text.parse().expect("an address"));
    vec![
        hop(2, "198.51.100.1"),
        hop(0, "10.0.0.11"),
        hop(0, "10.0.0.12"),
        hop(1, "10.0.7.13"),
        hop(0, "10.0.0.254"),
        hop(2, "198.51.100.77"),
        hop(3, "100.64.0.1"),
    ]
}

/// One of the times that are not UDP's.
const fn other_time(times: &Timeouts, number: u8) -> Duration {
    match number {
        0 => times.fragment,
        1 => times.icmp,
        2 => times.tcp_opening,
        _ => times.tcp_established,
    }
}

fn net(text: &str) -> Ipv4Net {
    text.parse().expect("a prefix")
}

impl Plan {
    /// The rules.
    pub fn policy(&self) -> Policy {
        let timeouts = if self.short_timeouts {
            let seconds = Duration::from_secs;
            Timeouts {
                udp: seconds(20),
                tcp_established: seconds(60),
                tcp_opening: seconds(8),
                tcp_closing: seconds(10),
                icmp: seconds(5),
                fragment: seconds(3),
                other_opening: seconds(4),
                other: seconds(15),
            }
        } else {
            Timeouts::default()
        };
        let (rate, burst) = if self.answers { (AMPLE_ICMP_ERRORS, AMPLE_ICMP_ERRORS) } else { (0, 0) };
        Policy {
            externals: self.slots.iter().enumerate().map(|(number, slot)| external(number, slot)).collect(),
            forwards: forwards().into_iter().zip(self.forwards).filter_map(|(forward, wanted)| wanted.then_some(forward)).collect(),
            mapping: self.mapping,
            filtering_udp: self.filtering_udp,
            filtering_tcp: self.filtering_tcp,
            inbound_refresh: self.inbound_refresh,
            port_parity: if self.parity { PortParity::Preserve } else { PortParity::Any },
            port_hold: PortHold { time: Duration::from_secs(self.hold), ..PortHold::default() },
            udp_ports: self.udp_ports.iter().map(|(&port, &number)| (port, other_time(&timeouts, number))).collect(),
            timeouts,
            icmp_errors: IcmpErrors { rate, burst, exhausted_code: self.exhausted_code, ..IcmpErrors::default() },
            other_protocols: self.other_protocols(),
        }
    }

    /// The rules `before` with a UDP forward more, less, or leading elsewhere; the pool's ports are all that no forward has. A new one stands over one
    /// of the `used` external endpoints, so that it takes what has that port. Nothing changes where there is neither.
    pub fn reforwarded(&self, before: &Policy, used: &[Endpoint], change: &ForwardChange) -> Policy {
        let mut policy = before.clone();
        let is_udp = |forward: &Forward| forward.protocol == Protocol::Udp;
        let known: Vec<_> = (0..policy.forwards.len()).filter(|&at| is_udp(&policy.forwards[at])).collect();
        if known.is_empty() && used.is_empty() {
            return policy;
        }
        // As often as not one goes, for its sessions' sake.
        let (at, twice) = (change.of.index(2 * known.len() + used.len()), 2 * known.len());
        match known.get(at / 2) {
            Some(&at) if change.elsewhere => policy.forwards[at].servers = change.servers(),
            Some(&at) => drop(policy.forwards.remove(at)),
            None => policy.forwards.extend(change.over(used[at - twice], &policy)),
        }
        for (number, (external, slot)) in policy.externals.iter_mut().zip(&self.slots).enumerate() {
            external.ports = ports(number, slot);
            for forward in policy.forwards.iter().filter(|forward| forward.external == number) {
                external.ports.remove_range(forward.first, forward.last);
            }
        }
        policy
    }

    fn other_protocols(&self) -> ProtocolSet {
        let not =
            |protocol: u8| OTHERS.iter().position(|&other| other == protocol).is_some_and(|bit| self.untranslated >> bit & 1 == 1);
        ProtocolSet::ALL.iter().filter(|&protocol| !not(protocol)).collect()
    }

    /// The network.
    pub fn network(&self) -> Network {
        let mut network = Network { interfaces: self.interfaces(), ..Network::default() };
        for (prefix, route) in self.routes() {
            network.routes.insert(prefix, route);
        }
        for (bit, (interface, address)) in next_hops().into_iter().enumerate() {
            if self.unresolved >> bit & 1 == 0 {
                network.neighbours.insert((interface, address), mac_of(address));
            }
        }
        network
    }

    fn interfaces(&self) -> Vec<Interface> {
        let facts = [
            ("in0", 0, None, Side::Inside, "10.0.0.1/24"),
            ("in0.7", 0, Some(7), Side::Inside, "10.0.7.1/24"),
            ("out0", 1, self.tagged.then_some(100), Side::Outside, "198.51.100.2/24"),
            ("out1", 2, None, Side::Outside, "100.64.0.2/24"),
        ];
        let interface = |(number, (name, device, vlan, side, address)): (usize, (&str, u8, Option<u16>, Side, &str))| Interface {
            name: name.to_owned(),
            device: DeviceId(device),
            vlan,
            side,
            mac: MACS[number],
            addresses: vec![net(address)],
            mtu: self.mtus[number],
            up: self.down >> number & 1 == 0,
            prefixes: if number == 1 && self.prefixes { vec![net("10.0.7.0/25")] } else { Vec::new() },
            checksums: ReceivedChecksums::default(),
            mss: self.mss[number],
        };
        facts.into_iter().enumerate().map(interface).collect()
    }

    fn routes(&self) -> Vec<(Ipv4Net, Route)> {
        let via = |interface, gateway: Option<&str>, mtu| Route::Via {
            interface: InterfaceId(interface),
            gateway: gateway.map(|text| text.parse().expect("an address")),
            mtu,
        };
        let mut routes = vec![
            (net("10.0.0.0/24"), via(0, None, None)),
            (net("10.0.7.0/24"), via(1, None, None)),
            (net("10.1.0.0/16"), via(0, Some("10.0.0.254"), None)),
            (net("198.51.100.0/24"), via(2, None, None)),
            (net("100.64.0.0/24"), via(3, None, None)),
            (net("198.18.0.0/15"), via(3, Some("100.64.0.1"), None)),
            (net("198.19.0.0/16"), Route::Unreachable),
            (net("192.88.99.0/24"), Route::Elsewhere),
        ];
        for local in ["10.0.0.1/32", "10.0.7.1/32", "198.51.100.2/32", "100.64.0.2/32"] {
            routes.push((net(local), Route::Local));
        }
        if self.default_route {
            routes.push((net("0.0.0.0/0"), via(2, Some("198.51.100.1"), self.route_mtu)));
        }
        routes
    }
}

fn external(number: usize, slot: &SlotPlan) -> External {
    let (address, ports) = (Some(POOL[number]), ports(number, slot));
    External { address, ports, shared_with_host: slot.shared || number == 2, pool: "default".to_owned() }
}

/// The ports of a slot, without those of the forwards that a plan may have.
fn ports(number: usize, slot: &SlotPlan) -> PortSet {
    let mut ports = match slot.ports {
        0 => PortSet::range(1024, 65_535),
        count => PortSet::range(FIRST_PORT, FIRST_PORT + count - 1),
    };
    if slot.low > 0 {
        ports.insert_range(1024 - slot.low, 1023);
    }
    for forward in forwards().iter().filter(|forward| forward.external == number) {
        ports.remove_range(forward.first, forward.last);
    }
    ports
}

/// What happens to the UDP forwards.
#[derive(Clone, Debug)]
pub struct ForwardChange {
    /// Which one: of those that there are, twice, and then of the external endpoints in use.
    pub of: Index,
    /// Whether one that there is gets other servers, instead of going.
    pub elsewhere: bool,
    /// Whether a new one has two ports.
    pub wide: bool,
    /// The servers: a host, and one of a few ports.
    pub servers: Vec<(Index, Index)>,
}

impl ForwardChange {
    fn servers(&self) -> Vec<Endpoint> {
        let mut servers = Vec::new();
        for (host, port) in &self.servers {
            let server = Endpoint { address: host.get(&HOSTS).0, port: *port.get(&[80, 1000, 1001]) };
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }

    /// A forward from an external endpoint, and from the next port if that is free and wanted.
    fn over(&self, used: Endpoint, policy: &Policy) -> Option<Forward> {
        let external = policy.externals.iter().position(|external| external.address == Some(used.address))?;
        let is_forwarded = |port: u16| {
            let mut udp =
                policy.forwards.iter().filter(|forward| (forward.protocol, forward.external) == (Protocol::Udp, external));
            udp.any(|forward| (forward.first..=forward.last).contains(&port))
        };
        let next = used.port.checked_add(1).filter(|&next| self.wide && !is_forwarded(next));
        let (first, last) = (used.port, next.unwrap_or(used.port));
        (!is_forwarded(first)).then(|| Forward { protocol: Protocol::Udp, external, first, last, servers: self.servers() })
    }
}

/// The forwards that a plan may have: one server; a range; two servers.
pub fn forwards() -> Vec<Forward> {
    let server = |host: usize, port| Endpoint { address: HOSTS[host].0, port };
    vec![
        Forward { protocol: Protocol::Tcp, external: 0, first: 8080, last: 8080, servers: vec![server(0, 80)] },
        Forward { protocol: Protocol::Udp, external: 0, first: 9000, last: 9001, servers: vec![server(1, 1000)] },
        Forward { protocol: Protocol::Tcp, external: 0, first: 8081, last: 8081, servers: vec![server(0, 1000), server(2, 1000)] },
    ]
}

fn filtering() -> impl Strategy<Value = Filtering> {
    prop_oneof![Just(Filtering::EndpointIndependent), Just(Filtering::AddressDependent), Just(Filtering::AddressAndPortDependent)]
}

fn mapping() -> impl Strategy<Value = MappingBehaviour> {
    prop_oneof![
        2 => Just(MappingBehaviour::EndpointIndependent),
        1 => Just(MappingBehaviour::AddressDependent),
        1 => Just(MappingBehaviour::AddressAndPortDependent)
    ]
}

fn slots() -> impl Strategy<Value = Vec<SlotPlan>> {
    let ports = prop_oneof![4 => 1_u16..=4, 2 => Just(12), 1 => Just(0)];
    let low = prop_oneof![2 => Just(0_u16), 1 => 1_u16..=3];
    let slot = (ports, low, prop::bool::weighted(0.3)).prop_map(|(ports, low, shared)| SlotPlan { ports, low, shared });
    prop::collection::vec(slot, 1..=3)
}

/// An MTU: mostly Ethernet's, else one that common packets exceed.
pub fn mtu() -> impl Strategy<Value = u16> {
    prop_oneof![5 => Just(1500_u16), 1 => Just(1400), 1 => Just(576)]
}

fn clamp() -> impl Strategy<Value = MssClamp> {
    prop_oneof![2 => Just(MssClamp::Off), 1 => Just(MssClamp::PathMtu), 1 => (500_u16..1500).prop_map(MssClamp::At)]
}

fn start() -> impl Strategy<Value = u32> {
    prop_oneof![1 => any::<u32>(), 2 => (0_u32..120_000).prop_map(|before| u32::MAX - before)]
}

/// Bits of which mostly none are set.
fn rare_bits() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(0_u8), 1 => any::<u8>(), 1 => (0_u8..8).prop_map(|bit| 1 << bit)]
}

/// How many bare mappings there is room for, where there are any: often enough, or else so few that they run out.
pub fn bare() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(64_u32), 1 => 1_u32..6]
}

/// Any world in which UDP has sessions.
pub fn plan() -> impl Strategy<Value = Plan> {
    let capacity = prop_oneof![3 => Just((64_u32, 64_u32, 64_u32)), 1 => (1_u32..6, 1_u32..8, 1_u32..4)];
    let rules = (slots(), any::<[bool; 3]>(), mapping(), filtering(), filtering(), any::<bool>(), prop::bool::weighted(0.8));
    let answers = (
        prop::bool::weighted(0.85),
        prop_oneof![Just(13_u8), Just(1_u8)],
        any::<bool>(),
        prop_oneof![2 => Just(0_u64), 1 => Just(5), 1 => Just(30)],
    );
    let udp_ports = prop_oneof![
        2 => Just(BTreeMap::new()),
        1 => prop::collection::btree_map(prop_oneof![Just(53_u16), Just(80), FIRST_PORT..FIRST_PORT + 2], 0_u8..4, 1..4),
    ];
    let mss = prop_oneof![2 => Just([MssClamp::Off; 4]), 1 => [clamp(), clamp(), clamp(), clamp()]];
    let links =
        (any::<bool>(), prop::bool::weighted(0.9), any::<bool>(), [mtu(), mtu(), mtu(), mtu()], prop::option::of(mtu()), mss);
    let others = (prop_oneof![3 => Just(64_u32), 1 => 1_u32..4], rare_bits());
    let rest = (capacity, start(), rare_bits(), prop_oneof![6 => Just(0_u8), 1 => any::<u8>()], others, udp_ports);
    (rules, answers, links, rest).prop_map(|(rules, answers, links, rest)| Plan {
        slots: rules.0,
        forwards: rules.1,
        mapping: rules.2,
        filtering_udp: rules.3,
        filtering_tcp: rules.4,
        inbound_refresh: rules.5,
        parity: answers.2,
        hold: answers.3,
        short_timeouts: rules.6,
        udp_ports: rest.5,
        answers: answers.0,
        exhausted_code: answers.1,
        tagged: links.0,
        default_route: links.1,
        prefixes: links.2,
        mtus: links.3,
        route_mtu: links.4,
        mss: links.5,
        capacity: rest.0,
        bare: 0,
        others: rest.4.0,
        untranslated: rest.4.1,
        start: rest.1,
        unresolved: rest.2,
        down: rest.3,
    })
}

impl Default for Plan {
    /// A plain world: two addresses of four ports, all forwards, the default behaviours, everything up and resolved.
    fn default() -> Self {
        let slot = SlotPlan { ports: 4, low: 0, shared: false };
        Self {
            slots: vec![slot.clone(), slot],
            forwards: [true; 3],
            mapping: MappingBehaviour::default(),
            filtering_udp: Filtering::default(),
            filtering_tcp: Filtering::default(),
            inbound_refresh: false,
            parity: false,
            hold: 0,
            short_timeouts: true,
            udp_ports: BTreeMap::new(),
            answers: true,
            exhausted_code: 13,
            tagged: true,
            default_route: true,
            prefixes: true,
            mtus: [1500; 4],
            route_mtu: None,
            mss: [MssClamp::Off; 4],
            capacity: (64, 64, 64),
            bare: 0,
            others: 64,
            untranslated: 0,
            start: u32::MAX - 5_000,
            unresolved: 0,
            down: 0,
        }
    }
}
