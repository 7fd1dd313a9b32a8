//! Mapping, ports, pooling, filtering, hairpinning, of UDP, and what TCP and ICMP share with it.
//!
//! Sources: RFC 4787, sections 4 to 6 and 9; RFC 6888, section 3; RFC 7857.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::thread;

use portcullis_lab::builder::PacketBuilder;
use portcullis_nat::policy::Endpoint;

use crate::bench::{Bench, COMES, STAYS_AWAY, Transport};
use crate::datagram::UDP;
use crate::row::{Check, Level, Row, require, violated};
use crate::setup::{DEFAULT, Filtering, KEPT, MIXED, OPEN, RANGED, STRICT};
use crate::wire::Side;

use Level::{May, Must, Rec, Should};
use Transport::{Icmp, Tcp, Udp};

pub(super) const ROWS: &[Row] = &[
    Row::new("4787-1", Must, "RFC 4787, REQ-1", "Endpoint-independent mapping", |bench| eim(bench, Udp)),
    Row::new("4787-1c", Must, "RFC 4787, REQ-1", "The same under load: many hosts on one port, common remotes", |bench| {
        eim_under_collisions(bench, Udp)
    }),
    Row::new("4787-2", Rec, "RFC 4787, REQ-2", "Paired pooling: one external address for all of a host's ports", paired_udp),
    Row::new("4787-3", Must, "RFC 4787, REQ-3", "No port overloading", |bench| overloading(bench, Udp)),
    Row::new("4787-3a", Rec, "RFC 4787, REQ-3a", "Ports 0-1023 stay there, others stay above (all in the pool)", ranges)
        .with(&KEPT),
    Row::new("4787-4", Rec, "RFC 4787, REQ-4", "Port parity is preserved, where it can be set so", parity).with(&KEPT),
    Row::never(
        "4787-7",
        Must,
        "RFC 4787, REQ-7",
        "The same addresses may be used inside and outside",
        "needs a NAT with two routing tables",
    ),
    Row::new("4787-8", Rec, "RFC 4787, REQ-8", "Filtering is endpoint-independent or address-dependent", |bench| {
        filter_default(bench, Udp)
    }),
    Row::new("4787-8a", May, "RFC 4787, REQ-8a", "Filtering can be set to endpoint-independent", |bench| {
        filters(bench, Udp, Filtering::Endpoint)
    })
    .with(&OPEN),
    Row::new("4787-8b", May, "RFC 4787, REQ-8a", "Filtering can be set to address-dependent", |bench| {
        filters(bench, Udp, Filtering::Address)
    })
    .with(&STRICT),
    Row::new("4787-9", Must, "RFC 4787, REQ-9", "Hairpinning between two mappings", |bench| hairpin(bench).map(|_| String::new())),
    Row::new("4787-9a", Must, "RFC 4787, REQ-9a", "A hairpinned packet has the external source address and port", hairpin_source),
    Row::new("4787-10", Should, "RFC 4787, REQ-10", "UDP payloads with addresses pass unchanged (no ALG by default)", payloads),
    Row::never("4787-10a", Rec, "RFC 4787, REQ-10a", "ALGs can be switched one by one", "no setup names an ALG"),
    Row::new("5382-1", Must, "RFC 5382, REQ-1", "Endpoint-independent mapping", |bench| eim(bench, Tcp)),
    Row::new("5382-1c", Must, "RFC 5382, REQ-1", "The same under load: many hosts on one port, common remotes", |bench| {
        eim_under_collisions(bench, Tcp)
    }),
    Row::new("5382-3", Rec, "RFC 5382, REQ-3", "Filtering is endpoint-independent or address-dependent", |bench| {
        filter_default(bench, Tcp)
    }),
    Row::new("5382-3a", May, "RFC 5382, REQ-3a", "Filtering can be set to endpoint-independent", |bench| {
        filters(bench, Tcp, Filtering::Endpoint)
    })
    .with(&OPEN),
    Row::new("5382-3b", May, "RFC 5382, REQ-3b", "Filtering can be set apart from UDP's", |bench| {
        filters(bench, Udp, Filtering::Endpoint)?;
        filters(bench, Tcp, Filtering::Address)
    })
    .with(&MIXED),
    Row::new("5382-7", Must, "RFC 5382, REQ-7", "No port overloading", |bench| overloading(bench, Tcp)),
    Row::new("5508-1a", Should, "RFC 5508, REQ-1a", "One query identifier serves all remotes", |bench| eim(bench, Icmp)),
    Row::never("6888-1", Must, "RFC 6888, REQ-1", "The requirements of each transport", "it is those of RFC 4787, 5382 and 5508"),
    Row::new("6888-2", Must, "RFC 6888, REQ-2", "Paired pooling over UDP, TCP and ICMP", paired_mixed),
    Row::never(
        "6888-3",
        Must,
        "RFC 6888, REQ-3",
        "Pools of any size, contiguous or not",
        "the addresses of the check are four in a row",
    ),
    Row::new("6888-7", Rec, "RFC 6888, REQ-7", "Endpoint-independent filtering is available", |bench| {
        filters(bench, Udp, Filtering::Endpoint)
    })
    .with(&OPEN),
    Row::new("6888-15", Should, "RFC 6888, REQ-15", "External ports are hard to guess", randomness),
    Row::new("6888-15r", Should, "RFC 6888, REQ-15", "The same where the pool has a range of ports", randomness).with(&RANGED),
    Row::new("7857-3", May, "RFC 7857, section 3", "Ports may be shared by mappings to different destinations", |_| {
        Bench::not_testable("whether they are is 4787-3's and 5382-7's finding; both forbid it")
    }),
    Row::new("7857-5", Should, "RFC 7857, section 5", "Mappings are each protocol's own", mapping_by_protocol),
    Row::new("7857-6", Should, "RFC 7857, section 6", "Filters are each protocol's own", filter_by_protocol).with(&OPEN),
    Row::never("7857-8", May, "RFC 7857, section 8", "Parity may be off", "4787-4 tells whether it is"),
    Row::new("7857-9", Should, "RFC 7857, section 9", "External ports follow no order (RFC 6056)", randomness),
];

