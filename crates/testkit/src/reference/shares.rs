//! Who may give which port: with several workers each has a share of every external address.
//!
//! Knows the owner functions of `steering`, which both the NAT and the reference go by, and the policy's ports. Invariant: the shares of
//! an address make up its ports.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Policy, PortSet};
use portcullis_steering::{Owners, WorkerId};

#[derive(Clone, Debug)]
pub(super) struct Shares {
    owners: Owners,
    of_addresses: HashMap<Ipv4Addr, Share>,
}

/// How many of an address's ports each worker has.
#[derive(Clone, Debug)]
struct Share {
    ports: PortSet,
    counts: HashMap<WorkerId, usize>,
}

impl Shares {
    pub(super) fn new(owners: Owners, policy: &Policy) -> Self {
        let mut shares = Self { owners, of_addresses: HashMap::new() };
        shares.adopt(policy);
        shares
    }

    /// Goes by other rules from now on.
    pub(super) fn adopt(&mut self, policy: &Policy) {
        let mut before = std::mem::take(&mut self.of_addresses);
        for slot in &policy.externals {
            let Some(address) = slot.address else { continue };
            let known = before.remove(&address).filter(|share| share.ports == slot.ports);
            let share = known.unwrap_or_else(|| self.share(address, &slot.ports));
            self.of_addresses.entry(address).or_insert(share);
        }
    }

    fn share(&self, address: Ipv4Addr, ports: &PortSet) -> Share {
        let mut counts = HashMap::new();
        if self.owners.workers() == 1 {
            counts.insert(WorkerId(0), ports.len() as usize);
        } else {
            for port in ports.ranges().flat_map(|(first, last)| first..=last) {
                *counts.entry(self.owners.of_external(address, port)).or_insert(0) += 1;
            }
        }
        Share { ports: ports.clone(), counts }
    }

    /// Whether an external endpoint may be an internal address's.
    pub(super) fn is_for(&self, internal: Ipv4Addr, external: Endpoint) -> bool {
        self.owners.of_external(external.address, external.port) == self.owners.of_subscriber(internal)
    }

    /// How many ports of an external address mappings of an internal one may have.
    pub(super) fn ports(&self, internal: Ipv4Addr, external: Ipv4Addr) -> usize {
        let share = self.of_addresses.get(&external);
        share.and_then(|share| share.counts.get(&self.owners.of_subscriber(internal))).copied().unwrap_or(0)
    }

    /// Whether no external address has a port for an internal one.
    pub(super) fn is_empty_for(&self, internal: Ipv4Addr) -> bool {
        self.of_addresses.keys().all(|&external| self.ports(internal, external) == 0)
    }
}
