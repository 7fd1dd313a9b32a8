//! The one collector: the window's numbers as Prometheus metric families.
//!
//! Knows names, labels and the window; nothing is kept between scrapes, so nothing can be stale. Invariants: every reason and every
//! counter is there from the start, with 0; the number of series is bounded by configuration, never by traffic.

#![allow(clippy::cast_precision_loss, reason = "Prometheus knows floating-point numbers only: exact up to 2^53")]

use std::collections::BTreeMap;
use std::sync::Arc;

use hdrhistogram::Histogram;
use portcullis_api as api;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, MetricFamily, MetricType};

use super::names::{self, Name};
use crate::control::window::{Window, WorkerTimes};

/// Up to this many external addresses, ports are shown by address; beyond, by pool. Chosen: at three protocols and two metrics each
/// this is 96 series, fewer than the rest of the page.
pub(super) const ADDRESSES_SHOWN: usize = 16;

/// The bounds of [`names::PACKET_SECONDS`], in nanoseconds: around what a packet takes (30 ns to 2 us), then coarse up to a stall.
const BOUNDS: [u64; 14] = [25, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000, 20_000, 100_000, 1_000_000];

/// Labels with their values.
type Labels<'l> = &'l [(&'l str, &'l str)];

/// See the room card.
pub(super) struct WindowCollector {
    window: Arc<Window>,
    /// The registry knows a collector by its descriptions; one stands for all.
    description: Desc,
}

impl WindowCollector {
    pub(super) fn new(window: Arc<Window>) -> prometheus::Result<Self> {
        let Name { name, help } = names::BUILD_INFO;
        Ok(Self { window, description: Desc::new(name.to_owned(), help.to_owned(), Vec::new(), std::collections::HashMap::new())? })
    }
}

impl Collector for WindowCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.description]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut page = Page::default();
        let stats = self.window.stats();
        page.about(&stats);
        page.nat(&stats);
        page.tables(&stats);
        page.ports(&stats.ports);
        page.interfaces(&stats);
        page.frames(&stats.frames);
        page.workers(&stats, &self.window.times());
        page.families
    }
}

