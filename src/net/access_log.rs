//! The lines that the event loop writes to stderr: events, and with `--access-log` a JSON line for
//! each exchange. A separate thread writes them, so the loop never blocks on a stderr that nothing
//! reads.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::clock::Timestamp;
use super::limits::LOG_QUEUE;
use super::report::{Event, Form};
use super::timeouts::LOG_FLUSH;
use crate::http1::logged_fields::RequestId;
use crate::http1::refused_route::RefusedRoute;
use crate::process::confine::Sandbox;
use crate::process::filter::Thread;

/// The line of one exchange. `request_id` is the only text that the upstream chose; [`RequestId`]
/// restricts its bytes.
pub struct Line {
    /// Whether the exchange is still under way or has ended.
    pub stage: Stage,
    /// The number of the client connection, counted since the start of the program.
    pub connection: u64,
    /// The number of the request on its connection.
    pub request: u64,
    /// `responses`, `shutdown` or `refused`.
    pub route: &'static str,
    /// The final status code that was sent to the client; `None` if none was.
    pub status: Option<u16>,
    /// Bytes of request body that were sent upstream, without chunked framing.
    pub bytes_in: u64,
    /// Bytes of response body that were sent to the client, without chunked framing.
    pub bytes_out: u64,
    /// The time that the upstream connection took to make; `None` if it was idle before, or if no
    /// connection became usable.
    pub connect: Option<Duration>,
    /// Time from the first byte of the request until the first byte of the response.
    pub first_byte: Option<Duration>,
    /// Time since the last byte of the response came from the upstream; `None` if none has come.
    pub since_last_byte: Option<Duration>,
    /// Time from the first byte of the request until this line.
    pub total: Duration,
    /// The upstream connection had carried an exchange before.
    pub reused: bool,
    /// The TLS session of the upstream connection was resumed; `None` without TLS.
    pub tls_resumed: Option<bool>,
    /// The address that the upstream connection leads to.
    pub address: Option<SocketAddr>,
    /// The value of `x-request-id` in the response of the upstream.
    pub request_id: Option<RequestId>,
    /// The value of Retry-After in a 429 response of the upstream, in seconds.
    pub retry_after: Option<u64>,
    /// The `error.code` of a local response.
    pub error_code: Option<&'static str>,
    /// The route that a refused request asked for.
    pub refused_route: Option<RefusedRoute>,
    /// The generation of the key that the request carried, with `--rotate`.
    pub key_generation: Option<u64>,
    /// The client's uid, if `--allow-uid` makes the relay ask the kernel for it.
    pub uid: Option<u32>,
    /// How the exchange ended: `complete`, an `error.code`, or the way it was cut off. Lines of
    /// [`Stage::Slow`] do not contain it.
    pub end: &'static str,
}

/// The stage of an exchange at which a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The exchange takes long and is still under way.
    Slow,
    /// The exchange has ended.
    Ended,
}

/// Writes lines on a separate thread, because writes to stderr may block. The program must not set
/// O_NONBLOCK on stderr: the flag belongs to the open file, which other processes share.
pub struct Log {
    form: Form,
    queue: Arc<Queue>,
}

struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    /// Whole lines that wait for the thread. JSON lines lack the closing brace, so that the thread
    /// can add `lost`.
    waiting: Vec<u8>,
    /// Lines that were lost since the last line that was written.
    lost: u64,
    /// The thread is writing a batch of lines.
    writing: bool,
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Starts the thread, which confines itself first. Fails if the thread cannot be started or
    /// confined.
    pub fn start(form: Form, sandbox: Sandbox) -> io::Result<Log> {
        let queue =
            Arc::new(Queue { lines: Mutex::new(Lines::default()), changed: Condvar::new() });
        let shared = queue.clone();
        sandbox.thread(Thread::Log, "log", || {}, move || write_lines(form, &shared))?;
        Ok(Log { form, queue })
    }

    /// Exchanges are logged: `--access-log` is set.
    pub fn has_exchanges(&self) -> bool {
        matches!(self.form, Form::Json)
    }

    /// Adds the line of an exchange, if exchanges are logged.
    pub fn exchange(&mut self, line: &Line) {
        if self.has_exchanges() {
            self.add(|out| drop(format(line, SystemTime::now(), out)));
        }
    }

    /// Adds the lines of an event. Events and exchanges are written in the order in which they are
    /// added.
    pub fn event(&mut self, event: &Event) {
        let text = event.render(self.form);
        let text = match self.form {
            Form::Text => text.strip_suffix('\n'),
            Form::Json => text.strip_suffix("}\n"),
        };
        self.add(|out| out.extend_from_slice(text.unwrap_or_default().as_bytes()));
    }

    /// Adds the line that `write` writes. If more than [`LOG_QUEUE`] bytes would wait, the line is
    /// dropped and counted as lost.
    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut lines = self.queue.lock();
        let before = lines.waiting.len();
        write(&mut lines.waiting);
        if lines.waiting.len() > LOG_QUEUE {
            lines.waiting.truncate(before);
            lines.lost += 1;
        } else {
            lines.waiting.push(b'\n');
        }
        drop(lines);
        self.queue.changed.notify_all();
    }
}

