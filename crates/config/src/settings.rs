//! The sections that stand once: `[nat]`, `[timeouts]`, `[limits]`, `[icmp]`, `[worker]`, `[metrics]`, `[control]`, `[log]`.
//!
//! Knows each value's legal range and what holds when it is left out. Invariant: the defaults are those of `nat`, where it has some.
//! Sources: RFC 4787, 5382, 5508 for the least times. Tests: `tests/bad_input.rs`, `tests/schema.rs`.

use core::net::{Ipv4Addr, SocketAddr};
use core::ops::RangeInclusive;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use portcullis_nat::REST_MOST;
use portcullis_nat::policy::{
    Filtering, IcmpErrors, MappingBehaviour, PortHold, PortParity, ProtocolSet, Timeouts, UDP_PORT_TIMES, UnsolicitedSyn,
};

use crate::finding::{Doubt, Problem};
use crate::interface::read_prefixes;
use crate::read::{Document, Entry, Report, Table, Value, shorten};
use crate::schema::{CONTROL, ICMP, LIMITS, LOG, METRICS, NAT, TIMEOUTS, WORKER};

/// How UDP is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpTracking {
    /// By sessions, one for each remote endpoint.
    #[default]
    Sessions,
    /// By bare mappings, without the remotes.
    Mappings,
}

/// `[nat]`: how it translates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatRules {
    /// The mapping behaviour.
    pub mapping: MappingBehaviour,
    /// The filtering behaviour of UDP and ICMP queries.
    pub filtering_udp: Filtering,
    /// The filtering behaviour of TCP: that of UDP where the file does not say.
    pub filtering_tcp: Filtering,
    /// How UDP is kept; by mappings only where `mapping` and `filtering_udp` are endpoint-independent.
    pub udp_tracking: UdpTracking,
    /// Whether inbound packets keep alive a session that was let in by the filter alone.
    pub inbound_refresh: bool,
    /// Whether UDP ports keep their parity.
    pub port_parity: PortParity,
    /// How long ports rest: where the file does not say, as the filter of UDP wants.
    pub port_hold: PortHold,
    /// Destinations that nothing is translated for: the kernel routes to and from them.
    pub exempt: Vec<Ipv4Net>,
    /// The protocols beside TCP, UDP and ICMP that are translated by address.
    pub other_protocols: ProtocolSet,
}

/// `[limits]`: what is allocated at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Mappings.
    pub mappings: u32,
    /// Sessions.
    pub sessions: u32,
    /// Fragmented packets followed at once.
    pub fragments: u32,
    /// Translations of protocols without ports.
    pub other_translations: u32,
    /// Frames of packet memory, a power of two.
    pub frames: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { mappings: 262_144, sessions: 524_288, fragments: 4096, other_translations: 16_384, frames: 32_768 }
    }
}

/// When a worker asks for packets without being woken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BusyPoll {
    /// While packets come; it sleeps when they stop.
    #[default]
    Adaptive,
    /// All the time: the least delay, and a core always at work.
    Always,
    /// Never: it is woken for each burst.
    Never,
}

/// `[worker]`: how packets are worked on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRules {
    /// How many workers there are, or none where queues and cores decide. With `cores` as many as those.
    pub count: Option<u16>,
    /// The cores that workers are pinned to, one each; empty where the gateway chooses.
    pub cores: Vec<u16>,
    /// When it polls.
    pub busy_poll: BusyPoll,
    /// The most packets that it takes at once.
    pub burst: u16,
}

impl Default for WorkerRules {
    fn default() -> Self {
        Self { count: None, cores: Vec::new(), busy_poll: BusyPoll::default(), burst: 64 }
    }
}

/// `[metrics]`: where counters can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// The address of the HTTP server, or none for no server.
    pub listen: Option<SocketAddr>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))) }
    }
}

/// `[control]`: where the command line reaches the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The path of the unix socket, absolute.
    pub socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/portcullis/control.sock") }
    }
}

/// How much the log says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// What may go wrong.
    Warn,
    /// What happened.
    #[default]
    Info,
    /// What was decided, and why.
    Debug,
    /// Everything.
    Trace,
}

/// `[log]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// How much it says.
    pub level: LogLevel,
}

