//! One queue of one device with its four rings: the AF_XDP socket, as a [`Port`] of the worker.
//!
//! Knows rings, wake-ups and modes, no packets. Opened by the control plane, moved to the worker that polls it. Invariant: `held` is
//! the set of frames that the kernel has of this socket; a descriptor that is not in it is refused, in release builds too.
//! Sources: kernel `Documentation/networking/af_xdp.rst`, net/xdp/xsk.c. Tests: here the arithmetic, tests/sockets.rs the kernel.

mod backlog;
mod bind;
mod error;
mod statistics;

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    sync::Arc,
};

use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, config::BindFlags};

pub use error::SocketError;
pub use statistics::{QueueStatistics, statistics};

use backlog::Backlog;
use bind::{Place, bind_patiently, is_released};
use error::error_of;

use crate::kicker::Kicker;
use crate::napi::{DRIVEN_BUDGET, Driver};
use crate::{
    frame::{FrameSet, XskFrame},
    port::{Frame, Port},
    sys,
    umem::{Shared, SocketRings, Umem, UmemOptions, socket_config},
};

/// Descriptors moved at once between a ring and the burst.
const BURST: usize = 64;
/// Packets that one send call transmits in copy mode (`TX_BATCH_SIZE` in net/xdp/xsk.c).
const KICK_BUDGET: usize = 32;
/// Send calls of one wake-up at most: a full ring of 2048 needs 64.
const KICKS: usize = 64;
/// Frames that a queue has to receive into while its worker runs it. Chosen: twice what a call to run it takes.
const DRIVEN_FILL: usize = 4 * DRIVEN_BUDGET as usize;
/// Packets that one send call may transmit where the kernel lets us say so (`XDP_MAX_TX_SKB_BUDGET`, Linux 6.18).
const SEND_BUDGET: i32 = 128;
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
/// Set in a descriptor's options when the packet goes on in the next one (`XDP_PKT_CONTD`).
const CONTINUED: u32 = 1;

// linux/asm-generic/socket.h; not in every libc.
const SO_BUSY_POLL: i32 = 46;
const SO_PREFER_BUSY_POLL: i32 = 69;
const SO_BUSY_POLL_BUDGET: i32 = 70;

/// How packets get between the device and the UMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The device writes into the UMEM.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

impl Mode {
    /// The word for logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero_copy",
            Self::Copy => "copy",
        }
    }
}

/// A queue of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The device's name.
    pub device: String,
    /// The queue's number.
    pub queue: u32,
}

/// How a socket asks the kernel to poll its queue from the worker's own calls, instead of by interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPolling {
    /// How long one call may poll. **Units:** microseconds.
    pub time_us: u16,
    /// Packets that one poll may take.
    pub budget: u16,
}

/// An open socket on a queue.
#[derive(Debug)]
pub struct Socket {
    name: Queue,
    place: Place,
    mode: Mode,
    /// Whether the kernel releases the queue when the rings are dropped (see [`Umem`] on the first socket).
    closable: bool,
    busy_polling: bool,
    fd: RawFd,
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    completion: CompQueue,
    rings: SocketRings,
    /// Frames given to the tx ring and not seen in the completion ring yet.
    in_transmit: usize,
    dropped_by_device: u64,
    /// Who asks the kernel to transmit, where that is not the worker.
    kicker: Option<Kicker>,
    /// What runs the queue from the worker, where the socket's own options do not.
    driver: Option<Driver>,
    backlog: Backlog,
    core: Core,
}

/// The part of a socket that outlives its rings: which frames the kernel has of it.
struct Core {
    umem: Arc<Shared>,
    held: FrameSet,
    /// Frames that came back with a descriptor that is no packet; filled again first.
    spare: Vec<XskFrame>,
    /// For the frame that a driver carries.
    reserve: Option<XskFrame>,
    refused: u64,
    scratch: Box<[FrameDesc; BURST]>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("held", &self.held.len()).field("refused", &self.refused).finish_non_exhaustive()
    }
}

