//! Who may give which port: with several workers each has a share of every external address.
//!
//! Knows the owner functions of `steering`, which both the NAT and the reference go by, and the policy's ports. Invariant: the shares of
//! an address make up its ports.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Policy};
use portcullis_steering::{Owners, WorkerId};

#[derive(Clone, Debug)]
pub(super) struct Shares {
    owners: Owners,
    /// Ports by external address and worker.
    counts: HashMap<(Ipv4Addr, WorkerId), usize>,
}

impl Shares {
    pub(super) fn new(owners: Owners, policy: &Policy) -> Self {
        let mut counts = HashMap::new();
        for slot in &policy.externals {
            let Some(address) = slot.address else { continue };
            if owners.workers() == 1 {
                counts.entry((address, WorkerId(0))).or_insert(slot.ports.len() as usize);
                continue;
            }
            for port in slot.ports.ranges().flat_map(|(first, last)| first..=last) {
                *counts.entry((address, owners.of_external(address, port))).or_insert(0) += 1;
            }
        }
        Self { owners, counts }
    }

    /// The shares under other rules.
    pub(super) fn under(&self, policy: &Policy) -> Self {
        Self::new(self.owners.clone(), policy)
    }

    /// Whether an external endpoint may be an internal address's.
    pub(super) fn is_for(&self, internal: Ipv4Addr, external: Endpoint) -> bool {
        self.owners.of_external(external.address, external.port) == self.owners.of_subscriber(internal)
    }

    /// How many ports of an external address mappings of an internal one may have.
    pub(super) fn ports(&self, internal: Ipv4Addr, external: Ipv4Addr) -> usize {
        self.counts.get(&(external, self.owners.of_subscriber(internal))).copied().unwrap_or(0)
    }

    /// Whether no external address has a port for an internal one.
    pub(super) fn is_empty_for(&self, internal: Ipv4Addr) -> bool {
        let owner = self.owners.of_subscriber(internal);
        !self.counts.iter().any(|((_, worker), count)| *worker == owner && *count > 0)
    }
}
