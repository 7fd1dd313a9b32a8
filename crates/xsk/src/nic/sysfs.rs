//! What sysfs and procfs say about a device: its NUMA node, its interrupts and their cores, and when the kernel polls it.
//!
//! Knows paths. Used by [`super::readings`]. Invariant: files of another namespace's device of the same name are not taken for this
//! one's (sysfs shows the namespace that it was mounted in). Sources: kernel Documentation/ABI/testing/sysfs-class-net,
//! sysfs-bus-pci; core-api/irq/irq-affinity.rst.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::Deferral;

/// More interrupts than a device is looked at for: 128 queues with one for each direction, and some.
const MOST_INTERRUPTS: usize = 512;

/// Where a device is in the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Its NUMA node; none on machines with one, and for devices without a place.
    pub numa_node: Option<u32>,
    /// The cores of that node; empty where it is not known.
    pub local_cores: Vec<u32>,
    /// Its interrupts, by number; none where it has none of its own, or sysfs does not show them.
    pub interrupts: Vec<Interrupt>,
}

/// An interrupt of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its number.
    pub number: u32,
    /// What the driver calls it, mostly with the queue's number in it; empty where nobody listens.
    pub name: String,
    /// The cores that it goes to now.
    pub cores: Vec<u32>,
}

/// When the kernel polls a device. **Source:** Documentation/networking/napi.rst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Polling {
    /// Empty polls before interrupts are switched on again (`napi_defer_hard_irqs`).
    pub defer_hard_irqs: Option<u32>,
    /// Nanoseconds until the next poll while interrupts are off (`gro_flush_timeout`).
    pub gro_flush_timeout: Option<u64>,
    /// Whether polling has kernel threads of its own.
    pub threaded: Option<bool>,
}

/// The places that are read, so that a test can have its own.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    class_net: PathBuf,
    irq: PathBuf,
}

impl Default for Tree {
    fn default() -> Self {
        Self { class_net: "/sys/class/net".into(), irq: "/proc/irq".into() }
    }
}

impl Tree {
    /// The directory of a device, if it is this namespace's.
    fn device(&self, name: &str, ifindex: u32) -> Option<PathBuf> {
        let directory = self.class_net.join(name);
        (number::<u32>(&directory.join("ifindex")) == Some(ifindex)).then_some(directory)
    }

    pub(super) fn placement(&self, name: &str, ifindex: u32) -> Placement {
        let Some(directory) = self.device(name, ifindex) else { return Placement::default() };
        // On virtio the device is the bus's; its parent has the place and the interrupts.
        let parents = [directory.join("device"), directory.join("device/..")];
        let first = |file: &str| parents.iter().map(|parent| parent.join(file)).find(|path| path.exists());
        let node = first("numa_node").and_then(|path| number::<i64>(&path));
        Placement {
            numa_node: node.and_then(|node| u32::try_from(node).ok()),
            local_cores: first("local_cpulist").map_or_else(Vec::new, |path| cores(&path)),
            interrupts: first("msi_irqs").map_or_else(Vec::new, |path| self.interrupts(&path)),
        }
    }

    fn interrupts(&self, directory: &Path) -> Vec<Interrupt> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut numbers: Vec<u32> =
            entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).take(MOST_INTERRUPTS).collect();
        numbers.sort_unstable();
        numbers.into_iter().map(|number| self.interrupt(number)).collect()
    }

    fn interrupt(&self, number: u32) -> Interrupt {
        let directory = self.irq.join(number.to_string());
        // The one directory in it has the name of who listens.
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let listener =
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).min_by_key(fs::DirEntry::file_name);
        let name = listener.map_or_else(String::new, |entry| entry.file_name().to_string_lossy().into_owned());
        let effective = cores(&directory.join("effective_affinity_list"));
        let cores = if effective.is_empty() { cores(&directory.join("smp_affinity_list")) } else { effective };
        Interrupt { number, name, cores }
    }

    pub(super) fn polling(&self, name: &str, ifindex: u32) -> Polling {
        let Some(directory) = self.device(name, ifindex) else { return Polling::default() };
        Polling {
            defer_hard_irqs: number(&directory.join("napi_defer_hard_irqs")),
            gro_flush_timeout: number(&directory.join("gro_flush_timeout")),
            threaded: number::<u32>(&directory.join("threaded")).map(|threaded| threaded != 0),
        }
    }
}

