//! Out of the box: whether a packet fits the next link, and its link-layer header.
//!
//! Knows a path and a packet. Called at the end of every way. Invariant: what has a verdict to be transmitted has its next hop's
//! link-layer address. Sources: RFC 1812 section 4.2.2.7 and 5.3.1, RFC 1191, RFC 4787 REQ-13.

use core::net::Ipv4Addr;

use portcullis_wire::packet::Layout;
use portcullis_wire::{ethernet, ipv4};

use crate::packet::Packet;
use crate::path::{Path, Paths, Whereabouts};
use crate::policy::{Network, Side};
use crate::refusal::{Answer, Refusal, no_route};
use crate::verdict::{DropReason, Verdict};

/// The path towards an address on the side that it has to be on.
pub(crate) fn path_towards(paths: &mut Paths, network: &Network, address: Ipv4Addr, side: Side) -> Result<Path, Refusal> {
    match *paths.towards(network, address) {
        Whereabouts::Via(path) if path.side != side => Err(Refusal::Drop(DropReason::WrongSide)),
        Whereabouts::Via(path) if !path.up => Err(Refusal::Drop(DropReason::InterfaceDown)),
        Whereabouts::Via(path) => Ok(path),
        Whereabouts::Local | Whereabouts::Elsewhere => Err(Refusal::Drop(DropReason::WrongSide)),
        Whereabouts::Nowhere => Err(no_route()),
    }
}

/// Checks that the TTL lasts beyond this hop. "If the TTL is reduced to zero [...], the packet MUST be discarded" (RFC 1812, 5.3.1).
pub(crate) fn check_ttl(frame: &[u8], layout: &Layout) -> Result<(), Refusal> {
    match layout.ipv4(frame) {
        Some(header) if header.ttl() > 1 => Ok(()),
        _ => Err(Refusal::Answer(DropReason::TtlExpired, Answer::TimeExceeded)),
    }
}

/// Checks that the datagram fits the path's MTU, or may be split, and that the frame has room for a tag that is to be added.
pub(crate) fn check_fit(packet: &Packet<'_>, layout: &Layout, path: &Path) -> Result<(), Refusal> {
    let adds_tag = path.vlan.is_some() && layout.l3() == ethernet::HEADER_LEN;
    if adds_tag && packet.buffer.len() - packet.len < ethernet::TAG_LEN {
        return Err(Refusal::Drop(DropReason::NoFrame));
    }
    let may_be_split = layout.ipv4(packet.frame()).is_some_and(|header| !header.dont_fragment());
    if layout.datagram_len() <= usize::from(path.mtu) || may_be_split {
        return Ok(());
    }
    Err(Refusal::Answer(DropReason::TooBig, Answer::FragmentationNeeded(path.mtu)))
}

/// Gives the packet the link-layer header of the path. **Errors:** none with a packet that has no room for it.
pub(crate) fn by(packet: &mut Packet<'_>, path: &Path) -> Option<Verdict> {
    let Some(next_hop_mac) = path.next_hop_mac else {
        return Some(Verdict::Hold { interface: path.interface, next_hop: path.next_hop });
    };
    // Link-layer padding stays: who splits a datagram goes by its own length.
    let len = ethernet::write_header(packet.buffer, packet.len, path.vlan, next_hop_mac, path.source_mac).ok()?;
    packet.len = len;
    let link = ethernet::link(packet.frame())?;
    let datagram_len = ipv4::Ipv4Header::from_prefix(packet.frame().get(link.header_len..)?)?.total_len();
    Some(if datagram_len <= path.mtu {
        Verdict::Transmit(path.device)
    } else {
        Verdict::Fragment { device: path.device, mtu: path.mtu }
    })
}
