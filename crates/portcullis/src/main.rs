//! Portcullis: a NAT gateway for a dedicated Linux box. The one binary: `run` is the gateway, the rest talks to it.
#![deny(unsafe_code)]
#![allow(dead_code, reason = "the gateway that uses the rooms is built beside them")]

mod doors;
mod kernel;
mod worker;

fn main() {}
