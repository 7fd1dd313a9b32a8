//! Where a packet to an address leaves: the route and the neighbour together, remembered by address.
//!
//! Knows one network snapshot. Called for every packet, for its destination and (source check) its source. Invariant: what is remembered
//! was looked up in the snapshot in use. **Cost:** one cache line when remembered, else a longest-prefix match and a hash look-up.

use core::net::Ipv4Addr;

use crate::adjacency::Adjacencies;
use crate::policy::{DeviceId, InterfaceId, Mac, NeighbourKey, Network, Route, Side};
use crate::time::Tick;

/// A way out of the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) interface: InterfaceId,
    pub(crate) device: DeviceId,
    pub(crate) vlan: Option<u16>,
    pub(crate) side: Side,
    pub(crate) up: bool,
    /// The largest datagram, the route's or the interface's.
    pub(crate) mtu: u16,
    pub(crate) source_mac: Mac,
    pub(crate) next_hop: Ipv4Addr,
    /// The next hop's link-layer address, when it is known.
    pub(crate) next_hop_mac: Option<Mac>,
}

/// What the network says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    Via(Path),
    Local,
    Elsewhere,
    Nowhere,
}

/// Addresses remembered. Chosen to keep the table in the second-level cache.
const REMEMBERED: usize = 1024;

#[derive(Clone, Copy)]
struct Entry {
    address: Ipv4Addr,
    /// The snapshot that it was looked up in; zero for never.
    epoch: u32,
    whereabouts: Whereabouts,
}

/// Next hops noted at once, for whoever keeps them fresh; more are noted when they are next looked up.
const NOTED: usize = 64;

/// How long a path is remembered at most, so that next hops in use are noted again and again. **Units:** milliseconds.
const REMEMBERED_FOR: u32 = 10_000;

/// The paths looked up lately.
pub(crate) struct Paths {
    entries: Box<[Entry]>,
    epoch: u32,
    /// The routes, where they are few.
    few: Option<Vec<Few>>,
    /// When the epoch began.
    since: Tick,
    used: Vec<NeighbourKey>,
    /// Whether those of the adjacencies have still to be noted in this epoch.
    notes_adjacencies: bool,
}

impl Paths {
    pub(crate) fn new(now: Tick) -> Self {
        let nothing = Entry { address: Ipv4Addr::UNSPECIFIED, epoch: 0, whereabouts: Whereabouts::Nowhere };
        Self {
            entries: vec![nothing; REMEMBERED].into_boxed_slice(),
            epoch: 1,
            few: None,
            since: now,
            used: Vec::with_capacity(NOTED),
            notes_adjacencies: false,
        }
    }

    /// Forgets everything: `network` is the snapshot in use from now on.
    pub(crate) fn adopt(&mut self, network: &Network) {
        self.forget();
        self.few = (network.routes.len() <= FEW).then(|| few_of(network));
    }

    fn forget(&mut self) {
        self.epoch += 1;
    }

    /// Where `address` is. By reference: it is copied by those alone who need all of it.
    #[inline]
    pub(crate) fn towards(&mut self, network: &Network, address: Ipv4Addr) -> &Whereabouts {
        let bits = address.to_bits();
        let entry = &mut self.entries[((bits ^ bits >> 10) as usize) % REMEMBERED];
        if entry.epoch != self.epoch || entry.address != address {
            let whereabouts = match &self.few {
                Some(few) => look_through(few, network, address),
                None => look_up(network, address),
            };
            *entry = Entry { address, epoch: self.epoch, whereabouts };
            if let Whereabouts::Via(path) = entry.whereabouts
                && path.next_hop_mac.is_some()
            {
                note(&mut self.used, (path.interface, path.next_hop));
            }
        }
        &entry.whereabouts
    }

