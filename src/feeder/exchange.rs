//! The two steps of an exchange: one connection and one request each.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::memory::{Parts, TokenMemory};
use super::plan::Hop;
use super::renewal;
use crate::connector::link::Link;
use crate::http1::limits::RECORD;
use crate::http1::local_response::UpstreamFault;
use crate::net::buffer::{Scratch, TlsScratch};
use crate::net::tls::{Recording, TlsConnector};
use crate::net::upstream::{Connection, Origin, Sent, StreamEnd, Upstream};
use crate::oidc::notice::{Cause, Failure};
use crate::oidc::receive::{Received, Reception};
use crate::oidc::token_response::{self, ErrorWord};
use crate::oidc::{Step, TokenExchange, request};
use crate::process::sys::{BootTimer, time_since_boot};

const STEPS: [Step; 2] = [Step::IdToken, Step::AccessToken];
/// The tokens of the poll: the two links, the pipe to the relay, the timer, and stderr during a
/// report. Those of connections follow.
const LINKS: [Token; 2] = [Token(0), Token(1)];
const PIPE: Token = Token(2);
const TIMER: Token = Token(3);
const STDERR: Token = Token(4);
const CONNECTIONS: usize = 5;
/// How long one request may take, from the connection to the end of the response.
const REQUEST: Duration = Duration::from_secs(10);

/// Makes exchanges, one at a time.
pub(super) struct Exchanger<'a> {
    exchange: &'a TokenExchange,
    origins: [Origin; 2],
    poll: Poll,
    events: Events,
    timer: BootTimer,
    scratch: TlsScratch,
    /// The number of the next connection.
    next: usize,
}

#[inline(never)]
fn origin((hop, link): (Hop, Link)) -> io::Result<Origin> {
    let tls = match hop.roots {
        None => None,
        Some(roots) => match TlsConnector::new(roots, Recording::Off) {
            Ok((connector, _)) => Some(connector),
            Err(_) => return Err(io::ErrorKind::InvalidInput.into()),
        },
    };
    Ok(Origin { tls, link: Rc::new(link), proxy: hop.proxy, users: hop.users })
}

/// A token that has been written to the relay.
pub(super) struct Renewed {
    /// When it was asked for, by the clock that goes on while the machine sleeps.
    asked: Duration,
    /// For how long it is valid from then on.
    lifetime: Duration,
}

/// The relay has ended.
pub(super) struct RelayGone;

/// Why there is no token.
pub(super) enum ExchangeError {
    /// The exchange failed.
    Failed(Failure),
    /// The relay has ended.
    RelayGone,
}

impl From<RelayGone> for ExchangeError {
    fn from(RelayGone: RelayGone) -> ExchangeError {
        ExchangeError::RelayGone
    }
}

