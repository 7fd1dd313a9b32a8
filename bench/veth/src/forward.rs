//! The bare AF_XDP forwarder: the gateway's sockets and packet memory, new link-layer addresses, nothing else. The limit of this road.
//!
//! Knows two devices and who is behind them; looks at no IP header. Runs as a process of its own, on the core that it was started on, in
//! the gateway's place. It goes about a round as the gateway's worker does: receive a burst of each queue, transmit, take back, fill, wake.
//! Invariant: every frame is in a ring, in the burst, or in the pool. Tests: `tests/smoke.rs`.

use std::io::{BufRead as _, Write as _};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, OpenObject};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portcullis_bench::address::Mac;
use portcullis_bench::generate::interface_mac;
use portcullis_xsk::frame::XskFrame;
use portcullis_xsk::port::{Frame as _, Port as _};
use portcullis_xsk::priority::{self, Priority};
use portcullis_xsk::socket::{Opened, Queue, Socket, open_all};
use portcullis_xsk::umem::{SocketRings, UmemOptions};

use crate::napi::{PRIME_PORT, Poller};
use skeleton::{ForwardSkel, ForwardSkelBuilder};

/// The compiled program.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, clippy::restriction)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/forward.skel.rs"));
}

/// Packets taken from a queue at once, as the worker does.
const BURST: usize = 64;
/// Frames that stay in the pool, as in the worker.
const KEEP: usize = 256;
/// Frames that wait for room in a transmit ring; more are dropped, as in the worker.
const OUTBOX: usize = 2048;
/// The rings of a worker that never sleeps.
const DEEP_RINGS: SocketRings = SocketRings { rx: 8192, tx: 2048 };
/// How long it looks for packets before it sleeps, as the worker does, and how long it sleeps at most.
const LOOK_FOR: Duration = Duration::from_micros(50);
/// **Units:** milliseconds.
const LONGEST_SLEEP: u16 = 20;

/// Who runs the devices' receive queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Drive {
    /// The kernel; the forwarder looks for a while and then sleeps until a frame comes.
    Kernel,
    /// The forwarder, by busy polling. It never sleeps.
    Poll,
}

/// Where to forward, and how.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// One device.
    #[arg(long, value_name = "IF")]
    inside: String,
    /// Its address, where the datagram comes that connects a poller.
    #[arg(long, value_name = "ADDRESS")]
    inside_address: Ipv4Addr,
    /// Who is behind it.
    #[arg(long, value_name = "MAC")]
    inside_peer: Mac,
    /// The other device.
    #[arg(long, value_name = "IF")]
    outside: String,
    /// Its address.
    #[arg(long, value_name = "ADDRESS")]
    outside_address: Ipv4Addr,
    /// Who is behind it.
    #[arg(long, value_name = "MAC")]
    outside_peer: Mac,
    /// Who runs the receive queues.
    #[arg(long, value_enum)]
    drive: Drive,
}

/// A device: its socket and what frames that leave it begin with.
struct Side {
    socket: Socket,
    poller: Option<Poller>,
    addresses: [u8; 12],
    outbox: Vec<XskFrame>,
}

/// What is told to whoever asks.
#[derive(Debug, Default)]
struct Figures {
    /// Time of the rounds that moved anything. **Units:** nanoseconds.
    busy: AtomicU64,
    packets: AtomicU64,
    dropped: AtomicU64,
}

/// Forwards until it is killed. Says `ready` once it does, and its figures for each line that it reads: nanoseconds spent on rounds with
/// packets, packets, packets dropped for want of room.
///
/// **Errors:** no sockets, no program, no datagram to connect a poller with.
pub fn forward(options: &Options) -> Result<()> {
    let queue = |device: &str| Queue { device: device.to_owned(), queue: 0 };
    let rings = if options.drive == Drive::Poll { DEEP_RINGS } else { SocketRings::even(DEEP_RINGS.tx) };
    let memory = UmemOptions { frames: UmemOptions::frames_for(2, rings), rings, ..UmemOptions::default() };
    let opened = open_all(memory, &[queue(&options.inside), queue(&options.outside)])?;
    let Opened { umem: _umem, sockets, mut frames } = opened;
    let (mut inside_object, mut outside_object) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let _inside = attach(&mut inside_object, &options.inside, &sockets[0])?;
    let _outside = attach(&mut outside_object, &options.outside, &sockets[1])?;
    let mut sockets = sockets.into_iter();
    let mut side = |device: &str, address: Ipv4Addr, peer: Mac| -> Result<Side> {
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&peer.0);
        addresses[6..].copy_from_slice(&interface_mac(device)?.0);
        let poller = if options.drive == Drive::Poll { Some(Poller::connect(address)?) } else { None };
        let socket = sockets.next().context("a socket for each device")?;
        Ok(Side { socket, poller, addresses, outbox: Vec::with_capacity(OUTBOX) })
    };
    let mut sides = [
        side(&options.inside, options.inside_address, options.inside_peer)?,
        side(&options.outside, options.outside_address, options.outside_peer)?,
    ];
    refill(&mut sides, &mut frames);
    let figures = Arc::new(Figures::default());
    let told = Arc::clone(&figures);
    std::thread::spawn(move || tell(&told));
    println!("ready");
    if options.drive == Drive::Poll {
        // As Portcullis's worker does that drives its devices.
        priority::set(Priority::Most).context("having the core before others")?;
    }
    run(&mut sides, &mut frames, &figures, options.drive)
}

