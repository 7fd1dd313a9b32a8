//! Steps 2 and 3: where a packet came in, whether it may, and what it is.
//!
//! Knows the network snapshot and the external addresses, no sessions. Called first for every packet. Invariant: whatever passes has a
//! source that may be behind the interface that it came by. Sources: RFC 1812 section 5.3.7 and 5.3.8, RFC 2827, RFC 3704
//! (strict), RFC 7126.

use core::net::Ipv4Addr;

use portcullis_wire::ethernet::{self, EthernetHeader};
use portcullis_wire::ipv4::{self, may_be_host};
use portcullis_wire::packet::{self, Layout, ParseError};

use crate::adjacency::Adjacency;
use crate::counters::{Counter, Counters};
use crate::packet::Packet;
use crate::path::{Paths, Whereabouts};
use crate::policy::{DeviceId, Interface, InterfaceId, Network, Side};
use crate::state::State;
use crate::verdict::DropReason;

/// A packet that may be looked at further.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) layout: Layout,
    pub(crate) interface: InterfaceId,
    pub(crate) side: Side,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
}

impl From<ParseError> for DropReason {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Truncated => Self::Truncated,
            ParseError::NotIpv4 => Self::NotIpv4,
            ParseError::UnsupportedVlan => Self::UnknownInterface,
            ParseError::BadIpHeader => Self::BadIpHeader,
            ParseError::BadTransportHeader => Self::BadTransportHeader,
            ParseError::BadTcpFlags => Self::BadTcpFlags,
        }
    }
}

/// Reads a packet from `device`, counts it if it is new, and checks that it may be here.
#[inline]
pub(crate) fn read(
    packet: &Packet<'_>,
    device: DeviceId,
    network: &Network,
    counters: &mut Counters,
) -> Result<Arrival, DropReason> {
    let frame = packet.frame();
    let link = ethernet::link(frame).ok_or(DropReason::Truncated)?;
    let interface = network.interface_of(device, link.vlan).ok_or(DropReason::UnknownInterface)?;
    let configured = &network.interfaces[usize::from(interface.0)];
    if packet.is_new() {
        count_received(configured.side, frame.len(), counters);
    }
    let layout = packet::parse(frame)?;
    if EthernetHeader::from_prefix(frame).is_none_or(|header| header.dst != configured.mac) {
        return Err(DropReason::NotForUs);
    }
    // RFC 7126, sections 4.3 and 4.4: a source route leads around filters, and a router drops it unless it is told otherwise.
    if ipv4::has_source_route(ipv4::options(&frame[link.header_len..])) {
        return Err(DropReason::SourceRouted);
    }
    let header = layout.ipv4(frame).ok_or(DropReason::Truncated)?;
    Ok(Arrival { layout, interface, side: configured.side, source: header.src(), destination: header.dst() })
}

fn count_received(side: Side, bytes: usize, counters: &mut Counters) {
    let (packets, octets) = match side {
        Side::Inside => (Counter::InsideReceived, Counter::InsideReceivedBytes),
        Side::Outside => (Counter::OutsideReceived, Counter::OutsideReceivedBytes),
    };
    counters.count(packets);
    counters.add(octets, bytes as u64);
}

/// Checks both addresses: no martians, and a source that is routed to where the packet came from.
#[inline]
pub(crate) fn check_addresses(
    arrival: &Arrival,
    network: &Network,
    paths: &mut Paths,
    state: &State<'_>,
) -> Result<(), DropReason> {
    if !may_be_host(arrival.source) {
        return Err(DropReason::MartianSource);
    }
    if !may_be_host(arrival.destination) {
        return Err(DropReason::MartianDestination);
    }
    let is_external = state.slot_of(arrival.source).is_some();
    let interface = &network.interfaces[usize::from(arrival.interface.0)];
    let may_be_here = match (arrival.side, paths.towards(network, arrival.source)) {
        (Side::Inside, Whereabouts::Via(path)) => path.interface == arrival.interface && is_configured(interface, arrival.source),
        (Side::Inside, _) | (Side::Outside, Whereabouts::Local) => false,
        (Side::Outside, Whereabouts::Via(path)) => path.side == Side::Outside,
        // What comes from where no route leads cannot be answered, but is nobody's of the inside either.
        (Side::Outside, Whereabouts::Elsewhere | Whereabouts::Nowhere) => true,
    };
    match arrival.side {
        _ if may_be_here && !is_external => Ok(()),
        Side::Inside => Err(DropReason::SpoofedInside),
        Side::Outside => Err(DropReason::SpoofedOutside),
    }
}

/// By which adjacencies packets go between an internal and a remote address, where both are what [`check_addresses`] asks for in both
/// directions, and packets can be sent both ways as they are.
pub(crate) fn adjacencies_between(
    internal: Ipv4Addr,
    remote: Ipv4Addr,
    network: &Network,
    paths: &mut Paths,
    state: &State<'_>,
) -> Option<(Adjacency, Adjacency)> {
    let mut adjacency = |address, side| adjacency_of(address, side, network, paths, state);
    Some((adjacency(internal, Side::Inside)?, adjacency(remote, Side::Outside)?))
}

/// By which adjacency packets go to an address of that side, where it is what [`check_addresses`] asks for, and packets can be sent as they are.
#[inline]
pub(crate) fn adjacency_of(
    address: Ipv4Addr,
    side: Side,
    network: &Network,
    paths: &mut Paths,
    state: &State<'_>,
) -> Option<Adjacency> {
    if !may_be_host(address) || state.slot_of(address).is_some() {
        return None;
    }
    let adjacency = paths.adjacency_towards(network, address, side)?;
    let interface = &network.interfaces[usize::from(adjacency.interface.0)];
    (side == Side::Outside || is_configured(interface, address)).then_some(adjacency)
}

fn is_configured(interface: &Interface, source: Ipv4Addr) -> bool {
    interface.prefixes.is_empty() || interface.prefixes.iter().any(|prefix| prefix.contains(&source))
}
