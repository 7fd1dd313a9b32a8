//! The control interface end to end: a worker thread with made-up tables, the doors, the server, a socket, the command line's client.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_api as api;
use portcullis_config::UdpTracking;
use portcullis_nat::counters::{Counter, Counters};
use portcullis_nat::policy::{
    DeviceId, Endpoint, External, Interface, MssClamp, Network, Policy, PortSet, Protocol, ReceivedChecksums, Side,
};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::DropReason;
use portcullis_nat::view::{BareView, Gauges, MappingView, OtherView, PortUse, SessionState, SessionView};
use tokio::sync::oneshot;

use super::socket;
use super::window::{Granted, Origin, STUCK_AFTER, Window, XdpCount};
use crate::cli::client::Client;
use crate::cli::exit::Failure;
use crate::doors::commands::{Phase, Tables};
use crate::doors::counters::{FrameFigures, QueueFigures, QueueName, Report, Shape};
use crate::doors::{self, ControlDoors, WorkerDoors};

/// Tables of `sessions` sessions and as many mappings, those of UDP bare ones, every other record of the table being empty.
struct Fake {
    sessions: u32,
    others: u32,
}

const INTERNAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn session(number: u32) -> SessionView {
    let endpoint = |address, port: u32| Endpoint { address, port: port as u16 };
    SessionView {
        protocol: if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp },
        internal: endpoint(INTERNAL, number),
        external: endpoint(EXTERNAL, 1024 + number),
        remote: endpoint(REMOTE, 443),
        state: if number.is_multiple_of(2) { SessionState::Established } else { SessionState::Unreplied },
        outbound: true,
        expires_in: 1000 * number,
        packets_out: number,
        packets_in: 0,
    }
}

fn other(number: u32) -> OtherView {
    OtherView {
        protocol: if number.is_multiple_of(2) { 47 } else { 253 },
        internal: INTERNAL,
        external: EXTERNAL,
        remote: REMOTE,
        state: SessionState::Replied,
        expires_in: 600_000,
        packets_out: 10_000 + number,
        packets_in: 2,
    }
}

impl Tables for Fake {
    fn sessions(&self, cursor: u32, most: u32, _: Tick, into: &mut Vec<SessionView>) -> Option<u32> {
        let end = cursor.saturating_add(most).min(2 * self.sessions);
        into.extend((cursor..end).filter(|record| record % 2 == 0).map(|record| session(record / 2)));
        (end < 2 * self.sessions).then_some(end)
    }

    fn others(&self, cursor: u32, most: u32, _: Tick, into: &mut Vec<OtherView>) -> Option<u32> {
        let end = self.others.min(cursor + most);
        into.extend((cursor..end).map(other));
        (end < self.others).then_some(end)
    }

    fn mappings(&self, cursor: u32, most: u32, _: Tick, into: &mut Vec<MappingView>) -> Option<u32> {
        let mut sessions = Vec::new();
        let next = self.sessions(cursor, most, Tick(0), &mut sessions);
        into.extend(sessions.iter().map(|session| MappingView {
            protocol: session.protocol,
            internal: session.internal,
            external: session.external,
            scope: None,
            sessions: u32::from(session.protocol == Protocol::Tcp),
            bare: (session.protocol == Protocol::Udp).then_some(BareView {
                expires_in: session.expires_in,
                packets_out: session.packets_out,
                packets_in: session.packets_in,
            }),
        }));
        next
    }
}

/// The network and the policy of a small gateway.
pub(crate) fn small() -> (Arc<Policy>, Arc<Network>) {
    let interface = |name: &str, device, side, address: &str| Interface {
        name: name.to_owned(),
        device: DeviceId(device),
        vlan: None,
        side,
        mac: [2, 0, 0, 0, 0, device],
        addresses: vec![address.parse().expect("an address")],
        mtu: 1500,
        up: true,
        prefixes: Vec::new(),
        checksums: ReceivedChecksums::default(),
        mss: MssClamp::Off,
    };
    let externals = vec![External {
        address: Some(EXTERNAL),
        ports: PortSet::range(1024, 65535),
        shared_with_host: false,
        pool: "default".to_owned(),
    }];
    let interfaces =
        vec![interface("eth1", 0, Side::Inside, "10.0.0.1/24"), interface("eth0", 1, Side::Outside, "203.0.113.10/24")];
    (Arc::new(Policy { externals, ..Policy::default() }), Arc::new(Network { interfaces, ..Network::default() }))
}

