//! Frames spread over the queues of a wire at random, one by one: the worst placement that a device can come up with.
//!
//! Knows one BPF program of five lines, compiled by clang when it is first needed, and `tc`. Called for wires with several
//! queues. veth receives on the queue that its peer transmitted on, so the peer is where the queue is chosen.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::namespace::Namespace;
use super::program::Program;

/// The recorded queue plus one, as `skb_tx_hash` in net/core/dev.c wants it of a forwarded packet; packets of the host's own sockets stay
/// on the queue that their socket got first.
const SOURCE: &str = "
#include <linux/bpf.h>
static unsigned int (*random)(void) = (void *)BPF_FUNC_get_prandom_u32;
__attribute__((section(\"tc\"), used)) int spray(struct __sk_buff *skb)
{
	skb->queue_mapping = 1 + random() % QUEUES;
	return -1;
}
__attribute__((section(\"license\"), used)) char terms[] = \"Dual MIT/GPL\";
";

/// Makes everything that `device` of `host` transmits choose among its `queues` at random.
pub fn spray(host: &Namespace, device: &str, queues: u32) -> Result<()> {
    let object = compile(queues)?;
    let path = object.display().to_string();
    host.run(&format!("tc qdisc add dev {device} clsact"))?;
    let added = host.run(&format!("tc filter add dev {device} egress bpf direct-action object-file {path} section tc"));
    let removed = fs::remove_file(&object);
    added.context("the program that chooses queues")?;
    removed.context("its object file")
}

fn compile(queues: u32) -> Result<PathBuf> {
    static COMPILED: AtomicU32 = AtomicU32::new(0);
    // Threads of one process may compile at the same time.
    let name = format!("portcullis-spray-{}-{}", std::process::id(), COMPILED.fetch_add(1, Ordering::Relaxed));
    let (source, object) = (std::env::temp_dir().join(format!("{name}.c")), std::env::temp_dir().join(format!("{name}.o")));
    fs::write(&source, SOURCE.replace("QUEUES", &queues.to_string())).context("the program's source")?;
    // Where the C library's headers are on Debian; the kernel's include them.
    let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let (from, to) = (source.display().to_string(), object.display().to_string());
    let compiled = Program::new("clang", ["-O2", "-target", "bpf", &include, "-c", &from, "-o", &to]).run()?.success();
    fs::remove_file(&source).context("the program's source")?;
    compiled.context("clang")?;
    Ok(object)
}
