//! The datagram that an ICMP error quotes: where its headers are, as far as they are quoted.
//!
//! Knows that only 8 transport bytes are sure to be there, and that what follows may be padding and extensions (RFC 4884).
//! Called by `nat` for ICMP errors. Invariant: an [`Embedded`] was checked against the quoted bytes.
//! Sources: RFC 792, RFC 5508 (REQ-3, REQ-4), RFC 4884. Tests: below, and in `tests/`.

use core::net::Ipv4Addr;

use crate::checksum::Delta;
use crate::icmpv4::{self, IcmpHeader};
use crate::ipv4::{self, Ipv4Header};
use crate::packet::{self, Fragment, ParseError, Transport};
use crate::ports::Ports;
use crate::{pseudo, tcp, udp};

/// Bytes behind the IPv4 header that an error quotes at least: "the first 64 bits of the original datagram's data" (RFC 792).
pub const QUOTED_TRANSPORT_LEN: usize = 8;

/// Where the headers of a quoted datagram are. Made by [`parse_embedded`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    end: u16,
    id: u16,
    l4: u8,
    protocol: u8,
    fragment: Fragment,
    transport: Transport,
}

impl Embedded {
    /// The source: who sent the datagram that went wrong.
    #[inline]
    #[must_use]
    pub const fn src(&self) -> Ipv4Addr {
        self.src
    }

    /// The destination.
    #[inline]
    #[must_use]
    pub const fn dst(&self) -> Ipv4Addr {
        self.dst
    }

    /// The identification.
    #[inline]
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// Where the payload begins. **Units:** bytes from the quoted header on.
    #[inline]
    #[must_use]
    pub const fn l4(&self) -> usize {
        self.l4 as usize
    }

