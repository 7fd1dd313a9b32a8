//! The order of checks that a packet meets, and what each way through the NAT comes to.
//!
//! Reads like its table of contents: admission, then by side and destination outbound, inbound or hairpin, then the way out. Knows
//! no verdicts of the NAT but what its output shows. Sources: RFC 1812, RFC 3022, RFC 4787; the order is the project's own.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{Endpoint, Interface, InterfaceId, MssClamp, Protocol, Route, Side};
use portcullis_nat::verdict::DropReason;

use super::bare::BarePacket;
use super::fragments::{Fate, FragmentEntry, FragmentKey};
use super::halves::{Choice, Flow, Half, admitted, existing};
use super::legal::{Answer, Egress, Failure, Forward, Legal, Limiter, Received, Reply, is_answerable};
use super::read::{Reading, Transport};
use super::rewrite::Ids;
use super::tables::{Effect, Origin, Room, Tracked};
use super::tcp::Direction;
use super::{Outcome, ReferenceNat, rewrite};

/// The endpoints of what the NAT sent, where it sent something that has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown {
    pub(super) source: Endpoint,
    pub(super) destination: Endpoint,
}

/// From outside to something that is no external address: no RFC names the reason, and silence is as good as an answer.
const NOT_OURS: [DropReason; 3] = [DropReason::NoMapping, DropReason::WrongSide, DropReason::NoRoute];

impl ReferenceNat {
    /// All that may become of a frame.
    pub(super) fn decide(&self, reading: &Reading, frame: &[u8], id: Option<InterfaceId>, shown: Option<Shown>) -> Legal {
        let interface = id.map(|id| &self.network.interfaces[usize::from(id.0)]);
        let refused = self.refusal(reading, id);
        let tolerated = self.tolerated(reading, interface);
        if !reading.defects.is_empty() {
            let mut legal = Legal::dropped(reading.defects.iter().chain(&tolerated).copied().chain(refused));
            legal.punt =
                refused.is_none() && reading.datagram.as_ref().is_some_and(|datagram| self.is_shared(datagram.destination));
            return legal;
        }
        let (Some(link), Some(datagram)) = (reading.link, &reading.datagram) else {
            return Legal::dropped([DropReason::Truncated]);
        };
        let unsupported = if let Transport::Unsupported(reason) = datagram.transport { Some(reason) } else { None };
        if unsupported.is_some() || refused.is_some() {
            let mut legal = Legal::dropped(unsupported.into_iter().chain(refused).chain(tolerated));
            legal.punt = refused.is_none() && self.is_shared(datagram.destination);
            if interface.is_some_and(|interface| interface.side == Side::Outside) && !self.is_external(datagram.destination) {
                legal.drops.extend(NOT_OURS);
                legal.drops.extend((datagram.ttl <= 1).then_some(DropReason::TtlExpired));
                legal.punt |= refused.is_none() && self.network.route(datagram.destination) == Some(Route::Local);
            }
            return legal;
        }
        let Some(interface) = interface else { return Legal::dropped([DropReason::UnknownInterface]) };
        let received = Received { frame, link, datagram, interface };
        let mut legal = self.way(received, shown);
        if datagram.ttl <= 1 {
            legal = self.expired(received, &legal);
        }
        legal.drops.extend(tolerated);
        legal
    }

    /// Reasons that are as good as any: those of the parser, and that a packet from outside claims an address of the box itself.
    pub(super) fn tolerated(&self, reading: &Reading, interface: Option<&Interface>) -> Vec<DropReason> {
        let source = reading.datagram.as_ref().map(|datagram| datagram.source);
        let local = source.is_some_and(|source| self.network.route(source) == Some(Route::Local));
        let spoofed = local && interface.is_some_and(|interface| interface.side == Side::Outside);
        reading.tolerated.iter().copied().chain(spoofed.then_some(DropReason::SpoofedOutside)).collect()
    }

    /// The first check that the frame fails before its destination matters.
    pub(super) fn refusal(&self, reading: &Reading, id: Option<InterfaceId>) -> Option<DropReason> {
        let Some(id) = id else { return Some(DropReason::UnknownInterface) };
        let interface = &self.network.interfaces[usize::from(id.0)];
        if reading.link?.destination != interface.mac {
            return Some(DropReason::NotForUs);
        }
        let datagram = reading.datagram.as_ref()?;
        // RFC 7126, sections 4.3 and 4.4.
        if reading.source_routed {
            return Some(DropReason::SourceRouted);
        }
        if is_martian(datagram.source) {
            return Some(DropReason::MartianSource);
        }
        if is_martian(datagram.destination) {
            return Some(DropReason::MartianDestination);
        }
        self.spoofed(interface, id, datagram.source)
    }

