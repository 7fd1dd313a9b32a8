//! The running gateway: everything that start-up made, and the way back.
//!
//! Knows all rooms, each by its front door. Called by `run`. Invariant: parts that were brought up are taken down in reverse, also when
//! a later one fails; the guard alone stays.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use portcullis_api as api;
use portcullis_config::{BusyPoll, Config, HostAddresses, PortRange};
use portcullis_nat::policy::{DeviceId, Network, Policy, Side};
use portcullis_nat::time::Tick;
use portcullis_nat::{Capacity, Nat, Seeds};
use portcullis_steering::{Owners, WorkerId};
use portcullis_xsk::memory::{self, Pages};
use portcullis_xsk::socket::{BusyPolling, Mode, Opened, Socket, open_all};
use portcullis_xsk::steer::{AttachMode, AttachWish, Steer};
use portcullis_xsk::umem::{Umem, UmemOptions};
use tokio::sync::watch;

use super::devices::{self, Devices};
use super::punter::KernelPunter;
use super::steering;
use crate::cli::exit::Failure;
use crate::control::window::{Granted, Window, XdpCount, XdpCounters};
use crate::doors::commands::Phase;
use crate::doors::counters::{QueueFigures, QueueName, Shape};
use crate::doors::events::Event;
use crate::doors::{self, ControlDoors};
use crate::kernel::{self, Claims, Forwarding, KernelState, Mirror, Requests, Resolver, Wanted};
use crate::worker::thread::{self, Rules};
use crate::worker::{Queue, QueuePort, Worker};
use crate::{control, metrics};

/// The rings of a queue hold so many frames at most and at least.
const RINGS: [u32; 4] = [2048, 1024, 512, 256];

/// How the sockets ask to be polled, where the driver has a NAPI for them.
const BUSY_POLLING: BusyPolling = BusyPolling { time_us: 20, budget: 64 };

/// How long the servers have for their last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

type SocketWorker = Worker<Socket, KernelPunter>;

impl QueuePort for Socket {
    fn figures(&self) -> QueueFigures {
        // The kernel answers for as long as the descriptor is open.
        let statistics = self.statistics().unwrap_or_default();
        QueueFigures {
            rx_dropped: statistics.rx_dropped,
            rx_invalid_descs: statistics.rx_invalid_descs,
            tx_invalid_descs: statistics.tx_invalid_descs,
            rx_ring_full: statistics.rx_ring_full,
            rx_fill_ring_empty: statistics.rx_fill_ring_empty_descs,
            tx_ring_empty: statistics.tx_ring_empty_descs,
        }
    }
}

