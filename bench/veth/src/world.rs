//! Three namespaces in a row: the tester's near end, the gateway, the tester's far end.
//!
//! Knows addresses, wires and who runs their queues; no gateway and no packets. Needs root. Invariant: whatever was built is removed on
//! drop, on panic, at exit and on a signal (`testkit`'s `cleanup`); what a killed run left is removed by the next.
//!
//! ```text
//!  near0 192.0.2.2 ──── inside0 192.0.2.1 [gateway] 203.0.113.1 outside0 ──── far0 203.0.113.2
//!  clients 10.0.0.0/8                      pool 203.0.113.32/27
//! ```

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use portcullis_bench::address::Mac;
use portcullis_bench::generate::interface_mac;
use portcullis_testkit::topology::cleanup;
use portcullis_testkit::topology::namespace::{Namespace, path_of};
use portcullis_testkit::topology::program::Program;

use crate::napi::{self, Leave, Poller};

/// What namespaces are called, before the process number.
const PREFIX: &str = "pcveth";
/// The gateway's devices.
pub const INSIDE: &str = "inside0";
/// The gateway's devices.
pub const OUTSIDE: &str = "outside0";
/// The tester's devices.
pub const NEAR: &str = "near0";
/// The tester's devices.
pub const FAR: &str = "far0";
/// The tester's addresses.
pub const NEAR_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The tester's addresses; also the remote that all flows lead to.
pub const FAR_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The gateway's addresses.
pub const INSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The gateway's addresses.
pub const OUTSIDE_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The external addresses: 32, so that a million mappings find a port each.
pub const POOL: &str = "203.0.113.32-203.0.113.63";

/// The namespaces and their wires.
#[derive(Debug)]
pub struct World {
    /// Where packets are sent from, and answers come back to.
    pub near: Namespace,
    /// Where the gateway runs.
    pub gateway: Namespace,
    /// Where packets arrive.
    pub far: Namespace,
    /// The Ethernet addresses of the gateway's two devices and of the two ends that they talk to.
    pub macs: Macs,
}

/// What runs the tester's receive queues.
#[derive(Debug)]
pub struct Pollers {
    /// Where answers come back.
    pub near: Poller,
    /// Where packets arrive.
    pub far: Poller,
}

/// The Ethernet addresses.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Macs {
    pub near: Mac,
    pub inside: Mac,
    pub outside: Mac,
    pub far: Mac,
}

impl World {
    /// Builds it. Every device has NAPI (GRO is on), as it would under XDP, whichever gateway runs.
    ///
    /// **Errors:** not root, or a refused `ip` command; what was built until then is removed.
    pub fn build() -> Result<Self> {
        remove_orphans();
        cleanup::arm();
        let create = |role: &str| -> Result<Namespace> {
            let namespace = Namespace::create(&format!("{PREFIX}{}-{role}", std::process::id()))?;
            // No router solicitations: what is on these wires is ours alone.
            namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
            namespace.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
            namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
            Ok(namespace)
        };
        let (near, gateway, far) = (create("near")?, create("gateway")?, create("far")?);
        lay_wires(&near, &gateway, &far).context("laying the wires")?;
        for (host, device) in [(&near, NEAR), (&gateway, INSIDE), (&gateway, OUTSIDE), (&far, FAR)] {
            // A veth hands a frame to its peer's NAPI only where it has no TSO itself.
            host.ethtool_features(device, &["gro", "on", "tso", "off", "gso", "off"])?;
            host.wait_for_carrier()?;
        }
        let mac = |host: &Namespace, device: &str| host.enter(|| interface_mac(device))?;
        let macs = Macs {
            near: mac(&near, NEAR)?,
            inside: mac(&gateway, INSIDE)?,
            outside: mac(&gateway, OUTSIDE)?,
            far: mac(&far, FAR)?,
        };
        gateway.ip_batch(&format!(
            "neighbour replace {NEAR_ADDRESS} lladdr {} dev {INSIDE} nud permanent
             neighbour replace {FAR_ADDRESS} lladdr {} dev {OUTSIDE} nud permanent
             route add 10.0.0.0/8 via {NEAR_ADDRESS}
             route add default via {FAR_ADDRESS}",
            macs.near, macs.far
        ))?;
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self { near, gateway, far, macs })
    }

    /// Pollers of the tester's queues. Once polled, a timer goes on with it, on the core of whoever polled.
    pub fn pollers(&self) -> Result<Pollers> {
        let connect = |host: &Namespace, device: &str, address: Ipv4Addr| -> Result<Poller> {
            let waiting = host.spawn(move || Poller::connect(address));
            self.gateway.enter(|| napi::prime_until(&[address], || waiting.is_finished()))??;
            let poller = waiting.join().map_err(|_| anyhow::anyhow!("the thread that connects {device} panicked"))??;
            napi::leave(host, device, Leave::ToTimer)?;
            poller
        };
        let (near, far) = (connect(&self.near, NEAR, NEAR_ADDRESS)?, connect(&self.far, FAR, FAR_ADDRESS)?);
        Ok(Pollers { near, far })
    }
}

/// Does `work` in another namespace, on this thread.
pub fn visit<T>(host: &Namespace, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let back = File::open("/proc/thread-self/ns/net").context("opening this thread's namespace")?;
    let there = File::open(path_of(host.name())).with_context(|| format!("opening namespace {}", host.name()))?;
    setns(there, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering namespace {}", host.name()))?;
    let result = work();
    setns(back, CloneFlags::CLONE_NEWNET).context("going back to this thread's namespace")?;
    result
}

fn lay_wires(near: &Namespace, gateway: &Namespace, far: &Namespace) -> Result<()> {
    let wire = |a: &Namespace, a_name: &str, b: &Namespace, b_name: &str| {
        format!("link add {a_name} netns {} type veth peer name {b_name} netns {}\n", a.name(), b.name())
    };
    let script = wire(near, NEAR, gateway, INSIDE) + &wire(gateway, OUTSIDE, far, FAR);
    Program::new("ip", ["-batch", "-"]).input(script).run()?.success()?;
    let up = |host: &Namespace, device: &str, address: Ipv4Addr| {
        host.ip_batch(&format!("address add {address}/24 dev {device}\nlink set {device} up"))
    };
    up(near, NEAR, NEAR_ADDRESS)?;
    up(far, FAR, FAR_ADDRESS)?;
    up(gateway, INSIDE, INSIDE_ADDRESS)?;
    up(gateway, OUTSIDE, OUTSIDE_ADDRESS)
}

/// Removes the namespaces of runs whose process is no more.
fn remove_orphans() {
    for (name, process) in cleanup::named(PREFIX) {
        if !Path::new(&format!("/proc/{process}")).exists() {
            cleanup::remove(&name);
        }
    }
}
