//! No text makes reading panic, and what is reported lies within the file.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::Path;

use portcullis_config::Config;
use portcullis_config::schema::SECTIONS;
use proptest::prelude::*;
use proptest::sample::{Index, select};

mod common;

use common::text::read;

fn examples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

/// Pieces that a file is made of, legal and not, so that mutations reach deep.
fn pieces() -> Vec<String> {
    let mut pieces: Vec<String> = [
        "\"",
        "\n",
        "[",
        "]",
        "[[",
        "]]",
        "=",
        ",",
        "-",
        ":",
        "0",
        "65535",
        "65536",
        "-1",
        "true",
        "{}",
        "[]",
        "\"\"",
        "\"interface\"",
        "\"interface:eth0\"",
        "\"0.0.0.0/0\"",
        "\"10.0.0.0/8\"",
        "\"203.0.113.10\"",
        "\"255.255.255.255\"",
        "\"1-65535\"",
        "\"9999999999days\"",
        "\"18446744073709551615s\"",
        "\"203.0.113.10:1-65535\"",
        "\"10.0.0.2:65535\"",
        "9223372036854775807",
        "1e400",
        "nan",
        "\u{0}",
        "\u{fc}",
        "\t",
        "'''",
        "\"\"\"",
        "#",
        "\\u",
        "\r\n",
        "2024-01-01",
        "\u{feff}",
    ]
    .map(str::to_owned)
    .to_vec();
    for section in SECTIONS {
        pieces.push(format!("\n[{}]\n", section.name));
        pieces.push(format!("\n[[{}]]\n", section.name));
        pieces.extend(section.keys.iter().map(|key| format!("\n{} = ", key.name)));
        pieces.extend(section.keys.iter().filter_map(|key| key.default.map(str::to_owned)));
    }
    pieces
}

/// Replaces the characters from one place on by a piece.
fn mutate(text: &str, (at, length, piece): &(Index, usize, String)) -> String {
    let characters: Vec<char> = text.chars().collect();
    let start = at.index(characters.len() + 1);
    let end = (start + length).min(characters.len());
    characters[..start].iter().copied().chain(piece.chars()).chain(characters[end..].iter().copied()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_read_without_panic(text in ".{0,400}") {
        read(&text);
    }

    #[test]
    fn any_lines_of_pieces_are_read_without_panic(parts in prop::collection::vec(select(pieces()), 0..60)) {
        read(&parts.concat());
    }

    #[test]
    fn any_mutated_example_is_read_without_panic(
        text in select(examples()),
        changes in prop::collection::vec((any::<Index>(), 0..12_usize, select(pieces())), 1..6),
    ) {
        read(&changes.iter().fold(text, |text, change| mutate(&text, change)));
    }

    #[test]
    fn any_bytes_in_a_file_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let path = std::env::temp_dir().join(format!("portcullis-config-bytes-{}.toml", std::process::id()));
        std::fs::write(&path, &bytes).unwrap();
        let loaded = Config::load(&path);
        std::fs::remove_file(&path).unwrap();
        prop_assert!(loaded.is_err());
    }
}

#[test]
fn a_large_hostile_file_is_read_in_bounded_time() {
    let good = "[[interface]]\nname = \"a\"\nside = \"inside\"\n[[interface]]\nname = \"b\"\nside = \"outside\"\n";
    let list = |item: &str| item.repeat((1 << 20) / item.len() - 200);
    for text in [
        format!("{good}[[pool]]\nname = \"p\"\naddresses = [{}]", list("\"192.0.2.1\",")),
        format!("{good}[[pool]]\nname = \"p\"\naddresses = [{}]", list("1,")),
        format!("{good}[[pool]]\nname = \"p\"\naddresses = [\"192.0.2.1\"]\nports = \"{}\"", list("1,")),
        format!("{good}{}", list("[[pool]]\n")),
        list("["),
        list("a."),
        list("\n"),
    ] {
        let start = std::time::Instant::now();
        assert!(Config::parse(&text, "test.toml").is_err());
        let took = start.elapsed();
        assert!(took.as_secs() < 10, "{:?} took {took:?}", &text[..40.min(text.len())]);
    }
}
