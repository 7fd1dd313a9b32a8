//! Attaching, replacing and refusing programs, the egress guard, and frames given back to the kernel. Needs root.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use common::{Link, as_root, ethernet, eventually, icmp, ip, ipv4, link, run, steer_for, udp};
use libbpf_rs::libbpf_sys::{bpf_prog_test_run_opts, bpf_test_run_opts};
use portcullis_xsk::{
    abi::SteerCounter as Counter,
    device::Device,
    steer::{AttachMode, AttachWish, Class, External, Interface, Side, Steer, SteerError, detach_ours, remove_guard},
};

const INSIDE_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const OUTSIDE_HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn links() -> (Link, Link) {
    let pair = (link("in0", "10.0.0.1/24", "10.0.0.2/24"), link("out0", "192.0.2.1/24", "192.0.2.2/24"));
    pair.0.host.enter(|| ip("route add default via 10.0.0.1"));
    pair.1.host.enter(|| ip("route add default via 192.0.2.1"));
    pair
}

fn shown(device: &str) -> String {
    run("ip", &format!("-details link show dev {device}"))
}

#[test]
fn native_mode_is_granted_on_veth_and_detached_again() {
    as_root("native_mode_is_granted_on_veth_and_detached_again", || {
        let (inside, outside) = links();
        let mut steer = steer_for(&inside, &outside);
        let ifindex = inside.device.ifindex;
        assert_eq!(steer.attach("in0", ifindex, AttachWish::Best).unwrap(), AttachMode::Native);
        assert!(shown("in0").contains("xdp_steer") || shown("in0").contains("prog/xdp id"), "{}", shown("in0"));
        steer.detach("in0", ifindex).unwrap();
        assert!(!shown("in0").contains("xdp"), "{}", shown("in0"));
        steer.detach("in0", ifindex).unwrap();
    });
}

#[test]
fn a_device_without_native_mode_gets_the_generic_one() {
    as_root("a_device_without_native_mode_gets_the_generic_one", || {
        let device = Device::by_name("lo").unwrap();
        let mut steer = Steer::load().unwrap();
        let refused = steer.attach("lo", device.ifindex, AttachWish::Only(AttachMode::Native)).unwrap_err();
        assert!(refused.to_string().contains("lo: cannot attach the XDP program (native)"), "{refused}");
        assert_eq!(steer.attach("lo", device.ifindex, AttachWish::Best).unwrap(), AttachMode::Generic);
        assert!(shown("lo").contains("xdpgeneric"));
        steer.detach("lo", device.ifindex).unwrap();
        assert!(!shown("lo").contains("xdp"));
    });
}

#[test]
fn a_leftover_of_a_dead_process_is_replaced_in_either_mode() {
    as_root("a_leftover_of_a_dead_process_is_replaced_in_either_mode", || {
        let (inside, outside) = links();
        let ifindex = inside.device.ifindex;
        let modes = [AttachMode::Native, AttachMode::Generic];
        for before in modes {
            for after in modes {
                let mut dead = steer_for(&inside, &outside);
                dead.attach("in0", ifindex, AttachWish::Only(before)).unwrap();
                drop(dead);
                let left = shown("in0");
                assert!(left.contains("prog/xdp id"), "the program outlives its process: {left}");
                let mut steer = steer_for(&inside, &outside);
                assert_eq!(steer.attach("in0", ifindex, AttachWish::Only(after)).unwrap(), after);
                assert_ne!(shown("in0"), left, "{before:?} then {after:?}");
                inside.wire().send(&inside.frame(&ipv4(INSIDE_HOST, OUTSIDE_HOST, 17, 0, &udp(1, 2, &[]))));
                eventually("the new program counts", || steer.counter(Counter::DropNoSocket).unwrap() > 0);
                detach_ours("in0", ifindex).unwrap();
            }
        }
    });
}

