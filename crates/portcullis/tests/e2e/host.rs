//! The gateway box stays a host: its own services and its own connections work while it translates.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::gateway::{Pool, Setup};
use portcullis_testkit::topology::services::{Service, seen_from};

use crate::world::{contains, run, udp, usual};

/// The usual forwards, with the outside interface's own address as the pool.
pub(crate) fn with_interface_pool() -> Setup {
    Setup { pool: Pool::Interface, ..usual() }
}

#[test]
fn the_gateways_own_services_are_reached_from_inside() {
    run(usual(), |world| {
        let host = world.topology.gateway();
        let _ssh = Service::tcp_echo(host, "10.0.0.1:22")?;
        let _dns = Service::dns(host, "10.0.0.1:53")?;
        for client in [world.client(0), world.client(1)] {
            contains(&client.run("nc -N -w 2 10.0.0.1 22")?, "seen from 10.0.0.").context("a TCP server that speaks first")?;
            contains(&client.run("dig +short +tries=1 +time=2 @10.0.0.1 example.org")?, "192.0.2.53").context("a DNS server")?;
            contains(&client.run("ping -c 2 -i 0.2 -W 2 10.0.0.1")?, " 0% packet loss").context("ping inside")?;
            contains(&client.run("ping -c 2 -i 0.2 -W 2 203.0.113.1")?, " 0% packet loss").context("ping outside, from inside")?;
        }
        contains(&world.server().run("ping -c 2 -i 0.2 -W 2 203.0.113.1")?, " 0% packet loss").context("ping outside, from outside")
    });
}

#[test]
fn the_gateway_itself_reaches_both_sides() {
    run(usual(), |world| {
        let host = world.topology.gateway();
        contains(&host.run("curl -sS --max-time 5 http://198.51.100.2/")?, "seen from 203.0.113.1:")?;
        contains(&host.run("ping -c 2 -i 0.2 -W 2 198.51.100.2")?, " 0% packet loss")?;
        contains(&host.run("curl -sS --max-time 5 http://10.0.0.2/")?, "seen from 10.0.0.1:")?;
        contains(&host.run("ping -c 2 -i 0.2 -W 2 10.0.0.3")?, " 0% packet loss")
    });
}

#[test]
fn the_gateway_forwards_ipv6_as_before() {
    run(usual(), |world| {
        let (client, host, router) = (world.client(0), world.topology.gateway(), world.router());
        host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let set = |verb: &str| -> Result<()> {
            client.ip(&format!("-6 address {verb} fd00:1::2/64 dev eth0"))?;
            host.ip(&format!("-6 address {verb} fd00:1::1/64 dev inside0"))?;
            host.ip(&format!("-6 address {verb} fd00:2::1/64 dev outside0"))?;
            router.ip(&format!("-6 address {verb} fd00:2::2/64 dev gateway")).map(drop)
        };
        set("replace")?;
        client.ip("-6 route replace fd00:2::/64 via fd00:1::1")?;
        router.ip("-6 route replace fd00:1::/64 via fd00:2::1")?;
        let shown = client.program("ping", ["-c", "2", "-i", "0.2", "-W", "2", "fd00:2::2"]).run()?;
        set("delete")?;
        contains(&shown.all(), " 0% packet loss")
    });
}

#[test]
fn the_interfaces_own_address_serves_clients_and_the_box_at_once() {
    run(with_interface_pool(), |world| {
        let host = world.topology.gateway();
        let _ssh = Service::tcp_echo(host, "203.0.113.1:22")?;
        for _ in 0..5 {
            contains(&host.run("curl -sS --max-time 5 http://198.51.100.2/")?, "seen from 203.0.113.1:").context("the box")?;
            let client = world.client(0).run("curl -sS --max-time 5 http://198.51.100.2/")?;
            contains(&client, "seen from 203.0.113.1:").context("a client")?;
        }
        contains(&host.run("ping -c 2 -i 0.2 -W 2 198.51.100.2")?, " 0% packet loss").context("the box pings")?;
        contains(&world.client(1).run("ping -c 2 -i 0.2 -W 2 198.51.100.2")?, " 0% packet loss").context("a client pings")?;
        contains(&world.server().run("ping -c 2 -i 0.2 -W 2 203.0.113.1")?, " 0% packet loss").context("the box is pinged")?;
        contains(&world.server().run("nc -N -w 2 203.0.113.1 22")?, "seen from 198.51.100.2:").context("the box's own service")?;
        contains(&world.server().run("curl -sS --max-time 5 http://203.0.113.1:8080/")?, "at 10.0.0.2:80").context("a forward")?;
        contains(&world.client(1).run("curl -sS --max-time 5 http://203.0.113.1:8080/")?, "at 10.0.0.2:80").context("hairpinned")
    });
}

#[test]
fn the_box_and_its_clients_do_not_take_each_others_ports_on_a_shared_address() {
    run(with_interface_pool(), |world| {
        let host = world.topology.gateway();
        let own: Vec<UdpSocket> = (0..20).map(|_| udp(host, "203.0.113.1:0")).collect::<Result<_>>()?;
        let clients: Vec<UdpSocket> = (0..20).map(|_| udp(world.client(0), "10.0.0.2:0")).collect::<Result<_>>()?;
        for round in 0..3 {
            let mut externals = Vec::new();
            for socket in own.iter().chain(&clients) {
                externals.push(seen_from(&crate::world::ask(socket, "198.51.100.2:7", &format!("round {round}"))?)?);
            }
            externals.sort();
            externals.dedup();
            ensure!(externals.len() == own.len() + clients.len(), "only {} endpoints for 40 sockets", externals.len());
        }
        Ok(())
    });
}
