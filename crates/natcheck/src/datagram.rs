//! Reads what came off a wire: IPv4, UDP, TCP and ICMP fields by offset, and the datagram that an ICMP error quotes.
//!
//! Knows the formats loosely, for whatever a NAT may send: a field beyond the end reads as zero. Shares no code with the NAT.

use std::fmt;
use std::net::Ipv4Addr;

use portcullis_lab::builder::{checksum, describe};
use portcullis_nat::policy::Endpoint;

/// ICMP's protocol number.
pub(crate) const ICMP: u8 = 1;
/// TCP's protocol number.
pub(crate) const TCP: u8 = 6;
/// UDP's protocol number.
pub(crate) const UDP: u8 = 17;

/// A datagram, whole or as far as an error quotes it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Datagram(pub(crate) Vec<u8>);

impl Datagram {
    /// The datagram in an Ethernet frame without tags, cut to its total length. None when the frame is not IPv4.
    pub(crate) fn of_frame(frame: &[u8]) -> Option<Self> {
        let bytes = frame.get(14..).filter(|bytes| bytes.len() >= 20 && frame[12..14] == [0x08, 0x00])?;
        let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]])).clamp(20, bytes.len());
        Some(Self(bytes[..total].to_vec()))
    }

    fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::new(self.byte(at), self.byte(at + 1), self.byte(at + 2), self.byte(at + 3))
    }

    /// The header's length, options included. **Units:** bytes.
    pub(crate) fn header_len(&self) -> usize {
        usize::from(self.byte(0) & 15) * 4
    }

    /// DSCP and ECN.
    pub(crate) fn tos(&self) -> u8 {
        self.byte(1)
    }

    /// The identification.
    pub(crate) fn id(&self) -> u16 {
        self.word(4)
    }

    /// More Fragments.
    pub(crate) fn more_fragments(&self) -> bool {
        self.word(6) & 0x2000 != 0
    }

    /// The fragment's offset. **Units:** bytes.
    pub(crate) fn offset(&self) -> usize {
        usize::from(self.word(6) & 0x1FFF) * 8
    }

    /// Whether it is a part of a datagram only.
    pub(crate) fn is_fragment(&self) -> bool {
        self.more_fragments() || self.offset() > 0
    }

    /// The time to live.
    pub(crate) fn ttl(&self) -> u8 {
        self.byte(8)
    }

    /// The protocol's number.
    pub(crate) fn protocol(&self) -> u8 {
        self.byte(9)
    }

    /// The source address.
    pub(crate) fn source(&self) -> Ipv4Addr {
        self.address(12)
    }

    /// The destination address.
    pub(crate) fn destination(&self) -> Ipv4Addr {
        self.address(16)
    }

    /// The options.
    pub(crate) fn options(&self) -> &[u8] {
        self.0.get(20..self.header_len()).unwrap_or_default()
    }

    /// What follows the header.
    pub(crate) fn segment(&self) -> &[u8] {
        self.0.get(self.header_len()..).unwrap_or_default()
    }

    /// Source address and port; of an ICMP query, its identifier.
    pub(crate) fn from(&self) -> Endpoint {
        let port = if self.protocol() == ICMP { self.query_id() } else { self.word(self.header_len()) };
        Endpoint { address: self.source(), port }
    }

    /// Destination address and port; of an ICMP query, its identifier.
    pub(crate) fn to(&self) -> Endpoint {
        let port = if self.protocol() == ICMP { self.query_id() } else { self.word(self.header_len() + 2) };
        Endpoint { address: self.destination(), port }
    }

    /// The identifier of an ICMP query or reply.
    pub(crate) fn query_id(&self) -> u16 {
        self.word(self.header_len() + 4)
    }

    /// ICMP's type and code; none of other protocols.
    pub(crate) fn icmp(&self) -> Option<(u8, u8)> {
        let at = self.header_len();
        (self.protocol() == ICMP && self.offset() == 0).then(|| (self.byte(at), self.byte(at + 1)))
    }

    /// Whether it is an ICMP error.
    pub(crate) fn is_error(&self) -> bool {
        matches!(self.icmp(), Some((3 | 4 | 5 | 11 | 12, _)))
    }

    /// The next hop's MTU in Fragmentation Needed.
    pub(crate) fn next_hop_mtu(&self) -> u16 {
        self.word(self.header_len() + 6)
    }

    /// What an ICMP error quotes, to the end of the message.
    pub(crate) fn quote(&self) -> Option<Self> {
        let bytes = self.0.get(self.header_len() + 8..).filter(|bytes| bytes.len() >= 20)?;
        self.is_error().then(|| Self(bytes.to_vec()))
    }

    /// TCP's flags.
    pub(crate) fn flags(&self) -> u8 {
        self.byte(self.header_len() + 13)
    }

    /// TCP's sequence number.
    pub(crate) fn sequence(&self) -> u32 {
        let at = self.header_len() + 4;
        u32::from(self.word(at)) << 16 | u32::from(self.word(at + 2))
    }

    /// UDP's checksum as it stands.
    pub(crate) fn udp_checksum(&self) -> u16 {
        self.word(self.header_len() + 6)
    }

    /// Whether `mark` stands in it somewhere behind the header.
    pub(crate) fn contains(&self, mark: &[u8]) -> bool {
        self.segment().windows(mark.len()).any(|window| window == mark)
    }

    /// Whether the checksum of the IPv4 header is right.
    pub(crate) fn header_is_right(&self) -> bool {
        self.0.get(..self.header_len()).is_some_and(|header| checksum::verifies(&[header]))
    }
}

