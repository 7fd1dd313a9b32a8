//! The packet memory: one UMEM for all sockets of the process, cut into frames that are owned like any other value.
//!
//! Knows registration, frames and their accounting, no packets. Called at start and by [`crate::socket`]. Invariant: a frame is in
//! exactly one place: in a ring ([`crate::port::Port::in_flight`]), in somebody's hands as an [`XskFrame`], or counted as lost.
//! Sources: kernel `Documentation/networking/af_xdp.rst`; libxdp xsk.c (the first socket of a UMEM is the UMEM's own descriptor).

use std::{
    fmt,
    num::NonZeroU32,
    os::fd::AsRawFd,
    ptr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use xsk_rs::{
    CompQueue, FillQueue, FrameDesc, RxQueue, Socket as RawSocket, TxQueue,
    config::{BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, UmemConfig},
};

use crate::{capability, frame::XskFrame, memory::Pages, sys};

/// What the kernel keeps free before the packet for XDP programs (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;
/// An Ethernet header with one VLAN tag.
pub const LINK_HEADER: usize = 18;
const HUGE_PAGE: usize = 2 << 20;
/// Entries of the fill ring, in those of the tx ring.
const FILL_RINGS: u32 = 2;

/// The size of a frame, headroom included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameBytes {
    /// 2048 bytes: MTUs up to 1774.
    #[default]
    Half,
    /// 4096 bytes: MTUs up to 3822.
    Page,
}

impl FrameBytes {
    /// The number. **Units:** bytes.
    pub const fn get(self) -> usize {
        match self {
            Self::Half => 2048,
            Self::Page => 4096,
        }
    }

    /// The largest MTU whose packets fit, with their link-layer header. **Units:** bytes from the network header on.
    pub const fn largest_mtu(self) -> usize {
        self.get() - HEADROOM - LINK_HEADER
    }

    /// The smallest size that `mtu` fits in, or none: then the MTU has to be lowered to at most 3822.
    pub fn for_mtu(mtu: usize) -> Option<Self> {
        [Self::Half, Self::Page].into_iter().find(|size| mtu <= size.largest_mtu())
    }
}

/// Entries of a socket's rings: powers of two. The completion ring has as many as the tx ring, the fill ring twice as many. A process that
/// stands still so fills an rx ring of no more than that, which is counted as that, before the fill ring runs empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRings {
    /// Packets that were received and wait for the worker.
    pub rx: u32,
    /// Packets that the device has to transmit.
    pub tx: u32,
}

impl SocketRings {
    /// The rx ring as long as the tx ring.
    pub const fn even(entries: u32) -> Self {
        Self { rx: entries, tx: entries }
    }

    /// Entries of the fill ring.
    pub(crate) const fn fill(self) -> u32 {
        FILL_RINGS * self.tx
    }

    /// How many frames the rings of a socket hold.
    pub const fn frames(self) -> u32 {
        self.rx + self.fill() + self.tx
    }
}

/// What a UMEM is made of.
#[derive(Clone, Copy, Debug)]
pub struct UmemOptions {
    /// How many frames. [`UmemOptions::frames_for`] says how many a number of sockets needs.
    pub frames: u32,
    /// Their size.
    pub frame_size: FrameBytes,
    /// The rings of every socket.
    pub rings: SocketRings,
    /// Whether to try huge pages first.
    pub huge_pages: bool,
    /// Whether the sockets are to be bound in zero-copy mode. All sockets of a UMEM have the same mode (the kernel hands the first
    /// one's down); [`crate::socket::open_all`] finds the best that all queues grant.
    pub zero_copy: bool,
}

impl Default for UmemOptions {
    fn default() -> Self {
        let rings = SocketRings::even(2048);
        Self { frames: Self::frames_for(2, rings), frame_size: FrameBytes::Half, rings, huge_pages: true, zero_copy: false }
    }
}

impl UmemOptions {
    /// Enough frames for every ring of `sockets` sockets to be full, and two tx rings in the worker's hands.
    pub const fn frames_for(sockets: u32, rings: SocketRings) -> u32 {
        sockets * rings.frames() + 2 * rings.tx
    }
}

