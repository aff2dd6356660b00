//! The pool of idle upstream connections, and the one connection that is made ahead of a request
//! (the preconnect).
//!
//! The pool takes the connection that became idle last, because that one is the most likely to be
//! alive. Connections that are not needed reach their idle timeout and are closed. Connections that
//! became idle in the current pass of the loop are taken after all others, because they have to be
//! checked once more before use.

use std::time::Instant;

use super::Upstream;
use super::id_list::IdList;
use crate::net::admission::UserIndex;
use crate::net::buffer::TlsScratch;
use crate::net::slots::{SlotId, Slots};

/// The ids of idle connections.
pub struct Pool {
    /// If the relay distinguishes several users, the first list has the connections that have
    /// carried no exchange, and each user has one further list. A connection stays with its user,
    /// because the upstream may send a response too late, or may read a request as part of an
    /// earlier body. Otherwise there is one list.
    idle: Vec<Idle>,
    preconnect: Option<SlotId>,
    /// The maximum number of idle connections.
    limit: usize,
}

/// Connections in the order in which they became idle.
#[derive(Default)]
struct Idle {
    ids: IdList,
    /// The pass of the loop in which the last connection was added, as the time of that pass. The
    /// mark is behind the connections of earlier passes: the loop has read events since then, and
    /// no event reported anything on them.
    since: Option<Instant>,
}

impl Idle {
    /// The connection to take: the last one of an earlier pass, otherwise the last one of this
    /// pass.
    fn last(&self, now: Instant) -> Option<SlotId> {
        let marked = match self.since {
            Some(since) if since == now => self.ids.last_marked(),
            _ => None,
        };
        marked.or_else(|| self.ids.last())
    }

    fn push(&mut self, id: SlotId, now: Instant) {
        if self.since.replace(now) != Some(now) {
            self.ids.mark();
        }
        self.ids.push(id);
    }
}

impl Pool {
    /// An empty pool for at most `limit` idle connections and for this number of users.
    pub fn new(limit: usize, users: usize) -> Pool {
        let lists = if users > 1 { users + 1 } else { 1 };
        let idle = std::iter::repeat_with(Idle::default).take(lists).collect();
        Pool { idle, preconnect: None, limit }
    }

    /// The position in `idle` of the list for connections that carried exchanges of this user;
    /// for `None`, of those that carried no exchange.
    fn list(&self, user: Option<UserIndex>) -> usize {
        match user {
            Some(UserIndex(position)) if self.idle.len() > 1 => position + 1,
            _ => 0,
        }
    }

    /// An idle connection can take a request of this user. The search closes connections on which
    /// bytes or the end have come.
    pub fn is_ready(
        &mut self,
        user: UserIndex,
        upstreams: &mut Slots<Upstream>,
        now: Instant,
    ) -> bool {
        self.find(user, upstreams, now).is_some()
    }

    /// Takes a connection for a request of this user. A connection that became idle in this pass,
    /// after the loop read events, may have ended unnoticed, so it is checked once more.
    /// Connections that turn out unusable are closed.
    pub fn take(
        &mut self,
        user: UserIndex,
        upstreams: &mut Slots<Upstream>,
        scratch: &mut TlsScratch,
        now: Instant,
    ) -> Option<SlotId> {
        loop {
            let (list, id) = self.find(user, upstreams, now)?;
            self.idle[list].ids.remove(id);
            if upstreams.connection(id).is_some_and(|up| up.is_still_usable(scratch, now)) {
                return Some(id);
            }
            upstreams.remove(id);
        }
    }

    /// The pool has no idle connection.
    pub fn is_empty(&self) -> bool {
        self.idle.iter().all(|idle| idle.ids.is_empty())
    }