fn show(endpoint: Endpoint) -> String {
    format!("{}:{}", endpoint.address, endpoint.port)
}

/// RFC 4787, section 4.1: "The NAT reuses the port mapping for subsequent packets sent from the same internal IP address and port (X:x) to
/// any external IP address and port."
fn eim(bench: &Bench, transport: Transport) -> Check {
    let (host, first) = (bench.endpoint(), bench.remote());
    let second = Endpoint { port: first.port ^ 1, ..first };
    let mut seen = Vec::new();
    for remote in [first, second, bench.remote()] {
        seen.push((remote, bench.open(transport, host, remote)?));
    }
    let words: Vec<_> = seen.iter().map(|(remote, external)| format!("to {} as {}", show(*remote), show(*external))).collect();
    require!(
        seen.iter().all(|(_, external)| *external == seen[0].1),
        "{} from {} seen {}; expected one external endpoint",
        transport.word(),
        show(host),
        words.join(", ")
    );
    Ok(String::new())
}

/// Many hosts on one port, each first towards a remote of its own, where they meet nobody, then all towards common remotes, where a NAT
/// that chooses by remote finds its first choice taken.
fn eim_under_collisions(bench: &Bench, transport: Transport) -> Check {
    /// Hosts, and remotes that all of them send to.
    const COUNTS: (usize, usize) = (40, 2);
    let port = bench.endpoint().port;
    let mut first = Vec::new();
    for _ in 0..COUNTS.0 {
        let (host, own) = (Endpoint { address: bench.host(), port }, bench.remote());
        first.push((host, own, bench.open(transport, host, own)?));
    }
    let mut moved = Vec::new();
    for _ in 0..COUNTS.1 {
        let common = bench.remote();
        for (host, own, before) in &first {
            let now = bench.open(transport, *host, common)?;
            if now != *before {
                let words = [show(*host), show(*own), show(*before), show(common), show(now)];
                moved.push(format!("{} is seen by {} as {}, by {} as {}", words[0], words[1], words[2], words[3], words[4]));
            }
        }
    }
    require!(
        moved.is_empty(),
        "{} hosts on one port send {} to remotes of their own, then to {} common ones: {} times a host's external endpoint changes; {}",
        COUNTS.0,
        transport.word(),
        COUNTS.1,
        moved.len(),
        moved[0]
    );
    Ok(format!("{} hosts on one port", COUNTS.0))
}

fn paired_udp(bench: &Bench) -> Check {
    /// Hosts, and ports of each.
    const COUNTS: (u16, u16) = (4, 50);
    let mut used = BTreeSet::new();
    for _ in 0..COUNTS.0 {
        let address = bench.host();
        let mut addresses = BTreeSet::new();
        for number in 0..COUNTS.1 {
            addresses.insert(bench.open(Udp, Endpoint { address, port: 20_000 + number * 3 }, bench.remote())?.address);
        }
        require!(
            addresses.len() == 1,
            "{} ports of {address} to as many remotes leave from {addresses:?}; expected one address",
            COUNTS.1
        );
        used.extend(addresses);
    }
    Ok(format!(
        "{} hosts with {} ports each, on {} of the pool's {} addresses",
        COUNTS.0,
        COUNTS.1,
        used.len(),
        bench.setup.addresses
    ))
}

