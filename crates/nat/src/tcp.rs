//! The TCP states of a session, and what each packet makes of them.
//!
//! Knows flags and directions, no packet. Called on every TCP packet (step 7). Sources: RFC 7857 section 2 (figure 1), RFC 6146 section
//! 3.5.2.2, RFC 5382 REQ-2 (simultaneous open). Tests: every edge below, and the reference NAT.
//!
//! ```text
//!  SYN out -> SynSent --- SYN in ---+                    +-- FIN out -> FinSent ----- FIN in --+
//!                                   +--> Established ----+                                     +--> Closing
//!  SYN in --> SynReceived - SYN out-+        ^           +-- FIN in --> FinReceived - FIN out -+
//!                                            |
//!               any, RST -> Reset -- data ---+     Closing or Reset, new SYN -> SynSent or SynReceived
//! ```

use portcullis_wire::tcp::TcpFlags;

use crate::view::SessionState;

/// Which way a packet goes, seen from the inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the inside.
    Outbound,
    /// To the inside.
    Inbound,
}

/// The state of a session that begins with a SYN in that direction.
pub(crate) const fn opened(direction: Direction) -> SessionState {
    match direction {
        Direction::Outbound => SessionState::SynSent,
        Direction::Inbound => SessionState::SynReceived,
    }
}

/// The state after a packet.
pub(crate) const fn advance(state: SessionState, direction: Direction, flags: TcpFlags) -> SessionState {
    use Direction::{Inbound, Outbound};
    use SessionState as S;
    if flags.rst() {
        return S::Reset;
    }
    match (state, direction) {
        (S::SynSent, Inbound) | (S::SynReceived, Outbound) if flags.syn() => S::Established,
        (S::Closing | S::Reset, _) if flags.is_opening() => opened(direction),
        // RFC 7857, section 2.2: a session goes on if anything but a RST follows one, which may have been forged. A FIN does not
        // revive it: what is revived only to be closed would be kept for two hours.
        (S::Reset, _) if !flags.fin() => S::Established,
        (S::Established, Outbound) if flags.fin() => S::FinSent,
        (S::Established, Inbound) if flags.fin() => S::FinReceived,
        (S::FinSent, Inbound) | (S::FinReceived, Outbound) if flags.fin() => S::Closing,
        _ => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Inbound, Outbound};
    use SessionState as S;

    const SYN: TcpFlags = TcpFlags::SYN;
    const SYN_ACK: TcpFlags = TcpFlags::SYN.and(TcpFlags::ACK);
    const ACK: TcpFlags = TcpFlags::ACK;
    const FIN: TcpFlags = TcpFlags::FIN.and(TcpFlags::ACK);
    const RST: TcpFlags = TcpFlags::RST;

    fn run(start: SessionState, packets: &[(Direction, TcpFlags)]) -> SessionState {
        packets.iter().fold(start, |state, &(direction, flags)| advance(state, direction, flags))
    }

    #[test]
    fn a_handshake_from_either_side_establishes() {
        assert_eq!(run(S::SynSent, &[(Outbound, SYN), (Inbound, SYN_ACK), (Outbound, ACK)]), S::Established);
        assert_eq!(run(S::SynReceived, &[(Inbound, SYN), (Outbound, SYN_ACK), (Inbound, ACK)]), S::Established);
    }

    #[test]
    fn crossing_syns_establish() {
        // RFC 5382, REQ-2: "including simultaneous-open".
        assert_eq!(run(S::SynSent, &[(Inbound, SYN), (Outbound, SYN_ACK), (Inbound, SYN_ACK)]), S::Established);
    }

    #[test]
    fn an_answer_without_syn_establishes_nothing() {
        assert_eq!(run(S::SynSent, &[(Inbound, ACK), (Outbound, ACK), (Outbound, SYN)]), S::SynSent);
    }

    #[test]
    fn a_half_closed_connection_is_not_closing() {
        assert_eq!(run(S::Established, &[(Outbound, FIN), (Inbound, ACK), (Inbound, ACK)]), S::FinSent);
        assert_eq!(run(S::Established, &[(Inbound, FIN), (Outbound, ACK), (Outbound, FIN), (Inbound, ACK)]), S::Closing);
    }

    #[test]
    fn data_revives_what_a_reset_closed_but_a_fin_does_not() {
        // RFC 7857, section 2.2.
        assert_eq!(run(S::Established, &[(Inbound, RST), (Outbound, ACK)]), S::Established);
        assert_eq!(run(S::Established, &[(Inbound, RST), (Outbound, FIN)]), S::Reset);
    }

    #[test]
    fn a_new_syn_reuses_a_closed_session() {
        assert_eq!(advance(S::Closing, Outbound, SYN), S::SynSent);
        assert_eq!(advance(S::Reset, Inbound, SYN), S::SynReceived);
        assert_eq!(advance(S::Established, Outbound, SYN), S::Established, "a stray SYN does not end a connection");
    }
}
