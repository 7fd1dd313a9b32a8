//! A network device as the kernel describes it: index, MTU, driver, queues, rings, and the offloads that hide packets from XDP.
//!
//! Knows ioctls (netdevice(7), SIOCETHTOOL). Called by the control plane, in the device's namespace. Invariant: what is switched off is
//! put back by [`Offloads::restore`]. Sources: linux/ethtool.h, kernel Documentation/networking/netdev-features.rst.

mod ethtool;
pub(crate) mod request;

use std::io;

pub(crate) use ethtool::Handle;
pub use ethtool::{Channels, Feature, RingSizes};

use crate::sys;

/// Offloads under which XDP does not see what was on the wire: merged packets, and VLAN tags taken out of the frame.
const HIDING: [&str; 4] = ["rx-lro", "rx-gro-hw", "rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// Why a device cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No such device in this namespace.
    #[error("{device}: no such device: compare `ip link`")]
    Missing {
        /// The name (or the index as text).
        device: String,
    },
    /// A query failed.
    #[error("{device}: cannot read its {what}: {source}")]
    Read {
        /// The device's name.
        device: String,
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An offload cannot be switched.
    #[error("{device}: cannot switch {feature} {}: {source}; try `ethtool -K {device} {feature} {}`", on_off(*on), on_off(*on))]
    Feature {
        /// The device's name.
        device: String,
        /// The offload, as `ethtool -k` names it.
        feature: String,
        /// What it was to become.
        on: bool,
        /// What the kernel said.
        source: io::Error,
    },
}

const fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// What the kernel says about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its MTU. **Units:** bytes from the network header on.
    pub mtu: u32,
    /// Whether it is up by configuration (not whether it has a carrier).
    pub up: bool,
    /// Its driver's name; empty where the driver does not say.
    pub driver: String,
    /// Its queues; none where the driver has no say in them.
    pub channels: Option<Channels>,
    /// Its descriptor rings; none where the driver has none.
    pub rings: Option<RingSizes>,
}

impl Device {
    /// Reads a device by its name. **Errors:** [`DeviceError::Missing`], [`DeviceError::Read`].
    pub fn by_name(name: &str) -> Result<Self, DeviceError> {
        let missing = || DeviceError::Missing { device: name.to_string() };
        let read = |what| move |source| DeviceError::Read { device: name.to_string(), what, source };
        let handle = Handle::open(name).map_err(read("settings"))?;
        let ifindex = handle.ifindex().map_err(|_| missing())?;
        Ok(Self {
            name: name.to_string(),
            ifindex,
            mac: handle.mac().map_err(read("link-layer address"))?,
            mtu: handle.mtu().map_err(read("MTU"))?,
            up: handle.is_up().map_err(read("flags"))?,
            driver: handle.driver().unwrap_or_default(),
            channels: handle.channels().ok(),
            rings: handle.rings().ok(),
        })
    }

    /// Reads a device by its index.
    pub fn by_index(ifindex: u32) -> Result<Self, DeviceError> {
        let missing = || DeviceError::Missing { device: format!("interface {ifindex}") };
        sys::device_name(ifindex).ok_or_else(missing).and_then(|name| Self::by_name(&name))
    }

    /// How many receive queues the device has now: each needs a socket, or its packets are lost.
    pub fn rx_queues(&self) -> u32 {
        self.channels.map_or(1, |channels| channels.receiving().max(1))
    }

    /// The largest MTU with which the driver takes an XDP program without multi-buffer support, where that is known. On veth it is the
    /// other end's MTU that counts.
    ///
    /// **Source:** drivers/net/veth.c (`veth_xdp_set`): a page less `XDP_PACKET_HEADROOM`, `NET_IP_ALIGN` (0 on `x86_64`, else 2),
    /// `skb_shared_info` (320) and the link header. Others differ, most near 3000, and say so when they refuse.
    pub fn largest_xdp_mtu(&self) -> Option<u32> {
        let align = if cfg!(target_arch = "x86_64") { 0 } else { 2 };
        (self.driver == "veth").then_some(4096 - 256 - align - 320 - 14)
    }
}

/// The offloads that were switched off on a device.
#[derive(Debug)]
#[must_use = "the offloads can only be put back with this"]
pub struct Offloads {
    device: String,
    off: Vec<String>,
}

impl Offloads {
    /// Which were switched off, as `ethtool -k` names them.
    pub fn switched_off(&self) -> &[String] {
        &self.off
    }

    /// Switches them on again. Tries all; the first failure is returned.
    pub fn restore(self) -> Result<(), DeviceError> {
        let handle = open(&self.device)?;
        let results: Vec<_> = self.off.iter().map(|name| switch(&handle, &self.device, name, true)).collect();
        results.into_iter().collect()
    }
}

/// Switches off what hides packets from XDP: LRO, hardware GRO and the stripping of VLAN tags, as far as they are on.
///
/// **Errors:** [`DeviceError::Feature`] for one that stays on although it may be changed; those before it are switched on again. One
/// that the driver fixes to on is left and logged.
pub fn switch_off_hiding(device: &str) -> Result<Offloads, DeviceError> {
    let handle = open(device)?;
    let states = handle.features().map_err(|source| DeviceError::Read { device: device.to_string(), what: "offloads", source })?;
    let mut done = Offloads { device: device.to_string(), off: Vec::new() };
    for state in states.iter().filter(|state| HIDING.contains(&state.name.as_str()) && state.active) {
        if !state.changeable {
            tracing::warn!(device, feature = %state.name, "the driver does not let this offload be switched off");
            continue;
        }
        if let Err(error) = switch(&handle, device, &state.name, false) {
            let _ = done.restore();
            return Err(error);
        }
        done.off.push(state.name.clone());
    }
    Ok(done)
}

/// Whether an offload is on, by the name that `ethtool -k` gives it in the kernel (`rx-vlan-hw-parse`, `tx-checksum-ip-generic`).
pub fn offload(device: &str, feature: &str) -> Result<Option<bool>, DeviceError> {
    let states = open(device)?.features();
    let states = states.map_err(|source| DeviceError::Read { device: device.to_string(), what: "offloads", source })?;
    Ok(states.iter().find(|state| state.name == feature).map(|state| state.active))
}

fn open(device: &str) -> Result<Handle, DeviceError> {
    let handle =
        Handle::open(device).map_err(|source| DeviceError::Read { device: device.to_string(), what: "settings", source })?;
    handle.ifindex().map_err(|_| DeviceError::Missing { device: device.to_string() })?;
    Ok(handle)
}

fn switch(handle: &Handle, device: &str, feature: &str, on: bool) -> Result<(), DeviceError> {
    let failed = |source| DeviceError::Feature { device: device.to_string(), feature: feature.to_string(), on, source };
    handle.set_feature(feature, on).map_err(failed)
}
