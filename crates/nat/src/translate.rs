//! Steps 4 to 7 of packets with a transport header: own, look up, establish, advance and rewrite, outbound and inbound.
//!
//! Knows the order of the checks; the slow path is `establish`, out and in again is `hairpin`. Invariant: everything that can refuse the
//! packet comes before the first change to a table; then nothing refuses it any more.

use core::net::Ipv4Addr;

use portcullis_wire::packet::{Fragment, Layout, Transport};
use portcullis_wire::tcp::TcpFlags;

use crate::arrival::Arrival;
use crate::counters::Counter;
use crate::establish::{self, Flow, Plan, Planner};
use crate::flow::{self, Tuple};
use crate::forward;
use crate::leave;
use crate::nat::{Decision, Nat, Way};
use crate::packet::Packet;
use crate::path::Path;
use crate::policy::{Endpoint, Side};
use crate::record::{NewSession, Session};
use crate::refusal::{self, Refusal};
use crate::rewrite::Rewrite;
use crate::table::Entry;
use crate::tcp::Direction;
use crate::time::Tick;
use crate::verdict::{DropReason, Errand, HandOffCause, Verdict};

/// What a packet will go by: what is there, or what is made once nothing can refuse the packet any more.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chosen {
    Found(Entry),
    Planned(Plan),
}

