//! The figures as SVG, each once for light and once for dark pages.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use crate::results::Results;
use crate::table::{Of, figure, number, title};

/// Colours of a page: background, text, secondary text, lines, then one for each program.
struct Palette {
    name: &'static str,
    ground: &'static str,
    text: &'static str,
    faint: &'static str,
    line: &'static str,
    peers: [&'static str; 4],
}

const PALETTES: [Palette; 2] = [
    Palette {
        name: "light",
        ground: "#ffffff",
        text: "#1f2328",
        faint: "#59636e",
        line: "#d1d9e0",
        peers: ["#0969da", "#2da44e", "#c2680a", "#8c959f"],
    },
    Palette {
        name: "dark",
        ground: "#0d1117",
        text: "#f0f6fc",
        faint: "#9198a1",
        line: "#3d444d",
        peers: ["#4493f8", "#3fb950", "#db8b2f", "#7d8590"],
    },
];

const PEERS: [&str; 4] = ["relay", "nginx", "haproxy", "reference"];
const WIDTH: f64 = 860.0;

/// Writes every plot for which there are figures.
pub fn draw(results: &Results, folder: &Path) -> io::Result<()> {
    let cost = [
        ("1 connection, µs", "cpu/1", Of::Itself, 1.0),
        ("64 connections, µs", "cpu/64", Of::Itself, 1.0),
        ("512 connections, µs", "cpu/512", Of::Itself, 1.0),
        ("55 KB up, 400 events down, µs", "cpu/real", Of::Itself, 1.0),
        ("one event, 1,000 streams, µs", "streams/cpu", Of::Itself, 1.0),
        ("memory of one stream, KiB", "streams/bytes", Of::Itself, 1.0 / 1024.0),
    ];
    let latency = [
        ("1 connection, p50", "latency/1 at 1000/p50", Of::Added, 1.0),
        ("1 connection, p99", "latency/1 at 1000/p99", Of::Added, 1.0),
        ("1 connection, p99.9", "latency/1 at 1000/p99.9", Of::Added, 1.0),
        ("64 connections, p50", "latency/64 at 5000/p50", Of::Added, 1.0),
        ("64 connections, p99", "latency/64 at 5000/p99", Of::Added, 1.0),
        ("64 connections, p99.9", "latency/64 at 5000/p99.9", Of::Added, 1.0),
    ];
    for palette in &PALETTES {
        let plots = [
            (
                "cost",
                bars(results, palette, "What a request, an event, an open stream costs", &cost, 4),
            ),
            (
                "latency",
                bars(
                    results,
                    palette,
                    "Latency added, µs, at 1,000 requests/s (1 connection) and 5,000 (64)",
                    &latency,
                    3,
                ),
            ),
            ("scale", scale(results, palette)),
        ];
        for (name, plot) in plots {
            if let Some(plot) = plot {
                fs::write(folder.join(format!("{name}-{}.svg", palette.name)), plot)?;
            }
        }
    }
    Ok(())
}

struct Svg<'a> {
    palette: &'a Palette,
    body: String,
}

impl Svg<'_> {
    fn new<'a>(palette: &'a Palette, heading: &str) -> Svg<'a> {
        let mut svg = Svg { palette, body: String::new() };
        svg.text(
            16.0,
            26.0,
            "start",
            palette.text,
            &format!("<tspan font-weight=\"600\">{heading}</tspan>"),
        );
        svg
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, colour: &str, text: &str) {
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{colour}">{text}</text>"#
        );
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let colour = self.palette.line;
        let _ = writeln!(
            self.body,
            r#"<path d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}" stroke="{colour}" fill="none"/>"#
        );
    }

    fn finish(self, height: f64) -> String {
        let (ground, body) = (self.palette.ground, self.body);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"{ground}\"/>\n{body}</svg>\n"
        )
    }
}

