//! A dump on its way from the door "commands" to the asker: records to JSON lines, a chunk at a time.
//!
//! Knows neither tables nor sockets. A task pulls from the worker and pushes into a short channel that the connection reads.
//! Invariants: memory is bounded by the door's buffers and the channel; the task ends when the asker goes away, when he reads
//! nothing for [`STALLED`], and when the worker says nothing for [`SILENT`]; the last line says which.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::time::Duration;

use axum::body::{Body, Bytes};
use portcullis_api as api;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::doors::commands::{Busy, Chunk, Dump};

/// The worker answers a slice between two bursts, or wakes from its idle sleep: milliseconds. This is a thousand times that.
const SILENT: Duration = Duration::from_secs(2);

/// How long an asker may read nothing, as a person with a pager does.
const STALLED: Duration = Duration::from_mins(5);

/// How long to wait before the next look at a dump that had nothing. The worker wakes nobody: that would be a system call.
const PAUSE: Duration = Duration::from_millis(1);

/// Chunks between the task and the connection.
const CHUNKS: usize = 4;

/// Dumps of one kind, and what makes messages of their records.
pub(super) struct Part<D, V, E> {
    pub(super) dumps: D,
    pub(super) convert: fn(&V) -> E,
}

/// Asks for the dumps of the second kind, once those of the first are done: so that they do not wait at the worker meanwhile.
pub(super) type Ask<V> = Box<dyn FnOnce() -> Result<Vec<Dump<V>>, Busy> + Send>;

/// The body of the answer: the entries of the first part, then those of the other, if there is one. `wanted` says which are sent.
pub(super) fn body<V, O, E>(
    first: Part<Vec<Dump<V>>, V, E>,
    then: Option<Part<Ask<O>, O, E>>,
    wanted: impl Fn(&E) -> bool + Send + Sync + 'static,
) -> Body
where
    V: Send + 'static,
    O: Send + 'static,
    E: Serialize + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS);
    tokio::spawn(async move {
        let mut stream = Stream { sender, entries: 0, wanted, entry: PhantomData };
        let last = match stream.both(first, then).await {
            Ok(()) => api::Line::<E>::End { entries: stream.entries },
            Err(Ended::Told(error)) => api::Line::Error(error),
            Err(Ended::Gone) => return,
        };
        // An asker that is gone does not need the last line.
        let _ = stream.send(line(&last)).await;
    });
    let lines = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    Body::from_stream(futures_util::StreamExt::map(lines, Ok::<_, Infallible>))
}

/// Why a stream ended early.
enum Ended {
    /// The asker is to be told.
    Told(api::Error),
    /// Nobody listens.
    Gone,
}

struct Stream<E, W> {
    sender: mpsc::Sender<Bytes>,
    entries: u64,
    wanted: W,
    entry: PhantomData<fn(&E)>,
}

impl<E: Serialize, W: Fn(&E) -> bool> Stream<E, W> {
    async fn both<V, O>(&mut self, first: Part<Vec<Dump<V>>, V, E>, then: Option<Part<Ask<O>, O, E>>) -> Result<(), Ended> {
        self.all(first).await?;
        if let Some(Part { dumps, convert }) = then {
            let dumps = dumps().map_err(|busy| Ended::Told(told(api::ErrorKind::Busy, busy.to_string())))?;
            self.all(Part { dumps, convert }).await?;
        }
        Ok(())
    }

    async fn all<V>(&mut self, Part { dumps, convert }: Part<Vec<Dump<V>>, V, E>) -> Result<(), Ended> {
        for dump in dumps {
            self.one(dump, convert).await?;
        }
        Ok(())
    }

    async fn one<V>(&mut self, mut dump: Dump<V>, convert: fn(&V) -> E) -> Result<(), Ended> {
        let mut heard = Instant::now();
        loop {
            match dump.next() {
                Chunk::End => return Ok(()),
                Chunk::Records(records) => {
                    let lines = self.lines(&records, convert);
                    dump.recycle(records);
                    if !lines.is_empty() {
                        self.send(lines).await?;
                    }
                    heard = Instant::now();
                }
                Chunk::NotYet if heard.elapsed() > SILENT => return Err(Ended::Told(silent())),
                Chunk::NotYet if self.sender.is_closed() => return Err(Ended::Gone),
                Chunk::NotYet => sleep(PAUSE).await,
            }
        }
    }

    fn lines<V>(&mut self, records: &[V], convert: fn(&V) -> E) -> Vec<u8> {
        let mut lines = Vec::new();
        for entry in records.iter().map(convert).filter(|entry| (self.wanted)(entry)) {
            self.entries += 1;
            lines.append(&mut line(&api::Line::Entry(entry)));
        }
        lines
    }

    async fn send(&self, lines: Vec<u8>) -> Result<(), Ended> {
        match timeout(STALLED, self.sender.send(lines.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Gone),
            Err(_) => {
                let message = format!("nothing was read for {} s, so the dump was given up", STALLED.as_secs());
                Err(Ended::Told(told(api::ErrorKind::TooSlow, message)))
            }
        }
    }
}

fn silent() -> api::Error {
    let seconds = SILENT.as_secs();
    let message =
        format!("the worker did not answer for {seconds} s: it is stuck (see `portcullis stats`) or busy with other dumps");
    told(api::ErrorKind::WorkerSilent, message)
}

const fn told(kind: api::ErrorKind, message: String) -> api::Error {
    api::Error { kind, message }
}

/// A message and a newline.
fn line<T: Serialize>(message: &api::Line<T>) -> Vec<u8> {
    // Messages are plain data with string keys: writing them to memory cannot fail.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}
