//! The gateway as a router: ICMP errors in both directions, path MTU, fragments, options and the type of service.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::program::wait_until;
use portcullis_testkit::topology::sniff::{Seen, Sniffer};

use crate::world::{World, ask, contains, run, run_portcullis, udp, usual};

/// The hops that a traceroute prints, `*` for one that did not answer.
fn hops(output: &str) -> Vec<String> {
    output.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect()
}

#[test]
fn traceroute_shows_each_hop_by_udp_icmp_and_tcp() {
    run(usual(), |world| {
        for method in ["-U", "-I", "-T -p 80", ""] {
            let shown = world.client(0).run(&format!("traceroute -n -q 1 -w 2 -m 6 {method} 198.51.100.2"))?;
            ensure!(hops(&shown) == ["10.0.0.1", "203.0.113.2", "198.51.100.2"], "traceroute {method}:\n{shown}");
        }
        Ok(())
    });
}

#[test]
fn traceroute_from_outside_to_a_forward_ends_at_the_external_address() {
    run_portcullis(usual(), |world| {
        let shown = world.server().run("traceroute -n -q 1 -w 2 -m 6 -T -p 8080 203.0.113.10")?;
        ensure!(hops(&shown) == ["198.51.100.1", "203.0.113.1", "203.0.113.10"], "{shown}");
        Ok(())
    });
}

/// RFC 5508, REQ-3 and REQ-4: ICMP errors are translated in both directions, the embedded packet too.
#[test]
fn a_closed_udp_port_is_refused_in_both_directions() {
    run(usual(), |world| {
        let rows = [
            ("outbound", world.client(0), "10.0.0.2:6300", "198.51.100.2:9"),
            ("inbound", world.server(), "198.51.100.2:6301", "203.0.113.10:5301"),
        ];
        for (direction, host, from, to) in rows {
            let socket = udp(host, from)?;
            socket.connect(to)?;
            socket.send(b"anyone?")?;
            match socket.recv(&mut [0; 64]) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                other => bail!("{direction}: {other:?} instead of a refusal"),
            }
        }
        Ok(())
    });
}

#[test]
fn a_closed_tcp_port_is_refused() {
    run(usual(), |world| {
        let output = world.client(0).program("nc", ["-v", "-z", "-w", "3", "198.51.100.2", "9"]).run()?;
        contains(&output.stderr, "refused")
    });
}

#[test]
fn an_unreachable_network_is_reported_to_the_client() {
    run_portcullis(usual(), |world| {
        world.topology.gateway().ip("route add unreachable 192.0.2.0/24")?;
        let mut shown = String::new();
        let told = wait_until(Duration::from_secs(5), || {
            shown = world
                .client(0)
                .program("ping", ["-c", "1", "-W", "1", "192.0.2.1"])
                .run()
                .map(|output| output.all())
                .unwrap_or_default();
            shown.contains("From 10.0.0.1") && shown.contains("Unreachable")
        });
        world.topology.gateway().ip("route delete unreachable 192.0.2.0/24")?;
        ensure!(told, "{shown}");
        Ok(())
    });
}

/// Makes the wire between the gateway and the router as narrow as 1400 bytes for a test's time.
fn with_narrow_outside(world: &World, test: impl FnOnce() -> Result<()>) -> Result<()> {
    let set = |mtu: u32| -> Result<()> {
        world.topology.gateway().ip(&format!("link set outside0 mtu {mtu}"))?;
        world.router().ip(&format!("link set gateway mtu {mtu}"))?;
        for host in [world.client(0), world.client(1), world.server()] {
            host.ip("route flush cache")?;
        }
        Ok(())
    };
    set(1400)?;
    // The gateway follows its interface a moment later. Asked about an address that no test sends to, so that no host knows the MTU.
    let probe = || world.client(1).program("ping", ["-c", "1", "-W", "1", "-M", "do", "-s", "1400", "198.51.100.3"]).run();
    let narrow = wait_until(Duration::from_secs(5), || probe().is_ok_and(|output| output.all().contains("1400)")));
    let outcome = if narrow { test() } else { Err(anyhow!("the gateway does not follow its interface's MTU")) };
    set(1500)?;
    outcome
}

/// RFC 1191, section 4: a router names the next hop's MTU in Fragmentation Needed.
#[test]
fn a_client_learns_that_the_outside_is_narrower() {
    run(usual(), |world| {
        with_narrow_outside(world, || {
            let ping = || world.client(0).program("ping", ["-c", "1", "-W", "1", "-M", "do", "-s", "1400", "198.51.100.2"]).run();
            let mut shown = String::new();
            let told = wait_until(Duration::from_secs(5), || {
                shown = ping().map(|output| output.all()).unwrap_or_default();
                shown.contains("mtu = 1400") || shown.contains("mtu=1400")
            });
            ensure!(told, "{shown}");
            let route = world.client(0).ip("route get 198.51.100.2")?;
            contains(&route, "mtu 1400")
        })
    });
}

#[test]
fn large_transfers_get_through_a_narrower_outside() {
    run(usual(), |world| {
        with_narrow_outside(world, || {
            let page = "curl -sS --max-time 10 -o /dev/null -w %{size_download} http://";
            contains(&world.client(0).run(&format!("{page}198.51.100.2/bytes/500000"))?, "500000").context("towards the client")?;
            contains(&world.server().run(&format!("{page}203.0.113.10:8080/bytes/500000"))?, "500000")
                .context("towards the server")?;
            echo_over_tcp(world, 300_000).context("both ways")
        })
    });
}

