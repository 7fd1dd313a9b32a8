//! SYNs from outside that nothing let in, held until their sender may be told: RFC 5382, REQ-4.
//!
//! Knows the first bytes of each, where it came from and when. Called where an inbound packet is refused, and by the worker between bursts.
//! Invariants: at most [`MOST`] are held, and what is held never stands in a packet's way: when there is no room, the new one is forgotten;
//! nobody is told before [`HELD`] has passed, nor after an outbound SYN of the same connection. Tests: `tests/rfc5382.rs`, the reference NAT.

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use portcullis_wire::ipv4;
use portcullis_wire::packet::{Fragment, Layout};
use portcullis_wire::{ethernet, icmp_error, icmpv4};

use crate::arrival::Arrival;
use crate::counters::Counter;
use crate::flow::Tuple;
use crate::forward;
use crate::nat::Nat;
use crate::packet::Packet;
use crate::policy::{DeviceId, Endpoint, Policy, Protocol, UnsolicitedSyn};
use crate::refusal::{Answer, Refusal};
use crate::time::Tick;
use crate::verdict::DropReason;

/// How long a SYN is held: "for at least 6 seconds after the packet is received", and a little, because the worker reads the clock before it
/// receives. **Units:** milliseconds.
pub(crate) const HELD: u32 = 6_100;

/// SYNs held at once. Chosen: forty new senders a second, in 32 KiB of each worker.
const MOST: usize = 256;

/// The first bytes of a frame that an ICMP error has to quote: "the Internet header plus the first 64 bits of the original datagram's data"
/// (RFC 792), behind a link-layer header.
const QUOTED: usize = ethernet::HEADER_LEN + ethernet::TAG_LEN + 60 + TRANSPORT_QUOTED;

/// Of the transport header.
const TRANSPORT_QUOTED: usize = 8;

/// A SYN that is held.
#[derive(Clone, Copy, Debug)]
struct Syn {
    received: Tick,
    device: DeviceId,
    external: Endpoint,
    remote: Endpoint,
    layout: Layout,
    /// As received, as far as it is quoted.
    head: [u8; QUOTED],
}

/// All that are held, the oldest first.
pub(crate) struct Unsolicited {
    syns: VecDeque<Syn>,
}

impl Unsolicited {
    pub(crate) fn new() -> Self {
        Self { syns: VecDeque::with_capacity(MOST) }
    }

    /// Forgets all: of connections of before, nothing is known any more.
    pub(crate) fn clear(&mut self) {
        self.syns.clear();
    }

    /// Holds a SYN. One that its sender sends again is held already, and told of once.
    fn hold(&mut self, syn: Syn) {
        let is_held = |held: &Syn| (held.external, held.remote) == (syn.external, syn.remote);
        if self.syns.len() < MOST && !self.syns.iter().any(is_held) {
            self.syns.push_back(syn);
        }
    }

    fn is_due(&self, now: Tick) -> bool {
        self.syns.front().is_some_and(|syn| now.since(syn.received) >= HELD)
    }

    fn take_due(&mut self, now: Tick) -> Option<Syn> {
        if self.is_due(now) { self.syns.pop_front() } else { None }
    }
}

