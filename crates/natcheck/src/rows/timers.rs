//! How long state lives. A black box can only wait: at ages up to 12 s always, to minutes with `--slow`, and where the driver can set the
//! times, to their end with short ones.
//!
//! Each age has a flow of its own, since the packet that asks may refresh. Sources: RFC 4787, REQ-5 and 6; RFC 5382, REQ-5; RFC 5508, REQ-2
//! and 6; RFC 6888, REQ-8; RFC 7857, sections 2 and 7.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_lab::builder::{ACK, FIN, PacketBuilder, RST};
use portcullis_nat::policy::Endpoint;

use super::load::Fill;
use crate::bench::{Bench, COMES, STAYS_AWAY, Transport};
use crate::row::{Check, Level, Row, Trouble, require, violated};
use crate::setup::{APART, PORT_TIME, QUICK, QUICK_APART, QUICK_OPEN, QUICK_PORT, QUICK_TIGHT, SHORT};
use crate::wire::Side;

use Level::{May, Must, Rec, Should};
use Transport::{Icmp, Tcp, Udp};

pub(super) const ROWS: &[Row] = &[
    Row::new("4787-5", Must, "RFC 4787, REQ-5", "A UDP mapping lives for at least 2 min", |bench| {
        lives(bench, &[11, 31, 61, 119], |bench| idle(bench, Udp))
    })
    .waiting(),
    Row::new("4787-5a", May, "RFC 4787, REQ-5a", "Shorter times for well-known ports", shorter_to_a_port)
        .with(&QUICK_PORT)
        .waiting(),
    Row::new("4787-5b", May, "RFC 4787, REQ-5b", "The UDP time can be set", |bench| ends(bench, Udp, SHORT.udp))
        .with(&QUICK)
        .waiting(),
    Row::new("4787-5c", Rec, "RFC 4787, REQ-5c", "The default UDP time is at least 5 min", |bench| {
        lives(bench, &[12, 61, 150, 299], |bench| idle(bench, Udp))
    })
    .waiting(),
    Row::new("4787-6", Must, "RFC 4787, REQ-6", "Outbound packets refresh a mapping", outbound_refreshes).with(&QUICK).waiting(),
    Row::new("4787-6a", May, "RFC 4787, REQ-6a", "Replies from the remote refresh a mapping", replies_refresh)
        .with(&QUICK)
        .waiting(),
    Row::new("5382-5", Must, "RFC 5382, REQ-5", "An opening TCP connection lives for at least 4 min", |bench| {
        lives(bench, &[11, 61, 121, 239], |bench| idle(bench, Tcp))
    })
    .waiting(),
    Row::new("5382-5e", Must, "RFC 5382, REQ-5", "An established TCP connection lives for at least 2 h 4 min", established)
        .waiting(),
    Row::new("5382-5a", May, "RFC 5382, REQ-5a", "TCP's times can be set", tcp_times).with(&QUICK).waiting(),
    Row::new("5508-2", Must, "RFC 5508, REQ-2", "A query waits for its reply for at least 60 s", |bench| {
        lives(bench, &[11, 31, 59], |bench| idle(bench, Icmp))
    })
    .waiting(),
    Row::new("5508-2a", Rec, "RFC 5508, REQ-2a", "The query time can be set", |bench| ends(bench, Icmp, SHORT.icmp))
        .with(&QUICK)
        .waiting(),
    Row::new(
        "5508-6",
        Must,
        "RFC 5508, REQ-6",
        "An error about a query neither refreshes nor ends its session",
        error_refreshes_nothing,
    )
    .with(&QUICK)
    .waiting(),
    Row::new("6888-8", Should, "RFC 6888, REQ-8", "A freed port is not given again for 120 s (open filter)", reuse)
        .with(&QUICK_TIGHT)
        .waiting(),
    Row::never(
        "7857-2",
        Should,
        "RFC 7857, section 2",
        "The TCP state machine of figure 1, edge by edge",
        "its edges are seen in 5382-2, 5382-5 and 7857-2.2 only",
    ),
    Row::new("7857-2.1", Should, "RFC 7857, section 2.1", "Separate times to open and to close", opening_apart_from_closing)
        .with(&QUICK_APART)
        .waiting(),
    Row::new("7857-2.2w", Should, "RFC 7857, section 2.2", "State waits for 4 min after a RST", |bench| {
        lives(bench, &[3, 11, 61, 239], after_a_reset)
    })
    .waiting(),
    Row::new("7857-7", Should, "RFC 7857, section 7", "A stranger whom the filter alone lets in refreshes nothing", |bench| {
        strangers_refresh_nothing(bench, Strangers::One)
    })
    .with(&QUICK_OPEN)
    .waiting(),
    Row::new("7857-7n", Should, "RFC 7857, section 7", "Nor do strangers that are new each time", |bench| {
        strangers_refresh_nothing(bench, Strangers::Many)
    })
    .with(&QUICK_OPEN)
    .waiting(),
    Row::new(
        "7857-7.1",
        Should,
        "RFC 7857, section 7.1",
        "An ICMP error or RST that refuses an inbound packet refreshes nothing",
        refusals_refresh_nothing,
    )
    .with(&QUICK_OPEN)
    .waiting(),
    Row::never(
        "7857-11",
        May,
        "RFC 7857, section 11",
        "A query's mapping goes with its last session",
        "not told apart from outside",
    ),
];

