//! Packets that no program sends: each is dropped, counted by its reason, and seen by nobody.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::program::wait_until;
use portcullis_testkit::topology::sniff::Sniffer;

use crate::world::{World, contains, run_portcullis, usual};

/// How long a packet may take to be counted. Ample: it takes a tenth of a second where nothing else runs.
const COUNTED: Duration = Duration::from_secs(10);

/// Where the packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Inside,
    Outside,
}

/// What it carries: a protocol's number and the bytes after the IPv4 header.
type Body = (u8, &'static [u8]);

/// UDP from 4242 to 4243 without a checksum, with the mark that listeners look for.
const UDP: Body = (17, b"\x10\x92\x10\x93\x00\x10\x00\x00crafted!");
/// The same to the forwarded UDP port 5300.
const UDP_TO_FORWARD: Body = (17, b"\x10\x92\x14\xb4\x00\x10\x00\x00crafted!");
/// TCP with an ACK alone, from 4242 to 80.
const TCP_ACK: Body = (6, b"\x10\x92\x00\x50\x00\x00\x00\x01\x00\x00\x00\x01\x50\x10\x20\x00\x00\x00\x00\x00crafted!");
/// IPsec's authentication header, which covers the addresses (RFC 3715, section 2.1).
const AH: Body = (51, b"\x3b\x01\x00\x00\x00\x00\x10\x92crafted!");
/// GRE of a protocol for experiments.
const GRE: Body = (47, b"\x00\x00\x88\xb5crafted!");
/// A UDP header that claims more bytes than there are.
const UDP_TOO_LONG: Body = (17, b"\x10\x92\x10\x93\x7f\xff\x00\x00crafted!");
/// A redirect (type 5).
const ICMP_REDIRECT: Body = (1, b"\x05\x01\x5d\x9f\x00\x00\x00\x00crafted!");

/// A packet, and the reason for which it is dropped.
const ROWS: [(From, &str, &str, Body, &str); 17] = [
    (From::Inside, "172.16.9.9", "198.51.100.2", UDP, "spoofed_inside"),
    (From::Inside, "198.51.100.3", "198.51.100.2", UDP, "spoofed_inside"),
    (From::Inside, "203.0.113.10", "198.51.100.2", UDP, "spoofed_inside"),
    (From::Inside, "127.0.0.1", "198.51.100.2", UDP, "martian_source"),
    (From::Inside, "224.0.0.1", "198.51.100.2", UDP, "martian_source"),
    (From::Inside, "255.255.255.255", "198.51.100.2", UDP, "martian_source"),
    (From::Inside, "10.0.0.2", "240.0.0.1", UDP, "martian_destination"),
    (From::Inside, "10.0.0.2", "198.51.100.2", AH, "unsupported_protocol"),
    (From::Inside, "10.0.0.2", "203.0.113.10", GRE, "no_mapping"),
    (From::Inside, "10.0.0.2", "198.51.100.2", UDP_TOO_LONG, "bad_transport_header"),
    (From::Outside, "10.0.0.3", "203.0.113.10", UDP_TO_FORWARD, "spoofed_outside"),
    (From::Outside, "203.0.113.10", "203.0.113.10", UDP_TO_FORWARD, "spoofed_outside"),
    (From::Outside, "127.0.0.1", "203.0.113.10", UDP_TO_FORWARD, "martian_source"),
    (From::Outside, "203.0.113.2", "203.0.113.10", TCP_ACK, "no_mapping"),
    (From::Outside, "203.0.113.2", "203.0.113.10", GRE, "no_mapping"),
    (From::Outside, "203.0.113.2", "203.0.113.10", AH, "unsupported_protocol"),
    (From::Outside, "203.0.113.2", "203.0.113.10", ICMP_REDIRECT, "unsupported_icmp"),
];

/// An IPv4 packet; the kernel fills in the header's checksum and identification when it sends it.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, (protocol, body): Body) -> Vec<u8> {
    let total = (20 + body.len() as u16).to_be_bytes();
    let head = [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    [&head, source.octets().as_slice(), &destination.octets(), body].concat()
}

/// Sends a packet as it is.
fn send(host: &Namespace, source: &str, destination: &str, body: Body) -> Result<()> {
    let (source, destination) = (source.parse()?, destination.parse()?);
    let bytes = packet(source, destination, body);
    host.enter(|| -> nix::Result<()> {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        let [a, b, c, d] = destination.octets();
        sendto(raw.as_raw_fd(), &bytes, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty()).map(drop)
    })?
    .with_context(|| format!("sending from {source} to {destination}"))
}

/// How many packets were dropped for a reason.
fn dropped(world: &World, reason: &str) -> Result<u64> {
    let stats = world.json("stats --json")?;
    let drops = stats["drops"].as_array().context("no drops in the stats")?;
    let row = drops.iter().find(|row| row["name"] == reason);
    Ok(row.and_then(|row| row["value"].as_u64()).unwrap_or_default())
}

#[test]
fn packets_that_nobody_should_send_are_dropped_for_their_reason_and_seen_by_nobody() {
    run_portcullis(usual(), |world| {
        /// Packets of a row.
        const EACH: u64 = 3;
        // The router itself sends such packets here; each row listens where they must not arrive.
        world.stop_watching_outside();
        let crafted = |host| Sniffer::start_for(host, |packet| packet.bytes.ends_with(b"crafted!"));
        for (from, source, destination, body, reason) in ROWS {
            let (sender, receiver) = match from {
                From::Inside => (world.client(0), world.router()),
                From::Outside => (world.router(), world.client(0)),
            };
            let listener = crafted(receiver)?;
            let before = dropped(world, reason)?;
            (0..EACH).try_for_each(|_| send(sender, source, destination, body))?;
            let mut count = 0;
            // Or more: hosts still repeat packets of connections that an earlier gateway knew, and these have no mapping either.
            let counted = wait_until(COUNTED, || {
                count = dropped(world, reason).map_or(count, |now| now.saturating_sub(before));
                count >= EACH
            });
            ensure!(counted, "{from:?}, {source} to {destination}: {count} of {EACH} counted as {reason}");
            ensure!(listener.seen(|_| true).is_empty(), "{from:?}, {source} to {destination}: it came through");
        }
        world.watch_outside()?;
        contains(&world.client(0).run("ping -c 1 -W 2 198.51.100.2")?, " 0% packet loss")
    });
}

/// RFC 5382, REQ-4 is about a SYN; a packet of no connection is nobody's, and opens nothing.
#[test]
fn a_tcp_packet_of_no_connection_opens_nothing() {
    run_portcullis(usual(), |world| {
        let before = dropped(world, "tcp_not_syn")?;
        let sessions =
            || world.json_lines("sessions --json").map(|list| list.iter().filter(|one| one["internal"]["port"] == 4242).count());
        send(world.client(0), "10.0.0.2", "198.51.100.2", TCP_ACK)?;
        let counted = wait_until(COUNTED, || dropped(world, "tcp_not_syn").is_ok_and(|now| now > before));
        ensure!(counted, "not counted as tcp_not_syn");
        ensure!(sessions()? == 0, "it opened a session");
        Ok(())
    });
}
