//! Step 2 of a packet's way: from the bytes of a frame to where its headers are, or to the reason why it is none.
//!
//! Knows lengths, versions and checksums of headers; not what the NAT does with them. Called once for each received frame.
//! Invariant: a [`Layout`] was checked against the frame: its offsets lie within, in order, and the headers that its transport
//! promises are whole. Sources: RFC 791, RFC 1812 (section 5.2.2), RFC 1858, RFC 3128. Tests: below, in `tests/arbitrary.rs` and `tests/linux.rs`.

use core::fmt;

use crate::ethernet;
use crate::icmpv4::{self, IcmpHeader, Query};
use crate::ipv4::{self, Ipv4Header};
use crate::ports::Ports;
use crate::tcp::{self, TcpHeader};
use crate::udp::{self, UdpHeader};

/// Why bytes are no packet. Each is a drop reason of `nat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParseError {
    /// Too short for its headers, or for the length that it claims.
    Truncated,
    /// Not IPv4.
    NotIpv4,
    /// More than one VLAN tag, or a service tag: no interface is configured for these.
    UnsupportedVlan,
    /// An IPv4 header with a wrong version, length or checksum, or a fragment that ends beyond the largest datagram.
    BadIpHeader,
    /// A transport header with an impossible length, or cut by fragmentation where no host cuts.
    BadTransportHeader,
    /// A TCP packet with flags that no TCP sends.
    BadTcpFlags,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "too short for its headers",
            Self::NotIpv4 => "not IPv4",
            Self::UnsupportedVlan => "more than one VLAN tag, or a service tag",
            Self::BadIpHeader => "IPv4 header with a wrong version, length or checksum",
            Self::BadTransportHeader => "transport header with an impossible length",
            Self::BadTcpFlags => "TCP flags that no TCP sends",
        })
    }
}

impl core::error::Error for ParseError {}

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// Its beginning, with the transport header.
    First,
    /// Another part, without transport header.
    Later,
}

/// What follows the IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// An ICMP message with an identifier.
    IcmpQuery(Query),
    /// An ICMP message that quotes a datagram.
    IcmpError,
    /// Another ICMP message, of this type.
    OtherIcmp(u8),
    /// Another protocol, of this number.
    Other(u8),
    /// Nothing that can be read: the packet is a later fragment.
    None,
}

/// Where the headers of a frame are. Made by [`parse`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    vlan: Option<u16>,
    end: u32,
    l3: u8,
    l4: u8,
    protocol: u8,
    fragment: Fragment,
    transport: Transport,
}

const _: () = assert!(size_of::<Layout>() <= 16, "a burst of layouts stays within few lines");

impl Layout {
    /// The VLAN of the frame's tag; none without tag and with a priority tag.
    #[inline]
    #[must_use]
    pub const fn vlan(&self) -> Option<u16> {
        self.vlan
    }

    /// Where the IPv4 header begins. **Units:** bytes from the frame's start.
    #[inline]
    #[must_use]
    pub const fn l3(&self) -> usize {
        self.l3 as usize
    }

    /// Where the IPv4 payload begins. **Units:** bytes from the frame's start.
    #[inline]
    #[must_use]
    pub const fn l4(&self) -> usize {
        self.l4 as usize
    }

    /// Where the datagram ends; behind it is padding. **Units:** bytes from the frame's start.
    #[inline]
    #[must_use]
    pub const fn end(&self) -> usize {
        self.end as usize
    }

    /// The datagram's length, from the IPv4 header on. **Units:** bytes.
    #[inline]
    #[must_use]
    pub const fn datagram_len(&self) -> usize {
        self.end as usize - self.l3 as usize
    }

    /// The protocol number.
    #[inline]
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Which part of a datagram it is.
    #[inline]
    #[must_use]
    pub const fn fragment(&self) -> Fragment {
        self.fragment
    }

