//! Which devices the workers run themselves (`worker.busy_poll = "always"`), from when on, and until when.
//!
//! Knows devices, their queues' drives and two settings of the kernel; no packets. Made at start, looked at by the control plane's loop.
//! Invariants: a queue is driven only while its device is told to leave it to us, and only when all queues of the device can be; what was
//! set is put back at the end, and by the next process. Where anything lacks, the kernel runs the queues as ever. Why so:
//! docs/adr/0009. Tests: below; `tests/e2e/driving.rs`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use portcullis_config::{BusyPoll, Config};
use portcullis_nat::policy::DeviceId;
use portcullis_xsk::napi::{DEFERRAL, QueueDrive};
use portcullis_xsk::nic::{Nic, Plan};
use portcullis_xsk::socket::{Mode, Socket};
use portcullis_xsk::steer::Steer;

use super::devices::Devices;
use super::nics::{NicChange, Notes};
use super::parts;
use super::raised::{self, Raised};
use super::spread::NicTouch;
use crate::cli::exit::Failure;
use crate::kernel::KernelState;

/// How long it takes at first until another frame is carried, after one that did not arrive; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Frames of a queue that may be lost this way. Chosen: a firewall that lets none in costs so many packets, and no more.
const ATTEMPTS: u32 = 6;

/// All devices that the workers may come to run.
pub(super) struct Driving {
    devices: Vec<Driven>,
    notes: Notes,
    touch: NicTouch,
}

struct Driven {
    id: DeviceId,
    name: String,
    queues: Vec<DrivenQueue>,
    stage: Stage,
    /// How often its carrier was gone when it was looked at last: then its queues may have been made anew.
    downs: Option<u64>,
}

struct DrivenQueue {
    number: u32,
    drive: QueueDrive,
    attempts: Attempts,
    /// Raised when a frame arrives that was carried. None once it has: the worker is to poll by the same socket.
    arrival: Option<Raised>,
}

/// Who runs a device's queues.
enum Stage {
    /// The kernel, until all of them are known.
    Waiting,
    /// The workers. With what was set for that, unless it was set before.
    Ours { _settings: Option<NicChange> },
    /// The kernel, for good.
    Kernels,
}

/// When a frame is carried next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attempts {
    made: u32,
    next: Option<Instant>,
}

/// What to do about a queue that is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Have the next frame carried.
    Carry,
    Wait,
    GiveUp,
}

impl Attempts {
    /// `pending` is whether the frame asked for last has not come yet.
    fn next(&mut self, pending: bool, now: Instant) -> Next {
        if pending {
            return Next::Wait;
        }
        match self.next {
            None if self.made == ATTEMPTS => Next::GiveUp,
            // One was carried and did not arrive.
            None if self.made > 0 => {
                self.next = Some(now + FIRST_PAUSE * (1 << (self.made - 1)));
                Next::Wait
            }
            Some(next) if now < next => Next::Wait,
            _ => {
                *self = Self { made: self.made + 1, next: None };
                Next::Carry
            }
        }
    }
}

impl Driving {
    /// Gives the sockets their drivers, where the workers are to run the devices: with `busy_poll = "always"`, in copy mode. (In zero-copy
    /// mode a socket polls its queue itself.)
    pub(super) fn prepare(
        rules: &Config,
        devices: &Devices,
        sockets: &mut [Socket],
        touch: NicTouch,
        notes: Notes,
    ) -> Result<Self, Failure> {
        let mut driving = Self { devices: Vec::new(), notes, touch };
        if rules.worker.busy_poll != BusyPoll::Always || sockets.iter().any(|socket| socket.mode() != Mode::Copy) {
            return Ok(driving);
        }
        for used in &devices.used {
            let name = used.device.name.clone();
            if touch != NicTouch::SetUp && !is_left_to_us(&name) {
                tracing::info!("device {name}: the kernel runs its queues, as --no-nic-setup leaves napi_defer_hard_irqs alone");
                continue;
            }
            let mut queues = Vec::new();
            for socket in sockets.iter_mut().filter(|socket| socket.queue().device == name) {
                let opened = QueueDrive::open(parts::random()?);
                let (drive, driver) = opened.map_err(|error| Failure::Other(error.into()))?;
                socket.drive_by(driver);
                let arrival = Some(Raised::watch(drive.as_fd()).map_err(anyhow::Error::from)?);
                queues.push(DrivenQueue { number: socket.queue().queue, drive, attempts: Attempts::default(), arrival });
            }
            let downs = carrier_downs(&name);
            driving.devices.push(Driven { id: used.id, name, queues, stage: Stage::Waiting, downs });
        }
        Ok(driving)
    }

