//! Upstream connections without a request: those that are idle, and at most one that is being made.

use std::time::Instant;

use super::{LoopState, Session};
use crate::http1::exchange::State;
use crate::net::admission::User;
use crate::net::slots::{DeadlineSlot, Key, Side};

impl LoopState {
    /// A connection that is being made without a request would serve this user's next one: none is
    /// idle and none is being made already.
    pub fn needs_unowned(&mut self, user: User, now: Instant) -> bool {
        self.requests_left > 0
            && !self.pool.is_preconnecting()
            && !self.pool.is_ready(user, &mut self.upstreams, now)
    }

    /// Takes a connection without a request a step further. All that comes on an idle one is a
    /// ticket, or its end.
    pub fn advance_unowned(&mut self, key: Key, now: Instant) {
        let LoopState { origin, upstreams, pool, deadlines, registry, space, .. } = self;
        let Some(up) = upstreams.get(key).filter(|up| up.owner.is_none()) else {
            return;
        };
        up.flush();
        if up.advance(origin, registry, space, now).is_err()
            || (up.is_ready() && !up.is_still_idle(space))
        {
            // The next request has another connection made, and its client is told of a failure.
            pool.forget(key);
            upstreams.remove(key);
        } else if !up.is_ready() {
            if let Some(when) = up.wakes_at() {
                deadlines.set(DeadlineSlot::new(key, Side::Upstream), when);
            }
        } else if pool.is_preconnect(key) {
            pool.forget(key);
            if let Some(when) = pool.put(key, upstreams, now) {
                deadlines.set(DeadlineSlot::new(key, Side::Upstream), when);
            }
        }
    }
}

impl Session {
    /// The client has left. The connection that its request waited for has carried nothing, so it
    /// serves the next request. Without this, each request that is cancelled early would cost the
    /// upstream a connection.
    pub(super) fn disown_upstream(&mut self, state: &mut LoopState, now: Instant) {
        let is_waiting = matches!(self.exchange.state(), State::Waiting(_));
        if !is_waiting || !state.needs_unowned(self.client.user, now) {
            return;
        }
        if let Some(key) = self.upstream
            && let Some(up) = state.upstreams.get(key)
        {
            self.upstream = None;
            up.disown();
            state.pool.set_preconnect(Some(key));
            state.advance_unowned(key, now);
        }
    }
}
