//! The NAT against the reference NAT over random packets and time, and the invariants of the design, a property each.
//!
//! Knows `Nat`'s public face only. `PROPTEST_CASES` scales every property (256 is the default). Blind spots: the timing of the
//! incremental sweep; workers that adopt rules one after the other; more than three fragments; option-carrying embedded headers; rates of ICMP errors between none and ample.

use std::net::Ipv4Addr;
use std::sync::Arc;

use portcullis_nat::SWEEP_ROUND;
use portcullis_nat::counters::Counter;
use portcullis_nat::policy::DeviceId;
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_steering::{Owners, WorkerId};
use portcullis_testkit::builder::{PacketBuilder, describe, endpoint, verify};
use portcullis_testkit::fleet::Fleet;
use portcullis_testkit::generate::resolve::answered;
use portcullis_testkit::generate::world::{MACS, POOL};
use portcullis_testkit::generate::{Plan, Received, Scenario, scaled, scenario, scenario_of_bare, scenario_of_others};
use portcullis_testkit::reference::Outcome;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

mod bench;

use bench::{Bench, CANARY, STEPS, datagram, gateway, hold, hold_on, process};

#[test]
fn the_nat_and_the_reference_agree_about_every_packet() {
    hold("the_nat_and_the_reference_agree_about_every_packet", 3000, STEPS, Bench::checked);
}

/// The same with much room: tables are each worker's own, and the reference has one.
fn roomy(mut scenario: Scenario) -> Scenario {
    (scenario.plan.capacity, scenario.plan.others) = ((512, 1024, 256), 1024);
    scenario.plan.bare = if scenario.plan.bare > 0 { 512 } else { 0 };
    scenario
}

/// Eight workers, each with its share of the ports, and hand-offs in any interleaving.
#[test]
fn eight_workers_and_the_reference_agree_about_every_packet() {
    // Longer ones: to find out who owns which port takes eight workers longer than many a packet.
    let scenarios = scenario(5 * STEPS).prop_map(roomy);
    hold_on(8, "eight_workers_and_the_reference_agree_about_every_packet", 200, scenarios, Bench::checked);
}

/// Few remotes, so that hosts want the same ones; on several workers the remote's owner knows.
#[test]
fn one_worker_and_eight_and_the_reference_agree_about_protocols_without_ports() {
    let name = "one_worker_and_eight_and_the_reference_agree_about_protocols_without_ports";
    hold_on(1, name, 1000, scenario_of_others(STEPS), Bench::checked);
    hold_on(8, name, 200, scenario_of_others(2 * STEPS).prop_map(roomy), Bench::checked);
}

/// UDP without sessions, and forwards that come and go over what it has.
#[test]
fn one_worker_and_eight_and_the_reference_agree_about_bare_mappings() {
    let name = "one_worker_and_eight_and_the_reference_agree_about_bare_mappings";
    hold_on(1, name, 1500, scenario_of_bare(STEPS), Bench::checked);
    hold_on(8, name, 200, scenario_of_bare(3 * STEPS).prop_map(roomy), Bench::checked);
}

/// Agreement about forwards that come over live bare mappings, and go from over live sessions, says little if that seldom happens.
#[test]
fn changes_of_forwards_meet_bare_mappings_and_sessions_in_more_than_one_of_twenty_scenarios() {
    let mut runner = TestRunner::deterministic();
    let (mut bare, mut mapped, mut led) = (0, 0, 0);
    for _ in 0..400 {
        let scenario = scenario(STEPS).new_tree(&mut runner).expect("a scenario").current();
        let mut memory = Vec::new();
        let mut bench = Bench::new(&mut memory, &scenario.plan, scenario.seeds, 1);
        scenario.steps.iter().try_for_each(|step| bench.step(step)).expect("they agree");
        bare += u32::from(scenario.plan.bare > 0);
        mapped += u32::from(bench.ended.0 > 0);
        led += u32::from(bench.ended.1 > 0);
    }
    assert!(bare > 80 && mapped > 20 && led > 20, "of 400 {bare} had bare mappings, {mapped} ended some, {led} ended sessions");
}

