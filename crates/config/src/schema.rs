//! Every section and key that a configuration may have, with its default and what it accepts, in one list.
//!
//! Knows words only; the modules of the sections know the values. It answers for unknown keys, wrong types and missing keys, and
//! docs/configuration.md repeats it. Tests: each key is read, each default is the one in force, each key is documented.

/// A key of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What holds when it is left out, in TOML; none where it is required or where leaving it out is a meaning of its own.
    pub default: Option<&'static str>,
    /// What it accepts, for people.
    pub accepts: &'static str,
}

/// A section: a table, or several with the same heading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Whether it is `[[name]]`, which may stand several times.
    pub repeated: bool,
    /// What it has to be, for people.
    pub accepts: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

impl Section {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, default: Option<&'static str>, accepts: &'static str) -> Key {
    Key { name, default, accepts }
}

const PORTS: &str = "port ranges from 1 to 65535, such as \"1024-65535\" or \"1024-32767,61000-65535\"";
const FILTERINGS: &str = "\"endpoint-independent\", \"address-dependent\" or \"address-and-port-dependent\"";
const OTHER_PROTOCOLS: &str =
    "\"all\", \"none\", or a list of protocol names and numbers from 0 to 255, such as [\"gre\", \"sctp\", \"esp\", 41]";
const FLOW_TIME: &str = "a duration in quotes from 1s to 7days, such as \"300s\"";

/// `[[interface]]`.
pub const INTERFACE: Section = Section {
    name: "interface",
    repeated: true,
    accepts: "tables, each headed [[interface]]",
    keys: &[
        key("name", None, "the kernel's name of an interface in quotes, such as \"eth1\" or \"eth1.100\""),
        key("side", None, "\"inside\" or \"outside\""),
        key("prefixes", Some("[]"), "a list of IPv4 prefixes, such as [\"10.0.0.0/8\"]"),
        key("queues", None, "a whole number from 1 to 64"),
        key("mss", Some("\"off\""), "\"off\", \"pmtu\" or a whole number from 88 to 65495"),
    ],
};

/// `[[pool]]`.
pub const POOL: Section = Section {
    name: "pool",
    repeated: true,
    accepts: "tables, each headed [[pool]]",
    keys: &[
        key("name", None, "a name in quotes of 1 to 63 letters, digits, '-', '_' and '.'"),
        key(
            "addresses",
            None,
            "a list of addresses \"203.0.113.10\", ranges \"203.0.113.10-203.0.113.20\", prefixes \"203.0.113.16/28\", or \"interface\"",
        ),
        key("ports", Some("\"1024-65535\""), PORTS),
    ],
};

/// `[[forward]]`.
pub const FORWARD: Section = Section {
    name: "forward",
    repeated: true,
    accepts: "tables, each headed [[forward]]",
    keys: &[
        key("protocol", None, "\"tcp\", \"udp\" or \"tcp+udp\""),
        key("external", None, "\"address:port\", \"address:first-last\" or \"interface:port\", with ports from 1 to 65535"),
        key("internal", None, "a list of at least one \"address:port\", such as [\"10.0.0.11:80\"], with ports from 1 to 65535"),
    ],
};

/// `[nat]`.
pub const NAT: Section = Section {
    name: "nat",
    repeated: false,
    accepts: "one table, headed [nat]",
    keys: &[
        key("mapping", Some("\"endpoint-independent\""), FILTERINGS),
        key("filtering", Some("\"address-and-port-dependent\""), FILTERINGS),
        key("filtering_tcp", None, FILTERINGS),
        key("udp_tracking", Some("\"sessions\""), "\"sessions\" or \"mappings\""),
        key("inbound_refresh", Some("false"), "true or false"),
        key("port_parity", Some("\"any\""), "\"any\" or \"preserve\""),
        key("port_hold", None, "a duration in quotes from 0s to 1h, such as \"120s\""),
        key("port_hold_most", Some("32768"), "a whole number from 1 to 65536"),
        key("exempt", Some("[]"), "a list of IPv4 prefixes, such as [\"10.0.0.0/8\"]"),
        key("other_protocols", Some("\"all\""), OTHER_PROTOCOLS),
    ],
};

