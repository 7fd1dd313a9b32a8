//! TCP's own: opening, closing, refusing, hairpinning, ICMP errors about it.
//!
//! Sources: RFC 5382, REQ-2, 4, 6, 8, 9, 10; RFC 9293, section 3.5.

use std::thread;
use std::time::{Duration, Instant};

use portcullis_lab::builder::{ACK, FIN, PacketBuilder, RST, SYN};
use portcullis_nat::policy::Endpoint;

use super::icmp_errors::{ABOUT, error_comes};
use crate::bench::{Bench, Transport};
use crate::datagram::{Datagram, TCP};
use crate::plan;
use crate::row::{Check, Level, Row, require, violated};
use crate::setup::SILENT;
use crate::wire::Side;

use Level::{Must, Rec, Should};

pub(super) const ROWS: &[Row] = &[
    Row::new("5382-2", Must, "RFC 5382, REQ-2", "Valid TCP sequences from inside: handshake, data, half-close, close", from_inside),
    Row::new("5382-2.1", Must, "RFC 5382, REQ-2", "Valid TCP sequences from outside, where permitted", from_outside),
    Row::new("5382-2.2", Must, "RFC 5382, REQ-2", "A RST passes in both directions", resets),
    Row::new("5382-2a", Must, "RFC 5382, REQ-2a", "Simultaneous open", simultaneous_open),
    Row::new(
        "5382-4",
        Must,
        "RFC 5382, REQ-4",
        "An unsolicited SYN is not answered for 6 s, and never once a SYN goes out",
        unsolicited,
    )
    .waiting(),
    Row::new("5382-4b", Should, "RFC 5382, REQ-4", "After 6 s the sender of an unsolicited SYN is told (ICMP 3/3)", told_late)
        .waiting(),
    Row::new("5382-4a", Must, "RFC 5382, REQ-4a", "Where policy says so, an unsolicited SYN is dropped silently", silent)
        .with(&SILENT)
        .waiting(),
    Row::new("5382-6", Rec, "RFC 5382, REQ-6", "TCP payloads with addresses pass unchanged (no ALG by default)", payloads),
    Row::new("5382-8", Must, "RFC 5382, REQ-8", "Hairpinning: a whole handshake through a forward", |bench| {
        hairpin(bench).map(|_| String::new())
    }),
    Row::new("5382-8a", Must, "RFC 5382, REQ-8a", "A hairpinned SYN has the external source address and port", hairpin_source),
    Row::new("5382-9", Should, "RFC 5382, REQ-9", "Destination Unreachable about TCP is translated", errors),
    Row::new("5382-10", Must, "RFC 5382, REQ-10", "ICMP ends neither mapping nor connection", errors_end_nothing),
    Row::new("7857-2.2", Must, "RFC 7857, section 2.2", "A RST of a mapping is translated", resets),
];

fn from_inside(bench: &Bench) -> Check {
    let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
    connection.talks()?;
    // The host closes its half; the remote goes on for a while, and is heard (RFC 9293, section 3.6).
    connection.host_sends(FIN | ACK, &[])?;
    connection.remote_sends(ACK, &[])?;
    connection.remote_sends(ACK, &bench.mark())?;
    connection.host_sends(ACK, &[])?;
    connection.remote_sends(FIN | ACK, &[])?;
    connection.host_sends(ACK, &[])?;
    // The same endpoints meet again at once, as with a client that reuses its port.
    bench.connect(connection.inside, connection.remote)?.talks()?;
    // And the other way about.
    let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
    connection.remote_sends(FIN | ACK, &[])?;
    connection.host_sends(ACK, &bench.mark())?;
    connection.host_sends(FIN | ACK, &[])?;
    connection.remote_sends(ACK, &[])?;
    Ok(String::new())
}