    fn spoofed(&self, interface: &Interface, id: InterfaceId, source: Ipv4Addr) -> Option<DropReason> {
        let route = self.network.route(source);
        match interface.side {
            Side::Inside => {
                let behind = matches!(route, Some(Route::Via { interface, .. }) if interface == id);
                let translated = interface.prefixes.is_empty() || interface.prefixes.iter().any(|prefix| prefix.contains(&source));
                let genuine = behind && translated && !self.is_external(source);
                (!genuine).then_some(DropReason::SpoofedInside)
            }
            Side::Outside => {
                let inside = matches!(route, Some(Route::Via { interface, .. }) if self.side(interface) == Side::Inside);
                (inside || self.is_external(source)).then_some(DropReason::SpoofedOutside)
            }
        }
    }

    /// A TTL that ran out: RFC 1812, section 5.3.1. What is for the box itself may still be left to it,
    /// and where no answer is due, or nothing inside asked for the packet, any other reason to drop it is as good.
    fn expired(&self, received: Received<'_>, otherwise: &Legal) -> Legal {
        let reply = Reply { kind: 11, code: 0, mtu: 0 };
        let failure = Failure { reasons: vec![DropReason::TtlExpired], answer: Answer::Due(reply), certain: true };
        let mut legal = Legal { punt: otherwise.punt, awaits: otherwise.awaits, ..Legal::default() };
        self.add(&mut legal, &failure, received);
        // Of a protocol without ports, what comes from inside to an external address goes nowhere, whatever hops it has left.
        let ends_here = matches!(received.datagram.transport, Transport::Other) && self.is_external(received.datagram.destination);
        let silent = received.interface.side == Side::Outside || !is_answerable(received.datagram) || ends_here;
        legal.drops.extend(otherwise.drops.iter().filter(|_| silent));
        legal
    }

    /// Adds a failure with the answer that its sender gets, if the packet is one to answer and the interface can send.
    pub(super) fn add(&self, legal: &mut Legal, failure: &Failure, received: Received<'_>) {
        // An answer would go to a group of stations.
        let from_group = received.link.source[0] & 1 == 1;
        let answerable = !from_group && is_answerable(received.datagram) && !received.interface.addresses.is_empty();
        let limiter = if received.interface.up || self.limiter == Limiter::Off { self.limiter } else { Limiter::MayBeEmpty };
        legal.add(failure, answerable, limiter);
    }

    fn way(&self, received: Received<'_>, shown: Option<Shown>) -> Legal {
        let datagram = received.datagram;
        let outside = received.interface.side == Side::Outside;
        let external = self.is_external(datagram.destination);
        if outside && !external {
            let mut legal = Legal::dropped(NOT_OURS);
            legal.punt = self.network.route(datagram.destination) == Some(Route::Local);
            return legal;
        }
        match datagram.transport {
            Transport::Later => return self.later_fragment(received),
            Transport::Other => return self.other(received, external),
            _ => {}
        }
        match (&datagram.transport, outside, external) {
            (Transport::Error { embedded, other, checksum_right }, ..) => {
                self.error(received, (embedded.as_ref(), other.as_ref()), *checksum_right, external)
            }
            (_, true, _) => self.inbound(received, shown),
            (_, false, false) => self.outbound(received, shown),
            (_, false, true) => self.hairpin(received, shown),
        }
    }

    fn outbound(&self, received: Received<'_>, shown: Option<Shown>) -> Legal {
        let flow = flow(received, Direction::Outbound);
        let half = self.outbound_half(flow, shown.map(|shown| shown.source));
        let mut legal = Legal::default();
        let egress = self.egress(received, received.datagram.destination, Side::Outside);
        legal.punt = egress.is_err() && self.network.route(received.datagram.destination) == Some(Route::Local);
        self.conclude(&mut legal, received, half, &egress, |choice| Path {
            outcome: Outcome::Outbound,
            source: choice.endpoint,
            destination: through(flow, choice.endpoint.port, flow.destination),
        });
        legal
    }

    fn inbound(&self, received: Received<'_>, shown: Option<Shown>) -> Legal {
        let flow = flow(received, Direction::Inbound);
        let half = self.inbound_half(flow, 0, shown.map(|shown| shown.destination));
        let mut legal = Legal { punt: half.punt, ..Legal::default() };
        for choice in &half.choices {
            let egress = self.egress(received, choice.endpoint.address, Side::Inside);
            let only = Half { choices: vec![choice.clone()], ..Half::default() };
            self.conclude(&mut legal, received, only, &egress, |choice| Path {
                outcome: Outcome::Inbound,
                source: through(flow, choice.endpoint.port, flow.source),
                destination: choice.endpoint,
            });
        }
        half.failures.iter().for_each(|failure| self.add(&mut legal, failure, received));
        legal.complaints.extend(half.complaint);
        legal
    }

