//! Every kind of mistake gives one error, with its line, its column, its key and what is legal.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use portcullis_config::{Config, ConfigError, Fault, Findings};

/// A legal file to put mistakes into.
const GOOD: &str = r#"
[[interface]]
name = "eth1"
side = "inside"
prefixes = ["10.0.0.0/8"]

[[interface]]
name = "eth0"
side = "outside"

[[pool]]
name = "default"
addresses = ["203.0.113.10", "203.0.113.16/28"]

[[forward]]
protocol = "tcp"
external = "203.0.113.10:8080"
internal = ["10.0.0.11:80"]
"#;

fn findings(text: &str) -> Findings {
    match Config::parse(text, "test.toml") {
        Err(ConfigError::Invalid(findings)) => findings,
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => panic!("{error}"),
    }
}

fn only_fault(text: &str) -> Fault {
    let findings = findings(text);
    assert_eq!(findings.faults.len() + findings.unlisted, 1, "one mistake, one error:\n{findings}\nin\n{text}");
    findings.faults.into_iter().next().unwrap()
}

/// A mistake: what of the good file is replaced by what (or `""`: what is put behind it), and where and how it is reported: at the
/// first place of the text between the marks, with this key, and these parts of the message.
type Mistake = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// Takes the marks `<<` and `>>` out of a text. Returns line and column of what they enclose.
fn unmark(text: &str) -> (String, u32, u32) {
    let at = text.find("<<").unwrap_or_else(|| panic!("no mark in\n{text}"));
    let before = &text[..at];
    let line = before.matches('\n').count() as u32 + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() as u32 + 1;
    (text.replacen("<<", "", 1).replacen(">>", "", 1), line, column)
}

fn check(mistakes: &[Mistake]) {
    for (good, bad, key, parts) in mistakes {
        let text = if good.is_empty() { format!("{GOOD}\n{bad}") } else { GOOD.replacen(good, bad, 1) };
        assert_ne!(text, GOOD, "{good:?} is not in the good file");
        let (text, line, column) = unmark(&text);
        let fault = only_fault(&text);
        assert_eq!((fault.place.line, fault.place.column), (line, column), "of {bad:?}:\n{fault}");
        assert_eq!(fault.key, *key, "of {bad:?}");
        let shown = fault.to_string();
        for part in *parts {
            assert!(shown.contains(part), "{part:?} is not in\n{shown}");
        }
    }
}

#[test]
fn the_good_file_is_good() {
    let (_, warnings) = Config::parse(GOOD, "test.toml").unwrap();
    assert!(warnings.is_empty());
}

#[test]
fn unknown_names_are_reported_with_those_that_exist() {
    check(&[
        (
            "",
            "[<<timeout>>]\nudp = \"5s\"",
            "timeout",
            &["unknown section `timeout`", "did you mean `timeouts`?", "legal: interface, pool,"],
        ),
        (
            "addresses",
            "<<adresses>> = []\naddresses",
            "pool[0].adresses",
            &["unknown key `adresses`, did you mean `addresses`?", "legal: name, addresses, ports"],
        ),
        (
            "",
            "[nat]\n<<colour>> = 1",
            "nat.colour",
            &["unknown key `colour`\n", "legal: mapping, filtering, filtering_tcp, udp_tracking, inbound_refresh, port_parity"],
        ),
        ("", "[log]\n<<level.x>> = 1", "log.level", &["found a table", "\"info\""]),
    ]);
}

