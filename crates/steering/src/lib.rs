//! Which worker owns what: the owner of a subscriber, and of an external endpoint.
//!
//! Knows arithmetic only. Asked by the NAT for every packet (step 4) and for every port that it may allocate. Invariant: a port that a
//! worker allocates for its subscriber is its own, so that replies need no other worker.
//! With one worker every answer is that worker; how more of them share a NIC's hash is in docs/architecture.md.
#![forbid(unsafe_code)]

use core::net::Ipv4Addr;

/// A worker's number, from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

/// The rule that says who owns what. The same value in every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    only: WorkerId,
}

impl Owners {
    /// One worker, which owns everything.
    pub const fn single() -> Self {
        Self { only: WorkerId(0) }
    }

    /// The owner of an internal address, with all its mappings and sessions.
    #[inline]
    pub const fn of_subscriber(&self, _address: Ipv4Addr) -> WorkerId {
        self.only
    }

    /// The owner of an external endpoint: the worker that its inbound packets reach.
    #[inline]
    pub const fn of_external(&self, _address: Ipv4Addr, _port: u16) -> WorkerId {
        self.only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_and_its_subscriber_have_the_same_owner() {
        let owners = Owners::single();
        let subscriber = owners.of_subscriber(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(subscriber, owners.of_external(Ipv4Addr::new(203, 0, 113, 1), 1024));
    }
}