#[test]
fn no_two_live_mappings_share_an_external_endpoint() {
    hold("no_two_live_mappings_share_an_external_endpoint", 300, STEPS, |bench, step| {
        bench.step(step)?;
        let forwards = bench.policy.forwards.clone();
        let views = bench.nat.mappings(bench.now);
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
        let gauges = bench.nat.gauges();
        // What became of a first fragment is remembered, whatever it was.
        let gauges = portcullis_nat::view::Gauges { fragments: 0, ..gauges };
        let (sessions, mappings) = (bench.nat.sessions(bench.now), bench.nat.mappings(bench.now));
        format!("{gauges:?} {:?} {sessions:?} {mappings:?} {:?}", bench.nat.port_use(), bench.nat.others(bench.now))
    }
    hold("a_dropped_first_packet_leaves_tables_pool_and_timers_unchanged", 300, STEPS, |bench, step| {
        for frame in bench.stage.frames(step) {
            bench.sweep()?;
            let (before, sessions) = (state(bench), bench.nat.sessions(bench.now));
            let mappings = bench.nat.mappings(bench.now);
            let forwards = bench.outcomes.len();
            bench.burst(std::slice::from_ref(&frame))?;
            bench.compare()?;
            for (outcome, _) in &bench.outcomes[forwards..] {
                // A hairpin that goes no further leaves its outbound half, which is what hole punching needs.
                let destination = read_destination(&frame.bytes);
                let half = frame.device == DeviceId(0) && destination.is_some_and(|address| POOL.contains(&address));
                let stopped = !half && matches!(outcome, Outcome::Dropped(_) | Outcome::Punted | Outcome::Replied);
                // What there was may be refreshed.
                if stopped && sessions.is_empty() && mappings.is_empty() && state(bench) != before {
                    return Err(format!("{outcome:?} of packet {forwards} changed {before} to {}", state(bench)));
                }
                let (more, of) = (bench.nat.sessions(bench.now).len(), bench.nat.mappings(bench.now).len());
                if stopped && (more, of) != (sessions.len(), mappings.len()) {
                    return Err(format!("{outcome:?} of packet {forwards} made or ended a session or a mapping"));
                }
            }
        }
        if bench.stage.frames(step).is_empty() { bench.step(step) } else { Ok(()) }
    });
}

fn read_destination(frame: &[u8]) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = frame.get(12..14).map(|_| datagram(frame))?.get(16..20)?.try_into().ok()?;
    Some(bytes.into())
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
        let gauges = bench.nat.gauges();
        let live = |made, removed| counters.get(made) - counters.get(removed);
        check("live sessions", live(Counter::SessionsCreated, Counter::SessionsRemoved), u64::from(gauges.sessions))?;
        check("live mappings", live(Counter::MappingsCreated, Counter::MappingsRemoved), u64::from(gauges.mappings))?;
        check("punted", counters.get(Counter::Punted), of(&|(_, verdict)| *verdict == Verdict::Punt))?;
        check("held", counters.get(Counter::Held), of(&|(_, verdict)| matches!(verdict, Verdict::Hold { .. })))?;
        check("fragmented", counters.get(Counter::Fragmented), of(&|(_, verdict)| matches!(verdict, Verdict::Fragment { .. })))?;
        let replied = of(&|(outcome, _)| *outcome == Outcome::Replied);
        check("answered", counters.get(Counter::IcmpErrorsSent), replied + bench.told)
    });
}