/// The forward is the permission.
fn from_outside(bench: &Bench) -> Check {
    let external = Endpoint { address: plan::POOL[0], port: plan::TCP_FORWARD };
    let (server, remote) = (Endpoint { address: plan::SERVER, port: plan::TCP_SERVICE }, bench.remote());
    let (ours, theirs) = (bench.number(), bench.number());
    let steps: [(Side, u8, u32, u32, &[u8]); 7] = [
        (Side::Outside, SYN, theirs, 0, &[]),
        (Side::Inside, SYN | ACK, ours, theirs + 1, &[]),
        (Side::Outside, ACK, theirs + 1, ours + 1, &[]),
        (Side::Outside, ACK, theirs + 1, ours + 1, b"request!"),
        (Side::Inside, ACK, ours + 1, theirs + 9, b"answer!!"),
        (Side::Inside, FIN | ACK, ours + 9, theirs + 9, &[]),
        (Side::Outside, FIN | ACK, theirs + 9, ours + 10, &[]),
    ];
    for (side, flags, sequence, acknowledged, payload) in steps {
        let (from, to) = if side == Side::Outside { (remote, external) } else { (server, remote) };
        let seen_as = if side == Side::Outside { (remote, server) } else { (external, remote) };
        let shot = bench.send(side, &PacketBuilder::tcp(from, to, flags).numbers(sequence, acknowledged).payload(payload))?;
        let what = format!("the same from {}:{} to {}:{}", seen_as.0.address, seen_as.0.port, seen_as.1.address, seen_as.1.port);
        bench.expect(&shot, side.other(), &what, |one| {
            one.protocol() == TCP && one.sequence() == sequence && one.flags() == flags && (one.from(), one.to()) == seen_as
        })?;
    }
    Ok(String::new())
}

fn resets(bench: &Bench) -> Check {
    let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
    connection.host_sends(RST | ACK, &[])?;
    let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
    connection.remote_sends(RST | ACK, &[])?;
    // A SYN that is refused, as every closed port does it.
    let (host, remote, number) = (bench.endpoint(), bench.remote(), bench.number());
    let seen = bench.leaves(&PacketBuilder::tcp(host, remote, SYN).numbers(number, 0), |one| {
        one.protocol() == TCP && one.sequence() == number
    })?;
    let refusal =
        bench.send(Side::Outside, &PacketBuilder::tcp(remote, seen.from(), RST | ACK).numbers(0, number.wrapping_add(1)))?;
    bench.expect(&refusal, Side::Inside, "the RST", |one| one.protocol() == TCP && one.to() == host && one.flags() == RST | ACK)?;
    Ok(String::new())
}

/// RFC 9293, figure 8: SYNs cross, SYN+ACKs cross.
fn simultaneous_open(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let (ours, theirs) = (bench.number(), bench.number());
    let with = |number| move |one: &Datagram| one.protocol() == TCP && one.sequence() == number;
    let external = bench.leaves(&PacketBuilder::tcp(host, remote, SYN).numbers(ours, 0), with(ours))?.from();
    let crossing = bench.send(Side::Outside, &PacketBuilder::tcp(remote, external, SYN).numbers(theirs, 0))?;
    bench.expect(&crossing, Side::Inside, "the crossing SYN", |one| with(theirs)(one) && one.to() == host)?;
    let out = bench.send(Side::Inside, &PacketBuilder::tcp(host, remote, SYN | ACK).numbers(ours, theirs.wrapping_add(1)))?;
    bench.expect(&out, Side::Outside, "the SYN+ACK from the same endpoint", |one| {
        with(ours)(one) && one.flags() == SYN | ACK && one.from() == external
    })?;
    let inbound =
        bench.send(Side::Outside, &PacketBuilder::tcp(remote, external, SYN | ACK).numbers(theirs, ours.wrapping_add(1)))?;
    bench.expect(&inbound, Side::Inside, "the remote's SYN+ACK", |one| with(theirs)(one) && one.flags() == SYN | ACK)?;
    let data = PacketBuilder::tcp(host, remote, ACK).numbers(ours.wrapping_add(1), theirs.wrapping_add(1)).payload(&bench.mark());
    let data = bench.send(Side::Inside, &data)?;
    bench.expect(&data, Side::Outside, "data", |one| with(ours.wrapping_add(1))(one) && one.from() == external)?;
    Ok(String::new())
}

