//! What `doctor` says of one device: driver, modes, queues, steering, offloads, sizes, polling, interrupts.
//!
//! Pure: facts in, findings out. Sources: docs/operations.md has what each means; drivers' habits are in docs/steering.md.

use portcullis_xsk::nic::{Channels, Readings, Xdp};
use portcullis_xsk::umem::FrameBytes;

use super::facts::{DeviceFacts, Facts};
use super::mend::Mend;
use super::{Finding, Grade, finding};

/// Drivers whose queues are no NIC's: nothing interrupts, and the kernel cannot be asked to poll them.
const VIRTUAL: [&str; 2] = ["veth", "tun"];

/// Empty polls before interrupts, and the pause between polls in nanoseconds, that preferred busy polling wants.
/// **Source:** the kernel's Documentation/networking/napi.rst, software IRQ coalescing.
const DEFER: (u32, u64) = (2, 200_000);

/// Entries of the fill ring at most; a driver in zero-copy mode whose own ring is larger may find it empty and stall.
const FILL_RING: u32 = 4096;

/// Everything about a device.
pub(super) fn judge(device: &DeviceFacts, facts: &Facts) -> Vec<Finding> {
    let readings = &device.readings;
    let mut findings = vec![link(readings), xdp(readings), zero_copy(readings)];
    findings.extend(program(device, facts));
    findings.extend([queues(readings, facts.workers), steering(device)]);
    findings.extend(offloads(device));
    findings.push(mtu(readings));
    findings.extend(partial_checksums(readings));
    findings.extend(rings(readings));
    findings.extend(polling(readings, facts));
    findings.extend(interrupts(readings, facts));
    let failures = readings.failures.iter().map(|error| finding(&readings.device, "reading", Grade::WillCost, error.to_string()));
    findings.extend(failures);
    findings
}

fn driver(readings: &Readings) -> &str {
    readings.driver.as_ref().map_or("", |driver| &driver.name)
}

fn is_virtual(readings: &Readings) -> bool {
    VIRTUAL.contains(&driver(readings))
}

fn link(readings: &Readings) -> Finding {
    let name = &readings.device;
    if readings.up {
        return finding(name, "link", Grade::Fine, format!("up, driver {}", driver(readings)));
    }
    finding(name, "link", Grade::WillBreak, "down: nothing is received").mended_by(Mend::run("ip link set dev {} up", name))
}

fn xdp(readings: &Readings) -> Finding {
    let name = &readings.device;
    match readings.xdp {
        Some(Xdp { native: true, redirect: true, .. }) => finding(name, "XDP", Grade::Fine, "native, with redirects"),
        Some(Xdp { native: true, .. }) => {
            let says = "the driver has native XDP and no redirects to sockets: generic mode is used, which is slow";
            finding(name, "XDP", Grade::WillCost, says)
        }
        _ => {
            let says = format!("the driver {} has no native XDP, or does not say so: generic mode is slow", driver(readings));
            finding(name, "XDP", Grade::WillCost, says)
        }
    }
}

fn zero_copy(readings: &Readings) -> Finding {
    let name = &readings.device;
    if readings.xdp.is_some_and(|xdp| xdp.zero_copy) {
        return finding(name, "zero-copy", Grade::Fine, "claimed by the driver; binding shows whether it is so");
    }
    let says = "not offered: each frame is copied, and one device without it decides for all";
    finding(name, "zero-copy", Grade::WillCost, says)
}

