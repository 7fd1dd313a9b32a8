//! Every stored input once more: what was a finding is none any more.

use portcullis_fuzz::{TARGETS, corpus};

#[test]
fn every_stored_input_is_played_without_a_finding() {
    for (target, body) in TARGETS {
        let inputs = corpus::load(target).unwrap_or_else(|error| panic!("{}: {error}", corpus::path(target).display()));
        assert!(inputs.len() >= 3, "{target} has something to begin with");
        for (number, input) in inputs.iter().enumerate() {
            // Shown when it fails only.
            println!("{target}: input {number}: {}", input.about);
            body(&input.bytes);
        }
    }
}