/// Six panels with a bar for each program; shorter is better. The reference does not set the scale:
/// its bars are cut off at the edge of the panel.
fn bars(
    results: &Results,
    palette: &Palette,
    heading: &str,
    panels: &[(&str, &str, Of, f64)],
    peers: usize,
) -> Option<String> {
    const COLUMN: f64 = (WIDTH - 16.0) / 3.0;
    const NAMES: f64 = 76.0;
    const BAR: f64 = COLUMN - NAMES - 72.0;
    let row = 24.0;
    let panel = 34.0 + row * peers as f64 + 14.0;
    let mut svg = Svg::new(palette, &format!("{heading}; shorter is better"));
    let mut drawn = false;
    for (index, (name, metric, of, factor)) in panels.iter().enumerate() {
        let (x, y) = (16.0 + COLUMN * (index % 3) as f64, 46.0 + panel * (index / 3) as f64);
        svg.text(x, y + 16.0, "start", palette.text, name);
        let value = |peer: &str| figure(results, metric, *of, peer).map(|value| value * factor);
        let most = PEERS[..3].iter().filter_map(|peer| value(peer)).fold(0.0, f64::max);
        for (at, peer) in PEERS[..peers].iter().enumerate() {
            let Some(value) = value(peer) else { continue };
            drawn = true;
            let top = y + 28.0 + row * at as f64;
            svg.text(x, top + 12.0, "start", palette.faint, title(peer));
            let full = value / most.max(f64::MIN_POSITIVE);
            let (length, colour) = (BAR * full.clamp(0.004, 1.12), palette.peers[at]);
            let left = x + NAMES;
            let _ = writeln!(
                svg.body,
                r#"<rect x="{left:.1}" y="{top:.1}" width="{length:.1}" height="16" rx="2" fill="{colour}"/>"#
            );
            if full > 1.12 {
                let cut = left + BAR * 0.98;
                let _ = writeln!(
                    svg.body,
                    r#"<path d="M{cut:.1} {:.1}l5 -18" stroke="{}" stroke-width="4"/>"#,
                    top + 17.0,
                    palette.ground
                );
            }
            svg.text(left + length + 6.0, top + 12.5, "start", palette.text, &number(value));
        }
    }
    drawn.then(|| svg.finish(46.0 + panel * panels.len().div_ceil(3) as f64))
}

/// A line of a plot with two logarithmic axes: name, colour, points.
struct Series {
    name: &'static str,
    colour: &'static str,
    points: Vec<(f64, f64)>,
}

/// This relay's cost against streams and against the size of a body.
fn scale(results: &Results, palette: &Palette) -> Option<String> {
    let series = |name, colour, form: &str| {
        let point = |step: u64| {
            let metric = form.replace('*', &step.to_string());
            results.median(&metric, "relay").map(|value| (step as f64, value))
        };
        let points = results.steps(form).into_iter().filter_map(point).collect();
        Series { name, colour: palette.peers[colour], points }
    };
    let bodies = |what| {
        [
            series("upload: ", 2, &format!("scale/up/*/{what}")),
            series("answer: ", 0, &format!("scale/down/*/{what}")),
        ]
    };
    let streams = |what| [series("", 0, &format!("scale/streams/*/{what}"))];
    let mut svg =
        Svg::new(palette, "This relay alone, on one core; dashed: the straight line a + b·x");
    let panels: [(&str, &[Series], [Format; 2], Law); 4] = [
        (
            "CPU, % of a core, by open streams (1 event/s each)",
            &streams("cpu"),
            [plain, percent],
            |a, b| format!("{a:.2} % + {:.2} % per 1,000 streams", b * 1e3),
        ),
        ("resident memory, by open streams", &streams("resident"), [plain, mebibytes], |a, b| {
            format!("{a:.1} MiB + {:.1} KiB per stream", b * 1024.0)
        }),
        ("CPU time, by size of the body", &bodies("cpu"), [bytes, seconds], |a, b| {
            format!("{:.0} µs + 1 s per {} MiB", a * 1e6, number((1.0 / b / MIB).round()))
        }),
        (
            "peak of resident memory, by size of the body",
            &bodies("peak"),
            [bytes, mebibytes],
            |a, b| format!("{a:.1} MiB + {:.1} KiB per MiB", b.max(0.0) * 1024.0 * MIB),
        ),
    ];
    for (index, (name, series, labels, law)) in panels.iter().enumerate() {
        if series.iter().any(|series| series.points.len() < 2) {
            return None;
        }
        let corner = (425.0 * (index % 2) as f64, 44.0 + 260.0 * (index / 2) as f64);
        log_log(&mut svg, corner, name, series, *labels, *law);
    }
    Some(svg.finish(44.0 + 260.0 + 290.0))
}

