//! Step 7's bookkeeping: packets, state, and when a session was last seen.
//!
//! Knows one record and one packet's flags. Called once for each packet that is forwarded. Sources: RFC 4787 REQ-6, RFC 7857 section 7.

use portcullis_wire::tcp::TcpFlags;

use crate::record::{Kind, Session, flag};
use crate::tcp::{self, Direction};
use crate::time::Tick;
use crate::view::SessionState;

impl Session {
    /// Counts a packet, and moves on. `flags` are those of TCP; of others they do not matter.
    #[inline]
    pub(crate) fn advance(&mut self, direction: Direction, flags: TcpFlags, refreshes_inbound: bool, now: Tick) {
        match direction {
            Direction::Outbound => self.packets_out = self.packets_out.wrapping_add(1),
            Direction::Inbound => self.packets_in = self.packets_in.wrapping_add(1),
        }
        let accepts = self.kind.is_settled(flags) || self.change_state(direction, flags);
        // RFC 7857, section 7: who was let in by the filter alone does not keep the mapping alive, unless configured.
        if accepts && direction == Direction::Outbound || refreshes_inbound || !self.has(flag::ADMITTED) {
            self.last_seen = now.0;
        }
    }

    /// What few packets do. Returns whether the packet does not refuse what was let in: to do so does not keep the mapping alive either (RFC
    /// 7857, section 7.1).
    fn change_state(&mut self, direction: Direction, flags: TcpFlags) -> bool {
        let other = match direction {
            Direction::Outbound => self.packets_in,
            Direction::Inbound => self.packets_out,
        };
        let state = self.kind.state();
        let next = match state {
            SessionState::Unreplied if other > 0 => SessionState::Replied,
            SessionState::Unreplied | SessionState::Replied => state,
            _ => tcp::advance(state, direction, flags),
        };
        self.kind = Kind::new(self.kind.protocol(), next);
        !(flags.rst() && matches!(state, SessionState::SynReceived | SessionState::Reset))
    }
}
