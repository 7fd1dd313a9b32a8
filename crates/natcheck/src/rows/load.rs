//! A pool that is full: what is given, what is refused and how, and what the mappings that there are go on to do.
//!
//! Sources: RFC 4787, REQ-3 and 11; RFC 5508, REQ-8; RFC 6888, REQ-4 to 6, 9, 11, 13; RFC 7857, section 4.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use portcullis_lab::builder::PacketBuilder;
use portcullis_nat::policy::Endpoint;

use crate::bench::{Bench, Mark, Transport};
use crate::datagram::{Datagram, UDP};
use crate::plan;
use crate::row::{Check, Level, Row, require, violated};
use crate::setup::{EXEMPTING, TIGHT, TIGHT_6888};
use crate::wire::Side;

use Level::{Must, Rec, Should};
use Transport::Udp;

/// Why rows about subscribers are not tested.
const CARRIER_GRADE: &str = "no setup names it: a feature of carrier-grade NATs";

pub(super) const ROWS: &[Row] = &[
    Row::new("4787-3f", Must, "RFC 4787, REQ-3", "No port overloading when the pool is full", no_overloading).with(&TIGHT),
    Row::new(
        "4787-11",
        Must,
        "RFC 4787, REQ-11",
        "Deterministic: a full pool, and hosts on one port, change no mapping",
        deterministic,
    )
    .with(&TIGHT),
    Row::new("5508-8", Should, "RFC 5508, REQ-8", "No resources: ICMP 3/13 to the sender", |bench| told(bench, 13)).with(&TIGHT),
    Row::never("6888-4", Must, "RFC 6888, REQ-4", "A limit of external ports for a subscriber", CARRIER_GRADE),
    Row::never("6888-4A", Must, "RFC 6888, REQ-4A", "The limit is configurable", CARRIER_GRADE),
    Row::never("6888-4C", Rec, "RFC 6888, REQ-4C", "A limit of new mappings a second for a subscriber", CARRIER_GRADE),
    Row::never("6888-5", Should, "RFC 6888, REQ-5", "A limit of memory for a subscriber", CARRIER_GRADE),
    Row::never("6888-5B", Should, "RFC 6888, REQ-5B", "A limit of the rate of state", CARRIER_GRADE),
    Row::new(
        "6888-6",
        Must,
        "RFC 6888, REQ-6",
        "No translation for some destinations, both ways, and for others all the same",
        exempt,
    )
    .with(&EXEMPTING),
    Row::new("6888-9", Must, "RFC 6888, REQ-9", "A protocol for explicit mappings (PCP answers)", pcp),
    Row::new("6888-11A", Must, "RFC 6888, REQ-11A", "What finds no port is dropped, not passed on", dropped).with(&TIGHT),
    Row::new("6888-11B", Should, "RFC 6888, REQ-11B", "What finds no port is answered with ICMP 3/1, where so set", |bench| {
        told(bench, 1)
    })
    .with(&TIGHT_6888),
    Row::new("6888-11D", Must, "RFC 6888, REQ-11D", "No mapping is deleted to make room", oldest_lives).with(&TIGHT),
    Row::new("6888-13", Should, "RFC 6888, REQ-13", "Every port of the pool is used", all_used).with(&TIGHT),
    Row::new("7857-4", Must, "RFC 7857, section 4", "A full paired address: an error, not another address", pairing_holds)
        .with(&TIGHT),
];

/// "It MUST be possible to administratively turn off translation for specific destination addresses and/or ports."
fn exempt(bench: &Bench) -> Check {
    let remote = Endpoint { address: plan::EXEMPT_HOST, port: bench.remote().port };
    for transport in [Udp, Transport::Tcp, Transport::Icmp] {
        let host = bench.endpoint();
        let (out, opened) = bench.opener(transport, host, remote);
        let shot = bench.send(Side::Inside, &out)?;
        let seen = bench.expect(&shot, Side::Outside, "the same with the host's own address", |one| opened.is(one))?;
        require!(seen.from() == host, "{}: {}:{} came out as {seen}", transport.word(), host.address, host.port);
        require!(seen.ttl() == 63, "{}: a TTL of 64 came out as {}", transport.word(), seen.ttl());
        // Nothing is remembered: what the remote begins comes in as well.
        for to in [host, bench.endpoint()] {
            let (back, opened) = bench.opener(transport, remote, to);
            let shot = bench.send(Side::Outside, &back)?;
            let seen = bench.expect(&shot, Side::Inside, "the same at the host", |one| opened.is(one))?;
            require!(seen.destination() == to.address, "{}: it came to {seen}", transport.word());
        }
    }
    let host = bench.endpoint();
    let (other, opened) = bench.opener(Udp, bench.remote(), host);
    let shot = bench.send(Side::Outside, &other)?;
    bench.expect_none(&shot, Side::Inside, "nothing: no exempt destination sent it", |one| opened.is(one))?;
    bench.open(Udp, host, bench.remote())?;
    // An error about it, from a router on the way.
    let (out, opened) = bench.opener(Udp, host, remote);
    let shot = bench.send(Side::Inside, &out)?;
    let sent = bench.expect(&shot, Side::Outside, "the same", |one| opened.is(one))?;
    let shot = bench.send(Side::Outside, &PacketBuilder::icmp_error(plan::FAR_ROUTER, host.address, 3, 1, &sent.0))?;
    bench.expect(&shot, Side::Inside, "the ICMP error at the host", |one| one.is_error() && one.destination() == host.address)?;
    Ok(String::new())
}

