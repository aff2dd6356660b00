//! Idle upstream connections. The last one put in is the first taken out: it is the likeliest to
//! live, and those that are not needed grow old and go. Those put in during this pass of the loop
//! come after all others. At most one more is being made for the next request.

use std::time::Instant;

use super::admission::User;
use super::buffer::Space;
use super::key_list::KeyList;
use super::slots::{Key, Slots};
use super::timeouts::POOL_IDLE;
use super::upstream::Upstream;

/// The keys of idle connections.
pub struct Pool {
    /// Where users are told apart: those that nobody has used, then those of each user. A response
    /// that an upstream sends too late, or a request it reads out of a body, stays with the user
    /// who brought it about. Else there is one list.
    idle: Vec<Idle>,
    preconnect: Option<Key>,
    limit: usize,
}

/// Connections in the order in which they became idle.
#[derive(Default)]
struct Idle {
    keys: KeyList,
    /// The pass of the loop in which the last one was put in, by its clock. Those of earlier passes
    /// are marked: events have been read since, and have told of nothing.
    since: Option<Instant>,
}

impl Idle {
    /// The one to take: the last, but for those of this pass, which cost another look.
    fn last(&self, now: Instant) -> Option<Key> {
        let marked = match self.since {
            Some(since) if since == now => self.keys.last_marked(),
            _ => None,
        };
        marked.or_else(|| self.keys.last())
    }

    fn push(&mut self, key: Key, now: Instant) {
        if self.since.replace(now) != Some(now) {
            self.keys.mark();
        }
        self.keys.push(key);
    }
}

impl Pool {
    /// At most `limit` connections, of so many users.
    pub fn new(limit: usize, users: usize) -> Pool {
        let lists = if users > 1 { users + 1 } else { 1 };
        let idle = std::iter::repeat_with(Idle::default).take(lists).collect();
        Pool { idle, preconnect: None, limit }
    }

    fn list(&self, user: Option<User>) -> usize {
        match user {
            Some(User(position)) if self.idle.len() > 1 => position + 1,
            _ => 0,
        }
    }

    /// There is a connection for this user to take; those that have ended meanwhile are dropped on
    /// the way.
    pub fn is_ready(&mut self, user: User, ups: &mut Slots<Upstream>, now: Instant) -> bool {
        self.find(user, ups, now).is_some()
    }

    /// Takes the connection that [`Pool::is_ready`] found. One that has become idle in this pass of
    /// the loop, since events were read, may have ended unseen: the upstream is looked at once
    /// more.
    pub fn take(
        &mut self,
        user: User,
        ups: &mut Slots<Upstream>,
        space: &mut Space,
        now: Instant,
    ) -> Option<Key> {
        loop {
            let (list, key) = self.find(user, ups, now)?;
            self.idle[list].keys.remove(key);
            if ups.get(key).is_some_and(|up| up.is_still_usable(space, now)) {
                return Some(key);
            }
            ups.remove(key);
        }
    }

    /// No connection is idle.
    pub fn is_empty(&self) -> bool {
        self.idle.iter().all(|idle| idle.keys.is_empty())
    }

    fn find(
        &mut self,
        user: User,
        ups: &mut Slots<Upstream>,
        now: Instant,
    ) -> Option<(usize, Key)> {
        let own = self.list(Some(user));
        let unused = (own != 0).then_some(0);
        for list in [Some(own), unused].into_iter().flatten() {
            while let Some(key) = self.idle[list].last(now) {
                if ups.get(key).is_some_and(|up| up.is_quiet()) {
                    return Some((list, key));
                }
                // Something came while it was idle. What that is, nobody has looked at.
                self.idle[list].keys.remove(key);
                ups.remove(key);
            }
        }
        None
    }

    /// Puts a connection in and returns when to close it, or drops it when there are enough.
    pub fn put(&mut self, key: Key, ups: &mut Slots<Upstream>, now: Instant) -> Option<Instant> {
        let len: usize = self.idle.iter().map(|idle| idle.keys.len()).sum();
        match ups.get(key) {
            Some(up) if len < self.limit => {
                up.rest(now);
                let list = self.list(up.used_by);
                self.idle[list].push(key, now);
                Some(now + POOL_IDLE)
            }
            _ => {
                ups.remove(key);
                None
            }
        }
    }

    /// Names the connection that is being made for nobody yet; there is one at most.
    pub fn set_preconnect(&mut self, key: Option<Key>) {
        debug_assert!(self.preconnect.is_none());
        self.preconnect = key;
    }

    /// A connection is being made for nobody yet.
    pub fn is_preconnecting(&self) -> bool {
        self.preconnect.is_some()
    }

    /// This connection is the one that is being made.
    pub fn is_preconnect(&self, key: Key) -> bool {
        self.preconnect == Some(key)
    }

    /// Takes the connection that is being made.
    pub fn take_preconnect(&mut self) -> Option<Key> {
        self.preconnect.take()
    }

    /// Forgets a connection.
    pub fn forget(&mut self, key: Key) {
        self.preconnect.take_if(|preconnect| *preconnect == key);
        self.idle.iter_mut().for_each(|idle| idle.keys.remove(key));
    }
}
