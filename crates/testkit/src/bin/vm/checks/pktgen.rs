//! Whether bench/pktgen measures what it says: the same script, in a tester's namespace of the guest, with the gateway between its ports.
//!
//! Knows the script's options and its report; the gateway's counters are the second witness. Called through the list in `checks`.
//! Invariant: what was sent is what arrived and what is said to be lost, and where nothing was lost the gateway has counted just as many.
//! Rates mean nothing here and are not looked at, but for that of a cable which is narrower than all else.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{counter, nothing_is_missing};
use crate::lab::tester::{Ended, NICS as PORTS};
use crate::lab::{Lab, Manner, NICS};

/// Where the script writes its reports.
const REPORTS: &str = "/run/pktgen";
/// What all runs have in common; sessions are made at a rate that the guest takes.
const COMMON: &str = "--sizes 64 --establish-rate 2000 --settle 2 --output /run/pktgen --note emulated";
/// A cable of 1000 packets of 60 bytes a second, with room for 200 more at once and 200 waiting (the words of tc-tbf(8)).
const CABLE: &str = "rate 480kbit burst 12000 limit 12000";
/// What is found over it, packets a second. In 2 s no more than 2400 get through; a guest that sends in bursts may lose some at less.
const LEAST: u64 = 200;
const MOST: u64 = 1250;
/// Trials of a search at most.
const TRIALS: usize = 6;
/// Forwards of bench/pktgen/gateway.toml, as the script is told of them.
const FORWARD: &str = "--forward 203.0.113.16:1024-9215";
/// More than the guest can take, packets a second in each direction: in all eight times what docs/vm.md says.
const TOO_MUCH: u64 = 60_000;
/// A rate that it takes with ease.
const LITTLE: u64 = 300;
/// How long each of the two is offered. **Units:** seconds.
const SECONDS: u64 = 2;
/// External ports that are half forwarded by bench/pktgen/gateway.toml: those below 9216.
const HALF: &str = "203.0.113.16:9116-9315";
/// How many of them.
const HALF_PORTS: u64 = 200;
/// Rounds in which the tester tries to make sessions before it gives up.
const ROUNDS: u64 = 3;

/// What a run has told.
struct Told {
    ended: Ended,
    report: Value,
    /// The gateway's counters, by name, as they have grown.
    before: Value,
    after: Value,
}

impl Told {
    /// By how much a counter of the gateway's has grown.
    fn grown(&self, name: &str) -> Result<u64> {
        Ok(counter(&self.after, name)? - counter(&self.before, name)?)
    }

    fn cases(&self) -> Result<&Vec<Value>> {
        self.report["cases"].as_array().with_context(|| format!("no cases in {}", self.report))
    }
}

/// One short case: packets go out, are sent back, and come in again. Every one is counted on both legs, and by the gateway.
pub(super) fn smoke(lab: &mut Lab) -> Result<String> {
    lab.start_gateway(Manner::SetUp)?;
    lab.with_tester(|lab| {
        let told = run(lab, "--ways replies --flows 100 --queues 2 --rates 1000 --duration 1 --confirm 0")?;
        ensure!(told.ended.code == 0, "it ended with {}\n{}", told.ended.code, told.ended.printed);
        let (case, page) = (&told.cases()?[0], page(lab)?);
        let passed = lossless(case)?;
        ensure!(passed >= 2000, "{passed} packets in {case}");
        let established = number(&case["established"], "sent")?;
        // Both legs are in the sums: half of it out, half of it in.
        let (out, back) = (told.grown("outbound_packets")?, told.grown("inbound_packets")?);
        ensure!(out == back && out + back == established + passed, "the gateway forwarded {out} and {back}; the report: {case}");
        for leg in case["trials"][0]["legs"].as_array().context("no legs")? {
            queues(leg)?;
        }
        nothing_is_missing(&told.before, &told.after)?;
        Ok(format!("{out} out by two queues and {back} back, none lost, the gateway counts the same; a page of {page} bytes"))
    })
}

/// All four ways with forwards, a search that has to come down from too high a rate, a forward that is not there, and wrong usage.
pub(super) fn all_ways(lab: &mut Lab) -> Result<String> {
    lab.start_gateway(Manner::Pktgen)?;
    lab.with_tester(|lab| {
        let packets = every_way(lab)?;
        let found = search(lab)?;
        refused(lab)?;
        wrong_usage(lab)?;
        Ok(format!(
            "{packets} packets in four ways, none lost; {found} packets/s found over a cable for 1000; {} refused by the gateway, each counted",
            HALF_PORTS / 2 * ROUNDS
        ))
    })
}

