//! The verifying sink: attaches sink.bpf.c to an end of the tester and reads what it counted.
//!
//! Knows an interface and what to expect there, nothing of what is between the ends. The same checks as `portcullis-bench sink`, but made
//! where the frame is received: a packet socket would cost the tester more than the gateway costs. Invariant: counts only grow.
//! Tests: below.

use std::mem::MaybeUninit;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, OpenObject};
use nix::net::if_::if_nametoindex;
use portcullis_bench::address::AddressRange;
use portcullis_bench::stream::Stream;
use serde::{Deserialize, Serialize};

use skeleton::{SinkSkel, SinkSkelBuilder, types};

/// The compiled program.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, clippy::restriction)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/sink.skel.rs"));
}

/// Latency buckets of a power of two, as its exponent. The program has the same.
const SUB_BITS: u32 = 5;
/// Bytes of Ethernet and IPv4 header.
const BEFORE_UDP: usize = 34;
/// Latency beyond this is counted as this. **Units:** nanoseconds.
const LATENCY_MAX: u64 = 60_000_000_000;

/// What becomes of a packet that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It ends here.
    Drop,
    /// It goes back to where it came from, ports and addresses swapped.
    Reflect,
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where packets arrive; their source is the external endpoint.
    Far(Then),
    /// Where answers arrive; their destination has to be the flow's own endpoint.
    Near,
}

/// A sink that is attached.
pub struct Sink<'object> {
    program: SinkSkel<'object>,
    link: Link,
}

/// What a sink has counted since it was attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets of the generator, whatever their state.
    pub received: u64,
    /// Those with right checksums, each once.
    pub distinct: u64,
    /// Flows of which anything was seen.
    pub flows: u64,
    /// What was wrong.
    pub wrong: Wrong,
    latency: Vec<u64>,
}

/// What was wrong with packets, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// Wrong IPv4 header checksums.
    pub ip_checksum: u64,
    /// Wrong UDP checksums.
    pub udp_checksum: u64,
    /// From an address that is not expected, or back to an endpoint that is not the flow's.
    pub endpoint: u64,
    /// From another endpoint than the packet before of the same flow.
    pub changed_endpoint: u64,
    /// After a later one of its flow.
    pub reordered: u64,
    /// Twice.
    pub duplicates: u64,
}

impl<'object> Sink<'object> {
    /// Attaches to `interface` of the calling thread's namespace, for packets of `stream` that come from `sources`, and for those of
    /// `passing` more flows after its own, which may be forgotten and begin anew.
    ///
    /// **Errors:** without `CAP_NET_ADMIN` and `CAP_BPF`; when another XDP program is attached.
    pub fn open(
        object: &'object mut MaybeUninit<OpenObject>,
        interface: &str,
        end: End,
        stream: &Stream,
        sources: AddressRange,
        passing: u32,
    ) -> Result<Self> {
        let records = stream.flows + passing;
        let index = if_nametoindex(interface).with_context(|| format!("interface {interface}"))?;
        ensure!(stream.size.is_multiple_of(2), "size {}: the sink sums whole 16-bit words: an even size", stream.size);
        let mut open = SinkSkelBuilder::default().open(object).context("opening the sink's program")?;
        open.maps.flows.set_max_entries(records).context("the sink's table of flows")?;
        let constants = open.maps.rodata_data.as_mut().context("the sink's program has no constants")?;
        let first = u32::from(sources.first());
        constants.expected = types::expected {
            flows: records,
            steady: stream.flows,
            udp_len: (stream.size - BEFORE_UDP) as u32,
            from_first: first,
            from_last: first + sources.count() - 1,
            reflect: u32::from(end == End::Far(Then::Reflect)),
            home: u32::from(end == End::Near),
            src: types::range { first: stream.sources.first().into(), count: stream.sources.count() },
            sport: types::range { first: stream.source_ports.first().into(), count: stream.source_ports.count() },
        };
        let program = open.load().context("loading the sink's program (needs root, or CAP_NET_ADMIN and CAP_BPF)")?;
        let link = program.progs.sink.attach_xdp(index.cast_signed());
        let link = link.with_context(|| format!("interface {interface}: attaching the sink (is another XDP program attached?)"))?;
        Ok(Self { program, link })
    }

