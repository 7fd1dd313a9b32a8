//! The parts that start-up makes, one by one: sockets, program, guard, tables, keys.
//!
//! Knows how each part is made and what it says of itself; the order is `gateway`'s. Invariant: a part that is dropped is taken back, but
//! for the guard.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use core_affinity::CoreId;
use portcullis_api as api;
use portcullis_config::{BusyPoll, Config, HostAddresses, PortRange};
use portcullis_nat::policy::DeviceId;
use portcullis_nat::time::Tick;
use portcullis_nat::{Capacity, Nat, Seeds};
use portcullis_steering::{Owners, WorkerId};
use portcullis_xsk::memory::{self, Pages, Region};
use portcullis_xsk::socket::{BusyPolling, Mode, Opened, Socket, open_all};
use portcullis_xsk::steer::{AttachMode, AttachWish, Steer};
use portcullis_xsk::umem::{SocketRings, Umem, UmemOptions};

use super::devices::Devices;
use super::punter::KernelPunter;
use crate::cli::exit::Failure;
use crate::control::window::Granted;
use crate::doors::counters::QueueFigures;
use crate::kernel::{self, Forwarding};
use crate::worker::{QueuePort, Worker};

/// How the sockets ask to be polled, where the driver has a NAPI for them.
const BUSY_POLLING: BusyPolling = BusyPolling { time_us: 20, budget: 64 };

pub(super) type SocketWorker = Worker<Socket, KernelPunter>;

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
            ..QueueFigures::default()
        }
    }

    fn is_driven(&self) -> bool {
        Self::is_driven(self)
    }

    fn dropped_by_device(&self) -> u64 {
        Self::dropped_by_device(self)
    }
}

/// The XDP program on its devices; detached when dropped, the guard not.
pub(super) struct Attached {
    pub(super) steer: Arc<Mutex<Steer>>,
    pub(super) devices: Vec<(String, u32)>,
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The packet memory. When it is dropped its frames may go with it: the process tears down.
pub(super) struct Memory {
    pub(super) umem: Umem,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.umem.retire();
    }
}

/// Loads the programs, knowing those that a process before left on the devices (a kernel does not tell their names to a process
/// without CAP_SYS_ADMIN).
pub(super) fn load(control_socket: &Path) -> Result<Steer, Failure> {
    let mut steer = Steer::load().map_err(anyhow::Error::from)?;
    let note = note_of(control_socket);
    if let Some(id) = noted_program(control_socket) {
        steer.recognise(&[id]);
    }
    if let Err(error) = std::fs::write(&note, steer.id().to_string()) {
        tracing::warn!(%error, "cannot note the program's number in {}", note.display());
    }
    Ok(steer)
}

/// The number of the program that the gateway before this one loaded.
pub(crate) fn noted_program(control_socket: &Path) -> Option<u32> {
    std::fs::read_to_string(note_of(control_socket)).ok()?.trim().parse().ok()
}

/// Where the number of the loaded program is noted for the next process: beside the control socket.
fn note_of(control_socket: &Path) -> PathBuf {
    control_socket.with_extension("program")
}

