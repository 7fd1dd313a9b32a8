//! Removes namespaces whatever happens: at exit, on SIGINT and SIGTERM, and after a run that was killed.
//!
//! Knows the names of the namespaces that live. Invariant: removing is idempotent; only processes inside a namespace of ours are ended,
//! and never this one. Tests: in the parent module.

use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

use super::namespace::{directory_of, path_of, processes_in};
use super::program::wait_until;

/// Names of namespaces that have to go before this process does.
static LIVE: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The signal that came, or 0.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// Makes sure, once for the process, that exit and signals remove what lives, and removes what dead processes left.
pub fn arm() {
    static ARMED: Once = Once::new();
    ARMED.call_once(|| {
        remove_orphans();
        // SAFETY: the function is `extern "C"`, takes nothing, and catches its own panics' causes: it only runs `ip` and kill(2).
        unsafe { libc::atexit(at_exit) };
        let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
            if unsafe { sigaction(signal, &action) }.is_err() {
                eprintln!("cannot handle {signal}: an interrupted run leaves its namespaces to the next run");
            }
        }
        thread::spawn(end_when_told);
    });
}

/// Removes every namespace that lives.
pub fn remove_all() {
    let names = std::mem::take(&mut *LIVE.lock().unwrap_or_else(PoisonError::into_inner));
    for name in names {
        remove(&name);
    }
}

/// Removes one namespace with the processes in it and its files. Nothing happens when it is gone already.
pub fn remove(name: &str) {
    forget(name);
    end_processes(name);
    if path_of(name).exists() {
        let _ = std::process::Command::new("ip").args(["netns", "delete", name]).output();
    }
    let _ = std::fs::remove_dir_all(directory_of(name));
}

/// Whether a signal has come: what fails from now on fails because of it.
pub fn is_interrupted() -> bool {
    CAUGHT.load(Ordering::Relaxed) != 0
}

/// Ends the processes in a namespace, this one excepted, and waits until they are gone.
pub fn end_processes(name: &str) {
    let others = || processes_in(name).into_iter().filter(|&pid| pid != std::process::id().cast_signed());
    wait_until(Duration::from_secs(5), || {
        others().for_each(|pid| {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        });
        others().next().is_none()
    });
}

/// Takes a namespace off the list: it stays when this process ends.
pub fn forget(name: &str) {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|live| live != name);
}

/// Puts a namespace on the list.
pub(super) fn remember(name: &str) {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
}

/// The namespaces whose name is `prefix`, a process's number, and `-` with the rest. Yields the name and the number.
pub fn named(prefix: &str) -> Vec<(String, i32)> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let (number, _) = name.strip_prefix(prefix)?.split_once('-')?;
            let number = number.parse().ok()?;
            Some((name, number))
        })
        .collect()
}

/// Removes the namespaces of tests and of natcheck whose process is no more. The demo's may be meant to stay; it has its own `--clean`.
fn remove_orphans() {
    for (name, process) in ["pctest", "pcunit", "natcheck"].into_iter().flat_map(named) {
        if !Path::new(&format!("/proc/{process}")).exists() {
            remove(&name);
        }
    }
}

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
}

extern "C" fn at_exit() {
    remove_all();
}

/// Waits for a signal, then removes everything and ends the process with the shell's code for it.
fn end_when_told() {
    loop {
        thread::sleep(Duration::from_millis(50));
        let signal = CAUGHT.load(Ordering::Relaxed);
        if signal != 0 {
            eprintln!("\ninterrupted: removing the namespaces");
            remove_all();
            std::process::exit(128 + signal);
        }
    }
}
