//! What a configuration comes to, in a few lines for the log at start.
//!
//! Knows what operators look for first; says nothing of the system. Called by `run`, `check` and `reload`. Invariant: the number of
//! lines is bounded, whatever the file's size. Tests: `tests/meaning.rs`.

use core::fmt::Write as _;
use std::time::Duration;

use humantime::format_duration;
use portcullis_nat::policy::{MssClamp, PortParity, Side};

use crate::Config;
use crate::check::port_set;
use crate::interface::Interface;
use crate::pool::{Pool, PoolEntry};
use crate::settings::{BUSY_POLLS, FILTERINGS, MAPPINGS, PROTOCOL_SETS, UdpTracking, protocol_word, word_of};

/// The most items of one kind that are listed. Chosen: what fits a screen.
const ITEMS_MOST: usize = 16;

impl Config {
    /// The configuration in lines: interfaces, pools, forwards, behaviour, timeouts, limits, worker, services.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = bounded(self.interfaces.iter().map(interface_line), "interfaces");
        lines.extend(bounded(self.pools.iter().map(pool_line), "pools"));
        lines.extend(bounded(self.forwards.iter().map(|forward| format!("forward {forward}")), "forwards"));
        lines.push(self.nat_line());
        lines.push(self.timeouts_line());
        let limits = &self.limits;
        lines.push(format!(
            "limits: {} mappings, {} sessions, {} fragmented packets, {} translations of other protocols, {} frames",
            limits.mappings, limits.sessions, limits.fragments, limits.other_translations, limits.frames
        ));
        lines.push(self.worker_line());
        let metrics = self.metrics.listen.map_or_else(|| "none".to_owned(), |listen| format!("http://{listen}/metrics"));
        lines.push(format!("metrics: {metrics}; control: {}", self.control.socket.display()));
        lines
    }

    fn nat_line(&self) -> String {
        let nat = &self.nat;
        let (udp, tcp) = (word_of(&FILTERINGS, &nat.filtering_udp), word_of(&FILTERINGS, &nat.filtering_tcp));
        let filtering = if udp == tcp { udp.to_owned() } else { format!("{udp}, of TCP {tcp}") };
        let bare = if nat.udp_tracking == UdpTracking::Mappings { "; UDP has bare mappings" } else { "" };
        let refresh = if nat.inbound_refresh { "; inbound packets refresh" } else { "" };
        let parity = if nat.port_parity == PortParity::Preserve { "; UDP ports keep their parity" } else { "" };
        let hold = nat.port_hold;
        let hold = if hold.time.is_zero() {
            String::new()
        } else {
            format!("; freed ports rest {}, {} at most", format_duration(hold.time), hold.most)
        };
        let exempt = if nat.exempt.is_empty() { String::new() } else { format!("; no translation to {}", listed(&nat.exempt)) };
        let mapping = word_of(&MAPPINGS, &nat.mapping);
        format!("mapping {mapping}, filtering {filtering}{bare}{refresh}{parity}{hold}{}{exempt}", self.others_part())
    }

    /// What is said of other protocols: nothing where all are translated.
    fn others_part(&self) -> String {
        let others = self.nat.other_protocols;
        match PROTOCOL_SETS.iter().find(|(_, set)| *set == others) {
            Some(&("all", _)) => String::new(),
            Some(_) => "; no other protocols".to_owned(),
            None => format!("; of other protocols {}", listed(&others.iter().map(protocol_word).collect::<Vec<_>>())),
        }
    }

    fn timeouts_line(&self) -> String {
        let times = &self.timeouts;
        let times = [
            ("udp", times.udp),
            ("tcp established", times.tcp_established),
            ("tcp opening", times.tcp_opening),
            ("tcp closing", times.tcp_closing),
            ("icmp", times.icmp),
            ("fragment", times.fragment),
            ("other opening", times.other_opening),
            ("other", times.other),
        ];
        let times: Vec<_> = times.iter().map(|(name, time)| format!("{name} {}", format_duration(*time))).collect();
        let to_port = |(port, time): (&u16, &Duration)| format!("to port {port} {}", format_duration(*time));
        let ports: Vec<_> = self.udp_ports.iter().map(to_port).collect();
        let ports = if ports.is_empty() { String::new() } else { format!("; udp {}", listed(&ports)) };
        format!("timeouts: {}{ports}", times.join(", "))
    }

    fn worker_line(&self) -> String {
        let worker = &self.worker;
        let count = worker.count.map_or_else(|| "as many as queues and cores allow".to_owned(), |count| count.to_string());
        let cores = match worker.cores.as_slice() {
            [] => "cores of the gateway's choice".to_owned(),
            [core] => format!("core {core}"),
            cores => format!("cores {}", listed(cores)),
        };
        format!(
            "workers: {count}, on {cores}, busy polling {}, bursts of {}",
            word_of(&BUSY_POLLS, &worker.busy_poll),
            worker.burst
        )
    }
}

fn bounded(lines: impl ExactSizeIterator<Item = String>, kind: &str) -> Vec<String> {
    let more = lines.len().saturating_sub(ITEMS_MOST);
    let rest = (more > 0).then(|| format!("and {more} more {kind}"));
    lines.take(ITEMS_MOST).chain(rest).collect()
}

/// Items in one line, cut after [`ITEMS_MOST`].
fn listed<T: ToString>(items: &[T]) -> String {
    let mut line = items.iter().take(ITEMS_MOST).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if items.len() > ITEMS_MOST {
        let _ = write!(line, " and {} more", items.len() - ITEMS_MOST);
    }
    line
}

fn interface_line(interface: &Interface) -> String {
    let queues = interface.queues.map(|queues| format!(", {queues} queues")).unwrap_or_default();
    let segments = match interface.mss {
        MssClamp::Off => String::new(),
        MssClamp::PathMtu => ", TCP segments as the path's MTU allows".to_owned(),
        MssClamp::At(size) => format!(", TCP segments of {size} bytes at most"),
    };
    let translated = match interface.side {
        Side::Outside => return format!("interface {} outside{queues}{segments}", interface.name),
        Side::Inside if interface.prefixes.is_empty() => "all that is routed there".to_owned(),
        Side::Inside => listed(&interface.prefixes),
    };
    format!("interface {} inside: translates {translated}{queues}{segments}", interface.name)
}

fn pool_line(pool: &Pool) -> String {
    let count: u64 = pool.addresses.iter().map(PoolEntry::count).sum();
    let (addresses, each) = if count == 1 { ("address", "") } else { ("addresses", " each") };
    let ports = port_set(pool);
    let ranges: Vec<_> = ports.ranges().map(|(first, last)| format!("{first}-{last}")).collect();
    let host = if pool.ports.is_none() { ", less the host's own on an address of the box" } else { "" };
    format!(
        "pool {}: {count} {addresses} ({}), {} ports{each} per protocol ({}{host})",
        pool.name,
        listed(&pool.addresses),
        ports.len(),
        listed(&ranges)
    )
}