/// The families so far.
#[derive(Default)]
struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    fn about(&mut self, stats: &api::Stats) {
        let one = |value: bool| f64::from(u8::from(value));
        self.gauge(names::BUILD_INFO, &[("version", &stats.portcullis)], 1.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // Whole seconds: the difference of two clocks would otherwise tremble from scrape to scrape.
        self.gauge(names::START_TIME, &[], (now.as_secs_f64() - stats.uptime_seconds).round());
        self.gauge(names::HEALTHY, &[], one(stats.unhealthy.is_none()));
        self.gauge(names::RELOAD_SUCCESSFUL, &[], one(stats.config.last_reload_successful));
        self.gauge(names::RELOAD_TIME, &[], stats.config.last_success_unix_seconds);
        self.gauge(names::GENERATION, &[], stats.config.generation as f64);
    }

    fn nat(&mut self, stats: &api::Stats) {
        for counter in &stats.counters {
            self.add(&names::nat_counter(&counter.name), &counter.meaning, MetricType::COUNTER, count(&[], counter.value));
        }
        for (name, counts) in [(names::DROPS, &stats.drops), (names::XDP, &stats.xdp)] {
            for each in counts {
                self.counter(name, &[("reason", &each.name)], each.value);
            }
        }
    }

    fn tables(&mut self, stats: &api::Stats) {
        let gauges = &stats.gauges;
        for (name, value) in [
            (names::MAPPINGS, gauges.mappings),
            (names::MAPPINGS_LIMIT, gauges.mappings_limit),
            (names::SESSIONS, gauges.sessions),
            (names::SESSIONS_LIMIT, gauges.sessions_limit),
            (names::SUBSCRIBERS, gauges.subscribers),
            (names::FRAGMENTS, gauges.fragments),
            (names::OTHER_TRANSLATIONS, gauges.other_translations),
            (names::OTHER_TRANSLATIONS_LIMIT, gauges.other_translations_limit),
        ] {
            self.gauge(name, &[], value as f64);
        }
    }

    fn ports(&mut self, uses: &[api::PortUse]) {
        let addresses: std::collections::BTreeSet<_> = uses.iter().map(|each| each.address).collect();
        let by_address = addresses.len() <= ADDRESSES_SHOWN;
        let mut sums = BTreeMap::<_, (u64, u64, u64)>::new();
        for each in uses {
            let address = by_address.then(|| each.address.to_string());
            let sum = sums.entry((each.pool.as_str(), address, each.protocol.to_string())).or_default();
            *sum = (sum.0 + each.used, sum.1 + each.resting, sum.2 + each.limit);
        }
        for ((pool, address, protocol), (used, resting, limit)) in &sums {
            let mut labels = vec![("pool", *pool)];
            labels.extend(address.iter().map(|address| ("address", address.as_str())));
            labels.push(("protocol", protocol.as_str()));
            self.gauge(names::PORTS, &labels, *used as f64);
            self.gauge(names::PORTS_RESTING, &labels, *resting as f64);
            self.gauge(names::PORTS_LIMIT, &labels, *limit as f64);
        }
    }

    fn interfaces(&mut self, stats: &api::Stats) {
        for each in &stats.interfaces {
            self.gauge(names::INTERFACE_UP, &[("interface", &each.name)], f64::from(u8::from(each.up)));
            let labels = [
                ("interface", each.name.as_str()),
                ("side", side(each.side)),
                ("mode", each.mode.map_or("none", mode)),
                ("copy", each.copy.map_or("none", copy)),
                ("huge_pages", if each.huge_pages { "yes" } else { "no" }),
                ("busy_poll", if each.busy_poll { "yes" } else { "no" }),
            ];
            self.gauge(names::INTERFACE_INFO, &labels, 1.0);
            self.steering(each);
        }
        for queue in &stats.queues {
            let number = queue.queue.to_string();
            for (name, value) in [
                (names::XSK_RX_DROPPED, queue.rx_dropped),
                (names::XSK_RX_INVALID, queue.rx_invalid_descs),
                (names::XSK_TX_INVALID, queue.tx_invalid_descs),
                (names::XSK_RX_FULL, queue.rx_ring_full),
                (names::XSK_FILL_EMPTY, queue.rx_fill_ring_empty),
                (names::XSK_TX_EMPTY, queue.tx_ring_empty),
                (names::QUEUE_RECEIVED, queue.received),
                (names::QUEUE_MISPLACED, queue.misplaced),
            ] {
                self.counter(name, &[("interface", &queue.interface), ("queue", &number)], value);
            }
        }
    }

    fn steering(&mut self, interface: &api::Interface) {
        let Some(steering) = &interface.steering else { return };
        let label = ("interface", interface.name.as_str());
        self.gauge(names::STEERING_INFO, &[label, ("way", &steering.way)], 1.0);
        self.gauge(names::STEERING_SHARE, &[label], steering.expected_share);
        if let Some(trusted) = steering.trusted {
            self.gauge(names::STEERING_TRUSTED, &[label], f64::from(u8::from(trusted)));
        }
    }

    fn frames(&mut self, frames: &api::Frames) {
        let states =
            [("pool", frames.pool), ("in_flight", frames.in_flight), ("held", frames.held), ("handed_over", frames.handed_over)];
        for (state, value) in states {
            self.gauge(names::FRAMES, &[("state", state)], value as f64);
        }
        self.gauge(names::FRAMES_LIMIT, &[], frames.total as f64);
        self.gauge(names::FRAMES_MISSING, &[], frames.missing as f64);
    }

    fn workers(&mut self, stats: &api::Stats, times: &[WorkerTimes]) {
        for worker in &stats.workers {
            let number = worker.worker.to_string();
            let labels = [("worker", number.as_str())];
            self.counter(names::WORKER_BURSTS, &labels, worker.bursts);
            self.counter(names::WORKER_IDLE, &labels, worker.idle_loops);
            self.counter_f64(names::WORKER_BUSY, &labels, worker.busy_seconds);
            for each in &worker.handed_off {
                self.counter(names::WORKER_HANDED_OFF, &[("worker", &number), ("cause", &each.name)], each.value);
            }
            self.counter(names::WORKER_HANDED_IN, &labels, worker.handed_in);
            self.counter(names::WORKER_REFUSED, &labels, worker.hand_off_refused);
            self.counter(names::WORKER_DROPS, &labels, worker.drops);
            self.gauge(names::WORKER_MAPPINGS, &labels, worker.gauges.mappings as f64);
            self.gauge(names::WORKER_SESSIONS, &labels, worker.gauges.sessions as f64);
            self.gauge(names::WORKER_FRAMES, &labels, worker.frames.total as f64);
            self.gauge(names::WORKER_GENERATION, &labels, worker.generation as f64);
            self.counter(names::EVENTS_LOST, &labels, worker.events_lost);
            self.histogram(names::BURST_PACKETS, &labels, burst_packets(worker));
        }
        for WorkerTimes { worker, times } in times {
            let busy = stats.workers.iter().find(|each| each.worker == *worker).map_or(0.0, |each| each.busy_seconds);
            self.histogram(names::PACKET_SECONDS, &[("worker", &worker.to_string())], packet_seconds(times, busy));
        }
    }

    fn gauge(&mut self, name: Name, labels: Labels<'_>, value: f64) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.add(name.name, name.help, MetricType::GAUGE, metric);
    }

    fn counter(&mut self, name: Name, labels: Labels<'_>, value: u64) {
        self.add(name.name, name.help, MetricType::COUNTER, count(labels, value));
    }

    fn counter_f64(&mut self, name: Name, labels: Labels<'_>, value: f64) {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.add(name.name, name.help, MetricType::COUNTER, metric);
    }

    fn histogram(&mut self, name: Name, labels: Labels<'_>, histogram: proto::Histogram) {
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.add(name.name, name.help, MetricType::HISTOGRAM, metric);
    }

    /// Adds a metric to its family, which is made where it is missing.
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metric: proto::Metric) {
        if let Some(family) = self.families.iter_mut().find(|family| family.name() == name) {
            family.mut_metric().push(metric);
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.mut_metric().push(metric);
        self.families.push(family);
    }
}

