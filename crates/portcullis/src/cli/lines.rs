//! Sessions and mappings as lines: sessions in the manner of `conntrack -L`, so that eyes and scripts used to it find their way.
//!
//! Knows messages and text. A TCP session's state has conntrack's name where there is one for the same thing: see [`state`].
//! Tests: golden lines below.

use std::fmt;

use portcullis_api::{Bare, Direction, Endpoint, MappingEntry, Protocol, SessionEntry, SessionState};

/// A session's line, without the newline.
pub(super) struct SessionLine<'e>(pub(super) &'e SessionEntry);

impl fmt::Display for SessionLine<'_> {
    /// `protocol number seconds-left [STATE] original-tuple [UNREPLIED] reply-tuple [ASSURED]`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(session) = *self;
        let protocol = session.protocol;
        let (original, reply) = tuples(session);
        write!(f, "{protocol:<8} {} {} ", protocol.number(), session.expires_in_milliseconds / 1000)?;
        if let Some(state) = state(session.state) {
            write!(f, "{state} ")?;
        }
        tuple(f, protocol, original, 8)?;
        if is_unreplied(session.state) {
            f.write_str(" [UNREPLIED]")?;
        }
        f.write_str(" ")?;
        tuple(f, protocol, reply, 0)?;
        if is_assured(session) { f.write_str(" [ASSURED]") } else { Ok(()) }
    }
}

/// Source and destination of the first packet, and of the answer, each as it is on the side that it comes from.
///
/// ```text
/// outbound   internal -> remote      remote   -> external
/// inbound    remote   -> external    internal -> remote
/// ```
fn tuples(session: &SessionEntry) -> ((Endpoint, Endpoint), (Endpoint, Endpoint)) {
    let outbound = (session.internal, session.remote);
    let inbound = (session.remote, session.external);
    match session.direction {
        Direction::Outbound => (outbound, inbound),
        Direction::Inbound => (inbound, outbound),
    }
}

/// `kind` is the ICMP type: 8 for a request, 0 for its answer. An identifier is at the inside's end, whichever way the packet goes.
fn tuple(f: &mut fmt::Formatter<'_>, protocol: Protocol, (from, to): (Endpoint, Endpoint), kind: u8) -> fmt::Result {
    write!(f, "src={} dst={}", from.address, to.address)?;
    match protocol {
        Protocol::Icmp => write!(f, " type={kind} code=0 id={}", if from.port == 0 { to.port } else { from.port }),
        Protocol::Tcp | Protocol::Udp => write!(f, " sport={} dport={}", from.port, to.port),
        Protocol::Other(_) => Ok(()),
    }
}

/// A TCP state by conntrack's name. Ours tell the sides apart and conntrack's do not, so: a first SYN is `SYN_SENT` from either side,
/// the inside's FIN is `FIN_WAIT`, the outside's `CLOSE_WAIT`, both `TIME_WAIT`, a RST `CLOSE`.
const fn state(state: SessionState) -> Option<&'static str> {
    match state {
        SessionState::Unreplied | SessionState::Replied => None,
        SessionState::SynSent | SessionState::SynReceived => Some("SYN_SENT"),
        SessionState::Established => Some("ESTABLISHED"),
        SessionState::FinSent => Some("FIN_WAIT"),
        SessionState::FinReceived => Some("CLOSE_WAIT"),
        SessionState::Closing => Some("TIME_WAIT"),
        SessionState::Reset => Some("CLOSE"),
    }
}

const fn is_unreplied(state: SessionState) -> bool {
    matches!(state, SessionState::Unreplied | SessionState::SynSent | SessionState::SynReceived)
}

/// conntrack never calls ICMP assured, nor a connection that was reset before it was one.
fn is_assured(session: &SessionEntry) -> bool {
    let replied = !is_unreplied(session.state) && session.state != SessionState::Reset;
    replied && session.protocol != Protocol::Icmp
}

/// A mapping's line, without the newline.
pub(super) struct MappingLine<'e>(pub(super) &'e MappingEntry);

