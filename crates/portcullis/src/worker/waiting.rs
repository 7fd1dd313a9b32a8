//! Fragments that wait for the first one of their datagram.
//!
//! Knows frames and tokens; which fragment waits and for how long, the NAT says. Called by the worker's dispose step, and when the NAT
//! releases a datagram or gives it up. Invariants: the fragments of a datagram come out in the order in which they went in; at most
//! [`MOST`] wait; nothing is allocated after the start.

use std::collections::HashMap;

use portcullis_nat::policy::DeviceId;
use portcullis_nat::verdict::DatagramToken;

/// Fragments that wait at once: as many as the NAT lets wait (1024), and a burst that was let in while those before it were let go.
pub(super) const MOST: usize = 1024 + super::BURST;

/// A fragment that waits.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Waiting<F> {
    pub(super) frame: F,
    /// The device that it came from.
    pub(super) device: DeviceId,
    /// How often it was handed over before.
    pub(super) handed: u8,
}

/// A place in the store, with the place of the fragment behind it.
struct Place<F> {
    waiting: Option<Waiting<F>>,
    next: usize,
}

/// The first and the last place of a datagram.
#[derive(Clone, Copy)]
struct Line {
    first: usize,
    last: usize,
}

/// The fragments that wait, by datagram: lines through one array of places.
pub(super) struct Store<F> {
    places: Vec<Place<F>>,
    free: Vec<usize>,
    lines: HashMap<DatagramToken, Line>,
}

impl<F> Store<F> {
    pub(super) fn new() -> Self {
        Self {
            places: (0..MOST).map(|_| Place { waiting: None, next: 0 }).collect(),
            free: (0..MOST).rev().collect(),
            lines: HashMap::with_capacity(MOST),
        }
    }

    /// Frames that wait.
    pub(super) fn frames(&self) -> usize {
        MOST - self.free.len()
    }

    /// Lets a fragment wait behind the others of its datagram. **Errors:** the frame, when too many wait.
    pub(super) fn put(&mut self, datagram: DatagramToken, waiting: Waiting<F>) -> Result<(), F> {
        let Some(place) = self.free.pop() else { return Err(waiting.frame) };
        self.places[place].waiting = Some(waiting);
        let line = self.lines.entry(datagram).or_insert(Line { first: place, last: place });
        self.places[line.last].next = place;
        line.last = place;
        Ok(())
    }

    /// Takes the fragment of a datagram that has waited longest.
    pub(super) fn take(&mut self, datagram: DatagramToken) -> Option<Waiting<F>> {
        let line = self.lines.get_mut(&datagram)?;
        let place = line.first;
        line.first = self.places[place].next;
        if place == line.last {
            self.lines.remove(&datagram);
        }
        self.free.push(place);
        self.places[place].waiting.take()
    }

    /// Takes all frames, in no order. The worker ends.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = F> + '_ {
        self.lines.clear();
        self.free = (0..MOST).rev().collect();
        self.places.iter_mut().filter_map(|place| place.waiting.take().map(|waiting| waiting.frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(frame: usize) -> Waiting<usize> {
        Waiting { frame, device: DeviceId(1), handed: 1 }
    }

    fn all(store: &mut Store<usize>, datagram: u64) -> Vec<usize> {
        std::iter::from_fn(|| store.take(DatagramToken(datagram)).map(|waiting| waiting.frame)).collect()
    }

    #[test]
    fn fragments_come_out_by_datagram_in_the_order_in_which_they_went_in() {
        let mut store = Store::new();
        for frame in 0..9 {
            store.put(DatagramToken(frame as u64 % 3), fragment(frame)).expect("room");
        }
        assert_eq!(store.take(DatagramToken(1)), Some(fragment(1)));
        store.put(DatagramToken(1), fragment(10)).expect("room");
        assert_eq!(all(&mut store, 1), [4, 7, 10]);
        assert_eq!(all(&mut store, 1), [0; 0], "nothing waits twice");
        assert_eq!((all(&mut store, 0), store.frames()), (vec![0, 3, 6], 3));
        assert_eq!(store.drain().collect::<Vec<_>>(), [2, 5, 8]);
        assert_eq!((store.frames(), all(&mut store, 2)), (0, vec![]));
    }

    #[test]
    fn a_full_store_refuses_and_has_room_again_after_a_datagram_left() {
        let mut store = Store::new();
        for frame in 0..MOST {
            store.put(DatagramToken(frame as u64 / 2), fragment(frame)).expect("room");
        }
        assert_eq!((store.put(DatagramToken(0), fragment(MOST)), store.frames()), (Err(MOST), MOST));
        assert_eq!(all(&mut store, 7), [14, 15]);
        assert_eq!((store.put(DatagramToken(0), fragment(MOST)), all(&mut store, 0)), (Ok(()), vec![0, 1, MOST]));
    }
}
