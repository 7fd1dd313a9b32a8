//! The slow path: whether a first packet may make a session, and which. It plans; nothing changes until a plan is committed.
//!
//! Knows policy and state, no bytes. Called when no session is found. Invariant (I): a plan that is not committed has changed nothing.
//! (II): no two live mappings share an external endpoint. (III): live mappings are never ended to make room (RFC 6888, REQ-11D).
//! Sources: RFC 4787 sections 4 and 5, RFC 5382, RFC 5508 section 3. Tests: the reference NAT, `tests/`.

use std::collections::VecDeque;

use ahash::RandomState;
use portcullis_steering::{Owners, WorkerId};

use crate::forward;
use crate::policy::{Endpoint, External, Filtering, Forward, Policy, Protocol};
use crate::ports::{PortSpace, Wish};
use crate::record::{NewSession, flag};
use crate::state::{State, Under};
use crate::table::MappingKey;
use crate::tcp::{self, Direction};
use crate::time::Tick;
use crate::verdict::DropReason;
use crate::view::SessionState;

/// A flow as its first packet shows it, on one side of the translation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) protocol: Protocol,
    /// The endpoint that is translated: internal for outbound, external for inbound packets.
    pub(crate) ours: Endpoint,
    /// The other endpoint; of an ICMP query the port is zero, but in the second half of a hairpin: there it is the sender's external identifier.
    pub(crate) remote: Endpoint,
    /// Whether the packet may begin a session: a SYN, a query, any UDP packet.
    pub(crate) opens: bool,
}

impl Flow {
    /// Whether it is an ICMP query's, in the second half of a hairpin.
    fn is_hairpinned_query(&self) -> bool {
        self.protocol == Protocol::Icmp && self.remote.port != 0
    }
}

/// A session that may be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) session: NewSession,
    pub(crate) under: Under,
}

/// Random numbers for the choice of ports and addresses: a keyed hash of a counter, hard to guess without the key (RFC 6056). Workers
/// that have the same key draw different ones all the same.
pub(crate) struct Choice {
    /// The same in all workers: servers are drawn with them.
    pub(crate) keys: RandomState,
    me: WorkerId,
    drawn: u64,
    /// Numbers that were looked at before they are drawn, in their order.
    foreseen: VecDeque<u64>,
    /// Numbers that a test wants drawn next.
    script: VecDeque<u64>,
}

impl Choice {
    pub(crate) fn new(keys: RandomState, me: WorkerId) -> Self {
        Self { keys, me, drawn: 0, foreseen: VecDeque::new(), script: VecDeque::new() }
    }

    pub(crate) fn script(&mut self, draws: impl IntoIterator<Item = u64>) {
        self.script.clear();
        self.script.extend(draws);
    }

    fn draw(&mut self) -> u64 {
        self.script.pop_front().or_else(|| self.foreseen.pop_front()).unwrap_or_else(|| self.next())
    }

    fn next(&mut self) -> u64 {
        self.drawn += 1;
        self.keys.hash_one((self.me, self.drawn))
    }

    /// Which number is drawn next, counted from the first.
    pub(crate) fn position(&self) -> u64 {
        self.drawn - self.foreseen.len() as u64
    }

    /// The number of that position, if it was not drawn yet; none where a test says what is drawn.
    pub(crate) fn foresee(&mut self, position: u64) -> Option<u64> {
        if !self.script.is_empty() {
            return None;
        }
        let others = position.checked_sub(self.position())? as usize;
        while self.foreseen.len() <= others {
            let next = self.next();
            self.foreseen.push_back(next);
        }
        self.foreseen.get(others).copied()
    }

    /// Where the search for a free port begins: at an allowed port, each as likely as another. A script says it as it is.
    fn draw_port(&mut self, space: &PortSpace<'_>, wish: Wish) -> Option<u16> {
        if self.script.is_empty() { space.draw(port_part(self.draw()), wish) } else { Some(self.draw() as u16) }
    }
}

/// Of a drawn number, what a port is drawn by.
pub(crate) const fn port_part(drawn: u64) -> u32 {
    (drawn >> 32) as u32
}

/// What the planning looks at.
pub(crate) struct Planner<'a, 'm> {
    pub(crate) policy: &'a Policy,
    pub(crate) state: &'a State<'m>,
    pub(crate) choice: &'a mut Choice,
    pub(crate) owners: &'a Owners,
    pub(crate) me: WorkerId,
}

