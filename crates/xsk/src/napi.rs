//! Who runs a receive queue: the kernel when it sees fit, or one of our threads by busy polling.
//!
//! Knows socket options and one kind of datagram, no queues' names. Used by [`crate::socket::Socket`] on the worker's side and by the
//! control plane on the other. A UDP socket polls the NAPI context that its last datagram came through; [`crate::steer::Steer::carry_next`]
//! makes a frame of the queue such a datagram. Invariant: a queue is polled only between [`QueueDrive::drive`] and
//! [`QueueDrive::let_go`]; nobody else's datagram reaches the socket. Sources: Linux net/core/dev.c (`napi_busy_loop`,
//! `busy_poll_stop`), include/net/busy_poll.h (`sk_mark_napi_id_once`), net/ipv4/udp.c. Tests: `tests/sockets.rs`.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::abi::MAX_CARRIED;
use crate::nic::Deferral;
use crate::steer::Carrier;
use crate::sys;

/// What a device is told while its queues are polled: interrupts stay off as long as it is polled every 200 ms, after which the kernel
/// runs the queue itself. Chosen: longer than a worker is ever held up, short enough for a worker that died.
pub const DEFERRAL: Deferral = Deferral { hard_irqs: 1_000_000, flush_timeout: 200_000_000 };

/// Packets that one poll of a driven queue takes. Chosen: with the [`POLLS`] of a call, all of a veth's ring.
pub(crate) const DRIVEN_BUDGET: u16 = 128;
/// How often one call polls: once, and when it ends.
pub(crate) const POLLS: u16 = 2;
/// How long one poll may look for packets. A receive call that does not wait looks once; it has to be over 0. **Units:** microseconds.
const LOOK_FOR: i32 = 1;
/// A cookie and the largest frame.
const DATAGRAM: usize = 8 + MAX_CARRIED;

// linux/asm-generic/socket.h; not in every libc.
const SO_BUSY_POLL: i32 = 46;
const SO_INCOMING_NAPI_ID: i32 = 56;
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;

/// The kernel runs the queue.
const KERNEL: u8 = 0;
/// It still does, and a datagram with a frame has come.
const CARRIED: u8 = 1;
/// We do.
const OURS: u8 = 2;

/// The NAPI context that a socket's last datagram came through (`SO_INCOMING_NAPI_ID`); 0 where there has been none.
pub fn context_of(socket: &impl AsRawFd) -> io::Result<u32> {
    // SAFETY: the option is one u32.
    unsafe { sys::get_option(socket.as_raw_fd(), libc::SOL_SOCKET, SO_INCOMING_NAPI_ID) }
}

