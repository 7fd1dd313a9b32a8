//! What the fuzzers run, one body for each target, and the inputs that they found.
//!
//! A body takes any bytes and panics where something does not hold. The fuzzer's side is `libfuzzer/`, a package apart, since it
//! instruments all it builds. Here the same bodies are plain functions, so that `tests/corpus.rs` plays every stored input again
//! with each test run. Most bodies stand beside the property tests that share them.

mod control;
pub mod corpus;
mod netlink;

#[path = "../../config/tests/common/text.rs"]
mod config;
#[path = "../../nat/tests/common/mod.rs"]
mod nat;
#[path = "../../wire/tests/common/bytes.rs"]
mod wire;

/// Bytes to be tried; a panic is a finding.
pub type Body = fn(&[u8]);

/// A target by its name, which the files of its inputs bear.
pub const TARGETS: [(&str, Body); 5] = [
    ("parse", wire::run),
    ("process", nat::bytes::run),
    ("config", config_file),
    ("control", control::run),
    ("netlink", netlink::run),
];

/// The body of a target. **Panics:** when there is no such target.
pub fn body(target: &str) -> Body {
    TARGETS.iter().find(|(name, _)| *name == target).unwrap_or_else(|| panic!("no target '{target}'")).1
}

/// A file that is not UTF-8 is refused before it is read as a configuration.
fn config_file(bytes: &[u8]) {
    if let Ok(text) = core::str::from_utf8(bytes) {
        config::read(text);
    }
}