    /// Joins a half with a way out: each choice is forwarded, or fails for the way's reason; the half's own failures stand too.
    fn conclude(
        &self,
        legal: &mut Legal,
        received: Received<'_>,
        half: Half,
        egress: &Result<Egress, Failure>,
        path: impl Fn(&Choice) -> Path,
    ) {
        half.failures.iter().for_each(|failure| self.add(legal, failure, received));
        legal.complaints.extend(half.complaint);
        match egress {
            Err(failure) => {
                self.add(legal, failure, received);
                legal.perhaps.extend(half.choices.into_iter().map(|choice| choice.effect));
            }
            Ok(egress) => {
                for choice in half.choices {
                    let path = path(&choice);
                    let tracked = vec![(choice.key, path.outcome.direction())];
                    self.forward(legal, received, egress, path, vec![choice.effect], tracked);
                }
            }
        }
    }

    fn forward(
        &self,
        legal: &mut Legal,
        received: Received<'_>,
        egress: &Egress,
        path: Path,
        mut effects: Vec<Effect>,
        tracked: Vec<(Tracked, Direction)>,
    ) {
        let datagram = received.datagram;
        if datagram.more_fragments {
            let key: FragmentKey = (datagram.source, datagram.destination, datagram.id, datagram.protocol);
            let fate = Fate::Translated { source: path.source.address, destination: path.destination.address };
            let mut entry = FragmentEntry::of_first(datagram, fate, self.clock, true);
            entry.tracked = tracked;
            effects.push(Effect::Fragment { key, entry });
        }
        let mut expected = rewrite::translated(datagram, path.source, path.destination);
        if path.outcome != Outcome::Inbound && (datagram.more_fragments || egress.split.is_some()) {
            // RFC 6864, section 5.3.1: many hosts share the source that it has now.
            expected.identification = Some((0, Ids::Any));
        }
        if let (Transport::Ports { protocol: Protocol::Tcp, .. }, Some(most)) =
            (&datagram.transport, self.segment_size(received, egress))
        {
            rewrite::clamped(&mut expected, datagram.header_len, most);
        }
        legal.forwards.push(Forward { outcome: path.outcome, expected, egress: egress.clone(), effects });
    }

    /// The largest segment size that both interfaces which a packet crosses let a host announce, where they care.
    fn segment_size(&self, received: Received<'_>, egress: &Egress) -> Option<u16> {
        let arrives = received.interface;
        let back = match self.network.route(received.datagram.source) {
            Some(Route::Via { interface, mtu: Some(mtu), .. }) if self.network.interfaces[usize::from(interface.0)] == *arrives => {
                mtu.min(arrives.mtu)
            }
            _ => arrives.mtu,
        };
        let leaves = &self.network.interfaces[usize::from(egress.interface.0)];
        let size = |(interface, mtu): (&Interface, u16)| match interface.mss {
            MssClamp::Off => None,
            MssClamp::PathMtu => Some(mtu - 40),
            MssClamp::At(size) => Some(size),
        };
        [(arrives, back), (leaves, egress.mtu)].into_iter().filter_map(size).min()
    }

    /// Inside to inside through external endpoints (RFC 4787, REQ-9: the receiver sees the sender's external endpoint). What belongs to
    /// no session and starts none may be the box's own connection, where it shares the address and nothing claims the port. Whatever
    /// stops the second half leaves the first standing, as two NATs would: hole punching between two hosts behind one NAT needs it
    /// (RFC 5128, section 3.3).
    fn hairpin(&self, received: Received<'_>, shown: Option<Shown>) -> Legal {
        let mut flow = flow(received, Direction::Outbound);
        if flow.protocol == Protocol::Icmp && !flow.request {
            // It answers a query that was turned round: see `Flow::receiver`.
            flow.destination.port = flow.source.port;
        }
        let half = self.outbound_half(flow, shown.map(|shown| shown.source));
        let mut legal = Legal::default();
        let target = Endpoint { address: flow.destination.address, port: transport_destination(received) };
        let starts = flow.objection().is_none();
        let query = flow.protocol == Protocol::Icmp;
        // What it answers may be gone, although it may be there still.
        let unasked =
            half.choices.is_empty() || half.failures.iter().any(|failure| failure.reasons.contains(&DropReason::NoMapping));
        let shared = query && self.is_shared(target.address) && unasked && !starts;
        legal.punt = shared || flow.protocol != Protocol::Icmp && self.is_unclaimed(flow.protocol, target);
        half.failures.iter().for_each(|failure| self.add(&mut legal, failure, received));
        legal.before_kept = (legal.drops.clone(), legal.replies.clone(), shared);
        legal.complaints.extend(half.complaint);
        for choice in half.choices {
            self.hairpin_second(&mut legal, received, flow, &choice, shown);
        }
        legal
    }

