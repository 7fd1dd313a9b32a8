//! Compares a configuration with the system that it is to run on.
//!
//! Knows the interfaces as it is told them; the caller has asked the kernel. Called by `run` and `check`, which therefore say the
//! same. Invariant: every finding points into the file. Tests: below.

use core::net::Ipv4Addr;

use ipnet::Ipv4Net;
use portcullis_nat::policy::Side;

use crate::Config;
use crate::address::AddressRange;
use crate::check::port_set;
use crate::finding::{ConfigError, Doubt, Problem, Warning};
use crate::pool::PoolEntry;
use crate::read::{Report, Spot, nearest};

/// An interface as the system has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemInterface {
    /// The kernel's name of it.
    pub name: String,
    /// Its IPv4 addresses with their networks, the primary first.
    pub addresses: Vec<Ipv4Net>,
    /// Its MTU. **Units:** bytes from the IPv4 header on.
    pub mtu: u32,
    /// The largest MTU that a frame of packet memory carries on it. **Units:** as `mtu`.
    pub mtu_most: u32,
}

impl Config {
    /// Compares with the system's interfaces, all of them and not only the configured ones. Returns what is doubtful.
    /// **Errors:** [`ConfigError::Invalid`] with everything that cannot work there.
    pub fn check_system(&self, system: &[SystemInterface]) -> Result<Vec<Warning>, ConfigError> {
        let mut report = Report::new(self.origin.source.clone());
        for (interface, spots) in self.interfaces.iter().zip(&self.origin.interfaces) {
            check_exists(&interface.name, &spots.name, system, &mut report);
            if interface.side == Side::Outside {
                self.doubt_networks(&interface.name, &spots.name, system, &mut report);
            }
        }
        for (pool, spots) in self.pools.iter().zip(&self.origin.pools) {
            for (entry, spot) in pool.addresses.iter().zip(&spots.addresses) {
                match entry {
                    PoolEntry::Addresses(range) => self.check_range(*range, spot, system, &mut report),
                    PoolEntry::Interface(name) => self.check_followed(name, spot, system, &mut report),
                }
            }
        }
        for (forward, spots) in self.forwards.iter().zip(&self.origin.forwards) {
            for (server, spot) in forward.servers.iter().zip(&spots.servers) {
                check_server(server.address, spot, system, &mut report);
            }
        }
        report.finish().map_err(ConfigError::Invalid)
    }

    /// What is doubtful about the pools with so many workers: each address of a pool has its ports shared out among all of them.
    pub fn doubt_shares(&self, workers: u16) -> Vec<Warning> {
        let mut report = Report::new(self.origin.source.clone());
        for (pool, spots) in self.pools.iter().zip(&self.origin.pools) {
            let ports = port_set(pool).len();
            if ports < u32::from(workers) {
                report.warning(&spots.name, Doubt::FewerPorts { pool: pool.name.clone(), ports, workers });
            }
        }
        report.finish().unwrap_or_default()
    }

    /// A network outside should have no address of one inside, as RFC 4787, REQ-7, foresees: there is one table of routes.
    fn doubt_networks(&self, name: &str, spot: &Spot, system: &[SystemInterface], report: &mut Report) {
        let outside = system.iter().filter(|interface| interface.name == name).flat_map(|interface| &interface.addresses);
        for network in outside.map(Ipv4Net::trunc) {
            let mut inside = self.networks(system).filter(|(side, ..)| *side == Side::Inside);
            let same = inside.find(|(_, _, inside)| inside.contains(&network) || network.contains(&inside.trunc()));
            if let Some((_, interface, inside)) = same {
                let (inside, interface) = (inside.trunc(), interface.name.clone());
                report.warning(spot, Doubt::SameAddresses { network, inside, interface });
            }
        }
    }

    /// A fixed range must not be used inside, nor have an address that a network outside keeps for itself.
    fn check_range(&self, range: AddressRange, spot: &Spot, system: &[SystemInterface], report: &mut Report) {
        let found = range.to_string();
        for (side, interface, network) in self.networks(system) {
            let (interface, found) = (interface.name.clone(), found.clone());
            if side == Side::Inside && range.meets(network) {
                report.fault(spot, Problem::AddressInNetwork { found, network: network.trunc(), interface });
            } else if side == Side::Outside && network.prefix_len() < 31 {
                // A /31 has no addresses of its own (RFC 3021).
                let own = [network.network(), network.broadcast()].into_iter().find(|&own| range.contains(own));
                if let Some(address) = own {
                    report.fault(spot, Problem::AddressOfNetwork { found, address, network: network.trunc(), interface });
                }
            }
        }
    }

    /// A followed interface should have an address, which no pool may list as well.
    fn check_followed(&self, name: &str, spot: &Spot, system: &[SystemInterface], report: &mut Report) {
        let Some(interface) = system.iter().find(|interface| interface.name == name) else { return };
        let Some(address) = interface.addresses.first().map(Ipv4Net::addr) else {
            report.warning(spot, Doubt::NoAddress { interface: name.to_owned() });
            return;
        };
        let lists = |entry: &PoolEntry| matches!(entry, PoolEntry::Addresses(range) if range.contains(address));
        if let Some(pool) = self.pools.iter().find(|pool| pool.addresses.iter().any(lists)) {
            let (interface, pool) = (name.to_owned(), pool.name.clone());
            report.fault(spot, Problem::InterfaceAddressTwice { interface, address, pool });
        }
    }

    /// The networks of the configured interfaces that the system has.
    fn networks<'s>(&self, system: &'s [SystemInterface]) -> impl Iterator<Item = (Side, &'s SystemInterface, Ipv4Net)> {
        self.interfaces.iter().flat_map(move |configured| {
            let found = system.iter().filter(|interface| interface.name == configured.name);
            found.flat_map(move |interface| interface.addresses.iter().map(move |&network| (configured.side, interface, network)))
        })
    }
}

fn check_exists(name: &str, spot: &Spot, system: &[SystemInterface], report: &mut Report) {
    match system.iter().find(|interface| interface.name == name) {
        Some(interface) if interface.mtu > interface.mtu_most => {
            let (found, most) = (interface.mtu, interface.mtu_most);
            report.fault(spot, Problem::MtuTooLarge { interface: name.to_owned(), found, most });
        }
        Some(_) => {}
        None => {
            let existing: Vec<_> = system.iter().map(|interface| interface.name.clone()).filter(|name| name != "lo").collect();
            let nearest = nearest(name, existing.iter().map(String::as_str)).map(str::to_owned);
            report.fault(spot, Problem::NoSuchInterface { found: name.to_owned(), nearest, existing });
        }
    }
}

fn check_server(found: Ipv4Addr, spot: &Spot, system: &[SystemInterface], report: &mut Report) {
    let has = |interface: &&SystemInterface| interface.addresses.iter().any(|network| network.addr() == found);
    if let Some(interface) = system.iter().find(has) {
        report.fault(spot, Problem::ServerIsBox { found, interface: interface.name.clone() });
    }
}
