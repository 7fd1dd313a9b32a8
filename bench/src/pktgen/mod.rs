//! Measures a gateway with the kernel's pktgen: two ports of this machine, one cabled to its inside and one to its outside.
//!
//! ```text
//! tester: --inside port ── cable ── inside [gateway] outside ── cable ── --outside port
//! ```
//!
//! Knows the options and the order of a run; `case` and `trial` do the measuring. Called by the program, `portcullis-bench pktgen`.
//! Invariant: a run is bounded, removes what it has put into the kernel, and writes its report even when something was wrong.
//! bench/pktgen/README.md is for people. Tests: in each module; `tests/pktgen.rs` (root); the whole in the guest (docs/vm.md).

#![allow(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "rates and parts of counts far below 2^52, none negative")]

mod case;
mod control;
pub mod count;
pub mod device;
pub mod flows;
mod page;
mod plot;
mod port;
pub mod report;
pub mod search;
pub mod trial;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Error, Result, ensure};
use clap::Args;

use crate::address::{AddressRange, Mac, PortRange, seconds};
use case::{Case, Method, Subject, Way};
use count::{Answer, Forbidden};
use device::{MOST, Stream, Varied};
use flows::Many;
use report::{FORM, Machine, Report, Settings};
use search::Bounds;
use trial::{Counting, Direction, Plan, Tester};

/// The port that outbound packets go to, and inbound ones come from: that of RFC 863, as pktgen has it by default.
const DISCARD: u16 = 9;
/// Ports that outbound packets come from.
const SOURCE_PORTS: &str = "1024-65535";
/// The smallest frame that has pktgen's mark, and the largest without jumbo frames. **Units:** bytes with the frame check sequence.
const FRAMES: std::ops::RangeInclusive<u32> = 64..=1518;
/// The most flows of a case: those that the external ports of all of a /24 can name.
const MOST_FLOWS: u32 = 1 << 24;
/// The highest rate of one direction: one packet a nanosecond is the shortest that pktgen can wait.
const MOST_RATE: u64 = 1_000_000_000;
/// The longest trial.
const LONGEST: Duration = Duration::from_secs(3600);

/// External endpoints that the gateway forwards: an address and a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct External {
    address: Ipv4Addr,
    ports: PortRange,
}

impl FromStr for External {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, ports) =
            text.split_once(':').with_context(|| format!("{text}: an address and ports, 203.0.113.16:1024-9215"))?;
        let address = address.parse().with_context(|| format!("{address:?} is not an IPv4 address"))?;
        Ok(Self { address, ports: ports.parse()? })
    }
}

