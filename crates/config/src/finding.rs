//! What is wrong with a configuration, or doubtful, shown as compilers show it.
//!
//! Knows how to say it; the checks that find it are elsewhere. Called by `run`, `check` and `reload`, which print it.
//! Invariant: each finding names its place, its key, what was found and what is legal.

use core::fmt;
use core::net::Ipv4Addr;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use humantime::format_duration;
use ipnet::Ipv4Net;
use thiserror::Error;

use crate::source::Place;

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The file is larger than any configuration.
    #[error("{} is not a configuration: it is larger than {most} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The largest that is read. **Units:** bytes.
        most: u64,
    },
    /// What stands in it is not legal.
    #[error("{0}")]
    Invalid(Findings),
}

/// Everything found in a configuration that is not legal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// What makes it illegal, at least one, in the order of the file.
    pub faults: Vec<Fault>,
    /// How many more faults there are than are listed.
    pub unlisted: usize,
    /// What is legal but doubtful.
    pub warnings: Vec<Warning>,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            write!(f, "{warning}\n\n")?;
        }
        for fault in &self.faults {
            write!(f, "{fault}\n\n")?;
        }
        let count = self.faults.len() + self.unlisted;
        let unlisted = if self.unlisted > 0 { format!(", of which {} are not shown", self.unlisted) } else { String::new() };
        write!(f, "{count} error{}{unlisted}", if count == 1 { "" } else { "s" })
    }
}

/// Something at a place of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding<W> {
    /// Where.
    pub place: Place,
    /// The key's path, such as `pool[0].ports`.
    pub key: String,
    /// What.
    pub what: W,
}

/// Something that is not legal.
pub type Fault = Finding<Problem>;

/// Something legal that the operator may not have meant.
pub type Warning = Finding<Doubt>;

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, "error", &self.place, &self.key, &self.what)?;
        write!(f, "\n{} = legal: {}", self.place.gutter(), self.what.legal())
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, "warning", &self.place, &self.key, &self.what)
    }
}

fn show(f: &mut fmt::Formatter<'_>, kind: &str, place: &Place, key: &str, what: &dyn fmt::Display) -> fmt::Result {
    let colon = if key.is_empty() { "" } else { ": " };
    writeln!(f, "{place}: {kind}: {key}{colon}{what}")?;
    place.underline(f)
}

