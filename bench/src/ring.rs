//! A packet socket's receive ring (`TPACKET_V3`): every frame that an interface receives, with the kernel's time stamp.
//!
//! Knows the kernel's layout and nothing of the packets. Called by the sink. Unsafe: the mapping and
//! the socket options that nix does not have; blocks are read as plain bytes, bounds-checked.
//! Sources: Linux `Documentation/networking/packet_mmap.rst`, `include/uapi/linux/if_packet.h`, packet(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::raw::{bind, check, open_socket};

/// **Units:** bytes. Chosen: 64-byte frames take 144 bytes each, so a block holds about 7000.
const BLOCK_LEN: usize = 1 << 20;
/// After how long the kernel hands over a block that is not full. **Units:** milliseconds.
const RETIRE_AFTER: u32 = 2;
/// The kernel only checks that it divides the block; frames of V3 are as long as they are.
const FRAME_LEN: usize = 2048;

/// Offsets in `struct tpacket_block_desc` with `struct tpacket_hdr_v1`.
mod block_offset {
    pub(super) const STATUS: usize = 8;
    pub(super) const PACKETS: usize = 12;
    pub(super) const FIRST: usize = 16;
}

/// Offsets in `struct tpacket3_hdr`.
mod packet_offset {
    pub(super) const NEXT: usize = 0;
    pub(super) const SECONDS: usize = 4;
    pub(super) const NANOSECONDS: usize = 8;
    pub(super) const CAPTURED: usize = 12;
    pub(super) const STATUS: usize = 20;
    pub(super) const FRAME: usize = 24;
}

/// One received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'block> {
    pub(crate) frame: &'block [u8],
    /// When the kernel received it. **Units:** nanoseconds of `CLOCK_REALTIME`.
    pub(crate) received: u64,
    /// Whether the kernel says that the checksum was left to hardware.
    pub(crate) unfinished: bool,
}

/// A ring, receiving.
pub(crate) struct Ring {
    memory: NonNull<u8>,
    blocks: usize,
    /// The block that the kernel fills or has filled next.
    next: usize,
    /// Last, so that it is closed after the memory was unmapped.
    socket: OwnedFd,
}

// SAFETY: the mapping belongs to this ring alone and is not bound to a thread; every access takes `&mut self`.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens a ring of `mebibytes` on the interface of `index`.
    ///
    /// **Errors:** without `CAP_NET_RAW`; when the kernel has no memory for it.
    pub(crate) fn open(index: u32, mebibytes: usize) -> Result<Self> {
        let blocks = mebibytes.clamp(1, 1024);
        let socket = open_socket()?;
        set(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V3 as libc::c_int))
            .context("asking for TPACKET_V3")?;
        set(&socket, libc::PACKET_IGNORE_OUTGOING, &1).context("ignoring outgoing frames")?;
        let request = libc::tpacket_req3 {
            tp_block_size: BLOCK_LEN as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: FRAME_LEN as u32,
            tp_frame_nr: (blocks * BLOCK_LEN / FRAME_LEN) as u32,
            tp_retire_blk_tov: RETIRE_AFTER,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set(&socket, libc::PACKET_RX_RING, &request).with_context(|| format!("asking for a ring of {blocks} MiB"))?;
        let memory = map(&socket, blocks * BLOCK_LEN).context("mapping the ring")?;
        let ring = Self { memory, blocks, next: 0, socket };
        bind(&ring.socket, index, libc::ETH_P_ALL as u16).context("binding the packet socket")?;
        Ok(ring)
    }

    /// Calls `each` with every frame of the next block, if one comes within `timeout`. Returns whether one came.
    pub(crate) fn receive(&mut self, timeout: Duration, mut each: impl FnMut(Packet<'_>)) -> Result<bool> {
        if self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            let timeout = PollTimeout::try_from(timeout.max(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
            let mut waited = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waited, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for frames"),
            }
            if self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
                return Ok(false);
            }
        }
        // SAFETY: the block lies within the mapping, and with TP_STATUS_USER seen (acquire) the kernel neither reads nor writes it
        // until the status is given back below, after the slice's last use. JUSTIFICATION: copying each frame out of the ring
        // with read calls costs about as much again as checking it.
        let block = unsafe { slice::from_raw_parts(self.memory.as_ptr().add(self.next * BLOCK_LEN), BLOCK_LEN) };
        walk(block, &mut each);
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.blocks;
        Ok(true)
    }

    /// How many frames the kernel had no room for since the last call.
    pub(crate) fn dropped(&self) -> Result<u64> {
        // Not libc's struct alone: the kernel fills as much of it as the socket's version has.
        let mut statistics = libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut len = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the pointers are to live locals, and the length is that of the first.
        check(unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut len,
            )
        })
        .context("reading the packet socket's statistics")?;
        Ok(statistics.tp_drops.into())
    }

    /// The status word of the next block, which the kernel and we hand to each other.
    fn status(&self) -> &AtomicU32 {
        // SAFETY: within the mapping and aligned (blocks are page-aligned, the word is at 8); both sides treat it as an atomic.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(self.next * BLOCK_LEN + block_offset::STATUS).cast()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this ring's own, of this length, and nothing borrows it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.blocks * BLOCK_LEN) };
    }
}

