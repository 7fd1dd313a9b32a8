//! The first bytes of a plain packet: where its fields are, how they are read at once, and how one endpoint is replaced.
//!
//! Knows bytes and nothing of sessions. Called by the fast path alone, for frames that it has found to be plain or is about to. Invariant: a
//! right checksum stays right, a wrong one stays wrong, UDP's zero stays zero. Source: RFC 1624, equation 3. Tests: every value of a checksum,
//! in `tests/fast_path.rs`, and the reference NAT.

use core::hint::select_unpredictable;

use portcullis_wire::checksum::udp_spelling;
use portcullis_wire::ipv4::TCP;

/// As much of a frame as the fast path reads and writes: Ethernet, IPv4 and TCP without options.
pub(crate) const HEAD: usize = 54;
pub(crate) type Head = [u8; HEAD];

/// Where the headers' fields are. **Units:** bytes from the frame's start.
pub(crate) mod at {
    /// Version, header length, type of service, and in the lower half of the word the datagram's length.
    pub(crate) const IPV4: usize = 14;
    pub(crate) const FRAGMENT: usize = 20;
    pub(crate) const TTL: usize = 22;
    pub(crate) const PROTOCOL: usize = 23;
    pub(crate) const CHECKSUM: usize = 24;
    pub(crate) const SOURCE: usize = 26;
    pub(crate) const DESTINATION: usize = 30;
    pub(crate) const SOURCE_PORT: usize = 34;
    pub(crate) const DESTINATION_PORT: usize = 36;
    pub(crate) const UDP_LEN: usize = 38;
    pub(crate) const UDP_CHECKSUM: usize = 40;
    pub(crate) const TCP_OFFSET: usize = 46;
    pub(crate) const TCP_FLAGS: usize = 47;
    pub(crate) const TCP_CHECKSUM: usize = 50;
}

/// Bytes of a frame: one load, where byte by byte may become many.
#[inline]
pub(crate) fn bytes<const N: usize>(head: &Head, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[at..at + N]);
    bytes
}

#[inline]
pub(crate) fn half(head: &Head, at: usize) -> u16 {
    u16::from_be_bytes(bytes(head, at))
}

#[inline]
pub(crate) fn word(head: &Head, at: usize) -> u32 {
    u32::from_be_bytes(bytes(head, at))
}

/// Two bytes, as one number in memory order.
#[inline]
pub(crate) fn wire_half(head: &Head, at: usize) -> u16 {
    u16::from_ne_bytes(bytes(head, at))
}

#[inline]
fn set_wire_half(head: &mut Head, at: usize, value: u16) {
    head[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// Four bytes, as one number in memory order.
#[inline]
pub(crate) fn wire_word(head: &Head, at: usize) -> u32 {
    u32::from_ne_bytes(bytes(head, at))
}

/// Eight bytes, as one number in memory order.
#[inline]
pub(crate) fn eight(head: &Head, at: usize) -> u64 {
    u64::from_ne_bytes(bytes(head, at))
}

/// Source and destination address, as one number in memory order.
#[inline]
pub(crate) fn addresses(head: &Head) -> u64 {
    eight(head, at::SOURCE)
}

/// Source and destination port, as one number in memory order.
#[inline]
pub(crate) fn ports(head: &Head) -> u32 {
    wire_word(head, at::SOURCE_PORT)
}

#[inline]
pub(crate) fn checksum_at(is_tcp: bool) -> usize {
    select_unpredictable(is_tcp, at::TCP_CHECKSUM, at::UDP_CHECKSUM)
}

/// A number that is congruent to the IPv4 header's sum modulo 65,535. Any byte order will do.
#[inline]
pub(crate) fn header_sum(head: &Head) -> u64 {
    let (sum, carry) = eight(head, at::IPV4).carrying_add(eight(head, at::IPV4 + 8), false);
    let (sum, carry) = sum.carrying_add(u64::from(wire_word(head, at::IPV4 + 16)), carry);
    // It cannot carry once more: what has carried is small.
    sum.wrapping_add(u64::from(carry))
}

/// Replaces one endpoint by an address and a port as they are in packets, counts the TTL down, and mends both checksums: equation 3 of RFC
/// 1624, folded at the end.
#[expect(clippy::inline_always, reason = "as for `send`, of which it is most")]
#[inline(always)]
pub(crate) fn rewrite<const OUTBOUND: bool>(head: &mut Head, (address, port): (u32, u16)) {
    let (address_at, port_at) = if OUTBOUND { (at::SOURCE, at::SOURCE_PORT) } else { (at::DESTINATION, at::DESTINATION_PORT) };
    // In memory order, which is as good as any for sums. The complement of a field is all ones less it, so a field's is subtracted, and the
    // all ones of all fields are in the sum from the start.
    let moved = u64::from(!wire_word(head, address_at)) + u64::from(address);
    let of_header = (moved & 0xFFFF) as u32 + (moved >> 16) as u32 + LESS_TTL + ONES;
    let of_transport = of_header + (ONES - LESS_TTL) + u32::from(port) - u32::from(wire_half(head, port_at));
    head[address_at..address_at + 4].copy_from_slice(&address.to_ne_bytes());
    set_wire_half(head, port_at, port);
    head[at::TTL] -= 1;
    let checksum = mended(wire_half(head, at::CHECKSUM), of_header);
    set_wire_half(head, at::CHECKSUM, checksum);
    // Read anew: in a register all the way it would push out others.
    let is_tcp = head[at::PROTOCOL] == TCP;
    let checksum_at = checksum_at(is_tcp);
    let before = wire_half(head, checksum_at);
    let after = mended(before, of_transport);
    set_wire_half(head, checksum_at, if before == 0 || after == 0 { spelled(is_tcp, before, after) } else { after });
}

const ONES: u32 = 0xFFFF;

/// What a TTL less by one adds to the sum over the header: the TTL is the first byte of its word.
const LESS_TTL: u32 = ONES - u16::from_ne_bytes([1, 0]) as u32;

/// Of a checksum field that was zero, or becomes so: what it becomes. UDP's zero is none at all, and stays.
#[cold]
const fn spelled(is_tcp: bool, before: u16, after: u16) -> u16 {
    match (is_tcp, before) {
        (true, _) => after,
        (false, 0) => 0,
        // Zero is the same in any order, and so is its other spelling.
        (false, _) => udp_spelling(after),
    }
}

/// A checksum field after words changed. `change`: the sum of the new words and the complements of the old ones, and all ones for the field's
/// own complement; below 2^31.
#[inline]
const fn mended(checksum: u16, change: u32) -> u16 {
    let sum = change - checksum as u32;
    // The upper half is that of both halves together, with the carry.
    !(sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}
