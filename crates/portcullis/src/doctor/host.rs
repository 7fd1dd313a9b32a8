//! What `doctor` says of the box itself: rights, kernel, memory, cores, forwarding, ports.
//!
//! Pure: facts in, findings out. Sources: the kernel's Documentation/admin-guide/mm/hugetlbpage.rst, networking/ip-sysctl.rst.

use portcullis_config::{PoolEntry, PortRange};

use super::facts::Facts;
use super::mend::Mend;
use super::{Finding, Grade, finding};

/// The subject of these findings.
pub(super) const HOST: &str = "host";

/// The first kernel whose BPF_PROG_RUN takes live frames, which giving packets back to it needs.
const LIVE_FRAMES: (u32, u32) = (5, 18);
/// The first kernel whose AF_XDP has all that the gateway binds with.
const LEAST: (u32, u32) = (5, 11);

/// How often the kernel should bring its statistics up to date. **Units:** seconds. Chosen: seldom.
const QUIET: u64 = 120;

/// The ports that are suggested for the box's own connections. Chosen: 8,192 of them, where Linux has them by default.
const SUGGESTED: PortRange = PortRange { first: 32_768, last: 40_959 };

/// Everything about the box.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![rights(facts), kernel(facts), huge_pages(facts), cores(facts), interruptions(facts), forwarding(facts)];
    findings.extend(ports(facts));
    findings
}

fn rights(facts: &Facts) -> Finding {
    if facts.missing_rights.is_empty() {
        return finding(HOST, "rights", Grade::Fine, "all that the gateway needs");
    }
    let missing = facts.missing_rights.join(", ");
    let says = format!(
        "this process lacks {missing}: start the gateway as root, or give it these capabilities; what it would tell with them is left out"
    );
    finding(HOST, "rights", Grade::WillBreak, says)
}

fn kernel(facts: &Facts) -> Finding {
    let Some(version) = facts.kernel else {
        return finding(HOST, "kernel", Grade::WillCost, "its version cannot be read; Linux 5.18 or later is needed");
    };
    let name = format!("Linux {}.{}", version.0, version.1);
    let (grade, says) = if version < LEAST {
        (Grade::WillBreak, format!("{name}: 5.18 or later is needed"))
    } else if version < LIVE_FRAMES {
        (Grade::WillCost, format!("{name}: before 5.18 unclaimed packets on an address that the box shares are lost"))
    } else {
        (Grade::Fine, name)
    };
    finding(HOST, "kernel", grade, says)
}

fn huge_pages(facts: &Facts) -> Finding {
    let pages = &facts.huge_pages;
    let wanted = facts.memory_wanted.div_ceil(pages.size.max(1));
    if facts.running {
        return finding(
            HOST,
            "huge pages",
            Grade::Fine,
            format!("{} reserved; the gateway that runs has what it took", pages.total),
        );
    }
    if pages.free >= wanted {
        return finding(HOST, "huge pages", Grade::Fine, format!("{} free, {wanted} wanted", pages.free));
    }
    let says =
        format!("{} free, {wanted} wanted for tables and packets: ordinary pages cost more misses in large tables", pages.free);
    let total = pages.total + (wanted - pages.free);
    finding(HOST, "huge pages", Grade::WillCost, says).mended_by(Mend::write("/proc/sys/vm/nr_hugepages", total))
}

fn cores(facts: &Facts) -> Finding {
    let (workers, cores) = (facts.workers as usize, facts.cores.len());
    let says = format!("{workers} for {cores} cores");
    if let Some(core) = facts.worker_cores.iter().find(|core| !facts.cores.contains(core)) {
        let says = format!("worker.cores names core {core}, which this process may not run on; it may on {:?}", facts.cores);
        return finding(HOST, "workers", Grade::WillBreak, says);
    }
    if workers > cores {
        return finding(HOST, "workers", Grade::WillCost, format!("{says}: they share cores and wait for each other"));
    }
    if workers == cores && cores > 1 {
        return finding(
            HOST,
            "workers",
            Grade::Fine,
            format!("{says}: interrupts and the control plane share a core with one of them"),
        );
    }
    finding(HOST, "workers", Grade::Fine, says)
}

/// Whatever else runs on a worker's core: work of the kernel's that a setting makes rarer. **Source:** Documentation/admin-guide/sysctl/vm.rst.
fn interruptions(facts: &Facts) -> Finding {
    let Some(seconds) = facts.stat_interval else {
        return finding(HOST, "interruptions", Grade::Fine, "this kernel has no vm.stat_interval");
    };
    if seconds >= QUIET {
        let says = format!("the kernel brings its memory statistics up to date on each core every {seconds} s");
        return finding(HOST, "interruptions", Grade::Fine, says);
    }
    let says = format!(
        "every {seconds} s (vm.stat_interval) the kernel brings its memory statistics up to date on each core, a worker's too, which takes up to \
         half a millisecond: at high rates small rings run over"
    );
    finding(HOST, "interruptions", Grade::WillCost, says).mended_by(Mend::write("/proc/sys/vm/stat_interval", QUIET))
}

/// The guard is attached with the first start and stays; before it the kernel is on its own.
fn forwarding(facts: &Facts) -> Finding {
    let Some(forwarding) = &facts.forwarding else {
        return finding(HOST, "kernel forwarding", Grade::WillCost, "cannot tell whether the kernel forwards");
    };
    let forwards = forwarding.is_on();
    if facts.exempts && !forwards {
        let says = "the kernel forwards no IPv4: nothing comes to the destinations that nat.exempt names";
        return finding(HOST, "kernel forwarding", Grade::WillBreak, says)
            .mended_by(Mend::run("sysctl -w net.ipv4.ip_forward=1", ""));
    }
    if !forwards || facts.running || facts.exempts {
        return finding(HOST, "kernel forwarding", Grade::Fine, forwarding.summary());
    }
    let says = "the kernel forwards IPv4: until the gateway has been started once since boot, packets cross untranslated";
    finding(HOST, "kernel forwarding", Grade::WillBreak, says).mended_by(Mend::run("sysctl -w net.ipv4.ip_forward=0", ""))
}

