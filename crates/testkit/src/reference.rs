//! The reference NAT, or oracle: what may rightly become of each packet, slowly, and whether it did.
//!
//! Knows the RFCs and the NAT's public values, not one line of the NAT: own parser, own tables (`HashMap`s), own time that never
//! wraps, checksums from scratch. Ports are the NAT's to choose: the reference learns each new external endpoint from the output and
//! objects when it is not legal. All else has to match byte by byte; where the RFCs leave a choice, each choice is accepted.
//! Called by `tests/oracle.rs`. Tests: `reference/tests.rs`, by hand from the RFCs.

use std::net::Ipv4Addr;
use std::sync::Arc;

use portcullis_nat::policy::{DeviceId, Endpoint, Network, Policy, Protocol};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_steering::Owners;

use crate::builder::describe;

mod bare;
mod decide;
mod errors;
mod fragments;
mod halves;
mod legal;
mod others;
pub(crate) mod read;
mod rewrite;
mod shares;
mod tables;
mod tcp;
mod unsolicited;
mod views;

use decide::Shown;
use legal::{Legal, Limiter, Received};
use read::Transport;
use shares::Shares;
use tables::{Tables, Unseen};
use unsolicited::Unsolicited;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Translated, inside to outside.
    Outbound,
    /// Translated, outside to inside.
    Inbound,
    /// Translated twice, inside to inside.
    Hairpin,
    /// An ICMP error, translated in the direction named.
    Error(Box<Outcome>),
    /// A later fragment, translated in the direction named.
    LaterFragment(Box<Outcome>),
    /// A later fragment, which waits for its first.
    Awaits,
    /// Answered with an ICMP error of the gateway's own.
    Replied,
    /// Left to the kernel.
    Punted,
    /// Dropped.
    Dropped(DropReason),
}

/// What the NAT did that no rule allows, in words.
#[derive(Clone, Debug)]
pub struct Disagreement(String);

impl Disagreement {
    fn plain(what: String) -> Self {
        Self(what)
    }
}

impl std::fmt::Display for Disagreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Disagreement {}

/// How many records the NAT under test holds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Mappings.
    pub mappings: usize,
    /// Bare mappings among them: of UDP. Zero where UDP has sessions.
    pub bare_mappings: usize,
    /// Sessions.
    pub sessions: usize,
    /// Fragmented packets.
    pub fragments: usize,
    /// Translations of protocols without ports.
    pub others: usize,
}

/// From this rate and burst on the reference demands every ICMP error that is due; below, a missing one is no disagreement.
pub const AMPLE_ICMP_ERRORS: u32 = 100_000;

/// The oracle. Feed it each packet with what the NAT made of it, in order.
#[derive(Clone, Debug)]
pub struct ReferenceNat {
    policy: Arc<Policy>,
    network: Arc<Network>,
    limits: Limits,
    limiter: Limiter,
    shares: Shares,
    tables: Tables,
    unsolicited: Vec<Unsolicited>,
    /// Whether the packet being judged has waited before.
    again: bool,
    tick: Tick,
    /// Milliseconds since the start.
    clock: u64,
}

impl ReferenceNat {
    /// An oracle that remembers nothing, at the moment `start`.
    pub fn new(policy: Arc<Policy>, network: Arc<Network>, limits: Limits, start: Tick) -> Self {
        let (limiter, shares) = (limiter(&policy), Shares::new(Owners::single(), &policy));
        let (mut tables, unsolicited) = (Tables::default(), Vec::new());
        tables.others.adopt(&policy);
        Self { policy, network, limits, limiter, shares, tables, unsolicited, again: false, tick: start, clock: 0 }
    }

    /// The same for many workers, each of which gives only ports that it owns.
    #[must_use]
    pub fn with_owners(mut self, owners: Owners) -> Self {
        self.shares = Shares::new(owners, &self.policy);
        self
    }

    /// Takes over the network as it is now.
    pub fn adopt_network(&mut self, network: Arc<Network>) {
        self.network = network;
    }

