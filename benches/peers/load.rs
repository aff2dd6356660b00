//! The load: one thread sends requests on many connections by a plan, and checks every byte of
//! every response.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustls::{ClientConfig, ClientConnection};

use crate::reply::Reply;
use crate::upstream::Answer;
use crate::wire::{self, Wire, body};

const TIMER: Token = Token(usize::MAX);
/// A run is aborted when it takes this much longer than planned.
const PATIENCE: Duration = Duration::from_secs(20);
/// After this many failures no more requests are sent.
const FAILURES: usize = 100;

/// The program that receives the requests.
#[derive(Clone)]
pub struct Target {
    pub port: u16,
    /// Set for requests straight to the upstream: over TLS, with the key.
    pub direct: Option<(Arc<ClientConfig>, String)>,
}

/// When each connection sends requests.
#[derive(Clone, Copy, PartialEq)]
pub enum Pace {
    /// Each connection sends the next request as soon as it has a response, for this time.
    Saturate(Duration),
    /// All connections together send this many requests a second, for this time. The latency of a
    /// request that waits for the response before it counts from its planned time, so the effect of
    /// a slow response on later requests is included (the "coordinated omission" of wrk2).
    Rate(f64, Duration),
    /// Each connection sends this many requests, one after the other; the first requests are spread
    /// over this time.
    Times(u64, Duration),
}

/// One run.
pub struct Plan {
    pub connections: usize,
    pub pace: Pace,
    /// The size of each request's body in bytes.
    pub upload: u64,
    pub answer: Answer,
    /// The times, from the start, at which `mark` is called.
    pub marks: Vec<Duration>,
}

/// The result of a run. Times are in nanoseconds.
#[derive(Default)]
pub struct Report {
    /// The time from a request's planned time to the end of its response, with the moment of that
    /// end.
    pub answers: Vec<(Instant, u64)>,
    /// The time from sending a request to the first byte of its response's body.
    pub first_bytes: Vec<u64>,
    /// The time from the upstream's write of an event to its arrival.
    pub events: Vec<u64>,
    /// The number of requests without a complete and correct response.
    pub failed: usize,
    /// Why the last of these requests failed.
    pub fault: Option<String>,
}

impl Report {
    /// The number of responses that ended between these moments.
    pub fn answered(&self, from: Instant, to: Instant) -> usize {
        self.answers.iter().filter(|(end, _)| (from..to).contains(end)).count()
    }
}

/// Runs the plan, and calls `mark` at each of its marks.
pub fn run(target: &Target, plan: &Plan, mut mark: impl FnMut()) -> io::Result<Report> {
    let mut fields = format!(
        "POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
         Accept: text/event-stream\r\nX-Answer: {}\r\nContent-Length: {}\r\n",
        target.port,
        plan.answer.to_field(),
        plan.upload
    );
    if let Some((_, key)) = &target.direct {
        fields += &format!("Authorization: Bearer {key}\r\n");
    }
    let first = body(0, plan.upload);
    let mut load = Load {
        target,
        plan,
        start: Instant::now(),
        first: [fields.as_bytes(), b"\r\n", first].concat(),
        first_body: first.len() as u64,
        poll: Poll::new()?,
        clients: Vec::new(),
        due: BinaryHeap::new(),
        busy: 0,
        report: Report::default(),
    };
    load.run(&mut mark)?;
    Ok(load.report)
}

struct Load<'a> {
    target: &'a Target,
    plan: &'a Plan,
    start: Instant,
    /// The head of each request, and the first part of its body.
    first: Vec<u8>,
    first_body: u64,
    poll: Poll,
    clients: Vec<Client>,
    /// When each client sends its next request.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    /// The number of clients that wait for a response.
    busy: usize,
    report: Report,
}