/// RFC 5382, REQ-4: "A NAT MUST NOT respond to an unsolicited inbound SYN packet for at least 6 seconds after the packet is received. If
/// during this interval the NAT receives and translates an outbound SYN for the connection the NAT MUST silently drop the original
/// unsolicited inbound SYN packet."
fn unsolicited(bench: &Bench) -> Check {
    let start = Instant::now();
    // One to a mapping whose filter stops it, one to an endpoint that nobody has, one that an outbound SYN follows.
    let (host, punching) = (bench.endpoint(), bench.endpoint());
    let external = bench.open(Transport::Tcp, host, bench.remote())?;
    let punched = bench.open(Transport::Tcp, punching, bench.remote())?;
    let nobody = Endpoint { address: plan::POOL[0], port: 64_999 };
    let senders = [bench.remote(), bench.remote(), bench.remote()];
    let mut shots = Vec::new();
    for (sender, to) in senders.iter().zip([external, nobody, punched]) {
        shots.push(bench.send(Side::Outside, &PacketBuilder::tcp(*sender, to, SYN).numbers(bench.number(), 0))?);
    }
    let answers = |sender: Endpoint| {
        move |one: &Datagram| {
            one.destination() == sender.address
                && (one.is_error() || one.protocol() == TCP && one.to() == sender && one.flags() & RST != 0)
        }
    };
    Bench::sleep_until(start, Duration::from_secs(3));
    let reached = bench.open(Transport::Tcp, punching, senders[2])?;
    require!(
        reached == punched,
        "an outbound SYN to the sender left from {}:{}, not from the mapping that was knocked at",
        reached.address,
        reached.port
    );
    Bench::sleep_until(start, Duration::from_millis(5900));
    for ((shot, sender), to) in
        shots.iter().zip(senders).zip(["a mapping that others were sent from", "a port that nobody has", "a mapping"])
    {
        if let Some(answer) = bench.all(shot, Side::Outside, answers(sender)).first() {
            violated!("an unsolicited SYN to {to} was answered within 6 s: {answer}");
        }
    }
    thread::sleep(Duration::from_millis(2000));
    if let Some(answer) = bench.all(&shots[2], Side::Outside, answers(senders[2])).first() {
        violated!("an unsolicited SYN was answered though a SYN of the host followed it: {answer}");
    }
    Ok(String::new())
}

fn told_late(bench: &Bench) -> Check {
    let external = bench.open(Transport::Tcp, bench.endpoint(), bench.remote())?;
    let sender = bench.remote();
    let shot = bench.send(Side::Outside, &PacketBuilder::tcp(sender, external, SYN).numbers(bench.number(), 0))?;
    thread::sleep(Duration::from_secs(8));
    let told = bench.all(&shot, Side::Outside, |one| one.icmp() == Some((3, 3)) && one.destination() == sender.address);
    require!(!told.is_empty(), "an unsolicited SYN to {}:{}: no ICMP 3/3 within 8 s", external.address, external.port);
    Ok(String::new())
}

fn silent(bench: &Bench) -> Check {
    let external = bench.open(Transport::Tcp, bench.endpoint(), bench.remote())?;
    let sender = bench.remote();
    let shot = bench.send(Side::Outside, &PacketBuilder::tcp(sender, external, SYN).numbers(bench.number(), 0))?;
    thread::sleep(Duration::from_secs(8));
    if let Some(answer) = bench.all(&shot, Side::Outside, |one| one.destination() == sender.address).first() {
        violated!("an unsolicited SYN was answered: {answer}");
    }
    Ok(String::new())
}

fn payloads(bench: &Bench) -> Check {
    for (port, text) in [
        (
            554,
            "SETUP rtsp://example.com/a RTSP/1.0\r\nTransport: RTP/AVP;unicast;client_port=6000-6001;destination=10.0.0.2\r\n\r\n",
        ),
        (1720, "\u{3}\0\0\u{8}\n\0\0\u{2}"),
        (5060, "INVITE sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/TCP 10.0.0.2:5060\r\n\r\n"),
    ] {
        let mut connection = bench.connect(bench.endpoint(), Endpoint { port, ..bench.remote() })?;
        let payload = [text.as_bytes(), &bench.mark()].concat();
        let shot = bench.send(Side::Inside, &connection.host_segment(ACK, &payload))?;
        let external = connection.external;
        let seen = bench.expect(&shot, Side::Outside, "the data", |one| one.from() == external && one.segment().len() > 20)?;
        require!(seen.segment()[20..] == payload, "a payload to port {port} came out changed: {seen}");
        connection.remote_sends(RST, &[])?;
    }
    Ok(String::new())
}