impl Socket {
    /// Opens the queue with frames of `umem`, in the mode that the UMEM was made for. A busy queue is tried again for 2 s.
    ///
    /// The fill ring is empty until [`Port::fill`] is called; the XDP program redirects to it once it is registered in the map.
    /// Has to be called in the device's network namespace. **Errors:** see [`SocketError`]; nothing is left behind.
    pub fn open(umem: &Umem, queue: &Queue) -> Result<Self, SocketError> {
        let shared = &umem.shared;
        let copying = if shared.zero_copy { BindFlags::XDP_ZEROCOPY } else { BindFlags::XDP_COPY };
        let config = socket_config(umem.rings(), copying | BindFlags::XDP_USE_NEED_WAKEUP);
        let closable = umem.is_anchored();
        let queues = bind_patiently(shared, config, queue)?;
        let fd = queues.1.fd().as_raw_fd();
        let failed = |source| error_of(source, queue, shared.zero_copy);
        let mode = granted_mode(fd).map_err(failed)?;
        // Older kernels have no such option, and a budget of 32.
        let _ = sys::set_option(fd, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, SEND_BUDGET.min(umem.rings().tx.cast_signed()));
        let place = Place::of(queue, fd).map_err(failed)?;
        let (tx, rx, fill, completion) = queues;
        let core = Core {
            umem: Arc::clone(shared),
            held: FrameSet::new(umem.frames_total()),
            spare: Vec::new(),
            reserve: None,
            refused: 0,
            scratch: Box::new([FrameDesc::default(); BURST]),
        };
        let (name, rings) = (queue.clone(), umem.rings());
        Ok(Self {
            name,
            place,
            mode,
            closable,
            busy_polling: false,
            fd,
            tx,
            rx,
            fill,
            completion,
            rings,
            in_transmit: 0,
            dropped_by_device: 0,
            kicker: None,
            driver: None,
            backlog: Backlog::default(),
            core,
        })
    }

    /// The device and queue.
    pub fn queue(&self) -> &Queue {
        &self.name
    }

    /// The mode that the kernel reports.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The descriptor, for `poll()` or epoll when idle and for the XSKMAP.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the rings are, and they are borrowed with `self`.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Descriptors that the kernel handed out and that were refused: out of bounds, or of a frame that it did not have.
    pub fn refused_descriptors(&self) -> u64 {
        self.core.refused
    }

    /// Packets that the device dropped on transmission because its queue was full (copy mode; the kernel tells it by an error of the
    /// send call and counts it nowhere else).
    pub fn dropped_by_device(&self) -> u64 {
        self.dropped_by_device + self.kicker.as_ref().map_or(0, Kicker::dropped)
    }

    /// The kernel's counters of the queue.
    pub fn statistics(&self) -> io::Result<QueueStatistics> {
        statistics(self.fd())
    }

    /// Asks for preferred busy polling on the socket. Not fatal where the kernel refuses: it is logged and false is returned. Drives
    /// NIC queues; on veth it does nothing.
    pub fn prefer_busy_polling(&mut self, how: BusyPolling) -> bool {
        let options =
            [(SO_PREFER_BUSY_POLL, 1), (SO_BUSY_POLL, i32::from(how.time_us)), (SO_BUSY_POLL_BUDGET, i32::from(how.budget))];
        let set = options.into_iter().try_for_each(|(name, value)| sys::set_option(self.fd, libc::SOL_SOCKET, name, value));
        if let Err(error) = &set {
            tracing::warn!(device = %self.name.device, queue = self.name.queue, %error, "no busy polling");
        }
        self.busy_polling = set.is_ok();
        self.busy_polling
    }

    /// Has the kernel transmit from a thread of its own from now on, on whatever core is free, instead of from [`Port::wake`].
    /// In zero-copy mode the call only rings a bell: nothing changes then. **Errors:** no descriptor or no thread.
    pub fn transmit_in_thread(&mut self) -> io::Result<()> {
        if self.mode == Mode::Copy && self.kicker.is_none() {
            let descriptor = self.fd().try_clone_to_owned()?;
            self.kicker = Some(Kicker::start(format!("tx-{}-{}", self.name.device, self.name.queue), descriptor)?);
        }
        Ok(())
    }

    /// Has [`Port::receive`] run the queue through `driver` whenever that may.
    pub fn drive_by(&mut self, driver: Driver) {
        self.driver = Some(driver);
    }

    /// Closes the socket and gives back the frames that it had in its rings, once the kernel has shown that it is done with them: by
    /// letting the queue be bound again, or by having no such device any more. Has to be called in the device's namespace.
    ///
    /// Closing the descriptor shows nothing: a driver in zero-copy mode is told a moment later, and a process that is just being
    /// started (between fork and exec) has the descriptor too. Where the proof fails within 2 s, or the socket is its UMEM's own
    /// descriptor and stays open with it, no frame comes back and all are counted as lost.
    pub fn close(self) -> Vec<XskFrame> {
        let Self { place, tx, rx, fill, completion, mut core, closable, kicker, .. } = self;
        // Its thread has a descriptor of the socket, too.
        drop(kicker);
        drop((tx, rx, fill, completion));
        if closable && is_released(&core.umem, place) { core.take_back() } else { Vec::new() }
    }

