//! What coturn, which knows nothing of Portcullis, takes each behaviour for: NAT behaviour discovery by STUN (RFC 5780).
//!
//! coturn's server has two addresses with two ports each, and its client asks through the gateway. Needs Debian's `coturn`. Blind spot:
//! UDP alone, as RFC 5780's filtering test is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::program::{Running, wait_until};
use portcullis_testkit::topology::{self, CLIENTS, SERVER, SERVER_SECOND};

use crate::world::{World, run_portcullis};

/// The client of RFC 5780, section 4.
const CLIENT: &str = "turnutils_natdiscovery";
/// A behaviour as the configuration names it, and as coturn prints it before `Mapping!` and `Filtering!`.
const BEHAVIOURS: [(&str, &str); 3] = [
    ("endpoint-independent", "NAT with Endpoint Independent"),
    ("address-dependent", "NAT with Address Dependent"),
    ("address-and-port-dependent", "NAT with Address and Port Dependent"),
];

/// coturn's server, at both of the server's addresses.
fn start_server(world: &World) -> Result<Running> {
    let both = ["--listening-ip", SERVER, "--listening-ip", SERVER_SECOND];
    let rest = ["-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--log-file", "stdout", "--pidfile", "/dev/null"];
    let server = world.server().program("turnserver", both.into_iter().chain(rest)).start()?;
    let sockets = || world.server().run("ss -Hlun").unwrap_or_default();
    // RFC 5780, section 3: two addresses, and two ports of each.
    let wanted = [SERVER, SERVER_SECOND].into_iter().flat_map(|address| [3478, 3479].map(|port| format!("{address}:{port} ")));
    let wanted: Vec<_> = wanted.collect();
    let listens = wait_until(Duration::from_secs(10), || {
        let sockets = sockets();
        wanted.iter().all(|endpoint| sockets.contains(endpoint))
    });
    ensure!(listens, "coturn does not listen at {wanted:?} but at\n{}{}", sockets(), server.printed());
    Ok(server)
}

/// Lets coturn's client judge a mapping and a filtering behaviour, each given by its place in [`BEHAVIOURS`].
///
/// Four of the nine pairs are tested: where one lets no answer in, the client waits 3 s for each.
fn expect_found(mapping: usize, filtering: usize) {
    let ((mapping, mapping_found), (filtering, filtering_found)) = (BEHAVIOURS[mapping], BEHAVIOURS[filtering]);
    if !Path::new("/usr/bin").join(CLIENT).exists() {
        topology::skip("coturn is not installed", &format!("discovery of {mapping} mapping and {filtering} filtering"));
        return;
    }
    let setup = Setup { tables: format!("[nat]\nmapping = \"{mapping}\"\nfiltering = \"{filtering}\"\n"), ..Setup::default() };
    run_portcullis(setup, |world| {
        let server = start_server(world)?;
        let found = world.client(0).run(&format!("{CLIENT} -m -f -L {} {SERVER}", CLIENTS[0]))?;
        for wanted in [format!("{mapping_found} Mapping!"), format!("{filtering_found} Filtering!")] {
            ensure!(found.contains(&wanted), "{mapping} mapping, {filtering} filtering: no {wanted:?} in\n{found}");
        }
        server.stop(Signal::SIGTERM, Duration::from_secs(5))?;
        Ok(())
    });
}

#[test]
fn coturn_finds_both_endpoint_independent() {
    expect_found(0, 0);
}

#[test]
fn coturn_finds_both_address_dependent() {
    expect_found(1, 1);
}

#[test]
fn coturn_finds_both_address_and_port_dependent() {
    expect_found(2, 2);
}

/// What Portcullis does when the configuration says nothing.
#[test]
fn coturn_finds_endpoint_independent_mapping_beside_address_and_port_dependent_filtering() {
    expect_found(0, 2);
}
