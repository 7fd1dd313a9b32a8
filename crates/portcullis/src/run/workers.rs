//! The workers as `run` has them: made at start, with their doors, and joined at the end.
//!
//! Knows threads and doors. Called by `gateway`. Invariants: the packet memory hears of the end before any frame goes; all workers have
//! ended before the frames between them are taken.

use std::thread::JoinHandle;

use anyhow::Context as _;
use core_affinity::CoreId;
use portcullis_config::Config;
use portcullis_nat::policy::DeviceId;
use portcullis_nat::{Capacity, Nat};
use portcullis_steering::{Owners, WorkerId};
use portcullis_xsk::frame::XskFrame;
use portcullis_xsk::socket::{self, Socket};
use portcullis_xsk::steer::Steer;
use portcullis_xsk::umem::SocketRings;

use super::cores;
use super::devices::Devices;
use super::division::{self, Shares};
use super::parts::{self, Memory, SocketWorker};
use super::punter::KernelPunter;
use super::raised::{self, Raised};
use crate::cli::exit::Failure;
use crate::doors::commands::Phase;
use crate::doors::counters::{QueueName, Shape};
use crate::doors::events::Event;
use crate::doors::{ControlDoors, WorkerDoors, handoff};
use crate::worker::thread::{self, Rules};
use crate::worker::{Parts, Queue, Worker};

/// Which queues are whose.
pub(super) struct Queues {
    /// By worker.
    all: Vec<Vec<(DeviceId, socket::Queue)>>,
}

impl Queues {
    /// Divides the devices' queues among `workers`.
    pub(super) fn divide(devices: &Devices, workers: usize) -> Self {
        let mut all = vec![Vec::new(); workers];
        for (device, queue) in devices.queues() {
            all[division::worker_of(queue.queue, workers)].push((device, queue));
        }
        Self { all }
    }

    /// What each worker's counters are about.
    pub(super) fn shapes(&self, externals: u16) -> Vec<Shape> {
        let name = |(_, queue): &(DeviceId, socket::Queue)| QueueName { interface: queue.device.clone(), queue: queue.queue };
        self.all.iter().map(|queues| Shape { queues: queues.iter().map(name).collect(), externals }).collect()
    }

    fn of(&self, socket: &Socket) -> usize {
        division::worker_of(socket.queue().queue, self.all.len())
    }
}

/// The workers, and where and how each is to run. They do not run yet, but their fill rings are full. Where start-up ends here, the memory
/// hears of it before the frames go: it is dropped first.
pub(super) struct Made {
    pub(super) memory: Memory,
    workers: Vec<(SocketWorker, Rules)>,
    /// Those that no worker has yet.
    frames: Vec<XskFrame>,
}

/// What all workers are made of.
pub(super) struct Material<'m> {
    pub(super) rules: &'m Config,
    pub(super) devices: &'m Devices,
    pub(super) steer: &'m Steer,
    pub(super) queues: &'m Queues,
    pub(super) owners: Owners,
    pub(super) sockets: Vec<Socket>,
    pub(super) frames: Vec<XskFrame>,
    pub(super) rings: SocketRings,
    pub(super) doors: Vec<WorkerDoors>,
}

impl Made {
    /// Makes the workers. **Errors:** [`Failure`]; everything handed in is gone then.
    pub(super) fn of(memory: Memory, material: Material<'_>) -> Result<Self, Failure> {
        let Material { rules, devices, steer, queues, owners, sockets, frames, rings, doors } = material;
        let mut made = Self { memory, workers: Vec::new(), frames };
        let count = queues.all.len();
        let sizes: Vec<_> = queues.all.iter().map(Vec::len).collect();
        let Shares { frames: shares, lent } = division::shares(made.frames.len(), &sizes, rings);
        let hatches = handoff::open(count, lent).context("cannot open the descriptors that wake workers")?;
        let names: Vec<_> = devices.used.iter().map(|used| used.device.name.as_str()).collect();
        let cores = cores::of_workers(&rules.worker, &names, count)?;
        let mut ports: Vec<Vec<Socket>> = (0..count).map(|_| Vec::new()).collect();
        for socket in sockets {
            ports[queues.of(&socket)].push(socket);
        }
        let each = nats(rules, &owners, &cores)?.into_iter().zip(ports).zip(shares).zip(doors).zip(hatches).zip(cores).enumerate();
        for (number, (((((nat, ports), share), doors), handoff), core)) in each {
            let wakers = ports.iter().map(|socket| socket.fd().try_clone_to_owned()).collect::<Result<_, _>>();
            let wakers = wakers.context("cannot duplicate a socket's descriptor")?;
            let kernel = steer.punter().map_err(anyhow::Error::from)?;
            let with_devices = queues.all[number].iter().map(|&(device, _)| device).zip(ports);
            let parts = Parts {
                nat,
                queues: with_devices.map(|(device, port)| Queue { device, port }).collect(),
                pool: made.frames.split_off(made.frames.len() - share),
                most: usize::from(rules.worker.burst),
                punter: KernelPunter { kernel, devices: devices.used.iter().map(|used| used.device.ifindex).collect() },
                doors,
                handoff,
            };
            tell(number, core, &queues.all[number]);
            let (busy_poll, longest_sleep) = (rules.worker.busy_poll, thread::LONGEST_SLEEP);
            made.workers.push((Worker::new(parts), Rules { number, core, busy_poll, wakers, longest_sleep }));
        }
        debug_assert!(made.frames.is_empty(), "all frames are shared out");
        Ok(made)
    }

