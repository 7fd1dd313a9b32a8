//! `[[forward]]`: external ports that lead to internal servers.
//!
//! Knows one forward at a time; what it must have in common with pools, and not with other forwards, is in `check.rs`.
//! Invariant: the last port of the range leads to a port that exists. Tests: `tests/bad_input.rs`.

use core::fmt;
use core::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Protocol};

use crate::address::{PortRange, Unread, endpoint, port_range};
use crate::finding::Problem;
use crate::interface::Interfaces;
use crate::pool::{interface_name, outside_interface};
use crate::read::{Document, Report, Spot, Table, Value, shorten};
use crate::schema::FORWARD;

/// External ports that lead to internal servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The protocols, at least one, each with a forward of its own.
    pub protocols: &'static [Protocol],
    /// The external address.
    pub address: ForwardAddress,
    /// The external ports.
    pub ports: PortRange,
    /// The servers, at least one; the port is the one that the first external port leads to.
    pub servers: Vec<Endpoint>,
}

/// The address of a forward.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForwardAddress {
    /// A fixed one.
    Address(Ipv4Addr),
    /// The primary address of an outside interface, followed when it changes.
    Interface(String),
}

impl fmt::Display for ForwardAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Interface(name) => write!(f, "interface:{name}"),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocols: Vec<_> = self.protocols.iter().map(|&protocol| protocol_name(protocol)).collect();
        let servers: Vec<_> = self.servers.iter().map(|server| format!("{}:{}", server.address, server.port)).collect();
        write!(f, "{} {}:{} -> {}", protocols.join("+"), self.address, self.ports, servers.join(", "))
    }
}

pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Icmp => "icmp",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

const PROTOCOLS: [(&str, &[Protocol]); 3] =
    [("tcp", &[Protocol::Tcp]), ("udp", &[Protocol::Udp]), ("tcp+udp", &[Protocol::Tcp, Protocol::Udp])];

/// Where a forward's values stand.
#[derive(Clone, Debug)]
pub(crate) struct ForwardSpots {
    pub(crate) external: Spot,
    pub(crate) servers: Vec<Spot>,
}

/// The forwards of a file that could be read, each with where it stands.
pub(crate) fn read(document: &Document<'_>, interfaces: &Interfaces, report: &mut Report) -> Vec<(Forward, ForwardSpots)> {
    let (tables, _) = document.tables(&FORWARD, report);
    tables.iter().filter_map(|table| read_one(table, interfaces, report)).collect()
}

fn read_one(table: &Table<'_>, interfaces: &Interfaces, report: &mut Report) -> Option<(Forward, ForwardSpots)> {
    let protocols = table.require("protocol", report).and_then(|value| value.word(&PROTOCOLS, report));
    let external = table.require("external", report);
    let external = external.and_then(|value| Some((read_external(&value, interfaces, report)?, value.spot)));
    let list = table.require("internal", report);
    let (servers, server_spots) = list.map(|value| read_servers(&value, report)).unwrap_or_default();
    let ((address, ports), spot) = external?;
    for (server, spot) in servers.iter().zip(&server_spots) {
        check_last_port(ports, *server, spot, report);
    }
    let forward = Forward { protocols: protocols?, address, ports, servers };
    Some((forward, ForwardSpots { external: spot, servers: server_spots }))
}

fn check_last_port(ports: PortRange, server: Endpoint, spot: &Spot, report: &mut Report) {
    let end = u32::from(server.port) + u32::from(ports.offset());
    if end > u32::from(u16::MAX) {
        let server = format!("{}:{}", server.address, server.port);
        report.fault(spot, Problem::ServerPortsEnd { first: ports.first, last: ports.last, server, end });
    }
}

fn read_external(value: &Value<'_>, interfaces: &Interfaces, report: &mut Report) -> Option<(ForwardAddress, PortRange)> {
    let text = value.text(report)?;
    let Some((address, ports)) = text.rsplit_once(':') else {
        value.malformed(text, "an address with a port", report);
        return None;
    };
    let ports = match port_range(ports) {
        Ok(ports) => Some(ports),
        Err(Unread::Backwards) => {
            report.fault(&value.spot, Problem::Backwards { found: shorten(ports), wants: value.accepts });
            None
        }
        Err(Unread::PortZero) => {
            report.fault(&value.spot, Problem::PortZero { found: shorten(text), wants: value.accepts });
            None
        }
        Err(_) => {
            value.malformed(ports, "a port or a range of ports", report);
            None
        }
    };
    if let Some(name) = interface_name(address) {
        let name = outside_interface(name, interfaces, &value.spot, report)?;
        return Some((ForwardAddress::Interface(name), ports?));
    }
    let Ok(address) = address.parse() else {
        value.malformed(address, "an IPv4 address or \"interface\"", report);
        return None;
    };
    Some((ForwardAddress::Address(address), ports?))
}

fn read_servers(list: &Value<'_>, report: &mut Report) -> (Vec<Endpoint>, Vec<Spot>) {
    let Some(values) = list.list(report) else { return Default::default() };
    if values.is_empty() {
        report.fault(&list.spot, Problem::EmptyList { wants: list.accepts });
    }
    let (mut servers, mut spots) = (Vec::new(), Vec::new());
    for value in values {
        let Some(text) = value.text(report) else { continue };
        match endpoint(text) {
            Ok(server) if servers.contains(&server) => {
                report.fault(&value.spot, Problem::RepeatedValue { found: shorten(text) });
            }
            Ok(server) => {
                servers.push(server);
                spots.push(value.spot);
            }
            Err(Unread::PortZero) => {
                report.fault(&value.spot, Problem::PortZero { found: shorten(text), wants: value.accepts });
            }
            Err(_) => value.malformed(text, "an IPv4 address with a port", report),
        }
    }
    (servers, spots)
}
