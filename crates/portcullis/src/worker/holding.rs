//! Packets that wait for the link-layer address of their next hop.
//!
//! Knows frames and next hops, not why an address is missing. Called by the worker's dispose step, and when the network changes.
//! Invariant: at most [`MOST`] frames wait, [`MOST_PER_HOP`] of them for one next hop, for at most [`SOME_HOPS`] next hops, none longer than
//! [`PATIENCE`].
//! Sources: RFC 1122 section 2.3.2.2 (save at least one packet), Linux `net/ipv4/neighbour` (unres_qlen, three probes a second apart).

use core::net::Ipv4Addr;

use portcullis_nat::policy::InterfaceId;
use portcullis_nat::time::Tick;

/// Frames that wait for one next hop. Chosen: what hosts send in the milliseconds that an answer takes, at 100,000 packets a second.
const MOST_PER_HOP: usize = 256;

/// Frames that wait altogether: next hops that do not answer must not take the packet memory. Chosen: a thirtieth of it by default.
const MOST: usize = 1024;

/// Next hops that are waited for at once.
const SOME_HOPS: usize = 64;

/// How long a frame waits. **Units:** milliseconds. The kernel gives up after three probes, one a second.
const PATIENCE: u32 = 3000;

/// How often the kernel is asked for the same next hop. **Units:** milliseconds.
const ASK_AGAIN: u32 = 500;

/// A next hop on an interface.
pub(crate) type NextHop = (InterfaceId, Ipv4Addr);

struct Waiting<F> {
    next_hop: NextHop,
    since: Tick,
    asked: Tick,
    frames: Vec<F>,
}

/// The packets that wait.
pub(crate) struct Holding<F> {
    waiting: Vec<Waiting<F>>,
}

/// What became of a frame that was to wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Held<F> {
    /// It waits; the kernel has been asked lately.
    Waits,
    /// It waits, and the kernel has to be asked now.
    WaitsAndAsks,
    /// Too many wait already.
    Refused(F),
}

impl<F> Holding<F> {
    pub(crate) fn new() -> Self {
        Self { waiting: Vec::with_capacity(SOME_HOPS) }
    }

    /// Frames that wait.
    pub(crate) fn frames(&self) -> usize {
        self.waiting.iter().map(|waiting| waiting.frames.len()).sum()
    }

    /// Lets a frame wait for its next hop; it has waited since `since`.
    pub(crate) fn hold(&mut self, next_hop: NextHop, frame: F, since: Tick, now: Tick) -> Held<F> {
        if self.frames() >= MOST {
            return Held::Refused(frame);
        }
        let position = self.waiting.iter().position(|waiting| waiting.next_hop == next_hop);
        let Some(position) = position else {
            if self.waiting.len() == SOME_HOPS {
                return Held::Refused(frame);
            }
            self.waiting.push(Waiting { next_hop, since, asked: now, frames: vec![frame] });
            return Held::WaitsAndAsks;
        };
        let waiting = &mut self.waiting[position];
        if waiting.frames.len() == MOST_PER_HOP {
            return Held::Refused(frame);
        }
        waiting.frames.push(frame);
        if now.since(waiting.asked) < ASK_AGAIN {
            return Held::Waits;
        }
        waiting.asked = now;
        Held::WaitsAndAsks
    }

    /// All frames that wait, each with its next hop and since when: the network has changed, and whatever still has no address is held
    /// on.
    pub(crate) fn release(&mut self) -> impl Iterator<Item = (NextHop, Tick, F)> + use<'_, F> {
        self.waiting
            .drain(..)
            .flat_map(|waiting| waiting.frames.into_iter().map(move |frame| (waiting.next_hop, waiting.since, frame)))
    }

    /// A next hop that is waited for and about which the kernel is to be asked again, if there is one.
    pub(crate) fn ask_again(&mut self, now: Tick) -> Option<NextHop> {
        let waiting = self.waiting.iter_mut().find(|waiting| now.since(waiting.asked) >= ASK_AGAIN)?;
        waiting.asked = now;
        Some(waiting.next_hop)
    }

    /// A frame that has waited too long, if there is one.
    pub(crate) fn give_up(&mut self, now: Tick) -> Option<F> {
        let position = self.waiting.iter().position(|waiting| now.since(waiting.since) > PATIENCE)?;
        let frame = self.waiting[position].frames.pop();
        if self.waiting[position].frames.is_empty() {
            self.waiting.swap_remove(position);
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: NextHop = (InterfaceId(1), Ipv4Addr::LOCALHOST);

    #[test]
    fn frames_wait_for_their_next_hop_in_order() {
        let mut holding = Holding::new();
        assert_eq!(holding.hold(HOP, 1, Tick(0), Tick(0)), Held::WaitsAndAsks);
        assert_eq!(holding.hold(HOP, 2, Tick(1), Tick(1)), Held::Waits);
        assert_eq!(holding.hold(HOP, 3, Tick(600), Tick(600)), Held::WaitsAndAsks);
        assert_eq!(holding.frames(), 3);
        assert_eq!(holding.release().map(|(_, _, frame)| frame).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(holding.frames(), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut holding = Holding::new();
        for frame in 0..MOST_PER_HOP {
            holding.hold(HOP, frame, Tick(0), Tick(0));
        }
        assert_eq!(holding.hold(HOP, 99, Tick(0), Tick(0)), Held::Refused(99));
        for hop in 1..SOME_HOPS as u32 {
            holding.hold((InterfaceId(0), Ipv4Addr::from_bits(hop)), 0, Tick(0), Tick(0));
        }
        assert_eq!(holding.hold((InterfaceId(0), Ipv4Addr::BROADCAST), 98, Tick(0), Tick(0)), Held::Refused(98));
    }

    #[test]
    fn next_hops_that_do_not_answer_take_a_bounded_number_of_frames() {
        let mut holding = Holding::new();
        let hops = (0..SOME_HOPS as u32).cycle().map(|hop| (InterfaceId(0), Ipv4Addr::from_bits(hop)));
        let refused = hops.take(MOST * 2).filter(|&hop| holding.hold(hop, 1, Tick(0), Tick(0)) == Held::Refused(1)).count();
        assert_eq!((holding.frames(), refused), (MOST, MOST));
    }

    #[test]
    fn a_frame_that_is_held_on_has_waited_since_it_came() {
        let mut holding = Holding::new();
        holding.hold(HOP, 1, Tick(0), Tick(0));
        let (next_hop, since, frame) = holding.release().next().expect("a frame");
        holding.hold(next_hop, frame, since, Tick(2000));
        assert_eq!(holding.give_up(Tick(PATIENCE + 1)), Some(1));
    }

    #[test]
    fn the_kernel_is_asked_again_while_a_frame_waits() {
        let mut holding = Holding::new();
        holding.hold(HOP, 1, Tick(0), Tick(0));
        assert_eq!(holding.ask_again(Tick(ASK_AGAIN - 1)), None);
        assert_eq!(holding.ask_again(Tick(ASK_AGAIN)), Some(HOP));
        assert_eq!(holding.ask_again(Tick(ASK_AGAIN + 1)), None);
    }

    #[test]
    fn nothing_waits_forever() {
        let mut holding = Holding::new();
        let start = Tick(u32::MAX - 100);
        holding.hold(HOP, 1, start, start);
        assert_eq!(holding.give_up(start.after(PATIENCE)), None);
        assert_eq!(holding.give_up(start.after(PATIENCE + 1)), Some(1));
        assert_eq!(holding.give_up(start.after(PATIENCE + 1)), None);
    }
}
