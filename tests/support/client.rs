//! A client that sends raw bytes and accepts only strictly well-formed responses.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant, SystemTime};

use codex_responses_api_proxy::net::clock::{Timestamp, days};

use super::{DEADLINE, wait_for};

/// One client connection. Each read and write waits for at most [`DEADLINE`].
pub struct Client {
    pub stream: TcpStream,
    /// Bytes that have been read and not used yet.
    pub buffer: Vec<u8>,
    /// The value of the Date field that the relay added to the last head.
    pub date: Option<String>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
    /// The connection had not ended [`DEADLINE`] after its last byte.
    Open,
}

/// A response as the client read it.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// The status line and the field lines, each with its CRLF, and the empty line. A Date field
    /// that the relay added is removed.
    pub head: String,
    pub body: Vec<u8>,
    /// The value of the Date field that the relay added.
    pub date: Option<String>,
}

impl Response {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The values of a field, in order.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }

    /// The `error.code` of a local response. Fails on any other response.
    pub fn code(&self) -> &str {
        assert_eq!(self.fields("content-type"), ["application/json"]);
        let text = self.text();
        assert!(text.starts_with("{\"error\":{\"message\":\""), "{text}");
        assert!(text.contains("\",\"type\":\"proxy_error\",\"code\":\""), "{text}");
        text.rsplit_once("\"code\":\"").unwrap().1.split('"').next().unwrap()
    }
}

/// The values of a field in a head, in order and without the surrounding whitespace.
pub fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

/// The text of several responses without the Date fields that the relay added.
pub fn without_dates(mut text: String) -> String {
    loop {
        let (rest, date) = without_date(text);
        if date.is_none() {
            return rest;
        }
        text = rest;
    }
}

/// Removes the last Date field from a text, if it names the current time. The upstreams of the
/// tests send other dates.
fn without_date(head: String) -> (String, Option<String>) {
    const NAME: &str = "\r\nDate: ";
    let date = head.rfind(NAME).map(|at| (at, head[at + NAME.len()..].lines().next().unwrap()));
    match date.filter(|(_, date)| is_now(date)) {
        Some((at, date)) => {
            let end = at + NAME.len() + date.len();
            ([&head[..at], &head[end..]].concat(), Some(date.to_owned()))
        }
        None => (head, None),
    }
}

/// The text is an IMF-fixdate (RFC 9110 §5.6.7) of the last minute.
fn is_now(date: &str) -> bool {
    let now = SystemTime::now();
    (0..60).any(|ago| {
        let moment = now.checked_sub(Duration::from_secs(ago)).unwrap();
        // For example 2026-11-27T12:00:00.000Z.
        let text = Timestamp::of(moment).to_string();
        let number = |part: std::ops::Range<usize>| text[part].parse::<u64>().unwrap();
        let (year, month, day) = (number(0..4), number(5..7), number(8..10));
        let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
        let weekdays = "ThuFriSatSunMonTueWed";
        let three = |names: &'static str, at: u64| &names[3 * at as usize..][..3];
        let weekday = three(weekdays, days(year, month, day) % 7);
        let month = three(months, month - 1);
        date == format!("{weekday}, {day:02} {month} {year} {} GMT", &text[11..19])
    })
}