    /// Starts them. **Errors:** no thread; those that run end again.
    pub(super) fn start(self, control: Vec<ControlDoors>) -> Result<Workers, Failure> {
        let Self { memory, workers, .. } = self;
        let wakers = control.iter().map(|doors| Raised::watch(doors.events.waker()));
        let wakers = wakers.collect::<Result<_, _>>().context("cannot wait for the workers' news")?;
        cores::leave_to(&workers.iter().map(|(_, rules)| rules.core).collect::<Vec<_>>());
        let mut running = Workers { control, wakers, threads: Vec::new(), turn: 0, memory };
        for (worker, rules) in workers {
            match thread::start(worker, rules) {
                Ok(thread) => running.threads.push(thread),
                Err(error) => {
                    running.memory.umem.retire();
                    return Err(Failure::Other(anyhow::Error::new(error).context("cannot start a worker's thread")));
                }
            }
        }
        Ok(running)
    }
}

/// What the tables of each of so many workers hold.
pub(super) fn capacity(rules: &Config, workers: usize) -> Capacity {
    let limits = &rules.limits;
    Capacity {
        mappings: division::part(limits.mappings, workers),
        bare_mappings: division::part(rules.bare_mappings(), workers),
        sessions: division::part(limits.sessions, workers),
        externals: rules.slot_count(),
        fragments: division::part(limits.fragments, workers),
        others: division::part(limits.other_translations, workers),
    }
}

/// The NATs: each with its part of the tables, on huge pages where there are any.
fn nats(rules: &Config, owners: &Owners, cores: &[Option<CoreId>]) -> Result<Vec<Nat<'static>>, Failure> {
    let workers = cores.len();
    let capacity = capacity(rules, workers);
    let each = if workers == 1 { String::new() } else { format!(" for each of {workers} workers") };
    let bare = if capacity.bare_mappings > 0 { " (bare ones of UDP among them)" } else { "" };
    tracing::info!(
        "tables: {} MiB{each}, for {} mappings{bare}, {} sessions and {} external addresses",
        capacity.bytes() >> 20,
        capacity.mappings,
        capacity.sessions,
        capacity.externals
    );
    let seeds = parts::seeds()?;
    // The seeds are the same for all: each draws the same server of a forward for a remote.
    let tables = parts::tables(capacity.bytes(), cores)?.into_iter().enumerate();
    tables.map(|(worker, region)| parts::nat(region, capacity, seeds, owners.clone(), WorkerId(worker as u16))).collect()
}

fn tell(number: usize, core: Option<CoreId>, queues: &[(DeviceId, socket::Queue)]) {
    let core = core.map_or_else(|| "any core".to_owned(), |core| format!("core {}", core.id));
    let queues: Vec<_> = queues.iter().map(|(_, queue)| format!("{} {}", queue.device, queue.queue)).collect();
    tracing::info!("worker {number}: on {core}, queues {}", queues.join(", "));
}

/// The running workers. Dropped, they end.
pub(super) struct Workers {
    control: Vec<ControlDoors>,
    /// What is raised when a worker has news, by worker.
    wakers: Vec<Raised>,
    threads: Vec<JoinHandle<SocketWorker>>,
    /// Whose news come next.
    turn: usize,
    memory: Memory,
}

impl Workers {
    /// The control plane's side of their doors.
    pub(super) fn doors(&self) -> &[ControlDoors] {
        &self.control
    }

    /// Waits until a worker has news that something waits for, or its thread is gone.
    pub(super) async fn wait_for_news(&self) {
        raised::until(|context| {
            let mut awake = false;
            for (doors, waker) in self.control.iter().zip(&self.wakers) {
                // Before the door is looked at: what comes after that raises the descriptor anew.
                if waker.was(context) {
                    doors.events.get_up();
                    awake = true;
                }
                awake |= !doors.events.lie_down();
            }
            awake
        })
        .await;
    }

    /// The next piece of news, of the workers in turn.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        for _ in 0..self.control.len() {
            self.turn = (self.turn + 1) % self.control.len();
            if let Some(event) = self.control[self.turn].events.next() {
                return Some(event);
            }
        }
        None
    }

    /// Whether a worker's thread is gone: it panicked.
    pub(super) fn one_has_ended(&self) -> bool {
        self.control.iter().any(|doors| doors.events.has_ended())
    }

    /// Ends all of them. Gives back those that ended in order, with their frames, and whether these are all.
    pub(super) fn end(&mut self) -> (Vec<SocketWorker>, bool) {
        self.memory.umem.retire();
        for doors in &self.control {
            doors.commands.set_phase(Phase::Stopping);
        }
        let count = self.threads.len();
        // Told of all, then waited for each: they end at the same time.
        let ended: Vec<_> = self.threads.drain(..).filter_map(|thread| thread.join().ok()).collect();
        let all = ended.len() == count;
        (ended, all)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Gives the workers' frames back before the memory goes. All workers have ended.
pub(super) fn close(workers: Vec<SocketWorker>) {
    for worker in workers {
        let (queues, mut frames) = worker.into_parts();
        for queue in queues {
            frames.extend(queue.port.close());
        }
    }
}
