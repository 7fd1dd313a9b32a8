//! The door "commands": requests from the control plane, answered by the worker in bounded slices between its bursts.
//!
//! Knows three dumps (sessions, translations of other protocols, mappings) and the phase of the gateway's life. Buffers travel in a circle: the asker makes them, the
//! worker fills them, so the worker allocates nothing and waits for nobody. Invariants: one call of [`Server::serve`] looks at no
//! more than [`SLICE`] records; an asker that goes away ends its dump; a slow asker holds up only itself.
//! Called by `worker.rs` (serve) and the control API (ask).

use std::sync::Arc;

use portcullis_nat::Nat;
use portcullis_nat::time::Tick;
use portcullis_nat::view::{MappingView, OtherView, SessionView};

use super::sync::{ArrayQueue, AtomicBool, AtomicU8, Ordering};

/// Records that one call of [`Server::serve`] looks at. At 20-30 ns a record in a table that is out of the cache this is some
/// 5 us, the time of about ten packets.
pub(crate) const SLICE: u32 = 256;

/// Buffers in a dump's circle.
const BUFFERS: usize = 4;

/// Dumps that go on at once; more wait in the request queue.
const DUMPS: usize = 4;

/// Requests that wait.
const REQUESTS: usize = 4;

/// Where the gateway is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// It forwards.
    Running = 0,
    /// It forwards what has a session and starts nothing new.
    Draining = 1,
    /// It is to detach and end.
    Stopping = 2,
}

/// What a dump reads: the NAT's tables, or a test's.
pub(crate) trait Tables {
    /// See [`Nat::sessions`].
    fn sessions(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<SessionView>) -> Option<u32>;

    /// See [`Nat::others`].
    fn others(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<OtherView>) -> Option<u32>;

    /// See [`Nat::mappings`].
    fn mappings(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<MappingView>) -> Option<u32>;
}

impl Tables for Nat<'_> {
    fn sessions(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<SessionView>) -> Option<u32> {
        Self::sessions(self, cursor, most, now, into)
    }

    fn others(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<OtherView>) -> Option<u32> {
        Self::others(self, cursor, most, now, into)
    }

    fn mappings(&self, cursor: u32, most: u32, now: Tick, into: &mut Vec<MappingView>) -> Option<u32> {
        Self::mappings(self, cursor, most, now, into)
    }
}

/// Where a dump's two ends meet.
#[derive(Debug)]
struct Circle<V> {
    full: ArrayQueue<Vec<V>>,
    empty: ArrayQueue<Vec<V>>,
    /// Set by the worker after its last buffer.
    finished: AtomicBool,
    /// Set when the asker goes away.
    abandoned: AtomicBool,
}

impl<V> Circle<V> {
    fn new() -> Arc<Self> {
        let circle = Self {
            full: ArrayQueue::new(BUFFERS),
            empty: ArrayQueue::new(BUFFERS),
            finished: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
        };
        for _ in 0..BUFFERS {
            // There is room: the queue was just made with this capacity.
            let _ = circle.empty.push(Vec::with_capacity(SLICE as usize));
        }
        Arc::new(circle)
    }
}

/// The worker's end of one dump.
#[derive(Debug)]
struct Progress<V> {
    circle: Arc<Circle<V>>,
    cursor: u32,
}

impl<V> Progress<V> {
    /// Fills at most one buffer. Returns whether the dump goes on.
    fn advance(&mut self, read: impl FnOnce(u32, &mut Vec<V>) -> Option<u32>) -> bool {
        if self.circle.abandoned.load(Ordering::Relaxed) {
            return false;
        }
        let Some(mut buffer) = self.circle.empty.pop() else { return true };
        let next = read(self.cursor, &mut buffer);
        // There is room: there are never more buffers than the queue's capacity.
        let _ = self.circle.full.push(buffer);
        match next {
            Some(cursor) => self.cursor = cursor,
            // Release: whoever sees the end sees every buffer before it.
            None => self.circle.finished.store(true, Ordering::Release),
        }
        next.is_some()
    }
}

#[derive(Debug)]
enum Request {
    Sessions(Progress<SessionView>),
    Others(Progress<OtherView>),
    Mappings(Progress<MappingView>),
}

