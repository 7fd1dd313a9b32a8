//! Many workers' NATs in memory: frames on any worker, hand-offs through a queue for each pair, fragments that wait for their first.
//!
//! Knows the NAT's public face and what a worker owes it; no sockets, no threads. The order in which queues are served is drawn from a
//! seed, so that each interleaving can be had again. Invariants: between two workers nothing overtakes; every frame that is received
//! ends with one verdict, or waits. Used by the oracle, by the property over numbers of workers, and by the tests of `nat`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use portcullis_nat::counters::{Counter, Counters};
use portcullis_nat::policy::{DeviceId, Endpoint, InterfaceId, Network, Policy};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::{DatagramToken, DropReason, Errand, Verdict};
use portcullis_nat::view::{Gauges, MappingView, OtherView, PortUse, SessionView};
use portcullis_nat::{Capacity, Nat, Packet, Seeds};
use portcullis_steering::toeplitz::Key;
use portcullis_steering::{Owners, WorkerId};

/// A frame on its way, and at its end.
#[derive(Clone, Debug)]
pub struct Done {
    /// The number that [`Fleet::receive`] gave it.
    pub number: u64,
    /// The device that it came from.
    pub device: DeviceId,
    /// What became of it. A fragment that waits has `AwaitFirst` here, and comes a second time when it goes on.
    pub verdict: Verdict,
    /// The frame's memory.
    pub memory: Vec<u8>,
    /// The packet's length in it. **Units:** bytes.
    pub len: usize,
    /// The worker that gave the verdict.
    pub worker: WorkerId,
    /// How often it was handed over.
    pub handed: u8,
    /// Whether it waited in vain for the first fragment of its datagram.
    pub is_given_up: bool,
    errand: Errand,
}

impl Done {
    /// The packet.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

/// Frames that a worker takes from a queue at once, at most.
const MOST_AT_ONCE: usize = 6;

/// The memory of a frame that a NAT writes itself. **Units:** bytes.
const FRAME: usize = 2048;

/// The workers' NATs.
pub struct Fleet<'m> {
    nats: Vec<Nat<'m>>,
    owners: Owners,
    /// Frames for each worker: those from each other worker in a queue, and those from devices in the last one.
    queues: Vec<Vec<VecDeque<Done>>>,
    early: BTreeMap<(u16, DatagramToken), Vec<Done>>,
    received: u64,
    random: u64,
    /// What has ended since it was last asked for.
    done: Vec<Done>,
}

/// Owners for a number of workers, with keys that depend on a seed.
pub fn owners(workers: u16, seed: u64) -> Owners {
    if workers == 1 {
        return Owners::single();
    }
    let mut random = seed | 1;
    let mut key = || Key::new(core::array::from_fn(|_| draw(&mut random) as u8));
    let table: Vec<_> = (0..128).map(|entry| WorkerId(entry % workers)).collect();
    assert!(usize::from(workers) <= table.len(), "a worker without an entry never has a port");
    loop {
        let owners = Owners::new(&key(), &key(), table.clone());
        // One key in some thousands tells too few ports apart, and leaves a worker without any; the gateway chooses none that does.
        if (0..workers).all(|worker| owners.ports(Ipv4Addr::UNSPECIFIED, WorkerId(worker)).next().is_some()) {
            return owners;
        }
    }
}

