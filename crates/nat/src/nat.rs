//! One worker's NAT: the steps of a packet's way in their order, and the doors of its state.
//!
//! Knows which step comes when; each step is its own file. Called by the worker with a burst, a device and the time. Invariants: what is
//! transmitted was translated; a packet that is refused has changed no table; every packet is counted once.

use core::net::Ipv4Addr;
use std::sync::Arc;

use ahash::RandomState;
use portcullis_steering::{Owners, WorkerId};
use portcullis_wire::ipv4::Ipv4Header;
use portcullis_wire::packet::Fragment;
use portcullis_wire::partial::{self, ChecksumState};
use portcullis_wire::{ethernet, icmp_error};

use crate::adjacency::Adjacencies;
use crate::advance::Settled;
use crate::arena::{Capacity, TooSmall};
use crate::arrival::{self, Arrival};
use crate::counters::{Counter, Counters};
use crate::establish::Choice;
use crate::fast::{self, Gate};
use crate::forward;
use crate::fragment::Fragments;
use crate::identities::Identities;
use crate::leave;
use crate::limit::TokenBucket;
use crate::mss;
use crate::open::Opened;
use crate::own::Rules;
use crate::packet::Packet;
use crate::path::{self, Path, Paths, Whereabouts};
use crate::policy::{DeviceId, Endpoint, InterfaceId, Network, Policy, Protocol, Side};
use crate::prepare::Preparation;
use crate::reach::Reach;
use crate::record::Session;
use crate::refusal::{Answer, Refusal};
use crate::state::State;
use crate::sweep::Sweep;
use crate::time::Tick;
use crate::unsolicited::Unsolicited;
use crate::verdict::{DropReason, Errand, HandOffCause, Verdict};

/// How often a packet may be handed over: to the worker that puts its fragments in order, to the sender's owner, to the receiver's,
/// and once more because the workers adopt new rules one after the other.
const MOST_HANDS: u8 = 4;

/// Randomness, drawn by the caller once: hash keys, and the key of the choice of ports and of the drawing of servers. The same for all
/// workers, which have to draw the same servers.
#[derive(Clone, Copy, Debug)]
pub struct Seeds(pub [u64; 4]);

/// One worker's NAT.
pub struct Nat<'m> {
    pub(crate) state: State<'m>,
    pub(crate) fragments: Fragments,
    pub(crate) identities: Identities,
    pub(crate) policy: Arc<Policy>,
    pub(crate) network: Arc<Network>,
    pub(crate) paths: Paths,
    pub(crate) adjacencies: Adjacencies,
    pub(crate) reach: Reach,
    pub(crate) gates: Vec<Option<Gate>>,
    /// A bit for each combination of TCP flags that the fast path may forward.
    pub(crate) fast_flags: u64,
    pub(crate) settled: Settled,
    /// Verdicts of a burst's packets that the fast path has left to the ordinary way. Empty between bursts.
    pub(crate) left: Vec<Verdict>,
    /// What is fetched for those that come next.
    pub(crate) preparation: Preparation,
    /// What the burst's packets have begun.
    pub(crate) opened: Opened,
    pub(crate) choice: Choice,
    pub(crate) owners: Owners,
    pub(crate) me: WorkerId,
    pub(crate) counters: Counters,
    pub(crate) icmp_errors: TokenBucket,
    pub(crate) unsolicited: Unsolicited,
    pub(crate) sweep: Sweep,
}

/// How a step ends: with a verdict on a packet that goes on, or with a refusal.
pub(crate) type Decision = Result<Verdict, Refusal>;

impl<'m> Nat<'m> {
    /// An empty NAT whose tables are in zeroed `memory` of at least [`Capacity::bytes`]. It drops everything until it has adopted a
    /// policy and a network. **Errors:** [`TooSmall`].
    pub fn new(
        memory: &'m mut [u8],
        capacity: Capacity,
        seeds: Seeds,
        owners: Owners,
        me: WorkerId,
        now: Tick,
    ) -> Result<Self, TooSmall> {
        let [a, b, c, d] = seeds.0;
        let hasher = RandomState::with_seeds(a, b, c, d);
        let choice = RandomState::with_seeds(d, c, b, a);
        let state = State::new(memory, &capacity, &hasher)?;
        Ok(Self {
            settled: Settled::new(&state.timers),
            left: Vec::with_capacity(fast::BURST),
            preparation: Preparation::default(),
            opened: Opened::default(),
            state,
            fragments: Fragments::new(capacity.fragments, hasher.clone(), now),
            identities: Identities::new(hasher.clone(), me, owners.workers()),
            policy: Arc::default(),
            network: Arc::default(),
            paths: Paths::new(now),
            adjacencies: Adjacencies::new(hasher.clone()),
            reach: Reach::new(),
            gates: Vec::new(),
            fast_flags: fast::LEGAL_FLAGS,
            choice: Choice::new(choice, me),
            owners,
            me,
            counters: Counters::default(),
            icmp_errors: TokenBucket::new(0, 0, now),
            unsolicited: Unsolicited::new(),
            sweep: Sweep::new(now),
        })
    }

