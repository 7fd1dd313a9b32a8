//! What a device's settings are to become, whoever decided it.
//!
//! Knows values only. Made by the control plane, carried out by [`super::NicSetup`].

use super::{Channels, Deferral, Fields, Flow, HashFunction, Rule};

/// What a device's settings are to become. What is empty or `None` stays as it is.
///
/// A plan that says anything about the hash (key, table, function, fields) also switches the transform off, under which nothing can be
/// predicted, and the feature [`super::RX_HASH`] on; virtio_net's for fields only, and it stays on. Rules switch [`super::NTUPLE`] on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Receive queues.
    pub queues: Option<u32>,
    /// Descriptors of each receive ring and of each transmit ring.
    pub rings: Option<(u32, u32)>,
    /// The key, as long as the device's.
    pub key: Option<Vec<u8>>,
    /// The queue by the low bits of the hash, as long as the device's table.
    pub table: Option<Vec<u32>>,
    /// The function.
    pub hash: Option<HashFunction>,
    /// The fields that are hashed, by kind of packets.
    pub fields: Vec<(Flow, Fields)>,
    /// Flow rules, the first with the highest precedence among them.
    pub rules: Vec<Rule>,
    /// Features by the kernel's names.
    pub features: Vec<(String, bool)>,
    /// How long queues are left to a poller.
    pub deferral: Option<Deferral>,
}

impl Plan {
    /// Whether anything is said about the hash.
    pub(super) fn is_about_hashing(&self) -> bool {
        self.key.is_some() || self.table.is_some() || self.hash.is_some() || !self.fields.is_empty()
    }
}

/// Channels with that many receive queues: combined ones where the driver has them, else as many for each direction.
pub(super) fn with_queues(now: &Channels, queues: u32) -> Channels {
    if now.max_combined > 0 {
        Channels { combined: queues, rx: 0, tx: 0, ..*now }
    } else {
        Channels { rx: queues, tx: queues.min(now.max_tx), ..*now }
    }
}

/// The most receive queues that [`with_queues`] can give.
pub(super) const fn most_queues(now: &Channels) -> u32 {
    if now.max_combined > 0 { now.max_combined } else { now.max_rx }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_combined_ones_where_the_driver_has_them() {
        let combined = Channels { rx: 2, combined: 4, other: 1, max_rx: 8, max_combined: 8, ..Channels::default() };
        assert_eq!(with_queues(&combined, 6), Channels { rx: 0, combined: 6, ..combined });
        let apart = Channels { rx: 1, tx: 1, max_rx: 4, max_tx: 2, ..Channels::default() };
        assert_eq!(with_queues(&apart, 3), Channels { rx: 3, tx: 2, ..apart });
        assert_eq!((most_queues(&combined), most_queues(&apart)), (8, 4));
    }
}
