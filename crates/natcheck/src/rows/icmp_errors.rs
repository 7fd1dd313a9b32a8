//! ICMP errors about sessions, from outside, from inside and hairpinned: right, damaged, cut, with options and extensions.
//!
//! Sources: RFC 4787, REQ-12; RFC 5508, REQ-3 to 7; RFC 4884.

use portcullis_lab::builder::{Checksum, PacketBuilder};
use portcullis_nat::policy::Endpoint;

use crate::bench::{Bench, Shot, Transport};
use crate::datagram::{Datagram, UDP};
use crate::plan;
use crate::row::{Check, Level, Row, require};
use crate::wire::Side;

use Level::{Must, Rec, Should};

pub(super) const ROWS: &[Row] = &[
    Row::new("4787-12", Must, "RFC 4787, REQ-12", "ICMP errors end no mapping", end_nothing),
    Row::new("4787-12a", Should, "RFC 4787, REQ-12a", "ICMP errors are not filtered by their source", from_anywhere),
    Row::new("4787-12b", Rec, "RFC 4787, REQ-12b", "Destination Unreachable is translated", unreachable),
    Row::new("5508-3", Should, "RFC 5508, REQ-3", "An error with a wrong ICMP checksum is dropped", wrong_checksum),
    Row::new("5508-3a", Should, "RFC 5508, REQ-3a", "An error whose quoted IP checksum is wrong is dropped", wrong_quote),
    Row::new("5508-3b", Must, "RFC 5508, REQ-3b", "IP options in the quote are traversed", quoted_options),
    Row::new(
        "5508-3c",
        Should,
        "RFC 5508, REQ-3c",
        "A wrong or cut transport checksum in the quote does not matter",
        quoted_transport,
    ),
    Row::new("5508-3d", Must, "RFC 5508, REQ-3d", "RFC 4884 extensions and zero padding pass unchanged", extensions),
    Row::new(
        "5508-4",
        Must,
        "RFC 5508, REQ-4",
        "An error from outside: quote reverted, type and code kept; dropped without mapping",
        from_outside,
    ),
    Row::new("5508-4q", Must, "RFC 5508, REQ-4", "The same about an ICMP query", about_a_query),
    Row::new("5508-5", Must, "RFC 5508, REQ-5", "An error from inside shows external endpoints only", from_inside),
    Row::new("5508-7", Must, "RFC 5508, REQ-7", "An error about a hairpinned packet is hairpinned", |bench| {
        hairpinned(bench).map(|_| String::new())
    }),
    Row::new(
        "5508-7a",
        Must,
        "RFC 5508, REQ-7a",
        "A hairpinned error goes to the quoted sender and shows each host what it knows",
        hairpinned_addresses,
    ),
    Row::new("5508-4z", Must, "RFC 5508, REQ-4; RFC 768", "A quoted UDP checksum of 0 stays 0", quoted_zero),
];

/// Errors that a host may not take as the end of anything.
pub(super) const ABOUT: [(u8, u8); 6] = [(3, 0), (3, 1), (3, 2), (3, 3), (11, 0), (12, 0)];

/// Waits for an ICMP error at a host: its kind kept, its quote the host's own packet with a right header.
pub(super) fn error_comes(bench: &Bench, shot: &Shot, kind: (u8, u8), host: Endpoint, remote: Endpoint) -> Check<Datagram> {
    let what = format!(
        "ICMP {}/{} for {}, quoting {}:{} > {}:{}",
        kind.0, kind.1, host.address, host.address, host.port, remote.address, remote.port
    );
    let seen = bench.expect(shot, Side::Inside, &what, |one| {
        let quote = one.quote();
        let from = quote.as_ref().map(Datagram::from);
        // A query's identifier stands where a UDP quote has no second port.
        let to = quote.as_ref().map(|quote| {
            if quote.protocol() == crate::datagram::ICMP { quote.destination() == remote.address } else { quote.to() == remote }
        });
        one.icmp() == Some(kind) && one.destination() == host.address && from == Some(host) && to == Some(true)
    })?;
    require!(
        seen.quote().is_some_and(|quote| quote.header_is_right()),
        "the quoted IP header's checksum is wrong after translation: {seen}"
    );
    Ok(seen)
}

