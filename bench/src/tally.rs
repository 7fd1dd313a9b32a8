//! What arrived, flow by flow: in order, late, twice, or not at all; and the report that is made of it.
//!
//! Pure. Fed by the sink, one observation at a time. Invariants: lost = highest sequence seen + 1 - distinct packets seen, summed
//! over flows; a packet with a wrong checksum is counted as such and otherwise not believed, so it is lost as well.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::address::AddressRange;
use crate::inspect::{Check, Observation, Seen};

/// How many flows are told apart. Chosen: 48 bytes each make 800 MB when all are used.
pub const MAX_FLOWS: u32 = 1 << 24;
/// How far back duplicates are told from late packets. **Units:** packets of one flow.
const WINDOW: u64 = u128::BITS as u64;
/// Latency beyond this is counted as this. **Units:** nanoseconds.
const LATENCY_MAX: u64 = 60_000_000_000;

/// Where a packet stands among those of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The highest so far.
    Next,
    /// Behind a higher one, for the first time (or too far back to tell).
    Late,
    /// Seen before.
    Again,
}

/// One flow. The window's bit `k` says that sequence `highest - k` was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    window: u128,
    /// One more than the highest sequence; 0: nothing seen yet.
    end: u64,
    distinct: u64,
    source: (u32, u16),
}

impl Flow {
    fn observe(&mut self, sequence: u64) -> Order {
        if sequence >= self.end {
            let step = (sequence - self.end).saturating_add(1);
            self.window = if step < WINDOW { self.window << step } else { 0 } | 1;
            self.end = sequence.saturating_add(1);
            self.distinct += 1;
            return Order::Next;
        }
        let back = self.end - 1 - sequence;
        if back < WINDOW {
            let bit = 1 << back;
            if self.window & bit != 0 {
                return Order::Again;
            }
            self.window |= bit;
        }
        self.distinct += 1;
        Order::Late
    }

    fn lost(&self) -> u64 {
        self.end.saturating_sub(self.distinct)
    }
}

/// Everything seen so far.
pub(crate) struct Tally {
    expected_sources: Vec<AddressRange>,
    flows: Vec<Flow>,
    latency: Histogram<u64>,
    report: Report,
    distinct: u64,
    /// First and last packet of ours. **Units:** nanoseconds of `CLOCK_MONOTONIC`.
    span: Option<(u64, u64)>,
}

impl Tally {
    /// Nothing seen; sources outside `expected_sources` will be wrong, unless it is empty.
    pub(crate) fn new(expected_sources: Vec<AddressRange>) -> anyhow::Result<Self> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX, 3)?;
        Ok(Self { expected_sources, flows: Vec::new(), latency, report: Report::default(), distinct: 0, span: None })
    }

    /// Distinct packets of ours with right checksums.
    pub(crate) fn distinct(&self) -> u64 {
        self.distinct
    }

    /// Counts a frame of `len` bytes that arrived at `now`, in nanoseconds of `CLOCK_MONOTONIC`. Returns whether it was ours.
    pub(crate) fn count(&mut self, seen: Seen, len: usize, now: u64) -> bool {
        match seen {
            Seen::NotIpv4 => self.report.not_ipv4 += 1,
            Seen::Fragment => self.report.fragments += 1,
            Seen::Foreign => self.report.foreign += 1,
            Seen::Ours(seen) if seen.stamp.flow >= MAX_FLOWS => self.report.foreign += 1,
            Seen::Ours(seen) => {
                self.count_ours(&seen, len, now);
                return true;
            }
        }
        false
    }

    fn count_ours(&mut self, seen: &Observation, len: usize, now: u64) {
        let report = &mut self.report;
        report.received += 1;
        report.bytes += len as u64;
        let first = self.span.map_or(now, |(first, _)| first);
        self.span = Some((first, now));
        report.bad_ip_checksum += u64::from(seen.ip_checksum == Check::Wrong);
        match seen.l4_checksum {
            Check::Right => {}
            Check::Wrong => report.bad_l4_checksum += 1,
            Check::Absent => report.absent_checksum += 1,
            Check::Unfinished => report.unfinished_checksum += 1,
        }
        if seen.ip_checksum == Check::Wrong || seen.l4_checksum == Check::Wrong {
            return;
        }
        let expected = &self.expected_sources;
        report.wrong_source += u64::from(!expected.is_empty() && !expected.iter().any(|range| range.contains(seen.source)));
        self.count_order(seen);
        self.count_latency(seen.stamp.sent, now);
    }

    fn count_order(&mut self, seen: &Observation) {
        let index = seen.stamp.flow as usize;
        if index >= self.flows.len() {
            self.flows.resize(index + 1, Flow::default());
        }
        let (flow, report) = (&mut self.flows[index], &mut self.report);
        let source = (seen.source.into(), seen.source_port);
        report.source_changed += u64::from(flow.end > 0 && flow.source != source);
        flow.source = source;
        match flow.observe(seen.stamp.sequence) {
            Order::Next => self.distinct += 1,
            Order::Late => {
                report.reordered += 1;
                self.distinct += 1;
            }
            Order::Again => report.duplicates += 1,
        }
    }

    fn count_latency(&mut self, sent: u64, now: u64) {
        match now.checked_sub(sent) {
            Some(latency) if latency <= LATENCY_MAX => self.latency.saturating_record(latency.max(1)),
            _ => self.report.other_clock += 1,
        }
    }

    /// The report: `expected` is how many distinct packets should have come, `socket_dropped` what the kernel had no room for.
    pub(crate) fn report(mut self, expected: Option<u64>, socket_dropped: u64) -> Report {
        self.report.flows = self.flows.iter().filter(|flow| flow.end > 0).count() as u64;
        self.report.lost = self.flows.iter().map(Flow::lost).fold(0, u64::saturating_add);
        self.report.missing = expected.map(|expected| expected.saturating_sub(self.distinct));
        self.report.socket_dropped = socket_dropped;
        if let Some((first, last)) = self.span {
            let span = Duration::from_nanos(last.saturating_sub(first));
            self.report.seconds = span.as_secs_f64();
            if !span.is_zero() {
                #[allow(clippy::cast_precision_loss, reason = "a count of packets is below 2^52")]
                let intervals = (self.report.received - 1) as f64;
                self.report.packets_per_second = intervals / span.as_secs_f64();
            }
        }
        self.report.latency_ns = (!self.latency.is_empty()).then(|| Latency::of(&self.latency));
        self.report
    }
}

