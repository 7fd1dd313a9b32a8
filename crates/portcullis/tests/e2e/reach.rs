//! Outbound traffic: programs reach servers, and servers see the pool's address.

use std::thread;

use anyhow::{Result, ensure};
use portcullis_testkit::topology::services::seen_from;
use portcullis_testkit::topology::sniff::{Seen, Sniffer};
use portcullis_testkit::topology::{POOL, SERVER};

use crate::world::{World, ask, contains, receive, run, run_portcullis, udp, usual};

/// What a program prints when it has reached its server: name, command line, text.
const PROGRAMS: [(&str, &str, &str); 9] = [
    ("ping", "ping -c 3 -i 0.2 -W 2 198.51.100.2", " 0% packet loss"),
    ("ping with much data", "ping -c 2 -i 0.2 -W 2 -s 1400 198.51.100.2", " 0% packet loss"),
    ("ping in fragments", "ping -c 2 -i 0.2 -W 2 -s 4000 198.51.100.2", " 0% packet loss"),
    ("ping the next hop", "ping -c 1 -W 2 203.0.113.2", " 0% packet loss"),
    ("curl", "curl -sS --max-time 5 http://198.51.100.2/", "seen from 203.0.113.10:"),
    (
        "curl of a large page",
        "curl -sS --max-time 10 -o /dev/null -w %{size_download} http://198.51.100.2/bytes/5000000",
        "5000000",
    ),
    ("dig", "dig +short +tries=1 +time=2 @198.51.100.2 example.org", "192.0.2.53"),
    ("nc over TCP", "nc -N -w 2 198.51.100.2 7", "seen from 203.0.113.10:"),
    ("nc over UDP", "nc -u -w 1 198.51.100.2 7", "seen from 203.0.113.10:"),
];

#[test]
fn programs_of_both_clients_reach_servers() {
    run(usual(), |world| {
        for client in 0..2 {
            for (name, line, wanted) in PROGRAMS {
                let program = world.client(client).program("sh", ["-c", &format!("echo hello | {line}")]);
                let output = program.run()?;
                contains(&output.all(), wanted).map_err(|error| error.context(format!("{name} on client {}", client + 1)))?;
            }
        }
        Ok(())
    });
}

#[test]
fn the_first_packets_after_the_start_are_all_forwarded() {
    run_portcullis(usual(), |world| {
        for _ in 0..3 {
            world.gateway.stop()?;
            for device in ["inside0", "outside0"] {
                world.topology.gateway().ip(&format!("neigh flush dev {device}"))?;
            }
            let sockets = (0..100).map(|port| udp(world.client(0), &format!("10.0.0.2:{}", 20_000 + port)));
            let sockets = sockets.collect::<Result<Vec<_>>>()?;
            world.start_again()?;
            for socket in &sockets {
                socket.send_to(b"first", "198.51.100.2:7")?;
            }
            let answered = sockets.iter().filter(|socket| receive(socket).is_ok()).count();
            ensure!(answered == sockets.len(), "{answered} of {} were answered", sockets.len());
        }
        Ok(())
    });
}

#[test]
fn two_clients_use_the_same_udp_source_port_and_each_gets_its_own_answers() {
    run(usual(), |world| {
        let sockets = [udp(world.client(0), "10.0.0.2:5000")?, udp(world.client(1), "10.0.0.3:5000")?];
        let mut externals = Vec::new();
        for round in 0..3 {
            for (client, socket) in sockets.iter().enumerate() {
                let answer = ask(socket, "198.51.100.2:7", &format!("round {round} of client {client}"))?;
                externals.push(seen_from(&answer)?);
            }
        }
        ensure!(externals.iter().all(|external| external.ip().to_string() == POOL), "not the pool's address: {externals:?}");
        ensure!(externals[0] != externals[1], "both clients have the external endpoint {}", externals[0]);
        ensure!(externals[..2] == externals[2..4] && externals[..2] == externals[4..], "endpoints changed: {externals:?}");
        Ok(())
    });
}

#[test]
fn two_clients_use_the_same_tcp_source_port_towards_the_same_server() {
    run(usual(), |world| {
        let external = |client: usize| {
            let line = "curl -sS --max-time 5 --local-port 5001 http://198.51.100.2/";
            seen_from(&world.client(client).run(line)?)
        };
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| external(0));
            (external(1), first.join().expect("no panic"))
        });
        let (first, second) = (first?, second?);
        ensure!(first.ip().to_string() == POOL && second.ip().to_string() == POOL, "{first} and {second} are not the pool's");
        Ok(())
    });
}

#[test]
fn two_clients_ping_the_same_server_with_the_same_identifier() {
    run(usual(), |world| {
        let sniffer = Sniffer::start(world.router())?;
        let world: &World = world;
        thread::scope(|scope| {
            let both =
                [0, 1].map(|client| scope.spawn(move || world.client(client).run("ping -c 5 -i 0.2 -W 2 -e 77 198.51.100.2")));
            both.into_iter().try_for_each(|ping| contains(&ping.join().expect("no panic")?, " 0% packet loss"))
        })?;
        // Echo requests only: a router may tell the server of an endpoint that an earlier test has taken away.
        let is_request = |packet: &Seen| packet.protocol == 1 && packet.payload().first() == Some(&8);
        let requests = sniffer.seen(|packet| is_request(packet) && packet.destination.to_string() == SERVER);
        let other = requests.iter().find(|packet| packet.source.to_string() != POOL);
        ensure!(other.is_none(), "a ping left with another source: {other:?}");
        let mut identifiers: Vec<_> = requests.iter().map(|packet| packet.payload()[4..6].to_vec()).collect();
        identifiers.sort();
        identifiers.dedup();
        ensure!(identifiers.len() == 2, "identifiers outside: {identifiers:?}");
        Ok(())
    });
}

/// RFC 4787, REQ-1: "A NAT MUST have an 'Endpoint-Independent Mapping' behavior."
#[test]
fn one_socket_has_one_external_endpoint_towards_every_server() {
    run_portcullis(usual(), |world| {
        let socket = udp(world.client(0), "10.0.0.2:5002")?;
        let servers = ["198.51.100.2:7", "198.51.100.2:77", "198.51.100.3:7", "203.0.113.2:7"];
        let externals: Vec<_> =
            servers.iter().map(|server| seen_from(&ask(&socket, server, "who am I")?)).collect::<Result<_>>()?;
        ensure!(externals.iter().all(|external| *external == externals[0]), "the endpoint depends on the server: {externals:?}");
        Ok(())
    });
}
