//! Datagrams from a host into the guest, any addresses on them, at a rate that the emulated guest can take; and what comes to a host.
//!
//! Knows raw IPv4 and packet sockets. What they send goes the kernel's way, through the choice of a tap queue by the NIC's key; frames that
//! an XDP program sends into a tap would not (`tun_xdp_xmit` takes the processor's number). Called by the checks and by `passage`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use portcullis_testkit::topology::namespace::Namespace;

/// Packets a second. The guest is emulated, and QEMU 7.2's NIC stalls after an overload: 15,000 is too many there.
const RATE: u32 = 8000;
/// Packets sent at once, between two looks at the clock. Chosen: sleeping costs 50 us.
const BURST: usize = 32;
/// Room for what comes while nobody listens. **Units:** bytes.
const RECEIVE_BUFFER: usize = 8 << 20;
/// How long [`Listener::next`] waits. **Units:** milliseconds.
const WAIT: i64 = 100;

/// Sends whole datagrams, IPv4 header first, by a host's routes.
pub(crate) struct Sender(OwnedFd);

impl Sender {
    pub(crate) fn open(host: &Namespace) -> Result<Self> {
        let open = || socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        Ok(Self(host.enter(open)?.with_context(|| format!("opening a raw socket in {}", host.name()))?))
    }

    /// Sends the datagrams one after the other at [`RATE`]. **Errors:** the first that the kernel refuses.
    pub(crate) fn send(&self, datagrams: &[Vec<u8>]) -> Result<()> {
        let mut due = Instant::now();
        for burst in datagrams.chunks(BURST) {
            for datagram in burst {
                self.send_one(datagram)?;
            }
            due += Duration::from_secs(1) / RATE * burst.len() as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // What a busy machine made late is not caught up: the guest was held up as well.
            due = due.max(Instant::now());
        }
        Ok(())
    }

    /// Sends one datagram at once. **Errors:** the kernel refuses it.
    pub(crate) fn send_one(&self, datagram: &[u8]) -> Result<()> {
        let destination: [u8; 4] = datagram.get(16..20).and_then(|bytes| bytes.try_into().ok()).context("no IPv4 header")?;
        let to = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::from(destination), 0));
        let sent = sendto(self.0.as_raw_fd(), datagram, &to, MsgFlags::empty()).with_context(|| format!("sending to {to}"))?;
        ensure!(sent == datagram.len(), "sent {sent} of {} bytes", datagram.len());
        Ok(())
    }
}

/// Hears the IPv4 packets that come to a host, whomever they are addressed to.
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// Begins to listen.
    pub(crate) fn open(host: &Namespace) -> Result<Self> {
        let open = || -> nix::Result<OwnedFd> {
            let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthIp)?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(WAIT))?;
            Ok(socket)
        };
        Ok(Self(host.enter(open)?.with_context(|| format!("opening a packet socket in {}", host.name()))?))
    }

    /// The next packet from its IPv4 header on, or none when nothing came for a moment.
    pub(crate) fn next<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(error) => Err(error).context("listening for packets"),
        }
    }
}
