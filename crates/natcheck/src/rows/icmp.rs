//! ICMP queries, and messages that are neither queries nor errors about a session.
//!
//! Sources: RFC 5508, REQ-1, 7, 10b, 10c, 11; RFC 7857, section 12.

use portcullis_lab::builder::{PacketBuilder, Query};
use portcullis_nat::policy::Endpoint;

use super::icmp_errors::error_comes;
use crate::bench::{Bench, Transport};
use crate::datagram::ICMP;
use crate::plan;
use crate::row::{Check, Level, Row, violated};
use crate::setup::OPEN;
use crate::wire::Side;

use Level::{May, Must, Should};

pub(super) const ROWS: &[Row] = &[
    Row::new("5508-1", Must, "RFC 5508, REQ-1", "Queries from inside and their replies pass (echo, timestamp)", queries),
    Row::never("5508-7b", Must, "RFC 5508, REQ-7", "Hairpinned queries, of a Basic NAT", "asks for a NAT of addresses alone"),
    Row::new("5508-10b", May, "RFC 5508, REQ-10b", "Parameter Problem is translated", parameter_problem),
    Row::new("5508-10c", Should, "RFC 5508, REQ-10c", "Source Quench and Information Request are dropped", obsolete),
    Row::new("5508-11", May, "RFC 5508, REQ-11", "Other ICMP messages are dropped or handled, never left untranslated", others),
    Row::new("7857-12", Must, "RFC 7857, section 12", "ICMP echo is hairpinned to the host whose mapping it is", hairpinned_echo)
        .with(&OPEN),
];

fn queries(bench: &Bench) -> Check {
    for (query, answer) in [(Query::Echo, Query::EchoReply), (Query::Timestamp, Query::TimestampReply)] {
        let (host, remote) = (bench.endpoint(), bench.remote());
        let mark = bench.mark();
        // A timestamp has twelve bytes behind its sequence number (RFC 792).
        let payload = [mark.as_slice(), &[0; 4]].concat();
        let packet = PacketBuilder::query(host.address, remote.address, query, host.port).payload(&payload);
        let seen = bench.leaves(&packet, |one| one.icmp() == Some((query.number(), 0)) && one.contains(&mark))?;
        let back = PacketBuilder::query(remote.address, seen.source(), answer, seen.query_id()).payload(&payload);
        let shot = bench.send(Side::Outside, &back)?;
        bench.expect(&shot, Side::Inside, "the reply with the host's identifier", |one| {
            one.icmp() == Some((answer.number(), 0)) && one.contains(&mark) && one.to() == host
        })?;
    }
    Ok(String::new())
}

fn parameter_problem(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let sent = bench.opened(Transport::Udp, host, remote)?;
    let shot = bench.send(Side::Outside, &PacketBuilder::icmp_error(remote.address, sent.source(), 12, 0, &sent.0))?;
    error_comes(bench, &shot, (12, 0), host, remote)?;
    Ok(String::new())
}

fn obsolete(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let sent = bench.opened(Transport::Udp, host, remote)?;
    let quench = bench.send(Side::Outside, &PacketBuilder::icmp_error(remote.address, sent.source(), 4, 0, &sent.0))?;
    bench.expect_none(&quench, Side::Inside, "no Source Quench", |one| {
        one.icmp() == Some((4, 0)) && one.destination() == host.address
    })?;
    let mark = bench.mark();
    let request = PacketBuilder::icmp(host.address, remote.address, 15, 0, [0, 9, 0, 1]).payload(&mark);
    let request = bench.send(Side::Inside, &request)?;
    bench
        .expect_none(&request, Side::Outside, "no Information Request", |one| one.icmp() == Some((15, 0)) && one.contains(&mark))?;
    Ok(String::new())
}

/// Type 40 (Photuris) and the unassigned 200, both ways.
fn others(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let mut handled = 0;
    for kind in [40, 200] {
        let mark = bench.mark();
        let shot =
            bench.send(Side::Inside, &PacketBuilder::icmp(host.address, remote.address, kind, 0, [0, 7, 0, 1]).payload(&mark))?;
        if let Some(seen) =
            bench.seen(&shot, Side::Outside, crate::bench::STAYS_AWAY, |one| one.protocol() == ICMP && one.contains(&mark))
        {
            handled += 1;
            if plan::is_inside(seen.source()) {
                violated!("ICMP type {kind} from inside left untranslated: {seen}");
            }
        }
        let mark = bench.mark();
        let shot =
            bench.send(Side::Outside, &PacketBuilder::icmp(remote.address, plan::POOL[0], kind, 0, [0, 7, 0, 1]).payload(&mark))?;
        bench.expect_none(&shot, Side::Inside, "nothing for a host that did not ask", |one| one.contains(&mark))?;
    }
    Ok(if handled == 0 { "dropped" } else { "translated" }.to_owned())
}

fn hairpinned_echo(bench: &Bench) -> Check {
    let (first, second) = (bench.endpoint(), bench.endpoint());
    let external = bench.open(Transport::Icmp, second, bench.remote())?;
    let mark = bench.mark();
    let echo = PacketBuilder::query(first.address, external.address, Query::Echo, external.port).payload(&mark);
    let shot = bench.send(Side::Inside, &echo)?;
    let what = format!("the echo request at {}, whose external identifier {} is", second.address, external.port);
    let seen = bench.expect(&shot, Side::Inside, &what, |one| {
        one.icmp() == Some((8, 0)) && one.contains(&mark) && one.destination() == second.address
    })?;
    if plan::is_inside(seen.source()) {
        violated!("the hairpinned echo request has an inside source: {seen}");
    }
    // The answer finds its way back.
    let answer = PacketBuilder::query(second.address, seen.source(), Query::EchoReply, seen.query_id()).payload(&mark);
    let shot = bench.send(Side::Inside, &answer)?;
    let host = Endpoint { address: first.address, port: external.port };
    bench.expect(&shot, Side::Inside, "the reply at the host that asked", |one| one.icmp() == Some((0, 0)) && one.to() == host)?;
    Ok(String::new())
}
