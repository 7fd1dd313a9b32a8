//! AF_XDP and the NIC: UMEM, frames, rings, sockets, the kernel programs, device settings, memory on huge pages.
//!
//! Knows the kernel's interfaces and no NAT. All unsafe code of the project lives here. Called by the worker (through [`port::Port`])
//! and by the control plane. Invariant: every frame of the UMEM is in exactly one place.

pub mod abi;
pub mod capability;
pub mod device;
pub mod frame;
#[cfg(test)]
mod header;
mod kicker;
pub mod memory;
pub mod napi;
pub mod nic;
pub mod port;
pub mod priority;
pub mod socket;
pub mod steer;
mod sys;
pub mod umem;
