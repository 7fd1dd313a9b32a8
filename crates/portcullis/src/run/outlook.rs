//! What the gateway would do on this box, without doing it: for `doctor`.
//!
//! Knows the same rooms as start-up and changes nothing. Invariant: what it says is what `run` would choose.

use std::collections::BTreeMap;

use portcullis_config::Config;
use portcullis_nat::policy::Side;
use portcullis_xsk::device::Device;

use super::spread::{NicTouch, Spread, Spreading, WayFound};
use super::workers::capacity;
use super::{cores, devices, division};
use crate::cli::exit::Failure;
use crate::kernel::{KernelState, Mirror};

/// See the room card.
pub(crate) struct Outlook {
    pub(crate) devices: Vec<DeviceOutlook>,
    pub(crate) workers: u32,
    /// Tables and packet memory. **Units:** bytes.
    pub(crate) memory: u64,
}

/// A device below the configured interfaces.
pub(crate) struct DeviceOutlook {
    pub(crate) name: String,
    /// Whether an interface on it has a VLAN tag.
    pub(crate) tagged: bool,
    pub(crate) way: WayFound,
}

/// Looks ahead. **Errors:** [`Failure::Config`] where an interface is not on this box.
pub(crate) fn outlook(rules: &Config) -> Result<Outlook, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let state = runtime.block_on(async { Mirror::start(Vec::new()).await.map(|mirror| mirror.state()) });
    let state = state.map_err(anyhow::Error::from)?;
    let found = below(rules, &state)?;
    let spreading = spreading(&found);
    let workers = workers_for(rules, &spreading);
    // The ways do not depend on the ports.
    let spread = Spread::choose(spreading, workers, &[], NicTouch::LookOnly)?;
    let devices = found.into_iter().enumerate();
    let devices = devices.map(|(place, (name, (_, tagged)))| DeviceOutlook { name, tagged, way: spread.way(place) });
    Ok(Outlook { devices: devices.collect(), workers: u32::from(workers), memory: memory_of(rules) })
}

/// How many workers there would be. **Errors:** as [`outlook`].
pub(super) fn workers(rules: &Config, state: &KernelState) -> Result<u16, Failure> {
    Ok(workers_for(rules, &spreading(&below(rules, state)?)))
}

/// The devices below the configured interfaces, by name: the sides of the interfaces, and whether one of them has a VLAN tag.
fn below(rules: &Config, state: &KernelState) -> Result<BTreeMap<String, (Vec<Side>, bool)>, Failure> {
    let mut found: BTreeMap<String, (Vec<Side>, bool)> = BTreeMap::new();
    for interface in &rules.interfaces {
        let attachment = devices::place(state, interface)?;
        let (sides, tagged) = found.entry(attachment.device).or_default();
        sides.push(interface.side);
        *tagged |= attachment.vlan.is_some();
    }
    Ok(found)
}

fn spreading(found: &BTreeMap<String, (Vec<Side>, bool)>) -> Vec<Spreading> {
    let one = |(name, (sides, _)): (&String, &(Vec<Side>, bool))| {
        let queues = Device::by_name(name).map_or(1, |device| device.rx_queues());
        Spreading { name: name.clone(), queues, sides: sides.clone() }
    };
    found.iter().map(one).collect()
}

fn workers_for(rules: &Config, devices: &[Spreading]) -> u16 {
    let queues: Vec<_> = devices.iter().map(|device| (device.name.as_str(), device.queues)).collect();
    // More workers than queues are what `doctor` finds; `run` refuses them.
    let workers = division::workers(&rules.worker, &queues, cores::allowed().len());
    workers.unwrap_or_else(|_| usize::from(rules.worker.count.unwrap_or(1))) as u16
}

fn memory_of(rules: &Config) -> u64 {
    capacity(rules, 1).bytes() as u64 + u64::from(rules.limits.frames) * 2048
}