/// Waits up to [`LOG_FLUSH`] until the thread has written the lines that wait.
impl Drop for Log {
    fn drop(&mut self) {
        let mut lines = self.queue.lock();
        lines.ended = true;
        self.queue.changed.notify_all();
        let busy = |lines: &mut Lines| lines.writing || !lines.waiting.is_empty();
        drop(self.queue.changed.wait_timeout_while(lines, LOG_FLUSH, busy));
    }
}

fn write_lines(form: Form, queue: &Queue) {
    let mut batch = Vec::new();
    let mut text = Vec::new();
    loop {
        let mut lines = queue.lock();
        while lines.waiting.is_empty() {
            if lines.ended {
                return;
            }
            lines = queue.changed.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
        batch.clear();
        std::mem::swap(&mut batch, &mut lines.waiting);
        lines.writing = true;
        drop(lines);
        for line in batch.split_inclusive(|byte| *byte == b'\n') {
            let lost = std::mem::take(&mut queue.lock().lost);
            text.clear();
            text.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
            let _ = match (form, lost) {
                (Form::Text, _) => writeln!(text),
                (Form::Json, 0) => writeln!(text, "}}"),
                (Form::Json, lost) => writeln!(text, ",\"lost\":{lost}}}"),
            };
            if io::stderr().write_all(&text).is_err() {
                queue.lock().lost += lost + 1;
            }
        }
        queue.lock().writing = false;
        queue.changed.notify_all();
    }
}

/// Writes a line without its closing brace.
fn format(line: &Line, now: SystemTime, out: &mut Vec<u8>) -> io::Result<()> {
    let time = Timestamp::of(now);
    write!(out, "{{\"time\":\"{time}\"")?;
    if line.stage == Stage::Slow {
        write!(out, ",\"event\":\"slow\"")?;
    }
    let start = Timestamp::of(now.checked_sub(line.total).unwrap_or(now));
    let (connection, request) = (line.connection, line.request);
    write!(out, ",\"start\":\"{start}\",\"connection\":{connection},\"request\":{request}")?;
    write!(out, ",\"route\":\"{}\"", line.route)?;
    optional(out, "status", line.status)?;
    write!(out, ",\"bytes_in\":{},\"bytes_out\":{}", line.bytes_in, line.bytes_out)?;
    optional(out, "connect_ms", line.connect.map(|d| d.as_millis()))?;
    optional(out, "first_byte_ms", line.first_byte.map(|d| d.as_millis()))?;
    match line.since_last_byte {
        None => write!(out, ",\"last_byte\":null")?,
        Some(ago) => {
            let at = Timestamp::of(now.checked_sub(ago).unwrap_or(now));
            write!(out, ",\"last_byte\":\"{at}\"")?;
        }
    }
    let total = line.total.as_millis();
    write!(out, ",\"total_ms\":{total},\"reused\":{}", line.reused)?;
    if let Some(resumed) = line.tls_resumed {
        write!(out, ",\"tls_resumed\":{resumed}")?;
    }
    if let Some(address) = line.address {
        write!(out, ",\"upstream\":\"{address}\"")?;
    }
    if let Some(id) = &line.request_id {
        write!(out, ",\"upstream_request_id\":\"{}\"", id.as_str())?;
    }
    if let Some(seconds) = line.retry_after {
        write!(out, ",\"retry_after\":{seconds}")?;
    }
    if let Some(code) = line.error_code {
        write!(out, ",\"error_code\":\"{code}\"")?;
    }
    if let Some(route) = line.refused_route {
        write!(out, ",\"refused_route\":\"{}\"", route.name())?;
    }
    if let Some(generation) = line.key_generation {
        write!(out, ",\"key_generation\":{generation}")?;
    }
    if let Some(uid) = line.uid {
        write!(out, ",\"uid\":{uid}")?;
    }
    match line.stage {
        Stage::Slow => Ok(()),
        Stage::Ended => write!(out, ",\"end\":\"{}\"", line.end),
    }
}

fn optional(
    out: &mut Vec<u8>,
    name: &str,
    value: Option<impl std::fmt::Display>,
) -> io::Result<()> {
    match value {
        Some(value) => write!(out, ",\"{name}\":{value}"),
        None => write!(out, ",\"{name}\":null"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use std::time::Instant;

    use super::*;
    use crate::http1::logged_fields::LoggedFields;

    /// A log whose thread writes nothing.
    fn stuck() -> Log {
        let lines = Mutex::new(Lines::default());
        Log { form: Form::Json, queue: Arc::new(Queue { lines, changed: Condvar::new() }) }
    }

    #[test]
    fn lines_wait_up_to_the_bound_and_a_longer_queue_loses_lines_and_counts_them() {
        let mut log = stuck();
        log.add(|out| out.extend(vec![b'x'; LOG_QUEUE - 10]));
        // The line break of the first line is one of the ten bytes.
        log.add(|out| out.extend(b"0123456789"));
        log.add(|out| out.extend(b"012345678"));
        log.add(|out| out.push(b'0'));
        let lines = log.queue.lock();
        assert!(lines.waiting.ends_with(b"x\n012345678\n"));
        assert_eq!((lines.waiting.len(), lines.lost), (LOG_QUEUE + 1, 2));
        drop(lines);
        log.queue.lock().waiting.clear();
    }

    #[test]
    fn the_end_waits_for_a_stuck_log_no_longer_than_log_flush() {
        let start = Instant::now();
        drop(stuck());
        assert!(start.elapsed() < LOG_FLUSH, "nothing waits to be written");
        let mut log = stuck();
        log.add(|out| out.push(b'x'));
        let start = Instant::now();
        drop(log);
        assert!(start.elapsed() >= LOG_FLUSH);
    }

    #[test]
    fn a_line_is_one_json_object() {
        let line = Line {
            stage: Stage::Ended,
            connection: 7,
            request: 2,
            since_last_byte: Some(Duration::from_millis(1)),
            route: "responses",
            status: None,
            bytes_in: 1,
            bytes_out: 2,
            connect: Some(Duration::from_millis(3)),
            first_byte: None,
            total: Duration::from_millis(4),
            reused: true,
            tls_resumed: None,
            address: None,
            request_id: None,
            retry_after: None,
            error_code: None,
            refused_route: None,
            key_generation: None,
            uid: None,
            end: "client_closed",
        };
        let mut out = Vec::new();
        format(&line, UNIX_EPOCH + Duration::from_millis(86_400_000 + 3_723_004), &mut out)
            .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"time\":\"1970-01-02T01:02:03.004Z\",\"start\":\"1970-01-02T01:02:03.000Z\",\
             \"connection\":7,\"request\":2,\"route\":\"responses\",\"status\":null,\
             \"bytes_in\":1,\"bytes_out\":2,\"connect_ms\":3,\"first_byte_ms\":null,\
             \"last_byte\":\"1970-01-02T01:02:03.003Z\",\"total_ms\":4,\
             \"reused\":true,\"end\":\"client_closed\""
        );
        let mut logged = LoggedFields::default();
        logged.note(b"x-request-id", b"req_1-Z");
        let line = Line {
            tls_resumed: Some(false),
            address: Some(([192, 0, 2, 1], 443).into()),
            request_id: logged.request_id(),
            retry_after: Some(20),
            error_code: Some("upstream_closed"),
            refused_route: Some(RefusedRoute::Models),
            key_generation: Some(2),
            uid: Some(1000),
            ..line
        };
        let mut out = Vec::new();
        format(&line, UNIX_EPOCH, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.ends_with(
                "\"reused\":true,\"tls_resumed\":false,\"upstream\":\"192.0.2.1:443\",\
                 \"upstream_request_id\":\"req_1-Z\",\"retry_after\":20,\
                 \"error_code\":\"upstream_closed\",\"refused_route\":\"models\",\"key_generation\":2,\"uid\":1000,\
                 \"end\":\"client_closed\""
            ),
            "{text}"
        );
    }
}