/// All sections that stand once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) nat: NatRules,
    pub(crate) timeouts: Timeouts,
    pub(crate) udp_ports: BTreeMap<u16, Duration>,
    pub(crate) limits: Limits,
    pub(crate) icmp: IcmpErrors,
    pub(crate) worker: WorkerRules,
    pub(crate) metrics: Metrics,
    pub(crate) control: Control,
    pub(crate) log: Log,
}

impl Settings {
    pub(crate) fn read(document: &Document<'_>, report: &mut Report) -> Self {
        type Read = fn(&mut Settings, &Table<'_>, &mut Report);
        let mut settings = Self::default();
        // `[nat]` first: the others go by how UDP is kept.
        let readers: [(_, Read); 8] = [
            (&NAT, |settings, table, report| settings.nat = read_nat(table, report)),
            (&TIMEOUTS, |settings, table, report| {
                settings.timeouts = read_timeouts(table, report);
                let tracking = settings.nat.udp_tracking;
                settings.udp_ports =
                    table.get("udp_ports").map(|value| read_udp_ports(&value, tracking, report)).unwrap_or_default();
            }),
            (&LIMITS, |settings, table, report| settings.limits = read_limits(table, settings.nat.udp_tracking, report)),
            (&ICMP, |settings, table, report| settings.icmp = read_icmp(table, report)),
            (&WORKER, |settings, table, report| settings.worker = read_worker(table, report)),
            (&METRICS, |settings, table, report| settings.metrics = read_metrics(table, report)),
            (&CONTROL, |settings, table, report| settings.control = read_control(table, report)),
            (&LOG, |settings, table, report| settings.log = read_log(table, report)),
        ];
        for (section, read) in readers {
            if let Some(table) = document.table(section, report) {
                read(&mut settings, &table, report);
            }
        }
        settings
    }
}

pub(crate) const MAPPINGS: [(&str, MappingBehaviour); 3] = [
    ("endpoint-independent", MappingBehaviour::EndpointIndependent),
    ("address-dependent", MappingBehaviour::AddressDependent),
    ("address-and-port-dependent", MappingBehaviour::AddressAndPortDependent),
];

pub(crate) const FILTERINGS: [(&str, Filtering); 3] = [
    ("endpoint-independent", Filtering::EndpointIndependent),
    ("address-dependent", Filtering::AddressDependent),
    ("address-and-port-dependent", Filtering::AddressAndPortDependent),
];

const UDP_TRACKINGS: [(&str, UdpTracking); 2] = [("sessions", UdpTracking::Sessions), ("mappings", UdpTracking::Mappings)];

pub(crate) const PARITIES: [(&str, PortParity); 2] = [("any", PortParity::Any), ("preserve", PortParity::Preserve)];

pub(crate) const BUSY_POLLS: [(&str, BusyPoll); 3] =
    [("adaptive", BusyPoll::Adaptive), ("always", BusyPoll::Always), ("never", BusyPoll::Never)];

const LOG_LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

/// The word for a value, as the file has it.
pub(crate) fn word_of<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words.iter().find(|(_, meaning)| meaning == value).map_or("?", |&(word, _)| word)
}

impl LogLevel {
    /// The level's word.
    pub fn as_str(self) -> &'static str {
        word_of(&LOG_LEVELS, &self)
    }
}

fn read_nat(table: &Table<'_>, report: &mut Report) -> NatRules {
    let mapping = table.get("mapping").and_then(|value| value.word(&MAPPINGS, report)).unwrap_or_default();
    let filtering = table.get("filtering").and_then(|value| value.word(&FILTERINGS, report));
    let filtering_udp = filtering.unwrap_or_default();
    let filtering_tcp = table.get("filtering_tcp").and_then(|value| value.word(&FILTERINGS, report)).unwrap_or(filtering_udp);
    let udp_tracking = read_udp_tracking(table, mapping, filtering, report);
    let inbound_refresh = table.get("inbound_refresh").and_then(|value| value.boolean(report)).unwrap_or_default();
    let port_parity = table.get("port_parity").and_then(|value| value.word(&PARITIES, report)).unwrap_or_default();
    let port_hold = read_port_hold(table, filtering_udp, report);
    let exempt = table.get("exempt").map(|value| read_prefixes(&value, report).0).unwrap_or_default();
    let other_protocols = table.get("other_protocols").and_then(|value| read_protocols(&value, report)).unwrap_or_default();
    NatRules {
        mapping,
        filtering_udp,
        filtering_tcp,
        udp_tracking,
        inbound_refresh,
        port_parity,
        port_hold,
        exempt,
        other_protocols,
    }
}

