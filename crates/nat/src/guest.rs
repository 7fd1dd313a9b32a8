//! Guests: sessions that the filter alone let in, and that the inside has not answered.
//!
//! Knows sessions and mappings, no packets. A guest is under no count of its mapping's: it keeps neither the mapping nor its port, and is over
//! when they are, whether it is swept or not. Invariant: what a remote does alone makes no mapping last longer. Called by look-ups, the sweep,
//! and when a packet refreshes a guest. Source: RFC 7857, section 7. Tests: `tests/rfc7857.rs`, the reference NAT.

use core::net::Ipv4Addr;

use crate::record::Session;
use crate::state::State;
use crate::table::Holder;
use crate::time::Tick;

impl State<'_> {
    /// Whether the mapping is there that a guest came in by. What has its port now may be another's.
    pub(crate) fn has_mapping(&self, guest: &Session, address: Ipv4Addr, now: Tick) -> bool {
        let (slot, external) = (guest.slot, guest.external(address));
        let holder = self.holder_of(slot, guest.kind.protocol(), external).filter(|&holder| self.lives(holder, now));
        holder.is_some_and(|holder| {
            let mapped = self.internal_held_by(holder);
            // The receiver of a hairpinned query has the sender's identifier in its session: see `establish`.
            mapped == guest.internal() || guest.is_hairpinned_query() && mapped.address == guest.internal().address
        })
    }

    /// Whether a mapping has not ended, as far as is known: of one with a record, sessions that are over count until the sweep.
    pub(crate) fn lives(&self, holder: Holder, now: Tick) -> bool {
        match holder {
            Holder::Mapping(_) => true,
            Holder::Session(number) => self.time_left(self.sessions.records.get(number), now) > 0,
            Holder::Bare(number) => self.bare_expires_in(self.bares.records.get(number), now) > 0,
        }
    }

    /// Makes a guest a session like others, which its mapping lives as long as: the inside has answered it.
    pub(crate) fn host(&mut self, number: u32) {
        let guest = *self.sessions.records.get(number);
        // There is room for the record of a mapping that has none. Were there not, the guest would stay one.
        let Some(mapping) = self.holder_for(&guest).and_then(|holder| self.record_of(holder).ok()) else { return };
        self.join(mapping, &guest);
        self.sessions.records.get_mut(number).kind = guest.kind.of_host();
        self.guests -= 1;
    }
}
