//! The door "counters out": what a worker counts, as everybody else may read it at any time.
//!
//! The worker keeps plain numbers and writes them on a board now and then; readers copy whole boards. The time that packets take
//! goes into a histogram that travels: a full one out, an empty one back. Knows no metric names or messages.
//! Invariants: one writer, which never waits, locks or allocates; memory is bounded by the [`Shape`]; what a reader gets was true
//! at one moment, so packets in and packets accounted for add up. Called by `worker.rs`; read by metrics and the control API.

use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use portcullis_nat::counters::{Counter, Counters};
use portcullis_nat::policy::Protocol;
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::DropReason;
use portcullis_nat::view::{Gauges, PortUse};

use super::board;
use super::sync::{ArrayQueue, Mutex, PoisonError};

/// The time between two writings of the counters. Chosen: a tenth of the shortest scrape interval in use.
const EVERY: Duration = Duration::from_millis(100);

/// The time between two writings of the port use, which costs a look at every external address.
const PORTS_EVERY: Duration = Duration::from_secs(1);

/// Sizes of bursts are counted in classes: 1, 2-3, 4-7, ... 64 and more.
pub(crate) const BURST_CLASSES: usize = 7;

/// The longest time per packet that is told apart. **Units:** nanoseconds.
const LONGEST: u64 = 1_000_000_000;

const COUNTS: usize = Counter::ALL.len();
const DROPS: usize = DropReason::ALL.len();
/// Words of the board before the queues'.
const FIXED: usize = COUNTS + DROPS + GAUGES + WorkerFigures::WORDS + FrameFigures::WORDS;
const GAUGES: usize = 8;
const WORDS_OF_A_PORT_USE: usize = 3;

/// How much a worker has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The worker's queues, in the order in which their statistics are published.
    pub(crate) queues: Vec<QueueName>,
    /// External address slots; the port use of more is left out.
    pub(crate) externals: u16,
}

/// A queue of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct QueueName {
    /// The interface, by the kernel's name.
    pub(crate) interface: String,
    /// The queue's number.
    pub(crate) queue: u32,
}

/// A queue's statistics as the kernel keeps them (`XDP_STATISTICS`), and what its worker counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueFigures {
    /// Frames dropped for other reasons than a full ring.
    pub(crate) rx_dropped: u64,
    /// Fill-ring descriptors that the kernel did not accept.
    pub(crate) rx_invalid_descs: u64,
    /// Transmit descriptors that the kernel did not accept.
    pub(crate) tx_invalid_descs: u64,
    /// Frames dropped because the rx ring was full.
    pub(crate) rx_ring_full: u64,
    /// Times that the fill ring had nothing to receive into.
    pub(crate) rx_fill_ring_empty: u64,
    /// Times that the tx ring had nothing to send.
    pub(crate) tx_ring_empty: u64,
    /// Frames received.
    pub(crate) received: u64,
    /// Those that another worker owns, though a device that knows the owners would not have put them here.
    pub(crate) misplaced: u64,
}

impl QueueFigures {
    const WORDS: usize = 8;

    fn words(&self) -> [u64; Self::WORDS] {
        [
            self.rx_dropped,
            self.rx_invalid_descs,
            self.tx_invalid_descs,
            self.rx_ring_full,
            self.rx_fill_ring_empty,
            self.tx_ring_empty,
            self.received,
            self.misplaced,
        ]
    }

    fn from_words(words: &[u64; Self::WORDS]) -> Self {
        let &[rx_dropped, rx_invalid_descs, tx_invalid_descs, rx_ring_full, rx_fill_ring_empty, tx_ring_empty, received, misplaced] =
            words;
        Self {
            rx_dropped,
            rx_invalid_descs,
            tx_invalid_descs,
            rx_ring_full,
            rx_fill_ring_empty,
            tx_ring_empty,
            received,
            misplaced,
        }
    }
}

/// Where the frames of the packet memory are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameFigures {
    /// The worker's share: those that it had at the start.
    pub(crate) total: u64,
    /// Got from other workers, with packets or empty.
    pub(crate) got: u64,
    /// Sent to other workers, with packets or empty.
    pub(crate) sent: u64,
    /// Free.
    pub(crate) pool: u64,
    /// In rings or in the kernel's hands.
    pub(crate) in_flight: u64,
    /// With packets that wait for a next hop, or for the first fragment of their datagram.
    pub(crate) held: u64,
}

impl FrameFigures {
    const WORDS: usize = 6;

