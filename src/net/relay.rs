//! One client connection with its exchange and, while it needs one, its upstream connection: the
//! pump that moves bytes between them.
//!
//! Write before read, in both directions: the upstream is read only while everything it sent before
//! has gone to the client, the client's body only while everything it sent before has gone
//! upstream. So what waits is never more than what one read brought.

mod ending;
mod logging;
mod request;
mod response;
mod room;
mod timing;
mod unowned;

use std::io::Write;
use std::time::{Duration, Instant};

use mio::Registry;

use super::access_log::Log;
use super::admission::{Admission, User};
use super::buffer::{Backlog, Scratch, Space};
use super::clock::DateClock;
use super::deadlines::Deadlines;
use super::pool::Pool;
use super::slots::{Key, Slots};
use super::socket::Socket;
use super::tls::FULL_RECORD;
use super::upstream::{Origin, Upstream};
use crate::http1::exchange::{Exchange, State};
use crate::http1::gather::GatherList;
use crate::http1::limits;
use crate::http1::local_response::Reject;
use crate::http1::request::Policy;
use crate::process::credential::{Credential, SearchPosition};
use crate::process::sys;
use crate::process::token::ClientToken;
use logging::Times;

/// Bytes of one read from a client: four records.
pub const READ: usize = 64 * 1024;
/// Bytes of one read from the upstream: whole records, so that none of a big answer is cut in two.
pub const WIRE: usize = 2 * FULL_RECORD;
/// Reads from each side in one turn of the loop, before others get theirs.
const ROUNDS: usize = 2;
/// Bytes read that end a turn before that. A turn that uses them up takes some 50 µs, and what is
/// small waits for one of these on each of its two ways through the loop.
const SHARE: usize = 2 * limits::RECORD;

/// What all connections of the loop share.
pub struct Shared {
    /// The upstream's side of things.
    pub origin: Origin,
    /// The key.
    pub credential: Credential,
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
    pub outgoing: GatherList,
    /// When their date is renewed.
    pub date: DateClock,
    /// `--client-token-file`.
    pub token: Option<ClientToken>,
    /// Bytes of all request heads that are buffered.
    pub head_bytes: usize,
    /// Bytes read in this turn.
    pub moved: usize,
    /// `--max-requests`: how many more may be forwarded.
    pub requests_left: u64,
    /// What goes to stderr.
    pub log: Log,
    /// Client connections so far.
    pub connections: u64,
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
    /// What it was admitted as.
    pub admission: Admission,
    /// Whose it is.
    pub user: User,
    /// That user's id, where `--allow-uid` has the kernel asked.
    pub uid: Option<u32>,
    /// Since when it has had no request; its first one counts from accept.
    idle_since: Instant,
    /// It is on a list of those that get a turn.
    pub listed: bool,
    /// It moves much: its turns come one by one with those of its like, whatever calls for them.
    pub heavy: bool,
    /// The connection has served a request before.
    served: bool,
    /// The number of this connection since the start of the program.
    pub number: u64,
    /// The number of the request that is under way, or comes next.
    request: u64,
    /// The last time that the client did what it is waited for.
    stall: Instant,
    /// For how long the pauses of its body may still last.
    patience: Duration,
    /// The last time that the upstream did.
    heard: Instant,
    /// Bytes of its head that are counted among those of all.
    pub head_bytes: usize,
    /// The client has been sent the end of the connection, while the rest of its request goes up.
    write_ended: bool,
    /// How far the response has been searched for the key.
    search: SearchPosition,
    response_start: ResponseStart,
    times: Times,
}

/// When the first byte of the final response came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ResponseStart {
    /// When the whole request had gone to the socket.
    AfterRequest,
    /// Before that: the upstream may take what came after its response for another request, so the
    /// connection is not used again.
    DuringRequest,
}

/// The connection is at its end: nothing more can be done with it.
struct Over;

/// What a step of a turn has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Something has moved, so that more might.
    Moved,
    /// Nothing can move before an event.
    Waiting,
}

