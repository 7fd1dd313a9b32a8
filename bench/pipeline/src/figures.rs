//! What is said of many samples: the least, the tenth percentile, the middle, and the tail.
//!
//! Knows numbers only. On a machine that is shared the low figures are the steady ones: what disturbs only ever adds.

use serde::{Deserialize, Serialize};

/// A distribution in five numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) min: f64,
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Figures {
    /// The figures of `samples`, of which there is at least one.
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self {
            min: percentile(&samples, 0.0),
            p10: percentile(&samples, 10.0),
            median: percentile(&samples, 50.0),
            p99: percentile(&samples, 99.0),
            max: percentile(&samples, 100.0),
        }
    }
}

/// The sample that `percent` of the ascending `samples` do not exceed (nearest rank).
fn percentile(samples: &[f64], percent: f64) -> f64 {
    #[expect(clippy::cast_sign_loss, reason = "a count of samples is not negative")]
    let rank = (samples.len() as f64 * percent / 100.0).ceil() as usize;
    samples[rank.clamp(1, samples.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        let figures = Figures::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(figures, Figures { min: 1.0, p10: 20.0, median: 100.0, p99: 198.0, max: 200.0 });
    }

    #[test]
    fn one_sample_is_all_figures() {
        let figures = Figures::of(vec![7.0]);
        assert_eq!(figures, Figures { min: 7.0, p10: 7.0, median: 7.0, p99: 7.0, max: 7.0 });
    }
}
