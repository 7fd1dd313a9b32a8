//! The search for the highest rate without loss by halving, with bounded trials.
//!
//! Pure: it is told how each trial went. Called by `case`. Invariant: the answer is the rate of a trial that passed, below every one that
//! failed; the number of trials is bounded. Source: RFC 2544 section 26.1:
//!
//! > The throughput is the fastest rate at which the count of test frames transmitted by the DUT is equal to the number of test frames
//! > sent to it by the test equipment.

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Where it begins, packets a second; none: as fast as the generator can.
    pub most: Option<u64>,
    /// Trials at most.
    pub trials: u32,
    /// It ends when the answer is known so well, as a part of the highest rate tried.
    pub resolution: f64,
}

/// What to try next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A trial at this rate; none: as fast as the generator can.
    Try(Option<u64>),
    /// The answer is known.
    Done,
}

/// What kept the rate from being higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Above it packets are lost.
    Loss,
    /// The generator sends no more, or was told not to.
    Generator,
    /// No rate passed.
    None,
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    bounds: Bounds,
    tried: u32,
    /// The highest rate that has passed, and the lowest that has failed.
    passed: Option<u64>,
    failed: Option<u64>,
    top: u64,
}

impl Search {
    /// Nothing tried yet.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, tried: 0, passed: None, failed: None, top: 0 }
    }

    /// What to try next.
    pub fn next(&self) -> Next {
        if self.tried == 0 {
            return Next::Try(self.bounds.most);
        }
        let (Some(failed), low) = (self.failed, self.passed.unwrap_or(0)) else { return Next::Done };
        let close = failed.saturating_sub(low) <= self.step();
        if self.tried >= self.bounds.trials.max(1) || close { Next::Done } else { Next::Try(Some(low.midpoint(failed))) }
    }

    /// Takes in how a trial went: the rate that was reached, and whether it passed.
    pub fn record(&mut self, reached: u64, passed: bool) {
        self.tried += 1;
        self.top = self.top.max(reached);
        if passed {
            // A generator that falls behind may have reached less than what passed before.
            self.passed = Some(self.passed.map_or(reached, |before| before.max(reached)));
        } else {
            self.failed = Some(self.failed.map_or(reached, |before| before.min(reached)));
            // A rate below which something failed has not passed.
            self.passed = self.passed.filter(|&passed| passed < reached);
        }
    }

    /// The step within which the answer is known.
    pub fn step(&self) -> u64 {
        ((self.top as f64 * self.bounds.resolution) as u64).max(1)
    }

    /// The highest rate that has passed, and why it is no higher.
    pub fn answer(&self) -> (Option<u64>, Limit) {
        let limit = match (self.passed, self.failed) {
            (None, _) => Limit::None,
            (Some(_), None) => Limit::Generator,
            (Some(_), Some(_)) => Limit::Loss,
        };
        (self.passed, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { most: None, trials: 12, resolution: 0.01 };

    /// Searches a gateway that loses packets above `capacity`, with a generator that reaches `most`. Returns the rates tried.
    fn search(bounds: Bounds, capacity: u64, most: u64) -> (Search, Vec<u64>) {
        let (mut search, mut tried) = (Search::new(bounds), Vec::new());
        while let Next::Try(rate) = search.next() {
            let reached = rate.unwrap_or(u64::MAX).min(most);
            tried.push(reached);
            assert!(tried.len() <= bounds.trials as usize, "{tried:?}");
            search.record(reached, reached <= capacity);
        }
        (search, tried)
    }

    #[test]
    fn the_answer_is_within_the_resolution_of_what_the_gateway_carries() {
        for capacity in [5_000, 100_000, 730_001, 999_999] {
            let (search, tried) = search(BOUNDS, capacity, 1_000_000);
            let (answer, limit) = search.answer();
            let answer = answer.unwrap_or(0);
            if capacity < 10_000 {
                assert!(answer <= capacity, "{tried:?}");
            } else {
                assert!(answer <= capacity && capacity - answer <= 10_000, "{capacity}: {answer} after {tried:?}");
                assert_eq!(limit, Limit::Loss);
            }
        }
    }

    #[test]
    fn a_gateway_faster_than_the_generator_takes_one_trial() {
        let (search, tried) = search(BOUNDS, 2_000_000, 1_000_000);
        assert_eq!((search.answer(), tried.len()), ((Some(1_000_000), Limit::Generator), 1));
    }

    #[test]
    fn a_highest_rate_is_where_it_begins() {
        let (search, tried) = search(Bounds { most: Some(50_000), ..BOUNDS }, 40_000, 1_000_000);
        assert_eq!(tried[0], 50_000);
        assert!(search.answer().0.is_some_and(|rate| (39_500..=40_000).contains(&rate)), "{tried:?}");
    }

    #[test]
    fn trials_are_bounded_and_a_gateway_that_always_loses_has_no_rate() {
        let (search, tried) = search(Bounds { trials: 5, resolution: 0.0, ..BOUNDS }, 0, 1_000_000);
        assert_eq!((search.answer(), tried.len()), ((None, Limit::None), 5));
    }

    #[test]
    fn a_rate_that_passed_by_luck_does_not_stand_above_one_that_failed() {
        let mut search = Search::new(BOUNDS);
        search.record(1_000_000, false);
        search.record(500_000, true);
        search.record(400_000, false);
        assert_eq!(search.answer(), (None, Limit::None));
        assert_eq!(search.next(), Next::Try(Some(200_000)));
    }
}
