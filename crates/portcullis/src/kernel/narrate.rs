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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::state::{CLAIM_PROTOCOL, Change, Neighbour, Placement};

    const OUT: IfIndex = 3;
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn link(up: bool) -> Link {
        Link { name: "out".into(), mac: [2, 0, 0, 0, 0, 0xAB], mtu: 1500, enabled: true, up, vlan: None }
    }

    fn address(prefix: &str, protocol: u8) -> Address {
        Address { prefix: prefix.parse().expect("prefix"), broadcast: None, secondary: false, no_prefix_route: false, protocol }
    }

    fn default_via(gateway: Ipv4Addr) -> Change {
        let hop = Hop { interface: OUT, gateway: Some(gateway) };
        let entry = RouteEntry { metric: 0, target: Target::Hops([hop].into()), mtu: None, identity: (4, 0, None) };
        Change::Route((Table::Main, Ipv4Net::default()), entry, Placement::Replace)
    }

    fn gateway_at(last: u8) -> Change {
        Change::Neighbour((OUT, GATEWAY), Neighbour { mac: [2, 0, 0, 0, 0, last], fixed: false })
    }

    fn base() -> KernelState {
        let mut state = KernelState::default();
        state.apply(Change::Link(OUT, link(true)));
        state.apply(Change::Address(OUT, address("192.0.2.2/24", 0)));
        state.apply(default_via(GATEWAY));
        state.apply(gateway_at(1));
        state
    }

    /// What is said when `changes` happen to [`base`].
    fn said(changes: &[Change]) -> Vec<String> {
        let (old, mut new) = (base(), base());
        for change in changes {
            new.apply(change.clone());
        }
        Narrator::default()
            .lines(&old, &new, &["out".into()])
            .into_iter()
            .map(|Line(level, text)| format!("{level:?}: {text}"))
            .collect()
    }

    #[test]
    fn an_interface_that_goes_down_is_told_once_and_its_neighbours_are_not() {
        assert_eq!(
            said(&[Change::Link(OUT, link(false)), Change::NeighbourGone((OUT, GATEWAY))]),
            [
                "Warn: interface out is down: no carrier",
                "Info: default route is via 192.0.2.1 dev out (down) now, was via 192.0.2.1 dev out"
            ]
        );
    }

    #[test]
    fn an_interface_that_comes_back_is_told_with_its_new_index() {
        let lines = said(&[Change::LinkGone(OUT), Change::Link(9, link(true))]);
        assert!(lines.contains(&"Info: interface out is another device now (index 9, was 3)".to_owned()), "{lines:?}");
        let lines = said(&[Change::LinkGone(OUT)]);
        assert_eq!(lines[0], "Warn: interface out is gone");
    }

    #[test]
    fn addresses_are_told_but_not_claimed_ones() {
        let gone = Change::AddressGone(OUT, address("192.0.2.2/24", 0));
        let new = Change::Address(OUT, address("192.0.2.9/24", 0));
        let claim = Change::Address(OUT, address("192.0.2.10/32", CLAIM_PROTOCOL));
        assert_eq!(
            said(&[gone, new, claim]),
            ["Warn: address 192.0.2.2/24 removed from out", "Info: address 192.0.2.9/24 added to out"]
        );
    }

    #[test]
    fn a_default_route_that_changes_or_goes_is_told() {
        let other = Ipv4Addr::new(192, 0, 2, 254);
        assert_eq!(said(&[default_via(other)]), ["Info: default route is via 192.0.2.254 dev out now, was via 192.0.2.1 dev out"]);
        let Change::Route(key, entry, _) = default_via(GATEWAY) else { unreachable!() };
        assert_eq!(said(&[Change::RouteGone(key, entry)]), ["Warn: default route is gone, was via 192.0.2.1 dev out"]);
    }

    #[test]
    fn a_next_hop_that_is_lost_or_moves_is_told_and_other_neighbours_are_not() {
        assert_eq!(said(&[Change::NeighbourGone((OUT, GATEWAY))]), ["Warn: next hop 192.0.2.1 on out does not answer any more"]);
        assert_eq!(said(&[gateway_at(7)]), ["Info: next hop 192.0.2.1 on out moved from 02:00:00:00:00:01 to 02:00:00:00:00:07"]);
        let other = (OUT, Ipv4Addr::new(192, 0, 2, 77));
        assert!(said(&[Change::Neighbour(other, Neighbour { mac: [2; 6], fixed: false })]).is_empty());
    }

    #[test]
    fn what_happens_to_other_interfaces_is_not_told() {
        let other = Link { name: "other".into(), ..link(true) };
        assert!(said(&[Change::Link(5, other), Change::Address(5, address("10.0.0.1/8", 0))]).is_empty());
        assert!(said(&[]).is_empty());
    }
}
