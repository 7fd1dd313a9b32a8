//! Compiles the generator's XDP programs and writes their skeleton.

use std::path::PathBuf;
use std::{env, error::Error};

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/generate.bpf.c";

fn main() -> Result<(), Box<dyn Error>> {
    let skeleton = PathBuf::from(env::var("OUT_DIR")?).join("generate.skel.rs");
    // Debian keeps asm/types.h in a directory per architecture, where clang for the bpf target does not look.
    let include = format!("-I/usr/include/{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH")?);
    SkeletonBuilder::new().source(SOURCE).clang_args(["-Wall", "-Werror", "-O2", &include]).build_and_generate(&skeleton)?;
    println!("cargo::rerun-if-changed={SOURCE}");
    Ok(())
}
