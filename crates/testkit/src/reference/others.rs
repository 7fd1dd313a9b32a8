//! Protocols without ports, translated by address: who speaks which one with which remote, and from which external address.
//!
//! Knows no ports and no order of fragments: each fragment says by itself whose it is. Which external address a host begins with is the NAT's
//! to choose, but always the same one: what was seen narrows it. Invariant: protocol, external and remote address name one host.
//! Sources: docs/rfc/others.md; RFC 3828, section 3.1; RFC 4340, section 9.1; RFC 5508, REQ-4 and REQ-5, of the errors.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use portcullis_nat::policy::{Policy, Route, Side};
use portcullis_nat::verdict::DropReason;
use portcullis_nat::view::{OtherView, SessionState};

use super::legal::{Answer, Egress, Failure, Forward, Legal, Received};
use super::read::EmbeddedOther;
use super::rewrite::{Ids, translated_by_address, translated_other_error};
use super::tables::{Effect, Room, room};
use super::tcp::Direction;
use super::{Disagreement, Outcome, ReferenceNat};

/// A protocol spoken between a host and a remote, seen outside as from an external address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translation {
    pub(super) protocol: u8,
    pub(super) internal: Ipv4Addr,
    pub(super) external: Ipv4Addr,
    pub(super) remote: Ipv4Addr,
}

/// One that lives, or has ended and may not have been swept.
#[derive(Clone, Debug)]
struct Entry {
    translation: Translation,
    replied: bool,
    last_seen: u64,
    packets: (u32, u32),
}

impl Entry {
    fn timeout(&self, policy: &Policy) -> u64 {
        let times = &policy.timeouts;
        let time = if self.replied { times.other } else { times.other_opening };
        time.as_millis() as u64
    }

