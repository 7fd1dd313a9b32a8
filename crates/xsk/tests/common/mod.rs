//! What the kernel tests share: namespaces with veth pairs, raw frames, and the gateway's two devices.
//!
//! Needs root. Every namespace is anonymous and ends with its test. Blind spot: veth only; no RSS, no zero-copy, one NUMA node.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use portcullis_xsk::{
    device::Device,
    steer::{Interface, Side, Steer},
};

/// How long a condition is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a test in a new network namespace on a thread of its own, or says loudly that it is skipped.
pub fn as_root(name: &str, test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED (needs root): {name}");
        eprintln!("SKIPPED (needs root): {name}");
        return;
    }
    let thread = thread::spawn(move || {
        let _gateway = Namespace::new();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace; the thread that makes it is in it.
pub struct Namespace(File);

impl Namespace {
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let namespace = Self::current();
        ip("link set lo up");
        namespace
    }

    pub fn current() -> Self {
        Self(File::open("/proc/thread-self/ns/net").unwrap())
    }

    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let back = Self::current();
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
        let result = work();
        setns(&back.0, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A device of the gateway with a host on the other end of the cable.
pub struct Link {
    pub device: Device,
    pub host: Namespace,
    pub host_mac: [u8; 6],
    pub host_device: String,
}

/// Makes a veth pair: `name` here with `address`, the other end in a namespace of its own with `host`.
pub fn link(name: &str, address: &str, host: &str) -> Link {
    let here = Namespace::current();
    let namespace = Namespace::new();
    setns(&here.0, CloneFlags::CLONE_NEWNET).unwrap();
    let peer = format!("{name}p");
    ip(&format!("link add {name} type veth peer name {peer} netns {}", namespace.path()));
    ip(&format!("addr add {address} dev {name}"));
    ip(&format!("link set {name} up"));
    let host_mac = namespace.enter(|| {
        ip(&format!("addr add {host} dev {peer}"));
        ip(&format!("link set {peer} up"));
        run("ethtool", &format!("-K {peer} tx off txvlan off gro on"));
        Device::by_name(&peer).unwrap().mac
    });
    run("ethtool", &format!("-K {name} rxvlan off"));
    Link { device: Device::by_name(name).unwrap(), host: namespace, host_mac, host_device: peer }
}

impl Link {
    pub fn interface(&self, slot: u32, side: Side) -> Interface {
        let ifindex = self.device.ifindex;
        Interface { ifindex, device: ifindex, slot, vlan: None, side, mac: self.device.mac, any_source: true }
    }

    /// A socket for raw frames on the host's end.
    pub fn wire(&self) -> Wire {
        self.host.enter(|| Wire::open(&self.host_device))
    }

    /// An Ethernet frame from the host to the gateway.
    pub fn frame(&self, packet: &[u8]) -> Vec<u8> {
        ethernet(self.device.mac, self.host_mac, None, packet)
    }
}

pub fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program in this thread's namespace; it has to succeed.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments}: {text}");
    text
}

/// Waits for a condition, but not for ever.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A packet socket on one device.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn open(device: &str) -> Self {
        let ifindex = Device::by_name(device).unwrap().ifindex;
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system calls; the address is a zeroed struct with its members set, passed with its size.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, i32::from(all));
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = ifindex.cast_signed();
            let bound = libc::bind(fd, (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32);
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
            Self(OwnedFd::from_raw_fd(fd))
        }
    }

    pub fn send(&self, frame: &[u8]) {
        let until = Instant::now() + PATIENCE;
        loop {
            match nix::unistd::write(self.0.as_fd(), frame) {
                Ok(_) => return,
                Err(nix::Error::ENOBUFS | nix::Error::EAGAIN) if Instant::now() < until => thread::yield_now(),
                Err(error) => panic!("cannot send: {error}"),
            }
        }
    }

    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = [0; 4096];
        nix::unistd::read(self.0.as_fd(), &mut buffer).ok().map(|len| buffer[..len].to_vec())
    }

    /// Waits for a frame that `wanted` likes; others are let go.
    pub fn expect(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut found = None;
        eventually(what, || {
            while let Some(frame) = self.receive() {
                if wanted(&frame) {
                    found = Some(frame);
                    return true;
                }
            }
            false
        });
        found.unwrap()
    }
}

pub fn ethernet(to: [u8; 6], from: [u8; 6], vlan: Option<u16>, packet: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    if let Some(id) = vlan {
        frame.extend([0x81, 0x00]);
        frame.extend(id.to_be_bytes());
    }
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame
}

/// An IPv4 packet; `fragment` is the flags-and-offset word.
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// Ports and a header's worth of nothing: enough for what the programs look at.
pub fn ports(from: u16, to: u16) -> Vec<u8> {
    let mut head = from.to_be_bytes().to_vec();
    head.extend(to.to_be_bytes());
    head.extend([0; 16]);
    head
}

/// A UDP datagram with no checksum.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = from.to_be_bytes().to_vec();
    datagram.extend(to.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// An ICMP message of 8 bytes and a payload, with its checksum.
pub fn icmp(kind: u8, code: u8, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 7, 0, 1];
    message.extend(payload);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

/// A program with both devices in its tables, any inside source translated.
pub fn steer_for(inside: &Link, outside: &Link) -> Steer {
    let mut steer = Steer::load().unwrap();
    steer.set_interfaces(&[inside.interface(0, Side::Inside), outside.interface(1, Side::Outside)]).unwrap();
    steer
}