    /// What follows the IPv4 header.
    #[inline]
    #[must_use]
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// The bytes from the IPv4 header to the datagram's end; empty if `frame` is not the frame that was parsed.
    #[inline]
    #[must_use]
    pub fn datagram<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        frame.get(self.l3()..self.end()).unwrap_or(&[])
    }

    /// The same, to be changed.
    #[inline]
    #[must_use]
    pub fn datagram_mut<'f>(&self, frame: &'f mut [u8]) -> &'f mut [u8] {
        frame.get_mut(self.l3()..self.end()).unwrap_or(&mut [])
    }

    /// The bytes from the transport header to the datagram's end; empty if `frame` is not the frame that was parsed.
    #[inline]
    #[must_use]
    pub fn payload<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        frame.get(self.l4()..self.end()).unwrap_or(&[])
    }

    /// The same, to be changed.
    #[inline]
    #[must_use]
    pub fn payload_mut<'f>(&self, frame: &'f mut [u8]) -> &'f mut [u8] {
        frame.get_mut(self.l4()..self.end()).unwrap_or(&mut [])
    }

    /// The IPv4 header.
    #[inline]
    #[must_use]
    pub fn ipv4<'f>(&self, frame: &'f [u8]) -> Option<&'f Ipv4Header> {
        Ipv4Header::from_prefix(self.datagram(frame))
    }

    /// The IPv4 header, to be changed.
    #[inline]
    #[must_use]
    pub fn ipv4_mut<'f>(&self, frame: &'f mut [u8]) -> Option<&'f mut Ipv4Header> {
        Ipv4Header::from_prefix_mut(self.datagram_mut(frame))
    }

    /// Source and destination port; none if it is neither TCP nor UDP, or a later fragment.
    #[inline]
    #[must_use]
    pub fn ports<'f>(&self, frame: &'f [u8]) -> Option<&'f Ports> {
        match self.transport {
            Transport::Tcp | Transport::Udp => Ports::from_prefix(self.payload(frame)),
            _ => None,
        }
    }

    /// The UDP header; none if it is not UDP.
    #[inline]
    #[must_use]
    pub fn udp<'f>(&self, frame: &'f [u8]) -> Option<&'f UdpHeader> {
        if self.transport == Transport::Udp { UdpHeader::from_prefix(self.payload(frame)) } else { None }
    }

    /// The UDP header, to be changed; none if it is not UDP.
    #[inline]
    #[must_use]
    pub fn udp_mut<'f>(&self, frame: &'f mut [u8]) -> Option<&'f mut UdpHeader> {
        if self.transport == Transport::Udp { UdpHeader::from_prefix_mut(self.payload_mut(frame)) } else { None }
    }

    /// The TCP header; none if it is not TCP.
    #[inline]
    #[must_use]
    pub fn tcp<'f>(&self, frame: &'f [u8]) -> Option<&'f TcpHeader> {
        if self.transport == Transport::Tcp { TcpHeader::from_prefix(self.payload(frame)) } else { None }
    }

    /// The TCP header, to be changed; none if it is not TCP.
    #[inline]
    #[must_use]
    pub fn tcp_mut<'f>(&self, frame: &'f mut [u8]) -> Option<&'f mut TcpHeader> {
        if self.transport == Transport::Tcp { TcpHeader::from_prefix_mut(self.payload_mut(frame)) } else { None }
    }

    /// The ICMP header; none if it is not ICMP, or a later fragment.
    #[inline]
    #[must_use]
    pub fn icmp<'f>(&self, frame: &'f [u8]) -> Option<&'f IcmpHeader> {
        match self.transport {
            Transport::IcmpQuery(_) | Transport::IcmpError | Transport::OtherIcmp(_) => {
                IcmpHeader::from_prefix(self.payload(frame))
            }
            _ => None,
        }
    }
}

/// Reads a received frame. **Errors:** the first [`ParseError`] on the way from the link-layer header on.
///
/// **Cost:** hot; touches the headers only.
#[inline]
pub fn parse(frame: &[u8]) -> Result<Layout, ParseError> {
    let link = ethernet::link(frame).ok_or(ParseError::Truncated)?;
    match link.ethertype {
        ethernet::IPV4 => {}
        ethernet::VLAN | ethernet::SERVICE_VLAN => return Err(ParseError::UnsupportedVlan),
        _ => return Err(ParseError::NotIpv4),
    }
    let l3 = link.header_len;
    let bytes = frame.get(l3..).ok_or(ParseError::Truncated)?;
    let (header, header_len) = checked_header(bytes)?;
    let total_len = usize::from(header.total_len());
    let payload = bytes.get(header_len..total_len).ok_or(ParseError::Truncated)?;
    let fragment = fragment_of(header)?;
    Ok(Layout {
        vlan: link.vlan,
        end: (l3 + total_len) as u32,
        l3: l3 as u8,
        l4: (l3 + header_len) as u8,
        protocol: header.protocol(),
        fragment,
        transport: transport_of(header, payload, fragment)?,
    })
}

