//! Live sessions and their packets: sets the sessions up through the NAT itself, and writes the packets of any of them.
//!
//! Knows flows, frames and the external endpoints that the NAT gave. Invariants: what is written is right for its session; reading a
//! session's endpoints happens outside what is measured.

use anyhow::{Result, ensure};
use portcullis_nat::policy::{Endpoint, Protocol, Side};
use std::net::Ipv4Addr;

use crate::flow::{Flow, Flows};
use crate::frame::{self, Frame, Packet, tcp};
use crate::gateway::{BURST, Gateway, Plan, link_of};

/// Sessions by number.
pub(crate) struct Load {
    pub(crate) flows: Flows,
    /// The external endpoint of each session: address, port. Six bytes a session.
    addresses: Vec<u32>,
    ports: Vec<u16>,
    frames: Vec<Frame>,
}

/// How far a session is brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Its first packet went out.
    Opened,
    /// Packets went both ways: UDP was answered, TCP has shaken hands.
    Established,
}

impl Load {
    /// Room for `sessions` sessions, all of it touched.
    pub(crate) fn new(flows: Flows, sessions: u32) -> Self {
        // Not `vec![0; ...]`, whose pages would be touched only later and be counted as the NAT's.
        let (mut addresses, mut ports) = (Vec::new(), Vec::new());
        addresses.resize(sessions as usize, u32::MAX);
        ports.resize(sessions as usize, u16::MAX);
        Self { flows, addresses, ports, frames: vec![Frame::EMPTY; BURST] }
    }

    fn external(&self, session: u32) -> Endpoint {
        let at = session as usize;
        Endpoint { address: Ipv4Addr::from_bits(self.addresses[at]), port: self.ports[at] }
    }

    /// Writes a session's packet from `side`.
    pub(crate) fn write(&self, frame: &mut Frame, session: u32, side: Side, flags: u8) {
        let Flow { protocol, internal, remote } = self.flows.of(session);
        let (source, destination) = match side {
            Side::Inside => (internal, remote),
            Side::Outside => (remote, self.external(session)),
        };
        frame::build(frame, &link_of(side), &Packet { protocol, source, destination, flags });
    }

    /// **Errors:** when a translated packet of a session, which came from `side`, is not what it has to be.
    pub(crate) fn check(&self, frame: &Frame, session: u32, side: Side) -> Result<()> {
        let Flow { internal, remote, .. } = self.flows.of(session);
        let wanted = match side {
            Side::Inside => (self.external(session), remote),
            Side::Outside => (remote, internal),
        };
        let got = frame::read(frame);
        ensure!(got == Some(wanted), "session {session} from {side:?}: {got:?} instead of {wanted:?}, or a wrong checksum");
        Ok(())
    }

    /// Makes the sessions from `first` on, `count` of them.
    pub(crate) fn open(&mut self, gateway: &mut Gateway<'_>, plan: &Plan, (first, count): (u32, u32), until: Until) -> Result<()> {
        let mut next = first;
        while next < first + count {
            let burst = (first + count - next).min(BURST as u32);
            self.open_burst(gateway, plan, next..next + burst, until)?;
            next += burst;
        }
        Ok(())
    }

    /// Sends a packet of each session from the inside.
    pub(crate) fn refresh(&mut self, gateway: &mut Gateway<'_>, sessions: impl Iterator<Item = u32>) -> Result<()> {
        self.send(gateway, sessions, Side::Inside, tcp::SYN)
    }

    fn open_burst(&mut self, gateway: &mut Gateway<'_>, plan: &Plan, sessions: core::ops::Range<u32>, until: Until) -> Result<()> {
        self.send(gateway, sessions.clone(), Side::Inside, tcp::SYN)?;
        for (at, session) in sessions.clone().enumerate() {
            let (external, remote) = frame::endpoints(&self.frames[at]);
            ensure!(
                Gateway::is_external(plan, external) && remote == self.flows.of(session).remote,
                "session {session} left as {external:?} to {remote:?}"
            );
            self.addresses[session as usize] = external.address.to_bits();
            self.ports[session as usize] = external.port;
        }
        if until == Until::Established {
            self.establish(gateway, &sessions.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Answers what opened sessions have sent: at most a burst of them.
    pub(crate) fn establish(&mut self, gateway: &mut Gateway<'_>, sessions: &[u32]) -> Result<()> {
        self.send(gateway, sessions.iter().copied(), Side::Outside, tcp::SYN | tcp::ACK)?;
        let flows = self.flows;
        let handshakes = sessions.iter().copied().filter(|&session| flows.protocol(session) == Protocol::Tcp);
        self.send(gateway, handshakes, Side::Inside, tcp::ACK)
    }

    fn send(&mut self, gateway: &mut Gateway<'_>, sessions: impl Iterator<Item = u32>, side: Side, flags: u8) -> Result<()> {
        let mut frames = std::mem::take(&mut self.frames);
        let mut count = 0;
        for session in sessions {
            self.write(&mut frames[count], session, side, flags);
            count += 1;
        }
        let passed = gateway.pass(&mut frames[..count], side);
        self.frames = frames;
        passed
    }
}