/// Xorshift (Marsaglia, 2003): any order will do, as long as it can be had again.
fn draw(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

impl<'m> Fleet<'m> {
    /// Empty NATs, one for each worker of `owners`, with tables in `memory`, which is made as large as they need. `seed` is that of the
    /// interleaving.
    pub fn new(memory: &'m mut Vec<u8>, capacity: Capacity, seeds: Seeds, owners: &Owners, seed: u64, now: Tick) -> Self {
        let (workers, bytes) = (usize::from(owners.workers()), capacity.bytes());
        memory.clear();
        memory.resize(workers * bytes, 0);
        let nat = |(number, memory)| {
            let nat = Nat::new(memory, capacity, seeds, owners.clone(), WorkerId(number as u16), now);
            nat.expect("the memory is large enough")
        };
        let nats: Vec<_> = memory.chunks_mut(bytes).enumerate().map(nat).collect();
        let queues = (0..workers).map(|_| vec![VecDeque::new(); workers + 1]).collect();
        Self { nats, owners: owners.clone(), queues, early: BTreeMap::new(), received: 0, random: seed | 1, done: Vec::new() }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.nats.len()
    }

    /// Who owns what.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// One worker's NAT.
    pub fn nat(&mut self, worker: usize) -> &mut Nat<'m> {
        &mut self.nats[worker]
    }

    /// A worker that is drawn: a device's queue may be any one's.
    pub fn any_worker(&mut self) -> usize {
        draw(&mut self.random) as usize % self.nats.len()
    }

    /// Puts a frame on a worker's queue of a device. Gives its number.
    pub fn receive(&mut self, worker: usize, device: DeviceId, memory: Vec<u8>, len: usize) -> u64 {
        self.received += 1;
        let (number, verdict) = (self.received, Verdict::Drop(DropReason::NoFrame));
        let (worker_id, devices) = (WorkerId(worker as u16), self.nats.len());
        let frame =
            Done { number, device, verdict, memory, len, worker: worker_id, handed: 0, is_given_up: false, errand: Errand::Whole };
        self.queues[worker][devices].push_back(frame);
        number
    }

    /// Serves the queues, in an order that is drawn, until they are empty. Gives what ended, in the order of its verdicts.
    pub fn run(&mut self, now: Tick) -> Vec<Done> {
        loop {
            let filled: Vec<_> = (0..self.queues.len())
                .flat_map(|worker| (0..self.queues[worker].len()).map(move |from| (worker, from)))
                .filter(|&(worker, from)| !self.queues[worker][from].is_empty())
                .collect();
            if filled.is_empty() {
                return std::mem::take(&mut self.done);
            }
            let (worker, from) = filled[draw(&mut self.random) as usize % filled.len()];
            let burst = self.take_burst(worker, from);
            self.serve(worker, burst, now);
        }
    }

    /// As many of a queue's first frames as are drawn, all from one device.
    fn take_burst(&mut self, worker: usize, from: usize) -> Vec<Done> {
        let most = 1 + draw(&mut self.random) as usize % MOST_AT_ONCE;
        let queue = &mut self.queues[worker][from];
        let device = queue.front().map(|frame| frame.device);
        let count = queue.iter().take(most).take_while(|frame| Some(frame.device) == device).count();
        queue.drain(..count).collect()
    }

    fn serve(&mut self, worker: usize, burst: Vec<Done>, now: Tick) {
        self.process(worker, burst, now);
        while let Some(token) = self.nats[worker].take_released() {
            let mut frames = self.take_early(worker, token);
            for frame in &mut frames {
                frame.errand = Errand::Released;
            }
            self.process(worker, frames, now);
        }
        self.give_up(worker);
    }

    /// Has a worker's NAT decide on frames from one device.
    fn process(&mut self, worker: usize, mut frames: Vec<Done>, now: Tick) {
        let Some(device) = frames.first().map(|frame| frame.device) else { return };
        let mut verdicts = Vec::new();
        // Packets borrow the memory, while the frames are wanted again after them.
        let mut memories: Vec<_> = frames.iter_mut().map(|frame| std::mem::take(&mut frame.memory)).collect();
        let packet =
            |(memory, frame): (_, &Done)| Packet { buffer: memory, len: frame.len, errand: frame.errand, handed: frame.handed };
        let mut packets: Vec<_> = memories.iter_mut().map(Vec::as_mut_slice).zip(&frames).map(packet).collect();
        self.nats[worker].process(&mut packets, device, now, &mut verdicts);
        let lens: Vec<_> = packets.iter().map(|packet| packet.len).collect();
        for (((mut frame, memory), len), verdict) in frames.into_iter().zip(memories).zip(lens).zip(verdicts) {
            (frame.memory, frame.len, frame.verdict, frame.worker) = (memory, len, verdict, WorkerId(worker as u16));
            self.note(worker, frame);
        }
    }

    /// Keeps a frame where its verdict says.
    fn note(&mut self, worker: usize, mut frame: Done) {
        match frame.verdict {
            Verdict::HandOff { to, errand, .. } => {
                (frame.errand, frame.handed) = (errand, frame.handed + 1);
                self.queues[usize::from(to.0)][worker].push_back(frame);
            }
            Verdict::AwaitFirst(token) => {
                self.early.entry((worker as u16, token)).or_default().push(frame.clone());
                self.done.push(frame);
            }
            _ => self.done.push(frame),
        }
    }

    fn take_early(&mut self, worker: usize, token: DatagramToken) -> Vec<Done> {
        self.early.remove(&(worker as u16, token)).unwrap_or_default()
    }

    fn give_up(&mut self, worker: usize) {
        while let Some(token) = self.nats[worker].take_given_up() {
            for mut frame in self.take_early(worker, token) {
                let mut packet = Packet::received(&mut frame.memory, frame.len);
                frame.verdict = self.nats[worker].give_up(&mut packet);
                frame.is_given_up = true;
                self.done.push(frame);
            }
        }
    }

    /// Frames that wait for the first fragment of their datagram.
    pub fn waiting(&self) -> usize {
        self.early.values().map(Vec::len).sum()
    }

    /// What is due of every worker's sweep. Gives the fragments that have waited in vain.
    pub fn expire(&mut self, now: Tick) -> Vec<Done> {
        self.each(|nat| nat.expire(now))
    }

    /// What every worker sweeps at once. Gives the fragments that have waited in vain, and whether more is due.
    pub fn expire_some(&mut self, now: Tick) -> (Vec<Done>, bool) {
        let mut is_more_due = false;
        let given_up = self.each(|nat| is_more_due |= nat.expire_some(now));
        (given_up, is_more_due)
    }

    /// The ICMP errors that are due by themselves, with the devices that they leave by.
    pub fn answers_due(&mut self, now: Tick) -> Vec<(DeviceId, Vec<u8>)> {
        let mut answers = Vec::new();
        for nat in &mut self.nats {
            while nat.is_answer_due(now) {
                let mut memory = vec![0; FRAME];
                let Some((len, device)) = nat.answer_due(&mut memory, now) else { break };
                memory.truncate(len);
                answers.push((device, memory));
            }
        }
        answers
    }

    /// Every worker's whole sweep. Gives the fragments that have waited in vain.
    pub fn expire_all(&mut self, now: Tick) -> Vec<Done> {
        self.each(|nat| nat.expire_all(now))
    }

    /// New rules for every worker. Gives the fragments that wait no more.
    pub fn adopt_policy(&mut self, policy: &Arc<Policy>, now: Tick) -> Vec<Done> {
        self.each(|nat| nat.adopt_policy(Arc::clone(policy), now))
    }

    /// The network as it is now, for every worker.
    pub fn adopt_network(&mut self, network: &Arc<Network>) {
        self.each(|nat| nat.adopt_network(Arc::clone(network)));
    }

    fn each(&mut self, mut change: impl FnMut(&mut Nat<'m>)) -> Vec<Done> {
        for worker in 0..self.nats.len() {
            change(&mut self.nats[worker]);
            self.give_up(worker);
        }
        std::mem::take(&mut self.done)
    }

    /// Completes a held packet's link-layer header, as any worker would.
    pub fn readdress(&mut self, packet: &mut Packet<'_>, interface: InterfaceId, next_hop: Ipv4Addr) -> Verdict {
        self.nats[0].readdress(packet, interface, next_hop)
    }

    /// The next hops in use, of all workers.
    pub fn used_next_hops(&mut self) -> impl Iterator<Item = (InterfaceId, Ipv4Addr)> + '_ {
        self.nats.iter_mut().flat_map(Nat::used_next_hops)
    }

    /// What all workers counted.
    pub fn counters(&self) -> Counters {
        let mut all = Counters::default();
        for nat in &self.nats {
            for &counter in Counter::ALL {
                all.add(counter, nat.counters().get(counter));
            }
            for &reason in DropReason::ALL {
                all.drop_packets(reason, nat.counters().dropped(reason));
            }
        }
        all
    }

    /// The live sessions of all workers.
    pub fn sessions(&self, now: Tick) -> Vec<SessionView> {
        self.views(|nat, cursor, views| nat.sessions(cursor, 64, now, views))
    }

    /// The live translations of protocols without ports, of all workers.
    pub fn others(&self, now: Tick) -> Vec<OtherView> {
        self.views(|nat, cursor, views| nat.others(cursor, 64, now, views))
    }

    /// The mappings of all workers.
    pub fn mappings(&self, now: Tick) -> Vec<MappingView> {
        self.views(|nat, cursor, views| nat.mappings(cursor, 64, now, views))
    }

    /// The external endpoints that bare mappings have, in order.
    pub fn bare_externals(&self, now: Tick) -> Vec<Endpoint> {
        let bare = self.mappings(now).into_iter().filter(|view| view.bare.is_some());
        bare.map(|view| view.external).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn views<V>(&self, slice: impl Fn(&Nat<'m>, u32, &mut Vec<V>) -> Option<u32>) -> Vec<V> {
        let mut views = Vec::new();
        for nat in &self.nats {
            let mut cursor = Some(0);
            while let Some(from) = cursor {
                cursor = slice(nat, from, &mut views);
            }
        }
        views
    }

    /// All workers' gauges, summed.
    pub fn gauges(&self) -> Gauges {
        self.nats.iter().map(Nat::gauges).fold(Gauges::default(), |all, one| Gauges {
            mappings: all.mappings + one.mappings,
            mappings_limit: all.mappings_limit + one.mappings_limit,
            sessions: all.sessions + one.sessions,
            sessions_limit: all.sessions_limit + one.sessions_limit,
            subscribers: all.subscribers + one.subscribers,
            fragments: all.fragments + one.fragments,
            others: all.others + one.others,
            others_limit: all.others_limit + one.others_limit,
        })
    }

    /// The use of each external address, for each protocol, of all workers.
    pub fn port_use(&self) -> Vec<PortUse> {
        let mut uses: Vec<PortUse> = Vec::new();
        for one in self.nats.iter().flat_map(Nat::port_use) {
            match uses.iter_mut().find(|all| (all.address, all.protocol) == (one.address, one.protocol)) {
                Some(all) => {
                    (all.used, all.resting, all.limit) = (all.used + one.used, all.resting + one.resting, all.limit + one.limit);
                }
                None => uses.push(one),
            }
        }
        uses
    }
}
