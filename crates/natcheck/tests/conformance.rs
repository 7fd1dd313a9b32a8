//! That docs/conformance.md is what `portcullis natcheck --compare docs/conformance/*.json` prints, that the reports have today's rows, and that
//! the tests that docs/rfc names are there.

use std::fs;
use std::path::{Path, PathBuf};

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

fn reports() -> Vec<PathBuf> {
    let entries = fs::read_dir(docs().join("conformance")).expect("stored reports");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn the_page_is_what_the_stored_reports_make() {
    let page = portcullis_natcheck::compare(&reports()).expect("reports");
    let stored = fs::read_to_string(docs().join("conformance.md")).expect("the page");
    assert!(
        page == stored,
        "docs/conformance.md is not what its reports make: portcullis natcheck --compare docs/conformance/*.json"
    );
}

#[test]
fn the_stored_reports_have_todays_rows() {
    let rows = portcullis_natcheck::identifiers();
    for path in reports() {
        let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).expect("a file")).expect("JSON");
        let findings = report["findings"].as_array().expect("findings");
        let stored: Vec<_> = findings.iter().map(|finding| finding["id"].as_str().expect("an identifier")).collect();
        assert_eq!(stored, rows, "{} was made with other rows: make it again", path.display());
    }
}

/// The names that stand in backticks and begin as requirements' tests do, in the page of each RFC; `..._rest` ends as one does.
#[test]
fn every_test_that_the_pages_of_the_requirements_name_is_there() {
    let files =
        fs::read_dir(docs().join("../crates/nat/tests")).expect("the NAT's tests").map(|file| file.expect("an entry").path());
    let tests: String = files.filter(|path| path.is_file()).map(|path| fs::read_to_string(path).expect("text")).collect();
    let is_there = |name: &str| match name.strip_prefix("...") {
        Some(end) => tests.contains(&format!("{end}()")),
        None => tests.contains(&format!("fn {name}()")),
    };
    for rfc in ["rfc4787", "rfc5382", "rfc5508", "rfc6888", "rfc7857"] {
        let page = fs::read_to_string(docs().join("rfc").join(rfc).with_extension("md")).expect("a page");
        let names = page.split('`').filter(|name| name.starts_with(&format!("{rfc}_")) || name.starts_with("..._"));
        let missing: Vec<_> = names.filter(|name| !is_there(name)).collect();
        assert!(missing.is_empty(), "{rfc}.md names tests that do not exist: {missing:?}");
    }
}
