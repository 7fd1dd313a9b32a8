//! Whether a gateway loses more in front of it than the bare forwarder, which has no NAT: both in turns at one rate.
//!
//! Knows what windows of ten seconds showed; runs nothing. Called by the soak, where packets were lost in no pause. A disturbance loses some
//! hundred packets together, so what is counted is windows, not packets. Invariants: windows too few to convict excuse nothing, nor do any
//! excuse more than one packet in a thousand. Blind spots: what is no rarer than once in twenty by chance is no proof of the contrary, either;
//! windows of one bad minute belong together, so the chance is a rough one. Tests: below.

use serde::Serialize;
use serde_json::{Value, json};

use crate::windows::Window;

/// How rare it has to be by chance that so many more of its windows lost packets, for a gateway to be at fault. Chosen: as is usual.
const RARE: f64 = 0.05;
/// The part of what was sent that may be lost in no pause at most, whatever the bare forwarder loses. Chosen: five times what was ever seen here.
const MOST: f64 = 1e-3;

/// What one gateway showed at one rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// Packets sent.
    pub sent: u64,
    /// Packets lost in front of the gateway that no pause of the machine explains.
    pub lost: u64,
    /// All its windows.
    pub windows: Vec<Window>,
}

/// What both showed in turns, and the soak before them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Control {
    /// The soak of the gateway.
    pub soak: Side,
    /// The gateway again.
    pub gateway: Side,
    /// The bare forwarder.
    pub bare: Side,
}

impl Side {
    /// Adds what another turn showed.
    pub fn add(&mut self, turn: Self) {
        self.sent += turn.sent;
        self.lost += turn.lost;
        self.windows.extend(turn.windows);
    }

    /// In how many windows packets were lost in no pause.
    pub fn lossy(&self) -> u64 {
        self.windows.iter().filter(|window| window.lost_at_work() > 0).count() as u64
    }

    /// What was lost in no pause, as a part of what was sent; 0 when nothing was.
    pub fn part_lost(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sent, lost, windows } = self;
        let (part, lossy, all) = (self.part_lost(), self.lossy(), windows.len());
        write!(to, "{lost} of {sent} packets in no pause ({part:.1e}), in {lossy} of {all} windows")
    }
}

impl Control {
    /// How likely it is that so many of the windows with loss, or more, are the gateway's, where it and the bare forwarder lose alike: by the
    /// turns alone, which met the same machine, or with the soak before them, whichever is rarer. **Source:** Fisher's exact test, of one side.
    pub fn chance(&self) -> f64 {
        let in_turns = self.of_bare_against(&[&self.gateway]);
        in_turns.min(self.of_bare_against(&[&self.gateway, &self.soak]))
    }

    fn of_bare_against(&self, sides: &[&Side]) -> f64 {
        let (lossy, all) = sides.iter().fold((0, 0), |(lossy, all), side| (lossy + side.lossy(), all + side.windows.len() as u64));
        chance(lossy, all, self.bare.lossy(), self.bare.windows.len() as u64)
    }

    /// Why the bare forwarder does not excuse what the gateway lost, or nothing where it does.
    pub fn why_no_excuse(&self) -> Option<&'static str> {
        let (gateway, bare) = (self.gateway.windows.len() as u64, self.bare.windows.len() as u64);
        if self.soak.part_lost() > MOST || self.gateway.part_lost() > MOST {
            Some("that is more than any disturbance of the machine takes")
        } else if chance(gateway, gateway, 0, bare) >= RARE {
            Some("the soak was too short to tell whose loss it is")
        } else if self.chance() < RARE {
            Some("the bare forwarder loses less")
        } else {
            None
        }
    }

    /// All of it, for programs.
    pub fn as_json(&self) -> Value {
        json!({ "gateway": self.gateway, "bare": self.bare, "chance": self.chance() })
    }
}