/// What can be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "each variant's message says what it and its fields are")]
pub enum Problem {
    #[error("not UTF-8 text")]
    NotUtf8,
    #[error("not TOML: {said}")]
    Syntax { said: String },
    #[error("unknown {what} `{found}`{}", guess(nearest.as_deref()))]
    UnknownKey { what: &'static str, found: String, nearest: Option<String>, known: Vec<&'static str> },
    #[error("`{name}` is missing")]
    Missing { name: &'static str, wants: &'static str },
    #[error("found {found}")]
    WrongType { found: &'static str, wants: &'static str },
    #[error("`{found}` is none of the words that have a meaning here")]
    UnknownWord { found: String, legal: Vec<&'static str> },
    #[error("`{found}` is not {what}")]
    Malformed { found: String, what: &'static str, wants: &'static str },
    #[error("{found} is out of range")]
    OutOfRange { found: String, least: i64, most: i64 },
    #[error("{} is out of range", format_duration(*found))]
    DurationOutOfRange { found: Duration, least: Duration, most: Duration },
    #[error("{found} is not a power of two")]
    NotPowerOfTwo { found: u32, below: u32, above: u32 },
    #[error("{found} is none of the numbers that have a meaning here")]
    UnknownNumber { found: i64, legal: &'static [u8] },
    #[error("the list is empty")]
    EmptyList { wants: &'static str },
    #[error("the range `{found}` runs backwards")]
    Backwards { found: String, wants: &'static str },
    #[error("`{found}` has port 0")]
    PortZero { found: String, wants: &'static str },
    #[error("{found} overlaps with {other} in the same list")]
    RangesOverlap { found: String, other: String },
    #[error("{found} ports")]
    TooManyPorts { found: usize, most: usize },
    #[error("{found} different times")]
    TooManyTimes { found: usize, most: usize },
    #[error("`{found}` has bits set beyond its length")]
    HostBits { found: Ipv4Net },
    #[error("`{found}` holds {kind} addresses ({block}), which no host outside may have")]
    Unusable { found: String, kind: &'static str, block: Ipv4Net },
    #[error("the name `{found}` is already that of {what} at line {line}")]
    Repeated { found: String, what: String, line: u32 },
    #[error("`{found}` stands in this list already")]
    RepeatedValue { found: String },
    #[error("protocol {protocol} is none that can be translated by address alone: {why}")]
    NotByAddress { protocol: u8, why: &'static str },
    #[error("{} for an opening translation is more than the {} for one that was answered", format_duration(*found), format_duration(*most))]
    OpeningTooLong { found: Duration, most: Duration },
    #[error("`udp_tracking = \"mappings\"` keeps nothing of UDP's remotes, which \"{found}\" {key} goes by")]
    NeedsSessions { key: &'static str, found: &'static str },
    #[error("\"mappings\" lets in whoever sends, but without a `filtering` only those get in that were sent to")]
    FilteringUnsaid,
    #[error("`udp_tracking = \"mappings\"` in [nat] keeps nothing of UDP's remotes, and so no times towards their ports")]
    NoPortTimes,
    #[error("only an inside interface has `{found}`")]
    InsideOnly { found: &'static str },
    #[error("no {side} interface is configured")]
    NoInterface { side: &'static str },
    #[error("no pool is configured: there is no address to translate to")]
    NoPool,
    #[error("`{found}` is no {side} interface of this file{}", guess(nearest.as_deref()))]
    NotAnInterface { found: String, side: &'static str, nearest: Option<String>, known: Vec<String> },
    #[error("which interface? there is more than one outside")]
    WhichInterface { known: Vec<String> },
    #[error("{found} has an address that `{other}` at line {line} has as well")]
    AddressTwice { found: String, other: String, line: u32 },
    #[error("the pools have {found} addresses up to here")]
    TooManyAddresses { found: u64, most: u64 },
    #[error("{found} lies inside: in the prefix {prefix} of interface `{interface}` at line {line}")]
    AddressInside { found: String, prefix: Ipv4Net, interface: String, line: u32 },
    #[error("{found} is in no pool")]
    OutsidePools { found: String, pools: Vec<String> },
    #[error("the forward at line {line} has {protocol} port {port} of that address already")]
    ForwardsOverlap { protocol: &'static str, port: u16, line: u32 },
    #[error("the external ports {first}-{last} lead to ports up to {end} of server {server}")]
    ServerPortsEnd { first: u16, last: u16, server: String, end: u32 },
    #[error("the server {found} is not inside")]
    ServerOutside { found: Ipv4Addr, prefixes: Vec<Ipv4Net> },
    #[error("the server {found} is an external address")]
    ServerExternal { found: Ipv4Addr, pool: String },
    #[error("{found} cores are listed for {workers} workers")]
    CoresOfWorkers { found: usize, workers: u32 },
    #[error("this system has no interface `{found}`{}", guess(nearest.as_deref()))]
    NoSuchInterface { found: String, nearest: Option<String>, existing: Vec<String> },
    #[error("{found} lies inside: in the network {network} of inside interface `{interface}`")]
    AddressInNetwork { found: String, network: Ipv4Net, interface: String },
    #[error("{found} has {address}, which the network {network} of interface `{interface}` keeps for itself")]
    AddressOfNetwork { found: String, address: Ipv4Addr, network: Ipv4Net, interface: String },
    #[error("interface `{interface}` has the address {address}, which pool `{pool}` lists as well")]
    InterfaceAddressTwice { interface: String, address: Ipv4Addr, pool: String },
    #[error("the server {found} is this box: it is the address of interface `{interface}`")]
    ServerIsBox { found: Ipv4Addr, interface: String },
    #[error("interface `{interface}` has an MTU of {found} bytes, and a frame of packet memory carries {most}")]
    MtuTooLarge { interface: String, found: u32, most: u32 },
}

impl Problem {
    /// What is legal instead, or what to do about it.
    pub fn legal(&self) -> String {
        match self {
            Self::NotUtf8 => "a text file in UTF-8".to_owned(),
            Self::Syntax { .. } => "TOML 1.1, see https://toml.io".to_owned(),
            Self::UnknownKey { known, .. } => list(known),
            Self::Missing { name, wants } => format!("`{name}` with {wants}"),
            Self::WrongType { wants, .. }
            | Self::Malformed { wants, .. }
            | Self::EmptyList { wants }
            | Self::Backwards { wants, .. }
            | Self::PortZero { wants, .. } => (*wants).to_owned(),
            Self::UnknownWord { legal, .. } => list(&legal.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>()),
            Self::OutOfRange { least, most, .. } => format!("whole numbers from {least} to {most}"),
            Self::DurationOutOfRange { least, most, .. } => {
                format!("durations from {} to {}", format_duration(*least), format_duration(*most))
            }
            Self::NotPowerOfTwo { below, above, .. } => format!("powers of two; the nearest are {below} and {above}"),
            Self::UnknownNumber { legal, .. } => list(legal),
            Self::RangesOverlap { .. } => "ranges that have no port in common".to_owned(),
            Self::TooManyPorts { most, .. } => format!("at most {most} ports"),
            Self::TooManyTimes { most, .. } => format!("at most {most} different times, each for as many ports as you like"),
            Self::HostBits { found } => format!("the prefix \"{}\", or the address \"{}\"", found.trunc(), found.addr()),
            Self::Unusable { .. } => "unicast addresses that hosts outside can answer to".to_owned(),
            Self::Repeated { .. } => "each name once".to_owned(),
            Self::RepeatedValue { .. } => "each value once".to_owned(),
            Self::NotByAddress { .. } => "protocols other than 1 (ICMP), 6 (TCP), 17 (UDP) and 51 (AH)".to_owned(),
            Self::OpeningTooLong { .. } => "`other_opening` at most as long as `other`".to_owned(),
            Self::NeedsSessions { key, .. } => format!("{key} = \"endpoint-independent\"; or udp_tracking = \"sessions\""),
            Self::FilteringUnsaid => {
                "with it filtering = \"endpoint-independent\", and filtering_tcp = \"address-and-port-dependent\" where TCP shall not \
                 follow; or udp_tracking = \"sessions\""
                    .to_owned()
            }
            Self::NoPortTimes => "no `udp_ports`; or udp_tracking = \"sessions\" in [nat]".to_owned(),
            Self::InsideOnly { found } => format!("no `{found}` here, or side = \"inside\""),
            Self::NoInterface { side } => format!("at least one [[interface]] with side = \"{side}\""),
            Self::NoPool => "at least one [[pool]], such as one with addresses = [\"interface\"]".to_owned(),
            Self::NotAnInterface { side, known, .. } if known.is_empty() => format!("an [[interface]] with side = \"{side}\""),
            Self::NotAnInterface { known, .. } => list(known),
            Self::WhichInterface { known } => list(&known.iter().map(|name| format!("\"interface:{name}\"")).collect::<Vec<_>>()),
            Self::AddressTwice { .. } => "each address once in all pools".to_owned(),
            Self::TooManyAddresses { most, .. } => format!("at most {most} addresses in all pools together"),
            Self::AddressInside { .. } | Self::AddressInNetwork { .. } => "addresses that are not used inside".to_owned(),
            Self::OutsidePools { pools, .. } => format!("an address of a pool: {}", list(pools)),
            Self::ForwardsOverlap { .. } => "each external port forwarded once for each protocol".to_owned(),
            Self::ServerPortsEnd { first, last, .. } => {
                format!("a server port up to {}, as the range keeps its order", 65_535 - (u32::from(*last) - u32::from(*first)))
            }
            Self::ServerOutside { prefixes, .. } if prefixes.is_empty() => {
                "private addresses (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10), or those in an inside interface's \
                 `prefixes`"
                    .to_owned()
            }
            Self::ServerOutside { prefixes, .. } => format!("addresses of the inside prefixes: {}", list(prefixes)),
            Self::ServerExternal { pool, .. } => format!("an internal address, not one of pool `{pool}`"),
            Self::CoresOfWorkers { workers, .. } => {
                format!("a list of {workers} cores, one for each worker; or leave `cores` or `count` out")
            }
            Self::NoSuchInterface { existing, .. } if existing.is_empty() => "none: the system has no interface".to_owned(),
            Self::NoSuchInterface { existing, .. } => format!("the system has {}", list(existing)),
            Self::AddressOfNetwork { network, .. } => format!("host addresses of {network}, first and last left out"),
            Self::InterfaceAddressTwice { .. } => "each address once: leave one of the two out".to_owned(),
            Self::ServerIsBox { .. } => "a host behind the gateway; what the box itself serves needs no forward".to_owned(),
            Self::MtuTooLarge { interface, most, .. } => format!("an MTU of at most {most}: ip link set {interface} mtu {most}"),
        }
    }
}

/// What can be doubtful.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "each variant's message says what it and its fields are")]
pub enum Doubt {
    #[error("{} is less than the {} that {rfc} requires: sessions may end while their hosts still use them", format_duration(*found), format_duration(*least))]
    BelowRfc { found: Duration, least: Duration, rfc: &'static str },
    #[error("{mappings} mappings but {sessions} sessions: each mapping has at least one session, so the rest is never used")]
    FewerSessions { mappings: u32, sessions: u32 },
    #[error("the forwards leave {address} no port of pool `{pool}` for outbound mappings")]
    NoPortLeft { address: String, pool: String },
    #[error(
        "pool `{pool}` has {ports} ports of each address for {workers} workers: some workers, and the hosts that they serve, get none"
    )]
    FewerPorts { pool: String, ports: u32, workers: u16 },
    #[error(
        "the network {network} outside and {inside} inside, of `{interface}`, have addresses in common: hosts reach those of one side only, \
         that which the kernel's routes lead to"
    )]
    SameAddresses { network: Ipv4Net, inside: Ipv4Net, interface: String },
    #[error("interface `{interface}` has no IPv4 address now: nothing is translated to it until it gets one")]
    NoAddress { interface: String },
}

fn guess(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!(", did you mean `{nearest}`?")).unwrap_or_default()
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
