//! Protocols without ports over real sockets: raw ones, and the kernel's UDP-Lite, which judges the checksum that the gateway has mended.
//!
//! Blind spots: the kernel's own GRE, SCTP and IPsec, which not every kernel has; over veth its SCTP would leave its checksum to the wire.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::program::wait_until;
use portcullis_testkit::topology::sniff::{Seen, Sniffer};
use portcullis_testkit::topology::{self, CLIENTS, GATEWAY_INSIDE, GATEWAY_OUTSIDE, POOL, SERVER, SERVER_SECOND};
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::with_interface_pool;
use crate::world::{ANSWER, World, run_portcullis, usual};

const GRE: u8 = 47;
const ESP: u8 = 50;
const AH: u8 = 51;
/// EtherIP, which no kernel here listens to.
const ETHERIP: u8 = 97;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// The first bytes of what each protocol carries here, so that whoever listens does not take it for something else: GRE of a protocol for
/// experiments, a security association, SCTP's ports and tag.
fn head(protocol: u8) -> &'static [u8] {
    match protocol {
        GRE => &[0, 0, 0x88, 0xB5],
        SCTP => &[0x10, 0x92, 0x10, 0x93, 0, 0, 0, 1, 0, 0, 0, 0],
        _ => &[0, 0, 0x10, 0x92, 0, 0, 0, 1],
    }
}

/// A host's end of a protocol without ports: what it sends has the kernel's IPv4 header, and fragments where it is long.
struct Talker {
    socket: Socket,
    protocol: u8,
}

impl Talker {
    fn open(host: &Namespace, address: &str, protocol: u8) -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
            socket.bind(&at(address, 0).into())?;
            socket.set_read_timeout(Some(ANSWER))?;
            Ok(socket)
        };
        let socket = host.enter(open)?.with_context(|| format!("protocol {protocol} in {}", host.name()))?;
        Ok(Self { socket, protocol })
    }

    fn send(&self, to: &str, text: &str) -> Result<()> {
        let bytes = [head(self.protocol), text.as_bytes()].concat();
        self.socket.send_to(&bytes, &at(to, 0).into()).with_context(|| format!("protocol {} to {to}", self.protocol))?;
        Ok(())
    }

    /// Whom the next packet is from, and its text.
    fn receive(&self) -> Result<(Ipv4Addr, String)> {
        let mut packet = vec![0; 65_536];
        let length = (&self.socket).read(&mut packet).with_context(|| format!("no packet of protocol {} came", self.protocol))?;
        let source = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
        let start = usize::from(packet[0] & 15) * 4 + head(self.protocol).len();
        Ok((source, String::from_utf8_lossy(&packet[start.min(length)..length]).into_owned()))
    }

    /// Fails unless the next packet is this one.
    fn hears(&self, from: &str, text: &str) -> Result<()> {
        let (source, heard) = self.receive()?;
        ensure!(source.to_string() == from, "protocol {}: from {source} instead of {from}", self.protocol);
        ensure!(heard == text, "protocol {}: {} bytes came, {} were sent", self.protocol, heard.len(), text.len());
        Ok(())
    }

    /// Fails if a packet comes within a time that is ample on one machine.
    fn hears_nothing(&self) -> Result<()> {
        self.socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        if let Ok((source, text)) = self.receive() {
            bail!("protocol {}: {text:?} came from {source}", self.protocol);
        }
        self.socket.set_read_timeout(Some(ANSWER))?;
        Ok(())
    }
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddrV4::new(address.parse().expect("an address"), port).into()
}

fn client(world: &World, number: usize, protocol: u8) -> Result<Talker> {
    Talker::open(world.client(number), CLIENTS[number], protocol)
}

/// How many packets were dropped for a reason.
fn dropped(world: &World, reason: &str) -> Result<u64> {
    let stats = world.json("stats --json")?;
    let row = stats["drops"].as_array().context("no drops in the stats")?.iter().find(|row| row["name"] == reason);
    Ok(row.and_then(|row| row["value"].as_u64()).unwrap_or_default())
}

fn wait_for_drop(world: &World, reason: &str, before: u64) -> Result<()> {
    let counted = wait_until(Duration::from_secs(3), || dropped(world, reason).is_ok_and(|now| now > before));
    ensure!(counted, "nothing more was counted as {reason}");
    Ok(())
}

/// An ICMP error of that type and code, that quotes a packet of the protocol from `source`.
fn is_error_about(packet: &Seen, kind: [u8; 2], protocol: u8, source: &str) -> bool {
    let (icmp, quote) = (packet.payload(), packet.payload().get(8..).filter(|quote| quote.len() >= 20));
    packet.protocol == 1
        && icmp.starts_with(&kind)
        && quote.is_some_and(|quote| {
            quote[9] == protocol && Ipv4Addr::new(quote[12], quote[13], quote[14], quote[15]).to_string() == source
        })
}

