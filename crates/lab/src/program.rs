//! Programs with bounded time and captured output, and waiting for a condition with a bound.
//!
//! Knows std's processes only. Invariant: no program outlives its limit or its handle. Called by everything in the topology.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take when nothing else is said.
pub const LIMIT: Duration = Duration::from_secs(20);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Looks at `condition` until it holds, at most for `limit`. Returns whether it held.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(LOOK);
    }
}

/// A program that is about to run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    what: String,
    limit: Duration,
    input: String,
    log: Option<File>,
}

/// What a program that has ended left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    started: Instant,
    stdout: Capture,
    stderr: Capture,
}

#[derive(Debug)]
struct Capture {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Program {
    /// A program with its arguments.
    pub fn new<'a>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let mut command = Command::new(&program);
        let arguments: Vec<_> = arguments.into_iter().collect();
        command.args(&arguments);
        let what = format!("{} {}", program.as_ref().to_string_lossy(), arguments.join(" "));
        Self { command, what, limit: LIMIT, input: String::new(), log: None }
    }

    /// Bounds its time.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Gives it something to read.
    #[must_use]
    pub fn input(mut self, input: String) -> Self {
        self.input = input;
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn environment(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sends all that it prints to a file, which it may outlive its starter with.
    pub fn log_to(mut self, path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        self.log = Some(file.with_context(|| format!("opening {}", path.display()))?);
        Ok(self)
    }

    /// Runs it to its end.
    ///
    /// **Errors:** it could not be started, or was killed at its limit. A bad exit code is not an error here: see [`Output::success`].
    pub fn run(self) -> Result<Output> {
        let limit = self.limit;
        self.start()?.wait(limit)
    }

    /// Starts it in the background.
    pub fn start(mut self) -> Result<Running> {
        let piped = if self.input.is_empty() { Stdio::null() } else { Stdio::piped() };
        self.command.stdin(piped);
        match self.log.take() {
            Some(log) => self.command.stdout(log.try_clone()?).stderr(log),
            None => self.command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        };
        let mut child = self.command.spawn().with_context(|| format!("starting `{}`", self.what))?;
        if let Some(mut stdin) = child.stdin.take() {
            let input = self.input;
            // A program that ends without reading its input closes the pipe; its exit code tells.
            thread::spawn(move || stdin.write_all(input.as_bytes()));
        }
        let stdout = Capture::of(child.stdout.take());
        let stderr = Capture::of(child.stderr.take());
        Ok(Running { child, what: self.what, started: Instant::now(), stdout, stderr })
    }
}

impl Output {
    /// Itself, when the exit code was 0.
    ///
    /// **Errors:** with the command line and all it printed.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("{self}");
    }

    /// Whether the exit code was 0.
    pub fn ok(&self) -> bool {
        self.status.success()
    }

    /// All that it printed.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {} after {:.1?}\n{}{}", self.what, self.status, self.took, self.stdout, self.stderr)
    }
}

impl Running {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed until now, standard error after standard output.
    pub fn printed(&self) -> String {
        format!("{}{}", self.stdout.so_far(), self.stderr.so_far())
    }

    /// Whether it runs still.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).with_context(|| format!("sending {signal} to `{}`", self.what))
    }

    /// Waits for its end, at most for `limit`; then kills it.
    ///
    /// **Errors:** killed at the limit, with what it printed.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let ended = wait_until(limit, || !self.is_running());
        if !ended {
            let _ = self.child.kill();
        }
        let status = self.child.wait().with_context(|| format!("waiting for `{}`", self.what))?;
        let what = std::mem::take(&mut self.what);
        let output =
            Output { what, status, stdout: self.stdout.finish(), stderr: self.stderr.finish(), took: self.started.elapsed() };
        if !ended {
            bail!("killed after {limit:?}: {output}");
        }
        Ok(output)
    }

    /// Asks it to end, and waits.
    pub fn stop(self, signal: Signal, limit: Duration) -> Result<Output> {
        self.signal(signal)?;
        self.wait(limit)
    }

    /// Lets it live on after this process.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Capture {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let reader = pipe.map(|pipe| {
            let text = Arc::clone(&text);
            thread::spawn(move || Self::drain(pipe, &text))
        });
        Self { text, reader }
    }

    fn drain(mut pipe: impl Read, text: &Mutex<Vec<u8>>) {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut chunk) {
            text.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..length]);
        }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// All of it. A grandchild that keeps the pipe open is not waited for longer than a second.
    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            wait_until(Duration::from_secs(1), || reader.is_finished());
        }
        self.so_far()
    }
}
