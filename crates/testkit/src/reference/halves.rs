//! The two halves of a translation: outbound (internal to external endpoint) and inbound (external to internal).
//!
//! Knows tables and policy, no bytes and no routes. A half gives every legal choice of the new endpoint, or why there is none; the
//! endpoint that the NAT shows in its output narrows the choice. Sources: RFC 4787, sections 4 and 5; RFC 5382; RFC 6888, REQ-2.

use std::collections::BTreeSet;

use portcullis_nat::policy::{Endpoint, Filtering, Forward as PortForward, MappingBehaviour, Policy, Protocol};
use portcullis_nat::verdict::DropReason;
use portcullis_nat::view::SessionState;

use super::ReferenceNat;
use super::legal::{Answer, Failure, Reply};
use super::tables::{Effect, Mapping, Origin, OtherScope, Room, Session, Tracked, Variant, room};
use super::tcp::{self, Direction};

/// A packet as the tables know it. An ICMP query's identifier is the port of the end that the NAT translates; the other has zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) protocol: Protocol,
    pub(super) source: Endpoint,
    pub(super) destination: Endpoint,
    /// TCP's.
    pub(super) flags: u8,
    /// Whether an ICMP message asks, rather than answers. True of other protocols.
    pub(super) request: bool,
}

impl Flow {
    /// Whether it may start a session, or why not. Replies from outside are let through by some filters: see `inbound`.
    pub(super) fn objection(self) -> Option<DropReason> {
        match self.protocol {
            Protocol::Tcp if !tcp::is_fresh_syn(self.flags) => Some(DropReason::TcpNotSyn),
            Protocol::Icmp if !self.request => Some(DropReason::NoMapping),
            _ => None,
        }
    }
}

impl Flow {
    /// Whether it is an ICMP query between the halves of a hairpin: its source has the sender's external identifier there.
    pub(super) fn is_turned_query(self) -> bool {
        self.protocol == Protocol::Icmp && self.request && self.source.port != 0
    }

    /// The internal endpoint that gets it, under a mapping of `internal`. A query that was turned round shows its receiver the sender's
    /// external identifier, as another packet shows the sender's port.
    pub(super) fn receiver(self, internal: Endpoint) -> Endpoint {
        if self.is_turned_query() { Endpoint { port: self.source.port, ..internal } } else { internal }
    }
}

/// One legal choice.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    /// The endpoint that replaces the packet's own.
    pub(super) endpoint: Endpoint,
    pub(super) effect: Effect,
    pub(super) key: Tracked,
}

impl Choice {
    pub(super) fn makes_session(&self) -> bool {
        self.effect.created().is_some()
    }
}

/// What one half of a translation may do.
#[derive(Clone, Debug, Default)]
pub(super) struct Half {
    pub(super) choices: Vec<Choice>,
    pub(super) failures: Vec<Failure>,
    pub(super) punt: bool,
    pub(super) complaint: Option<String>,
}

impl Half {
    fn fail(&mut self, reason: DropReason) {
        self.failures.push(Failure::silent(reason));
    }
}

impl ReferenceNat {
    /// The outbound half. `shown` is the source endpoint of what the NAT sent, if it sent something.
    pub(super) fn outbound_half(&self, flow: Flow, shown: Option<Endpoint>) -> Half {
        let key = (flow.protocol, flow.source, flow.destination);
        if let Some(session) = self.tables.sessions.get(&key) {
            return existing(session, session.external, Direction::Outbound, flow.flags);
        }
        if self.is_bare(flow.protocol) {
            return self.outbound_bare(flow, shown);
        }
        if let Some(guest) = self.tables.late_guest(key) {
            return self.outbound_of_late_guest(flow, guest, shown);
        }
        self.new_outbound(flow, shown)
    }