impl Nat<'_> {
    /// The way of a whole packet or a first fragment.
    #[inline]
    pub(crate) fn translate(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        if is_icmp_error(&arrival.layout) {
            return self.translate_error(packet, arrival, now);
        }
        let slot = self.state.slot_of(arrival.destination);
        let tuple = match flow::identify(packet.frame(), arrival) {
            Ok(tuple) => tuple,
            Err(reason) => return Err(self.unclaimed(reason, slot)),
        };
        match (arrival.side, slot) {
            (Side::Inside, None) => self.translate_outbound(packet, arrival, &tuple, now),
            (Side::Inside, Some(slot)) => self.translate_hairpin(packet, arrival, &tuple, slot, now),
            (Side::Outside, Some(slot)) => self.translate_inbound(packet, arrival, &tuple, slot, now),
            (Side::Outside, None) => Err(Refusal::Drop(DropReason::WrongSide)),
        }
    }

    /// Step 4 of what a subscriber sends.
    pub(crate) fn own_subscriber(&self, arrival: &Arrival) -> Result<(), Refusal> {
        if !self.has_company() {
            return Ok(());
        }
        let (cause, errand) = reason_to_hand_off(&arrival.layout, HandOffCause::Misplaced);
        self.own(self.owners.of_subscriber(arrival.source), cause, errand)
    }

    /// Step 4 of what comes from outside.
    fn own_inbound(&self, arrival: &Arrival, tuple: &Tuple, slot: u16) -> Result<(), Refusal> {
        if !self.has_company() {
            return Ok(());
        }
        let (external, remote) = tuple.inbound();
        let (owner, cause) = self.rules().of_inbound(slot, tuple.protocol, external, remote);
        let (cause, errand) = reason_to_hand_off(&arrival.layout, cause);
        self.own(owner, cause, errand)
    }

    fn translate_outbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, tuple: &Tuple, now: Tick) -> Decision {
        self.own_subscriber(arrival)?;
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let path = leave::path_towards(&mut self.paths, &self.network, arrival.destination, Side::Outside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        let (_, remote) = tuple.outbound();
        let chosen = self.choose_outbound(tuple, tuple.outbound(), now)?;
        let entry = self.settle(chosen, remote, now)?;
        self.advance(entry, Direction::Outbound, tuple.flags, now);
        let rewrite = Rewrite::outbound(self.internal_of(entry), self.external_of(entry), remote);
        self.finish(packet, arrival, &rewrite, &path, (Way::Outbound, now))
    }

    fn translate_inbound(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, tuple: &Tuple, slot: u16, now: Tick) -> Decision {
        self.own_inbound(arrival, tuple, slot)?;
        let (external, remote) = tuple.inbound();
        let chosen = match self.choose_inbound(tuple, external, remote, slot, now) {
            Ok(chosen) => chosen,
            Err(reason) => {
                let refusal = self.unclaimed(reason, Some(slot));
                return Err(self.refuse_inbound(packet, arrival, tuple, refusal, now));
            }
        };
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let internal = self.internal_of_chosen(&chosen);
        let path = leave::path_towards(&mut self.paths, &self.network, internal.address, Side::Inside)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        let entry = self.settle(chosen, remote, now)?;
        self.advance(entry, Direction::Inbound, tuple.flags, now);
        let rewrite = Rewrite::inbound(self.internal_of(entry), self.external_of(entry), remote);
        self.finish(packet, arrival, &rewrite, &path, (Way::Inbound, now))
    }

    pub(crate) fn choose_outbound(
        &mut self,
        tuple: &Tuple,
        (internal, remote): (Endpoint, Endpoint),
        now: Tick,
    ) -> Result<Chosen, Refusal> {
        if let Some(number) = self.state.outbound(tuple.protocol, internal, remote, now, &mut self.counters) {
            return Ok(Chosen::Found(Entry::Session(number)));
        }
        let flow = Flow { protocol: tuple.protocol, ours: internal, remote, opens: tuple.opens };
        if self.state.keeps_bare(tuple.protocol)
            && self.planner().by_a_forward(&flow).is_none()
            && let Some(number) = self.state.bare_of(tuple.protocol, internal, now, &mut self.counters)
        {
            return Ok(Chosen::Found(Entry::Bare(number)));
        }
        let plan = self.planner().outbound(&flow).map_err(|reason| refusal::of_outbound(reason, &self.policy))?;
        if self.is_taken(&plan, now) { Err(Refusal::Drop(DropReason::SessionConflict)) } else { Ok(Chosen::Planned(plan)) }
    }

    /// Whether another session has the external endpoint of a planned one towards its remote: a forward that is gone may have left it,
    /// with the port that a new mapping has. A guest that a mapping that is gone has left is ended by this look-up.
    pub(crate) fn is_taken(&mut self, plan: &Plan, now: Tick) -> bool {
        let NewSession { protocol, slot, external, remote, .. } = plan.session;
        self.state.may_conflict() && self.state.inbound(protocol, (slot, external.port), remote, now, &mut self.counters).is_some()
    }

    pub(crate) fn choose_inbound(
        &mut self,
        tuple: &Tuple,
        external: Endpoint,
        remote: Endpoint,
        slot: u16,
        now: Tick,
    ) -> Result<Chosen, DropReason> {
        let at = (slot, external.port);
        if self.state.keeps_bare(tuple.protocol) && forward::of_port(&self.policy, slot, tuple.protocol, external.port).is_none() {
            let number = self.state.bare_at(tuple.protocol, at, now, &mut self.counters).ok_or(DropReason::NoMapping)?;
            return Ok(Chosen::Found(Entry::Bare(number)));
        }
        if let Some(number) = self.state.inbound(tuple.protocol, at, remote, now, &mut self.counters) {
            return Ok(Chosen::Found(Entry::Session(number)));
        }
        let flow = Flow { protocol: tuple.protocol, ours: external, remote, opens: tuple.opens };
        let plan = self.planner().inbound(&flow, slot, now)?;
        // What has ended is no conflict: this look-up takes it out. It never was under the plan's own mapping, whose sessions have
        // this external endpoint and would have been found above.
        let internal = plan.session.internal;
        if self.state.outbound(tuple.protocol, internal, remote, now, &mut self.counters).is_some() {
            return Err(DropReason::SessionConflict);
        }
        Ok(Chosen::Planned(plan))
    }

    pub(crate) fn planner(&mut self) -> Planner<'_, '_> {
        // The borrows of the fields are apart, which a method on `self.state` could not show.
        Planner { policy: &self.policy, state: &self.state, choice: &mut self.choice, owners: &self.owners, me: self.me }
    }

    /// A packet to an external address that nothing claims is the host's, where the host shares the address.
    pub(crate) fn unclaimed(&self, reason: DropReason, slot: Option<u16>) -> Refusal {
        let is_unknown = matches!(
            reason,
            DropReason::NoMapping | DropReason::IcmpNoSession | DropReason::UnsupportedIcmp | DropReason::UnsupportedProtocol
        );
        if is_unknown && self.is_shared(slot) { Refusal::Punt } else { Refusal::Drop(reason) }
    }

    /// Whether the host shares the external address of that slot.
    pub(crate) fn is_shared(&self, slot: Option<u16>) -> bool {
        slot.and_then(|slot| establish::external_of(&self.policy, slot)).is_some_and(|external| external.shared_with_host)
    }

    pub(crate) fn internal_of_chosen(&self, chosen: &Chosen) -> Endpoint {
        match chosen {
            Chosen::Found(entry) => self.internal_of(*entry),
            Chosen::Planned(plan) => plan.session.internal,
        }
    }

    /// Makes what is planned; of what is there, the fast path gets to know the way, and how `remote` is reached. From here on the packet is not
    /// refused.
    pub(crate) fn settle(&mut self, chosen: Chosen, remote: Endpoint, now: Tick) -> Result<Entry, DropReason> {
        match chosen {
            Chosen::Found(entry) => {
                match entry {
                    Entry::Session(number) => self.learn_way(number),
                    Entry::Bare(number) => self.learn_bare_way(number, remote.address),
                }
                Ok(entry)
            }
            Chosen::Planned(plan) => {
                self.state.create(&plan.session, plan.under, now, &mut self.counters).map_err(|_| DropReason::SessionsFull)
            }
        }
    }

    pub(crate) fn session(&self, number: u32) -> &Session {
        self.state.sessions.records.get(number)
    }

    pub(crate) fn internal_of(&self, entry: Entry) -> Endpoint {
        match entry {
            Entry::Session(number) => self.session(number).internal(),
            Entry::Bare(number) => self.state.bares.records.get(number).internal(),
        }
    }

    /// The external endpoint of what lives.
    pub(crate) fn external_of(&self, entry: Entry) -> Endpoint {
        match entry {
            Entry::Session(number) => self.state.external_of(self.session(number)),
            Entry::Bare(number) => self.state.external_of_bare(number).unwrap_or(NOWHERE),
        }
    }

    /// Step 7's bookkeeping.
    pub(crate) fn advance(&mut self, entry: Entry, direction: Direction, flags: TcpFlags, now: Tick) {
        let refreshes_inbound = self.policy.inbound_refresh;
        match entry {
            Entry::Session(number) => {
                let session = self.state.sessions.records.get_mut(number);
                let refreshed = session.advance(direction, flags, refreshes_inbound, now);
                if refreshed && session.kind.is_guest() {
                    self.state.host(number);
                }
            }
            Entry::Bare(number) => self.state.bares.records.get_mut(number).advance(direction, refreshes_inbound, now),
        }
    }

    /// Rewrites, and sends on its way.
    pub(crate) fn finish(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        rewrite: &Rewrite,
        path: &Path,
        (way, now): (Way, Tick),
    ) -> Decision {
        if rewrite.apply(packet.frame_mut(), &arrival.layout) {
            self.counters.count(Counter::ChecksumsCompleted);
        }
        self.clamp_mss(packet, arrival, path);
        let layout = &arrival.layout;
        if way != Way::Inbound && layout.fragment() == Fragment::Whole && layout.datagram_len() > usize::from(path.mtu) {
            // It leaves in fragments.
            self.identify_anew(packet, None, now);
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

/// The external endpoint of what has none.
const NOWHERE: Endpoint = Endpoint { address: Ipv4Addr::UNSPECIFIED, port: 0 };

fn is_icmp_error(layout: &Layout) -> bool {
    layout.transport() == Transport::IcmpError
}

/// Why a packet is handed to its owner, where the device was right about it or not, and what is left to do there: of a fragment not the
/// order, which is settled.
fn reason_to_hand_off(layout: &Layout, of_whole: HandOffCause) -> (HandOffCause, Errand) {
    match layout.fragment() {
        Fragment::Whole => (of_whole, Errand::Whole),
        Fragment::First | Fragment::Later => (HandOffCause::Fragment, Errand::Sequenced),
    }
}
