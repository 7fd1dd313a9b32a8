//! The gateways that are compared: each started in the same place, on the same core, and asked what it cost.
//!
//! Knows how each is configured, started, found ready, read and stopped; nothing of traffic. Invariants: a gateway that was started is
//! stopped when its handle goes; everything that works for it runs on the gateway's core and is counted. Tests: `tests/smoke.rs`.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_testkit::topology::namespace::directory_of;
use portcullis_testkit::topology::program::{Program, wait_until};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cpu::{self, Core};
use crate::napi::{self, Leave};
use crate::world::{INSIDE, INSIDE_ADDRESS, OUTSIDE, OUTSIDE_ADDRESS, POOL, World, visit};

/// How long a gateway may take to be ready: its queues may still belong to a predecessor for 2 s.
const READY: Duration = Duration::from_secs(20);
/// How long it may take to end when asked.
const END: Duration = Duration::from_secs(10);
/// After how long the gateway has published its counters, with room: it does so every 100 ms.
const PUBLISHED: Duration = Duration::from_millis(120);

/// Which gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `ip_forward` and nftables source NAT, run by the devices' NAPI threads.
    Kernel,
    /// The bare forwarder beside the devices' NAPI threads.
    Bare,
    /// The bare forwarder that drives the devices by busy polling.
    BareBusy,
    /// Portcullis.
    Portcullis,
}

impl Kind {
    /// All of them, in the order in which they take turns.
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Bare, Self::BareBusy, Self::Portcullis];

    /// The name in tables and plots.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Bare => "bare",
            Self::BareBusy => "bare, busy",
            Self::Portcullis => "portcullis",
        }
    }

    /// Whether it translates: then packets arrive from the pool.
    pub const fn translates(self) -> bool {
        matches!(self, Self::Kernel | Self::Portcullis)
    }
}

/// Who runs the receive queues of the devices under Portcullis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Napi {
    /// Kernel threads on the gateway's core.
    Thread,
    /// Its worker, by busy polling.
    Worker,
}

impl Napi {
    /// The word on the command line and in reports.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Worker => "worker",
        }
    }
}

/// What all gateways are told.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The gateway's core.
    pub core: usize,
    /// One for what of Portcullis is no worker; without, that is on the gateway's core, too.
    pub beside: Option<usize>,
    /// The program.
    pub portcullis: PathBuf,
    /// Sessions, and mappings, that Portcullis has room for.
    pub capacity: u32,
    /// Its `worker.busy_poll`.
    pub busy_poll: String,
    /// Who runs its queues.
    pub napi: Napi,
    /// After how long without packets a UDP flow is forgotten. **Units:** seconds.
    pub udp_timeout: u32,
}

/// A gateway that forwards.
pub struct Gateway<'world> {
    kind: Kind,
    world: &'world World,
    core: usize,
    directory: PathBuf,
    process: Option<Process>,
    binary: PathBuf,
    worker: Option<(u32, u32)>,
    others: Vec<(u32, u32)>,
}

/// A child with pipes to and from it.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// The gateway's times at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    at: Instant,
    worker: Duration,
    others: Duration,
    core: Core,
}

/// What a span of time cost on the gateway's core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// How long the span was.
    pub seconds: f64,
    /// Of it the gateway worked, in all contexts; a worker's empty rounds are not work. **Units:** seconds.
    pub worked: f64,
    /// The gateway's tasks ran, empty rounds included. **Units:** seconds.
    pub ran: f64,
    /// The core was not idle, whoever it was. **Units:** seconds, in steps of 10 ms.
    pub core_busy: f64,
    /// The hypervisor took the core away. **Units:** seconds, in steps of 10 ms.
    pub stolen: f64,
}

impl Cost {
    /// The part of the span in which the core worked for somebody else, as far as the kernel's ticks tell.
    pub fn disturbed(&self) -> f64 {
        if self.seconds > 0.0 { ((self.core_busy - self.ran).max(0.0) + self.stolen) / self.seconds } else { 0.0 }
    }
}

