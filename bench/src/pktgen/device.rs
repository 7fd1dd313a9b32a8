//! One of pktgen's devices: a port's queue with what it sends, as the lines that it is told and the text that it answers with.
//!
//! Pure. Called by `control`. Source: Linux net/core/pktgen.c and Documentation/networking/pktgen.rst. Frame sizes are RFC 2544's, with
//! the frame check sequence, which pktgen does not count.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::flows::Part;
use crate::address::Mac;

/// The frame check sequence. **Units:** bytes.
const FCS: u32 = 4;
/// The largest number that pktgen reads: ten digits.
pub const MOST: u64 = 9_999_999_999;

/// Which of a flow's endpoints a part's addresses and ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Varied {
    /// Source address and source port; everything goes to one endpoint.
    Source,
    /// Source address and destination port: many remotes send to a range of external ports.
    SourceAndDestinationPort,
}

/// What a device sends, whatever the rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The port it goes out of.
    pub interface: String,
    /// Its transmit queue.
    pub queue: u32,
    /// The processor whose thread sends.
    pub cpu: u32,
    /// The gateway's port.
    pub gateway: Mac,
    /// The flows.
    pub part: Part,
    /// What of them varies.
    pub varied: Varied,
    /// Where to.
    pub destination: Ipv4Addr,
    /// The port that does not vary: the destination's, or the source's.
    pub fixed_port: u16,
}

/// In which order flows have packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Each in turn.
    Each,
    /// At random, evenly.
    Random,
}

/// How a device sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// **Units:** bytes with the frame check sequence.
    pub frame: u32,
    /// In which order.
    pub order: Order,
    /// Packets a second of this device; none: as fast as it can.
    pub rate: Option<u64>,
    /// Packets to send; none: until it is stopped.
    pub count: Option<u64>,
    /// How often each packet is sent in a row.
    pub burst: u32,
    /// Whether UDP checksums are written, or left zero.
    pub checksums: bool,
}

impl Stream {
    /// The device's name, in `/proc/net/pktgen` and for `add_device`.
    pub fn name(&self) -> String {
        format!("{}@{}", self.interface, self.queue)
    }

    /// What the device is told.
    pub fn lines(&self, load: &Load) -> Vec<String> {
        let part = &self.part;
        let first = Ipv4Addr::from(part.first_address);
        // A random address is below the end, one in turn goes up to it. Ports are below it in both.
        let end = part.addresses - u32::from(load.order == Order::Each);
        let ports = |first: u16, count: u32| (first, u32::from(first) + count);
        let fixed = (self.fixed_port, u32::from(self.fixed_port));
        let (source, destination) = match self.varied {
            Varied::Source => (ports(part.first_port, part.ports), fixed),
            Varied::SourceAndDestinationPort => (fixed, ports(part.first_port, part.ports)),
        };
        let mut lines = vec![
            format!("count {}", load.count.unwrap_or(0)),
            "clone_skb 0".into(),
            format!("burst {}", load.burst),
            format!("delay {}", load.rate.map_or(0, |rate| delay(rate, load.burst))),
            format!("pkt_size {}", load.frame - FCS),
            format!("queue_map_min {}", self.queue),
            format!("queue_map_max {}", self.queue),
            format!("dst_mac {}", self.gateway),
            format!("src_min {first}"),
            format!("src_max {}", Ipv4Addr::from(part.first_address + end)),
            format!("dst_min {}", self.destination),
            format!("dst_max {}", self.destination),
            format!("udp_src_min {}", source.0),
            format!("udp_src_max {}", source.1),
            format!("udp_dst_min {}", destination.0),
            format!("udp_dst_max {}", destination.1),
        ];
        if load.checksums {
            lines.push("flag UDPCSUM".into());
        }
        if load.order == Order::Random {
            lines.push("flag IPSRC_RND".into());
            let ports = if self.varied == Varied::Source { "UDPSRC_RND" } else { "UDPDST_RND" };
            lines.push(format!("flag {ports}"));
        }
        lines
    }
}

/// From one burst to the next. **Units:** nanoseconds.
fn delay(rate: u64, burst: u32) -> u64 {
    (u64::from(burst) * 1_000_000_000).div_ceil(rate.max(1)).min(MOST)
}

/// What a device has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Packets that the driver took.
    pub sent: u64,
    /// Packets that it did not take; most are tried again.
    pub errors: u64,
    /// From the first to the last.
    pub time: Duration,
}

