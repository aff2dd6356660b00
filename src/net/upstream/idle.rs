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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};

    use super::*;
    use crate::net::admission::User;
    use crate::net::buffer::Scratch;
    use crate::net::pool::Pool;
    use crate::net::slots::{Side, Slots};
    use crate::net::upstream::State;

    /// An idle connection whose exchange has ended in the pass of this time, and its other end.
    fn idle(ups: &mut Slots<Upstream>, pool: &mut Pool, now: Instant) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = Socket::new(mio::net::TcpStream::from_std(ours), false, true);
        let made = ups.insert(|key| {
            let mut up = Upstream::new(key.token(Side::Upstream), None, now, CONNECT);
            up.state = State::Plain(socket);
            Some(up)
        });
        assert!(pool.put(made.unwrap(), ups, now).is_some());
        theirs
    }

    /// Waits until the end of the connection has come to this socket.
    fn wait_for_end(socket: &Socket) {
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
        let fd = socket.fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE).unwrap();
        poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
        assert!(events.iter().any(|event| event.is_read_closed()));
    }

    #[test]
    fn a_connection_that_became_idle_in_this_pass_is_looked_at_again_before_it_is_taken() {
        let scratch = || Scratch::new(limits::RECORD);
        let mut space =
            Space { wire: scratch(), plain: scratch(), out: scratch(), gather: scratch() };
        let (mut ups, mut pool) = (Slots::new(4), Pool::new(4, 1));
        let (user, now) = (User::default(), Instant::now());

        let _theirs = idle(&mut ups, &mut pool, now);
        assert!(pool.take(user, &mut ups, &mut space, now).is_some(), "it still stands");

        // No event has told of the end yet.
        drop(idle(&mut ups, &mut pool, now));
        let key = ups.at(1).unwrap();
        wait_for_end(ups.get(key).unwrap().socket().unwrap());
        assert!(pool.is_ready(user, &mut ups, now), "it seems to stand");
        assert!(pool.take(user, &mut ups, &mut space, now).is_none(), "its peer has ended it");
        assert!(ups.get(key).is_none() && pool.is_empty());
    }
}
