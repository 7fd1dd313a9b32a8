//! The worker's thread: its core, its clock, and when it sleeps.
//!
//! Knows time and descriptors to wait on; no packets. Called by `run`. Invariants: the clock is read once a round; a worker that sleeps
//! is woken by the first frame, also by one that another worker hands over, and in any case before its counters are due.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use portcullis_config::BusyPoll;
use portcullis_nat::time::Tick;
use portcullis_xsk::priority::{self, Priority};

use super::{Punter, QueuePort, Worker};
use crate::doors::commands::Phase;

/// How long an adaptive worker looks for packets before it sleeps. Sleeping under load cost 40 % on veth; 50 us cover the gaps of
/// 20,000 packets a second.
const LOOK_FOR: Duration = Duration::from_micros(50);

/// The longest sleep of a running gateway's workers, in milliseconds: counters are published, sessions swept and packets that wait given up without any packet coming in.
pub(crate) const LONGEST_SLEEP: u16 = 20;

/// Rounds without packets after which a worker that runs its queues itself lets others run. In each round the call would cost more than
/// all the rest of it.
const PATIENT_ROUNDS: u32 = 64;

/// The longest round of a worker that runs: 64 packets take a tenth of a millisecond, a new set of rules some more. What takes longer, the
/// worker did not run in.
const LONGEST_ROUND: Duration = Duration::from_millis(50);

/// How long a worker may stand still without a word in the log.
const NOTEWORTHY: Duration = Duration::from_secs(1);

/// Where and how a worker's thread runs.
pub(crate) struct Rules {
    /// The worker's number.
    pub(crate) number: usize,
    /// The core that it is pinned to, or none for wherever the kernel puts it.
    pub(crate) core: Option<core_affinity::CoreId>,
    /// When it polls.
    pub(crate) busy_poll: BusyPoll,
    /// What wakes it, beside other workers: its sockets.
    pub(crate) wakers: Vec<OwnedFd>,
    /// The longest sleep. **Units:** milliseconds.
    pub(crate) longest_sleep: u16,
}

/// Starts the worker in a thread of its own. Its value is the worker after the control plane has said [`Phase::Stopping`].
///
/// **Errors:** no thread.
pub(crate) fn start<P, K>(worker: Worker<P, K>, rules: Rules) -> std::io::Result<JoinHandle<Worker<P, K>>>
where
    P: QueuePort + Send + 'static,
    P::Frame: Send,
    K: Punter + Send + 'static,
{
    std::thread::Builder::new().name(format!("worker-{}", rules.number)).spawn(move || run(worker, &rules))
}

fn run<P: QueuePort, K: Punter>(mut worker: Worker<P, K>, rules: &Rules) -> Worker<P, K> {
    if let Some(core) = rules.core
        && !core_affinity::set_for_current(core)
    {
        tracing::warn!(worker = rules.number, core = core.id, "cannot pin the worker: it runs where the kernel puts it");
    }
    let started = Instant::now();
    let mut clock = Clock::default();
    let mut last_packet = Duration::ZERO;
    let (mut idle_rounds, mut drives) = (0_u32, false);
    while worker.phase() != Phase::Stopping {
        if worker.drives() != drives {
            drives = !drives;
            claim_core(rules.number, drives);
        }
        let received = worker.round(clock.tick());
        let after = started.elapsed();
        worker.note(received, after.saturating_sub(clock.now).as_nanos() as u64);
        if received > 0 {
            (last_packet, idle_rounds) = (after, 0);
        } else if worker.has_work() || !is_idle(rules.busy_poll, after.saturating_sub(last_packet)) {
            idle_rounds = idle_rounds.wrapping_add(1);
            if !drives || idle_rounds.is_multiple_of(PATIENT_ROUNDS) {
                std::thread::yield_now();
                clock.advance(started.elapsed(), LONGEST_ROUND);
                continue;
            }
        } else {
            sleep(&worker, rules);
            clock.advance(started.elapsed(), LONGEST_ROUND + Duration::from_millis(rules.longest_sleep.into()));
            continue;
        }
        clock.advance(after, LONGEST_ROUND);
    }
    worker.publish(clock.tick());
    worker
}

/// A worker that runs its queues has its core before others: in a millisecond that another thread runs, a device's ring may run over. While
/// kernel threads run them, these have to get as much as the worker.
fn claim_core(worker: usize, drives: bool) {
    if let Err(error) = priority::set(if drives { Priority::Most } else { Priority::Usual }) {
        tracing::info!(worker, %error, "the worker shares its core with whatever else runs there (CAP_SYS_NICE, or LimitNICE=-10)");
    }
}

/// The worker's clock, and the NAT's, which stands still while the worker does: packets that came meanwhile wait in the rings, and their
/// sessions must not be found forgotten when they are looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    /// Since the start.
    now: Duration,
    /// Of it, the time in which the worker did not run.
    stood_still: Duration,
}

impl Clock {
    /// It is `now`. From the reading before, a worker that runs takes `usual` at most.
    fn advance(&mut self, now: Duration, usual: Duration) {
        let late = now.saturating_sub(self.now).saturating_sub(usual);
        if late >= NOTEWORTHY {
            tracing::warn!("the worker did not run for {late:.1?}: something else has its core");
        }
        self.stood_still += late;
        self.now = now;
    }

    /// The time as the NAT is told it; wraps with it.
    fn tick(self) -> Tick {
        Tick(self.now.saturating_sub(self.stood_still).as_millis() as u32)
    }
}

fn is_idle(busy_poll: BusyPoll, since_last_packet: Duration) -> bool {
    match busy_poll {
        BusyPoll::Always => false,
        BusyPoll::Adaptive => since_last_packet > LOOK_FOR,
        BusyPoll::Never => true,
    }
}

/// Sleeps until a frame comes, from a queue or from another worker. An interrupted or failed wait is only a shorter one: the round that
/// follows finds out what there is.
fn sleep<P: QueuePort, K: Punter>(worker: &Worker<P, K>, rules: &Rules) {
    if worker.lie_down() {
        let sockets = rules.wakers.iter().map(AsFd::as_fd);
        let mut wanted: Vec<_> =
            sockets.chain([worker.waker()]).map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)).collect();
        let _ = poll(&mut wanted, PollTimeout::from(rules.longest_sleep));
    }
    worker.get_up();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nats_clock_stands_still_while_the_worker_does() {
        let (mut clock, usual) = (Clock::default(), LONGEST_ROUND);
        let at = Duration::from_millis;
        for now in [1, 2, 20] {
            clock.advance(at(now), usual);
            assert_eq!(clock.tick(), Tick(now as u32));
        }
        clock.advance(at(3020), usual);
        assert_eq!(clock.tick(), Tick(20 + usual.as_millis() as u32), "held up for three seconds");
        clock.advance(at(3030), usual);
        assert_eq!(clock.tick(), Tick(30 + usual.as_millis() as u32));
        clock.advance(at(4030), usual + at(1000));
        assert_eq!(clock.tick(), Tick(1030 + usual.as_millis() as u32), "it slept");
    }
}