/// Reads what a device shows that was to send by a transmit queue.
///
/// **Errors:** it did not run, with what it says; there is no such queue, in which case pktgen takes the last that there is.
pub fn outcome(shown: &str, queue: u32) -> Result<Outcome> {
    let result = shown.lines().find_map(|line| line.strip_prefix("Result: ")).unwrap_or("none");
    // `OK: 1000(c900+d100) usec, ...` after a run; `OK: count=1000` or `Idle` before.
    ensure!(result.starts_with("OK: ") && result.contains(" usec, "), "it has not run (is its port up?); its result is {result:?}");
    let number = |key: &str, end: &str| -> Result<u64> {
        let after = shown.split_once(key).with_context(|| format!("no {key:?}"))?.1.trim_start();
        let digits = after.split(|it: char| !it.is_ascii_digit()).next().unwrap_or_default();
        ensure!(after[digits.len()..].starts_with(end), "{key:?} is followed by {:?}", after.lines().next());
        digits.parse().with_context(|| format!("{key:?} is no number"))
    };
    let used = number("queue_map_min: ", " ")?;
    ensure!(
        used == u64::from(queue),
        "it has no transmit queue {queue}: queues 0 to {used} are all (`ethtool -l`); lower --queues"
    );
    let (started, stopped) = (number("started: ", "us")?, number("stopped: ", "us")?);
    Ok(Outcome {
        sent: number("pkts-sofar: ", " ")?,
        errors: number("errors: ", "")?,
        time: Duration::from_micros(stopped.saturating_sub(started)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 shows it after a run.
    const SHOWN: &str = "\
Params: count 1000  min_pkt_size: 60  max_pkt_size: 60
     frags: 0  delay: 500000  clone_skb: 0  ifname: eth1@0
     flows: 0 flowlen: 0
     queue_map_min: 0  queue_map_max: 0
     dst_min: 198.18.0.1  dst_max: 198.18.0.1
     src_min: 10.1.0.1  src_max: 10.1.0.126
     src_mac: 52:54:00:00:00:03 dst_mac: 52:54:00:00:00:01
     udp_src_min: 1024  udp_src_max: 1032  udp_dst_min: 9  udp_dst_max: 9
     src_mac_count: 0  dst_mac_count: 0
     Flags: IPSRC_RND  UDPSRC_RND  UDPCSUM
Current:
     pkts-sofar: 1000  errors: 7
     started: 2000000us  stopped: 2500123us idle: 400000us
     seq_num: 1001  cur_dst_mac_offset: 0  cur_src_mac_offset: 0
     cur_saddr: 10.1.0.9  cur_daddr: 198.18.0.1
     cur_udp_dst: 9  cur_udp_src: 1027
     cur_queue_map: 0
     flows: 0
Result: OK: 500123(c100123+d400000) usec, 1000 (60byte,0frags)
  1999pps 0Mb/sec (959520bps) errors: 7
";

    fn stream(varied: Varied) -> Stream {
        Stream {
            interface: "eth1".into(),
            queue: 2,
            cpu: 3,
            gateway: "02:00:00:00:00:01".parse().unwrap(),
            part: Part { first_address: u32::from(Ipv4Addr::new(10, 1, 0, 1)), addresses: 125, first_port: 1024, ports: 8 },
            varied,
            destination: Ipv4Addr::new(198, 18, 0, 1),
            fixed_port: 9,
        }
    }

    fn load(order: Order) -> Load {
        Load { frame: 64, order, rate: Some(3000), count: Some(1000), burst: 1, checksums: true }
    }

    #[test]
    fn what_a_device_shows_is_read() {
        assert_eq!(outcome(SHOWN, 0).unwrap(), Outcome { sent: 1000, errors: 7, time: Duration::from_micros(500_123) });
    }

    #[test]
    fn a_device_that_did_not_run_is_no_success() {
        for result in ["Idle", "OK: count=1000", "Error starting", "No memory"] {
            let shown = SHOWN.replace("OK: 500123(c100123+d400000) usec, 1000 (60byte,0frags)", result);
            let error = outcome(&shown, 0).unwrap_err().to_string();
            assert!(error.contains(result), "{error}");
        }
        assert!(outcome("", 0).is_err());
        assert!(outcome(&SHOWN.replace("pkts-sofar: 1000", "pkts-sofar: x"), 0).is_err());
    }

    #[test]
    fn a_queue_that_is_not_there_is_an_error_and_not_another_one() {
        let error = outcome(SHOWN, 3).unwrap_err().to_string();
        assert!(error.contains("no transmit queue 3") && error.contains("queues 0 to 0"), "{error}");
    }

    #[test]
    fn random_addresses_end_before_the_end_and_those_in_turn_at_it() {
        let lines = stream(Varied::Source).lines(&load(Order::Random));
        for line in ["src_min 10.1.0.1", "src_max 10.1.0.126", "udp_src_min 1024", "udp_src_max 1032", "flag UDPSRC_RND"] {
            assert!(lines.iter().any(|it| it == line), "{line} is not in {lines:?}");
        }
        let lines = stream(Varied::Source).lines(&load(Order::Each));
        assert!(lines.iter().any(|it| it == "src_max 10.1.0.125"), "{lines:?}");
        assert!(!lines.iter().any(|it| it.contains("RND")), "{lines:?}");
    }

    #[test]
    fn from_outside_the_destination_port_varies() {
        let lines = stream(Varied::SourceAndDestinationPort).lines(&load(Order::Random));
        for line in ["udp_src_min 9", "udp_src_max 9", "udp_dst_min 1024", "udp_dst_max 1032", "flag IPSRC_RND", "flag UDPDST_RND"]
        {
            assert!(lines.iter().any(|it| it == line), "{line} is not in {lines:?}");
        }
    }

    #[test]
    fn size_and_pace_are_pktgens() {
        let stream = stream(Varied::Source);
        assert_eq!(stream.name(), "eth1@2");
        let lines = stream.lines(&load(Order::Each));
        for line in ["pkt_size 60", "delay 333334", "count 1000", "queue_map_min 2", "flag UDPCSUM", "dst_mac 02:00:00:00:00:01"] {
            assert!(lines.iter().any(|it| it == line), "{line} is not in {lines:?}");
        }
        let fastest = Load { rate: None, count: None, burst: 8, checksums: false, ..load(Order::Each) };
        let lines = stream.lines(&fastest);
        for line in ["delay 0", "count 0", "burst 8"] {
            assert!(lines.iter().any(|it| it == line), "{line} is not in {lines:?}");
        }
        assert!(!lines.iter().any(|it| it.contains("UDPCSUM")));
        assert_eq!(delay(1_000_000, 8), 8000, "a burst takes the time of its packets");
    }
}
