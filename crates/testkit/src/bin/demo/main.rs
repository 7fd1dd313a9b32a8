//! The demo: real programs through the gateway, in namespaces of this machine, in less than two minutes.
//!
//! Builds the topology, starts the release binary beside itself with `configs/demo.toml`, goes through the steps and removes
//! everything: at the end, on failure and on Ctrl-C. `--stay` leaves it up, `--clean` removes what stayed. Needs root.

mod screen;
mod steps;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use portcullis_testkit::topology::gateway::{Forward, Gateway, RunningGateway, Setup};
use portcullis_testkit::topology::program::{Running, wait_until};
use portcullis_testkit::topology::{Topology, cleanup, namespace, services};

use screen::Screen;

/// What the demo's namespaces are called, before the process number.
const PREFIX: &str = "pcdemo";
const USAGE: &str = "\
Shows real programs through the gateway, in network namespaces of this machine. Needs root, and the release build.

Usage: demo [--stay] [--kernel] | --clean

  --stay    leave everything up at the end, and say what to try
  --clean   remove what `--stay` left
  --kernel  the same through the kernel's nftables masquerade, to compare with";

/// What was asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    stay: bool,
    kernel: bool,
}

/// Everything that is up.
pub(crate) struct Stage {
    pub(crate) topology: Topology,
    pub(crate) gateway: RunningGateway,
    servers: Vec<Running>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        // The demo's own web servers: processes of their own, so that they can stay.
        ["--serve", address] => services::http_forever(address).map(|()| ExitCode::SUCCESS),
        ["--clean"] => clean(),
        ["--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => options(&words).map_or_else(|| Ok(refuse()), show),
    };
    outcome.unwrap_or_else(|error| {
        wait_if_interrupted();
        eprintln!("\ndemo: {error:#}");
        ExitCode::FAILURE
    })
}

fn refuse() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn options(words: &[&str]) -> Option<Options> {
    let mut options = Options::default();
    for word in words {
        match *word {
            "--stay" => options.stay = true,
            "--kernel" => options.kernel = true,
            _ => return None,
        }
    }
    Some(options)
}

/// The whole demo. Everything is removed when this returns, unless it is to stay.
fn show(options: Options) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: try `sudo ./justw demo`");
    }
    let started = Instant::now();
    let mut screen = Screen::new();
    let stage = Stage::build(options, &mut screen)?;
    steps::all(&stage, &mut screen);
    wait_if_interrupted();
    let code = if screen.summary(started.elapsed()) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if options.stay {
        stage.stay(&screen);
    } else {
        drop(stage);
        screen.note("everything is removed: no namespace, no process, no file is left");
    }
    Ok(code)
}

/// After a signal every step fails, and the thread that removes everything also ends the process: nothing is left to be said here.
fn wait_if_interrupted() {
    if cleanup::is_interrupted() {
        wait_until(Duration::from_secs(30), || false);
    }
}

impl Stage {
    fn build(options: Options, screen: &mut Screen) -> Result<Self> {
        let gateway = if options.kernel { Gateway::Kernel } else { Gateway::Portcullis(binary()?) };
        screen.title("Portcullis: a NAT gateway, shown with real programs");
        screen.progress("making namespaces: two clients, a switch, the gateway, a router, a server");
        let topology = Topology::build(PREFIX)?;
        screen.picture();
        let servers = vec![web_server(topology.server(), "198.51.100.2:80")?, web_server(topology.client(0), "10.0.0.2:80")?];
        screen.progress("starting the gateway with configs/demo.toml");
        let gateway = gateway.start(topology.gateway(), &setup()?)?;
        screen.log(&gateway.log());
        Ok(Self { topology, gateway, servers })
    }

    /// Leaves everything up and says what can be done with it.
    fn stay(self, screen: &Screen) {
        let name = |host: &namespace::Namespace| host.name().to_owned();
        let (client, server, gateway) =
            (name(self.topology.client(0)), name(self.topology.server()), name(self.topology.gateway()));
        let portcullis = self.gateway.command_line();
        let tries = [
            ("a page from the server", format!("ip netns exec {client} curl http://198.51.100.2/")),
            ("the forward, from outside", format!("ip netns exec {server} curl http://203.0.113.10:8080/")),
            ("a shell on the first client", format!("ip netns exec {client} bash")),
            ("the sessions, as JSON", format!("{portcullis} sessions --json")),
            ("the counters", format!("{portcullis} stats")),
            ("the metrics", format!("ip netns exec {gateway} curl -s http://127.0.0.1:9464/metrics")),
            ("the gateway's log", format!("tail -f {}", self.gateway.log_path().display())),
        ];
        let for_all = if self.gateway.pid().is_some() { tries.len() } else { 3 };
        screen.invite(&tries[..for_all], &format!("{} --clean", program()));
        for server in self.servers {
            server.leave();
        }
        self.gateway.leave();
        self.topology.leave_up();
    }
}

/// Removes what demos that have ended left up.
fn clean() -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("removing namespaces needs root");
    }
    let gone = |process: i32| !Path::new(&format!("/proc/{process}")).exists();
    let left: Vec<_> = cleanup::named(PREFIX).into_iter().filter(|&(_, process)| gone(process)).collect();
    for (name, _) in &left {
        println!("removing {name}");
        cleanup::remove(name);
    }
    println!("{} namespaces removed", left.len());
    Ok(ExitCode::SUCCESS)
}

fn program() -> String {
    std::env::current_exe().map_or_else(|_| "demo".to_owned(), |path| path.display().to_string())
}

/// The gateway's program, beside this one.
fn binary() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("portcullis");
    if !path.exists() {
        bail!("{} is not there: build it first (`./justw demo` does, or `cargo build --release -p portcullis`)", path.display());
    }
    Ok(path)
}

/// `configs/demo.toml`, and the same for the kernel.
fn setup() -> Result<Setup> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo.toml");
    let file = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let forwards = vec![Forward { protocol: "tcp", port: 8080, internal: vec!["10.0.0.2:80"] }];
    Ok(Setup { forwards, file: Some(file), ..Setup::default() })
}

/// Starts a web server in a namespace, as a process of its own.
fn web_server(host: &namespace::Namespace, address: &str) -> Result<Running> {
    let server = host.program(&program(), ["--serve", address]).start()?;
    let port = address.rsplit(':').next().unwrap_or_default();
    let listens = || host.run(&format!("ss -Hltn sport = {port}")).is_ok_and(|sockets| !sockets.is_empty());
    if !wait_until(Duration::from_secs(5), listens) {
        bail!("the web server on {address} does not listen: {}", server.printed());
    }
    Ok(server)
}
