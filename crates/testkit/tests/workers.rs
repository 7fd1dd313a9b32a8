//! The property of ownership: the same packets on one worker, on two and on eight give the same bytes, mappings, sessions and counters.
//!
//! Random traffic with fragments in any order, ICMP errors, queries, hairpins, forwards, protocols without ports and time passing goes to eight
//! workers, each frame to any of them; the others get the same frames and the same choices of ports. Knows `Nat`'s public face only. `PROPTEST_CASES`
//! scales it. Blind spots: exhaustion (a share is smaller than the whole), changes of forwards of TCP, workers that adopt rules one after
//! the other, full rings between workers.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use portcullis_nat::counters::{Counter, Counters};
use portcullis_nat::policy::{Network, Policy};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DropReason, HandOffCause, Verdict};
use portcullis_nat::view::MappingView;
use portcullis_nat::{Capacity, Seeds};
use portcullis_testkit::builder::describe;
use portcullis_testkit::fleet::{Done, Fleet, owners};
use portcullis_testkit::generate::world::{OTHERS, POOL, flipped, mac_of, next_hops};
use portcullis_testkit::generate::{
    Forwarded, Plan, Received, Scenario, Stage, Step, scaled, scenario, scenario_of_bare, scenario_of_others,
};
use portcullis_testkit::pcap::{Record, write_failure};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestError, TestRunner};

/// The fleets; the first one leads.
const WORKERS: [u16; 3] = [8, 2, 1];

/// Steps of a scenario at most.
const STEPS: usize = 200;

/// The most hand-offs that any packet needs: to the worker that orders its fragments or owns its sender, and on to its receiver's.
const MOST_HANDS: u8 = 2;

/// A frame's memory, with room for what the NAT may add.
const FRAME: usize = 2048;

/// Enough for everything: what runs out does so earlier where it is shared out.
fn capacity(plan: &Plan) -> Capacity {
    let bare_mappings = if plan.bare > 0 { 512 } else { 0 };
    Capacity { mappings: 512, bare_mappings, sessions: 1024, externals: POOL.len() as u16, fragments: 1024, others: 1024 }
}

/// What became of each frame, by number.
type Ends = BTreeMap<u64, (Verdict, Vec<u8>)>;

struct Bench<'m> {
    fleets: Vec<Fleet<'m>>,
    plan: Plan,
    policy: Policy,
    network: Network,
    stage: Stage,
    now: Tick,
    records: Vec<Record>,
    /// The next identification of a datagram whose fragments come all at once.
    fresh: u16,
    ends: Ends,
    inputs: BTreeMap<u64, Received>,
}

