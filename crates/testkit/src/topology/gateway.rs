//! What forwards between the sides: the gateway itself, or the kernel's masquerade as the measure that it is compared with.
//!
//! Knows how each is configured from the same few values, started, found ready, stopped and killed. Does not know the tests.
//! Invariant: a gateway that was started is stopped when its handle goes. Tests: every end-to-end test.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::namespace::{Namespace, directory_of};
use super::program::{Output, Program, Running, wait_until};
use super::{GATEWAY_OUTSIDE, POOL};

/// How long a gateway may take to be ready: its queues may still belong to a predecessor for 2 s.
const READY: Duration = Duration::from_secs(15);
/// How long it may take to end when asked.
const END: Duration = Duration::from_secs(10);

/// Which gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// The kernel: `ip_forward` and an nftables masquerade.
    Kernel,
    /// The program, at this path.
    Portcullis(PathBuf),
}

/// Where external addresses come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pool {
    /// [`POOL`], which no interface has.
    #[default]
    Address,
    /// The outside interface's own address.
    Interface,
}

/// A port forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The external port.
    pub port: u16,
    /// The servers, address and port.
    pub internal: Vec<&'static str>,
}

/// What a gateway is told, whichever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The inside interfaces.
    pub inside: Vec<&'static str>,
    /// The external addresses.
    pub pool: Pool,
    /// The forwards.
    pub forwards: Vec<Forward>,
    /// Further keys of the outside interface, for the program alone.
    pub outside: &'static str,
    /// Further lines of TOML, for the program alone: whole tables.
    pub tables: String,
    /// A whole file for the program, instead of one made of the above. Only the control socket is put elsewhere.
    pub file: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        let (forwards, tables) = (Vec::new(), String::new());
        Self { inside: vec!["inside0"], pool: Pool::Address, forwards, outside: "", tables, file: None }
    }
}

/// A gateway that was started.
#[derive(Debug)]
pub struct RunningGateway {
    namespace: String,
    program: Option<Running>,
    binary: PathBuf,
    directory: PathBuf,
    kept_log: String,
}

impl Setup {
    /// The file for `portcullis run`. The control socket is in `directory`, metrics are on port 9464 of the loopback.
    pub fn toml(&self, directory: &Path) -> String {
        let socket = format!("{:?}", directory.join("control.sock").display().to_string());
        if let Some(file) = &self.file {
            return with_socket(file, &socket);
        }
        let mut text = String::new();
        let interfaces = self.inside.iter().map(|name| (*name, "inside", "")).chain([("outside0", "outside", self.outside)]);
        for (name, side, keys) in interfaces {
            let _ = writeln!(text, "[[interface]]\nname = \"{name}\"\nside = \"{side}\"\n{keys}\n");
        }
        let (address, external) = match self.pool {
            Pool::Address => (POOL, POOL),
            Pool::Interface => ("interface", "interface"),
        };
        let _ = writeln!(text, "[[pool]]\nname = \"default\"\naddresses = [\"{address}\"]\n");
        for Forward { protocol, port, internal } in &self.forwards {
            let _ = writeln!(
                text,
                "[[forward]]\nprotocol = \"{protocol}\"\nexternal = \"{external}:{port}\"\ninternal = {internal:?}\n"
            );
        }
        let socket = directory.join("control.sock");
        let _ =
            writeln!(text, "[control]\nsocket = {:?}\n\n[metrics]\nlisten = \"127.0.0.1:9464\"\n", socket.display().to_string());
        text + &self.tables
    }

    /// The kernel's rules for the same: source NAT to the pool, forwards from both sides, and no unasked packet to the clients.
    fn nft(&self) -> String {
        let external = match self.pool {
            Pool::Address => POOL,
            Pool::Interface => GATEWAY_OUTSIDE,
        };
        let forwards = self.forwards.iter().map(|Forward { protocol, port, internal }| {
            let server = internal.first().copied().unwrap_or_default();
            format!("ip daddr {external} {protocol} dport {port} dnat to {server}\n")
        });
        let forwards: String = forwards.collect();
        format!(
            "table ip standin {{
                 chain in {{
                     type nat hook prerouting priority dstnat; policy accept;
                     {forwards}
                 }}
                 chain out {{
                     type nat hook postrouting priority srcnat; policy accept;
                     ip saddr 10.0.0.0/8 oifname \"outside0\" snat to {external}
                     iifname != \"outside0\" ct status dnat snat to {external}
                 }}
                 chain filter {{
                     type filter hook forward priority 0; policy accept;
                     iifname \"outside0\" ct status dnat accept
                     iifname \"outside0\" ct state new drop
                 }}
             }}"
        )
    }
}

