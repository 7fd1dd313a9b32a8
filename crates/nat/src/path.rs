//! Where a packet to an address leaves: the route and the neighbour together, remembered by address, or by route where routes are few.
//!
//! Knows one network snapshot. Called for every packet that takes the ordinary way, for its destination and (source check) its source, and
//! for both ends of a new session. Invariant: what is remembered was looked up in the snapshot in use. **Cost:** where routes are few,
//! some comparisons, and no more if the route leads all of its destinations to the same place; else one cache line when remembered, else a longest-prefix match
//! and a hash look-up.

use core::net::Ipv4Addr;

use wide::u32x4;

use crate::adjacency::{Adjacencies, Adjacency};
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
    few: Option<FewRoutes>,
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
        self.few = FewRoutes::of(network);
    }

    fn forget(&mut self) {
        self.epoch += 1;
    }

    /// Where `address` is. By reference: it is copied by those alone who need all of it.
    #[inline]
    pub(crate) fn towards(&mut self, network: &Network, address: Ipv4Addr) -> &Whereabouts {
        let Self { entries, epoch, few, used, .. } = self;
        let Some(few) = few else { return remembered(entries, (address, *epoch), used, || look_up(network, address)) };
        match few.find(address) {
            Some(Leads::To(lead)) => {
                lead.note(*epoch, used);
                &lead.whereabouts
            }
            Some(&mut Leads::Directly { interface, mtu }) => {
                remembered(entries, (address, *epoch), used, || by_interface(network, interface, address, mtu))
            }
            None => &Whereabouts::Nowhere,
        }
    }

    /// How packets to `address` leave as they are, if it is on that side and they can.
    #[inline]
    pub(crate) fn adjacency_towards(&mut self, network: &Network, address: Ipv4Addr, side: Side) -> Option<Adjacency> {
        if let Some(few) = &mut self.few
            && let Some(Leads::To(lead)) = few.find(address)
        {
            lead.note(self.epoch, &mut self.used);
            return lead.leaves.filter(|(of_route, _)| *of_route == side).map(|(_, adjacency)| adjacency);
        }
        match self.towards(network, address) {
            Whereabouts::Via(path) if path.side == side => Adjacency::of(path),
            _ => None,
        }
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
            self.notes_adjacencies = !adjacencies.note_used(|neighbour| {
                note(used, neighbour);
            });
        }
    }

    /// The next hops with a known address that were looked up since the last call.
    pub(crate) fn take_used(&mut self) -> impl Iterator<Item = NeighbourKey> + '_ {
        self.used.drain(..)
    }
}

/// Up to so many routes are all compared with an address, which takes fewer steps than the descent of a trie.
const FEW: usize = 16;

/// Routes compared at once.
const LANES: usize = 4;

/// The routes of a network that has few, longest prefix first.
struct FewRoutes {
    /// Where there is no route, zero beside a prefix that no address has under it.
    masks: [u32x4; FEW / LANES],
    prefixes: [u32x4; FEW / LANES],
    leads: Vec<Leads>,
}

/// Where one of few routes leads.
enum Leads {
    /// All of its destinations to the same place.
    To(Lead),
    /// Each to itself as next hop.
    Directly { interface: InterfaceId, mtu: Option<u16> },
}

/// Where all destinations of a route are.
struct Lead {
    whereabouts: Whereabouts,
    /// How packets leave for them as they are, and on which side, if they can.
    leaves: Option<(Side, Adjacency)>,
    /// The epoch in which the next hop was last noted.
    noted: u32,
}

