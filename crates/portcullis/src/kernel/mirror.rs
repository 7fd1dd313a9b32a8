//! The mirror: a task that dumps the kernel's state, follows its notifications and publishes snapshots.
//!
//! Subscribes before it dumps and applies what happened during a dump after it, so that nothing is missed; dumps again what the
//! kernel changes without a word, all after an overrun, and everything once in a while. Called by the daemon's control plane.
//! Invariant: a snapshot is published when something that matters changed, at most every [`SPACING`], and else not.
//! Tests: `tests` (root) for the task, `state` and `narrate` for what it is made of.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
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
use super::socket::{Dump, Event, Events, RECEIVE_BUFFER, Requests};
use super::state::{Change, Effect, KernelState, Parts, Placement};

/// How long a change waits for others, so that a burst makes one snapshot. Chosen: the kernel sends the notifications of one command
/// within a millisecond.
const GATHER: Duration = Duration::from_millis(5);

/// The least time between two snapshots.
const SPACING: Duration = Duration::from_millis(50);

/// What changed routes add to it, for each route: ten times what copying one and making the NAT's table of it takes (measured with
/// 500,000 routes: 0.1 s), so that a full table in motion costs a tenth of the control plane's time.
const SPACING_PER_ROUTE: Duration = Duration::from_micros(2);

/// How often everything is dumped, in case the kernel changed something in silence that the mirror does not know of.
const RECONCILE: Duration = Duration::from_mins(5);

/// The pause before a failed socket is opened again, and the least time between two dumps after overruns.
const RETRY: Duration = Duration::from_secs(1);

/// When what was dumped is dumped again, in two cases. The kernel announces that a link or an address goes before it flushes the
/// routes, and a dump does not wait for that. And a dump amid route changes can be wrong about routes of the same prefix and metric;
/// while that goes on the time doubles, up to [`RECONCILE`].
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// How often a dump that was interrupted by changes is repeated at once; after that the notifications have to mend it.
const DUMP_ATTEMPTS: usize = 5;

/// The running mirror. Ends when dropped.
pub(crate) struct Mirror {
    snapshots: watch::Receiver<Arc<KernelState>>,
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
        Self::start_with_buffer(watched, RECEIVE_BUFFER).await
    }

    /// [`Mirror::start`] with another receive buffer for notifications, in bytes.
    pub(super) async fn start_with_buffer(watched: Vec<String>, buffer: usize) -> Result<Self, KernelError> {
        let follower = Follower::open(buffer).await?;
        let (publisher, snapshots) = watch::channel(Arc::new(follower.state.clone()));
        let output = Output { publisher, narrator: Narrator::default(), watched, last: Instant::now() };
        output.greet();
        let task = tokio::spawn(run(follower, output));
        Ok(Self { snapshots, task })
    }

    /// The latest snapshot.
    pub(crate) fn state(&self) -> Arc<KernelState> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// A receiver of every snapshot from now on; it holds the latest one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<KernelState>> {
        self.snapshots.clone()
    }
}

/// Where snapshots go.
struct Output {
    publisher: watch::Sender<Arc<KernelState>>,
    narrator: Narrator,
    watched: Vec<String>,
    last: Instant,
}

impl Output {
    fn greet(&self) {
        for rule in self.publisher.borrow().rules.iter() {
            super::narrate::warn_of_rule(rule);
        }
    }

    /// When a change of `state` that happened now is published: routes alone can wait a little longer.
    fn due(&self, state: &KernelState) -> Instant {
        let published = self.publisher.borrow();
        let only_routes = Arc::ptr_eq(&published.links, &state.links)
            && Arc::ptr_eq(&published.addresses, &state.addresses)
            && Arc::ptr_eq(&published.neighbours, &state.neighbours);
        let routes = if only_routes { u32::try_from(state.routes.len()).unwrap_or(u32::MAX) } else { 0 };
        (Instant::now() + GATHER).max(self.last + SPACING + SPACING_PER_ROUTE * routes)
    }

