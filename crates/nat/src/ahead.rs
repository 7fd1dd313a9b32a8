//! Fetching memory ahead of its use, so that the processor waits for many lines at once and goes on meanwhile.
//!
//! Knows nothing else. Asked for tables that are larger than the caches, where a packet's lines are hardly ever in them. No unsafe code here:
//! `safe_arch`, which `wide` is built on, has the instruction, which by itself can do no harm.

/// Has the processor fetch the line where `what` begins.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn fetch<T: Copy>(what: &T) {
    safe_arch::prefetch_t0(what);
}

/// Reads `what`, which fetches its line too, only that the processor cannot go on for as long.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn fetch<T: Copy>(what: &T) {
    core::hint::black_box(*what);
}
