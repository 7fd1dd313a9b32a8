//! IPv4 headers: reading, and edits that keep the header checksum right.
//!
//! Knows one header and its options. Called by `packet`, `fragment`, `icmp_error` and `nat`.
//! Invariant: a setter leaves the header checksum as right as it was.
//! Sources: RFC 791, RFC 1812, RFC 6864. Tests: below.

use core::net::Ipv4Addr;

use zerocopy::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, Delta};

/// Length of a header without options. **Units:** bytes.
pub const HEADER_LEN: usize = 20;
/// Length of a header with as many options as there can be. **Units:** bytes.
pub const MAX_HEADER_LEN: usize = 60;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// The protocol number of DCCP.
pub const DCCP: u8 = 33;
/// The protocol number of UDP-Lite.
pub const UDP_LITE: u8 = 136;
/// The Don't Fragment flag, in the word that also has the fragment offset.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The More Fragments flag, in the same word.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Bits of that word that are the fragment offset, in units of 8 bytes.
const OFFSET: u16 = 0x1FFF;

/// The fixed part of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv4Header {
    version_and_len: u8,
    dscp_ecn: u8,
    total_len: U16,
    id: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    src: U32,
    dst: U32,
}

impl Ipv4Header {
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

    /// A header without options for a datagram that this box makes: checksum right, identification 0 and Don't Fragment set, as
    /// RFC 6864, section 4.1, lets datagrams be that are never fragmented. **Units:** `payload_len` in bytes, at most 65,515.
    #[must_use]
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ttl: u8, payload_len: u16) -> Self {
        let mut header = Self {
            version_and_len: 0x45,
            dscp_ecn: 0,
            total_len: U16::new(payload_len.saturating_add(HEADER_LEN as u16)),
            id: U16::ZERO,
            fragment: U16::new(DONT_FRAGMENT),
            ttl,
            protocol,
            checksum: U16::ZERO,
            src: U32::new(src.to_bits()),
            dst: U32::new(dst.to_bits()),
        };
        header.checksum.set(checksum::sum(header.as_bytes()).checksum());
        header
    }

    /// The version; 4 if the header is what it says.
    #[inline]
    #[must_use]
    pub const fn version(&self) -> u8 {
        self.version_and_len >> 4
    }

    /// The header's length with options, as the header claims. **Units:** bytes, 0 to 60; less than 20 is a lie.
    #[inline]
    #[must_use]
    pub const fn header_len(&self) -> usize {
        (self.version_and_len & 0x0F) as usize * 4
    }

    /// The differentiated services code point and the congestion bits.
    #[inline]
    #[must_use]
    pub const fn dscp_ecn(&self) -> u8 {
        self.dscp_ecn
    }

    /// The datagram's length from the header on, as the header claims. **Units:** bytes.
    #[inline]
    #[must_use]
    pub const fn total_len(&self) -> u16 {
        self.total_len.get()
    }

    /// The identification that fragments of one datagram share.
    #[inline]
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id.get()
    }

    /// Whether routers must not fragment it.
    #[inline]
    #[must_use]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment.get() & DONT_FRAGMENT != 0
    }

    /// Whether fragments of the same datagram follow this one.
    #[inline]
    #[must_use]
    pub const fn more_fragments(&self) -> bool {
        self.fragment.get() & MORE_FRAGMENTS != 0
    }

    /// Where in the whole datagram's payload this one's begins. **Units:** bytes.
    #[inline]
    #[must_use]
    pub const fn fragment_offset(&self) -> usize {
        (self.fragment.get() & OFFSET) as usize * 8
    }

    /// The time to live.
    #[inline]
    #[must_use]
    pub const fn ttl(&self) -> u8 {
        self.ttl
    }

    /// The protocol number of the payload.
    #[inline]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// The header checksum.
    #[inline]
    #[must_use]
    pub const fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// The source address.
    #[inline]
    #[must_use]
    pub const fn src(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.src.get())
    }

    /// The destination address.
    #[inline]
    #[must_use]
    pub const fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.dst.get())
    }

    /// Sets the source. Returns the delta, which is also that of a transport checksum with a pseudo-header.
    #[inline]
    pub fn set_src(&mut self, src: Ipv4Addr) -> Delta {
        let delta = Delta::of_address(self.src(), src);
        self.src.set(src.to_bits());
        self.update_checksum(delta);
        delta
    }

    /// Sets the destination. Returns the delta, which is also that of a transport checksum with a pseudo-header.
    #[inline]
    pub fn set_dst(&mut self, dst: Ipv4Addr) -> Delta {
        let delta = Delta::of_address(self.dst(), dst);
        self.dst.set(dst.to_bits());
        self.update_checksum(delta);
        delta
    }

    /// Sets both addresses, with their delta known beforehand. **Cost:** hot; what a session's packets take.
    #[inline]
    pub fn set_addresses(&mut self, src: Ipv4Addr, dst: Ipv4Addr, delta: Delta) {
        self.src.set(src.to_bits());
        self.dst.set(dst.to_bits());
        self.update_checksum(delta);
    }

    /// Sets the time to live.
    #[inline]
    pub fn set_ttl(&mut self, ttl: u8) {
        let old = u16::from_be_bytes([self.ttl, self.protocol]);
        let new = u16::from_be_bytes([ttl, self.protocol]);
        self.ttl = ttl;
        self.update_checksum(Delta::of_u16(old, new));
    }

    /// Takes one from the time to live. Returns whether the datagram may go on: if not, it ran out here and is as it was.
    ///
    /// "If the TTL is reduced to zero (or less), the packet MUST be discarded." **Source:** RFC 1812, section 5.3.1.
    #[inline]
    #[must_use]
    pub fn decrement_ttl(&mut self) -> bool {
        if self.ttl <= 1 {
            return false;
        }
        self.set_ttl(self.ttl - 1);
        true
    }

    /// Sets the differentiated services code point and the congestion bits.
    #[inline]
    pub fn set_dscp_ecn(&mut self, dscp_ecn: u8) {
        let old = u16::from_be_bytes([self.version_and_len, self.dscp_ecn]);
        let new = u16::from_be_bytes([self.version_and_len, dscp_ecn]);
        self.dscp_ecn = dscp_ecn;
        self.update_checksum(Delta::of_u16(old, new));
    }

    /// Sets the identification.
    #[inline]
    pub fn set_id(&mut self, id: u16) {
        self.update_checksum(Delta::of_u16(self.id(), id));
        self.id.set(id);
    }

    /// Mends the header checksum after a change that is known beforehand.
    #[inline]
    pub fn update_checksum(&mut self, delta: Delta) {
        self.checksum.set(delta.apply(self.checksum.get()));
    }

    /// Makes the header that of a fragment; its checksum is then [`fill_checksum`]'s task. `header_len` and `offset` in bytes.
    pub(crate) fn set_fragment(&mut self, header_len: usize, total_len: u16, offset: usize, more: bool) {
        self.version_and_len = 0x40 | (header_len / 4) as u8 & 0x0F;
        self.total_len.set(total_len);
        let flags = self.fragment.get() & !(OFFSET | MORE_FRAGMENTS);
        self.fragment.set(flags | (offset / 8) as u16 & OFFSET | if more { MORE_FRAGMENTS } else { 0 });
    }
}

