//! The page as a scraper reads it, and the two paths over a real port.

#![allow(clippy::cast_precision_loss, clippy::float_cmp, reason = "small whole numbers are exact")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use portcullis_nat::counters::Counter;
use portcullis_nat::policy::{External, Network, Policy, PortSet, Protocol};
use portcullis_nat::time::Tick;
use portcullis_nat::verdict::DropReason;
use portcullis_nat::view::PortUse;
use tokio::sync::oneshot;

use super::collector::ADDRESSES_SHOWN;
use super::names;
use crate::control::tests::{publish, small_doors, window};
use crate::control::window::Window;

/// A page, read strictly: every sample belongs to the family announced before it.
#[derive(Debug, Default)]
struct Page {
    kinds: BTreeMap<String, String>,
    helps: BTreeMap<String, String>,
    samples: BTreeMap<String, f64>,
}

impl Page {
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let mut family = String::new();
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                assert!(page.helps.insert(name.to_owned(), help.to_owned()).is_none(), "{name} twice");
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                assert!(page.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
                name.clone_into(&mut family);
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a sample");
                let name = series.split('{').next().expect("a name");
                let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{name} in {family}"));
                let histogram = page.kinds[&family] == "histogram";
                assert!(suffix.is_empty() != histogram && ["", "_bucket", "_sum", "_count"].contains(&suffix), "{name}");
                let value = value.parse().expect("a number");
                assert!(page.samples.insert(series.to_owned(), value).is_none(), "{series} twice");
            }
        }
        page
    }

    fn of(window: &Arc<Window>) -> Self {
        Self::read(&text(window))
    }
}

fn text(window: &Arc<Window>) -> String {
    let registry = prometheus::Registry::new();
    let collector = super::WindowCollector::new(Arc::clone(window)).expect("a collector");
    registry.register(Box::new(collector)).expect("registers");
    prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("encodes")
}