/// The oldest age that is waited for without `--slow`.
const PATIENCE: u64 = 12;
/// How much later than its time state may end: what sweeps does so from time to time.
const LATENESS: Duration = Duration::from_millis(2600);
/// How much earlier than its time a probe is sent that has to pass.
const EARLY: Duration = Duration::from_millis(1000);

/// A flow that was left alone, and what tells whether it lives: true when it does.
type Probe<'a> = Box<dyn FnOnce() -> Check<bool> + 'a>;

/// One flow for each age, and each asked at its age. **Units:** seconds.
fn lives(bench: &Bench, ages: &[u64], flow: fn(&Bench) -> Check<Probe<'_>>) -> Check {
    let start = Instant::now();
    let waited: Vec<u64> = ages.iter().copied().filter(|age| bench.slow || *age <= PATIENCE).collect();
    let mut probes = Vec::new();
    for age in &waited {
        probes.push((*age, flow(bench)?));
    }
    for (age, probe) in probes {
        Bench::sleep_until(start, Duration::from_secs(age));
        require!(probe()?, "{age} s after the last packet the remote is not heard any more");
    }
    let oldest = waited.last().copied().unwrap_or(0);
    if waited.len() < ages.len() {
        return Err(Trouble::NeedsSlow(format!("alive after {oldest} s")));
    }
    Ok(format!("alive after {oldest} s"))
}

/// A mapping that one packet opened, asked by a reply.
fn idle(bench: &Bench, transport: Transport) -> Check<Probe<'_>> {
    idle_towards(bench, transport, bench.remote())
}

fn idle_towards(bench: &Bench, transport: Transport, remote: Endpoint) -> Check<Probe<'_>> {
    let host = bench.endpoint();
    let external = bench.open(transport, host, remote)?;
    // What is gone is gone at the second try too; what was lost is not.
    let reply = move || heard(bench.reply(transport, remote, external, host, "after a pause"));
    Ok(Box::new(move || Ok(reply()? || reply()?)))
}

/// Whether what has to come came.
fn heard(outcome: Check<()>) -> Check<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Trouble::Missing(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

fn after_a_reset(bench: &Bench) -> Check<Probe<'_>> {
    let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
    connection.talks()?;
    connection.remote_sends(RST | ACK, &[])?;
    Ok(Box::new(move || connection.remote_is_heard()))
}

fn established(bench: &Bench) -> Check {
    let ages: &[u64] = if bench.slow { &[11, 61, 290] } else { &[11] };
    let alive = lives(bench, ages, |bench| {
        let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
        Ok(Box::new(move || connection.remote_is_heard()))
    })?;
    Bench::not_testable(format!("{alive}, and nobody waits for two hours; 5382-5a shows it with a short time"))
}

/// Alive shortly before the time that was set, gone shortly after.
fn ends(bench: &Bench, transport: Transport, time: Duration) -> Check {
    let start = Instant::now();
    let (early, late) = (idle(bench, transport)?, idle(bench, transport)?);
    Bench::sleep_until(start, time.saturating_sub(EARLY));
    require!(early()?, "with the timer set to {time:?}, the mapping is gone {EARLY:?} early");
    Bench::sleep_until(start, time + LATENESS);
    require!(!late()?, "with the timer set to {time:?}, the mapping lives {LATENESS:?} longer");
    Ok(format!("with the timer set to {time:?}"))
}