/// An error about what a remote saw, from that remote.
fn about(sent: &Datagram, kind: u8, code: u8) -> PacketBuilder {
    PacketBuilder::icmp_error(sent.destination(), sent.source(), kind, code, &sent.0)
}

fn end_nothing(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let sent = bench.opened(Transport::Udp, host, remote)?;
    for (kind, code) in ABOUT {
        bench.send(Side::Outside, &about(&sent, kind, code))?;
        bench.reply(Transport::Udp, remote, sent.from(), host, &format!("after ICMP {kind}/{code}"))?;
    }
    let again = bench.open(Transport::Udp, host, bench.remote())?;
    require!(again == sent.from(), "after ICMP errors the host has another external endpoint: {again:?}, before {:?}", sent.from());
    Ok(String::new())
}

fn from_anywhere(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let sent = bench.opened(Transport::Udp, host, remote)?;
    let error = PacketBuilder::icmp_error(plan::FAR_ROUTER, sent.source(), 11, 0, &sent.0);
    let shot = bench.send(Side::Outside, &error)?;
    let seen = error_comes(bench, &shot, (11, 0), host, remote)?;
    require!(seen.source() == plan::FAR_ROUTER, "an error of {} came from {}", plan::FAR_ROUTER, seen.source());
    Ok(String::new())
}

fn unreachable(bench: &Bench) -> Check {
    for code in [0, 1, 2, 3, 4, 9, 10, 13] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let sent = bench.opened(Transport::Udp, host, remote)?;
        let shot = bench.send(Side::Outside, &about(&sent, 3, code))?;
        error_comes(bench, &shot, (3, code), host, remote)?;
    }
    Ok(String::new())
}

/// Opens a mapping by a sound datagram whose mark says that what quotes it may be damaged.
fn to_be_damaged(bench: &Bench) -> Check<(Endpoint, Datagram)> {
    let (host, mark) = (bench.endpoint(), bench.damaged());
    let packet = PacketBuilder::udp(host, bench.remote()).payload(&mark);
    let sent = bench.leaves(&packet, |one| one.protocol() == UDP && one.contains(&mark))?;
    Ok((host, sent))
}

fn dropped(bench: &Bench, shot: &Shot, host: Endpoint, what: &str) -> Check<()> {
    bench.expect_none(shot, Side::Inside, what, |one| one.is_error() && one.destination() == host.address)
}

fn wrong_checksum(bench: &Bench) -> Check {
    let (host, sent) = to_be_damaged(bench)?;
    let shot = bench.send(Side::Outside, &about(&sent, 3, 3).checksum(Checksum::Wrong(1)))?;
    dropped(bench, &shot, host, "no error whose checksum is wrong")?;
    Ok(String::new())
}

fn wrong_quote(bench: &Bench) -> Check {
    let (host, mut sent) = to_be_damaged(bench)?;
    sent.0[10] ^= 0x55;
    let shot = bench.send(Side::Outside, &about(&sent, 3, 3))?;
    dropped(bench, &shot, host, "no error whose quoted IP header has a wrong checksum")?;
    Ok(String::new())
}

fn quoted_options(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let sent = bench.opened(Transport::Udp, host, remote)?;
    // As a router would quote it that saw the packet with options: forty No Operations.
    let quoted = PacketBuilder::udp(sent.from(), remote).options(&[1; 40]).payload(&bench.mark()).datagram();
    let error = PacketBuilder::icmp_error(plan::FAR_ROUTER, sent.source(), 3, 3, &quoted);
    let shot = bench.send(Side::Outside, &error)?;
    let seen = error_comes(bench, &shot, (3, 3), host, remote)?;
    let quote = seen.quote().unwrap_or(Datagram(Vec::new()));
    require!(quote.options() == [1; 40], "the quoted options came out as {:?}", quote.options());
    Ok(String::new())
}