impl fmt::Display for MappingLine<'_> {
    /// `protocol internal=ADDRESS:PORT external=ADDRESS:PORT remote=ADDRESS:PORT sessions=N`; `*` stands for any remote or port. Of a bare
    /// mapping also `seconds=LEFT packets_out=N packets_in=N`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(mapping) = *self;
        write!(f, "{:<8} internal={} external={} remote=", mapping.protocol, mapping.internal, mapping.external)?;
        match mapping.remote {
            None => f.write_str("*")?,
            Some(Endpoint { address, port: 0 }) => write!(f, "{address}:*")?,
            Some(remote) => write!(f, "{remote}")?,
        }
        write!(f, " sessions={}", mapping.sessions)?;
        let Some(Bare { expires_in_milliseconds, packets_out, packets_in }) = mapping.bare else { return Ok(()) };
        write!(f, " seconds={} packets_out={packets_out} packets_in={packets_in}", expires_in_milliseconds / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(protocol: Protocol, state: SessionState, direction: Direction) -> SessionEntry {
        let endpoint = |address: [u8; 4], port| Endpoint { address: address.into(), port };
        SessionEntry {
            protocol,
            state,
            direction,
            internal: endpoint([10, 0, 0, 2], 50000),
            external: endpoint([203, 0, 113, 10], 1024),
            remote: endpoint([198, 51, 100, 1], if protocol == Protocol::Icmp { 0 } else { 443 }),
            expires_in_milliseconds: 7_439_999,
            packets_out: 1,
            packets_in: 1,
        }
    }

    #[test]
    fn lines_are_conntracks() {
        use Direction::{Inbound, Outbound};
        for (protocol, state, direction, line) in [
            (
                Protocol::Tcp,
                SessionState::Established,
                Outbound,
                "tcp      6 7439 ESTABLISHED src=10.0.0.2 dst=198.51.100.1 sport=50000 dport=443 \
                 src=198.51.100.1 dst=203.0.113.10 sport=443 dport=1024 [ASSURED]",
            ),
            (
                Protocol::Tcp,
                SessionState::SynReceived,
                Inbound,
                "tcp      6 7439 SYN_SENT src=198.51.100.1 dst=203.0.113.10 sport=443 dport=1024 [UNREPLIED] \
                 src=10.0.0.2 dst=198.51.100.1 sport=50000 dport=443",
            ),
            (
                Protocol::Tcp,
                SessionState::Reset,
                Outbound,
                "tcp      6 7439 CLOSE src=10.0.0.2 dst=198.51.100.1 sport=50000 dport=443 \
                 src=198.51.100.1 dst=203.0.113.10 sport=443 dport=1024",
            ),
            (
                Protocol::Udp,
                SessionState::Unreplied,
                Outbound,
                "udp      17 7439 src=10.0.0.2 dst=198.51.100.1 sport=50000 dport=443 [UNREPLIED] \
                 src=198.51.100.1 dst=203.0.113.10 sport=443 dport=1024",
            ),
            (
                Protocol::Icmp,
                SessionState::Replied,
                Outbound,
                "icmp     1 7439 src=10.0.0.2 dst=198.51.100.1 type=8 code=0 id=50000 \
                 src=198.51.100.1 dst=203.0.113.10 type=0 code=0 id=1024",
            ),
            (
                Protocol::Other(47),
                SessionState::Replied,
                Outbound,
                "gre      47 7439 src=10.0.0.2 dst=198.51.100.1 src=198.51.100.1 dst=203.0.113.10 [ASSURED]",
            ),
            (
                Protocol::Other(253),
                SessionState::Unreplied,
                Outbound,
                "253      253 7439 src=10.0.0.2 dst=198.51.100.1 [UNREPLIED] src=198.51.100.1 dst=203.0.113.10",
            ),
        ] {
            assert_eq!(SessionLine(&session(protocol, state, direction)).to_string(), line);
        }
    }

    #[test]
    fn a_mappings_remote_is_shown_as_far_as_it_counts() {
        let endpoint = |port| Endpoint { address: [192, 0, 2, 1].into(), port };
        for (remote, shown) in [(None, "*"), (Some(endpoint(0)), "192.0.2.1:*"), (Some(endpoint(53)), "192.0.2.1:53")] {
            let mut mapping = MappingEntry {
                protocol: Protocol::Udp,
                internal: endpoint(5),
                external: endpoint(6),
                remote,
                sessions: 2,
                bare: None,
            };
            let line = format!("udp      internal=192.0.2.1:5 external=192.0.2.1:6 remote={shown} sessions=2");
            assert_eq!(MappingLine(&mapping).to_string(), line);
            mapping.bare = Some(Bare { expires_in_milliseconds: 299_999, packets_out: 3, packets_in: 4 });
            assert_eq!(MappingLine(&mapping).to_string(), line + " seconds=299 packets_out=3 packets_in=4");
        }
    }
}
