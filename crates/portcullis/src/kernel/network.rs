//! Snapshots as others need them: the NAT's network, the XDP program's prefixes, the host's addresses, a VLAN's device.
//!
//! Pure functions of a snapshot and the configured interfaces (and one file under /proc). Called by the control plane for every new
//! snapshot. Invariant: interface `i` of the result is configured interface `i`, there or not.
//! Sources: Linux `net/ipv4/fib_rules.c` for the order of the tables. Tests: below, on hand-made snapshots.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use portcullis_nat::policy::{DeviceId, Interface, InterfaceId, MssClamp, Network, ReceivedChecksums, Route, Side};

use super::KernelError;
use super::state::{Address, IfIndex, KernelState, RouteEntry, Table, Target};

/// An interface as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfiguredInterface {
    /// The kernel's name.
    pub(crate) name: String,
    /// Which way it looks.
    pub(crate) side: Side,
    /// The device that carries its frames: its own, or for a VLAN the parent's.
    pub(crate) device: DeviceId,
    /// The internal prefixes that are translated behind it; empty for all.
    pub(crate) prefixes: Vec<Ipv4Net>,
    /// What transport checksums the device's frames may have.
    pub(crate) checksums: ReceivedChecksums,
    /// What it does to the segment sizes of connections.
    pub(crate) mss: MssClamp,
}

/// A VLAN identifier that no frame has (IEEE 802.1Q reserves it): an interface that does not exist must match no frame.
const NO_VLAN: u16 = 0xFFF;

/// The network that the NAT works with. A configured interface that does not exist is there, but down and without addresses.
///
/// Of a prefix's routes the one of the lowest metric counts that has a next hop on a link that is up, and of its next hops the first
/// such one: one path at a time, so that a flow does not change its way from packet to packet. If none is up, the route stays and
/// leads to a link that is down. A table's routes count only where the tables before it have none.
///
/// **Cost:** cold, O(routes + neighbours).
pub(crate) fn network(state: &KernelState, configured: &[ConfiguredInterface]) -> Network {
    let ids = interface_ids(state, configured);
    let mut network = Network {
        interfaces: configured.iter().map(|interface| self::interface(state, interface)).collect(),
        ..Network::default()
    };
    for table in [Table::Local, Table::Main, Table::Default] {
        let entries = table_entries(state, table).filter(|&(prefix, _)| network.routes.get_lpm(&prefix).is_none());
        let routes: Vec<_> = entries.filter_map(|(prefix, entries)| Some((prefix, route(state, entries, &ids)?))).collect();
        for (prefix, route) in routes {
            network.routes.insert(prefix, route);
        }
    }
    for (&(index, address), neighbour) in state.neighbours.iter() {
        if let Some(&id) = ids.get(&index) {
            network.neighbours.insert((id, address), neighbour.mac);
        }
    }
    network
}

fn interface_ids(state: &KernelState, configured: &[ConfiguredInterface]) -> HashMap<IfIndex, InterfaceId> {
    let there = configured
        .iter()
        .enumerate()
        .filter_map(|(position, interface)| state.link(&interface.name).map(|(index, _)| (index, InterfaceId(position as u16))));
    there.collect()
}

fn interface(state: &KernelState, configured: &ConfiguredInterface) -> Interface {
    let base = Interface {
        name: configured.name.clone(),
        device: configured.device,
        vlan: Some(NO_VLAN),
        side: configured.side,
        mac: [0; 6],
        addresses: Vec::new(),
        mtu: 1500,
        up: false,
        prefixes: configured.prefixes.clone(),
        checksums: configured.checksums,
        mss: configured.mss,
    };
    let Some((index, link)) = state.link(&configured.name) else { return base };
    Interface {
        vlan: link.vlan.map(|vlan| vlan.id),
        mac: link.mac,
        addresses: own_addresses(state, index).map(|address| address.prefix).collect(),
        mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
        up: link.up,
        ..base
    }
}

