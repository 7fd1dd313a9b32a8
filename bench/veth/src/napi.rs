//! Who drives a veth's receive queue: a thread's own polling, or a kernel thread on a core of our choice.
//!
//! Knows socket options, sysfs and /proc; no packets. An AF_XDP socket on veth has no NAPI of its own to poll, but any UDP socket that has
//! received one datagram through the device does; polling it runs the device's queue, XDP program included, on the caller's core, and
//! spares the sender of a frame the wake-up. Invariant: while a [`Poller`] polls more often than every 200 ms, nobody else runs the queue.
//! Sources: Linux `net/core/dev.c` (`napi_busy_loop`, `busy_poll_stop`), `drivers/net/veth.c` (`rx_notify_masked`).

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::program::{Program, wait_until};
use portcullis_xsk::napi::{DEFERRAL, context_of, poll_by};
use portcullis_xsk::nic::{Deferral, Setting};

use crate::cpu;

/// The port of the datagrams that connect a socket with a device's queue.
pub const PRIME_PORT: u16 = 9009;
/// How often a queue that is left to a timer is run. **Units:** nanoseconds. At 1.5 M packets a second 30 come in that time.
pub const TURN: u64 = 20_000;
/// Packets that one poll may take: a veth's whole ring.
const BUDGET: u16 = 256;
/// How long the first datagram may take.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let queue = context_of(&socket).context("asking for the queue's number")?;
        ensure!(queue != 0, "{address}: its device has no NAPI: switch GRO on, or attach an XDP program");
        socket.set_nonblocking(true)?;
        poll_by(&socket, BUDGET).context("busy polling (needs CAP_NET_ADMIN and Linux 5.11)")?;
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
    /// As long as it is polled every 200 ms ([`DEFERRAL`]).
    ToPoller,
    /// To a timer that runs it every [`TURN`], on the core where it was polled last: senders need not wake anybody.
    ToTimer,
    /// Not at all.
    Never,
}

/// Sets it for `device` of `host`.
pub fn leave(host: &Namespace, device: &str, how: Leave) -> Result<()> {
    let deferral = match how {
        Leave::ToPoller => DEFERRAL,
        Leave::ToTimer => Deferral { flush_timeout: TURN, ..DEFERRAL },
        Leave::Never => Deferral::default(),
    };
    let line = Setting::Deferral(deferral).command(device);
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
    let numbers = cpu::numbers_in("/proc").into_iter();
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
