//! Why a device's settings cannot be read, changed or put back, with the object in it and what to do about it.
//!
//! Knows words only. Made by the other files of [`super`].

use std::io;

use super::{Flow, Setting};

/// Why something about a device's settings failed.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// No such device in this namespace.
    #[error("{device}: no such device: compare `ip link`")]
    Missing {
        /// The name.
        device: String,
    },
    /// A setting cannot be read, though the driver has it.
    #[error("{device}: cannot read its {what}: {source}")]
    Read {
        /// The device's name.
        device: String,
        /// What was asked for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A setting cannot be written.
    #[error("{device}: the driver refuses a setting: {source}; `{}` does the same by hand", setting.command(device))]
    Write {
        /// The device's name.
        device: String,
        /// What was to be written.
        setting: Box<Setting>,
        /// What the kernel said.
        source: io::Error,
    },
    /// The driver took a setting, and says afterwards that it is another one.
    #[error("{device}: the driver took `{}`, but does not show it afterwards", setting.command(device))]
    NotTaken {
        /// The device's name.
        device: String,
        /// What was written.
        setting: Box<Setting>,
    },
    /// The plan does not fit the device. Nothing was written for that part.
    #[error("{device}: {impossible}")]
    Impossible {
        /// The device's name.
        device: String,
        /// What does not fit.
        impossible: Impossible,
    },
    /// The note of what is to be put back cannot be kept, so nothing more was changed.
    #[error("{device}: cannot note what is to be put back: {source}")]
    Keep {
        /// The device's name.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// A note is no use here.
    #[error("{device}: the note of what is to be put back {problem}")]
    Note {
        /// The device's name.
        device: String,
        /// Why.
        problem: NoteProblem,
    },
}

/// What of a plan does not fit a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// The driver has no such setting.
    #[error("the driver has no {0}")]
    Unsupported(&'static str),
    /// Fields that cannot be set.
    #[error("rx-flow-hash {} cannot be set", .0.label())]
    Fields(Flow),
    /// The kernel knows no such feature, or the driver fixes it.
    #[error("the driver does not let `{0}` be switched")]
    Feature(String),
    /// More or fewer queues than the driver has.
    #[error("{wanted} queues: the driver has 1 to {most}")]
    Queues {
        /// Asked for.
        wanted: u32,
        /// The most there are.
        most: u32,
    },
    /// Larger rings than the driver has.
    #[error("rings of {rx} and {tx} descriptors: the driver has at most {max_rx} and {max_tx}")]
    Rings {
        /// Asked for, receiving.
        rx: u32,
        /// Asked for, sending.
        tx: u32,
        /// The most, receiving.
        max_rx: u32,
        /// The most, sending.
        max_tx: u32,
    },
    /// A key of another length.
    #[error("a key of {wanted} bytes: the driver's has {has}")]
    KeyLength {
        /// Asked for.
        wanted: usize,
        /// The driver's.
        has: usize,
    },
    /// A table of another length.
    #[error("a table of {wanted} entries: the driver's has {has}")]
    TableLength {
        /// Asked for.
        wanted: usize,
        /// The driver's.
        has: usize,
    },
    /// A table or a rule that names a queue which is not there.
    #[error("queue {queue}: the device receives on queues 0 to {}", queues.saturating_sub(1))]
    NoQueue {
        /// Asked for.
        queue: u32,
        /// How many there are.
        queues: u32,
    },
    /// More rules than there is room for.
    #[error("no room for another flow rule ({used} of {size} are in use)")]
    NoRoom {
        /// In use.
        used: usize,
        /// In all.
        size: u32,
    },
}

/// Why a note is no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteProblem {
    /// It is of another version, cut off, or not a note at all.
    #[error("cannot be read (line {line})")]
    Malformed {
        /// The first line that is wrong, from 1.
        line: usize,
    },
    /// The machine was started anew since, so the settings are the driver's own again.
    #[error("was written before the last start of this machine")]
    OtherBoot,
    /// It is about another device.
    #[error("is about {device} (index {ifindex})")]
    OtherDevice {
        /// Its name.
        device: String,
        /// Its index.
        ifindex: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::{Channels, Fields};

    #[test]
    fn errors_name_the_device_and_what_to_type() {
        let setting = Box::new(Setting::Channels(Channels { combined: 4, ..Channels::default() }));
        let source = io::Error::from_raw_os_error(libc::EINVAL);
        let refused = NicError::Write { device: "eth0".into(), setting, source }.to_string();
        assert!(refused.starts_with("eth0: ") && refused.contains("`ethtool -L eth0 combined 4`"), "{refused}");
        let setting = Box::new(Setting::Fields { flow: Flow::Udp4, fields: Fields::SOURCE });
        let refused = NicError::NotTaken { device: "eth0".into(), setting }.to_string();
        assert!(refused.contains("`ethtool -N eth0 rx-flow-hash udp4 s`"), "{refused}");
        let impossible = Impossible::KeyLength { wanted: 40, has: 52 };
        let refused = NicError::Impossible { device: "eth0".into(), impossible }.to_string();
        assert_eq!(refused, "eth0: a key of 40 bytes: the driver's has 52");
    }
}
