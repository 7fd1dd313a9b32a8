//! The fast path: whole TCP and UDP packets of sessions whose ways are known, a burst at a time.
//!
//! Knows one shape of packet: untagged, no IPv4 options, not a fragment. Everything else, and all that is not plain here, is left to the
//! ordinary way in `nat.rs`, which decides it from the start. Called first for each burst. Invariant: what the fast path forwards, the
//! ordinary way would have forwarded, to the same bytes, tables and counts. Tests: the reference NAT runs over both.
//!
//! A burst goes in stages, so that the processor waits for the memory of many packets at once: read all packets and hash their keys, look
//! at all index lines, at all records, and then finish packet by packet, in order.

use core::hint::select_unpredictable;
use core::net::Ipv4Addr;

use portcullis_wire::checksum::udp_spelling;
use portcullis_wire::ipv4::{TCP, UDP};
use portcullis_wire::tcp::TcpFlags;

use crate::counters::Counter;
use crate::nat::Nat;
use crate::packet::Packet;
use crate::policy::{DeviceId, Endpoint, InterfaceId, Network, Protocol, Side};
use crate::record::{Generation, Session};
use crate::table::{Candidate, Outer};
use crate::tcp::Direction;
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
    pub(super) const IPV4: usize = 14;
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
const IPV4_LEN: u16 = 20;

/// EtherType, version, header length and type of service, as one word in network order, and what of it has to be so.
const PLAIN: u32 = 0x0800_4500;
const PLAIN_MASK: u32 = 0xFFFF_FF00;

/// Of eight bytes of a frame, the first six.
const MAC_MASK: u64 = u64::from_ne_bytes([0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);

/// More fragments, and the offset; not the reserved bit and not Don't Fragment.
const FRAGMENT_MASK: u16 = 0x3FFF;

/// A bit for each combination of the TCP flags from FIN to URG: whether some TCP sends it.
const LEGAL_FLAGS: u64 = {
    let (mut legal, mut flags) = (0, 0);
    while flags < 64 {
        if !TcpFlags(flags).is_impossible() {
            legal |= 1 << flags;
        }
        flags += 1;
    }
    legal
};

/// The interface of a device's untagged frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// Its link-layer address, as the first six bytes of a frame's eight.
    mac: u64,
    interface: InterfaceId,
    side: Side,
}

/// The gates, by device.
pub(crate) fn gates(network: &Network) -> Vec<Option<Gate>> {
    let devices = network.interfaces.iter().map(|interface| usize::from(interface.device.0) + 1).max().unwrap_or(0);
    let gate = |device| {
        let interface = network.interface_of(DeviceId(device as u8), None)?;
        let configured = &network.interfaces[usize::from(interface.0)];
        let mut eight = [0; 8];
        eight[..6].copy_from_slice(&configured.mac);
        Some(Gate { mac: u64::from_ne_bytes(eight), interface, side: configured.side })
    };
    (0..devices).map(gate).collect()
}

/// What the stages know of a packet.
#[derive(Clone, Copy)]
struct Seen {
    candidate: Candidate,
    /// The datagram's length in bytes. Zero for a packet that is not plain.
    len: u16,
    /// Of UDP, those of a segment that changes nothing.
    flags: TcpFlags,
    is_tcp: bool,
    /// Of a packet from outside.
    outer: Outer,
}

impl Seen {
    /// Of a packet that is not plain.
    const NOT_PLAIN: Self = Self {
        candidate: Candidate::NONE,
        len: 0,
        flags: TcpFlags::ACK,
        is_tcp: false,
        outer: Outer { slot: 0, generation: Generation::FIRST },
    };
}

