//! How a NAT is to be set up for a group of rows, in words that every driver can put into its own.
//!
//! Knows values only. A driver that cannot do what a setup needs says so, and the rows are then not testable with it.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::plan;

/// Who may send to an open external endpoint (RFC 4787, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filtering {
    /// Anyone.
    Endpoint,
    /// Addresses that were sent to.
    Address,
    /// Endpoints that were sent to.
    AddressAndPort,
}

impl Filtering {
    /// The name in RFC 4787, with hyphens.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint-independent",
            Self::Address => "address-dependent",
            Self::AddressAndPort => "address-and-port-dependent",
        }
    }
}

/// Idle times that a driver shall set, so short that they can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timers {
    /// UDP.
    pub(crate) udp: Duration,
    /// TCP, established.
    pub(crate) established: Duration,
    /// TCP, opening.
    pub(crate) opening: Duration,
    /// TCP, closing, or reset.
    pub(crate) closing: Duration,
    /// ICMP queries.
    pub(crate) icmp: Duration,
}

/// The short times of the groups that need them.
pub(crate) const SHORT: Timers = Timers {
    udp: Duration::from_secs(4),
    established: Duration::from_secs(7),
    opening: Duration::from_secs(4),
    closing: Duration::from_secs(4),
    icmp: Duration::from_secs(3),
};

/// The same where closing takes longer than opening.
pub(crate) const APART: Timers = Timers { closing: Duration::from_secs(7), ..SHORT };

impl Timers {
    /// The one time for opening and closing, where they are not apart.
    pub(crate) fn transitory(self) -> Option<Duration> {
        (self.opening == self.closing).then_some(self.opening)
    }
}

/// A setup. Every one has the forwards of [`crate::plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a wish of its own")]
pub(crate) struct Setup {
    /// The group's name.
    pub(crate) name: &'static str,
    /// How many of the pool's addresses.
    pub(crate) addresses: usize,
    /// The ports that mappings may take on each; none for the NAT's own choice.
    pub(crate) ports: Option<(u16, u16)>,
    /// Ports that are even stay even, and odd ones odd.
    pub(crate) parity: bool,
    /// Filtering of UDP and of TCP; none for the NAT's own default.
    pub(crate) filtering: Option<(Filtering, Filtering)>,
    /// Idle times; none for the NAT's own defaults.
    pub(crate) timers: Option<Timers>,
    /// A UDP port towards which sessions have another idle time.
    pub(crate) udp_port: Option<(u16, Duration)>,
    /// The MTU of the inside and of the outside wire.
    pub(crate) mtu: (u16, u16),
    /// No ICMP errors of the NAT's own.
    pub(crate) silent: bool,
    /// The code of Destination Unreachable on exhaustion, where it can be chosen.
    pub(crate) exhausted_code: Option<u8>,
    /// TCP's maximum segment size is lowered to what the MTU of the outside allows.
    pub(crate) clamps: bool,
    /// Nothing is translated for [`plan::EXEMPT`].
    pub(crate) exempts: bool,
}

