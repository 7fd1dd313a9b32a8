//! The command line: what can be typed, and what is printed.
//!
//! Knows options, messages and text; asks the gateway through `client.rs` and starts it through `run.rs`. Invariants: entries go to
//! standard output and remarks to standard error; `--json` prints one JSON value a line; exit codes are those of `exit.rs`.
//! Tests: golden texts beside each file, exit codes in `tests/commands.rs` on the built binary.

mod check;
pub(crate) mod client;
pub(crate) mod exit;
mod lines;
mod tables;

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use portcullis_api as api;
use serde::Serialize;

use crate::control::socket;
use crate::doctor;
use crate::run::NicTouch;
pub(crate) use check::load as load_config;
use client::Client;
use exit::Failure;
use lines::{MappingLine, SessionLine};
use tables::Zeroes;

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failure, 2 usage, 69 the gateway is not running, 77 missing privilege, \
                          78 bad configuration.";

/// A NAT gateway for a dedicated Linux box.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, about, after_help = EXIT_CODES, propagate_version = true)]
struct CommandLine {
    /// The gateway's control socket [default: /run/portcullis/control.sock; for `run`, what the configuration says]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the gateway, until SIGTERM
    Run {
        /// The configuration
        #[arg(long, value_name = "PATH", default_value = "/etc/portcullis/portcullis.toml")]
        config: PathBuf,
        /// Leave queues, RSS key and table, hashed fields and flow rules of the devices as they are
        #[arg(long)]
        no_nic_setup: bool,
    },
    /// Tell whether a configuration is legal and fits this box; changes nothing
    Check {
        /// Look at the file alone: it is for another box
        #[arg(long)]
        offline: bool,
        /// The configuration
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Tell what on this box is fine, will cost or will break, and what mends it
    Doctor {
        /// Only these devices, or `host`
        #[arg(value_name = "SUBJECT")]
        subjects: Vec<String>,
        /// Run what mends it
        #[arg(long)]
        fix: bool,
        /// One JSON value a line, for programs
        #[arg(long)]
        json: bool,
        /// The configuration
        #[arg(long, value_name = "PATH", default_value = "/etc/portcullis/portcullis.toml")]
        config: PathBuf,
    },
    /// List the live sessions, in the manner of conntrack -L
    Sessions(List),
    /// List the live mappings
    Mappings(List),
    /// Show what is counted, dropped (and why), and how full everything is
    Stats {
        /// One JSON value, for programs
        #[arg(long)]
        json: bool,
        /// Also what is zero
        #[arg(long)]
        all: bool,
        /// One row for each worker instead; with --json one value a line for each
        #[arg(long)]
        workers: bool,
    },
    /// Test a NAT, this one or another, against each requirement of the RFCs, by packets from both sides
    Natcheck(portcullis_natcheck::Arguments),
    /// Tell the versions of this program and of the running gateway
    Version,
}

#[derive(Debug, Args)]
struct List {
    /// One JSON value a line, for programs
    #[arg(long)]
    json: bool,
    /// Only this protocol: icmp, tcp, udp, gre, esp, sctp or another name, or its number
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<api::Protocol>,
    /// Only this internal endpoint
    #[arg(long, help = "Only this internal endpoint: ADDRESS[/LENGTH][:PORT] or :PORT", value_name = "ENDPOINT")]
    internal: Option<api::EndpointFilter>,
    /// Only this external endpoint
    #[arg(long, value_name = "ENDPOINT")]
    external: Option<api::EndpointFilter>,
    /// Only this remote endpoint
    #[arg(long, value_name = "ENDPOINT")]
    remote: Option<api::EndpointFilter>,
}

impl List {
    fn wants(&self, protocol: api::Protocol) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
    }

    const fn filter(&self) -> api::SessionFilter {
        api::SessionFilter { protocol: self.protocol, internal: self.internal, external: self.external, remote: self.remote }
    }
}

/// Does what was typed.
pub(crate) fn main() -> ExitCode {
    // Usage errors end here, with code 2.
    let line = CommandLine::parse();
    exit::report(execute(line))
}

