//! The records of the tables: one mapping, one session. Plain data in fixed layouts.
//!
//! Knows layouts only. Invariant: sizes are as asserted, all zero is a free record; addresses and ports are in network order in sessions, so
//! that they compare with a packet's as they are, and in host order in mappings.
//! The layout's version is [`LAYOUT_VERSION`]; whoever hands tables to another process compares it first.

use core::net::Ipv4Addr;

use portcullis_wire::tcp::TcpFlags;
use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::policy::{Endpoint, MappingBehaviour, Protocol, UDP_PORT_TIMES};
use crate::slab::Record;
use crate::view::{MappingView, SessionState, SessionView};

/// The version of the layouts in this file and of those beside it: the index's, the ports' and the other protocols' translations.
pub const LAYOUT_VERSION: u32 = 6;

/// A session: a mapping (or a forward) with one remote. Half a cache line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(32))]
pub(crate) struct Session {
    internal_address: U32,
    pub(crate) remote_address: U32,
    internal_port: U16,
    remote_port: U16,
    pub(crate) external_port: U16,
    /// Its pair of adjacencies; zero where none has been found out. See `adjacency.rs`.
    pub(crate) adjacencies: u16,
    /// When it was last refreshed. **Units:** ticks. Of a free record: the next free one.
    pub(crate) last_seen: u32,
    /// Packets from the inside; wraps.
    pub(crate) packets_out: u32,
    /// Packets from the outside; wraps.
    pub(crate) packets_in: u32,
    pub(crate) kind: Kind,
    /// Bits of [`flag`], and in the topmost two the generation of the slot's address.
    pub(crate) flags: u8,
    /// The external address's slot. Behind the generation, so that [`Session::slot_and_generation`] reads both at once.
    pub(crate) slot: u16,
}

/// Protocol and state of a session in one byte, and whether it is a guest; zero for a free record.
///
/// ```text
/// bit 7  guest │ 6-4  family: 1 ICMP, 2 TCP, 3 UDP, 4 to 7 UDP of another class │ 3-0  state
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub(crate) struct Kind(u8);

/// Which of the times for UDP a session has: the ordinary one, or that of the port that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpClass(u8);

impl UdpClass {
    pub(crate) const ORDINARY: Self = Self(0);

    /// That of the ports' times in a place below [`UDP_PORT_TIMES`].
    pub(crate) const fn of_port(place: u8) -> Self {
        Self(place + 1)
    }

    /// The place among the ports' times; none for the ordinary one.
    pub(crate) const fn place(self) -> Option<usize> {
        (self.0 as usize).checked_sub(1)
    }
}

/// The protocols of the families, from the first on.
const PROTOCOLS: [Protocol; Kind::FAMILIES - 1] = {
    let mut protocols = [Protocol::Udp; Kind::FAMILIES - 1];
    let mut index = 0;
    while index < Protocol::ALL.len() {
        protocols[index] = Protocol::ALL[index];
        index += 1;
    }
    protocols
};

/// The family of UDP sessions of the ordinary class; those of the others follow.
const UDP_FAMILY: u8 = Protocol::Udp.index() as u8 + 1;

const _: () = assert!(UDP_FAMILY as usize == Protocol::ALL.len() && UDP_FAMILY as usize + UDP_PORT_TIMES + 1 == Kind::FAMILIES);

impl Kind {
    /// Of a free record.
    const FREE: Self = Self(0);

    /// How many families there may be, that of free records included.
    pub(crate) const FAMILIES: usize = 8;

    /// Set in those of guests: sessions that the filter alone let in, and that the inside has not answered yet. No packet of theirs is settled.
    const GUEST: u8 = 0x80;

    /// How many kinds there may be: those of a byte, so that none has to be cut to an index.
    pub(crate) const COUNT: usize = 256;

    #[inline]
    pub(crate) const fn new(protocol: Protocol, state: SessionState) -> Self {
        Self((protocol.index() as u8 + 1) << 4 | state as u8)
    }

    /// One of each family: in the first state, of no guest.
    pub(crate) fn families() -> impl Iterator<Item = Self> {
        (1..Self::FAMILIES as u8).map(|family| Self(family << 4))
    }

    /// Its protocol, and class where that is UDP, as one number below [`Kind::FAMILIES`].
    #[inline]
    pub(crate) const fn family(self) -> usize {
        (self.of_host().0 >> 4) as usize
    }

    /// The class of its time. The ordinary one where it is not of UDP.
    pub(crate) const fn class(self) -> UdpClass {
        UdpClass((self.family() as u8).saturating_sub(UDP_FAMILY))
    }

