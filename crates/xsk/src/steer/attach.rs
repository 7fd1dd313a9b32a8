//! The XDP program on a device: native or generic mode, our own leftover replaced, a foreign program refused.
//!
//! Knows netlink's answers and no tables. Called by the control plane, in the device's namespace. Invariant: a program that is not
//! ours is never touched; from the first attachment to the detachment there is always one of ours, but for a change of mode.
//! Sources: libbpf netlink.c; kernel net/core/dev.c (`dev_xdp_attach`).

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use libbpf_rs::libbpf_sys::{
    XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, XDP_FLAGS_UPDATE_IF_NOEXIST, bpf_obj_get_info_by_fd, bpf_prog_get_fd_by_id,
    bpf_prog_info, bpf_xdp_attach, bpf_xdp_attach_opts, bpf_xdp_query, bpf_xdp_query_opts,
};

use super::{Steer, SteerError, kernel_message};
use crate::abi::{self, InterfaceKey, InterfaceValue};

/// The name that our program has in the kernel.
const OURS: &str = "xdp_steer";
/// `NETDEV_XDP_ACT_XSK_ZEROCOPY` (linux/netdev.h).
const FEATURE_ZERO_COPY: u64 = 8;

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// Behind the driver, on any device, slower.
    Generic,
}

impl AttachMode {
    /// The word for logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn flag(self) -> u32 {
        match self {
            Self::Native => XDP_FLAGS_DRV_MODE,
            Self::Generic => XDP_FLAGS_SKB_MODE,
        }
    }
}

/// Which mode is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachWish {
    /// Native where the driver has it, else generic.
    #[default]
    Best,
    /// That one or none.
    Only(AttachMode),
}

/// A program that is attached.
struct Attached {
    id: u32,
    mode: AttachMode,
    name: Option<String>,
}

impl Attached {
    /// Whether the program is one of ours: by its name, or where names may not be read, by its number.
    fn is_ours(&self, known: &[u32]) -> bool {
        self.name.as_ref().map_or(known.contains(&self.id), |name| name == OURS)
    }

    fn describe(&self) -> String {
        let name = self.name.as_deref().unwrap_or("its name cannot be read without CAP_SYS_ADMIN");
        format!("{name}, program {}, {}", self.id, self.mode.label())
    }
}

