//! Makes room for other sessions: gives up the place, or the buffered request head.

use std::time::Instant;

use super::{AfterTurn, Buffers, End, Session, Turn};
use crate::http1::exchange::{Rest, State};
use crate::http1::local_response::Reject;
use crate::net::admission::IdleConnection;
use crate::net::buffer::Backlog;
use crate::net::slots::SlotId;

impl Session {
    /// This session as one that can be closed for another: no request is under way or waits to be
    /// read, and no response waits for the client. `None` if that is not so.
    pub fn as_idle(&self) -> Option<IdleConnection<SlotId>> {
        let since = match self.exchange.state() {
            _ if self.is_lingering() => self.clocks.client_active_at(),
            _ if self.socket.is_readable() || !self.output.is_empty() => return None,
            State::Idle => self.idle_since,
            // The upstream still reads the request.
            State::Complete { rest: Rest::Upload(_) } => return None,
            // A client that has its response cannot keep the place by sending more of its request.
            State::Complete { .. } => self.times.begun,
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. } => {
                return None;
            }
        };
        Some(IdleConnection { id: self.id, user: self.client.user, since })
    }

    fn has_unfinished_head(&self) -> bool {
        matches!(self.exchange.state(), State::Idle) && !self.input.is_empty()
    }

    /// Bytes of a buffered request head: an unfinished one, or one that waits for an upstream
    /// connection.
    pub fn buffered_head(&self) -> usize {
        match self.exchange.state() {
            State::Idle | State::Waiting(_) => self.input.bytes().len(),
            State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => 0,
        }
    }

    /// Since when an unfinished head has been buffered.
    pub fn head_since(&self) -> Option<Instant> {
        self.has_unfinished_head().then_some(self.clocks.client_active_at())
    }

    /// Refuses the request whose head is buffered, because all heads together are too large.
    pub fn drop_head(&mut self, turn: &mut Turn<'_>, buffers: &mut Buffers) -> AfterTurn {
        let reject = match self.exchange.state() {
            State::Idle => Reject::Timeout,
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => Reject::TooManyConnections,
        };
        self.input = Backlog::default();
        self.refuse_connection(reject, turn, buffers)
    }

    /// Closes the session for another one. A client in the middle of a request head gets a response
    /// that says so.
    pub fn evict(&mut self, turn: &mut Turn<'_>) -> AfterTurn {
        if self.has_unfinished_head() && self.refuse(Reject::Timeout, turn).is_ok() {
            self.log_end(End::Complete, turn);
        }
        self.close(turn.state)
    }
}