fn run(sides: &mut [Side; 2], pool: &mut Vec<XskFrame>, figures: &Figures, drive: Drive) -> ! {
    let started = Instant::now();
    let (mut clock, mut last_packet) = (Duration::ZERO, Duration::ZERO);
    let mut burst = Vec::with_capacity(BURST);
    loop {
        let moved = round(sides, pool, &mut burst, figures);
        let after = started.elapsed();
        if moved > 0 {
            figures.busy.fetch_add(after.saturating_sub(clock).as_nanos() as u64, Ordering::Relaxed);
            figures.packets.fetch_add(moved as u64, Ordering::Relaxed);
            last_packet = after;
        } else if drive == Drive::Kernel {
            if after.saturating_sub(last_packet) < LOOK_FOR || sides.iter().any(|side| !side.outbox.is_empty()) {
                std::thread::yield_now();
            } else {
                sleep(sides);
            }
        }
        clock = if moved > 0 || drive == Drive::Poll { after } else { started.elapsed() };
    }
}

/// One round over both devices. Returns how many packets came.
fn round(sides: &mut [Side; 2], pool: &mut Vec<XskFrame>, burst: &mut Vec<XskFrame>, figures: &Figures) -> usize {
    let mut moved = 0;
    for from in 0..2 {
        let side = &mut sides[from];
        if let Some(poller) = &side.poller {
            poller.poll();
        }
        moved += side.socket.receive(burst, BURST);
        let other = &mut sides[1 - from];
        for mut frame in burst.drain(..) {
            if other.outbox.len() == OUTBOX {
                figures.dropped.fetch_add(1, Ordering::Relaxed);
                pool.push(frame);
                continue;
            }
            // The kernel gives no frame without an Ethernet header.
            frame.buffer()[..12].copy_from_slice(&other.addresses);
            other.outbox.push(frame);
        }
    }
    for side in sides.iter_mut().filter(|side| !side.outbox.is_empty()) {
        side.socket.transmit(&mut side.outbox);
    }
    refill(sides, pool);
    moved
}

fn refill(sides: &mut [Side; 2], pool: &mut Vec<XskFrame>) {
    for side in sides {
        side.socket.complete(pool);
        side.socket.fill(pool, KEEP);
        side.socket.wake();
    }
}

/// Sleeps until a frame comes. An interrupted or failed wait is only a shorter one.
fn sleep(sides: &[Side; 2]) {
    let mut wanted = [&sides[0], &sides[1]].map(|side| PollFd::new(side.socket.fd(), PollFlags::POLLIN));
    let _ = poll(&mut wanted, PollTimeout::from(LONGEST_SLEEP));
}

/// Attaches the program that gives a device's frames to `socket`.
fn attach<'object>(
    object: &'object mut MaybeUninit<OpenObject>,
    device: &str,
    socket: &Socket,
) -> Result<(ForwardSkel<'object>, Link)> {
    let index = if_nametoindex(device).with_context(|| format!("interface {device}"))?;
    let mut open = ForwardSkelBuilder::default().open(object).context("opening the forwarder's program")?;
    open.maps.rodata_data.as_mut().context("the forwarder's program has no constants")?.prime_port = PRIME_PORT.into();
    let program = open.load().context("loading the forwarder's program (needs root, or CAP_NET_ADMIN and CAP_BPF)")?;
    let descriptor = socket.fd().as_fd().as_raw_fd();
    program.maps.sockets.update(&0_u32.to_ne_bytes(), &descriptor.to_ne_bytes(), MapFlags::ANY).context("the socket's place")?;
    let link = program.progs.forward.attach_xdp(index.cast_signed());
    let link = link.with_context(|| format!("interface {device}: attaching the forwarder (is another XDP program attached?)"))?;
    Ok((program, link))
}

/// Answers each line of standard input with the figures; ends with it.
fn tell(figures: &Figures) {
    for line in std::io::stdin().lock().lines() {
        let Ok(_) = line else { return };
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        println!("{} {} {}", read(&figures.busy), read(&figures.packets), read(&figures.dropped));
        let _ = std::io::stdout().flush();
    }
}