/// Mappings that there were before: that of the first packet, which told that the NAT is there.
const FIRST: usize = 1;
/// Hosts that fill the pool, and ports of each, the same for all.
const HOSTS: u16 = 60;
const PORTS: u16 = 12;

/// A pool after more endpoints asked for mappings than it has.
#[derive(Debug)]
pub(crate) struct Fill {
    /// Who has what, the oldest first.
    pub(crate) taken: Vec<(Endpoint, Endpoint)>,
    /// Who got nothing.
    refused: Vec<Endpoint>,
    /// Datagrams that came out with a source of the hosts.
    untranslated: Vec<Datagram>,
    /// ICMP errors to the refused.
    told: Vec<Datagram>,
    /// The remote that all of them sent to.
    remote: Endpoint,
}

impl Fill {
    /// Fills the pool: all hosts' first ports, then all hosts' second ones, and so on.
    ///
    /// **Errors:** a frame cannot be sent.
    pub(crate) fn of(bench: &Bench) -> Check<Self> {
        let remote = bench.remote();
        let hosts: Vec<Ipv4Addr> = (0..HOSTS).map(|_| bench.host()).collect();
        let shot = bench.now(Side::Inside, "a datagram each of more endpoints than the pool has");
        let mut asking: Vec<(usize, Endpoint)> = (0..PORTS)
            .flat_map(|number| hosts.iter().map(move |address| Endpoint { address: *address, port: 5000 + number }))
            .enumerate()
            .collect();
        let (mut taken, mut untranslated) = (Vec::new(), Vec::new());
        // Who got nothing asks once more: what was lost on the wire was not refused.
        for _ in 0..2 {
            let (mut asked, begin) = (BTreeMap::new(), bench.now(Side::Inside, ""));
            for round in asking.chunks(usize::from(HOSTS)) {
                for (order, from) in round {
                    let mark = bench.mark();
                    asked.insert(mark, (*order, *from));
                    bench.send(Side::Inside, &PacketBuilder::udp(*from, remote).payload(&mark))?;
                }
                // A NAT in software gets the time that its queues need.
                thread::sleep(Duration::from_millis(10));
            }
            thread::sleep(Duration::from_millis(300));
            for one in bench.all(&begin, Side::Outside, |one| one.protocol() == UDP && one.destination() == remote.address) {
                let mark = one.segment().get(8..16).and_then(|bytes| Mark::try_from(bytes).ok());
                let Some((order, from)) = mark.and_then(|mark| asked.remove(&mark)) else { continue };
                if plan::is_inside(one.source()) {
                    untranslated.push(one);
                } else {
                    taken.push((order, from, one.from()));
                }
            }
            asking = asked.into_values().collect();
            asking.sort_by_key(|(order, _)| *order);
        }
        taken.sort_by_key(|(order, ..)| *order);
        let taken = taken.into_iter().map(|(_, from, external)| (from, external)).collect();
        let told = bench.all(&shot, Side::Inside, |one| one.quote().is_some_and(|quote| quote.to() == remote));
        Ok(Self { taken, refused: asking.into_iter().map(|(_, from)| from).collect(), untranslated, told, remote })
    }
}

fn no_overloading(bench: &Bench) -> Check {
    let fill = bench.fill()?;
    let mut owners = BTreeMap::new();
    for (host, external) in &fill.taken {
        if let Some(other) = owners.insert((external.address, external.port), *host) {
            violated!(
                "{}:{} is the external endpoint of both {}:{} and {}:{}",
                external.address,
                external.port,
                other.address,
                other.port,
                host.address,
                host.port
            );
        }
    }
    Ok(format!("{} mappings, each its own endpoint", owners.len()))
}

