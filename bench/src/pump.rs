//! The pump: a generator without a system call for each batch, for runs that share their core with the sink.
//!
//! A handful of frames goes round in a veth pair of its own. Whoever runs the receive queue of its second end (by busy polling) makes the
//! program there write the next packets into them; a copy of each goes out of an interface, the frame goes round again. `BPF_PROG_RUN`
//! would make and tear down a page pool for each call: the kernel is behind with that from some thousand calls a second on.
//!
//! ```text
//!   Sender ─> LOOP ════ PUMP: generate.bpf.c `pump` ── copy ──> interface
//!              ^                        │
//!              └────── frame ───────────┘
//! ```
//! Knows the loop's two devices and a stream; not who polls. Invariant: it sends no more than it was allowed. Tests: below.
//! Sources: Linux `kernel/bpf/devmap.c` (`BPF_F_BROADCAST`), `net/core/xdp.c` (`xdpf_clone`).

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use libbpf_rs::{Link, MapCore, MapFlags, OpenObject};

use crate::generate::{load, sent_so_far};
use crate::interface;
use crate::raw::Sender;
use crate::skeleton::GenerateSkel;
use crate::stream::{Stream, Template};

/// Frames in the loop: what one poll sends at most. Chosen: a quarter of a veth ring (256), as the kernel's own batch.
pub const FRAMES: u64 = 64;

/// The loop's devices, both in the namespace of the calling thread, up, with NAPI (GRO on, TSO off).
#[derive(Clone, Copy, Debug)]
pub struct Loop<'name> {
    /// Where frames are put in.
    pub start: &'name str,
    /// Its peer, whose queue is polled.
    pub end: &'name str,
}

/// A pump that is filled. Its loop has to be polled, or nothing moves.
pub struct Pump<'object> {
    program: GenerateSkel<'object>,
    link: Link,
}

/// Indices of the program's targets.
const OUT: u32 = 0;
const ROUND: u32 = 1;
/// What empties the loop.
const EMPTY: u64 = u64::MAX;

impl<'object> Pump<'object> {
    /// Fills a loop with frames for `stream`, to send by `interface` of the calling thread's namespace. It is allowed nothing yet.
    ///
    /// **Errors:** when the stream contradicts itself; without `CAP_NET_ADMIN`, `CAP_BPF` and `CAP_NET_RAW`; when a device is not there or
    /// has another XDP program.
    pub fn open(object: &'object mut MaybeUninit<OpenObject>, through: Loop<'_>, interface: &str, stream: &Stream) -> Result<Self> {
        let out = interface::index(interface)?;
        let template = Template::new(stream, interface::mac(interface)?)?;
        let program = load(object, &template, out)?;
        for (target, index) in [(OUT, out), (ROUND, interface::index(through.start)?)] {
            let targets = &program.maps.targets;
            targets.update(&target.to_ne_bytes(), &index.to_ne_bytes(), MapFlags::ANY).context("the pump's targets")?;
        }
        let end = interface::index(through.end)?;
        let link = program.progs.pump.attach_xdp(end.cast_signed());
        let link = link.with_context(|| format!("interface {}: attaching the pump (has it another program?)", through.end))?;
        let sender = Sender::open(through.start)?;
        let mut frame = template.blank().to_vec();
        frame[..6].copy_from_slice(&interface::mac(through.end)?.0);
        for _ in 0..FRAMES {
            sender.send(&frame)?;
        }
        Ok(Self { program, link })
    }

    /// Lets it have sent `total` packets since it was opened, as soon as its loop is polled. **Cost:** a system call.
    pub fn allow(&self, total: u64) -> Result<()> {
        self.program.maps.allowed.update(&0_u32.to_ne_bytes(), &total.to_ne_bytes(), MapFlags::ANY).context("the pump's allowance")
    }

    /// How many packets were sent since it was opened.
    pub fn sent(&self) -> Result<u64> {
        sent_so_far(&self.program)
    }

    /// Makes the next polls throw its frames away, so that the loop can be filled again.
    pub fn empty(&self) -> Result<()> {
        self.allow(EMPTY)
    }
}

impl Drop for Pump<'_> {
    fn drop(&mut self) {
        // Closing it is not enough: a child that was forked at this moment holds it open until it has started its program.
        let _gone_already = self.link.detach();
    }
}
