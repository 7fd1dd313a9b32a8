//! The machine prepared for a run, as an operator prepares a gateway: limits raised, the gateway's core left alone by what can be elsewhere.
//!
//! Knows sysctls, the kernel's threads and work queues, and interrupts; no gateway. Called when a run begins. Invariant: what was changed is
//! put back on drop, at exit and on a signal, and one run at a time does so: a second one would take the first's settings for the machine's own.
//! Blind spots: what the kernel insists on doing on each core it does there; a second run in another network namespace is not seen; a run that is
//! killed puts nothing back.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};
use std::{fs, io};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use portcullis_testkit::topology::cleanup;

use crate::cpu;

/// A setting of the whole machine, and what it is raised to, if it is below.
type Raised = (&'static str, u64);
/// Statistics of memory: as `portcullis doctor` asks for, seldom, since the kernel takes each core half a millisecond for them.
const STATISTICS: [Raised; 1] = [("/proc/sys/vm/stat_interval", 120)];
/// Connection tracking: room for what is asked of Portcullis, and a bucket for two entries, as Linux itself sizes it.
const CONNECTIONS: [Raised; 2] =
    [("/proc/sys/net/netfilter/nf_conntrack_buckets", 1 << 20), ("/proc/sys/net/netfilter/nf_conntrack_max", 1 << 22)];
/// The abstract name that a run has while it has the machine. The kernel frees it with the process.
const ALONE: &str = "portcullis-bench-veth";
/// The cores on which work of the kernel's is done that needs no certain one: a bit for each, in hexadecimal, in groups of 32.
const WORK_CORES: &str = "/sys/devices/virtual/workqueue/cpumask";
/// Where interrupts are; each has the cores that may serve it in `smp_affinity`, as above.
const INTERRUPTS: &str = "/proc/irq";
/// A thread of the kernel's own, and one that may not be moved. **Source:** Linux `include/linux/sched.h`.
const PF_KTHREAD: u64 = 0x0020_0000;
const PF_NO_SETAFFINITY: u64 = 0x0400_0000;

/// What has to be put back.
enum Before {
    /// A file and its value.
    File(PathBuf, String),
    /// A thread, and that it may run on the core.
    Thread(Pid, usize),
}

/// What has been changed, in order.
#[derive(Default)]
struct Changes {
    before: Vec<Before>,
    /// The process ends: nothing is changed any more.
    ending: bool,
}

static CHANGES: Mutex<Changes> = Mutex::new(Changes { before: Vec::new(), ending: false });

/// A prepared machine. Put back when dropped.
#[derive(Debug)]
pub struct Prepared {
    _alone: UnixListener,
}

impl Prepared {
    /// Makes the kernel's own work seldom, and moves away from the gateway's `core` what can be moved: a half-millisecond of such work is longer
    /// than a veth's ring lasts. On a box of its own `isolcpus` does so.
    ///
    /// **Errors:** not root, or another run has the machine.
    pub fn prepare(core: usize) -> Result<Self> {
        static ONCE: Once = Once::new();
        let alone = claim(ALONE).with_context(|| {
            format!("another run measures on this machine, it seems (the name @{ALONE}): wait until it has ended")
        })?;
        // Before anything is changed, or else a signal ends the process at once.
        cleanup::arm();
        ONCE.call_once(|| {
            // SAFETY: the function is `extern "C"`, takes nothing, and does not panic.
            unsafe { libc::atexit(put_back_at_exit) };
        });
        let prepared = Self { _alone: alone };
        raise(&STATISTICS)?;
        for path in interrupts().into_iter().chain([WORK_CORES.into()]) {
            let now = fs::read_to_string(&path).unwrap_or_default();
            if let Some(without) = without_core(now.trim(), core) {
                // Some interrupts stay where they are.
                let _ = change(Before::File(path.clone(), now.trim().to_owned()), || fs::write(&path, without));
            }
        }
        for thread in movable_threads() {
            // One that has ended, or will not, stays where it is.
            if let Some(cores) = cores_without(thread, core) {
                let _ = change(Before::Thread(thread, core), || Ok(sched_setaffinity(thread, &cores)?));
            }
        }
        Ok(prepared)
    }

    /// Gives connection tracking room for as many as Portcullis has, for the kernel's own NAT. The kernel looks at each bucket once a minute,
    /// wherever its timer is: so not where that NAT has no part.
    ///
    /// **Errors:** not root, or no connection tracking in this kernel.
    pub fn with_connections(self) -> Result<Self> {
        raise(&CONNECTIONS)?;
        Ok(self)
    }
}

/// Takes an abstract name, which one process has at a time. **Source:** unix(7).
fn claim(name: &str) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

fn raise(settings: &[Raised]) -> Result<()> {
    for &(path, wanted) in settings {
        let now = fs::read_to_string(path).with_context(|| format!("reading {path} (does this kernel have it?)"))?;
        if now.trim().parse::<u64>().is_ok_and(|now| now < wanted) {
            let written = change(Before::File(path.into(), now.trim().to_owned()), || fs::write(path, wanted.to_string()));
            written.with_context(|| format!("setting {path} to {wanted}"))?;
        }
    }
    Ok(())
}

impl Drop for Prepared {
    fn drop(&mut self) {
        put_back(&mut CHANGES.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Makes a change that can be put back, whoever ends the process meanwhile.
fn change(before: Before, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    if changes.ending {
        return Err(io::ErrorKind::Interrupted.into());
    }
    make()?;
    changes.before.push(before);
    Ok(())
}

/// The files that say which cores serve an interrupt.
fn interrupts() -> Vec<PathBuf> {
    let entries = fs::read_dir(INTERRUPTS).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().join("smp_affinity")).filter(|path| path.exists()).collect()
}

/// A mask of cores without one of them, unless it is without it already or has no other.
fn without_core(mask: &str, core: usize) -> Option<String> {
    let groups: Option<Vec<u32>> = mask.split(',').map(|group| u32::from_str_radix(group, 16).ok()).collect();
    let mut groups = groups?;
    let place = groups.len().checked_sub(1 + core / 32)?;
    let bit = 1 << (core % 32);
    if groups[place] & bit == 0 {
        return None;
    }
    groups[place] &= !bit;
    let texts = groups.iter().map(|group| format!("{group:08x}"));
    groups.iter().any(|&group| group != 0).then(|| texts.collect::<Vec<_>>().join(","))
}

/// The kernel's threads that may be moved.
fn movable_threads() -> Vec<Pid> {
    let numbers = cpu::numbers_in("/proc").into_iter().map(u32::cast_signed);
    numbers.filter(|&number| is_movable_thread(number)).map(Pid::from_raw).collect()
}

fn is_movable_thread(number: i32) -> bool {
    fs::read_to_string(format!("/proc/{number}/stat")).is_ok_and(|stat| is_movable(&stat))
}

/// `number (name) state parent group session terminal its_group flags`. **Source:** proc_pid_stat(5).
fn is_movable(stat: &str) -> bool {
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & (PF_KTHREAD | PF_NO_SETAFFINITY) == PF_KTHREAD)
}

/// The cores of a thread without one of them, unless it may not be there in any case, or nowhere else.
fn cores_without(thread: Pid, core: usize) -> Option<CpuSet> {
    let mut cores = sched_getaffinity(thread).ok()?;
    let was_set = cores.is_set(core).ok()?;
    cores.unset(core).ok()?;
    (was_set && (0..CpuSet::count()).any(|other| cores.is_set(other) == Ok(true))).then_some(cores)
}

fn allow(thread: Pid, core: usize) -> nix::Result<()> {
    let mut cores = sched_getaffinity(thread)?;
    cores.set(core)?;
    sched_setaffinity(thread, &cores)
}

extern "C" fn put_back_at_exit() {
    let mut changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    changes.ending = true;
    put_back(&mut changes);
}

fn put_back(changes: &mut Changes) {
    for before in changes.before.drain(..).rev() {
        match before {
            Before::File(path, value) => {
                if let Err(error) = fs::write(&path, &value) {
                    eprintln!("bench-veth: {} stays changed ({error}); it was {value}", path.display());
                }
            }
            // One that has ended meanwhile needs nothing, nor does another that has its number.
            Before::Thread(thread, core) if is_movable_thread(thread.as_raw()) => drop(allow(thread, core)),
            Before::Thread(..) => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_at_a_time_has_the_machine() {
        let name = format!("portcullis-bench-veth-test-{}", std::process::id());
        let first = claim(&name).unwrap();
        assert_eq!(claim(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        claim(&name).unwrap();
    }

    #[test]
    fn a_core_is_taken_out_of_a_mask() {
        assert_eq!(without_core("3", 1).as_deref(), Some("00000001"));
        assert_eq!(without_core("ffffffff,0000000f", 33).as_deref(), Some("fffffffd,0000000f"));
        for nothing_to_do in [("3", 2), ("2", 1), ("3", 64), ("", 0), ("no", 0)] {
            assert_eq!(without_core(nothing_to_do.0, nothing_to_do.1), None, "{nothing_to_do:?}");
        }
    }

    #[test]
    fn threads_of_the_kernel_that_may_be_moved_are_told_by_their_flags() {
        assert!(is_movable("77 (kdamond.0) S 2 0 0 0 -1 2129984 0 0"));
        assert!(is_movable("77 (a) b) S 2 0 0 0 -1 2129984 0 0"));
        assert!(!is_movable("22 (ksoftirqd/1) S 2 0 0 0 -1 69238848 0 0"), "bound to its core");
        assert!(!is_movable("900 (bash) S 1 900 900 0 -1 4194304 0 0"), "a program");
        assert!(!is_movable("") && !is_movable("1 (x) S"));
        assert!(fs::read_to_string("/proc/self/stat").is_ok_and(|own| !is_movable(&own)));
    }
}