    /// The same of another class, where it is of UDP.
    #[inline]
    pub(crate) const fn in_class(self, class: UdpClass) -> Self {
        if self.family() < UDP_FAMILY as usize { self } else { Self(self.0 & !0x70 | (UDP_FAMILY + class.0) << 4) }
    }

    /// The same of a guest.
    #[inline]
    pub(crate) const fn of_guest(self) -> Self {
        Self(self.0 | Self::GUEST)
    }

    /// The same of a session that is no guest.
    #[inline]
    pub(crate) const fn of_host(self) -> Self {
        Self(self.0 & !Self::GUEST)
    }

    #[inline]
    pub(crate) const fn is_guest(self) -> bool {
        self.0 & Self::GUEST != 0
    }

    /// The same in another state.
    #[inline]
    pub(crate) const fn in_state(self, state: SessionState) -> Self {
        Self(self.0 & !0xF | state as u8)
    }

    /// Its number, below [`Kind::COUNT`].
    #[inline]
    pub(crate) const fn number(self) -> usize {
        self.0 as usize
    }

    /// **Panics** for a free record, which no one asks.
    #[inline]
    pub(crate) const fn protocol(self) -> Protocol {
        PROTOCOLS[self.family() - 1]
    }

    #[inline]
    pub(crate) const fn state(self) -> SessionState {
        SessionState::from_number(self.0 & 0xF)
    }

    /// Whether a packet with those flags leaves it as it is, whichever way it goes: it is what nearly all packets find.
    #[inline]
    pub(crate) const fn is_settled(self, flags: TcpFlags) -> bool {
        const REPLIED: u8 = SessionState::Replied as u8;
        const ESTABLISHED: u8 = SessionState::Established as u8;
        let state = self.0 & 0xF;
        state == REPLIED || state == ESTABLISHED && flags.0 & (TcpFlags::FIN.0 | TcpFlags::RST.0) == 0
    }

    /// Whether it is a session of that protocol.
    #[inline]
    pub(crate) const fn is_of(self, protocol: Protocol) -> bool {
        let family = self.of_host().0 >> 4;
        let first = if family < UDP_FAMILY { family } else { UDP_FAMILY };
        first == protocol.index() as u8 + 1
    }
}

/// The bits of [`Session::flags`].
pub(crate) mod flag {
    /// The inside started it.
    pub(crate) const OUTBOUND: u8 = 1;
    /// The filter alone let it in: neither the inside nor a forward asked for it.
    pub(crate) const ADMITTED: u8 = 2;
    /// It is counted in the table of remotes that an address-dependent filter asks.
    pub(crate) const REMOTE_COUNTED: u8 = 4;
    /// It is under a forward: no mapping, no port of the pool.
    pub(crate) const FORWARDED: u8 = 8;
    /// Two bits: it is alone under its mapping, which has no record then, and whom that mapping is for. Zero: it is not.
    pub(crate) const SOLE: u8 = 0x30;
    pub(crate) const SOLE_ENDPOINT_INDEPENDENT: u8 = 0x10;
    pub(crate) const SOLE_ADDRESS_DEPENDENT: u8 = 0x20;
    pub(crate) const SOLE_ADDRESS_AND_PORT_DEPENDENT: u8 = 0x30;
}

const _: () = assert!(size_of::<Session>() == 32);

/// Where kind, flags and slot are.
const TAIL: usize = core::mem::offset_of!(Session, kind);

const _: () = assert!(TAIL == 28 && core::mem::offset_of!(Session, flags) == 29 && core::mem::offset_of!(Session, slot) == 30);

/// How often a slot's address changed, as far as two bits tell: what tells sessions of an address that is gone from those of the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation(u8);

impl Generation {
    /// Where [`Session::flags`] has it.
    const SHIFT: u32 = 6;

    /// Changes after which a generation comes again.
    pub(crate) const COUNT: u8 = 4;

    pub(crate) const FIRST: Self = Self(0);

    pub(crate) const fn next(self) -> Self {
        Self((self.0 + 1) % Self::COUNT)
    }

    #[inline]
    pub(crate) const fn number(self) -> u8 {
        self.0
    }
}

/// A mapping: an internal endpoint's external endpoint (RFC 4787, section 4.1). Half a cache line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(32))]
pub(crate) struct Mapping {
    pub(crate) internal_address: u32,
    pub(crate) external_address: u32,
    /// The remote address that it is for; zero where the mapping behaviour does not ask.
    pub(crate) scope_address: u32,
    pub(crate) internal_port: u16,
    pub(crate) external_port: u16,
    /// The remote port that it is for; zero where the mapping behaviour does not ask.
    pub(crate) scope_port: u16,
    /// The external address's slot.
    pub(crate) slot: u16,
    /// Sessions under it that are no guests; it ends with the last. Of a free record: the next free one.
    pub(crate) sessions: u32,
    /// The protocol's number; zero for a free record.
    pub(crate) protocol: u8,
    /// The external address's generation, as its sessions have it: an address that comes back does not bring back what was under it.
    generation: u8,
    pub(crate) spare: [u8; 6],
}

