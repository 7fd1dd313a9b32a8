//! The generator: makes the kernel run generate.bpf.c on live frames, at a rate, for a bounded time.
//!
//! Knows an interface and a stream; not what is at the other end. Called by the program and by tests, in the network namespace
//! of the calling thread. Invariant: every run ends by its count or its duration.
//! Sources: Linux `net/bpf/test_run.c` (`BPF_F_TEST_XDP_LIVE_FRAMES`). Tests: below (the program against [`Template::frame`]),
//! `tests/wire.rs`.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};
use clap::Args;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, ProgramInput, ProgramMut};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::address::{Mac, seconds};
use crate::hold::Hold;
use crate::interface::{self, Transmitted};
use crate::pace::{self, Pace, Step};
use crate::skeleton::{GenerateSkel, GenerateSkelBuilder, types};
use crate::stream::{Checksum, Protocol, Stream, Template};

/// `BPF_F_TEST_XDP_LIVE_FRAMES`. **Source:** Linux `include/uapi/linux/bpf.h`.
const LIVE_FRAMES: u32 = 1 << 1;
/// How many packets an unpaced run sends between two looks at the clock. Chosen: about a millisecond.
const UNPACED_BATCH: u64 = 4096;
/// How long one call of a run at a rate takes, about: some hundred calls a second. For each the kernel makes a page pool, and of many
/// thousand a second it cannot keep up with taking down.
const CALL: Duration = Duration::from_millis(4);
/// Frames of a call, at first and at least, and at most.
const FIRST_CALL: u32 = 8192;
/// As many take some 20 ms when none is due.
const LONGEST_CALL: u32 = 1 << 19;
/// How long to wait for the interface's counters to show the last packets, and how often to look.
const SETTLE: (u32, Duration) = (50, Duration::from_millis(2));

/// What to send, where, how fast and how long.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The interface that the packets leave by; its peer must accept redirected frames.
    #[arg(long, value_name = "IF")]
    pub interface: String,
    /// The packets.
    #[command(flatten)]
    pub stream: Stream,
    /// Packets a second; as fast as it goes unless given.
    #[arg(long, value_name = "PPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// How many packets a paced run may catch up at once after it was held up. More keeps the rate better on a busy machine, and may
    /// overrun the receiver's rings.
    #[arg(long, value_name = "PACKETS", default_value_t = pace::BURST)]
    pub burst: u64,
    /// Stop after as many packets.
    #[arg(long, required_unless_present = "duration")]
    pub count: Option<u64>,
    /// Stop after as many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
}

impl Options {
    /// `count` packets of `stream` out of `interface`, `rate` a second, for a minute at most.
    pub fn new(interface: impl Into<String>, stream: Stream, rate: u64, count: u64) -> Self {
        let duration = Some(Duration::from_mins(1));
        Self { interface: interface.into(), stream, rate: Some(rate), burst: pace::BURST, count: Some(count), duration }
    }
}

/// A stream that is being sent, batch by batch. It goes on where the last batch ended.
pub struct Generator<'object> {
    program: GenerateSkel<'object>,
    template: Template,
    interface: String,
    /// Frames of one call of [`Generator::run`].
    frames: Cell<u32>,
    /// Both programs, so that starting a call takes microseconds.
    _hold: [Hold; 2],
}

impl<'object> Generator<'object> {
    /// Loads the program for `stream`, to send by `interface` of the calling thread's network namespace.
    ///
    /// **Errors:** when the stream contradicts itself; without `CAP_NET_ADMIN`, `CAP_BPF` and `CAP_SYS_ADMIN`; when the interface is
    /// not there.
    pub fn open(object: &'object mut MaybeUninit<OpenObject>, interface: &str, stream: &Stream) -> Result<Self> {
        Self::open_with(object, interface, stream, None)
    }

    /// As [`Generator::open`], with the flows of `among` sent among those of `stream`: each `every`th packet is one of theirs. They differ from
    /// `stream` in their flows' numbers, addresses and ports, in how many they are and in their order, and in nothing else.
    ///
    /// **Errors:** when they differ in more.
    pub fn open_mixed(
        object: &'object mut MaybeUninit<OpenObject>,
        interface: &str,
        stream: &Stream,
        among: &Stream,
        every: NonZeroU32,
    ) -> Result<Self> {
        Self::open_with(object, interface, stream, Some((among, every)))
    }

