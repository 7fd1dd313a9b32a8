//! Stored inputs: `corpus/TARGET.hex`, one input a line in hexadecimal digits, and lines that begin with `#`, which describe the next.
//!
//! Text rather than a file an input, so that a finding stands beside its description and a change can be read. Knows files only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// An input, and what is said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Lines without their `#`; empty for what a fuzzer merely kept.
    pub about: String,
    /// The input itself.
    pub bytes: Vec<u8>,
}

/// Where the inputs of a target are.
pub fn path(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target).with_extension("hex")
}

/// The stored inputs of a target. **Errors:** the file is missing, or a line is no input, with its number.
pub fn load(target: &str) -> io::Result<Vec<Input>> {
    read(&fs::read_to_string(path(target))?)
}

/// Replaces the inputs of a target.
pub fn store(target: &str, inputs: &[Input]) -> io::Result<()> {
    fs::write(path(target), write(inputs))
}

fn read(text: &str) -> io::Result<Vec<Input>> {
    let mut inputs = Vec::new();
    let mut about = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(words) = line.strip_prefix('#') {
            about.push(words.trim());
            continue;
        }
        let bytes = from_hex(line.trim()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("line {}: pairs of hexadecimal digits expected", number + 1))
        })?;
        inputs.push(Input { about: about.join("\n"), bytes });
        about.clear();
    }
    Ok(inputs)
}

fn write(inputs: &[Input]) -> String {
    let mut lines = Vec::new();
    for input in inputs {
        lines.extend(input.about.lines().map(|line| format!("# {line}")));
        lines.push(hex(&input.bytes));
    }
    lines.join("\n") + "\n"
}

/// Bytes as a line of hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xF)]).collect()
}

/// Words of a target's language in libFuzzer's form, one `"..."` a line: names of sections and keys for configurations, of fields for
/// messages. Packets have none.
pub fn dictionary(target: &str) -> String {
    let words: Vec<String> = match target {
        "config" => portcullis_config::schema::SECTIONS
            .iter()
            .flat_map(|section| {
                let keys = section.keys.iter().map(|key| format!("{} = {}", key.name, key.default.unwrap_or_default()));
                std::iter::once(format!("[{}]", section.name)).chain(keys)
            })
            .collect(),
        "control" => {
            ["protocol", "internal", "external", "remote", "entry", "end", "entries", "error", "kind", "message", "address", "port"]
                .map(str::to_owned)
                .to_vec()
        }
        _ => Vec::new(),
    };
    let quoted = |word: &str| word.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\x0a");
    words.iter().map(|word| ["\"", &quoted(word), "\"\n"].concat()).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<_>>>()?;
    (digits.len() % 2 == 0).then(|| digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_back_as_they_were_stored() {
        let input = |about: &str, bytes: &[u8]| Input { about: about.to_owned(), bytes: bytes.to_vec() };
        let inputs = [input("", &[0, 0xff]), input("a crash\nof two lines", &[7]), input("nothing at all", &[])];
        assert_eq!(read(&write(&inputs)).expect("inputs"), inputs);
    }

    #[test]
    fn a_line_that_is_no_input_is_named() {
        for text in ["00\n0", "00\nxy", "00\n-1"] {
            assert!(read(text).expect_err("no input").to_string().starts_with("line 2:"), "{text}");
        }
    }
}
