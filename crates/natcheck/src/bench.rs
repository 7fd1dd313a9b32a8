//! What a row's function works with: both raw ends, fresh hosts and remotes, and the few sentences that all tests are made of.
//!
//! Knows packets and waiting; does not know requirements. Rows may run beside each other: each takes fresh addresses and ports, and
//! knows its packets by a mark in the payload, or by TCP's sequence number. Called by [`crate::rows`].

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use portcullis_lab::builder::{ACK, PacketBuilder, Query, SYN};
use portcullis_nat::policy::Endpoint;

use crate::datagram::{Datagram, ICMP, TCP, UDP};
use crate::plan;
use crate::row::{Check, Trouble, require, violated};
use crate::rows::load::Fill;
use crate::setup::Setup;
use crate::watch::{DAMAGED, SOUND};
use crate::wire::{End, Side};

/// How long a packet may take that has to come.
pub(crate) const COMES: Duration = Duration::from_millis(1500);
/// How long one is waited for that must not come.
pub(crate) const STAYS_AWAY: Duration = Duration::from_millis(150);

/// A mark in a payload.
pub(crate) type Mark = [u8; 8];

/// A packet that was sent.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    /// Each end's place at that time.
    marks: [usize; 2],
    /// From where.
    from: Side,
    /// The packet in words.
    words: String,
}

impl Shot {
    /// What was sent, in words.
    fn sent(&self) -> String {
        format!("sent {}: {}", self.from.word(), self.words)
    }
}

/// A transport whose mappings are tested alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Datagrams.
    Udp,
    /// A SYN outbound, a SYN+ACK inbound.
    Tcp,
    /// Echo requests outbound, replies inbound; the port is the identifier.
    Icmp,
}

impl Transport {
    /// Its name.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Icmp => "ICMP echo",
        }
    }
}

/// The bench.
#[derive(Debug)]
pub(crate) struct Bench {
    inside: End,
    outside: End,
    /// What the NAT was set up as.
    pub(crate) setup: &'static Setup,
    /// Whether rows may wait for minutes.
    pub(crate) slow: bool,
    hosts: AtomicU32,
    remotes: AtomicU32,
    ports: AtomicU32,
    numbers: AtomicU32,
    /// The sequence number of each host's last SYN to a remote, which an answer has to acknowledge.
    syns: Mutex<HashMap<(Ends, Ends), u32>>,
    fill: OnceLock<Result<Fill, String>>,
}

impl Bench {
    /// A bench over two ends that know the NAT's MAC.
    pub(crate) fn new(inside: End, outside: End, setup: &'static Setup, slow: bool) -> Self {
        let number = AtomicU32::new;
        let (hosts, remotes, ports, numbers) = (number(0), number(0), number(0), number(0x1_0000));
        Self { inside, outside, setup, slow, hosts, remotes, ports, numbers, syns: Mutex::default(), fill: OnceLock::new() }
    }

    /// The end of a side.
    pub(crate) const fn end(&self, side: Side) -> &End {
        match side {
            Side::Inside => &self.inside,
            Side::Outside => &self.outside,
        }
    }

    /// The pool with all its endpoints in use, filled by the first row that asks.
    pub(crate) fn fill(&self) -> Check<&Fill> {
        let filled = self.fill.get_or_init(|| Fill::of(self).map_err(|trouble| format!("{trouble:?}")));
        filled.as_ref().map_err(|error| Trouble::Broken(anyhow!("filling the pool: {error}")))
    }

    /// A host that nobody has used.
    pub(crate) fn host(&self) -> Ipv4Addr {
        let number = self.hosts.fetch_add(1, Ordering::Relaxed);
        Ipv4Addr::new(10, 0, (1 + number / 250 % 250) as u8, (1 + number % 250) as u8)
    }

    /// A host that nobody has used, and a port.
    pub(crate) fn endpoint(&self) -> Endpoint {
        let number = self.ports.fetch_add(1, Ordering::Relaxed);
        Endpoint { address: self.host(), port: (10_007 + number * 13 % 20_000) as u16 }
    }

    /// A remote endpoint that nobody has used.
    pub(crate) fn remote(&self) -> Endpoint {
        let number = self.remotes.fetch_add(1, Ordering::Relaxed);
        Endpoint { address: Ipv4Addr::new(198, 51, 100, (1 + number % 250) as u8), port: (33_001 + number * 7 % 30_000) as u16 }
    }

