//! The connector's own event loop: dials wait for addresses, the addresses are raced, and the
//! replies are sent. "The loop" is the relay's event loop, at the other end of the link.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::addresses::{Addresses, NextAction};
use super::confine::Confinement;
use super::lookup::{Lookup, LookupResult};
use super::race::{Order, Race};
use super::wire::{DialOutcome, LONGEST, LinkRequest, Reply, SERVER_INFO, SHOWN};
use crate::http1::local_response::UpstreamFault;
use crate::process::sys::child::{empty_if_it_holds, poll};
use crate::process::sys::fd_passing::{Passed, receive_message, send_message};
use crate::process::sys::{reset_on_close, set_upstream_options};
use crate::process::upstream_users::Reach;

/// The most dials under way. The loop has fewer slots, so more are a protocol violation.
const DIALS: usize = 1 << 18;
/// The most connection attempts at one time, each of which holds a descriptor. Further attempts
/// wait.
pub(super) const ATTEMPTS: usize = 256;
/// How long a dial may take if the loop does not cancel it earlier.
const DIAL: Duration = Duration::from_secs(30);
/// The most lookups in a row that are repeated because a resolver file was replaced. One more
/// counts as failed.
const LOOKUP_REPEATS: u32 = 3;

/// The loop has ended, or has sent a message that violates the protocol.
pub(super) struct LoopGone;

/// A connection that the loop has asked for.
struct Dial {
    id: u64,
    /// When the request arrived.
    since: Instant,
    /// When the addresses were known, once there is a race.
    resolved_at: Instant,
    race: Option<Race>,
}

/// The one host to connect to, and how.
pub(super) struct Target {
    /// The name to look up; `None` if the addresses are fixed.
    pub name: Option<String>,
    /// The port of the host.
    pub port: u16,
    /// Which addresses of the host are allowed. One address that is not allowed fails the dial.
    pub reach: Reach,
    /// How many descriptors connection attempts may hold at one time, [`ATTEMPTS`] at most.
    pub attempts: usize,
}

/// The state of the connector.
pub(super) struct Connector {
    link: OwnedFd,
    target: Target,
    confinement: Confinement,
    addresses: Addresses,
    lookup: Option<Lookup>,
    /// Lookups in a row during which a resolver file was replaced, [`LOOKUP_REPEATS`] at most.
    disturbed: u32,
    dials: Vec<Dial>,
    /// Replies that have not been sent, each with the connection that it carries.
    replies: VecDeque<(Reply, Option<TcpStream>)>,
    server_info: Option<ServerInfoFile>,
}

/// The file that says where the relay listens. The loop empties the file when it ends. If the loop
/// was killed, the connector does so.
struct ServerInfoFile {
    file: OwnedFd,
    line: Vec<u8>,
}

impl Drop for ServerInfoFile {
    fn drop(&mut self) {
        empty_if_it_holds(self.file.as_fd(), &self.line);
    }
}

/// The index of the link among the polled descriptors.
const LINK: usize = 0;
/// The index of the pipe from the lookup. The connection attempts follow.
const LOOKUP: usize = 1;

impl Connector {
    /// A connector without dials. `link` must be non-blocking.
    pub(super) fn new(
        link: OwnedFd,
        target: Target,
        addresses: Addresses,
        confinement: Confinement,
    ) -> Connector {
        Connector {
            link,
            target,
            confinement,
            addresses,
            lookup: None,
            disturbed: 0,
            dials: Vec::new(),
            replies: VecDeque::new(),
            server_info: None,
        }
    }

