//! Which external address a slot has, and had: by slot and generation, since a session that is not swept yet is in the index by the
//! address that it was made under.
//!
//! Knows addresses, no sessions. Asked for every packet; told by whoever adopts a policy. Invariant: what is told of a slot makes all that
//! was known of it before an address that is gone, and a generation comes again only after no session is left of its last time.

use core::net::Ipv4Addr;

use crate::record::{Generation, Session};

/// A slot and one of its generations: how sessions name their external address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outer(u32);

impl Outer {
    #[inline]
    pub(crate) const fn new(slot: u16, generation: Generation) -> Self {
        Self(slot as u32 * Generation::COUNT as u32 + generation.number() as u32)
    }

    #[inline]
    pub(crate) fn of(session: &Session) -> Self {
        Self(session.slot_and_generation())
    }

    /// The same in two bytes, as a bare mapping keeps it: enough for `config::ADDRESSES_MOST` slots.
    pub(crate) fn packed(self) -> u16 {
        debug_assert!(u16::try_from(self.0).is_ok(), "{self:?} is beyond the configuration's limit");
        self.0 as u16
    }

    #[inline]
    pub(crate) const fn of_packed(packed: u16) -> Self {
        Self(packed as u32)
    }

    pub(crate) const fn slot(self) -> u16 {
        (self.0 / Generation::COUNT as u32) as u16
    }
}

/// Slots times generations.
const OUTERS: usize = 1 << 18;

/// Beside an address, in bit 32: it is not gone. So one comparison tells an address that is the packet's and not gone.
const LIVES: u64 = 1 << 32;

/// The addresses, as they are in a packet. Pages of slots that no policy has are never touched.
pub(crate) struct Externals {
    known: Box<[u64; OUTERS]>,
}

impl Externals {
    pub(crate) fn new() -> Self {
        Self { known: u64_zeros() }
    }

    /// From now on, a slot has that address, in that generation.
    pub(crate) fn set(&mut self, slot: u16, generation: Generation, address: Option<Ipv4Addr>) {
        let first = Outer::new(slot, Generation::FIRST).0 as usize;
        self.known[first..first + usize::from(Generation::COUNT)].iter_mut().for_each(|known| *known &= !LIVES);
        if let Some(address) = address {
            self.known[Outer::new(slot, generation).0 as usize] = LIVES | u64::from(u32::from_ne_bytes(address.octets()));
        }
    }

    /// The address as it is in a packet, gone or not.
    #[inline]
    pub(crate) fn wire(&self, outer: Outer) -> u32 {
        self.known(outer) as u32
    }

    /// The address as it is in a packet, unless it is gone.
    #[inline]
    pub(crate) fn live(&self, outer: Outer) -> Option<u32> {
        let known = self.known(outer);
        (known & LIVES != 0).then_some(known as u32)
    }

    /// Whether that is the address, and not gone.
    #[inline]
    pub(crate) fn is_live(&self, outer: Outer, wire: u32) -> bool {
        self.known(outer) == LIVES | u64::from(wire)
    }

    #[inline]
    fn known(&self, outer: Outer) -> u64 {
        self.known[outer.0 as usize % OUTERS]
    }
}

fn u64_zeros() -> Box<[u64; OUTERS]> {
    vec![0; OUTERS].into_boxed_slice().try_into().unwrap_or_else(|_| unreachable!("as many as there are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_gone_is_still_known() {
        let mut externals = Externals::new();
        let (first, second) = (Outer::new(1, Generation::FIRST), Outer::new(1, Generation::FIRST.next()));
        let [one, other] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
        let wire = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
        externals.set(1, Generation::FIRST, Some(one));
        assert_eq!((externals.live(first), externals.live(second)), (Some(wire(one)), None));
        externals.set(1, Generation::FIRST.next(), Some(other));
        assert_eq!((externals.live(first), externals.wire(first)), (None, wire(one)));
        assert!(externals.is_live(second, wire(other)) && !externals.is_live(first, wire(one)));
        externals.set(1, Generation::FIRST.next(), None);
        assert_eq!((externals.live(second), externals.wire(second)), (None, wire(other)));
    }

    #[test]
    fn nothing_is_known_of_a_slot_without_address() {
        let mut externals = Externals::new();
        externals.set(3, Generation::FIRST, None);
        for slot in 0..5 {
            let outer = Outer::new(slot, Generation::FIRST);
            // The unspecified address is a packet's destination too.
            assert!(externals.live(outer).is_none() && !externals.is_live(outer, 0), "slot {slot}");
        }
    }
}
