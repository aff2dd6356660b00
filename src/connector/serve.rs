//! The connector's own loop: dials that wait for addresses, addresses that are raced, replies.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::addresses::{Addresses, Next};
use super::confine::Confinement;
use super::lookup::{Answer, Lookup};
use super::race::{Order, Race};
use super::wire::{LONGEST, Outcome, Reply, Request, SERVER_INFO, SHOWN};
use crate::http1::response::UpstreamFault;
use crate::process::sys::child::{empty_if_it_holds, poll};
use crate::process::sys::fd_passing::{Passed, receive_message, send_message};
use crate::process::sys::{reset_on_close, set_upstream_options};

/// Dials that wait for an end; the loop has places for fewer.
const DIALS: usize = 1 << 18;
/// Attempts at connections at one time, each with a descriptor. Whatever is beyond waits for its turn.
const ATTEMPTS: usize = 256;
/// How long a dial may take, should the loop not give it up itself.
const DIAL: Duration = Duration::from_secs(30);
/// Lookups in a row that were disturbed by a change of the files.
const AGAIN: u32 = 3;

/// The loop is gone, or says what means nothing.
pub struct LoopGone;

/// A connection that the loop wants.
struct Dial {
    id: u64,
    since: Instant,
    resolved_at: Instant,
    race: Option<Race>,
}

/// The connector at work.
pub struct Connector {
    link: OwnedFd,
    /// The name to look up, where it is one.
    name: Option<String>,
    port: u16,
    confinement: Confinement,
    addresses: Addresses,
    lookup: Option<Lookup>,
    disturbed: u32,
    dials: Vec<Dial>,
    replies: VecDeque<(Reply, Option<TcpStream>)>,
    server_info: Option<ServerInfo>,
}

/// The file that says where the relay listens. The loop empties it; where it was killed, this does.
struct ServerInfo {
    file: OwnedFd,
    line: Vec<u8>,
}

impl Drop for ServerInfo {
    fn drop(&mut self) {
        empty_if_it_holds(self.file.as_fd(), &self.line);
    }
}

/// Where the descriptors stand that are waited for.
const LINK: usize = 0;
const LOOKUP: usize = 1;

impl Connector {
    /// With a link that does not block.
    pub fn new(
        link: OwnedFd,
        name: Option<String>,
        port: u16,
        addresses: Addresses,
        confinement: Confinement,
    ) -> Connector {
        Connector {
            link,
            name,
            port,
            confinement,
            addresses,
            lookup: None,
            disturbed: 0,
            dials: Vec::new(),
            replies: VecDeque::new(),
            server_info: None,
        }
    }

