//! What changed between two snapshots, in words for an operator: the configured interfaces, the default route, the next hops.
//!
//! Knows snapshots only. Called by the mirror before it publishes. Invariant: silence about what is not watched.
//! Tests: below, on hand-made snapshots.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::state::{Address, Hop, IfIndex, KernelState, Link, RouteEntry, RouteKey, Table, Target};

/// Whether a line is a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// Something works, or works again.
    Info,
    /// Something that packets need is missing.
    Warn,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line(Level, String);

/// Logs that a rule is not followed.
pub(super) fn warn_of_rule(rule: &str) {
    tracing::warn!("policy routing is not followed: translated packets ignore the rule \"{rule}\"");
}

/// Finds the changes; keeps the gateways of the last route table that it has seen.
#[derive(Default)]
pub(super) struct Narrator {
    gateways: HashSet<(IfIndex, Ipv4Addr)>,
    gateways_of: Option<Arc<BTreeMap<RouteKey, Arc<[RouteEntry]>>>>,
}

impl Narrator {
    /// Logs what changed from `old` to `new` about the `watched` interfaces.
    pub(super) fn tell(&mut self, old: &KernelState, new: &KernelState, watched: &[String]) {
        for Line(level, text) in self.lines(old, new, watched) {
            match level {
                Level::Info => tracing::info!("{text}"),
                Level::Warn => tracing::warn!("{text}"),
            }
        }
        new.rules.difference(&old.rules).for_each(|rule| warn_of_rule(rule));
    }

    fn lines(&mut self, old: &KernelState, new: &KernelState, watched: &[String]) -> Vec<Line> {
        let mut lines = Vec::new();
        for name in watched {
            let (before, after) = (old.link(name), new.link(name));
            links(name, before, after, &mut lines);
            let old_addresses = before.map_or(&[][..], |(index, _)| old.addresses_of(index));
            let new_addresses = after.map_or(&[][..], |(index, _)| new.addresses_of(index));
            addresses(name, old_addresses, new_addresses, &mut lines);
        }
        let (before, after) = (default_route(old), default_route(new));
        if before != after {
            lines.push(default_line(before, after));
        }
        if !Arc::ptr_eq(&old.neighbours, &new.neighbours) {
            self.neighbours(old, new, watched, &mut lines);
        }
        lines
    }

    fn neighbours(&mut self, old: &KernelState, new: &KernelState, watched: &[String], lines: &mut Vec<Line>) {
        self.learn_gateways(new);
        for &(index, address) in &self.gateways {
            // A link that is down has lost its neighbours, and its own line says so.
            let Some(link) = new.links.get(&index).filter(|link| link.up && watched.contains(&link.name)) else { continue };
            let name = &link.name;
            let key = (index, address);
            match (old.neighbours.get(&key), new.neighbours.get(&key)) {
                (Some(_), None) => lines.push(Line(Level::Warn, format!("next hop {address} on {name} does not answer any more"))),
                (None, Some(now)) => lines.push(Line(Level::Info, format!("next hop {address} on {name} is at {}", mac(now.mac)))),
                (Some(was), Some(now)) if was.mac != now.mac => lines.push(Line(
                    Level::Info,
                    format!("next hop {address} on {name} moved from {} to {}", mac(was.mac), mac(now.mac)),
                )),
                _ => {}
            }
        }
    }

    fn learn_gateways(&mut self, state: &KernelState) {
        if self.gateways_of.as_ref().is_some_and(|routes| Arc::ptr_eq(routes, &state.routes)) {
            return;
        }
        let hops = state.routes.values().flat_map(|entries| entries.iter()).filter_map(|entry| match &entry.target {
            Target::Hops(hops) => Some(hops.iter()),
            _ => None,
        });
        self.gateways = hops.flatten().filter_map(|hop| Some((hop.interface, hop.gateway?))).collect();
        self.gateways_of = Some(Arc::clone(&state.routes));
    }
}

fn links(name: &str, before: Option<(IfIndex, &Link)>, after: Option<(IfIndex, &Link)>, lines: &mut Vec<Line>) {
    let mut say = |level, text: String| lines.push(Line(level, format!("interface {name} {text}")));
    match (before, after) {
        (Some(_), None) => say(Level::Warn, "is gone".into()),
        (None, Some((index, link))) => {
            say(Level::Info, format!("has appeared (index {index}, {}, MTU {}, {})", mac(link.mac), link.mtu, up(link)));
        }
        (Some((old_index, old)), Some((index, link))) => {
            if old_index != index {
                say(Level::Info, format!("is another device now (index {index}, was {old_index})"));
            }
            if old.up != link.up {
                say(if link.up { Level::Info } else { Level::Warn }, format!("is {}", up(link)));
            }
            if old.mtu != link.mtu {
                say(Level::Info, format!("has MTU {} now, was {}", link.mtu, old.mtu));
            }
            if old.mac != link.mac {
                say(Level::Info, format!("has the address {} now, was {}", mac(link.mac), mac(old.mac)));
            }
            if old.vlan != link.vlan {
                say(Level::Warn, "changed its VLAN".into());
            }
        }
        (None, None) => {}
    }
}

fn up(link: &Link) -> &'static str {
    match (link.up, link.enabled) {
        (true, _) => "up",
        (false, true) => "down: no carrier",
        (false, false) => "down",
    }
}

fn addresses(name: &str, before: &[Address], after: &[Address], lines: &mut Vec<Line>) {
    let has = |list: &[Address], prefix| list.iter().any(|address| address.prefix == prefix);
    for address in before.iter().filter(|address| !address.is_marked_claim() && !has(after, address.prefix)) {
        lines.push(Line(Level::Warn, format!("address {} removed from {name}", address.prefix)));
    }
    for address in after.iter().filter(|address| !address.is_marked_claim() && !has(before, address.prefix)) {
        lines.push(Line(Level::Info, format!("address {} added to {name}", address.prefix)));
    }
}

/// The default route that counts, as words: the selected one of the first table that has one.
fn default_route(state: &KernelState) -> Option<String> {
    let entries = [Table::Main, Table::Default].iter().find_map(|&table| state.routes.get(&(table, Ipv4Net::default())))?;
    let (entry, hop) = state.select(entries)?;
    Some(match hop {
        Some(hop) => hop_words(state, hop),
        None if entry.target == Target::Unreachable => "unreachable".into(),
        None => "not through a plain next hop".into(),
    })
}

fn hop_words(state: &KernelState, hop: Hop) -> String {
    let mut words = String::new();
    if let Some(gateway) = hop.gateway {
        let _ = write!(words, "via {gateway} ");
    }
    let name = state.links.get(&hop.interface).map_or("an unknown interface", |link| &link.name);
    let down = if state.is_up(hop.interface) { "" } else { " (down)" };
    let _ = write!(words, "dev {name}{down}");
    words
}

fn default_line(before: Option<String>, after: Option<String>) -> Line {
    match (before, after) {
        (Some(old), Some(new)) => Line(Level::Info, format!("default route is {new} now, was {old}")),
        (None, Some(new)) => Line(Level::Info, format!("default route is {new} now, there was none")),
        (Some(old), None) => Line(Level::Warn, format!("default route is gone, was {old}")),
        (None, None) => Line(Level::Info, String::new()),
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
