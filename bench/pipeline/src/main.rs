//! The command line of the pipeline benchmark.
//!
//! Results go to standard output; everything else to standard error. Exit codes: 0 right, 1 something failed, 2 usage,
//! 77 a tool is missing.
#![forbid(unsafe_code)]
#![allow(clippy::cast_precision_loss, reason = "sizes, counts and spans are far below 2^52")]

mod allocation;
mod baseline;
mod batch;
mod clock;
mod count;
mod expiry;
mod figures;
mod floor;
mod flow;
mod frame;
mod gate;
mod gateway;
mod ladder;
mod load;
mod machine;
mod memory;
mod newcomers;
mod plot;
mod records;
mod report;
mod rung;
mod scramble;
mod table;
mod valgrind;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::report::Report;

/// Measures the NAT in memory, from parse to verdict.
#[derive(Parser)]
#[command(name = "pipeline", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All of it: writes bench/results/DATE-COMMIT.json and compares with the newest result there.
    All(ladder::Options),
    /// Draws docs/performance-*.svg from a result.
    Plot {
        /// The result.
        file: PathBuf,
    },
    /// Time for each packet of so many live sessions; prints one line of JSON.
    Rung(rung::Options),
    /// What a packet costs that reads two lines of memory and is rewritten, and nothing else; prints one line of JSON.
    Floor(floor::Options),
    /// Time for each new session while as many end; prints one line of JSON.
    Newcomers(newcomers::Options),
    /// Time for each first packet while the pool fills up, and beyond; prints one line of JSON.
    Allocation(allocation::Options),
    /// Time in the sweep while all sessions end; prints one line of JSON.
    Expiry(expiry::Options),
    /// Look-ups in our index and in the library's tables; prints one line of JSON.
    Index(baseline::Options),
    /// Taking ports from our port space and from a library's set; prints one line of JSON.
    Ports {
        /// The seed of draws and hashes.
        #[arg(long, default_value_t = 4)]
        seed: u64,
    },
    /// Instructions for each packet, under callgrind, against the file that is checked in; exits 1 when there are more, 77 when there
    /// is no valgrind.
    Instructions(gate::Options),
    /// Cache misses for each packet, in simulated caches, under callgrind; prints one line of JSON.
    Misses(count::Options),
    /// Sends packets for a tool that counts.
    #[command(hide = true)]
    Count(count::Options),
}

const SKIPPED: u8 = 77;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pipeline: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::All(options) => ladder::run(options)?,
        Command::Plot { file } => plot::write(&Report::read(file)?)?,
        Command::Rung(options) => print(&rung::run(options)?)?,
        Command::Floor(options) => print(&floor::run(options)?)?,
        Command::Newcomers(options) => print(&newcomers::run(options)?)?,
        Command::Allocation(options) => print(&allocation::run(options)?)?,
        Command::Expiry(options) => print(&expiry::run(options)?)?,
        Command::Index(options) => print(&baseline::run(options)?)?,
        Command::Ports { seed } => print(&baseline::ports(*seed)?)?,
        Command::Misses(options) => print(&valgrind::misses(options)?)?,
        Command::Count(options) => {
            count::run(options)?;
        }
        Command::Instructions(_) if !valgrind::is_installed() => {
            println!("SKIPPED (needs valgrind): {}\n0 passed, 0 failed, 1 skipped", valgrind::HOW_TO_INSTALL);
            return Ok(ExitCode::from(SKIPPED));
        }
        Command::Instructions(options) => {
            return Ok(if gate::run(options)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
