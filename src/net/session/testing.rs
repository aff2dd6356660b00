//! For unit tests: one session with its client, outside of the loop.

use std::io::{Read, Write};
use std::time::Duration;

use super::{AfterTurn, Session, Turn};
use crate::http1::request::Policy;
use crate::net::admission::{Admission, Client, UserIndex};
use crate::net::loop_state::testing::{FarEnd, Loop, SECOND};
use crate::net::slots::{Side, Slots};

pub(super) const REQUEST: &str = "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n\r\n";
/// The head of a request whose body has ten bytes.
pub(super) const HEAD: &str =
    "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n";
pub(super) const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

/// A session, the client, and what the loop gives to the session.
pub(super) struct Served {
    pub(super) net: Loop,
    pub(super) session: Session,
    pub(super) client: FarEnd,
}

impl Served {
    pub(super) fn new() -> Served {
        let net = Loop::new();
        let id = Slots::new(1).insert(|_| Some(())).unwrap();
        let (near, client) = Loop::pair();
        let socket = net.register(near, id, Side::Client);
        let who = Client {
            admission: Admission::Serve,
            user: UserIndex::default(),
            uid: None,
            number: 1,
        };
        let session = Session::new(socket, id, Policy::default(), who, net.now);
        Served { net, session, client }
    }

    /// A session that has sent this request on an idle upstream connection, whose other end is
    /// returned. The time is that of the request.
    pub(super) fn asked(request: &str) -> (Served, FarEnd) {
        let mut served = Served::new();
        let (_, upstream) = served.net.idle_upstream();
        served.client.send(request);
        served.until(|session| session.upstream.is_some());
        (served, upstream)
    }

    /// A session that has carried one exchange, with its client and its idle upstream connection.
    pub(super) fn kept() -> (Served, FarEnd) {
        let (mut served, mut upstream) = Served::asked(REQUEST);
        upstream.read_until("\r\n\r\n");
        upstream.send(RESPONSE);
        served.until(|session| session.served);
        served.client.read_until("fine");
        (served, upstream)
    }

    /// Leaves no room in the client's socket. Returns how many bytes the client reads before
    /// anything else.
    pub(super) fn fill_client(&mut self) -> usize {
        let mut filled = 0;
        loop {
            match self.session.socket.write(&[b'x'; 65_536]).unwrap() {
                0 => return filled,
                n => filled += n,
            }
            // The first write that is cut short clears the readiness, and an event would set it.
            while self.net.events(Duration::ZERO, Some(&mut self.session.socket)) {}
        }
    }

    /// The client reads these bytes that [`Served::fill_client`] has written.
    pub(super) fn drain_client(&mut self, filled: usize) {
        self.client.0.read_exact(&mut vec![0; filled]).unwrap();
    }

    /// One turn, at the time of the clock.
    pub(super) fn turn(&mut self) -> AfterTurn {
        self.act(|session, turn, buffers| session.take_turn(turn, buffers))
    }

    /// A turn in which this is done.
    pub(super) fn act<T>(
        &mut self,
        act: impl FnOnce(&mut Session, &mut Turn<'_>, &mut super::Buffers) -> T,
    ) -> T {
        let now = self.net.now;
        let mut turn = Turn { state: &mut self.net.state, now, bytes_read: 0 };
        act(&mut self.session, &mut turn, &mut self.net.buffers)
    }

    /// Gives turns, for all that happens on the connections, until this is so.
    pub(super) fn until(&mut self, is_so: impl Fn(&Session) -> bool) {
        while !is_so(&self.session) {
            match self.turn() {
                AfterTurn::Close => panic!("the session has ended"),
                AfterTurn::Again => {}
                AfterTurn::Wait if is_so(&self.session) => {}
                AfterTurn::Wait => self.wait(),
            }
        }
    }

    /// Waits until something happens on a connection.
    fn wait(&mut self) {
        let has_come = self.net.events(20 * SECOND, Some(&mut self.session.socket));
        assert!(has_come, "nothing happens");
    }

    /// Notes events until bytes of the client have come. No turn is given.
    pub(super) fn client_comes(&mut self) {
        while !self.session.socket.is_readable() {
            self.wait();
        }
    }

    /// Gives turns until the session is to be closed, and closes it.
    pub(super) fn until_closed(mut self) -> (Loop, FarEnd) {
        loop {
            match self.turn() {
                AfterTurn::Close => return (self.net, self.client),
                AfterTurn::Again => {}
                AfterTurn::Wait => self.wait(),
            }
        }
    }

    /// The time passes, and the loop looks whether a deadline has.
    pub(super) fn pass(&mut self, time: Duration) -> AfterTurn {
        self.net.now += time;
        self.act(|session, turn, buffers| session.on_deadline(turn, buffers))
    }
}
