//! Why something about the kernel programs failed, with the object in it and what to do about it.
//!
//! Knows words only. Made by the other files of [`super`].

use std::io;

use super::AttachMode;
use crate::capability;

/// Why something about the kernel programs failed.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// Loading was refused.
    #[error("cannot load the kernel programs: {message}{}", lacking(missing))]
    Load {
        /// What the kernel said.
        message: String,
        /// The capabilities that are missing.
        missing: Vec<&'static str>,
    },
    /// A table is full or was refused.
    #[error("cannot write the kernel program's table {table}: {source}")]
    Table {
        /// The table's name.
        table: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// More than a table takes.
    #[error("{count} {what}: the kernel program takes at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// Another XDP program is on the device.
    #[error("{device}: another XDP program is attached ({program}): remove it with `ip link set dev {device} xdp off`")]
    Foreign {
        /// The device's name.
        device: String,
        /// The program's name and number.
        program: String,
    },
    /// The device's MTU is too large for its driver's XDP.
    #[error("{device}: MTU {mtu} is too large for XDP: {reason}; {}", mtu_advice(device, *largest))]
    MtuTooLarge {
        /// The device's name.
        device: String,
        /// Its MTU.
        mtu: u32,
        /// The largest one that works, where it is known.
        largest: Option<u32>,
        /// What the driver said.
        reason: String,
    },
    /// The device takes no XDP program in the mode asked for.
    #[error("{device}: cannot attach the XDP program ({}): {source}{}", mode.label(), because(reason))]
    Attach {
        /// The device's name.
        device: String,
        /// The mode.
        mode: AttachMode,
        /// What the kernel said in words.
        reason: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another filter has the guard's place.
    #[error("{interface}: another filter has the guard's place ({program}): remove it with `tc filter del dev {interface} egress`")]
    ForeignFilter {
        /// The interface's name.
        interface: String,
        /// The program's name and number.
        program: String,
    },
    /// The guard cannot be attached or removed.
    #[error("{interface}: cannot change the egress guard: {source}")]
    Guard {
        /// The interface's name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A frame was not taken by the kernel.
    #[error("cannot give a frame to the kernel on interface {ifindex}: {source}")]
    Punt {
        /// The interface's index.
        ifindex: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

fn lacking(missing: &[&'static str]) -> String {
    if missing.is_empty() { String::new() } else { format!("; missing {}", capability::list(missing)) }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

fn mtu_advice(device: &str, largest: Option<u32>) -> String {
    match largest {
        Some(mtu) => format!("the largest that works is {mtu}: `ip link set dev {device} mtu {mtu}`"),
        None => format!("lower it: `ip link set dev {device} mtu 1500` (most drivers take about 3000)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let foreign = SteerError::Foreign { device: "eth0".into(), program: "xdp_other, 7".into() };
        assert!(foreign.to_string().contains("xdp_other") && foreign.to_string().contains("ip link set dev eth0 xdp off"));
        let mtu = SteerError::MtuTooLarge { device: "eth0".into(), mtu: 9000, largest: Some(3498), reason: "too large".into() };
        assert!(mtu.to_string().contains("ip link set dev eth0 mtu 3498"));
    }
}