impl<'m> Bench<'m> {
    fn new(memories: &'m mut [Vec<u8>; 3], scenario: &Scenario) -> Self {
        let mut plan = scenario.plan.clone();
        // Of a few low ports some workers have none, and give others, which the rest would be told to give in vain.
        plan.slots.iter_mut().for_each(|slot| (slot.ports, slot.low) = (0, 0));
        let (policy, network, now) = (plan.policy(), plan.network(), Tick(plan.start));
        let [seed, ..] = scenario.seeds;
        let fleet = |(memory, workers): (&'m mut Vec<u8>, u16)| {
            let mut fleet = Fleet::new(memory, capacity(&plan), Seeds(scenario.seeds), &owners(workers, seed), seed ^ 0xF00D, now);
            fleet.adopt_policy(&Arc::new(policy.clone()), now);
            fleet.adopt_network(&Arc::new(network.clone()));
            fleet
        };
        let fleets = memories.iter_mut().zip(WORKERS).map(fleet).collect();
        let stage = Stage { tagged: plan.tagged, ..Stage::default() };
        let (ends, inputs) = (Ends::new(), BTreeMap::new());
        Self { fleets, plan, policy, network, stage, now, records: Vec::new(), fresh: 1000, ends, inputs }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Wait(wait) => self.now = self.now.after(wait.milliseconds(&self.policy.timeouts)),
            Step::Sweep => {}
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
            Step::Address(index) => {
                self.sweep()?;
                let slot = index.index(self.policy.externals.len());
                let external = &mut self.policy.externals[slot];
                external.address = if external.address.is_none() { Some(POOL[slot]) } else { None };
                self.reload()?;
            }
            Step::Protocol(index) => {
                self.policy.other_protocols = flipped(self.policy.other_protocols, *index.get(&OTHERS));
                self.reload()?;
            }
            Step::Forwards(change) if self.plan.bare > 0 => {
                self.policy = self.plan.reforwarded(&self.policy, &self.fleets[2].bare_externals(self.now), change);
                self.reload()?;
            }
            _ => {
                if let Step::Again { after: Some(wait), .. } = step {
                    self.now = self.now.after(wait.milliseconds(&self.policy.timeouts));
                    self.sweep()?;
                }
                self.traffic(step)?;
            }
        }
        self.sweep()?;
        self.compare()
    }

    fn reload(&mut self) -> Result<(), String> {
        let (policy, now) = (Arc::new(self.policy.clone()), self.now);
        self.each(|fleet| fleet.adopt_policy(&policy, now))
    }

    fn rewire(&mut self) {
        let network = Arc::new(self.network.clone());
        self.fleets.iter_mut().for_each(|fleet| fleet.adopt_network(&network));
    }

    fn sweep(&mut self) -> Result<(), String> {
        let now = self.now;
        self.each(|fleet| fleet.expire_all(now))
    }

    /// What every fleet does by itself: the same frames have to end in the same way.
    fn each(&mut self, mut change: impl FnMut(&mut Fleet<'m>) -> Vec<Done>) -> Result<(), String> {
        let ends: Vec<_> = self.fleets.iter_mut().map(|fleet| ends(&change(fleet))).collect();
        self.agree(ends)
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
            return self.send(&frames);
        }
        frames.iter().try_for_each(|frame| self.send(std::slice::from_ref(frame)))
    }

    fn send(&mut self, frames: &[Received]) -> Result<(), String> {
        if frames.is_empty() {
            return Ok(());
        }
        for frame in frames {
            let milliseconds = u64::from(self.now.0.wrapping_sub(self.plan.start));
            self.records.push(Record { milliseconds, bytes: frame.bytes.clone() });
            self.stage.received.push(frame.clone());
        }
        let before: BTreeSet<_> = self.fleets[0].mappings(self.now).iter().map(name).collect();
        let mut all = Vec::new();
        for number in 0..self.fleets.len() {
            let script = if number == 0 { Vec::new() } else { self.choice(&before) };
            let fleet = &mut self.fleets[number];
            for worker in 0..fleet.workers() {
                fleet.nat(worker).script_draws(script.iter().copied());
            }
            for frame in frames {
                let mut memory = frame.bytes.clone();
                memory.resize(FRAME.max(memory.len()), 0);
                let worker = fleet.any_worker();
                let id = fleet.receive(worker, frame.device, memory, frame.bytes.len());
                self.inputs.insert(id, frame.clone());
            }
            let done = fleet.run(self.now);
            if let Some(much) = done.iter().find(|done| done.handed > MOST_HANDS) {
                return Err(format!("handed over {} times: {}", much.handed, describe(much.bytes())));
            }
            all.push(ends(&done));
        }
        self.agree(all)
    }

    /// The draws that lead the others to the external endpoint that the first fleet chose: the same number for the address (modulo the
    /// slots) and for the port (modulo 65,536).
    fn choice(&self, before: &BTreeSet<String>) -> Vec<u64> {
        let made = self.fleets[0].mappings(self.now);
        let Some(made) = made.iter().find(|mapping| !before.contains(&name(mapping))) else { return Vec::new() };
        let slot = self.policy.externals.iter().position(|external| external.address == Some(made.external.address));
        let slot = slot.expect("a pool's address") as u64;
        let number = (0..POOL.len() as u64).map(|times| times * 0x1_0000 + u64::from(made.external.port));
        let number =
            number.into_iter().find(|number| number % POOL.len() as u64 == slot).expect("3 and 65,536 have no common factor");
        vec![number; 2]
    }

    /// Takes down what became of the frames, if all fleets say the same.
    fn agree(&mut self, ends: Vec<Ends>) -> Result<(), String> {
        for (other, workers) in ends.iter().zip(WORKERS).skip(1) {
            for number in ends[0].keys().chain(other.keys()) {
                let (one, two) = (ends[0].get(number), other.get(number));
                if one.map(without_chosen_ids) != two.map(without_chosen_ids) {
                    let shown = |end: Option<&(Verdict, Vec<u8>)>| end.map(|(verdict, bytes)| (*verdict, describe(bytes)));
                    let input = self.inputs.get(number).map(|input| describe(&input.bytes));
                    return Err(format!("{input:?}\n  on 8: {:?}\n  on {workers}: {:?}", shown(one), shown(two)));
                }
            }
        }
        let first = ends.into_iter().next().unwrap_or_default();
        for (number, (verdict, bytes)) in first {
            if let (Verdict::Transmit(device) | Verdict::Fragment { device, .. }, Some(input)) = (verdict, self.inputs.get(&number))
            {
                self.stage.forwarded.push(Forwarded { device, bytes: bytes.clone(), input: input.clone() });
            }
            if self.ends.insert(number, (verdict, bytes)).is_some() {
                return Err(format!("frame {number} ended twice"));
            }
        }
        Ok(())
    }

    fn compare(&mut self) -> Result<(), String> {
        let views: Vec<_> = self.fleets.iter().map(|fleet| views(fleet, &self.plan, self.now)).collect();
        for (other, workers) in views.iter().zip(WORKERS).skip(1) {
            if let Some((one, two)) = views[0].iter().zip(other).find(|(one, two)| one != two) {
                return Err(format!("on 8 and on {workers} workers:\n  {one}\n  {two}"));
            }
            if views[0].len() != other.len() {
                return Err(format!("{} lines on 8 workers, {} on {workers}", views[0].len(), other.len()));
            }
        }
        self.stage.aim(&self.fleets[2], &self.policy, self.now);
        self.check_ownership()
    }

    /// What is said with a remote in protocols without ports is its owner's.
    fn check_ownership_of_others(&mut self, worker: usize) -> Result<(), String> {
        let (mut others, mut cursor) = (Vec::new(), Some(0));
        while let Some(from) = cursor {
            cursor = self.fleets[0].nat(worker).others(from, 64, self.now, &mut others);
        }
        let owners = self.fleets[0].owners();
        let strange = others.iter().find(|other| usize::from(owners.of_remote(other.remote).0) != worker);
        strange.map_or(Ok(()), |other| Err(format!("worker {worker} has {other:?}, whose answers come to another")))
    }

    /// Each mapping's external endpoint is its own, and its subscriber's owner's.
    fn check_ownership(&mut self) -> Result<(), String> {
        let mut taken = BTreeSet::new();
        for worker in 0..self.fleets[0].workers() {
            let (mut mappings, mut cursor) = (Vec::new(), Some(0));
            while let Some(from) = cursor {
                cursor = self.fleets[0].nat(worker).mappings(from, 64, self.now, &mut mappings);
            }
            for mapping in mappings {
                let owner = self.fleets[0].owners().of_external(mapping.external.address, mapping.external.port);
                if usize::from(owner.0) != worker || self.fleets[0].owners().of_subscriber(mapping.internal.address) != owner {
                    return Err(format!("worker {worker} has {mapping:?}, whose answers come to {owner:?}"));
                }
                if !taken.insert((mapping.protocol, mapping.external)) {
                    return Err(format!("two mappings have {:?}", mapping.external));
                }
            }
            self.check_ownership_of_others(worker)?;
        }
        Ok(())
    }
}

