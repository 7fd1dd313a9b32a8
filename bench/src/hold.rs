//! Keeps the generator's program in the kernel's XDP dispatcher, so that starting a batch costs microseconds.
//!
//! `BPF_PROG_RUN` puts its program into the dispatcher and takes it out again, and each change waits for an RCU grace period: 10 ms
//! and more. A program that is attached somewhere is in there already. So it is attached to the loopback interface of a network
//! namespace made for this purpose, which is down and where no packet ever comes. Called when a run begins.
//! Source: Linux `net/bpf/test_run.c`, `kernel/bpf/dispatcher.c`, `net/core/dev.c` (`dev_xdp_install`).

use std::fs::File;

use anyhow::{Context, Result};
use libbpf_rs::{Link, ProgramMut};
use nix::sched::{CloneFlags, setns, unshare};

/// The loopback interface is the first of every namespace.
const LOOPBACK: i32 = 1;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A program in the dispatcher, until this is dropped.
pub(crate) struct Hold {
    /// First, so that it is detached while its interface exists.
    _attached: Link,
    _namespace: File,
}

impl Hold {
    /// Holds `program`; the calling thread is in its own network namespace again afterwards.
    ///
    /// **Errors:** without `CAP_SYS_ADMIN` (to make a namespace), `CAP_NET_ADMIN` and `CAP_BPF`.
    pub(crate) fn new(program: &ProgramMut<'_>) -> Result<Self> {
        let own = File::open(OWN_NAMESPACE).context("opening the network namespace")?;
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace (needs root or CAP_SYS_ADMIN)")?;
        let held = Self::here(program);
        setns(own, CloneFlags::CLONE_NEWNET).context("going back to the network namespace")?;
        held
    }

    fn here(program: &ProgramMut<'_>) -> Result<Self> {
        let namespace = File::open(OWN_NAMESPACE).context("opening the namespace that was made")?;
        let attached = program.attach_xdp(LOOPBACK).context("holding the generator's program")?;
        Ok(Self { _attached: attached, _namespace: namespace })
    }
}
