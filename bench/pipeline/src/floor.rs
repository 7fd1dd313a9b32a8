//! The floor: what a packet costs that reads two random lines of memory, and is rewritten, and nothing else.
//!
//! Knows frames and memory, nothing of the NAT, of which it shares no code. Measured as a rung is, in the same bursts of the same frames: read
//! the tuple, hash it, look at a line of an index of that size, compare a record, write address, port, TTL and both checksums. Where the record is,
//! the frame itself says, so nothing waits for the line; there is no state, time, count or way. So no NAT with an index is faster on this machine
//! at this moment, and the ratio to it says more than a time. That of a session's end is in `floor/end.rs`.

mod end;

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use memmap2::MmapMut;
use serde::{Deserialize, Serialize};

use crate::batch::{Batch, HALF, SIDES};
use crate::clock::Watch;
use crate::figures::Figures;
use crate::flow::{Flows, SESSIONS_PER_HOST};
use crate::frame::Frame;
use crate::gateway::BURST;
use crate::load::Load;
use crate::memory::{self, Wanted};

/// What to measure.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Sessions, two entries of the index each.
    #[arg(long, default_value_t = 1000)]
    pub(crate) sessions: u32,
    /// Batches of 256 packets, half from either side.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) batches: u32,
    /// The seed of tuples and draws.
    #[arg(long, default_value_t = 4)]
    pub(crate) seed: u64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) sessions: u32,
    /// Nanoseconds a packet, both directions.
    pub(crate) ns: Figures,
    /// Nanoseconds that a session's end takes at least. Results of before it was measured have none.
    #[serde(default)]
    pub(crate) ns_end: Option<Figures>,
    /// The memory of lines and records, all of it touched.
    pub(crate) touched_bytes: u64,
}

const LINE: usize = 64;
const RECORD: usize = 32;
/// Entries in a line of the index, as full as the NAT's is at most.
const ENTRIES: usize = 9;

/// Where the frames' fields are. **Units:** bytes from the frame's start.
mod at {
    pub(super) const TTL: usize = 22;
    pub(super) const PROTOCOL: usize = 23;
    pub(super) const IP_CHECKSUM: usize = 24;
    pub(super) const SOURCE: usize = 26;
    pub(super) const DESTINATION: usize = 30;
    pub(super) const UDP_CHECKSUM: usize = 40;
    pub(super) const TCP_CHECKSUM: usize = 50;
    /// Behind all headers: the number of the packet's record.
    pub(super) const RECORD: usize = 56;
}

/// Lines and records.
struct Memory {
    lines: MmapMut,
    records: MmapMut,
}

/// Measures it.
pub(crate) fn run(options: &Options) -> Result<Measured> {
    let Options { sessions, batches, seed } = *options;
    ensure!(sessions > 0 && batches > 0, "--sessions and --batches have to be at least 1");
    let load = Load::new(Flows::new(seed, sessions, SESSIONS_PER_HOST), sessions);
    let mut batch = Batch::new(seed);
    let count = index_lines(2 * sessions as usize);
    let mut memory = Memory {
        lines: memory::region(count * LINE, Wanted::Huge)?.0,
        records: memory::region(sessions as usize * RECORD, Wanted::Huge)?.0,
    };
    memory.lines.fill(1);
    memory.records.fill(1);
    let watch = Watch::new();
    let (warm, mut samples) = (batches.div_ceil(10), Vec::with_capacity(batches as usize));
    for number in 0..warm + batches {
        batch.write(&load, sessions);
        let mut ns = 0.0;
        for at in 0..SIDES.len() {
            let frames = batch.numbered(at, at::RECORD);
            let start = Instant::now();
            let wrong: u32 = frames.chunks_mut(BURST).map(|burst| pass(black_box(burst), &memory, count)).sum();
            ns += watch.since(start) / (SIDES.len() * HALF) as f64;
            ensure!(wrong == 0, "{wrong} packets had another record than they should");
        }
        if number >= warm {
            samples.push(ns);
        }
    }
    let touched_bytes = (count * LINE + sessions as usize * RECORD) as u64;
    drop(memory);
    let ns_end = Some(end::measure(sessions, batches)?);
    Ok(Measured { sessions, ns: Figures::of(samples), ns_end, touched_bytes })
}

/// Sends a burst through. Returns how many of it had a line or a record that is not as all are.
fn pass(burst: &mut [Frame], memory: &Memory, lines: usize) -> u32 {
    let mut places = [(0, 0); BURST];
    for (frame, place) in burst.iter().zip(&mut places) {
        let key = [eight(frame, at::PROTOCOL) & !0xFF_FF00, eight(frame, at::DESTINATION)];
        let hash = folded(folded(key[0] ^ 0x9E37_79B9_7F4A_7C15, key[1] ^ 0xBF58_476D_1CE4_E5B9), 0x94D0_49BB_1331_11EB);
        let line = below(lines, hash) * LINE;
        let record = word(frame, at::RECORD) as usize * RECORD;
        safe_arch::prefetch_t0(&memory.lines[line]);
        safe_arch::prefetch_t0(&memory.records[record]);
        *place = (line, record);
    }
    burst.iter_mut().zip(places).map(|(frame, (line, record))| u32::from(!forward(frame, memory, line, record))).sum()
}

/// Compares, and rewrites the source by what the record says. Returns whether line and record were as all are.
fn forward(frame: &mut Frame, memory: &Memory, line: usize, record: usize) -> bool {
    let (line, record) = (&memory.lines[line..line + LINE], &memory.records[record..record + RECORD]);
    let mut fields = [0; 8];
    fields.copy_from_slice(&record[..8]);
    if line[..16] != [1; 16] || record[8..16] != fields {
        return false;
    }
    let (old, new) = (word(frame, at::SOURCE), u32::from_ne_bytes([fields[0], fields[1], fields[2], fields[3]]));
    let is_tcp = frame.0[at::PROTOCOL] == 6;
    let checksum = if is_tcp { at::TCP_CHECKSUM } else { at::UDP_CHECKSUM };
    frame.0[at::SOURCE..at::SOURCE + 4].copy_from_slice(&new.to_ne_bytes());
    frame.0[at::TTL] -= 1;
    let change = u64::from(!old) + u64::from(new);
    for at in [at::IP_CHECKSUM, checksum] {
        let before = u16::from_ne_bytes([frame.0[at], frame.0[at + 1]]);
        let sum = change + u64::from(!before);
        let once = (sum & 0xFFFF) + (sum >> 16 & 0xFFFF) + (sum >> 32);
        let after = !((once & 0xFFFF) + (once >> 16)) as u16;
        frame.0[at..at + 2].copy_from_slice(&after.to_ne_bytes());
    }
    true
}

#[inline]
fn eight(frame: &Frame, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&frame.0[at..at + 8]);
    u64::from_ne_bytes(bytes)
}

#[inline]
fn word(frame: &Frame, at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&frame.0[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

/// The lines of an index with so many entries.
fn index_lines(entries: usize) -> usize {
    entries.div_ceil(ENTRIES)
}

/// A number below `count`, by a hash.
#[inline]
fn below(count: usize, hash: u64) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}

#[inline]
fn folded(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_touches_what_it_says() {
        let measured = run(&Options { sessions: 9000, batches: 3, seed: 1 }).expect("it runs");
        assert!(measured.touched_bytes == 9000 * 32 + 2000 * 64 && measured.ns.min > 0.0, "{measured:?}");
        assert!(measured.ns_end.is_some_and(|end| end.min > 0.0), "{measured:?}");
    }
}
