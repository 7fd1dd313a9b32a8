//! The window: all that control and metrics see of the running gateway, in one place and read-only.
//!
//! Knows the control plane's side of the doors and what start-up was granted; turns them into [`api::Stats`] and into health. Knows
//! no HTTP. Built by `run.rs`. Invariant: command line and metrics show the same numbers, since both come from here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hdrhistogram::Histogram;
use portcullis_api as api;
use portcullis_config::UdpTracking;
use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{DeviceId, Interface, Network, Policy};
use portcullis_nat::verdict::{DropReason, HandOffCause};
use portcullis_nat::view::Gauges;

use super::convert;
use crate::doors::counters::{FrameFigures, Published, QueueFigures, QueueName};
use crate::doors::{ControlDoors, commands, counters, events, policy};

/// A worker that has published nothing for this long makes no progress: it publishes ten times a second, busy or idle.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(3);

/// What a device was granted at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Where the XDP program runs.
    pub(crate) mode: api::XdpMode,
    /// How packets reach the packet memory.
    pub(crate) copy: api::CopyMode,
    /// How many queues are bound.
    pub(crate) queues: u32,
    /// Whether the packet memory is on huge pages.
    pub(crate) huge_pages: bool,
    /// Whether preferred busy polling is on.
    pub(crate) busy_poll: bool,
}

/// What of the configuration is shown, and no reload changes.
pub(crate) struct Origin {
    /// The file.
    pub(crate) path: String,
    /// How UDP is kept.
    pub(crate) udp_tracking: UdpTracking,
}

/// What the XDP program counted for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct XdpCount {
    /// The reason's name, unique: a metric label.
    pub(crate) label: String,
    /// What it means, for people.
    pub(crate) meaning: String,
    /// Packets.
    pub(crate) packets: u64,
}

/// Reads the XDP program's counters: every reason, those with zero packets too.
pub(crate) type XdpCounters = Box<dyn Fn() -> Vec<XdpCount> + Send + Sync>;

/// A worker as the window shows it.
pub(crate) struct WorkerWindow {
    /// Its counters.
    counters: Arc<counters::Reader>,
    /// Its ear.
    pub(super) commands: commands::Asker,
    /// News that it could not tell.
    events_lost: events::Lost,
    /// How often it had published, and when that was last seen to change.
    progress: Mutex<(u64, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct Loaded {
    last_successful: bool,
    last_success: SystemTime,
}

/// See the room card.
pub(crate) struct Window {
    started: Instant,
    origin: Origin,
    loaded: Mutex<Loaded>,
    workers: Vec<WorkerWindow>,
    policy: policy::Publisher,
    granted: ArcSwap<Vec<(DeviceId, Granted)>>,
    steering: ArcSwap<Vec<(DeviceId, api::Steering)>>,
    xdp: XdpCounters,
}

/// What metrics show beyond [`api::Stats`].
pub(crate) struct WorkerTimes {
    /// The worker's number.
    pub(crate) worker: u32,
    /// Nanoseconds a packet.
    pub(crate) times: Histogram<u64>,
}

impl Window {
    /// The window on a gateway whose workers have these doors, all published to alike, with the configuration just loaded.
    pub(crate) fn new<'d>(
        origin: Origin,
        workers: impl IntoIterator<Item = &'d ControlDoors>,
        policy: policy::Publisher,
        xdp: XdpCounters,
    ) -> Self {
        let now = Instant::now();
        let workers = workers.into_iter().map(|doors| WorkerWindow {
            counters: Arc::clone(&doors.counters),
            commands: doors.commands.clone(),
            events_lost: doors.events.lost(),
            progress: Mutex::new((0, now)),
        });
        Self {
            started: now,
            origin,
            loaded: Mutex::new(Loaded { last_successful: true, last_success: SystemTime::now() }),
            workers: workers.collect(),
            policy,
            granted: ArcSwap::default(),
            steering: ArcSwap::default(),
            xdp,
        }
    }

    /// Says what the devices were granted.
    pub(crate) fn set_granted(&self, granted: Vec<(DeviceId, Granted)>) {
        self.granted.store(Arc::new(granted));
    }

    /// Says how the devices' frames come to their owners.
    pub(crate) fn set_steering(&self, steering: Vec<(DeviceId, api::Steering)>) {
        self.steering.store(Arc::new(steering));
    }

    /// Frames received and frames misplaced since the start, by device, all workers together.
    pub(crate) fn placed(&self) -> BTreeMap<String, (u64, u64)> {
        let mut placed = BTreeMap::<_, (u64, u64)>::new();
        for worker in &self.workers {
            for (name, figures) in worker.counters.read().queues {
                let (received, misplaced) = placed.entry(name.interface).or_default();
                *received += figures.received;
                *misplaced += figures.misplaced;
            }
        }
        placed
    }

    /// Says how an attempt to load the configuration ended.
    pub(crate) fn set_reloaded(&self, successful: bool) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.last_successful = successful;
        if successful {
            loaded.last_success = SystemTime::now();
        }
    }

