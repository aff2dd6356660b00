//! The worst messages that are known: heads and chunked bodies that cost the most for their length.

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

/// Heads that are dear for their length, by name.
pub fn worst(start: &str) -> Vec<(&'static str, String)> {
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

/// Chunked bodies that are dear for their length, by name.
pub fn worst_bodies() -> Vec<(&'static str, String)> {
    vec![
        ("extensions", format!("1;{}\r\nx\r\n", "e".repeat(255)).repeat(200) + "0\r\n\r\n"),
        ("tiny chunks", "1\r\nx\r\n".repeat(8_000) + "0\r\n\r\n"),
        ("trailers", format!("0\r\n{}\r\n", "A: b\r\n".repeat(128))),
        ("one long trailer", format!("0\r\nA: {}\r\n\r\n", "v".repeat(60_000))),
    ]
}
