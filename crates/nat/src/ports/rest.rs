//! Ports that were given back, and rest before others get them.
//!
//! Knows numbers and moments. Called when a mapping ends, and between bursts. RFC 6888, REQ-8: "Once an external port is deallocated, it
//! SHOULD NOT be reallocated to a new mapping until at least 120 seconds have passed", for remotes may go on sending to whoever had it.
//! Invariant: a port that rests is taken, has no holder, and is once in a queue, whose order is that of the ports' return; the queue is
//! threaded through the places of the holders, and takes no memory of its own. **Cost:** O(1) for each port, nothing where none rests.

use core::time::Duration;

use super::PortSpace;
use crate::time::Tick;

/// In a holder's place: the port rests. Below it the moment of its return, and the port that comes after it. Holders are smaller numbers.
pub(super) const RESTS: u32 = 1 << 31;

/// How exact moments are. **Units:** milliseconds.
const UNIT: u32 = 256;

/// The longest rest: well within what fifteen bits of 256 ms units can tell, which is 2 h 19 min.
pub const REST_MOST: Duration = Duration::from_hours(1);

/// How long ports rest, and how many of a space at most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rest {
    /// **Units:** [`UNIT`]s begun since the port came back. Zero: it does not rest.
    units: u16,
    /// When there are more, that which rests longest is free.
    most: u32,
}

impl Rest {
    pub(crate) fn new(time: Duration, most: u32) -> Self {
        let time = time.min(REST_MOST).as_millis() as u32;
        // One more, since the moment of the return may have been at the end of its unit.
        Self { units: if time == 0 || most == 0 { 0 } else { time.div_ceil(UNIT) as u16 + 1 }, most }
    }

    pub(crate) fn is_none(self) -> bool {
        self.units == 0
    }
}

/// A moment in [`UNIT`]s, as far as fifteen bits tell.
const fn moment(now: Tick) -> u16 {
    (now.0 / UNIT) as u16 & 0x7FFF
}

impl PortSpace<'_> {
    /// Takes `port` back, and has it rest. Returns whether there is one more now that does.
    pub(crate) fn release_to_rest(&mut self, port: u16, rest: Rest, now: Tick) -> bool {
        debug_assert!(self.holder(port).is_some(), "port {port} is free");
        self.bits.used -= 1;
        self.holders[usize::from(port)] = RESTS | u32::from(moment(now)) << 16;
        if self.bits.resting == 0 {
            self.bits.rests_longest = u32::from(port);
        } else {
            self.holders[self.bits.rests_shortest as usize] |= u32::from(port);
        }
        self.bits.rests_shortest = u32::from(port);
        self.bits.resting += 1;
        if self.bits.resting > rest.most {
            self.end_longest_rest();
            return false;
        }
        true
    }

    /// Frees ports that have rested, at most so many. Returns how many.
    pub(crate) fn end_rests(&mut self, rest: Rest, now: Tick, most: u32) -> u32 {
        let has_rested = |space: &Self| {
            let back = (space.holders[space.bits.rests_longest as usize] >> 16) as u16 & 0x7FFF;
            moment(now).wrapping_sub(back) & 0x7FFF >= rest.units
        };
        let mut ended = 0;
        while ended < most && self.bits.resting > 0 && has_rested(self) {
            self.end_longest_rest();
            ended += 1;
        }
        ended
    }

    fn end_longest_rest(&mut self) {
        let port = self.bits.rests_longest as usize;
        self.bits.rests_longest = self.holders[port] & 0xFFFF;
        self.holders[port] = 0;
        self.bits.words[port / 64].taken &= !(1 << (port % 64));
        self.bits.resting -= 1;
        self.summarise(port / 64);
    }

    /// How many ports rest.
    pub(crate) fn resting(&self) -> u32 {
        self.bits.resting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PortSet;
    use crate::ports::{PortMemory, Wish};
    use proptest::prelude::*;
    use std::collections::{BTreeSet, VecDeque};

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take(u16),
        Release(usize),
        Wait(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<u16>().prop_map(Step::Take),
            3 => any::<usize>().prop_map(Step::Release),
            2 => (0_u32..5000).prop_map(Step::Wait)
        ]
    }

    proptest! {
        /// Against a queue. A port is never given before its time, and is given two units later at the latest.
        #[test]
        fn ports_rest_in_order_and_for_their_time(
            steps in prop::collection::vec(step(), 0..300),
            (time, most, start) in (1_u32..6000, 1_u32..20, any::<u32>())
        ) {
            let mut memory = PortMemory::new(&PortSet::range(60, 75));
            let mut space = memory.space();
            let rest = Rest::new(Duration::from_millis(u64::from(time)), most);
            let (mut now, mut taken, mut queue) = (u64::from(start), Vec::new(), VecDeque::new());
            for step in steps {
                match step {
                    Step::Take(start) => {
                        let Some(port) = space.free_port(start, Wish::ANY) else { continue };
                        prop_assert!(queue.iter().all(|&(rests, _)| rests != port), "port {port} rests");
                        space.take(port, 7);
                        taken.push(port);
                    }
                    Step::Release(at) if !taken.is_empty() => {
                        let port = taken.swap_remove(at % taken.len());
                        space.release_to_rest(port, rest, Tick(now as u32));
                        queue.push_back((port, now));
                        if queue.len() > most as usize {
                            queue.pop_front();
                        }
                        prop_assert_eq!(space.holder(port), None);
                    }
                    Step::Release(_) => {}
                    Step::Wait(time) => now += u64::from(time),
                }
                let ended = space.end_rests(rest, Tick(now as u32), u32::MAX);
                for (port, back) in queue.drain(..ended as usize) {
                    prop_assert!(now - back >= u64::from(time), "port {port} rested for {} of {time}", now - back);
                }
                let late = u64::from(time + 2 * UNIT);
                prop_assert!(queue.iter().all(|&(_, back)| now - back <= late), "one rests longer than {late}");
                let counts = (taken.len() as u32, queue.len() as u32);
                prop_assert_eq!((space.used(), space.resting()), counts);
                let free: BTreeSet<_> = (60..=75).filter(|port| !taken.contains(port) && queue.iter().all(|(rests, _)| rests != port)).collect();
                prop_assert_eq!(space.has_free(), !free.is_empty());
            }
            space.end_rests(Rest::default(), Tick(now as u32), u32::MAX);
            prop_assert_eq!(space.resting(), 0);
        }
    }
}
