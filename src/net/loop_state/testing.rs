//! For unit tests: what sessions share, with real sockets on loopback and a clock that the test
//! sets. The upstream is plain.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::{Buffers, LoopState};
use crate::connector::link::Link;
use crate::connector::wire::{LinkRequest, REQUEST};
use crate::http1::gather::GatherList;
use crate::net::access_log::Log;
use crate::net::admission::UserIndex;
use crate::net::clock::DateClock;
use crate::net::deadlines::Deadlines;
use crate::net::report::Form;
use crate::net::slots::{Side, SlotId, Slots};
use crate::net::socket::{EVENTS, Socket};
use crate::net::timeouts::Timeouts;
use crate::net::upstream::pool::Pool;
use crate::net::upstream::{Channel, Connection, Origin, Upstream};
use crate::process::confine::Sandbox;
use crate::process::credential::{Credential, KeyForm};
use crate::process::key_ring::KeyRing;
use crate::process::sys::child::poll;
use crate::process::sys::fd_passing::{message_pair, receive_message};

pub(in crate::net) const SECOND: Duration = Duration::from_secs(1);
/// The shortest time: this long before a deadline, it is not due.
pub(in crate::net) const MOMENT: Duration = Duration::from_nanos(1);

/// The parts of the loop that a session needs.
pub(in crate::net) struct Loop {
    poll: Poll,
    pub(in crate::net) state: LoopState,
    pub(in crate::net) buffers: Buffers,
    pub(in crate::net) now: Instant,

    /// The connector's end of the link.
    connector: OwnedFd,
}

/// Waits until the socket of a connection has something to read. No event is noted.
pub(in crate::net) fn arrives(upstreams: &mut Slots<Upstream>, id: SlotId) {
    readable(upstreams.connection(id).unwrap().socket());
}

/// Waits until a socket has something to read. No event is noted.
pub(in crate::net) fn readable(socket: &Socket) {
    let fd = socket.fd().as_raw_fd();
    let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
    poll(&mut fds, Some(20 * SECOND)).unwrap();
    assert_ne!(fds[0].revents, 0, "nothing comes");
}

/// The other end of a connection, which the test holds.
pub(in crate::net) struct FarEnd(pub(in crate::net) TcpStream);

impl Loop {
    /// `--client-timeout 10`, `--upstream-timeout 20`, no connection.
    pub(in crate::net) fn new() -> Loop {
        let poll = Poll::new().unwrap();
        let (ours, connector) = message_pair().unwrap();
        let mut key = &b"sk-0123456789abcdef\n"[..];
        let prefix = b"POST /v1/responses HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer ";
        let credential = Credential::read(prefix, KeyForm::Word, |buffer| key.read(buffer));
        let now = Instant::now();
        let mut date = DateClock::default();
        let mut outgoing = GatherList::default();
        outgoing.set_date(date.renew(now).unwrap());
        let state = LoopState {
            origin: Origin { tls: None, link: Rc::new(Link::new(ours)), proxy: None, users: None },
            keys: KeyRing::fixed(credential.ok().unwrap()),
            upstreams: Slots::new(8),
            pool: Pool::new(8, 1),
            deadlines: Deadlines::default(),
            registry: poll.registry().try_clone().unwrap(),
            outgoing,
            date,
            client_token: None,
            head_bytes: 0,
            requests_left: u64::MAX,
            log: Log::start(Form::Text, Sandbox::off()).unwrap(),
            connections: 0,
            timeouts: Timeouts { client: 10 * SECOND, upstream: Some(20 * SECOND) },
            shutdown: false,
        };
        Loop { poll, state, buffers: Buffers::default(), now, connector }
    }

    /// Makes a connection over loopback.
    pub(in crate::net) fn pair() -> (mio::net::TcpStream, FarEnd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        let (far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(20 * SECOND)).unwrap();
        far.set_write_timeout(Some(20 * SECOND)).unwrap();
        (mio::net::TcpStream::from_std(near), FarEnd(far))
    }

    /// Registers the stream of a connection.
    pub(in crate::net) fn register(
        &self,
        mut stream: mio::net::TcpStream,
        id: SlotId,
        side: Side,
    ) -> Socket {
        self.state.registry.register(&mut stream, id.token(side), EVENTS).unwrap();
        Socket::new(stream, false, true)
    }

    /// Makes an upstream connection that has been idle since an earlier pass.
    pub(in crate::net) fn idle_upstream(&mut self) -> (SlotId, FarEnd) {
        let (near, far) = Loop::pair();
        let now = self.now;
        let mut upstreams = std::mem::replace(&mut self.state.upstreams, Slots::new(0));
        let id = upstreams.insert(|id| {
            let channel = Channel::new(self.register(near, id, Side::Upstream));
            let mut connection = Connection::new(channel, None, None, None, now);
            connection.used_by = Some(UserIndex::default());
            Some(Upstream::Connection(connection))
        });
        self.state.upstreams = upstreams;
        let id = id.unwrap();
        self.state.pool.put(id, &mut self.state.upstreams, now);
        self.now += SECOND;
        (id, far)
    }

    /// Waits for at most this time until something happens on a connection. Upstream connections
    /// are told of it, and so is the client's socket. Returns whether something has happened.
    pub(in crate::net) fn events(
        &mut self,
        time: Duration,
        mut client: Option<&mut Socket>,
    ) -> bool {
        let mut events = Events::with_capacity(16);
        self.poll.poll(&mut events, Some(time)).unwrap();
        for event in &events {
            match SlotId::of(event.token()) {
                (_, Side::Client) => {
                    if let Some(client) = &mut client {
                        client.note(event);
                    }
                }
                (id, Side::Upstream) => {
                    if let Some(up) = self.state.upstreams.get(id) {
                        up.note(event);
                    }
                }
            }
        }
        !events.is_empty()
    }
}

impl Loop {
    /// The next request to the connector; `None` if there is none.
    pub(in crate::net) fn asked(&self) -> Option<LinkRequest> {
        let mut message = [0; REQUEST];
        receive_message(self.connector.as_fd(), &mut message).ok()?;
        Some(LinkRequest::decode(&message).ok().unwrap())
    }
}

impl FarEnd {
    pub(in crate::net) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    /// Reads until this text has come; fails if the end comes first.
    pub(in crate::net) fn read_until(&mut self, text: &str) -> String {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(text.as_bytes()) {
            assert_eq!(self.0.read(&mut byte).unwrap(), 1, "the end comes before {text:?}");
            seen.push(byte[0]);
        }
        String::from_utf8(seen).unwrap()
    }

    /// Reads to the end. `None` if the connection was reset.
    pub(in crate::net) fn rest(&mut self) -> Option<String> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => Some(String::from_utf8(rest).unwrap()),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                None
            }
        }
    }

    /// Nothing has come, and no end.
    pub(in crate::net) fn is_silent(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let peeked = self.0.peek(&mut [0]);
        self.0.set_nonblocking(false).unwrap();
        peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}