/// Keeps the kernel from forwarding between the sides, from here on and after the end.
pub(super) fn guard(steer: &Steer, devices: &Devices, names: &[String], rules: &Config) -> Result<(), Failure> {
    for interface in &devices.interfaces {
        steer.attach_guard(&interface.configured.name, interface.ifindex).map_err(anyhow::Error::from)?;
    }
    match Forwarding::read(names.iter().map(String::as_str)) {
        Ok(forwarding) => {
            forwarding.log();
            if !rules.nat.exempt.is_empty() && !forwarding.is_on() {
                tracing::warn!("nat.exempt needs the kernel to forward, which it does not: set net.ipv4.ip_forward to 1");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot tell whether the kernel forwards"),
    }
    Ok(())
}

pub(super) fn attach(attached: &mut Attached, devices: &Devices) -> Result<Vec<(DeviceId, AttachMode)>, Failure> {
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

/// Whether all devices claim to receive into packet memory themselves.
fn claim_zero_copy(devices: &Devices) -> bool {
    devices.used.iter().all(|used| portcullis_xsk::steer::claims_zero_copy(used.device.ifindex))
}

/// Whether the workers are to run the devices' queues, which is for those that are copied from.
pub(super) fn want_driving(rules: &Config, devices: &Devices) -> bool {
    rules.worker.busy_poll == BusyPoll::Always && !claim_zero_copy(devices)
}

/// The packet memory and a socket for each queue, and whether the sockets are polled by preference.
pub(super) fn open_sockets(rules: &Config, devices: &Devices, rings: SocketRings) -> Result<(Opened, bool), Failure> {
    let queues: Vec<_> = devices.queues().map(|(_, queue)| queue).collect();
    let zero_copy = claim_zero_copy(devices);
    let options = UmemOptions { frames: rules.limits.frames, frame_size: devices.frame_size, rings, huge_pages: true, zero_copy };
    let mut opened = open_all(options, &queues).map_err(|error| Failure::Other(error.into()))?;
    let wants_polling = rules.worker.busy_poll != BusyPoll::Never && zero_copy;
    let polls = wants_polling && opened.sockets.iter_mut().all(|socket| socket.prefer_busy_polling(BUSY_POLLING));
    // A worker that never sleeps has a core of its own, and would pay for waking another thread in each round.
    let in_threads = rules.worker.busy_poll != BusyPoll::Always && opened.sockets.len() <= cores() && cores() > 1;
    if in_threads {
        for socket in &mut opened.sockets {
            socket.transmit_in_thread().context("cannot start a thread that transmits")?;
        }
    }
    Ok((opened, polls))
}

/// What each device was granted, told to the log and to whoever asks.
pub(super) fn granted(
    devices: &Devices,
    modes: &[(DeviceId, AttachMode)],
    copy_modes: &[(String, Mode)],
    polls: bool,
    umem: &Umem,
) -> Vec<(DeviceId, Granted)> {
    let mut all = Vec::new();
    for (used, &(id, mode)) in devices.used.iter().zip(modes) {
        let copy = copy_modes.iter().find(|(device, _)| *device == used.device.name).map_or(Mode::Copy, |&(_, mode)| mode);
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
        all.push((id, Granted { mode, copy, queues: used.queues, huge_pages, busy_poll: polls }));
    }
    all
}

/// Memory for the tables of the workers on these cores, on huge pages where there are any. Every page is in place, near its worker: packets
/// wait for none.
pub(super) fn tables(bytes: usize, cores: &[Option<CoreId>]) -> Result<Vec<Region>, Failure> {
    let near = |core: Option<CoreId>| {
        core.map(core_affinity::set_for_current);
        memory::region(bytes)
    };
    std::thread::scope(|scope| {
        let thread = |&core| std::thread::Builder::new().name("tables".into()).spawn_scoped(scope, move || near(core));
        let workers = cores.iter().map(thread).collect::<Result<Vec<_>, _>>().context("cannot start a thread")?;
        let regions = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let regions =
            regions.collect::<Result<_, _>>().context("no memory for the tables: lower limits.mappings and limits.sessions");
        regions.map_err(Failure::Other)
    })
}

/// A worker's NAT with its tables.
pub(super) fn nat(region: Region, capacity: Capacity, seeds: Seeds, owners: Owners, me: WorkerId) -> Result<Nat<'static>, Failure> {
    Nat::new(region.leak(), capacity, seeds, owners, me, Tick(0)).map_err(|error| Failure::Other(error.into()))
}

/// Keys from the kernel's random numbers.
pub(super) fn seeds() -> Result<Seeds, Failure> {
    let bytes: [u8; 32] = random()?;
    let word = |position: usize| bytes[position * 8..].first_chunk().map_or(0, |&chunk| u64::from_ne_bytes(chunk));
    Ok(Seeds([word(0), word(1), word(2), word(3)]))
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], Failure> {
    use std::io::Read as _;
    let mut bytes = [0; N];
    let mut random = std::fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    random.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    Ok(bytes)
}

/// Cores that the process may run on.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The ports that the host's own connections take.
pub(crate) fn local_ports() -> PortRange {
    match kernel::local_port_range() {
        Ok((first, last)) => PortRange { first, last },
        Err(error) => {
            let assumed = HostAddresses::default().local_ports;
            tracing::warn!(%error, "assuming {}-{} for the host's own ports", assumed.first, assumed.last);
            assumed
        }
    }
}
