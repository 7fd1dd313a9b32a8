//! The bench of the oracle's properties: a NAT of one worker or more in its generated world, with the reference beside it.
//!
//! Knows `Nat`'s public face; `gateway` is the one place that knows how a NAT is made. Frames come to any worker. Called by `oracle.rs`. A failing scenario is
//! shrunk, told step by step, and written to `target/failures/`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use portcullis_nat::policy::{DeviceId, InterfaceId, Mac, Network, Policy, Protocol};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::Verdict;
use portcullis_nat::{Capacity, Packet, Seeds};
use portcullis_testkit::builder::describe;
use portcullis_testkit::fleet::{Done, Fleet, owners};
use portcullis_testkit::generate::world::{ForwardChange, OTHERS, POOL, flipped, mac_of, next_hops};
use portcullis_testkit::generate::{Forwarded, Plan, Received, Scenario, Stage, Step, scaled, scenario};
use portcullis_testkit::pcap::{Record, write_failure};
use portcullis_testkit::reference::{Limits, Outcome, ReferenceNat};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError, TestRunner};

/// A frame's memory, with room for what the NAT may add.
pub(crate) const FRAME: usize = 2048;

/// Steps of a scenario at most.
pub(crate) const STEPS: usize = 60;

/// How often a frame comes at once, of those that do.
const COPIES: usize = 3;

/// Whatever a frame's memory holds behind the packet.
pub(crate) const CANARY: u8 = 0xC5;

/// How many records the NAT holds in that world.
pub(crate) fn capacity(plan: &Plan) -> Capacity {
    let (mappings, sessions, fragments) = plan.capacity;
    Capacity { mappings, bare_mappings: plan.bare, sessions, externals: POOL.len() as u16, fragments, others: plan.others }
}

/// The one place that knows how a NAT is made.
pub(crate) fn gateway<'m>(memory: &'m mut Vec<u8>, plan: &Plan, seeds: [u64; 4], workers: u16) -> Fleet<'m> {
    let now = Tick(plan.start);
    let [seed, ..] = seeds;
    let mut fleet = Fleet::new(memory, capacity(plan), Seeds(seeds), &owners(workers, seed), seed ^ 0xF00D, now);
    fleet.adopt_policy(&Arc::new(plan.policy()), now);
    fleet.adopt_network(&Arc::new(plan.network()));
    fleet
}

/// What a frame becomes.
pub(crate) fn process(nat: &mut Fleet<'_>, frame: &Received, now: Tick) -> Done {
    let number = offer(nat, frame);
    nat.run(now).into_iter().find(|done| done.number == number).expect("one verdict for each packet")
}

/// Puts a frame on any worker. Gives its number.
fn offer(nat: &mut Fleet<'_>, frame: &Received) -> u64 {
    let worker = nat.any_worker();
    nat.receive(worker, frame.device, padded(&frame.bytes), frame.bytes.len())
}

pub(crate) fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut memory = vec![CANARY; FRAME.max(bytes.len())];
    memory[..bytes.len()].copy_from_slice(bytes);
    memory
}

/// A NAT in its world, with the reference beside it if wanted.
pub(crate) struct Bench<'m> {
    pub(crate) nat: Fleet<'m>,
    pub(crate) reference: ReferenceNat,
    pub(crate) plan: Plan,
    pub(crate) policy: Policy,
    pub(crate) network: Network,
    pub(crate) stage: Stage,
    pub(crate) now: Tick,
    pub(crate) records: Vec<Record>,
    pub(crate) outcomes: Vec<(Outcome, Verdict)>,
    pub(crate) log: Option<Vec<String>>,
    /// ICMP errors that came by themselves.
    pub(crate) told: u64,
    /// Bare mappings, and UDP sessions, that a change of forwards has ended.
    pub(crate) ended: (usize, usize),
    /// Frames that are on their way or wait, by number.
    inputs: BTreeMap<u64, Received>,
    /// Frames that have waited or do.
    waited: BTreeSet<u64>,
    /// The next identification of a datagram whose fragments come all at once.
    fresh: u16,
}

