//! What the sections of a file must have, and must not have, in common.
//!
//! Knows the values that could be read, and only adds to the report; a section that was damaged is not blamed for what is missing.
//! Called once a file was read. Tests: `tests/bad_input.rs`.

use ipnet::Ipv4Net;
use portcullis_nat::policy::{PortSet, Protocol, Side};

use crate::address::{AddressRange, PortRange, is_private};
use crate::finding::{Doubt, Problem};
use crate::forward::{Forward, ForwardAddress, ForwardSpots, protocol_name};
use crate::interface::Interfaces;
use crate::pool::{DEFAULT_PORTS, Pool, PoolEntry, Pools};
use crate::read::{Report, Spot};

/// The most external addresses of all pools together. Chosen: each has a table of ports and of inbound mappings of its own.
pub const ADDRESSES_MOST: u64 = 4096;

/// The parts of a file that were read.
pub(crate) struct Parts<'p> {
    pub(crate) interfaces: &'p Interfaces,
    pub(crate) pools: &'p Pools,
    pub(crate) forwards: &'p [(Forward, ForwardSpots)],
}

/// Reports everything that does not fit together.
pub(crate) fn check(parts: &Parts<'_>, report: &mut Report) {
    check_sides(parts.interfaces, report);
    check_pools(parts, report);
    check_forwards(parts, report);
    check_servers(parts, report);
    if report.count() == 0 {
        doubt_port_use(parts, report);
    }
}

/// The whole file, for what is missing in it.
fn whole(key: &str) -> Spot {
    Spot { span: 0..0, key: key.to_owned() }
}

fn check_sides(interfaces: &Interfaces, report: &mut Report) {
    if interfaces.damaged {
        return;
    }
    let spot = interfaces.spots.first().map_or_else(|| whole("interface"), |spots| spots.name.clone());
    for (side, name) in [(Side::Inside, "inside"), (Side::Outside, "outside")] {
        if interfaces.of(side).next().is_none() {
            report.fault(&Spot { key: "interface".to_owned(), ..spot.clone() }, Problem::NoInterface { side: name });
        }
    }
}

fn check_pools(parts: &Parts<'_>, report: &mut Report) {
    if parts.pools.list.is_empty() && !parts.pools.damaged {
        report.fault(&whole("pool"), Problem::NoPool);
    }
    check_total(parts.pools, report);
    check_addresses_once(parts.pools, report);
    for (_, entry, spot) in parts.pools.entries() {
        if let PoolEntry::Addresses(range) = entry {
            check_not_inside(*range, spot, parts.interfaces, report);
        }
    }
}

fn check_total(pools: &Pools, report: &mut Report) {
    let mut total = 0_u64;
    for (_, entry, spot) in pools.entries() {
        total += entry.count();
        if total > ADDRESSES_MOST {
            report.fault(spot, Problem::TooManyAddresses { found: total, most: ADDRESSES_MOST });
            return;
        }
    }
}

/// Finds entries that share an address: of all sorted by their first, each is compared with the one that reaches furthest so far.
fn check_addresses_once(pools: &Pools, report: &mut Report) {
    let mut ranges: Vec<(AddressRange, &Spot)> = Vec::new();
    let mut names: Vec<(&str, &Spot)> = Vec::new();
    for (_, entry, spot) in pools.entries() {
        match entry {
            PoolEntry::Addresses(range) => ranges.push((*range, spot)),
            PoolEntry::Interface(name) => names.push((name, spot)),
        }
    }
    ranges.sort_by_key(|&(range, spot)| (range, spot.span.start));
    let mut furthest: Option<(AddressRange, &Spot)> = None;
    for (range, spot) in ranges {
        if let Some((other, other_spot)) = furthest.filter(|(other, _)| range.first <= other.last) {
            report_twice((range.to_string(), spot), (other.to_string(), other_spot), report);
        }
        if furthest.is_none_or(|(other, _)| range.last > other.last) {
            furthest = Some((range, spot));
        }
    }
    names.sort_by_key(|&(name, spot)| (name, spot.span.start));
    for pair in names.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        let named = |(name, spot): (&str, _)| (format!("interface:{name}"), spot);
        report_twice(named(pair[1]), named(pair[0]), report);
    }
}

/// Reports at the later of two entries that the earlier one has an address of it.
fn report_twice(one: (String, &Spot), other: (String, &Spot), report: &mut Report) {
    let (later, earlier) = if one.1.span.start < other.1.span.start { (other, one) } else { (one, other) };
    let line = report.line(earlier.1);
    report.fault(later.1, Problem::AddressTwice { found: later.0, other: earlier.0, line });
}

fn check_not_inside(range: AddressRange, spot: &Spot, interfaces: &Interfaces, report: &mut Report) {
    for (interface, spots) in interfaces.list.iter().zip(&interfaces.spots) {
        if let Some(position) = interface.prefixes.iter().position(|&prefix| range.meets(prefix)) {
            let line = spots.prefixes.get(position).map_or(0, |spot| report.line(spot));
            let (prefix, interface) = (interface.prefixes[position], interface.name.clone());
            report.fault(spot, Problem::AddressInside { found: range.to_string(), prefix, interface, line });
        }
    }
}

