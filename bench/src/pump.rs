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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use libbpf_rs::ProgramInput;

    use super::*;
    use crate::address::Mac;
    use crate::stamp::Stamp;

    const XDP_DROP: u32 = 1;
    const XDP_PASS: u32 = 2;
    const XDP_REDIRECT: u32 = 4;
    const LOOPBACK: u32 = 1;

    #[test]
    fn it_writes_what_the_template_says_as_often_as_it_is_allowed() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED (needs root): it writes what the template says as often as it is allowed");
            return;
        }
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let stream = Stream { size: 100, ..Stream::new(mac, Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(198, 51, 100, 2)) };
        let template = Template::new(&stream, mac).unwrap();
        let mut object = MaybeUninit::uninit();
        let program = load(&mut object, &template, LOOPBACK).unwrap();
        let set =
            |map: &libbpf_rs::MapMut<'_>, key: u32, value: &[u8]| map.update(&key.to_ne_bytes(), value, MapFlags::ANY).unwrap();
        set(&program.maps.targets, ROUND, &LOOPBACK.to_ne_bytes());
        let run = |frame: &[u8]| {
            let mut out = [0; 128];
            let input = ProgramInput { data_in: Some(frame), data_out: Some(&mut out), ..ProgramInput::default() };
            let output = program.progs.pump.test_run(input).unwrap();
            (output.return_value, output.data.unwrap().to_vec())
        };
        let dirty = [0xa5; 100];
        assert_eq!(run(&dirty), (XDP_REDIRECT, dirty.to_vec()), "nothing is allowed: the frame goes round as it is");
        set(&program.maps.allowed, 0, &2_u64.to_ne_bytes());
        for index in 0..2 {
            let mut blank = dirty;
            blank[42..].copy_from_slice(&template.blank()[42..]);
            let (action, frame) = run(&blank);
            let sent = Stamp::from_bytes(&frame[42..]).unwrap().sent;
            assert_eq!((action, frame), (XDP_REDIRECT, template.frame(index, sent)));
        }
        assert_eq!(run(&dirty), (XDP_REDIRECT, dirty.to_vec()));
        assert_eq!(sent_so_far(&program).unwrap(), 2);
        assert_eq!(run(&[0; 99]).0, XDP_PASS, "a frame of another length is not the loop's");
        set(&program.maps.allowed, 0, &EMPTY.to_ne_bytes());
        assert_eq!(run(&dirty).0, XDP_DROP);
    }
}
