//! The running gateway: everything that start-up made, and the way back.
//!
//! Knows all rooms, each by its front door. Called by `run`. Invariant: parts that were brought up are taken down in reverse, also when
//! a later one fails; the guard alone stays.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use portcullis_config::{Config, HostAddresses, PortRange, Warning};
use portcullis_nat::policy::{DeviceId, Network, Policy, Side};
use portcullis_steering::Owners;
use portcullis_xsk::socket::Opened;
use portcullis_xsk::steer::Steer;
use tokio::sync::watch;

use super::devices::{self, Devices};
use super::driving::Driving;
use super::nics::{NicChange, Notes};
use super::parts::{self, Attached, Memory, lock};
use super::placement::Watches;
use super::spread::{NicTouch, Spread};
use super::workers::{Made, Material, Queues, Workers, close};
use super::{cores, division, hops, ports, steering};
use crate::cli::exit::Failure;
use crate::control::window::{Granted, Origin, Window, XdpCount, XdpCounters};
use crate::doors;
use crate::doors::events::Event;
use crate::doors::policy::Publisher;
use crate::kernel::{self, Claims, KernelState, Mirror, Requests, Resolver, Wanted};
use crate::{control, metrics};

/// How long the servers have for their last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// See the room card.
pub(super) struct Gateway {
    rules: Config,
    mirror: Mirror,
    resolver: Resolver,
    claims: Claims,
    devices: Devices,
    steer: Arc<Mutex<Steer>>,
    attached: Attached,
    workers: Workers,
    owners: Owners,
    publisher: Publisher,
    watches: Watches,
    driving: Driving,
    granted: Vec<(DeviceId, Granted)>,
    policy: Arc<Policy>,
    local_ports: PortRange,
    window: Arc<Window>,
    stop_servers: watch::Sender<bool>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Gateway {
    /// Brings the gateway up. **Errors:** [`Failure`] with what to do; what had been brought up is taken down, but for the guard.
    pub(super) async fn bring_up(rules: &Config, path: &Path, touch: NicTouch) -> Result<Self, Failure> {
        let control_socket = control::socket::bind(&rules.control.socket).map_err(anyhow::Error::from)?;
        let metrics_socket = rules.metrics.listen.map(metrics::bind).transpose().map_err(anyhow::Error::from)?;
        let names: Vec<_> = rules.interfaces.iter().map(|interface| interface.name.clone()).collect();
        let mirror = Mirror::start(names.clone()).await.map_err(anyhow::Error::from)?;
        let state = mirror.state();
        warn(&devices::check(rules, &state)?);
        let mut devices = Devices::prepare(rules, &state, touch)?;
        rules.summary().iter().for_each(|line| tracing::info!("{line}"));
        let count = division::workers(&rules.worker, &devices.queue_counts(), cores::allowed().len())?;
        let queues = Queues::divide(&devices, count);
        let rings =
            division::rings(rules.limits.frames, parts::want_driving(rules, &devices), devices.queues().count() as u32, count)?;
        let local_ports = parts::local_ports();
        let policy = Arc::new(rules.policy(&host_addresses(rules, &devices, &state, local_ports)));
        let spread = Spread::choose(devices.spreading(), count as u16, &ports::of(&policy), touch)?;
        ports::warn(&policy, &spread.choice.owners);

        // The sockets first: they are refused while another gateway has the queues, before anything of it is replaced.
        let (Opened { umem, mut sockets, frames }, polls) = parts::open_sockets(rules, &devices, rings)?;
        let memory = Memory { umem };
        let notes = Notes::beside(&rules.control.socket);
        devices.spread = spread.set_up(&notes)?;
        let driving = Driving::prepare(rules, &devices, &mut sockets, touch, notes)?;
        let network = Arc::new(kernel::network(&state, &devices.configured()));
        let mut steer = parts::load(&rules.control.socket)?;
        write_tables(&mut steer, &devices, rules, &state, &policy, &network)?;
        parts::guard(&steer, &devices, &names, rules)?;
        for ((device, queue), socket) in devices.queues().zip(&sockets) {
            steer.set_socket(u32::from(device.0), queue.queue, socket.fd()).map_err(anyhow::Error::from)?;
        }
        let copy_modes: Vec<_> = sockets.iter().map(|socket| (socket.queue().device.clone(), socket.mode())).collect();

        let doors = doors::open(queues.shapes(rules.slot_count()), Arc::clone(&policy), network);
        let doors = doors.context("cannot open the descriptors by which workers tell their news")?;
        let (doors, control): (Vec<_>, Vec<_>) = doors.into_iter().unzip();
        // The workers fill the rings before the program is attached.
        let owners = spread.choice.owners.clone();
        let material = Material { rules, devices: &devices, steer: &steer, queues: &queues, owners, sockets, frames, rings, doors };
        let made = Made::of(memory, material)?;

        let steer = Arc::new(Mutex::new(steer));
        let mut attached = Attached { steer: Arc::clone(&steer), devices: Vec::new() };
        let modes = parts::attach(&mut attached, &devices)?;
        devices.spread.iter().for_each(NicChange::reapply);
        let granted = parts::granted(&devices, &modes, &copy_modes, polls, &made.memory.umem);
        let publisher = control[0].policy.clone();
        let workers = made.start(control)?;

        let origin = Origin { path: path.display().to_string(), udp_tracking: rules.nat.udp_tracking };
        let window = Window::new(origin, workers.doors(), publisher.clone(), xdp_counters(&steer));
        window.set_granted(granted.clone());
        let watches = Watches::over(&spread);
        window.set_steering(watches.shown(&devices));
        let (stop_servers, stopped) = watch::channel(false);
        let window = Arc::new(window);

        let requests = Requests::open().map_err(anyhow::Error::from)?;
        let claims = Claims::start(mirror.subscribe(), requests.clone(), wanted(rules));
        let resolver = Resolver::start(mirror.subscribe(), requests, names);
        publisher.publish_network(Arc::new(hops::find(&resolver, mirror.subscribe(), &devices).await));
        // Whoever gets an answer from here on may take it that packets are forwarded.
        let servers = serve(Arc::clone(&window), control_socket, metrics_socket, &stopped);
        tracing::info!("the gateway forwards");
        Ok(Self {
            rules: rules.clone(),
            mirror,
            resolver,
            claims,
            devices,
            steer,
            attached,
            workers,
            owners: spread.choice.owners,
            publisher,
            watches,
            driving,
            granted,
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

    /// Waits for news of the workers.
    pub(super) async fn wait_for_news(&self) {
        self.workers.wait_for_news().await;
    }

    /// Has the kernel resolve and refresh the next hops that the workers have told.
    pub(super) fn take_news(&mut self) {
        while let Some(event) = self.workers.next_event() {
            match event {
                Event::ResolveNeighbour { interface, address } => self.resolver.resolve(interface, address),
                Event::NeighbourUsed { interface, address } => self.resolver.used(interface, address),
            }
        }
    }

    /// Whether a worker's thread is gone: it panicked.
    pub(super) fn worker_has_ended(&self) -> bool {
        self.workers.one_has_ended()
    }

    /// Looks whether devices put frames where their owners look, and says so when that changes. To be called once a second.
    pub(super) fn watch_placement(&mut self) {
        if self.watches.look(&self.devices, &self.window.placed()) {
            self.window.set_steering(self.watches.shown(&self.devices));
        }
    }

    /// Waits until a queue that the workers are to run has become known.
    pub(super) async fn wait_to_drive(&self) {
        self.driving.wait().await;
    }

    /// Goes on with the devices that the workers are to run. To be called once a second beside.
    pub(super) fn go_on_driving(&mut self) {
        if self.driving.look(&lock(&self.steer), &self.devices, &self.mirror.state()) {
            self.tell_driven();
        }
    }

    /// Looks whether the devices that the workers run have been down. To be called once a second.
    pub(super) fn watch_driven(&mut self) {
        if self.driving.check_links() {
            self.tell_driven();
        }
    }

    fn tell_driven(&self) {
        let mut granted = self.granted.clone();
        for (id, granted) in &mut granted {
            granted.busy_poll |= self.driving.is_driven(*id);
        }
        self.window.set_granted(granted);
    }

    /// Brings the workers and the XDP program in step with the kernel. **Errors:** a device is gone, or came back as another one.
    pub(super) fn follow(&mut self, state: &Arc<KernelState>) -> Result<(), Failure> {
        self.check_devices(state)?;
        let network = Arc::new(kernel::network(state, &self.devices.configured()));
        let policy = self.rules.policy(&host_addresses(&self.rules, &self.devices, state, self.local_ports));
        let changed = policy != *self.policy;
        if changed {
            report_externals(&self.policy, &policy);
            if policy.externals != self.policy.externals {
                ports::warn(&policy, &self.owners);
            }
            self.policy = Arc::new(policy);
        }
        // The program first: what it redirects too early the workers refuse; what it leaves to the kernel too long the guard stops.
        write_tables(&mut lock(&self.steer), &self.devices, &self.rules, state, &self.policy, &network)?;
        if changed {
            self.publisher.publish_policy(Arc::clone(&self.policy));
        }
        self.publisher.publish_network(network);
        Ok(())
    }

    /// Goes by other rules from now on. Sessions stay, but for those of external addresses that are gone; those of a forward that is
    /// gone end in their time. **Errors:** the rules do not fit the box, or need a restart; nothing has changed then.
    pub(super) fn reload(&mut self, rules: Config) -> Result<(), Failure> {
        if let Some(part) = needs_restart(&self.rules, &rules) {
            return Err(Failure::Config(format!("{part} cannot be changed while the gateway runs: restart it")));
        }
        let state = self.mirror.state();
        warn(&devices::check(&rules, &state)?);
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

    /// Takes the gateway down: the workers end, the XDP program is detached, claimed addresses are removed. The guard stays.
    pub(super) async fn take_down(self) {
        let mut workers = self.workers;
        let ended = tokio::task::spawn_blocking(move || workers.end()).await;
        drop(self.attached);
        drop(self.driving);
        let (workers, all) = ended.unwrap_or_default();
        close(workers);
        if !all {
            tracing::error!("a worker did not end in order");
        }
        let _ = self.stop_servers.send(true);
        for server in self.servers {
            // What has not answered by then is cut off.
            let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
        }
        self.claims.release().await;
        drop(self.devices);
        tracing::info!("stopped: nothing is translated, and the guard keeps untranslated packets from crossing");
    }
}

fn warn(warnings: &[Warning]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}

/// The part of the rules that differs and is only read at start.
fn needs_restart(before: &Config, after: &Config) -> Option<&'static str> {
    let parts = [
        ("[[interface]]", before.interfaces != after.interfaces),
        ("[limits]", before.limits != after.limits),
        // What is allocated depends on it.
        ("nat.udp_tracking", before.nat.udp_tracking != after.nat.udp_tracking),
        ("[worker]", before.worker != after.worker),
        ("[metrics]", before.metrics != after.metrics),
        ("[log]", before.log != after.log),
        ("[control]", before.control.socket != after.control.socket),
        ("the number of external addresses, beyond what it was at start,", after.slot_count() > before.slot_count()),
    ];
    parts.into_iter().find_map(|(part, differs)| differs.then_some(part))
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
        .and_then(|()| steer.set_exempt_prefixes(&rules.nat.exempt))
        .and_then(|()| steer.set_other_protocols(policy.other_protocols.words()))
        .and_then(|()| steer.set_externals(&steering::externals(policy)));
    written.map_err(|error| Failure::Other(error.into()))
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

fn xdp_counters(steer: &Arc<Mutex<Steer>>) -> XdpCounters {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tables_are_allocated_by_needs_a_restart_and_rules_do_not() {
        let with = |more: &str| {
            let interface = |name, side| format!("[[interface]]\nname = \"{name}\"\nside = \"{side}\"\n");
            let interfaces = interface("eth1", "inside") + &interface("eth0", "outside");
            let pool = "[[pool]]\nname = \"a\"\naddresses = [\"203.0.113.10\"]\n";
            Config::parse(&format!("{interfaces}{pool}{more}"), "test.toml").expect("legal").0
        };
        let rows = [
            ("[nat]\nfiltering = \"endpoint-independent\"", None),
            ("[nat]\nfiltering = \"endpoint-independent\"\nudp_tracking = \"mappings\"", Some("nat.udp_tracking")),
            ("[limits]\nmappings = 1000", Some("[limits]")),
        ];
        for (more, part) in rows {
            assert_eq!(needs_restart(&with(""), &with(more)), part, "{more}");
            assert_eq!(needs_restart(&with(more), &with("")), part, "{more}");
        }
    }
}
