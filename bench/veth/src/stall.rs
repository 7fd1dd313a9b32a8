//! Pauses: how long the hypervisor or another program had the gateway's core, and how many packets were lost for that, whoever the gateway is.
//!
//! Knows a core, what was sent, and the gateway's process; nothing else of it. Called around each trial. A clock of the core's own runs a
//! program (`stall.bpf.c`) every 125 us, in hard interrupts: a tick that is late is the hypervisor's; one in another program is that one's, and one
//! in a work queue's thread or in a softirq that is not the network's is that work's, where the gateway is a program; one in a long wait for a
//! spin lock is the hypervisor's, who stopped the core that holds it; and so is one that finds the core where it was two
//! ticks ago, at the same instruction or in the same run of a queue. Invariant: counts only
//! grow; never more packets than were sent to the core while it was away, in pauses by which the ring may have been full. Blind spot: a kernel
//! that keeps interrupts off for 300 us looks the same. Source: perf_event_open(2), `PERF_COUNT_SW_CPU_CLOCK`. Tests: below.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys::{PERF_COUNT_SW_CPU_CLOCK, PERF_TYPE_SOFTWARE, perf_event_attr};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, OpenObject};
use portcullis_bench::generate::Generator;
use serde::{Deserialize, Serialize};

use skeleton::{StallSkel, StallSkelBuilder};

/// The compiled program.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, clippy::restriction)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/stall.skel.rs"));
}

/// How often the core's clock ticks. **Units:** nanoseconds. 8000 a second cost about one per cent, of every gateway alike.
const TICK: u64 = 125_000;
/// From when on a tick is late. **Units:** nanoseconds. At 850,000 packets a second a veth's ring is full by then.
const LATE: u64 = 300_000;
/// From when on a spin lock's holder has been stopped. **Units:** nanoseconds. Chosen: the kernel holds one for a microsecond or two.
const HELD_LONG: u64 = 50_000;
/// From when on a core that runs has got no further for too long. **Units:** nanoseconds. Chosen: two ticks; taking 64 packets, the most at once, takes
/// 130,000 where the kernel translates them, and 20,000 to 70,000 on their way to a socket.
const STOOD_LONG: u64 = 240_000;
/// The descriptor is not for programs that are started. **Source:** Linux `include/uapi/linux/perf_event.h`.
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// From when on a tick is late on a core that had halted, which wakes late on a virtual machine: that is the price of halting, and a longer one
/// a pause. **Units:** nanoseconds. Chosen: pauses by a limit of processor time take 5 ms and more.
const LATE_WHEN_IDLE: u64 = 2_000_000;
/// Packets that a veth's ring holds (`VETH_RING_SIZE`, Linux drivers/net/veth.c).
const RING: u64 = 256;

/// Watches a core until it is dropped.
pub struct Watch<'object> {
    program: StallSkel<'object>,
    _links: [Link; 7],
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// How often the core stood still.
    pub count: u64,
    /// For how long altogether. **Units:** seconds.
    pub seconds: f64,
    /// For how long at most, since watching began. **Units:** seconds.
    pub longest: f64,
    /// Packets that were sent to it meanwhile, in the pauses, short ones too, by which its device's ring may have been full: so many may have
    /// been lost for that.
    pub packets: u64,
}

impl<'object> Watch<'object> {
    /// Watches `core`, to which `sender` sends.
    ///
    /// **Errors:** without `CAP_PERFMON` and `CAP_BPF`.
    pub fn open(object: &'object mut MaybeUninit<OpenObject>, core: usize, sender: &Generator<'_>) -> Result<Self> {
        let mut open = StallSkelBuilder::default().open(object).context("opening the program that looks for pauses")?;
        let constants = open.maps.rodata_data.as_mut().context("the program that looks for pauses has no constants")?;
        (constants.period, constants.late, constants.late_when_idle, constants.ring) = (TICK, LATE, LATE_WHEN_IDLE, RING);
        (constants.core, constants.held_long, constants.stood_long) = (core as u32, HELD_LONG, STOOD_LONG);
        open.maps.sent.reuse_fd(sender.count()).context("the generator's count")?;
        let program = open.load().context("loading the program that looks for pauses (needs root)")?;
        let clock = clock_of(core).with_context(|| format!("a clock on core {core} (perf_event_open)"))?;
        let tick = program.progs.tick.attach_perf_event(clock.as_raw_fd()).context("attaching to the core's clock")?;
        // The link owns the descriptor from here on.
        std::mem::forget(clock);
        let softirqs = [program.progs.softirq_begins.attach(), program.progs.softirq_ends.attach()];
        let [softirq_begins, softirq_ends] = softirqs.map(|link| link.context("attaching to the core's softirqs"));
        let waits = [program.progs.wait_begins.attach(), program.progs.wait_ends.attach()];
        let [wait_begins, wait_ends] = waits.map(|link| link.context("attaching to the core's waits for locks (needs Linux 5.19)"));
        let idle = program.progs.idle_begins_or_ends.attach().context("attaching to the core's halts")?;
        let queues = program.progs.queue_ran.attach().context("attaching to what runs the core's queues")?;
        let links = [tick, softirq_begins?, softirq_ends?, wait_begins?, wait_ends?, idle, queues];
        Ok(Self { program, _links: links })
    }

    /// Whose core it is: a process, or none where the kernel itself is the gateway.
    pub fn belongs_to(&self, process: Option<u32>) -> Result<()> {
        let (key, value) = (0_u32.to_ne_bytes(), process.unwrap_or(0).to_ne_bytes());
        self.program.maps.gateway.update(&key, &value, MapFlags::ANY).context("saying whose core it is")
    }

    /// What was seen until now.
    pub fn stalls(&self) -> Result<Stalls> {
        let bytes = self.program.maps.bss.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).context("reading the pauses")?;
        let bytes = bytes.context("no pauses to read")?;
        let word = |at: usize| bytes[at * 8..].first_chunk().map_or(0, |&chunk| u64::from_ne_bytes(chunk));
        let seconds = |nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64();
        Ok(Stalls { count: word(0), seconds: seconds(word(1)), longest: seconds(word(2)), packets: word(3) })
    }
}

impl Stalls {
    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            count: self.count - before.count,
            seconds: self.seconds - before.seconds,
            longest: self.longest,
            packets: self.packets - before.packets,
        }
    }
}

/// A clock that ticks on one core, whatever runs there.
fn clock_of(core: usize) -> std::io::Result<OwnedFd> {
    let mut attributes = perf_event_attr { type_: PERF_TYPE_SOFTWARE, ..perf_event_attr::default() };
    attributes.size = size_of::<perf_event_attr>() as u32;
    attributes.config = PERF_COUNT_SW_CPU_CLOCK.into();
    attributes.__bindgen_anon_1.sample_period = TICK;
    let (any_process, no_group) = (-1, -1);
    // SAFETY: the kernel only reads the attributes, which are as long as they say; it returns a descriptor that is nobody else's.
    unsafe {
        let descriptor =
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, any_process, core, no_group, PERF_FLAG_FD_CLOEXEC);
        if descriptor < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(descriptor as i32)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_counted_since_a_moment() {
        let before = Stalls { count: 2, seconds: 0.5, longest: 0.3, packets: 10 };
        let after = Stalls { count: 3, seconds: 0.75, longest: 0.3, packets: 15 };
        assert_eq!(after.since(before), Stalls { count: 1, seconds: 0.25, longest: 0.3, packets: 5 });
    }
}