#[test]
fn a_foreign_program_is_refused_by_name_and_left_alone() {
    as_root("a_foreign_program_is_refused_by_name_and_left_alone", || {
        let (inside, outside) = links();
        let object = std::env::temp_dir().join(format!("xsk-foreign-{}.o", std::process::id()));
        let source = object.with_extension("c");
        fs::write(&source, "__attribute__((section(\"xdp\"), used)) int somebody_else(void *c) { return 2; }\n").unwrap();
        run("clang", &format!("-O2 -target bpf -c {} -o {}", source.display(), object.display()));
        for mode in ["xdpdrv", "xdpgeneric"] {
            ip(&format!("link set dev in0 {mode} object {} section xdp", object.display()));
            let mut steer = steer_for(&inside, &outside);
            for wish in [AttachWish::Best, AttachWish::Only(AttachMode::Generic)] {
                let refused = steer.attach("in0", inside.device.ifindex, wish).unwrap_err();
                assert!(matches!(refused, SteerError::Foreign { .. }), "{refused}");
                let text = refused.to_string();
                assert!(text.contains("somebody_else") && text.contains("ip link set dev in0 xdp off"), "{text}");
            }
            steer.detach("in0", inside.device.ifindex).unwrap();
            assert!(shown("in0").contains("prog/xdp id"));
            ip(&format!("link set dev in0 {mode} off"));
        }
        for file in [object, source] {
            fs::remove_file(file).unwrap();
        }
    });
}

#[test]
fn an_mtu_too_large_for_the_driver_is_refused_with_the_largest_that_works() {
    as_root("an_mtu_too_large_for_the_driver_is_refused_with_the_largest_that_works", || {
        let (inside, outside) = links();
        let mut steer = steer_for(&inside, &outside);
        let set = |mtu: u32| {
            inside.host.enter(|| ip(&format!("link set in0p mtu {mtu}")));
            ip(&format!("link set in0 mtu {mtu}"));
        };
        set(9000);
        let refused = steer.attach("in0", inside.device.ifindex, AttachWish::Best).unwrap_err();
        let SteerError::MtuTooLarge { mtu: 9000, largest: Some(largest), .. } = refused else { panic!("{refused}") };
        set(largest + 1);
        assert!(steer.attach("in0", inside.device.ifindex, AttachWish::Best).is_err(), "{largest} is not the largest");
        set(largest);
        assert_eq!(steer.attach("in0", inside.device.ifindex, AttachWish::Best).unwrap(), AttachMode::Native);
    });
}

/// A new link loses what is sent before the kernel has seen its carrier, so what has to arrive is sent until it does.
fn reaches(what: &str, from: &Link, to: &Link, address: Ipv4Addr) {
    eventually(what, || crosses(from, to, address));
}

/// Whether one datagram from one host reaches the other within a short while.
fn crosses(from: &Link, to: &Link, address: Ipv4Addr) -> bool {
    // A fresh port: one that was closed may be in use for a moment more, by a program being started in another thread.
    let receiver = to.host.enter(|| UdpSocket::bind((address, 0)).unwrap());
    let port = receiver.local_addr().unwrap().port();
    receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let sender = from.host.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    sender.send_to(b"hello", (address, port)).unwrap();
    receiver.recv(&mut [0; 16]).is_ok()
}

