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
use crate::establish::{self, Flow};
use crate::fast;
use crate::head::{self, Head, at};
use crate::nat::Nat;
use crate::packet::Packet;
use crate::policy::{DeviceId, Endpoint, InterfaceId, Protocol, Side};
use crate::time::Tick;

impl Nat<'_> {
    /// Has what [`Nat::open`] will look at fetched.
    pub(crate) fn fetch_for(&self, head: &Head) {
        let Some(flow) = flow_of(head) else { return };
        self.state.mappings.fetch_line(self.state.mappings.hash(&establish::mapping_key(&self.policy, &flow)));
        self.state.touch_subscriber(flow.ours.address);
    }

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
        // An earlier packet of the burst may have begun it.
        let is_known = self.state.sessions.is_known(Side::Inside, fast::key_of(head));
        if is_known || self.has_company() && self.owners.of_subscriber(internal) != self.me {
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
        let number = self.state.create(&plan.session, plan.under, now, &mut self.counters).ok()?;
        let way = self.way_by(plan.session.slot, (flow.protocol, flow.ours, plan.session.external, flow.remote), (inside, outside));
        let session = self.state.sessions.records.get_mut(number);
        session.adjacencies = way;
        session.packets_out = 1;
        let address = u32::from_ne_bytes(plan.session.external.address.octets());
        Some(fast::send::<true>(head, session, address, &outside))
    }
}

/// The flow of a packet that may begin a session.
fn flow_of(head: &Head) -> Option<Flow> {
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
