//! TCP headers: reading, flags, and edits of ports and checksum.
//!
//! Knows one header, no connection. Called by `packet`, `partial` and `nat`.
//! Invariant: a setter leaves the checksum as right as it was. Source: RFC 9293. Tests: below.

use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::Delta;
use crate::ports::Ports;

/// Length of a header without options. **Units:** bytes.
pub const HEADER_LEN: usize = 20;
/// Where in the header the checksum is. **Units:** bytes.
pub const CHECKSUM_OFFSET: usize = 16;

/// The control bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer is significant.
    pub const URG: Self = Self(0x20);

    /// Whether all of `flags` are set.
    #[inline]
    #[must_use]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those.
    #[inline]
    #[must_use]
    pub const fn and(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// Whether SYN is set.
    #[inline]
    #[must_use]
    pub const fn syn(self) -> bool {
        self.contains(Self::SYN)
    }

    /// Whether ACK is set.
    #[inline]
    #[must_use]
    pub const fn ack(self) -> bool {
        self.contains(Self::ACK)
    }

    /// Whether FIN is set.
    #[inline]
    #[must_use]
    pub const fn fin(self) -> bool {
        self.contains(Self::FIN)
    }

    /// Whether RST is set.
    #[inline]
    #[must_use]
    pub const fn rst(self) -> bool {
        self.contains(Self::RST)
    }

    /// Whether this opens a connection: SYN without ACK.
    #[inline]
    #[must_use]
    pub const fn is_opening(self) -> bool {
        self.syn() && !self.ack()
    }

    /// Whether no TCP sends these: two of SYN, FIN and RST together, or neither SYN, RST nor ACK.
    ///
    /// RFC 9293, section 3.1: once a connection is established, ACK "is always sent"; before that there are only SYN and RST. SYN
    /// with FIN was T/TCP's (RFC 1644), which RFC 6247 made historic. Scans send all of these to get past filters.
    #[inline]
    #[must_use]
    pub const fn is_impossible(self) -> bool {
        let exclusive = self.0 & (Self::SYN.0 | Self::FIN.0 | Self::RST.0);
        let any_of_three = self.0 & (Self::SYN.0 | Self::RST.0 | Self::ACK.0);
        exclusive.count_ones() > 1 || any_of_three == 0
    }
}

/// The fixed part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TcpHeader {
    ports: Ports,
    sequence: U32,
    acknowledgment: U32,
    data_offset: u8,
    flags: TcpFlags,
    window: U16,
    checksum: U16,
    urgent: U16,
}

impl TcpHeader {
    /// The header that `bytes` begin with.
    #[inline]
    #[must_use]
    pub fn from_prefix(bytes: &[u8]) -> Option<&Self> {
        Self::ref_from_prefix(bytes).ok().map(|(header, _)| header)
    }

    /// The header that `bytes` begin with, to be changed.
    #[inline]
    #[must_use]
    pub fn from_prefix_mut(bytes: &mut [u8]) -> Option<&mut Self> {
        Self::mut_from_prefix(bytes).ok().map(|(header, _)| header)
    }

    /// The source port.
    #[inline]
    #[must_use]
    pub const fn src_port(&self) -> u16 {
        self.ports.src()
    }

    /// The destination port.
    #[inline]
    #[must_use]
    pub const fn dst_port(&self) -> u16 {
        self.ports.dst()
    }

    /// The sequence number.
    #[inline]
    #[must_use]
    pub const fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    /// The acknowledgment number.
    #[inline]
    #[must_use]
    pub const fn acknowledgment(&self) -> u32 {
        self.acknowledgment.get()
    }

    /// The header's length with options, as the header claims. **Units:** bytes, 0 to 60; less than 20 is a lie.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        (self.data_offset >> 4) as usize * 4
    }

    /// The control bits.
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> TcpFlags {
        self.flags
    }

    /// The window, not scaled.
    #[inline]
    #[must_use]
    pub const fn window(&self) -> u16 {
        self.window.get()
    }

    /// The checksum.
    #[inline]
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// Sets the source port and mends the checksum.
    #[inline]
    pub fn set_src_port(&mut self, port: u16) {
        let delta = self.ports.set_src(port);
        self.update_checksum(delta);
    }

    /// Sets the destination port and mends the checksum.
    #[inline]
    pub fn set_dst_port(&mut self, port: u16) {
        let delta = self.ports.set_dst(port);
        self.update_checksum(delta);
    }

    /// Sets both ports, with the delta of these and of the addresses known beforehand. **Cost:** hot.
    #[inline]
    pub fn set_ports(&mut self, src: u16, dst: u16, delta: Delta) {
        self.ports = Ports::new(src, dst);
        self.update_checksum(delta);
    }

    /// Mends the checksum after a change that is known beforehand.
    #[inline]
    pub fn update_checksum(&mut self, delta: Delta) {
        self.checksum.set(delta.apply(self.checksum.get()));
    }

    /// Sets the checksum to what was computed.
    #[inline]
    pub fn set_checksum(&mut self, computed: u16) {
        self.checksum.set(computed);
    }
}
