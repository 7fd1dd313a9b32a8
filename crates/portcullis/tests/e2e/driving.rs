//! `worker.busy_poll = "always"`: the worker runs the devices itself, loses nothing when it begins, and leaves them as they were.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portcullis_testkit::topology::gateway::Setup;
use portcullis_testkit::topology::program::wait_until;

use crate::world::{World, ask, contains, run_portcullis, udp, usual};

/// How long it may take until a device is driven, once packets come.
const DRIVEN: Duration = Duration::from_secs(20);
/// The kernel runs a queue that nobody has polled for 200 ms.
const FALLBACK: Duration = Duration::from_millis(200);

fn always() -> Setup {
    let usual = usual();
    Setup { tables: format!("{}\n[worker]\nbusy_poll = \"always\"\n", usual.tables), ..usual }
}

/// What a device is told: empty polls until interrupts, and nanoseconds until the kernel polls.
fn deferral(world: &World, device: &str) -> Result<(u64, u64)> {
    let read = |file: &str| -> Result<u64> {
        let text = world.topology.gateway().run(&format!("cat /sys/class/net/{device}/{file}"))?;
        text.trim().parse().with_context(|| format!("{file} of {device}: {text:?}"))
    };
    Ok((read("napi_defer_hard_irqs")?, read("gro_flush_timeout")?))
}

fn is_driven(world: &World, device: &str) -> Result<bool> {
    let stats = world.json("stats --json")?;
    let interfaces = stats["interfaces"].as_array().context("interfaces")?;
    let interface = interfaces.iter().find(|interface| interface["name"] == device).context("the interface")?;
    Ok(interface["busy_poll"] == true)
}

/// Sends single datagrams, which are all answered, until every queue has had one.
fn drive(world: &World) -> Result<()> {
    let mut failed = None;
    let driven = wait_until(DRIVEN, || {
        let round = || -> Result<bool> {
            for port in 0..8 {
                let client = udp(world.client(0), &format!("10.0.0.2:{}", 7000 + port))?;
                ask(&client, "198.51.100.2:7", "datagram").context("a datagram was lost")?;
            }
            Ok(is_driven(world, "inside0")? && is_driven(world, "outside0")?)
        };
        round().unwrap_or_else(|error| {
            failed = Some(error);
            true
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    ensure!(driven, "the worker does not run the devices");
    Ok(())
}

/// How often the control plane has gone to sleep.
fn sleeps(world: &World) -> Result<u64> {
    let pid = world.gateway.pid().context("a process")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).context("the count")?;
    Ok(line.trim().parse()?)
}

fn is_left_alone(world: &World) -> Result<()> {
    for device in ["inside0", "outside0"] {
        let now = deferral(world, device)?;
        ensure!(now == (0, 0), "{device} is not as it was: {now:?}");
    }
    Ok(())
}

#[test]
fn the_worker_runs_the_devices_from_the_first_packet_and_no_packet_is_lost() {
    run_portcullis(always(), |world| {
        world.restart(always())?;
        is_left_alone(world).context("before the first packet")?;
        drive(world)?;
        for device in ["inside0", "outside0"] {
            let (deferrals, timeout) = deferral(world, device)?;
            ensure!(deferrals > 0 && timeout == 200_000_000, "{device}: {deferrals} {timeout}");
        }
        // Were it the kernel that ran a queue, each datagram would wait for its timer.
        let client = udp(world.client(0), "10.0.0.2:7100")?;
        let start = std::time::Instant::now();
        for _ in 0..20 {
            ask(&client, "198.51.100.2:7", "quick")?;
        }
        ensure!(start.elapsed() < FALLBACK * 10, "20 answers took {:.1?}", start.elapsed());
        ensure!(world.metric("portcullis_interface_info", "busy_poll=\"yes\"")? >= 2.0, "the metric says otherwise");
        let carried = world.metric("portcullis_xdp_packets_total", "pass_carried")?;
        let queues = f64::from(crate::world::queues()) * 2.0;
        ensure!((carried - queues).abs() < 0.5, "{carried} frames were carried for {queues} queues");
        world.gateway.stop()?;
        is_left_alone(world).context("after the end")?;
        world.start_again()
    });
}

#[test]
fn the_control_plane_sleeps_while_a_device_waits_for_its_first_packet_and_while_it_is_driven() {
    run_portcullis(always(), |world| {
        world.restart(always())?;
        ensure!(!is_driven(world, "outside0")?, "a packet has come by itself");
        let sleeps_in_two_seconds = |world: &World| -> Result<u64> {
            let before = sleeps(world)?;
            std::thread::sleep(Duration::from_secs(2));
            Ok(sleeps(world)? - before)
        };
        let waiting = sleeps_in_two_seconds(world)?;
        drive(world)?;
        let driven = sleeps_in_two_seconds(world)?;
        // Its own rounds are one a second, in a few tasks; what the kernel tells of its neighbours comes beside.
        ensure!(waiting < 50 && driven < 50, "it woke {waiting} times in two seconds, and {driven} times");
        Ok(())
    });
}

#[test]
fn a_device_that_was_down_is_driven_again() {
    run_portcullis(always(), |world| {
        drive(world)?;
        world.topology.gateway().ip("link set outside0 down")?;
        ensure!(wait_until(DRIVEN, || is_driven(world, "outside0").is_ok_and(|driven| !driven)), "it is not noticed");
        ensure!(deferral(world, "outside0")? == (0, 0), "the device is the kernel's meanwhile");
        world.topology.gateway().ip("link set outside0 up")?;
        world.topology.gateway().ip("route replace default via 203.0.113.2")?;
        world.wait_for_traffic(DRIVEN)?;
        drive(world)
    });
}

#[test]
fn what_a_killed_gateway_has_set_is_put_back_by_the_next() {
    run_portcullis(always(), |world| {
        drive(world)?;
        world.gateway.kill()?;
        ensure!(deferral(world, "inside0")?.1 == 200_000_000, "a killed process puts nothing back");
        let ping = world.client(0).program("ping", ["-c", "1", "-W", "2", "10.0.0.1"]).run()?;
        contains(&ping.all(), " 0% packet loss").context("the kernel runs the queues of a dead worker")?;
        world.restart(usual())?;
        is_left_alone(world)?;
        world.wait_for_traffic(Duration::from_secs(8)).map(drop)
    });
}