fn forwarding() {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

#[test]
fn the_guard_stops_the_kernel_from_forwarding_between_the_sides_even_without_a_process() {
    as_root("the_guard_stops_the_kernel_from_forwarding_between_the_sides_even_without_a_process", || {
        let (inside, outside) = links();
        let other = link("in1", "10.1.0.1/24", "10.1.0.2/24");
        other.host.enter(|| ip("route add default via 10.1.0.1"));
        forwarding();
        let other_host = Ipv4Addr::new(10, 1, 0, 2);
        reaches("the kernel forwards without the guard", &inside, &outside, OUTSIDE_HOST);

        let mut steer = Steer::load().unwrap();
        let interfaces = [inside.interface(0, Side::Inside), other.interface(2, Side::Inside), outside.interface(1, Side::Outside)];
        steer.set_interfaces(&interfaces).unwrap();
        for link in [&inside, &other, &outside] {
            steer.attach_guard(&link.device.name, link.device.ifindex).unwrap();
        }
        assert!(!crosses(&inside, &outside, OUTSIDE_HOST), "outbound");
        assert!(!crosses(&outside, &inside, INSIDE_HOST), "inbound");
        assert!(steer.counter(Counter::GuardDropped).unwrap() >= 2);
        reaches("inside to inside is the kernel's", &inside, &other, other_host);
        run("ping", "-c 1 -W 2 192.0.2.2");
        inside.host.enter(|| run("ping", "-c 1 -W 2 10.0.0.1"));
        inside.host.enter(|| run("ping", "-c 1 -W 2 192.0.2.1"));

        drop(steer);
        assert!(!crosses(&inside, &outside, OUTSIDE_HOST), "outbound, the process gone");
        reaches("inside to inside, the process gone", &inside, &other, other_host);

        let mut steer = Steer::load().unwrap();
        steer.set_interfaces(&interfaces).unwrap();
        for link in [&inside, &other, &outside] {
            steer.attach_guard(&link.device.name, link.device.ifindex).unwrap();
            let filters = run("tc", &format!("filter show dev {} egress", link.device.name));
            assert_eq!(filters.matches("name guard_egress").count(), 1, "the leftover was replaced: {filters}");
        }
        assert!(!crosses(&inside, &outside, OUTSIDE_HOST));
        assert!(steer.counter(Counter::GuardDropped).unwrap() >= 1, "the new guard counts");

        for link in [&inside, &other, &outside] {
            remove_guard(&link.device.name, link.device.ifindex).unwrap();
            remove_guard(&link.device.name, link.device.ifindex).unwrap();
        }
        reaches("the guard is gone", &inside, &outside, OUTSIDE_HOST);
    });
}

#[test]
fn the_guard_judges_a_tagged_packet_by_its_vlan_and_not_by_the_device() {
    as_root("the_guard_judges_a_tagged_packet_by_its_vlan_and_not_by_the_device", || {
        let (inside, outside) = links();
        let mut steer = Steer::load().unwrap();
        // VLAN 5 on the outside device is inside, VLAN 6 outside, VLAN 7 is not configured.
        let tagged = |ifindex, vlan, side| Interface { ifindex, vlan: Some(vlan), side, ..outside.interface(1, side) };
        let untagged = [inside.interface(0, Side::Inside), outside.interface(1, Side::Outside)];
        let vlans = [tagged(105, 5, Side::Inside), tagged(106, 6, Side::Outside)];
        steer.set_interfaces(&[untagged, vlans].concat()).unwrap();
        let packet = ipv4(INSIDE_HOST, OUTSIDE_HOST, 17, 0, &udp(1, 2, &[0; 32]));
        let (from_inside, from_outside) = (inside.device.ifindex, outside.device.ifindex);
        let rows = [
            ("to outside, untagged", from_inside, None, 0x0800, true),
            ("to the inside VLAN", from_inside, Some(5), 0x0800, false),
            ("to the outside VLAN", from_inside, Some(6), 0x0800, true),
            ("to the outside VLAN with a priority", from_inside, Some(0xE006), 0x0800, true),
            ("to a VLAN that is not configured", from_inside, Some(7), 0x0800, false),
            ("from outside to outside", from_outside, None, 0x0800, false),
            ("from outside to the inside VLAN", from_outside, Some(5), 0x0800, true),
            ("from an interface that is not configured", 1, None, 0x0800, false),
            ("from the box itself", 0, None, 0x0800, false),
            ("IPv6", from_inside, None, 0x86DD, false),
            ("IPv6, tagged", from_inside, Some(6), 0x86DD, false),
        ];
        for (row, from, vlan, kind, dropped) in rows {
            let mut frame = ethernet([2; 6], outside.device.mac, vlan, &packet);
            let at = if vlan.is_some() { 16 } else { 12 };
            frame[at..at + 2].copy_from_slice(&u16::to_be_bytes(kind));
            let before = steer.counter(Counter::GuardDropped).unwrap();
            let verdict = run_guard(&steer, from, outside.device.ifindex, &frame);
            let counted = steer.counter(Counter::GuardDropped).unwrap() - before;
            let (shot, unspecified) = (2, u32::MAX);
            assert_eq!((verdict, counted), if dropped { (shot, 1) } else { (unspecified, 0) }, "{row}");
        }
    });
}

#[test]
fn the_guard_lets_cross_what_goes_between_hosts_and_exempt_destinations_and_nothing_else() {
    as_root("the_guard_lets_cross_what_goes_between_hosts_and_exempt_destinations_and_nothing_else", || {
        let (inside, outside) = links();
        let exempt = Ipv4Addr::new(198, 18, 0, 9);
        let (router, stranger) = (Ipv4Addr::new(203, 0, 113, 77), Ipv4Addr::new(172, 16, 0, 1));
        let prefix = |text: &str| text.parse().unwrap();
        let datagram = |from, to| ipv4(from, to, 17, 0, &udp(1, 2, &[0; 32]));
        let error = |kind, to, about: &[u8]| ipv4(router, to, 1, 0, &icmp(kind, 0, &about[..28]));
        let (out, back) = ((inside.device.ifindex, outside.device.ifindex), (outside.device.ifindex, inside.device.ifindex));
        // What crosses, where every source is translated, and where other ones are.
        let rows = [
            ("to it", out, datagram(INSIDE_HOST, exempt), [true, false]),
            ("from it", back, datagram(exempt, INSIDE_HOST), [true, false]),
            ("to another", out, datagram(INSIDE_HOST, OUTSIDE_HOST), [false; 2]),
            ("from another", back, datagram(OUTSIDE_HOST, INSIDE_HOST), [false; 2]),
            ("with a forged source", out, datagram(stranger, exempt), [false; 2]),
            ("to nobody inside", back, datagram(exempt, stranger), [false; 2]),
            ("an error about it", back, error(3, INSIDE_HOST, &datagram(INSIDE_HOST, exempt)), [true, false]),
            ("an error about another", back, error(3, INSIDE_HOST, &datagram(INSIDE_HOST, OUTSIDE_HOST)), [false; 2]),
            ("an error about another host's", back, error(11, INSIDE_HOST, &datagram(stranger, exempt)), [false; 2]),
            ("no error", back, error(8, INSIDE_HOST, &datagram(INSIDE_HOST, exempt)), [false; 2]),
        ];
        for (at, any_source) in [(0, true), (1, false)] {
            let mut steer = Steer::load().unwrap();
            let narrow = Interface { any_source, ..inside.interface(0, Side::Inside) };
            steer.set_interfaces(&[narrow, outside.interface(1, Side::Outside)]).unwrap();
            steer.set_kernel_prefixes(&[(prefix("10.0.0.0/24"), Class::Inside)]).unwrap();
            steer.set_inside_prefixes(&[prefix("10.99.0.0/24")]).unwrap();
            steer.set_exempt_prefixes(&[prefix("198.18.0.0/24")]).unwrap();
            for (row, (from, to), packet, crosses) in &rows {
                let frame = ethernet([2; 6], [4; 6], None, packet);
                let expected = if crosses[at] { u32::MAX } else { 2 };
                assert_eq!(run_guard(&steer, *from, *to, &frame), expected, "{row}, any source {any_source}");
            }
        }
    });
}

/// Runs the guard on a frame that came in on `from` and goes out on `to`.
fn run_guard(steer: &Steer, from: u32, to: u32, frame: &[u8]) -> u32 {
    // struct __sk_buff: ifindex at byte 40, ingress_ifindex at 36.
    let mut context = [0_u32; 48];
    context[9] = from;
    context[10] = to;
    let mut options = bpf_test_run_opts { sz: size_of::<bpf_test_run_opts>() as _, ..Default::default() };
    options.data_in = frame.as_ptr().cast();
    options.data_size_in = frame.len() as u32;
    options.ctx_in = context.as_mut_ptr().cast();
    options.ctx_size_in = size_of_val(&context) as u32;
    options.repeat = 1;
    // SAFETY: the pointers are to `frame` and `context` with their lengths; no output is asked for.
    let result = unsafe { bpf_prog_test_run_opts(steer.guard_program().as_raw_fd(), &raw mut options) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    options.retval
}

#[test]
fn a_foreign_filter_in_the_guards_place_is_refused() {
    as_root("a_foreign_filter_in_the_guards_place_is_refused", || {
        let (inside, outside) = links();
        let object = std::env::temp_dir().join(format!("xsk-filter-{}.o", std::process::id()));
        let source = object.with_extension("c");
        fs::write(&source, "__attribute__((section(\"tc\"), used)) int somebody_else(void *c) { return -1; }\n").unwrap();
        run("clang", &format!("-O2 -target bpf -c {} -o {}", source.display(), object.display()));
        run("tc", "qdisc add dev in0 clsact");
        run("tc", &format!("filter add dev in0 egress prio 1 handle 0x5043 bpf da obj {} sec tc", object.display()));
        let steer = steer_for(&inside, &outside);
        let refused = steer.attach_guard("in0", inside.device.ifindex).unwrap_err();
        assert!(refused.to_string().contains("somebody_else"), "{refused}");
        remove_guard("in0", inside.device.ifindex).unwrap();
        assert!(run("tc", "filter show dev in0 egress").contains("somebody_else"), "left alone");
        for file in [object, source] {
            fs::remove_file(file).unwrap();
        }
    });
}

/// A datagram to a port of the box, as a host would send it.
fn datagram_to_box(link: &Link, from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    link.frame(&ipv4(from, to, 17, 0, &udp(5555, port, b"punted")))
}

#[test]
fn a_punted_frame_reaches_the_kernels_sockets_in_both_modes() {
    as_root("a_punted_frame_reaches_the_kernels_sockets_in_both_modes", || {
        let (inside, outside) = links();
        let gateway_address = Ipv4Addr::new(192, 0, 2, 1);
        let listener = UdpSocket::bind((gateway_address, 9000)).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        for mode in [AttachMode::Native, AttachMode::Generic] {
            let mut steer = steer_for(&inside, &outside);
            // All that arrives for the address would be the NAT's: only the punted frame may get through.
            steer.set_externals(&[External { address: gateway_address, shared: None }]).unwrap();
            steer.set_kernel_prefixes(&[("192.0.2.1/32".parse().unwrap(), Class::Local)]).unwrap();
            steer.attach("out0", outside.device.ifindex, AttachWish::Only(mode)).unwrap();
            let punter = steer.punter().unwrap();
            let frame = datagram_to_box(&outside, OUTSIDE_HOST, gateway_address, 9000);
            punter.punt(outside.device.ifindex, &frame).unwrap();
            let mut buffer = [0; 64];
            let (len, from) = listener.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from.port()), (&b"punted"[..], 5555), "{mode:?}");
            let second_look = u64::from(mode == AttachMode::Generic);
            assert_eq!(steer.counter(Counter::PassPunted).unwrap(), second_look, "{mode:?}");

            outside.wire().send(&frame);
            eventually("the same frame from the wire is the NAT's", || steer.counter(Counter::DropNoSocket).unwrap() == 1);
            detach_ours("out0", outside.device.ifindex).unwrap();
        }
    });
}

