//! The worst heads that are known, held to a budget of steps for each of their bytes.

#[path = "../fuzz/properties/mod.rs"]
mod properties;

use properties::work::{ask, respond};

const HEAD: usize = 64 * 1024;

/// A head that begins like this and is filled up with `line(0)`, `line(1)`, … to `most` lines or to
/// the limit of a head.
fn filled(start: &str, most: usize, line: impl Fn(usize) -> String) -> String {
    let mut head = start.to_owned();
    for n in 0..most {
        let line = line(n);
        if head.len() + line.len() + 2 > HEAD {
            break;
        }
        head += &line;
    }
    head + "\r\n"
}

/// Field lines that make a head dear, by name.
fn worst(start: &str) -> Vec<(&'static str, String)> {
    let long = |n: usize, c: &str| c.repeat(n);
    // Names as long as the options, and different from them in the last letter alone.
    let alike = |width: usize| {
        let name = |n: usize| format!("{}{n:03}", "x".repeat(width));
        let options: Vec<String> = (0..64).map(|n| name(n + 500)).collect();
        let begin = format!("{start}Connection: {}\r\n", options.join(","));
        filled(&begin, 120, move |n| format!("{}: 1\r\n", name(n)))
    };
    vec![
        ("plain", filled(start, 120, |n| format!("X-{n}: {}\r\n", long(500, "v")))),
        ("short", filled(start, 120, |n| format!("X{n}:\r\n"))),
        (
            "commas",
            filled(&format!("{start}Connection: x{}\r\n", long(62_000, ",")), 120, |n| {
                format!("X{n}:\r\n")
            }),
        ),
        ("options, short", alike(1)),
        ("options, long", alike(330)),
        ("many Connection fields", filled(start, 120, |_| "Connection: a\r\n".into())),
        ("Upgrade lists", filled(start, 120, |_| format!("Upgrade: {}\r\n", long(500, "a,")))),
        ("codings", filled(start, 120, |_| "Transfer-Encoding: chunked\r\n".into())),
        ("lengths", filled(start, 120, |_| "Content-Length: 1\r\n".into())),
        ("white space", filled(start, 120, |n| format!("X{n}:{}1{0}\r\n", long(250, " \t")))),
        ("one long value", filled(start, 1, |_| format!("X: {}\r\n", long(65_000, "v")))),
        ("one long name", filled(start, 1, |_| format!("{}: v\r\n", long(65_000, "p")))),
        ("proxy names", filled(start, 120, |n| format!("Proxy-{}{n}: 1\r\n", long(500, "_")))),
        (
            "marks",
            filled(start, 120, |_| format!("X_HTTP_Method_Override: {}\r\n", long(500, "_"))),
        ),
        ("encodings", filled(start, 120, |_| format!("Content-Encoding: {}\r\n", long(500, ",")))),
        (
            "charsets",
            filled(start, 120, |_| format!("Content-Type: a;{}\r\n", long(60, "charset="))),
        ),
    ]
}

fn check(steps: impl Fn(&[u8], &[usize]) -> u64, start: &str) {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: steps are counted in debug builds alone");
        return;
    }
    for (name, head) in worst(start) {
        let bytes = head.as_bytes();
        let lines: Vec<usize> = head.match_indices('\n').map(|(at, _)| at + 1).collect();
        let each_byte: Vec<usize> = (1..=bytes.len()).collect();
        for (how, ends, most) in
            [("whole", vec![bytes.len()], 24), ("by lines", lines, 64), ("by bytes", each_byte, 72)]
        {
            let steps = steps(bytes, &ends);
            assert!(steps > 0);
            let each = steps / bytes.len() as u64;
            println!("{name}, {how}: {each} steps for each of {} bytes", bytes.len());
            let budget = 2_000 + most * bytes.len() as u64;
            assert!(steps <= budget, "{name}, {how}: {each} steps for a byte");
        }
    }
}

#[test]
fn the_worst_request_heads_cost_a_bounded_number_of_steps_for_each_byte() {
    check(ask, "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n");
}

#[test]
fn the_worst_response_heads_cost_a_bounded_number_of_steps_for_each_byte() {
    check(respond, "HTTP/1.1 200 OK\r\n");
}

#[test]
fn chunk_extensions_tiny_chunks_and_trailers_cost_a_bounded_number_of_steps_for_each_byte() {
    if !cfg!(debug_assertions) {
        return;
    }
    let head = "Transfer-Encoding: chunked\r\n\r\n";
    let bodies = [
        format!("1;{}\r\nx\r\n", "e".repeat(255)).repeat(200),
        "1\r\nx\r\n".repeat(8_000),
        format!("0\r\n{}\r\n", "A: b\r\n".repeat(128)),
        format!("0\r\nA: {}\r\n\r\n", "v".repeat(60_000)),
    ];
    for body in bodies {
        let request = format!("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n{head}{body}");
        let response = format!("HTTP/1.1 200 OK\r\n{head}{body}");
        for (steps, text) in [(ask as fn(&[u8], &[usize]) -> u64, request), (respond, response)] {
            for step in [text.len(), 1] {
                let ends: Vec<usize> = (step..=text.len()).step_by(step).collect();
                let steps = steps(text.as_bytes(), &ends);
                assert!(steps <= 2_000 + 24 * text.len() as u64, "{steps} for {}", text.len());
            }
        }
    }
}
