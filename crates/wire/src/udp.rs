//! UDP headers: reading, and edits of ports and checksum.
//!
//! Knows one header. Called by `packet`, `partial` and `nat`.
//! Invariant: a checksum of zero ("none") stays zero, and none becomes zero. Source: RFC 768. Tests: below.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, Delta};
use crate::ports::Ports;

/// Length of a header. **Units:** bytes.
pub const HEADER_LEN: usize = 8;
/// Where in the header the checksum is. **Units:** bytes.
pub const CHECKSUM_OFFSET: usize = 6;

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UdpHeader {
    ports: Ports,
    len: U16,
    checksum: U16,
}

impl UdpHeader {
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

    /// The length of header and data, as the header claims. **Units:** bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> u16 {
        self.len.get()
    }

    /// Whether the header claims that there is no data.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() as usize <= HEADER_LEN
    }

    /// The checksum; zero for none.
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

    /// Mends the checksum, if there is one, after a change that is known beforehand.
    #[inline]
    pub fn update_checksum(&mut self, delta: Delta) {
        self.checksum.set(delta.apply_udp(self.checksum.get()));
    }

    /// Sets the checksum to what was computed, in UDP's spelling.
    #[inline]
    pub fn set_checksum(&mut self, computed: u16) {
        self.checksum.set(checksum::udp_spelling(computed));
    }
}
