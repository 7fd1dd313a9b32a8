//! Turns symbolic steps into frames, from what has come out of the NAT so far.
//!
//! Knows the world and the builder; reads outputs with the reference's own parser. A step that refers to something when there is
//! nothing yet gives no frame.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{DeviceId, Endpoint, Forward, Mac, Policy, Protocol};
use portcullis_nat::time::Tick;
use proptest::sample::Index;

use super::steps::{Kind, Sender, Step, Target, Trim};
use super::world::{FIRST_PORT, HOSTS, MACS, POOL, REMOTES, forwards, mac_of};
use crate::builder::{
    Checksum, PacketBuilder,
    checksum::{covered, internet, sum},
};
use crate::fleet::Fleet;
use crate::reference::read::{DCCP, Datagram, Transport, UDP_LITE, read, word};

/// Addresses that are nobody's, or the box's own, or not the sender's to use.
pub const ODD: [Ipv4Addr; 12] = [
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::new(224, 0, 0, 5),
    Ipv4Addr::new(240, 0, 0, 1),
    Ipv4Addr::BROADCAST,
    Ipv4Addr::new(10, 0, 0, 1),
    Ipv4Addr::new(198, 51, 100, 2),
    Ipv4Addr::new(10, 0, 7, 200),
    Ipv4Addr::new(10, 0, 0, 12),
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(192, 0, 2, 10),
    Ipv4Addr::new(172, 16, 0, 1),
];

/// A frame that the NAT received.
#[derive(Clone, Debug)]
pub struct Received {
    /// From where.
    pub device: DeviceId,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// A frame that the NAT forwarded.
#[derive(Clone, Debug)]
pub struct Forwarded {
    /// To where.
    pub device: DeviceId,
    /// The frame.
    pub bytes: Vec<u8>,
    /// What it came in as.
    pub input: Received,
}

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// What came in, the latest last.
    pub received: Vec<Received>,
    /// What went out, the latest last.
    pub forwarded: Vec<Forwarded>,
    /// External endpoints that packets are aimed at: see [`Stage::aim`].
    pub externals: Vec<Endpoint>,
    /// External endpoints that UDP forwards have now: with bare mappings these change.
    pub forwards: Vec<Endpoint>,
    /// Whether out0 is tagged.
    pub tagged: bool,
}

fn pick<T>(index: Index, from: &[T]) -> Option<&T> {
    (!from.is_empty()).then(|| index.get(from))
}

impl Stage {
    /// Takes aim at the external endpoints that sessions and bare mappings have, and at the UDP forwards.
    pub fn aim(&mut self, nat: &Fleet<'_>, policy: &Policy, now: Tick) {
        self.externals = nat.sessions(now).iter().map(|view| view.external).collect();
        self.externals.extend(nat.bare_externals(now));
        let udp = policy.forwards.iter().filter(|forward| forward.protocol == Protocol::Udp);
        let external = |forward: &Forward| policy.externals[forward.external].address.map(|address| (address, forward.first));
        self.forwards = udp.filter_map(external).map(|(address, port)| Endpoint { address, port }).collect();
    }

    /// The frames of a step, in order; none for steps that send nothing.
    pub fn frames(&self, step: &Step) -> Vec<Received> {
        match step {
            Step::Send { sender, port, target, kind, trim } => self.send(sender, *port, target, *kind, trim).unwrap_or_default(),
            Step::Again { of, latest, flags, .. } => self.again(*of, *latest, *flags).into_iter().collect(),
            Step::Zero(of) => self.zero(*of).into_iter().collect(),
            Step::Answer(of, kind, trim) => self.answer(*of, *kind, trim).unwrap_or_default(),
            Step::Complain { .. } => self.complain(step).unwrap_or_default(),
            Step::Mutate(step, changes, repair) => {
                let mut frames = self.frames(step);
                for frame in &mut frames {
                    mutate(&mut frame.bytes, changes, *repair);
                }
                frames
            }
            Step::Raw(device, bytes) => vec![Received { device: DeviceId(*device), bytes: bytes.clone() }],
            _ => Vec::new(),
        }
    }

