//! The report as one page of HTML, with its plots inside it.
//!
//! Pure. Called by `report`. Invariant: the page stands alone, without scripts or other files.

use std::fmt::Write as _;

use super::case::{Case, LossFree, Way};
use super::plot::{Frame, Point, Series, escape, plot, short};
use super::report::{Report, title};
use super::search::Limit;
use super::trial::{Counting, Trial};

const STYLE: &str = "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;line-height:1.4}\
table{border-collapse:collapse;margin:1em 0}th,td{border-bottom:1px solid #ccc;padding:.25em .7em;text-align:right}\
th:first-child,td:first-child{text-align:left}.fault{color:#a00}svg{display:block;margin:1em 0;max-width:100%;height:auto}";

/// The page.
pub(super) fn page(report: &Report) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>pktgen {}</title><style>{STYLE}</style></head><body>\n\
         <h1>Measured with pktgen</h1>\n",
        escape(&report.started)
    );
    head(&mut html, report);
    let faults = report.faults();
    if !faults.is_empty() {
        html += "<h2 class=\"fault\">What is wrong</h2>\n<ul>\n";
        for fault in faults {
            let _ = writeln!(html, "<li class=\"fault\">{}</li>", escape(&fault));
        }
        html += "</ul>\n";
    }
    html += "<h2>Rates without loss</h2>\n";
    rates(&mut html, report);
    by_flows(&mut html, report);
    html += "<h2>Offered and delivered</h2>\n<p>Each point is a trial: solid when nothing was lost, or no more than may be. \
             On the dashed line all that was sent has arrived.</p>\n";
    by_trial(&mut html, report);
    html += "<h2>Trials</h2>\n";
    report.cases.iter().for_each(|case| trials(&mut html, case));
    html + "</body></html>\n"
}

fn head(html: &mut String, report: &Report) {
    let settings = &report.settings;
    let counting = match settings.counting {
        Counting::Xdp => "pktgen's packets alone, by an XDP program at the far port",
        Counting::Port => "the far port's own counter",
    };
    let confirm = match settings.confirm_seconds {
        0.0 => "none".to_owned(),
        seconds => format!("{seconds} s"),
    };
    let cards = report.ports.iter().map(|card| format!("{} ({} {})", card.interface, card.driver, card.firmware));
    let rows = [
        ("Gateway", report.gateway.clone()),
        ("Note", report.note.clone()),
        ("Began", report.started.clone()),
        ("Tester", format!("{} x {}, Linux {}", report.tester.processors, report.tester.processor, report.tester.kernel)),
        ("Ports, inside and outside", cards.collect::<Vec<_>>().join("; ")),
        ("Queues of a sending port", settings.queues.to_string()),
        ("Trial", format!("{} s; the confirming one: {confirm}", settings.trial_seconds)),
        ("May be lost", format!("{} %", settings.tolerance * 100.0)),
        ("Counted", counting.to_owned()),
        ("UDP checksums", if settings.checksums { "right" } else { "zero" }.to_owned()),
        ("Each packet is sent", if settings.burst == 1 { "once".to_owned() } else { format!("{} times in a row", settings.burst) }),
    ];
    *html += "<table>\n";
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = writeln!(html, "<tr><td>{name}</td><td style=\"text-align:left\">{}</td></tr>", escape(value));
    }
    *html += "</table>\n";
}

fn rates(html: &mut String, report: &Report) {
    *html += "<table>\n<tr><th>Way</th><th>Frame, bytes</th><th>Flows</th><th>Packets/s each way</th><th>Forwarded packets/s</th>\
              <th>Gbit/s each way</th><th>Limit</th></tr>\n";
    for case in &report.cases {
        let subject = &case.subject;
        let found = case.loss_free.as_ref().map_or_else(|| "<td>none</td><td></td><td></td><td></td>".to_owned(), found);
        let _ =
            writeln!(html, "<tr><td>{}</td><td>{}</td><td>{}</td>{found}</tr>", subject.way.words(), subject.frame, subject.flows);
    }
    *html += "</table>\n";
}

fn found(found: &LossFree) -> String {
    let limit = match found.limit {
        Limit::Loss => "loss above it",
        Limit::Generator => "the generator",
        Limit::None => "",
    };
    let confirmed = if found.confirmed { "" } else { ", not confirmed" };
    format!(
        "<td>{}</td><td>{}</td><td>{:.2}</td><td>{limit}{confirmed}</td>",
        short(found.packets_per_second as f64),
        short(found.forwarded_per_second as f64),
        found.wire_gigabits
    )
}