#[test]
fn the_kernel_answers_a_punted_ping_and_refuses_what_is_no_frame() {
    as_root("the_kernel_answers_a_punted_ping_and_refuses_what_is_no_frame", || {
        let (inside, outside) = links();
        let mut steer = steer_for(&inside, &outside);
        steer.attach("out0", outside.device.ifindex, AttachWish::Best).unwrap();
        let punter = steer.punter().unwrap();
        let wire = outside.wire();
        let ping = outside.frame(&ipv4(OUTSIDE_HOST, Ipv4Addr::new(192, 0, 2, 1), 1, 0, &icmp(8, 0, b"are you there")));
        punter.punt(outside.device.ifindex, &ping).unwrap();
        wire.expect("an echo reply", |frame| frame.len() > 34 && frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 0);
        let large = outside.frame(&ipv4(OUTSIDE_HOST, Ipv4Addr::new(192, 0, 2, 1), 1, 0, &icmp(8, 0, &[7; 1472])));
        punter.punt(outside.device.ifindex, &large).unwrap();
        wire.expect("a large echo reply", |frame| frame.len() == large.len() && frame[23] == 1 && frame[34] == 0);
        assert!(punter.punt(outside.device.ifindex, &[]).is_err());
        assert!(punter.punt(outside.device.ifindex, &ping[..13]).is_err());
        assert!(punter.punt(outside.device.ifindex, &[0; 9000]).is_err());
        assert!(punter.punt(4711, &ping).is_err());
    });
}