/// Calls `each` with every frame of a block. A block that contradicts itself ends where it does.
fn walk(block: &[u8], each: &mut impl FnMut(Packet<'_>)) {
    let mut at = word(block, block_offset::FIRST).unwrap_or(0) as usize;
    for _ in 0..word(block, block_offset::PACKETS).unwrap_or(0) {
        let Some((packet, next)) = block.get(at..).and_then(packet) else { return };
        each(packet);
        at += next;
    }
}

/// The frame described by the header that `bytes` begins with, and where the next header is, relative to this one.
fn packet(bytes: &[u8]) -> Option<(Packet<'_>, usize)> {
    let at = usize::from(u16::from_ne_bytes(*bytes.get(packet_offset::FRAME..)?.first_chunk()?));
    let len = word(bytes, packet_offset::CAPTURED)? as usize;
    let frame = bytes.get(at..at + len)?;
    let seconds = u64::from(word(bytes, packet_offset::SECONDS)?);
    let received = seconds * 1_000_000_000 + u64::from(word(bytes, packet_offset::NANOSECONDS)?);
    let unfinished = word(bytes, packet_offset::STATUS)? & libc::TP_STATUS_CSUMNOTREADY != 0;
    Some((Packet { frame, received, unfinished }, word(bytes, packet_offset::NEXT)? as usize))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Sets one option of a packet socket.
fn set<T: Copy>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer is to a live value of the length given; the kernel only reads it.
    check(unsafe {
        let len = size_of::<T>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, ptr::from_ref(value).cast(), len)
    })
    .map(drop)
}

fn map(socket: &OwnedFd, len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping where the kernel likes; the ring unmaps it when it is dropped.
    let memory =
        unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, socket.as_raw_fd(), 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of the kernel's layout with `frames` in it.
    fn block(frames: &[&[u8]]) -> Vec<u8> {
        const HEADERS: usize = 48;
        let mut block = vec![0; HEADERS];
        block[block_offset::PACKETS..][..4].copy_from_slice(&(frames.len() as u32).to_ne_bytes());
        block[block_offset::FIRST..][..4].copy_from_slice(&(HEADERS as u32).to_ne_bytes());
        for (number, frame) in frames.iter().enumerate() {
            let mut entry = vec![0; 80];
            let next = (entry.len() + frame.len()) as u32;
            let unfinished = if number == 1 { libc::TP_STATUS_CSUMNOTREADY } else { 0 };
            for (at, value) in [
                (packet_offset::NEXT, next),
                (packet_offset::SECONDS, 2),
                (packet_offset::NANOSECONDS, number as u32),
                (packet_offset::CAPTURED, frame.len() as u32),
                (packet_offset::STATUS, unfinished),
            ] {
                entry[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            entry[packet_offset::FRAME..][..2].copy_from_slice(&80_u16.to_ne_bytes());
            entry.extend_from_slice(frame);
            block.extend(entry);
        }
        block
    }

    fn frames(block: &[u8]) -> Vec<(Vec<u8>, u64, bool)> {
        let mut frames = Vec::new();
        walk(block, &mut |packet| frames.push((packet.frame.to_vec(), packet.received, packet.unfinished)));
        frames
    }

    #[test]
    fn a_block_gives_its_frames_in_order() {
        let seen = frames(&block(&[&[1, 2, 3], &[4; 90], &[5]]));
        assert_eq!(seen[0], (vec![1, 2, 3], 2_000_000_000, false));
        assert_eq!(seen[1], (vec![4; 90], 2_000_000_001, true));
        assert_eq!(seen[2], (vec![5], 2_000_000_002, false));
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn a_torn_block_ends_early_and_never_panics() {
        let whole = block(&[&[1; 60], &[2; 60]]);
        for len in 0..whole.len() {
            assert!(frames(&whole[..len]).len() < 2);
        }
    }

    #[test]
    fn the_offsets_are_those_of_the_kernels_structs() {
        use std::mem::offset_of;
        let header = offset_of!(libc::tpacket_block_desc, hdr);
        assert_eq!(header + offset_of!(libc::tpacket_hdr_v1, block_status), block_offset::STATUS);
        assert_eq!(header + offset_of!(libc::tpacket_hdr_v1, num_pkts), block_offset::PACKETS);
        assert_eq!(header + offset_of!(libc::tpacket_hdr_v1, offset_to_first_pkt), block_offset::FIRST);
        assert_eq!(offset_of!(libc::tpacket3_hdr, tp_next_offset), packet_offset::NEXT);
        assert_eq!(offset_of!(libc::tpacket3_hdr, tp_sec), packet_offset::SECONDS);
        assert_eq!(offset_of!(libc::tpacket3_hdr, tp_nsec), packet_offset::NANOSECONDS);
        assert_eq!(offset_of!(libc::tpacket3_hdr, tp_snaplen), packet_offset::CAPTURED);
        assert_eq!(offset_of!(libc::tpacket3_hdr, tp_status), packet_offset::STATUS);
        assert_eq!(offset_of!(libc::tpacket3_hdr, tp_mac), packet_offset::FRAME);
    }
}
