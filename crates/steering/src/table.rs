//! Indirection tables: from the low bits of a hash to a queue, and from there to a worker.
//!
//! Knows numbers of queues and workers. Called at start, to program NICs and to read what they have. Invariant: a table is a power of
//! two long, so that its index is the low bits of the hash; queue `q` is served by worker `q % workers`.
//! Source: linux `ethtool_rxfh_indir_default` (round robin). Why blocks: docs/steering.md.
//!
//! ```text
//! owners, 8 entries for 3 workers       0 0 0 1 1 1 2 2                     blocks: the highest index bits decide
//! the same in a NIC's table of 16       0 0 0 1 1 1 2 2 0 0 0 1 1 1 2 2     repeated: the 4th index bit does not count
//! its queues, with 6 queues             0 3 0 1 4 1 2 5 3 0 3 4 1 4 2 5     a worker's queues take turns
//! ```

use crate::owners::WorkerId;

/// The sizes of tables that NICs have as a rule. **Units:** entries.
pub const USUAL_SIZES: core::ops::RangeInclusive<usize> = 64..=2048;

/// The largest table that is read. Hash bits beyond 16 are not kept. **Units:** entries.
pub const LARGEST: usize = 1 << 16;

/// Shares of two workers may differ by one part in so many before a larger table is taken. Chosen: 3 %.
const EVENNESS: usize = 32;

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Its index is not the low bits of a hash.
    #[error("an indirection table of {entries} entries; only powers of two up to {LARGEST} can be predicted")]
    Size {
        /// Its entries.
        entries: usize,
    },
    /// It names a queue that is not there.
    #[error("entry {entry} of the indirection table leads to queue {queue}, and there are {queues}")]
    Queue {
        /// Which entry.
        entry: usize,
        /// The queue that it names.
        queue: u16,
        /// How many there are.
        queues: u16,
    },
    /// It has no room for what was to be repeated in it.
    #[error("an indirection table of {entries} entries is too small for {needed}")]
    TooSmall {
        /// Its entries.
        entries: usize,
        /// The entries to be repeated.
        needed: usize,
    },
    /// Nothing to spread over.
    #[error("no queues, or no workers")]
    Nobody,
}

/// The worker that serves a queue. **Panics:** without workers.
pub const fn worker_of_queue(queue: u16, workers: u16) -> WorkerId {
    WorkerId(queue % workers)
}

/// How many entries make the shares of `workers` even to 3 %: 128 to 2048.
pub fn entries_for(workers: u16) -> usize {
    let workers = usize::from(workers).max(1);
    let even = |entries: usize| entries.is_multiple_of(workers) || entries / workers >= EVENNESS;
    [128, 256, 512, 1024].into_iter().find(|&entries| even(entries)).unwrap_or(*USUAL_SIZES.end())
}

/// Workers in blocks of consecutive entries, whose lengths differ by one at most.
///
/// So the highest index bits decide, and those are what the last bits of a source address reach under a synthesised key: a small subnet
/// spreads over all workers, while round robin would give it to one. **Panics:** without workers.
pub fn blocks(entries: usize, workers: u16) -> Vec<WorkerId> {
    (0..entries).map(|entry| WorkerId((entry * usize::from(workers) / entries) as u16)).collect()
}

/// Queues in turn: what drivers set by themselves. **Panics:** without queues.
pub fn round_robin(entries: usize, queues: u16) -> Vec<u16> {
    (0..entries).map(|entry| (entry % usize::from(queues)) as u16).collect()
}

/// A NIC's table of `entries` that leads to the workers in `owners`, repeated as often as it fits. A worker's queues take turns; the
/// entries of a worker that has no queue here go to all queues in turn, and have to be handed off.
///
/// **Errors:** [`TableError`] for sizes that are no powers of two, a table with less room than `owners`, and no queues.
pub fn queues_of(owners: &[WorkerId], entries: usize, queues: u16, workers: u16) -> Result<Vec<u16>, TableError> {
    check_size(owners.len())?;
    check_size(entries)?;
    if queues == 0 || workers == 0 {
        return Err(TableError::Nobody);
    }
    if entries < owners.len() {
        return Err(TableError::TooSmall { entries, needed: owners.len() });
    }
    let mut turns = vec![0_u16; usize::from(workers)];
    let queue = |entry: usize| {
        let WorkerId(owner) = owners[entry % owners.len()];
        let turn = &mut turns[usize::from(owner % workers)];
        *turn = turn.wrapping_add(1);
        match queues_of_worker(owner, queues, workers) {
            0 => (turn.wrapping_sub(1).wrapping_add(owner)) % queues,
            own => owner + turn.wrapping_sub(1) % own * workers,
        }
    };
    Ok((0..entries).map(queue).collect())
}

/// The workers that a NIC's table leads to. **Errors:** [`TableError`] for its size, and for a queue that is not there.
pub fn workers_of(table: &[u16], queues: u16, workers: u16) -> Result<Vec<WorkerId>, TableError> {
    check_size(table.len())?;
    if workers == 0 {
        return Err(TableError::Nobody);
    }
    let worker = |(entry, &queue): (usize, &u16)| {
        if queue < queues { Ok(worker_of_queue(queue, workers)) } else { Err(TableError::Queue { entry, queue, queues }) }
    };
    table.iter().enumerate().map(worker).collect()
}