/// A program that is attached already, unless it is the gateway's.
fn program(device: &DeviceFacts, facts: &Facts) -> Option<Finding> {
    let readings = &device.readings;
    let xdp = readings.xdp?;
    let (number, generic) = match (xdp.native_program, xdp.generic_program) {
        (0, 0) => return None,
        (0, generic) => (generic, true),
        (native, _) => (native, false),
    };
    let name = &readings.device;
    if facts.running {
        return Some(finding(name, "attached program", Grade::Fine, format!("number {number}, while a gateway runs")));
    }
    if device.own_program == Some(number) {
        let says = format!("number {number}, left by a gateway that ended without detaching: the next one takes it over");
        return Some(finding(name, "attached program", Grade::Fine, says));
    }
    let says = format!("another XDP program, number {number}, is attached: the gateway will not replace it");
    let off = if generic { "ip link set dev {} xdpgeneric off" } else { "ip link set dev {} xdp off" };
    Some(finding(name, "attached program", Grade::WillBreak, says).mended_by(Mend::run(off, name)))
}

fn queues(readings: &Readings, workers: u32) -> Finding {
    let name = &readings.device;
    let queues = readings.channels.map_or(1, |channels| channels.receiving().max(1));
    let most = readings.channels.as_ref().map_or(1, most_queues);
    if queues == workers {
        return finding(name, "queues", Grade::Fine, format!("{queues} for {workers} workers"));
    }
    if queues > workers {
        let says = format!("{queues} for {workers} workers: each polls several");
        return finding(name, "queues", Grade::Fine, says);
    }
    let says = format!("{queues} for {workers} workers: each worker needs one of its own");
    let found = finding(name, "queues", Grade::WillBreak, says);
    if most >= workers { found.mended_by(set_queues(readings, workers)) } else { found }
}

fn most_queues(channels: &Channels) -> u32 {
    if channels.max_combined > 0 { channels.max_combined } else { channels.max_rx.min(channels.max_tx) }
}

fn set_queues(readings: &Readings, queues: u32) -> Mend {
    let combined = readings.channels.is_some_and(|channels| channels.max_combined > 0);
    let words =
        if combined { format!("ethtool -L {{}} combined {queues}") } else { format!("ethtool -L {{}} rx {queues} tx {queues}") };
    Mend::run(&words, &readings.device)
}

fn steering(device: &DeviceFacts) -> Finding {
    let (name, way) = (&device.readings.device, &device.way);
    let says = format!("{}: {}; {:.0} % of TCP and UDP packets are handed over", way.label, way.why, way.share * 100.0);
    finding(name, "steering", if way.share > 0.0 { Grade::WillCost } else { Grade::Fine }, says)
}

/// What hides packets from XDP. The gateway switches it off while it runs, where the driver lets it.
fn offloads(device: &DeviceFacts) -> Vec<Finding> {
    let readings = &device.readings;
    let name = &readings.device;
    let hiding = [("rx-lro", false), ("rx-gro-hw", false), ("rx-vlan-hw-parse", true), ("rx-vlan-stag-hw-parse", true)];
    let mut findings = Vec::new();
    for (feature, is_about_tags) in hiding {
        let Some(state) = readings.feature(feature).filter(|state| state.active) else { continue };
        if is_about_tags && !device.tagged {
            continue;
        }
        findings.push(if state.changeable {
            finding(name, "offloads", Grade::Fine, format!("{feature} is on; the gateway switches it off while it runs"))
        } else {
            let says =
                format!("{feature} is on and the driver does not let it be switched off: XDP does not see what was on the wire");
            finding(name, "offloads", Grade::WillBreak, says)
        });
    }
    if findings.is_empty() {
        findings.push(finding(name, "offloads", Grade::Fine, "nothing hides packets from XDP"));
    }
    findings
}

fn mtu(readings: &Readings) -> Finding {
    let (name, mtu) = (&readings.device, readings.mtu);
    let frame = FrameBytes::Page.largest_mtu() as u32;
    let most = readings.largest_xdp_mtu.map_or(frame, |most| most.min(frame));
    if mtu > most {
        let says = format!("{mtu}: the gateway takes no packets in several buffers, so at most {most} fits");
        return finding(name, "MTU", Grade::WillBreak, says)
            .mended_by(Mend::run(&format!("ip link set dev {{}} mtu {most}"), name));
    }
    if mtu as usize > FrameBytes::Half.largest_mtu() {
        return finding(name, "MTU", Grade::WillCost, format!("{mtu}: frames of a whole page, twice the packet memory"));
    }
    finding(name, "MTU", Grade::Fine, mtu.to_string())
}

