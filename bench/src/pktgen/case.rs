//! One case: a way, a frame size and a number of flows. Sessions are made first, then rates are tried.
//!
//! Knows in which order trials come; not how they are run. Called by `run`, once for each case. Invariant: a rate is reported only of a trial
//! that passed, with sessions that were seen to be there before; the number of trials is bounded. Sources: RFC 2544 (search), RFC 9693
//! section 4 (first the sessions, then the rates), RFC 4814 (random flows).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::search::{Bounds, Limit, Next, Search};
use super::trial::{Amount, Trial};

/// How often it is tried to make the sessions. The first packets are lost while next hops are resolved.
const ATTEMPTS: u32 = 3;
/// How often a long trial is repeated a little slower, when the first was lossy. Chosen.
const CONFIRMATIONS: u32 = 3;
/// Bytes of a frame on the wire that are not in its size: preamble, start, gap. Source: IEEE 802.3.
const BETWEEN_FRAMES: u64 = 20;

/// Which ways packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From inside to outside.
    Outbound,
    /// From outside to external endpoints that are forwarded (`--forward`).
    Inbound,
    /// Both at once, each at the rate.
    Both,
    /// From inside to outside, and the outside port sends each packet back.
    Replies,
}

impl Way {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound (forwards)",
            Self::Both => "both ways at once",
            Self::Replies => "outbound and its replies",
        }
    }
}

/// How rates are tried.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Method {
    /// The search; not used when rates are given.
    pub(super) bounds: Bounds,
    /// Rates to try instead of a search, packets a second.
    pub(super) rates: Vec<u64>,
    /// How long a trial sends.
    pub(super) duration: Duration,
    /// How long the last trial sends, at the rate found; zero: there is none.
    pub(super) confirm: Duration,
    /// The part of the packets that may be lost, 0 to 1.
    pub(super) tolerance: f64,
    /// New flows a second while sessions are made.
    pub(super) establish_rate: u64,
}

impl Method {
    /// How long a case takes at most, roughly.
    pub(super) fn longest(&self, flows: u64) -> Duration {
        let trials = if self.rates.is_empty() { self.bounds.trials } else { self.rates.len() as u32 };
        let establish = Duration::from_secs_f64(flows as f64 / self.establish_rate.max(1) as f64);
        let around = Duration::from_secs(2);
        establish + around + (self.duration + around) * trials + self.confirm
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// The way.
    pub way: Way,
    /// **Units:** bytes with the frame check sequence.
    pub frame: u32,
    /// Flows in each direction: those asked for, or a few more.
    pub flows: u64,
}

/// The rate without loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LossFree {
    /// Packets a second in each direction.
    pub packets_per_second: u64,
    /// Packets a second that the gateway forwarded, all directions together.
    pub forwarded_per_second: u64,
    /// Of each direction's wire, frames with what is between them. **Units:** Gbit/s.
    pub wire_gigabits: f64,
    /// Why no more.
    pub limit: Limit,
    /// Whether a long trial has passed at this rate.
    pub confirmed: bool,
}

/// Sessions made before the rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Established {
    /// Rounds of one packet of each flow.
    pub rounds: u32,
    /// Packets that left the tester in all rounds, all directions together.
    pub sent: u64,
    /// Packets lost in all rounds.
    pub lost: u64,
    /// Packets lost in the last.
    pub lost_last: u64,
}

impl Established {
    fn add(&mut self, round: &Trial) {
        self.rounds += 1;
        self.sent += round.sent();
        self.lost += round.lost();
        self.lost_last = round.lost();
    }
}

/// How a case went.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What was measured.
    #[serde(flatten)]
    pub subject: Subject,
    /// The sessions.
    pub established: Established,
    /// Every trial, in order.
    pub trials: Vec<Trial>,
    /// The highest rate without loss; none when no trial passed.
    pub loss_free: Option<LossFree>,
    /// Losses that the drivers of the tester's own ports have counted, by port and name.
    pub port_losses: BTreeMap<String, BTreeMap<String, u64>>,
    /// What is wrong, whatever the rate.
    pub faults: Vec<String>,
}

