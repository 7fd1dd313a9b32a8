//! The checks, in the order in which they run. A new one is a function here and a row in [`ALL`].
//!
//! Each gets the lab, says what it needs of it (a gateway that runs, or none), and returns what it found in a few words, or why it fails.
//! Invariant: a check that has passed has compared numbers from the guest with numbers that were known before.

mod owners;
mod pktgen;
mod settings;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use portcullis_testkit::builder::{ACK, PacketBuilder, Query};
use portcullis_testkit::topology::services::{Service, seen_from};
use portcullis_testkit::topology::{CLIENTS, POOL, SERVER};
use serde_json::Value;

use crate::lab::{BEHIND, Lab, Manner, NICS, QUEUES};
use crate::placement::{Fields, Flow, Key, Numbers, Rss};
use crate::traffic::Sender;

/// Frames of the placement checks, both NICs together.
const FRAMES: usize = 100_000;
/// The checks' keys and packets come from this. Any number will do.
const SEED: u64 = 42;
/// How long the guest may take to count what was sent.
const SETTLE: Duration = Duration::from_secs(20);
/// Random flows among which one for a given queue is found. Chosen: the smallest part of a table that is set here is a twelfth.
const TRIES: usize = 1000;
/// What a web page weighs that is fetched through the gateway. **Units:** bytes.
const PAGE: usize = 2_000_000;
/// Datagrams of the echo check.
const ECHOES: usize = 200;

/// A named check.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    /// Whether it is part of `--short`.
    pub(crate) short: bool,
    pub(crate) run: fn(&mut Lab) -> Result<String>,
}

/// All checks.
pub(crate) const ALL: &[Check] = &[
    Check { name: "the NICs have four queues and a Toeplitz table", short: true, run: nics_are_as_wanted },
    Check { name: "a key set by ethtool is in force", short: true, run: key_can_be_set },
    Check { name: "pktgen is there", short: true, run: pktgen_is_there },
    Check { name: "inside frames land by source address", short: false, run: inside_by_source },
    Check { name: "outside frames land by destination address and port", short: false, run: outside_by_destination },
    Check { name: "a table set while an XDP program is attached is in force", short: false, run: table_can_be_set },
    Check { name: "the gateway binds all queues without copying", short: true, run: gateway_binds },
    Check { name: "ping, UDP and TCP pass the gateway, and no frame is missing", short: true, run: traffic_passes },
    Check { name: "pktgen's packets pass the gateway and come back, each counted", short: true, run: pktgen::smoke },
    Check { name: "100,000 frames through four workers: none misplaced", short: false, run: owners::four_workers },
    Check { name: "a key changed under traffic: seen, nothing lost, trusted again", short: false, run: owners::changed_key },
    Check { name: "two workers: none misplaced", short: false, run: owners::two_workers },
    Check { name: "one worker: nothing handed over", short: false, run: owners::one_worker },
    Check { name: "NICs left alone: handed over as foretold, nothing lost", short: false, run: owners::in_software },
    Check { name: "pktgen: all ways, a search, and what the gateway refuses", short: false, run: pktgen::all_ways },
    Check { name: "pktgen: after overload both ways nothing is lost at a low rate", short: false, run: pktgen::overload },
    Check { name: "after SIGTERM the NICs are as they were", short: false, run: settings::put_back },
    Check { name: "after kill, start and SIGTERM the NICs are as they were", short: false, run: settings::put_back_after_kill },
    Check { name: "the gateway ends and the NICs receive again", short: false, run: gateway_ends },
];

fn nics_are_as_wanted(lab: &mut Lab) -> Result<String> {
    for (nic, _) in NICS {
        let driver = lab.guest.expect(&format!("ethtool -i {nic}"))?;
        ensure!(driver.contains("driver: virtio_net"), "{nic}: {driver}");
        let channels = lab.guest.expect(&format!("ethtool -l {nic}"))?;
        ensure!(
            channels.matches(&format!("Combined:\t{QUEUES}")).count() == 2,
            "{nic}: not {QUEUES} channels of {QUEUES}: {channels}"
        );
        let table = lab.rss(nic)?.table;
        for queue in 0..QUEUES as u32 {
            let part = table.iter().filter(|&&entry| entry == queue).count();
            ensure!(part == table.len() / QUEUES, "{nic}: queue {queue} has {part} of {} entries", table.len());
        }
    }
    Ok(format!("2 NICs, {QUEUES} queues each, 128 entries in equal parts"))
}

