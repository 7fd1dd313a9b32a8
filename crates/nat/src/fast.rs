//! The fast path: whole TCP and UDP packets of sessions whose ways are known, a burst at a time.
//!
//! Knows one shape of packet: untagged, no IPv4 options, not a fragment. Everything else, and all that is not plain here, is left to the
//! ordinary way in `nat.rs`, which decides it from the start. Called first for each burst. Invariant: what the fast path forwards, the
//! ordinary way would have forwarded, to the same bytes, tables and counts. Tests: the reference NAT runs over both.
//!
//! A burst goes in stages, so that the processor waits for the memory of many packets at once: read all packets and hash their keys, look
//! at all index lines, at all records, and then finish packet by packet, in order.

use core::net::Ipv4Addr;

use portcullis_wire::ipv4::{TCP, UDP};
use portcullis_wire::tcp::TcpFlags;

use crate::counters::Counter;
use crate::nat::Nat;
use crate::packet::Packet;
use crate::policy::{DeviceId, Endpoint, InterfaceId, Mac, Network, Protocol, Side};
use crate::record::Session;
use crate::table::{Candidate, Outer};
use crate::tcp::{Direction, Flags};
use crate::time::Tick;
use crate::verdict::{Errand, Verdict};

/// Packets that go through the stages together.
pub(crate) const BURST: usize = 32;

/// As much of a frame as the fast path reads and writes: Ethernet, IPv4 and TCP without options.
const HEAD: usize = 54;
type Head = [u8; HEAD];

/// Where the headers' fields are. **Units:** bytes from the frame's start.
mod at {
    pub(super) const ETHERTYPE: usize = 12;
    pub(super) const LEN: usize = 16;
    pub(super) const FRAGMENT: usize = 20;
    pub(super) const TTL: usize = 22;
    pub(super) const PROTOCOL: usize = 23;
    pub(super) const CHECKSUM: usize = 24;
    pub(super) const SOURCE: usize = 26;
    pub(super) const DESTINATION: usize = 30;
    pub(super) const SOURCE_PORT: usize = 34;
    pub(super) const DESTINATION_PORT: usize = 36;
    pub(super) const UDP_LEN: usize = 38;
    pub(super) const UDP_CHECKSUM: usize = 40;
    pub(super) const TCP_OFFSET: usize = 46;
    pub(super) const TCP_FLAGS: usize = 47;
    pub(super) const TCP_CHECKSUM: usize = 50;
}

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: u32 = 20;

/// EtherType, version, header length and type of service, as one word in memory order, and what of it has to be so.
const PLAIN: u32 = u32::from_be_bytes([0x08, 0x00, 0x45, 0x00]);
const PLAIN_MASK: u32 = 0xFFFF_FF00;

/// More fragments, and the offset; not the reserved bit and not Don't Fragment.
const FRAGMENT_MASK: u16 = 0x3FFF;

/// The interface of a device's untagged frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    mac: Mac,
    interface: InterfaceId,
    side: Side,
}

/// The gates, by device.
pub(crate) fn gates(network: &Network) -> Vec<Option<Gate>> {
    let devices = network.interfaces.iter().map(|interface| usize::from(interface.device.0) + 1).max().unwrap_or(0);
    let gate = |device| {
        let interface = network.interface_of(DeviceId(device as u8), None)?;
        let configured = &network.interfaces[usize::from(interface.0)];
        Some(Gate { mac: configured.mac, interface, side: configured.side })
    };
    (0..devices).map(gate).collect()
}

/// What the stages know of a packet.
#[derive(Clone, Copy)]
struct Seen {
    source: Endpoint,
    destination: Endpoint,
    protocol: Protocol,
    flags: Flags,
    /// The datagram's length in bytes.
    len: u16,
    /// The external address's slot, of an inbound packet.
    outer: Outer,
    candidate: Candidate,
}

/// What a burst adds to the counters.
#[derive(Clone, Copy, Default)]
struct Tally {
    received: u64,
    received_bytes: u64,
    forwarded: u64,
}