/// What became of a frame, without the identifications that each fleet's workers choose among their own, nor the checksums over them: of
/// fragments, of what is to be split, and in what an error quotes. That they are right, the reference says.
fn without_chosen_ids((verdict, bytes): &(Verdict, Vec<u8>)) -> (Verdict, Vec<u8>) {
    let mut bytes = bytes.clone();
    let at = if bytes.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let Some(header) = bytes.get(at..at + 20) else { return (*verdict, bytes) };
    let segment = at + usize::from(header[0] & 15) * 4;
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3FFF != 0;
    let quotes = header[9] == 1 && !is_fragment && matches!(bytes.get(segment), Some(3 | 11 | 12));
    // What is held may be split when it goes on.
    let chosen = (is_fragment || matches!(verdict, Verdict::Fragment { .. } | Verdict::Hold { .. })).then_some(at);
    for at in chosen.into_iter().chain(quotes.then_some(segment + 8)) {
        for field in [at + 4, at + 10] {
            bytes.iter_mut().skip(field).take(2).for_each(|byte| *byte = 0);
        }
    }
    (*verdict, bytes)
}

/// A mapping by what no other has.
fn name(mapping: &MappingView) -> String {
    format!("{:?} {:?} {:?} {:?}", mapping.protocol, mapping.internal, mapping.external, mapping.scope)
}

