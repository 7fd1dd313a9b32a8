//! Netlink messages as changes of the mirrored state.
//!
//! Knows the messages' attributes; keeps nothing. Called by `mirror` for dumps and notifications alike.
//! Invariant: what the mirror does not follow (IPv6, bridges, other tables, cached routes) decodes to nothing.
//! Sources: `linux/rtnetlink.h`, `linux/if_addr.h`, `linux/neighbour.h`. Tests: below.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use portcullis_nat::policy::Mac;

use super::state::{Address, Change, Hop, IfIndex, Link, Neighbour, Placement, RouteEntry, RouteKey, Table, Target, Vlan};

/// The change that a message tells, or none when it is not the mirror's. `flags` are the netlink header's.
pub(super) fn change(message: &RouteNetlinkMessage, flags: u16) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewLink(link) => self::link(link),
        RouteNetlinkMessage::DelLink(link) => {
            (link.header.interface_family == AddressFamily::Unspec).then_some(Change::LinkGone(link.header.index))
        }
        RouteNetlinkMessage::NewAddress(message) => address(message).map(|(index, address)| Change::Address(index, address)),
        RouteNetlinkMessage::DelAddress(message) => address(message).map(|(index, address)| Change::AddressGone(index, address)),
        RouteNetlinkMessage::NewRoute(message) => route(message).map(|(key, entry)| Change::Route(key, entry, placement(flags))),
        RouteNetlinkMessage::DelRoute(message) => route(message).map(|(key, entry)| Change::RouteGone(key, entry)),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(message),
        RouteNetlinkMessage::DelNeighbour(message) => neighbour_key(message).map(Change::NeighbourGone),
        RouteNetlinkMessage::NewRule(message) => foreign_rule(message).map(Change::Rule),
        RouteNetlinkMessage::DelRule(message) => foreign_rule(message).map(Change::RuleGone),
        _ => None,
    }
}

/// How the kernel placed the route that it announces with these flags (Linux `net/ipv4/fib_trie.c`, `fib_table_insert`).
fn placement(flags: u16) -> Placement {
    if flags & NLM_F_REPLACE != 0 {
        Placement::Replace
    } else if flags & NLM_F_APPEND != 0 {
        Placement::Last
    } else {
        Placement::First
    }
}

/// A link; messages of another family (bridge ports) are about something else.
fn link(message: &LinkMessage) -> Option<Change> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let enabled = flags.contains(LinkFlags::Up);
    let mut link =
        Link { name: String::new(), mac: [0; 6], mtu: 0, enabled, up: enabled && flags.contains(LinkFlags::LowerUp), vlan: None };
    let mut lower = None;
    let mut lower_is_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = Mac::try_from(bytes.as_slice()).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => lower = Some(*index),
            LinkAttribute::LinkNetNsId(_) => lower_is_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => link.vlan = infos.iter().find_map(vlan),
            _ => {}
        }
    }
    if let Some(vlan) = &mut link.vlan {
        vlan.parent = if lower_is_elsewhere { None } else { lower };
    }
    Some(Change::Link(message.header.index, link))
}

fn vlan(info: &LinkInfo) -> Option<Vlan> {
    let LinkInfo::Data(InfoData::Vlan(attributes)) = info else { return None };
    let id = attributes.iter().find_map(|attribute| if let InfoVlan::Id(id) = attribute { Some(*id) } else { None })?;
    let service_tag = attributes.iter().any(|attribute| matches!(attribute, InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)));
    Some(Vlan { parent: None, id, customer_tag: !service_tag })
}

fn address(message: &AddressMessage) -> Option<(IfIndex, Address)> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut remote, mut broadcast, mut protocol) = (None, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) => remote = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(*address),
            AddressAttribute::Flags(wide) => flags = *wide,
            AddressAttribute::Protocol(value) => protocol = u8::from(*value),
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer's on a point-to-point link, and its prefix length counts for the peer (linux/if_addr.h).
    let own = local.or(remote)?;
    let prefix_len = if remote.is_none_or(|remote| remote == own) { message.header.prefix_len } else { 32 };
    let address = Address {
        prefix: Ipv4Net::new(own, prefix_len).ok()?,
        broadcast,
        secondary: flags.contains(AddressFlags::Secondary),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        protocol,
    };
    Some((message.header.index, address))
}

