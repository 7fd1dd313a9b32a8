//! The command line of the side-by-side benchmark.
//!
//! Progress goes to standard error, the table to standard output. Exit codes: 0 right, 1 something is wrong, 2 usage, 77 not root.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use portcullis_bench_veth::{forward, rounds, run, soak};
use portcullis_testkit::topology::cleanup;

const MISSING_PRIVILEGE: u8 = 77;

/// Measures the kernel's source NAT, a bare AF_XDP forwarder and Portcullis side by side over veth, each on one core.
#[derive(Parser)]
#[command(name = "bench-veth", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole comparison: a table, a file of JSON and a plot.
    Run(run::Options),
    /// The same rate to each gateway, round after round: what a packet costs and how long it takes, and what twice that rate does. Ratios with their spread.
    Rounds(rounds::Options),
    /// Portcullis at 90 % of its loss-free rate for minutes: nothing lost that the bare forwarder would not lose as well, no memory grown, no session
    /// left. Exits 1 when not.
    Soak(soak::Options),
    /// The bare forwarder, as the comparison starts it.
    #[command(hide = true)]
    Forward(forward::Options),
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("bench-veth: needs root, for namespaces and XDP programs: sudo ./justw bench-veth");
        return ExitCode::from(MISSING_PRIVILEGE);
    }
    match execute(&command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // What fails after a signal fails because of it; the thread that removes everything ends the process.
            if cleanup::is_interrupted() {
                std::thread::sleep(std::time::Duration::from_secs(10));
            }
            eprintln!("bench-veth: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the command. Returns whether what it checks holds.
fn execute(command: &Command) -> Result<bool> {
    match command {
        Command::Run(options) => run::run(options),
        Command::Rounds(options) => rounds::rounds(options),
        Command::Soak(options) => soak::soak(options),
        Command::Forward(options) => forward::forward(options).map(|()| true),
    }
}
