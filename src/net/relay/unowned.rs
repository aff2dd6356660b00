//! Upstream connections without a request: those that are idle, and at most one that is being made.

use std::time::Instant;

use super::{Relay, Shared};
use crate::http1::exchange::State;
use crate::net::admission::User;
use crate::net::event_loop::place;
use crate::net::slots::{Key, Side};

impl Shared {
    /// A connection that is being made without a request would serve this user's next one: none is
    /// idle and none is being made already.
    pub fn needs_unowned(&mut self, user: User, now: Instant) -> bool {
        self.requests_left > 0
            && !self.pool.has_spare()
            && !self.pool.is_ready(user, &mut self.ups, now)
    }

    /// Takes a connection without a request a step further. All that comes on an idle one is a
    /// ticket, or its end.
    pub fn advance_unowned(&mut self, key: Key, now: Instant) {
        let Shared { origin, ups, pool, deadlines, registry, space, .. } = self;
        let Some(up) = ups.get(key).filter(|up| up.owner.is_none()) else {
            return;
        };
        up.flush();
        if up.advance(origin, registry, space, now).is_err()
            || (up.is_ready() && !up.is_still_idle(space))
        {
            // The next request has another connection made, and its client is told of a failure.
            pool.forget(key);
            ups.remove(key);
        } else if !up.is_ready() {
            if let Some(when) = up.wakes_at() {
                deadlines.set(place(key, Side::Upstream), when);
            }
        } else if pool.is_spare(key) {
            pool.forget(key);
            if let Some(when) = pool.put(key, ups, now) {
                deadlines.set(place(key, Side::Upstream), when);
            }
        }
    }
}

impl Relay {
    /// The client has left. The connection that its request waited for has carried nothing, so it
    /// serves the next request. Without this, each request that is cancelled early would cost the
    /// upstream a connection.
    pub(super) fn disown_upstream(&mut self, shared: &mut Shared, now: Instant) {
        let is_waiting = matches!(self.exchange.state(), State::Waiting(_));
        if !is_waiting || !shared.needs_unowned(self.user, now) {
            return;
        }
        if let Some(key) = self.upstream
            && let Some(up) = shared.ups.get(key)
        {
            self.upstream = None;
            up.disown();
            shared.pool.set_spare(Some(key));
            shared.advance_unowned(key, now);
        }
    }
}