impl Nat<'_> {
    /// Steps 2 to 7 for at most [`BURST`] packets from one device. Appends one verdict for each, in order.
    pub(crate) fn process_burst(&mut self, burst: &mut [Packet<'_>], device: DeviceId, now: Tick, verdicts: &mut Vec<Verdict>) {
        match self.gates.get(usize::from(device.0)) {
            Some(&Some(gate)) if gate.side == Side::Inside => self.pass::<true>(burst, device, &gate, now, verdicts),
            Some(&Some(gate)) => self.pass::<false>(burst, device, &gate, now, verdicts),
            _ => burst.iter_mut().for_each(|packet| verdicts.push(self.process_one(packet, device, now))),
        }
    }

    fn pass<const OUTBOUND: bool>(
        &mut self,
        burst: &mut [Packet<'_>],
        device: DeviceId,
        gate: &Gate,
        now: Tick,
        verdicts: &mut Vec<Verdict>,
    ) {
        let mut seen = [None; BURST];
        for (seen, packet) in seen.iter_mut().zip(burst.iter()) {
            *seen = self.see::<OUTBOUND>(packet, gate);
        }
        for seen in seen.iter_mut().flatten() {
            self.state.sessions.look(&mut seen.candidate);
        }
        self.state.sessions.touch(seen.iter().flatten().map(|seen| &seen.candidate));
        let mut tally = Tally::default();
        for (seen, packet) in seen.iter().zip(burst) {
            let forwarded = seen.as_ref().and_then(|seen| self.forward::<OUTBOUND>(packet, seen, gate, now));
            if forwarded.is_some() {
                tally.forwarded += 1;
                tally.received += u64::from(packet.handed == 0);
                tally.received_bytes += if packet.handed == 0 { packet.len as u64 } else { 0 };
            }
            verdicts.push(forwarded.unwrap_or_else(|| self.process_one(packet, device, now)));
        }
        let (way, received, bytes) = if OUTBOUND {
            (Counter::Outbound, Counter::InsideReceived, Counter::InsideReceivedBytes)
        } else {
            (Counter::Inbound, Counter::OutsideReceived, Counter::OutsideReceivedBytes)
        };
        self.counters.add(way, tally.forwarded);
        self.counters.add(Counter::FastPath, tally.forwarded);
        self.counters.add(received, tally.received);
        self.counters.add(bytes, tally.received_bytes);
    }

    /// Reads a packet. None for one that is not plain.
    #[inline]
    fn see<const OUTBOUND: bool>(&self, packet: &Packet<'_>, gate: &Gate) -> Option<Seen> {
        let head = packet.buffer.first_chunk::<HEAD>()?;
        let is_plain = word(head, at::ETHERTYPE) & PLAIN_MASK == PLAIN
            && packet.errand == Errand::Whole
            && head[..6] == gate.mac
            && half(head, at::FRAGMENT) & FRAGMENT_MASK == 0
            && head[at::TTL] > 1
            && header_sum(head).is_multiple_of(0xFFFF);
        let len = half(head, at::LEN);
        if !is_plain || ETHERNET_LEN + usize::from(len) > packet.len {
            return None;
        }
        let payload = u32::from(len).checked_sub(IPV4_LEN)?;
        let (protocol, flags, covered, checksum) = match head[at::PROTOCOL] {
            TCP => {
                let offset = u32::from(head[at::TCP_OFFSET] >> 4) * 4;
                let flags = TcpFlags(head[at::TCP_FLAGS]);
                if offset < 20 || offset > payload || flags.is_impossible() {
                    return None;
                }
                (Protocol::Tcp, Flags::from(flags), payload, half(head, at::TCP_CHECKSUM))
            }
            UDP => {
                let covered = u32::from(half(head, at::UDP_LEN));
                if covered < 8 || covered > payload {
                    return None;
                }
                (Protocol::Udp, Flags::default(), covered, half(head, at::UDP_CHECKSUM))
            }
            _ => return None,
        };
        // The field of a partial checksum is the sum over the pseudo-header. One of a right checksum may be so as well, seldom.
        let (from, to) = (word(head, at::SOURCE), word(head, at::DESTINATION));
        let pseudo = folded(from) + folded(to) + u32::from(head[at::PROTOCOL]) + covered + u32::from(!checksum);
        if pseudo.is_multiple_of(0xFFFF) {
            return None;
        }
        let source = Endpoint { address: Ipv4Addr::from_bits(from), port: half(head, at::SOURCE_PORT) };
        let destination = Endpoint { address: Ipv4Addr::from_bits(to), port: half(head, at::DESTINATION_PORT) };
        let (outer, candidate) = if OUTBOUND {
            (Outer::default(), self.state.sessions.outbound_candidate(protocol, source, destination))
        } else {
            let outer = self.state.outer(self.state.slot_of(destination.address)?, destination.port);
            (outer, self.state.sessions.inbound_candidate(protocol, outer, source))
        };
        Some(Seen { source, destination, protocol, flags, len, outer, candidate })
    }

    /// Steps 5 and 7 for a packet of a session that lives and whose way is known; none otherwise, and then nothing has changed.
    #[inline]
    fn forward<const OUTBOUND: bool>(&mut self, packet: &mut Packet<'_>, seen: &Seen, gate: &Gate, now: Tick) -> Option<Verdict> {
        let number = seen.candidate.number()?;
        let session = self.state.sessions.records.get(number);
        let is_it = if OUTBOUND {
            session.internal() == seen.source && session.remote() == seen.destination
        } else {
            Outer::of(session) == seen.outer && session.remote() == seen.source
        };
        if !is_it || !session.kind.is_of(seen.protocol) || self.state.expires_in(session, now) == 0 {
            return None;
        }
        let pair = self.adjacencies.used(session.adjacencies)?;
        let leaves = if OUTBOUND { &pair.outside } else { &pair.inside };
        if seen.len > leaves.mtu || OUTBOUND && pair.inside.interface != gate.interface {
            return None;
        }
        let external = self.state.external_of(session);
        let direction = if OUTBOUND { Direction::Outbound } else { Direction::Inbound };
        let session = self.state.sessions.records.get_mut(number);
        session.advance(direction, seen.flags, self.policy.inbound_refresh, now);
        let head = packet.buffer.first_chunk_mut::<HEAD>()?;
        head[..6].copy_from_slice(&leaves.destination);
        head[6..12].copy_from_slice(&leaves.source);
        if OUTBOUND {
            rewrite(head, (at::SOURCE, at::SOURCE_PORT), external, seen.protocol);
        } else {
            rewrite(head, (at::DESTINATION, at::DESTINATION_PORT), session.internal(), seen.protocol);
        }
        Some(Verdict::Transmit(leaves.device))
    }

    /// Finds out by which adjacencies a session's packets leave, where the fast path may have them: every check of the ordinary way that
    /// could refuse a plain packet of it, or do more than forward it, has been passed for both ways, and holds until there are other
    /// rules or another network.
    pub(crate) fn learn_way(&mut self, number: u32) {
        let session = *self.session(number);
        if self.adjacencies.get(session.adjacencies).is_none() {
            let learnt = self.way_of(&session).unwrap_or(0);
            self.state.sessions.records.get_mut(number).adjacencies = learnt;
        }
    }

    fn way_of(&mut self, session: &Session) -> Option<u16> {
        let (internal, remote, external) = (session.internal(), session.remote(), self.state.external_of(session));
        let (inside, outside) =
            crate::arrival::adjacencies_between(internal.address, remote.address, &self.network, &mut self.paths, &self.state)?;
        let protocol = session.kind.protocol();
        let is_mine = !self.has_company()
            || self.owners.of_subscriber(internal.address) == self.me
                && self.rules().of_inbound(session.slot, protocol, external, remote).0 == self.me;
        is_mine.then(|| self.adjacencies.number_of(inside, outside))
    }
}

#[inline]
fn half(head: &Head, at: usize) -> u16 {
    u16::from_be_bytes([head[at], head[at + 1]])
}

#[inline]
fn word(head: &Head, at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

#[inline]
fn set_half(head: &mut Head, at: usize, value: u16) {
    [head[at], head[at + 1]] = value.to_be_bytes();
}

/// Both halves of a word together.
#[inline]
const fn folded(word: u32) -> u32 {
    (word >> 16) + (word & 0xFFFF)
}

/// A number that is congruent to the IPv4 header's sum modulo 65,535: zero for a right header, whose words are not all zero.
#[inline]
fn header_sum(head: &Head) -> u32 {
    let words = [ETHERNET_LEN, ETHERNET_LEN + 4, ETHERNET_LEN + 8, ETHERNET_LEN + 12, ETHERNET_LEN + 16];
    let sum: u64 = words.into_iter().map(|at| u64::from(word(head, at))).sum();
    (sum >> 32) as u32 + folded(sum as u32)
}

/// Replaces one endpoint, counts the TTL down, and mends both checksums: equation 3 of RFC 1624, unfolded until the end.
#[inline]
fn rewrite(head: &mut Head, (address_at, port_at): (usize, usize), new: Endpoint, protocol: Protocol) {
    let (address, port) = (new.address.to_bits(), new.port);
    let addresses = folded(!word(head, address_at)) + folded(address);
    let ports = u32::from(!half(head, port_at)) + u32::from(port);
    head[address_at..address_at + 4].copy_from_slice(&address.to_be_bytes());
    set_half(head, port_at, port);
    head[at::TTL] -= 1;
    // The TTL is the upper half of its word: minus 0x100 modulo 65,535.
    let of_header = mended(half(head, at::CHECKSUM), addresses + 0xFEFF);
    set_half(head, at::CHECKSUM, of_header);
    match protocol {
        Protocol::Tcp => {
            let checksum = mended(half(head, at::TCP_CHECKSUM), addresses + ports);
            set_half(head, at::TCP_CHECKSUM, checksum);
        }
        Protocol::Udp | Protocol::Icmp => {
            let before = half(head, at::UDP_CHECKSUM);
            if before != 0 {
                let checksum = portcullis_wire::checksum::udp_spelling(mended(before, addresses + ports));
                set_half(head, at::UDP_CHECKSUM, checksum);
            }
        }
    }
}

/// A checksum field after words changed: `change` is the sum of what the new ones and the complements of the old ones are, not zero.
#[inline]
const fn mended(checksum: u16, change: u32) -> u16 {
    let sum = folded(!checksum as u32 + change);
    !(folded(sum) as u16)
}