    /// Packets that the kernel has not taken off the tx ring. Asking for the whole ring makes libxdp read how far the kernel has come.
    fn waiting(&mut self) -> usize {
        (self.rings.tx - self.tx.nb_free(self.rings.tx)) as usize
    }

    /// Has the kernel transmit what waits, where it wants to be asked. Returns whether that has also polled the receive queue once.
    ///
    /// While busy polling is preferred, a send call on a zero-copy socket polls the receive queue's NAPI context and wakes no other
    /// (`xsk_no_wakeup`, called by `__xsk_sendmsg`, net/xdp/xsk.c). Most drivers transmit from that one. virtio_net has a second one
    /// for it (`virtnet_poll_tx`), which runs by then only when the device gives a packet back: once it has given back all, never.
    /// `xsk_poll` wakes without that condition, so it is asked where the send call has moved nothing. It comes second because with
    /// one context for both it costs an interrupt, which is what busy polling is to avoid.
    fn wake_transmit(&mut self) -> bool {
        let waiting = self.waiting();
        if waiting == 0 || !self.tx.needs_wakeup() {
            return false;
        }
        if let Some(kicker) = &self.kicker {
            kicker.kick();
            return false;
        }
        self.dropped_by_device += kick(self.fd, waiting);
        let polled = self.busy_polling && self.mode == Mode::ZeroCopy;
        if polled && self.waiting() == waiting {
            sys::wake_by_poll(self.fd());
        }
        polled
    }

    /// Takes what is in the rx ring, at most `most`.
    #[inline]
    fn take_received(&mut self, frames: &mut Vec<XskFrame>, most: usize) -> usize {
        let before = frames.len();
        let mut left = most;
        while left > 0 {
            let want = left.min(BURST);
            // SAFETY: the queue and the descriptors' frames are of the same UMEM.
            let got = unsafe { self.rx.consume(&mut self.core.scratch[..want]) };
            for position in 0..got {
                let descriptor = self.core.scratch[position];
                frames.extend(self.core.accept(descriptor));
            }
            left -= got;
            if got < want {
                break;
            }
        }
        frames.len() - before
    }

    /// Whether this thread runs the queue, and nobody else does.
    pub fn is_driven(&self) -> bool {
        self.driver.as_ref().is_some_and(Driver::is_ours)
    }

    /// Frames that may be added to the fill ring. While the queue is run from here, no more are wanted than a call to run it takes before the
    /// next are added; so few go round, and stay in the caches.
    #[inline]
    fn room_to_fill(&mut self) -> usize {
        if self.is_driven() { DRIVEN_FILL.saturating_sub(self.in_fill_ring()) } else { usize::MAX }
    }

    /// Frames in the fill ring. Asking for the whole ring makes libxdp read how far the kernel has come.
    fn in_fill_ring(&mut self) -> usize {
        let entries = self.rings.fill();
        (entries - self.fill.nb_free(entries)) as usize
    }

    /// Whether so many packets wait in the rx ring, or so few frames in the fill ring, that more had better wait in the device. Until then a
    /// worker that was held up, or is slow for a moment, empties the device's small ring into its own large one.
    fn is_overloaded(&mut self) -> bool {
        let in_fill_ring = self.in_fill_ring();
        let waiting = (self.core.held.len() - self.in_transmit).saturating_sub(in_fill_ring);
        self.backlog.is_long(waiting, self.rings.rx as usize) || (waiting > 0 && in_fill_ring < DRIVEN_FILL / 2)
    }

    /// Runs the queue. Returns 1 with a frame that came in a datagram, else 0.
    #[inline]
    fn run_queue(&mut self, frames: &mut Vec<XskFrame>) -> usize {
        let Some(carried) = self.driver.as_mut().and_then(Driver::run) else { return 0 };
        let Some(mut frame) = self.core.reserve.take() else { return 0 };
        let Some(room) = frame.buffer().get_mut(..carried.len()).filter(|_| !carried.is_empty()) else {
            self.core.spare.push(frame);
            return 0;
        };
        room.copy_from_slice(carried);
        frame.set_packet_len(carried.len());
        frames.push(frame);
        1
    }
}

