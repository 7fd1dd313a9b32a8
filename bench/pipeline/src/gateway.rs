//! The gateway that is measured: one worker's NAT between two devices, with a routed network behind each and a pool of addresses.
//!
//! Knows the NAT's public face. Invariant: whatever is measured goes through [`Gateway::process`], which is `Nat::process` on bursts of
//! [`BURST`] and nothing else; a tool that counts
//! instructions or cache misses collects in that function alone.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use portcullis_nat::policy::{
    DeviceId, Endpoint, External, Filtering, Interface, InterfaceId, Mac, MappingBehaviour, MssClamp, Network, Policy, PortSet,
    ReceivedChecksums, Route, Side,
};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::Verdict;
use portcullis_nat::{Capacity, Nat, Packet, Seeds};
use portcullis_steering::{Owners, WorkerId};
use serde::{Deserialize, Serialize};

use crate::flow::{FIRST_PORT, Flows, PORTS, SESSIONS_PER_HOST};
use crate::frame::{FRAME_LEN, Frame, Link};

/// Packets in a burst: what a worker takes from a ring at once.
pub(crate) const BURST: usize = 32;

/// Bursts for each millisecond of the NAT's time: 16 million packets a second.
const BURSTS_PER_TICK: u32 = 512;

/// The mapping and filtering behaviour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Endpoint-independent mapping, address-and-port-dependent filtering: the default.
    #[default]
    Independent,
    /// Address-and-port-dependent mapping and filtering.
    Dependent,
    /// Endpoint-independent mapping and filtering.
    Open,
    /// The same of UDP alone, which is kept as bare mappings.
    Bare,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Independent, Self::Dependent, Self::Open, Self::Bare];

    /// The word for tables and options.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Independent => "independent",
            Self::Dependent => "dependent",
            Self::Open => "open",
            Self::Bare => "bare",
        }
    }

    const fn behaviour(self) -> (MappingBehaviour, Filtering) {
        match self {
            Self::Independent => (MappingBehaviour::EndpointIndependent, Filtering::AddressAndPortDependent),
            Self::Dependent => (MappingBehaviour::AddressAndPortDependent, Filtering::AddressAndPortDependent),
            Self::Open | Self::Bare => (MappingBehaviour::EndpointIndependent, Filtering::EndpointIndependent),
        }
    }

    /// At least `count` flows.
    pub(crate) fn flows(self, seed: u64, count: u32) -> Flows {
        let flows = Flows::new(seed, count, SESSIONS_PER_HOST);
        if self == Self::Bare { flows.of_udp() } else { flows }
    }

    /// External addresses for `flows` flows: half of them UDP and half TCP, or all UDP.
    pub(crate) fn externals_for(self, flows: u32) -> u16 {
        let protocols = if self == Self::Bare { 1 } else { 2 };
        let of_address = protocols * u64::from(PORTS) * POOL_FILL / 100;
        u64::from(flows).div_ceil(of_address).max(1) as u16
    }
}

/// What the gateway is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) mode: Mode,
    /// Flows that fit.
    pub(crate) capacity: u32,
    /// External addresses.
    pub(crate) externals: u16,
    /// The idle time of every session, where it is not the default.
    pub(crate) timeout: Option<Duration>,
    pub(crate) seed: u64,
}

/// The share of the pool that live sessions take, in hundredths. All flows of a host have one external address, so some addresses get
/// more than others: with 63 flows a host none comes near its end.
const POOL_FILL: u64 = 80;

/// Sessions that there is room for where flows have none: what is not UDP would need them.
const FEW_SESSIONS: u32 = 1024;

/// The device of the inside.
const INSIDE: DeviceId = DeviceId(0);
/// The device of the outside.
const OUTSIDE: DeviceId = DeviceId(1);
const OWN_MACS: [Mac; 2] = [[2, 0, 0, 0, 0xAA, 0], [2, 0, 0, 0, 0xAA, 1]];
const ROUTER_MACS: [Mac; 2] = [[6, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 1]];
/// The next hop towards the hosts of either side.
const ROUTERS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 0, 2), Ipv4Addr::new(192, 0, 2, 2)];
/// The first external address.
const POOL: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// The device that packets come from, or go to, on a side.
const fn device_of(side: Side) -> DeviceId {
    match side {
        Side::Inside => INSIDE,
        Side::Outside => OUTSIDE,
    }
}