    /// Frames that the worker has now.
    pub(crate) const fn owned(&self) -> u64 {
        (self.total + self.got).saturating_sub(self.sent)
    }

    /// Frames that are nowhere: zero, or a leak (positive) or a frame in two places (negative). The worker itself counts what it gets and
    /// sends, so this is exact whatever is under way between workers.
    pub(crate) const fn missing(&self) -> i64 {
        (self.total + self.got).cast_signed() - (self.sent + self.pool + self.in_flight + self.held).cast_signed()
    }

    const fn words(&self) -> [u64; Self::WORDS] {
        [self.total, self.got, self.sent, self.pool, self.in_flight, self.held]
    }

    const fn from_words(words: &[u64; Self::WORDS]) -> Self {
        let &[total, got, sent, pool, in_flight, held] = words;
        Self { total, got, sent, pool, in_flight, held }
    }
}

/// What the worker's loop has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkerFigures {
    /// Bursts with packets.
    pub(crate) bursts: u64,
    /// Rounds without any.
    pub(crate) idle_loops: u64,
    /// Packets in all bursts, from queues and from other workers.
    pub(crate) packets: u64,
    /// Packets that other workers handed over.
    pub(crate) handed_in: u64,
    /// Packets that other workers could not hand over, because this one was too far behind.
    pub(crate) refused: u64,
    /// Time spent on bursts. **Units:** nanoseconds.
    pub(crate) busy_nanoseconds: u64,
    /// Bursts by size: class `i` from 2^i packets on.
    pub(crate) burst_sizes: [u64; BURST_CLASSES],
    /// The generation of policy and network that the worker goes by.
    pub(crate) generation: u64,
    /// Writings of this board: as long as it grows, the worker makes progress.
    pub(crate) published: u64,
}

impl WorkerFigures {
    const WORDS: usize = 8 + BURST_CLASSES;

    fn words(&self) -> impl Iterator<Item = u64> + use<> {
        let Self { bursts, idle_loops, packets, handed_in, refused, busy_nanoseconds, burst_sizes, generation, published } = *self;
        [bursts, idle_loops, packets, handed_in, refused, busy_nanoseconds, generation, published].into_iter().chain(burst_sizes)
    }

    const fn from_words(words: &[u64; Self::WORDS]) -> Self {
        let &[bursts, idle_loops, packets, handed_in, refused, busy_nanoseconds, generation, published, burst_sizes @ ..] = words;
        Self { bursts, idle_loops, packets, handed_in, refused, busy_nanoseconds, burst_sizes, generation, published }
    }
}

/// What the worker hands over for one writing, beside what the door itself keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report<'w> {
    /// Counters to be summed: the NAT's, and the worker's own for what happens after the verdict.
    pub(crate) counters: &'w [&'w Counters],
    /// How full the tables are.
    pub(crate) gauges: Gauges,
    /// Where the frames are.
    pub(crate) frames: FrameFigures,
    /// The queues' statistics, in the order of [`Shape::queues`].
    pub(crate) queues: &'w [QueueFigures],
    /// Packets that other workers handed over.
    pub(crate) handed_in: u64,
    /// Packets that other workers could not hand over to this one.
    pub(crate) refused: u64,
    /// The generation of policy and network that the worker goes by.
    pub(crate) generation: u64,
}

/// What a worker published, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Published {
    /// The counters, by number.
    counts: [u64; COUNTS],
    /// The drops, by number.
    drops: [u64; DROPS],
    /// How full the tables are.
    pub(crate) gauges: Gauges,
    /// What the loop has done.
    pub(crate) worker: WorkerFigures,
    /// Where the frames are.
    pub(crate) frames: FrameFigures,
    /// The queues' statistics, with their names.
    pub(crate) queues: Vec<(QueueName, QueueFigures)>,
}

impl Published {
    /// The count of `counter`.
    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// The packets dropped for `reason`.
    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }
}

/// Histograms on their way between the worker and the readers.
#[derive(Debug)]
struct Times {
    full: ArrayQueue<Histogram<u64>>,
    empty: ArrayQueue<Histogram<u64>>,
}

/// The worker's side.
#[derive(Debug)]
pub(crate) struct Writer {
    board: board::Writer,
    ports: board::Writer,
    figures: WorkerFigures,
    current: Histogram<u64>,
    times: Arc<Times>,
    last: Option<Tick>,
    last_ports: Option<Tick>,
}