fn key_can_be_set(lab: &mut Lab) -> Result<String> {
    for (nic, _) in NICS {
        let key = Key::synthesised(Fields::Source, &mut Numbers::new(SEED + 1));
        set_key(lab, nic, "hkey", &key)?;
    }
    Ok("40 bytes, read back the same on both".to_owned())
}

/// Sets a NIC's key, with what else `ethtool -X` is told before it, and reads both back.
fn set_key(lab: &mut Lab, nic: &str, words: &str, key: &Key) -> Result<Rss> {
    lab.guest.expect(&format!("ethtool -X {nic} {words} {key}"))?;
    let rss = lab.rss(nic)?;
    ensure!(rss.key == *key, "{nic}: set {key}, read {}", rss.key);
    Ok(rss)
}

fn pktgen_is_there(lab: &mut Lab) -> Result<String> {
    let threads = lab.guest.expect("ls /proc/net/pktgen")?.lines().filter(|line| line.starts_with("kpktgend_")).count();
    ensure!(threads == QUEUES, "{threads} threads of pktgen");
    Ok(format!("{threads} threads"))
}

/// Inside hosts to anywhere: UDP, TCP, pings and fragments of one source address have one queue.
fn inside_by_source(lab: &mut Lab) -> Result<String> {
    let kinds = &[Kind::Udp, Kind::Tcp, Kind::Ping, Kind::Fragment];
    place(lab, &Placement { nic: NICS[0].0, fields: Fields::Source, kinds, table: "equal 4", frames: FRAMES / 2 })
}

/// Anyone to external endpoints: UDP and TCP to one endpoint have one queue. Pings and fragments do not carry the port.
fn outside_by_destination(lab: &mut Lab) -> Result<String> {
    let kinds = &[Kind::Udp, Kind::Tcp];
    place(lab, &Placement { nic: NICS[1].0, fields: Fields::Destination, kinds, table: "equal 4", frames: FRAMES / 2 })
}

/// virtio_net goes back to equal parts when an XDP program is attached, and shows the old table all the same; what is set afterwards
/// holds.
fn table_can_be_set(lab: &mut Lab) -> Result<String> {
    let kinds = &[Kind::Udp, Kind::Tcp];
    place(lab, &Placement { nic: NICS[0].0, fields: Fields::Source, kinds, table: "weight 5 1 2 3", frames: FRAMES / 5 })
}

/// What a datagram of a flow is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    Tcp,
    Ping,
    /// The first piece of a datagram that the others never follow.
    Fragment,
}

impl Kind {
    fn datagram(self, flow: &Flow) -> Vec<u8> {
        let Flow { source, destination } = *flow;
        let packet = match self {
            Self::Udp => PacketBuilder::udp(source, destination),
            Self::Tcp => PacketBuilder::tcp(source, destination, ACK),
            Self::Ping => PacketBuilder::query(source.address, destination.address, Query::Echo, source.port),
            Self::Fragment => PacketBuilder::udp(source, destination).more_fragments(true),
        };
        packet.payload_len(24).datagram()
    }
}

/// What is sent to a NIC that was told how to place it.
struct Placement {
    nic: &'static str,
    fields: Fields,
    kinds: &'static [Kind],
    /// The table, in the words of `ethtool -X`.
    table: &'static str,
    frames: usize,
}