/// The doors of a worker with one queue.
pub(crate) fn small_doors() -> (WorkerDoors, ControlDoors) {
    let (policy, network) = small();
    let queues = vec![QueueName { interface: "eth0".to_owned(), queue: 0 }];
    doors::open(vec![Shape { queues, externals: 4 }], policy, network).expect("descriptors").pop().expect("a worker's doors")
}

/// The window on a gateway with these doors.
pub(crate) fn window(doors: &ControlDoors) -> Arc<Window> {
    let xdp = || vec![XdpCount { label: "not_ipv4".to_owned(), meaning: "Not IPv4.".to_owned(), packets: 12 }];
    let origin = Origin { path: "/etc/portcullis/portcullis.toml".to_owned(), udp_tracking: UdpTracking::Mappings };
    let window = Window::new(origin, [doors], doors.policy.clone(), Box::new(xdp));
    let granted = Granted { mode: api::XdpMode::Native, copy: api::CopyMode::Copy, queues: 1, huge_pages: true, busy_poll: true };
    window.set_granted(vec![(DeviceId(0), granted), (DeviceId(1), granted)]);
    let steering = api::Steering { way: "key synthesis".to_owned(), trusted: Some(true), ..api::Steering::default() };
    window.set_steering(vec![(DeviceId(0), steering.clone()), (DeviceId(1), steering)]);
    Arc::new(window)
}

/// Publishes what a worker that has forwarded a little would.
pub(crate) fn publish(worker: &mut WorkerDoors, now: Tick) {
    let mut counters = Counters::default();
    counters.add(Counter::Outbound, 1000);
    counters.drop_packet(DropReason::NoRoute);
    let report = Report {
        counters: &[&counters],
        gauges: Gauges {
            mappings: 5,
            mappings_limit: 100,
            sessions: 7,
            sessions_limit: 200,
            subscribers: 2,
            fragments: 0,
            others: 3,
            others_limit: 50,
        },
        frames: FrameFigures { total: 8192, got: 10, sent: 10, pool: 4000, in_flight: 4190, held: 2 },
        queues: &[QueueFigures { rx_ring_full: 3, ..QueueFigures::default() }],
        handed_in: 20,
        refused: 3,
        generation: worker.policy.seen(),
    };
    worker.counters.burst(4, 1000);
    worker.counters.publish(now, &report);
    let uses = Protocol::ALL.map(|protocol| PortUse { address: EXTERNAL, protocol, used: 5, resting: 1, limit: 64512 });
    worker.counters.publish_ports(now, &uses);
}

/// A gateway without packets: the worker's thread and the server's.
struct Gateway {
    socket: PathBuf,
    doors: ControlDoors,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Gateway {
    fn start(name: &str, sessions: u32) -> Self {
        Self::start_with(name, Fake { sessions, others: 0 })
    }

    fn start_with(name: &str, tables: Fake) -> Self {
        let socket = std::env::temp_dir().join(format!("portcullis-{name}-{}/control.sock", std::process::id()));
        let (worker, doors) = small_doors();
        let bound = socket::bind(&socket).expect("a socket");
        let (stop, stopped) = oneshot::channel();
        let shown = window(&doors);
        let server = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let stopped = async move { stopped.await.unwrap_or(()) };
            runtime.block_on(super::serve(bound, shown, stopped)).expect("the server ends well");
        });
        let worker = thread::spawn(move || work(worker, &tables));
        Self { socket, doors, stop: Some(stop), threads: vec![server, worker] }
    }

    fn client(&self) -> Client {
        Client::new(&self.socket)
    }
}

fn work(mut worker: WorkerDoors, tables: &Fake) {
    while worker.commands.phase() != Phase::Stopping {
        worker.policy.newer();
        if worker.counters.is_due(Tick(0)) {
            publish(&mut worker, Tick(0));
        }
        if !worker.commands.serve(tables, Tick(0)) {
            thread::yield_now();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.doors.commands.set_phase(Phase::Stopping);
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(thread::panicking() || ended.is_ok(), "a thread of the gateway panicked");
        }
        assert!(thread::panicking() || !self.socket.exists(), "the socket's file is removed");
        let _ = std::fs::remove_dir_all(self.socket.parent().expect("a directory"));
    }
}

