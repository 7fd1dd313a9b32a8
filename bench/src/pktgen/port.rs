//! What a port and its card say of themselves: driver, link, packets, and what they dropped.
//!
//! Knows rtnetlink's counters and what `ethtool` prints; not what they should be. Called around each trial. All is of the calling
//! thread's network namespace; /sys would be of that in which it was mounted.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use serde::Serialize;

use crate::interface;

/// Parts of the names of counters that say that something was lost, as drivers have them.
const LOSSES: &[&str] = &["drop", "miss", "err", "discard", "no_buf", "nobuf", "out_of_buffer", "no_dma", "timeout", "pause"];
/// Counters that are not losses here: the counting program drops what it has counted.
const NO_LOSSES: &[&str] = &["xdp"];

/// A port's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) received: u64,
    /// For want of room in the card's or the driver's rings. What XDP drops is not in it, with any driver.
    pub(super) receive_lost: u64,
    pub(super) sent: u64,
    pub(super) send_lost: u64,
}

impl Counters {
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            received: self.received.saturating_sub(before.received),
            receive_lost: self.receive_lost.saturating_sub(before.receive_lost),
            sent: self.sent.saturating_sub(before.sent),
            send_lost: self.send_lost.saturating_sub(before.send_lost),
        }
    }
}

/// A port's link and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) carrier: bool,
    pub(super) counters: Counters,
}

/// Asks the kernel about a port. **Errors:** there is none of that name.
pub(super) fn state(name: &str) -> Result<State> {
    let index = interface::index(name)?;
    let link = ask(index).with_context(|| format!("port {name}: asking the kernel about it"))?;
    let stats = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(stats),
        _ => None,
    });
    let stats = stats.with_context(|| format!("port {name}: has no counters"))?;
    Ok(State {
        carrier: link.header.flags.contains(LinkFlags::LowerUp),
        counters: Counters {
            received: stats.rx_packets,
            receive_lost: stats.rx_missed_errors + stats.rx_fifo_errors + stats.rx_over_errors,
            sent: stats.tx_packets,
            send_lost: stats.tx_dropped + stats.tx_errors,
        },
    })
}

/// One RTM_GETLINK and its answer.
fn ask(index: u32) -> Result<LinkMessage> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut link = LinkMessage::default();
    link.header.index = index;
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io().into()),
        other => bail!("an answer that is none: {other:?}"),
    }
}

/// What a port is, for the report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Card {
    /// The interface.
    pub interface: String,
    /// Its driver, as ethtool has it; empty without ethtool.
    pub driver: String,
    /// The firmware's version.
    pub firmware: String,
}

/// What the port is. Without ethtool the name is all.
pub(super) fn card(name: &str) -> Card {
    let printed = ethtool("-i", name);
    let value = |key: &str| {
        let found = printed.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        found.unwrap_or_default().to_owned()
    };
    Card { interface: name.to_owned(), driver: value("driver"), firmware: value("firmware-version") }
}

/// The driver's own counters of losses, by name. Empty without ethtool.
pub(super) fn losses(name: &str) -> BTreeMap<String, u64> {
    parse_losses(&ethtool("-S", name))
}

/// The counters that have grown, with by how much.
pub(super) fn grown(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let growth = |(name, &value): (&String, &u64)| {
        let growth = value.saturating_sub(before.get(name).copied().unwrap_or(0));
        (growth > 0).then(|| (name.clone(), growth))
    };
    now.iter().filter_map(growth).collect()
}

fn ethtool(option: &str, name: &str) -> String {
    // Started from a thread, it is in the thread's network namespace.
    let output = Command::new("ethtool").args([option, name]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn parse_losses(printed: &str) -> BTreeMap<String, u64> {
    let counters = printed.lines().filter_map(|line| {
        let (name, value) = line.trim().rsplit_once(": ")?;
        Some((name.trim().to_owned(), value.trim().parse().ok()?))
    });
    let is_loss = |name: &str| LOSSES.iter().any(|it| name.contains(it)) && !NO_LOSSES.iter().any(|it| name.contains(it));
    counters.filter(|(name, _)| is_loss(&name.to_ascii_lowercase())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_found_among_a_drivers_counters() {
        let before =
            "NIC statistics:\n     rx_packets: 100\n     rx_missed_errors: 3\n     rx_out_of_buffer: 0\n     rx0_xdp_drops: 5\n";
        let after =
            "NIC statistics:\n     rx_packets: 900\n     rx_missed_errors: 10\n     rx_out_of_buffer: 0\n     rx0_xdp_drops: 700\n";
        let grown = grown(&parse_losses(after), &parse_losses(before));
        assert_eq!(grown, BTreeMap::from([("rx_missed_errors".to_owned(), 7)]));
    }

    #[test]
    fn the_loopback_has_counters_and_a_link() {
        let before = state("lo").unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        let now = state("lo").unwrap();
        assert!(now.carrier);
        let counters = now.counters.since(&before.counters);
        assert!(counters.sent >= 1 && counters.received >= 1, "{counters:?}");
    }

    #[test]
    fn a_port_that_is_not_there_is_named() {
        assert!(state("no-such-if").unwrap_err().to_string().contains("no-such-if"));
        assert_eq!(card("no-such-if").driver, "");
    }
}
