//! Records under numbers, in memory that its owner hands in: allocate, release, and the order to sweep them in.
//!
//! Knows that a record can say whether it is live and can hold the number of the next free one. Invariant: a number is live, or in the
//! free list, or never was used; low numbers are used first, so that a sweep need not go beyond `high_water`.

/// "No record."
pub(crate) const NONE: u32 = u32::MAX;

/// A record that a slab can hold. **Invariant:** all zero is a free record.
pub(crate) trait Record: Copy {
    /// Whether it is in use.
    fn is_live(&self) -> bool;
    /// Makes it a free record, followed by `next` in the free list.
    fn set_free(&mut self, next: u32);
    /// The next free record. Asked of free records only.
    fn next_free(&self) -> u32;
}

/// The records.
pub(crate) struct Slab<'m, R> {
    records: &'m mut [R],
    free: u32,
    high_water: u32,
    live: u32,
}

impl<'m, R: Record> Slab<'m, R> {
    /// A slab over zeroed `records`.
    pub(crate) fn new(records: &'m mut [R]) -> Self {
        Self { records, free: NONE, high_water: 0, live: 0 }
    }

    /// Whether `more` records can be inserted.
    pub(crate) fn has_room(&self, more: u32) -> bool {
        self.live + more <= self.records.len() as u32
    }

    /// Stores `record` and returns its number. None when all are in use.
    pub(crate) fn insert(&mut self, record: R) -> Option<u32> {
        let number = match self.free {
            NONE if (self.high_water as usize) < self.records.len() => {
                self.high_water += 1;
                self.high_water - 1
            }
            NONE => return None,
            number => {
                self.free = self.records[number as usize].next_free();
                number
            }
        };
        self.records[number as usize] = record;
        self.live += 1;
        Some(number)
    }

    /// Frees the record `number`. **Panics** in debug builds when it is free.
    pub(crate) fn remove(&mut self, number: u32) {
        let record = &mut self.records[number as usize];
        debug_assert!(record.is_live(), "record {number} is free");
        record.set_free(self.free);
        self.free = number;
        self.live -= 1;
    }

    /// The record `number`.
    #[inline]
    pub(crate) fn get(&self, number: u32) -> &R {
        &self.records[number as usize]
    }

    /// The record `number`. None where it is [`NONE`], or any other that no record has.
    #[inline]
    pub(crate) fn peek(&self, number: u32) -> Option<&R> {
        self.records.get(number as usize)
    }

    /// The same, to change.
    #[inline]
    pub(crate) fn peek_mut(&mut self, number: u32) -> Option<&mut R> {
        self.records.get_mut(number as usize)
    }

    /// The record `number`, to change.
    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> &mut R {
        &mut self.records[number as usize]
    }

    /// Records in use.
    pub(crate) fn live(&self) -> u32 {
        self.live
    }

    /// Records in all.
    pub(crate) fn limit(&self) -> u32 {
        self.records.len() as u32
    }

    /// All numbers ever used are below this one.
    pub(crate) fn high_water(&self) -> u32 {
        self.high_water
    }

    /// The live records among the `most` from `cursor` on, and where to go on.
    pub(crate) fn slice(&self, cursor: u32, most: u32) -> (impl Iterator<Item = (u32, &R)>, Option<u32>) {
        let end = self.high_water.min(cursor.saturating_add(most));
        let numbers = cursor.min(end)..end;
        let live = numbers.map(|number| (number, &self.records[number as usize])).filter(|(_, record)| record.is_live());
        (live, (end < self.high_water).then_some(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Default)]
    struct Numbered {
        live: bool,
        value: u32,
    }

    impl Record for Numbered {
        fn is_live(&self) -> bool {
            self.live
        }
        fn set_free(&mut self, next: u32) {
            *self = Self { live: false, value: next };
        }
        fn next_free(&self) -> u32 {
            self.value
        }
    }

    fn numbered(value: u32) -> Numbered {
        Numbered { live: true, value }
    }

    #[test]
    fn it_gives_every_record_once_and_takes_them_back() {
        let mut memory = [Numbered::default(); 3];
        let mut slab = Slab::new(&mut memory);
        let numbers: Vec<_> = (0..3).filter_map(|value| slab.insert(numbered(value))).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert!(slab.insert(numbered(9)).is_none() && !slab.has_room(1));
        slab.remove(1);
        assert_eq!(slab.insert(numbered(7)), Some(1));
        assert_eq!((slab.get(1).value, slab.live()), (7, 3));
    }

    #[test]
    fn slices_visit_every_live_record_once() {
        let mut memory = [Numbered::default(); 10];
        let mut slab = Slab::new(&mut memory);
        (0..7).for_each(|value| assert!(slab.insert(numbered(value)).is_some()));
        slab.remove(3);
        let mut seen = Vec::new();
        let mut cursor = Some(0);
        while let Some(from) = cursor {
            let (records, next) = slab.slice(from, 2);
            seen.extend(records.map(|(number, _)| number));
            cursor = next;
        }
        assert_eq!(seen, [0, 1, 2, 4, 5, 6]);
    }
}