impl<'m> Bench<'m> {
    pub(crate) fn new(memory: &'m mut Vec<u8>, plan: &Plan, seeds: [u64; 4], workers: u16) -> Self {
        let nat = gateway(memory, plan, seeds, workers);
        let gauges = nat.gauges();
        let limits = Limits {
            mappings: gauges.mappings_limit as usize,
            bare_mappings: plan.bare as usize * usize::from(workers),
            sessions: gauges.sessions_limit as usize,
            fragments: plan.capacity.2 as usize,
            others: gauges.others_limit as usize,
        };
        let (policy, network, now) = (plan.policy(), plan.network(), Tick(plan.start));
        let reference = ReferenceNat::new(Arc::new(policy.clone()), Arc::new(network.clone()), limits, now);
        let reference = reference.with_owners(nat.owners().clone());
        let stage = Stage { tagged: plan.tagged, ..Stage::default() };
        Self {
            nat,
            reference,
            plan: plan.clone(),
            policy,
            network,
            stage,
            now,
            records: Vec::new(),
            outcomes: Vec::new(),
            log: None,
            told: 0,
            ended: (0, 0),
            inputs: BTreeMap::new(),
            waited: BTreeSet::new(),
            fresh: 1000,
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }

    pub(crate) fn record(&mut self, bytes: &[u8]) {
        let milliseconds = u64::from(self.now.0.wrapping_sub(self.plan.start));
        self.records.push(Record { milliseconds, bytes: bytes.to_vec() });
    }

    pub(crate) fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Wait(wait) => self.now = self.now.after(wait.milliseconds(&self.policy.timeouts)),
            Step::Sweep => self.sweep()?,
            Step::Mtu(index, mtu) => {
                index.get_mut(&mut self.network.interfaces).mtu = *mtu;
                self.rewire();
            }
            Step::Flip(index) => {
                let interface = index.get_mut(&mut self.network.interfaces);
                interface.up = !interface.up;
                self.rewire();
            }
            Step::Neighbour(index) => {
                let hop = *index.get(&next_hops());
                if self.network.neighbours.remove(&hop).is_none() {
                    self.network.neighbours.insert(hop, mac_of(hop.1));
                }
                self.rewire();
            }
            Step::Address(index) => self.flip_address(index.index(self.policy.externals.len()))?,
            Step::Protocol(index) => self.flip_protocol(*index.get(&OTHERS))?,
            Step::Forwards(change) => self.change_forwards(change)?,
            _ => {
                if let Step::Again { after: Some(wait), .. } = step {
                    self.now = self.now.after(wait.milliseconds(&self.policy.timeouts));
                }
                self.traffic(step)?;
            }
        }
        self.expire()?;
        self.compare()
    }

    /// As much of the sweep as goes with one burst.
    pub(crate) fn expire(&mut self) -> Result<(), String> {
        self.reference.advance(self.now);
        let (given_up, _) = self.nat.expire_some(self.now);
        self.give_up(&given_up)?;
        self.reference.swept_fragments();
        let answers = self.nat.answers_due(self.now);
        self.told += answers.len() as u64;
        for (device, answer) in &answers {
            self.note(|| format!("  told {}: {}", device.0, describe(answer)));
        }
        self.reference.observe_due(&answers).map_err(|disagreement| disagreement.to_string())
    }

    /// A step, as a check of its own.
    pub(crate) fn checked(bench: &mut Bench<'_>, step: &Step) -> Result<(), String> {
        bench.step(step)
    }

    pub(crate) fn sweep(&mut self) -> Result<(), String> {
        self.reference.advance(self.now);
        let given_up = self.nat.expire_all(self.now);
        self.give_up(&given_up)?;
        self.reference.swept();
        let (waiting, known) = (self.nat.waiting(), self.reference.waiting());
        if waiting == known { Ok(()) } else { Err(format!("{waiting} frames wait, not {known}")) }
    }

    fn rewire(&mut self) {
        let network = Arc::new(self.network.clone());
        self.nat.adopt_network(&network);
        self.reference.adopt_network(network);
    }

    /// An address that comes back before the sweep has passed may bring its sessions back with it, which no rule settles: the sweep
    /// goes first.
    fn flip_address(&mut self, slot: usize) -> Result<(), String> {
        if self.policy.externals[slot].address.is_none() {
            self.sweep()?;
        }
        let external = &mut self.policy.externals[slot];
        external.address = if external.address.is_none() { Some(POOL[slot]) } else { None };
        self.reload()
    }

    /// No rule says whether translations outlast their protocol's absence: it comes back when their time is over.
    fn flip_protocol(&mut self, protocol: u8) -> Result<(), String> {
        if !self.policy.other_protocols.contains(protocol) {
            self.now = self.now.after(self.policy.timeouts.other.as_millis() as u32 + 1);
            self.sweep()?;
        }
        self.policy.other_protocols = flipped(self.policy.other_protocols, protocol);
        self.reload()
    }

    /// A forward comes over what bare mappings have, or goes from over sessions, or leads them elsewhere.
    fn change_forwards(&mut self, change: &ForwardChange) -> Result<(), String> {
        if self.plan.bare == 0 {
            return Ok(());
        }
        let bare = self.nat.bare_externals(self.now);
        let policy = self.plan.reforwarded(&self.policy, &bare, change);
        self.note(|| format!("  forwards {:?}", policy.forwards));
        self.policy = policy;
        let udp = |nat: &Fleet<'_>, now| nat.sessions(now).iter().filter(|view| view.protocol == Protocol::Udp).count();
        let sessions = udp(&self.nat, self.now);
        self.reload()?;
        self.ended.0 += bare.len() - self.nat.bare_externals(self.now).len();
        self.ended.1 += sessions - udp(&self.nat, self.now);
        Ok(())
    }

    fn reload(&mut self) -> Result<(), String> {
        let policy = Arc::new(self.policy.clone());
        self.reference.advance(self.now);
        let given_up = self.nat.adopt_policy(&policy, self.now);
        self.reference.adopt_policy(policy);
        self.give_up(&given_up)
    }

    /// The pieces of a datagram come all at once, in any order and interleaving, if no other may have its identification; or else one
    /// after the other.
    fn traffic(&mut self, step: &Step) -> Result<(), String> {
        let mut step = step.clone();
        let at_once = step.pieces().is_some_and(|(_, rotation)| rotation > 0);
        if at_once {
            step.set_id(self.fresh);
            self.fresh = self.fresh.wrapping_add(1);
        }
        let frames = self.stage.frames(&step);
        if at_once {
            return self.burst(&frames);
        }
        // Some come several times at once, so that a burst has the first packet of a session and the next ones.
        // But not what may be hairpinned: its first half may be seen in the tables only, which have to be compared after each then.
        let copies = if self.records.len().is_multiple_of(4) { COPIES } else { 1 };
        frames.iter().try_for_each(|frame| {
            // The destination of a frame without and with a tag.
            let goes_to = |at: usize, pool: &Ipv4Addr| frame.bytes.get(at..at + 4).is_none_or(|to| to == pool.octets());
            let once = POOL.iter().any(|pool| goes_to(30, pool) || goes_to(34, pool));
            self.burst(&vec![frame.clone(); if once { 1 } else { copies }])
        })
    }

    /// Frames that come at once, to any workers.
    pub(crate) fn burst(&mut self, frames: &[Received]) -> Result<(), String> {
        for frame in frames {
            self.record(&frame.bytes);
            self.note(|| format!("  in  {}: {}", frame.device.0, describe(&frame.bytes)));
            let number = offer(&mut self.nat, frame);
            self.inputs.insert(number, frame.clone());
            self.stage.received.push(frame.clone());
        }
        self.reference.advance(self.now);
        let done = self.nat.run(self.now);
        done.iter().try_for_each(|done| self.judge(done))
    }

    /// Has the reference judge what became of a frame.
    fn judge(&mut self, done: &Done) -> Result<(), String> {
        self.note(|| format!("  out {:?} by {:?}: {}", done.verdict, done.worker, describe(done.bytes())));
        let waits = matches!(done.verdict, Verdict::AwaitFirst(_));
        let input = if waits { self.inputs.get(&done.number).cloned() } else { self.inputs.remove(&done.number) };
        let input = input.ok_or("a frame ends twice")?;
        let released = self.waited.contains(&done.number);
        if released && done.is_given_up {
            return self.give_up_one(&input, done);
        }
        let (reference, verdict) = (&mut self.reference, done.verdict);
        let outcome = if released {
            reference.observe_released(input.device, &input.bytes, self.now, verdict, done.bytes())
        } else {
            reference.observe(input.device, &input.bytes, self.now, verdict, done.bytes())
        };
        let outcome = outcome.map_err(|disagreement| disagreement.to_string())?;
        self.note(|| format!("      {outcome:?}"));
        if waits {
            self.waited.insert(done.number);
            return Ok(());
        }
        self.outcomes.push((outcome, verdict));
        self.deliver(done, &input)?;
        if self.reference.has_unseen() { self.compare() } else { Ok(()) }
    }

    fn give_up(&mut self, given_up: &[Done]) -> Result<(), String> {
        for done in given_up {
            let input = self.inputs.remove(&done.number).ok_or("a frame ends twice")?;
            self.give_up_one(&input, done)?;
        }
        Ok(())
    }

    fn give_up_one(&mut self, input: &Received, done: &Done) -> Result<(), String> {
        self.note(|| format!("  given up: {:?}: {}", done.verdict, describe(done.bytes())));
        let outcome = self.reference.observe_given_up(&input.bytes, done.verdict, done.bytes());
        self.outcomes.push((outcome.map_err(|disagreement| disagreement.to_string())?, done.verdict));
        Ok(())
    }

    pub(crate) fn deliver(&mut self, done: &Done, input: &Received) -> Result<(), String> {
        let bytes = match done.verdict {
            Verdict::Transmit(device) | Verdict::Fragment { device, .. } => Some((device, done.bytes().to_vec())),
            Verdict::Hold { interface, next_hop } => self.resolve(done, interface, next_hop)?,
            _ => None,
        };
        if matches!(done.verdict, Verdict::Transmit(_) | Verdict::Fragment { .. } | Verdict::Hold { .. }) {
            self.record(done.bytes());
        }
        if let Some((device, bytes)) = bytes {
            self.stage.forwarded.push(Forwarded { device, bytes, input: input.clone() });
        }
        Ok(())
    }

    /// A held packet goes on when its next hop is known, and only its link layer changes.
    fn resolve(&mut self, done: &Done, interface: InterfaceId, next_hop: Ipv4Addr) -> Result<Option<(DeviceId, Vec<u8>)>, String> {
        let mut memory = done.memory.clone();
        let mut packet = Packet::received(&mut memory, done.len);
        match self.nat.readdress(&mut packet, interface, next_hop) {
            Verdict::Hold { .. } => {}
            other => return Err(format!("without a neighbour a held packet is {other:?}")),
        }
        let mac: Mac = mac_of(next_hop);
        let mut network = self.network.clone();
        network.neighbours.insert((interface, next_hop), mac);
        self.nat.adopt_network(&Arc::new(network));
        let verdict = self.nat.readdress(&mut packet, interface, next_hop);
        let len = packet.len;
        self.nat.adopt_network(&Arc::new(self.network.clone()));
        let Verdict::Transmit(device) = verdict else {
            return if matches!(verdict, Verdict::Fragment { .. }) {
                Ok(None)
            } else {
                Err(format!("a resolved packet is {verdict:?}"))
            };
        };
        let out = &self.network.interfaces[usize::from(interface.0)];
        let bytes = memory[..len].to_vec();
        if device != out.device || bytes[..6] != mac || bytes[6..12] != out.mac || datagram(&bytes) != datagram(done.bytes()) {
            return Err(format!("readdressed badly: {}", describe(&bytes)));
        }
        Ok(Some((device, bytes)))
    }

    pub(crate) fn compare(&mut self) -> Result<(), String> {
        let views = self.nat.sessions(self.now);
        self.stage.aim(&self.nat, &self.policy, self.now);
        let compared = self
            .reference
            .reconcile_sessions(&views)
            .and_then(|()| self.reference.reconcile_mappings(&self.nat.mappings(self.now)));
        let compared = compared.and_then(|()| self.reference.reconcile_others(&self.nat.others(self.now)));
        let compared = compared.and_then(|()| self.reference.check_gauges(&self.nat.gauges(), &self.nat.port_use()));
        compared.map_err(|disagreement| disagreement.to_string())
    }
}