    /// A number that nobody has used: a sequence number, a mark.
    pub(crate) fn number(&self) -> u32 {
        // Odd steps that visit every number, so that neighbours differ in all their bytes.
        self.numbers.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B1)
    }

    /// A mark for a sound packet's payload.
    pub(crate) fn mark(&self) -> Mark {
        marked(SOUND, self.number())
    }

    /// A mark for a packet that is damaged on purpose: its checksums are not held against the NAT.
    pub(crate) fn damaged(&self) -> Mark {
        marked(DAMAGED, self.number())
    }

    /// Where both ends are now; for what answers something that is sent later.
    pub(crate) fn now(&self, from: Side, words: &str) -> Shot {
        Shot { marks: [self.inside.mark(), self.outside.mark()], from, words: words.to_owned() }
    }

    /// Sends a packet from a side.
    pub(crate) fn send(&self, from: Side, packet: &PacketBuilder) -> Check<Shot> {
        let datagram = packet.datagram();
        let shot = self.now(from, &Datagram(datagram).to_string());
        let (own, nat) = self.end(from).macs();
        self.end(from).send_frame(&packet.clone().mac(own, nat).build())?;
        Ok(shot)
    }

    /// Sends the bytes of a datagram as they are.
    pub(crate) fn send_datagram(&self, from: Side, datagram: &[u8]) -> Check<Shot> {
        let shot = self.now(from, &Datagram(datagram.to_vec()).to_string());
        let (own, nat) = self.end(from).macs();
        self.end(from).send_frame(&[&nat, &own, [0x08, 0x00].as_slice(), datagram].concat())?;
        Ok(shot)
    }

    /// Sends a packet in pieces of `size` bytes, in the order that `order` makes of them.
    pub(crate) fn send_fragments(
        &self,
        from: Side,
        packet: &PacketBuilder,
        size: usize,
        order: impl FnOnce(&mut Vec<Vec<u8>>),
    ) -> Check<Shot> {
        let (own, nat) = self.end(from).macs();
        let mut pieces = packet.clone().mac(own, nat).fragments(size);
        order(&mut pieces);
        let shot = self.now(from, &format!("{} in {} fragments", Datagram(packet.datagram()), pieces.len()));
        for piece in pieces {
            self.end(from).send_frame(&piece)?;
        }
        Ok(shot)
    }

    /// The first datagram on `side` since the shot for which `wanted` holds.
    pub(crate) fn seen(
        &self,
        shot: &Shot,
        side: Side,
        within: Duration,
        wanted: impl Fn(&Datagram) -> bool,
    ) -> Option<Arc<Datagram>> {
        self.end(side).wait(shot.marks[side as usize], Instant::now() + within, wanted)
    }

    /// All datagrams on `side` since the shot for which `wanted` holds.
    pub(crate) fn all(&self, shot: &Shot, side: Side, wanted: impl Fn(&Datagram) -> bool) -> Vec<Datagram> {
        let seen = self.end(side).since(shot.marks[side as usize]);
        seen.iter().filter(|datagram| wanted(datagram)).map(|datagram| Datagram::clone(datagram)).collect()
    }

    /// As [`Self::seen`], and the row is violated when it does not come, twice in a row. `what` says what was expected.
    pub(crate) fn expect(&self, shot: &Shot, side: Side, what: &str, wanted: impl Fn(&Datagram) -> bool) -> Check<Datagram> {
        if let Some(seen) = self.seen(shot, side, COMES, wanted) {
            return Ok(Datagram::clone(&seen));
        }
        let came = self.came(shot, side);
        Err(Trouble::Missing(format!("{}; expected {}: {what}; {came}", shot.sent(), side.word())))
    }

    /// The row is violated when `unwanted` comes on `side`. `what` says what must not be.
    pub(crate) fn expect_none(&self, shot: &Shot, side: Side, what: &str, unwanted: impl Fn(&Datagram) -> bool) -> Check<()> {
        match self.seen(shot, side, STAYS_AWAY, unwanted) {
            None => Ok(()),
            Some(seen) => violated!("{}; expected {}: {what}; came: {seen}", shot.sent(), side.word()),
        }
    }

    /// What came instead, in a few words. Rows beside this one have their packets there too: the last ones are the likelier.
    fn came(&self, shot: &Shot, side: Side) -> String {
        /// Enough to see what went wrong.
        const SHOWN: usize = 2;
        let seen = self.end(side).since(shot.marks[side as usize]);
        let last: Vec<_> = seen.iter().rev().take(SHOWN).map(ToString::to_string).collect();
        if last.is_empty() { "nothing came".to_owned() } else { format!("came: {}", last.join("; ")) }
    }

    /// A packet that opens a mapping of the transport, with its mark or number in it, and what finds it again.
    pub(crate) fn opener(&self, transport: Transport, from: Endpoint, to: Endpoint) -> (PacketBuilder, Opened) {
        match transport {
            Transport::Udp => {
                let mark = self.mark();
                (PacketBuilder::udp(from, to).payload(&mark), Opened::Marked(mark))
            }
            Transport::Tcp => {
                let number = self.number();
                self.syns.lock().unwrap_or_else(PoisonError::into_inner).insert((ends(from), ends(to)), number);
                (PacketBuilder::tcp(from, to, SYN).numbers(number, 0), Opened::Numbered(number))
            }
            Transport::Icmp => {
                let mark = self.mark();
                let packet = PacketBuilder::query(from.address, to.address, Query::Echo, from.port).payload(&mark);
                (packet, Opened::Marked(mark))
            }
        }
    }

    /// Opens a mapping, and gives the external endpoint that the remote sees. Violated when nothing comes.
    pub(crate) fn open(&self, transport: Transport, from: Endpoint, to: Endpoint) -> Check<Endpoint> {
        self.opened(transport, from, to).map(|seen| seen.from())
    }

    /// The same, and gives the whole datagram as the remote sees it.
    pub(crate) fn opened(&self, transport: Transport, from: Endpoint, to: Endpoint) -> Check<Datagram> {
        let (packet, opened) = self.opener(transport, from, to);
        self.leaves(&packet, |datagram| opened.is(datagram))
    }

    /// The sequence number that an answer to the host's last SYN acknowledges.
    fn acknowledges(&self, host: Endpoint, remote: Endpoint) -> u32 {
        let syns = self.syns.lock().unwrap_or_else(PoisonError::into_inner);
        syns.get(&(ends(host), ends(remote))).map_or(1, |number| number.wrapping_add(1))
    }

    /// Sends a packet of a host that has to leave with an external source. Gives it as the remote sees it.
    pub(crate) fn leaves(&self, packet: &PacketBuilder, wanted: impl Fn(&Datagram) -> bool) -> Check<Datagram> {
        let shot = self.send(Side::Inside, packet)?;
        let seen = self.expect(&shot, Side::Outside, "the same, translated", wanted)?;
        require!(
            self.setup.pool().contains(&seen.source()) || seen.source() == plan::NAT_OUTSIDE,
            "{}; expected a source of the NAT; came: {seen}",
            shot.sent()
        );
        Ok(seen)
    }

    /// A packet from a remote to an external endpoint: of TCP a SYN, of ICMP an echo reply.
    pub(crate) fn inbound(&self, transport: Transport, from: Endpoint, to: Endpoint) -> (PacketBuilder, Opened) {
        match transport {
            Transport::Icmp => {
                let mark = self.mark();
                let packet = PacketBuilder::query(from.address, to.address, Query::EchoReply, to.port).payload(&mark);
                (packet, Opened::Marked(mark))
            }
            _ => self.opener(transport, from, to),
        }
    }

    /// Whether a packet from a remote to an external endpoint comes to the host, and how it looks there.
    pub(crate) fn enters(
        &self,
        transport: Transport,
        from: Endpoint,
        external: Endpoint,
        within: Duration,
    ) -> Check<Option<Datagram>> {
        let (packet, opened) = self.inbound(transport, from, external);
        let shot = self.send(Side::Outside, &packet)?;
        Ok(self.seen(&shot, Side::Inside, within, |datagram| opened.is(datagram)).map(|seen| Datagram::clone(&seen)))
    }

    /// Sends a datagram from a remote, and the row is violated unless the host gets it as it should.
    pub(crate) fn reply(&self, transport: Transport, from: Endpoint, external: Endpoint, host: Endpoint, when: &str) -> Check<()> {
        let (packet, opened) = match transport {
            Transport::Tcp => {
                let number = self.number();
                let packet = PacketBuilder::tcp(from, external, SYN | ACK).numbers(number, self.acknowledges(host, from));
                (packet, Opened::Numbered(number))
            }
            _ => self.inbound(transport, from, external),
        };
        let shot = self.send(Side::Outside, &packet)?;
        let what = format!("the same to {}:{} {when}", host.address, host.port);
        self.expect(&shot, Side::Inside, &what, |datagram| {
            opened.is(datagram) && datagram.destination() == host.address && datagram.to().port == host.port
        })?;
        Ok(())
    }

    /// Sleeps until `at` has passed since `start`.
    pub(crate) fn sleep_until(start: Instant, at: Duration) {
        if let Some(left) = at.checked_sub(start.elapsed()) {
            thread::sleep(left);
        }
    }

    /// A row that this setup cannot say anything about.
    pub(crate) fn not_testable<T>(why: impl Into<String>) -> Check<T> {
        Err(Trouble::NotTestable(why.into()))
    }
}

/// An endpoint as a key.
type Ends = (Ipv4Addr, u16);

const fn ends(endpoint: Endpoint) -> Ends {
    (endpoint.address, endpoint.port)
}

/// What a packet is known by on the other side.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Opened {
    /// The mark in its payload.
    Marked(Mark),
    /// TCP's sequence number.
    Numbered(u32),
}

impl Opened {
    /// Whether this is the packet, and no error that quotes it.
    pub(crate) fn is(self, datagram: &Datagram) -> bool {
        match self {
            Self::Marked(mark) => matches!(datagram.protocol(), UDP | ICMP) && !datagram.is_error() && datagram.contains(&mark),
            Self::Numbered(number) => datagram.protocol() == TCP && datagram.sequence() == number,
        }
    }
}

fn marked(kind: [u8; 3], number: u32) -> Mark {
    let mut mark = [0xE7; 8];
    mark[..3].copy_from_slice(&kind);
    mark[4..].copy_from_slice(&number.to_be_bytes());
    mark
}