    /// Takes over new rules: what has an external address that its slot no longer has, ends; with bare mappings also what the new
    /// forwards do not allow.
    pub fn adopt_policy(&mut self, policy: Arc<Policy>) {
        let addresses: Vec<_> = policy.externals.iter().filter_map(|slot| slot.address).collect();
        self.limiter = limiter(&policy);
        // With an address of its policy gone the NAT may follow no fragments of before.
        let mut before = self.policy.externals.iter().filter_map(|slot| slot.address);
        if before.any(|address| !addresses.contains(&address)) {
            self.tables.fragments.values_mut().for_each(|entry| entry.certain = false);
            self.tables.early.iter_mut().for_each(|early| early.over = true);
            self.doubt_unsolicited();
        }
        self.shares.adopt(&policy);
        self.tables.others.adopt(&policy);
        let before = std::mem::replace(&mut self.policy, policy);
        self.tables.end_bare(|mapping| addresses.contains(&mapping.external.address));
        self.tables.retire(|session| addresses.contains(&session.external.address));
        if self.is_bare(Protocol::Udp) {
            self.adopt_forwards(&before);
        }
    }

    /// Lets time pass until `now`. **Units:** at most [`Tick::HORIZON`] since the last call.
    pub fn advance(&mut self, now: Tick) {
        self.clock += u64::from(now.since(self.tick));
        self.tick = now;
        self.tables.expire(self.clock, &self.policy);
    }

    /// Says that the NAT has swept all that ended until the last `advance`: nothing of it may be in use from now on.
    pub fn swept(&mut self) {
        self.tables.swept(self.clock, &self.policy);
        self.swept_fragments();
    }

    /// Says that the NAT has forgotten the fragments whose time was over at the last `advance`, as each step of its sweep does.
    pub fn swept_fragments(&mut self) {
        let (clock, timeout) = (self.clock, self.fragment_timeout());
        self.tables.fragments.retain(|_, entry| clock - entry.born <= timeout);
    }

    /// Live sessions.
    pub fn sessions(&self) -> usize {
        self.tables.sessions.len()
    }

    /// Live mappings, without those of forwards.
    pub fn mappings(&self) -> usize {
        self.tables.mappings.len()
    }

    /// The external endpoint of the session between an internal and a remote endpoint, if there is one.
    pub fn external(&self, protocol: Protocol, internal: Endpoint, remote: Endpoint) -> Option<Endpoint> {
        self.tables.sessions.get(&(protocol, internal, remote)).map(|session| session.external)
    }

    /// Whether something is left open that the NAT's tables have to show before the next packet.
    pub fn has_unseen(&self) -> bool {
        !self.tables.unseen.is_empty()
    }

    /// Judges what the NAT made of a fragment that waited and whose first has come. **Errors:** as [`ReferenceNat::observe`].
    pub fn observe_released(
        &mut self,
        device: DeviceId,
        input: &[u8],
        now: Tick,
        verdict: Verdict,
        output: &[u8],
    ) -> Result<Outcome, Disagreement> {
        self.again = true;
        let outcome = self.observe(device, input, now, verdict, output);
        self.again = false;
        outcome
    }

    /// Judges what the NAT made of one packet: `input` as received from `device` at `now`, the verdict, and the bytes in the frame
    /// after it. Learns from it when it is legal.
    ///
    /// **Errors:** what is wrong, with the packets; the reference's state is then of no more use.
    pub fn observe(
        &mut self,
        device: DeviceId,
        input: &[u8],
        now: Tick,
        verdict: Verdict,
        output: &[u8],
    ) -> Result<Outcome, Disagreement> {
        self.advance(now);
        let reading = self.read(input);
        let id = reading.link.and_then(|link| self.network.interface_of(device, link.vlan().filter(|&vlan| vlan != 0)));
        let shown = shown(&reading, verdict, output);
        let legal = self.decide(&reading, input, id, shown);
        let received = match (reading.link, &reading.datagram, id) {
            (Some(link), Some(datagram), Some(id)) => {
                Some(Received { frame: input, link, datagram, interface: &self.network.interfaces[usize::from(id.0)] })
            }
            _ => None,
        };
        match judge(&legal, received, verdict, output).and_then(|judged| self.note_identification(&reading, judged, output)) {
            Ok((outcome, effects)) => {
                if !effects.iter().any(tables::Effect::is_of_sessions) && !legal.kept.is_empty() {
                    let interface = id.map(|id| &self.network.interfaces[usize::from(id.0)]);
                    let certain = is_after_first_half(&legal, &outcome, &self.tolerated(&reading, interface));
                    self.tables.commit_perhaps(&legal.perhaps, self.clock, self.policy.inbound_refresh);
                    self.keep(legal.kept, certain);
                } else if effects.is_empty() && !matches!(outcome, Outcome::Error(_)) {
                    self.tables.commit_perhaps(&legal.perhaps, self.clock, self.policy.inbound_refresh);
                }
                self.tables.commit(effects, self.clock, self.policy.inbound_refresh);
                self.note_fragment(&reading, id, &outcome);
                self.note_unsolicited(&reading, input, id, &outcome);
                Ok(outcome)
            }
            Err(why) => Err(explained(device, input, self.clock, verdict, output, &legal, &why)),
        }
    }
}

