//! Any bytes at all, on any device: no panic, no write outside of the frame, one verdict, nothing untranslated out, all counted.
//!
//! The body is `common::bytes`, which the fuzz target `process` has too.

use proptest::prelude::*;

mod common;

/// Failures are kept beside this file.
fn config() -> ProptestConfig {
    let kept = proptest::test_runner::FileFailurePersistence::WithSource("regressions");
    ProptestConfig { failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_bytes_bring_the_nat_down_or_anything_untranslated_out(script in proptest::collection::vec(any::<u8>(), 0..3000)) {
        common::bytes::run(&script);
    }

    /// Scripts that are mostly valid packets, so that sessions come to be.
    #[test]
    fn no_traffic_near_the_valid_does_either(
        setup in any::<u8>(),
        packets in proptest::collection::vec((any::<u8>(), any::<u8>(), prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], any::<[u8; 9]>()), 0..200)
    ) {
        let mut script = vec![setup];
        for (choice, detail, how, more) in packets {
            script.extend([0x53, choice, detail, how]);
            let words = usize::from(how & 3) * 3 + if how & 0x0C == 0x0C { 2 } else { 0 };
            script.extend(more.iter().cycle().take(words));
        }
        common::bytes::run(&script);
    }
}
