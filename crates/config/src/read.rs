//! Reads typed values out of a parsed TOML tree and notes everything that is not legal on the way.
//!
//! Knows TOML's types and the schema, not what the values mean. Called by the modules of the sections. A reader answers none
//! where the value is missing or was reported, so that reading goes on and one run finds all faults.
//! Invariant: what is reported has the span of the value or key that it is about. Tests: `tests/bad_input.rs`.

use core::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::finding::{Doubt, Fault, Findings, Problem, Warning};
use crate::schema::{Key, SECTIONS, Section};
use crate::source::Source;

/// Faults that are listed; the rest is counted. Chosen: more than anyone reads.
const FAULTS_MOST: usize = 100;
/// The longest piece of a found value that a message repeats. **Units:** characters.
const FOUND_MOST: usize = 60;
/// The longest word for which a likely meant one is looked up. **Units:** characters.
const GUESS_MOST: usize = 32;

/// Where a value stands, and its key's path.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) span: Range<usize>,
    pub(crate) key: String,
}

/// What was found so far.
pub(crate) struct Report {
    pub(crate) source: Arc<Source>,
    faults: Vec<(usize, Fault)>,
    warnings: Vec<Warning>,
    unlisted: usize,
}

impl Report {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Self { source, faults: Vec::new(), warnings: Vec::new(), unlisted: 0 }
    }

    pub(crate) fn fault(&mut self, spot: &Spot, what: Problem) {
        if self.faults.len() == FAULTS_MOST {
            self.unlisted += 1;
            return;
        }
        let place = self.source.place(&spot.span);
        self.faults.push((spot.span.start, Fault { place, key: spot.key.clone(), what }));
    }

    pub(crate) fn warning(&mut self, spot: &Spot, what: Doubt) {
        if self.warnings.len() < FAULTS_MOST {
            let place = self.source.place(&spot.span);
            self.warnings.push(Warning { place, key: spot.key.clone(), what });
        }
    }

    /// How many faults there are so far: to see whether reading something added one.
    pub(crate) fn count(&self) -> usize {
        self.faults.len() + self.unlisted
    }

    /// The line of a spot, to refer to it from another one's message.
    pub(crate) fn line(&self, spot: &Spot) -> u32 {
        self.source.line(spot.span.start)
    }

    /// The warnings, or else everything found.
    pub(crate) fn finish(self) -> Result<Vec<Warning>, Findings> {
        if self.faults.is_empty() { Ok(self.warnings) } else { Err(self.into_findings()) }
    }

    /// Everything found, in the order of the file.
    pub(crate) fn into_findings(mut self) -> Findings {
        self.faults.sort_by_key(|&(start, _)| start);
        let faults = self.faults.into_iter().map(|(_, fault)| fault).collect();
        Findings { faults, unlisted: self.unlisted, warnings: self.warnings }
    }
}

/// The whole document.
pub(crate) struct Document<'t> {
    root: &'t DeTable<'t>,
}

impl<'t> Document<'t> {
    /// The document, after its sections' names were checked.
    pub(crate) fn new(root: &'t DeTable<'t>, report: &mut Report) -> Self {
        let known: Vec<_> = SECTIONS.iter().map(|section| section.name).collect();
        report_unknown(root, "section", "", &known, report);
        Self { root }
    }

    /// The tables of a repeated section, and whether all of it were tables.
    pub(crate) fn tables(&self, section: &'static Section, report: &mut Report) -> (Vec<Table<'t>>, bool) {
        let Some(value) = self.value(section) else { return (Vec::new(), true) };
        let Some(items) = value.list(report) else { return (Vec::new(), false) };
        let count = items.len();
        let tables: Vec<_> = items.into_iter().filter_map(|item| Table::new(item, section, report)).collect();
        let whole = tables.len() == count;
        (tables, whole)
    }

    /// The table of a section that stands once.
    pub(crate) fn table(&self, section: &'static Section, report: &mut Report) -> Option<Table<'t>> {
        Table::new(self.value(section)?, section, report)
    }

    fn value(&self, section: &'static Section) -> Option<Value<'t>> {
        let value = self.root.get(section.name)?;
        let spot = Spot { span: value.span(), key: section.name.to_owned() };
        Some(Value { inner: value.get_ref(), accepts: section.accepts, spot })
    }
}

/// A table of a section.
pub(crate) struct Table<'t> {
    entries: &'t DeTable<'t>,
    section: &'static Section,
    pub(crate) spot: Spot,
}

impl<'t> Table<'t> {
    fn new(value: Value<'t>, section: &'static Section, report: &mut Report) -> Option<Self> {
        let DeValue::Table(entries) = value.inner else {
            value.wrong_type(report);
            return None;
        };
        let known: Vec<_> = section.keys.iter().map(|key| key.name).collect();
        report_unknown(entries, "key", &format!("{}.", value.spot.key), &known, report);
        Some(Self { entries, section, spot: value.spot })
    }

