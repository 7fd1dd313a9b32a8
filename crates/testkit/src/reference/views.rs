//! Compares what the NAT shows of its tables with what the reference remembers, and settles what was left open.
//!
//! Knows views only. Sessions that ended but wait for the sweep may still be shown, with no time left.

use std::collections::BTreeSet;

use portcullis_nat::policy::{Endpoint, Policy};
use portcullis_nat::view::{Gauges, MappingView, PortUse, SessionView};

use super::tables::{Effect, OtherScope, Session, SessionKey, Unseen, Variant};
use super::{Disagreement, ReferenceNat};

impl ReferenceNat {
    /// Compares all live sessions, as of the last packet's or sweep's time, and takes over what the rules leave to the NAT.
    ///
    /// **Errors:** a session that is missing, unknown, or in a state, or with an expiry, that no rule leads to.
    pub fn reconcile_sessions(&mut self, views: &[SessionView]) -> Result<(), Disagreement> {
        self.reveal(views)?;
        let is_shown = |key: &SessionKey| views.iter().any(|view| (view.protocol, view.internal, view.remote) == *key);
        let ended: Vec<_> = std::mem::take(&mut self.tables.doubtful).into_iter().filter(|key| !is_shown(key)).collect();
        self.tables.retire(|session| !ended.contains(&session.key()));
        let mut seen = BTreeSet::new();
        for view in views {
            let key = (view.protocol, view.internal, view.remote);
            if !seen.insert(key) {
                return Err(Disagreement::plain(format!("two sessions {key:?}")));
            }
            let Some(session) = self.tables.sessions.get_mut(&key) else {
                // A guest goes with its mapping, which the NAT may not have swept.
                let is_late =
                    |late: &Session| late.key() == key && late.external == view.external && (late.guest || view.expires_in == 0);
                if self.tables.late_sessions.iter().any(is_late) {
                    continue;
                }
                return Err(Disagreement::plain(format!("the NAT has a session that should not be: {view:?}")));
            };
            settle(session, view, self.clock, &self.policy).map_err(Disagreement::plain)?;
        }
        let is_due =
            |session: &Session| session.variants.iter().any(|v| v.last_seen + session.timeout(v.state, &self.policy) == self.clock);
        match self.tables.sessions.values().find(|session| !seen.contains(&session.key()) && !is_due(session)) {
            Some(missing) => Err(Disagreement::plain(format!("the NAT lacks the session {missing:?}"))),
            None => Ok(()),
        }
    }

    /// Finds the sessions that were made unseen, and the external endpoint that each was given.
    fn reveal(&mut self, views: &[SessionView]) -> Result<(), Disagreement> {
        std::mem::take(&mut self.tables.unseen).into_iter().try_for_each(|unseen| self.reveal_one(unseen, views))
    }

    fn reveal_one(&mut self, Unseen { mut effects, certain }: Unseen, views: &[SessionView]) -> Result<(), Disagreement> {
        let created = effects.iter().find_map(Effect::created);
        let view = created.and_then(|key| views.iter().find(|view| (view.protocol, view.internal, view.remote) == key));
        if view.is_none() && effects.iter().any(|effect| matches!(effect, Effect::Bare(_))) {
            // A bare mapping was the way, if there was one: the mappings' views show it.
            self.tables.unseen.push(Unseen { effects, certain });
            return Ok(());
        }
        let Some(key) = created else { return Ok(()) };
        let Some(view) = view else {
            let why = format!("the NAT lacks the session {key:?} of a hairpin whose second half was refused");
            return if certain { Err(Disagreement::plain(why)) } else { Ok(()) };
        };
        let is_at = |effect: &Effect, same: fn(Endpoint, Endpoint) -> bool| matches!(effect, Effect::Create { session, .. } if same(session.external, view.external));
        let known = effects.iter().position(|effect| is_at(effect, |one, other| one == other));
        let like =
            || effects.iter().position(|effect| effect.makes_mapping() && is_at(effect, |one, other| one.address == other.address));
        let any = || effects.iter().position(Effect::makes_mapping);
        let at = known.or_else(like).or_else(any).unwrap_or(0);
        let mut effect = effects.swap_remove(at);
        if let Effect::Create { session, mapping: Some(mapping) } = &mut effect {
            let (protocol, internal, external) = (view.protocol, view.internal, view.external);
            if let Some(why) = self.tables.objection(&self.policy, &self.shares, protocol, internal, external) {
                return Err(Disagreement::plain(format!("{view:?} may not have that external endpoint: {why}")));
            }
            (session.external, mapping.external) = (view.external, view.external);
        }
        self.tables.commit(vec![effect], self.clock, self.policy.inbound_refresh);
        Ok(())
    }