/// The values of `key` among the cases, each once, in their order.
fn distinct<T: PartialEq>(cases: &[Case], key: impl Fn(&Case) -> T) -> Vec<T> {
    let mut seen = Vec::new();
    for value in cases.iter().map(key) {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// A plot for each way: the rate without loss over the number of flows. Nothing when there is one number only.
fn by_flows(html: &mut String, report: &Report) {
    let cases = &report.cases;
    let flows = distinct(cases, |case| case.subject.flows);
    if flows.len() < 2 {
        return;
    }
    for way in distinct(cases, |case| case.subject.way) {
        let series = |frame: u32| Series {
            name: format!("{frame} bytes"),
            points: cases
                .iter()
                .filter(|case| (case.subject.way, case.subject.frame) == (way, frame))
                .filter_map(|case| point(case, &flows))
                .collect(),
        };
        let series: Vec<_> = distinct(cases, |case| case.subject.frame).into_iter().map(series).collect();
        let title = format!("Rate without loss, {}", way.words());
        let names = flows.iter().map(|&flows| short(flows as f64)).collect();
        *html += &plot(&Frame { title: &title, x: "flows", y: "packets/s", names, diagonal: false }, &series);
    }
}

fn point(case: &Case, flows: &[u64]) -> Option<Point> {
    let at = flows.iter().position(|&flows| flows == case.subject.flows)?;
    let rate = case.loss_free.as_ref()?.packets_per_second;
    Some(Point { x: at as f64, y: rate as f64, solid: true })
}

/// A plot for each way and frame size: what arrived over what was sent.
fn by_trial(html: &mut String, report: &Report) {
    let cases = &report.cases;
    for (way, frame) in distinct(cases, |case| (case.subject.way, case.subject.frame)) {
        let same = cases.iter().filter(|case| (case.subject.way, case.subject.frame) == (way, frame));
        let series: Vec<_> = same
            .map(|case| {
                let mut points: Vec<_> = case.trials.iter().map(offered_and_delivered).collect();
                points.sort_by(|a, b| a.x.total_cmp(&b.x));
                Series { name: format!("{} flows", short(case.subject.flows as f64)), points }
            })
            .collect();
        let title = format!("{}, frames of {frame} bytes", way.words());
        let x = if way == Way::Outbound || way == Way::Inbound { "packets/s offered" } else { "packets/s offered each way" };
        *html += &plot(&Frame { title: &title, x, y: "packets/s delivered each way", diagonal: true, ..Frame::default() }, &series);
    }
}

fn offered_and_delivered(trial: &Trial) -> Point {
    let each = trial.delivered as f64 / trial.legs.len().max(1) as f64;
    Point { x: trial.offered as f64, y: each, solid: trial.passed }
}

fn trials(html: &mut String, case: &Case) {
    let _ = writeln!(
        html,
        "<h3>{}</h3>\n<table>\n<tr><th>Packets/s offered</th><th>Seconds</th><th>Direction</th><th>Sent</th><th>Received</th><th>Lost</th>\
         <th>Lost by the tester's ports</th><th>Received by queue</th><th></th></tr>",
        title(case)
    );
    for trial in &case.trials {
        for leg in &trial.legs {
            let queues: Vec<_> = leg.queues.iter().map(ToString::to_string).collect();
            let _ = writeln!(
                html,
                "<tr><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                trial.offered,
                trial.seconds,
                leg.direction.word(),
                leg.sent,
                leg.received,
                leg.lost,
                leg.lost_by_sender + leg.lost_by_receiver,
                queues.join(" "),
                if trial.passed { "passed" } else { "lost" }
            );
        }
    }
    *html += "</table>\n";
    let losses = case.port_losses.iter().flat_map(|(port, losses)| losses.iter().map(move |(name, count)| (port, name, count)));
    let losses: Vec<_> = losses.map(|(port, name, count)| format!("{port} {name} {count}")).collect();
    if !losses.is_empty() {
        let _ = writeln!(html, "<p>The tester's drivers have counted meanwhile: {}.</p>", escape(&losses.join("; ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pktgen::report::tests::report;

    #[test]
    fn the_page_has_rates_plots_and_trials_and_stands_alone() {
        let mut report = report();
        let mut more = report.cases[0].clone();
        more.subject.flows = 50_000;
        report.cases.push(more);
        let html = page(&report);
        assert_eq!(html.matches("<svg ").count(), 2, "rate over flows, and delivered over offered");
        assert_eq!(html.matches("<circle ").count(), 2 + 4);
        assert!(html.contains("<td>500 k</td><td>500 k</td><td>0.34</td><td>loss above it</td>"), "{html}");
        assert!(
            html.contains("<td>1000000</td><td>1.0</td><td>outbound</td><td>1000000</td><td>700000</td><td>300000</td>"),
            "{html}"
        );
        assert!(!html.contains("<script") && !html.contains("src=") && !html.contains("href="));
    }

    #[test]
    fn what_people_have_written_is_text_and_no_html() {
        let html = page(&report());
        assert!(html.contains("a &lt;gateway&gt; &amp; more") && !html.contains("<gateway>"));
    }

    #[test]
    fn faults_come_first_and_a_case_without_a_rate_says_so() {
        let mut report = report();
        report.cases[0].loss_free = None;
        report.cases[0].faults.push("nothing passes".into());
        let html = page(&report);
        let (fault, rates) = (html.find("nothing passes").unwrap(), html.find("Rates without loss").unwrap());
        assert!(fault < rates && html.contains("<td>none</td>"));
    }
}
