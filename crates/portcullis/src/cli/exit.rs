//! How a command ends: its exit code, and what it tells the one who typed it.
//!
//! Knows the codes of sysexits.h that operators' scripts look at: 0 ok, 1 failure, 2 usage (clap's), 69 not running, 77 no privilege,
//! 78 bad configuration.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use portcullis_api as api;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody answers at the socket.
    #[error(
        "the gateway is not running: nobody answers at {0}\n\
         start it with `portcullis run --config FILE` (or `systemctl start portcullis`), or name its socket with --socket"
    )]
    NotRunning(PathBuf),
    /// The user may not do this.
    #[error("{0}")]
    Privilege(String),
    /// The configuration is not legal; the text names file, line, key and range.
    #[error("{0}")]
    Config(String),
    /// The gateway refused, or broke off.
    #[error("the gateway says: {0}")]
    Refused(api::Error),
    /// The answer cannot be understood.
    #[error("the gateway's answer cannot be read ({0}); is it of another version? compare `portcullis version`")]
    Answer(String),
    /// The box will break the gateway; the page above says where.
    #[error("{0} of these will break the gateway")]
    Unfit(usize),
    /// The NAT under test violates what an RFC calls MUST.
    #[error("violated, and a MUST: {0}")]
    Violated(String),
    /// A check of a NAT could not be made.
    #[error("{0:#}")]
    Check(anyhow::Error),
    /// Output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// The exit code.
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::NotRunning(_) => 69,
            Self::Privilege(_) => 77,
            Self::Config(_) => 78,
            Self::Check(_) => 2,
            Self::Refused(_) | Self::Answer(_) | Self::Unfit(_) | Self::Violated(_) | Self::Output(_) | Self::Other(_) => 1,
        }
    }

    /// What an error in talking to the gateway at `socket` means.
    pub(super) fn of_connection(error: io::Error, socket: &Path) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NotRunning(socket.to_owned()),
            io::ErrorKind::PermissionDenied => Self::Privilege(format!(
                "no permission to ask the gateway at {}: it answers root and the socket's group",
                socket.display()
            )),
            _ => Self::Other(anyhow::Error::new(error).context(format!("cannot connect to {}", socket.display()))),
        }
    }
}

/// Tells the user about the end of a command. Output that nobody reads any more (`| head`) ends a command quietly.
pub(super) fn report(ended: Result<(), Failure>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            use io::Write as _;
            // If standard error is gone too there is nobody to tell.
            let _ = writeln!(io::stderr(), "portcullis: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_to_fail_has_its_code_and_says_what_to_do() {
        let socket = Path::new("/run/somewhere.sock");
        let of = |kind| Failure::of_connection(io::Error::from(kind), socket);
        for (failure, code, says) in [
            (of(io::ErrorKind::NotFound), 69, "portcullis run --config"),
            (of(io::ErrorKind::ConnectionRefused), 69, "/run/somewhere.sock"),
            (of(io::ErrorKind::PermissionDenied), 77, "root and the socket's group"),
            (of(io::ErrorKind::TimedOut), 1, "/run/somewhere.sock"),
            (Failure::Config("x.toml:1".to_owned()), 78, "x.toml:1"),
            (Failure::Answer("cut off".to_owned()), 1, "portcullis version"),
        ] {
            assert_eq!(failure.code(), code, "{failure}");
            assert!(failure.to_string().contains(says), "{failure}");
        }
    }
}
