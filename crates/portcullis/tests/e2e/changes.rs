//! The network changes under traffic: traffic resumes by itself, and the log says what happened.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portcullis_testkit::topology::program::wait_until;
use portcullis_testkit::topology::services::seen_from;

use crate::host::with_interface_pool;
use crate::world::{World, ask, contains, run, run_portcullis, udp, usual};

/// How long traffic may take to come back. Links come up at once on veth; the slowest step is the kernel's resolving of a neighbour.
const BACK: Duration = Duration::from_secs(10);

/// What is logged after `length` bytes of log, once it contains all of `words`.
fn log_says(world: &World, length: usize, words: &[&str]) -> Result<()> {
    let mut added = String::new();
    let says = wait_until(Duration::from_secs(3), || {
        added = world.gateway.log().split_off(length);
        words.iter().all(|word| added.contains(word))
    });
    ensure!(says, "{words:?} not in what was logged:\n{added}");
    Ok(())
}

#[test]
fn traffic_resumes_after_the_inside_interface_was_down() {
    run_portcullis(usual(), |world| {
        let before = world.gateway.log().len();
        world.wait_for_traffic(BACK)?;
        world.topology.gateway().ip("link set inside0 down")?;
        log_says(world, before, &["inside0", "down"])?;
        world.topology.gateway().ip("link set inside0 up")?;
        world.wait_for_traffic(BACK)?;
        log_says(world, before, &["inside0", "up"])
    });
}

/// The kernel forgets the routes of a device that goes down; a routing daemon, here this test, puts them back.
#[test]
fn traffic_resumes_after_the_outside_interface_was_down() {
    run_portcullis(usual(), |world| {
        let before = world.gateway.log().len();
        world.wait_for_traffic(BACK)?;
        world.topology.gateway().ip("link set outside0 down")?;
        log_says(world, before, &["outside0", "down"])?;
        world.topology.gateway().ip("link set outside0 up")?;
        world.topology.gateway().ip("route replace default via 203.0.113.2")?;
        world.wait_for_traffic(BACK)?;
        contains(&world.server().run("curl -sS --max-time 5 http://203.0.113.10:8080/")?, "at 10.0.0.2:80")
    });
}

#[test]
fn a_pool_that_follows_the_interface_follows_its_address() {
    run_portcullis(with_interface_pool(), |world| {
        let before = world.gateway.log().len();
        let host = world.topology.gateway();
        world.wait_for_traffic(BACK)?;
        host.ip("address delete 203.0.113.1/24 dev outside0")?;
        log_says(world, before, &["203.0.113.1"])?;
        host.ip("address add 203.0.113.9/24 dev outside0")?;
        host.ip("route replace default via 203.0.113.2")?;
        let outcome = world.wait_for_traffic(BACK).and_then(|_| {
            contains(&world.client(0).run("curl -sS --max-time 5 http://198.51.100.2/")?, "seen from 203.0.113.9:")?;
            contains(&world.server().run("curl -sS --max-time 5 http://203.0.113.9:8080/")?, "at 10.0.0.2:80").context("a forward")
        });
        host.ip("address delete 203.0.113.9/24 dev outside0")?;
        host.ip("address add 203.0.113.1/24 dev outside0")?;
        host.ip("route replace default via 203.0.113.2")?;
        outcome?;
        world.wait_for_traffic(BACK)?;
        contains(&world.client(0).run("curl -sS --max-time 5 http://198.51.100.2/")?, "seen from 203.0.113.1:")?;
        log_says(world, before, &["203.0.113.9"])
    });
}

#[test]
fn a_mapping_survives_a_neighbour_that_changes_its_link_layer_address() {
    run(usual(), |world| {
        let before = world.gateway.log().len();
        let socket = udp(world.client(0), "10.0.0.2:6400")?;
        let external = seen_from(&ask(&socket, "198.51.100.2:7", "before")?)?;
        world.router().ip("link set gateway address 02:00:00:00:77:01")?;
        world.topology.gateway().ip("neighbour flush dev outside0")?;
        world.wait_for_traffic(BACK)?;
        let after = seen_from(&ask(&socket, "198.51.100.2:7", "after")?)?;
        ensure!(after == external, "the mapping moved from {external} to {after}");
        world.gateway.pid().map_or(Ok(()), |_| log_says(world, before, &["203.0.113.2", "02:00:00:00:77:01"]))
    });
}

#[test]
fn the_first_packets_to_an_unresolved_neighbour_are_held_and_not_lost() {
    run_portcullis(usual(), |world| {
        let mut held = 0;
        for round in 0..6 {
            world.wait_for_traffic(BACK)?;
            // The kernel may find the router again at once, when a packet of its own goes there.
            let mut before = 0;
            let mut is_gone = || -> Result<()> {
                before = world.gateway.log().len();
                world.topology.gateway().ip("neighbour flush dev outside0")?;
                log_says(world, before, &["203.0.113.2", "does not answer"])
            };
            is_gone().or_else(|_| is_gone())?;
            let socket = udp(world.client(0), "10.0.0.2:0")?;
            ask(&socket, "198.51.100.2:7", &format!("round {round}")).context("the first datagram after the flush")?;
            // The line is logged a moment before the workers have the news: a datagram in that moment waits for nothing.
            held += u32::from(log_says(world, before, &["203.0.113.2 on outside0 is at"]).is_ok());
            if held == 3 {
                return Ok(());
            }
        }
        bail!("only {held} of 6 datagrams had to wait")
    });
}

#[test]
fn traffic_follows_the_default_route_to_another_next_hop() {
    run(usual(), |world| {
        let (host, router) = (world.topology.gateway(), world.router());
        let before = world.gateway.log().len();
        router.ip("address add 203.0.113.3/24 dev gateway")?;
        world.wait_for_traffic(BACK)?;
        host.ip("route replace default via 203.0.113.3")?;
        let resolved = wait_until(BACK, || {
            let traffic = world.wait_for_traffic(BACK).is_ok();
            traffic && host.ip("neighbour show 203.0.113.3").is_ok_and(|shown| shown.contains("lladdr"))
        });
        let said = world.gateway.pid().map_or(Ok(()), |_| log_says(world, before, &["203.0.113.3"]));
        host.ip("route replace default via 203.0.113.2")?;
        router.ip("address delete 203.0.113.3/24 dev gateway")?;
        ensure!(resolved, "no traffic through the new next hop");
        said?;
        world.wait_for_traffic(BACK).map(drop)
    });
}

#[test]
fn a_more_specific_route_wins() {
    run(usual(), |world| {
        let host = world.topology.gateway();
        host.ip("route add 198.51.100.3/32 via 203.0.113.77")?;
        let mut refused = false;
        let took = wait_until(BACK, || {
            refused = world
                .client(0)
                .program("curl", ["-sS", "--max-time", "0.5", "http://198.51.100.3/"])
                .run()
                .is_ok_and(|out| !out.ok());
            refused
        });
        let other = world.client(0).run("curl -sS --max-time 5 http://198.51.100.2/");
        host.ip("route delete 198.51.100.3/32 via 203.0.113.77")?;
        ensure!(took, "the route to nobody was not used");
        contains(&other?, "seen from")?;
        let back = wait_until(BACK, || {
            world.client(0).program("curl", ["-sS", "--max-time", "0.5", "http://198.51.100.3/"]).run().is_ok_and(|out| out.ok())
        });
        ensure!(back, "the server was not reached after the route had gone");
        Ok(())
    });
}
