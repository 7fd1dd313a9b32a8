//! The built binary as an operator's script meets it: exit codes, what goes to which stream, broken pipes. The gateway's part is
//! played by a thread with canned answers; the real server's answers are tested beside it, in `control/tests.rs`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

/// A directory of one test alone, gone afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-commands-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn portcullis(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    portcullis(arguments).output().expect("the binary runs")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Answers one request at `socket` with `head` and `body`; gives back the request's first line.
fn answer(socket: &Path, head: &'static str, body: String) -> thread::JoinHandle<String> {
    let listener = UnixListener::bind(socket).expect("a socket");
    thread::spawn(move || answer_next(&listener, head, &body))
}

fn answer_next(listener: &UnixListener, head: &str, body: &str) -> String {
    let (stream, _) = listener.accept().expect("an asker");
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    lines.find(String::is_empty);
    let mut stream = stream;
    // The asker may hang up before the end: that is what some tests are about.
    let _ = write!(stream, "{head}\r\nconnection: close\r\n\r\n{body}");
    request
}

const OK: &str = "HTTP/1.1 200 OK";

fn session_line(port: u32) -> String {
    format!(
        concat!(
            r#"{{"entry":{{"protocol":"udp","state":"replied","direction":"outbound","#,
            r#""internal":{{"address":"10.0.0.2","port":{port}}},"external":{{"address":"203.0.113.10","port":1024}},"#,
            r#""remote":{{"address":"198.51.100.1","port":53}},"#,
            r#""expires_in_milliseconds":30000,"packets_out":1,"packets_in":1}}}}"#,
            "\n"
        ),
        port = port
    )
}

const LEGAL: &str = r#"
[[interface]]
name = "eth1"
side = "inside"

[[interface]]
name = "eth0"
side = "outside"

[[pool]]
name = "default"
addresses = ["203.0.113.10"]
"#;

