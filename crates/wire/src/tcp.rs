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
/// Option type: end of the list.
const END_OF_OPTIONS: u8 = 0;
/// Option type: no operation, of one byte.
const NO_OPERATION: u8 = 1;
/// Option type: maximum segment size, of four bytes.
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
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

/// Lowers the maximum segment size that a SYN announces to `most`, and mends the checksum. Returns whether it was larger.
///
/// `segment` reaches from the TCP header on; of a first fragment, options that it does not have are not looked for. An option whose
/// length is a lie ends the search. Without the option nothing is added. **Cost:** SYN packets only; at most 40 options.
pub fn clamp_mss(segment: &mut [u8], most: u16) -> bool {
    let Some(header) = TcpHeader::from_prefix(segment).filter(|header| header.flags().syn()) else { return false };
    let options_end = header.header_len().min(segment.len());
    let Some(offset) = mss_offset(segment.get(..options_end).unwrap_or(&[])) else { return false };
    let Some(word) = segment.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<2>()) else { return false };
    let old = u16::from_be_bytes(*word);
    if old <= most {
        return false;
    }
    *word = most.to_be_bytes();
    // At an odd offset the value lies across two words of the sum: with its bytes swapped it counts the same.
    let delta = if offset % 2 == 0 { Delta::of_u16(old, most) } else { Delta::of_u16(old.swap_bytes(), most.swap_bytes()) };
    if let Some(header) = TcpHeader::from_prefix_mut(segment) {
        header.update_checksum(delta);
    }
    true
}

/// Where in `header` the value of the maximum segment size option is.
fn mss_offset(header: &[u8]) -> Option<usize> {
    let mut offset = HEADER_LEN;
    while let Some(&[kind, len]) = header.get(offset..).and_then(|rest| rest.first_chunk()) {
        match (kind, len) {
            (NO_OPERATION, _) => offset += 1,
            (MAXIMUM_SEGMENT_SIZE, 4) => return Some(offset + 2).filter(|value| value + 2 <= header.len()),
            (END_OF_OPTIONS, _) | (_, 0 | 1) => return None,
            _ => offset += usize::from(len),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    /// A SYN from 10.0.0.1:40746 to 10.0.0.2:81 that Linux sent, with its checksum completed.
    const SYN: [u8; 40] = [
        0x9f, 0x2a, 0x00, 0x51, 0x7c, 0x3f, 0x40, 0x7f, 0, 0, 0, 0, 0xa0, 0x02, 0xfa, 0xf0, 0x2a, 0x0d, 0, 0, 2, 4, 0x05, 0xb4, 4,
        2, 8, 10, 0xf8, 0xbb, 0xba, 0x06, 0, 0, 0, 0, 1, 3, 3, 10,
    ];

    fn is_valid(bytes: &[u8]) -> bool {
        let pseudo = checksum::pseudo_header([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, bytes.len() as u16);
        pseudo.and(checksum::sum(bytes)).is_valid()
    }

    #[test]
    fn fields_are_where_rfc_9293_draws_them() {
        let header = TcpHeader::from_prefix(&SYN).expect("20 bytes");
        assert_eq!((header.src_port(), header.dst_port()), (40746, 81));
        assert_eq!((header.sequence(), header.acknowledgment()), (2_084_520_063, 0));
        assert_eq!((header.header_len(), header.window(), header.checksum()), (40, 64240, 0x2a0d));
        assert!(header.flags().is_opening() && is_valid(&SYN));
    }

    #[test]
    fn new_ports_leave_the_checksum_right() {
        let mut bytes = SYN;
        for port in 0..=u16::MAX {
            let header = TcpHeader::from_prefix_mut(&mut bytes).expect("20 bytes");
            header.set_src_port(port);
            header.set_dst_port(!port);
            assert!(is_valid(&bytes), "port {port}");
        }
    }

    #[test]
    fn flags_that_some_tcp_sends_are_possible() {
        let (syn, ack, fin, rst, psh, urg) =
            (TcpFlags::SYN, TcpFlags::ACK, TcpFlags::FIN, TcpFlags::RST, TcpFlags::PSH, TcpFlags::URG);
        let (ece, cwr) = (TcpFlags(0x40), TcpFlags(0x80));
        for flags in
            [syn, syn.and(ack), syn.and(ece).and(cwr), syn.and(psh), ack, ack.and(psh).and(urg), fin.and(ack), rst, rst.and(ack)]
        {
            assert!(!flags.is_impossible(), "{flags:?}");
        }
        let nothing = TcpFlags(0);
        for flags in
            [nothing, fin, psh, urg, fin.and(psh).and(urg), syn.and(fin), syn.and(rst), rst.and(fin).and(ack), TcpFlags(0xFF)]
        {
            assert!(flags.is_impossible(), "{flags:?}");
        }
    }

    #[test]
    fn a_larger_segment_size_is_lowered_and_a_smaller_one_kept() {
        let mut bytes = SYN;
        assert!(!clamp_mss(&mut bytes, 1460));
        assert_eq!(bytes, SYN);
        assert!(clamp_mss(&mut bytes, 1452));
        assert_eq!(bytes[22..24], 1452_u16.to_be_bytes());
        assert!(is_valid(&bytes));
    }

    #[test]
    fn a_segment_size_at_an_odd_offset_leaves_the_checksum_right() {
        let mut bytes = SYN;
        bytes[20..26].copy_from_slice(&[1, 2, 4, 0xFF, 0xA1, 1]);
        let pseudo = checksum::pseudo_header([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, 40);
        bytes[16..18].fill(0);
        let whole = pseudo.and(checksum::sum(&bytes)).checksum();
        bytes[16..18].copy_from_slice(&whole.to_be_bytes());
        for most in (0..=0xFFA0).rev().step_by(257) {
            assert!(clamp_mss(&mut bytes, most));
            assert!(is_valid(&bytes), "clamped to {most}");
        }
    }

    #[test]
    fn options_that_lie_end_the_search() {
        for options in [[3, 0, 2, 4], [3, 1, 2, 4], [3, 200, 2, 4], [0, 2, 4, 9], [1, 1, 1, 2], [1, 1, 2, 4]] {
            let mut bytes = [0; 24];
            bytes[12] = 0x60;
            bytes[13] = TcpFlags::SYN.0;
            bytes[20..].copy_from_slice(&options);
            assert!(!clamp_mss(&mut bytes, 0), "{options:?}");
        }
    }

    #[test]
    fn only_a_syn_announces_a_segment_size() {
        let mut bytes = SYN;
        bytes[13] = TcpFlags::ACK.0;
        assert!(!clamp_mss(&mut bytes, 500));
    }
}