    fn vlan(&self, interface: usize) -> Option<u16> {
        match interface {
            1 => Some(7),
            2 => self.tagged.then_some(100),
            _ => None,
        }
    }

    fn device(interface: usize) -> DeviceId {
        DeviceId([0, 0, 1, 2][interface])
    }

    fn send(&self, sender: &Sender, port: u16, target: &Target, kind: Kind, trim: &Trim) -> Option<Vec<Received>> {
        let (address, interface) = match sender {
            Sender::Host(index) => *index.get(&HOSTS),
            Sender::Remote(index) => *index.get(&REMOTES[..4]),
            Sender::Odd { inside, address } => (*address.get(&ODD), if *inside { 0 } else { 2 }),
        };
        let destination = self.target(target)?;
        let source = Endpoint { address, port };
        let mac = mac_of(address);
        let packet = packet(source, destination, kind).payload_len(trim.payload).checksum(trim.checksum);
        Some(self.finish(packet, interface, mac, trim))
    }

    fn target(&self, target: &Target) -> Option<Endpoint> {
        let at = |address, port| Some(Endpoint { address, port });
        match target {
            Target::Remote(index, port) => at(index.get(&REMOTES).0, *port),
            Target::Known(index) => pick(*index, &self.externals).copied(),
            Target::Forward(index) => {
                let forward = index.get(&forwards()).clone();
                at(POOL[forward.external], forward.last)
            }
            Target::CurrentForward(index) => pick(*index, &self.forwards).copied(),
            Target::Guess(index, nth) => at(*index.get(&POOL), FIRST_PORT + nth),
            Target::Host(index, port) => at(index.get(&HOSTS).0, *port),
            Target::Odd(index) => at(*index.get(&ODD), 53),
        }
    }

    /// Trims a packet, cuts it where wanted, and puts it on an interface's wire.
    fn finish(&self, packet: PacketBuilder, interface: usize, mac: Mac, trim: &Trim) -> Vec<Received> {
        // A route's length and pointer are no business of who only asks whether there is one; 3 is a length that others may have.
        let (len, kind) = trim.options;
        let options: Vec<_> = [kind, 3].into_iter().chain(std::iter::repeat(1)).take(len).collect();
        let to = if trim.for_us { MACS[interface] } else { [2, 0, 0, 0, 0, 0x99] };
        let packet = packet
            .mac(mac, to)
            .vlan(self.vlan(interface))
            .ttl(trim.ttl)
            .tos(trim.tos)
            .dont_fragment(trim.dont_fragment)
            .options(&options)
            .id(trim.id)
            .trailer(trim.trailer);
        let payload = packet.datagram().len() - 20 - len.next_multiple_of(4);
        let mut frames = match trim.pieces {
            Some((pieces, rotate)) if payload >= 48 => {
                let mut frames = packet.fragments((payload / pieces).next_multiple_of(8).max(24));
                let by = rotate % frames.len();
                frames.rotate_left(by);
                frames
            }
            _ => vec![packet.build()],
        };
        frames.drain(..).map(|bytes| Received { device: Self::device(interface), bytes }).collect()
    }

    fn again(&self, of: Index, latest: bool, flags: u8) -> Option<Received> {
        let start = if latest { self.received.len().saturating_sub(8) } else { 0 };
        let mut frame = pick(of, &self.received[start..])?.clone();
        let reading = read(&frame.bytes);
        if let (Some(link), Some(datagram)) = (reading.link, &reading.datagram)
            && let Transport::Ports { protocol: Protocol::Tcp, .. } = datagram.transport
        {
            frame.bytes[link.len + datagram.header_len + 13] = flags;
        }
        Some(frame)
    }

