//! Our own tables against the library's, in one run: the index against hashbrown's tables, the port space against a set of ports.
//!
//! Knows keys and record numbers, no packets. The library is hashbrown with ahash, as everywhere in the product that is not on a packet's
//! way. Invariants: each table holds the same keys and is asked the same ones in the same order, by turns; each answer is checked.

use std::hint::black_box;
use std::time::Instant;

use ahash::RandomState;
use anyhow::{Result, ensure};
use clap::Args;
use hashbrown::{HashMap, HashSet, HashTable};
use portcullis_nat::internals::{HashIndex, Lines, Ports};
use portcullis_nat::policy::PortSet;
use serde::{Deserialize, Serialize};

use crate::clock::Watch;
use crate::figures::Figures;
use crate::flow::{FIRST_PORT, Flow, Flows, PORTS, SESSIONS_PER_HOST};
use crate::memory;
use crate::scramble::Draws;

/// Look-ups timed at once: eight bursts.
const BATCH: usize = 256;

/// What to compare.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Options {
    /// Entries of the tables.
    #[arg(long, default_value_t = 1000)]
    pub(crate) entries: u32,
    /// Batches of 256 look-ups.
    #[arg(long, default_value_t = 2000)]
    pub(crate) batches: u32,
    /// The seed of keys, draws and hashes.
    #[arg(long, default_value_t = 4)]
    pub(crate) seed: u64,
}

/// What was measured of look-ups. Each ends with reading the record that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) entries: u32,
    /// Of the process's memory, what lies on huge pages.
    pub(crate) huge_bytes: u64,
    /// Our index of record numbers.
    pub(crate) own: Table,
    /// `hashbrown::HashTable<u32>` of record numbers, with the same hash.
    pub(crate) table: Table,
    /// `hashbrown::HashMap` from the 5-tuple to the record number.
    pub(crate) map: Table,
}

/// One of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// Nanoseconds a look-up.
    pub(crate) ns: Figures,
    /// Bytes an entry, without the records. Of few entries it says little: memory comes in pages.
    pub(crate) bytes_per_entry: f64,
}

/// Two words that tell a 5-tuple from all others.
type Key = (u64, u64);

/// A record: a cache line with its key, as the NAT's.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Record {
    key: Key,
    number: u32,
}

fn key_of(flow: &Flow) -> Key {
    let Flow { protocol, internal, remote } = flow;
    let addresses = u64::from(internal.address.to_bits()) << 32 | u64::from(remote.address.to_bits());
    (addresses, u64::from(internal.port) << 32 | u64::from(remote.port) << 16 | *protocol as u64)
}

/// Compares look-ups.
pub(crate) fn run(options: &Options) -> Result<Measured> {
    let Options { entries, batches, seed } = *options;
    ensure!(entries > 0 && batches > 0, "--entries and --batches have to be at least 1");
    let flows = Flows::new(seed, entries, SESSIONS_PER_HOST);
    let hasher = RandomState::with_seeds(seed, 2, 3, 4);
    let records: Vec<Record> = (0..entries).map(|number| Record { key: key_of(&flows.of(number)), number }).collect();
    let mut sizes = Sizes::new()?;
    let mut lines = Lines::new(entries as usize);
    let mut index = lines.index();
    for record in &records {
        ensure!(index.insert(hasher.hash_one(record.key), record.number), "the index is full at {} of {entries}", record.number);
    }
    let own_bytes = sizes.grown(entries)?;
    let mut table = HashTable::with_capacity(entries as usize);
    for record in &records {
        table.insert_unique(hasher.hash_one(record.key), record.number, |&number| hasher.hash_one(records[number as usize].key));
    }
    let table_bytes = sizes.grown(entries)?;
    let mut map = HashMap::with_capacity_and_hasher(entries as usize, hasher.clone());
    map.extend(records.iter().map(|record| (record.key, record.number)));
    let map_bytes = sizes.grown(entries)?;
    let look_up = LookUp { records: &records, hasher: &hasher, index: &index, table: &table, map: &map };
    let [own, by_table, by_map] = look_up.measure(&flows, options)?;
    Ok(Measured {
        entries,
        huge_bytes: memory::resident_huge()?,
        own: Table { ns: own, bytes_per_entry: own_bytes },
        table: Table { ns: by_table, bytes_per_entry: table_bytes },
        map: Table { ns: by_map, bytes_per_entry: map_bytes },
    })
}

/// How much memory each table has touched.
struct Sizes(u64);

impl Sizes {
    fn new() -> Result<Self> {
        Ok(Self(memory::resident()?))
    }

    /// Bytes an entry since the last call.
    fn grown(&mut self, entries: u32) -> Result<f64> {
        let now = memory::resident()?;
        let grown = now.saturating_sub(self.0);
        self.0 = now;
        Ok(grown as f64 / f64::from(entries))
    }
}

struct LookUp<'a> {
    records: &'a [Record],
    hasher: &'a RandomState,
    index: &'a HashIndex<'a>,
    table: &'a HashTable<u32>,
    map: &'a HashMap<Key, u32, RandomState>,
}

