//! The devices below the configured interfaces: which they are, whether they can carry the gateway, and what is switched off on them.
//!
//! Knows the configuration, the kernel's links and the drivers' answers. Called at start. Invariant: what was switched off is restored
//! when the devices are given back.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use portcullis_config::{Config, Interface, SystemInterface, Warning};
use portcullis_nat::policy::{DeviceId, ReceivedChecksums};
use portcullis_xsk::device::{self, Device, Offloads};
use portcullis_xsk::nic;
use portcullis_xsk::socket::Queue;
use portcullis_xsk::umem::FrameBytes;

use super::nics::{NicChange, Notes};
use super::spread::{NicTouch, Spreading};
use crate::cli::exit::Failure;
use crate::kernel::{self, ConfiguredInterface, KernelState};

/// Devices at most: the slots of the XDP program's socket map.
const MOST_DEVICES: usize = 32;

/// A device that the gateway uses.
pub(super) struct UsedDevice {
    pub(super) id: DeviceId,
    pub(super) device: Device,
    /// Queues that are bound: all that the device receives on.
    pub(super) queues: u32,
    offloads: Option<Offloads>,
    /// Its number of queues, where that was changed.
    _queues_set: Option<NicChange>,
}

/// A configured interface with its place in the kernel.
pub(super) struct PlacedInterface {
    pub(super) configured: ConfiguredInterface,
    /// The interface's own index.
    pub(super) ifindex: u32,
    /// The device's index.
    pub(super) device: u32,
    pub(super) vlan: Option<u16>,
}

/// What the configuration comes to on this box.
pub(super) struct Devices {
    pub(super) interfaces: Vec<PlacedInterface>,
    /// How the devices were told to spread frames. Put back before the queues are.
    pub(super) spread: Vec<NicChange>,
    pub(super) used: Vec<UsedDevice>,
    pub(super) frame_size: FrameBytes,
}

/// Compares the configuration with the box. Returns what is doubtful. **Errors:** [`Failure::Config`] with what does not fit.
pub(super) fn check(rules: &Config, state: &KernelState) -> Result<Vec<Warning>, Failure> {
    let mtu_most = FrameBytes::Page.largest_mtu() as u32;
    let interface = |(&index, link): (&u32, &kernel::Link)| SystemInterface {
        name: link.name.clone(),
        addresses: state.addresses_of(index).iter().map(|address| address.prefix).collect::<Vec<Ipv4Net>>(),
        mtu: link.mtu,
        mtu_most,
    };
    let system: Vec<_> = state.links.iter().map(interface).collect();
    rules.check_system(&system).map_err(|error| Failure::Config(error.to_string()))
}

/// The device below a configured interface. **Errors:** [`Failure::Config`] where it is none that can be attached to.
pub(super) fn place(state: &KernelState, interface: &Interface) -> Result<kernel::Attachment, Failure> {
    kernel::attachment(state, &interface.name).map_err(|error| Failure::Config(error.to_string()))
}

impl Devices {
    /// Finds the devices, gives them as many queues as are configured, and switches off what hides packets from XDP. **Errors:** a device that cannot carry the gateway, with what to
    /// do about it.
    pub(super) fn prepare(rules: &Config, state: &KernelState, touch: NicTouch) -> Result<Self, Failure> {
        let mut ids: BTreeMap<String, DeviceId> = BTreeMap::new();
        let mut interfaces = Vec::new();
        for interface in &rules.interfaces {
            let attachment = place(state, interface)?;
            let next = DeviceId(ids.len() as u8);
            let id = *ids.entry(attachment.device.clone()).or_insert(next);
            let ifindex = state.link(&interface.name).map_or(attachment.index, |(index, _)| index);
            let (name, side, prefixes) = (interface.name.clone(), interface.side, interface.prefixes.clone());
            let checksums = ReceivedChecksums::default();
            let configured = ConfiguredInterface { name, side, device: id, prefixes, checksums, mss: interface.mss };
            interfaces.push(PlacedInterface { configured, ifindex, device: attachment.index, vlan: attachment.vlan });
        }
        if ids.len() > MOST_DEVICES {
            return Err(Failure::Config(format!("{} devices: the gateway takes at most {MOST_DEVICES}", ids.len())));
        }
        let notes = Notes::beside(&rules.control.socket);
        let mut used = ids.into_iter().map(|(name, id)| open(&name, id, rules, touch, &notes)).collect::<Result<Vec<_>, _>>()?;
        used.sort_by_key(|device| device.id.0);
        for PlacedInterface { configured, .. } in &mut interfaces {
            if let Some(used) = used.iter().find(|used| used.id == configured.device) {
                configured.checksums = checksums_of(&used.device.driver);
            }
        }
        let frame_size = frame_size(&used)?;
        Ok(Self { interfaces, spread: Vec::new(), used, frame_size })
    }

    /// The configured interfaces, as the kernel's mirror wants them.
    pub(super) fn configured(&self) -> Vec<ConfiguredInterface> {
        self.interfaces.iter().map(|interface| interface.configured.clone()).collect()
    }

    /// The devices with their numbers of queues.
    pub(super) fn queue_counts(&self) -> Vec<(&str, u32)> {
        self.used.iter().map(|used| (used.device.name.as_str(), used.queues)).collect()
    }

