//! First packets that are plain: from inside, whole, UDP or a SYN, and of no session yet.
//!
//! Knows what the fast path has checked already. Called by it for a packet whose key the index does not have. Decides nothing of its own:
//! the plan is `establish`'s, and whatever is not plain here is left to the ordinary way, which decides from the start. Invariant: what is
//! forwarded here, the ordinary way would have forwarded, to the same bytes, tables and counts; the session knows its way then, so that its
//! second packet is fast.

use core::net::Ipv4Addr;

use portcullis_wire::ipv4::{TCP, UDP};
use portcullis_wire::tcp::TcpFlags;

use crate::arrival;
use crate::establish::Flow;
use crate::fast;
use crate::forward;
use crate::head::{self, Head, at};
use crate::nat::Nat;
use crate::packet::Packet;
use crate::policy::{DeviceId, Endpoint, InterfaceId, Protocol, Side};
use crate::record::NewSession;
use crate::table::Entry;
use crate::tcp::Direction;
use crate::time::Tick;

/// The sessions that packets of a burst have begun, so that a later packet of one does not begin it again: a bit for their hashes. Bits may
/// be set for none, never the other way round.
#[derive(Clone, Copy, Default)]
pub(crate) struct Opened(u64);

impl Opened {
    /// Packets went the ordinary way, which may have begun any.
    pub(crate) const ANY: Self = Self(u64::MAX);

    fn add(&mut self, hash: u64) {
        self.0 |= Self::bit(hash);
    }

    fn may_have(self, hash: u64) -> bool {
        self.0 & Self::bit(hash) != 0
    }

    const fn bit(hash: u64) -> u64 {
        1 << (hash >> 58)
    }
}

impl Nat<'_> {
    /// Steps 3 to 7 for a packet from inside. The device that it leaves by; none where it has to go the ordinary way, and then no table has
    /// changed.
    pub(crate) fn open(&mut self, packet: &mut Packet<'_>, expected: InterfaceId, now: Tick) -> Option<DeviceId> {
        let len = packet.len;
        let head = packet.buffer.first_chunk_mut()?;
        let flow = flow_of(head)?;
        if flow.protocol == Protocol::Tcp && self.fast_flags >> TcpFlags::SYN.0 & 1 == 0 {
            return None;
        }
        let (internal, remote) = (flow.ours.address, flow.remote.address);
        let is_bare = self.state.keeps_bare(flow.protocol);
        let hash =
            if is_bare { self.state.bares.hash_of(flow.ours) } else { self.state.sessions.hash(Side::Inside, fast::key_of(head)) };
        let is_known = self.opened.may_have(hash)
            && if is_bare { self.state.bares.candidate(hash).is_some() } else { self.state.sessions.is_known(hash) };
        // What a server sends may belong to a session.
        if is_known || is_bare && forward::has_server(&self.policy, flow.protocol, flow.ours) {
            return None;
        }
        if self.has_company() && self.owners.of_subscriber(internal) != self.me {
            return None;
        }
        let (inside, outside) = arrival::adjacencies_between(internal, remote, &self.network, &mut self.paths, &self.state)?;
        if inside.interface != expected || len > outside.most_len as usize {
            return None;
        }
        let plan = self.planner().outbound(&flow).ok()?;
        if self.is_taken(&plan, now) {
            return None;
        }
        let NewSession { slot, external, .. } = plan.session;
        let entry = self.state.create(&plan.session, plan.under, now, &mut self.counters).ok()?;
        self.opened.add(hash);
        let address = u32::from_ne_bytes(external.address.octets());
        let port = u16::from_ne_bytes(external.port.to_be_bytes());
        match entry {
            Entry::Session(number) => {
                let way = self.way_by(slot, (flow.protocol, flow.ours, external, flow.remote), (&inside, &outside));
                let session = self.state.sessions.records.get_mut(number);
                session.adjacencies = way;
                session.packets_out = 1;
            }
            Entry::Bare(number) => {
                let way = self.bare_way_by(flow.ours, external, Some(&inside));
                self.learn_remote_by(remote, Some(&outside));
                let bare = self.state.bares.records.get_mut(number);
                bare.adjacencies = way;
                bare.advance(Direction::Outbound, false, now);
            }
        }
        Some(fast::send::<true>(head, (address, port), &outside))
    }
}

/// The flow of a packet that may begin a session.
pub(crate) fn flow_of(head: &Head) -> Option<Flow> {
    const OPENING: u8 = TcpFlags::SYN.0;
    const COUNT: u8 = 0x3F;
    let protocol = match head[at::PROTOCOL] {
        UDP => Protocol::Udp,
        TCP if head[at::TCP_FLAGS] & COUNT == OPENING => Protocol::Tcp,
        _ => return None,
    };
    let endpoint =
        |address, port| Endpoint { address: Ipv4Addr::from_bits(head::word(head, address)), port: head::half(head, port) };
    let (ours, remote) = (endpoint(at::SOURCE, at::SOURCE_PORT), endpoint(at::DESTINATION, at::DESTINATION_PORT));
    Some(Flow { protocol, ours, remote, opens: true })
}
