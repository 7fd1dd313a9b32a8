//! One raw end of a wire: sends frames, keeps all that come, answers ARP as every host that it plays, and judges each frame.
//!
//! Knows packet sockets and ARP; does not know what a test wants. Invariant: each IPv4 frame that the NAT sends is judged by
//! [`crate::watch`] and then kept, in the order of arrival. Its own frames, which the socket sees too, are known by their source MAC.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType};
use nix::sys::socket::{bind, recv, send, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use portcullis_nat::policy::Mac;

use crate::datagram::Datagram;
use crate::plan;
use crate::watch::Watch;

/// Room for bursts while the thread is not running. **Units:** bytes.
const RECEIVE_BUFFER: usize = 32 << 20;
/// How often the receiving thread looks whether it shall end. **Units:** milliseconds.
const LOOK: i64 = 50;
/// How long the NAT may take to answer the first ARP request.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Which wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where the hosts are.
    Inside,
    /// Where the rest of the world is.
    Outside,
}

impl Side {
    /// The other wire.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Inside => Self::Outside,
            Self::Outside => Self::Inside,
        }
    }

    /// As in "at the outside".
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        }
    }
}

/// What the receiving thread shares.
#[derive(Debug, Default)]
struct Log {
    seen: Mutex<Vec<Arc<Datagram>>>,
    /// The NAT's MAC on this wire, once it has answered.
    nat: Mutex<Option<Mac>>,
    changed: Condvar,
    stop: AtomicBool,
}

/// A raw end.
#[derive(Debug)]
pub(crate) struct End {
    side: Side,
    socket: Arc<OwnedFd>,
    mac: Mac,
    nat: Mac,
    log: Arc<Log>,
    thread: Option<JoinHandle<()>>,
}

impl End {
    /// Opens `interface`, in the network namespace of the calling thread, and begins to receive.
    ///
    /// **Errors:** no such interface, no right to open it.
    pub(crate) fn open(side: Side, interface: &str, watch: Arc<Watch>) -> Result<Self> {
        let (socket, mac) = open(interface).with_context(|| format!("opening {interface}"))?;
        let (socket, log) = (Arc::new(socket), Arc::new(Log::default()));
        let thread = {
            let (socket, log) = (Arc::clone(&socket), Arc::clone(&log));
            thread::spawn(move || receive(side, &socket, mac, &log, &watch))
        };
        Ok(Self { side, socket, mac, nat: [0xFF; 6], log, thread: Some(thread) })
    }

    /// Asks for the NAT's MAC until it answers.
    ///
    /// **Errors:** it does not.
    pub(crate) fn find_nat(&mut self) -> Result<()> {
        let (own, nat) = match self.side {
            Side::Inside => (Ipv4Addr::new(10, 0, 0, 2), plan::NAT_INSIDE),
            Side::Outside => (plan::ROUTER, plan::NAT_OUTSIDE),
        };
        let start = Instant::now();
        while start.elapsed() < FIRST_ANSWER {
            self.send_frame(&arp(1, (self.mac, own), ([0; 6], nat)))?;
            let guard = lock(&self.log.nat);
            let waited = self.log.changed.wait_timeout_while(guard, Duration::from_millis(200), |nat| nat.is_none());
            if let Some(mac) = *waited.unwrap_or_else(PoisonError::into_inner).0 {
                self.nat = mac;
                return Ok(());
            }
        }
        bail!("nobody answers ARP for {nat} {} within {FIRST_ANSWER:?}: the NAT is not there", self.side.word());
    }

    /// This end's MAC and the NAT's.
    pub(crate) const fn macs(&self) -> (Mac, Mac) {
        (self.mac, self.nat)
    }

