//! A small gateway for tests: two devices and a trunk, one pool, packets in and verdicts with bytes out, time that is turned by hand.
//!
//! Knows the NAT's public face and the testkit. Called by every test file here. Invariant: each packet that is sent is checked for what
//! holds always (guard bytes untouched, one verdict, counters that sum up, right checksums out), besides what the test asks.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{
    DeviceId, Endpoint, External, Forward, Interface, InterfaceId, Mac, MssClamp, Network, Policy, PortSet, Protocol,
    ReceivedChecksums, Route, Side,
};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::view::{MappingView, OtherView, SessionView};
use portcullis_nat::{Capacity, Packet, Seeds};
use portcullis_steering::Owners;
use portcullis_testkit::builder::{PacketBuilder, describe, endpoint, verify};
use portcullis_testkit::fleet::{self, Done, Fleet};

pub(crate) mod bytes;
mod seen;

pub(crate) use seen::Seen;

/// The device of the inside interfaces `lan0` and `lan0.7`.
pub(crate) const INSIDE: DeviceId = DeviceId(0);
/// The device of the outside interface `wan0`.
pub(crate) const OUTSIDE: DeviceId = DeviceId(1);
/// The device with an inside VLAN (10) and an outside VLAN (20).
pub(crate) const TRUNK: DeviceId = DeviceId(2);

/// The first external address.
pub(crate) const X1: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// More external addresses.
pub(crate) const X2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
pub(crate) const X3: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
/// The gateway's own addresses.
pub(crate) const GATEWAY_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const GATEWAY_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The gateway's link-layer address on interface `number`.
pub(crate) const fn own_mac(number: u16) -> Mac {
    [2, 0, 0, 0, 0xAA, number as u8]
}

/// The link-layer address of a neighbour.
pub(crate) fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [6, 0, a, b, c, d]
}

pub(crate) fn h1() -> Endpoint {
    endpoint("10.0.0.2:5000")
}

pub(crate) fn h2() -> Endpoint {
    endpoint("10.0.0.3:6000")
}

pub(crate) fn e1() -> Endpoint {
    endpoint("192.0.2.1:53")
}

pub(crate) fn e2() -> Endpoint {
    endpoint("198.18.0.9:4242")
}

pub(crate) fn at(base: Endpoint, port: u16) -> Endpoint {
    Endpoint { port, ..base }
}

pub(crate) const fn seconds(seconds: u32) -> u32 {
    seconds * 1000
}

/// Made once: port by port it takes a fuzzer longer than a script.
static USUAL_PORTS: LazyLock<PortSet> = LazyLock::new(|| PortSet::range(1024, 65535));

/// An external address with the usual ports.
pub(crate) fn external(address: Ipv4Addr) -> External {
    External { address: Some(address), ports: USUAL_PORTS.clone(), shared_with_host: false, pool: "default".into() }
}

/// A forward of X1's ports `first` to `last`.
pub(crate) fn forward(protocol: Protocol, first: u16, last: u16, servers: &[&str]) -> Forward {
    Forward { protocol, external: 0, first, last, servers: servers.iter().map(|text| endpoint(text)).collect() }
}

/// What a gateway is made of.
pub(crate) struct Setup {
    pub(crate) policy: Policy,
    pub(crate) network: Network,
    pub(crate) capacity: Capacity,
    pub(crate) start: Tick,
    /// How many workers share it.
    pub(crate) workers: u16,
    pub(crate) seeds: [u64; 4],
}

impl Setup {
    /// One external address, three devices, plenty of room, ICMP errors without limit; the clock starts near its wrap.
    pub(crate) fn new() -> Self {
        let mut policy = Policy { externals: vec![external(X1)], ..Policy::default() };
        policy.icmp_errors.rate = 1_000_000;
        policy.icmp_errors.burst = 1_000_000;
        Self {
            policy,
            network: network(),
            capacity: Capacity { mappings: 4096, bare_mappings: 0, sessions: 8192, externals: 4, fragments: 64, others: 1024 },
            start: Tick(u32::MAX - 10_000),
            workers: if module_path!().starts_with("on_four_workers") { 4 } else { 1 },
            seeds: [1, 2, 3, 4],
        }
    }

