//! The world that the tests share: the topology, the servers in it, and the gateway as the test at hand wants it.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portcullis_testkit::topology::capture::Capture;
use portcullis_testkit::topology::gateway::{Forward, Gateway, RunningGateway, Setup};
use portcullis_testkit::topology::namespace::{Namespace, directory_of};
use portcullis_testkit::topology::program::{Output, wait_until};
use portcullis_testkit::topology::services::Service;
use portcullis_testkit::topology::sniff::{Seen, Sniffer};
use portcullis_testkit::topology::{self, Offloads, Topology};

/// How long an answer over UDP may take.
pub(crate) const ANSWER: Duration = Duration::from_secs(2);

static WORLD: Mutex<Option<World>> = Mutex::new(None);
/// Owns the directory of the captures, which outlives the worlds: a namespace's files go with it, at exit at the latest.
static CAPTURES: Mutex<Option<Namespace>> = Mutex::new(None);

/// Everything that tests share.
pub(crate) struct World {
    /// What the gateway sends to both sides, for the verdict at the end. Ended before the topology, which kills what runs in it.
    captures: Vec<Capture>,
    pub(crate) topology: Topology,
    pub(crate) gateway: RunningGateway,
    setup: Setup,
    kind: Gateway,
    /// What must stay empty: internal addresses on the outside wire.
    outside: Option<Sniffer>,
    _services: Vec<Service>,
}

/// The configuration that most tests use.
pub(crate) fn usual() -> Setup {
    let forward = |protocol, port, internal: &[&'static str]| Forward { protocol, port, internal: internal.to_vec() };
    Setup {
        forwards: vec![
            forward("tcp", 8080, &["10.0.0.2:80"]),
            forward("tcp", 8081, &["10.0.0.2:80", "10.0.0.3:80"]),
            forward("udp", 5300, &["10.0.0.2:7"]),
            forward("udp", 5301, &["10.0.0.2:9"]),
        ],
        ..Setup::default()
    }
}

/// Runs a test in the world, with a gateway that has this setup. On failure the gateway's log is shown, and the next test gets a new world.
pub(crate) fn run<T: FnOnce(&mut World) -> Result<()>>(setup: Setup, test: T) {
    let name = name_of::<T>();
    if !topology::is_root_or_skips(name) {
        return;
    }
    let mut scene = Scene { world: WORLD.lock().unwrap_or_else(PoisonError::into_inner), good: false };
    let world = match scene.world.take() {
        Some(world) => world.with(setup),
        None => World::build(setup),
    };
    let world = scene.world.insert(world.expect("the world is built"));
    let started = Instant::now();
    let outcome = test(world).and_then(|()| world.nothing_internal_was_seen_outside());
    if let Err(error) = outcome {
        panic!("{name}: {error:#}");
    }
    scene.good = true;
    eprintln!("{name} took {:.1?}", started.elapsed());
}

/// Removes the world of the tests before, with what their programs still send: a connection whose gateway is gone tries again for minutes.
pub(crate) fn forget() {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// Where the captures of this process are.
pub(crate) fn captures() -> Result<PathBuf> {
    let mut owner = CAPTURES.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("pctest{}-captures", std::process::id());
    if owner.is_none() {
        *owner = Some(Namespace::create(&name)?);
        std::fs::create_dir_all(directory_of(&name))?;
    }
    Ok(directory_of(&name))
}

/// Runs a test of what only Portcullis does.
pub(crate) fn run_portcullis<T: FnOnce(&mut World) -> Result<()>>(setup: Setup, test: T) {
    if kind() == Gateway::Kernel {
        topology::skip("needs Portcullis, the gateway is the kernel", name_of::<T>());
        return;
    }
    run(setup, test);
}

/// The test's name: its body is a closure in it. The harness names threads after tests only when it runs several at once.
fn name_of<T>() -> &'static str {
    let name = std::any::type_name::<T>().trim_end_matches("::{{closure}}");
    name.strip_prefix("e2e::").unwrap_or(name)
}

fn kind() -> Gateway {
    match std::env::var("PORTCULLIS_E2E_GATEWAY").as_deref() {
        Ok("kernel") => Gateway::Kernel,
        _ => Gateway::Portcullis(binary()),
    }
}

/// Queues of the gateway's devices, and by default as many workers: `PORTCULLIS_E2E_QUEUES`, or one.
pub(crate) fn queues() -> u32 {
    let wanted = std::env::var("PORTCULLIS_E2E_QUEUES").ok();
    wanted.map_or(1, |wanted| wanted.parse().expect("PORTCULLIS_E2E_QUEUES is a number of queues"))
}

/// The program under test: the one that was built with the tests, or another one, such as a release build.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("PORTCULLIS_E2E_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_portcullis").into(), PathBuf::from)
}

