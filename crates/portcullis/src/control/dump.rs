//! A dump on its way from the door "commands" to the asker: records to JSON lines, a chunk at a time.
//!
//! Knows neither tables nor sockets. A task pulls from the worker and pushes into a short channel that the connection reads.
//! Invariants: memory is bounded by the door's buffers and the channel; the task ends when the asker goes away, when he reads
//! nothing for [`STALLED`], and when the worker says nothing for [`SILENT`]; the last line says which.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use portcullis_api as api;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::doors::commands::{Chunk, Dump};

/// The worker answers a slice between two bursts, or wakes from its idle sleep: milliseconds. This is a thousand times that.
const SILENT: Duration = Duration::from_secs(2);

/// How long an asker may read nothing, as a person with a pager does.
const STALLED: Duration = Duration::from_mins(5);

/// How long to wait before the next look at a dump that had nothing. The worker wakes nobody: that would be a system call.
const PAUSE: Duration = Duration::from_millis(1);

/// Chunks between the task and the connection.
const CHUNKS: usize = 4;

/// The body of the answer. `convert` makes the message of a record, `wanted` says which are sent.
pub(super) fn body<V, E>(dumps: Vec<Dump<V>>, convert: fn(&V) -> E, wanted: impl Fn(&E) -> bool + Send + Sync + 'static) -> Body
where
    V: Send + 'static,
    E: Serialize + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHUNKS);
    tokio::spawn(async move {
        let mut stream = Stream { sender, entries: 0, wanted, convert };
        let last = match stream.all(dumps).await {
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

struct Stream<V, E, W> {
    sender: mpsc::Sender<Bytes>,
    entries: u64,
    wanted: W,
    convert: fn(&V) -> E,
}

impl<V, E: Serialize, W: Fn(&E) -> bool> Stream<V, E, W> {
    async fn all(&mut self, dumps: Vec<Dump<V>>) -> Result<(), Ended> {
        for dump in dumps {
            self.one(dump).await?;
        }
        Ok(())
    }

    async fn one(&mut self, mut dump: Dump<V>) -> Result<(), Ended> {
        let mut heard = Instant::now();
        loop {
            match dump.next() {
                Chunk::End => return Ok(()),
                Chunk::Records(records) => {
                    let lines = self.lines(&records);
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

    fn lines(&mut self, records: &[V]) -> Vec<u8> {
        let mut lines = Vec::new();
        for entry in records.iter().map(self.convert).filter(|entry| (self.wanted)(entry)) {
            self.entries += 1;
            lines.append(&mut line(&api::Line::Entry(entry)));
        }
        lines
    }

    async fn send(&self, lines: Vec<u8>) -> Result<(), Ended> {
        match timeout(STALLED, self.sender.send(lines.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Gone),
            Err(_) => Err(Ended::Told(api::Error {
                kind: api::ErrorKind::TooSlow,
                message: format!("nothing was read for {} s, so the dump was given up", STALLED.as_secs()),
            })),
        }
    }
}

fn silent() -> api::Error {
    let seconds = SILENT.as_secs();
    let message =
        format!("the worker did not answer for {seconds} s: it is stuck (see `portcullis stats`) or busy with other dumps");
    api::Error { kind: api::ErrorKind::WorkerSilent, message }
}

/// A message and a newline.
fn line<T: Serialize>(message: &api::Line<T>) -> Vec<u8> {
    // Messages are plain data with string keys: writing them to memory cannot fail.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}
