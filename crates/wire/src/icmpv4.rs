//! ICMP headers: types and codes, reading, and edits of identifier and checksum.
//!
//! Knows one header; what an error quotes is `embedded`'s, and making errors is `icmp_error`'s. Called by `packet` and `nat`.
//! Invariant: a setter leaves the checksum as right as it was.
//! Sources: RFC 792, RFC 1122 (section 3.2.2), RFC 1191, RFC 4884. Tests: below.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, Delta};

/// Length of a header, the four bytes that depend on the type included. **Units:** bytes.
pub const HEADER_LEN: usize = 8;
/// Where in the header the checksum is. **Units:** bytes.
pub const CHECKSUM_OFFSET: usize = 2;
/// Where in a query's header the identifier is. **Units:** bytes.
pub const IDENTIFIER_OFFSET: usize = 4;

/// Type: echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Type: destination unreachable.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// Type: source quench, deprecated by RFC 6633.
pub const SOURCE_QUENCH: u8 = 4;
/// Type: redirect.
pub const REDIRECT: u8 = 5;
/// Type: echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Type: time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Type: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Type: timestamp request.
pub const TIMESTAMP_REQUEST: u8 = 13;
/// Type: timestamp reply.
pub const TIMESTAMP_REPLY: u8 = 14;
/// Type: information request, deprecated by RFC 6918.
pub const INFORMATION_REQUEST: u8 = 15;
/// Type: information reply, deprecated by RFC 6918.
pub const INFORMATION_REPLY: u8 = 16;
/// Type: address mask request, deprecated by RFC 6918.
pub const ADDRESS_MASK_REQUEST: u8 = 17;
/// Type: address mask reply, deprecated by RFC 6918.
pub const ADDRESS_MASK_REPLY: u8 = 18;

/// Code of destination unreachable: network.
pub const NETWORK_UNREACHABLE: u8 = 0;
/// Code of destination unreachable: host.
pub const HOST_UNREACHABLE: u8 = 1;
/// Code of destination unreachable: protocol.
pub const PROTOCOL_UNREACHABLE: u8 = 2;
/// Code of destination unreachable: port.
pub const PORT_UNREACHABLE: u8 = 3;
/// Code of destination unreachable: fragmentation needed and Don't Fragment set.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of destination unreachable: communication administratively prohibited (RFC 1812, section 5.2.7.1).
pub const ADMINISTRATIVELY_PROHIBITED: u8 = 13;
/// Code of time exceeded: in transit.
pub const TTL_EXCEEDED: u8 = 0;
/// Code of time exceeded: in reassembly.
pub const REASSEMBLY_TIME_EXCEEDED: u8 = 1;

/// Which half of a query a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// It asks.
    Request,
    /// It answers.
    Reply,
}

/// Which half of a query messages of this type are; none if they are not a query's.
///
/// "ICMP query messages: Echo, Information, Timestamp, Address Mask" **Source:** RFC 1122, section 3.2.2.
#[inline]
#[must_use]
pub const fn query(kind: u8) -> Option<Query> {
    match kind {
        ECHO_REQUEST | TIMESTAMP_REQUEST | INFORMATION_REQUEST | ADDRESS_MASK_REQUEST => Some(Query::Request),
        ECHO_REPLY | TIMESTAMP_REPLY | INFORMATION_REPLY | ADDRESS_MASK_REPLY => Some(Query::Reply),
        _ => None,
    }
}

/// Whether messages of this type quote a datagram.
///
/// "ICMP error messages: Destination Unreachable, Redirect, Source Quench, Time Exceeded, Parameter Problem"
/// **Source:** RFC 1122, section 3.2.2.
#[inline]
#[must_use]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, DESTINATION_UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: U16,
    rest: [U16; 2],
}

impl IcmpHeader {
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

    /// A header whose checksum is zero: [`fill_checksum`] comes next.
    #[must_use]
    pub const fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self { kind, code, checksum: U16::ZERO, rest: [U16::new((rest >> 16) as u16), U16::new(rest as u16)] }
    }

    /// The type.
    #[inline]
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// The code.
    #[inline]
    #[must_use]
    pub const fn code(&self) -> u8 {
        self.code
    }

    /// The checksum.
    #[inline]
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// The four bytes that depend on the type.
    #[inline]
    #[must_use]
    pub const fn rest(&self) -> u32 {
        (self.rest[0].get() as u32) << 16 | self.rest[1].get() as u32
    }

    /// Whether it asks or answers, if it is a query's.
    #[inline]
    #[must_use]
    pub const fn query(&self) -> Option<Query> {
        query(self.kind)
    }

    /// Whether it quotes a datagram.
    #[inline]
    #[must_use]
    pub const fn is_error(&self) -> bool {
        is_error(self.kind)
    }

    /// The identifier; of a query.
    #[inline]
    #[must_use]
    pub const fn identifier(&self) -> u16 {
        self.rest[0].get()
    }

    /// The sequence number; of a query.
    #[inline]
    #[must_use]
    pub const fn sequence(&self) -> u16 {
        self.rest[1].get()
    }

    /// The next hop's MTU; of Fragmentation Needed (RFC 1191, section 4). **Units:** bytes; zero from routers that do not tell.
    #[inline]
    #[must_use]
    pub const fn next_hop_mtu(&self) -> u16 {
        self.rest[1].get()
    }

    /// Sets the next hop's MTU and mends the checksum; of Fragmentation Needed.
    #[inline]
    pub fn set_next_hop_mtu(&mut self, mtu: u16) {
        self.update_checksum(Delta::of_u16(self.next_hop_mtu(), mtu));
        self.rest[1].set(mtu);
    }

    /// The length of the quoted datagram, if the message has extensions behind it; of an error (RFC 4884, section 3).
    /// **Units:** bytes; zero without extensions.
    #[inline]
    #[must_use]
    pub const fn quoted_len(&self) -> usize {
        match self.kind {
            DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => (self.rest[0].get() & 0xFF) as usize * 4,
            _ => 0,
        }
    }

    /// Mends the checksum after a change that is known beforehand.
    #[inline]
    pub fn update_checksum(&mut self, delta: Delta) {
        self.checksum.set(delta.apply(self.checksum.get()));
    }
}

