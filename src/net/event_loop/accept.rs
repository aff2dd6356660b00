//! Accepting connections, and turning away those that are too many.

use std::io::{self, Write};
use std::time::Instant;

use mio::net::TcpStream;

use super::EventLoop;
use super::listener::Accepted;
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::net::admission::{Admission, Client, User};
use crate::net::limits::ACCEPTS_PER_PASS;
use crate::net::report::Event;
use crate::net::session::Session;
use crate::net::slots::Side;
use crate::net::socket::{EVENTS, Socket};
use crate::net::timeouts::ACCEPT_BACKOFF;
use crate::process::allowed_users::Identity;

impl EventLoop {
    /// Accepts a batch.
    pub(super) fn accept(&mut self, now: Instant) {
        if let Some(at) = self.accept_at {
            // Until then the news of further connections changes nothing.
            self.accept_again = now >= at;
            self.accept_at = self.accept_at.filter(|at| now < *at);
        }
        if !self.accept_again {
            return;
        }
        self.accept_again = false;
        let mut accepted = std::mem::take(&mut self.accepted);
        for index in 0..self.listeners.len() {
            // All are accepted before the kernel is asked whose they are.
            self.accept_batch(index, &mut accepted, now);
            self.identify(index, &mut accepted, now);
            for Accepted { stream, identity, .. } in accepted.drain(..) {
                self.admit(stream, identity, now);
            }
        }
        self.accepted = accepted;
        self.accept_again =
            self.accept_at.is_none() && self.listeners.iter().any(|listener| listener.is_waiting);
    }

    fn accept_batch(&mut self, index: usize, accepted: &mut Vec<Accepted>, now: Instant) {
        for _ in 0..ACCEPTS_PER_PASS {
            let Some(listener) =
                self.listeners.get_mut(index).filter(|listener| listener.is_waiting)
            else {
                return;
            };
            match listener.socket.accept() {
                Ok((stream, client)) => {
                    let identity = Identity::Allowed(0);
                    accepted.push(Accepted { stream, client, identity });
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => listener.is_waiting = false,
                    // The peer has gone already; the next may be there.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    // Out of descriptors or memory: asking again at once would spin.
                    _ => {
                        self.accept_at = Some(now + ACCEPT_BACKOFF);
                        return;
                    }
                },
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream, identity: Identity, now: Instant) {
        let (admission, user) = self.admission(identity, now);
        let reject = match admission {
            Admission::Serve => None,
            Admission::UserRefused => Some(Reject::UserNotAllowed),
            Admission::Overloaded => Some(Reject::TooManyConnections),
        };
        if let Some(reject) = reject.filter(|_| !self.places.can_linger(admission)) {
            // The response is written once and the connection closed, whether or not it arrives.
            let outgoing = &mut self.state.outgoing;
            outgoing.clear();
            reject.response().write(true, false, outgoing);
            outgoing.slices(&[]).for_each(|bytes| drop(stream.write(bytes)));
            return;
        }
        let uid = self.peers.as_ref().and_then(|peers| peers.uid(user.0));
        let client = Client { admission, user, uid, number: self.state.connections + 1 };
        let (poll, policy) = (&self.poll, self.policy);
        let key = self.sessions.insert(|key| {
            poll.registry().register(&mut stream, key.token(Side::Client), EVENTS).ok()?;
            let socket = Socket::new(stream, false, true);
            Some(Session::new(socket, key, policy, client, now))
        });
        let Some(key) = key else {
            return;
        };
        self.state.connections += 1;
        self.places.enter(admission, user);
        if admission == Admission::Serve {
            self.preconnect(user, now);
        }
        self.run_session(key, now, |session, turn, buffers| match reject {
            None => session.take_turn(turn, buffers),
            Some(reject) => session.refuse_connection(reject, turn, buffers),
        });
    }

    /// Decides what a connection is admitted as, once, before anything is done for it. A full table
    /// makes room by closing an idle connection.
    fn admission(&mut self, identity: Identity, now: Instant) -> (Admission, User) {
        let user = match identity {
            Identity::Allowed(position) => User(position),
            Identity::Refused(uid) => {
                self.refusals.note(uid, now);
                return (Admission::UserRefused, User::default());
            }
        };
        if !self.places.has_room(user, now) {
            let served = self
                .sessions
                .values()
                .filter(|session| session.client.admission == Admission::Serve);
            match self.places.evict(user, served.filter_map(Session::as_idle), now) {
                Some(key) => self.run_session(key, now, |session, turn, _| session.evict(turn)),
                None => {
                    self.places.note_overload(user, now);
                    return (Admission::Overloaded, user);
                }
            }
        }
        (Admission::Serve, user)
    }

    /// Whose each connection is, once, before anything is done for it.
    fn identify(&mut self, index: usize, accepted: &mut [Accepted], now: Instant) {
        let (Some(peers), Some(listener)) = (&mut self.peers, self.listeners.get(index)) else {
            return;
        };
        let mut batch = peers.batch(listener.address);
        for Accepted { stream, client, identity } in accepted {
            *identity = batch.identify(*client, || stream.peer_addr().is_ok());
        }
        if !batch.pause().is_zero() {
            self.accept_at = self.accept_at.max(Some(now + batch.pause()));
        }
    }

    /// Logs the connections of users who may not use the relay: together, so that these users
    /// cannot fill the log.
    pub(super) fn log_refusals(&mut self, now: Instant) {
        if self.refusals.due().is_some_and(|due| now >= due) {
            self.log_refusals_now();
        }
    }

    pub(super) fn log_refusals_now(&mut self) {
        for (uid, count) in self.refusals.take() {
            if self.state.log.has_exchanges() {
                let event = Event::new("user_refused", "a user whom --allow-uid does not name")
                    .optional("uid", uid.map(u64::from))
                    .number("count", count);
                self.state.log.event(&event);
            }
        }
    }

    /// Drops heads, the oldest unfinished one first, until all together are within their bound.
    pub(super) fn bound_heads(&mut self, now: Instant) {
        while self.state.head_bytes > limits::HEADS {
            let heads = self.sessions.values().filter(|session| session.buffered_head() > 0);
            // `None` last: a head that is whole and waits for an upstream connection.
            let order = |session: &&Session| (session.head_since().is_none(), session.head_since());
            let Some(key) = heads.min_by_key(order).map(Session::key) else {
                return;
            };
            self.run_session(key, now, Session::drop_head);
        }
    }
}
