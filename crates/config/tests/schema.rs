//! The schema, the code and the page for operators say the same.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use portcullis_config::Config;
use portcullis_config::schema::{Key, SECTIONS, Section};

const LEAST: &str = r#"
[[interface]]
name = "eth1"
side = "inside"
[[interface]]
name = "eth0"
side = "outside"
[[pool]]
name = "a"
addresses = ["interface"]
[[forward]]
protocol = "tcp"
external = "interface:80"
internal = ["10.0.0.1:80"]
"#;

const PAGE: &str = include_str!("../../../docs/configuration.md");

fn heading(section: &Section) -> String {
    if section.repeated { format!("[[{}]]", section.name) } else { format!("[{}]", section.name) }
}

/// The least file with one key more, or with another value for a key that it has.
fn with(section: &Section, key: &Key, value: &str) -> String {
    let line = format!("{} = {value}\n", key.name);
    let heading = format!("{}\n", heading(section));
    let Some(at) = LEAST.find(&heading) else { return format!("{LEAST}{heading}{line}") };
    let (before, after) = LEAST.split_at(at + heading.len());
    let others = |body: &str| !body.starts_with(&format!("{} ", key.name));
    let (own, rest) = after.split_at(after.find("[[").unwrap_or(after.len()));
    let own = own.split_inclusive('\n').filter(|body| others(body)).collect::<String>();
    format!("{before}{line}{own}{rest}")
}

#[test]
fn every_key_is_read_and_says_what_it_accepts() {
    for section in SECTIONS {
        for key in section.keys {
            let shown = Config::parse(&with(section, key, "1979-05-27"), "test.toml").unwrap_err().to_string();
            let place = if section.repeated { "[0]" } else { "" };
            assert!(shown.contains(&format!("{}{place}.{}: found a date or time", section.name, key.name)), "{shown}");
            assert!(shown.contains(key.accepts), "{shown}");
        }
    }
}

#[test]
fn every_default_is_the_value_in_force() {
    let meaning = |text: &str| {
        let (config, warnings) = Config::parse(text, "test.toml").unwrap_or_else(|error| panic!("{error}\nin\n{text}"));
        assert!(warnings.is_empty());
        let policy = config.policy(&portcullis_config::HostAddresses {
            local_ports: portcullis_config::PortRange { first: 1, last: 1 },
            ..Default::default()
        });
        (config.summary().join("\n").replace(", less the host's own on an address of the box", ""), policy, config.log)
    };
    for section in SECTIONS {
        for (key, default) in section.keys.iter().filter_map(|key| Some((key, key.default?))) {
            assert_eq!(meaning(&with(section, key, default)), meaning(LEAST), "{}.{} = {default}", section.name, key.name);
        }
    }
}

#[test]
fn every_section_and_key_is_documented_with_its_default() {
    for section in SECTIONS {
        let title = format!("\n## `{}`", heading(section));
        let start = PAGE.find(&title).unwrap_or_else(|| panic!("no section {title:?}"));
        let body = &PAGE[start + title.len()..];
        let body = &body[..body.find("\n## ").unwrap_or(body.len())];
        for key in section.keys {
            let row = body.lines().find(|line| line.starts_with(&format!("| `{}` |", key.name)));
            let row = row.unwrap_or_else(|| panic!("{title}: no row for `{}`", key.name));
            let default = key.default.unwrap_or_default();
            assert!(row.contains(default), "{}.{}: the default {default} is not in\n{row}", section.name, key.name);
        }
        let rows = body.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, section.keys.len(), "{title} has rows for keys that do not exist");
    }
}

#[test]
fn every_number_that_a_key_accepts_is_its_range() {
    for section in SECTIONS.iter().filter(|section| !section.repeated) {
        for key in section.keys {
            let Some(bounds) = key.accepts.strip_prefix("a whole number from ") else { continue };
            let (least, most) = bounds.split_once(" to ").unwrap();
            let legal = |number: i64| Config::parse(&with(section, key, &number.to_string()), "test.toml").is_ok();
            let (least, most): (i64, i64) = (least.parse().unwrap(), most.parse().unwrap());
            assert_eq!([least - 1, least, most, most + 1].map(legal), [false, true, true, false], "{}", key.name);
        }
    }
}

#[test]
fn the_examples_of_the_page_are_legal() {
    let blocks: Vec<_> = PAGE.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        if let Err(error) = Config::parse(block, "docs/configuration.md") {
            panic!("{error}");
        }
    }
}