#[test]
fn wrong_types_are_reported_with_the_one_that_is_wanted() {
    check(&[
        (
            "name = \"eth1\"",
            "name = <<7>>",
            "interface[0].name",
            &["found a whole number", "legal: the kernel's name of an interface in quotes"],
        ),
        (
            "[\"10.0.0.0/8\"]",
            "<<\"10.0.0.0/8\">>",
            "interface[0].prefixes",
            &["found a text in quotes", "legal: a list of IPv4 prefixes"],
        ),
        ("[\"10.0.0.11:80\"]", "[<<80>>]", "forward[0].internal[0]", &["found a whole number", "\"address:port\""]),
        (
            "",
            "[timeouts]\nudp = <<300>>",
            "timeouts.udp",
            &["found a whole number", "a duration in quotes from 1s to 7days, such as \"300s\""],
        ),
        (
            "",
            "[limits]\nmappings = <<\"many\">>",
            "limits.mappings",
            &["found a text in quotes", "a whole number from 64 to 16777216"],
        ),
        ("", "[limits]\nmappings = <<1.5>>", "limits.mappings", &["found a number with a fraction"]),
        ("", "[nat]\ninbound_refresh = <<\"no\">>", "nat.inbound_refresh", &["legal: true or false"]),
        ("", "[nat]\nudp_tracking = <<true>>", "nat.udp_tracking", &["found true or false", "\"sessions\" or \"mappings\""]),
        ("", "[nat]\nudp_tracking = <<\"mapping\">>", "nat.udp_tracking", &["legal: \"sessions\", \"mappings\""]),
        ("", "[nat]\nport_hold = <<\"61min\">>", "nat.port_hold", &["legal: durations from 0s to 1h"]),
        ("", "[nat]\nport_parity = <<\"even\">>", "nat.port_parity", &["legal: \"any\", \"preserve\""]),
        ("", "[nat]\nother_protocols = <<47>>", "nat.other_protocols", &["found a whole number", "or a list of protocol names"]),
        (
            "",
            "[nat]\nother_protocols = <<\"gre\">>",
            "nat.other_protocols",
            &["`gre` is not a set of protocols", "[\"gre\", \"sctp\""],
        ),
        ("", "[nat]\nother_protocols = [<<\"grre\">>]", "nat.other_protocols[0]", &["`grre` is none of the words", "\"gre\""]),
        ("", "[nat]\nother_protocols = [47, <<256>>]", "nat.other_protocols[1]", &["256 is out of range", "from 0 to 255"]),
        ("", "<<[[log]]>>", "log", &["found a list", "one table, headed [log]"]),
    ]);
    let fault = only_fault("interface = 3\n[[pool]]\nname = \"a\"\naddresses = [\"192.0.2.1\"]");
    assert_eq!((fault.key.as_str(), fault.place.line), ("interface", 1));
    assert!(fault.to_string().contains("tables, each headed [[interface]]"), "{fault}");
}

#[test]
fn what_is_not_translated_by_address_is_refused_with_the_reason() {
    const LEGAL: &str = "protocols other than 1 (ICMP), 6 (TCP), 17 (UDP) and 51 (AH)";
    check(&[
        (
            "",
            "[nat]\nother_protocols = [<<1>>]",
            "nat.other_protocols[0]",
            &["protocol 1 is none", "ICMP is always translated", LEGAL],
        ),
        ("", "[nat]\nother_protocols = [47, <<6>>]", "nat.other_protocols[1]", &["TCP is always translated", LEGAL]),
        ("", "[nat]\nother_protocols = [<<17>>]", "nat.other_protocols[0]", &["UDP is always translated", LEGAL]),
        ("", "[nat]\nother_protocols = [<<51>>]", "nat.other_protocols[0]", &["AH authenticates the addresses", LEGAL]),
        ("", "[nat]\nother_protocols = [\"gre\", <<47>>]", "nat.other_protocols[1]", &["`gre` stands in this list already"]),
        ("", "[nat]\nother_protocols = [99, <<99>>]", "nat.other_protocols[1]", &["`99` stands in this list already"]),
    ]);
}

#[test]
fn an_opening_translation_may_not_last_longer_than_an_answered_one() {
    const SAID: &str = "`other_opening` at most as long as `other`";
    check(&[
        ("", "[timeouts]\nother_opening = <<\"601s\">>", "timeouts.other_opening", &["10m 1s for an opening translation", SAID]),
        ("", "[timeouts]\nother = <<\"29s\">>", "timeouts.other", &["30s for an opening translation", SAID]),
    ]);
}

