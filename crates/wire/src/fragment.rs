//! Splitting a datagram that is larger than the next link's MTU into fragments, in order.
//!
//! Knows one datagram; writes each fragment where the caller says. Called by the worker for the verdict "fragment".
//! Invariant: the fragments put together are the datagram; each fits the MTU and has a right header checksum.
//! Source: RFC 791, sections 2.3, 3.1 and 3.2. Tests: `tests/fragments.rs`.

use core::iter::FusedIterator;
use core::ops::Range;

use crate::ipv4::{self, HEADER_LEN, Ipv4Header, MAX_HEADER_LEN};

/// Bit of an option's type: it is copied into all fragments.
const COPIED: u8 = 0x80;
/// Option type: end of the list.
const END_OF_OPTIONS: u8 = 0;
/// Option type: no operation, of one byte.
const NO_OPERATION: u8 = 1;

/// Why a datagram cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitError {
    /// It is no whole IPv4 datagram.
    BadIpHeader,
    /// Don't Fragment is set, and it does not fit.
    DontFragment,
    /// Not even 8 bytes fit behind the header.
    MtuTooSmall,
}

/// Splits the datagram that `bytes` begin with into fragments of at most `mtu` bytes; bytes behind its end do not count. One that
/// fits is its own only fragment.
///
/// **Errors:** [`SplitError`]. No error comes later: fragments are not handed out before all are known to be possible.
pub fn fragments(bytes: &[u8], mtu: usize) -> Result<Fragments<'_>, SplitError> {
    let header = Ipv4Header::from_prefix(bytes).ok_or(SplitError::BadIpHeader)?;
    let (header_len, total_len) = (header.header_len(), usize::from(header.total_len()));
    let datagram = bytes.get(..total_len).ok_or(SplitError::BadIpHeader)?;
    if header.version() != 4 || header_len < HEADER_LEN || total_len < header_len {
        return Err(SplitError::BadIpHeader);
    }
    if header.fragment_offset() + total_len > usize::from(u16::MAX) {
        return Err(SplitError::BadIpHeader);
    }
    if total_len > mtu {
        if header.dont_fragment() {
            return Err(SplitError::DontFragment);
        }
        if mtu < header_len + 8 {
            return Err(SplitError::MtuTooSmall);
        }
    }
    Ok(Fragments { datagram, mtu, header_len, later: Header::copied(&datagram[..header_len]), next: Some(header_len) })
}

/// The fragments of a datagram, in order. **Shape:** at most 8,190 of them.
#[derive(Clone, Debug)]
pub struct Fragments<'d> {
    datagram: &'d [u8],
    mtu: usize,
    header_len: usize,
    later: Header,
    /// Where in `datagram` the next fragment's payload begins; none after the last.
    next: Option<usize>,
}

impl<'d> Iterator for Fragments<'d> {
    type Item = Piece<'d>;

    fn next(&mut self) -> Option<Piece<'d>> {
        let start = self.next?;
        let first = start == self.header_len;
        let header = if first { Header::whole(&self.datagram[..self.header_len]) } else { self.later };
        let rest = self.datagram.len() - start;
        let room = self.mtu.saturating_sub(header.len);
        let end = if rest <= room { self.datagram.len() } else { start + (room & !7) };
        self.next = Some(end).filter(|&end| end < self.datagram.len());
        Some(Piece { datagram: self.datagram, header, payload_start: self.header_len, start, end })
    }
}

impl FusedIterator for Fragments<'_> {}

/// One fragment, not yet written.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'d> {
    datagram: &'d [u8],
    header: Header,
    payload_start: usize,
    start: usize,
    end: usize,
}

impl Piece<'_> {
    /// The fragment's length with its header. **Units:** bytes.
    #[must_use]
    pub const fn total_len(&self) -> usize {
        self.header.len + self.end - self.start
    }

    /// Which bytes of the split datagram, counted from its IPv4 header on, the fragment carries.
    #[must_use]
    pub const fn payload(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Writes the fragment to the beginning of `out`. Returns its length, or none if `out` is too short; `out` is then as it was.
    pub fn write_to(&self, out: &mut [u8]) -> Option<usize> {
        let (header, payload) = out.get_mut(..self.total_len())?.split_at_mut(self.header.len);
        header.copy_from_slice(&self.header.bytes[..self.header.len]);
        payload.copy_from_slice(&self.datagram[self.start..self.end]);
        let fields = Ipv4Header::from_prefix_mut(header)?;
        let more = fields.more_fragments() || self.end < self.datagram.len();
        let offset = fields.fragment_offset() + self.start - self.payload_start;
        fields.set_fragment(self.header.len, self.total_len() as u16, offset, more);
        ipv4::fill_checksum(header);
        Some(self.total_len())
    }
}

/// A header with its options. **Invariant:** `len` is a multiple of 4, from 20 to 60.
#[derive(Clone, Copy, Debug)]
struct Header {
    bytes: [u8; MAX_HEADER_LEN],
    len: usize,
}

impl Header {
    /// The header as it is, of the first fragment. `header` is 20 to 60 bytes long.
    fn whole(header: &[u8]) -> Self {
        let mut bytes = [0; MAX_HEADER_LEN];
        bytes[..header.len()].copy_from_slice(header);
        Self { bytes, len: header.len() }
    }

    /// The header of later fragments: of its options only those that are copied, and then filled up with [`END_OF_OPTIONS`].
    ///
    /// "The copied flag indicates that this option is copied into all fragments on fragmentation." An option whose length is a lie
    /// ends the list. **Source:** RFC 791, section 3.1.
    fn copied(header: &[u8]) -> Self {
        let mut copy = Self::whole(&header[..HEADER_LEN]);
        let mut options = &header[HEADER_LEN..];
        while let [kind, after @ ..] = options {
            let len = match *kind {
                END_OF_OPTIONS => break,
                NO_OPERATION => 1,
                _ => after.first().map_or(0, |&len| usize::from(len)),
            };
            let Some((option, rest)) = options.split_at_checked(len).filter(|_| len > 1 || *kind == NO_OPERATION) else { break };
            if kind & COPIED != 0 {
                copy.bytes[copy.len..copy.len + len].copy_from_slice(option);
                copy.len += len;
            }
            options = rest;
        }
        copy.len = copy.len.next_multiple_of(4);
        copy
    }
}
