//! RFC 6888, "Common Requirements for Carrier-Grade NATs": those that a gateway without limits, logs and PCP can hold, each quoted.
//!
//! Not claimed: REQ-4 to REQ-6 (limits, destinations without translation), REQ-9 (PCP), REQ-10, REQ-11C,
//! REQ-12 and REQ-14 (management and logs).

use std::collections::BTreeSet;

use portcullis_nat::policy::{Filtering, PortHold, PortSet};
use portcullis_nat::verdict::{DropReason, Verdict};
use portcullis_testkit::builder::{PacketBuilder, Query, SYN};

mod common;

use common::{INSIDE, OUTSIDE, Setup, X1, X2, X3, at, e1, external, h1, h2, idle, seconds};

/// "REQ-2: A CGN MUST have a default "IP address pooling" behavior of "Paired"", of all protocols together.
#[test]
fn rfc6888_req2_udp_tcp_and_icmp_of_a_host_have_one_address() {
    let pool = vec![external(X1), external(X2), external(X3)];
    let mut gateway = Setup::new().policy(|policy| policy.externals = pool).build();
    for host in [h1(), h2(), at(h2(), 1)] {
        let udp = gateway.external_of(host, e1()).address;
        let tcp = gateway.inside(&PacketBuilder::tcp(host, e1(), SYN)).forwarded().source.address;
        let icmp = gateway.inside(&PacketBuilder::query(host.address, e1().address, Query::Echo, 9)).forwarded().source.address;
        assert_eq!((udp, tcp), (icmp, icmp));
    }
}

/// "REQ-3: [...] the CGN function MUST be configurable with contiguous or non-contiguous external IPv4 address ranges."
#[test]
fn rfc6888_req3_a_pool_needs_not_be_contiguous() {
    let few = |address| portcullis_nat::policy::External { ports: PortSet::range(5000, 5009), ..external(address) };
    let pool = vec![few(X1), few(X2), few(X3)];
    let mut gateway = Setup::new().policy(|policy| policy.externals = pool).build();
    let mut used = BTreeSet::new();
    // More hosts than ports, so that those of each worker are enough.
    for host in 2..=250 {
        let internal = portcullis_testkit::builder::endpoint(&format!("10.0.0.{host}:700"));
        let sent = gateway.inside(&PacketBuilder::udp(internal, e1()));
        if sent.verdict == Verdict::Transmit(OUTSIDE) {
            assert!(used.insert(sent.forwarded().source), "no external endpoint is given twice");
        } else {
            sent.answered(INSIDE, 3, 13);
        }
    }
    assert_eq!(used.len(), 30, "each of the 30 external endpoints is used");
    assert_eq!(used.iter().map(|external| external.address).collect::<BTreeSet<_>>(), BTreeSet::from([X1, X2, X3]));
}

fn with_hold(time: u64, most: u32, ports: PortSet) -> Setup {
    Setup::new().policy(|policy| {
        policy.filtering_udp = Filtering::EndpointIndependent;
        policy.filtering_tcp = Filtering::EndpointIndependent;
        policy.externals[0].ports = ports;
        policy.port_hold = PortHold { time: idle(time), most };
    })
}

/// "REQ-8: Once an external port is deallocated, it SHOULD NOT be reallocated to a new mapping until at least 120 seconds have passed". Until
/// then whoever finds no other is told so (REQ-11).
#[test]
fn rfc6888_req8_a_freed_port_rests_for_two_minutes() {
    let mut gateway = with_hold(120, 100, PortSet::range(5000, 5000)).build();
    gateway.external_of(h1(), e1());
    gateway.inside(&PacketBuilder::query(h1().address, e1().address, Query::Echo, 9)).forwarded();
    gateway.wait(seconds(300) + 1);
    gateway
        .outside(&PacketBuilder::udp(e1(), portcullis_nat::policy::Endpoint { address: X1, port: 5000 }))
        .is_dropped(DropReason::NoMapping);
    let refused = PacketBuilder::udp(h2(), e1());
    // The sweep takes up to four seconds to take it back.
    for _ in 0..119 {
        gateway.inside(&refused).answered(INSIDE, 3, 13);
        gateway.wait(seconds(1));
    }
    gateway.wait(seconds(7));
    assert_eq!(gateway.external_of(h2(), e1()).port, 5000);
    gateway.inside(&PacketBuilder::query(h2().address, e1().address, Query::Echo, 9)).forwarded();
}

/// REQ-8 A excepts TCP, if its sessions are tracked. And a hold of no time is none, which is the default.
#[test]
fn rfc6888_req8_tcp_ports_and_those_without_hold_do_not_rest() {
    let mut gateway = with_hold(120, 100, PortSet::range(5000, 5000)).build();
    gateway.external_of_tcp(h1(), e1());
    gateway.wait(seconds(245));
    gateway.external_of_tcp(h2(), e1());
    let mut gateway = with_hold(0, 100, PortSet::range(5000, 5000)).build();
    gateway.external_of(h1(), e1());
    gateway.wait(seconds(305));
    gateway.external_of(h2(), e1());
}

