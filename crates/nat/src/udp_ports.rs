//! Which UDP sessions have a time of their own: those that the inside began towards a port that the rules name (RFC 4787, REQ-5a).
//!
//! Knows ports and times, no packets. Asked when a session is made, and of all sessions when the rules have changed. A session keeps the
//! class of its time in its kind, so that the packet path, which asks for the time by kind, asks nothing more. Invariant: as many classes
//! as kinds have. Tests: below, `tests/rfc4787.rs`, the reference NAT.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::policy::{Protocol, UDP_PORT_TIMES};
use crate::record::{Session, UdpClass, flag};

/// The classes by port, and their times.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct UdpPorts {
    /// In the order of the ports.
    by_port: Vec<(u16, UdpClass)>,
    /// Of the classes from the second on.
    times: Vec<Duration>,
}

impl UdpPorts {
    /// The classes of those times. Of more than [`UDP_PORT_TIMES`] different ones, which no configuration has, the longest are left out.
    pub(crate) fn new(times: &BTreeMap<u16, Duration>) -> Self {
        let mut different: Vec<_> = times.values().copied().collect();
        different.sort_unstable();
        different.dedup();
        different.truncate(UDP_PORT_TIMES);
        let class = |time: &Duration| different.binary_search(time).ok().map(|place| UdpClass::of_port(place as u8));
        let by_port = times.iter().filter_map(|(&port, time)| Some((port, class(time)?))).collect();
        Self { by_port, times: different }
    }

    /// The time of a class; none for the ordinary one, and for those that no port has.
    pub(crate) fn time(&self, class: UdpClass) -> Option<Duration> {
        self.times.get(class.place()?).copied()
    }

    /// The class of a session.
    #[inline]
    pub(crate) fn class_of(&self, session: &Session) -> UdpClass {
        if self.by_port.is_empty() { UdpClass::ORDINARY } else { self.look_up(session) }
    }

    fn look_up(&self, session: &Session) -> UdpClass {
        // Of what a remote began, its port is not the destination's.
        if !session.kind.is_of(Protocol::Udp) || !session.has(flag::OUTBOUND) {
            return UdpClass::ORDINARY;
        }
        let port = session.remote().port;
        let found = self.by_port.binary_search_by_key(&port, |&(port, _)| port).ok();
        found.map_or(UdpClass::ORDINARY, |place| self.by_port[place].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(rows: &[(u16, u64)]) -> UdpPorts {
        UdpPorts::new(&rows.iter().map(|&(port, seconds)| (port, Duration::from_secs(seconds))).collect())
    }

    #[test]
    fn ports_with_the_same_time_share_a_class() {
        let ports = ports(&[(53, 30), (123, 10), (5353, 30)]);
        assert_eq!(ports.times, [10, 30].map(Duration::from_secs));
        assert_eq!(ports.by_port, [(53, 1), (123, 0), (5353, 1)].map(|(port, place)| (port, UdpClass::of_port(place))));
        assert_eq!(ports.time(UdpClass::of_port(1)), Some(Duration::from_secs(30)));
        assert_eq!((ports.time(UdpClass::ORDINARY), ports.time(UdpClass::of_port(2))), (None, None));
    }

    #[test]
    fn of_more_times_than_classes_the_longest_are_ordinary() {
        let ports = ports(&[(1, 50), (2, 40), (3, 30), (4, 20), (5, 10), (6, 60)]);
        assert_eq!(ports.by_port.iter().map(|&(port, _)| port).collect::<Vec<_>>(), [2, 3, 4, 5]);
    }
}