/// Gone soon after the time that was set for the port, and towards another port alive then.
fn shorter_to_a_port(bench: &Bench) -> Check {
    let (port, time) = PORT_TIME;
    let start = Instant::now();
    let towards_it = || idle_towards(bench, Udp, Endpoint { port, ..bench.remote() });
    let (early, late, other) = (towards_it()?, towards_it()?, idle(bench, Udp)?);
    Bench::sleep_until(start, time.saturating_sub(EARLY));
    require!(early()?, "with the timer towards port {port} set to {time:?}, the mapping is gone {EARLY:?} early");
    Bench::sleep_until(start, time + LATENESS);
    require!(!late()?, "with the timer towards port {port} set to {time:?}, the mapping lives {LATENESS:?} longer");
    require!(other()?, "with the timer towards port {port} set to {time:?}, a mapping towards another port is gone as well");
    Ok(format!("with the timer towards port {port} set to {time:?}"))
}

fn outbound_refreshes(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    let start = Instant::now();
    for step in 1..=4 {
        Bench::sleep_until(start, Duration::from_millis(2500) * step);
        let now = bench.open(Udp, host, remote)?;
        require!(now == external, "after {step} refreshes the host is seen as {now:?}, before as {external:?}");
    }
    bench.reply(Udp, remote, external, host, "after outbound packets for longer than its time")?;
    Ok(format!("with the timer set to {:?}", SHORT.udp))
}

fn replies_refresh(bench: &Bench) -> Check {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(Udp, host, remote)?;
    let start = Instant::now();
    for step in 1..=3 {
        Bench::sleep_until(start, Duration::from_millis(2500) * step);
        if !heard(bench.reply(Udp, remote, external, host, "while only the remote sends"))? {
            violated!("with the timer set to {:?}, a mapping that the remote alone uses ends", SHORT.udp);
        }
    }
    Ok(format!("with the timer set to {:?}", SHORT.udp))
}

fn tcp_times(bench: &Bench) -> Check {
    let start = Instant::now();
    let open = |bench| {
        let connection: Check<_> = Bench::connect(bench, bench.endpoint(), bench.remote());
        connection
    };
    let (opening, opened) = (idle(bench, Tcp)?, idle(bench, Tcp)?);
    let (mut early, mut late) = (open(bench)?, open(bench)?);
    Bench::sleep_until(start, SHORT.opening.saturating_sub(EARLY));
    require!(opening()?, "with the transitory timer set to {:?}, a SYN's mapping is gone {EARLY:?} early", SHORT.opening);
    Bench::sleep_until(start, SHORT.established.saturating_sub(EARLY));
    require!(
        early.remote_is_heard()?,
        "with the established timer set to {:?}, a connection is gone {EARLY:?} early",
        SHORT.established
    );
    Bench::sleep_until(start, SHORT.opening + LATENESS);
    require!(!opened()?, "with the transitory timer set to {:?}, a SYN's mapping lives {LATENESS:?} longer", SHORT.opening);
    Bench::sleep_until(start, SHORT.established + LATENESS);
    require!(
        !late.remote_is_heard()?,
        "with the established timer set to {:?}, a connection lives {LATENESS:?} longer",
        SHORT.established
    );
    Ok(format!("with the timers set to {:?} and {:?}", SHORT.established, SHORT.opening))
}

/// A closed connection is there shortly before its time, and a SYN's mapping is gone by then. What is gone takes three seconds to show.
fn opening_apart_from_closing(bench: &Bench) -> Check {
    let start = Instant::now();
    let opening = idle(bench, Tcp)?;
    let closed = || -> Check<_> {
        let mut connection = bench.connect(bench.endpoint(), bench.remote())?;
        connection.host_sends(FIN | ACK, &[])?;
        connection.remote_sends(FIN | ACK, &[])?;
        connection.host_sends(ACK, &[])?;
        Ok(connection)
    };
    let (mut early, mut late) = (closed()?, closed()?);
    Bench::sleep_until(start, APART.closing.saturating_sub(EARLY));
    require!(
        early.remote_is_heard()?,
        "with the closing timer set to {:?} and the opening one to {:?}, a closed connection is gone {EARLY:?} before the former",
        APART.closing,
        APART.opening
    );
    Bench::sleep_until(start, APART.opening + LATENESS);
    require!(!opening()?, "with the opening timer set to {:?}, a SYN's mapping lives {LATENESS:?} longer", APART.opening);
    Bench::sleep_until(start, APART.closing + LATENESS);
    require!(
        !late.remote_is_heard()?,
        "with the closing timer set to {:?}, a closed connection lives {LATENESS:?} longer",
        APART.closing
    );
    Ok(format!("with the timers set to {:?} and {:?}", APART.opening, APART.closing))
}

