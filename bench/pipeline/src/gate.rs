//! The gate: instructions for each packet against a file that is checked in.
//!
//! Knows counts and the tolerance. Times are no gate, since machines differ; counts do not, for one compiler. Invariant: a count that has
//! grown beyond the tolerance fails, and says how to accept it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::count::{self, Kind};
use crate::gateway::Mode;
use crate::valgrind;

/// What to do with the counts.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Write the counts into the file instead of comparing.
    #[arg(long)]
    pub(crate) update: bool,
    /// The file.
    #[arg(long, default_value = "bench/pipeline/instructions.json")]
    pub(crate) file: PathBuf,
}

/// The version of the file.
const SCHEMA: u32 = 1;

/// How much a count may grow. Chosen: another minor version of the compiler may change this much by itself.
const TOLERANCE: f64 = 0.02;

/// The counts, by mode and kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    schema: u32,
    /// Live sessions.
    sessions: u32,
    /// Instructions a packet, rounded to hundredths.
    per_packet: BTreeMap<String, f64>,
}

/// How a count compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Same,
    Fewer,
    More,
    /// The file does not have it.
    Unknown,
}

/// Live sessions: few, so that the counts do not depend on how full the tables are.
const SESSIONS: u32 = 1000;

/// The options of everything that is counted.
fn wanted() -> Vec<count::Options> {
    let of = |mode, kind| count::Options { sessions: SESSIONS, kind, mode, batches: 80, warm: 8, seed: 4, wait: false };
    let all = Kind::ALL.map(|kind| of(Mode::Independent, kind));
    let others = [Mode::Dependent, Mode::Open, Mode::Bare]
        .into_iter()
        .flat_map(|mode| [Kind::Mixed, Kind::First].map(|kind| of(mode, kind)));
    all.into_iter().chain(others).collect()
}

fn name_of(options: &count::Options) -> String {
    format!("{} {}", options.mode.label(), options.kind.label())
}

/// Instructions a packet, by name.
pub(crate) fn count_all() -> Result<BTreeMap<String, f64>> {
    let counted =
        wanted().into_iter().map(|options| Ok((name_of(&options), (valgrind::instructions(&options)? * 100.0).round() / 100.0)));
    counted.collect()
}

/// Counts, and compares or updates. Returns whether nothing has grown.
pub(crate) fn run(options: &Options) -> Result<bool> {
    // Read first: what is wrong with it shows before the counting.
    let before = if options.update { None } else { Some(load(&options.file)?) };
    let counted = Counts { schema: SCHEMA, sessions: SESSIONS, per_packet: count_all()? };
    let Some(before) = before else {
        write(&options.file, &counted)?;
        counted.per_packet.iter().for_each(|(name, count)| println!("{count:10.2}  {name}"));
        return Ok(true);
    };
    let outcomes: Vec<_> = counted.per_packet.iter().map(|(name, &count)| report(&before, name, count)).collect();
    let failed = outcomes.iter().filter(|&&outcome| matches!(outcome, Outcome::More | Outcome::Unknown)).count();
    if failed > 0 {
        println!("if that has to be so: `just bench-instructions --update`, and say why in the commit");
    } else if outcomes.contains(&Outcome::Fewer) {
        println!("fewer than noted: `just bench-instructions --update` keeps the gain");
    }
    println!("{} passed, {failed} failed, 0 skipped", outcomes.len() - failed);
    Ok(failed == 0)
}

fn report(before: &Counts, name: &str, count: f64) -> Outcome {
    let noted = before.per_packet.get(name).copied();
    let outcome = compare(noted, count);
    let verdict = match outcome {
        Outcome::Same => "as noted",
        Outcome::Fewer => "fewer",
        Outcome::More => "TOO MANY",
        Outcome::Unknown => "NOT NOTED",
    };
    println!("{count:10.2}  {name:22} {verdict:9} {}", noted.map_or_else(String::new, |noted| format!("(noted: {noted:.2})")));
    outcome
}

fn compare(noted: Option<f64>, count: f64) -> Outcome {
    match noted {
        None => Outcome::Unknown,
        Some(noted) if count > noted * (1.0 + TOLERANCE) => Outcome::More,
        Some(noted) if count < noted * (1.0 - TOLERANCE) => Outcome::Fewer,
        Some(_) => Outcome::Same,
    }
}

fn load(file: &Path) -> Result<Counts> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read {}: run this at the top of the clone, or name it with --file", file.display()))?;
    let counts: Counts = serde_json::from_str(&text)
        .with_context(|| format!("{} is not a file of counts: `just bench-instructions --update` writes one", file.display()))?;
    anyhow::ensure!(counts.schema == SCHEMA, "{} has version {}, not {SCHEMA}: update it", file.display(), counts.schema);
    Ok(counts)
}

fn write(file: &Path, counts: &Counts) -> Result<()> {
    let text = serde_json::to_string_pretty(counts)? + "\n";
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_compared_with_a_tolerance() {
        assert_eq!(compare(Some(200.0), 203.9), Outcome::Same);
        assert_eq!(compare(Some(200.0), 204.1), Outcome::More);
        assert_eq!(compare(Some(200.0), 195.9), Outcome::Fewer);
        assert_eq!(compare(None, 1.0), Outcome::Unknown);
    }

    #[test]
    fn the_file_comes_back_as_it_was_written() {
        let file = std::env::temp_dir().join(format!("pipeline-gate-{}.json", std::process::id()));
        let counts = Counts { schema: SCHEMA, sessions: 5, per_packet: [("independent mixed".to_owned(), 219.25)].into() };
        write(&file, &counts).expect("a file");
        assert_eq!(load(&file).expect("the file"), counts);
        write(&file, &Counts { schema: SCHEMA + 1, ..counts }).expect("a file");
        assert!(load(&file).is_err(), "another version is refused");
        std::fs::remove_file(&file).expect("the file");
    }

    #[test]
    fn the_file_that_is_checked_in_names_all_that_is_counted() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
        let noted = load(&file).expect("the file").per_packet;
        let names: Vec<_> = wanted().iter().map(name_of).collect();
        assert!(names.iter().all(|name| noted.contains_key(name)) && noted.len() == names.len(), "{noted:?}");
    }
}