    fn hairpin_second(&self, legal: &mut Legal, received: Received<'_>, flow: Flow, first: &Choice, shown: Option<Shown>) {
        let icmp = flow.protocol == Protocol::Icmp;
        // Of a query the identifier is what its receiver's mapping has outside, of an answer what the asker's has.
        let external = if icmp { Endpoint { port: flow.source.port, ..flow.destination } } else { flow.destination };
        let answers = icmp && !flow.request;
        let remote = if answers { Endpoint { port: 0, ..first.endpoint } } else { first.endpoint };
        if external == first.endpoint && !answers {
            self.to_oneself(legal, received, flow, first);
            return;
        }
        let second = Flow { source: remote, destination: external, ..flow };
        let made = usize::from(first.makes_session());
        let half = self.inbound_half(second, made, shown.map(|shown| shown.destination));
        legal.punt |= half.punt;
        legal.kept.push(first.effect.clone());
        half.failures.iter().for_each(|failure| self.add(legal, failure, received));
        for choice in half.choices {
            match self.egress(received, choice.endpoint.address, Side::Inside) {
                Err(failure) => {
                    self.add(legal, &failure, received);
                    legal.perhaps.push(choice.effect);
                }
                Ok(egress) => {
                    let source = if icmp { Endpoint { port: choice.endpoint.port, ..first.endpoint } } else { first.endpoint };
                    let path = Path { outcome: Outcome::Hairpin, source, destination: choice.endpoint };
                    let tracked = vec![(first.key, Direction::Outbound), (choice.key, Direction::Inbound)];
                    self.forward(legal, received, &egress, path, vec![first.effect.clone(), choice.effect], tracked);
                }
            }
        }
    }

    /// A packet to the sender's own external endpoint. No RFC says what becomes of it: it may come back translated, its one session
    /// advanced both ways, or be dropped, with nothing left behind but as above. Of a bare mapping's it does come back.
    fn to_oneself(&self, legal: &mut Legal, received: Received<'_>, flow: Flow, first: &Choice) {
        if flow.protocol == Protocol::Icmp {
            self.query_to_oneself(legal, received, flow, first);
            return;
        }
        let back = match first.key {
            // Any remote is let in.
            Tracked::Bare { internal, external } => {
                Effect::Bare(BarePacket { internal, external, direction: Direction::Inbound, makes: false })
            }
            Tracked::Session(key) => {
                let reasons =
                    [DropReason::SessionConflict, DropReason::Filtered, DropReason::NoMapping, DropReason::UnsupportedIcmp];
                legal.drops.extend(reasons);
                legal.punt |= self.is_shared(flow.destination.address);
                Effect::Advance { key, direction: Direction::Inbound, flags: flow.flags }
            }
        };
        if first.makes_session() && self.sessions_room(1) != Room::Free {
            legal.drops.push(DropReason::SessionsFull);
        }
        legal.kept.push(first.effect.clone());
        match self.egress(received, flow.source.address, Side::Inside) {
            Err(failure) => self.add(legal, &failure, received),
            Ok(egress) => {
                let path = Path { outcome: Outcome::Hairpin, source: first.endpoint, destination: flow.source };
                let tracked = vec![(first.key, Direction::Outbound), (first.key, Direction::Inbound)];
                self.forward(legal, received, &egress, path, vec![first.effect.clone(), back], tracked);
            }
        }
    }

    /// A query with the identifier that its own mapping has outside. The mapping has just queried that address, so every filter lets it in.
    fn query_to_oneself(&self, legal: &mut Legal, received: Received<'_>, flow: Flow, first: &Choice) {
        let turned = Flow { source: first.endpoint, destination: first.endpoint, ..flow };
        let choice = match self.tables.by_external(flow.protocol, first.endpoint, first.endpoint) {
            Some(session) => existing(session, session.internal, Direction::Inbound, 0).choices.remove(0),
            None => admitted(turned, turned.receiver(flow.source), Origin::Filter, None, None),
        };
        if choice.makes_session() && self.sessions_room(usize::from(first.makes_session())) != Room::Free {
            legal.drops.push(DropReason::SessionsFull);
        }
        legal.kept.push(first.effect.clone());
        match self.egress(received, flow.source.address, Side::Inside) {
            Err(failure) => self.add(legal, &failure, received),
            Ok(egress) => {
                let source = Endpoint { port: choice.endpoint.port, ..first.endpoint };
                let path = Path { outcome: Outcome::Hairpin, source, destination: choice.endpoint };
                let tracked = vec![(first.key, Direction::Outbound), (choice.key, Direction::Inbound)];
                self.forward(legal, received, &egress, path, vec![first.effect.clone(), choice.effect], tracked);
            }
        }
    }

