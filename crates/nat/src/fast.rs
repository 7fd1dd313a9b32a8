//! The fast path: whole TCP and UDP packets of sessions whose ways are known, a burst at a time.
//!
//! Knows one shape of packet: untagged, no IPv4 options, not a fragment. Everything else, and all that is not plain here, is left to the
//! ordinary way in `nat.rs`, which decides it from the start. Called first for each burst. Invariant: what the fast path forwards, the
//! ordinary way would have forwarded, to the same bytes, tables and counts. Tests: the reference NAT runs over both.
//!
//! A burst goes in stages: read all packets and hash their keys, look at all index lines, and then finish packet by packet, in order. In
//! tables beyond the caches, each stage has what the next one reads fetched: the processor waits for the memory of many packets at once.

use core::hint::select_unpredictable;
use core::net::Ipv4Addr;

use portcullis_wire::ipv4::{TCP, UDP};
use portcullis_wire::tcp::TcpFlags;
use wide::u8x16;

use crate::adjacency::Adjacency;
use crate::advance::Says;
use crate::arrival;
use crate::counters::Counter;
use crate::externals::Outer;
use crate::forward;
use crate::hash::Key;
use crate::head::{self, HEAD, Head, addresses, at, eight, half, header_sum, ports, wire_half, wire_word, word};
use crate::nat::Nat;
use crate::open::Opened;
use crate::packet::Packet;
use crate::policy::{DeviceId, Endpoint, InterfaceId, Network, Protocol, ReceivedChecksums, Side};
use crate::record::{Kind, Session, flag};
use crate::slab::NONE;
use crate::tcp::Direction;
use crate::time::Tick;
use crate::verdict::{Errand, Verdict};
use crate::view::SessionState;

/// Packets that go through the stages together.
pub(crate) const BURST: usize = 32;

/// In place of a session's number: of a packet that the fast path has left to the ordinary way.
const LEFT: u32 = NONE - 1;

/// The same, of a plain packet whose key the index does not have.
const NEW: u32 = NONE >> 1;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: u32 = 20;

/// Bytes that are compared at once.
const FRONT: usize = 16;

/// The kind of session that a bare mapping lasts as long as.
const BARE_KIND: Kind = Kind::new(Protocol::Udp, SessionState::Replied);

/// EtherType, version and header length, behind both link-layer addresses.
const PLAIN: [u8; 3] = [0x08, 0x00, 0x45];

/// Of the front's bytes, a bit for each that has to be as expected: the destination's link-layer address and [`PLAIN`].
const FRONT_COUNTS: u32 = 0b0111_0000_0011_1111;

/// More fragments, and the offset; not the reserved bit and not Don't Fragment.
const FRAGMENT_MASK: u16 = 0x3FFF;

/// A bit for each combination of the TCP flags from FIN to URG: whether some TCP sends it.
pub(crate) const LEGAL_FLAGS: u64 = {
    let (mut legal, mut flags) = (0, 0);
    while flags < 64 {
        if !TcpFlags(flags).is_impossible() {
            legal |= 1 << flags;
        }
        flags += 1;
    }
    legal
};

const UDP_HEADER_LEN: u32 = 8;

/// The length of a TCP header by the byte that its data offset is in; zero where the offset is too small for one.
const TCP_HEADER_LEN: [u8; 256] = {
    let (mut lens, mut byte) = ([0; 256], 0x50);
    while byte < 256 {
        lens[byte] = (byte >> 4) as u8 * 4;
        byte += 1;
    }
    lens
};

/// The interface of a device's untagged frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// The front of a plain frame, where it counts.
    front: [u8; FRONT],
    interface: InterfaceId,
    side: Side,
    checksums: ReceivedChecksums,
}

/// The gates, by device.
pub(crate) fn gates(network: &Network) -> Vec<Option<Gate>> {
    let devices = network.interfaces.iter().map(|interface| usize::from(interface.device.0) + 1).max().unwrap_or(0);
    let gate = |device| {
        let interface = network.interface_of(DeviceId(device as u8), None)?;
        let configured = &network.interfaces[usize::from(interface.0)];
        let mut front = [0; FRONT];
        front[..6].copy_from_slice(&configured.mac);
        front[12..15].copy_from_slice(&PLAIN);
        Some(Gate { front, interface, side: configured.side, checksums: configured.checksums })
    };
    (0..devices).map(gate).collect()
}