/// A POST request with these field lines, each with its CRLF, and this body.
pub fn post(fields: &str, body: &str) -> String {
    format!(
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads the body that belongs to a head. The head has to state exactly one framing, in its
/// plainest form; `None` if it states none.
pub fn body(head: &str, read: &mut dyn FnMut(usize) -> Vec<u8>) -> Option<Vec<u8>> {
    let lengths = fields(head, "content-length");
    let codings = fields(head, "transfer-encoding");
    match (&lengths[..], &codings[..]) {
        ([length], []) => Some(read(length.parse().unwrap())),
        ([], ["chunked"]) => {
            let mut body = Vec::new();
            loop {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.extend(read(1));
                }
                let digits = std::str::from_utf8(&line[..line.len() - 2]).unwrap();
                let size = usize::from_str_radix(digits, 16).expect("a plain chunk size");
                assert!(!digits.starts_with('+') && (size == 0 || !digits.starts_with('0')));
                body.extend(read(size));
                assert_eq!(read(2), b"\r\n");
                if size == 0 {
                    return Some(body);
                }
            }
        }
        ([], []) => None,
        _ => panic!("two lengths: {head}"),
    }
}

/// The state of a connection whose FIN has not been acknowledged (`TCP_FIN_WAIT1` of Linux).
const FIN_WAIT_1: u8 = 4;

/// The state of a connection: the first byte of `struct tcp_info`.
fn tcp_state(stream: &TcpStream) -> u8 {
    let (mut state, mut size) = (0u8, 1);
    let (fd, at) = (stream.as_raw_fd(), (&raw mut state).cast());
    // SAFETY: the kernel writes one byte into memory that outlives the call.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, at, &mut size) };
    assert_eq!((result, size), (0, 1), "TCP_INFO");
    state
}

impl Client {
    /// Sends `count` small requests one after another. Returns how long each took, shortest first.
    pub fn times(&mut self, count: usize) -> Vec<Duration> {
        let time = |_| {
            let start = Instant::now();
            assert_eq!(self.send(post("", "{}")).response().status, 200);
            start.elapsed()
        };
        let mut times: Vec<Duration> = (0..count).map(time).collect();
        times.sort();
        times
    }

    /// Connects to this port of 127.0.0.1.
    pub fn connect(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new(), date: None }
    }

    /// Sends the bytes. The test fails if the write does.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.stream.write_all(bytes.as_ref()).expect("the relay takes it");
        self
    }

    /// Sends the bytes. A failure is ignored, because the relay may have closed the connection.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        let _ = self.stream.write_all(bytes.as_ref());
        self
    }

    /// Sends FIN. The client can still read.
    pub fn finish(&mut self) -> &mut Client {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// Sends FIN and waits until the kernel of the other side has it, so that nothing that is sent
    /// later, on whichever connection, comes before it. A drop may send it later: until a child that
    /// another test starts at this moment runs its program, the child has a copy of each descriptor.
    pub fn finish_first(&mut self) -> &mut Client {
        self.finish();
        wait_for(|| tcp_state(&self.stream) != FIN_WAIT_1);
        self
    }

    fn fill(&mut self, wanted: usize) {
        let mut chunk = vec![0; 65_536];
        while self.buffer.len() < wanted {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    panic!("the connection ended after {:?}", String::from_utf8_lossy(&self.buffer))
                }
                Ok(n) => self.buffer.extend(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&self.buffer)),
            }
        }
    }

    /// Reads exactly `n` bytes.
    pub fn take(&mut self, n: usize) -> Vec<u8> {
        self.fill(n);
        self.buffer.drain(..n).collect()
    }

    /// Reads a head with its empty line. A Date field that the relay added is removed and kept in
    /// `date`.
    pub fn head(&mut self) -> String {
        let mut from = 0;
        loop {
            if let Some(at) = self.buffer[from..].windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.take(from + at + 4);
                let (head, date) = without_date(String::from_utf8(head).unwrap());
                self.date = date;
                return head;
            }
            from = self.buffer.len().saturating_sub(3);
            self.fill(self.buffer.len() + 1);
        }
    }

    /// Reads one response, whose head has to state where the body ends.
    pub fn response(&mut self) -> Response {
        let head = self.head();
        let status: u16 = head["HTTP/1.1 ".len()..][..3].parse().unwrap();
        assert!(head.starts_with("HTTP/1.1 "), "{head}");
        let none = matches!(status, 100..=199 | 204 | 304);
        let body =
            if none { Vec::new() } else { body(&head, &mut |n| self.take(n)).expect("a length") };
        Response { status, head, body, date: self.date.take() }
    }

    /// Reads to the end of the connection. Returns the bytes and how the connection ended.
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        let mut chunk = vec![0; 65_536];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return (std::mem::take(&mut self.buffer), End::Fin),
                Ok(n) => self.buffer.extend(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    let end = match e.kind() {
                        ErrorKind::ConnectionReset => End::Reset,
                        _ => End::Open,
                    };
                    return (std::mem::take(&mut self.buffer), end);
                }
            }
        }
    }

    /// Fails unless the connection ends in this way without a further byte.
    pub fn expect_end(&mut self, want: End) {
        let (rest, end) = self.rest();
        assert_eq!((String::from_utf8_lossy(&rest).as_ref(), end), ("", want));
    }
}
