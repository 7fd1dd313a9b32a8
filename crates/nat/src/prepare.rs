//! What the first packets of a burst will look at, fetched while those before them are opened.
//!
//! Knows what a new session looks at, and in which order; decides nothing. Called by the fast path where tables are beyond the caches. Each stage
//! asks for the lines that the next one reads, some packets later: so the processor waits for memory and opens sessions at the same time.
//! A guess that fails costs time and nothing else.

use crate::establish::{self, Flow};
use crate::fast::BURST;
use crate::head::Head;
use crate::nat::Nat;
use crate::open::flow_of;
use crate::ports::Wish;

/// Stages before a packet is opened.
const STAGES: usize = 4;

/// Packets that are opened between one stage of a flow and its next. Each takes longer than a line of memory. Measured with 1, 2, 4 and 8:
/// `pipeline newcomers`.
const APART: usize = 2;

/// The first packets of a burst, and how far their preparation is.
#[derive(Default)]
pub(crate) struct Preparation {
    flows: [Option<Flow>; BURST],
    pub(crate) count: usize,
    /// The flow that the first stage is at; the others are [`APART`] behind each other.
    pub(crate) turn: usize,
    /// Of each flow, the hash of its mapping.
    pub(crate) mappings: [u64; BURST],
    guesses: [Option<Guess>; BURST],
    /// Of each flow, the hash that the packets from outside are found by.
    inbound: [Option<u64>; BURST],
    /// Which number the next flow's mapping will draw, if all before it get one.
    draw: u64,
}

/// What a new mapping will look at.
#[derive(Clone, Copy)]
struct Guess {
    slot: u16,
    wish: Wish,
    start: u16,
}

impl Preparation {
    /// Nothing is prepared.
    pub(crate) fn clear(&mut self) {
        (self.count, self.turn) = (0, STAGES * APART);
    }
}

impl Nat<'_> {
    /// Before the first packets of a burst, at most [`BURST`], are opened one after the other.
    pub(crate) fn prepare<'p>(&mut self, heads: impl Iterator<Item = &'p Head>) {
        let preparation = &mut self.preparation;
        (preparation.count, preparation.turn) = (0, 0);
        for (flow, place) in heads.filter_map(flow_of).zip(&mut preparation.flows) {
            *place = Some(flow);
            preparation.count += 1;
        }
        preparation.draw = self.choice.position();
        for _ in 0..STAGES * APART {
            self.prepare_next();
        }
    }

    /// Once for each first packet, before it is opened.
    pub(crate) fn prepare_next(&mut self) {
        let Preparation { count, turn, .. } = self.preparation;
        if turn >= count + STAGES * APART {
            return;
        }
        self.preparation.turn = turn + 1;
        let stages: [fn(&mut Self, usize, &Flow); STAGES] =
            [Self::prepare_subscriber, Self::prepare_mapping, Self::prepare_inbound, Self::prepare_end];
        for (stage, behind) in stages.into_iter().zip((0..).step_by(APART)) {
            let Some(number) = turn.checked_sub(behind) else { break };
            if let Some(&Some(flow)) = self.preparation.flows[..count].get(number) {
                stage(self, number, &flow);
            }
        }
    }

    fn prepare_subscriber(&mut self, _: usize, flow: &Flow) {
        self.state.subscribers.fetch(flow.ours.address);
    }

    /// Has the line fetched that a flow's mapping is looked for in, and what is known of the ports where it will look for one.
    fn prepare_mapping(&mut self, number: usize, flow: &Flow) {
        let hash = if self.state.keeps_bare(flow.protocol) {
            let hash = self.state.bares.hash_of(flow.ours);
            self.state.bares.fetch_line(hash);
            hash
        } else {
            let hash = self.state.mappings.hash(&establish::mapping_key(&self.policy, flow));
            self.state.mappings.fetch_line(hash);
            hash
        };
        self.preparation.mappings[number] = hash;
        self.preparation.guesses[number] = self.guess(flow);
    }

    /// Where the port of a flow will be looked for, if it gets a new mapping. None where the host has no address yet. What is known there of the
    /// ports is fetched.
    fn guess(&mut self, flow: &Flow) -> Option<Guess> {
        let draw = self.preparation.draw;
        let Some(slot) = self.state.subscribers.slot_of(flow.ours.address) else {
            // One for the address, and one for the port.
            self.preparation.draw += 2;
            return None;
        };
        self.preparation.draw += 1;
        let drawn = self.choice.foresee(draw)?;
        let wish = Wish::of(flow.protocol, flow.ours.port, self.policy.port_parity);
        let space = self.state.space(slot, flow.protocol);
        let start = space.draw(establish::port_part(drawn), wish)?;
        space.fetch(start);
        Some(Guess { slot, wish, start })
    }

    /// Has the line after that of the mapping fetched, where a search or an insertion goes on to it; and the line where the session will be
    /// found from outside.
    fn prepare_inbound(&mut self, number: usize, flow: &Flow) {
        self.preparation.inbound[number] = None;
        if self.state.keeps_bare(flow.protocol) {
            self.state.bares.fetch_next(self.preparation.mappings[number]);
            return;
        }
        self.state.mappings.fetch_next(self.preparation.mappings[number]);
        let Some(Guess { slot, wish, start }) = self.preparation.guesses[number] else { return };
        if let Some(port) = self.state.space(slot, flow.protocol).free_port(start, wish) {
            let hash = self.state.sessions.hash_inbound(flow.protocol, (self.state.outer(slot), port), flow.remote);
            self.state.sessions.fetch_line(hash);
            self.preparation.inbound[number] = Some(hash);
        }
    }

    fn prepare_end(&mut self, number: usize, _: &Flow) {
        if let Some(hash) = self.preparation.inbound[number] {
            self.state.sessions.fetch_next(hash);
        }
    }
}
