//! Every NAT requirement as a packet, for any NAT: two raw ends around a black box, a list of rows, a report.
//!
//! Knows packets, namespaces and the RFCs' lists; of Portcullis only its configuration, as a user does. Called by `portcullis natcheck`.
//! Invariant: a row that does not hold says what was sent, expected and seen. Tests: in each file; `crates/portcullis/tests/natcheck.rs`
//! runs it against Portcullis and against the kernel.
#![forbid(unsafe_code)]

mod bench;
mod compare;
mod connection;
mod datagram;
mod driver;
mod plan;
mod report;
mod row;
mod rows;
mod run;
mod setup;
mod watch;
mod wire;
mod world;

use std::io::{IsTerminal as _, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use driver::Driver;
use report::Report;
use world::Wires;

/// What can be typed behind `portcullis natcheck`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The NAT under test
    #[arg(long, value_enum, default_value = "portcullis")]
    nat: Nat,
    /// For --nat command: sets the NAT up and starts it, told by NATCHECK_... variables
    #[arg(long, value_name = "COMMAND", required_if_eq("nat", "command"))]
    setup: Option<String>,
    /// For --nat command: takes it down again
    #[arg(long, value_name = "COMMAND")]
    teardown: Option<String>,
    /// For --nat command: what the NAT is called in the report
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// An interface of this system on the hosts' side, instead of namespaces (with --outside and --nat command)
    #[arg(long, value_name = "INTERFACE", requires = "outside")]
    inside: Option<String>,
    /// An interface of this system on the remotes' side
    #[arg(long, value_name = "INTERFACE", requires = "inside")]
    outside: Option<String>,
    /// Only these rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// Say what rows there are, and run none
    #[arg(long)]
    list: bool,
    /// Workers of Portcullis
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: u32,
    /// How Portcullis keeps UDP: `nat.udp_tracking`
    #[arg(long, value_enum, default_value = "sessions", value_name = "HOW")]
    udp_tracking: UdpTracking,
    /// Queues of each of the NAT's devices; with several, each frame comes on any of them at random (needs clang)
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u32,
    /// Wait for timers of minutes too: below six minutes in all
    #[arg(long)]
    slow: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Write the report as one page of HTML as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Store the report as JSON as well, for --compare
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Print stored reports side by side as Markdown, and run nothing
    #[arg(long, value_name = "FILE", num_args = 1..)]
    compare: Vec<PathBuf>,
}

/// The drivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Nat {
    /// This program's `run`
    Portcullis,
    /// The kernel's own, by nftables
    Kernel,
    /// Whatever --setup starts
    Command,
}

/// The words of Portcullis' `nat.udp_tracking`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UdpTracking {
    /// A session for each remote
    Sessions,
    /// Bare mappings
    Mappings,
}

/// Does what was typed. Gives the rows of level MUST that are violated, none when all is well.
///
/// **Errors:** usage or environment: nothing is said about the NAT then.
pub fn main(arguments: &Arguments, out: &mut impl Write) -> Result<Vec<String>> {
    if !arguments.compare.is_empty() {
        out.write_all(compare(&arguments.compare)?.as_bytes())?;
        return Ok(Vec::new());
    }
    if arguments.list {
        for row in rows::all() {
            writeln!(out, "{:<22} {:<7} {} ({})", row.id, row.level.to_string(), row.text, row.source)?;
        }
        return Ok(Vec::new());
    }
    let plan = plan_of(arguments)?;
    portcullis_lab::cleanup::arm();
    let report = run::run(&plan)?;
    if let Some(path) = &arguments.save {
        report.save(path)?;
    }
    if let Some(path) = &arguments.html {
        std::fs::write(path, report.html()).with_context(|| format!("writing {}", path.display()))?;
    }
    if arguments.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        let width = std::io::stdout().is_terminal().then(|| comfy_table::Table::new().width()).flatten();
        out.write_all(report.table(width).as_bytes())?;
    }
    Ok(report.violated_musts().into_iter().map(str::to_owned).collect())
}

/// Stored reports side by side, as Markdown: Portcullis first, then the others by name, in whatever order they are given.
///
/// **Errors:** a file cannot be read, or is no report.
pub fn compare(paths: &[PathBuf]) -> Result<String> {
    let mut reports: Vec<_> = paths.iter().map(|path| Report::load(path)).collect::<Result<_>>()?;
    reports.sort_by_key(Report::order);
    Ok(compare::page(&reports))
}

/// The identifiers of all rows, in their order.
pub fn identifiers() -> Vec<&'static str> {
    rows::all().iter().map(|row| row.id).collect()
}

fn plan_of(arguments: &Arguments) -> Result<run::Plan> {
    ensure!(nix::unistd::geteuid().is_root(), "natcheck needs root: it makes network namespaces and sends raw frames");
    ensure!((1..=64).contains(&arguments.queues), "--queues takes 1 to 64");
    ensure!((1..=64).contains(&arguments.workers), "--workers takes 1 to 64");
    ensure!(
        arguments.nat == Nat::Portcullis || arguments.udp_tracking == UdpTracking::Sessions,
        "--udp-tracking is for --nat portcullis: no other NAT has that option"
    );
    let driver = match arguments.nat {
        Nat::Portcullis => Driver::Portcullis {
            binary: std::env::current_exe().context("finding this program")?,
            workers: arguments.workers,
            udp_tracking: arguments.udp_tracking,
        },
        Nat::Kernel => Driver::Kernel,
        Nat::Command => match &arguments.setup {
            Some(setup) => Driver::Command {
                name: arguments.name.clone().unwrap_or_else(|| setup.clone()),
                setup: setup.clone(),
                teardown: arguments.teardown.clone(),
            },
            None => bail!("--nat command needs --setup"),
        },
    };
    let wires = match (&arguments.inside, &arguments.outside) {
        (Some(inside), Some(outside)) => Wires::Given { inside: inside.clone(), outside: outside.clone() },
        _ => Wires::Made { queues: arguments.queues },
    };
    ensure!(
        arguments.nat != Nat::Portcullis || arguments.workers <= arguments.queues,
        "{} workers need as many queues: --queues {}",
        arguments.workers,
        arguments.workers
    );
    Ok(run::Plan { driver, wires, only: arguments.only.clone(), slow: arguments.slow })
}