/// The header that `bytes` begin with, and its length with options: version, lengths and checksum are right, and it is whole.
///
/// The checks of RFC 1812, section 5.2.2, but for the datagram's end, which a quoted one does not reach.
#[inline]
pub(crate) fn checked_header(bytes: &[u8]) -> Result<(&Ipv4Header, usize), ParseError> {
    let header = Ipv4Header::from_prefix(bytes).ok_or(ParseError::Truncated)?;
    let header_len = header.header_len();
    if header.version() != 4 || header_len < ipv4::HEADER_LEN || usize::from(header.total_len()) < header_len {
        return Err(ParseError::BadIpHeader);
    }
    if bytes.len() < header_len {
        return Err(ParseError::Truncated);
    }
    if !ipv4::header_checksum_ok(bytes) {
        return Err(ParseError::BadIpHeader);
    }
    Ok((header, header_len))
}

/// Which part of a datagram the header's is. **Errors:** one that ends beyond 65,535 bytes, which is the largest datagram.
#[inline]
pub(crate) fn fragment_of(header: &Ipv4Header) -> Result<Fragment, ParseError> {
    let offset = header.fragment_offset();
    if offset + usize::from(header.total_len()) > usize::from(u16::MAX) {
        return Err(ParseError::BadIpHeader);
    }
    Ok(match (offset, header.more_fragments()) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    })
}

/// What `payload` begins with, its transport header checked.
#[inline]
fn transport_of(header: &Ipv4Header, payload: &[u8], fragment: Fragment) -> Result<Transport, ParseError> {
    match (header.protocol(), fragment) {
        (ipv4::TCP, Fragment::Later) if header.fragment_offset() < tcp::HEADER_LEN => Err(ParseError::BadTransportHeader),
        (_, Fragment::Later) => Ok(Transport::None),
        (ipv4::UDP, _) => udp_of(payload, fragment),
        (ipv4::TCP, _) => tcp_of(payload, fragment),
        (ipv4::ICMP, _) => icmp_of(payload, fragment),
        (other, _) => Ok(Transport::Other(other)),
    }
}

/// A payload that is too short for its header: cut on the way, or by a tiny first fragment, whose rest would overwrite what a
/// filter has looked at (RFC 1858, section 3; RFC 3128). No host cuts so: a link carries at least 68 bytes.
const fn too_short(fragment: Fragment) -> ParseError {
    match fragment {
        Fragment::Whole => ParseError::Truncated,
        Fragment::First | Fragment::Later => ParseError::BadTransportHeader,
    }
}

/// **Errors:** a length shorter than the header, or longer than the datagram has. A shorter one leaves surplus bytes (RFC 9868).
#[inline]
fn udp_of(payload: &[u8], fragment: Fragment) -> Result<Transport, ParseError> {
    let header = UdpHeader::from_prefix(payload).ok_or(too_short(fragment))?;
    let len = usize::from(header.len());
    if len < udp::HEADER_LEN || fragment == Fragment::Whole && len > payload.len() {
        return Err(ParseError::BadTransportHeader);
    }
    Ok(Transport::Udp)
}

/// **Errors:** a data offset within the fixed header or beyond the datagram, or impossible flags.
#[inline]
fn tcp_of(payload: &[u8], fragment: Fragment) -> Result<Transport, ParseError> {
    let header = TcpHeader::from_prefix(payload).ok_or(too_short(fragment))?;
    let len = header.header_len();
    if len < tcp::HEADER_LEN || fragment == Fragment::Whole && len > payload.len() {
        return Err(ParseError::BadTransportHeader);
    }
    if header.flags().is_impossible() {
        return Err(ParseError::BadTcpFlags);
    }
    Ok(Transport::Tcp)
}