/// A link's addresses in order, without claimed pool addresses: those are the NAT's, not the box's.
fn own_addresses(state: &KernelState, index: IfIndex) -> impl Iterator<Item = &Address> {
    state.addresses_of(index).iter().filter(|address| !address.is_marked_claim())
}

fn table_entries(state: &KernelState, table: Table) -> impl Iterator<Item = (Ipv4Net, &[RouteEntry])> {
    let from = (table, Ipv4Net::default());
    state
        .routes
        .range(from..)
        .take_while(move |((other, _), _)| *other == table)
        .map(|((_, prefix), entries)| (*prefix, &**entries))
}

/// The route of one prefix. A throw route ends the search as an unreachable one: the next table's routes inside its prefix are not
/// looked for, which fails closed.
fn route(state: &KernelState, entries: &[RouteEntry], ids: &HashMap<IfIndex, InterfaceId>) -> Option<Route> {
    let (entry, hop) = state.select(entries)?;
    Some(match (&entry.target, hop) {
        (Target::Hops(_), Some(hop)) => match ids.get(&hop.interface) {
            Some(&interface) => {
                Route::Via { interface, gateway: hop.gateway, mtu: entry.mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX)) }
            }
            None => Route::Elsewhere,
        },
        (Target::Local(_), _) => Route::Local,
        (Target::Unreachable | Target::Throw, _) => Route::Unreachable,
        (Target::Foreign | Target::Hops(_), _) => Route::Elsewhere,
    })
}

/// What the XDP program leaves to the kernel, by destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steering {
    /// The box's own addresses and broadcasts, loopback, multicast. Claimed pool addresses are not among them.
    pub(crate) own: Vec<Ipv4Net>,
    /// Prefixes that are routed to inside interfaces: what goes there is not translated.
    pub(crate) inside: Vec<Ipv4Net>,
    /// Prefixes within one of `inside` that are routed elsewhere; the longest match decides.
    pub(crate) not_inside: Vec<Ipv4Net>,
}

/// The destinations that belong to the kernel, given the network made of the same snapshot. `pool` are the external addresses that are not the box's own: were they claimed by a
/// kernel that does not keep the mark, they would look like the box's.
///
/// A default route to an inside interface counts for nothing here: it would take all traffic from the NAT.
pub(crate) fn steering_prefixes(state: &KernelState, network: &Network, pool: &[Ipv4Addr]) -> Steering {
    let claimed = claimed_addresses(state, pool);
    let mut own: BTreeSet<Ipv4Net> = [Ipv4Net::from(Ipv4Addr::BROADCAST), MULTICAST, LOOPBACK].into();
    let local = table_entries(state, Table::Local)
        .filter(|(_, entries)| entries.iter().any(|entry| matches!(entry.target, Target::Local(_))));
    own.extend(local.map(|(prefix, _)| prefix).filter(|prefix| !(prefix.prefix_len() == 32 && claimed.contains(&prefix.addr()))));

    let side = |id: InterfaceId| network.interfaces.get(usize::from(id.0)).map(|interface| interface.side);
    let leads_inside = |route: &Route| matches!(route, Route::Via { interface, .. } if side(*interface) == Some(Side::Inside));
    let mut steering = Steering { own: own.into_iter().collect(), ..Steering::default() };
    let routes = network.routes.iter().filter(|(prefix, route)| prefix.prefix_len() > 0 && **route != Route::Local);
    let (inside, others): (Vec<_>, Vec<_>) = routes.partition(|(_, route)| leads_inside(route));
    steering.inside = inside.into_iter().map(|(prefix, _)| prefix).collect();
    let within = |prefix: &Ipv4Net| steering.inside.iter().any(|inside| inside.contains(prefix));
    steering.not_inside = others.into_iter().map(|(prefix, _)| prefix).filter(within).collect();
    steering
}

