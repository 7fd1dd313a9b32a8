//! Every rule of `xdp_steer`, as rows: a crafted frame, what becomes of it, and the one counter that moves.
//!
//! The program runs by `BPF_PROG_RUN`, so nothing is received; sockets are open, so that a redirect is one. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::{net::Ipv4Addr, os::fd::AsRawFd};

use common::{Link, as_root, ethernet, icmp, ipv4, link, ports, udp};
use libbpf_rs::libbpf_sys::{bpf_prog_test_run_opts, bpf_test_run_opts, xdp_md};
use portcullis_xsk::{
    abi::SteerCounter as Counter,
    socket::{Opened, Queue, open_all},
    steer::{Carrier, Class, External, Interface, Ports, SharedPorts, Side, Steer},
    umem::{SocketRings, UmemOptions},
};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;
const ESP: u8 = 50;
/// The highest number of all.
const LAST: u8 = 255;
const MORE: u16 = 0x2000;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 7);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
const DEDICATED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const SHARED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OTHER_SHARED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const VLAN: u16 = 100;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Drop = 1,
    Pass = 2,
    Redirect = 4,
}
use Action::{Drop, Pass, Redirect};

struct Gateway {
    inside: Link,
    outside: Link,
    steer: Steer,
    opened: Opened,
}

fn set_of(numbers: impl IntoIterator<Item = u16>) -> Box<Ports> {
    let mut ports = Box::new([0; 1024]);
    for port in numbers {
        ports[usize::from(port) / 64] |= 1 << (port % 64);
    }
    ports
}

/// The gateway of all rows: an inside device that translates 10.0.0.0/24, a VLAN on it that translates anything, an outside device.
fn gateway() -> Gateway {
    let inside = link("in0", "10.0.0.1/24", "10.0.0.2/24");
    let outside = link("out0", "203.0.113.1/24", "203.0.113.9/24");
    let options = UmemOptions { frames: 256, rings: SocketRings::even(64), ..UmemOptions::default() };
    let queues = ["in0", "out0"].map(|device| Queue { device: device.into(), queue: 0 });
    let opened = open_all(options, &queues).unwrap();
    let mut steer = Steer::load().unwrap();
    let narrow = Interface { any_source: false, ..inside.interface(0, Side::Inside) };
    let vlan = Interface { ifindex: 999, vlan: Some(VLAN), any_source: true, ..narrow };
    steer.set_interfaces(&[narrow, vlan, outside.interface(1, Side::Outside)]).unwrap();
    let net = |text: &str| text.parse().unwrap();
    steer.set_inside_prefixes(&[net("10.0.0.0/24")]).unwrap();
    let kernel = [
        (net("10.0.0.0/8"), Class::Inside),
        (net("10.0.0.1/32"), Class::Local),
        (net("10.0.0.255/32"), Class::Broadcast),
        (net("10.9.9.0/24"), Class::Translated),
        (net("203.0.113.1/32"), Class::Local),
        (net("203.0.113.255/32"), Class::Broadcast),
        (net("172.20.0.0/16"), Class::Elsewhere),
        (net("198.51.100.10/32"), Class::Local),
    ];
    steer.set_kernel_prefixes(&kernel).unwrap();
    let nat = || SharedPorts { tcp: set_of((1024..=2047).chain([8080, 65535])), udp: set_of([0, 63, 64, 5000]) };
    let other = SharedPorts { tcp: set_of([1]), udp: set_of([2]) };
    steer
        .set_externals(&[
            External { address: DEDICATED, shared: None },
            External { address: SHARED, shared: Some(nat()) },
            External { address: OTHER_SHARED, shared: Some(other) },
        ])
        .unwrap();
    for (slot, socket) in opened.sockets.iter().enumerate() {
        steer.set_socket(slot as u32, 0, socket.fd()).unwrap();
    }
    Gateway { inside, outside, steer, opened }
}

impl Gateway {
    fn finish(self) {
        self.opened.umem.retire();
    }

    fn run(&self, link: &Link, queue: u32, frame: &[u8]) -> u32 {
        self.run_and_look(link, queue, frame).0
    }

    /// The action, and the frame as it is then.
    fn run_and_look(&self, link: &Link, queue: u32, frame: &[u8]) -> (u32, Vec<u8>) {
        let (action, frame, _) = self.run_many(link, queue, frame, 1);
        (action, frame)
    }