impl FewRoutes {
    /// Those of `network`; none where they are not few.
    fn of(network: &Network) -> Option<Self> {
        let mut routes: Vec<_> = network.routes.iter().collect();
        if routes.len() > FEW {
            return None;
        }
        routes.sort_unstable_by_key(|(prefix, _)| core::cmp::Reverse(prefix.prefix_len()));
        let (mut masks, mut prefixes) = ([0; FEW], [1; FEW]);
        for (&(prefix, _), (mask, bits)) in routes.iter().zip(masks.iter_mut().zip(&mut prefixes)) {
            (*mask, *bits) = (prefix.netmask().to_bits(), prefix.network().to_bits());
        }
        let by_lanes =
            |bits: [u32; FEW]| core::array::from_fn(|block| u32x4::new(core::array::from_fn(|lane| bits[block * LANES + lane])));
        let leads = routes.iter().map(|&(prefix, route)| Leads::of(network, prefix, *route)).collect();
        Some(Self { masks: by_lanes(masks), prefixes: by_lanes(prefixes), leads })
    }

    /// Where the route of an address leads.
    #[inline]
    fn find(&mut self, address: Ipv4Addr) -> Option<&mut Leads> {
        let address = u32x4::splat(address.to_bits());
        let blocks = self.masks.iter().zip(&self.prefixes).enumerate();
        let routes =
            blocks.fold(0, |all, (block, (&mask, &prefix))| all | (address & mask).simd_eq(prefix).to_bitmask() << (block * LANES));
        self.leads.get_mut(routes.trailing_zeros() as usize)
    }
}

impl Leads {
    fn of(network: &Network, prefix: ipnet::Ipv4Net, route: Route) -> Self {
        match route {
            Route::Via { interface, gateway: None, mtu } => Self::Directly { interface, mtu },
            _ => Self::To(Lead::to(whereabouts(network, Some(route), prefix.addr()))),
        }
    }
}

impl Lead {
    fn to(whereabouts: Whereabouts) -> Self {
        let leaves = match &whereabouts {
            Whereabouts::Via(path) => Adjacency::of(path).map(|adjacency| (path.side, adjacency)),
            Whereabouts::Local | Whereabouts::Elsewhere | Whereabouts::Nowhere => None,
        };
        Self { whereabouts, leaves, noted: 0 }
    }

    /// Notes its next hop, once in an epoch.
    #[inline]
    fn note(&mut self, epoch: u32, used: &mut Vec<NeighbourKey>) {
        if self.noted != epoch && note_next_hop(used, &self.whereabouts) {
            self.noted = epoch;
        }
    }
}

/// Where `address` is, as it is remembered since that epoch began, or else as `look_up` finds it.
#[inline]
fn remembered<'e>(
    entries: &'e mut [Entry],
    (address, epoch): (Ipv4Addr, u32),
    used: &mut Vec<NeighbourKey>,
    look_up: impl FnOnce() -> Whereabouts,
) -> &'e Whereabouts {
    let bits = address.to_bits();
    let entry = &mut entries[((bits ^ bits >> 10) as usize) % REMEMBERED];
    if entry.epoch != epoch || entry.address != address {
        *entry = Entry { address, epoch, whereabouts: look_up() };
        note_next_hop(used, &entry.whereabouts);
    }
    &entry.whereabouts
}

/// Notes the next hop where there is one with a known address. Returns whether that is done, or nothing to do.
fn note_next_hop(used: &mut Vec<NeighbourKey>, whereabouts: &Whereabouts) -> bool {
    match whereabouts {
        Whereabouts::Via(path) if path.next_hop_mac.is_some() => note(used, (path.interface, path.next_hop)),
        _ => true,
    }
}

/// Returns whether the neighbour is among those noted now: it was already, or there was room.
fn note(used: &mut Vec<NeighbourKey>, neighbour: NeighbourKey) -> bool {
    if used.contains(&neighbour) {
        return true;
    }
    let has_room = used.len() < NOTED;
    if has_room {
        used.push(neighbour);
    }
    has_room
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
                let found = look_up(&network, address);
                prop_assert_eq!(*paths.towards(&network, address), found);
                for side in [Side::Inside, Side::Outside] {
                    let leaves = match found {
                        Whereabouts::Via(path) if path.side == side => Adjacency::of(&path),
                        _ => None,
                    };
                    prop_assert_eq!(paths.adjacency_towards(&network, address, side), leaves);
                }
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
