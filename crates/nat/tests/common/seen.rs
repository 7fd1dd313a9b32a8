//! A frame read back: what a test asks of a packet that came out.
//!
//! Knows the formats from the RFCs, shares no code with `wire`. **Panics** on what is no IPv4 frame: the test has failed then.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Mac};

/// A packet's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) to: Mac,
    pub(crate) from: Mac,
    pub(crate) vlan: Option<u16>,
    pub(crate) tos: u8,
    pub(crate) total_len: u16,
    pub(crate) id: u16,
    /// Flags and offset.
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) options: Vec<u8>,
    /// With the port; of an ICMP query the identifier.
    pub(crate) source: Endpoint,
    /// With the port; of an ICMP query the identifier.
    pub(crate) destination: Endpoint,
    /// Type, code and the four bytes that follow the checksum.
    pub(crate) icmp: Option<(u8, u8, u32)>,
    /// The transport's checksum field.
    pub(crate) checksum: Option<u16>,
    /// All behind the IPv4 header.
    pub(crate) segment: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

fn mac(bytes: &[u8]) -> Mac {
    bytes.try_into().expect("six bytes")
}

impl Seen {
    /// The fields of a frame.
    pub(crate) fn of(frame: &[u8]) -> Self {
        let tagged = word(frame, 12) == 0x8100;
        let l3 = if tagged { 18 } else { 14 };
        assert_eq!(word(frame, l3 - 2), 0x0800, "an IPv4 frame");
        let mut seen = Self::of_datagram(&frame[l3..]);
        (seen.to, seen.from) = (mac(&frame[..6]), mac(&frame[6..12]));
        seen.vlan = tagged.then(|| word(frame, 14) & 0xFFF);
        seen
    }

    /// The fields of a datagram, of which the end may be missing.
    pub(crate) fn of_datagram(bytes: &[u8]) -> Self {
        let header_len = usize::from(bytes[0] & 15) * 4;
        let total_len = word(bytes, 2);
        let segment = &bytes[header_len..bytes.len().min(usize::from(total_len))];
        let (protocol, fragment) = (bytes[9], word(bytes, 6));
        let offset = fragment & 0x1FFF;
        let has_transport = offset == 0;
        let icmp = (protocol == 1 && has_transport && segment.len() >= 8)
            .then(|| (segment[0], segment[1], u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]])));
        let (source, destination) = match (protocol, icmp) {
            (6 | 17, _) if has_transport => (word(segment, 0), word(segment, 2)),
            (_, Some((0 | 8 | 13 | 14, _, rest))) => ((rest >> 16) as u16, (rest >> 16) as u16),
            _ => (0, 0),
        };
        let field = match protocol {
            1 => 2,
            6 => 16,
            _ => 6,
        };
        Self {
            to: [0; 6],
            from: [0; 6],
            vlan: None,
            tos: bytes[1],
            total_len,
            id: word(bytes, 4),
            fragment,
            ttl: bytes[8],
            protocol,
            options: bytes[20..header_len].to_vec(),
            source: Endpoint { address: address(bytes, 12), port: source },
            destination: Endpoint { address: address(bytes, 16), port: destination },
            icmp,
            checksum: (has_transport && segment.len() >= field + 2).then(|| word(segment, field)),
            segment: segment.to_vec(),
        }
    }

    /// The fragment offset. **Units:** eight bytes.
    pub(crate) const fn offset(&self) -> u16 {
        self.fragment & 0x1FFF
    }

    /// The datagram that an ICMP error quotes.
    pub(crate) fn quoted(&self) -> Self {
        Self::of_datagram(&self.segment[8..])
    }
}
