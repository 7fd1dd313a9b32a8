//! iperf3 over TCP, both directions at once, through whatever gateway the topology has.
//!
//! Knows iperf3's JSON. A rate of this is worth something only beside another one of the same run. Called by tests and the demo.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::program::wait_until;
use super::{ROUTER, Topology};

/// What an iperf3 run both ways has measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BothWays {
    /// From the client to the outside. **Units:** bits a second.
    pub outbound: f64,
    /// From the outside to the client. **Units:** bits a second.
    pub inbound: f64,
    /// The slowest second of either direction. **Units:** bits a second.
    pub slowest: f64,
    /// Segments that either sender sent again.
    pub retransmits: u64,
}

/// A gateway's rate beside the kernel's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    gateway: BothWays,
    kernel: BothWays,
}

impl BothWays {
    /// Both directions together. **Units:** bits a second.
    pub fn total(&self) -> f64 {
        self.outbound + self.inbound
    }

    /// What two runs of one gateway have measured.
    #[must_use]
    pub fn mean(first: Self, second: Self) -> Self {
        Self {
            outbound: f64::midpoint(first.outbound, second.outbound),
            inbound: f64::midpoint(first.inbound, second.inbound),
            slowest: first.slowest.min(second.slowest),
            retransmits: first.retransmits + second.retransmits,
        }
    }

    /// Reads iperf3's report.
    fn read(report: &Value) -> Result<Self> {
        let rate = |sum: &Value| sum["bits_per_second"].as_f64();
        let end = |name: &str| rate(&report["end"][name]).with_context(|| format!("no {name} in iperf3's report"));
        let seconds = report["intervals"].as_array().context("no intervals in iperf3's report")?;
        let each = seconds.iter().flat_map(|second| [rate(&second["sum"]), rate(&second["sum_bidir_reverse"])]);
        let slowest = each.flatten().fold(f64::INFINITY, f64::min);
        let retransmits =
            ["sum_sent", "sum_sent_bidir_reverse"].iter().filter_map(|sum| report["end"][sum]["retransmits"].as_u64()).sum();
        Ok(Self { outbound: end("sum_received")?, inbound: end("sum_received_bidir_reverse")?, slowest, retransmits })
    }
}

impl fmt::Display for BothWays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MEGA: f64 = 1e6;
        write!(
            f,
            "{:.0} Mbit/s out, {:.0} Mbit/s in, slowest second {:.0} Mbit/s, {} retransmits",
            self.outbound / MEGA,
            self.inbound / MEGA,
            self.slowest / MEGA,
            self.retransmits
        )
    }
}

impl Comparison {
    /// Sets one beside the other.
    pub fn new(gateway: BothWays, kernel: BothWays) -> Self {
        Self { gateway, kernel }
    }

    /// The gateway's part of the kernel's rate, both directions together.
    pub fn ratio(&self) -> f64 {
        self.gateway.total() / self.kernel.total()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ratio {:.2} (gateway: {}; kernel: {})", self.ratio(), self.gateway, self.kernel)
    }
}

/// Runs iperf3 between the first client and the router for `time`, both ways at once.
///
/// **Errors:** iperf3 failed, or a direction stood still for a second.
pub fn both_ways(topology: &Topology, time: Duration) -> Result<BothWays> {
    let server = topology.router().program("iperf3", ["-s", "-1", "-B", ROUTER]).start()?;
    let listens = || topology.router().run("ss -Hltn sport = 5201").is_ok_and(|sockets| !sockets.is_empty());
    ensure!(wait_until(Duration::from_secs(5), listens), "iperf3 does not listen: {}", server.printed());
    let seconds = time.as_secs().to_string();
    let client = topology.client(0).program("iperf3", ["-c", ROUTER, "--bidir", "-t", &seconds, "-i", "1", "-J"]);
    let output = client.limit(time + Duration::from_secs(15)).run()?;
    let _ = server.stop(Signal::SIGTERM, Duration::from_secs(2));
    let output = output.success()?;
    let measured = BothWays::read(&serde_json::from_str(&output.stdout).context("iperf3's report")?)?;
    ensure!(measured.slowest > 0.0, "a direction stood still for a second: {measured}\n{}", output.stdout);
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_gives_both_rates_and_the_slowest_second() {
        let report = serde_json::json!({
            "intervals": [
                { "sum": { "bits_per_second": 9e6 }, "sum_bidir_reverse": { "bits_per_second": 5e6 } },
                { "sum": { "bits_per_second": 7e6 }, "sum_bidir_reverse": { "bits_per_second": 3e6 } },
            ],
            "end": {
                "sum_sent": { "bits_per_second": 8.5e6, "retransmits": 2 },
                "sum_received": { "bits_per_second": 8e6 },
                "sum_sent_bidir_reverse": { "bits_per_second": 4.5e6, "retransmits": 3 },
                "sum_received_bidir_reverse": { "bits_per_second": 4e6 },
            },
        });
        let measured = BothWays::read(&report).expect("reads");
        assert_eq!(measured, BothWays { outbound: 8e6, inbound: 4e6, slowest: 3e6, retransmits: 5 });
        let comparison = Comparison::new(measured, BothWays { outbound: 16e6, inbound: 8e6, slowest: 1.0, retransmits: 0 });
        assert!((comparison.ratio() - 0.5).abs() < 1e-9);
    }
}
