//! What a connection gives up when others need room: its place, or the head that it has buffered.

use std::time::Instant;

use super::{AfterTurn, LoopState, Session};
use crate::http1::exchange::{Rest, State};
use crate::http1::local_response::Reject;
use crate::net::admission::IdleConnection;
use crate::net::buffer::Backlog;
use crate::net::slots::Key;

impl Session {
    /// The connection as one that can be closed for another's sake: no request is under way, none
    /// has come that was not read yet, and no response waits for the client.
    pub fn as_idle(&self) -> Option<IdleConnection<Key>> {
        let since = match self.exchange.state() {
            _ if self.is_lingering() => self.clocks.client_active_at(),
            _ if self.socket.is_readable() || !self.output.is_empty() => return None,
            State::Idle => self.idle_since,
            // The upstream still reads the request.
            State::Complete { rest: Rest::Upload(_) } => return None,
            // The rest of a request that has its response does not keep the place.
            State::Complete { .. } => self.times.begun,
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. } => {
                return None;
            }
        };
        Some(IdleConnection { key: self.key, user: self.client.user, since })
    }

    fn has_unfinished_head(&self) -> bool {
        matches!(self.exchange.state(), State::Idle) && !self.input.is_empty()
    }

    /// Its name.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Bytes of a head that is buffered: unfinished, or waiting for an upstream connection.
    pub fn buffered_head(&self) -> usize {
        match self.exchange.state() {
            State::Idle | State::Waiting(_) => self.input.bytes().len(),
            _ => 0,
        }
    }

    /// Since when an unfinished head has been buffered.
    pub fn head_since(&self) -> Option<Instant> {
        self.has_unfinished_head().then_some(self.clocks.client_active_at())
    }

    /// Refuses the request whose head is buffered, because all heads together are too large.
    pub fn drop_head(&mut self, state: &mut LoopState, now: Instant) -> AfterTurn {
        let reject = match self.exchange.state() {
            State::Idle => Reject::Timeout,
            _ => Reject::TooManyConnections,
        };
        self.input = Backlog::default();
        self.refuse_connection(reject, state, now)
    }

    /// Gives the place up for another connection. A client in the middle of a head is told.
    pub fn evict(&mut self, state: &mut LoopState, now: Instant) -> AfterTurn {
        if self.has_unfinished_head() && self.refuse(Reject::Timeout, state, now).is_ok() {
            self.log("complete", state, now);
        }
        self.release(state);
        AfterTurn::Close
    }
}