#[test]
fn any_bytes_at_all_are_survived_and_nothing_is_written_behind_the_packet() {
    let bytes = prop::collection::vec(any::<u8>(), 0..200);
    let strategy = (scenario(12), prop::collection::vec((0_u8..5, bytes), 1..8));
    let mut runner = TestRunner::new(ProptestConfig { cases: scaled(500), failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&strategy, |(scenario, raw)| {
        let mut memory = Vec::new();
        let mut bench = Bench::new(&mut memory, &scenario.plan, scenario.seeds, 1);
        let raw = raw.into_iter().map(|(device, bytes)| Received { device: DeviceId(device), bytes });
        let frames: Vec<_> = scenario.steps.iter().flat_map(|step| bench.stage.frames(step)).chain(raw).collect();
        for frame in frames {
            let done = process(&mut bench.nat, &frame, bench.now);
            let end = done.bytes().len().max(frame.bytes.len());
            prop_assert!(done.memory[end..].iter().all(|&byte| byte == CANARY), "written behind {end}: {}", describe(&frame.bytes));
            if done.verdict == Verdict::Punt {
                let changed = done.bytes().iter().zip(&frame.bytes).filter(|(now, before)| now != before).count();
                // A partial checksum is completed.
                prop_assert!(done.bytes().len() == frame.bytes.len() && changed <= 2, "punted: {}", describe(done.bytes()));
            }
            let to_outside = matches!(done.verdict, Verdict::Transmit(DeviceId(1 | 2)));
            if to_outside && frame.device == DeviceId(0) {
                let source: [u8; 4] = datagram(done.bytes())[12..16].try_into().expect("four bytes");
                prop_assert!(POOL.contains(&source.into()), "untranslated: {}", describe(done.bytes()));
            }
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn the_answer_to_a_translated_packet_comes_back_to_its_sender() {
    hold("the_answer_to_a_translated_packet_comes_back_to_its_sender", 300, STEPS, |bench, step| {
        let before = bench.outcomes.len();
        let frames = bench.stage.frames(step);
        bench.step(step)?;
        let news: Vec<_> = bench.outcomes[before..].to_vec();
        let [(Outcome::Outbound, Verdict::Transmit(device))] = news[..] else { return Ok(()) };
        let (sent, received) = (bench.stage.forwarded.last().cloned(), frames.first());
        let (Some(sent), Some(received)) = (sent, received) else { return Ok(()) };
        let Some(answer) = answered(&sent.bytes) else { return Ok(()) };
        let frame = Received { device, bytes: answer };
        bench.burst(std::slice::from_ref(&frame))?;
        let (outcome, verdict) = bench.outcomes.last().cloned().ok_or("no outcome")?;
        bench.compare()?;
        if !matches!(verdict, Verdict::Transmit(_)) {
            return Ok(());
        }
        let back = bench.stage.forwarded.last().map(|frame| frame.bytes.clone()).unwrap_or_default();
        let wanted = answered(&received.bytes).ok_or("the sender's packet can be answered")?;
        let (back, wanted) = (datagram(&back), datagram(&wanted));
        let same = back[12..24] == wanted[12..24];
        if outcome == Outcome::Inbound && same { Ok(()) } else { Err(format!("{outcome:?}: {back:02x?}, not {wanted:02x?}")) }
    });
}

#[test]
fn the_owner_of_each_session_and_of_its_answers_is_this_worker() {
    hold("the_owner_of_each_session_and_of_its_answers_is_this_worker", 100, STEPS, |bench, step| {
        bench.step(step)?;
        let owners = Owners::single();
        let mine = |view: &portcullis_nat::view::SessionView| {
            let external = owners.of_external(view.external.address, view.external.port);
            external == WorkerId(0) && owners.of_subscriber(view.internal.address) == external
        };
        bench.nat.sessions(bench.now).iter().find(|view| !mine(view)).map_or(Ok(()), |view| Err(format!("{view:?}")))
    });
}

#[test]
fn no_session_outlives_its_timeout_by_more_than_a_round_of_the_sweep() {
    hold("no_session_outlives_its_timeout_by_more_than_a_round_of_the_sweep", 100, STEPS, |bench, step| {
        bench.step(step)?;
        let times = bench.policy.timeouts;
        let longest =
            times.udp.max(times.tcp_established).max(times.tcp_opening).max(times.tcp_closing).max(times.icmp).max(times.other);
        // Another step's traffic goes on from here: a copy of the world would be needed to look further than once.
        if bench.outcomes.len() < STEPS / 2 {
            return Ok(());
        }
        bench.outcomes.clear();
        bench.now = bench.now.after(longest.as_millis() as u32 + 1);
        let start = bench.now;
        while bench.now.since(start) <= SWEEP_ROUND {
            bench.expire()?;
            bench.now = bench.now.after(SWEEP_ROUND / 50);
        }
        bench.expire()?;
        bench.reference.swept();
        let gauges = bench.nat.gauges();
        if (gauges.sessions, gauges.mappings, gauges.subscribers, gauges.others) == (0, 0, 0, 0) {
            Ok(())
        } else {
            Err(format!("{gauges:?}"))
        }
    });
}

#[test]
fn no_more_icmp_errors_are_sent_than_their_rate_and_burst_allow() {
    let strategy = (1_u32..200, 1_u32..20, prop::collection::vec(0_u32..300, 1..200));
    let mut runner = TestRunner::new(ProptestConfig { cases: scaled(100), failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&strategy, |(rate, burst, waits)| {
        let plan = Plan::default();
        let mut memory = Vec::new();
        let mut nat = gateway(&mut memory, &plan, [1, 2, 3, 4], 1);
        let mut policy = plan.policy();
        (policy.icmp_errors.rate, policy.icmp_errors.burst) = (rate, burst);
        let start = portcullis_nat::time::Tick(plan.start);
        nat.adopt_policy(&Arc::new(policy), start);
        let packet = PacketBuilder::udp(endpoint("10.0.0.11:1"), endpoint("192.0.2.10:53")).ttl(1);
        let frame = Received { device: DeviceId(0), bytes: packet.mac([6; 6], MACS[0]).build() };
        let (mut now, mut sent) = (start, 0_u64);
        for wait in waits {
            now = now.after(wait);
            let done = process(&mut nat, &frame, now);
            sent += u64::from(matches!(done.verdict, Verdict::Transmit(_)));
            let allowed = u64::from(burst) + u64::from(now.since(start)) * u64::from(rate) / 1000;
            prop_assert!(sent <= allowed, "{sent} sent, {allowed} allowed");
        }
        prop_assert!(sent > 0, "the first is sent");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn ports_are_found_to_the_last_one_and_no_live_mapping_is_evicted() {
    // RFC 6888, REQ-11D and REQ-13, at every size of a small pool.
    for ports in 1..=12_u16 {
        let mut plan = Plan { forwards: [false; 3], ..Plan::default() };
        plan.slots.truncate(1);
        plan.slots[0].ports = ports;
        let mut memory = Vec::new();
        let mut nat = gateway(&mut memory, &plan, [5, 6, 7, u64::from(ports)], 1);
        let now = portcullis_nat::time::Tick(plan.start);
        let send = |nat: &mut Fleet<'_>, port: u16| {
            let source = portcullis_nat::policy::Endpoint { address: Ipv4Addr::new(10, 0, 0, 11), port };
            let packet = PacketBuilder::udp(source, endpoint("192.0.2.10:53")).mac([6; 6], MACS[0]);
            process(nat, &Received { device: DeviceId(0), bytes: packet.build() }, now)
        };
        for port in 1..=ports {
            assert_eq!(send(&mut nat, port).verdict, Verdict::Transmit(DeviceId(1)), "port {port} of {ports}");
        }
        let refused = send(&mut nat, ports + 1);
        assert_eq!(refused.verdict, Verdict::Transmit(DeviceId(0)), "the sender is told");
        assert_eq!(refused.bytes()[..6], [6; 6]);
        let mut given: Vec<_> = nat.mappings(now).iter().map(|view| view.external.port).collect();
        given.sort_unstable();
        assert_eq!(given, (40_000..40_000 + ports).collect::<Vec<_>>());
        assert_eq!(send(&mut nat, 1).verdict, Verdict::Transmit(DeviceId(1)), "the oldest still works");
    }
}
