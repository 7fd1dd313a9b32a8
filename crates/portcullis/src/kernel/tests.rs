//! The mirror against a real kernel, in network namespaces of its own. Needs root; says so loudly otherwise.
//!
//! Knows `ip` (iproute2) as the operator's hand. Each test makes its namespaces, enters one with a thread of its own before any
//! socket is opened, and removes them at the end, also when it fails. Waits are for conditions, within a bound.

mod claims;
mod follow;
mod resolve;

use std::fs::File;
use std::future::Future;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;
use tokio::time::timeout;

use super::KernelState;

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(10);

/// A network namespace that is removed when dropped.
struct Namespace(String);

impl Namespace {
    /// Makes a namespace with its loopback up, or says that the test is skipped.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            println!("SKIPPED (needs root): {test}");
            return None;
        }
        let name = format!("pk{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let namespace = Self(name);
        namespace.ip("link set lo up");
        Some(namespace)
    }

    /// Runs an `ip` command in the namespace. Panics when it fails.
    fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", &self.0];
        all.extend(arguments.split_whitespace());
        run("ip", &all);
    }

    /// Runs several `ip` commands in the namespace.
    fn all(&self, commands: &[&str]) {
        for command in commands {
            self.ip(command);
        }
    }

    /// Runs an `ip` command that the kernel may not be able to do. Returns whether it did.
    fn try_ip(&self, arguments: &str) -> bool {
        let output = Command::new("ip").args(["-n", &self.0]).args(arguments.split_whitespace()).output().expect("ip");
        output.status.success()
    }

    /// A veth pair between two namespaces, both ends up: `name` here, `peer_name` there.
    fn connect(&self, name: &str, peer: &Self, peer_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {peer_name} netns {}", peer.0));
        self.ip(&format!("link set {name} up"));
        peer.ip(&format!("link set {peer_name} up"));
    }

    /// Runs a future in a thread that has entered the namespace. Panics when it panics.
    fn run<F: Future<Output = ()>>(&self, make: impl FnOnce() -> F + Send) {
        let path = format!("/run/netns/{}", self.0);
        let work = move || {
            let file = File::open(&path).expect("namespace file");
            setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(make());
        };
        std::thread::scope(|scope| {
            if let Err(panic) = scope.spawn(work).join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Waits for a snapshot of which `holds` is true.
async fn until(
    snapshots: &mut watch::Receiver<Arc<KernelState>>,
    what: &str,
    holds: impl Fn(&KernelState) -> bool,
) -> Arc<KernelState> {
    let found =
        timeout(PATIENCE, snapshots.wait_for(|state| holds(state))).await.map(|state| state.map(|state| Arc::clone(&state)));
    match found {
        Ok(Ok(state)) => state,
        _ => panic!("not within {PATIENCE:?}: {what}; the last snapshot is {:#?}", snapshots.borrow()),
    }
}