    /// Where what is quoted of the datagram ends. **Units:** bytes from the quoted header on.
    #[inline]
    #[must_use]
    pub const fn end(&self) -> usize {
        self.end as usize
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

    /// Source and destination port in `bytes`; none if it is neither TCP nor UDP, or a later fragment.
    #[inline]
    #[must_use]
    pub fn ports<'b>(&self, bytes: &'b [u8]) -> Option<&'b Ports> {
        match self.transport {
            Transport::Tcp | Transport::Udp => Ports::from_prefix(bytes.get(self.l4()..self.end())?),
            _ => None,
        }
    }

    /// The ICMP header in `bytes`; none if it is not ICMP, or a later fragment.
    #[inline]
    #[must_use]
    pub fn icmp<'b>(&self, bytes: &'b [u8]) -> Option<&'b IcmpHeader> {
        match self.transport {
            Transport::IcmpQuery(_) | Transport::IcmpError | Transport::OtherIcmp(_) => {
                IcmpHeader::from_prefix(bytes.get(self.l4()..self.end())?)
            }
            _ => None,
        }
    }

    /// Where the transport checksum is, if both its bytes are quoted. **Units:** bytes from the quoted header on.
    #[inline]
    #[must_use]
    pub const fn checksum_offset(&self) -> Option<usize> {
        let within = match self.transport {
            Transport::Tcp => tcp::CHECKSUM_OFFSET,
            Transport::Udp => udp::CHECKSUM_OFFSET,
            Transport::IcmpQuery(_) | Transport::IcmpError | Transport::OtherIcmp(_) => icmpv4::CHECKSUM_OFFSET,
            Transport::Other(protocol) if pseudo::covers_addresses(protocol) => pseudo::CHECKSUM_OFFSET,
            Transport::Other(_) | Transport::None => return None,
        };
        let offset = self.l4 as usize + within;
        if offset + 2 <= self.end as usize { Some(offset) } else { None }
    }

    /// Gives the datagram that the error `message` quotes another source, and mends all that sums over it: its own header checksum,
    /// its transport checksum where that is quoted, and the checksum of `message`. For a query, `port` is the identifier.
    ///
    /// `message` reaches from the ICMP header to the end of the packet. Nothing happens to one that was not the parsed one's.
    ///
    /// "Revert the IP and transport headers of the embedded IP packet to their original form, using the matching mapping".
    /// **Source:** RFC 5508, REQ-4.
    pub fn set_src(&self, message: &mut [u8], src: Ipv4Addr, port: Option<u16>) {
        self.set_end(message, End::Source, src, port);
    }

    /// Gives the datagram that the error `message` quotes another destination, as [`Self::set_src`] does the source.
    pub fn set_dst(&self, message: &mut [u8], dst: Ipv4Addr, port: Option<u16>) {
        self.set_end(message, End::Destination, dst, port);
    }

    /// Gives the datagram that the error `message` quotes another identification, as [`Self::set_src`] does the source.
    pub fn set_id(&self, message: &mut [u8], id: u16) {
        let Some(bytes) = message.get_mut(icmpv4::HEADER_LEN..icmpv4::HEADER_LEN + self.end()) else { return };
        let Some(header) = Ipv4Header::from_prefix_mut(bytes) else { return };
        let (before, checksum) = (header.id(), header.checksum());
        header.set_id(id);
        let change = Delta::of_u16(before, id).and(Delta::of_u16(checksum, header.checksum()));
        if let Some(outer) = IcmpHeader::from_prefix_mut(message) {
            outer.update_checksum(change);
        }
    }

    fn set_end(&self, message: &mut [u8], end: End, address: Ipv4Addr, port: Option<u16>) {
        let Some(bytes) = message.get_mut(icmpv4::HEADER_LEN..icmpv4::HEADER_LEN + self.end()) else { return };
        let Some(header) = Ipv4Header::from_prefix_mut(bytes) else { return };
        let header_checksum = header.checksum();
        let address = match end {
            End::Source => header.set_src(address),
            End::Destination => header.set_dst(address),
        };
        let header_checksum = Delta::of_u16(header_checksum, header.checksum());
        let port = port.map_or(Delta::NONE, |port| self.set_port(bytes, end, port));
        let transport_checksum = self.update_transport_checksum(bytes, address, port);
        if let Some(outer) = IcmpHeader::from_prefix_mut(message) {
            outer.update_checksum(address.and(header_checksum).and(port).and(transport_checksum));
        }
    }

    /// Sets a port or an identifier. Returns what that does to a sum over it.
    fn set_port(&self, bytes: &mut [u8], end: End, port: u16) -> Delta {
        let offset = match (self.transport, end) {
            (Transport::Tcp | Transport::Udp, End::Source) => self.l4(),
            (Transport::Tcp | Transport::Udp, End::Destination) => self.l4() + 2,
            (Transport::IcmpQuery(_), _) => self.l4() + icmpv4::IDENTIFIER_OFFSET,
            _ => return Delta::NONE,
        };
        replace(bytes, offset, |_| port)
    }

    /// Mends the transport checksum where it is quoted. Returns what that does to a sum over it.
    fn update_transport_checksum(&self, bytes: &mut [u8], address: Delta, port: Delta) -> Delta {
        let Some(offset) = self.checksum_offset() else { return Delta::NONE };
        match self.transport {
            Transport::Udp => replace(bytes, offset, |old| address.and(port).apply_udp(old)),
            Transport::Tcp => replace(bytes, offset, |old| address.and(port).apply(old)),
            Transport::IcmpQuery(_) => replace(bytes, offset, |old| port.apply(old)),
            Transport::Other(protocol) => replace(bytes, offset, |old| pseudo::after(protocol, old, address)),
            _ => Delta::NONE,
        }
    }
}

/// Which end of a datagram.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Replaces the word at `offset`. Returns what that does to a sum over it.
fn replace(bytes: &mut [u8], offset: usize, new: impl Fn(u16) -> u16) -> Delta {
    let Some(word) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<2>()) else { return Delta::NONE };
    let old = u16::from_be_bytes(*word);
    let new = new(old);
    *word = new.to_be_bytes();
    Delta::of_u16(old, new)
}

/// What the error `message` quotes: the bytes behind its header, without the extensions that it may end with (RFC 4884, section 3).
#[inline]
#[must_use]
pub fn quoted(message: &[u8]) -> &[u8] {
    let Some(header) = IcmpHeader::from_prefix(message) else { return &[] };
    let bytes = &message[icmpv4::HEADER_LEN..];
    match header.quoted_len() {
        0 => bytes,
        len => bytes.get(..len).unwrap_or(bytes),
    }
}