    fn open_with(
        object: &'object mut MaybeUninit<OpenObject>,
        interface: &str,
        stream: &Stream,
        among: Option<(&Stream, NonZeroU32)>,
    ) -> Result<Self> {
        let index = interface::index(interface)?;
        let template = |stream| Template::new(stream, interface::mac(interface)?);
        let among = among.map(|(stream, every)| Ok::<_, Error>((template(stream)?, every))).transpose()?;
        let template = template(stream)?;
        let program = load(object, setup(&template, among.as_ref(), index)?)?;
        let hold = [Hold::new(&program.progs.generate)?, Hold::new(&program.progs.stream)?];
        Ok(Self { program, template, interface: interface.to_owned(), frames: Cell::new(FIRST_CALL), _hold: hold })
    }

    /// Sends the next `batch` packets. Has to be called in the namespace that it was opened in. **Cost:** 24 us besides the packets.
    ///
    /// **Errors:** when the interface is down or gone.
    pub fn send(&self, batch: u64) -> Result<()> {
        run(&self.program.progs.generate, &self.template, batch.try_into().unwrap_or(u32::MAX), &self.interface)
    }

    /// Sets the rate of [`Generator::run`], from now on: packets a second, evenly, or as many as it can. What it falls behind by more than
    /// `burst` packets is not sent later.
    pub fn pace(&self, rate: Option<u64>, burst: u64) -> Result<()> {
        const UNITS_A_SECOND: u64 = 1_000_000_000 << 10;
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?);
        let interval = rate.map_or(0, |rate| (UNITS_A_SECOND / rate.max(1)).max(1));
        let pace = [(now.as_nanos() as u64) << 10, interval, interval.saturating_mul(burst)];
        let bytes = pace.map(u64::to_ne_bytes).concat();
        self.program.maps.paces.update(&0_u32.to_ne_bytes(), &bytes, MapFlags::ANY).context("setting the rate")
    }

    /// Sends what is due, for some milliseconds; then returns, to be called again. The kernel does other work of this core meanwhile.
    ///
    /// **Errors:** when the interface is down or gone.
    pub fn run(&self) -> Result<()> {
        let (frames, start) = (self.frames.get(), Instant::now());
        run(&self.program.progs.stream, &self.template, frames, &self.interface)?;
        let took = start.elapsed();
        // Held up once, it is not to be short for ever; quick once, not long for ever.
        let fitting = u128::from(frames) * CALL.as_nanos() / took.as_nanos().max(1);
        self.frames.set((fitting as u32).clamp(frames / 2, frames.saturating_mul(2)).clamp(FIRST_CALL, LONGEST_CALL));
        Ok(())
    }

    /// The map with how many packets were sent, for another program of the kernel: one number.
    pub fn count(&self) -> BorrowedFd<'_> {
        self.program.maps.sent.as_fd()
    }

    /// How many packets were sent since it was opened.
    pub fn sent(&self) -> Result<u64> {
        Ok(sent_so_far(&self.program)?.iter().sum())
    }

    /// Of these, how many were of the flows sent among the others.
    pub fn sent_among(&self) -> Result<u64> {
        Ok(sent_so_far(&self.program)?[1])
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sent {
    /// Packets built and handed to the interface.
    pub sent: u64,
    /// Their frames' bytes, without FCS.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Over that time.
    pub packets_per_second: f64,
    /// What the interface counted as sent meanwhile, other traffic included. On a veth: what the peer took.
    pub interface_sent: u64,
    /// What the interface dropped meanwhile: the peer's ring was full.
    pub interface_dropped: u64,
}

/// Sends a stream and says what was sent.
///
/// **Errors:** without count and duration; when the stream contradicts itself; without `CAP_NET_ADMIN` and `CAP_BPF`; when
/// the interface is not there, down, or nothing came out of it.
pub fn generate(options: &Options) -> Result<Sent> {
    ensure!(options.count.is_some() || options.duration.is_some(), "a run needs a count or a duration to end by");
    let name = &options.interface;
    let mut object = MaybeUninit::uninit();
    let generator = Generator::open(&mut object, name, &options.stream)?;

    let before = interface::transmitted(name)?;
    let elapsed = drive(options, |batch| generator.send(batch))?;
    let sent = generator.sent()?;
    let (interface_sent, interface_dropped) = settled(name, before, sent)?;
    if sent > 0 && interface_sent == 0 && interface_dropped == 0 {
        bail!("interface {name}: nothing came out; a veth's peer takes redirected frames only with an XDP program or GRO on");
    }
    let seconds = elapsed.as_secs_f64();
    let bytes = sent * options.stream.size as u64;
    #[allow(clippy::cast_precision_loss, reason = "a count of packets is below 2^52")]
    let packets_per_second = sent as f64 / seconds;
    Ok(Sent { sent, bytes, seconds, packets_per_second, interface_sent, interface_dropped })
}

/// Calls `send` for batch after batch until the count or the duration is reached. Returns how long it took.
fn drive(options: &Options, mut send: impl FnMut(u64) -> Result<()>) -> Result<Duration> {
    // Without it a sleep takes 50 us longer than asked for. It costs nothing if it is refused.
    let _less_precise = nix::sys::prctl::set_timerslack(1);
    let mut pace = options.rate.map(|rate| Pace::new(rate, options.burst));
    let (count, duration) = (options.count.unwrap_or(u64::MAX), options.duration.unwrap_or(Duration::MAX));
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        let elapsed = start.elapsed();
        if sent >= count || elapsed >= duration {
            return Ok(elapsed);
        }
        match pace.as_mut().map_or(Step::Send(UNPACED_BATCH), |pace| pace.next(elapsed)) {
            Step::Send(batch) => {
                let batch = batch.min(count - sent);
                send(batch)?;
                sent += batch;
            }
            Step::Wait(time) => thread::sleep(time.min(duration.saturating_sub(elapsed))),
        }
    }
}