/// REQ-8 wants the time and the number of such ports to be configurable: beyond the number, the first that came back is free again. A reload
/// that wants none to rest frees them.
#[test]
fn rfc6888_req8_time_and_number_are_configurable() {
    // Counted by one worker: several have a part each of ports and of what may rest.
    let mut gateway = with_hold(60, 2, PortSet::range(5000, 5003)).workers(1).build();
    let mut open = |n: u16| {
        gateway.wait(seconds(10));
        gateway.external_of(at(h1(), 3000 + n), e1()).port
    };
    let first = [0, 1, 2, 3].map(&mut open);
    gateway.wait(seconds(305));
    let mut again = [gateway.external_of(at(h2(), 1), e1()).port, gateway.external_of(at(h2(), 2), e1()).port];
    again.sort_unstable();
    let mut oldest = [first[0], first[1]];
    oldest.sort_unstable();
    assert_eq!(again, oldest);
    gateway.inside(&PacketBuilder::udp(at(h2(), 3), e1())).answered(INSIDE, 3, 13);
    gateway.wait(seconds(61));
    gateway.external_of(at(h2(), 3), e1());

    let mut gateway = with_hold(120, 100, PortSet::range(5000, 5000)).workers(1).build();
    gateway.external_of(h1(), e1());
    gateway.wait(seconds(305));
    gateway.inside(&PacketBuilder::udp(h2(), e1())).answered(INSIDE, 3, 13);
    gateway.adopt(|policy| policy.port_hold.time = idle(0));
    gateway.wait(seconds(1));
    gateway.external_of(h2(), e1());
}

/// "REQ-11: When a CGN is unable to create a dynamic mapping due to resource constraints [...]: A. it MUST drop the original packet; B. it
/// SHOULD send an ICMP Destination Unreachable message with code 1 (Host Unreachable) to the sender"; RFC 5508 wants code 13.
#[test]
fn rfc6888_req11_exhaustion_drops_and_tells_the_sender_with_the_configured_code() {
    for code in [1, 13] {
        let mut gateway = Setup::new()
            .policy(|policy| {
                policy.externals[0].ports = PortSet::range(5000, 5000);
                policy.icmp_errors.exhausted_code = code;
            })
            .build();
        gateway.external_of(h1(), e1());
        let refused = PacketBuilder::udp(h2(), e1()).payload(b"first");
        let seen = gateway.inside(&refused).answered(INSIDE, 3, code);
        assert_eq!(seen.quoted().source, h2(), "nothing is translated");
        assert_eq!(gateway.dropped(DropReason::PortsExhausted), 1);
    }
}

/// "REQ-11 D. it MUST NOT delete existing mappings in order to "make room" for the new one."
#[test]
fn rfc6888_req11d_existing_mappings_outlive_exhaustion() {
    let ports = PortSet::range(5000, 5063);
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = ports).build();
    let (rival, room) = (gateway.rival_of(h1()), gateway.ports_for(h1(), X1).len() as u16);
    let externals: Vec<_> = (0..room).map(|n| gateway.external_of(at(h1(), 1000 + n), e1())).collect();
    for n in 0..200 {
        gateway.inside(&PacketBuilder::udp(at(rival, 1000 + n), e1())).answered(INSIDE, 3, 13);
    }
    for (n, external) in externals.into_iter().enumerate() {
        let seen = gateway.outside(&PacketBuilder::udp(e1(), external)).delivered();
        assert_eq!(seen.destination, at(h1(), 1000 + n as u16));
    }
}

/// "REQ-13: A CGN's port allocation scheme SHOULD maximize port utilization."
#[test]
fn rfc6888_req13_the_last_port_is_found() {
    let ports = PortSet::range(1024, 2047);
    let mut gateway = Setup::new().policy(|policy| policy.externals[0].ports = ports).build();
    let ports: BTreeSet<_> = gateway.ports_for(h1(), X1).into_iter().collect();
    let used: BTreeSet<_> = (0..ports.len() as u16).map(|n| gateway.external_of(at(h1(), 3000 + n), e1()).port).collect();
    assert_eq!(used, ports);
}

/// "REQ-15: A CGN's port allocation scheme SHOULD make it hard for attackers to guess port numbers."
#[test]
fn rfc6888_req15_ports_are_spread_over_the_range_and_follow_no_order() {
    let mut gateway = Setup::new().build();
    let ports: Vec<_> = (0..2000_u16).map(|n| gateway.external_of(at(h1(), 3000 + n), e1()).port).collect();
    let next = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 64).count();
    assert!(next < 20, "{next} of 2000 ports lie near the one before; 4 are expected of a fair draw");
    let mut sixteenths = [0_u32; 16];
    for port in &ports {
        sixteenths[usize::from((port - 1024) / 4032).min(15)] += 1;
    }
    assert!(sixteenths.iter().all(|&count| (80..180).contains(&count)), "about 125 in each sixteenth: {sixteenths:?}");
}

/// The same where the pool has a range, and where a worker has but its share of it: no port is drawn more often than its neighbours, and the
/// next one tells nothing.
#[test]
fn rfc6888_req15_ports_are_spread_over_a_range_and_over_each_workers_share_of_it() {
    for workers in [1, 2, 8] {
        let ports = PortSet::range(40_000, 48_191);
        let mut gateway = Setup::new().workers(workers).policy(|policy| policy.externals[0].ports = ports).build();
        let ports: Vec<_> = (0..512_u16).map(|n| gateway.external_of(at(h1(), 3000 + n), e1()).port).collect();
        let next = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 2).count();
        assert!(next < 20, "{workers} workers: {next} of 512 ports are within 2 of the one before");
        // How the workers' shares lie in the range is their owner function's: only what the one has is spread.
        let all = gateway.nat.owners();
        let own =
            (40_000..=48_191_u16).filter(|&port| all.of_external(X1, port) == all.of_external(X1, ports[0])).collect::<Vec<_>>();
        let sixteenth = |port: &u16| own.partition_point(|one| one < port) * 16 / own.len();
        let mut sixteenths = [0_u32; 16];
        for port in &ports {
            sixteenths[sixteenth(port)] += 1;
        }
        assert!(sixteenths.iter().all(|&count| (10..64).contains(&count)), "{workers} workers, about 32 in each: {sixteenths:?}");
    }
}
