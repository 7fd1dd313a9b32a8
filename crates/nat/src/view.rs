//! Mappings, sessions and gauges as others see them: copies, made in bounded slices between bursts.
//!
//! Knows no table layout; the control plane turns these into lines and JSON.

use core::net::Ipv4Addr;

use crate::policy::{Endpoint, Protocol};

/// What the connection tracking of a session says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SessionState {
    /// Not TCP: packets went one way only.
    Unreplied,
    /// Not TCP: packets went both ways.
    Replied,
    /// TCP: a SYN went from inside to outside.
    SynSent,
    /// TCP: a SYN came from outside.
    SynReceived,
    /// TCP: SYNs went both ways.
    Established,
    /// TCP: the inside has sent its FIN.
    FinSent,
    /// TCP: the outside has sent its FIN.
    FinReceived,
    /// TCP: FINs went both ways.
    Closing,
    /// TCP: a RST was seen.
    Reset,
}

impl SessionState {
    /// All states, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Unreplied,
        Self::Replied,
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinSent,
        Self::FinReceived,
        Self::Closing,
        Self::Reset,
    ];

    /// Whether sessions of `protocol` may be in it.
    pub(crate) fn is_of(self, protocol: Protocol) -> bool {
        let is_tcp = !matches!(self, Self::Unreplied | Self::Replied);
        is_tcp == (protocol == Protocol::Tcp)
    }

    /// The state with that number, as a record keeps it. **Panics:** on a number that no state has.
    #[inline]
    pub(crate) const fn from_number(number: u8) -> Self {
        Self::ALL[number as usize]
    }
}

/// One session: a mapping's external endpoint with one remote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The protocol.
    pub protocol: Protocol,
    /// The internal endpoint.
    pub internal: Endpoint,
    /// The external endpoint.
    pub external: Endpoint,
    /// The remote endpoint; of an ICMP query the port is zero.
    pub remote: Endpoint,
    /// Its state.
    pub state: SessionState,
    /// Whether the inside started it.
    pub outbound: bool,
    /// Time until it ends if nothing more comes. **Units:** milliseconds.
    pub expires_in: u32,
    /// Packets from the inside.
    pub packets_out: u32,
    /// Packets from the outside.
    pub packets_in: u32,
}

/// One translation of a protocol without ports: an external address for an internal one, towards one remote address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherView {
    /// The protocol's number.
    pub protocol: u8,
    /// The internal address.
    pub internal: Ipv4Addr,
    /// The external address.
    pub external: Ipv4Addr,
    /// The remote address.
    pub remote: Ipv4Addr,
    /// Whether it was answered: [`SessionState::Unreplied`] or [`SessionState::Replied`].
    pub state: SessionState,
    /// Time until it ends if nothing more comes. **Units:** milliseconds.
    pub expires_in: u32,
    /// Packets from the inside.
    pub packets_out: u32,
    /// Packets from the outside.
    pub packets_in: u32,
}

/// One mapping: an internal endpoint's external endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappingView {
    /// The protocol.
    pub protocol: Protocol,
    /// The internal endpoint.
    pub internal: Endpoint,
    /// The external endpoint.
    pub external: Endpoint,
    /// Of an endpoint-dependent mapping, the remote endpoint or address (port zero) that it is for.
    pub scope: Option<Endpoint>,
    /// Live sessions under it, without guests. None under a bare mapping.
    pub sessions: u32,
    /// What else is known of a bare mapping; none of one that has sessions.
    pub bare: Option<BareView>,
}

/// What a bare mapping says of itself, which others have sessions for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareView {
    /// Time until it ends if nothing more comes. **Units:** milliseconds.
    pub expires_in: u32,
    /// Packets from the inside; wraps.
    pub packets_out: u32,
    /// Packets from the outside; wraps.
    pub packets_in: u32,
}

/// Use of one external address for one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// The external address.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// Ports taken by mappings.
    pub used: u32,
    /// Ports that rest, since their mappings ended not long ago.
    pub resting: u32,
    /// Ports that mappings may take.
    pub limit: u32,
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Live mappings.
    pub mappings: u32,
    /// Mappings that fit.
    pub mappings_limit: u32,
    /// Live sessions.
    pub sessions: u32,
    /// Sessions that fit.
    pub sessions_limit: u32,
    /// Internal addresses with mappings.
    pub subscribers: u32,
    /// Fragmented packets whose later fragments are followed.
    pub fragments: u32,
    /// Live translations of protocols without ports.
    pub others: u32,
    /// Translations of protocols without ports that fit.
    pub others_limit: u32,
}
