//! The kernel as control plane: its links, addresses, routes and neighbours as the gateway needs them, and what is asked of it.
//!
//! Knows netlink and /proc; nothing of packets, queues or the configuration file. The daemon starts a [`Mirror`], turns its snapshots
//! into the NAT's network with [`network()`] and the XDP program's prefixes with [`steering_prefixes`], has next hops resolved by the
//! [`Resolver`] and lets the kernel answer ARP for the pool through [`Claims`].
//! Invariant: a snapshot is immutable; nothing in the kernel is changed but claimed addresses and neighbour probes.
//! Sources: rtnetlink(7), Linux `net/ipv4/{fib_trie,devinet}.c`, `net/core/neighbour.c`. Tests: in each file, and `tests` (root).

mod claims;
mod decode;
mod forwarding;
mod mirror;
mod narrate;
mod network;
mod resolver;
mod socket;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use claims::{Claims, Wanted};
pub(crate) use forwarding::Forwarding;
pub(crate) use mirror::Mirror;
pub(crate) use network::{
    Attachment, ConfiguredInterface, Steering, attachment, host_addresses, local_port_range, network, steering_prefixes,
};
pub(crate) use resolver::Resolver;
pub(crate) use socket::Requests;
pub(crate) use state::{KernelState, Link};

use std::io;

/// Why the kernel could not be asked or followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0} (it needs CAP_NET_ADMIN, and AF_NETLINK allowed by the service's sandbox)")]
    Open(#[source] io::Error),
    /// The socket failed; the state that was mirrored so far is unchanged.
    #[error("the netlink socket failed: {0}")]
    Socket(#[source] io::Error),
    /// The kernel said no. **Errors:** nothing was changed.
    #[error("the kernel refused to {what}: {error}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its errno.
        #[source]
        error: io::Error,
    },
    /// No answer within [`socket::ANSWER_TIME`].
    #[error("the kernel did not answer the request to {0}")]
    Silent(&'static str),
    /// A file under /proc that cannot be read, or says something else than it should.
    #[error("cannot read {path}: {error}")]
    Proc {
        /// The file.
        path: String,
        /// Why.
        #[source]
        error: io::Error,
    },
}