    fn new_outbound(&self, flow: Flow, shown: Option<Endpoint>) -> Half {
        let mut half = Half::default();
        if let Some(reason) = flow.objection() {
            half.fail(reason);
            return half;
        }
        self.sessions_full(0, Answer::Due(self.exhausted()), &mut half);
        let forwarded = self.forward_externals(flow);
        if !forwarded.is_empty() {
            self.perhaps_mappings_full(&mut half);
        }
        let certain = forwarded.iter().any(|&(external, sole)| sole && !self.is_late(flow, external));
        half.choices = forwarded.into_iter().map(|(external, _)| created(flow, external, None, None)).collect();
        if !certain {
            if let Some((id, mapping)) = self.tables.mapping_of(flow.protocol, flow.source, self.scope(flow.destination)) {
                half.choices.push(created(flow, mapping.external, Some(id), None));
            } else {
                let others = half.choices.len();
                self.new_mapping(flow, shown, &mut half);
                let failed = half.choices.len() == others;
                half.failures.iter_mut().filter(|_| others > 0 && failed).for_each(|failure| failure.certain = false);
            }
        }
        narrow(half, shown.filter(|_| flow.protocol != Protocol::Icmp))
    }

    /// A guest may be answered that is there no more: the session is the guest's then, or a new one.
    fn outbound_of_late_guest(&self, flow: Flow, guest: &Session, shown: Option<Endpoint>) -> Half {
        let mut half = self.new_outbound(flow, shown);
        half.failures.iter_mut().for_each(|failure| failure.certain = false);
        half.complaint = None;
        if flow.protocol == Protocol::Tcp && flow.flags & crate::builder::RST != 0 {
            let effect = Effect::Late { guest: Box::new(guest.clone()) };
            half.choices.push(Choice { endpoint: guest.external, effect, key: Tracked::Session(guest.key()) });
            return half;
        }
        let states = guest.variants.iter().flat_map(|variant| match flow.protocol {
            Protocol::Tcp => tcp::successors(variant.state, Direction::Outbound, flow.flags),
            Protocol::Udp | Protocol::Icmp => vec![SessionState::Unreplied, SessionState::Replied],
        });
        let fresh = (flow.protocol == Protocol::Tcp).then(|| tcp::opened(Direction::Outbound));
        let variants = states.chain(fresh).map(|state| Variant { state, last_seen: 0 }).collect();
        let (id, mapping) = match self.tables.mapping_at(guest.protocol, guest.external) {
            Some((id, _)) => (Some(id), None),
            None => (None, self.tables.late_mapping_at(guest.protocol, guest.external)),
        };
        // A new mapping may have the same endpoint by chance. Whom it is for, the view shows.
        let made = half.choices.iter().find(|choice| choice.endpoint == guest.external).map(|choice| choice.effect.clone());
        let made = if let Some(Effect::Create { mapping: Some(made), .. }) = made { Some(made) } else { None };
        let mapping =
            made.map(|made| Mapping { perhaps_for: mapping.map(|mapping| OtherScope(mapping.scope)), ..made }).or(mapping);
        let session = Session { guest: false, outbound: None, counted: false, mapping: id, variants, ..guest.clone() };
        half.choices.retain(|choice| choice.endpoint != guest.external);
        let effect = Effect::Create { session: Box::new(session), mapping };
        half.choices.push(Choice { endpoint: guest.external, effect, key: Tracked::Session(guest.key()) });
        narrow(half, shown.filter(|_| flow.protocol != Protocol::Icmp))
    }

    /// "No resources": RFC 5508, REQ-8; RFC 6888, REQ-11.
    pub(super) fn exhausted(&self) -> Reply {
        Reply { kind: 3, code: self.policy.icmp_errors.exhausted_code, mtu: 0 }
    }

    pub(super) fn sessions_room(&self, more: usize) -> Room {
        room(self.tables.sessions.len() + more, self.tables.late_sessions.len(), self.limits.sessions)
    }

    pub(super) fn sessions_full(&self, more: usize, answer: Answer, half: &mut Half) {
        let room = self.sessions_room(more);
        if room != Room::Free {
            half.failures.push(Failure { reasons: vec![DropReason::SessionsFull], answer, certain: room == Room::Full });
        }
    }