impl Nat<'_> {
    /// What becomes of a packet that nothing let in: it is refused, and if it is an unsolicited SYN, it is held beside that.
    pub(crate) fn refuse_inbound(
        &mut self,
        packet: &Packet<'_>,
        arrival: &Arrival,
        tuple: &Tuple,
        refusal: Refusal,
        now: Tick,
    ) -> Refusal {
        let is_not_let_in = matches!(refusal, Refusal::Drop(DropReason::Filtered | DropReason::NoMapping));
        if is_not_let_in && tuple.protocol == Protocol::Tcp && tuple.opens && answers(&self.policy, HELD) {
            self.hold_syn(packet, arrival, tuple, now);
        }
        refusal
    }

    fn hold_syn(&mut self, packet: &Packet<'_>, arrival: &Arrival, tuple: &Tuple, now: Tick) {
        let (frame, layout) = (packet.frame(), arrival.layout);
        if layout.fragment() != Fragment::Whole || !icmp_error::may_answer_with_error(frame, &layout) {
            return;
        }
        let device = self.network.interfaces[usize::from(arrival.interface.0)].device;
        let (external, remote) = tuple.inbound();
        let mut head = [0; QUOTED];
        let there = layout.l4() + TRANSPORT_QUOTED;
        if let (Some(place), Some(bytes)) = (head.get_mut(..there), frame.get(..there)) {
            place.copy_from_slice(bytes);
            self.unsolicited.hold(Syn { received: now, device, external, remote, layout, head });
        }
    }

    /// Whether the sender of an unsolicited SYN may be due to be told, so that [`Nat::answer_due`] wants a frame.
    pub fn is_answer_due(&self, now: Tick) -> bool {
        self.unsolicited.is_due(now)
    }

    /// Writes an ICMP error that is due into the memory of a free frame. Gives its length and the device to transmit it on; none when no more
    /// is due. To be called between bursts while [`Nat::is_answer_due`].
    pub fn answer_due(&mut self, buffer: &mut [u8], now: Tick) -> Option<(usize, DeviceId)> {
        while let Some(syn) = self.unsolicited.take_due(now) {
            if let Some(len) = self.tell_of(&syn, buffer, now) {
                return Some((len, syn.device));
            }
        }
        None
    }

    /// Tells a SYN's sender that nobody listens, unless somebody spoke meanwhile: "If during this interval the NAT receives and translates an
    /// outbound SYN for the connection the NAT MUST silently drop the original unsolicited inbound SYN packet. Otherwise, the NAT SHOULD send
    /// an ICMP Port Unreachable error (Type 3, Code 3) for the original SYN" (RFC 5382, REQ-4).
    fn tell_of(&mut self, syn: &Syn, buffer: &mut [u8], now: Tick) -> Option<usize> {
        let link = self.network.interface_of(syn.device, syn.layout.vlan())?;
        let slot = self.state.slot_of(syn.external.address)?;
        let may_be_open = forward::of_port(&self.policy, slot, Protocol::Tcp, syn.external.port).is_some()
            || self.state.inbound(Protocol::Tcp, (slot, syn.external.port), syn.remote, now, &mut self.counters).is_some();
        if may_be_open || !answers(&self.policy, now.since(syn.received)) || !self.network.interfaces[usize::from(link.0)].up {
            return None;
        }
        if !self.icmp_errors.take(now) {
            self.counters.count(Counter::IcmpErrorsLimited);
            return None;
        }
        let len = write_error(syn, syn.external.address, buffer)?;
        self.counters.count(Counter::IcmpErrorsSent);
        Some(len)
    }
}

/// Whether an unsolicited SYN of that age is answered: "unless REQ-4a applies", which lets a policy forbid it. When a session that opened may have
/// ended since, nobody knows any more whether an outbound SYN followed.
fn answers(policy: &Policy, age: u32) -> bool {
    policy.icmp_errors.unsolicited_syn == UnsolicitedSyn::Answered
        && policy.icmp_errors.rate > 0
        && policy.timeouts.tcp_opening.min(policy.timeouts.tcp_closing).as_millis() > u128::from(age)
}

/// The error, from the address that was asked for, as if its host had sent it.
fn write_error(syn: &Syn, source: Ipv4Addr, buffer: &mut [u8]) -> Option<usize> {
    let there = syn.layout.l4() + TRANSPORT_QUOTED;
    let frame = buffer.get_mut(..there + ipv4::HEADER_LEN + icmpv4::HEADER_LEN)?;
    frame[..there].copy_from_slice(&syn.head[..there]);
    icmp_error::build_error(frame, &syn.layout, &Answer::Unreachable(icmpv4::PORT_UNREACHABLE).message(source))
}
