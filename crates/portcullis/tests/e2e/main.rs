//! End-to-end tests: real programs through the gateway, in network namespaces. As root; skipped loudly otherwise.
//!
//! One topology for all, built by the first test and removed at exit; one gateway, restarted only when a test wants another
//! configuration. Tests run one after another. `PORTCULLIS_E2E_GATEWAY=kernel` runs them against the kernel's masquerade, which shows
//! whether a test that fails asks for more than NAT; tests of what only Portcullis does are skipped there.
//! `PORTCULLIS_E2E_BINARY=target/release/portcullis` tests another build.
//! `PORTCULLIS_E2E_QUEUES=2` gives the gateway two queues a device and two workers, with each frame on a random queue.
//! Blind spots: copy mode, veth; no NIC, no VLAN where the kernel has no VLAN devices.

mod bare;
mod changes;
mod crafted;
mod death;
mod discovery;
mod doctor;
mod driving;
mod errors;
mod filtering;
mod forwards;
mod host;
mod load;
mod offloads;
mod operator;
mod others;
mod punch;
mod reach;
mod wire;
mod world;