fn paired_mixed(bench: &Bench) -> Check {
    for _ in 0..6 {
        let host = bench.endpoint();
        let mut seen = Vec::new();
        for transport in [Udp, Tcp, Icmp] {
            seen.push((transport.word(), bench.open(transport, host, bench.remote())?.address));
        }
        require!(seen.iter().all(|one| one.1 == seen[0].1), "{} leaves as {seen:?}; expected one address", host.address);
    }
    Ok(String::new())
}

/// No two internal endpoints on one external one: towards one remote, and towards different ones.
fn overloading(bench: &Bench, transport: Transport) -> Check {
    /// Hosts that use the same port at once.
    const HOSTS: usize = 16;
    let (port, common) = (bench.endpoint().port, bench.remote());
    let mut owners: Vec<(Endpoint, Endpoint, Endpoint)> = Vec::new();
    for number in 0..2 * HOSTS {
        let host = Endpoint { address: bench.host(), port };
        let remote = if number < HOSTS { common } else { bench.remote() };
        let external = bench.open(transport, host, remote)?;
        if let Some((other, their_remote, _)) = owners.iter().find(|owner| owner.2 == external) {
            violated!(
                "{} from {} to {} and from {} to {} both seen as {}; expected two external endpoints",
                transport.word(),
                show(*other),
                show(*their_remote),
                show(host),
                show(remote),
                show(external)
            );
        }
        owners.push((host, remote, external));
    }
    Ok(format!("{} hosts on one port", 2 * HOSTS))
}

fn ranges(bench: &Bench) -> Check {
    for (port, low) in [(500, true), (123, true), (5000, false), (1024, false)] {
        let host = Endpoint { address: bench.host(), port };
        let external = bench.open(Udp, host, bench.remote())?;
        let range = if low { "0-1023" } else { "1024-65535" };
        require!((external.port < 1024) == low, "{} seen as {}; expected a port of {range}", show(host), show(external));
    }
    Ok(String::new())
}

fn parity(bench: &Bench) -> Check {
    for number in 0..12 {
        let host = Endpoint { address: bench.host(), port: 30_000 + number };
        let external = bench.open(Udp, host, bench.remote())?;
        require!(external.port % 2 == host.port % 2, "{} seen as {}; expected the same parity", show(host), show(external));
    }
    Ok(String::new())
}

/// Who may send to a mapping that was opened towards one remote.
fn classify(bench: &Bench, transport: Transport) -> Check<Filtering> {
    let (host, remote) = (bench.endpoint(), bench.remote());
    let external = bench.open(transport, host, remote)?;
    let stranger = bench.remote();
    let same_address = Endpoint { port: remote.port ^ 1, ..remote };
    let open = bench.enters(transport, stranger, external, STAYS_AWAY)?.is_some();
    let address = bench.enters(transport, same_address, external, STAYS_AWAY)?.is_some();
    bench.reply(transport, remote, external, host, "from the remote that was sent to")?;
    match (open, address) {
        (true, true) => Ok(Filtering::Endpoint),
        (false, true) => Ok(Filtering::Address),
        (false, false) => Ok(Filtering::AddressAndPort),
        (true, false) => violated!(
            "{} was opened towards {}: {} gets in and {} does not; expected a filter that RFC 4787 knows",
            show(external),
            show(remote),
            show(stranger),
            show(same_address)
        ),
    }
}

fn filter_default(bench: &Bench, transport: Transport) -> Check {
    let found = classify(bench, transport)?;
    require!(
        found != Filtering::AddressAndPort,
        "{} is {}: a mapping lets in only the endpoint that was sent to, which is stricter than recommended",
        transport.word(),
        found.word()
    );
    Ok(format!("{} by default", found.word()))
}

fn filters(bench: &Bench, transport: Transport, wanted: Filtering) -> Check {
    let found = classify(bench, transport)?;
    require!(found == wanted, "{} set to {}; it is {}", transport.word(), wanted.word(), found.word());
    Ok(String::new())
}