impl<'world> Gateway<'world> {
    /// Starts a gateway and waits until it is ready. Called in the near namespace.
    ///
    /// **Errors:** it ended or was not ready in time, with what it said.
    pub fn start(kind: Kind, world: &'world World, setup: &Setup) -> Result<Self> {
        let directory = directory_of(world.gateway.name());
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let mut gateway = Self {
            kind,
            world,
            core: setup.core,
            directory,
            process: None,
            binary: setup.portcullis.clone(),
            worker: None,
            others: Vec::new(),
        };
        gateway.start_here(setup).with_context(|| format!("starting gateway `{}`", kind.label()))?;
        gateway.others.extend(cpu::softirq_thread(setup.core).map(|thread| (thread, thread)));
        Ok(gateway)
    }

    fn start_here(&mut self, setup: &Setup) -> Result<()> {
        let drives = self.kind == Kind::BareBusy || self.kind == Kind::Portcullis && setup.napi == Napi::Worker;
        for device in [INSIDE, OUTSIDE] {
            // Portcullis sets what it needs itself.
            let how = if self.kind == Kind::BareBusy { Leave::ToPoller } else { Leave::Never };
            napi::leave(&self.world.gateway, device, how)?;
        }
        match self.kind {
            Kind::Kernel => self.start_kernel(setup)?,
            Kind::Bare | Kind::BareBusy => self.start_bare(drives)?,
            Kind::Portcullis => self.start_portcullis(setup)?,
        }
        if !drives {
            // After the program: a device's queues may be made anew when XDP comes to it.
            let threads = napi::thread(&self.world.gateway, &[INSIDE, OUTSIDE], self.core)?;
            self.others.extend(threads.into_iter().map(|thread| (thread, thread)));
        }
        Ok(())
    }

