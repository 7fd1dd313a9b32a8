//! Zeroed memory for table arenas, on huge pages where the system has them.
//!
//! Knows pages, no tables. Called at start, once for each arena. Invariant: a region is readable, writable and unmapped when dropped.
//! Source: mmap(2), madvise(2), kernel Documentation/admin-guide/mm/{hugetlbpage,transhuge}.rst.

use std::{
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
};

const HUGE_PAGE: usize = 2 << 20;
/// No page is smaller on any machine that Linux runs on.
const SMALLEST_PAGE: usize = 4096;

/// The pages that some memory is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Reserved huge pages (`vm.nr_hugepages`).
    Huge,
    /// Ordinary pages that the kernel was asked to make huge (`transparent_hugepage` = madvise or always).
    Advised,
    /// Ordinary pages.
    Ordinary,
}

impl Pages {
    /// The word for logs and tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Huge => "huge",
            Self::Advised => "transparent_huge",
            Self::Ordinary => "ordinary",
        }
    }
}

/// No memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {bytes} bytes of memory: {source}")]
pub struct MemoryError {
    /// What was asked for.
    pub bytes: usize,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// Zeroed memory of its own mapping, page-aligned.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    len: usize,
    mapped: usize,
    pages: Pages,
}

// SAFETY: the region owns its mapping alone, like a boxed slice.
// JUSTIFICATION: arenas are made by the control plane and handed to the workers.
unsafe impl Send for Region {}
// SAFETY: a shared region gives only shared references to its bytes.
unsafe impl Sync for Region {}

/// Maps `bytes` bytes of zeroed memory, with every page in place, near the core that this thread is on: reserved huge pages, else ordinary
/// pages with the advice to make them huge. Sizes below a huge page stay ordinary. Pages that come at first use hold up packets, and small rings
/// run over.
///
/// **Errors:** when the kernel has no memory. **Cost:** all of it is zeroed.
pub fn region(bytes: usize) -> Result<Region, MemoryError> {
    // A limit on huge pages may show only when they are put in place.
    if bytes >= HUGE_PAGE
        && let Ok(mut region) = map(bytes, bytes.next_multiple_of(HUGE_PAGE), libc::MAP_HUGETLB, Pages::Huge)
        && region.populate().is_ok()
    {
        return Ok(region);
    }
    let mut region = map(bytes, bytes.max(1), 0, Pages::Ordinary)?;
    if bytes >= HUGE_PAGE {
        // SAFETY: start and length are of the mapping that was just made. The call is advice and changes no bytes.
        let advised = unsafe { libc::madvise(region.start.as_ptr().cast(), region.mapped, libc::MADV_HUGEPAGE) };
        if advised == 0 {
            region.pages = Pages::Advised;
        }
    }
    region.populate()?;
    Ok(region)
}

fn map(len: usize, mapped: usize, flags: i32, pages: Pages) -> Result<Region, MemoryError> {
    let failed = || MemoryError { bytes: len, source: std::io::Error::last_os_error() };
    let all = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    // SAFETY: a new anonymous mapping wherever the kernel likes; no existing memory is touched.
    let start = unsafe { libc::mmap(ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, all, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(failed());
    }
    let start = NonNull::new(start.cast()).ok_or_else(failed)?;
    Ok(Region { start, len, mapped, pages })
}

impl Region {
    /// The pages that it is on.
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Has the kernel put every page in place.
    fn populate(&mut self) -> Result<(), MemoryError> {
        // SAFETY: start and length are of this mapping. The call writes nothing that can be seen: pages that are there keep their bytes.
        if unsafe { libc::madvise(self.start.as_ptr().cast(), self.mapped, libc::MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        let source = std::io::Error::last_os_error();
        // Linux before 5.14 does not know the advice.
        if source.raw_os_error() != Some(libc::EINVAL) {
            return Err(MemoryError { bytes: self.len, source });
        }
        for byte in self.iter_mut().step_by(SMALLEST_PAGE) {
            // SAFETY: the byte is borrowed mutably; volatile, or else a write of what was read may be left out.
            unsafe { ptr::from_mut(byte).write_volatile(*byte) };
        }
        Ok(())
    }

    /// Gives the memory away for the rest of the process's life.
    pub fn leak(self) -> &'static mut [u8] {
        let region = std::mem::ManuallyDrop::new(self);
        // SAFETY: the mapping is `len` zeroed bytes at least, never unmapped from here on, and this is the only reference.
        unsafe { slice::from_raw_parts_mut(region.start.as_ptr(), region.len) }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is at least `len` bytes, zeroed by the kernel, and lives as long as `self`.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this region's own, and no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_any_size_are_zeroed_and_writable_to_the_last_byte() {
        for bytes in [0, 1, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1] {
            let mut memory = region(bytes).expect("memory");
            assert_eq!(memory.len(), bytes);
            assert!(memory.iter().all(|&byte| byte == 0));
            if let Some(last) = memory.last_mut() {
                *last = 7;
            }
            assert!(bytes == 0 || memory[bytes - 1] == 7);
        }
    }

    /// Ordinary pages of this process that are in memory. **Units:** bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches("kB").trim().parse::<usize>().expect("a number") << 10
    }

    #[test]
    fn a_region_is_in_memory_before_it_is_used() {
        let before = resident();
        let memory = region(64 << 20).expect("memory");
        assert!(memory.pages() == Pages::Huge || resident() >= before + (48 << 20), "{before} to {}", resident());
    }

    #[test]
    fn a_leaked_region_stays() {
        let memory = region(8192).expect("memory").leak();
        memory[8191] = 1;
        assert_eq!(memory.iter().map(|&byte| u32::from(byte)).sum::<u32>(), 1);
    }

    #[test]
    fn more_memory_than_there_is_address_space_is_an_error() {
        assert!(region(usize::MAX / 2).is_err());
    }
}