impl ReferenceNat {
    /// Reads a frame, with what the rules leave untranslated as such.
    fn read(&self, input: &[u8]) -> read::Reading {
        let mut reading = read::read(input);
        let Some(datagram) = &mut reading.datagram else { return reading };
        let (translated, is_later) = (self.policy.other_protocols, datagram.offset > 0);
        match &mut datagram.transport {
            Transport::Other if translated.contains(datagram.protocol) => {}
            Transport::Other if is_later => datagram.transport = Transport::Later,
            Transport::Other => datagram.transport = Transport::Unsupported(DropReason::UnsupportedProtocol),
            Transport::Error { other, .. } => *other = other.take().filter(|quoted| translated.contains(quoted.protocol)),
            _ => {}
        }
        reading
    }

    /// Takes down the identification that a datagram in fragments, or to be split, went on with.
    fn note_identification(
        &mut self,
        reading: &read::Reading,
        (outcome, mut effects): (Outcome, Vec<tables::Effect>),
        output: &[u8],
    ) -> Judgement {
        let translated = matches!(outcome, Outcome::Outbound | Outcome::Inbound | Outcome::Hairpin);
        let (true, Some(before), Some(after)) = (translated, &reading.datagram, read::read(output).datagram) else {
            return Ok((outcome, effects));
        };
        for effect in &mut effects {
            if let tables::Effect::Fragment { entry, .. } = effect {
                entry.id = after.id;
            }
        }
        // By address, no two hosts ever have the same end outside.
        let by_name = !matches!(before.transport, Transport::Other);
        if after.id != before.id || by_name && before.more_fragments && outcome != Outcome::Inbound {
            let outside = (after.source, after.destination, after.id, after.protocol);
            let inside = (before.source, before.destination, before.id, before.protocol);
            self.tables.rename(tables::Renamed { outside, inside, at: self.clock }).map_err(|why| vec![why])?;
        }
        Ok((outcome, effects))
    }

    /// Keeps what was made although the packet went no further: at once, unless only the view will show whether, or with which
    /// external endpoint.
    fn keep(&mut self, kept: Vec<tables::Effect>, certain: bool) {
        let makes = kept.iter().any(tables::Effect::makes);
        let open = kept.iter().any(tables::Effect::makes_mapping) || kept.len() > 1 || !certain;
        if makes && open {
            self.tables.unseen.push(Unseen { effects: kept, certain });
        } else if certain {
            self.tables.commit(kept, self.clock, self.policy.inbound_refresh);
        } else {
            self.tables.commit_perhaps(&kept, self.clock, self.policy.inbound_refresh);
        }
    }
}

/// Whether a packet that went no further has been through the first half of its hairpin, beyond doubt.
fn is_after_first_half(legal: &Legal, outcome: &Outcome, tolerated: &[DropReason]) -> bool {
    let (drops, replies, punt) = &legal.before_kept;
    match outcome {
        Outcome::Dropped(reason) => !drops.contains(reason) && !tolerated.contains(reason),
        Outcome::Replied => replies.is_empty(),
        Outcome::Punted => !punt,
        _ => true,
    }
}

fn limiter(policy: &Policy) -> Limiter {
    let errors = policy.icmp_errors;
    match () {
        () if errors.rate == 0 => Limiter::Off,
        () if errors.rate >= AMPLE_ICMP_ERRORS && errors.burst >= AMPLE_ICMP_ERRORS => Limiter::Ample,
        () => Limiter::MayBeEmpty,
    }
}

