//! Hosts that leave checksums and segmentation to the wire, and frames that carry a VLAN tag.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::services::Service;
use portcullis_testkit::topology::{self, Offloads, POOL, kernel_has_vlan};

use crate::world::{World, ask, contains, run, udp, usual};

/// Checksum errors that a host has counted.
fn checksum_errors(host: &Namespace) -> Result<u64> {
    let page = host.run("cat /proc/net/snmp")?;
    let mut errors = 0;
    for (names, values) in page.lines().zip(page.lines().skip(1)).step_by(2) {
        let columns = names.split_whitespace().zip(values.split_whitespace());
        errors +=
            columns.filter(|(name, _)| *name == "InCsumErrors").filter_map(|(_, value)| value.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(errors)
}

/// Checksum errors that the hosts have counted.
pub(crate) fn all_checksum_errors(world: &World) -> Result<u64> {
    [world.client(0), world.client(1), world.server(), world.router()].into_iter().map(checksum_errors).sum()
}

#[test]
fn checksums_are_right_whatever_the_hosts_leave_to_the_wire() {
    run(usual(), |world| {
        let before = all_checksum_errors(world)?;
        let mut report = String::new();
        for offloads in [Offloads::On, Offloads::ChecksumOnly, Offloads::Off] {
            world.topology.set_offloads(offloads)?;
            traffic(world).with_context(|| format!("with offloads {offloads:?}"))?;
            let errors = all_checksum_errors(world)? - before;
            writeln!(report, "{offloads:?}: {errors}")?;
            ensure!(errors == 0, "checksum errors: {report}");
        }
        world.usual_offloads()
    });
}

/// Pages both ways, a datagram, a fragmented datagram, a ping, and a page over the hairpin.
pub(crate) fn traffic(world: &World) -> Result<()> {
    let page = "curl -sS --max-time 10 -o /dev/null -w %{size_download} http://";
    contains(&world.client(0).run(&format!("{page}198.51.100.2/bytes/2000000"))?, "2000000").context("a page from outside")?;
    contains(&world.server().run(&format!("{page}{POOL}:8080/bytes/2000000"))?, "2000000").context("a page from inside")?;
    contains(&world.client(1).run(&format!("{page}{POOL}:8080/bytes/2000000"))?, "2000000").context("a page over the hairpin")?;
    let socket = udp(world.client(1), "10.0.0.3:0")?;
    ask(&socket, "198.51.100.2:7", "short").context("a datagram")?;
    ask(&socket, "198.51.100.2:7", &"long".repeat(1000)).context("a datagram in fragments")?;
    contains(&world.client(1).run("ping -c 2 -i 0.2 -W 2 198.51.100.2")?, " 0% packet loss")
}

#[test]
fn a_client_in_a_vlan_reaches_servers_and_is_reached() {
    let mut setup = usual();
    setup.inside.push("inside0.100");
    setup.forwards[0].internal = vec!["10.0.100.2:80"];
    if !kernel_has_vlan() {
        topology::skip("this kernel has no VLAN devices", "offloads::a_client_in_a_vlan_reaches_servers_and_is_reached");
        return;
    }
    run(setup, |world| {
        let _http = Service::http(world.client(2), "10.0.100.2:80")?;
        contains(&world.client(2).run("ping -c 2 -i 0.2 -W 2 198.51.100.2")?, " 0% packet loss")?;
        contains(&world.client(2).run("curl -sS --max-time 5 http://198.51.100.2/")?, "seen from 203.0.113.10:")?;
        contains(&world.server().run("curl -sS --max-time 5 http://203.0.113.10:8080/")?, "at 10.0.100.2:80")?;
        contains(&world.client(0).run("curl -sS --max-time 5 http://203.0.113.10:8080/")?, "at 10.0.100.2:80")?;
        contains(&world.client(0).run("ping -c 1 -W 2 198.51.100.2")?, " 0% packet loss")
    });
}