/// Two ports, the gateway between them, and what to measure. bench/pktgen/README.md has a whole example.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The port of this machine that is cabled to the gateway's inside.
    #[arg(long, value_name = "IF")]
    inside: String,
    /// The port of this machine that is cabled to the gateway's outside.
    #[arg(long, value_name = "IF")]
    outside: String,
    /// The Ethernet address of the gateway's inside port (`ip link` there).
    #[arg(long, value_name = "MAC")]
    inside_mac: Mac,
    /// The Ethernet address of the gateway's outside port; needed when something is sent inbound.
    #[arg(long, value_name = "MAC")]
    outside_mac: Option<Mac>,
    /// Which ways to measure.
    #[arg(long, value_name = "WAYS", value_delimiter = ',', value_enum, default_value = "outbound,replies")]
    ways: Vec<Way>,
    /// Frame sizes. In bytes with the frame check sequence, as RFC 2544 has them: 64 to 1518.
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "64,1518")]
    sizes: Vec<u32>,
    /// How many flows, in each direction.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1000,50000")]
    flows: Vec<u32>,
    /// Transmit queues of each sending port; each has a processor to itself, if there are enough.
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u32,
    /// The processors that send, in order. All unless given.
    #[arg(long, value_name = "CPUS", value_delimiter = ',')]
    cpus: Vec<u32>,
    /// The inside hosts: sources of outbound packets. The gateway has to route them to this machine's inside port.
    #[arg(long, value_name = "ADDRESSES", default_value = "10.1.0.1-10.1.3.254")]
    hosts: AddressRange,
    /// The remotes: outbound packets go to the first, inbound ones come from the others. The gateway has to route them to the outside port.
    #[arg(long, value_name = "ADDRESSES", default_value = "198.18.0.1-198.18.3.254")]
    remotes: AddressRange,
    /// External UDP endpoints that the gateway forwards inside, for `inbound` and `both`: ADDRESS:FIRST-LAST.
    #[arg(long, value_name = "ENDPOINTS")]
    forward: Option<External>,
    /// The highest rate to try, in packets a second each way. As fast as pktgen can unless given.
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..=MOST_RATE))]
    max_rate: Option<u64>,
    /// Try these rates instead of searching, in packets a second each way.
    #[arg(long, value_name = "PPS", value_delimiter = ',', conflicts_with = "max_rate", value_parser = clap::value_parser!(u64).range(1..=MOST_RATE))]
    rates: Vec<u64>,
    /// How long a trial sends. In seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    duration: Duration,
    /// How long the trial sends that confirms the rate found; 0: none. RFC 2544 wants 60. In seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    confirm: Duration,
    /// Trials of a search at most.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=64))]
    trials: u32,
    /// Search until the rate is known to so many percent of the highest.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.5, value_parser = percent)]
    resolution: f64,
    /// Percent of the packets that may be lost.
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    loss: f64,
    /// New flows a second while sessions are made, before anything is measured.
    #[arg(long, value_name = "PPS", default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=MOST_RATE))]
    establish_rate: u64,
    /// Send each packet so often in a row: faster, but the flows then come in bursts.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    burst: u32,
    /// Leave UDP checksums zero.
    #[arg(long)]
    no_checksums: bool,
    /// How to count what arrives.
    #[arg(long, value_enum, default_value_t = Counting::Xdp)]
    count: Counting,
    /// A trial has ended when for so many seconds nothing more has come.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    settle: Duration,
    /// Where the report goes.
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    output: PathBuf,
    /// What is measured, for the report: gateway, version, processor, card.
    #[arg(long, value_name = "TEXT", default_value = "")]
    gateway: String,
    /// Anything else that the report should say.
    #[arg(long, value_name = "TEXT", default_value = "")]
    note: String,
}

fn percent(text: &str) -> Result<f64> {
    let number: f64 = text.parse().with_context(|| format!("{text:?} is not a number of percent"))?;
    ensure!((0.0..=100.0).contains(&number), "{text}: 0 to 100 percent");
    Ok(number)
}

/// What a run has found, and where it was written.
pub struct Outcome {
    /// The report.
    pub report: Report,
    /// Its files: JSON, then HTML.
    pub files: [PathBuf; 2],
}

/// Measures all cases and writes the report.
///
/// **Errors:** the options do not fit together; no root, no pktgen, no such port; the tester failed. A gateway that does not forward is no
/// error: it is among [`Report::faults`].
pub fn run(options: &Options) -> Result<Outcome> {
    options.check()?;
    trial::need_root()?;
    let cards = [port::card(&options.inside), port::card(&options.outside)];
    for name in [&options.inside, &options.outside] {
        port::state(name)?;
    }
    let tester = Tester::open(
        (&options.inside, options.forbidden_inside()),
        (&options.outside, options.forbidden_outside()),
        options.count,
        options.settle,
    )?;
    let cpus = options.senders(tester.cpus())?;
    let method = options.method();
    let subjects = options.subjects();
    let longest: Duration = subjects.iter().map(|&(_, _, flows)| method.longest(flows.into())).sum();
    eprintln!("{} cases, {} at most", subjects.len(), humantime::format_duration(Duration::from_secs(longest.as_secs())));
    let mut report = options.report(cards);
    for (number, &(way, frame, flows)) in subjects.iter().enumerate() {
        let streams = options.streams(way, flows, &cpus)?;
        let established = streams.iter().map(|(_, streams)| streams.iter().map(|it| it.part.flows()).sum()).max().unwrap_or(0);
        let subject = Subject { way, frame, flows: established };
        let plan = options.plan(way, frame, streams);
        let head = format!("[{}/{}] {}, {frame} bytes, {established} flows", number + 1, subjects.len(), way.words());
        let before = options.port_losses();
        let trial = |amount| tester.trial(&plan, amount, method.tolerance);
        let mut case = case::measure(subject, &method, trial, |text| eprintln!("{head}: {text}"))?;
        case.port_losses = grown(&options.port_losses(), &before);
        eprintln!("{head}: {}", verdict(&case));
        report.cases.push(case);
    }
    let files = report.write(&options.output)?;
    Ok(Outcome { report, files })
}