const _: () = assert!(size_of::<Mapping>() == 32);

/// What a new session is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewSession {
    pub(crate) protocol: Protocol,
    pub(crate) internal: Endpoint,
    pub(crate) external: Endpoint,
    pub(crate) remote: Endpoint,
    pub(crate) slot: u16,
    pub(crate) flags: u8,
    pub(crate) state: SessionState,
}

impl Session {
    /// The record of a session under an address of that generation.
    pub(crate) fn new(new: &NewSession, generation: Generation, now: u32) -> Self {
        Self {
            internal_address: U32::new(new.internal.address.to_bits()),
            remote_address: U32::new(new.remote.address.to_bits()),
            internal_port: U16::new(new.internal.port),
            remote_port: U16::new(new.remote.port),
            external_port: U16::new(new.external.port),
            adjacencies: 0,
            last_seen: now,
            packets_out: 0,
            packets_in: 0,
            kind: Kind::new(new.protocol, new.state),
            flags: new.flags | generation.0 << Generation::SHIFT,
            slot: new.slot,
        }
    }

    #[inline]
    pub(crate) fn internal(&self) -> Endpoint {
        endpoint(self.internal_address.get(), self.internal_port.get())
    }

    /// The external endpoint, whose address is its slot's.
    #[inline]
    pub(crate) fn external(&self, address: Ipv4Addr) -> Endpoint {
        Endpoint { address, port: self.external_port.get() }
    }

    #[inline]
    pub(crate) fn remote(&self) -> Endpoint {
        endpoint(self.remote_address.get(), self.remote_port.get())
    }

    /// The internal address, as it is in a packet.
    #[inline]
    pub(crate) fn internal_word(&self) -> u32 {
        wire_word(self.internal_address)
    }

    /// The internal port, as it is in a packet.
    #[inline]
    pub(crate) fn internal_half(&self) -> u16 {
        wire_half(self.internal_port)
    }

    /// The external port, as it is in a packet.
    #[inline]
    pub(crate) fn external_half(&self) -> u16 {
        wire_half(self.external_port)
    }

    /// Internal and remote address, as they follow each other in a packet from inside.
    #[inline]
    pub(crate) fn outbound_addresses(&self) -> u64 {
        wire_words(self.internal_address, self.remote_address)
    }

    /// Internal and remote port, as they follow each other in a packet from inside.
    #[inline]
    pub(crate) fn outbound_ports(&self) -> u32 {
        wire_halves(self.internal_port, self.remote_port)
    }

    /// The remote address, as it is in a packet.
    #[inline]
    pub(crate) fn remote_word(&self) -> u32 {
        wire_word(self.remote_address)
    }

    /// Remote and external port, as they follow each other in a packet from outside.
    #[inline]
    pub(crate) fn inbound_ports(&self) -> u32 {
        wire_halves(self.remote_port, self.external_port)
    }

