//! A run: for each setup a world, the NAT started in it, and its rows; then what was watched all along.
//!
//! Setups whose rows only wait run beside the others, each in its own namespaces. Invariant: every row that was asked for has one finding.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::bench::{Bench, Transport};
use crate::driver::{Driver, Started};
use crate::report::Report;
use crate::row::{Check, Finding, Pace, Row, Status, Trouble};
use crate::rows;
use crate::setup::{self, Setup};
use crate::watch::{Findings, Watch};
use crate::world::{Wires, World};

/// How long a NAT that was started may take until the first packet crosses it.
const FIRST_PACKET: Duration = Duration::from_secs(10);

/// What is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The NAT.
    pub(crate) driver: Driver,
    /// The wires.
    pub(crate) wires: Wires,
    /// Only these rows; all when empty.
    pub(crate) only: Vec<String>,
    /// Whether rows may wait for minutes.
    pub(crate) slow: bool,
}

/// Runs the rows.
///
/// **Errors:** the environment: not root, a NAT that does not start or passes nothing, an unknown identifier. Violations are no errors.
pub(crate) fn run(plan: &Plan) -> Result<Report> {
    let rows = selected(&plan.only)?;
    let watch = Arc::new(Watch::default());
    let findings = Mutex::new(BTreeMap::new());
    let progress = Progress { total: rows.len(), done: Mutex::new(0), start: Instant::now() };
    let group = |setup: &'static Setup| {
        let of_group: Vec<_> = rows.iter().filter(|row| row.setup == setup).copied().collect();
        run_group(plan, setup, &of_group, &watch, |row, status, note| {
            progress.tell(row, status);
            let mut found = findings.lock().unwrap_or_else(PoisonError::into_inner);
            found.insert(row.id, Finding::new(row, status, note));
        })
        .with_context(|| format!("the setup {}", setup.name))
    };
    // Given wires are one NAT: one setup after another.
    let beside = |setup: &&&'static Setup| matches!(plan.wires, Wires::Made { .. }) && setup.timers.is_some();
    let (waiting, others): (Vec<_>, Vec<_>) = setup::ALL.iter().partition(beside);
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = waiting.into_iter().map(|setup| scope.spawn(move || group(setup))).collect();
        let first = others.into_iter().try_for_each(&group);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        first
    })?;
    let mut found = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (id, kind) in [(rows::LEAK, watch.leaks()), (rows::CHECKSUMS, watch.checksums())] {
        if let Some(row) = rows.iter().find(|row| row.id == id) {
            found.insert(id, watched(row, kind, &watch));
        }
    }
    let findings = rows.iter().filter_map(|row| found.remove(row.id)).collect();
    Ok(Report::new(plan, findings))
}

/// The rows that were asked for.
fn selected(only: &[String]) -> Result<Vec<Row>> {
    let all = rows::all();
    if let Some(unknown) = only.iter().find(|id| all.iter().all(|row| row.id != id.as_str())) {
        bail!("there is no row {unknown}: `portcullis natcheck --list` shows all");
    }
    Ok(all.into_iter().filter(|row| only.is_empty() || only.iter().any(|id| id == row.id)).collect())
}

fn watched(row: &Row, kind: &Findings, watch: &Watch) -> Finding {
    let ((inside, outside), (count, first)) = (watch.frames(), kind.get());
    if count == 0 {
        return Finding::new(row, Status::Holds, format!("{inside} frames inside, {outside} outside"));
    }
    Finding::new(row, Status::Violated, format!("{count} of {} frames; {}", inside + outside, first.join("; ")))
}