/// The readers' side; any number may share it.
#[derive(Debug)]
pub(crate) struct Reader {
    board: board::Reader,
    ports: board::Reader,
    queues: Vec<QueueName>,
    times: Arc<Times>,
    /// All histograms that have arrived, in one. Readers only.
    all: Mutex<Histogram<u64>>,
}

/// A histogram from 1 ns to [`LONGEST`], exact to 1 %: 24 KiB.
fn histogram() -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, LONGEST, 2).expect("the bounds are constants and legal");
    histogram.auto(false);
    histogram
}

/// The two sides of a door of that shape.
pub(crate) fn door(shape: Shape) -> (Writer, Reader) {
    let (board, board_reader) = board::open(FIXED + shape.queues.len() * QueueFigures::WORDS);
    let (ports, ports_reader) = board::open(usize::from(shape.externals) * Protocol::ALL.len() * WORDS_OF_A_PORT_USE);
    let times = Arc::new(Times { full: ArrayQueue::new(1), empty: ArrayQueue::new(1) });
    // There is room: the queue was just made.
    let _ = times.empty.push(histogram());
    let writer = Writer {
        board,
        ports,
        figures: WorkerFigures::default(),
        current: histogram(),
        times: Arc::clone(&times),
        last: None,
        last_ports: None,
    };
    let all = Mutex::new(histogram());
    (writer, Reader { board: board_reader, ports: ports_reader, queues: shape.queues, times, all })
}

fn is_due(last: Option<Tick>, now: Tick, every: Duration) -> bool {
    last.is_none_or(|last| u128::from(now.since(last)) >= every.as_millis())
}

impl Writer {
    /// Notes a burst of `packets` that took `nanoseconds` from receive to dispose.
    #[inline]
    pub(crate) fn burst(&mut self, packets: u32, nanoseconds: u64) {
        if packets == 0 {
            return self.idle();
        }
        self.figures.bursts += 1;
        self.figures.packets += u64::from(packets);
        self.figures.busy_nanoseconds += nanoseconds;
        let class = (packets.ilog2() as usize).min(BURST_CLASSES - 1);
        self.figures.burst_sizes[class] += 1;
        // Weighed by packets: the question is what a packet took, not what a burst was like.
        let each = (nanoseconds / u64::from(packets)).clamp(1, LONGEST);
        self.current.saturating_record_n(each, u64::from(packets));
    }

    /// Notes a round that found no packet.
    #[inline]
    pub(crate) const fn idle(&mut self) {
        self.figures.idle_loops += 1;
    }

    /// Whether it is time to [`Writer::publish`]. A worker that sleeps has to wake up for it, or it counts as stuck.
    #[inline]
    pub(crate) fn is_due(&self, now: Tick) -> bool {
        is_due(self.last, now, EVERY)
    }

    /// Writes the board, and sends the histogram off where an empty one has come back; otherwise it goes on filling.
    /// **Cost:** some hundred stores.
    pub(crate) fn publish(&mut self, now: Tick, report: &Report<'_>) {
        self.last = Some(now);
        self.figures.published += 1;
        self.figures.generation = report.generation;
        (self.figures.handed_in, self.figures.refused) = (report.handed_in, report.refused);
        let sum = |of: &dyn Fn(&Counters) -> u64| report.counters.iter().map(|&counters| of(counters)).sum::<u64>();
        let counts = Counter::ALL.iter().map(|&counter| sum(&|counters| counters.get(counter)));
        let drops = DropReason::ALL.iter().map(|&reason| sum(&|counters| counters.dropped(reason)));
        let gauges = gauges_to_words(&report.gauges).into_iter();
        let fixed = counts.chain(drops).chain(gauges).chain(self.figures.words()).chain(report.frames.words());
        self.board.write(fixed.chain(report.queues.iter().flat_map(QueueFigures::words)));
        self.send_times();
    }

    /// Whether it is time to [`Writer::publish_ports`].
    #[inline]
    pub(crate) fn ports_are_due(&self, now: Tick) -> bool {
        is_due(self.last_ports, now, PORTS_EVERY)
    }

    /// Writes the port use; what exceeds the shape is left out.
    pub(crate) fn publish_ports(&mut self, now: Tick, uses: &[PortUse]) {
        self.last_ports = Some(now);
        debug_assert!(uses.len() * WORDS_OF_A_PORT_USE <= self.ports.len(), "more external addresses than the shape has");
        self.ports.write(uses.iter().flat_map(port_use_to_words));
    }

