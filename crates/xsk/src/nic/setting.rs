//! One setting with a value: what is written to a device, what is remembered to be written back, a line of a note, a command.
//!
//! Knows words only. Used by [`super::setup`] and [`super::note`]. Invariant: what [`Setting::line`] writes [`Setting::parse`] reads.

use std::fmt::Write as _;

use super::{Channels, Deferral, Fields, Flow, HashFunction, RingSizes, RssChange, Rule, Table, Transform};

/// A setting with the value that it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A feature, by the kernel's name.
    Feature {
        /// The name.
        name: String,
        /// Whether it is to be on.
        on: bool,
    },
    /// The present numbers of queues.
    Channels(Channels),
    /// The present sizes of rings.
    Rings(RingSizes),
    /// Parts of RSS.
    Rss(RssChange),
    /// The fields that are hashed.
    Fields {
        /// For this kind of packets.
        flow: Flow,
        /// The fields.
        fields: Fields,
    },
    /// How long its queues are left to a poller.
    Deferral(Deferral),
    /// A rule more.
    InsertRule {
        /// The rule.
        rule: Rule,
        /// Its location; none where the driver picks it.
        location: Option<u32>,
    },
    /// A rule less.
    RemoveRule {
        /// Its location.
        location: u32,
    },
}

impl Setting {
    /// The command by which a person does the same.
    pub fn command(&self, device: &str) -> String {
        match self {
            Self::Feature { name, on } => format!("ethtool -K {device} {name} {}", if *on { "on" } else { "off" }),
            Self::Channels(channels) => {
                let named = [("rx", channels.rx), ("tx", channels.tx), ("combined", channels.combined)];
                let counts = named.into_iter().filter(|(_, count)| *count > 0);
                counts.fold(format!("ethtool -L {device}"), |text, (name, count)| format!("{text} {name} {count}"))
            }
            Self::Rings(rings) => format!("ethtool -G {device} rx {} tx {}", rings.rx, rings.tx),
            Self::Rss(change) => rss_command(device, change),
            Self::Fields { flow, fields } => format!("ethtool -N {device} rx-flow-hash {} {fields}", flow.label()),
            Self::InsertRule { rule, location } => {
                let place = location.map_or_else(String::new, |location| format!(" loc {location}"));
                format!("ethtool -N {device} {rule}{place}")
            }
            Self::RemoveRule { location } => format!("ethtool -N {device} delete {location}"),
            Self::Deferral(Deferral { hard_irqs, flush_timeout }) => {
                let directory = format!("/sys/class/net/{device}");
                format!("echo {flush_timeout} >{directory}/gro_flush_timeout; echo {hard_irqs} >{directory}/napi_defer_hard_irqs")
            }
        }
    }

    /// The setting as a line of a note. None for a rule to insert, which no note needs.
    pub(super) fn line(&self) -> Option<String> {
        Some(match self {
            Self::Feature { name, on } => format!("feature {name} {}", if *on { "on" } else { "off" }),
            Self::Channels(now) => format!("channels {} {} {} {}", now.rx, now.tx, now.other, now.combined),
            Self::Rings(now) => format!("rings {} {}", now.rx, now.tx),
            Self::Rss(change) => rss_line(change),
            Self::Fields { flow, fields } => format!("fields {} 0x{:x}", flow.label(), fields.0),
            Self::RemoveRule { location } => format!("rule {location}"),
            Self::Deferral(Deferral { hard_irqs, flush_timeout }) => format!("deferral {hard_irqs} {flush_timeout}"),
            Self::InsertRule { .. } => return None,
        })
    }

    /// The setting of a line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<u32>().ok();
        let (setting, len) = match words[0] {
            "feature" => (Self::Feature { name: (*words.get(1)?).to_string(), on: on_or_off(words.get(2)?)? }, 3),
            "channels" => {
                let (rx, tx, other, combined) = (number(1)?, number(2)?, number(3)?, number(4)?);
                (Self::Channels(Channels { rx, tx, other, combined, ..Channels::default() }), 5)
            }
            "rings" => (Self::Rings(RingSizes { rx: number(1)?, tx: number(2)?, ..RingSizes::default() }), 3),
            "rss" => return rss_parse(&words[1..]).map(Self::Rss),
            "fields" => {
                let bits = u64::from_str_radix(words.get(2)?.strip_prefix("0x")?, 16).ok()?;
                (Self::Fields { flow: Flow::from_label(words.get(1)?)?, fields: Fields(bits) }, 3)
            }
            "deferral" => {
                let flush_timeout = words.get(2)?.parse().ok()?;
                (Self::Deferral(Deferral { hard_irqs: number(1)?, flush_timeout }), 3)
            }
            "rule" => (Self::RemoveRule { location: number(1)? }, 2),
            _ => return None,
        };
        (words.len() == len).then_some(setting)
    }
}