fn execute(CommandLine { socket, command }: CommandLine) -> Result<(), Failure> {
    let client = Client::new(socket.as_deref().unwrap_or(socket::DEFAULT_PATH.as_ref()));
    let mut out = BufWriter::new(io::stdout().lock());
    match command {
        Command::Run { config, no_nic_setup } => {
            drop(out);
            let touch = if no_nic_setup { NicTouch::LeaveAlone } else { NicTouch::SetUp };
            return crate::run::run(&config, socket.as_deref(), touch);
        }
        Command::Check { file, offline } => {
            let rules = load_config(&file)?;
            if offline {
                print(&mut out, format_args!("{}: legal", file.display()))?;
            } else {
                crate::run::check(&rules)?;
                print(&mut out, format_args!("{}: legal, and fits this box", file.display()))?;
            }
        }
        Command::Doctor { subjects, fix, json, config } => {
            let mut rules = load_config(&config)?;
            if let Some(socket) = socket {
                rules.control.socket = socket;
            }
            doctor::run(&rules, &doctor::Wish { subjects, fix, json }, &mut out)?;
        }
        Command::Sessions(list) => {
            let shown = client.sessions(&list.filter(), |entry| show(&mut out, &entry, list.json, SessionLine(&entry)))?;
            remark(&mut out, format_args!("portcullis: {shown} flow entries have been shown."))?;
            if !list.json && list.wants(api::Protocol::Udp) && has_bare_mappings(&client) {
                let where_udp_is = "`portcullis mappings` lists them; only UDP under forwards has sessions.";
                remark(&mut out, format_args!("portcullis: UDP is kept in bare mappings, without remotes: {where_udp_is}"))?;
            }
        }
        Command::Mappings(list) => {
            let shown = client.mappings(&list.filter(), |entry| show(&mut out, &entry, list.json, MappingLine(&entry)))?;
            remark(&mut out, format_args!("portcullis: {shown} mappings have been shown."))?;
        }
        Command::Stats { json, all, workers } => {
            let stats = client.stats()?;
            let zeroes = if all { Zeroes::Shown } else { Zeroes::Hidden };
            let table = if workers { tables::workers } else { tables::stats };
            match (json, workers) {
                (true, true) => stats.workers.iter().try_for_each(|worker| print_json(&mut out, worker))?,
                (true, false) => print_json(&mut out, &stats)?,
                (false, _) => out.write_all(table(&stats, zeroes, terminal_width()).as_bytes()).map_err(Failure::Output)?,
            }
        }
        Command::Natcheck(arguments) => {
            // Its own errors are of the check; those of writing what it found are of the output.
            let mut page = Vec::new();
            let violated = portcullis_natcheck::main(&arguments, &mut page).map_err(Failure::Check)?;
            out.write_all(&page).map_err(Failure::Output)?;
            out.flush().map_err(Failure::Output)?;
            if !violated.is_empty() {
                return Err(Failure::Violated(violated.join(", ")));
            }
        }
        Command::Version => version(&mut out, &client)?,
    }
    out.flush().map_err(Failure::Output)
}

/// Whether UDP is not among the sessions. A gateway that does not say has been asked in vain, and what was listed before stands.
fn has_bare_mappings(client: &Client) -> bool {
    client.stats().is_ok_and(|stats| stats.config.udp_tracking == api::UdpTracking::Mappings)
}

/// A gateway that does not run is no failure here.
fn version(out: &mut impl Write, client: &Client) -> Result<(), Failure> {
    print(out, format_args!("portcullis {} (messages version {})", env!("CARGO_PKG_VERSION"), api::VERSION))?;
    match client.version() {
        Ok(running) => print(out, format_args!("running: {} (messages version {})", running.portcullis, running.api)),
        Err(Failure::NotRunning(socket)) => print(out, format_args!("running: no (nobody answers at {})", socket.display())),
        Err(failure) => print(out, format_args!("running: unknown ({failure})")),
    }
}

fn show(out: &mut impl Write, entry: &impl Serialize, json: bool, line: impl std::fmt::Display) -> Result<(), Failure> {
    if json { print_json(out, entry) } else { print(out, format_args!("{line}")) }
}

fn print(out: &mut impl Write, line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    writeln!(out, "{line}").map_err(Failure::Output)
}

fn print_json(out: &mut impl Write, value: &impl Serialize) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, value).map_err(|error| Failure::Output(error.into()))?;
    writeln!(out).map_err(Failure::Output)
}

/// To standard error, after all that went to standard output.
fn remark(out: &mut impl Write, line: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    out.flush().map_err(Failure::Output)?;
    // A remark that nobody sees does no harm.
    let _ = writeln!(io::stderr(), "{line}");
    Ok(())
}

/// The width of the terminal, or none where output goes elsewhere.
fn terminal_width() -> Option<u16> {
    io::stdout().is_terminal().then(|| comfy_table::Table::new().width()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn entries_are_printed_as_lines_or_as_json() {
        let endpoint = |port| api::Endpoint { address: [192, 0, 2, 1].into(), port };
        let entry = api::MappingEntry {
            protocol: api::Protocol::Tcp,
            internal: endpoint(1),
            external: endpoint(2),
            remote: None,
            sessions: 1,
            bare: None,
        };
        let mut out = Vec::new();
        show(&mut out, &entry, false, MappingLine(&entry)).expect("printed");
        show(&mut out, &entry, true, MappingLine(&entry)).expect("printed");
        let printed = String::from_utf8(out).expect("text");
        let (line, json) = printed.split_once('\n').expect("two lines");
        assert_eq!(line, "tcp      internal=192.0.2.1:1 external=192.0.2.1:2 remote=* sessions=1");
        assert_eq!(serde_json::from_str::<api::MappingEntry>(json).expect("JSON"), entry);
    }
}
