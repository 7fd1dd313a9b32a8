//! All that can be read of one device that matters to the gateway, in one value, for `doctor` and for the log.
//!
//! Knows no verdicts: whether a reading is fine is the reader's business. Called by the control plane. Invariant: nothing is written; what
//! cannot be read is missing and named in [`Readings::failures`], and does not keep the rest from being read.

use super::{
    Channels, Coalescing, Driver, Feature, Fields, Flow, Kernel, Nic, NicError, Placement, Polling, RingSizes, Rss, RuleRoom,
    sysfs::Tree,
};
use crate::{
    device::{Device, DeviceError},
    steer,
};

/// The features that are read, by the kernel's names: those that hide frames, and those that decide about checksums, hashes and rules.
const FEATURES: [&str; 10] = [
    "rx-lro",
    "rx-gro-hw",
    "rx-gro",
    "rx-vlan-hw-parse",
    "rx-vlan-stag-hw-parse",
    "rx-checksum",
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    super::NTUPLE,
    super::RX_HASH,
];

/// What the kernel and the driver say about a device.
#[derive(Debug, Default)]
pub struct Readings {
    /// Its name.
    pub device: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MTU. **Units:** bytes from the network header on.
    pub mtu: u32,
    /// The largest MTU with which the driver takes an XDP program without multi-buffer support, where that is known.
    pub largest_xdp_mtu: Option<u32>,
    /// Whether it is up by configuration.
    pub up: bool,
    /// Who drives it.
    pub driver: Option<Driver>,
    /// What the driver says about XDP.
    pub xdp: Option<Xdp>,
    /// Its queues.
    pub channels: Option<Channels>,
    /// The receive rings that hash values are spread over.
    pub rx_rings: Option<u32>,
    /// The sizes of its descriptor rings.
    pub rings: Option<RingSizes>,
    /// When it interrupts.
    pub coalescing: Option<Coalescing>,
    /// Its hash.
    pub rss: Option<Rss>,
    /// The fields that are hashed, for the kinds of packets that the driver tells apart.
    pub fields: Vec<(Flow, Fields)>,
    /// Its flow rules.
    pub rules: Option<RuleRoom>,
    /// The features that matter, as far as the kernel knows them.
    pub features: Vec<Feature>,
    /// Where it is in the machine, and where its interrupts go.
    pub placement: Placement,
    /// When the kernel polls it.
    pub polling: Polling,
    /// What could not be read, though it should be there.
    pub failures: Vec<NicError>,
}

/// What a driver says about XDP (`NETDEV_XDP_ACT_*`, linux/netdev.h), and what is attached. Nothing at all is said by drivers without
/// XDP, and by kernels before 6.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "five independent bits of the kernel's")]
pub struct Xdp {
    /// Native mode: programs run in the driver.
    pub native: bool,
    /// Frames can be redirected to other devices and to sockets.
    pub redirect: bool,
    /// AF_XDP sockets can bind without copies. **Blind spot:** a claim; binding shows whether it is so.
    pub zero_copy: bool,
    /// Frames larger than a buffer are received in several (multi-buffer).
    pub multi_buffer_receive: bool,
    /// Frames larger than a buffer are sent in several.
    pub multi_buffer_transmit: bool,
    /// Buffers of a frame at most with zero-copy; 0 or 1 where there is no multi-buffer.
    pub zero_copy_segments: u32,
    /// The number of the program in native mode; 0 for none.
    pub native_program: u32,
    /// The number of the program in generic mode; 0 for none.
    pub generic_program: u32,
}

impl Xdp {
    fn of(ifindex: u32) -> Option<Self> {
        let answer = steer::query(ifindex).ok()?;
        let has = |bit: u64| answer.feature_flags & bit != 0;
        Some(Self {
            native: has(1),
            redirect: has(1 << 1),
            zero_copy: has(1 << 3),
            multi_buffer_receive: has(1 << 5),
            multi_buffer_transmit: has(1 << 6),
            zero_copy_segments: answer.xdp_zc_max_segs,
            native_program: answer.drv_prog_id,
            generic_program: answer.skb_prog_id,
        })
    }
}

