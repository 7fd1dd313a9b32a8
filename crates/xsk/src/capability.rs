//! Which of the rights that the data path needs the process lacks.
//!
//! Knows the kernel's capability numbers. Called at start, and for the text of errors. Source: capabilities(7).

/// The kernel's numbers (linux/capability.h) and what each right is for.
const NEEDED: [(&str, &[u32]); 5] = [
    ("CAP_NET_RAW", &[13]),     // AF_XDP sockets
    ("CAP_NET_ADMIN", &[12]),   // attaching XDP and tc programs, ethtool settings
    ("CAP_BPF", &[39, 21]),     // loading programs; CAP_SYS_ADMIN includes it
    ("CAP_PERFMON", &[38, 21]), // pointer arithmetic in programs; CAP_SYS_ADMIN includes it
    ("CAP_IPC_LOCK", &[14]),    // locking the packet memory
];

/// The names of the capabilities that are not effective in this thread; empty when all are there.
///
/// `CAP_BPF` and `CAP_PERFMON` count as there with `CAP_SYS_ADMIN`. When /proc cannot be read none is reported: the kernel will say it.
pub fn missing() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective(&status).map_or_else(Vec::new, missing_of)
}

/// Names with commas, for an error's text.
pub(crate) fn list(names: &[&'static str]) -> String {
    if names.is_empty() { "none of the capabilities (a security module refuses?)".to_string() } else { names.join(", ") }
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing_of(effective: u64) -> Vec<&'static str> {
    NEEDED.iter().filter(|(_, any)| any.iter().all(|bit| effective >> bit & 1 == 0)).map(|&(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_missing_without_rights_and_nothing_with_all() {
        assert_eq!(missing_of(0), ["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_IPC_LOCK"]);
        assert!(missing_of(u64::MAX).is_empty());
    }

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon() {
        assert_eq!(missing_of(1 << 21 | 1 << 13), ["CAP_NET_ADMIN", "CAP_IPC_LOCK"]);
        assert_eq!(missing_of(1 << 39 | 1 << 13), ["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_IPC_LOCK"]);
    }

    #[test]
    fn the_effective_set_is_read_from_the_status_file() {
        assert_eq!(effective("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
