//! Prefetching: tells the processor what will be read soon.
//!
//! Knows nothing. Called before work on many records or lines at once. Invariant: a hint, without which everything is the same, only
//! slower.

#![allow(unsafe_code)]

/// Has the cache line at the start of `place` fetched, and does not wait for it.
///
/// JUSTIFICATION: a load does the same, but its instruction, and those after it, stay in the processor's window until the line is there:
/// a window's worth of loads is under way at once, which in a loop that hashes is four to eight. See docs/performance.md for what it gives.
#[inline(always)]
pub(crate) fn fetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees, and faults on no address; this one is of a live reference besides.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(core::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}
