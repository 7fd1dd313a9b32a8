//! All of the comparison and the soak for a few seconds: every gateway carries packets, every figure is there, nothing is left behind.
//!
//! Needs root, and the built gateway beside the built benchmark (`cargo build --workspace --bins`). Blind spot: the figures themselves;
//! a machine that tests is not a quiet one.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_testkit::topology::{is_root_or_skips, skip};
use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_bench-veth");
const FLOWS: u64 = 100;

/// The machine: its cores are measured on, and its limits are raised, by one test at a time.
static MACHINE: Mutex<()> = Mutex::new(());

/// The machine, where the comparison can run here. Says so loudly when not.
fn machine_for(test: &str) -> Option<MutexGuard<'static, ()>> {
    if !is_root_or_skips(test) {
        return None;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        skip("needs two cores", test);
        return None;
    }
    if !Path::new(BENCH).with_file_name("portcullis").exists() {
        skip("the gateway is not built: cargo build --workspace --bins", test);
        return None;
    }
    Some(MACHINE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn directory(test: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("pcveth-smoke-{}-{test}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn bench(words: &str) -> Command {
    let mut command = Command::new(BENCH);
    command.args(words.split_whitespace());
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Namespaces of the benchmark with this process number.
fn namespaces_of(process: u32) -> usize {
    let prefix = format!("pcveth{process}-");
    let Ok(entries) = fs::read_dir("/run/netns") else { return 0 };
    entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

/// Whether the kernel translates in the gateway's namespace of the benchmark with this process number.
fn has_rules(process: u32) -> bool {
    let gateway = format!("pcveth{process}-gateway");
    let words = ["netns", "exec", &gateway, "nft", "list", "table", "ip", "bench"];
    Command::new("ip").args(words).output().is_ok_and(|output| output.status.success())
}

#[test]
fn every_gateway_carries_packets_and_every_figure_is_there() {
    let Some(_machine) = machine_for("every_gateway_carries_packets_and_every_figure_is_there") else { return };
    let out = directory("run");
    let words =
        format!("run --flows {FLOWS} --sizes 64 --directions both --trial 0.1 --measure 0.1 --steps 2 --capacity 131072 --out");
    let output = bench(&words).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));

    let files: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    let with = |wanted: &str| files.iter().find(|file| file.extension().is_some_and(|extension| extension == wanted)).unwrap();
    let report: Value = serde_json::from_str(&fs::read_to_string(with("json")).unwrap()).unwrap();
    let cells = report["cells"].as_array().unwrap();
    let gateways: Vec<_> = cells.iter().map(|cell| cell["gateway"].as_str().unwrap()).collect();
    assert_eq!(gateways, ["kernel", "bare", "bare_busy", "portcullis"]);
    for cell in cells {
        assert_eq!((&cell["established"], &cell["both"], &cell["flows"]), (&FLOWS.into(), &true.into(), &FLOWS.into()), "{cell}");
        for figure in
            ["cpu_ns", "overload", "overload_offered", "overload_share", "overload_cpu_ns", "latency_p50", "latency_p99", "trials"]
        {
            assert!(cell[figure].as_f64().unwrap() > 0.0, "{figure}: {cell}");
        }
        assert!(cell["loss_free"].as_f64().is_some() && cell["disturbed"].as_f64().is_some(), "{cell}");
        assert!(
            ["ip_checksum", "udp_checksum", "endpoint", "changed_endpoint", "duplicates"]
                .iter()
                .all(|kind| cell["wrong"][kind] == 0)
        );
    }
    let ratio = &report["ratios"][0];
    for figure in ["cpu_by_bare", "cpu_by_kernel", "overload_share", "p99_by_kernel"] {
        assert!(ratio[figure].as_f64().unwrap() > 0.0, "{figure}: {ratio}");
    }
    let new_flows = report["new_flows"].as_array().unwrap();
    assert_eq!(new_flows.len(), 2);
    assert!(new_flows.iter().all(|measured| measured["cpu_ns"].as_f64().unwrap() > 0.0), "{new_flows:?}");
    for figure in ["processor", "cores", "kernel"] {
        assert!(!report["machine"][figure].is_null());
    }
    assert!(fs::read_to_string(with("svg")).unwrap().ends_with("</svg>\n"));
    assert!(text(&output).contains("100 flows, 64 bytes, both ways"), "{}", text(&output));
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn rounds_give_ratios_with_their_spread() {
    let Some(_machine) = machine_for("rounds_give_ratios_with_their_spread") else { return };
    let out = directory("rounds");
    let words = format!("rounds --flows {FLOWS} --directions both --rate 20000 --rounds 2 --measure 0.1 --capacity 131072 --out");
    let output = bench(&words).arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let file = fs::read_dir(&out).unwrap().next().unwrap().unwrap().path();
    let report: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let samples = report["samples"].as_array().unwrap();
    let turns: Vec<_> = samples.iter().map(|sample| sample["gateway"].as_str().unwrap()).collect();
    assert_eq!(turns, ["kernel", "bare_busy", "portcullis", "bare_busy", "portcullis", "kernel"]);
    for figure in ["passed", "cpu_ns", "overload", "overload_offered", "overload_share"] {
        assert!(samples.iter().all(|sample| sample[figure].as_f64().unwrap() > 0.0), "{figure}: {samples:?}");
    }
    // Half of the rate each way; what the tester did not reach was not offered.
    assert!(samples.iter().all(|sample| sample["passed"].as_f64().unwrap() < 21_000.0), "{samples:?}");
    for load in ["latency", "latency_at_half"] {
        let figures = |sample: &Value| ["p50", "p99", "p99_of_sent"].map(|figure| sample[load][figure].as_u64().unwrap());
        let right = |sample: &Value| figures(sample).is_sorted() && sample[load]["lost"].is_f64();
        assert!(samples.iter().all(right), "{load}: {samples:?}");
    }
    let pair = &report["pairs"][0];
    let by_kernel =
        ["overload_by_kernel", "p99_by_kernel", "p99_at_half_by_kernel", "p99_of_sent_by_kernel", "p99_of_sent_at_half_by_kernel"];
    for ratio in ["cpu_by_bare", "cpu_by_kernel", "overload_share"].into_iter().chain(by_kernel) {
        let [low, median, high] = ["low", "median", "high"].map(|which| pair[ratio][which].as_f64().unwrap());
        assert!(0.0 < low && low <= median && median <= high, "{ratio}: {pair}");
    }
    assert!(text(&output).contains("100 flows, 64 bytes, both ways, 2 rounds"), "{}", text(&output));
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn a_short_soak_leaves_no_session_and_says_what_it_saw() {
    let Some(_machine) = machine_for("a_short_soak_leaves_no_session_and_says_what_it_saw") else { return };
    let out = directory("soak");
    let words = "soak --json --minutes 0.03 --rate 10000 --flows 100 --new-flows 2000 --capacity 131072 --out";
    let output = bench(words).arg(&out).output().unwrap();
    let line = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    let shown: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{}", text(&output)));
    let number = |name: &str| shown[name].as_u64().unwrap_or_else(|| panic!("{name}: {shown}"));
    assert!(number("sent") > 5_000, "{shown}");
    // A machine that tests may stall: then something is lost, and said.
    assert!(number("lost") < number("sent") * 9 / 10 && shown["lost_by_tester"].is_u64(), "{shown}");
    assert_eq!((number("sessions_left"), number("mappings_left")), (0, 0), "{shown}");
    assert!(number("memory_before") > 0 && number("memory_after") > 0);
    assert_eq!(output.status.success(), shown["faults"].as_array().unwrap().is_empty(), "{shown}");
    let files: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    let written =
        |extension: &str| fs::read_to_string(files.iter().find(|file| file.extension().unwrap() == extension).unwrap()).unwrap();
    let report: Value = serde_json::from_str(&written("json")).unwrap();
    assert_eq!((&report["result"], files.len()), (&shown, 2));
    assert!(written("svg").contains("the soak of portcullis"));
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn an_interrupted_run_leaves_nothing_behind() {
    let Some(_machine) = machine_for("an_interrupted_run_leaves_nothing_behind") else { return };
    let settings =
        ["/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/vm/stat_interval", "/sys/devices/virtual/workqueue/cpumask"];
    let settings = || settings.map(|path| fs::read_to_string(path).unwrap());
    let (out, before) = (directory("interrupted"), settings());
    let mut child =
        bench("run --flows 100 --sizes 64 --out").arg(&out).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while namespaces_of(child.id()) < 3 && start.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(20));
    }
    assert_eq!(namespaces_of(child.id()), 3);
    // While a gateway has its rules: the kernel's is the first.
    while !has_rules(child.id()) && start.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(20));
    }
    assert!(has_rules(child.id()));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{status}");
    assert_eq!(namespaces_of(child.id()), 0);
    assert_eq!(settings(), before);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn bad_input_is_refused_with_what_to_do() {
    for (words, code, said) in [
        ("run --sizes 65", 1, "even, 64 to 1514"),
        ("run --flows 0", 2, "--flows"),
        ("rounds --rate 0", 2, "--rate"),
        ("rounds --sizes 65", 1, "even, 64 to 1514"),
        ("soak --minutes 0", 2, "0.01 to 1440 minutes"),
        ("run --portcullis /no/such/program", 1, "cargo build --release -p portcullis"),
        ("soak --rate 60000", 1, "need at least 70000 packets a second"),
        ("run --gateway-core 0 --tester-core 0", 1, "--tester-core"),
    ] {
        if !nix::unistd::geteuid().is_root() && code == 1 {
            skip("needs root", words);
            continue;
        }
        let output = bench(words).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {}", text(&output));
        assert!(text(&output).contains(said), "{words}: {}", text(&output));
    }
}
