//! One client connection with its exchange and, while it needs one, its upstream connection: the
//! pump that moves bytes between them.
//!
//! Write before read, in both directions: the upstream is read only while everything it sent before
//! has gone to the client, the client's body only while everything it sent before has gone
//! upstream. So what waits is never more than what one read brought.

use std::io::{IoSlice, Write};
use std::time::{Duration, Instant};

use mio::Registry;

use super::buffer::{Backlog, Scratch};
use super::deadlines::Deadlines;
use super::event_loop::place;
use super::pool::Pool;
use super::report::{AccessLog, Line};
use super::slots::{Key, Side, Slots};
use super::socket::{Got, Socket};
use super::upstream::{CONNECT, Flow, Origin, Space, Upstream, fill, keep_rest};
use crate::http1::exchange::{Exchange, RequestStep, ResponseStep};
use crate::http1::pieces::{self, Pieces};
use crate::http1::request::{Policy, Reject};
use crate::http1::response::UpstreamFault;
use crate::http1::target::Route;
use crate::process::sys;

/// Bytes of one read from a socket.
pub const READ: usize = 64 * 1024;
/// Reads from each side in one turn of the loop, before others get theirs.
const ROUNDS: usize = 2;
/// How long a client may keep a connection without a request.
const IDLE: Duration = Duration::from_secs(75);
/// How long a connection is drained so that the last answer arrives.
const LINGER: Duration = Duration::from_secs(5);
/// How long the upstream may take to say 100 before the client is told to go on.
const CONTINUE: Duration = Duration::from_millis(800);

/// What all connections of the loop share.
pub struct Shared {
    /// The upstream's side of things.
    pub origin: Origin,
    /// Upstream connections.
    pub ups: Slots<Upstream>,
    /// Those of them that are idle.
    pub pool: Pool,
    /// When to look at which connection.
    pub deadlines: Deadlines,
    /// Where sockets are registered.
    pub registry: Registry,
    /// Scratch for reads from clients.
    pub downstream: Scratch,
    /// Scratch for upstream connections.
    pub space: Space,
    /// Runs on their way out.
    pub pieces: Pieces,
    /// `--access-log`.
    pub log: Option<AccessLog>,
    /// `--client-timeout`.
    pub client_timeout: Duration,
    /// `--upstream-timeout`.
    pub upstream_timeout: Option<Duration>,
    /// `GET /shutdown` has been answered.
    pub shutdown: bool,
}

/// What becomes of a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It waits for an event.
    Wait,
    /// It has used up its share and wants another.
    Again,
    /// It is at its end.
    Close,
}

/// A client connection.
pub struct Relay {
    /// Its socket.
    pub socket: Socket,
    key: Key,
    /// Read from the client and not used yet.
    input: Backlog,
    /// `input` has been looked at: it takes further bytes to make something of it.
    hungry: bool,
    /// For the client, which had no room.
    output: Backlog,
    /// The beginning of a response head.
    head: Backlog,
    exchange: Exchange,
    upstream: Option<Key>,
    lingering: bool,
    /// It counts against the limit of connections.
    pub counted: bool,
    /// Requests that came before on this connection.
    served: bool,
    /// The last time that the client did what it is waited for.
    stall: Instant,
    /// The last time that the upstream did.
    heard: Instant,
    continue_by: Option<Instant>,
    /// Bytes of the key's beginning that the end of the last piece matched.
    matched: u8,
    times: Times,
}

#[derive(Clone, Copy)]
struct Times {
    begun: Instant,
    connect: Option<Duration>,
    first_byte: Option<Instant>,
    reused: bool,
}

impl Times {
    fn new(begun: Instant) -> Times {
        Times { begun, connect: None, first_byte: None, reused: false }
    }
}

/// The connection is at its end: nothing more can be done with it.
struct Over;

