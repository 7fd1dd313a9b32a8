//! Memory for the tables, on the pages that are asked for, and what the process has touched.
//!
//! Knows pages and /proc. Invariant: what is counted is what the kernel says is resident, huge pages of both kinds included.

use anyhow::{Context, Result};
use clap::ValueEnum;
use memmap2::{Advice, MmapMut, MmapOptions};
use serde::{Deserialize, Serialize};

/// The pages that the tables are wanted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    /// Huge pages: reserved ones where there are enough, else transparent ones.
    Huge,
    /// Pages of 4 KiB.
    Ordinary,
}

/// The pages that the tables are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pages {
    /// Reserved huge pages (`vm.nr_hugepages`).
    Reserved,
    /// Transparent huge pages, by advice.
    Transparent,
    /// Pages of 4 KiB.
    Ordinary,
}

/// The size of a huge page, as a power of two.
const HUGE_PAGE_BITS: u8 = 21;

/// Zeroed memory. **Errors:** none, or no huge pages of either kind where they are wanted.
pub(crate) fn region(bytes: usize, wanted: Wanted) -> Result<(MmapMut, Pages)> {
    let whole_pages = bytes.next_multiple_of(1 << HUGE_PAGE_BITS);
    if wanted == Wanted::Huge
        && let Ok(memory) = MmapOptions::new().len(whole_pages).huge(Some(HUGE_PAGE_BITS)).map_anon()
    {
        return Ok((memory, Pages::Reserved));
    }
    let memory = MmapOptions::new().len(whole_pages).map_anon().with_context(|| format!("cannot map {bytes} bytes of memory"))?;
    let (advice, pages) = match wanted {
        Wanted::Huge => (Advice::HugePage, Pages::Transparent),
        Wanted::Ordinary => (Advice::NoHugePage, Pages::Ordinary),
    };
    let advised = memory.advise(advice);
    if wanted == Wanted::Huge {
        advised.context(
            "the kernel has no transparent huge pages: reserve some (vm.nr_hugepages), or measure with --pages ordinary",
        )?;
    }
    Ok((memory, pages))
}

/// What the process has touched. **Units:** bytes.
pub(crate) fn resident() -> Result<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").context("cannot read /proc/self/smaps_rollup")?;
    Ok(sum_of(&rollup, &["Rss:", "Private_Hugetlb:", "Shared_Hugetlb:"]))
}

/// What of it lies on huge pages. **Units:** bytes.
pub(crate) fn resident_huge() -> Result<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").context("cannot read /proc/self/smaps_rollup")?;
    Ok(sum_of(&rollup, &["AnonHugePages:", "Private_Hugetlb:", "Shared_Hugetlb:"]))
}

/// The sum of the named lines, which are in KiB.
fn sum_of(rollup: &str, names: &[&str]) -> u64 {
    let named = rollup.lines().filter_map(|line| names.iter().find_map(|name| line.strip_prefix(name)));
    let kib = named.filter_map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.sum::<u64>() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_summed_by_name() {
        let rollup = "00400000 ---p [rollup]\nRss:    12 kB\nPss:    5 kB\nAnonHugePages:  2048 kB\nPrivate_Hugetlb:   4 kB\n";
        assert_eq!(sum_of(rollup, &["Rss:", "Private_Hugetlb:"]), 16 << 10);
        assert_eq!(sum_of(rollup, &["AnonHugePages:"]), 2 << 20);
    }

    #[test]
    fn what_is_touched_is_counted() {
        let before = resident().expect("/proc");
        let (mut memory, pages) = region(32 << 20, Wanted::Ordinary).expect("memory");
        memory.fill(1);
        let grown = resident().expect("/proc") - before;
        assert_eq!(pages, Pages::Ordinary);
        // Other tests run beside this one, and may give memory back.
        assert!((24 << 20..64 << 20).contains(&grown), "{grown}");
    }
}
