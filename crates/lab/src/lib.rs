//! Packets made by hand, and network namespaces with programs in them.
//!
//! What the tests (`portcullis-testkit` gives all of it on under its own name) and `portcullis natcheck` share, so that the program that
//! people run does not pull in the tests' generators and reference. Knows the NAT's names for endpoints and nothing of its code: every
//! checksum is computed from scratch. Tests: in each file, and in the testkit's topology.

pub mod builder;
pub mod cleanup;
pub mod namespace;
pub mod program;
pub mod spray;
