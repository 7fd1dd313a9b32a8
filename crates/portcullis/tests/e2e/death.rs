//! The gateway stops, or dies: nothing untranslated leaves, and it starts again within seconds.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::program::{Running, wait_until};

use crate::world::{World, ask, contains, run_portcullis, udp, usual};

/// How long a new gateway may take until a page can be had: a killed one's queues are busy for up to 2 s.
const AGAIN: Duration = Duration::from_secs(8);

/// Clients that send and do not stop: pings, datagrams of an old mapping, and new connections.
struct Senders {
    pings: [Running; 2],
    old: UdpSocket,
    sent: u32,
}

impl Senders {
    fn start(world: &World) -> Result<Self> {
        let ping = |client: usize| world.client(client).program("ping", ["-f", "-i", "0.01", "-w", "60", "198.51.100.2"]).start();
        let old = udp(world.client(0), "10.0.0.2:6500")?;
        // A page may have come by one queue of a new gateway while another was not served yet.
        let mut answer = ask(&old, "198.51.100.2:7", "before");
        for _ in 0..2 {
            answer = answer.or_else(|_| ask(&old, "198.51.100.2:7", "before"));
        }
        answer?;
        Ok(Self { pings: [ping(0)?, ping(1)?], old, sent: 0 })
    }

    /// Sends on for a while, over what is there and over what is new.
    fn send_for(&mut self, world: &World, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            // With no gateway an ICMP error may come back for an earlier datagram.
            let _ = self.old.send_to(b"after", "198.51.100.2:7");
            let new = udp(world.client(1), "10.0.0.3:0")?;
            let _ = new.send_to(b"new", "198.51.100.3:7");
            let _ = world.client(1).program("nc", ["-z", "-w", "1", "198.51.100.2", "80"]).limit(Duration::from_secs(3)).run()?;
            self.sent += 2;
        }
        ensure!(self.pings.iter_mut().all(Running::is_running), "the pings ended");
        ensure!(self.sent > 0, "nothing was sent");
        Ok(())
    }
}

#[test]
fn nothing_untranslated_leaves_when_the_gateway_is_killed_and_a_new_one_starts_within_seconds() {
    run_portcullis(usual(), |world| {
        for round in 0..2 {
            let mut senders = Senders::start(world)?;
            world.gateway.kill()?;
            senders.send_for(world, Duration::from_secs(1))?;
            world.nothing_internal_was_seen_outside().with_context(|| format!("killed, round {round}"))?;
            let start = Instant::now();
            world.start_again()?;
            world.wait_for_traffic(AGAIN)?;
            ensure!(start.elapsed() < AGAIN, "it took {:.1?} to carry traffic again", start.elapsed());
            world.nothing_internal_was_seen_outside().with_context(|| format!("started again, round {round}"))?;
        }
        Ok(())
    });
}

#[test]
fn nothing_untranslated_leaves_when_the_gateway_is_told_to_stop() {
    run_portcullis(usual(), |world| {
        let mut senders = Senders::start(world)?;
        let end = world.gateway.stop()?.context("a program")?;
        ensure!(end.ok(), "{end}");
        for device in ["inside0", "outside0"] {
            let link = world.topology.gateway().ip(&format!("link show {device}"))?;
            ensure!(!link.contains("xdp"), "a program is still attached: {link}");
        }
        senders.send_for(world, Duration::from_secs(1))?;
        world.nothing_internal_was_seen_outside().context("after the end")?;
        let ping = world.client(0).program("ping", ["-c", "1", "-W", "2", "10.0.0.1"]).run()?;
        contains(&ping.all(), " 0% packet loss").context("the box is still a host")?;
        world.start_again()?;
        world.wait_for_traffic(AGAIN).map(drop)
    });
}

#[test]
fn nothing_untranslated_leaves_while_the_gateway_starts_or_stops() {
    run_portcullis(usual(), |world| {
        let mut senders = Senders::start(world)?;
        for _ in 0..3 {
            world.restart(usual())?;
            senders.send_for(world, Duration::from_millis(200))?;
        }
        world.nothing_internal_was_seen_outside()
    });
}

#[test]
fn nothing_untranslated_leaves_towards_the_inside() {
    run_portcullis(usual(), |world| {
        // Outside, somebody has a route to the inside: such packets are not the NAT's to carry, nor the kernel's.
        world.router().ip("route add 10.0.0.0/24 via 203.0.113.1")?;
        let sniffer = portcullis_testkit::topology::sniff::Sniffer::start_for(world.client(0), |packet| {
            packet.destination.octets() == [10, 0, 0, 2] && packet.source.octets()[0] == 203
        })?;
        world.stop_watching_outside();
        let knock = |world: &World| -> Result<()> {
            let socket = udp(world.router(), "203.0.113.2:0")?;
            (0..20).try_for_each(|_| socket.send_to(b"knock", "10.0.0.2:7").map(drop))?;
            let page = world.router().program("curl", ["-sS", "--max-time", "0.5", "http://10.0.0.2/"]).run()?;
            ensure!(!page.ok(), "an outside host has reached an internal address: {page}");
            Ok(())
        };
        let while_running = knock(world);
        world.gateway.kill()?;
        let while_dead = knock(world);
        world.start_again()?;
        world.router().ip("route delete 10.0.0.0/24 via 203.0.113.1")?;
        wait_until(Duration::from_millis(200), || false);
        world.watch_outside()?;
        while_running.context("while the gateway runs")?;
        while_dead.context("after the gateway was killed")?;
        let seen = sniffer.seen(|_| true);
        ensure!(seen.is_empty(), "{} packets came through untranslated", seen.len());
        Ok(())
    });
}
