//! One network namespace: made, entered by threads and programs, removed.
//!
//! Knows `ip netns` and setns(2); does not know the topology. Invariant: a namespace that exists is on the clean-up list.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::cleanup;
use super::program::{Program, wait_until};

/// A network namespace that this process made.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// Where `ip netns` keeps a namespace's name.
pub fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Where files that belong to a namespace are kept; they go with it.
pub fn directory_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// The processes whose main thread is in the namespace.
pub fn processes_in(name: &str) -> Vec<i32> {
    let Ok(wanted) = fs::metadata(path_of(name)) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|number| {
            fs::metadata(format!("/proc/{number}/ns/net")).is_ok_and(|its| its.ino() == wanted.ino() && its.dev() == wanted.dev())
        })
        .collect()
}

impl Namespace {
    /// Makes a namespace with its loopback up.
    ///
    /// **Errors:** not root, or the name exists.
    pub fn create(name: &str) -> Result<Self> {
        cleanup::remember(name);
        let namespace = Self { name: name.to_owned() };
        Program::new("ip", ["netns", "add", name]).run()?.success()?;
        // Link-local IPv6 addresses are usable at once, without a second of probing for duplicates.
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name that `ip netns exec` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `body` in the namespace and gives back what it returned. Sockets that it opened stay in the namespace.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T> {
        let outcome = thread::scope(|scope| scope.spawn(|| self.join().map(|()| body())).join());
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread in the namespace. Threads that it starts are in the namespace too.
    pub fn spawn<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<Result<T>> {
        let namespace = self.name.clone();
        thread::spawn(move || join(&namespace).map(|()| body()))
    }

    /// A program to run in the namespace, with the namespace's own /sys.
    pub fn program<'a>(&self, program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Program {
        let before = ["netns", "exec", &self.name, program].map(str::to_owned);
        let arguments: Vec<_> = before.into_iter().chain(arguments.into_iter().map(str::to_owned)).collect();
        Program::new("ip", arguments.iter().map(String::as_str))
    }

    /// Runs a program whose command line has no spaces inside its arguments, and wants it to succeed.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        Ok(self.program(program, words).run()?.success()?.stdout)
    }

    /// Runs `ip` with these words.
    pub fn ip(&self, words: &str) -> Result<String> {
        let arguments = ["-n", &self.name].into_iter().chain(words.split_whitespace());
        Ok(Program::new("ip", arguments).run()?.success()?.stdout)
    }

    /// Runs `ip` with each line; the first that is refused ends it.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        Program::new("ip", ["-n", &self.name, "-batch", "-"]).input(lines.to_owned()).run()?.success()?;
        Ok(())
    }

    /// Sets offloads, given as ethtool's words.
    pub fn ethtool_features(&self, device: &str, words: &[&str]) -> Result<()> {
        let arguments = ["-K", device].into_iter().chain(words.iter().copied());
        self.program("ethtool", arguments).run()?.success()?;
        Ok(())
    }

    /// Loads nftables rules.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.program("nft", ["-f", "-"]).input(rules.to_owned()).run()?.success()?;
        Ok(())
    }

    /// Sets a value below /proc/sys, which shows the namespace of the thread that looks.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| fs::write(&path, value))?.with_context(|| format!("setting {path} to {value} in {}", self.name))
    }

    /// Waits until every device but loopback that is up has a carrier.
    pub fn wait_for_carrier(&self) -> Result<()> {
        let mut links = String::new();
        let settled = wait_until(Duration::from_secs(5), || {
            links = self.ip("-brief link show up").unwrap_or_default();
            links.lines().filter(|line| !line.starts_with("lo ")).all(|line| line.contains("LOWER_UP"))
        });
        if !settled {
            bail!("no carrier in {}:\n{links}", self.name);
        }
        Ok(())
    }

    fn join(&self) -> Result<()> {
        join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        cleanup::remove(&self.name);
    }
}

/// Moves the calling thread into the namespace.
fn join(name: &str) -> Result<()> {
    let file = fs::File::open(path_of(name)).with_context(|| format!("opening namespace {name}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering namespace {name}"))
}
