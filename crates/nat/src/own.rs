//! Step 4: whose a packet is, computed from the packet and the rules alone.
//!
//! Knows owners and policy, no tables. Asked for every packet where there are several workers; where there is one, not at all. Invariants:
//! each session is looked up and made by one worker only; every worker gives the same answers. Source: docs/adr/0001.
//!
//! ```text
//! outbound, or the first half of a hairpin    the subscriber that sends it
//! inbound, or the second half of a hairpin    the external endpoint that it is for; where that is forwarded, the subscriber that is
//!                                             the server for its remote
//! ICMP error from outside                     as an inbound packet from the quoted destination to the quoted source
//! ICMP error from inside                      the subscriber that the quoted packet was for
//! a fragment, to be put in order              from inside its subscriber; from outside its destination and identification
//! of a protocol without ports                 the remote address, whichever way it goes (`translate_other.rs`, docs/adr/0011)
//! ```

use ahash::RandomState;
use portcullis_steering::{Owners, WorkerId};

use crate::forward;
use crate::fragment::FragmentKey;
use crate::policy::{Endpoint, Policy, Protocol, Side};
use crate::verdict::HandOffCause;

/// What the owners go by.
pub(crate) struct Rules<'a> {
    pub(crate) owners: &'a Owners,
    pub(crate) policy: &'a Policy,
    /// The keys of the drawing of servers.
    pub(crate) keys: &'a RandomState,
}

impl Rules<'_> {
    /// The owner of a packet from `remote` to an external endpoint, and why another worker may have received it.
    ///
    /// A reload that changes a forward's servers: with one worker, sessions that exist stay with their server, whatever the rules say.
    /// With several, packets of those remotes that are drawn to another server now go to its owner, who does not know the session: UDP
    /// goes on with the new server, TCP has to connect again (unless the worker is the same, by chance). By the rendezvous drawing these
    /// are the sessions of servers that went, and the share that a new one gets. The same holds for all sessions of a forward that goes.
    pub(crate) fn of_inbound(
        &self,
        slot: u16,
        protocol: Protocol,
        external: Endpoint,
        remote: Endpoint,
    ) -> (WorkerId, HandOffCause) {
        let forward = forward::of_port(self.policy, slot, protocol, external.port);
        if let Some(server) = forward.and_then(|forward| forward::server(forward, external.port, remote, self.keys)) {
            return (self.owners.of_subscriber(server.address), HandOffCause::Forward);
        }
        let cause = match protocol {
            Protocol::Icmp => HandOffCause::IcmpQuery,
            Protocol::Tcp | Protocol::Udp => HandOffCause::Misplaced,
        };
        (self.owners.of_external(external.address, external.port), cause)
    }
}

/// The worker that puts a datagram's fragments in order.
pub(crate) fn of_datagram(owners: &Owners, key: &FragmentKey) -> WorkerId {
    match key.side {
        Side::Inside => owners.of_subscriber(key.source),
        Side::Outside => owners.of_datagram(key.destination, key.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Forward;
    use core::net::Ipv4Addr;
    use portcullis_steering::toeplitz::Key;

    fn owners() -> Owners {
        let key = |seed: u8| Key::new(core::array::from_fn(|at| (at as u8 ^ seed).wrapping_mul(0x9d).wrapping_add(seed)));
        Owners::new(&key(1), &key(77), (0..128).map(|entry| WorkerId(entry % 8)).collect())
    }

    const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    fn at(address: Ipv4Addr, port: u16) -> Endpoint {
        Endpoint { address, port }
    }

    #[test]
    fn an_inbound_packet_is_the_external_endpoints_whatever_its_remote() {
        let (owners, policy, keys) = (owners(), Policy::default(), RandomState::with_seeds(1, 2, 3, 4));
        let rules = Rules { owners: &owners, policy: &policy, keys: &keys };
        for port in 1..500 {
            let owner = owners.of_external(EXTERNAL, port);
            for remote in 1..9 {
                let remote = at(Ipv4Addr::from_bits(remote * 77_777), port ^ 5);
                let owned = rules.of_inbound(0, Protocol::Udp, at(EXTERNAL, port), remote);
                assert_eq!(owned, (owner, HandOffCause::Misplaced));
                assert_eq!(rules.of_inbound(0, Protocol::Icmp, at(EXTERNAL, port), remote).0, owner);
            }
        }
    }

    #[test]
    fn a_packet_to_a_forwarded_port_is_its_servers() {
        let servers: Vec<_> = (1..6).map(|host| at(Ipv4Addr::new(10, 0, 0, host), 80)).collect();
        let (owners, keys) = (owners(), RandomState::with_seeds(1, 2, 3, 4));
        let forward = Forward { protocol: Protocol::Tcp, external: 0, first: 80, last: 81, servers: servers.clone() };
        let policy = Policy { forwards: vec![forward.clone()], ..Policy::default() };
        let rules = Rules { owners: &owners, policy: &policy, keys: &keys };
        let mut drawn = std::collections::BTreeSet::new();
        for port in 0..200 {
            let remote = at(Ipv4Addr::new(192, 0, 2, 1), port);
            let server = forward::server(&forward, 81, remote, &keys).expect("a server");
            let owned = rules.of_inbound(0, Protocol::Tcp, at(EXTERNAL, 81), remote);
            assert_eq!(owned, (owners.of_subscriber(server.address), HandOffCause::Forward));
            drawn.insert(server);
            let other = rules.of_inbound(0, Protocol::Udp, at(EXTERNAL, 81), remote);
            assert_eq!(other, (owners.of_external(EXTERNAL, 81), HandOffCause::Misplaced), "another protocol's port");
        }
        assert_eq!(drawn.len(), servers.len());
    }

    #[test]
    fn all_fragments_of_a_datagram_are_put_in_order_by_one_worker() {
        let owners = owners();
        let (source, destination) = (Ipv4Addr::new(10, 0, 0, 7), EXTERNAL);
        for id in 0..100 {
            let key = |side| FragmentKey { side, source, destination, id, protocol: 17 };
            assert_eq!(of_datagram(&owners, &key(Side::Inside)), owners.of_subscriber(source));
            assert_eq!(of_datagram(&owners, &key(Side::Outside)), owners.of_external(destination, id));
        }
    }
}