/// Loads the program.
fn load(object: &mut MaybeUninit<OpenObject>, setup: types::setup) -> Result<GenerateSkel<'_>> {
    let mut open = GenerateSkelBuilder::default().open(object).context("opening the generator's program")?;
    let constants = open.maps.rodata_data.as_mut().context("the generator's program has no constants")?;
    constants.setup = setup;
    open.load().context("loading the generator's program (needs root, or CAP_NET_ADMIN and CAP_BPF)")
}

/// What the program has to know to send by the interface of `index`.
fn setup(template: &Template, among: Option<&(Template, NonZeroU32)>, index: u32) -> Result<types::setup> {
    let alike = among.is_none_or(|(among, _)| among.differs_in_flows_only(template));
    ensure!(alike, "flows that are sent among others differ from them in addresses, ports, numbers and order only");
    let (stream, sums, headers) = (template.stream(), template.sums(), template.headers_len());
    let mut setup = types::setup {
        ifindex: index,
        protocol: match stream.protocol {
            Protocol::Udp => 0,
            Protocol::TcpSyn => 1,
            Protocol::TcpAck => 2,
            Protocol::IcmpEcho => 3,
        },
        checksum: match stream.checksum {
            Checksum::Right => 0,
            Checksum::Zero => 1,
            Checksum::Partial => 2,
        },
        ip_sum: sums.ip.into(),
        l4_sum: sums.l4.into(),
        pseudo_sum: sums.pseudo.into(),
        payload_len: (stream.size - headers) as u32,
        every: among.map_or(0, |(_, every)| every.get()),
        flows: [stream, among.map_or(stream, |(among, _)| among.stream())].map(flows),
        ..types::setup::default()
    };
    setup.template[..headers].copy_from_slice(&template.blank()[..headers]);
    Ok(setup)
}

fn flows(stream: &Stream) -> types::flows {
    let range = |first, count| types::range { first, count };
    types::flows {
        count: stream.flows,
        first: stream.first_flow,
        step: stream.order.step(stream.flows),
        src: range(stream.sources.first().into(), stream.sources.count()),
        dst: range(stream.destinations.first().into(), stream.destinations.count()),
        sport: range(stream.source_ports.first().into(), stream.source_ports.count()),
        dport: range(stream.destination_ports.first().into(), stream.destination_ports.count()),
    }
}