    #[must_use]
    pub(crate) fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.policy);
        self
    }

    #[must_use]
    pub(crate) fn network(mut self, change: impl FnOnce(&mut Network)) -> Self {
        change(&mut self.network);
        self
    }

    #[must_use]
    pub(crate) fn capacity(mut self, mappings: u32, sessions: u32, fragments: u32) -> Self {
        self.capacity = Capacity { mappings, sessions, fragments, ..self.capacity };
        self
    }

    /// With UDP as bare mappings, at most so many for each worker.
    #[must_use]
    pub(crate) fn bare(mut self, most: u32) -> Self {
        self.capacity.bare_mappings = most;
        self
    }

    /// With so many workers; each packet comes to any of them.
    #[must_use]
    pub(crate) fn workers(mut self, workers: u16) -> Self {
        self.workers = workers;
        self
    }

    /// A gateway whose tables live as long as the test's process.
    pub(crate) fn build(self) -> Gateway<'static> {
        self.build_in(Box::leak(Box::default()))
    }

    pub(crate) fn build_in(self, memory: &mut Vec<u8>) -> Gateway<'_> {
        let owners = fleet::owners(self.workers, 0x5EED);
        let mut nat = Fleet::new(memory, self.capacity, Seeds(self.seeds), &owners, 0xD1CE, self.start);
        nat.adopt_policy(&Arc::new(self.policy.clone()), self.start);
        nat.adopt_network(&Arc::new(self.network.clone()));
        Gateway { nat, owners, now: self.start, policy: self.policy, network: self.network, offered: 0, late: Vec::new() }
    }
}

fn interface(name: &str, device: DeviceId, vlan: Option<u16>, side: Side, number: u16, address: &str) -> Interface {
    Interface {
        name: name.into(),
        device,
        vlan,
        side,
        mac: own_mac(number),
        addresses: vec![address.parse().expect("a prefix")],
        mtu: 1500,
        up: true,
        prefixes: Vec::new(),
        checksums: ReceivedChecksums::default(),
        mss: MssClamp::Off,
    }
}

/// A route out of an interface.
pub(crate) fn via(interface: u16, gateway: Option<Ipv4Addr>, mtu: Option<u16>) -> Route {
    Route::Via { interface: InterfaceId(interface), gateway, mtu }
}

pub(crate) fn add_route(network: &mut Network, prefix: &str, route: Route) {
    network.routes.insert(prefix.parse().expect("a prefix"), route);
}

/// The devices, routes and neighbours of the test gateway.
fn network() -> Network {
    let mut network = Network {
        interfaces: vec![
            interface("lan0", INSIDE, None, Side::Inside, 0, "10.0.0.1/24"),
            interface("wan0", OUTSIDE, None, Side::Outside, 1, "203.0.113.1/24"),
            interface("lan0.7", INSIDE, Some(7), Side::Inside, 2, "10.7.0.1/24"),
            interface("trunk.10", TRUNK, Some(10), Side::Inside, 3, "10.10.0.1/24"),
            interface("trunk.20", TRUNK, Some(20), Side::Outside, 4, "198.51.100.1/24"),
        ],
        ..Network::default()
    };
    let upstream = Ipv4Addr::new(203, 0, 113, 254);
    let trunk_upstream = Ipv4Addr::new(198, 51, 100, 254);
    let routes = [
        ("10.0.0.0/24", via(0, None, None)),
        ("10.7.0.0/24", via(2, None, None)),
        ("10.10.0.0/24", via(3, None, None)),
        ("203.0.113.0/24", via(1, None, None)),
        ("198.51.100.0/24", via(4, None, None)),
        ("198.19.0.0/16", via(4, Some(trunk_upstream), None)),
        // A narrow way out.
        ("192.0.2.128/25", via(1, Some(upstream), Some(1400))),
        ("192.0.2.240/28", Route::Unreachable),
        ("172.16.0.0/12", Route::Elsewhere),
        ("0.0.0.0/0", via(1, Some(upstream), None)),
    ];
    for (prefix, route) in routes {
        add_route(&mut network, prefix, route);
    }
    for own in ["10.0.0.1/32", "10.0.0.255/32", "203.0.113.1/32", "10.7.0.1/32", "10.10.0.1/32", "198.51.100.1/32"] {
        add_route(&mut network, own, Route::Local);
    }
    let hosts = (2..=60).map(|host| (0, Ipv4Addr::new(10, 0, 0, host)));
    let others = [
        (2, Ipv4Addr::new(10, 7, 0, 2)),
        (3, Ipv4Addr::new(10, 10, 0, 2)),
        (1, upstream),
        (1, Ipv4Addr::new(203, 0, 113, 9)),
        (4, trunk_upstream),
    ];
    for (number, address) in hosts.chain(others) {
        network.neighbours.insert((InterfaceId(number), address), mac_of(address));
    }
    network
}