impl Relay {
    /// A connection that has just been accepted.
    pub fn new(socket: Socket, key: Key, policy: Policy, counted: bool, now: Instant) -> Relay {
        Relay {
            socket,
            key,
            input: Backlog::default(),
            hungry: false,
            output: Backlog::default(),
            head: Backlog::default(),
            exchange: Exchange::new(policy),
            upstream: None,
            lingering: false,
            counted,
            served: false,
            stall: now,
            heard: now,
            continue_by: None,
            matched: 0,
            times: Times::new(now),
        }
    }

    /// An exchange is under way, or an answer has not been written to its end.
    pub fn is_busy(&self) -> bool {
        !self.lingering
            && (self.exchange.is_under_way()
                || self.exchange.is_waiting()
                || self.exchange.is_complete()
                || !self.output.is_empty())
    }

    /// Nothing would be lost if it ended now.
    pub fn is_idle(&self) -> bool {
        !self.lingering && !self.is_busy()
    }

    /// No request will follow the one under way.
    pub fn drain(&mut self) {
        self.exchange.close();
    }

    /// Tells the client that there is no place for it.
    pub fn turn_away(&mut self, shared: &mut Shared, now: Instant) -> Turn {
        self.refuse(Reject::TooManyConnections, shared);
        self.turn(shared, now)
    }

    /// Gives the upstream connection up, so that it is closed with this one.
    pub fn release(&mut self, shared: &mut Shared) {
        if let Some(key) = self.upstream.take() {
            shared.ups.remove(key);
        }
    }

    /// One turn: moves what can be moved.
    pub fn turn(&mut self, shared: &mut Shared, now: Instant) -> Turn {
        for _ in 0..ROUNDS {
            match self.round(shared, now) {
                Ok(true) => {}
                Ok(false) => {
                    self.set_deadline(shared);
                    return Turn::Wait;
                }
                Err(Over) => {
                    self.release(shared);
                    return Turn::Close;
                }
            }
        }
        self.set_deadline(shared);
        Turn::Again
    }

    /// True when something moved, so that more might.
    fn round(&mut self, shared: &mut Shared, now: Instant) -> Result<bool, Over> {
        if self.lingering {
            return self.discard(shared);
        }
        self.flush(shared, now)?;
        // Nobody pays for an answer that nobody reads.
        if self.socket.is_read_closed()
            && (self.exchange.is_under_way() || self.exchange.is_waiting())
        {
            return self.abort("client_closed", shared, now);
        }
        let answered = self.pump_response(shared, now)?;
        let ended = self.pump_end(shared, now)?;
        let asked = self.pump_request(shared, now)?;
        Ok(answered || ended || asked)
    }

    fn flush(&mut self, shared: &mut Shared, now: Instant) -> Result<(), Over> {
        if !self.output.is_empty() {
            match self.socket.write(self.output.bytes()) {
                Ok(n) => self.output.consume(n),
                Err(_) => return self.abort("client_closed", shared, now).map(|_| ()),
            }
        }
        Ok(())
    }

