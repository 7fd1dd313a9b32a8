//! Values of the command line: address and port ranges, MAC addresses, seconds.
//!
//! Pure. Invariant: a range is never empty and never goes past the last address or port.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};

/// Consecutive IPv4 addresses: `10.0.0.2`, `10.0.0.2-10.0.0.254` or `10.0.0.0/24` (all of its addresses).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    first: u32,
    last: u32,
}

impl AddressRange {
    /// The first address.
    pub fn first(self) -> Ipv4Addr {
        self.first.into()
    }

    /// How many addresses, at least 1; a `/0` counts one less than it has, to fit.
    pub fn count(self) -> u32 {
        (self.last - self.first).saturating_add(1)
    }

    /// All but the first; none when that is all.
    pub fn after_first(self) -> Option<Self> {
        (self.first < self.last).then(|| Self { first: self.first + 1, ..self })
    }

    /// Whether `address` is one of them.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address.into())
    }
}

impl From<Ipv4Addr> for AddressRange {
    fn from(address: Ipv4Addr) -> Self {
        Self { first: address.into(), last: address.into() }
    }
}

impl FromStr for AddressRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let address = |part: &str| -> Result<u32> {
            Ok(part.parse::<Ipv4Addr>().with_context(|| format!("{part:?} is not an IPv4 address"))?.into())
        };
        if let Some((first, last)) = text.split_once('-') {
            let (first, last) = (address(first)?, address(last)?);
            ensure!(first <= last, "{text}: the last address is before the first");
            return Ok(Self { first, last });
        }
        if let Some((network, length)) = text.split_once('/') {
            let length: u32 = length.parse().with_context(|| format!("{text}: the prefix length is not a number"))?;
            ensure!(length <= 32, "{text}: the prefix length is 0 to 32");
            let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
            let first = address(network)?;
            ensure!(first & hosts == 0, "{text}: the address has bits beyond the prefix");
            return Ok(Self { first, last: first | hosts });
        }
        let only = address(text)?;
        Ok(Self { first: only, last: only })
    }
}

/// Consecutive ports (or ICMP identifiers): `53` or `1024-65535`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// How many ports, 1 to 65536.
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for PortRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let port = |part: &str| part.parse::<u16>().with_context(|| format!("{part:?} is not a port (0-65535)"));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        ensure!(first <= last, "{text}: the last port is before the first");
        Ok(Self { first, last })
    }
}

/// An Ethernet address: `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || format!("{text:?} is not an Ethernet address (02:00:00:00:00:01)");
        let mut bytes = [0; 6];
        ensure!(text.split(':').count() == bytes.len(), wrong());
        for (byte, part) in bytes.iter_mut().zip(text.split(':')) {
            ensure!(part.len() == 2, wrong());
            *byte = u8::from_str_radix(part, 16).with_context(wrong)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Seconds, with a fraction if need be: `0.5`.
///
/// **Errors:** when it is not a number, negative, or more than a day, which no bounded run needs.
pub fn seconds(text: &str) -> Result<Duration> {
    let number: f64 = text.parse().with_context(|| format!("{text:?} is not a number of seconds"))?;
    ensure!((0.0..=86_400.0).contains(&number), "{text}: 0 to 86400 seconds");
    Ok(Duration::from_secs_f64(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_an_address_two_addresses_or_a_prefix() {
        for (text, first, count) in [
            ("10.0.0.2", [10, 0, 0, 2], 1),
            ("10.0.0.2-10.0.0.254", [10, 0, 0, 2], 253),
            ("10.0.0.0/24", [10, 0, 0, 0], 256),
            ("10.0.0.1/32", [10, 0, 0, 1], 1),
            ("0.0.0.0/0", [0, 0, 0, 0], u32::MAX),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!((range.first(), range.count()), (first.into(), count), "{text}");
        }
        let range: AddressRange = "10.0.0.2-10.0.0.4".parse().unwrap();
        let inside: Vec<_> = (1..=5).filter(|last| range.contains(Ipv4Addr::new(10, 0, 0, *last))).collect();
        assert_eq!(inside, [2, 3, 4]);
        assert_eq!(range.after_first(), Some("10.0.0.3-10.0.0.4".parse().unwrap()));
        assert_eq!(AddressRange::from(Ipv4Addr::LOCALHOST).after_first(), None);
    }

    #[test]
    fn what_is_not_a_range_is_refused_with_the_reason() {
        for text in ["", "10.0.0", "10.0.0.5-10.0.0.4", "10.0.0.1/24", "10.0.0.0/33", "10.0.0.0/x"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
        for text in ["", "65536", "2-1", "a"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:0g", "02:00:00:00:00:01:02", "2:0:0:0:0:1"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        for text in ["-1", "x", "NaN", "1e9"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ports_and_macs_read_as_they_are_written() {
        let ports: PortRange = "1024-65535".parse().unwrap();
        assert_eq!((ports.first(), ports.count()), (1024, 64512));
        assert_eq!("0-65535".parse::<PortRange>().unwrap().count(), 65536);
        assert_eq!("02:00:00:00:0a:ff".parse::<Mac>().unwrap().to_string(), "02:00:00:00:0a:ff");
        assert_eq!(seconds("0.25").unwrap(), Duration::from_millis(250));
    }
}