#[test]
fn a_missing_key_is_reported_at_its_section() {
    check(&[
        ("[[pool]]\nname = \"default\"", "<<[[pool]]>>", "pool[0].name", &["`name` is missing"]),
        (
            "[[interface]]\nname = \"eth0\"\nside = \"outside\"",
            "[[interface]]\nname = \"eth0\"\nside = \"outside\"\n<<[[interface]]>>\nname = \"eth2\"",
            "interface[2].side",
            &["`side` is missing", "\"inside\" or \"outside\""],
        ),
    ]);
    let fault = only_fault(&GOOD.replace("protocol = \"tcp\"\n", ""));
    assert_eq!((fault.key.as_str(), fault.place.line), ("forward[0].protocol", 15));
}

#[test]
fn interfaces_have_names_sides_and_prefixes_that_can_be() {
    check(&[
        ("name = \"eth0\"", "name = <<\"eth1\">>", "interface[1].name", &["`eth1` is already that of an interface at line 3"]),
        ("name = \"eth0\"", "name = <<\"an-interface-name\">>", "interface[1].name", &["is not a name that an interface can have"]),
        ("name = \"eth0\"", "name = <<\"eth0:1\">>", "interface[1].name", &["is not a name that an interface can have"]),
        ("side = \"outside\"", "side = <<\"out\">>", "interface[1].side", &["`out`", "legal: \"inside\", \"outside\""]),
        (
            "side = \"outside\"",
            "side = \"outside\"\nprefixes = <<[\"10.0.0.0/8\"]>>",
            "interface[1].prefixes",
            &["only an inside interface has `prefixes`"],
        ),
        ("[\"10.0.0.0/8\"]", "[<<\"10.0.0.1/8\">>]", "interface[0].prefixes[0]", &["bits set beyond its length", "\"10.0.0.0/8\""]),
        ("[\"10.0.0.0/8\"]", "[\"10.0.0.0/8\", <<\"224.0.0.0/8\">>]", "interface[0].prefixes[1]", &["multicast"]),
        ("[\"10.0.0.0/8\"]", "[\"10.0.0.0/8\", <<\"10.0.0.0/8\">>]", "interface[0].prefixes[1]", &["stands in this list already"]),
        ("[\"10.0.0.0/8\"]", "[\"10.0.0.0/8\", <<\"ten\">>]", "interface[0].prefixes[1]", &["`ten` is not an IPv4 prefix"]),
        ("prefixes", "queues = <<0>>\nprefixes", "interface[0].queues", &["0 is out of range", "from 1 to 64"]),
        ("prefixes", "mss = <<87>>\nprefixes", "interface[0].mss", &["87 is out of range", "from 88 to 65495"]),
        ("prefixes", "mss = <<\"mtu\">>\nprefixes", "interface[0].mss", &["legal: \"off\", \"pmtu\""]),
    ]);
}

#[test]
fn each_side_needs_an_interface_and_the_file_a_pool() {
    let one_sided = |side: &str| {
        format!("[[interface]]\nname = \"eth1\"\nside = \"{side}\"\n[[pool]]\nname = \"a\"\naddresses = [\"192.0.2.1\"]")
    };
    for (side, other) in [("inside", "outside"), ("outside", "inside")] {
        let fault = only_fault(&one_sided(side));
        assert_eq!((fault.key.as_str(), fault.place.line), ("interface", 2));
        assert!(fault.to_string().contains(&format!("no {other} interface is configured")), "{fault}");
        assert!(fault.to_string().contains(&format!("at least one [[interface]] with side = \"{other}\"")), "{fault}");
    }
    let without_pool = &GOOD[..GOOD.find("[[pool]]").unwrap()];
    let fault = only_fault(without_pool);
    assert!(fault.key == "pool" && fault.to_string().contains("no pool is configured"), "{fault}");
    assert_eq!(findings("").faults.len(), 3, "an empty file lacks both sides and a pool");
}

