//! The NAT against the reference NAT over random packets and time, and the invariants of the design, a property each.
//!
//! Knows `Nat`'s public face only. A failing scenario is shrunk, printed step by step, and written to `target/failures/`.
//! `PROPTEST_CASES` scales every property. Blind spots: one worker; the sweep's lateness only from above; fragments of more than
//! three pieces.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{DeviceId, InterfaceId, Mac, Network, Policy};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_nat::view::{MappingView, SessionView};
use portcullis_nat::{Capacity, Nat, Packet, Seeds};
use portcullis_steering::{Owners, WorkerId};
use portcullis_testkit::builder::{describe, verify};
use portcullis_testkit::generate::steps::{Timeout, Wait};
use portcullis_testkit::generate::world::{POOL, mac_of, next_hops};
use portcullis_testkit::generate::{Forwarded, Plan, Received, Scenario, Stage, Step, scenario};
use portcullis_testkit::pcap::{Record, write_failure};
use portcullis_testkit::reference::{Limits, Outcome, ReferenceNat};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError, TestRunner};

/// A frame's memory, with room for what the NAT may add.
const FRAME: usize = 2048;

/// Steps of a scenario at most.
const STEPS: usize = 60;

/// Whatever a frame's memory holds behind the packet.
const CANARY: u8 = 0xC5;

/// How many records the NAT holds in that world.
fn capacity(plan: &Plan) -> Capacity {
    let (mappings, sessions, fragments) = plan.capacity;
    Capacity { mappings, sessions, externals: POOL.len() as u16, fragments }
}

/// The one place that knows how a NAT is made.
fn gateway<'m>(memory: &'m mut Vec<u8>, plan: &Plan, seeds: [u64; 4]) -> Nat<'m> {
    let capacity = capacity(plan);
    memory.clear();
    memory.resize(capacity.bytes(), 0);
    let now = Tick(plan.start);
    let mut nat = Nat::new(memory, capacity, Seeds(seeds), Owners::single(), WorkerId(0), now).expect("the memory is large enough");
    nat.adopt_policy(Arc::new(plan.policy()), now);
    nat.adopt_network(Arc::new(plan.network()));
    nat
}

fn sessions(nat: &Nat<'_>, now: Tick) -> Vec<SessionView> {
    let (mut views, mut cursor) = (Vec::new(), Some(0));
    while let Some(at) = cursor {
        cursor = nat.sessions(at, 16, now, &mut views);
    }
    views
}

fn mappings(nat: &Nat<'_>) -> Vec<MappingView> {
    let (mut views, mut cursor) = (Vec::new(), Some(0));
    while let Some(at) = cursor {
        cursor = nat.mappings(at, 16, &mut views);
    }
    views
}

/// What one frame became.
struct Done {
    verdict: Verdict,
    bytes: Vec<u8>,
    memory: Vec<u8>,
}

fn process(nat: &mut Nat<'_>, frames: &[Received], now: Tick) -> Vec<Done> {
    let mut memory: Vec<Vec<u8>> = frames.iter().map(|frame| padded(&frame.bytes)).collect();
    let mut burst: Vec<Packet<'_>> =
        memory.iter_mut().zip(frames).map(|(buffer, frame)| Packet { buffer, len: frame.bytes.len() }).collect();
    let mut verdicts = Vec::new();
    nat.process(&mut burst, frames[0].device, now, &mut verdicts);
    assert_eq!(verdicts.len(), frames.len(), "one verdict for each packet");
    let lens: Vec<_> = burst.iter().map(|packet| packet.len).collect();
    let done = |((verdict, len), memory): ((Verdict, usize), Vec<u8>)| Done { verdict, bytes: memory[..len].to_vec(), memory };
    verdicts.into_iter().zip(lens).zip(memory).map(done).collect()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut memory = vec![CANARY; FRAME.max(bytes.len())];
    memory[..bytes.len()].copy_from_slice(bytes);
    memory
}

/// A NAT in its world, with the reference beside it if wanted.
struct Bench<'m> {
    nat: Nat<'m>,
    reference: ReferenceNat,
    plan: Plan,
    policy: Policy,
    network: Network,
    stage: Stage,
    now: Tick,
    records: Vec<Record>,
    outcomes: Vec<(Outcome, Verdict)>,
    log: Option<Vec<String>>,
}

impl<'m> Bench<'m> {
    fn new(memory: &'m mut Vec<u8>, plan: &Plan, seeds: [u64; 4]) -> Self {
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

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }

