//! The flows of a benchmark: what the number of a session says about its endpoints.
//!
//! Knows numbers and endpoints. Invariant: no two flows share protocol and internal endpoint. Source: RFC 4814 section 4.5: ports are
//! random in 1024 to 65535; addresses are random too.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Protocol};

use crate::scramble::{Permutation, mix};

/// Ports from 1024 on.
pub(crate) const PORTS: u32 = 65_536 - FIRST_PORT as u32;
/// The first of the ports that flows and mappings take.
pub(crate) const FIRST_PORT: u16 = 1024;

/// The internal network: 10.0.0.0/8 without its first and last address.
const INTERNAL: u32 = 10 << 24;
/// Hosts in it.
pub(crate) const MOST_HOSTS: u32 = (1 << 24) - 2;
/// Remote addresses: 32.0.0.0/3, all of which may be a host's.
const REMOTE: u32 = 32 << 24;
const REMOTE_BITS: u32 = 29;

/// The sessions of a subscriber that a large access network sees.
pub(crate) const SESSIONS_PER_HOST: u32 = 63;

/// A flow as the inside sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) protocol: Protocol,
    pub(crate) internal: Endpoint,
    pub(crate) remote: Endpoint,
}

/// Flows by number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flows {
    seed: u64,
    hosts: u32,
    only_udp: bool,
    host: Permutation,
    port: Permutation,
}

impl Flows {
    /// At least `count` flows from hosts with `per_host` flows each, at most twice [`PORTS`].
    pub(crate) fn new(seed: u64, count: u32, per_host: u32) -> Self {
        let hosts = count.div_ceil(per_host).max(1);
        assert!(hosts <= MOST_HOSTS, "{hosts} hosts do not fit 10.0.0.0/8");
        Self { seed, hosts, only_udp: false, host: Permutation::below(MOST_HOSTS), port: Permutation::below(PORTS) }
    }

    /// The same, all of them UDP.
    pub(crate) fn of_udp(self) -> Self {
        Self { only_udp: true, ..self }
    }

    /// The hosts that the flows come from.
    pub(crate) fn hosts(&self) -> u32 {
        self.hosts
    }

    /// UDP and TCP in turn, over the flows of a host as over the hosts, where not all are UDP.
    #[inline]
    pub(crate) fn protocol(&self, number: u32) -> Protocol {
        let (host, flow) = (number % self.hosts, number / self.hosts);
        if self.only_udp || (host + flow).is_multiple_of(2) { Protocol::Udp } else { Protocol::Tcp }
    }

    /// The flow with that number. Flows of one host are apart by the count of hosts.
    #[inline]
    pub(crate) fn of(&self, number: u32) -> Flow {
        let (host, flow) = (number % self.hosts, number / self.hosts);
        let address = INTERNAL + 1 + self.host.of(self.seed, host);
        let port = self.port.of(mix(self.seed, u64::from(host)), flow);
        Flow { protocol: self.protocol(number), internal: endpoint(address, port), remote: self.remote(number) }
    }

    #[inline]
    fn remote(&self, number: u32) -> Endpoint {
        let random = mix(!self.seed, u64::from(number));
        endpoint(REMOTE | (random >> 35) as u32, random as u32 % PORTS)
    }
}

const _: () = assert!(u64::BITS - 35 == REMOTE_BITS);

#[inline]
fn endpoint(address: u32, port: u32) -> Endpoint {
    Endpoint { address: Ipv4Addr::from_bits(address), port: FIRST_PORT + port as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_flows_share_an_internal_endpoint() {
        let flows = Flows::new(5, 100_000, SESSIONS_PER_HOST);
        let seen: HashSet<_> = (0..100_000).map(|number| flows.of(number)).map(|flow| (flow.protocol, flow.internal)).collect();
        assert_eq!(seen.len(), 100_000);
    }

    #[test]
    fn hosts_have_their_share_of_flows_in_both_protocols() {
        let flows = Flows::new(5, 6300, SESSIONS_PER_HOST);
        assert_eq!(flows.hosts(), 100);
        let of_host: Vec<_> = (0..63).map(|flow| flows.of(flow * 100 + 7)).collect();
        assert!(of_host.iter().all(|flow| flow.internal.address == of_host[0].internal.address));
        let udp = of_host.iter().filter(|flow| flow.protocol == Protocol::Udp).count();
        assert!((31..=32).contains(&udp), "{udp} of 63 are UDP");
    }

    #[test]
    fn endpoints_are_where_they_should_be() {
        let flows = Flows::new(9, 10_000, 1);
        for number in 0..10_000 {
            let flow = flows.of(number);
            let remote = flow.remote.address.octets()[0];
            assert!(flow.internal.address.octets()[0] == 10 && (32..64).contains(&remote), "{flow:?}");
            assert!(flow.internal.port >= FIRST_PORT && flow.remote.port >= FIRST_PORT, "{flow:?}");
        }
    }
}
