//! Any other NAT, set up and taken down by commands that are told everything in their environment.
//!
//! Knows the variables, which docs/natcheck.md lists. Exit code 3 of the setup means that the NAT cannot do what is asked.

use std::time::Duration;

use anyhow::{Result, bail};
use portcullis_lab::namespace::Namespace;
use portcullis_lab::program::Program;

use super::{INSIDE, OUTSIDE, Running, Started};
use crate::plan;
use crate::setup::{Setup, Timers};

/// How long a command may take: an appliance may have to restart.
const LIMIT: Duration = Duration::from_secs(120);
/// The exit code that says: not with this NAT.
const UNSUPPORTED: i32 = 3;

/// Takes the NAT down when it goes.
#[derive(Debug)]
pub(crate) struct Teardown {
    line: Option<String>,
    namespace: Option<String>,
    variables: Vec<(&'static str, String)>,
}

/// Runs the setup command.
///
/// **Errors:** it fails with another code than 3, with what it printed.
pub(super) fn start(line: &str, teardown: Option<&str>, namespace: Option<&Namespace>, setup: &Setup) -> Result<Started> {
    let variables = variables(setup, namespace.is_some());
    let name = namespace.map(|namespace| namespace.name().to_owned());
    let output = program(line, name.as_deref(), &variables).run()?;
    match output.status.code() {
        Some(0) => {
            let teardown = Teardown { line: teardown.map(str::to_owned), namespace: name, variables };
            Ok(Started::Running(Running::Command { _teardown: teardown }))
        }
        Some(UNSUPPORTED) => {
            let why = output.stdout.lines().chain(output.stderr.lines()).next().unwrap_or_default().trim();
            let why = if why.is_empty() { "its setup command says that it cannot do this" } else { why };
            Ok(Started::Unsupported(why.to_owned()))
        }
        _ => bail!("the setup command failed: {output}"),
    }
}

fn program(line: &str, namespace: Option<&str>, variables: &[(&'static str, String)]) -> Program {
    let program = match namespace {
        Some(namespace) => Program::new("ip", ["netns", "exec", namespace, "sh", "-c", line]),
        None => Program::new("sh", ["-c", line]),
    };
    variables.iter().fold(program.limit(LIMIT), |program, (key, value)| program.environment(key, value))
}

/// What a command is told.
fn variables(setup: &Setup, own_wires: bool) -> Vec<(&'static str, String)> {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs().to_string()).unwrap_or_default();
    let (inside, outside) = if own_wires { (INSIDE, OUTSIDE) } else { ("", "") };
    let (first, last) = setup.ports.unwrap_or_default();
    let filtering = setup.filtering.map(|(udp, tcp)| (udp.word(), tcp.word())).unwrap_or_default();
    let timers = setup.timers;
    vec![
        ("NATCHECK_GROUP", setup.name.to_owned()),
        ("NATCHECK_INSIDE", inside.to_owned()),
        ("NATCHECK_OUTSIDE", outside.to_owned()),
        ("NATCHECK_INSIDE_ADDRESS", format!("{}/{}", plan::NAT_INSIDE, plan::INSIDE_LENGTH)),
        ("NATCHECK_OUTSIDE_ADDRESS", format!("{}/{}", plan::NAT_OUTSIDE, plan::OUTSIDE_LENGTH)),
        ("NATCHECK_ROUTER", plan::ROUTER.to_string()),
        ("NATCHECK_POOL", setup.pool().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("NATCHECK_PORTS", setup.ports.map(|_| format!("{first}-{last}")).unwrap_or_default()),
        ("NATCHECK_PORT_PARITY", if setup.parity { "1" } else { "" }.to_owned()),
        (
            "NATCHECK_FORWARDS",
            format!(
                "udp {pool}:{} {server}:{}\ntcp {pool}:{} {server}:{}",
                plan::UDP_FORWARD,
                plan::UDP_SERVICE,
                plan::TCP_FORWARD,
                plan::TCP_SERVICE,
                pool = plan::POOL[0],
                server = plan::SERVER
            ),
        ),
        ("NATCHECK_FILTERING_UDP", filtering.0.to_owned()),
        ("NATCHECK_FILTERING_TCP", filtering.1.to_owned()),
        ("NATCHECK_UDP_TIMEOUT", seconds(timers.map(|timers| timers.udp))),
        ("NATCHECK_UDP_PORT_TIMEOUT", setup.udp_port.map(|(port, time)| format!("{port} {}", time.as_secs())).unwrap_or_default()),
        ("NATCHECK_TCP_ESTABLISHED_TIMEOUT", seconds(timers.map(|timers| timers.established))),
        ("NATCHECK_TCP_TRANSITORY_TIMEOUT", seconds(timers.and_then(Timers::transitory))),
        ("NATCHECK_TCP_OPENING_TIMEOUT", seconds(timers.map(|timers| timers.opening))),
        ("NATCHECK_TCP_CLOSING_TIMEOUT", seconds(timers.map(|timers| timers.closing))),
        ("NATCHECK_ICMP_TIMEOUT", seconds(timers.map(|timers| timers.icmp))),
        ("NATCHECK_INSIDE_MTU", setup.mtu.0.to_string()),
        ("NATCHECK_OUTSIDE_MTU", setup.mtu.1.to_string()),
        ("NATCHECK_SILENT", if setup.silent { "1" } else { "" }.to_owned()),
        ("NATCHECK_CLAMPS", if setup.clamps { "1" } else { "" }.to_owned()),
        ("NATCHECK_EXEMPT", if setup.exempts { plan::EXEMPT } else { "" }.to_owned()),
        ("NATCHECK_EXHAUSTED_CODE", setup.exhausted_code.map(|code| code.to_string()).unwrap_or_default()),
    ]
}

impl Drop for Teardown {
    fn drop(&mut self) {
        let Some(line) = &self.line else { return };
        match program(line, self.namespace.as_deref(), &self.variables).run() {
            Ok(output) if output.ok() => {}
            Ok(output) => eprintln!("natcheck: the teardown command failed: {output}"),
            Err(error) => eprintln!("natcheck: the teardown command: {error:#}"),
        }
    }
}