    /// Serves until the loop has ended or violated the protocol. Returns nothing but [`LoopGone`].
    pub(super) fn run(mut self) -> Result<(), LoopGone> {
        let mut fds = Vec::new();
        let mut wakes_at = None;
        loop {
            self.interests(&mut fds);
            let now = Instant::now();
            let timeout = wakes_at.map(|at: Instant| at.saturating_duration_since(now));
            poll(&mut fds, timeout).map_err(|_| LoopGone)?;
            let now = Instant::now();
            let mut attempts = fds[LOOKUP + 1..].iter();
            for race in self.dials.iter_mut().filter_map(|dial| dial.race.as_mut()) {
                let count = race.count();
                race.note(attempts.by_ref().take(count));
            }
            if fds[LINK].revents & !libc::POLLOUT != 0 {
                self.receive_requests(now)?;
            }
            if fds[LOOKUP].revents != 0 {
                self.finish_lookup(now);
            } else if self.lookup.as_ref().is_some_and(|lookup| lookup.is_overdue(now)) {
                // The lookup counts as failed. A later dial begins another one.
                self.lookup = None;
                self.addresses.lookup_ended(Vec::new(), now);
            }
            loop {
                let progress = self.advance(now);
                self.send_replies()?;
                wakes_at = progress.wakes_at;
                // Failed attempts and connections that were passed on have freed descriptors.
                if !progress.starved || self.spare_attempts() == 0 {
                    break;
                }
            }
        }
    }

    /// Collects what to poll(2) for: the link, the lookup, then all attempts.
    fn interests(&self, fds: &mut Vec<libc::pollfd>) {
        let interest = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let link = if self.replies.is_empty() { 0 } else { libc::POLLOUT };
        fds.clear();
        fds.push(interest(self.link.as_raw_fd(), libc::POLLIN | link));
        // poll(2) ignores a descriptor below 0.
        fds.push(interest(self.lookup.as_ref().map_or(-1, Lookup::fd), libc::POLLIN));
        fds.extend(self.dials.iter().filter_map(|d| d.race.as_ref()).flat_map(Race::interests));
    }

