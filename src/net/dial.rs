//! Racing the upstream's addresses (RFC 8305).

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Registry, Token};

use super::socket::EVENTS;
use crate::http1::response::UpstreamFault;

/// How long one address is tried alone before the next is tried beside it (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// Attempts at a TCP connection, one address after the other and side by side.
pub struct Dial {
    addresses: Rc<[SocketAddr]>,
    next: usize,
    next_at: Instant,
    attempts: Vec<TcpStream>,
    fault: UpstreamFault,
    /// An event that told of a connection told of bytes, or their end, too.
    pub readable: bool,
    /// It told of their end.
    pub read_closed: bool,
}

impl Dial {
    /// No addresses mean that the name does not resolve.
    pub fn new(addresses: Rc<[SocketAddr]>, now: Instant) -> Dial {
        let fault =
            if addresses.is_empty() { UpstreamFault::Dns } else { UpstreamFault::Unreachable };
        Dial {
            addresses,
            next: 0,
            next_at: now,
            attempts: Vec::new(),
            fault,
            readable: false,
            read_closed: false,
        }
    }

    /// When the next attempt is due, should those under way not have led anywhere by then.
    pub fn wakes_at(&self) -> Option<Instant> {
        (self.next < self.addresses.len()).then_some(self.next_at)
    }

    /// The first stream that stands. Attempts run side by side, begun one after the other.
    pub fn advance(
        &mut self,
        registry: &Registry,
        token: Token,
        now: Instant,
    ) -> Result<Option<TcpStream>, UpstreamFault> {
        let mut at = 0;
        while at < self.attempts.len() {
            let stream = &self.attempts[at];
            match stream.take_error() {
                Ok(None) if stream.peer_addr().is_ok() => {
                    return Ok(Some(self.attempts.swap_remove(at)));
                }
                Ok(None) => at += 1,
                Ok(Some(error)) | Err(error) => {
                    self.note(&error);
                    self.attempts.swap_remove(at);
                    self.next_at = now;
                }
            }
        }
        while self.next < self.addresses.len() && (now >= self.next_at || self.attempts.is_empty())
        {
            let address = self.addresses[self.next];
            self.next += 1;
            let started = TcpStream::connect(address).and_then(|mut stream| {
                registry.register(&mut stream, token, EVENTS).map(|()| stream)
            });
            match started {
                Ok(stream) => {
                    self.attempts.push(stream);
                    self.next_at = now + STAGGER;
                }
                Err(error) => self.note(&error),
            }
        }
        if self.attempts.is_empty() { Err(self.fault) } else { Ok(None) }
    }

    fn note(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::ConnectionRefused {
            self.fault = UpstreamFault::Refused;
        }
    }
}
