//! `[[pool]]`: the external addresses and ports that the gateway translates to.
//!
//! Knows one pool at a time; what pools must not have in common is in `check.rs`. Invariant: an entry `interface` names an outside
//! interface of the same file. Tests: `tests/bad_input.rs`.

use core::fmt;

use portcullis_nat::policy::Side;

use crate::address::{AddressRange, PortRange, Unread, address_range, port_range, unusable};
use crate::finding::Problem;
use crate::interface::Interfaces;
use crate::read::{Document, Report, Spot, Table, Value, nearest, shorten};
use crate::schema::POOL;

/// The longest name. Chosen: it becomes a label in metrics and a column in tables. **Units:** bytes.
const NAME_MOST: usize = 63;

/// The ports of a pool that names none: all but those reserved for the system's services (RFC 6335, section 6).
pub const DEFAULT_PORTS: PortRange = PortRange { first: 1024, last: 65_535 };

/// External addresses that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name, unique.
    pub name: String,
    /// Its addresses, in the order of the file.
    pub addresses: Vec<PoolEntry>,
    /// The ports and ICMP identifiers that mappings may take, ascending; none where the file leaves it to the gateway, which then
    /// takes [`DEFAULT_PORTS`] and leaves the host its own on addresses that it shares.
    pub ports: Option<Vec<PortRange>>,
}

/// An entry of a pool's address list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolEntry {
    /// Fixed addresses: one, a range or a prefix with all of its addresses.
    Addresses(AddressRange),
    /// The primary address of an outside interface, followed when it changes.
    Interface(String),
}

impl PoolEntry {
    /// How many external addresses it has.
    pub fn count(&self) -> u64 {
        match self {
            Self::Addresses(range) => range.count(),
            Self::Interface(_) => 1,
        }
    }
}

impl fmt::Display for PoolEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(range) => range.fmt(f),
            Self::Interface(name) => write!(f, "interface:{name}"),
        }
    }
}

/// The pools of a file, and where their entries stand.
pub(crate) struct Pools {
    pub(crate) list: Vec<Pool>,
    pub(crate) spots: Vec<PoolSpots>,
    /// Whether some entry could not be read: then what is missing may be among those.
    pub(crate) damaged: bool,
}

/// Where a pool's values stand.
#[derive(Clone, Debug)]
pub(crate) struct PoolSpots {
    pub(crate) name: Spot,
    pub(crate) addresses: Vec<Spot>,
}

impl Pools {
    pub(crate) fn read(document: &Document<'_>, interfaces: &Interfaces, report: &mut Report) -> Self {
        let (tables, whole) = document.tables(&POOL, report);
        let mut pools = Self { list: Vec::new(), spots: Vec::new(), damaged: interfaces.damaged || !whole };
        for table in tables {
            pools.read_one(&table, interfaces, report);
        }
        pools
    }

    fn read_one(&mut self, table: &Table<'_>, interfaces: &Interfaces, report: &mut Report) {
        let name = table.require("name", report).and_then(|value| Some((read_name(&value, report)?, value.spot)));
        let before = report.count();
        let list = table.require("addresses", report);
        let (addresses, spots) = list.map(|value| read_addresses(&value, interfaces, report)).unwrap_or_default();
        self.damaged |= name.is_none() || report.count() > before;
        let ports = table.get("ports").map(|value| read_ports(&value, report));
        let Some((name, spot)) = name else { return };
        if let Some(first) = self.list.iter().position(|pool| pool.name == name) {
            let line = report.line(&self.spots[first].name);
            report.fault(&spot, Problem::Repeated { found: name.clone(), what: "a pool".to_owned(), line });
        }
        self.list.push(Pool { name, addresses, ports });
        self.spots.push(PoolSpots { name: spot, addresses: spots });
    }

    /// Every entry with its pool and spot, in the order of the file.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Pool, &PoolEntry, &Spot)> {
        self.list
            .iter()
            .zip(&self.spots)
            .flat_map(|(pool, spots)| pool.addresses.iter().zip(&spots.addresses).map(move |(entry, spot)| (pool, entry, spot)))
    }
}

fn read_name(value: &Value<'_>, report: &mut Report) -> Option<String> {
    let name = value.text(report)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let legal = (1..=NAME_MOST).contains(&name.len()) && name.bytes().all(allowed);
    if !legal {
        value.malformed(name, "a name", report);
    }
    legal.then(|| name.to_owned())
}

fn read_addresses(list: &Value<'_>, interfaces: &Interfaces, report: &mut Report) -> (Vec<PoolEntry>, Vec<Spot>) {
    let Some(values) = list.list(report) else { return Default::default() };
    if values.is_empty() {
        report.fault(&list.spot, Problem::EmptyList { wants: list.accepts });
    }
    let read = |value: Value<'_>| Some((read_entry(&value, interfaces, report)?, value.spot));
    values.into_iter().filter_map(read).unzip()
}

fn read_entry(value: &Value<'_>, interfaces: &Interfaces, report: &mut Report) -> Option<PoolEntry> {
    let text = value.text(report)?;
    if let Some(name) = interface_name(text) {
        return outside_interface(name, interfaces, &value.spot, report).map(PoolEntry::Interface);
    }
    let problem = match address_range(text) {
        Ok(range) => match unusable(range) {
            None => return Some(PoolEntry::Addresses(range)),
            Some((block, kind)) => Problem::Unusable { found: shorten(text), kind, block },
        },
        Err(Unread::HostBits(found)) => Problem::HostBits { found },
        Err(Unread::Backwards) => Problem::Backwards { found: shorten(text), wants: value.accepts },
        Err(Unread::Malformed | Unread::PortZero) => Problem::Malformed {
            found: shorten(text),
            what: "an address, a range, a prefix or \"interface\"",
            wants: value.accepts,
        },
    };
    report.fault(&value.spot, problem);
    None
}

/// What follows `interface:`, or an empty text for plain `interface`; none for anything else.
pub(crate) fn interface_name(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("interface")?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(':') }
}

/// The outside interface of that name, or the only one when the name is empty.
pub(crate) fn outside_interface(name: &str, interfaces: &Interfaces, spot: &Spot, report: &mut Report) -> Option<String> {
    let known = interfaces.names(Side::Outside);
    let found = if name.is_empty() && known.len() == 1 { known.first() } else { known.iter().find(|known| *known == name) };
    if found.is_some() || interfaces.damaged {
        return found.cloned();
    }
    let problem = match name {
        "" if known.is_empty() => Problem::NoInterface { side: "outside" },
        "" => Problem::WhichInterface { known },
        _ => {
            let nearest = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
            Problem::NotAnInterface { found: shorten(name), side: "outside", nearest, known }
        }
    };
    report.fault(spot, problem);
    None
}

fn read_ports(value: &Value<'_>, report: &mut Report) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = Vec::new();
    let Some(text) = value.text(report) else { return ranges };
    for part in text.split(',') {
        let found = shorten(part.trim());
        let wants = value.accepts;
        match port_range(part) {
            Ok(range) => ranges.push(range),
            Err(Unread::Backwards) => report.fault(&value.spot, Problem::Backwards { found, wants }),
            Err(Unread::PortZero) => report.fault(&value.spot, Problem::PortZero { found, wants }),
            Err(_) => report.fault(&value.spot, Problem::Malformed { found, what: "a port range", wants }),
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2).filter(|pair| pair[1].first <= pair[0].last) {
        let (found, other) = (pair[1].to_string(), pair[0].to_string());
        report.fault(&value.spot, Problem::RangesOverlap { found, other });
    }
    ranges
}