fn partial_checksums(readings: &Readings) -> Option<Finding> {
    let says = "senders on this machine leave checksums to the wire, and the gateway sums their payload; `ethtool -K DEV tx off` at the \
                sender saves that";
    readings.may_receive_partial_checksums().then(|| finding(&readings.device, "partial checksums", Grade::WillCost, says))
}

fn rings(readings: &Readings) -> Option<Finding> {
    let (name, rings) = (&readings.device, readings.rings?);
    if rings.rx <= FILL_RING {
        return Some(finding(name, "rings", Grade::Fine, format!("{} receive, {} transmit", rings.rx, rings.tx)));
    }
    let says =
        format!("{} receive descriptors, more than a fill ring of {FILL_RING}: a driver in zero-copy mode may stall", rings.rx);
    let mend = Mend::run(&format!("ethtool -G {{}} rx {FILL_RING}"), name);
    Some(finding(name, "rings", Grade::WillCost, says).mended_by(mend))
}

/// Preferred busy polling wants the device's interrupts deferred.
fn polling(readings: &Readings, facts: &Facts) -> Option<Finding> {
    let (name, polling) = (&readings.device, readings.polling);
    let (defer, timeout) = (polling.defer_hard_irqs?, polling.gro_flush_timeout?);
    let is_set = defer > 0 && timeout > 0;
    // A socket that copies polls nothing by itself: the gateway has another way, and sets what it needs.
    if facts.always_polls && !readings.xdp.is_some_and(|xdp| xdp.zero_copy) {
        let says = if is_set && facts.running {
            format!("its queues are run by the workers; the kernel runs what they leave for {timeout} ns")
        } else {
            "the gateway sets napi_defer_hard_irqs and gro_flush_timeout and runs the queues in its workers, once packets come"
                .to_owned()
        };
        return Some(finding(name, "busy polling", Grade::Fine, says));
    }
    if is_virtual(readings) {
        return None;
    }
    if is_set {
        let says = format!("interrupts wait for {defer} empty polls, {timeout} ns apart");
        return Some(finding(name, "busy polling", Grade::Fine, says));
    }
    let says = "napi_defer_hard_irqs or gro_flush_timeout is 0: interrupts take a second core beside the worker's polling";
    let file = |leaf: &str| format!("/sys/class/net/{name}/{leaf}");
    // The timeout first: without it a deferred interrupt would not come at all.
    let mend = if timeout == 0 {
        Mend::write(file("gro_flush_timeout"), DEFER.1)
    } else {
        Mend::write(file("napi_defer_hard_irqs"), DEFER.0)
    };
    Some(finding(name, "busy polling", Grade::WillCost, says).mended_by(mend))
}

/// Where the device is, and where its interrupts go, against the workers' cores.
fn interrupts(readings: &Readings, facts: &Facts) -> Vec<Finding> {
    let (name, placement) = (&readings.device, &readings.placement);
    let mut findings = Vec::new();
    if let Some(node) = placement.numa_node {
        let far: Vec<_> = facts.worker_cores.iter().filter(|core| !placement.local_cores.contains(core)).collect();
        findings.push(if far.is_empty() || placement.local_cores.is_empty() {
            finding(name, "NUMA", Grade::Fine, format!("node {node}"))
        } else {
            let says = format!(
                "the device is on node {node} (cores {:?}), and worker.cores names {far:?}: packets cross between nodes",
                placement.local_cores
            );
            finding(name, "NUMA", Grade::WillCost, says)
        });
    }
    if placement.interrupts.is_empty() || facts.worker_cores.is_empty() {
        return findings;
    }
    let astray: Vec<_> = placement
        .interrupts
        .iter()
        .filter(|interrupt| !interrupt.cores.iter().any(|core| facts.worker_cores.contains(core)))
        .map(|interrupt| interrupt.number)
        .collect();
    findings.push(if astray.is_empty() {
        finding(name, "interrupts", Grade::Fine, "on the workers' cores")
    } else {
        let says = format!("{astray:?} go to cores without a worker: frames change caches on their way");
        finding(name, "interrupts", Grade::WillCost, says)
    });
    findings
}

