//! Bare mappings: UDP that is kept without sessions, one record for all remotes. What each remembers, and the halves of a translation.
//!
//! Knows tables and policy, no bytes. Under a forward UDP has sessions even so, and those come first. Where it is open whether a packet
//! was counted or has refreshed, each possibility is a trace until the view shows which is right. Invariant: of UDP all mappings are
//! bare, or none is. Sources: RFC 4787, REQ-1, REQ-6 and REQ-8; RFC 7857, section 7. Tests: `tests/bare.rs`.

use std::sync::Arc;

use portcullis_nat::policy::{Endpoint, Policy, Protocol};
use portcullis_nat::verdict::DropReason;
use portcullis_nat::view::{BareView, MappingView};

use super::halves::{Choice, Flow, Half, created, forward_at, narrow};
use super::legal::{Answer, Failure};
use super::tables::{Effect, Mapping, Room, Session, Tables, Tracked, Unseen, room};
use super::tcp::Direction;
use super::{Disagreement, ReferenceNat};

/// What a bare mapping may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    /// When a packet last refreshed it.
    last_seen: u64,
    /// Packets from inside, and to the mapping.
    pub(super) packets: (u32, u32),
}

/// A packet of a bare mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct BarePacket {
    pub(super) internal: Endpoint,
    pub(super) external: Endpoint,
    pub(super) direction: Direction,
    /// Whether it makes the mapping.
    pub(super) makes: bool,
}

impl Trace {
    /// RFC 4787, REQ-6: outbound packets refresh. RFC 7857, section 7: inbound ones only where they are wished to, since nobody knows
    /// whether the inside has ever spoken to that remote.
    fn after(self, direction: Direction, now: u64, inbound_refresh: bool) -> Self {
        let (out, ins) = self.packets;
        match direction {
            Direction::Outbound => Self { last_seen: now, packets: (out.wrapping_add(1), ins) },
            Direction::Inbound if inbound_refresh => Self { last_seen: now, packets: (out, ins.wrapping_add(1)) },
            Direction::Inbound => Self { packets: (out, ins.wrapping_add(1)), ..self },
        }
    }

    /// When it ends the mapping, if nothing more comes. One timeout for all remotes: none of a port's own.
    fn end(self, policy: &Policy) -> u64 {
        self.last_seen + policy.timeouts.udp.as_millis() as u64
    }

    fn is_shown(self, view: &BareView, now: u64, policy: &Policy) -> bool {
        let left = self.end(policy) - now;
        (left..=left + 1).contains(&u64::from(view.expires_in)) && self.packets == (view.packets_out, view.packets_in)
    }
}

impl Tables {
    /// The live bare mapping of an internal endpoint.
    pub(super) fn bare_of(&self, internal: Endpoint) -> Option<Mapping> {
        let (_, mapping) = self.mapping_of(Protocol::Udp, internal, None)?;
        self.is_bare(&mapping).then_some(mapping)
    }

    /// The live bare mapping that has an external endpoint.
    pub(super) fn bare_at(&self, external: Endpoint) -> Option<Mapping> {
        let (_, mapping) = self.mapping_at(Protocol::Udp, external)?;
        self.is_bare(&mapping).then_some(mapping)
    }

    pub(super) fn is_bare(&self, mapping: &Mapping) -> bool {
        mapping.protocol == Protocol::Udp && self.bare.contains_key(&mapping.internal)
    }

    /// Forgets the bare mappings that were idle too long by `now`.
    pub(super) fn expire_bare(&mut self, now: u64, policy: &Policy) {
        self.bare.values_mut().for_each(|traces| traces.retain(|trace| now <= trace.end(policy)));
        self.bare.retain(|_, traces| !traces.is_empty());
    }

    /// Forgets the bare mappings that `keep` does not want.
    pub(super) fn end_bare(&mut self, keep: impl Fn(&Mapping) -> bool) {
        let bare: Vec<_> = self.mappings.values().filter(|mapping| self.is_bare(mapping)).copied().collect();
        for ended in bare.iter().filter(|mapping| !keep(mapping)) {
            self.bare.remove(&ended.internal);
        }
    }

    pub(super) fn commit_bare(&mut self, packet: BarePacket, now: u64, inbound_refresh: bool) {
        let BarePacket { internal, external, direction, makes } = packet;
        if makes {
            self.insert_mapping(Mapping { protocol: Protocol::Udp, internal, external, scope: None, perhaps_for: None });
            self.bare.insert(internal, vec![Trace { last_seen: now, packets: (0, 0) }]);
        }
        for trace in self.bare.get_mut(&internal).into_iter().flatten() {
            *trace = trace.after(direction, now, inbound_refresh);
        }
    }

