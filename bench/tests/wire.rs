//! Both ends over a veth pair: the generator's packets arrive whole, and the sink sees what is wrong with spoiled ones.
//!
//! Needs root; makes two network namespaces per test and removes them.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use portcullis_bench::generate::{self, Sent, generate};
use portcullis_bench::sink::{self, Sink};
use portcullis_bench::stream::{Checksum, Protocol, Stream, Template};
use portcullis_bench::tally::Report;

mod common;

use common::{FAR, FAR_MAC, NEAR, Wire};

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// Generates towards a sink and returns what both say.
fn carry(wire: &Wire, sink: &sink::Options, options: &generate::Options) -> (Sent, Report) {
    let sink = wire.far(|| Sink::open(sink).unwrap());
    thread::scope(|scope| {
        let report = scope.spawn(|| wire.far(|| sink.run().unwrap()));
        let sent = wire.near(|| generate(options).unwrap());
        (sent, report.join().unwrap())
    })
}

/// Sends crafted frames towards a sink and returns what it says.
fn craft(wire: &Wire, sink: &sink::Options, frames: &[Vec<u8>]) -> Report {
    let sink = wire.far(|| Sink::open(sink).unwrap());
    wire.send(frames);
    wire.far(|| sink.run().unwrap())
}

fn stream() -> Stream {
    Stream::new(FAR_MAC, SOURCE, Ipv4Addr::new(198, 51, 100, 2))
}

fn generating(stream: Stream, rate: u64, count: u64) -> generate::Options {
    generate::Options::new(NEAR, stream, rate, count)
}

fn listening() -> sink::Options {
    sink::Options {
        expected_sources: vec![SOURCE.into()],
        idle: Duration::from_millis(300),
        duration: Duration::from_secs(30),
        accept_redirected: true,
        ..sink::Options::new(FAR)
    }
}

#[test]
fn two_hundred_thousand_packets_a_second_arrive_right_and_in_order() {
    let Some(wire) = Wire::new("two hundred thousand packets a second arrive right and in order") else { return };
    let stream = Stream { flows: 100, source_ports: "1024-65535".parse().unwrap(), ..stream() };
    let options = generating(stream, 200_000, 200_000);
    let (sent, report) = carry(&wire, &sink::Options { expected_count: Some(200_000), ..listening() }, &options);
    eprintln!("{sent:?}\n{report}");
    assert_eq!((sent.sent, sent.interface_sent, sent.interface_dropped), (200_000, 200_000, 0));
    assert_eq!(report.faults(false), [""; 0]);
    assert_eq!((report.received, report.flows, report.missing), (200_000, 100, Some(0)));
    assert_eq!((report.foreign, report.not_ipv4, report.other_clock, report.socket_dropped), (0, 0, 0, 0));
    assert!(sent.packets_per_second <= 201_000.0, "{sent:?}");
    assert!(report.latency_ns.is_some_and(|latency| latency.p50 < 100_000_000));
}

#[test]
fn every_protocol_and_size_arrives_with_right_checksums_from_recycled_frames() {
    let Some(wire) = Wire::new("every protocol and size arrives with right checksums from recycled frames") else { return };
    for protocol in [Protocol::Udp, Protocol::TcpSyn, Protocol::TcpAck, Protocol::IcmpEcho] {
        for size in [76, 777, 1514] {
            let options = generating(Stream { protocol, size, ..stream() }, 100_000, 5_000);
            let (sent, report) = carry(&wire, &sink::Options { expected_count: Some(5_000), ..listening() }, &options);
            assert_eq!(report.faults(false), [""; 0], "{protocol:?} {size}: {sent:?} {report:?}");
            assert_eq!(report.bytes, 5_000 * size as u64);
        }
    }
}

#[test]
fn absent_checksums_are_counted_and_partial_ones_are_wrong() {
    let Some(wire) = Wire::new("absent checksums are counted and partial ones are wrong") else { return };
    let options = generating(Stream { checksum: Checksum::Zero, ..stream() }, 100_000, 1_000);
    let (_, report) = carry(&wire, &listening(), &options);
    assert_eq!((report.absent_checksum, report.faults(false)), (1_000, Vec::new()));
    let options = generating(Stream { checksum: Checksum::Partial, ..stream() }, 100_000, 1_000);
    let (_, report) = carry(&wire, &listening(), &options);
    // The sum of the pseudo header alone is right by chance once in 65536 packets.
    assert_eq!(report.received, 1_000);
    assert!(report.bad_l4_checksum >= 997, "{report:?}");
}

