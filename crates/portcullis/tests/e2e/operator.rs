//! What the operator sees: sessions, metrics, exit codes, and messages that say what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::namespace::Namespace;
use portcullis_testkit::topology::program::{Output, Program};
use portcullis_testkit::topology::{POOL, SERVER, is_root_or_skips};

use crate::world::{World, ask, binary, contains, queues, run_portcullis, udp, usual};

#[test]
fn sessions_are_listed_as_lines_and_as_json() {
    run_portcullis(usual(), |world| {
        let socket = udp(world.client(0), "10.0.0.2:6600")?;
        ask(&socket, "198.51.100.2:7", "hello")?;
        let lines = world.gateway.ask("sessions")?.success()?.stdout;
        let line = lines
            .lines()
            .find(|line| line.contains("10.0.0.2") && line.contains("6600"))
            .with_context(|| format!("no line:\n{lines}"))?;
        ["udp", "198.51.100.2", "203.0.113.10"].into_iter().try_for_each(|word| contains(line, word))?;
        let sessions = world.json_lines("sessions --json")?;
        let session = sessions.iter().find(|session| session["internal"]["port"] == 6600).context("no JSON of the session")?;
        ensure!(session["protocol"] == "udp" && session["internal"]["address"] == "10.0.0.2", "{session}");
        ensure!(session["external"]["address"] == POOL && session["remote"]["address"] == SERVER, "{session}");
        ensure!(session["packets_out"] == 1 && session["packets_in"] == 1, "{session}");
        contains(&world.gateway.ask("mappings")?.success()?.stdout, "6600")?;
        let mappings = world.json_lines("mappings --json")?;
        ensure!(mappings.iter().any(|mapping| mapping["internal"]["port"] == 6600), "no JSON of the mapping: {mappings:?}");
        Ok(())
    });
}

/// The tables are in memory before the first packet, and the control plane is not on a worker's core, where there are others.
#[test]
fn a_workers_core_is_its_own_and_its_tables_are_in_memory() {
    run_portcullis(usual(), |world| {
        let process = PathBuf::from(format!("/proc/{}", world.gateway.pid().context("the gateway is a program")?));
        let status = |path: &Path, name: &str| -> Result<String> {
            let text = fs::read_to_string(path.join("status"))?;
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            Ok(value.with_context(|| format!("no {name} in {}", path.display()))?.trim().to_owned())
        };
        let mut workers = Vec::new();
        for task in fs::read_dir(process.join("task"))? {
            let path = task?.path();
            if fs::read_to_string(path.join("comm"))?.starts_with("worker-") {
                workers.push(status(&path, "Cpus_allowed_list")?.parse::<usize>().context("a worker is on one core")?);
            }
        }
        ensure!(workers.len() == queues() as usize, "workers on {workers:?}");
        let others = cores_of(&status(&process, "Cpus_allowed_list")?)?;
        let shared = workers.iter().any(|worker| others.contains(worker));
        ensure!(
            shared == (workers.len() >= std::thread::available_parallelism()?.get()),
            "workers on {workers:?}, the rest on {others:?}"
        );
        let kibibytes = |name: &str| -> Result<u64> { Ok(status(&process, name)?.trim_end_matches(" kB").parse()?) };
        let resident = kibibytes("VmRSS")? + kibibytes("HugetlbPages")?;
        let log = world.gateway.log();
        let tables =
            log.lines().find_map(|line| line.split_once("tables: ")?.1.split_once(" MiB")).context("no tables in the log")?.0;
        let tables: u64 = tables.parse()?;
        ensure!(tables > 10 && resident > tables << 10, "{resident} KiB are in memory, of the tables alone {tables} MiB");
        Ok(())
    });
}

/// The numbers of a list such as `0-3,8`.
fn cores_of(list: &str) -> Result<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<usize>()?..=last.parse()?);
    }
    Ok(cores)
}