#[test]
fn pools_have_addresses_that_hosts_outside_can_answer_to() {
    check(&[
        (
            "\"203.0.113.10\",",
            "<<\"203.0.113.300\">>,",
            "pool[0].addresses[0]",
            &["is not an address, a range, a prefix or \"interface\""],
        ),
        (
            "203.0.113.16/28\"]",
            "203.0.113.16/28\", <<\"203.0.113.90-203.0.113.80\">>]",
            "pool[0].addresses[2]",
            &["runs backwards"],
        ),
        (
            "203.0.113.16/28\"]",
            "203.0.113.16/28\", <<\"203.0.113.33/28\">>]",
            "pool[0].addresses[2]",
            &["the prefix \"203.0.113.32/28\", or the address \"203.0.113.33\""],
        ),
        ("203.0.113.16/28\"]", "203.0.113.16/28\", <<\"127.0.0.1\">>]", "pool[0].addresses[2]", &["loopback", "127.0.0.0/8"]),
        ("203.0.113.16/28\"]", "203.0.113.16/28\", <<\"0.0.0.0\">>]", "pool[0].addresses[2]", &["zero"]),
        ("203.0.113.16/28\"]", "203.0.113.16/28\", <<\"239.1.1.1\">>]", "pool[0].addresses[2]", &["multicast"]),
        ("203.0.113.16/28\"]", "203.0.113.16/28\", <<\"255.255.255.255\">>]", "pool[0].addresses[2]", &["reserved"]),
        ("203.0.113.16/28\"]", "203.0.113.16/28\", <<\"169.254.0.9\">>]", "pool[0].addresses[2]", &["link-local"]),
        (
            "203.0.113.16/28\"]",
            "203.0.113.16/28\", <<\"10.9.0.1\">>]",
            "pool[0].addresses[2]",
            &["10.9.0.1 lies inside: in the prefix 10.0.0.0/8 of interface `eth1` at line 5"],
        ),
        (
            "203.0.113.16/28\"]",
            "203.0.113.16/28\", <<\"198.18.0.0/19\">>]",
            "pool[0].addresses[2]",
            &["the pools have 8209 addresses", "at most 4096"],
        ),
        (
            "addresses = [\"203.0.113.10\", \"203.0.113.16/28\"]\n\n[[forward]]\nprotocol = \"tcp\"\nexternal = \"203.0.113.10:8080\"\ninternal = [\"10.0.0.11:80\"]",
            "addresses = <<[]>>",
            "pool[0].addresses",
            &["the list is empty"],
        ),
    ]);
}

#[test]
fn an_address_is_in_the_pools_once() {
    check(&[
        (
            "203.0.113.16/28\"]",
            "203.0.113.16/28\", <<\"203.0.113.10\">>]",
            "pool[0].addresses[2]",
            &["203.0.113.10 has an address that `203.0.113.10` at line 13 has as well", "each address once in all pools"],
        ),
        (
            "",
            "[[pool]]\nname = \"b\"\naddresses = [\n  <<\"203.0.113.30-203.0.113.40\">>,\n]",
            "pool[1].addresses[0]",
            &["203.0.113.16-203.0.113.31", "line 13"],
        ),
        (
            "203.0.113.16/28\"]",
            "203.0.113.16/28\", \"interface\", <<\"interface:eth0\">>]",
            "pool[0].addresses[3]",
            &["interface:eth0"],
        ),
        (
            "",
            "[[pool]]\nname = <<\"default\">>\naddresses = [\"192.0.2.1\"]",
            "pool[1].name",
            &["`default` is already that of a pool at line 12"],
        ),
        ("name = \"default\"", "name = <<\"two words\">>", "pool[0].name", &["letters, digits"]),
    ]);
    // An address in the middle of an entry that reaches over two others is found in both.
    let text = format!("{GOOD}\n[[pool]]\nname = \"b\"\naddresses = [\"203.0.113.0/24\"]");
    let shown = findings(&text).to_string();
    assert_eq!(shown.matches("has as well").count(), 2, "{shown}");
}