/// The XDP program on its devices; detached when dropped, the guard not.
struct Attached {
    steer: Arc<std::sync::Mutex<Steer>>,
    devices: Vec<(String, u32)>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let steer = lock(&self.steer);
        for (name, ifindex) in &self.devices {
            if let Err(error) = steer.detach(name, *ifindex) {
                tracing::warn!(device = %name, %error, "the XDP program stays attached: remove it with `ip link set dev {name} xdp off`");
            }
        }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// See the room card.
pub(super) struct Gateway {
    rules: Config,
    mirror: Mirror,
    resolver: Resolver,
    claims: Claims,
    devices: Devices,
    steer: Arc<std::sync::Mutex<Steer>>,
    attached: Attached,
    umem: Umem,
    control: ControlDoors,
    /// None once it was joined.
    worker: Option<JoinHandle<SocketWorker>>,
    policy: Arc<Policy>,
    local_ports: PortRange,
    window: Arc<Window>,
    stop_servers: watch::Sender<bool>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Gateway {
    /// Brings the gateway up. **Errors:** [`Failure`] with what to do; what had been brought up is taken down, but for the guard.
    pub(super) async fn bring_up(rules: &Config, path: &Path) -> Result<Self, Failure> {
        let control_socket = control::socket::bind(&rules.control.socket).map_err(anyhow::Error::from)?;
        let metrics_socket = rules.metrics.listen.map(metrics::bind).transpose().map_err(anyhow::Error::from)?;
        let names: Vec<_> = rules.interfaces.iter().map(|interface| interface.name.clone()).collect();
        let mirror = Mirror::start(names.clone()).await.map_err(anyhow::Error::from)?;
        let state = mirror.state();
        devices::check(rules, &state)?;
        let devices = Devices::prepare(rules, &state)?;
        rules.summary().iter().for_each(|line| tracing::info!("{line}"));

        let local_ports = local_ports();
        let policy = Arc::new(rules.policy(&host_addresses(rules, &devices, &state, local_ports)));
        let network = Arc::new(kernel::network(&state, &devices.configured()));
        let mut steer = Steer::load().map_err(anyhow::Error::from)?;
        write_tables(&mut steer, &devices, rules, &state, &policy, &network)?;
        guard(&steer, &devices, &names)?;

        let steer = Arc::new(std::sync::Mutex::new(steer));
        let mut attached = Attached { steer: Arc::clone(&steer), devices: Vec::new() };
        let modes = attach(&mut attached, &devices)?;
        let Opened { umem, sockets, frames } = open_sockets(rules, &devices)?;
        let granted = granted(&devices, &modes, &sockets, &umem);

        let queues: Vec<_> = devices.queues().collect();
        let shape = Shape {
            queues: queues.iter().map(|(_, queue)| QueueName { interface: queue.device.clone(), queue: queue.queue }).collect(),
            externals: rules.slot_count(),
        };
        let (worker_doors, control) = doors::open(shape, Arc::clone(&policy), network);
        let wakers = sockets.iter().map(|socket| socket.fd().try_clone_to_owned()).collect::<Result<_, _>>();
        let wakers = wakers.context("cannot duplicate a socket's descriptor")?;
        {
            let steer = lock(&steer);
            for ((device, queue), socket) in queues.iter().zip(&sockets) {
                steer.set_socket(u32::from(device.0), queue.queue, socket.fd()).map_err(anyhow::Error::from)?;
            }
        }
        let punter = KernelPunter {
            kernel: lock(&steer).punter().map_err(anyhow::Error::from)?,
            devices: devices.used.iter().map(|used| used.device.ifindex).collect(),
        };
        let ports = queues.iter().zip(sockets).map(|((device, _), port)| Queue { device: *device, port }).collect();
        let worker = Worker::new(nat(rules)?, ports, frames, usize::from(rules.worker.burst), punter, worker_doors);
        let core = core(rules)?;
        let how = Rules { core, busy_poll: rules.worker.busy_poll, wakers };
        let worker = thread::start(worker, how).context("cannot start the worker's thread")?;

        let window = Window::new(&path.display().to_string(), [&control], control.policy.clone(), xdp_counters(&steer));
        window.set_granted(granted);
        let (stop_servers, stopped) = watch::channel(false);
        let window = Arc::new(window);
        let servers = serve(Arc::clone(&window), control_socket, metrics_socket, &stopped);

        let requests = Requests::open().map_err(anyhow::Error::from)?;
        let claims = Claims::start(mirror.subscribe(), requests.clone(), wanted(rules));
        let resolver = Resolver::start(mirror.subscribe(), requests, names);
        tracing::info!("the gateway forwards");
        Ok(Self {
            rules: rules.clone(),
            mirror,
            resolver,
            claims,
            devices,
            steer,
            attached,
            umem,
            control,
            worker: Some(worker),
            policy,
            local_ports,
            window,
            stop_servers,
            servers,
        })
    }

    /// The kernel's state, as it changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<KernelState>> {
        self.mirror.subscribe()
    }

    /// The next hop resolver.
    pub(super) const fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The worker's next piece of news.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.control.events.next()
    }

