//! Racing the addresses of one host (RFC 8305).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use crate::http1::local_response::UpstreamFault;
use crate::process::sys::reset_on_close;

/// How long one address is tried alone before the next is tried in parallel (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// How several addresses are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Side by side (RFC 8305).
    Raced,
    /// The next one only when the one before has refused the connection.
    InTurn,
}

/// A connection that is being made.
struct Attempt {
    stream: TcpStream,
    /// It is worth a look.
    ready: bool,
}

/// Attempts at a TCP connection, one address after the other and side by side.
pub struct Race {
    order: Order,
    addresses: Rc<[SocketAddr]>,
    next: usize,
    next_at: Instant,
    attempts: Vec<Attempt>,
    fault: UpstreamFault,
}

/// Attempts that are not needed any more leave no port in TIME_WAIT.
impl Drop for Race {
    fn drop(&mut self) {
        for attempt in &self.attempts {
            let _ = reset_on_close(attempt.stream.as_fd());
        }
    }
}

impl Race {
    /// Begins with the first address.
    pub fn new(addresses: Rc<[SocketAddr]>, order: Order, now: Instant) -> Race {
        Race {
            order,
            addresses,
            next: 0,
            next_at: now,
            attempts: Vec::new(),
            fault: UpstreamFault::Unreachable,
        }
    }

    /// All addresses, tried or not.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// When the next attempt is due, should those under way not have led anywhere by then.
    pub fn wakes_at(&self) -> Option<Instant> {
        (self.order == Order::Raced && self.next < self.addresses.len()).then_some(self.next_at)
    }

    /// Attempts under way.
    pub fn count(&self) -> usize {
        self.attempts.len()
    }

    /// What to wait for.
    pub fn interests(&self) -> impl Iterator<Item = libc::pollfd> {
        self.attempts.iter().map(|attempt| libc::pollfd {
            fd: attempt.stream.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        })
    }

    /// Notes what was waited for, in the order of [`Race::interests`].
    pub fn note<'a>(&mut self, mut polled: impl Iterator<Item = &'a libc::pollfd>) {
        for attempt in &mut self.attempts {
            attempt.ready |= polled.next().is_some_and(|fd| fd.revents != 0);
        }
    }

    /// The first stream that stands, and where it leads. Attempts run side by side, begun one after the
    /// other. The first one waits for `room`; without room, a later one takes the place of the oldest.
    pub fn advance(
        &mut self,
        room: &mut usize,
        now: Instant,
    ) -> Result<Option<(TcpStream, SocketAddr)>, UpstreamFault> {
        loop {
            let mut at = 0;
            while at < self.attempts.len() {
                let attempt = &mut self.attempts[at];
                if !std::mem::take(&mut attempt.ready) {
                    at += 1;
                    continue;
                }
                if let Ok(peer) = attempt.stream.peer_addr() {
                    let Attempt { stream, .. } = self.attempts.remove(at);
                    if !is_at(&stream, peer) {
                        // Not the address that was tried: 0.0.0.0 leads to 127.0.0.1.
                        return Ok(Some((stream, peer)));
                    }
                    // It is connected to itself, and no port of it may stay in TIME_WAIT.
                    let _ = reset_on_close(stream.as_fd());
                    self.note_error(&io::Error::from_raw_os_error(libc::ECONNREFUSED));
                    self.next_at = now;
                    continue;
                }
                match attempt.stream.take_error() {
                    Ok(None) => at += 1,
                    Ok(Some(error)) | Err(error) => {
                        self.note_error(&error);
                        self.attempts.remove(at);
                        self.next_at = now;
                    }
                }
            }
            let due = self.next < self.addresses.len()
                && (self.attempts.is_empty() || self.order == Order::Raced && now >= self.next_at);
            if !due {
                break;
            }
            if *room == 0 {
                // An address that swallows every SYN must not keep the others from being tried, however
                // many races there are: the oldest attempt makes room for the next one.
                if self.attempts.is_empty() {
                    break;
                }
                let _ = reset_on_close(self.attempts.remove(0).stream.as_fd());
                *room += 1;
            }
            let address = self.addresses[self.next];
            self.next += 1;
            match TcpStream::connect(address) {
                Ok(stream) => {
                    *room -= 1;
                    // On this machine it stands already, or has failed.
                    self.attempts.push(Attempt { stream, ready: true });
                    self.next_at = now + STAGGER;
                }
                Err(error) => self.note_error(&error),
            }
        }
        let over = self.attempts.is_empty() && self.next == self.addresses.len();
        if over { Err(self.fault) } else { Ok(None) }
    }

    fn note_error(&mut self, error: &io::Error) {
        self.fault = match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => UpstreamFault::Refused,
            Some(libc::EMFILE | libc::ENFILE) => UpstreamFault::OutOfDescriptors,
            _ => self.fault,
        };
        if self.order == Order::InTurn && error.raw_os_error() != Some(libc::ECONNREFUSED) {
            self.next = self.addresses.len();
        }
    }
}

/// Where nobody listens, TCP lets a socket of this machine connect to itself, if the port to connect
/// from happens to be the one to connect to.
fn is_at(stream: &TcpStream, address: SocketAddr) -> bool {
    stream.local_addr().is_ok_and(|local| local == address)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_attempt_that_is_not_needed_any_more_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let now = Instant::now();
        let mut race = Race::new(Rc::from([address]), Order::Raced, now);
        // On loopback the connection is there when connect(2) returns.
        let stream = TcpStream::connect(address).unwrap();
        race.attempts.push(Attempt { stream, ready: false });
        let (mut peer, _) = listener.accept().unwrap();
        drop(race);
        let end = peer.read(&mut [0]).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn an_address_that_swallows_every_syn_keeps_no_race_from_the_next_one() {
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let now = Instant::now();
        let mut race = Race::new(Rc::from(addresses), Order::Raced, now);
        // Nothing is heard of the first attempt, and other races need all the room that there is.
        let stream = TcpStream::connect(addresses[0]).unwrap();
        race.attempts.push(Attempt { stream, ready: false });
        (race.next, race.next_at) = (1, now + STAGGER);
        let mut room = 0;
        assert!(race.advance(&mut room, now).is_ok_and(|found| found.is_none()));
        let found = race.advance(&mut room, now + STAGGER).unwrap();
        assert_eq!(found.map(|(_, address)| address), Some(addresses[1]));
    }
}