/// What a burst adds to the counters.
#[derive(Clone, Copy, Default)]
struct Tally {
    forwarded: u64,
    bytes: u64,
    /// Of these, what another worker has counted as received.
    handed: u64,
    handed_bytes: u64,
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
        let mut seen = [Seen::NOT_PLAIN; BURST];
        for (seen, packet) in seen.iter_mut().zip(burst.iter()) {
            self.see::<OUTBOUND>(packet, gate, seen);
        }
        let seen = &mut seen[..burst.len()];
        for seen in &mut *seen {
            if seen.len > 0 {
                self.state.sessions.look(&mut seen.candidate);
            }
        }
        self.state.sessions.touch(seen.iter().map(|seen| &seen.candidate));
        let any_handed = burst.iter().any(|packet| packet.handed > 0);
        let mut tally = Tally::default();
        for (seen, packet) in seen.iter().zip(burst) {
            let len = packet.len as u64;
            let verdict = match self.forward::<OUTBOUND>(packet, seen, gate, now) {
                Some(device) => {
                    tally.forwarded += 1;
                    tally.bytes += len;
                    if any_handed && packet.handed > 0 {
                        tally.handed += 1;
                        tally.handed_bytes += len;
                    }
                    Verdict::Transmit(device)
                }
                None => self.process_one(packet, device, now),
            };
            verdicts.push(verdict);
        }
        let (way, received, bytes) = if OUTBOUND {
            (Counter::Outbound, Counter::InsideReceived, Counter::InsideReceivedBytes)
        } else {
            (Counter::Inbound, Counter::OutsideReceived, Counter::OutsideReceivedBytes)
        };
        self.counters.add(way, tally.forwarded);
        self.counters.add(Counter::FastPath, tally.forwarded);
        self.counters.add(received, tally.forwarded - tally.handed);
        self.counters.add(bytes, tally.bytes - tally.handed_bytes);
    }

    /// Reads a packet, and hashes its key if it is plain.
    #[inline]
    fn see<const OUTBOUND: bool>(&self, packet: &Packet<'_>, gate: &Gate, seen: &mut Seen) {
        let Some(head) = packet.buffer.first_chunk::<HEAD>() else { return };
        let len = half(head, at::LEN);
        let is_plain = word(head, at::ETHERTYPE) & PLAIN_MASK == PLAIN
            && matches!(packet.errand, Errand::Whole)
            && eight(head, 0) & MAC_MASK == gate.mac
            && half(head, at::FRAGMENT) & FRAGMENT_MASK == 0
            && head[at::TTL] > 1
            && header_sum(head).is_multiple_of(0xFFFF);
        if !is_plain || !is_either(head[at::PROTOCOL]) {
            return;
        }
        // Both protocols' fields are read and one is chosen: which it is, no branch predictor knows.
        let is_tcp = head[at::PROTOCOL] == TCP;
        let payload = len.wrapping_sub(IPV4_LEN);
        let (udp_len, header_len) = (half(head, at::UDP_LEN), u16::from(head[at::TCP_OFFSET] >> 4) * 4);
        let least = select_unpredictable(is_tcp, 20, 8);
        let claimed = select_unpredictable(is_tcp, header_len, udp_len);
        let flags = select_unpredictable(is_tcp, head[at::TCP_FLAGS], TcpFlags::ACK.0);
        // A length below that of its own header has wrapped to one that no frame has.
        let room = packet.len.saturating_sub(ETHERNET_LEN + usize::from(IPV4_LEN));
        if usize::from(payload) > room || claimed < least || claimed > payload || LEGAL_FLAGS >> (flags % 64) & 1 == 0 {
            return;
        }
        // The field of a partial checksum is the sum over the pseudo-header. One of a right checksum may be so as well, seldom.
        let checksum = half(head, checksum_at(is_tcp));
        let covered = select_unpredictable(is_tcp, payload, udp_len);
        let (from, to) = (word(head, at::SOURCE), word(head, at::DESTINATION));
        let rest = u64::from(head[at::PROTOCOL]) + u64::from(covered) + u64::from(!checksum);
        if (u64::from(from) + u64::from(to) + rest).is_multiple_of(0xFFFF) {
            return;
        }
        let (protocol, sessions) = (protocol_of(is_tcp), &self.state.sessions);
        let (candidate, outer) = if OUTBOUND {
            (sessions.outbound_candidate(protocol, addresses(head), ports(head)), seen.outer)
        } else {
            let Some(slot) = self.state.slot_of(Ipv4Addr::from_bits(to)) else { return };
            let outer = self.state.outer(slot);
            (sessions.inbound_candidate(protocol, outer, from.to_be(), ports(head)), outer)
        };
        *seen = Seen { candidate, len, flags: TcpFlags(flags), is_tcp, outer };
    }

    /// Steps 5 and 7 for a packet of a session that lives and whose way is known. The device that it leaves by; none where it has to go the
    /// ordinary way, and then nothing has changed.
    #[inline]
    fn forward<const OUTBOUND: bool>(&mut self, packet: &mut Packet<'_>, seen: &Seen, gate: &Gate, now: Tick) -> Option<DeviceId> {
        let number = seen.candidate.number()?;
        let head = packet.buffer.first_chunk_mut::<HEAD>()?;
        let session = self.state.sessions.records.get(number);
        let is_it = if OUTBOUND {
            session.outbound_addresses() == addresses(head) && session.outbound_ports() == ports(head)
        } else {
            session.remote_word() == word(head, at::SOURCE).to_be()
                && session.inbound_ports() == ports(head)
                && Outer::of(session) == seen.outer
        };
        // From outside it was found by its slot's address of now.
        let external = if OUTBOUND { self.state.live_address_of(session)? } else { Ipv4Addr::UNSPECIFIED };
        if !is_it || !session.kind.is_of(protocol_of(seen.is_tcp)) || self.state.time_left(session, now) == 0 {
            return None;
        }
        let pair = self.adjacencies.used(session.adjacencies)?;
        let leaves = if OUTBOUND { &pair.outside } else { &pair.inside };
        if seen.len > leaves.mtu || OUTBOUND && pair.inside.interface != gate.interface {
            return None;
        }
        let ours = if OUTBOUND { session.external(external) } else { session.internal() };
        let direction = if OUTBOUND { Direction::Outbound } else { Direction::Inbound };
        let session = self.state.sessions.records.get_mut(number);
        session.advance(direction, seen.flags, self.policy.inbound_refresh, now);
        head[..12].copy_from_slice(&leaves.addresses);
        rewrite::<OUTBOUND>(head, ours, seen.is_tcp);
        Some(leaves.device)
    }

    /// Finds out by which adjacencies a session's packets leave, where the fast path may have them: every check of the ordinary way that
    /// could refuse a plain packet of it, or do more than forward it, has been passed for both ways, and holds until there are other
    /// rules or another network.
    pub(crate) fn learn_way(&mut self, number: u32) {
        let session = *self.session(number);
        if self.adjacencies.get(session.adjacencies).is_none() {
            let learnt = self.way_of(&session).unwrap_or_else(|| self.adjacencies.number_of_none());
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
fn wire_half(head: &Head, at: usize) -> u16 {
    u16::from_ne_bytes([head[at], head[at + 1]])
}

#[inline]
fn set_wire_half(head: &mut Head, at: usize, value: u16) {
    [head[at], head[at + 1]] = value.to_ne_bytes();
}

/// Eight bytes, as one number in memory order.
#[inline]
fn eight(head: &Head, at: usize) -> u64 {
    u64::from_ne_bytes(core::array::from_fn(|byte| head[at + byte]))
}

/// Source and destination address, as one number in memory order.
#[inline]
fn addresses(head: &Head) -> u64 {
    eight(head, at::SOURCE)
}

/// Source and destination port, as one number in memory order.
#[inline]
fn ports(head: &Head) -> u32 {
    let at: [u8; 4] = core::array::from_fn(|byte| head[at::SOURCE_PORT + byte]);
    u32::from_ne_bytes(at)
}

/// Whether a protocol is TCP or UDP, asked at once.
#[inline]
const fn is_either(protocol: u8) -> bool {
    const EITHER: u64 = 1 << TCP | 1 << UDP;
    protocol < 64 && EITHER >> protocol & 1 == 1
}

#[inline]
fn protocol_of(is_tcp: bool) -> Protocol {
    select_unpredictable(is_tcp, Protocol::Tcp, Protocol::Udp)
}

#[inline]
fn checksum_at(is_tcp: bool) -> usize {
    select_unpredictable(is_tcp, at::TCP_CHECKSUM, at::UDP_CHECKSUM)
}

/// A number that is congruent to the IPv4 header's sum modulo 65,535. Any byte order will do.
#[inline]
fn header_sum(head: &Head) -> u64 {
    let four = u32::from_ne_bytes(core::array::from_fn(|byte| head[at::IPV4 + 16 + byte]));
    let (sum, carry) = eight(head, at::IPV4).overflowing_add(eight(head, at::IPV4 + 8));
    let (sum, more) = sum.overflowing_add(u64::from(four) + u64::from(carry));
    sum + u64::from(more)
}

/// Replaces one endpoint, counts the TTL down, and mends both checksums: equation 3 of RFC 1624, folded at the end.
#[inline]
fn rewrite<const OUTBOUND: bool>(head: &mut Head, new: Endpoint, is_tcp: bool) {
    let (address_at, port_at) = if OUTBOUND { (at::SOURCE, at::SOURCE_PORT) } else { (at::DESTINATION, at::DESTINATION_PORT) };
    // In memory order, which is as good as any for sums.
    let (address, port) = (u32::from_ne_bytes(new.address.octets()), u16::from_ne_bytes(new.port.to_be_bytes()));
    let addresses = add32(!u32::from_ne_bytes(core::array::from_fn(|byte| head[address_at + byte])), address);
    let ports = u32::from(!wire_half(head, port_at)) + u32::from(port);
    head[address_at..address_at + 4].copy_from_slice(&address.to_ne_bytes());
    set_wire_half(head, port_at, port);
    head[at::TTL] -= 1;
    // The TTL is the first byte of its word: minus that modulo 65,535.
    let fewer = u32::from(!u16::from_ne_bytes([1, 0]));
    let of_header = mended(wire_half(head, at::CHECKSUM), addresses, fewer);
    set_wire_half(head, at::CHECKSUM, of_header);
    let checksum_at = checksum_at(is_tcp);
    let before = wire_half(head, checksum_at);
    if is_tcp || before != 0 {
        let after = mended(before, addresses, ports);
        // Zero is the same in any order, and so is its other spelling.
        set_wire_half(head, checksum_at, select_unpredictable(is_tcp, after, udp_spelling(after)));
    }
}

/// A checksum field after words changed: each change is the sum of what the new words and the complements of the old ones are.
#[inline]
const fn mended(checksum: u16, change: u32, more: u32) -> u16 {
    let sum = add32(change, !checksum as u32 + more);
    // The upper half is that of both halves together, with the carry.
    !(sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// The sum modulo 2^32 - 1, of which 65,535 is a divisor.
#[inline]
const fn add32(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u32
}
