//! The figures as a table in Markdown.

use crate::peers::NAMES;
use crate::results::Results;

/// Whether a row shows the figure itself or its difference to the figure without a relay.
#[derive(Clone, Copy, PartialEq)]
pub enum Of {
    Itself,
    Added,
}

const ROWS: &[(&str, &str, Of, f64)] = &[
    ("CPU µs per request, 1 connection", "cpu/1", Of::Itself, 1.0),
    ("… 64 connections", "cpu/64", Of::Itself, 1.0),
    ("… 512 connections", "cpu/512", Of::Itself, 1.0),
    ("… 55 KB up, 400 events down", "cpu/real", Of::Itself, 1.0),
    ("requests/s, 64 connections", "rate/64", Of::Itself, 1.0),
    ("… its core busy, %", "busy/64", Of::Itself, 1.0),
    ("… client's and upstream's core busy, %", "busy others/64", Of::Itself, 1.0),
    ("latency added, 1 connection, p50 µs", "latency/1 at 1000/p50", Of::Added, 1.0),
    ("… p99 µs", "latency/1 at 1000/p99", Of::Added, 1.0),
    ("… p99.9 µs", "latency/1 at 1000/p99.9", Of::Added, 1.0),
    ("latency added, 64 connections, p50 µs", "latency/64 at 5000/p50", Of::Added, 1.0),
    ("… p99 µs", "latency/64 at 5000/p99", Of::Added, 1.0),
    ("… p99.9 µs", "latency/64 at 5000/p99.9", Of::Added, 1.0),
    ("64 MiB response, MiB per CPU second", "bulk/down/per cpu", Of::Itself, 1.0),
    ("64 MiB upload, MiB per CPU second", "bulk/up/per cpu", Of::Itself, 1.0),
    ("… peak memory above idle, MiB", "bulk/up/peak", Of::Itself, 1.0),
    ("1,000 streams: memory of each, KiB", "streams/bytes", Of::Itself, 1.0 / 1024.0),
    ("… CPU µs per event", "streams/cpu", Of::Itself, 1.0),
    ("… first byte added, p50 ms", "streams/first byte/p50", Of::Added, 1e-3),
    ("… first byte added, p99 ms", "streams/first byte/p99", Of::Added, 1e-3),
    ("… event delay added, p50 ms", "streams/event/p50", Of::Added, 1e-3),
    ("… event delay added, p99 ms", "streams/event/p99", Of::Added, 1e-3),
    ("start to first connection, ms", "start/ms", Of::Itself, 1.0),
    ("idle memory, MiB", "start/idle", Of::Itself, 1.0),
    ("program, MiB", "start/binary", Of::Itself, 1.0),
];

/// The rows that README.md shows as well.
const EXCERPT: [&str; 5] = [
    "CPU µs per request, 1 connection",
    "requests/s, 64 connections",
    "latency added, 1 connection, p50 µs",
    "64 MiB response, MiB per CPU second",
    "1,000 streams: memory of each, KiB",
];

/// The width of a document's text in columns.
const WIDTH: usize = 100;

/// The name of a program in the table.
pub fn title(name: &str) -> &str {
    match name {
        "relay" => "this relay",
        "haproxy" => "HAProxy",
        other => other,
    }
}

/// Formats a number with three significant digits and separators of thousands.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(w, r)| (w, r));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        let left = whole.len() - at;
        if at > 0 && left.is_multiple_of(3) && digit.is_ascii_digit() && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if rest.is_empty() { grouped } else { format!("{grouped}.{rest}") }
}

/// The programs that have figures, "direct" first.
pub fn columns(results: &Results) -> Vec<&'static str> {
    let has = |name: &&str| ROWS.iter().any(|row| results.median(row.1, name).is_some());
    ["direct"].into_iter().chain(NAMES).filter(has).collect()
}