    /// When its time is over, if nothing more comes.
    fn end(&self, policy: &Policy) -> u64 {
        self.last_seen + self.timeout(policy)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Others {
    live: Vec<Entry>,
    /// They may take room until the sweep, and nothing else.
    late: Vec<Entry>,
    /// Of protocols that are translated no more: no rule says whether they are kept.
    suspended: Vec<Entry>,
    /// The live external addresses, in the order of their slots.
    addresses: Vec<Ipv4Addr>,
    /// By host, where among the addresses its search may begin, if it is not open.
    starts: HashMap<Ipv4Addr, Vec<usize>>,
}

impl Others {
    /// Goes by these external addresses from now on: what has another one ends.
    pub(super) fn adopt(&mut self, policy: &Policy) {
        let addresses: Vec<_> = policy.externals.iter().filter_map(|slot| slot.address).collect();
        if addresses != self.addresses {
            self.starts.clear();
        }
        self.end(|entry| addresses.contains(&entry.translation.external));
        let is_translated = |entry: &Entry| policy.other_protocols.contains(entry.translation.protocol);
        let (live, suspended): (Vec<_>, Vec<_>) = std::mem::take(&mut self.live).into_iter().partition(is_translated);
        self.live = live;
        self.suspended.extend(suspended);
        self.addresses = addresses;
    }

    pub(super) fn expire(&mut self, now: u64, policy: &Policy) {
        self.end(|entry| now <= entry.end(policy));
    }

    /// Ends those that `keep` does not want.
    fn end(&mut self, keep: impl Fn(&Entry) -> bool) {
        for entries in [&mut self.live, &mut self.suspended] {
            let (kept, ended): (Vec<_>, Vec<_>) = std::mem::take(entries).into_iter().partition(&keep);
            *entries = kept;
            self.late.extend(ended);
        }
    }

    pub(super) fn swept(&mut self) {
        self.late.clear();
    }

    fn find(&self, is: impl Fn(&Translation) -> bool) -> Option<Translation> {
        self.live.iter().map(|entry| entry.translation).find(is)
    }

    /// Whose a packet from outside is.
    fn at(&self, protocol: u8, external: Ipv4Addr, remote: Ipv4Addr) -> Option<Translation> {
        self.find(|one| (one.protocol, one.external, one.remote) == (protocol, external, remote))
    }

    fn of(&self, protocol: u8, internal: Ipv4Addr, remote: Ipv4Addr) -> Option<Translation> {
        self.find(|one| (one.protocol, one.internal, one.remote) == (protocol, internal, remote))
    }

    /// The first external address from `start` on that nobody has with that protocol and remote.
    fn first_free(&self, start: usize, protocol: u8, remote: Ipv4Addr) -> Option<Ipv4Addr> {
        let (before, behind) = self.addresses.split_at(start);
        let mut all = behind.iter().chain(before).copied();
        all.find(|&external| self.at(protocol, external, remote).is_none())
    }

    fn starts(&self, internal: Ipv4Addr) -> Vec<usize> {
        self.starts.get(&internal).cloned().unwrap_or_else(|| (0..self.addresses.len()).collect())
    }

    /// The external addresses that a host's new translation may have.
    fn candidates(&self, protocol: u8, internal: Ipv4Addr, remote: Ipv4Addr) -> BTreeSet<Ipv4Addr> {
        self.starts(internal).into_iter().filter_map(|start| self.first_free(start, protocol, remote)).collect()
    }

    /// Takes down a packet that was translated.
    pub(super) fn commit(&mut self, translation: Translation, direction: Direction, now: u64, inbound_refresh: bool) {
        let Translation { protocol, internal, external, remote } = translation;
        match (self.live.iter_mut().find(|entry| entry.translation == translation), direction) {
            (Some(entry), Direction::Outbound) => {
                entry.last_seen = now;
                entry.packets.0 += 1;
            }
            (Some(entry), Direction::Inbound) => {
                if !entry.replied || inbound_refresh {
                    entry.last_seen = now;
                }
                entry.replied = true;
                entry.packets.1 += 1;
            }
            (None, _) => {
                let mut starts = self.starts(internal);
                starts.retain(|&start| self.first_free(start, protocol, remote) == Some(external));
                self.starts.insert(internal, starts);
                self.live.push(Entry { translation, replied: false, last_seen: now, packets: (1, 0) });
            }
        }
    }
}

impl ReferenceNat {
    /// What may become of a packet, or a fragment, of such a protocol.
    pub(super) fn other(&self, received: Received<'_>, external: bool) -> Legal {
        match (received.interface.side, external) {
            (Side::Outside, _) => self.other_inbound(received),
            (Side::Inside, false) => self.other_outbound(received),
            // Nobody can tell for whom.
            (Side::Inside, true) => self.other_unclaimed(received),
        }
    }

    /// To an external address, for nobody behind it.
    fn other_unclaimed(&self, received: Received<'_>) -> Legal {
        if self.is_shared(received.datagram.destination) {
            return Legal { punt: true, ..Legal::default() };
        }
        Legal::dropped([DropReason::NoMapping])
    }

    fn other_outbound(&self, received: Received<'_>) -> Legal {
        let datagram = received.datagram;
        let (protocol, internal, remote) = (datagram.protocol, datagram.source, datagram.destination);
        let egress = self.egress(received, remote, Side::Outside);
        let to_box = egress.is_err() && self.network.route(remote) == Some(Route::Local);
        let mut legal = Legal { punt: to_box, ..Legal::default() };
        let externals: BTreeSet<_> = match self.tables.others.of(protocol, internal, remote) {
            Some(known) => [known.external].into(),
            None => self.other_externals(&mut legal, received),
        };
        match egress {
            Err(failure) => self.add(&mut legal, &failure, received),
            Ok(egress) => {
                for external in externals {
                    let translation = Translation { protocol, internal, external, remote };
                    forward(&mut legal, received, &egress, translation, Outcome::Outbound);
                }
            }
        }
        legal
    }

    /// The external addresses that a new translation may have, as far as there is room for it; and why there is none.
    fn other_externals(&self, legal: &mut Legal, received: Received<'_>) -> BTreeSet<Ipv4Addr> {
        let (datagram, others) = (received.datagram, &self.tables.others);
        let (due, exhausted) = (Answer::Due(self.exhausted()), Answer::Perhaps(self.exhausted()));
        if others.addresses.is_empty() {
            let failure = Failure { reasons: vec![DropReason::NoExternalAddress], answer: exhausted, certain: true };
            self.add(legal, &failure, received);
            return BTreeSet::new();
        }
        let candidates = others.candidates(datagram.protocol, datagram.source, datagram.destination);
        if candidates.is_empty() {
            let failure = Failure { reasons: vec![DropReason::OtherProtocolAmbiguous], answer: due, certain: true };
            self.add(legal, &failure, received);
        }
        let room = room(others.live.len(), others.late.len() + others.suspended.len(), self.limits.others);
        if room != Room::Free {
            let failure = Failure { reasons: vec![DropReason::OtherProtocolsFull], answer: due, certain: room == Room::Full };
            self.add(legal, &failure, received);
        }
        if room == Room::Full { BTreeSet::new() } else { candidates }
    }

    fn other_inbound(&self, received: Received<'_>) -> Legal {
        let datagram = received.datagram;
        let known = self.tables.others.at(datagram.protocol, datagram.destination, datagram.source);
        let Some(translation) = known else { return self.other_unclaimed(received) };
        let mut legal = Legal::default();
        match self.egress(received, translation.internal, Side::Inside) {
            Err(failure) => self.add(&mut legal, &failure, received),
            Ok(egress) => forward(&mut legal, received, &egress, translation, Outcome::Inbound),
        }
        legal
    }

    /// What may become of an ICMP error about such a packet. It changes no translation.
    pub(super) fn other_error(&self, received: Received<'_>, quoted: &EmbeddedOther, external: bool) -> Legal {
        let (others, outer) = (&self.tables.others, received.datagram);
        let mut legal = match (received.interface.side, external) {
            (Side::Outside, _) => match others.at(quoted.protocol, quoted.source, quoted.destination) {
                Some(known) => {
                    let ends = (known.internal, quoted.destination);
                    self.other_error_out(received, quoted, (outer.source, known.internal), ends, Outcome::Inbound)
                }
                None => self.stray(received),
            },
            (Side::Inside, false) => match others.of(quoted.protocol, quoted.destination, quoted.source) {
                Some(known) => {
                    let ends = (quoted.source, known.external);
                    self.other_error_out(received, quoted, (known.external, outer.destination), ends, Outcome::Outbound)
                }
                None => Legal::dropped([DropReason::IcmpNoSession]),
            },
            (Side::Inside, true) => Legal { drops: vec![DropReason::IcmpNoSession], ..self.stray(received) },
        };
        if outer.destination != quoted.source {
            legal.drops.extend([DropReason::BadEmbeddedPacket, DropReason::IcmpNoSession]);
        }
        legal
    }

    fn other_error_out(
        &self,
        received: Received<'_>,
        quoted: &EmbeddedOther,
        outer: (Ipv4Addr, Ipv4Addr),
        ends: (Ipv4Addr, Ipv4Addr),
        outcome: Outcome,
    ) -> Legal {
        let mut legal = Legal::default();
        let side = if outcome == Outcome::Inbound { Side::Inside } else { Side::Outside };
        match self.egress(received, outer.1, side) {
            Err(failure) => self.add(&mut legal, &failure, received),
            Ok(egress) => {
                let mut expected = translated_other_error(received.datagram, quoted, outer, ends);
                if quoted.header_right && outcome == Outcome::Inbound {
                    let name = (quoted.source, quoted.destination, quoted.id, quoted.protocol);
                    expected.identification = Some((quoted.at, Ids::OneOf(self.tables.originals(name))));
                }
                let outcome = Outcome::Error(Box::new(outcome));
                legal.forwards.push(Forward { outcome, expected, egress, effects: Vec::new() });
            }
        }
        legal
    }

    /// Compares all translations that live, as of the last packet's or sweep's time.
    ///
    /// **Errors:** one that is missing, unknown, in another state, or with another expiry or count; two that nobody can tell apart.
    pub fn reconcile_others(&self, views: &[OtherView]) -> Result<(), Disagreement> {
        let others = &self.tables.others;
        let of_view = |view: &OtherView| {
            let OtherView { protocol, internal, external, remote, .. } = *view;
            Translation { protocol, internal, external, remote }
        };
        for (at, view) in views.iter().enumerate() {
            let translation = of_view(view);
            let same =
                |other: &OtherView| (other.protocol, other.external, other.remote) == (view.protocol, view.external, view.remote);
            if views[..at].iter().any(same) {
                return Err(Disagreement::plain(format!("two translations like {view:?}")));
            }
            let Some(entry) = others.live.iter().find(|entry| entry.translation == translation) else {
                let is_suspended = others.suspended.iter().any(|entry| entry.translation == translation);
                if is_suspended || view.expires_in == 0 && others.late.iter().any(|entry| entry.translation == translation) {
                    continue;
                }
                return Err(Disagreement::plain(format!("the NAT has a translation that should not be: {view:?}")));
            };
            let left = entry.end(&self.policy) - self.clock;
            let state = if entry.replied { SessionState::Replied } else { SessionState::Unreplied };
            let is_right = view.state == state
                && (left..=left + 1).contains(&u64::from(view.expires_in))
                && (view.packets_out, view.packets_in) == entry.packets;
            if !is_right {
                return Err(Disagreement::plain(format!("{view:?} should be {entry:?}, {state:?}, {left} ms left")));
            }
        }
        let is_shown = |entry: &&Entry| views.iter().any(|view| of_view(view) == entry.translation);
        let mut due = others.live.iter().filter(|entry| entry.end(&self.policy) > self.clock);
        match due.find(|entry| !is_shown(entry)) {
            Some(missing) => Err(Disagreement::plain(format!("the NAT lacks the translation {missing:?}"))),
            None => Ok(()),
        }
    }

    /// Those that live, and with those besides that the NAT may not have swept.
    pub(super) fn other_counts(&self) -> (usize, usize) {
        let Others { live, late, suspended, .. } = &self.tables.others;
        (live.len(), live.len() + late.len() + suspended.len())
    }
}

/// Adds that the packet is translated so.
fn forward(legal: &mut Legal, received: Received<'_>, egress: &Egress, translation: Translation, outcome: Outcome) {
    let datagram = received.datagram;
    let direction = outcome.direction();
    let ends = match direction {
        Direction::Outbound => (translation.external, translation.remote),
        Direction::Inbound => (translation.remote, translation.internal),
    };
    let mut expected = translated_by_address(datagram, ends);
    let is_fragment = datagram.more_fragments || datagram.offset > 0;
    if direction == Direction::Outbound && egress.split.is_some() && !is_fragment {
        // RFC 6864, section 5.3.1: it may. Those that are fragments already have to keep the one that they share.
        expected.identification = Some((0, Ids::Any));
    }
    let effects = vec![Effect::Other { translation, direction }];
    legal.forwards.push(Forward { outcome, expected, egress: egress.clone(), effects });
}
