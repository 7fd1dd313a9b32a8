//! `[[interface]]`: the interfaces between which the gateway translates.
//!
//! Knows names and sides; whether the system has such an interface is for `system.rs`. Invariant: names are unique.
//! Tests: `tests/bad_input.rs`.

use core::ops::RangeInclusive;

use ipnet::Ipv4Net;
use portcullis_nat::policy::{MssClamp, Side};

use crate::address::{AddressRange, Unread, prefix, unusable};
use crate::finding::Problem;
use crate::read::{Document, Report, Spot, Table, Value, shorten};
use crate::schema::INTERFACE;

/// The longest name of an interface. **Source:** the kernel's IFNAMSIZ, less the final zero. **Units:** bytes.
const NAME_MOST: usize = 15;
/// The most queues of an interface. Chosen: what the largest servers have of cores on one NIC.
const QUEUES_MOST: u32 = 64;

/// The words for what is done to segment sizes.
pub(crate) const MSS_CLAMPS: [(&str, MssClamp); 2] = [("off", MssClamp::Off), ("pmtu", MssClamp::PathMtu)];
/// Segment sizes. The least is what Linux takes a smaller one for (TCP_MIN_MSS), the most what the largest datagram carries.
const MSS: RangeInclusive<u32> = 88..=65_495;

/// An interface that the gateway translates behind or towards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's name of it; a VLAN has a device of its own there, such as `eth1.100`.
    pub name: String,
    /// Which way it looks.
    pub side: Side,
    /// Inside: the internal prefixes that are translated; empty for all that are routed there.
    pub prefixes: Vec<Ipv4Net>,
    /// How many receive queues of its device are used; none for those that the device has.
    pub queues: Option<u16>,
    /// What it does to the maximum segment size that TCP connections through it announce.
    pub mss: MssClamp,
}

/// The interfaces of a file, and where they stand.
pub(crate) struct Interfaces {
    pub(crate) list: Vec<Interface>,
    pub(crate) spots: Vec<InterfaceSpots>,
    /// Whether some are not in the list: then what is missing may be among those.
    pub(crate) damaged: bool,
}

/// Where an interface's values stand.
#[derive(Clone, Debug)]
pub(crate) struct InterfaceSpots {
    pub(crate) name: Spot,
    pub(crate) prefixes: Vec<Spot>,
}

impl Interfaces {
    pub(crate) fn read(document: &Document<'_>, report: &mut Report) -> Self {
        let (tables, whole) = document.tables(&INTERFACE, report);
        let mut interfaces = Self { list: Vec::new(), spots: Vec::new(), damaged: !whole };
        let count = tables.len();
        for table in tables {
            interfaces.read_one(&table, report);
        }
        interfaces.damaged |= interfaces.list.len() < count;
        interfaces
    }

    fn read_one(&mut self, table: &Table<'_>, report: &mut Report) {
        let name = table.require("name", report).and_then(|value| Some((read_name(&value, report)?, value.spot)));
        let side = table.require("side", report);
        let side = side.and_then(|value| value.word(&[("inside", Side::Inside), ("outside", Side::Outside)], report));
        let list = table.get("prefixes");
        if let (Some(list), Some(Side::Outside)) = (&list, side) {
            report.fault(&list.spot, Problem::InsideOnly { found: "prefixes" });
        }
        let (prefixes, prefix_spots) = list.map(|list| read_prefixes(&list, report)).unwrap_or_default();
        let queues = table.get("queues").and_then(|value| value.integer(1..=QUEUES_MOST, report));
        let mss = table.get("mss").and_then(|value| value.word_or(&MSS_CLAMPS, MSS, |size| MssClamp::At(size as u16), report));
        let (Some((name, spot)), Some(side)) = (name, side) else { return };
        if let Some(first) = self.list.iter().position(|interface| interface.name == name) {
            let line = report.line(&self.spots[first].name);
            report.fault(&spot, Problem::Repeated { found: name, what: "an interface".to_owned(), line });
            return;
        }
        self.list.push(Interface {
            name,
            side,
            prefixes,
            queues: queues.map(|queues| queues as u16),
            mss: mss.unwrap_or_default(),
        });
        self.spots.push(InterfaceSpots { name: spot, prefixes: prefix_spots });
    }

    /// The names of the interfaces of one side.
    pub(crate) fn names(&self, side: Side) -> Vec<String> {
        self.of(side).map(|interface| interface.name.clone()).collect()
    }

    /// The interfaces of one side.
    pub(crate) fn of(&self, side: Side) -> impl Iterator<Item = &Interface> {
        self.list.iter().filter(move |interface| interface.side == side)
    }
}

/// A name as the kernel allows them (`dev_valid_name`).
fn read_name(value: &Value<'_>, report: &mut Report) -> Option<String> {
    let name = value.text(report)?;
    let forbidden = |character: char| character == '/' || character == ':' || character.is_whitespace() || character.is_control();
    let legal = (1..=NAME_MOST).contains(&name.len()) && name != "." && name != ".." && !name.contains(forbidden);
    if !legal {
        value.malformed(name, "a name that an interface can have (1 to 15 bytes, no '/', ':' or blank)", report);
    }
    legal.then(|| name.to_owned())
}

/// A list of prefixes, each once, and where they stand.
pub(crate) fn read_prefixes(list: &Value<'_>, report: &mut Report) -> (Vec<Ipv4Net>, Vec<Spot>) {
    let (mut prefixes, mut spots) = (Vec::new(), Vec::new());
    for value in list.list(report).unwrap_or_default() {
        let Some(prefix) = read_prefix(&value, report) else { continue };
        if prefixes.contains(&prefix) {
            report.fault(&value.spot, Problem::RepeatedValue { found: prefix.to_string() });
        }
        prefixes.push(prefix);
        spots.push(value.spot);
    }
    (prefixes, spots)
}

fn read_prefix(value: &Value<'_>, report: &mut Report) -> Option<Ipv4Net> {
    let text = value.text(report)?;
    match prefix(text) {
        Ok(prefix) => match unusable(AddressRange { first: prefix.network(), last: prefix.broadcast() }) {
            Some((block, kind)) if block.contains(&prefix) => {
                report.fault(&value.spot, Problem::Unusable { found: shorten(text), kind, block });
                None
            }
            _ => Some(prefix),
        },
        Err(Unread::HostBits(found)) => {
            report.fault(&value.spot, Problem::HostBits { found });
            None
        }
        Err(_) => {
            value.malformed(text, "an IPv4 prefix", report);
            None
        }
    }
}
