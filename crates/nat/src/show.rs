//! What a worker's NAT shows of itself: counters, gauges, ports, sessions and mappings.
//!
//! Knows the tables, and the copies in `view`; changes nothing. Called by the worker between bursts. Invariant: dumps go in bounded slices.

use crate::counters::Counters;
use crate::nat::Nat;
use crate::policy::Protocol;
use crate::record::Mapping;
use crate::state::State;
use crate::time::Tick;
use crate::view::{Gauges, MappingView, OtherView, PortUse, SessionView};

impl Nat<'_> {
    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How full the tables are.
    pub fn gauges(&self) -> Gauges {
        let (sessions, mappings) = (&self.state.sessions.records, &self.state.mappings);
        Gauges {
            mappings: mappings.live() + self.state.bares.records.live(),
            mappings_limit: mappings.records.limit(),
            sessions: sessions.live(),
            sessions_limit: sessions.limit(),
            subscribers: self.state.subscribers.len() as u32,
            fragments: self.fragments.len() as u32,
            others: self.state.others.live(),
            others_limit: self.state.others.limit(),
        }
    }

    /// The use of each external address, for each protocol. **Cost:** cold; O(addresses).
    pub fn port_use(&self) -> Vec<PortUse> {
        let mut uses = Vec::new();
        for (number, slot) in self.state.slots().iter().enumerate() {
            let Some(address) = slot.address else { continue };
            for protocol in Protocol::ALL {
                let space = self.state.space(number as u16, protocol);
                let (used, resting, limit) = (space.used(), space.resting(), space.limit());
                uses.push(PortUse { address, protocol, used, resting, limit });
            }
        }
        uses
    }

    /// Appends the live sessions among the next `most` records from `cursor` on. Returns the next cursor, or none at the end.
    pub fn sessions(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<SessionView>) -> Option<u32> {
        let (records, next) = self.state.sessions.records.slice(cursor, most);
        for (_, session) in records {
            let expires_in = self.state.expires_in(session, now);
            if expires_in > 0 {
                into.push(session.view(self.state.external_of(session).address, expires_in));
            }
        }
        next
    }

    /// Appends the live translations of protocols without ports among the next `most` records from `cursor` on. Returns the next cursor, or none
    /// at the end.
    pub fn others(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<OtherView>) -> Option<u32> {
        self.state.others.slice(cursor, most, now, into)
    }

    /// Appends the mappings, without those whose external address is gone, among the next `most` records from `cursor` on: first those
    /// that a session stands for, then those with a record, then bare ones that have not ended. Returns the next cursor, or none at the end. A
    /// mapping that gets its second session meanwhile may come twice.
    pub fn mappings(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<MappingView>) -> Option<u32> {
        let State { sessions, mappings, .. } = &self.state;
        let (table, cursor) = (cursor & TABLE, cursor & !TABLE);
        let (next, behind) = match table {
            AMONG_SESSIONS => {
                let (records, next) = sessions.records.slice(cursor, most);
                let soles = records.filter(|(_, session)| session.sole().is_some());
                let live = soles.filter_map(|(_, session)| session.mapping(self.state.live_address_of(session)?));
                into.extend(live.map(|mapping| mapping.view()));
                (next, Some(AMONG_RECORDS))
            }
            AMONG_RECORDS => {
                let (records, next) = mappings.records.slice(cursor, most);
                let is_live = |mapping: &Mapping| self.state.address_of(mapping.slot) == Some(mapping.external().address);
                into.extend(records.filter(|(_, mapping)| is_live(mapping)).map(|(_, mapping)| mapping.view()));
                (next, self.state.bares.is_on().then_some(AMONG_BARES))
            }
            _ => (self.state.show_bares(cursor, most, now, into), None),
        };
        next.map(|next| table | next).or(behind)
    }
}

/// Of a cursor over mappings, the table that it is in. No table has so many records that these bits are another's.
const TABLE: u32 = 0b11 << 30;
const AMONG_SESSIONS: u32 = 0;
const AMONG_RECORDS: u32 = 0b01 << 30;
const AMONG_BARES: u32 = 0b10 << 30;