    /// The value of a key of the schema, or none where it is left out.
    pub(crate) fn get(&self, name: &'static str) -> Option<Value<'t>> {
        let accepts = self.schema(name).accepts;
        let value = self.entries.get(name)?;
        Some(Value { inner: value.get_ref(), accepts, spot: Spot { span: value.span(), key: self.path(name) } })
    }

    /// The value of a key that must not be left out.
    pub(crate) fn require(&self, name: &'static str, report: &mut Report) -> Option<Value<'t>> {
        let value = self.get(name);
        if value.is_none() {
            let spot = Spot { span: self.spot.span.clone(), key: self.path(name) };
            report.fault(&spot, Problem::Missing { name, wants: self.schema(name).accepts });
        }
        value
    }

    fn schema(&self, name: &'static str) -> &'static Key {
        let key = self.section.key(name);
        debug_assert!(key.is_some(), "{}.{name} is not in the schema", self.section.name);
        key.unwrap_or(&self.section.keys[0])
    }

    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.spot.key)
    }
}

/// Reports every name of a table that is not among `known`.
fn report_unknown(table: &DeTable<'_>, what: &'static str, path: &str, known: &[&'static str], report: &mut Report) {
    for name in table.keys().filter(|name| !known.contains(&name.get_ref().as_ref())) {
        let found = shorten(name.get_ref());
        let spot = Spot { span: name.span(), key: format!("{path}{found}") };
        let nearest = nearest(&found, known.iter().copied()).map(str::to_owned);
        report.fault(&spot, Problem::UnknownKey { what, found, nearest, known: known.to_vec() });
    }
}

/// An entry of a table whose keys the schema does not list.
pub(crate) struct Entry<'t> {
    /// Its key, and where that stands.
    pub(crate) name: &'t str,
    pub(crate) spot: Spot,
    pub(crate) value: Value<'t>,
}

/// A value of the tree.
pub(crate) struct Value<'t> {
    inner: &'t DeValue<'t>,
    /// What the schema says that it has to be.
    pub(crate) accepts: &'static str,
    pub(crate) spot: Spot,
}

impl<'t> Value<'t> {
    pub(crate) fn text(&self, report: &mut Report) -> Option<&'t str> {
        self.typed(self.inner.as_str(), report)
    }

    /// Whether it is a text, where it may be something else.
    pub(crate) const fn is_text(&self) -> bool {
        matches!(self.inner, DeValue::String(_))
    }

    pub(crate) fn boolean(&self, report: &mut Report) -> Option<bool> {
        self.typed(self.inner.as_bool(), report)
    }

    /// A whole number within `range`.
    pub(crate) fn integer(&self, range: RangeInclusive<u32>, report: &mut Report) -> Option<u32> {
        let integer = self.typed(self.inner.as_integer(), report)?;
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let legal = number.and_then(|number| u32::try_from(number).ok()).filter(|number| range.contains(number));
        if legal.is_none() {
            let found = number.map_or_else(|| shorten(integer.as_str()), |number| number.to_string());
            let (least, most) = (i64::from(*range.start()), i64::from(*range.end()));
            report.fault(&self.spot, Problem::OutOfRange { found, least, most });
        }
        legal
    }

    /// A whole number within `range`; none also for the word that may stand in its place.
    pub(crate) fn integer_or(&self, word: &'static str, range: RangeInclusive<u32>, report: &mut Report) -> Option<u32> {
        match self.inner {
            DeValue::String(found) if found.as_ref() == word => None,
            DeValue::String(found) => {
                report.fault(&self.spot, Problem::UnknownWord { found: shorten(found), legal: vec![word] });
                None
            }
            _ => self.integer(range, report),
        }
    }

