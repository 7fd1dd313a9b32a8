//! The loss-free rate, searched as RFC 2544 does: at which rate is the last packet still forwarded.
//!
//! Pure: trials are made by the caller. Invariants: a bounded number of trials; the rate found is one at which a trial lost nothing.
//! Source: RFC 2544, section 26.1. Deviation: short trials (it asks for 60 s), and a rate that failed by little is tried once more: on
//! a machine that others share a stall of a millisecond loses packets at any rate.

use anyhow::Result;

/// Loss beyond this part of what was sent is not tried again: no stall, but too much.
const CLEAR: f64 = 0.02;
/// A trial that reached less than this part of its rate was offered at another one: the generator is at its end, or was held up.
const REACHED: f64 = 0.97;
/// From a rate that passed to the next while none has failed, and from one that failed while none has passed.
const UP: f64 = 1.25;
const DOWN: f64 = 0.75;
/// How far beyond what the generator did once it is asked to go.
const BEYOND: f64 = 1.1;
/// How often a rate is tried at most before a generator that was held up is taken at its word.
const TRIES: u32 = 3;

/// How a trial went.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Packets sent.
    pub sent: u64,
    /// Of these, lost.
    pub lost: u64,
    /// Packets sent a second.
    pub rate: f64,
}

/// How finely to search.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Trials at different rates, at most.
    pub steps: u32,
    /// The search ends when the lowest rate that failed is within this part of the highest that passed.
    pub resolution: f64,
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Found {
    /// The highest rate without loss, as it was reached; 0 when there was loss at every rate. **Units:** packets sent a second.
    pub rate: f64,
    /// Whether the generator could not do more: the gateway may.
    pub generator_limited: bool,
    /// How many trials it took.
    pub trials: u32,
}

/// Searches from `guess` up and down: it comes from overload, in which a gateway may do worse or better than without. `able` is what the
/// generator can send a second. **Errors:** the trial's.
pub fn loss_free(guess: f64, able: f64, limits: Limits, mut trial: impl FnMut(u64) -> Result<Outcome>) -> Result<Found> {
    let mut found = Found::default();
    let (mut low, mut high) = (0.0, f64::INFINITY);
    let mut next = (guess * 0.95).min(able * BEYOND);
    for _ in 0..limits.steps {
        let outcome = attempt(next, able, &mut found.trials, &mut trial)?;
        if outcome.lost == 0 {
            found.rate = f64::max(found.rate, outcome.rate);
            low = next;
            found.generator_limited = outcome.rate < REACHED * next && next > able * REACHED;
            if found.generator_limited {
                break;
            }
        } else {
            high = next;
        }
        if high.is_finite() && high - low <= limits.resolution * high {
            break;
        }
        next = if high.is_infinite() {
            (low * UP).min(able * BEYOND)
        } else if low == 0.0 {
            high * DOWN
        } else {
            f64::midpoint(low, high)
        };
    }
    Ok(found)
}

/// Tries one rate: again when little was lost, and again when the generator, which could have, did not reach it.
fn attempt(rate: f64, able: f64, trials: &mut u32, trial: &mut impl FnMut(u64) -> Result<Outcome>) -> Result<Outcome> {
    let mut failed = 0;
    loop {
        let outcome = trial(rate as u64)?;
        *trials += 1;
        failed += 1;
        let held_up = outcome.rate < REACHED * rate && rate <= able * REACHED && failed < TRIES;
        let a_little = outcome.lost > 0 && (outcome.lost as f64) < CLEAR * outcome.sent as f64 && failed < 2;
        if !held_up && !a_little {
            return Ok(outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { steps: 12, resolution: 0.01 };

    /// A gateway that loses whatever is above `capacity`, and a generator that cannot do more than `most`.
    fn search(capacity: f64, most: f64, guess: f64) -> (Found, Vec<u64>) {
        let mut rates = Vec::new();
        let found = loss_free(guess, most, LIMITS, |rate| {
            rates.push(rate);
            let rate = most.min(rate as f64);
            Ok(Outcome { sent: rate as u64, lost: (rate - capacity).max(0.0) as u64, rate })
        });
        (found.unwrap(), rates)
    }

    #[test]
    fn the_capacity_is_found_from_good_and_from_bad_guesses() {
        for guess in [400_000.0, 900_000.0, 1_000_000.0, 1_050_000.0, 2_000_000.0] {
            let (found, rates) = search(1_000_000.0, 5_000_000.0, guess);
            assert!((970_000.0..=1_000_000.0).contains(&found.rate), "{guess}: {found:?} {rates:?}");
            assert!(!found.generator_limited);
            assert!(rates.len() <= 24);
        }
    }

    #[test]
    fn a_generator_at_its_end_is_told() {
        let (found, rates) = search(2_000_000.0, 1_000_000.0, 1_500_000.0);
        assert!(found.generator_limited, "{found:?}");
        assert!((found.rate - 1_000_000.0).abs() < 1.0);
        assert!(rates.len() <= 2, "{rates:?}");
    }

    #[test]
    fn a_generator_that_was_held_up_is_asked_again_and_is_not_at_its_end() {
        let mut trials = 0;
        let found = loss_free(1000.0, 5000.0, LIMITS, |rate| {
            trials += 1;
            let rate = if trials == 1 { 10.0 } else { rate as f64 };
            Ok(Outcome { sent: 1000, lost: 0, rate })
        });
        let found = found.unwrap();
        assert!(!found.generator_limited && found.rate > 1000.0, "{found:?}");
    }

    #[test]
    fn a_single_stall_does_not_fail_a_rate_and_loss_everywhere_finds_nothing() {
        let mut first = true;
        let found = loss_free(1000.0, 5000.0, LIMITS, |rate| {
            let lost = u64::from(std::mem::take(&mut first));
            Ok(Outcome { sent: 1000, lost, rate: rate as f64 })
        });
        assert!(found.unwrap().rate >= 1000.0);
        let nothing = loss_free(1000.0, 5000.0, LIMITS, |rate| Ok(Outcome { sent: 1000, lost: 5, rate: rate as f64 })).unwrap();
        assert_eq!(nothing.rate.to_bits(), 0);
        assert_eq!(nothing.trials, 24);
    }
}