    fn send_times(&mut self) {
        if self.current.is_empty() {
            return;
        }
        if let Some(empty) = self.times.empty.pop() {
            let full = std::mem::replace(&mut self.current, empty);
            // There is room: two histograms travel, one of them was in the other queue and the other here.
            let _ = self.times.full.push(full);
        }
    }
}

impl Reader {
    /// The board as it is now.
    pub(crate) fn read(&self) -> Published {
        let mut words = Vec::new();
        self.board.read(&mut words);
        let mut words = Words(&words);
        Published {
            counts: words.take(),
            drops: words.take(),
            gauges: gauges_from_words(&words.take()),
            worker: WorkerFigures::from_words(&words.take()),
            frames: FrameFigures::from_words(&words.take()),
            queues: self.queues.iter().map(|name| (name.clone(), QueueFigures::from_words(&words.take()))).collect(),
        }
    }

    /// The use of each external address, for each protocol.
    pub(crate) fn port_use(&self) -> Vec<PortUse> {
        let mut words = Vec::new();
        self.ports.read(&mut words);
        let (pairs, _) = words.as_chunks::<WORDS_OF_A_PORT_USE>();
        pairs.iter().map_while(port_use_from_words).collect()
    }

    /// Nanoseconds that packets took since start, as far as they have arrived.
    pub(crate) fn times(&self) -> Histogram<u64> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut full) = self.times.full.pop() {
            // Cannot fail: all histograms have the same bounds.
            let _ = all.add(&full);
            full.reset();
            // There is room: see `Writer::send_times`.
            let _ = self.times.empty.push(full);
        }
        all.clone()
    }
}

/// Words that are taken off the front.
struct Words<'w>(&'w [u64]);

