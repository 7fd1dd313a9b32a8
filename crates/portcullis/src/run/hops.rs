//! The routers that the box knows, asked for before the gateway says that it is ready: its first packets then find their next hop.
//!
//! Knows routes and neighbours, no packets. Called at start. Invariant: a router that does not answer holds nothing up for longer than
//! [`PATIENCE`].

use std::sync::Arc;
use std::time::Duration;

use portcullis_nat::policy::{NeighbourKey, Network, Route};
use tokio::sync::watch;

use super::devices::Devices;
use crate::kernel::{self, KernelState, Resolver};

/// How long routers have to answer. Chosen: a neighbour on a link answers within milliseconds; the kernel asks again after a second.
const PATIENCE: Duration = Duration::from_millis(500);

/// Has the kernel find the routers of all routes. Returns the network once it has, or as it is when the time is over.
pub(super) async fn find(resolver: &Resolver, mut snapshots: watch::Receiver<Arc<KernelState>>, devices: &Devices) -> Network {
    let read = |snapshots: &mut watch::Receiver<Arc<KernelState>>| {
        let state = snapshots.borrow_and_update().clone();
        kernel::network(&state, &devices.configured())
    };
    let mut network = read(&mut snapshots);
    for (interface, router) in unknown(&network) {
        resolver.resolve(interface, router);
    }
    let found = async {
        while !unknown(&network).is_empty() && snapshots.changed().await.is_ok() {
            network = read(&mut snapshots);
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, found).await.is_ok();
    if !in_time {
        for (interface, router) in unknown(&network) {
            let name = network.interfaces.get(usize::from(interface.0)).map_or("", |interface| &interface.name);
            tracing::warn!("router {router} on {name} does not answer yet: packets to it wait, and are dropped after some seconds");
        }
    }
    network
}

/// The routers without a link-layer address.
fn unknown(network: &Network) -> Vec<NeighbourKey> {
    let routers = network.routes.iter().filter_map(|(_, route)| match *route {
        Route::Via { interface, gateway: Some(router), .. } => Some((interface, router)),
        _ => None,
    });
    let mut unknown: Vec<_> = routers.filter(|key| !network.neighbours.contains_key(key)).collect();
    unknown.sort_unstable_by_key(|(interface, router)| (interface.0, *router));
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests {
    use portcullis_nat::policy::InterfaceId;

    use super::*;

    #[test]
    fn routers_are_asked_for_once_and_only_those_that_are_not_known() {
        let mut network = Network::default();
        let via = |router: Option<&str>| Route::Via {
            interface: InterfaceId(1),
            gateway: router.map(|router| router.parse().expect("an address")),
            mtu: None,
        };
        for (prefix, route) in [
            ("0.0.0.0/0", via(Some("192.0.2.2"))),
            ("10.0.0.0/8", via(Some("192.0.2.3"))),
            ("10.1.0.0/16", via(Some("192.0.2.2"))),
            ("192.0.2.0/24", via(None)),
            ("192.0.2.1/32", Route::Local),
        ] {
            network.routes.insert(prefix.parse().expect("a prefix"), route);
        }
        let key = |router: &str| (InterfaceId(1), router.parse().expect("an address"));
        assert_eq!(unknown(&network), [key("192.0.2.2"), key("192.0.2.3")]);
        network.neighbours.insert(key("192.0.2.2"), [2; 6]);
        assert_eq!(unknown(&network), [key("192.0.2.3")]);
    }
}
