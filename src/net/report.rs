//! What goes to stderr: life-cycle lines, and access lines that never hold the loop up.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::process::confine::{Sandbox, Thread};

/// Bytes of access lines that wait for stderr.
const WAITING: usize = 64 * 1024;
/// How long the end of the program waits for stderr.
const FAREWELL: Duration = Duration::from_millis(500);

/// Whether stderr shows colour.
#[derive(Clone, Copy)]
pub struct Colour(bool);

impl Colour {
    /// It does where it is a terminal, unless that is a dumb one or `NO_COLOR` is set (no-color.org).
    /// To be asked before the process is confined: then it would be killed for it.
    pub fn of_stderr() -> Colour {
        let is = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let able = is("TERM").is_some_and(|term| term != "dumb");
        Colour(able && is("NO_COLOR").is_none() && io::stderr().is_terminal())
    }

    /// What stands out: where one looks first.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What is wrong.
    pub fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn with(self, style: &str, text: &str) -> String {
        if self.0 { ["\x1b[", style, "m", text, "\x1b[0m"].concat() } else { text.to_owned() }
    }
}

/// The relay listens: where, what to tell clients, and which protections are in force.
pub fn started(port: u16, token: bool, protections: &str, colour: Colour) -> String {
    let listening = format!("codex-responses-api-proxy listening on 127.0.0.1:{port}");
    let key = if token { "the client token" } else { "anything" };
    format!(
        "{}\nclients: base URL http://127.0.0.1:{port}/v1, {key} as API key\nprotections: \
         {protections}\n",
        colour.bold(&listening)
    )
}

/// One exchange, without a byte that a peer chose.
pub struct Line {
    /// `responses`, `shutdown` or `refused`.
    pub route: &'static str,
    /// The final status that was sent.
    pub status: Option<u16>,
    /// Request body bytes that went upstream.
    pub bytes_in: u64,
    /// Response body bytes that went to the client.
    pub bytes_out: u64,
    /// Time until an upstream connection stood, where one had to be made.
    pub connect: Option<Duration>,
    /// Time until the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// Time from the first byte of the request to the end.
    pub total: Duration,
    /// The upstream connection had served before.
    pub reused: bool,
    /// `complete`, an `error.code`, or how the exchange was cut off.
    pub end: &'static str,
}

/// Writes JSON lines on a thread of its own, because stderr may block and belongs to others too: its
/// O_NONBLOCK flag is not ours to set.
pub struct AccessLog {
    queue: Arc<Queue>,
}

struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    /// Whole lines, each without its closing brace and newline.
    waiting: Vec<u8>,
    /// Lines that were lost since one got through.
    lost: u64,
    /// The thread is in a write.
    writing: bool,
    ended: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessLog {
    /// Starts the thread, which confines itself first.
    pub fn start(sandbox: Sandbox) -> io::Result<AccessLog> {
        let queue =
            Arc::new(Queue { lines: Mutex::new(Lines::default()), changed: Condvar::new() });
        let shared = queue.clone();
        sandbox.thread(Thread::Log, "access-log", || {}, move || write_lines(&shared))?;
        Ok(AccessLog { queue })
    }

    /// Adds a line, or counts it as lost when too many wait.
    pub fn exchange(&mut self, line: &Line) {
        self.add(|out| format(line, SystemTime::now(), out));
    }

    /// Adds a line about connections of a user who may not use the relay.
    pub fn refused(&mut self, uid: Option<u32>, count: u64) {
        self.add(|out| {
            time(SystemTime::now(), out)?;
            write!(out, ",\"event\":\"user_refused\"")?;
            optional(out, "uid", uid)?;
            write!(out, ",\"count\":{count}")
        });
    }

    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        let mut lines = self.queue.lock();
        let before = lines.waiting.len();
        let _ = write(&mut lines.waiting);
        if lines.waiting.len() > WAITING {
            lines.waiting.truncate(before);
            lines.lost += 1;
        } else {
            lines.waiting.push(b'\n');
        }
        drop(lines);
        self.queue.changed.notify_all();
    }
}

/// Gives stderr a moment to take what waits.
impl Drop for AccessLog {
    fn drop(&mut self) {
        let mut lines = self.queue.lock();
        lines.ended = true;
        self.queue.changed.notify_all();
        let busy = |lines: &mut Lines| lines.writing || !lines.waiting.is_empty();
        drop(self.queue.changed.wait_timeout_while(lines, FAREWELL, busy));
    }
}

fn write_lines(queue: &Queue) {
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
            let _ = match lost {
                0 => writeln!(text, "}}"),
                lost => writeln!(text, ",\"lost\":{lost}}}"),
            };
            if io::stderr().write_all(&text).is_err() {
                queue.lock().lost += lost + 1;
            }
        }
        queue.lock().writing = false;
        queue.changed.notify_all();
    }
}

/// The beginning of a line.
fn time(now: SystemTime, out: &mut Vec<u8>) -> io::Result<()> {
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil(since_epoch.as_secs() / 86_400);
    let seconds = since_epoch.as_secs() % 86_400;
    write!(
        out,
        "{{\"time\":\"{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z\"",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        since_epoch.subsec_millis(),
    )
}

/// The line without its closing brace.
fn format(line: &Line, now: SystemTime, out: &mut Vec<u8>) -> io::Result<()> {
    time(now, out)?;
    write!(out, ",\"route\":\"{}\"", line.route)?;
    optional(out, "status", line.status)?;
    write!(out, ",\"bytes_in\":{},\"bytes_out\":{}", line.bytes_in, line.bytes_out)?;
    optional(out, "connect_ms", line.connect.map(|d| d.as_millis()))?;
    optional(out, "first_byte_ms", line.first_byte.map(|d| d.as_millis()))?;
    let total = line.total.as_millis();
    write!(out, ",\"total_ms\":{total},\"reused\":{},\"end\":\"{}\"", line.reused, line.end)
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

/// Days since 1970-01-01 as year, month and day of the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last of its year.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The other way round; 0 before 1970.
pub fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year.saturating_sub(u64::from(month <= 2));
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.saturating_sub(1);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        for (days, want) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_780, (2026, 11, 23)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), want);
            assert_eq!(super::days(want.0, want.1, want.2), days);
        }
    }

    #[test]
    fn a_line_is_one_json_object() {
        let line = Line {
            route: "responses",
            status: None,
            bytes_in: 1,
            bytes_out: 2,
            connect: Some(Duration::from_millis(3)),
            first_byte: None,
            total: Duration::from_millis(4),
            reused: true,
            end: "client_closed",
        };
        let mut out = Vec::new();
        format(&line, UNIX_EPOCH + Duration::from_millis(86_400_000 + 3_723_004), &mut out)
            .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"time\":\"1970-01-02T01:02:03.004Z\",\"route\":\"responses\",\"status\":null,\
             \"bytes_in\":1,\"bytes_out\":2,\"connect_ms\":3,\"first_byte_ms\":null,\"total_ms\":4,\
             \"reused\":true,\"end\":\"client_closed\""
        );
    }
}