/// Reads the datagram that `bytes` begin with: what [`quoted`] gives.
///
/// "If the IP checksum of the embedded packet fails to validate, the NAT SHOULD silently drop the Error packet"; "If the embedded
/// packet includes IP options, the NAT device MUST traverse past the IP options"; "The NAT device SHOULD NOT validate the transport
/// checksum of the embedded packet". **Source:** RFC 5508, REQ-3.
///
/// **Errors:** a header that is not IPv4's or not whole, or fewer than 8 bytes behind it where these matter.
#[inline]
pub fn parse_embedded(bytes: &[u8]) -> Result<Embedded, ParseError> {
    let (header, l4) = packet::checked_header(bytes)?;
    let fragment = packet::fragment_of(header)?;
    let end = bytes.len().min(usize::from(header.total_len()));
    let payload = bytes.get(l4..end).ok_or(ParseError::Truncated)?;
    Ok(Embedded {
        src: header.src(),
        dst: header.dst(),
        end: end as u16,
        id: header.id(),
        l4: l4 as u8,
        protocol: header.protocol(),
        fragment,
        transport: transport_of(header, payload, fragment)?,
    })
}

#[inline]
fn transport_of(header: &Ipv4Header, payload: &[u8], fragment: Fragment) -> Result<Transport, ParseError> {
    if fragment == Fragment::Later {
        return Ok(Transport::None);
    }
    let first_byte = payload.first().copied().filter(|_| payload.len() >= QUOTED_TRANSPORT_LEN);
    match header.protocol() {
        ipv4::UDP => first_byte.map(|_| Transport::Udp).ok_or(ParseError::Truncated),
        ipv4::TCP => first_byte.map(|_| Transport::Tcp).ok_or(ParseError::Truncated),
        ipv4::ICMP => first_byte.map(packet::icmp_kind).ok_or(ParseError::Truncated),
        other => Ok(Transport::Other(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram with 40 bytes of options, of which 8 transport bytes are quoted, and its length as it was.
    fn quoted_in_part(protocol: u8, transport: [u8; 8]) -> [u8; 68] {
        let mut bytes = [1; 68];
        bytes[..20].copy_from_slice(&[0x4F, 0, 5, 0, 0, 1, 0, 0, 1, protocol, 0, 0, 10, 0, 0, 1, 192, 0, 2, 1]);
        bytes[60..].copy_from_slice(&transport);
        ipv4::fill_checksum(&mut bytes);
        bytes
    }

    #[test]
    fn forty_bytes_of_options_are_traversed() {
        let bytes = quoted_in_part(ipv4::UDP, [0x13, 0x88, 0, 53, 4, 0xC4, 0xAB, 0xCD]);
        let embedded = parse_embedded(&bytes).expect("enough quoted");
        assert_eq!((embedded.l4(), embedded.end(), embedded.transport()), (60, 68, Transport::Udp));
        assert_eq!(embedded.ports(&bytes).map(|ports| (ports.src(), ports.dst())), Some((5000, 53)));
        assert_eq!(embedded.checksum_offset(), Some(66));
        assert_eq!((embedded.src(), embedded.dst()), (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 2, 1)));
    }

    #[test]
    fn a_tcp_checksum_beyond_the_quote_is_not_there() {
        let bytes = quoted_in_part(ipv4::TCP, [0, 1, 0, 2, 0, 0, 0, 9]);
        let embedded = parse_embedded(&bytes).expect("enough quoted");
        assert_eq!((embedded.transport(), embedded.checksum_offset()), (Transport::Tcp, None));
    }

    #[test]
    fn a_querys_identifier_is_quoted() {
        let bytes = quoted_in_part(ipv4::ICMP, [8, 0, 1, 2, 0x12, 0x34, 0, 1]);
        let embedded = parse_embedded(&bytes).expect("enough quoted");
        assert_eq!(embedded.icmp(&bytes).map(IcmpHeader::identifier), Some(0x1234));
        assert_eq!(embedded.checksum_offset(), Some(62));
    }

    #[test]
    fn a_wrong_header_or_too_short_a_quote_is_refused() {
        let bytes = quoted_in_part(ipv4::UDP, [0; 8]);
        assert_eq!(parse_embedded(&bytes[..67]), Err(ParseError::Truncated));
        assert_eq!(parse_embedded(&bytes[..59]), Err(ParseError::Truncated));
        let mut wrong = bytes;
        wrong[8] ^= 1;
        assert_eq!(parse_embedded(&wrong), Err(ParseError::BadIpHeader), "RFC 5508, REQ-3 a: the embedded checksum");
    }

    #[test]
    fn a_later_fragment_has_no_ports_but_addresses() {
        let mut bytes = quoted_in_part(ipv4::UDP, [7; 8]);
        bytes[7] = 9;
        ipv4::fill_checksum(&mut bytes);
        let embedded = parse_embedded(&bytes).expect("a header is enough");
        assert_eq!((embedded.fragment(), embedded.transport()), (Fragment::Later, Transport::None));
        assert_eq!((embedded.ports(&bytes), embedded.checksum_offset()), (None, None));
    }

    #[test]
    fn what_is_behind_the_datagram_is_no_part_of_it() {
        let mut bytes = quoted_in_part(ipv4::TCP, [0; 8]).to_vec();
        bytes[2..4].copy_from_slice(&68_u16.to_be_bytes());
        ipv4::fill_checksum(&mut bytes);
        bytes.extend([0; 60]);
        let embedded = parse_embedded(&bytes).expect("enough quoted");
        assert_eq!((embedded.end(), embedded.checksum_offset()), (68, None), "padding for extensions (RFC 4884)");
    }

    #[test]
    fn extensions_are_no_part_of_the_quote() {
        let mut message = vec![11, 0, 0, 0, 0, 32, 0, 0];
        message.extend([0xDD; 128]);
        message.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 1, 2, 3, 4]);
        assert_eq!(quoted(&message), &[0xDD; 128]);
        message[5] = 0;
        assert_eq!(quoted(&message).len(), 140, "no length, no extensions");
        message[5] = 200;
        assert_eq!(quoted(&message).len(), 140, "a length that lies");
        assert_eq!(quoted(&message[..7]), &[] as &[u8]);
    }

    #[test]
    fn half_a_checksum_in_a_quote_is_left_alone() {
        let transport = [0, 1, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0xAB];
        let mut bytes = [&quoted_in_part(ipv4::TCP, [0; 8])[..60], &transport].concat();
        let embedded = parse_embedded(&bytes).expect("enough quoted");
        assert_eq!(embedded.checksum_offset(), None);
        let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &bytes].concat();
        icmpv4::fill_checksum(&mut message);
        embedded.set_src(&mut message, Ipv4Addr::new(203, 0, 113, 9), Some(7));
        assert!(icmpv4::checksum_ok(&message) && ipv4::header_checksum_ok(&message[8..]));
        bytes[60..62].copy_from_slice(&[0, 7]);
        assert_eq!(message[8 + 60..], bytes[60..]);
    }

    #[test]
    fn a_quoted_checksum_over_the_addresses_is_mended_whatever_the_protocol() {
        let (inner, outer) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(203, 0, 113, 9));
        for (protocol, after) in [
            (ipv4::UDP_LITE, Delta::of_address(inner, outer).apply_udp(0xABCD)),
            (ipv4::DCCP, Delta::of_address(inner, outer).apply(0xABCD)),
            (47, 0xABCD),
            (132, 0xABCD),
        ] {
            let bytes = quoted_in_part(protocol, [0x13, 0x88, 0, 53, 4, 0xC4, 0xAB, 0xCD]);
            let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &bytes].concat();
            icmpv4::fill_checksum(&mut message);
            let embedded = parse_embedded(&bytes).expect("enough quoted");
            embedded.set_src(&mut message, outer, Some(7));
            assert!(icmpv4::checksum_ok(&message) && ipv4::header_checksum_ok(&message[8..]), "protocol {protocol}");
            assert_eq!(message[8 + 60..8 + 66], bytes[60..66], "no port is written");
            assert_eq!(message[8 + 66..], u16::to_be_bytes(after), "protocol {protocol}");
        }
    }

    #[test]
    fn no_udp_checksum_in_a_quote_stays_none() {
        let bytes = quoted_in_part(ipv4::UDP, [0x13, 0x88, 0, 53, 4, 0xC4, 0, 0]);
        let mut message = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &bytes].concat();
        icmpv4::fill_checksum(&mut message);
        parse_embedded(&bytes).expect("enough quoted").set_src(&mut message, Ipv4Addr::new(203, 0, 113, 9), Some(1));
        assert_eq!(message[8 + 66..], [0, 0]);
        assert!(icmpv4::checksum_ok(&message) && ipv4::header_checksum_ok(&message[8..]));
    }
}