    fn publish(&mut self, state: &KernelState) {
        let old = Arc::clone(&self.publisher.borrow());
        self.narrator.tell(&old, state, &self.watched);
        self.publisher.send_replace(Arc::new(state.clone()));
        self.last = Instant::now();
    }
}

/// Follows for ever; a socket that fails is opened again.
async fn run(mut follower: Follower, mut output: Output) {
    loop {
        let Err(error) = follower.follow(&mut output).await;
        tracing::warn!(%error, "lost touch with the kernel's network state; opening the netlink socket again");
        loop {
            sleep(RETRY).await;
            match Follower::open(follower.buffer).await {
                Ok(fresh) => {
                    tracing::info!("following the kernel's network state again");
                    follower = fresh;
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
    buffer: usize,
    state: KernelState,
    doubtful: Parts,
    redump_at: Option<Instant>,
    second_look: Option<(Instant, Parts)>,
    next_look: Duration,
}

impl Follower {
    async fn open(buffer: usize) -> Result<Self, KernelError> {
        let events = Events::open(buffer)?;
        let requests = Requests::open()?;
        let state = KernelState::default();
        let mut follower = Self {
            events,
            requests,
            buffer,
            state,
            doubtful: Parts::ALL,
            redump_at: None,
            second_look: None,
            next_look: SECOND_LOOK,
        };
        // What is heard during the dump may raise new doubts; the task goes on with them.
        follower.dump_doubtful().await?;
        Ok(follower)
    }

    async fn follow(&mut self, output: &mut Output) -> Result<std::convert::Infallible, KernelError> {
        let mut reconcile = interval_at(Instant::now() + RECONCILE, RECONCILE);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // After a failed socket the fresh state may differ from what was published.
        let mut publish_at = (**output.publisher.borrow() != self.state).then(|| output.due(&self.state));
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
                () = wait_until(self.second_look.map(|(at, _)| at)) => {
                    let parts = self.second_look.take().map_or(Parts::NONE, |(_, parts)| parts);
                    self.doubt(parts, Instant::now());
                    false
                }
                _ = reconcile.tick() => {
                    self.doubt(Parts::ALL, Instant::now());
                    false
                }
            };
            if changed {
                let due = output.due(&self.state);
                publish_at = Some(publish_at.map_or(due, |at: Instant| at.min(due)));
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
        if !effect.doubtful.is_empty() {
            self.look_again(effect.doubtful, Instant::now() + SECOND_LOOK);
            self.doubt(effect.doubtful, Instant::now());
        }
        effect.changed
    }

    fn doubt(&mut self, parts: Parts, from: Instant) {
        if !parts.is_empty() {
            self.doubtful |= parts;
            self.redump_at = Some(self.redump_at.map_or(from, |at| at.min(from)));
        }
    }

    /// Has `parts` dumped at that moment too, together with what is due already.
    fn look_again(&mut self, parts: Parts, at: Instant) {
        let before = self.second_look.map_or(Parts::NONE, |(_, parts)| parts);
        self.second_look = Some((at, before | parts));
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
        // Let the runtime see what has arrived by now.
        tokio::task::yield_now().await;
        while let Some(event) = self.events.next().now_or_never() {
            heard.push(event?);
        }
        let mut changed = self.state.adopt(parts, fresh);
        if parts.contains(Parts::ROUTES) && heard.iter().any(is_about_routes) {
            let at = Instant::now() + self.next_look;
            self.look_again(Parts::ROUTES, self.second_look.map_or(at, |(before, _)| before.min(at)));
            self.next_look = (self.next_look * 2).min(RECONCILE);
        } else {
            self.next_look = SECOND_LOOK;
        }
        for event in heard {
            changed |= self.apply(event);
        }
        Ok(changed)
    }
}

fn is_about_routes(event: &Event) -> bool {
    matches!(event, Event::Message(RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_), _))
}

/// Waits until a moment, or for ever.
pub(super) async fn wait_until(moment: Option<Instant>) {
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