/// How a case ended, for people.
fn verdict(case: &Case) -> String {
    match (&case.loss_free, case.faults.first()) {
        (_, Some(fault)) => format!("wrong: {fault}"),
        (Some(found), None) => format!("{} packets/s each way without loss", found.packets_per_second),
        (None, None) => "no rate without loss".to_owned(),
    }
}

type Losses = BTreeMap<String, BTreeMap<String, u64>>;

fn grown(now: &Losses, before: &Losses) -> Losses {
    let none = BTreeMap::new();
    let grown = now.iter().map(|(name, losses)| (name.clone(), port::grown(losses, before.get(name).unwrap_or(&none))));
    grown.filter(|(_, losses)| !losses.is_empty()).collect()
}

impl Options {
    /// **Errors:** options that do not fit together, with what to do.
    fn check(&self) -> Result<()> {
        ensure!(
            self.inside != self.outside,
            "--inside and --outside are both {}: two ports are needed, one cabled to each side of the gateway",
            self.inside
        );
        for size in &self.sizes {
            ensure!(FRAMES.contains(size), "--sizes {size}: {} to {} bytes", FRAMES.start(), FRAMES.end());
        }
        for &flows in &self.flows {
            ensure!((1..=MOST_FLOWS).contains(&flows), "--flows {flows}: 1 to {MOST_FLOWS}");
        }
        ensure!((1..=256).contains(&self.queues), "--queues {}: 1 to 256", self.queues);
        ensure!(!self.duration.is_zero(), "--duration 0: a trial has to send for some time");
        for (name, time) in [("--duration", self.duration), ("--confirm", self.confirm)] {
            ensure!(time <= LONGEST, "{name}: at most {} seconds", LONGEST.as_secs());
        }
        let most = self.max_rate.into_iter().chain(self.rates.iter().copied()).max().unwrap_or(0);
        let packets = most as f64 / f64::from(self.queues) * self.duration.max(self.confirm).as_secs_f64();
        ensure!(
            packets <= MOST as f64,
            "{packets:.0} packets of a queue in one trial: pktgen counts to {MOST}; make trials shorter"
        );
        for way in self.ways.iter().filter(|way| matches!(way, Way::Inbound | Way::Both)) {
            let name = format!("{way:?}").to_lowercase();
            ensure!(self.outside_mac.is_some(), "--ways {name} needs --outside-mac, the gateway's outside port");
            ensure!(self.forward.is_some(), "--ways {name} needs --forward, external endpoints that the gateway forwards inside");
        }
        let answers = self.ways.contains(&Way::Replies);
        ensure!(
            !answers || self.count == Counting::Xdp,
            "--ways replies needs --count xdp: it is that program that sends packets back; choose with --ways"
        );
        Ok(())
    }

    /// What must not come out at the outside port.
    fn forbidden_outside(&self) -> Forbidden {
        Forbidden { sources: Some(self.hosts), destinations: None }
    }

    /// What must not come out at the inside port.
    fn forbidden_inside(&self) -> Forbidden {
        Forbidden { sources: None, destinations: self.forward.map(|forward| forward.address.into()) }
    }

    /// The processors that send, of those that pktgen has. **Errors:** one that it has not.
    fn senders(&self, all: &[u32]) -> Result<Vec<u32>> {
        for cpu in &self.cpus {
            ensure!(all.contains(cpu), "--cpus {cpu}: pktgen has threads on processors {all:?}");
        }
        Ok(if self.cpus.is_empty() { all.to_vec() } else { self.cpus.clone() })
    }

    fn method(&self) -> Method {
        Method {
            bounds: Bounds { most: self.max_rate, trials: self.trials, resolution: self.resolution / 100.0 },
            rates: self.rates.clone(),
            duration: self.duration,
            confirm: self.confirm,
            tolerance: self.loss / 100.0,
            establish_rate: self.establish_rate,
        }
    }

