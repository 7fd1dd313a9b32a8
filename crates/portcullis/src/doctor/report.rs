//! Findings for people, as a page by subject, and for programs, as JSON values.
//!
//! Knows text. Invariant: what is worse stands out: a mark for each grade, and the mend on a line of its own.

use std::io::Write;

use super::{Finding, Grade, Mend, Wish};
use crate::cli::exit::Failure;

const fn mark(grade: Grade) -> &'static str {
    match grade {
        Grade::Fine => "fine       ",
        Grade::WillCost => "will cost  ",
        Grade::WillBreak => "WILL BREAK ",
    }
}

/// Prints the findings. **Errors:** [`Failure::Output`].
pub(super) fn print(findings: &[Finding], wish: &Wish, out: &mut impl Write) -> Result<(), Failure> {
    if wish.json {
        for finding in findings {
            serde_json::to_writer(&mut *out, finding).map_err(|error| Failure::Output(error.into()))?;
            writeln!(out).map_err(Failure::Output)?;
        }
        return Ok(());
    }
    write!(out, "{}", page(findings)).map_err(Failure::Output)
}

fn page(findings: &[Finding]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let mut subject = "";
    for finding in findings {
        if finding.subject != subject {
            subject = &finding.subject;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{subject}");
        }
        let _ = writeln!(text, "  {}{}: {}", mark(finding.grade), finding.what, finding.says);
        if let Some(mend) = &finding.mend {
            let _ = writeln!(text, "             mend: {mend}");
        }
    }
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let (fine, cost, broken) = (count(Grade::Fine), count(Grade::WillCost), count(Grade::WillBreak));
    let _ = writeln!(text, "{fine} fine, {cost} will cost, {broken} will break");
    text
}

/// Tells how a mend went. **Errors:** [`Failure::Output`].
pub(super) fn mended(mend: &Mend, failed: Option<&String>, wish: &Wish, out: &mut impl Write) -> Result<(), Failure> {
    if wish.json {
        let value = serde_json::json!({ "ran": mend, "error": failed });
        return writeln!(out, "{value}").map_err(Failure::Output);
    }
    match failed {
        None => writeln!(out, "ran: {mend}"),
        Some(why) => writeln!(out, "FAILED: {mend}: {why}"),
    }
    .map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::super::finding;
    use super::*;

    #[test]
    fn the_page_groups_by_subject_and_shows_what_to_type() {
        let findings = [
            finding("host", "hugepages", Grade::WillCost, "none are reserved")
                .mended_by(Mend::write("/proc/sys/vm/nr_hugepages", 61)),
            finding("eth0", "link", Grade::Fine, "up"),
            finding("eth0", "queues", Grade::WillBreak, "1 queue for 2 workers")
                .mended_by(Mend::run("ethtool -L {} combined 2", "eth0")),
        ];
        let expected = "host
  will cost  hugepages: none are reserved
             mend: echo 61 > /proc/sys/vm/nr_hugepages
eth0
  fine       link: up
  WILL BREAK queues: 1 queue for 2 workers
             mend: ethtool -L eth0 combined 2
1 fine, 1 will cost, 1 will break
";
        assert_eq!(page(&findings), expected);
        let mut out = Vec::new();
        print(&findings[2..], &Wish { json: true, ..Wish::default() }, &mut out).expect("printed");
        let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!((&value["grade"], &value["mend"]), (&"will_break".into(), &"ethtool -L eth0 combined 2".into()));
    }
}
