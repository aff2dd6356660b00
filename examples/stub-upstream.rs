//! A stand-in for the API, for tests with real clients. Writes its CA certificate to the file named
//! as the only argument, prints its port, then a line for each request: whether its Authorization
//! field was exactly `Bearer $STUB_KEY`, its body's length, and how the exchange ended.
//!
//! The `model` in the request's body chooses the answer: `error-401`, `error-429`, `endless`;
//! anything else is answered with a short message, streamed if the body says so.

mod upstream;

use std::io::{self, Write};
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
    // Ends with the script that started it, which holds the other end.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn answer(request: &Request, stream: &mut Stream) -> io::Result<()> {
    let says = |text: &str| request.body.contains(text);
    if says("error-401") {
        let body = r#"{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}"#;
        return send(stream, "401 Unauthorized", "", body);
    }
    if says("error-429") {
        let body = r#"{"error":{"message":"Rate limit reached","type":"requests","code":"rate_limit_exceeded"}}"#;
        return send(stream, "429 Too Many Requests", "Retry-After: 7\r\n", body);
    }
    if says("endless") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")?;
        let (name, data) = upstream::events().swap_remove(1);
        loop {
            write!(stream, "event: {name}\ndata: {data}\n\n")?;
            stream.flush()?;
            std::thread::sleep(Duration::from_millis(20));
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
