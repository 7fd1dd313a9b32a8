//! Stats as tables for people: what it is, how full it is, what was counted, what was dropped and why.
//!
//! Knows messages and text; `--json` is for programs. Invariant: no row is left out for being zero where zero is the news (frames
//! missing, the ports of a few addresses). Tests: a golden page below.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use portcullis_api as api;

/// Up to this many rows of ports are shown in any case; beyond, only those in use. Chosen: a screen.
const PORTS_SHOWN: usize = 24;

/// Whether rows of zeroes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroes {
    /// They are left out.
    Hidden,
    /// They are shown.
    Shown,
}

/// The whole page. `width` is the terminal's, or none for lines as long as they come.
pub(super) fn stats(stats: &api::Stats, zeroes: Zeroes, width: Option<u16>) -> String {
    let mut page = Page { text: String::new(), zeroes, width };
    page.head(stats);
    page.interfaces(&stats.interfaces);
    page.tables(stats);
    page.counts("Counted", &stats.counters);
    page.counts("Dropped, and why", &stats.drops);
    page.counts("Seen by the XDP program", &stats.xdp);
    page.queues(&stats.queues);
    page.workers(&stats.workers);
    page.text
}

/// One row for each worker, and what each has handed off.
pub(super) fn workers(stats: &api::Stats, zeroes: Zeroes, width: Option<u16>) -> String {
    let mut page = Page { text: String::new(), zeroes, width };
    page.each_worker(stats);
    page.handed_off(&stats.workers);
    page.text
}

struct Page {
    text: String,
    zeroes: Zeroes,
    width: Option<u16>,
}

impl Page {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn head(&mut self, stats: &api::Stats) {
        let uptime = Duration::try_from_secs_f64(stats.uptime_seconds).unwrap_or_default();
        let uptime = humantime::format_duration(Duration::from_secs(uptime.as_secs()));
        self.line(format_args!("portcullis {}, up {uptime}", stats.portcullis));
        self.line(format_args!("health: {}", stats.unhealthy.as_deref().unwrap_or("ok")));
        let reload =
            if stats.config.last_reload_successful { "in force" } else { "the last reload FAILED, the one before is in force" };
        self.line(format_args!("configuration: {} ({reload})", stats.config.path));
        if stats.config.udp_tracking == api::UdpTracking::Mappings {
            self.line(format_args!("UDP is kept in bare mappings; only UDP under forwards has sessions"));
        }
    }

    fn interfaces(&mut self, interfaces: &[api::Interface]) {
        let header = ["interface", "side", "link", "addresses", "mtu", "xdp", "packets", "queues", "memory", "polling"];
        let rows = interfaces.iter().map(|each| {
            let name = each.vlan.map_or_else(|| each.name.clone(), |vlan| format!("{} (vlan {vlan})", each.name));
            let xdp = match each.mode {
                None => "not attached",
                Some(api::XdpMode::Native) => "native",
                Some(api::XdpMode::Generic) => "generic (slow)",
            };
            let packets = match each.copy {
                None => "-",
                Some(api::CopyMode::ZeroCopy) => "zero-copy",
                Some(api::CopyMode::Copy) => "copied",
            };
            vec![
                name,
                if each.side == api::Side::Inside { "inside" } else { "outside" }.to_owned(),
                if each.up { "up" } else { "DOWN" }.to_owned(),
                each.addresses.join(" "),
                each.mtu.to_string(),
                xdp.to_owned(),
                packets.to_owned(),
                each.queues.to_string(),
                if each.huge_pages { "huge pages" } else { "small pages" }.to_owned(),
                if each.busy_poll { "busy" } else { "interrupts" }.to_owned(),
            ]
        });
        self.table("Interfaces", &header, &[4, 7], rows.collect());
        for each in interfaces {
            let Some(steering) = &each.steering else { continue };
            let seen = match steering.trusted {
                None => "",
                Some(true) => ", as it is seen to be",
                Some(false) => ", but it IS NOT so: frames are handed over in software",
            };
            let (name, way, share) = (&each.name, &steering.way, steering.expected_share * 100.0);
            let expected = format!("{share:.0} % of TCP and UDP are expected to be handed over{seen}");
            self.line(format_args!("{name} steering: {way} ({}); {expected}", steering.why));
        }
    }

