//! What the kernel says of an interface: index, address, packets out and dropped.
//!
//! Knows the calling thread's network namespace only. Called when a run begins and ends.

use std::fs;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use crate::address::Mac;

/// The interface's index. **Errors:** when there is none of that name here.
pub(crate) fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).with_context(|| format!("interface {name}: not in this network namespace (see `ip link`)"))
}

/// The interface's Ethernet address. **Errors:** when it has none.
pub(crate) fn mac(name: &str) -> Result<Mac> {
    getifaddrs()
        .context("listing interfaces")?
        .filter(|entry| entry.interface_name == name)
        .find_map(|entry| entry.address?.as_link_addr()?.addr())
        .map(Mac)
        .with_context(|| format!("interface {name}: has no Ethernet address"))
}

/// What went out of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transmitted {
    pub(crate) packets: u64,
    pub(crate) dropped: u64,
}

/// The interface's counters. **Errors:** when it is gone.
pub(crate) fn transmitted(name: &str) -> Result<Transmitted> {
    // Not /sys/class/net: that is of the namespace in which it was mounted.
    let table = fs::read_to_string("/proc/thread-self/net/dev").context("reading /proc/thread-self/net/dev")?;
    parse(&table, name).with_context(|| format!("interface {name}: gone from /proc/net/dev"))
}

/// **Source:** Linux `net/core/net-procfs.c`: eight receive columns, then bytes, packets, errors, dropped of transmission.
fn parse(table: &str, name: &str) -> Option<Transmitted> {
    let columns = table.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let mut columns = columns.split_ascii_whitespace().skip(9);
    let packets = columns.next()?.parse().ok()?;
    let dropped = columns.nth(1)?.parse().ok()?;
    Some(Transmitted { packets, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_read_from_the_right_line_and_columns() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes ...\n  eth10: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                     \x20  eth1: 1 2 3 4 5 6 7 8 90 100 110 120 130 140 150 160\n";
        assert_eq!(parse(table, "eth1"), Some(Transmitted { packets: 100, dropped: 120 }));
        assert_eq!(parse(table, "eth10"), Some(Transmitted { packets: 10, dropped: 12 }));
        assert_eq!(parse(table, "eth2"), None);
    }

    #[test]
    fn an_interface_that_is_not_there_is_named_in_the_error() {
        for error in [index("no-such-if").unwrap_err(), mac("no-such-if").unwrap_err(), transmitted("no-such-if").unwrap_err()] {
            assert!(error.to_string().contains("no-such-if"), "{error}");
        }
    }
}