/// Sets a synthesised key, then for each queue sends only packets that are predicted for it. Whatever another queue counts is misplaced.
/// No gateway runs, and the guest drops what is not for itself.
fn place(lab: &mut Lab, what: &Placement) -> Result<String> {
    let &Placement { nic, fields, kinds, table, frames } = what;
    lab.stop_gateway()?;
    lab.start_counting(nic)?;
    let mut numbers = Numbers::new(SEED);
    let rss = set_key(lab, nic, &format!("{table} hkey"), &Key::synthesised(fields, &mut numbers))?;
    let sender = Sender::open(if fields == Fields::Source { &lab.inside } else { &lab.outside })?;
    let part = frames / QUEUES;
    let (mut misplaced, mut lost) = (0, 0);
    for queue in 0..QUEUES {
        let kinds = kinds.iter().cycle().take(part);
        let datagrams = kinds.map(|kind| Ok(kind.datagram(&flow_for(&rss, fields, queue, &mut numbers)?)));
        let datagrams: Vec<_> = datagrams.collect::<Result<_>>()?;
        let before = lab.received(nic)?;
        sender.send(&datagrams)?;
        let counted = settled(lab, nic, &before, part as u64)?;
        let all: u64 = counted.iter().sum();
        ensure!(all <= part as u64, "{all} frames came of {part}: who else is sending?");
        misplaced += all - counted[queue];
        lost += part as u64 - all;
    }
    lab.stop_counting()?;
    ensure!(misplaced == 0, "{misplaced} of {frames} frames misplaced, {lost} lost");
    ensure!(lost == 0, "{lost} of {frames} frames lost, none misplaced");
    Ok(format!("{frames} frames, 0 misplaced, 0 lost, {kinds:?}"))
}

/// A random flow that the NIC puts on `queue`. **Errors:** none was found among [`TRIES`].
fn flow_for(rss: &Rss, fields: Fields, queue: usize, numbers: &mut Numbers) -> Result<Flow> {
    let mut flow = || match fields {
        // Each way what is behind the guest is on the far side, and no address is the guest's own.
        Fields::Source => Flow { source: numbers.endpoint([10, 1]), destination: numbers.endpoint([198, 18]) },
        Fields::Destination => Flow { source: numbers.endpoint([198, 18]), destination: numbers.endpoint(BEHIND) },
    };
    let found = (0..TRIES).map(|_| flow()).find(|flow| rss.queue(fields, flow) as usize == queue);
    found.with_context(|| format!("no flow of {TRIES} goes to queue {queue}"))
}

/// What each queue has counted since `before`, once it comes to `sent` packets or a while has passed.
fn settled(lab: &mut Lab, nic: &str, before: &[u64], sent: u64) -> Result<Vec<u64>> {
    let start = Instant::now();
    loop {
        let counted: Vec<u64> = lab.received(nic)?.iter().zip(before).map(|(now, before)| now - before).collect();
        if counted.iter().sum::<u64>() >= sent || start.elapsed() >= SETTLE {
            return Ok(counted);
        }
    }
}

fn gateway_binds(lab: &mut Lab) -> Result<String> {
    lab.start_gateway(Manner::SetUp)?;
    let stats = lab.stats()?;
    let interfaces = stats["interfaces"].as_array().context("no interfaces")?;
    for (nic, _) in NICS {
        let interface = interfaces.iter().find(|it| it["name"] == nic).with_context(|| format!("no {nic} in {stats}"))?;
        let granted = (&interface["mode"], &interface["copy"], &interface["queues"]);
        let wanted = (&"native".into(), &"zero_copy".into(), &QUEUES.into());
        ensure!(granted == wanted, "{nic} was granted {granted:?}\n{}", lab.gateway_log()?);
    }
    let busy = interfaces.iter().filter(|it| it["busy_poll"] == true).count();
    Ok(format!("2 NICs, native, zero_copy, {QUEUES} queues, busy polling on {busy}"))
}