    pub(super) fn workers(&self) -> &[WorkerWindow] {
        &self.workers
    }

    /// Why the gateway is not healthy at `now`, or none. Has to be asked about once a second to notice a stuck worker in time.
    pub(crate) fn unhealthy(&self, now: Instant) -> Option<String> {
        let stuck = self.workers.iter().enumerate().find_map(|(number, worker)| {
            let silent = worker.silent_for(now);
            (silent > STUCK_AFTER).then(|| format!("worker {number} has made no progress for {} s", silent.as_secs()))
        });
        stuck.or_else(|| {
            let snapshot = self.policy.current();
            let down: Vec<_> = snapshot.network.interfaces.iter().filter(|each| !each.up).map(|each| each.name.as_str()).collect();
            (!down.is_empty()).then(|| format!("interface {} down", are(&down)))
        })
    }

    /// Everything, at this moment.
    pub(crate) fn stats(&self) -> api::Stats {
        let snapshot = self.policy.current();
        let published: Vec<_> = self.workers.iter().map(|worker| worker.counters.read()).collect();
        api::Stats {
            api: api::VERSION,
            portcullis: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            unhealthy: self.unhealthy(Instant::now()),
            config: self.config(snapshot.generation),
            interfaces: self.interfaces(&snapshot.network),
            gauges: gauges(&published),
            ports: self.ports(&snapshot.policy),
            counters: Counter::ALL
                .iter()
                .map(|&counter| named(counter.label(), counter.meaning(), &published, |worker| worker.get(counter)))
                .collect(),
            drops: DropReason::ALL
                .iter()
                .map(|&reason| named(reason.label(), reason.meaning(), &published, |worker| worker.dropped(reason)))
                .collect(),
            xdp: self.xdp(),
            queues: published.iter().flat_map(|worker| &worker.queues).map(queue).collect(),
            frames: frames(&published),
            workers: self.workers.iter().zip(&published).enumerate().map(worker).collect(),
        }
    }

    /// What packets took, for each worker.
    pub(crate) fn times(&self) -> Vec<WorkerTimes> {
        let times =
            |(number, worker): (usize, &WorkerWindow)| WorkerTimes { worker: number as u32, times: worker.counters.times() };
        self.workers.iter().enumerate().map(times).collect()
    }

    fn config(&self, generation: u64) -> api::Config {
        let loaded = *self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        api::Config {
            path: self.origin.path.clone(),
            udp_tracking: convert::udp_tracking(self.origin.udp_tracking),
            last_reload_successful: loaded.last_successful,
            last_success_unix_seconds: loaded.last_success.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            generation,
        }
    }

    fn interfaces(&self, network: &Network) -> Vec<api::Interface> {
        let granted = self.granted.load();
        let steering = self.steering.load();
        let granted = |device| granted.iter().find(|(of, _)| *of == device).map(|(_, granted)| granted);
        let steering = |device| steering.iter().find(|(of, _)| *of == device).map(|(_, steering)| steering);
        network.interfaces.iter().map(|each| interface(each, granted(each.device), steering(each.device))).collect()
    }