impl Readings {
    /// Reads a device of this thread's namespace. **Errors:** [`DeviceError`] when there is no such device.
    pub fn of(device: &str) -> Result<Self, DeviceError> {
        let described = Device::by_name(device)?;
        let missing = |_| DeviceError::Missing { device: device.to_string() };
        let nic = Nic::open(device).map_err(missing)?;
        Ok(Self::gather(&described, &nic))
    }

    fn gather(described: &Device, nic: &Nic<Kernel>) -> Self {
        let (name, ifindex, tree) = (&described.name, described.ifindex, Tree::default());
        let mut failures = Vec::new();
        let fields = Flow::ALL.into_iter().filter_map(|flow| Some((flow, read(nic.fields(flow), &mut failures)?))).collect();
        let features = nic.features().map(Some);
        let features = read(features, &mut failures).unwrap_or_default();
        Self {
            device: name.clone(),
            ifindex,
            mtu: described.mtu,
            largest_xdp_mtu: described.largest_xdp_mtu(),
            up: described.up,
            driver: read(nic.driver(), &mut failures),
            xdp: Xdp::of(ifindex),
            channels: read(nic.channels(), &mut failures),
            rx_rings: read(nic.rx_rings(), &mut failures),
            rings: read(nic.rings(), &mut failures),
            coalescing: read(nic.coalescing(), &mut failures),
            rss: read(nic.rss(), &mut failures),
            fields,
            rules: read(nic.rule_room(), &mut failures),
            features: features.into_iter().filter(|feature| FEATURES.contains(&feature.name.as_str())).collect(),
            placement: tree.placement(name, ifindex),
            polling: tree.polling(name, ifindex),
            failures,
        }
    }

    /// A feature that was read, by the kernel's name.
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }

    /// Whether frames may come with a checksum that only covers the pseudo header: their sender is on this machine, or its host.
    pub fn may_receive_partial_checksums(&self) -> bool {
        let driver = self.driver.as_ref().map_or("", |driver| &driver.name);
        match driver {
            "virtio_net" => self.feature("rx-checksum").is_none_or(|feature| feature.active),
            "veth" | "tun" => true,
            _ => false,
        }
    }
}

fn read<T>(answer: Result<Option<T>, NicError>, failures: &mut Vec<NicError>) -> Option<T> {
    answer.unwrap_or_else(|error| {
        failures.push(error);
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driven_by(name: &str, receives_partial: Option<bool>) -> Readings {
        let feature = |active| Feature { name: "rx-checksum".into(), active, changeable: false };
        let driver = Some(Driver { name: name.into(), ..Driver::default() });
        Readings { driver, features: receives_partial.map(feature).into_iter().collect(), ..Readings::default() }
    }

    #[test]
    fn partial_checksums_come_from_senders_on_the_same_machine() {
        assert!(driven_by("veth", None).may_receive_partial_checksums());
        assert!(driven_by("virtio_net", Some(true)).may_receive_partial_checksums());
        assert!(!driven_by("virtio_net", Some(false)).may_receive_partial_checksums());
        assert!(!driven_by("igb", Some(true)).may_receive_partial_checksums());
    }

    #[test]
    fn a_failure_is_kept_and_a_missing_setting_is_none() {
        let mut failures = Vec::new();
        assert_eq!(read(Ok(Some(1)), &mut failures), Some(1));
        assert_eq!(read::<u32>(Ok(None), &mut failures), None);
        assert!(failures.is_empty());
        assert_eq!(read::<u32>(Err(NicError::Missing { device: "eth0".into() }), &mut failures), None);
        assert_eq!(failures.len(), 1);
    }
}
