//! SYNs from outside that nothing let in, and the answers that are due about them (RFC 5382, REQ-4).
//!
//! Knows what was refused and when; judges what the NAT sends by itself. Where the RFC leaves a choice, and where the reference cannot know
//! what is left of a connection, either is right.

use portcullis_nat::policy::{DeviceId, Endpoint, InterfaceId, Protocol, Side, UnsolicitedSyn};
use portcullis_nat::verdict::DropReason;

use super::legal::{self, Limiter, Received, Reply, is_answerable};
use super::read::{Reading, Transport, read};
use super::{Disagreement, Outcome, ReferenceNat, tcp};

/// "for at least 6 seconds after the packet is received". **Units:** milliseconds.
const AT_LEAST: u64 = 6000;
/// When the answer has to be there: a SHOULD without a time. Chosen.
const AT_MOST: u64 = 6500;
/// So many at once, no NAT has to remember.
const REMEMBERED: usize = 200;

/// What is due about a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Answer,
    Either,
    Silence,
}

/// A SYN that was refused.
#[derive(Clone, Debug)]
pub(super) struct Unsolicited {
    received: u64,
    frame: Vec<u8>,
    interface: InterfaceId,
    external: Endpoint,
    remote: Endpoint,
    due: Due,
}

impl ReferenceNat {
    /// Remembers a packet, if it is such a SYN; one that is sent again is the same. And marks those whose connection there is by now.
    pub(super) fn note_unsolicited(&mut self, reading: &Reading, frame: &[u8], id: Option<InterfaceId>, outcome: &Outcome) {
        let tables = &self.tables;
        for syn in &mut self.unsolicited {
            if tables.by_external(Protocol::Tcp, syn.external, syn.remote).is_some() {
                syn.due = Due::Silence;
            }
        }
        let (Some(id), Some(link), Some(datagram)) = (id, reading.link, &reading.datagram) else { return };
        let Transport::Ports { protocol: Protocol::Tcp, source, destination, flags } = datagram.transport else { return };
        let was_refused = matches!(outcome, Outcome::Dropped(DropReason::Filtered | DropReason::NoMapping));
        let from_outside = self.side(id) == Side::Outside && self.is_external(datagram.destination);
        let is_whole = !datagram.more_fragments;
        if !(was_refused && from_outside && is_whole && tcp::is_fresh_syn(flags)) {
            return;
        }
        let external = Endpoint { address: datagram.destination, port: destination };
        let remote = Endpoint { address: datagram.source, port: source };
        let is_held = |syn: &&mut Unsolicited| (syn.external, syn.remote) == (external, remote);
        let errors = self.policy.icmp_errors;
        let wanted = errors.unsolicited_syn == UnsolicitedSyn::Answered && self.limiter != Limiter::Off;
        let due = match () {
            () if !wanted || link.source[0] & 1 == 1 || !is_answerable(datagram) => Due::Silence,
            () if self.limiter == Limiter::Ample && self.unsolicited.len() < REMEMBERED => Due::Answer,
            () => Due::Either,
        };
        let held = self.unsolicited.iter_mut().find(is_held);
        // One that is in doubt may have been forgotten, and this one held in its place.
        let may_be_forgotten = held.as_ref().is_some_and(|syn| syn.due == Due::Either);
        match held {
            // The first one is answered, or the last: but who is silent once need not speak for a second one.
            Some(syn) if syn.due == Due::Answer => syn.due = due,
            Some(_) if !may_be_forgotten || due == Due::Silence => {}
            held => {
                let due = if held.is_some() { Due::Either } else { due };
                let (received, frame) = (self.clock, frame.to_vec());
                self.unsolicited.push(Unsolicited { received, frame, interface: id, external, remote, due });
            }
        }
    }

    /// After external addresses went away: of connections of before, nothing is known any more.
    pub(super) fn doubt_unsolicited(&mut self) {
        self.unsolicited.iter_mut().filter(|syn| syn.due == Due::Answer).for_each(|syn| syn.due = Due::Either);
    }

    /// Judges the ICMP errors that the NAT sends by itself, all that it has to send now.
    ///
    /// **Errors:** one that is not due, is wrong, or is missing.
    pub fn observe_due(&mut self, answers: &[(DeviceId, Vec<u8>)]) -> Result<(), Disagreement> {
        for (device, answer) in answers {
            self.observe_answer(*device, answer)?;
        }
        let (clock, network, policy) = (self.clock, &self.network, &self.policy);
        let is_missing = |syn: &&Unsolicited| {
            let interface = &network.interfaces[usize::from(syn.interface.0)];
            let age = u128::from(clock - syn.received);
            // Beyond, a connection may have come and gone.
            let is_known = age < policy.timeouts.tcp_opening.min(policy.timeouts.tcp_closing).as_millis();
            syn.due == Due::Answer && interface.up && age > u128::from(AT_MOST) && is_known
        };
        if let Some(syn) = self.unsolicited.iter().find(is_missing) {
            return Err(Disagreement::plain(format!("at {clock} ms: nothing was answered to {syn:?}")));
        }
        self.unsolicited.retain(|syn| clock - syn.received <= AT_MOST);
        Ok(())
    }

    fn observe_answer(&mut self, device: DeviceId, answer: &[u8]) -> Result<(), Disagreement> {
        let mut why = vec![format!("at {} ms: no SYN is to be answered with {}", self.clock, crate::builder::describe(answer))];
        for at in 0..self.unsolicited.len() {
            match self.is_answer(&self.unsolicited[at], device, answer) {
                Ok(()) => {
                    self.unsolicited.remove(at);
                    return Ok(());
                }
                Err(reason) => why.push(format!("not to {:?}: {reason}", self.unsolicited[at])),
            }
        }
        Err(Disagreement::plain(why.join("\n  ")))
    }

    /// Checks that `answer` is the one about that SYN, from the address that it was sent to.
    fn is_answer(&self, syn: &Unsolicited, device: DeviceId, answer: &[u8]) -> Result<(), String> {
        let mut interface = self.network.interfaces[usize::from(syn.interface.0)].clone();
        if syn.due == Due::Silence || self.clock - syn.received < AT_LEAST || interface.device != device {
            return Err("not due there".to_owned());
        }
        interface.addresses = vec![syn.external.address.into()];
        let reading = read(&syn.frame);
        let (Some(link), Some(datagram)) = (reading.link, &reading.datagram) else { return Err("unread".to_owned()) };
        let received = Received { frame: &syn.frame, link, datagram, interface: &interface };
        legal::check_reply(received, Reply { kind: 3, code: 3, mtu: 0 }, answer)
    }
}
