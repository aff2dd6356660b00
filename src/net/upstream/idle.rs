//! A connection between two exchanges: how old it is, and whether it still stands.

use std::time::{Duration, Instant};

use super::{Flow, Upstream};
use crate::http1::limits;
use crate::net::buffer::Space;
use crate::net::limits::IDLE_READS_PER_TURN;
use crate::net::slots::Key;
use crate::net::socket::Socket;
use crate::net::timeouts::{CONNECT, POOL_IDLE};

impl Upstream {
    /// It is idle since before `now`, when all events were read, and none told of anything; or
    /// nothing but tickets and key updates has come up to this very moment.
    pub fn is_still_usable(&mut self, space: &mut Space, now: Instant) -> bool {
        self.idle_since.is_none_or(|since| since < now)
            || self.socket_mut().is_some_and(Socket::is_silent)
            || self.is_still_idle(space)
    }

    /// The machine has slept, so idle time has passed that no clock of this process has seen.
    pub fn has_slept(&mut self, slept: Duration) {
        if let Some(deadline) = &mut self.deadline {
            *deadline = deadline.checked_sub(slept).unwrap_or(self.since);
        }
    }

    /// Goes to rest until it is taken again.
    pub fn rest(&mut self, now: Instant) {
        self.owner = None;
        self.rested = true;
        self.idle_since = Some(now);
        self.deadline = Some(now + POOL_IDLE);
    }

    /// Is made for no request any more, and no longer than one that never was.
    pub fn disown(&mut self) {
        self.owner = None;
        self.deadline = Some(self.begun + CONNECT);
    }

    /// Is made for `owner` from now on, who waits for it as long as for one begun now.
    pub fn adopt(&mut self, owner: Key, now: Instant, limit: Duration) {
        self.owner = Some(owner);
        self.since = now;
        self.deadline = Some(now + limit);
    }

    /// Works for `owner` from now on.
    pub fn wake(&mut self, owner: Key) {
        self.owner = Some(owner);
        self.deadline = None;
    }

    /// While idle: tickets and key updates are taken in; true as long as nothing else has come, nor
    /// more of them than anyone needs.
    pub fn is_still_idle(&mut self, space: &mut Space) -> bool {
        for _ in 0..IDLE_READS_PER_TURN {
            if !self.has_news() {
                break;
            }
            let flow = self.read(space, limits::RECORD);
            if flow != Flow::Open || !space.plain.bytes().is_empty() {
                return false;
            }
        }
        self.flush();
        !self.deaf && !self.has_news()
    }
}
