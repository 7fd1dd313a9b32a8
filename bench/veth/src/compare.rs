//! This run beside the previous one: how Portcullis's ratios changed.
//!
//! Pure. Called by `run`. Ratios only: on another day the machine itself is another one.

use std::fmt::Write as _;

use crate::report::{Ratio, Report};

/// A change of less than this part is not worth a word.
const NOISE: f64 = 0.05;

/// The lines that say what changed since `before`, if the two have a mix in common.
pub fn changes(before: &Report, now: &Report) -> Option<String> {
    let mut text = format!("since {} of {} ({})\n", before.commit, before.date, before.mode);
    for ratio in &now.ratios {
        let Some(old) = before.ratios.iter().find(|old| old.mix == ratio.mix) else { continue };
        let _ = write!(text, "  {}:", ratio.mix);
        let changes: Vec<_> =
            named(old).into_iter().zip(named(ratio)).filter_map(|((what, old), (_, now))| change(what, old?, now?)).collect();
        let _ = writeln!(text, " {}", if changes.is_empty() { "as before".to_owned() } else { changes.join(", ") });
    }
    (text.lines().count() > 1).then_some(text)
}

fn named(ratio: &Ratio) -> [(&'static str, Option<f64>); 3] {
    [
        ("rate by the kernel's", ratio.loss_free_by_kernel),
        ("cpu by the bare one's", ratio.cpu_by_bare),
        ("p99 by the kernel's", ratio.p99_by_kernel),
    ]
}

fn change(what: &str, old: f64, now: f64) -> Option<String> {
    ((now / old - 1.0).abs() >= NOISE).then(|| format!("{what} {old:.2} -> {now:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_changed_ratio_is_told_and_a_steady_one_is_not() {
        let (before, mut now) = (report(), report());
        now.ratios[1].cpu_by_bare = Some(1.5);
        let text = changes(&before, &now).unwrap();
        assert!(text.contains("1000 flows, 64 bytes, one way: as before"), "{text}");
        assert!(text.contains("50000 flows, 64 bytes, one way: cpu by the bare one's 1.10 -> 1.50"), "{text}");
        assert_eq!(changes(&Report::default(), &now), None);
    }
}