    /// What it has counted until now.
    pub fn counts(&self) -> Result<Counts> {
        let bytes = self.program.maps.bss.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).context("reading the sink's counts")?;
        let bytes = bytes.context("the sink has no counts")?;
        let mut words = bytes.chunks_exact(8).filter_map(|chunk| chunk.first_chunk()).map(|word| u64::from_ne_bytes(*word));
        let mut next = || words.next().context("the sink's counts end early");
        let (received, distinct, flows) = (next()?, next()?, next()?);
        let wrong = Wrong {
            ip_checksum: next()?,
            udp_checksum: next()?,
            endpoint: next()?,
            changed_endpoint: next()?,
            reordered: next()?,
            duplicates: next()?,
        };
        let _foreign = next()?;
        Ok(Counts { received, distinct, flows, wrong, latency: words.collect() })
    }
}

impl Drop for Sink<'_> {
    fn drop(&mut self) {
        // Closing it is not enough: a child that was forked at this moment holds it open until it has started its program.
        let _gone_already = self.link.detach();
    }
}

impl Counts {
    /// What came since `before`. The count of flows stays that of all.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let latency = self.latency.iter().zip(before.latency.iter()).map(|(now, then)| now - then).collect();
        Self {
            received: self.received - before.received,
            distinct: self.distinct - before.distinct,
            flows: self.flows,
            wrong: self.wrong.since(before.wrong),
            latency,
        }
    }

    /// Latency's distribution, within 3 %. **Units:** nanoseconds.
    pub fn latency(&self) -> Result<Histogram<u64>> {
        let mut histogram = Histogram::new_with_bounds(1, LATENCY_MAX, 3)?;
        for (bucket, &count) in self.latency.iter().enumerate().filter(|(_, count)| **count > 0) {
            histogram.saturating_record_n(middle(bucket as u64).clamp(1, LATENCY_MAX), count);
        }
        Ok(histogram)
    }
}

impl Wrong {
    fn since(self, before: Self) -> Self {
        Self {
            ip_checksum: self.ip_checksum - before.ip_checksum,
            udp_checksum: self.udp_checksum - before.udp_checksum,
            endpoint: self.endpoint - before.endpoint,
            changed_endpoint: self.changed_endpoint - before.changed_endpoint,
            reordered: self.reordered - before.reordered,
            duplicates: self.duplicates - before.duplicates,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            ip_checksum: self.ip_checksum + other.ip_checksum,
            udp_checksum: self.udp_checksum + other.udp_checksum,
            endpoint: self.endpoint + other.endpoint,
            changed_endpoint: self.changed_endpoint + other.changed_endpoint,
            reordered: self.reordered + other.reordered,
            duplicates: self.duplicates + other.duplicates,
        }
    }

    /// Whether anything was that a gateway may never do. A packet may come late.
    pub fn is_fault(self) -> bool {
        Self { reordered: 0, ..self } != Self::default()
    }
}

/// The value in the middle of a latency bucket: the inverse of `count_latency`.
fn middle(bucket: u64) -> u64 {
    let (power, sub) = (bucket >> SUB_BITS, bucket & ((1 << SUB_BITS) - 1));
    if power == 0 {
        return sub;
    }
    let shift = (power - 1) as u32;
    let low = ((1 << SUB_BITS) + sub).checked_shl(shift).unwrap_or(u64::MAX);
    low.saturating_add((1_u64.checked_shl(shift).unwrap_or(u64::MAX)) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the program does.
    fn bucket(latency: u64) -> u64 {
        let power = latency.checked_ilog2().unwrap_or(0);
        if power < SUB_BITS {
            return latency;
        }
        let shift = power - SUB_BITS;
        u64::from(shift + 1) << SUB_BITS | (latency >> shift) & ((1 << SUB_BITS) - 1)
    }

    #[test]
    fn a_buckets_middle_is_within_three_percent_of_what_is_in_it() {
        for latency in [0, 1, 31, 32, 33, 63, 64, 1000, 27_407, 1_000_000, 59_999_999_999, u64::MAX] {
            let (middle, bucket) = (middle(bucket(latency)), bucket(latency));
            assert!(bucket < 64 << SUB_BITS, "{latency}");
            assert!(middle.abs_diff(latency) as f64 <= latency as f64 * 0.03, "{latency}: {middle}");
        }
    }

    #[test]
    fn latency_is_read_out_of_buckets_and_late_packets_are_no_fault() {
        let mut counts = Counts { latency: vec![0; 64 << SUB_BITS], ..Counts::default() };
        counts.latency[bucket(10_000) as usize] = 99;
        counts.latency[bucket(50_000) as usize] = 1;
        let histogram = counts.latency().unwrap();
        assert!(histogram.value_at_quantile(0.5).abs_diff(10_000) < 300);
        assert!(histogram.value_at_quantile(1.0).abs_diff(50_000) < 1500);
        assert!(!Wrong { reordered: 1, ..Wrong::default() }.is_fault());
        assert!(Wrong { udp_checksum: 1, ..Wrong::default() }.is_fault());
    }
}
