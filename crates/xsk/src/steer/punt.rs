//! Giving a frame back to the kernel: it enters the receive path of its device as if it had just arrived.
//!
//! Knows `BPF_PROG_RUN` with live frames. Called by the worker for packets that no mapping claims; the caller limits the rate. Invariant:
//! the frame is copied; the XDP program sees it no second time, or knows it (generic mode). Source: kernel `net/bpf/test_run.c`.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle,
    libbpf_sys::{bpf_prog_test_run_opts, bpf_test_run_opts, xdp_md},
};

use super::{Steer, SteerError, tables};
use crate::abi;

/// Run the program's verdict for real (linux/bpf.h).
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
/// The shortest frame that the kernel takes: an Ethernet header.
const SHORTEST: usize = 14;

/// The door back into the kernel. Any thread may use it; it holds descriptors only.
#[derive(Debug)]
pub struct Punter {
    program: OwnedFd,
    punted: MapHandle,
}

impl Steer {
    /// A door for a worker.
    pub fn punter(&self) -> Result<Punter, SteerError> {
        let table = |source| SteerError::Table { table: "punted", source };
        let punted = MapHandle::try_from(&self.maps.punted).map_err(|error| tables::error("punted", &error))?;
        Ok(Punter { program: self.punt.try_clone().map_err(table)?, punted })
    }
}

impl Punter {
    /// Puts a frame, from its Ethernet header on, into the receive path of device `ifindex`. The kernel checks the checksums, so a
    /// partial one has to be finished before.
    ///
    /// **Cost:** a system call that builds a page pool, some tens of microseconds: for exceptions only, and limited by the caller.
    /// **Errors:** [`SteerError::Punt`]: no such device in this namespace, no XDP program on a device that needs one (veth), or a
    /// frame shorter than an Ethernet header or longer than about 3400 bytes.
    pub fn punt(&self, ifindex: u32, frame: &[u8]) -> Result<(), SteerError> {
        let failed = |source| SteerError::Punt { ifindex, source };
        if frame.len() < SHORTEST {
            return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        if let Some(key) = abi::punted_key(frame) {
            self.punted.update(&key, &[1], MapFlags::ANY).map_err(|error| tables::error("punted", &error))?;
        }
        let mut context = xdp_md { data_end: frame.len() as u32, ingress_ifindex: ifindex, ..Default::default() };
        let mut options = bpf_test_run_opts { sz: size_of::<bpf_test_run_opts>() as _, ..Default::default() };
        options.data_in = frame.as_ptr().cast();
        options.data_size_in = frame.len() as u32;
        options.ctx_in = (&raw mut context).cast();
        options.ctx_size_in = size_of::<xdp_md>() as u32;
        options.flags = BPF_F_TEST_XDP_LIVE_FRAMES;
        options.repeat = 1;
        options.batch_size = 1;
        // SAFETY: the pointers are to `frame` and `context` with their lengths, both live through the call; no output is asked for.
        let result = unsafe { bpf_prog_test_run_opts(self.program.as_fd().as_raw_fd(), &raw mut options) };
        if result < 0 { Err(failed(io::Error::from_raw_os_error(-result))) } else { Ok(()) }
    }
}
