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
