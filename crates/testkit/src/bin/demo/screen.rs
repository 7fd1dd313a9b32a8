//! What the demo prints: headings, comments, command lines with what they print, and how each step ended.
//!
//! Knows the terminal: colours where there is one and NO_COLOR is not set, plain text otherwise.

use std::io::{IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use portcullis_testkit::topology::program::wait_until;
use portcullis_testkit::topology::{PICTURE, cleanup};

/// How many lines of a program's output are shown.
const LINES: usize = 14;
/// How many columns of a line.
const COLUMNS: usize = 150;

/// A terminal, or not.
pub(crate) struct Screen {
    colour: bool,
    started: Instant,
    number: usize,
    failed: Vec<String>,
}

/// How text looks.
#[derive(Clone, Copy)]
enum Style {
    Heading,
    Dim,
    Command,
    Good,
    Bad,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Heading => "1;36",
            Self::Dim => "2",
            Self::Command => "1",
            Self::Good => "1;32",
            Self::Bad => "1;31",
        }
    }
}

impl Screen {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colour, started: Instant::now(), number: 0, failed: Vec::new() }
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
    }

    pub(crate) fn title(&self, text: &str) {
        println!("\n{}\n", self.paint(Style::Heading, text));
    }

    /// The topology, drawn.
    pub(crate) fn picture(&self) {
        let gateway = self.paint(Style::Heading, "[ GATEWAY ]");
        println!("\n{}", PICTURE.replace("[ GATEWAY ]", &gateway));
    }

    /// What is being done now, with the time since the start.
    pub(crate) fn progress(&self, text: &str) {
        let time = self.started.elapsed().as_secs_f64();
        println!("{}", self.paint(Style::Dim, &format!("[{time:5.1} s] {text}")));
    }

    pub(crate) fn note(&self, text: &str) {
        println!("{}", self.paint(Style::Dim, text));
    }

    /// What the gateway has logged, without the times.
    pub(crate) fn log(&self, log: &str) {
        for line in log.lines() {
            let text = line.split_once('Z').map_or(line, |(_, text)| text);
            println!("    {}", self.paint(Style::Dim, text.trim_start()));
        }
    }

    /// A command line, before it runs.
    pub(crate) fn command(&self, host: &str, line: &str) {
        println!("    {} {}", self.paint(Style::Dim, &format!("{host} $")), self.paint(Style::Command, line));
        let _ = std::io::stdout().flush();
    }

    /// Runs something that takes its time, with a dot for every second.
    pub(crate) fn wait_for<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let running = scope.spawn(body);
            print!("      ");
            while !wait_until(Duration::from_secs(1), || running.is_finished()) {
                print!("{}", self.paint(Style::Dim, "."));
                let _ = std::io::stdout().flush();
            }
            println!();
            running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What a program printed; of much, the beginning.
    pub(crate) fn output(&self, text: &str) {
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        for line in lines.iter().take(LINES) {
            let shown: String = line.chars().take(COLUMNS).collect();
            println!("      {shown}");
        }
        if lines.len() > LINES {
            println!("      {}", self.paint(Style::Dim, &format!("... and {} lines more", lines.len() - LINES)));
        }
    }

    /// Runs a step under its heading, and says how it ended: with `body`'s words, or why it failed.
    pub(crate) fn step(&mut self, heading: &str, comment: &str, body: impl FnOnce(&Self) -> Result<String>) {
        if cleanup::is_interrupted() {
            return;
        }
        self.number += 1;
        println!("\n{}", self.paint(Style::Heading, &format!("{}. {heading}", self.number)));
        println!("    {}", self.paint(Style::Dim, comment));
        let started = Instant::now();
        let outcome = body(self);
        if cleanup::is_interrupted() {
            return;
        }
        let time = format!("({:.1} s)", started.elapsed().as_secs_f64());
        match outcome {
            Ok(words) => println!("    {} {words} {}", self.paint(Style::Good, "✔"), self.paint(Style::Dim, &time)),
            Err(error) => {
                println!(
                    "    {} {} {}",
                    self.paint(Style::Bad, "✘ FAILED"),
                    self.paint(Style::Dim, &time),
                    format!("{error:#}").trim()
                );
                self.failed.push(heading.to_owned());
            }
        }
    }

    /// The last lines. Returns whether every step has passed.
    pub(crate) fn summary(&self, took: Duration) -> bool {
        let (all, failed) = (self.number, self.failed.len());
        let time = took.as_secs_f64();
        if failed == 0 {
            println!("\n{}", self.paint(Style::Good, &format!("All {all} steps passed in {time:.0} s.")));
        } else {
            println!(
                "\n{}",
                self.paint(Style::Bad, &format!("{failed} of {all} steps FAILED ({time:.0} s): {}", self.failed.join("; ")))
            );
        }
        failed == 0
    }

    /// What can be tried while everything is up, and how it is removed.
    pub(crate) fn invite(&self, tries: &[(&str, String)], clean: &str) {
        println!("\n{}", self.paint(Style::Heading, "Everything is still up. Try:"));
        for (what, line) in tries {
            println!("    {}\n      {}", self.paint(Style::Dim, what), self.paint(Style::Command, line));
        }
        println!("\n{}\n      {}", self.paint(Style::Heading, "Remove it with:"), self.paint(Style::Command, clean));
    }
}
