//! Portcullis: a NAT gateway for a dedicated Linux box. The one binary: `run` is the gateway, the rest talks to it.
#![deny(unsafe_code)]
#![allow(dead_code, reason = "the gateway that uses the doors is built beside them")]

mod cli;
mod control;
mod doors;
mod metrics;
mod run;

fn main() -> std::process::ExitCode {
    cli::main()
}