impl LookUp<'_> {
    /// Times batches of random keys, the tables by turns. A tenth more comes first, untimed.
    fn measure(&self, flows: &Flows, options: &Options) -> Result<[Figures; 3]> {
        let watch = Watch::new();
        let mut draws = Draws::new(!options.seed);
        let mut keys = vec![(0, 0); BATCH];
        let mut samples: [Vec<f64>; 3] = Default::default();
        let warm = options.batches.div_ceil(10);
        for number in 0..options.batches + warm {
            for (table, samples) in samples.iter_mut().enumerate() {
                // New keys for each table: the one before would have left the records in the caches.
                let numbers: Vec<u32> = (0..BATCH).map(|_| draws.below(options.entries)).collect();
                keys.iter_mut().zip(&numbers).for_each(|(key, &number)| *key = key_of(&flows.of(number)));
                let start = Instant::now();
                let sum = self.sum(table, black_box(&keys));
                let ns = watch.since(start) / BATCH as f64;
                ensure!(sum == numbers.iter().map(|&number| u64::from(number)).sum::<u64>(), "a key was not found");
                if number >= warm {
                    samples.push(ns);
                }
            }
        }
        Ok(samples.map(Figures::of))
    }

    /// The sum of the numbers of the records of `keys`, by one of the tables.
    #[inline(never)]
    fn sum(&self, table: usize, keys: &[Key]) -> u64 {
        match table {
            0 => self
                .sum_by(keys, |key| self.index.find(self.hasher.hash_one(key), |number| self.records[number as usize].key == *key)),
            1 => self.sum_by(keys, |key| {
                self.table.find(self.hasher.hash_one(key), |&number| self.records[number as usize].key == *key).copied()
            }),
            _ => self.sum_by(keys, |key| self.map.get(key).copied()),
        }
    }

    #[inline]
    fn sum_by(&self, keys: &[Key], find: impl Fn(&Key) -> Option<u32>) -> u64 {
        keys.iter().filter_map(find).map(|number| u64::from(self.records[number as usize].number)).sum()
    }
}

/// What was measured of taking ports, at one fill.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PortsMeasured {
    /// The hundredths of the ports that are taken.
    pub(crate) percent: f64,
    /// Nanoseconds to take a port and give another one back: our port space.
    pub(crate) own: Figures,
    /// A set of the ports that are taken, and random tries until one is free.
    pub(crate) set: Figures,
    /// Of a hundred takings, those that need more than ten tries of the set.
    pub(crate) beyond_ten_tries: f64,
}

/// Takings timed at each fill.
const TAKINGS: u32 = 20_000;
/// Takings of one of the two before it is the other's turn: each finds its memory in the caches.
const TURN: u32 = 500;

/// Compares taking ports at each fill: one port is taken and one given back, at random, so that the fill stays.
pub(crate) fn ports(seed: u64) -> Result<Vec<PortsMeasured>> {
    [10.0, 99.0, 99.99].into_iter().map(|percent| ports_at(percent, seed)).collect()
}

#[expect(clippy::cast_sign_loss, reason = "a share of a count is not negative")]
fn ports_at(percent: f64, seed: u64) -> Result<PortsMeasured> {
    let filled = (f64::from(PORTS) * percent / 100.0) as u32;
    let (watch, mut draws) = (Watch::new(), Draws::new(seed));
    let mut own = Ports::new(&PortSet::range(FIRST_PORT, u16::MAX));
    let mut set =
        TriedSet { taken: HashSet::with_capacity_and_hasher(PORTS as usize, RandomState::with_seeds(seed, 2, 3, 4)), tries: 0 };
    let mut taken: [Vec<u16>; 2] = Default::default();
    for _ in 0..filled {
        taken[0].push(own.allocate(draws.below(65_536) as u16).unwrap_or_default());
        taken[1].push(set.allocate(&mut draws));
    }
    ensure!(!taken[0].contains(&0), "our port space gave no port before its last");
    let (mut samples, mut many): ([Vec<f64>; 2], u32) = (Default::default(), 0);
    for _ in 0..TAKINGS / TURN {
        for _ in 0..TURN {
            let (random, at) = (draws.below(65_536) as u16, draws.below(filled) as usize);
            let start = Instant::now();
            let port = own.allocate(random);
            own.release(taken[0][at]);
            samples[0].push(watch.since(start));
            taken[0][at] = port.unwrap_or_default();
            ensure!(port.is_some(), "our port space gave no port at {percent} %");
        }
        for _ in 0..TURN {
            let at = draws.below(filled) as usize;
            let start = Instant::now();
            let port = set.allocate(&mut draws);
            set.taken.remove(&taken[1][at]);
            samples[1].push(watch.since(start));
            taken[1][at] = port;
            many += u32::from(set.tries > 10);
        }
    }
    let [own, set] = samples.map(Figures::of);
    Ok(PortsMeasured { percent, own, set, beyond_ten_tries: f64::from(many) * 100.0 / f64::from(TAKINGS) })
}

/// Ports by random tries, without a bound.
struct TriedSet {
    taken: HashSet<u16, RandomState>,
    /// Of the last taking.
    tries: u32,
}

impl TriedSet {
    fn allocate(&mut self, draws: &mut Draws) -> u16 {
        self.tries = 0;
        loop {
            self.tries += 1;
            let port = FIRST_PORT + draws.below(PORTS) as u16;
            if self.taken.insert(port) {
                return port;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_finds_every_key() {
        let measured = run(&Options { entries: 5000, batches: 20, seed: 1 }).expect("it runs");
        assert!([measured.own, measured.table, measured.map].iter().all(|table| table.ns.min > 0.0), "{measured:?}");
    }

    #[test]
    fn random_tries_need_more_of_them_when_few_ports_are_free() {
        let measured = ports(1).expect("it runs");
        let many: Vec<_> = measured.iter().map(|fill| fill.beyond_ten_tries).collect();
        assert!(many[0] < 1.0 && many[1] > 50.0 && many[2] > 90.0, "{many:?}");
    }
}
