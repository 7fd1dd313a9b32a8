//! The doors once more, compiled over loom: the tests beside each door run here over every interleaving of their threads.
//!
//! The same files, with `super::sync` exchanged; no flag and no second build of the dependencies is needed, `cargo test` runs it.

#![allow(
    clippy::duplicate_mod,
    dead_code,
    unused_imports,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "the model runs the tests, not the gateway"
)]

#[path = "bell.rs"]
mod bell;
#[path = "board.rs"]
mod board;
#[path = "commands.rs"]
mod commands;
#[path = "counters.rs"]
mod counters;
#[path = "events.rs"]
mod events;
#[path = "handoff.rs"]
mod handoff;
#[path = "policy.rs"]
mod policy;
#[path = "sync_loom.rs"]
mod sync;
