//! Port allocation at any fill: the first packets of new hosts, one by one, until the pool has given its last port, and beyond.
//!
//! Knows the pool's size, not how ports are chosen. Each host has one flow, so that no host is bound to an address that has none left:
//! every refusal before the last port is a false one. The time is that of a whole first packet. Invariant: at the end all ports are taken.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use portcullis_nat::policy::{Protocol, Side};
use portcullis_nat::verdict::DropReason;
use serde::{Deserialize, Serialize};

use crate::clock::Watch;
use crate::figures::Figures;
use crate::flow::{Flows, PORTS};
use crate::frame::{Frame, tcp};
use crate::gateway::{BURST, Gateway, Mode, Plan, packets_of};
use crate::load::Load;
use crate::memory::{self, Wanted};

/// What to measure.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// External addresses of the pool, each with the ports from 1024 on, for UDP and for TCP.
    #[arg(long, default_value_t = 8)]
    pub(crate) externals: u16,
    /// How often the pool is filled.
    #[arg(long, default_value_t = 4)]
    pub(crate) rounds: u32,
    /// The pages that the tables are on.
    #[arg(long, value_enum, default_value_t = Wanted::Huge)]
    pub(crate) pages: Wanted,
    /// The seed of tuples and hashes.
    #[arg(long, default_value_t = 4)]
    pub(crate) seed: u64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) externals: u16,
    pub(crate) rounds: u32,
    /// Ports of the pool, UDP and TCP.
    pub(crate) ports: u32,
    /// Nanoseconds of a first packet, by the hundredths of the pool that were taken before it.
    pub(crate) fills: Vec<Fill>,
    /// Refusals while a port was free.
    pub(crate) false_exhaustion: u64,
    /// Nanoseconds of a packet that is refused when no port is left.
    pub(crate) refused_ns: Figures,
}

/// The first packets at one fill.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fill {
    pub(crate) percent: f64,
    pub(crate) packets: u32,
    pub(crate) ns: Figures,
}

/// The fills: parts of ten thousand.
const FILLS: [u32; 3] = [1000, 9900, 9999];
/// Packets timed at each fill, but for the last, which has fewer.
const TIMED: u32 = 1000;
/// Packets beyond the last port.
const REFUSED: u32 = 4000;

/// Measures it.
pub(crate) fn run(options: &Options) -> Result<Measured> {
    ensure!(options.externals > 0 && options.rounds > 0, "--externals and --rounds have to be at least 1");
    let ports = u32::from(options.externals) * 2 * PORTS;
    let mut times: [Vec<f64>; FILLS.len() + 1] = Default::default();
    let mut false_exhaustion = 0;
    for round in 0..options.rounds {
        false_exhaustion += fill(options, ports, options.seed + u64::from(round), &mut times)?;
    }
    let [.., refused] = &mut times;
    let refused_ns = Figures::of(std::mem::take(refused));
    let fill =
        |(parts, ns): (u32, Vec<f64>)| Fill { percent: f64::from(parts) / 100.0, packets: ns.len() as u32, ns: Figures::of(ns) };
    let fills = FILLS.into_iter().zip(times).map(fill).collect();
    Ok(Measured { externals: options.externals, rounds: options.rounds, ports, fills, false_exhaustion, refused_ns })
}

/// Fills a pool and goes on. Returns the refusals before its end.
fn fill(options: &Options, ports: u32, seed: u64, times: &mut [Vec<f64>; FILLS.len() + 1]) -> Result<u64> {
    let plan = Plan { mode: Mode::Independent, capacity: ports + BURST as u32, externals: options.externals, timeout: None, seed };
    let (mut region, _) = memory::region(plan.bytes(), options.pages)?;
    let mut gateway = Gateway::new(&plan, &mut region, BURST)?;
    let load = Load::new(Flows::new(seed, ports + REFUSED, 1), 0);
    let mut sender = Sender { load, watch: Watch::new(), frames: vec![Frame::EMPTY; BURST], next: 0 };
    for (&parts, times) in FILLS.iter().zip(times.iter_mut()) {
        let from = (u64::from(ports) * u64::from(parts) / 10_000) as u32;
        sender.send_until(&mut gateway, from);
        sender.time_until(&mut gateway, ports.min(from + TIMED), times);
    }
    sender.send_until(&mut gateway, ports);
    let false_exhaustion = gateway.nat.counters().dropped_in_all();
    if false_exhaustion == 0 {
        let uses = gateway.nat.port_use().into_iter().filter(|usage| usage.protocol != Protocol::Icmp);
        let taken: u32 = uses.map(|usage| usage.used).sum();
        ensure!(taken == ports, "{taken} of {ports} ports are taken, and nothing was refused");
    }
    sender.time_until(&mut gateway, ports + REFUSED, &mut times[FILLS.len()]);
    let refused = gateway.nat.counters().dropped(DropReason::PortsExhausted);
    let wanted = false_exhaustion + u64::from(REFUSED);
    ensure!(refused == wanted, "{refused} packets were refused for want of a port instead of {wanted}");
    Ok(false_exhaustion)
}

/// Sends first packets.
struct Sender {
    load: Load,
    watch: Watch,
    frames: Vec<Frame>,
    next: u32,
}

impl Sender {
    /// Sends them up to number `end`, in bursts.
    fn send_until(&mut self, gateway: &mut Gateway<'_>, end: u32) {
        while self.next < end {
            let count = (end - self.next).min(BURST as u32) as usize;
            self.process(gateway, count);
        }
    }

    /// Sends them up to number `end`, one by one, and notes the nanoseconds of each.
    fn time_until(&mut self, gateway: &mut Gateway<'_>, end: u32, times: &mut Vec<f64>) {
        while self.next < end {
            times.push(self.process(gateway, 1));
        }
    }

    /// Sends `count` packets. Returns the nanoseconds that they took.
    fn process(&mut self, gateway: &mut Gateway<'_>, count: usize) -> f64 {
        for (frame, number) in self.frames[..count].iter_mut().zip(self.next..) {
            self.load.write(frame, number, Side::Inside, tcp::SYN);
        }
        let mut packets = packets_of(&mut self.frames[..count]);
        gateway.begin();
        let start = Instant::now();
        gateway.process(&mut packets, Side::Inside);
        let ns = self.watch.since(start);
        gateway.sweep(count);
        gateway.advance(count);
        self.next += count as u32;
        ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_gives_its_last_port_and_then_refuses() {
        let options = Options { externals: 1, rounds: 1, pages: Wanted::Ordinary, seed: 2 };
        let measured = run(&options).expect("it runs");
        let fills: Vec<_> = measured.fills.iter().map(|fill| (fill.percent, fill.packets)).collect();
        assert_eq!(fills, [(10.0, 1000), (99.0, 1000), (99.99, 13)]);
        assert_eq!((measured.false_exhaustion, measured.ports), (0, 129_024));
    }
}