/// Measures a case: `trial` runs one, `progress` tells what is going on.
///
/// **Errors:** the tester itself failed. What is wrong with the gateway is among the faults.
pub(super) fn measure(
    subject: Subject,
    method: &Method,
    mut trial: impl FnMut(Amount) -> Result<Trial>,
    mut progress: impl FnMut(&str),
) -> Result<Case> {
    let mut case = Case {
        subject,
        established: Established::default(),
        trials: Vec::new(),
        loss_free: None,
        port_losses: BTreeMap::new(),
        faults: Vec::new(),
    };
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let round = trial(Amount::EachFlow { rate: method.establish_rate })?;
        case.established.add(&round);
        case.note_faults(&round);
        let passed = round.passed;
        last = Some(round);
        if passed {
            break;
        }
    }
    if let Some(last) = last.filter(|last| !last.passed) {
        case.faults.push(not_established(&last));
        return Ok(case);
    }
    progress(&format!("{} flows are there", subject.flows));
    let mut tell = |trial: &Trial| progress(&line(trial));
    if method.rates.is_empty() {
        case.search(method, &mut trial, &mut tell)?;
    } else {
        for &rate in &method.rates {
            case.run(method.duration, Some(rate), &mut trial, &mut tell)?;
        }
        let limit = if case.trials.iter().all(|trial| trial.passed) { Limit::Generator } else { Limit::Loss };
        let passed = case.trials.iter().filter(|trial| trial.passed).max_by_key(|trial| trial.offered);
        case.loss_free = passed.map(|trial| loss_free(trial, subject.frame, limit, false));
    }
    Ok(case)
}

impl Case {
    /// Runs a trial of so long, and keeps it.
    fn run(
        &mut self,
        duration: Duration,
        rate: Option<u64>,
        trial: &mut impl FnMut(Amount) -> Result<Trial>,
        tell: &mut impl FnMut(&Trial),
    ) -> Result<Trial> {
        let outcome = trial(Amount::For { duration, rate })?;
        tell(&outcome);
        self.note_faults(&outcome);
        self.trials.push(outcome.clone());
        Ok(outcome)
    }

    fn search(
        &mut self,
        method: &Method,
        trial: &mut impl FnMut(Amount) -> Result<Trial>,
        tell: &mut impl FnMut(&Trial),
    ) -> Result<()> {
        let mut search = Search::new(method.bounds);
        let mut best: Option<Trial> = None;
        while let Next::Try(rate) = search.next() {
            let outcome = self.run(method.duration, rate, trial, tell)?;
            search.record(outcome.offered, outcome.passed);
            best = if outcome.passed { Some(outcome) } else { best.filter(|best| best.offered < outcome.offered) };
        }
        let (_, limit) = search.answer();
        self.loss_free = best.as_ref().map(|best| loss_free(best, self.subject.frame, limit, false));
        let Some(mut rate) = best.map(|best| best.offered).filter(|_| !method.confirm.is_zero()) else { return Ok(()) };
        for _ in 0..CONFIRMATIONS {
            let outcome = self.run(method.confirm, Some(rate), trial, tell)?;
            if outcome.passed {
                let limit = if outcome.kept { limit } else { Limit::Generator };
                self.loss_free = Some(loss_free(&outcome, self.subject.frame, limit, true));
                return Ok(());
            }
            rate = rate.saturating_sub(search.step()).max(1);
        }
        Ok(())
    }

