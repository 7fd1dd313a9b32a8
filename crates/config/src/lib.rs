//! Turns TOML into values already proved legal, or an error that names file, line, column, key and what is legal.
//!
//! Knows the configuration file and what its values mean together. Does not know the system: [`Config::check_system`] and
//! [`Config::policy`] are told what it has. The only I/O is that [`Config::load`] reads the one file.
//! Called by `portcullis run`, `check` and `reload`. Invariants: no text makes it panic; one call finds every fault; what is left
//! out has the RFCs' values. Reference for people: docs/configuration.md. Tests: `tests/`, and `configs/*.toml` are all read.

#![forbid(unsafe_code)]

mod address;
mod check;
mod finding;
mod forward;
mod interface;
mod pool;
mod read;
pub mod schema;
mod settings;
mod snapshot;
mod source;
mod summary;
mod system;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use portcullis_nat::policy::{IcmpErrors, Timeouts};
use toml::de::DeTable;

pub use address::{AddressRange, PortRange};
pub use check::ADDRESSES_MOST;
pub use finding::{ConfigError, Doubt, Fault, Finding, Findings, Problem, Warning};
pub use forward::{Forward, ForwardAddress};
pub use interface::Interface;
pub use pool::{DEFAULT_PORTS, Pool, PoolEntry};
pub use settings::{BusyPoll, Control, Limits, Log, LogLevel, Metrics, NatRules, PROTOCOLS, UdpTracking, WorkerRules};
pub use snapshot::{HostAddresses, SlotSource};
pub use source::Place;
pub use system::SystemInterface;

use check::Parts;
use forward::ForwardSpots;
use interface::{InterfaceSpots, Interfaces};
use pool::{PoolSpots, Pools};
use read::{Document, Report, Spot};
use settings::Settings;
use source::Source;

/// The largest file that is read. Chosen: a hundred times what a large gateway needs. **Units:** bytes.
pub const FILE_MOST: u64 = 1 << 20;

/// A configuration, legal in itself. Whether it fits the system is for [`Config::check_system`].
#[derive(Clone, Debug)]
pub struct Config {
    /// `[[interface]]`: at least one of each side, names unique.
    pub interfaces: Vec<Interface>,
    /// `[[pool]]`: at least one; no address twice, and at most [`ADDRESSES_MOST`] of them.
    pub pools: Vec<Pool>,
    /// `[[forward]]`: each on an address of a pool; no port of a protocol twice.
    pub forwards: Vec<Forward>,
    /// `[nat]`.
    pub nat: NatRules,
    /// `[timeouts]`.
    pub timeouts: Timeouts,
    /// `[timeouts] udp_ports`: of at most [`portcullis_nat::policy::UDP_PORT_TIMES`] different times.
    pub udp_ports: BTreeMap<u16, Duration>,
    /// `[limits]`.
    pub limits: Limits,
    /// `[icmp]`.
    pub icmp: IcmpErrors,
    /// `[worker]`.
    pub worker: WorkerRules,
    /// `[metrics]`.
    pub metrics: Metrics,
    /// `[control]`.
    pub control: Control,
    /// `[log]`.
    pub log: Log,
    origin: Origin,
}

/// The file that a configuration comes from, and where in it the values stand that are checked again later.
#[derive(Clone, Debug)]
struct Origin {
    source: Arc<Source>,
    interfaces: Vec<InterfaceSpots>,
    pools: Vec<PoolSpots>,
    forwards: Vec<ForwardSpots>,
}

impl Config {
    /// The configuration in a file, and what is doubtful about it.
    /// **Errors:** [`ConfigError::Read`] and [`ConfigError::TooLarge`] about the file, else as [`Config::parse`].
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigError> {
        let read = |path| {
            let mut bytes = Vec::new();
            File::open(path)?.take(FILE_MOST + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read(path).map_err(|error| ConfigError::Read { file: path.to_owned(), error })?;
        if bytes.len() as u64 > FILE_MOST {
            return Err(ConfigError::TooLarge { file: path.to_owned(), most: FILE_MOST });
        }
        let name = path.display().to_string();
        match str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, &name),
            Err(error) => Err(not_utf8(&bytes, error.valid_up_to(), &name)),
        }
    }

    /// The configuration in a text, and what is doubtful about it; `file` is the name that messages give the text.
    /// **Errors:** [`ConfigError::Invalid`] with everything that is not legal.
    pub fn parse(text: &str, file: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        let source = Arc::new(Source::new(file, text));
        let mut report = Report::new(source.clone());
        let (root, errors) = DeTable::parse_recoverable(source.text());
        for error in &errors {
            let spot = Spot { span: error.span().unwrap_or_default(), key: String::new() };
            report.fault(&spot, Problem::Syntax { said: error.message().to_owned() });
        }
        if !errors.is_empty() {
            // The tree has gaps, and would be blamed for what fell into them.
            return Err(ConfigError::Invalid(report.into_findings()));
        }
        let config = Self::read(&Document::new(root.get_ref(), &mut report), &mut report);
        report.finish().map(|warnings| (config, warnings)).map_err(ConfigError::Invalid)
    }

    /// How many bare mappings fit, for all workers together; none where UDP is kept by sessions.
    pub fn bare_mappings(&self) -> u32 {
        match self.nat.udp_tracking {
            UdpTracking::Sessions => 0,
            UdpTracking::Mappings => self.limits.mappings,
        }
    }

    fn read(document: &Document<'_>, report: &mut Report) -> Self {
        let interfaces = Interfaces::read(document, report);
        let pools = Pools::read(document, &interfaces, report);
        let forwards = forward::read(document, &interfaces, report);
        let settings = Settings::read(document, report);
        check::check(&Parts { interfaces: &interfaces, pools: &pools, forwards: &forwards }, report);
        let (forwards, forward_spots) = forwards.into_iter().unzip();
        Self {
            interfaces: interfaces.list,
            pools: pools.list,
            forwards,
            nat: settings.nat,
            timeouts: settings.timeouts,
            udp_ports: settings.udp_ports,
            limits: settings.limits,
            icmp: settings.icmp,
            worker: settings.worker,
            metrics: settings.metrics,
            control: settings.control,
            log: settings.log,
            origin: Origin {
                source: report.source.clone(),
                interfaces: interfaces.spots,
                pools: pools.spots,
                forwards: forward_spots,
            },
        }
    }
}

/// The error that points at the first byte that is not text.
fn not_utf8(bytes: &[u8], valid: usize, file: &str) -> ConfigError {
    let mut report = Report::new(Arc::new(Source::new(file, &String::from_utf8_lossy(bytes))));
    report.fault(&Spot { span: valid..valid + 1, key: String::new() }, Problem::NotUtf8);
    ConfigError::Invalid(report.into_findings())
}
