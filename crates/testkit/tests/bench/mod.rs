//! The bench of the oracle's properties: a NAT in its generated world, with the reference beside it.
//!
//! Knows `Nat`'s public face; `gateway` is the one place that knows how a NAT is made. Called by `oracle.rs`. A failing scenario is
//! shrunk, told step by step, and written to `target/failures/`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use portcullis_nat::policy::{DeviceId, InterfaceId, Mac, Network, Policy};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::Verdict;
use portcullis_nat::view::{MappingView, SessionView};
use portcullis_nat::{Capacity, Nat, Packet, Seeds};
use portcullis_steering::{Owners, WorkerId};
use portcullis_testkit::builder::describe;
use portcullis_testkit::generate::world::{POOL, mac_of, next_hops};
use portcullis_testkit::generate::{Forwarded, Plan, Received, Scenario, Stage, Step, scaled, scenario};
use portcullis_testkit::pcap::{Record, write_failure};
use portcullis_testkit::reference::{Limits, Outcome, ReferenceNat};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError, TestRunner};

/// A frame's memory, with room for what the NAT may add.
pub(crate) const FRAME: usize = 2048;

/// Steps of a scenario at most.
pub(crate) const STEPS: usize = 60;

/// Whatever a frame's memory holds behind the packet.
pub(crate) const CANARY: u8 = 0xC5;

/// How many records the NAT holds in that world.
pub(crate) fn capacity(plan: &Plan) -> Capacity {
    let (mappings, sessions, fragments) = plan.capacity;
    Capacity { mappings, sessions, externals: POOL.len() as u16, fragments }
}

/// The one place that knows how a NAT is made.
pub(crate) fn gateway<'m>(memory: &'m mut Vec<u8>, plan: &Plan, seeds: [u64; 4]) -> Nat<'m> {
    let capacity = capacity(plan);
    memory.clear();
    memory.resize(capacity.bytes(), 0);
    let now = Tick(plan.start);
    let mut nat = Nat::new(memory, capacity, Seeds(seeds), Owners::single(), WorkerId(0), now).expect("the memory is large enough");
    nat.adopt_policy(Arc::new(plan.policy()), now);
    nat.adopt_network(Arc::new(plan.network()));
    nat
}

pub(crate) fn sessions(nat: &Nat<'_>, now: Tick) -> Vec<SessionView> {
    let (mut views, mut cursor) = (Vec::new(), Some(0));
    while let Some(at) = cursor {
        cursor = nat.sessions(at, 16, now, &mut views);
    }
    views
}

pub(crate) fn mappings(nat: &Nat<'_>) -> Vec<MappingView> {
    let (mut views, mut cursor) = (Vec::new(), Some(0));
    while let Some(at) = cursor {
        cursor = nat.mappings(at, 16, &mut views);
    }
    views
}

/// What one frame became.
pub(crate) struct Done {
    pub(crate) verdict: Verdict,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory: Vec<u8>,
}

pub(crate) fn process(nat: &mut Nat<'_>, frames: &[Received], now: Tick) -> Vec<Done> {
    let mut memory: Vec<Vec<u8>> = frames.iter().map(|frame| padded(&frame.bytes)).collect();
    let mut burst: Vec<Packet<'_>> =
        memory.iter_mut().zip(frames).map(|(buffer, frame)| Packet::received(buffer, frame.bytes.len())).collect();
    let mut verdicts = Vec::new();
    nat.process(&mut burst, frames[0].device, now, &mut verdicts);
    assert_eq!(verdicts.len(), frames.len(), "one verdict for each packet");
    let lens: Vec<_> = burst.iter().map(|packet| packet.len).collect();
    let done = |((verdict, len), memory): ((Verdict, usize), Vec<u8>)| Done { verdict, bytes: memory[..len].to_vec(), memory };
    verdicts.into_iter().zip(lens).zip(memory).map(done).collect()
}

pub(crate) fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut memory = vec![CANARY; FRAME.max(bytes.len())];
    memory[..bytes.len()].copy_from_slice(bytes);
    memory
}

/// A NAT in its world, with the reference beside it if wanted.
pub(crate) struct Bench<'m> {
    pub(crate) nat: Nat<'m>,
    pub(crate) reference: ReferenceNat,
    pub(crate) plan: Plan,
    pub(crate) policy: Policy,
    pub(crate) network: Network,
    pub(crate) stage: Stage,
    pub(crate) now: Tick,
    pub(crate) records: Vec<Record>,
    pub(crate) outcomes: Vec<(Outcome, Verdict)>,
    pub(crate) log: Option<Vec<String>>,
}