/// A bare mapping says everything where no behaviour goes by the remote, and only there. `filtering` is what the file says, if that is legal.
fn read_udp_tracking(
    table: &Table<'_>,
    mapping: MappingBehaviour,
    filtering: Option<Filtering>,
    report: &mut Report,
) -> UdpTracking {
    let Some(value) = table.get("udp_tracking") else { return UdpTracking::default() };
    let tracking = value.word(&UDP_TRACKINGS, report).unwrap_or_default();
    if tracking == UdpTracking::Sessions {
        return tracking;
    }
    if let Some(said) = table.get("mapping").filter(|_| mapping != MappingBehaviour::EndpointIndependent) {
        report.fault(&said.spot, Problem::NeedsSessions { key: "mapping", found: word_of(&MAPPINGS, &mapping) });
    }
    match (table.get("filtering"), filtering) {
        (None, _) => report.fault(&value.spot, Problem::FilteringUnsaid),
        (Some(said), Some(filtering)) if filtering != Filtering::EndpointIndependent => {
            report.fault(&said.spot, Problem::NeedsSessions { key: "filtering", found: word_of(&FILTERINGS, &filtering) });
        }
        _ => {}
    }
    tracking
}

/// The words for all protocols and for none.
pub(crate) const PROTOCOL_SETS: [(&str, ProtocolSet); 2] = [("all", ProtocolSet::ALL), ("none", ProtocolSet::EMPTY)];

/// The names of protocols beside TCP, UDP and ICMP. **Source:** IANA, "Assigned Internet Protocol Numbers".
pub const PROTOCOLS: [(&str, u8); 9] = [
    ("dccp", 33),
    ("esp", 50),
    ("etherip", 97),
    ("gre", 47),
    ("ipip", 4),
    ("ipv6", 41),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
];

/// A word for a set, or a list of protocols.
fn read_protocols(value: &Value<'_>, report: &mut Report) -> Option<ProtocolSet> {
    if value.is_text() {
        let text = value.text(report)?;
        let set = PROTOCOL_SETS.iter().find(|(word, _)| *word == text).map(|&(_, set)| set);
        if set.is_none() {
            value.malformed(text, "a set of protocols", report);
        }
        return set;
    }
    let mut set = ProtocolSet::EMPTY;
    for element in value.list(report)? {
        let found = element.word_or(&PROTOCOLS, 0..=255, |number| number as u8, report);
        let Some(protocol) = found else { continue };
        if !ProtocolSet::may_contain(protocol) {
            report.fault(&element.spot, Problem::NotByAddress { protocol, why: why_not_by_address(protocol) });
        } else if set.contains(protocol) {
            report.fault(&element.spot, Problem::RepeatedValue { found: protocol_word(protocol) });
        }
        set.insert(protocol);
    }
    Some(set)
}

/// Of a protocol that no set may contain.
const fn why_not_by_address(protocol: u8) -> &'static str {
    match protocol {
        1 => "ICMP is always translated, by identifier",
        6 => "TCP is always translated, by port",
        17 => "UDP is always translated, by port",
        _ => "AH authenticates the addresses, so that no translation can pass (RFC 3715, section 2.1)",
    }
}

/// A protocol as the file may have it: its name, or else its number.
pub(crate) fn protocol_word(protocol: u8) -> String {
    PROTOCOLS.iter().find(|(_, number)| *number == protocol).map_or_else(|| protocol.to_string(), |(name, _)| (*name).to_owned())
}

/// "Once an external port is deallocated, it SHOULD NOT be reallocated to a new mapping until at least 120 seconds have passed": RFC 6888, REQ-8.
const PORT_HOLD: Duration = Duration::from_secs(120);

