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

/// How many of an address's ports of each kind each worker has.
#[derive(Clone, Debug)]
struct Share {
    ports: PortSet,
    counts: HashMap<(WorkerId, PortKind), usize>,
}

/// What RFC 4787 wants kept of a port, as far as it can be: whether it is below 1024 (REQ-3a), and whether it is odd (REQ-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PortKind {
    pub(super) low: bool,
    pub(super) odd: bool,
}

impl PortKind {
    pub(super) const ALL: [Self; 4] = [
        Self { low: false, odd: false },
        Self { low: false, odd: true },
        Self { low: true, odd: false },
        Self { low: true, odd: true },
    ];

    pub(super) fn of(port: u16) -> Self {
        Self { low: port < 1024, odd: port % 2 == 1 }
    }
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
        let owner = |port| if self.owners.workers() == 1 { WorkerId(0) } else { self.owners.of_external(address, port) };
        for port in ports.ranges().flat_map(|(first, last)| first..=last) {
            *counts.entry((owner(port), PortKind::of(port))).or_insert(0) += 1;
        }
        Share { ports: ports.clone(), counts }
    }

    /// Whether an external endpoint may be an internal address's.
    pub(super) fn is_for(&self, internal: Ipv4Addr, external: Endpoint) -> bool {
        self.owners.of_external(external.address, external.port) == self.owners.of_subscriber(internal)
    }

    /// How many ports of an external address mappings of an internal one may have.
    pub(super) fn ports(&self, internal: Ipv4Addr, external: Ipv4Addr) -> usize {
        PortKind::ALL.into_iter().map(|kind| self.ports_of_kind(internal, external, kind)).sum()
    }

    /// How many of those are of one kind.
    pub(super) fn ports_of_kind(&self, internal: Ipv4Addr, external: Ipv4Addr, kind: PortKind) -> usize {
        let share = self.of_addresses.get(&external);
        share.and_then(|share| share.counts.get(&(self.owners.of_subscriber(internal), kind))).copied().unwrap_or(0)
    }

    /// Whether no external address has a port for an internal one.
    pub(super) fn is_empty_for(&self, internal: Ipv4Addr) -> bool {
        self.of_addresses.keys().all(|&external| self.ports(internal, external) == 0)
    }
}
