//! Compiles the benchmark's kernel programs and writes their skeletons.

use std::path::PathBuf;
use std::{env, error::Error};

use libbpf_cargo::SkeletonBuilder;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Debian keeps asm/types.h in a directory per architecture, where clang for the bpf target does not look.
    let include = format!("-I/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    for name in ["sink", "forward", "stall"] {
        let source = format!("src/{name}.bpf.c");
        let skeleton = out.join(format!("{name}.skel.rs"));
        SkeletonBuilder::new().source(&source).clang_args(["-Wall", "-Werror", "-O2", &include]).build_and_generate(&skeleton)?;
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rerun-if-changed=../src/stamp.bpf.h");
    Ok(())
}
