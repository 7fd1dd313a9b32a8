//! Counts pktgen's packets at a port as they come in, and drops them or sends them back.
//!
//! Knows the program of count.bpf.c and how to read its counts; not who sends. Called when a run begins, and around each trial. Invariant:
//! the program goes with its handle. Attaching makes some cards' links go down for seconds, so it stays for the whole run.
//! Tests: below, and `tests/pktgen.rs` (root).

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle};

use crate::address::AddressRange;
use crate::count_skeleton::{CountSkelBuilder, types};
use crate::interface;

/// As in count.bpf.c.
const QUEUES: u32 = 64;

/// What must not arrive at a port, because the gateway has to translate it. None: nothing is looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forbidden {
    /// As a source: the inside hosts, at the outside port.
    pub sources: Option<AddressRange>,
    /// As a destination: the external address, at the inside port.
    pub destinations: Option<AddressRange>,
}

/// Whether packets are sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They are dropped.
    No,
    /// They are sent back to where they came from.
    Yes,
}

/// Packets of pktgen's that have come to a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// All.
    pub packets: u64,
    /// Those with an address that should have been translated.
    pub untranslated: u64,
    /// By receive queue, up to the last that has had any.
    pub queues: Vec<u64>,
}

impl Counted {
    /// What has come since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let queue = |(at, now): (usize, &u64)| now.saturating_sub(before.queues.get(at).copied().unwrap_or(0));
        Self {
            packets: self.packets.saturating_sub(before.packets),
            untranslated: self.untranslated.saturating_sub(before.untranslated),
            queues: self.queues.iter().enumerate().map(queue).collect(),
        }
    }
}

/// The program at a port, counting.
pub struct Counter {
    link: Link,
    counts: MapHandle,
    answer: MapHandle,
    interface: String,
}

impl Counter {
    /// Starts to count at an interface of the calling thread's network namespace.
    ///
    /// **Errors:** no such interface; another XDP program is there; without root.
    pub fn attach(name: &str, forbidden: Forbidden) -> Result<Self> {
        let index = interface::index(name)?;
        let mut object = MaybeUninit::uninit();
        let mut open = CountSkelBuilder::default().open(&mut object).context("opening the counting program")?;
        let constants = open.maps.rodata_data.as_mut().context("the counting program has no constants")?;
        constants.untranslated.sources = range(forbidden.sources);
        constants.untranslated.destinations = range(forbidden.destinations);
        let program = open.load().context("loading the counting program (needs root, or CAP_NET_ADMIN and CAP_BPF)")?;
        let link = program.progs.count.attach_xdp(index.cast_signed()).with_context(|| {
            format!("port {name}: attaching the counting program (is another XDP program there? `--count port` does without)")
        })?;
        let handle = |map| MapHandle::try_from(map).context("the counting program's maps");
        let (counts, answer) = (handle(&program.maps.counts)?, handle(&program.maps.answer)?);
        Ok(Self { link, counts, answer, interface: name.into() })
    }

    /// Whether packets are sent back from now on.
    pub fn set_answer(&self, answer: Answer) -> Result<()> {
        let value = u32::from(answer == Answer::Yes).to_ne_bytes();
        let written = self.answer.update(&0_u32.to_ne_bytes(), &value, MapFlags::ANY);
        written.with_context(|| format!("port {}: telling the counting program whether to answer", self.interface))
    }

    /// What has come since the program was attached.
    pub fn read(&self) -> Result<Counted> {
        let mut all = Counted::default();
        for queue in 0..QUEUES {
            let values = self.counts.lookup_percpu(&queue.to_ne_bytes(), MapFlags::ANY);
            let values = values.with_context(|| format!("port {}: reading the counts", self.interface))?.unwrap_or_default();
            let mut packets = 0;
            for value in &values {
                let (had, untranslated) = parse(value).context("a count that is not two numbers")?;
                packets += had;
                all.untranslated += untranslated;
            }
            all.packets += packets;
            all.queues.push(packets);
        }
        let used = all.queues.iter().rposition(|&packets| packets > 0).map_or(0, |last| last + 1);
        all.queues.truncate(used);
        Ok(all)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Closing it is not enough: a child that was forked at this moment holds it open until it has started its program.
        let _gone_already = self.link.detach();
    }
}

/// `struct counted` of count.bpf.c.
fn parse(value: &[u8]) -> Option<(u64, u64)> {
    let (packets, rest) = value.split_first_chunk()?;
    Some((u64::from_ne_bytes(*packets), u64::from_ne_bytes(*rest.first_chunk()?)))
}

/// The program's form of a range; one that no address is in when there is none.
fn range(addresses: Option<AddressRange>) -> types::range {
    let Some(addresses) = addresses else { return types::range { first: 1, last: 0 } };
    let first = u32::from(addresses.first());
    types::range { first, last: first + (addresses.count() - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_meanwhile_is_the_difference_by_queue() {
        let before = Counted { packets: 10, untranslated: 1, queues: vec![4, 6] };
        let after = Counted { packets: 25, untranslated: 1, queues: vec![4, 16, 5] };
        assert_eq!(after.since(&before), Counted { packets: 15, untranslated: 0, queues: vec![0, 10, 5] });
    }

    #[test]
    fn no_address_is_in_the_range_of_none() {
        let types::range { first, last } = range(None);
        assert!(first > last);
        let types::range { first, last } = range(Some("10.1.0.0/30".parse().unwrap()));
        assert_eq!((first, last), (0x0a01_0000, 0x0a01_0003));
    }

    #[test]
    fn a_count_is_two_numbers() {
        let bytes: Vec<u8> = [7_u64, 2].iter().flat_map(|number| number.to_ne_bytes()).collect();
        assert_eq!(parse(&bytes), Some((7, 2)));
        assert_eq!(parse(&bytes[..12]), None);
    }
}
