//! What counts pktgen's packets at a port, over a veth pair: it knows them from others, drops them, and sends them back when told to.
//!
//! Needs root; makes two network namespaces per test and removes them. The kernel's pktgen is not needed: a packet socket sends frames
//! with its mark.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sched::{CloneFlags, setns};
use portcullis_bench::pktgen::count::{Answer, Counted, Counter, Forbidden};
use portcullis_bench::raw::Sender;

/// Linux net/core/pktgen.c, PKTGEN_MAGIC.
const MAGIC: u32 = 0xbe9b_e955;
const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const POOL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 16);
const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// How long what was sent may take to be counted.
const PATIENCE: Duration = Duration::from_secs(5);

/// Two namespaces with a veth between them, `near` and `far`. Removed when dropped.
struct Wire([String; 2]);

impl Wire {
    /// The wire, or `None` and a loud line without root.
    fn new(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED (needs root): {test}");
            return None;
        }
        let name = format!("pcp-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let wire = Self([format!("{name}-a"), format!("{name}-b")]);
        let [near, far] = &wire.0;
        for namespace in [near, far] {
            ip(&format!("netns add {namespace}"));
            within(namespace, || fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap());
        }
        ip(&format!("link add near netns {near} type veth peer name far netns {far}"));
        ip(&format!("-n {far} link set far up"));
        ip(&format!("-n {near} link set near up"));
        Some(wire)
    }

    fn near<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.0[0], work)
    }

    fn far<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.0[1], work)
    }

    fn send(&self, frames: &[Vec<u8>]) {
        self.near(|| {
            let sender = Sender::open("near").unwrap();
            for frame in frames {
                sender.send(frame).unwrap();
            }
        });
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for namespace in &self.0 {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Does `work` on a thread that has entered the namespace.
fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        let handle = fs::File::open(format!("/run/netns/{namespace}")).unwrap();
        setns(handle, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

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
