//! The plot of a run: rates by the kernel's, and CPU time by the best bare forwarder's, over the number of flows.
//!
//! Pure: a report in, SVG out, in the colours of the other drawings, for light and dark screens. Called by `run`.

use std::fmt::Write as _;

use crate::cell::{Mix, ways};
use crate::gateway::Kind;
use crate::report::Report;

/// A panel's drawing area. **Units:** pixels.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 70.0;
/// From one panel to the next, across and down.
const ACROSS: f64 = 480.0;
const DOWN: f64 = 310.0;

/// Colours by class, for light and dark screens.
pub(crate) const STYLE: &str = "\
.bg{fill:#ffffff} .t{fill:#1f2933} .s{fill:#5b6875} .grid{stroke:#c3ccd6} .one{stroke:#52606d}
.kernel{stroke:#b7791f;fill:#b7791f} .bare{stroke:#52606d;fill:#52606d} .ours{stroke:#2f6fc4;fill:#2f6fc4}
@media (prefers-color-scheme: dark){
.bg{fill:#14191f} .t{fill:#e6ebf0} .s{fill:#a3b0bd} .grid{stroke:#3c4854} .one{stroke:#8694a3}
.kernel{stroke:#e0aa52;fill:#e0aa52} .bare{stroke:#a3b0bd;fill:#a3b0bd} .ours{stroke:#7db4f5;fill:#7db4f5}}";

/// One line of a panel.
struct Series {
    label: &'static str,
    class: &'static str,
    /// By number of flows; none where it was not measured.
    values: Vec<Option<f64>>,
}

/// Draws the report: two panels for each size and direction.
pub fn svg(report: &Report) -> String {
    let mut rows: Vec<(usize, bool)> = Vec::new();
    for mix in report.mixes() {
        if !rows.contains(&(mix.size, mix.both)) {
            rows.push((mix.size, mix.both));
        }
    }
    let (width, height) = (ACROSS * 2.0 + 20.0, DOWN * rows.len() as f64 + 40.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-labelledby=\"title desc\" font-family=\"system-ui, 'DejaVu Sans', Verdana, sans-serif\">\n\
         <title id=\"title\">Gateways side by side over veth, one core</title>\n\
         <desc id=\"desc\">For each size and direction: loss-free rate by the kernel's, and CPU time a packet by that of the best bare \
         forwarder, over the number of flows.</desc>\n<style>\n{STYLE}</style>\n\
         <rect class=\"bg\" x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\" rx=\"10\"/>\n"
    );
    for (row, (size, both)) in rows.into_iter().enumerate() {
        let mixes: Vec<_> = report.mixes().into_iter().filter(|mix| (mix.size, mix.both) == (size, both)).collect();
        let ways = ways(both);
        let top = DOWN * row as f64;
        let rate = format!("loss-free rate by the kernel's: {size} bytes, {ways}");
        text += &panel(0.0, top, &rate, &mixes, &rates(report, &mixes));
        let cost = format!("CPU time a packet by the bare one's: {size} bytes, {ways}");
        text += &panel(ACROSS, top, &cost, &mixes, &costs(report, &mixes));
    }
    let Report { commit, date, machine, .. } = report;
    let from = escaped(&format!("commit {commit}, {date}, {}, Linux {}", machine.processor, machine.kernel));
    let _ = writeln!(text, "<text class=\"s\" x=\"20\" y=\"{}\" font-size=\"12\">{from}</text>\n</svg>", height - 16.0);
    text
}

fn rates(report: &Report, mixes: &[Mix]) -> Vec<Series> {
    let by_kernel = |kind: Kind, mix: Mix| {
        let kernel = report.cell(Kind::Kernel, mix)?.loss_free;
        ratio(report.cell(kind, mix)?.loss_free, kernel)
    };
    let series = |label, class, kind| Series { label, class, values: mixes.iter().map(|&mix| by_kernel(kind, mix)).collect() };
    vec![
        series("kernel", "kernel", Kind::Kernel),
        series("bare forwarder", "bare", Kind::BareBusy),
        series("Portcullis", "ours", Kind::Portcullis),
    ]
}

fn costs(report: &Report, mixes: &[Mix]) -> Vec<Series> {
    let by_bare = |kind: Kind, mix: Mix| ratio(report.cell(kind, mix)?.cpu_ns, report.best_bare(mix)?.cpu_ns);
    let series = |label, class, kind| Series { label, class, values: mixes.iter().map(|&mix| by_bare(kind, mix)).collect() };
    vec![series("kernel", "kernel", Kind::Kernel), series("Portcullis", "ours", Kind::Portcullis)]
}

fn ratio(ours: f64, other: f64) -> Option<f64> {
    let ratio = ours / other;
    (ratio.is_finite() && ratio > 0.0).then_some(ratio)
}

/// One panel: a grid from 0, a line at 1, and the series.
fn panel(left: f64, top: f64, title: &str, mixes: &[Mix], series: &[Series]) -> String {
    let largest = series.iter().flat_map(|series| series.values.iter().flatten()).copied().fold(1.0, f64::max);
    let step = [0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0].into_iter().find(|step| largest / step <= 6.0).unwrap_or(100.0);
    let most = (largest / step).ceil() * step;
    let (x0, y0) = (left + LEFT, top + TOP + HEIGHT);
    let x = |position: usize| x0 + WIDTH * (position as f64 + 0.5) / mixes.len().max(1) as f64;
    let y = |value: f64| y0 - HEIGHT * value / most;
    let mut text = format!(
        "<text class=\"t\" x=\"{}\" y=\"{}\" font-size=\"13\" font-weight=\"bold\">{title}</text>\n",
        x0 - 30.0,
        top + 30.0
    );
    for line in 0..=(most / step).round() as usize {
        let value = line as f64 * step;
        let class = if (value - 1.0).abs() < 1e-9 { "one" } else { "grid" };
        let (y, end) = (y(value), x0 + WIDTH);
        let _ = writeln!(text, "<path class=\"{class}\" d=\"M{x0} {y:.1}H{end}\" fill=\"none\" stroke-width=\"1\"/>");
        let _ = writeln!(
            text,
            "<text class=\"s\" x=\"{}\" y=\"{:.1}\" font-size=\"11\" text-anchor=\"end\">{value}</text>",
            x0 - 8.0,
            y + 4.0
        );
    }
    for (position, mix) in mixes.iter().enumerate() {
        let (x, y, flows) = (x(position), y0 + 18.0, number(mix.flows));
        let _ = writeln!(text, "<text class=\"s\" x=\"{x:.1}\" y=\"{y}\" font-size=\"11\" text-anchor=\"middle\">{flows}</text>");
    }
    for (place, Series { label, class, values }) in series.iter().enumerate() {
        let points: Vec<_> = values.iter().enumerate().filter_map(|(position, value)| Some((x(position), y((*value)?)))).collect();
        let line: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        if line.len() > 1 {
            let _ = writeln!(text, "<path class=\"{class}\" d=\"M{}\" style=\"fill:none\" stroke-width=\"2\"/>", line.join("L"));
        }
        for (x, y) in points {
            let _ = writeln!(text, "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>");
        }
        let (x, y) = (x0 + 125.0 * place as f64 - 25.0, top + TOP - 18.0);
        let _ = writeln!(text, "<circle class=\"{class}\" cx=\"{x}\" cy=\"{}\" r=\"4\"/>", y - 4.0);
        let _ = writeln!(text, "<text class=\"t\" x=\"{}\" y=\"{y}\" font-size=\"12\">{label}</text>", x + 10.0);
    }
    let (x, y) = (x0 + WIDTH / 2.0, y0 + 36.0);
    let _ = writeln!(text, "<text class=\"s\" x=\"{x}\" y=\"{y}\" font-size=\"11\" text-anchor=\"middle\">flows</text>");
    text
}

/// A number of flows, short: `50 k`, `1 M`.
fn number(flows: u32) -> String {
    match flows {
        1_000_000.. if flows.is_multiple_of(1_000_000) => format!("{} M", flows / 1_000_000),
        1_000.. if flows.is_multiple_of(1_000) => format!("{} k", flows / 1_000),
        _ => flows.to_string(),
    }
}

/// Text as SVG takes it.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn the_plot_has_a_point_for_each_figure_and_nothing_outside() {
        let svg = svg(&report());
        // Three series and two, two numbers of flows each, and five dots of the legends.
        assert_eq!(svg.matches("<circle").count(), 3 * 2 + 2 * 2 + 5);
        assert!(svg.contains("64 bytes, one way") && svg.contains(">50 k<"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
    }

    #[test]
    fn nothing_measured_is_no_panic() {
        assert!(svg(&Report::default()).ends_with("</svg>\n"));
        assert_eq!([number(1), number(1_500), number(50_000), number(2_000_000)], ["1", "1500", "50 k", "2 M"]);
    }

    #[test]
    fn signs_of_the_language_are_escaped() {
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}
