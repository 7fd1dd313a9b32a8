//! The kernel's messages about links, addresses, routes, neighbours and rules, as datagrams of any bytes, mirrored in sequence.

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

#[path = "../../portcullis/src/kernel/decode.rs"]
#[allow(dead_code, reason = "a part of the binary, of which the mirror is tried here")]
mod decode;
#[path = "../../portcullis/src/kernel/state.rs"]
#[allow(dead_code, reason = "as above")]
mod state;

pub(crate) fn run(bytes: &[u8]) {
    let mut mirrored = state::KernelState::default();
    let mut rest = bytes;
    while let Ok(header) = NetlinkBuffer::new_checked(rest) {
        let (length, flags) = (header.length() as usize, header.flags());
        let Some(message) = rest.get(..length) else { break };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else { continue };
        let NetlinkPayload::InnerMessage(message) = message.payload else { continue };
        if let Some(change) = decode::change(&message, flags) {
            mirrored.apply(change);
        }
    }
    for routes in mirrored.routes.values() {
        assert!(!routes.is_empty(), "a prefix without routes is none");
        if let Some((_, Some(hop))) = mirrored.select(routes) {
            let is_up = |hop: &state::Hop| mirrored.is_up(hop.interface);
            let has_better =
                |route: &state::RouteEntry| matches!(&route.target, state::Target::Hops(hops) if hops.iter().any(is_up));
            assert!(is_up(&hop) || !routes.iter().any(has_better), "a link that is up is preferred to one that is down");
        }
    }
}
