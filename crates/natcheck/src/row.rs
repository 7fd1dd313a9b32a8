//! A row: one requirement, how strong it is, where it stands, and the function that sends packets for it.
//!
//! Knows words and outcomes; the packets are in [`crate::rows`]. Invariant: an outcome that is not "holds" says why.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bench::Bench;
use crate::setup::Setup;

/// The RFC's word for how strong a requirement is; the strongest where a row has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Level {
    /// MUST or MUST NOT.
    Must,
    /// SHOULD or SHOULD NOT.
    Should,
    /// RECOMMENDED.
    Rec,
    /// MAY.
    May,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
            Self::Rec => "REC",
            Self::May => "MAY",
        })
    }
}

/// How a row came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// What the requirement asks for was seen.
    Holds,
    /// The opposite was seen.
    Violated,
    /// A black box cannot tell, or the driver cannot set it up.
    NotTestable,
    /// It takes minutes.
    NeedsSlow,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds",
            Self::Violated => "violated",
            Self::NotTestable => "not testable here",
            Self::NeedsSlow => "needs a long timer (--slow)",
        })
    }
}

/// Why a row does not hold.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// What was sent, expected and seen.
    Violated(String),
    /// The same where what had to come did not: a wire may lose a packet, so the row gets a second try.
    Missing(String),
    /// Why nobody can tell here.
    NotTestable(String),
    /// What was seen so far; the rest takes minutes, and was not asked for.
    NeedsSlow(String),
    /// The tester itself broke.
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

/// What a row's function gives: a remark, which may be empty, or why it does not hold.
pub(crate) type Check<T = String> = Result<T, Trouble>;

/// Ends a row as violated, in words as `format!` takes them.
macro_rules! violated {
    ($($words:tt)+) => { return Err($crate::row::Trouble::Violated(format!($($words)+))) };
}

/// Ends a row as violated unless the condition holds.
macro_rules! require {
    ($holds:expr, $($words:tt)+) => { if !$holds { $crate::row::violated!($($words)+); } };
}

pub(crate) use {require, violated};

/// When a row runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// By itself, at once.
    Alone,
    /// Mostly waiting: beside all others.
    Waiting,
    /// Never: a black box cannot tell, for this reason.
    Never(&'static str),
}

/// A requirement as a test.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// As in docs/rfc, such as `4787-1`.
    pub(crate) id: &'static str,
    /// How strong.
    pub(crate) level: Level,
    /// Where it stands, such as `RFC 4787, REQ-1`.
    pub(crate) source: &'static str,
    /// The requirement in a line.
    pub(crate) text: &'static str,
    /// What the NAT has to be set up as.
    pub(crate) setup: &'static Setup,
    /// When it runs.
    pub(crate) pace: Pace,
    /// The test.
    pub(crate) check: fn(&Bench) -> Check,
}

impl Row {
    /// A row that runs by itself in the default setup.
    pub(crate) const fn new(
        id: &'static str,
        level: Level,
        source: &'static str,
        text: &'static str,
        check: fn(&Bench) -> Check,
    ) -> Self {
        Self { id, level, source, text, setup: &crate::setup::DEFAULT, pace: Pace::Alone, check }
    }

    /// A row that no black box can test.
    pub(crate) const fn never(id: &'static str, level: Level, source: &'static str, text: &'static str, why: &'static str) -> Self {
        Self { pace: Pace::Never(why), ..Self::new(id, level, source, text, |_| Ok(String::new())) }
    }

    /// The same in another setup.
    pub(crate) const fn with(self, setup: &'static Setup) -> Self {
        Self { setup, ..self }
    }

    /// The same beside the other waiting ones.
    pub(crate) const fn waiting(self) -> Self {
        Self { pace: Pace::Waiting, ..self }
    }
}

/// A row's outcome, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The row's.
    pub(crate) id: String,
    /// The row's.
    pub(crate) level: Level,
    /// The row's.
    pub(crate) source: String,
    /// The row's.
    pub(crate) text: String,
    /// How it came out.
    pub(crate) status: Status,
    /// A remark, or what was sent, expected and seen.
    pub(crate) note: String,
}

impl Finding {
    /// What became of a row.
    pub(crate) fn new(row: &Row, status: Status, note: impl Into<String>) -> Self {
        let (id, source, text) = (row.id.to_owned(), row.source.to_owned(), row.text.to_owned());
        Self { id, level: row.level, source, text, status, note: note.into() }
    }
}
