//! Fragments, in any order: the first one goes before all others, and they go where it went.
//!
//! Knows the order of the checks; `fragment` remembers. Two levels, which are one table where they meet in one worker. The worker that
//! puts a datagram in order (`own::of_datagram`) sees all its fragments, lets early ones wait, and sends later ones after the first. The
//! worker that translates the first knows its new addresses, and of a hairpin perhaps who knows them. Invariant: on the way from one
//! worker to another nothing overtakes, so that behind the first one no fragment waits. Sources: RFC 4787 section 11, REQ-14.

use core::net::Ipv4Addr;

use portcullis_wire::ethernet;
use portcullis_wire::ipv4::Ipv4Header;
use portcullis_wire::packet::Fragment;

use crate::arrival::Arrival;
use crate::counters::Counter;
use crate::fragment::{Fate, FragmentKey, Piece};
use crate::identities::Name;
use crate::leave;
use crate::nat::{Decision, Nat, Way};
use crate::own;
use crate::packet::Packet;
use crate::policy::Side;
use crate::refusal::Refusal;
use crate::time::Tick;
use crate::verdict::{DatagramToken, DropReason, Errand, HandOffCause, Verdict};

impl Nat<'_> {
    /// The way of a fragment.
    pub(crate) fn sequence(&mut self, packet: &mut Packet<'_>, arrival: &Arrival, now: Tick) -> Decision {
        let slot = self.state.slot_of(arrival.destination);
        if arrival.side == Side::Outside && slot.is_none() {
            return Err(Refusal::Drop(DropReason::WrongSide));
        }
        let (key, piece) = read(packet.frame(), arrival).ok_or(DropReason::Truncated)?;
        if packet.errand == Errand::Whole && self.has_company() {
            self.own(own::of_datagram(&self.owners, &key), HandOffCause::Fragment, Errand::Whole)?;
        }
        if arrival.layout.fragment() == Fragment::First {
            return self.translate_first(packet, arrival, (key, piece), now);
        }
        match self.fragments.find(&key, piece, now) {
            Some(Fate::Translated { source, destination, id }) => self.follow(packet, arrival, slot, (source, destination, id)),
            Some(Fate::HandedOff(to, cause, errand)) => Err(Refusal::HandOff(to, cause, errand)),
            Some(Fate::Punted) => Err(Refusal::Punt),
            Some(Fate::Dropped) => Err(Refusal::Drop(DropReason::FragmentWithoutFirst)),
            None if packet.errand == Errand::Whole => self.wait(key, now),
            None => Err(self.without_first(slot)),
        }
    }

    /// A first fragment goes like a whole packet. What becomes of it becomes of the later ones.
    fn translate_first(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        (key, piece): (FragmentKey, Piece),
        now: Tick,
    ) -> Decision {
        let decision = self.translate(packet, arrival, now);
        if decision.is_ok() && arrival.side == Side::Inside {
            let before = self.fragments.peek(&key, now);
            self.identify_anew(packet, before, now);
        }
        let fate = match decision {
            // The addresses and the identification that it has now.
            Ok(_) => header_of(packet.frame()).map_or(Fate::Dropped, fate_of),
            Err(Refusal::HandOff(to, cause, errand)) => Fate::HandedOff(to, cause, errand),
            Err(Refusal::Punt) => Fate::Punted,
            Err(Refusal::Drop(_) | Refusal::Answer(..)) => Fate::Dropped,
        };
        if matches!(fate, Fate::Translated { .. }) {
            self.counters.count(Counter::Fragments);
        }
        self.fragments.learn(key, piece, fate, now);
        decision
    }

    /// Gives a datagram with a translated source an identification of the gateway's, or the one that an earlier copy of the same fragment got:
    /// those that follow may be behind that one.
    pub(crate) fn identify_anew(&mut self, packet: &mut Packet<'_>, before: Option<Fate>, now: Tick) {
        let Some(header) = header_of_mut(packet.frame_mut()) else { return };
        let name = Name { source: header.src(), destination: header.dst(), protocol: header.protocol() };
        let id = match before {
            Some(Fate::Translated { source, destination, id }) if (source, destination) == (name.source, name.destination) => id,
            _ => self.identities.give(name, header.id(), now),
        };
        header.set_id(id);
    }

    /// Gives a later fragment the addresses that its first one got, and its identification.
    fn follow(
        &mut self,
        packet: &mut Packet<'_>,
        arrival: &Arrival,
        slot: Option<u16>,
        (source, destination, id): (Ipv4Addr, Ipv4Addr, u16),
    ) -> Decision {
        leave::check_ttl(packet.frame(), &arrival.layout)?;
        let way = Way::of(arrival, slot.is_some()).ok_or(DropReason::WrongSide)?;
        let side = match way {
            Way::Outbound => Side::Outside,
            Way::Inbound | Way::Hairpin => Side::Inside,
        };
        let path = leave::path_towards(&mut self.paths, &self.network, destination, side)?;
        leave::check_fit(packet, &arrival.layout, &path)?;
        if let Some(header) = arrival.layout.ipv4_mut(packet.frame_mut()) {
            crate::rewrite::addresses(header, source, destination);
            header.set_id(id);
        }
        self.counters.count(Counter::Fragments);
        self.send(packet, &path, way)
    }

    /// Lets a fragment wait for its first.
    fn wait(&mut self, key: FragmentKey, now: Tick) -> Decision {
        let token = self.fragments.wait(key, now).ok_or(DropReason::FragmentsFull)?;
        self.counters.count(Counter::EarlyFragments);
        Ok(Verdict::AwaitFirst(token))
    }

    /// A later fragment whose first is not known: where the host shares the address, the first was the host's.
    fn without_first(&self, slot: Option<u16>) -> Refusal {
        if self.is_shared(slot) { Refusal::Punt } else { Refusal::Drop(DropReason::FragmentWithoutFirst) }
    }
}