    #[inline]
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.flags >> Generation::SHIFT)
    }

    /// Of a session that is alone under its mapping: whom the mapping is for.
    pub(crate) fn sole(&self) -> Option<MappingBehaviour> {
        match self.flags & flag::SOLE {
            flag::SOLE_ENDPOINT_INDEPENDENT => Some(MappingBehaviour::EndpointIndependent),
            flag::SOLE_ADDRESS_DEPENDENT => Some(MappingBehaviour::AddressDependent),
            flag::SOLE_ADDRESS_AND_PORT_DEPENDENT => Some(MappingBehaviour::AddressAndPortDependent),
            _ => None,
        }
    }

    /// Says whether it is alone under its mapping.
    pub(crate) fn set_sole(&mut self, behaviour: Option<MappingBehaviour>) {
        let bits = match behaviour {
            Some(MappingBehaviour::EndpointIndependent) => flag::SOLE_ENDPOINT_INDEPENDENT,
            Some(MappingBehaviour::AddressDependent) => flag::SOLE_ADDRESS_DEPENDENT,
            Some(MappingBehaviour::AddressAndPortDependent) => flag::SOLE_ADDRESS_AND_PORT_DEPENDENT,
            None => 0,
        };
        self.flags = self.flags & !flag::SOLE | bits;
    }

    /// The scope of the mapping that it stands for; none where it has a mapping beside it, or none at all.
    pub(crate) fn sole_scope(&self) -> Option<Endpoint> {
        Some(self.sole()?.scope(self.remote()))
    }

    /// Slot and generation as one number, of [`crate::externals::Outer`]: one load, since they lie side by side.
    #[inline]
    pub(crate) fn slot_and_generation(&self) -> u32 {
        let mut tail = [0; 4];
        tail.copy_from_slice(&self.as_bytes()[TAIL..]);
        u32::from_le_bytes(tail) >> (8 + Generation::SHIFT)
    }

    #[inline]
    pub(crate) fn has(&self, bit: u8) -> bool {
        self.flags & bit != 0
    }

    /// Whether it is the session of an ICMP query at the receiver of a hairpin, whose remote end has an identifier.
    pub(crate) fn is_hairpinned_query(&self) -> bool {
        self.kind.is_of(Protocol::Icmp) && self.remote_port.get() != 0
    }

    /// The mapping that it stands for, as a record.
    pub(crate) fn mapping(&self, external_address: Ipv4Addr) -> Option<Mapping> {
        let scope = self.sole_scope()?;
        Some(Mapping {
            internal_address: self.internal_address.get(),
            external_address: external_address.to_bits(),
            scope_address: scope.address.to_bits(),
            internal_port: self.internal_port.get(),
            external_port: self.external_port.get(),
            scope_port: scope.port,
            slot: self.slot,
            sessions: 1,
            protocol: self.kind.protocol() as u8,
            generation: self.generation().number(),
            spare: [0; 6],
        })
    }

    /// A copy for others, with its external address and the time that is left.
    pub(crate) fn view(&self, address: Ipv4Addr, expires_in: u32) -> SessionView {
        SessionView {
            protocol: self.kind.protocol(),
            internal: self.internal(),
            external: self.external(address),
            remote: self.remote(),
            state: self.kind.state(),
            outbound: self.has(flag::OUTBOUND),
            expires_in,
            packets_out: self.packets_out,
            packets_in: self.packets_in,
        }
    }
}

impl Mapping {
    pub(crate) fn internal(&self) -> Endpoint {
        endpoint(self.internal_address, self.internal_port)
    }

    pub(crate) fn external(&self) -> Endpoint {
        endpoint(self.external_address, self.external_port)
    }

    pub(crate) fn scope(&self) -> Endpoint {
        endpoint(self.scope_address, self.scope_port)
    }

    /// Whether its external address is the one that the slot has had since that generation.
    pub(crate) fn is_of(&self, generation: Generation) -> bool {
        self.generation == generation.number()
    }

    /// The protocol. **Panics** for a free record, which no one asks.
    pub(crate) fn protocol(&self) -> Protocol {
        Protocol::from_number(self.protocol).expect("a live mapping has a protocol")
    }

    /// A copy for others.
    pub(crate) fn view(&self) -> MappingView {
        let scope = self.scope();
        MappingView {
            protocol: self.protocol(),
            internal: self.internal(),
            external: self.external(),
            scope: (scope.address != Ipv4Addr::UNSPECIFIED).then_some(scope),
            sessions: self.sessions,
            bare: None,
        }
    }
}

impl Record for Session {
    fn is_live(&self) -> bool {
        self.kind != Kind::FREE
    }
    fn set_free(&mut self, next: u32) {
        self.kind = Kind::FREE;
        self.last_seen = next;
    }
    fn next_free(&self) -> u32 {
        self.last_seen
    }
}

impl Record for Mapping {
    fn is_live(&self) -> bool {
        self.protocol != 0
    }
    fn set_free(&mut self, next: u32) {
        self.protocol = 0;
        self.sessions = next;
    }
    fn next_free(&self) -> u32 {
        self.sessions
    }
}

/// A word of a packet, as a number in memory order.
#[inline]
pub(crate) fn wire_word(word: U32) -> u32 {
    u32::from_ne_bytes(word.to_bytes())
}

/// Half a word of a packet, as a number in memory order.
#[inline]
pub(crate) fn wire_half(half: U16) -> u16 {
    u16::from_ne_bytes(half.to_bytes())
}

/// Two words of a packet, as one number in memory order.
#[inline]
pub(crate) fn wire_words(one: U32, other: U32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&one.to_bytes());
    bytes[4..].copy_from_slice(&other.to_bytes());
    u64::from_ne_bytes(bytes)
}

/// Two halves of a word of a packet, as one number in memory order.
#[inline]
pub(crate) fn wire_halves(one: U16, other: U16) -> u32 {
    let ([a, b], [c, d]) = (one.to_bytes(), other.to_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[inline]
fn endpoint(address: u32, port: u16) -> Endpoint {
    Endpoint { address: Ipv4Addr::from_bits(address), port }
}
