//! `doctor` on real devices: what it finds, what it mends, and what its exit code says.

use std::fs;

use anyhow::{Result, ensure};
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::is_root_or_skips;
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::program::Output;
use serde_json::Value;

use crate::world::{binary, contains, queues, run_portcullis, usual};

/// Runs it in a namespace with the configuration that most tests use, whose control socket is in `directory`.
fn doctor(host: &Namespace, directory: &std::path::Path, arguments: &[&str]) -> Result<Output> {
    let file = std::env::temp_dir().join(format!("pctest{}-doctor.toml", std::process::id()));
    fs::write(&file, usual().toml(directory))?;
    let path = file.display().to_string();
    let program = binary().display().to_string();
    let output = host.program(&program, ["doctor", "--config", &path].into_iter().chain(arguments.iter().copied())).run();
    fs::remove_file(&file)?;
    output
}

#[test]
fn doctor_finds_nothing_that_breaks_a_gateway_that_runs() {
    run_portcullis(usual(), |world| {
        let directory = portcullis_testkit::topology::namespace::directory_of(world.topology.gateway().name());
        let output = doctor(world.topology.gateway(), &directory, &["--json"])?.success()?;
        let findings: Vec<Value> = output.stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let of = |subject: &str, what: &str| {
            let found = findings.iter().find(|finding| finding["subject"] == subject && finding["what"] == what);
            found.cloned().unwrap_or_default()
        };
        for device in ["inside0", "outside0"] {
            ensure!(of(device, "XDP")["grade"] == "fine", "{}", output.stdout);
            contains(&of(device, "attached program").to_string(), "while a gateway runs")?;
            contains(&of(device, "queues").to_string(), &format!("{0} for {0} workers", queues()))?;
            let way = if queues() == 1 { "one worker" } else { "software" };
            contains(&of(device, "steering").to_string(), way)?;
        }
        ensure!(of("host", "rights")["grade"] == "fine", "{}", output.stdout);
        Ok(())
    });
}

#[test]
fn doctor_mends_what_it_says_and_tells_by_its_exit_code() -> Result<()> {
    if !is_root_or_skips("doctor::doctor_mends_what_it_says_and_tells_by_its_exit_code") {
        return Ok(());
    }
    let host = Namespace::create(&format!("pctest{}-doctor", std::process::id()))?;
    host.ip_batch(
        "link add inside0 type veth peer name far0
         link add outside0 mtu 9000 type veth peer name far1
         address add 10.0.0.1/24 dev inside0
         address add 203.0.113.1/24 dev outside0
         link set inside0 up
         link set far1 up",
    )?;
    let directory = std::path::Path::new("/nonexistent");
    let sick = doctor(&host, directory, &["outside0"])?;
    ensure!(sick.status.code() == Some(1), "{sick}");
    for words in ["WILL BREAK link", "mend: ip link set dev outside0 up", "WILL BREAK MTU", "2 of these will break"] {
        contains(&sick.all(), words)?;
    }
    ensure!(!sick.stdout.contains("inside0"), "only what was asked for: {sick}");
    let mended = doctor(&host, directory, &["outside0", "--fix"])?;
    ensure!(mended.status.success(), "{mended}");
    contains(&mended.stdout, "ran: ip link set dev outside0 mtu")?;
    let link = host.ip("link show outside0")?;
    ensure!(link.contains("UP") && !link.contains("mtu 9000"), "{link}");
    let unknown = doctor(&host, directory, &["eth7"])?;
    ensure!(unknown.status.code() == Some(1), "{unknown}");
    contains(&unknown.all(), "eth7 is none of inside0, outside0, host")?;
    let elsewhere = Setup { inside: vec!["inside7"], ..Setup::default() };
    let file = std::env::temp_dir().join(format!("pctest{}-doctor-elsewhere.toml", std::process::id()));
    fs::write(&file, elsewhere.toml(directory))?;
    let path = file.display().to_string();
    let missing = host.program(&binary().display().to_string(), ["doctor", "--config", &path]).run();
    fs::remove_file(&file)?;
    let missing = missing?;
    ensure!(missing.status.code() == Some(78), "{missing}");
    contains(&missing.all(), "inside7")
}