impl<'a> Exchanger<'a> {
    /// Prepares everything that needs a descriptor or a file. `pipe` leads to the relay.
    pub(super) fn new(
        exchange: &'a TokenExchange,
        hops: [(Hop, Link); 2],
        pipe: &impl AsRawFd,
    ) -> io::Result<Exchanger<'a>> {
        let poll = Poll::new()?;
        let timer = BootTimer::new()?;
        let register =
            |fd, token, interest| poll.registry().register(&mut SourceFd(&fd), token, interest);
        register(timer.as_raw_fd(), TIMER, Interest::READABLE)?;
        register(pipe.as_raw_fd(), PIPE, Interest::WRITABLE)?;
        let [first, second] = hops;
        for ((_, link), token) in [&first, &second].into_iter().zip(LINKS) {
            register(link.as_raw_fd(), token, Interest::READABLE)?;
        }
        let origins = [origin(first)?, origin(second)?];
        let scratch = TlsScratch {
            ciphertext_in: Scratch::new(2 * RECORD),
            plaintext_in: Scratch::new(2 * RECORD),
            ciphertext_out: Scratch::new(2 * RECORD),
            record: Scratch::new(0),
        };
        let events = Events::with_capacity(16);
        Ok(Exchanger { exchange, origins, poll, events, timer, scratch, next: CONNECTIONS })
    }

    /// Waits for this time, which goes on while the machine sleeps.
    pub(super) fn wait(&mut self, time: Duration) -> Result<(), RelayGone> {
        self.timer.set(time).map_err(|_| RelayGone)?;
        loop {
            poll_for(&mut self.poll, &mut self.events, None)?;
            if self.events.iter().any(|event| event.token() == TIMER) {
                return Ok(());
            }
        }
    }

    /// Writes a report to stderr if stderr takes it at once. Otherwise the report is lost: a reader
    /// that has stopped must not hold a renewal up.
    pub(super) fn report(&mut self, report: &str) -> Result<(), RelayGone> {
        let mut stderr = io::stderr();
        let fd = stderr.as_raw_fd();
        let is_writable =
            match self.poll.registry().register(&mut SourceFd(&fd), STDERR, Interest::WRITABLE) {
                Ok(()) => {
                    let polled = poll_for(&mut self.poll, &mut self.events, Some(Duration::ZERO));
                    let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
                    polled?;
                    self.events.iter().any(|event| event.token() == STDERR)
                }
                // A file cannot be polled, because it never waits for a reader.
                Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
            };
        if is_writable {
            let _ = stderr.write_all(report.as_bytes());
        }
        Ok(())
    }

    /// Makes both steps by this time and passes the token on to `write`, with its lifetime.
    pub(super) fn exchange(
        &mut self,
        memory: &mut TokenMemory,
        by: Option<Instant>,
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> Result<Renewed, ExchangeError> {
        memory.with(|parts| {
            let Parts { request_token, token, request, response } = parts;
            let mut len = 0;
            let mut renewed = Renewed { asked: time_since_boot(), lifetime: Duration::ZERO };
            for step in STEPS {
                let failed = |cause| ExchangeError::Failed(Failure::Exchange(step, cause));
                renewed.asked = time_since_boot();
                let own = Instant::now() + REQUEST;
                let by = by.map_or(own, |by| by.min(own));
                let carried = if step == Step::IdToken { request_token } else { &token[..len] };
                let written = request::write(step, self.exchange, carried, request);
                let request = &request[..written.unwrap_or(0)];
                let received = self.ask(step, request, response, by);
                self.scratch.wipe();
                let received = match received {
                    Ok(received) => received,
                    Err(AskError::Failed(cause)) => return Err(failed(cause)),
                    Err(AskError::RelayGone) => return Err(ExchangeError::RelayGone),
                };
                let body = &response[..received.len];
                if received.status != 200 {
                    let word = ErrorWord::of_body(body, [request_token, &token[..len]]);
                    return Err(failed(Cause::Status(received.status, word)));
                }
                let read = token_response::token(step, body, token);
                let read = read.map_err(|fault| failed(Cause::Response(fault)))?;
                (len, renewed.lifetime) = (read.len, Duration::from_secs(read.lifetime));
            }
            let left = renewed.lifetime.saturating_sub(renewed.age()).as_millis().max(1);
            let behind = format!(" {left}\n");
            let end = len + behind.len();
            token[len..end].copy_from_slice(behind.as_bytes());
            write(&token[..end]).map_err(|_| ExchangeError::RelayGone)?;
            Ok(renewed)
        })
    }

    /// Sends one request and receives its response into `response`.
    fn ask(
        &mut self,
        step: Step,
        request: &[u8],
        response: &mut [u8],
        by: Instant,
    ) -> Result<Received, AskError> {
        let number = self.next;
        self.next += 1;
        let which = usize::from(step == Step::AccessToken);
        let now = Instant::now();
        let limit = by.saturating_duration_since(now);
        let mut up = Upstream::new(Token(number), None, now, limit);
        loop {
            let now = Instant::now();
            let origin = &mut self.origins[which];
            up.advance(origin, self.poll.registry(), &mut self.scratch, now)
                .map_err(|fault| AskError::Failed(Cause::Connection(fault)))?;
            if let Some(connection) = up.connection() {
                return self.converse(connection, number, request, response, by);
            }
            self.wait_for(Token(number), by, |event| up.note(event))?;
            loop {
                match self.origins[which].link.receive() {
                    Ok(None) => break,
                    // The reply to an earlier dial, which was given up, is of no use.
                    Ok(Some(dialed)) if dialed.id == number as u64 => up.dialed(dialed.result),
                    Ok(Some(_)) => {}
                    Err(_) => {
                        let fault = UpstreamFault::ConnectorFailed;
                        return Err(AskError::Failed(Cause::Connection(fault)));
                    }
                }
            }
        }
    }

    /// Sends the request on a usable connection and receives the response.
    fn converse(
        &mut self,
        connection: &mut Connection,
        number: usize,
        request: &[u8],
        response: &mut [u8],
        by: Instant,
    ) -> Result<Received, AskError> {
        let closed = AskError::Failed(Cause::Connection(UpstreamFault::Closed));
        if connection.send_request(request, &mut self.scratch) == Sent::ConnectionFailed {
            return Err(closed);
        }
        let mut reception = Reception::default();
        loop {
            connection.flush();
            // An endpoint that sends without end gets no more time than one that is silent.
            if Instant::now() >= by {
                return Err(AskError::Failed(Cause::Timeout));
            }
            if !connection.has_news() {
                self.wait_for(Token(number), by, |event| connection.note(event))?;
                continue;
            }
            let end = connection.read(&mut self.scratch, 2 * RECORD);
            let plaintext = self.scratch.plaintext_in.bytes();
            let received = reception.receive(plaintext, response);
            self.scratch.wipe();
            let fault = |fault| AskError::Failed(Cause::Response(fault));
            if let Some(received) = received.map_err(fault)? {
                return Ok(received);
            }
            match end {
                StreamEnd::NotYet => {}
                StreamEnd::Orderly => return reception.end(true).map_err(fault),
                StreamEnd::CutOff => return reception.end(false).map_err(fault),
                StreamEnd::Refused(fault) => {
                    return Err(AskError::Failed(Cause::Connection(fault)));
                }
            }
        }
    }

    /// Waits for events until this time, and passes on those of this connection.
    fn wait_for(
        &mut self,
        token: Token,
        by: Instant,
        mut note: impl FnMut(&Event),
    ) -> Result<(), AskError> {
        let left = by.saturating_duration_since(Instant::now());
        poll_for(&mut self.poll, &mut self.events, Some(left))?;
        self.events.iter().filter(|event| event.token() == token).for_each(&mut note);
        Ok(())
    }
}

/// Why a request has no response.
enum AskError {
    Failed(Cause),
    RelayGone,
}

impl From<RelayGone> for AskError {
    fn from(RelayGone: RelayGone) -> AskError {
        AskError::RelayGone
    }
}

/// Waits for events. Fails when the relay has closed the pipe.
fn poll_for(
    poll: &mut Poll,
    events: &mut Events,
    timeout: Option<Duration>,
) -> Result<(), RelayGone> {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        result => result.map_err(|_| RelayGone)?,
    }
    let is_gone =
        |event: &Event| event.token() == PIPE && (event.is_error() || event.is_write_closed());
    if events.iter().any(is_gone) { Err(RelayGone) } else { Ok(()) }
}

impl Renewed {
    /// The time since it was asked for.
    fn age(&self) -> Duration {
        time_since_boot().saturating_sub(self.asked)
    }

    /// The time until the token is renewed.
    pub(super) fn due_in(&self) -> Duration {
        renewal::due(self.lifetime, self.age())
    }
}
