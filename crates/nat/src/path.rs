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
            since: now,
            used: Vec::with_capacity(NOTED),
            notes_adjacencies: false,
        }
    }

    /// Forgets everything: there is another snapshot.
    pub(crate) fn forget(&mut self) {
        self.epoch += 1;
    }

    /// Where `address` is.
    #[inline]
    pub(crate) fn towards(&mut self, network: &Network, address: Ipv4Addr) -> Whereabouts {
        let bits = address.to_bits();
        let entry = &mut self.entries[((bits ^ bits >> 10) as usize) % REMEMBERED];
        if entry.epoch != self.epoch || entry.address != address {
            *entry = Entry { address, epoch: self.epoch, whereabouts: look_up(network, address) };
            if let Whereabouts::Via(path) = entry.whereabouts
                && path.next_hop_mac.is_some()
            {
                note(&mut self.used, (path.interface, path.next_hop));
            }
        }
        entry.whereabouts
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

fn note(used: &mut Vec<NeighbourKey>, neighbour: NeighbourKey) {
    if used.len() < NOTED && !used.contains(&neighbour) {
        used.push(neighbour);
    }
}

/// Where `address` is, by the snapshot itself.
pub(crate) fn look_up(network: &Network, address: Ipv4Addr) -> Whereabouts {
    match network.route(address) {
        Some(Route::Via { interface, gateway, mtu }) => {
            via(network, interface, gateway.unwrap_or(address), mtu).map_or(Whereabouts::Elsewhere, Whereabouts::Via)
        }
        Some(Route::Local) => Whereabouts::Local,
        Some(Route::Elsewhere) => Whereabouts::Elsewhere,
        Some(Route::Unreachable) | None => Whereabouts::Nowhere,
    }
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

    #[test]
    fn a_new_snapshot_is_asked_again() {
        let destination = Ipv4Addr::new(192, 0, 2, 1);
        let mut network = Network::default();
        let mut paths = Paths::new(Tick(0));
        assert_eq!(paths.towards(&network, destination), Whereabouts::Nowhere);
        network.interfaces.push(Interface {
            name: "outside0".into(),
            device: DeviceId(1),
            vlan: None,
            side: Side::Outside,
            mac: [2, 0, 0, 0, 0, 1],
            addresses: Vec::new(),
            mtu: 1500,
            up: true,
            prefixes: Vec::new(),
            checksums: crate::policy::ReceivedChecksums::default(),
        });
        let gateway = Ipv4Addr::new(203, 0, 113, 2);
        let default = "0.0.0.0/0".parse().expect("a prefix");
        network.routes.insert(default, Route::Via { interface: InterfaceId(0), gateway: Some(gateway), mtu: Some(1400) });
        assert_eq!(paths.towards(&network, destination), Whereabouts::Nowhere, "remembered");
        paths.forget();
        let Whereabouts::Via(path) = paths.towards(&network, destination) else { panic!("a path") };
        assert_eq!((path.next_hop, path.mtu, path.next_hop_mac), (gateway, 1400, None));
        assert_eq!(paths.take_used().count(), 0, "an unknown neighbour is no used one");
        network.neighbours.insert((InterfaceId(0), gateway), [2; 6]);
        paths.forget();
        paths.towards(&network, destination);
        paths.towards(&network, destination);
        assert_eq!(paths.take_used().collect::<Vec<_>>(), [(InterfaceId(0), gateway)]);
        paths.refresh(Tick(REMEMBERED_FOR), &mut Adjacencies::new(ahash::RandomState::with_seeds(1, 2, 3, 4)));
        paths.towards(&network, destination);
        assert_eq!(paths.take_used().count(), 1, "noted again after a while");
    }
}
