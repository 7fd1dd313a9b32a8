//! The sink: receives what a generator sent, checks each packet, and reports.
//!
//! Knows an interface and what to expect; not what the packets went through. Called by the program and by tests, in the network
//! namespace of the calling thread: [`Sink::open`] first, then start the sender, then [`Sink::run`]. Invariants: every run ends by
//! its duration at the latest; what the socket dropped is in the report.
//! Tests: `tests/wire.rs`; the parts have their own.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use libbpf_rs::Link;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use nix::time::{ClockId, clock_gettime};

use crate::address::{AddressRange, seconds};
use crate::inspect::inspect;
use crate::interface;
use crate::ring::Ring;
use crate::skeleton::GenerateSkelBuilder;
use crate::tally::{Report, Tally};

/// How long one wait for frames may take, so that the run ends in time. Chosen.
const WAIT: Duration = Duration::from_millis(50);

/// Where to listen, what to expect, how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The interface to listen on.
    #[arg(long, value_name = "IF")]
    pub interface: String,
    /// Source addresses that packets may have: A, A-B or A/LENGTH; may be given more than once. Any unless given.
    #[arg(long = "expect-src", value_name = "ADDRESSES")]
    pub expected_sources: Vec<AddressRange>,
    /// How many distinct packets should come; the run ends when they have.
    #[arg(long = "expect-count", value_name = "N")]
    pub expected_count: Option<u64>,
    /// Stop when for so many seconds after the first packet none has come.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    pub idle: Duration,
    /// Stop after so many seconds in any case.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    pub duration: Duration,
    /// Loss is not a fault: for runs that look for the highest rate.
    #[arg(long)]
    pub allow_loss: bool,
    /// Attach an XDP program that passes everything, without which a veth refuses frames that XDP redirects to it.
    #[arg(long)]
    pub accept_redirected: bool,
    /// The receive ring. In MiB.
    #[arg(long, value_name = "MIB", default_value_t = 32)]
    pub ring: usize,
}

impl Options {
    /// Listens on `interface` for anything, for a minute at most, until nothing has come for a second.
    pub fn new(interface: impl Into<String>) -> Self {
        Self {
            interface: interface.into(),
            expected_sources: Vec::new(),
            expected_count: None,
            idle: Duration::from_secs(1),
            duration: Duration::from_mins(1),
            allow_loss: false,
            accept_redirected: false,
            ring: 32,
        }
    }
}

/// A sink that listens; frames wait in its ring until it runs.
pub struct Sink {
    options: Options,
    ring: Ring,
    _accept: Option<Accept>,
}

impl Sink {
    /// Starts to listen. Whatever arrives from now on is seen.
    ///
    /// **Errors:** when the interface is not there or has another XDP program; without `CAP_NET_RAW` (and `CAP_NET_ADMIN`,
    /// `CAP_BPF` to accept redirected frames).
    pub fn open(options: &Options) -> Result<Self> {
        let name = &options.interface;
        let index = interface::index(name)?;
        let accept = if options.accept_redirected { Some(Accept::attach(name, index)?) } else { None };
        let ring = Ring::open(index, options.ring).with_context(|| format!("interface {name}"))?;
        Ok(Self { options: options.clone(), ring, _accept: accept })
    }

    /// Receives until the expected count has come, nothing came for the idle time, or the duration is over. Then reports.
    ///
    /// **Errors:** when the interface goes away.
    pub fn run(mut self) -> Result<Report> {
        let mut tally = Tally::new(self.options.expected_sources.clone())?;
        let start = Instant::now();
        let mut last_ours: Option<Instant> = None;
        let expected = self.options.expected_count;
        loop {
            let offset = realtime_ahead()?;
            let mut ours = false;
            self.ring.receive(WAIT.min(self.options.idle), |packet| {
                let now = packet.received.saturating_sub(offset);
                ours |= tally.count(inspect(packet.frame, packet.unfinished), packet.frame.len(), now);
            })?;
            let now = Instant::now();
            if ours {
                last_ours = Some(now);
            }
            let idle = last_ours.is_some_and(|last| now - last >= self.options.idle);
            let complete = expected.is_some_and(|expected| tally.distinct() >= expected);
            if idle || complete || now - start >= self.options.duration {
                return Ok(tally.report(expected, self.ring.dropped()?));
            }
        }
    }
}

/// How far `CLOCK_REALTIME`, of which the kernel's stamps are, is ahead of `CLOCK_MONOTONIC`, of which the generator's are.
/// **Units:** nanoseconds.
fn realtime_ahead() -> Result<u64> {
    let nanos = |clock| -> Result<u64> {
        let time = Duration::from(clock_gettime(clock).context("reading the clock")?);
        Ok(time.as_nanos() as u64)
    };
    Ok(nanos(ClockId::CLOCK_REALTIME)?.saturating_sub(nanos(ClockId::CLOCK_MONOTONIC)?))
}

/// The program that passes everything, attached.
struct Accept(Link);

impl Accept {
    /// **Errors:** when another XDP program is attached; without `CAP_NET_ADMIN` and `CAP_BPF`.
    fn attach(name: &str, index: u32) -> Result<Self> {
        let mut object = MaybeUninit::uninit();
        let open = GenerateSkelBuilder::default().open(&mut object).context("opening the accepting program")?;
        let program = open.load().context("loading the accepting program (needs root, or CAP_NET_ADMIN and CAP_BPF)")?;
        let attached = program.progs.accept.attach_xdp(index.cast_signed());
        let attached = attached
            .with_context(|| format!("interface {name}: attaching the accepting program (is another XDP program attached?)"))?;
        Ok(Self(attached))
    }
}

impl Drop for Accept {
    fn drop(&mut self) {
        // Closing it is not enough: a child that was forked at this moment holds it open until it has started its program.
        let _gone_already = self.0.detach();
    }
}