#[test]
fn every_name_is_there_once_with_help_and_type_and_nothing_else_is() {
    let (mut worker, doors) = small_doors();
    publish(&mut worker, Tick(0));
    let page = Page::of(&window(&doors));
    let expected: BTreeSet<_> = names::ALL.iter().map(|name| name.name.to_owned()).chain(names::nat_counters()).collect();
    assert_eq!(page.kinds.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(page.helps.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert_eq!(expected.len(), names::ALL.len() + Counter::ALL.len(), "names are unique");
    assert!(page.helps.values().all(|help| help.ends_with('.') && help.trim() == help), "{:?}", page.helps);
    for (name, kind) in &page.kinds {
        assert!(name.starts_with("portcullis_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
    }
}

#[test]
fn every_reason_and_counter_is_there_before_anything_happened() {
    let (_worker, doors) = small_doors();
    let page = Page::of(&window(&doors));
    for reason in DropReason::ALL {
        assert_eq!(page.samples[&format!("portcullis_drops_total{{reason=\"{}\"}}", reason.label())], 0.0);
    }
    for name in names::nat_counters() {
        assert_eq!(page.samples[&name], 0.0);
    }
}

#[test]
fn the_numbers_are_the_published_ones() {
    let (mut worker, doors) = small_doors();
    publish(&mut worker, Tick(0));
    let samples = Page::of(&window(&doors)).samples;
    for (series, value) in [
        ("portcullis_outbound_packets_total", 1000.0),
        ("portcullis_drops_total{reason=\"no_route\"}", 1.0),
        ("portcullis_xdp_packets_total{reason=\"not_ipv4\"}", 12.0),
        ("portcullis_mappings", 5.0),
        ("portcullis_mappings_limit", 100.0),
        ("portcullis_ports_in_use{pool=\"default\",address=\"203.0.113.10\",protocol=\"tcp\"}", 5.0),
        ("portcullis_ports_limit{pool=\"default\",address=\"203.0.113.10\",protocol=\"udp\"}", 64512.0),
        ("portcullis_xsk_rx_ring_full_total{interface=\"eth0\",queue=\"0\"}", 3.0),
        ("portcullis_frames{state=\"in_flight\"}", 4190.0),
        ("portcullis_frames{state=\"handed_over\"}", 0.0),
        ("portcullis_frames_missing", 0.0),
        ("portcullis_worker_handed_off_packets_total{worker=\"0\",cause=\"hairpin\"}", 0.0),
        ("portcullis_worker_handed_in_packets_total{worker=\"0\"}", 20.0),
        ("portcullis_worker_hand_off_refused_packets_total{worker=\"0\"}", 3.0),
        ("portcullis_worker_drops_total{worker=\"0\"}", 1.0),
        ("portcullis_worker_sessions{worker=\"0\"}", 7.0),
        ("portcullis_worker_frames{worker=\"0\"}", 8192.0),
        ("portcullis_interface_up{interface=\"eth1\"}", 1.0),
        ("portcullis_config_last_reload_successful", 1.0),
        ("portcullis_healthy", 1.0),
        ("portcullis_burst_packets_bucket{worker=\"0\",le=\"3\"}", 0.0),
        ("portcullis_burst_packets_bucket{worker=\"0\",le=\"7\"}", 1.0),
        ("portcullis_burst_packets_bucket{worker=\"0\",le=\"+Inf\"}", 1.0),
        ("portcullis_burst_packets_sum{worker=\"0\"}", 4.0),
        ("portcullis_burst_packet_seconds_bucket{worker=\"0\",le=\"0.0000002\"}", 0.0),
        ("portcullis_burst_packet_seconds_bucket{worker=\"0\",le=\"0.0000003\"}", 4.0),
        ("portcullis_burst_packet_seconds_count{worker=\"0\"}", 4.0),
        ("portcullis_burst_packet_seconds_sum{worker=\"0\"}", 0.000_001),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series} in {samples:#?}");
    }
}

#[test]
fn many_addresses_are_summed_by_pool() {
    let addresses: Vec<_> = (0..=ADDRESSES_SHOWN as u8).map(|last| Ipv4Addr::new(203, 0, 113, last)).collect();
    let external = |&address| External {
        address: Some(address),
        ports: PortSet::range(1024, 65535),
        shared_with_host: false,
        pool: "big".to_owned(),
    };
    let policy = Policy { externals: addresses.iter().map(external).collect(), ..Policy::default() };
    let shape = crate::doors::counters::Shape { queues: Vec::new(), externals: 64 };
    let doors = crate::doors::open(vec![shape], Arc::new(policy), Arc::new(Network::default())).expect("descriptors").pop();
    let (mut worker, doors) = doors.expect("a worker's doors");
    let one = |&address| PortUse { address, protocol: Protocol::Udp, used: 2, resting: 0, limit: 10 };
    worker.counters.publish_ports(Tick(0), &addresses.iter().map(one).collect::<Vec<_>>());
    let samples = Page::of(&window(&doors)).samples;
    let ports: Vec<_> = samples.iter().filter(|(series, _)| series.starts_with("portcullis_ports_in_use")).collect();
    let sum = 2.0 * addresses.len() as f64;
    assert_eq!(ports, [(&"portcullis_ports_in_use{pool=\"big\",protocol=\"udp\"}".to_owned(), &sum)]);
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn metrics_and_health_are_served_over_a_port() {
    let (mut worker, doors) = small_doors();
    publish(&mut worker, Tick(0));
    let listener = super::bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let address = listener.local_addr().expect("an address");
    let in_use = super::bind(address).expect_err("taken").to_string();
    assert!(in_use.contains(&address.to_string()), "{in_use}");
    let (stop, stopped) = oneshot::channel::<()>();
    let shown = window(&doors);
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(super::serve(listener, shown, async move { stopped.await.unwrap_or(()) })).expect("ends well");
    });

    let metrics = get(address, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    let (_, body) = metrics.split_once("\r\n\r\n").expect("a body");
    assert!(Page::read(body).samples.contains_key("portcullis_sessions"));
    assert!(get(address, "/healthz").ends_with("\r\n\r\nok\n"));
    assert!(get(address, "/").starts_with("HTTP/1.1 404"));

    let mut network = Network::clone(&doors.policy.current().network);
    network.interfaces[0].up = false;
    doors.policy.publish_network(Arc::new(network));
    let sick = get(address, "/healthz");
    assert!(sick.starts_with("HTTP/1.1 503") && sick.ends_with("interface eth1 is down\n"), "{sick}");
    drop(stop);
    server.join().expect("the server ends");
}
