//! Ethernet headers with at most one 802.1Q tag: reading, and rewriting with the tag added, replaced or removed.
//!
//! Knows the first 18 bytes of a frame. Called by `packet` and, as the last step before transmission, by `nat`.
//! Invariant: a rewrite changes addresses and tag only; what follows is moved, never edited.
//! Sources: IEEE 802.3, IEEE 802.1Q. Tests: below.

use zerocopy::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A link-layer address.
pub type Mac = [u8; 6];

/// Length of a header without tag. **Units:** bytes.
pub const HEADER_LEN: usize = 14;
/// Length of a tag. **Units:** bytes.
pub const TAG_LEN: usize = 4;
/// The broadcast address.
pub const BROADCAST: Mac = [0xFF; 6];
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86DD;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag, which is not supported.
pub const SERVICE_VLAN: u16 = 0x88A8;
/// Bits of a tag that are the VLAN identifier.
const VLAN_ID: u16 = 0x0FFF;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EthernetHeader {
    /// The destination.
    pub dst: Mac,
    /// The source.
    pub src: Mac,
    ethertype: U16,
}

impl EthernetHeader {
    /// The header that `frame` begins with.
    #[inline]
    #[must_use]
    pub fn from_prefix(frame: &[u8]) -> Option<&Self> {
        Self::ref_from_prefix(frame).ok().map(|(header, _)| header)
    }

    /// The header that `frame` begins with, to be changed.
    #[inline]
    #[must_use]
    pub fn from_prefix_mut(frame: &mut [u8]) -> Option<&mut Self> {
        Self::mut_from_prefix(frame).ok().map(|(header, _)| header)
    }

    /// A header.
    #[must_use]
    pub const fn new(dst: Mac, src: Mac, ethertype: u16) -> Self {
        Self { dst, src, ethertype: U16::new(ethertype) }
    }

    /// What follows the addresses: a protocol, or [`VLAN`].
    #[inline]
    #[must_use]
    pub const fn ethertype(&self) -> u16 {
        self.ethertype.get()
    }
}

/// An 802.1Q tag as it follows the addresses and [`VLAN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VlanTag {
    control: U16,
    ethertype: U16,
}

impl VlanTag {
    /// The VLAN's identifier. Zero is a priority tag: the frame belongs to no VLAN.
    #[inline]
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.control.get() & VLAN_ID
    }

    /// The priority code point, 0 to 7.
    #[inline]
    #[must_use]
    pub const fn priority(&self) -> u8 {
        (self.control.get() >> 13) as u8
    }

    /// The protocol of what follows the tag.
    #[inline]
    #[must_use]
    pub const fn ethertype(&self) -> u16 {
        self.ethertype.get()
    }
}

/// Whether a link-layer address means more than one station (IEEE 802: the group bit).
#[inline]
#[must_use]
pub const fn is_group(address: Mac) -> bool {
    address[0] & 1 == 1
}

/// The tag of a frame, if it has one. **Errors:** none with a frame that ends within its headers.
#[inline]
fn tag(frame: &[u8]) -> Result<Option<&VlanTag>, WriteError> {
    let (header, rest) = EthernetHeader::ref_from_prefix(frame).map_err(|_| WriteError::Truncated)?;
    if header.ethertype() != VLAN {
        return Ok(None);
    }
    let (tag, _) = VlanTag::ref_from_prefix(rest).map_err(|_| WriteError::Truncated)?;
    Ok(Some(tag))
}

/// What a frame's link-layer header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The VLAN's identifier; none without tag and with a priority tag.
    pub vlan: Option<u16>,
    /// The protocol of what follows, after the tag.
    pub ethertype: u16,
    /// The header's length with its tag. **Units:** bytes.
    pub header_len: usize,
}

/// Reads the link-layer header, or none if the frame ends within it. The protocol is [`VLAN`] or [`SERVICE_VLAN`] where there are
/// tags that are not supported: two of them, or an outer service tag.
#[inline]
#[must_use]
pub fn link(frame: &[u8]) -> Option<Link> {
    let header = EthernetHeader::from_prefix(frame)?;
    match tag(frame).ok()? {
        None => Some(Link { vlan: None, ethertype: header.ethertype(), header_len: HEADER_LEN }),
        Some(tag) => {
            let vlan = Some(tag.id()).filter(|&id| id != 0);
            Some(Link { vlan, ethertype: tag.ethertype(), header_len: HEADER_LEN + TAG_LEN })
        }
    }
}

/// Why a header could not be rewritten; the frame is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The frame ends within its headers.
    Truncated,
    /// The buffer has no room behind the frame for a tag.
    NoRoom,
}