/// Why there is no UMEM.
#[derive(Debug, thiserror::Error)]
pub enum UmemError {
    /// A number that cannot be.
    #[error("{what} is {value}: has to be {legal}")]
    Illegal {
        /// Which one.
        what: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        legal: &'static str,
    },
    /// The kernel limits locked memory: "No buffer space available".
    #[error(
        "cannot lock {mebibytes} MiB of packet memory: give the process CAP_IPC_LOCK or raise its limit (LimitMEMLOCK=infinity)"
    )]
    LockedMemory {
        /// The size asked for.
        mebibytes: usize,
    },
    /// A right is missing.
    #[error("cannot create packet memory: not permitted; missing {}", capability::list(missing))]
    NotPermitted {
        /// The capabilities' names.
        missing: Vec<&'static str>,
    },
    /// Anything else.
    #[error("cannot create {mebibytes} MiB of packet memory: {source}")]
    Failed {
        /// The size asked for.
        mebibytes: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// The UMEM. Clones are the same memory; it lives as long as any socket or frame.
#[derive(Clone)]
pub struct Umem {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Umem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Umem").field("frames", &self.shared.frames).field("frame_bytes", &self.shared.frame_bytes).finish()
    }
}

pub(crate) type Rings = (TxQueue, RxQueue, FillQueue, CompQueue);

pub(crate) struct Shared {
    /// Where the memory begins. Valid while `raw` lives.
    base: *mut u8,
    frames: u32,
    frame_bytes: usize,
    rings: SocketRings,
    pages: Pages,
    pub(crate) zero_copy: bool,
    retiring: AtomicBool,
    lost: AtomicUsize,
    /// Every frame's descriptor at its first place; see [`Shared::home`].
    homes: Box<[FrameDesc]>,
    /// How many sockets were bound, the anchor included.
    bound: AtomicU32,
    /// A socket on the loopback device that the others share the UMEM with, so that every one of them can be closed by itself.
    /// Dropped before `raw`.
    anchor: Mutex<Option<Rings>>,
    pub(crate) raw: xsk_rs::Umem,
}

// SAFETY: `base` is the only field that is not already Send and Sync (the queues of the anchor are Send and behind a mutex). It is
// never dereferenced through `Shared` itself, only by a frame for that frame's own bytes, and a frame has one owner.
// JUSTIFICATION: frames go from worker to worker, and all of them name the memory that they are part of.
unsafe impl Send for Shared {}
// SAFETY: see above.
unsafe impl Sync for Shared {}

impl Umem {
    /// Registers memory and gives it away as frames. Tries huge pages if asked, and says which pages it got in [`Umem::pages`].
    ///
    /// **Errors:** illegal numbers, missing rights, no memory; nothing is left behind.
    pub fn new(options: UmemOptions) -> Result<(Self, Vec<XskFrame>), UmemError> {
        let size = options.frame_size.get();
        let bytes = check(options)? * size;
        sys::raise_locked_memory_limit();
        let config = umem_config(options)?;
        let (raw, descriptors, pages) = register(options, config, bytes)?;
        let first = *descriptors.first().ok_or(illegal("the number of frames", 0, "at least 1"))?;
        // SAFETY: `first` describes a frame of `raw` that nobody else uses yet; its packet is empty, only the place is taken.
        let place = unsafe { raw.data(&first) }.contents().as_ptr();
        let base = ptr::with_exposed_provenance_mut(place.expose_provenance() - first.addr());

        let shared = Arc::new(Shared {
            base,
            frames: descriptors.len() as u32,
            frame_bytes: size,
            rings: options.rings,
            pages,
            zero_copy: options.zero_copy,
            retiring: AtomicBool::new(false),
            lost: AtomicUsize::new(0),
            homes: descriptors.clone().into_boxed_slice(),
            bound: AtomicU32::new(0),
            anchor: Mutex::new(None),
            raw,
        });
        // SAFETY: the descriptors are the new UMEM's own, each used once.
        let frame = |descriptor| unsafe { XskFrame::new(descriptor, Arc::clone(&shared)) };
        let frames = descriptors.into_iter().map(frame).collect();
        let umem = Self { shared };
        if !options.zero_copy {
            umem.anchor_to_loopback();
        }
        Ok((umem, frames))
    }

    /// All frames there are. At any time this is the sum of every port's `in_flight()`, of the frames in hands and pools, and of
    /// [`Umem::frames_lost`].
    pub fn frames_total(&self) -> usize {
        self.shared.frames as usize
    }