#[inline]
fn icmp_of(payload: &[u8], fragment: Fragment) -> Result<Transport, ParseError> {
    let header = IcmpHeader::from_prefix(payload).ok_or(too_short(fragment))?;
    Ok(icmp_kind(header.kind()))
}

#[inline]
pub(crate) const fn icmp_kind(kind: u8) -> Transport {
    match icmpv4::query(kind) {
        Some(query) => Transport::IcmpQuery(query),
        None if icmpv4::is_error(kind) => Transport::IcmpError,
        None => Transport::OtherIcmp(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An untagged frame: a header with this protocol and fragment word, and the payload.
    fn frame(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let [len_high, len_low] = (20 + payload.len() as u16).to_be_bytes();
        let [high, low] = fragment.to_be_bytes();
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend([0x45, 0, len_high, len_low, 0, 1, high, low, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(payload);
        ipv4::fill_checksum(&mut frame[14..]);
        frame
    }

    /// Changes bytes of the IPv4 header and makes its checksum right again.
    fn edited(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
        frame[14 + at] = byte;
        ipv4::fill_checksum(&mut frame[14..]);
        frame
    }

    fn tcp(flags: u8) -> Vec<u8> {
        vec![0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]
    }

    const UDP: [u8; 10] = [0, 1, 0, 2, 0, 10, 0, 0, 9, 9];

    #[test]
    fn a_wrong_ip_header_is_refused() {
        let good = frame(ipv4::UDP, 0, &UDP);
        assert!(parse(&good).is_ok());
        assert_eq!(parse(&edited(good.clone(), 0, 0x65)), Err(ParseError::BadIpHeader), "version 6");
        assert_eq!(parse(&edited(good.clone(), 0, 0x44)), Err(ParseError::BadIpHeader), "header of 16 bytes");
        assert_eq!(parse(&edited(good.clone(), 3, 19)), Err(ParseError::BadIpHeader), "shorter than its header");
        assert_eq!(parse(&edited(good.clone(), 3, 31)), Err(ParseError::Truncated), "longer than the frame");
        assert_eq!(parse(&edited(good.clone(), 0, 0x4F)), Err(ParseError::BadIpHeader), "header longer than the datagram");
        let mut wrong = good;
        wrong[14 + 11] ^= 1;
        assert_eq!(parse(&wrong), Err(ParseError::BadIpHeader), "checksum");
    }

    #[test]
    fn what_is_not_ipv4_behind_one_tag_is_refused() {
        let with = |ethertypes: &[u8]| parse(&[&[2; 12][..], ethertypes, &frame(ipv4::UDP, 0, &UDP)[14..]].concat());
        assert_eq!(with(&[0x86, 0xDD]), Err(ParseError::NotIpv4));
        assert_eq!(with(&[0x08, 0x06]), Err(ParseError::NotIpv4));
        assert_eq!(with(&[0x00, 0x2E]), Err(ParseError::NotIpv4), "a length: IEEE 802.3");
        assert_eq!(with(&[0x88, 0xA8, 0, 1, 0x08, 0]), Err(ParseError::UnsupportedVlan));
        assert_eq!(with(&[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x08, 0]), Err(ParseError::UnsupportedVlan));
        assert_eq!(with(&[0x81, 0, 0, 1, 0x86, 0xDD]), Err(ParseError::NotIpv4));
        assert_eq!(with(&[0x81, 0, 0x20, 7, 0x08, 0]).map(|layout| (layout.vlan(), layout.l3())), Ok((Some(7), 18)));
        assert_eq!(with(&[0x81, 0, 0x20, 0, 0x08, 0]).map(|layout| (layout.vlan(), layout.l3())), Ok((None, 18)));
    }

    #[test]
    fn a_udp_length_that_lies_is_refused() {
        let with = |fragment, len: u8| {
            let mut udp = UDP;
            udp[5] = len;
            parse(&frame(ipv4::UDP, fragment, &udp)).map(|layout| layout.transport())
        };
        assert_eq!(with(0, 7), Err(ParseError::BadTransportHeader));
        assert_eq!(with(0, 11), Err(ParseError::BadTransportHeader));
        assert_eq!(with(0, 8), Ok(Transport::Udp), "surplus bytes");
        assert_eq!(with(ipv4::MORE_FRAGMENTS, 200), Ok(Transport::Udp), "the rest is in other fragments");
        assert_eq!(with(ipv4::MORE_FRAGMENTS, 7), Err(ParseError::BadTransportHeader));
    }

    #[test]
    fn a_tcp_data_offset_that_lies_is_refused() {
        let with = |fragment, offset: u8| {
            let mut tcp = tcp(0x10);
            tcp[12] = offset << 4;
            parse(&frame(ipv4::TCP, fragment, &tcp)).map(|layout| layout.transport())
        };
        assert_eq!(with(0, 5), Ok(Transport::Tcp));
        assert_eq!(with(0, 4), Err(ParseError::BadTransportHeader));
        assert_eq!(with(0, 6), Err(ParseError::BadTransportHeader));
        assert_eq!(with(ipv4::MORE_FRAGMENTS, 4), Err(ParseError::BadTransportHeader));
    }

    #[test]
    fn impossible_tcp_flags_are_refused_by_name() {
        for flags in [0x00, 0x01, 0x03, 0x06, 0x29] {
            assert_eq!(parse(&frame(ipv4::TCP, 0, &tcp(flags))), Err(ParseError::BadTcpFlags), "{flags:#x}");
        }
    }

    #[test]
    fn a_payload_shorter_than_its_header_is_truncated() {
        assert_eq!(parse(&frame(ipv4::UDP, 0, &UDP[..7])), Err(ParseError::Truncated));
        assert_eq!(parse(&frame(ipv4::TCP, 0, &tcp(2)[..19])), Err(ParseError::Truncated));
        assert_eq!(parse(&frame(ipv4::ICMP, 0, &[8, 0, 0, 0, 0, 0, 0])), Err(ParseError::Truncated));
        assert_eq!(parse(&frame(47, 0, &[])).map(|layout| layout.transport()), Ok(Transport::Other(47)));
    }

    /// RFC 1858, section 3.1, tiny fragments: the flags are in the second. Section 4, overlapping fragments: the second writes over
    /// the first's flags. RFC 3128 has both together.
    #[test]
    fn fragments_that_cut_or_overlap_a_tcp_header_are_refused() {
        let first = |len: usize| parse(&frame(ipv4::TCP, ipv4::MORE_FRAGMENTS, &tcp(0x10)[..len])).map(|layout| layout.fragment());
        assert_eq!(first(8), Err(ParseError::BadTransportHeader));
        assert_eq!(first(16), Err(ParseError::BadTransportHeader));
        assert_eq!(first(20), Ok(Fragment::First));
        let later = |units| parse(&frame(ipv4::TCP, units, &[0; 8])).map(|layout| layout.fragment());
        assert_eq!(later(1), Err(ParseError::BadTransportHeader));
        assert_eq!(later(2), Err(ParseError::BadTransportHeader), "the urgent pointer and the checksum");
        assert_eq!(later(3), Ok(Fragment::Later));
        let udp = parse(&frame(ipv4::UDP, 1, &[0; 8])).map(|layout| (layout.fragment(), layout.transport()));
        assert_eq!(udp, Ok((Fragment::Later, Transport::None)), "a first of 8 bytes has the whole UDP header");
    }

    #[test]
    fn a_fragment_that_ends_beyond_the_largest_datagram_is_refused() {
        // 8,189 units are 65,512 bytes; with the header, 3 more reach 65,535.
        assert!(parse(&frame(ipv4::ICMP, 8189, &[0; 3])).is_ok());
        assert_eq!(parse(&frame(ipv4::ICMP, 8189, &[0; 4])), Err(ParseError::BadIpHeader));
    }

    #[test]
    fn icmp_is_a_query_an_error_or_neither() {
        let with = |kind| parse(&frame(ipv4::ICMP, 0, &[kind, 0, 0, 0, 0, 0, 0, 0])).map(|layout| layout.transport());
        assert_eq!(with(8), Ok(Transport::IcmpQuery(Query::Request)));
        assert_eq!(with(0), Ok(Transport::IcmpQuery(Query::Reply)));
        assert_eq!(with(3), Ok(Transport::IcmpError));
        assert_eq!(with(9), Ok(Transport::OtherIcmp(9)));
    }
}
