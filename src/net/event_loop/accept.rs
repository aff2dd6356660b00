//! Accepts connections, and decides which of them get a place.

use std::io::Write;
use std::time::Instant;

use mio::net::TcpStream;

use super::EventLoop;
use super::listener::{Accepted, Accepting};
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::net::admission::{Admission, Client, UserIndex};
use crate::net::report::Event;
use crate::net::session::Session;
use crate::net::slots::Side;
use crate::net::socket::{EVENTS, Socket};
use crate::process::allowed_users::Identity;

impl EventLoop {
    /// Accepts a batch from each listener.
    pub(super) fn accept(&mut self, now: Instant) {
        if !self.accepting.is_due(now) {
            return;
        }
        self.accepting = Accepting::AfterEvent;
        for index in 0..self.listeners.len() {
            // All are accepted first, so that the kernel is asked for their users once.
            if let Some(listener) = self.listeners.get_mut(index)
                && listener.accept_batch(&mut self.accepted).is_err()
            {
                self.accepting.back_off(now);
            }
            self.identify(index, now);
            while let Some(accepted) = self.accepted.pop_front() {
                self.admit(accepted.stream, accepted.identity, now);
            }
        }
        if self.listeners.iter().any(|listener| listener.is_waiting) {
            self.accepting.note_event();
        }
    }

    /// Makes a session of a connection, or refuses it.
    fn admit(&mut self, mut stream: TcpStream, identity: Identity, now: Instant) {
        let (admission, user) = self.admission(identity, now);
        let reject = match admission {
            Admission::Serve => None,
            Admission::UserRefused => Some(Reject::UserNotAllowed),
            Admission::Overloaded => Some(Reject::TooManyConnections),
        };
        if let Some(reject) = reject.filter(|_| !self.places.can_linger(admission)) {
            // Enough refused connections linger already. This one gets its response and is closed;
            // a reset may destroy the response.
            let outgoing = &mut self.state.outgoing;
            outgoing.clear();
            reject.response().write(true, false, outgoing);
            outgoing.slices(&[]).for_each(|bytes| drop(stream.write(bytes)));
            return;
        }
        let uid = self.allowed_users.as_ref().and_then(|users| users.uid(user.0));
        let client = Client { admission, user, uid, number: self.state.connections + 1 };
        let (poll, policy) = (&self.poll, self.policy);
        let id = self.sessions.insert(|id| {
            poll.registry().register(&mut stream, id.token(Side::Client), EVENTS).ok()?;
            let socket = Socket::new(stream, false, true);
            Some(Session::new(socket, id, policy, client, now))
        });
        let Some(id) = id else {
            return;
        };
        self.state.connections += 1;
        self.places.enter(admission, user);
        if admission == Admission::Serve {
            self.preconnect(user, now);
        }
        self.run_session(id, now, &mut |session, turn, buffers| match reject {
            None => session.take_turn(turn, buffers),
            Some(reject) => session.refuse_connection(reject, turn, buffers),
        });
    }

    /// Decides how a connection is admitted. If the table is full, an idle connection is closed.
    fn admission(&mut self, identity: Identity, now: Instant) -> (Admission, UserIndex) {
        let user = match identity {
            Identity::Allowed(position) => UserIndex(position),
            Identity::Refused(uid) => {
                self.refusals.note(uid, now);
                return (Admission::UserRefused, UserIndex::default());
            }
        };
        if !self.places.has_place_for(user, now) {
            let is_served = |session: &&Session| session.client.admission == Admission::Serve;
            let idle = self.sessions.values().filter(is_served).filter_map(Session::as_idle);
            match self.places.evict(user, idle, now) {
                Some(id) => self.run_session(id, now, &mut |session, turn, _| session.evict(turn)),
                None => {
                    self.places.note_overload(user, now);
                    return (Admission::Overloaded, user);
                }
            }
        }
        (Admission::Serve, user)
    }

    /// Asks the kernel for the user of each connection, if `--allow-uid` is given.
    fn identify(&mut self, index: usize, now: Instant) {
        let EventLoop { allowed_users, listeners, accepted, accepting, .. } = self;
        let (Some(users), Some(listener)) = (allowed_users, listeners.get(index)) else {
            return;
        };
        let mut batch = users.batch(listener.address);
        for Accepted { stream, client, identity } in accepted {
            *identity = batch.identify(*client, || stream.peer_addr().is_ok());
        }
        if !batch.pause().is_zero() {
            accepting.pause_until(now + batch.pause());
        }
    }

    /// Logs the connections of users who may not use the relay. They are logged together, so that
    /// these users cannot fill the log.
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

    /// Refuses requests whose heads are buffered, until all heads together are within their bound.
    /// The oldest unfinished head goes first, whole heads that wait for the upstream go last.
    pub(super) fn bound_heads(&mut self, now: Instant) {
        while self.state.head_bytes > limits::HEADS {
            let heads = self.sessions.values().filter(|session| session.buffered_head() > 0);
            // A whole head has no `head_since`.
            let order = |session: &&Session| (session.head_since().is_none(), session.head_since());
            let Some(id) = heads.min_by_key(order).map(Session::id) else {
                return;
            };
            self.run_session(id, now, &mut Session::drop_head);
        }
    }
}