    /// Whether the worker's thread is gone: it panicked.
    pub(super) fn worker_has_ended(&self) -> bool {
        self.worker.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Brings the worker and the XDP program in step with the kernel. **Errors:** a device is gone, or came back as another one.
    pub(super) fn follow(&mut self, state: &Arc<KernelState>) -> Result<(), Failure> {
        self.check_devices(state)?;
        let network = Arc::new(kernel::network(state, &self.devices.configured()));
        let policy = self.rules.policy(&host_addresses(&self.rules, &self.devices, state, self.local_ports));
        let changed = policy != *self.policy;
        if changed {
            report_externals(&self.policy, &policy);
            self.policy = Arc::new(policy);
        }
        // The program first: what it redirects too early the worker refuses; what it leaves to the kernel too long the guard stops.
        write_tables(&mut lock(&self.steer), &self.devices, &self.rules, state, &self.policy, &network)?;
        if changed {
            self.control.policy.publish_policy(Arc::clone(&self.policy));
        }
        self.control.policy.publish_network(network);
        Ok(())
    }

    /// Goes by other rules from now on. Sessions stay, but for those of external addresses that are gone; those of a forward that is
    /// gone end in their time. **Errors:** the rules do not fit the box, or need a restart; nothing has changed then.
    pub(super) fn reload(&mut self, rules: Config) -> Result<(), Failure> {
        if let Some(part) = needs_restart(&self.rules, &rules) {
            return Err(Failure::Config(format!("{part} cannot be changed while the gateway runs: restart it")));
        }
        let state = self.mirror.state();
        devices::check(&rules, &state)?;
        let before = std::mem::replace(&mut self.rules, rules);
        if let Err(failure) = self.follow(&state) {
            self.rules = before;
            return Err(failure);
        }
        self.claims.set(wanted(&self.rules));
        tracing::info!("SIGHUP: the configuration is reloaded");
        self.rules.summary().iter().for_each(|line| tracing::info!("{line}"));
        Ok(())
    }

    /// Tells whoever asks how the last reload ended.
    pub(super) fn note_reload(&self, successful: bool) {
        self.window.set_reloaded(successful);
    }

    fn check_devices(&self, state: &KernelState) -> Result<(), Failure> {
        for used in &self.devices.used {
            let (name, ifindex) = (&used.device.name, used.device.ifindex);
            if state.link(name).map(|(index, _)| index) != Some(ifindex) {
                return Err(Failure::Other(anyhow::anyhow!(
                    "device {name} is gone, and with it its queues: start the gateway again when it is back (a service manager does)"
                )));
            }
        }
        Ok(())
    }

    /// Takes the gateway down: the worker ends, the XDP program is detached, claimed addresses are removed. The guard stays.
    pub(super) async fn take_down(mut self) {
        self.control.commands.set_phase(Phase::Stopping);
        self.umem.retire();
        let worker = self.worker.take();
        let joined = tokio::task::spawn_blocking(move || worker.map(JoinHandle::join)).await;
        drop(self.attached);
        match joined {
            Ok(Some(Ok(worker))) => close(worker),
            _ => tracing::error!("the worker did not end in order"),
        }
        let _ = self.stop_servers.send(true);
        for server in self.servers {
            // What has not answered by then is cut off.
            let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
        }
        self.claims.release().await;
        self.devices.restore();
        tracing::info!("stopped: nothing is translated, and the guard keeps untranslated packets from crossing");
    }
}

/// The part of the rules that differs and is only read at start.
fn needs_restart(before: &Config, after: &Config) -> Option<&'static str> {
    let parts = [
        ("[[interface]]", before.interfaces != after.interfaces),
        ("[limits]", before.limits != after.limits),
        ("[worker]", before.worker != after.worker),
        ("[metrics]", before.metrics != after.metrics),
        ("[control]", before.control.socket != after.control.socket),
        ("the number of external addresses, beyond what it was at start,", after.slot_count() > before.slot_count()),
    ];
    parts.into_iter().find_map(|(part, differs)| differs.then_some(part))
}

/// Gives the worker's frames back before the memory goes.
fn close(worker: SocketWorker) {
    let (queues, mut frames) = worker.into_parts();
    for queue in queues {
        frames.extend(queue.port.close());
    }
}

fn write_tables(
    steer: &mut Steer,
    devices: &Devices,
    rules: &Config,
    state: &KernelState,
    policy: &Policy,
    network: &Network,
) -> Result<(), Failure> {
    let pool = steering::fixed_addresses(rules);
    let prefixes = steering::kernel_prefixes(&kernel::steering_prefixes(state, network, &pool));
    let written = steer
        .set_interfaces(&steering::interfaces(&devices.interfaces, state))
        .and_then(|()| steer.set_kernel_prefixes(&prefixes))
        .and_then(|()| steer.set_inside_prefixes(&steering::inside_prefixes(&devices.interfaces)))
        .and_then(|()| steer.set_externals(&steering::externals(policy)));
    written.map_err(|error| Failure::Other(error.into()))
}

/// Keeps the kernel from forwarding between the sides, from here on and after the end.
fn guard(steer: &Steer, devices: &Devices, names: &[String]) -> Result<(), Failure> {
    for interface in &devices.interfaces {
        steer.attach_guard(&interface.configured.name, interface.ifindex).map_err(anyhow::Error::from)?;
    }
    match Forwarding::read(names.iter().map(String::as_str)) {
        Ok(forwarding) => forwarding.log(),
        Err(error) => tracing::warn!(%error, "cannot tell whether the kernel forwards"),
    }
    Ok(())
}