/// Packets, and their bytes from the Ethernet header on.
#[derive(Clone, Copy, Default)]
struct Amount {
    packets: u64,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, packet: &Packet<'_>) {
        self.packets += 1;
        self.bytes += packet.len as u64;
    }
}

/// What is read of a burst beside the hashes.
struct Read {
    /// A bit for each packet that is not plain.
    odd: u32,
    /// A bit for each packet that may have a bare mapping.
    bare: u32,
    bytes: u64,
}

/// A burst's way: what is the same for all of its packets, what of it does not go the fast path, and what another worker has counted as
/// received. All of it behind one reference, since the last stage has no register to spare.
#[derive(Clone, Copy)]
struct Course {
    device: DeviceId,
    /// The interface that the packets came by.
    expected: InterfaceId,
    now: Tick,
    left: Amount,
    handed: Amount,
}

impl Nat<'_> {
    /// Steps 2 to 7 for at most [`BURST`] packets from one device. Appends one verdict for each, in order.
    pub(crate) fn process_burst(&mut self, burst: &mut [Packet<'_>], device: DeviceId, now: Tick, verdicts: &mut Vec<Verdict>) {
        let Some(&Some(gate)) = self.gates.get(usize::from(device.0)) else {
            verdicts.extend(burst.iter_mut().map(|packet| self.process_one(packet, device, now)));
            return;
        };
        if self.state.bares.is_on() {
            self.pass_side::<true>(burst, device, &gate, now, verdicts);
        } else {
            self.pass_side::<false>(burst, device, &gate, now, verdicts);
        }
    }

    fn pass_side<const BARE: bool>(
        &mut self,
        burst: &mut [Packet<'_>],
        device: DeviceId,
        gate: &Gate,
        now: Tick,
        verdicts: &mut Vec<Verdict>,
    ) {
        match (gate.side, gate.checksums) {
            (Side::Inside, ReceivedChecksums::Complete) => self.pass::<true, false, BARE>(burst, device, gate, now, verdicts),
            (Side::Outside, ReceivedChecksums::Complete) => self.pass::<false, false, BARE>(burst, device, gate, now, verdicts),
            (Side::Inside, ReceivedChecksums::MaybePartial) => self.pass::<true, true, BARE>(burst, device, gate, now, verdicts),
            (Side::Outside, ReceivedChecksums::MaybePartial) => self.pass::<false, true, BARE>(burst, device, gate, now, verdicts),
        }
    }

    /// `BARE`: UDP has bare mappings.
    fn pass<const OUTBOUND: bool, const MAYBE_PARTIAL: bool, const BARE: bool>(
        &mut self,
        burst: &mut [Packet<'_>],
        device: DeviceId,
        gate: &Gate,
        now: Tick,
        verdicts: &mut Vec<Verdict>,
    ) {
        // Of a packet that is not plain, any hash: its number is not used.
        let (mut hashes, mut numbers) = ([1; BURST], [NONE; BURST]);
        let (hashes, numbers) = (&mut hashes[..burst.len()], &mut numbers[..burst.len()]);
        let is_large = self.state.sessions.is_large() || BARE && self.state.bares.is_large();
        let Read { mut odd, bare, bytes } = if is_large {
            self.read_all::<OUTBOUND, MAYBE_PARTIAL, BARE, true>(burst, gate, hashes)
        } else {
            self.read_all::<OUTBOUND, MAYBE_PARTIAL, BARE, false>(burst, gate, hashes)
        };
        if BARE {
            self.candidates::<OUTBOUND>(hashes, bare, numbers);
        } else {
            self.state.sessions.candidates(hashes, numbers);
        }
        while odd != 0 {
            numbers[odd.trailing_zeros() as usize] = NONE;
            odd &= odd - 1;
        }
        let (left, handed) = (Amount::default(), Amount::default());
        let mut course = Course { device, expected: gate.interface, now, left, handed };
        // Where there is nobody else, nobody has handed anything over.
        if self.has_company() {
            burst.iter().filter(|packet| packet.handed > 0).for_each(|packet| course.handed.add(packet));
        }
        let all = Amount { packets: burst.len() as u64, bytes };
        self.forward_all::<OUTBOUND, BARE>(burst, numbers, bare, &mut course, verdicts);
        self.count::<OUTBOUND>(all, &course);
    }

    /// The first stage: the hashes of those packets that are plain. In large tables their lines of the index are fetched.
    fn read_all<const OUTBOUND: bool, const MAYBE_PARTIAL: bool, const BARE: bool, const IS_LARGE: bool>(
        &self,
        burst: &[Packet<'_>],
        gate: &Gate,
        hashes: &mut [u64],
    ) -> Read {
        let mut all = Read { odd: 0, bare: 0, bytes: 0 };
        for (place, (hash, packet)) in hashes.iter_mut().zip(burst).enumerate() {
            match self.read::<OUTBOUND, MAYBE_PARTIAL, BARE>(packet, gate) {
                Some(read) => {
                    *hash = read;
                    if BARE && packet.buffer.get(at::PROTOCOL) == Some(&UDP) {
                        all.bare |= 1 << place;
                        if IS_LARGE {
                            self.fetch_for_bare::<OUTBOUND>(read);
                        }
                    } else if IS_LARGE {
                        self.state.sessions.fetch_line(read);
                    }
                }
                None => all.odd |= 1 << place,
            }
            all.bytes += packet.len as u64;
        }
        all
    }

    /// What a packet's bare mapping is found by: from inside the hash of its source, from outside the port of an external address. None where
    /// there is no such address.
    #[expect(
        clippy::inline_always,
        reason = "called from as many places as there are kinds of bursts: the compiler would make it a call for all"
    )]
    #[inline(always)]
    fn find_bare<const OUTBOUND: bool>(&self, head: &Head) -> Option<u64> {
        if OUTBOUND {
            return Some(self.state.bares.hash(Key::read_source(eight(head, at::PROTOCOL), eight(head, at::DESTINATION))));
        }
        let slot = self.state.slot_of(Ipv4Addr::from_bits(word(head, at::DESTINATION)))?;
        Some(u64::from(slot) << 16 | u64::from(half(head, at::DESTINATION_PORT)))
    }

    /// Has what [`Nat::candidates`] will look at for a bare mapping fetched.
    #[inline]
    fn fetch_for_bare<const OUTBOUND: bool>(&self, found: u64) {
        if OUTBOUND {
            self.state.bares.fetch_line(found);
        } else {
            self.state.space((found >> 16) as u16, Protocol::Udp).fetch_candidate(found as u16);
        }
    }

    /// The second stage, where UDP has bare mappings: see [`crate::table::Sessions::candidates`].
    #[inline(never)]
    fn candidates<const OUTBOUND: bool>(&self, hashes: &[u64], mut bare: u32, numbers: &mut [u32]) {
        for (number, &hash) in numbers.iter_mut().zip(hashes) {
            if bare & 1 == 0 {
                *number = self.state.sessions.candidate(hash);
                self.state.sessions.fetch_record(*number);
            } else {
                *number = if OUTBOUND {
                    self.state.bares.candidate(hash).unwrap_or(NEW)
                } else {
                    self.state.space((hash >> 16) as u16, Protocol::Udp).candidate(hash as u16).unwrap_or(NEW)
                };
                self.state.bares.fetch_record(*number);
            }
            bare >>= 1;
        }
    }

    /// The last stage.
    fn forward_all<const OUTBOUND: bool, const BARE: bool>(
        &mut self,
        burst: &mut [Packet<'_>],
        numbers: &mut [u32],
        mut bare: u32,
        course: &mut Course,
        verdicts: &mut Vec<Verdict>,
    ) {
        if OUTBOUND && numbers.contains(&NEW) {
            self.opened = Opened::default();
            self.preparation.clear();
            // In small tables it is all in the caches.
            if self.state.sessions.is_large() || BARE && self.state.bares.is_large() {
                let new = burst.iter().zip(&*numbers).filter(|(_, number)| **number == NEW);
                self.prepare(new.filter_map(|(packet, _)| packet.buffer.first_chunk()));
            }
        }
        let first = verdicts.len();
        let nat = &mut *self;
        verdicts.extend(numbers.iter_mut().zip(burst).map(move |(number, packet)| {
            let leaves = if BARE && bare & 1 == 1 {
                nat.forward_bare::<OUTBOUND>(packet, *number, course.expected, course.now)
            } else {
                nat.forward::<OUTBOUND>(packet, *number, course.expected, course.now)
            };
            bare >>= 1;
            // A verdict of another kind is put in its place below: were it made here, every one would be put together in memory first.
            Verdict::Transmit(leaves.unwrap_or_else(|| {
                let was = core::mem::replace(number, LEFT);
                nat.leave::<OUTBOUND>(packet, was, course)
            }))
        }));
        if self.left.is_empty() {
            return;
        }
        let places = verdicts[first..].iter_mut().zip(numbers).filter(|(_, number)| **number == LEFT);
        for ((place, _), verdict) in places.zip(self.left.drain(..)) {
            *place = verdict;
        }
    }

    /// Opens a session for a packet of the burst, or leaves it to the ordinary way, and keeps the verdict. Returns any device.
    #[cold]
    #[inline(never)]
    fn leave<const OUTBOUND: bool>(&mut self, packet: &mut Packet<'_>, number: u32, course: &mut Course) -> DeviceId {
        let Course { device, expected, now, .. } = *course;
        if number == NEW
            && let Some(leaves) = self.forward_led::<OUTBOUND>(packet, expected, now)
        {
            self.left.push(Verdict::Transmit(leaves));
            return device;
        }
        if OUTBOUND && number == NEW {
            self.prepare_next();
            if let Some(leaves) = self.open(packet, expected, now) {
                self.left.push(Verdict::Transmit(leaves));
                return device;
            }
        }
        course.left.add(packet);
        if packet.handed > 0 {
            course.handed.packets -= 1;
            course.handed.bytes -= packet.len as u64;
        }
        let verdict = self.process_one(packet, device, now);
        self.opened = Opened::ANY;
        self.left.push(verdict);
        device
    }

    /// Where UDP has bare mappings, a plain packet of it that has none may be of a session under a forward.
    fn forward_led<const OUTBOUND: bool>(&mut self, packet: &mut Packet<'_>, expected: InterfaceId, now: Tick) -> Option<DeviceId> {
        if !self.state.bares.is_on() || !self.state.has_forwarded() {
            return None;
        }
        let head = packet.buffer.first_chunk::<HEAD>().filter(|head| head[at::PROTOCOL] == UDP)?;
        let side = if OUTBOUND { Side::Inside } else { Side::Outside };
        let number = self.state.sessions.candidate(self.state.sessions.hash(side, key_of(head)));
        self.forward::<OUTBOUND>(packet, number, expected, now)
    }

    /// Counts what of a burst has gone the fast path.
    fn count<const OUTBOUND: bool>(&mut self, all: Amount, course: &Course) {
        let (way, received, bytes) = if OUTBOUND {
            (Counter::Outbound, Counter::InsideReceived, Counter::InsideReceivedBytes)
        } else {
            (Counter::Inbound, Counter::OutsideReceived, Counter::OutsideReceivedBytes)
        };
        let forwarded = all.packets - course.left.packets;
        self.counters.add(way, forwarded);
        self.counters.add(Counter::FastPath, forwarded);
        self.counters.add(received, forwarded - course.handed.packets);
        self.counters.add(bytes, all.bytes - course.left.bytes - course.handed.bytes);
    }

    /// Reads a packet, and gives the hash of its key if it is plain, as far as no session has to be asked: one of another protocol than TCP
    /// and UDP, which is read as if it were UDP, is found out when its session is not of that protocol. Of a packet that may have a bare mapping,
    /// what that is found by.
    #[expect(
        clippy::inline_always,
        reason = "called from as many places as there are kinds of bursts: the compiler would make it a call for all"
    )]
    #[inline(always)]
    fn read<const OUTBOUND: bool, const MAYBE_PARTIAL: bool, const BARE: bool>(
        &self,
        packet: &Packet<'_>,
        gate: &Gate,
    ) -> Option<u64> {
        let head = packet.buffer.first_chunk::<HEAD>()?;
        let front = u8x16::new(head::bytes(head, 0)).simd_eq(u8x16::new(gate.front)).to_bitmask();
        let is_plain = front & FRONT_COUNTS == FRONT_COUNTS
            && matches!(packet.errand, Errand::Whole)
            && wire_half(head, at::FRAGMENT) & FRAGMENT_MASK.to_be() == 0
            && head[at::TTL] > 1
            && header_sum(head).is_multiple_of(0xFFFF);
        if !is_plain {
            return None;
        }
        // Both protocols' fields are read and one is chosen: which it is, no branch predictor knows.
        let protocol = head[at::PROTOCOL];
        let is_tcp = protocol == TCP;
        let (len, udp_len) = (word(head, at::IPV4) & 0xFFFF, u32::from(half(head, at::UDP_LEN)));
        let header_len = u32::from(TCP_HEADER_LEN[usize::from(head[at::TCP_OFFSET])]);
        let claimed = select_unpredictable(is_tcp, header_len, udp_len);
        if len as usize + ETHERNET_LEN > packet.len || claimed < UDP_HEADER_LEN || claimed + IPV4_LEN > len {
            return None;
        }
        if MAYBE_PARTIAL {
            // The field of a partial checksum is the sum over the pseudo-header. One of a right checksum may be so as well, seldom.
            let checksum = half(head, head::checksum_at(is_tcp));
            let covered = select_unpredictable(is_tcp, len - IPV4_LEN, udp_len);
            let rest = u64::from(protocol) + u64::from(covered) + u64::from(!checksum);
            if (u64::from(word(head, at::SOURCE)) + u64::from(word(head, at::DESTINATION)) + rest).is_multiple_of(0xFFFF) {
                return None;
            }
        }
        if BARE && protocol == UDP {
            return self.find_bare::<OUTBOUND>(head);
        }
        let side = if OUTBOUND { Side::Inside } else { Side::Outside };
        Some(self.state.sessions.hash(side, key_of(head)))
    }

    /// Steps 5 and 7 for a packet of a session that lives and whose way is known. The device that it leaves by; none where it has to go the
    /// ordinary way, and then nothing has changed.
    #[expect(
        clippy::inline_always,
        reason = "called from as many places as there are kinds of bursts: the compiler would make it a call for all"
    )]
    #[inline(always)]
    fn forward<const OUTBOUND: bool>(
        &mut self,
        packet: &mut Packet<'_>,
        number: u32,
        expected: InterfaceId,
        now: Tick,
    ) -> Option<DeviceId> {
        let head = packet.buffer.first_chunk_mut::<HEAD>()?;
        let sessions = &mut self.state.sessions;
        let session = sessions.records.peek_mut(number)?;
        let outer = Outer::of(session);
        let is_it = if OUTBOUND {
            session.outbound_addresses() == addresses(head) && session.outbound_ports() == ports(head)
        } else {
            session.remote_word() == wire_word(head, at::SOURCE)
                && session.inbound_ports() == ports(head)
                && sessions.externals.is_live(outer, wire_word(head, at::DESTINATION))
        };
        if !is_it {
            return None;
        }
        let address = if OUTBOUND { sessions.externals.live(outer)? } else { session.internal_word() };
        let pair = self.adjacencies.used(session.adjacencies)?;
        let leaves = if OUTBOUND { &pair.outside } else { &pair.inside };
        // Padding counts too: what is too long for that only, the ordinary way lets pass.
        if packet.len > leaves.most_len as usize || OUTBOUND && pair.inside.interface != expected {
            return None;
        }
        let row = self.settled.row(session.kind);
        if row.has_ended(session.last_seen, now) {
            return None;
        }
        if row.says != Says::read(head::bytes(head, at::TTL), head[at::TCP_FLAGS]) || !OUTBOUND && session.has(flag::ADMITTED) {
            let rules = (self.fast_flags, self.policy.inbound_refresh);
            return forward_unsettled::<OUTBOUND>(head, session, address, leaves, rules, now);
        }
        let packets = if OUTBOUND { &mut session.packets_out } else { &mut session.packets_in };
        *packets = packets.wrapping_add(1);
        session.last_seen = now.0;
        Some(send::<OUTBOUND>(head, endpoint_of::<OUTBOUND>(session, address), leaves))
    }

    /// Steps 5 and 7 for a packet of a bare mapping that lives, where the ways to both of its ends are known; as [`Nat::forward`].
    #[expect(
        clippy::inline_always,
        reason = "called from as many places as there are kinds of bursts: the compiler would make it a call for all"
    )]
    #[inline(always)]
    fn forward_bare<const OUTBOUND: bool>(
        &mut self,
        packet: &mut Packet<'_>,
        number: u32,
        expected: InterfaceId,
        now: Tick,
    ) -> Option<DeviceId> {
        let head = packet.buffer.first_chunk_mut::<HEAD>()?;
        let externals = &self.state.sessions.externals;
        let bare = self.state.bares.records.peek_mut(number)?;
        let is_it = if OUTBOUND {
            bare.internal_word() == wire_word(head, at::SOURCE) && bare.internal_half() == wire_half(head, at::SOURCE_PORT)
        } else {
            bare.external_half() == wire_half(head, at::DESTINATION_PORT)
                && externals.is_live(bare.outer(), wire_word(head, at::DESTINATION))
        };
        if !is_it || self.settled.row(BARE_KIND).has_ended(bare.last_seen(), now) {
            return None;
        }
        let remote = self.reach.get(wire_word(head, if OUTBOUND { at::DESTINATION } else { at::SOURCE }));
        let (inside, outside) = self.adjacencies.used_halves(bare.adjacencies, remote)?;
        // A remote that packets may not come from has no way that packets could go.
        if inside.most_len == 0 || outside.most_len == 0 || OUTBOUND && inside.interface != expected {
            return None;
        }
        let (leaves, endpoint, direction) = if OUTBOUND {
            (outside, (externals.live(bare.outer())?, bare.external_half()), Direction::Outbound)
        } else {
            (inside, (bare.internal_word(), bare.internal_half()), Direction::Inbound)
        };
        if packet.len > leaves.most_len as usize {
            return None;
        }
        bare.advance(direction, self.policy.inbound_refresh, now);
        Some(send::<OUTBOUND>(head, endpoint, leaves))
    }

    /// Finds out by which adjacency packets reach the internal endpoint of a bare mapping, and a remote address, where the fast path may have
    /// them: as [`Nat::learn_way`] does for both together.
    pub(crate) fn learn_bare_way(&mut self, number: u32, remote: Ipv4Addr) {
        let bare = self.state.bares.records.get(number);
        let (internal, has_way) = (bare.internal(), self.adjacencies.get(bare.adjacencies).is_some());
        if !has_way && let Some(external) = self.state.external_of_bare(number) {
            let way = arrival::adjacency_of(internal.address, Side::Inside, &self.network, &mut self.paths, &self.state);
            let way = self.bare_way_by(internal, external, way.as_ref());
            self.state.bares.records.get_mut(number).adjacencies = way;
        }
        self.learn_remote(remote);
    }

    /// The number of the way to an internal endpoint: of no way where packets of one side are another worker's, or where a forward may have some
    /// of what it sends.
    pub(crate) fn bare_way_by(&mut self, internal: Endpoint, external: Endpoint, inside: Option<&Adjacency>) -> u16 {
        let is_mine = !self.has_company()
            || self.owners.of_subscriber(internal.address) == self.me
                && self.owners.of_external(external.address, external.port) == self.me;
        match inside {
            Some(inside) if is_mine && !forward::has_server(&self.policy, Protocol::Udp, internal) => {
                self.adjacencies.number_of_inside(inside)
            }
            _ => self.adjacencies.number_of_none(),
        }
    }

    /// Finds out how a remote address is reached, if that is not known.
    fn learn_remote(&mut self, remote: Ipv4Addr) {
        if self.adjacencies.get(self.reach.get(u32::from_ne_bytes(remote.octets()))).is_some() {
            return;
        }
        let way = arrival::adjacency_of(remote, Side::Outside, &self.network, &mut self.paths, &self.state);
        self.learn_remote_by(remote, way.as_ref());
    }

    /// Remembers how a remote address is reached.
    pub(crate) fn learn_remote_by(&mut self, remote: Ipv4Addr, outside: Option<&Adjacency>) {
        let number = match outside {
            Some(outside) => self.adjacencies.number_of_outside(outside),
            None => self.adjacencies.number_of_none(),
        };
        self.reach.learn(remote, number, &self.network, &self.state);
    }

    /// Finds out by which adjacencies a session's packets leave, where the fast path may have them: every check of the ordinary way that
    /// could refuse a plain packet of it, or do more than forward it, has been passed for both ways, and holds until there are other
    /// rules or another network.
    pub(crate) fn learn_way(&mut self, number: u32) {
        let session = *self.session(number);
        if self.adjacencies.get(session.adjacencies).is_some() {
            return;
        }
        let (internal, remote, external) = (session.internal(), session.remote(), self.state.external_of(&session));
        let between = arrival::adjacencies_between(internal.address, remote.address, &self.network, &mut self.paths, &self.state);
        let learnt = match between {
            Some((inside, outside)) => {
                self.way_by(session.slot, (session.kind.protocol(), internal, external, remote), (&inside, &outside))
            }
            None => self.adjacencies.number_of_none(),
        };
        self.state.sessions.records.get_mut(number).adjacencies = learnt;
    }

    /// The number of the way by a pair of adjacencies; of no way where packets of one side are another worker's.
    pub(crate) fn way_by(
        &mut self,
        slot: u16,
        (protocol, internal, external, remote): (Protocol, Endpoint, Endpoint, Endpoint),
        (inside, outside): (&Adjacency, &Adjacency),
    ) -> u16 {
        let is_mine = !self.has_company()
            || self.owners.of_subscriber(internal.address) == self.me
                && self.rules().of_inbound(slot, protocol, external, remote).0 == self.me;
        if is_mine { self.adjacencies.number_of(inside, outside) } else { self.adjacencies.number_of_none() }
    }
}

