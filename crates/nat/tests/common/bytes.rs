//! One body for the property test and the fuzz target: any bytes at all are read as a script of packets, time and changes.
//!
//! A packet is raw bytes, or one of many valid packets with some bytes changed, its header checksum mended or not, on any device, in a
//! frame with any room. After each one holds what `Gateway::frame_with_room` checks (no panic, guard bytes, one verdict, counters that sum
//! up) and [`check_output`]: nothing untranslated leaves, and right checksums stay right.

use std::net::Ipv4Addr;

use portcullis_nat::policy::{DeviceId, Filtering, Forward, InterfaceId, Policy, PortSet, Protocol, Route, Side};
use portcullis_nat::verdict::Verdict;
use portcullis_testkit::builder::{ACK, Checksum, FIN, PacketBuilder, Query, RST, SYN, describe, endpoint, verify};

use super::{Gateway, Out, Seen, Setup, X1, X2, at, e1, e2, external, forward, h1, h2};

/// A script that is read byte by byte; it ends with its bytes.
struct Script<'d> {
    bytes: &'d [u8],
}

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    fn word(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn take(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }
}

/// Plays a script from a fresh gateway on.
pub(crate) fn run(bytes: &[u8]) {
    let mut script = Script { bytes };
    let mut setup = setup(script.byte().unwrap_or(0));
    setup.capacity.externals = 2;
    setup.capacity.others = 4;
    let mut memory = Vec::new();
    let mut gateway = setup.build_in(&mut memory);
    while let Some(action) = script.byte() {
        if play(&mut gateway, &mut script, action).is_none() {
            break;
        }
    }
    check_tables(&gateway);
}