    fn tables(&mut self, stats: &api::Stats) {
        let gauges = &stats.gauges;
        let frames = &stats.frames;
        let mut rows = vec![
            share("mappings", gauges.mappings, gauges.mappings_limit),
            share("sessions", gauges.sessions, gauges.sessions_limit),
        ];
        if self.shows(&[gauges.other_translations]) {
            rows.push(share("translations of other protocols", gauges.other_translations, gauges.other_translations_limit));
        }
        let all = stats.ports.len() <= PORTS_SHOWN;
        for each in stats.ports.iter().filter(|each| all || self.shows(&[each.used])) {
            let name = format!("{} ports of {} (pool {})", each.protocol, each.address, each.pool);
            rows.push(share(&name, each.used, each.limit));
            if each.resting > 0 {
                rows.push(share(&format!("{name}, resting"), each.resting, each.limit));
            }
        }
        rows.push(share("frames of packet memory", frames.total.saturating_sub(frames.pool), frames.total));
        self.table("In use", &["what", "used", "limit", ""], &[1, 2, 3], rows);
        self.line(format_args!(
            "{} subscribers; {} fragmented packets followed; {} packets wait; {} frames missing",
            gauges.subscribers, gauges.fragments, frames.held, frames.missing
        ));
    }

    fn counts(&mut self, title: &str, counts: &[api::Named]) {
        let shown = counts.iter().filter(|each| self.shows(&[each.value]));
        let rows: Vec<_> = shown.map(|each| vec![each.name.clone(), each.value.to_string(), each.meaning.clone()]).collect();
        if rows.is_empty() {
            self.line(format_args!("\n{title}: nothing"));
        } else {
            self.table(title, &["name", "count", "meaning"], &[1], rows);
        }
    }

    fn queues(&mut self, queues: &[api::Queue]) {
        let header = [
            "queue",
            "received",
            "misplaced",
            "rx dropped",
            "rx ring full",
            "fill ring empty",
            "tx ring empty",
            "rx invalid",
            "tx invalid",
        ];
        let rows = queues.iter().map(|each| {
            let numbers = [
                each.received,
                each.misplaced,
                each.rx_dropped,
                each.rx_ring_full,
                each.rx_fill_ring_empty,
                each.tx_ring_empty,
                each.rx_invalid_descs,
                each.tx_invalid_descs,
            ];
            let name = format!("{} {}", each.interface, each.queue);
            (numbers, std::iter::once(name).chain(numbers.map(|number| number.to_string())).collect::<Vec<_>>())
        });
        let rows = rows.filter(|(numbers, _)| self.shows(numbers)).map(|(_, row)| row).collect();
        self.table("AF_XDP queues", &header, &[1, 2, 3, 4, 5, 6, 7, 8], rows);
    }

    fn workers(&mut self, workers: &[api::Worker]) {
        let header =
            ["worker", "bursts", "packets each", "idle loops", "busy", "ns a packet: p50", "p99", "p99.9", "most", "news lost"];
        let rows = workers.iter().map(|each| {
            let times = &each.packet_times;
            vec![
                each.worker.to_string(),
                each.bursts.to_string(),
                ratio(each.packets, each.bursts),
                each.idle_loops.to_string(),
                format!("{:.1} s", each.busy_seconds),
                times.p50.to_string(),
                times.p99.to_string(),
                times.p999.to_string(),
                times.max.to_string(),
                each.events_lost.to_string(),
            ]
        });
        self.table("Workers", &header, &[1, 2, 3, 4, 5, 6, 7, 8, 9], rows.collect());
    }

