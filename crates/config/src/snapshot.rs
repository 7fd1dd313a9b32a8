//! Makes the policy snapshot that the NAT works by, from a configuration and the addresses that the box has now.
//!
//! Pure; called by the control plane at start, on reload and whenever an address comes or goes. Knows nothing of mappings.
//! Invariant: for one configuration the slots are always the same, in the same order, whatever addresses there are; no two slots
//! have the same address. Tests: below.

use core::net::Ipv4Addr;
use std::collections::{BTreeMap, BTreeSet};

use portcullis_nat::policy::{External, Forward, Policy, PortSet};

use crate::Config;
use crate::address::PortRange;
use crate::check::port_set;
use crate::forward::ForwardAddress;
use crate::pool::{Pool, PoolEntry};

/// The IPv4 addresses of the box as they are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddresses {
    /// Each interface's addresses, the primary first.
    pub interfaces: BTreeMap<String, Vec<Ipv4Addr>>,
    /// Every address that is local to the box, whatever put it there.
    pub local: BTreeSet<Ipv4Addr>,
    /// Those of them that the gateway itself added, so that the box answers ARP for its pool.
    pub added_by_gateway: BTreeSet<Ipv4Addr>,
    /// The ports that the host's own connections take: the kernel's `ip_local_port_range`.
    pub local_ports: PortRange,
}

impl Default for HostAddresses {
    /// No address, and the kernel's own default range.
    fn default() -> Self {
        Self {
            interfaces: BTreeMap::new(),
            local: BTreeSet::new(),
            added_by_gateway: BTreeSet::new(),
            local_ports: PortRange { first: 32_768, last: 60_999 },
        }
    }
}

/// Where a slot's address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotSource<'c> {
    /// It is fixed.
    Fixed(Ipv4Addr),
    /// It is the primary address of this interface.
    Interface(&'c str),
}

impl PoolEntry {
    /// The sources of its slots, in order.
    fn sources(&self) -> impl Iterator<Item = SlotSource<'_>> {
        let (range, name) = match self {
            Self::Addresses(range) => (Some(*range), None),
            Self::Interface(name) => (None, Some(name.as_str())),
        };
        let fixed = range.into_iter().flat_map(|range| range.addresses().map(SlotSource::Fixed));
        fixed.chain(name.map(SlotSource::Interface))
    }
}

impl Config {
    /// The sources of the external slots: one for each address of the pools and for each followed interface, in the order of the
    /// file.
    pub fn slots(&self) -> impl Iterator<Item = SlotSource<'_>> {
        self.pools.iter().flat_map(|pool| &pool.addresses).flat_map(PoolEntry::sources)
    }

    /// How many external slots there are, at most [`crate::ADDRESSES_MOST`].
    pub fn slot_count(&self) -> u16 {
        self.slots().count() as u16
    }

    /// The policy for the addresses that the box has now.
    ///
    /// A slot's ports are its pool's. Of an address that is also the box's own, and whose pool names no ports, the ports of
    /// `local_ports` are left to the host. A forward's ports are taken out whatever its protocol, for one set serves all three.
    /// **Cost:** 8 KiB for each slot, and a look at every slot for each forward.
    pub fn policy(&self, host: &HostAddresses) -> Policy {
        let mut externals = self.externals(host);
        let forwards = self.policy_forwards();
        for forward in &forwards {
            externals[forward.external].ports.remove_range(forward.first, forward.last);
        }
        Policy {
            externals,
            forwards,
            mapping: self.nat.mapping,
            filtering_udp: self.nat.filtering_udp,
            filtering_tcp: self.nat.filtering_tcp,
            inbound_refresh: self.nat.inbound_refresh,
            port_parity: self.nat.port_parity,
            port_hold: self.nat.port_hold,
            timeouts: self.timeouts,
            udp_ports: self.udp_ports.clone(),
            icmp_errors: self.icmp,
            other_protocols: self.nat.other_protocols,
        }
    }

    /// The slots as they are now. An address that an interface has and another slot too stays with the other slot.
    fn externals(&self, host: &HostAddresses) -> Vec<External> {
        let of_gateway = |address: &Ipv4Addr| host.added_by_gateway.contains(address);
        let mut used: BTreeSet<Ipv4Addr> = self.slots().filter_map(SlotSource::fixed).collect();
        let mut externals = Vec::new();
        for pool in &self.pools {
            let alone = port_set(pool);
            let beside_host = ports_beside_host(pool, &alone, host.local_ports);
            for source in pool.addresses.iter().flat_map(PoolEntry::sources) {
                let (address, shared_with_host) = match source {
                    SlotSource::Fixed(address) => (Some(address), host.local.contains(&address) && !of_gateway(&address)),
                    SlotSource::Interface(name) => {
                        let primary = host.interfaces.get(name).and_then(|all| all.iter().copied().find(|one| !of_gateway(one)));
                        (primary.filter(|&address| used.insert(address)), true)
                    }
                };
                let ports = if shared_with_host { beside_host.clone() } else { alone.clone() };
                externals.push(External { address, ports, shared_with_host, pool: pool.name.clone() });
            }
        }
        externals
    }

    /// The forwards, one for each protocol; their addresses were proved to have slots when the file was read.
    fn policy_forwards(&self) -> Vec<Forward> {
        let slots: Vec<_> = self.slots().collect();
        let mut forwards = Vec::new();
        for forward in &self.forwards {
            let wanted = match &forward.address {
                ForwardAddress::Address(address) => SlotSource::Fixed(*address),
                ForwardAddress::Interface(name) => SlotSource::Interface(name),
            };
            let Some(external) = slots.iter().position(|&source| source == wanted) else { continue };
            let (first, last, servers) = (forward.ports.first, forward.ports.last, &forward.servers);
            let one = |&protocol| Forward { protocol, external, first, last, servers: servers.clone() };
            forwards.extend(forward.protocols.iter().map(one));
        }
        forwards
    }
}

impl SlotSource<'_> {
    fn fixed(self) -> Option<Ipv4Addr> {
        match self {
            Self::Fixed(address) => Some(address),
            Self::Interface(_) => None,
        }
    }
}

/// A pool's ports on an address that is the box's own as well. Ports that the file names are taken at its word.
fn ports_beside_host(pool: &Pool, alone: &PortSet, local_ports: PortRange) -> PortSet {
    let mut ports = alone.clone();
    if pool.ports.is_none() {
        ports.remove_range(local_ports.first, local_ports.last);
    }
    ports
}
