//! What the worker needs of a queue: receive, transmit, complete and fill in bursts.
//!
//! Knows no kernel, so that the worker runs over memory in tests. Implemented by the AF_XDP sockets here and by the in-memory wire
//! of `testkit`. Invariant: a frame is moved, never copied: it is in a ring, in a burst, held, or in the pool.

/// One frame of packet memory, owned. Not `Clone`: it goes by value to exactly one ring.
pub trait Frame {
    /// The packet's length. **Units:** bytes.
    fn packet_len(&self) -> usize;

    /// Sets the packet's length. **Panics:** when it exceeds the buffer.
    fn set_packet_len(&mut self, len: usize);

    /// The memory from the packet's first byte to the end of the frame; the packet is its beginning.
    fn buffer(&mut self) -> &mut [u8];
}

/// A device's queue with its four rings.
pub trait Port {
    /// The frames that it carries.
    type Frame: Frame;

    /// Takes at most `most` received frames and appends them to `frames`, in order. Returns how many.
    fn receive(&mut self, frames: &mut Vec<Self::Frame>, most: usize) -> usize;

    /// Puts frames from the front of `frames` into the transmit ring, in order; those that did not fit stay. Returns how many went.
    fn transmit(&mut self, frames: &mut Vec<Self::Frame>) -> usize;

    /// Takes the frames whose transmission is complete back into `pool`. Returns how many.
    fn complete(&mut self, pool: &mut Vec<Self::Frame>) -> usize;

    /// Gives frames from `pool` to the kernel to receive into, as many as the fill ring takes but leaving `keep` in the pool.
    /// Returns how many.
    fn fill(&mut self, pool: &mut Vec<Self::Frame>, keep: usize) -> usize;

    /// Tells the kernel what it asked to be told (`need_wakeup`): that there is something to transmit or room to receive.
    fn wake(&mut self);

    /// Frames that are in the port's rings or in the kernel's hands.
    fn in_flight(&self) -> usize;
}