/// Has the kernel run a program on `frames` live frames.
fn run(program: &ProgramMut<'_>, template: &Template, frames: u32, name: &str) -> Result<()> {
    let input = ProgramInput { data_in: Some(template.blank()), repeat: frames, flags: LIVE_FRAMES, ..ProgramInput::default() };
    program.test_run(input).map(drop).with_context(|| {
        format!("interface {name}: sending (is it up, and the frame within its MTU? live frames need Linux 5.18 and CAP_NET_ADMIN)")
    })
}

/// The program's own counts, of either flows. Read by a system call: the kernel writes them behind the compiler's back.
fn sent_so_far(program: &GenerateSkel<'_>) -> Result<[u64; 2]> {
    let bytes = program.maps.bss.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).context("reading the generator's progress")?;
    let bytes = bytes.context("the generator has no progress")?;
    let count = |at: usize| bytes[at..].first_chunk().map_or(0, |&count| u64::from_ne_bytes(count));
    Ok([count(0), count(size_of::<types::state>())])
}

/// What the interface sent and dropped since `before`, once it accounts for `sent` packets or a short wait is over.
fn settled(name: &str, before: Transmitted, sent: u64) -> Result<(u64, u64)> {
    let (looks, pause) = SETTLE;
    let mut counted = (0, 0);
    for _ in 0..looks {
        let now = interface::transmitted(name)?;
        counted = (now.packets.saturating_sub(before.packets), now.dropped.saturating_sub(before.dropped));
        if counted.0 + counted.1 >= sent {
            break;
        }
        thread::sleep(pause);
    }
    Ok(counted)
}

