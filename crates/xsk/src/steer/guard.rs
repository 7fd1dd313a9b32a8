//! The guard at egress: the kernel forwards nothing between the sides, whether a process runs or not.
//!
//! Knows the clsact hook and one filter on it. Called by the control plane for every configured interface, VLANs included. Invariant:
//! once attached it stays until [`remove_guard`]; it is first in line, so that no other filter can wave a packet through.
//! Sources: libbpf netlink.c (`bpf_tc_*`), kernel `net/sched/cls_bpf.c`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use libbpf_rs::{TC_EGRESS, TcHook, TcHookBuilder};

use super::{Steer, SteerError, attach::name_of};

/// The name that the guard has in the kernel.
const OURS: &str = "guard_egress";
/// First in line.
const PRIORITY: u32 = 1;
/// "PC": beside others of the same priority.
const HANDLE: u32 = 0x5043;

impl Steer {
    /// Attaches the guard to an interface's egress; one that a process before us left is replaced atomically. The interfaces have to
    /// be written before ([`Steer::set_interfaces`]).
    ///
    /// **Errors:** [`SteerError::ForeignFilter`], [`SteerError::Guard`].
    pub fn attach_guard(&self, interface: &str, ifindex: u32) -> Result<(), SteerError> {
        let failed = |error: libbpf_rs::Error| guard_error(interface, &error);
        let mut hook = hook_on(self.guard.as_fd(), ifindex);
        hook.create().map_err(failed)?;
        if let Some(program) = foreign(&mut hook) {
            return Err(SteerError::ForeignFilter { interface: interface.to_string(), program });
        }
        hook.replace(true).attach().map_err(failed)?;
        Ok(())
    }
}

/// Takes the guard off an interface, whoever attached it. From here on the kernel forwards what it is configured to.
pub fn remove_guard(interface: &str, ifindex: u32) -> Result<(), SteerError> {
    // The builder wants a descriptor; removing uses none.
    let unused = io::stdin();
    let mut hook = hook_on(unused.as_fd(), ifindex);
    match hook.query() {
        Ok(_) if foreign(&mut hook).is_none() => hook.detach().map_err(|error| guard_error(interface, &error)),
        _ => Ok(()),
    }
}

fn hook_on(program: BorrowedFd<'_>, ifindex: u32) -> TcHook {
    TcHookBuilder::new(program).ifindex(ifindex.cast_signed()).priority(PRIORITY).handle(HANDLE).hook(TC_EGRESS)
}

/// The program in the guard's place, when it is another's. A name that may not be read counts as ours: priority and handle are.
fn foreign(hook: &mut TcHook) -> Option<String> {
    let id = hook.query().ok()?;
    let name = name_of(id)?;
    (name != OURS).then(|| format!("{name}, program {id}"))
}

fn guard_error(interface: &str, error: &libbpf_rs::Error) -> SteerError {
    SteerError::Guard { interface: interface.to_string(), source: io::Error::other(error.to_string()) }
}
