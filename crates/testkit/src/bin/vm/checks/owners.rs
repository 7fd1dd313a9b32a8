//! Whether packets come to the workers that own them: with NICs that were set up, with NICs that were left alone, with one worker, and
//! while somebody changes a NIC's key.
//!
//! Knows what `stats --json` says of queues, workers and steering. Called through the list in `checks`. Invariant: every packet that was
//! sent has come out translated, or the check fails, whatever the counters say.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{SEED, nothing_is_missing, set_key};
use crate::lab::{Lab, Manner, NICS, QUEUES};
use crate::passage::Passage;
use crate::placement::{Key, Numbers};

/// Subscribers of the large passages, each with one session. Enough that no worker's part is far from its quarter.
const SESSIONS: usize = 2000;
/// Frames of the passage of which none may be misplaced.
const FRAMES: u64 = 100_000;
/// Frames by which a share is measured.
const SAMPLE: u64 = 20_000;
/// The least that each worker has of its equal part. Chosen: of 2000 sessions four workers have 500 each, give or take 20.
const LEAST_PART: f64 = 0.8;
/// By how much a measured share may differ from the expected one. Chosen: five standard deviations over 2000 sessions.
const TOLERANCE: f64 = 0.05;
/// The part of the packets whose queue and owner are not the same one of four.
const APART: f64 = 0.75;
/// Sessions that go on while a key changes.
const STEADY: usize = 256;
/// How long it may take to see that a key has changed, or that it is right again: some windows of one second, emulated.
const SEEN: Duration = Duration::from_secs(30);

/// What one passage has changed in the gateway's counters.
struct Counted {
    stats: Value,
    /// By NIC, in the order of [`NICS`].
    nics: [Placed; 2],
    /// Frames received, by NIC and queue.
    queues: [Vec<u64>; 2],
    /// By worker.
    packets: Vec<u64>,
}

/// Frames of one NIC.
#[derive(Clone, Copy, Debug, Default)]
struct Placed {
    received: u64,
    misplaced: u64,
}

impl Placed {
    fn share(self) -> f64 {
        part(self.misplaced, self.received)
    }
}

/// **Units:** 0 to 1.
fn part(of: u64, whole: u64) -> f64 {
    f64::from(of as u32) / f64::from(whole as u32)
}

/// As many workers as queues: all frames come to their owners by keys that the gateway has made.
pub(super) fn four_workers(lab: &mut Lab) -> Result<String> {
    none_misplaced(lab, Manner::SetUp, QUEUES, FRAMES)
}

/// Two workers with two queues of each NIC.
pub(super) fn two_workers(lab: &mut Lab) -> Result<String> {
    none_misplaced(lab, Manner::TwoWorkers, 2, SAMPLE)
}

/// Passes frames and wants all at their owners, and each of the workers to have its part of them.
fn none_misplaced(lab: &mut Lab, manner: Manner, workers: usize, frames: u64) -> Result<String> {
    let Counted { stats, nics, packets, .. } = pass(lab, manner, frames)?;
    for ((nic, _), placed) in NICS.iter().zip(nics) {
        let steering = steering(&stats, nic)?;
        ensure!(steering["way"] == "key synthesis" && steering["trusted"] == true, "{nic}: {steering}");
        ensure!(placed.misplaced == 0, "{nic}: {placed:?}");
    }
    let received = nics[0].received + nics[1].received;
    ensure!(received >= frames, "the gateway has received {received} frames of {frames}");
    ensure!(packets.len() == workers, "{} workers", packets.len());
    let least = LEAST_PART * part(1, workers as u64);
    let parts: Vec<_> = packets.iter().map(|&packets| part(packets, received)).collect();
    ensure!(parts.iter().all(|&part| part >= least), "the workers' parts are {parts:?}");
    let parts: Vec<_> = parts.iter().map(|part| format!("{:.0} %", 100.0 * part)).collect();
    Ok(format!("{received} frames of {SESSIONS} sessions, 0 misplaced, 0 lost; the workers had {}", parts.join(", ")))
}

/// NICs that hash all four fields by keys of their own put frames anywhere: as many are handed over as foretold.
pub(super) fn in_software(lab: &mut Lab) -> Result<String> {
    lab.stop_gateway()?;
    let mut numbers = Numbers::new(SEED + 2);
    for (nic, _) in NICS {
        set_key(lab, nic, "equal 4 hkey", &Key::random(&mut numbers))?;
    }
    let counted = pass(lab, Manner::NicsLeftAlone, SAMPLE)?;
    for ((nic, _), frames) in NICS.iter().zip(&counted.queues) {
        let all = frames.iter().sum();
        let are_even = frames.iter().all(|&frames| part(frames, all) >= LEAST_PART * part(1, QUEUES as u64));
        ensure!(are_even, "{nic} does not spread frames by its own key: {frames:?} on its queues");
    }
    shares(&counted, "software", APART)
}