/// The Ethernet address of an interface of this namespace, for streams that are sent towards it.
///
/// **Errors:** when there is no such interface or it has no Ethernet address.
pub fn interface_mac(name: &str) -> Result<Mac> {
    interface::mac(name)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::inspect::{Check, Seen, inspect};
    use crate::stamp::Stamp;
    use crate::stream::Order;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const XDP_DROP: u32 = 1;
    const XDP_REDIRECT: u32 = 4;

    fn stream() -> Stream {
        Stream {
            sources: "10.0.0.2-10.0.0.4".parse().unwrap(),
            source_ports: "1000-1001".parse().unwrap(),
            destinations: "198.51.100.0/31".parse().unwrap(),
            destination_ports: "53-54".parse().unwrap(),
            flows: 24,
            first_flow: 100,
            size: 101,
            ..Stream::new(MAC, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)
        }
    }

    /// The stamp's time, which only the program knows.
    fn sent_at(frame: &[u8], template: &Template) -> u64 {
        Stamp::from_bytes(&frame[template.headers_len()..]).map_or(0, |stamp| stamp.sent)
    }

    #[test]
    fn the_program_writes_byte_for_byte_what_the_template_says() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED (needs root): the program writes byte for byte what the template says");
            return;
        }
        for (protocol, checksum, order) in [
            (Protocol::Udp, Checksum::Right, Order::InTurn),
            (Protocol::Udp, Checksum::Right, Order::Scattered),
            (Protocol::Udp, Checksum::Zero, Order::InTurn),
            (Protocol::Udp, Checksum::Partial, Order::InTurn),
            (Protocol::TcpSyn, Checksum::Right, Order::InTurn),
            (Protocol::TcpAck, Checksum::Right, Order::Scattered),
            (Protocol::TcpAck, Checksum::Partial, Order::InTurn),
            (Protocol::IcmpEcho, Checksum::Right, Order::InTurn),
        ] {
            let template = Template::new(&Stream { protocol, order, checksum, ..stream() }, MAC).unwrap();
            let mut object = MaybeUninit::uninit();
            let program = load(&mut object, setup(&template, None, 1).unwrap()).unwrap();
            // Garbage where headers go: a recycled frame, as its last reader may have left it.
            let mut dirty = template.blank().to_vec();
            dirty[..template.headers_len()].fill(0xa5);
            let mut right = 0;
            for index in 0..100 {
                let mut frame = [0; 128];
                let input = ProgramInput { data_in: Some(&dirty), data_out: Some(&mut frame), ..ProgramInput::default() };
                let output = program.progs.generate.test_run(input).unwrap();
                assert_eq!(output.return_value, XDP_REDIRECT);
                let frame = output.data.unwrap();
                assert_eq!(frame, template.frame(index, sent_at(frame, &template)), "{protocol:?} {checksum:?}, packet {index}");
                let Seen::Ours(seen) = inspect(frame, false) else { panic!("not recognised") };
                right += u32::from(seen.l4_checksum == Check::Right);
            }
            // One in 65536 of the sums left to the NIC is the right one by chance.
            assert!(if checksum == Checksum::Right { right == 100 } else { right < 5 }, "{protocol:?} {checksum:?}: {right} right");
            assert_eq!(sent_so_far(&program).unwrap(), [100, 0]);
        }
    }

    #[test]
    fn flows_among_others_are_each_so_manieth_packet_and_byte_for_byte_their_own() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED (needs root): flows among others are each so-manieth packet and byte for byte their own");
            return;
        }
        let among = Stream { flows: 7, first_flow: 500, source_ports: "2000-2007".parse().unwrap(), ..stream() };
        let among = (Template::new(&Stream { order: Order::Scattered, ..among }, MAC).unwrap(), NonZeroU32::new(5).unwrap());
        let template = Template::new(&stream(), MAC).unwrap();
        let mut object = MaybeUninit::uninit();
        let program = load(&mut object, setup(&template, Some(&among), 1).unwrap()).unwrap();
        for index in 0..100 {
            let mut frame = [0; 128];
            let input = ProgramInput { data_in: Some(template.blank()), data_out: Some(&mut frame), ..ProgramInput::default() };
            let frame = program.progs.generate.test_run(input).unwrap().data.unwrap();
            let (of, index) = if index % 5 == 4 { (&among.0, index / 5) } else { (&template, index - index / 5) };
            assert_eq!(frame, of.frame(index, sent_at(frame, of)));
        }
        assert_eq!(sent_so_far(&program).unwrap(), [80, 20]);

        let longer = (Template::new(&Stream { size: 103, ..stream() }, MAC).unwrap(), among.1);
        assert!(setup(&template, Some(&longer), 1).unwrap_err().to_string().contains("addresses, ports, numbers and order only"));
    }

    #[test]
    fn the_stream_sends_what_is_due_and_forgives_what_is_far_behind() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED (needs root): the stream sends what is due and forgives what is far behind");
            return;
        }
        let template = Template::new(&stream(), MAC).unwrap();
        let mut object = MaybeUninit::uninit();
        let program = load(&mut object, setup(&template, None, 1).unwrap()).unwrap();
        let run = || {
            let mut frame = [0; 128];
            let input = ProgramInput { data_in: Some(template.blank()), data_out: Some(&mut frame), ..ProgramInput::default() };
            program.progs.stream.test_run(input).unwrap().return_value
        };
        let set = |pace: [u64; 3]| {
            let bytes = pace.map(u64::to_ne_bytes).concat();
            program.maps.paces.update(&0_u32.to_ne_bytes(), &bytes, MapFlags::ANY).unwrap();
        };
        set([u64::MAX, 0, 0]);
        assert_eq!([run(), run()], [XDP_REDIRECT; 2], "without a rate all is due");
        set([u64::MAX, 1, 0]);
        assert_eq!(run(), XDP_DROP, "not due yet");
        let hour = 3_600_000_000_000 << 10;
        set([0, hour, 2 * hour]);
        let sent = (0..10).filter(|_| run() == XDP_REDIRECT).count();
        assert!((1..=3).contains(&sent), "{sent} of a debt of two were caught up");
        assert_eq!(sent_so_far(&program).unwrap(), [2 + sent as u64, 0]);
    }

    #[test]
    fn a_run_without_an_end_or_an_interface_is_refused() {
        let options =
            Options { interface: "no-such-if".into(), stream: stream(), rate: None, burst: 1, count: None, duration: None };
        assert!(generate(&options).unwrap_err().to_string().contains("count or a duration"));
        assert!(generate(&Options { count: Some(1), ..options }).unwrap_err().to_string().contains("no-such-if"));
    }

    #[test]
    fn a_run_ends_exactly_at_its_count() {
        let options = Options {
            interface: String::new(),
            stream: stream(),
            rate: None,
            burst: pace::BURST,
            count: Some(1000),
            duration: Some(Duration::from_mins(1)),
        };
        for rate in [None, Some(1_000_000)] {
            let mut sent = 0;
            drive(&Options { rate, ..options.clone() }, |batch| {
                sent += batch;
                Ok(())
            })
            .unwrap();
            assert_eq!(sent, 1000);
        }
    }
}
