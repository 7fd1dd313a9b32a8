//! Records that packets from either side find by a key of that side: one index has both.
//!
//! Knows records, numbers and hashes, not what is hashed. Called by the session table and by that of protocols without ports. Invariant: a
//! record is in the index under both of its hashes, or there is none.

use crate::index::{Index, NUMBERS, Sought};
use crate::policy::Side;
use crate::slab::{Record, Slab};
use crate::table::TableFull;

/// Records that the index can tell apart, by [`value_of`].
pub(crate) const MOST: u32 = NUMBERS / 2;

/// What the index has of a record: its number, and in the lowest bit from which side its packets are found by it.
const fn value_of(number: u32, side: Side) -> u32 {
    number << 1 | side as u32
}

/// The hashes of both keys of a record.
#[derive(Clone, Copy, Default)]
pub(crate) struct Hashes {
    pub(crate) inner: u64,
    pub(crate) outer: u64,
}

/// Where a record is under both of its hashes, as far as that was found out.
#[derive(Clone, Copy, Default)]
pub(crate) struct SoughtTwice {
    inner: Sought,
    outer: Sought,
}

impl SoughtTwice {
    /// What is under both hashes, and will be removed. Nobody has looked for it.
    #[inline]
    pub(crate) fn new(index: &Index<'_>, Hashes { inner, outer }: Hashes) -> Self {
        Self { inner: index.seek(inner), outer: index.seek(outer) }
    }

    /// Has both home lines fetched.
    #[inline]
    pub(crate) fn fetch_homes(&self, index: &Index<'_>) {
        index.fetch_home(&self.inner);
        index.fetch_home(&self.outer);
    }

    /// Looks for a record in both home lines, which should have been fetched.
    #[inline]
    pub(crate) fn look_for(&mut self, index: &Index<'_>, number: u32) {
        index.look_for(&mut self.inner, value_of(number, Side::Inside));
        index.look_for(&mut self.outer, value_of(number, Side::Outside));
    }
}

/// Stores a record under both hashes. **Errors:** [`TableFull`]; nothing has changed then.
#[inline]
pub(crate) fn insert<R: Record>(
    index: &mut Index<'_>,
    records: &mut Slab<'_, R>,
    record: R,
    Hashes { inner, outer }: Hashes,
) -> Result<u32, TableFull> {
    let number = records.insert(record).ok_or(TableFull)?;
    if index.insert(inner, value_of(number, Side::Inside)).is_err() {
        records.remove(number);
        return Err(TableFull);
    }
    if index.insert(outer, value_of(number, Side::Outside)).is_err() {
        index.remove(inner, value_of(number, Side::Inside));
        records.remove(number);
        return Err(TableFull);
    }
    Ok(number)
}

/// Removes a record.
#[inline]
pub(crate) fn remove<R: Record>(index: &mut Index<'_>, records: &mut Slab<'_, R>, number: u32, sought: &SoughtTwice) {
    let removed = index.remove_sought(&sought.inner, value_of(number, Side::Inside))
        && index.remove_sought(&sought.outer, value_of(number, Side::Outside));
    debug_assert!(removed, "record {number} was not under its keys");
    records.remove(number);
}
