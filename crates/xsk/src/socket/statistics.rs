//! What the kernel counts for a queue.
//!
//! Knows `XDP_STATISTICS` (`linux/if_xdp.h`). Called by the statistics thread with a socket's descriptor.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use crate::sys;

/// What the kernel counts for a queue (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatistics {
    /// Received packets dropped for another reason than those below: too long for a frame, for instance.
    pub rx_dropped: u64,
    /// Received packets dropped because of an invalid descriptor in the fill ring.
    pub rx_invalid_descs: u64,
    /// Packets not transmitted because of an invalid descriptor.
    pub tx_invalid_descs: u64,
    /// Received packets dropped because the worker did not empty the rx ring.
    pub rx_ring_full: u64,
    /// Times that the kernel found the fill ring empty.
    pub rx_fill_ring_empty_descs: u64,
    /// Times that the kernel found the tx ring empty.
    pub tx_ring_empty_descs: u64,
}

impl QueueStatistics {
    /// The counters with their labels, for metrics and tables.
    pub fn rows(&self) -> [(&'static str, u64); 6] {
        [
            ("rx_dropped", self.rx_dropped),
            ("rx_invalid_descs", self.rx_invalid_descs),
            ("tx_invalid_descs", self.tx_invalid_descs),
            ("rx_ring_full", self.rx_ring_full),
            ("rx_fill_ring_empty_descs", self.rx_fill_ring_empty_descs),
            ("tx_ring_empty_descs", self.tx_ring_empty_descs),
        ]
    }
}

/// Reads a queue's statistics from its descriptor, from any thread. **Cost:** one system call.
pub fn statistics(fd: BorrowedFd<'_>) -> io::Result<QueueStatistics> {
    // SAFETY: six counters of the kernel's struct xdp_statistics: any bytes are legal.
    let raw: [u64; 6] = unsafe { sys::get_option(fd.as_raw_fd(), libc::SOL_XDP, libc::XDP_STATISTICS) }?;
    Ok(QueueStatistics {
        rx_dropped: raw[0],
        rx_invalid_descs: raw[1],
        tx_invalid_descs: raw[2],
        rx_ring_full: raw[3],
        rx_fill_ring_empty_descs: raw[4],
        tx_ring_empty_descs: raw[5],
    })
}