/// A host connects to the forward. Gives the host and the source that the server saw.
fn hairpin(bench: &Bench) -> Check<Endpoint> {
    let (host, source, number) = hairpinned_syn(bench)?;
    let server = Endpoint { address: plan::SERVER, port: plan::TCP_SERVICE };
    let external = Endpoint { address: plan::POOL[0], port: plan::TCP_FORWARD };
    require!(
        !plan::is_inside(source.address),
        "the server sees the SYN from {}:{}: what it answers does not come through the NAT, and no connection comes about",
        source.address,
        source.port
    );
    let theirs = bench.number();
    let next = number.wrapping_add(1);
    let answer = bench.send(Side::Inside, &PacketBuilder::tcp(server, source, SYN | ACK).numbers(theirs, next))?;
    bench.expect(&answer, Side::Inside, "the SYN+ACK at the host, from the forward", |one| {
        one.protocol() == TCP && one.sequence() == theirs && one.from() == external && one.to() == host
    })?;
    let last = bench.send(Side::Inside, &PacketBuilder::tcp(host, external, ACK).numbers(next, theirs.wrapping_add(1)))?;
    bench.expect(&last, Side::Inside, "the ACK at the server", |one| {
        one.protocol() == TCP && one.sequence() == next && one.from() == source && one.to() == server
    })?;
    Ok(source)
}

fn hairpinned_syn(bench: &Bench) -> Check<(Endpoint, Endpoint, u32)> {
    let (host, number) = (bench.endpoint(), bench.number());
    let external = Endpoint { address: plan::POOL[0], port: plan::TCP_FORWARD };
    let server = Endpoint { address: plan::SERVER, port: plan::TCP_SERVICE };
    let shot = bench.send(Side::Inside, &PacketBuilder::tcp(host, external, SYN).numbers(number, 0))?;
    let seen = bench.expect(&shot, Side::Inside, "the SYN at the server", |one| {
        one.protocol() == TCP && one.sequence() == number && one.to() == server
    })?;
    Ok((host, seen.from(), number))
}

fn hairpin_source(bench: &Bench) -> Check {
    let (host, source, _) = hairpinned_syn(bench)?;
    require!(
        bench.setup.pool().contains(&source.address),
        "{}:{} is seen by the server as {}:{}",
        host.address,
        host.port,
        source.address,
        source.port
    );
    Ok(String::new())
}

fn errors(bench: &Bench) -> Check {
    for (kind, code) in [(3, 1), (3, 3), (3, 4)] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let sent = bench.opened(Transport::Tcp, host, remote)?;
        let error = PacketBuilder::icmp_error(plan::FAR_ROUTER, sent.source(), kind, code, &sent.0).next_hop_mtu(1280);
        let shot = bench.send(Side::Outside, &error)?;
        let seen = error_comes(bench, &shot, (kind, code), host, remote)?;
        require!(
            kind != 3 || code != 4 || seen.next_hop_mtu() == 1280,
            "the next hop's MTU, 1280, came as {}: {seen}",
            seen.next_hop_mtu()
        );
    }
    Ok(String::new())
}

fn errors_end_nothing(bench: &Bench) -> Check {
    let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
    let outside = PacketBuilder::tcp(connection.external, connection.remote, ACK).numbers(7, 7).datagram();
    for (kind, code) in ABOUT {
        bench
            .send(Side::Outside, &PacketBuilder::icmp_error(plan::FAR_ROUTER, connection.external.address, kind, code, &outside))?;
    }
    connection.talks()?;
    // Nor does an error about a SYN that was not answered yet, which the host may ignore and send again.
    let (host, remote) = (bench.endpoint(), bench.remote());
    let sent = bench.opened(Transport::Tcp, host, remote)?;
    bench.send(Side::Outside, &PacketBuilder::icmp_error(remote.address, sent.source(), 3, 1, &sent.0))?;
    bench.reply(Transport::Tcp, remote, sent.from(), host, "after an ICMP error about the SYN")?;
    require!(
        bench.open(Transport::Tcp, host, bench.remote())? == sent.from(),
        "after an ICMP error the host has another external endpoint"
    );
    Ok(String::new())
}
