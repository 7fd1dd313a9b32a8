//! Who drives a veth's receive queue: a thread's own polling, or a kernel thread on a core of our choice.
//!
//! Knows socket options, sysfs and /proc; no packets. An AF_XDP socket on veth has no NAPI of its own to poll, but any UDP socket that has
//! received one datagram through the device does; polling it runs the device's queue, XDP program included, on the caller's core, and
//! spares the sender of a frame the wake-up. Invariant: while a [`Poller`] polls more often than [`FALLBACK`], nobody else runs the queue.
//! Sources: Linux `net/core/dev.c` (`napi_busy_loop`, `busy_poll_stop`), `drivers/net/veth.c` (`rx_notify_masked`).

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::{fs, ptr};

use anyhow::{Context, Result, bail, ensure};
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::program::{Program, wait_until};

/// The port of the datagrams that connect a socket with a device's queue.
pub const PRIME_PORT: u16 = 9009;
/// After how long without polling the kernel runs the queue itself. **Units:** nanoseconds.
pub const FALLBACK: u64 = 200_000_000;
/// How often a queue that is left to a timer is run. **Units:** nanoseconds. At 1.5 M packets a second 30 come in that time.
pub const TURN: u64 = 20_000;
/// How often in a row the kernel lets the queue be, as long as it is polled.
const DEFERRALS: u32 = 1_000_000;
/// Packets that one poll may take: a veth's whole ring.
const BUDGET: libc::c_int = 256;
/// How long a poll may look for packets, which a non-blocking receive does once. **Units:** microseconds; has to be over 0.
const LOOK_FOR: libc::c_int = 1;
/// How long the first datagram may take.
const PATIENCE: Duration = Duration::from_secs(10);

// linux/asm-generic/socket.h; not in every libc.
const SO_BUSY_POLL: libc::c_int = 46;
const SO_INCOMING_NAPI_ID: libc::c_int = 56;
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// Runs a device's receive queue from the thread that calls it.
#[derive(Debug)]
pub struct Poller {
    socket: UdpSocket,
}

