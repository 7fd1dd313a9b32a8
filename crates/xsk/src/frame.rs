//! A frame of the UMEM as a value with one owner, and the set of frames that a port has given to the kernel.
//!
//! Knows addresses and references, no rings. Made by [`crate::umem`], moved by the worker, given and taken by [`crate::socket`].
//! Invariant: a frame's bytes are reachable through its one [`XskFrame`] only; each frame, in hands or in the kernel, holds one
//! reference on the memory.

use std::{fmt, mem::ManuallyDrop, slice, sync::Arc};

use xsk_rs::FrameDesc;

use crate::{port::Frame, umem::Shared};

/// One frame of the UMEM, owned: whoever has it may read and write its bytes, nobody else. Given by value to a ring; when it is
/// merely dropped it is lost, and debug builds complain.
pub struct XskFrame {
    descriptor: FrameDesc,
    umem: Arc<Shared>,
}

impl fmt::Debug for XskFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XskFrame")
            .field("address", &self.descriptor.addr())
            .field("len", &self.packet_len())
            .finish_non_exhaustive()
    }
}

impl XskFrame {
    /// A frame of a new UMEM.
    ///
    /// # Safety
    ///
    /// `descriptor` is of a frame of `umem`, as the UMEM made it, and this is the only frame made of it.
    pub(crate) unsafe fn new(descriptor: FrameDesc, umem: Arc<Shared>) -> Self {
        Self { descriptor, umem }
    }

    /// Gives up the frame without losing it: the reference that it holds on the memory goes to whoever takes the descriptor.
    #[inline]
    pub(crate) fn into_descriptor(self) -> FrameDesc {
        ManuallyDrop::new(self).descriptor
    }

    /// Takes a frame back that was given up by [`XskFrame::into_descriptor`].
    ///
    /// # Safety
    ///
    /// The frame of `descriptor` was given up once and not taken back since, so that this is its only owner and the reference on
    /// `umem` that it gave up is still counted. The kernel is done with it. Address and length are inside the frame.
    #[inline]
    pub(crate) unsafe fn from_descriptor(descriptor: FrameDesc, umem: &Arc<Shared>) -> Self {
        // SAFETY: the pointer is of a live Arc, and the count that into_descriptor left behind becomes this Arc's.
        // JUSTIFICATION: cloning instead costs two contended atomic operations for every packet on a line that all workers share.
        let umem = unsafe { Arc::from_raw(Arc::as_ptr(umem)) };
        Self { descriptor, umem }
    }

    /// The frame's number in its UMEM.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.descriptor.addr() / self.umem.frame_bytes()
    }

    #[inline]
    pub(crate) fn belongs_to(&self, umem: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.umem, umem)
    }
}

impl Frame for XskFrame {
    #[inline]
    fn packet_len(&self) -> usize {
        self.descriptor.lengths().data()
    }

    #[inline]
    fn set_packet_len(&mut self, len: usize) {
        assert!(self.umem.holds(self.descriptor.addr(), len), "a packet of {len} bytes does not fit its frame");
        // SAFETY: the descriptor is of a frame of this UMEM, which this value owns.
        let mut data = unsafe { self.umem.raw.data_mut(&mut self.descriptor) };
        data.cursor().set_pos(len);
    }

    #[inline]
    fn buffer(&mut self) -> &mut [u8] {
        let start = self.descriptor.addr();
        let len = self.umem.frame_bytes() - start % self.umem.frame_bytes();
        // SAFETY: `start` was checked to be inside the memory when the frame came from the kernel (or is where Umem::new put it), and
        // `len` ends with its frame. The memory is mapped while `umem` lives, and initialised (the kernel zeroed it). This value is the
        // frame's only owner and is borrowed mutably, so nobody else, the kernel included, reads or writes these bytes.
        // JUSTIFICATION: xsk-rs lends only the packet's present length, and the worker needs the room behind it too.
        unsafe { slice::from_raw_parts_mut(self.umem.base().add(start), len) }
    }
}

impl Drop for XskFrame {
    fn drop(&mut self) {
        self.umem.count_lost(1);
        debug_assert!(std::thread::panicking() || self.umem.is_retiring(), "a frame was dropped outside a pool: {self:?}");
    }
}

/// A set of frame numbers, exact: which frames a port has given to the kernel.
#[derive(Debug)]
pub(crate) struct FrameSet {
    words: Box<[u64]>,
    len: usize,
}

impl FrameSet {
    pub(crate) fn new(frames: usize) -> Self {
        Self { words: vec![0; frames.div_ceil(64)].into_boxed_slice(), len: 0 }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a number. It is not in the set: a frame has one owner.
    #[inline]
    pub(crate) fn insert(&mut self, index: usize) {
        let bit = 1 << (index % 64);
        debug_assert!(self.words[index / 64] & bit == 0);
        self.words[index / 64] |= bit;
        self.len += 1;
    }

    /// Takes a number out, and says whether it was in.
    #[inline]
    pub(crate) fn remove(&mut self, index: usize) -> bool {
        let bit = 1 << (index % 64);
        let was = self.words[index / 64] & bit != 0;
        self.words[index / 64] &= !bit;
        self.len -= usize::from(was);
        was
    }

    /// Empties the set and gives its numbers, ascending.
    pub(crate) fn take(&mut self) -> Vec<usize> {
        let numbers = (0..self.words.len() * 64).filter(|&index| self.words[index / 64] >> (index % 64) & 1 == 1).collect();
        self.words.fill(0);
        self.len = 0;
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_set_gives_back_exactly_what_it_was_given() {
        let mut set = FrameSet::new(130);
        for index in [0, 63, 64, 129] {
            set.insert(index);
        }
        assert_eq!(set.len(), 4);
        assert!(set.remove(63));
        assert!(!set.remove(63));
        assert!(!set.remove(1));
        assert_eq!(set.take(), [0, 64, 129]);
        assert_eq!(set.len(), 0);
    }
}