/// Sets the identifier of the query `message`, which reaches from the ICMP header to the end of the datagram, and mends the
/// checksum. Does nothing where there is no header.
///
/// A message of zeros only (an echo reply may be one) has `0xFFFF` for its checksum; see [`crate::checksum`].
#[inline]
pub fn set_identifier(message: &mut [u8], identifier: u16) {
    let Some(header) = IcmpHeader::from_prefix_mut(message) else { return };
    header.update_checksum(Delta::of_u16(header.identifier(), identifier));
    header.rest[0].set(identifier);
    if header.checksum() == 0 && message.iter().all(|&byte| byte == 0) {
        message[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].fill(0xFF);
    }
}

/// Whether the checksum of `message` is right; it reaches from the ICMP header to the end of a whole datagram.
#[inline]
#[must_use]
pub fn checksum_ok(message: &[u8]) -> bool {
    message.len() >= HEADER_LEN && checksum::sum(message).is_valid()
}

/// Computes the checksum of `message` from scratch. Does nothing where there is no header.
pub fn fill_checksum(message: &mut [u8]) {
    let Some(header) = IcmpHeader::from_prefix_mut(message) else { return };
    header.checksum = U16::ZERO;
    let checksum = checksum::sum(message).checksum();
    if let Some(header) = IcmpHeader::from_prefix_mut(message) {
        header.checksum.set(checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo request and its reply as Linux sent them.
    const REQUEST: [u8; 16] = [8, 0, 0x43, 0xb2, 0x5a, 0x4c, 0, 1, 0x5a, 0, 0, 0, 0, 0, 0, 0];
    const REPLY: [u8; 16] = [0, 0, 0x4b, 0xb2, 0x5a, 0x4c, 0, 1, 0x5a, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_query_is_read() {
        let header = IcmpHeader::from_prefix(&REQUEST).expect("8 bytes");
        assert_eq!((header.kind(), header.code(), header.checksum()), (ECHO_REQUEST, 0, 0x43b2));
        assert_eq!((header.identifier(), header.sequence(), header.rest()), (0x5a4c, 1, 0x5a4c_0001));
        assert_eq!((header.query(), header.is_error()), (Some(Query::Request), false));
        assert_eq!(IcmpHeader::from_prefix(&REPLY).and_then(IcmpHeader::query), Some(Query::Reply));
        assert!(checksum_ok(&REQUEST) && checksum_ok(&REPLY));
    }

    #[test]
    fn types_are_queries_or_errors_as_rfc_1122_lists_them() {
        let queries: Vec<u8> = (0..=255).filter(|&kind| query(kind).is_some()).collect();
        let errors: Vec<u8> = (0..=255).filter(|&kind| is_error(kind)).collect();
        assert_eq!(queries, [0, 8, 13, 14, 15, 16, 17, 18]);
        assert_eq!(errors, [3, 4, 5, 11, 12]);
    }

    #[test]
    fn any_identifier_leaves_the_checksum_right() {
        for message in [REQUEST, REPLY] {
            let mut changed = message;
            for identifier in 0..=u16::MAX {
                set_identifier(&mut changed, identifier);
                assert!(checksum_ok(&changed), "identifier {identifier}");
            }
            set_identifier(&mut changed, 0x5a4c);
            assert_eq!(changed, message);
        }
    }

    #[test]
    fn a_reply_of_zeros_has_the_checksum_that_a_sum_from_scratch_has() {
        let mut message = [0; 16];
        fill_checksum(&mut message);
        assert_eq!(message[2..4], [0xFF, 0xFF]);
        set_identifier(&mut message, 77);
        assert!(checksum_ok(&message));
        set_identifier(&mut message, 0);
        assert_eq!(message[2..4], [0xFF, 0xFF]);
        assert!(checksum_ok(&message));
    }

    #[test]
    fn the_next_hops_mtu_is_in_the_second_half_and_the_quoted_length_in_the_first() {
        let mut message = [0; 12];
        message[..8].copy_from_slice(IcmpHeader::new(DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, 0x0020_05D4).as_bytes());
        fill_checksum(&mut message);
        let header = IcmpHeader::from_prefix_mut(&mut message).expect("8 bytes");
        assert_eq!((header.next_hop_mtu(), header.quoted_len()), (1492, 128));
        header.set_next_hop_mtu(1280);
        assert_eq!(header.next_hop_mtu(), 1280);
        assert!(checksum_ok(&message));
    }
}
