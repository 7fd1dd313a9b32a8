//! The door "policy in": the rules and the network, as immutable snapshots, from the control plane to all workers.
//!
//! A worker asks between bursts; the answer "nothing new" costs one atomic load. Publishers lock among themselves only.
//! Invariants: a generation that the worker has seen is never followed by an older one; the worker never frees a snapshot (a full
//! routing table takes milliseconds to drop), the publisher's retired list does. Called by `worker.rs`, `run.rs`, netlink, reload.

use std::sync::Arc;

use portcullis_nat::policy::{Network, Policy};

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, Slot};

/// The rules and the network of one moment.
#[derive(Debug)]
pub(crate) struct Snapshot<P = Policy, N = Network> {
    /// The configured rules.
    pub(crate) policy: Arc<P>,
    /// The network as the kernel sees it.
    pub(crate) network: Arc<N>,
    /// How often something was published, this one included.
    pub(crate) generation: u64,
}

/// One reference to each replaced value, so that the worker's is never the last.
#[derive(Debug)]
struct Retired<P, N> {
    policies: Vec<Arc<P>>,
    networks: Vec<Arc<N>>,
}

#[derive(Debug)]
struct Shared<P, N> {
    /// The generation of `current`, or an older one for a moment.
    generation: AtomicU64,
    current: Slot<Snapshot<P, N>>,
    /// What was replaced and the worker may still hold. Publishers only.
    retired: Mutex<Retired<P, N>>,
}

/// The control plane's side. Clones publish to the same workers.
#[derive(Debug)]
pub(crate) struct Publisher<P = Policy, N = Network> {
    shared: Arc<Shared<P, N>>,
}

impl<P, N> Clone for Publisher<P, N> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// The worker's side.
#[derive(Debug)]
pub(crate) struct Reader<P = Policy, N = Network> {
    shared: Arc<Shared<P, N>>,
    seen: u64,
}

/// The two sides of a door with a first snapshot, generation 1, behind it.
pub(crate) fn door<P, N>(policy: Arc<P>, network: Arc<N>) -> (Publisher<P, N>, Reader<P, N>) {
    let first = Arc::new(Snapshot { policy, network, generation: 1 });
    let shared = Arc::new(Shared {
        generation: AtomicU64::new(1),
        current: Slot::new(first),
        retired: Mutex::new(Retired { policies: Vec::new(), networks: Vec::new() }),
    });
    let publisher = Publisher { shared };
    let reader = publisher.reader();
    (publisher, reader)
}

impl<P, N> Publisher<P, N> {
    /// One more worker's side, to which the newest snapshot is news.
    pub(crate) fn reader(&self) -> Reader<P, N> {
        Reader { shared: Arc::clone(&self.shared), seen: 0 }
    }

    /// Publishes new rules with the network as it is. Returns the generation.
    pub(crate) fn publish_policy(&self, policy: Arc<P>) -> u64 {
        let mut retired = self.lock();
        let current = self.current();
        retired.policies.push(Arc::clone(&current.policy));
        self.replace(&mut retired, policy, Arc::clone(&current.network), &current)
    }

    /// Publishes the network with the rules as they are. Returns the generation.
    pub(crate) fn publish_network(&self, network: Arc<N>) -> u64 {
        let mut retired = self.lock();
        let current = self.current();
        retired.networks.push(Arc::clone(&current.network));
        self.replace(&mut retired, Arc::clone(&current.policy), network, &current)
    }

    /// The newest snapshot.
    pub(crate) fn current(&self) -> Arc<Snapshot<P, N>> {
        self.shared.current.load()
    }

    fn lock(&self) -> MutexGuard<'_, Retired<P, N>> {
        self.shared.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, retired: &mut Retired<P, N>, policy: Arc<P>, network: Arc<N>, current: &Snapshot<P, N>) -> u64 {
        let generation = current.generation + 1;
        self.shared.current.swap(Arc::new(Snapshot { policy, network, generation }));
        // Release: whoever sees the generation sees the pointer that was swapped before it.
        self.shared.generation.store(generation, Ordering::Release);
        // A sole holder stays sole: nobody else has a reference to clone. What the worker lets go of later is freed next time.
        retired.policies.retain(|old| Arc::strong_count(old) > 1);
        retired.networks.retain(|old| Arc::strong_count(old) > 1);
        generation
    }
}