/// What has ended: of a fragment that waited, what became of it in the end.
fn ends(done: &[Done]) -> Ends {
    let mut ends: Ends = done.iter().map(|done| (done.number, (done.verdict, done.bytes().to_vec()))).collect();
    ends.retain(|_, (verdict, _)| !matches!(verdict, Verdict::AwaitFirst(_)));
    ends
}

/// Everything that has to be the same whatever the number of workers, line by line.
fn views(fleet: &Fleet<'_>, plan: &Plan, now: Tick) -> Vec<String> {
    let mut lines: Vec<_> = fleet.sessions(now).iter().map(|view| format!("{view:?}")).collect();
    lines.extend(fleet.mappings(now).iter().map(|view| format!("{view:?}")));
    lines.extend(fleet.others(now).iter().map(|view| format!("{view:?}")));
    lines.sort();
    let counters = fleet.counters();
    // How many fragments overtook their first depends on the interleaving.
    let mut varies: Vec<_> = HandOffCause::ALL.map(Counter::handed_off).into_iter().chain([Counter::EarlyFragments]).collect();
    // With bare mappings a worker learns the way to a remote once, for all of its subscribers.
    varies.extend((plan.bare > 0).then_some(Counter::FastPath));
    let counted = Counter::ALL.iter().filter(|counter| !varies.contains(counter));
    lines.extend(counted.map(|&counter| format!("{counter:?}: {}", counters.get(counter))));
    lines.extend(DropReason::ALL.iter().map(|&reason| format!("{reason:?}: {}", counters.dropped(reason))));
    lines.push(format!("subscribers: {}", fleet.gauges().subscribers));
    lines.push(format!("waiting: {}", fleet.waiting()));
    lines.extend(fleet.port_use().iter().map(|usage| format!("{usage:?}")));
    lines
}

/// Plays a scenario, and adds what eight workers counted to `seen`.
fn play(scenario: &Scenario, seen: &RefCell<Counters>) -> Result<(), (String, Vec<Record>)> {
    let mut memories = [const { Vec::new() }; 3];
    let mut bench = Bench::new(&mut memories, scenario);
    for (number, step) in scenario.steps.iter().enumerate() {
        let checked = catch_unwind(AssertUnwindSafe(|| bench.step(step)));
        if let Err(why) = checked.unwrap_or_else(|_| Err("it panicked".to_owned())) {
            let steps: Vec<_> = scenario.steps[..=number].iter().map(|step| format!("{step:?}")).collect();
            return Err((format!("{}\n{:?}\nstep {number}: {why}", steps.join("\n"), scenario.plan), bench.records));
        }
    }
    let counters = bench.fleets[0].counters();
    for &counter in Counter::ALL {
        seen.borrow_mut().add(counter, counters.get(counter));
    }
    for &reason in DropReason::ALL {
        seen.borrow_mut().drop_packets(reason, counters.dropped(reason));
    }
    Ok(())
}

/// Whether something was drawn often enough, or which counts say that it was not.
type Check = fn(&Counters) -> Result<(), String>;

