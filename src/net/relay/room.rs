//! What a connection gives up when others need room: its place, or the head that it has buffered.

use std::time::Instant;

use super::{Relay, Shared, Turn};
use crate::http1::local_response::Reject;
use crate::net::admission::IdleConnection;
use crate::net::buffer::Backlog;
use crate::net::slots::Key;

impl Relay {
    /// The connection as one that can be closed for another's sake: no request is under way, none
    /// has come that was not read yet, and no response waits for the client.
    pub fn as_idle(&self) -> Option<IdleConnection<Key>> {
        let since = if self.lingering {
            self.stall
        } else if self.socket.is_readable() || !self.output.is_empty() {
            return None;
        } else if self.exchange.is_idle() {
            self.idle_since
        } else if self.exchange.is_complete() && !self.exchange.is_uploading() {
            // What is left of a request that has its response does not keep the place, unless the
            // upstream still reads it.
            self.times.begun
        } else {
            return None;
        };
        Some(IdleConnection { key: self.key, user: self.user, since })
    }

    /// Its name.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Bytes of a head that is buffered: unfinished, or waiting for an upstream connection.
    pub fn buffered_head(&self) -> usize {
        let is_head = self.exchange.is_idle() || self.exchange.is_waiting();
        if is_head { self.input.bytes().len() } else { 0 }
    }

    /// Since when an unfinished head has been buffered.
    pub fn head_since(&self) -> Option<Instant> {
        (self.exchange.is_idle() && !self.input.is_empty()).then_some(self.stall)
    }

    /// Refuses the request whose head is buffered, because all heads together are too large.
    pub fn drop_head(&mut self, shared: &mut Shared, now: Instant) -> Turn {
        let is_unfinished = self.exchange.is_idle();
        self.input = Backlog::default();
        self.refuse(
            if is_unfinished { Reject::Timeout } else { Reject::TooManyConnections },
            shared,
        );
        self.turn(shared, now)
    }

    /// Gives the place up for another connection. A client in the middle of a head is told.
    pub fn evict(&mut self, shared: &mut Shared, now: Instant) -> Turn {
        if self.exchange.is_idle() && !self.input.is_empty() {
            self.refuse(Reject::Timeout, shared);
            self.log("complete", shared, now);
        }
        self.release(shared);
        Turn::Close
    }
}
