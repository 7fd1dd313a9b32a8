//! The soak: Portcullis at 90 % of its loss-free rate for minutes, with new flows all the time; or the bare forwarder, which shows what the
//! machine loses by itself.
//!
//! Knows what has to hold: no packet lost, no memory grown, no session left after its timeout. Where packets were lost in front of the gateway
//! that no pause of the machine explains, it and the bare forwarder take turns after it, at the same rate; a loss that is not provably the
//! NAT's is said and is no fault. Called by the program. Invariants: it is bounded in time; only the tester runs on the tester's core, and
//! every ten seconds, for some milliseconds, what asks the gateway.

use std::fs;
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use portcullis_bench::generate::Generator;
use portcullis_bench::stream::Stream;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cell::{self, Lengths, Mix, sources, stream};
use crate::control::{Control, Side};
use crate::cpu;
use crate::gateway::{Gateway, Kind, Setup};
use crate::host::{self, Machine, Place};
use crate::prepared::Prepared;
use crate::report;
use crate::run::in_world;
use crate::search::Limits;
use crate::sink::{End, Sink, Then};
use crate::stall::{Stalls, Watch};
use crate::tester::{self, Direction, Load, Tester, Trial};
use crate::timeline::{self, Group};
use crate::windows::{self, Window, Windows};
use crate::world::{FAR, FAR_ADDRESS, INSIDE, NEAR, OUTSIDE, Pollers, World, visit};

/// Flows that come again once they are forgotten: longer than they are remembered.
const PASSING: u32 = 1_000_000;
/// After how long without packets a flow is forgotten. **Units:** seconds.
const UDP_TIMEOUT: u32 = 2;
/// How long the sweep may take to find a session whose time is over: it looks at each every 4 s. Chosen: twice that, and some.
const SWEPT: Duration = Duration::from_secs(10);
/// What is sent before, and does not count: the worker takes the devices over with their first packets, up to 16 ms later, and the flows meet
/// pages that were never used. **Source:** RFC 2544, section 23 (learning frames).
const LEARNING: (u64, Duration) = (20_000, Duration::from_millis(300));
/// How long the soak runs before memory counts: tables, buffers and page tables have then been touched.
const WARM_UP: Duration = Duration::from_secs(20);
/// By how much memory may differ all the same. **Units:** bytes. Chosen: the allocator's own steps.
const SLACK: u64 = 1 << 20;
/// The name of the bare forwarder on the command line.
const BARE: &str = "bare";
/// The part of the loss-free rate.
const PART: f64 = 0.9;
/// What is tried after a rate that did not hold, as a part of it, and how many rates at most.
const NEXT: f64 = 0.9;
/// See [`NEXT`].
const TRIES: u32 = 12;
/// How many packets the tester catches up at once: a quarter of a veth ring, in which a machine that stood still may have left others.
const CATCH_UP: u64 = 64;
/// How long a turn of the gateway's or the bare forwarder's is after the soak, at most. Chosen: the machine is of one speed for minutes.
const TURN: Duration = Duration::from_secs(30);
/// How long a window is, after which progress is told.
const WINDOW: Duration = Duration::from_secs(10);

/// How long and how hard.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long; as long before it for each rate that the search tries (the last holds so long, those before end sooner), and as long again where packets
    /// were lost in no pause, for turns with the bare forwarder.
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// Packets a second, instead of 90 % of the loss-free rate that is searched first: one that holds for as long as the soak.
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Flows that stay.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    flows: u32,
    /// New flows a second.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=150_000))]
    new_flows: u64,
    /// Which gateway: the bare forwarder drives its devices as Portcullis does, and has no NAT.
    #[arg(long, value_name = "GATEWAY", default_value = "portcullis", value_parser = ["portcullis", BARE])]
    gateway: String,
    /// Print the result as one line of JSON, too.
    #[arg(long)]
    json: bool,
    /// Where the report and the picture go.
    #[arg(long, value_name = "DIRECTORY", default_value = "bench/results")]
    out: PathBuf,
    /// Which cores, and how Portcullis is set.
    #[command(flatten)]
    place: Place,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of minutes"))?;
    if (0.01..=1440.0).contains(&minutes) { Ok(minutes) } else { Err("0.01 to 1440 minutes".into()) }
}

