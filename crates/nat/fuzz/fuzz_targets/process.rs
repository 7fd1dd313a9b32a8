//! Any bytes, read as a script of packets, time and changes, by the body that `tests/any_bytes.rs` has too.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| common::bytes::run(bytes));