    /// The connection to take and the position of its list. A connection that has carried exchanges
    /// of this user is preferred to one that has carried none. Connections that are not quiet are
    /// closed.
    fn find(
        &mut self,
        user: UserIndex,
        upstreams: &mut Slots<Upstream>,
        now: Instant,
    ) -> Option<(usize, SlotId)> {
        let own = self.list(Some(user));
        let unused = (own != 0).then_some(0);
        for list in [Some(own), unused].into_iter().flatten() {
            while let Some(id) = self.idle[list].last(now) {
                if upstreams.connection(id).is_some_and(|up| up.is_quiet()) {
                    return Some((list, id));
                }
                // Bytes or the end came while the connection was idle and have not been read. They
                // could be taken for the response to the next request.
                self.idle[list].ids.remove(id);
                upstreams.remove(id);
            }
        }
        None
    }

    /// Adds a connection and returns the time at which its idle timeout ends. If the pool is full,
    /// the connection is closed now and the result is `None`.
    pub fn put(
        &mut self,
        id: SlotId,
        upstreams: &mut Slots<Upstream>,
        now: Instant,
    ) -> Option<Instant> {
        let len: usize = self.idle.iter().map(|idle| idle.ids.len()).sum();
        match upstreams.connection(id) {
            Some(up) if len < self.limit => {
                let until = up.mark_idle(now);
                let list = self.list(up.used_by);
                self.idle[list].push(id, now);
                Some(until)
            }
            Some(_) | None => {
                upstreams.remove(id);
                None
            }
        }
    }

    /// Sets the preconnect, the connection that is made ahead of a request. Requires that there is
    /// none.
    pub fn set_preconnect(&mut self, id: Option<SlotId>) {
        debug_assert!(self.preconnect.is_none());
        self.preconnect = id;
    }

    /// A preconnect is being made.
    pub fn is_preconnecting(&self) -> bool {
        self.preconnect.is_some()
    }

    /// The id is that of the preconnect.
    pub fn is_preconnect(&self, id: SlotId) -> bool {
        self.preconnect == Some(id)
    }

    /// Takes the preconnect for a request; `None` if there is none.
    pub fn take_preconnect(&mut self) -> Option<SlotId> {
        self.preconnect.take()
    }

