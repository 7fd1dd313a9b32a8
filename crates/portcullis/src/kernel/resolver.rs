//! Next hops: has the kernel find their link-layer addresses, and keeps those fresh that translated traffic uses.
//!
//! The kernel sees none of that traffic, so it would neither ask for a neighbour nor notice that it has gone. Called by the control
//! plane with what the workers report. Knows when to ask ([`Book`], pure) and how (a netlink message); the answer arrives through
//! the mirror. Invariant: a next hop is asked about at most once a second. Sources: Linux `net/core/neighbour.c`, `neigh_add`.
//! Tests: below for the book, `tests::resolve` (root) against a peer.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use portcullis_nat::policy::{InterfaceId, NeighbourKey};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::socket::Requests;
use super::state::{IfIndex, KernelState};

/// When next hops are asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The least time between two questions about one next hop. The kernel itself repeats its request every second.
    pub(crate) ask: Duration,
    /// How often a used next hop is confirmed: the kernel's base reachable time.
    pub(crate) refresh: Duration,
    /// How long after its last use a next hop is left alone.
    pub(crate) idle: Duration,
    /// How often the book is looked through.
    pub(crate) step: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            ask: Duration::from_secs(1),
            refresh: Duration::from_secs(30),
            idle: Duration::from_mins(3),
            step: Duration::from_secs(1),
        }
    }
}

/// Next hops that are remembered at once; further ones are asked about but not kept fresh. Chosen: a /16 on a link.
const MOST_RECORDS: usize = 65_536;

/// Confirmations in one step, so that a large subnet is not asked in one burst.
const MOST_CONFIRMATIONS: usize = 256;

/// Reports that wait for the task. When it is full a report is dropped: packets that still wait make another.
const QUEUE: usize = 4_096;

/// What the workers tell.
enum Report {
    Wanted(NeighbourKey),
    Used(NeighbourKey),
}

/// The way to the resolving task. Clones share it; it ends with the last one.
#[derive(Clone)]
pub(crate) struct Resolver {
    reports: mpsc::Sender<Report>,
    _task: Arc<Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Resolver {
    /// Starts the task on the current tokio runtime. `interfaces` are the names of the configured interfaces, by [`InterfaceId`].
    pub(crate) fn start(snapshots: watch::Receiver<Arc<KernelState>>, requests: Requests, interfaces: Vec<String>) -> Self {
        Self::start_at_pace(snapshots, requests, interfaces, Pace::default())
    }

    pub(super) fn start_at_pace(
        snapshots: watch::Receiver<Arc<KernelState>>,
        requests: Requests,
        interfaces: Vec<String>,
        pace: Pace,
    ) -> Self {
        let (reports, inbox) = mpsc::channel(QUEUE);
        let worker = Worker { snapshots, requests, interfaces, book: Book::new(pace) };
        let task = tokio::spawn(worker.run(inbox, pace.step));
        Self { reports, _task: Arc::new(Task(task)) }
    }

    /// A packet waits for `next_hop`'s link-layer address. Never blocks.
    pub(crate) fn resolve(&self, interface: InterfaceId, next_hop: Ipv4Addr) {
        let _ = self.reports.try_send(Report::Wanted((interface, next_hop)));
    }

    /// Packets went to `next_hop` since the last such call. Never blocks.
    pub(crate) fn used(&self, interface: InterfaceId, next_hop: Ipv4Addr) {
        let _ = self.reports.try_send(Report::Used((interface, next_hop)));
    }
}

struct Worker {
    snapshots: watch::Receiver<Arc<KernelState>>,
    requests: Requests,
    interfaces: Vec<String>,
    book: Book,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::Receiver<Report>, step: Duration) {
        let mut steps = interval(step);
        steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                report = inbox.recv() => match report {
                    Some(report) => self.take(report).await,
                    None => return,
                },
                _ = steps.tick() => self.step().await,
            }
        }
    }

    async fn take(&mut self, report: Report) {
        let now = Instant::now();
        match report {
            Report::Wanted(key) if self.book.wanted(key, now) => self.ask(key).await,
            Report::Used(key) if self.book.used(key, now) => self.confirm(key).await,
            Report::Wanted(_) | Report::Used(_) => {}
        }
    }

    async fn step(&mut self) {
        for key in self.book.due(Instant::now()) {
            self.confirm(key).await;
        }
    }

    /// Confirms a neighbour that is known. One that is not usable is left until a packet asks for it.
    async fn confirm(&self, key: NeighbourKey) {
        let known = self.locate(key).and_then(|place| self.snapshots.borrow().neighbours.get(&place).copied());
        if known.is_some() {
            self.ask(key).await;
        }
    }

    fn locate(&self, (interface, address): NeighbourKey) -> Option<(IfIndex, Ipv4Addr)> {
        let name = self.interfaces.get(usize::from(interface.0))?;
        let (index, _) = self.snapshots.borrow().link(name)?;
        Some((index, address))
    }

    /// Makes the kernel use the neighbour, as if it had a packet for it: it starts to resolve it, or to confirm it if it is stale.
    async fn ask(&self, key: NeighbourKey) {
        let Some(place) = self.locate(key) else { return };
        // NTF_USE takes the permanence from a permanent entry (Linux net/core/neighbour.c, `__neigh_update`).
        let fixed = self.snapshots.borrow().neighbours.get(&place).is_some_and(|known| known.fixed);
        if fixed {
            return;
        }
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        if let Err(error) = self.requests.execute("resolve a neighbour", use_neighbour(place), flags).await {
            tracing::debug!(%error, address = %place.1, interface = place.0, "could not ask for a next hop");
        }
    }
}

