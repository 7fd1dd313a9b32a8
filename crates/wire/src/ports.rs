//! The ports that TCP and UDP headers both begin with: all of a header that is sure to be quoted in an ICMP error.
//!
//! Knows four bytes, no checksum. Called by `packet`, `embedded` and `nat`. Tests: below and in `embedded`.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Source and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ports {
    src: U16,
    dst: U16,
}

impl Ports {
    /// The ports that `bytes` begin with.
    #[inline]
    #[must_use]
    pub fn from_prefix(bytes: &[u8]) -> Option<&Self> {
        Self::ref_from_prefix(bytes).ok().map(|(ports, _)| ports)
    }

    /// The ports that `bytes` begin with, to be changed. No checksum follows the change.
    #[inline]
    #[must_use]
    pub fn from_prefix_mut(bytes: &mut [u8]) -> Option<&mut Self> {
        Self::mut_from_prefix(bytes).ok().map(|(ports, _)| ports)
    }

    /// Two ports.
    #[must_use]
    pub const fn new(src: u16, dst: u16) -> Self {
        Self { src: U16::new(src), dst: U16::new(dst) }
    }

    /// The source port.
    #[inline]
    #[must_use]
    pub const fn src(&self) -> u16 {
        self.src.get()
    }

    /// The destination port.
    #[inline]
    #[must_use]
    pub const fn dst(&self) -> u16 {
        self.dst.get()
    }

    /// Sets the source port. Returns the delta for whatever sums over it.
    #[inline]
    pub fn set_src(&mut self, port: u16) -> crate::checksum::Delta {
        let delta = crate::checksum::Delta::of_u16(self.src(), port);
        self.src.set(port);
        delta
    }

    /// Sets the destination port. Returns the delta for whatever sums over it.
    #[inline]
    pub fn set_dst(&mut self, port: u16) -> crate::checksum::Delta {
        let delta = crate::checksum::Delta::of_u16(self.dst(), port);
        self.dst.set(port);
        delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_the_first_four_bytes() {
        let mut bytes = [0x13, 0x88, 0x11, 0x5d, 0xFF];
        let ports = Ports::from_prefix_mut(&mut bytes).expect("4 bytes");
        assert_eq!((ports.src(), ports.dst()), (5000, 4445));
        assert_eq!(ports.set_src(1), crate::checksum::Delta::of_u16(5000, 1));
        assert_eq!(ports.set_dst(2), crate::checksum::Delta::of_u16(4445, 2));
        assert_eq!(bytes, [0, 1, 0, 2, 0xFF]);
        assert_eq!(Ports::from_prefix(&bytes[..3]), None);
    }
}
