//! The records of the tables: one mapping, one session. Plain data in fixed layouts.
//!
//! Knows layouts only. Invariant: sizes are as asserted, all zero is a free record, addresses and ports are in host order.
//! The layout's version is [`LAYOUT_VERSION`]; whoever hands tables to another process compares it first.

use core::net::Ipv4Addr;

use portcullis_wire::checksum::Delta;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::policy::{Endpoint, Protocol};
use crate::slab::Record;
use crate::view::{MappingView, SessionState, SessionView};

/// The version of the layouts in this file.
pub const LAYOUT_VERSION: u32 = 1;

/// A session: a mapping (or a forward) with one remote. One cache line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct Session {
    pub(crate) internal_address: u32,
    pub(crate) external_address: u32,
    pub(crate) remote_address: u32,
    pub(crate) internal_port: u16,
    pub(crate) external_port: u16,
    pub(crate) remote_port: u16,
    /// The protocol's number; zero for a free record.
    pub(crate) protocol: u8,
    /// [`SessionState`] as a number.
    pub(crate) state: u8,
    /// When it was last refreshed. **Units:** ticks.
    pub(crate) last_seen: u32,
    /// Its mapping, or [`crate::slab::NONE`] under a forward. Of a free record: the next free one.
    pub(crate) mapping: u32,
    /// Packets from the inside; wraps.
    pub(crate) packets_out: u32,
    /// Packets from the outside; wraps.
    pub(crate) packets_in: u32,
    /// What internal to external changes in a sum over the address (RFC 1624).
    pub(crate) address_delta: Delta,
    /// The same over the port or identifier.
    pub(crate) port_delta: Delta,
    /// The external address's slot.
    pub(crate) slot: u16,
    /// Bits of [`flag`].
    pub(crate) flags: u16,
    spare: [u32; 5],
}

/// The bits of [`Session::flags`].
pub(crate) mod flag {
    /// The inside started it.
    pub(crate) const OUTBOUND: u16 = 1;
    /// The filter alone let it in: neither the inside nor a forward asked for it.
    pub(crate) const ADMITTED: u16 = 2;
    /// It is counted in the table of remotes that an address-dependent filter asks.
    pub(crate) const REMOTE_COUNTED: u16 = 4;
}

const _: () = assert!(size_of::<Session>() == 64);

/// A mapping: an internal endpoint's external endpoint (RFC 4787, section 4.1). One cache line.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(crate) struct Mapping {
    pub(crate) internal_address: u32,
    pub(crate) external_address: u32,
    /// The remote address that it is for; zero where the mapping behaviour does not ask.
    pub(crate) scope_address: u32,
    pub(crate) internal_port: u16,
    pub(crate) external_port: u16,
    /// The remote port that it is for; zero where the mapping behaviour does not ask.
    pub(crate) scope_port: u16,
    /// The protocol's number; zero for a free record.
    pub(crate) protocol: u8,
    pub(crate) zero: u8,
    /// Live sessions under it; it ends with the last. Of a free record: the next free one.
    pub(crate) sessions: u32,
    /// The external address's slot.
    pub(crate) slot: u16,
    pub(crate) spare: [u16; 19],
}

const _: () = assert!(size_of::<Mapping>() == 64);

/// What a new session is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewSession {
    pub(crate) protocol: Protocol,
    pub(crate) internal: Endpoint,
    pub(crate) external: Endpoint,
    pub(crate) remote: Endpoint,
    pub(crate) slot: u16,
    pub(crate) flags: u16,
    pub(crate) state: SessionState,
}

impl Session {
    /// The record of a session under `mapping`.
    pub(crate) fn new(new: &NewSession, mapping: u32, now: u32) -> Self {
        let (internal, external) = (new.internal, new.external);
        Self {
            internal_address: internal.address.to_bits(),
            external_address: external.address.to_bits(),
            remote_address: new.remote.address.to_bits(),
            internal_port: internal.port,
            external_port: external.port,
            remote_port: new.remote.port,
            protocol: new.protocol as u8,
            state: new.state as u8,
            last_seen: now,
            mapping,
            packets_out: 0,
            packets_in: 0,
            address_delta: Delta::of_address(internal.address, external.address),
            port_delta: Delta::of_u16(internal.port, external.port),
            slot: new.slot,
            flags: new.flags,
            spare: [0; 5],
        }
    }

    pub(crate) fn internal(&self) -> Endpoint {
        endpoint(self.internal_address, self.internal_port)
    }

    pub(crate) fn external(&self) -> Endpoint {
        endpoint(self.external_address, self.external_port)
    }

    pub(crate) fn remote(&self) -> Endpoint {
        endpoint(self.remote_address, self.remote_port)
    }

    /// The protocol. **Panics** for a free record, which no one asks.
    pub(crate) fn protocol(&self) -> Protocol {
        Protocol::from_number(self.protocol).expect("a live session has a protocol")
    }

    pub(crate) fn state(&self) -> SessionState {
        SessionState::from_number(self.state)
    }

    pub(crate) fn has(&self, bit: u16) -> bool {
        self.flags & bit != 0
    }

    /// A copy for others, with the time that is left.
    pub(crate) fn view(&self, expires_in: u32) -> SessionView {
        SessionView {
            protocol: self.protocol(),
            internal: self.internal(),
            external: self.external(),
            remote: self.remote(),
            state: self.state(),
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
        }
    }
}

impl Record for Session {
    fn is_live(&self) -> bool {
        self.protocol != 0
    }
    fn set_free(&mut self, next: u32) {
        self.protocol = 0;
        self.mapping = next;
    }
    fn next_free(&self) -> u32 {
        self.mapping
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

#[inline]
fn endpoint(address: u32, port: u16) -> Endpoint {
    Endpoint { address: Ipv4Addr::from_bits(address), port }
}
