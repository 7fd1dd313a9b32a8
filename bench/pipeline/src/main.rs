//! The command line of the pipeline benchmark.
//!
//! Results go to standard output; everything else to standard error. Exit codes: 0 right, 1 something failed, 2 usage.
#![forbid(unsafe_code)]

mod figures;
mod flow;
mod frame;
mod gateway;
mod load;
mod memory;
mod rung;
mod scramble;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures the NAT in memory, from parse to verdict.
#[derive(Parser)]
#[command(name = "pipeline", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time for each packet of so many live sessions; prints one line of JSON.
    Rung(rung::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pipeline: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Rung(options) => println!("{}", serde_json::to_string(&rung::run(options)?)?),
    }
    Ok(())
}
