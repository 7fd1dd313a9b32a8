//! `run`: the gateway itself, from a configuration to a clean end.
//!
//! Knows the order in which the rooms are brought up, kept in step with the kernel and taken down; each of them does its own work.
//! Invariants: the guard is attached before anything may be translated and stays afterwards; the XDP program is attached after its
//! tables are written; what start-up took, the end gives back. Called by `cli`. Tests: the end-to-end tests.

mod cores;
mod devices;
mod division;
mod driving;
mod gateway;
mod hops;
mod nics;
mod outlook;
mod parts;
mod placement;
mod ports;
mod punter;
mod raised;
mod spread;
mod steering;
mod workers;

use std::path::Path;
use std::time::Duration;

use portcullis_config::Config;
use portcullis_xsk::capability;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::exit::Failure;
use crate::kernel::Mirror;
use gateway::Gateway;
pub(crate) use outlook::outlook;
pub(crate) use parts::{local_ports, noted_program};
pub(crate) use spread::{NicTouch, WayFound};

/// How often the control plane looks at what nobody wakes it for: where devices put frames, whether they have been down, who is to run
/// their queues, and the news that no packet waits for.
const ROUND_EVERY: Duration = Duration::from_secs(1);

/// Is the gateway with the configuration at `config` until it is told to stop. `socket` overrides the configuration's.
pub(crate) fn run(config: &Path, socket: Option<&Path>, touch: NicTouch) -> Result<(), Failure> {
    let rules = load(config, socket)?;
    start_log(rules.log.level.as_str());
    let missing = capability::missing();
    if !missing.is_empty() {
        return Err(Failure::Privilege(format!(
            "the gateway lacks {}: start it as root, or give it these capabilities (systemd: AmbientCapabilities=)",
            missing.join(", ")
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(serve(&rules, config, socket, touch))
}

/// Compares a configuration with the box, as [`run`] does before it changes anything. **Errors:** [`Failure::Config`] with all that does
/// not fit.
pub(crate) fn check(rules: &Config) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(async {
        let mirror = Mirror::start(Vec::new()).await.map_err(anyhow::Error::from)?;
        let state = mirror.state();
        for warning in devices::check(rules, &state)? {
            eprintln!("{warning}");
        }
        rules.interfaces.iter().try_for_each(|interface| devices::place(&state, interface).map(drop))?;
        for warning in rules.doubt_shares(outlook::workers(rules, &state)?) {
            eprintln!("{warning}");
        }
        Ok(())
    })
}

fn load(config: &Path, socket: Option<&Path>) -> Result<Config, Failure> {
    let mut rules = crate::cli::load_config(config)?;
    if let Some(socket) = socket {
        socket.clone_into(&mut rules.control.socket);
    }
    Ok(rules)
}

async fn serve(rules: &Config, path: &Path, socket: Option<&Path>, touch: NicTouch) -> Result<(), Failure> {
    // From here on a signal ends the gateway in order, start-up included.
    let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(anyhow::Error::from)?;
    let mut gateway = Gateway::bring_up(rules, path, touch).await?;
    // Outside of systemd there is nobody to notify.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut snapshots = gateway.subscribe();
    // What changed while the gateway was brought up is caught up with at once.
    snapshots.mark_changed();
    let mut rounds = tokio::time::interval(ROUND_EVERY);
    rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok("SIGTERM"),
            _ = interrupt.recv() => break Ok("SIGINT"),
            _ = hangup.recv() => {
                if let Err(failure) = reload(&mut gateway, path, socket) {
                    tracing::error!("SIGHUP: the configuration is not reloaded, all stays as it was: {failure}");
                }
            }
            changed = snapshots.changed() => {
                let followed = match changed {
                    Ok(()) => gateway.follow(&snapshots.borrow_and_update().clone()),
                    Err(_) => Err(Failure::Other(anyhow::anyhow!("the kernel is not followed any more"))),
                };
                if let Err(failure) = followed {
                    break Err(failure);
                }
            }
            _ = rounds.tick() => {
                gateway.watch_placement();
                gateway.watch_driven();
                gateway.go_on_driving();
                gateway.take_news();
            }
            () = gateway.wait_to_drive() => gateway.go_on_driving(),
            () = gateway.wait_for_news() => {
                gateway.take_news();
                if gateway.worker_has_ended() {
                    break Err(Failure::Other(anyhow::anyhow!("a worker has ended; see the log above for its last words")));
                }
            }
        }
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    match &ended {
        Ok(signal) => tracing::info!("{signal}: stopping"),
        Err(failure) => tracing::error!("stopping: {failure}"),
    }
    gateway.take_down().await;
    ended.map(|_| ())
}

/// Reads the configuration again and goes by it, all of it or nothing.
fn reload(gateway: &mut Gateway, path: &Path, socket: Option<&Path>) -> Result<(), Failure> {
    let reloaded = load(path, socket).and_then(|rules| gateway.reload(rules));
    gateway.note_reload(reloaded.is_ok());
    reloaded
}

/// The log goes to standard error; `RUST_LOG` overrides the configured level.
fn start_log(level: &str) {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    // A second call (there is none) would find the log started.
    let _ = log.with_ansi(std::io::stderr().is_terminal()).try_init();
}