/// What few packets need: the whole of [`Session::advance`], if the packet is of the session's protocol and no TCP flags forbid it. None
/// where one of them is so; then nothing has changed.
#[cold]
fn forward_unsettled<const OUTBOUND: bool>(
    head: &mut Head,
    session: &mut Session,
    address: u32,
    leaves: &Adjacency,
    (legal_flags, refreshes_inbound): (u64, bool),
    now: Tick,
) -> Option<DeviceId> {
    // Whether a guest's mapping is there, and what an answer to a guest does to it, the ordinary way knows.
    if session.kind.is_guest() {
        return None;
    }
    let flags = TcpFlags(head[at::TCP_FLAGS]);
    let flags = match Protocol::from_number(head[at::PROTOCOL]).filter(|&protocol| session.kind.is_of(protocol))? {
        Protocol::Tcp => (legal_flags >> (flags.0 % 64) & 1 == 1).then_some(flags)?,
        // Those of a segment that changes nothing.
        Protocol::Udp => TcpFlags::ACK,
        Protocol::Icmp => return None,
    };
    let direction = if OUTBOUND { Direction::Outbound } else { Direction::Inbound };
    session.advance(direction, flags, refreshes_inbound, now);
    Some(send::<OUTBOUND>(head, endpoint_of::<OUTBOUND>(session, address), leaves))
}

/// The endpoint of a session that its packets get, as it is in a packet, with the address that it has there.
#[inline]
pub(crate) fn endpoint_of<const OUTBOUND: bool>(session: &Session, address: u32) -> (u32, u16) {
    (address, if OUTBOUND { session.external_half() } else { session.internal_half() })
}

/// Writes the link-layer header and the endpoint.
#[expect(
    clippy::inline_always,
    reason = "called once for each packet, and once where few go: the compiler would make it a call for both"
)]
#[inline(always)]
pub(crate) fn send<const OUTBOUND: bool>(head: &mut Head, endpoint: (u32, u16), leaves: &Adjacency) -> DeviceId {
    head::rewrite::<OUTBOUND>(head, endpoint);
    head[..12].copy_from_slice(&leaves.addresses);
    leaves.device
}

/// The key of a packet.
#[inline]
pub(crate) fn key_of(head: &Head) -> Key {
    Key::read(eight(head, at::PROTOCOL), eight(head, at::DESTINATION))
}