impl<P, N> Reader<P, N> {
    /// The newest snapshot if it is newer than the last one that this returned. The first call returns the first snapshot.
    /// **Cost:** one atomic load when there is nothing new.
    #[inline]
    pub(crate) fn newer(&mut self) -> Option<Arc<Snapshot<P, N>>> {
        if self.shared.generation.load(Ordering::Acquire) == self.seen {
            return None;
        }
        let snapshot = self.shared.current.load();
        // The pointer may already be newer than the generation that was read: go by the snapshot's own.
        if snapshot.generation == self.seen {
            return None;
        }
        self.seen = snapshot.generation;
        Some(snapshot)
    }

    /// The generation that the worker goes by.
    #[cfg(test)]
    pub(crate) const fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::super::sync::{model, thread};
    use super::*;

    #[test]
    fn the_worker_sees_each_value_whole_and_never_an_older_one_again() {
        model(|| {
            let (publisher, mut reader) = door(Arc::new(10), Arc::new(20));
            let publishing = thread::spawn(move || {
                publisher.publish_policy(Arc::new(11));
                publisher.publish_network(Arc::new(21));
            });
            let mut last = 0;
            for _ in 0..3 {
                if let Some(snapshot) = reader.newer() {
                    assert!(snapshot.generation > last, "{} after {last}", snapshot.generation);
                    last = snapshot.generation;
                    let expected = [(10, 20), (11, 20), (11, 21)][last as usize - 1];
                    assert_eq!((*snapshot.policy, *snapshot.network), expected);
                }
            }
            publishing.join().expect("the publisher ends");
            let newest = reader.newer().map_or(last, |snapshot| snapshot.generation);
            assert_eq!(newest, 3, "what was published before is seen afterwards");
            assert!(reader.newer().is_none(), "and is news only once");
        });
    }

    #[test]
    fn every_worker_sees_the_newest_snapshot_at_its_own_time() {
        model(|| {
            let (publisher, mut first) = door(Arc::new(10), Arc::new(20));
            let mut second = publisher.reader();
            let working = thread::spawn(move || {
                let early = first.newer().map(|snapshot| snapshot.generation);
                (first, early)
            });
            publisher.publish_policy(Arc::new(11));
            let seen = second.newer().expect("something newer");
            assert_eq!((*seen.policy, seen.generation), (11, 2));
            let (mut first, early) = working.join().expect("the worker ends");
            assert!(matches!(early, Some(1 | 2)), "{early:?}");
            assert_eq!(first.newer().map(|snapshot| snapshot.generation), (early == Some(1)).then_some(2));
        });
    }

    #[test]
    fn two_publishers_lose_nothing_of_each_other() {
        model(|| {
            let (publisher, mut reader) = door(Arc::new(10), Arc::new(20));
            let other = publisher.clone();
            let reloading = thread::spawn(move || other.publish_policy(Arc::new(11)));
            publisher.publish_network(Arc::new(21));
            reloading.join().expect("the other publisher ends");
            let snapshot = reader.newer().expect("something newer");
            assert_eq!((*snapshot.policy, *snapshot.network, snapshot.generation), (11, 21, 3));
        });
    }

    #[test]
    fn the_worker_never_frees_a_value_and_the_publisher_frees_it_in_the_end() {
        model(|| {
            let network = Arc::new(20);
            let watched = Arc::downgrade(&network);
            let (publisher, mut reader) = door(Arc::new(10), network);
            let held = reader.newer().expect("the first snapshot");
            publisher.publish_network(Arc::new(21));
            drop(held);
            drop(reader.newer());
            assert_eq!(watched.strong_count(), 1, "the retired list holds the last reference");
            for policy in 0..3 {
                publisher.publish_policy(Arc::new(policy));
            }
            assert_eq!(watched.strong_count(), 0, "nobody uses it any more");
            assert!(publisher.lock().networks.is_empty(), "the list does not grow");
        });
    }
}
