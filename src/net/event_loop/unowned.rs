//! Upstream connections without a request: the idle ones, and at most one that is being made.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::net::admission::User;
use crate::net::slots::{Key, Side};
use crate::net::timeouts::CONNECT;
use crate::net::upstream::Upstream;

impl EventLoop {
    /// Preconnects, because a client has connected: DNS, TCP and TLS pass while the client writes
    /// its request. At most one such connection is made at a time. If it ends unused it is not
    /// replaced, so that the upstream sees no connections without a client.
    pub(super) fn preconnect(&mut self, user: User, now: Instant) {
        if !self.state.needs_preconnect(user, now) {
            return;
        }
        let new = |key: Key| Some(Upstream::new(key.token(Side::Upstream), None, now, CONNECT));
        let key = self.state.upstreams.insert(new);
        self.state.pool.set_preconnect(key);
        if let Some(key) = key {
            self.state.advance_unowned(key, &mut self.buffers.upstream, now);
        }
    }

    /// Advances the unowned connections that events have named.
    pub(super) fn advance_all_unowned(&mut self, now: Instant) {
        while let Some(key) = self.unowned_ready.pop() {
            self.state.advance_unowned(key, &mut self.buffers.upstream, now);
        }
    }

    /// The machine has slept: ages idle connections by that time and closes the old ones.
    pub(super) fn wake_up(&mut self, slept: Duration, now: Instant) {
        for key in self.state.upstreams.keys() {
            if let Some(up) = self.state.upstreams.get(key).filter(|up| up.owner().is_none()) {
                up.has_slept(slept);
                if up.wakes_at().is_some_and(|when| when <= now) {
                    self.close_idle(key);
                }
            }
        }
    }

    /// Closes a connection that has been idle for too long.
    pub(super) fn close_idle(&mut self, key: Key) {
        self.state.pool.forget(key);
        self.state.upstreams.remove(key);
    }
}