impl std::fmt::Display for Control {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { gateway, bare, .. } = self;
        write!(to, "in turns after it, {gateway}; the bare forwarder {bare}; so many by chance: p = {:.3}", self.chance())
    }
}

/// The part of all ways to deal `of_first + of_second` marked windows to `first + second` in which the first get `of_first` or more.
fn chance(of_first: u64, first: u64, of_second: u64, second: u64) -> f64 {
    let marked = of_first + of_second;
    let all = ln_choose(first + second, marked);
    let ways = |taken| (ln_choose(first, taken) + ln_choose(second, marked - taken) - all).exp();
    (of_first..=marked.min(first)).filter(|taken| marked - taken <= second).map(ways).sum::<f64>().min(1.0)
}

/// The logarithm of the number of ways to choose `taken` of `of`.
fn ln_choose(of: u64, taken: u64) -> f64 {
    (0..taken).map(|step| ((of - step) as f64 / (step + 1) as f64).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(one: f64, other: f64) -> bool {
        (one - other).abs() < 1e-9
    }

    #[test]
    fn fishers_test_gives_what_is_known_of_it() {
        // R. A. Fisher, The Design of Experiments (1935): eight cups of tea, all four told, or three of them.
        assert!(close(chance(4, 4, 0, 4), 1.0 / 70.0));
        assert!(close(chance(3, 4, 1, 4), 17.0 / 70.0));
        assert!(close(chance(0, 4, 3, 4), 1.0));
        assert!(close(chance(0, 60, 0, 30), 1.0) && close(chance(0, 0, 0, 0), 1.0) && close(chance(3, 3, 0, 0), 1.0));
        let far_more = chance(20, 90, 0, 30);
        assert!(far_more < 0.005 && far_more > 0.0, "{far_more}");
    }

    fn side_of(lossy: u64, all: usize) -> Side {
        let window = |lost| Window { sent: 1000, lost, seconds: 10.0, ..Window::default() };
        let windows = (0..all as u64).map(|number| window(u64::from(number < lossy))).collect();
        Side { sent: 1000 * all as u64, lost: lossy, windows }
    }

    #[test]
    fn as_many_windows_with_loss_are_chance_and_far_more_are_not() {
        let control =
            |soak, gateway, bare| Control { soak: side_of(soak, 60), gateway: side_of(gateway, 30), bare: side_of(bare, 30) };
        for alike in [control(10, 7, 6), control(2, 0, 0), control(0, 0, 9)] {
            assert_eq!(alike.why_no_excuse(), None, "{alike}");
        }
        // What the soak lost has to show in the bare forwarder, too: quiet turns after it excuse nothing.
        // Nor does a quiet soak before turns that are not.
        for worse in [control(20, 10, 2), control(25, 0, 0), control(4, 8, 1)] {
            assert_eq!(worse.why_no_excuse(), Some("the bare forwarder loses less"), "{worse}");
        }
    }

    #[test]
    fn few_windows_excuse_nothing_and_none_excuse_much() {
        let short = Control { soak: side_of(1, 1), gateway: side_of(1, 1), bare: side_of(1, 1) };
        assert_eq!(short.why_no_excuse(), Some("the soak was too short to tell whose loss it is"));
        let much = Side { lost: 100, ..side_of(1, 60) };
        let much = Control { soak: much, gateway: side_of(1, 30), bare: side_of(9, 30) };
        assert_eq!(much.why_no_excuse(), Some("that is more than any disturbance of the machine takes"));
    }

    #[test]
    fn turns_are_added_and_told() {
        let mut both = side_of(1, 3);
        both.add(side_of(2, 3));
        assert_eq!((both.lossy(), both.windows.len(), both.sent), (3, 6, 6000));
        assert_eq!(both.to_string(), "3 of 6000 packets in no pause (5.0e-4), in 3 of 6 windows");
        assert_eq!(Side::default().part_lost().to_bits(), 0);
    }
}
