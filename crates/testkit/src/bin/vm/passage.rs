//! Sessions through the gateway: numbered packets go in on one side, and each has to come out on the other, translated.
//!
//! Knows sockets of the two hosts and what a NAT has to do; not how the gateway does it. Called by the checks of the owners. Invariant:
//! a round has succeeded when every packet of it has come, to where it should and from where it should; a lost, changed or doubled one is
//! an error. No more than [`WINDOW`] are on their way, so none is lost to a queue that is too short for an emulated guest.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portcullis_nat::policy::Endpoint;
use portcullis_testkit::builder::{ACK, PacketBuilder, SYN};
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::{POOL, SERVER};

use crate::lab::Lab;
use crate::placement::Numbers;
use crate::traffic::{Listener, Sender};

/// Packets on their way at most. Chosen: less than the smallest ring on it, which has 256.
const WINDOW: usize = 128;
/// Packets sent before it is looked what has come.
const BURST: usize = 32;
/// After so long without any, those that have not come are lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a numbered payload begins with; no other program's does.
const MAGIC: [u8; 4] = *b"pass";
/// Subscribers, and remotes, are within these (the upper two bytes).
const SUBSCRIBERS: [u8; 2] = [10, 1];
const REMOTES: [u8; 2] = [198, 18];

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Outbound,
    Inbound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

/// A subscriber's conversation with a remote, and the external endpoint that the gateway gave it.
#[derive(Debug)]
struct Session {
    transport: Transport,
    internal: Endpoint,
    remote: Endpoint,
    external: Option<Endpoint>,
}

/// A packet on its way.
struct Sent {
    session: usize,
    source: Endpoint,
}

/// A numbered packet that came.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    source: Endpoint,
    destination: Endpoint,
    number: u32,
}

/// One host's sockets.
struct End {
    sender: Sender,
    listener: Listener,
}

/// Sessions between many subscribers and many remotes, UDP and TCP in turn.
pub(crate) struct Passage {
    inside: End,
    outside: End,
    sessions: Vec<Session>,
    numbers: Numbers,
    /// The next packet's.
    number: u32,
    /// Packets that have come.
    passed: u64,
}

impl End {
    fn open(host: &Namespace) -> Result<Self> {
        Ok(Self { sender: Sender::open(host)?, listener: Listener::open(host)? })
    }
}

impl Session {
    fn between(internal: Endpoint, remote: Endpoint, transport: Transport) -> Self {
        Self { transport, internal, remote, external: None }
    }

    fn packet(&self, source: Endpoint, destination: Endpoint, flags: u8, number: u32) -> Vec<u8> {
        let packet = match self.transport {
            Transport::Udp => PacketBuilder::udp(source, destination),
            Transport::Tcp => PacketBuilder::tcp(source, destination, flags),
        };
        packet.payload(&[MAGIC, number.to_be_bytes()].concat()).datagram()
    }

    /// Compares what came with what was sent. **Errors:** it went elsewhere or under another name.
    fn accept(&mut self, way: Way, source: Endpoint, seen: &Seen) -> Result<()> {
        let expected = match way {
            Way::Outbound => {
                let pool: Ipv4Addr = POOL.parse().context("the pool")?;
                ensure!(seen.source.address == pool, "{seen:?} does not come from the pool, session {self:?}");
                (*self.external.get_or_insert(seen.source), self.remote)
            }
            Way::Inbound => (source, self.internal),
        };
        ensure!((seen.source, seen.destination) == expected, "{seen:?}, but {expected:?} was expected, session {self:?}");
        Ok(())
    }
}

impl Passage {
    /// Opens so many sessions, the TCP ones by a handshake. The gateway filters endpoint-independently.
    pub(crate) fn open(lab: &Lab, sessions: usize, seed: u64) -> Result<Self> {
        // Has the next hops resolved on both sides: for one that is not, the gateway holds a few packets and drops the others.
        lab.inside.run(&format!("ping -c 2 -i 0.2 -W 5 {SERVER}"))?;
        let mut numbers = Numbers::new(seed);
        let transports = [Transport::Udp, Transport::Tcp].into_iter().cycle();
        let session = |transport| Session::between(numbers.endpoint(SUBSCRIBERS), numbers.endpoint(REMOTES), transport);
        let sessions = transports.take(sessions).map(session).collect();
        let (inside, outside) = (End::open(&lab.inside)?, End::open(&lab.outside)?);
        let mut passage = Self { inside, outside, sessions, numbers, number: 0, passed: 0 };
        passage.round(Way::Outbound, SYN)?;
        passage.round(Way::Inbound, SYN | ACK)?;
        passage.round(Way::Outbound, ACK)?;
        Ok(passage)
    }

    /// Packets that have come until now.
    pub(crate) const fn passed(&self) -> u64 {
        self.passed
    }

    /// A packet of each session out, and one in. **Errors:** see [`Self::round`].
    pub(crate) fn exchange(&mut self) -> Result<()> {
        self.round(Way::Outbound, ACK)?;
        self.round(Way::Inbound, ACK)
    }