/// A route of the three tables. Routes for one type of service only are not followed: NAT'ed packets would need their own lookup.
fn route(message: &RouteMessage) -> Option<(RouteKey, RouteEntry)> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet || header.flags.contains(RouteFlags::Cloned) || header.tos != 0 {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let (mut metric, mut mtu, mut source) = (0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
            RouteAttribute::Metrics(metrics) => mtu = metrics.iter().find_map(route_mtu),
            _ => {}
        }
    }
    let table = match table {
        255 => Table::Local,
        254 => Table::Main,
        253 => Table::Default,
        _ => return None,
    };
    let prefix = Ipv4Net::new(destination, header.destination_prefix_length).ok()?.trunc();
    let identity = (u8::from(header.protocol), u8::from(header.scope), source);
    Some(((table, prefix), RouteEntry { metric, target: target(message), mtu, identity }))
}

fn route_mtu(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None }
}

fn target(message: &RouteMessage) -> Target {
    match message.header.kind {
        RouteType::Unicast => unicast(&message.attributes),
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            Target::Local(hop_of(&message.attributes, None).map(|hop| hop.interface))
        }
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => Target::Unreachable,
        RouteType::Throw => Target::Throw,
        _ => Target::Foreign,
    }
}

fn unicast(attributes: &[RouteAttribute]) -> Target {
    let multipath = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let hops: Option<Vec<Hop>> = match multipath {
        Some(hops) => hops.iter().map(|hop: &RouteNextHop| hop_of(&hop.attributes, Some(hop.interface_index))).collect(),
        None => hop_of(attributes, None).map(|hop| vec![hop]),
    };
    hops.filter(|hops| !hops.is_empty()).map_or(Target::Foreign, |hops| Target::Hops(hops.into()))
}

/// A next hop from its attributes, or none where it is not a plain IPv4 one.
fn hop_of(attributes: &[RouteAttribute], interface: Option<IfIndex>) -> Option<Hop> {
    let mut interface = interface;
    let mut gateway = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            RouteAttribute::Via(_) | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    Some(Hop { interface: interface?, gateway })
}

fn neighbour_key(message: &NeighbourMessage) -> Option<(IfIndex, Ipv4Addr)> {
    if message.header.family != AddressFamily::Inet || message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((message.header.ifindex, *address)),
        _ => None,
    })
}

/// A neighbour is usable in the states in which the kernel itself would send to it (`linux/neighbour.h`, `NUD_VALID`).
fn neighbour(message: &NeighbourMessage) -> Option<Change> {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    let key = neighbour_key(message)?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    let state = message.header.state;
    Some(match (state, mac) {
        (Reachable | Stale | Delay | Probe | Permanent | Noarp, Some(mac)) => {
            Change::Neighbour(key, Neighbour { mac, fixed: matches!(state, Permanent | Noarp) })
        }
        _ => Change::NeighbourGone(key),
    })
}

