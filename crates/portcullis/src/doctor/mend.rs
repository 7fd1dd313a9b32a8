//! What mends a finding: a command that an operator could type, or a value written to a file of the kernel's.
//!
//! Knows how each is shown and carried out. Invariant: both are made of the same words; no shell reads them.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use serde::Serialize;

/// See the room card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mend {
    /// A program and its arguments.
    Run(Vec<String>),
    /// A value for a file.
    Write {
        /// The file, in sysfs or procfs.
        path: PathBuf,
        /// The value.
        value: String,
    },
}

impl Mend {
    /// A command, from words with spaces between them. A word with `{}` becomes `name`, which may have any character.
    pub(crate) fn run(words: &str, name: &str) -> Self {
        Self::Run(words.split_whitespace().map(|word| if word == "{}" { name.to_owned() } else { word.to_owned() }).collect())
    }

    /// A value for a file.
    pub(crate) fn write(path: impl Into<PathBuf>, value: impl fmt::Display) -> Self {
        Self::Write { path: path.into(), value: format!("{value}") }
    }

    /// Does it. **Errors:** what the program or the kernel said.
    pub(crate) fn carry_out(&self) -> Result<(), String> {
        match self {
            Self::Run(words) => {
                let Some((program, arguments)) = words.split_first() else { return Ok(()) };
                let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
                if output.status.success() { Ok(()) } else { Err(said(&output)) }
            }
            Self::Write { path, value } => std::fs::write(path, value).map_err(|error| format!("{}: {error}", path.display())),
        }
    }
}

fn said(output: &std::process::Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim();
    if text.is_empty() { output.status.to_string() } else { text.to_owned() }
}

impl fmt::Display for Mend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(words) => {
                for (place, word) in words.iter().enumerate() {
                    let space = if place == 0 { "" } else { " " };
                    // A shell would take a word with other characters apart.
                    let is_plain = word.chars().all(|it| it.is_ascii_alphanumeric() || "-_./=:@,".contains(it));
                    if is_plain { write!(f, "{space}{word}")? } else { write!(f, "{space}'{}'", word.replace('\'', r"'\''"))? }
                }
                Ok(())
            }
            Self::Write { path, value } => write!(f, "echo {value} > {}", path.display()),
        }
    }
}

impl Serialize for Mend {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_typed() {
        assert_eq!(Mend::run("ethtool -L {} combined 4", "eth0").to_string(), "ethtool -L eth0 combined 4");
        assert_eq!(Mend::run("ip link set dev {} up", "a b;c'd").to_string(), r"ip link set dev 'a b;c'\''d' up");
        assert_eq!(Mend::write("/proc/sys/vm/nr_hugepages", 64).to_string(), "echo 64 > /proc/sys/vm/nr_hugepages");
    }

    #[test]
    fn a_mend_that_fails_says_why() {
        assert!(Mend::run("false", "").carry_out().expect_err("it fails").contains("exit status: 1"));
        assert!(Mend::run("no-such-program-anywhere", "").carry_out().expect_err("it fails").contains("no-such-program"));
        assert!(Mend::write("/proc/no/such/file", 1).carry_out().expect_err("it fails").contains("/proc/no/such/file"));
        assert_eq!(Mend::run("true", "").carry_out(), Ok(()));
    }
}
