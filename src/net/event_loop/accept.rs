//! Accepting connections, and turning away those that are too many.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::EventLoop;
use crate::http1::exchange::Exchange;
use crate::http1::refusal::Reject;
use crate::net::relay::Relay;
use crate::net::slots::Side;
use crate::net::socket::{EVENTS, Socket};

/// Connections accepted in one turn of the loop.
const ACCEPTS: usize = 64;
/// How long accepting pauses when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

impl EventLoop {
    /// Accepts a batch.
    pub(super) fn accept(&mut self, now: Instant) {
        if self.accept_at.is_some_and(|at| now >= at) {
            self.accept_at = None;
            self.accept_again = true;
        }
        if !self.accept_again {
            return;
        }
        for _ in 0..ACCEPTS {
            let Some(listener) = &self.listener else {
                self.accept_again = false;
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => self.admit(stream, peer, now),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.accept_again = false;
                        return;
                    }
                    // The peer has gone already; the next may be there.
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    // Out of descriptors or memory: asking again at once would spin.
                    _ => {
                        self.accept_again = false;
                        self.accept_at = Some(now + PAUSE);
                        return;
                    }
                },
            }
        }
    }

    fn admit(&mut self, mut stream: TcpStream, peer: SocketAddr, now: Instant) {
        let counted = self.counted < self.max_connections;
        if self.downs.is_full() {
            // No place even to hear it out.
            let pieces = &mut self.shared.pieces;
            pieces.clear();
            Exchange::new(self.policy).refuse(Reject::TooManyConnections, pieces);
            pieces.slices(&[]).for_each(|bytes| drop(stream.write(bytes)));
            return;
        }
        let (poll, policy) = (&self.poll, self.policy);
        let key = self.downs.insert(|key| {
            poll.registry().register(&mut stream, key.token(Side::Downstream), EVENTS).ok()?;
            Some(Relay::new(Socket::new(stream, false, true), key, policy, counted, now))
        });
        let Some(key) = key else {
            return;
        };
        self.counted += usize::from(counted);
        // Once for each connection, before anything is done for it.
        let user_refused = !self.is_allowed(peer);
        if counted && !user_refused {
            self.prepare(now);
        }
        self.with(key, |relay, shared| {
            relay.user_refused = user_refused;
            if counted { relay.turn(shared, now) } else { relay.turn_away(shared, now) }
        });
    }

    fn is_allowed(&mut self, peer: SocketAddr) -> bool {
        match (&mut self.peers, peer, self.address) {
            (None, ..) => true,
            (Some(peers), SocketAddr::V4(peer), SocketAddr::V4(local)) => peers.allows(peer, local),
            _ => false,
        }
    }
}