    /// The last action, the frame as it is then, and what one run takes on average. **Units:** nanoseconds.
    fn run_many(&self, link: &Link, queue: u32, frame: &[u8], times: i32) -> (u32, Vec<u8>, u32) {
        let mut out = vec![0; 8192];
        let mut context = xdp_md {
            data_end: frame.len() as u32,
            ingress_ifindex: link.device.ifindex,
            rx_queue_index: queue,
            ..Default::default()
        };
        let mut options = bpf_test_run_opts { sz: size_of::<bpf_test_run_opts>() as _, ..Default::default() };
        options.data_in = frame.as_ptr().cast();
        options.data_size_in = frame.len() as u32;
        options.ctx_in = (&raw mut context).cast();
        options.ctx_size_in = size_of::<xdp_md>() as u32;
        options.data_out = out.as_mut_ptr().cast();
        options.data_size_out = out.len() as u32;
        options.repeat = times;
        // SAFETY: the pointers are to `frame`, `context` and `out` with their lengths.
        let result = unsafe { bpf_prog_test_run_opts(self.steer.program().as_raw_fd(), &raw mut options) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        out.truncate(options.data_size_out as usize);
        (options.retval, out, options.duration)
    }

    /// Runs one row: the action is as expected, and `counter` alone moves, by one.
    fn expect(&self, row: &str, link: &Link, frame: &[u8], action: Action, counter: Counter) {
        let before = self.steer.counters().unwrap();
        let verdict = self.run(link, 0, frame);
        let after = self.steer.counters().unwrap();
        let moved: Vec<_> = before.iter().zip(&after).filter(|(b, a)| a.1 != b.1).map(|(b, a)| (b.0, a.1 - b.1)).collect();
        assert_eq!(moved, [(counter, 1)], "{row}");
        assert_eq!(verdict, action as u32, "{row}");
    }

    fn inside(&self, row: &str, packet: &[u8], action: Action, counter: Counter) {
        self.expect(row, &self.inside, &self.inside.frame(packet), action, counter);
    }

    fn outside(&self, row: &str, packet: &[u8], action: Action, counter: Counter) {
        self.expect(row, &self.outside, &self.outside.frame(packet), action, counter);
    }
}

#[test]
fn outbound_packets_of_configured_sources_are_the_nats() {
    as_root("outbound_packets_of_configured_sources_are_the_nats", || {
        let gateway = gateway();
        let packet = |from, to| ipv4(from, to, UDP, 0, &ports(1000, 53));
        gateway.inside("to a remote", &packet(HOST, REMOTE), Redirect, Counter::Redirected);
        gateway.inside("a protocol of any kind", &ipv4(HOST, REMOTE, GRE, 0, &[0; 8]), Redirect, Counter::Redirected);
        gateway.inside("a later fragment", &ipv4(HOST, REMOTE, UDP, 5, &[0; 8]), Redirect, Counter::Redirected);
        gateway.inside("source not configured", &packet(STRANGER, REMOTE), Pass, Counter::PassPrefixNotConfigured);
        gateway.inside("to the box", &packet(HOST, Ipv4Addr::new(10, 0, 0, 1)), Pass, Counter::PassLocal);
        gateway.inside("to the subnet's broadcast", &packet(HOST, Ipv4Addr::new(10, 0, 0, 255)), Pass, Counter::PassBroadcast);
        gateway.inside("to another inside net", &packet(HOST, Ipv4Addr::new(10, 5, 0, 1)), Pass, Counter::PassInsideRoute);
        gateway.inside("to an exception in it", &packet(HOST, Ipv4Addr::new(10, 9, 9, 9)), Redirect, Counter::Redirected);
        gateway.inside("out of another interface", &packet(HOST, Ipv4Addr::new(172, 20, 1, 1)), Pass, Counter::PassElsewhereRoute);
        gateway.inside("multicast", &packet(HOST, Ipv4Addr::new(224, 0, 0, 251)), Pass, Counter::PassMulticast);
        gateway.inside("highest multicast", &packet(HOST, Ipv4Addr::new(239, 255, 255, 255)), Pass, Counter::PassMulticast);
        gateway.inside("limited broadcast", &packet(HOST, Ipv4Addr::BROADCAST), Pass, Counter::PassMulticast);
        gateway.inside("hairpin, dedicated", &packet(HOST, DEDICATED), Redirect, Counter::Redirected);
        let web = |port| ipv4(HOST, SHARED, TCP, 0, &ports(1000, port));
        gateway.inside("hairpin, shared, a forward", &web(8080), Redirect, Counter::Redirected);
        gateway.inside("shared, ssh of the box", &web(22), Pass, Counter::PassSharedPort);
        gateway.finish();
    });
}

#[test]
fn what_goes_to_an_exempt_destination_is_the_kernels() {
    as_root("what_goes_to_an_exempt_destination_is_the_kernels", || {
        let mut gateway = gateway();
        gateway.steer.set_exempt_prefixes(&["192.0.2.64/26".parse().unwrap(), "198.51.100.0/24".parse().unwrap()]).unwrap();
        let packet = |from, to| ipv4(from, to, UDP, 0, &ports(1000, 53));
        gateway.inside("of any protocol", &ipv4(HOST, REMOTE, GRE, 0, &[0; 8]), Pass, Counter::PassExempt);
        gateway.inside("a later fragment", &ipv4(HOST, REMOTE, UDP, 5, &[0; 8]), Pass, Counter::PassExempt);
        gateway.inside("beside it", &packet(HOST, Ipv4Addr::new(192, 0, 2, 63)), Redirect, Counter::Redirected);
        gateway.inside("source not configured", &packet(STRANGER, REMOTE), Pass, Counter::PassPrefixNotConfigured);
        gateway.inside("an external address is none", &packet(HOST, DEDICATED), Redirect, Counter::Redirected);
        gateway.outside("back to the host", &packet(REMOTE, HOST), Pass, Counter::PassNotExternal);
        gateway.outside("to an external address", &packet(REMOTE, DEDICATED), Redirect, Counter::Redirected);
        gateway.steer.set_exempt_prefixes(&[]).unwrap();
        gateway.inside("no longer", &packet(HOST, REMOTE), Redirect, Counter::Redirected);
        gateway.finish();
    });
}

#[test]
fn inbound_packets_are_the_nats_only_to_an_external_address() {
    as_root("inbound_packets_are_the_nats_only_to_an_external_address", || {
        let gateway = gateway();
        let to = |address| ipv4(REMOTE, address, UDP, 0, &ports(53, 4000));
        gateway.outside("dedicated", &to(DEDICATED), Redirect, Counter::Redirected);
        gateway.outside("dedicated, any protocol", &ipv4(REMOTE, DEDICATED, GRE, 0, &[0; 8]), Redirect, Counter::Redirected);
        gateway.outside("nobody's", &to(Ipv4Addr::new(198, 51, 100, 11)), Pass, Counter::PassNotExternal);
        gateway.outside("inside, untranslated", &to(HOST), Pass, Counter::PassNotExternal);
        gateway.outside("the box's inside address", &to(Ipv4Addr::new(10, 0, 0, 1)), Pass, Counter::PassLocal);
        gateway.outside("broadcast", &to(Ipv4Addr::new(203, 0, 113, 255)), Pass, Counter::PassBroadcast);
        gateway.outside("elsewhere", &to(Ipv4Addr::new(172, 20, 0, 1)), Pass, Counter::PassElsewhereRoute);
        gateway.finish();
    });
}

#[test]
fn a_shared_address_gives_the_nat_exactly_its_ports() {
    as_root("a_shared_address_gives_the_nat_exactly_its_ports", || {
        let gateway = gateway();
        let tcp = |port| ipv4(REMOTE, SHARED, TCP, 0, &ports(443, port));
        let datagram = |port| ipv4(REMOTE, SHARED, UDP, 0, &ports(53, port));
        for port in [1024, 1100, 2047, 8080, 65535] {
            gateway.outside(&format!("tcp {port}"), &tcp(port), Redirect, Counter::Redirected);
        }
        for port in [0, 22, 1023, 2048, 8079, 8081, 65534] {
            gateway.outside(&format!("tcp {port}"), &tcp(port), Pass, Counter::PassSharedPort);
        }
        for port in [0, 63, 64, 5000] {
            gateway.outside(&format!("udp {port}"), &datagram(port), Redirect, Counter::Redirected);
        }
        for port in [1, 62, 65, 1024, 8080] {
            gateway.outside(&format!("udp {port}"), &datagram(port), Pass, Counter::PassSharedPort);
        }
        let other = |protocol, port| ipv4(REMOTE, OTHER_SHARED, protocol, 0, &ports(1, port));
        gateway.outside("another slot, tcp", &other(TCP, 1), Redirect, Counter::Redirected);
        gateway.outside("another slot, tcp 1024", &other(TCP, 1024), Pass, Counter::PassSharedPort);
        gateway.outside("another slot, udp", &other(UDP, 2), Redirect, Counter::Redirected);
        gateway.outside("too short for ports", &ipv4(REMOTE, SHARED, TCP, 0, &[4, 0]), Pass, Counter::PassSharedPort);
        gateway.outside("gre", &ipv4(REMOTE, SHARED, GRE, 0, &[0; 8]), Pass, Counter::PassSharedProtocol);
        gateway.finish();
    });
}

#[test]
fn icmp_to_a_shared_address_goes_to_whoever_asked() {
    as_root("icmp_to_a_shared_address_goes_to_whoever_asked", || {
        let gateway = gateway();
        let message = |kind, payload: &[u8]| ipv4(REMOTE, SHARED, ICMP, 0, &icmp(kind, 0, payload));
        gateway.outside("echo reply", &message(0, &[]), Redirect, Counter::Redirected);
        gateway.outside("timestamp reply", &message(14, &[]), Redirect, Counter::Redirected);
        gateway.outside("echo request", &message(8, &[]), Pass, Counter::PassSharedIcmp);
        gateway.outside("redirect", &message(5, &ipv4(SHARED, REMOTE, TCP, 0, &ports(1024, 80))), Pass, Counter::PassSharedIcmp);
        for kind in [3, 4, 11, 12] {
            let about = |inner: &[u8]| message(kind, inner);
            let row = |text: &str| format!("type {kind} {text}");
            let tcp = |from| ipv4(SHARED, REMOTE, TCP, 0, &ports(from, 80));
            gateway.outside(&row("about the NAT's"), &about(&tcp(1024)), Redirect, Counter::Redirected);
            gateway.outside(&row("about the box's"), &about(&tcp(500)), Pass, Counter::PassSharedIcmp);
            let dns = ipv4(SHARED, REMOTE, UDP, 0, &udp(5000, 53, &[]));
            gateway.outside(&row("about udp"), &about(&dns), Redirect, Counter::Redirected);
            let cut = &tcp(1024)[..22];
            gateway.outside(&row("cut in the ports"), &about(cut), Pass, Counter::PassSharedIcmp);
            gateway.outside(&row("cut in the header"), &about(&cut[..19]), Pass, Counter::PassSharedIcmp);
            gateway.outside(&row("about nothing"), &about(&[]), Pass, Counter::PassSharedIcmp);
            let echo = ipv4(SHARED, REMOTE, ICMP, 0, &icmp(8, 0, &[]));
            gateway.outside(&row("about an echo request"), &about(&echo), Redirect, Counter::Redirected);
            let reply = ipv4(SHARED, REMOTE, ICMP, 0, &icmp(0, 0, &[]));
            gateway.outside(&row("about an echo reply"), &about(&reply), Pass, Counter::PassSharedIcmp);
            let later = ipv4(SHARED, REMOTE, TCP, 9, &ports(1024, 80));
            gateway.outside(&row("about a later fragment"), &about(&later), Pass, Counter::PassSharedIcmp);
            let dedicated = ipv4(DEDICATED, REMOTE, TCP, 0, &ports(9, 80));
            gateway.outside(&row("about a dedicated address"), &about(&dedicated), Redirect, Counter::Redirected);
            let stranger = ipv4(STRANGER, REMOTE, TCP, 0, &ports(1024, 80));
            gateway.outside(&row("about a stranger's"), &about(&stranger), Pass, Counter::PassSharedIcmp);
            let mut options = tcp(1024);
            options[0] = 0x46;
            options.splice(20..20, [1, 1, 1, 0]);
            gateway.outside(&row("about one with options"), &about(&options), Redirect, Counter::Redirected);
        }
        gateway.finish();
    });
}

#[test]
fn later_fragments_follow_the_first() {
    as_root("later_fragments_follow_the_first", || {
        let gateway = gateway();
        let first = |port| ipv4(REMOTE, SHARED, UDP, MORE, &udp(53, port, &[0; 8]));
        let later = ipv4(REMOTE, SHARED, UDP, 2, &[0; 16]);
        gateway.outside("unknown", &later, Redirect, Counter::Redirected);
        gateway.outside("the kernel's first", &first(53), Pass, Counter::PassSharedPort);
        gateway.outside("follows the kernel's", &later, Pass, Counter::PassSharedFragment);
        let elsewhere = ipv4(HOST, SHARED, UDP, 2, &[0; 16]);
        gateway.outside("of another source", &elsewhere, Redirect, Counter::Redirected);
        let tcp = ipv4(REMOTE, SHARED, TCP, 2, &[0; 16]);
        gateway.outside("of another protocol", &tcp, Redirect, Counter::Redirected);
        gateway.outside("the NAT's first, same identification", &first(5000), Redirect, Counter::Redirected);
        gateway.outside("follows the NAT's", &later, Redirect, Counter::Redirected);
        let ping = ipv4(REMOTE, SHARED, ICMP, MORE, &icmp(8, 0, &[0; 8]));
        gateway.outside("a large ping's first", &ping, Pass, Counter::PassSharedIcmp);
        gateway.outside("a large ping's rest", &ipv4(REMOTE, SHARED, ICMP, 2, &[0; 16]), Pass, Counter::PassSharedFragment);
        gateway.outside("gre's first", &ipv4(REMOTE, SHARED, GRE, MORE, &[0; 8]), Pass, Counter::PassSharedProtocol);
        gateway.outside("gre's rest", &ipv4(REMOTE, SHARED, GRE, 1, &[0; 8]), Pass, Counter::PassSharedFragment);
        gateway.finish();
    });
}

#[test]
fn protocols_that_are_translated_by_address_come_to_the_nat_from_outside() {
    as_root("protocols_that_are_translated_by_address_come_to_the_nat_from_outside", || {
        let mut gateway = gateway();
        gateway.steer.set_other_protocols(&[1 << GRE, 0, 0, 1 << 63]).unwrap();
        let packet = |protocol, fragment| ipv4(REMOTE, SHARED, protocol, fragment, &[0; 8]);
        for protocol in [GRE, LAST] {
            for fragment in [0, MORE, MORE | 5, 5] {
                let row = format!("protocol {protocol}, fragment word {fragment:#x}");
                gateway.outside(&row, &packet(protocol, fragment), Redirect, Counter::Redirected);
            }
            let from_inside = ipv4(HOST, SHARED, protocol, 0, &[0; 8]);
            gateway.inside("from inside it is the box's", &from_inside, Pass, Counter::PassSharedProtocol);
        }
        gateway.outside("dedicated", &ipv4(REMOTE, DEDICATED, ESP, 0, &[0; 8]), Redirect, Counter::Redirected);
        gateway.outside("another protocol", &packet(ESP, 0), Pass, Counter::PassSharedProtocol);
        gateway.outside("another protocol's first", &packet(ESP, MORE), Pass, Counter::PassSharedProtocol);
        gateway.outside("another protocol's rest", &packet(ESP, 5), Pass, Counter::PassSharedFragment);
        let about = |inner: &[u8]| ipv4(REMOTE, SHARED, ICMP, 0, &icmp(11, 0, inner));
        let sent = |protocol, fragment| ipv4(SHARED, REMOTE, protocol, fragment, &[0; 8]);
        gateway.outside("an error about one", &about(&sent(GRE, 0)), Redirect, Counter::Redirected);
        gateway.outside("about one's header alone", &about(&sent(GRE, 0)[..20]), Redirect, Counter::Redirected);
        gateway.outside("about a later fragment of one", &about(&sent(GRE, 5)), Redirect, Counter::Redirected);
        gateway.outside("about another protocol", &about(&sent(ESP, 0)), Pass, Counter::PassSharedIcmp);
        let stranger = ipv4(STRANGER, REMOTE, GRE, 0, &[0; 8]);
        gateway.outside("about a stranger's", &about(&stranger), Pass, Counter::PassSharedIcmp);
        let from_inside = ipv4(HOST, SHARED, ICMP, 0, &icmp(11, 0, &sent(GRE, 0)));
        gateway.inside("an error from inside", &from_inside, Pass, Counter::PassSharedIcmp);
        gateway.steer.set_other_protocols(&[1 << ESP, 0, 0, 0]).unwrap();
        gateway.outside("no longer", &packet(GRE, 0), Pass, Counter::PassSharedProtocol);
        gateway.outside("from now on", &packet(ESP, 0), Redirect, Counter::Redirected);
        gateway.finish();
    });
}

#[test]
fn what_is_not_ipv4_to_us_on_a_configured_interface_is_the_kernels() {
    as_root("what_is_not_ipv4_to_us_on_a_configured_interface_is_the_kernels", || {
        let gateway = gateway();
        let (ours, host) = (gateway.inside.device.mac, gateway.inside.host_mac);
        let packet = ipv4(STRANGER, REMOTE, UDP, 0, &ports(1, 2));
        let typed = |kind: u16| {
            let mut frame = ethernet(ours, host, None, &packet);
            frame[12..14].copy_from_slice(&kind.to_be_bytes());
            frame
        };
        let link = &gateway.inside;
        gateway.expect("arp", link, &typed(0x0806), Pass, Counter::PassNotIpv4);
        gateway.expect("ipv6", link, &typed(0x86DD), Pass, Counter::PassNotIpv4);
        gateway.expect("two tags", link, &typed(0x88A8), Pass, Counter::PassNotIpv4);
        gateway.expect(
            "tagged, translates anything",
            link,
            &ethernet(ours, host, Some(VLAN), &packet),
            Redirect,
            Counter::Redirected,
        );
        gateway.expect("with a priority", link, &ethernet(ours, host, Some(VLAN | 0xE000), &packet), Redirect, Counter::Redirected);
        let unknown = ethernet(ours, host, Some(VLAN + 1), &packet);
        gateway.expect("another tag", link, &unknown, Pass, Counter::PassUnknownInterface);
        gateway.expect("the tag on the other device", &gateway.outside, &unknown, Pass, Counter::PassUnknownInterface);
        let priority = ethernet(ours, host, Some(0xA000), &ipv4(HOST, REMOTE, UDP, 0, &ports(1, 2)));
        gateway.expect("a priority without a VLAN", link, &priority, Redirect, Counter::Redirected);
        gateway.expect("cut in the tag", link, &unknown[..17], Pass, Counter::PassTooShort);
        gateway.expect("to another host", link, &ethernet([2; 6], host, None, &packet), Pass, Counter::PassOtherHost);
        let mut near = ours;
        near[5] ^= 1;
        gateway.expect("to a like host", link, &ethernet(near, host, None, &packet), Pass, Counter::PassOtherHost);
        gateway.expect("broadcast frame", link, &ethernet([0xFF; 6], host, None, &packet), Pass, Counter::PassMulticast);
        gateway.expect(
            "multicast frame",
            link,
            &ethernet([1, 0, 0x5E, 0, 0, 1], host, None, &packet),
            Pass,
            Counter::PassMulticast,
        );
        gateway.finish();
    });
}

#[test]
fn ipv4_headers_that_lie_are_dropped() {
    as_root("ipv4_headers_that_lie_are_dropped", || {
        let gateway = gateway();
        let good = ipv4(HOST, REMOTE, UDP, 0, &ports(1, 2));
        let with = |position: usize, byte: u8| {
            let mut packet = good.clone();
            packet[position] = byte;
            packet
        };
        let dropped = |row: &str, packet: &[u8]| gateway.inside(row, packet, Drop, Counter::DropBadIpHeader);
        dropped("version 6", &with(0, 0x65));
        dropped("header of 16 bytes", &with(0, 0x44));
        dropped("header longer than the packet", &with(0, 0x4F));
        dropped("total shorter than the header", &with(3, 19));
        dropped("total longer than the frame", &with(3, good.len() as u8 + 1));
        dropped("total of 65535", &[&good[..2], &[0xFF, 0xFF], &good[4..]].concat());
        for len in 0..20 {
            dropped(&format!("cut to {len} bytes"), &good[..len]);
        }
        gateway.inside("padded", &[good.clone(), vec![0; 6]].concat(), Redirect, Counter::Redirected);
        gateway.finish();
    });
}

#[test]
fn without_a_socket_the_nats_packets_are_dropped_and_the_kernels_still_pass() {
    as_root("without_a_socket_the_nats_packets_are_dropped_and_the_kernels_still_pass", || {
        let gateway = gateway();
        let packet = ipv4(HOST, REMOTE, UDP, 0, &ports(1, 2));
        gateway.inside("served", &packet, Redirect, Counter::Redirected);
        gateway.steer.clear_socket(0, 0).unwrap();
        gateway.inside("not served", &packet, Drop, Counter::DropNoSocket);
        gateway.inside("the kernel's", &ipv4(HOST, Ipv4Addr::new(10, 0, 0, 1), TCP, 0, &ports(1, 22)), Pass, Counter::PassLocal);
        gateway.outside("the other device", &ipv4(REMOTE, DEDICATED, UDP, 0, &ports(1, 2)), Redirect, Counter::Redirected);
        gateway.steer.clear_socket(0, 0).unwrap();
        gateway.finish();
    });
}

#[test]
fn tables_follow_what_they_are_set_to() {
    as_root("tables_follow_what_they_are_set_to", || {
        let mut gateway = gateway();
        let inbound = |to| ipv4(REMOTE, to, TCP, 0, &ports(1, 1024));
        let outbound = ipv4(HOST, REMOTE, UDP, 0, &ports(1, 2));
        let ports = |tcp: &[u16]| SharedPorts { tcp: set_of(tcp.iter().copied()), udp: set_of([]) };
        let shared = |address, tcp: &[u16]| External { address, shared: Some(ports(tcp)) };

        gateway.steer.set_externals(&[shared(OTHER_SHARED, &[1024]), shared(DEDICATED, &[])]).unwrap();
        gateway.outside("gone", &inbound(SHARED), Pass, Counter::PassLocal);
        gateway.outside("ports changed", &inbound(OTHER_SHARED), Redirect, Counter::Redirected);
        gateway.outside("dedicated became shared", &inbound(DEDICATED), Pass, Counter::PassSharedPort);
        gateway.steer.set_externals(&[External { address: DEDICATED, shared: None }]).unwrap();
        gateway.outside("and dedicated again", &inbound(DEDICATED), Redirect, Counter::Redirected);

        gateway.steer.set_inside_prefixes(&["192.168.0.0/16".parse().unwrap()]).unwrap();
        gateway.inside("prefix gone", &outbound, Pass, Counter::PassPrefixNotConfigured);
        let stranger = ipv4(STRANGER, REMOTE, UDP, 0, &[0; 8]);
        gateway.inside("prefix new", &stranger, Redirect, Counter::Redirected);
        gateway.inside(
            "beside it",
            &ipv4(Ipv4Addr::new(192, 169, 0, 1), REMOTE, UDP, 0, &[0; 8]),
            Pass,
            Counter::PassPrefixNotConfigured,
        );
        gateway.steer.set_inside_prefixes(&["192.168.255.255/32".parse().unwrap()]).unwrap();
        gateway.inside("prefix smaller", &stranger, Pass, Counter::PassPrefixNotConfigured);
        gateway.steer.set_inside_prefixes(&["192.0.0.0/8".parse().unwrap()]).unwrap();
        gateway.inside("prefix larger", &stranger, Redirect, Counter::Redirected);

        gateway.steer.set_kernel_prefixes(&[("192.0.2.0/24".parse().unwrap(), Class::Local)]).unwrap();
        gateway.inside("a local prefix", &ipv4(STRANGER, REMOTE, UDP, 0, &[0; 8]), Pass, Counter::PassLocal);
        gateway.inside("one gone", &ipv4(STRANGER, Ipv4Addr::new(10, 0, 0, 1), UDP, 0, &[0; 8]), Redirect, Counter::Redirected);

        let interface = gateway.inside.interface(0, Side::Inside);
        gateway.steer.set_interfaces(&[interface]).unwrap();
        gateway.outside("interface gone", &inbound(DEDICATED), Pass, Counter::PassUnknownInterface);
        gateway.steer.set_kernel_prefixes(&[]).unwrap();
        gateway.inside("any source now", &outbound, Redirect, Counter::Redirected);
        gateway.finish();
    });
}

#[test]
fn what_does_not_fit_the_tables_is_refused_and_changes_nothing() {
    as_root("what_does_not_fit_the_tables_is_refused_and_changes_nothing", || {
        let mut gateway = gateway();
        let many: Vec<_> = (0..33)
            .map(|number| External {
                address: Ipv4Addr::from(number),
                shared: Some(SharedPorts { tcp: set_of([]), udp: set_of([]) }),
            })
            .collect();
        assert!(gateway.steer.set_externals(&many).is_err(), "more shared addresses than slots");
        let packet = ipv4(REMOTE, DEDICATED, UDP, 0, &ports(1, 2));
        gateway.outside("the old table still holds", &packet, Redirect, Counter::Redirected);
        assert!(gateway.steer.set_socket(32, 0, gateway.opened.sockets[0].fd()).is_err());
        assert!(gateway.steer.set_socket(0, 128, gateway.opened.sockets[0].fd()).is_err());
        gateway.finish();
    });
}

/// The frame behind its carrying head, which is checked: link header, IPv4, UDP, cookie.
fn carried(sent: &[u8], link: usize, got: &[u8], carrier: &Carrier) -> Vec<u8> {
    assert_eq!(got[..link], sent[..link], "the same link header");
    let (ip, rest) = got[link..].split_at(20);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    assert_eq!((sum & 0xFFFF) + (sum >> 16), 0xFFFF, "its header checksum is right: {ip:02x?}");
    assert_eq!((ip[0], ip[9], usize::from(u16::from_be_bytes([ip[2], ip[3]]))), (0x45, UDP, got.len() - link));
    assert_eq!((&ip[12..16], &ip[16..20]), (&sent[link + 12..link + 16], &carrier.address.octets()[..]));
    assert_eq!(rest[2..4], carrier.port.to_be_bytes());
    assert_eq!(usize::from(u16::from_be_bytes([rest[4], rest[5]])), rest.len());
    assert_eq!(rest[6..8], [0, 0], "no checksum");
    assert_eq!(rest[8..16], carrier.cookie);
    rest[16..].to_vec()
}

#[test]
fn one_frame_of_a_queue_is_carried_to_the_process_whole_and_the_next_is_redirected() {
    as_root("one_frame_of_a_queue_is_carried_to_the_process_whole_and_the_next_is_redirected", || {
        let gateway = gateway();
        let carrier = Carrier { address: Ipv4Addr::new(10, 0, 0, 1), port: 40_000, cookie: *b"\x01cookie\xFF" };
        let packet = ipv4(HOST, REMOTE, UDP, 0, &udp(1000, 53, &[7; 64]));
        let plain = gateway.inside.frame(&packet);
        let tagged = ethernet(gateway.inside.device.mac, gateway.inside.host_mac, Some(VLAN), &packet);
        let passed = |row: &str, frame: &[u8], action, counter| gateway.expect(row, &gateway.inside, frame, action, counter);
        for (row, frame, link) in [("plain", &plain, 14), ("tagged", &tagged, 18)] {
            gateway.steer.carry_next(0, 0, &carrier).unwrap();
            assert!(gateway.steer.is_to_carry(0, 0).unwrap(), "{row}");
            gateway.outside("another device", &ipv4(REMOTE, DEDICATED, UDP, 0, &ports(1, 2)), Redirect, Counter::Redirected);
            let kernels = gateway.inside.frame(&ipv4(HOST, Ipv4Addr::new(10, 0, 0, 1), TCP, 0, &ports(1, 22)));
            passed("what is the kernel's", &kernels, Pass, Counter::PassLocal);
            let before = gateway.steer.counter(Counter::PassCarried).unwrap();
            let (verdict, got) = gateway.run_and_look(&gateway.inside, 0, frame);
            assert_eq!(verdict, Pass as u32, "{row}");
            assert!(!gateway.steer.is_to_carry(0, 0).unwrap(), "{row}");
            assert_eq!(gateway.steer.counter(Counter::PassCarried).unwrap() - before, 1, "{row}");
            assert_eq!(carried(frame, link, &got, &carrier), *frame, "{row}");
            passed("the next", frame, Redirect, Counter::Redirected);
        }
        gateway.steer.carry_next(0, 0, &carrier).unwrap();
        gateway.steer.carry_none(0, 0).unwrap();
        passed("none any more", &plain, Redirect, Counter::Redirected);
        assert!(gateway.steer.carry_next(0, 128, &carrier).is_err(), "no such queue");
        gateway.finish();
    });
}

/// What stands for a table and spares a look at it has to follow every change.
#[test]
fn what_a_table_says_of_a_new_destination_is_asked_at_once_and_no_longer_than_it_says_it() {
    as_root("what_a_table_says_of_a_new_destination_is_asked_at_once_and_no_longer_than_it_says_it", || {
        let mut gateway = gateway();
        let net = |text: &str| text.parse().unwrap();
        let far = Ipv4Addr::new(100, 64, 9, 9);
        let packet = |to| ipv4(HOST, to, UDP, 0, &ports(1000, 53));
        gateway.inside("nothing of it", &packet(far), Redirect, Counter::Redirected);
        gateway.steer.set_kernel_prefixes(&[(net("100.64.0.0/10"), Class::Elsewhere)]).unwrap();
        gateway.inside("a wide prefix", &packet(far), Pass, Counter::PassElsewhereRoute);
        gateway.steer.set_kernel_prefixes(&[(net("100.64.9.9/32"), Class::Local)]).unwrap();
        gateway.inside("an address", &packet(far), Pass, Counter::PassLocal);
        gateway.inside("the one beside it", &packet(Ipv4Addr::new(100, 64, 9, 8)), Redirect, Counter::Redirected);
        gateway.steer.set_kernel_prefixes(&[]).unwrap();
        gateway.steer.set_exempt_prefixes(&[net("100.64.9.0/24")]).unwrap();
        gateway.inside("exempt", &packet(far), Pass, Counter::PassExempt);
        gateway.steer.set_exempt_prefixes(&[net("0.0.0.0/0")]).unwrap();
        gateway.inside("all exempt", &packet(REMOTE), Pass, Counter::PassExempt);
        gateway.steer.set_exempt_prefixes(&[]).unwrap();
        gateway.inside("no more", &packet(far), Redirect, Counter::Redirected);
        gateway.steer.set_externals(&[External { address: far, shared: None }]).unwrap();
        gateway.outside("external", &ipv4(REMOTE, far, UDP, 0, &ports(53, 1)), Redirect, Counter::Redirected);
        gateway.outside("external no more", &ipv4(REMOTE, DEDICATED, UDP, 0, &ports(53, 1)), Pass, Counter::PassNotExternal);
        gateway.steer.set_externals(&[]).unwrap();
        gateway.outside("nobody's", &ipv4(REMOTE, far, UDP, 0, &ports(53, 1)), Pass, Counter::PassNotExternal);
        gateway.finish();
    });
}

#[test]
fn external_addresses_that_share_a_place_are_all_found_and_change_what_they_are() {
    as_root("external_addresses_that_share_a_place_are_all_found_and_change_what_they_are", || {
        let mut gateway = gateway();
        // Alike in their last twelve bits.
        let all = [0, 16, 32, 48].map(|third| Ipv4Addr::new(198, 18, third, 7));
        let only = |port| Some(SharedPorts { tcp: set_of([]), udp: set_of([port]) });
        let to = |address, port| ipv4(REMOTE, address, UDP, 0, &ports(53, port));
        let set = |gateway: &mut Gateway, of: &dyn Fn(usize) -> Option<SharedPorts>, range: std::ops::Range<usize>| {
            let externals: Vec<_> = range.map(|number| External { address: all[number], shared: of(number) }).collect();
            gateway.steer.set_externals(&externals).unwrap();
        };
        set(&mut gateway, &|_| None, 0..4);
        for address in all {
            gateway.outside("dedicated", &to(address, 9), Redirect, Counter::Redirected);
        }
        set(&mut gateway, &|number| only(number as u16), 0..4);
        for (number, address) in (0..).zip(all) {
            gateway.outside("its port", &to(address, number), Redirect, Counter::Redirected);
            gateway.outside("another's port", &to(address, (number + 1) % 4), Pass, Counter::PassSharedPort);
        }
        set(&mut gateway, &|number| only(number as u16 + 10), 1..4);
        gateway.outside("gone", &to(all[0], 0), Pass, Counter::PassNotExternal);
        for (number, address) in (11..).zip(&all[1..]) {
            gateway.outside("its new port", &to(*address, number), Redirect, Counter::Redirected);
            gateway.outside("its old port", &to(*address, number - 10), Pass, Counter::PassSharedPort);
        }
        set(&mut gateway, &|_| None, 0..1);
        gateway.outside("back", &to(all[0], 77), Redirect, Counter::Redirected);
        gateway.outside("gone with the others", &to(all[1], 11), Pass, Counter::PassNotExternal);
        gateway.finish();
    });
}

/// What the program takes for a packet, with what running it over and over takes (`cargo test -p portcullis-xsk --test steer_rules -- --ignored
/// --nocapture`): figures for docs/performance.md. Judged is only that each packet ends as it should.
#[test]
#[ignore = "a measurement"]
fn how_long_the_program_takes() {
    as_root("how_long_the_program_takes", || {
        const TIMES: i32 = 2_000_000;
        let mut gateway = gateway();
        let any = Interface { any_source: true, ..gateway.inside.interface(0, Side::Inside) };
        let outside = gateway.outside.interface(1, Side::Outside);
        let outbound = gateway.inside.frame(&ipv4(HOST, Ipv4Addr::new(8, 8, 8, 8), UDP, 0, &ports(1000, 53)));
        let inbound = gateway.outside.frame(&ipv4(REMOTE, DEDICATED, UDP, 0, &ports(53, 4000)));
        let arp = vec![0xFF; 64];
        let listed = gateway.inside.interface(0, Side::Inside);
        for (name, link, frame, action, (inside, prefix)) in [
            ("outbound, any source", &gateway.inside, &outbound, Redirect, (any, "10.0.0.0/24")),
            ("outbound, prefix of 16 bits or fewer", &gateway.inside, &outbound, Redirect, (listed, "10.0.0.0/12")),
            ("outbound, longer prefix", &gateway.inside, &outbound, Redirect, (listed, "10.0.0.0/24")),
            ("inbound", &gateway.outside, &inbound, Redirect, (any, "10.0.0.0/24")),
            ("no IPv4", &gateway.inside, &arp, Pass, (any, "10.0.0.0/24")),
        ] {
            gateway.steer.set_interfaces(&[inside, outside]).unwrap();
            gateway.steer.set_inside_prefixes(&[prefix.parse().unwrap()]).unwrap();
            let runs = (0..5).map(|_| {
                let (ended, _, time) = gateway.run_many(link, 0, frame, TIMES);
                assert_eq!(ended, action as u32, "{name}");
                time
            });
            println!("{name}: {} ns", runs.min().unwrap_or_default());
        }
        gateway.finish();
    });
}
