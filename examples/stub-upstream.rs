//! A stand-in for the API, for tests with real clients. The program writes its CA certificate to
//! the file that its only argument names. It prints its port, then one line for each request:
//! whether the only Authorization field was `Bearer $STUB_KEY`, the length of the body in bytes,
//! and how the exchange ended.
//!
//! A word in the request body selects the response:
//!
//! | word | response |
//! |---|---|
//! | `stub-401` | 401 |
//! | `stub-429` | 429 |
//! | `stub-busy` | 429 for every other request |
//! | `stub-echo` | the request body |
//! | `stub-endless` | a stream of events without an end |
//! | none of these | a short message, streamed if the body contains `"stream":true` |

mod upstream;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use upstream::{Request, Stream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args_os().nth(1).ok_or("usage: stub-upstream CA_FILE")?;
    let key = std::env::var("STUB_KEY")?;
    let identity = upstream::Identity::new()?;
    std::fs::write(file, &identity.ca)?;
    let port = upstream::serve(identity, move |request, stream| {
        let fields = request.head.iter().filter(|line| {
            line.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case("authorization"))
        });
        let fine = fields.eq([&format!("Authorization: Bearer {key}")]);
        let result = answer(request, stream);
        let end = if result.is_ok() { "complete" } else { "aborted" };
        println!("key={} body={} {end}", if fine { "right" } else { "WRONG" }, request.body.len());
        result
    })?;
    println!("{port}");
    // The program ends with the script that started it, which holds the other end of stdin.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn answer(request: &Request, stream: &mut Stream) -> io::Result<()> {
    static BUSY: AtomicBool = AtomicBool::new(false);
    let says = |text: &str| request.body.contains(text);
    if says("stub-401") {
        let body = r#"{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}"#;
        return send(stream, "401 Unauthorized", "", body);
    }
    if says("stub-429") || (says("stub-busy") && !BUSY.fetch_not(Ordering::SeqCst)) {
        let body = r#"{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}"#;
        return send(stream, "429 Too Many Requests", "Retry-After: 2\r\n", body);
    }
    if says("stub-echo") {
        return send(stream, "200 OK", "", &request.body);
    }
    if says("stub-endless") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
        let events = upstream::events();
        let deltas = events.iter().filter(|(name, _)| name.ends_with(".delta"));
        for (name, data) in deltas.cycle() {
            write!(stream, "event: {name}\ndata: {data}\n\n")?;
            stream.flush()?;
            upstream::pace(Duration::from_millis(20));
        }
    }
    if says(r#""stream":true"#) || says(r#""stream": true"#) {
        return upstream::stream_events(stream, Duration::ZERO);
    }
    send(stream, "200 OK", "", &upstream::object())
}

fn send(stream: &mut Stream, status: &str, fields: &str, body: &str) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}
