//! Captures of what a gateway has sent, and tshark's verdict on their checksums.
//!
//! tcpdump takes what arrives at the gateway's neighbours, so that the partial checksums of the hosts themselves are not in it. tshark
//! computes each checksum from scratch and shares no code with Portcullis. Invariant: a file never grows beyond `MEGABYTES`, and goes
//! with its directory. Blind spots: what tcpdump missed, and what the file had no room for. Tests: below, and `e2e/wire.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::namespace::Namespace;
use super::program::{Program, Running, wait_until};
use crate::pcap;

/// The bound of a file; when it is full, it begins again. **Units:** millions of bytes.
const MEGABYTES: &str = "50";
/// What tshark checks, as it names the field that holds the verdict, of which 0 is bad: UDP-Lite is among UDP, and the header of the packet
/// that an ICMP error quotes among IPv4's.
const CHECKED: [&str; 5] = ["ip", "tcp", "udp", "dccp", "icmp"];
/// What it has to be told to check; ICMP it always does.
const TOLD: [&str; 5] = ["ip", "tcp", "udp", "udplite", "dccp"];

/// A capture that goes on until it is dropped.
#[derive(Debug)]
pub struct Capture {
    program: Option<Running>,
}

impl Capture {
    /// Begins to write what arrives at `device` of `host` into `file`.
    ///
    /// **Errors:** tcpdump did not begin to listen.
    pub fn start(host: &Namespace, device: &str, file: &Path) -> Result<Self> {
        let path = file.display().to_string();
        // Root, as Debian's tcpdump would write as a user of its own.
        let program = host.program("tcpdump", ["-i", device, "-Q", "in", "-Z", "root", "-C", MEGABYTES, "-W", "1", "-w", &path]);
        let program = program.start()?;
        ensure!(wait_until(Duration::from_secs(5), || program.printed().contains("listening on")), "{}", program.printed());
        Ok(Self { program: Some(program) })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(program) = self.program.take() {
            // It writes what it holds when it is asked to end.
            let _ = program.stop(Signal::SIGTERM, Duration::from_secs(5));
        }
    }
}

/// What tshark found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many packets it read.
    pub packets: usize,
    /// A line for each packet with a wrong checksum: the frame's number, which checksums, the packet in short.
    pub bad: Vec<String>,
}

/// Whether tshark is installed.
pub fn has_tshark() -> bool {
    Program::new("tshark", ["--version"]).run().is_ok_and(|output| output.ok())
}

/// Lets tshark compute every checksum in `file`, fragments put together first.
///
/// **Errors:** tshark failed.
pub fn judge(file: &Path) -> Result<Verdict> {
    let path = file.display().to_string();
    let checks: Vec<_> = TOLD.iter().map(|name| format!("{name}.check_checksum:TRUE")).collect();
    let fields: Vec<_> = CHECKED.iter().map(|name| format!("{name}.checksum.status")).collect();
    let mut arguments = vec!["-n", "-r", &path, "-T", "fields", "-e", "frame.number", "-e", "_ws.col.Info"];
    for check in &checks {
        arguments.extend(["-o", check]);
    }
    for field in &fields {
        arguments.extend(["-e", field]);
    }
    let output = Program::new("tshark", arguments).limit(Duration::from_mins(2)).run()?.success()?;
    let lines = output.stdout.lines();
    let bad = lines.clone().filter_map(complaint).collect();
    Ok(Verdict { packets: lines.count(), bad })
}

/// What is wrong with the packet of a line of tshark's: frame, short text, then a list of verdicts for each of [`CHECKED`].
///
/// Of an ICMP error the quoted transport's checksum is not judged: the packet is quoted as it came (RFC 5508, REQ-3), and over veth a
/// sender's is a partial one.
fn complaint(line: &str) -> Option<String> {
    let columns: Vec<_> = line.split('\t').collect();
    let &[ip, tcp, udp, dccp, icmp] = columns.get(2..)? else { return None };
    let judged = if icmp.is_empty() { [ip, tcp, udp, dccp, ""] } else { [ip, "", "", "", icmp] };
    let verdicts = CHECKED.iter().zip(judged);
    let wrong: Vec<_> = verdicts.filter(|(_, list)| list.split(',').any(|verdict| verdict == "0")).map(|(name, _)| *name).collect();
    (!wrong.is_empty()).then(|| format!("frame {}: {} checksum: {}", columns[0], wrong.join(" and "), columns[1]))
}