/// Runs one setup's rows, and gives each outcome to `tell`.
fn run_group(
    plan: &Plan,
    setup: &'static Setup,
    rows: &[Row],
    watch: &Arc<Watch>,
    tell: impl Fn(&Row, Status, String) + Sync,
) -> Result<()> {
    let mut runnable = Vec::new();
    for row in rows {
        match row.pace {
            Pace::Never(why) => tell(row, Status::NotTestable, why.to_owned()),
            Pace::Alone | Pace::Waiting => runnable.push(*row),
        }
    }
    if runnable.is_empty() {
        return Ok(());
    }
    let world = World::build(&plan.wires, setup)?;
    let (mut inside, mut outside) = world.ends(watch)?;
    let running = match plan.driver.start(world.nat.as_ref(), setup)? {
        Started::Running(running) => running,
        Started::Unsupported(why) => {
            for row in &runnable {
                tell(row, Status::NotTestable, why.clone());
            }
            return Ok(());
        }
    };
    inside.find_nat()?;
    outside.find_nat()?;
    let bench = Bench::new(inside, outside, setup, plan.slow);
    wait_for_first_packet(&bench).map_err(|error| anyhow!("{error:#}\n{}", running.log().trim_end()))?;
    let judge = |row: &Row| -> Result<()> {
        let (status, note) = match twice(row, &bench) {
            Ok(note) => (Status::Holds, note),
            Err(Trouble::Violated(note) | Trouble::Missing(note)) => (Status::Violated, note),
            Err(Trouble::NotTestable(note)) => (Status::NotTestable, note),
            Err(Trouble::NeedsSlow(note)) => (Status::NeedsSlow, note),
            Err(Trouble::Broken(error)) => return Err(error.context(format!("row {}\n{}", row.id, running.log()))),
        };
        tell(row, status, note);
        Ok(())
    };
    let judge = &judge;
    thread::scope(|scope| {
        let (waiting, alone): (Vec<_>, Vec<_>) = runnable.into_iter().partition(|row| row.pace == Pace::Waiting);
        let threads: Vec<_> = waiting.into_iter().map(|row| scope.spawn(move || judge(&row))).collect();
        let first = alone.iter().try_for_each(judge);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        first
    })
}

/// Runs a row, once more where a packet did not come: it may have been lost on the wire, which breaks no requirement. A row that holds
/// the second time says what was missing the first time.
fn twice(row: &Row, bench: &Bench) -> Check {
    match (row.check)(bench) {
        Err(Trouble::Missing(first)) => {
            let note = (row.check)(bench)?;
            Ok(format!("{note}{}at the second try; the first: {first}", if note.is_empty() { "" } else { "; " }))
        }
        outcome => outcome,
    }
}

/// A NAT that was just started may still be learning its neighbours.
fn wait_for_first_packet(bench: &Bench) -> Result<()> {
    let start = Instant::now();
    let (host, remote) = (bench.endpoint(), bench.remote());
    loop {
        match bench.open(Transport::Udp, host, remote) {
            Ok(_) => return Ok(()),
            Err(Trouble::Broken(error)) => return Err(error),
            Err(Trouble::Violated(what) | Trouble::Missing(what)) if start.elapsed() > FIRST_PACKET => {
                bail!("no UDP datagram crosses the NAT translated within {FIRST_PACKET:?}: {what}")
            }
            // A NAT that is not there yet may pass on at once, untranslated.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Tells what has been done, on a terminal in one line that stays.
#[derive(Debug)]
struct Progress {
    total: usize,
    done: Mutex<usize>,
    start: Instant,
}

impl Progress {
    fn tell(&self, row: &Row, status: Status) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done += 1;
        let mut out = std::io::stderr();
        let seconds = self.start.elapsed().as_secs();
        // Nobody who cannot read standard error misses these.
        let _ = if out.is_terminal() {
            write!(
                out,
                "\r\x1b[K{}/{} rows, {seconds} s: {} {status}{}",
                done,
                self.total,
                row.id,
                if *done == self.total { "\n" } else { "" }
            )
        } else if status == Status::Violated {
            writeln!(out, "{}/{} rows, {seconds} s: {} {status}", done, self.total, row.id)
        } else {
            Ok(())
        };
    }
}