impl Poller {
    /// Waits for the datagram that connects a socket at `address` with the queue that it came through. Another thread or process has to
    /// send it ([`prime`]), as often as it takes.
    ///
    /// **Errors:** none came in time; the kernel has no busy polling; without `CAP_NET_ADMIN`.
    pub fn connect(address: Ipv4Addr) -> Result<Self> {
        let socket = UdpSocket::bind((address, PRIME_PORT)).with_context(|| format!("listening on {address}:{PRIME_PORT}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.recv(&mut [0; 64]).with_context(|| format!("no datagram came to {address}:{PRIME_PORT}"))?;
        let queue = get(&socket, SO_INCOMING_NAPI_ID).context("asking for the queue's number")?;
        ensure!(queue != 0, "{address}: its device has no NAPI: switch GRO on, or attach an XDP program");
        socket.set_nonblocking(true)?;
        for (option, value) in [(SO_PREFER_BUSY_POLL, 1), (SO_BUSY_POLL, LOOK_FOR), (SO_BUSY_POLL_BUDGET, BUDGET)] {
            set(&socket, option, value).with_context(|| format!("socket option {option} (needs CAP_NET_ADMIN and Linux 5.11)"))?;
        }
        Ok(Self { socket })
    }

    /// Runs the queue once, for at most its whole ring.
    #[inline]
    pub fn poll(&self) {
        // What it receives is another datagram of `prime`, or nothing.
        let _ = self.socket.recv(&mut [0; 64]);
    }
}

/// Sends the datagram that a [`Poller`] waits for, out of the calling thread's namespace.
pub fn prime(address: Ipv4Addr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a UDP socket")?;
    match socket.send_to(&[0; 26], (address, PRIME_PORT)) {
        Err(error) if error.kind() != ErrorKind::ConnectionRefused => Err(error).with_context(|| format!("sending to {address}")),
        _ => Ok(()),
    }
}

/// How long the kernel leaves a device's queue to whoever polls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// As long as it is polled every [`FALLBACK`].
    ToPoller,
    /// To a timer that runs it every [`TURN`], on the core where it was polled last: senders need not wake anybody.
    ToTimer,
    /// Not at all.
    Never,
}

/// Sets it for `device` of `host`.
pub fn leave(host: &Namespace, device: &str, how: Leave) -> Result<()> {
    let (deferrals, timeout) = match how {
        Leave::ToPoller => (DEFERRALS, FALLBACK),
        Leave::ToTimer => (DEFERRALS, TURN),
        Leave::Never => (0, 0),
    };
    let directory = format!("/sys/class/net/{device}");
    let line = format!("echo {timeout} >{directory}/gro_flush_timeout && echo {deferrals} >{directory}/napi_defer_hard_irqs");
    host.program("sh", ["-c", &line]).run()?.success().with_context(|| format!("{device}: who runs its queue"))?;
    Ok(())
}

/// Has the queues of `devices` run by kernel threads, pinned to `core`. Returns the threads' process numbers.
///
/// **Errors:** the kernel makes no threads.
pub fn thread(host: &Namespace, devices: &[&str], core: usize) -> Result<Vec<u32>> {
    let mut threads = Vec::new();
    for device in devices {
        let set = |value: u8| -> Result<()> {
            let line = format!("echo {value} >/sys/class/net/{device}/threaded");
            host.program("sh", ["-c", &line]).run()?.success().with_context(|| format!("{device}: threads for its queues"))?;
            Ok(())
        };
        set(0)?;
        // Names are not unique over namespaces: ours are those that were not there before.
        let before = kernel_threads(device);
        set(1)?;
        let mut made = Vec::new();
        wait_until(Duration::from_secs(2), || {
            made = kernel_threads(device).into_iter().filter(|thread| !before.contains(thread)).collect();
            !made.is_empty()
        });
        if made.is_empty() {
            // Once made, a thread stays for as long as the queue does.
            made = before;
        }
        ensure!(!made.is_empty(), "{device}: the kernel made no thread for its queue");
        for thread in &made {
            pin(*thread, core)?;
        }
        threads.extend(made);
    }
    Ok(threads)
}

/// Has the queues of `devices` run in softirq again.
pub fn unthread(host: &Namespace, devices: &[&str]) -> Result<()> {
    for device in devices {
        host.program("sh", ["-c", &format!("echo 0 >/sys/class/net/{device}/threaded")]).run()?.success()?;
    }
    Ok(())
}

/// Pins a task, or one kernel thread, to a core.
pub fn pin(process: u32, core: usize) -> Result<()> {
    let (core, process) = (core.to_string(), process.to_string());
    Program::new("taskset", ["-cp", &core, &process]).run()?.success().context("pinning (taskset is in util-linux)")?;
    Ok(())
}

/// The kernel threads that run a device's queues: `napi/DEVICE-NUMBER`.
fn kernel_threads(device: &str) -> Vec<u32> {
    let prefix = format!("napi/{device}-");
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|number| fs::read_to_string(format!("/proc/{number}/comm")).is_ok_and(|name| name.starts_with(&prefix)))
        .collect()
}

/// Connects pollers that live elsewhere: sends `addresses` a datagram each, again and again, until `done` or the patience is over.
pub fn prime_until(addresses: &[Ipv4Addr], mut done: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > PATIENCE {
            bail!("nobody took the datagrams to {addresses:?} within {PATIENCE:?}");
        }
        for address in addresses {
            prime(*address)?;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn set(socket: &UdpSocket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the pointer is to a live int of the length given; the kernel only reads it.
    let result = unsafe {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, ptr::from_ref(&value).cast(), len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get(socket: &UdpSocket, option: libc::c_int) -> io::Result<libc::c_int> {
    let (mut value, mut len): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the pointers are to live locals, and the length is that of the first.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw mut value).cast(), &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