    /// A packet that may have been counted and have refreshed, or not. What it would have made is not there.
    pub(super) fn commit_bare_perhaps(&mut self, packet: BarePacket, now: u64, inbound_refresh: bool) {
        self.add_traces(packet.internal, |trace| vec![trace.after(packet.direction, now, inbound_refresh)]);
    }

    /// A later fragment may refresh, and may be counted, or neither.
    pub(super) fn touch_bare(&mut self, internal: Endpoint, direction: Direction, now: u64, inbound_refresh: bool) {
        self.add_traces(internal, |trace| {
            let both = trace.after(direction, now, inbound_refresh);
            vec![both, Trace { packets: trace.packets, ..both }, Trace { last_seen: trace.last_seen, ..both }]
        });
    }

    fn add_traces(&mut self, internal: Endpoint, others: impl Fn(Trace) -> Vec<Trace>) {
        let Some(traces) = self.bare.get_mut(&internal) else { return };
        for trace in traces.clone().into_iter().flat_map(others) {
            if !traces.contains(&trace) {
                traces.push(trace);
            }
        }
    }

    /// The room for one more bare mapping, of which at most `most` fit.
    pub(super) fn bare_room(&self, most: usize) -> Room {
        let late = self.late_mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp).count();
        room(self.bare.len(), late, most)
    }
}

impl ReferenceNat {
    /// Whether the mappings of a protocol are bare.
    pub(super) fn is_bare(&self, protocol: Protocol) -> bool {
        protocol == Protocol::Udp && self.limits.bare_mappings > 0
    }

    /// The outbound half, of no session that there is: by a forward that leads the remote here, or else by the mapping.
    pub(super) fn outbound_bare(&self, flow: Flow, shown: Option<Endpoint>) -> Half {
        let mut half = Half::default();
        let forwarded = self.forward_externals(flow);
        if !forwarded.is_empty() {
            self.sessions_full(0, Answer::Due(self.exhausted()), &mut half);
            self.perhaps_mappings_full(&mut half);
        }
        if self.sessions_room(0) != Room::Full {
            half.choices = forwarded.iter().map(|&(external, _)| created(flow, external, None, None)).collect();
        }
        if !forwarded.iter().any(|&(external, sole)| sole && !self.is_late(flow, external)) {
            self.outbound_under_bare(flow, shown, &mut half);
        }
        narrow(half, shown)
    }

    /// Adds the way by the bare mapping; what is in `half` already may be the way too.
    fn outbound_under_bare(&self, flow: Flow, shown: Option<Endpoint>, half: &mut Half) {
        half.failures.iter_mut().for_each(|failure| failure.certain = false);
        if let Some(mapping) = self.tables.bare_of(flow.source) {
            half.choices.push(choice((flow.source, mapping.external), Direction::Outbound, false));
            return;
        }
        let others = half.choices.len();
        let externals = self.new_externals(flow, shown, half);
        let made = externals.into_iter().map(|external| choice((flow.source, external), Direction::Outbound, true));
        half.choices.extend(made);
        if others > 0 {
            // A forward may have been the way.
            half.choices.truncate(if half.failures.iter().any(|failure| failure.certain) { others } else { usize::MAX });
            half.failures.iter_mut().for_each(|failure| failure.certain = false);
        }
    }

    /// The inbound half, of no session that there is: where a forward has the port, by a session; else any remote is let in.
    pub(super) fn inbound_bare(&self, flow: Flow, made: usize, shown: Option<Endpoint>) -> Half {
        let mut half = Half::default();
        if let Some(forward) = self.forward_at(flow.protocol, flow.destination) {
            self.inbound_to_forward(flow, forward, made, &mut half);
        } else if let Some(mapping) = self.tables.bare_at(flow.destination) {
            half.choices.push(choice((mapping.internal, flow.destination), Direction::Inbound, false));
        } else if self.is_shared(flow.destination.address) {
            half.punt = true;
        } else {
            half.failures.push(Failure::silent(DropReason::NoMapping));
        }
        narrow(half, shown)
    }

    /// Ends what the forwards of a new policy do not allow, after that of `before`: bare mappings whose ports they have, and sessions where
    /// none leads that remote from that port to that server.
    pub(super) fn adopt_forwards(&mut self, before: &Policy) {
        let policy = Arc::clone(&self.policy);
        self.tables.end_bare(|mapping| forward_at(&policy, mapping.protocol, mapping.external).is_none());
        let (mut ended, mut doubtful) = (Vec::new(), Vec::new());
        for session in self.tables.sessions.values().filter(|session| session.protocol == Protocol::Udp) {
            match self.leads(session, before) {
                Led::Not => ended.push(session.key()),
                Led::Perhaps => doubtful.push(session.key()),
                Led::Here => {}
            }
        }
        self.tables.retire(|session| !ended.contains(&session.key()));
        self.tables.doubtful = doubtful;
    }