impl Planner<'_, '_> {
    /// The session of a first packet from inside.
    pub(crate) fn outbound(&mut self, flow: &Flow) -> Result<Plan, DropReason> {
        if !flow.opens {
            return Err(not_opening(flow.protocol));
        }
        let is_bare = self.state.keeps_bare(flow.protocol);
        let has_room = self.state.sessions.records.has_room(1);
        if !is_bare && !has_room {
            return Err(DropReason::SessionsFull);
        }
        if !self.policy.forwards.is_empty()
            && let Some(plan) = self.by_a_forward(flow)
        {
            return if has_room { Ok(plan) } else { Err(DropReason::SessionsFull) };
        }
        let under = if is_bare {
            Under::NewBare(self.state.bares.hash_of(flow.ours))
        } else {
            let key = mapping_key(self.policy, flow);
            let hash = self.state.mappings.hash(&key);
            if let Some(holder) = self.state.mappings.find(&self.state.sessions, &key, hash) {
                // The mapping's address may be gone while the sweep has not met it: until then its endpoint cannot have another one.
                let (slot, external) = self.state.external_held_by(holder).ok_or(DropReason::NoExternalAddress)?;
                return Ok(self.outbound_plan(flow, slot, external, Under::Held(holder)));
            }
            Under::NewMapping(self.policy.mapping, hash)
        };
        self.new_mapping(flow, under)
    }

    /// The session of a first packet to an external endpoint.
    pub(crate) fn inbound(&mut self, flow: &Flow, slot: u16, now: Tick) -> Result<Plan, DropReason> {
        let plan = if let Some(forward) = forward::of_port(self.policy, slot, flow.protocol, flow.ours.port) {
            self.to_a_server(flow, forward, slot).ok_or(DropReason::NoMapping)?
        } else {
            self.to_a_mapping(flow, slot, now)?
        };
        if !flow.opens {
            return Err(not_opening(flow.protocol));
        }
        if !self.state.sessions.records.has_room(1) {
            return Err(DropReason::SessionsFull);
        }
        Ok(plan)
    }

    /// Whether a forward or a mapping has an external endpoint.
    pub(crate) fn is_claimed(&self, protocol: Protocol, external: Endpoint, slot: u16) -> bool {
        forward::of_port(self.policy, slot, protocol, external.port).is_some()
            || self.state.holder_of(slot, protocol, external).is_some()
    }

    /// A server behind a forward speaks first: from the endpoint that its forward has, if the forward leads this remote to it, and if
    /// that is free towards this remote.
    #[inline]
    pub(crate) fn by_a_forward(&self, flow: &Flow) -> Option<Plan> {
        let keys = &self.choice.keys;
        let mut of_protocol = self.policy.forwards.iter().filter(|forward| forward.protocol == flow.protocol);
        let leads_here = |forward| Some((forward, forward::port_of(forward, flow.ours, flow.remote, keys)?));
        let (forward, port) = of_protocol.find_map(leads_here)?;
        let slot = forward.external as u16;
        let address = self.state.slots().get(forward.external)?.address?;
        let is_free = self.state.sessions.find_inbound(flow.protocol, (self.state.outer(slot), port), flow.remote).is_none();
        is_free.then(|| self.outbound_plan(flow, slot, Endpoint { address, port }, Under::Forward))
    }

    fn new_mapping(&mut self, flow: &Flow, under: Under) -> Result<Plan, DropReason> {
        if !self.state.has_room_for_mapping(flow.protocol) {
            return Err(DropReason::MappingsFull);
        }
        let slot = self.slot_for(flow)?;
        let address = self.state.address_of(slot).ok_or(DropReason::NoExternalAddress)?;
        let space = self.state.space(slot, flow.protocol);
        let wish = Wish::of(flow.protocol, flow.ours.port, self.policy.port_parity);
        let start = self.choice.draw_port(space, wish);
        let port = start.and_then(|start| space.free_port(start, wish)).ok_or(DropReason::PortsExhausted)?;
        debug_assert_eq!(self.owners.of_external(address, port), self.me, "a worker allocates only what it owns");
        Ok(self.outbound_plan(flow, slot, Endpoint { address, port }, under))
    }

    /// The slot of the subscriber's external address: the one that it has, or any that has a free port.
    fn slot_for(&mut self, flow: &Flow) -> Result<u16, DropReason> {
        let slots = self.state.slots();
        if let Some(slot) = self.state.subscribers.slot_of(flow.ours.address)
            && slots[usize::from(slot)].address.is_some()
        {
            return Ok(slot);
        }
        let start = self.choice.draw() as usize;
        let mut with_address =
            (0..slots.len()).map(|step| (start.wrapping_add(step)) % slots.len()).filter(|&slot| slots[slot].address.is_some());
        let has_port = |slot: &usize| self.state.space(*slot as u16, flow.protocol).has_free();
        match with_address.clone().find(has_port) {
            Some(slot) => Ok(slot as u16),
            None if with_address.next().is_some() => Err(DropReason::PortsExhausted),
            None => Err(DropReason::NoExternalAddress),
        }
    }

