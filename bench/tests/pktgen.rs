//! What counts pktgen's packets at a port, over a veth pair: it knows them from others, drops them, and sends them back when told to.
//!
//! Needs root; makes two network namespaces per test and removes them. The kernel's pktgen is not needed: a packet socket sends frames
//! with its mark.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use std::{fs, thread};

use portcullis_bench::pktgen::count::{Answer, Counted, Counter, Forbidden};

mod common;

use common::Wire;

/// Linux net/core/pktgen.c, PKTGEN_MAGIC.
const MAGIC: u32 = 0xbe9b_e955;
const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const POOL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 16);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// How long what was sent may take to be counted.
const PATIENCE: Duration = Duration::from_secs(5);

/// A frame as pktgen sends them, but for the checksums, at which nobody looks here.
fn frame(source: Ipv4Addr, destination: Ipv4Addr, mark: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 32, 17, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend([0x04, 0x00, 0x00, 0x09, 0, 26, 0, 0]);
    frame.extend(mark.to_be_bytes());
    frame.resize(60, 0);
    frame
}

/// What has been counted, once it comes to `packets` or a while has passed.
fn settled(counter: &Counter, packets: u64) -> Counted {
    let start = Instant::now();
    loop {
        let counted = counter.read().unwrap();
        if counted.packets >= packets || start.elapsed() >= PATIENCE {
            return counted;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn received(interface: &str) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':')).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn only_pktgens_packets_are_counted_and_those_not_translated_are_told_apart() {
    let Some(wire) = Wire::new("only pktgen's packets are counted") else { return };
    let forbidden = Forbidden { sources: Some("10.1.0.0/24".parse().unwrap()), destinations: Some(POOL.into()) };
    let counter = wire.far(|| Counter::attach("far", forbidden).unwrap());
    let other = frame(POOL, REMOTE, MAGIC + 1);
    let short = frame(POOL, REMOTE, MAGIC)[..44].to_vec();
    let (translated, source, destination) = (frame(POOL, REMOTE, MAGIC), frame(HOST, REMOTE, MAGIC), frame(REMOTE, POOL, MAGIC));
    let mut tcp = frame(POOL, REMOTE, MAGIC);
    tcp[23] = 6;
    wire.send(&[other, short, tcp, translated.clone(), source, destination, translated]);
    let counted = settled(&counter, 4);
    assert_eq!((counted.packets, counted.untranslated), (4, 2));
    assert_eq!(counted.queues.iter().sum::<u64>(), 4);
}

#[test]
fn packets_come_back_when_the_port_answers_and_do_not_otherwise() {
    let Some(wire) = Wire::new("packets come back when the port answers") else { return };
    let far = wire.far(|| Counter::attach("far", Forbidden::default()).unwrap());
    // What comes back has the pool's address as its destination: it was turned round.
    let near = wire.near(|| Counter::attach("near", Forbidden { sources: None, destinations: Some(POOL.into()) }).unwrap());
    let frames = vec![frame(POOL, REMOTE, MAGIC); 50];
    wire.send(&frames);
    assert_eq!(settled(&far, 50).packets, 50);
    assert_eq!(near.read().unwrap().packets, 0);
    far.set_answer(Answer::Yes).unwrap();
    wire.send(&frames);
    let back = settled(&near, 50);
    assert_eq!((back.packets, back.untranslated), (50, 50));
    far.set_answer(Answer::No).unwrap();
    wire.send(&frames);
    assert_eq!(settled(&far, 150).packets, 150);
    assert_eq!(near.read().unwrap().since(&back).packets, 0);
    let before = wire.near(|| received("near"));
    drop((far, near));
    wire.send(&frames);
    assert_eq!(wire.near(|| received("near")), before, "nothing comes back once the program is gone");
}

#[test]
fn a_port_is_counted_at_once_only_and_free_afterwards() {
    let Some(wire) = Wire::new("a port is counted at once only") else { return };
    wire.far(|| {
        let first = Counter::attach("far", Forbidden::default()).unwrap();
        let error = format!("{:#}", Counter::attach("far", Forbidden::default()).map(drop).unwrap_err());
        assert!(error.contains("port far") && error.contains("--count port"), "{error}");
        drop(first);
        Counter::attach("far", Forbidden::default()).unwrap();
        assert!(Counter::attach("no-such-if", Forbidden::default()).map(drop).unwrap_err().to_string().contains("no-such-if"));
    });
}