#[test]
fn packets_and_fragments_of_gre_esp_and_sctp_reach_a_server_and_the_answers_come_back() {
    run_portcullis(usual(), |world| {
        for protocol in [GRE, ESP, SCTP] {
            let (here, there) = (client(world, 0, protocol)?, Talker::open(world.server(), SERVER, protocol)?);
            for text in ["short", &"fragments ".repeat(400)] {
                here.send(SERVER, text)?;
                there.hears(POOL, text).context("outbound")?;
                there.send(POOL, text)?;
                here.hears(SERVER, text).context("inbound")?;
            }
        }
        let shown = || world.metric("portcullis_other_translations", "");
        // The workers tell their numbers ten times a second.
        ensure!(
            wait_until(Duration::from_secs(3), || shown().is_ok_and(|shown| shown >= 3.0)),
            "{:?} translations are shown",
            shown()
        );
        ["gre", "esp", "sctp"].into_iter().try_for_each(|protocol| is_listed(world, protocol))
    });
}

/// Whether the translation of the first client's packets to the server stands among the sessions.
fn is_listed(world: &World, protocol: &str) -> Result<()> {
    let listed = world.json_lines(&format!("sessions --json --protocol {protocol}"))?;
    let ends =
        |one: &serde_json::Value| ["internal", "external", "remote"].map(|end| one[end]["address"].as_str().map(str::to_owned));
    let wanted = [CLIENTS[0], POOL, SERVER].map(|address| Some(address.to_owned()));
    let found = listed.iter().find(|one| ends(one) == wanted).with_context(|| format!("{protocol} is not listed: {listed:?}"))?;
    ensure!(found["protocol"] == protocol && found["state"] == "replied", "{found}");
    ensure!(found["packets_out"].as_u64() > Some(1) && found["packets_in"].as_u64() > Some(1), "{found}");
    Ok(())
}

/// RFC 3828, section 3.1: its checksum is over the addresses, and the kernel drops what has a wrong one.
#[test]
fn the_kernels_udp_lite_finds_its_checksums_right() {
    run_portcullis(usual(), |world| {
        let open = |host: &Namespace, address: &str| -> Result<Option<Socket>> {
            let made = host.enter(|| Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::from(i32::from(UDP_LITE)))))?;
            let Ok(socket) = made else { return Ok(None) };
            socket.bind(&at(address, 7000).into())?;
            socket.set_read_timeout(Some(ANSWER))?;
            Ok(Some(socket))
        };
        let (Some(here), Some(there)) = (open(world.client(0), CLIENTS[0])?, open(world.server(), SERVER)?) else {
            topology::skip("this kernel has no UDP-Lite", "others::the_kernels_udp_lite_finds_its_checksums_right");
            return Ok(());
        };
        let hears = |socket: &Socket, text: &str| -> Result<()> {
            let mut bytes = [0; 4096];
            let mut reader: &Socket = socket;
            let length = reader.read(&mut bytes).context("nothing came with a right checksum")?;
            ensure!(&bytes[..length] == text.as_bytes(), "{length} bytes came, {} were sent", text.len());
            Ok(())
        };
        for text in ["short", &"fragments ".repeat(300)] {
            here.send_to(text.as_bytes(), &at(SERVER, 7000).into())?;
            hears(&there, text).context("outbound")?;
            there.send_to(text.as_bytes(), &at(POOL, 7000).into())?;
            hears(&here, text).context("inbound")?;
        }
        Ok(())
    });
}

/// There is one external address: the second client cannot be told from the first.
#[test]
fn a_second_client_is_refused_and_no_answer_goes_to_the_wrong_one() {
    run_portcullis(usual(), |world| {
        let there = Talker::open(world.server(), SERVER_SECOND, GRE)?;
        let (first, second) = (client(world, 0, GRE)?, client(world, 1, GRE)?);
        let before = dropped(world, "no_mapping")?;
        there.send(POOL, "too early")?;
        wait_for_drop(world, "no_mapping", before)?;
        let errors = Sniffer::start(world.client(1))?;
        first.send(SERVER_SECOND, "from the first")?;
        there.hears(POOL, "from the first")?;
        let before = dropped(world, "other_protocol_ambiguous")?;
        second.send(SERVER_SECOND, "from the second")?;
        wait_for_drop(world, "other_protocol_ambiguous", before)?;
        there.hears_nothing().context("the second client's packet came out")?;
        let is_told =
            |packet: &Seen| is_error_about(packet, [3, 13], GRE, CLIENTS[1]) && packet.source.to_string() == GATEWAY_INSIDE;
        let told = wait_until(Duration::from_secs(3), || !errors.seen(is_told).is_empty());
        ensure!(told, "the second client was not told: {:?}", errors.seen(|packet| packet.protocol == 1));
        there.send(POOL, "to the first")?;
        first.hears(SERVER_SECOND, "to the first").context("and not what came too early")?;
        second.hears_nothing()
    });
}

