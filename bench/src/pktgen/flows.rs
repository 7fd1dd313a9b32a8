//! Flows: how so many of them are made of addresses and ports, and shared out over queues.
//!
//! Pure. Called when a case begins. pktgen steps addresses and ports together, one of each a packet; when their numbers have no common
//! divisor, `addresses * ports` packets in a row have every pair once (Chinese remainder theorem). With its random flags the same pairs
//! come evenly, as RFC 4814 wants them. Invariant: a division has at least the flows asked for, each queue as many as the others, and no
//! pair is in two queues.

use anyhow::{Context, Result, ensure};

use crate::address::{AddressRange, PortRange};

/// What there are many of, when there can be, has to be so many at least. Chosen: enough for every worker of a gateway to have some.
const LEAST: u32 = 16;
/// How many more flows than asked for there may be, as a part of them. Chosen: a number nearby that divides well.
const SURPLUS: u32 = 50;

/// What flows differ in most. A gateway shares out its work by it: by the address of a host inside, by the port of an external endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Many {
    /// As many addresses as can be.
    Addresses,
    /// As many ports as can be.
    Ports,
}

/// The flows of one queue: all pairs of so many consecutive addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first address. **Units:** host order.
    pub first_address: u32,
    /// How many.
    pub addresses: u32,
    /// The first port.
    pub first_port: u16,
    /// How many.
    pub ports: u32,
}

impl Part {
    /// How many flows.
    pub fn flows(&self) -> u64 {
        u64::from(self.addresses) * u64::from(self.ports)
    }
}

/// Divides `flows` over `queues`, from these addresses and ports.
///
/// **Errors:** there are too few addresses and ports.
pub fn divide(flows: u32, queues: u32, many: Many, addresses: AddressRange, ports: PortRange) -> Result<Vec<Part>> {
    ensure!(flows > 0 && queues > 0, "at least one flow and one queue");
    let most_addresses = addresses.count() / queues;
    ensure!(most_addresses > 0, "{queues} queues need as many addresses; there are {}", addresses.count());
    // pktgen takes the end of a range of ports as a number of 16 bits beyond the last.
    let most_ports = ports.count().min(u32::from(u16::MAX - ports.first()));
    ensure!(most_ports > 0, "port 65535 alone is not enough");
    let flows_each = flows.div_ceil(queues);
    let division = match many {
        Many::Addresses => split(flows_each, most_addresses, most_ports),
        Many::Ports => split(flows_each, most_ports, most_addresses).map(|(ports, addresses)| (addresses, ports)),
    };
    let (addresses_each, ports_each) = division.with_context(|| {
        format!(
            "{flows} flows on {queues} queues: {} addresses with {most_ports} ports each do not make so many",
            addresses.count()
        )
    })?;
    let part = |queue| Part {
        first_address: u32::from(addresses.first()) + queue * most_addresses,
        addresses: addresses_each,
        first_port: ports.first(),
        ports: ports_each,
    };
    Ok((0..queues).map(part).collect())
}

/// Two numbers without a common divisor, whose product is `flows` or the next that can be made; the first as large as can be.
fn split(flows: u32, most_first: u32, most_second: u32) -> Option<(u32, u32)> {
    let totals = flows..=flows.checked_add(flows / SURPLUS + 1)?;
    totals.into_iter().find_map(|total| {
        let most = most_first.min(total);
        let least = LEAST.min(most).max(total.div_ceil(most_second));
        let fits = |&first: &u32| total.is_multiple_of(first) && common_divisor(first, total / first) == 1;
        (least..=most).rev().find(fits).map(|first| (first, total / first))
    })
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn addresses() -> AddressRange {
        "10.1.0.1-10.1.3.254".parse().unwrap()
    }

    fn ports() -> PortRange {
        "1024-65535".parse().unwrap()
    }

    #[test]
    fn as_many_packets_as_flows_have_each_pair_once() {
        for flows in [1, 2, 10, 1000, 1001, 10_007, 50_000, 64_512] {
            let part = divide(flows, 1, Many::Addresses, addresses(), ports()).unwrap()[0];
            let (mut address, mut port) = (0, 0);
            // As pktgen steps, Linux net/core/pktgen.c, mod_cur_headers.
            let pairs: BTreeSet<_> = (0..part.flows())
                .map(|_| {
                    address = (address + 1) % part.addresses;
                    port = (port + 1) % part.ports;
                    (address, port)
                })
                .collect();
            assert_eq!(pairs.len() as u64, part.flows(), "{part:?}");
        }
    }

    #[test]
    fn there_are_the_flows_asked_for_or_a_few_more() {
        for flows in [1, 3, 1000, 50_000, 64_512, 500_000, 1_032_192, 4_128_768, 16_515_072] {
            for queues in [1, 2, 3, 4] {
                let parts = divide(flows, queues, Many::Addresses, addresses(), ports()).unwrap();
                let all: u64 = parts.iter().map(Part::flows).sum();
                let most = u64::from(flows) + u64::from(flows / SURPLUS) + 2 * u64::from(queues);
                assert!((u64::from(flows)..=most).contains(&all), "{flows} on {queues}: {all}");
                assert!(parts.iter().all(|part| part.flows() == parts[0].flows()));
            }
        }
    }

    #[test]
    fn queues_do_not_share_an_address_and_stay_within_the_range() {
        let parts = divide(1000, 4, Many::Addresses, addresses(), ports()).unwrap();
        for pair in parts.windows(2) {
            assert!(pair[0].first_address + pair[0].addresses <= pair[1].first_address, "{pair:?}");
        }
        let last = parts[3].first_address + parts[3].addresses - 1;
        assert!(addresses().contains(last.into()));
        assert!(u32::from(parts[3].first_port) + parts[3].ports <= 65_535);
    }

    #[test]
    fn there_are_many_of_what_a_gateway_shares_its_work_out_by() {
        for flows in [1000, 10_007, 50_000, 500_000, 1_000_000] {
            let part = |many| divide(flows, 1, many, addresses(), ports()).unwrap()[0];
            assert!(part(Many::Addresses).addresses >= LEAST, "{:?}", part(Many::Addresses));
            assert!(part(Many::Ports).ports >= 1000, "{:?}", part(Many::Ports));
        }
        let forwards = "9116-9315".parse().unwrap();
        assert_eq!(divide(200, 1, Many::Ports, addresses(), forwards).unwrap()[0].ports, 200);
    }

    #[test]
    fn too_many_flows_are_refused_with_what_there_is() {
        let error = divide(1_000_000, 1, Many::Addresses, "10.1.0.1".parse().unwrap(), ports()).unwrap_err().to_string();
        assert!(error.contains("1000000 flows on 1 queues: 1 addresses with 64511 ports"), "{error}");
        assert!(
            divide(10, 4, Many::Addresses, "10.1.0.1-10.1.0.3".parse().unwrap(), ports()).is_err(),
            "fewer addresses than queues"
        );
        assert!(divide(0, 1, Many::Addresses, addresses(), ports()).is_err());
    }
}
