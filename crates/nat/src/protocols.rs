//! The protocols without ports that are translated by address: which ones, as a set of protocol numbers.
//!
//! Knows numbers and the IANA's assignments, no packets. Part of the policy; asked for every packet that is neither TCP, UDP nor ICMP, and by
//! whoever writes the XDP program's table. Invariant: the protocols that the NAT translates by port, and AH, are never in a set.
//! Sources: IANA, "Assigned Internet Protocol Numbers"; RFC 3715, section 2.1.

/// TCP, UDP and ICMP, which have a translation of their own.
const BY_PORT: [u8; 3] = [1, 6, 17];

/// The Authentication Header, whose integrity check covers the addresses, so that no NAT can change them (RFC 3715, section 2.1 a).
const AUTHENTICATION_HEADER: u8 = 51;

/// What is said on one link only, or between routers: hop-by-hop options, IGMP, ICMPv6, OSPF, PIM, VRRP.
const OF_LINKS_AND_ROUTERS: [u8; 6] = [0, 2, 58, 89, 103, 112];

/// A set of IPv4 protocol numbers that are translated by address. **Shape:** 256 bits, number `n` in bit `n % 64` of word `n / 64`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProtocolSet {
    words: [u64; 4],
}

impl ProtocolSet {
    /// The set of no protocol.
    pub const EMPTY: Self = Self { words: [0; 4] };

    /// Every protocol that can be translated by address and that is not said on one link only or between routers.
    pub const ALL: Self = Self::all();

    const fn all() -> Self {
        let mut set = Self { words: [u64::MAX; 4] };
        let mut at = 0;
        while at < BY_PORT.len() {
            set.words[BY_PORT[at] as usize / 64] &= !(1 << (BY_PORT[at] % 64));
            at += 1;
        }
        let mut at = 0;
        while at < OF_LINKS_AND_ROUTERS.len() {
            set.words[OF_LINKS_AND_ROUTERS[at] as usize / 64] &= !(1 << (OF_LINKS_AND_ROUTERS[at] % 64));
            at += 1;
        }
        set.words[AUTHENTICATION_HEADER as usize / 64] &= !(1 << (AUTHENTICATION_HEADER % 64));
        set
    }

    /// Whether a protocol may be in a set at all: it is neither translated by port, nor does it authenticate addresses.
    pub const fn may_contain(protocol: u8) -> bool {
        !matches!(protocol, 1 | 6 | 17 | AUTHENTICATION_HEADER)
    }

    /// Adds a protocol. One that no set may contain is left out.
    pub const fn insert(&mut self, protocol: u8) {
        if Self::may_contain(protocol) {
            self.words[protocol as usize / 64] |= 1 << (protocol % 64);
        }
    }

    /// Whether a protocol is translated by address.
    #[inline]
    pub const fn contains(&self, protocol: u8) -> bool {
        self.words[protocol as usize / 64] >> (protocol % 64) & 1 == 1
    }

    /// Whether no protocol is.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// The bits, protocol 0 in bit 0 of word 0.
    pub const fn words(&self) -> &[u64; 4] {
        &self.words
    }

    /// The protocols, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|&protocol| self.contains(protocol))
    }
}

impl Default for ProtocolSet {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromIterator<u8> for ProtocolSet {
    fn from_iter<I: IntoIterator<Item = u8>>(protocols: I) -> Self {
        let mut set = Self::EMPTY;
        protocols.into_iter().for_each(|protocol| set.insert(protocol));
        set
    }
}

impl core::fmt::Debug for ProtocolSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_by_default_is_what_has_ports_authenticates_addresses_or_stays_on_a_link() {
        let out: Vec<_> = (0..=u8::MAX).filter(|&protocol| !ProtocolSet::default().contains(protocol)).collect();
        assert_eq!(out, [0, 1, 2, 6, 17, 51, 58, 89, 103, 112]);
    }

    #[test]
    fn a_set_has_what_was_put_into_it_but_what_no_set_may_have() {
        let set: ProtocolSet = [255, 47, 6, 51, 0, 47, 1, 17].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 47, 255]);
        assert!(!set.is_empty() && ProtocolSet::EMPTY.is_empty() && ProtocolSet::EMPTY.iter().next().is_none());
        assert_eq!(set.words(), &[1 | 1 << 47, 0, 0, 1 << 63]);
        assert!(ProtocolSet::ALL.iter().all(ProtocolSet::may_contain));
    }
}