/// The lock on the world, which leaves a failed test's world behind.
struct Scene {
    world: MutexGuard<'static, Option<World>>,
    good: bool,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.good {
            return;
        }
        if let Some(world) = self.world.take() {
            eprintln!("--- the gateway's log ---\n{}\n--- end of the log ---", world.gateway.log());
        }
    }
}

impl World {
    fn build(setup: Setup) -> Result<Self> {
        let topology = Topology::build_with_queues("pctest", queues())?;
        // What the gateway's kernel sends itself is captured too, and has to have complete checksums.
        for device in ["inside0", "outside0"] {
            topology.gateway().ethtool_features(device, &["tx", "off"])?;
        }
        let services = Self::start_services(&topology)?;
        let kind = kind();
        let gateway = kind.start(topology.gateway(), &setup)?;
        let mut world = Self { topology, gateway, setup, kind, outside: None, captures: Vec::new(), _services: services };
        world.watch_outside()?;
        Ok(world)
    }

    fn start_services(topology: &Topology) -> Result<Vec<Service>> {
        let (server, router) = (topology.server(), topology.router());
        let (first, second) = (topology.client(0), topology.client(1));
        Ok(vec![
            Service::http(server, "198.51.100.2:80")?,
            Service::http(server, "198.51.100.3:80")?,
            Service::tcp_echo(server, "198.51.100.2:7")?,
            Service::udp_echo(server, "198.51.100.2:7")?,
            Service::udp_echo(server, "198.51.100.2:77")?,
            Service::udp_echo(server, "198.51.100.3:7")?,
            Service::dns(server, "198.51.100.2:53")?,
            Service::udp_echo(router, "203.0.113.2:7")?,
            Service::http(router, "203.0.113.2:80")?,
            Service::http(first, "10.0.0.2:80")?,
            Service::http(second, "10.0.0.3:80")?,
            Service::udp_echo(first, "10.0.0.2:7")?,
        ])
    }

    /// The same world with a gateway that has this setup; the gateway is left alone when it has it already.
    fn with(mut self, setup: Setup) -> Result<Self> {
        if self.setup != setup || !self.gateway.is_running() {
            self.restart(setup)?;
        }
        Ok(self)
    }

    /// Stops the gateway and starts it with `setup`.
    pub(crate) fn restart(&mut self, setup: Setup) -> Result<()> {
        if self.gateway.is_running() {
            self.gateway.stop()?;
        }
        self.gateway = self.kind.start(self.topology.gateway(), &setup)?;
        self.setup = setup;
        Ok(())
    }

