//! The upstream: one thread that speaks TLS 1.3 and responds to `POST /v1/responses` as the
//! request's `x-answer` field asks. It checks the key (401) and every byte of the body (400).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::{ServerConfig, ServerConnection};

use crate::wire::{self, Wire, body, is_body};

const LISTENER: Token = Token(usize::MAX);
/// The most bytes that wait for one connection's socket. A response continues when they are sent.
const QUEUE: usize = 256 << 10;

/// The response that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// This many bytes, with a Content-Length.
    Length(u64),
    /// This many bytes in chunks of one size, each in a TLS record of its own.
    Chunked(u64, u64),
    /// This many events, each with the time when it is sent, at this interval in milliseconds.
    Timed(u64, u64),
}

impl Answer {
    /// The value of the field that asks for this response.
    pub fn to_field(self) -> String {
        match self {
            Answer::Length(bytes) => format!("length {bytes} 0"),
            Answer::Chunked(bytes, chunk) => format!("chunked {bytes} {chunk}"),
            Answer::Timed(events, interval) => format!("timed {events} {interval}"),
        }
    }

    fn from_field(value: &str) -> Option<Answer> {
        let mut words = value.split(' ');
        let kind = words.next()?;
        let (a, b) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(match kind {
            "length" => Answer::Length(a),
            "chunked" => Answer::Chunked(a, b),
            "timed" => Answer::Timed(a, b),
            _ => return None,
        })
    }

    /// The size of its body in bytes.
    pub fn size(self) -> u64 {
        match self {
            Answer::Length(bytes) | Answer::Chunked(bytes, _) => bytes,
            Answer::Timed(events, _) => events * wire::TIMED as u64,
        }
    }
}

/// Serves on a thread until the process ends; returns the port.
pub fn serve(config: ServerConfig, key: &str) -> io::Result<u16> {
    let mut listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    let port = listener.local_addr()?.port();
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut upstream = Upstream {
        poll,
        listener,
        config: Arc::new(config),
        authorization: format!("Bearer {key}").into_bytes(),
        peers: Vec::new(),
        free: Vec::new(),
        timers: BinaryHeap::new(),
    };
    std::thread::spawn(move || upstream.run().expect("the upstream's loop"));
    Ok(port)
}

struct Upstream {
    poll: Poll,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    authorization: Vec<u8>,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    /// When each connection's next event is due. An entry of a closed connection is harmless: the
    /// connection that takes its place checks itself whether an event is due.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
}

struct Peer {
    wire: Wire,
    input: Vec<u8>,
    state: State,
    answer: Answer,
    /// The number of bytes of the response's body that have been sent.
    sent: u64,
    /// The moment of its entry in the list.
    timer: Option<Instant>,
}

enum State {
    Head,
    Body { at: u64, length: u64, right: bool },
    Answering { due: Instant },
}

impl Upstream {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; wire::READ];
        loop {
            let timeout = self
                .timers
                .peek()
                .map(|Reverse((due, _))| due.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, timeout) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            for event in &events {
                if event.token() == LISTENER {
                    self.accept()?;
                    continue;
                }
                let index = event.token().0;
                let Some(peer) = &mut self.peers[index] else { continue };
                let waits = peer.turn(&self.authorization, &mut scratch, event.is_readable());
                if event.is_read_closed() {
                    self.settle(index, Err(io::ErrorKind::UnexpectedEof.into()));
                } else {
                    self.settle(index, waits);
                }
            }
            while let Some(Reverse((due, index))) = self.timers.peek().copied()
                && due <= Instant::now()
            {
                self.timers.pop();
                if let Some(peer) = &mut self.peers[index] {
                    let waits = peer.turn(&self.authorization, &mut scratch, false);
                    self.settle(index, waits);
                }
            }
        }
    }

    /// After a turn of a connection: it waits for a moment or for its socket, or has ended.
    fn settle(&mut self, index: usize, waits: io::Result<Option<Instant>>) {
        match waits {
            Ok(due) => {
                if let (Some(due), Some(peer)) = (due, &mut self.peers[index])
                    && peer.timer.replace(due) != Some(due)
                {
                    self.timers.push(Reverse((due, index)));
                }
            }
            Err(_) => {
                self.peers[index] = None;
                self.free.push(index);
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => self.add(socket)?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
    }

    fn add(&mut self, mut socket: TcpStream) -> io::Result<()> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.peers.push(None);
            self.peers.len() - 1
        });
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut socket, Token(index), both)?;
        let tls = ServerConnection::new(self.config.clone()).map_err(io::Error::other)?;
        self.peers[index] = Some(Peer {
            wire: Wire::new(socket, Some(tls.into()))?,
            input: Vec::new(),
            state: State::Head,
            answer: Answer::Length(0),
            sent: 0,
            timer: None,
        });
        Ok(())
    }
}

