//! The two wires: in namespaces that are made for a group of rows and removed after it, or two interfaces that are given.
//!
//! Knows `ip` and the addresses of [`crate::plan`]. Invariant: what was made is removed when it goes, on a signal too.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use portcullis_lab::namespace::Namespace;
use portcullis_lab::program::Program;
use portcullis_lab::spray;

use crate::driver::{INSIDE, OUTSIDE};
use crate::plan;
use crate::setup::Setup;
use crate::watch::Watch;
use crate::wire::{End, Side};

/// Where the wires come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wires {
    /// Veth pairs between two namespaces; each of the NAT's devices with so many queues, frames on any of them at random.
    Made { queues: u32 },
    /// Interfaces of this system.
    Given { inside: String, outside: String },
}

/// Both wires, and the namespaces if they were made.
#[derive(Debug)]
pub(crate) struct World {
    /// Where the NAT is to run, or none where the wires are given.
    pub(crate) nat: Option<Namespace>,
    tester: Option<Namespace>,
    names: (String, String),
}

impl World {
    /// Makes the wires, or takes those that are given.
    ///
    /// **Errors:** not root, a refused `ip`; no clang, for more than one queue.
    pub(crate) fn build(wires: &Wires, setup: &Setup) -> Result<Self> {
        static BUILT: AtomicU32 = AtomicU32::new(0);
        match wires {
            Wires::Given { inside, outside } => Ok(Self { nat: None, tester: None, names: (inside.clone(), outside.clone()) }),
            Wires::Made { queues } => {
                let number = BUILT.fetch_add(1, Ordering::Relaxed);
                let name = |role: &str| format!("natcheck{}-{number}-{role}", std::process::id());
                let (nat, tester) = (Namespace::create(&name("nat"))?, Namespace::create(&name("tester"))?);
                lay(&nat, &tester, *queues, setup).context("laying the wires")?;
                Ok(Self { nat: Some(nat), tester: Some(tester), names: (INSIDE.to_owned(), OUTSIDE.to_owned()) })
            }
        }
    }

    /// Opens both raw ends.
    ///
    /// **Errors:** no such interface, no right to open it.
    pub(crate) fn ends(&self, watch: &Arc<Watch>) -> Result<(End, End)> {
        let open = || -> Result<_> {
            let inside = End::open(Side::Inside, &self.names.0, Arc::clone(watch))?;
            let outside = End::open(Side::Outside, &self.names.1, Arc::clone(watch))?;
            Ok((inside, outside))
        };
        match &self.tester {
            Some(tester) => tester.enter(open)?,
            None => open(),
        }
    }
}

/// Both ends of a wire have the same name, each in its namespace.
fn lay(nat: &Namespace, tester: &Namespace, queues: u32, setup: &Setup) -> Result<()> {
    for host in [nat, tester] {
        host.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    }
    let mut script = String::new();
    for name in [INSIDE, OUTSIDE] {
        let many = format!("numrxqueues {queues} numtxqueues {queues}");
        let _ = writeln!(
            script,
            "link add {name} netns {} {many} type veth peer name {name} netns {} {many}",
            nat.name(),
            tester.name()
        );
    }
    Program::new("ip", ["-batch", "-"]).input(script).run()?.success()?;
    for host in [nat, tester] {
        let (inside, outside) = setup.mtu;
        host.ip_batch(&format!(
            "link set {INSIDE} mtu {inside}\nlink set {OUTSIDE} mtu {outside}\nlink set {INSIDE} up\nlink set {OUTSIDE} up"
        ))?;
    }
    nat.ip_batch(&format!(
        "address add {}/{} dev {INSIDE}\naddress add {}/{} dev {OUTSIDE}\nroute add default via {}",
        plan::NAT_INSIDE,
        plan::INSIDE_LENGTH,
        plan::NAT_OUTSIDE,
        plan::OUTSIDE_LENGTH,
        plan::ROUTER
    ))?;
    // What the NAT's own kernel sends is whole when it is seen, as on a wire; and it is no host that answers what is for the tester.
    for name in [INSIDE, OUTSIDE] {
        nat.ethtool_features(name, &["tx", "off", "tso", "off", "gso", "off", "gro", "off"])?;
        tester.sysctl(&format!("net/ipv4/conf/{name}/arp_ignore"), "8")?;
        if queues > 1 {
            spray::spray(tester, name, queues)?;
        }
    }
    nat.sysctl("net/ipv4/ip_forward", "1")?;
    nat.wait_for_carrier()?;
    tester.wait_for_carrier()
}