    /// Adds the checksum that a packet had when it came out to its first word of payload, so that the next will have none left; its
    /// own checksum stays right.
    fn zero(&self, of: Index) -> Option<Received> {
        let sent = pick(of, &self.forwarded)?;
        let mut frame = sent.input.clone();
        let (before, after) = (read(&frame.bytes), read(&sent.bytes));
        let (link, datagram, out) = (before.link?, before.datagram?, after.datagram?);
        let (field, payload) = match datagram.transport {
            Transport::Ports { protocol: Protocol::Udp, .. } => (6, 8),
            // The word behind the first is covered where all is.
            Transport::Other if covers_all(&datagram) => (6, if datagram.protocol == DCCP { 16 } else { 8 }),
            Transport::Ports { .. } => (16, usize::from(datagram.bytes[datagram.header_len + 12] >> 4) * 4),
            _ => return None,
        };
        if datagram.bytes.len() < datagram.header_len + payload + 2 || word(&datagram.bytes, datagram.header_len + field) == 0 {
            return None;
        }
        let left = word(&out.bytes, out.header_len + field);
        let segment = link.len + datagram.header_len;
        for (at, by) in [(segment + payload, left), (segment + field, !left)] {
            let value = sum(&[&frame.bytes[at..at + 2], &by.to_be_bytes()]);
            frame.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        Some(frame)
    }

    /// A packet that came out, with the interface that it went out by.
    fn delivered(&self, of: Index) -> Option<(Datagram, usize, Mac)> {
        let frame = pick(of, &self.forwarded)?;
        let reading = read(&frame.bytes);
        let link = reading.link?;
        let interface = match (frame.device.0, link.vlan()) {
            (0, None) => 0,
            (0, _) => 1,
            (1, _) => 2,
            _ => 3,
        };
        Some((reading.datagram?, interface, link.destination))
    }

    fn answer(&self, of: Index, kind: Kind, trim: &Trim) -> Option<Vec<Received>> {
        let (datagram, interface, mac) = self.delivered(of)?;
        let (source, destination) = (datagram.source, datagram.destination);
        let at = |address, port| Endpoint { address, port };
        let packet = match datagram.transport {
            Transport::Ports { protocol, source: from, destination: to, .. } => {
                let kind = match (protocol, kind) {
                    (Protocol::Udp, _) => Kind::Udp,
                    (_, Kind::Tcp(flags)) => Kind::Tcp(flags),
                    _ => Kind::Tcp(crate::builder::SYN | crate::builder::ACK),
                };
                packet(at(destination, to), at(source, from), kind)
            }
            Transport::Query { id, .. } => {
                let query = match datagram.bytes[datagram.header_len] {
                    13 => crate::builder::Query::TimestampReply,
                    8 => crate::builder::Query::EchoReply,
                    _ => crate::builder::Query::Echo,
                };
                packet(at(destination, id), at(source, id), Kind::Query(query))
            }
            Transport::Other => packet(at(destination, 1000), at(source, 1001), other_kind(&datagram)),
            _ => return None,
        };
        Some(self.finish(packet.payload_len(trim.payload).checksum(trim.checksum), interface, mac, trim))
    }

    fn complain(&self, step: &Step) -> Option<Vec<Received>> {
        let Step::Complain { of, kind, router, quote, extension, corrupt, trim } = step else { return None };
        let (datagram, interface, mac) = self.delivered(*of)?;
        let from = match (*router, interface) {
            (false, _) => datagram.destination,
            (true, 0) => Ipv4Addr::new(10, 0, 0, 254),
            (true, 1) => Ipv4Addr::new(10, 0, 7, 14),
            (true, _) => Ipv4Addr::new(192, 0, 2, 254),
        };
        let mut packet = PacketBuilder::icmp_error(from, datagram.source, kind.0, kind.1, &datagram.bytes).quote(*quote);
        if *kind == (3, 4) {
            packet = packet.next_hop_mtu(1300);
        }
        if *extension {
            packet = packet.extension(&[0, 8, 1, 1, 0, 1, 2, 3]);
        }
        if *corrupt {
            packet = packet.checksum(Checksum::Wrong(7));
        }
        let trim = Trim { pieces: None, ..trim.clone() };
        Some(self.finish(packet, interface, mac, &trim))
    }
}

/// The protocol of a datagram of one without ports, with a checksum where it has one over the addresses.
fn other_kind(datagram: &Datagram) -> Kind {
    match datagram.protocol {
        UDP_LITE => Kind::UdpLite(0),
        DCCP => Kind::Dccp(0),
        other => Kind::Other(other),
    }
}

/// Whether a datagram is a whole one, of UDP-Lite or DCCP, whose checksum leaves nothing out.
fn covers_all(datagram: &Datagram) -> bool {
    let segment = &datagram.bytes[datagram.header_len..];
    let is_whole = !datagram.more_fragments && datagram.offset == 0;
    let sums = matches!(datagram.protocol, UDP_LITE | DCCP);
    is_whole && sums && segment.len() >= 8 && covered(datagram.protocol, segment) == Some(segment.len())
}

/// A plain answer to a frame, on the wire that it went over: addresses, ports and link-layer addresses reversed. None to what is
/// a fragment, an ICMP error or cannot be read. TCP is answered with a SYN and ACK.
pub fn answered(frame: &[u8]) -> Option<Vec<u8>> {
    let reading = read(frame);
    let (link, datagram) = (reading.link?, reading.datagram?);
    let at = |address, port| Endpoint { address, port };
    let (from, to, kind) = match datagram.transport {
        Transport::Ports { protocol, source, destination, .. } => {
            let tcp = Kind::Tcp(crate::builder::SYN | crate::builder::ACK);
            let kind = if protocol == Protocol::Tcp { tcp } else { Kind::Udp };
            (at(datagram.destination, destination), at(datagram.source, source), kind)
        }
        Transport::Query { id, request: true } => {
            let kind = Kind::Query(crate::builder::Query::EchoReply);
            (at(datagram.destination, id), at(datagram.source, id), kind)
        }
        Transport::Other if datagram.offset == 0 => {
            (at(datagram.destination, 1000), at(datagram.source, 1000), other_kind(&datagram))
        }
        _ => return None,
    };
    let packet = packet(from, to, kind).mac(link.destination, link.source).vlan(link.vlan());
    let packet = if let Kind::Other(_) = kind { packet.payload_len(8) } else { packet };
    (!datagram.more_fragments).then(|| packet.build())
}

fn packet(source: Endpoint, destination: Endpoint, kind: Kind) -> PacketBuilder {
    match kind {
        Kind::Udp => PacketBuilder::udp(source, destination),
        Kind::Tcp(flags) => PacketBuilder::tcp(source, destination, flags).tcp_options(announcement(flags)),
        Kind::Query(query) => {
            let id = if destination.port >= FIRST_PORT { destination.port } else { source.port };
            PacketBuilder::query(source.address, destination.address, query, id)
        }
        Kind::UdpLite(coverage) => PacketBuilder::udp_lite(source, destination, coverage),
        Kind::Dccp(coverage) => PacketBuilder::dccp(source, destination, coverage),
        Kind::Other(protocol) => PacketBuilder::raw(source.address, destination.address, protocol),
        Kind::OtherIcmp(kind) => PacketBuilder::icmp(source.address, destination.address, kind, 0, [0; 4]),
    }
}

/// TCP's options: a maximum segment size of 1460, where one belongs and elsewhere, at an even offset and at an odd one.
fn announcement(flags: u8) -> &'static [u8] {
    match flags {
        crate::builder::SYN => &[2, 4, 5, 0xB4],
        flags if flags & crate::builder::SYN != 0 => &[1, 2, 4, 5, 0xB4],
        flags if flags % 3 == 0 => &[2, 4, 5, 0xB4],
        _ => &[],
    }
}

/// Changes bytes; `repair` makes the IPv4 header's checksum right again, so that the change gets past it.
fn mutate(bytes: &mut [u8], changes: &[(Index, u8)], repair: bool) {
    if bytes.is_empty() {
        return;
    }
    for (at, by) in changes {
        let at = at.index(bytes.len());
        bytes[at] ^= by;
    }
    let at = if bytes.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let len = bytes.get(at).map_or(0, |first| usize::from(first & 15) * 4);
    if repair && len >= 20 && bytes.len() >= at + len {
        bytes[at + 10..at + 12].fill(0);
        let value = internet(&[&bytes[at..at + len]]);
        bytes[at + 10..at + 12].copy_from_slice(&value.to_be_bytes());
    }
}
