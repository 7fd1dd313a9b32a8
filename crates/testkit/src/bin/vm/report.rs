//! What the run prints: progress, a line for each check, and the count that ends it.
//!
//! Knows nothing of guests. Invariant: each check has exactly one line that begins with `ok` or `FAIL`, and the last line is
//! `N passed, N failed, N skipped`.

use std::time::Instant;

use anyhow::Result;
use portcullis_testkit::topology::cleanup;

/// What has passed and failed until now.
pub(crate) struct Report {
    started: Instant,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), passed: 0, failed: 0, skipped: 0 }
    }

    /// What is being done now, with the time since the start.
    pub(crate) fn progress(&self, text: &str) {
        eprintln!("[{:5.1} s] {}", self.started.elapsed().as_secs_f64(), text.trim());
    }

    /// Runs a check and says how it ended: with its own words, or why it failed.
    pub(crate) fn check(&mut self, name: &str, body: impl FnOnce() -> Result<String>) {
        // After a signal every check would fail; none is run.
        if cleanup::is_interrupted() {
            self.skipped += 1;
            return;
        }
        let started = Instant::now();
        let outcome = body();
        let time = started.elapsed().as_secs_f64();
        match outcome {
            Ok(words) => {
                self.passed += 1;
                println!("ok   {name}: {words} ({time:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL {name}: {} ({time:.1} s)", format!("{error:#}").trim());
            }
        }
    }

    /// The last line. Returns whether all passed.
    pub(crate) fn summary(&self) -> bool {
        self.progress("done");
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        self.failed == 0 && self.skipped == 0
    }
}