/// A configuration with its control socket in another place.
fn with_socket(file: &str, socket: &str) -> String {
    if !file.lines().any(|line| line.trim() == "[control]") {
        return format!("{file}\n[control]\nsocket = {socket}\n");
    }
    let lines = file.lines().filter(|line| !line.trim_start().starts_with("socket"));
    let moved =
        lines.map(|line| if line.trim() == "[control]" { format!("{line}\nsocket = {socket}\n") } else { format!("{line}\n") });
    moved.collect()
}

impl Gateway {
    /// Starts it in `host` and waits until it is ready.
    ///
    /// **Errors:** it ended or was not ready in time, with its log.
    pub fn start(&self, host: &Namespace, setup: &Setup) -> Result<RunningGateway> {
        let directory = directory_of(host.name());
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let mut running = RunningGateway {
            namespace: host.name().to_owned(),
            program: None,
            binary: PathBuf::new(),
            directory,
            kept_log: String::new(),
        };
        match self {
            Self::Kernel => {
                if setup.pool == Pool::Address {
                    host.ip(&format!("address replace {POOL}/32 dev lo"))?;
                    host.sysctl("net/ipv4/conf/outside0/arp_ignore", "0")?;
                }
                host.nft(&setup.nft())?;
            }
            Self::Portcullis(binary) => {
                running.binary.clone_from(binary);
                let file = running.config_path();
                fs::write(&file, setup.toml(&running.directory)).with_context(|| format!("writing {}", file.display()))?;
                let (binary, file) = (binary.display().to_string(), file.display().to_string());
                let program = host.program(&binary, ["run", "--config", &file]);
                let program = program.environment("NO_COLOR", "1").log_to(&running.log_path())?;
                running.program = Some(program.start()?);
                running.wait_until_ready()?;
            }
        }
        Ok(running)
    }
}

impl RunningGateway {
    /// The file that it was started with.
    pub fn config_path(&self) -> PathBuf {
        self.directory.join("portcullis.toml")
    }

    /// The process number, when it is a program.
    pub fn pid(&self) -> Option<u32> {
        self.program.as_ref().map(Running::pid)
    }

    /// The file that it logs to.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("portcullis.log")
    }

    /// Its control socket.
    pub fn socket_path(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// What it has logged since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_else(|_| self.kept_log.clone())
    }

    /// Whether the process is there. The kernel always is.
    pub fn is_running(&mut self) -> bool {
        self.program.as_mut().is_none_or(Running::is_running)
    }

    /// Runs `portcullis` with these words and this gateway's control socket.
    pub fn ask(&self, words: &str) -> Result<Output> {
        let binary = self.binary.display().to_string();
        let socket = self.socket_path().display().to_string();
        let arguments =
            ["netns", "exec", &self.namespace, &binary, "--socket", &socket].into_iter().chain(words.split_whitespace());
        Program::new("ip", arguments).environment("NO_COLOR", "1").run()
    }

    /// The command line that `portcullis` subcommands follow, for people.
    pub fn command_line(&self) -> String {
        format!("{} --socket {}", self.binary.display(), self.socket_path().display())
    }

    /// Asks it to end, and waits. Returns how it ended; the kernel's rules are removed.
    pub fn stop(&mut self) -> Result<Option<Output>> {
        self.end(Signal::SIGTERM)
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) -> Result<Option<Output>> {
        self.end(Signal::SIGKILL)
    }

    /// Leaves it running after this process.
    pub fn leave(mut self) {
        if let Some(program) = self.program.take() {
            program.leave();
        }
        std::mem::forget(self);
    }

    fn end(&mut self, signal: Signal) -> Result<Option<Output>> {
        let Some(program) = self.program.take() else {
            Program::new("ip", ["netns", "exec", &self.namespace, "nft", "delete", "table", "ip", "standin"]).run()?;
            Program::new("ip", ["-n", &self.namespace, "address", "delete", &format!("{POOL}/32"), "dev", "lo"]).run()?;
            return Ok(None);
        };
        let mut output = program.stop(signal, END)?;
        self.kept_log = self.log();
        output.stderr.clone_from(&self.kept_log);
        // The next gateway in this namespace begins a log of its own, and makes its socket itself.
        let _ = fs::remove_file(self.log_path());
        Ok(Some(output))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut answer = None;
        let ready = wait_until(READY, || {
            if !self.is_running() {
                return true;
            }
            if !self.socket_path().exists() {
                return false;
            }
            // Not its version, which the client tells also of a gateway that hangs up.
            answer = self.ask("stats").ok();
            answer.as_ref().is_some_and(Output::ok)
        });
        if ready && self.is_running() {
            return Ok(());
        }
        let state = if self.is_running() { "was not ready in time" } else { "ended at start" };
        bail!("the gateway {state}\n{}{}", self.log(), answer.map(|answer| answer.to_string()).unwrap_or_default());
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        if self.program.is_some() {
            let _ = self.stop();
        }
    }
}
