//! The machine: what it is called in a report, and which cores are used.
//!
//! Knows /proc, /sys and git; no packets. Called when a run begins.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use portcullis_testkit::topology::program::Program;
use serde::{Deserialize, Serialize};

use crate::gateway::{Napi, Setup};

/// Which cores, and how Portcullis is set.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// The gateway's core; the last one unless given.
    #[arg(long, value_name = "CORE")]
    pub gateway_core: Option<usize>,
    /// The tester's core; the one before unless given.
    #[arg(long, value_name = "CORE")]
    pub tester_core: Option<usize>,
    /// The program; beside this one unless given.
    #[arg(long, value_name = "PATH")]
    pub portcullis: Option<PathBuf>,
    /// Its `worker.busy_poll`: the core is its own, so it never sleeps.
    #[arg(long, default_value = "always", value_parser = ["always", "adaptive", "never"])]
    pub busy_poll: String,
    /// Who runs the receive queues under Portcullis.
    #[arg(long, value_enum, default_value = "worker")]
    pub napi: Napi,
    /// Mappings, and sessions, that it has room for.
    #[arg(long, default_value_t = 1 << 21, value_parser = clap::value_parser!(u32).range(64..))]
    pub capacity: u32,
}

/// The cores of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The gateway's.
    pub gateway: usize,
    /// The tester's.
    pub tester: usize,
}

impl Cores {
    /// A core that is not the gateway's: one that is nobody's and that this process may run on, or else the tester's.
    pub fn beside(self) -> usize {
        let allowed = sched_getaffinity(Pid::this()).unwrap_or_default();
        let mut others = (0..CpuSet::count()).filter(|&core| core != self.gateway && core != self.tester);
        others.find(|&core| allowed.is_set(core) == Ok(true)).unwrap_or(self.tester)
    }
}

impl Place {
    /// The cores. **Errors:** fewer than two, or twice the same.
    pub fn cores(&self) -> Result<Cores> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        ensure!(cores >= 2, "one core: the gateway and the tester need one each");
        let gateway = self.gateway_core.unwrap_or(cores - 1);
        let tester = self.tester_core.unwrap_or(if gateway == 0 { 1 } else { gateway - 1 });
        ensure!(gateway != tester, "core {gateway} cannot be the gateway's and the tester's: name another with --tester-core");
        for core in [gateway, tester] {
            let there = PathBuf::from(format!("/sys/devices/system/cpu/cpu{core}")).exists();
            ensure!(there, "core {core} is not there (see `nproc`): name others with --gateway-core and --tester-core");
        }
        Ok(Cores { gateway, tester })
    }

    /// What all gateways are told.
    pub fn setup(&self, cores: Cores, udp_timeout: u32) -> Result<Setup> {
        let beside = || -> Result<PathBuf> { Ok(std::env::current_exe()?.with_file_name("portcullis")) };
        let portcullis = self.portcullis.clone().map_or_else(beside, Ok)?;
        ensure!(
            portcullis.exists(),
            "{} is not there: `cargo build --release -p portcullis`, or name another with --portcullis",
            portcullis.display()
        );
        let (busy_poll, napi) = (self.busy_poll.clone(), self.napi);
        Ok(Setup { core: cores.gateway, beside: None, portcullis, capacity: self.capacity, busy_poll, napi, udp_timeout })
    }
}

/// What a report says of the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor.
    pub processor: String,
    /// How many cores.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
}

impl std::fmt::Display for Machine {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{}, {} cores, Linux {}", self.processor, self.cores, self.kernel)
    }
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo");
        let model = model.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
        Self {
            processor: model.trim_start_matches(['\t', ' ', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// The commit of the working directory, with `-changed` when files differ from it; `unknown` outside a repository.
pub fn commit() -> String {
    let git =
        |words: &[&str]| Some(Program::new("git", words.iter().copied()).run().ok()?.success().ok()?.stdout.trim().to_owned());
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    commit + if changed { "-changed" } else { "" }
}

/// Today and the time, UTC: `2026-01-31` and `235959`.
pub fn now() -> Result<(String, String)> {
    let text = Program::new("date", ["-u", "+%Y-%m-%d %H%M%S"]).run()?.success()?.stdout;
    let (date, time) = text.trim().split_once(' ').context("`date` said something else than a date")?;
    Ok((date.to_owned(), time.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(gateway_core: Option<usize>, tester_core: Option<usize>) -> Place {
        let busy_poll = "always".to_owned();
        Place { gateway_core, tester_core, portcullis: None, busy_poll, napi: Napi::Worker, capacity: 64 }
    }

    #[test]
    fn the_tester_and_the_gateway_have_a_core_each() {
        if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
            assert!(place(None, None).cores().is_err());
            return;
        }
        let cores = place(None, None).cores().unwrap();
        assert_ne!(cores.gateway, cores.tester);
        assert_ne!(cores.gateway, cores.beside());
        assert_eq!(place(Some(0), None).cores().unwrap(), Cores { gateway: 0, tester: 1 });
        assert!(place(Some(1), Some(1)).cores().unwrap_err().to_string().contains("--tester-core"));
        assert!(place(Some(9999), None).cores().unwrap_err().to_string().contains("core 9999 is not there"));
    }

    #[test]
    fn the_machine_and_the_day_have_names() {
        assert!(!Machine::this().kernel.is_empty());
        let (date, time) = now().unwrap();
        assert_eq!((date.len(), time.len()), (10, 6));
    }
}