/// REQ-8 C excepts ports whose filter lets only those in that were sent to: whoever had them before is not heard.
fn read_port_hold(table: &Table<'_>, filtering: Filtering, report: &mut Report) -> PortHold {
    let wanted = if filtering == Filtering::EndpointIndependent { PORT_HOLD } else { Duration::ZERO };
    let time = table.get("port_hold").and_then(|value| value.duration(Duration::ZERO..=REST_MOST, report)).unwrap_or(wanted);
    let most = table.get("port_hold_most").and_then(|value| value.integer(1..=65_536, report));
    PortHold { time, most: most.unwrap_or(PortHold::default().most) }
}

/// Idle times of flows. The least is chosen: the sweep's lateness must stay small beside it. The most is chosen well below what
/// the NAT's clock can tell (`Tick::HORIZON`, 24 days).
const FLOW_TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(7 * 24);
/// The time of fragments. The most is RFC 1122, section 3.3.2: a reassembly timeout "between 60 seconds and 120 seconds".
const FRAGMENT_TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(2);

/// The least time that an RFC requires, and the RFC.
type Required = (u64, &'static str);
/// "A NAT UDP mapping timer MUST NOT expire in less than two minutes".
const UDP_REQUIRED: Required = (120, "RFC 4787, REQ-5,");
/// "the value of the \"established connection idle-timeout\" MUST NOT be less than 2 hours 4 minutes".
const TCP_ESTABLISHED_REQUIRED: Required = (7440, "RFC 5382, REQ-5,");
/// "The value of the \"transitory connection idle-timeout\" MUST NOT be less than 4 minutes".
const TCP_TRANSITORY_REQUIRED: Required = (240, "RFC 5382, REQ-5,");
/// RFC 7857, section 2.1: where 4 minutes for a partially open connection are thought excessive, "a NAT MAY allow the configured timeout to be
/// less than 4 minutes".
const OPENING_REQUIRED: Required = (0, "");
/// "An ICMP Query session timer MUST NOT expire in less than 60 seconds".
const ICMP_REQUIRED: Required = (60, "RFC 5508, REQ-2,");

/// No RFC says how long a translation of a protocol without ports has to last.
const OTHER_REQUIRED: Required = (0, "");

fn read_timeouts(table: &Table<'_>, report: &mut Report) -> Timeouts {
    let default = Timeouts::default();
    let mut flow = |name, required: Required, default| {
        let Some(value) = table.get(name) else { return default };
        let Some(found) = value.duration(FLOW_TIME, report) else { return default };
        let (least, rfc) = (Duration::from_secs(required.0), required.1);
        if found < least {
            report.warning(&value.spot, Doubt::BelowRfc { found, least, rfc });
        }
        found
    };
    let transitory = flow("tcp_transitory", TCP_TRANSITORY_REQUIRED, default.tcp_closing);
    let (other_opening, other) =
        (flow("other_opening", OTHER_REQUIRED, default.other_opening), flow("other", OTHER_REQUIRED, default.other));
    let times = Timeouts {
        udp: flow("udp", UDP_REQUIRED, default.udp),
        tcp_established: flow("tcp_established", TCP_ESTABLISHED_REQUIRED, default.tcp_established),
        tcp_opening: flow("tcp_opening", OPENING_REQUIRED, transitory),
        tcp_closing: flow("tcp_closing", TCP_TRANSITORY_REQUIRED, transitory),
        icmp: flow("icmp", ICMP_REQUIRED, default.icmp),
        fragment: table.get("fragment").and_then(|value| value.duration(FRAGMENT_TIME, report)).unwrap_or(default.fragment),
        other_opening,
        other,
    };
    if times.other_opening > times.other {
        let spot = ["other_opening", "other"].into_iter().find_map(|name| table.get(name)).map(|value| value.spot);
        let (found, most) = (times.other_opening, times.other);
        report.fault(spot.as_ref().unwrap_or(&table.spot), Problem::OpeningTooLong { found, most });
    }
    times
}

/// The most ports that have times of their own. Chosen: more than there are protocols of one question and one answer.
const UDP_PORTS_MOST: usize = 64;
/// Idle times towards ports. The least is chosen: a resolver asks again after a second or more, and an answer that late should get through.
const PORT_TIME: RangeInclusive<Duration> = Duration::from_secs(2)..=*FLOW_TIME.end();
/// "For specific destination ports in the well-known port range (ports 0-1023), a NAT MAY have shorter UDP mapping timers".
const WELL_KNOWN_MOST: u16 = 1023;
const PORT_REQUIRED: Required = (120, "RFC 4787, REQ-5, except towards well-known ports (0-1023),");

fn read_udp_ports(value: &Value<'_>, tracking: UdpTracking, report: &mut Report) -> BTreeMap<u16, Duration> {
    let Some(entries) = value.entries(report) else { return BTreeMap::new() };
    if entries.len() > UDP_PORTS_MOST {
        report.fault(&value.spot, Problem::TooManyPorts { found: entries.len(), most: UDP_PORTS_MOST });
        return BTreeMap::new();
    }
    let times: BTreeMap<_, _> = entries.iter().filter_map(|entry| read_udp_port(entry, report)).collect();
    let different = times.values().collect::<BTreeSet<_>>().len();
    if different > UDP_PORT_TIMES {
        report.fault(&value.spot, Problem::TooManyTimes { found: different, most: UDP_PORT_TIMES });
    }
    if tracking == UdpTracking::Mappings && !times.is_empty() {
        report.fault(&value.spot, Problem::NoPortTimes);
    }
    times
}

fn read_udp_port(entry: &Entry<'_>, report: &mut Report) -> Option<(u16, Duration)> {
    // Written in one way only, so that no port stands twice.
    let port = entry.name.parse().ok().filter(|port: &u16| *port > 0 && port.to_string() == entry.name);
    if port.is_none() {
        let (found, wants) = (shorten(entry.name), entry.value.accepts);
        report.fault(&entry.spot, Problem::Malformed { found, what: "a port", wants });
    }
    let found = entry.value.duration(PORT_TIME, report);
    let (port, found) = (port?, found?);
    let (least, rfc) = (Duration::from_secs(PORT_REQUIRED.0), PORT_REQUIRED.1);
    if port > WELL_KNOWN_MOST && found < least {
        report.warning(&entry.value.spot, Doubt::BelowRfc { found, least, rfc });
    }
    Some((port, found))
}

fn read_limits(table: &Table<'_>, tracking: UdpTracking, report: &mut Report) -> Limits {
    let default = Limits::default();
    let mut number = |name, range, default| table.get(name).and_then(|value| value.integer(range, report)).unwrap_or(default);
    let mappings = number("mappings", 64..=1 << 24, default.mappings);
    let sessions = number("sessions", 64..=1 << 25, default.sessions);
    let fragments = number("fragments", 16..=1 << 20, default.fragments);
    let other_translations = number("other_translations", 16..=1 << 20, default.other_translations);
    let frames = table.get("frames").and_then(|value| read_frames(&value, report)).unwrap_or(default.frames);
    // Bare mappings have none.
    if sessions < mappings && tracking == UdpTracking::Sessions {
        let spot = table.get("sessions").or_else(|| table.get("mappings")).map_or_else(|| table.spot.clone(), |value| value.spot);
        report.warning(&spot, Doubt::FewerSessions { mappings, sessions });
    }
    Limits { mappings, sessions, fragments, other_translations, frames }
}

/// Frames of packet memory. The least fills the rings of two queues; the most is 4 GiB of them.
fn read_frames(value: &Value<'_>, report: &mut Report) -> Option<u32> {
    let found = value.integer(4096..=1 << 20, report)?;
    if !found.is_power_of_two() {
        let above = found.next_power_of_two();
        report.fault(&value.spot, Problem::NotPowerOfTwo { found, below: above / 2, above });
    }
    found.is_power_of_two().then_some(found)
}

const UNSOLICITED_SYNS: [(&str, UnsolicitedSyn); 2] = [("answer", UnsolicitedSyn::Answered), ("silent", UnsolicitedSyn::Silent)];

/// RFC 5508, REQ-8 ("Communication administratively prohibited"), and RFC 6888, REQ-11B ("host unreachable").
const EXHAUSTED_CODES: [u8; 2] = [13, 1];

fn read_icmp(table: &Table<'_>, report: &mut Report) -> IcmpErrors {
    let default = IcmpErrors::default();
    let rate = table.get("rate").and_then(|value| value.integer(0..=1_000_000, report)).unwrap_or(default.rate);
    let burst = table.get("burst").and_then(|value| value.integer(1..=100_000, report)).unwrap_or(default.burst);
    let code = table.get("exhausted_code").and_then(|value| read_code(&value, report)).unwrap_or(default.exhausted_code);
    let unsolicited_syn = table.get("unsolicited_syn").and_then(|value| value.word(&UNSOLICITED_SYNS, report)).unwrap_or_default();
    IcmpErrors { rate, burst, exhausted_code: code, unsolicited_syn }
}

fn read_code(value: &Value<'_>, report: &mut Report) -> Option<u8> {
    let found = value.integer(0..=255, report)? as u8;
    let legal = EXHAUSTED_CODES.contains(&found);
    if !legal {
        report.fault(&value.spot, Problem::UnknownNumber { found: i64::from(found), legal: &EXHAUSTED_CODES });
    }
    legal.then_some(found)
}

/// The highest core number. **Source:** the size of the C library's `cpu_set_t`.
const CORE_MOST: u32 = 1023;

/// The most workers. Chosen: the most queues of an interface.
const WORKERS_MOST: u32 = 64;

fn read_worker(table: &Table<'_>, report: &mut Report) -> WorkerRules {
    let default = WorkerRules::default();
    let count = table.get("count").and_then(|value| value.integer_or("auto", 1..=WORKERS_MOST, report));
    let cores = table.get("cores").map(|value| read_cores(&value, count, report)).unwrap_or_default();
    let busy_poll = table.get("busy_poll").and_then(|value| value.word(&BUSY_POLLS, report)).unwrap_or_default();
    let burst = table.get("burst").and_then(|value| value.integer(1..=64, report));
    let count = count.map(|count| count as u16).or_else(|| (!cores.is_empty()).then_some(cores.len() as u16));
    WorkerRules { count, cores, busy_poll, burst: burst.map_or(default.burst, |burst| burst as u16) }
}

/// The list of cores: one for each of the workers, where their number is given.
fn read_cores(list: &Value<'_>, workers: Option<u32>, report: &mut Report) -> Vec<u16> {
    let Some(values) = list.list(report) else { return Vec::new() };
    let found = values.len();
    match workers {
        _ if found == 0 => report.fault(&list.spot, Problem::EmptyList { wants: list.accepts }),
        Some(workers) if found != workers as usize => report.fault(&list.spot, Problem::CoresOfWorkers { found, workers }),
        None if found > WORKERS_MOST as usize => {
            let (least, most) = (1, i64::from(WORKERS_MOST));
            report.fault(&list.spot, Problem::OutOfRange { found: format!("a list of {found} cores"), least, most });
        }
        _ => {}
    }
    let mut cores = Vec::new();
    for value in &values {
        let Some(core) = value.integer(0..=CORE_MOST, report).map(|core| core as u16) else { continue };
        if cores.contains(&core) {
            report.fault(&value.spot, Problem::RepeatedValue { found: core.to_string() });
        }
        cores.push(core);
    }
    cores
}

fn read_metrics(table: &Table<'_>, report: &mut Report) -> Metrics {
    let Some(value) = table.get("listen") else { return Metrics::default() };
    let Some(text) = value.text(report) else { return Metrics::default() };
    let listen = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    if listen.is_none() && !text.is_empty() {
        value.malformed(text, "an address with a port", report);
    }
    Metrics { listen }
}

/// The longest path of a unix socket. **Source:** `sun_path` of Linux, less the final zero. **Units:** bytes.
const SOCKET_PATH_MOST: usize = 107;

fn read_control(table: &Table<'_>, report: &mut Report) -> Control {
    let Some(value) = table.get("socket") else { return Control::default() };
    let Some(text) = value.text(report) else { return Control::default() };
    let path = Path::new(text);
    if !path.is_absolute() || text.len() > SOCKET_PATH_MOST || text.contains('\0') || path.file_name().is_none() {
        value.malformed(text, "the path of a unix socket", report);
    }
    Control { socket: path.to_owned() }
}

fn read_log(table: &Table<'_>, report: &mut Report) -> Log {
    Log { level: table.get("level").and_then(|value| value.word(&LOG_LEVELS, report)).unwrap_or_default() }
}