    /// Whether a device is driven.
    pub(super) fn is_driven(&self, id: DeviceId) -> bool {
        self.devices.iter().any(|device| device.id == id && matches!(device.stage, Stage::Ours { .. }))
    }

    /// Waits until a frame has arrived that was carried: then there is something to [`Driving::look`] at.
    pub(super) async fn wait(&self) {
        raised::until(|context| {
            let mut arrived = false;
            for arrival in self.devices.iter().flat_map(|device| &device.queues).filter_map(|queue| queue.arrival.as_ref()) {
                arrived |= arrival.was(context);
            }
            arrived
        })
        .await;
    }

    /// Goes on with devices that are not driven yet. To be called once a second, and after [`Driving::wait`]. Returns whether one is
    /// driven from now on. **Cost:** a system call for each queue that is waited for.
    pub(super) fn look(&mut self, steer: &Steer, devices: &Devices, state: &KernelState) -> bool {
        let mut changed = false;
        for device in self.devices.iter_mut().filter(|device| matches!(device.stage, Stage::Waiting)) {
            let address = address_of(devices, state, device.id);
            match device.go_on(steer, address) {
                Ok(false) => {}
                Ok(true) => {
                    changed |= device.take(self.touch, &self.notes);
                }
                Err(failure) => {
                    tracing::warn!(device = %device.name, "the kernel runs its queues: {failure}");
                    device.stage = Stage::Kernels;
                }
            }
        }
        changed
    }

    /// Starts again with devices that were down meanwhile: their queues may have been made anew, and nobody polls those. To be called
    /// once a second. Returns whether there was one.
    pub(super) fn check_links(&mut self) -> bool {
        let mut changed = false;
        for device in &mut self.devices {
            let downs = carrier_downs(&device.name);
            if downs == device.downs {
                continue;
            }
            device.downs = downs;
            if matches!(device.stage, Stage::Kernels) {
                continue;
            }
            device.stage = Stage::Waiting;
            changed = true;
            for queue in &mut device.queues {
                queue.attempts = Attempts::default();
                if let Err(error) = queue.renew() {
                    tracing::warn!(device = %device.name, queue = queue.number, %error, "the kernel runs its queues");
                    device.stage = Stage::Kernels;
                }
            }
            tracing::info!("device {} was down: the kernel runs its queues until they are known again", device.name);
        }
        changed
    }
}

impl DrivenQueue {
    /// Waits for the queue's context anew. **Errors:** no socket.
    fn renew(&mut self) -> io::Result<()> {
        self.arrival = None;
        self.drive.renew()?;
        self.arrival = Some(Raised::watch(self.drive.as_fd())?);
        Ok(())
    }
}

