//! What a tool counts: so many packets of one kind through [`Gateway::process`], in a process that the tool watches.
//!
//! Knows the kinds of packets, not the tool: `valgrind` starts this and reads what was collected. Invariant: with the same options every
//! run executes the same instructions there.

use std::io::{BufRead as _, Write as _};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use portcullis_nat::policy::Side;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, HALF, SIDES};
use crate::gateway::{BURST, Gateway, Mode, Plan};
use crate::load::{Load, Until};
use crate::memory::{self, Wanted};

/// The packets that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Of established sessions, from the inside.
    Outbound,
    /// Of established sessions, from the outside.
    Inbound,
    /// Of established sessions, half from either side.
    Mixed,
    /// The first ones of new sessions, each with a new mapping.
    First,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Outbound, Self::Inbound, Self::Mixed, Self::First];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Mixed => "mixed",
            Self::First => "first",
        }
    }

    /// Whether packets of the direction at that place of [`SIDES`] are of this kind.
    const fn has(self, at: usize) -> bool {
        match self {
            Self::Outbound => at == 0,
            Self::Inbound => at == 1,
            Self::Mixed => true,
            Self::First => false,
        }
    }
}

/// What to send.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Live sessions.
    #[arg(long, default_value_t = 1000)]
    pub(crate) sessions: u32,
    /// The packets that are counted.
    #[arg(long, value_enum, default_value_t = Kind::Mixed)]
    pub(crate) kind: Kind,
    /// Mapping and filtering behaviour.
    #[arg(long, value_enum, default_value_t = Mode::Independent)]
    pub(crate) mode: Mode,
    /// How many batches of 256 packets are counted; of one direction 128.
    #[arg(long, default_value_t = 80)]
    pub(crate) batches: u32,
    /// How many batches go first, uncounted.
    #[arg(long, default_value_t = 8)]
    pub(crate) warm: u32,
    /// The seed of tuples, draws and hashes.
    #[arg(long, default_value_t = 4)]
    pub(crate) seed: u64,
    /// Say "ready" when the sessions are there, and wait for a line.
    #[arg(long)]
    pub(crate) wait: bool,
}

impl Options {
    /// Packets counted.
    pub(crate) fn packets(&self) -> u32 {
        let of_batch = if self.kind == Kind::Mixed { 2 * HALF } else { HALF };
        self.batches * of_batch as u32
    }
}

/// Sends them. Returns how many went through [`Gateway::process`].
pub(crate) fn run(options: &Options) -> Result<u32> {
    let Options { sessions, mode, seed, .. } = *options;
    ensure!(sessions > 0 && options.batches > 0, "--sessions and --batches have to be at least 1");
    let fresh = if options.kind == Kind::First { options.packets() } else { 0 };
    let all = sessions.checked_add(fresh).context("too many sessions")?;
    let plan = Plan { mode, capacity: all, externals: mode.externals_for(all), timeout: None, seed };
    let (mut region, _) = memory::region(plan.bytes(), Wanted::Ordinary)?;
    let mut gateway = Gateway::new(&plan, &mut region, HALF)?;
    let mut load = Load::new(mode.flows(seed, all), all);
    let mut batch = Batch::new(seed);
    make_sessions(&mut gateway, &plan, &mut load, &batch, options)?;
    if options.wait {
        wait()?;
    }
    for _ in 0..options.warm {
        batch.write(&load, sessions);
        batch.pass(&mut gateway)?;
    }
    let counted = match options.kind {
        Kind::First => first_packets(&mut gateway, &mut batch, &load, (sessions, options.batches))?,
        _ => established(&mut gateway, &mut batch, &load, options)?,
    };
    ensure!(counted == options.packets(), "{counted} packets instead of {}", options.packets());
    Ok(counted)
}

/// Makes the sessions. Under a tool that is slow: where there are many, only those are established whose packets will be sent.
fn make_sessions(gateway: &mut Gateway<'_>, plan: &Plan, load: &mut Load, batch: &Batch, options: &Options) -> Result<()> {
    if options.sessions <= MANY {
        return load.open(gateway, plan, (0, options.sessions), Until::Established);
    }
    load.open(gateway, plan, (0, options.sessions), Until::Opened)?;
    let drawn: Vec<u32> = batch.preview(options.sessions, options.warm + options.batches).collect();
    drawn.chunks(BURST).try_for_each(|sessions| load.establish(gateway, sessions))
}

/// Above this, not all sessions are established. Chosen: the counts of the gate stay far below.
const MANY: u32 = 100_000;

/// Tells whoever watches that what is to be counted comes now, and waits for a line.
fn wait() -> Result<()> {
    println!("{READY}");
    std::io::stdout().flush().context("cannot say that it is ready")?;
    let read = std::io::stdin().lock().read_line(&mut String::new()).context("cannot wait for a line")?;
    ensure!(read > 0, "nobody is there to wait for");
    Ok(())
}

/// The line that [`Options::wait`] asks for.
pub(crate) const READY: &str = "ready";

fn established(gateway: &mut Gateway<'_>, batch: &mut Batch, load: &Load, options: &Options) -> Result<u32> {
    let mut counted = 0;
    for _ in 0..options.batches {
        batch.write(load, options.sessions);
        for (at, side) in SIDES.into_iter().enumerate().filter(|&(at, _)| options.kind.has(at)) {
            gateway.begin();
            gateway.process(&mut batch.packets(at), side);
            gateway.sweep(HALF);
            gateway.advance(HALF);
            gateway.check_passed(HALF, side)?;
            counted += HALF as u32;
        }
    }
    Ok(counted)
}

fn first_packets(gateway: &mut Gateway<'_>, batch: &mut Batch, load: &Load, (first, batches): (u32, u32)) -> Result<u32> {
    for number in 0..batches {
        batch.write_first(load, first + number * HALF as u32);
        gateway.begin();
        gateway.process(&mut batch.packets(0), Side::Inside);
        gateway.sweep(HALF);
        gateway.advance(HALF);
        gateway.check_passed(HALF, Side::Inside)?;
    }
    Ok(batches * HALF as u32)
}
