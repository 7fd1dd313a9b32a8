//! Lowers the maximum segment size that TCP announces, where an interface asks for it: the way out of links whose ICMP errors get lost.
//!
//! Knows interfaces and MTUs; `wire::tcp` finds the option. Called at the end of each way for packets that go the ordinary way: while any
//! interface clamps, the fast path leaves every SYN to it ([`fast_flags`]). Invariants: a size is lowered, never raised or added; the checksum
//! stays as right as it was. Sources: RFC 9293 section 3.7.1, RFC 6691. Tests: `tests/mss.rs`, the reference NAT.

use portcullis_wire::packet::Transport;
use portcullis_wire::{ipv4, tcp};

use crate::arrival::Arrival;
use crate::counters::Counter;
use crate::fast::LEGAL_FLAGS;
use crate::nat::Nat;
use crate::packet::Packet;
use crate::path::{Path, Whereabouts};
use crate::policy::{InterfaceId, MssClamp, Network};

/// What a segment has beside its data: RFC 6691 has no options counted.
const HEADERS: u16 = (ipv4::HEADER_LEN + tcp::HEADER_LEN) as u16;

impl MssClamp {
    /// The largest size through an interface, towards a host that the path's MTU is for.
    const fn most(self, mtu: u16) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::PathMtu => Some(mtu.saturating_sub(HEADERS)),
            Self::At(size) => Some(size),
        }
    }
}

/// A bit for each combination of TCP flags that the fast path may forward in that network: not a SYN's where an interface clamps.
pub(crate) fn fast_flags(network: &Network) -> u64 {
    let clamps = network.interfaces.iter().any(|interface| interface.mss != MssClamp::Off);
    let has_syn = |flags: &u8| tcp::TcpFlags(*flags).syn();
    let with_syn = (0..64).filter(has_syn).fold(0_u64, |all, flags| all | 1 << flags);
    if clamps { LEGAL_FLAGS & !with_syn } else { LEGAL_FLAGS }
}

impl Nat<'_> {
    /// Lowers what a SYN or a SYN and ACK announces to what both interfaces that it crosses ask for. Either way: what a host announces is what
    /// the other one sends. The packet is translated, and its checksum no partial one any more.
    pub(crate) fn clamp_mss(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, leaves: &Path) {
        if self.fast_flags == LEGAL_FLAGS || arrival.layout.transport() != Transport::Tcp {
            return;
        }
        let arrives = &self.network.interfaces[usize::from(arrival.interface.0)];
        let mtu_back = match self.paths.towards(&self.network, arrival.source) {
            Whereabouts::Via(path) if path.interface == arrival.interface => path.mtu,
            _ => arrives.mtu,
        };
        let of = |InterfaceId(number)| self.network.interfaces[usize::from(number)].mss;
        let asked = [of(arrival.interface).most(mtu_back), of(leaves.interface).most(leaves.mtu)];
        let Some(most) = asked.into_iter().flatten().min() else { return };
        if tcp::clamp_mss(arrival.layout.payload_mut(packet.frame_mut()), most) {
            self.counters.count(Counter::MssClamped);
        }
    }
}