fn on_or_off(word: &str) -> Option<bool> {
    match word {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn rss_command(device: &str, change: &RssChange) -> String {
    let mut text = format!("ethtool -X {device}");
    if let Some(hash) = change.hash {
        let _ = write!(text, " hfunc {}", hash.label());
    }
    if let Some(key) = &change.key {
        let _ = write!(text, " hkey {}", key_text(key));
    }
    match &change.table {
        Some(Table::Default) => text.push_str(" default"),
        Some(Table::Queues(table)) => {
            let queues = table.iter().max().map_or(1, |most| most + 1);
            let _ = write!(text, " equal {queues}");
        }
        None => {}
    }
    if change.hash.is_none() && change.key.is_none() && change.table.is_none() {
        let _ = write!(text, " xfrm {}", change.transform.label());
    }
    text
}

fn rss_line(change: &RssChange) -> String {
    let mut text = format!("rss xfrm {}", change.transform.code());
    if let Some(hash) = change.hash {
        let _ = write!(text, " hfunc {}", hash.code());
    }
    if let Some(key) = &change.key {
        let _ = write!(text, " hkey {}", key_text(key));
    }
    match &change.table {
        Some(Table::Default) => text.push_str(" table default"),
        Some(Table::Queues(table)) => {
            let queues: Vec<_> = table.iter().map(u32::to_string).collect();
            let _ = write!(text, " table {}", queues.join(","));
        }
        None => {}
    }
    text
}

fn rss_parse(words: &[&str]) -> Option<RssChange> {
    let mut change = RssChange::default();
    for pair in words.chunks(2) {
        let &[name, value] = pair else { return None };
        match name {
            "xfrm" => change.transform = Transform::from_code(value.parse().ok()?),
            "hfunc" => change.hash = Some(HashFunction::from_code(value.parse().ok()?)),
            "hkey" => change.key = Some(key_parse(value)?),
            "table" if value == "default" => change.table = Some(Table::Default),
            "table" => change.table = Some(Table::Queues(value.split(',').map(|queue| queue.parse().ok()).collect::<Option<_>>()?)),
            _ => return None,
        }
    }
    (!words.is_empty()).then_some(change)
}

fn key_text(key: &[u8]) -> String {
    key.iter().enumerate().fold(String::new(), |mut text, (at, byte)| {
        let _ = write!(text, "{}{byte:02x}", if at == 0 { "" } else { ":" });
        text
    })
}

fn key_parse(text: &str) -> Option<Vec<u8>> {
    text.split(':').map(|byte| if byte.len() == 2 { u8::from_str_radix(byte, 16).ok() } else { None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::{Match, Protocol};

    fn settings() -> Vec<Setting> {
        let rss = |hash, transform, key: Option<&[u8]>, table| {
            Setting::Rss(RssChange { hash, transform, key: key.map(<[u8]>::to_vec), table })
        };
        vec![
            Setting::Feature { name: "rx-hashing".into(), on: true },
            Setting::Channels(Channels { rx: 1, tx: 2, other: 3, combined: 4, ..Channels::default() }),
            Setting::Rings(RingSizes { rx: 512, tx: 256, ..RingSizes::default() }),
            rss(Some(HashFunction::Xor), Transform::SymmetricOrXor, Some(&[0x6d, 0, 0xff]), Some(Table::Queues(vec![0, 1, 10]))),
            rss(None, Transform::None, None, Some(Table::Default)),
            rss(None, Transform::Other(9), None, None),
            Setting::Fields { flow: Flow::Udp4, fields: Fields::FOUR_TUPLE },
            Setting::RemoveRule { location: 1023 },
        ]
    }

    #[test]
    fn a_line_says_the_whole_setting() {
        for setting in settings() {
            let line = setting.line().expect("a line");
            assert!(!line.contains('\n'));
            assert_eq!(Setting::parse(&line), Some(setting), "{line}");
        }
    }

    #[test]
    fn a_line_that_is_cut_or_has_more_is_refused() {
        for setting in settings() {
            let line = setting.line().expect("a line");
            let (cut, _) = line.rsplit_once(' ').expect("several words");
            assert_ne!(Setting::parse(cut), Some(setting.clone()), "{cut}");
            assert_eq!(Setting::parse(&format!("{line} x")), None, "{line}");
        }
        let bad =
            ["", "rss", "rss xfrm", "rss hkey 6d:x", "rss hkey 6", "rss table 1,", "feature a maybe", "fields tcp6 0x1", "rule -1"];
        assert!(bad.into_iter().all(|line| Setting::parse(line).is_none()));
    }

    #[test]
    fn commands_are_what_a_person_would_type() {
        let rule = Rule { protocol: Protocol::Tcp, matches: Match::DestinationPort { port: 0, mask: 0xC000 }, queue: 1 };
        let shown: Vec<_> = settings().iter().map(|setting| setting.command("eth0")).collect();
        assert_eq!(
            shown,
            [
                "ethtool -K eth0 rx-hashing on",
                "ethtool -L eth0 rx 1 tx 2 combined 4",
                "ethtool -G eth0 rx 512 tx 256",
                "ethtool -X eth0 hfunc xor hkey 6d:00:ff equal 11",
                "ethtool -X eth0 default",
                "ethtool -X eth0 xfrm unknown",
                "ethtool -N eth0 rx-flow-hash udp4 sdfn",
                "ethtool -N eth0 delete 1023",
            ]
        );
        let insert = Setting::InsertRule { rule, location: Some(7) };
        assert_eq!(insert.command("eth0"), "ethtool -N eth0 flow-type tcp4 dst-port 0 m 0x3fff action 1 loc 7");
        assert_eq!(insert.line(), None);
    }
}