/// What ordinary rows use.
pub(crate) const DEFAULT: Setup = Setup {
    name: "default",
    addresses: 4,
    ports: None,
    parity: false,
    filtering: None,
    timers: None,
    udp_port: None,
    mtu: (1500, 1500),
    silent: false,
    exhausted_code: None,
    clamps: false,
    exempts: false,
};
/// The same, for what may leave a NAT out of breath.
pub(crate) const FLOODED: Setup = Setup { name: "flooded", ..DEFAULT };
/// Anyone may answer.
pub(crate) const OPEN: Setup = Setup { name: "open", filtering: Some((Filtering::Endpoint, Filtering::Endpoint)), ..DEFAULT };
/// Known addresses may answer.
pub(crate) const STRICT: Setup = Setup { name: "strict", filtering: Some((Filtering::Address, Filtering::Address)), ..DEFAULT };
/// UDP open, TCP by address.
pub(crate) const MIXED: Setup = Setup { name: "mixed", filtering: Some((Filtering::Endpoint, Filtering::Address)), ..DEFAULT };
/// So few ports that they can all be used.
pub(crate) const TIGHT: Setup = Setup { name: "tight", addresses: 2, ports: Some((40_000, 40_127)), ..DEFAULT };
/// The same, where the sender shall be told in RFC 6888's way.
pub(crate) const TIGHT_6888: Setup = Setup { name: "tight-6888", exhausted_code: Some(1), ..TIGHT };
/// A range of ports, as an administrator gives it who keeps others for himself.
pub(crate) const RANGED: Setup = Setup { name: "ranged", ports: Some((40_000, 48_191)), ..DEFAULT };
/// All ports, and what RFC 4787 wants kept of the internal one.
pub(crate) const KEPT: Setup = Setup { name: "kept", ports: Some((1, 65_535)), parity: true, ..DEFAULT };
/// An outside wire that is narrower than the inside.
pub(crate) const NARROW: Setup = Setup { name: "narrow", mtu: (1500, 1400), ..DEFAULT };
/// The same, and TCP is told beforehand.
pub(crate) const CLAMPED: Setup = Setup { name: "clamped", clamps: true, ..NARROW };
/// An inside wire that is narrower than the outside.
pub(crate) const NARROW_INSIDE: Setup = Setup { name: "narrow-inside", mtu: (1400, 1500), ..DEFAULT };
/// Times that can be waited for.
pub(crate) const QUICK: Setup = Setup { name: "quick", timers: Some(SHORT), ..DEFAULT };
/// A well-known port, and a time towards it that can be waited for.
pub(crate) const PORT_TIME: (u16, Duration) = (53, Duration::from_secs(4));
/// Only UDP towards that port has such a time.
pub(crate) const QUICK_PORT: Setup = Setup { name: "quick-port", udp_port: Some(PORT_TIME), ..DEFAULT };
/// Where opening and closing have times of their own.
pub(crate) const QUICK_APART: Setup = Setup { name: "quick-apart", timers: Some(APART), ..DEFAULT };
/// As the first of them, and anyone may send.
pub(crate) const QUICK_OPEN: Setup =
    Setup { name: "quick-open", filtering: Some((Filtering::Endpoint, Filtering::Endpoint)), ..QUICK };
/// The same with few ports.
pub(crate) const QUICK_TIGHT: Setup = Setup { name: "quick-tight", addresses: 2, ports: TIGHT.ports, ..QUICK_OPEN };
/// Some destinations are not translated for.
pub(crate) const EXEMPTING: Setup = Setup { name: "exempting", exempts: true, ..DEFAULT };
/// No ICMP of the NAT's own.
pub(crate) const SILENT: Setup = Setup { name: "silent", silent: true, ..DEFAULT };

/// All of them, in the order in which they are run.
pub(crate) const ALL: [&Setup; 19] = [
    &DEFAULT,
    &FLOODED,
    &RANGED,
    &KEPT,
    &OPEN,
    &STRICT,
    &MIXED,
    &TIGHT,
    &TIGHT_6888,
    &NARROW,
    &CLAMPED,
    &NARROW_INSIDE,
    &QUICK,
    &QUICK_PORT,
    &QUICK_APART,
    &QUICK_OPEN,
    &QUICK_TIGHT,
    &EXEMPTING,
    &SILENT,
];

impl Setup {
    /// The external addresses.
    pub(crate) fn pool(&self) -> &'static [Ipv4Addr] {
        &plan::POOL[..self.addresses]
    }

    /// How many external endpoints of a protocol there are, where the setup says.
    pub(crate) fn endpoints(&self) -> Option<usize> {
        self.ports.map(|(first, last)| self.addresses * (usize::from(last - first) + 1))
    }
}