struct Client {
    wire: Option<Wire>,
    /// The number of requests that have begun.
    count: u64,
    /// The request under way: its planned time, and the time when it was sent.
    asked: Option<(Instant, Instant)>,
    /// The number of bytes of its body that have been sent.
    uploaded: u64,
    reply: Reply,
}

impl Load<'_> {
    fn run(&mut self, mark: &mut dyn FnMut()) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; wire::READ];
        let mut timer = Timer::new()?;
        self.poll.registry().register(
            &mut SourceFd(&timer.file.as_raw_fd()),
            TIMER,
            Interest::READABLE,
        )?;
        for index in 0..self.plan.connections {
            self.clients.push(Client {
                wire: None,
                count: 0,
                asked: None,
                uploaded: 0,
                reply: Reply::default(),
            });
            self.schedule(index)?;
        }
        let (start, plan) = (self.start, self.plan);
        let mut marks = plan.marks.iter().map(|after| start + *after).peekable();
        let end = match self.plan.pace {
            Pace::Saturate(time) | Pace::Rate(_, time) => time,
            Pace::Times(_, ramp) => ramp + Duration::from_secs(60),
        };
        let end = self.start + end + PATIENCE;
        loop {
            let now = Instant::now();
            while marks.next_if(|at| *at <= now).is_some() {
                mark();
            }
            while let Some(Reverse((at, index))) = self.due.peek().copied()
                && at <= now
            {
                self.due.pop();
                self.ask(index, at)?;
            }
            if (self.busy == 0 && self.due.is_empty() && marks.peek().is_none()) || now > end {
                break;
            }
            let next = self.due.peek().map(|Reverse((at, _))| *at);
            let next = next.into_iter().chain(marks.peek().copied()).chain([end]).min();
            timer.set(next.unwrap_or(end))?;
            match self.poll.poll(&mut events, None) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            for event in &events {
                if event.token() == TIMER {
                    timer.clear();
                } else {
                    let (readable, closed) = (event.is_readable(), event.is_read_closed());
                    self.turn(event.token().0, &mut scratch, readable, closed)?;
                }
            }
        }
        if self.busy > 0 {
            self.report.failed += self.busy;
            self.report.fault = Some("no answer in time".into());
        }
        Ok(())
    }

    /// When this client sends its next request, if there is one.
    fn planned(&self, index: usize, now: Instant) -> Option<Instant> {
        let (count, connections) = (self.clients[index].count, self.plan.connections as f64);
        let at = |seconds: f64| self.start + Duration::from_secs_f64(seconds);
        let (at, last) = match self.plan.pace {
            Pace::Saturate(time) => (now, self.start + time),
            Pace::Rate(rate, time) => {
                (at((index as f64 + count as f64 * connections) / rate), self.start + time)
            }
            Pace::Times(0, _) => return None,
            Pace::Times(times, _) if count > 0 => return (count < times).then_some(now),
            Pace::Times(_, ramp) => {
                let at = at(ramp.as_secs_f64() * index as f64 / connections);
                (at, at + PATIENCE)
            }
        };
        (at < last && self.report.failed < FAILURES).then_some(at)
    }

    fn schedule(&mut self, index: usize) -> io::Result<()> {
        let now = Instant::now();
        match self.planned(index, now) {
            Some(at) if at <= now => self.ask(index, at),
            Some(at) => {
                self.due.push(Reverse((at, index)));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Sends the request that was planned for `at`.
    fn ask(&mut self, index: usize, at: Instant) -> io::Result<()> {
        let now = Instant::now();
        if self.clients[index].wire.is_none() {
            self.clients[index].wire = Some(self.connect(index)?);
        }
        let client = &mut self.clients[index];
        client.count += 1;
        client.asked = Some((at, now));
        client.uploaded = self.first_body;
        client.reply.clear();
        self.busy += 1;
        let sent = client.wire.as_mut().map_or(Ok(()), |wire| wire.push(&self.first));
        match sent.and_then(|()| client.upload(self.plan.upload)) {
            Ok(()) => Ok(()),
            Err(error) => self.failed(index, &error),
        }
    }

    fn connect(&self, index: usize) -> io::Result<Wire> {
        let mut socket = TcpStream::connect(([127, 0, 0, 1], self.target.port).into())?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(index), both)?;
        let tls = match &self.target.direct {
            None => None,
            Some((config, _)) => {
                let name = "localhost".try_into().map_err(io::Error::other)?;
                let tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                Some(tls.into())
            }
        };
        Wire::new(socket, tls)
    }

    /// Reads and writes as much as possible, and sends the next request after a response.
    fn turn(
        &mut self,
        index: usize,
        scratch: &mut [u8],
        readable: bool,
        closed: bool,
    ) -> io::Result<()> {
        let client = &mut self.clients[index];
        if let Err(error) = client.turn(self.plan, scratch, readable, closed, &mut self.report) {
            return self.failed(index, &error);
        }
        if let Some((planned, _)) = client.asked.take_if(|_| client.reply.whole) {
            let now = Instant::now();
            self.report.answers.push((now, (now - planned).as_nanos() as u64));
            self.busy -= 1;
            return self.schedule(index);
        }
        Ok(())
    }

    fn failed(&mut self, index: usize, error: &io::Error) -> io::Result<()> {
        self.clients[index].wire = None;
        if self.clients[index].asked.take().is_none() {
            return Ok(());
        }
        self.busy -= 1;
        self.report.failed += 1;
        self.report.fault = Some(error.to_string());
        self.schedule(index)
    }
}

impl Client {
    /// Sends as much of the body as the socket takes.
    fn upload(&mut self, size: u64) -> io::Result<()> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        while wire.flush()? && self.uploaded < size {
            let piece = body(self.uploaded, (size - self.uploaded).min(256 << 10));
            wire.push(piece)?;
            self.uploaded += piece.len() as u64;
        }
        Ok(())
    }

    fn turn(
        &mut self,
        plan: &Plan,
        scratch: &mut [u8],
        readable: bool,
        mut closed: bool,
        report: &mut Report,
    ) -> io::Result<()> {
        let Client { wire: Some(wire), reply, asked, .. } = self else { return Ok(()) };
        if readable {
            let (before, now) = (reply.at, wire::now());
            closed |= !wire.read(scratch, |bytes| {
                reply.take(bytes, plan.answer, now, &mut report.events);
            })?;
            if let Some(fault) = reply.fault {
                return Err(io::Error::other(fault));
            }
            if let (0, 1.., Some((_, sent))) = (before, reply.at, &asked) {
                report.first_bytes.push(sent.elapsed().as_nanos() as u64);
            }
        }
        self.upload(plan.upload)?;
        if closed {
            if !self.reply.whole {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.wire = None;
        }
        Ok(())
    }
}

/// A timer that wakes the loop to the microsecond. The timeout of poll(2) has only milliseconds.
struct Timer {
    file: File,
    set: Option<Instant>,
}

impl Timer {
    fn new() -> io::Result<Timer> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been created, and no other code owns it.
        Ok(Timer { file: unsafe { File::from_raw_fd(fd) }, set: None })
    }

    fn set(&mut self, at: Instant) -> io::Result<()> {
        if self.set == Some(at) {
            return Ok(());
        }
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let left = libc::timespec {
            tv_sec: left.as_secs() as libc::time_t,
            tv_nsec: left.subsec_nanos().into(),
        };
        let once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let time = libc::itimerspec { it_interval: once, it_value: left };
        let fd = self.file.as_raw_fd();
        // SAFETY: the kernel reads a struct that outlives the call.
        if unsafe { libc::timerfd_settime(fd, 0, &time, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        self.set = Some(at);
        Ok(())
    }

    fn clear(&mut self) {
        let _ = self.file.read(&mut [0; 8]);
        self.set = None;
    }
}