/// What the sink saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Packets of our generator, whatever their state.
    pub received: u64,
    /// Their frames' bytes, without FCS.
    pub bytes: u64,
    /// From the first to the last of them.
    pub seconds: f64,
    /// Over that time.
    pub packets_per_second: f64,
    /// Flows of which anything was seen.
    pub flows: u64,
    /// Wrong IPv4 header checksums.
    pub bad_ip_checksum: u64,
    /// Wrong UDP, TCP or ICMP checksums.
    pub bad_l4_checksum: u64,
    /// UDP without checksum, which is legal.
    pub absent_checksum: u64,
    /// Checksums that the kernel says are left to hardware: right once it would leave the machine.
    pub unfinished_checksum: u64,
    /// Sources outside the expected ones.
    pub wrong_source: u64,
    /// Packets whose source address or port is not that of the packet before in their flow.
    pub source_changed: u64,
    /// Packets that came after a later one of their flow.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// Gaps in the flows' sequences up to the highest seen of each.
    pub lost: u64,
    /// How many of the expected packets never came, gaps and tails; null when nothing was said to be expected.
    pub missing: Option<u64>,
    /// IPv4 packets that no generator of ours sent.
    pub foreign: u64,
    /// Fragments.
    pub fragments: u64,
    /// ARP, IPv6 and the like.
    pub not_ipv4: u64,
    /// Frames that the sink's own socket had no room for: as much of `lost` and `missing` is the sink's doing.
    pub socket_dropped: u64,
    /// Packets whose time stamp is not of this machine's clock.
    pub other_clock: u64,
    /// From the generator's stamp to the sink's interface; null when the clocks differ.
    pub latency_ns: Option<Latency>,
}

/// Latency's distribution. **Units:** nanoseconds.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { min: histogram.min(), p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() }
    }
}

impl Report {
    /// Packets that should have come and did not.
    pub fn loss(&self) -> u64 {
        self.missing.unwrap_or(0).max(self.lost)
    }

