//! Every requirement's test once more, with four workers that share the gateway, each packet coming to any of them.
//!
//! The same files as elsewhere, seen from here; `common` looks at whose they are.
#![allow(clippy::duplicate_mod, reason = "each file has its own `common`")]

#[path = "bare.rs"]
mod bare;
#[path = "other_protocols.rs"]
mod other_protocols;
#[path = "rfc4787.rs"]
mod rfc4787;
#[path = "rfc5382.rs"]
mod rfc5382;
#[path = "rfc5508.rs"]
mod rfc5508;
#[path = "rfc6888.rs"]
mod rfc6888;
#[path = "rfc7857.rs"]
mod rfc7857;
#[path = "router.rs"]
mod router;