/// One worker owns all there is.
pub(super) fn one_worker(lab: &mut Lab) -> Result<String> {
    let counted = pass(lab, Manner::OneWorker, SAMPLE)?;
    ensure!(counted.packets.len() == 1, "{} workers", counted.packets.len());
    shares(&counted, "one worker", 0.0)
}

/// Compares the shares that were handed over with the share that was to be expected, and with what the gateway says to expect.
fn shares(counted: &Counted, way: &str, expected: f64) -> Result<String> {
    for ((nic, _), placed) in NICS.iter().zip(counted.nics) {
        let steering = steering(&counted.stats, nic)?;
        ensure!(steering["way"] == way && steering["expected_share"] == expected, "{nic}: {steering}");
        ensure!((placed.share() - expected).abs() <= TOLERANCE * f64::from(expected > 0.0), "{nic}: {placed:?} of {expected}");
    }
    let [inside, outside] = counted.nics;
    let received = inside.received + outside.received;
    let shown = |placed: Placed| format!("{} ({:.1} %)", placed.misplaced, 100.0 * placed.share());
    Ok(format!("{received} frames, handed over inside {}, outside {}, 0 lost", shown(inside), shown(outside)))
}

/// Passes at least so many frames through a gateway that runs in that manner, and sees what it has counted meanwhile.
fn pass(lab: &mut Lab, manner: Manner, frames: u64) -> Result<Counted> {
    lab.start_gateway(manner)?;
    let before = settled(lab)?;
    let passed = pass_all(lab, frames);
    let stats = settled(lab)?;
    passed.with_context(|| format!("the gateway's drops are {}", dropped(&before, &stats)))?;
    nothing_is_missing(&before, &stats)?;
    let nic = |nic| -> Result<Placed> {
        let (before, after) = (placed(&before, nic)?, placed(&stats, nic)?);
        Ok(Placed { received: after.received - before.received, misplaced: after.misplaced - before.misplaced })
    };
    let nics = [nic(NICS[0].0)?, nic(NICS[1].0)?];
    let grown = |(after, before): (Vec<u64>, Vec<u64>)| after.iter().zip(before).map(|(after, before)| after - before).collect();
    let queues = |nic| Ok::<_, anyhow::Error>(grown((by_queue(&stats, nic, "received")?, by_queue(&before, nic, "received")?)));
    let queues = [queues(NICS[0].0)?, queues(NICS[1].0)?];
    let packets = grown((packets(&stats)?, packets(&before)?));
    Ok(Counted { stats, nics, queues, packets })
}

fn pass_all(lab: &Lab, frames: u64) -> Result<()> {
    let mut passage = Passage::open(lab, SESSIONS, SEED)?;
    while passage.passed() < frames {
        passage.exchange()?;
    }
    Ok(())
}

/// The gateway's drops by reason, and what the XDP program did not redirect, where these have grown.
fn dropped(before: &Value, after: &Value) -> String {
    let named =
        |stats: &Value| [&stats["drops"], &stats["xdp"]].into_iter().filter_map(Value::as_array).flatten().cloned().collect();
    let (before, after): (Vec<Value>, Vec<Value>) = (named(before), named(after));
    let grown = before.iter().zip(&after).filter(|(before, after)| before["value"] != after["value"]);
    let grown: Vec<_> =
        grown.map(|(before, after)| format!("{} {} to {}", after["name"], before["value"], after["value"])).collect();
    grown.join(", ")
}

/// The counters once they hold all that has passed: the workers publish them ten times a second.
fn settled(lab: &mut Lab) -> Result<Value> {
    lab.guest.expect("sleep 1")?;
    lab.stats()
}