/// Each way at a low rate: nothing may be lost, and the gateway counts as many in each direction. Returns how many.
fn every_way(lab: &mut Lab) -> Result<u64> {
    let told = run(
        lab,
        &format!("--ways outbound,inbound,both,replies --flows 200 --queues 2 --rates 1000 --duration 1 --confirm 0 {FORWARD}"),
    )?;
    ensure!(told.ended.code == 0, "it ended with {}\n{}", told.ended.code, told.ended.printed);
    let (mut total, mut established) = (0, 0);
    for case in told.cases()? {
        total += lossless(case)?;
        established += number(&case["established"], "sent")?;
        for leg in case["trials"][0]["legs"].as_array().context("no legs")? {
            queues(leg)?;
        }
    }
    let ways: Vec<_> = told.cases()?.iter().map(|case| case["way"].as_str().unwrap_or_default()).collect();
    ensure!(ways == ["outbound", "inbound", "both", "replies"], "{ways:?}");
    let (out, back) = (told.grown("outbound_packets")?, told.grown("inbound_packets")?);
    ensure!(out + back == total + established, "the gateway forwarded {out} and {back}; the report has {total} and {established}");
    nothing_is_missing(&told.before, &told.after)?;
    Ok(total)
}

/// More than the gateway can take, in both directions, and at once a low rate again: of that nothing may be lost. A transmit ring that was
/// full has to be emptied without the worker's sleeping once.
pub(super) fn overload(lab: &mut Lab) -> Result<String> {
    lab.start_gateway(Manner::Pktgen)?;
    lab.with_tester(|lab| {
        let rates = format!("--ways both --flows 200 --rates {TOO_MUCH},{LITTLE} --queues 2 --duration {SECONDS} --confirm 0");
        let told = run(lab, &format!("{rates} {FORWARD}"))?;
        let case = &told.cases()?[0];
        let trials = case["trials"].as_array().context("no trials")?;
        let [first, second] = &trials[..] else { bail!("{} trials\n{}", trials.len(), told.ended.printed) };
        let ((offered, passed), (sent, arrived)) = (accounted(first)?, accounted(second)?);
        ensure!(passed < offered, "{offered} packets in {SECONDS} s are no overload: all passed");
        let frames = &told.after["frames"];
        ensure!(sent > 0 && arrived == sent, "{arrived} of {sent} packets arrived after overload; frames: {frames}\n{case}");
        ensure!(frames["missing"] == 0 && told.after["unhealthy"].is_null(), "{}", told.after);
        Ok(format!("{passed} of {offered} packets passed under overload, then {arrived} of {sent}"))
    })
}

/// A search over a cable that is too narrow for the highest rate. Returns what it found, packets a second.
fn search(lab: &mut Lab) -> Result<u64> {
    let options = format!("--ways outbound --flows 200 --max-rate 3000 --trials {TRIALS} --resolution 5 --confirm 0 --duration 2");
    lab.narrow_cable(CABLE)?;
    let told = run(lab, &options)?;
    lab.widen_cable()?;
    ensure!(told.ended.code == 0, "it ended with {}\n{}", told.ended.code, told.ended.printed);
    let case = &told.cases()?[0];
    let trials = case["trials"].as_array().context("no trials")?;
    ensure!((2..=TRIALS).contains(&trials.len()), "{} trials", trials.len());
    let (mut sent, mut received) = (number(&case["established"], "sent")?, number(&case["established"], "sent")?);
    for trial in trials {
        let (left, arrived) = accounted(trial)?;
        (sent, received) = (sent + left, received + arrived);
    }
    let found = number(&case["loss_free"], "packets_per_second")?;
    ensure!(case["loss_free"]["limit"] == "loss" && case["established"]["lost"] == 0, "{case}");
    ensure!((LEAST..=MOST).contains(&found), "found {found} packets/s over a cable of {CABLE}\n{}", told.ended.printed);
    for trial in trials {
        let (offered, passed) = (number(trial, "offered")?, trial["passed"] == true);
        ensure!(!passed || offered <= found, "{trial} passed above the answer {found}");
    }
    // What is lost is lost in the cable, behind the gateway.
    let forwarded = told.grown("outbound_packets")?;
    ensure!(forwarded == sent && received < sent, "the gateway forwarded {forwarded} of {sent}, {received} arrived");
    Ok(found)
}

/// Half of the external ports are not forwarded: the tester says so, half of its packets arrive, and the gateway counts the others.
fn refused(lab: &mut Lab) -> Result<()> {
    let told = run(lab, &format!("--ways inbound --flows {HALF_PORTS} --rates 1000 --duration 1 --confirm 0 --forward {HALF}"))?;
    ensure!(told.ended.code == 1, "it ended with {}\n{}", told.ended.code, told.ended.printed);
    let case = &told.cases()?[0];
    let fault = case["faults"][0].as_str().unwrap_or_default();
    let wanted = format!("{} of {HALF_PORTS} packets arrived", HALF_PORTS / 2);
    ensure!(fault.contains(&wanted) && fault.contains("--forward"), "{fault:?} does not say {wanted:?}\n{}", told.ended.printed);
    let lost = number(&case["established"], "lost")?;
    ensure!(lost == HALF_PORTS / 2 * ROUNDS, "{lost} packets lost");
    let dropped = drops(&told.after)? - drops(&told.before)?;
    ensure!(dropped == lost, "the gateway has dropped {dropped} packets, the tester misses {lost}\n{}", told.after);
    Ok(())
}