/// A rule beyond the kernel's three standard ones, in the words of `ip rule`; it is not followed.
fn foreign_rule(message: &RuleMessage) -> Option<String> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let header = &message.header;
    let mut priority = 0;
    let mut table = u32::from(header.table);
    let mut selectors = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) | RuleAttribute::Protocol(_) => {}
            RuleAttribute::Source(address) => selectors.push(format!("from {address}/{}", header.src_len)),
            RuleAttribute::Destination(address) => selectors.push(format!("to {address}/{}", header.dst_len)),
            RuleAttribute::Iifname(name) => selectors.push(format!("iif {name}")),
            RuleAttribute::Oifname(name) => selectors.push(format!("oif {name}")),
            RuleAttribute::FwMark(mark) => selectors.push(format!("fwmark {mark:#x}")),
            other => selectors.push(format!("{other:?}")),
        }
    }
    let standard = matches!((priority, table), (0, 255) | (32766, 254) | (32767, 253));
    if standard && selectors.is_empty() && header.action == RuleAction::ToTable {
        return None;
    }
    let action = match header.action {
        RuleAction::ToTable => format!("lookup {table}"),
        other => format!("{other:?}").to_lowercase(),
    };
    let selectors = if selectors.is_empty() { "from all".into() } else { selectors.join(" ") };
    Some(format!("{priority}: {selectors} {action}"))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLM_F_CREATE;
    use netlink_packet_route::address::AddressProtocol;
    use netlink_packet_route::link::InfoKind;
    use netlink_packet_route::rule::RuleHeader;

    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().expect("address")
    }

    fn link_message(flags: LinkFlags, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = flags;
        message.attributes = attributes;
        message
    }

    fn decoded_link(message: LinkMessage) -> Link {
        match change(&RouteNetlinkMessage::NewLink(message), 0) {
            Some(Change::Link(7, link)) => link,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_is_up_when_it_is_enabled_and_has_a_carrier() {
        for (flags, enabled, up) in [
            (LinkFlags::empty(), false, false),
            (LinkFlags::Up, true, false),
            (LinkFlags::LowerUp, false, false),
            (LinkFlags::Up | LinkFlags::LowerUp, true, true),
        ] {
            let link = decoded_link(link_message(flags, vec![LinkAttribute::Mtu(1400)]));
            assert_eq!((link.enabled, link.up, link.mtu), (enabled, up, 1400), "{flags:?}");
        }
    }

    #[test]
    fn a_vlan_has_its_tag_and_parent() {
        let vlan = |extra: Vec<LinkAttribute>, protocol| {
            let data = InfoData::Vlan(vec![InfoVlan::Protocol(protocol), InfoVlan::Id(100)]);
            let infos = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(data)]);
            decoded_link(link_message(LinkFlags::Up, [vec![LinkAttribute::Link(3), infos], extra].concat())).vlan
        };
        let expected = Vlan { parent: Some(3), id: 100, customer_tag: true };
        assert_eq!(vlan(vec![], VlanProtocol::Ieee8021Q), Some(expected));
        assert_eq!(vlan(vec![], VlanProtocol::Ieee8021Ad), Some(Vlan { customer_tag: false, ..expected }));
        assert_eq!(vlan(vec![LinkAttribute::LinkNetNsId(0)], VlanProtocol::Ieee8021Q), Some(Vlan { parent: None, ..expected }));
        assert_eq!(decoded_link(link_message(LinkFlags::Up, vec![LinkAttribute::Link(3)])).vlan, None, "a veth has a link as well");
    }

    #[test]
    fn a_bridge_port_that_goes_is_not_a_link_that_goes() {
        let mut message = link_message(LinkFlags::Up, vec![]);
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(change(&RouteNetlinkMessage::DelLink(message.clone()), 0), None);
        assert_eq!(change(&RouteNetlinkMessage::NewLink(message), 0), None);
    }

    #[test]
    fn an_address_has_its_subnet_and_that_of_a_point_to_point_link_is_its_own() {
        let decoded = |attributes| {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.prefix_len = 24;
            message.header.index = 7;
            message.attributes = attributes;
            match change(&RouteNetlinkMessage::NewAddress(message), 0) {
                Some(Change::Address(7, address)) => address,
                other => panic!("{other:?}"),
            }
        };
        let own = || AddressAttribute::Local(IpAddr::V4(ip("192.0.2.2")));
        let flags = AddressAttribute::Flags(AddressFlags::Secondary | AddressFlags::Noprefixroute);
        let mark = AddressAttribute::Protocol(AddressProtocol::Other(9));
        let address = decoded(vec![AddressAttribute::Address(IpAddr::V4(ip("192.0.2.2"))), own(), flags, mark]);
        assert_eq!(address.prefix.to_string(), "192.0.2.2/24");
        assert!(address.secondary && address.no_prefix_route && address.protocol == 9);
        let address = decoded(vec![AddressAttribute::Address(IpAddr::V4(ip("10.64.0.1"))), own()]);
        assert_eq!(address.prefix.to_string(), "192.0.2.2/32");
    }

    fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = 254;
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    fn gateway(text: &str) -> RouteAttribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip(text)))
    }

    #[test]
    fn each_type_of_route_has_its_target() {
        let target_of = |kind, attributes| route(&route_message(kind, attributes)).map(|(_, entry)| entry.target);
        let hop = Hop { interface: 3, gateway: Some(ip("192.0.2.1")) };
        assert_eq!(
            target_of(RouteType::Unicast, vec![RouteAttribute::Oif(3), gateway("192.0.2.1")]),
            Some(Target::Hops([hop].into()))
        );
        assert_eq!(target_of(RouteType::Unicast, vec![]), Some(Target::Foreign));
        for kind in [RouteType::Local, RouteType::Broadcast, RouteType::Anycast, RouteType::Multicast] {
            assert_eq!(target_of(kind, vec![RouteAttribute::Oif(3)]), Some(Target::Local(Some(3))));
        }
        for kind in [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit] {
            assert_eq!(target_of(kind, vec![]), Some(Target::Unreachable));
        }
        assert_eq!(target_of(RouteType::Throw, vec![]), Some(Target::Throw));
    }

    #[test]
    fn a_multipath_route_has_all_its_next_hops_in_order() {
        let hop = |interface, address| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = interface;
            hop.attributes = vec![gateway(address)];
            hop
        };
        let message =
            route_message(RouteType::Unicast, vec![RouteAttribute::MultiPath(vec![hop(3, "192.0.2.1"), hop(4, "192.0.2.9")])]);
        let hops = [(3, "192.0.2.1"), (4, "192.0.2.9")].map(|(interface, text)| Hop { interface, gateway: Some(ip(text)) });
        assert_eq!(route(&message).map(|(_, entry)| entry.target), Some(Target::Hops(hops.into())));
    }

    #[test]
    fn metric_mtu_prefix_and_table_are_the_messages() {
        let mut message = route_message(
            RouteType::Unicast,
            vec![
                RouteAttribute::Destination(RouteAddress::Inet(ip("10.1.0.0"))),
                RouteAttribute::Table(253),
                RouteAttribute::Priority(50),
                RouteAttribute::Metrics(vec![RouteMetric::Advmss(1200), RouteMetric::Mtu(1400)]),
                RouteAttribute::Oif(3),
            ],
        );
        message.header.destination_prefix_length = 16;
        message.header.table = 0;
        let (key, entry) = route(&message).expect("route");
        assert_eq!((key.0, key.1.to_string().as_str()), (Table::Default, "10.1.0.0/16"));
        assert_eq!((entry.metric, entry.mtu), (50, Some(1400)));
    }

    #[test]
    fn routes_of_other_tables_services_families_and_caches_are_not_followed() {
        let base = || route_message(RouteType::Unicast, vec![RouteAttribute::Oif(3)]);
        assert!(route(&base()).is_some());
        let altered = |alter: &dyn Fn(&mut RouteMessage)| {
            let mut message = base();
            alter(&mut message);
            route(&message)
        };
        assert_eq!(altered(&|message| message.header.table = 100), None);
        assert_eq!(altered(&|message| message.header.tos = 8), None);
        assert_eq!(altered(&|message| message.header.address_family = AddressFamily::Inet6), None);
        assert_eq!(altered(&|message| message.header.flags = RouteFlags::Cloned), None);
    }

    #[test]
    fn the_flags_of_a_notification_tell_the_routes_place() {
        assert_eq!(placement(NLM_F_CREATE), Placement::First);
        assert_eq!(placement(NLM_F_CREATE | NLM_F_APPEND), Placement::Last);
        assert_eq!(placement(NLM_F_CREATE | NLM_F_REPLACE), Placement::Replace);
    }

    #[test]
    fn a_neighbour_is_usable_in_the_valid_states_with_an_address_only() {
        let decoded = |state, mac: &[u8]| {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.ifindex = 3;
            message.header.state = state;
            message.attributes = vec![
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip("192.0.2.1"))),
                NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            ];
            change(&RouteNetlinkMessage::NewNeighbour(message), 0)
        };
        let key = (3, ip("192.0.2.1"));
        for state in [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Delay, NeighbourState::Probe] {
            assert_eq!(decoded(state, &[2; 6]), Some(Change::Neighbour(key, Neighbour { mac: [2; 6], fixed: false })));
        }
        for state in [NeighbourState::Permanent, NeighbourState::Noarp] {
            assert_eq!(decoded(state, &[2; 6]), Some(Change::Neighbour(key, Neighbour { mac: [2; 6], fixed: true })));
        }
        for state in [NeighbourState::Incomplete, NeighbourState::Failed, NeighbourState::None] {
            assert_eq!(decoded(state, &[2; 6]), Some(Change::NeighbourGone(key)));
        }
        assert_eq!(decoded(NeighbourState::Reachable, &[2; 20]), Some(Change::NeighbourGone(key)), "not an Ethernet address");
    }

    #[test]
    fn the_three_standard_rules_are_no_news_and_others_are_told_in_words() {
        let decoded = |priority, table: u8, extra: Vec<RuleAttribute>| {
            let mut message = RuleMessage::default();
            message.header = RuleHeader {
                family: AddressFamily::Inet,
                src_len: 16,
                table,
                action: RuleAction::ToTable,
                ..RuleHeader::default()
            };
            message.attributes =
                [vec![RuleAttribute::Priority(priority), RuleAttribute::SuppressPrefixLen(u32::MAX)], extra].concat();
            change(&RouteNetlinkMessage::NewRule(message), 0)
        };
        for (priority, table) in [(0, 255), (32766, 254), (32767, 253)] {
            assert_eq!(decoded(priority, table, vec![]), None);
        }
        assert_eq!(decoded(1000, 100, vec![]), Some(Change::Rule("1000: from all lookup 100".into())));
        let from = RuleAttribute::Source(IpAddr::V4(ip("10.9.0.0")));
        assert_eq!(decoded(32766, 254, vec![from]), Some(Change::Rule("32766: from 10.9.0.0/16 lookup 254".into())));
    }
}