fn attach(attached: &mut Attached, devices: &Devices) -> Result<Vec<(DeviceId, AttachMode)>, Failure> {
    let mut modes = Vec::new();
    for used in &devices.used {
        let (name, ifindex) = (used.device.name.clone(), used.device.ifindex);
        let mode = lock(&attached.steer).attach(&name, ifindex, AttachWish::Best).map_err(|error| Failure::Other(error.into()))?;
        if mode == AttachMode::Generic {
            tracing::warn!(device = %name, driver = %used.device.driver, "the driver has no XDP: generic mode, which is slow");
        }
        attached.devices.push((name, ifindex));
        modes.push((used.id, mode));
    }
    Ok(modes)
}

fn open_sockets(rules: &Config, devices: &Devices) -> Result<Opened, Failure> {
    let queues: Vec<_> = devices.queues().map(|(_, queue)| queue).collect();
    let sockets = queues.len() as u32;
    let fits = |ring: &u32| UmemOptions::frames_for(sockets, *ring) <= rules.limits.frames;
    let ring = RINGS.into_iter().find(fits).ok_or_else(|| {
        let least = UmemOptions::frames_for(sockets, RINGS[RINGS.len() - 1]).next_power_of_two();
        Failure::Config(format!("limits.frames is {}: {sockets} queues need at least {least}", rules.limits.frames))
    })?;
    let zero_copy = devices.used.iter().all(|used| portcullis_xsk::steer::claims_zero_copy(used.device.ifindex));
    let options = UmemOptions { frames: rules.limits.frames, frame_size: devices.frame_size, ring, huge_pages: true, zero_copy };
    let mut opened = open_all(options, &queues).map_err(|error| Failure::Other(error.into()))?;
    if rules.worker.busy_poll != BusyPoll::Never && zero_copy {
        for socket in &mut opened.sockets {
            socket.prefer_busy_polling(BUSY_POLLING);
        }
    }
    Ok(opened)
}

/// What each device was granted, told to the log and to whoever asks.
fn granted(devices: &Devices, modes: &[(DeviceId, AttachMode)], sockets: &[Socket], umem: &Umem) -> Vec<(DeviceId, Granted)> {
    let mut all = Vec::new();
    for (used, &(id, mode)) in devices.used.iter().zip(modes) {
        let copy = sockets.iter().find(|socket| socket.queue().device == used.device.name).map_or(Mode::Copy, Socket::mode);
        let huge_pages = umem.pages() == Pages::Huge;
        tracing::info!(
            "device {}: driver {}, XDP {}, {}, {} queues, MTU {}, packet memory on {} pages",
            used.device.name,
            used.device.driver,
            mode.label(),
            copy.label().replace('_', "-"),
            used.queues,
            used.device.mtu,
            umem.pages().label().replace('_', " "),
        );
        let mode = match mode {
            AttachMode::Native => api::XdpMode::Native,
            AttachMode::Generic => api::XdpMode::Generic,
        };
        let copy = match copy {
            Mode::ZeroCopy => api::CopyMode::ZeroCopy,
            Mode::Copy => api::CopyMode::Copy,
        };
        all.push((id, Granted { mode, copy, queues: used.queues, huge_pages, busy_poll: false }));
    }
    all
}

/// The NAT with its tables, on huge pages where there are any.
fn nat(rules: &Config) -> Result<Nat<'static>, Failure> {
    let limits = &rules.limits;
    let capacity = Capacity {
        mappings: limits.mappings,
        sessions: limits.sessions,
        externals: rules.slot_count(),
        fragments: limits.fragments,
    };
    let region = memory::region(capacity.bytes()).map_err(anyhow::Error::from)?;
    tracing::info!(
        "tables: {} MiB for {} mappings, {} sessions and {} external addresses",
        capacity.bytes() >> 20,
        limits.mappings,
        limits.sessions,
        capacity.externals
    );
    let nat = Nat::new(region.leak(), capacity, seeds()?, Owners::single(), WorkerId(0), Tick(0));
    nat.map_err(|error| Failure::Other(error.into()))
}