    fn record(&mut self, bytes: &[u8]) {
        let milliseconds = u64::from(self.now.0.wrapping_sub(self.plan.start));
        self.records.push(Record { milliseconds, bytes: bytes.to_vec() });
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Wait(wait) => self.now = self.now.after(self.milliseconds(*wait)),
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
                let frames = self.stage.frames(step);
                if !frames.is_empty() {
                    self.burst(&frames)?;
                }
            }
        }
        self.nat.expire(self.now);
        self.reference.advance(self.now);
        self.compare()
    }

    fn milliseconds(&self, wait: Wait) -> u32 {
        let times = self.policy.timeouts;
        match wait {
            Wait::For(milliseconds) => milliseconds,
            Wait::About(timeout, by) => {
                let time = match timeout {
                    Timeout::Udp => times.udp,
                    Timeout::Established => times.tcp_established,
                    Timeout::Transitory => times.tcp_transitory,
                    Timeout::Icmp => times.icmp,
                    Timeout::Fragment => times.fragment,
                };
                (time.as_millis() as u32).saturating_add_signed(i32::from(by))
            }
        }
    }

    fn sweep(&mut self) {
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

    fn burst(&mut self, frames: &[Received]) -> Result<(), String> {
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
            self.deliver(done)?;
        }
        Ok(())
    }

    fn deliver(&mut self, done: Done) -> Result<(), String> {
        let bytes = match done.verdict {
            Verdict::Transmit(device) | Verdict::Fragment { device, .. } => Some((device, done.bytes)),
            Verdict::Hold { interface, next_hop } => self.resolve(&done, interface, next_hop)?,
            _ => None,
        };
        if let Some((device, bytes)) = bytes {
            self.stage.forwarded.push(Forwarded { device, bytes });
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
        let mut packet = Packet { buffer: &mut memory, len: done.bytes.len() };
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

    fn compare(&mut self) -> Result<(), String> {
        let views = sessions(&self.nat, self.now);
        self.stage.externals = views.iter().map(|view| view.external).collect();
        let compared =
            self.reference.reconcile_sessions(&views).and_then(|()| self.reference.reconcile_mappings(&mappings(&self.nat)));
        let compared = compared.and_then(|()| self.reference.check_gauges(&self.nat.gauges(), &self.nat.port_use()));
        compared.map_err(|disagreement| disagreement.to_string())
    }
}

/// The frame without its link layer.
fn datagram(frame: &[u8]) -> &[u8] {
    if frame[12..14] == [0x81, 0] { &frame[18..] } else { &frame[14..] }
}

type Check = fn(&mut Bench<'_>, &Step) -> Result<(), String>;

/// Runs a scenario with a check for each step.
fn play(scenario: &Scenario, check: Check, aloud: bool) -> Result<(), (String, Vec<Record>)> {
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
fn hold(name: &str, cases: u32, steps: usize, check: Check) {
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

/// `PROPTEST_CASES` counts for 256 of the default.
fn scaled(cases: u32) -> u32 {
    let wanted = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse::<u64>().ok());
    wanted.map_or(cases, |wanted| (u64::from(cases) * wanted / 256).max(1) as u32)
}

#[test]
fn the_nat_and_the_reference_agree_about_every_packet() {
    hold("the_nat_and_the_reference_agree_about_every_packet", 3000, STEPS, |bench, step| bench.step(step));
}

#[test]
fn no_two_live_mappings_share_an_external_endpoint() {
    hold("no_two_live_mappings_share_an_external_endpoint", 300, STEPS, |bench, step| {
        bench.step(step)?;
        let forwards = bench.policy.forwards.clone();
        let views = mappings(&bench.nat);
        for (number, one) in views.iter().enumerate() {
            let shared = views[..number].iter().find(|other| (other.protocol, other.external) == (one.protocol, one.external));
            let forwarded = forwards.iter().any(|f| f.protocol == one.protocol && (f.first..=f.last).contains(&one.external.port));
            if let Some(other) = shared.filter(|_| !forwarded) {
                return Err(format!("{one:?} and {other:?}"));
            }
        }
        Ok(())
    });
}

#[test]
fn a_dropped_first_packet_leaves_tables_pool_and_timers_unchanged() {
    fn state(bench: &Bench<'_>) -> String {
        format!("{:?} {:?} {:?}", bench.nat.gauges(), bench.nat.port_use(), sessions(&bench.nat, bench.now))
    }
    hold("a_dropped_first_packet_leaves_tables_pool_and_timers_unchanged", 300, STEPS, |bench, step| {
        for frame in bench.stage.frames(step) {
            bench.nat.expire_all(bench.now);
            let (before, known) = (state(bench), sessions(&bench.nat, bench.now));
            let sole = std::slice::from_ref(&frame);
            let done = process(&mut bench.nat, sole, bench.now).remove(0);
            bench.record(&frame.bytes);
            let forwards = bench.outcomes.len();
            let outcome = bench.reference.observe(frame.device, &frame.bytes, bench.now, done.verdict, &done.bytes);
            let outcome = outcome.map_err(|disagreement| disagreement.to_string())?;
            // A hairpin that is filtered leaves its outbound half, which is what hole punching needs.
            let half = outcome == Outcome::Dropped(DropReason::Filtered) && frame.device == DeviceId(0);
            let stopped = !half && matches!(outcome, Outcome::Dropped(_) | Outcome::Punted | Outcome::Replied);
            if stopped && known.is_empty() && state(bench) != before {
                return Err(format!("{outcome:?} of packet {forwards} changed {before} to {}", state(bench)));
            }
            if stopped && sessions(&bench.nat, bench.now).len() != known.len() {
                return Err(format!("{outcome:?} of packet {forwards} made or ended a session"));
            }
            bench.deliver(done)?;
            bench.compare()?;
        }
        if bench.stage.frames(step).is_empty() { bench.step(step) } else { Ok(()) }
    });
}

#[test]
fn delta_checksums_equal_checksums_from_scratch() {
    hold("delta_checksums_equal_checksums_from_scratch", 300, STEPS, |bench, step| {
        let right: Vec<_> = bench.stage.frames(step).iter().map(|frame| verify(&frame.bytes).is_ok()).collect();
        let before = bench.outcomes.len();
        bench.step(step)?;
        let outcomes: Vec<_> = bench.outcomes[before..].to_vec();
        let sent = bench.stage.forwarded.len();
        let went = |(_, verdict): &(Outcome, Verdict)| matches!(verdict, Verdict::Transmit(_) | Verdict::Fragment { .. });
        if outcomes.iter().all(went) && sent >= outcomes.len() {
            for (frame, right) in bench.stage.forwarded[sent - outcomes.len()..].iter().zip(right) {
                verify(&frame.bytes).or_else(|why| if right { Err(why) } else { Ok(()) })?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_counters_sum_to_the_packets_seen() {
    hold("the_counters_sum_to_the_packets_seen", 300, STEPS, |bench, step| {
        bench.step(step)?;
        let counters = bench.nat.counters();
        let of = |matching: &dyn Fn(&(Outcome, Verdict)) -> bool| bench.outcomes.iter().filter(|o| matching(o)).count() as u64;
        let check = |what: &str, counted: u64, seen: u64| {
            if counted == seen { Ok(()) } else { Err(format!("{what}: {counted} counted, {seen} seen")) }
        };
        for &reason in DropReason::ALL {
            let dropped = of(&|(_, verdict)| *verdict == Verdict::Drop(reason));
            let replies = of(&|(outcome, _)| *outcome == Outcome::Replied);
            let counted = counters.dropped(reason);
            if counted < dropped || counted > dropped + replies {
                return Err(format!("{reason:?}: {counted} counted, {dropped} seen"));
            }
        }
        check("punted", counters.get(Counter::Punted), of(&|(_, verdict)| *verdict == Verdict::Punt))?;
        check("held", counters.get(Counter::Held), of(&|(_, verdict)| matches!(verdict, Verdict::Hold { .. })))?;
        check("fragmented", counters.get(Counter::Fragmented), of(&|(_, verdict)| matches!(verdict, Verdict::Fragment { .. })))?;
        check("answered", counters.get(Counter::IcmpErrorsSent), of(&|(outcome, _)| *outcome == Outcome::Replied))
    });
}

#[test]
fn any_bytes_at_all_are_survived_and_nothing_is_written_behind_the_packet() {
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let strategy = (scenario(12), prop::collection::vec((0_u8..5, bytes), 1..8));
    let mut runner = TestRunner::new(ProptestConfig { cases: scaled(500), failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&strategy, |(scenario, raw)| {
        let mut memory = Vec::new();
        let mut bench = Bench::new(&mut memory, &scenario.plan, scenario.seeds);
        let raw = raw.into_iter().map(|(device, bytes)| Received { device: DeviceId(device), bytes });
        let frames: Vec<_> = scenario.steps.iter().flat_map(|step| bench.stage.frames(step)).chain(raw).collect();
        for frame in frames {
            let done = process(&mut bench.nat, std::slice::from_ref(&frame), bench.now).remove(0);
            let end = done.bytes.len().max(frame.bytes.len());
            prop_assert!(done.memory[end..].iter().all(|&byte| byte == CANARY), "written behind {end}: {}", describe(&frame.bytes));
            if done.verdict == Verdict::Punt {
                prop_assert_eq!(&done.bytes, &frame.bytes);
            }
            let to_outside = matches!(done.verdict, Verdict::Transmit(DeviceId(1 | 2)));
            if to_outside && frame.device == DeviceId(0) {
                let source: [u8; 4] = datagram(&done.bytes)[12..16].try_into().expect("four bytes");
                prop_assert!(POOL.contains(&source.into()), "untranslated: {}", describe(&done.bytes));
            }
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