/// The endpoints of the NAT's output, where it is the packet translated and not an ICMP error that answers it.
fn shown(input: &read::Reading, verdict: Verdict, output: &[u8]) -> Option<Shown> {
    if !matches!(verdict, Verdict::Transmit(_) | Verdict::Fragment { .. } | Verdict::Hold { .. }) {
        return None;
    }
    let datagram = read::read(output).datagram?;
    let end = |address: Ipv4Addr, port| Endpoint { address, port };
    match (datagram.transport, &input.datagram.as_ref()?.transport) {
        (Transport::Ports { source, destination, .. }, Transport::Ports { .. }) => {
            Some(Shown { source: end(datagram.source, source), destination: end(datagram.destination, destination) })
        }
        (Transport::Query { id, .. }, Transport::Query { .. }) => {
            Some(Shown { source: end(datagram.source, id), destination: end(datagram.destination, id) })
        }
        _ => None,
    }
}

type Judgement = Result<(Outcome, Vec<tables::Effect>), Vec<String>>;

/// Whether a frame is left to the kernel as it has to be: see [`rewrite::punted`]. Of one that cannot be read, nothing is known.
fn is_punted(received: Option<Received<'_>>, output: &[u8]) -> bool {
    let Some(received) = received else { return true };
    let (start, end) = (received.link.len, received.link.len + received.datagram.bytes.len());
    let unread = !matches!(received.datagram.transport, Transport::Ports { .. });
    let wanted = [&received.frame[..start], &rewrite::punted(received.datagram), &received.frame[end..]].concat();
    output == wanted || unread && output == received.frame
}

/// Finds what the NAT did among what is legal, or says why each legal thing is not it.
fn judge(legal: &Legal, received: Option<Received<'_>>, verdict: Verdict, output: &[u8]) -> Judgement {
    let mut why = Vec::new();
    match verdict {
        Verdict::Drop(reason) if legal.drops.contains(&reason) => return Ok((Outcome::Dropped(reason), Vec::new())),
        Verdict::AwaitFirst(_) if legal.awaits && received.is_some_and(|received| received.frame == output) => {
            return Ok((Outcome::Awaits, Vec::new()));
        }
        Verdict::Punt if legal.punt => {
            return if is_punted(received, output) {
                Ok((Outcome::Punted, Vec::new()))
            } else {
                Err(vec!["a punted frame was changed".to_owned()])
            };
        }
        Verdict::Transmit(_) | Verdict::Fragment { .. } | Verdict::Hold { .. } => {}
        _ => return Err(why),
    }
    let Some(received) = received else { return Err(why) };
    for forward in &legal.forwards {
        match forward.check(received, verdict, output) {
            Ok(()) => return Ok((forward.outcome.clone(), forward.effects.clone())),
            Err(reason) => why.push(format!("not {:?}: {reason}", forward.outcome)),
        }
    }
    for &reply in &legal.replies {
        if verdict != Verdict::Transmit(received.interface.device) {
            break;
        }
        match legal::check_reply(received, reply, output) {
            Ok(()) => return Ok((Outcome::Replied, Vec::new())),
            Err(reason) => why.push(format!("not the answer {}/{}: {reason}", reply.kind, reply.code)),
        }
    }
    Err(why)
}

fn explained(
    device: DeviceId,
    input: &[u8],
    clock: u64,
    verdict: Verdict,
    output: &[u8],
    legal: &Legal,
    why: &[String],
) -> Disagreement {
    let ways: Vec<_> = legal.forwards.iter().map(|f| format!("{:?} by {:?}", f.outcome, f.egress)).collect();
    Disagreement::plain(format!(
        "at {clock} ms, device {}: {}\n  the NAT says {verdict:?}: {}\n  legal: drop {:?}, reply {:?}, punt {}, wait {}, forward {ways:?}\n  {}",
        device.0,
        describe(input),
        describe(output),
        legal.drops,
        legal.replies,
        legal.punt,
        legal.awaits,
        legal.complaints.iter().chain(why).cloned().collect::<Vec<_>>().join("\n  "),
    ))
}

#[cfg(test)]
mod tests;