#[test]
fn ports_are_ranges_without_zero_that_run_forwards() {
    let line = "addresses = [\"203.0.113.10\", \"203.0.113.16/28\"]";
    for (ports, part) in [
        ("2000-1000", "the range `2000-1000` runs backwards"),
        ("0-1000", "`0-1000` has port 0"),
        ("", "`` is not a port range"),
        ("1024-65536", "`1024-65536` is not a port range"),
        ("1024-", "is not a port range"),
        ("1024-2000,2000-3000", "2000-3000 overlaps with 1024-2000"),
        ("1024-2000,,3000", "`` is not a port range"),
    ] {
        let text = GOOD.replace(line, &format!("{line}\nports = \"{ports}\""));
        let fault = only_fault(&text);
        assert_eq!((fault.key.as_str(), fault.place.line, fault.place.column), ("pool[0].ports", 14, 9), "{fault}");
        assert!(fault.to_string().contains(part), "{part:?} is not in\n{fault}");
        assert!(fault.to_string().contains("legal: "), "{fault}");
    }
}

#[test]
fn a_pool_follows_an_outside_interface_of_the_file() {
    check(&[
        (
            "203.0.113.16/28\"]",
            "203.0.113.16/28\", <<\"interface:eth1\">>]",
            "pool[0].addresses[2]",
            &["`eth1` is no outside interface of this file", "legal: eth0"],
        ),
        ("203.0.113.16/28\"]", "203.0.113.16/28\", <<\"interface:eth\">>]", "pool[0].addresses[2]", &["did you mean `eth0`?"]),
        (
            "side = \"outside\"\n\n[[pool]]\nname = \"default\"\naddresses = [",
            "side = \"outside\"\n\n[[interface]]\nname = \"ppp0\"\nside = \"outside\"\n[[pool]]\nname = \"default\"\naddresses = [<<\"interface\">>, ",
            "pool[0].addresses[0]",
            &["more than one outside", "\"interface:eth0\", \"interface:ppp0\""],
        ),
    ]);
}

#[test]
fn forwards_lead_from_the_pool_to_servers_inside() {
    check(&[
        ("protocol = \"tcp\"", "protocol = <<\"sctp\">>", "forward[0].protocol", &["\"tcp\", \"udp\", \"tcp+udp\""]),
        (
            "\"203.0.113.10:8080\"",
            "<<\"203.0.113.99:8080\">>",
            "forward[0].external",
            &["203.0.113.99 is in no pool", "legal: an address of a pool: 203.0.113.10, 203.0.113.16-203.0.113.31"],
        ),
        ("\"203.0.113.10:8080\"", "<<\"interface:8080\">>", "forward[0].external", &["interface:eth0 is in no pool"]),
        ("\"203.0.113.10:8080\"", "<<\"interface:eth9:8080\">>", "forward[0].external", &["`eth9` is no outside interface"]),
        ("\"203.0.113.10:8080\"", "<<\"203.0.113.10\">>", "forward[0].external", &["is not an address with a port"]),
        ("\"203.0.113.10:8080\"", "<<\"203.0.113.10:90-80\">>", "forward[0].external", &["`90-80` runs backwards"]),
        ("\"203.0.113.10:8080\"", "<<\"203.0.113.10:0\">>", "forward[0].external", &["has port 0"]),
        ("\"203.0.113.10:8080\"", "<<\"203.0.113.10:http\">>", "forward[0].external", &["`http` is not a port"]),
        ("\"203.0.113.10:8080\"", "<<\"example.org:80\">>", "forward[0].external", &["`example.org` is not an IPv4 address"]),
        ("[\"10.0.0.11:80\"]", "<<[]>>", "forward[0].internal", &["the list is empty"]),
        ("\"10.0.0.11:80\"", "<<\"10.0.0.11\">>", "forward[0].internal[0]", &["is not an IPv4 address with a port"]),
        ("\"10.0.0.11:80\"", "<<\"10.0.0.11:0\">>", "forward[0].internal[0]", &["has port 0"]),
        ("\"10.0.0.11:80\"", "\"10.0.0.11:80\", <<\"10.0.0.11:80\">>", "forward[0].internal[1]", &["stands in this list already"]),
        (
            "\"10.0.0.11:80\"",
            "<<\"192.168.0.11:80\">>",
            "forward[0].internal[0]",
            &["192.168.0.11 is not inside", "the inside prefixes: 10.0.0.0/8"],
        ),
        ("\"10.0.0.11:80\"", "<<\"203.0.113.17:80\">>", "forward[0].internal[0]", &["is an external address", "pool `default`"]),
    ]);
    let range = GOOD.replace("10:8080", "10:8080-8180").replace("0.11:80\"", "0.11:65500\"");
    let fault = only_fault(&range);
    assert_eq!((fault.key.as_str(), fault.place.line), ("forward[0].internal[0]", 18));
    assert!(fault.to_string().contains("lead to ports up to 65600") && fault.to_string().contains("up to 65435"), "{fault}");
}