    /// Receives all requests that have arrived.
    fn receive_requests(&mut self, now: Instant) -> Result<(), LoopGone> {
        loop {
            let mut message = [0; LONGEST];
            let n = match receive_message(self.link.as_fd(), &mut message) {
                Ok((n, Passed::Nothing)) => n,
                Ok((n, Passed::Descriptor(file))) => {
                    self.remember(file, &message[..n])?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                _ => return Err(LoopGone),
            };
            match LinkRequest::decode(&message[..n]).map_err(|_| LoopGone)? {
                LinkRequest::Dial(id) if self.dials.len() < DIALS => {
                    self.dials.push(Dial { id, since: now, resolved_at: now, race: None });
                }
                LinkRequest::Dial(_) => return Err(LoopGone),
                LinkRequest::Cancel(id) => {
                    // If the reply is queued or sent already, the cancellation has no effect.
                    if let Some(at) = self.dials.iter().position(|dial| dial.id == id) {
                        let dial = self.dials.remove(at);
                        self.replies.push_back((dial.reply(DialOutcome::Cancelled, now), None));
                    }
                }
                LinkRequest::Doubt => self.addresses.doubt(now),
            }
        }
    }

    /// Keeps the server-info file, which may come once.
    fn remember(&mut self, file: OwnedFd, message: &[u8]) -> Result<(), LoopGone> {
        match (message.split_first(), &self.server_info) {
            (Some((&SERVER_INFO, line)), None) => {
                self.server_info = Some(ServerInfoFile { file, line: line.to_vec() });
                Ok(())
            }
            _ => Err(LoopGone),
        }
    }

    /// Takes the result of the lookup that has ended.
    fn finish_lookup(&mut self, now: Instant) {
        let Some(lookup) = self.lookup.take() else {
            return;
        };
        match lookup.finish() {
            LookupResult::Again if self.disturbed < LOOKUP_REPEATS => {
                self.disturbed += 1;
                self.addresses.lookup_disturbed();
            }
            LookupResult::Again => self.addresses.lookup_ended(Vec::new(), now),
            LookupResult::Addresses(addresses) => {
                self.disturbed = 0;
                self.addresses.lookup_ended(addresses, now);
            }
        }
    }

    /// Advances every dial as far as possible. Queues the replies to the dials that have ended.
    fn advance(&mut self, now: Instant) -> AfterAdvance {
        let mut progress = AfterAdvance { wakes_at: None, starved: false };
        let mut wake = |at: Option<Instant>| {
            // An attempt that is due already waits for a descriptor, not for a time.
            let at = at.filter(|at| *at > now);
            progress.wakes_at = [progress.wakes_at, at].into_iter().flatten().min();
        };
        let mut failed = false;
        let mut spare_attempts = self.spare_attempts();
        let mut dials = std::mem::take(&mut self.dials);
        dials.retain_mut(|dial| {
            let result = match self.step(dial, &mut spare_attempts, now) {
                Ok(DialState::Connected(stream, address)) => {
                    let _ = set_upstream_options(stream.as_fd());
                    (DialOutcome::Connected(address), Some(stream))
                }
                Ok(DialState::Wait(at)) if now < dial.since + DIAL => {
                    wake(Some(dial.since + DIAL));
                    wake(at);
                    progress.starved |= spare_attempts == 0;
                    return true;
                }
                Ok(DialState::Wait(_)) => (DialOutcome::Failed(UpstreamFault::Unreachable), None),
                Err(fault) => (DialOutcome::Failed(fault), None),
            };
            failed |= dial.race.is_some() && result.1.is_none();
            self.replies.push_back((dial.reply(result.0, now), result.1));
            false
        });
        self.dials = dials;
        if failed {
            // The name may lead elsewhere by now, so the next dial needs a new lookup.
            self.addresses.doubt(now);
        }
        progress
    }

    /// How many further attempts may begin. A connection that waits to be passed on holds a
    /// descriptor too.
    fn spare_attempts(&self) -> usize {
        let under_way = self.dials.iter().filter_map(|d| d.race.as_ref()).map(Race::count);
        let waiting = self.replies.iter().filter(|(_, stream)| stream.is_some()).count();
        self.target.attempts.saturating_sub(under_way.sum::<usize>() + waiting)
    }

    /// Advances a dial: gets its addresses, then advances its race. Fails with the fault of the
    /// dial.
    fn step(
        &mut self,
        dial: &mut Dial,
        spare_attempts: &mut usize,
        now: Instant,
    ) -> Result<DialState, UpstreamFault> {
        let race = match &mut dial.race {
            Some(race) => race,
            None => loop {
                match self.addresses.next(dial.since, now) {
                    NextAction::Use(addresses) => {
                        let is_here = |address: &SocketAddr| address.ip().is_loopback();
                        if self.target.reach == Reach::Here && !addresses.iter().all(is_here) {
                            return Err(UpstreamFault::Unreachable);
                        }
                        dial.resolved_at = now;
                        let order =
                            if self.target.name.is_some() { Order::Raced } else { Order::InTurn };
                        break dial.race.insert(Race::new(addresses, order, now));
                    }
                    NextAction::Wait(at) => return Ok(DialState::Wait(at)),
                    NextAction::Fail => return Err(UpstreamFault::Dns),
                    NextAction::Lookup => self.begin_lookup(now)?,
                }
            },
        };
        Ok(match race.advance(spare_attempts, now)? {
            Some((stream, address)) => DialState::Connected(stream, address),
            None => DialState::Wait(race.wakes_at()),
        })
    }

    /// Begins a lookup. Fails if there is no descriptor for the pipe.
    fn begin_lookup(&mut self, now: Instant) -> Result<(), UpstreamFault> {
        let name = self.target.name.as_deref().ok_or(UpstreamFault::Dns)?;
        match Lookup::begin(name, self.target.port, &self.confinement, now) {
            Ok(lookup) => {
                self.lookup = Some(lookup);
                self.addresses.lookup_began(now);
                Ok(())
            }
            Err(error) => {
                // The lookup counts as failed. The last good addresses may still work.
                self.addresses.lookup_ended(Vec::new(), now);
                match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => Err(UpstreamFault::OutOfDescriptors),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Sends queued replies until the link is full.
    fn send_replies(&mut self) -> Result<(), LoopGone> {
        while let Some((reply, stream)) = self.replies.front_mut() {
            let descriptor = stream.as_ref().map(|stream| stream.as_fd());
            match send_message(self.link.as_fd(), &reply.encode(), descriptor) {
                Ok(()) => drop(self.replies.pop_front()),
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::WouldBlock, _) => return Ok(()),
                    (io::ErrorKind::Interrupted, _) => {}
                    // Too many descriptors of this user are in flight (unix(7)).
                    (_, Some(libc::ETOOMANYREFS)) if stream.is_some() => {
                        if let Some(unsent) = stream.take() {
                            let _ = reset_on_close(unsent.as_fd());
                        }
                        reply.outcome = DialOutcome::Failed(UpstreamFault::OutOfDescriptors);
                    }
                    _ => return Err(LoopGone),
                },
            }
        }
        Ok(())
    }
}

/// The result of [`Connector::advance`] for all dials.
struct AfterAdvance {
    /// When the dials must be advanced again at the latest.
    wakes_at: Option<Instant>,
    /// At least one dial waits, and no further attempt may begin.
    starved: bool,
}

/// The state of a dial after [`Connector::step`].
enum DialState {
    /// The connection is established, to this address.
    Connected(TcpStream, SocketAddr),
    /// The dial waits for an event, or until this time.
    Wait(Option<Instant>),
}

impl Dial {
    /// The reply to this dial, which has ended.
    fn reply(&self, outcome: DialOutcome, now: Instant) -> Reply {
        let mut resolved: [Option<IpAddr>; SHOWN] = [None; SHOWN];
        let addresses = self.race.as_ref().map_or(&[][..], Race::addresses);
        for (to, from) in resolved.iter_mut().zip(addresses) {
            *to = Some(from.ip());
        }
        let resolved_at = if self.race.is_some() { self.resolved_at } else { now };
        Reply {
            id: self.id,
            outcome,
            lookup: resolved_at.saturating_duration_since(self.since),
            connect: now.saturating_duration_since(resolved_at),
            resolved,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::TcpListener;
    use std::rc::Rc;

    use super::*;
    use crate::connector::link::{Dialed, Link, Pending};
    use crate::process::confine::Sandbox;
    use crate::process::sys::fd_passing::message_pair;

    /// Starts a connector on a thread and returns the loop's end of its link. The connector ends
    /// when that end is dropped.
    fn serving(reach: Reach, address: SocketAddr) -> Rc<Link> {
        let (ours, theirs) = message_pair().unwrap();
        std::thread::spawn(move || {
            let target = Target { name: None, port: address.port(), reach, attempts: ATTEMPTS };
            let confinement = Confinement::new(Sandbox::off());
            let addresses = Addresses::literal(&[address]);
            let _ = Connector::new(theirs, target, addresses, confinement).run();
        });
        Rc::new(Link::new(ours))
    }

    fn next(link: &Link) -> Dialed {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            link.flush();
            if let Some(dialed) = link.receive().unwrap() {
                return dialed;
            }
            let events = libc::POLLIN | if link.has_unsent() { libc::POLLOUT } else { 0 };
            let fd = libc::pollfd { fd: link.as_raw_fd(), events, revents: 0 };
            poll(&mut [fd], Some(Duration::from_secs(1))).unwrap();
        }
        panic!("no reply");
    }

    /// 0.0.0.0 leads to this machine and is not a loopback address. So the test can tell an address
    /// that is not allowed from an address that cannot be reached.
    #[test]
    fn an_address_that_is_not_loopback_is_connected_to_only_where_that_is_allowed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for (ip, reach, is_allowed) in [
            ([0, 0, 0, 0], Reach::Anywhere, true),
            ([0, 0, 0, 0], Reach::Here, false),
            ([127, 0, 0, 1], Reach::Here, true),
        ] {
            let link = serving(reach, SocketAddr::from((ip, port)));
            let mut pending = link.dial(7).unwrap();
            let dialed = next(&link);
            pending.settle();
            assert_eq!((dialed.id, dialed.result.is_ok()), (7, is_allowed), "{ip:?} {reach:?}");
        }
    }

    #[test]
    fn a_link_that_is_full_both_ways_loses_nothing() {
        // Many times the capacity of the link. How often the link is full depends on both threads.
        const DIALS: u64 = 4000;
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let link = serving(Reach::Here, closed);
        let mut pending: Vec<_> = (0..DIALS).map(|id| link.dial(id).unwrap()).collect();
        let replied: BTreeSet<_> = (0..DIALS).map(|_| next(&link).id).collect();
        assert_eq!(replied.len() as u64, DIALS);
        pending.iter_mut().for_each(Pending::settle);
        assert!(link.receive().unwrap().is_none());
    }
}
