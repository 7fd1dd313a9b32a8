//! The messages that the command line and the daemon exchange: data and a version.
//!
//! Knows serde and nothing of the gateway; the daemon converts its own types into these, the command line prints them, programs
//! read them as JSON. Invariant: within one [`VERSION`] fields are only added, never renamed, removed or given another meaning;
//! readers ignore fields they do not know. Tests: every message goes through JSON and back, and the JSON itself is pinned.

#![forbid(unsafe_code)]

mod entry;
mod filter;
mod stats;

pub use entry::{Bare, Direction, Endpoint, MappingEntry, Protocol, SessionEntry, SessionState};
pub use filter::{EndpointFilter, FilterError, SessionFilter};
pub use stats::{
    Config, CopyMode, Frames, Gauges, Interface, Named, PacketTimes, PortUse, Queue, QueueName, Side, Stats, Steering, UdpTracking,
    Worker, XdpMode,
};

use serde::{Deserialize, Serialize};

/// The version of all messages. It is part of the path: `/v1/stats`.
pub const VERSION: u32 = 1;

/// The answer to `/v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The version of the daemon's messages.
    pub api: u32,
    /// The daemon's own version.
    pub portcullis: String,
}

/// One line of a streamed answer. A stream without [`Line::End`] or [`Line::Error`] as its last line was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    /// An entry.
    Entry(T),
    /// There are no more entries.
    End {
        /// How many entries came before.
        entries: u64,
    },
    /// Something went wrong; what came before is valid but not all.
    Error(Error),
}

/// Why a request was not answered, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: what happened and what to do.
    pub message: String,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request makes no sense: an unknown path, a filter that cannot be read.
    BadRequest,
    /// Too many others ask at the moment.
    Busy,
    /// The worker did not answer in time.
    WorkerSilent,
    /// The asker did not read for too long.
    TooSlow,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Serialize + for<'d> Deserialize<'d> + PartialEq + std::fmt::Debug>(value: &T, json: &str) {
        let written = serde_json::to_string(value).expect("messages are plain data");
        assert_eq!(written, json);
        let read: T = serde_json::from_str(&written).expect("what was written can be read");
        assert_eq!(&read, value);
    }

    #[test]
    fn a_version_keeps_its_form() {
        round_trip(&Version { api: 1, portcullis: "0.1.0".to_owned() }, r#"{"api":1,"portcullis":"0.1.0"}"#);
    }

    #[test]
    fn lines_are_told_apart_by_their_key() {
        round_trip(&Line::Entry(7), r#"{"entry":7}"#);
        round_trip(&Line::<u8>::End { entries: 2 }, r#"{"end":{"entries":2}}"#);
        let error = Error { kind: ErrorKind::WorkerSilent, message: "no answer".to_owned() };
        round_trip(&Line::<u8>::Error(error), r#"{"error":{"kind":"worker_silent","message":"no answer"}}"#);
    }

    #[test]
    fn a_field_of_a_later_version_is_ignored() {
        let read: Version = serde_json::from_str(r#"{"api":1,"portcullis":"0.2.0","colour":"red"}"#).expect("readable");
        assert_eq!(read.portcullis, "0.2.0");
    }
}
