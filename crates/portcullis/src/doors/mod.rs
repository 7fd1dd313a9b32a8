//! The doors: the only crossings of a worker's wall, each one file and one direction.
//!
//! Policy in, counters out, events out, commands, and handoff between workers; a sixth needs an ADR. Knows no tables, sockets or messages: values go in on one side and come out on the other.
//! Invariant: the worker's side never locks, blocks or allocates, and each call of it does a bounded amount of work.
//! Tests: beside each door, run twice: with real threads, and over every interleaving under loom (`model.rs`).

mod bell;
mod board;
pub(crate) mod commands;
pub(crate) mod counters;
pub(crate) mod events;
pub(crate) mod handoff;
pub(crate) mod policy;
mod sync;

#[cfg(test)]
mod model;

use portcullis_nat::policy::{Network, Policy};
use std::sync::Arc;

/// The worker's side of its doors to the control plane.
pub(crate) struct WorkerDoors {
    /// Policy in.
    pub(crate) policy: policy::Reader,
    /// Counters out.
    pub(crate) counters: counters::Writer,
    /// Events out.
    pub(crate) events: events::Sender,
    /// Commands in, their answers out.
    pub(crate) commands: commands::Server,
}

/// The control plane's side of one worker's doors.
pub(crate) struct ControlDoors {
    /// Policy in, the same for all workers. Cloneable: reload and netlink publish independently.
    pub(crate) policy: policy::Publisher,
    /// Counters out; shared by metrics and stats.
    pub(crate) counters: Arc<counters::Reader>,
    /// Events out.
    pub(crate) events: events::Receiver,
    /// Commands in, their answers out. Cloneable: one for each who asks.
    pub(crate) commands: commands::Asker,
}

/// The doors between the control plane and one worker for each of the shapes, which all find `policy` and `network` behind "policy in" as
/// generation 1. The door between the workers is [`handoff::open`]'s. **Errors:** no descriptor is left.
pub(crate) fn open(
    shapes: Vec<counters::Shape>,
    policy: Arc<Policy>,
    network: Arc<Network>,
) -> std::io::Result<Vec<(WorkerDoors, ControlDoors)>> {
    let (publisher, _) = policy::door(policy, network);
    let one = |shape| {
        let (writer, counters) = counters::door(shape);
        let (sender, receiver) = events::door(events::CAPACITY)?;
        let (asker, server) = commands::door();
        Ok((
            WorkerDoors { policy: publisher.reader(), counters: writer, events: sender, commands: server },
            ControlDoors { policy: publisher.clone(), counters: Arc::new(counters), events: receiver, commands: asker },
        ))
    };
    shapes.into_iter().map(one).collect()
}