    /// Sends a whole frame.
    pub(crate) fn send_frame(&self, frame: &[u8]) -> Result<()> {
        loop {
            match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                // The device's queue is full, which it tells as this: a moment later it is not.
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => thread::sleep(Duration::from_micros(50)),
                Err(error) => return Err(error).with_context(|| format!("sending {} bytes {}", frame.len(), self.side.word())),
            }
        }
    }

    /// How many datagrams have come until now: what comes later has this index or a higher one.
    pub(crate) fn mark(&self) -> usize {
        lock(&self.log.seen).len()
    }

    /// What has come since `mark`.
    pub(crate) fn since(&self, mark: usize) -> Vec<Arc<Datagram>> {
        lock(&self.log.seen).get(mark..).unwrap_or_default().to_vec()
    }

    /// The first datagram since `mark` for which `wanted` holds, waited for at most until `deadline`.
    pub(crate) fn wait(&self, mark: usize, deadline: Instant, wanted: impl Fn(&Datagram) -> bool) -> Option<Arc<Datagram>> {
        let mut next = mark;
        let mut seen = lock(&self.log.seen);
        loop {
            while let Some(one) = seen.get(next) {
                if wanted(one) {
                    return Some(Arc::clone(one));
                }
                next += 1;
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            seen = self.log.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.log.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A packet socket that is bound to the interface, and the interface's MAC.
fn open(interface: &str) -> Result<(OwnedFd, Mac)> {
    let addresses = getifaddrs().context("listing the interfaces")?.filter(|one| one.interface_name == interface);
    let links = addresses.filter_map(|one| one.address?.as_link_addr().copied());
    let link: LinkAddr = links.last().with_context(|| format!("there is no interface {interface}"))?;
    let mac = link.addr().with_context(|| format!("{interface} has no MAC"))?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK))?;
    bind(socket.as_raw_fd(), &link)?;
    ensure!(link.ifindex() > 0, "{interface} has no index");
    Ok((socket, mac))
}

fn receive(side: Side, socket: &OwnedFd, own: Mac, log: &Log, watch: &Watch) {
    let mut buffer = vec![0; 1 << 16];
    while !log.stop.load(Ordering::Relaxed) {
        let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) else { continue };
        let frame = &buffer[..length];
        if length < 14 || frame[6..12] == own {
            continue;
        }
        if frame[12..14] == [0x08, 0x06] {
            answer(side, socket, own, log, frame);
            continue;
        }
        let Some(datagram) = Datagram::of_frame(frame) else { continue };
        watch.judge(side, frame, &datagram);
        lock(&log.seen).push(Arc::new(datagram));
        log.changed.notify_all();
    }
}

/// Answers an ARP request for an address that the tester plays; learns the NAT's MAC from its answers.
fn answer(side: Side, socket: &OwnedFd, own: Mac, log: &Log, frame: &[u8]) {
    let Some(arp_packet) = frame.get(14..42) else { return };
    let address = |at: usize| Ipv4Addr::new(arp_packet[at], arp_packet[at + 1], arp_packet[at + 2], arp_packet[at + 3]);
    let (sender, target) = (address(14), address(24));
    let mut mac = [0; 6];
    mac.copy_from_slice(&arp_packet[8..14]);
    let (nat, plays): (_, fn(Ipv4Addr) -> bool) = match side {
        Side::Inside => (plan::NAT_INSIDE, plan::is_host),
        Side::Outside => (plan::NAT_OUTSIDE, plan::is_neighbour_outside),
    };
    match arp_packet[7] {
        1 if plays(target) && sender != target => {
            // An answer that is lost is asked for again.
            let _ = send(socket.as_raw_fd(), &arp(2, (own, target), (mac, sender)), MsgFlags::empty());
        }
        2 if sender == nat => {
            *lock(&log.nat) = Some(mac);
            log.changed.notify_all();
        }
        _ => {}
    }
}

/// An ARP packet (RFC 826): 1 asks, to everyone, 2 answers.
fn arp(operation: u8, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let to = if operation == 1 { [0xFF; 6] } else { target.0 };
    let head = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation];
    [&to, &sender.0, head.as_slice(), &sender.0, &sender.1.octets(), &target.0, &target.1.octets()].concat()
}
