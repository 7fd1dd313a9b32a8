//! One trial: packets at a rate through the gateway, and what became of them.
//!
//! Knows pktgen and the two ports; not what rate to try. Called by `case`. Invariant: what was sent is received, lost by a port of the
//! tester, or lost between them, and the three make up the whole; a trial ends in its time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::control::Pktgen;
use super::count::{Answer, Counted, Counter, Forbidden};
use super::device::{Load, MOST, Order, Outcome, Stream};
use super::port::{self, Counters};

/// A generator that reaches less than this of a rate has not tried it. Chosen: pktgen's own pace is within 1 %.
const REACHED: f64 = 0.98;
/// How long a generator that falls behind is waited for, as a part of the trial, and besides.
const BEHIND: f64 = 0.25;
const BESIDES: Duration = Duration::from_secs(5);
/// How often it is looked whether all have come.
const LOOK: Duration = Duration::from_millis(50);
/// How long a link may take to come back after the counting program was attached. Chosen: cards take up to 10 s.
const LINK: Duration = Duration::from_secs(30);

/// Which way packets go through the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the inside port to the outside port.
    Outbound,
    /// From the outside port to the inside port.
    Inbound,
}

impl Direction {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How packets are counted that arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counting {
    /// By an XDP program that sees pktgen's packets only, and drops them as early as can be.
    Xdp,
    /// By the port's own counter of received packets, whatever they are.
    Port,
}

/// What a trial sends.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// By direction; of each the queues.
    pub(super) streams: Vec<(Direction, Vec<Stream>)>,
    /// Whether the outside port answers.
    pub(super) answer: Answer,
    pub(super) frame: u32,
    pub(super) burst: u32,
    pub(super) checksums: bool,
}

/// How much, how fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Amount {
    /// A packet of each flow, at a rate.
    EachFlow { rate: u64 },
    /// Flows at random for so long, at a rate, or as fast as can be.
    For { duration: Duration, rate: Option<u64> },
}

/// One way through the gateway in one trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leg {
    /// Which way.
    pub direction: Direction,
    /// Packets that the sending port was given.
    pub sent: u64,
    /// Of those, dropped by the sending port itself.
    pub lost_by_sender: u64,
    /// Packets that arrived at the other port.
    pub received: u64,
    /// Packets that the receiving port says it had no room for: the tester's loss, and in `lost` as well.
    pub lost_by_receiver: u64,
    /// Packets that left the tester and were not counted when they should have come back.
    pub lost: u64,
    /// Packets more than were sent.
    pub surplus: u64,
    /// Packets that arrived with an address that should have been translated.
    pub untranslated: u64,
    /// Attempts to send that the driver refused; most were repeated.
    pub refused: u64,
    /// Packets received by queue of the receiving port; empty where it cannot be told.
    pub queues: Vec<u64>,
}

/// How a trial went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Packets a second in each direction that were to be sent; none: as many as can be.
    pub asked: Option<u64>,
    /// Packets a second in each direction that were sent, the slower one's.
    pub offered: u64,
    /// How long was sent. **Units:** seconds.
    pub seconds: f64,
    /// Packets a second that arrived, all directions together.
    pub delivered: u64,
    /// Whether the generator kept the rate.
    pub kept: bool,
    /// Whether no more was lost than may be.
    pub passed: bool,
    /// The ways.
    pub legs: Vec<Leg>,
}

impl Trial {
    /// Packets lost, all directions together.
    pub fn lost(&self) -> u64 {
        self.legs.iter().map(|leg| leg.lost).sum()
    }

    /// Packets that left the tester, all directions together.
    pub fn sent(&self) -> u64 {
        self.legs.iter().map(|leg| leg.sent - leg.lost_by_sender).sum()
    }
}

/// A port of the tester with what counts at it.
struct Port {
    name: String,
    counter: Option<Counter>,
}

/// What a port has counted.
struct Snapshot {
    counted: Counted,
    counters: Counters,
}

impl Port {
    fn open(name: &str, counting: Counting, forbidden: Forbidden) -> Result<Self> {
        let counter = (counting == Counting::Xdp).then(|| Counter::attach(name, forbidden)).transpose()?;
        Ok(Self { name: name.to_owned(), counter })
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let counters = port::state(&self.name)?.counters;
        let counted = match &self.counter {
            Some(counter) => counter.read()?,
            None => Counted { packets: counters.received, ..Counted::default() },
        };
        Ok(Snapshot { counted, counters })
    }