/// The kernels at both ends announce 1460, as their wires of 1500 bytes allow.
#[test]
fn connections_through_a_narrower_outside_are_told_its_segment_size() {
    fn is_syn(packet: &Seen) -> bool {
        packet.protocol == 6 && packet.bytes.get(20 + 13).is_some_and(|flags| flags & 2 != 0)
    }
    // The first option of Linux's SYNs.
    let sizes = |sniffer: &Sniffer, source: [u8; 4]| -> Vec<_> {
        let from = sniffer.seen(|packet| packet.source.octets() == source);
        from.iter().map(|packet| packet.bytes.get(40..44).map(<[u8]>::to_vec).unwrap_or_default()).collect()
    };
    run_portcullis(Setup { outside: "mss = \"pmtu\"", ..usual() }, |world| {
        with_narrow_outside(world, || {
            let (outside, inside) = (Sniffer::start_for(world.router(), is_syn)?, Sniffer::start_for(world.client(0), is_syn)?);
            let page = "curl -sS --max-time 10 -o /dev/null -w %{size_download} http://198.51.100.2/bytes/100000";
            contains(&world.client(0).run(page)?, "100000")?;
            let (out, back) = (sizes(&outside, [203, 0, 113, 10]), sizes(&inside, [198, 51, 100, 2]));
            let wanted = [vec![2, 4, 5, 0x50]];
            ensure!(out.starts_with(&wanted) && back.starts_with(&wanted), "outside {out:02x?}, inside {back:02x?}, not 1360");
            Ok(())
        })
    });
}

/// Sends that many bytes to the echo server while it reads them back.
fn echo_over_tcp(world: &World, length: usize) -> Result<()> {
    let stream = world.client(1).enter(|| TcpStream::connect("198.51.100.2:7"))??;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = stream.try_clone()?;
    let mut writer = stream;
    std::thread::scope(|scope| {
        let sent = scope.spawn(move || writer.write_all(&vec![7; length]).and_then(|()| writer.shutdown(Shutdown::Write)));
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer)?;
        sent.join().expect("no panic")?;
        let echo = answer.len().saturating_sub(length);
        ensure!(answer[echo..] == vec![7; length], "{} bytes came back, not the {length} that were sent", answer.len());
        Ok(())
    })
}

#[test]
fn packets_that_may_be_fragmented_cross_a_narrower_outside_in_fragments() {
    run(usual(), |world| {
        with_narrow_outside(world, || {
            let sniffer = Sniffer::start_for(world.router(), |packet| packet.protocol == 1 && packet.is_fragment())?;
            for size in [1400, 1472, 4000] {
                let line = format!("ping -c 2 -i 0.2 -W 2 -M dont -s {size} 198.51.100.2");
                contains(&world.client(0).run(&line)?, " 0% packet loss").with_context(|| format!("{size} bytes"))?;
            }
            let socket = udp(world.client(1), "10.0.0.3:0")?;
            ask(&socket, "203.0.113.2:7", &"fragment me ".repeat(300))?;
            let largest =
                sniffer.seen(|packet| packet.source.octets() == [203, 0, 113, 10]).iter().map(|packet| packet.bytes.len()).max();
            ensure!(largest.is_some_and(|largest| largest <= 1400), "the largest fragment outside has {largest:?} bytes");
            Ok(())
        })
    });
}

/// Pings with `arguments` and gives back the requests that the router saw.
fn requests_outside(world: &World, arguments: &str) -> Result<Vec<Seen>> {
    let sniffer = Sniffer::start_for(world.router(), |packet| packet.protocol == 1 && packet.source.octets() == [203, 0, 113, 10])?;
    contains(&world.client(0).run(&format!("ping -c 2 -i 0.2 -W 2 {arguments} 203.0.113.2"))?, " 0% packet loss")?;
    let mut requests = Vec::new();
    wait_until(Duration::from_secs(2), || {
        requests = sniffer.seen(|_| true);
        requests.len() >= 2
    });
    ensure!(requests.len() == 2, "{} requests seen outside", requests.len());
    Ok(requests)
}

#[test]
fn a_packet_keeps_its_type_of_service_and_loses_one_hop_of_its_ttl() {
    run(usual(), |world| {
        for tos in [0xB8, 0x28, 0x03] {
            let requests = requests_outside(world, &format!("-Q {tos:#x}"))?;
            ensure!(requests.iter().all(|packet| packet.tos() == tos && packet.ttl() == 63), "{requests:?}");
        }
        Ok(())
    });
}

#[test]
fn ipv4_options_survive() {
    run(usual(), |world| {
        /// RFC 791: Record Route and Internet Timestamp.
        const OPTIONS: [(&str, u8); 2] = [("-R", 7), ("-T tsonly", 68)];
        for (arguments, kind) in OPTIONS {
            let requests = requests_outside(world, arguments)?;
            ensure!(requests.iter().all(|packet| packet.options().contains(&kind)), "ping {arguments}: {requests:?}");
        }
        Ok(())
    });
}
