//! A stand-in for a log of mappings: what it would cost the worker to give a record of each new one away.
//!
//! Knows endpoints and nothing of the NAT; the product has no such log yet. Pages of records go to a thread that reads them all, as one that
//! writes them to a file or a collector would, and come back empty. Invariant: the worker's side never waits; a page that finds no room is
//! counted as lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};
use crossbeam::queue::ArrayQueue;
use portcullis_nat::Packet;

/// Records that are given away together.
const PAGE: usize = 128;
/// Pages that there are: a quarter of a second's records at half a million a second.
const PAGES: usize = 1024;

/// An address and port, as they stand in the packet.
type Endpoint = [u8; 6];

/// A new mapping, in 24 bytes.
#[derive(Clone, Copy, Debug)]
struct Record {
    at: u64,
    internal: Endpoint,
    external: Endpoint,
    protocol: u8,
}

/// The worker's side.
pub(crate) struct Log {
    page: Vec<Record>,
    pages: Arc<Pages>,
    reader: Option<JoinHandle<u64>>,
    given: u64,
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
            let mut page = vec![Record { at: 1, internal: [1; 6], external: [1; 6], protocol: 1 }; PAGE];
            page.clear();
            page
        };
        while pages.empty.push(page()).is_ok() {}
        let pages = Arc::new(pages);
        let of_reader = Arc::clone(&pages);
        let reader = std::thread::Builder::new().name("records".into()).spawn(move || of_reader.read())?;
        Ok(Self { page: page(), pages, reader: Some(reader), given: 0 })
    }

    /// Where the packets come from: before they are translated.
    pub(crate) fn sources(packets: &[Packet<'_>]) -> Vec<Endpoint> {
        packets.iter().map(source).collect()
    }

    /// Gives a record of each packet's mapping away, after it was translated. What the worker would do with what its tables have.
    #[inline(never)]
    pub(crate) fn write(&mut self, packets: &[Packet<'_>], internal: &[Endpoint], at: u64) {
        for (packet, &internal) in packets.iter().zip(internal) {
            self.page.push(Record { at, internal, external: source(packet), protocol: packet.buffer[23] });
            if self.page.len() == PAGE {
                self.give();
            }
        }
    }

    fn give(&mut self) {
        let Some(empty) = self.pages.empty.pop() else {
            self.page.clear();
            return;
        };
        let page = std::mem::replace(&mut self.page, empty);
        // There is room for all pages.
        if self.pages.full.push(page).is_ok() {
            self.given += PAGE as u64;
        }
    }

    /// How many records were given away, and read. **Errors:** they are not as many.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.pages.is_over.store(true, Ordering::Release);
        let reader = self.reader.take().ok_or_else(|| anyhow!("nobody reads the log"))?;
        let read = reader.join().map_err(|_| anyhow!("the log's reader panicked"))?;
        anyhow::ensure!(read == self.given, "{} records were given away, and {read} were read", self.given);
        Ok(read)
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
                count +=
                    page.iter().filter(|record| record.at > 0 && record.protocol > 0 && record.internal != record.external).count()
                        as u64;
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

/// The source of an untagged packet without IPv4 options.
#[inline]
fn source(packet: &Packet<'_>) -> Endpoint {
    let mut address_and_port = [0; 6];
    address_and_port[..4].copy_from_slice(&packet.buffer[26..30]);
    address_and_port[4..].copy_from_slice(&packet.buffer[34..36]);
    address_and_port
}
