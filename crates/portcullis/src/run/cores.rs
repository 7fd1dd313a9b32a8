//! The cores that workers are pinned to: those that the operator names, or else the last ones, near the devices first.
//!
//! Knows core numbers and sysfs. Called at start. Invariants: a worker is pinned only to a core that the process may run on; two share one
//! only where there are fewer cores than workers; whatever else the process does keeps to the other cores, where there are any. Interrupts
//! and housekeeping keep to the first cores, so the last ones are taken first.

use std::collections::BTreeSet;
use std::path::Path;

use core_affinity::CoreId;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portcullis_config::WorkerRules;

use crate::cli::exit::Failure;

/// Cores that the process may run on.
pub(super) fn allowed() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

/// A core for each worker, or none where the process's cores cannot be told. Warns of cores that are far from the devices.
///
/// **Errors:** [`Failure::Config`] on a core that the process may not run on.
pub(super) fn of_workers(rules: &WorkerRules, devices: &[&str], workers: usize) -> Result<Vec<Option<CoreId>>, Failure> {
    let allowed = allowed();
    let near = near(Path::new("/sys"), devices);
    let cores = if rules.cores.is_empty() { choose(&allowed, &near, workers) } else { configured(&rules.cores, &allowed)? };
    for (worker, core) in cores.iter().enumerate().filter(|(_, core)| !near.is_empty() && !near.contains(core)) {
        tracing::warn!(
            "worker {worker} on core {core} is on another NUMA node than {}: packets cross between the nodes; near are cores {}",
            devices.join(", "),
            listed(&near)
        );
    }
    Ok((0..workers).map(|worker| cores.get(worker).map(|&id| CoreId { id })).collect())
}

/// Keeps this thread, the control plane's, and those that it starts from now on, off the workers' cores: even half a millisecond of it is longer
/// than some devices' rings last. Workers pin themselves all the same; threads that transmit in copy mode, which are there already, stay on
/// whatever core is free. Where workers have all cores, or none can be told, the control plane runs where the kernel puts it.
pub(super) fn leave_to(workers: &[Option<CoreId>]) {
    let left = left_by(&allowed(), workers);
    if left.is_empty() {
        return;
    }
    let mut set = CpuSet::new();
    let kept = left.iter().try_for_each(|&core| set.set(core)).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = kept {
        tracing::warn!("the control plane cannot keep off the workers' cores: {error}");
    }
}

/// The cores that no worker is pinned to; none when a worker may be on any.
fn left_by(allowed: &[usize], workers: &[Option<CoreId>]) -> Vec<usize> {
    let Some(taken) = workers.iter().map(|core| core.map(|core| core.id)).collect::<Option<BTreeSet<_>>>() else {
        return Vec::new();
    };
    allowed.iter().copied().filter(|core| !taken.contains(core)).collect()
}

fn configured(wanted: &[u16], allowed: &[usize]) -> Result<Vec<usize>, Failure> {
    let core = |&core: &u16| {
        let id = usize::from(core);
        let ids = || listed(&allowed.iter().copied().collect());
        let illegal = || Failure::Config(format!("worker.cores: the gateway may not run on core {core}; it may on {}", ids()));
        allowed.contains(&id).then_some(id).ok_or_else(illegal)
    };
    wanted.iter().map(core).collect()
}

/// A core for each worker: the last of those that are near, then the last of the others, then again from the start.
fn choose(allowed: &[usize], near: &BTreeSet<usize>, workers: usize) -> Vec<usize> {
    let last_first = |is_near: bool| allowed.iter().rev().copied().filter(move |core| near.contains(core) == is_near);
    let order: Vec<_> = last_first(true).chain(last_first(false)).collect();
    order.iter().copied().cycle().take(if order.is_empty() { 0 } else { workers }).collect()
}

/// The cores of the NUMA nodes that the devices are on; none where no device has one (virtual devices, machines with one node).
fn near(sys: &Path, devices: &[&str]) -> BTreeSet<usize> {
    let node = |device: &&str| {
        let text = std::fs::read_to_string(sys.join("class/net").join(device).join("device/numa_node")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    let nodes: BTreeSet<_> = devices.iter().filter_map(node).collect();
    let cores = |node: &u32| {
        let list = std::fs::read_to_string(sys.join(format!("devices/system/node/node{node}/cpulist")));
        list.map(|list| cpulist(list.trim())).unwrap_or_default()
    };
    nodes.iter().flat_map(cores).collect()
}

/// The numbers of a list as sysfs writes it: `0-3,8,10-11`. What is not a number is left out.
fn cpulist(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

fn listed(cores: &BTreeSet<usize>) -> String {
    cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cores_are_taken_first_and_each_once() {
        let none = BTreeSet::new();
        assert_eq!(choose(&[0, 1, 2, 3], &none, 3), [3, 2, 1]);
        assert_eq!(choose(&[0, 1], &none, 3), [1, 0, 1], "fewer cores than workers");
        assert_eq!(choose(&[], &none, 2), [0; 0]);
    }

    #[test]
    fn the_control_plane_has_the_cores_that_the_workers_leave() {
        let on = |cores: &[usize]| cores.iter().map(|&id| Some(CoreId { id })).collect::<Vec<_>>();
        assert_eq!(left_by(&[0, 1, 2, 3], &on(&[3, 2])), [0, 1]);
        assert_eq!(left_by(&[0, 1], &on(&[1, 0, 1])), [0; 0], "nothing is left");
        assert_eq!(left_by(&[0, 1], &[Some(CoreId { id: 1 }), None]), [0; 0], "a worker may be anywhere");
    }

    #[test]
    fn cores_near_the_devices_come_before_the_others() {
        let near = BTreeSet::from([0, 1]);
        assert_eq!(choose(&[0, 1, 2, 3], &near, 3), [1, 0, 3]);
        assert_eq!(choose(&[2, 3], &near, 1), [3], "none that is near is allowed");
    }

    #[test]
    fn a_core_that_the_process_may_not_use_is_refused() {
        assert_eq!(configured(&[3, 1], &[1, 2, 3]).expect("allowed"), [3, 1]);
        let refused = configured(&[4], &[1, 2]).expect_err("not allowed").to_string();
        assert!(refused.contains("core 4") && refused.contains("1, 2"), "{refused}");
    }

    #[test]
    fn the_nodes_of_the_devices_are_read_from_sysfs() {
        let sys = std::env::temp_dir().join(format!("portcullis-sys-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = sys.join(path);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            std::fs::write(path, text).expect("a file");
        };
        write("class/net/eth0/device/numa_node", "1\n");
        write("class/net/eth1/device/numa_node", "-1\n");
        write("devices/system/node/node1/cpulist", "4-5,7\n");
        assert_eq!(near(&sys, &["eth0", "eth1", "veth0"]), BTreeSet::from([4, 5, 7]));
        assert_eq!(near(&sys, &["eth1"]), BTreeSet::new());
        std::fs::remove_dir_all(&sys).expect("removed");
        assert_eq!(cpulist(""), [0; 0]);
    }
}