impl Request {
    fn advance(&mut self, tables: &impl Tables, now: Tick) -> bool {
        match self {
            Self::Sessions(dump) => dump.advance(|cursor, into| tables.sessions(cursor, SLICE, now, into)),
            Self::Others(dump) => dump.advance(|cursor, into| tables.others(cursor, SLICE, now, into)),
            Self::Mappings(dump) => dump.advance(|cursor, into| tables.mappings(cursor, SLICE, now, into)),
        }
    }
}

#[derive(Debug)]
struct Shared {
    requests: ArrayQueue<Request>,
    phase: AtomicU8,
}

/// The worker's side.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    dumps: [Option<Request>; DUMPS],
    turn: usize,
}

/// The control plane's side. Clones ask the same worker.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    shared: Arc<Shared>,
}

/// The two sides of a door, in the phase running.
pub(crate) fn door() -> (Asker, Server) {
    let shared = Arc::new(Shared { requests: ArrayQueue::new(REQUESTS), phase: AtomicU8::new(Phase::Running as u8) });
    (Asker { shared: Arc::clone(&shared) }, Server { shared, dumps: Default::default(), turn: 0 })
}

impl Server {
    /// Where the gateway is in its life, as the control plane last said. **Cost:** one atomic load.
    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        match self.shared.phase.load(Ordering::Relaxed) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Stopping,
        }
    }

    /// Answers one slice of one dump, of the dumps in turn. Called between bursts. Returns whether a dump is under way, so that a
    /// worker with nothing else to do comes back soon. **Cost:** two loads when nobody asks; at most [`SLICE`] records otherwise.
    pub(crate) fn serve(&mut self, tables: &impl Tables, now: Tick) -> bool {
        self.turn = (self.turn + 1) % DUMPS;
        let busy = self.dumps.iter().any(Option::is_some);
        let place = &mut self.dumps[self.turn];
        if place.is_none() && !self.shared.requests.is_empty() {
            *place = self.shared.requests.pop();
        }
        let Some(dump) = place else { return busy };
        if !dump.advance(tables, now) {
            *place = None;
        }
        true
    }
}

/// A dump as the asker sees it. Dropping it ends the dump.
#[derive(Debug)]
pub(crate) struct Dump<V> {
    circle: Arc<Circle<V>>,
}

/// What a dump has at the moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk<V> {
    /// Some records; give the buffer back with [`Dump::recycle`]. Possibly none, where a slice of the table had no live record.
    Records(Vec<V>),
    /// Nothing yet: ask again in a moment.
    NotYet,
    /// That was all.
    End,
}

impl<V> Dump<V> {
    /// What has arrived. Never waits.
    pub(crate) fn next(&mut self) -> Chunk<V> {
        // The order matters: a buffer may come between a look at the queue and a look at the flag, none comes after the flag.
        let finished = self.circle.finished.load(Ordering::Acquire);
        match self.circle.full.pop() {
            Some(records) => Chunk::Records(records),
            None if finished => Chunk::End,
            None => Chunk::NotYet,
        }
    }

    /// Gives a buffer back for the worker to fill again. Without it a dump stops after a few buffers.
    pub(crate) fn recycle(&mut self, mut buffer: Vec<V>) {
        buffer.clear();
        buffer.reserve(SLICE as usize);
        // A full queue means that the buffer is not one of this dump's; then it is simply dropped.
        let _ = self.circle.empty.push(buffer);
    }
}

impl<V> Drop for Dump<V> {
    fn drop(&mut self) {
        self.circle.abandoned.store(true, Ordering::Relaxed);
    }
}

/// Too many dumps wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker is busy with other dumps; try again in a moment")]
pub(crate) struct Busy;

impl Asker {
    /// Asks for all live sessions.
    pub(crate) fn sessions(&self) -> Result<Dump<SessionView>, Busy> {
        self.ask(Request::Sessions)
    }

    /// Asks for all live translations of protocols without ports.
    pub(crate) fn others(&self) -> Result<Dump<OtherView>, Busy> {
        self.ask(Request::Others)
    }

    /// Asks for all live mappings.
    pub(crate) fn mappings(&self) -> Result<Dump<MappingView>, Busy> {
        self.ask(Request::Mappings)
    }