/// Rewrites the header of the frame in the first `len` bytes of `buffer`: addresses, and its tag added, replaced or removed. Returns
/// the frame's new length. A replaced tag keeps its priority and drop eligibility; an added one has priority 0.
///
/// **Errors:** [`WriteError`]; the frame is then as it was. **Cost:** hot; a move of the frame only when the tag comes or goes.
#[inline]
pub fn write_header(buffer: &mut [u8], len: usize, vlan: Option<u16>, dst: Mac, src: Mac) -> Result<usize, WriteError> {
    let frame = buffer.get(..len).ok_or(WriteError::NoRoom)?;
    let old_control = tag(frame)?.map(|tag| tag.control.get());
    let new_len = match (old_control, vlan) {
        (None, None) | (Some(_), Some(_)) => len,
        (Some(_), None) => {
            buffer.copy_within(16..len, 12);
            len - TAG_LEN
        }
        (None, Some(_)) if buffer.len() - len < TAG_LEN => return Err(WriteError::NoRoom),
        (None, Some(_)) => {
            buffer.copy_within(12..len, 16);
            len + TAG_LEN
        }
    };
    if let Some(id) = vlan {
        let control = old_control.unwrap_or(0) & !VLAN_ID | id & VLAN_ID;
        let [ethertype, control] = [VLAN.to_be_bytes(), control.to_be_bytes()];
        buffer[12..16].copy_from_slice(&[ethertype[0], ethertype[1], control[0], control[1]]);
    }
    buffer[..6].copy_from_slice(&dst);
    buffer[6..12].copy_from_slice(&src);
    Ok(new_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 0xA];
    const B: Mac = [2, 0, 0, 0, 0, 0xB];

    /// A frame of 20 bytes in a buffer of 24, tagged with priority 5, drop eligible, VLAN 7.
    fn tagged() -> [u8; 24] {
        let mut buffer = [0xEE; 24];
        buffer[..18].copy_from_slice(&[1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 0x81, 0, 0xB0, 7, 8, 0]);
        buffer[18..20].copy_from_slice(&[0xD1, 0xD2]);
        buffer
    }

    #[test]
    fn a_tag_is_read() {
        assert_eq!(link(&tagged()[..20]), Some(Link { vlan: Some(7), ethertype: IPV4, header_len: 18 }));
        let (_, rest) = EthernetHeader::ref_from_prefix(&tagged()[..]).map(|(h, r)| (*h, r.to_vec())).expect("long enough");
        assert_eq!(VlanTag::ref_from_prefix(&rest[..]).map(|(tag, _)| tag.priority()), Ok(5));
    }

    #[test]
    fn a_priority_tag_names_no_vlan_but_has_its_length() {
        let mut frame = tagged();
        frame[15] = 0;
        assert_eq!(link(&frame), Some(Link { vlan: None, ethertype: IPV4, header_len: 18 }));
    }

    #[test]
    fn a_replaced_tag_keeps_priority_and_drop_eligibility() {
        let mut buffer = tagged();
        assert_eq!(write_header(&mut buffer, 20, Some(0x123), A, B), Ok(20));
        assert_eq!(buffer[..20], [2, 0, 0, 0, 0, 0xA, 2, 0, 0, 0, 0, 0xB, 0x81, 0, 0xB1, 0x23, 8, 0, 0xD1, 0xD2]);
        assert_eq!(buffer[20..], [0xEE; 4], "nothing is written behind the frame");
    }

    #[test]
    fn a_tag_is_removed_and_added_again() {
        let mut buffer = tagged();
        assert_eq!(write_header(&mut buffer, 20, None, A, B), Ok(16));
        assert_eq!(buffer[..16], [2, 0, 0, 0, 0, 0xA, 2, 0, 0, 0, 0, 0xB, 8, 0, 0xD1, 0xD2]);
        assert_eq!(write_header(&mut buffer, 16, Some(9), B, A), Ok(20));
        assert_eq!(buffer[..20], [2, 0, 0, 0, 0, 0xB, 2, 0, 0, 0, 0, 0xA, 0x81, 0, 0, 9, 8, 0, 0xD1, 0xD2]);
    }

    #[test]
    fn a_tag_without_room_is_an_error_and_the_frame_stays() {
        let mut buffer = tagged();
        assert_eq!(write_header(&mut buffer, 20, None, A, B), Ok(16));
        let before = buffer;
        assert_eq!(write_header(&mut buffer[..19], 16, Some(1), B, B), Err(WriteError::NoRoom));
        assert_eq!(write_header(&mut buffer, 25, None, B, B), Err(WriteError::NoRoom), "longer than its buffer");
        assert_eq!(write_header(&mut buffer, 13, None, B, B), Err(WriteError::Truncated));
        assert_eq!(buffer, before);
        assert_eq!(write_header(&mut tagged(), 17, None, B, B), Err(WriteError::Truncated), "ends within its tag");
    }

    #[test]
    fn the_group_bit_is_the_first_octets_lowest() {
        assert!(is_group(BROADCAST) && is_group([0x01, 0, 0x5E, 0, 0, 1]));
        assert!(!is_group(A));
    }
}