impl Options {
    fn kind(&self) -> Kind {
        if self.gateway == BARE { Kind::BareBusy } else { Kind::Portcullis }
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }
}

/// A rate that was tried for as long as the soak, or until it lost some.
#[derive(Clone, Copy, Debug, Serialize)]
struct Tried {
    rate: f64,
    seconds: f64,
    sent: u64,
    /// In no pause.
    lost: u64,
}

/// What the soak showed.
struct Shown {
    rate: u64,
    trial: Trial,
    /// New flows a second, as they were sent.
    new_flows: f64,
    windows: Vec<Window>,
    memory_before: u64,
    memory_after: u64,
    left: Left,
    /// What the gateway and the devices counted from the beginning to the end, where it is not 0.
    counted: Value,
    log: String,
}

/// What was left after the last packet, and when that was looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    sessions: u64,
    mappings: u64,
    after: Duration,
}

impl Shown {
    /// Packets lost that are neither the tester's doing nor explained by pauses of the same window.
    fn lost_by_gateway(&self) -> u64 {
        windows::lost_at_work(&self.windows) + self.lost_inside()
    }

    /// Of these, what was lost elsewhere than in front of the gateway.
    fn lost_inside(&self) -> u64 {
        let in_front: u64 = self.windows.iter().map(|window| window.lost).sum();
        self.trial.lost.saturating_sub(self.trial.lost_by_tester + self.lost_behind_tester() + in_front)
    }

    /// What Portcullis let go because the tester's end took nothing for longer than its own rings last.
    fn lost_behind_tester(&self) -> u64 {
        let not_taken = self.counted["drops"]["transmit_full"].as_u64().unwrap_or(0);
        lost_behind(not_taken, self.trial.lost_by_tester)
    }

    /// What was lost in front of the gateway, with the windows it was in.
    fn side(&self) -> Side {
        Side { sent: self.trial.sent, lost: windows::lost_at_work(&self.windows), windows: self.windows.clone() }
    }
}

/// Of `not_taken` packets that the gateway's device did not take, those that the tester's full ring has not `refused` itself. Each refused packet
/// ends a call that sends, and those behind it wait; where the gateway's tx ring and outbox are full with them, it lets the next go. More of these than
/// refused ones are not the tester's doing: a gateway that does not send by itself has no refused ones.
fn lost_behind(not_taken: u64, refused: u64) -> u64 {
    not_taken.saturating_sub(refused).min(refused)
}