    fn ports(&self, policy: &Policy) -> Vec<api::PortUse> {
        let pool = |address| {
            let external = policy.externals.iter().find(|external| external.address == Some(address));
            external.map_or_else(String::new, |external| external.pool.clone())
        };
        // Each worker has its own ports of every address.
        let mut sums = BTreeMap::<_, (u64, u64, u64)>::new();
        for each in self.workers.iter().flat_map(|worker| worker.counters.port_use()) {
            let (used, resting, limit) = sums.entry((each.address, each.protocol)).or_default();
            *used += u64::from(each.used);
            *resting += u64::from(each.resting);
            *limit += u64::from(each.limit);
        }
        let port_use = |((address, protocol), (used, resting, limit))| {
            let (pool, protocol) = (pool(address), convert::protocol(protocol));
            api::PortUse { pool, address, protocol, used, resting, limit }
        };
        sums.into_iter().map(port_use).collect()
    }

    fn xdp(&self) -> Vec<api::Named> {
        let counts = (self.xdp)().into_iter();
        counts.map(|each| api::Named { name: each.label, meaning: each.meaning, value: each.packets }).collect()
    }
}

impl WorkerWindow {
    /// How long it has published nothing, as far as anybody looked.
    fn silent_for(&self, now: Instant) -> Duration {
        let published = self.counters.read().worker.published;
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.0 != published {
            *progress = (published, now);
        }
        now.saturating_duration_since(progress.1)
    }
}

fn are(names: &[&str]) -> String {
    match names {
        [one] => format!("{one} is"),
        many => format!("{} are", many.join(", ")),
    }
}

fn named(name: &str, meaning: &str, published: &[Published], value: impl Fn(&Published) -> u64) -> api::Named {
    let value = published.iter().map(value).sum();
    // The meaning is a doc comment: it starts with the space after the slashes.
    api::Named { name: name.to_owned(), meaning: meaning.trim().to_owned(), value }
}

fn gauges(published: &[Published]) -> api::Gauges {
    published.iter().map(worker_gauges).fold(api::Gauges::default(), |sum, gauges| api::Gauges {
        mappings: sum.mappings + gauges.mappings,
        mappings_limit: sum.mappings_limit + gauges.mappings_limit,
        sessions: sum.sessions + gauges.sessions,
        sessions_limit: sum.sessions_limit + gauges.sessions_limit,
        subscribers: sum.subscribers + gauges.subscribers,
        fragments: sum.fragments + gauges.fragments,
        other_translations: sum.other_translations + gauges.other_translations,
        other_translations_limit: sum.other_translations_limit + gauges.other_translations_limit,
    })
}

fn worker_gauges(worker: &Published) -> api::Gauges {
    let Gauges { mappings, mappings_limit, sessions, sessions_limit, subscribers, fragments, others, others_limit } = worker.gauges;
    api::Gauges {
        mappings: u64::from(mappings),
        mappings_limit: u64::from(mappings_limit),
        sessions: u64::from(sessions),
        sessions_limit: u64::from(sessions_limit),
        subscribers: u64::from(subscribers),
        fragments: u64::from(fragments),
        other_translations: u64::from(others),
        other_translations_limit: u64::from(others_limit),
    }
}

fn frames(published: &[Published]) -> api::Frames {
    let (mut sent, mut got) = (0_u64, 0);
    let mut sum = api::Frames::default();
    for FrameFigures { total, got: its_got, sent: its_sent, pool, in_flight, held } in published.iter().map(|worker| worker.frames)
    {
        (sent, got) = (sent + its_sent, got + its_got);
        sum.total += total;
        sum.pool += pool;
        sum.in_flight += in_flight;
        sum.held += held;
    }
    sum.handed_over = sent.saturating_sub(got);
    sum.missing = published.iter().map(|worker| worker.frames.missing()).sum();
    sum
}

