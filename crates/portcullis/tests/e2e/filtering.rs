//! Which inbound packets a mapping lets in, and for which remotes it holds: the behaviours of RFC 4787, sections 5 and 4.1.

use anyhow::{Result, ensure};
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::services::seen_from;

use crate::world::{World, ask, hears, run_portcullis, udp};

/// What gets in from a server that the client has sent to, but from another port; and from a server that it has not.
struct Row {
    filtering: &'static str,
    other_port: bool,
    other_address: bool,
}

fn expect(row: &Row) {
    let setup = Setup { tables: format!("[nat]\nfiltering = \"{}\"\n", row.filtering), ..Setup::default() };
    run_portcullis(setup, |world| {
        let client = udp(world.client(0), "10.0.0.2:6000")?;
        let external = seen_from(&ask(&client, "198.51.100.2:7", "open")?)?.to_string();
        let before = world.metric("portcullis_drops_total", "reason=\"filtered\"")?;
        let heard = |from: &str| -> Result<bool> {
            udp(world.server(), from)?.send_to(b"unasked", &external)?;
            hears(&client)
        };
        let (other_port, other_address) = (heard("198.51.100.2:9999")?, heard("198.51.100.3:7777")?);
        ensure!(other_port == row.other_port, "{}: from another port of the same address: {other_port}", row.filtering);
        ensure!(other_address == row.other_address, "{}: from another address: {other_address}", row.filtering);
        ask(&client, "198.51.100.2:7", "still open")?;
        expect_drops(world, before, u32::from(!other_port) + u32::from(!other_address))
    });
}

/// What was filtered was counted as such.
fn expect_drops(world: &World, before: f64, wanted: u32) -> Result<()> {
    let mut drops = 0.0;
    let counted = portcullis_testkit::topology::program::wait_until(crate::world::ANSWER * 2, || {
        drops = world.metric("portcullis_drops_total", "reason=\"filtered\"").unwrap_or_default() - before;
        drops >= f64::from(wanted)
    });
    ensure!(counted && drops <= f64::from(wanted), "{drops} drops counted as filtered, {wanted} wanted");
    Ok(())
}

#[test]
fn endpoint_independent_filtering_lets_every_remote_in() {
    expect(&Row { filtering: "endpoint-independent", other_port: true, other_address: true });
}

#[test]
fn address_dependent_filtering_lets_other_ports_of_a_known_address_in() {
    expect(&Row { filtering: "address-dependent", other_port: true, other_address: false });
}

#[test]
fn address_and_port_dependent_filtering_lets_only_known_endpoints_in() {
    expect(&Row { filtering: "address-and-port-dependent", other_port: false, other_address: false });
}

/// What the external endpoint depends on: the remote's port, the remote's address.
fn expect_mapping(mapping: &str, on_port: bool, on_address: bool) {
    let setup = Setup { tables: format!("[nat]\nmapping = \"{mapping}\"\n"), ..Setup::default() };
    run_portcullis(setup, |world| {
        let client = udp(world.client(0), "10.0.0.2:6001")?;
        let seen = |server: &str| seen_from(&ask(&client, server, "who am I")?);
        let [first, other_port, other_address] = [seen("198.51.100.2:7")?, seen("198.51.100.2:77")?, seen("198.51.100.3:7")?];
        ensure!((other_port != first) == on_port, "{mapping}: {first}, and {other_port} towards another port");
        ensure!((other_address != first) == on_address, "{mapping}: {first}, and {other_address} towards another address");
        ensure!(seen("198.51.100.2:7")? == first, "{mapping}: the endpoint did not stay {first}");
        Ok(())
    });
}

#[test]
fn address_dependent_mapping_has_an_endpoint_for_each_remote_address() {
    expect_mapping("address-dependent", false, true);
}

#[test]
fn address_and_port_dependent_mapping_has_an_endpoint_for_each_remote_endpoint() {
    expect_mapping("address-and-port-dependent", true, true);
}
