//! A TCP connection through the NAT, both ends of which are played here.
//!
//! Knows sequence and acknowledgment numbers, so that a NAT that tracks windows has no cause to refuse. Called by [`crate::rows`].

use portcullis_lab::builder::{ACK, FIN, PacketBuilder, RST, SYN};
use portcullis_nat::policy::Endpoint;

use crate::bench::Bench;
use crate::datagram::TCP;
use crate::row::{Check, Trouble};
use crate::wire::Side;

impl Bench {
    /// Opens a TCP connection from a host to a remote, with both sides' handshake.
    pub(crate) fn connect(&self, from: Endpoint, to: Endpoint) -> Check<Connection<'_>> {
        let (ours, theirs) = (self.number(), self.number());
        let syn = self.send(Side::Inside, &PacketBuilder::tcp(from, to, SYN).numbers(ours, 0))?;
        let seen = self.expect(&syn, Side::Outside, "the SYN", |one| one.protocol() == TCP && one.sequence() == ours)?;
        let external = seen.from();
        let mut connection =
            Connection { bench: self, inside: from, external, remote: to, next: ours.wrapping_add(1), remote_next: theirs };
        connection.remote_sends(SYN | ACK, &[])?;
        connection.host_sends(ACK, &[])?;
        Ok(connection)
    }
}

/// A TCP connection through the NAT, both ends of which are played here.
#[derive(Debug)]
pub(crate) struct Connection<'a> {
    bench: &'a Bench,
    /// The host.
    pub(crate) inside: Endpoint,
    /// What the remote sees.
    pub(crate) external: Endpoint,
    /// The remote.
    pub(crate) remote: Endpoint,
    /// The host's next sequence number.
    next: u32,
    /// The remote's.
    remote_next: u32,
}

impl Connection<'_> {
    /// The next segment of the host, without sending it.
    pub(crate) fn host_segment(&self, flags: u8, payload: &[u8]) -> PacketBuilder {
        let acknowledged = if flags & ACK == 0 { 0 } else { self.remote_next };
        PacketBuilder::tcp(self.inside, self.remote, flags).numbers(self.next, acknowledged).payload(payload)
    }

    /// The next segment of the remote, without sending it.
    pub(crate) fn remote_segment(&self, flags: u8, payload: &[u8]) -> PacketBuilder {
        let acknowledged = if flags & ACK == 0 { 0 } else { self.next };
        PacketBuilder::tcp(self.remote, self.external, flags).numbers(self.remote_next, acknowledged).payload(payload)
    }

    /// Sends a segment from the host, which has to come to the remote.
    pub(crate) fn host_sends(&mut self, flags: u8, payload: &[u8]) -> Check<()> {
        let (shot, number) = (self.bench.send(Side::Inside, &self.host_segment(flags, payload))?, self.next);
        let what = format!("the segment from {}:{}", self.external.address, self.external.port);
        let (external, length) = (self.external, payload.len());
        self.bench.expect(&shot, Side::Outside, &what, |one| {
            one.protocol() == TCP && one.sequence() == number && one.flags() == flags && one.from() == external
        })?;
        self.next = advanced(number, flags, length);
        Ok(())
    }

    /// Sends a segment from the remote, which has to come to the host.
    pub(crate) fn remote_sends(&mut self, flags: u8, payload: &[u8]) -> Check<()> {
        let (shot, number) = (self.bench.send(Side::Outside, &self.remote_segment(flags, payload))?, self.remote_next);
        let what = format!("the segment to {}:{}", self.inside.address, self.inside.port);
        let (inside, length) = (self.inside, payload.len());
        self.bench.expect(&shot, Side::Inside, &what, |one| {
            one.protocol() == TCP && one.sequence() == number && one.flags() == flags && one.to() == inside
        })?;
        self.remote_next = advanced(number, flags, length);
        Ok(())
    }

    /// Data in both directions, which has to pass.
    pub(crate) fn talks(&mut self) -> Check<()> {
        let (ours, theirs) = (self.bench.mark(), self.bench.mark());
        self.host_sends(ACK, &ours)?;
        self.remote_sends(ACK, &theirs)
    }

    /// Whether the remote's next data comes to the host. Sent twice, as TCP would, when it does not come at once.
    pub(crate) fn remote_is_heard(&mut self) -> Check<bool> {
        for _ in 0..2 {
            match self.remote_sends(ACK, &self.bench.mark()) {
                Ok(()) => return Ok(true),
                Err(Trouble::Missing(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(false)
    }
}

/// A sequence number after a segment.
const fn advanced(number: u32, flags: u8, length: usize) -> u32 {
    let controls = (flags & SYN != 0) as u32 + (flags & FIN != 0 && flags & RST == 0) as u32;
    number.wrapping_add(controls + length as u32)
}