/// `[timeouts]`.
pub const TIMEOUTS: Section = Section {
    name: "timeouts",
    repeated: false,
    accepts: "one table, headed [timeouts]",
    keys: &[
        key("udp", Some("\"300s\""), FLOW_TIME),
        key(
            "udp_ports",
            Some("{}"),
            "a table of at most 64 ports from 1 to 65535, each with a duration in quotes from 2s to 7days, such as { 53 = \"30s\" }",
        ),
        key("tcp_established", Some("\"7440s\""), FLOW_TIME),
        key("tcp_transitory", Some("\"240s\""), FLOW_TIME),
        key("tcp_opening", None, FLOW_TIME),
        key("tcp_closing", None, FLOW_TIME),
        key("icmp", Some("\"60s\""), FLOW_TIME),
        key("fragment", Some("\"15s\""), "a duration in quotes from 1s to 120s, such as \"15s\""),
        key("other_opening", Some("\"30s\""), FLOW_TIME),
        key("other", Some("\"600s\""), FLOW_TIME),
    ],
};

/// `[limits]`.
pub const LIMITS: Section = Section {
    name: "limits",
    repeated: false,
    accepts: "one table, headed [limits]",
    keys: &[
        key("mappings", Some("262144"), "a whole number from 64 to 16777216"),
        key("sessions", Some("524288"), "a whole number from 64 to 33554432"),
        key("fragments", Some("4096"), "a whole number from 16 to 1048576"),
        key("other_translations", Some("16384"), "a whole number from 16 to 1048576"),
        key("frames", Some("32768"), "a power of two from 4096 to 1048576"),
    ],
};

/// `[icmp]`.
pub const ICMP: Section = Section {
    name: "icmp",
    repeated: false,
    accepts: "one table, headed [icmp]",
    keys: &[
        key("rate", Some("1000"), "a whole number from 0 to 1000000"),
        key("burst", Some("50"), "a whole number from 1 to 100000"),
        key("exhausted_code", Some("13"), "13 or 1"),
        key("unsolicited_syn", Some("\"answer\""), "\"answer\" or \"silent\""),
    ],
};

/// `[worker]`.
pub const WORKER: Section = Section {
    name: "worker",
    repeated: false,
    accepts: "one table, headed [worker]",
    keys: &[
        key("count", Some("\"auto\""), "\"auto\" or a whole number from 1 to 64"),
        key("cores", None, "a list of core numbers from 0 to 1023, one for each worker, such as [2, 3]"),
        key("busy_poll", Some("\"adaptive\""), "\"adaptive\", \"always\" or \"never\""),
        key("burst", Some("64"), "a whole number from 1 to 64"),
    ],
};

/// `[metrics]`.
pub const METRICS: Section = Section {
    name: "metrics",
    repeated: false,
    accepts: "one table, headed [metrics]",
    keys: &[key("listen", Some("\"127.0.0.1:9464\""), "\"address:port\" with a port from 1 to 65535, or \"\" for none")],
};

/// `[control]`.
pub const CONTROL: Section = Section {
    name: "control",
    repeated: false,
    accepts: "one table, headed [control]",
    keys: &[key("socket", Some("\"/run/portcullis/control.sock\""), "an absolute path in quotes of at most 107 bytes")],
};

/// `[log]`.
pub const LOG: Section = Section {
    name: "log",
    repeated: false,
    accepts: "one table, headed [log]",
    keys: &[key("level", Some("\"info\""), "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"")],
};

/// All sections, in the order of docs/configuration.md.
pub const SECTIONS: [&Section; 11] =
    [&INTERFACE, &POOL, &FORWARD, &NAT, &TIMEOUTS, &LIMITS, &ICMP, &WORKER, &METRICS, &CONTROL, &LOG];
