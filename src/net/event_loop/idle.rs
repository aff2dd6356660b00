//! Upstream connections that work for nobody: those that are idle, and one that is being made.

use std::time::{Duration, Instant};

use super::{EventLoop, place};
use crate::net::admission::User;
use crate::net::pool;
use crate::net::relay::Shared;
use crate::net::slots::{Key, Side};
use crate::net::upstream::{CONNECT, Upstream};

impl EventLoop {
    /// A client has connected: begins the upstream connection that its request will need, so that
    /// DNS, TCP and TLS pass while the request is being written. One at most is made for nobody,
    /// and none is made again because one has ended: only clients who connect bring connections
    /// about.
    pub(super) fn prepare(&mut self, user: User, now: Instant) {
        let Shared { pool, ups, requests_left, .. } = &mut self.shared;
        if *requests_left == 0 || pool.has_spare() || pool.is_ready(user, ups, now) {
            return;
        }
        let key =
            ups.insert(|key| Some(Upstream::new(key.token(Side::Upstream), None, now, CONNECT)));
        pool.set_spare(key);
        if let Some(key) = key {
            self.look_after(key, now);
        }
    }

    /// Sees to those on which something has come.
    pub(super) fn look_after_idle(&mut self, now: Instant) {
        while let Some(key) = self.stirred.pop() {
            self.look_after(key, now);
        }
    }

    /// Takes a connection a step further. What comes on an idle one is a ticket, or its end.
    pub(super) fn look_after(&mut self, key: Key, now: Instant) {
        let Shared { origin, ups, pool, deadlines, registry, space, .. } = &mut self.shared;
        let Some(up) = ups.get(key).filter(|up| up.owner.is_none()) else {
            return;
        };
        let was_ready = up.is_ready();
        up.flush();
        if up.advance(origin, registry, space, now).is_err()
            || (up.is_ready() && !up.still_idle(space))
        {
            // Whoever needs a connection tries again, and is told why there is none.
            pool.forget(key);
            ups.remove(key);
        } else if !up.is_ready() {
            if let Some(when) = up.wakes_at() {
                deadlines.set(place(key, Side::Upstream), when);
            }
        } else if !was_ready {
            pool.forget(key);
            if pool.put(key, ups, now) {
                deadlines.set(place(key, Side::Upstream), now + pool::IDLE);
            }
        }
    }

    /// Ages idle connections by the time that the machine has slept, and closes those that are too old.
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