#[test]
fn usage_errors_end_with_2() {
    for arguments in
        [&[][..], &["frobnicate"], &["sessions", "--protocol", "sctpp"], &["sessions", "--internal", "here"], &["check"]]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_and_version_end_with_0() {
    for arguments in [&["--help"][..], &["sessions", "--help"], &["--version"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_a_gateway_the_answer_is_69_and_how_to_start_it() {
    let directory = Directory::new("nobody");
    let socket = directory.socket();
    for arguments in [&["sessions"][..], &["sessions", "--json"], &["mappings"], &["stats"]] {
        let output = portcullis(arguments).args(["--socket", text(&socket)]).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(69), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(text(&socket)) && said.contains("portcullis run --config"), "{said}");
        assert!(output.stdout.is_empty());
    }
    drop(UnixListener::bind(&socket).expect("a socket"));
    assert_eq!(run(&["stats", "--socket", text(&socket)]).status.code(), Some(69), "a dead process left its socket");
}

#[test]
fn a_version_is_told_without_a_gateway_too() {
    let directory = Directory::new("version");
    let output = run(&["version", "--socket", text(&directory.socket())]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains(env!("CARGO_PKG_VERSION")) && said.contains("running: no"), "{said}");
}

#[test]
fn check_tells_legal_from_not() {
    let directory = Directory::new("check");
    let legal = directory.file("legal.toml", LEGAL);
    let output = run(&["check", "--offline", text(&legal)]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let wrong = directory.file("wrong.toml", &LEGAL.replace("side = \"inside\"", "site = \"inside\""));
    for arguments in [["check", text(&wrong)], ["check", "/nowhere/at/all.toml"]] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(arguments[1]), "the file is named: {said}");
    }
    let check = run(&["check", text(&wrong)]);
    let run = run(&["run", "--config", text(&wrong)]);
    assert_eq!(run.status.code(), Some(78));
    assert_eq!(run.stderr, check.stderr, "both say the same");
}

#[test]
fn entries_go_to_stdout_and_the_count_to_stderr() {
    let directory = Directory::new("sessions");
    let body = format!("{}{}{{\"end\":{{\"entries\":2}}}}\n", session_line(1), session_line(2));
    let gateway = answer(&directory.socket(), OK, body);
    let output = run(&["sessions", "--protocol", "udp", "--internal", "10.0.0.0/8", "--socket", text(&directory.socket())]);
    assert_eq!(gateway.join().expect("the gateway"), "GET /v1/sessions?protocol=udp&internal=10.0.0.0/8 HTTP/1.1");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "udp      17 30 src=10.0.0.2 dst=198.51.100.1 sport=1 dport=53 \
         src=198.51.100.1 dst=203.0.113.10 sport=53 dport=1024 [ASSURED]\n\
         udp      17 30 src=10.0.0.2 dst=198.51.100.1 sport=2 dport=53 \
         src=198.51.100.1 dst=203.0.113.10 sport=53 dport=1024 [ASSURED]\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "portcullis: 2 flow entries have been shown.\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn json_is_one_value_a_line() {
    let directory = Directory::new("json");
    let gateway = answer(&directory.socket(), OK, format!("{}{{\"end\":{{\"entries\":1}}}}\n", session_line(7)));
    let output = run(&["sessions", "--json", "--socket", text(&directory.socket())]);
    gateway.join().expect("the gateway");
    let lines: Vec<_> = output.stdout.lines().map(|line| line.expect("text")).collect();
    assert_eq!(lines.len(), 1);
    let value: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(value["internal"]["port"], 7);
    assert_eq!(output.status.code(), Some(0));
}

/// The answer of an older gateway, without what was added since.
const STATS: &str = concat!(
    r#"{"api":1,"portcullis":"0.1.0","uptime_seconds":10.0,"unhealthy":null,"#,
    r#""config":{"path":"x","last_reload_successful":true,"last_success_unix_seconds":0.0,"generation":1},"interfaces":[],"#,
    r#""gauges":{"mappings":0,"mappings_limit":0,"sessions":0,"sessions_limit":0,"subscribers":0,"fragments":0},"#,
    r#""ports":[],"counters":[],"drops":[],"xdp":[],"queues":[],"frames":{},"#,
    r#""workers":[{"worker":0,"packets":30,"queues":[{"interface":"eth0","queue":0}]},{"worker":1,"packets":10}]}"#
);

#[test]
fn who_looks_for_udp_among_sessions_is_told_of_bare_mappings() {
    let bare = STATS.replace("\"path\"", "\"udp_tracking\":\"mappings\",\"path\"");
    let rows = [
        (&["sessions"][..], bare.as_str(), true),
        (&["sessions", "--protocol", "udp"], &bare, true),
        (&["sessions"], STATS, false),
    ];
    for (arguments, stats, is_told) in rows {
        let directory = Directory::new("bare");
        let listener = UnixListener::bind(directory.socket()).expect("a socket");
        let stats = stats.to_owned();
        let gateway = thread::spawn(move || {
            answer_next(&listener, OK, "{\"end\":{\"entries\":0}}\n");
            answer_next(&listener, OK, &stats)
        });
        let output = portcullis(arguments).args(["--socket", text(&directory.socket())]).output().expect("the binary runs");
        assert_eq!(gateway.join().expect("the gateway"), "GET /v1/stats HTTP/1.1");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.stdout.is_empty() && said.contains("0 flow entries"), "{said}");
        assert_eq!(said.contains("bare mappings") && said.contains("`portcullis mappings`"), is_told, "{arguments:?}: {said}");
    }
}

#[test]
fn programs_and_who_looks_for_other_protocols_are_not_told_of_bare_mappings() {
    for arguments in [&["sessions", "--json"][..], &["sessions", "--protocol", "tcp"]] {
        let directory = Directory::new("not-bare");
        let listener = UnixListener::bind(directory.socket()).expect("a socket");
        let gateway = thread::spawn({
            let listener = listener.try_clone().expect("a second handle");
            move || answer_next(&listener, OK, "{\"end\":{\"entries\":0}}\n")
        });
        let output = portcullis(arguments).args(["--socket", text(&directory.socket())]).output().expect("the binary runs");
        gateway.join().expect("the gateway");
        listener.set_nonblocking(true).expect("a socket");
        assert!(listener.accept().is_err(), "{arguments:?}: there was a second request");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("bare"), "{arguments:?}");
    }
}

#[test]
fn workers_are_shown_one_a_row_and_as_json_one_a_line() {
    let directory = Directory::new("workers");
    for (arguments, first, second) in [
        (&["stats", "--workers"][..], "0       eth0 0", "1"),
        (&["stats", "--workers", "--json"], r#"{"worker":0,"#, r#"{"worker":1,"#),
    ] {
        let _ = fs::remove_file(directory.socket());
        let gateway = answer(&directory.socket(), OK, STATS.to_owned());
        let output = portcullis(arguments).args(["--socket", text(&directory.socket())]).output().expect("the binary runs");
        assert_eq!(gateway.join().expect("the gateway"), "GET /v1/stats HTTP/1.1");
        let lines: Vec<_> = output.stdout.lines().map(|line| line.expect("text")).collect();
        let row = lines.iter().position(|line| line.starts_with(first)).unwrap_or_else(|| panic!("{first} in {lines:#?}"));
        assert!(lines[row + 1].starts_with(second), "{lines:#?}");
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn an_answer_that_is_cut_off_refused_or_nonsense_ends_with_1() {
    let refused = r#"{"kind":"busy","message":"the worker is busy"}"#.to_owned();
    for (name, head, body, says) in [
        ("cut", OK, session_line(1), "cut off"),
        ("told", OK, "{\"error\":{\"kind\":\"worker_silent\",\"message\":\"it did not answer\"}}\n".to_owned(), "did not answer"),
        ("refused", "HTTP/1.1 503 Service Unavailable", refused, "the worker is busy"),
        ("nonsense", OK, "what?\n".to_owned(), "cannot be read"),
        ("not-http", "SSH-2.0-what", String::new(), "did not answer"),
    ] {
        let directory = Directory::new(name);
        let gateway = answer(&directory.socket(), head, body);
        let output = run(&["sessions", "--socket", text(&directory.socket())]);
        gateway.join().expect("the gateway");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(says), "{name}: {said}");
        assert!(!said.contains("have been shown"), "{name}: {said}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_listing_quietly() {
    let directory = Directory::new("pipe");
    let body: String = (0..20_000).map(session_line).collect();
    let gateway = answer(&directory.socket(), OK, body);
    let mut child = portcullis(&["sessions", "--socket", text(&directory.socket())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut first).expect("a line");
    assert!(first.starts_with("udp "), "{first}");
    // The reader is dropped here, as `head -1` does.
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    gateway.join().expect("the gateway");
}
