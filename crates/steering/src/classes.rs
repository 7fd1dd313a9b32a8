//! Toeplitz classes: the external ports whose replies a NIC puts onto a worker's queues when the remote endpoint is known.
//!
//! Knows what [`crate::predict`] does with a destination port. Asked on the slow path where a mapping is for one remote endpoint, so that
//! a port can be picked to suit any key. Invariant: each of the 65,536 ports is in exactly one class. Tests: tests/predict.rs.
//!
//! ```text
//! index of a reply = base(remote address, remote port, external address) ^ class(external port)
//! class is linear: the ports of class 0 are its kernel, and every other class is that, XORed with one port of the class
//! ```

use core::net::Ipv4Addr;

use crate::owners::{PORT_WORDS, WorkerId};
use crate::predict::{HashedPacket, Placement, Transport};
use crate::table::worker_of_queue;

/// The classes of ports under one NIC's hash, for one protocol.
#[derive(Clone, Debug)]
pub struct PortClasses {
    placement: Placement,
    transport: Transport,
    /// All ports of class 0.
    kernel: Vec<u16>,
    /// A port of each class. None for a class that no port reaches.
    representatives: Vec<Option<u16>>,
    /// The entries of the NIC's table that lead to a worker's queues, by worker.
    entries: Vec<Vec<u16>>,
}

/// Both ends of a session as far as a reply to it shows them, but for the external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyFrom {
    /// The remote address.
    pub remote: Ipv4Addr,
    /// The remote port.
    pub remote_port: u16,
    /// The external address.
    pub external: Ipv4Addr,
}

impl PortClasses {
    /// The classes under what a NIC does with a protocol's packets. None where it does not hash them, or nobody knows how.
    ///
    /// **Panics:** without workers.
    pub fn new(placement: Placement, transport: Transport, workers: u16) -> Option<Self> {
        let origin = ReplyFrom { remote: Ipv4Addr::UNSPECIFIED, remote_port: 0, external: Ipv4Addr::UNSPECIFIED };
        let zero = placement.index(&origin.packet(transport, 0))?;
        let class = |port| placement.index(&origin.packet(transport, port)).map_or(0, |index| index ^ zero);
        let (basis, kernel) = eliminate(class);
        let mut representatives = vec![None; placement.table().len()];
        combinations(&basis).for_each(|port| representatives[class(port)] = Some(port));
        let entries = entries_by_worker(placement.table(), workers);
        Some(Self { kernel: combinations(&kernel).collect(), representatives, entries, placement, transport })
    }

    /// How many classes have ports: a power of two.
    pub fn classes(&self) -> usize {
        65_536 / self.kernel.len()
    }

    /// The external ports to which replies reach `worker`. **Shape:** in no order.
    pub fn ports(&self, replies: ReplyFrom, worker: WorkerId) -> impl Iterator<Item = u16> + '_ {
        let base = self.base(replies);
        let classes = self.entries_of(worker).iter().filter_map(move |&entry| self.representatives[usize::from(entry) ^ base]);
        classes.flat_map(|port| self.kernel.iter().map(move |&other| port ^ other))
    }

    /// The same as a set. **Shape:** see [`PORT_WORDS`]. **Cost:** a step for each port in it.
    pub fn ports_of(&self, replies: ReplyFrom, worker: WorkerId) -> Box<[u64; PORT_WORDS]> {
        let mut words = Box::new([0; PORT_WORDS]);
        self.ports(replies, worker).for_each(|port| words[usize::from(port) / 64] |= 1 << (port % 64));
        words
    }

    /// One of them, as `random` says. None when there is none. **Cost:** constant where the ports reach every class.
    pub fn pick(&self, replies: ReplyFrom, worker: WorkerId, random: u32) -> Option<u16> {
        let (base, entries) = (self.base(replies), self.entries_of(worker));
        let first = (random >> 16) as usize % entries.len().max(1);
        let mut from_first = entries[first..].iter().chain(&entries[..first]);
        let port = from_first.find_map(|&entry| self.representatives[usize::from(entry) ^ base])?;
        Some(port ^ self.kernel[random as usize & (self.kernel.len() - 1)])
    }

    fn base(&self, replies: ReplyFrom) -> usize {
        self.placement.index(&replies.packet(self.transport, 0)).unwrap_or(0)
    }

    fn entries_of(&self, worker: WorkerId) -> &[u16] {
        self.entries.get(usize::from(worker.0)).map_or(&[], Vec::as_slice)
    }
}

impl ReplyFrom {
    /// The reply to an external port.
    pub const fn packet(self, transport: Transport, port: u16) -> HashedPacket {
        let (source, destination) = (self.remote, self.external);
        HashedPacket { source, destination, ports: Some((self.remote_port, port)), transport, is_fragment: false }
    }
}

fn entries_by_worker(table: &[u16], workers: u16) -> Vec<Vec<u16>> {
    let mut entries = vec![Vec::new(); usize::from(workers)];
    table.iter().enumerate().for_each(|(entry, &queue)| entries[usize::from(worker_of_queue(queue, workers).0)].push(entry as u16));
    entries
}

/// Ports whose classes are a basis of all classes, and ports that are a basis of class 0: Gaussian elimination that remembers its steps.
fn eliminate(class: impl Fn(u16) -> usize) -> (Vec<u16>, Vec<u16>) {
    let mut by_highest: [Option<(usize, u16)>; 16] = [None; 16];
    let (mut basis, mut kernel) = (Vec::new(), Vec::new());
    for bit in 0..16 {
        let (mut value, mut port) = (class(1 << bit), 1 << bit);
        while let Some((other, ports)) = value.checked_ilog2().and_then(|highest| by_highest[highest as usize]) {
            (value, port) = (value ^ other, port ^ ports);
        }
        match value.checked_ilog2() {
            Some(highest) => {
                by_highest[highest as usize] = Some((value, port));
                basis.push(port);
            }
            None => kernel.push(port),
        }
    }
    (basis, kernel)
}

/// The XOR of each subset.
fn combinations(basis: &[u16]) -> impl Iterator<Item = u16> + '_ {
    let chosen = |subset: u32| basis.iter().enumerate().filter(move |&(at, _)| subset >> at & 1 == 1);
    (0..1_u32 << basis.len()).map(move |subset| chosen(subset).fold(0, |sum, (_, port)| sum ^ port))
}