impl Driven {
    /// Looks which queues are known, and has frames carried for the others. Returns whether all are known.
    fn go_on(&mut self, steer: &Steer, address: Option<Ipv4Addr>) -> Result<bool, Failure> {
        let mut all = true;
        for queue in &mut self.queues {
            let slot = u32::from(self.id.0);
            // In this order: a frame that is being carried is then known, or still pending.
            let pending = steer.is_to_carry(slot, queue.number).map_err(anyhow::Error::from)?;
            let known = queue.drive.is_known().map_err(anyhow::Error::from)?;
            all &= known;
            if known {
                queue.arrival = None;
            }
            let Some(address) = address.filter(|_| !known) else { continue };
            match queue.attempts.next(pending, Instant::now()) {
                Next::Wait => {}
                Next::Carry => {
                    let carrier = queue.drive.carrier(address);
                    steer.carry_next(slot, queue.number, &carrier).map_err(anyhow::Error::from)?;
                }
                Next::GiveUp => {
                    return Err(Failure::Other(anyhow::anyhow!(
                        "{ATTEMPTS} datagrams to itself did not arrive at {address}: does the host's firewall drop UDP from this \
                         interface, or rp_filter the sources?"
                    )));
                }
            }
        }
        Ok(all)
    }

    /// Has the workers run all queues from now on. Returns whether they do.
    fn take(&mut self, touch: NicTouch, notes: &Notes) -> bool {
        let settings = (touch == NicTouch::SetUp).then(|| {
            let plan = Plan { deferral: Some(DEFERRAL), ..Plan::default() };
            NicChange::make(&self.name, "polling", &plan, notes)
        });
        let taken = settings.transpose().and_then(|settings| {
            let driven = self.queues.iter().try_for_each(|queue| queue.drive.drive());
            driven.map(|()| settings).map_err(|error| Failure::Other(anyhow::Error::new(error).context("no busy polling")))
        });
        match taken {
            Ok(settings) => {
                tracing::info!("device {}: its {} queues are run by the workers", self.name, self.queues.len());
                self.stage = Stage::Ours { _settings: settings };
                true
            }
            Err(failure) => {
                self.queues.iter().for_each(|queue| queue.drive.let_go());
                tracing::warn!(device = %self.name, "the kernel runs its queues: {failure}");
                self.stage = Stage::Kernels;
                false
            }
        }
    }
}

impl Drop for Driven {
    /// The workers let go before the settings are put back.
    fn drop(&mut self) {
        self.queues.iter().for_each(|queue| queue.drive.let_go());
    }
}

/// Whether somebody has set the device up for polling already.
fn is_left_to_us(device: &str) -> bool {
    let deferral = Nic::open(device).and_then(|nic| nic.deferral());
    matches!(deferral, Ok(Some(deferral)) if deferral.is_on())
}

/// An address by which the box is reached on a device: one of its interfaces', or any of the configured ones'.
fn address_of(devices: &Devices, state: &KernelState, id: DeviceId) -> Option<Ipv4Addr> {
    let first = |ifindex| state.addresses_of(ifindex).first().map(|address| address.prefix.addr());
    let here = devices.interfaces.iter().filter(|interface| interface.configured.device == id);
    here.chain(&devices.interfaces).find_map(|interface| first(interface.ifindex))
}

/// How often a device's carrier was gone since it was made. None where sysfs does not show it.
fn carrier_downs(device: &str) -> Option<u64> {
    std::fs::read_to_string(format!("/sys/class/net/{device}/carrier_down_count")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_does_not_arrive_is_followed_by_another_after_a_pause_that_doubles_until_it_is_given_up() {
        let (start, mut attempts) = (Instant::now(), Attempts::default());
        let mut now = start;
        assert_eq!(attempts.next(false, now), Next::Carry);
        for pause in [1_u64, 2, 4, 8, 16] {
            assert_eq!(attempts.next(true, now + Duration::from_secs(3600)), Next::Wait, "no frame has come");
            assert_eq!(attempts.next(false, now), Next::Wait, "it was lost");
            now += Duration::from_millis(pause * 1000 - 1);
            assert_eq!(attempts.next(false, now), Next::Wait);
            now += Duration::from_millis(1);
            assert_eq!(attempts.next(false, now), Next::Carry, "after {pause} s");
        }
        assert_eq!(attempts.next(false, now), Next::GiveUp);
    }
}
