//! The mirror: a task that dumps the kernel's state, follows its notifications and publishes snapshots.
//!
//! Subscribes before it dumps and applies what happened during a dump after it, so that nothing is missed; dumps again what the
//! kernel changes without a word, all after an overrun, and everything once in a while. Called by the daemon's control plane.
//! Invariant: a snapshot is published when something that matters changed, at most every [`SPACING`], and else not.
//! Tests: `tests` (root) for the task, `state` and `narrate` for what it is made of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};

use super::KernelError;
use super::decode;
use super::narrate::Narrator;
use super::socket::{Dump, Event, Events, Requests};
use super::state::{Change, Effect, KernelState, Parts, Placement};

/// How long a change waits for others, so that a burst makes one snapshot. Chosen: the kernel sends the notifications of one command
/// within a millisecond.
const GATHER: Duration = Duration::from_millis(5);

/// The least time between two snapshots. With large route tables it grows to [`LOAD`] times what the last one cost to make.
const SPACING: Duration = Duration::from_millis(50);

/// The least ratio of the time between snapshots to the time that making one takes.
const LOAD: u32 = 10;

/// How often everything is dumped, in case the kernel changed something in silence that the mirror does not know of.
const RECONCILE: Duration = Duration::from_secs(300);

/// The pause before a failed socket is opened again, and the least time between two dumps after overruns.
const RETRY: Duration = Duration::from_secs(1);

/// How often a dump that was interrupted by changes is repeated at once; after that the notifications have to mend it.
const DUMP_ATTEMPTS: usize = 5;

/// The running mirror. Ends when dropped.
pub(crate) struct Mirror {
    snapshots: watch::Receiver<Arc<KernelState>>,
    watched: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mirror {
    /// Dumps the state and starts to follow it, on the current tokio runtime and in the calling thread's network namespace.
    /// What happens to the interfaces named in `watched` is logged.
    ///
    /// **Errors:** no socket, or the kernel refuses a dump.
    pub(crate) async fn start(watched: Vec<String>) -> Result<Self, KernelError> {
        let watched = Arc::new(Mutex::new(watched));
        let follower = Follower::open().await?;
        let (publisher, snapshots) = watch::channel(Arc::new(follower.state.clone()));
        let output = Output {
            publisher,
            narrator: Narrator::default(),
            watched: Arc::clone(&watched),
            last: Instant::now(),
            cost: Duration::ZERO,
        };
        output.greet();
        let task = tokio::spawn(run(follower, output));
        Ok(Self { snapshots, watched, task })
    }

    /// The latest snapshot.
    pub(crate) fn state(&self) -> Arc<KernelState> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// A receiver of every snapshot from now on; it holds the latest one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<KernelState>> {
        self.snapshots.clone()
    }

    /// Changes the interfaces whose changes are logged.
    pub(crate) fn watch_interfaces(&self, names: Vec<String>) {
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }
}

/// Where snapshots go.
struct Output {
    publisher: watch::Sender<Arc<KernelState>>,
    narrator: Narrator,
    watched: Arc<Mutex<Vec<String>>>,
    last: Instant,
    cost: Duration,
}

impl Output {
    fn greet(&self) {
        for rule in self.publisher.borrow().rules.iter() {
            super::narrate::warn_of_rule(rule);
        }
    }

    /// When a change that happened now is published.
    fn due(&self) -> Instant {
        (Instant::now() + GATHER).max(self.last + SPACING.max(self.cost * LOAD))
    }

    fn publish(&mut self, state: &KernelState) {
        let begin = Instant::now();
        let old = Arc::clone(&self.publisher.borrow());
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.narrator.tell(&old, state, &watched);
        self.publisher.send_replace(Arc::new(state.clone()));
        self.last = Instant::now();
        self.cost = self.last - begin;
    }
}

/// Follows for ever; a socket that fails is opened again.
async fn run(mut follower: Follower, mut output: Output) {
    loop {
        let Err(error) = follower.follow(&mut output).await;
        tracing::warn!(%error, "lost touch with the kernel's network state; opening the netlink socket again");
        loop {
            sleep(RETRY).await;
            match Follower::open().await {
                Ok(fresh) => {
                    // The copy from before goes on, so that the log tells the difference.
                    let known = std::mem::replace(&mut follower, fresh).state;
                    if known != follower.state {
                        output.publish(&follower.state);
                    }
                    tracing::info!("following the kernel's network state again");
                    break;
                }
                Err(error) => tracing::warn!(%error, "cannot follow the kernel's network state yet"),
            }
        }
    }
}

/// The sockets and the state that they keep.
struct Follower {
    events: Events,
    requests: Requests,
    state: KernelState,
    doubtful: Parts,
    redump_at: Option<Instant>,
}