fn quoted_transport(bench: &Bench) -> Check {
    for transport in [Transport::Udp, Transport::Tcp] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let sent = bench.opened(transport, host, remote)?;
        // Eight bytes of the transport, as RFC 792 has it: TCP's checksum is cut away, UDP's cannot be right any more.
        let shot = bench.send(Side::Outside, &about(&sent, 3, 3).quote(28))?;
        error_comes(bench, &shot, (3, 3), host, remote)?;
        let mut wrong = sent.clone();
        let field = 20 + if transport == Transport::Udp { 6 } else { 16 };
        wrong.0[field] ^= 0xFF;
        let shot = bench.send(Side::Outside, &about(&wrong, 3, 3))?;
        error_comes(bench, &shot, (3, 3), host, remote)?;
    }
    Ok(String::new())
}

/// Time Exceeded with an MPLS label stack (RFC 4950), the quote padded to 128 bytes with zeros (RFC 4884, section 4.6).
fn extensions(bench: &Bench) -> Check {
    for transport in [Transport::Udp, Transport::Tcp] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let sent = bench.opened(transport, host, remote)?;
        let error = PacketBuilder::icmp_error(plan::FAR_ROUTER, sent.source(), 11, 0, &sent.0).extension(&[0, 0x01, 0x51, 0x40]);
        let outside = Datagram(error.datagram());
        let shot = bench.send(Side::Outside, &error)?;
        let seen = error_comes(bench, &shot, (11, 0), host, remote)?;
        require!(seen.segment()[5] == 32, "the quote's length, 32 words, came as {}: {seen}", seen.segment()[5]);
        let behind = 8 + sent.0.len();
        require!(
            seen.segment().get(behind..) == outside.segment().get(behind..),
            "padding and extension came out changed: sent {:?}, came {:?}",
            &outside.segment()[behind..],
            seen.segment().get(behind..)
        );
    }
    Ok(String::new())
}

fn from_outside(bench: &Bench) -> Check {
    for transport in [Transport::Udp, Transport::Tcp] {
        for (kind, code) in [(3, 1), (3, 3), (11, 0), (11, 1)] {
            let (host, remote) = (bench.endpoint(), bench.remote());
            let (packet, opened) = bench.opener(transport, host, remote);
            let sent = bench.leaves(&packet, |one| opened.is(one))?;
            let shot = bench.send(Side::Outside, &about(&sent, kind, code))?;
            let seen = error_comes(bench, &shot, (kind, code), host, remote)?;
            let original = Datagram(packet.datagram());
            let quoted = seen.quote().unwrap_or(Datagram(Vec::new()));
            require!(
                quoted.segment() == original.segment(),
                "the quote is not what the host sent, byte for byte behind the IP header: sent {original}, quoted {quoted}"
            );
            require!(seen.source() == remote.address, "an error of {} came from {}", remote.address, seen.source());
        }
    }
    // About a packet that nobody sent.
    let unknown =
        PacketBuilder::udp(Endpoint { address: plan::POOL[0], port: 64_998 }, bench.remote()).payload(&bench.mark()).datagram();
    let shot = bench.send(Side::Outside, &PacketBuilder::icmp_error(plan::FAR_ROUTER, plan::POOL[0], 3, 3, &unknown))?;
    bench.expect_none(&shot, Side::Inside, "no error about a packet that nobody sent", |one| {
        one.quote()
            .is_some_and(|quote| quote.id() == Datagram(unknown.clone()).id() && quote.to() == Datagram(unknown.clone()).to())
    })?;
    Ok(String::new())
}

fn about_a_query(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let sent = bench.opened(Transport::Icmp, host, remote)?;
    let error = PacketBuilder::icmp_error(plan::FAR_ROUTER, sent.source(), 3, 1, &sent.0);
    let shot = bench.send(Side::Outside, &error)?;
    error_comes(bench, &shot, (3, 1), host, remote)?;
    Ok(String::new())
}