#[test]
fn a_server_is_private_where_no_prefix_says_what_is_inside() {
    let open = GOOD.replace("prefixes = [\"10.0.0.0/8\"]\n", "");
    assert!(Config::parse(&open, "test.toml").is_ok());
    let fault = only_fault(&open.replace("10.0.0.11:80", "192.0.2.11:80"));
    assert!(fault.to_string().contains("private addresses (10.0.0.0/8,"), "{fault}");
}

#[test]
fn an_external_port_is_forwarded_once_for_each_protocol() {
    let second = |protocol: &str, ports: &str| {
        format!(
            "{GOOD}\n[[forward]]\nprotocol = \"{protocol}\"\nexternal = \"203.0.113.10:{ports}\"\ninternal = [\"10.0.0.12:80\"]"
        )
    };
    for (protocol, ports) in [("tcp", "8080"), ("tcp", "8000-8100"), ("tcp+udp", "8080-8090")] {
        let fault = only_fault(&second(protocol, ports));
        assert_eq!((fault.key.as_str(), fault.place.line), ("forward[1].external", 22), "{fault}");
        assert!(fault.to_string().contains("the forward at line 17 has tcp port 8080"), "{fault}");
    }
    for (protocol, ports) in [("udp", "8080"), ("tcp", "8081-8090"), ("tcp", "8000-8079")] {
        assert!(Config::parse(&second(protocol, ports), "test.toml").is_ok(), "{protocol} {ports}");
    }
}

