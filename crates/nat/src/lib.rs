//! Decides what happens to a packet: tuple, mapping, session, port, timeout, rewrite, verdict.
//!
//! Knows bytes, a policy snapshot and the time it is told. Does not know sockets, clocks, threads or randomness of its own:
//! a test calls [`Nat::process`] with bytes and a number and gets verdicts. Called by the worker alone.
//! Invariants: no packet leaves untranslated; a dropped first packet leaves nothing behind; every outcome is counted.
//! Sources: RFC 4787, 5382, 5508, 7857, 1812. Tests: `tests/`, and the reference NAT of `testkit`.
#![forbid(unsafe_code)]

mod addresses;
mod adjacency;
mod advance;
mod ahead;
mod arena;
mod arrival;
mod bare;
pub mod counters;
mod due;
mod establish;
mod externals;
mod fast;
mod flow;
mod forward;
mod fragment;
mod guest;
mod hairpin;
mod hash;
mod head;
mod icmp;
mod identities;
mod index;
#[cfg(feature = "internals")]
pub mod internals;
mod leave;
mod limit;
mod mss;
mod nat;
mod open;
mod others;
mod own;
mod packet;
mod path;
pub mod policy;
mod ports;
mod prepare;
mod protocols;
mod reach;
mod record;
mod refusal;
mod rewrite;
mod sequence;
mod sets;
mod show;
mod slab;
mod state;
mod subscribers;
mod sweep;
mod table;
mod tcp;
pub mod time;
mod translate;
mod translate_error;
mod translate_other;
mod two_keys;
mod udp_ports;
mod unsolicited;
pub mod verdict;
pub mod view;

pub use arena::{Capacity, TooSmall};
pub use nat::{Nat, Seeds};
pub use packet::Packet;
pub use ports::REST_MOST;
pub use record::LAYOUT_VERSION;
pub use sweep::SWEEP_ROUND;
