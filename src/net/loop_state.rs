//! The state that all sessions share, and the context of one turn.

use std::time::Instant;

use mio::Registry;

use super::access_log::Log;
use super::admission::UserIndex;
use super::buffer::{Scratch, TlsScratch};
use super::clock::DateClock;
use super::deadlines::Deadlines;
use super::limits::{CLIENT_READ, UPSTREAM_READ};
use super::slots::{DeadlineSlot, Side, SlotId, Slots};
use super::timeouts::Timeouts;
use super::upstream::pool::Pool;
use super::upstream::{Origin, Upstream};
use crate::http1::gather::GatherList;
use crate::http1::local_response::Reject;
use crate::process::key_ring::{KeyRing, LineForm};
use crate::process::token::ClientToken;

/// The state that all sessions share.
pub struct LoopState {
    /// How upstream connections are made.
    pub origin: Origin,
    /// The key, and older ones that exchanges under way carry.
    pub keys: KeyRing,
    /// Upstream connections.
    pub upstreams: Slots<Upstream>,
    /// The idle ones among them, and the preconnect.
    pub pool: Pool,
    /// When each connection has to be looked at without an event.
    pub deadlines: Deadlines,
    /// Registers sockets with the poll.
    pub registry: Registry,
    /// The output of one step of an exchange.
    pub outgoing: GatherList,
    /// The Date field of local responses.
    pub date: DateClock,
    /// The token of `--client-token-file`.
    pub client_token: Option<ClientToken>,
    /// Bytes of all request heads that are buffered.
    pub head_bytes: usize,
    /// `--max-requests`: how many more may be forwarded.
    pub requests_left: u64,
    /// The access log.
    pub log: Log,
    /// Client connections so far.
    pub connections: u64,
    /// How long either side may be silent.
    pub timeouts: Timeouts,
    /// The response to `GET /shutdown` has been sent.
    pub shutdown: bool,
}

/// The scratch buffers for reads and TLS. They are filled and emptied within one turn.
pub struct Buffers {
    /// Reads from clients.
    pub client: Scratch,
    /// Records of upstream connections, and the plaintext of one read.
    pub upstream: TlsScratch,
}

/// Buffers that are large enough for the largest reads.
impl Default for Buffers {
    fn default() -> Buffers {
        Buffers {
            client: Scratch::new(CLIENT_READ),
            upstream: TlsScratch {
                ciphertext_in: Scratch::new(UPSTREAM_READ),
                plaintext_in: Scratch::new(UPSTREAM_READ),
                ciphertext_out: Scratch::new(2 * CLIENT_READ),
                record: Scratch::new(0),
            },
        }
    }
}

/// The context of one turn of a session.
pub struct Turn<'a> {
    /// The state that all sessions share.
    pub state: &'a mut LoopState,
    /// The time of this pass of the loop.
    pub now: Instant,
    /// Bytes that the session has read in this turn, from both sides.
    pub bytes_read: usize,
}

impl LoopState {
    /// Why no request is forwarded now.
    pub fn closed(&self) -> Option<Reject> {
        if self.requests_left == 0 {
            Some(Reject::RequestLimit)
        } else if self.keys.is_expired() {
            Some(match self.keys.line() {
                LineForm::Key => Reject::KeyExpired,
                LineForm::KeyAndLifetime => Reject::RenewalUnavailable,
            })
        } else {
            None
        }
    }

    /// A preconnect would serve this user's next request: no usable connection is idle, and no
    /// preconnect is being made.
    pub fn needs_preconnect(&mut self, user: UserIndex, now: Instant) -> bool {
        self.requests_left > 0
            && !self.pool.is_preconnecting()
            && !self.pool.is_ready(user, &mut self.upstreams, now)
    }