fn deterministic(bench: &Bench) -> Check {
    let fill = bench.fill()?;
    require!(!fill.taken.is_empty(), "not one datagram of {} endpoints came through", HOSTS * PORTS);
    no_overloading(bench)?;
    let mut moved = Vec::new();
    let looked_at: Vec<_> = fill.taken.iter().step_by(5).collect();
    for (host, external) in &looked_at {
        let remote = bench.remote();
        let now = bench.open(Udp, *host, remote)?;
        if now != *external {
            moved.push(format!(
                "{}:{} is seen by {}:{} as {}:{}, by {}:{} as {}:{}",
                host.address,
                host.port,
                fill.remote.address,
                fill.remote.port,
                external.address,
                external.port,
                remote.address,
                remote.port,
                now.address,
                now.port
            ));
        }
    }
    require!(
        moved.is_empty(),
        "with the pool in use, {} of {} hosts' ports have another external endpoint for another remote: {}",
        moved.len(),
        looked_at.len(),
        moved[0]
    );
    Ok(format!("{} mappings of {} hosts on the same {PORTS} ports; {} looked at again", fill.taken.len(), HOSTS, looked_at.len()))
}

fn told(bench: &Bench, code: u8) -> Check {
    let fill = bench.fill()?;
    require!(
        !fill.refused.is_empty(),
        "nothing was refused: {} mappings where the setup has {:?}",
        fill.taken.len(),
        bench.setup.endpoints()
    );
    let right = fill.told.iter().filter(|one| one.icmp() == Some((3, code))).count();
    let kinds: BTreeSet<_> = fill.told.iter().filter_map(Datagram::icmp).collect();
    require!(right > 0, "{} datagrams found no port; expected ICMP 3/{code} to their senders; came: {kinds:?}", fill.refused.len());
    for error in &fill.told {
        let quoted = error.quote().map(|quote| quote.from());
        require!(
            quoted.is_some_and(|from| fill.refused.contains(&from) && from.address == error.destination()),
            "an error about a datagram that its receiver did not send, or that went out: {error}"
        );
    }
    Ok(format!("{right} errors for {} refusals", fill.refused.len()))
}

fn dropped(bench: &Bench) -> Check {
    let fill = bench.fill()?;
    require!(
        fill.untranslated.is_empty(),
        "{} datagrams left with an inside source, such as {}",
        fill.untranslated.len(),
        fill.untranslated[0]
    );
    if let Some(endpoints) = bench.setup.endpoints() {
        require!(fill.taken.len() <= endpoints, "{} mappings on {endpoints} endpoints", fill.taken.len());
    }
    Ok(format!("{} of {} refused", fill.refused.len(), HOSTS * PORTS))
}

fn oldest_lives(bench: &Bench) -> Check {
    let fill = bench.fill()?;
    for (host, external) in fill.taken.iter().take(24) {
        bench.reply(Udp, fill.remote, *external, *host, "though the pool has run out since it was opened")?;
    }
    Ok(String::new())
}

fn all_used(bench: &Bench) -> Check {
    let fill = bench.fill()?;
    let used: BTreeSet<_> = fill.taken.iter().map(|(_, external)| (external.address, external.port)).collect();
    let Some(endpoints) = bench.setup.endpoints() else {
        return Bench::not_testable("the setup does not say how many ports there are");
    };
    let used = (used.len() + FIRST).min(endpoints);
    require!(used * 1000 >= endpoints * 999, "{used} of {endpoints} external endpoints were given before others were refused");
    Ok(format!("{used} of {endpoints}"))
}

fn pairing_holds(bench: &Bench) -> Check {
    let fill = bench.fill()?;
    let mut addresses: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for (host, external) in &fill.taken {
        addresses.entry(host.address).or_default().insert(external.address);
    }
    if let Some((host, several)) = addresses.iter().find(|(_, several)| several.len() > 1) {
        violated!("{host} has mappings on {several:?}: it was moved when its address was full");
    }
    Ok(format!("{} hosts on one address each, in a full pool", addresses.len()))
}

/// RFC 6887, section 14.1: an ANNOUNCE request, which every PCP server answers.
fn pcp(bench: &Bench) -> Check {
    let host = bench.endpoint();
    let mut request = vec![0; 24];
    request[0] = 2;
    request[18] = 0xFF;
    request[19] = 0xFF;
    request[20..].copy_from_slice(&host.address.octets());
    let server = Endpoint { address: plan::NAT_INSIDE, port: 5351 };
    let shot = bench.send(Side::Inside, &PacketBuilder::udp(host, server).payload(&request))?;
    match bench.seen(&shot, Side::Inside, Duration::from_millis(300), |one| {
        one.protocol() == UDP && one.from() == server && one.to() == host
    }) {
        Some(_) => Ok("PCP answers; its mappings are not tested".to_owned()),
        None => Bench::not_testable("no answer to PCP: not offered (a feature of carrier-grade NATs)"),
    }
}