    /// Forgets what has been remembered for long, so that next hops still in use are noted anew, those of the fast path's too: a few in
    /// each call, once in each epoch.
    pub(crate) fn refresh(&mut self, now: Tick, adjacencies: &mut Adjacencies) {
        if now.since(self.since) >= REMEMBERED_FOR {
            self.since = now;
            self.forget();
            self.notes_adjacencies = true;
        }
        if self.notes_adjacencies && self.used.len() < NOTED / 2 {
            let used = &mut self.used;
            self.notes_adjacencies = !adjacencies.note_used(|neighbour| note(used, neighbour));
        }
    }

    /// The next hops with a known address that were looked up since the last call.
    pub(crate) fn take_used(&mut self) -> impl Iterator<Item = NeighbourKey> + '_ {
        self.used.drain(..)
    }
}

/// Up to so many routes are looked through one by one, longest prefix first, which takes fewer steps than the descent of a trie.
const FEW: usize = 16;

/// One of few routes.
#[derive(Clone, Copy, Debug)]
struct Few {
    address: u32,
    mask: u32,
    leads: Leads,
}

/// Where one of few routes leads.
#[derive(Clone, Copy, Debug)]
enum Leads {
    /// All of its destinations to the same place.
    To(Whereabouts),
    /// Each to itself as next hop.
    Directly { interface: InterfaceId, mtu: Option<u16> },
}

/// The routes of a network, longest prefix first.
fn few_of(network: &Network) -> Vec<Few> {
    let mut few: Vec<_> = network.routes.iter().map(|(prefix, route)| few_from(network, prefix, route)).collect();
    few.sort_unstable_by_key(|route| core::cmp::Reverse(route.mask));
    few
}

fn few_from(network: &Network, prefix: ipnet::Ipv4Net, route: &Route) -> Few {
    let leads = match *route {
        Route::Via { interface, gateway: None, mtu } => Leads::Directly { interface, mtu },
        _ => Leads::To(whereabouts(network, Some(*route), prefix.addr())),
    };
    Few { address: prefix.network().to_bits(), mask: prefix.netmask().to_bits(), leads }
}

/// Where `address` is, by few routes.
fn look_through(few: &[Few], network: &Network, address: Ipv4Addr) -> Whereabouts {
    let bits = address.to_bits();
    match few.iter().find(|route| bits & route.mask == route.address).map(|route| route.leads) {
        Some(Leads::To(whereabouts)) => whereabouts,
        Some(Leads::Directly { interface, mtu }) => by_interface(network, interface, address, mtu),
        None => Whereabouts::Nowhere,
    }
}

fn note(used: &mut Vec<NeighbourKey>, neighbour: NeighbourKey) {
    if used.len() < NOTED && !used.contains(&neighbour) {
        used.push(neighbour);
    }
}

/// Where `address` is, by the snapshot itself.
pub(crate) fn look_up(network: &Network, address: Ipv4Addr) -> Whereabouts {
    whereabouts(network, network.route(address), address)
}

/// Where `address` is, which `route` leads to.
fn whereabouts(network: &Network, route: Option<Route>, address: Ipv4Addr) -> Whereabouts {
    match route {
        Some(Route::Via { interface, gateway, mtu }) => by_interface(network, interface, gateway.unwrap_or(address), mtu),
        Some(Route::Local) => Whereabouts::Local,
        Some(Route::Elsewhere) => Whereabouts::Elsewhere,
        Some(Route::Unreachable) | None => Whereabouts::Nowhere,
    }
}

fn by_interface(network: &Network, interface: InterfaceId, next_hop: Ipv4Addr, mtu: Option<u16>) -> Whereabouts {
    via(network, interface, next_hop, mtu).map_or(Whereabouts::Elsewhere, Whereabouts::Via)
}