    /// Compares all live mappings, and takes over what the rules leave to the NAT.
    ///
    /// **Errors:** a mapping that is missing or unknown, or two with one external endpoint; a bare one that has ended, or with another expiry or
    /// count.
    pub fn reconcile_mappings(&mut self, views: &[MappingView]) -> Result<(), Disagreement> {
        self.reveal_bare(views)?;
        for mapping in self.tables.mappings.values_mut() {
            let Some(OtherScope(other)) = mapping.perhaps_for.take() else { continue };
            let is_shown = |view: &MappingView| {
                (view.protocol, view.internal, view.external, view.scope)
                    == (mapping.protocol, mapping.internal, mapping.external, other)
            };
            if views.iter().any(is_shown) {
                mapping.scope = other;
            }
        }
        let mut externals = BTreeSet::new();
        for view in views {
            self.settle_bare(view)?;
            let external = (view.protocol, view.external);
            let forwards = self.forward_at(view.protocol, view.external).is_some();
            if !forwards && !externals.insert(external) {
                return Err(Disagreement::plain(format!("two mappings share {external:?}")));
            }
            let live = self.tables.mappings.values();
            let mut known = live.chain(&self.tables.late_mappings);
            let is = |m: &super::tables::Mapping| {
                (m.protocol, m.internal, m.external, m.scope) == (view.protocol, view.internal, view.external, view.scope)
            };
            if !forwards && !known.any(is) {
                return Err(Disagreement::plain(format!("the NAT has a mapping that should not be: {view:?}")));
            }
        }
        match self.tables.mappings.values().find(|mapping| !externals.contains(&(mapping.protocol, mapping.external))) {
            Some(missing) => Err(Disagreement::plain(format!("the NAT lacks the mapping {missing:?}"))),
            None => Ok(()),
        }
    }

    /// Compares the gauges: at least what lives, at most what has not been swept besides.
    ///
    /// **Errors:** a gauge outside of that.
    pub fn check_gauges(&self, gauges: &Gauges, port_use: &[PortUse]) -> Result<(), Disagreement> {
        let tables = &self.tables;
        let within = |name: &str, shown: u32, live: usize, most: usize| {
            let right = (live..=most).contains(&(shown as usize));
            if right { Ok(()) } else { Err(Disagreement::plain(format!("{shown} {name}, not {live} to {most}"))) }
        };
        within("sessions", gauges.sessions, tables.sessions.len(), tables.sessions.len() + tables.late_sessions.len())?;
        let statics = tables.sessions.values().chain(&tables.late_sessions).filter(|session| session.mapping.is_none()).count();
        let most = tables.mappings.len() + tables.late_mappings.len() + statics;
        within("mappings", gauges.mappings, tables.mappings.len(), most)?;
        let mut hosts: BTreeSet<_> = tables.mappings.values().map(|mapping| mapping.internal.address).collect();
        let live = hosts.len();
        hosts.extend(tables.late_mappings.iter().map(|mapping| mapping.internal.address));
        hosts.extend(tables.sessions.values().chain(&tables.late_sessions).map(|session| session.internal.address));
        within("subscribers", gauges.subscribers, live, hosts.len())?;
        let (live, most) = self.other_counts();
        within("translations by address", gauges.others, live, most)?;
        for used in port_use {
            let of = |m: &&super::tables::Mapping| (m.protocol, m.external.address) == (used.protocol, used.address);
            let live = tables.mappings.values().filter(of).count();
            let late = tables.late_mappings.iter().filter(of).count();
            within(&format!("{:?} ports of {} in use", used.protocol, used.address), used.used, live, live + late)?;
        }
        Ok(())
    }
}

/// Keeps the variants of a session that the view agrees with.
fn settle(session: &mut Session, view: &SessionView, clock: u64, policy: &Policy) -> Result<(), String> {
    if session.external != view.external {
        return Err(format!("{view:?} should have the external endpoint {:?}", session.external));
    }
    let fits = |variant: &Variant| {
        let left = (variant.last_seen + session.timeout(variant.state, policy)).saturating_sub(clock);
        variant.state == view.state && (left..=left + 1).contains(&u64::from(view.expires_in))
    };
    let fitting: Vec<_> = session.variants.iter().copied().filter(fits).collect();
    let Some(&first) = fitting.first() else {
        let wanted: Vec<_> =
            session.variants.iter().map(|v| (v.state, v.last_seen + session.timeout(v.state, policy) - clock)).collect();
        return Err(format!("{view:?} should be one of {wanted:?} (state, milliseconds left)"));
    };
    session.variants = vec![first];
    if session.outbound.is_some_and(|outbound| outbound != view.outbound) {
        return Err(format!("{view:?} was started by the other side"));
    }
    if session.counted && session.packets != (view.packets_out, view.packets_in) {
        return Err(format!("{view:?} should have counted {:?} packets", session.packets));
    }
    Ok(())
}
