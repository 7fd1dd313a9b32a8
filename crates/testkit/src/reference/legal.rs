//! Everything that may rightly become of one packet, and whether what the NAT did is among it.
//!
//! Knows verdicts and bytes; the rules that fill it are in the files beside. An empty set of drops means that dropping is wrong.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{DeviceId, Interface, InterfaceId, Mac};
use portcullis_nat::verdict::{DropReason, Verdict};

use super::Outcome;
use super::read::{Datagram, Link, Transport, word};
use super::rewrite::Expected;
use super::tables::Effect;
use crate::builder::checksum::verifies;

/// An ICMP error that the gateway sends back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) mtu: u16,
}

/// How sure it is that a failure is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Silent,
    Perhaps(Reply),
    Due(Reply),
}

/// Why a packet is not forwarded.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) reasons: Vec<DropReason>,
    pub(super) answer: Answer,
    /// Whether it rules out that the packet is forwarded. Otherwise it depends on what the NAT has not swept yet, or on its choice.
    pub(super) certain: bool,
}

impl Failure {
    pub(super) fn silent(reason: DropReason) -> Self {
        Self { reasons: vec![reason], answer: Answer::Silent, certain: true }
    }
}

/// The gateway's limit on its own ICMP errors, as far as the reference follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limiter {
    /// Sends none.
    Off,
    /// May be empty: a missing answer is no disagreement.
    MayBeEmpty,
    /// So large that every answer is due.
    Ample,
}

/// The way out.
#[derive(Clone, Debug)]
pub(super) struct Egress {
    pub(super) interface: InterfaceId,
    pub(super) device: DeviceId,
    pub(super) vlan: Option<u16>,
    pub(super) mac: Mac,
    pub(super) next_hop: Ipv4Addr,
    pub(super) neighbour: Option<Mac>,
    pub(super) mtu: u16,
    /// The MTU, where the datagram has to be split for it.
    pub(super) split: Option<u16>,
}

/// One way to forward the packet.
#[derive(Clone, Debug)]
pub(super) struct Forward {
    pub(super) outcome: Outcome,
    pub(super) expected: Expected,
    pub(super) egress: Egress,
    pub(super) effects: Vec<Effect>,
}

/// All that may become of a packet.
#[derive(Clone, Debug, Default)]
pub(super) struct Legal {
    pub(super) drops: Vec<DropReason>,
    pub(super) replies: Vec<Reply>,
    pub(super) punt: bool,
    pub(super) forwards: Vec<Forward>,
    /// What a drop late on the way may have done to existing sessions.
    pub(super) perhaps: Vec<Effect>,
    /// Whether it may wait for the first fragment of its datagram.
    pub(super) awaits: bool,
    /// What is left behind when the packet goes no further: the outbound half of a hairpin, one entry for each external endpoint that
    /// it may have been given (see `halves`).
    pub(super) kept: Vec<Effect>,
    /// Reasons, and answers, that may have come before even that, and whether the box may have been left the packet then.
    pub(super) before_kept: (Vec<DropReason>, Vec<Reply>, bool),
    /// Why what the NAT seems to have chosen is not legal, for the message.
    pub(super) complaints: Vec<String>,
}

impl Legal {
    pub(super) fn dropped(reasons: impl IntoIterator<Item = DropReason>) -> Self {
        Self { drops: reasons.into_iter().collect(), ..Self::default() }
    }

    /// Adds a failure: the drop, the answer, or both. `answerable` says whether the packet is one that ICMP errors are sent about.
    pub(super) fn add(&mut self, failure: &Failure, answerable: bool, limiter: Limiter) {
        let answer = if answerable && limiter != Limiter::Off { failure.answer } else { Answer::Silent };
        match answer {
            Answer::Silent => self.drops.extend(&failure.reasons),
            Answer::Due(reply) if limiter == Limiter::Ample => self.replies.push(reply),
            Answer::Due(reply) | Answer::Perhaps(reply) => {
                self.replies.push(reply);
                self.drops.extend(&failure.reasons);
            }
        }
    }
}

/// Whether the gateway sends ICMP errors about a packet: RFC 1812, section 4.3.2.7, never about an ICMP error, a later fragment, or
/// what was not addressed to one host.
pub(super) fn is_answerable(datagram: &Datagram) -> bool {
    let is_later = datagram.offset > 0;
    let strange = matches!(datagram.transport, Transport::Error { .. } | Transport::Unsupported(_) | Transport::Unreadable);
    !is_later && !strange
}

/// What was received, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    pub(super) frame: &'a [u8],
    pub(super) link: Link,
    pub(super) datagram: &'a Datagram,
    pub(super) interface: &'a Interface,
}