/// Keys from the kernel's random numbers.
fn seeds() -> Result<Seeds, Failure> {
    use std::io::Read as _;
    let mut bytes = [0; 32];
    let mut random = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    random.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    let word = |position: usize| bytes[position * 8..].first_chunk().map_or(0, |&chunk| u64::from_ne_bytes(chunk));
    Ok(Seeds([word(0), word(1), word(2), word(3)]))
}

/// The worker's core: the configured one, else the last that the process may run on, which interrupts use least.
fn core(rules: &Config) -> Result<Option<core_affinity::CoreId>, Failure> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    let Some(&wanted) = rules.worker.cores.first() else { return Ok(allowed.last().copied()) };
    let core = allowed.iter().find(|core| core.id == usize::from(wanted));
    core.copied().map(Some).ok_or_else(|| {
        let ids: Vec<_> = allowed.iter().map(|core| core.id.to_string()).collect();
        Failure::Config(format!("worker.cores: the gateway may not run on core {wanted}; it may on {}", ids.join(", ")))
    })
}

/// The ports that the host's own connections take.
fn local_ports() -> PortRange {
    match kernel::local_port_range() {
        Ok((first, last)) => PortRange { first, last },
        Err(error) => {
            let assumed = HostAddresses::default().local_ports;
            tracing::warn!(%error, "assuming {}-{} for the host's own ports", assumed.first, assumed.last);
            assumed
        }
    }
}

fn host_addresses(rules: &Config, devices: &Devices, state: &KernelState, local_ports: PortRange) -> HostAddresses {
    let pool = steering::fixed_addresses(rules);
    let host = kernel::host_addresses(state, &devices.configured(), &pool);
    HostAddresses {
        interfaces: host
            .interfaces
            .into_iter()
            .map(|(name, prefixes)| (name, prefixes.iter().map(ipnet::Ipv4Net::addr).collect()))
            .collect(),
        local: host.local.into_iter().collect(),
        added_by_gateway: BTreeSet::new(),
        local_ports,
    }
}

fn wanted(rules: &Config) -> Wanted {
    let outside = rules.interfaces.iter().filter(|interface| interface.side == Side::Outside);
    Wanted {
        outside: outside.map(|interface| interface.name.clone()).collect(),
        pool: steering::fixed_addresses(rules).into_iter().collect(),
    }
}

/// Tells the log which external addresses came and went.
fn report_externals(before: &Policy, after: &Policy) {
    for (old, new) in before.externals.iter().zip(&after.externals) {
        match (old.address, new.address) {
            (Some(old), None) => tracing::warn!("external address {old} is gone, and its mappings with it"),
            (None, Some(new)) => tracing::info!("external address {new} is there"),
            (Some(old), Some(new)) if old != new => tracing::warn!("external address {old} became {new}; its mappings end"),
            _ => {}
        }
    }
}

fn xdp_counters(steer: &Arc<std::sync::Mutex<Steer>>) -> XdpCounters {
    let steer = Arc::clone(steer);
    Box::new(move || match lock(&steer).counters() {
        Ok(counts) => counts
            .into_iter()
            .map(|(counter, packets)| XdpCount { label: counter.label().into(), meaning: counter.meaning().into(), packets })
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "cannot read the XDP program's counters");
            Vec::new()
        }
    })
}

fn serve(
    window: Arc<Window>,
    socket: control::socket::Socket,
    listener: Option<std::net::TcpListener>,
    stopped: &watch::Receiver<bool>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let until = |mut stopped: watch::Receiver<bool>| async move {
        // An error says that the sender is gone, which is as good.
        let _ = stopped.wait_for(|&stop| stop).await;
    };
    let mut servers = Vec::new();
    tracing::info!("control at {}", socket.path().display());
    let asked = control::serve(socket, Arc::clone(&window), until(stopped.clone()));
    servers.push(tokio::spawn(complain("control", async move { asked.await.map_err(anyhow::Error::from) })));
    if let Some(listener) = listener {
        if let Ok(address) = listener.local_addr() {
            tracing::info!("metrics at http://{address}/metrics");
        }
        let scraped = metrics::serve(listener, window, until(stopped.clone()));
        servers.push(tokio::spawn(complain("metrics", async move { scraped.await.map_err(anyhow::Error::from) })));
    }
    servers
}

async fn complain(what: &'static str, server: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = server.await {
        tracing::error!(%error, "the {what} server has ended");
    }
}
