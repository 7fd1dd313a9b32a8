//! Which worker owns what, and which queue a NIC puts a frame into: Toeplitz, keys, tables and owners as pure functions.
//!
//! Knows arithmetic only. Asked by the NAT for every packet (step 4) and for every port that it may allocate; `xsk` programs NICs with
//! the same keys and tables. Invariant: a port that a worker allocates for its subscriber is its own, so that replies need no other
//! worker. The idea and its limits: docs/steering.md, docs/adr/0001-steering-and-mapping.md.
#![forbid(unsafe_code)]

pub mod choose;
pub mod classes;
pub mod fields;
pub mod key;
pub mod linear;
pub mod owners;
pub mod predict;
pub mod shares;
pub mod table;
pub mod toeplitz;
pub mod ways;

pub use owners::{Owners, WorkerId};