    /// Starts the gateway again, after it has died.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.gateway = self.kind.start(self.topology.gateway(), &self.setup)?;
        Ok(())
    }

    pub(crate) fn client(&self, number: usize) -> &Namespace {
        self.topology.client(number)
    }

    pub(crate) fn server(&self) -> &Namespace {
        self.topology.server()
    }

    pub(crate) fn router(&self) -> &Namespace {
        self.topology.router()
    }

    /// Begins to watch the outside wire for internal addresses, and to capture what the gateway sends.
    pub(crate) fn watch_outside(&mut self) -> Result<()> {
        // The kernel's NAT writes into fragments that a listener still shares: there the listener proves nothing.
        if self.kind != Gateway::Kernel {
            self.outside = Some(Sniffer::start_for(self.topology.router(), Seen::is_internal)?);
            self.captures = self.start_captures()?;
        }
        Ok(())
    }

    fn start_captures(&self) -> Result<Vec<Capture>> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let directory = captures()?;
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let start = |side, host| Capture::start(host, "gateway", &directory.join(format!("sent-{number:03}-{side}.pcap")));
        Ok(vec![start("inside", self.topology.switch())?, start("outside", self.topology.router())?])
    }

    /// Stops watching and capturing: a load test wants the processor for itself.
    pub(crate) fn stop_watching_outside(&mut self) {
        self.outside = None;
        self.captures.clear();
    }

    /// Fails when an internal address was seen on the outside wire since watching began.
    pub(crate) fn nothing_internal_was_seen_outside(&self) -> Result<()> {
        let seen = self.outside.as_ref().map(|sniffer| sniffer.seen(|_| true)).unwrap_or_default();
        ensure!(seen.is_empty(), "{} packets with internal addresses left the gateway; the first: {:?}", seen.len(), seen[0]);
        Ok(())
    }

    /// Runs a `portcullis` subcommand that has to succeed, and reads the JSON that it prints.
    pub(crate) fn json(&self, words: &str) -> Result<serde_json::Value> {
        let output = self.gateway.ask(words)?.success()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output}"))
    }

    /// Runs a `portcullis` subcommand that has to succeed, and reads the JSON values that it prints, one a line.
    pub(crate) fn json_lines(&self, words: &str) -> Result<Vec<serde_json::Value>> {
        let output = self.gateway.ask(words)?.success()?;
        let values = output.stdout.lines().map(serde_json::from_str);
        values.collect::<Result<_, _>>().with_context(|| format!("no JSON: {output}"))
    }

    /// The metrics page.
    pub(crate) fn metrics(&self) -> Result<String> {
        self.topology.gateway().run("curl -sS --fail --max-time 5 http://127.0.0.1:9464/metrics")
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub(crate) fn metric(&self, name: &str, label: &str) -> Result<f64> {
        let page = self.metrics()?;
        let samples = page.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
        });
        let values: Vec<f64> = samples.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        ensure!(!values.is_empty(), "no metric {name} with {label:?} in\n{page}");
        Ok(values.iter().sum())
    }

    /// Waits until a page of the server can be had from a client again. Returns how long it took.
    pub(crate) fn wait_for_traffic(&self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let mut last = None;
        let back = wait_until(limit, || {
            last = self.client(0).program("curl", ["-sS", "--max-time", "0.5", "http://198.51.100.2/"]).run().ok();
            last.as_ref().is_some_and(Output::ok)
        });
        ensure!(back, "no traffic for {limit:?}: {}", last.map(|output| output.to_string()).unwrap_or_default());
        Ok(start.elapsed())
    }

    /// Turns the offloads of all hosts back on, as they are by default.
    pub(crate) fn usual_offloads(&self) -> Result<()> {
        self.topology.set_offloads(Offloads::On)
    }
}

/// A UDP socket in a namespace.
pub(crate) fn udp(host: &Namespace, address: &str) -> Result<UdpSocket> {
    let socket = host.enter(|| UdpSocket::bind(address))?.with_context(|| format!("binding {address} in {}", host.name()))?;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// Sends `text` and gives back the answer.
pub(crate) fn ask(socket: &UdpSocket, to: &str, text: &str) -> Result<String> {
    socket.send_to(text.as_bytes(), to).with_context(|| format!("sending to {to}"))?;
    let (answer, _) = receive(socket).with_context(|| format!("asking {to} over UDP"))?;
    ensure!(answer.ends_with(text), "{to} answered {answer:?} to {text:?}");
    Ok(answer)
}

/// The next datagram, and who sent it.
pub(crate) fn receive(socket: &UdpSocket) -> Result<(String, SocketAddr)> {
    let mut datagram = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut datagram).context("no datagram came")?;
    Ok((String::from_utf8_lossy(&datagram[..length]).into_owned(), from))
}

/// Whether a datagram comes within a time that is ample on one machine.
pub(crate) fn hears(socket: &UdpSocket) -> Result<bool> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let heard = receive(socket).is_ok();
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(heard)
}

/// Fails unless `text` contains `wanted`.
pub(crate) fn contains(text: &str, wanted: &str) -> Result<()> {
    if !text.contains(wanted) {
        bail!("{wanted:?} is not in:\n{text}");
    }
    Ok(())
}
