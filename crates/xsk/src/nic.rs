//! A NIC's settings that decide which queue a frame is received on: read, changed, and put back.
//!
//! Knows what the kernel and the driver say about one device, and no NAT. Called by the control plane, in the device's namespace; the
//! choice among the ways of steering is made elsewhere and comes as a [`Plan`]. Invariants: what [`NicSetup`] changed it puts back; what
//! a driver has not is a value (`None`), not an error. Sources: linux/ethtool.h, kernel net/ethtool/ioctl.c. Tests: `nic/setup/tests.rs`
//! over drivers in memory, tests/nic.rs over veth. Blind spot: no real NIC; a driver may say yes and do something else.

mod error;
#[cfg(test)]
mod fake;
mod fields;
mod kernel;
mod note;
mod plan;
mod probe;
mod readings;
mod rss;
mod rule;
mod setting;
mod setup;
mod sysfs;

use std::io;

pub use crate::device::{Channels, Feature, RingSizes};
pub use error::{Impossible, NicError, NoteProblem};
pub use fields::{Fields, Flow};
pub use kernel::Kernel;
pub use plan::Plan;
pub use probe::{Capabilities, FieldCapability, RuleCapability, Settable};
pub use readings::{Readings, Xdp};
pub use rss::{HashFunction, Rss, RssChange, Table, Transform};
pub use rule::{Match, Protocol, Rule, RuleRoom};
pub use setting::Setting;
pub use setup::NicSetup;
pub use sysfs::{Interrupt, Placement, Polling};

/// The feature by which a driver takes flow rules (`ethtool -K DEV ntuple`).
pub const NTUPLE: &str = "rx-ntuple-filter";
/// The feature by which a driver reports hashes, and virtio_net hashes the fields that were set (`ethtool -K DEV rxhash`).
pub const RX_HASH: &str = "rx-hashing";

/// Who drives a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// The driver's name; empty where it does not say.
    pub name: String,
    /// Its version, today mostly the kernel's.
    pub version: String,
    /// The version of the device's firmware; often empty.
    pub firmware: String,
    /// Where the device is, such as a PCI address; empty where there is no bus.
    pub bus: String,
}

/// When a device interrupts (`ethtool -c`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coalescing {
    /// Microseconds after a received frame.
    pub rx_usecs: u32,
    /// Received frames.
    pub rx_frames: u32,
    /// Microseconds after a sent frame.
    pub tx_usecs: u32,
    /// Sent frames.
    pub tx_frames: u32,
    /// Whether the driver adapts the figures for receiving.
    pub adaptive_rx: bool,
    /// Whether the driver adapts the figures for sending.
    pub adaptive_tx: bool,
}

/// How long the kernel leaves a device's queues to whoever polls them (Documentation/networking/napi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deferral {
    /// Empty polls before interrupts are switched on again (`napi_defer_hard_irqs`).
    pub hard_irqs: u32,
    /// Until the kernel polls while interrupts are off (`gro_flush_timeout`). **Units:** nanoseconds.
    pub flush_timeout: u64,
}

impl Deferral {
    /// Whether the kernel leaves queues to a poller at all.
    pub const fn is_on(self) -> bool {
        self.hard_irqs > 0 && self.flush_timeout > 0
    }
}

/// What can be asked of a device: the kernel's ([`Kernel`]), or a driver in memory for tests.
///
/// **Errors:** the kernel's; `EOPNOTSUPP` says that the driver has no such setting, and [`Nic`] makes a value of it.
#[expect(missing_docs, reason = "each is described where Nic has it")]
pub trait Ethtool {
    fn ifindex(&self) -> io::Result<u32>;
    fn driver(&self) -> io::Result<Driver>;
    fn channels(&self) -> io::Result<Channels>;
    fn set_channels(&self, channels: &Channels) -> io::Result<()>;
    fn rx_rings(&self) -> io::Result<u32>;
    fn rings(&self) -> io::Result<RingSizes>;
    fn set_rings(&self, rings: &RingSizes) -> io::Result<()>;
    fn coalescing(&self) -> io::Result<Coalescing>;
    fn features(&self) -> io::Result<Vec<Feature>>;
    fn set_feature(&self, name: &str, on: bool) -> io::Result<()>;
    fn rss(&self) -> io::Result<Rss>;
    fn set_rss(&self, change: &RssChange) -> io::Result<()>;
    fn fields(&self, flow: Flow) -> io::Result<Fields>;
    fn set_fields(&self, flow: Flow, fields: Fields) -> io::Result<()>;
    fn rule_room(&self) -> io::Result<RuleRoom>;
    fn insert_rule(&self, rule: &Rule, location: Option<u32>) -> io::Result<u32>;
    fn remove_rule(&self, location: u32) -> io::Result<()>;
    fn deferral(&self) -> io::Result<Deferral>;
    fn set_deferral(&self, deferral: Deferral) -> io::Result<()>;
}

/// A device by its name, with what can be asked of it.
#[derive(Debug)]
pub struct Nic<E: Ethtool = Kernel> {
    device: String,
    ethtool: E,
}