/// Checks that `seen` is the ICMP error `reply` about what was received: to its sender, over the interface that it came from, from
/// that interface's primary address, with the datagram as it was received (RFC 1812, section 4.3.2).
pub(super) fn check_reply(received: Received<'_>, reply: Reply, seen: &[u8]) -> Result<(), String> {
    let interface = received.interface;
    check_link(seen, received.link.source, interface.mac, interface.vlan)?;
    let at = if interface.vlan.is_some() { 18 } else { 14 };
    let ip = seen.get(at..).filter(|ip| ip.len() >= 28 && ip[0] == 0x45).ok_or("no plain IPv4 header with ICMP behind it")?;
    let total = usize::from(word(ip, 2));
    if total > ip.len() || total < 28 || !verifies(&[&ip[..20]]) {
        return Err("its IPv4 header is wrong".to_owned());
    }
    if total < ip.len() && at + total >= 60 {
        return Err(format!("{} bytes trail it", ip.len() - total));
    }
    if ip[9] != 1 || word(ip, 6) & 0x3FFF != 0 || ip[8] < 32 {
        return Err("its protocol, fragment fields or TTL are not an ICMP error's".to_owned());
    }
    let primary = interface.addresses.first().map(ipnet::Ipv4Net::addr);
    let ends = (super::read::address(ip, 12), super::read::address(ip, 16));
    if (primary, received.datagram.source) != (Some(ends.0), ends.1) {
        return Err(format!("it goes from {} to {}, not from {primary:?} to {}", ends.0, ends.1, received.datagram.source));
    }
    let message = &ip[20..total];
    if !verifies(&[message]) {
        return Err("its ICMP checksum is wrong".to_owned());
    }
    if (message[0], message[1]) != (reply.kind, reply.code) || word(message, 6) != reply.mtu || word(message, 4) != 0 {
        return Err(format!("it is {}/{} with {:02x?}, not {reply:?}", message[0], message[1], &message[4..8]));
    }
    check_quote(received.datagram, &message[8..], total)
}

/// RFC 1812, section 4.3.2.3: "as much of the original datagram as possible without the length exceeding 576 bytes"; at least RFC
/// 792's header and eight bytes.
fn check_quote(datagram: &Datagram, quote: &[u8], total: usize) -> Result<(), String> {
    let least = datagram.bytes.len().min(datagram.header_len + 8);
    if quote.len() < least || total > 576 {
        return Err(format!("it quotes {} bytes in {total}", quote.len()));
    }
    if !datagram.bytes.starts_with(quote) {
        return Err("it does not quote the datagram as received".to_owned());
    }
    Ok(())
}

fn check_link(seen: &[u8], destination: Mac, source: Mac, vlan: Option<u16>) -> Result<(), String> {
    let (kind_at, tag) = if vlan.is_some() { (16, 14) } else { (12, 12) };
    if seen.len() < kind_at + 2 {
        return Err("no whole link-layer header".to_owned());
    }
    if seen[..6] != destination || seen[6..12] != source {
        return Err(format!("link-layer addresses {:02x?}, not to {destination:02x?} from {source:02x?}", &seen[..12]));
    }
    let tagged = vlan.is_none_or(|vlan| word(seen, 12) == 0x8100 && word(seen, tag) & 0x0FFF == vlan);
    if !tagged || word(seen, kind_at) != 0x0800 {
        return Err(format!("link-layer type or tag {:02x?}, not VLAN {vlan:?}", &seen[12..kind_at + 2]));
    }
    Ok(())
}

impl Forward {
    /// Checks that the verdict and the bytes are this way to forward what was received.
    pub(super) fn check(&self, received: Received<'_>, verdict: Verdict, seen: &[u8]) -> Result<(), String> {
        let wanted = match (self.egress.neighbour, self.egress.split) {
            (None, _) => Verdict::Hold { interface: self.egress.interface, next_hop: self.egress.next_hop },
            (Some(_), Some(mtu)) => Verdict::Fragment { device: self.egress.device, mtu },
            (Some(_), None) => Verdict::Transmit(self.egress.device),
        };
        let split_later = self.egress.split.is_some() && matches!(verdict, Verdict::Fragment { .. });
        if verdict != wanted && !(self.egress.neighbour.is_none() && split_later) {
            return Err(format!("the verdict should be {wanted:?}"));
        }
        let at = match self.egress.neighbour {
            Some(mac) => {
                check_link(seen, mac, self.egress.mac, self.egress.vlan)?;
                if self.egress.vlan.is_some() { 18 } else { 14 }
            }
            None if seen.get(12..14) == Some(&[0x81, 0]) => 18,
            None => 14,
        };
        let ip = seen.get(at..).ok_or("no IPv4 datagram")?;
        if let Some(difference) = self.expected.difference(ip) {
            return Err(difference);
        }
        let padding = &received.frame[received.link.len + received.datagram.bytes.len()..];
        let tail = &ip[self.expected.bytes.len()..];
        if tail.is_empty() || padding.starts_with(tail) || tail.iter().all(|&byte| byte == 0) {
            Ok(())
        } else {
            Err(format!("{} bytes trail the datagram that were not received behind it", tail.len()))
        }
    }
}