fn granted_mode(fd: RawFd) -> io::Result<Mode> {
    // SAFETY: struct xdp_options is one u32 of flags.
    let flags: u32 = unsafe { sys::get_option(fd, libc::SOL_XDP, libc::XDP_OPTIONS) }?;
    Ok(if flags & libc::XDP_OPTIONS_ZEROCOPY == 0 { Mode::Copy } else { Mode::ZeroCopy })
}

impl Core {
    /// Makes a frame of a descriptor that the kernel handed out, or refuses it.
    #[inline]
    fn accept(&mut self, mut descriptor: FrameDesc) -> Option<XskFrame> {
        let index = self.umem.index_of(descriptor.addr());
        if !index.is_some_and(|index| self.held.remove(index)) {
            self.refused += 1;
            return None;
        }
        let whole = descriptor.options() & CONTINUED == 0 && self.umem.holds(descriptor.addr(), descriptor.lengths().data());
        descriptor.set_options(0);
        // SAFETY: the frame was in `held`: this socket gave it to the kernel once, with its reference, and now takes it back once. The
        // kernel handed the descriptor out, so it is done with the frame. The address is inside the memory; the length is checked in
        // `whole`, and a frame that is not whole gives its bytes to nobody before it was filled again.
        let frame = unsafe { XskFrame::from_descriptor(descriptor, &self.umem) };
        if whole {
            return Some(frame);
        }
        self.refused += 1;
        self.spare.push(frame);
        None
    }

    /// Takes back all frames that the kernel had. The socket is closed.
    fn take_back(&mut self) -> Vec<XskFrame> {
        let mut frames = std::mem::take(&mut self.spare);
        frames.extend(self.reserve.take());
        for index in self.held.take() {
            // SAFETY: the frame was in `held`, with its reference; the kernel has released the queue, so it neither writes to the frame
            // nor hands it out any more.
            frames.push(unsafe { XskFrame::from_descriptor(self.umem.home(index), &self.umem) });
        }
        frames
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let held = self.held.take().len();
        self.umem.count_lost(held);
        for _ in 0..held {
            // SAFETY: every frame in `held` left one reference behind in into_descriptor; `self.umem` itself keeps the memory until
            // the rings are closed.
            unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.umem)) };
        }
        for frame in self.spare.drain(..).chain(self.reserve.take()) {
            // Not dropped as a frame: a socket may go with what the kernel had of it.
            frame.into_descriptor();
            self.umem.count_lost(1);
            // SAFETY: the reference that into_descriptor has just left behind.
            unsafe { Arc::decrement_strong_count(Arc::as_ptr(&self.umem)) };
        }
    }
}

impl Port for Socket {
    type Frame = XskFrame;

    /// A queue that is ours to run is run unless there is overload: what comes then is dropped by the device, before any work.
    fn receive(&mut self, frames: &mut Vec<XskFrame>, most: usize) -> usize {
        // The last place is for the frame that a datagram brings.
        let Some(first) = most.checked_sub(1).filter(|_| self.driver.is_some()) else { return self.take_received(frames, most) };
        let got = self.take_received(frames, first);
        let carried = if self.is_overloaded() { 0 } else { self.run_queue(frames) };
        let all = got + carried + self.take_received(frames, most - got - carried);
        self.backlog.note(all);
        all
    }

    fn transmit(&mut self, frames: &mut Vec<XskFrame>) -> usize {
        let room = self.tx.nb_free(frames.len() as u32) as usize;
        let count = room.min(frames.len());
        let mut leaving = frames.drain(..count);
        let mut left = count;
        while left > 0 {
            let chunk = left.min(BURST);
            for (slot, frame) in self.core.scratch.iter_mut().zip(leaving.by_ref().take(chunk)) {
                *slot = give_packet(&mut self.core.held, &self.core.umem, frame);
            }
            // SAFETY: the frames are of this UMEM, were given up just now and are not used again until they come back.
            let put = unsafe { self.tx.produce(&self.core.scratch[..chunk]) };
            assert_eq!(put, chunk, "the ring had room");
            left -= chunk;
        }
        drop(leaving);
        self.in_transmit += count;
        count
    }

    fn complete(&mut self, pool: &mut Vec<XskFrame>) -> usize {
        let mut completed = 0;
        loop {
            // SAFETY: the queue and the descriptors' frames are of the same UMEM.
            let got = unsafe { self.completion.consume(&mut self.core.scratch[..]) };
            for position in 0..got {
                let descriptor = self.core.scratch[position];
                pool.extend(self.core.accept(descriptor));
            }
            completed += got;
            if got < BURST {
                break;
            }
        }
        self.in_transmit = self.in_transmit.saturating_sub(completed);
        completed
    }

