//! Later fragments: they go the way that their first fragment went.
//!
//! Sources: RFC 4787, REQ-14; RFC 791, section 2.3. What the NAT may have forgotten by now may be dropped or translated.

use portcullis_nat::policy::{Endpoint, Side};
use portcullis_nat::verdict::DropReason;

use super::legal::{Forward, Legal, Received};
use super::rewrite::translated;
use super::tables::Effect;
use super::tcp::Direction;
use super::{Outcome, ReferenceNat};

impl ReferenceNat {
    fn fragment_timeout(&self) -> u64 {
        self.policy.timeouts.fragment.as_millis() as u64
    }

    /// Whether the NAT may have no room for one more fragmented packet. A first fragment that comes again may need room anew.
    pub(super) fn fragments_full(&self) -> bool {
        self.tables.fragments.values().map(|entry| entry.places).sum::<usize>() >= self.limits.fragments
    }

    /// What may become of a fragment that is not the first.
    pub(super) fn later_fragment(&self, received: Received<'_>) -> Legal {
        let datagram = received.datagram;
        let key = (datagram.source, datagram.destination, datagram.id, datagram.protocol);
        let absent = || Legal { punt: self.is_shared(datagram.destination), ..Legal::dropped([DropReason::FragmentWithoutFirst]) };
        let timeout = self.fragment_timeout();
        let Some(entry) = self.tables.fragments.get(&key).filter(|entry| self.clock - entry.touched <= timeout) else {
            return absent();
        };
        let from_outside = received.interface.side == Side::Outside;
        if !from_outside && !self.is_external(entry.source) {
            return absent();
        }
        let live = entry.sessions.iter().all(|(key, _)| self.tables.sessions.contains_key(key));
        let certain = entry.certain && live && self.clock - entry.born <= timeout;
        let mut legal = if certain { Legal::default() } else { absent() };
        if !certain {
            legal.drops.extend([DropReason::WrongSide, DropReason::NoRoute]);
        }
        let (to, outcome) = match (entry.sessions.len(), from_outside) {
            (_, true) => (Side::Inside, Outcome::Inbound),
            (1, false) if !self.is_external(datagram.destination) => (Side::Outside, Outcome::Outbound),
            _ => (Side::Inside, Outcome::Hairpin),
        };
        match self.egress(received, entry.destination, to) {
            Err(failure) => self.add(&mut legal, &failure, received),
            Ok(egress) => {
                let end = |address| Endpoint { address, port: 0 };
                let expected = translated(datagram, end(entry.source), end(entry.destination));
                let outcome = Outcome::LaterFragment(Box::new(outcome));
                legal.forwards.push(Forward { outcome, expected, egress, effects: vec![Effect::LaterFragment { key }] });
            }
        }
        legal
    }
}

impl Outcome {
    /// The direction of a session that such a packet has.
    pub(super) fn direction(&self) -> Direction {
        if matches!(self, Self::Inbound) { Direction::Inbound } else { Direction::Outbound }
    }
}