fn quoted_zero(bench: &Bench) -> Check {
    let (host, remote, mark) = (bench.endpoint(), bench.remote(), bench.mark());
    let packet = PacketBuilder::udp(host, remote).payload(&mark).checksum(Checksum::Zero);
    let sent = bench.leaves(&packet, |one| one.protocol() == UDP && one.contains(&mark))?;
    let shot = bench.send(Side::Outside, &about(&sent, 3, 3))?;
    let seen = error_comes(bench, &shot, (3, 3), host, remote)?;
    let quoted = seen.quote().map(|quote| quote.udp_checksum());
    require!(quoted == Some(0), "no checksum, in a quote, came as {quoted:04x?}: {seen}");
    Ok(String::new())
}

fn from_inside(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Transport::Udp, host, remote)?;
    let mark = bench.mark();
    let shot = bench.send(Side::Outside, &PacketBuilder::udp(remote, external).payload(&mark))?;
    let came = bench.expect(&shot, Side::Inside, "the datagram", |one| one.protocol() == UDP && one.contains(&mark))?;
    let shot = bench.send(Side::Inside, &PacketBuilder::icmp_error(host.address, remote.address, 3, 3, &came.0))?;
    let what = format!(
        "ICMP 3/3 from {}, quoting {}:{} > {}:{}",
        external.address, remote.address, remote.port, external.address, external.port
    );
    let seen = bench.expect(&shot, Side::Outside, &what, |one| {
        one.icmp() == Some((3, 3)) && one.quote().is_some_and(|quote| quote.from() == remote && quote.to() == external)
    })?;
    require!(
        seen.source() == external.address || seen.source() == plan::NAT_OUTSIDE,
        "the error of a host left with the source {}; expected an address of the NAT",
        seen.source()
    );
    require!(seen.quote().is_some_and(|quote| quote.header_is_right()), "the quoted IP header's checksum is wrong: {seen}");
    Ok(String::new())
}

/// A host sends to the UDP forward, the server refuses. Gives the host, and the error as the host got it.
fn hairpinned(bench: &Bench) -> Check<(Endpoint, Datagram)> {
    let (host, mark) = (bench.endpoint(), bench.mark());
    let (forward, server) =
        (Endpoint { address: plan::POOL[0], port: plan::UDP_FORWARD }, Endpoint { address: plan::SERVER, port: plan::UDP_SERVICE });
    let shot = bench.send(Side::Inside, &PacketBuilder::udp(host, forward).payload(&mark))?;
    let came = bench.expect(&shot, Side::Inside, "the datagram at the server", |one| {
        one.protocol() == UDP && one.contains(&mark) && one.to() == server
    })?;
    require!(
        !plan::is_inside(came.source()),
        "the server sees the hairpinned datagram from {}: its error would not come through the NAT",
        came.source()
    );
    let shot = bench.send(Side::Inside, &PacketBuilder::icmp_error(server.address, came.source(), 3, 3, &came.0))?;
    let what = format!("ICMP 3/3 at {}", host.address);
    let seen = bench.expect(&shot, Side::Inside, &what, |one| one.icmp() == Some((3, 3)) && one.destination() == host.address)?;
    Ok((host, seen))
}

fn hairpinned_addresses(bench: &Bench) -> Check {
    let (host, seen) = hairpinned(bench)?;
    let forward = Endpoint { address: plan::POOL[0], port: plan::UDP_FORWARD };
    let quote = seen.quote().unwrap_or(Datagram(Vec::new()));
    require!(
        (quote.from(), quote.to()) == (host, forward) && !plan::is_inside(seen.source()),
        "expected an error from outside that quotes {}:{} > {}:{}; came: {seen}",
        host.address,
        host.port,
        forward.address,
        forward.port
    );
    Ok(String::new())
}
