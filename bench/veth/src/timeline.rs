//! The picture of a soak: window by window what was lost, in pauses and in none, and what a packet cost.
//!
//! Pure: windows in, SVG out, in the colours of the other drawings. Called by the soak. Tests: below.

use std::fmt::Write as _;

use crate::plot::{STYLE, escaped};
use crate::windows::Window;

/// The drawing area of both panels, and where it begins. **Units:** pixels.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 70.0;
/// Where the panels end, from above.
const LOST: f64 = 260.0;
const COST: f64 = 500.0;
/// Between two groups of windows.
const GAP: f64 = 14.0;
/// The losses that the scale has lines for, each ten times the one below; what is more ends at the highest.
const DECADES: i32 = 6;

/// Windows that followed each other, and whose they are.
pub struct Group<'w> {
    /// What is written above them.
    pub label: String,
    /// The windows.
    pub windows: &'w [Window],
}

/// Draws all groups, side by side; `from` says what was measured, when and where.
pub fn svg(groups: &[Group<'_>], from: &str) -> String {
    let (width, height) = (LEFT + WIDTH + 30.0, COST + 60.0);
    let from = escaped(from);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-labelledby=\"title desc\" font-family=\"system-ui, 'DejaVu Sans', Verdana, sans-serif\">\n\
         <title id=\"title\">A soak, window by window</title>\n\
         <desc id=\"desc\">Above: packets lost in each window of some seconds, in all, and of it in no pause of the machine. Below: the gateway's time \
         for a packet.</desc>\n<style>\n{STYLE}</style>\n<rect class=\"bg\" x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\" rx=\"10\"/>\n\
         <text class=\"t\" x=\"40\" y=\"30\" font-size=\"13\" font-weight=\"bold\">packets lost in each window</text>\n\
         <text class=\"t\" x=\"40\" y=\"{}\" font-size=\"13\" font-weight=\"bold\">the gateway's time for a packet, ns</text>\n",
        COST - HEIGHT - 22.0
    );
    for (place, (label, class)) in [("lost in all", "bare"), ("of it in no pause of the machine", "ours")].into_iter().enumerate() {
        let x = 300.0 + 120.0 * place as f64;
        let _ = writeln!(text, "<rect class=\"{class}\" x=\"{x}\" y=\"21\" width=\"10\" height=\"10\"/>");
        let _ = writeln!(text, "<text class=\"t\" x=\"{}\" y=\"30\" font-size=\"12\">{label}</text>", x + 16.0);
    }
    let dearest = groups.iter().flat_map(|group| group.windows).map(Window::work_per_packet).fold(1.0, f64::max);
    let most = (dearest / 500.0).ceil() * 500.0;
    for decade in 0..=DECADES {
        line(&mut text, LOST - HEIGHT * f64::from(decade) / f64::from(DECADES), &10_u64.pow(decade.unsigned_abs()).to_string());
    }
    for step in 0..=4 {
        let part = f64::from(step) / 4.0;
        line(&mut text, COST - HEIGHT * part, &format!("{:.0}", most * part));
    }
    let windows: usize = groups.iter().map(|group| group.windows.len()).sum();
    let step = (WIDTH - GAP * groups.len().saturating_sub(1) as f64) / windows.max(1) as f64;
    let mut x = LEFT;
    for Group { label, windows } in groups {
        let (label, below) = (escaped(label), LOST - HEIGHT - 10.0);
        let _ = writeln!(text, "<text class=\"s\" x=\"{x:.1}\" y=\"{below}\" font-size=\"11\">{label}</text>");
        for window in *windows {
            bar(&mut text, "bare", x, step * 0.8, window.lost);
            bar(&mut text, "ours", x, step * 0.8, window.lost_at_work());
            let cost = COST - HEIGHT * window.work_per_packet() / most;
            let (width, thick) = (step * 0.8, 3.0);
            let _ = writeln!(
                text,
                "<rect class=\"ours\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{thick}\"/>",
                cost - thick / 2.0
            );
            x += step;
        }
        x += GAP;
    }
    let _ = writeln!(text, "<text class=\"s\" x=\"20\" y=\"{}\" font-size=\"12\">{from}</text>\n</svg>", height - 16.0);
    text
}

/// A line of the grid, with its number.
fn line(text: &mut String, y: f64, number: &str) {
    let end = LEFT + WIDTH;
    let _ = writeln!(text, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{end}\" fill=\"none\" stroke-width=\"1\"/>");
    let (x, y) = (LEFT - 8.0, y + 4.0);
    let _ = writeln!(text, "<text class=\"s\" x=\"{x}\" y=\"{y:.1}\" font-size=\"11\" text-anchor=\"end\">{number}</text>");
}

/// A bar from the bottom of the upper panel; none where nothing was lost.
fn bar(text: &mut String, class: &str, x: f64, width: f64, lost: u64) {
    if lost > 0 {
        // One packet is seen, too.
        let height = (HEIGHT * (lost as f64).log10() / f64::from(DECADES)).clamp(2.0, HEIGHT);
        let y = LOST - height;
        let _ = writeln!(text, "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_has_its_cost_and_a_bar_for_each_kind_of_loss() {
        let window = |lost, paused| Window { lost, paused, arrived: 1000, worked: 1e-3, seconds: 1.0, ..Window::default() };
        let windows = [window(0, 0), window(100, 100), window(100, 40), window(u64::MAX, 0)];
        let groups = [Group { label: "a & b".into(), windows: &windows }, Group { label: "none".into(), windows: &[] }];
        let svg = svg(&groups, "commit <x>");
        // The ground, two of the legend, four costs, three losses, two of them in no pause.
        assert_eq!(svg.matches("<rect").count(), 1 + 2 + 4 + 3 + 2);
        assert!(svg.contains("a &amp; b") && svg.contains("commit &lt;x&gt;") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
