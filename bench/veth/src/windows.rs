//! A long trial in windows: when packets were lost, and how quick the machine was just then.
//!
//! Knows what the tester and the gateway count; asks for it between two packets, once a window. Called by the soak. Invariant: what a window
//! says is of that window alone. Blind spots: what was lost behind the ring of the gateway's inner device is in the trial's sum only; what the
//! worker says of itself is up to 100 ms old.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::gateway::{Gateway, Times};
use crate::tester::{self, Tester};
use crate::world::{NEAR, visit};

/// From which part of its time on a core is full: it has none left for a rate that is any higher. Chosen: the worker's own figure is a mean.
const FULL: f64 = 0.97;

/// What one window showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Window {
    /// When it ended. **Units:** seconds since the first packet.
    pub end: f64,
    /// How long it was. **Units:** seconds.
    pub seconds: f64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that arrived.
    pub arrived: u64,
    /// Packets for which the gateway's ring had no room.
    pub lost: u64,
    /// Of these, how many came while another had its core, at most.
    pub paused: u64,
    /// What the gateway worked, in all contexts. **Units:** seconds.
    pub worked: f64,
    /// Of it its worker, which has the core. **Units:** seconds.
    pub busy: f64,
}

/// Cuts a trial into windows.
pub struct Windows<'t, 'object> {
    tester: &'t Tester<'t, 'object>,
    last: Mark,
    closed: Vec<Window>,
}

/// Counts at the end of a window.
struct Mark {
    at: Duration,
    sent: u64,
    arrived: u64,
    ring_full: u64,
    paused: u64,
    times: Times,
    busy: Option<Duration>,
}

impl Window {
    /// Packets that arrived a second.
    pub fn rate(&self) -> f64 {
        self.arrived as f64 / self.seconds
    }

    /// The gateway's time for a packet; 0 without packets. **Units:** nanoseconds.
    pub fn work_per_packet(&self) -> f64 {
        if self.arrived == 0 { 0.0 } else { self.worked * 1e9 / self.arrived as f64 }
    }

    /// The part of its time that the worker worked.
    pub fn load(&self) -> f64 {
        self.busy / self.seconds
    }

    /// Packets lost that no pause explains.
    pub fn lost_at_work(&self) -> u64 {
        self.lost.saturating_sub(self.paused)
    }

    /// Makes one window of this and the one after it.
    fn extend(&mut self, after: &Self) {
        self.end = after.end;
        self.seconds += after.seconds;
        self.sent += after.sent;
        self.arrived += after.arrived;
        self.lost += after.lost;
        self.paused += after.paused;
        self.worked += after.worked;
        self.busy += after.busy;
    }
}

impl<'t, 'object> Windows<'t, 'object> {
    /// Begins the first window, before anything is sent.
    pub fn begin(tester: &'t Tester<'t, 'object>, gateway: &mut Gateway<'_>) -> Result<Self> {
        Ok(Self { tester, last: Mark::read(tester, gateway, Duration::ZERO)?, closed: Vec::new() })
    }

    /// Ends a window at `at`, counted from the first packet, and begins the next.
    pub fn end(&mut self, gateway: &mut Gateway<'_>, at: Duration) -> Result<Window> {
        let mark = Mark::read(self.tester, gateway, at)?;
        let window = mark.since(&self.last);
        self.closed.push(window);
        self.last = mark;
        Ok(window)
    }

    /// Ends the last window, after the last packet has arrived. Returns all of them; a short rest belongs to the window before.
    pub fn finish(mut self, gateway: &mut Gateway<'_>, at: Duration) -> Result<Vec<Window>> {
        let rest = self.end(gateway, at)?;
        if let [.., before, _] = self.closed.as_mut_slice()
            && rest.seconds < before.seconds / 2.0
        {
            before.extend(&rest);
            self.closed.pop();
        }
        Ok(self.closed)
    }
}

