//! The floor of an end: what it costs to write the lines of memory that a session's end has to write, and nothing else.
//!
//! Knows memory, nothing of the NAT. What ends is the record, which says what it is the key of; and the lines of the index that the session and
//! its mapping are in, three of them. As the sweep does, it takes one record of thirty (two minutes' rounds of four seconds),
//! and asks for the lines of 32 together before it writes the first. Nothing is compared, hashed well or counted, and the subscriber and the
//! ports' bitmap are left out.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use memmap2::MmapMut;

use super::{LINE, RECORD, below, folded, index_lines};
use crate::clock::Watch;
use crate::figures::Figures;
use crate::memory::{self, Wanted};

/// Sessions whose lines are asked for together.
const TOGETHER: usize = 32;
/// Ends that the clock is read for once.
const BATCH: usize = 8 * TOGETHER;
/// Of so many records one ends in a round of the sweep.
const ROUNDS: usize = 30;
/// Entries of the indexes that a session has.
const KEYS: usize = 3;

struct Memory {
    records: MmapMut,
    lines: MmapMut,
}

/// Nanoseconds an end, of so many sessions.
pub(super) fn measure(sessions: u32, batches: u32) -> Result<Figures> {
    let sessions = sessions as usize;
    let mut memory = Memory {
        records: memory::region(sessions * RECORD, Wanted::Huge)?.0,
        lines: memory::region(index_lines(KEYS * sessions) * LINE, Wanted::Huge)?.0,
    };
    for region in [&mut memory.records, &mut memory.lines] {
        region.fill(1);
    }
    let watch = Watch::new();
    let (warm, mut samples) = (batches.div_ceil(10), Vec::with_capacity(batches as usize));
    for number in 0..warm + batches {
        let start = Instant::now();
        for together in 0..BATCH / TOGETHER {
            let first = (number as usize * BATCH + together * TOGETHER) * ROUNDS;
            end(black_box(first), sessions, &mut memory);
        }
        let ns = watch.since(start) / BATCH as f64;
        if number >= warm {
            samples.push(ns);
        }
    }
    Ok(Figures::of(samples))
}

/// Ends [`TOGETHER`] sessions from `first` on, each [`ROUNDS`] records after the other.
fn end(first: usize, sessions: usize, memory: &mut Memory) {
    let records: [usize; TOGETHER] = std::array::from_fn(|at| (first + at * ROUNDS) % sessions * RECORD);
    for record in records {
        safe_arch::prefetch_t0(&memory.records[record]);
    }
    let places = records.map(|record| {
        // Nobody knows where these are before the record has come.
        let key = u64::from(memory.records[record + 8]) ^ record as u64;
        let hash = |salt| folded(key ^ 0x9E37_79B9_7F4A_7C15, salt);
        let salts: [u64; KEYS] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB, 0xD6E8_FEB8_6659_FD93];
        let lines = salts.map(|salt| below(index_lines(KEYS * sessions), hash(salt)) * LINE);
        for line in lines {
            safe_arch::prefetch_t0(&memory.lines[line]);
        }
        (record, lines)
    });
    for (record, lines) in places {
        for line in lines {
            memory.lines[line] = memory.lines[line].wrapping_add(1);
        }
        memory.records[record] = memory.records[record].wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_writes_a_record_and_three_lines() {
        let (sessions, region) = (9000, |bytes| memory::region(bytes, Wanted::Ordinary).expect("memory").0);
        let mut memory = Memory { records: region(sessions * RECORD), lines: region(index_lines(KEYS * sessions) * LINE) };
        end(30, sessions, &mut memory);
        let sum = |region: &MmapMut| region.iter().map(|&byte| usize::from(byte)).sum::<usize>();
        assert_eq!([&memory.records, &memory.lines].map(sum), [TOGETHER, KEYS * TOGETHER]);
        assert!((0..TOGETHER).all(|at| memory.records[(1 + at) * ROUNDS * RECORD] == 1));
    }
}