impl fmt::Display for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = [[0; 12].as_slice(), &[0x08, 0x00], &self.0].concat();
        let line = describe(&frame);
        f.write_str(line.split_once(" IPv4 ").map_or(line.as_str(), |(_, rest)| rest))
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use portcullis_lab::builder::{PacketBuilder, Query, SYN, endpoint};

    use super::*;

    #[test]
    fn what_the_builder_wrote_is_read_back() {
        let (a, b) = (endpoint("10.0.0.2:5000"), endpoint("198.51.100.2:80"));
        let udp = PacketBuilder::udp(a, b).tos(0x28).id(7).ttl(9).options(&[7, 7, 4, 0, 0, 0, 0]).payload(b"marked").build();
        let udp = Datagram::of_frame(&udp).expect("IPv4");
        assert_eq!((udp.from(), udp.to(), udp.protocol()), (a, b, UDP));
        assert_eq!((udp.tos(), udp.id(), udp.ttl(), udp.options().len(), udp.header_len()), (0x28, 7, 9, 8, 28));
        assert!(udp.contains(b"arke") && !udp.contains(b"none") && udp.header_is_right() && !udp.is_fragment());
        let tcp = Datagram(PacketBuilder::tcp(a, b, SYN).numbers(0xDEAD_BEEF, 1).datagram());
        assert_eq!((tcp.from(), tcp.sequence(), tcp.flags()), (a, 0xDEAD_BEEF, SYN));
        let echo = Datagram(PacketBuilder::query(a.address, b.address, Query::Echo, 99).datagram());
        assert_eq!((echo.icmp(), echo.from().port, echo.quote()), (Some((8, 0)), 99, None));
    }

    #[test]
    fn an_error_shows_what_it_quotes() {
        let quoted = PacketBuilder::udp(endpoint("10.0.0.2:5000"), endpoint("198.51.100.2:80")).payload_len(64).datagram();
        let error =
            PacketBuilder::icmp_error([192, 0, 2, 1].into(), [10, 0, 0, 2].into(), 3, 4, &quoted).quote(28).next_hop_mtu(1400);
        let error = Datagram(error.datagram());
        assert_eq!((error.icmp(), error.next_hop_mtu()), (Some((3, 4)), 1400));
        let inner = error.quote().expect("a quote");
        assert_eq!((inner.from(), inner.to()), (endpoint("10.0.0.2:5000"), endpoint("198.51.100.2:80")));
    }

    #[test]
    fn no_bytes_are_too_few_to_be_read() {
        for length in 0..64 {
            let datagram = Datagram(vec![0x4F; length]);
            let _ = (datagram.from(), datagram.to(), datagram.icmp(), datagram.quote(), datagram.flags(), datagram.to_string());
            assert!(!datagram.contains(b"mark"));
        }
    }
}
