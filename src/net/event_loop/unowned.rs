//! Upstream connections without a request: the idle ones, and at most one that is being made.

use std::time::{Duration, Instant};

use super::EventLoop;
use crate::net::admission::UserIndex;
use crate::net::slots::{Side, SlotId};
use crate::net::timeouts::CONNECT;
use crate::net::upstream::Upstream;

impl EventLoop {
    /// Preconnects, because a client has connected: lookup, TCP and TLS handshake run while the
    /// client writes its request. At most one preconnect is made at a time. One that ends unused is
    /// not replaced, so that the upstream sees no connections without a client.
    pub(super) fn preconnect(&mut self, user: UserIndex, now: Instant) {
        if !self.state.needs_preconnect(user, now) {
            return;
        }
        let new = |id: SlotId| Some(Upstream::new(id.token(Side::Upstream), None, now, CONNECT));
        let id = self.state.upstreams.insert(new);
        self.state.pool.set_preconnect(id);
        if let Some(id) = id {
            self.state.advance_unowned(id, &mut self.buffers.upstream, now);
        }
    }

    /// Advances the unowned connections that had an event.
    pub(super) fn advance_all_unowned(&mut self, now: Instant) {
        while let Some(id) = self.unowned_ready.pop() {
            self.state.advance_unowned(id, &mut self.buffers.upstream, now);
        }
    }

    /// The machine has slept: ages idle connections by that time and closes the old ones.
    pub(super) fn age_by_sleep(&mut self, slept: Duration, now: Instant) {
        for id in self.state.upstreams.ids() {
            if let Some(up) = self.state.upstreams.get(id).filter(|up| up.owner().is_none()) {
                up.age_by_sleep(slept);
                if up.wakes_at().is_some_and(|when| when <= now) {
                    self.close_idle(id);
                }
            }
        }
    }

    /// Closes a connection that has been idle for too long.
    pub(super) fn close_idle(&mut self, id: SlotId) {
        self.state.pool.forget(id);
        self.state.upstreams.remove(id);
    }
}