    /// Serves until the loop is gone.
    pub fn run(mut self) -> Result<(), LoopGone> {
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
                self.requests(now)?;
            }
            if fds[LOOKUP].revents != 0 {
                self.looked_up(now);
            } else if self.lookup.as_ref().is_some_and(|lookup| lookup.is_overdue(now)) {
                // Whoever waits next has another one begun.
                self.lookup = None;
                self.addresses.found(Vec::new(), now);
            }
            wakes_at = self.advance(now);
            self.send_replies()?;
        }
    }

    fn interests(&self, fds: &mut Vec<libc::pollfd>) {
        let interest = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let link = if self.replies.is_empty() { 0 } else { libc::POLLOUT };
        fds.clear();
        fds.push(interest(self.link.as_raw_fd(), libc::POLLIN | link));
        // A descriptor below 0 is passed over.
        fds.push(interest(self.lookup.as_ref().map_or(-1, Lookup::fd), libc::POLLIN));
        fds.extend(self.dials.iter().filter_map(|d| d.race.as_ref()).flat_map(Race::interests));
    }

    /// Takes all requests that are there.
    fn requests(&mut self, now: Instant) -> Result<(), LoopGone> {
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
            match Request::decode(&message[..n]).map_err(|_| LoopGone)? {
                Request::Dial(id) if self.dials.len() < DIALS => {
                    self.dials.push(Dial { id, since: now, resolved_at: now, race: None });
                }
                Request::Dial(_) => return Err(LoopGone),
                Request::Cancel(id) => {
                    // One whose reply is on its way already is cancelled in vain.
                    if let Some(at) = self.dials.iter().position(|dial| dial.id == id) {
                        let dial = self.dials.remove(at);
                        self.replies.push_back((dial.reply(Outcome::Cancelled, now), None));
                    }
                }
                Request::Doubt => self.addresses.doubt(now),
            }
        }
    }

    /// The server-info file.
    fn remember(&mut self, file: OwnedFd, message: &[u8]) -> Result<(), LoopGone> {
        match message.split_first() {
            Some((&SERVER_INFO, line)) => {
                // The one before, which could not take the name, has none any more.
                self.server_info = Some(ServerInfo { file, line: line.to_vec() });
                Ok(())
            }
            _ => Err(LoopGone),
        }
    }

    fn looked_up(&mut self, now: Instant) {
        let Some(lookup) = self.lookup.take() else {
            return;
        };
        match lookup.finish() {
            Answer::Again if self.disturbed < AGAIN => {
                self.disturbed += 1;
                self.addresses.again();
            }
            Answer::Again => self.addresses.found(Vec::new(), now),
            Answer::Addresses(addresses) => {
                self.disturbed = 0;
                self.addresses.found(addresses, now);
            }
        }
    }

    /// Takes every dial as far as it goes now; says when to do so again at the latest.
    fn advance(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let mut wakes_at = None;
            let mut wake =
                |at: Option<Instant>| wakes_at = [wakes_at, at].into_iter().flatten().min();
            let (mut starved, mut failed) = (false, false);
            let under_way = self.dials.iter().filter_map(|d| d.race.as_ref()).map(Race::count);
            let mut room = ATTEMPTS.saturating_sub(under_way.sum());
            let mut dials = std::mem::take(&mut self.dials);
            dials.retain_mut(|dial| {
                wake(Some(dial.since + DIAL));
                let result = match self.step(dial, &mut room, now) {
                    Ok(Step::Connected(stream, address)) => {
                        let _ = set_upstream_options(stream.as_fd());
                        (Outcome::Connected(address), Some(stream))
                    }
                    Ok(Step::Wait(at)) if now < dial.since + DIAL => {
                        // A time that has passed: it waits for room, which no clock brings.
                        wake(at.filter(|at| *at > now));
                        starved |= room == 0;
                        return true;
                    }
                    Ok(Step::Wait(_)) => (Outcome::Failed(UpstreamFault::Unreachable), None),
                    Err(fault) => (Outcome::Failed(fault), None),
                };
                failed |= dial.race.is_some() && result.1.is_none();
                self.replies.push_back((dial.reply(result.0, now), result.1));
                false
            });
            self.dials = dials;
            if failed {
                // The name may lead elsewhere by now.
                self.addresses.doubt(now);
            }
            let under_way = self.dials.iter().filter_map(|d| d.race.as_ref()).map(Race::count);
            if !starved || under_way.sum::<usize>() >= ATTEMPTS {
                return wakes_at;
            }
        }
    }

    fn step(
        &mut self,
        dial: &mut Dial,
        room: &mut usize,
        now: Instant,
    ) -> Result<Step, UpstreamFault> {
        let race = match &mut dial.race {
            Some(race) => race,
            None => loop {
                match self.addresses.next(dial.since, now) {
                    Next::Use(addresses) => {
                        dial.resolved_at = now;
                        let order = if self.name.is_some() { Order::Raced } else { Order::InTurn };
                        break dial.race.insert(Race::new(addresses, order, now));
                    }
                    Next::Wait(at) => return Ok(Step::Wait(at)),
                    Next::Fail => return Err(UpstreamFault::Dns),
                    Next::Lookup => self.begin_lookup(now)?,
                }
            },
        };
        Ok(match race.advance(room, now)? {
            Some((stream, address)) => Step::Connected(stream, address),
            None => Step::Wait(race.wakes_at()),
        })
    }

    fn begin_lookup(&mut self, now: Instant) -> Result<(), UpstreamFault> {
        let name = self.name.as_deref().ok_or(UpstreamFault::Dns)?;
        match Lookup::begin(name, self.port, &self.confinement, now) {
            Ok(lookup) => {
                self.lookup = Some(lookup);
                self.addresses.asked(now);
                Ok(())
            }
            Err(error) => {
                // The last good addresses may do.
                self.addresses.found(Vec::new(), now);
                match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => Err(UpstreamFault::OutOfDescriptors),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Sends the replies that are ready, as far as there is room.
    fn send_replies(&mut self) -> Result<(), LoopGone> {
        while let Some((reply, stream)) = self.replies.front_mut() {
            let descriptor = stream.as_ref().map(|stream| stream.as_fd());
            match send_message(self.link.as_fd(), &reply.encode(), descriptor) {
                Ok(()) => drop(self.replies.pop_front()),
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::WouldBlock, _) => return Ok(()),
                    (io::ErrorKind::Interrupted, _) => {}
                    // Too many descriptors of this user are on their way.
                    (_, Some(libc::ETOOMANYREFS)) if stream.is_some() => {
                        if let Some(unsent) = stream.take() {
                            let _ = reset_on_close(unsent.as_fd());
                        }
                        reply.outcome = Outcome::Failed(UpstreamFault::OutOfDescriptors);
                    }
                    _ => return Err(LoopGone),
                },
            }
        }
        Ok(())
    }
}

/// How far a dial has come.
enum Step {
    Connected(TcpStream, SocketAddr),
    /// Until something comes, or until then.
    Wait(Option<Instant>),
}

impl Dial {
    fn reply(&self, outcome: Outcome, now: Instant) -> Reply {
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
