//! AF_XDP and the NIC: UMEM, frames, rings, sockets, the XDP program, memory on huge pages.
//!
//! Knows the kernel's interfaces and no NAT. All unsafe code of the project lives here. Called by the worker (through [`port::Port`])
//! and by the control plane. Invariant: every frame of the UMEM is in exactly one place.

pub mod port;
