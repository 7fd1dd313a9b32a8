//! Compiles `bpf/steer.bpf.c` and generates its skeleton. Needs clang; libbpf's own headers come with libbpf-cargo.

use std::{env, path::PathBuf, process::Command};

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "../../bpf/steer.bpf.c";
const HEADER: &str = "../../bpf/steer.h";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("steer.skel.rs");
    let mut arguments = vec!["-Wall".to_string(), "-Werror".to_string()];
    arguments.extend(multiarch_include());
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args(arguments)
        .build_and_generate(&out)
        .expect("bpf/steer.bpf.c has to compile (clang and linux-libc-dev installed?)");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed={HEADER}");
}

/// Debian keeps `asm/types.h` in a directory named after the machine, which clang does not search when it compiles for bpf.
fn multiarch_include() -> Option<String> {
    let output = Command::new("clang").arg("-print-multiarch").output().ok()?;
    let name = String::from_utf8(output.stdout).ok()?.trim().to_string();
    let name = if name.is_empty() { format!("{}-linux-gnu", env::var("CARGO_CFG_TARGET_ARCH").ok()?) } else { name };
    let directory = format!("/usr/include/{name}");
    PathBuf::from(&directory).is_dir().then(|| format!("-I{directory}"))
}
