//! A packet listener on every device of a namespace, for what must be seen and what must never be.
//!
//! Knows packet sockets and IPv4 headers. It sees what the kernel's stack sees: frames in both directions, but not those that an XDP
//! program took. Invariant: listening has begun when [`Sniffer::start`] returns.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::namespace::Namespace;

/// Ethernet's number for IPv4.
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// The length of an Ethernet header without tags.
const ETHERNET: usize = 14;
/// Room for bursts while the thread is not running. **Units:** bytes.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A listener that keeps every IPv4 packet until it is dropped.
#[derive(Debug)]
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    packets: Arc<Mutex<Vec<Seen>>>,
    thread: Option<JoinHandle<()>>,
}

/// An IPv4 packet that was seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// The source address.
    pub source: Ipv4Addr,
    /// The destination address.
    pub destination: Ipv4Addr,
    /// The protocol's number.
    pub protocol: u8,
    /// The packet from the IPv4 header on.
    pub bytes: Vec<u8>,
}

impl Sniffer {
    /// Begins to listen on all devices of `host`, and keeps every packet.
    pub fn start(host: &Namespace) -> Result<Self> {
        Self::start_for(host, |_| true)
    }

    /// Begins to listen on all devices of `host`, and keeps the packets for which `wanted` holds.
    pub fn start_for(host: &Namespace, wanted: fn(&Seen) -> bool) -> Result<Self> {
        let socket = host.enter(open)?.with_context(|| format!("opening a packet socket in {}", host.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let packets = Arc::new(Mutex::new(Vec::new()));
        let thread = {
            let (stop, packets) = (Arc::clone(&stop), Arc::clone(&packets));
            thread::spawn(move || listen(&socket, wanted, &stop, &packets))
        };
        Ok(Self { stop, packets, thread: Some(thread) })
    }

    /// The packets seen until now for which `wanted` holds.
    pub fn seen(&self, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        packets.iter().filter(|packet| wanted(packet)).cloned().collect()
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough for the headers and those of an embedded packet.
        const SHOWN: usize = 80;
        write!(f, "{} > {} protocol {}, {} bytes:", self.source, self.destination, self.protocol, self.bytes.len())?;
        self.bytes.iter().take(SHOWN).try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

impl Seen {
    /// Reads a frame; none when it is not IPv4.
    fn of(frame: &[u8]) -> Option<Self> {
        let bytes = frame.get(ETHERNET..).filter(|bytes| bytes.len() >= 20 && frame[12..14] == ETHERTYPE_IPV4)?;
        let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Some(Self { source: address(12), destination: address(16), protocol: bytes[9], bytes: bytes.to_vec() })
    }

    /// Whether it comes from or goes to 10.0.0.0/8: on the outside wire there must be no such packet.
    pub fn is_internal(&self) -> bool {
        self.source.octets()[0] == 10 || self.destination.octets()[0] == 10
    }

    /// The header's length, options included. **Units:** bytes.
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes[0] & 0x0F) * 4
    }

    /// The type of service: DSCP and ECN.
    pub fn tos(&self) -> u8 {
        self.bytes[1]
    }

    /// The time to live.
    pub fn ttl(&self) -> u8 {
        self.bytes[8]
    }

    /// Whether it is a fragment.
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes([self.bytes[6], self.bytes[7]]) & 0x3FFF != 0
    }

    /// The IPv4 options.
    pub fn options(&self) -> &[u8] {
        self.bytes.get(20..self.header_len()).unwrap_or_default()
    }

    /// What follows the header.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.header_len()..).unwrap_or_default()
    }
}

fn open() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
    Ok(socket)
}

fn listen(socket: &OwnedFd, wanted: fn(&Seen) -> bool, stop: &AtomicBool, packets: &Mutex<Vec<Seen>>) {
    let mut frame = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) else { continue };
        if let Some(packet) = Seen::of(&frame[..length]).filter(wanted) {
            packets.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Topology, is_root_or_skips};
    use super::*;
    use crate::topology::program::wait_until;
    use std::time::Duration;

    #[test]
    fn a_ping_is_seen_with_its_addresses_and_its_type_of_service() {
        if !is_root_or_skips("sniff::a_ping_is_seen_with_its_addresses_and_its_type_of_service") {
            return;
        }
        let topology = Topology::build("pcunit").expect("builds");
        let sniffer = Sniffer::start(topology.gateway()).expect("listens");
        topology.client(0).run("ping -c1 -W2 -Q 0x28 10.0.0.1").expect("answers");
        let seen = || sniffer.seen(|packet| packet.protocol == 1 && packet.tos() == 0x28);
        assert!(wait_until(Duration::from_secs(2), || seen().len() >= 2), "{:?}", sniffer.seen(|_| true));
        let request = &seen()[0];
        assert_eq!((request.source, request.destination), ([10, 0, 0, 2].into(), [10, 0, 0, 1].into()));
        assert!(!request.is_fragment() && request.options().is_empty() && request.ttl() == 64);
        assert_eq!(request.payload()[0], 8, "an echo request");
        assert!(sniffer.seen(|_| true).iter().all(Seen::is_internal));
    }

    #[test]
    fn what_a_kernel_without_nat_forwards_is_seen_outside() {
        if !is_root_or_skips("sniff::what_a_kernel_without_nat_forwards_is_seen_outside") {
            return;
        }
        let topology = Topology::build("pcunit").expect("builds");
        let sniffer = Sniffer::start_for(topology.router(), Seen::is_internal).expect("listens");
        topology.client(0).program("ping", ["-c1", "-W1", "198.51.100.2"]).run().expect("runs");
        assert!(wait_until(Duration::from_secs(2), || !sniffer.seen(|_| true).is_empty()), "the kernel has forwarded, unseen");
    }
}