    /// Frames that were dropped outside a pool (a bug: debug builds assert), or that a socket had when it was dropped instead of closed,
    /// or when the kernel did not release its queue.
    pub fn frames_lost(&self) -> usize {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// The pages that the memory is on.
    pub fn pages(&self) -> Pages {
        self.shared.pages
    }

    /// The size of a frame.
    pub fn frame_bytes(&self) -> usize {
        self.shared.frame_bytes
    }

    /// The rings of every socket.
    pub fn rings(&self) -> SocketRings {
        self.shared.rings
    }

    /// From now on frames may be dropped: the process tears down. Only silences the assertion.
    pub fn retire(&self) {
        self.shared.retiring.store(true, Ordering::Relaxed);
    }

    /// Binds the UMEM's own descriptor to the loopback device. Without it the first socket would be the UMEM itself, could not be
    /// closed alone, and its device's end would keep new sockets from sharing the UMEM. Copy mode only: the others inherit the mode.
    fn anchor_to_loopback(&self) {
        let config = socket_config(SocketRings::even(64), BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP);
        let mut attempts = sys::Attempts::new(Duration::from_secs(2));
        loop {
            match self.shared.bind(config, c"lo", 0) {
                Ok(rings) => {
                    *lock(&self.shared.anchor) = Some(rings);
                    return;
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempts.again() => {}
                Err(error) => {
                    tracing::warn!(%error, "no anchor socket on lo: the first queue is released only when the process ends");
                    return;
                }
            }
        }
    }

    /// Whether a socket bound now could be closed by itself.
    pub(crate) fn is_anchored(&self) -> bool {
        self.shared.bound.load(Ordering::Relaxed) > 0
    }
}

impl Shared {
    /// Where the memory begins.
    #[inline]
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    #[inline]
    pub(crate) fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    pub(crate) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Relaxed)
    }

    /// Binds a socket of this UMEM to a queue.
    pub(crate) fn bind(&self, config: SocketConfig, device: &std::ffi::CStr, queue: u32) -> std::io::Result<Rings> {
        let interface = xsk_rs::config::Interface::new(device.to_owned());
        // SAFETY: the contract concerns a (device, queue) that is bound twice while libxdp loads its own program; the config always
        // has INHIBIT_PROG_LOAD.
        let (tx, rx, rest) = unsafe { RawSocket::new(config, &self.raw, &interface, queue) }.map_err(|error| io_of(&error))?;
        // None: this process already has the queue bound.
        let (fill, completion) = rest.ok_or_else(|| std::io::Error::from_raw_os_error(libc::EBUSY))?;
        self.bound.fetch_add(1, Ordering::Relaxed);
        sys::close_on_exec(rx.fd().as_raw_fd())?;
        Ok((tx, rx, fill, completion))
    }

    /// The number of the frame that has `address`, where the memory has it.
    #[inline]
    pub(crate) fn index_of(&self, address: usize) -> Option<usize> {
        let index = address / self.frame_bytes;
        (index < self.frames as usize).then_some(index)
    }

    /// Whether a packet of `len` bytes at `address` stays inside its frame.
    #[inline]
    pub(crate) fn holds(&self, address: usize, len: usize) -> bool {
        len <= self.frame_bytes - address % self.frame_bytes
    }

    /// The descriptor of a frame as [`Umem::new`] made it: empty, with the full headroom.
    pub(crate) fn home(&self, index: usize) -> FrameDesc {
        self.homes[index]
    }

    pub(crate) fn count_lost(&self, frames: usize) {
        self.lost.fetch_add(frames, Ordering::Relaxed);
    }
}

/// The configuration of a socket with our rings and flags; never libxdp's own program.
pub(crate) fn socket_config(rings: SocketRings, flags: BindFlags) -> SocketConfig {
    let mut builder = SocketConfig::builder();
    builder.libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD).bind_flags(flags);
    if let (Ok(rx), Ok(tx)) = (QueueSize::new(rings.rx), QueueSize::new(rings.tx)) {
        builder.rx_queue_size(rx).tx_queue_size(tx);
    }
    builder.build()
}

