//! How the work is divided: how many workers, which queues are whose, how many frames each has, and how many it may lend.
//!
//! Arithmetic over the configuration and what the devices have; changes nothing. Called at start. Invariants: each worker has at least
//! one queue of every device; each has frames for all its rings, whatever it lends.

use portcullis_config::WorkerRules;
use portcullis_xsk::umem::{SocketRings, UmemOptions};

use crate::cli::exit::Failure;
use crate::worker::{BURST, KEEP};

/// The rings of a queue hold so many frames at most and at least; its rx ring may be longer.
const RINGS: [u32; 4] = [2048, 1024, 512, 256];

/// How many times as long the rx ring of a worker is that never sleeps: it runs the queue itself, and keeps there what comes while it is held up
/// or slow. Chosen: in 53 spells of a shared machine that was slow for up to 130 ms, at 350,000 packets a second, 6,858 waited at most.
const DEEP: [u32; 2] = [4, 2];

/// Frames that one worker has to be able to lend another where rx rings are longer. Chosen: a millisecond of a worker's work.
const LENT_WHERE_DEEP: usize = 512;

/// Frames that one worker lends another at least: two bursts. At most: chosen, some milliseconds of a worker's work.
const LENT: [usize; 2] = [2 * BURST, 2048];

/// How many workers there are, for devices with so many queues each and a process with so many cores.
///
/// **Errors:** [`Failure::Config`] when more are configured than a device has queues.
pub(super) fn workers(rules: &WorkerRules, devices: &[(&str, u32)], cores: usize) -> Result<usize, Failure> {
    let Some(&(name, queues)) = devices.iter().min_by_key(|(_, queues)| queues) else { return Ok(1) };
    let queues = queues.max(1) as usize;
    match rules.count.map(usize::from) {
        Some(wanted) if wanted > queues => Err(Failure::Config(format!(
            "worker: {wanted} workers are configured, but interface {name} has {queues} of the queues that each worker needs one of: \
             give it more with `ethtool -L {name} combined {wanted}`, or lower `worker.count`"
        ))),
        Some(wanted) => Ok(wanted),
        None => {
            if queues < cores {
                tracing::info!(
                    "workers: {queues}, since device {name} has no more queues; up to {cores} with `ethtool -L {name} combined {cores}`"
                );
            }
            Ok(queues.min(cores).max(1))
        }
    }
}

/// The worker that has a queue of a device, of whatever device.
pub(super) const fn worker_of(queue: u32, workers: usize) -> usize {
    queue as usize % workers
}

/// The largest rings that `frames` suffice for; of equal ones, and then, where workers are to run the queues (`driven`), of those that are longer
/// for receiving. **Errors:** [`Failure::Config`] with the frames that the smallest need.
pub(super) fn rings(frames: u32, driven: bool, sockets: u32, workers: usize) -> Result<SocketRings, Failure> {
    let suffice = |rings, lent| least_frames(sockets, rings, workers, lent) <= u64::from(frames);
    let even = RINGS.map(SocketRings::even);
    let Some(even) = even.into_iter().find(|&rings| suffice(rings, LENT[0])) else {
        let least = least_frames(sockets, even[even.len() - 1], workers, LENT[0]).next_power_of_two();
        return Err(Failure::Config(format!(
            "limits.frames is {frames}: {sockets} queues and {workers} workers need at least {least}"
        )));
    };
    if !driven {
        return Ok(even);
    }
    let deep = DEEP.map(|times| SocketRings { rx: even.tx * times, ..even });
    Ok(deep.into_iter().find(|&rings| suffice(rings, LENT_WHERE_DEEP)).unwrap_or(even))
}

fn least_frames(sockets: u32, rings: SocketRings, workers: usize, lent: usize) -> u64 {
    let between = if workers > 1 { workers * (KEEP + (workers - 1) * lent) } else { 0 };
    u64::from(UmemOptions::frames_for(sockets, rings)) + between as u64
}

/// How many frames each worker has, and how many it lends each other at most.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// By worker.
    pub(super) frames: Vec<usize>,
    /// The same for all.
    pub(super) lent: usize,
}