/// Runs the soak. Returns whether all of it held.
///
/// **Errors:** as [`crate::run::run`].
pub fn soak(options: &Options) -> Result<bool> {
    let cores = options.place.cores()?;
    // As on a box of an operator's: the worker's core is the worker's alone.
    let setup = Setup { beside: Some(cores.beside()), ..options.place.setup(cores, UDP_TIMEOUT)? };
    options.rate.map_or(Ok(()), |rate| ensure_kept(rate, options))?;
    // The cores are counted before this thread keeps to one of them.
    let ((date, time), commit, machine) = (host::now()?, host::commit(), Machine::this());
    fs::create_dir_all(&options.out).with_context(|| format!("making {}", options.out.display()))?;
    let _prepared = Prepared::prepare(cores.gateway)?;
    let (searched, shown, turns) = in_world(cores, |world, pollers| {
        let searched = if options.rate.is_none() { search(world, pollers, &setup, options)? } else { Vec::new() };
        let held = searched.last().map(|held: &Tried| (held.rate * PART) as u64);
        let rate = options.rate.or(held).context("no rate to soak at")?;
        let shown = run(world, pollers, &setup, options, rate, options.time(), |_| true)?;
        if options.kind() != Kind::Portcullis || shown.side().lost == 0 {
            return Ok((searched, shown, None));
        }
        eprintln!("{} packets lost in no pause: what does the bare forwarder lose, which has no NAT?", shown.side().lost);
        let turns = take_turns(world, pollers, &setup, options, rate, shown.side())?;
        Ok((searched, shown, Some(turns)))
    })?;
    let (control, faults_in_turns) = turns.unzip();
    let mut faults = faults(options.kind(), &shown);
    faults.extend(faults_in_turns.unwrap_or_default());
    if let Some(control) = &control
        && let Some(why) = control.why_no_excuse()
    {
        faults.push(format!("lost {}; {why}: {control}; {} lost in all: {}", control.soak, shown.trial.lost, excuses(&shown)));
        faults.extend(windows::too_slow(&shown.windows));
    }
    let result = as_json(&shown, &searched, control.as_ref(), &faults);
    if options.json {
        println!("{result}");
    }
    tell_verdict(&shown, control.as_ref(), &faults);
    let from = format!("{} packets a second asked for, commit {commit}, {date}, {machine}", shown.rate);
    let Options { minutes, flows, new_flows, gateway, .. } = options;
    let settings = json!({ "minutes": minutes, "rate": options.rate, "flows": flows, "new_flows": new_flows, "gateway": gateway });
    let report =
        json!({ "date": date, "time": time, "commit": commit, "machine": machine, "settings": settings, "result": result });
    let file = report::write_json(&report, &options.out, &format!("soak-{date}-{time}-{commit}"))?;
    let picture = draw(options.kind(), &shown, control.as_ref(), &from, &file)?;
    eprintln!("{}\n{}", file.display(), picture.display());
    Ok(faults.is_empty())
}

/// Prints what came out.
fn tell_verdict(shown: &Shown, control: Option<&Control>, faults: &[String]) {
    for fault in faults {
        println!("wrong: {fault}");
    }
    if !faults.is_empty() {
        if !shown.log.is_empty() {
            eprintln!("{}", shown.log);
        }
        return;
    }
    let (trial, new) = (&shown.trial, shown.new_flows);
    let lost = match control {
        None => format!("lost {}", shown.side()),
        Some(control) => format!("lost {}, not provably more than this machine loses without a NAT: {control}", control.soak),
    };
    println!("held: {lost}; {new:.0} new flows a second, memory as before, no session left");
    if trial.lost > 0 {
        println!("{} were lost in all: {}", trial.lost, excuses(shown));
    }
}

/// The gateway and the bare forwarder in turns, each for half as long as the soak was. Returns what was lost, and what else did not hold.
fn take_turns(
    world: &World,
    pollers: &Pollers,
    setup: &Setup,
    options: &Options,
    rate: u64,
    soak: Side,
) -> Result<(Control, Vec<String>)> {
    let each = options.time() / 2;
    let rounds = (each.as_secs_f64() / TURN.as_secs_f64()).ceil().max(1.0) as u32;
    let bare = Options { gateway: BARE.into(), ..options.clone() };
    let (mut control, mut other_faults) = (Control { soak, ..Control::default() }, Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            let is_bare = (round + turn) % 2 == 0;
            let options = if is_bare { &bare } else { options };
            eprintln!("turn {} of {}: {}", 2 * round + turn + 1, 2 * rounds, options.gateway);
            let shown = run(world, pollers, setup, options, rate, each / rounds, |_| true)?;
            let side = if is_bare { &mut control.bare } else { &mut control.gateway };
            side.add(shown.side());
            other_faults.extend(faults(options.kind(), &shown));
        }
    }
    Ok((control, other_faults))
}

/// Flows that stay have to get a packet twice as often as they would be forgotten.
fn ensure_kept(rate: u64, options: &Options) -> Result<()> {
    let least = options.new_flows + u64::from(options.flows) * 2 / u64::from(UDP_TIMEOUT);
    let (flows, new) = (options.flows, options.new_flows);
    ensure!(
        rate >= least,
        "rate {rate}: {flows} flows that are forgotten after {UDP_TIMEOUT} s, and {new} new ones a second, need at least {least} packets \
         a second: ask for fewer --flows or --new-flows"
    );
    Ok(())
}