/// What a newcomer may do wrong is refused with what to do.
fn wrong_usage(lab: &mut Lab) -> Result<()> {
    let ([(inside, _), (outside, _)], mac) = (PORTS, NICS[0].1);
    for (ports, code, words) in [
        (format!("--inside {inside} --outside {inside} --inside-mac {mac}"), 1, "two ports are needed"),
        (format!("--inside eth9 --outside {outside} --inside-mac {mac}"), 1, "eth9"),
        (format!("--inside {inside} --outside {outside} --inside-mac {mac} --cpus 64"), 1, "--cpus 64"),
        (format!("--inside {inside} --inside-mac {mac}"), 2, "--outside"),
    ] {
        says(lab, &format!("pktgen.sh {ports}"), code, words)?;
    }
    lab.guest.expect("rmmod pktgen")?;
    let outcome = says(lab, &format!("pktgen.sh --inside {inside} --outside {outside} --inside-mac {mac}"), 1, "modprobe pktgen");
    lab.guest.expect("insmod /modules/pktgen.ko")?;
    outcome
}

/// Wants a command of the tester to end with a code, and to say something.
fn says(lab: &mut Lab, command: &str, code: i32, words: &str) -> Result<()> {
    let ended = lab.run_in_tester(&format!("env BENCH=portcullis-bench {command}"))?;
    ensure!(ended.code == code && ended.printed.contains(words), "`{command}` ended with {}: {}", ended.code, ended.printed);
    Ok(())
}

/// Runs the script with those options, from the gateway's counters before to those after.
fn run(lab: &mut Lab, options: &str) -> Result<Told> {
    let [(inside, _), (outside, _)] = PORTS;
    let [(_, inside_mac), (_, outside_mac)] = NICS;
    let ports = format!("--inside {inside} --outside {outside} --inside-mac {inside_mac} --outside-mac {outside_mac}");
    lab.guest.expect(&format!("rm -rf {REPORTS}"))?;
    let before = lab.stats()?;
    let ended = lab.run_in_tester(&format!("env BENCH=portcullis-bench pktgen.sh {ports} {COMMON} {options}"))?;
    let printed = lab.guest.expect(&format!("cat {REPORTS}/*.json")).with_context(|| ended.printed.clone())?;
    let report = serde_json::from_str(&printed).with_context(|| format!("not JSON:\n{printed}"))?;
    // The gateway publishes its counters ten times a second.
    lab.guest.expect("sleep 1")?;
    let after = lab.stats()?;
    Ok(Told { ended, report, before, after })
}

/// Wants a page that is whole, with its plots. Returns its length.
fn page(lab: &mut Lab) -> Result<usize> {
    let page = lab.guest.expect(&format!("cat {REPORTS}/*.html"))?;
    let whole = page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>");
    ensure!(whole && page.contains("<svg ") && page.contains("<circle "), "{page}");
    Ok(page.len())
}

/// Wants every trial of a case to have lost nothing. Returns how many packets arrived, all legs together.
fn lossless(case: &Value) -> Result<u64> {
    ensure!(case["faults"] == Value::Array(Vec::new()), "{}", case["faults"]);
    ensure!(case["established"]["lost"] == 0, "{case}");
    let trials = case["trials"].as_array().context("no trials")?;
    let mut arrived = 0;
    for trial in trials {
        ensure!(trial["passed"] == true, "{trial}");
        arrived += accounted(trial)?.1;
        for leg in trial["legs"].as_array().context("no legs")? {
            ensure!(number(leg, "lost")? == 0 && number(leg, "lost_by_sender")? == 0 && number(leg, "received")? > 0, "{leg}");
        }
    }
    Ok(arrived)
}

/// Wants each leg's packets to be accounted for. Returns how many left the tester, and how many arrived.
fn accounted(trial: &Value) -> Result<(u64, u64)> {
    let (mut left, mut arrived) = (0, 0);
    for leg in trial["legs"].as_array().context("no legs")? {
        let [sent, by_sender, received, lost] = ["sent", "lost_by_sender", "received", "lost"].map(|name| number(leg, name));
        let (sent, by_sender, received, lost) = (sent?, by_sender?, received?, lost?);
        ensure!(sent == by_sender + received + lost, "{leg}");
        ensure!(leg["surplus"] == 0 && leg["untranslated"] == 0, "{leg}");
        left += sent - by_sender;
        arrived += received;
    }
    Ok((left, arrived))
}

/// Wants the packets of a leg to be those that its receiving queues have counted.
fn queues(leg: &Value) -> Result<()> {
    let queues: Vec<u64> = leg["queues"].as_array().context("no queues")?.iter().filter_map(Value::as_u64).collect();
    ensure!(queues.iter().sum::<u64>() == number(leg, "received")?, "{leg}");
    Ok(())
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no {name} in {value}"))
}

/// All packets that the gateway has dropped, whatever for.
fn drops(stats: &Value) -> Result<u64> {
    let drops = stats["drops"].as_array().context("no drops")?;
    drops.iter().map(|drop| number(drop, "value")).sum()
}