#[test]
fn settings_are_words_and_numbers_in_their_ranges() {
    check(&[
        (
            "",
            "[nat]\nfiltering = <<\"none\">>",
            "nat.filtering",
            &["\"endpoint-independent\", \"address-dependent\", \"address-and-port-dependent\""],
        ),
        ("", "[timeouts]\nudp = <<\"300\">>", "timeouts.udp", &["`300` is not a duration"]),
        ("", "[timeouts]\nudp = <<\"500ms\">>", "timeouts.udp", &["500ms is out of range", "from 1s to 7days"]),
        ("", "[timeouts]\ntcp_established = <<\"8days\">>", "timeouts.tcp_established", &["8days is out of range"]),
        ("", "[timeouts]\nfragment = <<\"3min\">>", "timeouts.fragment", &["from 1s to 2m"]),
        ("", "[timeouts]\nudp_ports = <<53>>", "timeouts.udp_ports", &["found a whole number", "a table of at most 64 ports"]),
        ("", "[timeouts]\nudp_ports = { 53 = <<\"1s\">> }", "timeouts.udp_ports.53", &["1s is out of range", "from 2s to 7days"]),
        ("", "[timeouts]\nudp_ports = { 53 = <<30>> }", "timeouts.udp_ports.53", &["found a whole number"]),
        ("", "[timeouts.udp_ports]\n<<0>> = \"30s\"", "timeouts.udp_ports.0", &["`0` is not a port", "from 1 to 65535"]),
        ("", "[timeouts.udp_ports]\n<<053>> = \"30s\"", "timeouts.udp_ports.053", &["`053` is not a port"]),
        ("", "[timeouts.udp_ports]\n<<65536>> = \"30s\"", "timeouts.udp_ports.65536", &["`65536` is not a port"]),
        ("", "[timeouts.udp_ports]\n<<dns>> = \"30s\"", "timeouts.udp_ports.dns", &["`dns` is not a port"]),
        (
            "",
            "[timeouts]\nudp_ports = <<{ 1 = \"10s\", 2 = \"20s\", 3 = \"30s\", 4 = \"40s\", 5 = \"50s\", 6 = \"10s\" }>>",
            "timeouts.udp_ports",
            &["5 different times", "at most 4 different times"],
        ),
        ("", "[limits]\nsessions = <<-1>>", "limits.sessions", &["-1 is out of range", "from 64 to 33554432"]),
        ("", "[limits]\nsessions = <<99999999999999999999>>", "limits.sessions", &["is out of range"]),
        ("", "[limits]\nframes = <<5000>>", "limits.frames", &["5000 is not a power of two", "4096 and 8192"]),
        ("", "[limits]\nframes = <<2048>>", "limits.frames", &["from 4096 to 1048576"]),
        ("", "[nat]\nexempt = [<<\"198.18.0.1/24\">>]", "nat.exempt[0]", &["198.18.0.0/24"]),
        ("", "[nat]\nexempt = [\"198.18.0.0/24\", <<\"198.18.0.0/24\">>]", "nat.exempt[1]", &["198.18.0.0/24"]),
        ("", "[icmp]\nexhausted_code = <<3>>", "icmp.exhausted_code", &["legal: 13, 1"]),
        ("", "[icmp]\nunsolicited_syn = <<\"reset\">>", "icmp.unsolicited_syn", &["legal: \"answer\", \"silent\""]),
        ("", "[icmp]\nburst = <<0>>", "icmp.burst", &["from 1 to 100000"]),
        ("", "[worker]\ncount = <<0>>", "worker.count", &["from 1 to 64"]),
        ("", "[worker]\ncount = <<\"all\">>", "worker.count", &["`all` is none of the words", "legal: \"auto\""]),
        ("", "[worker]\ncount = 3\ncores = <<[1, 2]>>", "worker.cores", &["2 cores are listed for 3 workers", "a list of 3 cores"]),
        ("", "[worker]\ncores = [1, 2, <<1>>]", "worker.cores[2]", &["`1` stands in this list already"]),
        ("", "[worker]\ncores = <<[]>>", "worker.cores", &["the list is empty"]),
        ("", "[worker]\nburst = <<1000>>", "worker.burst", &["from 1 to 64"]),
        ("", "[metrics]\nlisten = <<\"localhost\">>", "metrics.listen", &["or \"\" for none"]),
        ("", "[metrics]\nlisten = <<\"127.0.0.1:0\">>", "metrics.listen", &["a port from 1 to 65535"]),
        ("", "[control]\nsocket = <<\"control.sock\">>", "control.socket", &["absolute path"]),
        ("", "[log]\nlevel = <<\"loud\">>", "log.level", &["\"error\", \"warn\", \"info\", \"debug\", \"trace\""]),
    ]);
}

#[test]
fn udp_without_sessions_needs_behaviours_that_ask_for_no_remote() {
    check(&[
        (
            "",
            "[nat]\nudp_tracking = <<\"mappings\">>",
            "nat.udp_tracking",
            &[
                "without a `filtering` only those get in that were sent to",
                "legal: with it filtering = \"endpoint-independent\", and filtering_tcp = \"address-and-port-dependent\" where",
                "or udp_tracking = \"sessions\"",
            ],
        ),
        (
            "",
            "[nat]\nudp_tracking = \"mappings\"\nfiltering = <<\"address-dependent\">>",
            "nat.filtering",
            &["which \"address-dependent\" filtering goes by", "legal: filtering = \"endpoint-independent\"; or udp_tracking ="],
        ),
        (
            "",
            "[nat]\nmapping = <<\"address-and-port-dependent\">>\nfiltering = \"endpoint-independent\"\nudp_tracking = \"mappings\"",
            "nat.mapping",
            &["\"address-and-port-dependent\" mapping goes by", "legal: mapping = \"endpoint-independent\"; or udp_tracking ="],
        ),
        // The one that is not legal is not blamed twice.
        ("", "[nat]\nudp_tracking = \"mappings\"\nfiltering = <<\"none\">>", "nat.filtering", &["is none of the words"]),
        (
            "",
            "[timeouts]\nudp_ports = <<{ 53 = \"30s\" }>>\n[nat]\nfiltering = \"endpoint-independent\"\nudp_tracking = \"mappings\"",
            "timeouts.udp_ports",
            &["no times towards their ports", "legal: no `udp_ports`; or udp_tracking = \"sessions\" in [nat]"],
        ),
    ]);
}

