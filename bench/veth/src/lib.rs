//! Gateways side by side over veth, on one core: the kernel's source NAT, a bare AF_XDP forwarder, and Portcullis.
//!
//! Knows namespaces, wires, a tester at both ends, and how each gateway is started and what it cost. Knows nothing of the NAT's inside.
//! Used by the `bench-veth` program. Needs root. Invariants: everything that is built is removed, whatever happens; all of a gateway's
//! work is on one core and the tester's on another. bench/README.md says what the numbers mean and what they do not.
//! Tests: in each module; `tests/smoke.rs` runs all of it for a few seconds.

#![allow(clippy::cast_precision_loss, reason = "counts of packets and nanoseconds are below 2^52")]
#![allow(clippy::cast_sign_loss, reason = "rates and times are not negative")]

pub mod cell;
pub mod compare;
pub mod control;
pub mod cpu;
pub mod forward;
pub mod gateway;
pub mod host;
pub mod napi;
pub mod newflows;
pub mod plot;
pub mod prepared;
pub mod report;
pub mod rounds;
pub mod run;
pub mod search;
pub mod sink;
pub mod soak;
pub mod stall;
pub mod tester;
pub mod timeline;
pub mod windows;
pub mod world;