/// Divides `frames` among workers with so many sockets each: what fills their rings, and of the rest an equal part.
pub(super) fn shares(frames: usize, sockets: &[usize], rings: SocketRings) -> Shares {
    let in_rings = |sockets: usize| sockets * rings.frames() as usize;
    let workers = sockets.len().max(1);
    let rest = frames.saturating_sub(sockets.iter().copied().map(in_rings).sum());
    let each = rest / workers;
    let mut shares: Vec<_> = sockets.iter().map(|&sockets| in_rings(sockets) + each).collect();
    if let Some(first) = shares.first_mut() {
        *first += rest % workers;
    }
    let lent = each.saturating_sub(KEEP) / (workers - 1).max(1);
    Shares { frames: shares, lent: lent.clamp(LENT[0], LENT[1]) }
}

/// A worker's part of a limit that is configured for all.
pub(super) fn part(limit: u32, workers: usize) -> u32 {
    limit.div_ceil(workers as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(count: Option<u16>) -> WorkerRules {
        WorkerRules { count, ..WorkerRules::default() }
    }

    #[test]
    fn queues_and_cores_say_how_many_workers_there_are() {
        let devices = [("eth0", 4), ("eth1", 3)];
        let count = |count, cores| workers(&rules(count), &devices, cores);
        assert_eq!((count(None, 2).ok(), count(None, 8).ok(), count(None, 0).ok()), (Some(2), Some(3), Some(1)));
        assert_eq!((count(Some(1), 8).ok(), count(Some(3), 1).ok()), (Some(1), Some(3)));
        let refused = count(Some(4), 8).expect_err("eth1 has three").to_string();
        assert!(refused.contains("interface eth1 has 3") && refused.contains("ethtool -L eth1 combined 4"), "{refused}");
    }

    #[test]
    fn every_worker_has_a_queue_of_every_device() {
        for workers in 1..=8 {
            for queues in workers..=9 {
                let mut seen = vec![0; workers];
                (0..queues as u32).for_each(|queue| seen[worker_of(queue, workers)] += 1);
                assert!(seen.iter().all(|&queues| queues > 0), "{queues} queues of {workers} workers");
            }
        }
    }

    #[test]
    fn the_default_frames_are_enough_for_a_few_workers_and_too_few_are_refused_with_the_number() {
        for (sockets, workers, tx, deep_rx) in [(2, 1, 2048, 8192), (4, 2, 1024, 4096), (8, 4, 512, 1024), (16, 8, 256, 256)] {
            let rings = |driven| rings(32_768, driven, sockets, workers).ok();
            assert_eq!(rings(false), Some(SocketRings::even(tx)), "{sockets} sockets");
            let deep = SocketRings { rx: deep_rx, tx };
            assert_eq!(rings(true), Some(deep), "{sockets} sockets");
            let of_each = vec![sockets as usize / workers; workers];
            assert!(deep_rx == tx || shares(32_768, &of_each, deep).lent >= LENT_WHERE_DEEP, "{sockets} sockets");
        }
        for driven in [false, true] {
            let refused = rings(32_768, driven, 64, 32).expect_err("too few").to_string();
            let least: u32 = refused.rsplit(' ').next().and_then(|word| word.parse().ok()).expect("a number");
            let enough = |frames| rings(frames, driven, 64, 32).is_ok();
            assert!(enough(least) && !enough(least / 2), "{refused}");
        }
    }

    #[test]
    fn all_frames_are_shared_out_and_what_is_lent_leaves_every_ring_its_own() {
        for (frames, rx, tx, sockets) in [
            (32_768, 1024, 1024, vec![2, 2]),
            (32_768, 4096, 1024, vec![2, 2]),
            (40_960, 1024, 1024, vec![3, 2]),
            (32_768, 256, 256, vec![2; 8]),
            (32_768, 8192, 2048, vec![2]),
            (36_865, 2048, 2048, vec![2]),
            (131_072, 512, 512, vec![2; 16]),
        ] {
            let (all, rings): (usize, _) = (sockets.iter().sum(), SocketRings { rx, tx });
            assert!(least_frames(all as u32, rings, sockets.len(), LENT[0]) <= frames as u64, "a legal configuration");
            let shares = shares(frames, &sockets, rings);
            assert_eq!(shares.frames.iter().sum::<usize>(), frames);
            for (&share, &sockets) in shares.frames.iter().zip(&sockets) {
                let lent = shares.lent * (shares.frames.len() - 1);
                assert!(share - lent >= sockets * rings.frames() as usize, "{shares:?}");
            }
        }
    }

    #[test]
    fn the_parts_of_a_limit_are_no_less_than_the_limit() {
        assert_eq!((part(100, 1), part(100, 3), part(64, 64)), (100, 34, 1));
    }
}