    /// Sends a packet of each session one way, TCP with those flags, and waits until all have come.
    ///
    /// **Errors:** one is lost, with how many; one came that is not as it should be.
    fn round(&mut self, way: Way, flags: u8) -> Result<()> {
        let mut on_way = BTreeMap::new();
        for first in (0..self.sessions.len()).step_by(BURST) {
            let last = self.sessions.len().min(first + BURST);
            for session in first..last {
                self.send(way, session, flags, &mut on_way)?;
            }
            self.receive(way, &mut on_way, WINDOW - BURST)?;
        }
        self.receive(way, &mut on_way, 0)
    }

    fn send(&mut self, way: Way, at: usize, flags: u8, on_way: &mut BTreeMap<u32, Sent>) -> Result<()> {
        let session = &self.sessions[at];
        let (source, destination) = match (way, session.transport) {
            (Way::Outbound, _) => (session.internal, session.remote),
            // Anyone may send to an external endpoint: that is what ordinary RSS would put on any queue.
            (Way::Inbound, Transport::Udp) => (self.numbers.endpoint(REMOTES), self.external(at)?),
            (Way::Inbound, Transport::Tcp) => (session.remote, self.external(at)?),
        };
        self.number += 1;
        let from = if way == Way::Outbound { &self.inside } else { &self.outside };
        from.sender.send_one(&session.packet(source, destination, flags, self.number))?;
        on_way.insert(self.number, Sent { session: at, source });
        Ok(())
    }

    fn external(&self, session: usize) -> Result<Endpoint> {
        self.sessions[session].external.context("the session has no external endpoint yet")
    }

    /// Takes what comes until no more than `left` are on their way.
    fn receive(&mut self, way: Way, on_way: &mut BTreeMap<u32, Sent>, left: usize) -> Result<()> {
        let listener = if way == Way::Outbound { &self.outside.listener } else { &self.inside.listener };
        let mut buffer = [0; 2048];
        let mut latest = Instant::now();
        while on_way.len() > left {
            let Some(seen) = listener.next(&mut buffer)?.and_then(read) else {
                ensure!(latest.elapsed() < PATIENCE, "{} {way:?} packets lost of {}", on_way.len(), self.number);
                continue;
            };
            let Some(sent) = on_way.remove(&seen.number) else { bail!("{seen:?} came twice, or is of another round") };
            self.sessions[sent.session].accept(way, sent.source, &seen)?;
            self.passed += 1;
            latest = Instant::now();
        }
        Ok(())
    }
}

/// Reads a packet of ours; none when it is somebody else's.
fn read(packet: &[u8]) -> Option<Seen> {
    let header = usize::from(packet.first()? & 0x0F) * 4;
    let transport = packet.get(header..)?;
    let length = match packet[9] {
        17 => 8,
        6 => usize::from(transport.get(12)? >> 4) * 4,
        _ => return None,
    };
    let payload = transport.get(length..)?.strip_prefix(&MAGIC)?;
    let endpoint = |address: usize, port: usize| -> Option<Endpoint> {
        let octets: [u8; 4] = packet.get(address..address + 4)?.try_into().ok()?;
        let port = transport.get(port..port + 2)?.try_into().ok()?;
        Some(Endpoint { address: octets.into(), port: u16::from_be_bytes(port) })
    };
    let number = payload.first_chunk().map(|&bytes| u32::from_be_bytes(bytes))?;
    Some(Seen { source: endpoint(12, 0)?, destination: endpoint(16, 2)?, number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_testkit::builder::endpoint;

    #[test]
    fn what_was_sent_is_read_again() {
        let (internal, remote) = (endpoint("10.1.2.3:4000"), endpoint("198.18.5.6:80"));
        for transport in [Transport::Udp, Transport::Tcp] {
            let packet = Session::between(internal, remote, transport).packet(internal, remote, ACK, 77);
            assert_eq!(read(&packet), Some(Seen { source: internal, destination: remote, number: 77 }), "{transport:?}");
            for length in 0..packet.len() {
                assert_eq!(read(&packet[..length]), None, "the first {length} bytes");
            }
        }
        assert_eq!(read(&PacketBuilder::udp(internal, remote).payload_len(24).datagram()), None, "somebody else's");
    }

    #[test]
    fn a_packet_that_went_elsewhere_is_no_success() {
        let (internal, remote) = (endpoint("10.1.2.3:4000"), endpoint("198.18.5.6:80"));
        let external = Endpoint { address: POOL.parse().unwrap(), port: 5000 };
        let mut session = Session::between(internal, remote, Transport::Udp);
        let seen = |source, destination| Seen { source, destination, number: 1 };
        assert!(session.accept(Way::Outbound, internal, &seen(internal, remote)).is_err(), "it was not translated");
        assert!(session.accept(Way::Outbound, internal, &seen(external, remote)).is_ok());
        let another = Endpoint { port: 5001, ..external };
        assert!(session.accept(Way::Outbound, internal, &seen(another, remote)).is_err(), "it has another external endpoint");
        assert!(session.accept(Way::Inbound, remote, &seen(remote, internal)).is_ok());
        assert!(session.accept(Way::Inbound, remote, &seen(external, internal)).is_err(), "another source than it was sent from");
        assert!(session.accept(Way::Inbound, remote, &seen(remote, external)).is_err(), "it was not translated back");
    }
}
