//! Idle upstream connections. The last one put in is the first taken out: it is the likeliest to
//! live, and those that are not needed grow old and go. Beside them one that is being made for
//! whoever asks first.

use std::time::{Duration, Instant};

use super::key_list::KeyList;
use super::slots::{Key, Slots};
use super::upstream::Upstream;

/// How long a connection may stay idle; upstreams close theirs after a minute or more.
pub const IDLE: Duration = Duration::from_secs(55);

/// The keys of idle connections.
pub struct Pool {
    idle: KeyList,
    spare: Option<Key>,
    limit: usize,
}

impl Pool {
    /// At most `limit` connections.
    pub fn new(limit: usize) -> Pool {
        Pool { idle: KeyList::default(), spare: None, limit }
    }

    /// There is a connection to take; those that have ended meanwhile are dropped on the way.
    pub fn is_ready(&mut self, ups: &mut Slots<Upstream>) -> bool {
        while let Some(key) = self.idle.last() {
            if ups.get(key).is_some_and(|up| up.is_quiet()) {
                return true;
            }
            // Something came while it was idle. What that is, nobody has looked at.
            self.idle.remove(key);
            ups.remove(key);
        }
        false
    }

    /// Takes the connection that [`Pool::is_ready`] found.
    pub fn take(&mut self, ups: &mut Slots<Upstream>) -> Option<Key> {
        let key = self.is_ready(ups).then(|| self.idle.last()).flatten()?;
        self.idle.remove(key);
        Some(key)
    }

    /// Puts a connection in, or drops it when there are enough; true when it was kept.
    pub fn put(&mut self, key: Key, ups: &mut Slots<Upstream>, now: Instant) -> bool {
        match ups.get(key) {
            Some(up) if self.idle.len() < self.limit => {
                up.rest(now);
                self.idle.push(key);
                true
            }
            _ => {
                ups.remove(key);
                false
            }
        }
    }

    /// Names the connection that is being made for nobody yet; there is one at most.
    pub fn set_spare(&mut self, key: Option<Key>) {
        debug_assert!(self.spare.is_none());
        self.spare = key;
    }

    /// A connection is being made for nobody yet.
    pub fn has_spare(&self) -> bool {
        self.spare.is_some()
    }

    /// Takes the connection that is being made.
    pub fn take_spare(&mut self) -> Option<Key> {
        self.spare.take()
    }

    /// Forgets a connection.
    pub fn forget(&mut self, key: Key) {
        self.spare.take_if(|spare| *spare == key);
        self.idle.remove(key);
    }
}
