//! natcheck against Portcullis, against the kernel, and against a NAT that is wrong on purpose. As root; skipped loudly otherwise.
//!
//! Only rows that need no minutes. What Portcullis is known to violate stands here, with the reason, and nowhere else: a row more is a
//! regression, a row less has to be taken off the list. Blind spots: veth, copy mode, and timers of minutes.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use portcullis_testkit::topology;

/// What Portcullis violates, and why it does.
const KNOWN: [(&str, &str); 2] =
    [("4787-8", "the default is stricter than recommended; nat.filtering"), ("5382-3", "the same for TCP")];

/// The same with bare mappings, where UDP lets everyone in.
const KNOWN_BARE: [(&str, &str); 2] = [
    ("4787-6a", "what comes in keeps no bare mapping; nat.inbound_refresh"),
    ("5382-3", "the default is stricter than recommended; nat.filtering_tcp"),
];

/// What no RFC asks for, so that a NAT without it would not violate it.
const BESIDES: [&str; 4] = ["other-1", "other-2", "other-3", "other-4"];

/// What the kernel is known to violate: collisions move mappings, ports are shared, no hairpinning without a rule, a short timer after a RST,
/// and what conntrack calls invalid leaves as it is.
const KERNEL: [&str; 7] = ["4787-1c", "4787-3", "4787-9", "5382-4", "7857-2.2w", "hostile-state", "leak"];
/// What the kernel is known to do well, so that a tester that fails everything is found.
const KERNEL_HOLDS: [&str; 7] = ["4787-1", "4787-2", "4787-14", "5382-2", "5382-2a", "5508-4", "5508-10a"];

/// Runs natcheck with these words. Gives its exit code, and the identifiers of the rows that came out as `violated` and as `holds`.
fn natcheck(words: &[&str]) -> (Option<i32>, BTreeSet<String>, BTreeSet<String>, serde_json::Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let output = command.args(["natcheck", "--json"]).args(words).stdin(Stdio::null()).output().expect("natcheck runs");
    let complaints = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("natcheck {words:?}: {error}\n{complaints}"));
    let with = |status: &str| {
        let findings = report["findings"].as_array().expect("findings");
        let rows = findings.iter().filter(|finding| finding["status"] == status);
        rows.map(|finding| finding["id"].as_str().expect("an identifier").to_owned()).collect()
    };
    (output.status.code(), with("violated"), with("holds"), report)
}

/// What the report says about some rows, for a test that fails.
fn notes(report: &serde_json::Value, rows: &[&String]) -> String {
    let findings = report["findings"].as_array().expect("findings");
    let wanted = findings.iter().filter(|finding| rows.iter().any(|id| finding["id"] == **id));
    wanted.map(|finding| format!("\n{}: {}", finding["id"], finding["note"])).collect::<Vec<_>>().concat()
}

/// Of rows that came out otherwise than expected, those that do so again and again: some of them count lost packets, and a machine with other
/// work loses some. Each is run twice more, without the others.
fn persistent(words: &[&str], mut rows: BTreeSet<String>, is_as_expected: impl Fn(&str, bool) -> bool) -> BTreeSet<String> {
    for _ in 0..2 {
        if rows.is_empty() {
            break;
        }
        let only = rows.iter().cloned().collect::<Vec<_>>().join(",");
        let (_, violated, _, report) = natcheck(&[words, &["--only", &only]].concat());
        println!("once more: {only}{}", notes(&report, &rows.iter().collect::<Vec<_>>()));
        rows.retain(|id| !is_as_expected(id, violated.contains(id)));
    }
    rows
}

