//! `check`: whether a configuration is legal. Says the same as `run` would, and asks no gateway.
//!
//! Knows the configuration's front door and nothing of its keys.

use std::io::Write as _;
use std::path::Path;

use portcullis_config::Config;

use super::exit::Failure;

/// The configuration at `path`; what is doubtful about it goes to standard error. **Errors:** [`Failure::Config`] with every fault.
pub(crate) fn load(path: &Path) -> Result<Config, Failure> {
    let (config, warnings) = Config::load(path).map_err(|error| Failure::Config(error.to_string()))?;
    for warning in warnings {
        // A warning that nobody sees does no harm.
        let _ = writeln!(std::io::stderr(), "{warning}");
    }
    Ok(config)
}
