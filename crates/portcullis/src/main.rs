//! Portcullis: a NAT gateway for a dedicated Linux box.
#![deny(unsafe_code)]
#![allow(dead_code, reason = "the gateway that uses the doors is built beside them")]

mod doors;

fn main() {}
