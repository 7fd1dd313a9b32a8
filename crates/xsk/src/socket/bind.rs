//! Binding a socket to a queue that may still be busy, and proving that the kernel has let go of one.
//!
//! Knows names, indices and namespaces, no frames. Called by [`super::Socket`]. Invariant: a queue counts as released only when the
//! kernel lets it be bound again, or has no such device in the namespace that the socket was bound in.

use std::{ffi::CString, io, os::fd::RawFd, time::Duration};

use xsk_rs::config::{BindFlags, SocketConfig};

use super::{Queue, SocketError, error::error_of};
use crate::{
    sys,
    umem::{Rings, Shared, SocketRings, socket_config},
};

/// How long a bind waits for a queue that a process before us has not quite released (0.35 s were seen after a kill).
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
/// Ring entries of a socket that is bound only to see whether it can be: the smallest that the other sockets may have, too.
const PROBE_RINGS: SocketRings = SocketRings::even(64);
/// A queue as the kernel numbers it, whatever the device's name has become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    namespace: u64,
    ifindex: u32,
    queue: u32,
}

impl Place {
    /// The place of a socket that is bound to `queue`.
    pub(super) fn of(queue: &Queue, fd: RawFd) -> io::Result<Self> {
        let ifindex = nix::net::if_::if_nametoindex(queue.device.as_str())?;
        Ok(Self { namespace: sys::namespace_of(fd)?, ifindex, queue: queue.queue })
    }
}

/// Whether the kernel has nothing of ours on a queue: a socket that is bound to it for a moment, with empty rings, is the proof.
pub(super) fn is_released(shared: &Shared, place: Place) -> bool {
    if sys::namespace_here().ok() != Some(place.namespace) {
        tracing::warn!(?place, "a socket was closed from another namespace: its frames are lost");
        return false;
    }
    let Some(device) = sys::device_name(place.ifindex) else { return true };
    let queue = Queue { device, queue: place.queue };
    match bind_patiently(shared, socket_config(PROBE_RINGS, BindFlags::XDP_USE_NEED_WAKEUP), &queue) {
        Ok(rings) => {
            drop(rings);
            true
        }
        Err(_) if sys::device_name(place.ifindex).is_none() => true,
        Err(error) => {
            tracing::warn!(%error, "the queue was not released: its frames are lost");
            false
        }
    }
}

/// Binds; a queue that is busy is tried again until the patience is over.
pub(super) fn bind_patiently(shared: &Shared, config: SocketConfig, queue: &Queue) -> Result<Rings, SocketError> {
    let failed = |source| error_of(source, queue, shared.zero_copy);
    let name = CString::new(queue.device.as_str()).map_err(|_| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
    let mut attempts = sys::Attempts::new(BUSY_PATIENCE);
    loop {
        match shared.bind(config, &name, queue.queue) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempts.again() => {}
            result => return result.map_err(failed),
        }
    }
}