    /// Adopts new rules, unless they are the ones that it goes by. Sessions of external addresses that are gone end.
    pub fn adopt_policy(&mut self, policy: Arc<Policy>, now: Tick) {
        if Arc::ptr_eq(&policy, &self.policy) {
            return;
        }
        self.adjacencies.forget();
        self.reach.forget();
        if self.state.adopt(&policy, (&self.owners, self.me), now, &self.adjacencies, &mut self.counters) {
            self.fragments.clear();
            self.unsolicited.clear();
        }
        if self.state.bares.is_on() && policy.forwards != self.policy.forwards {
            let keys = &self.choice.keys;
            let leads = |session: &Session| forward::leads(&policy, session, keys);
            self.state.end_unled(leads, now, &mut self.counters);
        }
        self.settled = Settled::new(&self.state.timers);
        self.fragments.set_span(policy.timeouts.fragment.as_millis() as u32);
        self.icmp_errors = TokenBucket::new(policy.icmp_errors.rate, policy.icmp_errors.burst, now);
        self.sweep.begin_anew();
        self.policy = policy;
    }

    /// Adopts the network as it is now.
    pub fn adopt_network(&mut self, network: Arc<Network>) {
        self.paths.adopt(&network);
        self.adjacencies.forget();
        self.reach.forget();
        self.gates = fast::gates(&network);
        self.fast_flags = mss::fast_flags(&network);
        self.network = network;
    }

    /// Steps 2 to 7 for a burst from one device. Appends one verdict for each packet, in order.
    pub fn process(&mut self, burst: &mut [Packet<'_>], device: DeviceId, now: Tick, verdicts: &mut Vec<Verdict>) {
        for burst in burst.chunks_mut(fast::BURST) {
            self.process_burst(burst, device, now, verdicts);
        }
    }

    /// Steps 2 to 7 for one packet, whatever it is: the ordinary way.
    #[inline(never)]
    pub(crate) fn process_one(&mut self, packet: &mut Packet<'_>, device: DeviceId, now: Tick) -> Verdict {
        match self.decide(packet, device, now) {
            Ok(verdict) => verdict,
            Err(refusal) => self.refuse(packet, device, refusal, now),
        }
    }

    fn decide(&mut self, packet: &mut Packet<'_>, device: DeviceId, now: Tick) -> Decision {
        let arrival = arrival::read(packet, device, &self.network, &mut self.counters)?;
        arrival::check_addresses(&arrival, &self.network, &mut self.paths, &self.state)?;
        if self.is_other(arrival.layout.protocol()) {
            return self.translate_other(packet, &arrival, now);
        }
        match arrival.layout.fragment() {
            Fragment::Whole => self.translate(packet, &arrival, now),
            Fragment::First | Fragment::Later => self.sequence(packet, &arrival, now),
        }
    }

    /// Step 4: whether this worker is a packet's owner; `cause` is why it may not be, and `errand` what is left to do.
    #[inline]
    pub(crate) fn own(&self, owner: WorkerId, cause: HandOffCause, errand: Errand) -> Result<(), Refusal> {
        if owner == self.me { Ok(()) } else { Err(Refusal::HandOff(owner, cause, errand)) }
    }

    /// Step 4 of a packet to an external endpoint from a remote one, or of an ICMP error about such a packet's answer.
    #[inline]
    pub(crate) fn own_external(
        &self,
        slot: u16,
        protocol: Protocol,
        (external, remote): (Endpoint, Endpoint),
        cause: HandOffCause,
        errand: Errand,
    ) -> Result<(), Refusal> {
        if !self.has_company() {
            return Ok(());
        }
        let (owner, _) = self.rules().of_inbound(slot, protocol, external, remote);
        self.own(owner, cause, errand)
    }

    /// What the owner of an inbound packet goes by.
    pub(crate) fn rules(&self) -> Rules<'_> {
        Rules { owners: &self.owners, policy: &self.policy, keys: &self.choice.keys }
    }

    /// Whether there are other workers: where there are none, nobody is asked whose a packet is.
    #[inline]
    pub(crate) fn has_company(&self) -> bool {
        self.owners.workers() > 1
    }

    /// Turns a refusal into a verdict: the one place that drops. The frame becomes the ICMP error where one is due.
    fn refuse(&mut self, packet: &mut Packet<'_>, device: DeviceId, refusal: Refusal, now: Tick) -> Verdict {
        match refusal {
            Refusal::Punt => self.punt(packet),
            Refusal::HandOff(to, cause, errand) => {
                if packet.handed >= MOST_HANDS {
                    return self.drop_packet(DropReason::HandOffLoop);
                }
                self.counters.count(Counter::handed_off(cause));
                Verdict::HandOff { to, cause, errand }
            }
            Refusal::Drop(reason) => self.drop_packet(reason),
            Refusal::Answer(reason, answer) => {
                let dropped = self.drop_packet(reason);
                if self.answer(packet, device, answer, now) { Verdict::Transmit(device) } else { dropped }
            }
        }
    }

