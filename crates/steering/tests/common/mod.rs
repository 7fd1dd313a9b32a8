//! Random numbers for tests: the same in every run.

/// splitmix64.
pub(crate) fn numbers(mut seed: u64) -> impl Iterator<Item = u64> {
    core::iter::from_fn(move || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ mixed >> 31)
    })
}
