//! Decides what happens to a packet: tuple, mapping, session, port, timeout, rewrite, verdict.
//!
//! Knows bytes, a policy snapshot and the time it is told. Does not know sockets, clocks, threads or randomness of its own:
//! a test calls [`Nat::process`] with bytes and a number and gets verdicts. Called by the worker alone.
//! Invariants: no packet leaves untranslated; a dropped first packet leaves nothing behind; every outcome is counted.
//! Sources: RFC 4787, 5382, 5508, 7857, 1812. Tests: `tests/`, and the reference NAT of `testkit`.

pub mod counters;
mod nat;
pub mod policy;
pub mod time;
pub mod verdict;
pub mod view;

pub use nat::{Capacity, Nat, Packet, Seeds};