#[cfg(test)]
mod tests {
    use portcullis_config::PortRange;
    use portcullis_xsk::nic::{Driver, Feature, Interrupt, Placement, Polling, RingSizes};

    use super::super::facts::HugePages;
    use super::*;
    use crate::run::WayFound;

    fn facts() -> Facts {
        Facts {
            devices: Vec::new(),
            workers: 4,
            worker_cores: vec![0, 1, 2, 3],
            always_polls: false,
            cores: (0..8).collect(),
            missing_rights: Vec::new(),
            kernel: None,
            huge_pages: HugePages::default(),
            stat_interval: None,
            memory_wanted: 0,
            forwarding: None,
            exempts: false,
            running: false,
            pools: Vec::new(),
            local_ports: PortRange { first: 1, last: 2 },
        }
    }

    fn feature(name: &str, changeable: bool) -> Feature {
        Feature { name: name.into(), active: true, changeable }
    }

    /// A NIC on which everything is fine.
    fn good() -> DeviceFacts {
        let readings = Readings {
            device: "eth0".into(),
            ifindex: 2,
            mtu: 1500,
            up: true,
            driver: Some(Driver { name: "ice".into(), ..Driver::default() }),
            xdp: Some(Xdp { native: true, redirect: true, zero_copy: true, ..Xdp::default() }),
            channels: Some(Channels { combined: 4, max_combined: 16, ..Channels::default() }),
            rings: Some(RingSizes { rx: 2048, tx: 2048, max_rx: 8160, max_tx: 8160 }),
            features: vec![feature("rx-lro", true)],
            placement: Placement {
                numa_node: Some(0),
                local_cores: vec![0, 1, 2, 3],
                interrupts: vec![Interrupt { number: 40, name: "ice-0".into(), cores: vec![2] }],
            },
            polling: Polling { defer_hard_irqs: Some(2), gro_flush_timeout: Some(200_000), threaded: Some(false) },
            ..Readings::default()
        };
        let way = WayFound { label: "key synthesis".into(), share: 0.0, why: "the key can be set".into() };
        DeviceFacts { readings, tagged: false, way, own_program: None }
    }

    fn worst(device: &DeviceFacts, facts: &Facts) -> Vec<Finding> {
        judge(device, facts).into_iter().filter(|finding| finding.grade != Grade::Fine).collect()
    }

    #[test]
    fn a_good_nic_has_nothing_to_mend() {
        assert_eq!(worst(&good(), &facts()), []);
    }

    type Fault = fn(&mut DeviceFacts);

