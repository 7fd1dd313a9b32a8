//! A stand-in for a log of mappings: what it would cost the worker to give a record of each new one away.
//!
//! Knows endpoints and nothing of the NAT; the product has no such log yet. Pages of records go to a thread that reads them all, as one that
//! writes them to a file or a collector would, and come back empty. Invariant: the worker's side never waits; what finds no room is counted
//! as lost.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow, ensure};
use crossbeam::queue::ArrayQueue;
use portcullis_nat::policy::Endpoint;

/// Records that are given away together.
const PAGE: usize = 128;
/// Pages that there are: a quarter of a second's records at half a million a second.
const PAGES: usize = 1024;

/// A new mapping, in 24 bytes.
#[derive(Clone, Copy, Debug)]
struct Record {
    at: u64,
    internal: Endpoint,
    external: Endpoint,
}

/// The worker's side.
pub(crate) struct Log {
    page: Vec<Record>,
    pages: Arc<Pages>,
    reader: Option<JoinHandle<u64>>,
    /// Records given away.
    given: u64,
    /// Records that found no room.
    lost: u64,
}

struct Pages {
    full: ArrayQueue<Vec<Record>>,
    empty: ArrayQueue<Vec<Record>>,
    is_over: AtomicBool,
}

impl Log {
    /// A log whose pages are touched, and the thread that reads it.
    pub(crate) fn new() -> Result<Self> {
        let pages = Pages { full: ArrayQueue::new(PAGES), empty: ArrayQueue::new(PAGES), is_over: AtomicBool::new(false) };
        let page = || {
            let touched = Endpoint { address: Ipv4Addr::BROADCAST, port: 1 };
            let mut page = vec![Record { at: 1, internal: touched, external: touched }; PAGE];
            page.clear();
            page
        };
        while pages.empty.push(page()).is_ok() {}
        let pages = Arc::new(pages);
        let of_reader = Arc::clone(&pages);
        let reader = std::thread::Builder::new().name("records".into()).spawn(move || of_reader.read())?;
        Ok(Self { page: page(), pages, reader: Some(reader), given: 0, lost: 0 })
    }

    /// Gives a record of each mapping away. What the worker would do with what its tables have.
    #[inline(never)]
    pub(crate) fn write(&mut self, internal: &[Endpoint], external: impl Iterator<Item = Endpoint>, at: u64) {
        for (&internal, external) in internal.iter().zip(external) {
            self.page.push(Record { at, internal, external });
            if self.page.len() == PAGE {
                self.give();
            }
        }
    }

    fn give(&mut self) {
        let Some(empty) = self.pages.empty.pop() else {
            self.page.clear();
            self.lost += PAGE as u64;
            return;
        };
        let page = std::mem::replace(&mut self.page, empty);
        // There is room for all pages.
        if self.pages.full.push(page).is_ok() {
            self.given += PAGE as u64;
        }
    }

    /// How many records were lost. **Errors:** not as many were read as were given away.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.pages.is_over.store(true, Ordering::Release);
        let reader = self.reader.take().ok_or_else(|| anyhow!("nobody reads the log"))?;
        let read = reader.join().map_err(|_| anyhow!("the log's reader panicked"))?;
        ensure!(read == self.given, "{} records were given away, and {read} were read", self.given);
        Ok(self.lost)
    }
}

/// The reader ends with the log, whatever else failed.
impl Drop for Log {
    fn drop(&mut self) {
        self.pages.is_over.store(true, Ordering::Release);
    }
}

impl Pages {
    /// Reads every record. Returns how many there were.
    fn read(&self) -> u64 {
        let mut count = 0;
        loop {
            // Looked at first: what was given away before it is still read.
            let is_over = self.is_over.load(Ordering::Acquire);
            while let Some(mut page) = self.full.pop() {
                let records = page.iter().filter(|record| record.at > 0 && record.internal != record.external);
                count += records.count() as u64;
                page.clear();
                let _ = self.empty.push(page);
            }
            if is_over {
                return count;
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_read_or_lost() {
        let mut log = Log::new().expect("a thread");
        let endpoint = |port| Endpoint { address: Ipv4Addr::LOCALHOST, port };
        for _ in 0..4 * PAGES {
            log.write(&[endpoint(1); PAGE], (2..).map(endpoint), 1);
        }
        let given = log.given;
        let lost = log.finish().expect("all that were given away are read");
        assert_eq!(given + lost, (4 * PAGES * PAGE) as u64);
        assert!(given >= (PAGES * PAGE) as u64, "{given}");
    }
}
