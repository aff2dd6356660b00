//! Happy eyeballs (RFC 8305): connection attempts to the addresses of one host.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use crate::http1::local_response::UpstreamFault;
use crate::process::sys::reset_on_close;

/// The Connection Attempt Delay of RFC 8305 §5: how long after one attempt the next one begins,
/// unless an attempt fails earlier.
const STAGGER: Duration = Duration::from_millis(250);

/// How the addresses of a host are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// In parallel, each attempt a little later than the one before (RFC 8305).
    Raced,
    /// One at a time. The next address is tried only if the one before has refused the connection.
    InTurn,
}

/// A connection attempt under way.
struct Attempt {
    stream: TcpStream,
    /// The attempt is new, or poll(2) has reported an event since the last check.
    ready: bool,
}

/// The attempts at one TCP connection, to the addresses of one host.
pub(super) struct Race {
    order: Order,
    addresses: Rc<[SocketAddr]>,
    /// The index of the address that is tried next.
    next: usize,
    /// When that address is due, while other attempts are under way.
    next_at: Instant,
    attempts: Vec<Attempt>,
    /// The result of the race if every attempt fails.
    fault: UpstreamFault,
}

/// Resets the attempts that are no longer needed, so that they leave no port in TIME_WAIT.
impl Drop for Race {
    fn drop(&mut self) {
        for attempt in &self.attempts {
            let _ = reset_on_close(attempt.stream.as_fd());
        }
    }
}

impl Race {
    /// A race over these addresses. [`Race::advance`] begins the first attempt.
    pub(super) fn new(addresses: Rc<[SocketAddr]>, order: Order, now: Instant) -> Race {
        Race {
            order,
            addresses,
            next: 0,
            next_at: now,
            attempts: Vec::new(),
            fault: UpstreamFault::Unreachable,
        }
    }

    /// All addresses, whether tried or not.
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// When the next attempt is due if no attempt has connected by then. `None` if no address is
    /// left or the addresses are tried in turn.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        (self.order == Order::Raced && self.next < self.addresses.len()).then_some(self.next_at)
    }

    /// The number of attempts under way.
    pub(super) fn count(&self) -> usize {
        self.attempts.len()
    }

    /// The descriptors for poll(2), one for each attempt.
    pub(super) fn interests(&self) -> impl Iterator<Item = libc::pollfd> {
        self.attempts.iter().map(|attempt| libc::pollfd {
            fd: attempt.stream.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        })
    }

    /// Records the results of poll(2), which are in the order of [`Race::interests`].
    pub(super) fn note<'a>(&mut self, mut polled: impl Iterator<Item = &'a libc::pollfd>) {
        for attempt in &mut self.attempts {
            attempt.ready |= polled.next().is_some_and(|fd| fd.revents != 0);
        }
    }

    /// Checks the attempts under way and begins those that are due. Returns the first established
    /// connection with its remote address, or `None` while the race is undecided.
    ///
    /// `spare_attempts` is the number of further attempts that all races together may begin. If it
    /// is 0, a race with no attempt under way waits; in any other race, a new attempt replaces the
    /// oldest one.
    ///
    /// Fails when no attempt and no address is left. The error is the last of
    /// [`UpstreamFault::Refused`] and [`UpstreamFault::OutOfDescriptors`] that occurred, otherwise
    /// [`UpstreamFault::Unreachable`].
    pub(super) fn advance(
        &mut self,
        spare_attempts: &mut usize,
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
                        // The remote address may differ from the one that was tried: 0.0.0.0 leads
                        // to 127.0.0.1.
                        return Ok(Some((stream, peer)));
                    }
                    // The socket is connected to itself. Its port must not stay in TIME_WAIT.
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
            if *spare_attempts == 0 {
                // An address that drops every SYN must not keep the other addresses from being
                // tried, however many races there are. So the next attempt replaces the oldest one.
                if self.attempts.is_empty() {
                    break;
                }
                let _ = reset_on_close(self.attempts.remove(0).stream.as_fd());
                *spare_attempts += 1;
            }
            let address = self.addresses[self.next];
            self.next += 1;
            match TcpStream::connect(address) {
                Ok(stream) => {
                    *spare_attempts -= 1;
                    // A connection within this machine is already established, or has failed.
                    self.attempts.push(Attempt { stream, ready: true });
                    self.next_at = now + STAGGER;
                }
                Err(error) => self.note_error(&error),
            }
        }
        let over = self.attempts.is_empty() && self.next == self.addresses.len();
        if over { Err(self.fault) } else { Ok(None) }
    }

    /// Records the error of an attempt. In [`Order::InTurn`], any error except a refusal ends the
    /// race.
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

/// Whether the socket is connected to itself; `address` is its remote address. TCP allows this on a
/// port without a listener, if the kernel picks the destination port as the source port (a
/// simultaneous open, RFC 9293 §3.5).
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
        // On loopback the connection is established when connect(2) returns.
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
        // The first attempt stays without an event, and other races take all the room.
        let stream = TcpStream::connect(addresses[0]).unwrap();
        race.attempts.push(Attempt { stream, ready: false });
        (race.next, race.next_at) = (1, now + STAGGER);
        let mut spare_attempts = 0;
        assert!(race.advance(&mut spare_attempts, now).is_ok_and(|found| found.is_none()));
        let found = race.advance(&mut spare_attempts, now + STAGGER).unwrap();
        assert_eq!(found.map(|(_, address)| address), Some(addresses[1]));
    }
}