const MULTICAST: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// The addresses that are claimed pool addresses and nothing else: marked, or /32 without a route and in the pool.
fn claimed_addresses(state: &KernelState, pool: &[Ipv4Addr]) -> BTreeSet<Ipv4Addr> {
    let all = || state.addresses.values().flatten();
    let is_claim = |address: &Address| {
        let bare = address.prefix.prefix_len() == 32 && address.no_prefix_route;
        address.is_marked_claim() || (bare && pool.contains(&address.prefix.addr()))
    };
    let owned: BTreeSet<_> = all().filter(|address| !is_claim(address)).map(|address| address.prefix.addr()).collect();
    all()
        .filter(|address| is_claim(address))
        .map(|address| address.prefix.addr())
        .filter(|address| !owned.contains(address))
        .collect()
}

/// The box's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostAddresses {
    /// For each configured interface its addresses, the primary first.
    pub(crate) interfaces: Vec<(String, Vec<Ipv4Net>)>,
    /// All local addresses, on whatever interface, ascending.
    pub(crate) local: Vec<Ipv4Addr>,
}

/// The box's own addresses, without claimed pool addresses.
pub(crate) fn host_addresses(state: &KernelState, configured: &[ConfiguredInterface], pool: &[Ipv4Addr]) -> HostAddresses {
    let claimed = claimed_addresses(state, pool);
    let of = |name: &str| -> Vec<Ipv4Net> {
        let Some((index, _)) = state.link(name) else { return Vec::new() };
        own_addresses(state, index).map(|address| address.prefix).filter(|prefix| !claimed.contains(&prefix.addr())).collect()
    };
    let local: BTreeSet<_> = state
        .addresses
        .values()
        .flatten()
        .map(|address| address.prefix.addr())
        .filter(|address| !claimed.contains(address))
        .collect();
    HostAddresses {
        interfaces: configured.iter().map(|interface| (interface.name.clone(), of(&interface.name))).collect(),
        local: local.into_iter().collect(),
    }
}

/// The ports that the host's own programs take when they do not ask for one, first and last included.
///
/// **Errors:** [`KernelError::Proc`].
pub(crate) fn local_port_range() -> Result<(u16, u16), KernelError> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";
    let proc_error = |error| KernelError::Proc { path: PATH.into(), error };
    let text = std::fs::read_to_string(PATH).map_err(proc_error)?;
    parse_port_range(&text).ok_or_else(|| proc_error(io::Error::new(io::ErrorKind::InvalidData, "expected two port numbers")))
}

fn parse_port_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let range = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (numbers.next().is_none() && range.0 <= range.1).then_some(range)
}

/// The device that a configured interface's frames come through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// The device's name: the interface itself, or a VLAN's parent.
    pub(crate) device: String,
    /// The device's index.
    pub(crate) index: IfIndex,
    /// The tag of its frames.
    pub(crate) vlan: Option<u16>,
}

/// Why an interface has no device that can be attached to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttachmentError {
    /// No such interface.
    #[error("there is no interface {0}; `ip link` lists those that exist")]
    Missing(String),
    /// The VLAN's device cannot be seen from here.
    #[error("the device below the VLAN interface {0} is in another network namespace; configure an interface of this one")]
    ParentElsewhere(String),
    /// A VLAN on a VLAN.
    #[error("interface {0} is a VLAN on a VLAN, which is not supported; configure the outer VLAN's interface, or remove one tag")]
    Stacked(String),
    /// Not 802.1Q.
    #[error("interface {0} is an 802.1ad VLAN, which is not supported; use protocol 802.1Q")]
    ServiceTag(String),
}