/// The rates that were tried, the last of which is the loss-free one: one at which nothing is lost in the soak's own mix, either, for as long as the soak. Trials of a second only find
/// where to begin: a machine that is slow now and then has another rate than one that is quick all the time. **Source:** RFC 2544, section 24,
/// which wants a minute at least.
fn search(world: &World, pollers: &Pollers, setup: &Setup, options: &Options) -> Result<Vec<Tried>> {
    let flows = options.flows;
    eprintln!("searching the loss-free rate at {flows} flows");
    let limits = Limits { steps: 9, resolution: 0.02 };
    let lengths = Lengths { trial: Duration::from_secs(1), measure: Duration::from_secs(1), limits };
    let cell = cell::measure(world, pollers, options.kind(), setup, Mix { flows, size: 64, both: false }, lengths)?;
    let (mut rate, mut tried) = (cell.loss_free, Vec::new());
    ensure!(rate > 0.0, "there was loss at every rate: is the machine quiet?");
    eprintln!("{} trials of a second: {rate:.0}/s is loss-free", cell.trials);
    for _ in 0..TRIES {
        let is_loss_free = |window: &Window| window.lost_at_work() == 0;
        let time = options.time();
        let shown = run(world, pollers, setup, options, rate as u64, time, is_loss_free)?;
        let lost = shown.lost_by_gateway();
        tried.push(Tried { rate, seconds: shown.trial.seconds, sent: shown.trial.sent, lost });
        // One that ended early may look loss-free: what its last window lost, a pause explained that ended after it.
        if lost == 0 && shown.trial.seconds >= time.as_secs_f64() {
            eprintln!("loss-free: {rate:.0}/s");
            return Ok(tried);
        }
        eprintln!("{rate:.0}/s did not hold for {time:.0?}: {lost} of {} lost in no pause", shown.trial.sent);
        rate *= NEXT;
    }
    bail!("there was loss at {TRIES} rates, the last {:.0}/s: is the machine quiet?", rate / NEXT)
}

