//! tshark's verdict on everything that the gateway has sent to either side since the first test: the last test of all, by its name.
//!
//! Captured on arrival at the gateway's neighbours ([`Capture`](portcullis_testkit::topology::capture::Capture)); that tshark finds what is
//! wrong is tested there. Alone, it sends traffic of its own. Blind spots: iperf3's measurement and the crafted packets, during which
//! nothing is captured; worlds in which a test has failed may lose their last packets.

use std::fs;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::{self, capture, say};

use crate::offloads::traffic;
use crate::world::{captures, contains, run_portcullis, usual};

/// Bad packets that are shown of each file.
const SHOWN: usize = 10;

#[test]
fn every_packet_that_the_gateway_sent_has_right_checksums() {
    if !capture::has_tshark() {
        topology::skip("tshark is not installed", "wire::every_packet_that_the_gateway_sent_has_right_checksums");
        return;
    }
    run_portcullis(usual(), |world| {
        traffic(world)?;
        // An error that quotes.
        contains(&world.client(0).run("traceroute -n -q 1 -w 2 -m 6 -U 198.51.100.2")?, "198.51.100.2")?;
        world.stop_watching_outside();
        let judged = judge_all();
        world.watch_outside()?;
        judged
    });
}

/// Judges each capture; removes the good, keeps the bad.
fn judge_all() -> Result<()> {
    let mut packets = 0;
    let mut complaints = Vec::new();
    let mut files: Vec<_> = fs::read_dir(captures()?)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    ensure!(files.len() >= 2, "no capture of each side: {files:?}");
    for file in files {
        let verdict = capture::judge(&file)?;
        packets += verdict.packets;
        if !verdict.bad.is_empty() {
            let kept = capture::keep(&file)?;
            let shown = verdict.bad.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
            complaints.push(format!("{} bad packets in {}, the first:\n{shown}", verdict.bad.len(), kept.display()));
        }
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    }
    say(&format!("    tshark has judged {packets} packets that the gateway sent"));
    ensure!(packets > 0, "nothing was captured");
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}