/// The link-layer addresses of frames that come in on a side.
pub(crate) fn link_of(side: Side) -> Link {
    let device = usize::from(device_of(side).0);
    Link { source: ROUTER_MACS[device], destination: OWN_MACS[device] }
}

impl Plan {
    fn capacity(&self) -> Capacity {
        let (bare_mappings, sessions) = match self.mode {
            Mode::Bare => (self.capacity, FEW_SESSIONS),
            Mode::Independent | Mode::Dependent | Mode::Open => (0, self.capacity),
        };
        Capacity { mappings: self.capacity, bare_mappings, sessions, externals: self.externals, fragments: 1024, others: 1024 }
    }

    /// The memory that the tables take. **Units:** bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.capacity().bytes()
    }

    fn policy(&self) -> Policy {
        let (mapping, filtering) = self.mode.behaviour();
        let ports = PortSet::range(FIRST_PORT, u16::MAX);
        let external = |slot: u16| External {
            address: Some(Ipv4Addr::from_bits(POOL.to_bits() + u32::from(slot))),
            ports: ports.clone(),
            shared_with_host: false,
            pool: "default".into(),
        };
        let mut policy = Policy {
            externals: (0..self.externals).map(external).collect(),
            mapping,
            filtering_udp: filtering,
            filtering_tcp: filtering,
            ..Policy::default()
        };
        if let Some(timeout) = self.timeout {
            let timeouts = &mut policy.timeouts;
            (timeouts.udp, timeouts.tcp_established) = (timeout, timeout);
            (timeouts.tcp_opening, timeouts.tcp_closing) = (timeout, timeout);
        }
        policy
    }
}

fn network() -> Network {
    let interface = |device: DeviceId, side: Side, address: &str| Interface {
        name: format!("bench{}", device.0),
        device,
        vlan: None,
        side,
        mac: OWN_MACS[usize::from(device.0)],
        addresses: vec![address.parse().expect("a prefix")],
        mtu: 1500,
        up: true,
        prefixes: Vec::new(),
        // A physical card's.
        checksums: ReceivedChecksums::Complete,
        mss: MssClamp::Off,
    };
    // Known keys: a count of instructions is the same each time.
    let keys = ahash::RandomState::with_seeds(1, 2, 3, 4);
    let mut network = Network {
        neighbours: hashbrown::HashMap::with_hasher(keys),
        interfaces: vec![interface(INSIDE, Side::Inside, "192.168.0.1/24"), interface(OUTSIDE, Side::Outside, "192.0.2.1/24")],
        ..Network::default()
    };
    let via = |interface: u16, gateway| Route::Via { interface: InterfaceId(interface), gateway, mtu: None };
    let routes = [
        ("192.168.0.0/24", via(0, None)),
        ("192.168.0.1/32", Route::Local),
        ("10.0.0.0/8", via(0, Some(ROUTERS[0]))),
        ("192.0.2.0/24", via(1, None)),
        ("192.0.2.1/32", Route::Local),
        ("0.0.0.0/0", via(1, Some(ROUTERS[1]))),
    ];
    for (prefix, route) in routes {
        network.routes.insert(prefix.parse().expect("a prefix"), route);
    }
    for (number, router) in ROUTERS.into_iter().enumerate() {
        network.neighbours.insert((InterfaceId(number as u16), router), ROUTER_MACS[number]);
    }
    network
}

/// The NAT under measurement and its clock.
pub(crate) struct Gateway<'m> {
    pub(crate) nat: Nat<'m>,
    pub(crate) now: Tick,
    bursts: u32,
    verdicts: Vec<Verdict>,
}