impl Follower {
    async fn open() -> Result<Self, KernelError> {
        let events = Events::open()?;
        let requests = Requests::open()?;
        let mut follower = Self { events, requests, state: KernelState::default(), doubtful: Parts::ALL, redump_at: None };
        follower.dump_doubtful().await?;
        // What changed during the dump may have raised new doubts; the task goes on with them.
        Ok(follower)
    }

    async fn follow(&mut self, output: &mut Output) -> Result<std::convert::Infallible, KernelError> {
        let mut publish_at = None;
        let mut reconcile = interval_at(Instant::now() + RECONCILE, RECONCILE);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if *output.publisher.borrow().as_ref() != self.state {
            publish_at = Some(output.due());
        }
        loop {
            // A change is published before a dump that it calls for: that a link is down cannot wait for a long route table.
            let changed = tokio::select! {
                event = self.events.next() => self.take(event?),
                () = wait_until(publish_at) => {
                    output.publish(&self.state);
                    publish_at = None;
                    false
                }
                () = wait_until(self.redump_at), if publish_at.is_none() => self.dump_doubtful().await?,
                _ = reconcile.tick() => {
                    self.doubt(Parts::ALL, Instant::now());
                    false
                }
            };
            if changed && publish_at.is_none() {
                publish_at = Some(output.due());
            }
        }
    }

    /// Applies an event and those behind it in the same datagram. Returns whether anything that matters changed.
    fn take(&mut self, event: Event) -> bool {
        let mut changed = self.apply(event);
        while let Some(event) = self.events.ready() {
            changed |= self.apply(event);
        }
        changed
    }

    fn apply(&mut self, event: Event) -> bool {
        let effect = match event {
            Event::Message(message, flags) => match decode::change(&message, flags) {
                Some(change) => self.state.apply(change),
                None => Effect::default(),
            },
            Event::NexthopDeleted => self.state.apply(Change::RoutesDoubtful),
            Event::Lost => {
                tracing::warn!("the kernel sent more notifications than could be read; reading its network state anew");
                self.doubt(Parts::ALL, Instant::now() + RETRY);
                Effect::default()
            }
        };
        self.doubt(effect.doubtful, Instant::now());
        effect.changed
    }

    fn doubt(&mut self, parts: Parts, from: Instant) {
        if !parts.is_empty() {
            self.doubtful |= parts;
            self.redump_at = Some(self.redump_at.map_or(from, |at| at.min(from)));
        }
    }

    /// Dumps the doubtful parts while it goes on listening, adopts them and then applies what was heard meanwhile. Returns whether
    /// anything that matters changed.
    async fn dump_doubtful(&mut self) -> Result<bool, KernelError> {
        let parts = std::mem::take(&mut self.doubtful);
        self.redump_at = None;
        let mut heard = Vec::new();
        let fresh = {
            let dump = dump(&self.requests, parts);
            tokio::pin!(dump);
            loop {
                tokio::select! {
                    fresh = &mut dump => break fresh?,
                    event = self.events.next() => heard.push(event?),
                }
            }
        };
        let mut changed = self.state.adopt(parts, fresh);
        for event in heard {
            changed |= self.apply(event);
        }
        Ok(changed)
    }
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The given parts of the kernel's state, freshly read.
async fn dump(requests: &Requests, parts: Parts) -> Result<KernelState, KernelError> {
    let mut state = KernelState::default();
    for part in [Parts::LINKS, Parts::ADDRESSES, Parts::ROUTES, Parts::NEIGHBOURS, Parts::RULES] {
        if parts.contains(part) {
            dump_part(requests, part, &mut state).await?;
        }
    }
    Ok(state)
}

async fn dump_part(requests: &Requests, part: Parts, into: &mut KernelState) -> Result<(), KernelError> {
    for _ in 0..DUMP_ATTEMPTS {
        let mut state = KernelState::default();
        let (what, request) = question(part);
        let consistency = requests
            .dump(what, request, |message| {
                if let Some(change) = decode::change(&message, 0) {
                    state.apply(in_dump_order(change));
                }
            })
            .await?;
        into.adopt(part, state);
        if consistency == Dump::Consistent {
            break;
        }
    }
    Ok(())
}

/// A dump lists the routes of a prefix in the kernel's order, so that each goes behind those before.
fn in_dump_order(change: Change) -> Change {
    match change {
        Change::Route(key, entry, _) => Change::Route(key, entry, Placement::Last),
        other => other,
    }
}

fn question(part: Parts) -> (&'static str, RouteNetlinkMessage) {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet;
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    match part {
        Parts::LINKS => ("list the links", RouteNetlinkMessage::GetLink(LinkMessage::default())),
        Parts::ADDRESSES => ("list the addresses", RouteNetlinkMessage::GetAddress(address)),
        Parts::ROUTES => ("list the routes", RouteNetlinkMessage::GetRoute(route)),
        Parts::NEIGHBOURS => ("list the neighbours", RouteNetlinkMessage::GetNeighbour(neighbour)),
        _ => ("list the routing rules", RouteNetlinkMessage::GetRule(rule)),
    }
}
