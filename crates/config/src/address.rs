//! Addresses, ports and prefixes as a configuration writes them: texts into ranges.
//!
//! Knows IPv4 and which of its blocks no host outside may have. Pure; used by the modules of the sections and the checks.
//! Invariant: a range's first is not above its last. Sources: RFC 6890 (special-purpose blocks). Tests: below.

use core::fmt;
use core::net::Ipv4Addr;

use ipnet::Ipv4Net;
use portcullis_nat::policy::Endpoint;

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port, included.
    pub last: u16,
}

impl PortRange {
    /// How many ports follow the first one.
    pub(crate) fn offset(self) -> u16 {
        self.last - self.first
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Addresses from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    /// The first address.
    pub first: Ipv4Addr,
    /// The last address, included.
    pub last: Ipv4Addr,
}

impl AddressRange {
    /// How many addresses it has, at least one.
    pub fn count(self) -> u64 {
        u64::from(u32::from(self.last)) - u64::from(u32::from(self.first)) + 1
    }

    /// Whether `address` is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.first <= address && address <= self.last
    }

    /// Whether it has an address of `prefix`.
    pub(crate) fn meets(self, prefix: Ipv4Net) -> bool {
        self.first <= prefix.broadcast() && prefix.network() <= self.last
    }

    /// Its addresses, ascending.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Why a text is no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It is not written as one.
    Malformed,
    /// Its last is below its first.
    Backwards,
    /// It has port 0.
    PortZero,
    /// The prefix has bits set beyond its length.
    HostBits(Ipv4Net),
}

/// Reads `1024-65535` or `80`.
pub(crate) fn port_range(text: &str) -> Result<PortRange, Unread> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port_number(first)?, port_number(last)?);
    match (first, last) {
        (0, _) | (_, 0) => Err(Unread::PortZero),
        _ if last < first => Err(Unread::Backwards),
        _ => Ok(PortRange { first, last }),
    }
}

/// A port's digits; `u16`'s own reading would let a sign pass.
fn port_number(text: &str) -> Result<u16, Unread> {
    let text = text.trim();
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Unread::Malformed);
    }
    text.parse().map_err(|_| Unread::Malformed)
}

/// Reads an address, a range of them or a prefix.
pub(crate) fn address_range(text: &str) -> Result<AddressRange, Unread> {
    if text.contains('/') {
        let prefix = prefix(text)?;
        return Ok(AddressRange { first: prefix.network(), last: prefix.broadcast() });
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let read = |text: &str| text.trim().parse::<Ipv4Addr>().map_err(|_| Unread::Malformed);
    let (first, last) = (read(first)?, read(last)?);
    if last < first { Err(Unread::Backwards) } else { Ok(AddressRange { first, last }) }
}

/// Reads a prefix whose bits beyond its length are zero.
pub(crate) fn prefix(text: &str) -> Result<Ipv4Net, Unread> {
    let prefix: Ipv4Net = text.parse().map_err(|_| Unread::Malformed)?;
    if prefix == prefix.trunc() { Ok(prefix) } else { Err(Unread::HostBits(prefix)) }
}

/// Reads `10.0.0.11:80`.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, Unread> {
    let (address, port) = text.split_once(':').ok_or(Unread::Malformed)?;
    let address = address.parse().map_err(|_| Unread::Malformed)?;
    match port_number(port)? {
        0 => Err(Unread::PortZero),
        port => Ok(Endpoint { address, port }),
    }
}

const fn block(a: u8, b: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), length)
}

/// The blocks that a gateway neither translates to nor forwards to (RFC 6890, section 2.2.2; RFC 3927, section 7).
const UNUSABLE: [(Ipv4Net, &str); 5] = [
    (block(0, 0, 8), "zero"),
    (block(127, 0, 8), "loopback"),
    (block(169, 254, 16), "link-local"),
    (block(224, 0, 4), "multicast"),
    (block(240, 0, 4), "reserved"),
];

/// The blocks for hosts inside (RFC 1918, section 3; RFC 6598, section 7).
const PRIVATE: [Ipv4Net; 4] = [block(10, 0, 8), block(172, 16, 12), block(192, 168, 16), block(100, 64, 10)];

/// The block of addresses that no host outside may have which `range` meets first, and its kind.
pub(crate) fn unusable(range: AddressRange) -> Option<(Ipv4Net, &'static str)> {
    UNUSABLE.into_iter().find(|&(block, _)| range.meets(block))
}

/// Whether an address is one for hosts inside.
pub(crate) fn is_private(address: Ipv4Addr) -> bool {
    PRIVATE.iter().any(|block| block.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_read_exactly() {
        for (text, expected) in [
            ("1024-65535", Ok(PortRange { first: 1024, last: 65_535 })),
            (" 80 ", Ok(PortRange { first: 80, last: 80 })),
            ("0-10", Err(Unread::PortZero)),
            ("10-0", Err(Unread::PortZero)),
            ("20-10", Err(Unread::Backwards)),
            ("+1-2", Err(Unread::Malformed)),
            ("1-65536", Err(Unread::Malformed)),
            ("", Err(Unread::Malformed)),
            ("1-2-3", Err(Unread::Malformed)),
        ] {
            assert_eq!(port_range(text), expected, "of {text:?}");
        }
    }

    #[test]
    fn address_ranges_count_both_ends() {
        for (text, count) in [("192.0.2.1", 1), ("192.0.2.1-192.0.2.3", 3), ("192.0.2.0/28", 16), ("0.0.0.0/0", 1 << 32)] {
            assert_eq!(address_range(text).map(AddressRange::count), Ok(count), "of {text:?}");
        }
        assert_eq!(address_range("192.0.2.3-192.0.2.1"), Err(Unread::Backwards));
        assert!(matches!(address_range("192.0.2.1/28"), Err(Unread::HostBits(_))));
    }

    #[test]
    fn a_range_is_unusable_if_any_of_its_addresses_is() {
        let across = AddressRange { first: Ipv4Addr::new(126, 255, 255, 254), last: Ipv4Addr::LOCALHOST };
        assert_eq!(unusable(across).map(|(_, kind)| kind), Some("loopback"));
        let fine = AddressRange { first: Ipv4Addr::new(128, 0, 0, 0), last: Ipv4Addr::new(169, 253, 255, 255) };
        assert_eq!(unusable(fine), None);
    }
}