    fn start_kernel(&self, setup: &Setup) -> Result<()> {
        let host = &self.world.gateway;
        host.nft(&format!(
            "table ip bench {{
                 chain out {{
                     type nat hook postrouting priority srcnat; policy accept;
                     oifname \"{OUTSIDE}\" snat to {POOL}
                 }}
             }}"
        ))?;
        for key in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
            host.sysctl(&format!("net/netfilter/{key}"), &setup.udp_timeout.to_string())?;
        }
        Ok(())
    }

    fn start_bare(&mut self, drives: bool) -> Result<()> {
        let me = std::env::current_exe().context("finding this program")?;
        let macs = self.world.macs;
        let (inside, outside) = (INSIDE_ADDRESS.to_string(), OUTSIDE_ADDRESS.to_string());
        let (near, far, me) = (macs.near.to_string(), macs.far.to_string(), me.display().to_string());
        let drive = if drives { "poll" } else { "kernel" };
        let words = [
            &me,
            "forward",
            "--inside",
            INSIDE,
            "--inside-address",
            &inside,
            "--inside-peer",
            &near,
            "--outside",
            OUTSIDE,
            "--outside-address",
            &outside,
            "--outside-peer",
            &far,
            "--drive",
            drive,
        ];
        let mut process = self.spawn(&words, None)?;
        let ready = wait_for_line(&mut process, || {
            if drives {
                napi::prime(INSIDE_ADDRESS)?;
                visit(&self.world.far, || napi::prime(OUTSIDE_ADDRESS))?;
            }
            Ok(())
        });
        self.process = Some(process);
        ready.with_context(|| self.log())?;
        self.find_tasks(|process, task, _| process == task)
    }

    fn start_portcullis(&mut self, setup: &Setup) -> Result<()> {
        ensure!(
            setup.portcullis.exists(),
            "{} is not there: `cargo build --release -p portcullis`, or name another with --portcullis",
            setup.portcullis.display()
        );
        let file = self.directory.join("portcullis.toml");
        fs::write(&file, configuration(setup, &self.socket())).with_context(|| format!("writing {}", file.display()))?;
        let (binary, file) = (setup.portcullis.display().to_string(), file.display().to_string());
        let mut words = vec![binary.as_str(), "run", "--config", &file];
        if setup.napi == Napi::Thread {
            words.push("--no-nic-setup");
        }
        self.process = Some(self.spawn(&words, setup.beside)?);
        let ready = wait_until(READY, || !self.is_running() || self.socket().exists() && self.ask("version").is_ok());
        ensure!(ready && self.is_running(), "it {}\n{}", if ready { "ended" } else { "was not ready in time" }, self.log());
        self.find_tasks(|_, _, name| name.starts_with("worker-"))
    }

    /// Starts a program in the gateway's namespace, on the gateway's core and maybe another. It complains to the log.
    fn spawn(&self, words: &[&str], beside: Option<usize>) -> Result<Process> {
        let cores = [Some(self.core), beside].into_iter().flatten().map(|core| core.to_string()).collect::<Vec<_>>().join(",");
        let before = ["netns", "exec", self.world.gateway.name(), "taskset", "-c", &cores];
        let log = fs::File::create(self.log_path()).context("making the gateway's log")?;
        let mut command = Command::new("ip");
        command.args(before).args(words).env("NO_COLOR", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().with_context(|| format!("starting `{}`", words.join(" ")))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let pipes = input.zip(output).context("no pipes to the gateway")?;
        Ok(Process { child, input: pipes.0, output: BufReader::new(pipes.1) })
    }

    fn find_tasks(&mut self, is_worker: impl Fn(u32, u32, &str) -> bool) -> Result<()> {
        let process = self.process_number().context("the gateway is no process")?;
        for (task, name) in cpu::tasks(process) {
            if self.worker.is_none() && is_worker(process, task, &name) {
                self.worker = Some((process, task));
            } else {
                self.others.push((process, task));
            }
        }
        ensure!(self.worker.is_some(), "the gateway has no thread that forwards");
        Ok(())
    }

    /// Which one it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The process, where it is one.
    pub fn process_number(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// As [`Gateway::busy_lately`], once Portcullis has published what it did last.
    pub fn busy(&mut self) -> Result<Option<Duration>> {
        if self.kind == Kind::Portcullis {
            std::thread::sleep(PUBLISHED);
        }
        self.busy_lately()
    }

    /// The time that its worker has spent on rounds with packets, where it tells; Portcullis ten times a second. **Cost:** runs a program; a
    /// few times in a trial at most.
    pub fn busy_lately(&mut self) -> Result<Option<Duration>> {
        match self.kind {
            Kind::Kernel => Ok(None),
            Kind::Bare | Kind::BareBusy => {
                let process = self.process.as_mut().context("the forwarder has not been started")?;
                process.input.write_all(b"\n").context("asking the forwarder")?;
                let mut line = String::new();
                process.output.read_line(&mut line).context("the forwarder's answer")?;
                let busy = line.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
                Ok(Some(Duration::from_nanos(busy.with_context(|| format!("the forwarder answered {line:?}"))?)))
            }
            Kind::Portcullis => {
                let stats = self.stats()?;
                let busy = stats["workers"][0]["busy_seconds"].as_f64().context("no busy_seconds in the gateway's stats")?;
                Ok(Some(Duration::from_secs_f64(busy)))
            }
        }
    }

    /// Its times now. **Cost:** reads a few files of /proc.
    pub fn times(&self) -> Result<Times> {
        let sum = |tasks: &[(u32, u32)]| tasks.iter().map(|&(process, task)| cpu::task(process, task)).sum();
        let worker = self.worker.map_or(Duration::ZERO, |(process, task)| cpu::task(process, task));
        Ok(Times { at: Instant::now(), worker, others: sum(&self.others), core: cpu::core(self.core)? })
    }

    /// Everything that Portcullis counts.
    pub fn stats(&self) -> Result<Value> {
        serde_json::from_str(&self.ask("stats --json")?).context("the gateway's stats")
    }

    /// What `portcullis` answers to these words.
    fn ask(&self, words: &str) -> Result<String> {
        let (binary, socket) = (self.binary.display().to_string(), self.socket().display().to_string());
        let words = ["--socket", &socket].into_iter().chain(words.split_whitespace());
        Ok(Program::new(&binary, words).environment("NO_COLOR", "1").run()?.success()?.stdout)
    }

    fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.child.try_wait(), Ok(None)))
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("gateway.log")
    }

    /// What it has complained about.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Ends it and leaves the place as it was.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            // The forwarder has nothing to clean up: its program and sockets go with it.
            let signal = if self.kind == Kind::Portcullis { Signal::SIGTERM } else { Signal::SIGKILL };
            let _ = kill(Pid::from_raw(process.child.id().cast_signed()), signal);
            if !wait_until(END, || !matches!(process.child.try_wait(), Ok(None))) {
                let _ = process.child.kill();
                let _ = process.child.wait();
            }
            let _ = fs::remove_file(self.socket());
            if self.kind == Kind::Portcullis {
                self.remove_guard()?;
            }
        }
        if self.kind == Kind::Kernel {
            let host = &self.world.gateway;
            host.program("nft", ["delete", "table", "ip", "bench"]).run()?;
            host.program("conntrack", ["-F"]).run()?;
        }
        napi::unthread(&self.world.gateway, &[INSIDE, OUTSIDE])
    }

    /// Portcullis leaves a program at egress that keeps the kernel from forwarding; the next gateway may be the kernel.
    fn remove_guard(&self) -> Result<()> {
        for device in [INSIDE, OUTSIDE] {
            self.world.gateway.program("tc", ["qdisc", "delete", "dev", device, "clsact"]).run()?;
        }
        Ok(())
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if self.process.is_some() || self.kind == Kind::Kernel {
            let _ = self.end();
        }
    }
}

