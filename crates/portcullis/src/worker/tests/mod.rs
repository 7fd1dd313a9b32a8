//! The worker over the in-memory wire: frames in equal frames out plus frames held, whatever happens.

mod crew;

use core::net::Ipv4Addr;
use std::sync::Arc;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{
    DeviceId, Endpoint, External, Filtering, Forward, Interface, InterfaceId, MssClamp, Network, Policy, PortSet, Protocol,
    ReceivedChecksums, Route, Side,
};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::DropReason;
use portcullis_nat::{Capacity, Seeds};
use portcullis_steering::{Owners, WorkerId};
use portcullis_testkit::builder::{PacketBuilder, SYN, verify};
use portcullis_testkit::memory_wire::{FarEnd, MemoryFrame, MemoryPort, RingSizes, Slab, pair};

use super::*;
use crate::doors::counters::Shape;
use crate::doors::events::Event;
use crate::doors::{self, ControlDoors, handoff};

impl QueuePort for MemoryPort {
    fn figures(&self) -> QueueFigures {
        QueueFigures::default()
    }

    fn dropped_by_device(&self) -> u64 {
        0
    }
}

/// Notes what was punted.
#[derive(Default)]
struct Noted(Vec<Vec<u8>>);

impl Punter for Noted {
    fn punt(&mut self, _: DeviceId, packet: &[u8]) -> bool {
        self.0.push(packet.to_vec());
        true
    }
}

const INSIDE: DeviceId = DeviceId(0);
const OUTSIDE: DeviceId = DeviceId(1);
const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const FRAMES: usize = 2048;

fn policy(shared_with_host: bool) -> Policy {
    let external =
        External { address: Some(EXTERNAL), ports: PortSet::range(5000, 6000), shared_with_host, pool: "default".into() };
    let servers = vec![Endpoint { address: CLIENT, port: 80 }];
    let forward = Forward { protocol: Protocol::Tcp, external: 0, first: 8080, last: 8080, servers };
    Policy {
        externals: vec![external],
        forwards: vec![forward],
        filtering_udp: Filtering::EndpointIndependent,
        ..Policy::default()
    }
}

fn interface(name: &str, device: DeviceId, side: Side, mac: [u8; 6], address: &str, mtu: u16) -> Interface {
    let addresses = vec![address.parse().expect("an address")];
    let checksums = ReceivedChecksums::default();
    Interface {
        name: name.into(),
        device,
        vlan: None,
        side,
        mac,
        addresses,
        mtu,
        up: true,
        prefixes: Vec::new(),
        checksums,
        mss: MssClamp::Off,
    }
}

fn network(server_is_known: bool) -> Network {
    let mut network = Network {
        interfaces: vec![
            interface("inside0", INSIDE, Side::Inside, INSIDE_MAC, "10.0.0.1/24", 1500),
            interface("outside0", OUTSIDE, Side::Outside, OUTSIDE_MAC, "203.0.113.1/24", 600),
        ],
        ..Network::default()
    };
    for (prefix, interface) in [("10.0.0.0/24", InterfaceId(0)), ("203.0.113.0/24", InterfaceId(1))] {
        let via = Route::Via { interface, gateway: None, mtu: None };
        network.routes.insert(prefix.parse().expect("a prefix"), via);
    }
    network.neighbours.insert((InterfaceId(0), CLIENT), CLIENT_MAC);
    if server_is_known {
        network.neighbours.insert((InterfaceId(1), SERVER), SERVER_MAC);
    }
    network
}

/// Far ends take no more than this at once: the rings' default.
const RING: usize = 64;

/// A worker on the bench, with the far ends of its two queues.
struct Seat {
    worker: Worker<MemoryPort, Noted>,
    control: ControlDoors,
    inside: FarEnd,
    outside: FarEnd,
}

/// What all workers of a bench have alike.
struct Kit {
    frames: Vec<MemoryFrame>,
    rings: RingSizes,
    capacity: Capacity,
    owners: Owners,
    now: Tick,
}

impl Kit {
    /// A worker with its doors and so many of the kit's frames.
    fn seat(&mut self, me: usize, frames: usize, doors: (WorkerDoors, ControlDoors), handoff: Hatch<MemoryFrame>) -> Seat {
        let memory = vec![0; self.capacity.bytes()].leak();
        let nat = Nat::new(memory, self.capacity, Seeds([1, 2, 3, 4]), self.owners.clone(), WorkerId(me as u16), self.now);
        let ((inside_port, inside), (outside_port, outside)) = (pair(self.rings), pair(self.rings));
        let queues = vec![Queue { device: INSIDE, port: inside_port }, Queue { device: OUTSIDE, port: outside_port }];
        let pool = self.frames.split_off(self.frames.len() - frames);
        let (nat, punter) = (nat.expect("enough memory"), Noted::default());
        let worker = Worker::new(Parts { nat, queues, pool, most: BURST, punter, doors: doors.0, handoff });
        Seat { worker, control: doors.1, inside, outside }
    }
}

