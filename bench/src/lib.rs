//! Traffic generator and sink of our own: stamped packets at a rate, and a check of every one that arrives.
//!
//! Knows packets and Linux interfaces, nothing of the gateway between the two ends, and shares no code with it: a mistake in its
//! checksums cannot hide here. Used by the `portcullis-bench` program and by end-to-end tests. Every run is bounded.
//! Invariant: a loss that is the sink's own is reported as such.
//! Tests: in each module; `tests/wire.rs` runs both ends over a veth pair (root). README.md says what is measured and what is not.

pub mod address;
pub mod checksum;
pub mod echo;
pub mod generate;
mod hold;
mod inspect;
mod interface;
pub mod pace;
pub mod raw;
mod ring;
pub mod sink;
pub mod stamp;
pub mod stream;
pub mod tally;

/// The compiled XDP programs.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, clippy::restriction)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/generate.skel.rs"));
}