/// The path over `interface` to `next_hop`. None when the snapshot has no such interface.
pub(crate) fn via(network: &Network, interface: InterfaceId, next_hop: Ipv4Addr, mtu: Option<u16>) -> Option<Path> {
    let link = network.interfaces.get(usize::from(interface.0))?;
    Some(Path {
        interface,
        device: link.device,
        vlan: link.vlan,
        side: link.side,
        up: link.up,
        mtu: mtu.map_or(link.mtu, |route| route.min(link.mtu)),
        source_mac: link.mac,
        next_hop,
        next_hop_mac: network.neighbours.get(&(interface, next_hop)).copied(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Interface;
    use proptest::prelude::*;

    fn interface(number: u8) -> Interface {
        Interface {
            name: format!("if{number}"),
            device: DeviceId(number),
            vlan: None,
            side: Side::Outside,
            mac: [2, 0, 0, 0, 0, number],
            addresses: Vec::new(),
            mtu: 1500,
            up: true,
            prefixes: Vec::new(),
            checksums: crate::policy::ReceivedChecksums::default(),
            mss: crate::policy::MssClamp::Off,
        }
    }

    proptest! {
        #[test]
        fn few_routes_lead_where_the_trie_says(
            routes in proptest::collection::vec((0_u32..64, 26_u8..=32, 0_u8..6), 0..FEW),
            addresses in proptest::collection::vec(0_u32..70, 1..20)
        ) {
            let mut network = Network { interfaces: vec![interface(0), interface(1)], ..Network::default() };
            network.neighbours.insert((InterfaceId(1), Ipv4Addr::from_bits(5)), [5; 6]);
            for (address, length, kind) in routes {
                let via = |gateway: Option<u32>| Route::Via {
                    interface: InterfaceId(u16::from(kind % 3)),
                    gateway: gateway.map(Ipv4Addr::from_bits),
                    mtu: (kind == 1).then_some(1400),
                };
                let route = [via(Some(5)), via(None), Route::Local, Route::Elsewhere, Route::Unreachable, via(Some(6))][usize::from(kind)];
                let prefix = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(address), length).expect("a length").trunc();
                network.routes.insert(prefix, route);
            }
            let mut paths = Paths::new(Tick(0));
            paths.adopt(&network);
            prop_assert!(paths.few.is_some());
            for address in addresses.into_iter().map(Ipv4Addr::from_bits) {
                prop_assert_eq!(*paths.towards(&network, address), look_up(&network, address));
            }
        }
    }

    #[test]
    fn a_new_snapshot_is_asked_again() {
        let destination = Ipv4Addr::new(192, 0, 2, 1);
        let mut network = Network::default();
        let mut paths = Paths::new(Tick(0));
        assert_eq!(*paths.towards(&network, destination), Whereabouts::Nowhere);
        network.interfaces.push(Interface { device: DeviceId(1), ..interface(1) });
        let gateway = Ipv4Addr::new(203, 0, 113, 2);
        let default = "0.0.0.0/0".parse().expect("a prefix");
        network.routes.insert(default, Route::Via { interface: InterfaceId(0), gateway: Some(gateway), mtu: Some(1400) });
        assert_eq!(*paths.towards(&network, destination), Whereabouts::Nowhere, "remembered");
        paths.adopt(&network);
        let Whereabouts::Via(path) = *paths.towards(&network, destination) else { panic!("a path") };
        assert_eq!((path.next_hop, path.mtu, path.next_hop_mac), (gateway, 1400, None));
        assert_eq!(paths.take_used().count(), 0, "an unknown neighbour is no used one");
        network.neighbours.insert((InterfaceId(0), gateway), [2; 6]);
        paths.adopt(&network);
        paths.towards(&network, destination);
        paths.towards(&network, destination);
        assert_eq!(paths.take_used().collect::<Vec<_>>(), [(InterfaceId(0), gateway)]);
        paths.refresh(Tick(REMEMBERED_FOR), &mut Adjacencies::new(ahash::RandomState::with_seeds(1, 2, 3, 4)));
        paths.towards(&network, destination);
        assert_eq!(paths.take_used().count(), 1, "noted again after a while");
    }
}
