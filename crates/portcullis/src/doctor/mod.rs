//! `doctor`: what on this box will work, what will cost, what will break, and the command that mends it.
//!
//! Knows the order: read everything, judge it, print it, mend it if asked. Reading is `facts.rs`, judging is `device.rs` and `host.rs`
//! (pure), printing is `report.rs`. Called by `cli`. Invariants: nothing is changed without `--fix`; what `--fix` runs is what was
//! printed. Tests: beside each judge, over readings of drivers that this machine does not have.

mod device;
mod facts;
mod host;
mod mend;
mod report;

use std::io::Write;

use portcullis_config::Config;
use serde::Serialize;

use crate::cli::exit::Failure;
use facts::Facts;
use mend::Mend;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Grade {
    /// As it should be.
    Fine,
    /// It works, and costs time or memory.
    WillCost,
    /// The gateway will not start, or loses packets.
    WillBreak,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The device, or `host`.
    pub(crate) subject: String,
    /// What was looked at.
    pub(crate) what: &'static str,
    /// How bad it is.
    pub(crate) grade: Grade,
    /// What was found, and what follows from it.
    pub(crate) says: String,
    /// What mends it, where something does.
    pub(crate) mend: Option<Mend>,
}

/// What is to be done beside looking.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish {
    /// Look at these devices, or `host`, alone; empty for everything.
    pub(crate) subjects: Vec<String>,
    /// Mend what can be mended.
    pub(crate) fix: bool,
    /// One JSON value a line.
    pub(crate) json: bool,
}

/// Looks, prints, mends. **Errors:** [`Failure::Unfit`] when something will break, after what was mended was looked at again; a subject that
/// is none.
pub(crate) fn run(rules: &Config, wish: &Wish, out: &mut impl Write) -> Result<(), Failure> {
    let mut findings = findings(&Facts::gather(rules)?, wish)?;
    report::print(&findings, wish, out)?;
    if wish.fix && mend_all(&findings, wish, out)? {
        findings = self::findings(&Facts::gather(rules)?, wish)?;
        if !wish.json {
            report::print(&findings, wish, out)?;
        }
    }
    let broken = findings.iter().filter(|finding| finding.grade == Grade::WillBreak).count();
    if broken == 0 { Ok(()) } else { Err(Failure::Unfit(broken)) }
}

fn findings(facts: &Facts, wish: &Wish) -> Result<Vec<Finding>, Failure> {
    let known: Vec<_> = facts.devices.iter().map(|device| device.readings.device.as_str()).chain([host::HOST]).collect();
    if let Some(unknown) = wish.subjects.iter().find(|subject| !known.contains(&subject.as_str())) {
        return Err(Failure::Other(anyhow::anyhow!("{unknown} is none of {}, which the configuration comes to", known.join(", "))));
    }
    let devices = facts.devices.iter().flat_map(|device| device::judge(device, facts));
    let all = host::judge(facts).into_iter().chain(devices);
    Ok(all.filter(|finding| wish.subjects.is_empty() || wish.subjects.contains(&finding.subject)).collect())
}

/// Runs every mend. Returns whether there was any. **Errors:** the output's; a mend that fails is told of and the others go on.
fn mend_all(findings: &[Finding], wish: &Wish, out: &mut impl Write) -> Result<bool, Failure> {
    let mut any = false;
    for mend in findings.iter().filter_map(|finding| finding.mend.as_ref()) {
        any = true;
        let outcome = mend.carry_out();
        report::mended(mend, outcome.as_ref().err(), wish, out)?;
    }
    Ok(any)
}

/// What a judge says, in short.
pub(crate) fn finding(subject: &str, what: &'static str, grade: Grade, says: impl Into<String>) -> Finding {
    Finding { subject: subject.to_owned(), what, grade, says: says.into(), mend: None }
}

impl Finding {
    /// The same with what mends it.
    pub(crate) fn mended_by(self, mend: Mend) -> Self {
        Self { mend: Some(mend), ..self }
    }
}
