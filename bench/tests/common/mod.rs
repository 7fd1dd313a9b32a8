//! A veth pair between two network namespaces.
//!
//! Knows `ip`. Needs root. Called by the tests of both ends and of pktgen's counter. Invariant: what was made is removed on drop.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, thread};

use nix::sched::{CloneFlags, setns};
use portcullis_bench::address::Mac;
use portcullis_bench::raw::Sender;

/// The interface in the first namespace.
pub(crate) const NEAR: &str = "near";
/// The interface in the second one.
pub(crate) const FAR: &str = "far";
/// Its link-layer address.
pub(crate) const FAR_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// Two namespaces with a veth between them: `near` in the first, `far` in the second. Removed when dropped.
pub(crate) struct Wire {
    namespaces: [String; 2],
}

impl Wire {
    /// The wire, or `None` and a loud line without root.
    pub(crate) fn new(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED (needs root): {test}");
            return None;
        }
        let name = format!("pcb-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let wire = Self { namespaces: [format!("{name}-a"), format!("{name}-b")] };
        let [a, b] = &wire.namespaces;
        for namespace in [a, b] {
            ip(&format!("netns add {namespace}"));
            // No router solicitations: what is on this wire is ours alone.
            within(namespace, || fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        }
        ip(&format!("link add {NEAR} netns {a} type veth peer name {FAR} address {FAR_MAC} netns {b}"));
        ip(&format!("-n {b} link set {FAR} up"));
        ip(&format!("-n {a} link set {NEAR} up"));
        Some(wire)
    }

    /// Does `work` in the first namespace.
    pub(crate) fn near<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespaces[0], work)
    }

    /// Does `work` in the second namespace.
    pub(crate) fn far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespaces[1], work)
    }

    /// Sends frames out of `near`.
    pub(crate) fn send(&self, frames: &[Vec<u8>]) {
        self.near(|| {
            let sender = Sender::open(NEAR).unwrap();
            for frame in frames {
                sender.send(frame).unwrap();
            }
        });
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _gone = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Does `work` on a thread that has entered the namespace.
fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let handle = fs::File::open(format!("/run/netns/{namespace}")).unwrap();
        setns(handle, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join().unwrap())
}
