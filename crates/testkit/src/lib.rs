//! Packet builder, reference NAT, generators, in-memory wire, namespace topologies: what tests need and nobody ships.

pub mod topology;
