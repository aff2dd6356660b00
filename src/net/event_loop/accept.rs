//! Accepting connections, and turning away those that are too many.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::Token;
use mio::net::{TcpListener, TcpStream};

use super::EventLoop;
use crate::http1::exchange::Exchange;
use crate::http1::refusal::Reject;
use crate::net::admission::{Admission, User};
use crate::net::relay::Relay;
use crate::net::report::Event;
use crate::net::slots::Side;
use crate::net::socket::{EVENTS, Socket};
use crate::process::peer::Identity;

/// Connections accepted in one turn of the loop.
const ACCEPTS: usize = 64;
/// How long accepting pauses when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A socket that clients connect to.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) token: Token,
    /// Connections may wait to be accepted.
    pub(super) is_waiting: bool,
}

impl EventLoop {
    /// Accepts a batch.
    pub(super) fn accept(&mut self, now: Instant) {
        if self.accept_at.is_some_and(|at| now >= at) {
            self.accept_at = None;
            self.accept_again = true;
        }
        if !self.accept_again {
            return;
        }
        self.accept_again = false;
        for index in 0..self.doors.len() {
            for _ in 0..ACCEPTS {
                let Some(door) = self.doors.get_mut(index).filter(|door| door.is_waiting) else {
                    break;
                };
                match door.listener.accept() {
                    Ok((stream, peer)) => {
                        let local = door.address;
                        self.admit(stream, peer, local, now);
                    }
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => door.is_waiting = false,
                        // The peer has gone already; the next may be there.
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                        // Out of descriptors or memory: asking again at once would spin.
                        _ => {
                            self.accept_at = Some(now + PAUSE);
                            return;
                        }
                    },
                }
            }
        }
        self.accept_again = self.doors.iter().any(|door| door.is_waiting);
    }

    fn admit(&mut self, mut stream: TcpStream, peer: SocketAddr, local: SocketAddr, now: Instant) {
        let (admission, user) = self.admission(peer, local, now);
        let reject = match admission {
            Admission::Serve => None,
            Admission::UserRefused => Some(Reject::UserNotAllowed),
            Admission::Overloaded => Some(Reject::TooManyConnections),
        };
        if let Some(reject) = reject.filter(|_| !self.places.can_linger(admission)) {
            // Said and closed at once, whether or not it arrives.
            let pieces = &mut self.shared.pieces;
            pieces.clear();
            Exchange::new(self.policy).refuse(reject, pieces);
            pieces.slices(&[]).for_each(|bytes| drop(stream.write(bytes)));
            return;
        }
        let (poll, policy) = (&self.poll, self.policy);
        let key = self.downs.insert(|key| {
            poll.registry().register(&mut stream, key.token(Side::Downstream), EVENTS).ok()?;
            let socket = Socket::new(stream, false, true);
            Some(Relay::new(socket, key, policy, (admission, user), now))
        });
        let Some(key) = key else {
            return;
        };
        self.places.enter(admission, user);
        if admission == Admission::Serve {
            self.prepare(user, now);
        }
        self.with(key, |relay, shared| match reject {
            None => relay.turn(shared, now),
            Some(reject) => relay.turn_away(reject, shared, now),
        });
    }

    /// Decides what a connection is admitted as, once, before anything is done for it. A full table
    /// makes room by closing an idle connection.
    fn admission(
        &mut self,
        peer: SocketAddr,
        local: SocketAddr,
        now: Instant,
    ) -> (Admission, User) {
        let user = match self.identify(peer, local) {
            Identity::Allowed(position) => User(position),
            Identity::Refused(uid) => {
                self.refusals.note(uid, now);
                return (Admission::UserRefused, User::default());
            }
        };
        if !self.places.has_room(user, now) {
            let served = self.downs.values().filter(|relay| relay.admission == Admission::Serve);
            match self.places.evict(user, served.filter_map(Relay::as_idle), now) {
                Some(key) => self.with(key, |relay, shared| relay.evict(shared, now)),
                None => {
                    self.places.note_overload(user, now);
                    return (Admission::Overloaded, user);
                }
            }
        }
        (Admission::Serve, user)
    }

    fn identify(&mut self, peer: SocketAddr, local: SocketAddr) -> Identity {
        match (&mut self.peers, peer, local) {
            (None, ..) => Identity::Allowed(0),
            (Some(peers), SocketAddr::V4(peer), SocketAddr::V4(local)) => {
                peers.identify(peer, local)
            }
            _ => Identity::Refused(None),
        }
    }

    /// Logs the connections of users who may not use the relay: together, so that these users cannot
    /// fill the log.
    pub(super) fn log_refusals(&mut self, now: Instant) {
        if self.refusals.due().is_some_and(|due| now >= due) {
            self.log_refusals_now();
        }
    }

    pub(super) fn log_refusals_now(&mut self) {
        for (uid, count) in self.refusals.take() {
            if self.shared.log.has_exchanges() {
                let event = Event::new("user_refused", "a user whom --allow-uid does not name")
                    .optional("uid", uid.map(u64::from))
                    .number("count", count);
                self.shared.log.event(&event);
            }
        }
    }
}