    /// Forwards' sessions may need a mapping record of their own: the tables' layout is the NAT's business.
    fn mappings_in_all(&self) -> (usize, usize) {
        let statics = |sessions: &mut dyn Iterator<Item = &Session>| {
            sessions.filter(|s| s.mapping.is_none()).map(|s| (s.protocol, s.internal, s.external)).collect::<BTreeSet<_>>().len()
        };
        let late = self.tables.late_mappings.len() + statics(&mut self.tables.late_sessions.iter());
        (self.tables.mappings.len(), late + statics(&mut self.tables.sessions.values()))
    }

    pub(super) fn perhaps_mappings_full(&self, half: &mut Half) {
        let (live, late) = self.mappings_in_all();
        if live + late >= self.limits.mappings {
            let answer = Answer::Perhaps(self.exhausted());
            half.failures.push(Failure { reasons: vec![DropReason::MappingsFull], answer, certain: false });
        }
    }

    /// External endpoints of forwards whose server the source is, where no other session has that external endpoint and remote; and
    /// whether nothing else is right. Which of several servers a remote's packets are led to is the NAT's choice, and only that one
    /// speaks from there; and for a server of several forwards it may choose one that leads nowhere at present.
    pub(super) fn forward_externals(&self, flow: Flow) -> Vec<(Endpoint, bool)> {
        let mut found = Vec::new();
        let mut names = 0;
        for forward in self.policy.forwards.iter().filter(|forward| forward.protocol == flow.protocol) {
            for server in forward.servers.iter().filter(|server| server.address == flow.source.address) {
                let Some(nth) = flow.source.port.checked_sub(server.port).filter(|nth| *nth <= forward.last - forward.first) else {
                    continue;
                };
                names += 1;
                let Some(address) = self.policy.externals[forward.external].address else { continue };
                let external = Endpoint { address, port: forward.first + nth };
                let is_free = self.tables.by_external(flow.protocol, external, flow.destination).is_none();
                if is_free && !found.iter().any(|&(other, _)| other == external) {
                    found.push((external, forward.servers.len() == 1));
                }
            }
        }
        found.into_iter().map(|(external, sole)| (external, sole && names == 1)).collect()
    }

    /// Whether a session that has ended, but was not swept yet, may still keep an external endpoint from that remote.
    pub(super) fn is_late(&self, flow: Flow, external: Endpoint) -> bool {
        let late = &self.tables.late_sessions;
        late.iter().any(|s| (s.protocol, s.external, s.remote) == (flow.protocol, external, flow.destination))
    }

    /// What of the remote endpoint a mapping is for (RFC 4787, section 4.1).
    fn scope(&self, remote: Endpoint) -> Option<Endpoint> {
        match self.policy.mapping {
            MappingBehaviour::EndpointIndependent => None,
            MappingBehaviour::AddressDependent => Some(Endpoint { port: 0, ..remote }),
            MappingBehaviour::AddressAndPortDependent => Some(remote),
        }
    }

    /// A mapping that does not exist yet, with its first session.
    fn new_mapping(&self, flow: Flow, shown: Option<Endpoint>, half: &mut Half) {
        let (Flow { protocol, source: internal, .. }, scope) = (flow, self.scope(flow.destination));
        let mapping = |external| Mapping { protocol, internal, external, scope, perhaps_for: None };
        let externals = self.new_externals(flow, shown, half);
        half.choices.extend(externals.into_iter().map(|external| created(flow, external, None, Some(mapping(external)))));
    }

