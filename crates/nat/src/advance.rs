//! Step 7's bookkeeping: packets, state, and when a session was last seen.
//!
//! Knows one record and one packet's flags. Called once for each packet that is forwarded. Sources: RFC 4787 REQ-6, RFC 7857 section 7.

use crate::record::{Kind, Session, flag};
use crate::tcp::{self, Direction, Flags};
use crate::time::Tick;
use crate::view::SessionState;

impl Session {
    /// Counts a packet, and moves on.
    #[inline]
    pub(crate) fn advance(&mut self, direction: Direction, flags: Flags, refreshes_inbound: bool, now: Tick) {
        let (count, other) = match direction {
            Direction::Outbound => (&mut self.packets_out, self.packets_in),
            Direction::Inbound => (&mut self.packets_in, self.packets_out),
        };
        *count = count.wrapping_add(1);
        let state = self.kind.state();
        // What nearly all packets are: they change no state.
        let is_settled = state == SessionState::Replied || state == SessionState::Established && !flags.fin && !flags.rst;
        if !is_settled {
            let next = match state {
                SessionState::Unreplied if other > 0 => SessionState::Replied,
                SessionState::Unreplied | SessionState::Replied => state,
                _ => tcp::advance(state, direction, flags),
            };
            self.kind = Kind::new(self.kind.protocol(), next);
        }
        // RFC 7857, section 7.1: to refuse what was let in does not keep the mapping alive either.
        let refuses = flags.rst && matches!(state, SessionState::SynReceived | SessionState::Reset);
        // RFC 7857, section 7: who was let in by the filter alone does not keep the mapping alive, unless configured.
        let by_outbound = direction == Direction::Outbound && !refuses;
        if by_outbound || refreshes_inbound || !self.has(flag::ADMITTED) {
            self.last_seen = now.0;
        }
    }
}
