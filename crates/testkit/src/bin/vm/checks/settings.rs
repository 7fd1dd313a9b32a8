//! Whether the NICs are after the gateway as they were before: key, table, queues, hashed fields, offloads.
//!
//! Knows what ethtool prints; not what the gateway changes. Called through the list in `checks`. Invariant: the settings are not the
//! driver's defaults, so that a gateway that puts back defaults fails.

use anyhow::{Context, Result, ensure};
use portcullis_testkit::builder::PacketBuilder;

use super::{SEED, set_key};
use crate::lab::{BEHIND, Lab, Manner, NICS};
use crate::placement::{Key, Numbers, Rss};
use crate::traffic::Sender;

/// What ethtool shows of how a NIC spreads frames; key and table first.
const SPREAD: &[&str] = &["-x", "-l", "-n rx-flow-hash tcp4", "-n rx-flow-hash udp4"];
/// The offloads, some of which a gateway switches off. One that is killed leaves them so (docs/operations.md).
const OFFLOADS: &[&str] = &["-k"];

/// Frames that are sent to see whether a NIC spreads them.
const SPREAD_OVER: usize = 1000;
/// Interrupts of each queue meanwhile, at least. Chosen: 250 frames cause some dozens; a queue that gets only ARP has one or two.
const LEAST_INTERRUPTS: u64 = 5;

/// What ethtool prints.
struct Setting {
    command: String,
    shown: String,
}

/// A gateway that is told to end puts all back that it has set.
pub(super) fn put_back(lab: &mut Lab) -> Result<String> {
    let before = (prepare(lab)?, settings(lab, OFFLOADS)?);
    spread(lab).context("before the gateway")?;
    lab.start_gateway(Manner::SetUp)?;
    are_set_up(lab, &before.0)?;
    lab.stop_gateway()?;
    are(lab, SPREAD, &before.0)?;
    are(lab, OFFLOADS, &before.1)?;
    spread(lab)?;
    Ok("key, table, queues, hashed fields and offloads of both, and they spread frames".to_owned())
}

/// What one that was killed has left is put back by the next: not what that one found.
pub(super) fn put_back_after_kill(lab: &mut Lab) -> Result<String> {
    let before = prepare(lab)?;
    lab.start_gateway(Manner::SetUp)?;
    lab.kill_gateway()?;
    are_set_up(lab, &before)?;
    lab.start_gateway(Manner::SetUp)?;
    are_set_up(lab, &before)?;
    lab.stop_gateway()?;
    are(lab, SPREAD, &before)?;
    spread(lab)?;
    Ok("left by one that was killed, put back by the next".to_owned())
}

/// Gives both NICs a key and a table that nobody else would, and notes how they spread frames then.
fn prepare(lab: &mut Lab) -> Result<Vec<Setting>> {
    lab.stop_gateway()?;
    lab.stop_counting()?;
    let mut numbers = Numbers::new(SEED + 5);
    for (nic, _) in NICS {
        set_key(lab, nic, "weight 5 1 2 3 hkey", &Key::random(&mut numbers))?;
    }
    settings(lab, SPREAD)
}

/// What ethtool prints for those options, the NIC put in behind the first word: inside, then outside.
fn settings(lab: &mut Lab, options: &[&str]) -> Result<Vec<Setting>> {
    let command = |nic: &str, words: &str| match words.split_once(' ') {
        Some((option, more)) => format!("ethtool {option} {nic} {more}"),
        None => format!("ethtool {words} {nic}"),
    };
    let commands = NICS.iter().flat_map(|(nic, _)| options.iter().map(move |words| command(nic, words)));
    commands.map(|command| Ok(Setting { shown: lab.guest.expect(&command)?, command })).collect()
}

/// Wants the settings to be those.
fn are(lab: &mut Lab, options: &[&str], wanted: &[Setting]) -> Result<()> {
    for (now, wanted) in settings(lab, options)?.iter().zip(wanted) {
        let (was, is) = (&wanted.shown, &now.shown);
        ensure!(was == is, "{}: it was\n{was}\nand is now\n{is}\n{}", now.command, lab.gateway_log()?);
    }
    Ok(())
}

/// Wants both NICs to have another key and another table than before.
fn are_set_up(lab: &mut Lab, before: &[Setting]) -> Result<()> {
    for (now, before) in settings(lab, SPREAD)?.iter().zip(before).step_by(SPREAD.len()) {
        let (rss, before) = (Rss::from_ethtool(&now.shown)?, Rss::from_ethtool(&before.shown)?);
        ensure!(rss.key != before.key && rss.table != before.table, "{}: key and table are not the gateway's", now.command);
    }
    Ok(())
}

/// Wants both NICs to spread frames over all queues, which no setting that is read back proves.
///
/// Without an XDP program, as the gateway leaves them: virtio_net writes its settings anew when one is attached.
fn spread(lab: &mut Lab) -> Result<()> {
    for (nic, _) in NICS {
        let mut numbers = Numbers::new(SEED + 6);
        let (host, from, to) = if nic == NICS[0].0 { (&lab.inside, [10, 1], [198, 18]) } else { (&lab.outside, [198, 18], BEHIND) };
        let datagram = |_| PacketBuilder::udp(numbers.endpoint(from), numbers.endpoint(to)).datagram();
        let (datagrams, sender): (Vec<_>, _) = ((0..SPREAD_OVER).map(datagram).collect(), Sender::open(host)?);
        let before = lab.interrupts(nic)?;
        sender.send(&datagrams)?;
        lab.guest.expect("sleep 1")?;
        let grown: Vec<_> = lab.interrupts(nic)?.iter().zip(before).map(|(after, before)| after - before).collect();
        ensure!(grown.iter().all(|&interrupts| interrupts >= LEAST_INTERRUPTS), "interrupts of {nic} by queue: {grown:?}");
    }
    Ok(())
}
