//! By which adjacency the remote hosts are reached: by the first half of their address, where all of those leave by one, else one by one.
//!
//! Knows one network snapshot and one policy. Asked by the fast path for packets of bare mappings, which have no session to remember it for
//! each remote; told by the ordinary way. Invariant: what is remembered was found out under the rules and the network in use, and of every
//! address that it stands for, every check of the ordinary way that asks for the remote address alone has been passed, for both ways.

use core::net::Ipv4Addr;

use ipnet::Ipv4Net;
use portcullis_wire::ipv4::may_be_host;

use crate::policy::{Network, Route};
use crate::state::State;

/// Bits of an address that addresses are put together by.
const PREFIX: u8 = 16;

const PREFIXES: usize = 1 << PREFIX;

/// Addresses that are remembered one by one.
const ADDRESSES: usize = 1 << 13;

/// In place of an adjacency's number: the addresses of the prefix do not all leave by one. No number is so large (`adjacency.rs`).
const MIXED: u16 = u16::MAX;

/// The numbers of pairs of adjacencies; zero where none is known.
pub(crate) struct Reach {
    by_prefix: Box<[u16]>,
    /// Of prefixes that are mixed: the address as it is in a packet.
    by_address: Box<[(u32, u16)]>,
    is_empty: bool,
}

impl Reach {
    pub(crate) fn new() -> Self {
        Self {
            by_prefix: vec![0; PREFIXES].into_boxed_slice(),
            by_address: vec![(0, 0); ADDRESSES].into_boxed_slice(),
            is_empty: true,
        }
    }

    /// There are other rules, or another network.
    pub(crate) fn forget(&mut self) {
        if !self.is_empty {
            self.by_prefix.fill(0);
            self.by_address.fill((0, 0));
            self.is_empty = true;
        }
    }

    /// The pair by which a remote address, as it is in a packet, is reached; zero where it is not known.
    #[inline]
    pub(crate) fn get(&self, wire: u32) -> u16 {
        let number = self.by_prefix[prefix_of(wire)];
        if number != MIXED {
            return number;
        }
        let (address, number) = self.by_address[place_of(wire)];
        if address == wire { number } else { 0 }
    }

    /// Remembers by which pair an address is reached, and all of its prefix, if they are alike.
    pub(crate) fn learn(&mut self, address: Ipv4Addr, number: u16, network: &Network, state: &State<'_>) {
        let wire = u32::from_ne_bytes(address.octets());
        self.is_empty = false;
        let place = &mut self.by_prefix[prefix_of(wire)];
        if *place == 0 {
            *place = if is_uniform(address, network, state) { number } else { MIXED };
        }
        if *place == MIXED {
            self.by_address[place_of(wire)] = (wire, number);
        }
    }
}

/// The first half of an address.
#[inline]
const fn prefix_of(wire: u32) -> usize {
    let [a, b, ..] = wire.to_ne_bytes();
    u16::from_be_bytes([a, b]) as usize
}

#[inline]
const fn place_of(wire: u32) -> usize {
    (wire.wrapping_mul(0x9E37_79B1) >> (u32::BITS - ADDRESSES.trailing_zeros())) as usize
}