    fn outbound_plan(&self, flow: &Flow, slot: u16, external: Endpoint, under: Under) -> Plan {
        let state = first_state(flow.protocol, Direction::Outbound);
        let flags = flag::OUTBOUND | self.remote_flag(flow.protocol) | flag_of(under);
        let (protocol, internal, remote) = (flow.protocol, flow.ours, flow.remote);
        Plan { session: NewSession { protocol, internal, external, remote, slot, flags, state }, under }
    }

    /// A session to the server that a forward leads the remote to.
    fn to_a_server(&self, flow: &Flow, forward: &Forward, slot: u16) -> Option<Plan> {
        let server = forward::server(forward, flow.ours.port, flow.remote, &self.choice.keys)?;
        Some(inbound_plan(flow, server, slot, Under::Forward, flag_of(Under::Forward)))
    }

    /// A session under a mapping, if its filter lets the remote in (RFC 4787, section 5).
    fn to_a_mapping(&self, flow: &Flow, slot: u16, now: Tick) -> Result<Plan, DropReason> {
        let holder = self.state.holder_of(slot, flow.protocol, flow.ours);
        let holder = holder.filter(|&holder| self.state.lives(holder, now)).ok_or(DropReason::NoMapping)?;
        let admitted = match filtering(self.policy, flow.protocol) {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.state.has_remote(holder, flow.remote.address),
            Filtering::AddressAndPortDependent => flow.is_hairpinned_query() && self.has_queried(flow, slot, now),
        };
        if !admitted {
            return Err(DropReason::Filtered);
        }
        let mapped = self.state.internal_held_by(holder);
        // The receiver of a hairpinned query sees the sender's external identifier, so that its answers to two senders differ.
        let internal = if flow.is_hairpinned_query() { Endpoint { port: flow.remote.port, ..mapped } } else { mapped };
        let flags = flag::ADMITTED | self.remote_flag(flow.protocol);
        // RFC 7857, section 7: who is let in keeps the mapping alive only where that is configured, or when the inside answers.
        let under = if self.policy.inbound_refresh { Under::Held(holder) } else { Under::Guest };
        Ok(inbound_plan(flow, internal, slot, under, flags))
    }

    /// Whether the mapping that a hairpinned query is for has queried the sender's address: a remote has no port that a filter could ask for.
    fn has_queried(&self, flow: &Flow, slot: u16, now: Tick) -> bool {
        let (outer, remote) = (self.state.outer(slot), Endpoint { port: 0, ..flow.remote });
        let sessions = &self.state.sessions;
        let number = sessions.find_inbound(flow.protocol, (outer, flow.ours.port), remote);
        number.is_some_and(|number| self.state.expires_in(sessions.records.get(number), now) > 0)
    }

    fn remote_flag(&self, protocol: Protocol) -> u8 {
        match filtering(self.policy, protocol) {
            Filtering::AddressDependent => flag::REMOTE_COUNTED,
            Filtering::EndpointIndependent | Filtering::AddressAndPortDependent => 0,
        }
    }
}

/// The key of the mapping that a flow from inside comes under.
pub(crate) fn mapping_key(policy: &Policy, flow: &Flow) -> MappingKey {
    MappingKey { protocol: flow.protocol, internal: flow.ours, scope: policy.mapping.scope(flow.remote) }
}

fn inbound_plan(flow: &Flow, internal: Endpoint, slot: u16, under: Under, flags: u8) -> Plan {
    let state = first_state(flow.protocol, Direction::Inbound);
    let (protocol, external, remote) = (flow.protocol, flow.ours, flow.remote);
    Plan { session: NewSession { protocol, internal, external, remote, slot, flags, state }, under }
}

/// The flag of a session that comes by its external endpoint so.
const fn flag_of(under: Under) -> u8 {
    match under {
        Under::Forward => flag::FORWARDED,
        Under::Held(_) | Under::Guest | Under::NewMapping(..) | Under::NewBare(_) => 0,
    }
}

/// The rules of an external address.
pub(crate) fn external_of(policy: &Policy, slot: u16) -> Option<&External> {
    policy.externals.get(usize::from(slot))
}

fn not_opening(protocol: Protocol) -> DropReason {
    match protocol {
        Protocol::Tcp => DropReason::TcpNotSyn,
        Protocol::Icmp | Protocol::Udp => DropReason::NoMapping,
    }
}

fn first_state(protocol: Protocol, direction: Direction) -> SessionState {
    match protocol {
        Protocol::Tcp => tcp::opened(direction),
        Protocol::Icmp | Protocol::Udp => SessionState::Unreplied,
    }
}

fn filtering(policy: &Policy, protocol: Protocol) -> Filtering {
    match protocol {
        Protocol::Tcp => policy.filtering_tcp,
        Protocol::Icmp | Protocol::Udp => policy.filtering_udp,
    }
}