/// The frame without its link layer.
pub(crate) fn datagram(frame: &[u8]) -> &[u8] {
    if frame[12..14] == [0x81, 0] { &frame[18..] } else { &frame[14..] }
}

pub(crate) type Check = fn(&mut Bench<'_>, &Step) -> Result<(), String>;

/// Runs a scenario with a check for each step.
pub(crate) fn play(scenario: &Scenario, workers: u16, check: Check, aloud: bool) -> Result<(), (String, Vec<Record>)> {
    let mut memory = Vec::new();
    let mut bench = Bench::new(&mut memory, &scenario.plan, scenario.seeds, workers);
    bench.log = aloud.then(Vec::new);
    for (number, step) in scenario.steps.iter().enumerate() {
        bench.note(|| format!("step {number}: {step:?}"));
        let checked = catch_unwind(AssertUnwindSafe(|| check(&mut bench, step)));
        if let Err(why) = checked.unwrap_or_else(|_| Err("it panicked".to_owned())) {
            let log = bench.log.take().unwrap_or_default().join("\n");
            return Err((format!("{log}\n\n{:?}\n\nstep {number}: {why}", scenario.plan), bench.records));
        }
    }
    Ok(())
}

/// Runs a property over scenarios; a failure is shrunk, told step by step, and recorded under the test's name.
pub(crate) fn hold(name: &str, cases: u32, steps: usize, check: Check) {
    hold_on(1, name, cases, scenario(steps), check);
}

/// The same on a number of workers, over other scenarios.
pub(crate) fn hold_on(workers: u16, name: &str, cases: u32, scenarios: impl Strategy<Value = Scenario>, check: Check) {
    let config =
        ProptestConfig { cases: scaled(cases), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let outcome =
        runner.run(&scenarios, |scenario| play(&scenario, workers, check, false).map_err(|(why, _)| TestCaseError::fail(why)));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(_, minimal)) => {
            let (why, records) = play(&minimal, workers, check, true).expect_err("a shrunk scenario fails again");
            panic!("{why}\n{}", write_failure(name, &records));
        }
        Err(TestError::Abort(why)) => panic!("given up: {why}"),
    }
}