    /// The external endpoint of a mapping that does not exist yet: the NAT's to choose, and ours to object to.
    pub(super) fn new_externals(&self, flow: Flow, shown: Option<Endpoint>, half: &mut Half) -> Vec<Endpoint> {
        let answer = Answer::Due(self.exhausted());
        let bare = self.is_bare(flow.protocol);
        let (live, late) = self.mappings_in_all();
        let of_kind = if bare { self.tables.bare_room(self.limits.bare_mappings) } else { Room::Free };
        let records = room(live, late, self.limits.mappings).max(of_kind);
        if records != Room::Free {
            half.failures.push(Failure { reasons: vec![DropReason::MappingsFull], answer, certain: records == Room::Full });
        }
        // Until the sweep, an internal endpoint may be held to a mapping whose external address is gone. But to no bare one.
        let mut held =
            self.tables.late_mappings.iter().filter(|late| (late.protocol, late.internal) == (flow.protocol, flow.source));
        if !bare && held.any(|late| !self.is_external(late.external.address)) {
            half.failures.push(Failure { reasons: vec![DropReason::NoExternalAddress], answer, certain: false });
        }
        let none = self.shares.is_empty_for(flow.source.address);
        if none {
            let reasons = vec![DropReason::NoExternalAddress, DropReason::PortsExhausted];
            half.failures.push(Failure { reasons, answer, certain: true });
            return Vec::new();
        }
        let ports = self.tables.port_room(&self.policy, &self.shares, flow.protocol, flow.source.address);
        if ports != Room::Free {
            // Until the sweep, an internal address may be held to an external one that is gone.
            let gone = self.tables.late_mappings.iter().any(|late| !self.is_external(late.external.address));
            let reasons = [DropReason::PortsExhausted].into_iter().chain(gone.then_some(DropReason::NoExternalAddress)).collect();
            half.failures.push(Failure { reasons, answer, certain: ports == Room::Full });
        }
        if records == Room::Full || ports == Room::Full {
            return Vec::new();
        }
        let Some(external) = shown.filter(|_| flow.protocol != Protocol::Icmp) else { return self.representatives(flow, shown) };
        match self.tables.objection(&self.policy, &self.shares, flow.protocol, flow.source, external) {
            None => vec![external],
            Some(why) => {
                half.complaint = Some(format!("{external:?} may not be a new mapping's: {why}"));
                Vec::new()
            }
        }
    }

    /// Enough legal external endpoints to see each thing that a choice can lead to: those that something refers to already, the shown
    /// one, and one other for each address.
    fn representatives(&self, flow: Flow, shown: Option<Endpoint>) -> Vec<Endpoint> {
        let known = self.tables.sessions.values().flat_map(|session| [session.remote.port, session.external.port]);
        let ours = [flow.source.port, flow.destination.port];
        let named: BTreeSet<u16> = known.chain(shown.map(|shown| shown.port)).chain(ours).collect();
        let legal = |external: &Endpoint| {
            self.tables.objection(&self.policy, &self.shares, flow.protocol, flow.source, *external).is_none()
        };
        let mut found = Vec::new();
        for slot in &self.policy.externals {
            let Some(address) = slot.address else { continue };
            let at = |port| Endpoint { address, port };
            found.extend(named.iter().map(|&port| at(port)).filter(|external| legal(external)));
            let other = slot.ports.ranges().flat_map(|(first, last)| first..=last).filter(|port| !named.contains(port));
            found.extend(other.map(at).find(|external| legal(external)));
        }
        found
    }

    /// The inbound half. `made` sessions and mappings come into being in the same packet's outbound half (hairpinning); `shown` is
    /// the destination endpoint of what the NAT sent. On a shared address, what nothing claims is the box's own; where a forward or
    /// a mapping has the port, what starts no session is dropped.
    pub(super) fn inbound_half(&self, flow: Flow, made: usize, shown: Option<Endpoint>) -> Half {
        let external = flow.destination;
        if let Some(session) = self.tables.by_external(flow.protocol, external, flow.source) {
            return existing(session, session.internal, Direction::Inbound, flow.flags);
        }
        if self.is_bare(flow.protocol) {
            return self.inbound_bare(flow, made, shown);
        }
        let mut half = self.new_inbound(flow, made);
        if let Some(guest) = self.tables.late_guest_at(flow.protocol, external, flow.source) {
            half.failures.iter_mut().for_each(|failure| failure.certain = false);
            let effect = Effect::Late { guest: Box::new(guest.clone()) };
            half.choices.retain(|choice| choice.endpoint != guest.internal);
            half.choices.push(Choice { endpoint: guest.internal, effect, key: Tracked::Session(guest.key()) });
        }
        narrow(half, shown)
    }