    /// Every way with every size and every number of flows.
    fn subjects(&self) -> Vec<(Way, u32, u32)> {
        let sizes = |way| self.sizes.iter().map(move |&size| (way, size));
        let flows = |(way, size)| self.flows.iter().map(move |&flows| (way, size, flows));
        self.ways.iter().copied().flat_map(sizes).flat_map(flows).collect()
    }

    /// The streams of a way, by direction, each queue on the next processor.
    fn streams(&self, way: Way, flows: u32, cpus: &[u32]) -> Result<Vec<(Direction, Vec<Stream>)>> {
        let mut cpus = cpus.iter().copied().cycle();
        let directions: &[Direction] = match way {
            Way::Outbound | Way::Replies => &[Direction::Outbound],
            Way::Inbound => &[Direction::Inbound],
            Way::Both => &[Direction::Outbound, Direction::Inbound],
        };
        directions.iter().map(|&direction| Ok((direction, self.queues_of(direction, flows, &mut cpus)?))).collect()
    }

    fn queues_of(&self, direction: Direction, flows: u32, cpus: &mut impl Iterator<Item = u32>) -> Result<Vec<Stream>> {
        let (interface, gateway, varied, many, addresses, destination, ports) = match direction {
            Direction::Outbound => {
                let (remote, ports) = (self.remotes.first(), SOURCE_PORTS.parse()?);
                (&self.inside, self.inside_mac, Varied::Source, Many::Addresses, self.hosts, remote, ports)
            }
            Direction::Inbound => {
                let forward = self.forward.context("--forward is missing")?;
                let gateway = self.outside_mac.context("--outside-mac is missing")?;
                // Not from the one that outbound packets go to: a mapping of theirs would let it in.
                let remotes = self.remotes.after_first().context("--remotes: a second address is needed for inbound packets")?;
                let varied = Varied::SourceAndDestinationPort;
                (&self.outside, gateway, varied, Many::Ports, remotes, forward.address, forward.ports)
            }
        };
        let parts = flows::divide(flows, self.queues, many, addresses, ports).with_context(|| match direction {
            Direction::Outbound => "--flows, --queues and --hosts",
            Direction::Inbound => "--flows, --queues, --remotes and --forward",
        })?;
        let stream = |(queue, part)| -> Result<Stream> {
            Ok(Stream {
                interface: interface.clone(),
                queue,
                cpu: cpus.next().context("no processor")?,
                gateway,
                part,
                varied,
                destination,
                fixed_port: DISCARD,
            })
        };
        (0..).zip(parts).map(stream).collect()
    }

    fn plan(&self, way: Way, frame: u32, streams: Vec<(Direction, Vec<Stream>)>) -> Plan {
        let answer = if way == Way::Replies { Answer::Yes } else { Answer::No };
        Plan { streams, answer, frame, burst: self.burst, checksums: !self.no_checksums }
    }

    fn port_losses(&self) -> Losses {
        [&self.inside, &self.outside].into_iter().map(|name| (name.clone(), port::losses(name))).collect()
    }