    /// Whether a forward leads a session's remote from its external endpoint to its internal one.
    fn leads(&self, session: &Session, before: &Policy) -> Led {
        let Some(forward) = self.forward_at(session.protocol, session.external) else { return Led::Not };
        let nth = session.external.port - forward.first;
        let is_internal = |server: &Endpoint| {
            (server.address, server.port.checked_add(nth)) == (session.internal.address, Some(session.internal.port))
        };
        match forward.servers.iter().any(is_internal) {
            false => Led::Not,
            true if forward.servers.len() == 1 || before.forwards.contains(forward) => Led::Here,
            // Which of several servers a remote is led to is the NAT's choice.
            true => Led::Perhaps,
        }
    }

    /// Finds the bare mappings that were made unseen, and the external endpoint that each was given.
    pub(super) fn reveal_bare(&mut self, views: &[MappingView]) -> Result<(), Disagreement> {
        std::mem::take(&mut self.tables.unseen).into_iter().try_for_each(|unseen| self.reveal_one_bare(unseen, views))
    }

    fn reveal_one_bare(&mut self, Unseen { effects, certain }: Unseen, views: &[MappingView]) -> Result<(), Disagreement> {
        let packets = effects.iter().filter_map(|effect| if let Effect::Bare(packet) = effect { Some(*packet) } else { None });
        let mut packets = packets.peekable();
        let Some(first) = packets.peek().copied() else { return Ok(()) };
        let internal = first.internal;
        let Some(view) = views.iter().find(|view| view.bare.is_some() && view.internal == internal) else {
            let why = format!("the NAT lacks the bare mapping of {internal:?}, whose hairpin was refused in its second half");
            return if certain { Err(Disagreement::plain(why)) } else { Ok(()) };
        };
        if first.makes {
            if let Some(why) = self.tables.objection(&self.policy, &self.shares, Protocol::Udp, internal, view.external) {
                return Err(Disagreement::plain(format!("{view:?} may not have that external endpoint: {why}")));
            }
            let packet = BarePacket { external: view.external, ..first };
            self.tables.commit_bare(packet, self.clock, self.policy.inbound_refresh);
        } else if certain {
            self.tables.commit_bare(first, self.clock, self.policy.inbound_refresh);
        } else {
            self.tables.commit_bare_perhaps(first, self.clock, self.policy.inbound_refresh);
        }
        Ok(())
    }

    /// Compares a mapping that the NAT shows with what a bare one remembers, if it is one, and keeps the traces that it agrees with.
    ///
    /// **Errors:** it is shown as bare and should not be, or the other way round; its time or counts are others.
    pub(super) fn settle_bare(&mut self, view: &MappingView) -> Result<(), Disagreement> {
        let Some(shown) = &view.bare else {
            let is_bare = self.is_bare(view.protocol) && self.forward_at(view.protocol, view.external).is_none();
            return if is_bare { Err(Disagreement::plain(format!("{view:?} should be bare"))) } else { Ok(()) };
        };
        let is_same = |mapping: &Mapping| (mapping.external, view.scope, view.sessions) == (view.external, None, 0);
        if !self.is_bare(view.protocol) || !self.tables.bare_of(view.internal).is_some_and(|mapping| is_same(&mapping)) {
            return Err(Disagreement::plain(format!("the NAT has a bare mapping that should not be: {view:?}")));
        }
        let (clock, policy) = (self.clock, &self.policy);
        let Some(traces) = self.tables.bare.get_mut(&view.internal) else { return Ok(()) };
        let known = traces.clone();
        traces.retain(|trace| trace.is_shown(shown, clock, policy));
        if traces.is_empty() {
            let wanted: Vec<_> = known.iter().map(|trace| (trace.end(policy) - clock, trace.packets)).collect();
            return Err(Disagreement::plain(format!("{view:?} should be one of {wanted:?} (milliseconds left, packets)")));
        }
        Ok(())
    }
}

/// A packet of the bare mapping of those endpoints, internal and external.
fn choice((internal, external): (Endpoint, Endpoint), direction: Direction, makes: bool) -> Choice {
    let endpoint = if direction == Direction::Outbound { external } else { internal };
    let effect = Effect::Bare(BarePacket { internal, external, direction, makes });
    Choice { endpoint, effect, key: Tracked::Bare { internal, external } }
}

/// Whether a policy's forwards lead a session's remote to its server.
enum Led {
    Here,
    Perhaps,
    Not,
}
