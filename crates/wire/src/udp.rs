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

#[cfg(test)]
mod tests {
    use super::*;

    /// `hello\n` from port 58783 to 4444, between 10.0.0.1 and 10.0.0.2.
    const HELLO: [u8; 14] = [0xe5, 0x9f, 0x11, 0x5c, 0, 14, 0xb0, 0xf7, b'h', b'e', b'l', b'l', b'o', b'\n'];

    fn is_valid(bytes: &[u8]) -> bool {
        let pseudo = checksum::pseudo_header([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17, bytes.len() as u16);
        pseudo.and(checksum::sum(bytes)).is_valid()
    }

    #[test]
    fn fields_are_where_rfc_768_draws_them() {
        let header = UdpHeader::from_prefix(&HELLO).expect("8 bytes");
        assert_eq!((header.src_port(), header.dst_port(), header.len(), header.checksum()), (58783, 4444, 14, 0xb0f7));
        assert!(!header.is_empty() && is_valid(&HELLO));
    }

    #[test]
    fn new_ports_leave_the_checksum_right() {
        let mut bytes = HELLO;
        let header = UdpHeader::from_prefix_mut(&mut bytes).expect("8 bytes");
        header.set_src_port(1);
        header.set_dst_port(65535);
        assert!(is_valid(&bytes));
        let delta = Delta::of_u16(1, 40000).and(Delta::of_u16(65535, 53));
        UdpHeader::from_prefix_mut(&mut bytes).expect("8 bytes").set_ports(40000, 53, delta);
        assert!(is_valid(&bytes));
        assert_eq!(bytes[..4], [0x9C, 0x40, 0, 53]);
    }

    #[test]
    fn no_port_makes_the_checksum_none() {
        let mut bytes = HELLO;
        for port in 0..=u16::MAX {
            let header = UdpHeader::from_prefix_mut(&mut bytes).expect("8 bytes");
            header.set_src_port(port);
            assert_ne!(header.checksum(), 0, "port {port}");
            assert!(is_valid(&bytes), "port {port}");
        }
    }

    #[test]
    fn no_checksum_stays_none() {
        let mut bytes = HELLO;
        bytes[6..8].fill(0);
        let header = UdpHeader::from_prefix_mut(&mut bytes).expect("8 bytes");
        header.set_src_port(7);
        assert_eq!(header.checksum(), 0);
    }
}
