//! Upstream connections that work for nobody: those that are idle, and one that is being made.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::net::admission::User;
use crate::net::slots::{Key, Side};
use crate::net::upstream::{CONNECT, Upstream};

impl EventLoop {
    /// A client has connected: begins the upstream connection that its request will need, so that
    /// DNS, TCP and TLS pass while the request is being written. One at most is made for nobody,
    /// and none is made again because one has ended: only clients who connect bring connections
    /// about.
    pub(super) fn prepare(&mut self, user: User, now: Instant) {
        if !self.shared.needs_unowned(user, now) {
            return;
        }
        let new = |key: Key| Some(Upstream::new(key.token(Side::Upstream), None, now, CONNECT));
        let key = self.shared.ups.insert(new);
        self.shared.pool.set_spare(key);
        if let Some(key) = key {
            self.shared.advance_unowned(key, now);
        }
    }

    /// Sees to those on which something has come.
    pub(super) fn look_after_idle(&mut self, now: Instant) {
        while let Some(key) = self.stirred.pop() {
            self.shared.advance_unowned(key, now);
        }
    }

    /// Ages idle connections by the time that the machine has slept, and closes those that are too
    /// old.
    pub(super) fn wake_up(&mut self, slept: Duration, now: Instant) {
        for key in self.shared.ups.keys() {
            if let Some(up) = self.shared.ups.get(key).filter(|up| up.owner.is_none()) {
                up.has_slept(slept);
                if up.deadline.is_some_and(|deadline| deadline <= now) {
                    self.retire(key);
                }
            }
        }
    }

    /// Closes one that has been idle for too long.
    pub(super) fn retire(&mut self, key: Key) {
        self.shared.pool.forget(key);
        self.shared.ups.remove(key);
    }
}