/// The gateway.
pub(crate) struct Gateway<'m> {
    pub(crate) nat: Fleet<'m>,
    pub(crate) owners: Owners,
    pub(crate) now: Tick,
    pub(crate) policy: Policy,
    pub(crate) network: Network,
    /// Packets sent into it.
    pub(crate) offered: u64,
    /// What became of fragments that waited, since it was last taken.
    pub(crate) late: Vec<Out>,
}

/// The bytes behind a packet that no one may touch.
const GUARD: u8 = 0xA5;
/// What a frame has behind its packet: room for an ICMP error's headers and a tag.
const ROOM: usize = 64;

impl Gateway<'_> {
    /// From an inside host.
    pub(crate) fn inside(&mut self, packet: &PacketBuilder) -> Out {
        self.send(0, packet)
    }

    /// From a host outside.
    pub(crate) fn outside(&mut self, packet: &PacketBuilder) -> Out {
        self.send(1, packet)
    }

    /// To the interface with that number, tagged as its frames are.
    pub(crate) fn send(&mut self, interface: u16, packet: &PacketBuilder) -> Out {
        let frame = self.frame_to(interface, packet);
        self.frame(self.network.interfaces[usize::from(interface)].device, &frame)
    }

    /// The frame that a neighbour on `interface` sends.
    pub(crate) fn frame_to(&self, interface: u16, packet: &PacketBuilder) -> Vec<u8> {
        let link = &self.network.interfaces[usize::from(interface)];
        packet.clone().vlan(link.vlan).mac([6, 0, 0, 0, 0, 9], link.mac).build()
    }

    /// The frames of a packet cut into fragments of `size` bytes, as a neighbour on `interface` sends them.
    pub(crate) fn fragments_to(&self, interface: u16, packet: &PacketBuilder, size: usize) -> Vec<Vec<u8>> {
        let link = &self.network.interfaces[usize::from(interface)];
        packet.clone().vlan(link.vlan).mac([6, 0, 0, 0, 0, 9], link.mac).fragments(size)
    }

    /// Any bytes from a device.
    pub(crate) fn frame(&mut self, device: DeviceId, frame: &[u8]) -> Out {
        self.frame_with_room(device, frame, ROOM)
    }

    /// Any bytes, in a frame with `room` bytes behind them.
    pub(crate) fn frame_with_room(&mut self, device: DeviceId, frame: &[u8], room: usize) -> Out {
        let mut memory = frame.to_vec();
        memory.resize(frame.len() + room, GUARD);
        let worker = self.nat.any_worker();
        let number = self.nat.receive(worker, device, memory, frame.len());
        self.offered += 1;
        let mut done = self.nat.run(self.now);
        let at = done.iter().position(|done| done.number == number).expect("one verdict for each packet");
        let out = Out::of(&done.remove(at), frame);
        self.note_late(&done);
        let counted = self.accounted() + self.nat.waiting() as u64;
        assert_eq!(counted, self.offered, "every packet is counted once, or waits");
        out
    }

    /// Frames from a device, all at once to one worker.
    pub(crate) fn burst(&mut self, device: DeviceId, frames: &[Vec<u8>]) -> Vec<Out> {
        let mut memories: Vec<_> = frames.iter().map(|frame| [&frame[..], &[GUARD; ROOM]].concat()).collect();
        let packet = |(memory, frame): (_, &Vec<u8>)| Packet::received(memory, frame.len());
        let mut packets: Vec<_> = memories.iter_mut().map(Vec::as_mut_slice).zip(frames).map(packet).collect();
        let mut verdicts = Vec::new();
        self.nat.nat(0).process(&mut packets, device, self.now, &mut verdicts);
        let lens: Vec<_> = packets.iter().map(|packet| packet.len).collect();
        self.offered += frames.len() as u64;
        assert_eq!(verdicts.len(), frames.len(), "one verdict for each packet");
        assert_eq!(self.accounted(), self.offered, "every packet is counted once");
        let out = |((verdict, memory), (len, frame)): ((_, Vec<u8>), (usize, &Vec<u8>))| Out {
            verdict,
            frame: memory[..len].to_vec(),
            was_right: verify(frame).is_ok(),
        };
        verdicts.into_iter().zip(memories).zip(lens.into_iter().zip(frames)).map(out).collect()
    }

    fn note_late(&mut self, done: &[Done]) {
        self.late.extend(done.iter().map(|done| Out::of(done, &[])));
    }

    /// What became of the fragments that waited.
    pub(crate) fn take_late(&mut self) -> Vec<Out> {
        std::mem::take(&mut self.late)
    }

    /// The packets that have been counted with an outcome. An answered one counts as dropped.
    pub(crate) fn accounted(&self) -> u64 {
        let ways = [Counter::Outbound, Counter::Inbound, Counter::Hairpin, Counter::Punted];
        let counters = self.nat.counters();
        ways.iter().map(|&way| counters.get(way)).sum::<u64>() + counters.dropped_in_all()
    }

    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.nat.counters().get(counter)
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.nat.counters().dropped(reason)
    }

    /// Lets time pass, with the sweep called twice a second.
    pub(crate) fn wait(&mut self, milliseconds: u32) {
        let mut left = milliseconds;
        while left > 0 {
            let step = left.min(500);
            self.now = self.now.after(step);
            let given_up = self.nat.expire(self.now);
            self.note_late(&given_up);
            left -= step;
        }
    }

    /// The ICMP errors that are due now, by themselves.
    pub(crate) fn answers_due(&mut self) -> Vec<Out> {
        let out = |(device, frame): (_, Vec<u8>)| Out { verdict: Verdict::Transmit(device), frame, was_right: true };
        self.nat.answers_due(self.now).into_iter().map(out).collect()
    }

    /// Lets time pass without any sweep.
    pub(crate) fn skip(&mut self, milliseconds: u32) {
        self.now = self.now.after(milliseconds);
    }

    pub(crate) fn sessions(&self) -> Vec<SessionView> {
        self.nat.sessions(self.now)
    }

    pub(crate) fn others(&self) -> Vec<OtherView> {
        self.nat.others(self.now)
    }

    pub(crate) fn mappings(&self) -> Vec<MappingView> {
        self.nat.mappings(self.now)
    }

    /// What is known of the bare mapping of an internal endpoint: milliseconds left, packets from inside, packets to it.
    pub(crate) fn bare(&self, internal: Endpoint) -> Option<(u32, u32, u32)> {
        let view = self.mappings().into_iter().find(|view| view.protocol == Protocol::Udp && view.internal == internal);
        view.and_then(|view| view.bare).map(|bare| (bare.expires_in, bare.packets_out, bare.packets_in))
    }

    /// Ports taken, of all addresses and protocols.
    pub(crate) fn ports_used(&self) -> u32 {
        self.nat.port_use().iter().map(|usage| usage.used).sum()
    }

    pub(crate) fn adopt(&mut self, change: impl FnOnce(&mut Policy)) {
        change(&mut self.policy);
        let given_up = self.nat.adopt_policy(&Arc::new(self.policy.clone()), self.now);
        self.note_late(&given_up);
    }

    pub(crate) fn adopt_network(&mut self, change: impl FnOnce(&mut Network)) {
        change(&mut self.network);
        self.nat.adopt_network(&Arc::new(self.network.clone()));
    }

    /// The ports of an external address that the mappings of a host can have: those that its worker owns.
    pub(crate) fn ports_for(&self, host: Endpoint, external: Ipv4Addr) -> Vec<u16> {
        let of_pool = self.policy.externals.iter().find(|known| known.address == Some(external)).expect("an external address");
        self.owners.ports(external, self.owners.of_subscriber(host.address)).filter(|&port| of_pool.ports.contains(port)).collect()
    }

    /// Another host whose worker is that of `host`: the two compete for ports.
    pub(crate) fn rival_of(&self, host: Endpoint) -> Endpoint {
        let others = (3..255).map(|last| Endpoint { address: Ipv4Addr::new(10, 0, 0, last), ..host });
        let owner = |host: Endpoint| self.owners.of_subscriber(host.address);
        others
            .into_iter()
            .find(|&other| other.address != host.address && owner(other) == owner(host))
            .expect("a host of the same worker")
    }

    /// Sends a UDP packet from inside and gives the external endpoint that it left with.
    pub(crate) fn external_of(&mut self, internal: Endpoint, remote: Endpoint) -> Endpoint {
        self.inside(&PacketBuilder::udp(internal, remote)).forwarded().source
    }

    /// The same with a SYN.
    pub(crate) fn external_of_tcp(&mut self, internal: Endpoint, remote: Endpoint) -> Endpoint {
        self.inside(&PacketBuilder::tcp(internal, remote, portcullis_testkit::builder::SYN)).forwarded().source
    }

    /// Asserts that nothing is left of any traffic.
    pub(crate) fn assert_empty(&self) {
        let gauges = self.nat.gauges();
        assert_eq!((gauges.sessions, gauges.mappings, gauges.subscribers, gauges.fragments), (0, 0, 0, 0), "{gauges:?}");
        assert_eq!(gauges.others, 0, "{gauges:?}");
        assert_eq!(self.ports_used(), 0, "no port is left taken");
        assert_eq!(self.count(Counter::SessionsCreated), self.count(Counter::SessionsRemoved));
        assert_eq!(self.count(Counter::MappingsCreated), self.count(Counter::MappingsRemoved));
    }
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
    /// Whether the packet came with right checksums.
    was_right: bool,
}