/// A figure of one row; the reference's latency was measured at its own, lower rate.
pub fn figure(results: &Results, metric: &str, of: Of, peer: &str) -> Option<f64> {
    let slower = metric.replace("at 1000/", "at 10/").replace("at 5000/", "at 500/");
    let metric = if peer == "reference" { &slower } else { metric };
    match of {
        Of::Added if peer == "direct" => None,
        Of::Added => results.added(metric, peer),
        Of::Itself => results.median(metric, peer),
    }
}

/// The whole table, then the largest number of streams, and the machine.
pub fn markdown(results: &Results) -> String {
    let peers = columns(results);
    let mut text = String::from("| |");
    peers.iter().for_each(|peer| text += &format!(" {} |", title(peer)));
    text += "\n|---|";
    text += &"---:|".repeat(peers.len());
    for (label, metric, of, factor) in ROWS {
        let cells: Vec<_> = peers.iter().map(|peer| figure(results, metric, *of, peer)).collect();
        if cells.iter().any(Option::is_some) {
            text += &format!("\n| {label} |");
            for value in cells {
                text +=
                    &value.map_or(" |".into(), |value| format!(" {} |", number(value * factor)));
            }
        }
    }
    if peers.iter().any(|peer| results.failures(peer) > 0.0) {
        text += "\n| failed requests |";
        peers.iter().for_each(|peer| text += &format!(" {} |", results.failures(peer)));
    }
    text + "\n" + &carried(results).unwrap_or_default() + "\n" + &machine(results)
}

/// The head of a whole table, and the rows that README.md shows.
pub fn excerpt(table: &str) -> String {
    let is_shown = |row: &str| EXCERPT.iter().any(|label| row.starts_with(&format!("| {label} |")));
    let rows = table.lines().enumerate().filter(|(number, row)| *number < 2 || is_shown(row));
    rows.map(|(_, row)| format!("{row}\n")).collect()
}

/// Breaks a paragraph into lines.
fn wrapped(paragraph: &str) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        let width = word.chars().count();
        let fits = column + 1 + width <= WIDTH;
        text.push_str(if column == 0 {
            ""
        } else if fits {
            " "
        } else {
            "\n"
        });
        text.push_str(word);
        column = if column > 0 && fits { column + 1 + width } else { width };
    }
    text + "\n"
}

/// The largest number of streams that was tried.
fn carried(results: &Results) -> Option<String> {
    let streams = *results.steps("scale/streams/*/cpu").last()?;
    let figure = |what| results.median(&format!("scale/streams/{streams}/{what}"), "relay");
    let text = format!(
        "One process of this relay carried {} open streams, each with an event a second, in {} MiB and \
         with {} % of a core; p99 of an event's delay, from the upstream's write to the client's read, was \
         {} ms.",
        number(streams as f64),
        number(figure("resident")?),
        number(figure("cpu")?),
        number(figure("event/p99")? / 1e3),
    );
    Some(format!("\n{}", wrapped(&text)))
}

fn machine(results: &Results) -> String {
    let word = |name: &str| results.machine[name].as_str().unwrap_or_default().to_owned();
    let versions: Vec<String> = results.machine["versions"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(_, version)| version.as_str())
        .map(|version| version.trim_start_matches("nginx version: ").to_owned())
        .map(|version| version.split(" - ").next().unwrap_or_default().to_owned())
        .collect();
    wrapped(&format!(
        "Medians of {} rounds of one run, on {}, {}, {}; {}. Other programs and the \
         hypervisor took {} of one core meanwhile.",
        results.machine["rounds"],
        word("cpu"),
        word("system"),
        word("kernel"),
        versions.join(", "),
        foreign(results),
    ))
}

/// The CPU time that other programs took. The clocks differ by up to 3 %, so a smaller share cannot
/// be distinguished from none.
fn foreign(results: &Results) -> String {
    match results.median("foreign", "machine") {
        Some(percent) if percent >= 3.0 => format!("{} %", number(percent)),
        Some(_) => "less than 3 %".into(),
        None => "an unknown part".into(),
    }
}