/// Two hosts that know each other's external endpoint, as from a rendezvous server, send to it, twice each: whatever the filter, the second
/// packet of each has to come. Gives the sender's endpoint, inside and external, and the source that the other host saw.
fn hairpin(bench: &Bench) -> Check<(Endpoint, Endpoint, Endpoint)> {
    let (first, second) = (bench.endpoint(), bench.endpoint());
    let server = bench.remote();
    let (first_external, second_external) = (bench.open(Udp, first, server)?, bench.open(Udp, second, server)?);
    for (from, to) in [(first, second_external), (second, first_external), (first, second_external)] {
        bench.send(Side::Inside, &PacketBuilder::udp(from, to).payload(&bench.mark()))?;
    }
    // On several queues these may pass each other; the one that has to come does not race with them.
    thread::sleep(STAYS_AWAY);
    let mark = bench.mark();
    let shot = bench.send(Side::Inside, &PacketBuilder::udp(first, second_external).payload(&mark))?;
    // The sender's own frame is not seen: only what the NAT sends.
    let what = format!("the same at {}", show(second));
    let seen =
        bench.expect(&shot, Side::Inside, &what, |one| one.protocol() == UDP && one.contains(&mark) && one.to() == second)?;
    Ok((first, first_external, seen.from()))
}

fn hairpin_source(bench: &Bench) -> Check {
    let (host, external, seen) = hairpin(bench)?;
    require!(seen == external, "{}, which is {} outside, is seen inside as {}", show(host), show(external), show(seen));
    Ok(String::new())
}

/// Payloads that ALGs like to rewrite.
fn payloads(bench: &Bench) -> Check {
    let host = bench.endpoint();
    let sip =
        format!("REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {0}:5060\r\nContact: <sip:a@{0}:5060>\r\n\r\n", host.address);
    let texts: [(u16, &[u8]); 3] = [(5060, sip.as_bytes()), (69, b"\0\x01file\0octet\0"), (1719, b"\x0e\0\x01\x0a\0\0\x02")];
    for (port, text) in texts {
        let to = Endpoint { port, ..bench.remote() };
        let mark = bench.mark();
        let payload = [text, &mark].concat();
        let seen =
            bench.leaves(&PacketBuilder::udp(host, to).payload(&payload), |one| one.protocol() == UDP && one.contains(&mark))?;
        require!(
            seen.segment()[8..] == payload,
            "a payload to port {port} came out changed: {:?}",
            String::from_utf8_lossy(&seen.segment()[8..])
        );
    }
    Ok(String::new())
}

/// Internal ports in sequence, from one host each time: what comes out must be neither in sequence nor close together.
fn randomness(bench: &Bench) -> Check {
    /// Mappings that are looked at.
    const MANY: u16 = 120;
    let address: Ipv4Addr = bench.host();
    let mut ports = Vec::new();
    for number in 0..MANY {
        ports.push(bench.open(Udp, Endpoint { address, port: 21_000 + number }, bench.remote())?.port);
    }
    let steps = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 2).count();
    require!(
        steps < usize::from(MANY) / 4,
        "internal ports in sequence: {steps} of {} external ports are within 2 of the last one",
        MANY - 1
    );
    let (low, high) = (ports.iter().min().copied().unwrap_or(0), ports.iter().max().copied().unwrap_or(0));
    let width = bench.setup.ports.map_or(8192, |(first, last)| last - first);
    require!(high - low > width / 2, "{MANY} external ports lie within {low}-{high}");
    Ok(format!("{MANY} mappings: {steps} neighbours, ports {low}-{high}"))
}

/// Different ports show separate mappings. Equal ones of all hosts show a shared mapping, or ports that are kept: that is not told apart.
fn mapping_by_protocol(bench: &Bench) -> Check {
    /// Hosts that send by both protocols from one port.
    const HOSTS: usize = 8;
    let mut equal = 0;
    for _ in 0..HOSTS {
        let (host, remote) = (bench.endpoint(), bench.remote());
        equal += usize::from(bench.open(Udp, host, remote)?.port == bench.open(Tcp, host, remote)?.port);
    }
    if equal == HOSTS {
        return Bench::not_testable(format!(
            "UDP and TCP of each of {HOSTS} hosts have one external port: shared mappings, or kept ports"
        ));
    }
    Ok(format!("UDP and TCP of {} of {HOSTS} hosts have different external ports", HOSTS - equal))
}

/// What UDP opened stays closed for TCP, under the filter that opens the most.
fn filter_by_protocol(bench: &Bench) -> Check {
    let host = bench.endpoint();
    let external = bench.open(Udp, host, bench.remote())?;
    require!(bench.enters(Udp, bench.remote(), external, COMES)?.is_some(), "no stranger's UDP gets in to {}", show(external));
    if let Some(seen) = bench.enters(Tcp, bench.remote(), external, STAYS_AWAY)? {
        violated!("only UDP was opened on {}; a SYN from a stranger came in: {seen}", show(external));
    }
    Ok(String::new())
}

const _: () = assert!(DEFAULT.addresses > 1, "pooling is seen with several addresses only");