fn check_forwards(parts: &Parts<'_>, report: &mut Report) {
    for (forward, spots) in parts.forwards {
        if !parts.pools.damaged && pool_of(&forward.address, parts.pools).is_none() {
            let pools = parts.pools.entries().map(|(_, entry, _)| entry.to_string()).collect();
            report.fault(&spots.external, Problem::OutsidePools { found: forward.address.to_string(), pools });
        }
    }
    check_forwards_apart(parts.forwards, report);
}

/// Finds forwards of one protocol that share a port, in the manner of [`check_addresses_once`].
fn check_forwards_apart(forwards: &[(Forward, ForwardSpots)], report: &mut Report) {
    type Claim<'f> = (Protocol, &'f ForwardAddress, PortRange, usize);
    let claims = |position: usize| {
        let forward = &forwards[position].0;
        forward.protocols.iter().map(move |&protocol| (protocol, &forward.address, forward.ports, position))
    };
    let mut claims: Vec<Claim<'_>> = (0..forwards.len()).flat_map(claims).collect();
    claims.sort_unstable();
    let mut furthest: Option<Claim<'_>> = None;
    for claim in claims {
        let (protocol, address, ports, position) = claim;
        let other = furthest.filter(|other| other.0 == protocol && other.1 == address);
        if let Some(other) = other.filter(|other| ports.first <= other.2.last) {
            let (earlier, later) = (position.min(other.3), position.max(other.3));
            let line = report.line(&forwards[earlier].1.external);
            let problem = Problem::ForwardsOverlap { protocol: protocol_name(protocol), port: ports.first, line };
            report.fault(&forwards[later].1.external, problem);
        }
        if other.is_none_or(|other| ports.last > other.2.last) {
            furthest = Some(claim);
        }
    }
}

fn check_servers(parts: &Parts<'_>, report: &mut Report) {
    let inside: Vec<_> = parts.interfaces.of(Side::Inside).collect();
    let prefixes: Vec<Ipv4Net> = inside.iter().flat_map(|interface| interface.prefixes.iter().copied()).collect();
    let all_have_prefixes = inside.iter().all(|interface| !interface.prefixes.is_empty());
    let servers = parts.forwards.iter().flat_map(|(forward, spots)| forward.servers.iter().zip(&spots.servers));
    for (server, spot) in servers {
        let found = server.address;
        let in_prefix = prefixes.iter().any(|prefix| prefix.contains(&found));
        if let Some(pool) = pool_of(&ForwardAddress::Address(found), parts.pools) {
            report.fault(spot, Problem::ServerExternal { found, pool: pool.name.clone() });
        } else if !in_prefix && all_have_prefixes && !inside.is_empty() {
            report.fault(spot, Problem::ServerOutside { found, prefixes: prefixes.clone() });
        } else if !in_prefix && !is_private(found) {
            report.fault(spot, Problem::ServerOutside { found, prefixes: Vec::new() });
        }
    }
}

/// The pool that has an external address.
fn pool_of<'p>(address: &ForwardAddress, pools: &'p Pools) -> Option<&'p Pool> {
    let has = |entry: &PoolEntry| match (entry, address) {
        (PoolEntry::Addresses(range), ForwardAddress::Address(address)) => range.contains(*address),
        (PoolEntry::Interface(name), ForwardAddress::Interface(wanted)) => name == wanted,
        _ => false,
    };
    pools.entries().find(|(_, entry, _)| has(entry)).map(|(pool, _, _)| pool)
}

/// The ports of a pool that mappings may take, before forwards and the host take theirs.
pub(crate) fn port_set(pool: &Pool) -> PortSet {
    let mut set = PortSet::empty();
    for range in pool.ports.as_deref().unwrap_or(&[DEFAULT_PORTS]) {
        set.insert_range(range.first, range.last);
    }
    set
}

/// Warns of external addresses whose every port is forwarded. Only the few that have forwards are looked at.
fn doubt_port_use(parts: &Parts<'_>, report: &mut Report) {
    let mut by_address: Vec<_> = parts.forwards.iter().map(|(forward, spots)| (&forward.address, forward.ports, spots)).collect();
    by_address.sort_by_key(|&(address, ports, _)| (address, ports));
    for group in by_address.chunk_by(|one, other| one.0 == other.0) {
        let Some((address, _, spots)) = group.first() else { continue };
        let Some(pool) = pool_of(address, parts.pools) else { continue };
        let mut left = port_set(pool);
        for (_, ports, _) in group {
            left.remove_range(ports.first, ports.last);
        }
        if left.is_empty() {
            report.warning(&spots.external, Doubt::NoPortLeft { address: address.to_string(), pool: pool.name.clone() });
        }
    }
}
