//! Plots as SVG: a few lines with points, two axes.
//!
//! Pure. Called by `page`. Invariant: every point is inside the frame, and the text is escaped.

use std::fmt::Write as _;

/// The drawing's size and its margins. **Units:** pixels. Chosen to stand beside text.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 48.0;
/// Lines of the grid, about.
const TICKS: f64 = 5.0;
/// Told apart also by people who see red and green alike (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"];

/// A point. One that is not solid is drawn hollow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) solid: bool,
}

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<Point>,
}

/// What is drawn around the series.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
    /// Names for x = 0, 1, ... instead of numbers.
    pub(super) names: Vec<String>,
    /// Draws the line on which y is x.
    pub(super) diagonal: bool,
}

/// Where values are on the drawing.
#[derive(Clone, Copy, Debug)]
struct Scale {
    /// The values at the ends of the axes; both begin at 0.
    x_top: f64,
    y_top: f64,
}

impl Scale {
    fn of(frame: &Frame<'_>, series: &[Series]) -> Self {
        let most = |value: fn(&Point) -> f64| series.iter().flat_map(|series| &series.points).map(value).fold(0.0, f64::max);
        let named = || (frame.names.len() as f64 - 1.0).max(1.0);
        let x_top = if frame.names.is_empty() { top(most(|point| point.x)) } else { named() };
        Self { x_top, y_top: top(most(|point| point.y)) }
    }

    fn x(self, value: f64) -> f64 {
        LEFT + value / self.x_top * (WIDTH - LEFT - RIGHT)
    }

    fn y(self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.y_top * (HEIGHT - TOP - BOTTOM)
    }
}

/// Draws a plot. Both axes begin at 0.
pub(super) fn plot(frame: &Frame<'_>, series: &[Series]) -> String {
    let scale = Scale::of(frame, series);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    axes(&mut svg, frame, scale);
    for (at, series) in series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        text(&mut svg, (WIDTH - RIGHT + 14.0, TOP + 14.0 + 18.0 * at as f64), "start", colour, &series.name);
        marks(&mut svg, series, colour, scale);
    }
    svg + "</svg>\n"
}

/// The title, the axes with their ticks, the grid, and the diagonal.
fn axes(svg: &mut String, frame: &Frame<'_>, scale: Scale) {
    const GREY: &str = "#444";
    text(svg, (LEFT, 14.0), "start", "#000", frame.title);
    text(svg, (scale.x(scale.x_top / 2.0), HEIGHT - 10.0), "middle", GREY, frame.x);
    text(svg, (8.0, TOP - 4.0), "start", GREY, frame.y);
    for tick in ticks(scale.y_top) {
        let y = scale.y(tick);
        text(svg, (LEFT - 6.0, y + 4.0), "end", GREY, &short(tick));
        let _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT);
    }
    let below = HEIGHT - BOTTOM + 16.0;
    let numbers = ticks(scale.x_top).filter(|_| frame.names.is_empty()).map(|tick| (tick, short(tick)));
    let names = frame.names.iter().enumerate().map(|(at, name)| (at as f64, name.clone()));
    for (value, name) in numbers.chain(names) {
        text(svg, (scale.x(value), below), "middle", GREY, &name);
    }
    if frame.diagonal {
        let end = scale.x_top.min(scale.y_top);
        let (x, y) = (scale.x(end), scale.y(end));
        let line = format!("M{LEFT:.1} {:.1}L{x:.1} {y:.1}", HEIGHT - BOTTOM);
        let _ = writeln!(svg, "<path d=\"{line}\" stroke=\"#999\" stroke-dasharray=\"4\"/>");
    }
}

/// A series: a line, and a circle for each point.
fn marks(svg: &mut String, series: &Series, colour: &str, scale: Scale) {
    let places: Vec<_> = series.points.iter().map(|point| format!("{:.1},{:.1}", scale.x(point.x), scale.y(point.y))).collect();
    let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", places.join(" "));
    for point in &series.points {
        let (x, y, fill) = (scale.x(point.x), scale.y(point.y), if point.solid { colour } else { "#fff" });
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{fill}\" stroke=\"{colour}\"/>");
    }
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, colour: &str, words: &str) {
    let (x, y) = at;
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>", escape(words));
}

/// A round number not below `most`, and above 0.
fn top(most: f64) -> f64 {
    if most > 0.0 { (most / step(most)).ceil() * step(most) } else { 1.0 }
}

/// From one tick to the next: 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let rough = most / TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|&step| step >= rough * 0.999).unwrap_or(10.0 * power)
}

fn ticks(top: f64) -> impl Iterator<Item = f64> {
    let step = step(top);
    (0..=(top / step).round() as u32).map(move |number| f64::from(number) * step)
}

/// A number as people write it: `1.5 M`, `300 k`.
pub(super) fn short(value: f64) -> String {
    let (value, unit) = match value {
        _ if value >= 1e6 => (value / 1e6, " M"),
        _ if value >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = format!("{value:.3}");
    format!("{}{unit}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// Text for HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(svg: &str, attribute: &str) -> Vec<f64> {
        let start = format!("{attribute}=\"");
        svg.split(&start).skip(1).map(|part| part.split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn every_point_is_within_the_frame() {
        for most in [1.0, 7.0, 999.0, 1_488_095.0, 14_880_952.0] {
            let points = vec![Point { x: 0.0, y: 0.0, solid: true }, Point { x: most, y: most * 0.9, solid: false }];
            let svg = plot(&Frame { diagonal: true, ..Frame::default() }, &[Series { name: "one".into(), points }]);
            let (xs, ys) = (numbers(&svg, "cx"), numbers(&svg, "cy"));
            assert_eq!((xs.len(), ys.len()), (2, 2));
            assert!(xs.iter().all(|&x| (LEFT..=WIDTH - RIGHT).contains(&x)), "{xs:?}");
            assert!(ys.iter().all(|&y| (TOP..=HEIGHT - BOTTOM).contains(&y)), "{ys:?}");
        }
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (most, wanted) in [(0.0, 1.0), (1.0, 1.0), (7.3, 8.0), (1_488_095.0, 1_500_000.0), (1001.0, 1200.0)] {
            assert!((top(most) - wanted).abs() < wanted * 1e-9, "{most}: {}", top(most));
        }
        assert_eq!(ticks(1_500_000.0).count(), 4);
    }

    #[test]
    fn numbers_and_text_are_for_people() {
        assert_eq!([0.0, 20.0, 300_000.0, 1_500_000.0].map(short), ["0", "20", "300 k", "1.5 M"]);
        let series = [Series { name: "<a> & b".into(), points: Vec::new() }];
        let svg = plot(&Frame { names: vec!["x".into()], ..Frame::default() }, &series);
        assert!(svg.contains("&lt;a&gt; &amp; b") && !svg.contains("NaN"), "{svg}");
    }
}
