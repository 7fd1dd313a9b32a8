//! Flow rules: which packets a device puts into which queue, before and beside its hash (`ethtool -N DEV flow-type ...`).
//!
//! Knows `struct ethtool_rx_flow_spec` by offsets. Used by [`super::kernel`] and [`super::setup`]. Source: linux/ethtool.h.
//!
//! ```text
//! word of the request   4           5 ......... 17      18 . 22   23 ........ 35      36 . 40  42-43    44
//!                       flow type   values (52 bytes)   further   masks (52 bytes)    further  queue    location
//! bytes of values and masks: source address 0-3, destination address 4-7, source port 8-9, destination port 10-11, tos 12
//! ```

use std::{fmt, net::Ipv4Addr};

use super::Flow;
use crate::device::request::{LOCATION, RULE, Request};

/// Where values and masks of a rule are in its request. **Units:** words.
const VALUES: usize = RULE + 1;
const MASKS: usize = VALUES + 18;
/// Where the queue is (`ring_cookie`, 64 bits). **Units:** words.
const QUEUE: usize = 42;
/// `RX_CLS_LOC_ANY`.
const ANYWHERE: u32 = u32::MAX;
/// `RX_CLS_LOC_SPECIAL`: the driver picks locations.
const PICKS: u32 = 0x8000_0000;

/// The protocols that rules tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP over IPv4.
    Tcp,
    /// UDP over IPv4.
    Udp,
}

impl Protocol {
    const fn flow(self) -> Flow {
        match self {
            Self::Tcp => Flow::Tcp4,
            Self::Udp => Flow::Udp4,
        }
    }
}

/// What a packet has to have. Bits that are not in the mask are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// This source address.
    Source {
        /// The address.
        address: Ipv4Addr,
        /// Which bits count.
        mask: Ipv4Addr,
    },
    /// This destination port.
    DestinationPort {
        /// The port.
        port: u16,
        /// Which bits count.
        mask: u16,
    },
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// For this protocol.
    pub protocol: Protocol,
    /// Packets that match this.
    pub matches: Match,
    /// Go to this queue.
    pub queue: u32,
}

impl Rule {
    /// Writes the rule into its request; `None` lets the driver pick the location.
    pub(super) fn encode(&self, location: Option<u32>, request: &mut Request) {
        let (mut values, mut masks) = ([0; 52], [0; 52]);
        match self.matches {
            Match::Source { address, mask } => {
                values[..4].copy_from_slice(&address.octets());
                masks[..4].copy_from_slice(&mask.octets());
            }
            Match::DestinationPort { port, mask } => {
                values[10..12].copy_from_slice(&port.to_be_bytes());
                masks[10..12].copy_from_slice(&mask.to_be_bytes());
            }
        }
        request.set(RULE, self.protocol.flow().code());
        request.set_bytes(VALUES, &values);
        request.set_bytes(MASKS, &masks);
        request.set_wide(QUEUE, self.queue.into());
        request.set(LOCATION, location.unwrap_or(ANYWHERE));
    }
}

/// As ethtool takes it. Its masks say which bits do *not* count.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flow-type {} ", self.protocol.flow().label())?;
        match self.matches {
            Match::Source { address, mask } => write!(f, "src-ip {address} m {}", !mask)?,
            Match::DestinationPort { port, mask } => write!(f, "dst-port {port} m 0x{:x}", !mask)?,
        }
        write!(f, " action {}", self.queue)
    }
}

/// Where a driver has room for rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleRoom {
    /// How many rules there can be; 0 where the driver does not say.
    pub size: u32,
    /// The locations that are in use.
    pub used: Vec<u32>,
    /// Whether the driver picks locations.
    pub picks: bool,
}

impl RuleRoom {
    /// Room by the answers to `ETHTOOL_GRXCLSRLCNT` and `ETHTOOL_GRXCLSRLALL`.
    pub(super) fn decode(counted: u64, listed: u64, used: Vec<u32>) -> Self {
        let size = if counted as u32 & !PICKS != 0 { counted as u32 & !PICKS } else { listed as u32 & !PICKS };
        Self { size, used, picks: counted as u32 & PICKS != 0 }
    }

    /// The last free location: rules that come earlier go first, and those are the operator's.
    pub fn last_free(&self) -> Option<u32> {
        (0..self.size).rev().find(|location| !self.used.contains(location))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::request::INSERT_RULE;
    use crate::header;

    const RULE_80: Rule =
        Rule { protocol: Protocol::Udp, matches: Match::DestinationPort { port: 0x5000, mask: 0xF000 }, queue: 3 };

    #[test]
    fn the_places_are_the_headers() {
        let at = |word: usize| word as u64 * 4;
        header::compare(&[
            ("offsetof(struct ethtool_rxnfc, fs.h_u)", at(VALUES)),
            ("offsetof(struct ethtool_rxnfc, fs.m_u)", at(MASKS)),
            ("offsetof(struct ethtool_rxnfc, fs.ring_cookie)", at(QUEUE)),
            ("sizeof(union ethtool_flow_union)", 52),
            ("offsetof(struct ethtool_tcpip4_spec, ip4src)", 0),
            ("offsetof(struct ethtool_tcpip4_spec, pdst)", 10),
            ("RX_CLS_LOC_ANY", ANYWHERE.into()),
            ("RX_CLS_LOC_SPECIAL", PICKS.into()),
        ]);
    }

    #[test]
    fn a_rule_is_its_values_and_masks_in_network_order() {
        let mut request = Request::new(INSERT_RULE);
        RULE_80.encode(Some(9), &mut request);
        assert_eq!((request.get(RULE), request.get(LOCATION), request.wide(QUEUE)), (2, 9, 3));
        assert_eq!(request.bytes(VALUES, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0]);
        assert_eq!(request.bytes(MASKS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xF0, 0]);
        let matches = Match::Source { address: Ipv4Addr::new(10, 0, 0, 64), mask: Ipv4Addr::new(0, 0, 0, 192) };
        Rule { protocol: Protocol::Tcp, matches, queue: 1 }.encode(None, &mut request);
        assert_eq!((request.get(RULE), request.get(LOCATION)), (1, ANYWHERE));
        assert_eq!(request.bytes(VALUES, 12), [10, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request.bytes(MASKS, 4), [0, 0, 0, 192]);
    }

    #[test]
    fn a_rule_is_shown_as_ethtool_takes_it() {
        assert_eq!(RULE_80.to_string(), "flow-type udp4 dst-port 20480 m 0xfff action 3");
        let matches = Match::Source { address: Ipv4Addr::new(10, 0, 0, 64), mask: Ipv4Addr::new(0, 0, 0, 192) };
        let rule = Rule { protocol: Protocol::Tcp, matches, queue: 1 };
        assert_eq!(rule.to_string(), "flow-type tcp4 src-ip 10.0.0.64 m 255.255.255.63 action 1");
    }

    #[test]
    fn room_is_read_from_either_answer_and_used_from_its_end() {
        let picks = RuleRoom::decode(u64::from(PICKS) | 64, 0, Vec::new());
        assert_eq!((picks.size, picks.picks), (64, true));
        let listed = RuleRoom::decode(0, 4, vec![3, 1]);
        assert_eq!((listed.size, listed.picks, listed.last_free()), (4, false, Some(2)));
        assert_eq!(RuleRoom::decode(0, 2, vec![0, 1]).last_free(), None);
    }
}