    fn each_worker(&mut self, stats: &api::Stats) {
        let header = [
            "worker",
            "queues",
            "packets",
            "share",
            "busy",
            "ns a packet: p50",
            "p99",
            "handed off",
            "handed in",
            "refused",
            "mappings",
            "sessions",
            "frames",
            "drops",
        ];
        let all: u64 = stats.workers.iter().map(|worker| worker.packets).sum();
        let rows = stats.workers.iter().map(|each| {
            let handed_off: u64 = each.handed_off.iter().map(|cause| cause.value).sum();
            vec![
                each.worker.to_string(),
                queue_names(&each.queues),
                each.packets.to_string(),
                percent(each.packets, all),
                percent(microseconds(each.busy_seconds), microseconds(stats.uptime_seconds)),
                each.packet_times.p50.to_string(),
                each.packet_times.p99.to_string(),
                handed_off.to_string(),
                each.handed_in.to_string(),
                each.hand_off_refused.to_string(),
                each.gauges.mappings.to_string(),
                each.gauges.sessions.to_string(),
                each.frames.total.to_string(),
                each.drops.to_string(),
            ]
        });
        self.table("Workers", &header, &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], rows.collect());
    }

    fn handed_off(&mut self, workers: &[api::Worker]) {
        let rows = workers.iter().flat_map(|worker| worker.handed_off.iter().map(move |cause| (worker.worker, cause)));
        let rows = rows.filter(|(_, cause)| self.shows(&[cause.value]));
        let rows: Vec<_> = rows
            .map(|(worker, cause)| vec![worker.to_string(), cause.name.clone(), cause.value.to_string(), cause.meaning.clone()])
            .collect();
        if rows.is_empty() {
            self.line(format_args!("\nHanded off, and why: nothing"));
        } else {
            self.table("Handed off, and why", &["worker", "cause", "packets", "meaning"], &[2], rows);
        }
    }

    fn shows(&self, numbers: &[u64]) -> bool {
        self.zeroes == Zeroes::Shown || numbers.iter().any(|&number| number != 0)
    }

    /// A table with the columns `numbers` to the right; nothing when it has no rows.
    fn table(&mut self, title: &str, header: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) {
        if rows.is_empty() {
            return;
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
        match self.width {
            None => table.set_content_arrangement(ContentArrangement::Disabled),
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        };
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for &number in numbers {
            if let Some(column) = table.column_mut(number) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self.line(format_args!("\n{title}\n{}", table.trim_fmt()));
    }
}

fn share(what: &str, used: u64, limit: u64) -> Vec<String> {
    vec![what.to_owned(), used.to_string(), limit.to_string(), percent(used, limit)]
}

/// In tenths of a percent, so that a single port of many is not nothing.
fn percent(part: u64, of: u64) -> String {
    let tenths = part.saturating_mul(1000).checked_div(of).unwrap_or(0);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

fn microseconds(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds).unwrap_or_default().as_micros() as u64
}

/// The queues of each interface: `eth0 0,2 eth1 0,2`.
fn queue_names(queues: &[api::QueueName]) -> String {
    let mut text = String::new();
    for group in queues.chunk_by(|one, next| one.interface == next.interface) {
        let numbers: Vec<_> = group.iter().map(|queue| queue.queue.to_string()).collect();
        let space = if text.is_empty() { "" } else { " " };
        let _ = write!(text, "{space}{} {}", group[0].interface, numbers.join(","));
    }
    text
}

/// With one decimal; a dash for nothing.
fn ratio(number: u64, of: u64) -> String {
    let tenths = number.saturating_mul(10).checked_div(of);
    tenths.map_or_else(|| "-".to_owned(), |tenths| format!("{}.{}", tenths / 10, tenths % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> api::Stats {
        let named = |name: &str, meaning: &str, value| api::Named { name: name.to_owned(), meaning: meaning.to_owned(), value };
        api::Stats {
            api: 1,
            portcullis: "0.1.0".to_owned(),
            uptime_seconds: 3723.5,
            unhealthy: None,
            config: api::Config {
                path: "/etc/portcullis/portcullis.toml".to_owned(),
                last_reload_successful: true,
                ..Default::default()
            },
            interfaces: vec![api::Interface {
                name: "eth0".to_owned(),
                side: api::Side::Outside,
                up: true,
                vlan: None,
                mac: "02:00:00:00:00:01".to_owned(),
                addresses: vec!["203.0.113.10/24".to_owned()],
                mtu: 1500,
                mode: Some(api::XdpMode::Native),
                copy: Some(api::CopyMode::Copy),
                queues: 1,
                huge_pages: false,
                busy_poll: true,
                steering: Some(api::Steering {
                    way: "key synthesis".to_owned(),
                    expected_share: 0.0,
                    why: "the best way that there is".to_owned(),
                    trusted: Some(false),
                }),
            }],
            gauges: api::Gauges {
                mappings: 12,
                mappings_limit: 1000,
                sessions: 34,
                sessions_limit: 2000,
                subscribers: 3,
                fragments: 0,
                other_translations: 5,
                other_translations_limit: 500,
            },
            ports: vec![api::PortUse {
                pool: "default".to_owned(),
                address: [203, 0, 113, 10].into(),
                protocol: api::Protocol::Tcp,
                used: 12,
                resting: 0,
                limit: 64512,
            }],
            counters: vec![
                named("outbound_packets", "Packets translated and forwarded from inside to outside.", 1_234_567),
                named("hairpin_packets", "Packets translated twice.", 0),
            ],
            drops: vec![
                named("no_route", "No route to the destination.", 0),
                named("filtered", "From outside, to a mapping whose filter does not let that remote in.", 42),
            ],
            xdp: Vec::new(),
            queues: vec![api::Queue { interface: "eth0".to_owned(), rx_ring_full: 7, ..Default::default() }],
            frames: api::Frames { total: 8192, pool: 4096, in_flight: 4096, ..Default::default() },
            workers: vec![api::Worker {
                bursts: 1000,
                packets: 12_345,
                busy_seconds: 1.25,
                packet_times: api::PacketTimes { p50: 100, p90: 150, p99: 200, p999: 300, max: 4000 },
                ..Default::default()
            }],
        }
    }

    #[test]
    fn a_page_is_complete_and_aligned() {
        let expected = include_str!("golden/stats.txt");
        let page = stats(&sample(), Zeroes::Hidden, None);
        assert_eq!(page, expected, "\n{page}");
    }

    /// Two workers, of which the second gets nearly all of its packets from the first.
    fn two_workers() -> api::Stats {
        let queue = |interface: &str, queue| api::QueueName { interface: interface.to_owned(), queue };
        let cause = |name: &str, value| api::Named { name: name.to_owned(), meaning: "What.".to_owned(), value };
        let mut stats = sample();
        stats.workers[0].queues = vec![queue("eth0", 0), queue("eth0", 2), queue("eth1", 0)];
        stats.workers[0].handed_off = vec![cause("misplaced", 12_000), cause("hairpin", 5)];
        stats.workers[0].gauges = api::Gauges { mappings: 4, sessions: 5, ..Default::default() };
        let mut second = api::Worker { worker: 1, packets: 12_005, handed_in: 12_000, hand_off_refused: 5, ..Default::default() };
        second.queues = vec![queue("eth0", 1), queue("eth1", 1)];
        second.handed_off = vec![cause("misplaced", 0), cause("hairpin", 0)];
        second.frames.total = 4101;
        second.busy_seconds = 372.35;
        stats.workers.push(second);
        stats
    }

    #[test]
    fn each_worker_has_its_row_and_its_causes() {
        let expected = include_str!("golden/workers.txt");
        let page = workers(&two_workers(), Zeroes::Hidden, None);
        assert_eq!(page, expected, "\n{page}");
        let shown = workers(&two_workers(), Zeroes::Shown, None);
        assert_eq!(shown.lines().filter(|line| line.contains("hairpin")).count(), 2);
    }

    #[test]
    fn rows_of_zeroes_are_shown_on_demand() {
        let hidden = stats(&sample(), Zeroes::Hidden, None);
        let shown = stats(&sample(), Zeroes::Shown, None);
        assert!(!hidden.contains("hairpin_packets") && shown.contains("hairpin_packets"));
        assert!(!hidden.contains("no_route") && shown.contains("no_route"));
    }

    #[test]
    fn of_many_addresses_only_those_in_use_are_shown() {
        let mut stats = sample();
        let unused = api::PortUse { address: [203, 0, 113, 99].into(), used: 0, ..stats.ports[0].clone() };
        stats.ports.resize(PORTS_SHOWN, unused.clone());
        assert!(super::stats(&stats, Zeroes::Hidden, None).contains("203.0.113.99"));
        stats.ports.push(unused);
        let page = super::stats(&stats, Zeroes::Hidden, None);
        assert!(!page.contains("203.0.113.99") && page.contains("tcp ports of 203.0.113.10"), "{page}");
    }

    #[test]
    fn a_page_keeps_to_the_terminals_width() {
        let page = stats(&sample(), Zeroes::Shown, Some(80));
        let long: Vec<_> = page.lines().filter(|line| line.chars().count() > 80 && !line.contains(';')).collect();
        assert!(long.is_empty(), "{long:#?}");
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let mut stats = sample();
        stats.unhealthy = Some("interface eth0 is down".to_owned());
        stats.config.last_reload_successful = false;
        stats.interfaces[0].up = false;
        let page = super::stats(&stats, Zeroes::Hidden, None);
        assert!(page.contains("health: interface eth0 is down") && page.contains("FAILED") && page.contains("DOWN"), "{page}");
    }

    #[test]
    fn where_udp_has_no_sessions_it_is_said() {
        let mut stats = sample();
        assert!(!super::stats(&stats, Zeroes::Hidden, None).contains("bare"));
        stats.config.udp_tracking = api::UdpTracking::Mappings;
        assert!(super::stats(&stats, Zeroes::Hidden, None).contains("UDP is kept in bare mappings"));
    }

    #[test]
    fn shares_and_ratios_survive_nothing() {
        assert_eq!(share("x", 0, 0)[3], "0.0 %");
        assert_eq!(share("x", 1, 8)[3], "12.5 %");
        assert_eq!(ratio(0, 0), "-");
        assert_eq!(ratio(12_345, 1000), "12.3");
    }
}
