//! The states of a tracked TCP connection, as a table: RFC 6146, section 3.5.2, as RFC 7857, section 2, adapts it.
//!
//! Knows flags and directions. Where the RFCs leave a choice the answer has several states, the preferred one first; what the NAT
//! shows of the session decides then.

use portcullis_nat::policy::Timeouts;
use portcullis_nat::view::SessionState;

use crate::builder::{ACK, FIN, RST, SYN};

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Outbound,
    Inbound,
}

/// Whether a segment may open a connection: "a SYN without ACK".
pub(super) fn is_fresh_syn(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// The state of a session that a fresh SYN makes.
pub(super) fn opened(direction: Direction) -> SessionState {
    match direction {
        Direction::Outbound => SessionState::SynSent,
        Direction::Inbound => SessionState::SynReceived,
    }
}

/// The states that may follow `state`, the preferred one first.
pub(super) fn successors(state: SessionState, direction: Direction, flags: u8) -> Vec<SessionState> {
    if flags & RST != 0 {
        return reset(state);
    }
    match state {
        SessionState::SynSent | SessionState::SynReceived => opening(state, direction, flags),
        SessionState::Established | SessionState::FinSent | SessionState::FinReceived => closing(state, direction, flags),
        SessionState::Closing => restarted(state, direction, flags),
        SessionState::Reset => {
            let mut states = restarted(SessionState::Established, direction, flags);
            if flags & FIN != 0 {
                // What is revived only to be closed would be kept for two hours: not reviving it is as good.
                states.push(SessionState::Reset);
                states.extend(closing(SessionState::Established, direction, flags));
            }
            states
        }
        SessionState::Unreplied | SessionState::Replied => vec![state],
    }
}

/// RFC 7857, section 2.2: "the NAT MUST/SHOULD hold the session transitory". A RST before the connection stood, or after both FINs,
/// is not in the RFC's figure: it may count or not.
fn reset(state: SessionState) -> Vec<SessionState> {
    match state {
        SessionState::SynSent | SessionState::SynReceived | SessionState::Closing => vec![SessionState::Reset, state],
        _ => vec![SessionState::Reset],
    }
}

fn opening(state: SessionState, direction: Direction, flags: u8) -> Vec<SessionState> {
    let answered = match state {
        SessionState::SynSent => Direction::Inbound,
        _ => Direction::Outbound,
    };
    if flags & SYN != 0 && direction == answered { vec![SessionState::Established] } else { vec![state] }
}

fn closing(state: SessionState, direction: Direction, flags: u8) -> Vec<SessionState> {
    if flags & FIN == 0 {
        return vec![state];
    }
    vec![match (state, direction) {
        (SessionState::Established | SessionState::FinSent, Direction::Outbound) => SessionState::FinSent,
        (SessionState::Established | SessionState::FinReceived, Direction::Inbound) => SessionState::FinReceived,
        _ => SessionState::Closing,
    }]
}

/// A fresh SYN in Closing or Reset opens the session anew; from outside the RFCs leave it open, so `otherwise` may stand too.
fn restarted(otherwise: SessionState, direction: Direction, flags: u8) -> Vec<SessionState> {
    match (is_fresh_syn(flags), direction) {
        (true, Direction::Outbound) => vec![SessionState::SynSent],
        (true, Direction::Inbound) => vec![SessionState::SynReceived, otherwise],
        (false, _) => vec![otherwise],
    }
}

/// The idle time after which a session in `state` ends. **Units:** milliseconds. TCP only.
pub(super) fn timeout(state: SessionState, timeouts: &Timeouts) -> u64 {
    let time = match state {
        SessionState::Established | SessionState::FinSent | SessionState::FinReceived => timeouts.tcp_established,
        SessionState::SynSent | SessionState::SynReceived => timeouts.tcp_opening,
        _ => timeouts.tcp_closing,
    };
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Inbound, Outbound};
    use SessionState::{Closing, Established, FinReceived, FinSent, Reset, SynReceived, SynSent};

    #[test]
    fn every_edge_of_the_figure_is_taken() {
        let edges = [
            (SynSent, Inbound, SYN | ACK, Established),
            (SynSent, Inbound, SYN, Established),
            (SynSent, Inbound, ACK, SynSent),
            (SynSent, Outbound, SYN, SynSent),
            (SynReceived, Outbound, SYN | ACK, Established),
            (SynReceived, Inbound, SYN, SynReceived),
            (Established, Outbound, ACK, Established),
            (Established, Outbound, FIN | ACK, FinSent),
            (Established, Inbound, FIN | ACK, FinReceived),
            (FinSent, Outbound, FIN | ACK, FinSent),
            (FinSent, Inbound, FIN | ACK, Closing),
            (FinReceived, Outbound, FIN | ACK, Closing),
            (FinReceived, Inbound, ACK, FinReceived),
            (Closing, Outbound, ACK, Closing),
            (Closing, Outbound, SYN, SynSent),
            (Closing, Inbound, SYN, SynReceived),
            (Established, Inbound, RST, Reset),
            (Reset, Inbound, RST | ACK, Reset),
            (Reset, Inbound, ACK, Established),
            (Reset, Outbound, SYN, SynSent),
        ];
        for (state, direction, flags, expected) in edges {
            assert_eq!(successors(state, direction, flags)[0], expected, "{state:?} {direction:?} {flags:#04x}");
        }
    }

    #[test]
    fn opening_and_closing_have_times_of_their_own() {
        let seconds = std::time::Duration::from_secs;
        let timeouts = Timeouts { tcp_opening: seconds(1), tcp_closing: seconds(2), ..Timeouts::default() };
        for (state, time) in [(SynSent, 1000), (SynReceived, 1000), (Closing, 2000), (Reset, 2000), (Established, 7_440_000)] {
            assert_eq!(timeout(state, &timeouts), time, "{state:?}");
        }
    }

    #[test]
    fn a_half_closed_connection_keeps_the_established_timeout() {
        let timeouts = Timeouts::default();
        for (state, seconds) in [(FinSent, 7440), (FinReceived, 7440), (Closing, 240), (Reset, 240), (SynSent, 240)] {
            assert_eq!(timeout(state, &timeouts), seconds * 1000, "{state:?}");
        }
    }
}