impl Words<'_> {
    /// The next `N`; zeroes at the end.
    fn take<const N: usize>(&mut self) -> [u64; N] {
        let Some((first, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *first
    }
}

fn gauges_to_words(gauges: &Gauges) -> [u64; GAUGES] {
    let Gauges { mappings, mappings_limit, sessions, sessions_limit, subscribers, fragments, others, others_limit } = *gauges;
    [mappings, mappings_limit, sessions, sessions_limit, subscribers, fragments, others, others_limit].map(u64::from)
}

fn gauges_from_words(words: &[u64; GAUGES]) -> Gauges {
    let [mappings, mappings_limit, sessions, sessions_limit, subscribers, fragments, others, others_limit] =
        words.map(|word| word as u32);
    Gauges { mappings, mappings_limit, sessions, sessions_limit, subscribers, fragments, others, others_limit }
}

fn port_use_to_words(port_use: &PortUse) -> [u64; WORDS_OF_A_PORT_USE] {
    [
        u64::from(port_use.address.to_bits()) << 32 | port_use.protocol as u64,
        u64::from(port_use.used) << 32 | u64::from(port_use.limit),
        u64::from(port_use.resting),
    ]
}

/// None for the empty words after the last.
fn port_use_from_words(&[who, how, resting]: &[u64; WORDS_OF_A_PORT_USE]) -> Option<PortUse> {
    let protocol = Protocol::from_number(who as u8)?;
    let (address, used, limit) = (((who >> 32) as u32).into(), (how >> 32) as u32, how as u32);
    Some(PortUse { address, protocol, used, resting: resting as u32, limit })
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::super::sync::{model, thread};
    use super::*;

    fn shape() -> Shape {
        Shape { queues: vec![QueueName { interface: "eth0".to_owned(), queue: 3 }], externals: 1 }
    }

    fn report<'w>(counters: &'w [&'w Counters], queues: &'w [QueueFigures]) -> Report<'w> {
        let gauges = Gauges {
            mappings: 1,
            mappings_limit: 2,
            sessions: 3,
            sessions_limit: 4,
            subscribers: 5,
            fragments: u32::MAX,
            others: 6,
            others_limit: 7,
        };
        let frames = FrameFigures { total: 10, got: 7, sent: 4, pool: 6, in_flight: 5, held: 2 };
        Report { counters, gauges, frames, queues, handed_in: 8, refused: 9, generation: 7 }
    }

    #[test]
    fn what_is_published_is_read_field_by_field() {
        // Every counter and every reason with a number of its own, so that no two can be exchanged unseen.
        let mut nat = Counters::default();
        let mut own = Counters::default();
        for (number, &counter) in Counter::ALL.iter().enumerate() {
            nat.add(counter, 100 + number as u64);
            own.add(counter, 1000);
        }
        for (number, &reason) in DropReason::ALL.iter().enumerate() {
            (0..=number).for_each(|_| nat.drop_packet(reason));
        }
        model(move || {
            let (mut writer, reader) = door(shape());
            let queues = [QueueFigures::from_words(&[1, 2, 3, 4, 5, 6, 7, 8])];
            let counters = [&nat, &own];
            let report = report(&counters, &queues);
            writer.publish(Tick(5), &report);
            let read = reader.read();
            for (number, &counter) in Counter::ALL.iter().enumerate() {
                assert_eq!(read.get(counter), 1100 + number as u64);
            }
            for (number, &reason) in DropReason::ALL.iter().enumerate() {
                assert_eq!(read.dropped(reason), number as u64 + 1);
            }
            assert_eq!(read.gauges, report.gauges);
            assert_eq!(read.frames, report.frames);
            assert_eq!((read.frames.owned(), read.frames.missing()), (13, 0));
            assert_eq!(read.queues, [(shape().queues[0].clone(), queues[0])]);
            assert_eq!((read.worker.published, read.worker.generation), (1, 7));
            assert_eq!((read.worker.handed_in, read.worker.refused), (8, 9));
        });
    }

    #[test]
    fn port_use_travels_and_goes_away_again() {
        model(|| {
            let (mut writer, reader) = door(shape());
            let one = |protocol, used| PortUse {
                address: Ipv4Addr::new(203, 0, 113, 255),
                protocol,
                used,
                resting: used / 2,
                limit: 64512,
            };
            let uses = [one(Protocol::Icmp, 0), one(Protocol::Tcp, u32::MAX), one(Protocol::Udp, 1)];
            assert_eq!(reader.port_use(), []);
            writer.publish_ports(Tick(0), &uses);
            assert_eq!(reader.port_use(), uses);
            writer.publish_ports(Tick(0), &uses[..1]);
            assert_eq!(reader.port_use(), uses[..1]);
        });
    }

    #[test]
    fn bursts_are_counted_by_size_and_timed_by_packet() {
        model(|| {
            let (mut writer, reader) = door(shape());
            for (packets, nanoseconds) in [(1, 300), (0, 5), (3, 600), (64, 6400), (200, 20_000)] {
                writer.burst(packets, nanoseconds);
            }
            writer.idle();
            writer.publish(Tick(0), &report(&[], &[]));
            let worker = reader.read().worker;
            assert_eq!((worker.bursts, worker.packets, worker.idle_loops), (4, 268, 2));
            assert_eq!(worker.busy_nanoseconds, 27_300);
            assert_eq!(worker.burst_sizes, [1, 1, 0, 0, 0, 0, 2]);
            let times = reader.times();
            assert_eq!(times.len(), 268);
            assert_eq!(times.count_at(100), 264);
            assert_eq!(times.max(), times.highest_equivalent(300));
        });
    }

    #[test]
    fn publishing_is_due_at_start_and_then_by_time_across_the_wrap() {
        model(|| {
            let (mut writer, _reader) = door(Shape { queues: Vec::new(), externals: 0 });
            let start = Tick(u32::MAX - 10);
            assert!(writer.is_due(start) && writer.ports_are_due(start));
            writer.publish(start, &report(&[], &[]));
            writer.publish_ports(start, &[]);
            assert!(!writer.is_due(start.after(99)) && writer.is_due(start.after(100)));
            assert!(!writer.ports_are_due(start.after(999)) && writer.ports_are_due(start.after(1000)));
        });
    }

    #[test]
    fn no_packet_is_lost_from_the_histogram_on_its_way() {
        model(|| {
            let times = Arc::new(Times { full: ArrayQueue::new(1), empty: ArrayQueue::new(1) });
            let small = || Histogram::new_with_bounds(1, 100, 1).expect("legal bounds");
            let _ = times.empty.push(small());
            let (board, board_reader) = board::open(0);
            let (ports, ports_reader) = board::open(0);
            let mut writer = Writer {
                board,
                ports,
                figures: WorkerFigures::default(),
                current: small(),
                times: Arc::clone(&times),
                last: None,
                last_ports: None,
            };
            let reader = Reader { board: board_reader, ports: ports_reader, queues: Vec::new(), times, all: Mutex::new(small()) };
            let working = thread::spawn(move || {
                for _ in 0..3 {
                    writer.burst(1, 50);
                    writer.send_times();
                }
                writer
            });
            reader.times();
            reader.times();
            let mut writer = working.join().expect("the worker ends");
            reader.times();
            writer.send_times();
            assert_eq!(reader.times().len(), 3);
        });
    }
}