#[test]
fn the_box_stays_reachable_while_the_program_runs_without_a_socket() {
    as_root("the_box_stays_reachable_while_the_program_runs_without_a_socket", || {
        let (inside, outside) = links();
        forwarding();
        let mut steer = steer_for(&inside, &outside);
        let local = |text: &str| (text.parse().unwrap(), Class::Local);
        steer.set_kernel_prefixes(&[local("10.0.0.1/32"), local("192.0.2.1/32")]).unwrap();
        for link in [&inside, &outside] {
            steer.attach(&link.device.name, link.device.ifindex, AttachWish::Best).unwrap();
            steer.attach_guard(&link.device.name, link.device.ifindex).unwrap();
        }
        drop(steer);
        inside.host.enter(|| run("ping", "-c 2 -i 0.2 -W 2 10.0.0.1"));
        outside.host.enter(|| run("ping", "-c 2 -i 0.2 -W 2 192.0.2.1"));
        assert!(!crosses(&inside, &outside, OUTSIDE_HOST), "failing closed");
        assert!(!crosses(&outside, &inside, INSIDE_HOST), "failing closed");
        for link in [&inside, &outside] {
            detach_ours(&link.device.name, link.device.ifindex).unwrap();
        }
        assert!(!crosses(&inside, &outside, OUTSIDE_HOST), "the guard holds when the program is gone, too");
    });
}