    fn fill(&mut self, pool: &mut Vec<XskFrame>, keep: usize) -> usize {
        pool.append(&mut self.core.spare);
        if self.driver.is_some() && self.core.reserve.is_none() {
            self.core.reserve = pool.pop();
        }
        let spendable = pool.len().saturating_sub(keep).min(self.room_to_fill());
        let count = spendable.min(self.fill.nb_free(spendable as u32) as usize);
        let mut left = count;
        while left > 0 {
            let chunk = left.min(BURST);
            let from = pool.len() - chunk;
            for (slot, frame) in self.core.scratch.iter_mut().zip(pool.drain(from..)) {
                *slot = give(&mut self.core.held, &self.core.umem, frame);
            }
            // SAFETY: the frames are of this UMEM, were given up just now and are not used again until they come back.
            let put = unsafe { self.fill.produce(&self.core.scratch[..chunk]) };
            assert_eq!(put, chunk, "the ring had room");
            left -= chunk;
        }
        count
    }

    fn wake(&mut self) {
        let polled = self.in_transmit > 0 && self.wake_transmit();
        if (self.busy_polling && !polled) || self.fill.needs_wakeup() {
            sys::kick_receive(self.fd);
        }
    }

    fn in_flight(&self) -> usize {
        self.core.held.len() + self.core.spare.len() + usize::from(self.core.reserve.is_some())
    }
}

/// Gives the kernel a frame to transmit.
#[inline]
fn give_packet(held: &mut FrameSet, umem: &Arc<Shared>, frame: XskFrame) -> FrameDesc {
    // The kernel would take such a descriptor off the ring and never complete it.
    debug_assert!(frame.packet_len() > 0, "a frame without a packet cannot be transmitted");
    give(held, umem, frame)
}

/// Gives the kernel a frame: from here on it is in `held`.
#[inline]
fn give(held: &mut FrameSet, umem: &Arc<Shared>, frame: XskFrame) -> FrameDesc {
    assert!(frame.belongs_to(umem), "a frame of another UMEM");
    held.insert(frame.index());
    frame.into_descriptor()
}

/// Has the kernel transmit `waiting` packets, and says how many the device has dropped of them. EAGAIN says that the kernel's budget
/// ran out and more is in the ring; EBUSY that the device dropped a packet because its queue is full: the rest then waits for the next
/// wake-up, as it does when the link is down.
pub(crate) fn kick(fd: RawFd, waiting: usize) -> u64 {
    for _ in 0..(waiting.div_ceil(KICK_BUDGET) + 1).min(KICKS) {
        match sys::kick_transmit(fd).map_err(|error| error.raw_os_error()) {
            Err(Some(libc::EAGAIN)) => {}
            Err(Some(libc::EBUSY)) => return 1,
            _ => return 0,
        }
    }
    0
}

/// A UMEM with its sockets and its free frames.
#[derive(Debug)]
pub struct Opened {
    /// The memory.
    pub umem: Umem,
    /// The sockets, in the order of the queues asked for.
    pub sockets: Vec<Socket>,
    /// All frames: none is in a ring yet.
    pub frames: Vec<XskFrame>,
}

/// Makes a UMEM and opens all `queues` over it, in zero-copy mode if `options` asks for it and every queue grants it, else in copy
/// mode. (The kernel gives all sockets of a UMEM the first one's mode, so one device without zero-copy decides for all; it is logged.)
pub fn open_all(options: UmemOptions, queues: &[Queue]) -> Result<Opened, SocketError> {
    if options.zero_copy {
        match open_in(options, queues) {
            Err(error @ (SocketError::NoZeroCopy { .. } | SocketError::NoQueue { .. } | SocketError::Failed { .. })) => {
                tracing::info!(%error, "no zero-copy for all queues: using copy mode");
            }
            result => return result,
        }
    }
    open_in(UmemOptions { zero_copy: false, ..options }, queues)
}

fn open_in(options: UmemOptions, queues: &[Queue]) -> Result<Opened, SocketError> {
    let (umem, frames) = Umem::new(options)?;
    match queues.iter().map(|queue| Socket::open(&umem, queue)).collect() {
        Ok(sockets) => Ok(Opened { umem, sockets, frames }),
        Err(error) => {
            umem.retire();
            Err(error)
        }
    }
}