impl Out {
    fn of(done: &Done, received: &[u8]) -> Self {
        let spare = &done.memory[received.len().max(done.len)..];
        assert!(spare.iter().all(|&byte| byte == GUARD) || received.is_empty(), "nothing is written behind the packet");
        Self { verdict: done.verdict, frame: done.bytes().to_vec(), was_right: verify(received).is_ok() }
    }

    /// The packet, which was transmitted on `device`, with right checksums if it came with such.
    #[track_caller]
    pub(crate) fn on(&self, device: DeviceId) -> Seen {
        assert_eq!(self.verdict, Verdict::Transmit(device), "{}", describe(&self.frame));
        if self.was_right {
            assert_eq!(verify(&self.frame), Ok(()), "{}", describe(&self.frame));
        }
        Seen::of(&self.frame)
    }

    /// The packet, which was transmitted from inside to outside.
    #[track_caller]
    pub(crate) fn forwarded(&self) -> Seen {
        self.on(OUTSIDE)
    }

    /// The packet, which was transmitted to the inside.
    #[track_caller]
    pub(crate) fn delivered(&self) -> Seen {
        self.on(INSIDE)
    }

    /// The ICMP error that the packet was answered with on `device`: type and code are as given, and its checksums are right.
    #[track_caller]
    pub(crate) fn answered(&self, device: DeviceId, kind: u8, code: u8) -> Seen {
        assert_eq!(self.verdict, Verdict::Transmit(device), "{}", describe(&self.frame));
        assert_eq!(verify(&self.frame), Ok(()), "{}", describe(&self.frame));
        let seen = Seen::of(&self.frame);
        assert_eq!(seen.icmp.map(|(kind, code, _)| (kind, code)), Some((kind, code)), "{}", describe(&self.frame));
        seen
    }

    /// Asserts that the packet was dropped for `reason`.
    #[track_caller]
    pub(crate) fn is_dropped(&self, reason: DropReason) {
        assert_eq!(self.verdict, Verdict::Drop(reason), "{}", describe(&self.frame));
    }
}

/// A policy's timeout in whole seconds.
pub(crate) const fn idle(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