fn log_log(
    svg: &mut Svg,
    (left, top): (f64, f64),
    name: &str,
    series: &[Series],
    [x_label, y_label]: [Format; 2],
    law: Law,
) {
    let palette = svg.palette;
    let points = || series.iter().flat_map(|series| &series.points);
    let range = |pick: fn(&(f64, f64)) -> f64| {
        let low = points().map(pick).fold(f64::MAX, f64::min);
        (low, points().map(pick).fold(0.0, f64::max))
    };
    let (x_range, y_range) = (range(|p| p.0), range(|p| p.1));
    let (bottom, top_decade) = (y_range.0.log10().floor(), y_range.1.log10().ceil());
    let (x0, x1, y0, y1) = (left + 66.0, left + 400.0, top + 196.0, top + 36.0);
    let x_at = |x: f64| x0 + (x / x_range.0).ln() / (x_range.1 / x_range.0).ln() * (x1 - x0);
    let y_at = |y: f64| y0 + (y.log10() - bottom) / (top_decade - bottom) * (y1 - y0);
    svg.text(left + 16.0, top + 16.0, "start", palette.text, name);
    for decade in bottom as i32..=top_decade as i32 {
        let value = 10f64.powi(decade);
        svg.line((x0, y_at(value)), (x1, y_at(value)));
        svg.text(x0 - 8.0, y_at(value) + 4.5, "end", palette.faint, &y_label(value));
    }
    let steps: Vec<f64> = series[0].points.iter().map(|point| point.0).collect();
    for (at, step) in steps.iter().enumerate() {
        // Of many, every third is labelled, counted from the last.
        if (steps.len() - 1 - at).is_multiple_of(steps.len().div_ceil(4)) {
            svg.text(x_at(*step), y0 + 20.0, "middle", palette.faint, &x_label(*step));
        }
    }
    for (at, Series { name, colour, points }) in series.iter().enumerate() {
        let (a, b) = straight_line(points);
        let line: String = (0..=60)
            .map(|i| x_range.0 * (x_range.1 / x_range.0).powf(f64::from(i) / 60.0))
            .map(|x| format!("{:.1} {:.1} ", x_at(x), y_at((a + b * x).max(10f64.powf(bottom)))))
            .collect();
        let _ = writeln!(
            svg.body,
            r#"<path d="M{line}" stroke="{colour}" stroke-width="1.5" stroke-dasharray="5 4" fill="none"/>"#
        );
        for (x, y) in points {
            let _ = writeln!(
                svg.body,
                r#"<circle cx="{:.1}" cy="{:.1}" r="4" fill="{colour}"/>"#,
                x_at(*x),
                y_at(*y)
            );
        }
        let off = points.iter().map(|(x, y)| ((a + b * x) / y - 1.0).abs()).fold(0.0, f64::max);
        let text = format!("{name}{}; points within {:.0} %", law(a, b), off * 100.0);
        svg.text(left + 16.0, y0 + 42.0 + 18.0 * at as f64, "start", colour, &text);
    }
}

/// The straight line with the least squares of relative deviations from the points.
fn straight_line(points: &[(f64, f64)]) -> (f64, f64) {
    let (mut w, mut wx, mut wy, mut wxx, mut wxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (x, y) in points {
        let weight = 1.0 / (y * y);
        w += weight;
        wx += weight * x;
        wy += weight * y;
        wxx += weight * x * x;
        wxy += weight * x * y;
    }
    let b = (w * wxy - wx * wy) / (w * wxx - wx * wx);
    ((wy - b * wx) / w, b)
}

const MIB: f64 = 1_048_576.0;

/// A number with its unit.
type Format = fn(f64) -> String;
/// Describes a straight line with these two coefficients in words.
type Law = fn(f64, f64) -> String;

fn plain(value: f64) -> String {
    number(value.round()).split('.').next().unwrap_or_default().to_owned()
}

fn percent(value: f64) -> String {
    format!("{value} %")
}

fn mebibytes(value: f64) -> String {
    format!("{value} MiB")
}

fn bytes(value: f64) -> String {
    match value {
        MIB.. => format!("{} MiB", value / MIB),
        _ => format!("{} KiB", value / 1024.0),
    }
}

fn seconds(value: f64) -> String {
    match value {
        0.9.. => format!("{value:.0} s"),
        0.0009.. => format!("{:.0} ms", value * 1e3),
        _ => format!("{:.0} µs", value * 1e6),
    }
}
