//! One body for the property test and the fuzz target `config`: what holds of any text that is read as a configuration.

use portcullis_config::{Config, ConfigError, HostAddresses, SystemInterface};

/// Reads, uses what is legal in every way, and looks at what is reported.
pub(crate) fn read(text: &str) {
    let findings = match Config::parse(text, "test.toml") {
        Ok((config, _)) => {
            let system = SystemInterface {
                name: "eth0".to_owned(),
                addresses: ["10.0.0.1/24", "203.0.113.1/24"].map(|address| address.parse().expect("an address")).to_vec(),
                mtu: 1500,
                mtu_most: 1500,
            };
            let policy = config.policy(&HostAddresses::default());
            assert_eq!(policy.externals.len(), usize::from(config.slot_count()));
            assert!(policy.forwards.iter().all(|forward| forward.external < policy.externals.len()));
            assert!(!config.summary().is_empty());
            match config.check_system(&[system]) {
                Err(ConfigError::Invalid(findings)) => findings,
                _ => return,
            }
        }
        Err(ConfigError::Invalid(findings)) => findings,
        Err(error) => panic!("{error}"),
    };
    assert!(!findings.faults.is_empty());
    let lines: Vec<_> = text.lines().collect();
    let places = findings.faults.iter().map(|fault| &fault.place).chain(findings.warnings.iter().map(|warning| &warning.place));
    for place in places {
        assert!(place.line >= 1 && place.line as usize <= lines.len().max(1), "{place} of {} lines", lines.len());
        let line = lines.get(place.line as usize - 1).copied().unwrap_or_default();
        assert!(place.column >= 1 && place.column as usize <= line.chars().count() + 1, "{place} in {line:?}");
    }
    assert!(findings.to_string().contains("test.toml:"));
}
