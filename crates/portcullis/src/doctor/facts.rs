//! What `doctor` judges: the box and its devices as they are now.
//!
//! Reads the kernel, the devices and the configuration; judges nothing. Invariant: writes nothing but what a device is set to already
//! (which is how a driver says whether it lets itself be set); what cannot be read is left out and found missing by the judges.

use std::path::Path;

use portcullis_config::{BusyPoll, Config, Pool, PortRange};
use portcullis_xsk::capability;
use portcullis_xsk::nic::Readings;

use crate::cli::client::Client;
use crate::cli::exit::Failure;
use crate::kernel::Forwarding;
use crate::run;

/// Everything that is judged.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) devices: Vec<DeviceFacts>,
    /// Workers that the gateway would have.
    pub(super) workers: u32,
    /// The cores that the configuration names for them.
    pub(super) worker_cores: Vec<u32>,
    /// Whether workers never sleep.
    pub(super) always_polls: bool,
    /// The cores that this process may run on.
    pub(super) cores: Vec<u32>,
    pub(super) missing_rights: Vec<&'static str>,
    /// Major and minor.
    pub(super) kernel: Option<(u32, u32)>,
    pub(super) huge_pages: HugePages,
    /// How often the kernel brings its statistics up to date on every core. **Units:** seconds.
    pub(super) stat_interval: Option<u64>,
    /// Tables and packet memory. **Units:** bytes.
    pub(super) memory_wanted: u64,
    pub(super) forwarding: Option<Forwarding>,
    /// Whether there are destinations that the kernel has to route to.
    pub(super) exempts: bool,
    /// Whether a gateway answers at the configured socket.
    pub(super) running: bool,
    pub(super) pools: Vec<Pool>,
    /// The ports of the box's own connections.
    pub(super) local_ports: PortRange,
}

/// Reserved huge pages of the default size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HugePages {
    pub(super) total: u64,
    pub(super) free: u64,
    /// **Units:** bytes.
    pub(super) size: u64,
}

/// A device and what the gateway would do with it.
#[derive(Debug)]
pub(super) struct DeviceFacts {
    pub(super) readings: Readings,
    /// Whether interfaces on it have VLAN tags.
    pub(super) tagged: bool,
    /// How its frames would come to their owners.
    pub(super) way: run::WayFound,
    /// The program that a gateway before has left, by number.
    pub(super) own_program: Option<u32>,
}

impl Facts {
    /// Reads all of it. **Errors:** [`Failure::Config`] where an interface is not on this box.
    pub(super) fn gather(rules: &Config) -> Result<Self, Failure> {
        let outlook = run::outlook(rules)?;
        let names = rules.interfaces.iter().map(|interface| interface.name.as_str());
        let own_program = run::noted_program(&rules.control.socket);
        let devices = outlook.devices.into_iter().filter_map(|device| {
            let readings = Readings::of(&device.name).ok()?;
            Some(DeviceFacts { readings, tagged: device.tagged, way: device.way, own_program })
        });
        Ok(Self {
            devices: devices.collect(),
            workers: outlook.workers,
            worker_cores: rules.worker.cores.iter().map(|&core| u32::from(core)).collect(),
            always_polls: rules.worker.busy_poll == BusyPoll::Always,
            cores: core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id as u32).collect(),
            missing_rights: capability::missing(),
            kernel: kernel_version(),
            huge_pages: huge_pages(Path::new("/proc/meminfo")),
            stat_interval: number(Path::new("/proc/sys/vm/stat_interval")),
            memory_wanted: outlook.memory,
            forwarding: Forwarding::read(names).ok(),
            exempts: !rules.nat.exempt.is_empty(),
            running: Client::new(&rules.control.socket).version().is_ok(),
            pools: rules.pools.clone(),
            local_ports: run::local_ports(),
        })
    }
}

fn kernel_version() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    parse_version(&release)
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.trim().split(['.', '-']).map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn huge_pages(meminfo: &Path) -> HugePages {
    let text = std::fs::read_to_string(meminfo).unwrap_or_default();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    HugePages {
        total: value("HugePages_Total").unwrap_or(0),
        free: value("HugePages_Free").unwrap_or(0),
        size: value("Hugepagesize").unwrap_or(2048) << 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_words_are_read() {
        assert_eq!(parse_version("6.18.44-cloud\n"), Some((6, 18)));
        assert_eq!(parse_version("5.4-rc1"), Some((5, 4)));
        assert_eq!(parse_version("unknown"), None);
        assert_eq!(number(Path::new("/proc/sys/vm/overcommit_memory")).map(|it| it < 3), Some(true));
        assert_eq!(number(Path::new("/proc/version")), None);
        let here = huge_pages(Path::new("/proc/meminfo"));
        assert!(here.size.is_power_of_two() && here.free <= here.total, "{here:?}");
        assert_eq!(huge_pages(Path::new("/no/such/file")), HugePages { total: 0, free: 0, size: 2 << 20 });
    }
}
