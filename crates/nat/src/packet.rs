//! A packet in its frame, as the worker hands it in.
//!
//! Knows bytes, and what another worker left to do. Made by the worker for each burst. Invariant: the packet lies within its buffer.

use crate::verdict::Errand;

/// A packet in its frame. **Shape:** `buffer` reaches from the packet's first byte (Ethernet) to the end of the frame, so that an
/// ICMP error or a VLAN tag has room; the packet is the first `len` bytes.
#[derive(Debug)]
pub struct Packet<'f> {
    /// The frame's memory.
    pub buffer: &'f mut [u8],
    /// The packet's length in bytes.
    pub len: usize,
    /// What is left to do, of a packet that another worker has handed over.
    pub errand: Errand,
    /// How often it was handed over. Nought: it comes from the device.
    pub handed: u8,
}

impl<'f> Packet<'f> {
    /// A packet from the device: the first `len` bytes of `buffer`.
    pub const fn received(buffer: &'f mut [u8], len: usize) -> Self {
        Self { buffer, len, errand: Errand::Whole, handed: 0 }
    }

    /// A fragment that waited for its first, handed over `handed` times when it came.
    pub const fn released(buffer: &'f mut [u8], len: usize, handed: u8) -> Self {
        Self { buffer, len, errand: Errand::Released, handed }
    }
}

impl Packet<'_> {
    /// Whether it has not been counted as received yet.
    pub(crate) fn is_new(&self) -> bool {
        self.handed == 0 && self.errand != Errand::Released
    }

    pub(crate) fn frame(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    pub(crate) fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}