impl Times {
    /// What the time since `before` cost; `busy` is how much more the worker says that it was busy, where it says.
    pub fn since(&self, before: &Self, busy: Option<Duration>) -> Cost {
        let (worker, others) = (self.worker.saturating_sub(before.worker), self.others.saturating_sub(before.others));
        let worked = busy.map_or(worker, |busy| busy.min(worker));
        Cost {
            seconds: (self.at - before.at).as_secs_f64(),
            worked: (worked + others).as_secs_f64(),
            ran: (worker + others).as_secs_f64(),
            core_busy: self.core.busy.saturating_sub(before.core.busy).as_secs_f64(),
            stolen: self.core.stolen.saturating_sub(before.core.stolen).as_secs_f64(),
        }
    }
}

/// Waits for the forwarder's first line; does `meanwhile` again and again until it comes.
fn wait_for_line(process: &mut Process, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let output = &mut process.output;
        let line = scope.spawn(move || {
            let mut line = String::new();
            output.read_line(&mut line).map(|_| line)
        });
        while !line.is_finished() {
            if start.elapsed() > READY {
                let _ = process.child.kill();
                bail!("it was not ready in time");
            }
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        let line = line.join().map_err(|_| anyhow::anyhow!("reading from it panicked"))??;
        ensure!(line.trim() == "ready", "it ended");
        Ok(())
    })
}

/// Portcullis's file.
fn configuration(setup: &Setup, socket: &Path) -> String {
    let mut text = String::new();
    let Setup { core, capacity, busy_poll, udp_timeout, .. } = setup;
    let _ = write!(
        text,
        "[[interface]]\nname = \"{INSIDE}\"\nside = \"inside\"\nprefixes = [\"10.0.0.0/8\"]\n\n\
         [[interface]]\nname = \"{OUTSIDE}\"\nside = \"outside\"\n\n\
         [[pool]]\nname = \"default\"\naddresses = [\"{POOL}\"]\n\n\
         [timeouts]\nudp = \"{udp_timeout}s\"\n\n\
         [limits]\nmappings = {capacity}\nsessions = {capacity}\n\n\
         [worker]\ncores = [{core}]\nbusy_poll = \"{busy_poll}\"\n\n\
         [metrics]\nlisten = \"\"\n\n\
         [log]\nlevel = \"warn\"\n\n\
         [control]\nsocket = {:?}\n",
        socket.display().to_string()
    );
    text
}
