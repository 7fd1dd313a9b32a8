//! Inbound traffic: port forwards from both sides, hairpinning, and what a scan from outside finds.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::services::seen_from;

use crate::world::{ask, contains, hears, receive, run, run_portcullis, udp, usual};

#[test]
fn a_forward_leads_outside_clients_to_the_server_and_keeps_their_address() {
    run(usual(), |world| {
        for (host, address) in [(world.server(), "198.51.100."), (world.router(), "203.0.113.2")] {
            let page = host.run("curl -sS --max-time 5 http://203.0.113.10:8080/")?;
            contains(&page, &format!("seen from {address}"))?;
            contains(&page, "at 10.0.0.2:80")?;
        }
        let large = "curl -sS --max-time 10 -o /dev/null -w %{size_download} http://203.0.113.10:8080/bytes/3000000";
        contains(&world.server().run(large)?, "3000000")
    });
}

/// RFC 4787, REQ-9: "A NAT MUST support 'Hairpinning'."
#[test]
fn a_forward_is_reached_from_inside_by_other_clients_and_by_the_server_itself() {
    run(usual(), |world| {
        for client in [1, 0] {
            let page = world.client(client).run("curl -sS --max-time 5 http://203.0.113.10:8080/")?;
            contains(&page, "seen from 203.0.113.10:").context("REQ-9a: external source IP address and port")?;
            contains(&page, "at 10.0.0.2:80")?;
        }
        Ok(())
    });
}

#[test]
fn a_forward_to_several_servers_uses_each_of_them() {
    run_portcullis(usual(), |world| {
        let mut servers = HashSet::new();
        for _ in 0..40 {
            let page = world.server().run("curl -sS --max-time 5 http://203.0.113.10:8081/")?;
            servers.insert(page.trim().rsplit(' ').next().unwrap_or_default().to_owned());
        }
        ensure!(servers == HashSet::from(["10.0.0.2:80".to_owned(), "10.0.0.3:80".to_owned()]), "served by {servers:?}");
        Ok(())
    });
}

#[test]
fn a_udp_forward_answers_from_its_external_port() {
    run(usual(), |world| {
        let remote = udp(world.server(), "198.51.100.2:6100")?;
        remote.send_to(b"hello", "203.0.113.10:5300")?;
        let (answer, from) = receive(&remote)?;
        contains(&answer, "seen from 198.51.100.2:6100 at 10.0.0.2:7")?;
        ensure!(from.to_string() == "203.0.113.10:5300", "answered from {from}");
        Ok(())
    });
}

#[test]
fn two_clients_meet_through_their_mappings() {
    run_portcullis(usual(), |world| {
        let (first, second) = (udp(world.client(0), "10.0.0.2:6200")?, udp(world.client(1), "10.0.0.3:6200")?);
        let first_external = seen_from(&ask(&first, "198.51.100.2:7", "who am I")?)?;
        let second_external = seen_from(&ask(&second, "198.51.100.2:7", "who am I")?)?;
        // The first packet opens the first client's filter and is itself filtered by the second's.
        first.send_to(b"knock", second_external)?;
        ensure!(!hears(&second)?, "a client that has not sent to the other was reached");
        second.send_to(b"hello", first_external)?;
        let (text, from) = receive(&first)?;
        ensure!((text.as_str(), from) == ("hello", second_external), "{text:?} came from {from}, not {second_external}");
        first.send_to(b"hello yourself", from)?;
        let (text, from) = receive(&second)?;
        ensure!((text.as_str(), from) == ("hello yourself", first_external), "{text:?} came from {from}, not {first_external}");
        Ok(())
    });
}

#[test]
fn a_scan_from_outside_finds_the_forwards_and_nothing_else() {
    run_portcullis(usual(), |world| {
        let scan = |arguments: &str| -> Result<Vec<String>> {
            let line = ["nmap", "-n", "-Pn", "--max-retries", "1", "-oG", "-"].into_iter().chain(arguments.split_whitespace());
            let arguments: Vec<_> = line.skip(1).chain(["203.0.113.10"]).collect();
            let report = world.server().program("nmap", arguments).limit(Duration::from_secs(40)).run()?.success()?;
            let ports = report.stdout.split("Ports: ").nth(1).unwrap_or_default().split(['\t', '\n']).next().unwrap_or_default();
            Ok(ports.split(", ").filter(|port| port.contains("/open/")).map(str::to_owned).collect())
        };
        let open = scan("-sT -p 22,53,80,443,3128,8079-8082,9464")?;
        let numbers: Vec<_> = open.iter().filter_map(|port| port.split('/').next()).collect();
        ensure!(numbers == ["8080", "8081"], "open over TCP: {open:?}");
        // An echo server answers nmap's probes, whatever they are; without an answer a port is `open|filtered`.
        let open = scan("-sU -p 53,5300,5302 --version-intensity 0 --data-string hello")?;
        ensure!(open.len() == 1 && open[0].starts_with("5300/"), "open over UDP: {open:?}");
        Ok(())
    });
}
