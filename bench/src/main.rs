//! The command line of the generator, the sink, the echo server and the measurement with pktgen.
//!
//! Results go to standard output, one line of JSON with `--json`; everything else to standard error.
//! Exit codes: 0 right, 1 something is wrong with what arrived or with the run, 2 usage, 77 missing privilege.

use std::fmt::Display;
use std::io::ErrorKind;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use portcullis_bench::echo::{self, Echo};
use portcullis_bench::generate::{self, Sent};
use portcullis_bench::pktgen;
use portcullis_bench::sink::{self, Sink};
use serde::Serialize;

const MISSING_PRIVILEGE: u8 = 77;

/// Sends stamped packets through a gateway and checks each one that arrives.
#[derive(Parser)]
#[command(name = "portcullis-bench", version)]
struct Arguments {
    /// Print the result as one line of JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send packets out of an interface, in the kernel, at a rate.
    Generate(Box<generate::Options>),
    /// Receive, check checksums, sources and order, and report; exits 1 when something is wrong.
    Sink(sink::Options),
    /// Answer UDP datagrams with themselves.
    Echo(echo::Options),
    /// Measure a gateway between two ports of this machine with the kernel's pktgen; exits 1 when something is wrong.
    Pktgen(Box<pktgen::Options>),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("portcullis-bench: {error:#}");
            if privilege_is_missing(&error) { ExitCode::from(MISSING_PRIVILEGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Runs the command. Returns whether all that arrived was right.
fn run(arguments: &Arguments) -> Result<bool> {
    let json = arguments.json;
    match &arguments.command {
        Command::Generate(options) => {
            let sent = generate::generate(options)?;
            let Sent { sent: packets, seconds, packets_per_second: rate, interface_sent, interface_dropped, .. } = sent;
            let text = format!(
                "sent {packets} packets in {seconds:.3} s, {rate:.0} packets/s\n\
                 the interface counted {interface_sent} sent, {interface_dropped} dropped"
            );
            print(json, &sent, &text)?;
            Ok(true)
        }
        Command::Sink(options) => {
            let sink = Sink::open(options)?;
            eprintln!("listening on {}", options.interface);
            let report = sink.run()?;
            print(json, &report, &report)?;
            let faults = report.faults(options.allow_loss);
            for fault in &faults {
                eprintln!("wrong: {fault}");
            }
            Ok(faults.is_empty())
        }
        Command::Echo(options) => {
            let echo = Echo::bind(options)?;
            eprintln!("listening on {}", echo.local_address()?);
            let report = echo.run()?;
            let echo::Report { answered, bytes, failed } = report;
            print(json, &report, &format!("answered {answered} datagrams, {bytes} bytes; {failed} answers failed"))?;
            Ok(true)
        }
        Command::Pktgen(options) => {
            let pktgen::Outcome { report, files: [data, page] } = pktgen::run(options)?;
            print(json, &report, &format!("{}\n{}", data.display(), page.display()))?;
            let faults = report.faults();
            for fault in &faults {
                eprintln!("wrong: {fault}");
            }
            Ok(faults.is_empty())
        }
    }
}

fn print(json: bool, result: &impl Serialize, text: &impl Display) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(result).context("writing the result")?);
    } else {
        println!("{text}");
    }
    Ok(())
}

fn privilege_is_missing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let plain = cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::PermissionDenied);
        let bpf = cause.downcast_ref::<libbpf_rs::Error>();
        plain || bpf.is_some_and(|error| error.kind() == libbpf_rs::ErrorKind::PermissionDenied)
    })
}