fn error_refreshes_nothing(bench: &Bench) -> Check {
    let start = Instant::now();
    let remote = bench.remote();
    let (early, late) = (bench.endpoint(), bench.endpoint());
    let sent = [bench.opened(Icmp, early, remote)?, bench.opened(Icmp, late, remote)?];
    Bench::sleep_until(start, SHORT.icmp.saturating_sub(EARLY));
    for one in &sent {
        bench.send(Side::Outside, &PacketBuilder::icmp_error(remote.address, one.source(), 3, 1, &one.0))?;
    }
    bench.reply(Icmp, remote, sent[0].from(), early, "after an error about its query")?;
    // Refreshed by the error, it would live until one second less than two of its times.
    Bench::sleep_until(start, (SHORT.icmp * 2).saturating_sub(Duration::from_millis(1300)));
    let (packet, opened) = bench.inbound(Icmp, remote, sent[1].from());
    let shot = bench.send(Side::Outside, &packet)?;
    bench.expect_none(&shot, Side::Inside, "nothing: the error must not refresh the query's session", |one| opened.is(one))?;
    Ok(format!("with the timer set to {:?}", SHORT.icmp))
}

/// Whether a stranger's datagram, which an open filter lets in while there is a mapping, gets to the host.
fn is_open(bench: &Bench, external: Endpoint) -> Check<bool> {
    Ok(bench.enters(Udp, bench.remote(), external, STAYS_AWAY * 2)?.is_some())
}

/// Who sends to a mapping, again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strangers {
    /// One remote endpoint.
    One,
    /// Another one each time.
    Many,
}

fn strangers_refresh_nothing(bench: &Bench, strangers: Strangers) -> Check {
    let external = bench.open(Udp, bench.endpoint(), bench.remote())?;
    let start = Instant::now();
    let one = bench.remote();
    let knocks = |within| -> Check<bool> {
        let from = if strangers == Strangers::One { one } else { bench.remote() };
        Ok(bench.enters(Udp, from, external, within)?.is_some())
    };
    require!(knocks(COMES)?, "the filter was set to let every remote in, and a stranger's datagram did not come");
    while start.elapsed() < SHORT.udp + LATENESS {
        thread::sleep(Duration::from_millis(400));
        knocks(STAYS_AWAY)?;
    }
    require!(
        !is_open(bench, external)?,
        "with the timer set to {:?}, strangers' datagrams keep a mapping open for {:.0?}",
        SHORT.udp,
        start.elapsed()
    );
    Ok(format!("with the timer set to {:?}", SHORT.udp))
}

/// One stranger, whom the host refuses each time.
fn refusals_refresh_nothing(bench: &Bench) -> Check {
    let (udp_host, tcp_host) = (bench.endpoint(), bench.endpoint());
    let (udp, tcp) = (bench.open(Udp, udp_host, bench.remote())?, bench.open(Tcp, tcp_host, bench.remote())?);
    let stranger = bench.remote();
    let start = Instant::now();
    while start.elapsed() < SHORT.udp.max(SHORT.opening) + LATENESS {
        thread::sleep(Duration::from_millis(400));
        if let Some(came) = bench.enters(Udp, stranger, udp, STAYS_AWAY)? {
            bench.send(Side::Inside, &PacketBuilder::icmp_error(udp_host.address, came.source(), 3, 3, &came.0))?;
        }
        if let Some(came) = bench.enters(Tcp, stranger, tcp, STAYS_AWAY)? {
            let refusal = PacketBuilder::tcp(tcp_host, came.from(), RST | ACK).numbers(0, came.sequence().wrapping_add(1));
            bench.send(Side::Inside, &refusal)?;
        }
    }
    require!(!is_open(bench, udp)?, "ICMP errors of the host kept its UDP mapping open for {:.0?}", start.elapsed());
    require!(
        bench.enters(Tcp, bench.remote(), tcp, STAYS_AWAY * 2)?.is_none(),
        "RSTs of the host kept its TCP mapping open for {:.0?}",
        start.elapsed()
    );
    Ok(format!("with the timers set to {:?}", SHORT.udp))
}

/// All ports are taken, all end, and others ask.
fn reuse(bench: &Bench) -> Check {
    let before = bench.fill()?;
    let freed: BTreeSet<_> = before.taken.iter().map(|(_, external)| (external.address, external.port)).collect();
    thread::sleep(SHORT.udp + LATENESS);
    let after = Fill::of(bench)?;
    let again = after.taken.iter().filter(|(_, external)| freed.contains(&(external.address, external.port))).count();
    require!(
        again == 0,
        "{} mappings ended after {:?}; {again} of their external endpoints were given to others {:.0?} later",
        freed.len(),
        SHORT.udp,
        LATENESS
    );
    Ok(format!("{} freed endpoints, {} given since", freed.len(), after.taken.len()))
}
