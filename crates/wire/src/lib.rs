//! Reads and edits Ethernet, VLAN, IPv4, TCP, UDP and ICMPv4 headers in place and updates checksums.
//!
//! Knows bytes and offsets. Does not know what a packet means to the NAT, nor clocks, files, sockets or threads; keeps no state.
//! Called by `nat` for every packet and by the worker for fragments.
//! Invariant: total on any bytes: nothing panics, and nothing outside the given slice is read or written.
//! Tests: in each file; `tests/` has arbitrary bytes, etherparse as the oracle, and packets that Linux sent.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod checksum;
pub mod embedded;
pub mod ethernet;
pub mod fragment;
pub mod icmp_error;
pub mod icmpv4;
pub mod ipv4;
pub mod packet;
pub mod partial;
pub mod ports;
pub mod pseudo;
pub mod tcp;
pub mod udp;