/// What the traffic has to contain, or else agreement says little.
fn check_traffic(seen: &Counters) -> Result<(), String> {
    let wanted = HandOffCause::ALL.map(Counter::handed_off).into_iter().chain([
        Counter::EarlyFragments,
        Counter::Fragments,
        Counter::Outbound,
        Counter::Inbound,
        Counter::Hairpin,
        Counter::IcmpErrorsTranslated,
        Counter::IcmpErrorsSent,
        Counter::Punted,
        Counter::SessionsRemoved,
    ]);
    enough(wanted, seen)
}

fn enough(wanted: impl Iterator<Item = Counter>, seen: &Counters) -> Result<(), String> {
    let counts: Vec<_> = wanted.map(|counter| (counter, seen.get(counter))).collect();
    if counts.iter().all(|&(_, count)| count >= 20) { Ok(()) } else { Err(format!("{counts:?}")) }
}

/// The same of protocols without ports: hosts that want the same remotes, on workers that own them.
fn check_others(seen: &Counters) -> Result<(), String> {
    let handed = seen.get(Counter::handed_off(HandOffCause::OtherProtocol));
    let ambiguous = seen.dropped(DropReason::OtherProtocolAmbiguous);
    if handed >= 20 && ambiguous > 0 { Ok(()) } else { Err(format!("{handed} handed off, {ambiguous} ambiguous")) }
}

/// The same of bare mappings: that they are made and end, and that other workers have what belongs to them.
fn check_bare(seen: &Counters) -> Result<(), String> {
    let causes =
        [HandOffCause::Misplaced, HandOffCause::IcmpError, HandOffCause::Fragment, HandOffCause::Hairpin, HandOffCause::Forward];
    let wanted = causes.map(Counter::handed_off).into_iter().chain([Counter::Hairpin, Counter::MappingsRemoved]);
    enough(wanted, seen)
}

/// Plays scenarios, and more of them when those drawn did not contain enough; a failure is shrunk, and recorded under the test's name.
fn hold(name: &str, cases: u32, scenarios: impl Strategy<Value = Scenario>, check: Check) {
    /// Chosen: the rarest thing is missing from one lot in forty.
    const LOTS: u32 = 4;
    let seen = RefCell::new(Counters::default());
    let mut checked = Ok(());
    for _ in 0..LOTS {
        play_lot(name, cases, &scenarios, &seen);
        checked = check(&seen.borrow());
        if checked.is_ok() {
            break;
        }
    }
    checked.unwrap_or_else(|lacking| panic!("the traffic says little: {lacking}"));
}

/// Plays so many scenarios, and adds what eight workers counted to `seen`.
fn play_lot(name: &str, cases: u32, scenarios: &impl Strategy<Value = Scenario>, seen: &RefCell<Counters>) {
    let config =
        ProptestConfig { cases: scaled(cases), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() };
    let outcome =
        TestRunner::new(config).run(scenarios, |scenario| play(&scenario, seen).map_err(|(why, _)| TestCaseError::fail(why)));
    match outcome {
        Ok(()) => (),
        Err(TestError::Fail(_, minimal)) => {
            let (why, records) = play(&minimal, seen).expect_err("a shrunk scenario fails again");
            panic!("{why}\n{}", write_failure(name, &records));
        }
        Err(TestError::Abort(why)) => panic!("given up: {why}"),
    }
}

#[test]
fn one_two_and_eight_workers_do_the_same() {
    hold("one_two_and_eight_workers_do_the_same", 200, scenario(STEPS), check_traffic);
}

#[test]
fn one_two_and_eight_workers_do_the_same_in_protocols_without_ports() {
    let name = "one_two_and_eight_workers_do_the_same_in_protocols_without_ports";
    hold(name, 250, scenario_of_others(STEPS / 2), check_others);
}

#[test]
fn one_two_and_eight_workers_do_the_same_with_bare_mappings() {
    let name = "one_two_and_eight_workers_do_the_same_with_bare_mappings";
    hold(name, 200, scenario_of_bare(STEPS), check_bare);
}
