//! The TOML files in `configs/` are read, without an error and without a warning.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::{Path, PathBuf};

use portcullis_config::{Config, PoolEntry};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

fn load(name: &str) -> Config {
    let (config, warnings) = Config::load(&configs().join(name)).unwrap_or_else(|error| panic!("{name}:\n{error}"));
    assert!(warnings.is_empty(), "{name}: {warnings:?}");
    config
}

#[test]
fn every_example_is_legal() {
    let paths = std::fs::read_dir(configs()).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let mut names: Vec<_> = paths.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    for name in ["cgn.toml", "datacenter.toml", "demo.toml", "home.toml"] {
        assert!(names.iter().any(|found| found == name), "{name} is gone");
    }
    for name in names {
        load(&name);
    }
}

#[test]
fn the_gateway_that_pktgen_measures_is_legal_and_forwards_what_its_readme_says() {
    let config = load("../bench/pktgen/gateway.toml");
    assert_eq!(config.forwards[0].to_string(), "udp 203.0.113.16:1024-9215 -> 10.2.0.1:1024");
}

#[test]
fn the_demo_has_the_addresses_of_its_topology() {
    let config = load("demo.toml");
    let names: Vec<_> = config.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    assert_eq!(names, ["inside0", "outside0"]);
    assert_eq!(config.pools[0].addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.10"]);
    assert_eq!(config.forwards[0].to_string(), "tcp 203.0.113.10:8080 -> 10.0.0.2:80");
}

#[test]
fn the_home_example_follows_its_outside_interface() {
    assert_eq!(load("home.toml").pools[0].addresses, [PoolEntry::Interface("eth0".to_owned())]);
}

#[test]
fn the_provider_example_has_all_of_its_addresses() {
    assert_eq!(load("cgn.toml").slot_count(), 128 + 64);
}