fn all_sessions(client: &Client, filter: &api::SessionFilter) -> Vec<api::SessionEntry> {
    let mut entries = Vec::new();
    let ended = client.sessions(filter, |entry| {
        entries.push(entry);
        Ok(())
    });
    assert_eq!(ended.expect("an answer"), entries.len() as u64);
    entries
}

/// Waits until the worker has published, for a bounded time.
fn stats_when(client: &Client, ready: impl Fn(&api::Stats) -> bool) -> api::Stats {
    let start = Instant::now();
    loop {
        let stats = client.stats().expect("an answer");
        if ready(&stats) {
            return stats;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "not in time: {stats:?}");
        thread::yield_now();
    }
}

#[test]
fn every_session_of_a_large_table_arrives_once() {
    let gateway = Gateway::start("sessions", 10_000);
    let entries = all_sessions(&gateway.client(), &api::SessionFilter::default());
    assert_eq!(entries.len(), 10_000);
    assert!(entries.iter().zip(0..).all(|(entry, number)| entry.packets_out == number));
    assert_eq!(entries[2].external, api::Endpoint { address: EXTERNAL, port: 1026 });
    assert_eq!(entries[3].state, api::SessionState::Unreplied);
}

#[test]
fn filters_are_obeyed_and_nonsense_is_refused() {
    let gateway = Gateway::start("filters", 1000);
    let client = gateway.client();
    let udp = api::SessionFilter { protocol: Some(api::Protocol::Udp), ..Default::default() };
    assert_eq!(all_sessions(&client, &udp).len(), 500);
    let one = api::SessionFilter { internal: "10.0.0.0/8:998".parse().ok(), ..Default::default() };
    assert_eq!(all_sessions(&client, &one).len(), 1);
    let none = api::SessionFilter { remote: "192.0.2.0/24".parse().ok(), ..Default::default() };
    assert_eq!(all_sessions(&client, &none).len(), 0);
    for path in ["/v1/sessions?internal=here", "/v1/sessions?protocol=sctpp", "/v1/mappings?extrenal=10.0.0.1", "/v2/stats"] {
        let error = client.get::<api::Stats>(path).expect_err("nonsense");
        let Failure::Refused(error) = error else { panic!("{path}: {error:?}") };
        assert_eq!(error.kind, api::ErrorKind::BadRequest, "{path}");
    }
}

#[test]
fn translations_of_other_protocols_come_after_the_sessions_and_are_found_by_name_and_number() {
    let gateway = Gateway::start_with("others", Fake { sessions: 300, others: 600 });
    let client = gateway.client();
    let entries = all_sessions(&client, &api::SessionFilter::default());
    assert_eq!(entries.len(), 900);
    assert!(entries[300..].iter().zip(10_000..).all(|(entry, number)| entry.packets_out == number));
    let without_port = |address| api::Endpoint { address, port: 0 };
    let first = api::SessionEntry {
        protocol: api::Protocol::Other(47),
        state: api::SessionState::Replied,
        direction: api::Direction::Outbound,
        internal: without_port(INTERNAL),
        external: without_port(EXTERNAL),
        remote: without_port(REMOTE),
        expires_in_milliseconds: 600_000,
        packets_out: 10_000,
        packets_in: 2,
    };
    assert_eq!(entries[300], first);
    for (protocol, count) in [("gre", 300), ("47", 300), ("253", 300), ("sctp", 0), ("tcp", 150), ("6", 150)] {
        let filter = api::SessionFilter { protocol: protocol.parse().ok(), ..Default::default() };
        assert_eq!(all_sessions(&client, &filter).len(), count, "{protocol}");
    }
}

#[test]
fn mappings_arrive_and_match() {
    let gateway = Gateway::start("mappings", 300);
    let one = |external: &str| {
        let mut entries = Vec::new();
        let filter = api::SessionFilter { external: external.parse().ok(), ..Default::default() };
        let ended = gateway.client().mappings(&filter, |entry| {
            entries.push(entry);
            Ok(())
        });
        assert_eq!((ended.expect("an answer"), entries.len()), (1, 1));
        entries.remove(0)
    };
    let with_session = one(":1024");
    assert_eq!((with_session.internal.port, with_session.remote, with_session.sessions, with_session.bare), (0, None, 1, None));
    let bare = one(":1029");
    let said = api::Bare { expires_in_milliseconds: 5000, packets_out: 5, packets_in: 0 };
    assert_eq!((bare.internal.port, bare.remote, bare.sessions, bare.bare), (5, None, 0, Some(said)));
}