/// What the worker asks about the fragments that it keeps.
impl Nat<'_> {
    /// The next datagram whose first fragment has come: its waiting fragments are to be processed again, in the order in which they came,
    /// as [`Packet::released`]. Called after each burst, until there is none.
    pub fn take_released(&mut self) -> Option<DatagramToken> {
        self.fragments.take_released()
    }

    /// The next datagram whose fragments have waited in vain: [`Nat::give_up`] says what becomes of each. Called after each burst and
    /// after [`Nat::expire`] and [`Nat::adopt_policy`], until there is none.
    pub fn take_given_up(&mut self) -> Option<DatagramToken> {
        self.fragments.take_given_up()
    }

    /// What becomes of a fragment that waited in vain: it is the kernel's where the host shares the address, or else dropped. Counts it.
    pub fn give_up(&mut self, packet: &mut Packet<'_>) -> Verdict {
        let slot = header_of(packet.frame()).and_then(|header| self.state.slot_of(header.dst()));
        if self.is_shared(slot) { self.punt(packet) } else { self.drop_packet(DropReason::FragmentWithoutFirst) }
    }
}

/// A fragment's datagram, and its part of it.
fn read(frame: &[u8], arrival: &Arrival) -> Option<(FragmentKey, Piece)> {
    let header = arrival.layout.ipv4(frame)?;
    let start = header.fragment_offset() as u32;
    let end = start + (arrival.layout.datagram_len() - header.header_len()) as u32;
    let (side, source, destination) = (arrival.side, arrival.source, arrival.destination);
    let key = FragmentKey { side, source, destination, id: header.id(), protocol: arrival.layout.protocol() };
    Some((key, Piece { start, end, is_last: !header.more_fragments() }))
}

/// The header in a frame, wherever it begins now.
fn header_of(frame: &[u8]) -> Option<&Ipv4Header> {
    let link = ethernet::link(frame)?;
    Ipv4Header::from_prefix(frame.get(link.header_len..)?)
}

fn header_of_mut(frame: &mut [u8]) -> Option<&mut Ipv4Header> {
    let link = ethernet::link(frame)?;
    Ipv4Header::from_prefix_mut(frame.get_mut(link.header_len..)?)
}

/// Of a first fragment that was translated to that header.
fn fate_of(header: &Ipv4Header) -> Fate {
    Fate::Translated { source: header.src(), destination: header.dst(), id: header.id() }
}
