//! Step 7's bookkeeping: packets, state, and when a session was last seen.
//!
//! Knows one record and one packet's flags. Called once for each packet that is forwarded. Sources: RFC 4787 REQ-6, RFC 7857 section 7.

use portcullis_wire::ipv4::{TCP, UDP};
use portcullis_wire::tcp::TcpFlags;

use crate::policy::Protocol;
use crate::record::{Kind, Session, flag};
use crate::tcp::{self, Direction};
use crate::time::Tick;
use crate::view::SessionState;

impl Session {
    /// Counts a packet, and moves on. `flags` are those of TCP; of others they do not matter. Returns whether the packet refreshed the session.
    #[inline]
    pub(crate) fn advance(&mut self, direction: Direction, flags: TcpFlags, refreshes_inbound: bool, now: Tick) -> bool {
        match direction {
            Direction::Outbound => self.packets_out = self.packets_out.wrapping_add(1),
            Direction::Inbound => self.packets_in = self.packets_in.wrapping_add(1),
        }
        let accepts = self.kind.is_settled(flags) || self.change_state(direction, flags);
        // RFC 7857, section 7: who was let in by the filter alone does not keep the mapping alive, unless configured.
        let refreshes = accepts && direction == Direction::Outbound || refreshes_inbound || !self.has(flag::ADMITTED);
        if refreshes {
            self.last_seen = now.0;
        }
        refreshes
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
        self.kind = self.kind.in_state(next);
        !(flags.rst() && (self.kind.is_guest() || matches!(state, SessionState::SynReceived | SessionState::Reset)))
    }
}

/// What a packet says that may change a session: its protocol, and of TCP the flags that may. One number, so that it is compared at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Says(u32);

impl Says {
    /// Of no packet.
    const NOTHING: Self = Self(u32::MAX);

    /// TCP's flags that may change a session, or that not all combinations with are legal: all but PSH and the two of explicit congestion
    /// notification.
    const TELLING: u8 = 0x3F & !TcpFlags::PSH.0;

    /// Of a packet of that protocol; `flags` are what TCP has there.
    pub(crate) fn of(protocol: u8, flags: u8) -> Self {
        Self::read([0, protocol], flags)
    }

    /// The same, of the time to live and the protocol behind it, as they are in a packet: the protocol comes to be above all flags.
    #[inline]
    pub(crate) fn read(ttl_and_protocol: [u8; 2], flags: u8) -> Self {
        let protocol = u16::from_le_bytes(ttl_and_protocol) & 0xFF00;
        core::hint::select_unpredictable(
            protocol == u16::from_le_bytes([0, TCP]),
            Self(u32::from(flags & Self::TELLING)),
            Self(u32::from(protocol)),
        )
    }
}

/// For each kind of session, what the packets say that leave it as it is, whichever way they go, and when it ends.
pub(crate) struct Settled {
    rows: [Row; Kind::COUNT],
}

/// What is asked of a kind.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) says: Says,
    /// How long after its last packet a session has ended. **Units:** milliseconds.
    timer: i32,
}

impl Settled {
    /// With the timers of each kind.
    pub(crate) fn new(timers: &[u32; Kind::COUNT]) -> Self {
        // A timer beyond the longest span is never reached; shortened, it is asked of the ordinary way.
        let row = |&timer: &u32| Row { says: Says::NOTHING, timer: i32::try_from(timer).unwrap_or(i32::MAX) };
        let mut settled = Self { rows: core::array::from_fn(|number| row(&timers[number])) };
        for family in Kind::families().filter(|family| family.protocol() == Protocol::Udp) {
            settled.stays(family.in_state(SessionState::Replied), Says::of(UDP, 0));
        }
        for state in SessionState::ALL.into_iter().filter(|state| !matches!(state, SessionState::Unreplied | SessionState::Replied))
        {
            let ack = TcpFlags::ACK;
            if [Direction::Outbound, Direction::Inbound].into_iter().all(|way| tcp::advance(state, way, ack) == state) {
                settled.stays(Kind::new(Protocol::Tcp, state), Says::of(TCP, ack.0));
            }
        }
        settled
    }

    fn stays(&mut self, kind: Kind, says: Says) {
        self.rows[kind.number()].says = says;
    }

    /// What is asked of that kind.
    #[inline]
    pub(crate) const fn row(&self, kind: Kind) -> Row {
        self.rows[kind.number()]
    }
}

impl Row {
    /// Whether a session of the kind has ended, if it was last refreshed then.
    #[inline]
    pub(crate) const fn has_ended(self, last_seen: u32, now: Tick) -> bool {
        // What lies in the future is no time ago.
        now.0.wrapping_sub(last_seen).cast_signed() >= self.timer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::UDP_PORT_TIMES;

    fn settled() -> Settled {
        Settled::new(&[100; Kind::COUNT])
    }

    /// The short way must do what the long one does: whatever a row accepts leaves the session's kind as it is and refreshes it.
    #[test]
    fn what_a_row_accepts_changes_no_kind() {
        let rows = settled();
        let mut accepted = 0;
        for state in SessionState::ALL {
            for family in Kind::families().filter(|family| family.protocol() != Protocol::Icmp) {
                let (protocol, kind) = (family.protocol(), family.in_state(state));
                for (flags, direction) in (0..=u8::MAX).flat_map(|f| [(f, Direction::Outbound), (f, Direction::Inbound)]) {
                    if rows.row(kind).says != Says::of(protocol as u8, flags) {
                        continue;
                    }
                    accepted += 1;
                    let flags = if protocol == Protocol::Tcp { TcpFlags(flags) } else { TcpFlags::ACK };
                    assert!(!flags.is_impossible(), "{flags:?} in {state:?}");
                    let mut session: Session = zerocopy::FromZeros::new_zeroed();
                    (session.kind, session.packets_in, session.packets_out) = (kind, 3, 3);
                    session.advance(direction, flags, false, Tick(50));
                    assert_eq!((session.kind, session.last_seen), (kind, 50), "{flags:?} {direction:?} in {state:?}");
                }
            }
        }
        // Both ways: UDP of each class with any byte where TCP has its flags; TCP in all six states but Reset, with ACK and any of three other
        // flags.
        assert_eq!(accepted, 2 * ((1 + UDP_PORT_TIMES) * 256 + 6 * 8));
    }

    #[test]
    fn other_protocols_say_nothing_that_a_row_accepts() {
        let rows = settled();
        for protocol in (0..=u8::MAX).filter(|&protocol| protocol != TCP && protocol != UDP) {
            for flags in 0..=u8::MAX {
                assert!(rows.rows.iter().all(|row| row.says != Says::of(protocol, flags)), "{protocol} {flags}");
            }
        }
    }

    #[test]
    fn a_session_ends_when_its_timer_says_and_not_in_the_future() {
        let rows = Settled::new(&[1 << 31; Kind::COUNT]);
        let (long, short) = (
            rows.row(Kind::new(Protocol::Tcp, SessionState::Established)),
            settled().rows[Kind::new(Protocol::Udp, SessionState::Replied).number()],
        );
        assert!(!short.has_ended(u32::MAX - 49, Tick(49)) && short.has_ended(u32::MAX - 49, Tick(50)));
        assert!(!short.has_ended(60, Tick(50)) && !long.has_ended(60, Tick(50)));
        assert!(!long.has_ended(0, Tick(i32::MAX as u32 - 1)));
    }
}