struct Bench {
    worker: Worker<MemoryPort, Noted>,
    control: ControlDoors,
    inside: FarEnd,
    outside: FarEnd,
    slab: Slab,
    now: Tick,
}

impl Bench {
    fn new(policy: Policy, network: Network) -> Self {
        let shapes = vec![Shape { queues: Vec::new(), externals: 1 }];
        let doors = doors::open(shapes, Arc::new(policy), Arc::new(network)).expect("descriptors").pop().expect("a worker's doors");
        let hatch = handoff::open(1, 0).expect("a descriptor").pop().expect("a hatch");
        let (slab, frames) = Slab::new(FRAMES, 2048);
        let capacity = Capacity { mappings: 64, bare_mappings: 0, sessions: 64, externals: 1, fragments: 8, others: 8 };
        let now = Tick(u32::MAX - 500);
        let mut kit = Kit { frames, rings: RingSizes::default(), capacity, owners: Owners::single(), now };
        let Seat { worker, control, inside, outside } = kit.seat(0, FRAMES, doors, hatch);
        Self { worker, control, inside, outside, slab, now }
    }

    fn round(&mut self) {
        self.worker.round(self.now);
        let frames = self.worker.frames();
        assert_eq!(frames.missing(), 0, "frames in = frames out + frames held: {frames:?}");
    }

    fn wait(&mut self, milliseconds: u32) {
        self.now = self.now.after(milliseconds);
        self.round();
    }

    fn dropped(&mut self, reason: DropReason) -> u64 {
        self.worker.nat.counters().dropped(reason) + self.worker.late.dropped(reason)
    }

    fn finish(self) {
        let (queues, frames) = self.worker.into_parts();
        let in_flight: usize = queues.iter().map(|queue| queue.port.in_flight()).sum();
        self.slab.assert_accounted(frames.len() + in_flight);
        drop(queues);
        // The frames of the test end with it.
        frames.into_iter().for_each(std::mem::forget);
    }
}

fn outbound(port: u16) -> PacketBuilder {
    PacketBuilder::udp(Endpoint { address: CLIENT, port }, Endpoint { address: SERVER, port: 53 }).mac(CLIENT_MAC, INSIDE_MAC)
}

#[test]
fn the_sender_of_an_unsolicited_syn_is_told_when_its_time_has_come() {
    let mut bench = Bench::new(policy(false), network(true));
    bench.round();
    let (remote, nobody) = (Endpoint { address: SERVER, port: 4000 }, Endpoint { address: EXTERNAL, port: 5000 });
    assert!(bench.outside.inject(&PacketBuilder::tcp(remote, nobody, SYN).mac(SERVER_MAC, OUTSIDE_MAC).build()));
    bench.wait(1);
    for _second in 0..6 {
        bench.wait(1000);
        assert!(bench.outside.read().is_none());
    }
    bench.wait(200);
    bench.round();
    let told = bench.outside.read().expect("an ICMP error");
    verify(&told).expect("right checksums");
    let layout = portcullis_wire::packet::parse(&told).expect("a packet");
    let header = layout.ipv4(&told).expect("a header");
    assert_eq!((header.src(), header.dst()), (EXTERNAL, SERVER));
    assert_eq!(layout.payload(&told)[..2], [3, 3]);
    assert!(bench.outside.read().is_none());
    bench.finish();
}

#[test]
fn a_packet_goes_out_translated_and_its_reply_comes_back() {
    let mut bench = Bench::new(policy(false), network(true));
    bench.round();
    assert!(bench.inside.inject(&outbound(1234).build()));
    bench.round();
    let sent = bench.outside.read().expect("a packet outside");
    verify(&sent).expect("right checksums");
    let layout = portcullis_wire::packet::parse(&sent).expect("a packet");
    let (source, port) = (layout.ipv4(&sent).expect("a header").src(), layout.ports(&sent).expect("ports").src());
    assert_eq!(source, EXTERNAL);
    let reply = PacketBuilder::udp(Endpoint { address: SERVER, port: 53 }, Endpoint { address: EXTERNAL, port });
    assert!(bench.outside.inject(&reply.mac(SERVER_MAC, OUTSIDE_MAC).build()));
    bench.round();
    let received = bench.inside.read().expect("a packet inside");
    verify(&received).expect("right checksums");
    let layout = portcullis_wire::packet::parse(&received).expect("a packet");
    assert_eq!(layout.ipv4(&received).expect("a header").dst(), CLIENT);
    assert_eq!(layout.ports(&received).expect("ports").dst(), 1234);
    bench.finish();
}

