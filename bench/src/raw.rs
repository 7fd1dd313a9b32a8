//! Packet sockets: frames out of an interface exactly as given, for packets that no generator or program would send.
//!
//! Knows frames as bytes. Called by tests that spoil a packet of [`crate::stream::Template`], and by the ring for its socket.
//! Unsafe: opening and binding, for which nix has no packet address. Source: packet(7).

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::{io, ptr};

use anyhow::{Context, Result, ensure};

use crate::interface;

/// Sends frames out of one interface.
pub struct Sender {
    interface: String,
    socket: OwnedFd,
}

impl Sender {
    /// Sends by `interface`, of the calling thread's network namespace.
    ///
    /// **Errors:** when the interface is not there; without `CAP_NET_RAW`.
    pub fn open(interface: &str) -> Result<Self> {
        let index = interface::index(interface)?;
        let socket = open_socket()?;
        // Protocol 0: it receives nothing.
        bind(&socket, index, 0).with_context(|| format!("interface {interface}: binding the packet socket"))?;
        Ok(Self { interface: interface.into(), socket })
    }

    /// Sends one frame, Ethernet header first.
    ///
    /// **Errors:** when the interface is down or the frame too long for it.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = nix::unistd::write(&self.socket, frame).with_context(|| format!("interface {}: sending", self.interface))?;
        ensure!(sent == frame.len(), "interface {}: sent {sent} of {} bytes", self.interface, frame.len());
        Ok(())
    }
}

/// A packet socket that receives nothing until it is bound, so that no frame of another interface gets in.
pub(crate) fn open_socket() -> Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })
        .context("opening a packet socket (needs root or CAP_NET_RAW)")?;
    // SAFETY: the call above returned this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Binds a packet socket to the interface of `index`, to receive frames of `protocol` (0: none).
pub(crate) fn bind(socket: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the pointer is to a live sockaddr_ll and the length is its.
    check(unsafe {
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), len)
    })
    .map(drop)
}

/// A system call's result, or its error.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
