//! Checks the release build in a guest whose NICs do Toeplitz RSS and bind without copying: `just vm-test`, docs/vm.md.
//!
//! Boots what bench/vm/ has made, goes through the checks and removes everything: at the end, on failure and on Ctrl-C. Called by
//! bench/vm/run.sh, which knows where there can be a guest. Prints `ok` or `FAIL` for each check; the last line counts them.

mod checks;
mod guest;
mod lab;
mod passage;
mod placement;
mod report;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use portcullis_testkit::topology::cleanup;

use checks::Check;
use guest::Parts;
use lab::Lab;
use report::Report;

const USAGE: &str = "\
Checks the release build in a guest with RSS NICs. Called by bench/vm/run.sh; needs root.

Usage: vm TOOLS KERNEL IMAGE [--short | CHECK...]
       vm --list

  --short  the guest, its NICs, and the gateway forwarding: less than a minute
  --list   the names of the checks
  CHECK    only those with these words in their names";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["--list"] {
        for check in checks::ALL {
            println!("{}", check.name);
        }
        return ExitCode::SUCCESS;
    }
    let [tools, kernel, image, words @ ..] = &arguments[..] else { return refuse() };
    let Some(chosen) = choose(words) else { return refuse() };
    let parts = Parts { tools: PathBuf::from(tools), kernel: PathBuf::from(kernel), image: PathBuf::from(image) };
    match run(&parts, &chosen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAIL the guest boots: {error:#}\n0 passed, 1 failed, {} skipped", chosen.len());
            ExitCode::FAILURE
        }
    }
}

fn refuse() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

/// The checks that the words ask for; none when they cannot be understood or fit no check.
fn choose(words: &[String]) -> Option<Vec<&'static Check>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let chosen: Vec<_> = match words[..] {
        [] => checks::ALL.iter().collect(),
        ["--short"] => checks::ALL.iter().filter(|check| check.short).collect(),
        _ => checks::ALL.iter().filter(|check| words.iter().any(|word| check.name.contains(word))).collect(),
    };
    (!chosen.is_empty()).then_some(chosen)
}

/// Goes through the checks. Everything is removed when this returns. Returns whether all passed.
fn run(parts: &Parts, chosen: &[&Check]) -> Result<bool> {
    cleanup::arm();
    let mut report = Report::new();
    report.progress("booting the guest");
    let mut lab = Lab::build(parts)?;
    report.progress(&lab.guest.expect("uname -sr")?);
    for check in chosen {
        report.check(check.name, || (check.run)(&mut lab));
    }
    Ok(report.summary())
}
