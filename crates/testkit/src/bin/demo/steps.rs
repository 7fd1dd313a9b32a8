//! The demo's steps: what is run, on which host, and what has to come of it.
//!
//! Knows the topology's addresses and configs/demo.toml; prints through the screen only.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::services::seen_from;
use portcullis_testkit::topology::throughput;
use serde_json::Value;

use crate::Stage;
use crate::screen::Screen;

/// How long iperf3 runs.
const IPERF: Duration = Duration::from_secs(6);
/// The metrics that are shown: the beginnings of their names.
const METRICS: [&str; 12] = [
    "portcullis_outbound_packets_total",
    "portcullis_inbound_packets_total",
    "portcullis_hairpin_packets_total",
    "portcullis_icmp_errors_sent_total",
    "portcullis_icmp_errors_translated_total",
    "portcullis_mappings ",
    "portcullis_sessions ",
    "portcullis_ports_in_use",
    "portcullis_frames_missing",
    "portcullis_interface_up",
    "portcullis_healthy",
    "portcullis_xdp_packets_total",
];

/// Runs a command line on a host, shows both, and gives back what it printed.
fn shown(screen: &Screen, host: (&str, &Namespace), line: &str) -> Result<String> {
    screen.command(host.0, line);
    let printed = host.1.run(line)?;
    screen.output(&printed);
    Ok(printed)
}

/// Goes through all steps.
pub(crate) fn all(stage: &Stage, screen: &mut Screen) {
    let topology = &stage.topology;
    let (client, other) = (("client1", topology.client(0)), ("client2", topology.client(1)));
    let server = ("server", topology.server());
    screen.step("Ping", "A client with a private address reaches a host outside.", |screen| {
        let printed = shown(screen, client, "ping -c 3 -i 0.2 198.51.100.2")?;
        ensure!(printed.contains(" 0% packet loss"), "packets were lost");
        Ok("three of three came back".to_owned())
    });
    screen.step("Traceroute", "The gateway is a router too: each hop shows itself, and ICMP errors find their way in.", |screen| {
        let printed = shown(screen, client, "traceroute -n -q 1 -w 2 -m 6 -I 198.51.100.2")?;
        let hops = ["10.0.0.1", "203.0.113.2", "198.51.100.2"];
        let found: Vec<_> = printed.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        ensure!(found == hops, "the hops are {found:?}, not {hops:?}");
        Ok("gateway, router, server".to_owned())
    });
    screen.step(
        "A web page from outside",
        "The server says whom it sees: the gateway's external address, for both clients.",
        |screen| {
            let mut seen = Vec::new();
            for host in [client, other] {
                seen.push(seen_from(&shown(screen, host, "curl -sS --max-time 5 http://198.51.100.2/")?)?);
            }
            ensure!(seen.iter().all(|from| from.ip().to_string() == "203.0.113.10"), "seen from {seen:?}");
            Ok(format!("both are {} outside, by different ports", seen[0].ip()))
        },
    );
    screen.step("The port forward, from outside", "A web server on client1, at port 8080 of the external address.", |screen| {
        let printed = shown(screen, server, "curl -sS --max-time 5 http://203.0.113.10:8080/")?;
        ensure!(printed.contains("seen from 198.51.100.2:") && printed.contains("at 10.0.0.2:80"), "{printed}");
        Ok("client1 answered, and sees who asked".to_owned())
    });
    screen.step("The same forward, from inside", "Hairpinning: the external address works for the neighbours as well.", |screen| {
        let printed = shown(screen, other, "curl -sS --max-time 5 http://203.0.113.10:8080/")?;
        ensure!(printed.contains("seen from 203.0.113.10:") && printed.contains("at 10.0.0.2:80"), "{printed}");
        Ok("client1 answered client2 through the gateway".to_owned())
    });
    screen.step(
        "Throughput",
        "TCP in both directions at once. veth and AF_XDP's copy mode on this machine: no measure for a NIC.",
        |screen| {
            screen.command("client1", &format!("iperf3 -c 203.0.113.2 --bidir -t {}", IPERF.as_secs()));
            let measured = screen.wait_for(|| throughput::both_ways(topology, IPERF))?;
            screen.output(&measured.to_string());
            Ok(format!("{:.2} Gbit/s in all, and no second stood still", measured.total() / 1e9))
        },
    );
    screen.step("A scan from outside", "nmap tries the 100 most common ports of the external address.", |screen| {
        let line = "nmap -n -Pn -sT -T4 --max-retries 1 --top-ports 100 --open 203.0.113.10";
        let printed = shown(screen, server, line)?;
        let open: Vec<_> = printed.lines().filter(|line| line.contains("/tcp") && line.contains("open")).collect();
        ensure!(open.len() == 1 && open[0].starts_with("8080/tcp"), "open: {open:?}");
        Ok("only the forwarded port is open".to_owned())
    });
    if stage.gateway.pid().is_some() {
        operator(stage, screen);
    }
}

/// What the operator sees of all that.
fn operator(stage: &Stage, screen: &mut Screen) {
    screen.step("Sessions", "Who talks to whom, as the gateway translates it.", |screen| {
        screen.command("gateway", "portcullis sessions");
        let printed = stage.gateway.ask("sessions")?.success()?.stdout;
        screen.output(&printed);
        ensure!(printed.contains("10.0.0.2"), "no session of client1");
        Ok(format!("{} sessions", printed.lines().filter(|line| line.contains("10.0.0.")).count()))
    });
    screen.step("Metrics", "For Prometheus; a few of them.", |screen| {
        let line = "curl -sS --fail http://127.0.0.1:9464/metrics";
        screen.command("gateway", line);
        let page = stage.topology.gateway().run(line)?;
        let main = page.lines().filter(|line| METRICS.iter().any(|name| line.starts_with(name)) && !line.ends_with(" 0"));
        main.take(24).for_each(|line| screen.note(&format!("      {line}")));
        Ok(format!("{} samples in all", page.lines().filter(|line| !line.starts_with('#')).count()))
    });
    screen.step("What was dropped, and why", "Each packet that did not pass has a counted reason.", |screen| {
        screen.command("gateway", "portcullis stats --json");
        let stats: Value = serde_json::from_str(&stage.gateway.ask("stats --json")?.success()?.stdout).context("stats --json")?;
        let drops = stats["drops"].as_array().context("no drops in the stats")?;
        let rows = drops.iter().filter_map(|row| Some((row["value"].as_u64()?, row["name"].as_str()?, row["meaning"].as_str()?)));
        let rows: Vec<_> = rows.filter(|row| row.0 > 0).collect();
        for (packets, name, meaning) in &rows {
            screen.output(&format!("{packets:>8}  {name:<24} {}", meaning.trim()));
        }
        let missing = &stats["frames"]["missing"];
        ensure!(missing.as_i64() == Some(0), "{missing} frames are missing");
        Ok(format!("{} reasons; no frame is missing", rows.len()))
    });
}