fn labelled(labels: Labels<'_>) -> proto::Metric {
    let pair = |&(name, value): &(&str, &str)| {
        let mut pair = proto::LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    proto::Metric::from_label(labels.iter().map(pair).collect())
}

fn count(labels: Labels<'_>, value: u64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(value as f64);
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

fn bucket(upper_bound: f64, cumulative_count: u64) -> proto::Bucket {
    let mut bucket = proto::Bucket::default();
    bucket.set_upper_bound(upper_bound);
    bucket.set_cumulative_count(cumulative_count);
    bucket
}

/// The door's classes as buckets: class `i` holds bursts of 2^i to 2^(i+1) - 1 packets, the last one those beyond.
fn burst_packets(worker: &api::Worker) -> proto::Histogram {
    let (_, bounded) = worker.burst_sizes.split_last().unwrap_or((&0, &[]));
    let mut below = 0;
    let buckets = bounded.iter().zip(1..).map(|(&bursts, power)| {
        below += bursts;
        bucket(f64::from((1_u32 << power) - 1), below)
    });
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(worker.burst_sizes.iter().sum());
    histogram.set_sample_sum(worker.packets as f64);
    histogram
}

/// `busy` is the exact sum; it may be ahead of the histogram by what is on its way.
fn packet_seconds(times: &Histogram<u64>, busy: f64) -> proto::Histogram {
    let mut histogram = proto::Histogram::default();
    let buckets = BOUNDS.map(|nanoseconds| bucket(nanoseconds as f64 / 1e9, times.count_between(0, nanoseconds)));
    histogram.set_bucket(buckets.to_vec());
    histogram.set_sample_count(times.len());
    histogram.set_sample_sum(busy);
    histogram
}

const fn side(side: api::Side) -> &'static str {
    match side {
        api::Side::Inside => "inside",
        api::Side::Outside => "outside",
    }
}

const fn mode(mode: api::XdpMode) -> &'static str {
    match mode {
        api::XdpMode::Native => "native",
        api::XdpMode::Generic => "generic",
    }
}

const fn copy(copy: api::CopyMode) -> &'static str {
    match copy {
        api::CopyMode::ZeroCopy => "zero_copy",
        api::CopyMode::Copy => "copy",
    }
}