    /// What is wrong, a sentence each; empty when everything is as it should be. Loss counts unless it is allowed.
    pub fn faults(&self, loss_allowed: bool) -> Vec<String> {
        let mut faults: Vec<String> = [
            (self.bad_ip_checksum, "with a wrong IPv4 header checksum"),
            (self.bad_l4_checksum, "with a wrong UDP, TCP or ICMP checksum"),
            (self.wrong_source, "from a source that was not expected"),
            (self.source_changed, "whose source changed within the flow"),
            (self.reordered, "out of order within the flow"),
            (self.duplicates, "that came twice"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} packets {what}"))
        .collect();
        if self.received == 0 {
            faults.push("nothing was received".into());
        }
        if self.loss() > 0 && !loss_allowed {
            faults.push(format!("{} packets lost", self.loss()));
        }
        if self.socket_dropped > 0 && !loss_allowed {
            let dropped = self.socket_dropped;
            faults.push(format!("the sink's own socket dropped {dropped} frames: that much loss is not the gateway's"));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, flows, seconds, packets_per_second: rate, .. } = self;
        writeln!(f, "received {received} packets of {flows} flows in {seconds:.3} s, {rate:.0} packets/s")?;
        writeln!(f, "lost {}, reordered {}, duplicates {}", self.loss(), self.reordered, self.duplicates)?;
        let (ip, l4) = (self.bad_ip_checksum, self.bad_l4_checksum);
        let (absent, unfinished) = (self.absent_checksum, self.unfinished_checksum);
        writeln!(f, "checksums: {ip} IPv4 wrong, {l4} UDP/TCP/ICMP wrong, {absent} absent, {unfinished} unfinished")?;
        writeln!(f, "sources: {} wrong, {} changed within a flow", self.wrong_source, self.source_changed)?;
        writeln!(f, "not ours: {} foreign, {} fragments, {} not IPv4", self.foreign, self.fragments, self.not_ipv4)?;
        writeln!(f, "the sink's own socket dropped {}", self.socket_dropped)?;
        match &self.latency_ns {
            Some(Latency { min, p50, p90, p99, p999, max }) => {
                write!(f, "latency in ns: min {min}, p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}")
            }
            None => write!(f, "latency: not known"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::stamp::Stamp;

    fn packet(flow: u32, sequence: u64) -> Observation {
        Observation {
            source: Ipv4Addr::new(203, 0, 113, 10),
            source_port: 5000,
            ip_checksum: Check::Right,
            l4_checksum: Check::Right,
            stamp: Stamp { flow, sequence, sent: 1000 },
        }
    }

    fn report(packets: impl IntoIterator<Item = Observation>) -> Report {
        let mut tally = Tally::new(vec![Ipv4Addr::new(203, 0, 113, 10).into()]).unwrap();
        for (at, packet) in packets.into_iter().enumerate() {
            tally.count(Seen::Ours(packet), 64, 2000 + at as u64);
        }
        tally.report(None, 0)
    }

    fn sequences(sequences: &[u64]) -> (u64, u64, u64) {
        let report = report(sequences.iter().map(|sequence| packet(0, *sequence)));
        (report.reordered, report.duplicates, report.lost)
    }

    #[test]
    fn order_is_judged_from_sequences() {
        assert_eq!(sequences(&[0, 1, 2, 3]), (0, 0, 0));
        assert_eq!(sequences(&[0, 2, 1, 3]), (1, 0, 0));
        assert_eq!(sequences(&[0, 1, 1, 2, 0]), (0, 2, 0));
        assert_eq!(sequences(&[0, 3]), (0, 0, 2));
        assert_eq!(sequences(&[2]), (0, 0, 2));
        assert_eq!(sequences(&[0, 3, 2, 2]), (1, 1, 1));
        assert_eq!(sequences(&[0, 1000, 1000, 872, 873, 873]), (2, 2, 997));
    }

    #[test]
    fn sequences_near_the_wrap_do_no_harm() {
        let report = report([packet(0, u64::MAX), packet(0, u64::MAX), packet(0, 0)]);
        assert_eq!(report.received, 3);
    }

    #[test]
    fn flows_are_judged_one_by_one() {
        let report = report([packet(7, 0), packet(3, 0), packet(7, 1), packet(3, 1)]);
        assert_eq!((report.flows, report.lost, report.reordered), (2, 0, 0));
        assert!(report.faults(false).is_empty());
    }

    #[test]
    fn every_fault_is_named() {
        let wrong = [
            Observation { ip_checksum: Check::Wrong, ..packet(0, 0) },
            Observation { l4_checksum: Check::Wrong, ..packet(0, 0) },
            Observation { source: Ipv4Addr::new(10, 0, 0, 2), ..packet(1, 0) },
            packet(1, 1),
            packet(1, 1),
            packet(1, 5),
            packet(1, 4),
        ];
        let report = report(wrong);
        assert_eq!((report.bad_ip_checksum, report.bad_l4_checksum), (1, 1));
        assert_eq!((report.wrong_source, report.source_changed), (1, 1));
        assert_eq!((report.duplicates, report.reordered, report.lost), (1, 1, 2));
        assert_eq!(report.faults(false).len(), 7);
        assert_eq!(report.faults(true).len(), 6);
    }

    #[test]
    fn a_missing_tail_is_seen_when_a_number_was_expected_and_the_sinks_own_loss_is_named() {
        let mut tally = Tally::new(Vec::new()).unwrap();
        tally.count(Seen::Ours(packet(0, 0)), 64, 2000);
        let report = tally.report(Some(10), 9);
        assert_eq!((report.lost, report.missing, report.loss()), (0, Some(9), 9));
        assert_eq!(report.faults(false).len(), 2);
        assert!(Tally::new(Vec::new()).unwrap().report(None, 0).faults(true).contains(&"nothing was received".to_string()));
    }

    #[test]
    fn latency_is_known_only_on_one_clock() {
        let known = report([packet(0, 0), packet(0, 1)]);
        assert_eq!(known.latency_ns.map(|latency| (latency.min, latency.max)), Some((1000, 1001)));
        let ahead = Observation { stamp: Stamp { flow: 0, sequence: 0, sent: u64::MAX }, ..packet(0, 0) };
        let unknown = report([ahead]);
        assert_eq!((unknown.other_clock, unknown.latency_ns), (1, None));
    }
}