#[test]
fn a_device_tells_its_settings_and_hiding_offloads_are_put_back() {
    use portcullis_xsk::device::{DeviceError, offload, switch_off_hiding};
    as_root("a_device_tells_its_settings_and_hiding_offloads_are_put_back", || {
        ip("link add a0 numrxqueues 3 numtxqueues 3 mtu 1400 type veth peer name a1");
        let device = Device::by_name("a0").unwrap();
        assert_eq!((device.driver.as_str(), device.mtu, device.up), ("veth", 1400, false));
        assert_eq!(device.rx_queues(), 3);
        assert_eq!(Device::by_index(device.ifindex).unwrap(), device);
        assert_eq!(format!("{:02x?}", device.mac).len(), "[00, 00, 00, 00, 00, 00]".len());
        ip("link set a0 up");
        assert!(Device::by_name("a0").unwrap().up);

        assert_eq!(offload("a0", "rx-vlan-hw-parse").unwrap(), Some(true));
        let off = switch_off_hiding("a0").unwrap();
        assert!(off.switched_off().iter().any(|name| name == "rx-vlan-hw-parse"), "{off:?}");
        assert_eq!(offload("a0", "rx-vlan-hw-parse").unwrap(), Some(false));
        off.restore().unwrap();
        assert_eq!(offload("a0", "rx-vlan-hw-parse").unwrap(), Some(true));

        assert!(matches!(Device::by_name("nothere"), Err(DeviceError::Missing { .. })));
        assert!(matches!(Device::by_index(4711), Err(DeviceError::Missing { .. })));
        assert!(Device::by_name("a-name-longer-than-the-kernel-takes").is_err());
        let lo = Device::by_name("lo").unwrap();
        assert_eq!((lo.rx_queues(), lo.mac), (1, [0; 6]));
    });
}
