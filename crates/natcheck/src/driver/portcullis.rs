//! Portcullis as the NAT: the same binary's `run`, with a configuration for each setup.
//!
//! Knows the configuration's keys, as a user would write them. Invariant: the process ends with its handle.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use portcullis_lab::namespace::{Namespace, directory_of};
use portcullis_lab::program::{Running, wait_until};

use super::{INSIDE, OUTSIDE, Started};
use crate::setup::{Filtering, Setup};
use crate::{UdpTracking, plan};

/// How long it may take to be ready.
const READY: Duration = Duration::from_secs(15);
/// How long it may take to end when asked.
const END: Duration = Duration::from_secs(10);

/// The process.
#[derive(Debug)]
pub(crate) struct Gateway {
    program: Option<Running>,
    log: PathBuf,
}

/// What bare mappings cannot do: they know of no remote.
fn unsupported(setup: &Setup, udp_tracking: UdpTracking) -> Option<&'static str> {
    if udp_tracking == UdpTracking::Sessions {
        return None;
    }
    if setup.filtering.is_some_and(|(udp, _)| udp != Filtering::Endpoint) {
        return Some("with bare mappings UDP is filtered endpoint-independently only");
    }
    setup.udp_port.map(|_| "bare mappings have no times towards ports")
}

/// Starts it and waits until it notifies that it is ready, as it notifies systemd.
///
/// **Errors:** it ended or was not ready in time, with its log.
pub(super) fn start(
    binary: &Path,
    workers: u32,
    udp_tracking: UdpTracking,
    namespace: &Namespace,
    setup: &Setup,
) -> Result<Started> {
    if let Some(why) = unsupported(setup, udp_tracking) {
        return Ok(Started::Unsupported(why.to_owned()));
    }
    let directory = directory_of(namespace.name());
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let (file, log, socket) = (directory.join("portcullis.toml"), directory.join("portcullis.log"), directory.join("control.sock"));
    fs::write(&file, toml(setup, workers, udp_tracking, &socket)).with_context(|| format!("writing {}", file.display()))?;
    let notice = directory.join("notify.sock");
    let notices = UnixDatagram::bind(&notice).with_context(|| format!("binding {}", notice.display()))?;
    notices.set_nonblocking(true)?;
    let (program, path) = (binary.display().to_string(), file.display().to_string());
    let program = namespace.program(&program, ["run", "--config", &path]).environment("NO_COLOR", "1");
    let program = program.environment("NOTIFY_SOCKET", &notice.display().to_string()).log_to(&log)?;
    let mut gateway = Gateway { program: Some(program.start()?), log };
    let is_ready = || {
        let mut text = [0; 256];
        notices.recv(&mut text).is_ok_and(|length| text[..length].starts_with(b"READY=1"))
    };
    if wait_until(READY, || !gateway.is_running() || is_ready()) && gateway.is_running() {
        return Ok(Started::Running(super::Running::Portcullis(gateway)));
    }
    bail!("{} run was not ready within {READY:?}:\n{}", binary.display(), gateway.log())
}

impl Gateway {
    fn is_running(&mut self) -> bool {
        self.program.as_mut().is_some_and(Running::is_running)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(program) = self.program.take() {
            // One that does not end when asked is killed at the limit.
            let _ = program.stop(Signal::SIGTERM, END);
        }
    }
}

/// The configuration for a setup.
fn toml(setup: &Setup, workers: u32, udp_tracking: UdpTracking, socket: &Path) -> String {
    let mss = if setup.clamps { "mss = \"pmtu\"\n" } else { "" };
    let mut text = format!(
        "[[interface]]\nname = \"{INSIDE}\"\nside = \"inside\"\n\n[[interface]]\nname = \"{OUTSIDE}\"\nside = \"outside\"\n{mss}\n\
         [[pool]]\nname = \"default\"\n"
    );
    let addresses: Vec<_> = setup.pool().iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "addresses = {addresses:?}");
    if let Some((first, last)) = setup.ports {
        let _ = writeln!(text, "ports = \"{first}-{last}\"");
    }
    let forwards = [("udp", plan::UDP_FORWARD, plan::UDP_SERVICE), ("tcp", plan::TCP_FORWARD, plan::TCP_SERVICE)];
    for (protocol, external, internal) in forwards {
        let _ = writeln!(
            text,
            "\n[[forward]]\nprotocol = \"{protocol}\"\nexternal = \"{}:{external}\"\ninternal = [\"{}:{internal}\"]",
            plan::POOL[0],
            plan::SERVER
        );
    }
    // Bare mappings are for this filtering of UDP alone. TCP's stays its default.
    let bare = udp_tracking == UdpTracking::Mappings;
    let filtering = setup.filtering.or_else(|| bare.then_some((Filtering::Endpoint, Filtering::AddressAndPort)));
    if setup.parity || filtering.is_some() || setup.exempts {
        text.push_str("\n[nat]\n");
    }
    if bare {
        text.push_str("udp_tracking = \"mappings\"\n");
    }
    if setup.parity {
        text.push_str("port_parity = \"preserve\"\n");
    }
    if let Some((udp, tcp)) = filtering {
        let _ = writeln!(text, "filtering = \"{}\"\nfiltering_tcp = \"{}\"", udp.word(), tcp.word());
    }
    if setup.exempts {
        let _ = writeln!(text, "exempt = [\"{}\"]", plan::EXEMPT);
    }
    if let Some(timers) = setup.timers {
        let times = [
            ("udp", timers.udp),
            ("tcp_established", timers.established),
            ("tcp_opening", timers.opening),
            ("tcp_closing", timers.closing),
            ("icmp", timers.icmp),
        ];
        text.push_str("\n[timeouts]\n");
        for (key, time) in times {
            let _ = writeln!(text, "{key} = \"{}s\"", time.as_secs());
        }
    }
    if let Some((port, time)) = setup.udp_port {
        let _ = writeln!(text, "\n[timeouts.udp_ports]\n{port} = \"{}s\"", time.as_secs());
    }
    if setup.silent || setup.exhausted_code.is_some() {
        text.push_str("\n[icmp]\n");
    }
    if setup.silent {
        text.push_str("rate = 0\n");
    }
    if let Some(code) = setup.exhausted_code {
        let _ = writeln!(text, "exhausted_code = {code}");
    }
    let socket = socket.display().to_string();
    let _ = write!(text, "\n[worker]\ncount = {workers}\n\n[control]\nsocket = {socket:?}\n\n[metrics]\nlisten = \"\"\n");
    text
}
