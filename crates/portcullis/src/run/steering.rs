//! What the XDP program is told: the policy and the network in its own terms.
//!
//! Pure. Called at start and whenever the kernel's state changes. Invariant: what the program redirects is what the NAT would translate
//! or claim; whatever else it leaves to the kernel.

use core::net::Ipv4Addr;

use ipnet::Ipv4Net;
use portcullis_nat::policy::{Policy, PortSet, Protocol, Side};
use portcullis_xsk::steer::{self, Class, SharedPorts};

use super::devices::PlacedInterface;
use crate::kernel::{KernelState, Steering};

/// The interfaces, with their addresses of the moment.
pub(super) fn interfaces(placed: &[PlacedInterface], state: &KernelState) -> Vec<steer::Interface> {
    placed
        .iter()
        .map(|interface| steer::Interface {
            ifindex: interface.ifindex,
            device: interface.device,
            slot: u32::from(interface.configured.device.0),
            vlan: interface.vlan,
            side: match interface.configured.side {
                Side::Inside => steer::Side::Inside,
                Side::Outside => steer::Side::Outside,
            },
            mac: state.links.get(&interface.ifindex).map(|link| link.mac).unwrap_or_default(),
            any_source: interface.configured.prefixes.is_empty(),
        })
        .collect()
}

/// The sources that are translated, of the interfaces that do not translate all.
pub(super) fn inside_prefixes(placed: &[PlacedInterface]) -> Vec<Ipv4Net> {
    placed.iter().flat_map(|interface| interface.configured.prefixes.iter().copied()).collect()
}

/// The external addresses.
pub(super) fn externals(policy: &Policy) -> Vec<steer::External> {
    let external = |(slot, external): (usize, &portcullis_nat::policy::External)| {
        let ports = |protocol| Box::new(*claimed_ports(policy, slot, &external.ports, protocol).words());
        let shared = external.shared_with_host.then(|| SharedPorts { tcp: ports(Protocol::Tcp), udp: ports(Protocol::Udp) });
        Some(steer::External { address: external.address?, shared })
    };
    policy.externals.iter().enumerate().filter_map(external).collect()
}

/// The ports of an address that mappings may have or that are forwarded.
fn claimed_ports(policy: &Policy, slot: usize, pool: &PortSet, protocol: Protocol) -> PortSet {
    let mut ports = pool.clone();
    for forward in policy.forwards.iter().filter(|forward| forward.external == slot && forward.protocol == protocol) {
        ports.insert_range(forward.first, forward.last);
    }
    ports
}

/// The destinations that are the kernel's. The own addresses come last: a prefix named twice has the last class.
pub(super) fn kernel_prefixes(steering: &Steering) -> Vec<(Ipv4Net, Class)> {
    let class = |prefixes: &[Ipv4Net], class| prefixes.iter().map(move |&prefix| (prefix, class)).collect::<Vec<_>>();
    [class(&steering.inside, Class::Inside), class(&steering.not_inside, Class::Translated), class(&steering.own, Class::Local)]
        .concat()
}

/// The fixed addresses of the pools.
pub(super) fn fixed_addresses(rules: &portcullis_config::Config) -> Vec<Ipv4Addr> {
    rules
        .slots()
        .filter_map(|slot| match slot {
            portcullis_config::SlotSource::Fixed(address) => Some(address),
            portcullis_config::SlotSource::Interface(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_nat::policy::{Endpoint, External, Forward};

    #[test]
    fn a_shared_address_gives_the_program_the_pools_ports_and_the_forwards() {
        let address = Some(Ipv4Addr::new(203, 0, 113, 1));
        let servers = vec![Endpoint { address: Ipv4Addr::new(10, 0, 0, 2), port: 80 }];
        let policy = Policy {
            externals: vec![
                External { address, ports: PortSet::range(1024, 2047), shared_with_host: true, pool: "p".into() },
                External { address: None, ports: PortSet::range(1, 2), shared_with_host: false, pool: "p".into() },
            ],
            forwards: vec![Forward { protocol: Protocol::Tcp, external: 0, first: 80, last: 80, servers }],
            ..Policy::default()
        };
        let externals = externals(&policy);
        assert_eq!(externals.len(), 1, "a slot without address is none");
        let shared = externals[0].shared.as_ref().expect("shared");
        assert_eq!((shared.tcp[1], shared.udp[1]), (1 << 16, 0), "port 80 is TCP's only");
        assert_eq!((shared.tcp[16], shared.udp[31], shared.udp[32]), (u64::MAX, u64::MAX, 0));
    }
}