/// The error of the kernel inside one of xsk-rs.
pub(crate) fn io_of(error: &(dyn std::error::Error + 'static)) -> std::io::Error {
    let inner = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    match inner.and_then(std::io::Error::raw_os_error) {
        Some(number) => std::io::Error::from_raw_os_error(number),
        None => std::io::Error::other(error.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn illegal(what: &'static str, value: u64, legal: &'static str) -> UmemError {
    UmemError::Illegal { what, value, legal }
}

/// Checks the numbers, and gives the number of frames.
fn check(options: UmemOptions) -> Result<usize, UmemError> {
    for entries in [options.rings.rx, options.rings.tx] {
        if !entries.is_power_of_two() || !(64..=32_768).contains(&entries) {
            return Err(illegal("the ring size", entries.into(), "a power of two from 64 to 32768"));
        }
    }
    if options.frames == 0 || options.frames as usize > (u32::MAX as usize) / options.frame_size.get() {
        return Err(illegal("the number of frames", options.frames.into(), "from 1 to what makes 4 GiB"));
    }
    Ok(options.frames as usize)
}

fn umem_config(options: UmemOptions) -> Result<UmemConfig, UmemError> {
    let SocketRings { tx, .. } = options.rings;
    let bad = |_| illegal("the ring size", tx.into(), "a power of two");
    let frame = FrameSize::new(options.frame_size.get() as u32).map_err(|_| illegal("the frame size", 0, "2048 or 4096"))?;
    UmemConfig::builder()
        .frame_size(frame)
        .fill_queue_size(QueueSize::new(options.rings.fill()).map_err(bad)?)
        .comp_queue_size(QueueSize::new(tx).map_err(bad)?)
        .build()
        .map_err(|error| UmemError::Failed { mebibytes: 0, source: std::io::Error::other(error.to_string()) })
}

type Registered = (xsk_rs::Umem, Vec<FrameDesc>, Pages);

/// Maps and registers the memory, on huge pages when they are wanted and there.
fn register(options: UmemOptions, config: UmemConfig, bytes: usize) -> Result<Registered, UmemError> {
    if options.huge_pages {
        let rounded = bytes.next_multiple_of(HUGE_PAGE) / options.frame_size.get();
        match create(config, rounded as u32, true) {
            Ok((raw, frames)) => return Ok((raw, frames, Pages::Huge)),
            Err(error) => tracing::info!(%error, "no huge pages for the packet memory: using ordinary ones"),
        }
    }
    create(config, options.frames, false).map(|(raw, frames)| (raw, frames, Pages::Ordinary)).map_err(|error| {
        let mebibytes = bytes >> 20;
        match error.raw_os_error() {
            Some(libc::ENOBUFS) => UmemError::LockedMemory { mebibytes },
            Some(libc::EPERM) => UmemError::NotPermitted { missing: capability::missing() },
            _ => UmemError::Failed { mebibytes, source: error },
        }
    })
}

fn create(config: UmemConfig, frames: u32, huge: bool) -> std::io::Result<(xsk_rs::Umem, Vec<FrameDesc>)> {
    let frames = NonZeroU32::new(frames).ok_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    xsk_rs::Umem::new(config, frames, huge).map_err(|error| io_of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_size_is_chosen_by_the_mtu_with_headroom_and_tagged_header() {
        assert_eq!(FrameBytes::for_mtu(1500), Some(FrameBytes::Half));
        assert_eq!(FrameBytes::for_mtu(1774), Some(FrameBytes::Half));
        assert_eq!(FrameBytes::for_mtu(1775), Some(FrameBytes::Page));
        assert_eq!(FrameBytes::for_mtu(3822), Some(FrameBytes::Page));
        assert_eq!(FrameBytes::for_mtu(3823), None);
    }

    #[test]
    fn the_frames_for_two_sockets_fill_every_ring_and_leave_some() {
        let frames = |rx, tx| UmemOptions::frames_for(2, SocketRings { rx, tx });
        assert_eq!(frames(2048, 2048), 2 * (2 * 2048 + 2048 + 2048) + 2 * 2048);
        assert_eq!(frames(8192, 2048), 2 * (2 * 2048 + 8192 + 2048) + 2 * 2048);
    }

    #[test]
    fn illegal_numbers_are_refused_before_anything_is_mapped() {
        let refused = |options| matches!(Umem::new(options), Err(UmemError::Illegal { .. }));
        for (rx, tx) in [(1000, 1000), (32, 32), (64, 1000), (32, 64), (65_536, 64)] {
            assert!(refused(UmemOptions { rings: SocketRings { rx, tx }, ..UmemOptions::default() }));
        }
        assert!(refused(UmemOptions { frames: 0, ..UmemOptions::default() }));
        assert!(refused(UmemOptions { frames: u32::MAX, ..UmemOptions::default() }));
    }
}