    #[test]
    fn each_fault_is_found_alone_with_what_mends_it() {
        use Grade::{WillBreak, WillCost};
        let cases: [(&str, Grade, Option<&str>, Fault); 16] = [
            ("link", WillBreak, Some("ip link set dev eth0 up"), |it| it.readings.up = false),
            ("XDP", WillCost, None, |it| it.readings.xdp = Some(Xdp { zero_copy: true, ..Xdp::default() })),
            ("zero-copy", WillCost, None, |it| it.readings.xdp = Some(Xdp { native: true, redirect: true, ..Xdp::default() })),
            ("attached program", WillBreak, Some("ip link set dev eth0 xdp off"), |it| {
                it.readings.xdp = it.readings.xdp.map(|xdp| Xdp { native_program: 7, ..xdp });
            }),
            ("attached program", WillBreak, Some("ip link set dev eth0 xdpgeneric off"), |it| {
                it.readings.xdp = it.readings.xdp.map(|xdp| Xdp { generic_program: 7, ..xdp });
            }),
            ("queues", WillBreak, Some("ethtool -L eth0 combined 4"), |it| {
                it.readings.channels = Some(Channels { combined: 1, max_combined: 16, ..Channels::default() });
            }),
            ("queues", WillBreak, Some("ethtool -L eth0 rx 4 tx 4"), |it| {
                it.readings.channels = Some(Channels { rx: 1, tx: 1, max_rx: 8, max_tx: 8, ..Channels::default() });
            }),
            ("queues", WillBreak, None, |it| it.readings.channels = None),
            ("steering", WillCost, None, |it| it.way.share = 0.75),
            ("offloads", WillBreak, None, |it| it.readings.features = vec![feature("rx-gro-hw", false)]),
            ("offloads", WillBreak, None, |it| {
                it.tagged = true;
                it.readings.features = vec![feature("rx-vlan-hw-parse", false)];
            }),
            ("MTU", WillBreak, Some("ip link set dev eth0 mtu 3822"), |it| it.readings.mtu = 9000),
            ("rings", WillCost, Some("ethtool -G eth0 rx 4096"), |it| {
                it.readings.rings = it.readings.rings.map(|rings| RingSizes { rx: 8160, ..rings });
            }),
            ("busy polling", WillCost, Some("echo 200000 > /sys/class/net/eth0/gro_flush_timeout"), |it| {
                it.readings.polling.gro_flush_timeout = Some(0);
            }),
            ("NUMA", WillCost, None, |it| it.readings.placement.local_cores = vec![4, 5]),
            ("interrupts", WillCost, None, |it| it.readings.placement.interrupts[0].cores = vec![6]),
        ];
        for (what, grade, mend, break_it) in cases {
            let mut device = good();
            break_it(&mut device);
            let found = worst(&device, &facts());
            let [one] = &found[..] else { panic!("{what}: {found:?}") };
            assert_eq!((one.what, one.grade), (what, grade), "{one:?}");
            assert_eq!(one.mend.as_ref().map(ToString::to_string).as_deref(), mend, "{one:?}");
        }
    }

    #[test]
    fn a_device_that_the_workers_run_themselves_needs_nothing_set() {
        let mut device = good();
        device.readings.xdp = device.readings.xdp.map(|xdp| Xdp { zero_copy: false, ..xdp });
        device.readings.polling = Polling { defer_hard_irqs: Some(0), gro_flush_timeout: Some(0), threaded: None };
        let facts = Facts { always_polls: true, ..facts() };
        let said = |device: &DeviceFacts, facts: &Facts| polling(&device.readings, facts).expect("a finding");
        assert_eq!((said(&device, &facts).grade, said(&device, &facts).mend), (Grade::Fine, None));
        device.readings.polling = Polling { defer_hard_irqs: Some(9), gro_flush_timeout: Some(7), threaded: None };
        let running = said(&device, &Facts { running: true, ..facts });
        assert!(running.says.contains("run by the workers"), "{running:?}");
    }

    #[test]
    fn the_gateways_own_program_is_no_fault() {
        let mut device = good();
        device.readings.xdp = device.readings.xdp.map(|xdp| Xdp { native_program: 7, ..xdp });
        device.own_program = Some(7);
        assert_eq!(worst(&device, &facts()), []);
        device.own_program = None;
        assert_eq!(worst(&device, &Facts { running: true, ..facts() }), []);
    }

    #[test]
    fn a_virtual_device_leaves_checksums_and_is_not_polled() {
        let mut device = good();
        device.readings.driver = Some(Driver { name: "veth".into(), ..Driver::default() });
        device.readings.polling = Polling { defer_hard_irqs: Some(0), gro_flush_timeout: Some(0), threaded: None };
        let found: Vec<_> = worst(&device, &facts()).into_iter().map(|finding| finding.what).collect();
        assert_eq!(found, ["partial checksums"]);
    }
}
