//! The sockets that clients connect to, and connections that are not admitted yet.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use mio::Token;
use mio::net::{TcpListener, TcpStream};

use crate::net::limits::ACCEPTS_PER_PASS;
use crate::net::timeouts::ACCEPT_BACKOFF;
use crate::process::allowed_users::Identity;

/// A socket that clients connect to.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) token: Token,
    /// Connections may wait to be accepted.
    pub(super) is_waiting: bool,
}

impl Listener {
    /// Accepts the connections that wait, up to [`ACCEPTS_PER_PASS`]. Fails if the process is out of
    /// descriptors or memory.
    pub(super) fn accept_batch(&mut self, accepted: &mut VecDeque<Accepted>) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_PASS {
            if !self.is_waiting {
                break;
            }
            match self.socket.accept() {
                Ok((stream, client)) => {
                    // Without `--allow-uid` this is the only user; with it, `identify` replaces it.
                    let identity = Identity::Allowed(0);
                    accepted.push_back(Accepted { stream, client, identity });
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.is_waiting = false,
                    // This client has left; another one may wait.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
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

    /// The process is out of descriptors or memory: without a pause the loop would spin.
    pub(super) fn back_off(&mut self, now: Instant) {
        self.pause_until(now + ACCEPT_BACKOFF);
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

    #[test]
    fn a_process_that_is_out_of_descriptors_accepts_again_after_a_pause() {
        let now = Instant::now();
        let mut accepting = Accepting::Due;
        accepting.back_off(now);
        assert!(!accepting.is_due(now + ACCEPT_BACKOFF - Duration::from_nanos(1)));
        assert!(accepting.is_due(now + ACCEPT_BACKOFF));
    }

    #[test]
    fn one_pass_accepts_a_batch_and_leaves_the_rest_to_the_next() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket.local_addr().unwrap();
        let clients: Vec<_> = (0..ACCEPTS_PER_PASS + 1)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        let mut listener = Listener {
            socket: TcpListener::from_std(socket),
            address,
            token: Token(0),
            is_waiting: true,
        };
        let mut accepted = VecDeque::new();
        listener.accept_batch(&mut accepted).unwrap();
        assert_eq!((accepted.len(), listener.is_waiting), (ACCEPTS_PER_PASS, true));
        listener.accept_batch(&mut accepted).unwrap();
        assert_eq!((accepted.len(), listener.is_waiting), (clients.len(), false));
        let in_order = accepted.iter().map(|accepted| accepted.client);
        assert!(in_order.eq(clients.iter().map(|client| client.local_addr().unwrap())));
    }
}
