//! The maximum segment size that TCP announces, lowered where an interface asks for it.

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::MssClamp;
use portcullis_testkit::builder::{ACK, Checksum, PacketBuilder, SYN};

mod common;

use common::{Gateway, Setup, e1, e2, h1, h2};

/// A gateway whose interfaces do that: `lan0`, `wan0`.
fn gateway(inside: MssClamp, outside: MssClamp) -> Gateway<'static> {
    let clamp = |network: &mut portcullis_nat::policy::Network| {
        (network.interfaces[0].mss, network.interfaces[1].mss) = (inside, outside);
    };
    Setup::new().network(clamp).build()
}

/// Options that announce a size, at an odd offset.
fn announcing(size: u16) -> Vec<u8> {
    [&[1, 2, 4], &size.to_be_bytes()[..], &[4, 2, 1]].concat()
}

/// The size that a segment announces there.
fn announced(segment: &[u8]) -> u16 {
    u16::from_be_bytes([segment[23], segment[24]])
}

/// A handshake in which both announce 1460. Gives what each was shown of the other.
fn handshake(gateway: &mut Gateway<'_>, remote: portcullis_nat::policy::Endpoint) -> (u16, u16) {
    let syn = PacketBuilder::tcp(h1(), remote, SYN).tcp_options(&announcing(1460));
    let out = gateway.inside(&syn).forwarded();
    let answer = PacketBuilder::tcp(remote, out.source, SYN | ACK).tcp_options(&announcing(1460));
    let back = gateway.outside(&answer).delivered();
    // A second one, which the fast path could have had.
    assert_eq!(gateway.inside(&syn).forwarded().segment, out.segment);
    (announced(&out.segment), announced(&back.segment))
}

#[test]
fn both_sides_are_told_what_fits() {
    use MssClamp::{At, Off, PathMtu};
    let rows = [
        ((Off, Off), (1460, 1460)),
        ((Off, At(1400)), (1400, 1400)),
        ((At(1300), At(1400)), (1300, 1300)),
        ((Off, At(9000)), (1460, 1460)),
        ((Off, PathMtu), (1460, 1460)),
        ((PathMtu, Off), (1460, 1460)),
    ];
    for ((inside, outside), expected) in rows {
        let mut gateway = gateway(inside, outside);
        assert_eq!(handshake(&mut gateway, e1()), expected, "{inside:?} {outside:?}");
        let lowered = if expected.0 < 1460 { 3 } else { 0 };
        assert_eq!(gateway.count(Counter::MssClamped), lowered);
    }
}

#[test]
fn the_size_is_that_of_the_path_and_not_only_of_the_interface() {
    let mut gateway = gateway(MssClamp::Off, MssClamp::PathMtu);
    let narrow = portcullis_testkit::builder::endpoint("192.0.2.130:80");
    assert_eq!(handshake(&mut gateway, narrow), (1360, 1360), "a route with an MTU of 1400");
    gateway.adopt_network(|network| network.interfaces[1].mtu = 1492);
    assert_eq!(handshake(&mut gateway, e1()), (1452, 1452));
}

#[test]
fn only_what_opens_is_touched_and_a_partial_checksum_becomes_right() {
    let mut gateway = gateway(MssClamp::At(500), MssClamp::Off);
    let ack = PacketBuilder::tcp(h1(), e1(), SYN).tcp_options(&announcing(1460));
    gateway.inside(&ack).forwarded();
    let seen = gateway.inside(&PacketBuilder::tcp(h1(), e1(), ACK).tcp_options(&announcing(1460))).forwarded();
    assert_eq!(announced(&seen.segment), 1460);
    let partial = PacketBuilder::tcp(h2(), e2(), SYN).tcp_options(&announcing(1460)).checksum(Checksum::Partial);
    let out = gateway.inside(&partial);
    assert_eq!(announced(&out.forwarded().segment), 500);
    assert_eq!(portcullis_testkit::builder::verify(&out.frame), Ok(()));
    // What announces nothing, or lies, passes as it is.
    for options in [vec![], vec![1, 1, 2, 4], vec![2, 3, 5, 5, 5], vec![3, 60, 2, 4, 5, 5]] {
        let mut padded = options.clone();
        padded.resize(options.len().next_multiple_of(4), 0);
        let seen = gateway.inside(&PacketBuilder::tcp(h2(), e1(), SYN).tcp_options(&options)).forwarded();
        assert_eq!(seen.segment[20..], padded);
    }
}

#[test]
fn a_hairpinned_connection_crosses_the_inside_twice() {
    let mut gateway = gateway(MssClamp::At(1200), MssClamp::At(500));
    gateway.adopt(|policy| policy.filtering_tcp = portcullis_nat::policy::Filtering::EndpointIndependent);
    let other = gateway.external_of_tcp(h2(), e1());
    let seen = gateway.inside(&PacketBuilder::tcp(h1(), other, SYN).tcp_options(&announcing(1460))).delivered();
    assert_eq!(announced(&seen.segment), 1200);
}

#[test]
fn without_clamping_the_fast_path_keeps_its_syns() {
    for (clamp, fast) in [(MssClamp::Off, 3), (MssClamp::PathMtu, 0)] {
        let mut gateway = gateway(MssClamp::Off, clamp);
        handshake(&mut gateway, e1());
        assert_eq!(gateway.count(Counter::FastPath), fast);
        gateway.inside(&PacketBuilder::tcp(h1(), e1(), ACK)).forwarded();
        assert_eq!(gateway.count(Counter::FastPath), fast + 1, "all but SYNs");
    }
}
