//! The NAT under test: put into a setup, started, stopped.
//!
//! Knows the drivers and what each may answer. Invariant: what was started is stopped when its handle goes.

mod command;
mod kernel;
mod portcullis;

use std::path::PathBuf;

use anyhow::Result;
use portcullis_lab::namespace::Namespace;

use crate::UdpTracking;
use crate::setup::Setup;

/// The NAT's interface towards the hosts, in the namespace that natcheck makes.
pub(crate) const INSIDE: &str = "inside0";
/// The NAT's interface towards the router.
pub(crate) const OUTSIDE: &str = "outside0";

/// Which NAT, and how it is handled.
#[derive(Clone, Debug)]
pub(crate) enum Driver {
    /// `portcullis run`, with so many workers.
    Portcullis { binary: PathBuf, workers: u32, udp_tracking: UdpTracking },
    /// nftables and conntrack.
    Kernel,
    /// Commands that set any other up, and take it down.
    Command { name: String, setup: String, teardown: Option<String> },
}

/// What a driver answers to a setup.
pub(crate) enum Started {
    /// The NAT runs.
    Running(Running),
    /// It cannot be set up so, for this reason.
    Unsupported(String),
}

/// A NAT that runs, and how it is stopped.
#[derive(Debug)]
pub(crate) enum Running {
    /// A program.
    Portcullis(portcullis::Gateway),
    /// Rules of the namespace's kernel, which go with the namespace.
    Kernel,
    /// A command takes it down when this goes.
    Command { _teardown: command::Teardown },
}

impl Driver {
    /// The name in results.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Portcullis { .. } => "portcullis",
            Self::Kernel => "kernel",
            Self::Command { .. } => "command",
        }
    }

    /// Which version of the NAT this is, as far as it is known.
    pub(crate) fn version(&self) -> String {
        match self {
            Self::Portcullis { udp_tracking, .. } => {
                let bare = if *udp_tracking == UdpTracking::Mappings { ", bare mappings" } else { "" };
                format!("Portcullis {}{bare}", env!("CARGO_PKG_VERSION"))
            }
            Self::Kernel => kernel::version(),
            Self::Command { name, .. } => name.clone(),
        }
    }

    /// Starts the NAT; `namespace` is where it runs, or none where its wires are given.
    ///
    /// **Errors:** it does not start, with what it said.
    pub(crate) fn start(&self, namespace: Option<&Namespace>, setup: &Setup) -> Result<Started> {
        match (self, namespace) {
            (Self::Portcullis { binary, workers, udp_tracking }, Some(namespace)) => {
                portcullis::start(binary, *workers, *udp_tracking, namespace, setup)
            }
            (Self::Kernel, Some(namespace)) => kernel::start(namespace, setup),
            (Self::Command { setup: line, teardown, .. }, namespace) => command::start(line, teardown.as_deref(), namespace, setup),
            (Self::Portcullis { .. } | Self::Kernel, None) => {
                anyhow::bail!(
                    "given interfaces need --nat command: natcheck starts Portcullis and the kernel's NAT in namespaces of its own"
                )
            }
        }
    }
}

impl Running {
    /// What the NAT has logged, for a tester that does not understand what it sees.
    pub(crate) fn log(&self) -> String {
        match self {
            Self::Portcullis(gateway) => gateway.log(),
            Self::Kernel | Self::Command { .. } => String::new(),
        }
    }
}
