//! The plots: time a packet and bytes a session over the count of sessions, as SVG.
//!
//! Knows a result and the targets; draws by hand, in the manner of the other pictures of docs/. Invariant: the same result gives the same
//! bytes, so that a plot changes only with what was measured.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::gateway::Mode;
use crate::memory::Pages;
use crate::report::Report;
use crate::rung::Measured;

/// A line of a plot.
struct Line {
    name: String,
    class: &'static str,
    points: Vec<(f64, f64)>,
}

/// A plot over the count of sessions, which is drawn logarithmically.
struct Plot {
    title: &'static str,
    unit: &'static str,
    lines: Vec<Line>,
    /// Sessions, value, what for.
    targets: Vec<(f64, f64, &'static str)>,
    /// What stands below.
    foot: String,
}

/// Draws the plots of a result into docs/.
pub(crate) fn write(report: &Report) -> Result<()> {
    for (name, plot) in [("time", time(report)), ("memory", memory(report))] {
        let file = Path::new("docs").join(format!("performance-{name}.svg"));
        std::fs::write(&file, draw(&plot))
            .with_context(|| format!("cannot write {}: run this at the top of the clone", file.display()))?;
        println!("drawn: {}", file.display());
    }
    Ok(())
}

fn time(report: &Report) -> Plot {
    let lines = [
        (Mode::Independent, true, "l1", "endpoint-independent mapping"),
        (Mode::Independent, false, "l2", "the same on 4 KiB pages"),
        (Mode::Dependent, true, "l3", "endpoint-dependent mapping"),
        (Mode::Bare, true, "l4", "UDP as bare mappings"),
    ];
    Plot {
        title: "Nanoseconds a packet, parse to verdict, median",
        unit: "ns",
        lines: lines.into_iter().filter_map(|line| line_of(report, line, |rung| rung.ns.median)).collect(),
        targets: vec![(1000.0, 20.0, "20"), (1_032_192.0, 35.0, "35"), (16_515_072.0, 60.0, "60")],
        foot: foot(report),
    }
}

fn memory(report: &Report) -> Plot {
    let lines = [
        (Mode::Independent, true, "l1", "endpoint-independent mapping (target 96)"),
        (Mode::Dependent, true, "l3", "endpoint-dependent mapping (target 72)"),
        (Mode::Bare, true, "l4", "UDP as bare mappings (target 40)"),
    ];
    let mut lines: Vec<_> = lines.into_iter().filter_map(|line| line_of(report, line, |rung| rung.bytes_per_session)).collect();
    // Fixed parts, which a session more does not cost.
    for line in &mut lines {
        line.points.retain(|&(sessions, _)| sessions > 100_000.0);
    }
    let last = 16_515_072.0;
    Plot {
        title: "Bytes a session, everything counted",
        unit: "bytes",
        lines,
        targets: vec![(last, 96.0, "96"), (last, 72.0, "72"), (last, 40.0, "40")],
        foot: foot(report),
    }
}

fn foot(report: &Report) -> String {
    let machine = &report.machine;
    let day = report.date.split('T').next().unwrap_or_default();
    format!("{}, Linux {}, commit {}, {day}; targets are crosses", machine.cpu, machine.kernel, report.commit)
}

fn line_of(
    report: &Report,
    (mode, huge, class, name): (Mode, bool, &'static str, &str),
    value: impl Fn(&Measured) -> f64,
) -> Option<Line> {
    let is_of = |rung: &&Measured| rung.mode == mode && (rung.pages != Pages::Ordinary) == huge;
    let points: Vec<_> = report.ladder.iter().filter(is_of).map(|rung| (f64::from(rung.sessions), value(rung))).collect();
    (!points.is_empty()).then(|| Line { name: name.into(), class, points })
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 480.0;
/// The plane within its margins: left, top, right, bottom.
const PLANE: [f64; 4] = [80.0, 60.0, 870.0, 380.0];
/// The sessions at the plane's left and right, as powers of ten.
const DECADES: [f64; 2] = [2.8, 7.4];

const STYLE: &str = "\
.bg{fill:#ffffff}
.t{fill:#1f2933} .s{fill:#5b6875}
.grid{stroke:#c3ccd6}
.l1{stroke:#2f6fc4} .l2{stroke:#7d8a97} .l3{stroke:#b7791f} .l4{stroke:#2f8a57}
.f1{fill:#2f6fc4} .f2{fill:#7d8a97} .f3{fill:#b7791f} .f4{fill:#2f8a57}
.x{stroke:#b83232}
@media (prefers-color-scheme: dark){
.bg{fill:#14191f}
.t{fill:#e6ebf0} .s{fill:#a3b0bd}
.grid{stroke:#3c4854}
.l1{stroke:#7db4f5} .l2{stroke:#a3b0bd} .l3{stroke:#e0aa52} .l4{stroke:#6cc795}
.f1{fill:#7db4f5} .f2{fill:#a3b0bd} .f3{fill:#e0aa52} .f4{fill:#6cc795}
.x{stroke:#ef8a8a}}";

fn x_of(sessions: f64) -> f64 {
    let [left, _, right, _] = PLANE;
    left + (sessions.log10() - DECADES[0]) / (DECADES[1] - DECADES[0]) * (right - left)
}

fn y_of(value: f64, top_value: f64) -> f64 {
    let [_, top, _, bottom] = PLANE;
    bottom - value / top_value * (bottom - top)
}

/// A round number at or above the largest value, in four steps.
fn top_of(plot: &Plot) -> f64 {
    let values = plot.lines.iter().flat_map(|line| line.points.iter().map(|&(_, value)| value));
    let most = values.chain(plot.targets.iter().map(|&(_, value, _)| value)).fold(1.0, f64::max);
    let step = 10_f64.powf((most / 4.0).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * step * 4.0);
    steps.into_iter().find(|&top| top >= most).unwrap_or(most)
}

fn draw(plot: &Plot) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" \
         aria-labelledby=\"title desc\" font-family=\"system-ui, 'DejaVu Sans', Verdana, sans-serif\">\n\
         <title id=\"title\">{title}</title>\n<desc id=\"desc\">{title}, over the count of live sessions. {foot}</desc>\n\
         <style>\n{STYLE}</style>\n<rect class=\"bg\" x=\"0\" y=\"0\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"10\"/>\n",
        title = plot.title,
        foot = escape(&plot.foot),
    );
    let top_value = top_of(plot);
    text(&mut svg, "t", (PLANE[0], 34.0), ("start", 15), plot.title);
    draw_grid(&mut svg, plot, top_value);
    for line in &plot.lines {
        draw_line(&mut svg, line, top_value);
    }
    for &(sessions, value, name) in &plot.targets {
        let (x, y) = (x_of(sessions), y_of(value, top_value));
        let (left, right, up, down) = (x - 5.0, x + 5.0, y - 5.0, y + 5.0);
        let path = format!("M{left:.1} {up:.1}L{right:.1} {down:.1}M{left:.1} {down:.1}L{right:.1} {up:.1}");
        push(
            &mut svg,
            &format!("<path class=\"x\" d=\"{path}\" fill=\"none\" stroke-width=\"1.6\"><title>target {name}</title></path>"),
        );
    }
    draw_legend(&mut svg, plot);
    text(&mut svg, "s", (PLANE[0], HEIGHT - 14.0), ("start", 11), &plot.foot);
    svg + "</svg>\n"
}

fn draw_grid(svg: &mut String, plot: &Plot, top_value: f64) {
    let [left, top, right, bottom] = PLANE;
    for quarter in 0..=4 {
        let value = top_value * f64::from(quarter) / 4.0;
        let y = y_of(value, top_value);
        push(svg, &format!("<path class=\"grid\" d=\"M{left} {y:.1}H{right}\" fill=\"none\" stroke-width=\"1\"/>"));
        text(svg, "s", (left - 8.0, y + 4.0), ("end", 12), &format!("{value}"));
    }
    for (sessions, name) in [(1e3, "1 k"), (1e4, "10 k"), (1e5, "100 k"), (1e6, "1 M"), (1e7, "10 M")] {
        let x = x_of(sessions);
        push(svg, &format!("<path class=\"grid\" d=\"M{x:.1} {top}V{bottom}\" fill=\"none\" stroke-width=\"1\"/>"));
        text(svg, "s", (x, bottom + 18.0), ("middle", 12), name);
    }
    text(svg, "s", (left - 8.0, top - 12.0), ("end", 12), plot.unit);
    text(svg, "s", (right, bottom + 18.0), ("end", 12), "sessions");
}

fn draw_line(svg: &mut String, line: &Line, top_value: f64) {
    let places: Vec<_> = line.points.iter().map(|&(sessions, value)| (x_of(sessions), y_of(value, top_value), value)).collect();
    let path: Vec<_> = places.iter().map(|(x, y, _)| format!("{x:.1} {y:.1}")).collect();
    push(svg, &format!("<path class=\"{}\" d=\"M{}\" fill=\"none\" stroke-width=\"2\"/>", line.class, path.join("L")));
    for (x, y, value) in places {
        let fill = line.class.replace('l', "f");
        push(svg, &format!("<circle class=\"{fill}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"><title>{value:.1}</title></circle>"));
    }
}

fn draw_legend(svg: &mut String, plot: &Plot) {
    for (at, line) in plot.lines.iter().enumerate() {
        let (x, y) = (PLANE[0] + (at % 2) as f64 * 400.0, PLANE[3] + 42.0 + (at / 2) as f64 * 18.0);
        push(svg, &format!("<path class=\"{}\" d=\"M{x} {:.1}h24\" fill=\"none\" stroke-width=\"2\"/>", line.class, y - 4.0));
        text(svg, "t", (x + 30.0, y), ("start", 12), &line.name);
    }
}

fn text(svg: &mut String, class: &str, (x, y): (f64, f64), (anchor, size): (&str, u32), words: &str) {
    let words = escape(words);
    push(
        svg,
        &format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{words}</text>"),
    );
}

fn push(svg: &mut String, element: &str) {
    // Writing into a string does not fail.
    let _ = writeln!(svg, "{element}");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(values: &[f64]) -> Plot {
        let points = values.iter().zip([1e3, 1e5, 1e7]).map(|(&value, sessions)| (sessions, value)).collect();
        let line = Line { name: "a & b".into(), class: "l1", points };
        Plot { title: "title", unit: "ns", lines: vec![line], targets: vec![(1e6, 35.0, "35")], foot: "<machine>".into() }
    }

    #[test]
    fn all_values_lie_within_the_plane() {
        for values in [[10.0, 20.0, 30.0], [100.0, 450.0, 999.0], [1.0, 2.0, 0.5]] {
            let plot = plot(&values);
            let top = top_of(&plot);
            assert!(values.iter().all(|&value| y_of(value, top) >= PLANE[1] && value <= top), "{values:?} under {top}");
        }
    }

    #[test]
    fn words_are_escaped_and_every_point_is_drawn() {
        let svg = draw(&plot(&[10.0, 20.0, 30.0]));
        assert!(svg.contains("a &amp; b") && svg.contains("&lt;machine>") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<circle").count(), 3);
    }
}
