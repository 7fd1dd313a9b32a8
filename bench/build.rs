//! Compiles the XDP programs and writes their skeletons.

use std::path::PathBuf;
use std::{env, error::Error};

use libbpf_cargo::SkeletonBuilder;

/// Each with the name of its skeleton.
const SOURCES: [(&str, &str); 2] = [("src/generate.bpf.c", "generate.skel.rs"), ("src/pktgen/count.bpf.c", "count.skel.rs")];

fn main() -> Result<(), Box<dyn Error>> {
    let output = PathBuf::from(env::var("OUT_DIR")?);
    // Debian keeps asm/types.h in a directory per architecture, where clang for the bpf target does not look.
    let include = format!("-I/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    for (source, skeleton) in SOURCES {
        let mut builder = SkeletonBuilder::new();
        builder.source(source).clang_args(["-Wall", "-Werror", "-O2", &include]).build_and_generate(output.join(skeleton))?;
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-changed=src/stamp.bpf.h");
    Ok(())
}