/// Copies a capture to where failures are kept, and gives its new place.
pub fn keep(file: &Path) -> Result<PathBuf> {
    let name = file.file_stem().context("a file without a name")?;
    let kept = pcap::failures().join(name).with_extension("pcap");
    fs::create_dir_all(pcap::failures())?;
    fs::copy(file, &kept).with_context(|| format!("keeping {}", file.display()))?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use portcullis_lab::builder::{Checksum, PacketBuilder, Query, SYN, endpoint};

    use super::super::skip;
    use super::*;
    use crate::pcap::{PcapWriter, Record};

    /// tshark's verdict on these frames.
    fn judged(name: &str, frames: &[Vec<u8>]) -> Option<Verdict> {
        if !has_tshark() {
            skip("tshark is not installed", name);
            return None;
        }
        let file = std::env::temp_dir().join(format!("portcullis-{}-{name}.pcap", std::process::id()));
        let mut writer = PcapWriter::new(fs::File::create(&file).expect("a file")).expect("writes");
        for frame in frames {
            writer.write(&Record { milliseconds: 0, bytes: frame.clone() }).expect("writes");
        }
        let verdict = judge(&file);
        fs::remove_file(&file).expect("removed");
        Some(verdict.expect("tshark judges"))
    }

    /// A packet of each kind; its transport checksum as told.
    fn packets(checksum: Checksum) -> Vec<PacketBuilder> {
        let (here, there) = (endpoint("10.0.0.2:5000"), endpoint("198.51.100.2:7"));
        vec![
            PacketBuilder::udp(here, there).payload(b"some bytes").checksum(checksum),
            PacketBuilder::tcp(here, there, SYN).checksum(checksum),
            PacketBuilder::query(here.address, there.address, Query::Echo, 7).payload(b"some bytes").checksum(checksum),
            PacketBuilder::udp_lite(here, there, 12).payload(b"some bytes").checksum(checksum),
            PacketBuilder::dccp(here, there, 1).payload(b"some bytes").checksum(checksum),
        ]
    }

    #[test]
    fn right_packets_are_right_their_fragments_too() {
        let mut frames: Vec<_> = packets(Checksum::Right).iter().map(PacketBuilder::build).collect();
        frames.extend(packets(Checksum::Right)[0].clone().payload_len(4000).fragments(1000));
        let Some(verdict) = judged("right_packets", &frames) else { return };
        assert_eq!(verdict, Verdict { packets: frames.len(), bad: vec![] });
    }

    #[test]
    fn a_quotation_may_have_whatever_transport_checksum_its_sender_left() {
        let [here, there] = ["10.0.0.1:0", "10.0.0.2:0"].map(|text| endpoint(text).address);
        let quotations = packets(Checksum::Partial).into_iter().take(2);
        let frames: Vec<_> =
            quotations.map(|packet| PacketBuilder::icmp_error(here, there, 3, 13, &packet.datagram()).build()).collect();
        let Some(verdict) = judged("quotations", &frames) else { return };
        assert_eq!(verdict, Verdict { packets: frames.len(), bad: vec![] });
    }

    #[test]
    fn each_spoiled_checksum_is_found_and_named() {
        let mut frames: Vec<_> = packets(Checksum::Wrong(1)).iter().map(PacketBuilder::build).collect();
        let mut spoiled_header = packets(Checksum::Right)[0].build();
        // The IPv4 header's checksum, after Ethernet's 14 bytes.
        spoiled_header[14 + 10] ^= 1;
        frames.push(spoiled_header);
        // The same within the quotation of an ICMP error, after another 20 + 8 bytes.
        let quoted = packets(Checksum::Right)[0].datagram();
        let [here, there] = ["10.0.0.2:0", "198.51.100.2:0"].map(|text| endpoint(text).address);
        let mut spoiled_quotation = quoted;
        spoiled_quotation[10] ^= 1;
        frames.push(PacketBuilder::icmp_error(there, here, 3, 3, &spoiled_quotation).build());
        frames.extend(packets(Checksum::Wrong(1))[0].clone().payload_len(4000).fragments(1000));
        let Some(verdict) = judged("spoiled_packets", &frames) else { return };
        let named: Vec<_> = verdict.bad.iter().map(|line| line.split(" checksum").next().unwrap_or_default()).collect();
        let last = format!("frame {}: udp", frames.len());
        let kinds = ["udp", "tcp", "icmp", "udp", "dccp", "ip", "ip"].into_iter().enumerate();
        let mut wanted: Vec<_> = kinds.map(|(at, kind)| format!("frame {}: {kind}", at + 1)).collect();
        wanted.push(last);
        assert_eq!(named, wanted, "{verdict:?}");
    }
}
