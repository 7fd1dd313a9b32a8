//! `run`: the gateway itself.

use std::path::Path;

use crate::cli::exit::Failure;

/// Is the gateway with the configuration at `config` until it is told to stop. `socket` overrides the configuration's.
pub(crate) fn run(config: &Path, socket: Option<&Path>) -> Result<(), Failure> {
    let _ = (crate::cli::load_config(config)?, socket);
    Err(Failure::Other(anyhow::anyhow!("not built yet")))
}