    /// Advances an unowned connection. An idle one receives session tickets, or its end.
    pub fn advance_unowned(&mut self, id: SlotId, scratch: &mut TlsScratch, now: Instant) {
        let LoopState { origin, upstreams, pool, deadlines, registry, .. } = self;
        let Some(up) = upstreams.get(id).filter(|up| up.owner().is_none()) else {
            return;
        };
        let slot = DeadlineSlot::new(id, Side::Upstream);
        up.flush();
        if up.advance(origin, registry, scratch, now).is_err()
            || up.connection().is_some_and(|up| !up.is_still_idle(scratch))
        {
            // The next request makes another connection. If that fails, its client gets the error.
            pool.forget(id);
            upstreams.remove(id);
        } else if !up.is_ready() {
            if let Some(when) = up.wakes_at() {
                deadlines.set(slot, when);
            }
        } else if pool.is_preconnect(id) {
            pool.forget(id);
            if let Some(when) = pool.put(id, upstreams, now) {
                deadlines.set(slot, when);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::{Loop, arrives};
    use super::*;
    use crate::net::timeouts::{CONNECT, POOL_IDLE};

    const USER: UserIndex = UserIndex(0);

    /// Adds a connection that is being made ahead of a request.
    fn preconnect(net: &mut Loop) -> SlotId {
        let now = net.now;
        let new = |id: SlotId| Upstream::new(id.token(Side::Upstream), None, now, CONNECT);
        let id = net.state.upstreams.insert(|id| Some(new(id)));
        net.state.pool.set_preconnect(id);
        id.unwrap()
    }

    fn advance(net: &mut Loop, id: SlotId) {
        net.state.advance_unowned(id, &mut net.buffers.upstream, net.now);
    }

    #[test]
    fn a_preconnect_is_needed_if_none_is_made_none_is_idle_and_a_request_may_come() {
        let mut net = Loop::new();
        let now = net.now;
        assert!(net.state.needs_preconnect(USER, now));
        net.state.requests_left = 0;
        assert!(!net.state.needs_preconnect(USER, now));
        net.state.requests_left = 1;
        let id = preconnect(&mut net);
        assert!(!net.state.needs_preconnect(USER, now));
        net.state.pool.forget(id);
        let (_, _far) = net.idle_upstream();
        assert!(!net.state.needs_preconnect(USER, net.now));
    }

    #[test]
    fn a_preconnect_that_becomes_usable_goes_into_the_pool() {
        let mut net = Loop::new();
        let id = preconnect(&mut net);
        advance(&mut net, id);
        assert_eq!(net.state.deadlines.next(), Some(net.now + CONNECT));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        net.state.upstreams.get(id).unwrap().dialed(Ok((stream, address)));
        advance(&mut net, id);
        assert!(!net.state.pool.is_preconnecting() && !net.state.pool.is_empty());
        let wakes_at = net.state.upstreams.get(id).unwrap().wakes_at();
        assert_eq!(wakes_at, Some(net.now + POOL_IDLE));
    }

    #[test]
    fn a_preconnect_that_fails_is_forgotten() {
        let mut net = Loop::new();
        let id = preconnect(&mut net);
        advance(&mut net, id);
        net.now += CONNECT;
        advance(&mut net, id);
        assert!(net.state.upstreams.is_empty() && !net.state.pool.is_preconnecting());
    }

    #[test]
    fn an_idle_connection_on_which_something_comes_leaves_the_pool_and_one_at_work_stays() {
        for owner in [None, Slots::new(1).insert(|_| Some(()))] {
            let mut net = Loop::new();
            let (id, mut far) = net.idle_upstream();
            if let Some(owner) = owner {
                net.state.upstreams.connection(id).unwrap().assign(owner);
            }
            far.send("HTTP/1.1 408 Request Timeout\r\n\r\n");
            arrives(&mut net.state.upstreams, id);
            while !net.state.upstreams.connection(id).unwrap().has_news() {
                net.events(std::time::Duration::from_secs(1), None);
            }
            advance(&mut net, id);
            assert_eq!(net.state.upstreams.is_empty(), owner.is_none());
        }
    }
}