    /// Tells the worker the phase.
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn ask<V>(&self, request: impl FnOnce(Progress<V>) -> Request) -> Result<Dump<V>, Busy> {
        let circle = Circle::new();
        let dump = Dump { circle: Arc::clone(&circle) };
        self.shared.requests.push(request(Progress { circle, cursor: 0 })).map_err(|_| Busy)?;
        Ok(dump)
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use portcullis_nat::policy::{Endpoint, Protocol};

    use super::super::sync::{model, spin_loop, thread};
    use super::*;

    /// Tables of `records` mappings with two to a slice, whatever slice is asked for.
    struct Two {
        records: u32,
    }

    fn mapping(number: u32) -> MappingView {
        let endpoint = Endpoint { address: Ipv4Addr::from(number), port: 1 };
        MappingView { protocol: Protocol::Udp, internal: endpoint, external: endpoint, scope: None, sessions: number, bare: None }
    }

    impl Tables for Two {
        fn sessions(&self, _: u32, _: u32, _: Tick, _: &mut Vec<SessionView>) -> Option<u32> {
            None
        }

        fn others(&self, _: u32, _: u32, _: Tick, _: &mut Vec<OtherView>) -> Option<u32> {
            None
        }

        fn mappings(&self, cursor: u32, most: u32, _: Tick, into: &mut Vec<MappingView>) -> Option<u32> {
            assert_eq!(most, SLICE);
            into.extend((cursor..self.records).take(2).map(mapping));
            (cursor + 2 < self.records).then_some(cursor + 2)
        }
    }

    fn collect(mut dump: Dump<MappingView>) -> Vec<u32> {
        let mut seen = Vec::new();
        loop {
            match dump.next() {
                Chunk::Records(records) => {
                    seen.extend(records.iter().map(|record| record.sessions));
                    dump.recycle(records);
                }
                Chunk::NotYet => spin_loop(),
                Chunk::End => return seen,
            }
        }
    }

    #[test]
    fn a_dump_gives_every_record_once_and_in_order() {
        model(|| {
            let (asker, mut server) = door();
            let dump = asker.mappings().expect("room for a request");
            let worker = thread::spawn(move || {
                for _ in 0..3 * DUMPS {
                    server.serve(&Two { records: 5 }, Tick(0));
                }
            });
            assert_eq!(collect(dump), [0, 1, 2, 3, 4]);
            worker.join().expect("the worker ends");
        });
    }

    #[test]
    fn an_asker_that_goes_away_ends_its_dump() {
        model(|| {
            let (asker, mut server) = door();
            let mut dump = asker.mappings().expect("room for a request");
            let leaving = thread::spawn(move || {
                let _ = dump.next();
            });
            for _ in 0..DUMPS {
                server.serve(&Two { records: 1000 }, Tick(0));
            }
            leaving.join().expect("the asker leaves");
            for _ in 0..DUMPS {
                server.serve(&Two { records: 1000 }, Tick(0));
            }
            assert!(server.dumps.iter().all(Option::is_none), "nothing is left of it");
        });
    }

    #[test]
    fn a_slow_asker_holds_up_only_itself() {
        model(|| {
            let (asker, mut server) = door();
            let slow = asker.mappings().expect("room for a request");
            let quick = asker.mappings().expect("room for a second request");
            // The slow one's buffers are all full after this many turns.
            for _ in 0..(BUFFERS + 2) * DUMPS {
                server.serve(&Two { records: 8 }, Tick(0));
            }
            assert_eq!(collect(quick), (0..8).collect::<Vec<_>>());
            let mut slow = slow;
            let Chunk::Records(first) = slow.next() else { panic!("buffers wait for the slow one") };
            assert_eq!(first, [mapping(0), mapping(1)]);
        });
    }

    #[test]
    fn too_many_requests_are_refused_and_served_requests_make_room() {
        model(|| {
            let (asker, mut server) = door();
            let waiting: Vec<_> = (0..REQUESTS).map(|_| asker.mappings().expect("room for a request")).collect();
            assert_eq!(asker.mappings().err(), Some(Busy));
            for _ in 0..DUMPS {
                assert!(server.serve(&Two { records: 1 }, Tick(0)));
            }
            assert!(asker.mappings().is_ok());
            assert!(waiting.into_iter().all(|dump| collect(dump) == [0]));
        });
    }

    #[test]
    fn the_worker_learns_the_phase() {
        model(|| {
            let (asker, server) = door();
            assert_eq!(server.phase(), Phase::Running);
            let stopping = thread::spawn(move || {
                asker.set_phase(Phase::Draining);
                asker.set_phase(Phase::Stopping);
            });
            let first = server.phase();
            let second = server.phase();
            assert!(first as u8 <= second as u8, "the phases come in order");
            stopping.join().expect("the control plane ends");
            assert_eq!(server.phase(), Phase::Stopping);
        });
    }
}
