//! What tests are made of: packets, pcap files, the reference NAT, random traffic, an in-memory wire, a clock that is
//! turned, and namespaces for real programs ([`topology`]).
//!
//! A dev-dependency only. Knows the NAT's public values (policy, verdict, views), never its code: the reference is written from the
//! RFCs, so that the two can disagree. Tests: in each file, and `tests/oracle.rs` for the NAT itself.

pub use portcullis_lab::builder;

pub mod fleet;
pub mod generate;
#[cfg(feature = "world")]
pub mod memory_wire;
pub mod pcap;
pub mod reference;
#[cfg(feature = "world")]
pub mod topology;