    /// Leaves a packet to the kernel.
    pub(crate) fn punt(&mut self, packet: &mut Packet<'_>) -> Verdict {
        self.finish_checksum(packet);
        self.counters.count(Counter::Punted);
        Verdict::Punt
    }

    /// Completes a partial checksum: the kernel will verify it.
    fn finish_checksum(&mut self, packet: &mut Packet<'_>) {
        let Ok(layout) = portcullis_wire::packet::parse(packet.frame()) else { return };
        let is_partial = partial::transport_checksum_state(packet.frame(), &layout) == ChecksumState::Partial;
        if is_partial && partial::complete(packet.frame_mut(), &layout) {
            self.counters.count(Counter::ChecksumsCompleted);
        }
    }

    pub(crate) fn drop_packet(&mut self, reason: DropReason) -> Verdict {
        self.counters.drop_packet(reason);
        Verdict::Drop(reason)
    }

    /// Turns the packet into an ICMP error to its sender. Returns whether it did: no error may be due, or the limit is reached.
    fn answer(&mut self, packet: &mut Packet<'_>, device: DeviceId, answer: Answer, now: Tick) -> bool {
        let Ok(layout) = portcullis_wire::packet::parse(packet.frame()) else { return false };
        if !icmp_error::may_answer_with_error(packet.frame(), &layout) {
            return false;
        }
        let interface = self.network.interface_of(device, layout.vlan()).map(|id| &self.network.interfaces[usize::from(id.0)]);
        let Some(source) = interface.and_then(|interface| interface.addresses.first()) else { return false };
        if !self.icmp_errors.take(now) {
            self.counters.count(Counter::IcmpErrorsLimited);
            return false;
        }
        let Some(len) = icmp_error::build_error(packet.buffer, &layout, &answer.message(source.addr())) else { return false };
        packet.len = len;
        self.counters.count(Counter::IcmpErrorsSent);
        true
    }

    /// Completes a held packet's link-layer header. The verdict is what becomes of it now: it may have to be held on.
    pub fn readdress(&mut self, packet: &mut Packet<'_>, interface: InterfaceId, next_hop: Ipv4Addr) -> Verdict {
        let Some(path) = self.path_of_held(packet.frame(), interface, next_hop) else {
            return Verdict::Drop(DropReason::InterfaceDown);
        };
        if !path.up {
            return Verdict::Drop(DropReason::InterfaceDown);
        }
        leave::by(packet, &path).unwrap_or(Verdict::Drop(DropReason::NoFrame))
    }

    /// The path over `interface` to `next_hop`, with the MTU of the route to the packet's destination while it still leads that way.
    fn path_of_held(&self, frame: &[u8], interface: InterfaceId, next_hop: Ipv4Addr) -> Option<Path> {
        let link = ethernet::link(frame)?;
        let destination = Ipv4Header::from_prefix(frame.get(link.header_len..)?)?.dst();
        match path::look_up(&self.network, destination) {
            Whereabouts::Via(path) if path.interface == interface && path.next_hop == next_hop => Some(path),
            _ => path::via(&self.network, interface, next_hop, None),
        }
    }

    /// Counts a packet that the worker had to drop after its verdict.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.counters.drop_packet(reason);
    }

    /// The next hops in use, each once in a while: their link-layer addresses are to be kept fresh.
    pub fn used_next_hops(&mut self) -> impl Iterator<Item = (InterfaceId, Ipv4Addr)> + '_ {
        self.paths.take_used()
    }

    /// For tests: the next random numbers that ports and external addresses are chosen with, in place of those that were left of the
    /// last script. A number is taken modulo the slots for an address, and modulo 65,536 for a port.
    pub fn script_draws(&mut self, draws: impl IntoIterator<Item = u64>) {
        self.choice.script(draws);
    }
}

/// The way of a packet, for whoever counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Outbound,
    Inbound,
    Hairpin,
}

impl Way {
    /// Of a packet from `arrival`, if it is for an external address or not.
    pub(crate) fn of(arrival: &Arrival, to_external: bool) -> Option<Self> {
        match (arrival.side, to_external) {
            (Side::Inside, false) => Some(Self::Outbound),
            (Side::Inside, true) => Some(Self::Hairpin),
            (Side::Outside, true) => Some(Self::Inbound),
            (Side::Outside, false) => None,
        }
    }

    pub(crate) const fn counter(self) -> Counter {
        match self {
            Self::Outbound => Counter::Outbound,
            Self::Inbound => Counter::Inbound,
            Self::Hairpin => Counter::Hairpin,
        }
    }
}
