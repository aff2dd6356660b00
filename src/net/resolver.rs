//! The upstream's addresses. getaddrinfo runs on a thread of its own, never on the loop.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use mio::Waker;

use crate::http1::url::Host;
use crate::process::confine::{Sandbox, Thread};

/// How long an answer is used.
const FRESH: Duration = Duration::from_secs(60);

/// Looks one name up.
pub struct Resolver {
    known: Option<(Rc<[SocketAddr]>, Option<Instant>)>,
    thread: Option<(Sender<()>, Receiver<Vec<SocketAddr>>)>,
    asked: bool,
}

/// What is known about the addresses.
pub enum Lookup {
    /// In the order in which to try them; empty when the name does not resolve.
    Addresses(Rc<[SocketAddr]>),
    /// The waker will tell.
    Pending,
}

impl Resolver {
    /// For a name, starts the thread that looks it up; an address needs none.
    pub fn new(
        host: &Host,
        port: u16,
        waker: Arc<Waker>,
        sandbox: Sandbox,
    ) -> io::Result<Resolver> {
        let literal = |ip: IpAddr| Resolver {
            known: Some((Rc::new([SocketAddr::new(ip, port)]), None)),
            thread: None,
            asked: false,
        };
        let name = match host {
            Host::V4(octets) => return Ok(literal((*octets).into())),
            Host::V6(octets) => return Ok(literal((*octets).into())),
            Host::Name(name) => name.clone(),
        };
        let (ask, questions) = channel();
        let (tell, answers) = channel();
        // The C library loads what it looks names up with when it is first asked, and later it can
        // open no file any more.
        let before = || drop(("localhost", 0).to_socket_addrs());
        sandbox.thread(Thread::Resolver, "resolver", before, move || {
            while let Ok(()) = questions.recv() {
                let found = (name.as_str(), port).to_socket_addrs();
                let addresses = found.map(|found| interleaved(found.collect())).unwrap_or_default();
                if tell.send(addresses).is_err() || waker.wake().is_err() {
                    break;
                }
            }
        })?;
        Ok(Resolver { known: None, thread: Some((ask, answers)), asked: false })
    }

    /// The addresses, or a promise of them.
    pub fn addresses(&mut self, now: Instant) -> Lookup {
        if let Some((addresses, until)) = &self.known
            && until.is_none_or(|until| now < until)
        {
            return Lookup::Addresses(addresses.clone());
        }
        if !self.asked
            && let Some((ask, _)) = &self.thread
        {
            self.asked = ask.send(()).is_ok();
        }
        Lookup::Pending
    }

    /// Takes the answer that the waker announced; `None` when there is none.
    pub fn collect(&mut self, now: Instant) -> Option<Rc<[SocketAddr]>> {
        let addresses: Rc<[SocketAddr]> = self.thread.as_ref()?.1.try_recv().ok()?.into();
        self.asked = false;
        // A failure is told to those who wait, and not remembered.
        self.known = (!addresses.is_empty()).then(|| (addresses.clone(), Some(now + FRESH)));
        Some(addresses)
    }

    /// The addresses led nowhere: the next connection asks again.
    pub fn doubt(&mut self) {
        if self.thread.is_some() {
            self.known = None;
        }
    }
}

/// Families take turns, beginning with the one that the system prefers (RFC 8305 §4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else {
        return addresses;
    };
    let v6 = first.is_ipv6();
    let (mut preferred, mut other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == v6);
    preferred.reverse();
    other.reverse();
    let mut order = Vec::new();
    while let Some(address) = preferred.pop() {
        order.push(address);
        order.extend(other.pop());
    }
    order.extend(other.into_iter().rev());
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|text| text.parse().unwrap()).collect()
        };
        let (a, b, c) = ("[::1]:1", "[::2]:1", "[::3]:1");
        let (x, y, z) = ("1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1");
        assert_eq!(interleaved(parse(&[a, b, c, x, y])), parse(&[a, x, b, y, c]));
        assert_eq!(interleaved(parse(&[x, a, y, z])), parse(&[x, a, y, z]));
        assert_eq!(interleaved(parse(&[x, a, b, c])), parse(&[x, a, b, c]));
        assert_eq!(interleaved(vec![]), vec![]);
    }
}
