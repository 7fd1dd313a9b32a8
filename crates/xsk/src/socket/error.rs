//! Why a socket cannot be opened, with the queue in it and what to do about it.
//!
//! Knows error numbers and words. Made by [`super`].

use std::io;

use super::Queue;
use crate::{capability, umem::UmemError};

/// Why a socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else has the queue.
    #[error("{device} queue {queue} is in use by another AF_XDP socket: stop the other program (is a second gateway running?)")]
    Busy {
        /// The device's name.
        device: String,
        /// The queue's number.
        queue: u32,
    },
    /// No such device in this namespace.
    #[error("{device}: no such device")]
    NoDevice {
        /// The device's name.
        device: String,
    },
    /// The device has no such queue, or its driver refuses the rings.
    #[error("{device} queue {queue}: the device has no such queue, or refuses it: compare `ethtool -l {device}`")]
    NoQueue {
        /// The device's name.
        device: String,
        /// The queue's number.
        queue: u32,
    },
    /// The driver has no zero-copy mode.
    #[error("{device} queue {queue}: the driver grants no zero-copy")]
    NoZeroCopy {
        /// The device's name.
        device: String,
        /// The queue's number.
        queue: u32,
    },
    /// A right is missing.
    #[error("{device} queue {queue}: not permitted; missing {}", capability::list(missing))]
    NotPermitted {
        /// The device's name.
        device: String,
        /// The queue's number.
        queue: u32,
        /// The capabilities' names.
        missing: Vec<&'static str>,
    },
    /// Anything else.
    #[error("{device} queue {queue}: cannot open an AF_XDP socket: {source}")]
    Failed {
        /// The device's name.
        device: String,
        /// The queue's number.
        queue: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// No packet memory.
    #[error(transparent)]
    Umem(#[from] UmemError),
}

/// What an error number of the kernel means for a queue.
pub(super) fn error_of(source: io::Error, queue: &Queue, zero_copy: bool) -> SocketError {
    let Queue { device, queue } = queue.clone();
    match source.raw_os_error() {
        Some(libc::EBUSY) => SocketError::Busy { device, queue },
        Some(libc::ENODEV | libc::ENXIO) => SocketError::NoDevice { device },
        Some(libc::EPERM) => SocketError::NotPermitted { device, queue, missing: capability::missing() },
        Some(libc::EOPNOTSUPP) if zero_copy => SocketError::NoZeroCopy { device, queue },
        Some(libc::EINVAL) => SocketError::NoQueue { device, queue },
        _ => SocketError::Failed { device, queue, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_queue_and_what_to_do() {
        let queue = Queue { device: "eth7".into(), queue: 3 };
        let text = |errno, zero_copy| error_of(io::Error::from_raw_os_error(errno), &queue, zero_copy).to_string();
        assert!(text(libc::EBUSY, false).contains("eth7 queue 3 is in use"));
        assert!(text(libc::EINVAL, false).contains("ethtool -l eth7"));
        assert!(text(libc::ENODEV, false).contains("eth7: no such device"));
        assert!(text(libc::EOPNOTSUPP, true).contains("no zero-copy"));
        assert!(text(libc::EOPNOTSUPP, false).contains("cannot open"));
    }
}