/// A key that somebody changes is seen, costs hand-overs and loses nothing; and when the gateway's own key is back it is trusted again.
pub(super) fn changed_key(lab: &mut Lab) -> Result<String> {
    lab.start_gateway(Manner::SetUp)?;
    let mut passage = Passage::open(lab, STEADY, SEED + 3)?;
    let before = settled(lab)?;
    let is_over = AtomicBool::new(false);
    let (traffic, watched) = thread::scope(|scope| {
        let traffic = scope.spawn(|| -> Result<u64> {
            while !is_over.load(Ordering::Relaxed) {
                passage.exchange()?;
            }
            Ok(passage.passed())
        });
        let watched = change_and_put_back(lab);
        is_over.store(true, Ordering::Relaxed);
        (traffic.join(), watched)
    });
    // A packet that was lost says more than what came of it.
    let passed = traffic.map_err(|_| anyhow::anyhow!("the traffic's thread panicked"))?;
    let after = settled(lab)?;
    let passed = passed.with_context(|| format!("the gateway's drops are {}", dropped(&before, &after)))?;
    let misplaced = watched?;
    nothing_is_missing(&before, &after)?;
    let log = lab.gateway_log()?;
    for said in ["came to a worker that does not own them", "frames come to their owners again"] {
        let of_outside = log.lines().filter(|line| line.contains(NICS[1].0) && line.contains(said)).count();
        ensure!(of_outside == 1, "`{said}` is in the log {of_outside} times for {}\n{log}", NICS[1].0);
    }
    Ok(format!("{passed} packets of {STEADY} sessions, {misplaced} misplaced, 0 lost; distrusted, and trusted again"))
}

/// Gives the outside NIC another key, and its own again once that was seen. Returns how many frames were misplaced.
fn change_and_put_back(lab: &mut Lab) -> Result<u64> {
    let (outside, _) = NICS[1];
    let before = placed(&lab.stats()?, outside)?;
    wait_until_trusted(lab, true)?;
    let own = lab.rss(outside)?.key;
    set_key(lab, outside, "hkey", &Key::random(&mut Numbers::new(SEED + 4)))?;
    wait_until_trusted(lab, false)?;
    set_key(lab, outside, "hkey", &own)?;
    wait_until_trusted(lab, true)?;
    let after = lab.stats()?;
    ensure!(placed(&after, NICS[0].0)?.misplaced == 0, "frames of the other NIC are misplaced: {}", after["queues"]);
    let misplaced = placed(&after, outside)?.misplaced - before.misplaced;
    ensure!(misplaced > 0, "no frame was misplaced: {}", after["queues"]);
    Ok(misplaced)
}

/// Waits until the outside NIC is trusted, or is not; the inside one is all the time.
fn wait_until_trusted(lab: &mut Lab, wanted: bool) -> Result<()> {
    let mut last = Value::Null;
    let mut look = |lab: &mut Lab| -> Result<bool> {
        last = lab.stats()?;
        ensure!(steering(&last, NICS[0].0)?["trusted"] == true, "the inside NIC: {}", steering(&last, NICS[0].0)?);
        Ok(steering(&last, NICS[1].0)?["trusted"] == wanted)
    };
    let start = Instant::now();
    while !look(lab)? {
        ensure!(start.elapsed() < SEEN, "trusted is not {wanted} after {SEEN:?}: {last}");
    }
    Ok(())
}

/// What a NIC's interface says of its steering.
fn steering<'v>(stats: &'v Value, nic: &str) -> Result<&'v Value> {
    let interfaces = stats["interfaces"].as_array().context("no interfaces")?;
    let interface = interfaces.iter().find(|it| it["name"] == nic).with_context(|| format!("no interface {nic}"))?;
    Ok(&interface["steering"])
}

/// What a NIC's queues say of their frames since the gateway started.
fn placed(stats: &Value, nic: &str) -> Result<Placed> {
    let sum = |name| -> Result<u64> { Ok(by_queue(stats, nic, name)?.iter().sum()) };
    Ok(Placed { received: sum("received")?, misplaced: sum("misplaced")? })
}

/// A counter of each of a NIC's queues.
fn by_queue(stats: &Value, nic: &str, name: &str) -> Result<Vec<u64>> {
    let queues = stats["queues"].as_array().context("no queues")?;
    let its: Vec<_> = queues.iter().filter(|queue| queue["interface"] == nic).collect();
    ensure!(its.len() == QUEUES, "{nic}: {} queues", its.len());
    its.iter().map(|queue| queue[name].as_u64().with_context(|| format!("no {name}"))).collect()
}

/// Packets of each worker since the gateway started.
fn packets(stats: &Value) -> Result<Vec<u64>> {
    let workers = stats["workers"].as_array().context("no workers")?;
    workers.iter().map(|worker| worker["packets"].as_u64().context("no packets")).collect()
}
