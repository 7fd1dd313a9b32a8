//! Random policies, networks and traffic, with small windows: few hosts, few ports, small pools, so that everything collides.
//!
//! Knows proptest and the builder; steps are symbolic ("answer the third packet that came out") and become bytes when they run, as
//! only then the ports that the NAT chose are known. Called by `tests/oracle.rs` and `tests/workers.rs`. Invariant: every legal value can come up, and any
//! bytes at all. Tests: in the files beside.

pub mod resolve;
pub mod steps;
pub mod world;

pub use resolve::{Forwarded, Received, Stage};
pub use steps::{Scenario, Step, scaled, scenario, scenario_of_bare, scenario_of_others};
pub use world::{Plan, plan};