fn violates_what_is_known_and_nothing_else(words: &[&str], known: &[(&str, &str)]) {
    let (code, violated, holds, report) = natcheck(words);
    let known: BTreeSet<_> = known.iter().map(|(id, _)| (*id).to_owned()).collect();
    let other = violated.symmetric_difference(&known).cloned().collect();
    let other = persistent(words, other, |id, is_violated| known.contains(id) == is_violated);
    let (mended, new): (Vec<_>, Vec<_>) = other.iter().partition(|id| known.contains(*id));
    assert!(new.is_empty(), "violated, and not known to be: {new:?}{}", notes(&report, &new));
    assert!(
        mended.is_empty(),
        "no longer violated, take it off the list of known deviations: {mended:?}{}",
        notes(&report, &mended)
    );
    let untested: Vec<_> =
        BESIDES.iter().map(|id| (*id).to_owned()).filter(|id| !holds.contains(id) && !violated.contains(id)).collect();
    assert!(untested.is_empty(), "not even tested: {untested:?}{}", notes(&report, &untested.iter().collect::<Vec<_>>()));
    assert!(holds.len() > 80, "only {} rows hold", holds.len());
    assert_eq!(code, Some(0), "no MUST is violated");
}

#[test]
fn portcullis_in_each_way_and_the_kernel_violate_what_they_are_known_to() {
    if !topology::is_root_or_skips("natcheck::portcullis_in_each_way_and_the_kernel_violate_what_they_are_known_to") {
        return;
    }
    // Most of each one's time is waiting.
    std::thread::scope(|scope| {
        scope.spawn(|| violates_what_is_known_and_nothing_else(&[], &KNOWN));
        scope.spawn(|| violates_what_is_known_and_nothing_else(&["--workers", "2", "--queues", "2"], &KNOWN));
        scope.spawn(|| violates_what_is_known_and_nothing_else(&["--udp-tracking", "mappings"], &KNOWN_BARE));
        scope.spawn(the_kernel_violates_what_it_is_known_to);
    });
}

fn the_kernel_violates_what_it_is_known_to() {
    let words = ["--nat", "kernel"];
    let (code, violated, holds, report) = natcheck(&words);
    let other = KERNEL.iter().filter(|id| !violated.contains(**id)).chain(KERNEL_HOLDS.iter().filter(|id| !holds.contains(**id)));
    let other = other.map(|id| (*id).to_owned()).collect();
    let other = persistent(&words, other, |id, is_violated| KERNEL.contains(&id) == is_violated);
    assert!(other.is_empty(), "not as the kernel is known to do: {other:?}{}", notes(&report, &other.iter().collect::<Vec<_>>()));
    assert_eq!(code, Some(1));
}

/// The driver for other NATs, here one that masquerades and then spoils each UDP checksum; what it says it cannot do is no violation.
#[test]
fn a_nat_that_spoils_checksums_is_found() {
    if !topology::is_root_or_skips("natcheck::a_nat_that_spoils_checksums_is_found") {
        return;
    }
    let setup = "test -z \"$NATCHECK_FILTERING_UDP\" || { echo one filter only; exit 3; }; nft -f - <<END
table ip spoiler {
    chain out {
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"$NATCHECK_OUTSIDE\" masquerade
    }
    chain spoil {
        type filter hook postrouting priority srcnat + 10; policy accept;
        oifname \"$NATCHECK_OUTSIDE\" udp checksum set 0x1234
    }
}
END";
    let rows = "4787-1,4787-8a,checksums,leak";
    let (code, violated, holds, report) = natcheck(&["--nat", "command", "--name", "spoiler", "--setup", setup, "--only", rows]);
    assert_eq!(violated, BTreeSet::from(["checksums".to_owned()]), "{report}");
    assert_eq!(holds, BTreeSet::from(["4787-1".to_owned(), "leak".to_owned()]), "{report}");
    assert_eq!(report["findings"][1]["note"], "one filter only");
    assert_eq!(report["version"], "spoiler");
    assert_eq!(code, Some(1));
}

#[test]
fn usage_and_environment_end_with_2_and_say_why() {
    let is_root = nix::unistd::geteuid().is_root();
    let rows: [(&[&str], &str); 4] = [
        (&["--only", "1-2"], if is_root { "there is no row 1-2" } else { "needs root" }),
        (&["--nat", "kernel", "--udp-tracking", "mappings"], if is_root { "--nat portcullis" } else { "needs root" }),
        (&["--compare", "/nowhere.json"], "reading /nowhere.json"),
        (&["--nat", "command"], "--setup"),
    ];
    for (words, says) in rows {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).arg("natcheck").args(words).output().expect("natcheck runs");
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {complaints}");
        assert!(complaints.contains(says), "{words:?}: {complaints}");
    }
}