#[test]
fn metrics_and_health_are_served_and_count_what_was_sent() {
    run_portcullis(usual(), |world| {
        let host = world.topology.gateway();
        host.run("curl -sS --fail --max-time 5 http://127.0.0.1:9464/healthz")?;
        let count = |world: &World| world.metric("portcullis_outbound_packets_total", "");
        let before = count(world)?;
        world.client(0).run("ping -c 20 -i 0.01 -W 2 198.51.100.2")?;
        let counted = portcullis_testkit::topology::program::wait_until(Duration::from_secs(3), || {
            count(world).is_ok_and(|now| now >= before + 20.0)
        });
        ensure!(counted, "outbound packets: {before} before, {:?} after 20 pings", count(world));
        let page = world.metrics()?;
        for line in page.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            ensure!(line.starts_with("portcullis_") && value.is_some(), "no sample of ours: {line}");
        }
        world.json("stats --json").map(drop)
    });
}

#[test]
fn each_worker_is_shown_and_what_one_hands_off_another_gets() {
    run_portcullis(usual(), |world| {
        // From many ports, so that the kernel takes every queue of the wire.
        for port in 7000..7064 {
            ask(&udp(world.client(0), &format!("10.0.0.2:{port}"))?, "198.51.100.2:7", "hello")?;
            ask(&udp(world.client(1), &format!("10.0.0.3:{port}"))?, "198.51.100.2:7", "hello")?;
        }
        contains(&world.gateway.ask("stats --workers")?.success()?.stdout, "inside0 0")?;
        let sum = |worker: &serde_json::Value| {
            worker["handed_off"].as_array().into_iter().flatten().filter_map(|cause| cause["value"].as_u64()).sum::<u64>()
        };
        let mut workers = Vec::new();
        let settled = portcullis_testkit::topology::program::wait_until(Duration::from_secs(3), || {
            workers = world.json_lines("stats --workers --json").unwrap_or_default();
            let handed_in: u64 = workers.iter().filter_map(|worker| worker["handed_in"].as_u64()).sum();
            let frames = workers.iter().filter_map(|worker| worker["frames"]["total"].as_u64()).sum::<u64>();
            let handed_off = workers.iter().map(sum).sum::<u64>();
            // Workers publish once in a while: at first nothing is handed off, and all of it has arrived.
            handed_in == handed_off && frames == 32_768 && (queues() == 1 || handed_off > 0)
        });
        ensure!(settled, "nothing was handed off, or not all of it has arrived, or frames are under way: {workers:#?}");
        ensure!(workers.len() == queues() as usize, "{} queues, and {} workers", queues(), workers.len());
        ensure!(workers.iter().all(|worker| worker["frames"]["missing"] == 0), "{workers:#?}");
        Ok(())
    });
}

#[test]
fn version_names_the_program_and_its_version() {
    run_portcullis(usual(), |world| contains(&world.gateway.ask("version")?.success()?.stdout, env!("CARGO_PKG_VERSION")));
}

/// Runs the program alone, in no namespace.
fn portcullis<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Output> {
    Program::new(binary(), arguments).environment("NO_COLOR", "1").run()
}

/// A directory for a test's files, removed with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("pctest{}-{name}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_client_without_a_daemon_exits_with_69() -> Result<()> {
    for command in ["sessions", "mappings", "stats"] {
        let output = portcullis(["--socket", "/nonexistent/control.sock", command])?;
        ensure!(output.status.code() == Some(69), "{output}");
        contains(&output.stderr, "/nonexistent/control.sock")?;
    }
    Ok(())
}

/// A mistake in a file: what is put in, and what the message has to name.
const MISTAKES: [(&str, &str, &[&str]); 5] = [
    ("an unknown key", "[nat]\nfilterring = \"none\"\n", &["filterring", "filtering"]),
    ("a wrong type", "[timeouts]\nudp = 300\n", &["udp"]),
    (
        "a backward range",
        "[[forward]]\nprotocol = \"tcp\"\nexternal = \"203.0.113.10:90-80\"\ninternal = [\"10.0.0.2:80\"]\n",
        &["90-80"],
    ),
    ("the same interface twice", "[[interface]]\nname = \"inside0\"\nside = \"inside\"\n", &["inside0"]),
    (
        "a forward outside the pool",
        "[[forward]]\nprotocol = \"tcp\"\nexternal = \"203.0.113.99:80\"\ninternal = [\"10.0.0.2:80\"]\n",
        &["203.0.113.99"],
    ),
];

