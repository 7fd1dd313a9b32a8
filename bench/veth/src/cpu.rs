//! Processor time: of tasks, to the nanosecond, and of a whole core, to the kernel's tick.
//!
//! Knows /proc only. Called before and after each trial. A task's time contains the softirqs that ran on its back. Sources: Linux
//! `fs/proc/base.c` (schedstat), `fs/proc/stat.c`; proc_pid_schedstat(5).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// **Units:** parts of a second in /proc/stat; the same on every Linux that we build for (`USER_HZ`).
const TICKS_A_SECOND: u64 = 100;

/// Time that a core has spent on anything since boot, and time that another machine had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Core {
    /// In no task and waiting for nothing: all but idle.
    pub busy: Duration,
    /// Taken by the hypervisor.
    pub stolen: Duration,
}

/// Reads a core's times.
pub fn core(core: usize) -> Result<Core> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    parse_core(&text, core).with_context(|| format!("core {core} is not in /proc/stat"))
}

/// `cpuN user nice system idle iowait irq softirq steal guest guest_nice`; the guests' are in the first two already.
fn parse_core(text: &str, core: usize) -> Option<Core> {
    let name = format!("cpu{core}");
    let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(&name))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    let time = |ticks: u64| Duration::from_millis(ticks * 1000 / TICKS_A_SECOND);
    let &[user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = ticks.as_slice() else { return None };
    Some(Core { busy: time(user + nice + system + irq + softirq), stolen: time(stolen) })
}

/// The time that one task has run. A task that is gone has run no more.
pub fn task(process: u32, task: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/task/{task}/schedstat")).unwrap_or_default();
    parse_task(&text)
}

fn parse_task(schedstat: &str) -> Duration {
    let nanoseconds = schedstat.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// The entries of a directory of /proc that are numbers: processes, or a process's tasks. None when it is gone.
pub(crate) fn numbers_in(directory: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The tasks of a process, and their names.
pub fn tasks(process: u32) -> Vec<(u32, String)> {
    let name = |task| fs::read_to_string(format!("/proc/{process}/task/{task}/comm")).unwrap_or_default().trim().to_owned();
    numbers_in(&format!("/proc/{process}/task")).into_iter().map(|task| (task, name(task))).collect()
}

/// The kernel thread that runs a core's softirqs when they are too many.
pub fn softirq_thread(core: usize) -> Option<u32> {
    let name = format!("ksoftirqd/{core}");
    numbers_in("/proc")
        .into_iter()
        .find(|number| fs::read_to_string(format!("/proc/{number}/comm")).is_ok_and(|comm| comm.trim() == name))
}

/// The memory that a process has resident. **Units:** bytes.
pub fn resident(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).context("the gateway is gone")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in the process's status")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is not a number")?;
    Ok(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cores_times_are_read_from_its_line() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 1 2 3 400 50 6 7 8 0 0\ncpu10 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        let core = parse_core(text, 1).unwrap();
        assert_eq!((core.busy, core.stolen), (Duration::from_millis(190), Duration::from_millis(80)));
        assert_eq!(parse_core(text, 2), None);
    }

    #[test]
    fn a_tasks_time_is_the_first_number_and_a_gone_one_has_none() {
        assert_eq!(parse_task("7778418 12 1\n"), Duration::from_nanos(7_778_418));
        assert_eq!(parse_task(""), Duration::ZERO);
    }

    #[test]
    fn this_process_has_a_task_that_has_run_and_memory() {
        let process = std::process::id();
        let (number, _) = tasks(process).into_iter().next().unwrap();
        assert!(task(process, number) > Duration::ZERO);
        assert!(resident(process).unwrap() > 1 << 20);
    }
}
