//! The load: so many connections, each asking by a plan of its own, from one thread. Every byte of
//! every answer is checked.

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
/// A run that takes this much longer than planned is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// After so many failures no more requests are sent.
const FAILURES: usize = 100;

/// Whom to ask.
#[derive(Clone)]
pub struct Target {
    pub port: u16,
    /// Straight to the upstream: over TLS, with the key.
    pub direct: Option<(Arc<ClientConfig>, String)>,
}

/// When each connection asks.
#[derive(Clone, Copy, PartialEq)]
pub enum Pace {
    /// Again as soon as it has its answer, for so long.
    Saturate(Duration),
    /// So many times in a second, all connections together, for so long. A request that has to wait
    /// for the answer to the one before it counts from when it was to be sent: what a slow answer
    /// does to those behind it is not left out (the omission that wrk2 corrects).
    Rate(f64, Duration),
    /// So many times each, one answer after the other, the first ones spread over so long.
    Times(u64, Duration),
}

/// One run.
pub struct Plan {
    pub connections: usize,
    pub pace: Pace,
    /// Bytes of each request's body.
    pub upload: u64,
    pub answer: Answer,
    /// When, from the start on, the caller's clocks are read.
    pub marks: Vec<Duration>,
}

/// What came of it. Times in nanoseconds.
#[derive(Default)]
pub struct Report {
    /// From when a request was planned to the end of its answer, with the moment of that end.
    pub answers: Vec<(Instant, u64)>,
    /// From sending a request to the first byte of its answer's body.
    pub first_bytes: Vec<u64>,
    /// From an event's leaving the upstream to its arrival.
    pub events: Vec<u64>,
    /// Requests without their whole and right answer.
    pub failed: usize,
    /// Why the last of them failed.
    pub fault: Option<String>,
}

impl Report {
    /// Answers that ended between these moments.
    pub fn answered(&self, from: Instant, to: Instant) -> usize {
        self.answers.iter().filter(|(end, _)| (from..to).contains(end)).count()
    }
}

/// Carries the plan out; calls `mark` at each of its marks.
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
    /// The head of each request, and so much of the body as goes with it.
    first: Vec<u8>,
    first_body: u64,
    poll: Poll,
    clients: Vec<Client>,
    /// When which client asks next.
    due: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Clients that wait for an answer.
    busy: usize,
    report: Report,
}

struct Client {
    wire: Option<Wire>,
    /// Requests begun.
    count: u64,
    /// The one that is under way: when it was planned, when it was sent.
    asked: Option<(Instant, Instant)>,
    /// Bytes of its body that have been sent.
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

    /// When this client's next request is to be sent, if there is to be one.
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

    /// Reads and writes what can be, and asks again after an answer.
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

/// Wakes the loop to the microsecond, where a poll's own timeout knows milliseconds.
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
        // SAFETY: the descriptor is new and nobody else's.
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
