//! The note of what is to be put back: a few lines of text, for the process that comes after one that was killed.
//!
//! Knows lines, no files: where the note is kept is the caller's business. Used by [`super::setup`]. Invariant: a note is only taken for
//! the device that it was written about, and in the same run of the machine.
//!
//! ```text
//! portcullis-nic 1
//! boot c0ffee00-...                      /proc/sys/kernel/random/boot_id
//! device eth0 3                          name and index
//! feature rx-hashing off                 a line for each setting, in the order in which they were changed
//! end
//! ```

use std::fs;

use super::{NoteProblem, Setting};

/// First line: a name and the version of the format.
const HEAD: &str = "portcullis-nic 1";
/// Last line: without it the note is cut off.
const END: &str = "end";

/// Whose settings are to be put back, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) boot: String,
    pub(super) device: String,
    pub(super) ifindex: u32,
    /// What the settings were, in the order in which they were changed.
    pub(super) former: Vec<Setting>,
}

impl Note {
    pub(super) fn to_text(&self) -> String {
        let (boot, device, ifindex) = (&self.boot, &self.device, self.ifindex);
        let settings: String = self.former.iter().filter_map(Setting::line).map(|line| line + "\n").collect();
        format!("{HEAD}\nboot {boot}\ndevice {device} {ifindex}\n{settings}{END}\n")
    }

    pub(super) fn parse(text: &str) -> Result<Self, NoteProblem> {
        let malformed = |line: usize| NoteProblem::Malformed { line };
        let lines: Vec<_> = text.lines().collect();
        let line = |at: usize| lines.get(at).copied().ok_or(malformed(at + 1));
        if line(0)? != HEAD {
            return Err(malformed(1));
        }
        let boot = line(1)?.strip_prefix("boot ").ok_or(malformed(2))?.to_string();
        let place = line(2)?.strip_prefix("device ").and_then(|place| place.rsplit_once(' ')).ok_or(malformed(3))?;
        let (device, ifindex) = (place.0.to_string(), place.1.parse().map_err(|_| malformed(3))?);
        if lines.last() != Some(&END) || lines.len() < 4 {
            return Err(malformed(lines.len() + 1));
        }
        let settings = lines.iter().enumerate().take(lines.len() - 1).skip(3);
        let former = settings.map(|(at, line)| Setting::parse(line).ok_or(malformed(at + 1))).collect::<Result<_, _>>()?;
        Ok(Self { boot, device, ifindex, former })
    }

    /// Whether the note is about this device, in this run of the machine.
    pub(super) fn check(&self, device: &str, ifindex: u32) -> Result<(), NoteProblem> {
        if self.boot != this_boot() {
            return Err(NoteProblem::OtherBoot);
        }
        if (self.device.as_str(), self.ifindex) != (device, ifindex) {
            return Err(NoteProblem::OtherDevice { device: self.device.clone(), ifindex: self.ifindex });
        }
        Ok(())
    }
}

/// What names this run of the machine; empty where /proc does not say.
pub(super) fn this_boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::{Channels, Deferral, RssChange, Table};

    fn note() -> Note {
        let former = vec![
            Setting::Feature { name: "rx-hashing".into(), on: false },
            Setting::Channels(Channels { combined: 2, ..Channels::default() }),
            Setting::Deferral(Deferral { hard_irqs: 2, flush_timeout: 20_000_000_000 }),
            Setting::Rss(RssChange { key: Some(vec![1; 40]), table: Some(Table::Default), ..RssChange::default() }),
        ];
        Note { boot: this_boot(), device: "enp1s0 odd".into(), ifindex: 7, former }
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        assert_eq!(Note::parse(&note().to_text()), Ok(note()));
        let nothing = Note { former: Vec::new(), ..note() };
        assert_eq!(Note::parse(&nothing.to_text()), Ok(nothing));
    }

    #[test]
    fn a_note_that_is_cut_anywhere_is_refused() {
        let text = note().to_text();
        for len in 0..text.len() - 1 {
            assert!(matches!(Note::parse(&text[..len]), Err(NoteProblem::Malformed { .. })), "cut to {len} bytes");
        }
        assert_eq!(Note::parse(&text.replace("feature", "future")), Err(NoteProblem::Malformed { line: 4 }));
        assert_eq!(Note::parse("portcullis-nic 2\nboot x\ndevice a 1\nend\n"), Err(NoteProblem::Malformed { line: 1 }));
    }

    #[test]
    fn a_note_is_for_one_device_in_one_run_of_the_machine() {
        assert_eq!(note().check("enp1s0 odd", 7), Ok(()));
        let other = NoteProblem::OtherDevice { device: "enp1s0 odd".into(), ifindex: 7 };
        assert_eq!(note().check("enp1s0 odd", 8), Err(other.clone()));
        assert_eq!(note().check("enp2s0", 7), Err(other));
        assert_eq!(Note { boot: "before".into(), ..note() }.check("enp1s0 odd", 7), Err(NoteProblem::OtherBoot));
    }
}
