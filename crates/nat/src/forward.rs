//! Port forwards: which one has an external port, and which of its servers a remote endpoint gets.
//!
//! Knows policy and a keyed hash, no state. Asked by the slow path, and by step 4 for whose a packet to a forwarded port is.
//! Invariants: every worker draws the same server; adding or removing one moves only the remotes that it gains or loses; a server
//! speaks from its forward's port only to remotes that are drawn to it, so that their answers come back to it. Source: Thaler and
//! Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous hashing). Tests: here and in `tests/forwards.rs`.

use ahash::RandomState;

use crate::policy::{Endpoint, Forward, Policy, Protocol};
use crate::record::Session;

/// The forward of an external port.
pub(crate) fn of_port(policy: &Policy, slot: u16, protocol: Protocol, port: u16) -> Option<&Forward> {
    let is_it = |forward: &&Forward| {
        forward.protocol == protocol && forward.external == usize::from(slot) && (forward.first..=forward.last).contains(&port)
    };
    policy.forwards.iter().find(is_it)
}

/// The server's endpoint that an external port leads a remote to. None where the range goes beyond the server's last port, and of a
/// forward without servers: `config` lets neither through.
pub(crate) fn server(forward: &Forward, port: u16, remote: Endpoint, keys: &RandomState) -> Option<Endpoint> {
    let server = drawn(forward, remote, keys)?;
    let port = server.port.checked_add(port.checked_sub(forward.first)?)?;
    Some(Endpoint { address: server.address, port })
}

/// Whether a forward leads a session's remote from its external port to its internal endpoint.
pub(crate) fn leads(policy: &Policy, session: &Session, keys: &RandomState) -> bool {
    let port = session.external_port.get();
    let forward = of_port(policy, session.slot, session.kind.protocol(), port);
    forward.and_then(|forward| server(forward, port, session.remote(), keys)) == Some(session.internal())
}

/// Whether an internal endpoint may be a server's that a forward leads to, whoever the remote.
pub(crate) fn has_server(policy: &Policy, protocol: Protocol, internal: Endpoint) -> bool {
    let leads_here = |forward: &Forward| {
        let span = forward.last.saturating_sub(forward.first);
        let offset = |server: &Endpoint| internal.port.checked_sub(server.port);
        forward.servers.iter().any(|server| server.address == internal.address && offset(server).is_some_and(|at| at <= span))
    };
    policy.forwards.iter().any(|forward| forward.protocol == protocol && leads_here(forward))
}

/// The external port from which a server speaks first to a remote: of a forward that leads that remote to it.
pub(crate) fn port_of(forward: &Forward, server: Endpoint, remote: Endpoint, keys: &RandomState) -> Option<u16> {
    let span = forward.last.checked_sub(forward.first)?;
    let first = drawn(forward, remote, keys).filter(|drawn| drawn.address == server.address)?;
    let offset = server.port.checked_sub(first.port).filter(|&offset| offset <= span)?;
    Some(forward.first + offset)
}

/// The server with the highest random weight for a remote.
fn drawn(forward: &Forward, remote: Endpoint, keys: &RandomState) -> Option<Endpoint> {
    let weight = |server: &Endpoint| {
        let words = [remote, *server].map(|end| u64::from(end.address.to_bits()) << 16 | u64::from(end.port));
        (keys.hash_one(words), words[1])
    };
    match forward.servers[..] {
        [only] => Some(only),
        ref servers => servers.iter().copied().max_by_key(weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    fn at(last: u8, port: u16) -> Endpoint {
        Endpoint { address: Ipv4Addr::new(10, 0, 0, last), port }
    }

    fn forward(servers: &[Endpoint]) -> Forward {
        Forward { protocol: Protocol::Tcp, external: 0, first: 80, last: 89, servers: servers.to_vec() }
    }

    fn draws(servers: &[Endpoint]) -> Vec<Endpoint> {
        let keys = RandomState::with_seeds(1, 2, 3, 4);
        let remotes = (0..2000).map(|number| at((number / 200) as u8, number));
        remotes.map(|remote| server(&forward(servers), 80, remote, &keys).expect("a server")).collect()
    }

    #[test]
    fn a_server_that_comes_or_goes_moves_only_its_own_share() {
        let (three, four) = ([at(1, 80), at(2, 80), at(3, 80)], [at(3, 80), at(1, 80), at(4, 80), at(2, 80)]);
        let (before, after) = (draws(&three), draws(&four));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == at(4, 80)), "only towards the new one");
        assert!((400..600).contains(&moved.len()), "{} of 2000 moved", moved.len());
        for server in three {
            assert!((550..800).contains(&before.iter().filter(|&&drawn| drawn == server).count()));
        }
    }

    #[test]
    fn a_server_speaks_from_the_port_that_leads_the_remote_back_to_it() {
        let keys = RandomState::with_seeds(1, 2, 3, 4);
        let servers = [at(1, 1000), at(1, 1005), at(2, 1000)];
        let mut some = 0;
        for remote in (0..500).map(|port| at(200, port)) {
            for speaker in [at(1, 1003), at(1, 1007), at(2, 1009), at(2, 1010)] {
                if let Some(port) = port_of(&forward(&servers), speaker, remote, &keys) {
                    assert_eq!(server(&forward(&servers), port, remote, &keys), Some(speaker));
                    some += 1;
                }
            }
        }
        assert!(some > 400, "{some}");
    }
}