impl<'m> Bench<'m> {
    pub(crate) fn new(memory: &'m mut Vec<u8>, plan: &Plan, seeds: [u64; 4]) -> Self {
        let nat = gateway(memory, plan, seeds);
        let gauges = nat.gauges();
        let limits = Limits {
            mappings: gauges.mappings_limit as usize,
            sessions: gauges.sessions_limit as usize,
            fragments: plan.capacity.2 as usize,
        };
        let (policy, network, now) = (plan.policy(), plan.network(), Tick(plan.start));
        let reference = ReferenceNat::new(Arc::new(policy.clone()), Arc::new(network.clone()), limits, now);
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
            Step::Sweep => self.sweep(),
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
            Step::Address(index) => self.flip_address(index.index(self.policy.externals.len())),
            _ => {
                if let Step::Again { after: Some(wait), .. } = step {
                    self.now = self.now.after(wait.milliseconds(&self.policy.timeouts));
                }
                let frames = self.stage.frames(step);
                if !frames.is_empty() {
                    self.burst(&frames)?;
                }
            }
        }
        self.nat.expire(self.now);
        self.reference.advance(self.now);
        self.reference.swept_fragments();
        self.compare()
    }

    /// A step, as a check of its own.
    pub(crate) fn checked(bench: &mut Bench<'_>, step: &Step) -> Result<(), String> {
        bench.step(step)
    }

    pub(crate) fn sweep(&mut self) {
        self.nat.expire_all(self.now);
        self.reference.advance(self.now);
        self.reference.swept();
    }

    fn rewire(&mut self) {
        let network = Arc::new(self.network.clone());
        self.nat.adopt_network(Arc::clone(&network));
        self.reference.adopt_network(network);
    }

    /// An address that comes back before the sweep has passed may bring its sessions back with it, which no rule settles: the sweep
    /// goes first.
    fn flip_address(&mut self, slot: usize) {
        if self.policy.externals[slot].address.is_none() {
            self.sweep();
        }
        let external = &mut self.policy.externals[slot];
        external.address = if external.address.is_none() { Some(POOL[slot]) } else { None };
        let policy = Arc::new(self.policy.clone());
        self.reference.advance(self.now);
        self.nat.adopt_policy(Arc::clone(&policy), self.now);
        self.reference.adopt_policy(policy);
    }

    pub(crate) fn burst(&mut self, frames: &[Received]) -> Result<(), String> {
        let done = process(&mut self.nat, frames, self.now);
        for (frame, done) in frames.iter().zip(done) {
            self.record(&frame.bytes);
            self.note(|| format!("  in  {}: {}", frame.device.0, describe(&frame.bytes)));
            self.note(|| format!("  out {:?}: {}", done.verdict, describe(&done.bytes)));
            if matches!(done.verdict, Verdict::Transmit(_) | Verdict::Fragment { .. } | Verdict::Hold { .. }) {
                self.record(&done.bytes);
            }
            let outcome = self.reference.observe(frame.device, &frame.bytes, self.now, done.verdict, &done.bytes);
            let outcome = outcome.map_err(|disagreement| disagreement.to_string())?;
            self.note(|| format!("      {outcome:?}"));
            self.outcomes.push((outcome, done.verdict));
            self.stage.received.push(frame.clone());
            self.deliver(done, frame)?;
        }
        Ok(())
    }

    pub(crate) fn deliver(&mut self, done: Done, input: &Received) -> Result<(), String> {
        let bytes = match done.verdict {
            Verdict::Transmit(device) | Verdict::Fragment { device, .. } => Some((device, done.bytes)),
            Verdict::Hold { interface, next_hop } => self.resolve(&done, interface, next_hop)?,
            _ => None,
        };
        if let Some((device, bytes)) = bytes {
            self.stage.forwarded.push(Forwarded { device, bytes, input: input.clone() });
        }
        Ok(())
    }

    /// A held packet goes on when its next hop is known, and only its link layer changes.
    fn resolve(
        &mut self,
        done: &Done,
        interface: InterfaceId,
        next_hop: std::net::Ipv4Addr,
    ) -> Result<Option<(DeviceId, Vec<u8>)>, String> {
        let mut memory = done.memory.clone();
        let mut packet = Packet::received(&mut memory, done.bytes.len());
        match self.nat.readdress(&mut packet, interface, next_hop) {
            Verdict::Hold { .. } => {}
            other => return Err(format!("without a neighbour a held packet is {other:?}")),
        }
        let mac: Mac = mac_of(next_hop);
        let mut network = self.network.clone();
        network.neighbours.insert((interface, next_hop), mac);
        self.nat.adopt_network(Arc::new(network));
        let verdict = self.nat.readdress(&mut packet, interface, next_hop);
        let len = packet.len;
        self.nat.adopt_network(Arc::new(self.network.clone()));
        let Verdict::Transmit(device) = verdict else {
            return if matches!(verdict, Verdict::Fragment { .. }) {
                Ok(None)
            } else {
                Err(format!("a resolved packet is {verdict:?}"))
            };
        };
        let out = &self.network.interfaces[usize::from(interface.0)];
        let bytes = memory[..len].to_vec();
        if device != out.device || bytes[..6] != mac || bytes[6..12] != out.mac || datagram(&bytes) != datagram(&done.bytes) {
            return Err(format!("readdressed badly: {}", describe(&bytes)));
        }
        Ok(Some((device, bytes)))
    }

    pub(crate) fn compare(&mut self) -> Result<(), String> {
        let views = sessions(&self.nat, self.now);
        self.stage.externals = views.iter().map(|view| view.external).collect();
        let compared =
            self.reference.reconcile_sessions(&views).and_then(|()| self.reference.reconcile_mappings(&mappings(&self.nat)));
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
pub(crate) fn play(scenario: &Scenario, check: Check, aloud: bool) -> Result<(), (String, Vec<Record>)> {
    let mut memory = Vec::new();
    let mut bench = Bench::new(&mut memory, &scenario.plan, scenario.seeds);
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
    let config =
        ProptestConfig { cases: scaled(cases), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let outcome =
        runner.run(&scenario(steps), |scenario| play(&scenario, check, false).map_err(|(why, _)| TestCaseError::fail(why)));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(_, minimal)) => {
            let (why, records) = play(&minimal, check, true).expect_err("a shrunk scenario fails again");
            panic!("{why}\n{}", write_failure(name, &records));
        }
        Err(TestError::Abort(why)) => panic!("given up: {why}"),
    }
}