/// Whether the NAT treats all remote addresses of the prefix alike: one route leads to them by one gateway, and none of them is the NAT's own.
/// **Cost:** cold; O(routes and external addresses of the prefix).
fn is_uniform(address: Ipv4Addr, network: &Network, state: &State<'_>) -> bool {
    let Ok(prefix) = Ipv4Net::new(address, PREFIX).map(|net| net.trunc()) else { return false };
    // What leads to all of the prefix, not to some of it.
    let Some((_, &route @ Route::Via { gateway: Some(_), .. })) = network.routes.get_lpm(&prefix) else { return false };
    let mut ends = [prefix.network(), prefix.broadcast()].into_iter();
    let has_external = || state.slots().iter().any(|slot| slot.address.is_some_and(|external| prefix.contains(&external)));
    ends.all(may_be_host) && network.routes.children(&prefix).all(|(_, &other)| other == route) && !has_external()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adjacency::Adjacencies;
    use crate::arena::Capacity;
    use crate::counters::Counters;
    use crate::policy::InterfaceId;
    use crate::policy::{External, Policy, PortSet};
    use crate::time::Tick;
    use ahash::RandomState;
    use portcullis_steering::{Owners, WorkerId};

    fn wire(address: [u8; 4]) -> u32 {
        u32::from_ne_bytes(address)
    }

    /// A prefix, and its gateway where it is not on the link.
    type Leads = (&'static str, Option<[u8; 4]>);

    fn network(routes: &[Leads]) -> Network {
        let mut network = Network::default();
        for (prefix, gateway) in routes {
            let route = Route::Via { interface: InterfaceId(0), gateway: gateway.map(Ipv4Addr::from), mtu: None };
            network.routes.insert(prefix.parse().expect("a prefix"), route);
        }
        network
    }

    /// What is known of some addresses after one of them was learnt.
    fn learnt(address: [u8; 4], routes: &[Leads], externals: &[[u8; 4]]) -> Reach {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let capacity =
            Capacity { mappings: 4, bare_mappings: 4, sessions: 4, externals: externals.len() as u16, fragments: 4, others: 4 };
        let mut memory = vec![0; capacity.bytes()];
        let mut state = State::new(&mut memory, &capacity, &hasher).expect("enough memory");
        let external = |&address: &[u8; 4]| External {
            address: Some(address.into()),
            ports: PortSet::range(1024, 2048),
            shared_with_host: false,
            pool: String::new(),
        };
        let policy = Policy { externals: externals.iter().map(external).collect(), ..Policy::default() };
        let adjacencies = Adjacencies::new(hasher);
        state.adopt(&policy, (&Owners::single(), WorkerId(0)), Tick(0), &adjacencies, &mut Counters::default());
        let mut reach = Reach::new();
        reach.learn(address.into(), 7, &network(routes), &state);
        reach
    }

    const GATEWAY: Option<[u8; 4]> = Some([203, 0, 113, 1]);

    #[test]
    fn a_prefix_behind_one_gateway_is_known_by_one_of_its_addresses() {
        let reach =
            learnt([8, 8, 4, 4], &[("0.0.0.0/0", GATEWAY), ("8.8.9.0/24", GATEWAY), ("9.0.0.0/8", None)], &[[203, 0, 113, 9]]);
        assert_eq!([[8, 8, 4, 4], [8, 8, 9, 1], [8, 9, 0, 1]].map(|address| reach.get(wire(address))), [7, 7, 0]);
    }

    #[test]
    fn a_prefix_that_is_not_alike_is_known_address_by_address() {
        let (default, near) = (("0.0.0.0/0", GATEWAY), [8, 8, 4, 5]);
        let cases: [(&[Leads], &[[u8; 4]]); 5] = [
            // Another gateway for some, be it the first ones, on the link, on the link for some, and an address of the NAT's.
            (&[default, ("8.8.9.0/24", Some([203, 0, 113, 2]))], &[[203, 0, 113, 9]]),
            (&[default, ("8.8.0.0/24", Some([203, 0, 113, 2]))], &[[203, 0, 113, 9]]),
            (&[("8.0.0.0/8", None)], &[[203, 0, 113, 9]]),
            (&[default, ("8.8.4.8/30", None)], &[[203, 0, 113, 9]]),
            (&[default], &[[8, 8, 200, 1]]),
        ];
        for (routes, externals) in cases {
            let reach = learnt([8, 8, 4, 4], routes, externals);
            assert_eq!((reach.get(wire([8, 8, 4, 4])), reach.get(wire(near))), (7, 0), "{routes:?} {externals:?}");
        }
    }

    #[test]
    fn nothing_is_known_after_it_was_forgotten() {
        let mut reach = learnt([8, 8, 4, 4], &[("0.0.0.0/0", GATEWAY)], &[]);
        reach.forget();
        assert_eq!(reach.get(wire([8, 8, 4, 4])), 0);
    }
}