    /// The way to `destination`, which has to lie on `side`: route, interface, MTU, neighbour.
    pub(super) fn egress(&self, received: Received<'_>, destination: Ipv4Addr, side: Side) -> Result<Egress, Failure> {
        let unreachable = Reply { kind: 3, code: 0, mtu: 0 };
        let answer = if side == Side::Outside { Answer::Due(unreachable) } else { Answer::Perhaps(unreachable) };
        let (id, gateway, route_mtu) = match self.network.route(destination) {
            None | Some(Route::Unreachable) => {
                return Err(Failure { reasons: vec![DropReason::NoRoute], answer, certain: true });
            }
            Some(Route::Via { interface, gateway, mtu }) if self.side(interface) == side => (interface, gateway, mtu),
            Some(_) => return Err(Failure::silent(DropReason::WrongSide)),
        };
        let interface = &self.network.interfaces[usize::from(id.0)];
        if !interface.up {
            return Err(Failure::silent(DropReason::InterfaceDown));
        }
        let mtu = route_mtu.map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
        let large = received.datagram.bytes.len() > usize::from(mtu);
        if large && received.datagram.dont_fragment {
            let answer = Answer::Due(Reply { kind: 3, code: 4, mtu });
            return Err(Failure { reasons: vec![DropReason::TooBig], answer, certain: true });
        }
        let next_hop = gateway.unwrap_or(destination);
        Ok(Egress {
            interface: id,
            device: interface.device,
            vlan: interface.vlan,
            mac: interface.mac,
            next_hop,
            neighbour: self.network.neighbours.get(&(id, next_hop)).copied(),
            mtu,
            split: large.then_some(mtu),
        })
    }

    pub(super) fn side(&self, id: InterfaceId) -> Side {
        self.network.interfaces[usize::from(id.0)].side
    }

    pub(super) fn is_external(&self, address: Ipv4Addr) -> bool {
        self.policy.externals.iter().any(|slot| slot.address == Some(address))
    }

    pub(super) fn is_shared(&self, address: Ipv4Addr) -> bool {
        self.policy.externals.iter().any(|slot| slot.address == Some(address) && slot.shared_with_host)
    }

    /// Whether nothing but the box itself can want a packet to that endpoint.
    fn is_unclaimed(&self, protocol: Protocol, external: Endpoint) -> bool {
        self.is_shared(external.address)
            && self.forward_at(protocol, external).is_none()
            && self.tables.mapping_at(protocol, external).is_none()
    }
}

/// What a translation makes of the endpoints.
struct Path {
    outcome: Outcome,
    source: Endpoint,
    destination: Endpoint,
}

/// The end that keeps its address; of an ICMP query both ends carry the new identifier.
fn through(flow: Flow, new_id: u16, end: Endpoint) -> Endpoint {
    if flow.protocol == Protocol::Icmp { Endpoint { port: new_id, ..end } } else { end }
}

fn transport_destination(received: Received<'_>) -> u16 {
    match received.datagram.transport {
        Transport::Ports { destination, .. } => destination,
        _ => 0,
    }
}

fn flow(received: Received<'_>, direction: Direction) -> Flow {
    let datagram = received.datagram;
    let (protocol, source, destination, flags, request) = match datagram.transport {
        Transport::Ports { protocol, source, destination, flags } => (protocol, source, destination, flags, true),
        Transport::Query { id, request } if direction == Direction::Outbound => (Protocol::Icmp, id, 0, 0, request),
        Transport::Query { id, request } => (Protocol::Icmp, 0, id, 0, request),
        _ => (Protocol::Icmp, 0, 0, 0, false),
    };
    let source = Endpoint { address: datagram.source, port: source };
    let destination = Endpoint { address: datagram.destination, port: destination };
    Flow { protocol, source, destination, flags, request }
}

/// RFC 1812, section 5.3.7: "this network", loopback, multicast, reserved and broadcast.
fn is_martian(address: Ipv4Addr) -> bool {
    matches!(address.octets()[0], 0 | 127 | 224..)
}