    /// The devices, for the choice of how they spread frames; in their order.
    pub(super) fn spreading(&self) -> Vec<Spreading> {
        let sides = |id| self.interfaces.iter().filter(move |it| it.configured.device == id).map(|it| it.configured.side);
        let one =
            |used: &UsedDevice| Spreading { name: used.device.name.clone(), queues: used.queues, sides: sides(used.id).collect() };
        self.used.iter().map(one).collect()
    }

    /// All queues to bind, with their devices.
    pub(super) fn queues(&self) -> impl Iterator<Item = (DeviceId, Queue)> + '_ {
        self.used.iter().flat_map(|used| (0..used.queues).map(|queue| (used.id, Queue { device: used.device.name.clone(), queue })))
    }
}

impl Drop for UsedDevice {
    /// Switches on again what was switched off.
    fn drop(&mut self) {
        if let Some(Err(error)) = self.offloads.take().map(Offloads::restore) {
            tracing::warn!(device = %self.device.name, %error, "an offload stays off");
        }
    }
}

/// Drivers of cards that have their frames from a wire, or from another function of the card that has completed their checksums. Not among
/// them: what passes frames on within a machine (`veth`, `tun`, `virtio_net`, ...), and cards that are often emulated (`e1000e`, `igb`,
/// `vmxnet3`).
const FROM_A_WIRE: [&str; 10] = ["atlantic", "bnxt_en", "i40e", "ice", "igc", "ixgbe", "mlx4_en", "mlx5_core", "nfp", "sfc"];

/// What transport checksums the frames that a driver receives may have. A driver that is not known may have any.
fn checksums_of(driver: &str) -> ReceivedChecksums {
    if FROM_A_WIRE.contains(&driver) { ReceivedChecksums::Complete } else { ReceivedChecksums::MaybePartial }
}

fn open(name: &str, id: DeviceId, rules: &Config, touch: NicTouch, notes: &Notes) -> Result<UsedDevice, Failure> {
    notes.settle(name);
    let mut device = Device::by_name(name).map_err(anyhow::Error::from)?;
    let wanted = rules.interfaces.iter().filter(|interface| interface.name == name).find_map(|interface| interface.queues);
    let queues_set = match queues_to_set(&device, wanted, rules.worker.count) {
        None => None,
        Some(queues) if touch == NicTouch::SetUp => {
            let plan = nic::Plan { queues: Some(queues), ..nic::Plan::default() };
            let change = NicChange::make(name, "queues", &plan, notes)?;
            tracing::info!("device {name}: {queues} queues instead of {}, until the gateway ends", device.rx_queues());
            device = Device::by_name(name).map_err(anyhow::Error::from)?;
            Some(change)
        }
        Some(queues) => {
            return Err(Failure::Config(format!(
                "interface {name}: {queues} queues are configured, and it has {}: traffic on queues that are not configured would be \
                 lost; set them with `ethtool -L {name} combined {queues}`, or start without --no-nic-setup",
                device.rx_queues()
            )));
        }
    };
    let (queues, offloads) = (device.rx_queues(), switch_off(name));
    Ok(UsedDevice { id, device, queues, offloads, _queues_set: queues_set })
}

/// The number of queues that a device is to be given: the interface's, or one for each configured worker where it has fewer.
fn queues_to_set(device: &Device, interface: Option<u16>, workers: Option<u16>) -> Option<u32> {
    let now = device.rx_queues();
    let most = device.channels.map_or(now, |channels| channels.max_combined.max(channels.max_rx));
    let wanted = match (interface.map(u32::from), workers.map(u32::from)) {
        (Some(queues), _) => queues,
        // More workers than queues can be had is refused with the reason later.
        (None, Some(workers)) if workers > now && workers <= most => workers,
        (None, _) => now,
    };
    (wanted != now).then_some(wanted)
}

/// Offloads that merge frames or hide tags from XDP. A driver that refuses is told of, not fatal: it may never use them.
fn switch_off(name: &str) -> Option<Offloads> {
    match device::switch_off_hiding(name) {
        Ok(offloads) => {
            if !offloads.switched_off().is_empty() {
                tracing::info!(device = name, "switched off {} until the gateway ends", offloads.switched_off().join(", "));
            }
            Some(offloads)
        }
        Err(error) => {
            tracing::warn!(device = name, %error, "offloads that hide packets from XDP may be on");
            None
        }
    }
}

/// The smallest frame that packets of all devices fit in.
fn frame_size(used: &[UsedDevice]) -> Result<FrameBytes, Failure> {
    let largest = used.iter().max_by_key(|used| used.device.mtu);
    let Some(largest) = largest.map(|used| &used.device) else { return Ok(FrameBytes::default()) };
    FrameBytes::for_mtu(largest.mtu as usize).ok_or_else(|| {
        let most = FrameBytes::Page.largest_mtu();
        Failure::Config(format!(
            "interface {}: its MTU of {} does not fit a frame of packet memory: lower it with `ip link set dev {} mtu {most}`",
            largest.name, largest.mtu, largest.name
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cards_on_a_wire_are_taken_to_complete_checksums() {
        assert!(["ice", "mlx5_core"].into_iter().all(|driver| checksums_of(driver) == ReceivedChecksums::Complete));
        for driver in ["veth", "virtio_net", "tun", "bridge", "e1000e", "mlx5e_rep", "hv_netvsc", ""] {
            assert_eq!(checksums_of(driver), ReceivedChecksums::MaybePartial, "{driver}");
        }
    }
}
