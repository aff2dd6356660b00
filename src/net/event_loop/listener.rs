//! The sockets that clients connect to, and connections that are not admitted yet.

use std::net::SocketAddr;
use std::time::Instant;

use mio::Token;
use mio::net::{TcpListener, TcpStream};

use crate::process::allowed_users::Identity;

/// A socket that clients connect to.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) token: Token,
    /// Connections may wait to be accepted.
    pub(super) is_waiting: bool,
}

/// A connection that has been accepted and is not admitted yet.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) client: SocketAddr,
    pub(super) identity: Identity,
}

/// When the loop accepts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepting {
    /// After the next event.
    AfterEvent,
    /// In this pass: connections may wait.
    Due,
    /// Not before this moment, whatever events say.
    PausedUntil(Instant),
}

impl Accepting {
    /// An event says that connections wait.
    pub(super) fn note_event(&mut self) {
        match self {
            Accepting::AfterEvent => *self = Accepting::Due,
            Accepting::Due | Accepting::PausedUntil(_) => {}
        }
    }

    /// Pauses until this moment at least.
    pub(super) fn pause_until(&mut self, until: Instant) {
        *self = match *self {
            Accepting::AfterEvent | Accepting::Due => Accepting::PausedUntil(until),
            Accepting::PausedUntil(other) => Accepting::PausedUntil(other.max(until)),
        };
    }

    /// The loop is to accept in this pass.
    pub(super) fn is_due(self, now: Instant) -> bool {
        match self {
            Accepting::AfterEvent => false,
            Accepting::Due => true,
            Accepting::PausedUntil(until) => now >= until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn events_end_no_pause() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let mut accepting = Accepting::AfterEvent;
        assert!(!accepting.is_due(now));
        accepting.note_event();
        assert!(accepting.is_due(now));
        accepting.pause_until(later(2));
        accepting.pause_until(later(1));
        accepting.note_event();
        assert!(!accepting.is_due(later(1)));
        assert!(accepting.is_due(later(2)));
    }
}
