//! Steps 5 to 7 of packets with a transport header: look up, establish, advance and rewrite, for the three ways through.
//!
//! Knows the order of the checks; the slow path is `establish`. Invariant: everything that can refuse the packet comes before the first
//! change to a table; then nothing refuses it any more. One deviation, for hole punching: an outbound half that a filter stops at its
//! second half is kept, as it would be if the other endpoint were behind another NAT (RFC 4787, REQ-9; RFC 5128, section 3.3).

use portcullis_wire::packet::Fragment;

use crate::arrival::Arrival;
use crate::counters::Counter;
use crate::establish::{self, Flow, Plan, Planner};
use crate::flow::{self, Tuple};
use crate::fragment::{Followed, FragmentKey};
use crate::leave;
use crate::nat::{Decision, Nat, Packet, Way};
use crate::path::Path;
use crate::policy::{Endpoint, Protocol, Side};
use crate::record::{Session, flag};
use crate::refusal::{self, Refusal};
use crate::rewrite::Rewrite;
use crate::tcp::{self, Direction, Flags};
use crate::time::Tick;
use crate::verdict::{DropReason, HandOffCause, Verdict};
use crate::view::SessionState;

/// A session to use: one that is there, or one that is made once nothing can refuse the packet any more.
#[derive(Clone, Copy, Debug)]
enum Chosen {
    Found(u32),
    Planned(Plan),
}

