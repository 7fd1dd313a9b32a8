//! The text of one configuration file, and where in it something stands.
//!
//! Knows lines and columns, nothing of TOML. Used by everything here that reports. Invariant: a [`Place`] lies within the file,
//! whatever span it was made from. Tests: below, and the properties in `tests/`.

use core::fmt;
use core::ops::Range;
use std::sync::Arc;

/// The longest piece of a line that is shown. **Units:** characters. Chosen to fit a wide terminal.
const EXCERPT_MOST: usize = 160;
/// How much of a longer line is shown in front of the place. **Units:** characters.
const EXCERPT_LEAD: usize = 40;

/// A configuration's text with its line starts.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<str>,
    text: String,
    line_starts: Vec<usize>,
}

impl Source {
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let starts_after = text.match_indices('\n').map(|(at, _)| at + 1).filter(|&start| start < text.len());
        let line_starts = core::iter::once(0).chain(starts_after).collect();
        Self { file: file.into(), text: text.to_owned(), line_starts }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The line that holds `offset`. **Units:** from 1.
    pub(crate) fn line(&self, offset: usize) -> u32 {
        self.line_starts.partition_point(|&start| start <= offset) as u32
    }

    /// Where `span` begins, with its line to show. **Cost:** the length of that line.
    pub(crate) fn place(&self, span: &Range<usize>) -> Place {
        let line = self.line(span.start);
        let start = self.line_starts[line as usize - 1];
        let whole = self.text[start..].lines().next().unwrap_or_default();
        let before = char_count(whole, span.start.saturating_sub(start));
        let width = char_count(whole, span.end.saturating_sub(start)).saturating_sub(before).max(1);
        let skipped = if whole.chars().nth(EXCERPT_MOST).is_some() { before.saturating_sub(EXCERPT_LEAD) } else { 0 };
        let excerpt: String = whole.chars().skip(skipped).take(EXCERPT_MOST).map(printable).collect();
        let indent = before - skipped;
        let width = width.min(excerpt.chars().count().saturating_sub(indent).max(1)) as u32;
        Place { file: self.file.clone(), line, column: before as u32 + 1, excerpt, indent: indent as u32, width }
    }
}

/// How many characters begin in the first `bytes` bytes of `line`, at most all of them.
fn char_count(line: &str, bytes: usize) -> usize {
    line.char_indices().take_while(|&(at, _)| at < bytes).count()
}

/// A terminal must not be steered by what stands in a file.
fn printable(character: char) -> char {
    if character.is_control() && character != '\t' { char::REPLACEMENT_CHARACTER } else { character }
}

/// Where something stands in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name as it was given.
    pub file: Arc<str>,
    /// The line. **Units:** from 1.
    pub line: u32,
    /// The column. **Units:** characters, from 1.
    pub column: u32,
    excerpt: String,
    indent: u32,
    width: u32,
}

impl Place {
    /// The line's text, or the piece of a long line around the column.
    pub fn excerpt(&self) -> &str {
        &self.excerpt
    }

    /// The blanks below the line's number.
    pub(crate) fn gutter(&self) -> String {
        " ".repeat(self.line.to_string().len())
    }

    /// The source line with carets below the place, as compilers show it.
    pub(crate) fn underline(&self, into: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, gutter) = (self.line, self.gutter());
        let indent = self.excerpt.chars().take(self.indent as usize);
        let indent: String = indent.map(|character| if character == '\t' { '\t' } else { ' ' }).collect();
        let carets = "^".repeat(self.width as usize);
        write!(into, "{gutter} |\n{number} | {}\n{gutter} | {indent}{carets}", self.excerpt)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_the_line_and_the_column_of_its_first_character() {
        let source = Source::new("a.toml", "one\n  tw\u{f6} = 3\r\nlast");
        let place = source.place(&(10..11));
        assert_eq!((place.line, place.column, place.excerpt()), (2, 6, "  tw\u{f6} = 3"));
        assert_eq!(place.to_string(), "a.toml:2:6");
    }

    #[test]
    fn a_place_past_the_end_is_at_the_end_of_the_last_line() {
        for (text, line, column) in [("", 1, 1), ("one\n", 1, 4), ("one\ntwo", 2, 4)] {
            let place = Source::new("a", text).place(&(900..950));
            assert_eq!((place.line, place.column), (line, column), "in {text:?}");
        }
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let text = format!("{}here{}", "x".repeat(1000), "y".repeat(1000));
        let place = Source::new("a", &text).place(&(1000..1004));
        assert_eq!(place.column, 1001);
        assert_eq!(place.excerpt().chars().count(), EXCERPT_MOST);
        assert!(place.excerpt()[place.indent as usize..].starts_with("here"));
        assert_eq!(place.width, 4);
    }
}