impl Nic {
    /// A device of this thread's namespace. **Errors:** [`NicError::Missing`].
    pub fn open(device: &str) -> Result<Self, NicError> {
        let missing = |_| NicError::Missing { device: device.to_string() };
        let ethtool = Kernel::open(device).map_err(missing)?;
        ethtool.ifindex().map_err(missing)?;
        Ok(Self::new(device, ethtool))
    }
}

/// Reads. **Errors:** [`NicError::Read`] in all of them. `None` where the driver has no such setting.
impl<E: Ethtool> Nic<E> {
    /// A device that is asked by `ethtool`.
    pub fn new(device: &str, ethtool: E) -> Self {
        Self { device: device.to_string(), ethtool }
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The device's index.
    pub fn ifindex(&self) -> Result<u32, NicError> {
        self.ethtool.ifindex().map_err(|_| NicError::Missing { device: self.device.clone() })
    }

    /// Who drives it.
    pub fn driver(&self) -> Result<Option<Driver>, NicError> {
        self.read("driver", self.ethtool.driver())
    }

    /// Its queues.
    pub fn channels(&self) -> Result<Option<Channels>, NicError> {
        self.read("channels", self.ethtool.channels())
    }

    /// The receive rings that hash values are spread over.
    pub fn rx_rings(&self) -> Result<Option<u32>, NicError> {
        self.read("receive rings", self.ethtool.rx_rings())
    }

    /// The sizes of its descriptor rings.
    pub fn rings(&self) -> Result<Option<RingSizes>, NicError> {
        self.read("ring sizes", self.ethtool.rings())
    }

    /// When it interrupts.
    pub fn coalescing(&self) -> Result<Option<Coalescing>, NicError> {
        self.read("interrupt coalescing", self.ethtool.coalescing())
    }

    /// All features that the kernel knows.
    pub fn features(&self) -> Result<Vec<Feature>, NicError> {
        Ok(self.read("features", self.ethtool.features())?.unwrap_or_default())
    }

    /// A feature by the kernel's name for it.
    pub fn feature(&self, name: &str) -> Result<Option<Feature>, NicError> {
        Ok(self.features()?.into_iter().find(|feature| feature.name == name))
    }

    /// Key, table, function and transform of its hash. A driver that knows neither a key nor a table has no RSS.
    pub fn rss(&self) -> Result<Option<Rss>, NicError> {
        let rss = self.read("RSS settings", self.ethtool.rss())?;
        Ok(rss.filter(|rss| !rss.key.is_empty() || !rss.table.is_empty()))
    }

    /// The fields that are hashed for a kind of packets.
    pub fn fields(&self, flow: Flow) -> Result<Option<Fields>, NicError> {
        match self.ethtool.fields(flow) {
            // Drivers say so of a kind that they do not tell apart.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            answer => self.read("rx-flow-hash", answer),
        }
    }

    /// Where flow rules can be put. Some drivers have none while the feature [`NTUPLE`] is off.
    pub fn rule_room(&self) -> Result<Option<RuleRoom>, NicError> {
        self.read("flow rules", self.ethtool.rule_room())
    }

    /// How long the kernel leaves its queues to a poller. None where sysfs is another namespace's.
    pub fn deferral(&self) -> Result<Option<Deferral>, NicError> {
        self.read("napi_defer_hard_irqs and gro_flush_timeout", self.ethtool.deferral())
    }

    /// Whether the table is the kernel's default one for the receive rings that there are.
    fn has_default_table(&self, rss: &Rss) -> Result<bool, NicError> {
        let rings = match self.rx_rings()? {
            Some(rings) => Some(rings),
            None => self.channels()?.map(|channels| channels.receiving()),
        };
        Ok(rings.is_some_and(|rings| rss.is_default_for(rings)))
    }

    /// Writes a setting. Returns where a rule was put. **Errors:** [`NicError::Write`].
    fn write(&self, setting: &Setting) -> Result<Option<u32>, NicError> {
        let written = match setting {
            Setting::Feature { name, on } => self.ethtool.set_feature(name, *on),
            Setting::Channels(channels) => self.ethtool.set_channels(channels),
            Setting::Rings(rings) => self.ethtool.set_rings(rings),
            Setting::Rss(change) => self.ethtool.set_rss(change),
            Setting::Fields { flow, fields } => self.ethtool.set_fields(*flow, *fields),
            Setting::RemoveRule { location } => self.ethtool.remove_rule(*location),
            Setting::Deferral(deferral) => self.ethtool.set_deferral(*deferral),
            Setting::InsertRule { rule, location } => {
                return self.ethtool.insert_rule(rule, *location).map(Some).map_err(|source| self.unwritten(setting, source));
            }
        };
        written.map(|()| None).map_err(|source| self.unwritten(setting, source))
    }

    fn unwritten(&self, setting: &Setting, source: io::Error) -> NicError {
        NicError::Write { device: self.device.clone(), setting: Box::new(setting.clone()), source }
    }

    fn read<T>(&self, what: &'static str, answer: io::Result<T>) -> Result<Option<T>, NicError> {
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(source) => Err(NicError::Read { device: self.device.clone(), what, source }),
        }
    }
}