    /// Keeps what is wrong at any rate, each once.
    fn note_faults(&mut self, trial: &Trial) {
        for leg in &trial.legs {
            let way = leg.direction.word();
            let mut note = |fault: String| {
                if !self.faults.contains(&fault) {
                    self.faults.push(fault);
                }
            };
            if leg.untranslated > 0 {
                note(format!("{way}: packets came out with an address that has to be translated: is it the NAT that forwards?"));
            }
            if leg.surplus > 0 {
                note(format!(
                    "{way}: more packets arrived than were sent: some of an earlier trial were held up for longer than --settle, \
                     something doubles them, or another sender uses pktgen"
                ));
            }
        }
    }
}

fn loss_free(trial: &Trial, frame: u32, limit: Limit, confirmed: bool) -> LossFree {
    let bits = (u64::from(frame) + BETWEEN_FRAMES) * 8 * trial.offered;
    LossFree {
        packets_per_second: trial.offered,
        forwarded_per_second: trial.delivered,
        wire_gigabits: bits as f64 / 1e9,
        limit,
        confirmed,
    }
}

/// Why there are no sessions, with what to look at.
fn not_established(trial: &Trial) -> String {
    let leg = |leg: &super::trial::Leg| format!("{}: {} of {} packets arrived", leg.direction.word(), leg.received, leg.sent);
    let legs: Vec<_> = trial.legs.iter().map(leg).collect();
    let none = trial.legs.iter().all(|leg| leg.received == 0);
    let hint = if none {
        "nothing passes: look at the gateway's Ethernet addresses (--inside-mac, --outside-mac), its routes to the hosts and remotes by \
         way of this machine's addresses, and whether it answers ARP (`ip neighbour` there)"
    } else {
        "some flows do not pass: has the pool a port for each (64,511 an address), do the forwards cover --forward, does the gateway hold \
         so many sessions, or is --establish-rate too high for it"
    };
    format!("the flows could not be established; {}; {hint}", legs.join(", "))
}