impl Mark {
    fn read(tester: &Tester<'_, '_>, gateway: &mut Gateway<'_>, at: Duration) -> Result<Self> {
        Ok(Self {
            at,
            sent: tester.generator.sent()?,
            arrived: tester.far.counts()?.distinct,
            ring_full: visit(&tester.world.near, || tester::transmit_drops(NEAR))?,
            paused: tester.watch.stalls()?.packets,
            times: gateway.times()?,
            busy: gateway.busy_lately()?,
        })
    }

    fn since(&self, before: &Self) -> Window {
        let busy = self.busy.zip(before.busy).map(|(now, before)| now.saturating_sub(before));
        let cost = self.times.since(&before.times, busy);
        Window {
            end: self.at.as_secs_f64(),
            seconds: self.at.saturating_sub(before.at).as_secs_f64(),
            sent: self.sent - before.sent,
            arrived: self.arrived - before.arrived,
            lost: self.ring_full - before.ring_full,
            paused: self.paused - before.paused,
            worked: cost.worked,
            busy: busy.map_or(cost.worked, |busy| busy.as_secs_f64()),
        }
    }
}

/// Packets that no window's pauses explain: those of one do not excuse another's.
pub fn lost_at_work(windows: &[Window]) -> u64 {
    windows.iter().map(Window::lost_at_work).sum()
}

/// Says when a machine that became too slow for the rate explains most of what was lost, and which rate it carries.
pub fn too_slow(windows: &[Window]) -> Option<String> {
    let full: Vec<_> = windows.iter().filter(|window| window.lost_at_work() > 0 && window.load() >= FULL).collect();
    let lost = lost_at_work(windows);
    let lost_when_full: u64 = full.iter().map(|window| window.lost_at_work()).sum();
    if lost == 0 || lost_when_full * 2 < lost {
        return None;
    }
    let quickest = windows.iter().filter(|window| window.arrived > 0).map(Window::work_per_packet).fold(f64::INFINITY, f64::min);
    let slowest = full.iter().map(|window| window.work_per_packet()).fold(0.0, f64::max);
    Some(format!(
        "{lost_when_full} of them in {} of {} windows, in which the gateway's core had no time left: a packet took it up to {slowest:.0} ns there, \
         and {quickest:.0} ns in the quickest window. Where that is the machine's speed, ask for a rate that it carries when slow: --rate {:.0}",
        full.len(),
        windows.len(),
        0.9e9 / slowest
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(lost: u64, paused: u64, worked: f64) -> Window {
        Window { end: 10.0, seconds: 10.0, sent: 8_000_000, arrived: 8_000_000 - lost, lost, paused, worked, busy: worked }
    }

    #[test]
    fn a_window_says_what_a_packet_cost_and_how_full_the_core_was() {
        let window = window(1000, 400, 6.0);
        assert_eq!(window.lost_at_work(), 600);
        assert!((window.load() - 0.6).abs() < 1e-9);
        assert!((window.work_per_packet() - 750.1).abs() < 0.1);
        assert_eq!(Window::default().work_per_packet().to_bits(), 0);
    }

    #[test]
    fn a_window_and_the_rest_are_one() {
        let mut both = window(1000, 400, 6.0);
        both.extend(&Window { end: 10.5, seconds: 0.5, sent: 5, arrived: 1005, lost: 1, paused: 2, worked: 0.1, busy: 0.05 });
        let wanted = Window {
            end: 10.5,
            seconds: 10.5,
            sent: 8_000_005,
            arrived: 8_000_005,
            lost: 1001,
            paused: 402,
            worked: 6.1,
            busy: 6.05,
        };
        assert_eq!(both, wanted);
    }

    #[test]
    fn loss_in_full_windows_is_the_machines_speed_and_other_loss_is_not() {
        let told = too_slow(&[window(0, 0, 6.0), window(80_000, 0, 9.9), window(10, 0, 6.0)]).unwrap();
        assert!(told.starts_with("80000 of them in 1 of 3 windows"), "{told}");
        assert!(told.contains("750 ns in the quickest") && told.ends_with("--rate 720000"), "{told}");
        for other in [window(80_000, 0, 6.0), window(500, 500, 9.9), window(0, 0, 9.9)] {
            assert_eq!(too_slow(&[window(0, 0, 6.0), other]), None);
        }
    }
}