/// Runs a gateway at the rate for that time, or until a window is not to be gone on after.
fn run(
    world: &World,
    pollers: &Pollers,
    setup: &Setup,
    options: &Options,
    rate: u64,
    time: Duration,
    go_on: impl Fn(&Window) -> bool,
) -> Result<Shown> {
    ensure_kept(rate, options)?;
    let stays = stream(world, options.flows, 64)?;
    let ports = "2048-65535".parse()?;
    let passes = Stream { flows: PASSING, first_flow: options.flows, source_ports: ports, ..stays.clone() };
    let (mut far_object, mut near_object, mut object) = (MaybeUninit::uninit(), MaybeUninit::uninit(), MaybeUninit::uninit());
    // The new flows are part of the rate.
    let every = u32::try_from(rate / options.new_flows).ok().and_then(NonZeroU32::new).context("more new flows than packets")?;
    let from = sources(options.kind())?;
    let far = visit(&world.far, || Sink::open(&mut far_object, FAR, End::Far(Then::Drop), &stays, from, PASSING))?;
    let near = Sink::open(&mut near_object, NEAR, End::Near, &stays, FAR_ADDRESS.into(), PASSING)?;
    let generator = Generator::open_mixed(&mut object, NEAR, &stays, &passes, every)?;
    let mut watch_object = MaybeUninit::uninit();
    let watch = Watch::open(&mut watch_object, setup.core, &generator)?;
    let mut gateway = Gateway::start(options.kind(), world, setup)?;
    watch.belongs_to(gateway.process_number())?;
    let process = gateway.process_number().context("the gateway is no process")?;
    let tester = Tester { world, generator: &generator, far: &far, near: &near, pollers, watch: &watch, direction: Direction::One };
    let load = Load { catch_up: CATCH_UP, ..Load::at(rate, time) };
    let (learning_rate, learning) = LEARNING;
    tester.trial(&mut gateway, Load::at(learning_rate.min(rate), learning))?;

    let warm_up = WARM_UP.min(time / 2);
    eprintln!("{time:.0?} at {rate}/s, {} of them new flows; memory counts after {warm_up:.0?}", options.new_flows);
    // In one piece: flows that stay are forgotten when nothing comes for two seconds.
    let (mut next, mut memory_before) = (WINDOW, None);
    let (full_before, among_before) = (ring_full(world)?, generator.sent_among()?);
    let mut windows = Windows::begin(&tester, &mut gateway)?;
    let trial = tester.trial_with(&mut gateway, load, |gateway, elapsed| {
        if memory_before.is_none() && elapsed >= warm_up {
            memory_before = Some(cpu::resident(process)?);
        }
        if elapsed >= next {
            next += WINDOW;
            let window = windows.end(gateway, elapsed)?;
            tell(&window, cpu::resident(process)?);
            if !go_on(&window) {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let windows = windows.finish(&mut gateway, Duration::from_secs_f64(trial.seconds))?;
    if let Some(last) = windows.last() {
        tell(last, cpu::resident(process)?);
    }
    let new_flows = (generator.sent_among()? - among_before) as f64 / trial.seconds;
    let memory_after = cpu::resident(process)?;
    let memory_before = memory_before.unwrap_or(memory_after);

    let left = if options.kind() == Kind::Portcullis { forgotten(&gateway)? } else { Left::default() };
    let counted = counted(&gateway, full_before, ring_full(world)?)?;
    let log = gateway.log();
    gateway.stop()?;
    Ok(Shown { rate, trial, new_flows, windows, memory_before, memory_after, left, counted, log })
}

/// Waits until all is forgotten, or should be.
fn forgotten(gateway: &Gateway<'_>) -> Result<Left> {
    let (silent, limit) = (Instant::now(), Duration::from_secs(UDP_TIMEOUT.into()) + SWEPT);
    loop {
        let stats = gateway.stats()?;
        let gauge = |name: &str| stats["gauges"][name].as_u64().with_context(|| format!("no gauge {name} in the stats"));
        let left = Left { sessions: gauge("sessions")?, mappings: gauge("mappings")?, after: silent.elapsed() };
        if left.sessions == 0 && left.mappings == 0 || left.after > limit {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Tells how a window went.
fn tell(window: &Window, memory: u64) {
    eprintln!(
        "{:>5.0} s: {:.0}/s, {} lost ({} in pauses), {:.0} ns a packet, core {:.0} % at work, memory {} KiB",
        window.end,
        window.rate(),
        window.lost,
        window.paused.min(window.lost),
        window.work_per_packet(),
        window.load() * 100.0,
        memory >> 10
    );
}

/// What the gateway and its devices have counted, where it is not 0: says where packets were lost.
fn counted(gateway: &Gateway<'_>, full_before: RingFull, full: RingFull) -> Result<Value> {
    let stats = if gateway.kind() == Kind::Portcullis { gateway.stats()? } else { Value::Null };
    let named = |part: &str| {
        let rows = stats[part].as_array().cloned().unwrap_or_default();
        let counts = rows.into_iter().filter_map(|row| Some((row["name"].as_str()?.to_owned(), row["value"].as_u64()?)));
        counts.filter(|(_, count)| *count > 0).map(|(name, count)| (name, count.into())).collect::<serde_json::Map<_, _>>()
    };
    let mut queues = stats["queues"].as_array().cloned().unwrap_or_default();
    queues.iter_mut().filter_map(Value::as_object_mut).for_each(|queue| queue.retain(|_, value| value.as_u64() != Some(0)));
    let since = full.into_iter().zip(full_before).map(|((device, now), (_, before))| (device.to_owned(), (now - before).into()));
    let ring_full: serde_json::Map<_, Value> = since.collect();
    Ok(json!({ "drops": named("drops"), "xdp": named("xdp"), "queues": queues, "ring_full": ring_full }))
}

/// How many packets each device has sent to one whose ring was full, ever.
type RingFull = [(&'static str, u64); 3];

fn ring_full(world: &World) -> Result<RingFull> {
    let dropped = |device| world.gateway.enter(|| tester::transmit_drops(device))?;
    Ok([(NEAR, visit(&world.near, || tester::transmit_drops(NEAR))?), (INSIDE, dropped(INSIDE)?), (OUTSIDE, dropped(OUTSIDE)?)])
}

/// What was lost that is not the gateway's doing.
fn excuses(shown: &Shown) -> String {
    let Stalls { count, seconds, longest, packets } = shown.trial.stalls;
    format!(
        "{} by the tester, whose end was late, {} behind these, up to {packets} while the hypervisor or another program had the gateway's core ({count} times, {seconds:.2} s, \
         {:.1} ms at most)",
        shown.trial.lost_by_tester,
        shown.lost_behind_tester(),
        longest * 1000.0
    )
}

/// What did not hold, a sentence each, but for packets lost in front of the gateway. Of the bare forwarder, whose loss is what is asked for, none
/// is a fault.
fn faults(kind: Kind, shown: &Shown) -> Vec<String> {
    let Shown { trial, memory_before, memory_after, left, .. } = shown;
    let mut faults = Vec::new();
    if trial.sent == 0 {
        faults.push("nothing was sent".into());
    }
    if kind == Kind::Portcullis && shown.lost_inside() > 0 {
        faults.push(format!(
            "{} packets of {} came to the gateway and were lost: {}",
            shown.lost_inside(),
            trial.sent,
            shown.counted
        ));
    }
    if trial.wrong.is_fault() {
        faults.push(format!("packets were wrong: {:?}", trial.wrong));
    }
    if *memory_after > memory_before + SLACK {
        faults.push(format!("memory grew from {} to {} KiB", memory_before >> 10, memory_after >> 10));
    }
    let Left { sessions, mappings, after } = left;
    if *sessions > 0 || *mappings > 0 {
        faults.push(format!("{sessions} sessions and {mappings} mappings left {after:.0?} after the last packet"));
    }
    faults
}

/// Writes the picture beside its report, and says where it is.
fn draw(kind: Kind, shown: &Shown, control: Option<&Control>, from: &str, report: &Path) -> Result<PathBuf> {
    let mut groups = vec![Group { label: format!("the soak of {}", kind.label()), windows: &shown.windows }];
    if let Some(control) = control {
        groups.push(Group { label: format!("{} in turns", kind.label()), windows: &control.gateway.windows });
        groups.push(Group { label: "with the bare forwarder".into(), windows: &control.bare.windows });
    }
    let file = report.with_extension("svg");
    fs::write(&file, timeline::svg(&groups, from)).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

fn as_json(shown: &Shown, searched: &[Tried], control: Option<&Control>, faults: &[String]) -> Value {
    json!({
        "rate": shown.rate,
        "searched": searched,
        "sent": shown.trial.sent,
        "lost": shown.trial.lost,
        "lost_by_tester": shown.trial.lost_by_tester,
        "lost_behind_tester": shown.lost_behind_tester(),
        "lost_by_gateway": shown.lost_by_gateway(),
        "stalls": shown.trial.stalls,
        "gateway": shown.counted,
        "seconds": shown.trial.seconds,
        "cpu_ns": shown.trial.work_per_packet(),
        "new_flows": shown.new_flows,
        "windows": shown.windows,
        "control": control.map(Control::as_json),
        "memory_before": shown.memory_before,
        "memory_after": shown.memory_after,
        "sessions_left": shown.left.sessions,
        "mappings_left": shown.left.mappings,
        "swept_after_seconds": shown.left.after.as_secs_f64(),
        "wrong": shown.trial.wrong,
        "faults": faults,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_behind_refused_packets_is_the_testers_and_what_is_not_sent_at_all_is_not() {
        let rows = [(0, 0, 0), (5087, 5087, 0), (5169, 5087, 82), (82, 0, 0), (300, 100, 100), (80, 100, 0)];
        for (not_taken, refused, behind) in rows {
            assert_eq!(lost_behind(not_taken, refused), behind, "{not_taken} not taken, {refused} refused");
        }
    }
}
