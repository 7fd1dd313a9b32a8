//! The list: every row, in the order of the RFCs and of the report.
//!
//! Knows only where the rows are; each file has those of one subject. Invariant: an identifier stands here once.

mod fragments;
mod hostile;
mod icmp;
mod icmp_errors;
pub(crate) mod load;
mod mapping;
mod others;
mod router;
mod tcp;
mod timers;

use crate::row::{Level, Row};

/// What is watched on every frame of a run: filled in at its end.
pub(crate) const LEAK: &str = "leak";
/// The same of checksums.
pub(crate) const CHECKSUMS: &str = "checksums";

const WATCHED: [Row; 2] = [
    Row::never(
        LEAK,
        Level::Must,
        "RFC 1918, section 3; RFC 6888, REQ-11A",
        "No inside address is ever seen outside, neither in a header nor in a quote",
        "",
    ),
    Row::never(CHECKSUMS, Level::Must, "RFC 3022, section 4.1", "No frame that the NAT sends has a wrong checksum or length", ""),
];

/// All rows, by their RFC, then those beside the RFCs' lists.
pub(crate) fn all() -> Vec<Row> {
    let parts: [&[Row]; 11] = [
        mapping::ROWS,
        tcp::ROWS,
        icmp::ROWS,
        icmp_errors::ROWS,
        router::ROWS,
        fragments::ROWS,
        load::ROWS,
        timers::ROWS,
        others::ROWS,
        hostile::ROWS,
        &WATCHED,
    ];
    let mut rows = parts.concat();
    // Stable: within an RFC, rows keep the order of their numbers, and of their files where the number is the same.
    rows.sort_by_key(|row| order(row.id));
    rows
}

/// The RFC and the number in an identifier such as `4787-12a`; those without come last.
fn order(id: &str) -> (u32, u32, String) {
    let (rfc, rest) = id.split_once('-').unwrap_or((id, ""));
    let Ok(rfc) = rfc.parse() else { return (u32::MAX, 0, String::new()) };
    let digits = rest.find(|one: char| !one.is_ascii_digit()).unwrap_or(rest.len());
    (rfc, rest[..digits].parse().unwrap_or(0), rest[digits..].to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::setup;

    #[test]
    fn an_identifier_stands_for_one_row_in_a_setup_that_is_run() {
        let rows = all();
        let ids: BTreeSet<_> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids.len(), rows.len());
        for row in &rows {
            assert!(setup::ALL.contains(&row.setup), "{}: {} is run by nobody", row.id, row.setup.name);
            assert!(!row.text.is_empty() && row.source.starts_with("RFC "), "{}", row.id);
        }
    }

    #[test]
    fn rows_stand_in_the_order_of_their_numbers() {
        let ids: Vec<_> = all().iter().map(|row| row.id).collect();
        let at = |id| ids.iter().position(|one| *one == id).expect(id);
        assert!(at("4787-2") < at("4787-10") && at("4787-14") < at("5382-1") && at("7857-12") < at(LEAK));
    }
}