#[test]
fn packets_wait_for_their_next_hop_and_the_kernel_is_asked() {
    let mut bench = Bench::new(policy(false), network(false));
    bench.round();
    for port in 1..=3 {
        assert!(bench.inside.inject(&outbound(port).build()));
    }
    bench.round();
    assert!(bench.outside.read().is_none());
    let asked = Event::ResolveNeighbour { interface: InterfaceId(1), address: SERVER };
    let events: Vec<_> = std::iter::from_fn(|| bench.control.events.next()).collect();
    assert_eq!(events.iter().filter(|&&event| event == asked).count(), 1);
    bench.control.policy.publish_network(Arc::new(network(true)));
    bench.round();
    assert_eq!(bench.outside.read_all().len(), 3);
    assert_eq!(bench.worker.nat.counters().get(Counter::Held), 3);
    bench.finish();
}

#[test]
fn a_next_hop_that_never_answers_costs_its_packets_only() {
    let mut bench = Bench::new(policy(false), network(false));
    bench.round();
    assert!(bench.inside.inject(&outbound(1).build()));
    bench.round();
    bench.wait(2900);
    assert_eq!(bench.worker.frames().held, 1);
    bench.wait(200);
    assert_eq!((bench.worker.frames().held, bench.dropped(DropReason::NeighbourUnresolved)), (0, 1));
    bench.finish();
}

#[test]
fn a_packet_that_is_too_big_is_split_into_fragments_in_order() {
    let mut bench = Bench::new(policy(false), network(true));
    bench.round();
    let big = outbound(7).payload_len(1400).dont_fragment(false);
    assert!(bench.inside.inject(&big.build()));
    bench.round();
    let fragments = bench.outside.read_all();
    assert_eq!(fragments.len(), 3);
    assert!(fragments.iter().all(|fragment| fragment.len() <= 14 + 600));
    let offsets: Vec<_> = fragments
        .iter()
        .map(|fragment| {
            portcullis_wire::packet::parse(fragment).expect("a packet").ipv4(fragment).expect("a header").fragment_offset()
        })
        .collect();
    assert!(offsets.is_sorted() && offsets[0] == 0, "in order: {offsets:?}");
    bench.finish();
}

#[test]
fn a_sender_of_a_big_packet_that_must_not_be_split_is_told() {
    let mut bench = Bench::new(policy(false), network(true));
    bench.round();
    assert!(bench.inside.inject(&outbound(7).payload_len(1400).dont_fragment(true).build()));
    bench.round();
    let answer = bench.inside.read().expect("an ICMP error");
    verify(&answer).expect("right checksums");
    let layout = portcullis_wire::packet::parse(&answer).expect("a packet");
    let header = layout.icmp(&answer).expect("an ICMP header");
    assert_eq!((header.kind(), header.code(), header.next_hop_mtu()), (3, 4, 600));
    assert_eq!(bench.worker.nat.gauges().sessions, 0, "a refused first packet leaves nothing behind");
    bench.finish();
}

#[test]
fn what_nothing_claims_on_a_shared_address_is_the_kernels() {
    let mut bench = Bench::new(policy(true), network(true));
    bench.round();
    let stray = PacketBuilder::udp(Endpoint { address: SERVER, port: 53 }, Endpoint { address: EXTERNAL, port: 5500 });
    let stray = stray.mac(SERVER_MAC, OUTSIDE_MAC).build();
    assert!(bench.outside.inject(&stray));
    bench.round();
    assert_eq!(bench.worker.punter.0, [stray]);
    bench.finish();
}

/// Sessions end and counters come out in rounds that all find packets.
#[test]
fn a_worker_that_always_has_packets_keeps_up_its_other_work() {
    let mut bench = Bench::new(policy(false), network(true));
    bench.round();
    for port in 0..40 {
        assert!(bench.inside.inject(&outbound(port).build()));
    }
    bench.round();
    bench.outside.read_all();
    assert_eq!(bench.worker.nat.gauges().sessions, 40);
    let published = bench.control.counters.read().worker.published;
    for _ in 0..700 {
        assert!(bench.inside.inject(&outbound(40).build()));
        bench.wait(500);
        bench.outside.read_all();
    }
    assert_eq!(bench.worker.nat.gauges().sessions, 1, "the others are over");
    assert!(bench.control.counters.read().worker.published >= published + 600, "as often as it is due");
    bench.finish();
}

#[test]
fn a_transmit_ring_that_stays_full_costs_counted_drops_and_no_frame() {
    let mut bench = Bench::new(policy(false), network(true));
    bench.round();
    bench.outside.set_stuck(true);
    for round in 0..60 {
        for port in 0..64 {
            bench.inside.inject(&outbound(port).build());
        }
        bench.wait(round % 2);
    }
    bench.outside.set_stuck(false);
    for _ in 0..80 {
        bench.round();
        bench.outside.read_all();
    }
    assert!(!bench.worker.has_work());
    bench.finish();
}
