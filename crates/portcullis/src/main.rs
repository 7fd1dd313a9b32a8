//! Placeholder.
#![allow(dead_code, unused_imports)]

mod kernel;

fn main() {}