#[test]
fn several_dumps_go_on_at_once() {
    let gateway = Gateway::start("several", 3000);
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let client = gateway.client();
            thread::spawn(move || all_sessions(&client, &api::SessionFilter::default()).len())
        })
        .collect();
    for asker in askers {
        assert_eq!(asker.join().expect("an asker"), 3000);
    }
}

#[test]
fn an_asker_that_hangs_up_leaves_the_worker_free_for_others() {
    let gateway = Gateway::start("hangs-up", 100_000);
    for _ in 0..20 {
        let ended = gateway.client().sessions(&api::SessionFilter::default(), |_| {
            Err(Failure::Output(std::io::Error::from(std::io::ErrorKind::BrokenPipe)))
        });
        assert!(matches!(ended, Err(Failure::Output(_))), "{ended:?}");
    }
    let filter = api::SessionFilter { internal: ":7".parse().ok(), ..Default::default() };
    assert!(!all_sessions(&gateway.client(), &filter).is_empty());
}

#[test]
fn stats_show_what_the_worker_published() {
    let gateway = Gateway::start("stats", 1);
    let stats = stats_when(&gateway.client(), |stats| stats.workers[0].bursts > 0 && stats.workers[0].generation == 1);
    let value = |of: &[api::Named], name| of.iter().find(|each| each.name == name).map(|each| each.value);
    assert_eq!(value(&stats.counters, "outbound_packets"), Some(1000));
    assert_eq!(value(&stats.drops, "no_route"), Some(1));
    assert_eq!(value(&stats.drops, "filtered"), Some(0), "reasons that did not occur are there");
    assert_eq!(value(&stats.xdp, "not_ipv4"), Some(12));
    assert_eq!(stats.drops.len(), DropReason::ALL.len());
    assert_eq!(stats.config.udp_tracking, api::UdpTracking::Mappings);
    assert_eq!((stats.gauges.sessions, stats.gauges.sessions_limit), (7, 200));
    assert_eq!((stats.frames.held, stats.frames.missing), (2, 0));
    assert_eq!((stats.queues[0].interface.as_str(), stats.queues[0].rx_ring_full), ("eth0", 3));
    assert_eq!((stats.interfaces[0].mac.as_str(), stats.interfaces[0].huge_pages), ("02:00:00:00:00:00", true));
    assert_eq!((stats.ports[1].pool.as_str(), stats.ports[1].used, stats.ports.len()), ("default", 5, 3));
    assert_eq!(stats.workers[0].packet_times.p50, 250);
    assert_eq!(stats.unhealthy, None);
}

#[test]
fn what_two_workers_publish_is_summed_and_shown_apart() {
    let (policy, network) = small();
    let queue = |queue| QueueName { interface: "eth0".to_owned(), queue };
    let shapes = (0..2).map(|number| Shape { queues: vec![queue(number)], externals: 4 }).collect();
    let (mut workers, doors): (Vec<_>, Vec<_>) = doors::open(shapes, policy, network).expect("descriptors").into_iter().unzip();
    for worker in &mut workers {
        publish(worker, Tick(0));
    }
    let mut counters = Counters::default();
    counters.add(Counter::HandedOffFragment, 4);
    let frames = FrameFigures { total: 100, got: 3, sent: 12, pool: 80, in_flight: 10, held: 1 };
    let gauges = Gauges { sessions: 1, ..Gauges::default() };
    let queues = [QueueFigures::default()];
    let report = Report { counters: &[&counters], gauges, frames, queues: &queues, handed_in: 6, refused: 1, generation: 1 };
    workers[1].counters.publish(Tick(0), &report);
    let origin = Origin { path: "x.toml".to_owned(), udp_tracking: UdpTracking::Sessions };
    let window = Window::new(origin, &doors, doors[0].policy.clone(), Box::new(Vec::new));
    let stats = window.stats();

    assert_eq!((stats.ports.len(), stats.ports[0].used, stats.ports[0].limit), (3, 10, 129_024), "each has its own ports");
    assert_eq!((stats.gauges.sessions, stats.workers[0].gauges.sessions, stats.workers[1].gauges.sessions), (8, 7, 1));
    let sum = api::Frames { total: 8292, pool: 4080, in_flight: 4200, held: 3, handed_over: 9, missing: 0 };
    assert_eq!(stats.frames, sum);
    assert_eq!(stats.frames.pool + stats.frames.in_flight + stats.frames.held + stats.frames.handed_over, stats.frames.total);
    assert_eq!((stats.workers[1].frames.total, stats.workers[1].frames.missing), (91, 0));
    let second = &stats.workers[1];
    assert_eq!((second.handed_in, second.hand_off_refused, second.drops, stats.workers[0].drops), (6, 1, 0, 1));
    let causes: Vec<_> = second.handed_off.iter().map(|cause| (cause.name.as_str(), cause.value)).collect();
    let nothing = ["misplaced", "icmp_error", "icmp_query", "hairpin", "forward", "other_protocol"].map(|name| (name, 0));
    assert_eq!(causes, [&nothing[..3], &[("fragment", 4)], &nothing[3..]].concat());
    let names: Vec<_> = stats.workers.iter().flat_map(|worker| &worker.queues).map(|queue| queue.queue).collect();
    assert_eq!((names, stats.queues.len()), (vec![0, 1], 2));
    let late = Instant::now() + STUCK_AFTER + Duration::from_secs(2);
    publish(&mut workers[0], Tick(0));
    let stuck = window.unhealthy(late).expect("worker 1 has published nothing more");
    assert!(stuck.contains("worker 1"), "{stuck}");
}