    fn new_inbound(&self, flow: Flow, made: usize) -> Half {
        let external = flow.destination;
        let mut half = Half::default();
        if let Some(forward) = self.forward_at(flow.protocol, external) {
            self.inbound_to_forward(flow, forward, made, &mut half);
        } else if let Some((id, mapping)) = self.tables.mapping_at(flow.protocol, external) {
            self.inbound_to_mapping(flow, id, mapping, made, &mut half);
        } else {
            half.punt = self.is_shared(external.address);
            if !half.punt {
                half.failures.push(Failure { certain: false, ..Failure::silent(DropReason::NoMapping) });
            }
            if let Some(mapping) = self.tables.late_mapping_at(flow.protocol, external) {
                self.inbound_to_late_mapping(flow, mapping, made, &mut half);
            }
        }
        half
    }

    /// The forward that an external endpoint belongs to.
    pub(super) fn forward_at(&self, protocol: Protocol, external: Endpoint) -> Option<&PortForward> {
        forward_at(&self.policy, protocol, external)
    }

    pub(super) fn inbound_to_forward(&self, flow: Flow, forward: &PortForward, made: usize, half: &mut Half) {
        if let Some(reason) = flow.objection() {
            half.fail(reason);
            return;
        }
        self.sessions_full(made, Answer::Perhaps(self.exhausted()), half);
        self.perhaps_mappings_full(half);
        for server in &forward.servers {
            let internal = Endpoint { port: server.port + (flow.destination.port - forward.first), ..*server };
            if self.tables.sessions.contains_key(&(flow.protocol, internal, flow.source)) {
                let reasons = vec![DropReason::SessionConflict];
                half.failures.push(Failure { reasons, answer: Answer::Silent, certain: false });
            } else {
                half.choices.push(admitted(flow, internal, Origin::Forward, None, None));
            }
        }
    }

    /// Whether a session that has ended, but was not swept yet, may still let in its remote address.
    fn late_lets_in(&self, flow: Flow) -> bool {
        let known = |late: &&Session| !late.guest && (late.protocol, late.external) == (flow.protocol, flow.destination);
        self.tables.late_sessions.iter().filter(known).any(|late| late.remote.address == flow.source.address)
    }

    /// A mapping whose last session has ended may let in until it is swept.
    fn inbound_to_late_mapping(&self, flow: Flow, mapping: Mapping, made: usize, half: &mut Half) {
        let conflict = self.tables.sessions.contains_key(&(flow.protocol, flow.receiver(mapping.internal), flow.source));
        let mut reasons = vec![DropReason::NoMapping, DropReason::Filtered];
        reasons.extend(conflict.then_some(DropReason::SessionConflict));
        reasons.extend(flow.objection());
        half.failures.push(Failure { reasons, answer: Answer::Silent, certain: false });
        let starts = flow.objection().is_none() || flow.protocol == Protocol::Icmp;
        let lets_in = match self.filtering(flow.protocol) {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.late_lets_in(flow),
            Filtering::AddressAndPortDependent => false,
        };
        if starts && !conflict && lets_in {
            self.sessions_full(made, Answer::Perhaps(self.exhausted()), half);
            let mut choice = admitted(flow, flow.receiver(mapping.internal), Origin::Filter, None, None);
            if !self.policy.inbound_refresh
                && let Effect::Create { session, .. } = choice.effect
            {
                choice.effect = Effect::Late { guest: Box::new(Session { guest: true, ..*session }) };
            } else if let Effect::Create { mapping: revived, .. } = &mut choice.effect {
                *revived = Some(mapping);
            }
            half.choices.push(choice);
        }
    }

    fn filtering(&self, protocol: Protocol) -> Filtering {
        if protocol == Protocol::Tcp { self.policy.filtering_tcp } else { self.policy.filtering_udp }
    }

