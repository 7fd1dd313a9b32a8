//! How many packets may wait in the rx ring of a queue that its worker runs, before what comes is left to the device to drop.
//!
//! Knows numbers, no rings. A burst, or a worker that is slow for a tenth of a second, is to lose nothing: for these there is the whole ring.
//! Where packets have waited for longer there are more than the worker can do: then a long queue only makes all of them late and keeps
//! them out of the caches. (RFC 7567, section 2; the two kinds of queue of RFC 8289, section 3.) Asked by [`super::Socket`] before each run.
//! Invariant: what a run takes has room in a ring of 512 or more. Tests: below.

use crate::napi::{DRIVEN_BUDGET, POLLS};

/// What a run of the queue takes at most.
const RUN: usize = POLLS as usize * DRIVEN_BUDGET as usize;
/// How many may wait in overload. Chosen: four times what a veth's ring holds; a worker does as many in a millisecond or two.
const STANDING: usize = 1024;
/// After how many packets the queue has been too long for too long, by the entries of the ring. Chosen: of 8192, a worker does as many in a
/// few tenths of a second; the longest spell seen of a machine that was slow by itself took 52,000, and a full ring at nine tenths of what the
/// worker can do takes 74,000 to empty.
const PATIENCE: usize = 16;

/// The state of one queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Packets taken from the ring since it was last almost empty.
    taken: usize,
}

impl Backlog {
    /// Counts packets that were taken from the ring.
    #[inline]
    pub(super) fn note(&mut self, taken: usize) {
        self.taken = self.taken.saturating_add(taken);
    }

    /// Whether enough packets wait for now: `waiting` in a ring of `entries`.
    #[inline]
    pub(super) fn is_long(&mut self, waiting: usize, entries: usize) -> bool {
        let standing = STANDING.min(entries / 2);
        if waiting < standing / 2 {
            self.taken = 0;
            return false;
        }
        let most = if self.taken < PATIENCE * entries { standing.max(entries.saturating_sub(RUN)) } else { standing };
        waiting >= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From how many waiting packets on the queue is not run, for a worker that has taken `taken` with many waiting.
    fn most(entries: usize, taken: usize) -> usize {
        let long = |waiting| Backlog { taken }.is_long(waiting, entries);
        (0..=entries).find(|&waiting| long(waiting)).expect("a full ring is long")
    }

    #[test]
    fn a_burst_may_fill_the_ring_but_for_one_run_and_overload_a_part_of_it() {
        for (entries, burst, overload) in [(8192, 7936, 1024), (2048, 1792, 1024), (512, 256, 256), (256, 128, 128), (64, 32, 32)] {
            assert_eq!((most(entries, 0), most(entries, PATIENCE * entries)), (burst, overload), "{entries} entries");
        }
    }

    #[test]
    fn a_queue_is_in_overload_until_it_has_been_almost_empty() {
        let (entries, burst) = (8192, 64);
        let mut backlog = Backlog::default();
        let round = (1..=PATIENCE * entries).find(|_| {
            backlog.note(burst);
            backlog.is_long(2000, entries)
        });
        assert_eq!(round, Some(PATIENCE * entries / burst));
        assert!(backlog.is_long(1024, entries) && !backlog.is_long(1023, entries), "as many as may wait in overload");
        assert!(!backlog.is_long(512, entries) && backlog.is_long(1024, entries), "it is not over");
        assert!(!backlog.is_long(511, entries) && !backlog.is_long(7935, entries), "it is");
    }
}