/// Has receive calls on `socket` that do not wait run its queue once, for at most `budget` packets, and the kernel prefer them to
/// interrupts. **Errors:** a kernel before 5.11, or no `CAP_NET_ADMIN`.
pub fn poll_by(socket: &impl AsRawFd, budget: u16) -> io::Result<()> {
    for (option, value) in [(SO_PREFER_BUSY_POLL, 1), (SO_BUSY_POLL, LOOK_FOR), (SO_BUSY_POLL_BUDGET, i32::from(budget))] {
        sys::set_option(socket.as_raw_fd(), libc::SOL_SOCKET, option, value)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Shared {
    who: AtomicU8,
    cookie: [u8; 8],
    socket: UdpSocket,
}

/// The control plane's side of a queue that the worker is to run.
#[derive(Debug)]
pub struct QueueDrive {
    shared: Arc<Shared>,
    port: u16,
    known: bool,
}

/// The worker's side.
#[derive(Debug)]
pub struct Driver {
    shared: Arc<Shared>,
    buffer: Box<[u8; DATAGRAM]>,
}

impl QueueDrive {
    /// Both sides. `cookie` is random: it keeps strangers' datagrams out.
    ///
    /// **Errors:** no socket.
    pub fn open(cookie: [u8; 8]) -> io::Result<(Self, Driver)> {
        let (socket, port) = listen(cookie)?;
        let shared = Arc::new(Shared { who: AtomicU8::new(KERNEL), cookie, socket });
        let driver = Driver { shared: Arc::clone(&shared), buffer: Box::new([0; DATAGRAM]) };
        Ok((Self { shared, port, known: false }, driver))
    }

    /// Forgets the context that was found, and waits for another one: the device has made its queues anew.
    ///
    /// **Errors:** as [`QueueDrive::open`]; the kernel runs the queue in any case.
    pub fn renew(&mut self) -> io::Result<()> {
        self.let_go();
        self.known = false;
        let (socket, port) = listen(self.shared.cookie)?;
        // The worker goes on with the same descriptor.
        sys::replace(self.shared.socket.as_raw_fd(), socket.as_raw_fd())?;
        self.port = port;
        Ok(())
    }

    /// Where a frame of the queue has to be carried, by way of one of the box's own addresses.
    pub fn carrier(&self, address: Ipv4Addr) -> Carrier {
        Carrier { address, port: self.port, cookie: self.shared.cookie }
    }

    /// Whether the queue's context is known, so that it can be driven. The worker fetches the frame that told it.
    ///
    /// **Errors:** the kernel has no busy polling.
    pub fn is_known(&mut self) -> io::Result<bool> {
        if !self.known && context_of(&self.shared.socket)? != 0 {
            self.known = true;
            let _ = self.shared.who.compare_exchange(KERNEL, CARRIED, Ordering::Relaxed, Ordering::Relaxed);
        }
        Ok(self.known)
    }

    /// Has the worker run the queue from now on. The device has to have its [`DEFERRAL`].
    ///
    /// **Errors:** as [`poll_by`].
    pub fn drive(&self) -> io::Result<()> {
        poll_by(&self.shared.socket, DRIVEN_BUDGET)?;
        self.shared.who.store(OURS, Ordering::Relaxed);
        Ok(())
    }

    /// Leaves the queue to the kernel again.
    pub fn let_go(&self) {
        self.shared.who.store(KERNEL, Ordering::Relaxed);
    }
}

impl AsFd for QueueDrive {
    /// The socket: readable from when a frame was carried until the worker has fetched it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

impl Driver {
    /// Whether the queue is this thread's to run.
    #[inline]
    pub(crate) fn is_ours(&self) -> bool {
        self.shared.who.load(Ordering::Relaxed) == OURS
    }

    /// Runs the queue once, if it is this thread's to run. Returns the frame that came in a datagram, which happens once.
    #[inline]
    pub(crate) fn run(&mut self) -> Option<&[u8]> {
        let who = self.shared.who.load(Ordering::Relaxed);
        if who == KERNEL {
            return None;
        }
        let len = self.shared.socket.recv(&mut self.buffer[..]).ok()?;
        let _ = self.shared.who.compare_exchange(CARRIED, KERNEL, Ordering::Relaxed, Ordering::Relaxed);
        self.buffer[..len].strip_prefix(&self.shared.cookie)
    }
}

/// A UDP socket that takes only datagrams with the cookie, and its port, which is one of the host's own.
fn listen(cookie: [u8; 8]) -> io::Result<(UdpSocket, u16)> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_nonblocking(true)?;
    sys::filter(socket.as_raw_fd(), &with_cookie(cookie))?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// Takes what begins with the cookie behind the UDP header, which is where a UDP socket's filter begins; of a stranger's not one
/// reaches the socket, neither its buffer nor its mark of the NAPI context.
fn with_cookie(cookie: [u8; 8]) -> [libc::sock_filter; 6] {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const UDP_HEADER: u32 = 8;
    let whole = u64::from_be_bytes(cookie);
    let (first, second) = ((whole >> 32) as u32, whole as u32);
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    [
        step(LOAD_WORD, 0, UDP_HEADER),
        step(JUMP_IF_EQUAL, 3, first),
        step(LOAD_WORD, 0, UDP_HEADER + 4),
        step(JUMP_IF_EQUAL, 1, second),
        step(RETURN, 0, u32::MAX),
        step(RETURN, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn datagram(cookie: [u8; 8]) -> Vec<u8> {
        [&cookie[..], b"frame"].concat()
    }

    #[test]
    fn only_what_has_the_cookie_is_received_and_only_when_it_is_looked_for() {
        let (drive, mut driver) = QueueDrive::open(COOKIE).unwrap();
        let Carrier { address, port, cookie } = drive.carrier(Ipv4Addr::LOCALHOST);
        assert_eq!((address, cookie), (Ipv4Addr::LOCALHOST, COOKIE));
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut other = COOKIE;
        other[7] ^= 1;
        for payload in [datagram(other), b"short".to_vec(), Vec::new(), datagram(COOKIE)] {
            sender.send_to(&payload, (address, port)).unwrap();
        }
        assert_eq!(driver.run(), None, "the kernel runs the queue");
        driver.shared.who.store(CARRIED, Ordering::Relaxed);
        assert_eq!(driver.run(), Some(&b"frame"[..]));
        assert_eq!(drive.shared.who.load(Ordering::Relaxed), KERNEL, "it is fetched once");
    }

    #[test]
    fn a_renewed_socket_is_at_its_new_port_and_the_worker_has_it_too() {
        let (mut drive, mut driver) = QueueDrive::open(COOKIE).unwrap();
        let before = drive.carrier(Ipv4Addr::LOCALHOST).port;
        drive.renew().unwrap();
        let after = drive.carrier(Ipv4Addr::LOCALHOST).port;
        assert_ne!(before, after);
        driver.shared.who.store(OURS, Ordering::Relaxed);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&datagram(COOKIE), (Ipv4Addr::LOCALHOST, after)).unwrap();
        assert_eq!(driver.run(), Some(&b"frame"[..]));
        assert_eq!(drive.shared.who.load(Ordering::Relaxed), OURS);
        drive.let_go();
        assert_eq!(driver.run(), None);
    }

    #[test]
    fn loopback_has_no_context_to_poll() {
        let (mut drive, _driver) = QueueDrive::open(COOKIE).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&datagram(COOKIE), (Ipv4Addr::LOCALHOST, drive.carrier(Ipv4Addr::LOCALHOST).port)).unwrap();
        assert!(!drive.is_known().unwrap());
    }
}