/// Small tables and few ports, so that they run out.
fn setup(choice: u8) -> Setup {
    let filtering = [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
    let workers = if choice & 0x20 == 0 { 1 } else { 4 };
    let bare = if choice & 0x10 == 0 { 0 } else { 10 };
    Setup::new().workers(workers).capacity(12, 20, 4).bare(bare).policy(|policy| {
        policy.filtering_udp = filtering[usize::from(choice) % 3];
        policy.filtering_tcp = filtering[usize::from(choice / 3) % 3];
        policy.externals = vec![external(X1), external(X2)];
        policy.externals[0].ports = PortSet::range(5000, 5007);
        policy.externals[1].ports = PortSet::range(5000, 5007);
        policy.externals[1].shared_with_host = choice & 0x40 != 0;
        policy.inbound_refresh = choice & 0x80 != 0;
        policy.forwards = vec![forward(Protocol::Tcp, 80, 89, &["10.0.0.5:8080", "10.0.0.6:65530"])];
    })
}

fn play(gateway: &mut Gateway<'_>, script: &mut Script<'_>, action: u8) -> Option<()> {
    match action {
        0..=7 => gateway.wait(u32::from(script.byte()?) * 8),
        8..=11 => gateway.skip(u32::from(script.word()?) * 64),
        12 => {
            let what = script.byte()?;
            let new = [None, Some(X1), Some(X2), Some(Ipv4Addr::new(198, 51, 100, 77))][usize::from(what) % 4];
            gateway.adopt(|policy| {
                if what & 4 == 0 {
                    policy.externals[0].address = new;
                } else {
                    forward_some_of_udp(policy, usize::from(what) >> 4);
                }
            });
        }
        13 => {
            let up = script.byte()? & 1 == 1;
            gateway.adopt_network(|network| network.interfaces[1].up = up);
        }
        14 => drop(gateway.nat.expire_all(gateway.now)),
        15..=50 => {
            let device = DeviceId(script.byte()? % 4);
            let len = usize::from(script.word()? % 1600);
            let frame = script.take(len).to_vec();
            send(gateway, device, &frame, 64);
        }
        _ => {
            let choice = script.byte()?;
            let (interface, packet) = template(gateway, choice, script.byte()?);
            let mut frame = gateway.frame_to(interface, &packet);
            spoil(&mut frame, script)?;
            let room = if action & 1 == 0 { usize::from(script.byte()? % 80) } else { 64 };
            let device = if action & 0x0E == 0 { DeviceId(script.byte()? % 4) } else { device_of(gateway, interface) };
            send(gateway, device, &frame, room);
        }
    }
    Some(())
}

/// Forwards ports that mappings may have, or another of them, or none; a slot may be none that there is.
fn forward_some_of_udp(policy: &mut Policy, how: usize) {
    policy.forwards.retain(|forward| forward.protocol == Protocol::Tcp);
    let ports = [(5000, 5003), (5002, 5002), (5007, 5007)].get(how % 4);
    policy.forwards.extend(ports.map(|&(first, last)| {
        let slot = [0, 1, 0, 9][how / 4];
        Forward { external: slot, ..forward(Protocol::Udp, first, last, &["10.0.0.5:5000", "10.0.0.1:6000"]) }
    }));
    for (slot, external) in policy.externals.iter_mut().enumerate() {
        external.ports = PortSet::range(5000, 5007);
        for forward in policy.forwards.iter().filter(|forward| forward.external == slot) {
            external.ports.remove_range(forward.first, forward.last);
        }
    }
}

fn device_of(gateway: &Gateway<'_>, interface: u16) -> DeviceId {
    gateway.network.interfaces[usize::from(interface)].device
}

/// Changes up to three bytes, and perhaps the length; mends the header checksum, or not.
fn spoil(frame: &mut Vec<u8>, script: &mut Script<'_>) -> Option<()> {
    let how = script.byte()?;
    for _ in 0..how & 3 {
        let place = usize::from(script.word()?) % frame.len();
        frame[place] ^= script.byte()?;
    }
    if how & 0x0C == 0x0C {
        frame.truncate(usize::from(script.word()?) % (frame.len() + 1));
    }
    if how & 0x10 != 0 {
        mend(frame);
    }
    Some(())
}

/// Computes the IPv4 header's checksum, where there is one.
fn mend(frame: &mut [u8]) {
    let l3 = if frame.get(12..14) == Some(&[0x81, 0]) { 18 } else { 14 };
    let Some(&first) = frame.get(l3) else { return };
    let Some(header) = frame.get_mut(l3..l3 + usize::from(first & 15) * 4).filter(|header| header.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum = portcullis_testkit::builder::checksum::internet(&[header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The choices of packets of other protocols; what stored inputs choose below keeps its meaning.
const OTHERS: u8 = 240;

/// A valid packet of a protocol without ports, or an error about one, and the interface that it comes by.
fn other_template(gateway: &Gateway<'_>, choice: u8, detail: u8) -> (u16, PacketBuilder) {
    let protocol = [47, 50, 132, 136, 33, 51, 0, 255][usize::from(detail >> 3) % 8];
    let host = if detail & 1 == 0 { h1().address } else { h2().address };
    let remote = if detail & 2 == 0 { e1().address } else { e2().address };
    let outer = if detail & 4 == 0 { X1 } else { X2 };
    let known = gateway.others().get(usize::from(detail) % 5).copied();
    let (protocol, host, outer, remote) =
        known.map_or((protocol, host, outer, remote), |known| (known.protocol, known.internal, known.external, known.remote));
    let payload = usize::from(detail % 24);
    let packet = |from, to| PacketBuilder::raw(from, to, protocol).payload_len(payload);
    match choice % 8 {
        0 | 1 => (0, PacketBuilder::raw(host, remote, [47, 50, 136, 33][usize::from(detail >> 6)]).payload_len(payload)),
        2 => (0, packet(host, remote).more_fragments(true).payload_len(64)),
        3 => (1, packet(remote, outer)),
        4 => (1, packet(remote, outer).offset(9)),
        5 => (0, packet(host, outer)),
        6 => (1, PacketBuilder::icmp_error(e2().address, outer, 3 + detail % 10, detail % 16, &packet(outer, remote).datagram())),
        _ => (0, PacketBuilder::icmp_error(host, remote, 3, detail % 16, &packet(remote, host).datagram())),
    }
}

/// A valid packet and the interface that it comes by. Remotes and ports are few, so that sessions are met again.
fn template(gateway: &Gateway<'_>, choice: u8, detail: u8) -> (u16, PacketBuilder) {
    if choice >= OTHERS {
        return other_template(gateway, choice, detail);
    }
    let number = u16::from(detail);
    let internal = at(if detail & 1 == 0 { h1() } else { h2() }, 100 + number % 8);
    let remote = at(if detail & 2 == 0 { e1() } else { e2() }, 200 + number % 4);
    let mapping = gateway.mappings().get(usize::from(detail) % 13).map(|mapping| mapping.external);
    let outer = mapping.unwrap_or(endpoint("203.0.113.10:5003"));
    let front = at(endpoint("203.0.113.10:80"), 78 + number % 14);
    let flags = [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK][usize::from(detail >> 3) % 6];
    let session = gateway.sessions().get(usize::from(detail) % 21).copied();
    let checksum = [Checksum::Right, Checksum::Partial, Checksum::Zero, Checksum::Right][usize::from(detail >> 6)];
    match choice % 20 {
        0 | 1 => (0, PacketBuilder::udp(internal, remote).payload_len(usize::from(detail)).checksum(checksum)),
        2 | 3 => (0, PacketBuilder::tcp(internal, remote, flags).payload_len(3)),
        4 => (0, PacketBuilder::query(internal.address, remote.address, Query::Echo, number % 8)),
        5 => (1, PacketBuilder::udp(remote, outer).checksum(checksum)),
        6 => (1, PacketBuilder::tcp(remote, outer, flags)),
        7 => (1, PacketBuilder::query(remote.address, outer.address, Query::EchoReply, outer.port)),
        8 => (1, PacketBuilder::tcp(remote, front, flags)),
        9 => (0, PacketBuilder::tcp(internal, front, flags)),
        10 => (0, PacketBuilder::udp(internal, outer)),
        11 => (0, PacketBuilder::query(internal.address, outer.address, Query::Echo, number % 8)),
        12 => (0, PacketBuilder::udp(internal, remote).more_fragments(true).id(number % 4).payload_len(64)),
        13 => (0, PacketBuilder::raw(internal.address, remote.address, 17).offset(9).id(number % 4).payload_len(64)),
        14 => (1, PacketBuilder::raw(remote.address, outer.address, 17).offset(9).id(number % 4).payload_len(64)),
        15 => {
            let (source, destination) = session.map_or((outer, remote), |session| (session.external, session.remote));
            let quoted = PacketBuilder::udp(source, destination).payload_len(40).datagram();
            (1, PacketBuilder::icmp_error(e2().address, source.address, 3 + detail % 10, detail % 16, &quoted))
        }
        16 => {
            let (inside, outside) = session.map_or((internal, remote), |session| (session.internal, session.remote));
            let quoted = PacketBuilder::tcp(outside, inside, ACK).datagram();
            (0, PacketBuilder::icmp_error(inside.address, outside.address, 3, detail % 16, &quoted).quote(28).extension(&[1; 8]))
        }
        17 => (2, PacketBuilder::udp(endpoint("10.7.0.2:7"), endpoint("198.19.0.1:9")).options(&[7; 12]).ttl(detail % 4)),
        18 => (
            3,
            PacketBuilder::udp(endpoint("10.10.0.2:7"), endpoint("192.0.2.130:9")).payload_len(1390).dont_fragment(detail & 1 == 1),
        ),
        _ => (4, PacketBuilder::udp(endpoint("198.19.0.1:9"), outer).payload_len(1472)),
    }
}

fn send(gateway: &mut Gateway<'_>, device: DeviceId, frame: &[u8], room: usize) {
    let out = gateway.frame_with_room(device, frame, room);
    check_output(gateway, frame, &out);
}

/// Nothing untranslated leaves: on the outside the source is an external address, or the gateway's own for its ICMP errors. On the
/// inside the destination is routed there.
fn check_output(gateway: &Gateway<'_>, input: &[u8], out: &Out) {
    let (Verdict::Transmit(device) | Verdict::Fragment { device, .. }) = out.verdict else {
        if let Verdict::Hold { interface, .. } = out.verdict {
            check_addresses(gateway, interface, &out.frame);
        }
        return;
    };
    let vlan = Seen::of(&out.frame).vlan.filter(|&vlan| vlan != 0);
    let interface = gateway.network.interface_of(device, vlan).expect("frames leave by configured interfaces");
    check_addresses(gateway, interface, &out.frame);
    if verify(input).is_ok() {
        assert_eq!(verify(&out.frame), Ok(()), "{} became {}", describe(input), describe(&out.frame));
    }
}

fn check_addresses(gateway: &Gateway<'_>, interface: InterfaceId, frame: &[u8]) {
    let link = &gateway.network.interfaces[usize::from(interface.0)];
    let seen = Seen::of(frame);
    let is_external = |address| gateway.policy.externals.iter().any(|external| external.address == Some(address));
    let is_own_error = link.addresses.iter().any(|own| own.addr() == seen.source.address)
        && matches!(seen.icmp, Some((3 | 11, _, _)))
        && seen.offset() == 0;
    match link.side {
        Side::Outside => {
            assert!(is_external(seen.source.address) || is_own_error, "untranslated: {}", describe(frame));
            if let (false, Some((3 | 11 | 12, _, _))) = (is_own_error, seen.icmp) {
                assert!(is_external(seen.quoted().destination.address), "untranslated within: {}", describe(frame));
            }
        }
        Side::Inside => {
            let route = gateway.network.route(seen.destination.address);
            let leads_there = matches!(route, Some(Route::Via { interface: by, .. }) if by == interface);
            assert!(leads_there || is_own_error, "not for the inside: {}", describe(frame));
        }
    }
}

/// No two mappings share an external endpoint, and the tables agree with each other.
fn check_tables(gateway: &Gateway<'_>) {
    let mappings = gateway.mappings();
    let endpoints: std::collections::BTreeSet<_> =
        mappings.iter().map(|mapping| (mapping.protocol as u8, mapping.external.address, mapping.external.port)).collect();
    assert_eq!(endpoints.len(), mappings.len(), "{mappings:?}");
    let gauges = gateway.nat.gauges();
    let others = gateway.others();
    let keys: std::collections::BTreeSet<_> = others.iter().map(|view| (view.protocol, view.external, view.remote)).collect();
    assert!(keys.len() == others.len() && others.len() <= gauges.others as usize, "{others:?}");
    assert!(mappings.len() <= gauges.mappings as usize, "what has ended is swept later");
    assert!(gateway.sessions().len() <= gauges.sessions as usize);
    assert!(mappings.iter().all(|mapping| (mapping.sessions > 0) != mapping.bare.is_some()), "{mappings:?}");
}