    /// Removes a connection from the pool, if the pool has it. The connection stays open.
    pub fn forget(&mut self, id: SlotId) {
        self.preconnect.take_if(|preconnect| *preconnect == id);
        self.idle.iter_mut().for_each(|idle| idle.ids.remove(id));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::net::buffer::Scratch;
    use crate::net::loop_state::testing::arrives;
    use crate::net::socket::Socket;
    use crate::net::timeouts::POOL_IDLE;
    use crate::net::upstream::{Channel, Connection};

    const A: UserIndex = UserIndex(0);
    const B: UserIndex = UserIndex(1);

    /// A pool with real connections to a listener on loopback.
    struct Pooled {
        pool: Pool,
        upstreams: Slots<Upstream>,
        scratch: TlsScratch,
        listener: TcpListener,
        /// The upstream's ends, in the order in which the connections were made.
        others: Vec<TcpStream>,
        now: Instant,
    }

    impl Pooled {
        fn new(limit: usize, users: usize) -> Pooled {
            let scratch = || Scratch::new(1024);
            Pooled {
                pool: Pool::new(limit, users),
                upstreams: Slots::new(16),
                scratch: TlsScratch {
                    ciphertext_in: scratch(),
                    plaintext_in: scratch(),
                    ciphertext_out: scratch(),
                    record: scratch(),
                },
                listener: TcpListener::bind("127.0.0.1:0").unwrap(),
                others: Vec::new(),
                now: Instant::now(),
            }
        }

        /// Makes a connection that has carried an exchange of this user, or of none.
        fn connection(&mut self, used_by: Option<UserIndex>) -> SlotId {
            let address = self.listener.local_addr().unwrap();
            let stream = TcpStream::connect(address).unwrap();
            stream.set_nonblocking(true).unwrap();
            self.others.push(self.listener.accept().unwrap().0);
            let socket = Socket::new(mio::net::TcpStream::from_std(stream), false, true);
            let channel = Channel::new(socket);
            let mut connection = Connection::new(channel, None, None, Some(address), self.now);
            connection.used_by = used_by;
            self.upstreams.insert(|_| Some(Upstream::Connection(connection))).unwrap()
        }

        /// Makes a connection that is idle since this pass.
        fn idle(&mut self, used_by: Option<UserIndex>) -> SlotId {
            let id = self.connection(used_by);
            assert_eq!(self.put(id), Some(self.now + POOL_IDLE));
            id
        }

        fn put(&mut self, id: SlotId) -> Option<Instant> {
            self.pool.put(id, &mut self.upstreams, self.now)
        }

        fn take(&mut self, user: UserIndex) -> Option<SlotId> {
            self.pool.take(user, &mut self.upstreams, &mut self.scratch, self.now)
        }

        fn next_pass(&mut self) {
            self.now += Duration::from_millis(1);
        }
    }

    #[test]
    fn the_last_one_of_an_earlier_pass_is_taken_first() {
        let mut pooled = Pooled::new(8, 1);
        let first = pooled.idle(Some(A));
        let second = pooled.idle(Some(A));
        pooled.next_pass();
        let third = pooled.idle(Some(A));
        for want in [Some(second), Some(first), Some(third), None] {
            assert_eq!(pooled.take(A), want);
        }
    }

    #[test]
    fn a_user_gets_connections_of_their_own_then_unused_ones_and_never_anothers() {
        let mut pooled = Pooled::new(8, 2);
        let (own, unused, _other) = (pooled.idle(Some(A)), pooled.idle(None), pooled.idle(Some(B)));
        pooled.next_pass();
        for want in [Some(own), Some(unused), None] {
            assert_eq!(pooled.take(A), want);
        }
        assert!(pooled.pool.is_ready(B, &mut pooled.upstreams, pooled.now));
    }

    #[test]
    fn a_full_pool_closes_what_is_put_in() {
        let mut pooled = Pooled::new(2, 2);
        pooled.idle(Some(A));
        pooled.idle(Some(B));
        let third = pooled.connection(None);
        assert_eq!(pooled.put(third), None);
        assert!(pooled.upstreams.get(third).is_none());
        pooled.next_pass();
        assert!(pooled.take(A).is_some());
        pooled.idle(None);
    }

    #[test]
    fn a_connection_that_became_idle_in_this_pass_is_looked_at_again_before_it_is_taken() {
        let mut pooled = Pooled::new(8, 1);
        let quiet = pooled.idle(Some(A));
        let (ended, spoke) = (pooled.idle(Some(A)), pooled.idle(Some(A)));
        pooled.others.remove(1);
        pooled.others[1].write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").unwrap();
        arrives(&mut pooled.upstreams, ended);
        arrives(&mut pooled.upstreams, spoke);
        // The loop has not read the events of either connection yet.
        assert!(pooled.pool.is_ready(A, &mut pooled.upstreams, pooled.now));
        assert_eq!(pooled.take(A), Some(quiet));
        assert!(pooled.upstreams.get(ended).is_none() && pooled.upstreams.get(spoke).is_none());
        assert!(pooled.pool.is_empty());
    }

    #[test]
    fn one_that_is_forgotten_is_not_taken_and_the_preconnect_is_taken_once() {
        let mut pooled = Pooled::new(8, 1);
        let (idle, preconnect) = (pooled.idle(Some(A)), pooled.connection(None));
        pooled.pool.set_preconnect(Some(preconnect));
        assert!(pooled.pool.is_preconnect(preconnect) && !pooled.pool.is_preconnect(idle));
        pooled.pool.forget(idle);
        assert_eq!((pooled.take(A), pooled.pool.is_preconnecting()), (None, true));
        assert_eq!(pooled.pool.take_preconnect(), Some(preconnect));
        assert_eq!(pooled.pool.take_preconnect(), None);
        pooled.pool.set_preconnect(Some(preconnect));
        pooled.pool.forget(preconnect);
        assert!(!pooled.pool.is_preconnecting());
    }
}
