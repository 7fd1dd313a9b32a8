//! The addresses of a check: fixed, so that any NAT can be set up for them by hand.
//!
//! ```text
//! hosts 10.0.0.0/16 ──── 10.0.0.1 [NAT] 203.0.113.1 ──── 203.0.113.2 router ── remotes 198.51.100.0/24
//!                        pool 203.0.113.10, .11, .12, .13
//! ```
//!
//! Everything but the NAT is one program: the tester answers ARP for every host and for the router, and sends as any of them.

use std::net::Ipv4Addr;

/// The NAT's address towards the hosts.
pub(crate) const NAT_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The length of the prefix inside.
pub(crate) const INSIDE_LENGTH: u8 = 16;
/// The NAT's own address towards the router.
pub(crate) const NAT_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The length of the prefix outside.
pub(crate) const OUTSIDE_LENGTH: u8 = 24;
/// The NAT's next hop towards every remote.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The external addresses. A setup uses the first ones.
pub(crate) const POOL: [Ipv4Addr; 4] = [
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv4Addr::new(203, 0, 113, 11),
    Ipv4Addr::new(203, 0, 113, 12),
    Ipv4Addr::new(203, 0, 113, 13),
];
/// The server that the forwards lead to.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 80);
/// The external port of the UDP forward, on the first pool address.
pub(crate) const UDP_FORWARD: u16 = 5300;
/// The port of the server that it leads to.
pub(crate) const UDP_SERVICE: u16 = 7;
/// The external port of the TCP forward, on the first pool address.
pub(crate) const TCP_FORWARD: u16 = 8080;
/// The port of the server that it leads to.
pub(crate) const TCP_SERVICE: u16 = 80;
/// A router between here and the remotes, which only ever sends ICMP errors.
pub(crate) const FAR_ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Destinations that a setup may exempt from translation, and one of them. No other row sends there.
pub(crate) const EXEMPT: &str = "198.18.0.0/24";
pub(crate) const EXEMPT_HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 9);

/// Whether packets to the address may show the hosts' own.
pub(crate) const fn is_exempt(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [198, 18, 0, _])
}

/// Whether the address is one of the hosts' realm, which must never be seen outside.
pub(crate) const fn is_inside(address: Ipv4Addr) -> bool {
    address.octets()[0] == 10
}

/// Whether the tester answers ARP for the address on the inside wire.
pub(crate) fn is_host(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [10, 0, ..]) && address != NAT_INSIDE
}

/// Whether the tester answers ARP for the address on the outside wire.
pub(crate) fn is_neighbour_outside(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [203, 0, 113, _]) && address != NAT_OUTSIDE && !POOL.contains(&address)
}