impl Nat<'_> {
    /// The way of a packet that has a flow of its own.
    pub(crate) fn translate(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        let slot = self.state.slot_of(arrival.destination);
        let tuple = match flow::identify(packet.frame(), arrival) {
            Ok(tuple) => tuple,
            Err(reason) => return Err(self.unclaimed(reason, slot)),
        };
        let (ours, _) = match arrival.side {
            Side::Inside => tuple.outbound(),
            Side::Outside => tuple.inbound(),
        };
        self.own(arrival.side, ours, HandOffCause::Misplaced)?;
        match (arrival.side, slot) {
            (Side::Inside, None) => self.translate_outbound(packet, arrival, &tuple, now),
            (Side::Inside, Some(slot)) => self.translate_hairpin(packet, arrival, &tuple, slot, now),
            (Side::Outside, Some(slot)) => self.translate_inbound(packet, arrival, &tuple, slot, now),
            (Side::Outside, None) => Err(Refusal::Drop(DropReason::WrongSide)),
        }
    }

    fn translate_outbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, tuple: &Tuple, now: Tick) -> Decision {
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let path = leave::path_towards(&mut self.paths, &self.network, arrival.destination, Side::Outside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        let chosen = self.choose_outbound(tuple, now)?;
        self.check_fragment(packet.frame(), arrival)?;
        let number = self.settle(chosen, now)?;
        self.advance(number, Direction::Outbound, tuple.flags, now);
        let rewrite = Rewrite::outbound(self.session(number));
        self.finish(packet, arrival, &rewrite, &path, Way::Outbound, now)
    }

    fn translate_inbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, tuple: &Tuple, slot: u16, now: Tick) -> Decision {
        let (external, remote) = tuple.inbound();
        let chosen = match self.choose_inbound(tuple, external, remote, slot, now) {
            Ok(chosen) => chosen,
            Err(reason) => return Err(self.unclaimed(reason, Some(slot))),
        };
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let internal = self.internal_of(&chosen);
        let path = leave::path_towards(&mut self.paths, &self.network, internal.address, Side::Inside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        self.check_fragment(packet.frame(), arrival)?;
        let number = self.settle(chosen, now)?;
        self.advance(number, Direction::Inbound, tuple.flags, now);
        let rewrite = Rewrite::inbound(self.session(number));
        self.finish(packet, arrival, &rewrite, &path, Way::Inbound, now)
    }

    /// Out and in again: the receiver sees the sender's external endpoint (RFC 4787, REQ-9a).
    fn translate_hairpin(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, tuple: &Tuple, slot: u16, now: Tick) -> Decision {
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let out = match self.choose_outbound(tuple, now) {
            Ok(out) => out,
            // A connection of the host's, which shares the address, looks from here like one that never began.
            Err(Refusal::Drop(DropReason::TcpNotSyn)) if !self.planner().is_claimed(tuple.protocol, tuple.destination, slot) => {
                let is_the_hosts = self.unclaimed(DropReason::NoMapping, Some(slot)) == Refusal::Punt;
                return Err(if is_the_hosts { Refusal::Punt } else { Refusal::Drop(DropReason::TcpNotSyn) });
            }
            Err(Refusal::Drop(reason)) => return Err(self.unclaimed(reason, Some(slot))),
            Err(refusal) => return Err(refusal),
        };
        let sender = self.external_of(&out);
        let (external, remote) = match tuple.protocol {
            // The identifier that the outbound half gives is what the inbound half sees (RFC 7857, section 12).
            Protocol::Icmp => (Endpoint { port: sender.port, ..tuple.destination }, Endpoint { port: 0, ..sender }),
            Protocol::Tcp | Protocol::Udp => (tuple.destination, sender),
        };
        let back = match self.choose_inbound(tuple, external, remote, slot, now) {
            Ok(back) => back,
            Err(DropReason::Filtered) => {
                let number = self.settle(out, now)?;
                self.advance(number, Direction::Outbound, tuple.flags, now);
                return Err(Refusal::Drop(DropReason::Filtered));
            }
            Err(reason) => return Err(self.unclaimed(reason, Some(slot))),
        };
        self.check_pair(&out, &back)?;
        let internal = self.internal_of(&back);
        let path = leave::path_towards(&mut self.paths, &self.network, internal.address, Side::Inside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        self.check_fragment(packet.frame(), arrival)?;
        let out = self.settle(out, now)?;
        let back = self.settle(back, now)?;
        self.advance(out, Direction::Outbound, tuple.flags, now);
        self.advance(back, Direction::Inbound, tuple.flags, now);
        let rewrite = Rewrite::hairpin(self.session(out), self.session(back));
        self.finish(packet, arrival, &rewrite, &path, Way::Hairpin, now)
    }

    fn choose_outbound(&mut self, tuple: &Tuple, now: Tick) -> Result<Chosen, Refusal> {
        let (internal, remote) = tuple.outbound();
        if let Some(number) = self.state.outbound(tuple.protocol, internal, remote, now, &mut self.counters) {
            return Ok(Chosen::Found(number));
        }
        let flow = Flow { protocol: tuple.protocol, ours: internal, remote, opens: tuple.opens };
        let plan = self.planner().outbound(&flow).map_err(|reason| refusal::of_outbound(reason, &self.policy))?;
        // A forward that is gone may have left a session with the external endpoint that its port's new mapping has.
        let external = plan.session.external;
        if self.state.inbound(tuple.protocol, external, remote, now, &mut self.counters).is_some() {
            return Err(Refusal::Drop(DropReason::SessionConflict));
        }
        Ok(Chosen::Planned(plan))
    }

    fn choose_inbound(
        &mut self,
        tuple: &Tuple,
        external: Endpoint,
        remote: Endpoint,
        slot: u16,
        now: Tick,
    ) -> Result<Chosen, DropReason> {
        if let Some(number) = self.state.inbound(tuple.protocol, external, remote, now, &mut self.counters) {
            return Ok(Chosen::Found(number));
        }
        let flow = Flow { protocol: tuple.protocol, ours: external, remote, opens: tuple.opens };
        let plan = self.planner().inbound(&flow, slot)?;
        // What has ended is no conflict: this look-up takes it out. It never was under the plan's own mapping, whose sessions have
        // this external endpoint and would have been found above.
        let internal = plan.session.internal;
        if self.state.outbound(tuple.protocol, internal, remote, now, &mut self.counters).is_some() {
            return Err(DropReason::SessionConflict);
        }
        Ok(Chosen::Planned(plan))
    }

    fn planner(&mut self) -> Planner<'_, '_> {
        // The borrows of the fields are apart, which a method on `self.state` could not show.
        Planner { policy: &self.policy, state: &self.state, choice: &mut self.choice, owners: &self.owners, me: self.me }
    }

    /// Checks that both halves of a hairpin can be made together.
    fn check_pair(&self, out: &Chosen, back: &Chosen) -> Result<(), DropReason> {
        let (Chosen::Planned(out), Chosen::Planned(back)) = (out, back) else { return Ok(()) };
        if !self.state.sessions.records.has_room(2) {
            return Err(DropReason::SessionsFull);
        }
        let (one, other) = (&out.session, &back.session);
        // An endpoint that speaks to itself: both halves would be the same session.
        let is_same = one.remote == other.remote && (one.internal == other.internal || one.external == other.external);
        if is_same { Err(DropReason::SessionConflict) } else { Ok(()) }
    }

    /// A packet to an external address that nothing claims is the host's, where the host shares the address.
    pub(crate) fn unclaimed(&self, reason: DropReason, slot: Option<u16>) -> Refusal {
        let is_shared = slot.and_then(|slot| establish::external_of(&self.policy, slot)).is_some_and(|it| it.shared_with_host);
        let is_unknown = matches!(
            reason,
            DropReason::NoMapping | DropReason::IcmpNoSession | DropReason::UnsupportedIcmp | DropReason::UnsupportedProtocol
        );
        if is_shared && is_unknown { Refusal::Punt } else { Refusal::Drop(reason) }
    }

    fn internal_of(&self, chosen: &Chosen) -> Endpoint {
        match chosen {
            Chosen::Found(number) => self.session(*number).internal(),
            Chosen::Planned(plan) => plan.session.internal,
        }
    }

    fn external_of(&self, chosen: &Chosen) -> Endpoint {
        match chosen {
            Chosen::Found(number) => self.session(*number).external(),
            Chosen::Planned(plan) => plan.session.external,
        }
    }

    /// Makes a planned session. From here on the packet is not refused.
    fn settle(&mut self, chosen: Chosen, now: Tick) -> Result<u32, DropReason> {
        match chosen {
            Chosen::Found(number) => Ok(number),
            Chosen::Planned(plan) => {
                self.state.create(&plan.session, plan.under, now, &mut self.counters).map_err(|_| DropReason::SessionsFull)
            }
        }
    }

    pub(crate) fn session(&self, number: u32) -> &Session {
        self.state.sessions.records.get(number)
    }

    /// Step 7's bookkeeping: packets, state, and when it was last seen (RFC 4787, REQ-6).
    fn advance(&mut self, number: u32, direction: Direction, flags: Flags, now: Tick) {
        let refreshes_inbound = self.policy.inbound_refresh;
        let session = self.state.sessions.records.get_mut(number);
        let (count, other) = match direction {
            Direction::Outbound => (&mut session.packets_out, session.packets_in),
            Direction::Inbound => (&mut session.packets_in, session.packets_out),
        };
        *count = count.wrapping_add(1);
        let state = SessionState::from_number(session.state);
        let next = match state {
            SessionState::Unreplied if other > 0 => SessionState::Replied,
            SessionState::Unreplied | SessionState::Replied => state,
            _ => tcp::advance(state, direction, flags),
        };
        session.state = next as u8;
        // RFC 7857, section 7.1: to refuse what was let in does not keep the mapping alive either.
        let refuses = flags.rst && matches!(state, SessionState::SynReceived | SessionState::Reset);
        // RFC 7857, section 7: who was let in by the filter alone does not keep the mapping alive, unless configured.
        let by_outbound = direction == Direction::Outbound && !refuses;
        if by_outbound || refreshes_inbound || session.flags & flag::ADMITTED == 0 {
            session.last_seen = now.0;
        }
    }

    /// Rewrites, remembers for later fragments, and sends on its way.
    fn finish(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        rewrite: &Rewrite,
        path: &Path,
        way: Way,
        now: Tick,
    ) -> Decision {
        if arrival.layout.fragment() == Fragment::First {
            let followed = Followed { source: rewrite.source(), destination: rewrite.destination() };
            self.remember_fragment(packet.frame(), arrival, followed, now);
        }
        if rewrite.apply(packet.frame_mut(), &arrival.layout) {
            self.counters.count(Counter::ChecksumsCompleted);
        }
        self.send(packet, path, way)
    }

    /// The end of every way: the link-layer header and the count.
    pub(crate) fn send(&mut self, packet: &mut Packet<'_>, path: &Path, way: Way) -> Decision {
        let verdict = leave::by(packet, path).ok_or(DropReason::NoFrame)?;
        self.counters.count(way.counter());
        match verdict {
            Verdict::Hold { .. } => self.counters.count(Counter::Held),
            Verdict::Fragment { .. } => self.counters.count(Counter::Fragmented),
            Verdict::Transmit(_) | Verdict::Punt | Verdict::HandOff { .. } | Verdict::AwaitFirst(_) | Verdict::Drop(_) => {}
        }
        Ok(verdict)
    }
}

/// Fragments: the first one is remembered, the later ones follow it.
impl Nat<'_> {
    /// Checks that a first fragment can be remembered.
    fn check_fragment(&self, frame: &[u8], arrival: &Arrival) -> Result<(), DropReason> {
        if arrival.layout.fragment() != Fragment::First {
            return Ok(());
        }
        let has_room = fragment_key(frame, arrival).is_some_and(|key| self.fragments.has_room_for(&key));
        if has_room { Ok(()) } else { Err(DropReason::FragmentsFull) }
    }

    fn remember_fragment(&mut self, frame: &[u8], arrival: &Arrival, followed: Followed, now: Tick) {
        if let Some(key) = fragment_key(frame, arrival) {
            self.fragments.follow(key, followed, now);
            self.counters.count(Counter::Fragments);
        }
    }

    /// Gives a later fragment the addresses that its first one got.
    pub(crate) fn follow_fragment(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        let key = fragment_key(packet.frame(), arrival).ok_or(DropReason::Truncated)?;
        let slot = self.state.slot_of(arrival.destination);
        let followed = self.fragments.find(&key, now).ok_or_else(|| self.unclaimed_fragment(slot))?;
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let way = Way::of(arrival, slot.is_some()).ok_or(DropReason::WrongSide)?;
        let side = match way {
            Way::Outbound => Side::Outside,
            Way::Inbound | Way::Hairpin => Side::Inside,
        };
        let path = leave::path_towards(&mut self.paths, &self.network, followed.destination, side)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        if let Some(header) = arrival.layout.ipv4_mut(packet.frame_mut()) {
            crate::rewrite::addresses(header, followed.source, followed.destination);
        }
        self.counters.count(Counter::Fragments);
        self.send(packet, &path, way)
    }

    /// A later fragment whose first was not translated: where the host shares the address, the first was the host's.
    fn unclaimed_fragment(&self, slot: Option<u16>) -> Refusal {
        let is_shared = slot.and_then(|slot| establish::external_of(&self.policy, slot)).is_some_and(|it| it.shared_with_host);
        if is_shared { Refusal::Punt } else { Refusal::Drop(DropReason::FragmentWithoutFirst) }
    }
}

fn fragment_key(frame: &[u8], arrival: &Arrival) -> Option<FragmentKey> {
    let id = arrival.layout.ipv4(frame)?.id();
    let protocol = arrival.layout.protocol();
    Some(FragmentKey { source: arrival.source, destination: arrival.destination, id, protocol })
}