/// The header with its options that `bytes` begin with, or none if its length is a lie or `bytes` end within.
#[inline]
#[must_use]
pub fn header_bytes(bytes: &[u8]) -> Option<&[u8]> {
    let len = Ipv4Header::from_prefix(bytes)?.header_len();
    if len < HEADER_LEN { None } else { bytes.get(..len) }
}

/// The options of the header that `bytes` begin with; none at all if it is no header.
#[inline]
#[must_use]
pub fn options(bytes: &[u8]) -> &[u8] {
    header_bytes(bytes).and_then(|header| header.get(HEADER_LEN..)).unwrap_or(&[])
}

/// The kinds of the two options with a source route (RFC 791, section 3.1).
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// The options of one byte: the end of the list, and no operation.
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// Whether a header's options have a source route, loose or strict. What stands behind an option whose length is a lie is none.
#[must_use]
pub fn has_source_route(options: &[u8]) -> bool {
    let mut rest = options;
    while let [kind, behind @ ..] = rest {
        rest = match *kind {
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return true,
            END_OF_OPTIONS => return false,
            NO_OPERATION => behind,
            _ => match behind.first().map(|&len| usize::from(len)) {
                Some(len @ 2..) => rest.get(len..).unwrap_or(&[]),
                _ => return false,
            },
        };
    }
    false
}

/// Whether `bytes` begin with a header whose checksum is right.
#[inline]
#[must_use]
pub fn header_checksum_ok(bytes: &[u8]) -> bool {
    // A header without options has a length that the compiler knows: three loads instead of a loop.
    match bytes.first_chunk::<HEADER_LEN>() {
        Some(fixed) if fixed[0] & 0x0F == 5 => checksum::sum(fixed).is_valid(),
        _ => header_bytes(bytes).is_some_and(|header| checksum::sum(header).is_valid()),
    }
}

/// Computes the header checksum from scratch. Does nothing where there is no header.
pub fn fill_checksum(bytes: &mut [u8]) {
    let Some(len) = header_bytes(bytes).map(<[u8]>::len) else { return };
    let Some(header) = Ipv4Header::from_prefix_mut(bytes) else { return };
    header.checksum = U16::ZERO;
    let checksum = checksum::sum(&bytes[..len]).checksum();
    if let Some(header) = Ipv4Header::from_prefix_mut(bytes) {
        header.checksum.set(checksum);
    }
}