/// The pools on an interface's own address, whose ports the box's connections use as well.
fn ports(facts: &Facts) -> Vec<Finding> {
    let local = facts.local_ports;
    let shared = facts.pools.iter().filter(|pool| pool.addresses.iter().any(|entry| matches!(entry, PoolEntry::Interface(_))));
    let judge = |pool: &portcullis_config::Pool| {
        let name = &pool.name;
        let Some(ranges) = &pool.ports else {
            let left = 64_512 - count(local);
            let says = format!("pool {name} leaves {}-{} to the box's own connections and has {left}", local.first, local.last);
            return finding(HOST, "ports", Grade::Fine, says);
        };
        let meets = |range: &PortRange, other: PortRange| range.first <= other.last && other.first <= range.last;
        if !ranges.iter().any(|range| meets(range, local)) {
            return finding(HOST, "ports", Grade::Fine, format!("pool {name} and the box's own connections have different ones"));
        }
        let says = format!(
            "pool {name} takes ports of {}-{}, which the box's own connections from that address use: their answers may be lost",
            local.first, local.last
        );
        let found = finding(HOST, "ports", Grade::WillBreak, says);
        if ranges.iter().any(|range| meets(range, SUGGESTED)) {
            return found;
        }
        let value = format!("{} {}", SUGGESTED.first, SUGGESTED.last);
        found.mended_by(Mend::write("/proc/sys/net/ipv4/ip_local_port_range", value))
    };
    shared.map(judge).collect()
}

fn count(range: PortRange) -> u32 {
    u32::from(range.last - range.first) + 1
}

#[cfg(test)]
mod tests {
    use super::super::facts::HugePages;
    use super::*;
    use crate::kernel::Forwarding;
    use portcullis_config::Pool;

    /// A box on which everything is fine.
    fn good() -> Facts {
        Facts {
            devices: Vec::new(),
            workers: 2,
            worker_cores: vec![2, 3],
            always_polls: false,
            cores: vec![0, 1, 2, 3],
            missing_rights: Vec::new(),
            kernel: Some((6, 18)),
            huge_pages: HugePages { total: 100, free: 100, size: 2 << 20 },
            stat_interval: Some(120),
            memory_wanted: 128 << 20,
            forwarding: Some(Forwarding { global: false, interfaces: Vec::new() }),
            exempts: false,
            running: false,
            pools: vec![pool(None)],
            local_ports: PortRange { first: 32_768, last: 60_999 },
        }
    }

    fn pool(ports: Option<Vec<PortRange>>) -> Pool {
        Pool { name: "default".into(), addresses: vec![PoolEntry::Interface("eth0".into())], ports }
    }

    fn worst(facts: &Facts) -> Vec<Finding> {
        judge(facts).into_iter().filter(|finding| finding.grade != Grade::Fine).collect()
    }

    #[test]
    fn a_good_box_has_nothing_to_mend() {
        assert_eq!(worst(&good()), []);
    }

    #[test]
    fn each_fault_is_found_alone_with_what_mends_it() {
        type Fault = fn(&mut Facts);
        let cases: [(&str, Grade, Option<&str>, Fault); 10] = [
            ("rights", Grade::WillBreak, None, |facts| facts.missing_rights = vec!["CAP_BPF"]),
            ("kernel", Grade::WillBreak, None, |facts| facts.kernel = Some((5, 4))),
            ("kernel", Grade::WillCost, None, |facts| facts.kernel = Some((5, 15))),
            ("huge pages", Grade::WillCost, Some("echo 104 > /proc/sys/vm/nr_hugepages"), |facts| facts.huge_pages.free = 60),
            ("workers", Grade::WillCost, None, |facts| facts.workers = 5),
            ("interruptions", Grade::WillCost, Some("echo 120 > /proc/sys/vm/stat_interval"), |facts| {
                facts.stat_interval = Some(1);
            }),
            ("workers", Grade::WillBreak, None, |facts| facts.worker_cores = vec![7]),
            ("kernel forwarding", Grade::WillBreak, Some("sysctl -w net.ipv4.ip_forward=0"), |facts| {
                facts.forwarding = Some(Forwarding { global: true, interfaces: Vec::new() });
            }),
            ("kernel forwarding", Grade::WillBreak, Some("sysctl -w net.ipv4.ip_forward=1"), |facts| facts.exempts = true),
            ("ports", Grade::WillBreak, Some("echo 32768 40959 > /proc/sys/net/ipv4/ip_local_port_range"), |facts| {
                facts.pools = vec![pool(Some(vec![PortRange { first: 41_000, last: 65_535 }]))];
            }),
        ];
        for (what, grade, mend, break_it) in cases {
            let mut facts = good();
            break_it(&mut facts);
            let found = worst(&facts);
            let [one] = &found[..] else { panic!("{what}: {found:?}") };
            assert_eq!((one.what, one.grade), (what, grade), "{one:?}");
            assert_eq!(one.mend.as_ref().map(ToString::to_string).as_deref(), mend, "{one:?}");
        }
    }

    #[test]
    fn a_gateway_that_runs_holds_the_huge_pages_and_the_guard() {
        let mut facts = Facts { running: true, ..good() };
        facts.huge_pages.free = 0;
        facts.forwarding = Some(Forwarding { global: true, interfaces: vec![("eth0".into(), true)] });
        assert_eq!(worst(&facts), []);
    }
}
