//! UDP kept in bare mappings (`nat.udp_tracking = "mappings"`): one external endpoint for everybody, until the client has been silent.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::program::wait_until;
use portcullis_testkit::topology::services::seen_from;

use crate::world::{World, ask, contains, hears, receive, run_portcullis, udp, usual};

/// How long a mapping lasts: ample for what the tests send, and short enough to wait for.
const TIME: Duration = Duration::from_secs(3);

/// The usual configuration with bare mappings. Ports do not rest, so that those that are free show.
fn bare() -> Setup {
    let nat = "filtering = \"endpoint-independent\"\nfiltering_tcp = \"address-and-port-dependent\"\nudp_tracking = \"mappings\"";
    let tables = format!("[nat]\n{nat}\nport_hold = \"0s\"\n[timeouts]\nudp = \"{}s\"\n", TIME.as_secs());
    Setup { tables, ..usual() }
}

#[test]
fn a_bare_mapping_serves_all_remotes_until_its_client_is_silent() {
    run_portcullis(bare(), |world| {
        let client = udp(world.client(0), "10.0.0.2:6700")?;
        let stranger = udp(world.server(), "198.51.100.3:7777")?;
        let external = seen_from(&ask(&client, "198.51.100.2:7", "open")?)?;
        for remote in ["198.51.100.2:77", "198.51.100.3:7"] {
            let seen = seen_from(&ask(&client, remote, "who am I")?)?;
            ensure!(seen == external, "{remote} sees {seen}, another saw {external}");
        }
        let last = Instant::now();
        stranger.send_to(b"unasked", external)?;
        ensure!(hears(&client)?, "a stranger did not get in");
        shows_itself_among_mappings_only(world, external.port())?;
        // What comes in keeps it no longer.
        let closed = wait_until(TIME * 3, || {
            stranger.send_to(b"still there?", external).is_ok() && hears(&client).is_ok_and(|heard| !heard)
        });
        let took = last.elapsed();
        ensure!(closed && took > TIME / 2 && took < TIME * 2, "with {TIME:?} for UDP, strangers got in for {took:?}");
        ensure!(listed(world)?.is_none(), "it is over, and still listed");
        let freed = wait_until(Duration::from_secs(10), || {
            world.metric("portcullis_ports_in_use", "protocol=\"udp\"").is_ok_and(|used| used == 0.0)
        });
        ensure!(freed, "its port is not free again");
        Ok(())
    });
}

/// The mapping of the client's port, as JSON.
fn listed(world: &World) -> Result<Option<serde_json::Value>> {
    let mappings = world.json_lines("mappings --protocol udp --json")?;
    Ok(mappings.into_iter().find(|mapping| mapping["internal"]["port"] == 6700))
}

/// After three packets from inside, their answers, and one more from outside.
fn shows_itself_among_mappings_only(world: &World, external: u16) -> Result<()> {
    let mapping = listed(world)?.context("no JSON of the mapping")?;
    ensure!(mapping["external"]["port"] == external && mapping["sessions"] == 0, "{mapping}");
    ensure!(mapping["packets_out"] == 3 && mapping["packets_in"] == 4, "{mapping}");
    let left = mapping["expires_in_milliseconds"].as_u64().context("no time left")?;
    ensure!(left > 0 && u128::from(left) <= TIME.as_millis(), "{mapping}");
    contains(&world.gateway.ask("mappings --internal :6700")?.success()?.stdout, "packets_out=3 packets_in=4")?;
    let sessions = world.gateway.ask("sessions --internal :6700")?.success()?;
    ensure!(sessions.stdout.is_empty(), "a bare mapping has sessions: {sessions}");
    contains(&sessions.stderr, "UDP is kept in bare mappings")
}

#[test]
fn a_udp_forward_beside_bare_mappings_keeps_its_sessions() {
    run_portcullis(bare(), |world| {
        let remote = udp(world.server(), "198.51.100.2:6701")?;
        let inside = udp(world.client(1), "10.0.0.3:6701")?;
        remote.send_to(b"hello", "203.0.113.10:5300")?;
        let (answer, from) = receive(&remote)?;
        contains(&answer, "seen from 198.51.100.2:6701 at 10.0.0.2:7")?;
        ensure!(from.to_string() == "203.0.113.10:5300", "answered from {from}");
        let answer = ask(&inside, "203.0.113.10:5300", "from inside")?;
        contains(&answer, "seen from 203.0.113.10:").context("REQ-9a: external source IP address and port")?;
        let sessions = world.json_lines("sessions --protocol udp --internal :7 --json")?;
        ensure!(sessions.len() == 2, "one session for each remote under the forward: {sessions:?}");
        ensure!(sessions.iter().all(|session| session["external"]["port"] == 5300), "{sessions:?}");
        Ok(())
    });
}

/// RFC 4787, REQ-9: "A NAT MUST support 'Hairpinning'."
#[test]
fn two_clients_meet_through_their_bare_mappings_at_once() {
    run_portcullis(bare(), |world| {
        let (first, second) = (udp(world.client(0), "10.0.0.2:6702")?, udp(world.client(1), "10.0.0.3:6702")?);
        let first_external = seen_from(&ask(&first, "198.51.100.2:7", "who am I")?)?;
        let second_external = seen_from(&ask(&second, "198.51.100.2:7", "who am I")?)?;
        for (from, to, to_seen, from_seen) in
            [(&first, &second, second_external, first_external), (&second, &first, first_external, second_external)]
        {
            from.send_to(b"hello", to_seen)?;
            let (text, sender) = receive(to)?;
            ensure!((text.as_str(), sender) == ("hello", from_seen), "{text:?} came from {sender}, not {from_seen}");
        }
        Ok(())
    });
}
