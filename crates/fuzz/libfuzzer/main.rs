//! Every target in one program: the environment says which (`PORTCULLIS_FUZZ_TARGET`), the command line is libFuzzer's own.
#![no_main]

use std::sync::LazyLock;

static BODY: LazyLock<portcullis_fuzz::Body> = LazyLock::new(|| {
    let target = std::env::var("PORTCULLIS_FUZZ_TARGET").expect("PORTCULLIS_FUZZ_TARGET names a target");
    portcullis_fuzz::body(&target)
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| BODY(bytes));