#[test]
fn check_and_run_refuse_a_bad_file_with_78_and_the_same_words() -> Result<()> {
    let directory = Directory::new("mistakes")?;
    for (mistake, tables, words) in MISTAKES {
        let text = Setup { tables: tables.to_owned(), ..Setup::default() }.toml(Path::new("/run/portcullis"));
        let file = directory.write("bad.toml", &text)?;
        let check = portcullis(["check", &file])?;
        ensure!(check.status.code() == Some(78), "{mistake}: {check}");
        words.iter().chain(&["bad.toml"]).try_for_each(|word| contains(&check.all(), word)).with_context(|| mistake.to_owned())?;
        let run = portcullis(["run", "--config", &file])?;
        ensure!(run.status.code() == Some(78), "{mistake}: {run}");
        words.iter().try_for_each(|word| contains(&run.all(), word)).with_context(|| mistake.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_good_file_passes_the_check() -> Result<()> {
    let directory = Directory::new("good")?;
    let file = directory.write("good.toml", &usual().toml(Path::new("/run/portcullis")))?;
    portcullis(["check", "--offline", &file])?.success().map(drop)
}

#[test]
fn check_compares_a_good_file_with_the_box() {
    run_portcullis(usual(), |world| {
        let directory = Directory::new("box")?;
        let file = directory.write("good.toml", &usual().toml(Path::new("/run/portcullis")))?;
        let program = binary().display().to_string();
        let check = |namespace: &Namespace| namespace.program(&program, ["check", &file]).run();
        check(world.topology.gateway())?.success()?;
        let elsewhere = check(world.topology.router())?;
        ensure!(elsewhere.status.code() == Some(78), "{elsewhere}");
        ["good.toml", "inside0", "outside0"].into_iter().try_for_each(|word| contains(&elsewhere.all(), word))
    });
}

#[test]
fn run_without_privilege_exits_with_77_and_names_the_capability() -> Result<()> {
    if !is_root_or_skips("run_without_privilege_exits_with_77_and_names_the_capability") {
        return Ok(());
    }
    let directory = Directory::new("unprivileged")?;
    let file = directory.write("good.toml", &usual().toml(&directory.0))?;
    let program = binary().display().to_string();
    let drop = ["--bounding-set=-all", "--inh-caps=-all", "--reuid=0", "--clear-groups", &program, "run", "--config", &file];
    let output = Program::new("setpriv", drop).run()?;
    ensure!(output.status.code() == Some(77), "{output}");
    contains(&output.all(), "CAP_NET_")
}

/// Starts a gateway that must refuse, and gives back what it said.
fn refused(world: &mut World, setup: Setup) -> Result<String> {
    world.gateway.stop()?;
    let outcome = world.restart(setup);
    let error = outcome.err().context("the gateway started")?;
    Ok(format!("{error:?}"))
}

#[test]
fn an_interface_that_does_not_exist_is_named() {
    run_portcullis(usual(), |world| {
        let said = refused(world, Setup { inside: vec!["inside7"], ..usual() })?;
        contains(&said, "inside7")?;
        world.start_again()
    });
}

#[test]
fn an_mtu_that_is_too_large_is_refused_with_what_to_do() {
    run_portcullis(usual(), |world| {
        world.gateway.stop()?;
        world.topology.gateway().ip("link set inside0 mtu 9000")?;
        let said = refused(world, usual());
        world.topology.gateway().ip("link set inside0 mtu 1500")?;
        let said = said?;
        ["inside0", "MTU", "9000"].into_iter().try_for_each(|word| contains(&said, word))?;
        world.start_again()
    });
}

#[test]
fn another_xdp_program_is_left_alone_and_named() {
    run_portcullis(usual(), |world| {
        let directory = Directory::new("xdp")?;
        let source =
            directory.write("pass.c", "__attribute__((section(\"xdp\"), used)) int pass(void *context) { return 2; }\n")?;
        let object = directory.0.join("pass.o").display().to_string();
        Program::new("clang", ["-O2", "-g", "-target", "bpf", "-c", &source, "-o", &object]).run()?.success()?;
        world.gateway.stop()?;
        let host = world.topology.gateway();
        host.run(&format!("ip link set dev outside0 xdp obj {object} sec xdp"))?;
        let said = refused(world, usual());
        let link = world.topology.gateway().ip("link show outside0")?;
        world.topology.gateway().ip("link set dev outside0 xdp off")?;
        let said = said?;
        contains(&link, "xdp").context("the other program was removed")?;
        ["outside0", "XDP"].into_iter().try_for_each(|word| contains(&said, word))?;
        world.start_again()
    });
}