    fn inbound_to_mapping(&self, flow: Flow, id: u32, mapping: Mapping, made: usize, half: &mut Half) {
        let mut known = self.tables.sessions.values().filter(|session| session.mapping == Some(id) && !session.guest);
        let queried = Endpoint { port: 0, ..flow.source };
        let lets_in = match self.filtering(flow.protocol) {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => known.any(|session| session.remote.address == flow.source.address),
            // Towards a query's remote there is no port that the filter could go by.
            Filtering::AddressAndPortDependent => flow.is_turned_query() && known.any(|session| session.remote == queried),
        };
        let perhaps = !lets_in && self.filtering(flow.protocol) == Filtering::AddressDependent && self.late_lets_in(flow);
        if !lets_in {
            half.failures.push(Failure { certain: !perhaps, ..Failure::silent(DropReason::Filtered) });
        }
        match flow.objection() {
            Some(reason) if flow.protocol == Protocol::Icmp => {
                let reasons = vec![reason, DropReason::Filtered];
                half.failures.push(Failure { reasons, answer: Answer::Silent, certain: false });
                half.punt = self.is_shared(flow.destination.address);
            }
            Some(reason) => {
                half.fail(reason);
            }
            None => {}
        }
        let conflict = self.tables.sessions.contains_key(&(flow.protocol, flow.receiver(mapping.internal), flow.source));
        if conflict {
            half.fail(DropReason::SessionConflict);
        }
        self.sessions_full(made, Answer::Perhaps(self.exhausted()), half);
        if (lets_in || perhaps) && !conflict {
            half.choices.push(admitted(flow, flow.receiver(mapping.internal), Origin::Filter, Some(id), None));
        }
    }
}

/// The forward of a policy that an external endpoint belongs to.
pub(super) fn forward_at(policy: &Policy, protocol: Protocol, external: Endpoint) -> Option<&PortForward> {
    policy.forwards.iter().find(|forward| {
        forward.protocol == protocol
            && policy.externals[forward.external].address == Some(external.address)
            && (forward.first..=forward.last).contains(&external.port)
    })
}

/// Keeps the choices that the NAT's output shows.
pub(super) fn narrow(mut half: Half, shown: Option<Endpoint>) -> Half {
    if half.failures.iter().any(|failure| failure.certain) {
        half.choices.clear();
    }
    if let Some(shown) = shown.filter(|shown| half.choices.iter().any(|choice| choice.endpoint == *shown)) {
        half.choices.retain(|choice| choice.endpoint == shown);
    }
    half
}

/// A packet of a session that exists.
pub(super) fn existing(session: &Session, endpoint: Endpoint, direction: Direction, flags: u8) -> Half {
    let effect = Effect::Advance { key: session.key(), direction, flags };
    Half { choices: vec![Choice { endpoint, effect, key: Tracked::Session(session.key()) }], ..Half::default() }
}

pub(super) fn created(flow: Flow, external: Endpoint, id: Option<u32>, mapping: Option<Mapping>) -> Choice {
    let ends = (flow.source, external, flow.destination);
    made(flow, ends, Origin::Inside, id, mapping, external)
}

pub(super) fn admitted(flow: Flow, internal: Endpoint, origin: Origin, id: Option<u32>, revived: Option<Mapping>) -> Choice {
    let ends = (internal, flow.destination, flow.source);
    made(flow, ends, origin, id, revived, internal)
}

fn made(
    flow: Flow,
    (internal, external, remote): (Endpoint, Endpoint, Endpoint),
    origin: Origin,
    id: Option<u32>,
    mapping: Option<Mapping>,
    endpoint: Endpoint,
) -> Choice {
    let outbound = origin == Origin::Inside;
    let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
    let state = if flow.protocol == Protocol::Tcp { tcp::opened(direction) } else { SessionState::Unreplied };
    let session = Session {
        protocol: flow.protocol,
        internal,
        external,
        remote,
        origin,
        mapping: id,
        guest: origin == Origin::Filter,
        variants: vec![Variant { state, last_seen: 0 }],
        outbound: Some(outbound),
        packets: (u32::from(outbound), u32::from(!outbound)),
        counted: true,
    };
    let key = Tracked::Session(session.key());
    Choice { endpoint, effect: Effect::Create { session: Box::new(session), mapping }, key }
}
