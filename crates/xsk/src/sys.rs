//! The few system calls that no crate wraps: socket options, wake-ups, limits, bounded retries.
//!
//! Knows numbers and pointers, no meaning. Called by the other files of this crate. Invariant: every unsafe call is one line here.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr, thread,
    time::{Duration, Instant},
};

/// Reads a socket option into a plain value. **Errors:** the kernel's, or a size that is not the value's.
///
/// # Safety
///
/// `T` is made of integers only: every pattern of bytes is a legal value, and it has no padding that matters.
pub(crate) unsafe fn get_option<T: Default>(fd: RawFd, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the pointer is to `value`, which is `len` bytes long and takes any bytes (the caller's promise).
    let result = unsafe { libc::getsockopt(fd, level, name, ptr::from_mut(&mut value).cast(), &raw mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value)
}

/// Sets a socket option that is an `int`.
pub(crate) fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer is to `value`, which lives through the call and is `len` bytes long.
    let result = unsafe { libc::setsockopt(fd, level, name, ptr::from_ref(&value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps a descriptor from programs that this process may start. libxdp makes its sockets without that, and a child that had one
/// would keep the queue bound, also beyond our own end.
pub(crate) fn close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: sets a flag of a descriptor; no memory is involved.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets the nice value of the calling thread.
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    const THIS_THREAD: libc::id_t = 0;
    // SAFETY: three numbers; no memory is involved.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, THIS_THREAD, nice) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the descriptor `fd` another one for what `by` is. Whoever has its number goes on with that.
pub(crate) fn replace(fd: RawFd, by: RawFd) -> io::Result<()> {
    // SAFETY: both are open descriptors that their owners keep; no memory is involved.
    let result = unsafe { libc::dup3(by, fd, libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has a socket take only the packets that a classic BPF program returns more than 0 for.
pub(crate) fn filter(fd: RawFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the pointer is to a description of `len` bytes, whose own pointer and length are those of a slice that lives through the
    // call; the kernel only reads both.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, ptr::from_ref(&program).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of the network namespace that a socket is in (`SO_NETNS_COOKIE`, linux/net.h).
pub(crate) fn namespace_of(fd: RawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    // SAFETY: the option is one u64.
    unsafe { get_option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE) }
}

/// The number of the network namespace that this thread is in.
pub(crate) fn namespace_here() -> io::Result<u64> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let probe = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    namespace_of(probe.as_raw_fd())
}

/// The name that a device has now, or none when it is gone.
pub(crate) fn device_name(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?;
    // nix takes the null pointer of an unknown index for an empty name.
    (!name.is_empty()).then(|| name.to_string_lossy().into_owned())
}

/// Makes the kernel look at an AF_XDP socket's tx ring.
#[inline]
pub(crate) fn kick_transmit(fd: RawFd) -> io::Result<()> {
    // SAFETY: no buffer and no address are passed.
    // JUSTIFICATION: xsk-rs hides EAGAIN, which says that the kernel's budget ran out before the ring did.
    let result = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the kernel look at an AF_XDP socket's fill ring, and poll its queue once when busy polling is on.
#[inline]
pub(crate) fn kick_receive(fd: RawFd) {
    // SAFETY: no buffer and no address are passed. The result only says that nothing was received this way, which is always so.
    let _ = unsafe { libc::recvfrom(fd, ptr::null_mut(), 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut()) };
}

/// Makes the kernel wake the driver for an AF_XDP socket's rings (`xsk_poll`, net/xdp/xsk.c). Never waits.
#[inline]
pub(crate) fn wake_by_poll(fd: BorrowedFd<'_>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    // What the socket is ready for is read from the rings; a signal only means that the next wake-up has to do it.
    let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::ZERO);
}

/// Raises RLIMIT_MEMLOCK as far as the process may, for kernels that charge UMEM and maps to it. Harmless where it may not.
pub(crate) fn raise_locked_memory_limit() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        return;
    }
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)
    {
        tracing::debug!(%error, "cannot raise the locked-memory limit");
    }
}

/// A bounded wait for somebody else's condition: tries again every 20 ms until the time is over.
#[derive(Debug)]
pub(crate) struct Attempts {
    until: Instant,
}

impl Attempts {
    pub(crate) fn new(time: Duration) -> Self {
        Self { until: Instant::now() + time }
    }

    /// Waits a little and says whether to try again.
    pub(crate) fn again(&mut self) -> bool {
        let again = Instant::now() < self.until;
        if again {
            thread::sleep(Duration::from_millis(20));
        }
        again
    }
}