impl Peer {
    /// Reads and writes as much as possible. Returns when the next event is due, if any.
    fn turn(
        &mut self,
        authorization: &[u8],
        scratch: &mut [u8],
        readable: bool,
    ) -> io::Result<Option<Instant>> {
        if readable {
            let Peer { wire, input, state, .. } = self;
            let open = wire.read(scratch, |bytes| match state {
                State::Body { at, length, right } if *at + bytes.len() as u64 <= *length => {
                    *right &= is_body(*at, bytes);
                    *at += bytes.len() as u64;
                }
                _ => input.extend_from_slice(bytes),
            })?;
            if !open {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        loop {
            match self.state {
                State::Head => {
                    if !self.head(authorization)? {
                        break;
                    }
                }
                State::Body { at, length, right } if at == length => {
                    if right {
                        self.begin()?;
                    } else {
                        self.refuse("400 Bad Request")?;
                    }
                }
                State::Body { .. } => break,
                State::Answering { due } => {
                    if !self.wire.flush()? {
                        return Ok(None);
                    }
                    if self.sent == self.answer.size() {
                        self.state = State::Head;
                    } else if let Answer::Timed(..) = self.answer {
                        if due > Instant::now() {
                            return Ok(Some(due));
                        }
                        self.event(due)?;
                    } else {
                        self.more()?;
                    }
                }
            }
        }
        self.wire.flush()?;
        Ok(None)
    }

    /// Parses a complete head. The bytes after it belong to the body.
    fn head(&mut self, authorization: &[u8]) -> io::Result<bool> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut fields);
        let status = request.parse(&self.input).map_err(io::Error::other)?;
        let httparse::Status::Complete(end) = status else { return Ok(false) };
        let mut keys = 0;
        let mut fine = (request.method, request.path) == (Some("POST"), Some("/v1/responses"));
        let (mut length, mut answer) = (None, None);
        for field in request.headers.iter() {
            let is = |name| field.name.eq_ignore_ascii_case(name);
            if is("authorization") {
                keys += 1;
                fine &= field.value == authorization;
            } else if is("content-length") {
                length = std::str::from_utf8(field.value).ok().and_then(|v| v.parse().ok());
            } else if is("x-answer") {
                answer = std::str::from_utf8(field.value).ok().and_then(Answer::from_field);
            }
        }
        let (Some(length), Some(answer)) = (length, answer) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if keys != 1 || !fine {
            self.refuse("401 Unauthorized")?;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.answer = answer;
        self.sent = 0;
        let right = is_body(0, &self.input[end..]);
        self.state = State::Body { at: (self.input.len() - end) as u64, length, right };
        self.input.clear();
        Ok(true)
    }

    fn refuse(&mut self, status: &str) -> io::Result<()> {
        self.wire.push(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
        self.wire.flush()?;
        self.state = State::Head;
        Ok(())
    }

    /// Sends the head of the response, and a short body in the same record.
    fn begin(&mut self) -> io::Result<()> {
        self.state = State::Answering { due: Instant::now() };
        let Answer::Length(length) = self.answer else {
            return self.wire.push(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n\
                  Transfer-Encoding: chunked\r\n\r\n",
            );
        };
        let first = body(0, length.min(8 << 10));
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        self.sent = first.len() as u64;
        self.wire.push(&[head.as_bytes(), first].concat())
    }

    /// Sends more of a body that is not timed.
    fn more(&mut self) -> io::Result<()> {
        let mut queued = 0;
        while queued < QUEUE && self.sent < self.answer.size() {
            let left = self.answer.size() - self.sent;
            let piece = match self.answer {
                Answer::Chunked(_, chunk) => {
                    let piece = body(self.sent, left.min(chunk));
                    let size = format!("{:x}\r\n", piece.len());
                    self.wire.push(&[size.as_bytes(), piece, b"\r\n"].concat())?;
                    piece
                }
                _ => {
                    let piece = body(self.sent, left.min(QUEUE as u64));
                    self.wire.push(piece)?;
                    piece
                }
            };
            self.sent += piece.len() as u64;
            queued += piece.len();
        }
        self.last_chunk()
    }

    /// Sends the event that is due.
    fn event(&mut self, due: Instant) -> io::Result<()> {
        let Answer::Timed(_, interval) = self.answer else { return Ok(()) };
        let event = wire::timed_event(self.sent / wire::TIMED as u64, wire::now());
        let size = format!("{:x}\r\n", event.len());
        self.wire.push(&[size.as_bytes(), &event, b"\r\n"].concat())?;
        self.sent += event.len() as u64;
        self.state = State::Answering { due: due + Duration::from_millis(interval) };
        self.last_chunk()
    }

    fn last_chunk(&mut self) -> io::Result<()> {
        let chunked = !matches!(self.answer, Answer::Length(_));
        if chunked && self.sent == self.answer.size() {
            self.wire.push(b"0\r\n\r\n")?;
        }
        Ok(())
    }
}