/// What `ip neigh replace ADDRESS dev DEVICE use` sends.
fn use_neighbour((interface, address): (IfIndex, Ipv4Addr)) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = interface;
    message.header.state = NeighbourState::None;
    message.header.flags = NeighbourFlags::Use;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    RouteNetlinkMessage::NewNeighbour(message)
}

/// When each next hop was asked about and used. Pure: the time is an argument.
struct Book {
    pace: Pace,
    records: HashMap<NeighbourKey, Record>,
}

#[derive(Clone, Copy)]
struct Record {
    asked: Instant,
    used: Instant,
    /// When it was last asked about for a packet that waits: a confirmation just before does not stand for that, for the neighbour may
    /// have gone since.
    wanted: Option<Instant>,
}

impl Book {
    fn new(pace: Pace) -> Self {
        Self { pace, records: HashMap::new() }
    }

    /// A packet waits for a next hop. Returns whether to ask for it now.
    fn wanted(&mut self, key: NeighbourKey, now: Instant) -> bool {
        let ask = self.pace.ask;
        let Some((record, _)) = self.record(key, now) else { return false };
        let due = record.wanted.is_none_or(|last| now.duration_since(last) >= ask);
        if due {
            (record.asked, record.wanted) = (now, Some(now));
        }
        due
    }

    /// A next hop was used. Returns whether to confirm it now: when it is new here, or due.
    fn used(&mut self, key: NeighbourKey, now: Instant) -> bool {
        let refresh = self.pace.refresh;
        let Some((record, is_new)) = self.record(key, now) else { return false };
        let due = is_new || now.duration_since(record.asked) >= refresh;
        if due {
            record.asked = now;
        }
        due
    }

    /// The record of a next hop that is used now, and whether it is new. None when the book is full.
    fn record(&mut self, key: NeighbourKey, now: Instant) -> Option<(&mut Record, bool)> {
        let is_new = !self.records.contains_key(&key);
        if is_new && self.records.len() >= MOST_RECORDS {
            return None;
        }
        let record = self.records.entry(key).or_insert(Record { asked: now, used: now, wanted: None });
        record.used = now;
        Some((record, is_new))
    }

    /// Forgets the idle ones, and gives those that are due for confirmation, at most [`MOST_CONFIRMATIONS`].
    fn due(&mut self, now: Instant) -> Vec<NeighbourKey> {
        let Pace { refresh, idle, .. } = self.pace;
        self.records.retain(|_, record| now.duration_since(record.used) < idle);
        let due = self.records.iter_mut().filter(|(_, record)| now.duration_since(record.asked) >= refresh);
        due.take(MOST_CONFIRMATIONS)
            .map(|(&key, record)| {
                record.asked = now;
                key
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: u16) -> NeighbourKey {
        let [high, low] = last.to_be_bytes();
        (InterfaceId(1), Ipv4Addr::new(192, 0, high, low))
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_next_hop_is_asked_about_at_most_once_a_second_and_each_for_itself() {
        let mut book = Book::new(Pace::default());
        let start = Instant::now();
        assert!(book.wanted(key(1), start));
        assert!(!book.wanted(key(1), start + Duration::from_millis(999)));
        assert!(book.wanted(key(2), start + Duration::from_millis(999)));
        assert!(book.wanted(key(1), start + seconds(1)));
    }

    #[test]
    fn a_next_hop_that_has_just_been_confirmed_is_asked_for_all_the_same() {
        let mut book = Book::new(Pace::default());
        let start = Instant::now();
        assert!(book.used(key(1), start));
        assert!(book.wanted(key(1), start + Duration::from_millis(10)), "it may have gone since");
    }

    #[test]
    fn a_used_next_hop_is_confirmed_every_thirty_seconds() {
        let mut book = Book::new(Pace::default());
        let start = Instant::now();
        assert!(book.used(key(1), start), "the first use: it may be stale already");
        assert!(!book.used(key(1), start + seconds(29)));
        assert!(book.due(start + seconds(29)).is_empty());
        assert_eq!(book.due(start + seconds(30)), [key(1)]);
        assert!(book.due(start + seconds(31)).is_empty());
    }

    #[test]
    fn a_next_hop_that_is_not_used_for_minutes_is_left_alone() {
        let mut book = Book::new(Pace::default());
        let start = Instant::now();
        assert!(book.used(key(1), start));
        for minute in 0..3 {
            let due = book.due(start + seconds(60 * minute + 59));
            assert_eq!(due, [key(1)], "minute {minute}");
        }
        assert!(book.due(start + seconds(180)).is_empty());
        assert!(book.records.is_empty());
    }

    #[test]
    fn many_next_hops_are_confirmed_a_few_at_a_time_and_all_in_the_end() {
        let mut book = Book::new(Pace::default());
        let start = Instant::now();
        for last in 0..1000 {
            assert!(book.used(key(last), start));
        }
        let mut confirmed = Vec::new();
        for step in 0..4 {
            let due = book.due(start + seconds(30 + step));
            assert!(due.len() <= MOST_CONFIRMATIONS);
            confirmed.extend(due);
        }
        confirmed.sort_unstable();
        confirmed.dedup();
        assert_eq!(confirmed.len(), 1000);
    }

    #[test]
    fn a_full_book_takes_no_more() {
        let mut book = Book::new(Pace::default());
        let start = Instant::now();
        for last in 0..=u16::MAX {
            assert!(book.used(key(last), start));
        }
        assert!(!book.wanted((InterfaceId(2), Ipv4Addr::LOCALHOST), start));
        assert_eq!(book.records.len(), MOST_RECORDS);
    }
}
