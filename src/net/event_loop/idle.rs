//! Upstream connections that work for nobody: those that are idle, and one that is being made.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::net::admission::User;
use crate::net::slots::{Key, Side};
use crate::net::timeouts::CONNECT;
use crate::net::upstream::Upstream;

impl EventLoop {
    /// A client has connected: begins the upstream connection that its request will need, so that
    /// DNS, TCP and TLS pass while the request is being written. One at most is made for nobody,
    /// and none is made again because one has ended: only clients who connect bring connections
    /// about.
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

    /// Sees to those on which something has come.
    pub(super) fn advance_all_unowned(&mut self, now: Instant) {
        while let Some(key) = self.unowned_ready.pop() {
            self.state.advance_unowned(key, &mut self.buffers.upstream, now);
        }
    }

    /// Ages idle connections by the time that the machine has slept, and closes those that are too
    /// old.
    pub(super) fn wake_up(&mut self, slept: Duration, now: Instant) {
        for key in self.state.upstreams.keys() {
            if let Some(up) = self.state.upstreams.get(key).filter(|up| up.owner.is_none()) {
                up.has_slept(slept);
                if up.deadline.is_some_and(|deadline| deadline <= now) {
                    self.close_idle(key);
                }
            }
        }
    }

    /// Closes one that has been idle for too long.
    pub(super) fn close_idle(&mut self, key: Key) {
        self.state.pool.forget(key);
        self.state.upstreams.remove(key);
    }
}