impl<'m> Gateway<'m> {
    /// A gateway whose tables are in `memory` of at least [`Plan::bytes`].
    pub(crate) fn new(plan: &Plan, memory: &'m mut [u8], most_frames: usize) -> Result<Self> {
        let now = Tick(1);
        let seeds = Seeds(core::array::from_fn(|word| crate::scramble::mix(plan.seed, word as u64)));
        let mut nat =
            Nat::new(memory, plan.capacity(), seeds, Owners::single(), WorkerId(0), now).context("cannot make the NAT")?;
        nat.adopt_policy(Arc::new(plan.policy()), now);
        nat.adopt_network(Arc::new(network()));
        Ok(Self { nat, now, bursts: 0, verdicts: Vec::with_capacity(most_frames) })
    }

    /// Makes ready for a call of [`Gateway::process`].
    pub(crate) fn begin(&mut self) {
        self.verdicts.clear();
    }

    /// Gives the packets to the NAT in bursts, as the worker does. The only thing that is measured.
    #[inline(never)]
    pub(crate) fn process(&mut self, packets: &mut [Packet<'_>], side: Side) {
        for burst in packets.chunks_mut(BURST) {
            self.nat.process(burst, device_of(side), self.now, &mut self.verdicts);
        }
    }

    /// Calls the sweep once a burst. The worker calls it no more often than that.
    #[inline(never)]
    pub(crate) fn sweep(&mut self, packets: usize) {
        for _ in 0..packets.div_ceil(BURST) {
            self.nat.expire_some(self.now);
        }
    }

    /// Lets time pass in which nothing comes, with all that is due swept every millisecond.
    pub(crate) fn idle(&mut self, milliseconds: u32) {
        for _ in 0..milliseconds {
            self.now = self.now.after(1);
            self.nat.expire(self.now);
        }
    }

    /// Lets the time pass that `packets` take.
    pub(crate) fn advance(&mut self, packets: usize) {
        self.bursts += packets.div_ceil(BURST) as u32;
        self.now = self.now.after(self.bursts / BURSTS_PER_TICK);
        self.bursts %= BURSTS_PER_TICK;
    }

    /// Sends frames through, unmeasured but with the sweep, and checks that each leaves on the other side.
    pub(crate) fn pass(&mut self, frames: &mut [Frame], side: Side) -> Result<()> {
        self.begin();
        self.put_through(frames, side);
        self.sweep(frames.len());
        self.advance(frames.len());
        self.check_passed(frames.len(), side)
    }

    /// As [`Gateway::process`], but not where tools collect.
    fn put_through(&mut self, frames: &mut [Frame], side: Side) {
        let mut packets = packets_of(frames);
        for burst in packets.chunks_mut(BURST) {
            self.nat.process(burst, device_of(side), self.now, &mut self.verdicts);
        }
    }

    /// **Errors:** when not every frame of the last call, which came from `side`, leaves on the other side.
    pub(crate) fn check_passed(&self, frames: usize, side: Side) -> Result<()> {
        let other = match side {
            Side::Inside => Verdict::Transmit(OUTSIDE),
            Side::Outside => Verdict::Transmit(INSIDE),
        };
        if let Some(verdict) = self.verdicts.iter().find(|&&verdict| verdict != other) {
            bail!("a packet from {side:?} was not translated: {verdict:?}");
        }
        ensure!(self.verdicts.len() == frames, "{} verdicts for {frames} frames", self.verdicts.len());
        Ok(())
    }

    /// Whether an endpoint is one of the pool.
    pub(crate) fn is_external(plan: &Plan, endpoint: Endpoint) -> bool {
        let slot = endpoint.address.to_bits().wrapping_sub(POOL.to_bits());
        slot < u32::from(plan.externals) && endpoint.port >= FIRST_PORT
    }
}

/// The frames as the worker hands them in.
pub(crate) fn packets_of(frames: &mut [Frame]) -> Vec<Packet<'_>> {
    frames.iter_mut().map(|frame| Packet::received(&mut frame.0, FRAME_LEN)).collect()
}