fn traffic_passes(lab: &mut Lab) -> Result<String> {
    lab.start_gateway(Manner::SetUp)?;
    let before = lab.stats()?;
    let printed = lab.inside.run(&format!("ping -c 10 -i 0.2 -W 5 {SERVER}"))?;
    ensure!(printed.contains(" 0% packet loss"), "{printed}");
    udp_echoes(lab)?;
    let web = Service::http(&lab.outside, &format!("{SERVER}:80"))?;
    let answer = lab.inside.run(&format!("curl -sS --max-time 15 http://{SERVER}/"))?;
    let from = seen_from(&answer)?;
    ensure!(from.ip().to_string() == POOL, "the server sees {from}");
    let page =
        lab.inside.run(&format!("curl -sS --max-time 15 -o /dev/null -w %{{size_download}} http://{SERVER}/bytes/{PAGE}"))?;
    ensure!(page.trim() == PAGE.to_string(), "{page} of {PAGE} bytes came");
    drop(web);
    // The gateway publishes its counters ten times a second.
    lab.guest.expect("sleep 1")?;
    let after = lab.stats()?;
    nothing_is_missing(&before, &after)?;
    let forwarded = |stats| Ok::<_, anyhow::Error>(counter(stats, "outbound_packets")? + counter(stats, "inbound_packets")?);
    let packets = forwarded(&after)? - forwarded(&before)?;
    // Pings and echoes have an answer each; how many packets a page takes is TCP's affair.
    ensure!(packets > 2 * (10 + ECHOES as u64), "the gateway has counted {packets} packets only");
    Ok(format!("10 pings, {ECHOES} datagrams, {PAGE} bytes by TCP; the server sees {POOL}; {packets} packets forwarded"))
}

/// Sends datagrams from many ports to a server outside and wants each back, seen from the pool's address.
fn udp_echoes(lab: &Lab) -> Result<()> {
    let echo = Service::udp_echo(&lab.outside, &format!("{SERVER}:7"))?;
    let exchange = |number: usize| -> Result<()> {
        let socket = UdpSocket::bind((CLIENTS[0], 0))?;
        socket.connect((SERVER, 7))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let text = format!("datagram {number}");
        socket.send(text.as_bytes())?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer).with_context(|| format!("{text}: no answer"))?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        ensure!(answer.ends_with(&text) && seen_from(&answer)?.ip().to_string() == POOL, "{text} was answered by {answer}");
        Ok(())
    };
    lab.inside.enter(|| (0..ECHOES).try_for_each(exchange))??;
    ensure!(echo.served() == ECHOES as u64, "the server has seen {} of {ECHOES} datagrams", echo.served());
    Ok(())
}

/// Wants all frames accounted for, and that no ring has failed meanwhile.
///
/// Meanwhile, not since the start: a queue that was bound without copying asks for frames before its fill ring has any, and counts that.
fn nothing_is_missing(before: &Value, after: &Value) -> Result<()> {
    ensure!(after["frames"]["missing"] == 0, "frames: {}", after["frames"]);
    ensure!(after["unhealthy"].is_null(), "unhealthy: {}", after["unhealthy"]);
    for fault in ["rx_dropped", "rx_ring_full", "rx_fill_ring_empty", "rx_invalid_descs", "tx_invalid_descs"] {
        let count = over_queues(after, fault)? - over_queues(before, fault)?;
        ensure!(count == 0, "{fault} has grown by {count}: {}", after["queues"]);
    }
    Ok(())
}

/// A number of `stats --json`, all AF_XDP queues together. **Errors:** it does not have all queues.
fn over_queues(stats: &Value, name: &str) -> Result<u64> {
    let queues = stats["queues"].as_array().context("no queues")?;
    ensure!(queues.len() == NICS.len() * QUEUES, "{} queues", queues.len());
    queues.iter().map(|queue| queue[name].as_u64().with_context(|| format!("no {name}"))).sum()
}

/// A counter of `stats --json`. **Errors:** there is none of that name.
fn counter(stats: &Value, name: &str) -> Result<u64> {
    let counters = stats["counters"].as_array().context("no counters")?;
    let found = counters.iter().find(|counter| counter["name"] == name).and_then(|counter| counter["value"].as_u64());
    found.with_context(|| format!("no counter {name}"))
}

/// After the gateway has ended by itself the NICs give their frames to the kernel again.
fn gateway_ends(lab: &mut Lab) -> Result<String> {
    lab.start_gateway(Manner::SetUp)?;
    lab.stats().context("it has to run still")?;
    lab.stop_gateway()?;
    let log = lab.gateway_log()?;
    if log.contains("panicked") {
        bail!("the gateway panicked\n{log}");
    }
    for (host, address) in [(&lab.inside, "10.0.0.1"), (&lab.outside, "203.0.113.1")] {
        let printed = host.run(&format!("ping -c 3 -i 0.2 -W 5 {address}"))?;
        ensure!(printed.contains(" 0% packet loss"), "{printed}");
    }
    Ok("the guest itself answers on both sides".to_owned())
}