    fn wait_for_link(&self) -> Result<()> {
        let start = Instant::now();
        while !port::state(&self.name)?.carrier {
            ensure!(start.elapsed() < LINK, "port {0} has no link: is it up (`ip link set {0} up`), and cabled?", self.name);
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Snapshot {
    fn since(&self, before: &Self) -> Self {
        Self { counted: self.counted.since(&before.counted), counters: self.counters.since(&before.counters) }
    }
}

/// The tester: pktgen and two ports.
pub(super) struct Tester {
    pktgen: Pktgen,
    inside: Port,
    outside: Port,
    settle: Duration,
}

impl Tester {
    /// Takes pktgen and the two ports, and waits for their links.
    ///
    /// **Errors:** what [`Pktgen::open`] and [`Counter::attach`] say; no link.
    pub(super) fn open(
        inside: (&str, Forbidden),
        outside: (&str, Forbidden),
        counting: Counting,
        settle: Duration,
    ) -> Result<Self> {
        let pktgen = Pktgen::open()?;
        let open = |(name, forbidden)| Port::open(name, counting, forbidden);
        let tester = Self { pktgen, inside: open(inside)?, outside: open(outside)?, settle };
        for port in [&tester.inside, &tester.outside] {
            port.wait_for_link()?;
        }
        Ok(tester)
    }

    /// The processors that pktgen has threads on.
    pub(super) fn cpus(&self) -> &[u32] {
        self.pktgen.cpus()
    }

    /// Runs a trial that may lose `tolerance` of its packets (0 to 1).
    pub(super) fn trial(&self, plan: &Plan, amount: Amount, tolerance: f64) -> Result<Trial> {
        if let Some(counter) = &self.outside.counter {
            counter.set_answer(plan.answer)?;
        }
        let loads: Vec<_> =
            plan.streams.iter().flat_map(|(_, streams)| streams.iter().map(|it| plan.load(it, streams, amount))).collect();
        let streams = plan.streams.iter().flat_map(|(_, streams)| streams).cloned();
        let loaded: Vec<(Stream, Load)> = streams.zip(loads).collect();
        let before = [self.inside.snapshot()?, self.outside.snapshot()?];
        let mut outcomes = self.pktgen.run(&loaded, amount.limit(plan))?.into_iter();
        let sent: Vec<Sent> = plan
            .streams
            .iter()
            .map(|(direction, streams)| Sent::sum(*direction, &outcomes.by_ref().take(streams.len()).collect::<Vec<_>>()))
            .collect();
        let after = self.settled(&before, plan, &sent)?;
        Ok(judge(plan, amount, &sent, &after, tolerance))
    }

    /// What the ports have counted since `before`, once all have come, or nothing has for a while.
    fn settled(&self, before: &[Snapshot; 2], plan: &Plan, sent: &[Sent]) -> Result<[Snapshot; 2]> {
        let (mut last, mut changed) = (0, Instant::now());
        loop {
            let now = [self.inside.snapshot()?.since(&before[0]), self.outside.snapshot()?.since(&before[1])];
            let legs = legs(plan, sent, &now);
            let received = legs.iter().map(|leg| leg.received).sum();
            if received != last {
                (last, changed) = (received, Instant::now());
            }
            let complete = legs.iter().all(|leg| leg.lost == 0);
            if complete || changed.elapsed() >= self.settle {
                return Ok(now);
            }
            thread::sleep(LOOK);
        }
    }
}

/// What one direction's devices have sent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sent {
    direction: Direction,
    packets: u64,
    refused: u64,
    per_second: f64,
    time: Duration,
}

impl Sent {
    fn sum(direction: Direction, outcomes: &[Outcome]) -> Self {
        let rate = |outcome: &Outcome| outcome.sent as f64 / outcome.time.as_secs_f64().max(1e-6);
        Self {
            direction,
            packets: outcomes.iter().map(|outcome| outcome.sent).sum(),
            refused: outcomes.iter().map(|outcome| outcome.errors).sum(),
            per_second: outcomes.iter().map(rate).sum(),
            time: outcomes.iter().map(|outcome| outcome.time).max().unwrap_or_default(),
        }
    }
}

impl Plan {
    /// The most flows of any queue.
    fn flows(&self) -> u64 {
        self.streams.iter().flat_map(|(_, streams)| streams).map(|stream| stream.part.flows()).max().unwrap_or(0)
    }

    /// What one of a direction's `streams` is to send.
    fn load(&self, stream: &Stream, streams: &[Stream], amount: Amount) -> Load {
        let share = |rate: u64| rate.div_ceil(streams.len() as u64).max(1);
        let (order, rate, count) = match amount {
            Amount::EachFlow { rate } => (Order::Each, Some(share(rate)), Some(stream.part.flows())),
            Amount::For { duration, rate } => {
                let packets = |rate| ((share(rate) as f64 * duration.as_secs_f64()) as u64).clamp(1, MOST);
                (Order::Random, rate.map(share), rate.map(packets))
            }
        };
        // Each flow once is each flow once, whatever the burst.
        let burst = if order == Order::Each { 1 } else { self.burst };
        Load { frame: self.frame, order, rate, count, burst, checksums: self.checksums }
    }
}

impl Amount {
    /// When the trial is ended, if it has not ended by itself.
    fn limit(self, plan: &Plan) -> Duration {
        let time = match self {
            Self::EachFlow { rate } => {
                let queues = plan.streams.iter().map(|(_, streams)| streams.len()).max().unwrap_or(1);
                Duration::from_secs_f64(plan.flows() as f64 * queues as f64 / rate.max(1) as f64)
            }
            Self::For { duration, rate: Some(_) } => duration,
            Self::For { duration, rate: None } => return duration,
        };
        time.mul_f64(1.0 + BEHIND) + BESIDES
    }

    const fn rate(self) -> Option<u64> {
        match self {
            Self::EachFlow { rate } => Some(rate),
            Self::For { rate, .. } => rate,
        }
    }
}

/// The ways through the gateway, with what the ports (inside, outside) counted meanwhile.
fn legs(plan: &Plan, sent: &[Sent], ports: &[Snapshot; 2]) -> Vec<Leg> {
    let [inside, outside] = ports;
    let mut legs: Vec<Leg> = sent
        .iter()
        .map(|sent| match sent.direction {
            Direction::Outbound => leg(sent.direction, sent.packets, sent.refused, inside, outside),
            Direction::Inbound => leg(sent.direction, sent.packets, sent.refused, outside, inside),
        })
        .collect();
    if plan.answer == Answer::Yes {
        // What the outside port has counted it has sent back.
        legs.push(leg(Direction::Inbound, outside.counted.packets, 0, outside, inside));
    }
    legs
}

fn leg(direction: Direction, sent: u64, refused: u64, from: &Snapshot, to: &Snapshot) -> Leg {
    let received = to.counted.packets;
    let lost_by_sender = from.counters.send_lost.min(sent);
    let left = sent - lost_by_sender;
    let lost = left.saturating_sub(received);
    Leg {
        direction,
        sent,
        lost_by_sender,
        received,
        lost_by_receiver: to.counters.receive_lost.min(lost),
        lost,
        surplus: received.saturating_sub(left),
        untranslated: to.counted.untranslated,
        refused,
        queues: to.counted.queues.clone(),
    }
}

fn judge(plan: &Plan, amount: Amount, sent: &[Sent], ports: &[Snapshot; 2], tolerance: f64) -> Trial {
    let legs = legs(plan, sent, ports);
    let slowest = sent.iter().map(|sent| sent.per_second).fold(f64::INFINITY, f64::min);
    let seconds = sent.iter().map(|sent| sent.time).max().unwrap_or_default().as_secs_f64();
    let received: u64 = legs.iter().map(|leg| leg.received).sum();
    let may_lose = |leg: &Leg| (leg.sent - leg.lost_by_sender) as f64 * tolerance;
    Trial {
        asked: amount.rate(),
        offered: if slowest.is_finite() { slowest as u64 } else { 0 },
        seconds,
        delivered: if seconds > 0.0 { (received as f64 / seconds) as u64 } else { 0 },
        kept: amount.rate().is_none_or(|rate| slowest >= rate as f64 * REACHED),
        passed: received > 0 && legs.iter().all(|leg| leg.lost as f64 <= may_lose(leg)),
        legs,
    }
}

/// Says that a run needs root before it fails at something else. **Errors:** not root.
pub(super) fn need_root() -> Result<()> {
    let denied = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    nix::unistd::geteuid().is_root().then_some(()).ok_or_else(denied).context("pktgen needs root: run this with sudo")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::device::Varied;
    use crate::pktgen::flows::Part;

    fn streams(queues: u32) -> Vec<Stream> {
        let stream = |queue| Stream {
            interface: "eth1".into(),
            queue,
            cpu: queue,
            gateway: "02:00:00:00:00:01".parse().unwrap(),
            part: Part { first_address: 1, addresses: 25, first_port: 1024, ports: 4 },
            varied: Varied::Source,
            destination: [198, 18, 0, 1].into(),
            fixed_port: 9,
        };
        (0..queues).map(stream).collect()
    }

    fn plan(answer: Answer) -> Plan {
        Plan { streams: vec![(Direction::Outbound, streams(2))], answer, frame: 64, burst: 4, checksums: true }
    }

    fn sent(packets: u64) -> Sent {
        let outcome = Outcome { sent: packets / 2, errors: 1, time: Duration::from_secs(2) };
        Sent::sum(Direction::Outbound, &[outcome, outcome])
    }

    fn snapshot(counted: u64, receive_lost: u64, send_lost: u64) -> Snapshot {
        let counted = Counted { packets: counted, ..Counted::default() };
        Snapshot { counted, counters: Counters { receive_lost, send_lost, ..Counters::default() } }
    }

    const TRIAL: Amount = Amount::For { duration: Duration::from_secs(2), rate: Some(500) };

    #[test]
    fn what_was_sent_is_received_or_lost_and_by_whom_is_said() {
        let ports = [snapshot(0, 0, 10), snapshot(950, 15, 0)];
        let trial = judge(&plan(Answer::No), TRIAL, &[sent(1000)], &ports, 0.0);
        let leg = &trial.legs[0];
        assert_eq!((leg.sent, leg.lost_by_sender, leg.received, leg.lost), (1000, 10, 950, 40));
        assert_eq!((leg.lost_by_receiver, leg.surplus, leg.refused), (15, 0, 2));
        assert_eq!(leg.sent, leg.lost_by_sender + leg.received + leg.lost);
        assert_eq!((trial.offered, trial.delivered, trial.passed, trial.kept), (500, 475, false, true));
    }

    #[test]
    fn loss_within_the_tolerance_passes_and_silence_never_does() {
        let judge = |received, tolerance| {
            judge(&plan(Answer::No), TRIAL, &[sent(1000)], &[snapshot(0, 0, 0), snapshot(received, 0, 0)], tolerance)
        };
        assert!(judge(1000, 0.0).passed);
        assert!(!judge(999, 0.0).passed);
        assert!(judge(999, 0.001).passed);
        assert!(!judge(998, 0.001).passed);
        assert!(!judge(0, 1.0).passed);
    }

    #[test]
    fn an_answering_port_makes_a_second_way_of_what_it_received() {
        let trial = judge(&plan(Answer::Yes), TRIAL, &[sent(1000)], &[snapshot(970, 0, 0), snapshot(990, 0, 5)], 0.0);
        let [out, back] = &trial.legs[..] else { panic!("two ways") };
        assert_eq!((out.sent, out.received, out.lost), (1000, 990, 10));
        assert_eq!(
            (back.direction, back.sent, back.lost_by_sender, back.received, back.lost),
            (Direction::Inbound, 990, 5, 970, 15)
        );
    }

    #[test]
    fn more_than_was_sent_is_a_surplus_and_not_a_negative_loss() {
        let trial = judge(&plan(Answer::No), TRIAL, &[sent(1000)], &[snapshot(0, 0, 0), snapshot(1002, 0, 0)], 0.0);
        assert_eq!((trial.legs[0].lost, trial.legs[0].surplus), (0, 2));
    }

    #[test]
    fn a_generator_that_is_too_slow_has_not_kept_the_rate() {
        let amount = Amount::For { duration: Duration::from_secs(2), rate: Some(600) };
        assert!(!judge(&plan(Answer::No), amount, &[sent(1000)], &[snapshot(0, 0, 0), snapshot(1000, 0, 0)], 0.0).kept);
    }

    #[test]
    fn queues_share_a_rate_and_each_sends_its_own_flows_once() {
        let (plan, streams) = (plan(Answer::No), streams(2));
        let load = plan.load(&streams[0], &streams, TRIAL);
        assert_eq!((load.rate, load.count, load.order, load.burst), (Some(250), Some(500), Order::Random, 4));
        let load = plan.load(&streams[0], &streams, Amount::EachFlow { rate: 1000 });
        assert_eq!((load.rate, load.count, load.order, load.burst), (Some(500), Some(100), Order::Each, 1));
        let unlimited = Amount::For { duration: Duration::from_secs(2), rate: None };
        assert_eq!((plan.load(&streams[0], &streams, unlimited).count, unlimited.limit(&plan)), (None, Duration::from_secs(2)));
    }
}
