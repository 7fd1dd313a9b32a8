//! That docs/conformance.md is what `portcullis natcheck --compare docs/conformance/*.json` prints, and that the reports have today's rows.

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