/// Where to attach for the interface of that name.
///
/// **Errors:** the interface does not exist, or is a kind of VLAN that is not supported.
pub(crate) fn attachment(state: &KernelState, name: &str) -> Result<Attachment, AttachmentError> {
    let (index, link) = state.link(name).ok_or_else(|| AttachmentError::Missing(name.into()))?;
    let Some(vlan) = link.vlan else { return Ok(Attachment { device: name.into(), index, vlan: None }) };
    if !vlan.customer_tag {
        return Err(AttachmentError::ServiceTag(name.into()));
    }
    let parent = vlan.parent.and_then(|parent| Some((parent, state.links.get(&parent)?)));
    let (index, parent) = parent.ok_or_else(|| AttachmentError::ParentElsewhere(name.into()))?;
    if parent.vlan.is_some() {
        return Err(AttachmentError::Stacked(name.into()));
    }
    Ok(Attachment { device: parent.name.clone(), index, vlan: Some(vlan.id) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kernel::state::{CLAIM_PROTOCOL, Change, Hop, Link, Neighbour, Placement, Vlan};

    const IN: IfIndex = 2;
    const OUT: IfIndex = 3;
    const OTHER: IfIndex = 4;
    const BACKUP: IfIndex = 5;

    fn link(name: &str, up: bool) -> Link {
        Link { name: name.into(), mac: [2, 0, 0, 0, 0, 1], mtu: 1500, enabled: true, up, vlan: None }
    }

    fn address(prefix: &str) -> Address {
        let prefix: Ipv4Net = prefix.parse().expect("prefix");
        Address { prefix, broadcast: None, secondary: false, no_prefix_route: false, protocol: 0 }
    }

    fn claim(address_text: &str, protocol: u8) -> Address {
        Address { no_prefix_route: true, protocol, ..address(address_text) }
    }

    fn entry(metric: u32, target: Target) -> RouteEntry {
        RouteEntry { metric, target, mtu: None, identity: (4, 0, None) }
    }

    fn via(interface: IfIndex, gateway: &str) -> Target {
        hops(&[(interface, gateway)])
    }

    fn hops(hops: &[(IfIndex, &str)]) -> Target {
        let hops: Vec<_> = hops.iter().map(|&(interface, gateway)| Hop { interface, gateway: gateway.parse().ok() }).collect();
        Target::Hops(hops.into())
    }

    fn state() -> KernelState {
        let mut state = KernelState::default();
        for (index, name) in [(IN, "in"), (OUT, "out"), (OTHER, "other"), (BACKUP, "backup")] {
            state.apply(Change::Link(index, link(name, true)));
        }
        state.apply(Change::Address(IN, address("10.0.0.1/24")));
        state.apply(Change::Address(OUT, address("192.0.2.2/24")));
        add(&mut state, Table::Local, "10.0.0.1/32", entry(0, Target::Local(Some(IN))));
        add(&mut state, Table::Local, "10.0.0.255/32", entry(0, Target::Local(Some(IN))));
        add(&mut state, Table::Local, "192.0.2.2/32", entry(0, Target::Local(Some(OUT))));
        add(&mut state, Table::Main, "10.0.0.0/24", entry(0, via(IN, "")));
        add(&mut state, Table::Main, "192.0.2.0/24", entry(0, via(OUT, "")));
        add(&mut state, Table::Main, "0.0.0.0/0", entry(0, via(OUT, "192.0.2.1")));
        state
    }

    fn add(state: &mut KernelState, table: Table, prefix: &str, entry: RouteEntry) {
        let prefix = prefix.parse().expect("prefix");
        assert!(state.apply(Change::Route((table, prefix), entry, Placement::Last)).changed);
    }

    fn configured() -> Vec<ConfiguredInterface> {
        let interface = |name: &str, side, device| ConfiguredInterface {
            name: name.into(),
            side,
            device: DeviceId(device),
            prefixes: Vec::new(),
            checksums: ReceivedChecksums::default(),
            mss: MssClamp::Off,
        };
        vec![interface("in", Side::Inside, 0), interface("out", Side::Outside, 1), interface("backup", Side::Outside, 2)]
    }

    /// Whether a packet to `destination` belongs to the kernel: its own, or by the longest match inside.
    fn is_kernels(steering: &Steering, destination: Ipv4Addr) -> bool {
        let longest = |prefixes: &[Ipv4Net]| prefixes.iter().filter(|p| p.contains(&destination)).map(Ipv4Net::prefix_len).max();
        let own = steering.own.iter().any(|prefix| prefix.contains(&destination));
        own || longest(&steering.inside) > longest(&steering.not_inside)
    }

    fn route_to(state: &KernelState, destination: &str) -> Option<Route> {
        network(state, &configured()).route(destination.parse().expect("address"))
    }

    fn via_route(interface: u16, gateway: &str) -> Route {
        Route::Via { interface: InterfaceId(interface), gateway: gateway.parse().ok(), mtu: None }
    }

    #[test]
    fn each_kind_of_route_leads_where_the_kernel_would_send() {
        let mut state = state();
        add(&mut state, Table::Main, "10.3.0.0/16", entry(0, Target::Unreachable));
        add(&mut state, Table::Main, "10.4.0.0/16", entry(0, Target::Throw));
        add(&mut state, Table::Main, "10.5.0.0/16", entry(0, via(OTHER, "172.16.0.1")));
        add(&mut state, Table::Main, "10.6.0.0/16", entry(0, Target::Foreign));
        assert_eq!(route_to(&state, "10.0.0.9"), Some(via_route(0, "")));
        assert_eq!(route_to(&state, "203.0.113.9"), Some(via_route(1, "192.0.2.1")));
        assert_eq!(route_to(&state, "10.0.0.1"), Some(Route::Local));
        assert_eq!(route_to(&state, "10.0.0.255"), Some(Route::Local));
        assert_eq!(route_to(&state, "10.3.1.1"), Some(Route::Unreachable));
        assert_eq!(route_to(&state, "10.4.1.1"), Some(Route::Unreachable));
        assert_eq!(route_to(&state, "10.5.1.1"), Some(Route::Elsewhere));
        assert_eq!(route_to(&state, "10.6.1.1"), Some(Route::Elsewhere));
    }

    #[test]
    fn the_lowest_metric_wins_and_the_next_takes_over_when_its_link_is_down() {
        let mut state = state();
        add(&mut state, Table::Main, "0.0.0.0/0", entry(100, via(BACKUP, "198.51.100.1")));
        assert_eq!(route_to(&state, "203.0.113.9"), Some(via_route(1, "192.0.2.1")));
        state.apply(Change::Link(OUT, link("out", false)));
        assert_eq!(route_to(&state, "203.0.113.9"), Some(via_route(2, "198.51.100.1")));
        state.apply(Change::Link(BACKUP, link("backup", false)));
        assert_eq!(route_to(&state, "203.0.113.9"), Some(via_route(1, "192.0.2.1")), "none is up: the route stays");
    }

    #[test]
    fn a_prefix_on_a_link_that_is_down_does_not_fall_to_the_default_route() {
        let mut state = state();
        state.apply(Change::Link(IN, link("in", false)));
        assert_eq!(route_to(&state, "10.0.0.9"), Some(via_route(0, "")));
        assert!(!network(&state, &configured()).interfaces[0].up);
    }

    #[test]
    fn of_several_next_hops_the_first_on_a_link_that_is_up_is_taken() {
        let mut state = state();
        add(&mut state, Table::Main, "10.7.0.0/16", entry(0, hops(&[(OUT, "192.0.2.7"), (BACKUP, "198.51.100.7")])));
        assert_eq!(route_to(&state, "10.7.0.1"), Some(via_route(1, "192.0.2.7")));
        state.apply(Change::Link(OUT, link("out", false)));
        assert_eq!(route_to(&state, "10.7.0.1"), Some(via_route(2, "198.51.100.7")));
    }

    #[test]
    fn an_earlier_table_hides_longer_prefixes_of_a_later_one() {
        let mut state = state();
        add(&mut state, Table::Local, "203.0.113.0/24", entry(0, Target::Local(None)));
        add(&mut state, Table::Main, "203.0.113.5/32", entry(0, via(OUT, "192.0.2.5")));
        add(&mut state, Table::Default, "198.18.0.0/15", entry(0, via(BACKUP, "198.51.100.1")));
        assert_eq!(route_to(&state, "203.0.113.5"), Some(Route::Local));
        assert_eq!(route_to(&state, "198.18.0.1"), Some(via_route(1, "192.0.2.1")), "the main table's default route comes first");
        let default = ((Table::Main, Ipv4Net::default()), entry(0, via(OUT, "192.0.2.1")));
        assert!(state.apply(Change::RouteGone(default.0, default.1)).changed);
        assert_eq!(route_to(&state, "198.18.0.1"), Some(via_route(2, "198.51.100.1")));
        assert_eq!(route_to(&state, "8.8.8.8"), None);
    }

    #[test]
    fn a_routes_own_mtu_is_kept() {
        let mut state = state();
        add(&mut state, Table::Main, "10.8.0.0/16", RouteEntry { mtu: Some(1400), ..entry(0, via(OUT, "192.0.2.1")) });
        assert!(matches!(route_to(&state, "10.8.0.1"), Some(Route::Via { mtu: Some(1400), .. })));
    }

    #[test]
    fn an_interface_that_does_not_exist_keeps_its_place_and_matches_no_frame() {
        let mut state = state();
        state.apply(Change::LinkGone(IN));
        let network = network(&state, &configured());
        assert_eq!(network.interfaces[0].name, "in");
        assert!(!network.interfaces[0].up);
        assert_eq!(network.interface_of(DeviceId(0), None), None);
        assert_eq!(network.interface_of(DeviceId(1), None), Some(InterfaceId(1)));
    }

    #[test]
    fn neighbours_of_configured_interfaces_are_there_and_others_are_not() {
        let mut state = state();
        let at = |last| Neighbour { mac: [2, 0, 0, 0, 0, last], fixed: false };
        state.apply(Change::Neighbour((OUT, Ipv4Addr::new(192, 0, 2, 1)), at(7)));
        state.apply(Change::Neighbour((OTHER, Ipv4Addr::new(172, 16, 0, 1)), at(8)));
        let network = network(&state, &configured());
        assert_eq!(network.neighbours.get(&(InterfaceId(1), Ipv4Addr::new(192, 0, 2, 1))), Some(&[2, 0, 0, 0, 0, 7]));
        assert_eq!(network.neighbours.len(), 1);
    }

    #[test]
    fn a_vlan_is_attached_at_its_parent_and_a_vlan_on_a_vlan_nowhere() {
        let mut state = state();
        let vlan = |name: &str, parent, customer_tag| Link { vlan: Some(Vlan { parent, id: 7, customer_tag }), ..link(name, true) };
        state.apply(Change::Link(10, vlan("in.7", Some(IN), true)));
        state.apply(Change::Link(11, vlan("twice", Some(10), true)));
        state.apply(Change::Link(12, vlan("service", Some(IN), false)));
        state.apply(Change::Link(13, vlan("afar", None, true)));
        assert_eq!(attachment(&state, "in"), Ok(Attachment { device: "in".into(), index: IN, vlan: None }));
        assert_eq!(attachment(&state, "in.7"), Ok(Attachment { device: "in".into(), index: IN, vlan: Some(7) }));
        assert_eq!(attachment(&state, "twice"), Err(AttachmentError::Stacked("twice".into())));
        assert_eq!(attachment(&state, "service"), Err(AttachmentError::ServiceTag("service".into())));
        assert_eq!(attachment(&state, "afar"), Err(AttachmentError::ParentElsewhere("afar".into())));
        assert_eq!(attachment(&state, "absent"), Err(AttachmentError::Missing("absent".into())));

        let mut interfaces = configured();
        let (name, side, device) = ("in.7".into(), Side::Inside, DeviceId(0));
        interfaces[2] = ConfiguredInterface { name, side, device, ..interfaces[2].clone() };
        let network = network(&state, &interfaces);
        assert_eq!(network.interface_of(DeviceId(0), Some(7)), Some(InterfaceId(2)));
        assert_eq!(network.interface_of(DeviceId(0), None), Some(InterfaceId(0)));
    }

    #[test]
    fn the_kernel_keeps_its_own_addresses_and_what_is_routed_inside() {
        let mut state = state();
        add(&mut state, Table::Main, "10.0.0.0/8", entry(0, via(IN, "10.0.0.2")));
        add(&mut state, Table::Main, "10.9.0.0/16", entry(0, via(OUT, "192.0.2.9")));
        add(&mut state, Table::Main, "10.9.1.0/24", entry(0, via(IN, "10.0.0.3")));
        let steering = steering_prefixes(&state, &network(&state, &configured()), &[]);
        let kernels = |address: &str| is_kernels(&steering, address.parse().expect("address"));
        for address in
            ["10.0.0.1", "192.0.2.2", "10.0.0.255", "127.0.0.1", "224.0.0.251", "255.255.255.255", "10.0.0.7", "10.9.1.1"]
        {
            assert!(kernels(address), "{address} is the kernel's");
        }
        for address in ["203.0.113.9", "192.0.2.1", "10.9.2.1"] {
            assert!(!kernels(address), "{address} is the NAT's");
        }
    }

    #[test]
    fn a_default_route_to_an_inside_interface_does_not_take_all_from_the_nat() {
        let mut state = state();
        let key = (Table::Main, Ipv4Net::default());
        state.apply(Change::Route(key, entry(0, via(IN, "10.0.0.2")), Placement::Replace));
        let steering = steering_prefixes(&state, &network(&state, &configured()), &[]);
        assert!(!is_kernels(&steering, Ipv4Addr::new(8, 8, 8, 8)));
    }

    #[test]
    fn claimed_pool_addresses_are_not_the_boxs_own() {
        let mut state = state();
        let (marked, unmarked, operators) =
            (Ipv4Addr::new(192, 0, 2, 10), Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12));
        state.apply(Change::Address(OUT, claim("192.0.2.10/32", CLAIM_PROTOCOL)));
        state.apply(Change::Address(OUT, claim("192.0.2.11/32", 0)));
        state.apply(Change::Address(OUT, claim("192.0.2.12/32", 0)));
        state.apply(Change::Address(OTHER, address("192.0.2.12/24")));
        for prefix in ["192.0.2.10/32", "192.0.2.11/32", "192.0.2.12/32"] {
            add(&mut state, Table::Local, prefix, entry(0, Target::Local(Some(OUT))));
        }
        let pool = [unmarked, operators];
        let steering = steering_prefixes(&state, &network(&state, &configured()), &pool);
        assert!(!is_kernels(&steering, marked) && !is_kernels(&steering, unmarked));
        assert!(is_kernels(&steering, operators), "it is an address of the box as well");
        let host = host_addresses(&state, &configured(), &pool);
        let expected = ["192.0.2.2/24", "192.0.2.12/32"].map(|prefix| prefix.parse().expect("prefix"));
        assert_eq!(host.interfaces[1], ("out".into(), expected.to_vec()));
        assert!(!host.local.contains(&marked) && host.local.contains(&operators));
    }

    #[test]
    fn a_port_range_is_two_ascending_numbers() {
        assert_eq!(parse_port_range("32768\t60999\n"), Some((32768, 60999)));
        for text in ["", "1", "5 4", "1 2 3", "a b", "1 70000"] {
            assert_eq!(parse_port_range(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_snapshot_that_differs_in_neighbours_shares_the_routes() {
        let before = state();
        let mut after = before.clone();
        after.apply(Change::Neighbour((OUT, Ipv4Addr::new(192, 0, 2, 1)), Neighbour { mac: [2; 6], fixed: false }));
        assert!(Arc::ptr_eq(&before.routes, &after.routes));
    }
}
