//! Several workers over the in-memory wire: packets on any queue reach their owner, frames drift back, and one that is slow holds up only
//! its own. The workers take their rounds in turn under a virtual clock; only the sleeper has threads.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use portcullis_config::BusyPoll;
use portcullis_testkit::fleet;

use super::*;
use crate::doors::commands::Phase;
use crate::worker::thread::{self, Rules};

/// Frames of each worker, of which it lends each other [`LENT`].
const EACH: usize = 2048;
const LENT: usize = 128;

struct Crew {
    seats: Vec<Seat>,
    owners: Owners,
    slab: Slab,
    now: Tick,
    random: u64,
}

/// The usual policy with all ports, and a network that knows many clients.
fn wide() -> (Policy, Network) {
    let mut policy = policy(false);
    policy.externals[0].ports = PortSet::range(1024, 65535);
    let mut network = network(true);
    for host in 2..=250 {
        network.neighbours.insert((InterfaceId(0), client(host)), CLIENT_MAC);
    }
    (policy, network)
}

fn client(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

fn request(host: u8, port: u16) -> PacketBuilder {
    let source = Endpoint { address: client(host), port };
    PacketBuilder::udp(source, Endpoint { address: SERVER, port: 53 }).mac(CLIENT_MAC, INSIDE_MAC)
}

fn reply(external: Endpoint) -> PacketBuilder {
    PacketBuilder::udp(Endpoint { address: SERVER, port: 53 }, external).mac(SERVER_MAC, OUTSIDE_MAC)
}

/// Where a packet comes from and goes to, as far as it has ports.
fn endpoints(packet: &[u8]) -> (Endpoint, Endpoint) {
    let layout = portcullis_wire::packet::parse(packet).expect("a packet");
    let (header, ports) = (layout.ipv4(packet).expect("a header"), layout.ports(packet).expect("ports"));
    (Endpoint { address: header.src(), port: ports.src() }, Endpoint { address: header.dst(), port: ports.dst() })
}

impl Crew {
    fn new(workers: usize) -> Self {
        let (policy, network) = wide();
        let shapes = vec![Shape { queues: Vec::new(), externals: 1 }; workers];
        let doors = doors::open(shapes, Arc::new(policy), Arc::new(network)).expect("descriptors");
        let hatches = handoff::open(workers, LENT).expect("descriptors");
        let owners = fleet::owners(workers as u16, 7);
        let (slab, frames) = Slab::new(workers * EACH, 2048);
        let capacity = Capacity { mappings: 4096, bare_mappings: 0, sessions: 8192, externals: 1, fragments: 64, others: 64 };
        let now = Tick(u32::MAX - 500);
        let mut kit = Kit { frames, rings: RingSizes::default(), capacity, owners: owners.clone(), now };
        let each = doors.into_iter().zip(hatches).enumerate();
        let seats = each.map(|(me, (doors, hatch))| kit.seat(me, EACH, doors, hatch)).collect();
        Self { seats, owners, slab, now, random: 99 }
    }

    fn any(&mut self) -> usize {
        // Knuth's generator: any queue will do, as long as it can be had again.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) as usize % self.seats.len()
    }

    fn round_of(&mut self, worker: usize) {
        let worker = &mut self.seats[worker].worker;
        worker.round(self.now);
        assert_eq!(worker.frames().missing(), 0, "{:?}", worker.frames());
    }

    /// As many rounds of all as a packet can need: to the sequencer, to the owner, to the receiver's owner, and out.
    fn rounds(&mut self) {
        for _ in 0..4 {
            (0..self.seats.len()).for_each(|worker| self.round_of(worker));
        }
    }

    fn owner_of(&self, host: u8) -> usize {
        usize::from(self.owners.of_subscriber(client(host)).0)
    }

    /// Hosts of which a worker is the owner.
    fn hosts_of(&self, worker: usize) -> Vec<u8> {
        (2..=250).filter(|&host| self.owner_of(host) == worker).collect()
    }

    fn dropped(&self, worker: usize, reason: DropReason) -> u64 {
        let worker = &self.seats[worker].worker;
        worker.nat.counters().dropped(reason) + worker.late.dropped(reason)
    }

    fn dropped_in_all(&self, worker: usize) -> u64 {
        DropReason::ALL.iter().map(|&reason| self.dropped(worker, reason)).sum()
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.seats.iter().map(|seat| seat.worker.nat.counters().get(counter)).sum()
    }

    /// Ends all workers; every frame is found.
    fn finish(self) {
        let (mut accounted, mut ends) = (0, Vec::new());
        for Seat { worker, inside, outside, .. } in self.seats {
            let (queues, frames) = worker.into_parts();
            accounted += frames.len() + queues.iter().map(|queue| queue.port.in_flight()).sum::<usize>();
            // The frames of the test end with it, those in the rings after the count.
            frames.into_iter().for_each(std::mem::forget);
            ends.push((inside, outside));
        }
        self.slab.assert_accounted(accounted);
    }
}

/// Sends a request of each host on any queue, and the answer on any other.
fn requests_and_replies(workers: usize) {
    let mut crew = Crew::new(workers);
    let mut misplaced = 0;
    for host in 2..=200 {
        let (sent_on, owner) = (crew.any(), crew.owner_of(host));
        assert!(crew.seats[sent_on].inside.inject(&request(host, 1000).build()));
        crew.rounds();
        let sent = crew.seats[owner].outside.read().expect("the owner has sent it");
        verify(&sent).expect("right checksums");
        let (external, _) = endpoints(&sent);
        assert_eq!(crew.owners.of_external(external.address, external.port), WorkerId(owner as u16), "the reply is its own");
        let answered_on = crew.any();
        assert!(crew.seats[answered_on].outside.inject(&reply(external).build()));
        crew.rounds();
        let received = crew.seats[owner].inside.read().expect("the owner has received it");
        verify(&received).expect("right checksums");
        assert_eq!(endpoints(&received).1, Endpoint { address: client(host), port: 1000 });
        misplaced += u64::from(sent_on != owner) + u64::from(answered_on != owner);
    }
    assert_eq!((crew.counted(Counter::Outbound), crew.counted(Counter::Inbound)), (199, 199));
    assert_eq!(crew.counted(Counter::HandedOffMisplaced), misplaced);
    let handed_in: u64 = crew.seats.iter().map(|seat| seat.worker.handoff.figures().packets_got).sum();
    assert_eq!(handed_in, misplaced);
    assert!(misplaced > 100, "queues are drawn: {misplaced}");
    crew.finish();
}

#[test]
fn two_workers_bring_every_packet_to_its_owner_whatever_queue_it_came_on() {
    requests_and_replies(2);
}

#[test]
fn eight_workers_bring_every_packet_to_its_owner_whatever_queue_it_came_on() {
    requests_and_replies(8);
}

#[test]
fn fragments_on_any_queues_wait_for_their_first_and_leave_behind_it() {
    let mut crew = Crew::new(8);
    let pieces = request(9, 1000).id(77).payload_len(1000).dont_fragment(false).fragments(256);
    for piece in pieces[1..].iter().rev() {
        let queue = crew.any();
        assert!(crew.seats[queue].inside.inject(piece));
        crew.rounds();
    }
    let (owner, waiting) = (crew.owner_of(9), pieces.len() - 1);
    assert_eq!(crew.seats[owner].worker.frames().held, waiting as u64);
    let queue = crew.any();
    assert!(crew.seats[queue].inside.inject(&pieces[0]));
    crew.rounds();
    let sent = crew.seats[owner].outside.read_all();
    let offsets: Vec<_> = sent
        .iter()
        .map(|piece| {
            let layout = portcullis_wire::packet::parse(piece).expect("a packet");
            let header = layout.ipv4(piece).expect("a header");
            assert_eq!(header.src(), EXTERNAL);
            header.fragment_offset()
        })
        .collect();
    let expected: Vec<_> = std::iter::once(0).chain((1..pieces.len()).rev().map(|piece| piece * 256)).collect();
    assert_eq!(offsets, expected, "the first one first, the others as they came");
    assert_eq!(crew.seats[owner].worker.frames().held, 0);
    crew.finish();
}

#[test]
fn fragments_whose_first_never_comes_are_given_up() {
    let mut crew = Crew::new(2);
    let pieces = request(9, 1000).id(78).payload_len(1000).dont_fragment(false).fragments(256);
    for piece in &pieces[1..] {
        assert!(crew.seats[0].inside.inject(piece));
    }
    crew.rounds();
    let owner = crew.owner_of(9);
    let waited = pieces.len() as u64 - 1;
    assert_eq!((crew.seats[owner].worker.frames().held, crew.dropped(owner, DropReason::FragmentWithoutFirst)), (waited, 0));
    for _ in 0..40 {
        crew.now = crew.now.after(1000);
        crew.rounds();
    }
    assert_eq!((crew.seats[owner].worker.frames().held, crew.dropped(owner, DropReason::FragmentWithoutFirst)), (0, waited));
    crew.finish();
}

/// Everything comes on one worker's queue and is another's.
#[test]
fn one_sided_load_runs_no_fill_ring_dry_and_frames_come_home() {
    const PACKETS: usize = 40_000;
    let mut crew = Crew::new(2);
    let hosts = crew.hosts_of(1);
    let mut sent = 0;
    for number in 0..PACKETS {
        let host = hosts[number % hosts.len()];
        assert!(crew.seats[0].inside.inject(&request(host, 1000).build()), "packet {number} found no frame");
        if number % (RING / 2) == 0 {
            crew.rounds();
            sent += crew.seats[1].outside.read_all().len();
            assert!(crew.seats.iter().all(|seat| seat.inside.fillable() > 0 && seat.outside.fillable() > 0));
        }
    }
    for _ in 0..4 {
        crew.rounds();
        sent += crew.seats[1].outside.read_all().len();
    }
    assert_eq!(sent, PACKETS);
    assert_eq!((crew.dropped_in_all(0), crew.dropped_in_all(1)), (0, 0));
    let owned = crew.seats.iter().map(|seat| seat.worker.frames().owned()).collect::<Vec<_>>();
    assert_eq!(owned, [EACH as u64; 2], "all frames are home");
    crew.finish();
}

/// The receiver's device takes nothing: what it owes it pays with other frames, as long as it has any.
#[test]
fn a_worker_whose_device_is_stuck_keeps_no_more_than_was_lent() {
    let mut crew = Crew::new(2);
    let hosts = crew.hosts_of(1);
    crew.seats[1].outside.set_stuck(true);
    for number in 0..20_000 {
        let host = hosts[number % hosts.len()];
        assert!(crew.seats[0].inside.inject(&request(host, 1000).build()), "packet {number} found no frame");
        if number % (RING / 2) == 0 {
            crew.rounds();
            let owned = crew.seats[0].worker.frames().owned();
            assert!(owned >= (EACH - LENT) as u64, "{owned}");
        }
    }
    let drops = [DropReason::TransmitFull, DropReason::HandOffFull].map(|reason| crew.dropped(0, reason) + crew.dropped(1, reason));
    assert!(drops.iter().sum::<u64>() > 10_000, "{drops:?}");
    crew.finish();
}

/// Worker 0 takes a round only now and then, while all others have packets for it and for themselves.
#[test]
fn a_hot_worker_holds_up_nobody_elses_packets() {
    const WORKERS: usize = 4;
    let mut crew = Crew::new(WORKERS);
    let hosts: Vec<_> = (0..WORKERS).map(|worker| crew.hosts_of(worker)).collect();
    let (mut own, mut sent) = ([0; WORKERS], [0; WORKERS]);
    for turn in 0..2000 {
        for worker in 1..WORKERS {
            for packet in 0..8 {
                let host = hosts[worker][packet % hosts[worker].len()];
                assert!(crew.seats[worker].inside.inject(&request(host, 1000).build()), "a frame for worker {worker}");
                own[worker] += 1;
                let host = hosts[0][packet % hosts[0].len()];
                assert!(crew.seats[worker].inside.inject(&request(host, 1000).build()), "a frame for worker {worker}");
            }
            // And to each other, past the hot one.
            let other = worker % (WORKERS - 1) + 1;
            let host = hosts[other][0];
            assert!(crew.seats[worker].inside.inject(&request(host, 1000).build()), "a frame for worker {worker}");
            own[other] += 1;
        }
        for (worker, sent) in sent.iter_mut().enumerate() {
            if worker > 0 || turn % 50 == 0 {
                crew.round_of(worker);
            }
            *sent += crew.seats[worker].outside.read_all().len();
        }
    }
    crew.rounds();
    for worker in 1..WORKERS {
        sent[worker] += crew.seats[worker].outside.read_all().len();
        assert_eq!(sent[worker], own[worker], "all packets of worker {worker}");
        assert_eq!(crew.dropped_in_all(worker), crew.dropped(worker, DropReason::HandOffFull), "nothing else was dropped");
        assert_eq!(crew.seats[worker].worker.handoff.figures().packets_refused, 0);
    }
    let refused = crew.seats[0].worker.handoff.figures().packets_refused;
    let full: u64 = (1..WORKERS).map(|worker| crew.dropped(worker, DropReason::HandOffFull)).sum();
    assert!(refused > 0 && refused == full, "{refused} were refused, {full} dropped");
    crew.finish();
}

#[test]
fn frames_on_their_way_are_found_when_the_workers_end() {
    let mut crew = Crew::new(2);
    let hosts = crew.hosts_of(1);
    for port in 0..20 {
        assert!(crew.seats[0].inside.inject(&request(hosts[0], port).build()));
    }
    crew.round_of(0);
    assert_eq!(crew.seats[0].worker.frames().owned(), EACH as u64 - 20);
    crew.finish();
}

/// A worker in a thread of its own, and a way to wake it that is not the other workers'.
fn start(worker: Worker<MemoryPort, Noted>, number: usize, busy_poll: BusyPoll) -> (Running, UnixStream) {
    let (waker, alarm) = UnixStream::pair().expect("sockets");
    // So long that whoever waits for it has failed.
    let rules = Rules { number, core: None, busy_poll, wakers: vec![OwnedFd::from(waker)], longest_sleep: 60_000 };
    (thread::start(worker, rules).expect("a thread"), alarm)
}

type Running = std::thread::JoinHandle<Worker<MemoryPort, Noted>>;

#[test]
fn a_worker_that_sleeps_is_woken_by_a_packet_that_is_handed_to_it() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let mut crew = Crew::new(2);
    let hosts = crew.hosts_of(1);
    let (second, first) = (crew.seats.pop().expect("two"), crew.seats.pop().expect("two"));
    let (first_running, _first_alarm) = start(first.worker, 0, BusyPoll::Always);
    let (second_running, mut alarm) = start(second.worker, 1, BusyPoll::Never);
    for port in 0..200 {
        assert!(first.inside.inject(&request(hosts[0], port).build()));
        let begin = Instant::now();
        while second.outside.read().is_none() {
            assert!(begin.elapsed() < PATIENCE, "packet {port} was slept through");
            std::thread::yield_now();
        }
    }
    first.control.commands.set_phase(Phase::Stopping);
    second.control.commands.set_phase(Phase::Stopping);
    // An error says that it has ended already, woken by its last packet.
    let _ = alarm.write_all(&[0]);
    let (worker, other) = (first_running.join().expect("it ends"), second_running.join().expect("it ends"));
    crew.seats.push(Seat { worker, ..first });
    crew.seats.push(Seat { worker: other, ..second });
    assert_eq!(crew.counted(Counter::Outbound), 200);
    crew.finish();
}