fn worker_frames(frames: &FrameFigures) -> api::Frames {
    let &FrameFigures { pool, in_flight, held, .. } = frames;
    api::Frames { total: frames.owned(), pool, in_flight, held, handed_over: 0, missing: frames.missing() }
}

/// The causes of hand-offs, with their names in metrics and tables.
const CAUSES: [(HandOffCause, &str); 7] = [
    (HandOffCause::Misplaced, "misplaced"),
    (HandOffCause::IcmpError, "icmp_error"),
    (HandOffCause::IcmpQuery, "icmp_query"),
    (HandOffCause::Fragment, "fragment"),
    (HandOffCause::Hairpin, "hairpin"),
    (HandOffCause::Forward, "forward"),
    (HandOffCause::OtherProtocol, "other_protocol"),
];

fn handed_off(worker: &Published) -> Vec<api::Named> {
    let one = |&(cause, name): &(HandOffCause, &str)| {
        let counter = Counter::handed_off(cause);
        api::Named { name: name.to_owned(), meaning: counter.meaning().trim().to_owned(), value: worker.get(counter) }
    };
    CAUSES.iter().map(one).collect()
}

fn queue((name, figures): &(QueueName, QueueFigures)) -> api::Queue {
    api::Queue {
        interface: name.interface.clone(),
        queue: name.queue,
        rx_dropped: figures.rx_dropped,
        rx_invalid_descs: figures.rx_invalid_descs,
        tx_invalid_descs: figures.tx_invalid_descs,
        rx_ring_full: figures.rx_ring_full,
        rx_fill_ring_empty: figures.rx_fill_ring_empty,
        tx_ring_empty: figures.tx_ring_empty,
        received: figures.received,
        misplaced: figures.misplaced,
    }
}

fn worker((number, (window, published)): (usize, (&WorkerWindow, &Published))) -> api::Worker {
    let figures = &published.worker;
    let times = window.counters.times();
    api::Worker {
        worker: number as u32,
        bursts: figures.bursts,
        idle_loops: figures.idle_loops,
        packets: figures.packets,
        busy_seconds: Duration::from_nanos(figures.busy_nanoseconds).as_secs_f64(),
        burst_sizes: figures.burst_sizes.to_vec(),
        generation: figures.generation,
        events_lost: window.events_lost.get(),
        packet_times: api::PacketTimes {
            p50: times.value_at_quantile(0.5),
            p90: times.value_at_quantile(0.9),
            p99: times.value_at_quantile(0.99),
            p999: times.value_at_quantile(0.999),
            max: times.max(),
        },
        queues: published.queues.iter().map(|(name, _)| queue_name(name)).collect(),
        handed_off: handed_off(published),
        handed_in: figures.handed_in,
        hand_off_refused: figures.refused,
        drops: DropReason::ALL.iter().map(|&reason| published.dropped(reason)).sum(),
        gauges: worker_gauges(published),
        frames: worker_frames(&published.frames),
    }
}

fn queue_name(name: &QueueName) -> api::QueueName {
    api::QueueName { interface: name.interface.clone(), queue: name.queue }
}

fn interface(interface: &Interface, granted: Option<&Granted>, steering: Option<&api::Steering>) -> api::Interface {
    let mac: Vec<_> = interface.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    api::Interface {
        name: interface.name.clone(),
        side: convert::side(interface.side),
        up: interface.up,
        vlan: interface.vlan,
        mac: mac.join(":"),
        addresses: interface.addresses.iter().map(ToString::to_string).collect(),
        mtu: interface.mtu,
        mode: granted.map(|granted| granted.mode),
        copy: granted.map(|granted| granted.copy),
        queues: granted.map_or(0, |granted| granted.queues),
        huge_pages: granted.is_some_and(|granted| granted.huge_pages),
        busy_poll: granted.is_some_and(|granted| granted.busy_poll),
        steering: steering.cloned(),
    }
}
