//! That docs/counters.md names everything that is counted, and nothing that is not.

use std::collections::BTreeSet;

use portcullis_nat::verdict::DropReason;

use super::names;

const PAGE: &str = include_str!("../../../../docs/counters.md");

/// What stands in backticks in the first column of the page's tables.
fn documented() -> BTreeSet<&'static str> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
    let first = rows.filter_map(|row| row.split(" | ").next());
    first.flat_map(|column| column.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_reason_and_every_metric_has_its_row() {
    let documented = documented();
    let nat: Vec<_> = names::nat_counters().collect();
    let all = DropReason::ALL.iter().map(|reason| reason.label()).chain(names::ALL.iter().map(|name| name.name));
    let missing: Vec<_> = all.chain(nat.iter().map(String::as_str)).filter(|name| !documented.contains(name)).collect();
    assert!(missing.is_empty(), "not in docs/counters.md: {missing:?}");
}

#[test]
fn no_row_is_about_something_that_is_gone() {
    let nat: Vec<_> = names::nat_counters().collect();
    let reasons: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
    let metrics: BTreeSet<_> = names::ALL.iter().map(|name| name.name).chain(nat.iter().map(String::as_str)).collect();
    let (_, drops) = PAGE.split_once("## Dropped, and why").expect("the section");
    let (drops, _) = drops.split_once("## Gauges and limits").expect("the section after");
    for name in documented() {
        let row = format!("| `{name}`");
        let known = if drops.contains(&row) { reasons.contains(name) } else { metrics.contains(name) };
        assert!(known || is_xdp(name), "{name} is not counted");
    }
}

/// The XDP program's reasons are its own crate's; the page names a few by their families' prefixes.
fn is_xdp(name: &str) -> bool {
    name.starts_with("drop_") || name.starts_with("pass_") || name.starts_with("guard_")
}