#[test]
fn a_version_is_told() {
    let gateway = Gateway::start("version", 0);
    let version = gateway.client().version().expect("an answer");
    assert_eq!((version.api, version.portcullis.as_str()), (api::VERSION, env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_silent_worker_is_told_of_and_no_dump_hangs() {
    let gateway = Gateway::start("silent", 10);
    gateway.doors.commands.set_phase(Phase::Stopping);
    let client = gateway.client();
    // The worker may still have answered what came before it saw the phase; soon it does not.
    let start = Instant::now();
    let error = loop {
        match client.sessions(&api::SessionFilter::default(), |_| Ok(())) {
            Err(error) => break error,
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(20), "the worker still answers"),
        }
    };
    let Failure::Refused(error) = error else { panic!("{error:?}") };
    assert_eq!(error.kind, api::ErrorKind::WorkerSilent);
}

#[test]
fn a_request_that_is_too_large_or_not_http_is_dropped() {
    use std::io::{Read as _, Write as _};
    let gateway = Gateway::start("large", 1);
    for request in [format!("GET /v1/version?{} HTTP/1.1\r\n\r\n", "x".repeat(100_000)), "\0\x01nonsense\r\n\r\n".to_owned()] {
        let mut stream = std::os::unix::net::UnixStream::connect(&gateway.socket).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        // The server may close before all is written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert!(gateway.client().version().is_ok(), "others are served");
}

#[test]
fn a_stuck_worker_and_a_dead_link_make_the_gateway_unhealthy() {
    let (mut worker, doors) = small_doors();
    let window = window(&doors);
    let start = Instant::now();
    publish(&mut worker, Tick(0));
    assert_eq!(window.unhealthy(start), None);
    assert_eq!(window.unhealthy(start + STUCK_AFTER), None, "not yet");
    let late = start + STUCK_AFTER + Duration::from_secs(1);
    assert_eq!(window.unhealthy(late).as_deref(), Some("worker 0 has made no progress for 4 s"));
    publish(&mut worker, Tick(0));
    assert_eq!(window.unhealthy(late), None, "it goes on");

    let mut network = Network::clone(&doors.policy.current().network);
    network.interfaces[1].up = false;
    doors.policy.publish_network(Arc::new(network.clone()));
    assert_eq!(window.unhealthy(late).as_deref(), Some("interface eth0 is down"));
    network.interfaces[0].up = false;
    doors.policy.publish_network(Arc::new(network));
    assert_eq!(window.unhealthy(late).as_deref(), Some("interface eth1, eth0 are down"));
}

#[test]
fn a_failed_reload_is_seen_and_the_last_good_time_kept() {
    let (_worker, doors) = small_doors();
    let window = window(&doors);
    let before = window.stats().config;
    assert!(before.last_reload_successful);
    window.set_reloaded(false);
    let after = window.stats().config;
    assert!(!after.last_reload_successful);
    assert_eq!(after.last_success_unix_seconds.to_bits(), before.last_success_unix_seconds.to_bits());
}