/// Whether a single host can have the address: not zero's network, loopback, multicast, reserved or broadcast. A subnet's own
/// broadcast address cannot be told here.
///
/// **Source:** RFC 1812, section 5.3.7; RFC 6890.
#[inline]
#[must_use]
pub const fn may_be_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header that many texts use to explain the checksum.
    const HEADER: [u8; 20] = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
    /// Of a fragment that Linux sent: Router Alert, then a Record Route with room for one address, which it filled.
    const WITH_OPTIONS: [u8; 32] = [
        0x48, 0, 0x05, 0xd8, 0xc7, 0xa6, 0x20, 0, 0x40, 0x11, 0xd2, 0x56, 10, 0, 0, 1, 10, 0, 0, 2, 0x94, 4, 0, 0, 7, 7, 8, 10, 0,
        0, 1, 0,
    ];

    #[test]
    fn fields_are_where_rfc_791_draws_them() {
        let header = Ipv4Header::from_prefix(&HEADER).expect("20 bytes");
        assert_eq!((header.version(), header.header_len(), header.total_len()), (4, 20, 0x73));
        assert_eq!((header.dscp_ecn(), header.id(), header.ttl(), header.protocol()), (0, 0, 64, UDP));
        assert!(header.dont_fragment() && !header.more_fragments());
        assert_eq!((header.fragment_offset(), header.checksum()), (0, 0xb861));
        assert_eq!((header.src(), header.dst()), (Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(192, 168, 0, 199)));
        assert!(header_checksum_ok(&HEADER) && options(&HEADER).is_empty());
    }

    #[test]
    fn options_are_within_header_length_and_checksum() {
        assert!(header_checksum_ok(&WITH_OPTIONS));
        assert_eq!(options(&WITH_OPTIONS), &WITH_OPTIONS[20..]);
        assert_eq!(Ipv4Header::from_prefix(&WITH_OPTIONS).map(Ipv4Header::more_fragments), Some(true));
        assert!(!header_checksum_ok(&WITH_OPTIONS[..31]), "cut within its options");
    }

    #[test]
    fn a_source_route_is_found_behind_other_options_and_nowhere_else() {
        let with: [&[u8]; 5] = [&[131], &[137, 3, 4], &[1, 1, 131, 7], &[7, 3, 4, 1, 137, 3, 4], &[148, 4, 0, 0, 131]];
        let without: [&[u8]; 8] = [&[], &[1, 1], &[0, 131], &[7, 4, 131, 137], &[7, 0, 131], &[7, 1, 131], &[7], &[68, 200, 131]];
        assert!(with.into_iter().all(has_source_route));
        assert!(!without.into_iter().any(has_source_route));
    }

    #[test]
    fn every_setter_leaves_the_checksum_right() {
        let edits: [fn(&mut Ipv4Header); 6] = [
            |header| header.set_ttl(1),
            |header| header.set_dscp_ecn(0xFF),
            |header| header.set_id(0xFFFF),
            |header| assert_ne!(header.set_src(Ipv4Addr::BROADCAST), Delta::NONE),
            |header| assert_ne!(header.set_dst(Ipv4Addr::UNSPECIFIED), Delta::NONE),
            |header| assert!(header.decrement_ttl()),
        ];
        for (number, edit) in edits.iter().enumerate() {
            let mut bytes = WITH_OPTIONS;
            edit(Ipv4Header::from_prefix_mut(&mut bytes).expect("20 bytes"));
            assert_ne!(bytes, WITH_OPTIONS, "edit {number}");
            assert!(header_checksum_ok(&bytes), "edit {number}");
        }
    }

    #[test]
    fn a_ttl_of_one_or_zero_runs_out_here() {
        for ttl in [0, 1] {
            let mut header = Ipv4Header::new(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, UDP, ttl, 8);
            assert!(!header.decrement_ttl());
            assert_eq!(header.ttl(), ttl);
        }
        let mut header = Ipv4Header::new(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, UDP, 2, 8);
        assert!(header.decrement_ttl() && header.ttl() == 1);
    }

    #[test]
    fn a_new_header_has_a_right_checksum() {
        let header = Ipv4Header::new(Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 4, 5, 6), ICMP, 64, 36);
        assert!(header_checksum_ok(header.as_bytes()));
        assert_eq!((header.total_len(), header.id(), header.dont_fragment()), (56, 0, true));
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        let mut bytes = HEADER;
        bytes[11] ^= 1;
        Ipv4Header::from_prefix_mut(&mut bytes).expect("20 bytes").set_ttl(9);
        assert!(!header_checksum_ok(&bytes));
        fill_checksum(&mut bytes);
        assert!(header_checksum_ok(&bytes));
    }

    #[test]
    fn no_host_has_a_special_address() {
        for martian in ["0.0.0.0", "0.255.255.255", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"] {
            assert!(!may_be_host(martian.parse().expect("an address")), "{martian}");
        }
        for host in ["1.0.0.0", "10.0.0.1", "126.255.255.255", "128.0.0.1", "192.0.2.1", "223.255.255.255"] {
            assert!(may_be_host(host.parse().expect("an address")), "{host}");
        }
    }
}
