//! Packets of random live sessions, half from either side, ready to be processed.
//!
//! Knows sessions and frames. Called by whatever times or counts established packets. Invariant: sessions are drawn uniformly and
//! independently; what [`Batch::write`] wrote has been processed or is overwritten, never half of each.

use anyhow::Result;
use portcullis_nat::Packet;
use portcullis_nat::policy::{Endpoint, Side};

use crate::frame::{self, Frame, tcp};
use crate::gateway::{BURST, Gateway, packets_of};
use crate::load::Load;
use crate::scramble::Draws;

/// Bursts of a direction in a batch. Reading the clock costs tens of nanoseconds, which this spreads over 128 packets; their frames
/// take 48 KiB with the other direction's, and stay in the second-level cache.
const BURSTS: usize = 4;
/// Frames of a direction in a batch.
pub(crate) const HALF: usize = BURSTS * BURST;

/// The directions in their order.
pub(crate) const SIDES: [Side; 2] = [Side::Inside, Side::Outside];

/// The frames of a batch and the sessions that they are of, by direction.
pub(crate) struct Batch {
    frames: [Vec<Frame>; 2],
    sessions: [Vec<u32>; 2],
    draws: Draws,
}

impl Batch {
    /// A batch whose memory is touched.
    pub(crate) fn new(seed: u64) -> Self {
        let frames = || vec![Frame([1; 192]); HALF];
        Self { frames: [frames(), frames()], sessions: [vec![1; HALF], vec![1; HALF]], draws: Draws::new(!seed) }
    }

    /// Draws sessions out of so many and writes a packet of each.
    pub(crate) fn write(&mut self, load: &Load, sessions: u32) {
        for (at, side) in SIDES.into_iter().enumerate() {
            for (frame, session) in self.frames[at].iter_mut().zip(&mut self.sessions[at]) {
                *session = self.draws.below(sessions);
                load.write(frame, *session, side, tcp::ACK);
            }
        }
    }

    /// The sessions that the next `batches` calls of [`Batch::write`] draw.
    pub(crate) fn preview(&self, sessions: u32, batches: u32) -> impl Iterator<Item = u32> + use<> {
        let mut draws = self.draws;
        (0..batches as usize * 2 * HALF).map(move |_| draws.below(sessions))
    }

    /// Writes the first packets of the sessions from `first` on, from the inside.
    pub(crate) fn write_first(&mut self, load: &Load, first: u32) {
        for ((frame, session), number) in self.frames[0].iter_mut().zip(&mut self.sessions[0]).zip(first..) {
            *session = number;
            load.write(frame, number, Side::Inside, tcp::SYN);
        }
    }

    /// Where the packets from the inside come from, as they are now: translated or not.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Endpoint> + '_ {
        self.frames[0].iter().map(|frame| frame::endpoints(frame).0)
    }

    /// The packets of the direction at that place of [`SIDES`].
    pub(crate) fn packets(&mut self, at: usize) -> Vec<Packet<'_>> {
        packets_of(&mut self.frames[at])
    }

    /// The frames of a direction, each with its session's number in the four bytes from `place` on.
    pub(crate) fn numbered(&mut self, at: usize, place: usize) -> &mut [Frame] {
        for (frame, session) in self.frames[at].iter_mut().zip(&self.sessions[at]) {
            frame.0[place..place + 4].copy_from_slice(&session.to_ne_bytes());
        }
        &mut self.frames[at]
    }

    /// Sends the batch through, unmeasured.
    pub(crate) fn pass(&mut self, gateway: &mut Gateway<'_>) -> Result<()> {
        SIDES.into_iter().zip(&mut self.frames).try_for_each(|(side, frames)| gateway.pass(frames, side))
    }

    /// **Errors:** when a packet of the batch, which was processed, is not what it has to be.
    pub(crate) fn check(&self, load: &Load) -> Result<()> {
        for (at, side) in SIDES.into_iter().enumerate() {
            for (frame, &session) in self.frames[at].iter().zip(&self.sessions[at]) {
                load.check(frame, session, side)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Flows, SESSIONS_PER_HOST};

    #[test]
    fn a_preview_is_what_is_drawn() {
        let load = Load::new(Flows::new(1, 500, SESSIONS_PER_HOST), 500);
        let mut batch = Batch::new(1);
        let preview: Vec<u32> = batch.preview(500, 2).collect();
        let mut drawn = Vec::new();
        for _ in 0..2 {
            batch.write(&load, 500);
            drawn.extend(batch.sessions.iter().flatten().copied());
        }
        assert_eq!(preview, drawn);
    }
}