/// Sets how long the kernel leaves a device's queues to a poller. The time first: without one, interrupts would be switched on by nobody.
pub(super) fn set_deferral(tree: &Tree, name: &str, ifindex: u32, deferral: Deferral) -> io::Result<()> {
    let directory = tree.device(name, ifindex).ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
    fs::write(directory.join("gro_flush_timeout"), deferral.flush_timeout.to_string())?;
    fs::write(directory.join("napi_defer_hard_irqs"), deferral.hard_irqs.to_string())
}

fn text(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_string())
}

fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path).ok()?.parse().ok()
}

fn cores(path: &Path) -> Vec<u32> {
    text(path).map(|list| core_list(&list)).unwrap_or_default()
}

/// The cores of a list such as `0-3,8`; what is no list has none.
fn core_list(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree of files that goes with its test.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("portcullis-sysfs-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&directory);
            Self(directory)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn tree(&self) -> Tree {
            Tree { class_net: self.0.join("net"), irq: self.0.join("irq") }
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A virtio NIC: the interrupts are those of the PCI device above it.
    fn virtio(files: &Files) {
        files.write("net/eth0/ifindex", "3\n");
        files.write("net/eth0/napi_defer_hard_irqs", "2\n");
        files.write("net/eth0/gro_flush_timeout", "200000\n");
        files.write("net/eth0/threaded", "0\n");
        files.write("pci/virtio0/status", "0xf\n");
        files.write("pci/numa_node", "1\n");
        files.write("pci/local_cpulist", "8-9,12\n");
        files.write("pci/msi_irqs/31", "msix\n");
        files.write("pci/msi_irqs/7", "msix\n");
        symlink(files.0.join("pci/virtio0"), files.0.join("net/eth0/device")).unwrap();
        files.write("irq/31/effective_affinity_list", "9\n");
        files.write("irq/31/virtio0-input.0/nothing", "");
        files.write("irq/7/effective_affinity_list", "\n");
        files.write("irq/7/smp_affinity_list", "0-1\n");
    }

    #[test]
    fn node_cores_and_interrupts_are_found_above_a_virtio_device() {
        let files = Files::new("virtio");
        virtio(&files);
        let placement = files.tree().placement("eth0", 3);
        assert_eq!((placement.numa_node, placement.local_cores), (Some(1), vec![8, 9, 12]));
        let interrupts = [
            Interrupt { number: 7, name: String::new(), cores: vec![0, 1] },
            Interrupt { number: 31, name: "virtio0-input.0".into(), cores: vec![9] },
        ];
        assert_eq!(placement.interrupts, interrupts);
        let polling = Polling { defer_hard_irqs: Some(2), gro_flush_timeout: Some(200_000), threaded: Some(false) };
        assert_eq!(files.tree().polling("eth0", 3), polling);
    }

    #[test]
    fn a_machine_with_one_node_has_no_node_to_prefer() {
        let files = Files::new("one-node");
        virtio(&files);
        files.write("pci/numa_node", "-1\n");
        assert_eq!(files.tree().placement("eth0", 3).numa_node, None);
    }

    #[test]
    fn the_device_of_another_namespace_is_not_read() {
        let files = Files::new("namespace");
        virtio(&files);
        assert_eq!(files.tree().placement("eth0", 4), Placement::default());
        assert_eq!(files.tree().polling("eth0", 4), Polling::default());
        assert_eq!(files.tree().placement("eth1", 3), Placement::default());
    }

    #[test]
    fn core_lists_have_single_ones_and_ranges() {
        assert_eq!(core_list("0-3,8"), [0, 1, 2, 3, 8]);
        assert_eq!(core_list("5"), [5]);
        assert!(core_list("").is_empty());
        assert!(core_list("none").is_empty());
    }
}