    /// From the client to the upstream.
    fn pump_request(&mut self, shared: &mut Shared, now: Instant) -> Result<bool, Over> {
        if let Some(up) = self.upstream.and_then(|key| shared.ups.get(key)) {
            if self.exchange.is_waiting() && !up.is_ready() {
                return Ok(false);
            }
            up.flush();
            if self.exchange.is_uploading() && !up.is_drained() {
                return Ok(false);
            }
        }
        let may_read = if self.exchange.is_idle() {
            self.output.is_empty()
        } else {
            self.exchange.is_waiting() || self.exchange.wants_downstream()
        };
        if !may_read {
            return Ok(false);
        }
        if !self.input.is_empty() && !self.hungry {
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, shared, now)?;
            self.input.put_back(bytes, used);
            return Ok(used > 0);
        }
        shared.downstream.clear();
        match self.socket.read(&mut shared.downstream.room(READ)[..READ]) {
            Got::Bytes(n) => shared.downstream.add(n),
            Got::Nothing => return Ok(false),
            Got::End | Got::Broken if self.exchange.is_under_way() => {
                return self.abort("client_closed", shared, now);
            }
            Got::End | Got::Broken => return Err(Over),
        }
        if self.exchange.is_idle() && self.input.is_empty() {
            self.times = Times::new(now);
            // The first head is timed from the moment of accept.
            if self.served {
                self.stall = now;
            }
        } else if !self.exchange.is_idle() {
            self.stall = now;
        }
        self.hungry = false;
        let read = std::mem::replace(&mut shared.downstream, Scratch::new(0));
        let result = if self.input.is_empty() {
            let used = self.request_bytes(read.bytes(), shared, now);
            used.map(|used| self.input.push(&read.bytes()[used..]))
        } else {
            self.input.push(read.bytes());
            let bytes = self.input.take();
            let used = self.request_bytes(&bytes, shared, now);
            used.map(|used| self.input.put_back(bytes, used))
        };
        shared.downstream = read;
        result.map(|()| true)
    }

    /// Shows bytes to the exchange and sends on what it says; returns how many are used up.
    fn request_bytes(
        &mut self,
        bytes: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<usize, Over> {
        let mut at = 0;
        while at < bytes.len() {
            let ready = match self.upstream {
                Some(key) => shared.ups.get(key).is_some_and(|up| up.is_ready()),
                None => shared.pool.is_ready(&mut shared.ups),
            };
            let before = (self.exchange.is_idle() || self.exchange.is_waiting())
                .then(|| self.exchange.clone());
            shared.pieces.clear();
            let (used, step) = self.exchange.downstream(&bytes[at..], ready, &mut shared.pieces);
            match step {
                RequestStep::More => {
                    self.hungry = true;
                    return Ok(at + used);
                }
                RequestStep::Done => return Ok(at + used),
                RequestStep::Connect => {
                    return Ok(at + self.connect(shared, now)?);
                }
                RequestStep::Upstream => {
                    let rest = &bytes[at..];
                    match self.send_upstream(rest, shared, now) {
                        Sent::All => at += used,
                        Sent::Some => return Ok(at + used),
                        // Nothing was taken, so nothing can be done twice: another connection.
                        Sent::Nothing => {
                            if let Some(before) = before {
                                self.exchange = before;
                            }
                        }
                        Sent::Failed => {
                            self.fail_unread(UpstreamFault::Closed, shared, now)?;
                            return Ok(at + used);
                        }
                    }
                }
                RequestStep::Downstream | RequestStep::Shutdown => {
                    shared.shutdown |= step == RequestStep::Shutdown;
                    self.give_up_upstream(shared);
                    self.send_downstream(&bytes[at..], shared, now)?;
                    return Ok(at + used);
                }
            }
        }
        Ok(at)
    }

    /// Sends the pieces, runs of `input`, upstream.
    fn send_upstream(&mut self, input: &[u8], shared: &mut Shared, now: Instant) -> Sent {
        let first = shared.pieces.has_credential();
        let key = match self.upstream {
            Some(key) => key,
            None => match shared.pool.take(&mut shared.ups) {
                Some(key) => key,
                None => return Sent::Nothing,
            },
        };
        let Some(up) = shared.ups.get(key) else {
            return Sent::Nothing;
        };
        if first {
            up.wake(self.key);
            let sent = up.send_head(
                &shared.pieces,
                input,
                &mut shared.origin.credential,
                &mut shared.space,
            );
            if sent.is_err() {
                let reused = up.reused;
                shared.ups.remove(key);
                self.upstream = None;
                return if reused { Sent::Nothing } else { Sent::Failed };
            }
            self.upstream = Some(key);
            self.matched = 0;
            self.times.reused = up.reused;
            self.stall = now;
            self.continue_by =
                self.continue_by.or(Some(now + CONTINUE)).filter(|_| self.exchange.owes_continue());
        } else {
            up.send_body(&shared.pieces, input, &mut shared.space);
        }
        self.heard = now;
        if up.is_drained() { Sent::All } else { Sent::Some }
    }

    /// Begins a connection for the head that waits; returns the bytes used up, should it fail at once.
    fn connect(&mut self, shared: &mut Shared, now: Instant) -> Result<usize, Over> {
        if self.exchange.owes_continue() {
            self.continue_by = Some(now + CONTINUE);
        }
        let limit = shared.upstream_timeout.map_or(CONNECT, |limit| limit.min(CONNECT));
        let owner = self.key;
        let made = shared
            .ups
            .insert(|key| Some(Upstream::new(key.token(Side::Upstream), owner, now, limit)));
        self.upstream = made;
        match self.advance(shared, now) {
            Ok(()) => Ok(0),
            Err(fault) => self.fail_unread(fault, shared, now),
        }
    }

    fn advance(&mut self, shared: &mut Shared, now: Instant) -> Result<(), UpstreamFault> {
        let key = self.upstream.ok_or(UpstreamFault::Unreachable)?;
        let up = shared.ups.get(key).ok_or(UpstreamFault::Unreachable)?;
        if up.is_ready() {
            return Ok(());
        }
        up.flush();
        up.advance(&mut shared.origin, &shared.registry, &mut shared.space, now)?;
        if up.is_ready() {
            self.times.connect = Some(now.saturating_duration_since(up.since));
        } else if let Some(when) = up.wakes_at() {
            shared.deadlines.set(place(key, Side::Upstream), when);
        }
        Ok(())
    }

    /// From the upstream to the client.
    fn pump_response(&mut self, shared: &mut Shared, now: Instant) -> Result<bool, Over> {
        let Some(key) = self.upstream else {
            return Ok(false);
        };
        if self.exchange.is_waiting() {
            if let Err(fault) = self.advance(shared, now) {
                let used = self.fail_unread(fault, shared, now)?;
                self.input.consume(used);
            }
            return Ok(false);
        }
        if !self.exchange.is_under_way() || !self.output.is_empty() {
            return Ok(false);
        }
        let Some(up) = shared.ups.get(key) else {
            return Ok(false);
        };
        if !up.has_news() {
            return Ok(false);
        }
        let flow = up.read(&mut shared.space, READ);
        if shared.space.plain.bytes().is_empty() && flow == Flow::Open {
            return Ok(true);
        }
        self.heard = now;
        let plain = std::mem::replace(&mut shared.space.plain, Scratch::new(0));
        let result = if self.head.is_empty() {
            self.response_bytes(plain.bytes(), flow, shared, now)
        } else {
            self.head.push(plain.bytes());
            let bytes = self.head.take();
            self.response_bytes(&bytes, flow, shared, now)
        };
        shared.space.plain = plain;
        result.map(|()| true)
    }

    /// Shows bytes to the exchange and sends on what it says.
    fn response_bytes(
        &mut self,
        bytes: &[u8],
        flow: Flow,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), Over> {
        let mut at = 0;
        while at < bytes.len() && self.exchange.is_under_way() {
            shared.pieces.clear();
            let (credential, matched) = (&shared.origin.credential, &mut self.matched);
            let (used, step) =
                self.exchange.upstream(&bytes[at..], &mut shared.pieces, &mut |piece| {
                    credential.reflected(matched, piece)
                });
            if let ResponseStep::Fault(fault) = step {
                return self.response_fault(fault, shared, now);
            }
            self.times.first_byte = self.times.first_byte.or(Some(now));
            self.send_downstream(&bytes[at..], shared, now)?;
            if used == 0 {
                break;
            }
            at += used;
        }
        if self.exchange.is_under_way() {
            if flow != Flow::Open {
                shared.pieces.clear();
                let clean = flow == Flow::Ended;
                return match self.exchange.upstream_end(clean, &mut shared.pieces) {
                    ResponseStep::Fault(fault) => self.response_fault(fault, shared, now),
                    ResponseStep::Downstream => {
                        self.give_up_upstream(shared);
                        self.send_downstream(&[], shared, now)
                    }
                };
            }
            self.head.push(&bytes[at..]);
            return Ok(());
        }
        // Bytes after the end of an answer belong to nothing that was asked.
        let whole = at == bytes.len() && flow == Flow::Open && self.exchange.upstream_reusable();
        let Some(key) = self.upstream.take() else {
            return Ok(());
        };
        if !whole || shared.ups.get(key).is_none_or(|up| !up.is_drained()) {
            close(key, shared);
        } else if shared.pool.put(key, &mut shared.ups, now) {
            shared.deadlines.set(place(key, Side::Upstream), now + super::pool::IDLE);
        }
        Ok(())
    }

    fn response_fault(
        &mut self,
        fault: UpstreamFault,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), Over> {
        if self.exchange.may_answer() {
            let used = self.fail_unread(fault, shared, now)?;
            self.input.consume(used);
            return Ok(());
        }
        let end = match fault {
            UpstreamFault::Closed => "upstream_truncated",
            fault => fault.canned().code,
        };
        self.abort(end, shared, now).map(|_| ())
    }

    /// Answers for an upstream that cannot; returns the bytes of client input used up.
    fn fail_unread(
        &mut self,
        fault: UpstreamFault,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<usize, Over> {
        self.give_up_upstream(shared);
        self.head = Backlog::default();
        self.stall = now;
        shared.pieces.clear();
        let used = self.exchange.fail(fault, &mut shared.pieces);
        self.send_downstream(&[], shared, now)?;
        Ok(used)
    }

    fn refuse(&mut self, reject: Reject, shared: &mut Shared) {
        self.give_up_upstream(shared);
        shared.pieces.clear();
        self.exchange.refuse(reject, &mut shared.pieces);
        let _ = self.write_pieces(&[], shared);
    }

    fn give_up_upstream(&mut self, shared: &mut Shared) {
        if let Some(key) = self.upstream.take() {
            close(key, shared);
        }
    }

    /// Sends the pieces, runs of `input`, to the client.
    fn send_downstream(
        &mut self,
        input: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<(), Over> {
        if shared.pieces.is_empty() || self.write_pieces(input, shared) {
            return Ok(());
        }
        self.abort("client_closed", shared, now).map(|_| ())
    }

    fn write_pieces(&mut self, input: &[u8], shared: &mut Shared) -> bool {
        let mut runs = [IoSlice::new(&[]); pieces::RUNS];
        let count = fill(&mut runs, &shared.pieces, input);
        let runs = &runs[..count];
        let sent = match runs {
            _ if !self.output.is_empty() => Ok(0),
            [run] => self.socket.write(run),
            runs => self.socket.write_vectored(runs),
        };
        match sent {
            Ok(sent) => keep_rest(runs, sent, &mut self.output),
            Err(_) => return false,
        }
        true
    }

    /// When the answer is with the client: what comes next.
    fn pump_end(&mut self, shared: &mut Shared, now: Instant) -> Result<bool, Over> {
        if !self.exchange.is_complete() || !self.output.is_empty() {
            return Ok(false);
        }
        if self.exchange.closes() {
            self.log("complete", shared, now);
            self.lingering = true;
            self.stall = now;
            self.socket.shutdown_write();
            self.input = Backlog::default();
            return Ok(true);
        }
        if !self.exchange.is_over() {
            return Ok(false);
        }
        self.log("complete", shared, now);
        self.exchange.next();
        self.head = Backlog::default();
        self.continue_by = None;
        self.served = true;
        self.hungry = false;
        self.stall = now;
        self.times = Times::new(now);
        Ok(true)
    }

    /// Reads and drops what still comes, so that no reset eats the last answer.
    fn discard(&mut self, shared: &mut Shared) -> Result<bool, Over> {
        match self.socket.read(&mut shared.downstream.room(READ)[..READ]) {
            Got::Bytes(_) => Ok(true),
            Got::Nothing => Ok(false),
            Got::End | Got::Broken => Err(Over),
        }
    }

    /// Ends the connection so that nobody takes what was sent for a whole answer.
    fn abort(
        &mut self,
        end: &'static str,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<bool, Over> {
        self.log(end, shared, now);
        let _ = sys::reset_on_close(self.socket.fd());
        Err(Over)
    }

    /// Cuts an exchange off because the relay ends.
    pub fn cut_off(&mut self, shared: &mut Shared, now: Instant) {
        if self.is_busy() {
            let _ = self.abort("shutdown", shared, now);
        }
        self.release(shared);
    }

    /// A deadline may have come.
    pub fn time(&mut self, shared: &mut Shared, now: Instant) -> Turn {
        if self.out_of_time(shared, now).is_err() {
            self.release(shared);
            return Turn::Close;
        }
        self.turn(shared, now)
    }

    fn out_of_time(&mut self, shared: &mut Shared, now: Instant) -> Result<(), Over> {
        if self.continue_by.is_some_and(|when| now >= when) {
            self.continue_by = None;
            shared.pieces.clear();
            self.exchange.send_continue(&mut shared.pieces);
            self.send_downstream(&[], shared, now)?;
        }
        if self.client_by(shared).is_some_and(|when| now >= when) {
            let blocked = self
                .upstream
                .and_then(|key| shared.ups.get(key))
                .is_some_and(|up| !up.is_drained());
            if self.lingering || (self.exchange.is_idle() && self.input.is_empty()) {
                return Err(Over);
            } else if !self.exchange.may_answer() {
                // The answer is out and the rest of the body does not come.
                self.exchange.close();
            } else if blocked {
                self.stall = now;
            } else {
                self.refuse(Reject::Timeout, shared);
            }
        }
        if self.upstream_by(shared).is_some_and(|when| now >= when) {
            if !self.output.is_empty() {
                // It is the client that holds things up.
                self.heard = now;
            } else {
                self.response_fault(UpstreamFault::Timeout, shared, now)?;
            }
        }
        Ok(())
    }

    /// Until when the client has to do its part.
    fn client_by(&self, shared: &Shared) -> Option<Instant> {
        let limit = if self.lingering {
            LINGER
        } else if self.exchange.is_idle() {
            if self.served && self.input.is_empty() { IDLE } else { shared.client_timeout }
        } else if self.exchange.is_uploading()
            || (self.exchange.is_complete() && !self.exchange.closes())
        {
            shared.client_timeout
        } else {
            return None;
        };
        Some(self.stall + limit)
    }

    /// Until when the upstream has to do its part.
    fn upstream_by(&self, shared: &Shared) -> Option<Instant> {
        let limit = shared.upstream_timeout.filter(|_| self.exchange.is_under_way())?;
        Some(self.heard + limit)
    }

    fn set_deadline(&self, shared: &mut Shared) {
        let times = [self.client_by(shared), self.upstream_by(shared), self.continue_by];
        if let Some(when) = times.into_iter().flatten().min() {
            shared.deadlines.set(place(self.key, Side::Downstream), when);
        }
    }

    fn log(&mut self, end: &'static str, shared: &mut Shared, now: Instant) {
        let Some(log) = &mut shared.log else {
            return;
        };
        let exchange = &self.exchange;
        log.exchange(&Line {
            route: match exchange.route {
                Some(Route::Responses) => "responses",
                Some(Route::Shutdown) => "shutdown",
                _ => "refused",
            },
            status: exchange.status,
            bytes_in: exchange.bytes_in,
            bytes_out: exchange.bytes_out,
            connect: self.times.connect,
            first_byte: self
                .times
                .first_byte
                .map(|t| t.saturating_duration_since(self.times.begun)),
            total: now.saturating_duration_since(self.times.begun),
            reused: self.times.reused,
            end: if end == "complete" { exchange.code.unwrap_or(end) } else { end },
        });
    }
}

/// How much of some pieces went to the upstream connection.
enum Sent {
    /// All of them; it takes more.
    All,
    /// All of them, but some wait for room.
    Some,
    /// None; the connection had grown old and is gone.
    Nothing,
    /// None; the connection was new and is gone.
    Failed,
}

/// Closes an upstream connection with a goodbye.
fn close(key: Key, shared: &mut Shared) {
    if let Some(up) = shared.ups.take(key) {
        up.close(&mut shared.space);
        shared.ups.remove(key);
    }
}
