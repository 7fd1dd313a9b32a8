//! Learn and verify: whether a device still puts frames where their owners look.
//!
//! Knows two numbers a device, received frames and misplaced ones, as the workers count them; no packets, no clock. Asked once a second
//! by the control plane. The workers compute the owner of every frame whatever this says, so a device that is not trusted costs hand-offs
//! and loses nothing. Invariant: one verdict changes only after a whole window of evidence, so that it does not flap.
//! Tests: below.

use std::collections::BTreeMap;

use portcullis_api as api;
use portcullis_nat::policy::DeviceId;

use super::devices::{Devices, UsedDevice};
use super::spread::{Spread, WayFound};

/// Frames that a verdict needs at least.
const EVIDENCE: u64 = 256;

/// A device is distrusted when at least one in so many of its frames is misplaced. Fragments and answers to pings, which no device
/// places, do not count as misplaced.
const DISTRUST: u64 = 100;

/// Windows without any misplaced frame until a device is trusted again. **Units:** windows with evidence.
const PROBATION: u32 = 3;

/// What the workers have counted of one device since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Placed {
    /// Frames received.
    pub(super) received: u64,
    /// Those that were another worker's, though the device knows how owners are found.
    pub(super) misplaced: u64,
}

/// A verdict that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// So many of the frames of the last window were misplaced: from now on the device counts as one that knows no owners.
    Distrusted(Placed),
    /// None was misplaced for as long as it takes.
    TrustedAgain,
}

/// One device under watch.
#[derive(Debug)]
pub(super) struct Watch {
    trusted: bool,
    seen: Placed,
    clean: u32,
}

impl Watch {
    /// A device that was told how owners are found, and is believed.
    pub(super) const fn new() -> Self {
        Self { trusted: true, seen: Placed { received: 0, misplaced: 0 }, clean: 0 }
    }

    /// Whether the device is believed.
    pub(super) const fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Looks at the counts. A window ends when there is evidence enough, or when the misplaced frames alone are. Returns a verdict that
    /// has changed.
    pub(super) fn look(&mut self, counted: Placed) -> Option<Change> {
        let window = Placed {
            received: counted.received.saturating_sub(self.seen.received),
            misplaced: counted.misplaced.saturating_sub(self.seen.misplaced),
        };
        if window.received < EVIDENCE {
            return None;
        }
        self.seen = counted;
        let is_wrong = window.misplaced * DISTRUST >= window.received;
        self.clean = if window.misplaced == 0 { self.clean + 1 } else { 0 };
        match (self.trusted, is_wrong) {
            (true, true) => {
                self.trusted = false;
                Some(Change::Distrusted(window))
            }
            (false, false) if self.clean >= PROBATION => {
                self.trusted = true;
                Some(Change::TrustedAgain)
            }
            _ => None,
        }
    }
}

/// All devices, those under watch and those of which nothing is expected. In the devices' order.
#[derive(Debug)]
pub(super) struct Watches {
    all: Vec<(WayFound, Option<Watch>)>,
}

impl Watches {
    /// Watches over the devices that were told how owners are found, all of whose TCP and UDP packets are expected at their owners.
    pub(super) fn over(spread: &Spread) -> Self {
        let one = |place| (spread.way(place), spread.is_exact(place).then(Watch::new));
        Self { all: (0..spread.len()).map(one).collect() }
    }

    /// Looks at what was counted of each device, and tells the log of verdicts that have changed. Returns whether one has.
    pub(super) fn look(&mut self, devices: &Devices, counted: &BTreeMap<String, (u64, u64)>) -> bool {
        let mut changed = false;
        for (used, (way, watch)) in devices.used.iter().zip(&mut self.all) {
            let name = &used.device.name;
            let (Some(watch), Some(&(received, misplaced))) = (watch, counted.get(name)) else { continue };
            let change = watch.look(Placed { received, misplaced });
            changed |= change.is_some();
            match change {
                Some(Change::Distrusted(Placed { received, misplaced })) => tracing::warn!(
                    "device {name}: {misplaced} of {received} frames came to a worker that does not own them, though {} was set: from now \
                     on its frames are handed over in software (has somebody run `ethtool -X {name}`?)",
                    way.label
                ),
                Some(Change::TrustedAgain) => tracing::info!("device {name}: frames come to their owners again by {}", way.label),
                None => {}
            }
        }
        changed
    }

    /// For whoever asks.
    pub(super) fn shown(&self, devices: &Devices) -> Vec<(DeviceId, api::Steering)> {
        let one = |(used, (way, watch)): (&UsedDevice, &(WayFound, Option<Watch>))| {
            let (way, share, why) = (way.label.clone(), way.share, way.why.clone());
            (used.id, api::Steering { way, expected_share: share, why, trusted: watch.as_ref().map(Watch::is_trusted) })
        };
        devices.used.iter().zip(&self.all).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts that grow by the windows given.
    fn looked(watch: &mut Watch, total: &mut Placed, received: u64, misplaced: u64) -> Option<Change> {
        total.received += received;
        total.misplaced += misplaced;
        watch.look(*total)
    }

    #[test]
    fn a_device_that_misplaces_is_distrusted_and_comes_back_when_it_places_right() {
        let (mut watch, mut total) = (Watch::new(), Placed::default());
        assert_eq!(looked(&mut watch, &mut total, 10_000, 0), None);
        let wrong = Placed { received: 10_000, misplaced: 5_000 };
        assert_eq!(looked(&mut watch, &mut total, 10_000, 5_000), Some(Change::Distrusted(wrong)));
        assert!(!watch.is_trusted());
        assert_eq!(looked(&mut watch, &mut total, 10_000, 5_000), None, "said once");
        for _ in 1..PROBATION {
            assert_eq!(looked(&mut watch, &mut total, 10_000, 0), None);
        }
        assert_eq!(looked(&mut watch, &mut total, 10_000, 0), Some(Change::TrustedAgain));
        assert!(watch.is_trusted());
    }

    #[test]
    fn a_stray_frame_is_no_reason_but_breaks_a_probation() {
        let (mut watch, mut total) = (Watch::new(), Placed::default());
        assert_eq!(looked(&mut watch, &mut total, 10_000, 99), None, "less than one in a hundred");
        assert!(looked(&mut watch, &mut total, 1_000, 500).is_some());
        assert_eq!(looked(&mut watch, &mut total, 1_000, 0), None);
        assert_eq!(looked(&mut watch, &mut total, 1_000, 1), None);
        for _ in 1..PROBATION {
            assert_eq!(looked(&mut watch, &mut total, 1_000, 0), None);
        }
        assert_eq!(looked(&mut watch, &mut total, 1_000, 0), Some(Change::TrustedAgain));
    }

    #[test]
    fn little_traffic_is_gathered_until_it_is_evidence() {
        let (mut watch, mut total) = (Watch::new(), Placed::default());
        for _ in 0..EVIDENCE - 1 {
            assert_eq!(looked(&mut watch, &mut total, 1, 1), None);
        }
        let all = Placed { received: EVIDENCE, misplaced: EVIDENCE };
        assert_eq!(looked(&mut watch, &mut total, 1, 1), Some(Change::Distrusted(all)));
    }
}