    /// A report without cases.
    fn report(&self, ports: [port::Card; 2]) -> Report {
        Report {
            form: FORM,
            version: env!("CARGO_PKG_VERSION"),
            started: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            gateway: self.gateway.clone(),
            note: self.note.clone(),
            tester: Machine::this(),
            ports,
            settings: Settings {
                queues: self.queues,
                burst: self.burst,
                checksums: !self.no_checksums,
                counting: self.count,
                trial_seconds: self.duration.as_secs_f64(),
                confirm_seconds: self.confirm.as_secs_f64(),
                tolerance: self.loss / 100.0,
                resolution: self.resolution / 100.0,
            },
            cases: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    const LEAST: &[&str] = &["pktgen", "--inside", "eth1", "--outside", "eth2", "--inside-mac", "02:00:00:00:00:01"];
    const WHOLE: &[&str] = &["--outside-mac", "02:00:00:00:00:02", "--forward", "203.0.113.16:1024-9215"];

    fn options(more: &[&str]) -> Options {
        Line::try_parse_from(LEAST.iter().chain(more)).map_or_else(|error| panic!("{error}"), |line| line.options)
    }

    fn refused(more: &[&str]) -> String {
        match Line::try_parse_from(LEAST.iter().chain(more)) {
            Ok(line) => line.options.check().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_way_is_measured_with_every_size_and_number_of_flows() {
        let options = options(&["--ways", "replies,outbound", "--sizes", "64,512", "--flows", "1,1000"]);
        options.check().unwrap();
        let subjects = options.subjects();
        assert_eq!(subjects.len(), 8);
        assert_eq!(subjects[0], (Way::Replies, 64, 1));
        assert_eq!(subjects[7], (Way::Outbound, 512, 1000));
    }

    #[test]
    fn both_ways_have_queues_of_their_own_on_processors_of_their_own() {
        let options = options(&[WHOLE, &["--ways", "both", "--queues", "2"]].concat());
        options.check().unwrap();
        let streams = options.streams(Way::Both, 1000, &[0, 1, 2, 3]).unwrap();
        let cpus: Vec<_> = streams.iter().flat_map(|(_, streams)| streams).map(|stream| (stream.name(), stream.cpu)).collect();
        let expected = [("eth1@0", 0), ("eth1@1", 1), ("eth2@0", 2), ("eth2@1", 3)];
        assert_eq!(cpus, expected.map(|(name, cpu)| (name.to_owned(), cpu)));
        let inbound = &streams[1].1[0];
        assert_eq!((inbound.destination, inbound.varied), (Ipv4Addr::new(203, 0, 113, 16), Varied::SourceAndDestinationPort));
        assert_eq!(inbound.gateway.to_string(), "02:00:00:00:00:02");
        assert_eq!(Ipv4Addr::from(inbound.part.first_address), Ipv4Addr::new(198, 18, 0, 2), "not where outbound packets go");
        let outbound = &streams[0].1[0];
        assert_eq!((outbound.destination, outbound.part.first_port), (Ipv4Addr::new(198, 18, 0, 1), 1024));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_with_what_to_do() {
        for (more, words) in [
            (&["--ways", "inbound"][..], "needs --outside-mac"),
            (&["--ways", "both", "--outside-mac", "02:00:00:00:00:02"], "needs --forward"),
            (&["--count", "port"], "needs --count xdp"),
            (&["--sizes", "60"], "64 to 1518"),
            (&["--flows", "0"], "1 to 16777216"),
            (&["--queues", "0"], "1 to 256"),
            (&["--duration", "0"], "some time"),
            (&["--loss", "101"], "0 to 100 percent"),
            (&["--rates", "0"], "1..=1000000000"),
            (&["--rates", "1000", "--max-rate", "5"], "cannot be used with"),
            (&["--forward", "203.0.113.16"], "203.0.113.16:1024-9215"),
            (&["--max-rate", "1000000000", "--confirm", "60"], "make trials shorter"),
        ] {
            let error = refused(more);
            assert!(error.contains(words), "{more:?}: {error}");
        }
        let one_port = ["pktgen", "--inside", "eth1", "--outside", "eth1", "--inside-mac", "02:00:00:00:00:01"];
        let error = Line::try_parse_from(one_port).unwrap_or_else(|error| panic!("{error}")).options.check().unwrap_err();
        assert!(error.to_string().contains("two ports are needed"), "{error}");
    }

    #[test]
    fn a_processor_that_pktgen_has_not_is_refused() {
        assert_eq!(options(&[]).senders(&[0, 1]).unwrap(), [0, 1]);
        assert_eq!(options(&["--cpus", "1"]).senders(&[0, 1]).unwrap(), [1]);
        assert!(options(&["--cpus", "2"]).senders(&[0, 1]).unwrap_err().to_string().contains("[0, 1]"));
    }

    #[test]
    fn outside_the_hosts_and_inside_the_external_address_must_not_be_seen() {
        let options = options(WHOLE);
        assert_eq!(options.forbidden_outside().sources, Some(options.hosts));
        assert_eq!(options.forbidden_inside().destinations, Some(Ipv4Addr::new(203, 0, 113, 16).into()));
    }
}
