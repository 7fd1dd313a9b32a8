//! Portcullis: a NAT gateway for a dedicated Linux box. The one binary: `run` is the gateway, the rest talks to it.
#![deny(unsafe_code)]

mod cli;
mod control;
mod doctor;
mod doors;
mod kernel;
mod metrics;
mod run;
mod worker;

fn main() -> std::process::ExitCode {
    cli::main()
}
