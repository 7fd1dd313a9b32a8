//! What a legal file means: its values, the policy that comes of it, how it fits a system, its summary.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use portcullis_config::{
    AddressRange, BusyPoll, Config, ConfigError, HostAddresses, LogLevel, PoolEntry, PortRange, SlotSource, SystemInterface,
    UdpTracking, Warning,
};
use portcullis_nat::policy::{
    Endpoint, External, Filtering, MappingBehaviour, MssClamp, PortHold, PortParity, Protocol, ProtocolSet, Side, Timeouts,
    UnsolicitedSyn,
};

const INTERFACES: &str = r#"
[[interface]]
name = "eth1"
side = "inside"

[[interface]]
name = "eth0"
side = "outside"
"#;

fn parse(rest: &str) -> (Config, Vec<Warning>) {
    Config::parse(&format!("{INTERFACES}{rest}"), "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn config(rest: &str) -> Config {
    parse(rest).0
}

fn pool(addresses: &str, more: &str) -> String {
    format!("[[pool]]\nname = \"pool{}\"\naddresses = [{addresses}]\n{more}\n", addresses.len())
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn ranges(external: &External) -> Vec<(u16, u16)> {
    external.ports.ranges().collect()
}

/// The box with one address on `eth0`.
fn host(address: &str) -> HostAddresses {
    let mut host = HostAddresses::default();
    host.interfaces.insert("eth0".to_owned(), vec![ip(address)]);
    host.local.insert(ip(address));
    host
}

#[test]
fn the_least_file_has_the_defaults_of_the_rfcs() {
    let (config, warnings) = parse(&pool("\"203.0.113.10\"", ""));
    assert!(warnings.is_empty());
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.timeouts.tcp_established, Duration::from_mins(124));
    assert_eq!(config.icmp, portcullis_nat::policy::IcmpErrors::default());
    assert_eq!(config.nat.mapping, MappingBehaviour::EndpointIndependent);
    assert_eq!((config.nat.filtering_udp, config.nat.filtering_tcp), Default::default());
    assert_eq!(config.nat.filtering_tcp, Filtering::AddressAndPortDependent);
    assert!(!config.nat.inbound_refresh);
    assert_eq!((config.nat.port_parity, config.nat.port_hold), (PortParity::Any, PortHold::default()));
    assert_eq!(config.pools[0].ports, None);
    assert_eq!(config.interfaces[0].side, Side::Inside);
    assert!(config.interfaces[0].prefixes.is_empty() && config.interfaces[0].queues.is_none());
}

#[test]
fn segment_sizes_are_left_alone_or_lowered_to_the_mtu_or_a_number() {
    let rows = [
        ("", MssClamp::Off, ""),
        ("mss = \"off\"", MssClamp::Off, ""),
        ("mss = \"pmtu\"", MssClamp::PathMtu, ", TCP segments as the path's MTU allows"),
        ("mss = 1400", MssClamp::At(1400), ", TCP segments of 1400 bytes at most"),
    ];
    for (line, clamp, words) in rows {
        let (config, warnings) = parse(&format!("{line}\n{}", pool("\"203.0.113.10\"", "")));
        assert_eq!((config.interfaces[1].mss, config.interfaces[0].mss, warnings.len()), (clamp, MssClamp::Off, 0));
        assert!(config.summary().contains(&format!("interface eth0 outside{words}")), "{:?}", config.summary());
    }
}

#[test]
fn every_value_arrives_as_it_was_written() {
    let config = config(
        r#"
[[pool]]
name = "a"
addresses = ["203.0.113.10", "203.0.113.20-203.0.113.22", "198.51.100.0/30", "interface"]
ports = "61000-65535,1024-32767"
[[forward]]
protocol = "tcp+udp"
external = "interface:eth0:8000-8009"
internal = ["10.0.0.1:9000", "10.0.0.2:9100"]
[nat]
mapping = "address-dependent"
filtering = "endpoint-independent"
filtering_tcp = "address-dependent"
inbound_refresh = true
port_parity = "preserve"
port_hold = "3min"
port_hold_most = 500
exempt = ["198.18.0.0/24", "192.0.2.1/32"]
other_protocols = ["gre", 41, "sctp", 0, 255]
[timeouts]
udp = "2min 30s"
fragment = "1500ms"
other_opening = "5s"
other = "5s"
[limits]
mappings = 1_000
sessions = 0x1000
fragments = 16
other_translations = 17
frames = 8192
[icmp]
rate = 0
burst = 1
exhausted_code = 1
unsolicited_syn = "silent"
[worker]
cores = [3]
busy_poll = "never"
burst = 32
[metrics]
listen = "[::1]:9000"
[control]
socket = "/tmp/a.sock"
[log]
level = "debug"
"#,
    );
    let range = |first, last| PoolEntry::Addresses(AddressRange { first: ip(first), last: ip(last) });
    assert_eq!(
        config.pools[0].addresses,
        [
            range("203.0.113.10", "203.0.113.10"),
            range("203.0.113.20", "203.0.113.22"),
            range("198.51.100.0", "198.51.100.3"),
            PoolEntry::Interface("eth0".to_owned())
        ]
    );
    let ports = config.pools[0].ports.clone().unwrap();
    assert_eq!(ports, [PortRange { first: 1024, last: 32_767 }, PortRange { first: 61_000, last: 65_535 }]);
    assert_eq!(config.forwards[0].to_string(), "tcp+udp interface:eth0:8000-8009 -> 10.0.0.1:9000, 10.0.0.2:9100");
    assert_eq!(config.nat.mapping, MappingBehaviour::AddressDependent);
    assert_eq!(config.nat.filtering_udp, Filtering::EndpointIndependent);
    assert_eq!(config.nat.filtering_tcp, Filtering::AddressDependent);
    assert!(config.nat.inbound_refresh);
    assert_eq!(
        (config.nat.port_parity, config.policy(&HostAddresses::default()).port_parity),
        (PortParity::Preserve, PortParity::Preserve)
    );
    assert_eq!(config.nat.port_hold, PortHold { time: Duration::from_secs(180), most: 500 });
    assert_eq!(config.nat.exempt, ["198.18.0.0/24".parse().unwrap(), "192.0.2.1/32".parse().unwrap()]);
    assert!(config.summary().iter().any(|line| line.ends_with("no translation to 198.18.0.0/24, 192.0.2.1/32")));
    let others: ProtocolSet = [47, 41, 132, 0, 255].into_iter().collect();
    assert_eq!((config.nat.other_protocols, config.policy(&HostAddresses::default()).other_protocols), (others, others));
    assert!(config.summary().iter().any(|line| line.contains("; of other protocols 0, ipv6, gre, sctp, 255; ")));
    assert_eq!((config.timeouts.other_opening, config.timeouts.other), (Duration::from_secs(5), Duration::from_secs(5)));
    assert_eq!(config.timeouts.udp, Duration::from_secs(150));
    assert_eq!(config.timeouts.fragment, Duration::from_millis(1500));
    let limits = config.limits;
    assert_eq!((limits.mappings, limits.sessions, limits.fragments, limits.frames), (1000, 4096, 16, 8192));
    assert_eq!(limits.other_translations, 17);
    assert_eq!((config.icmp.rate, config.icmp.burst, config.icmp.exhausted_code), (0, 1, 1));
    assert_eq!(config.icmp.unsolicited_syn, UnsolicitedSyn::Silent);
    assert_eq!((config.worker.count, config.worker.cores.as_slice(), config.worker.burst), (Some(1), [3].as_slice(), 32));
    assert_eq!(config.worker.busy_poll, BusyPoll::Never);
    assert_eq!(config.metrics.listen.unwrap().to_string(), "[::1]:9000");
    assert_eq!(config.control.socket.to_str(), Some("/tmp/a.sock"));
    assert_eq!((config.log.level, config.log.level.as_str()), (LogLevel::Debug, "debug"));
}

#[test]
fn tcp_is_filtered_as_udp_where_the_file_does_not_say() {
    let config = config(&format!("{}[nat]\nfiltering = \"address-dependent\"", pool("\"192.0.2.1\"", "")));
    assert_eq!(config.nat.filtering_tcp, Filtering::AddressDependent);
}

#[test]
fn udp_is_kept_by_mappings_where_the_file_says_so() {
    let lines = "[nat]\nfiltering = \"endpoint-independent\"\nfiltering_tcp = \"address-dependent\"\nudp_tracking = ";
    let with = |tracking: &str| {
        parse(&format!("{}{lines}{tracking}\n[limits]\nmappings = 4096\nsessions = 1024", pool("\"192.0.2.1\"", "")))
    };
    let (config, warnings) = with("\"mappings\"");
    assert_eq!((config.nat.udp_tracking, config.bare_mappings()), (UdpTracking::Mappings, 4096));
    assert!(warnings.is_empty(), "mappings of UDP need no sessions, so that fewer are no doubt: {warnings:?}");
    assert!(config.summary().iter().any(|line| line.contains(", of TCP address-dependent; UDP has bare mappings; ")));
    let (config, warnings) = with("\"sessions\"");
    assert_eq!((config.nat.udp_tracking, config.bare_mappings(), warnings.len()), (UdpTracking::Sessions, 0, 1));
    assert!(!config.summary().iter().any(|line| line.contains("bare")));
}

/// RFC 6888, REQ-8: "until at least 120 seconds have passed", and its exceptions.
#[test]
fn ports_rest_where_the_filter_lets_strangers_in_and_the_file_does_not_say() {
    let rows = [
        ("", 0),
        ("filtering = \"address-dependent\"", 0),
        ("filtering_tcp = \"endpoint-independent\"", 0),
        ("filtering = \"endpoint-independent\"", 120),
        ("filtering = \"endpoint-independent\"\nport_hold = \"0s\"", 0),
        ("port_hold = \"30s\"", 30),
    ];
    for (lines, seconds) in rows {
        let config = config(&format!("{}[nat]\n{lines}", pool("\"192.0.2.1\"", "")));
        let hold = config.policy(&HostAddresses::default()).port_hold;
        assert_eq!((hold.time, hold.most), (Duration::from_secs(seconds), 32_768), "{lines}");
        assert_eq!(config.summary().iter().any(|line| line.contains("freed ports rest")), seconds > 0, "{lines}");
    }
}

#[test]
fn an_empty_address_turns_metrics_off() {
    assert_eq!(config(&format!("{}[metrics]\nlisten = \"\"", pool("\"192.0.2.1\"", ""))).metrics.listen, None);
}

#[test]
fn times_below_an_rfc_are_legal_and_warned_of() {
    for (key, time, rfc) in [
        ("udp", "119s", "2m that RFC 4787, REQ-5, requires"),
        ("tcp_established", "7439s", "2h 4m that RFC 5382, REQ-5, requires"),
        ("tcp_transitory", "239s", "4m that RFC 5382, REQ-5, requires"),
        ("tcp_closing", "239s", "4m that RFC 5382, REQ-5, requires"),
        ("icmp", "59s", "1m that RFC 5508, REQ-2, requires"),
    ] {
        let (_, warnings) = parse(&format!("{}[timeouts]\n{key} = \"{time}\"", pool("\"192.0.2.1\"", "")));
        assert_eq!(warnings.len(), 1, "{key}");
        assert_eq!(warnings[0].key, format!("timeouts.{key}"));
        let shown = warnings[0].to_string();
        assert!(shown.starts_with("test.toml:14:") && shown.contains("warning: ") && shown.contains(rfc), "{shown}");
    }
    let (_, warnings) =
        parse(&format!("{}[timeouts]\nudp = \"120s\"\ntcp_opening = \"10s\"\nfragment = \"1s\"", pool("\"192.0.2.1\"", "")));
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn times_towards_ports_are_in_the_policy_and_warned_of_beyond_the_well_known_ones() {
    let lines = "[timeouts.udp_ports]\n53 = \"30s\"\n1023 = \"2s\"\n1024 = \"119s\"\n5060 = \"1h\"";
    let (config, warnings) = parse(&format!("{}{lines}", pool("\"192.0.2.1\"", "")));
    let times = [(53, 30), (1023, 2), (1024, 119), (5060, 3600)].map(|(port, seconds)| (port, Duration::from_secs(seconds)));
    assert_eq!(config.policy(&host("192.0.2.1")).udp_ports, times.into());
    assert_eq!(warnings.iter().map(|warning| warning.key.as_str()).collect::<Vec<_>>(), ["timeouts.udp_ports.1024"]);
    let shown = warnings[0].to_string();
    assert!(
        shown.contains("1m 59s is less than the 2m that RFC 4787, REQ-5, except towards well-known ports (0-1023), requires"),
        "{shown}"
    );
    assert!(
        config
            .summary()
            .iter()
            .any(|line| line.ends_with("other 10m; udp to port 53 30s, to port 1023 2s, to port 1024 1m 59s, to port 5060 1h"))
    );
}

#[test]
fn as_many_ports_as_are_said_may_have_times_and_no_more() {
    let ports = |count: u16| {
        let lines: Vec<_> = (1..=count).map(|port| format!("{port} = \"{}s\"", 10 + port % 4)).collect();
        let lines = lines.join("\n");
        Config::parse(&format!("{INTERFACES}{}[timeouts.udp_ports]\n{lines}", pool("\"192.0.2.1\"", "")), "test.toml")
    };
    assert_eq!(ports(64).map(|(config, _)| config.udp_ports.len()).unwrap(), 64);
    let shown = ports(65).unwrap_err().to_string();
    assert!(shown.contains("timeouts.udp_ports: 65 ports") && shown.contains("legal: at most 64 ports"), "{shown}");
}

#[test]
fn one_key_sets_both_transitory_times_and_each_has_its_own() {
    let rows = [
        ("", (240, 240)),
        ("tcp_transitory = \"300s\"", (300, 300)),
        ("tcp_opening = \"30s\"", (30, 240)),
        ("tcp_closing = \"5min\"", (240, 300)),
        ("tcp_transitory = \"6min\"\ntcp_opening = \"30s\"", (30, 360)),
    ];
    for (lines, (opening, closing)) in rows {
        let times = config(&format!("{}[timeouts]\n{lines}", pool("\"192.0.2.1\"", ""))).timeouts;
        assert_eq!((times.tcp_opening.as_secs(), times.tcp_closing.as_secs()), (opening, closing), "{lines}");
    }
}

#[test]
fn sessions_fewer_than_mappings_are_warned_of() {
    let (_, warnings) = parse(&format!("{}[limits]\nsessions = 64", pool("\"192.0.2.1\"", "")));
    assert!(warnings[0].to_string().contains("262144 mappings but 64 sessions"), "{}", warnings[0]);
}

#[test]
fn an_address_that_forwards_take_whole_is_warned_of() {
    let forward = "[[forward]]\nprotocol = \"tcp\"\nexternal = \"192.0.2.1:1-65535\"\ninternal = [\"10.0.0.1:1\"]";
    let (_, warnings) = parse(&format!("{}{forward}", pool("\"192.0.2.1\"", "")));
    assert!(warnings[0].to_string().contains("leave 192.0.2.1 no port of pool"), "{}", warnings[0]);
}

#[test]
fn slots_keep_their_order_whatever_addresses_there_are() {
    let config = config(&(pool("\"192.0.2.1-192.0.2.2\", \"interface\"", "") + &pool("\"198.51.100.9\"", "")));
    let (one, two, last) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("198.51.100.9"));
    let sources: Vec<_> = config.slots().collect();
    assert_eq!(sources, [SlotSource::Fixed(one), SlotSource::Fixed(two), SlotSource::Interface("eth0"), SlotSource::Fixed(last)]);
    assert_eq!(config.slot_count(), 4);
    let addresses =
        |host: &HostAddresses| config.policy(host).externals.iter().map(|external| external.address).collect::<Vec<_>>();
    assert_eq!(addresses(&HostAddresses::default()), [Some(one), Some(two), None, Some(last)]);
    assert_eq!(addresses(&host("203.0.113.5")), [Some(one), Some(two), Some(ip("203.0.113.5")), Some(last)]);
    assert_eq!(addresses(&host("203.0.113.6")), [Some(one), Some(two), Some(ip("203.0.113.6")), Some(last)]);
}

#[test]
fn no_two_slots_have_the_same_address() {
    let config = config(&pool("\"interface\", \"203.0.113.5\"", ""));
    let policy = config.policy(&host("203.0.113.5"));
    assert_eq!(policy.externals.iter().map(|external| external.address).collect::<Vec<_>>(), [None, Some(ip("203.0.113.5"))]);
}

#[test]
fn an_address_of_the_box_leaves_the_host_its_ports() {
    let config = config(&pool("\"203.0.113.5\", \"203.0.113.6\", \"interface\"", ""));
    let mut host = host("203.0.113.7");
    host.local.insert(ip("203.0.113.5"));
    host.local_ports = PortRange { first: 40_000, last: 50_000 };
    let externals = config.policy(&host).externals;
    assert_eq!(externals.iter().map(|external| external.shared_with_host).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(ranges(&externals[0]), [(1024, 39_999), (50_001, 65_535)]);
    assert_eq!(ranges(&externals[1]), [(1024, 65_535)]);
    assert_eq!(ranges(&externals[2]), [(1024, 39_999), (50_001, 65_535)]);
}

#[test]
fn an_address_that_the_gateway_added_is_not_shared() {
    let config = config(&pool("\"203.0.113.5\", \"interface\"", ""));
    let mut host = HostAddresses::default();
    host.interfaces.insert("eth0".to_owned(), vec![ip("203.0.113.5"), ip("203.0.113.7")]);
    host.local.extend([ip("203.0.113.5"), ip("203.0.113.7")]);
    host.added_by_gateway = BTreeSet::from([ip("203.0.113.5")]);
    let externals = config.policy(&host).externals;
    assert!(!externals[0].shared_with_host);
    assert_eq!(ranges(&externals[0]), [(1024, 65_535)]);
    assert_eq!((externals[1].address, externals[1].shared_with_host), (Some(ip("203.0.113.7")), true));
}

#[test]
fn ports_that_the_file_names_are_taken_at_its_word() {
    let config = config(&pool("\"interface\"", "ports = \"30000-40000\""));
    assert_eq!(ranges(&config.policy(&host("203.0.113.7")).externals[0]), [(30_000, 40_000)]);
}

#[test]
fn forwards_have_slots_and_their_ports_are_no_longer_the_pools() {
    let forward = |protocol: &str, external: &str| {
        format!("[[forward]]\nprotocol = \"{protocol}\"\nexternal = \"{external}\"\ninternal = [\"10.0.0.1:80\"]\n")
    };
    let config = config(
        &(pool("\"203.0.113.5\", \"interface\"", "ports = \"1000-1099\"")
            + &forward("tcp+udp", "interface:1010-1019")
            + &forward("udp", "203.0.113.5:1000")),
    );
    let policy = config.policy(&HostAddresses::default());
    let forwards: Vec<_> = policy.forwards.iter().map(|one| (one.protocol, one.external, one.first, one.last)).collect();
    assert_eq!(forwards, [(Protocol::Tcp, 1, 1010, 1019), (Protocol::Udp, 1, 1010, 1019), (Protocol::Udp, 0, 1000, 1000)]);
    assert_eq!(policy.forwards[0].servers, [Endpoint { address: ip("10.0.0.1"), port: 80 }]);
    assert_eq!(ranges(&policy.externals[1]), [(1000, 1009), (1020, 1099)]);
    assert_eq!(ranges(&policy.externals[0]), [(1001, 1099)]);
}

/// The system with `eth1` inside and `eth0` outside.
fn system(inside: &str, outside: &[&str]) -> Vec<SystemInterface> {
    let interface = |name: &str, addresses: &[&str]| SystemInterface {
        name: name.to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mtu: 1500,
        mtu_most: 3000,
    };
    vec![interface("lo", &["127.0.0.1/8"]), interface("eth1", &[inside]), interface("eth0", outside)]
}

fn system_faults(config: &Config, system: &[SystemInterface]) -> String {
    match config.check_system(system) {
        Err(ConfigError::Invalid(findings)) => findings.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_system_that_fits_gives_no_finding() {
    let config = config(&pool("\"203.0.113.10\", \"interface\"", ""));
    assert_eq!(config.check_system(&system("10.0.0.1/24", &["203.0.113.1/24"])).unwrap(), []);
}

#[test]
fn an_interface_that_the_system_lacks_is_reported_with_those_it_has() {
    let config = config(&pool("\"203.0.113.10\"", ""));
    let mut system = system("10.0.0.1/24", &["203.0.113.1/24"]);
    system[2].name = "enp1s0".to_owned();
    let shown = system_faults(&config, &system);
    assert!(shown.starts_with("test.toml:7:8: error: interface[1].name: this system has no interface `eth0`"), "{shown}");
    assert!(shown.contains("the system has eth1, enp1s0"), "{shown}");
}

#[test]
fn a_pool_address_in_a_connected_network_inside_is_reported() {
    let shown = system_faults(&config(&pool("\"203.0.113.10\"", "")), &system("203.0.113.129/24", &["192.0.2.1/24"]));
    assert!(shown.contains("pool[0].addresses[0]: 203.0.113.10 lies inside: in the network 203.0.113.0/24 of inside"), "{shown}");
}

#[test]
fn a_pool_address_that_an_outside_network_keeps_for_itself_is_reported() {
    let config = config(&pool("\"203.0.113.0/28\"", ""));
    let shown = system_faults(&config, &system("10.0.0.1/24", &["203.0.113.20/27"]));
    assert!(shown.contains("has 203.0.113.0, which the network 203.0.113.0/27 of interface `eth0` keeps for itself"), "{shown}");
    assert!(config.check_system(&system("10.0.0.1/24", &["203.0.113.0/31"])).is_ok(), "a /31 has no such addresses");
}

#[test]
fn a_followed_interface_without_address_is_a_warning() {
    let warnings = config(&pool("\"interface\"", "")).check_system(&system("10.0.0.1/24", &[])).unwrap();
    assert!(warnings[0].to_string().contains("interface `eth0` has no IPv4 address now"), "{}", warnings[0]);
}

#[test]
fn a_network_that_is_inside_and_outside_is_a_warning() {
    let config = config(&pool("\"interface\"", ""));
    for (inside, outside) in [("10.0.0.1/24", "10.0.0.9/24"), ("10.0.0.1/24", "10.9.9.9/8"), ("10.0.0.1/8", "10.0.7.9/24")] {
        let warnings = config.check_system(&system(inside, &[outside])).unwrap();
        let shown = warnings[0].to_string();
        assert!(warnings.len() == 1 && shown.contains("have addresses in common: hosts reach those of one side only"), "{shown}");
    }
    assert_eq!(config.check_system(&system("10.0.0.1/24", &["10.0.1.9/24"])).unwrap(), []);
}

#[test]
fn a_pool_with_fewer_ports_than_workers_is_a_warning() {
    let config = config(&pool("\"203.0.113.10\"", "ports = \"5000-5002\""));
    assert_eq!(config.doubt_shares(3), []);
    let warnings = config.doubt_shares(4);
    let shown = warnings[0].to_string();
    assert!(
        warnings.len() == 1 && shown.contains("test.toml:10") && shown.contains("has 3 ports of each address for 4 workers"),
        "{shown}"
    );
}

#[test]
fn an_address_that_is_listed_and_followed_is_reported() {
    let shown = system_faults(&config(&pool("\"203.0.113.1\", \"interface\"", "")), &system("10.0.0.1/24", &["203.0.113.1/24"]));
    assert!(shown.contains("pool[0].addresses[1]: interface `eth0` has the address 203.0.113.1, which pool"), "{shown}");
}

#[test]
fn a_server_that_is_the_box_and_an_mtu_beyond_the_frames_are_reported() {
    let forward = "[[forward]]\nprotocol = \"tcp\"\nexternal = \"192.0.2.1:80\"\ninternal = [\"10.0.0.1:80\"]";
    let mut system = system("10.0.0.1/24", &["203.0.113.1/24"]);
    system[1].mtu = 9000;
    let shown = system_faults(&config(&format!("{}{forward}", pool("\"192.0.2.1\"", ""))), &system);
    assert!(shown.contains("forward[0].internal[0]: the server 10.0.0.1 is this box"), "{shown}");
    assert!(shown.contains("interface `eth1` has an MTU of 9000 bytes") && shown.contains("ip link set eth1 mtu 3000"), "{shown}");
}

#[test]
fn the_summary_says_what_an_operator_looks_for() {
    let forward = "[[forward]]\nprotocol = \"tcp\"\nexternal = \"interface:8080\"\ninternal = [\"10.0.0.1:80\"]";
    let config = config(&format!("{}{forward}", pool("\"interface\"", "")));
    assert_eq!(
        config.summary(),
        [
            "interface eth1 inside: translates all that is routed there",
            "interface eth0 outside",
            "pool pool11: 1 address (interface:eth0), 64512 ports per protocol (1024-65535, less the host's own on an address of the box)",
            "forward tcp interface:eth0:8080 -> 10.0.0.1:80",
            "mapping endpoint-independent, filtering address-and-port-dependent",
            "timeouts: udp 5m, tcp established 2h 4m, tcp opening 4m, tcp closing 4m, icmp 1m, fragment 15s, \
             other opening 30s, other 10m",
            "limits: 262144 mappings, 524288 sessions, 4096 fragmented packets, 16384 translations of other protocols, 32768 frames",
            "workers: as many as queues and cores allow, on cores of the gateway's choice, busy polling adaptive, bursts of 64",
            "metrics: http://127.0.0.1:9464/metrics; control: /run/portcullis/control.sock",
        ]
    );
}

#[test]
fn the_sets_of_other_protocols_have_words() {
    let set = |value: &str| config(&format!("{}[nat]\nother_protocols = {value}", pool("\"interface\"", "")));
    let said = |value: &str| set(value).summary().iter().any(|line| line.ends_with("; no other protocols"));
    assert_eq!((set("\"all\"").nat.other_protocols, said("\"all\"")), (ProtocolSet::ALL, false));
    assert_eq!((set("\"none\"").nat.other_protocols, said("\"none\"")), (ProtocolSet::EMPTY, true));
    assert_eq!((set("[]").nat.other_protocols, said("[]")), (ProtocolSet::EMPTY, true));
    for (name, number) in portcullis_config::PROTOCOLS {
        assert_eq!(set(&format!("[\"{name}\"]")).nat.other_protocols, [number].into_iter().collect());
    }
}

#[test]
fn the_summary_of_a_large_file_stays_short() {
    let pools: Vec<_> = (0..200).map(|n| format!("[[pool]]\nname = \"p{n}\"\naddresses = [\"192.0.2.{n}\"]\n")).collect();
    let summary = config(&pools.concat()).summary();
    assert!(summary.len() < 30 && summary.iter().any(|line| line == "and 184 more pools"), "{summary:?}");
}
