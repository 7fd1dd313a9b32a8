//! What the gateway sets on devices, and that it is put back: at the end, or by the next process.
//!
//! Knows files beside the control socket and `xsk`'s set-up; decides nothing. Called at start. Invariants: before each change it is noted
//! what has to be put back; a note is removed once all is put back.

use std::path::{Path, PathBuf};

use portcullis_xsk::nic::{self, Nic, NicSetup};

use crate::cli::exit::Failure;

/// What is changed on a device, in the order of the changes; each has a note of its own, and the last change is put back first.
const KINDS: [&str; 3] = ["queues", "spread", "polling"];

/// Where what has to be put back is noted.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    socket: PathBuf,
}

impl Notes {
    /// Beside the control socket.
    pub(super) fn beside(control_socket: &Path) -> Self {
        Self { socket: control_socket.to_owned() }
    }

    fn of(&self, device: &str, kind: &str) -> PathBuf {
        self.socket.with_extension(format!("{kind}-{device}"))
    }

    /// Puts back what a process that was killed has left set on a device. What cannot be put back is logged.
    pub(super) fn settle(&self, device: &str) {
        for kind in KINDS.into_iter().rev() {
            let path = self.of(device, kind);
            let Ok(note) = std::fs::read_to_string(&path) else { continue };
            match Nic::open(device).and_then(|nic| NicSetup::from_note(nic, &note)).map(NicSetup::restore) {
                Ok(Ok(())) => tracing::info!(device, "put back what a gateway that was killed had set ({kind})"),
                Ok(Err(errors)) => {
                    for error in errors {
                        tracing::warn!(device, %error, "a setting stays as it is");
                    }
                }
                Err(error) => tracing::warn!(device, %error, "what a gateway before has set is not put back"),
            }
            forget(&path);
        }
    }
}

fn forget(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "cannot remove the note {}", path.display());
        }
        _ => {}
    }
}

/// Settings of a device that were changed; put back when dropped.
#[derive(Debug)]
pub(super) struct NicChange {
    device: String,
    setup: Option<NicSetup>,
    note: PathBuf,
}

impl NicChange {
    /// Makes a change of one of the [`KINDS`]. **Errors:** the device refuses; it is as it was then.
    pub(super) fn make(device: &str, kind: &str, wanted: &nic::Plan, notes: &Notes) -> Result<Self, Failure> {
        debug_assert!(KINDS.contains(&kind), "{kind} would not be settled");
        let note = notes.of(device, kind);
        let applied = Nic::open(device).and_then(|nic| NicSetup::apply_noting(nic, wanted, |text| std::fs::write(&note, text)));
        let setup = applied.map_err(|error| {
            forget(&note);
            Failure::Other(
                anyhow::Error::new(error).context("cannot set the device up (--no-nic-setup leaves devices as they are)"),
            )
        })?;
        Ok(Self { device: device.to_owned(), setup: Some(setup), note })
    }

    /// To be called once the XDP program is attached: some drivers forget their table then.
    pub(super) fn reapply(&self) {
        if let Some(Err(error)) = self.setup.as_ref().map(NicSetup::reapply_table) {
            tracing::warn!(device = %self.device, %error, "cannot write key and table again after attaching");
        }
    }
}

impl Drop for NicChange {
    fn drop(&mut self) {
        match self.setup.take().map(NicSetup::restore) {
            Some(Err(errors)) => {
                for error in errors {
                    tracing::warn!(device = %self.device, %error, "a setting stays as it is");
                }
            }
            _ => forget(&self.note),
        }
    }
}
