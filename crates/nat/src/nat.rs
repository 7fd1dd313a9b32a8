//! The eight steps, and the state of one worker.

use core::net::Ipv4Addr;
use std::sync::Arc;

use crate::counters::Counters;
use crate::policy::{DeviceId, InterfaceId, Network, Policy};
use crate::time::Tick;
use crate::verdict::{DropReason, Verdict};
use crate::view::{Gauges, MappingView, PortUse, SessionView};

/// A packet in its frame. **Shape:** `buffer` reaches from the packet's first byte (Ethernet) to the end of the frame, so that an
/// ICMP error or a VLAN tag has room; the packet is the first `len` bytes.
#[derive(Debug)]
pub struct Packet<'f> {
    /// The frame's memory.
    pub buffer: &'f mut [u8],
    /// The packet's length in bytes.
    pub len: usize,
}

/// How many records each table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Mappings.
    pub mappings: u32,
    /// Sessions.
    pub sessions: u32,
    /// External address slots.
    pub externals: u16,
    /// Fragmented packets followed at once.
    pub fragments: u32,
}

/// Randomness, drawn by the caller once: hash keys and the seed of the port choice.
#[derive(Clone, Copy, Debug)]
pub struct Seeds(pub [u64; 4]);

/// One worker's NAT.
pub struct Nat {
    counters: Counters,
}

impl Nat {
    /// Steps 2 to 7 for a burst from one device: verdict `i` is packet `i`'s.
    pub fn process(&mut self, burst: &mut [Packet<'_>], device: DeviceId, now: Tick, verdicts: &mut Vec<Verdict>) {
        let _ = (burst, device, now);
        verdicts.push(Verdict::Drop(DropReason::NoMapping));
    }

    /// Ends what has been idle too long: a bounded step of the sweep. Called between bursts, and when idle.
    pub fn expire(&mut self, now: Tick) {
        let _ = now;
    }

    /// Adopts new rules. Mappings of external addresses that are gone end.
    pub fn adopt_policy(&mut self, policy: Arc<Policy>) {
        let _ = policy;
    }

    /// Adopts the network as it is now.
    pub fn adopt_network(&mut self, network: Arc<Network>) {
        let _ = network;
    }

    /// Completes a held packet's link-layer header. Returns the device, or none while the next hop still has no address.
    pub fn readdress(&mut self, packet: &mut Packet<'_>, interface: InterfaceId, next_hop: Ipv4Addr) -> Option<DeviceId> {
        let _ = (packet, interface, next_hop);
        None
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How full the tables are.
    pub fn gauges(&self) -> Gauges {
        Gauges::default()
    }

    /// The use of each external address, for each protocol.
    pub fn port_use(&self) -> Vec<PortUse> {
        Vec::new()
    }

    /// Appends the live sessions among the next `most` records from `cursor` on. Returns the next cursor, or none at the end.
    pub fn sessions(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<SessionView>) -> Option<u32> {
        let _ = (cursor, most, now, into);
        None
    }

    /// Appends the live mappings among the next `most` records from `cursor` on. Returns the next cursor, or none at the end.
    pub fn mappings(&self, cursor: u32, most: u32, into: &mut Vec<MappingView>) -> Option<u32> {
        let _ = (cursor, most, into);
        None
    }
}