/// A trial, for people.
pub(super) fn line(trial: &Trial) -> String {
    let state = match (trial.passed, trial.kept) {
        (true, true) => "passed",
        (true, false) => "passed; the generator was slower than asked",
        (false, _) => "lost",
    };
    let whose: u64 = trial.legs.iter().map(|leg| leg.lost_by_receiver).sum();
    let whose = if whose > 0 { format!(", {whose} of them by the tester's own port") } else { String::new() };
    format!("{} packets/s: {} of {} lost{whose}: {state}", trial.offered, trial.lost(), trial.sent())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::trial::{Direction, Leg};

    const SUBJECT: Subject = Subject { way: Way::Outbound, frame: 64, flows: 1000 };

    fn method() -> Method {
        Method {
            bounds: Bounds { most: None, trials: 12, resolution: 0.01 },
            rates: Vec::new(),
            duration: Duration::from_secs(10),
            confirm: Duration::ZERO,
            tolerance: 0.0,
            establish_rate: 1000,
        }
    }

    fn leg(sent: u64, received: u64) -> Leg {
        Leg {
            direction: Direction::Outbound,
            sent,
            lost_by_sender: 0,
            received,
            lost_by_receiver: 0,
            lost: sent.saturating_sub(received),
            surplus: received.saturating_sub(sent),
            untranslated: 0,
            refused: 0,
            queues: Vec::new(),
        }
    }

    /// What a gateway makes of it that forwards `capacity` packets a second for 10 s, and less when the trial is longer.
    fn gateway(amount: Amount, capacity: u64, long_capacity: u64) -> Trial {
        let (rate, seconds) = match amount {
            Amount::EachFlow { rate } => (rate, 1),
            Amount::For { duration, rate } => (rate.unwrap_or(1_000_000), duration.as_secs()),
        };
        let capacity = if seconds > 10 { long_capacity } else { capacity };
        let legs = vec![leg(rate * seconds, rate.min(capacity) * seconds)];
        let passed = legs[0].lost == 0 && legs[0].received > 0;
        let delivered = rate.min(capacity);
        Trial { asked: Some(rate), offered: rate, seconds: seconds as f64, delivered, kept: true, passed, legs }
    }

    #[test]
    fn the_rate_without_loss_is_found_and_each_trial_kept() {
        let case = measure(SUBJECT, &method(), |amount| Ok(gateway(amount, 300_000, 0)), |_| {}).unwrap();
        let found = case.loss_free.unwrap();
        assert!((290_000..=300_000).contains(&found.packets_per_second), "{found:?}");
        assert_eq!((found.limit, found.confirmed, case.established.rounds), (Limit::Loss, false, 1));
        assert!(case.trials.len() > 5 && case.trials.len() <= 12 && case.faults.is_empty());
        // 84 bytes each on the wire.
        assert!((found.wire_gigabits - found.packets_per_second as f64 * 672e-9).abs() < 1e-9);
    }

    #[test]
    fn a_long_trial_that_loses_is_repeated_slower() {
        let method = Method { confirm: Duration::from_secs(60), ..method() };
        let case = measure(SUBJECT, &method, |amount| Ok(gateway(amount, 300_000, 285_000)), |_| {}).unwrap();
        let found = case.loss_free.unwrap();
        assert!(found.confirmed && found.packets_per_second <= 285_000, "{found:?}");
        let case = measure(SUBJECT, &method, |amount| Ok(gateway(amount, 300_000, 100_000)), |_| {}).unwrap();
        assert!(!case.loss_free.unwrap().confirmed);
    }

    #[test]
    fn rates_that_are_given_are_tried_as_they_are() {
        let method = Method { rates: vec![100_000, 400_000, 200_000], ..method() };
        let case = measure(SUBJECT, &method, |amount| Ok(gateway(amount, 300_000, 0)), |_| {}).unwrap();
        let offered: Vec<_> = case.trials.iter().map(|trial| trial.offered).collect();
        assert_eq!(offered, [100_000, 400_000, 200_000]);
        assert_eq!(case.loss_free.unwrap().packets_per_second, 200_000);
    }

    #[test]
    fn without_sessions_there_is_no_rate_and_the_fault_says_what_to_look_at() {
        let mut rounds = 0;
        let silent = |amount| {
            rounds += 1;
            Ok(gateway(amount, 0, 0))
        };
        let case = measure(SUBJECT, &method(), silent, |_| {}).unwrap();
        assert_eq!((rounds, case.trials.len(), case.loss_free), (ATTEMPTS, 0, None));
        assert!(
            case.faults[0].contains("0 of 1000 packets arrived") && case.faults[0].contains("--inside-mac"),
            "{:?}",
            case.faults
        );
        let case = measure(SUBJECT, &method(), |amount| Ok(gateway(amount, 999, 0)), |_| {}).unwrap();
        assert!(case.faults[0].contains("999 of 1000") && case.faults[0].contains("pool"), "{:?}", case.faults);
    }

    #[test]
    fn first_packets_may_be_lost_while_next_hops_are_resolved() {
        let mut rounds = 0;
        let trial = |amount| {
            rounds += 1;
            Ok(gateway(amount, if rounds == 1 { 10 } else { 2_000_000 }, 0))
        };
        let case = measure(SUBJECT, &method(), trial, |_| {}).unwrap();
        assert_eq!((case.established, case.faults.len()), (Established { rounds: 2, sent: 2000, lost: 990, lost_last: 0 }, 0));
        assert_eq!(case.loss_free.unwrap().limit, Limit::Generator);
    }

    #[test]
    fn untranslated_and_doubled_packets_are_faults_once() {
        let trial = |amount| {
            let mut trial = gateway(amount, 2_000_000, 0);
            trial.legs[0].untranslated = 3;
            trial.legs[0].surplus = 1;
            Ok(trial)
        };
        let case = measure(SUBJECT, &method(), trial, |_| {}).unwrap();
        assert_eq!(case.faults.len(), 2, "{:?}", case.faults);
    }
}