/// The shortest table that `table` repeats: the index bits beyond it do not count.
pub fn reduced<T: PartialEq>(mut table: &[T]) -> &[T] {
    while table.len() > 1 && table.len().is_multiple_of(2) && table[..table.len() / 2] == table[table.len() / 2..] {
        table = &table[..table.len() / 2];
    }
    table
}

/// The share of a NIC's entries that lead to another worker than the owner. **Panics:** without entries.
pub fn misplaced(owners: &[WorkerId], table: &[u16], workers: u16) -> f64 {
    let owner = |entry: usize| owners[entry % owners.len()];
    let wrong = table.iter().enumerate().filter(|&(entry, &queue)| worker_of_queue(queue, workers) != owner(entry));
    f64::from(wrong.count() as u32) / f64::from(table.len() as u32)
}

/// How many of the queues a worker serves.
pub(crate) const fn queues_of_worker(worker: u16, queues: u16, workers: u16) -> u16 {
    if worker < queues { (queues - worker).div_ceil(workers) } else { 0 }
}

/// Whether a table of that size can be indexed by the low bits of a hash.
pub(crate) const fn check_size(entries: usize) -> Result<(), TableError> {
    if entries.is_power_of_two() && entries <= LARGEST { Ok(()) } else { Err(TableError::Size { entries }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(numbers: impl Iterator<Item = u16>, of: u16) -> Vec<usize> {
        numbers.fold(vec![0; usize::from(of)], |mut counts, number| {
            counts[usize::from(number)] += 1;
            counts
        })
    }

    fn spread(counts: &[usize]) -> usize {
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    }

    #[test]
    fn the_picture_above_holds() {
        let owners = blocks(8, 3);
        assert_eq!(owners.iter().map(|worker| worker.0).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(queues_of(&owners, 16, 6, 3), Ok(vec![0, 3, 0, 1, 4, 1, 2, 5, 3, 0, 3, 4, 1, 4, 2, 5]));
    }

    #[test]
    fn shares_are_even_to_three_percent_up_to_64_workers() {
        for workers in 1..=64 {
            let entries = entries_for(workers);
            assert!(USUAL_SIZES.contains(&entries));
            let spread = spread(&counts(blocks(entries, workers).into_iter().map(|worker| worker.0), workers));
            assert!(spread * EVENNESS * usize::from(workers) <= entries, "{workers} workers");
        }
        assert_eq!([1, 2, 3, 4, 8, 16, 32, 128].map(entries_for), [128; 8]);
        assert_eq!([5, 6, 7, 9, 15, 33].map(entries_for), [256, 256, 256, 512, 512, 2048]);
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        assert_eq!(workers_of(&[0; 96], 4, 4), Err(TableError::Size { entries: 96 }));
        assert_eq!(workers_of(&[], 4, 4), Err(TableError::Size { entries: 0 }));
        assert_eq!(workers_of(&[0, 1, 4, 0], 4, 4), Err(TableError::Queue { entry: 2, queue: 4, queues: 4 }));
        assert_eq!(queues_of(&blocks(128, 2), 64, 2, 2), Err(TableError::TooSmall { entries: 64, needed: 128 }));
        assert_eq!(queues_of(&blocks(128, 2), 128, 0, 2), Err(TableError::Nobody));
    }

    #[test]
    fn round_robin_over_four_queues_asks_for_two_bits_only() {
        assert_eq!(reduced(&round_robin(512, 4)), [0, 1, 2, 3]);
        assert_eq!(reduced(&round_robin(512, 3)).len(), 512);
        assert_eq!(reduced(&blocks(512, 4)).len(), 512);
        assert_eq!(reduced(&[7; 64]), [7]);
        assert_eq!(reduced::<u16>(&[]), [0_u16; 0]);
    }

    #[test]
    fn workers_without_a_queue_are_the_misplaced_share() {
        let owners = blocks(128, 4);
        let table = queues_of(&owners, 256, 2, 4).unwrap();
        assert!((misplaced(&owners, &table, 4) - 0.5).abs() < 1e-9);
        assert_eq!(spread(&counts(table.into_iter(), 2)), 0, "what is misplaced does not burden one queue");
    }

    proptest! {
        #[test]
        fn a_table_leads_back_to_the_owners_and_uses_all_queues_evenly(
            workers in 1_u16..=16, times in 1_u16..=4, size in 6_u32..=11, repeated in 0_u32..=2
        ) {
            let (owners, queues) = (blocks(1 << size, workers), workers * times);
            let table = queues_of(&owners, 1 << (size + repeated), queues, workers).unwrap();
            let back = workers_of(&table, queues, workers).unwrap();
            prop_assert_eq!(reduced(&back), reduced(&owners));
            prop_assert!(misplaced(&owners, &table, workers) == 0.0);
            let of_queues = counts(table.iter().copied(), queues);
            prop_assert!(spread(&of_queues) <= (1 << repeated) + 1, "{:?}", of_queues);
        }

        #[test]
        fn more_queues_than_workers_are_all_used(workers in 1_u16..=8, queues in 1_u16..=32) {
            let table = queues_of(&blocks(256, workers), 256, queues, workers).unwrap();
            prop_assert!(counts(table.into_iter(), queues).into_iter().all(|count| count > 0));
        }
    }
}