#[test]
fn what_is_not_toml_is_reported_in_the_same_form() {
    check(&[
        ("name = \"eth0\"", "name = \"eth0\"\n<<name>> = \"eth2\"", "", &["not TOML: duplicate key"]),
        ("side = \"outside\"", "side = <<outside>>", "", &["not TOML: "]),
    ]);
    let shown = findings("[[interface]\nname = \"a\"\n").to_string();
    assert!(shown.contains("test.toml:1:"), "{shown}");
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let text = GOOD
        .replace("\"inside\"", "\"insid\"")
        .replace("\"203.0.113.10\",", "\"203.0.113.10\", \"127.0.0.1\",")
        .replace("10.0.0.11:80", "10.0.0.11")
        + "\n[limits]\nframes = 1\n[colours]\n";
    let findings = findings(&text);
    let keys: Vec<_> = findings.faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(
        keys,
        ["interface[0].side", "pool[0].addresses[1]", "forward[0].internal[0]", "limits.frames", "colours"],
        "{findings}"
    );
    assert!(findings.to_string().ends_with("5 errors"));
}

#[test]
fn a_mistake_in_one_key_does_not_hide_one_in_another_section() {
    let text = GOOD
        .replace("addresses = [", "ports = \"0\"\naddresses = [")
        .replace("side = \"outside\"", "side = \"outside\"\nqueues = 0")
        .replace("203.0.113.10:8080", "203.0.113.99:8080");
    let findings = findings(&text);
    let keys: Vec<_> = findings.faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["interface[1].queues", "pool[0].ports", "forward[0].external"], "{findings}");
}

#[test]
fn a_fault_is_shown_as_compilers_show_it() {
    let text = GOOD.replace("addresses = [\"203.0.113.10\",", "ports = \"2000-1000\"\naddresses = [\"203.0.113.10\",");
    let expected = "\
test.toml:13:9: error: pool[0].ports: the range `2000-1000` runs backwards
   |
13 | ports = \"2000-1000\"
   |         ^^^^^^^^^^^
   = legal: port ranges from 1 to 65535, such as \"1024-65535\" or \"1024-32767,61000-65535\"";
    assert_eq!(only_fault(&text).to_string(), expected);
}

#[test]
fn very_many_mistakes_are_counted_and_not_all_listed() {
    let text = format!("{GOOD}\n[log]\n") + &(0..250).map(|number| format!("key{number} = 1\n")).collect::<Vec<_>>().concat();
    let findings = findings(&text);
    assert_eq!(findings.faults.len() + findings.unlisted, 250);
    assert!(findings.to_string().ends_with("250 errors, of which 150 are not shown"), "{findings}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = std::env::temp_dir().join(format!("portcullis-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let load = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        Config::load(&path).unwrap_err().to_string()
    };
    let missing = Config::load(&folder.join("missing.toml")).unwrap_err().to_string();
    let binary = load("binary.toml", b"# fine\n[log]\nlevel = \"\xff\"\n");
    let large = load("large.toml", &vec![b'\n'; 2 << 20]);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(missing.contains("missing.toml") && missing.contains("No such file"), "{missing}");
    assert!(binary.contains("binary.toml:3:10: error: not UTF-8 text"), "{binary}");
    assert!(large.contains("large.toml") && large.contains("larger than 1048576 bytes"), "{large}");
}