impl Steer {
    /// Attaches the program to a device; one of ours that a dead process left is replaced, atomically when the mode is the same. The
    /// tables have to be written before. The program stays when the process ends.
    ///
    /// **Errors:** [`SteerError::Foreign`], [`SteerError::MtuTooLarge`], [`SteerError::Attach`]; a program of ours that was there in
    /// the same mode is still there then.
    pub fn attach(&mut self, device: &str, ifindex: u32, wish: AttachWish) -> Result<AttachMode, SteerError> {
        let mode = match wish {
            AttachWish::Only(mode) => self.attach_in(device, ifindex, mode).map(|()| mode),
            AttachWish::Best => match self.attach_in(device, ifindex, AttachMode::Native) {
                Err(SteerError::Attach { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.attach_in(device, ifindex, AttachMode::Generic).map(|()| AttachMode::Generic)
                }
                result => result.map(|()| AttachMode::Native),
            },
        }?;
        self.remember_mode(ifindex, mode)?;
        Ok(mode)
    }

    /// Takes our program off a device. A device without one, or with a foreign one, is left as it is.
    pub fn detach(&self, device: &str, ifindex: u32) -> Result<(), SteerError> {
        detach_known(device, ifindex, &self.known)
    }

    /// The program's number in the kernel: unlike the name it can be read of an attached program without `CAP_SYS_ADMIN`. Write it
    /// down where the next process finds it.
    pub fn id(&self) -> u32 {
        self.known[0]
    }

    /// Takes programs with these numbers (of processes before) for ours, where the kernel does not let their names be read.
    pub fn recognise(&mut self, ids: &[u32]) {
        self.known.extend(ids);
    }

    fn attach_in(&self, device: &str, ifindex: u32, mode: AttachMode) -> Result<(), SteerError> {
        let failed = |source| refusal(device, ifindex, mode, source);
        let found = attached(ifindex).map_err(failed)?;
        if let Some(foreign) = found.iter().find(|program| !program.is_ours(&self.known)) {
            return Err(SteerError::Foreign { device: device.to_string(), program: foreign.describe() });
        }
        // The two modes exclude each other.
        for other in found.iter().filter(|program| program.mode != mode) {
            change(ifindex, None, Some(other.id), other.mode).map_err(failed)?;
        }
        let same = found.iter().find(|program| program.mode == mode).map(|program| program.id);
        change(ifindex, Some(self.program.as_fd()), same, mode).map_err(failed)
    }

    /// Marks the device's interfaces as generic or not: in generic mode punted frames pass the program twice.
    fn remember_mode(&mut self, ifindex: u32, mode: AttachMode) -> Result<(), SteerError> {
        self.written.generic.retain(|&other| other != ifindex);
        if mode == AttachMode::Generic {
            self.written.generic.push(ifindex);
        }
        let marked = |(key, value): (&InterfaceKey, &InterfaceValue)| {
            let mut value = *value;
            if key.ifindex == ifindex {
                value.flags &= !abi::INTERFACE_GENERIC;
                value.flags |= if mode == AttachMode::Generic { abi::INTERFACE_GENERIC } else { 0 };
            }
            (*key, value)
        };
        let entries = self.written.interfaces.iter().map(marked).collect();
        self.write_interfaces(entries)
    }
}

/// Whether the driver of a device says that it has a zero-copy mode. Trying is what counts; this only spares the attempt.
pub fn claims_zero_copy(ifindex: u32) -> bool {
    query(ifindex).is_ok_and(|answer| answer.feature_flags & FEATURE_ZERO_COPY != 0)
}

/// Takes our program off a device without having it loaded (a clean-up after a process that died). Needs to read names.
pub fn detach_ours(device: &str, ifindex: u32) -> Result<(), SteerError> {
    detach_known(device, ifindex, &[])
}

fn detach_known(device: &str, ifindex: u32, known: &[u32]) -> Result<(), SteerError> {
    let failed = |mode| move |source| refusal(device, ifindex, mode, source);
    for program in attached(ifindex).map_err(failed(AttachMode::Native))?.iter().filter(|program| program.is_ours(known)) {
        change(ifindex, None, Some(program.id), program.mode).map_err(failed(program.mode))?;
    }
    Ok(())
}

fn refusal(device: &str, ifindex: u32, mode: AttachMode, source: io::Error) -> SteerError {
    let reason = kernel_message();
    let device = device.to_string();
    let settings = crate::device::Device::by_index(ifindex).ok();
    let mtu = settings.as_ref().map_or(0, |found| found.mtu);
    let too_large = source.raw_os_error() == Some(libc::ERANGE) || reason.to_ascii_lowercase().contains("mtu");
    if too_large {
        let largest = settings.and_then(|found| found.largest_xdp_mtu());
        let reason = if reason.is_empty() { source.to_string() } else { reason };
        return SteerError::MtuTooLarge { device, mtu, largest, reason };
    }
    SteerError::Attach { device, mode, reason, source }
}

/// What libbpf says about a device: programs, and what its driver can do.
pub(crate) fn query(ifindex: u32) -> io::Result<bpf_xdp_query_opts> {
    let mut answer = bpf_xdp_query_opts { sz: size_of::<bpf_xdp_query_opts>() as _, ..Default::default() };
    // SAFETY: the pointer is to a struct whose `sz` says its size; libbpf writes no further.
    let result = unsafe { bpf_xdp_query(ifindex.cast_signed(), 0, &raw mut answer) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(answer) }
}

/// The programs on a device, by mode.
fn attached(ifindex: u32) -> io::Result<Vec<Attached>> {
    let answer = query(ifindex)?;
    let modes = [
        (answer.drv_prog_id, AttachMode::Native),
        (answer.hw_prog_id, AttachMode::Native),
        (answer.skb_prog_id, AttachMode::Generic),
    ];
    let programs = modes.into_iter().filter(|&(id, _)| id != 0);
    Ok(programs.map(|(id, mode)| Attached { id, mode, name: name_of(id) }).collect())
}

pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes a number and returns a new descriptor or an error.
    let fd = unsafe { bpf_prog_get_fd_by_id(id) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The name of a loaded program, or none where it may not be read.
pub(super) fn name_of(id: u32) -> Option<String> {
    let info = info_of(program_by_id(id).ok()?.as_fd()).ok()?;
    // SAFETY: the kernel ends the name with a zero byte inside the array.
    let name = unsafe { CStr::from_ptr(info.name.as_ptr()) };
    Some(name.to_string_lossy().into_owned())
}

/// The number of a program that is open.
pub(super) fn id_of(program: BorrowedFd<'_>) -> io::Result<u32> {
    info_of(program).map(|info| info.id)
}

fn info_of(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    let mut info = bpf_prog_info::default();
    let mut len = size_of::<bpf_prog_info>() as u32;
    // SAFETY: the pointer is to a zeroed struct of `len` bytes (no arrays are asked for); the kernel writes at most that.
    let result = unsafe { bpf_obj_get_info_by_fd(program.as_raw_fd(), (&raw mut info).cast(), &raw mut len) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(info) }
}

/// Puts `new` (or nothing) where the program numbered `old` (or nothing) is, and fails when something else is there by now. (Without
/// `CAP_SYS_ADMIN` the old program cannot be named to the kernel, and whatever is there is replaced.) Netlink attachments outlive
/// the process; links would not.
fn change(ifindex: u32, new: Option<BorrowedFd<'_>>, old: Option<u32>, mode: AttachMode) -> io::Result<()> {
    let expected = old.and_then(|id| program_by_id(id).ok());
    let mut options = bpf_xdp_attach_opts { sz: size_of::<bpf_xdp_attach_opts>() as _, ..Default::default() };
    options.old_prog_fd = expected.as_ref().map_or(0, AsRawFd::as_raw_fd);
    let flags = mode.flag() | if old.is_none() { XDP_FLAGS_UPDATE_IF_NOEXIST } else { 0 };
    let new = new.map_or(-1, |fd| fd.as_raw_fd());
    let _ = kernel_message();
    // SAFETY: the options' `sz` says their size, and the descriptors live through the call.
    // JUSTIFICATION: libbpf-rs replaces only in the driver's default mode and never detaches what it does not hold.
    let result = unsafe { bpf_xdp_attach(ifindex.cast_signed(), new, flags, &raw const options) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}