impl Relay {
    /// A connection that has just been accepted.
    pub fn new(
        socket: Socket,
        key: Key,
        policy: Policy,
        (admission, user): (Admission, User),
        now: Instant,
    ) -> Relay {
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
            admission,
            user,
            uid: None,
            idle_since: now,
            listed: false,
            heavy: false,
            served: false,
            number: 0,
            request: 1,
            stall: now,
            patience: Duration::ZERO,
            heard: now,
            head_bytes: 0,
            write_ended: false,
            search: SearchPosition::default(),
            response_start: ResponseStart::AfterRequest,
            times: Times::new(now),
        }
    }

    /// An exchange is under way, or an answer has not been written to its end.
    pub fn is_busy(&self) -> bool {
        let has_request = !matches!(self.exchange.state(), State::Idle);
        !self.lingering && (has_request || !self.output.is_empty())
    }

    /// Nothing would be lost if it ended now.
    pub fn is_idle(&self) -> bool {
        !self.lingering && !self.is_busy()
    }

    /// Its client has left while the request waited for an upstream connection.
    pub fn is_abandoned(&self) -> bool {
        matches!(self.exchange.state(), State::Waiting(_)) && self.socket.is_read_closed()
    }

    /// No request will follow the one under way.
    pub fn drain(&mut self) {
        self.exchange.make_last();
    }

    /// Tells the client that it is not served, and hears it out.
    pub fn turn_away(&mut self, reject: Reject, shared: &mut Shared, now: Instant) -> Turn {
        match self.refuse(reject, shared, now) {
            Ok(()) => self.turn(shared, now),
            Err(Over) => {
                self.release(shared);
                Turn::Close
            }
        }
    }

    /// Gives up the upstream connection and cancels whatever is under way on it.
    pub fn release(&mut self, shared: &mut Shared) {
        if let Some(key) = self.upstream.take()
            && let Some(up) = shared.ups.get(key)
        {
            up.cancel();
            shared.ups.remove(key);
        }
    }

    /// One turn: moves what can be moved.
    pub fn turn(&mut self, shared: &mut Shared, now: Instant) -> Turn {
        shared.moved = 0;
        let mut turn = Turn::Again;
        for _ in 0..ROUNDS {
            match self.round(shared, now) {
                Ok(Progress::Moved) if shared.moved < SHARE => {}
                Ok(Progress::Moved) => break,
                Ok(Progress::Waiting) => {
                    turn = Turn::Wait;
                    break;
                }
                Err(Over) => {
                    self.release(shared);
                    return Turn::Close;
                }
            }
        }
        self.heavy = shared.moved >= limits::RECORD || !self.output.is_empty();
        self.set_deadline(shared);
        turn
    }

    fn round(&mut self, shared: &mut Shared, now: Instant) -> Result<Progress, Over> {
        if self.lingering {
            return self.discard(shared);
        }
        self.flush(shared, now)?;
        match self.exchange.state() {
            // A client that has left reads no response, so none is paid for.
            State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
                if self.socket.is_read_closed() =>
            {
                self.disown_upstream(shared, now);
                return Err(self.abort("client_closed", shared, now));
            }
            _ => {}
        }
        let steps = [
            self.pump_response(shared, now)?,
            self.pump_end(shared, now)?,
            self.pump_request(shared, now)?,
        ];
        let has_moved = steps.contains(&Progress::Moved);
        Ok(if has_moved { Progress::Moved } else { Progress::Waiting })
    }

    fn flush(&mut self, shared: &mut Shared, now: Instant) -> Result<(), Over> {
        if !self.output.is_empty() {
            match self.socket.write(self.output.bytes()) {
                Ok(n) => self.output.consume(n),
                Err(_) => return Err(self.abort("client_closed", shared, now)),
            }
        }
        Ok(())
    }

    /// Ends the connection so that nobody takes what was sent for a whole answer.
    fn abort(&mut self, end: &'static str, shared: &mut Shared, now: Instant) -> Over {
        self.log(end, shared, now);
        let _ = sys::reset_on_close(self.socket.fd());
        Over
    }

    /// Cuts an exchange off because the relay ends.
    pub fn cut_off(&mut self, shared: &mut Shared, now: Instant) {
        if self.is_busy() {
            self.abort("shutdown", shared, now);
        }
        self.release(shared);
    }
}
