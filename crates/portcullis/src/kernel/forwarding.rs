//! Whether the kernel itself forwards IPv4, which an operator of a gateway must know.
//!
//! Reads `/proc/sys/net/ipv4` and changes nothing. Called by the daemon at start and by `doctor`. Invariant: none of its findings
//! lets an untranslated packet cross: the guard, a tc program on the devices, drops what the kernel forwards between the sides.
//! Sources: Linux Documentation/networking/ip-sysctl.rst. Tests: below, and `tests::claims` (root) reads a real one.

use std::path::Path;

use super::KernelError;

/// The kernel's forwarding switches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    /// `net.ipv4.ip_forward`.
    pub(crate) global: bool,
    /// `net.ipv4.conf.NAME.forwarding` of each configured interface that exists.
    pub(crate) interfaces: Vec<(String, bool)>,
}

impl Forwarding {
    /// Reads the switches of the calling thread's network namespace.
    ///
    /// **Errors:** [`KernelError::Proc`]; an interface that does not exist is left out instead.
    pub(crate) fn read<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, KernelError> {
        let root = Path::new("/proc/sys/net/ipv4");
        let global = read_switch(&root.join("ip_forward"))?;
        // A name with a slash or a dot-dot is no interface's.
        let is_name = |name: &&str| !name.is_empty() && !name.contains('/') && *name != "." && *name != "..";
        let mut interfaces = Vec::new();
        for name in names.into_iter().filter(is_name) {
            let path = root.join("conf").join(name).join("forwarding");
            if path.exists() {
                interfaces.push((name.to_owned(), read_switch(&path)?));
            }
        }
        Ok(Self { global, interfaces })
    }

    /// Whether the kernel forwards from any of the interfaces.
    pub(crate) fn is_on(&self) -> bool {
        self.global || self.interfaces.iter().any(|(_, on)| *on)
    }

    /// What it means, for the log: one line.
    pub(crate) fn summary(&self) -> String {
        let on: Vec<_> = self.interfaces.iter().filter(|(_, on)| *on).map(|(name, _)| name.as_str()).collect();
        let kernel = match (self.global, on.as_slice()) {
            (false, []) => {
                return "the kernel forwards no IPv4 (net.ipv4.ip_forward is 0); translated traffic does not need it".into();
            }
            (_, []) => "the kernel forwards IPv4 (net.ipv4.ip_forward is 1), though not from the configured interfaces".into(),
            (true, on) => format!("the kernel forwards IPv4 (net.ipv4.ip_forward is 1) from {}", on.join(", ")),
            (false, on) => format!("the kernel forwards IPv4 from {}, though net.ipv4.ip_forward is 0", on.join(", ")),
        };
        format!("{kernel}; the guard keeps what it forwards from crossing between inside and outside")
    }

    /// Logs [`Forwarding::summary`].
    pub(crate) fn log(&self) {
        tracing::info!("{}", self.summary());
    }
}

fn read_switch(path: &Path) -> Result<bool, KernelError> {
    let text = std::fs::read_to_string(path).map_err(|error| KernelError::Proc { path: path.display().to_string(), error })?;
    Ok(text.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_who_forwards_and_what_keeps_it_from_crossing() {
        let forwarding = |global, names: &[(&str, bool)]| Forwarding {
            global,
            interfaces: names.iter().map(|&(name, on)| (name.to_owned(), on)).collect(),
        };
        assert!(forwarding(false, &[("a", false)]).summary().contains("forwards no IPv4"));
        let on = forwarding(true, &[("a", true), ("b", false), ("c", true)]).summary();
        assert!(on.contains("from a, c;") && on.contains("guard"), "{on}");
        assert!(forwarding(true, &[("a", false)]).summary().contains("not from the configured"));
        assert!(forwarding(false, &[("a", true)]).summary().contains("though net.ipv4.ip_forward is 0"));
    }

    #[test]
    fn an_interface_that_does_not_exist_is_left_out() {
        let found = Forwarding::read(["no-such-interface", "..", "a/b"]).expect("this machine's switches");
        assert!(found.interfaces.is_empty());
    }
}