#[test]
fn spoiled_streams_are_seen_for_what_they_are() {
    let Some(wire) = Wire::new("spoiled streams are seen for what they are") else { return };
    let template = Template::new(&Stream { size: 100, ..stream() }, FAR_MAC).unwrap();
    let other = Template::new(&Stream::new(FAR_MAC, Ipv4Addr::new(10, 0, 0, 3), SOURCE), FAR_MAC).unwrap();
    let frame = |index| template.frame(index, 0);
    let flipped = |index, byte: usize| {
        let mut frame = frame(index);
        frame[byte] ^= 0x10;
        frame
    };
    let seen = |frames: &[Vec<u8>]| craft(&wire, &listening(), frames);

    let report = seen(&[frame(0), frame(1), frame(2)]);
    assert_eq!((report.received, report.faults(false)), (3, Vec::new()));

    let report = seen(&[frame(0), flipped(1, 22), flipped(2, 99), frame(3)]);
    assert_eq!((report.bad_ip_checksum, report.bad_l4_checksum, report.lost), (1, 1, 2));

    let report = seen(&[frame(0), other.frame(1, 0)]);
    assert_eq!((report.wrong_source, report.source_changed), (1, 1));

    let report = seen(&[frame(0), frame(2), frame(1), frame(1), frame(6)]);
    assert_eq!((report.reordered, report.duplicates, report.lost), (1, 1, 3));

    let mut foreign = frame(1);
    foreign[42..44].fill(0);
    let mut arp = frame(2);
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let report = seen(&[frame(0), foreign, arp]);
    assert_eq!((report.received, report.foreign, report.not_ipv4, report.faults(false)), (1, 1, 1, Vec::new()));
}

#[test]
fn what_the_sinks_own_socket_drops_is_said_to_be_its_own() {
    let Some(wire) = Wire::new("what the sink's own socket drops is said to be its own") else { return };
    let sink = wire.far(|| Sink::open(&sink::Options { ring: 1, expected_count: Some(20_000), ..listening() }).unwrap());
    // Nobody reads meanwhile, and a MiB holds about 7000 frames.
    let sent = wire.near(|| generate(&generating(stream(), 200_000, 20_000)).unwrap());
    let report = wire.far(|| sink.run().unwrap());
    assert!(report.socket_dropped > 0, "{report:?}");
    assert_eq!(report.received + report.socket_dropped, sent.interface_sent);
    assert_eq!(report.missing, Some(report.socket_dropped));
    assert!(report.faults(false).iter().any(|fault| fault.contains("not the gateway's")));
}

#[test]
fn a_peer_that_takes_no_redirected_frames_is_an_error_that_says_so() {
    let Some(wire) = Wire::new("a peer that takes no redirected frames is an error that says so") else { return };
    let error = wire.near(|| generate(&generating(stream(), 10_000, 100)).unwrap_err());
    assert!(error.to_string().contains("nothing came out"), "{error:#}");
}

#[test]
fn the_program_exits_1_when_something_is_wrong_and_0_when_not() {
    let Some(wire) = Wire::new("the program exits 1 when something is wrong and 0 when not") else { return };
    let bench = env!("CARGO_BIN_EXE_portcullis-bench");
    for (expected_source, exit) in [("10.0.0.0/24", 0), ("203.0.113.10", 1)] {
        let arguments = ["--json", "sink", "--interface", FAR, "--accept-redirected", "--expect-count", "1000", "--duration", "20"];
        let mut sink = wire.far(|| {
            let mut command = Command::new(bench);
            command
                .args(arguments)
                .args(["--expect-src", expected_source])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        // It says when it listens.
        let mut said = std::io::BufReader::new(sink.stderr.take().unwrap());
        std::io::BufRead::read_line(&mut said, &mut String::new()).unwrap();
        let sent = wire.near(|| {
            let stream =
                ["--dst-mac", "02:00:00:00:00:02", "--src", "10.0.0.2-10.0.0.11", "--dst", "198.51.100.2", "--flows", "10"];
            let pace = ["--json", "generate", "--interface", NEAR, "--rate", "50000", "--count", "1000"];
            Command::new(bench).args(pace).args(stream).output().unwrap()
        });
        assert_eq!(sent.status.code(), Some(0), "{}", String::from_utf8_lossy(&sent.stderr));
        let sent: serde_json::Value = serde_json::from_slice(&sent.stdout).unwrap();
        assert_eq!(sent["sent"], 1000);
        let output = sink.wait_with_output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["received"], output.status.code()), (&1000.into(), Some(exit)), "{report}");
    }
    let usage = Command::new(bench).args(["generate", "--interface", NEAR]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}