    /// A word that has a meaning, or what a whole number within `range` means.
    pub(crate) fn word_or<T: Copy>(
        &self,
        words: &[(&'static str, T)],
        range: RangeInclusive<u32>,
        number: impl FnOnce(u32) -> T,
        report: &mut Report,
    ) -> Option<T> {
        match self.inner {
            DeValue::String(_) => self.word(words, report),
            _ => self.integer(range, report).map(number),
        }
    }

    /// The elements of a list.
    pub(crate) fn list(&self, report: &mut Report) -> Option<Vec<Self>> {
        let array = self.typed(self.inner.as_array(), report)?;
        let element = |(position, value): (usize, &'t Spanned<DeValue<'t>>)| {
            let spot = Spot { span: value.span(), key: format!("{}[{position}]", self.spot.key) };
            Self { inner: value.get_ref(), accepts: self.accepts, spot }
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    /// The entries of a table with keys of the operator's choice.
    pub(crate) fn entries(&self, report: &mut Report) -> Option<Vec<Entry<'t>>> {
        let table = self.typed(self.inner.as_table(), report)?;
        let entry = |(name, value): (&'t Spanned<_>, &'t Spanned<DeValue<'t>>)| {
            let text: &'t std::borrow::Cow<'t, str> = name.get_ref();
            let key = format!("{}.{}", self.spot.key, shorten(text));
            let inner = Self { inner: value.get_ref(), accepts: self.accepts, spot: Spot { span: value.span(), key: key.clone() } };
            Entry { name: text, spot: Spot { span: name.span(), key }, value: inner }
        };
        Some(table.iter().map(entry).collect())
    }

    /// A word that has a meaning.
    pub(crate) fn word<T: Copy>(&self, words: &[(&'static str, T)], report: &mut Report) -> Option<T> {
        let found = self.text(report)?;
        let meaning = words.iter().find(|(word, _)| *word == found).map(|&(_, meaning)| meaning);
        if meaning.is_none() {
            let legal = words.iter().map(|&(word, _)| word).collect();
            report.fault(&self.spot, Problem::UnknownWord { found: shorten(found), legal });
        }
        meaning
    }

    /// A duration within `range`.
    pub(crate) fn duration(&self, range: RangeInclusive<Duration>, report: &mut Report) -> Option<Duration> {
        let text = self.text(report)?;
        let Ok(found) = humantime::parse_duration(text) else {
            self.malformed(text, "a duration", report);
            return None;
        };
        if !range.contains(&found) {
            report.fault(&self.spot, Problem::DurationOutOfRange { found, least: *range.start(), most: *range.end() });
            return None;
        }
        Some(found)
    }

    /// Reports that a text is not what it should be.
    pub(crate) fn malformed(&self, found: &str, what: &'static str, report: &mut Report) {
        report.fault(&self.spot, Problem::Malformed { found: shorten(found), what, wants: self.accepts });
    }

    fn typed<T>(&self, wanted: Option<T>, report: &mut Report) -> Option<T> {
        if wanted.is_none() {
            self.wrong_type(report);
        }
        wanted
    }

    fn wrong_type(&self, report: &mut Report) {
        let found = match self.inner {
            DeValue::String(_) => "a text in quotes",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        report.fault(&self.spot, Problem::WrongType { found, wants: self.accepts });
    }
}

/// A found text as messages repeat it: cut, and without control characters.
pub(crate) fn shorten(found: &str) -> String {
    let mut characters = found.chars();
    let mut short: String = characters.by_ref().take(FOUND_MOST).flat_map(char::escape_debug).collect();
    if characters.next().is_some() {
        short.push_str("...");
    }
    short
}

/// The candidate that `found` was likely meant to be, when one is near enough.
pub(crate) fn nearest<'c>(found: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let found: Vec<char> = found.chars().take(GUESS_MOST + 1).collect();
    if found.len() > GUESS_MOST {
        return None;
    }
    let near = found.len() / 3 + 1;
    candidates
        .map(|candidate| (edit_distance(&found, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= near && distance < candidate.chars().count())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// How many characters have to be put in, taken out or exchanged to get from one to the other (Levenshtein, one row at a time).
fn edit_distance(from: &[char], to: &str) -> usize {
    let mut row: Vec<usize> = (0..=from.len()).collect();
    for (position, wanted) in to.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = position + 1;
        for (column, &have) in from.iter().enumerate() {
            let replaced = diagonal + usize::from(have != wanted);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[from.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_the_nearest_and_a_foreign_one_none() {
        let candidates = ["addresses", "name", "ports"];
        for (found, meant) in [("adresses", Some("addresses")), ("port", Some("ports")), ("colour", None), ("", None)] {
            assert_eq!(nearest(found, candidates.into_iter()), meant, "for {found:?}");
        }
    }
}
