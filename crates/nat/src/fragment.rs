//! The fragments that follow a translated first one: which addresses they get.
//!
//! Knows the translation that the first fragment had, not why. Called for first fragments (to remember) and later ones (to find).
//! Invariant: at most the configured number is remembered, each for the configured time. Sources: RFC 791 section 3.2, RFC 4787
//! section 11. Fragments that arrive before their first are dropped.

use core::net::Ipv4Addr;
use std::collections::VecDeque;

use ahash::RandomState;
use hashbrown::HashMap;

use crate::time::Tick;
use crate::verdict::DatagramToken;

/// What all fragments of a datagram share, as received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FragmentKey {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) id: u16,
    pub(crate) protocol: u8,
}

/// The addresses that the first fragment was forwarded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Followed {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
}

/// The datagrams whose first fragment has passed.
pub(crate) struct Fragments {
    followed: HashMap<FragmentKey, (Followed, Tick), RandomState>,
    /// One place for each, about in the order of their ends.
    ends: VecDeque<(FragmentKey, Tick)>,
    limit: usize,
    /// How long one is followed. **Units:** milliseconds.
    span: u32,
    released: VecDeque<DatagramToken>,
    given_up: VecDeque<DatagramToken>,
}

impl Fragments {
    pub(crate) fn new(limit: u32, hasher: RandomState) -> Self {
        let limit = limit as usize;
        let followed = HashMap::with_capacity_and_hasher(limit, hasher);
        Self {
            followed,
            ends: VecDeque::with_capacity(limit),
            limit,
            span: 0,
            released: VecDeque::new(),
            given_up: VecDeque::new(),
        }
    }

    /// Sets how long a datagram is followed. **Units:** milliseconds.
    pub(crate) fn set_span(&mut self, span: u32) {
        self.span = span;
    }

    /// Whether the datagram is followed, or one more can be.
    pub(crate) fn has_room_for(&self, key: &FragmentKey) -> bool {
        self.ends.len() < self.limit || self.followed.contains_key(key)
    }

    /// Follows a datagram from now on; one that is followed keeps its place. The caller has asked [`Fragments::has_room_for`].
    pub(crate) fn follow(&mut self, key: FragmentKey, followed: Followed, now: Tick) {
        debug_assert!(self.has_room_for(&key));
        if self.followed.insert(key, (followed, now)).is_none() {
            self.ends.push_back((key, now));
        }
    }

    /// What became of the first fragment.
    pub(crate) fn find(&self, key: &FragmentKey, now: Tick) -> Option<Followed> {
        let &(followed, since) = self.followed.get(key)?;
        (now.since(since) <= self.span).then_some(followed)
    }

    /// Forgets what has been followed long enough, at most `most` datagrams.
    pub(crate) fn expire(&mut self, now: Tick, most: usize) {
        for _ in 0..most {
            let Some(&(key, since)) = self.ends.front() else { return };
            if now.since(since) <= self.span {
                return;
            }
            self.ends.pop_front();
            match self.followed.get(&key) {
                // Followed anew since: its end comes later.
                Some(&(_, latest)) if latest != since => self.ends.push_back((key, latest)),
                _ => {
                    self.followed.remove(&key);
                }
            }
        }
    }

    /// Follows nothing any more: addresses have changed.
    pub(crate) fn clear(&mut self) {
        self.followed.clear();
        self.ends.clear();
    }

    /// A datagram whose first fragment has come while others waited.
    pub(crate) fn take_released(&mut self) -> Option<DatagramToken> {
        self.released.pop_front()
    }

    /// A datagram whose first fragment did not come.
    pub(crate) fn take_given_up(&mut self) -> Option<DatagramToken> {
        self.given_up.pop_front()
    }

    /// How many datagrams are followed.
    pub(crate) fn len(&self) -> usize {
        self.followed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: Followed = Followed { source: Ipv4Addr::LOCALHOST, destination: Ipv4Addr::LOCALHOST };

    fn key(id: u16) -> FragmentKey {
        FragmentKey { source: Ipv4Addr::LOCALHOST, destination: Ipv4Addr::BROADCAST, id, protocol: 17 }
    }

    #[test]
    fn a_datagram_is_followed_for_its_span() {
        let mut fragments = Fragments::new(2, RandomState::with_seeds(1, 2, 3, 4));
        fragments.set_span(100);
        let start = Tick(u32::MAX - 50);
        fragments.follow(key(1), HOME, start);
        assert_eq!(fragments.find(&key(1), start.after(100)), Some(HOME));
        assert_eq!(fragments.find(&key(1), start.after(101)), None);
        fragments.follow(key(2), HOME, start.after(60));
        assert!(!fragments.has_room_for(&key(3)) && fragments.has_room_for(&key(2)));
        fragments.expire(start.after(101), 10);
        assert!(fragments.has_room_for(&key(3)) && fragments.len() == 1);
    }

    #[test]
    fn a_reused_identifier_is_followed_from_its_last_first_fragment() {
        let mut fragments = Fragments::new(2, RandomState::with_seeds(1, 2, 3, 4));
        fragments.set_span(100);
        fragments.follow(key(1), HOME, Tick(0));
        let other = Followed { source: Ipv4Addr::LOCALHOST, destination: Ipv4Addr::BROADCAST };
        fragments.follow(key(1), other, Tick(90));
        fragments.expire(Tick(150), 10);
        assert_eq!(fragments.find(&key(1), Tick(150)), Some(other));
        fragments.expire(Tick(500), 10);
        assert_eq!((fragments.len(), fragments.ends.len()), (0, 0));
    }
}