/// The server has no such protocol: its kernel says so, and quotes what came with the pool's address.
#[test]
fn protocol_unreachable_comes_to_the_client_about_what_it_has_sent() {
    run_portcullis(usual(), |world| the_server_has_no_etherip(world));
}

fn the_server_has_no_etherip(world: &World) -> Result<()> {
    let errors = Sniffer::start(world.client(0))?;
    client(world, 0, ETHERIP)?.send(SERVER, "anyone?")?;
    let is_told = |packet: &Seen| is_error_about(packet, [3, 2], ETHERIP, CLIENTS[0]) && packet.source.to_string() == SERVER;
    let told = wait_until(Duration::from_secs(3), || !errors.seen(is_told).is_empty());
    ensure!(told, "not told: {:?}", errors.seen(|packet| packet.protocol == 1));
    Ok(())
}

/// On an address that the box has too, what no client has asked for is the box's own, and what is not translated always is.
#[test]
fn on_the_boxs_own_address_clients_are_answered_and_all_else_is_the_boxs() {
    run_portcullis(with_interface_pool(), |world| {
        let open = |host, address| Talker::open(host, address, GRE);
        let (here, there) = (client(world, 0, GRE)?, open(world.server(), SERVER)?);
        let of_box = open(world.topology.gateway(), GATEWAY_OUTSIDE)?;
        for text in ["short", &"fragments ".repeat(400)] {
            there.send(GATEWAY_OUTSIDE, text)?;
            of_box.hears(SERVER, text).context("to the box")?;
        }
        for text in ["short", &"fragments ".repeat(400)] {
            here.send(SERVER, text)?;
            there.hears(GATEWAY_OUTSIDE, text).context("from the client")?;
            there.send(GATEWAY_OUTSIDE, text)?;
            here.hears(SERVER, text).context("to the client")?;
        }
        of_box.hears_nothing().context("the box hears what is the client's")?;
        here.send(GATEWAY_OUTSIDE, "from inside")?;
        of_box.hears(CLIENTS[0], "from inside")?;
        let (headers, of_box) =
            (Talker::open(world.server(), SERVER, AH)?, Talker::open(world.topology.gateway(), GATEWAY_OUTSIDE, AH)?);
        headers.send(GATEWAY_OUTSIDE, "not translated")?;
        of_box.hears(SERVER, "not translated")?;
        the_server_has_no_etherip(world)
    });
}

/// Has the gateway read another setup, and waits until it has.
fn reload(world: &World, setup: &Setup) -> Result<()> {
    let (file, before) = (world.gateway.config_path(), world.gateway.log().len());
    std::fs::write(&file, setup.toml(file.parent().context("a file in a directory")?))?;
    let pid = world.gateway.pid().context("the gateway is a program")?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGHUP)?;
    let reloaded = wait_until(Duration::from_secs(5), || world.gateway.log()[before..].contains("the configuration is reloaded"));
    ensure!(reloaded, "not reloaded:\n{}", &world.gateway.log()[before..]);
    // Each worker goes by it a moment later.
    wait_until(Duration::from_millis(200), || false);
    Ok(())
}

/// What is translated no more stays inside, and what comes from outside is the box's again, on an address that it has.
#[test]
fn a_reload_says_which_protocols_are_translated() {
    run_portcullis(with_interface_pool(), |world| {
        let (here, there) = (client(world, 0, GRE)?, Talker::open(world.server(), SERVER, GRE)?);
        let of_box = Talker::open(world.topology.gateway(), GATEWAY_OUTSIDE, GRE)?;
        here.send(SERVER, "before")?;
        there.hears(GATEWAY_OUTSIDE, "before")?;
        let tables = "[nat]\nother_protocols = [\"esp\"]\n".to_owned();
        reload(world, &Setup { tables, ..with_interface_pool() })?;
        let before = dropped(world, "unsupported_protocol")?;
        here.send(SERVER, "no more")?;
        wait_for_drop(world, "unsupported_protocol", before)?;
        there.hears_nothing().context("what is not translated came out")?;
        there.send(GATEWAY_OUTSIDE, "the box's")?;
        of_box.hears(SERVER, "the box's")?;
        here.hears_nothing().context("what is not translated came in")?;
        reload(world, &with_interface_pool())?;
        here.send(SERVER, "once more")?;
        there.hears(GATEWAY_OUTSIDE, "once more")
    });
}
