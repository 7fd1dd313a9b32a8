//! A board of numbers with one writer: readers copy all of it as it was at one moment, without a lock (a sequence lock).
//!
//! Knows words, not what they mean; the door "counters out" gives them meaning. The writer stores, and never waits; a reader that
//! meets a write tries again. Invariant: what a reader returns was on the board as a whole.
//! Source: H.-J. Boehm, "Can seqlocks get along with programming language memory models?", MSPC 2012, figure 6.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use super::sync::{AtomicU64, Ordering, fence, spin_loop};

#[derive(Debug)]
struct Board {
    /// Odd while a write is under way. Alone on its cache line: readers that poll it do not slow the words down.
    sequence: CachePadded<AtomicU64>,
    words: Box<[AtomicU64]>,
}

/// The side that writes.
#[derive(Debug)]
pub(super) struct Writer {
    board: Arc<Board>,
}

/// The side that reads.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    board: Arc<Board>,
}

/// The two sides of a board of `words` zeroes.
pub(super) fn open(words: usize) -> (Writer, Reader) {
    let words = (0..words).map(|_| AtomicU64::new(0)).collect();
    let board = Arc::new(Board { sequence: CachePadded::new(AtomicU64::new(0)), words });
    (Writer { board: Arc::clone(&board) }, Reader { board })
}

impl Writer {
    /// How many words the board has.
    pub(super) fn len(&self) -> usize {
        self.board.words.len()
    }

    /// Writes `values` from the first word on; words without a value become zero, values without a word are left out. Never waits.
    pub(super) fn write(&mut self, values: impl Iterator<Item = u64>) {
        let sequence = self.board.sequence.load(Ordering::Relaxed);
        self.board.sequence.store(sequence + 1, Ordering::Relaxed);
        // A reader that sees one of the words below sees the odd sequence too.
        fence(Ordering::Release);
        let values = values.chain(std::iter::repeat(0));
        for (word, value) in self.board.words.iter().zip(values) {
            word.store(value, Ordering::Relaxed);
        }
        self.board.sequence.store(sequence + 2, Ordering::Release);
    }
}

impl Reader {
    /// Copies the board into `words`. Tries again while a write is under way: writes are short and rare (see `counters.rs`).
    pub(super) fn read(&self, words: &mut Vec<u64>) {
        loop {
            let before = self.board.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                words.clear();
                words.extend(self.board.words.iter().map(|word| word.load(Ordering::Relaxed)));
                // The words are read before the sequence is looked at again.
                fence(Ordering::Acquire);
                if self.board.sequence.load(Ordering::Relaxed) == before {
                    return;
                }
            }
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sync::{model, thread};
    use super::*;

    #[test]
    fn a_reader_sees_whole_boards_only_and_time_goes_forward() {
        model(|| {
            let (mut writer, reader) = open(2);
            let writing = thread::spawn(move || {
                for round in 1..=2 {
                    writer.write([round, 10 * round].into_iter());
                }
            });
            let mut words = Vec::new();
            let mut last = 0;
            for _ in 0..2 {
                reader.read(&mut words);
                assert_eq!(words[1], 10 * words[0], "torn");
                assert!(words[0] >= last, "older than before");
                last = words[0];
            }
            writing.join().expect("the writer ends");
            reader.read(&mut words);
            assert_eq!(words, [2, 20]);
        });
    }

    #[test]
    fn a_board_takes_what_fits_and_clears_the_rest() {
        model(|| {
            let (mut writer, reader) = open(2);
            let mut words = Vec::new();
            writer.write([1, 2, 3].into_iter());
            reader.read(&mut words);
            assert_eq!(words, [1, 2]);
            writer.write([4].into_iter());
            reader.read(&mut words);
            assert_eq!(words, [4, 0]);
        });
    }
}
